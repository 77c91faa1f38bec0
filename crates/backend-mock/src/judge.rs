//! What can still happen, and what cannot any more.
//!
//! All dependencies are AND: an operation needs every peer's, an entry needs those before it in its
//! queue, a wait needs the entries that it waits for. So what can still happen is a least fixpoint:
//! start with nothing, add what has all that it needs, until nothing is added. What is left over is
//! stuck, whatever the order in which things are tried (an operation has one possible partner on
//! each rank, so none ever takes another's).
//!
//! The leaves are the operations that nobody has issued yet. A rank's end can still issue one unless
//! it is *blocked*: the thread that called on it last waits here for something that is stuck, or has
//! ended; and no thread that may hold the end instead can act. Those are the other threads of the
//! rank's device, and threads that have not called on any engine so far: one of them may have been
//! given the end, and be about to call. See [`crate::asleep`] for when a thread can act.
//!
//! In doubt something can happen: a rank that is only slow must never be condemned.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use collectives_core::Rank;

use crate::{
    asleep::{Look, Rest},
    comm_state::EndShared,
    engine::Engine,
    op::{Kind, Op},
    slab::Key,
    state::State,
    stream::Entry,
    sync::lock,
    threads::{self, Known, Thread, Waiting, What},
    verdict::Case,
    watch::Found,
};

/// A wait that was seen, and how far its stream was.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(crate) struct Waited {
    thread: u64,
    wait: u64,
    passed: u64,
}

impl Engine {
    /// Looks whether anything can still happen, and tells those who wait where nothing can.
    pub(crate) fn look(&self) -> Found {
        let last = std::mem::take(&mut *lock(&self.last_look));
        let waits = self.waits();
        if waits.is_empty() {
            return Found::Nobody;
        }
        // Only a wait that was there before is worth the lock, and one that has not come on since
        // is worth thinking about.
        let known = |wait: &Waited| {
            last.iter().any(|last| (last.thread, last.wait) == (wait.thread, wait.wait))
        };
        if !waits.iter().any(known) {
            *lock(&self.last_look) = waits;
            return Found::Progress;
        }
        let suspect = self.watch(|state| {
            let waits = self.waits_at(state);
            let same = waits.iter().any(|wait| last.contains(wait));
            *lock(&self.last_look) = waits;
            same.then(|| Judge::new(self, state, Outside::Nobody).finds_stuck())
        });
        match suspect {
            None => Found::Progress,
            Some(false) => Found::Slow,
            Some(true) => self.judge(),
        }
    }

    /// As seen from here somebody is stuck, unless threads act that don't wait here.
    fn judge(&self) -> Found {
        let own = Thread::current().tid();
        let look = || Look::take(|tid| Some(tid) == own);
        let before = look();
        let found = self.watch(|state| {
            let outside = before.as_ref().map_or(Outside::Unseen, Outside::Seen);
            let mut judge = Judge::new(self, state, outside);
            // What was seen holds only if it held all the time since before the lock was taken.
            let is_sure = |judge: &Judge<'_>| match (&before, look()) {
                (Some(before), Some(after)) => self.is_sure(judge, before, after),
                (Some(_), None) => false,
                (None, _) => true,
            };
            if !judge.finds_stuck() || !is_sure(&judge) {
                return Found::Slow;
            }
            let parts = judge.sentences();
            let cases: Vec<_> = parts.iter().map(|part| Case::new(&judge, part)).collect();
            for case in cases {
                case.close(self, state);
            }
            Found::Progress
        });
        if found == Found::Progress {
            // Those who were told wake up.
            self.with(|_| ());
        }
        found
    }

    /// Whether the threads that sleep have really nobody to wake them.
    fn is_sure(&self, judge: &Judge<'_>, before: &Look, mut after: Look) -> bool {
        let is_awake = before.anybody_is_awake() || after.anybody_is_awake();
        // Threads that call on other mocks only are none of this one's.
        let known = |tid| judge.callers.iter().any(|caller| caller.thread.tid() == Some(tid));
        let counts = |tid| known(tid) || !threads::is_ours(tid);
        let mut relied_on = before.clone();
        relied_on.retain(counts);
        after.retain(counts);
        // One that waits here may be on its way out of the lock that another one wants.
        let waits = judge.callers.iter().filter(|caller| caller.waiting.is_some());
        let mut rests = waits.filter_map(|caller| before.of(caller.thread.tid()?));
        if rests.any(|rest| rest == Rest::Awake) || !relied_on.still_holds(&after) {
            return false;
        }
        let calm = lock(&self.sleepers_seen).note(&after);
        !is_awake || calm >= CALM
    }

    fn waits(&self) -> Vec<Waited> {
        let waits = waiting(&self.threads.live(), self.threads.engine());
        let seen = |(thread, waiting): (Arc<Thread>, Waiting)| Waited {
            thread: thread.number(),
            wait: waiting.number,
            passed: 0,
        };
        waits.into_iter().map(seen).collect()
    }

    fn waits_at(&self, state: &State) -> Vec<Waited> {
        let waits = waiting(&self.threads.live(), self.threads.engine());
        let seen = |(thread, waiting): (Arc<Thread>, Waiting)| {
            let passed = match waiting.what {
                What::Stream { stream, .. } => {
                    state.streams.get(stream).map_or(0, |stream| stream.passed)
                }
                What::Flush { comm, rank, .. } => state
                    .comms
                    .get(comm)
                    .map_or(0, |comm| comm.ends[rank as usize].outstanding as u64),
                What::Fault { .. }
                | What::GrowId { .. }
                | What::Join { .. }
                | What::Shrink { .. }
                | What::Split { .. } => 0,
            };
            Waited { thread: thread.number(), wait: waiting.number, passed }
        };
        waits.into_iter().map(seen).collect()
    }
}

