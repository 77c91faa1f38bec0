//! What the engine knows of a communicator: its ends, and the places where operations meet.

use std::{
    collections::VecDeque,
    panic::Location,
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering},
    },
};

use collectives_core::{AbortControl, CommInfo, Error, ErrorKind, Rank, Result};

use crate::{
    engine::Engine,
    error::{Failure, misuse},
    joint::{Across, Joint},
    meeting::SplitMeeting,
    op::{Kind, Op},
    process::board::{Board, Progress, Seat},
    slab::{Key, Slab},
    state::{Arrival, COUNT},
    stream::{Entry, Stream},
    sync::{Parker, lock},
    threads::Thread,
};

/// A communicator: all ranks' ends of it.
pub(crate) struct Comm {
    pub(crate) ends: Vec<End>,
    /// Whether it failed or was aborted; nothing of it moves data any more.
    pub(crate) broken: bool,
    /// Ends that were finalized, aborted or dropped.
    pub(crate) departed: usize,
    /// Where ranks meet to split it.
    pub(crate) meeting: Arc<SplitMeeting>,
    /// Collectives of which some ranks have arrived; the first has sequence `base`.
    slots: VecDeque<Slot>,
    base: u64,
    /// Vectors for slots to come, so that the steady state allocates nothing.
    spare: Vec<Vec<Arrival>>,
    /// By source × size + destination; empty before the first message.
    channels: Vec<Vec<Arrival>>,
    /// Where its ranks meet instead, if they are in several processes. What has arrived here is noted
    /// above all the same.
    pub(crate) across: Option<Across>,
}

/// The engine's part of one rank's end.
pub(crate) struct End {
    pub(crate) shared: Arc<EndShared>,
    /// Operations enqueued and not done.
    pub(crate) outstanding: usize,
    pub(crate) departed: bool,
    /// Who waits until nothing is outstanding.
    pub(crate) waiters: Vec<Arc<Parker>>,
    /// Collectives that are published ahead of their turn.
    pub(crate) run: Run,
}

/// Collectives of a rank that stand one behind the other in a stream, behind one that has arrived or
/// is done. They need not be noted one by one: each in turn is the head of the stream.
#[derive(Clone, Copy, Default)]
pub(crate) struct Run {
    pub(crate) stream: u32,
    /// The numbers of the first, and of the one behind the last.
    pub(crate) next: u64,
    pub(crate) end: u64,
}

impl Run {
    pub(crate) fn is_empty(&self) -> bool {
        self.next == self.end
    }
}

struct Slot {
    arrivals: Vec<Arrival>,
    fired: bool,
}

impl Comm {
    pub(crate) fn new(
        ends: Vec<Arc<EndShared>>,
        meeting: Arc<SplitMeeting>,
        across: Option<Across>,
    ) -> Self {
        let end = |shared| End {
            shared,
            outstanding: 0,
            departed: false,
            waiters: Vec::new(),
            run: Run::default(),
        };
        Self {
            ends: ends.into_iter().map(end).collect(),
            broken: false,
            departed: 0,
            meeting,
            slots: VecDeque::new(),
            base: 0,
            spare: Vec::new(),
            channels: Vec::new(),
            across,
        }
    }

    /// Whether a rank is in another process.
    pub(crate) fn is_elsewhere(&self, rank: usize) -> bool {
        self.across.as_ref().is_some_and(|across| !across.joint.is_here(rank))
    }

    /// Whether all ranks of this process have left, and nothing of them is outstanding.
    pub(crate) fn is_over(&self) -> bool {
        let mut ends = self.ends.iter().enumerate();
        ends.all(|(rank, end)| self.is_elsewhere(rank) || end.departed && end.outstanding == 0)
    }

    /// Its name, or a number.
    pub(crate) fn title(&self) -> String {
        self.ends[0].shared.title()
    }

    /// Where the collective `sequence` meets; `None` where it has fired already.
    #[inline]
    pub(crate) fn slot(&mut self, sequence: u64) -> Option<&mut Vec<Arrival>> {
        let index = sequence.checked_sub(self.base)? as usize;
        while self.slots.len() <= index {
            let arrivals = self.spare.pop().unwrap_or_default();
            self.slots.push_back(Slot { arrivals, fired: false });
        }
        let slot = &mut self.slots[index];
        (!slot.fired).then_some(&mut slot.arrivals)
    }

