//! What makes life hard on purpose: schedules, guards and faults, where they meet the engine.
//!
//! All of it hangs on one `Option` in the engine's state, so that a mock without pays a predictable
//! branch where work comes in and where it starts. With it, every entry takes this way:
//!
//! 1. It comes to a stream ([`State::meet`]). Its buffers are taken from the program, its fate is looked
//!    up in the fault plan, and demands that wait for it find it.
//! 2. It becomes the head ([`State::may_start`]). From now on nothing else may use its buffers: they
//!    are poisoned and summed.
//! 3. The schedule and its fate decide whether it starts. If not, it is asked again when somebody has
//!    to see it, when its delay is over, or when its communicator fails.
//! 4. It starts: what is ordered before it is known now, and so are races of work that a stream does
//!    by itself.
//! 5. An operation fires ([`State::admit`]). Sums are compared and races looked for, and where
//!    something is wrong its communicator fails and nothing is moved.
//!
//! Decisions are functions of the seed and of places in the program's own order, never of time.

use std::{
    collections::HashMap,
    ops::Range,
    panic::Location,
    sync::{Arc, Weak},
    time::Instant,
};

use collectives_core::{Error, ErrorKind, Rank, RawStream};

use crate::{
    MockConfig,
    comm_state::{Comm, EndShared},
    engine::Engine,
    error::Failure,
    fault::{Action, AsyncError, Fate, Faults, Who},
    footprint::Footprint,
    guard::{Broken, Guards, Seals, poison, sum},
    memory::Memory,
    mirror::Mirror,
    op::Op,
    pending::call,
    race::{self, Actor, Race, Races},
    schedule::{Demand, OpKey, Schedule, Start, View, mix},
    site::Site,
    slab::{Key, Slab},
    state::{Arrival, Owner, State},
    stream::{Entry, Stream},
    timer::Timer,
    veil::{Trespass, Veils},
};

/// Everything that is asked of a mock beyond being one.
pub(crate) struct Adversary {
    schedule: Schedule,
    guards: Guards,
    demand: Demand,
    races: Races,
    seals: Seals,
    veils: Option<Veils>,
    mirror: Option<Arc<Mirror>>,
    faults: Option<Faults>,
    timer: Timer,
    /// By place.
    lanes: HashMap<u32, Lane>,
    /// Streams seen so far, by device.
    seen: HashMap<usize, u64>,
    /// By group: on how many of its streams it is the head.
    heads: HashMap<u32, usize>,
    /// By communicator: a number that is the same in every run.
    identities: HashMap<Key, u64>,
    /// How many communicators looked the same.
    alike: HashMap<u64, u64>,
    /// Streams whose head may not start yet, and why.
    held: HashMap<u32, Hold>,
    /// Choices made.
    draws: u64,
}

/// A stream.
struct Lane {
    key: Key,
    device: usize,
    /// Number among the device's.
    number: u64,
    /// Entries that have become the head.
    heads: u64,
    /// Where it is the branch of a graph: the stream of the latest launch, and its handle.
    launched_on: Option<(Key, RawStream)>,
}

/// Why a head may not start.
#[derive(Clone, Copy)]
enum Hold {
    Fault(usize),
    Schedule,
}

impl Adversary {
    /// `None` where nothing is asked for.
    pub(crate) fn new(
        config: &MockConfig,
        memory: &Memory,
        engine: Weak<Engine>,
    ) -> Option<Box<Self>> {
        let MockConfig { schedule, guards, faults, .. } = config;
        if !config.is_adversarial() {
            return None;
        }
        let mirror = memory.mirror().map(Arc::clone);
        Some(Box::new(Self {
            schedule: *schedule,
            guards: *guards,
            demand: Demand::default(),
            races: Races::new(mirror.clone()),
            seals: Seals::default(),
            veils: mirror.clone().map(Veils::new),
            mirror,
            faults: (!faults.rules.is_empty()).then(|| Faults::new(faults.clone())),
            timer: Timer::new(engine),
            lanes: HashMap::new(),
            seen: HashMap::new(),
            heads: HashMap::new(),
            identities: HashMap::new(),
            alike: HashMap::new(),
            held: HashMap::new(),
            draws: 0,
        }))
    }

