//! Which accesses are ordered: vector clocks over the streams and the host.
//!
//! The engine sees every edge of an order between two pieces of work: a stream's own order, events,
//! groups, graphs, matching operations, and waits of the host. So it can tell that two pieces of work
//! of different streams touch the same memory with nothing between them, also where they happened to
//! run one after the other.
//!
//! A *clock* says of each stream how many of its entries are known to be done. A piece of work may
//! touch memory if its clock covers every earlier access that conflicts with it. What is taken as
//! ordered though a GPU would not promise it can only hide a race, never invent one:
//!
//! * all threads of the host are one, whose calls are ordered as they came: an order that threads
//!   made among themselves (a channel, a join) cannot be seen from here;
//! * ranks whose operations met are ordered from then on, in both directions.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    ops::Range,
    sync::{Arc, Mutex},
};

use collectives_core::RawStream;

use crate::{
    footprint::{Footprint, overlap},
    mirror::Mirror,
    site::Site,
    slab::Key,
    sync::lock,
};

/// By stream: how many of its entries are known to be done.
#[derive(Clone, Debug, Default)]
pub(crate) struct Clock(BTreeMap<u64, u64>);

impl Clock {
    pub(crate) fn join(&mut self, other: &Self) {
        for (&stream, &count) in &other.0 {
            self.advance(stream, count);
        }
    }

    fn advance(&mut self, stream: u64, count: u64) {
        let known = self.0.entry(stream).or_default();
        *known = (*known).max(count);
    }

    fn covers(&self, stream: u64, at: u64) -> bool {
        self.0.get(&stream).is_some_and(|&count| count > at)
    }
}

/// A clock that is known only later: of a recording, or of an end of a graph's run.
pub(crate) type Later = Arc<Mutex<Clock>>;

/// The host's clock, and how often it changed.
#[derive(Clone, Default)]
struct Host {
    clock: Arc<Clock>,
    version: u64,
}

/// One stream.
#[derive(Default)]
struct Lane {
    /// Its number in clocks. Never used again, unlike its place.
    number: u64,
    clock: Clock,
    /// Ends with which its entries end, and which entries.
    joins: Vec<(u64, Later)>,
    /// The entry that started last.
    latest: u64,
    /// For each entry that has not started: the host's clock when it came.
    issued: VecDeque<Host>,
}

/// Who touched memory.
#[derive(Clone, Debug)]
pub(crate) struct Actor {
    /// The operation, as in a call.
    pub(crate) what: String,
    pub(crate) site: Site,
    /// The stream, by key, handle and device.
    pub(crate) key: Key,
    pub(crate) raw: RawStream,
    pub(crate) device: usize,
    /// Whether it is part of a launched graph.
    pub(crate) in_graph: bool,
    /// The communicator of an operation.
    pub(crate) comm: Option<Key>,
}

struct Access {
    range: Range<usize>,
    writes: bool,
    /// In clocks.
    stream: u64,
    at: u64,
    actor: Arc<Actor>,
}

/// Two pieces of work that touch the same memory, and nothing orders them.
pub(crate) struct Race {
    pub(crate) first: Arc<Actor>,
    pub(crate) second: Arc<Actor>,
    pub(crate) message: String,
}

/// All clocks, and who touched what.
#[derive(Default)]
pub(crate) struct Races {
    next: u64,
    host: Host,
    lanes: HashMap<u32, Lane>,
    signals: HashMap<u32, Later>,
    runs: HashMap<u32, RunClocks>,
    /// The end of the last run of each graph.
    ends: HashMap<u32, Later>,
    accesses: Vec<Access>,
    /// Number of accesses from which on they are looked through.
    limit: usize,
    /// What the program calls an address, where that is another.
    mirror: Option<Arc<Mirror>>,
}

/// What orders a run of a graph.
#[derive(Clone, Default)]
struct RunClocks {
    begin: Later,
    end: Later,
    previous: Option<Later>,
}

impl Races {
    pub(crate) fn new(mirror: Option<Arc<Mirror>>) -> Self {
        Self { mirror, ..Self::default() }
    }

    /// A stream came into being at a place.
    pub(crate) fn open(&mut self, stream: u32) {
        self.next += 1;
        self.lanes.insert(stream, Lane { number: self.next, ..Lane::default() });
    }