    /// Takes the arrivals of a complete slot, in rank order.
    #[inline]
    pub(crate) fn take_slot(&mut self, sequence: u64) -> Vec<Arrival> {
        let slot = &mut self.slots[(sequence - self.base) as usize];
        slot.fired = true;
        let mut arrivals = std::mem::take(&mut slot.arrivals);
        while self.slots.front().is_some_and(|slot| slot.fired) {
            self.slots.pop_front();
            self.base += 1;
        }
        arrivals.sort_unstable_by_key(|arrival| arrival.op.rank);
        arrivals
    }

    /// Counts the collective `sequence` as fired, if it is the next and none has arrived anywhere.
    #[inline]
    pub(crate) fn pass_by(&mut self, sequence: u64) -> bool {
        let next = self.slots.is_empty() && self.base == sequence;
        self.base += u64::from(next);
        next
    }

    /// Keeps an empty vector for a slot to come.
    #[inline]
    pub(crate) fn keep_spare(&mut self, arrivals: Vec<Arrival>) {
        if self.spare.len() < SPARES {
            self.spare.push(arrivals);
        }
    }

    /// Finds the peer's side of a send or receive, or leaves this side for it to find.
    pub(crate) fn meet_peer(&mut self, arrival: Arrival) -> Option<Arrival> {
        let op = &arrival.op;
        let channel = self.channel(op);
        let other = channel
            .iter()
            .position(|other| other.op.kind != op.kind && other.op.sequence == op.sequence);
        match other {
            Some(index) => Some(channel.swap_remove(index)),
            None => {
                channel.push(arrival);
                None
            }
        }
    }

    fn channel(&mut self, op: &Op) -> &mut Vec<Arrival> {
        let size = self.ends.len();
        if self.channels.is_empty() {
            self.channels.resize_with(size * size, Vec::new);
        }
        let (source, target) = match op.kind {
            Kind::Send => (op.rank, op.other),
            _ => (op.other, op.rank),
        };
        &mut self.channels[source as usize * size + target as usize]
    }

    /// A rank that left without ever issuing its side of `op`.
    pub(crate) fn departed_before(&self, op: &Op) -> Option<Rank> {
        if self.departed == 0 {
            return None;
        }
        let ranks = (0..self.ends.len() as u32).map(Rank::new);
        ranks.into_iter().find(|&rank| self.ends[rank.index()].departed && self.lacks(rank, op))
    }

    /// Whether `rank` has not issued its side of `op`.
    pub(crate) fn lacks(&self, rank: Rank, op: &Op) -> bool {
        let end = &self.ends[rank.index()].shared;
        if let Some(across) = self.across.as_ref().filter(|_| self.is_elsewhere(rank.index())) {
            let concerns = !op.kind.is_point_to_point() || op.other == rank.get();
            return concerns && across.lacks(rank.get(), op, self.ends[rank.index()].departed);
        }
        let issued = match op.kind {
            Kind::Send if op.other == rank.get() => &end.received[op.rank as usize],
            Kind::Recv if op.other == rank.get() => &end.sent[op.rank as usize],
            Kind::Send | Kind::Recv => return false,
            _ => &end.sequence,
        };
        issued.load(COUNT) <= op.sequence
    }

    /// An operation that has arrived somewhere and that `rank` has not issued.
    pub(crate) fn waiting_for(&self, rank: Rank) -> Option<Op> {
        self.arrived()
            .map(|arrival| arrival.op)
            .find(|op| op.rank != rank.get() && self.lacks(rank, op))
    }

    /// Ranks whose side of `op` has not arrived.
    pub(crate) fn missing(&self, op: &Op) -> Vec<Rank> {
        if op.kind.is_point_to_point() {
            return op.other().into_iter().collect();
        }
        let here = |rank: u32| {
            if let Some(across) = self.across.as_ref().filter(|_| self.is_elsewhere(rank as usize))
            {
                return across.joint.has_published(rank, op);
            }
            let same = |other: &Op| other.rank == rank && other.sequence == op.sequence;
            self.arrived().any(|arrival| !arrival.op.kind.is_point_to_point() && same(&arrival.op))
        };
        (0..self.ends.len() as u32).filter(|&rank| !here(rank)).map(Rank::new).collect()
    }

