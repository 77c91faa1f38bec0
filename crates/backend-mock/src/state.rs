//! What the engine knows, and the rules by which it changes. All of it is behind one lock.
//!
//! Work enters a stream at the back ([`State::push`]). The head of a stream is *started*
//! ([`State::start`]): it does its thing at once, or arrives where it meets its peers, or waits.
//! When it is done it is popped, and its stream goes on the worklist to start the next
//! ([`State::advance`]). Nothing here calls itself through a chain of streams, however long that is.
//!
//! Data moves in one of two ways. A little is moved on the spot. More becomes a [`Job`] that whoever
//! holds the lock takes out and runs without it ([`crate::engine`]); the entries it came from stay
//! at the heads of their streams, started, until [`State::complete`].

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use collectives_core::{ErrorKind, Rank};

use crate::{
    Accumulation,
    across::Reach,
    adversary::Adversary,
    calls::Call,
    comm_state::{Comm, EndShared},
    engine::Lag,
    error::Failure,
    graph::{Capture, Event, Graph, Run, Signal},
    memory::{Allocation, Memory},
    op::{Kind, Op},
    slab::{Key, Slab},
    stream::{Entry, Stream},
    sync::{Parker, lock},
    transfer::Transfer,
    verdict::Verdict,
};

/// The state of one engine.
pub(crate) struct State {
    pub(crate) streams: Slab<Stream>,
    pub(crate) comms: Slab<Comm>,
    pub(crate) events: Slab<Event>,
    pub(crate) signals: Slab<Signal>,
    pub(crate) captures: Slab<Capture>,
    pub(crate) graphs: Slab<Graph>,
    pub(crate) runs: Slab<Run>,
    pub(crate) units: Slab<Unit>,
    /// Streams whose head may be ready to start.
    pub(crate) worklist: Vec<u32>,
    /// Data to move without the lock.
    pub(crate) jobs: VecDeque<Job>,
    /// Functions to call without the lock, and the streams that they hold up.
    pub(crate) calls: Vec<(u32, Call)>,
    /// Sleepers to wake once the lock is released.
    pub(crate) wake: Vec<Arc<Parker>>,
    /// Memory to free once the lock is released.
    pub(crate) garbage: Vec<Allocation>,
    /// The latest verdicts.
    pub(crate) verdicts: VecDeque<Verdict>,
    /// Whether a stream waited for an event that was never recorded.
    pub(crate) warned_of_event: bool,
    /// What leads to other processes, where ranks are processes.
    pub(crate) reach: Option<Reach>,
    /// For what other processes have done; empty between looks.
    pub(crate) done: Vec<Arrival>,
    /// Schedules, guards and faults, where any are asked for.
    pub(crate) adversary: Option<Box<Adversary>>,
    pub(crate) accumulation: Accumulation,
    pub(crate) memory: Arc<Memory>,
}

/// One rank's operation where it meets its peers, and what it holds up.
#[derive(Clone, Copy)]
pub(crate) struct Arrival {
    pub(crate) op: Op,
    pub(crate) owner: Owner,
}

/// What goes on when an operation is done.
#[derive(Clone, Copy)]
pub(crate) enum Owner {
    /// A stream of another process.
    Elsewhere,
    Stream(u32),
    Unit(u32),
}

/// Data to move, and whom it holds up.
pub(crate) struct Job {
    pub(crate) transfer: Transfer,
    /// The stream of a copy or fill; operations have their owners with them.
    pub(crate) stream: Option<u32>,
}

/// Operations of a group that share a stream or a communicator, and so start and end together.
pub(crate) struct Unit {
    pub(crate) ops: Vec<Op>,
    pub(crate) streams: Vec<u32>,
    /// Streams of which it is the head.
    pub(crate) at_head: usize,
    /// Operations not done.
    left: usize,
}

impl State {
    pub(crate) fn new(accumulation: Accumulation, memory: Arc<Memory>) -> Self {
        Self {
            streams: Slab::new(),
            comms: Slab::new(),
            events: Slab::new(),
            signals: Slab::new(),
            captures: Slab::new(),
            graphs: Slab::new(),
            runs: Slab::new(),
            units: Slab::new(),
            worklist: Vec::new(),
            jobs: VecDeque::new(),
            calls: Vec::new(),
            wake: Vec::new(),
            garbage: Vec::new(),
            verdicts: VecDeque::new(),
            warned_of_event: false,
            reach: None,
            done: Vec::new(),
            adversary: None,
            accumulation,
            memory,
        }
    }

