//! What one process knows of who waits for what, as plain data: all that the judge and its reports
//! need.
//!
//! Taking one costs a walk through all queues, so that it is done only where somebody has waited for
//! a while and has not come on. What refers to something else does so by its position here; so a
//! snapshot means the same in another process, and several can be laid side by side
//! ([`Scene`](crate::scene::Scene)).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    sync::Arc,
};

use collectives_core::{DType, Rank, RawStream};
use serde::{Deserialize, Serialize};

use crate::{
    asleep::{Look, Rest},
    comm_state::EndShared,
    engine::Engine,
    op::{Kind, Reduction},
    pending,
    site::Site,
    slab::Key,
    state::{COUNT, State},
    stream,
    threads::{self, Known, Waiting, What},
    verdict::wait_of,
};

/// One process: its part of everything.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Snapshot {
    pub(crate) outside: Outside,
    /// The job that its process was started in, where none but the threads here can take part in it
    /// for the process.
    pub(crate) job: Option<u128>,
    pub(crate) comms: Vec<Comm>,
    pub(crate) streams: Vec<Stream>,
    /// Those that have called and not ended come first.
    pub(crate) threads: Vec<Thread>,
    pub(crate) meetings: Vec<Meeting>,
    pub(crate) units: Vec<Unit>,
    pub(crate) runs: Vec<Run>,
    pub(crate) sites: Vec<Site>,
    /// Number of recordings that entries refer to.
    pub(crate) signals: u32,
}

/// What the threads of a process do that have never called on its mock.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Outside {
    /// One of them may act.
    pub(crate) acts: bool,
    /// All of them sleep until another thread of the process wakes them.
    pub(crate) sleeps: bool,
    /// Some may be there that nobody sees.
    pub(crate) is_unseen: bool,
}

/// A communicator, and the ends of it that are in the process.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Comm {
    pub(crate) key: Key,
    /// What all processes know it by.
    pub(crate) token: Option<u128>,
    pub(crate) title: String,
    pub(crate) size: u32,
    pub(crate) is_broken: bool,
    /// Ranks that have left.
    pub(crate) departed: Vec<u32>,
    pub(crate) ends: Vec<End>,
}

/// One rank's end of a communicator.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct End {
    pub(crate) rank: u32,
    pub(crate) device: usize,
    /// The thread that called on it last.
    pub(crate) caller: Option<u32>,
    /// Collectives issued.
    pub(crate) collectives: u64,
    /// Sends and receives issued, by peer, in order of the peer; zeros are left out.
    pub(crate) sent: Vec<(u32, u64)>,
    pub(crate) received: Vec<(u32, u64)>,
}

/// A stream, and what stands in it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Stream {
    pub(crate) key: Key,
    pub(crate) device: usize,
    pub(crate) handle: usize,
    pub(crate) is_branch: bool,
    /// Number of entries passed.
    pub(crate) passed: u64,
    /// Whether the head has been started.
    pub(crate) is_started: bool,
    /// What keeps the head from being started.
    pub(crate) held_by: Option<String>,
    /// The first entries: what stands deeper counts as something that can happen. It comes within
    /// sight as those before it pass.
    pub(crate) queue: Vec<Entry>,
}

/// An entry of a stream.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) enum Entry {
    /// The start of a run, in a branch of its graph.
    GraphBegin { run: u32 },
    /// The end of a run, in a branch of its graph.
    GraphEnd { run: u32 },
    /// A run, in the stream that it was launched on.
    GraphRun { run: u32 },
    /// One operation.
    Op(Op),
    /// Work that waits for nothing.
    Other(Work),
    /// An event to reach.
    Record { signal: u32 },
    /// Several operations that are one.
    Unit { unit: u32 },
    /// An event to wait for.
    Wait { signal: u32, is_reached: bool },
}

/// Work that waits for nothing.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) enum Work {
    Call,
    Copy,
    Fill,
    Free,
}

/// One rank's part of an operation.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Op {
    /// `None` where it is gone.
    pub(crate) comm: Option<u32>,
    pub(crate) rank: u32,
    /// Root or peer, where the kind has one.
    pub(crate) other: Option<u32>,
    pub(crate) kind: Kind,
    pub(crate) dtype: DType,
    pub(crate) reduction: Reduction,
    pub(crate) count: usize,
    pub(crate) sequence: u64,
    pub(crate) site: u32,
}

