//! The engine around the state: how work gets in, who does it, and how threads wait.
//!
//! Callers don't fight for the lock. A call leaves its work in the inbox of its stream, a lock that
//! normally nobody else wants, and whoever has the engine's lock takes over what is in all inboxes.
//! Small operations are left there until a few have come together or somebody waits; large ones ask
//! for the engine at once ([`Engine::press`]). If the lock is taken then, its holder is told to look
//! once more before it goes ([`Gate`]), so nothing is left behind and nobody has to wait.
//!
//! Why nothing is lost: a thread that is going to sleep first counts itself as a sleeper, then takes
//! over the inboxes. Work that came into an inbox before that is taken over by it; work that comes
//! later finds the count raised, and presses. Until it sleeps it looks at the inboxes itself.
//!
//! To press with each operation would cost more than the operation. So a thread that waits for a rank
//! that is far behind ([`Lag`]) does not count as a sleeper: that rank counts it, and presses, when it
//! issues the operation that the thread waits for.

use std::{
    cell::RefCell,
    collections::HashMap,
    ffi::c_void,
    hash::{BuildHasher, RandomState},
    hint, panic,
    sync::{
        Arc, Mutex, Once, OnceLock, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use collectives_core::{
    CommInfo, ErrorKind, LibraryInfo, Rank, RawEvent, RawGraph, RawStream, Result,
};

use crate::{
    Ranks,
    across::Reach,
    adversary::Adversary,
    aide::{self, Aides},
    alive::{AliveKind, Ledger},
    asleep::Sleepers,
    backend::MockConfig,
    comm_state::{Comm, EndShared, NOTHING},
    error::{BACKEND, Failure, invalid, misuse, refuse},
    fault::{Action, Held, Who},
    gate::Gate,
    group::Member,
    guard,
    joint::{Across, Joint},
    judge::Waited,
    meeting::{JoinMeetings, SplitMeeting},
    memory::{Memory, Misuse},
    op::{Kind, Op},
    pending::PendingOp,
    pool::{Pool, Task},
    process::{
        bell::Bell,
        board,
        peer::{Peer, Process},
    },
    schedule::{OpKey, Schedule},
    slab::Key,
    state::{COUNT, Job, State},
    stream::{Entry, Stream, StreamShared},
    sync::{Guard, Parker, lock},
    threads::{Threads, What},
};

/// One machine of fake devices.
pub(crate) struct Engine {
    pub(crate) config: MockConfig,
    pub(crate) info: LibraryInfo,
    /// Tells engines apart: in unique ids, and for groups.
    pub(crate) nonce: u64,
    /// The few bits of it that fit into handles.
    tag: usize,
    pub(crate) memory: Arc<Memory>,
    /// What users made and have not given back.
    pub(crate) ledger: Ledger,
    pub(crate) meetings: JoinMeetings,
    /// Who calls on it, and waits.
    pub(crate) threads: Arc<Threads>,
    /// Whether those who wait are looked after.
    pub(crate) enrolled: Once,
    /// The threads that were seen asleep.
    pub(crate) sleepers_seen: Mutex<Sleepers>,
    /// The waits that were seen last.
    pub(crate) last_look: Mutex<Vec<Waited>>,
    /// The default stream of each device.
    defaults: Vec<Arc<StreamShared>>,
    /// The size of the largest communicator so far: about as many threads are at work.
    crowd: AtomicUsize,
    /// Whether anything is asked of it beyond running: then streams are watched.
    pub(crate) adversarial: bool,
    /// Whether large operations are done by those who come by, one after another.
    scheduled: bool,
    gate: Gate<State>,
    /// This process, as others see it, where ranks are processes.
    pub(crate) process: Option<Arc<Process>>,
    /// Why it cannot be what it was asked to be.
    pub(crate) unable: Option<Failure>,
    /// What goes on while no thread of the program calls: ends of other processes, and progress.
    aides: OnceLock<Aides>,
    pub(crate) me: Weak<Self>,
}

/// A rank that has many operations to issue before a thread that waits can go on.
pub(crate) struct Lag {
    end: Arc<EndShared>,
    /// The collective that the thread waits for.
    sequence: u64,
}

impl Lag {
    /// Of those who have to issue `op`, one that is far from it.
    pub(crate) fn behind(comm: &Comm, op: &Op) -> Option<Self> {
        let far = |end: &EndShared| end.sequence.load(COUNT) + BATCH as u64 <= op.sequence;
        let here = comm.ends.iter().enumerate().filter(|(rank, _)| !comm.is_elsewhere(*rank));
        let end = here.map(|(_, end)| &end.shared).find(|end| far(end))?;
        Some(Self { end: Arc::clone(end), sequence: op.sequence })
    }

    /// Has the rank tell when it issues the operation. Only one thread can ask for that.
    fn arm(&self) -> bool {
        let wanted = &self.end.wanted;
        wanted.compare_exchange(NOTHING, self.sequence, Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }

    /// Takes that back. `false` where it has told, and counted the thread as a sleeper.
    fn disarm(&self) -> bool {
        self.end.disarm(self.sequence)
    }
}

/// What a thread that waits wants to hear of.
enum Stance {
    /// It looks for itself.
    Awake,
    /// That a rank that lags has caught up.
    Patient(Lag),
    /// Everything: it is one of the engine's sleepers.
    Counted,
}

/// A rank of a communicator to be.
pub(crate) struct Seat {
    pub(crate) device: usize,
    pub(crate) name: Option<String>,
}

impl Engine {
    pub(crate) fn new(config: MockConfig, info: LibraryInfo) -> Arc<Self> {
        static NEXT: AtomicUsize = AtomicUsize::new(1);
        crate::fork::arm();
        let adversarial = config.is_adversarial();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let (process, mut unable) = match config.ranks {
            Ranks::Threads => (None, None),
            Ranks::Processes => match aide::process(&config) {
                Ok(process) => (Some(process), None),
                Err(failure) => (None, Some(failure)),
            },
        };
        let segment = process.as_ref().map(|process| Arc::clone(process.segment()));
        let mut memory = Memory::new(config.devices, config.device_memory, segment);
        if config.guards.protect && unable.is_none() {
            unable = memory.make_mirror().err().map(|error| guard::unable(&error));
        }
        let memory = Arc::new(memory);
        let mut state = State::new(config.accumulation, Arc::clone(&memory));
        state.reach = process.clone().map(Reach::new);
        let default = |device| {
            let key = state.streams.insert_with(|key| {
                let shared = StreamShared::new(key, RawStream::DEFAULT, device, adversarial);
                Stream::new(Arc::new(shared), false)
            });
            Arc::clone(&state.streams[key.index].shared)
        };
        let defaults = (0..config.devices).map(default).collect();
        let nonce = RandomState::new().hash_one(number);
        let scheduled = config.schedule != Schedule::Eager;
        let engine = Arc::new_cyclic(|me| {
            state.adversary = Adversary::new(&config, &memory, me.clone());
            Self {
                config,
                info,
                nonce,
                tag: number & TAG_MASK,
                memory,
                ledger: Ledger::default(),
                meetings: JoinMeetings::new(),
                threads: Arc::new(Threads::new(nonce)),
                enrolled: Once::new(),
                sleepers_seen: Mutex::default(),
                last_look: Mutex::default(),
                defaults,
                crowd: AtomicUsize::new(0),
                adversarial,
                scheduled,
                gate: Gate::new(state),
                process,
                unable,
                aides: OnceLock::new(),
                me: me.clone(),
            }
        });
        // Where others of its job may want to know what it does before they meet.
        if engine.process.as_ref().is_some_and(|process| process.roster().is_some()) {
            engine.start_aides();
        }
        engine
    }

    fn start_aides(&self) {
        self.aides.get_or_init(|| Aides::start(self));
    }

    /// Leaves work with the engine. `urgent`, asked once it is left, wants it looked at now.
    #[inline]
    pub(crate) fn enqueue(
        &self,
        stream: &StreamShared,
        entry: Entry,
        urgent: impl FnOnce() -> bool,
    ) {
        let mut inbox = lock(&stream.inbox);
        inbox.push_back(entry);
        let held = inbox.len();
        drop(inbox);
        if held == 1 {
            self.gate.mark(stream.key.index);
            if let Some(process) = &self.process {
                // The program may never call again.
                process.own().bell().ring();
            }
        }
        if urgent() || self.gate.anybody_sleeps() {
            self.press();
        } else if held.is_multiple_of(BATCH) {
            self.glance();
        }
    }

    /// Whether somebody sleeps until `end` has issued the collective `sequence`. From now on that
    /// thread counts as a sleeper, since it may wait for other ranks too.
    #[inline]
    pub(crate) fn is_wanted(&self, end: &EndShared, sequence: u64) -> bool {
        let wanted = end.wanted.load(Ordering::Acquire);
        if sequence < wanted {
            return false;
        }
        // Counted first, so that at no time it is neither.
        self.gate.count_in();
        if end.disarm(wanted) {
            return true;
        }
        self.gate.count_out();
        false
    }

    /// Looks at what is in the inboxes, unless somebody has the lock.
    fn glance(&self) {
        if let Some(state) = self.gate.try_lock() {
            self.let_go(state);
        }
    }

    /// Sees to it that what is in the inboxes is looked at, by this thread or by the one that holds
    /// the lock.
    pub(crate) fn press(&self) {
        if self.scheduled {
            // What runs when must not depend on who held the lock.
            return self.with(|_| ());
        }
        self.gate.press(|state| self.settle(state));
    }

    /// Does something with the state, after everything that was enqueued before; then starts
    /// whatever that made ready.
    pub(crate) fn with<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.gate.lock();
        self.drain(&mut state);
        let result = act(&mut state);
        self.let_go(state);
        result
    }

    /// As [`with`](Self::with), for the thread that watches over others. Where a schedule says what
    /// runs when, nothing runs for its sake: what `look` has done is settled by the next who comes.
    /// There is nothing in the inboxes then, since streams are watched.
    pub(crate) fn watch<R>(&self, look: impl FnOnce(&mut State) -> R) -> R {
        if self.scheduled {
            return look(&mut self.gate.lock());
        }
        self.with(|state| {
            state.advance();
            look(state)
        })
    }

    /// Settles, and looks once more where somebody asked for it meanwhile.
    fn let_go<'a>(&'a self, state: Guard<'a, State>) {
        self.settle(state);
        if self.gate.is_pressed() {
            self.press();
        }
    }

    /// Waits until `ready` answers. It is asked with the lock held; where it has no answer it leaves
    /// the parker with what it waits for, and may name a rank that lags; from then on `what` says
    /// what the wait is for. `known` may have the answer without the lock. `None` where time is up
    /// first.
    pub(crate) fn wait<R>(
        &self,
        until: Option<Instant>,
        what: impl Fn() -> What,
        known: impl Fn() -> Option<R>,
        mut ready: impl FnMut(&mut State, &Arc<Parker>) -> Result<R, Option<Lag>>,
    ) -> Option<R> {
        let parker = Parker::current();
        let crowded = self.crowd.load(Ordering::Relaxed) > Pool::global().cores();
        let mut tries = if crowded { YIELDS } else { SPINS };
        let mut stance = Stance::Awake;
        let mut in_time = true;
        let mut noted = None;
        let bell = self.process.as_ref().map(|process| process.own().bell());
        let result = loop {
            parker.reset();
            let bell = bell.map(|bell| (bell, bell.state()));
            let sleep = |until| match bell {
                Some((bell, seen)) => parker.sleep_at(bell, seen, until),
                None => parker.sleep(until),
            };
            let look = self.with(|state| {
                state.advance();
                ready(state, &parker)
            });
            let lag = match look {
                Ok(result) => break Some(result),
                // After the deadline there was one more look, since the answer may just have come.
                Err(_) if !in_time => break None,
                Err(lag) => lag,
            };
            if self.linger(&parker, bell, until, crowded, tries) {
                let result = known();
                if result.is_some() {
                    break result;
                }
                continue;
            }
            tries = 0;
            noted.get_or_insert_with(|| self.begin_wait(what(), until));
            // Either way there is one more look before it sleeps.
            stance = match stance {
                Stance::Awake => match lag.filter(Lag::arm) {
                    Some(lag) => Stance::Patient(lag),
                    None => self.stand_by(),
                },
                Stance::Patient(lag) => {
                    let limit = Instant::now() + PATIENCE;
                    if sleep(Some(until.map_or(limit, |until| until.min(limit)))) {
                        Stance::Patient(lag)
                    } else {
                        in_time = until.is_none_or(|until| Instant::now() < until);
                        if lag.disarm() { self.stand_by() } else { Stance::Counted }
                    }
                }
                Stance::Counted => {
                    in_time = sleep(until);
                    Stance::Counted
                }
            };
        };
        let counted = match stance {
            Stance::Awake => false,
            Stance::Patient(lag) => !lag.disarm(),
            Stance::Counted => true,
        };
        if counted {
            self.gate.count_out();
        }
        result
    }

    /// Counts the calling thread as one that nothing may be hidden from.
    fn stand_by(&self) -> Stance {
        self.gate.count_in();
        Stance::Counted
    }

    /// Takes over what is in the inboxes.
    fn drain(&self, state: &mut State) {
        let mut dirty = self.gate.take_marks();
        while dirty != 0 {
            let mut index = dirty.trailing_zeros();
            dirty &= dirty - 1;
            while index < state.streams.places() {
                state.drain(index);
                index += u64::BITS;
            }
        }
    }

    /// Starts what is ready until nothing is, then lets go of the lock.
    fn settle<'a>(&'a self, mut state: Guard<'a, State>) {
        let mut budget = INLINE_BYTES;
        loop {
            self.gate.heed();
            self.drain(&mut state);
            state.advance();
            let job = state.jobs.pop_front();
            let wake = std::mem::take(&mut state.wake);
            let garbage = std::mem::take(&mut state.garbage);
            let rings = state.reach.as_mut().map(|reach| std::mem::take(&mut reach.rings));
            let calls = std::mem::take(&mut state.calls);
            let Some(job) = job else {
                self.gate.leave(state);
                self.wake(wake, rings);
                drop(garbage);
                self.make_calls(calls);
                return;
            };
            drop(state);
            self.wake(wake, rings);
            drop(garbage);
            self.make_calls(calls);
            let traffic = job.transfer.traffic();
            if traffic <= budget || self.scheduled {
                budget = budget.saturating_sub(traffic);
                let (length, _) = job.transfer.span();
                // SAFETY: the callers' buffers are the engine's until the streams have passed, and
                // this thread does the whole span.
                unsafe { job.transfer.run(self.config.accumulation, 0..length) };
                state = self.gate.lock();
                state.complete(&job);
            } else {
                self.share(job);
                state = self.gate.lock();
            }
        }
    }

    /// Wakes threads, and what are processes in `rings`.
    #[inline]
    fn wake(&self, threads: Vec<Arc<Parker>>, rings: Option<Vec<Arc<Peer>>>) {
        if let Some(process) = self.process.as_ref().filter(|_| !threads.is_empty()) {
            // They sleep there.
            process.own().bell().ring();
        }
        for parker in threads {
            parker.wake();
        }
        for peer in rings.into_iter().flatten() {
            peer.bell().ring();
        }
    }

    /// Lets the pool do a job.
    fn share(&self, job: Job) {
        let (length, width) = job.transfer.span();
        let grain = (SLICE_BYTES / width).max(1);
        let slices = length.div_ceil(grain).max(1);
        // Upgrading can't fail, since `self` is borrowed from a live engine.
        if let Some(engine) = self.me.upgrade() {
            Pool::global().submit(slices, Box::new(Shared { engine, job, length, grain }));
        }
    }

    /// Puts off sleeping: helps the pool, and looks after the inboxes until nothing has come for so
    /// many `tries`. Where threads outnumber the cores, each of them lets the others run. The answer is
    /// whether the parker was set, or the bell rung.
    fn linger(
        &self,
        parker: &Parker,
        bell: Option<(&Bell, u32)>,
        until: Option<Instant>,
        crowded: bool,
        tries: usize,
    ) -> bool {
        let pool = Pool::global();
        let mut tried = 0;
        while !parker.is_set() {
            if bell.is_some_and(|(bell, seen)| bell.state() != seen) {
                return true;
            }
            if pool.help() {
                tried = 0;
            } else if tried == tries {
                return false;
            } else {
                tried += 1;
                if crowded { thread::yield_now() } else { hint::spin_loop() }
            }
            let is_due = crowded || tried % SPINS_PER_LOOK == 0;
            if is_due && self.gate.is_marked() {
                if until.is_some_and(|until| until <= Instant::now()) {
                    return false;
                }
                self.glance();
                tried = 0;
            }
        }
        true
    }

    /// Makes a communicator of one rank per seat.
    pub(crate) fn make_comm(&self, seats: Vec<Seat>) -> Vec<Arc<EndShared>> {
        self.crowd.fetch_max(seats.len(), Ordering::Relaxed);
        self.with(|state| {
            let key = self.add_comm(state, seats, None);
            let ends = &state.comms[key.index].ends;
            ends.iter().map(|end| Arc::clone(&end.shared)).collect()
        })
    }

    /// Makes a communicator of one rank per seat that has ranks in other processes, or finds it, if
    /// another rank of this process has made it. The answer has this process's ends.
    pub(crate) fn make_comm_across(
        &self,
        joint: Arc<Joint>,
        seats: Vec<Seat>,
    ) -> Vec<Option<Arc<EndShared>>> {
        self.crowd.fetch_max(seats.len(), Ordering::Relaxed);
        self.start_aides();
        let ends = self.with(|state| {
            let known = state.reach.as_ref().and_then(|reach| reach.known.get(&joint.token));
            let key = known.copied().unwrap_or_else(|| {
                let key = self.add_comm(state, seats, Some(Arc::clone(&joint)));
                if self.scheduled {
                    let here = (0..joint.peers.len()).filter(|&rank| joint.is_here(rank));
                    here.for_each(|rank| joint.board.seat(rank as u32).set(board::Seat::CURIOUS));
                }
                state.reach_out(key, &joint);
                key
            });
            let own = |(rank, end): (usize, &crate::comm_state::End)| {
                joint.is_here(rank).then(|| Arc::clone(&end.shared))
            };
            state.comms[key.index].ends.iter().enumerate().map(own).collect()
        });
        // Those who ended before they were watched over.
        for peer in joint.others().filter(|peer| peer.has_ended()) {
            self.lose(peer);
        }
        ends
    }

    fn add_comm(&self, state: &mut State, seats: Vec<Seat>, joint: Option<Arc<Joint>>) -> Key {
        let size = seats.len();
        let key = state.comms.insert_with(|key| {
            let meeting = Arc::new(SplitMeeting::new(size));
            let end = |(rank, seat): (usize, Seat)| {
                let rank = Rank::new(rank as u32);
                let library = self.info.clone();
                let info = CommInfo::new(rank, size, seat.device, seat.name, library);
                let (engine, meeting) = (self.me.clone(), Arc::clone(&meeting));
                Arc::new(EndShared::new(info, key, engine, meeting, joint.clone()))
            };
            let ends = seats.into_iter().enumerate().map(end).collect();
            Comm::new(ends, meeting, joint.clone().map(Across::new))
        });
        state.introduce(key);
        key
    }

    /// Another process has ended.
    pub(crate) fn lose(&self, peer: &Peer) {
        let how = peer.end().map_or_else(|| "ended".into(), |end| end.to_string());
        self.with(|state| state.lose(peer, &how));
    }

    /// Whether ranks are processes.
    pub(crate) fn has_processes(&self) -> bool {
        self.config.ranks == Ranks::Processes
    }

    /// Refuses where ranks should be processes and cannot be, or memory should be protected.
    pub(crate) fn check_able(&self) -> Result<()> {
        self.unable.as_ref().map_or(Ok(()), |failure| Err(failure.plain()))
    }

    /// Enqueues operations of a group, all or none.
    pub(crate) fn launch_group(&self, mut members: Vec<Member>) -> Result<()> {
        if members.is_empty() {
            return Ok(());
        }
        if self.adversarial {
            for Member { op, .. } in &mut members {
                op.send = self.memory.inner(op.send.cast_mut());
                op.recv = self.memory.inner(op.recv);
            }
            self.dare(&members);
        }
        self.with(|state| {
            check_group(state, &members)?;
            for part in parts(&members) {
                let mut streams: Vec<u32> =
                    part.iter().map(|&index| members[index].stream.key.index).collect();
                streams.sort_unstable();
                streams.dedup();
                let memberships: Vec<_> =
                    streams.iter().filter_map(|&stream| state.streams[stream].capture).collect();
                if let (&[index], &[membership]) = (&*part, &*memberships) {
                    state.capture_entry(membership, Entry::Op(members[index].op));
                } else if let Some(first) = memberships.first() {
                    let plain = part.iter().map(|&index| members[index].op).collect();
                    let branches = memberships.iter().map(|membership| membership.branch).collect();
                    state.capture_group(first.capture, branches, plain);
                } else if part.len() == 1 {
                    let op = state.numbered(members[part[0]].op);
                    state.push(streams[0], Entry::Op(op));
                } else {
                    let numbered = part.iter().map(|&index| state.numbered(members[index].op));
                    let ops = numbered.collect();
                    state.push_unit(ops, streams);
                }
            }
            Ok(())
        })
    }

    /// The stream behind a handle, of `device`.
    pub(crate) fn stream(&self, raw: RawStream, device: usize) -> Result<Arc<StreamShared>> {
        thread_local! {
            /// What was found last, and the nonce of its engine: programs rarely change streams.
            static LAST: RefCell<Option<(u64, Arc<StreamShared>)>> = const { RefCell::new(None) };
        }
        if raw == RawStream::DEFAULT {
            return Ok(Arc::clone(&self.defaults[device]));
        }
        let is_it = |shared: &StreamShared| !shared.is_destroyed() && shared.raw == raw;
        let shared = LAST.with_borrow_mut(|last| match last {
            Some((nonce, shared)) if *nonce == self.nonce && is_it(shared) => {
                Ok(Arc::clone(shared))
            }
            _ => {
                let key = self.key(raw.bits(), STREAM, "stream")?;
                let found =
                    self.gate.lock().streams.get(key).map(|found| Arc::clone(&found.shared));
                if self.gate.is_pressed() {
                    self.press();
                }
                let found = found.filter(|shared| is_it(shared));
                let shared = found.ok_or_else(|| invalid("the stream was destroyed"))?;
                *last = Some((self.nonce, Arc::clone(&shared)));
                Ok(shared)
            }
        })?;
        if shared.device != device {
            return Err(invalid(format!(
                "the stream belongs to device {}, want one of device {device}",
                shared.device
            )));
        }
        Ok(shared)
    }

    /// A new stream of `device`.
    pub(crate) fn make_stream(&self, device: usize) -> RawStream {
        self.with(|state| {
            let key = state.streams.insert_with(|key| {
                let raw = RawStream::from_bits(self.bits(key, STREAM));
                Stream::new(Arc::new(StreamShared::new(key, raw, device, self.adversarial)), false)
            });
            state.streams[key.index].shared.raw
        })
    }

    pub(crate) fn event_bits(&self, key: Key) -> RawEvent {
        RawEvent::from_bits(self.bits(key, EVENT))
    }

    pub(crate) fn event_key(&self, raw: RawEvent) -> Result<Key> {
        self.key(raw.bits(), EVENT, "event")
    }

    pub(crate) fn graph_bits(&self, key: Key) -> RawGraph {
        RawGraph::from_bits(self.bits(key, GRAPH))
    }

    pub(crate) fn graph_key(&self, raw: RawGraph) -> Result<Key> {
        self.key(raw.bits(), GRAPH, "graph")
    }

    /// A handle: which engine, what it names, generation, index. Never zero.
    fn bits(&self, key: Key, what: usize) -> usize {
        self.tag << 50 | what << 48 | (key.generation as usize) << 24 | key.index as usize
    }

    fn key(&self, bits: usize, what: usize, name: &str) -> Result<Key> {
        if bits >> 48 != self.tag << 2 | what {
            return Err(invalid(format!("{bits:#x} is no {name} of this mock"))
                .with_hint("handles of another backend, or of another mock, mean nothing here"));
        }
        let generation = (bits >> 24 & 0xff_ffff) as u32;
        Ok(Key { index: (bits & 0xff_ffff) as u32, generation })
    }

    /// Checks a range of memory for use by `device`. See [`Memory::check`].
    pub(crate) fn check_memory(
        &self,
        name: &str,
        device: Option<usize>,
        ptr: *const u8,
        bytes: usize,
    ) -> Result<std::ops::Range<usize>> {
        self.memory.check(device, ptr.addr(), bytes).map_err(|misuse| match misuse {
            Misuse::Foreign(owner) => invalid(format!(
                "{name} at {ptr:p} is memory of device {owner}, want memory of device {}",
                device.unwrap_or(owner)
            )),
            Misuse::PastEnd(left) => invalid(format!(
                "{name} is {bytes} bytes at {ptr:p}, of which only {left} are allocated"
            )),
            Misuse::Straddles => {
                invalid(format!("{name} is {bytes} bytes at {ptr:p}, and runs into an allocation"))
            }
        })
    }

    /// Memory of a device.
    #[track_caller]
    pub(crate) fn alloc(&self, device: usize, bytes: usize) -> Result<*mut c_void> {
        let none = || {
            let message = format!("device {device} has no {bytes} bytes left");
            let error = refuse(ErrorKind::OutOfMemory, message);
            match self.memory.segment().and_then(|segment| segment.shortage()) {
                Some(shortage) => error.with_hint(shortage),
                None => error,
            }
        };
        if self.adversarial
            && let Some(rule) = self.with(|state| state.exhausted(device))
        {
            return Err(none().with_hint(format!("by fault rule {rule}")));
        }
        let mut memory = self.memory.alloc(device, bytes);
        if memory.is_none() && self.scheduled {
            // What was freed may only have been put off.
            self.with(|state| state.want_device(device));
            memory = self.memory.alloc(device, bytes);
        }
        let ptr = memory.ok_or_else(none)?;
        self.ledger.add(AliveKind::Buffer, ptr.addr().get(), device, Some(bytes));
        Ok(ptr.as_ptr().cast())
    }

    /// Gives memory back at once.
    pub(crate) fn free(&self, ptr: usize) {
        if self.adversarial {
            let range = self.memory.extent(ptr);
            self.with(|state| state.forget_memory(&range));
        }
        self.ledger.remove(AliveKind::Buffer, ptr);
        drop(self.memory.take(ptr));
    }

    /// Makes the calling thread panic where a fault rule kills it for an operation that it is about
    /// to issue.
    #[cold]
    fn dare(&self, members: &[Member]) {
        for (index, Member { op, stream, end }) in members.iter().enumerate() {
            if !stream.is_capturing() {
                let key = OpKey::new(op);
                let before = members[..index].iter();
                let ahead = before.filter(|other| OpKey::new(&other.op) == key).count() as u64;
                let sequence = end.next_number(op.kind, op.other) + ahead;
                self.dare_one(end, &Op { sequence, ..*op });
            }
        }
    }

    fn dare_one(&self, end: &EndShared, op: &Op) {
        let Some(rule) = self.with(|state| state.kills(op)) else { return };
        let CommInfo { rank, size, device, .. } = end.info;
        let message = format!(
            "killed by fault rule {rule}: rank {rank} of {size} in '{}' before {} #{} ({})",
            end.title(),
            op.kind.name(),
            op.sequence,
            op.site
        );
        let failure = Failure::new(ErrorKind::Aborted, &*message);
        if self.process.is_some() {
            tracing::error!("{message}");
            aide::kill_self();
        }
        self.with(|state| state.kill(device, &failure));
        panic::panic_any(message);
    }

    /// What the fault plan has for a rank that joins. `identity` tells the join from others.
    ///
    /// # Errors
    /// Where joining fails.
    pub(crate) fn join_fault(
        &self,
        name: Option<&str>,
        rank: Rank,
        identity: u64,
    ) -> Result<Option<Held>> {
        if !self.adversarial {
            return Ok(None);
        }
        match self.with(|state| state.join_fault(&Who { name, rank, identity })) {
            Some((rule, Action::JoinFails)) => {
                Err(refuse(ErrorKind::System, format!("joining failed by fault rule {rule}")))
            }
            Some((rule, Action::JoinHangs)) => Ok(Some(Held { rule, by: None })),
            Some((rule, Action::JoinLate(by))) => Ok(Some(Held { rule, by: Some(by) })),
            _ => Ok(None),
        }
    }

    /// Keeps a rank from joining, up to its deadline. The answer is what is left of that.
    pub(crate) fn sit_out(
        &self,
        held: Held,
        rank: Rank,
        deadline: Option<Duration>,
    ) -> Result<Option<Duration>> {
        let _wait = self.begin_wait(What::Fault { rule: held.rule }, None);
        match (held.by, deadline) {
            (None, None) => loop {
                thread::park();
            },
            (Some(by), None) => {
                thread::sleep(by);
                Ok(None)
            }
            (Some(by), Some(deadline)) if by < deadline => {
                thread::sleep(by);
                Ok(Some(deadline - by))
            }
            (_, Some(deadline)) => {
                thread::sleep(deadline);
                Err(held.late(rank))
            }
        }
    }

    /// What has been enqueued and not passed, by stream, that of `first` first.
    pub(crate) fn pending(&self, first: Option<u32>) -> Vec<PendingOp> {
        self.with(|state| {
            state.advance();
            PendingOp::all(state, first)
        })
    }
}