    /// Takes over what came into the inbox of a stream.
    pub(crate) fn drain(&mut self, stream: u32) {
        let Some(state) = self.streams.at(stream) else { return };
        let shared = Arc::clone(&state.shared);
        let queue = &mut self.streams[stream].queue;
        let known = queue.len();
        let mut inbox = lock(&shared.inbox);
        if known == 0 {
            // Copies nothing, and the caller writes where the queue was before.
            std::mem::swap(queue, &mut inbox);
        } else {
            queue.append(&mut inbox);
        }
        drop(inbox);
        self.welcome(stream, known);
    }

    /// Counts the entries of a stream from position `known` on, which have just come in.
    fn welcome(&mut self, stream: u32, known: usize) {
        let Some(state) = self.streams.at(stream) else { return };
        let mut ops = state.queue.range(known..).filter_map(|entry| match entry {
            Entry::Op(op) => Some((op.comm, op.rank)),
            _ => None,
        });
        let mut next = ops.next();
        while let Some(end) = next {
            let mut alike = 1;
            next = ops.find(|&other| {
                alike += usize::from(other == end);
                other != end
            });
            if let Some(comm) = self.comms.get_mut(end.0) {
                comm.ends[end.1 as usize].outstanding += alike;
            }
        }
        if !state.started && known == 0 && !state.queue.is_empty() || state.ahead > 0 {
            self.worklist.push(stream);
        }
        if self.adversary.is_some() {
            self.meet(stream, known);
        }
    }

    /// Enqueues one entry.
    #[inline]
    pub(crate) fn push(&mut self, stream: u32, entry: Entry) {
        if let Entry::Op(op) = &entry {
            self.count(op);
        }
        let state = &mut self.streams[stream];
        state.queue.push_back(entry);
        let known = state.queue.len() - 1;
        if !state.started && known == 0 || state.ahead > 0 {
            self.worklist.push(stream);
        }
        if self.adversary.is_some() {
            self.meet(stream, known);
        }
    }

    /// Enqueues operations that are one. `streams` are those that they use.
    pub(crate) fn push_unit(&mut self, ops: Vec<Op>, streams: Vec<u32>) {
        for op in &ops {
            self.count(op);
        }
        let left = ops.len();
        let unit = self.units.insert(Unit { ops, streams: streams.clone(), at_head: 0, left });
        for stream in streams {
            self.push(stream, Entry::Unit { unit: unit.index });
        }
    }

    #[inline]
    fn count(&mut self, op: &Op) {
        if let Some(comm) = self.comms.get_mut(op.comm) {
            comm.ends[op.rank as usize].outstanding += 1;
        }
    }

    /// A rank that keeps a stream from passing `count` entries for some time.
    pub(crate) fn lag(&self, stream: u32, count: usize) -> Option<Lag> {
        match self.streams.at(stream)?.queue.get(count.checked_sub(1)?)? {
            Entry::Op(op) if !op.kind.is_point_to_point() => {
                let comm = self.comms.get(op.comm).filter(|comm| !comm.broken)?;
                Lag::behind(comm, op)
            }
            _ => None,
        }
    }

    /// The operations behind an entry.
    pub(crate) fn ops<'a>(&'a self, entry: &'a Entry) -> &'a [Op] {
        match entry {
            Entry::Op(op) => std::slice::from_ref(op),
            Entry::Unit { unit } => self.units.at(*unit).map_or(&[], |unit| &unit.ops),
            _ => &[],
        }
    }

    /// Whether an entry has met, or waits for, its peers, given that it heads its stream.
    pub(crate) fn has_arrived(&self, entry: &Entry) -> bool {
        match entry {
            Entry::Unit { unit } => {
                self.units.at(*unit).is_some_and(|unit| unit.at_head == unit.streams.len())
            }
            _ => true,
        }
    }

    /// The streams that a unit stands in.
    pub(crate) fn unit_streams(&self, unit: u32) -> &[u32] {
        self.units.at(unit).map_or(&[], |unit| &unit.streams)
    }

    /// Has those look again who wait until nothing of a rank is outstanding.
    pub(crate) fn wake_flushes(&mut self, comm: Key, rank: u32) {
        let Some(comm) = self.comms.get_mut(comm) else { return };
        for parker in comm.ends[rank as usize].waiters.drain(..) {
            if parker.set() {
                self.wake.push(parker);
            }
        }
    }