/// A group that starts and ends as one.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Unit {
    pub(crate) ops: Vec<Op>,
    /// Whether it heads all streams that it stands in.
    pub(crate) has_arrived: bool,
}

/// A launch of a graph.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Run {
    pub(crate) is_open: bool,
    /// The run of the same graph that must end before.
    pub(crate) before: Option<u32>,
}

/// A thread that has called on the engine.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Thread {
    pub(crate) number: u64,
    pub(crate) name: String,
    /// The system's number.
    pub(crate) tid: Option<i32>,
    /// Whether it may act at all: it has not ended, and does not only watch over others.
    pub(crate) is_live: bool,
    pub(crate) has_ended: bool,
    /// On which it has called.
    pub(crate) devices: BTreeSet<usize>,
    pub(crate) waiting: Option<Wait>,
    /// How it rests, where it does not wait.
    pub(crate) rest: Rest,
}

/// A wait that a thread has gone into.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Wait {
    /// Tells the waits of a thread apart.
    pub(crate) number: u64,
    pub(crate) what: For,
    /// The same for people: what comes behind "waits".
    pub(crate) text: String,
    /// Whether it ends by itself some day.
    pub(crate) has_deadline: bool,
    /// Whether the thread looks for itself now and then, so that its sleep says nothing.
    pub(crate) polls: bool,
}

/// What a thread waits for.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) enum For {
    /// That nothing of a rank is outstanding.
    Flush { comm: u32, rank: u32, is_drop: bool },
    /// That a member makes an id with which the communicator grows.
    GrowId { comm: u32, rank: u32 },
    /// That all ranks join.
    Join { meeting: u32, rank: u32 },
    /// Nothing that could fail to come.
    Nothing,
    /// That all ranks that stay come to a shrink of the communicator.
    Shrink { comm: u32, meeting: u32 },
    /// That all ranks come to a split of the communicator.
    Split { comm: u32, meeting: u32 },
    /// That a stream has passed so many of its entries.
    Stream { stream: u32, entries: usize },
}

/// Where ranks meet to make a communicator, while some are missing, as far as the process knows.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Meeting {
    pub(crate) place: Place,
    /// Those that came here last, of joins under one id, have at most this number.
    pub(crate) visits: u64,
    /// Of a join across processes, what all of them know it by. Then those are missing that are not in
    /// this process. Who misses at other meetings is the same for all processes.
    pub(crate) token: Option<u128>,
    /// The name of the communicator to be.
    pub(crate) name: Option<String>,
    pub(crate) size: u32,
    pub(crate) missing: Vec<u32>,
    /// Of a shrink, in any process: who has come. It ends in each process for itself.
    pub(crate) came: Vec<u32>,
}

/// Which meeting it is, in its process.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub(crate) enum Place {
    Join { id: u64 },
    Shrink { comm: Key, number: u64 },
    Split { comm: Key, round: u64 },
}

/// What is known of threads that have never called.
#[derive(Clone, Copy)]
pub(crate) enum View<'a> {
    /// Assumed: none of them acts, and neither does one that has called and does not wait.
    Nobody,
    /// This was seen of them.
    Seen(&'a Look),
    /// The system doesn't show it.
    Unseen,
}