/// A job in slices.
struct Shared {
    engine: Arc<Engine>,
    job: Job,
    length: usize,
    grain: usize,
}

impl Task for Shared {
    fn run(&self, slice: usize) {
        let start = slice * self.grain;
        let range = start..(start + self.grain).min(self.length);
        // SAFETY: the callers' buffers are the engine's until the streams have passed, and the pool
        // gives each slice to one thread.
        unsafe { self.job.transfer.run(self.engine.config.accumulation, range) };
    }

    fn finish(&self) {
        self.engine.with(|state| state.complete(&self.job));
    }
}

/// What can only be seen when a group is complete.
fn check_group(state: &State, members: &[Member]) -> Result<()> {
    let mut to_self: HashMap<(u64, bool), usize> = HashMap::new();
    let captured = |member: &Member| {
        state.streams.get(member.stream.key).is_some_and(|stream| stream.capture.is_some())
    };
    let first = captured(&members[0]);
    for member in members {
        let Member { op, stream, end } = member;
        let refuse = |error: collectives_core::Error| {
            error.with_comm(&end.info).with_operation(op.kind.name())
        };
        end.check().map_err(|error| error.with_operation(op.kind.name()))?;
        let alive = state.comms.get(op.comm);
        if alive.is_none_or(|comm| comm.ends[op.rank as usize].departed) {
            return Err(refuse(misuse("the communicator was ended inside the group")));
        }
        if stream.is_destroyed() || state.streams.get(stream.key).is_none() {
            return Err(refuse(misuse("the stream was destroyed inside the group")));
        }
        if captured(member) != first {
            return Err(refuse(
                misuse("the group mixes streams that are being captured with others that are not")
                    .with_hint("capture all streams of a group, or none"),
            ));
        }
        if op.kind.is_point_to_point() && op.other == op.rank {
            *to_self.entry((end.info.id.get(), op.kind == Kind::Send)).or_default() += 1;
        }
    }
    let suspects = if to_self.is_empty() { &[] } else { members };
    for Member { op, end, .. } in suspects {
        let count = |sends| to_self.get(&(end.info.id.get(), sends)).copied().unwrap_or(0);
        if count(true) != count(false) {
            return Err(misuse(format!(
                "the group has {} sends of rank {} to itself and {} receives from itself",
                count(true),
                op.rank,
                count(false)
            ))
            .with_comm(&end.info)
            .with_hint("a rank sends to itself and receives that in one group"));
        }
    }
    if !first {
        return Ok(());
    }
    for part in parts(members) {
        let captures = part.iter().filter_map(|&index| {
            state.streams[members[index].stream.key.index].capture.map(|member| member.capture)
        });
        let captures: std::collections::BTreeSet<u32> = captures.collect();
        if captures.len() > 1 {
            let end = &members[part[0]].end;
            return Err(misuse("one communicator's operations in a group go to two captures")
                .with_comm(&end.info));
        }
    }
    Ok(())
}