    /// Has the head of a stream looked at when the state next advances.
    pub(crate) fn look_at(&mut self, stream: u32) {
        self.worklist.push(stream);
    }

    /// Starts whatever can be started.
    pub(crate) fn advance(&mut self) {
        if self.adversary.is_some() {
            self.tell_trespasses();
        }
        loop {
            if self.reach.is_some() {
                self.look_across();
            }
            while let Some(stream) = self.worklist.pop() {
                self.start(stream);
            }
            if !self.looks_again() {
                return;
            }
        }
    }

    /// Starts the head of a stream.
    fn start(&mut self, index: u32) {
        if self.adversary.is_some() && !self.may_start(index) {
            return;
        }
        let Some(stream) = self.streams.at_mut(index) else { return };
        if stream.ahead > 0 {
            stream.started = true;
            self.head_ahead(index);
            return;
        }
        if stream.started {
            return;
        }
        let Some(&entry) = stream.queue.front() else {
            self.forget_stream(index);
            return;
        };
        stream.started = true;
        match entry {
            Entry::Op(op) => self.arrive(Arrival { op, owner: Owner::Stream(index) }),
            Entry::Unit { unit } => self.start_unit(unit),
            Entry::Call(call) => self.calls.push((index, call)),
            Entry::Copy { from, to, bytes, .. } => {
                self.transfer(Transfer::Copy { from, to, bytes }, Some(index));
            }
            Entry::Fill { to, value, bytes, .. } => {
                self.transfer(Transfer::Fill { to, value, bytes }, Some(index));
            }
            Entry::Free { start, .. } => {
                self.garbage.extend(self.memory.take(start));
                self.pass(index);
            }
            Entry::Record { signal } => {
                self.pass(index);
                self.reach(signal);
            }
            Entry::Wait { signal } => {
                let signal_state = &mut self.signals[signal];
                if signal_state.reached {
                    self.pass(index);
                    self.release(signal);
                } else {
                    signal_state.waiting.push(index);
                }
            }
            Entry::GraphRun { run } => {
                self.runs[run].at_head = true;
                self.open_run(run);
            }
            Entry::GraphBegin { run } => {
                if self.runs[run].open {
                    self.pass(index);
                }
            }
            Entry::GraphEnd { run } => {
                self.pass(index);
                self.end_branch(run);
            }
        }
    }

    fn start_unit(&mut self, index: u32) {
        let unit = &mut self.units[index];
        unit.at_head += 1;
        if unit.at_head < unit.streams.len() {
            return;
        }
        // Taken out while its members arrive, since the last of them may end the unit.
        let ops = std::mem::take(&mut unit.ops);
        for &op in &ops {
            self.arrive(Arrival { op, owner: Owner::Unit(index) });
        }
        if let Some(unit) = self.units.at_mut(index) {
            unit.ops = ops;
        }
    }

    /// The head of a stream is done: the next may start.
    fn pass(&mut self, index: u32) {
        self.step(index);
        self.worklist.push(index);
    }

    /// As [`pass`](Self::pass), but the caller has to see to what comes next.
    pub(crate) fn step(&mut self, index: u32) {
        let stream = &mut self.streams[index];
        stream.pass();
        if !stream.waiters.is_empty() {
            let passed = stream.passed;
            let wake = &mut self.wake;
            stream.waiters.retain(|(target, parker)| {
                let stays = *target > passed;
                if !stays && parker.set() {
                    wake.push(Arc::clone(parker));
                }
                stays
            });
        }
    }

    /// Gives up the place of a destroyed stream that has nothing left to do.
    fn forget_stream(&mut self, index: u32) {
        let stream = &self.streams[index];
        if stream.shared.is_destroyed() && stream.queue.is_empty() && stream.capture.is_none() {
            self.streams.remove(index);
            self.forget_order(index);
        }
    }

    /// An event was recorded: who waits for it goes on.
    fn reach(&mut self, index: u32) {
        let signal = &mut self.signals[index];
        signal.reached = true;
        signal.at = signal.is_timed.then(Instant::now);
        for stream in std::mem::take(&mut signal.waiting) {
            self.pass(stream);
            self.release(index);
        }
        self.release(index);
    }

    /// One reference to a signal less.
    pub(crate) fn release(&mut self, index: u32) {
        let signal = &mut self.signals[index];
        signal.references -= 1;
        if signal.references == 0 {
            self.signals.remove(index);
        }
    }

