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
//!
//! The judge knows nothing but [snapshots](crate::snapshot), so that it is all the same to it in how
//! many processes the ranks are. What is not in any of them can happen.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use crate::{
    asleep::{Look, Rest},
    engine::Engine,
    op::Kind,
    scene::{In, Scene, Seat},
    snapshot::{DEPTH, End, Entry, For, Op, Snapshot, Thread, View, Wait},
    state::State,
    sync::lock,
    threads::{self, Known, Waiting, What},
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

/// What a process can say of itself.
pub(crate) struct Statement<'a> {
    pub(crate) snapshot: Snapshot,
    /// The threads that sleep and don't wait in the engine, where the system shows them.
    #[cfg_attr(
        not(target_os = "linux"),
        expect(dead_code, reason = "processes ask each other on Linux alone")
    )]
    pub(crate) quiet: Option<Look>,
    /// Whether all threads have kept still since before the snapshot.
    pub(crate) is_sure: &'a dyn Fn() -> bool,
}

/// Whose rest a snapshot relies on, by the system's numbers.
struct Relied {
    /// Threads that call on the engine.
    callers: BTreeSet<i32>,
    /// Those of them that wait in it.
    waiting: BTreeSet<i32>,
    /// Those of these of whom it does not matter whether they sleep.
    polling: BTreeSet<i32>,
}

impl Relied {
    fn of(snapshot: &Snapshot) -> Self {
        let live = || snapshot.threads.iter().filter(|thread| thread.is_live);
        let waiting = |polls: bool| {
            let waits = move |wait: &&Wait| wait.polls == polls;
            let waiting =
                live().filter(move |thread| thread.waiting.as_ref().filter(waits).is_some());
            waiting.filter_map(|thread| thread.tid).collect()
        };
        Self {
            callers: live().filter_map(|thread| thread.tid).collect(),
            waiting: waiting(false),
            polling: waiting(true),
        }
    }

    /// Threads that call on other mocks only are none of this one's.
    fn counts(&self, tid: i32) -> bool {
        self.callers.contains(&tid) || !threads::is_ours(tid)
    }

    /// Leaves out those who say nothing by being awake.
    fn of_others(&self, mut look: Look) -> Look {
        look.retain(|tid| !self.polling.contains(&tid));
        look
    }

    /// Leaves those that sleep elsewhere than in the engine.
    fn of_idle(&self, mut look: Look) -> Look {
        let waits = |tid| self.waiting.contains(&tid) || self.polling.contains(&tid);
        look.retain(|tid| self.counts(tid) && !waits(tid));
        look.retain_sleepers();
        look
    }
}