    /// Whether a rank of this process has published the collective `number` ahead, and what it follows
    /// has not ended here: that may be the one which heads the stream, or one more that was published
    /// ahead.
    #[inline]
    pub(crate) fn is_behind(&self, number: u64, streams: &Slab<Stream>) -> bool {
        self.ends.iter().filter(|end| (end.run.next..end.run.end).contains(&number)).any(|end| {
            let head = streams[end.run.stream].queue.front();
            !matches!(head, Some(Entry::Op(op)) if op.sequence == number)
        })
    }

    /// A rank whose process has ended, and had claimed an operation that has arrived here.
    pub(crate) fn held_by_dead(&self) -> Option<u32> {
        let across = self.across.as_ref()?;
        let by = |progress: Progress| match progress {
            Progress::Claimed(by) if across.is_dead(by) => Some(by),
            _ => None,
        };
        let track = across.joint.board.track(Board::COLLECTIVES);
        let runs = self.ends.iter().map(|end| end.run).filter(|run| !run.is_empty());
        let mut heads = runs.map(|run| track.progress(run.next));
        self.arrived()
            .find_map(|arrival| by(across.progress(&arrival.op)))
            .or_else(|| heads.find_map(by))
    }

    /// Whether `op` has arrived and waits for its peers.
    pub(crate) fn waits(&self, op: &Op) -> bool {
        let run = &self.ends[op.rank as usize].run;
        if !op.kind.is_point_to_point() && (run.next..run.end).contains(&op.sequence) {
            return true;
        }
        self.arrived().any(|arrival| {
            let other = &arrival.op;
            (other.rank, other.sequence, other.kind, other.other)
                == (op.rank, op.sequence, op.kind, op.other)
        })
    }

    fn arrived(&self) -> impl Iterator<Item = &Arrival> {
        let slots = self.slots.iter().flat_map(|slot| &slot.arrivals);
        slots.chain(self.channels.iter().flatten())
    }

    /// Notes what arrived here and waits for its peers on the board. `false` where that number was used
    /// already.
    #[inline]
    pub(crate) fn await_across(&mut self, arrival: Arrival) -> bool {
        let op = &arrival.op;
        if op.kind.is_point_to_point() {
            self.channel(op).push(arrival);
            return true;
        }
        let Some(slot) = self.slot(op.sequence) else { return false };
        slot.push(arrival);
        true
    }

    /// Takes what has arrived here of an operation that this process does.
    #[inline]
    pub(crate) fn take_across(&mut self, joint: &Joint, track: usize, number: u64) -> Vec<Arrival> {
        if track == Board::COLLECTIVES {
            return self.pass_over(number);
        }
        let pair = joint.rank_of(track, 0) as usize * self.ends.len();
        let pair = pair + joint.rank_of(track, 1) as usize;
        let Some(channel) = self.channels.get_mut(pair) else { return Vec::new() };
        channel.extract_if(.., |arrival| arrival.op.sequence == number).collect()
    }

    /// Counts the collective `number` as fired, wherever it stands, and takes what is noted of it: all
    /// but what is in runs.
    pub(crate) fn pass_over(&mut self, number: u64) -> Vec<Arrival> {
        if self.pass_by(number) {
            return self.spare.pop().unwrap_or_default();
        }
        // Makes the slot, if there is none.
        if self.slot(number).is_some() { self.take_slot(number) } else { Vec::new() }
    }

    /// Takes out what has arrived here and was done by another process.
    pub(crate) fn take_done(&mut self, done: &mut Vec<Arrival>) {
        self.take_if(
            |across, op| across.progress(op) == Progress::Done,
            |arrival| done.push(arrival),
        );
    }

    /// Takes out what has arrived here and what nobody does any more, and says of each whether it was
    /// done.
    pub(crate) fn take_dropped(&mut self, dropped: &mut Vec<(Arrival, bool)>) {
        let fate = std::cell::Cell::new(false);
        let over = |across: &Across, op: &Op| {
            let last = across.drop(op);
            fate.set(last == Progress::Done);
            !matches!(last, Progress::Claimed(_))
        };
        self.take_if(over, |arrival| dropped.push((arrival, fate.get())));
        if let Some(across) = &mut self.across {
            across.stalled.clear();
        }
    }