    /// Lets a run begin if its stream has come to it and earlier runs of its graph have ended.
    fn open_run(&mut self, index: u32) {
        let run = &mut self.runs[index];
        let graph = &self.graphs[run.graph];
        if !run.at_head || run.open || graph.pending.front() != Some(&index) {
            return;
        }
        run.open = true;
        for branch in graph.branches.clone() {
            let stream = &self.streams[branch];
            let waits =
                matches!(stream.queue.front(), Some(Entry::GraphBegin { run }) if *run == index);
            if waits && stream.started {
                self.pass(branch);
            }
        }
    }

    /// One branch of a run is through.
    fn end_branch(&mut self, index: u32) {
        let run = &mut self.runs[index];
        run.branches_left -= 1;
        if run.branches_left > 0 {
            return;
        }
        let (stream, graph) = (run.stream, run.graph);
        self.runs.remove(index);
        for branch in self.graphs[graph].branches.clone() {
            if let Some(failure) = self.streams[branch].failure.take() {
                self.streams[stream].failure.get_or_insert(failure);
            }
        }
        self.pass(stream);
        let graph_state = &mut self.graphs[graph];
        graph_state.pending.pop_front();
        match graph_state.pending.front() {
            Some(&next) => self.open_run(next),
            None => self.forget_graph(graph),
        }
    }

    /// Gives up the place of a destroyed graph that has no run left.
    pub(crate) fn forget_graph(&mut self, index: u32) {
        let graph = &self.graphs[index];
        if !graph.destroyed || !graph.pending.is_empty() {
            return;
        }
        for branch in self.graphs.remove(index).map_or_else(Vec::new, |graph| graph.branches) {
            self.streams[branch].shared.set_mode(crate::stream::Mode::Destroyed);
            self.worklist.push(branch);
        }
    }

    /// One rank's operation meets those of its peers; the last one fires it.
    fn arrive(&mut self, arrival: Arrival) {
        let op = &arrival.op;
        let Some(comm) = self.comms.get_mut(op.comm) else {
            // The communicator is gone, and only what nobody waits for can be left of it.
            self.finish(arrival);
            return;
        };
        if comm.broken {
            self.finish_failed(arrival);
            return;
        }
        if comm.across.is_some() {
            self.arrive_across(arrival);
            return;
        }
        if op.kind.is_point_to_point() {
            self.arrive_point_to_point(arrival);
            return;
        }
        let Some(slot) = comm.slot(op.sequence) else {
            // Two threads used one communicator at once, against its contract.
            let failure = Failure::new(ErrorKind::InvalidUsage, "two threads use one communicator");
            self.fail_comm(arrival.op.comm, &failure, None);
            self.finish_failed(arrival);
            return;
        };
        slot.push(arrival);
        if slot.len() < comm.ends.len() {
            if let Some(missing) = comm.departed_before(op) {
                self.fail_departed(arrival.op.comm, missing, &arrival.op);
            }
            return;
        }
        let arrivals = comm.take_slot(op.sequence);
        if self.adversary.is_none() || self.admit(&arrivals) {
            self.fire(arrivals);
        }
    }

    /// Does a collective for which all ranks have come. Small ones often come in series, and a
    /// series is done in one go: where the next one heads the streams of all ranks, it need not meet.
    fn fire(&mut self, mut arrivals: Vec<Arrival>) {
        let key = arrivals[0].op.comm;
        while self.comms.get(key).is_some() {
            if let Some(verdict) = self.mismatch(&arrivals) {
                let failure = self.pronounce(verdict);
                self.fail_comm(key, &failure, None);
                for arrival in arrivals {
                    self.finish_failed(arrival);
                }
                return;
            }
            let transfer = Transfer::Collective(arrivals);
            if transfer.traffic() > AT_ONCE_BYTES {
                self.jobs.push_back(Job { transfer, stream: None });
                return;
            }
            let (length, _) = transfer.span();
            // SAFETY: the callers' buffers are the engine's until the streams have passed, and this
            // thread does the whole span.
            unsafe { transfer.run(self.accumulation, 0..length) };
            let Transfer::Collective(done) = transfer else { return };
            arrivals = done;
            if !self.follow(&mut arrivals) {
                break;
            }
        }
        arrivals.clear();
        if let Some(comm) = self.comms.get_mut(key) {
            comm.keep_spare(arrivals);
        }
    }