fn waiting(threads: &[Known], engine: u64) -> Vec<(Arc<Thread>, Waiting)> {
    let waits = |known: &Known| Some((Arc::clone(&known.thread), known.thread.waiting_in(engine)?));
    threads.iter().filter_map(waits).collect()
}

/// What threads do that don't wait in the engine.
pub(crate) enum Outside<'a> {
    /// Assumed: nothing, ever. What is not stuck then is not stuck at all.
    Nobody,
    /// This was seen of them.
    Seen(&'a Look),
    /// The system doesn't show it.
    Unseen,
}

/// A thread that the engine knows and that has not ended.
pub(crate) struct Caller {
    pub(crate) thread: Arc<Thread>,
    devices: BTreeSet<usize>,
    pub(crate) waiting: Option<Waiting>,
    /// Whether its wait comes to an end.
    goes_on: bool,
}

/// The state, and what of it can still happen.
pub(crate) struct Judge<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) state: &'a State,
    outside: Outside<'a>,
    pub(crate) callers: Vec<Caller>,
    /// By stream: how many entries are looked at, and how many of them come to pass.
    looked: Vec<usize>,
    passes: Vec<usize>,
    /// Where operations stand that are issued and not done.
    ops: HashMap<Name, Vec<Place>>,
    /// By communicator and rank: where its operations stand.
    ends: BTreeMap<(Key, u32), Vec<Place>>,
    records: HashMap<u32, Place>,
    launches: HashMap<u32, Place>,
    run_ends: HashMap<u32, Vec<Place>>,
    units: HashMap<u32, Vec<Place>>,
}

/// An entry of a stream, by position in its queue.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Place {
    pub(crate) stream: u32,
    pub(crate) index: usize,
}

/// One rank's operation, by what others know it by.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
struct Name {
    comm: Key,
    rank: u32,
    /// Direction and peer of a message.
    message: Option<(bool, u32)>,
    sequence: u64,
}

/// Something that is stuck, and what it is stuck at.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Node {
    /// An end that does not issue what others wait for.
    Absent(Key, u32),
    /// The first stuck entry of a stream.
    Head(Place),
    /// A join that not all ranks come to.
    Meeting(u64),
    /// A thread that waits, by its place in [`Judge::callers`].
    Wait(usize),
}

/// What is stuck together, and so gets one verdict.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sentence {
    pub(crate) nodes: BTreeSet<Node>,
    /// Waits of it, by place in [`Judge::callers`].
    pub(crate) waits: BTreeSet<usize>,
    pub(crate) comms: BTreeSet<Key>,
    pub(crate) joins: BTreeSet<u64>,
}

impl<'a> Judge<'a> {
    pub(crate) fn new(engine: &'a Engine, state: &'a State, outside: Outside<'a>) -> Self {
        let caller = |Known { thread, devices }| {
            let waiting = thread.waiting_in(engine.threads.engine());
            Caller { thread, devices, waiting, goes_on: false }
        };
        let places = state.streams.places() as usize;
        let mut judge = Self {
            engine,
            state,
            outside,
            callers: engine.threads.live().into_iter().map(caller).collect(),
            looked: vec![0; places],
            passes: vec![0; places],
            ops: HashMap::new(),
            ends: BTreeMap::new(),
            records: HashMap::new(),
            launches: HashMap::new(),
            run_ends: HashMap::new(),
            units: HashMap::new(),
        };
        judge.take_stock();
        judge
    }

