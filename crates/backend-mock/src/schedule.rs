//! When work runs that could run: the schedules, and what somebody has to see.
//!
//! A GPU promises an order within a stream and nothing about time. A schedule other than
//! [`Schedule::Eager`] makes use of that: the head of a stream may be put off until somebody *has to
//! see* what it does. [`Demand`] knows what that takes. A wait for a stream needs everything enqueued
//! on it before the wait, and each of these in turn
//!
//! * an operation: its peers' sides, and so what stands before those on their streams;
//! * a wait for an event: the recording, and what stands before it;
//! * a member of a group: what stands before the group on all its streams;
//! * a run of a graph: all its branches, what stands before it, and earlier runs of the graph.
//!
//! Nothing else is let go, and nothing is ever taken back, so what can hang is what hangs anyway:
//! operations stay matched as in any schedule, and results cannot differ (no piece of work is
//! disabled by another that runs first).

use std::{
    collections::{HashMap, HashSet},
    fmt,
    str::FromStr,
};

use collectives_core::{Error, Result};

use crate::{
    comm_state::Comm,
    error::invalid,
    graph::{Graph, Run},
    op::{Kind, NOBODY, Op},
    slab::{Key, Slab},
    stream::{Entry, Stream},
};

/// When work runs that could run. All schedules are legal, and a correct program has the same results
/// under each.
///
/// ```
/// use collectives_backend_mock::{MockConfig, Schedule};
/// let config = MockConfig::new().with_schedule(Schedule::Random(42));
/// assert_eq!("random:42".parse::<Schedule>()?, config.schedule);
/// # Ok::<_, collectives_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum Schedule {
    /// As soon as it can.
    #[default]
    Eager,
    /// Not before somebody has to see it: by a wait for its stream, by a query of an event behind
    /// it, or for a peer's operation that somebody waits for. Then it runs, with what it needs, and
    /// nothing else does.
    Late,
    /// Each piece of work as the seed says: at once, after some more work came to its stream, or
    /// late.
    ///
    /// Which it is depends on nothing but the seed and the place of the work: the device, the number
    /// of the stream among those of the device in the order of their first use, and the position in
    /// the stream. So a program whose threads each keep to their own streams has the same work put
    /// off in every run, however the system schedules the threads. One thread that drives all ranks
    /// sees the very same order of completion.
    Random(u64),
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Eager => f.write_str("eager"),
            Self::Late => f.write_str("late"),
            Self::Random(seed) => write!(f, "random({seed})"),
        }
    }
}

/// As in `COLLECTIVES_MOCK_SCHEDULE`: `eager`, `late`, `random:SEED`. What `Display` writes is taken
/// too.
impl FromStr for Schedule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let seed = |text: &str| {
            let text = text.strip_prefix("random")?;
            let inner = text.strip_prefix('(').and_then(|text| text.strip_suffix(')'));
            inner.or_else(|| text.strip_prefix(':'))?.trim().parse().ok()
        };
        match text.trim() {
            "eager" => Ok(Self::Eager),
            "late" => Ok(Self::Late),
            other => seed(other).map(Self::Random).ok_or_else(|| {
                invalid(format!(
                    "schedule is '{text}', want 'eager', 'late' or 'random:SEED' with a number"
                ))
            }),
        }
    }
}

/// Names one rank's operation.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct OpKey {
    pub(crate) comm: Key,
    pub(crate) rank: u32,
    kind: Class,
    /// The peer of a message.
    other: u32,
    pub(crate) sequence: u64,
}

/// What a sequence number counts.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Class {
    Collective,
    Receive,
    Send,
}

impl OpKey {
    pub(crate) fn new(op: &Op) -> Self {
        let (kind, other) = match op.kind {
            Kind::Send => (Class::Send, op.other),
            Kind::Recv => (Class::Receive, op.other),
            _ => (Class::Collective, NOBODY),
        };
        Self { comm: op.comm, rank: op.rank, kind, other, sequence: op.sequence }
    }

    /// A collective's.
    #[cfg(test)]
    pub(crate) fn collective(comm: Key, rank: u32, sequence: u64) -> Self {
        Self { comm, rank, kind: Class::Collective, other: NOBODY, sequence }
    }