impl Snapshot {
    /// Whether all that refers to something refers to what is there. One that comes from another
    /// process may be anything, and is looked at only where this holds.
    #[cfg_attr(
        not(target_os = "linux"),
        expect(dead_code, reason = "processes ask each other on Linux alone")
    )]
    pub(crate) fn is_sound(&self) -> bool {
        let Self { comms, streams, threads, meetings, units, runs, sites, signals, .. } = self;
        let within = |place: u32, count: usize| (place as usize) < count;
        let is_op = |op: &Op| {
            let comm = op.comm.is_none_or(|comm| within(comm, comms.len()));
            comm && within(op.site, sites.len())
        };
        let is_entry = |entry: &Entry| match entry {
            Entry::GraphBegin { run } | Entry::GraphEnd { run } | Entry::GraphRun { run } => {
                within(*run, runs.len())
            }
            Entry::Op(op) => is_op(op),
            Entry::Other(_) => true,
            Entry::Record { signal } | Entry::Wait { signal, .. } => signal < signals,
            Entry::Unit { unit } => within(*unit, units.len()),
        };
        let is_comm = |comm: &Comm| {
            let ranks = comm.departed.iter().chain(comm.ends.iter().map(|end| &end.rank));
            let callers = comm.ends.iter().filter_map(|end| end.caller);
            comm.size <= MOST_RANKS
                && ranks.into_iter().all(|rank| rank < &comm.size)
                && callers.into_iter().all(|thread| within(thread, threads.len()))
        };
        let is_meeting = |meeting: &Meeting| {
            let mut ranks = meeting.missing.iter().chain(&meeting.came);
            meeting.size <= MOST_RANKS && ranks.all(|rank| rank < &meeting.size)
        };
        let of_comm =
            |comm: u32, rank: u32| comms.get(comm as usize).is_some_and(|comm| rank < comm.size);
        let is_wait = |wait: &Wait| match wait.what {
            For::Flush { comm, rank, .. } | For::GrowId { comm, rank } => of_comm(comm, rank),
            For::Join { meeting, .. } => within(meeting, meetings.len()),
            For::Nothing => true,
            For::Shrink { comm, meeting } | For::Split { comm, meeting } => {
                let meeting = meetings.get(meeting as usize);
                meeting.is_some_and(|meeting| of_comm(comm, meeting.size.saturating_sub(1)))
            }
            For::Stream { stream, .. } => within(stream, streams.len()),
        };
        let is_run = |(place, run): (usize, &Run)| {
            // So no run comes before itself.
            run.before.is_none_or(|before| within(before, place))
        };
        let entries: usize = streams.iter().map(|stream| stream.queue.len()).sum();
        *signals as usize <= entries
            && comms.iter().all(is_comm)
            && streams.iter().all(|stream| stream.queue.iter().all(is_entry))
            && threads.iter().filter_map(|thread| thread.waiting.as_ref()).all(is_wait)
            && meetings.iter().all(is_meeting)
            && units.iter().all(|unit| unit.ops.iter().all(is_op))
            && runs.iter().enumerate().all(is_run)
    }

    /// Takes down what is needed of an engine, whose state is locked.
    pub(crate) fn take(engine: &Engine, state: &State, view: View<'_>) -> Self {
        let mut camera = Camera::new(engine, state, view);
        camera.take_threads();
        camera.take_comms();
        camera.take_streams();
        camera.take_waits();
        camera.snapshot
    }
}

/// Takes a snapshot.
struct Camera<'a> {
    engine: &'a Engine,
    state: &'a State,
    view: View<'a>,
    snapshot: Snapshot,
    /// Where things have come to stand: by place in the engine.
    comms: HashMap<Key, u32>,
    streams: HashMap<u32, u32>,
    signals: HashMap<u32, u32>,
    units: HashMap<u32, u32>,
    runs: HashMap<u32, u32>,
    sites: HashMap<Site, u32>,
    /// What the threads wait for.
    waiting: Vec<Option<Waiting>>,
}

impl<'a> Camera<'a> {
    fn new(engine: &'a Engine, state: &'a State, view: View<'a>) -> Self {
        Self {
            engine,
            state,
            view,
            snapshot: Snapshot {
                outside: view.outside(),
                job: engine.process.as_ref().and_then(|process| process.job()),
                ..Snapshot::default()
            },
            comms: HashMap::new(),
            streams: HashMap::new(),
            signals: HashMap::new(),
            units: HashMap::new(),
            runs: HashMap::new(),
            sites: HashMap::new(),
            waiting: Vec::new(),
        }
    }

    fn take_threads(&mut self) {
        for Known { thread, devices } in self.engine.threads.live() {
            self.take_thread(&thread, devices, true);
        }
    }

    fn take_thread(&mut self, thread: &threads::Thread, devices: BTreeSet<usize>, is_live: bool) {
        self.waiting.push(thread.waiting_in(self.engine.threads.engine()));
        self.snapshot.threads.push(Thread {
            number: thread.number(),
            name: thread.name().to_owned(),
            tid: thread.tid(),
            is_live,
            has_ended: thread.has_ended(),
            devices,
            waiting: None,
            rest: self.view.rest(thread.tid()),
        });
    }