    /// What an error has to say of it, so that the run can be had again.
    pub(crate) fn note(&self) -> Option<String> {
        let schedule = match self.schedule {
            Schedule::Eager => None,
            other => Some(format!("schedule {other}")),
        };
        let faults = self.faults.as_ref().map(Faults::note);
        let parts: Vec<_> = schedule.into_iter().chain(faults).collect();
        (!parts.is_empty()).then(|| format!("under {}", parts.join(", ")))
    }

    /// The failure, with that said.
    pub(crate) fn noted(&self, failure: Failure) -> Failure {
        match self.note() {
            Some(note) => failure.with_note(&note),
            None => failure,
        }
    }

    fn who<'a>(&self, comms: &'a Slab<Comm>, op: &Op) -> Option<Who<'a>> {
        let comm = comms.get(op.comm)?;
        let info = &comm.ends[op.rank as usize].shared.info;
        let identity = self.identities.get(&op.comm).copied().unwrap_or(0);
        Some(Who { name: info.name.as_deref(), rank: info.rank, identity })
    }

    /// Memory becomes other memory.
    fn forget_memory(&mut self, range: &Range<usize>) {
        self.races.forget_memory(range);
        if let Some(veils) = &mut self.veils {
            veils.lift_memory(range);
        }
    }

    /// The stream's place and number, which it gets when it is first seen.
    fn lane(&mut self, place: u32, stream: &Stream) -> &mut Lane {
        let (key, device) = (stream.shared.key, stream.shared.device);
        if self.lanes.get(&place).is_none_or(|lane| lane.key != key) {
            let seen = self.seen.entry(device).or_default();
            let lane = Lane { key, device, number: *seen, heads: 0, launched_on: None };
            *seen += 1;
            self.lanes.insert(place, lane);
            self.demand.forget_stream(place);
            self.orders().for_each(|order| order.open(place));
            self.held.remove(&place);
        }
        self.lanes.get_mut(&place).expect("was just put there")
    }

    /// The clocks that are kept.
    fn orders(&mut self) -> impl Iterator<Item = &mut Races> {
        let races = self.guards.races.then_some(&mut self.races);
        races.into_iter().chain(self.veils.as_mut().map(Veils::order))
    }

    /// The host learns what is done.
    fn learn(&mut self, how: impl Fn(&mut Races)) {
        self.orders().for_each(how);
        if let Some(veils) = &mut self.veils {
            veils.lift_known();
        }
    }

    fn draw(&mut self, seed: u64) -> u64 {
        self.draws += 1;
        mix(&[seed, self.draws])
    }
}

/// Taking part in what the state does. Each of these is asked only where there is an adversary.
impl State {
    /// A communicator was made.
    pub(crate) fn introduce(&mut self, key: Key) {
        let (Some(adversary), Some(comm)) = (self.adversary.as_deref_mut(), self.comms.get(key))
        else {
            return;
        };
        let infos = comm.ends.iter().map(|end| &end.shared.info);
        let name = infos.clone().next().and_then(|info| info.name.as_deref()).unwrap_or_default();
        let letters = name.bytes().map(u64::from);
        let words: Vec<u64> = letters.chain(infos.map(|info| info.device as u64)).collect();
        let signature = mix(&words);
        let alike = adversary.alike.entry(signature).or_default();
        adversary.identities.insert(key, mix(&[signature, *alike]));
        *alike += 1;
    }

    /// Entries came to a stream; `known` were there before.
    #[cold]
    pub(crate) fn meet(&mut self, place: u32, known: usize) {
        let Some(stream) = self.streams.at(place) else { return };
        let entries: Vec<Entry> = stream.queue.range(known..).copied().collect();
        let first = stream.passed + known as u64;
        let mut errors = Vec::new();
        for (at, entry) in (first..).zip(&entries) {
            errors.extend(self.meet_one((place, at), entry));
        }
        // An operation that may start once others came behind it.
        self.look_at(place);
        if self.reach.is_some() {
            let ops = entries.iter().flat_map(|entry| self.ops(entry));
            let mut comms: Vec<Key> = ops.map(|op| op.comm).collect();
            comms.dedup();
            comms.into_iter().for_each(|comm| self.want_published(comm));
        }
        for (comm, error) in errors {
            self.fail_by_rule(comm, &error);
        }
    }

