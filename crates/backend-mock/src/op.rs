//! One rank's part of an operation, as it waits in a stream.

use collectives_core::{DType, Rank, ReduceOp};
use serde::{Deserialize, Serialize};

use crate::{site::Site, slab::Key};

/// What one rank asked for: plain data, checked when the call was made.
#[derive(Clone, Copy)]
pub(crate) struct Op {
    /// The communicator.
    pub(crate) comm: Key,
    /// This rank.
    pub(crate) rank: u32,
    /// Root or peer; `u32::MAX` where the kind has none.
    pub(crate) other: u32,
    pub(crate) kind: Kind,
    pub(crate) dtype: DType,
    pub(crate) reduction: Reduction,
    /// Elements, in the sense of [`collectives_core::shape::Shape`].
    pub(crate) count: usize,
    /// Null where this rank sends nothing.
    pub(crate) send: *const u8,
    /// Null where this rank receives nothing.
    pub(crate) recv: *mut u8,
    pub(crate) factor: Factor,
    /// Position among the collectives of this rank, or among its sends to (receives from) the peer.
    pub(crate) sequence: u64,
    /// Where in the program the call stands.
    pub(crate) site: Site,
}

// SAFETY: the pointers are the caller's buffers, which the contract of `Collectives` gives to the
// engine from the call until the stream has passed the operation, on whatever thread it runs.
unsafe impl Send for Op {}
// SAFETY: as above; a shared `Op` is only read, and workers write disjoint parts of its buffers.
unsafe impl Sync for Op {}

impl Op {
    /// Bytes of one element.
    pub(crate) fn width(&self) -> usize {
        self.dtype.size()
    }

    /// Root or peer, where the kind has one.
    pub(crate) fn other(&self) -> Option<Rank> {
        (self.other != NOBODY).then(|| Rank::new(self.other))
    }
}

/// Stands for no rank.
pub(crate) const NOBODY: u32 = u32::MAX;

/// Which operation.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub(crate) enum Kind {
    AllGather,
    AllReduce,
    AllToAll,
    Broadcast,
    Gather,
    Recv,
    Reduce,
    ReduceScatter,
    Scatter,
    Send,
    /// Moves nothing: the count is a window's bytes.
    WindowRegister,
}

impl Kind {
    /// All of them.
    pub(crate) const ALL: [Self; 11] = [
        Self::AllGather,
        Self::AllReduce,
        Self::AllToAll,
        Self::Broadcast,
        Self::Gather,
        Self::Recv,
        Self::Reduce,
        Self::ReduceScatter,
        Self::Scatter,
        Self::Send,
        Self::WindowRegister,
    ];

    /// The name of the trait method.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::AllGather => "all_gather",
            Self::AllReduce => "all_reduce",
            Self::AllToAll => "all_to_all",
            Self::Broadcast => "broadcast",
            Self::Gather => "gather",
            Self::Recv => "recv",
            Self::Reduce => "reduce",
            Self::ReduceScatter => "reduce_scatter",
            Self::Scatter => "scatter",
            Self::Send => "send",
            Self::WindowRegister => "window_register",
        }
    }

    /// Whether it matches by (source, destination) rather than by communicator.
    pub(crate) const fn is_point_to_point(self) -> bool {
        matches!(self, Self::Recv | Self::Send)
    }
}

/// How elements are combined: what must agree on all ranks. Scalars need not.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) enum Reduction {
    Avg,
    Max,
    Min,
    None,
    PreMulSum,
    Prod,
    Sum,
}

impl Reduction {
    /// All of them.
    pub(crate) const ALL: [Self; 7] =
        [Self::Avg, Self::Max, Self::Min, Self::None, Self::PreMulSum, Self::Prod, Self::Sum];

    /// The name, as core writes it; `None` where nothing is reduced.
    pub(crate) const fn name(self) -> Option<&'static str> {
        match self {
            Self::Avg => Some("avg"),
            Self::Max => Some("max"),
            Self::Min => Some("min"),
            Self::None => None,
            Self::PreMulSum => Some("premulsum"),
            Self::Prod => Some("prod"),
            Self::Sum => Some("sum"),
        }
    }
}

impl From<ReduceOp> for Reduction {
    fn from(op: ReduceOp) -> Self {
        match op {
            ReduceOp::Sum => Self::Sum,
            ReduceOp::Prod => Self::Prod,
            ReduceOp::Max => Self::Max,
            ReduceOp::Min => Self::Min,
            ReduceOp::Avg => Self::Avg,
            ReduceOp::PreMulSum(_) => Self::PreMulSum,
        }
    }
}

/// The scalar of a PreMulSum.
#[derive(Clone, Copy)]
pub(crate) enum Factor {
    /// Read when the operation runs.
    At(*const u8),
    /// No PreMulSum.
    None,
    /// Copied when the operator was created.
    Value([u8; 8]),
}

// SAFETY: the pointer is the caller's scalar, readable by the device, that is on any thread, as long
// as operations use it (the contract of `create_pre_mul_sum`).
unsafe impl Send for Factor {}
// SAFETY: as above; it is only read.
unsafe impl Sync for Factor {}

impl Factor {
    /// The scalar's bytes, followed by zeros.
    ///
    /// # Safety
    /// A pointer is one readable element of `dtype`.
    pub(crate) unsafe fn read(self, dtype: DType) -> [u8; 8] {
        match self {
            Self::Value(bytes) => bytes,
            Self::At(ptr) => {
                let mut bytes = [0; 8];
                // SAFETY: promised by the caller; eight bytes hold every element type.
                unsafe { bytes.as_mut_ptr().copy_from_nonoverlapping(ptr, dtype.size()) };
                bytes
            }
            Self::None => [0; 8],
        }
    }
}