    fn take_comms(&mut self) {
        for (index, comm) in self.state.comms.iter() {
            let key = comm.ends[0].shared.comm;
            debug_assert_eq!(key.index, index);
            let (mut departed, mut ends) = (Vec::new(), Vec::new());
            for (rank, end) in (0..).zip(&comm.ends) {
                if end.departed {
                    departed.push(rank);
                } else if !comm.is_elsewhere(rank as usize) {
                    ends.push(self.end(rank, &end.shared));
                }
            }
            let joint = comm.across.as_ref().map(|across| &across.joint);
            self.comms.insert(key, self.snapshot.comms.len() as u32);
            self.snapshot.comms.push(Comm {
                key,
                token: joint.map(|joint| u128::from_le_bytes(joint.token)),
                title: comm.title(),
                size: comm.ends.len() as u32,
                is_broken: comm.broken,
                departed,
                ends,
            });
        }
    }

    fn end(&mut self, rank: u32, end: &EndShared) -> End {
        let issued = |counters: &[std::sync::atomic::AtomicU64]| {
            let counters = (0..).zip(counters).map(|(peer, counter)| (peer, counter.load(COUNT)));
            counters.filter(|&(_, issued)| issued > 0).collect()
        };
        End {
            rank,
            device: end.info.device,
            caller: end.caller().map(|thread| self.caller(&thread)),
            collectives: end.sequence.load(COUNT),
            sent: issued(&end.sent),
            received: issued(&end.received),
        }
    }

    /// Where a thread stands that has called on an end.
    fn caller(&mut self, thread: &Arc<threads::Thread>) -> u32 {
        let number = thread.number();
        let known = self.snapshot.threads.iter().position(|known| known.number == number);
        let place = known.unwrap_or_else(|| {
            self.take_thread(thread, BTreeSet::new(), false);
            self.snapshot.threads.len() - 1
        });
        place as u32
    }

    fn take_streams(&mut self) {
        let awaited: BTreeSet<u32> = self
            .waiting
            .iter()
            .filter_map(|waiting| match waiting.as_ref()?.what {
                What::Stream { stream, .. } => Some(stream.index),
                _ => None,
            })
            .collect();
        for (index, stream) in self.state.streams.iter() {
            if stream.queue.is_empty() && !awaited.contains(&index) {
                continue;
            }
            let queue = stream.queue.iter().take(DEPTH).map(|entry| self.entry(entry)).collect();
            self.streams.insert(index, self.snapshot.streams.len() as u32);
            self.snapshot.streams.push(Stream {
                key: stream.shared.key,
                device: stream.shared.device,
                handle: stream.shared.raw.bits(),
                is_branch: stream.is_branch,
                passed: stream.passed,
                is_started: stream.started,
                held_by: self.state.held_by(index),
                queue,
            });
        }
    }

    fn entry(&mut self, entry: &stream::Entry) -> Entry {
        match *entry {
            stream::Entry::Call(_) => Entry::Other(Work::Call),
            stream::Entry::Copy { .. } => Entry::Other(Work::Copy),
            stream::Entry::Fill { .. } => Entry::Other(Work::Fill),
            stream::Entry::Free { .. } => Entry::Other(Work::Free),
            stream::Entry::GraphBegin { run } => Entry::GraphBegin { run: self.run(run) },
            stream::Entry::GraphEnd { run } => Entry::GraphEnd { run: self.run(run) },
            stream::Entry::GraphRun { run } => Entry::GraphRun { run: self.run(run) },
            stream::Entry::Op(op) => Entry::Op(self.op(&op)),
            stream::Entry::Record { signal } => Entry::Record { signal: self.signal(signal) },
            stream::Entry::Unit { unit } => Entry::Unit { unit: self.unit(entry, unit) },
            stream::Entry::Wait { signal } => Entry::Wait {
                is_reached: self.state.signals.at(signal).is_none_or(|signal| signal.reached),
                signal: self.signal(signal),
            },
        }
    }

    fn signal(&mut self, signal: u32) -> u32 {
        let next = self.signals.len() as u32;
        let place = *self.signals.entry(signal).or_insert(next);
        self.snapshot.signals = self.signals.len() as u32;
        place
    }

    fn unit(&mut self, entry: &stream::Entry, unit: u32) -> u32 {
        if let Some(&place) = self.units.get(&unit) {
            return place;
        }
        let ops = self.state.ops(entry).iter().map(|op| self.op(op)).collect();
        let place = self.snapshot.units.len() as u32;
        self.snapshot.units.push(Unit { ops, has_arrived: self.state.has_arrived(entry) });
        self.units.insert(unit, place);
        place
    }