    /// An entry came to a stream, from the host or in a run of a graph.
    pub(crate) fn meet(&mut self, stream: u32) {
        let host = self.host.clone();
        self.lane(stream).issued.push_back(host);
    }

    /// An event will be recorded.
    pub(crate) fn meet_record(&mut self, signal: u32) {
        self.signals.insert(signal, Later::default());
    }

    /// A run of a graph begins in a branch.
    pub(crate) fn meet_run(&mut self, run: u32, graph: u32) {
        if !self.runs.contains_key(&run) {
            let clocks = RunClocks::default();
            let previous = self.ends.insert(graph, Arc::clone(&clocks.end));
            self.runs.insert(run, RunClocks { previous, ..clocks });
        }
    }

    fn lane(&mut self, stream: u32) -> &mut Lane {
        self.lanes.entry(stream).or_default()
    }

    /// The head of a stream, its entry `at`, starts: what is ordered before it is known now.
    pub(crate) fn start(&mut self, stream: u32, at: u64) {
        let lane = self.lane(stream);
        lane.catch_up(at);
        lane.latest = at;
        if let Some(host) = lane.issued.pop_front() {
            lane.clock.join(&host.clock);
        }
    }

    /// It is the recording of an event.
    pub(crate) fn record(&mut self, stream: u32, at: u64, signal: u32) {
        let Some(later) = self.signals.get(&signal).map(Arc::clone) else { return };
        self.end_into(&later, stream, at);
    }

    /// It waits for an event.
    pub(crate) fn wait(&mut self, stream: u32, signal: u32) {
        if let Some(later) = self.signals.get(&signal).map(Arc::clone) {
            self.lane(stream).ends_with(later);
        }
    }

    /// It is a run of a graph.
    pub(crate) fn run(&mut self, stream: u32, at: u64, run: u32) {
        let Some(clocks) = self.runs.get(&run).cloned() else { return };
        self.end_into(&clocks.begin, stream, at);
        self.lane(stream).ends_with(clocks.end);
    }

    /// It is the begin of a run in a branch.
    pub(crate) fn begin(&mut self, stream: u32, run: u32) {
        let Some(clocks) = self.runs.get(&run).cloned() else { return };
        let lane = self.lane(stream);
        lane.ends_with(clocks.begin);
        clocks.previous.into_iter().for_each(|previous| lane.ends_with(previous));
    }

    /// It is the end of a run in a branch.
    pub(crate) fn end(&mut self, stream: u32, at: u64, run: u32) {
        let Some(end) = self.runs.get(&run).map(|clocks| Arc::clone(&clocks.end)) else { return };
        self.end_into(&end, stream, at);
    }

    pub(crate) fn end_run(&mut self, run: u32) {
        self.runs.remove(&run);
    }

    /// Adds to `later` what is known once the entry `at` of a stream is done.
    fn end_into(&mut self, later: &Later, stream: u32, at: u64) {
        let lane = self.lane(stream);
        let mut clock = lock(later);
        clock.join(&lane.clock);
        clock.advance(lane.number, at + 1);
    }

    /// Streams whose heads start together, each with the number of its head.
    pub(crate) fn meet_up(&mut self, heads: &[(u32, u64)]) {
        let mut together = Clock::default();
        for &(stream, at) in heads {
            let lane = self.lane(stream);
            lane.clock.advance(lane.number, at);
            together.join(&lane.clock);
        }
        for (stream, _) in heads {
            self.lane(*stream).clock.clone_from(&together);
        }
    }

    /// Their heads end together: what one of them did is done for all.
    pub(crate) fn leave_together(&mut self, heads: &[(u32, u64)]) {
        let numbers: Vec<_> = heads.iter().map(|&(s, at)| (self.lane(s).number, at + 1)).collect();
        let later = Later::default();
        for (number, count) in numbers {
            lock(&later).advance(number, count);
        }
        for &(stream, _) in heads {
            self.lane(stream).ends_with(Arc::clone(&later));
        }
    }

