//! Where ranks meet to make communicators: joining by id, and splitting.
//!
//! Both block the calling thread until all have come. Neither holds its own lock while it takes the
//! engine's; the engine may take theirs while it holds its own.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Condvar, Mutex, PoisonError, atomic::AtomicBool},
    time::{Duration, Instant},
};

use collectives_core::{Error, ErrorKind, JoinConfig, Rank, Result, SplitConfig};

use crate::{
    comm_state::EndShared,
    engine::{Engine, Seat},
    error::{Failure, invalid, misuse, refuse},
    gather::Gatherings,
    lifecycle::Lifecycle,
    sync::lock,
    threads::What,
};

/// The ids of one engine, and who waits under each.
pub(crate) struct JoinMeetings {
    state: Mutex<Joins>,
    changed: Condvar,
    /// Where ranks are processes.
    pub(crate) across: Gatherings,
}

struct Joins {
    next: u64,
    /// Ids that were made and not yet used up.
    issued: BTreeSet<u64>,
    /// Those that go by a name, used up or not.
    named: BTreeMap<String, u64>,
    open: BTreeMap<u64, Join>,
}

impl Joins {
    fn issue(&mut self) -> u64 {
        let id = self.next;
        self.next += 1;
        self.issued.insert(id);
        id
    }
}

struct Join {
    seats: Vec<Option<Seat>>,
    /// The ends, once all have come; or why there will be none.
    outcome: Option<Result<Vec<Arc<EndShared>>, Failure>>,
    /// Ranks inside.
    present: usize,
}

impl JoinMeetings {
    pub(crate) fn new() -> Self {
        let joins = Joins {
            next: 0,
            issued: BTreeSet::new(),
            named: BTreeMap::new(),
            open: BTreeMap::new(),
        };
        let (state, changed) = (Mutex::new(joins), Condvar::new());
        Self { state, changed, across: Gatherings::default() }
    }

    /// Makes an id.
    pub(crate) fn issue(&self) -> u64 {
        lock(&self.state).issue()
    }

    /// The id that goes by a name; the first who asks makes it.
    pub(crate) fn issue_named(&self, name: &str) -> u64 {
        let mut joins = lock(&self.state);
        if let Some(&id) = joins.named.get(name) {
            return id;
        }
        let id = joins.issue();
        joins.named.insert(name.to_owned(), id);
        id
    }

    /// Meets the other ranks under `id`.
    pub(crate) fn join(
        &self,
        operation: &'static str,
        engine: &Arc<Engine>,
        id: u64,
        config: JoinConfig,
    ) -> Result<Arc<EndShared>> {
        let JoinConfig { rank, deadline, .. } = config;
        let until = deadline.and_then(|deadline| Instant::now().checked_add(deadline));
        let what = What::Join { call: operation, id, rank: rank.get() };
        if engine.has_processes() {
            let _wait = engine.begin_wait(what, until);
            return self.across.join(operation, engine, id, &config, &AtomicBool::new(false));
        }
        self.arrive(operation, engine, id, &config)?;
        let _wait = engine.begin_wait(what, until);
        let mut joins = lock(&self.state);
        loop {
            if let Some(own) = self.take_from(&mut joins, operation, id, rank) {
                return own;
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                drop(joins);
                return self.give_up(operation, id, rank, deadline.unwrap_or_default());
            }
            joins = wait(&self.changed, joins, left);
        }
    }

