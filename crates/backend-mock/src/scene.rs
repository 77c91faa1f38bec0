//! Snapshots of one or more processes, laid side by side: what the judge looks at.
//!
//! A communicator that several processes have a part in is one here. Everything else keeps to itself,
//! and only gets another number.

use std::{collections::HashMap, ops::Deref};

use crate::{
    site::Site,
    slab::Key,
    snapshot::{self, End, Entry, For, Op, Outside, Place, Run, Snapshot, Stream, Thread, Unit},
};

/// What is known of all processes.
#[derive(Debug, Default)]
pub(crate) struct Scene {
    /// By process.
    pub(crate) outside: Vec<Outside>,
    /// By process: the job that it speaks for, if it does.
    pub(crate) jobs: Vec<Option<u128>>,
    /// The job of which nobody lives whose snapshot is not here, if that is known of one.
    pub(crate) job: Option<Job>,
    pub(crate) comms: Vec<Comm>,
    pub(crate) streams: Vec<In<Stream>>,
    pub(crate) threads: Vec<In<Thread>>,
    pub(crate) meetings: Vec<Meeting>,
    pub(crate) units: Vec<Unit>,
    pub(crate) runs: Vec<Run>,
    pub(crate) sites: Vec<Site>,
    signals: u32,
}

/// Processes that were started together, and those of them that have ended.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) number: u128,
    pub(crate) ended: Vec<Ended>,
}

/// One that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// The launcher's.
    pub(crate) number: u32,
    pub(crate) pid: u32,
    /// For people: what comes behind its name.
    pub(crate) how: String,
}

/// Where ranks meet, while some are missing.
#[derive(Debug)]
pub(crate) struct Meeting {
    pub(crate) name: Option<String>,
    pub(crate) size: u32,
    pub(crate) missing: Vec<u32>,
    /// [`snapshot::Meeting::came`].
    pub(crate) came: Vec<u32>,
    /// What it is known by in all processes, where that is a join across them.
    token: Option<u128>,
    /// In the processes that have part in it here, and [`snapshot::Meeting::visits`].
    pub(crate) places: Vec<(usize, Place, u64)>,
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
        let Snapshot {
            outside,
            job,
            comms,
            streams,
            threads,
            meetings,
            units,
            runs,
            sites,
            signals,
        } = snapshot;
        let process = self.outside.len();
        let shift = Shift {
            streams: self.streams.len() as u32,
            units: self.units.len() as u32,
            runs: self.runs.len() as u32,
            sites: self.sites.len() as u32,
            signals: self.signals,
            comms: comms.into_iter().map(|comm| self.add_comm(process, comm, known)).collect(),
            meetings: meetings.into_iter().map(|it| self.add_meeting(process, it)).collect(),
        };
        self.outside.push(outside);
        self.jobs.push(job);
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
        let run = |run: Run| Run { before: run.before.map(|run| run + shift.runs), ..run };
        self.runs.extend(runs.into_iter().map(run));
        self.sites.extend(sites);
        self.signals += signals;
    }

    /// Joins under one token are one, and only those are missing who are missing everywhere.
    fn add_meeting(&mut self, process: usize, meeting: snapshot::Meeting) -> u32 {
        let snapshot::Meeting { place, visits, token, name, size, missing, came } = meeting;
        let is_same = |it: &Meeting| token.is_some() && (it.token, it.size) == (token, size);
        if let Some(index) = self.meetings.iter().position(is_same) {
            let known = &mut self.meetings[index];
            known.missing.retain(|rank| missing.contains(rank));
            known.name = known.name.take().or(name);
            known.places.push((process, place, visits));
            return index as u32;
        }
        let places = vec![(process, place, visits)];
        self.meetings.push(Meeting { name, size, missing, came, token, places });
        self.meetings.len() as u32 - 1
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

impl Meeting {
    /// Whether ranks of several processes may meet there to join.
    pub(crate) fn is_across(&self) -> bool {
        self.token.is_some()
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
    /// By place in the snapshot.
    comms: Vec<u32>,
    meetings: Vec<u32>,
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
            For::Join { meeting, .. } => *meeting = self.meetings[*meeting as usize],
            For::Nothing => {}
            For::Shrink { comm, meeting } | For::Split { comm, meeting } => {
                *comm = self.comms[*comm as usize];
                *meeting = self.meetings[*meeting as usize];
            }
            For::Stream { stream, .. } => *stream += self.streams,
        }
    }
}
