//! How ranks of several processes make communicators: joining, splitting, shrinking, growing.
//!
//! All of it is the same meeting ([`rendezvous`]): under a token that all ranks know, each says which
//! device and name it brings, and what else there is to say; all get the same fresh memory, and
//! compute alike what communicators are made of it, and where their boards lie in it. For a join the
//! token is in the id; for the rest it follows from that of the communicator and from what is done.
//!
//! Threads wait in the meeting without any lock. Now and then they look whether they wait in vain:
//! the communicator has failed, or a rank that is wanted has left.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use collectives_core::{
    AbortControl, Error, ErrorKind, JoinConfig, Rank, Result, ShrinkConfig, SplitConfig,
};

use crate::{
    comm_state::EndShared,
    engine::{Engine, Seat},
    error::{Failure, invalid, misuse, refuse},
    joint::Joint,
    lifecycle::listed,
    meeting::late,
    process::{
        board::{self, Board, MAX_RANKS},
        launch,
        peer::{Process, Token, random},
        rendezvous::{self, Call, Met, Missed},
        shared::Shared,
    },
    schedule::mix,
    snapshot::{Meeting, Place},
    sync::lock,
    threads::What,
};

/// The joins of one engine whose ranks are processes.
#[derive(Default)]
pub(crate) struct Gatherings {
    state: Mutex<Gathered>,
}

#[derive(Default)]
struct Gathered {
    /// Tokens that ids had which came by here; the number of an id is its place.
    tokens: Vec<Token>,
    /// Ids with which a rank of this process has joined.
    used: BTreeSet<u64>,
    /// Joins that nobody waits in, by id and rank.
    pending: HashMap<(u64, u32), Arc<Pending>>,
    /// Ranks that have come to a join which is not over.
    visitors: Vec<Visitor>,
    /// How many there were.
    visits: u64,
    /// Why all joins end, if they do.
    called_off: Option<Failure>,
}

/// A rank of this process in a join.
struct Visitor {
    /// The first is 1.
    number: u64,
    id: u64,
    rank: u32,
    size: u32,
    name: Option<String>,
    /// Whether all have come. Every rank knows that before any of them goes on.
    is_complete: bool,
    /// Why nothing comes of it.
    failure: Option<Failure>,
}

/// A rank stays in a join as long as this lives.
struct Stay<'a> {
    joins: &'a Gatherings,
    number: u64,
}

impl<'a> Stay<'a> {
    fn begin(joins: &'a Gatherings, id: u64, config: &JoinConfig) -> Self {
        let mut state = lock(&joins.state);
        state.visits += 1;
        let number = state.visits;
        state.visitors.push(Visitor {
            number,
            id,
            rank: config.rank.get(),
            size: config.size as u32,
            name: config.name.clone(),
            is_complete: false,
            failure: None,
        });
        Self { joins, number }
    }

    fn with<R>(&self, act: impl FnOnce(&mut Visitor) -> R) -> Option<R> {
        let mut state = lock(&self.joins.state);
        state.visitors.iter_mut().find(|visitor| visitor.number == self.number).map(act)
    }

    /// All have come.
    fn complete(&self) {
        self.with(|visitor| visitor.is_complete = true);
    }

    /// Why nothing comes of it, if that is known.
    fn failure(&self) -> Option<Failure> {
        self.with(|visitor| visitor.failure.clone()).flatten()
    }
}

impl Drop for Stay<'_> {
    fn drop(&mut self) {
        lock(&self.joins.state).visitors.retain(|visitor| visitor.number != self.number);
    }
}

/// A join that a helper thread waits in.
struct Pending {
    until: Option<Instant>,
    given_up: AtomicBool,
    outcome: Mutex<Option<Result<Arc<EndShared>>>>,
}

impl Gatherings {
    /// The number by which this engine knows a token.
    pub(crate) fn number(&self, token: Token) -> u64 {
        let mut state = lock(&self.state);
        let known = state.tokens.iter().position(|known| *known == token);
        let place = known.unwrap_or_else(|| {
            state.tokens.push(token);
            state.tokens.len() - 1
        });
        place as u64
    }