    fn take_stock(&mut self) {
        let state = self.state;
        for (stream, queue) in state.streams.iter().map(|(index, stream)| (index, &stream.queue)) {
            self.looked[stream as usize] = queue.len().min(DEPTH);
            for (index, entry) in queue.iter().take(DEPTH).enumerate() {
                let place = Place { stream, index };
                match *entry {
                    Entry::Record { signal } => {
                        self.records.insert(signal, place);
                    }
                    Entry::GraphRun { run } => {
                        self.launches.insert(run, place);
                    }
                    Entry::GraphEnd { run } => self.run_ends.entry(run).or_default().push(place),
                    Entry::Unit { unit } => self.units.entry(unit).or_default().push(place),
                    _ => {}
                }
                for op in state.ops(entry) {
                    self.ops.entry(Name::of(op)).or_default().push(place);
                    self.ends.entry((op.comm, op.rank)).or_default().push(place);
                }
            }
        }
    }

    /// Finds what can still happen. Whether somebody waits for something that cannot.
    pub(crate) fn finds_stuck(&mut self) -> bool {
        loop {
            let mut changed = false;
            for stream in 0..self.passes.len() {
                let mut index = self.passes[stream];
                while index < self.looked[stream] {
                    let place = Place { stream: stream as u32, index };
                    if !self.causes_of_entry(place, true).is_empty() {
                        break;
                    }
                    index += 1;
                    changed = true;
                    self.passes[stream] = index;
                }
            }
            for index in 0..self.callers.len() {
                let caller = &self.callers[index];
                let Some(waiting) = caller.waiting.filter(|_| !caller.goes_on) else { continue };
                if self.causes_of_wait(index, waiting.what).is_empty() {
                    self.callers[index].goes_on = true;
                    changed = true;
                }
            }
            if !changed {
                break;
            }
        }
        self.callers.iter().any(Caller::is_stuck)
    }

    /// What is stuck, in parts that have nothing to do with each other.
    pub(crate) fn sentences(&self) -> Vec<Sentence> {
        let mut parts: Vec<Sentence> = Vec::new();
        let stuck = (0..self.callers.len()).filter(|&index| self.callers[index].is_stuck());
        for index in stuck {
            let mut part = self.reach(index);
            let (joined, apart) = parts.into_iter().partition(|other| part.meets(other));
            parts = apart;
            for other in joined {
                part.absorb(other);
            }
            parts.push(part);
        }
        parts
    }

    /// All that keeps a wait from ending.
    fn reach(&self, index: usize) -> Sentence {
        let mut part = Sentence::default();
        let mut open = vec![Node::Wait(index)];
        if let Some(Waiting { what: What::Stream { stream, target }, .. }) =
            self.callers[index].waiting
        {
            // Also what stands behind the first one: it would be the next to be stuck at.
            let first = self.passes[stream.index as usize];
            let last = self.target(stream, target).min(self.looked[stream.index as usize]);
            let queue = self.state.streams.get(stream).map(|stream| &stream.queue);
            let behind = queue.into_iter().flat_map(|queue| queue.range(first..last.max(first)));
            part.comms.extend(behind.flat_map(|entry| self.state.ops(entry)).map(|op| op.comm));
        }
        while let Some(node) = open.pop() {
            if !part.nodes.insert(node) {
                continue;
            }
            match node {
                Node::Absent(comm, _) => {
                    part.comms.insert(comm);
                }
                Node::Head(place) => {
                    part.comms.extend(self.ops_at(place).iter().map(|op| op.comm));
                }
                Node::Meeting(id) => {
                    part.joins.insert(id);
                }
                Node::Wait(index) => {
                    part.waits.insert(index);
                }
            }
            open.extend(self.causes(node));
        }
        part
    }