    /// The operations that it meets, in a communicator of `size` ranks.
    fn peers(self, size: usize) -> Vec<Self> {
        let message = |kind| vec![Self { rank: self.other, other: self.rank, kind, ..self }];
        match self.kind {
            Class::Collective => {
                let ranks = (0..size as u32).filter(|&rank| rank != self.rank);
                ranks.map(|rank| Self { rank, ..self }).collect()
            }
            Class::Receive => message(Class::Send),
            Class::Send => message(Class::Receive),
        }
    }

    /// Whether it is a message, and then whether a send, and the peer.
    pub(crate) fn message(&self) -> Option<(bool, u32)> {
        match self.kind {
            Class::Collective => None,
            Class::Receive => Some((false, self.other)),
            Class::Send => Some((true, self.other)),
        }
    }

    /// The parts that tell it from others of its communicator, as one number each.
    pub(crate) fn words(&self) -> [u64; 4] {
        [self.rank.into(), self.kind as u64, self.other.into(), self.sequence]
    }
}

/// What the demands follow. Parts of the engine's state.
pub(crate) struct View<'a> {
    pub(crate) streams: &'a Slab<Stream>,
    pub(crate) comms: &'a Slab<Comm>,
    pub(crate) graphs: &'a Slab<Graph>,
    pub(crate) runs: &'a Slab<Run>,
}

/// Where work stands, and up to where it has to be seen.
#[derive(Default)]
pub(crate) struct Demand {
    /// By stream: how many of its entries have to be seen.
    upto: HashMap<u32, u64>,
    ops: HashMap<OpKey, Place>,
    /// Operations that have to be seen once they are issued.
    awaited: HashSet<OpKey>,
    units: HashMap<u32, Vec<Spot>>,
    signals: HashMap<u32, Spot>,
    /// Where runs were launched, and the begins of their branches.
    launches: HashMap<u32, Spot>,
    begins: HashMap<u32, Vec<Spot>>,
    ends: HashMap<u32, Vec<Spot>>,
    awaited_runs: HashSet<u32>,
}

/// An entry: its stream, and its number on it.
type Spot = (u32, u64);

/// Where an operation stands.
#[derive(Clone, Copy)]
enum Place {
    Stream(Spot),
    Unit(u32),
}

impl Demand {
    /// Notes an entry that came to a stream, with the operations in it. The answer is the streams of
    /// which more has to be seen now.
    pub(crate) fn meet(
        &mut self,
        view: &View<'_>,
        spot: Spot,
        entry: &Entry,
        ops: &[Op],
    ) -> Vec<u32> {
        let mut wanted = false;
        match *entry {
            Entry::Unit { unit } => {
                self.units.entry(unit).or_default().push(spot);
                for op in ops {
                    wanted |= self.awaited.remove(&OpKey::new(op));
                    self.ops.insert(OpKey::new(op), Place::Unit(unit));
                }
                // A member may have been wanted when the group came to an earlier stream.
                let spots = self.units[&unit].iter();
                wanted |= spots.into_iter().any(|&(stream, at)| self.is_due(stream, at));
            }
            Entry::Op(op) => {
                wanted = self.awaited.remove(&OpKey::new(&op));
                self.ops.insert(OpKey::new(&op), Place::Stream(spot));
            }
            Entry::Record { signal } => {
                self.signals.insert(signal, spot);
            }
            Entry::GraphBegin { run } => self.begins.entry(run).or_default().push(spot),
            Entry::GraphEnd { run } => self.ends.entry(run).or_default().push(spot),
            Entry::GraphRun { run } => {
                self.launches.insert(run, spot);
                wanted = self.awaited_runs.remove(&run);
            }
            Entry::Call(_)
            | Entry::Copy { .. }
            | Entry::Fill { .. }
            | Entry::Free { .. }
            | Entry::Wait { .. } => {}
        }
        if wanted { self.want(view, spot.0, spot.1 + 1) } else { Vec::new() }
    }

    /// Forgets where an entry stands that is about to start. A group stays until all its streams have
    /// come to it.
    pub(crate) fn start(&mut self, entry: &Entry) {
        match entry {
            Entry::Op(op) => self.forget_op(&OpKey::new(op)),
            Entry::Record { signal } => {
                self.signals.remove(signal);
            }
            Entry::GraphRun { run } => {
                self.launches.remove(run);
            }
            _ => {}
        }
    }

