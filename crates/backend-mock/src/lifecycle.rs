//! Revoking, shrinking and growing a communicator: what its ranks do after a loss, and before a
//! gain.
//!
//! A revoke fails the communicator for all its ranks, and leaves it standing for a shrink. The ranks
//! that stay meet here as they do for a split, but by the list of those they leave out, and whatever
//! has happened to the communicator. A growing is a join whose first places belong to the members.

use std::{
    sync::{
        Arc, Condvar, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use collectives_core::{
    AbortControl, Error, ErrorKind, GrowConfig, JoinConfig, Rank, Result, ShrinkConfig, UniqueId,
};

use crate::{
    Mock, MockComm,
    comm_state::EndShared,
    engine::{Engine, Seat},
    error::{Failure, misuse, refuse},
    fault::Held,
    meeting::wait,
    process::board::End,
    slab::Key,
    state::State,
    sync::lock,
    threads::What,
};

/// The part of a communicator that survives its failure.
pub(crate) struct Lifecycle {
    /// Why it is revoked, if it is.
    revoked: OnceLock<Failure>,
    /// By rank: whether it revoked the communicator itself.
    revokers: Box<[AtomicBool]>,
    state: Mutex<Lives>,
    changed: Condvar,
}

struct Lives {
    /// By rank: whether it left the communicator or was aborted.
    gone: Vec<bool>,
    /// Shrinks that not all ranks have left.
    shrinks: Vec<Shrink>,
    /// Ids for growing, in the order in which they were made; and by rank, how many it has used.
    ids: Vec<u64>,
    used: Vec<usize>,
    /// Ranks that wait for an id, and how often all did so in vain.
    waiting: usize,
    stalls: u64,
    /// Numbers the shrinks.
    next: u64,
    /// The revoke that has ended the shrinks that ranks were in.
    abandoned: Option<Failure>,
}

struct Shrink {
    number: u64,
    /// In order.
    exclude: Vec<Rank>,
    tickets: Vec<Option<Seat>>,
    /// Ranks inside.
    present: usize,
    /// By rank of the old communicator, once all have come; or why there will be none.
    outcome: Option<Result<Vec<Option<Arc<EndShared>>>, Failure>>,
}

impl Shrink {
    /// Whether all ranks that stay have come.
    fn is_complete(&self) -> bool {
        self.present + self.exclude.len() == self.tickets.len()
    }

    /// The ranks that stay and have not come.
    fn missing(&self) -> Vec<Rank> {
        let ranks = (0..self.tickets.len() as u32).map(Rank::new);
        let stays = |rank: &Rank| self.exclude.binary_search(rank).is_err();
        ranks.filter(|rank| stays(rank) && self.tickets[rank.index()].is_none()).collect()
    }
}

impl Lifecycle {
    pub(crate) fn new(size: usize) -> Self {
        let lives = Lives {
            gone: vec![false; size],
            shrinks: Vec::new(),
            ids: Vec::new(),
            used: vec![0; size],
            waiting: 0,
            stalls: 0,
            next: 0,
            abandoned: None,
        };
        Self {
            revoked: OnceLock::new(),
            revokers: (0..size).map(|_| AtomicBool::new(false)).collect(),
            state: Mutex::new(lives),
            changed: Condvar::new(),
        }
    }

    /// Why the communicator is revoked, if it is.
    pub(crate) fn revoked(&self) -> Option<&Failure> {
        self.revoked.get()
    }

    /// Another process has revoked it.
    pub(crate) fn set_revoked(&self, failure: Failure) {
        let _ = self.revoked.set(failure);
    }

    /// Whether this rank revoked it, so that it need not be told.
    pub(crate) fn has_revoked(&self, rank: Rank) -> bool {
        self.revokers[rank.index()].load(Ordering::Acquire)
    }

    /// Lets waiting ranks look again.
    pub(crate) fn wake(&self) {
        drop(lock(&self.state));
        self.changed.notify_all();
    }

    /// A rank left the communicator or was aborted, and will come to nothing more.
    pub(crate) fn depart(&self, rank: Rank) {
        lock(&self.state).gone[rank.index()] = true;
        self.changed.notify_all();
    }

    /// Meets the other ranks that stay, and makes their communicator. A revoke ends one that
    /// `is_planned`.
    pub(crate) fn shrink(
        &self,
        engine: &Engine,
        end: &EndShared,
        config: ShrinkConfig,
        is_planned: bool,
    ) -> Result<Arc<EndShared>> {
        let (rank, size) = (end.info.rank.index(), end.info.size);
        let ShrinkConfig { mut exclude, name, .. } = config;
        exclude.sort_unstable();
        let mut lives = lock(&self.state);
        if let Some(failure) = lives.abandoned.as_ref().filter(|_| is_planned) {
            return Err(failure.plain());
        }
        if let Some(failure) = lives.disagreement(end.info.rank, &exclude) {
            self.changed.notify_all();
            return Err(failure.plain());
        }
        let number = lives.shrink_without(&exclude, rank, size);
        let seat = Seat { device: end.info.device, name };
        let shrink = lives.shrink(number);
        shrink.tickets[rank] = Some(seat);
        shrink.present += 1;
        if shrink.is_complete() {
            // From here on nobody leaves before there is an outcome.
            let again = |seat: &Seat| Seat { device: seat.device, name: seat.name.clone() };
            let seats = shrink.tickets.iter().flatten().map(again).collect();
            drop(lives);
            let mut made = engine.make_comm(seats).into_iter();
            lives = lock(&self.state);
            let stays = |rank| exclude.binary_search(&Rank::new(rank)).is_err();
            let own = |rank| stays(rank).then(|| made.next()).flatten();
            let ends = (0..size as u32).map(own).collect();
            lives.shrink(number).outcome = Some(Ok(ends));
            self.changed.notify_all();
        }
        let what = What::Shrink { comm: end.comm, rank: end.info.rank.get(), number };
        let _wait = engine.begin_wait(what, None);
        loop {
            let gone = lives.gone.clone();
            let shrink = lives.shrink(number);
            let mut lost = shrink.missing();
            lost.retain(|rank| gone[rank.index()]);
            if shrink.outcome.is_none() && !lost.is_empty() {
                let s = if lost.len() == 1 { "" } else { "s" };
                let message = format!(
                    "rank{s} {} left the communicator, and should have been excluded",
                    listed(&lost)
                );
                let failure = Failure::new(ErrorKind::Remote, message);
                shrink.outcome = Some(Err(failure.with_hint("shrink without what is gone")));
                self.changed.notify_all();
            }
            let (aborted, complete) = (end.is_aborted(), shrink.is_complete());
            let outcome = match &mut shrink.outcome {
                Some(Ok(ends)) => match ends[rank].take() {
                    Some(own) => Some(Ok(own)),
                    None => Some(Err(refuse(ErrorKind::Internal, "the shrink lost a rank"))),
                },
                Some(Err(failure)) => Some(Err(failure.plain())),
                None if aborted && !complete => end.check().err().map(Err),
                None => None,
            };
            if let Some(outcome) = outcome {
                shrink.tickets[rank] = None;
                shrink.present -= 1;
                if shrink.present == 0 {
                    lives.shrinks.retain(|shrink| shrink.number != number);
                }
                return outcome;
            }
            lives = wait(&self.changed, lives, None);
        }
    }

    /// Ranks that have not come to shrink `number`, as long as it is open and they still can.
    pub(crate) fn missing(&self, number: u64) -> Option<Vec<Rank>> {
        let lives = lock(&self.state);
        let shrink = lives.shrinks.iter().find(|shrink| shrink.number == number)?;
        let missing = shrink.missing();
        let open = shrink.outcome.is_none() && !shrink.is_complete();
        let lost = missing.iter().any(|rank| lives.gone[rank.index()]);
        (open && !lost).then_some(missing)
    }

    /// Ends a shrink for all who came, if it is open.
    pub(crate) fn call_off(&self, number: u64, failure: Failure) {
        let mut lives = lock(&self.state);
        let open = lives.shrinks.iter_mut().find(|shrink| shrink.number == number);
        if let Some(shrink) = open.filter(|it| it.outcome.is_none() && !it.is_complete()) {
            shrink.outcome = Some(Err(failure));
            self.changed.notify_all();
        }
    }

    /// The communicator is revoked: shrinks that are open were planned before, and end.
    fn abandon(&self, failure: &Failure) {
        let mut lives = lock(&self.state);
        lives.abandoned = Some(failure.clone());
        let open = |shrink: &&mut Shrink| shrink.outcome.is_none() && !shrink.is_complete();
        for shrink in lives.shrinks.iter_mut().filter(open) {
            shrink.outcome = Some(Err(failure.clone()));
        }
        self.changed.notify_all();
    }

    /// Whether `rank` waits for an id that somebody has to make, and all who could are there.
    pub(crate) fn lacks_grow_id(&self, rank: Rank) -> bool {
        let lives = lock(&self.state);
        let all_wait = lives.waiting == lives.gone.len();
        lives.ids.len() <= lives.used[rank.index()] && !lives.gone.contains(&true) && !all_wait
    }

    /// Makes an id for growing; `make` is asked for its number.
    fn grow_id(&self, rank: Rank, make: impl FnOnce() -> u64) -> Result<u64> {
        let mut lives = lock(&self.state);
        if lives.ids.len() > lives.used[rank.index()] {
            return Err(
                misuse("an id that was made before is not used up").with_hint("grow with it first")
            );
        }
        let id = make();
        lives.ids.push(id);
        self.changed.notify_all();
        Ok(id)
    }

    /// Takes the id with which the communicator grows next, and waits for one of the members to
    /// make it.
    fn take_grow_id(&self, engine: &Engine, end: &EndShared) -> Result<u64> {
        let rank = end.info.rank.index();
        let mut lives = lock(&self.state);
        let stalls = lives.stalls;
        lives.waiting += 1;
        if lives.waiting == end.info.size && lives.ids.len() <= lives.used[rank] {
            lives.stalls += 1;
            self.changed.notify_all();
        }
        let what = What::GrowId { comm: end.comm, rank: end.info.rank.get() };
        let _wait = engine.begin_wait(what, None);
        let outcome = loop {
            let (used, lost) = (lives.used[rank], lives.gone.iter().position(|&gone| gone));
            if let Some(&id) = lives.ids.get(used) {
                lives.used[rank] += 1;
                break Ok(id);
            }
            if lives.stalls > stalls {
                break Err(misuse("every member calls grow, and none has made an id")
                    .with_hint("one of them calls grow_id first"));
            }
            if let Err(error) = end.check() {
                break Err(error);
            }
            if let Some(lost) = lost {
                let message = format!("rank {lost} left the communicator and will not grow it");
                break Err(refuse(ErrorKind::Remote, message));
            }
            lives = wait(&self.changed, lives, None);
        };
        lives.waiting -= 1;
        outcome
    }
}

impl Lives {
    /// Whether ranks that wait for each other have given different lists. The shrinks in question
    /// then end for all who came.
    fn disagreement(&mut self, rank: Rank, exclude: &[Rank]) -> Option<Failure> {
        let present = |shrink: &Shrink| {
            let ranks = (0..shrink.tickets.len() as u32).map(Rank::new);
            let here = ranks.filter(|rank| shrink.tickets[rank.index()].is_some());
            // One who is left out here may come when that is over.
            here.into_iter().find(|other| exclude.binary_search(other).is_err())
        };
        let (other, theirs) = self.shrinks.iter().find_map(|shrink| {
            let waits_for_us = shrink.exclude.binary_search(&rank).is_err();
            let open = shrink.outcome.is_none() && shrink.exclude != exclude;
            (open && waits_for_us).then(|| Some((present(shrink)?, shrink.exclude.clone())))?
        })?;
        let failure = Failure::new(
            ErrorKind::InvalidArgument,
            format!(
                "ranks disagree on whom to exclude: rank {other} excludes {}, rank {rank} {}",
                listed(&theirs),
                listed(exclude)
            ),
        )
        .with_hint("all ranks that stay give the same list");
        for shrink in &mut self.shrinks {
            if shrink.outcome.is_none() && (shrink.exclude == theirs || shrink.exclude == exclude) {
                shrink.outcome = Some(Err(failure.clone()));
            }
        }
        Some(failure)
    }

    /// A shrink by its number: it stays until all who came have left.
    fn shrink(&mut self, number: u64) -> &mut Shrink {
        let found = self.shrinks.iter_mut().find(|shrink| shrink.number == number);
        found.expect("a shrink stays while a rank is inside")
    }

    /// The number of the shrink without `exclude` to which `rank` has not come.
    fn shrink_without(&mut self, exclude: &[Rank], rank: usize, size: usize) -> u64 {
        let open = self.shrinks.iter().find(|shrink| {
            shrink.exclude == exclude && shrink.outcome.is_none() && shrink.tickets[rank].is_none()
        });
        if let Some(shrink) = open {
            return shrink.number;
        }
        let number = self.next;
        self.next += 1;
        self.shrinks.push(Shrink {
            number,
            exclude: exclude.to_vec(),
            tickets: (0..size).map(|_| None).collect(),
            present: 0,
            outcome: None,
        });
        number
    }
}

pub(crate) fn listed(ranks: &[Rank]) -> String {
    ranks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl State {
    /// Revokes a communicator for all its ranks. `rank` does it, and need not be told of it by its
    /// streams. Unless it does so `to_shrink`, which others may do without, that ends shrinks, too.
    pub(crate) fn revoke(&mut self, key: Key, rank: Rank, message: String, to_shrink: bool) {
        let Some(comm) = self.comms.get(key) else { return };
        let meeting = Arc::clone(&comm.meeting);
        meeting.lifecycle.revokers[rank.index()].store(true, Ordering::Release);
        let failure = Failure::new(ErrorKind::Revoked, message)
            .with_hint("shrink it, or end it and join a new one");
        if let Some(across) = &comm.across {
            let board = &across.joint.board;
            if board.tell(End::Revoked, &failure.tell(Some(rank))) && !to_shrink {
                board.abandon();
            }
        }
        if meeting.lifecycle.revoked.set(failure.clone()).is_ok() {
            if !to_shrink {
                meeting.lifecycle.abandon(&failure);
            }
            self.fail_comm(key, &failure, None);
        }
    }
}

/// The half of [`Collectives`](collectives_core::Collectives) and
/// [`Split`](collectives_core::Split) that this file is about.
impl MockComm {
    pub(crate) fn revoke_all(&self) -> Result<()> {
        if let Some(error) = self.shared().is_aborted().then(|| self.shared().check()) {
            return error;
        }
        self.not_in_group("revoke stops what is in flight")?;
        let rank = self.shared().info.rank;
        let message = format!("rank {rank} revoked the communicator");
        self.engine().with(|state| state.revoke(self.shared().comm, rank, message, false));
        self.shared().abort_follower()
    }

    pub(crate) fn shrunk(&self, config: ShrinkConfig) -> Result<Arc<EndShared>> {
        let end = self.shared();
        self.rules().shrink(&config)?;
        self.not_in_group("shrink blocks until all ranks that stay have called")?;
        let lifecycle = &end.meeting.lifecycle;
        let is_planned = lifecycle.revoked().is_none() && !config.abort;
        if end.is_aborted() || is_planned {
            end.check().map_err(|error| {
                error.with_hint("revoke the communicator first, or shrink with abort")
            })?;
        }
        if config.abort {
            let rank = end.info.rank;
            let message = format!("rank {rank} dropped its operations to shrink it");
            self.engine().with(|state| state.revoke(end.comm, rank, message, true));
        }
        match &end.joint {
            Some(joint) => self.engine().shrink_across(end, joint, config, is_planned),
            None => lifecycle.shrink(self.engine(), end, config, is_planned),
        }
    }

    pub(crate) fn grown(&self, config: GrowConfig) -> Result<Arc<EndShared>> {
        let end = self.shared();
        end.check_active()?;
        self.rules().grow(&config)?;
        self.not_in_group("grow blocks until all ranks have called")?;
        let id = match &end.joint {
            Some(joint) => {
                let token = self.engine().take_grow_id_across(end, joint)?;
                self.engine().meetings.across.number(token)
            }
            None => end.meeting.lifecycle.take_grow_id(self.engine(), end)?,
        };
        let mut join = JoinConfig::new(end.info.rank, config.size).with_device(end.info.device);
        join.name = config.name;
        self.engine().meetings.join("grow", self.engine(), id, join)
    }

    pub(crate) fn make_grow_id(&self) -> Result<UniqueId> {
        let end = self.shared();
        end.check()?;
        let engine = self.engine();
        if let Some(joint) = &end.joint {
            let token = engine.make_grow_id_across(end, joint)?;
            return Ok(Mock::token_id(token, end.info.size));
        }
        let number = end.meeting.lifecycle.grow_id(end.info.rank, || engine.meetings.issue())?;
        Ok(Mock::id(engine, number, end.info.size))
    }
}

/// A join that does not block: one rank of a communicator to be, which is polled.
///
/// Communicators of this crate are blocking for their users. This is for code that has to show
/// NCCL's other states (`blocking = 0` in `ncclConfig_t`): what implements its C interface over the
/// mock answers `ncclCommGetAsyncError` with [`poll`](Self::poll).
///
/// ```
/// use collectives_backend_mock::{JoinState, Mock, MockConfig};
/// use collectives_core::{Backend, Collectives, JoinConfig};
///
/// let mock = Mock::new(MockConfig::new());
/// let id = mock.unique_id()?;
/// let mut first = mock.join_start(&id, JoinConfig::new(0, 2))?;
/// assert_eq!(first.poll(), JoinState::InProgress);
/// let mut second = mock.join_start(&id, JoinConfig::new(1, 2))?;
/// assert_eq!((first.poll(), second.poll()), (JoinState::Ready, JoinState::Ready));
/// assert_eq!(first.finish()?.info().size, 2);
/// # Ok::<_, collectives_core::Error>(())
/// ```
///
/// # Dropping
/// As [`abort`](Self::abort).
#[must_use = "dropping it gives the join up"]
pub struct PendingJoin {
    engine: Arc<Engine>,
    id: u64,
    config: JoinConfig,
    until: Option<Instant>,
    site: &'static std::panic::Location<'static>,
    /// What keeps it from coming to where the ranks meet, and since when.
    held: Option<(Held, Instant)>,
    outcome: Option<Result<Arc<EndShared>>>,
}

/// How far a [`PendingJoin`] has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum JoinState {
    /// It will not come about; [`PendingJoin::finish`] tells why. (NCCL: the error.)
    Failed,
    /// Other ranks are missing. (NCCL: `ncclInProgress`.)
    InProgress,
    /// All have come. (NCCL: `ncclSuccess`.)
    Ready,
}

impl PendingJoin {
    /// Takes the place of `config.rank`; what is wrong with the call is refused at once.
    #[track_caller]
    pub(crate) fn start(engine: Arc<Engine>, id: u64, config: JoinConfig) -> Result<Self> {
        let until = config.deadline.and_then(|deadline| Instant::now().checked_add(deadline));
        let (rank, size) = (config.rank, config.size);
        let refused = |error: Error| error.with_operation("join").with_rank(rank.get(), size);
        let held = engine.join_fault(config.name.as_deref(), rank, id).map_err(refused)?;
        let held = held.map(|held| (held, Instant::now()));
        if held.is_none() {
            engine.meetings.arrive("join", &engine, id, &config)?;
        }
        let site = std::panic::Location::caller();
        Ok(Self { engine, id, config, until, site, held, outcome: None })
    }

    /// Looks whether the other ranks have come, without waiting. Past its deadline, the join fails.
    pub fn poll(&mut self) -> JoinState {
        let over = |&mut (held, since): &mut (Held, Instant)| {
            held.by.is_some_and(|by| since.elapsed() >= by)
        };
        let meetings = &self.engine.meetings;
        if self.held.take_if(over).is_some() {
            let arrived = meetings.arrive("join", &self.engine, self.id, &self.config);
            self.outcome = arrived.err().map(Err);
        }
        if self.outcome.is_none() && self.held.is_none() {
            self.outcome = meetings.take("join", self.id, self.config.rank);
        }
        if self.outcome.is_none() && self.until.is_some_and(|until| until <= Instant::now()) {
            self.outcome = Some(self.give_up());
        }
        match &self.outcome {
            None => JoinState::InProgress,
            Some(Ok(_)) => JoinState::Ready,
            Some(Err(_)) => JoinState::Failed,
        }
    }

    /// The communicator, once [`poll`](Self::poll) says that it is ready.
    ///
    /// # Errors
    /// Why the join failed, as [`Backend::join`](collectives_core::Backend::join);
    /// [`InvalidUsage`](ErrorKind::InvalidUsage) while it is in progress, and it is given up.
    pub fn finish(mut self) -> Result<MockComm> {
        match self.outcome.take() {
            Some(Ok(end)) => {
                // From here on the communicator is what leaves.
                self.outcome = Some(Err(misuse("finished")));
                MockComm::new(Arc::clone(&self.engine), end, self.site)
            }
            Some(Err(error)) => {
                self.outcome = Some(Err(misuse("finished")));
                Err(error)
            }
            None => Err(misuse("the join is in progress")
                .with_operation("join")
                .with_rank(self.config.rank.get(), self.config.size)
                .with_hint("poll until it is ready")),
        }
    }

    /// Gives the join up: the place is free again, and the others go on waiting for somebody to take
    /// it. One that is ready leaves the communicator, which the others are told by what they wait
    /// for.
    pub fn abort(self) {
        drop(self);
    }

    fn give_up(&self) -> Result<Arc<EndShared>> {
        if let Some((held, _)) = self.held {
            let JoinConfig { rank, size, .. } = self.config;
            return Err(held.late(rank).with_operation("join").with_rank(rank.get(), size));
        }
        let waited = self.config.deadline.unwrap_or_default();
        self.engine.meetings.give_up("join", self.id, self.config.rank, waited)
    }
}

impl Drop for PendingJoin {
    fn drop(&mut self) {
        if crate::fork::in_forked_child() {
            return;
        }
        if let Ok(end) = self.outcome.take().unwrap_or_else(|| self.give_up()) {
            self.engine.with(|state| state.depart(end.comm, end.info.rank));
        }
    }
}

impl std::fmt::Debug for PendingJoin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PendingJoin").field("config", &self.config).finish_non_exhaustive()
    }
}
