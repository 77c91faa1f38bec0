//! Programs: one list of steps for all ranks, in one order.
//!
//! A program says who does what, on which stream and where in memory. It does not say what has to
//! wait for what: the [lowering](crate::lower) finds that out for each rank, so that any part of a
//! program is a correct program again, once [`Program::prune`] has dropped what has lost its ground.

use std::{collections::BTreeSet, fmt};

use collectives_core::DType;

/// What all ranks do, in the order in which one rank alone would do it.
#[derive(Clone, Debug)]
pub struct Program {
    /// What it was made from.
    pub seed: u64,
    /// Number of ranks; rank i is on device i.
    pub ranks: usize,
    /// Streams of each rank. Stream 0 is the default stream.
    pub(crate) streams: usize,
    /// Bytes of each lasting area of each rank.
    pub(crate) area_bytes: usize,
    /// By communicator: its members by their rank in it. Communicator 0 is all ranks.
    pub(crate) comms: Vec<Vec<usize>>,
    /// In order.
    pub(crate) steps: Vec<Step>,
}

/// One step.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    /// Decides what the program leaves open: by what means a stream is made to wait, for example. It
    /// belongs to the step, so that it stays when other steps go.
    pub(crate) salt: u64,
    /// What is done.
    pub(crate) what: What,
}

/// What a step does. `rank` is always a rank of communicator 0, and the others have no part in it.
#[derive(Clone, Debug)]
pub(crate) enum What {
    /// Makes an area and fills it.
    Alloc { rank: usize, area: usize, value: u8, stream: usize },
    /// Copies, between device memory or from and to the host's area.
    Copy { rank: usize, from: Place, to: Place, stream: usize },
    /// Makes a graph, on the ranks that have an origin stream here; the others do the body's steps
    /// at each run, as if there were no graph.
    Define { graph: usize, origins: Vec<Option<usize>>, body: Vec<Step> },
    /// Fills memory.
    Fill { rank: usize, to: Place, value: u8, stream: usize },
    /// All members end a communicator.
    Finalize { comm: usize },
    /// Frees an area when a stream has passed.
    Free { rank: usize, area: usize, stream: usize },
    /// All members join.
    Join { comm: usize },
    /// Copies bytes that the seed says to a device.
    Load { rank: usize, to: Place, seed: u64, stream: usize },
    /// Operations on communicators; on ranks with `grouped`, in one group.
    Meet { ops: Vec<Operation>, grouped: Vec<bool> },
    /// The thread sleeps.
    Nap { rank: usize, micros: u64 },
    /// The thread reads the host's area.
    Observe { rank: usize, from: Place },
    /// Destroys a stream with what is pending on it, and makes another in its place.
    Renew { rank: usize, stream: usize },
    /// Launches a graph, on a stream of each rank.
    Run { graph: usize, streams: Vec<usize> },
    /// The members of `child` leave the others of `parent` out.
    Shrink { parent: usize, child: usize },
    /// Splits: by rank of the parent, colour and key, and by colour the new communicator.
    Split { parent: usize, parts: Vec<Option<(u32, i32)>>, children: Vec<(u32, usize)> },
    /// The thread waits for a stream.
    Wait { rank: usize, stream: usize },
    /// The thread writes the host's area.
    Write { rank: usize, to: Place, seed: u64 },
}

/// Some memory of a rank.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Place {
    /// Which area: [`HOST`], or one of the device.
    pub(crate) area: usize,
    /// Its first byte.
    pub(crate) start: usize,
    /// Its length.
    pub(crate) bytes: usize,
}

/// The area in the host's memory.
pub(crate) const HOST: usize = 0;
/// Areas that last for the whole program: the host's and two of the device. Areas with other numbers
/// come and go.
pub(crate) const LASTING: usize = 3;

/// One operation on a communicator.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    /// The communicator.
    pub(crate) comm: usize,
    /// Which.
    pub(crate) call: Call,
    /// The type of its elements.
    pub(crate) dtype: DType,
    /// Elements per rank: of the smaller buffer, where they differ.
    pub(crate) count: usize,
    /// From what seed what is sent (and the scalars) is written before, if it is.
    pub(crate) fresh: Option<u64>,
    /// By rank of the communicator; for a message, sender and receiver.
    pub(crate) seats: Vec<Seat>,
}

/// Which operation. Roots and peers are ranks of its communicator.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Call {
    AllGather,
    AllReduce(Reduction),
    AllToAll,
    Broadcast { root: usize },
    Gather { root: usize },
    Message { from: usize, to: usize },
    Reduce { reduction: Reduction, root: usize },
    ReduceScatter(Reduction),
    Scatter { root: usize },
}

/// How elements are combined.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Reduction {
    Avg,
    Max,
    Min,
    PreMulDevice,
    PreMulHost,
    Prod,
    Sum,
}

/// One rank's part in an operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seat {
    /// On which of its streams.
    pub(crate) stream: usize,
    /// What it sends, if anything.
    pub(crate) send: Option<Place>,
    /// Where it receives, if anything.
    pub(crate) recv: Option<Place>,
    /// Where the scalar of a [`Reduction::PreMulDevice`] is.
    pub(crate) scalar: Option<Place>,
    /// A buffer that the call is given and has to ignore: this rank is not root.
    pub(crate) decoy: Option<Place>,
}