    fn meet_one(&mut self, (place, at): (u32, u64), entry: &Entry) -> Vec<(Key, AsyncError)> {
        let ops = self.ops(entry).to_vec();
        let leads = match entry {
            Entry::Unit { unit } => self.units[*unit].streams.first() == Some(&place),
            _ => true,
        };
        let Self {
            adversary: Some(adversary), streams, comms, graphs, runs, units, memory, ..
        } = self
        else {
            return Vec::new();
        };
        let lane = adversary.lane(place, &streams[place]);
        if let Entry::GraphBegin { run } = *entry {
            let stream = runs.at(run).and_then(|run| streams.at(run.stream));
            lane.launched_on = stream.map(|stream| (stream.shared.key, stream.shared.raw));
        }
        let launched_on = lane.launched_on;
        for order in adversary.orders() {
            order.meet(place);
            match *entry {
                Entry::Record { signal } => order.meet_record(signal),
                Entry::GraphBegin { run } => {
                    let graph = runs.at(run).map_or(u32::MAX, |run| run.graph);
                    order.meet_run(run, graph);
                }
                _ => {}
            }
        }
        if let Some(veils) = adversary.veils.as_mut().filter(|_| leads) {
            let mut cover = |footprint: &Footprint, what, site, comm| {
                let mut actor = actor(&streams[place], what, site, comm);
                if let Some((key, raw)) = launched_on {
                    // The program knows no other stream of it.
                    (actor.key, actor.raw) = (key, raw);
                }
                veils.cover((place, at), footprint, actor);
            };
            for op in &ops {
                // What is left of a broken communicator touches no memory.
                let comm = comms.get(op.comm).filter(|comm| !comm.broken);
                let Some(comm) = comm else { continue };
                let footprint = Footprint::of_op(op, comm.ends.len());
                cover(&footprint, whose(op, &comm.title()), op.site, Some(op.comm));
            }
            if let Entry::Copy { .. } | Entry::Fill { .. } | Entry::Free { .. } = entry {
                let footprint = Footprint::of_local(entry, |start| memory.extent(start));
                cover(&footprint, entry.name().into(), site_of(entry), None);
            }
        }
        if adversary.schedule != Schedule::Eager {
            let view = View { streams, comms, graphs, runs, units };
            let touched = adversary.demand.meet(&view, (place, at), entry, &ops);
            self.worklist.extend(touched);
        }
        let mut errors = Vec::new();
        for op in ops.iter().filter(|_| leads) {
            let Some(who) = adversary.who(comms, op) else { continue };
            let Some(faults) = &mut adversary.faults else { break };
            errors.extend(faults.meet(&who, op).map(|error| (op.comm, error)));
        }
        errors
    }

    /// The head of a stream is asked for: whether it starts now.
    #[cold]
    pub(crate) fn may_start(&mut self, place: u32) -> bool {
        let Some(stream) = self.streams.at(place) else { return true };
        let (Some(&entry), false) = (stream.queue.front(), stream.started) else { return true };
        let at = stream.passed;
        self.become_head(place, at, &entry);
        if let Some(hold) = self.hold(place, at, &entry) {
            if let Some(adversary) = &mut self.adversary {
                adversary.held.insert(place, hold);
            }
            return false;
        }
        let Some(adversary) = &mut self.adversary else { return true };
        adversary.held.remove(&place);
        if let Schedule::Random(seed) = adversary.schedule
            && !self.worklist.is_empty()
            && adversary.draw(seed) & 1 == 0
        {
            // Another first.
            self.worklist.insert(0, place);
            return false;
        }
        self.begin(place, at, &entry);
        true
    }

    /// Guards the buffers of a head that is one for the first time.
    fn become_head(&mut self, place: u32, at: u64, entry: &Entry) {
        let Self { adversary: Some(adversary), streams, .. } = self else { return };
        let lane = adversary.lane(place, &streams[place]);
        if std::mem::replace(&mut lane.heads, at + 1) > at {
            return;
        }
        if let Entry::Unit { unit } = *entry {
            let heads = adversary.heads.entry(unit).or_default();
            *heads += 1;
            if *heads < self.units[unit].streams.len() {
                return;
            }
            adversary.heads.remove(&unit);
        }
        let ops = self.ops(entry).to_vec();
        self.guard(&ops);
    }

