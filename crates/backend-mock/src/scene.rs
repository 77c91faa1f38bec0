//! Snapshots of one or more processes, laid side by side: what the judge looks at.
//!
//! A communicator that several processes have a part in is one here. Everything else keeps to itself,
//! and only gets another number.

use std::{collections::HashMap, ops::Deref};

use crate::{
    site::Site,
    slab::Key,
    snapshot::{self, End, Entry, For, Meeting, Op, Outside, Run, Snapshot, Stream, Thread, Unit},
};

/// What is known of all processes.
#[derive(Debug, Default)]
pub(crate) struct Scene {
    /// By process.
    pub(crate) outside: Vec<Outside>,
    pub(crate) comms: Vec<Comm>,
    pub(crate) streams: Vec<In<Stream>>,
    pub(crate) threads: Vec<In<Thread>>,
    pub(crate) meetings: Vec<In<Meeting>>,
    pub(crate) units: Vec<Unit>,
    pub(crate) runs: Vec<Run>,
    pub(crate) sites: Vec<Site>,
    signals: u32,
}

/// Something, and the process that it is in.
#[derive(Debug)]
pub(crate) struct In<T> {
    pub(crate) process: usize,
    it: T,
}

/// A communicator with all its ranks.
#[derive(Debug)]
pub(crate) struct Comm {
    pub(crate) title: String,
    pub(crate) is_broken: bool,
    /// By rank.
    pub(crate) seats: Vec<Seat>,
    /// Its key in one of the processes, and in all of them.
    pub(crate) key: Key,
    pub(crate) keys: Vec<(usize, Key)>,
}

/// A rank's end of a communicator.
#[derive(Debug)]
pub(crate) enum Seat {
    /// It has left.
    Empty,
    /// Nothing is known of it.
    Hidden,
    Taken(In<End>),
}

impl Scene {
    /// Lays snapshots side by side, in the order of their processes. They are sound.
    pub(crate) fn new(snapshots: impl IntoIterator<Item = Snapshot>) -> Self {
        let (mut scene, mut known) = (Self::default(), HashMap::new());
        for snapshot in snapshots {
            scene.add(snapshot, &mut known);
        }
        scene
    }

    /// The operations behind an entry.
    pub(crate) fn ops<'a>(&'a self, entry: &'a Entry) -> &'a [Op] {
        match entry {
            Entry::Op(op) => std::slice::from_ref(op),
            Entry::Unit { unit } => &self.units[*unit as usize].ops,
            _ => &[],
        }
    }

    fn add(&mut self, snapshot: Snapshot, known: &mut HashMap<u128, u32>) {
        let Snapshot { outside, comms, streams, threads, meetings, units, runs, sites, signals } =
            snapshot;
        let process = self.outside.len();
        let shift = Shift {
            streams: self.streams.len() as u32,
            units: self.units.len() as u32,
            runs: self.runs.len() as u32,
            sites: self.sites.len() as u32,
            signals: self.signals,
            comms: comms.into_iter().map(|comm| self.add_comm(process, comm, known)).collect(),
            meetings: self.meetings.len() as u32,
        };
        self.outside.push(outside);
        self.streams.extend(streams.into_iter().map(|mut stream| {
            stream.queue.iter_mut().for_each(|entry| shift.entry(entry));
            In { process, it: stream }
        }));
        self.threads.extend(threads.into_iter().map(|mut thread| {
            if let Some(wait) = &mut thread.waiting {
                shift.wait(&mut wait.what);
            }
            In { process, it: thread }
        }));
        self.units.extend(units.into_iter().map(|mut unit| {
            unit.ops.iter_mut().for_each(|op| shift.op(op));
            unit
        }));
        self.meetings.extend(meetings.into_iter().map(|it| In { process, it }));
        let run = |run: Run| Run { before: run.before.map(|run| run + shift.runs), ..run };
        self.runs.extend(runs.into_iter().map(run));
        self.sites.extend(sites);
        self.signals += signals;
    }

    fn add_comm(
        &mut self,
        process: usize,
        comm: snapshot::Comm,
        known: &mut HashMap<u128, u32>,
    ) -> u32 {
        let snapshot::Comm { key, token, title, size, is_broken, departed, ends } = comm;
        let same = token.and_then(|token| known.get(&token).copied());
        let place = same.filter(|&place| self.comms[place as usize].seats.len() == size as usize);
        let place = place.unwrap_or_else(|| {
            let seats = (0..size).map(|_| Seat::Hidden).collect();
            self.comms.push(Comm { title, is_broken, seats, key, keys: Vec::new() });
            self.comms.len() as u32 - 1
        });
        known.extend(token.map(|token| (token, place)));
        let threads = self.threads.len() as u32;
        let comm = &mut self.comms[place as usize];
        comm.is_broken |= is_broken;
        comm.keys.push((process, key));
        for rank in departed {
            comm.seats[rank as usize] = Seat::Empty;
        }
        for mut end in ends {
            let seat = &mut comm.seats[end.rank as usize];
            if !matches!(seat, Seat::Empty) {
                end.caller = end.caller.map(|thread| thread + threads);
                *seat = Seat::Taken(In { process, it: end });
            }
        }
        place
    }
}

impl<T> Deref for In<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.it
    }
}

/// Where the parts of a snapshot come to stand.
struct Shift {
    streams: u32,
    units: u32,
    runs: u32,
    sites: u32,
    signals: u32,
    meetings: u32,
    /// By place in the snapshot.
    comms: Vec<u32>,
}

impl Shift {
    fn entry(&self, entry: &mut Entry) {
        match entry {
            Entry::GraphBegin { run } | Entry::GraphEnd { run } | Entry::GraphRun { run } => {
                *run += self.runs;
            }
            Entry::Op(op) => self.op(op),
            Entry::Other(_) => {}
            Entry::Record { signal } | Entry::Wait { signal, .. } => *signal += self.signals,
            Entry::Unit { unit } => *unit += self.units,
        }
    }

    fn op(&self, op: &mut Op) {
        op.comm = op.comm.map(|comm| self.comms[comm as usize]);
        op.site += self.sites;
    }

    fn wait(&self, what: &mut For) {
        match what {
            For::Flush { comm, .. } | For::GrowId { comm, .. } => {
                *comm = self.comms[*comm as usize];
            }
            For::Join { meeting, .. } => *meeting += self.meetings,
            For::Nothing => {}
            For::Shrink { comm, meeting } | For::Split { comm, meeting } => {
                *comm = self.comms[*comm as usize];
                *meeting += self.meetings;
            }
            For::Stream { stream, .. } => *stream += self.streams,
        }
    }
}
