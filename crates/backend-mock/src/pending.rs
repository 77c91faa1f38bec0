//! What is enqueued and not done, for people.

use std::{collections::BTreeSet, fmt};

use collectives_core::{DType, Rank, RawStream};

use crate::{
    op::{Kind, Op},
    site::Site,
    slab::Key,
    state::State,
    stream::{Entry, Stream, StreamShared},
};

/// One rank's operation that is enqueued and not done. See [`Mock::pending`](crate::Mock::pending).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PendingOp {
    /// The communicator's name, or a number.
    pub communicator: String,
    /// The rank that issued it.
    pub rank: Rank,
    /// Number of ranks.
    pub size: usize,
    /// The trait method's name.
    pub operation: &'static str,
    /// Elements per rank, in the sense of [`collectives_core::shape::Shape::count`].
    pub count: usize,
    /// Their type.
    pub dtype: DType,
    /// The reduce op's name, where the operation reduces.
    pub reduce_op: Option<&'static str>,
    /// The root or peer, where the operation has one.
    pub other: Option<Rank>,
    /// Its number among the rank's collectives, or among its sends to (receives from) the peer.
    pub sequence: u64,
    /// The device of its stream.
    pub device: usize,
    /// Its stream; the default stream too where it is part of a launched graph.
    pub stream: RawStream,
    /// Whether it is part of a launched graph.
    pub in_graph: bool,
    /// Where in the program the call stands.
    pub site: Site,
    /// How far it has come.
    pub status: PendingStatus,
    key: (Key, Key),
}

/// How far a pending operation has come.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum PendingStatus {
    /// At the head of its stream, and kept from starting by this: a schedule, or a rule for a fault.
    Held(String),
    /// Behind other work on its stream.
    Queued,
    /// All ranks have arrived; data is being moved.
    Running,
    /// At the head of its stream, waiting for the operation of these ranks.
    Waiting(Vec<Rank>),
}

impl PendingOp {
    pub(crate) fn all(state: &State, first: Option<u32>) -> Vec<Self> {
        let mut all = Vec::new();
        // A unit stands in several streams, and is listed once.
        let mut units = BTreeSet::new();
        let mut streams: Vec<_> = state.streams.iter().collect();
        streams.sort_by_key(|(index, _)| Some(*index) != first);
        for (_, stream) in streams {
            for (place, entry) in stream.queue.iter().enumerate() {
                if let Entry::Unit { unit } = entry
                    && !units.insert(*unit)
                {
                    continue;
                }
                let arrived = place == 0 && stream.started && state.has_arrived(entry);
                all.extend(
                    state.ops(entry).iter().map(|op| Self::of(state, stream, op, place, arrived)),
                );
            }
        }
        all
    }

    pub(crate) fn of(state: &State, stream: &Stream, op: &Op, place: usize, arrived: bool) -> Self {
        let comm = state.comms.get(op.comm);
        let status = match comm {
            Some(comm) if arrived && comm.waits(op) => PendingStatus::Waiting(comm.missing(op)),
            _ if arrived => PendingStatus::Running,
            _ if place == 0 && !stream.started => {
                let by = state.held_by(stream.shared.key.index);
                by.map_or(PendingStatus::Queued, PendingStatus::Held)
            }
            _ => PendingStatus::Queued,
        };
        Self {
            communicator: comm.map_or_else(|| "gone".into(), |comm| comm.title()),
            rank: Rank::new(op.rank),
            size: comm.map_or(0, |comm| comm.ends.len()),
            operation: op.kind.name(),
            count: op.count,
            dtype: op.dtype,
            reduce_op: op.reduction.name(),
            other: op.other(),
            sequence: op.sequence,
            device: stream.shared.device,
            stream: stream.shared.raw,
            in_graph: stream.is_branch,
            site: op.site,
            status,
            key: (op.comm, stream.shared.key),
        }
    }