    /// Forgets a group that starts, with the operations in it.
    pub(crate) fn start_unit(&mut self, unit: u32, ops: &[Op]) {
        self.units.remove(&unit);
        for op in ops {
            self.forget_op(&OpKey::new(op));
        }
    }

    fn forget_op(&mut self, key: &OpKey) {
        self.ops.remove(key);
        self.awaited.remove(key);
    }

    /// Forgets a run that ended.
    pub(crate) fn end_run(&mut self, run: u32) {
        self.begins.remove(&run);
        self.ends.remove(&run);
        self.awaited_runs.remove(&run);
    }

    /// Forgets operations that were awaited and will not be, since they met their peers.
    pub(crate) fn fire(&mut self, key: &OpKey) {
        self.awaited.remove(key);
    }

    pub(crate) fn forget_comm(&mut self, comm: Key) {
        self.awaited.retain(|key| key.comm != comm);
    }

    pub(crate) fn forget_stream(&mut self, stream: u32) {
        self.upto.remove(&stream);
    }

    /// Whether the entry `at` of a stream has to be seen.
    pub(crate) fn is_due(&self, stream: u32, at: u64) -> bool {
        self.upto.get(&stream).is_some_and(|&upto| upto > at)
    }

    /// Somebody has to see the first `count` entries of a stream. The answer is the streams of which
    /// more has to be seen now.
    pub(crate) fn want(&mut self, view: &View<'_>, stream: u32, count: u64) -> Vec<u32> {
        let mut touched = Vec::new();
        let mut open = vec![(stream, count)];
        while let Some((stream, count)) = open.pop() {
            let Some(state) = view.streams.at(stream) else { continue };
            let count = count.min(state.enqueued());
            let upto = self.upto.entry(stream).or_default();
            let first = (*upto).max(state.passed);
            if *upto >= count || first >= count {
                continue;
            }
            *upto = count;
            touched.push(stream);
            for at in first..count {
                let index = (at - state.passed) as usize;
                if let Some(entry) = state.queue.get(index) {
                    self.follow(view, entry, &mut open);
                }
            }
        }
        touched
    }

    /// Somebody has to see the latest recording of an event.
    pub(crate) fn want_signal(&mut self, view: &View<'_>, signal: u32) -> Vec<u32> {
        match self.signals.get(&signal) {
            Some(&(stream, at)) => self.want(view, stream, at + 1),
            None => Vec::new(),
        }
    }

    /// Somebody has to see all that one rank has issued on a communicator.
    pub(crate) fn want_rank(&mut self, view: &View<'_>, comm: Key, rank: u32) -> Vec<u32> {
        let own = self.ops.iter().filter(|(key, _)| key.comm == comm && key.rank == rank);
        let places: Vec<_> = own.map(|(_, &place)| place).collect();
        let mut open = Vec::new();
        for place in places {
            self.reach(place, &mut open);
        }
        open.into_iter().flat_map(|(stream, count)| self.want(view, stream, count)).collect()
    }

    /// Other processes wait for operations of a communicator: those of this one's that `awaited` names.
    pub(crate) fn want_across(
        &mut self,
        view: &View<'_>,
        comm: Key,
        awaited: impl Fn(&OpKey) -> bool,
    ) -> Vec<u32> {
        let own = self.ops.iter().filter(|(key, _)| key.comm == comm && awaited(key));
        let places: Vec<_> = own.map(|(_, &place)| place).collect();
        let mut open = Vec::new();
        for place in places {
            self.reach(place, &mut open);
        }
        open.into_iter().flat_map(|(stream, count)| self.want(view, stream, count)).collect()
    }

