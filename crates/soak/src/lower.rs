//! From a program to what one rank does: its part of each step, with the events and waits that order
//! what touches the same memory.
//!
//! A *clock* tells of each stream how many of its entries are known to be done. Each stream has one,
//! for whatever comes next on it, and so has the thread. An entry may touch memory if its stream's
//! clock covers all earlier entries that conflict. Where it does not, the step's salt decides what is
//! put in front: an event and a wait for it, a wait for an event that was recorded before, a wait of
//! the thread, or queries. So there is never an order but by what a program may rely on.

use std::collections::BTreeSet;

use crate::{
    oracle::loads,
    program::{Call, Operation, Place, Program, Step, What},
    random::hash,
};

/// One thing that a rank does.
#[derive(Clone, Debug)]
pub(crate) enum Action<'a> {
    Alloc {
        area: usize,
    },
    Await {
        stream: usize,
        event: usize,
    },
    Capture {
        graph: usize,
        origin: usize,
        body: Vec<Self>,
    },
    Copy {
        from: Place,
        to: Place,
        stream: usize,
    },
    Destroy {
        graph: usize,
    },
    Fill {
        to: Place,
        value: u8,
        stream: usize,
    },
    Finalize {
        comm: usize,
    },
    Free {
        area: usize,
        stream: usize,
    },
    Group(Vec<Part<'a>>),
    Issue(Part<'a>),
    Join {
        comm: usize,
    },
    Launch {
        graph: usize,
        stream: usize,
    },
    Load {
        to: Place,
        bytes: Vec<u8>,
        stream: usize,
    },
    Nap {
        micros: u64,
    },
    Observe {
        from: Place,
    },
    /// Asks until the event is reached.
    Poll {
        event: usize,
    },
    Record {
        event: usize,
        stream: usize,
    },
    Renew {
        stream: usize,
    },
    Shrink {
        parent: usize,
        child: usize,
    },
    Split {
        parent: usize,
        part: Option<(u32, i32)>,
        child: Option<usize>,
    },
    Synchronize {
        stream: usize,
    },
    Write {
        to: Place,
        bytes: Vec<u8>,
    },
}

/// One rank's part in an operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part<'a> {
    pub(crate) op: &'a Operation,
    /// Which seat, and the rank in the communicator.
    pub(crate) seat: usize,
    pub(crate) own: usize,
}

/// Events of a rank: these outside of captures, and as many again within.
pub(crate) const EVENTS: usize = 4;

/// What a rank does.
pub(crate) fn lower(program: &Program, rank: usize) -> Vec<Action<'_>> {
    let mut lowering = Lowering {
        program,
        rank,
        track: Track::new(program.streams, 0),
        host: vec![0; program.streams],
        capture: None,
        actions: Vec::new(),
        graphs: Vec::new(),
    };
    for (index, step) in program.steps.iter().enumerate() {
        lowering.step(step);
        lowering.destroy_graphs(index, step);
    }
    lowering.actions
}

struct Lowering<'a> {
    program: &'a Program,
    rank: usize,
    track: Track,
    /// The thread's clock.
    host: Vec<u64>,
    /// What is being captured.
    capture: Option<Capture>,
    actions: Vec<Action<'a>>,
    graphs: Vec<Known<'a>>,
}

/// Streams and memory, outside of captures or in one.
struct Track {
    /// By stream: its clock. Its own place tells how many entries it has.
    clocks: Vec<Vec<u64>>,
    accesses: Vec<Access>,
    /// By event: the clock of its latest recording.
    events: Vec<Option<Vec<u64>>>,
    /// Number of the first of its events.
    base: usize,
    turn: usize,
}

struct Access {
    place: Place,
    writes: bool,
    stream: usize,
    at: u64,
}

struct Capture {
    track: Track,
    origin: usize,
    forked: BTreeSet<usize>,
}

struct Known<'a> {
    graph: usize,
    body: &'a [Step],
    /// Whether this rank captured it, and has not destroyed it.
    captured: bool,
}

impl Track {
    fn new(streams: usize, base: usize) -> Self {
        Self {
            clocks: vec![vec![0; streams]; streams],
            accesses: Vec::new(),
            events: vec![None; EVENTS],
            base,
            turn: 0,
        }
    }