    /// Poisons and sums the buffers of operations that start together.
    fn guard(&mut self, ops: &[Op]) {
        let Self { adversary: Some(adversary), comms, .. } = self else { return };
        if adversary.guards.poison.is_none() && !adversary.guards.checksums {
            return;
        }
        let mut all = Footprint::default();
        for op in ops {
            // What is left of a broken communicator touches no memory, which may be gone.
            let Some(comm) = comms.get(op.comm).filter(|comm| !comm.broken) else { continue };
            let footprint = Footprint::of_op(op, comm.ends.len());
            if adversary.guards.checksums {
                // SAFETY: the caller's buffers are the engine's, since the operation heads its stream
                // and its communicator is in use.
                unsafe { adversary.seals.seal(OpKey::new(op), &footprint.reads) };
            }
            all.merge(footprint);
        }
        if let Some(byte) = adversary.guards.poison {
            // SAFETY: as above; earlier work that used the same memory has been passed.
            unsafe { poison(&all, byte) };
        }
    }

    /// Why a head may not start yet.
    fn hold(&mut self, place: u32, at: u64, entry: &Entry) -> Option<Hold> {
        let behind = self.streams[place].queue.len() - 1;
        let ops = self.ops(entry).to_vec();
        let Self { adversary: Some(adversary), comms, .. } = self else { return None };
        let is_due = adversary.demand.is_due(place, at);
        let lane = &adversary.lanes[&place];
        let put_off = match adversary.schedule {
            Schedule::Eager => false,
            Schedule::Late => !is_due,
            Schedule::Random(seed) => match Start::decide(seed, lane.device, lane.number, at) {
                Start::After(count) => !is_due && behind < count,
                Start::Late => !is_due,
            },
        };
        if put_off {
            return Some(Hold::Schedule);
        }
        let faults = adversary.faults.as_mut().filter(|faults| !faults.is_idle())?;
        let now = Instant::now();
        for op in &ops {
            let key = OpKey::new(op);
            if comms.get(op.comm).is_none_or(|comm| comm.broken) {
                faults.forget(&key);
                continue;
            }
            match faults.fate(&key) {
                None => {}
                Some(Fate::Hang { rule }) => return Some(Hold::Fault(*rule)),
                Some(Fate::Delay { rule, by, until }) => {
                    let until = *until.get_or_insert_with(|| now.checked_add(*by).unwrap_or(now));
                    if now < until && adversary.timer.look_at(place, until) {
                        return Some(Hold::Fault(*rule));
                    }
                    faults.forget(&key);
                }
            }
        }
        None
    }

    /// A head starts.
    fn begin(&mut self, place: u32, at: u64, entry: &Entry) {
        let memory = Arc::clone(&self.memory);
        let Self { adversary: Some(adversary), streams, units, .. } = self else { return };
        adversary.demand.start(entry);
        let tracks = adversary.guards.races;
        for order in adversary.orders() {
            order.start(place, at);
            match *entry {
                Entry::GraphBegin { run } => order.begin(place, run),
                Entry::GraphEnd { run } => order.end(place, at, run),
                Entry::GraphRun { run } => order.run(place, at, run),
                Entry::Record { signal } => order.record(place, at, signal),
                Entry::Wait { signal } => order.wait(place, signal),
                _ => {}
            }
        }
        match *entry {
            Entry::Copy { .. } | Entry::Fill { .. } | Entry::Free { .. } => {
                let footprint = Footprint::of_local(entry, |start| memory.extent(start));
                let what = format!("{} ({})", entry.name(), site_of(entry));
                if !matches!(entry, Entry::Free { .. }) {
                    adversary.seals.note_writes(&[], &footprint.writes, &what);
                }
                let actor = actor(&streams[place], entry.name().into(), site_of(entry), None);
                let race = tracks.then(|| adversary.races.touch((place, at), &footprint, actor));
                if let Entry::Free { .. } = entry {
                    footprint.writes.iter().for_each(|range| adversary.forget_memory(range));
                }
                if let Some(race) = race.flatten() {
                    self.report(&race);
                }
            }
            Entry::Call(_) => {
                // The function may touch what is done when it is called.
                if let Some(veils) = &mut adversary.veils {
                    veils.order().synchronize(place, at);
                    veils.lift_known();
                }
            }
            Entry::GraphEnd { run }
                if self.runs.at(run).is_none_or(|run| run.branches_left <= 1) =>
            {
                adversary.orders().for_each(|order| order.end_run(run));
                adversary.demand.end_run(run);
            }
            Entry::Unit { unit } => {
                let unit_state = &units[unit];
                if unit_state.at_head + 1 == unit_state.streams.len() {
                    adversary.demand.start_unit(unit, &unit_state.ops);
                    let heads = heads(streams, &unit_state.streams);
                    adversary.orders().for_each(|order| order.meet_up(&heads));
                }
            }
            _ => {}
        }
    }