    /// Ends a collective. Where the next of its communicator heads the streams of all ranks, that is
    /// put into `arrivals`.
    fn follow(&mut self, arrivals: &mut [Arrival]) -> bool {
        // With an adversary, each of them has to be looked at.
        let mut streams = self.adversary.is_none();
        for &Arrival { op, owner } in &*arrivals {
            self.discount(&op);
            match owner {
                Owner::Stream(stream) => self.step(stream),
                Owner::Unit(unit) => {
                    self.leave(unit);
                    streams = false;
                }
                Owner::Elsewhere => streams = false,
            }
        }
        let next = arrivals[0].op.sequence + 1;
        let follows = |arrival: &Arrival| match arrival.owner {
            Owner::Stream(stream) => self.streams[stream].queue.front().is_some_and(|entry| {
                matches!(entry, Entry::Op(op) if op.comm == arrival.op.comm
                    && op.rank == arrival.op.rank
                    && op.sequence == next
                    && !op.kind.is_point_to_point())
            }),
            Owner::Elsewhere | Owner::Unit(_) => false,
        };
        let all = streams && arrivals.iter().all(follows);
        let comm = self.comms.get_mut(arrivals[0].op.comm);
        if all && comm.is_some_and(|comm| comm.pass_by(next)) {
            for arrival in arrivals {
                if let Owner::Stream(stream) = arrival.owner
                    && let Some(Entry::Op(op)) = self.streams[stream].queue.front()
                {
                    arrival.op = *op;
                    self.streams[stream].started = true;
                }
            }
            return true;
        }
        for arrival in arrivals {
            if let Owner::Stream(stream) = arrival.owner {
                self.worklist.push(stream);
            }
        }
        false
    }

    fn arrive_point_to_point(&mut self, arrival: Arrival) {
        let op = arrival.op;
        let comm = &mut self.comms[op.comm.index];
        let Some(other) = comm.meet_peer(arrival) else {
            if let Some(missing) = comm.departed_before(&op) {
                self.fail_departed(op.comm, missing, &op);
            }
            return;
        };
        let pair = if op.kind == Kind::Send { [arrival, other] } else { [other, arrival] };
        if let Some(verdict) = self.mismatch(&pair) {
            let failure = self.pronounce(verdict);
            self.fail_comm(op.comm, &failure, None);
            for arrival in pair {
                self.finish_failed(arrival);
            }
            return;
        }
        if self.adversary.is_none() || self.admit(&pair) {
            self.transfer(Transfer::Exchange(pair), None);
        }
    }

    pub(crate) fn fail_departed(&mut self, key: Key, missing: Rank, op: &Op) {
        let failure = Failure::new(
            ErrorKind::Remote,
            format!(
                "rank {missing} left the communicator before it issued what rank {} waits for: {} \
                 #{} ({})",
                op.rank,
                op.kind.name(),
                op.sequence,
                op.site
            ),
        );
        self.fail_comm(key, &failure, None);
    }

    /// Moves a little data at once, and makes a job of more.
    fn transfer(&mut self, transfer: Transfer, stream: Option<u32>) {
        let job = Job { transfer, stream };
        if job.transfer.traffic() > AT_ONCE_BYTES {
            self.jobs.push_back(job);
            return;
        }
        let (length, _) = job.transfer.span();
        // SAFETY: the callers' buffers are the engine's until the streams have passed, and this
        // thread does the whole span.
        unsafe { job.transfer.run(self.accumulation, 0..length) };
        self.complete(&job);
    }

    /// The data of a job has been moved.
    pub(crate) fn complete(&mut self, job: &Job) {
        if let Some(stream) = job.stream {
            self.pass(stream);
        }
        let done: &[Arrival] = match &job.transfer {
            Transfer::Collective(arrivals) => arrivals,
            Transfer::Exchange(pair) => pair,
            Transfer::Copy { .. } | Transfer::Fill { .. } => &[],
        };
        if self.reach.is_some() {
            self.complete_across(done);
            return;
        }
        for &arrival in done {
            self.finish(arrival);
        }
    }

    /// A function that a stream called has returned.
    pub(crate) fn returned(&mut self, stream: u32) {
        self.pass(stream);
    }

    /// One rank's operation is done.
    #[inline]
    pub(crate) fn finish(&mut self, arrival: Arrival) {
        if let Owner::Elsewhere = arrival.owner {
            return;
        }
        self.discount(&arrival.op);
        match arrival.owner {
            Owner::Elsewhere => {}
            Owner::Stream(stream) => self.pass(stream),
            Owner::Unit(unit) => self.leave(unit),
        }
    }