    /// Streams with conflicting entries that the clock does not cover, and up to which entry.
    fn missing(&self, clock: &[u64], place: Place, writes: bool) -> Vec<(usize, u64)> {
        let conflicts = |access: &&Access| {
            (writes || access.writes)
                && access.place.overlaps(place)
                && clock[access.stream] <= access.at
        };
        let accesses = self.accesses.iter().filter(conflicts);
        accesses.map(|access| (access.stream, access.at)).collect()
    }

    /// Notes one more entry of a stream.
    fn enter(&mut self, stream: usize, places: &[(Place, bool)]) {
        let at = self.clocks[stream][stream];
        self.clocks[stream][stream] += 1;
        for &(place, writes) in places {
            if writes {
                // Whoever comes later has to wait for this one, which waited for those.
                self.accesses.retain(|access| !place.covers(access.place));
            }
            self.accesses.push(Access { place, writes, stream, at });
        }
    }

    /// Records the next event.
    fn record(&mut self, stream: usize) -> usize {
        let event = self.turn % EVENTS;
        self.turn += 1;
        self.events[event] = Some(self.clocks[stream].clone());
        event
    }
}

fn merge(clock: &mut [u64], other: &[u64]) {
    for (own, &other) in clock.iter_mut().zip(other) {
        *own = (*own).max(other);
    }
}

impl<'a> Lowering<'a> {
    fn step(&mut self, step: &'a Step) {
        let salt = step.salt;
        let own = self.rank;
        match &step.what {
            &What::Alloc { rank, area, value, stream } if rank == own => {
                self.actions.push(Action::Alloc { area });
                let to = Place { area, start: 0, bytes: self.program.area_bytes };
                self.enqueue(salt, stream, &[(to, true)], Action::Fill { to, value, stream });
            }
            &What::Copy { rank, from, to, stream } if rank == own => {
                let places = [(from, false), (to, true)];
                self.enqueue(salt, stream, &places, Action::Copy { from, to, stream });
            }
            What::Define { graph, origins, body } => self.define(*graph, origins[own], body),
            &What::Fill { rank, to, value, stream } if rank == own => {
                self.enqueue(salt, stream, &[(to, true)], Action::Fill { to, value, stream });
            }
            &What::Finalize { comm } if self.is_member(comm) => {
                self.actions.push(Action::Finalize { comm });
            }
            &What::Free { rank, area, stream } if rank == own => {
                let all = Place { area, start: 0, bytes: self.program.area_bytes };
                self.enqueue(salt, stream, &[(all, true)], Action::Free { area, stream });
                self.track.accesses.retain(|access| access.place.area != area);
            }
            &What::Join { comm } if self.is_member(comm) => {
                self.actions.push(Action::Join { comm });
            }
            &What::Load { rank, to, seed, stream } if rank == own => {
                let bytes = random_bytes(seed, to);
                self.enqueue(salt, stream, &[(to, true)], Action::Load { to, bytes, stream });
            }
            What::Meet { ops, grouped } => self.meet(salt, ops, grouped[own]),
            &What::Nap { rank, micros } if rank == own => {
                self.actions.push(Action::Nap { micros });
            }
            &What::Observe { rank, from } if rank == own => {
                self.host_order(salt, from, false);
                self.actions.push(Action::Observe { from });
            }
            &What::Renew { rank, stream } if rank == own => {
                let event = self.track.record(stream);
                self.actions.push(Action::Record { event, stream });
                self.actions.push(Action::Renew { stream });
                self.actions.push(Action::Await { stream, event });
            }
            What::Run { graph, streams } => self.run(salt, *graph, streams[own]),
            &What::Shrink { parent, child } if self.is_member(child) => {
                // None of its operations may be in flight.
                (0..self.program.streams).for_each(|stream| self.synchronize(stream));
                self.actions.push(Action::Shrink { parent, child });
            }
            What::Split { parent, parts, children } => {
                let members = &self.program.comms[*parent];
                let Some(place) = members.iter().position(|&member| member == own) else { return };
                let child = parts[place].and_then(|(color, _)| {
                    children.iter().find(|child| child.0 == color).map(|child| child.1)
                });
                self.actions.push(Action::Split { parent: *parent, part: parts[place], child });
            }
            &What::Wait { rank, stream } if rank == own => self.synchronize(stream),
            &What::Write { rank, to, seed } if rank == own => {
                self.host_order(salt, to, true);
                self.actions.push(Action::Write { to, bytes: random_bytes(seed, to) });
            }
            _ => {}
        }
    }