    /// Takes out what is over.
    fn take_if(&mut self, over: impl Fn(&Across, &Op) -> bool, mut take: impl FnMut(Arrival)) {
        let Some(across) = &self.across else { return };
        for slot in &mut self.slots {
            if slot.arrivals.first().is_some_and(|first| over(across, &first.op)) {
                slot.arrivals.drain(..).for_each(&mut take);
                slot.fired = true;
            }
        }
        while self.slots.front().is_some_and(|slot| slot.fired) {
            let slot = self.slots.pop_front();
            self.base += 1;
            if let Some(slot) = slot.filter(|slot| slot.arrivals.capacity() > 0)
                && self.spare.len() < SPARES
            {
                self.spare.push(slot.arrivals);
            }
        }
        for channel in self.channels.iter_mut().filter(|channel| !channel.is_empty()) {
            // In order: a stream's messages end one after the other.
            channel.sort_by_key(|arrival| arrival.op.sequence);
            channel.extract_if(.., |arrival| over(across, &arrival.op)).for_each(&mut take);
        }
    }

    /// Takes out everything that has arrived and not fired.
    pub(crate) fn take_pending(&mut self) -> Vec<Arrival> {
        let slots = self.slots.iter_mut().flat_map(|slot| slot.arrivals.drain(..));
        slots.chain(self.channels.iter_mut().flat_map(|channel| channel.drain(..))).collect()
    }
}

/// Slots that are normally under way at once, at most.
const SPARES: usize = 64;

/// Stands for no collective.
pub(crate) const NOTHING: u64 = u64::MAX;

/// What one rank's end shares with the engine and with abort handles.
pub(crate) struct EndShared {
    pub(crate) info: CommInfo,
    pub(crate) comm: Key,
    pub(crate) engine: Weak<Engine>,
    pub(crate) meeting: Arc<SplitMeeting>,
    /// What it has to do with other processes.
    pub(crate) joint: Option<Arc<Joint>>,
    /// Collectives issued.
    pub(crate) sequence: AtomicU64,
    /// Sends issued, by peer.
    pub(crate) sent: Box<[AtomicU64]>,
    /// Receives issued, by peer.
    pub(crate) received: Box<[AtomicU64]>,
    /// The collective that a thread sleeps for until it is issued, or [`NOTHING`].
    pub(crate) wanted: AtomicU64,
    /// Where the last operation was called.
    site: AtomicPtr<Location<'static>>,
    /// The thread that called on it last.
    caller: Mutex<Option<Arc<Thread>>>,
    /// Whether there is a failure or an abort to report.
    failed: AtomicBool,
    aborted: AtomicBool,
    /// Whether it has given its memory back for a time; it has none.
    suspended: AtomicBool,
    failure: OnceLock<Failure>,
    /// What somebody outside found wrong with it, and maybe aborted it for.
    reason: OnceLock<Error>,
    /// The end that carries its signals, and ends with it.
    pub(crate) follower: OnceLock<Arc<Self>>,
}

impl EndShared {
    pub(crate) fn new(
        info: CommInfo,
        comm: Key,
        engine: Weak<Engine>,
        meeting: Arc<SplitMeeting>,
        joint: Option<Arc<Joint>>,
    ) -> Self {
        let counters = || (0..info.size).map(|_| AtomicU64::new(0)).collect();
        Self {
            sent: counters(),
            received: counters(),
            info,
            comm,
            engine,
            meeting,
            joint,
            sequence: AtomicU64::new(0),
            wanted: AtomicU64::new(NOTHING),
            site: AtomicPtr::new(std::ptr::null_mut()),
            caller: Mutex::new(None),
            failed: AtomicBool::new(false),
            aborted: AtomicBool::new(false),
            suspended: AtomicBool::new(false),
            failure: OnceLock::new(),
            reason: OnceLock::new(),
            follower: OnceLock::new(),
        }
    }

    /// Notes where an operation is called.
    #[inline]
    pub(crate) fn note_site(&self, site: &'static Location<'static>) {
        self.site.store(std::ptr::from_ref(site).cast_mut(), COUNT);
    }

    /// Where the last operation was called.
    pub(crate) fn site(&self) -> Option<&'static Location<'static>> {
        // SAFETY: null, or from a reference that lives as long as the process, and only read.
        unsafe { self.site.load(COUNT).as_ref() }
    }

    /// The thread that called on it last.
    pub(crate) fn caller(&self) -> Option<Arc<Thread>> {
        lock(&self.caller).clone()
    }

    /// The calling thread is now the one that called last.
    pub(crate) fn set_caller(&self) {
        *lock(&self.caller) = Some(Thread::current());
    }