    /// All sides of an operation have arrived: whether it may fire. Where not, its communicator fails,
    /// and the operation with it.
    #[cold]
    pub(crate) fn admit(&mut self, arrivals: &[Arrival]) -> bool {
        let Some(failure) = self.inspect(arrivals, true) else { return true };
        self.fail_comm(arrivals[0].op.comm, &failure, None);
        for &arrival in arrivals {
            self.finish_failed(arrival);
        }
        false
    }

    /// As [`admit`](Self::admit), for an operation that has parts in other processes, which their own
    /// guards look after but for what they send. The caller ends it.
    #[cold]
    pub(crate) fn admit_across(&mut self, arrivals: &[Arrival]) {
        let elsewhere = arrivals.iter().filter(|it| matches!(it.owner, Owner::Elsewhere));
        let changed = elsewhere.filter_map(|arrival| self.changed_elsewhere(&arrival.op)).next();
        if let Some(failure) = self.inspect(arrivals, true).or(changed) {
            self.fail_comm(arrivals[0].op.comm, &failure, None);
        }
    }

    /// An operation was done by another process: what was guarded here need not be any more.
    #[cold]
    pub(crate) fn note_done_elsewhere(&mut self, arrival: &Arrival) {
        // It has met its peers, and a race is one whoever moved the data.
        if let Some(failure) = self.inspect(std::slice::from_ref(arrival), false) {
            self.fail_comm(arrival.op.comm, &failure, None);
        }
    }

    /// One sum for all that an operation sends, as far as that is guarded.
    pub(crate) fn sum_across(&self, op: &Op) -> Option<u64> {
        let adversary = self.adversary.as_deref().filter(|it| it.guards.checksums)?;
        adversary.seals.sum(&OpKey::new(op))
    }

    /// Whether what another process sends is not what it was.
    fn changed_elsewhere(&self, op: &Op) -> Option<Failure> {
        let comm = self.comms.get(op.comm)?;
        let part = comm.across.as_ref()?.joint.part_of(op)?;
        // A scalar that was copied is none of it.
        let footprint = Footprint::of_op(op, comm.ends.len());
        // SAFETY: the ranges were found in the memory of the process, which has published the
        // operation.
        let now = unsafe { sum(&footprint.reads) };
        let site = comm.across.as_ref()?.joint.site_of(op.rank, &part);
        let message = format!(
            "the send buffer of {} ({site}) changed before it was read: {}, in another process",
            whose(op, &comm.title()),
            call(op.kind.name(), "", (op.count, op.dtype), op.reduction.name(), op.other()),
        );
        let hint =
            "write what is sent before the call, or after the stream has passed the operation";
        let failure = Failure::new(ErrorKind::InvalidUsage, message).with_hint(hint);
        part.sum.filter(|&then| then != now).map(|_| failure)
    }