    /// An operation less is outstanding.
    #[inline]
    pub(crate) fn discount(&mut self, op: &Op) {
        if let Some(comm) = self.comms.get_mut(op.comm) {
            let end = &mut comm.ends[op.rank as usize];
            end.outstanding -= 1;
            if end.outstanding == 0 {
                for parker in end.waiters.drain(..) {
                    if parker.set() {
                        self.wake.push(parker);
                    }
                }
                if end.departed {
                    self.forget_comm(op.comm);
                }
            }
        }
    }

    /// An operation of a unit is done.
    fn leave(&mut self, index: u32) {
        let unit = &mut self.units[index];
        unit.left -= 1;
        if unit.left == 0 {
            let streams = std::mem::take(&mut unit.streams);
            self.units.remove(index);
            for stream in streams {
                self.pass(stream);
            }
        }
    }

    /// As [`finish`](Self::finish), for an operation whose communicator failed first. Its stream
    /// keeps the failure, except where this very rank was aborted: who aborts knows.
    pub(crate) fn finish_failed(&mut self, arrival: Arrival) {
        let op = &arrival.op;
        let end = self.comms.get(op.comm).map(|comm| &*comm.ends[op.rank as usize].shared);
        if let Some(failure) = end.and_then(EndShared::remote_failure) {
            let streams = match arrival.owner {
                Owner::Elsewhere => Vec::new(),
                Owner::Stream(stream) => vec![stream],
                Owner::Unit(unit) => self.units[unit].streams.clone(),
            };
            for stream in streams {
                self.streams[stream].failure.get_or_insert_with(|| failure.clone());
            }
        }
        self.finish(arrival);
    }

    /// Ends a communicator for good: all ranks but `except` are told why, and what is pending is done
    /// without moving data, so that streams go on.
    pub(crate) fn fail_comm(&mut self, key: Key, why: &Failure, except: Option<Rank>) {
        let Some(comm) = self.comms.get(key) else { return };
        let mut failure = match &self.adversary {
            Some(adversary) => adversary.noted(why.clone()),
            None => why.clone(),
        };
        let mut except = except;
        if let Some(across) = &comm.across {
            (failure, except) = across.tell(failure, except);
            self.ring_all(key);
        }
        self.break_comm(key, &failure, except);
    }

    /// As [`fail_comm`](Self::fail_comm), in this process.
    pub(crate) fn break_comm(&mut self, key: Key, failure: &Failure, except: Option<Rank>) {
        let Some(comm) = self.comms.get_mut(key) else { return };
        comm.broken = true;
        for (rank, end) in comm.ends.iter().enumerate() {
            if !end.departed && except.is_none_or(|except| except.index() != rank) {
                end.shared.fail(failure.clone());
            }
        }
        comm.meeting.wake();
        if comm.across.is_some() {
            self.drop_waiting(key);
        } else {
            for arrival in comm.take_pending() {
                self.finish_failed(arrival);
            }
        }
        self.forget_guards(key);
    }

    /// A rank leaves: what others wait for from it will never come.
    pub(crate) fn depart(&mut self, key: Key, rank: Rank) {
        let Some(comm) = self.comms.get_mut(key) else { return };
        let end = &mut comm.ends[rank.index()];
        if std::mem::replace(&mut end.departed, true) {
            return;
        }
        comm.departed += 1;
        comm.meeting.depart(rank);
        if let Some(across) = &comm.across {
            across.joint.depart(&comm.ends[rank.index()].shared);
            self.ring_all(key);
        }
        let Some(comm) = self.comms.get_mut(key) else { return };
        if let Some(op) = comm.waiting_for(rank) {
            self.fail_departed(key, rank, &op);
        }
        self.forget_comm(key);
    }

    /// Gives up the place of a communicator that all ranks left and nothing waits for.
    fn forget_comm(&mut self, key: Key) {
        let Some(comm) = self.comms.get(key) else { return };
        let may_be = comm.departed == comm.ends.len() || comm.across.is_some();
        if may_be && comm.is_over() {
            self.comms.remove(key.index);
            self.let_go_of(key);
            self.forget_identity(key);
        }
    }
}

/// Data up to this traffic is moved with the lock held, which is cheaper than letting go of it.
pub(crate) const AT_ONCE_BYTES: usize = 16 * 1024;

/// Relaxed is enough for counters that only their own rank's thread changes.
pub(crate) const COUNT: Ordering = Ordering::Relaxed;