    /// The communicator's name, or a number.
    pub(crate) fn title(&self) -> String {
        self.info
            .name
            .clone()
            .unwrap_or_else(|| format!("#{}.{}", self.comm.index, self.comm.generation))
    }

    /// Stops wanting the collective `sequence`. `false` where that was over.
    pub(crate) fn disarm(&self, sequence: u64) -> bool {
        let wanted = &self.wanted;
        wanted.compare_exchange(sequence, NOTHING, Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }

    /// The next number for an operation.
    #[inline]
    pub(crate) fn number(&self, kind: Kind, other: u32) -> u64 {
        self.counter(kind, other).fetch_add(1, COUNT)
    }

    /// The number that the next operation will have.
    pub(crate) fn next_number(&self, kind: Kind, other: u32) -> u64 {
        self.counter(kind, other).load(COUNT)
    }

    #[inline]
    fn counter(&self, kind: Kind, other: u32) -> &AtomicU64 {
        match kind {
            Kind::Send => &self.sent[other as usize],
            Kind::Recv => &self.received[other as usize],
            _ => &self.sequence,
        }
    }

    /// Refuses where the communicator was aborted or failed.
    #[inline]
    pub(crate) fn check(&self) -> Result<()> {
        if self.failed.load(Ordering::Acquire) { Err(self.error()) } else { Ok(()) }
    }

    /// As [`check`](Self::check), and refuses where the communicator is suspended.
    #[inline]
    pub(crate) fn check_active(&self) -> Result<()> {
        self.check()?;
        match self.suspended.load(Ordering::Relaxed) {
            true => Err(misuse("the communicator is suspended").with_hint("resume it first")),
            false => Ok(()),
        }
    }

    pub(crate) fn is_suspended(&self) -> bool {
        self.suspended.load(Ordering::Relaxed)
    }

    /// Only the thread that owns the communicator does this.
    pub(crate) fn set_suspended(&self, suspended: bool) {
        self.suspended.store(suspended, Ordering::Relaxed);
    }

    #[cold]
    fn error(&self) -> Error {
        // A revoke is what a rank wants to know, whatever led to it.
        match self.meeting.lifecycle.revoked().or_else(|| self.failure.get()) {
            Some(failure) if !self.aborted.load(Ordering::Acquire) => failure.of(&self.info),
            _ => self.reason.get().map_or_else(
                || {
                    let text = "the communicator was aborted";
                    Error::new(ErrorKind::Aborted, text).with_comm(&self.info)
                },
                Error::copy,
            ),
        }
    }

    /// Keeps the first failure.
    pub(crate) fn fail(&self, failure: Failure) {
        let _ = self.failure.set(failure);
        self.failed.store(true, Ordering::Release);
    }

    /// Why it failed, unless it was aborted or revoked here.
    pub(crate) fn remote_failure(&self) -> Option<Failure> {
        let here = self.aborted.load(Ordering::Acquire)
            || self.meeting.lifecycle.has_revoked(self.info.rank);
        self.failure.get().filter(|_| !here).cloned()
    }
}

impl EndShared {
    /// Ends what carries its signals.
    pub(crate) fn abort_follower(&self) -> Result<()> {
        self.follower.get().map_or(Ok(()), |follower| follower.abort())
    }
}

impl AbortControl for EndShared {
    fn abort(&self) -> Result<()> {
        crate::fork::check()?;
        let Some(engine) = self.engine.upgrade() else { return Ok(()) };
        engine.with(|state| {
            let alive = state
                .comms
                .get(self.comm)
                .is_some_and(|comm| !comm.ends[self.info.rank.index()].departed);
            if !alive || self.aborted.swap(true, Ordering::AcqRel) {
                return;
            }
            self.failed.store(true, Ordering::Release);
            let own = self.info.rank;
            if let Some(joint) = &self.joint {
                joint.board.seat(own.get()).set(Seat::ABORTED);
            }
            self.meeting.lifecycle.depart(own);
            let remote =
                Failure::new(ErrorKind::Remote, format!("rank {own} aborted the communicator"));
            state.fail_comm(self.comm, &remote, Some(own));
        });
        self.abort_follower()
    }

    fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Acquire)
    }

    fn failure(&self) -> Option<Error> {
        self.check().err().or_else(|| self.reason.get().map(Error::copy))
    }

    fn condemn(&self, reason: Error) {
        let _first_stays = self.reason.set(reason.with_poison(true));
    }
}