    /// The head of a stream, its entry `at`, touches memory. The answer is the first access that
    /// conflicts and is not ordered before it.
    pub(crate) fn touch(
        &mut self,
        (stream, at): (u32, u64),
        footprint: &Footprint,
        actor: Actor,
    ) -> Option<Race> {
        let actor = Arc::new(actor);
        let lane = self.lane(stream);
        let (number, clock) = (lane.number, lane.clock.clone());
        let reads = footprint.reads.iter().map(|range| (range, false));
        let touched = reads.chain(footprint.writes.iter().map(|range| (range, true)));
        let mut race = None;
        for (range, writes) in touched {
            let conflict = self.accesses.iter().find(|access| {
                access.stream != number
                    && (access.writes || writes)
                    && overlap(&access.range, range)
                    && !clock.covers(access.stream, access.at)
            });
            if let Some(access) = conflict
                && race.is_none()
            {
                race = Some(access.race_with(range, writes, &actor, self.mirror.as_deref()));
            }
            // What this stream did before to the same bytes is ordered before what it does now, and
            // whoever is ordered after this is ordered after that.
            self.accesses.retain(|access| {
                access.stream != number
                    || (access.writes && !writes)
                    || access.range.start < range.start
                    || range.end < access.range.end
            });
            let (range, actor) = (range.clone(), Arc::clone(&actor));
            self.accesses.push(Access { range, writes, stream: number, at, actor });
        }
        self.prune();
        race
    }

    /// The number of the stream at a place, in clocks.
    pub(crate) fn number(&mut self, stream: u32) -> u64 {
        self.lane(stream).number
    }

    /// Whether the host knows that an entry of a stream is done. The stream is given by its number.
    pub(crate) fn is_known(&self, (stream, at): (u64, u64)) -> bool {
        self.host.clock.covers(stream, at)
    }

    /// The host knows that a stream has passed its first `count` entries.
    pub(crate) fn synchronize(&mut self, stream: u32, count: u64) {
        let lane = self.lane(stream);
        lane.catch_up(count);
        let clock = lane.clock.clone();
        self.host_learns(&clock);
    }

    /// The host knows that an event was reached.
    pub(crate) fn query(&mut self, signal: u32) {
        let Some(later) = self.signals.get(&signal).map(Arc::clone) else { return };
        let clock = lock(&later).clone();
        self.host_learns(&clock);
    }

    fn host_learns(&mut self, clock: &Clock) {
        if clock
            .0
            .iter()
            .all(|(&stream, &count)| count == 0 || self.host.clock.covers(stream, count - 1))
        {
            return;
        }
        let mut host = Clock::clone(&self.host.clock);
        host.join(clock);
        self.host = Host { clock: Arc::new(host), version: self.host.version + 1 };
    }

    /// Memory was given back: what comes to lie there is other memory.
    pub(crate) fn forget_memory(&mut self, range: &Range<usize>) {
        self.accesses.retain(|access| !overlap(&access.range, range));
    }

    /// Drops accesses that are ordered before all that is still to come.
    fn prune(&mut self) {
        if self.accesses.len() < self.limit.max(FEW) {
            return;
        }
        let oldest = self.lanes.values().filter_map(|lane| lane.issued.front());
        let floor = oldest.min_by_key(|host| host.version).unwrap_or(&self.host).clone();
        self.accesses.retain(|access| !floor.clock.covers(access.stream, access.at));
        self.limit = 2 * self.accesses.len();
    }
}

impl Lane {
    /// The entry that started last ends with something else.
    fn ends_with(&mut self, later: Later) {
        self.joins.push((self.latest, later));
    }

    /// What is known once the first `count` entries are done. The next may have started, and then
    /// what it ends with is not known yet.
    fn catch_up(&mut self, count: u64) {
        for (_, later) in self.joins.extract_if(.., |(at, _)| *at < count) {
            self.clock.join(&lock(&later));
        }
        self.clock.advance(self.number, count);
    }
}

impl Access {
    fn race_with(
        &self,
        range: &Range<usize>,
        writes: bool,
        actor: &Arc<Actor>,
        mirror: Option<&Mirror>,
    ) -> Race {
        let shared = range.start.max(self.range.start)..range.end.min(self.range.end);
        let start = std::ptr::with_exposed_provenance_mut(shared.start);
        let start = mirror.map_or(start, |mirror| mirror.outer(start));
        let verb = |writes| if writes { "writes" } else { "reads" };
        let stream =
            |actor: &Actor| format!("stream {:#x} of device {}", actor.raw.bits(), actor.device);
        let message = format!(
            "two streams race: {} ({}) on {} {} what {} ({}) on {} {}, {} bytes at {start:p}, and nothing \
             orders them",
            actor.what,
            actor.site,
            stream(actor),
            verb(writes),
            self.actor.what,
            self.actor.site,
            stream(&self.actor),
            verb(self.writes),
            shared.len(),
        );
        Race { first: Arc::clone(&self.actor), second: Arc::clone(actor), message }
    }
}