impl Engine {
    /// Looks whether anything can still happen, and tells those who wait where nothing can.
    pub(crate) fn look(&self) -> Found {
        let last = std::mem::take(&mut *lock(&self.last_look));
        let waits = self.waits();
        if waits.is_empty() {
            self.suspect(false);
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
        let snapshot = self.watch(|state| {
            let waits = self.waits_at(state);
            let same = waits.iter().any(|wait| last.contains(wait));
            *lock(&self.last_look) = waits;
            same.then(|| Snapshot::take(self, state, View::Nobody))
        });
        let Some(snapshot) = snapshot else { return Found::Progress };
        let mut scene = Scene::new([snapshot]);
        scene.job = self.job_if_all_can_be_asked();
        // As if nobody acted who does not wait here.
        if !Judge::suspicious(&scene).finds_stuck() {
            self.suspect(false);
            return Found::Slow;
        }
        if self.has_processes() { self.inquire() } else { self.judge() }
    }

    /// As seen from here somebody is stuck, unless threads act that don't wait here.
    fn judge(&self) -> Found {
        let found = self.witness(|state, statement| {
            let scene = Scene::new([statement.snapshot]);
            let mut judge = Judge::new(&scene);
            if !judge.finds_stuck() || !(statement.is_sure)() {
                return Found::Slow;
            }
            let parts = judge.sentences();
            for case in parts.iter().map(|part| Case::new(&judge, part)) {
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

    /// Looks at the threads of the process and at the state. Nothing changes in the state while `act`
    /// runs, and `is_sure` says whether nothing has changed outside.
    pub(crate) fn witness<R>(&self, act: impl FnOnce(&mut State, Statement<'_>) -> R) -> R {
        // This thread is one of them.
        let look = || Look::take(threads::is_watcher);
        let before = look();
        self.watch(|state| {
            let view = before.as_ref().map_or(View::Unseen, View::Seen);
            let snapshot = Snapshot::take(self, state, view);
            let relied_on = Relied::of(&snapshot);
            // What was seen holds only if it held all the time since before the lock was taken.
            let is_sure = || match (&before, look()) {
                (Some(before), Some(after)) => self.is_sure(&relied_on, before, after),
                (Some(_), None) => false,
                (None, _) => true,
            };
            let quiet = before.clone().map(|look| relied_on.of_idle(look));
            act(state, Statement { snapshot, quiet, is_sure: &is_sure })
        })
    }

    /// Whether the threads that sleep have really nobody to wake them.
    fn is_sure(&self, relied_on: &Relied, before: &Look, after: Look) -> bool {
        let (before, mut after) = (relied_on.of_others(before.clone()), relied_on.of_others(after));
        let is_awake = before.anybody_is_awake() || after.anybody_is_awake();
        let mut earlier = before.clone();
        earlier.retain(|tid| relied_on.counts(tid));
        after.retain(|tid| relied_on.counts(tid));
        // One that waits here may be on its way out of the lock that another one wants.
        let mut rests = relied_on.waiting.iter().filter_map(|&tid| before.of(tid));
        if rests.any(|rest| rest == Rest::Awake) || !earlier.still_holds(&after) {
            return false;
        }
        let calm = lock(&self.sleepers_seen).note(&after);
        !is_awake || calm >= CALM
    }

    fn waits(&self) -> Vec<Waited> {
        let waits = waiting(&self.threads.live(), self.threads.engine());
        let seen = |(thread, waiting): (Arc<threads::Thread>, Waiting)| Waited {
            thread: thread.number(),
            wait: waiting.number,
            passed: 0,
        };
        waits.into_iter().map(seen).collect()
    }

    fn waits_at(&self, state: &State) -> Vec<Waited> {
        let waits = waiting(&self.threads.live(), self.threads.engine());
        let seen = |(thread, waiting): (Arc<threads::Thread>, Waiting)| {
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

fn waiting(threads: &[Known], engine: u64) -> Vec<(Arc<threads::Thread>, Waiting)> {
    let waits = |known: &Known| Some((Arc::clone(&known.thread), known.thread.waiting_in(engine)?));
    threads.iter().filter_map(waits).collect()
}

/// What is known, and what of it can still happen.
pub(crate) struct Judge<'a> {
    pub(crate) scene: &'a Scene,
    /// Whether ranks of whom nothing is known may act.
    hidden_act: bool,
    /// By thread: whether its wait comes to an end.
    goes_on: Vec<bool>,
    /// By stream: how many of its entries come to pass.
    passes: Vec<usize>,
    /// Where operations stand that are issued and not done.
    ops: HashMap<Name, Vec<Place>>,
    /// By communicator and rank: where its operations stand.
    ends: BTreeMap<(u32, u32), Vec<Place>>,
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
    comm: u32,
    rank: u32,
    /// Direction and peer of a message.
    message: Option<(bool, u32)>,
    sequence: u64,
}

/// Something that is stuck, and what it is stuck at. Communicators, meetings and threads are named
/// by their place in the [`Scene`].
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Node {
    /// An end that does not issue what others wait for.
    Absent(u32, u32),
    /// The first stuck entry of a stream.
    Head(Place),
    /// A join that not all ranks come to.
    Meeting(u32),
    /// A thread that waits.
    Wait(usize),
}

/// What is stuck together, and so gets one verdict.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sentence {
    pub(crate) nodes: BTreeSet<Node>,
    /// The threads that wait.
    pub(crate) waits: BTreeSet<usize>,
    pub(crate) comms: BTreeSet<u32>,
    pub(crate) joins: BTreeSet<u32>,
}

impl<'a> Judge<'a> {
    pub(crate) fn new(scene: &'a Scene) -> Self {
        let mut judge = Self {
            scene,
            hidden_act: true,
            goes_on: vec![false; scene.threads.len()],
            passes: vec![0; scene.streams.len()],
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

    /// One that takes it that ranks of whom nothing is known do nothing more. What is not stuck then
    /// is not stuck at all.
    pub(crate) fn suspicious(scene: &'a Scene) -> Self {
        Self { hidden_act: false, ..Self::new(scene) }
    }

    fn take_stock(&mut self) {
        for (stream, queue) in (0..).zip(self.scene.streams.iter().map(|stream| &stream.queue)) {
            for (index, entry) in queue.iter().enumerate() {
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
                for op in self.scene.ops(entry) {
                    let Some(comm) = op.comm else { continue };
                    self.ops.entry(Name::of(comm, op)).or_default().push(place);
                    self.ends.entry((comm, op.rank)).or_default().push(place);
                }
            }
        }
    }

    /// Finds what can still happen. Whether somebody waits for something that cannot.
    pub(crate) fn finds_stuck(&mut self) -> bool {
        loop {
            let mut changed = false;
            for (stream, queue) in self.scene.streams.iter().map(|it| &it.queue).enumerate() {
                let mut index = self.passes[stream];
                while index < queue.len() {
                    let place = Place { stream: stream as u32, index };
                    if !self.causes_of_entry(place, true).is_empty() {
                        break;
                    }
                    index += 1;
                    changed = true;
                    self.passes[stream] = index;
                }
            }
            for index in 0..self.goes_on.len() {
                if self.is_stuck(index) && self.causes_of_wait(index).is_empty() {
                    self.goes_on[index] = true;
                    changed = true;
                }
            }
            if !changed {
                break;
            }
        }
        (0..self.goes_on.len()).any(|thread| self.is_stuck(thread))
    }

    /// What is stuck, in parts that have nothing to do with each other.
    pub(crate) fn sentences(&self) -> Vec<Sentence> {
        let mut parts: Vec<Sentence> = Vec::new();
        for thread in (0..self.goes_on.len()).filter(|&thread| self.is_stuck(thread)) {
            let mut part = self.reach(thread);
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
    fn reach(&self, thread: usize) -> Sentence {
        let mut part = Sentence::default();
        let mut open = vec![Node::Wait(thread)];
        if let Some(For::Stream { stream, entries }) = self.waits_for(thread) {
            // Also what stands behind the first one: it would be the next to be stuck at.
            let queue = &self.scene.streams[stream as usize].queue;
            let behind = queue.iter().take(entries).skip(self.passes[stream as usize]);
            part.comms
                .extend(behind.flat_map(|entry| self.scene.ops(entry)).filter_map(|op| op.comm));
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
                    part.comms.extend(self.ops_at(place).iter().filter_map(|op| op.comm));
                }
                Node::Meeting(meeting) => {
                    part.joins.insert(meeting);
                }
                Node::Wait(thread) => {
                    part.waits.insert(thread);
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
                let caller = self.end(comm, rank).and_then(|end| self.live_caller(end));
                let waiting = caller.filter(|&thread| self.waits_for(thread).is_some());
                waiting.map(Node::Wait).into_iter().collect()
            }
            Node::Head(place) => self.causes_of_entry(place, false),
            Node::Meeting(_) => Vec::new(),
            Node::Wait(thread) => self.causes_of_wait(thread),
        }
    }

    /// What keeps a wait from ending.
    fn causes_of_wait(&self, thread: usize) -> Vec<Node> {
        let Some(what) = self.waits_for(thread) else { return Vec::new() };
        match what {
            For::Flush { comm, rank, .. } => {
                let places = self.ends.get(&(comm, rank)).map_or(&[][..], Vec::as_slice);
                let stuck = places.iter().find(|place| !self.comes_to_pass(**place));
                stuck.map(|place| self.head(place.stream)).into_iter().collect()
            }
            For::GrowId { comm, rank } => {
                // Any of the others will do.
                let size = self.scene.comms[comm as usize].seats.len() as u32;
                let others = (0..size).filter(|&other| other != rank);
                if others.clone().any(|other| self.may_issue(comm, other)) {
                    return Vec::new();
                }
                others.map(|other| Node::Absent(comm, other)).collect()
            }
            For::Join { meeting, .. } => {
                let comes = self.somebody_may_join(meeting, self.scene.threads[thread].process);
                if comes { Vec::new() } else { vec![Node::Meeting(meeting)] }
            }
            For::Nothing => Vec::new(),
            For::Shrink { comm, meeting } | For::Split { comm, meeting } => {
                let meeting = &self.scene.meetings[meeting as usize];
                // It ends in each process for itself: for all who came, or those who are not told
                // would wait for the others in vain, and these for them in the next.
                let is_hidden = |&rank: &u32| {
                    let seat = self.scene.comms[comm as usize].seats.get(rank as usize);
                    matches!(seat, Some(Seat::Hidden))
                };
                if self.hidden_act && meeting.came.iter().any(is_hidden) {
                    return Vec::new();
                }
                let missing = meeting.missing.iter();
                let never = missing.filter(|&&rank| !self.may_issue(comm, rank));
                never.map(|&rank| Node::Absent(comm, rank)).collect()
            }
            For::Stream { stream, entries } => {
                // What stands deeper than was looked at is given the benefit of the doubt.
                let passes = self.passes[stream as usize];
                let comes = passes >= entries.min(DEPTH);
                if comes { Vec::new() } else { vec![Node::Head(Place { stream, index: passes })] }
            }
        }
    }

    /// What keeps an entry from coming to pass, given that those before it do: all of it, or `any`.
    fn causes_of_entry(&self, place: Place, any: bool) -> Vec<Node> {
        let Some(entry) = self.entry(place) else { return Vec::new() };
        let behind = |at: Option<&Place>| {
            at.filter(|at| !self.comes_to_pass(**at)).map(|at| self.head(at.stream))
        };
        let mut causes = Vec::new();
        match *entry {
            Entry::GraphEnd { .. } | Entry::Other(_) | Entry::Record { .. } => {}
            Entry::Op(op) => self.causes_of_op(&op, any, &mut causes),
            Entry::Unit { unit } => {
                let places = self.units.get(&unit).map_or(&[][..], Vec::as_slice);
                let late = places.iter().filter(|at| !self.is_reached(**at));
                causes.extend(late.map(|at| self.head(at.stream)));
                for op in self.scene.ops(entry) {
                    if any && !causes.is_empty() {
                        break;
                    }
                    self.causes_of_op(op, any, &mut causes);
                }
            }
            Entry::Wait { signal, is_reached } => {
                causes.extend(behind(self.records.get(&signal)).filter(|_| !is_reached));
            }
            Entry::GraphRun { run } => {
                let ends = self.run_ends.get(&run).map_or(&[][..], Vec::as_slice);
                causes.extend(ends.iter().filter_map(|at| behind(Some(at))));
            }
            Entry::GraphBegin { run } => {
                if self.scene.runs[run as usize].is_open {
                    return causes;
                }
                let launch = self.launches.get(&run).filter(|at| !self.is_reached(**at));
                causes.extend(launch.map(|at| self.head(at.stream)));
                let before = |run: u32| self.scene.runs[run as usize].before;
                let mut earlier: Vec<_> =
                    std::iter::successors(before(run), |&run| before(run)).collect();
                earlier.reverse();
                let ends = earlier.iter().flat_map(|run| self.run_ends.get(run)).flatten();
                causes.extend(ends.filter_map(|at| behind(Some(at))));
            }
        }
        causes
    }

    fn causes_of_op(&self, op: &Op, any: bool, causes: &mut Vec<Node>) {
        let Some(comm) = op.comm else { return };
        if self.scene.comms[comm as usize].is_broken {
            return;
        }
        for rank in self.partners(op) {
            match self.side_of(op, comm, rank) {
                Side::Issued(places) => {
                    let late = places.iter().find(|at| !self.is_reached(**at));
                    causes.extend(late.map(|at| self.head(at.stream)));
                }
                Side::Lacking if !self.may_issue(comm, rank) => {
                    causes.push(Node::Absent(comm, rank));
                }
                Side::Lacking | Side::Out => {}
            }
            if any && !causes.is_empty() {
                return;
            }
        }
    }

    /// The ranks without which an operation cannot be done.
    pub(crate) fn partners(&self, op: &Op) -> impl Iterator<Item = u32> + use<> {
        let size = op.comm.map_or(0, |comm| self.scene.comms[comm as usize].seats.len() as u32);
        let ranks = match op.other {
            Some(peer) if op.kind.is_point_to_point() => peer..(peer + 1).min(size),
            _ => 0..size,
        };
        let (own, is_message) = (op.rank, op.kind.is_point_to_point());
        ranks.filter(move |&rank| is_message || rank != own)
    }

    /// How far `rank` is with its side of an operation.
    fn side_of(&self, op: &Op, comm: u32, rank: u32) -> Side<'_> {
        let message = match op.kind {
            Kind::Send => Some((false, op.rank)),
            Kind::Recv => Some((true, op.rank)),
            _ => None,
        };
        let name = Name { comm, rank, message, sequence: op.sequence };
        if let Some(places) = self.ops.get(&name) {
            return Side::Issued(places);
        }
        let lacks = match &self.scene.comms[comm as usize].seats[rank as usize] {
            Seat::Empty | Seat::Hidden => true,
            Seat::Taken(end) => end.lacks(op),
        };
        if lacks { Side::Lacking } else { Side::Out }
    }

    /// Whether `rank`'s side of an operation has not come to where they meet.
    pub(crate) fn is_missing(&self, op: &Op, rank: u32) -> bool {
        let Some(comm) = op.comm else { return false };
        match self.side_of(op, comm, rank) {
            Side::Issued(places) => places.iter().any(|&place| !self.has_arrived(place)),
            Side::Lacking => true,
            Side::Out => false,
        }
    }

    /// Whether an entry has been started, and waits for its peers if it has any.
    pub(crate) fn has_arrived(&self, place: Place) -> bool {
        let is_started = self.scene.streams[place.stream as usize].is_started;
        let is_head = place.index == 0 && is_started;
        is_head
            && match self.entry(place) {
                Some(Entry::Unit { unit }) => self.scene.units[*unit as usize].has_arrived,
                _ => true,
            }
    }

    /// Whether a rank's end may still be called on.
    fn may_issue(&self, comm: u32, rank: u32) -> bool {
        let end = match self.scene.comms[comm as usize].seats.get(rank as usize) {
            Some(Seat::Empty) => return false,
            Some(Seat::Hidden) | None => return self.hidden_act,
            Some(Seat::Taken(end)) => end,
        };
        let last = self.live_caller(end);
        let called = match last {
            Some(thread) if self.waits_for(thread).is_some() => self.goes_on[thread],
            Some(thread) => self.may_be_woken(thread),
            // It has ended, and somebody else has the end.
            None => !self.is_quiet(end.process),
        };
        let others = || {
            // One that has named no device may be at work for any.
            let may_hold =
                |devices: &BTreeSet<usize>| devices.is_empty() || devices.contains(&end.device);
            self.callers(end.process)
                .filter(|&(index, other)| Some(index) != last && may_hold(&other.devices))
                .any(|(index, other)| match other.waiting {
                    Some(_) => self.goes_on[index],
                    None => other.rest != Rest::Asleep,
                })
        };
        called || others() || self.scene.outside[end.process].acts
    }

    /// Whether a rank may come to a join in which somebody of a process waits.
    fn somebody_may_join(&self, meeting: u32, process: usize) -> bool {
        let meeting = &self.scene.meetings[meeting as usize];
        if !meeting.is_across() {
            return self.may_join_from(process);
        }
        if meeting.missing.is_empty() {
            return true;
        }
        let job = self.scene.job.as_ref().map(|job| job.number);
        let all_are_known = job.is_some() && self.scene.jobs[process] == job;
        !all_are_known || (0..self.scene.outside.len()).any(|other| self.may_join_from(other))
    }

    /// Whether a rank may come to a join from a process.
    fn may_join_from(&self, process: usize) -> bool {
        if !self.callers(process).any(|(_, thread)| thread.waiting.is_some()) {
            return !self.is_quiet(process);
        }
        let known = self.callers(process).any(|(index, thread)| match thread.waiting {
            Some(_) => self.goes_on[index],
            None => self.may_be_woken(index),
        });
        // A rank that has not joined has not called, so it takes a look at all threads.
        let outside = self.scene.outside[process];
        known || outside.acts || outside.is_unseen
    }

    /// Whether a thread that does not wait here acts some day.
    fn may_be_woken(&self, thread: usize) -> bool {
        let In { process, .. } = self.scene.threads[thread];
        // A wait that ends by itself is as good as somebody who wakes it.
        let someday = |other: &Thread| other.waiting.as_ref().is_some_and(|wait| wait.has_deadline);
        self.scene.threads[thread].rest != Rest::Asleep
            || !self.is_quiet(process)
            || self.callers(process).any(|(_, other)| someday(other))
    }

    /// Whether no thread of a process may act.
    fn is_quiet(&self, process: usize) -> bool {
        self.scene.outside[process].sleeps
            && self.callers(process).all(|(index, caller)| match caller.waiting {
                Some(_) => !self.goes_on[index],
                None => caller.rest == Rest::Asleep,
            })
    }

    /// The threads of a process that have called and may act.
    fn callers(&self, process: usize) -> impl Iterator<Item = (usize, &Thread)> {
        let threads = self.scene.threads.iter().enumerate();
        let live = threads.filter(move |(_, thread)| thread.is_live && thread.process == process);
        live.map(|(index, thread)| (index, &**thread))
    }

    /// The thread that called on an end last, unless it has ended.
    fn live_caller(&self, end: &End) -> Option<usize> {
        let caller = end.caller.map(|thread| thread as usize);
        caller.filter(|&thread| self.scene.threads[thread].is_live)
    }

    fn waits_for(&self, thread: usize) -> Option<For> {
        self.scene.threads[thread].waiting.as_ref().map(|wait| wait.what)
    }

    fn is_stuck(&self, thread: usize) -> bool {
        let it = &self.scene.threads[thread];
        it.is_live && it.waiting.is_some() && !self.goes_on[thread]
    }

    pub(crate) fn end(&self, comm: u32, rank: u32) -> Option<&'a In<End>> {
        match self.scene.comms[comm as usize].seats.get(rank as usize)? {
            Seat::Taken(end) => Some(end),
            Seat::Empty | Seat::Hidden => None,
        }
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

    pub(crate) fn entry(&self, place: Place) -> Option<&'a Entry> {
        self.scene.streams[place.stream as usize].queue.get(place.index)
    }

    pub(crate) fn ops_at(&self, place: Place) -> &'a [Op] {
        self.entry(place).map_or(&[], |entry| self.scene.ops(entry))
    }

    /// The first operation of a rank that does not come to pass, and where it stands.
    pub(crate) fn first_stuck(&self, comm: u32, rank: u32) -> Option<(Place, Op)> {
        let places = self.ends.get(&(comm, rank))?;
        let stuck = places.iter().filter(|place| !self.comes_to_pass(**place));
        let ops = stuck.flat_map(|&place| self.ops_at(place).iter().map(move |op| (place, *op)));
        ops.filter(|(_, op)| op.comm == Some(comm) && op.rank == rank)
            .min_by_key(|(place, op)| (place.index, op.sequence))
    }
}

/// How far a rank is with its side of an operation.
enum Side<'a> {
    /// It stands here.
    Issued(&'a [Place]),
    Lacking,
    /// Done, or out of sight.
    Out,
}

impl Name {
    fn of(comm: u32, op: &Op) -> Self {
        let message = op.other.filter(|_| op.kind.is_point_to_point());
        let message = message.map(|peer| (op.kind == Kind::Send, peer));
        Self { comm, rank: op.rank, message, sequence: op.sequence }
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