    /// An operation of another process that has met its peers here.
    pub(crate) fn elsewhere(state: &State, op: &Op) -> Self {
        let comm = state.comms.get(op.comm);
        let across = comm.and_then(|comm| comm.across.as_ref());
        let part = across.and_then(|across| across.joint.part_of(op));
        let site = across.zip(part.as_ref());
        let site = site.map_or(op.site, |(across, part)| across.joint.site_of(op.rank, part));
        Self {
            communicator: comm.map_or_else(|| "gone".into(), |comm| comm.title()),
            rank: Rank::new(op.rank),
            size: comm.map_or(0, |comm| comm.ends.len()),
            operation: op.kind.name(),
            count: op.count,
            dtype: op.dtype,
            reduce_op: op.reduction.name(),
            other: op.other(),
            sequence: op.sequence,
            device: comm.map_or(0, |comm| comm.ends[op.rank as usize].shared.info.device),
            stream: RawStream::from_bits(part.as_ref().map_or(0, |part| part.stream as usize)),
            in_graph: part.is_some_and(|part| part.in_graph),
            site,
            status: PendingStatus::Running,
            // A stream of another process is none of this one's.
            key: (op.comm, Key { index: u32::MAX, generation: 0 }),
        }
    }

    pub(crate) fn is_on(&self, stream: &StreamShared) -> bool {
        self.key.1 == stream.key
    }

    pub(crate) fn is_of_same_communicator(&self, other: &Self) -> bool {
        self.key.0 == other.key.0
    }
}

impl PendingOp {
    /// Whether it is a send or a receive.
    pub(crate) fn is_message(&self) -> bool {
        [Kind::Send.name(), Kind::Recv.name()].contains(&self.operation)
    }

    /// The operation as in a call, with its number where `numbered`.
    pub(crate) fn call(&self, numbered: bool) -> String {
        let number = if numbered { format!(" #{}", self.sequence) } else { String::new() };
        let what = (self.count, self.dtype);
        call(self.operation, &number, what, self.reduce_op, self.other)
    }

    /// Its stream, for people.
    pub(crate) fn stream_name(&self) -> String {
        stream_name(self.stream, self.in_graph)
    }
}

/// An operation as in a call; `number` stands behind its name.
pub(crate) fn call(
    name: &str,
    number: &str,
    (count, dtype): (usize, DType),
    reduction: Option<&str>,
    other: Option<Rank>,
) -> String {
    let is = |kind: Kind| name == kind.name();
    let other = match other {
        Some(peer) if is(Kind::Send) => format!(", to rank {peer}"),
        Some(peer) if is(Kind::Recv) => format!(", from rank {peer}"),
        Some(root) => format!(", root {root}"),
        None => String::new(),
    };
    let reduction = reduction.map_or_else(String::new, |op| format!(", {op}"));
    format!("{name}{number} of {count} × {dtype}{reduction}{other}")
}

/// A stream, for people.
pub(crate) fn stream_name(stream: RawStream, in_graph: bool) -> String {
    match stream {
        _ if in_graph => "a graph's stream".into(),
        RawStream::DEFAULT => "the default stream".into(),
        stream => format!("stream {:#x}", stream.bits()),
    }
}

/// One line: who, what, where, and what for.
impl fmt::Display for PendingOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rank, size, communicator, .. } = self;
        write!(f, "rank {rank} of {size} in '{communicator}': {}", self.call(true))?;
        write!(f, " ({})", self.site)?;
        match &self.status {
            PendingStatus::Held(by) => write!(f, ", held by {by}"),
            PendingStatus::Queued => f.write_str(", behind other work"),
            PendingStatus::Running => f.write_str(", running"),
            PendingStatus::Waiting(ranks) => {
                let ranks: Vec<_> = ranks.iter().map(ToString::to_string).collect();
                let s = if ranks.len() == 1 { "" } else { "s" };
                write!(f, ", waiting for rank{s} {}", ranks.join(", "))
            }
        }
    }
}