    fn token(&self, number: u64) -> Option<Token> {
        lock(&self.state).tokens.get(usize::try_from(number).ok()?).copied()
    }

    /// Ends all joins.
    pub(crate) fn call_off_all(&self, failure: Failure) {
        lock(&self.state).called_off = Some(failure);
    }

    /// Ends a join for the ranks here that have come to it, if their number is at most `visits`.
    pub(crate) fn call_off(&self, id: u64, visits: u64, failure: &Failure) {
        let mut state = lock(&self.state);
        let concerned = |it: &&mut Visitor| it.id == id && it.number <= visits;
        for visitor in state.visitors.iter_mut().filter(concerned) {
            visitor.failure.get_or_insert_with(|| failure.clone());
        }
    }

    /// Whether a rank is in a join that [`call_off`](Self::call_off) would end.
    #[cfg_attr(
        not(target_os = "linux"),
        expect(dead_code, reason = "processes ask each other on Linux alone")
    )]
    pub(crate) fn is_open(&self, id: u64, visits: u64) -> bool {
        let concerned = |it: &Visitor| it.id == id && it.number <= visits && it.failure.is_none();
        lock(&self.state).visitors.iter().any(concerned)
    }

    /// Where ranks of this process wait for others, as far as is known here.
    pub(crate) fn open(&self) -> Vec<Meeting> {
        let state = lock(&self.state);
        let mut open: Vec<Meeting> = Vec::new();
        let waits = |it: &&Visitor| !it.is_complete && it.failure.is_none();
        for visitor in state.visitors.iter().filter(waits) {
            let place = Place::Join { id: visitor.id };
            let token = usize::try_from(visitor.id).ok().and_then(|at| state.tokens.get(at));
            let known = open.iter().position(|it| (it.place, it.size) == (place, visitor.size));
            let known = known.unwrap_or_else(|| {
                open.push(Meeting {
                    place,
                    visits: 0,
                    token: token.map(|token| u128::from_le_bytes(*token)),
                    name: None,
                    size: visitor.size,
                    missing: (0..visitor.size).collect(),
                    came: Vec::new(),
                });
                open.len() - 1
            });
            let meeting = &mut open[known];
            meeting.visits = meeting.visits.max(visitor.number);
            meeting.missing.retain(|&rank| rank != visitor.rank);
            if meeting.name.is_none() {
                meeting.name.clone_from(&visitor.name);
            }
        }
        open
    }

    /// Joins, and waits for the other ranks.
    pub(crate) fn join(
        &self,
        operation: &'static str,
        engine: &Engine,
        id: u64,
        config: &JoinConfig,
        given_up: &AtomicBool,
    ) -> Result<Arc<EndShared>> {
        let &JoinConfig { rank, size, device, ref name, deadline, .. } = config;
        let at = |error: Error| error.with_operation(operation).with_rank(rank.get(), size);
        let token = self.token(id).ok_or_else(|| at(invalid("the unique id is not known")))?;
        if lock(&self.state).used.contains(&id) {
            let error = misuse("this unique id was used up by an earlier join");
            return Err(at(error.with_hint("make a new id for each communicator")));
        }
        let bytes = board_bytes(size).map_err(at)?;
        let process = engine.process().map_err(at)?;
        let until = deadline.and_then(|deadline| Instant::now().checked_add(deadline));
        let stay = Stay::begin(self, id, config);
        let called_off = || stay.failure().or_else(|| lock(&self.state).called_off.clone());
        let cancelled = || given_up.load(Ordering::Relaxed) || called_off().is_some();
        let payload = Ticket { device, name: name.clone(), split: None }.encode();
        let call = Call {
            token,
            seat: rank.get(),
            seats: size as u32,
            payload: &payload,
            board_bytes: bytes,
            until,
            cancelled: &cancelled,
            complete: &|| stay.complete(),
        };
        let met = rendezvous::meet(process, call).map_err(|missed| {
            at(match (missed, called_off()) {
                (Missed::Cancelled, Some(failure)) => failure.plain(),
                (missed, _) => explain(missed, deadline),
            })
        })?;
        lock(&self.state).used.insert(id);
        let tickets = decode(&met).map_err(at)?;
        for (occupant, one) in tickets.iter().enumerate() {
            let twin = tickets[occupant + 1..].iter().position(|other| other.device == one.device);
            if let Some(twin) = twin {
                let message = format!(
                    "ranks {occupant} and {} are both on device {}",
                    occupant + 1 + twin,
                    one.device
                );
                return Err(at(
                    misuse(message).with_hint("give each rank a device of its own, as NCCL wants")
                ));
            }
        }
        let seats = tickets.into_iter().map(Ticket::seat).collect();
        let ends = engine.make_joint(derive(&token, "join", &[]), &met, 0, seats).map_err(at)?;
        own(&ends, rank.index()).map_err(at)
    }

    /// Begins to join, with a thread that waits.
    pub(crate) fn start(
        &self,
        operation: &'static str,
        engine: &Arc<Engine>,
        id: u64,
        config: &JoinConfig,
    ) -> Result<()> {
        let rank = config.rank.get();
        let pending = Arc::new(Pending {
            until: config.deadline.and_then(|deadline| Instant::now().checked_add(deadline)),
            given_up: AtomicBool::new(false),
            outcome: Mutex::new(None),
        });
        lock(&self.state).pending.insert((id, rank), Arc::clone(&pending));
        let (engine, config) = (Arc::clone(engine), config.clone());
        let helper = move || {
            crate::threads::enlist();
            let joins = &engine.meetings.across;
            let outcome = joins.join(operation, &engine, id, &config, &pending.given_up);
            *lock(&pending.outcome) = Some(outcome);
        };
        let thread = thread::Builder::new().name("collectives-join".into());
        match thread.spawn(helper) {
            Ok(_) => Ok(()),
            Err(error) => {
                lock(&self.state).pending.remove(&(id, rank));
                Err(refuse(ErrorKind::System, format!("no thread to join with: {error}")))
            }
        }
    }

    /// Whether a join was started, and nobody knows yet what has become of it.
    pub(crate) fn is_pending(&self, id: u64, rank: Rank) -> bool {
        lock(&self.state).pending.contains_key(&(id, rank.get()))
    }

    /// What has become of a join that was started; it is over then.
    pub(crate) fn take(&self, id: u64, rank: Rank) -> Option<Result<Arc<EndShared>>> {
        let mut state = lock(&self.state);
        let key = (id, rank.get());
        let outcome = lock(&state.pending.get(&key)?.outcome).take();
        if outcome.is_some() {
            state.pending.remove(&key);
        }
        outcome
    }

    /// Gives a join up that was started, unless it comes about at the last moment.
    pub(crate) fn give_up(&self, id: u64, rank: Rank) -> Result<Arc<EndShared>> {
        let pending = lock(&self.state).pending.remove(&(id, rank.get()));
        let Some(pending) = pending else {
            return Err(refuse(ErrorKind::Internal, "the meeting of the ranks was lost"));
        };
        // Past its deadline it ends by itself, and says who is missing.
        if pending.until.is_none_or(|until| Instant::now() < until) {
            pending.given_up.store(true, Ordering::Relaxed);
        }
        loop {
            match lock(&pending.outcome).take() {
                Some(outcome) => return outcome,
                None => thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}

impl Engine {
    /// This engine's process, where ranks are processes.
    pub(crate) fn process(&self) -> Result<&Arc<Process>> {
        match (&self.process, &self.unable) {
            (Some(process), _) => Ok(process),
            (None, Some(failure)) => Err(failure.plain()),
            (None, None) => Err(refuse(ErrorKind::Internal, "ranks are threads here")),
        }
    }

    /// Makes a communicator of which this process has all ranks, though others could have some.
    pub(crate) fn make_alone(&self, seats: Vec<Seat>) -> Result<Vec<Arc<EndShared>>> {
        let process = self.process()?;
        let size = seats.len();
        let system = |error: std::io::Error| refuse(ErrorKind::System, error.to_string());
        let (board, _) = Shared::create("collectives-board", board_bytes(size)?).map_err(system)?;
        let peers = (0..size).map(|_| Arc::clone(process.own())).collect();
        let met = Met { board: Arc::new(board), payloads: Vec::new(), peers };
        let ends = self.make_joint(random().map_err(system)?, &met, 0, seats)?;
        (0..size).map(|rank| own(&ends, rank)).collect()
    }

    /// Makes the communicator that `token` names, or finds it, if another rank of this process has
    /// made it. Its board begins at an offset of what was met for, and its ranks are all that met.
    /// The answer has this process's ends.
    fn make_joint(
        &self,
        token: Token,
        met: &Met,
        offset: usize,
        seats: Vec<Seat>,
    ) -> Result<Vec<Option<Arc<EndShared>>>> {
        let lost = || refuse(ErrorKind::Internal, "the ranks met for a board that is too small");
        let board = Board::new(Arc::clone(&met.board), offset, seats.len()).ok_or_else(lost)?;
        let process = Arc::clone(self.process()?);
        let joint = Joint::new(token, board, process, met.peers.clone());
        Ok(self.make_comm_across(Arc::new(joint), seats))
    }

    /// Meets the other ranks of `end`'s communicator, and divides it.
    pub(crate) fn split_across(
        &self,
        end: &EndShared,
        joint: &Joint,
        config: SplitConfig,
    ) -> Result<Option<Arc<EndShared>>> {
        let (rank, size) = (end.info.rank, end.info.size);
        let named = |error: Error| error.with_operation("split");
        let round = joint.board.seat(rank.get()).splits.fetch_add(1, Ordering::SeqCst);
        let what = What::Split { comm: end.comm, rank: rank.get(), round };
        let _wait = self.begin_wait(what, None);
        let SplitConfig { color, key, name, .. } = config;
        let payload = Ticket { device: end.info.device, name, split: Some((color, key)) }.encode();
        let gone = || {
            let seat = |rank: &u32| joint.board.seat(*rank);
            let left = |rank: &u32| seat(rank).has(board::Seat::DEPARTED);
            let came = |rank: &u32| seat(rank).splits.load(Ordering::SeqCst) > round;
            (0..size as u32).find(|rank| left(rank) && !came(rank))
        };
        let cancelled = || end.check().is_err() || gone().is_some();
        let token = derive(&joint.token, "split", &[round]);
        // Whatever the colours: a board for each rank alone, and one for all.
        let most = board_bytes(1)?
            .checked_mul(size)
            .and_then(|one| one.checked_add(board_bytes(size).ok()?));
        let call = Call {
            token,
            seat: rank.get(),
            seats: size as u32,
            payload: &payload,
            board_bytes: most.ok_or_else(|| named(too_many(size)))?,
            until: None,
            cancelled: &cancelled,
            complete: &|| (),
        };
        let met = rendezvous::meet(&joint.process, call).map_err(|missed| {
            // Why the others left is on the board.
            self.with(|state| state.advance());
            if let (Missed::Cancelled, Err(error)) = (&missed, end.check()) {
                return named(error);
            }
            match (missed, gone()) {
                (Missed::Cancelled, Some(gone)) => {
                    let message =
                        format!("rank {gone} left the communicator and will not split it");
                    named(Failure::new(ErrorKind::Remote, message).of(&end.info))
                }
                (Missed::Died { seat: None, pid }, _) => {
                    // It ended before it told its seat, which its peers know.
                    let rank = joint.peers.iter().position(|peer| peer.pid() == pid);
                    let missed = Missed::Died { seat: rank.map(|rank| rank as u32), pid };
                    named(explain(missed, None).with_comm(&end.info))
                }
                (missed, _) => named(explain(missed, None).with_comm(&end.info)),
            }
        })?;
        let tickets = decode(&met).map_err(named)?;
        let mut parts: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for (rank, ticket) in tickets.iter().enumerate() {
            if let Some((Some(color), _)) = ticket.split {
                parts.entry(color).or_default().push(rank);
            }
        }
        let mut offset = 0;
        for (part, mut ranks) in parts {
            if color == Some(part) {
                // Stable: equal keys keep the old order.
                ranks.sort_by_key(|&rank| tickets[rank].split.map_or(0, |(_, key)| key));
                let place = ranks.iter().position(|&other| other == rank.index());
                let seats = ranks.iter().map(|&rank| tickets[rank].clone().seat()).collect();
                let peers = ranks.iter().map(|&rank| Arc::clone(&met.peers[rank])).collect();
                let met = Met { board: met.board, payloads: Vec::new(), peers };
                let token = derive(&token, "color", &[part.into()]);
                let ends = self.make_joint(token, &met, offset, seats).map_err(named)?;
                return own(&ends, place.unwrap_or(usize::MAX)).map(Some).map_err(named);
            }
            offset += board_bytes(ranks.len())?;
        }
        Ok(None)
    }

    /// Meets the other ranks that stay, and makes their communicator. A revoke ends one that
    /// `is_planned`.
    pub(crate) fn shrink_across(
        &self,
        end: &EndShared,
        joint: &Joint,
        config: ShrinkConfig,
        is_planned: bool,
    ) -> Result<Arc<EndShared>> {
        let (rank, size) = (end.info.rank, end.info.size);
        let ShrinkConfig { mut exclude, name, .. } = config;
        exclude.sort_unstable();
        let stays = |rank: u32| exclude.binary_search(&Rank::new(rank)).is_err();
        let stay: Vec<u32> = (0..size as u32).filter(|&rank| stays(rank)).collect();
        // Only those that came about count: all that took part know of them.
        let key = (rank.get(), exclude.clone());
        let round = lock(&joint.shrinks).get(&key).copied().unwrap_or(0);
        let words: Vec<u64> = exclude.iter().map(|rank| u64::from(rank.get())).collect();
        let token = derive(&joint.token, "shrink", &[&[round], &*words].concat());
        joint.begin_anew(rank.get());
        let visit = Visit::begin(joint, rank, &exclude, &token, is_planned);
        let what = What::Shrink { comm: end.comm, rank: rank.get(), number: visit.mark };
        let _wait = self.begin_wait(what, None);
        let lost = || -> Vec<Rank> {
            let gone = board::Seat::DEPARTED | board::Seat::ABORTED;
            let is_lost = |rank: &u32| {
                let has_left =
                    joint.board.seat(*rank).has(gone) || joint.peers[*rank as usize].has_ended();
                has_left && !visit.came(*rank)
            };
            stay.iter().copied().filter(is_lost).map(Rank::new).collect()
        };
        let revoked = || {
            let told = || joint.board.told(board::End::Revoked);
            joint.board.has_abandoned(rank.get()).then(told).flatten()
        };
        let called_off = || {
            let failure = joint.called_off(rank.get());
            failure.or_else(|| revoked().map(|told| Failure::told(&told)))
        };
        let cancelled = || {
            end.is_aborted()
                || called_off().is_some()
                || visit.disagreement().is_some()
                || !lost().is_empty()
        };
        let seat = stay.iter().position(|&other| other == rank.get());
        let payload = Ticket { device: end.info.device, name, split: None }.encode();
        let call = Call {
            token,
            seat: seat.map_or(u32::MAX, |seat| seat as u32),
            seats: stay.len() as u32,
            payload: &payload,
            board_bytes: board_bytes(stay.len())?,
            until: None,
            cancelled: &cancelled,
            complete: &|| (),
        };
        let met = match rendezvous::meet(&joint.process, call) {
            Ok(met) => met,
            Err(missed) => {
                if let Some(failure) = called_off().or_else(|| visit.disagreement()) {
                    // Who is told of a revoke here knows of it when it begins the next one.
                    self.with(|state| state.look_at_board(end.comm));
                    return Err(failure.plain());
                }
                let missed = match missed {
                    // Seats are those of the ranks that stay; who ended before it told its own is known
                    // by its process.
                    Missed::Died { seat, pid } => {
                        let by_seat = seat.and_then(|seat| stay.get(seat as usize).copied());
                        let is_it = |rank: &u32| joint.peers[*rank as usize].pid() == pid;
                        let rank = by_seat.or_else(|| stay.iter().copied().find(is_it));
                        Missed::Died { seat: rank, pid }
                    }
                    missed => missed,
                };
                let (lost, died) = (lost(), matches!(missed, Missed::Died { .. }));
                if !lost.is_empty() || died {
                    joint.close_shrink(visit.mark);
                    return Err(lost_ranks(&lost, missed));
                }
                visit.withdraw();
                return Err(match end.check() {
                    Err(error) if end.is_aborted() => error,
                    _ => explain(missed, None),
                });
            }
        };
        joint.close_shrink(visit.mark);
        *lock(&joint.shrinks).entry(key).or_default() += 1;
        let seats = decode(&met)?.into_iter().map(Ticket::seat).collect();
        let ends = self.make_joint(derive(&token, "made", &[]), &met, 0, seats)?;
        own(&ends, seat.unwrap_or(usize::MAX))
    }

    /// Makes an id with which the communicator grows.
    pub(crate) fn make_grow_id_across(&self, end: &EndShared, joint: &Joint) -> Result<Token> {
        let used = joint.grown[end.info.rank.index()].load(Ordering::SeqCst);
        let made = &joint.board.growth().made;
        if made.compare_exchange(used, used + 1, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            return Err(
                misuse("an id that was made before is not used up").with_hint("grow with it first")
            );
        }
        joint.ring_all();
        Ok(derive(&joint.token, "grow", &[used]))
    }

    /// Takes the id with which the communicator grows next, and waits for one of the members to make
    /// it.
    pub(crate) fn take_grow_id_across(&self, end: &EndShared, joint: &Joint) -> Result<Token> {
        let growth = joint.board.growth();
        let used = &joint.grown[end.info.rank.index()];
        let number = used.load(Ordering::SeqCst);
        let is_made = || growth.made.load(Ordering::SeqCst) > number;
        let stalls = growth.stalls.load(Ordering::SeqCst);
        let waiting = growth.waiting.fetch_add(1, Ordering::SeqCst) + 1;
        if waiting == end.info.size as u64 && !is_made() {
            growth.stalls.fetch_add(1, Ordering::SeqCst);
            joint.ring_all();
        }
        let what = What::GrowId { comm: end.comm, rank: end.info.rank.get() };
        let _wait = self.begin_wait(what, None);
        let bell = joint.process.own().bell();
        let outcome = loop {
            let seen = bell.state();
            if is_made() {
                used.store(number + 1, Ordering::SeqCst);
                break Ok(derive(&joint.token, "grow", &[number]));
            }
            if growth.stalls.load(Ordering::SeqCst) > stalls {
                break Err(misuse("every member calls grow, and none has made an id")
                    .with_hint("one of them calls grow_id first"));
            }
            self.with(|state| state.advance());
            if let Err(error) = end.check() {
                break Err(error);
            }
            let gone = board::Seat::DEPARTED | board::Seat::ABORTED;
            let left = |rank: &u32| joint.board.seat(*rank).has(gone);
            if let Some(lost) = (0..end.info.size as u32).find(left) {
                let message = format!("rank {lost} left the communicator and will not grow it");
                break Err(refuse(ErrorKind::Remote, message));
            }
            bell.sleep(seen, Some(Instant::now() + PATIENCE));
        };
        growth.waiting.fetch_sub(1, Ordering::SeqCst);
        outcome
    }
}

/// What one rank brings to a meeting.
#[derive(Clone)]
struct Ticket {
    device: usize,
    name: Option<String>,
    /// Colour and key.
    split: Option<(Option<u32>, i32)>,
}

impl Ticket {
    fn seat(self) -> Seat {
        Seat { device: self.device, name: self.name }
    }

    fn encode(&self) -> Vec<u8> {
        let color = self.split.and_then(|(color, _)| color);
        let key = self.split.map_or(0, |(_, key)| key);
        let flags = u8::from(self.name.is_some())
            | u8::from(self.split.is_some()) << 1
            | u8::from(color.is_some()) << 2;
        let mut bytes = vec![flags];
        bytes.extend((self.device as u64).to_le_bytes());
        bytes.extend(color.unwrap_or(0).to_le_bytes());
        bytes.extend(key.to_le_bytes());
        bytes.extend(self.name.iter().flat_map(|name| name.as_bytes().iter().take(NAME_BYTES)));
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (&flags, bytes) = bytes.split_first()?;
        let (device, bytes) = bytes.split_first_chunk()?;
        let (color, bytes) = bytes.split_first_chunk()?;
        let (key, name) = bytes.split_first_chunk()?;
        let color = (flags & 4 != 0).then(|| u32::from_le_bytes(*color));
        Some(Self {
            device: usize::try_from(u64::from_le_bytes(*device)).ok()?,
            name: (flags & 1 != 0).then(|| String::from_utf8_lossy(name).into()),
            split: (flags & 2 != 0).then(|| (color, i32::from_le_bytes(*key))),
        })
    }
}

fn decode(met: &Met) -> Result<Vec<Ticket>> {
    let broken =
        || refuse(ErrorKind::Internal, "a rank brought what makes no sense to the meeting");
    met.payloads.iter().map(|payload| Ticket::decode(payload).ok_or_else(broken)).collect()
}

/// A rank's stay in a shrink, for the others to see.
struct Visit<'a> {
    joint: &'a Joint,
    rank: Rank,
    exclude: &'a [Rank],
    mark: u64,
}

impl<'a> Visit<'a> {
    fn begin(
        joint: &'a Joint,
        rank: Rank,
        exclude: &'a [Rank],
        token: &Token,
        is_planned: bool,
    ) -> Self {
        let [low, _] = halves(token);
        let visit = Self { joint, rank, exclude, mark: low };
        for (at, word) in joint.board.excluded(rank.get()).iter().enumerate() {
            let here = exclude.iter().filter(|rank| rank.index() / 64 == at);
            let bits = here.fold(0, |bits, rank| bits | 1 << (rank.get() % 64));
            word.store(bits, Ordering::SeqCst);
        }
        let seat = joint.board.seat(rank.get());
        seat.quarrel.store(0, Ordering::SeqCst);
        seat.planned.store(is_planned.into(), Ordering::SeqCst);
        seat.shrink.store(low, Ordering::SeqCst);
        seat.shrinks_as.store(joint.board.begin_shrink(), Ordering::SeqCst);
        visit
    }

    /// Whether another rank has come, too.
    fn came(&self, rank: u32) -> bool {
        self.joint.board.seat(rank).shrink.load(Ordering::SeqCst) == self.mark
    }

    /// Nothing comes of it for this rank alone: the others go on waiting, or learn that it is gone.
    fn withdraw(&self) {
        self.joint.board.seat(self.rank.get()).shrink.store(0, Ordering::SeqCst);
    }

    /// Whether ranks that wait for each other have given different lists. All of those who wait are
    /// told.
    fn disagreement(&self) -> Option<Failure> {
        let board = &self.joint.board;
        let own = board.seat(self.rank.get());
        let turn = |rank: u32| board.shrinks_as(rank);
        let size = self.joint.peers.len() as u32;
        let waits_for =
            |one: u32, other: u32| self.list(one).binary_search(&Rank::new(other)).is_err();
        let me = self.rank.get();
        // One that is over has no quarrel with what others begin next.
        let is_over = || turn(me) == 0;
        if own.quarrel.load(Ordering::SeqCst) == 0 && !is_over() {
            let mut others = (0..size).filter(|&other| other != me && turn(other) != 0);
            let other = others.find(|&other| {
                waits_for(me, other) && waits_for(other, me) && self.list(other) != self.exclude
            })?;
            // It may have been over for the other one before that began the next.
            if is_over() {
                return None;
            }
            let (first, second) = if turn(other) < turn(me) { (other, me) } else { (me, other) };
            let quarrel = u64::from(first + 1) << 32 | u64::from(second + 1);
            let lists = [self.list(first), self.list(second)];
            let concerned =
                (0..size).filter(|&rank| turn(rank) != 0 && lists.contains(&self.list(rank)));
            for rank in concerned {
                let cell = &board.seat(rank).quarrel;
                let _ = cell.compare_exchange(0, quarrel, Ordering::SeqCst, Ordering::SeqCst);
            }
        }
        let quarrel = own.quarrel.load(Ordering::SeqCst);
        let [first, second] =
            [(quarrel >> 32) as u32, quarrel as u32].map(|rank| rank.wrapping_sub(1));
        if first >= size || second >= size {
            return None;
        }
        let message = format!(
            "ranks disagree on whom to exclude: rank {first} excludes {}, rank {second} {}",
            listed(&self.list(first)),
            listed(&self.list(second))
        );
        Some(
            Failure::new(ErrorKind::InvalidArgument, message)
                .with_hint("all ranks that stay give the same list"),
        )
    }

    /// Whom a rank excludes, in order.
    fn list(&self, rank: u32) -> Vec<Rank> {
        let words = self.joint.board.excluded(rank);
        let bit = |rank: u32| words[rank as usize / 64].load(Ordering::SeqCst) >> (rank % 64) & 1;
        (0..self.joint.peers.len() as u32).filter(|&rank| bit(rank) == 1).map(Rank::new).collect()
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        self.joint.board.seat(self.rank.get()).shrinks_as.store(0, Ordering::SeqCst);
    }
}

fn lost_ranks(lost: &[Rank], missed: Missed) -> Error {
    let lost: Vec<Rank> = match (lost, &missed) {
        ([], Missed::Died { .. }) => return explain(missed, None),
        _ => lost.to_vec(),
    };
    let s = if lost.len() == 1 { "" } else { "s" };
    let message =
        format!("rank{s} {} left the communicator, and should have been excluded", listed(&lost));
    refuse(ErrorKind::Remote, message).with_hint("shrink without what is gone")
}

/// The end that belongs to a rank of this process.
fn own(ends: &[Option<Arc<EndShared>>], rank: usize) -> Result<Arc<EndShared>> {
    let lost = || refuse(ErrorKind::Internal, "the meeting lost a rank");
    ends.get(rank).cloned().flatten().ok_or_else(lost)
}

/// Why a meeting was not made.
fn explain(missed: Missed, deadline: Option<Duration>) -> Error {
    match missed {
        Missed::Cancelled => refuse(ErrorKind::Aborted, "the meeting of the ranks was given up"),
        // The words are those of the meeting, where ranks have seats.
        Missed::Disagree(text) => {
            invalid(format!("the ranks' processes disagree: {}", text.replace("seat", "rank")))
        }
        Missed::Died { seat, pid } => {
            let who = match seat {
                Some(rank) => format!("rank {rank} (pid {pid})"),
                None => format!("pid {pid}"),
            };
            let how = launch::end_of(pid).map_or_else(|| "ended".into(), |end| end.to_string());
            refuse(ErrorKind::Remote, format!("{who} {how} before all ranks had come"))
        }
        Missed::Late { came } => late(&came, deadline.unwrap_or_default()),
        Missed::System { what, error } => {
            refuse(ErrorKind::System, format!("ranks that are processes: {what}: {error}"))
        }
    }
}

/// The token that goes by a name.
pub(crate) fn named(name: &str) -> Token {
    derive(&Token::default(), name, &[])
}

/// A token that follows from another and from what is done under it.
fn derive(token: &Token, what: &str, words: &[u64]) -> Token {
    let [low, high] = halves(token);
    let letters = what.bytes().map(u64::from);
    let all: Vec<u64> =
        [low, high].into_iter().chain(letters).chain(words.iter().copied()).collect();
    let (one, other) = (mix(&all), mix(&[&all[..], &[1]].concat()));
    let mut derived = Token::default();
    derived[..8].copy_from_slice(&one.to_le_bytes());
    derived[8..].copy_from_slice(&other.to_le_bytes());
    derived
}

fn halves(token: &Token) -> [u64; 2] {
    [0, 8].map(|at| u64::from_le_bytes(std::array::from_fn(|i| token[at + i])))
}

fn board_bytes(ranks: usize) -> Result<usize> {
    Board::bytes(ranks).ok_or_else(|| too_many(ranks))
}

fn too_many(ranks: usize) -> Error {
    invalid(format!("{ranks} ranks, at most {MAX_RANKS} where ranks are processes"))
}

/// How long a member sleeps between looks.
const PATIENCE: Duration = Duration::from_millis(20);
/// Bytes of a name that others are told.
const NAME_BYTES: usize = 1024;