    /// What a stuck node is stuck at; nothing where it is stuck because a thread has ended.
    pub(crate) fn causes(&self, node: Node) -> Vec<Node> {
        match node {
            Node::Absent(comm, rank) => {
                let caller = self.end(comm, rank).and_then(EndShared::caller);
                let caller = caller.and_then(|thread| self.find(&thread));
                let waiting = caller.filter(|&index| self.callers[index].waiting.is_some());
                waiting.map(Node::Wait).into_iter().collect()
            }
            Node::Head(place) => self.causes_of_entry(place, false),
            Node::Meeting(_) => Vec::new(),
            Node::Wait(index) => self.callers[index]
                .waiting
                .map_or_else(Vec::new, |waiting| self.causes_of_wait(index, waiting.what)),
        }
    }

    /// What keeps a wait from ending.
    fn causes_of_wait(&self, index: usize, what: What) -> Vec<Node> {
        match what {
            What::Stream { stream, target } => {
                let passes = self.passes.get(stream.index as usize).copied().unwrap_or(0);
                let gone = self.state.streams.get(stream).is_none();
                // What stands deeper than was looked at is given the benefit of the doubt.
                if gone || passes >= self.target(stream, target).min(DEPTH) {
                    return Vec::new();
                }
                vec![Node::Head(Place { stream: stream.index, index: passes })]
            }
            What::Flush { comm, rank, .. } => {
                let places = self.ends.get(&(comm, rank)).map_or(&[][..], Vec::as_slice);
                let stuck = places.iter().find(|place| !self.comes_to_pass(**place));
                stuck.map(|place| self.head(place.stream)).into_iter().collect()
            }
            What::Join { id, .. } => {
                let open = self.engine.meetings.gathered(id).is_some();
                let comes = !open || self.somebody_may_join(index);
                if comes { Vec::new() } else { vec![Node::Meeting(id)] }
            }
            // It ends, or an abort or a deadline does.
            What::Fault { .. } => Vec::new(),
            What::GrowId { comm: key, rank } => {
                let Some(comm) = self.state.comms.get(key).filter(|comm| !comm.broken) else {
                    return Vec::new();
                };
                if comm.across.is_some() || !comm.meeting.lifecycle.lacks_grow_id(Rank::new(rank)) {
                    return Vec::new();
                }
                // Any of the others will do.
                let others = (0..comm.ends.len() as u32).filter(|&other| other != rank);
                if others.clone().any(|other| self.may_issue(key, other)) {
                    return Vec::new();
                }
                others.map(|other| Node::Absent(key, other)).collect()
            }
            What::Shrink { comm: key, number, .. } => {
                // It may be broken: that is what a shrink is for.
                let Some(comm) = self.state.comms.get(key) else { return Vec::new() };
                let missing = comm.meeting.lifecycle.missing(number).unwrap_or_default();
                let missing = missing.into_iter().map(Rank::get);
                let never = missing.filter(|&rank| !self.may_issue(key, rank));
                never.map(|rank| Node::Absent(key, rank)).collect()
            }
            What::Split { comm: key, round, .. } => {
                let Some(comm) = self.state.comms.get(key).filter(|comm| !comm.broken) else {
                    return Vec::new();
                };
                let missing = comm.meeting.missing(round).unwrap_or_default();
                if missing.iter().any(|&rank| comm.ends[rank as usize].departed) {
                    return Vec::new();
                }
                let never = missing.into_iter().filter(|&rank| !self.may_issue(key, rank));
                never.map(|rank| Node::Absent(key, rank)).collect()
            }
        }
    }

    /// What keeps an entry from coming to pass, given that those before it do: all of it, or `any`.
    fn causes_of_entry(&self, place: Place, any: bool) -> Vec<Node> {
        let Some(stream) = self.state.streams.at(place.stream) else { return Vec::new() };
        let Some(entry) = stream.queue.get(place.index) else { return Vec::new() };
        let behind = |at: Option<&Place>| {
            at.filter(|at| !self.comes_to_pass(**at)).map(|at| self.head(at.stream))
        };
        let mut causes = Vec::new();
        match *entry {
            Entry::Call(_)
            | Entry::Copy { .. }
            | Entry::Fill { .. }
            | Entry::Free { .. }
            | Entry::GraphEnd { .. }
            | Entry::Record { .. } => {}
            Entry::Op(op) => self.causes_of_op(&op, any, &mut causes),
            Entry::Unit { unit } => {
                let places = self.units.get(&unit).map_or(&[][..], Vec::as_slice);
                let late = places.iter().filter(|at| !self.is_reached(**at));
                causes.extend(late.map(|at| self.head(at.stream)));
                for op in self.state.ops(entry) {
                    if any && !causes.is_empty() {
                        break;
                    }
                    self.causes_of_op(op, any, &mut causes);
                }
            }
            Entry::Wait { signal } => {
                let reached = self.state.signals.at(signal).is_none_or(|signal| signal.reached);
                causes.extend(behind(self.records.get(&signal)).filter(|_| !reached));
            }
            Entry::GraphRun { run } => {
                let ends = self.run_ends.get(&run).map_or(&[][..], Vec::as_slice);
                causes.extend(ends.iter().filter_map(|at| behind(Some(at))));
            }
            Entry::GraphBegin { run } => {
                let Some(state) = self.state.runs.at(run).filter(|run| !run.open) else {
                    return causes;
                };
                let launch = self.launches.get(&run).filter(|at| !self.is_reached(**at));
                causes.extend(launch.map(|at| self.head(at.stream)));
                let earlier = self.state.graphs.at(state.graph).map(|graph| &graph.pending);
                let earlier = earlier.into_iter().flatten().take_while(|&&other| other != run);
                let ends = earlier.flat_map(|run| self.run_ends.get(run)).flatten();
                causes.extend(ends.filter_map(|at| behind(Some(at))));
            }
        }
        causes
    }