/// Divides a group into parts that share neither a stream nor a communicator's end: each starts on
/// its own, so that one thread may drive many ranks in one group.
fn parts(members: &[Member]) -> Vec<Vec<usize>> {
    let first = members[0].stream.key;
    if members.iter().all(|member| member.stream.key == first) {
        return vec![(0..members.len()).collect()];
    }
    let mut parent: Vec<usize> = (0..members.len()).collect();
    fn root(parent: &mut [usize], mut index: usize) -> usize {
        while parent[index] != index {
            parent[index] = parent[parent[index]];
            index = parent[index];
        }
        index
    }
    let mut by_stream = HashMap::new();
    let mut by_end = HashMap::new();
    for (index, member) in members.iter().enumerate() {
        let same_stream = *by_stream.entry(member.stream.key).or_insert(index);
        let same_end = *by_end.entry(member.end.info.id).or_insert(index);
        for other in [same_stream, same_end] {
            let (a, b) = (root(&mut parent, index), root(&mut parent, other));
            // Towards the smaller, so that parts stay in the order of their first member.
            let (low, high) = (a.min(b), a.max(b));
            parent[high] = low;
        }
    }
    let mut parts: Vec<Vec<usize>> = members.iter().map(|_| Vec::new()).collect();
    for index in 0..members.len() {
        parts[root(&mut parent, index)].push(index);
    }
    parts.retain(|part| !part.is_empty());
    parts
}