    fn is_member(&self, comm: usize) -> bool {
        self.program.comms[comm].contains(&self.rank)
    }

    fn meet(&mut self, salt: u64, ops: &'a [Operation], grouped: bool) {
        let comms = &self.program.comms;
        let mut parts = Vec::new();
        for op in ops {
            for (seat, (rank, _, own)) in op.parts(comms).enumerate() {
                if rank == self.rank {
                    parts.push(Part { op, seat, own });
                }
            }
        }
        for part in &parts {
            let stream = part.op.seats[part.seat].stream;
            for (to, bytes) in loads(part.op, part.own, part.seat) {
                self.enqueue(salt ^ 1, stream, &[(to, true)], Action::Load { to, bytes, stream });
            }
        }
        let to_itself = |part: &Part<'_>| match part.op.call {
            Call::Message { from, to } => from == to,
            _ => false,
        };
        let together = grouped && (parts.len() > 1 || salt.is_multiple_of(3));
        if together || parts.iter().any(to_itself) {
            for part in &parts {
                let (stream, places) = accesses(part);
                self.order(salt, stream, &places);
            }
            for part in &parts {
                let (stream, places) = accesses(part);
                self.enter(stream, &places);
            }
            self.actions.push(Action::Group(parts));
        } else {
            for part in parts {
                let (stream, places) = accesses(&part);
                self.enqueue(salt, stream, &places, Action::Issue(part));
            }
        }
    }

    fn define(&mut self, graph: usize, origin: Option<usize>, body: &'a [Step]) {
        let takes_part = body.iter().any(|step| !self.touches(step).is_empty());
        let origin = origin.filter(|_| takes_part);
        self.graphs.push(Known { graph, body, captured: origin.is_some() });
        let Some(origin) = origin else { return };
        let before = std::mem::take(&mut self.actions);
        let track = Track::new(self.program.streams, EVENTS);
        self.capture = Some(Capture { track, origin, forked: BTreeSet::new() });
        body.iter().for_each(|step| self.step(step));
        let forked =
            self.capture.as_ref().map_or_else(BTreeSet::new, |capture| capture.forked.clone());
        for stream in forked {
            self.wait_for(origin, stream);
        }
        self.capture = None;
        let body = std::mem::replace(&mut self.actions, before);
        self.actions.push(Action::Capture { graph, origin, body });
    }

    fn run(&mut self, salt: u64, graph: usize, stream: usize) {
        let Some(known) = self.graphs.iter().find(|known| known.graph == graph) else { return };
        let body = known.body;
        if known.captured {
            let places: Vec<_> = body.iter().flat_map(|step| self.touches(step)).collect();
            self.enqueue(salt, stream, &places, Action::Launch { graph, stream });
        } else {
            body.iter().for_each(|step| self.step(step));
        }
    }

    /// What a step of a body touches on this rank.
    fn touches(&self, step: &Step) -> Vec<(Place, bool)> {
        match &step.what {
            &What::Copy { rank, from, to, .. } if rank == self.rank => {
                vec![(from, false), (to, true)]
            }
            &What::Fill { rank, to, .. } | &What::Load { rank, to, .. } if rank == self.rank => {
                vec![(to, true)]
            }
            What::Meet { ops, .. } => {
                let parts = ops.iter().flat_map(|op| {
                    let parts = op.parts(&self.program.comms).enumerate();
                    parts.map(move |(seat, (rank, _, own))| (rank, Part { op, seat, own }))
                });
                let own = parts.filter(|(rank, _)| *rank == self.rank);
                own.flat_map(|(_, part)| {
                    let loads = loads(part.op, part.own, part.seat).into_iter();
                    let loads = loads.map(|(place, _)| (place, true));
                    let mut places: Vec<_> = loads.chain(accesses(&part).1).collect();
                    // Also where it moves nothing, it takes part.
                    places.push((Place { area: 1, start: 0, bytes: 0 }, false));
                    places
                })
                .collect()
            }
            _ => Vec::new(),
        }
    }

    /// Puts in front of an entry what it has to wait for, and then the entry.
    fn enqueue(&mut self, salt: u64, stream: usize, places: &[(Place, bool)], action: Action<'a>) {
        self.order(salt, stream, places);
        self.actions.push(action);
        self.enter(stream, places);
        // Now and then an event that may be of use later.
        if salt % 5 == 1 {
            self.record(stream);
        }
    }

    fn enter(&mut self, stream: usize, places: &[(Place, bool)]) {
        self.track().enter(stream, places);
    }

    fn track(&mut self) -> &mut Track {
        self.capture.as_mut().map_or(&mut self.track, |capture| &mut capture.track)
    }

    /// Makes a stream wait for all that conflicts with its next entry.
    fn order(&mut self, salt: u64, stream: usize, places: &[(Place, bool)]) {
        if let Some(capture) = &mut self.capture {
            if stream != capture.origin && capture.forked.insert(stream) {
                let origin = capture.origin;
                self.wait_for(stream, origin);
            }
        } else {
            let host = self.host.clone();
            merge(&mut self.track.clocks[stream], &host);
        }
        for &(place, writes) in places {
            let clock = self.track().clocks[stream].clone();
            for (other, at) in self.track().missing(&clock, place, writes) {
                if self.track().clocks[stream][other] > at {
                    continue;
                }
                let dice = hash([salt, other as u64, at]);
                let recorded = |event: &Option<Vec<u64>>| {
                    event.as_ref().is_some_and(|clock| clock[other] > at)
                };
                let before = self.track().events.iter().position(recorded);
                match (before, dice % 8) {
                    (Some(event), 2..) => self.wait_event(stream, event),
                    (_, 0) if self.capture.is_none() => {
                        self.synchronize(other);
                        let host = self.host.clone();
                        merge(&mut self.track.clocks[stream], &host);
                    }
                    (_, 1) if self.capture.is_none() => {
                        self.poll(other);
                        let host = self.host.clone();
                        merge(&mut self.track.clocks[stream], &host);
                    }
                    _ => self.wait_for(stream, other),
                }
            }
        }
    }

    /// Makes the thread wait for all that conflicts with what it does next.
    fn host_order(&mut self, salt: u64, place: Place, writes: bool) {
        for (stream, at) in self.track.missing(&self.host, place, writes) {
            if self.host[stream] <= at {
                match hash([salt, stream as u64]) % 3 {
                    0 => self.poll(stream),
                    _ => self.synchronize(stream),
                }
            }
        }
    }

    /// `stream` waits for all that is on `other` now.
    fn wait_for(&mut self, stream: usize, other: usize) {
        let event = self.record(other);
        self.wait_event(stream, event);
    }

    fn record(&mut self, stream: usize) -> usize {
        let track = self.track();
        let event = track.record(stream);
        let action = Action::Record { event: track.base + event, stream };
        self.actions.push(action);
        event
    }

    fn wait_event(&mut self, stream: usize, event: usize) {
        let track = self.track();
        if let Some(clock) = &track.events[event] {
            merge(&mut track.clocks[stream], clock);
        }
        let action = Action::Await { stream, event: track.base + event };
        self.actions.push(action);
    }

    fn synchronize(&mut self, stream: usize) {
        self.actions.push(Action::Synchronize { stream });
        merge(&mut self.host, &self.track.clocks[stream]);
    }

    fn poll(&mut self, stream: usize) {
        let event = self.record(stream);
        self.actions.push(Action::Poll { event });
        merge(&mut self.host, &self.track.clocks[stream]);
    }

    /// Destroys graphs that nobody launches any more, at once or before their communicators go.
    fn destroy_graphs(&mut self, index: usize, step: &Step) {
        let later = &self.program.steps[index + 1..];
        let ends = later.first().is_some_and(|next| matches!(next.what, What::Finalize { .. }));
        for known in self.graphs.iter_mut().filter(|known| known.captured) {
            let graph = known.graph;
            let is_run =
                |step: &Step| matches!(step.what, What::Run { graph: run, .. } if run == graph);
            if (ends || step.salt.is_multiple_of(2)) && !later.iter().any(is_run) {
                known.captured = false;
                self.actions.push(Action::Destroy { graph });
            }
        }
    }
}

/// The stream of a part, and what it reads and writes.
fn accesses(part: &Part<'_>) -> (usize, Vec<(Place, bool)>) {
    let seat = &part.op.seats[part.seat];
    let reads = seat.reads().map(|place| (place, false));
    (seat.stream, reads.chain(seat.recv.map(|place| (place, true))).collect())
}

fn random_bytes(seed: u64, place: Place) -> Vec<u8> {
    let mut bytes = vec![0; place.bytes];
    crate::element::fill(seed, &mut bytes);
    bytes
}