    fn causes_of_op(&self, op: &Op, any: bool, causes: &mut Vec<Node>) {
        let Some(comm) = self.state.comms.get(op.comm).filter(|comm| !comm.broken) else { return };
        let mut add = |rank: u32| {
            let message = match op.kind {
                Kind::Send => Some((false, op.rank)),
                Kind::Recv => Some((true, op.rank)),
                _ => None,
            };
            let name = Name { comm: op.comm, rank, message, sequence: op.sequence };
            match self.ops.get(&name) {
                Some(places) => {
                    let late = places.iter().find(|at| !self.is_reached(**at));
                    causes.extend(late.map(|at| self.head(at.stream)));
                }
                None => {
                    let lacks = comm.lacks(Rank::new(rank), op);
                    if lacks && !self.may_issue(op.comm, rank) {
                        causes.push(Node::Absent(op.comm, rank));
                    }
                }
            }
            any && !causes.is_empty()
        };
        if op.kind.is_point_to_point() {
            add(op.other);
        } else {
            (0..comm.ends.len() as u32).filter(|&rank| rank != op.rank).any(&mut add);
        }
    }

    /// Whether a rank's end may still be called on.
    fn may_issue(&self, comm: Key, rank: u32) -> bool {
        // What other processes do is not seen from here.
        if self.state.comms.get(comm).is_some_and(|comm| comm.is_elsewhere(rank as usize)) {
            return true;
        }
        let Some(end) = self.end(comm, rank) else { return false };
        let last = end.caller();
        let place = last.as_ref().and_then(|thread| self.find(thread));
        let called = match place.map(|index| &self.callers[index]) {
            Some(Caller { waiting: Some(_), goes_on, .. }) => *goes_on,
            Some(caller) => self.may_be_woken(caller),
            // It has ended, and somebody else has the end.
            None => !self.is_quiet(),
        };
        let device = end.info.device;
        let others = || {
            let others = self.callers.iter().enumerate();
            // One that has named no device may be at work for any.
            let may_hold =
                |devices: &BTreeSet<usize>| devices.is_empty() || devices.contains(&device);
            let mut others =
                others.filter(|(index, other)| Some(*index) != place && may_hold(&other.devices));
            others.any(|(_, other)| match other.waiting {
                Some(_) => other.goes_on,
                None => self.rest(&other.thread) != Rest::Asleep,
            })
        };
        called || others() || self.stranger_may_act()
    }

    /// Whether a thread may come to a join in which caller `index` waits.
    fn somebody_may_join(&self, index: usize) -> bool {
        let others = self.callers.iter().enumerate().filter(|(other, _)| *other != index);
        let known = others.map(|(_, other)| other).any(|other| match other.waiting {
            Some(_) => other.goes_on,
            None => self.may_be_woken(other),
        });
        // A rank that has not joined has not called, so it takes a look at all threads.
        known || self.stranger_may_act() || matches!(self.outside, Outside::Unseen)
    }

    /// Whether a thread that does not wait here acts some day.
    fn may_be_woken(&self, caller: &Caller) -> bool {
        // A wait that ends by itself is as good as somebody who wakes it.
        let someday = |other: &Caller| other.waiting.is_some_and(|waiting| waiting.has_deadline);
        self.rest(&caller.thread) != Rest::Asleep
            || !self.is_quiet()
            || self.callers.iter().any(someday)
    }