    fn run(&mut self, run: u32) -> u32 {
        if !self.runs.contains_key(&run) {
            let graph = self.state.runs.at(run).and_then(|run| self.state.graphs.at(run.graph));
            let mut before = None;
            for &pending in graph.into_iter().flat_map(|graph| &graph.pending) {
                before = Some(self.add_run(pending, before));
            }
        }
        match self.runs.get(&run) {
            Some(&place) => place,
            None => self.add_run(run, None),
        }
    }

    fn add_run(&mut self, run: u32, before: Option<u32>) -> u32 {
        let place = self.snapshot.runs.len() as u32;
        let is_open = self.state.runs.at(run).is_none_or(|run| run.open);
        self.snapshot.runs.push(Run { is_open, before });
        self.runs.insert(run, place);
        place
    }

    fn op(&mut self, op: &crate::op::Op) -> Op {
        let next = self.sites.len() as u32;
        let site = *self.sites.entry(op.site).or_insert_with(|| {
            self.snapshot.sites.push(op.site);
            next
        });
        Op {
            comm: self.comms.get(&op.comm).copied(),
            rank: op.rank,
            other: op.other().map(Rank::get),
            kind: op.kind,
            dtype: op.dtype,
            reduction: op.reduction,
            count: op.count,
            sequence: op.sequence,
            site,
        }
    }

    fn take_waits(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        let meetings: BTreeMap<Place, Meeting> = waiting
            .iter()
            .filter_map(|waiting| self.meeting(waiting.as_ref()?.what))
            // Also of ranks that have come and don't wait.
            .chain(self.engine.meetings.across.open())
            .map(|meeting| (meeting.place, meeting))
            .collect();
        let places: HashMap<_, _> = meetings.keys().copied().zip(0..).collect();
        self.snapshot.meetings = meetings.into_values().collect();
        for (index, waiting) in waiting.into_iter().enumerate() {
            self.snapshot.threads[index].waiting = waiting.map(|waiting| Wait {
                number: waiting.number,
                what: self.what(waiting.what, &places).unwrap_or(For::Nothing),
                text: wait_of(self.state, waiting.what),
                has_deadline: waiting.has_deadline,
                polls: self.engine.has_processes()
                    && !matches!(waiting.what, What::Flush { .. } | What::Stream { .. }),
            });
        }
    }

    /// Where somebody waits for ranks that can still come.
    fn meeting(&self, what: What) -> Option<Meeting> {
        let place = Place::of(what)?;
        Some(match place {
            Place::Join { id } => {
                let gathered = self.engine.meetings.gathered(id)?;
                let (size, came) = (gathered.came.len() as u32, gathered.came);
                let missing = (0..).zip(came).filter(|(_, came)| !came);
                let missing = missing.map(|(rank, _)| rank).collect();
                Meeting {
                    place,
                    visits: 0,
                    token: None,
                    name: gathered.name,
                    size,
                    missing,
                    came: Vec::new(),
                }
            }
            Place::Shrink { comm: key, number } => {
                // The communicator may be broken: that is what a shrink is for.
                let comm = self.state.comms.get(key)?;
                let (missing, came) = match (&comm.across, what) {
                    (Some(across), What::Shrink { rank, .. }) => {
                        across.joint.missing_of_shrink(rank, number)?
                    }
                    _ => {
                        let missing = comm.meeting.lifecycle.missing(number)?;
                        (missing.into_iter().map(Rank::get).collect(), Vec::new())
                    }
                };
                Meeting {
                    place,
                    visits: 0,
                    token: None,
                    name: None,
                    size: comm.ends.len() as u32,
                    missing,
                    came,
                }
            }
            Place::Split { comm: key, round } => {
                let comm = self.state.comms.get(key).filter(|comm| !comm.broken)?;
                let missing = match &comm.across {
                    Some(across) => across.joint.missing(round)?,
                    None => comm.meeting.missing(round)?,
                };
                if missing.iter().any(|&rank| comm.ends[rank as usize].departed) {
                    return None;
                }
                Meeting {
                    place,
                    visits: 0,
                    token: None,
                    name: None,
                    size: comm.ends.len() as u32,
                    missing,
                    came: Vec::new(),
                }
            }
        })
    }