    /// `opens` where what is sent is to be compared with what it was.
    fn inspect(&mut self, arrivals: &[Arrival], opens: bool) -> Option<Failure> {
        let Self { adversary: Some(adversary), streams, units, comms, .. } = self else {
            return None;
        };
        let comm = comms.get(arrivals[0].op.comm)?;
        let mut failure = None;
        let streams_of = |arrival: &Arrival| match arrival.owner {
            Owner::Elsewhere => Vec::new(),
            Owner::Stream(stream) => vec![stream],
            Owner::Unit(unit) => units[unit].streams.clone(),
        };
        let spots: Vec<Vec<(u32, u64)>> =
            arrivals.iter().map(|arrival| heads(streams, &streams_of(arrival))).collect();
        if adversary.guards.races {
            adversary.races.meet_up(&spots.concat());
            adversary.races.leave_together(&spots.concat());
        }
        if let Some(veils) = &mut adversary.veils {
            // Each rank by itself: a peer that is done tells nothing about the others' streams.
            for spots in &spots {
                veils.order().meet_up(spots);
                veils.order().leave_together(spots);
            }
        }
        let keys: Vec<OpKey> = arrivals.iter().map(|arrival| OpKey::new(&arrival.op)).collect();
        let mut races = Vec::new();
        for ((arrival, key), spots) in arrivals.iter().zip(&keys).zip(&spots) {
            let op = &arrival.op;
            if let Owner::Elsewhere = arrival.owner {
                continue;
            }
            adversary.demand.fire(key);
            if !opens {
                adversary.seals.forget(key);
            }
            // SAFETY: the buffers are the engine's until the stream has passed the operation.
            if let Some(broken) = unsafe { adversary.seals.open(key) } {
                let broken = changed(op, &comm.title(), &broken, adversary.mirror.as_deref());
                failure.get_or_insert(broken);
            }
            let footprint = Footprint::of_op(op, comm.ends.len());
            let what = whose(op, &comm.title());
            adversary.seals.note_writes(&keys, &footprint.writes, &format!("{what} ({})", op.site));
            if adversary.guards.races
                && let Some(&(stream, at)) = spots.first()
            {
                let actor = actor(&streams[stream], what, op.site, Some(op.comm));
                races.extend(adversary.races.touch((stream, at), &footprint, actor));
            }
        }
        for race in races {
            self.report(&race);
            failure.get_or_insert_with(|| failure_of(&race));
        }
        failure
    }

    /// Tells both streams of a race, and the communicators of its operations.
    fn report(&mut self, race: &Race) {
        let failure = failure_of(race);
        tracing::error!("{}", race.message);
        for actor in [&race.first, &race.second] {
            self.tell(actor, &failure);
        }
    }

    /// Tells the streams and communicators whose memory the program has touched.
    #[cold]
    pub(crate) fn tell_trespasses(&mut self) {
        let Some(veils) = self.adversary.as_deref_mut().and_then(|it| it.veils.as_mut()) else {
            return;
        };
        if !veils.has_news() {
            return;
        }
        for Trespass { actor, message, hint } in veils.take_found() {
            tracing::error!("{message}");
            self.tell(&actor, &Failure::new(ErrorKind::InvalidUsage, message).with_hint(hint));
        }
    }

    /// Tells the stream of some work, and its communicator.
    fn tell(&mut self, actor: &Actor, failure: &Failure) {
        let noted = self.adversary.as_ref().map(|adversary| adversary.noted(failure.clone()));
        if let Some(stream) = self.streams.get_mut(actor.key)
            && let Some(noted) = noted
        {
            stream.failure.get_or_insert(noted);
        }
        if let Some(comm) = actor.comm
            && self.comms.get(comm).is_some_and(|comm| !comm.broken)
        {
            self.fail_comm(comm, failure, None);
        }
    }

    /// A communicator failed: its operations need wait for nothing.
    #[cold]
    pub(crate) fn forget_guards(&mut self, comm: Key) {
        let Some(adversary) = &mut self.adversary else { return };
        adversary.seals.forget_comm(comm);
        if let Some(veils) = &mut adversary.veils {
            veils.lift_comm(comm);
        }
        let faulty = adversary.held.iter().filter(|(_, hold)| matches!(hold, Hold::Fault(_)));
        self.worklist.extend(faulty.map(|(&place, _)| place));
    }

    /// A communicator is no more.
    #[cold]
    pub(crate) fn forget_identity(&mut self, comm: Key) {
        let Some(adversary) = &mut self.adversary else { return };
        adversary.identities.remove(&comm);
        adversary.demand.forget_comm(comm);
        if let Some(faults) = &mut adversary.faults {
            faults.forget_comm(comm);
        }
    }

    /// Memory was given back at once.
    pub(crate) fn forget_memory(&mut self, range: &Range<usize>) {
        if let Some(adversary) = &mut self.adversary {
            adversary.forget_memory(range);
        }
    }