    /// Whether a thread may act that never called.
    fn stranger_may_act(&self) -> bool {
        match &self.outside {
            Outside::Nobody | Outside::Unseen => false,
            Outside::Seen(look) => {
                let able = [Rest::Awake, Rest::Dozing];
                look.all().any(|(tid, rest)| able.contains(&rest) && !threads::is_ours(tid))
            }
        }
    }

    /// Whether no thread of the process may act.
    fn is_quiet(&self) -> bool {
        let asleep = match &self.outside {
            Outside::Nobody => true,
            Outside::Seen(look) => {
                look.all().all(|(tid, rest)| rest == Rest::Asleep || threads::is_ours(tid))
            }
            Outside::Unseen => false,
        };
        asleep
            && self.callers.iter().all(|caller| match caller.waiting {
                Some(_) => !caller.goes_on,
                None => self.rest(&caller.thread) == Rest::Asleep,
            })
    }

    fn rest(&self, thread: &Thread) -> Rest {
        match &self.outside {
            Outside::Nobody => Rest::Asleep,
            Outside::Seen(look) => thread.tid().and_then(|tid| look.of(tid)).unwrap_or(Rest::Awake),
            Outside::Unseen => Rest::Awake,
        }
    }

    fn find(&self, thread: &Arc<Thread>) -> Option<usize> {
        self.callers.iter().position(|caller| Arc::ptr_eq(&caller.thread, thread))
    }

    pub(crate) fn end(&self, comm: Key, rank: u32) -> Option<&EndShared> {
        let end = self.state.comms.get(comm)?.ends.get(rank as usize)?;
        (!end.departed).then_some(&*end.shared)
    }

    /// Entries that a stream is to pass from now on.
    fn target(&self, stream: Key, target: u64) -> usize {
        let passed = self.state.streams.get(stream).map_or(0, |stream| stream.passed);
        target.saturating_sub(passed) as usize
    }

    /// Whether an entry becomes the head of its stream.
    fn is_reached(&self, place: Place) -> bool {
        self.passes[place.stream as usize] >= place.index
    }

    fn comes_to_pass(&self, place: Place) -> bool {
        self.passes[place.stream as usize] > place.index
    }

    /// The first entry of a stream that is stuck.
    fn head(&self, stream: u32) -> Node {
        Node::Head(Place { stream, index: self.passes[stream as usize] })
    }

    pub(crate) fn ops_at(&self, place: Place) -> &'a [Op] {
        let stream = self.state.streams.at(place.stream);
        let entry = stream.and_then(|stream| stream.queue.get(place.index));
        entry.map_or(&[], |entry| self.state.ops(entry))
    }

    /// The first operation of a rank that does not come to pass, and where it stands.
    pub(crate) fn first_stuck(&self, comm: Key, rank: u32) -> Option<(Place, Op)> {
        let places = self.ends.get(&(comm, rank))?;
        let stuck = places.iter().filter(|place| !self.comes_to_pass(**place));
        let ops = stuck.flat_map(|&place| self.ops_at(place).iter().map(move |op| (place, *op)));
        ops.filter(|(_, op)| op.comm == comm && op.rank == rank)
            .min_by_key(|(place, op)| (place.index, op.sequence))
    }
}

impl Caller {
    pub(crate) fn is_stuck(&self) -> bool {
        self.waiting.is_some() && !self.goes_on
    }
}

impl Name {
    fn of(op: &Op) -> Self {
        let message = op.kind.is_point_to_point().then(|| (op.kind == Kind::Send, op.other));
        Self { comm: op.comm, rank: op.rank, message, sequence: op.sequence }
    }
}

impl Sentence {
    fn meets(&self, other: &Self) -> bool {
        !(self.nodes.is_disjoint(&other.nodes)
            && self.comms.is_disjoint(&other.comms)
            && self.joins.is_disjoint(&other.joins))
    }

    fn absorb(&mut self, other: Self) {
        let Self { nodes, waits, comms, joins } = other;
        self.nodes.extend(nodes);
        self.waits.extend(waits);
        self.comms.extend(comms);
        self.joins.extend(joins);
    }
}

/// How long sleepers must have slept while others are awake.
const CALM: Duration = Duration::from_millis(200);

/// Entries of a stream that are looked at. What stands deeper counts as something that can happen; it
/// comes within sight as those before it pass.
const DEPTH: usize = 256;