    /// `None` for what is over.
    fn what(&self, what: What, places: &HashMap<Place, u32>) -> Option<For> {
        let comm = |key: Key| self.comms.get(&key).copied();
        let meeting = || places.get(&Place::of(what)?).copied();
        Some(match what {
            // It ends, or an abort or a deadline does.
            What::Fault { .. } => For::Nothing,
            What::Flush { comm: key, rank, is_drop } => {
                For::Flush { comm: comm(key)?, rank, is_drop }
            }
            What::GrowId { comm: key, rank } => {
                let comm = comm(key)?;
                let known = self.state.comms.get(key).filter(|comm| !comm.broken)?;
                let lacks = match &known.across {
                    Some(across) => across.joint.lacks_grow_id(rank),
                    None => known.meeting.lifecycle.lacks_grow_id(Rank::new(rank)),
                };
                if lacks { For::GrowId { comm, rank } } else { For::Nothing }
            }
            What::Join { rank, .. } => For::Join { meeting: meeting()?, rank },
            What::Shrink { comm: key, .. } => For::Shrink { comm: comm(key)?, meeting: meeting()? },
            What::Split { comm: key, .. } => For::Split { comm: comm(key)?, meeting: meeting()? },
            What::Stream { stream, target } => {
                let passed = self.state.streams.get(stream)?.passed;
                let entries = target.saturating_sub(passed).min(DEPTH as u64) as usize;
                For::Stream { stream: *self.streams.get(&stream.index)?, entries }
            }
        })
    }
}

impl Place {
    fn of(what: What) -> Option<Self> {
        match what {
            What::Join { id, .. } => Some(Self::Join { id }),
            What::Shrink { comm, number, .. } => Some(Self::Shrink { comm, number }),
            What::Split { comm, round, .. } => Some(Self::Split { comm, round }),
            What::Fault { .. } | What::Flush { .. } | What::GrowId { .. } | What::Stream { .. } => {
                None
            }
        }
    }
}

impl View<'_> {
    fn outside(self) -> Outside {
        match self {
            Self::Nobody => Outside { acts: false, sleeps: true, is_unseen: false },
            Self::Unseen => Outside { acts: false, sleeps: false, is_unseen: true },
            Self::Seen(look) => {
                let strangers = || look.all().filter(|&(tid, _)| !threads::is_ours(tid));
                let able = [Rest::Awake, Rest::Dozing];
                Outside {
                    acts: strangers().any(|(_, rest)| able.contains(&rest)),
                    sleeps: strangers().all(|(_, rest)| rest == Rest::Asleep),
                    is_unseen: false,
                }
            }
        }
    }

    /// How a thread rests that does not wait in the engine.
    fn rest(self, tid: Option<i32>) -> Rest {
        match self {
            Self::Nobody => Rest::Asleep,
            Self::Seen(look) => tid.and_then(|tid| look.of(tid)).unwrap_or(Rest::Awake),
            Self::Unseen => Rest::Awake,
        }
    }
}

impl Entry {
    /// What it is, for people.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::GraphBegin { .. } | Self::GraphEnd { .. } | Self::GraphRun { .. } => "graph",
            Self::Op(op) => op.kind.name(),
            Self::Other(Work::Call) => "host function",
            Self::Other(Work::Copy) => "copy",
            Self::Other(Work::Fill) => "memset",
            Self::Other(Work::Free) => "free",
            Self::Record { .. } => "record",
            Self::Unit { .. } => "group",
            Self::Wait { .. } => "wait",
        }
    }
}

impl End {
    /// Whether its rank has not issued its side of a peer's operation.
    pub(crate) fn lacks(&self, op: &Op) -> bool {
        let by_peer = |counters: &[(u32, u64)]| {
            let place = counters.binary_search_by_key(&op.rank, |&(peer, _)| peer);
            place.map_or(0, |place| counters[place].1)
        };
        let issued = match op.kind {
            Kind::Send | Kind::Recv if op.other != Some(self.rank) => return false,
            Kind::Send => by_peer(&self.received),
            Kind::Recv => by_peer(&self.sent),
            _ => self.collectives,
        };
        issued <= op.sequence
    }
}

/// For people.
impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = pending::stream_name(RawStream::from_bits(self.handle), self.is_branch);
        write!(f, "{name} of device {}", self.device)
    }
}

/// The name, in quotes.
impl fmt::Display for Thread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "thread '{}'", self.name)
    }
}

/// More than there can be, so that a number that came from elsewhere takes no memory away.
const MOST_RANKS: u32 = 1 << 16;

/// Entries of a stream that are looked at.
pub(crate) const DEPTH: usize = 256;