    /// Takes a rank's place under `id`. The last one makes the communicator.
    pub(crate) fn arrive(
        &self,
        operation: &'static str,
        engine: &Arc<Engine>,
        id: u64,
        config: &JoinConfig,
    ) -> Result<()> {
        let &JoinConfig { rank, size, device, ref name, .. } = config;
        if engine.has_processes() {
            return self.across.start(operation, engine, id, config);
        }
        let at = |error: Error| error.with_operation(operation).with_rank(rank.get(), size);
        let mut joins = lock(&self.state);
        if !joins.issued.contains(&id) {
            let error = misuse("this unique id was used up by an earlier join");
            return Err(at(error.with_hint("make a new id for each communicator")));
        }
        let empty = || Join { seats: (0..size).map(|_| None).collect(), outcome: None, present: 0 };
        let join = joins.open.entry(id).or_insert_with(empty);
        if let Some(Err(failure)) = &join.outcome {
            return Err(at(failure.plain()));
        }
        if join.seats.len() != size {
            let known = join.seats.len();
            let failure = Failure::new(
                ErrorKind::InvalidArgument,
                format!("ranks disagree on the size: rank {rank} says {size}, others say {known}"),
            );
            return Err(at(self.fail(join, failure)));
        }
        if join.seats[rank.index()].is_some() {
            return Err(at(invalid(format!("rank {rank} has joined already"))
                .with_hint("give each participant a rank of its own")));
        }
        let occupant = join
            .seats
            .iter()
            .position(|seat| seat.as_ref().is_some_and(|seat| seat.device == device));
        if let Some(occupant) = occupant {
            let failure = Failure::new(
                ErrorKind::InvalidUsage,
                format!("ranks {occupant} and {rank} are both on device {device}"),
            )
            .with_hint("give each rank a device of its own, as NCCL wants");
            return Err(at(self.fail(join, failure)));
        }
        join.seats[rank.index()] = Some(Seat { device, name: name.clone() });
        join.present += 1;
        if join.present == size {
            let seats = join.seats.iter_mut().filter_map(Option::take).collect();
            drop(joins);
            let ends = engine.make_comm(seats);
            joins = lock(&self.state);
            if let Some(join) = joins.open.get_mut(&id) {
                join.outcome = Some(Ok(ends));
            }
            self.changed.notify_all();
        }
        Ok(())
    }

    /// What has become of a join: a rank that has arrived takes it once, and is out.
    pub(crate) fn take(
        &self,
        operation: &'static str,
        id: u64,
        rank: Rank,
    ) -> Option<Result<Arc<EndShared>>> {
        if self.across.is_pending(id, rank) {
            return self.across.take(id, rank);
        }
        self.take_from(&mut lock(&self.state), operation, id, rank)
    }

    fn take_from(
        &self,
        joins: &mut Joins,
        operation: &'static str,
        id: u64,
        rank: Rank,
    ) -> Option<Result<Arc<EndShared>>> {
        let Some(join) = joins.open.get_mut(&id) else {
            let error = refuse(ErrorKind::Internal, "the meeting of the ranks was lost");
            return Some(Err(error.with_operation(operation)));
        };
        let at =
            |error: Error| error.with_operation(operation).with_rank(rank.get(), join.seats.len());
        let own = match join.outcome.as_ref()? {
            Ok(ends) => Ok(Arc::clone(&ends[rank.index()])),
            Err(failure) => Err(at(failure.plain())),
        };
        join.present -= 1;
        if join.present == 0 {
            joins.open.remove(&id);
        }
        joins.issued.remove(&id);
        Some(own)
    }

    /// Gives a rank's place up after it `waited` so long, unless the join comes about at the last
    /// moment. Nothing is left behind: the others see an empty seat.
    pub(crate) fn give_up(
        &self,
        operation: &'static str,
        id: u64,
        rank: Rank,
        waited: Duration,
    ) -> Result<Arc<EndShared>> {
        if self.across.is_pending(id, rank) {
            return self.across.give_up(id, rank);
        }
        let mut joins = lock(&self.state);
        loop {
            if let Some(own) = self.take_from(&mut joins, operation, id, rank) {
                return own;
            }
            // Where all are here, the last one is making the communicator.
            if let Some(join) = joins.open.get_mut(&id)
                && join.present < join.seats.len()
            {
                let size = join.seats.len();
                let came: Vec<_> = join.seats.iter().map(Option::is_some).collect();
                let error = late(&came, waited);
                join.seats[rank.index()] = None;
                join.present -= 1;
                if join.present == 0 {
                    joins.open.remove(&id);
                }
                return Err(error.with_operation(operation).with_rank(rank.get(), size));
            }
            joins = wait(&self.changed, joins, None);
        }
    }