    /// A stream is no more, and nobody can wait for it.
    pub(crate) fn forget_order(&mut self, place: u32) {
        let veils = self.adversary.as_deref_mut().and_then(|adversary| adversary.veils.as_mut());
        if let Some(veils) = veils {
            veils.lift_stream(place);
        }
    }

    /// What an injected error does.
    fn fail_by_rule(&mut self, comm: Key, error: &AsyncError) {
        let AsyncError { rule, kind } = *error;
        let failure = Failure::new(kind, format!("an asynchronous error, by fault rule {rule}"));
        self.fail_comm(comm, &failure, None);
    }

    /// Why the head of a stream is kept from starting, for people.
    pub(crate) fn held_by(&self, place: u32) -> Option<String> {
        let adversary = self.adversary.as_ref()?;
        Some(match adversary.held.get(&place)? {
            Hold::Fault(rule) => format!("fault rule {rule}"),
            Hold::Schedule => format!("schedule {}", adversary.schedule),
        })
    }
}

/// What somebody has to see, and what the host learns by it.
impl State {
    /// The first `count` entries of a stream.
    #[inline]
    pub(crate) fn want(&mut self, stream: u32, count: u64) {
        if self.adversary.is_some() {
            self.demand(|demand, view| demand.want(view, stream, count));
        }
    }

    /// The recording of an event.
    pub(crate) fn want_signal(&mut self, signal: u32) {
        if self.adversary.is_some() {
            self.demand(|demand, view| demand.want_signal(view, signal));
            self.advance();
        }
    }

    /// All that a rank has issued.
    pub(crate) fn want_rank(&mut self, comm: Key, rank: Rank) {
        if self.adversary.is_some() {
            self.demand(|demand, view| demand.want_rank(view, comm, rank.get()));
        }
    }

    /// What others wait for who have published their parts on the communicator's board.
    pub(crate) fn want_published(&mut self, comm: Key) {
        let across = self.comms.get(comm).and_then(|comm| comm.across.as_ref());
        if self.adversary.is_some()
            && let Some(joint) = across.map(|across| Arc::clone(&across.joint))
        {
            self.demand(|demand, view| demand.want_across(view, comm, |key| joint.is_awaited(key)));
        }
    }

    /// All there is on a device.
    pub(crate) fn want_device(&mut self, device: usize) {
        let own = |(_, stream): &(u32, &Stream)| stream.shared.device == device;
        let own = self.streams.iter().filter(own);
        for (place, count) in own.map(|(at, stream)| (at, stream.enqueued())).collect::<Vec<_>>() {
            self.want(place, count);
        }
    }