/// Small operations that may lie in an inbox before somebody looks.
const BATCH: usize = 128;
/// Traffic that a call moves itself before it leaves more to the pool.
const INLINE_BYTES: usize = 512 * 1024;
/// Bytes of one rank's buffer in a slice of a large operation.
const SLICE_BYTES: usize = 128 * 1024;
/// How long a thread sleeps on the word of one rank. What it waits for may come otherwise: operations
/// that lie in an inbox may fail their communicator.
const PATIENCE: Duration = Duration::from_millis(5);
/// Looks at the parker before a waiting thread goes to sleep: some ten microseconds.
const SPINS: usize = 400;
/// The same where threads outnumber the cores: each gives up its core, which is cheaper than to be put
/// to sleep and woken, if the others come soon.
const YIELDS: usize = 32;
/// And how many of them pass between looks at the inboxes: a microsecond, in which a rank that issues
/// one operation after another leaves more than one.
const SPINS_PER_LOOK: usize = 40;

/// What a handle names. Two bits.
const STREAM: usize = 1;
const EVENT: usize = 2;
const GRAPH: usize = 3;
/// 14 bits of an engine's number.
const TAG_MASK: usize = 0x3fff;

#[cfg(not(target_pointer_width = "64"))]
compile_error!("handles of the mock need 64 bits");

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("backend", &BACKEND).field("config", &self.config).finish()
    }
}

/// Uses of [`Op`] outside the lock are copies.
const _: () = assert!(size_of::<Op>() <= 96);