    /// What an entry needs before it is done.
    fn follow(&mut self, view: &View<'_>, entry: &Entry, open: &mut Vec<Spot>) {
        match *entry {
            Entry::Op(op) => self.follow_op(view, &op, open),
            Entry::Unit { unit } => {
                self.reach(Place::Unit(unit), open);
                let members = self.ops.iter();
                let members =
                    members.filter(|(_, place)| matches!(place, Place::Unit(u) if *u == unit));
                for key in members.map(|(&key, _)| key).collect::<Vec<_>>() {
                    self.follow_key(view, key, open);
                }
            }
            Entry::Wait { signal } => {
                open.extend(self.signals.get(&signal).map(|&(stream, at)| (stream, at + 1)));
            }
            Entry::GraphRun { run } => {
                let ends = self.ends.get(&run).into_iter().flatten();
                open.extend(ends.map(|&(stream, at)| (stream, at + 1)));
            }
            Entry::GraphBegin { run } => {
                match self.launches.get(&run) {
                    Some(&(stream, at)) => open.push((stream, at + 1)),
                    None if view.runs.at(run).is_some_and(|run| !run.at_head) => {
                        self.awaited_runs.insert(run);
                    }
                    None => {}
                }
                // Runs of one graph follow one another.
                let graph = view.runs.at(run).and_then(|run| view.graphs.at(run.graph));
                let earlier = graph.into_iter().flat_map(|graph| &graph.pending);
                for earlier in earlier.take_while(|&&earlier| earlier != run) {
                    let ends = self.ends.get(earlier).into_iter().flatten();
                    open.extend(ends.map(|&(stream, at)| (stream, at + 1)));
                }
            }
            Entry::Call(_)
            | Entry::Copy { .. }
            | Entry::Fill { .. }
            | Entry::Free { .. }
            | Entry::GraphEnd { .. }
            | Entry::Record { .. } => {}
        }
    }

    fn follow_op(&mut self, view: &View<'_>, op: &Op, open: &mut Vec<Spot>) {
        self.follow_key(view, OpKey::new(op), open);
    }

    fn follow_key(&mut self, view: &View<'_>, key: OpKey, open: &mut Vec<Spot>) {
        let size = view.comms.get(key.comm).map_or(0, |comm| comm.ends.len());
        for peer in key.peers(size) {
            match self.ops.get(&peer) {
                Some(&place) => self.reach(place, open),
                None => {
                    self.awaited.insert(peer);
                }
            }
        }
    }

    fn reach(&self, place: Place, open: &mut Vec<Spot>) {
        match place {
            Place::Stream((stream, at)) => open.push((stream, at + 1)),
            Place::Unit(unit) => {
                let spots = self.units.get(&unit).into_iter().flatten();
                open.extend(spots.map(|&(stream, at)| (stream, at + 1)));
            }
        }
    }
}

/// When a piece of work of a [`Schedule::Random`] may start.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Start {
    /// Once as many entries stand behind it on its stream, or when somebody has to see it.
    After(usize),
    /// When somebody has to see it.
    Late,
}

impl Start {
    /// What the seed says of the entry `at` of a stream.
    pub(crate) fn decide(seed: u64, device: usize, stream: u64, at: u64) -> Self {
        let draw = mix(&[seed, device as u64, stream, at]);
        // Half run at once, a quarter a little later, a quarter late.
        match draw & 3 {
            0 | 1 => Self::After(0),
            2 => Self::After(1 + (draw >> 2) as usize % 6),
            _ => Self::Late,
        }
    }
}

/// A number that looks random and depends on all of `words`.
pub(crate) fn mix(words: &[u64]) -> u64 {
    words.iter().fold(0x243f_6a88_85a3_08d3, |state, &word| {
        // splitmix64
        let mut z = (state ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_are_read_as_they_are_written() {
        for schedule in [Schedule::Eager, Schedule::Late, Schedule::Random(u64::MAX)] {
            assert_eq!(schedule.to_string().parse::<Schedule>().unwrap(), schedule);
        }
        assert_eq!(" random:7 ".parse::<Schedule>().unwrap(), Schedule::Random(7));
        for text in ["", "lazy", "random", "random:", "random:x", "random(7", "random:-1"] {
            let error = text.parse::<Schedule>().unwrap_err().to_string();
            assert!(error.contains(&format!("'{text}'")) && error.contains("want"), "{error}");
        }
    }

    #[test]
    fn a_decision_depends_on_the_seed_and_the_place_only() {
        let decide = |seed| {
            let place = |at: u64| Start::decide(seed, at as usize % 3, at % 2, at);
            (0..200).map(place).collect::<Vec<_>>()
        };
        assert_eq!(decide(1), decide(1));
        assert_ne!(decide(1), decide(2));
        let late = decide(1).iter().filter(|start| **start == Start::Late).count();
        assert!((20..80).contains(&late), "{late} of 200");
    }
}