    #[cold]
    fn demand(&mut self, ask: impl FnOnce(&mut Demand, &View<'_>) -> Vec<u32>) {
        let Self { adversary: Some(adversary), streams, comms, graphs, runs, units, .. } = self
        else {
            return;
        };
        if adversary.schedule != Schedule::Eager {
            let touched = ask(&mut adversary.demand, &View { streams, comms, graphs, runs, units });
            self.worklist.extend(touched);
        }
    }

    /// The host knows that a stream has passed its first `count` entries.
    #[inline]
    pub(crate) fn saw(&mut self, stream: u32, count: u64) {
        if let Some(adversary) = self.adversary.as_deref_mut() {
            adversary.learn(|order| order.synchronize(stream, count));
        }
    }

    /// The host knows that an event was reached.
    pub(crate) fn saw_signal(&mut self, signal: u32) {
        if let Some(adversary) = self.adversary.as_deref_mut() {
            adversary.learn(|order| order.query(signal));
        }
    }

    /// The host knows that nothing of a rank is outstanding.
    pub(crate) fn saw_rank(&mut self, comm: Key, rank: Rank) {
        if self.adversary.is_none() {
            return;
        }
        let device = self.comms.get(comm).map(|comm| comm.ends[rank.index()].shared.info.device);
        let own = self.streams.iter().filter(|(_, stream)| Some(stream.shared.device) == device);
        for (place, count) in own.map(|(at, stream)| (at, stream.passed)).collect::<Vec<_>>() {
            self.saw(place, count);
        }
    }

    /// A rank polls for errors: it has to see what it issued, and injected errors come nearer.
    pub(crate) fn poll(&mut self, end: &EndShared) {
        self.want_rank(end.comm, end.info.rank);
        self.advance();
        let faults = self.adversary.as_deref_mut().and_then(|adversary| adversary.faults.as_mut());
        let error = faults.and_then(|faults| faults.poll(end.comm, end.info.rank.get()));
        if let Some(error) = error {
            self.fail_by_rule(end.comm, &error);
        }
    }

    /// A call is about to issue an operation: whether a fault rule kills the caller.
    pub(crate) fn kills(&mut self, op: &Op) -> Option<usize> {
        let Self { adversary: Some(adversary), comms, .. } = self else { return None };
        let who = adversary.who(comms, op)?;
        adversary.faults.as_mut()?.kills(&who, op)
    }

    /// All communicators of a device lose their rank on it.
    pub(crate) fn kill(&mut self, device: usize, failure: &Failure) {
        let ends = self.comms.iter().flat_map(|(_, comm)| &comm.ends);
        let own: Vec<_> =
            ends.map(|end| &end.shared).filter(|end| end.info.device == device).cloned().collect();
        for end in own {
            end.fail(failure.clone());
            self.depart(end.comm, end.info.rank);
        }
    }

    /// The fault rule by which a device has no memory for its next allocation.
    pub(crate) fn exhausted(&mut self, device: usize) -> Option<usize> {
        self.adversary.as_deref_mut()?.faults.as_mut()?.exhausted(device)
    }

    /// What happens to a rank that joins.
    pub(crate) fn join_fault(&mut self, who: &Who<'_>) -> Option<(usize, Action)> {
        self.adversary.as_deref_mut()?.faults.as_mut()?.join(who)
    }

    /// An error of a run that may be hard to have again, with what it takes.
    pub(crate) fn noted(&self, error: Error) -> Error {
        let Some(note) = self.adversary.as_ref().and_then(|adversary| adversary.note()) else {
            return error;
        };
        let hint = error.hint().map_or_else(|| note.clone(), |hint| format!("{hint} ({note})"));
        error.with_hint(hint)
    }
}

/// The heads of streams, numbered.
fn heads(streams: &Slab<Stream>, places: &[u32]) -> Vec<(u32, u64)> {
    places.iter().map(|&place| (place, streams[place].passed)).collect()
}

fn actor(stream: &Stream, what: String, site: Site, comm: Option<Key>) -> Actor {
    let shared = &stream.shared;
    let (key, raw, device) = (shared.key, shared.raw, shared.device);
    Actor { what, site, key, raw, device, in_graph: stream.is_branch, comm }
}

/// An operation and whose it is.
fn whose(op: &Op, title: &str) -> String {
    format!("{} #{} of rank {} in '{title}'", op.kind.name(), op.sequence, op.rank)
}

fn failure_of(race: &Race) -> Failure {
    Failure::new(ErrorKind::InvalidUsage, &*race.message).with_hint(race::HINT)
}

fn changed(op: &Op, title: &str, broken: &Broken, mirror: Option<&Mirror>) -> Failure {
    let Broken { buffer, changed, written_by } = broken;
    let start = std::ptr::with_exposed_provenance_mut(buffer.start);
    let start = mirror.map_or(start, |mirror| mirror.outer(start));
    let by = written_by.as_ref().map_or_else(String::new, |by| format!("; written by {by}"));
    let message = format!(
        "the send buffer of {} ({}) changed before it was read: {}, {} bytes at {start:p}, bytes {} \
         to {} differ{by}",
        whose(op, title),
        op.site,
        call(op.kind.name(), "", (op.count, op.dtype), op.reduction.name(), op.other()),
        buffer.len(),
        changed.start,
        changed.end,
    );
    tracing::error!("{message}");
    let hint = "write what is sent before the call, or after the stream has passed the operation";
    Failure::new(ErrorKind::InvalidUsage, message).with_hint(hint)
}

/// Where the call stands that enqueued work which one stream does by itself.
fn site_of(entry: &Entry) -> Site {
    match *entry {
        Entry::Copy { site, .. } | Entry::Fill { site, .. } | Entry::Free { site, .. } => {
            site.into()
        }
        _ => Location::caller().into(),
    }
}