    /// Who came under `id` and who did not, as long as that is open.
    pub(crate) fn gathered(&self, id: u64) -> Option<Gathered> {
        let joins = lock(&self.state);
        let join = joins.open.get(&id)?;
        if join.outcome.is_some() || join.present == join.seats.len() {
            return None;
        }
        let name = join.seats.iter().flatten().find_map(|seat| seat.name.clone());
        let came = join.seats.iter().map(Option::is_some).collect();
        Some(Gathered { name, came })
    }

    /// Ends all open meetings.
    pub(crate) fn call_off_all(&self, why: &str) {
        self.across.call_off_all(Failure::new(ErrorKind::Aborted, why));
        let mut joins = lock(&self.state);
        for join in joins.open.values_mut().filter(|join| join.outcome.is_none()) {
            self.fail(join, Failure::new(ErrorKind::Aborted, why));
        }
    }

    /// Ends the meeting under `id`, if it is open; where ranks are processes, for those here whose
    /// number is at most `visits`.
    pub(crate) fn call_off(&self, id: u64, visits: u64, failure: &Failure) {
        self.across.call_off(id, visits, failure);
        if let Some(join) = lock(&self.state).open.get_mut(&id)
            && join.outcome.is_none()
        {
            self.fail(join, failure.clone());
        }
    }

    /// Ends a meeting for all who came and will come.
    fn fail(&self, join: &mut Join, failure: Failure) -> Error {
        let error = failure.plain();
        join.outcome = Some(Err(failure));
        self.changed.notify_all();
        error
    }
}

/// How far a meeting has come.
pub(crate) struct Gathered {
    /// The name of the communicator to be.
    pub(crate) name: Option<String>,
    /// By rank.
    pub(crate) came: Vec<bool>,
}

/// Not all ranks came in time.
pub(crate) fn late(seats: &[bool], deadline: Duration) -> Error {
    let came = |came: bool| {
        let ranks = seats.iter().enumerate().filter(move |(_, here)| **here == came);
        ranks.map(|(rank, _)| rank.to_string()).collect::<Vec<_>>()
    };
    let (here, missing) = (came(true), came(false));
    let message = format!(
        "{} of {} ranks joined in {deadline:?}: came {}; missing {}",
        here.len(),
        seats.len(),
        here.join(", "),
        missing.join(", ")
    );
    refuse(ErrorKind::Timeout, message)
}

/// Where the ranks of one communicator meet to split it.
pub(crate) struct SplitMeeting {
    /// Where they meet to do more than that.
    pub(crate) lifecycle: Lifecycle,
    state: Mutex<Splits>,
    changed: Condvar,
}

struct Splits {
    /// Splits that not all ranks have left; the first has number `base`.
    rounds: VecDeque<Round>,
    base: u64,
    /// By rank: splits that it took part in, and whether it left the communicator.
    calls: Vec<u64>,
    departed: Vec<bool>,
}

struct Round {
    tickets: Vec<Option<Ticket>>,
    came: usize,
    ends: Option<Vec<Option<Arc<EndShared>>>>,
    left: usize,
}

struct Ticket {
    config: SplitConfig,
    device: usize,
}

impl SplitMeeting {
    pub(crate) fn new(size: usize) -> Self {
        let (calls, departed) = (vec![0; size], vec![false; size]);
        let splits = Splits { rounds: VecDeque::new(), base: 0, calls, departed };
        Self { lifecycle: Lifecycle::new(size), state: Mutex::new(splits), changed: Condvar::new() }
    }

    /// Lets waiting ranks look again: the communicator failed.
    pub(crate) fn wake(&self) {
        drop(lock(&self.state));
        self.changed.notify_all();
        self.lifecycle.wake();
    }

    /// A rank left the communicator, and will come to no split.
    pub(crate) fn depart(&self, rank: Rank) {
        lock(&self.state).departed[rank.index()] = true;
        self.changed.notify_all();
        self.lifecycle.depart(rank);
    }