/// What to do about a race.
pub(crate) const HINT: &str = "record an event behind the one and let the other's stream wait for it, or \
                               wait for the one before the other is issued";

/// Accesses that are kept without a look at whether they can still matter.
const FEW: usize = 256;

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "lists of ranges is what these are")]
mod tests {
    use std::panic::Location;

    use super::*;

    fn actor(stream: u32) -> Actor {
        Actor {
            what: format!("work of {stream}"),
            site: Location::caller().into(),
            key: Key { index: stream, generation: 1 },
            raw: RawStream::DEFAULT,
            device: 0,
            in_graph: false,
            comm: None,
        }
    }

    /// Lets a stream's entry read or write some bytes.
    fn touch(races: &mut Races, spot: (u32, u64), range: Range<usize>, writes: bool) -> bool {
        races.meet(spot.0);
        races.start(spot.0, spot.1);
        let (reads, writes) = if writes { (vec![], vec![range]) } else { (vec![range], vec![]) };
        races.touch(spot, &Footprint { reads, writes }, actor(spot.0)).is_some()
    }

    fn two() -> Races {
        let mut races = Races::default();
        races.open(0);
        races.open(1);
        races
    }

    #[test]
    fn only_conflicts_without_an_order_are_races() {
        let mut races = two();
        assert!(!touch(&mut races, (0, 0), 0..10, true));
        assert!(!touch(&mut races, (1, 0), 10..20, true), "other bytes");
        assert!(touch(&mut races, (1, 1), 9..11, false), "a read of what was written");
        let mut races = two();
        assert!(!touch(&mut races, (0, 0), 0..10, false));
        assert!(!touch(&mut races, (1, 0), 0..10, false), "two reads");
        assert!(touch(&mut races, (1, 1), 0..10, true), "a write of what is read");
    }

    #[test]
    fn events_and_waits_of_the_host_order() {
        let mut races = two();
        assert!(!touch(&mut races, (0, 0), 0..10, true));
        races.meet(0);
        races.meet_record(7);
        races.start(0, 1);
        races.record(0, 1, 7);
        races.meet(1);
        races.start(1, 0);
        races.wait(1, 7);
        assert!(!touch(&mut races, (1, 1), 0..10, true));
        races.synchronize(1, 2);
        // Issued after the wait; the host's knowledge reaches a third stream too.
        races.open(2);
        assert!(!touch(&mut races, (2, 0), 0..10, true));
        assert!(touch(&mut races, (0, 2), 0..10, true), "ordered before, not after");
    }

    #[test]
    fn a_wait_that_goes_on_counts_also_when_the_host_looked_meanwhile() {
        let mut races = two();
        // Stream 1 waits for a recording behind what stream 0 does later.
        races.meet_record(7);
        races.meet(1);
        races.start(1, 0);
        races.wait(1, 7);
        races.synchronize(1, 0);
        assert!(!touch(&mut races, (0, 0), 0..10, true));
        races.meet(0);
        races.start(0, 1);
        races.record(0, 1, 7);
        assert!(!touch(&mut races, (1, 1), 0..10, true), "behind the event");
    }

    #[test]
    fn what_the_host_knew_when_it_issued_counts() {
        let mut races = two();
        races.meet(1);
        assert!(!touch(&mut races, (0, 0), 0..10, true));
        races.synchronize(0, 1);
        races.start(1, 0);
        let footprint = Footprint { reads: vec![0..10], writes: vec![] };
        assert!(races.touch((1, 0), &footprint, actor(1)).is_some(), "issued before the wait");
    }

    #[test]
    #[cfg_attr(miri, ignore = "tens of thousands of accesses take minutes")]
    fn what_cannot_matter_any_more_is_forgotten() {
        let mut races = two();
        for at in 0..10 * FEW as u64 {
            let start = 16 * at as usize;
            assert!(!touch(&mut races, (0, at), start..start + 16, true));
            races.synchronize(0, at + 1);
        }
        assert!(races.accesses.len() <= 2 * FEW, "{}", races.accesses.len());
    }
}