impl Operation {
    /// Who takes part: rank, seat, and rank in the communicator.
    pub(crate) fn parts<'a>(
        &'a self,
        comms: &'a [Vec<usize>],
    ) -> impl Iterator<Item = (usize, &'a Seat, usize)> {
        let within = |index: usize| match self.call {
            Call::Message { from, to } => [from, to][index],
            _ => index,
        };
        let members = &comms[self.comm];
        let seats = self.seats.iter().enumerate();
        seats.map(move |(index, seat)| (members[within(index)], seat, within(index)))
    }

    /// How it combines, where it does.
    pub(crate) fn reduction(&self) -> Option<Reduction> {
        match self.call {
            Call::AllReduce(reduction)
            | Call::Reduce { reduction, .. }
            | Call::ReduceScatter(reduction) => Some(reduction),
            _ => None,
        }
    }
}

impl Seat {
    /// What is read.
    pub(crate) fn reads(&self) -> impl Iterator<Item = Place> {
        self.send.into_iter().chain(self.scalar)
    }
}

impl Place {
    /// Whether the two have a byte in common.
    pub(crate) fn overlaps(self, other: Self) -> bool {
        let apart =
            self.start + self.bytes <= other.start || other.start + other.bytes <= self.start;
        self.area == other.area && self.bytes > 0 && other.bytes > 0 && !apart
    }

    /// Whether all of the other is in it.
    pub(crate) fn covers(self, other: Self) -> bool {
        self.area == other.area
            && self.start <= other.start
            && other.start + other.bytes <= self.start + self.bytes
    }

    /// Its bytes' indices.
    pub(crate) fn range(self) -> std::ops::Range<usize> {
        self.start..self.start + self.bytes
    }
}

impl Program {
    /// Drops steps that lack what they build on: communicators that nobody makes, for example.
    pub(crate) fn prune(&mut self) {
        let mut ground = Ground::default();
        ground.comms.insert(0);
        ground
            .areas
            .extend((0..self.ranks).flat_map(|rank| (0..LASTING).map(move |at| (rank, at))));
        self.steps.retain_mut(|step| ground.takes(&self.comms, step));
    }

    /// Number of steps, those in graphs included.
    pub fn len(&self) -> usize {
        let of = |step: &Step| match &step.what {
            What::Define { body, .. } => 1 + body.len(),
            _ => 1,
        };
        self.steps.iter().map(of).sum()
    }

    /// Whether there is no step.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}

/// What is there at a point of a program.
#[derive(Default)]
struct Ground {
    comms: BTreeSet<usize>,
    areas: BTreeSet<(usize, usize)>,
    /// With the communicators in their bodies.
    graphs: Vec<(usize, BTreeSet<usize>)>,
}

impl Ground {
    /// Whether a step has all it needs; what it makes and ends is noted.
    fn takes(&mut self, comms: &[Vec<usize>], step: &mut Step) -> bool {
        let has = |rank: usize, place: Place| self.areas.contains(&(rank, place.area));
        match &mut step.what {
            What::Alloc { rank, area, .. } => self.areas.insert((*rank, *area)),
            What::Copy { rank, from, to, .. } => has(*rank, *from) && has(*rank, *to),
            What::Define { graph, body, .. } => {
                body.retain_mut(|step| self.takes(comms, step));
                let used = body.iter().flat_map(|step| match &step.what {
                    What::Meet { ops, .. } => ops.iter().map(|op| op.comm).collect(),
                    _ => Vec::new(),
                });
                self.graphs.push((*graph, used.collect()));
                !body.is_empty()
            }
            What::Fill { rank, to, .. }
            | What::Load { rank, to, .. }
            | What::Write { rank, to, .. } => has(*rank, *to),
            What::Finalize { comm } => {
                self.graphs.retain(|(_, comms)| !comms.contains(comm));
                self.comms.remove(comm)
            }
            What::Free { rank, area, .. } => self.areas.remove(&(*rank, *area)),
            What::Join { comm } => self.comms.insert(*comm),
            What::Meet { ops, .. } => {
                ops.retain(|op| {
                    self.comms.contains(&op.comm)
                        && op.parts(comms).all(|(rank, seat, _)| {
                            let decoys = seat.decoy.into_iter();
                            seat.reads()
                                .chain(seat.recv)
                                .chain(decoys)
                                .all(|place| has(rank, place))
                        })
                });
                !ops.is_empty()
            }
            What::Observe { rank, from } => has(*rank, *from),
            What::Nap { .. } | What::Renew { .. } | What::Wait { .. } => true,
            What::Run { graph, .. } => self.graphs.iter().any(|(known, _)| known == graph),
            What::Shrink { parent, child } => {
                self.comms.contains(parent) && self.comms.insert(*child)
            }
            What::Split { parent, children, .. } => {
                let has = self.comms.contains(parent);
                if has {
                    self.comms.extend(children.iter().map(|&(_, child)| child));
                }
                has
            }
        }
    }
}

/// A listing, a line for each step and each operation.
impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, ranks, streams, area_bytes, comms, steps } = self;
        writeln!(f, "seed {seed}: {ranks} ranks, {streams} streams each, areas of {area_bytes} B")?;
        for (index, step) in steps.iter().enumerate() {
            write!(f, "{index:4}  ")?;
            step.list(f, comms, 6)?;
        }
        Ok(())
    }
}