    /// Ranks that have not come to split number `round`, as long as that is open.
    pub(crate) fn missing(&self, round: u64) -> Option<Vec<u32>> {
        let splits = lock(&self.state);
        let round = splits.rounds.get(round.checked_sub(splits.base)? as usize)?;
        if round.ends.is_some() || round.came == round.tickets.len() {
            return None;
        }
        let missing = round.tickets.iter().enumerate().filter(|(_, ticket)| ticket.is_none());
        Some(missing.map(|(rank, _)| rank as u32).collect())
    }

    /// Meets the other ranks of `end`'s communicator, and divides it.
    pub(crate) fn split(
        &self,
        engine: &Arc<Engine>,
        end: &EndShared,
        config: SplitConfig,
    ) -> Result<Option<Arc<EndShared>>> {
        let (rank, size) = (end.info.rank.index(), end.info.size);
        let mut splits = lock(&self.state);
        let number = splits.calls[rank];
        splits.calls[rank] += 1;
        let index = |splits: &Splits| (number - splits.base) as usize;
        while splits.rounds.len() <= index(&splits) {
            let tickets = (0..size).map(|_| None).collect();
            splits.rounds.push_back(Round { tickets, came: 0, ends: None, left: size });
        }
        let at = index(&splits);
        let round = &mut splits.rounds[at];
        round.tickets[rank] = Some(Ticket { config, device: end.info.device });
        round.came += 1;
        if round.came == size {
            let tickets: Vec<Ticket> = round.tickets.iter_mut().filter_map(Option::take).collect();
            drop(splits);
            let ends = divide(engine, &tickets);
            splits = lock(&self.state);
            let at = index(&splits);
            splits.rounds[at].ends = Some(ends);
            self.changed.notify_all();
        }
        let what = What::Split { comm: end.comm, rank: end.info.rank.get(), round: number };
        let _wait = engine.begin_wait(what, None);
        loop {
            let at = index(&splits);
            let departed = splits.departed.clone();
            let round = &mut splits.rounds[at];
            if let Some(ends) = &mut round.ends {
                let own = ends[rank].take();
                round.left -= 1;
                while splits.rounds.front().is_some_and(|round| round.left == 0) {
                    splits.rounds.pop_front();
                    splits.base += 1;
                }
                return Ok(own);
            }
            end.check().map_err(|error| error.with_operation("split"))?;
            if round.came < size
                && let Some(gone) = (0..size).find(|&r| departed[r] && round.tickets[r].is_none())
            {
                let message = format!("rank {gone} left the communicator and will not split it");
                let failure = Failure::new(ErrorKind::Remote, message);
                return Err(failure.of(&end.info).with_operation("split"));
            }
            splits = wait(&self.changed, splits, None);
        }
    }
}

/// Makes one communicator for each colour. The answer has each old rank's new end.
fn divide(engine: &Arc<Engine>, tickets: &[Ticket]) -> Vec<Option<Arc<EndShared>>> {
    let mut parts: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (rank, ticket) in tickets.iter().enumerate() {
        if let Some(color) = ticket.config.color {
            parts.entry(color).or_default().push(rank);
        }
    }
    let mut ends: Vec<_> = tickets.iter().map(|_| None).collect();
    for mut ranks in parts.into_values() {
        // Stable: equal keys keep the old order.
        ranks.sort_by_key(|&rank| tickets[rank].config.key);
        let seat = |&rank: &usize| {
            let Ticket { config, device } = &tickets[rank];
            Seat { device: *device, name: config.name.clone() }
        };
        let made = engine.make_comm(ranks.iter().map(seat).collect());
        for (rank, end) in ranks.into_iter().zip(made) {
            ends[rank] = Some(end);
        }
    }
    ends
}

/// Waits for a change, at most `left`.
pub(crate) fn wait<'a, T>(
    changed: &Condvar,
    guard: std::sync::MutexGuard<'a, T>,
    left: Option<Duration>,
) -> std::sync::MutexGuard<'a, T> {
    match left {
        Some(left) => changed.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0,
        None => changed.wait(guard).unwrap_or_else(PoisonError::into_inner),
    }
}