impl Step {
    fn list(&self, f: &mut fmt::Formatter<'_>, comms: &[Vec<usize>], indent: usize) -> fmt::Result {
        match &self.what {
            What::Alloc { rank, area, value, stream } => {
                writeln!(f, "rank {rank} allocates area {area}, filled with {value} on s{stream}")
            }
            What::Copy { rank, from, to, stream } => {
                writeln!(f, "rank {rank} copies {from} to {to} on s{stream}")
            }
            What::Define { graph, origins, body } => {
                write!(f, "graph {graph}, captured by")?;
                for (rank, origin) in origins.iter().enumerate() {
                    if let Some(origin) = origin {
                        write!(f, " rank {rank} (from s{origin})")?;
                    }
                }
                writeln!(f, ":")?;
                for step in body {
                    write!(f, "{:indent$}    ", "")?;
                    step.list(f, comms, indent + 4)?;
                }
                Ok(())
            }
            What::Fill { rank, to, value, stream } => {
                writeln!(f, "rank {rank} fills {to} with {value} on s{stream}")
            }
            What::Finalize { comm } => writeln!(f, "c{comm} is finalized"),
            What::Free { rank, area, stream } => {
                writeln!(f, "rank {rank} frees area {area} after s{stream}")
            }
            What::Join { comm } => writeln!(f, "c{comm} = join of ranks {:?}", comms[*comm]),
            What::Load { rank, to, stream, .. } => {
                writeln!(f, "rank {rank} loads {to} from the host on s{stream}")
            }
            What::Meet { ops, grouped } => {
                for (index, op) in ops.iter().enumerate() {
                    if index > 0 {
                        write!(f, "{:indent$}", "")?;
                    }
                    op.list(f, comms)?;
                }
                let in_group = |rank: &usize| grouped.get(*rank).is_some_and(|&grouped| grouped);
                let ranks: Vec<_> = (0..grouped.len()).filter(in_group).collect();
                if ops.len() > 1 && !ranks.is_empty() {
                    writeln!(f, "{:indent$}in one group on ranks {ranks:?}", "")?;
                }
                Ok(())
            }
            What::Nap { rank, micros } => writeln!(f, "rank {rank} sleeps {micros} µs"),
            What::Observe { rank, from } => writeln!(f, "rank {rank} looks at {from}"),
            What::Renew { rank, stream } => {
                writeln!(f, "rank {rank} destroys s{stream} and makes another")
            }
            What::Run { graph, streams } => {
                writeln!(f, "graph {graph} runs on streams {streams:?}")
            }
            What::Shrink { parent, child } => {
                writeln!(f, "c{child} = c{parent} without all but ranks {:?}", comms[*child])
            }
            What::Split { parent, parts, children } => {
                write!(f, "c{parent} splits by (colour, key) {parts:?}:")?;
                for (color, child) in children {
                    write!(f, " c{child} = {:?} (colour {color})", comms[*child])?;
                }
                writeln!(f)
            }
            What::Wait { rank, stream } => writeln!(f, "rank {rank} waits for s{stream}"),
            What::Write { rank, to, .. } => writeln!(f, "rank {rank} writes {to} itself"),
        }
    }
}

impl Operation {
    fn list(&self, f: &mut fmt::Formatter<'_>, comms: &[Vec<usize>]) -> fmt::Result {
        let Self { comm, call, dtype, count, fresh, .. } = self;
        write!(f, "{call:?} of {count} × {dtype} on c{comm}")?;
        if fresh.is_some() {
            write!(f, ", freshly loaded")?;
        }
        for (index, (rank, seat, _)) in self.parts(comms).enumerate() {
            let Seat { stream, send, recv, scalar, decoy } = seat;
            write!(f, "{} rank {rank} s{stream}", if index == 0 { ":" } else { ";" })?;
            match (send, recv) {
                (Some(send), Some(recv)) => write!(f, " {send} → {recv}")?,
                (Some(send), None) => write!(f, " {send} →")?,
                (None, Some(recv)) => write!(f, " → {recv}")?,
                (None, None) => {}
            }
            if let Some(scalar) = scalar {
                write!(f, " scalar {scalar}")?;
            }
            if let Some(decoy) = decoy {
                write!(f, " ignores {decoy}")?;
            }
        }
        writeln!(f)
    }
}

/// Area and bytes.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { area, start, bytes } = self;
        match *area {
            HOST => write!(f, "host[{start}..{}]", start + bytes),
            area => write!(f, "d{area}[{start}..{}]", start + bytes),
        }
    }
}
