//! One operation, checked and ready to be enqueued: now, at the close of a group, or in a capture.

use std::{panic::Location, sync::Arc};

use collectives_core::{
    CallConfig, Collectives, CollectivesExt, Error, Launch, Rank, RecvBuf, ReduceOp, Result,
    SendBuf,
};

use crate::{AnyComm, Stream, buffer::Allocation, reduce::OpKeep};

/// An operation with its raw arguments, and what they refer to.
pub(crate) struct Operation<'a> {
    pub(crate) call: Call<'a>,
    /// The memory of the arguments.
    pub(crate) memory: [Option<&'a Arc<Allocation>>; 2],
    /// The reduce op, where it has to be kept.
    pub(crate) op: Option<Arc<OpKeep>>,
    /// How the library is to run it, where the caller has said so.
    pub(crate) config: Option<&'a CallConfig>,
    pub(crate) site: &'static Location<'static>,
}

/// The arguments of an operation, as core's traits take them.
#[derive(Clone, Copy)]
pub(crate) enum Call<'a> {
    AllGather { send: SendBuf, recv: RecvBuf },
    AllGatherV { send: SendBuf, recv: RecvBuf, counts: &'a [usize] },
    AllReduce { send: SendBuf, recv: RecvBuf, op: ReduceOp },
    AllToAll { send: SendBuf, recv: RecvBuf },
    AllToAllV { send: SendBuf, to: &'a [usize], recv: RecvBuf, from: &'a [usize] },
    Barrier { scratch: RecvBuf },
    Broadcast { send: Option<SendBuf>, recv: RecvBuf, root: Rank },
    Gather { send: SendBuf, recv: Option<RecvBuf>, root: Rank },
    GatherV { send: SendBuf, recv: Option<RecvBuf>, counts: &'a [usize], root: Rank },
    Recv { recv: RecvBuf, peer: Rank },
    Reduce { send: SendBuf, recv: Option<RecvBuf>, op: ReduceOp, root: Rank },
    ReduceScatter { send: SendBuf, recv: RecvBuf, op: ReduceOp },
    ReduceScatterV { send: SendBuf, recv: RecvBuf, counts: &'a [usize], op: ReduceOp },
    Scatter { send: Option<SendBuf>, recv: RecvBuf, root: Rank },
    ScatterV { send: Option<SendBuf>, recv: RecvBuf, counts: &'a [usize], root: Rank },
    Send { send: SendBuf, peer: Rank },
    SendRecv { send: SendBuf, to: Rank, recv: RecvBuf, from: Rank },
    WarmUp { scratch: RecvBuf },
}

impl Operation<'_> {
    /// Enqueues the operation.
    ///
    /// # Safety
    /// As [`Collectives`]; `stream` was ordered after the last use of the operation's memory.
    #[inline]
    pub(crate) unsafe fn issue(&self, comm: &AnyComm, stream: &Stream) -> Result<()> {
        let launch = Launch::at(stream.as_raw(), self.site);
        let launch = self.config.map_or(launch, |config| launch.with_config(config));
        // SAFETY: the caller's promise, handed on as it is.
        unsafe { self.call.issue(comm, launch) }
    }

    /// Names the operation, and where it was called, in the error that refuses it. A failure of the
    /// communicator is about more than this call.
    #[cold]
    pub(crate) fn refused(&self, error: Error) -> Error {
        if error.poisons_communicator() {
            return error;
        }
        let name = error.operation().unwrap_or_else(|| self.call.name());
        error.with_operation(name).with_site(self.site)
    }
}

impl Call<'_> {
    /// The operation's name, as its method is called.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::AllGather { .. } => "all_gather",
            Self::AllGatherV { .. } => "all_gather_v",
            Self::AllReduce { .. } => "all_reduce",
            Self::AllToAll { .. } => "all_to_all",
            Self::AllToAllV { .. } => "all_to_all_v",
            Self::Barrier { .. } => "barrier",
            Self::Broadcast { .. } => "broadcast",
            Self::Gather { .. } => "gather",
            Self::GatherV { .. } => "gather_v",
            Self::Recv { .. } => "recv",
            Self::Reduce { .. } => "reduce",
            Self::ReduceScatter { .. } => "reduce_scatter",
            Self::ReduceScatterV { .. } => "reduce_scatter_v",
            Self::Scatter { .. } => "scatter",
            Self::ScatterV { .. } => "scatter_v",
            Self::Send { .. } => "send",
            Self::SendRecv { .. } => "send_recv",
            Self::WarmUp { .. } => "warm_up",
        }
    }

    /// The connections that the library uses for it.
    pub(crate) const fn uses(&self) -> Connections {
        match self {
            Self::AllGather { .. } => Connections::ALL_GATHER,
            Self::AllReduce { .. } | Self::Barrier { .. } => Connections::ALL_REDUCE,
            // The latter is a group of them.
            Self::Broadcast { .. } | Self::AllGatherV { .. } => Connections::BROADCAST,
            Self::Reduce { .. } | Self::ReduceScatterV { .. } => Connections::REDUCE,
            Self::ReduceScatter { .. } => Connections::REDUCE_SCATTER,
            Self::AllToAll { .. }
            | Self::AllToAllV { .. }
            | Self::Gather { .. }
            | Self::GatherV { .. }
            | Self::Recv { .. }
            | Self::Scatter { .. }
            | Self::ScatterV { .. }
            | Self::Send { .. }
            | Self::SendRecv { .. } => Connections::PEERS,
            Self::WarmUp { .. } => Connections::ALL,
        }
    }

    /// The connections that are there for sure when it was issued.
    pub(crate) const fn makes(&self) -> Connections {
        match self {
            // Of these, only some pairs of ranks are known to be connected.
            Self::AllToAllV { .. }
            | Self::Gather { .. }
            | Self::GatherV { .. }
            | Self::Recv { .. }
            | Self::Scatter { .. }
            | Self::ScatterV { .. }
            | Self::Send { .. }
            | Self::SendRecv { .. } => Connections::NONE,
            Self::AllGather { .. }
            | Self::AllGatherV { .. }
            | Self::AllReduce { .. }
            | Self::AllToAll { .. }
            | Self::Barrier { .. }
            | Self::Broadcast { .. }
            | Self::Reduce { .. }
            | Self::ReduceScatter { .. }
            | Self::ReduceScatterV { .. }
            | Self::WarmUp { .. } => self.uses(),
        }
    }

    /// # Safety
    /// As [`Collectives`].
    #[inline]
    #[expect(
        clippy::multiple_unsafe_ops_per_block,
        reason = "one call runs; each arm hands the same promise on"
    )]
    unsafe fn issue(&self, comm: &AnyComm, launch: Launch<'_>) -> Result<()> {
        // SAFETY: the caller's promise, handed on as it is.
        unsafe {
            match *self {
                Self::AllGather { send, recv } => comm.all_gather(send, recv, launch),
                Self::AllGatherV { send, recv, counts } => {
                    comm.all_gather_v(send, recv, counts, launch)
                }
                Self::AllReduce { send, recv, op } => comm.all_reduce(send, recv, op, launch),
                Self::AllToAll { send, recv } => comm.all_to_all(send, recv, launch),
                Self::AllToAllV { send, to, recv, from } => {
                    comm.all_to_all_v(send, to, recv, from, launch)
                }
                Self::Barrier { scratch } => comm.barrier(scratch, launch),
                Self::Broadcast { send, recv, root } => comm.broadcast(send, recv, root, launch),
                Self::Gather { send, recv, root } => comm.gather(send, recv, root, launch),
                Self::GatherV { send, recv, counts, root } => {
                    comm.gather_v(send, recv, counts, root, launch)
                }
                Self::Recv { recv, peer } => comm.recv(recv, peer, launch),
                Self::Reduce { send, recv, op, root } => comm.reduce(send, recv, op, root, launch),
                Self::ReduceScatter { send, recv, op } => {
                    comm.reduce_scatter(send, recv, op, launch)
                }
                Self::ReduceScatterV { send, recv, counts, op } => {
                    comm.reduce_scatter_v(send, recv, counts, op, launch)
                }
                Self::Scatter { send, recv, root } => comm.scatter(send, recv, root, launch),
                Self::ScatterV { send, recv, counts, root } => {
                    comm.scatter_v(send, recv, counts, root, launch)
                }
                Self::Send { send, peer } => comm.send(send, peer, launch),
                Self::SendRecv { send, to, recv, from } => {
                    comm.send_recv(send, to, recv, from, launch)
                }
                Self::WarmUp { scratch } => comm.warm_up(scratch, launch),
            }
        }
    }
}

/// Connections of a communicator: libraries make them on first use, which no capture can hold.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Connections(u32);

impl Connections {
    const NONE: Self = Self(0);
    const ALL_GATHER: Self = Self(1);
    const ALL_REDUCE: Self = Self(1 << 1);
    const BROADCAST: Self = Self(1 << 2);
    const REDUCE: Self = Self(1 << 3);
    const REDUCE_SCATTER: Self = Self(1 << 4);
    /// Of each rank with each.
    const PEERS: Self = Self(1 << 5);
    pub(crate) const ALL: Self = Self(u32::MAX);

    /// As a number that others can be added to.
    pub(crate) const fn bits(self) -> u32 {
        self.0
    }

    /// Whether none of these is missing in `there`.
    pub(crate) const fn are_in(self, there: u32) -> bool {
        self.0 & !there == 0
    }
}

/// Writes the operations of a communicator, once for enqueuing now and once for recording.
///
/// `$self` is the receiver, `$lt` the lifetime for which the arguments are borrowed; it is declared
/// by each method where `[$lt]` is given, by the surrounding `impl` where `[]` is. The receiver has
/// `fn submit(&self, Operation<$lt>) -> Result<()>`, `fn comm(&self) -> &$lt Communicator`, and a field
/// `config: Option<&$lt CallConfig>`.
macro_rules! operations {
    ($self:ident, $lt:lifetime, [$($declare:lifetime)?]) => {
        /// Combines the `send` buffers of all ranks; every rank receives the result.
        ///
        /// *Shape*: `recv` is as long as `send`.
        ///
        /// # Errors
        /// As [`Collectives::all_reduce`](collectives_core::Collectives::all_reduce).
        #[doc(alias = "ncclAllReduce")]
        #[doc(alias = "MPI_Allreduce")]
        #[track_caller]
        #[inline]
        pub fn all_reduce<$($declare,)? T: Element>(
            &$self,
            send: impl Into<Slice<$lt, T>>,
            recv: impl Into<SliceMut<$lt, T>>,
            op: impl Into<Op>,
        ) -> Result<()> {
            let (send, recv, op) = (send.into(), recv.into(), op.into());
            let call = Call::AllReduce { send: send.raw(), recv: recv.raw(), op: op.raw };
            $self.submit(Operation {
                call,
                memory: [Some(send.memory()), Some(recv.memory())],
                op: op.keep,
                config: $self.config,
                site: Location::caller(),
            })
        }

        /// [`all_reduce`](Self::all_reduce) with the result in the place of the input.
        ///
        /// # Errors
        /// As [`Collectives::all_reduce`](collectives_core::Collectives::all_reduce).
        #[doc(alias = "MPI_IN_PLACE")]
        #[track_caller]
        #[inline]
        pub fn all_reduce_in_place<$($declare,)? T: Element>(
            &$self,
            buffer: impl Into<SliceMut<$lt, T>>,
            op: impl Into<Op>,
        ) -> Result<()> {
            let (buffer, op) = (buffer.into(), op.into());
            let recv = buffer.raw();
            $self.submit(Operation {
                call: Call::AllReduce { send: recv.as_send(), recv, op: op.raw },
                memory: [Some(buffer.memory()), None],
                op: op.keep,
                config: $self.config,
                site: Location::caller(),
            })
        }

        /// Combines the `send` buffers of all ranks; `root` receives the result.
        ///
        /// *Shape*: on root, `recv` is given and as long as `send`; elsewhere it is ignored.
        ///
        /// # Errors
        /// As [`Collectives::reduce`](collectives_core::Collectives::reduce).
        #[doc(alias = "ncclReduce")]
        #[doc(alias = "MPI_Reduce")]
        #[track_caller]
        pub fn reduce<$($declare,)? T: Element>(
            &$self,
            send: impl Into<Slice<$lt, T>>,
            recv: impl Into<Option<SliceMut<$lt, T>>>,
            op: impl Into<Op>,
            root: u32,
        ) -> Result<()> {
            let (send, recv, op) = (send.into(), recv.into(), op.into());
            let raw = recv.as_ref().map(SliceMut::raw);
            let root = Rank::new(root);
            $self.submit(Operation {
                call: Call::Reduce { send: send.raw(), recv: raw, op: op.raw, root },
                memory: [Some(send.memory()), recv.as_ref().map(SliceMut::memory)],
                op: op.keep,
                config: $self.config,
                site: Location::caller(),
            })
        }

        /// [`reduce`](Self::reduce) with root's result in the place of its input.
        ///
        /// # Errors
        /// As [`Collectives::reduce`](collectives_core::Collectives::reduce).
        #[track_caller]
        pub fn reduce_in_place<$($declare,)? T: Element>(
            &$self,
            buffer: impl Into<SliceMut<$lt, T>>,
            op: impl Into<Op>,
            root: u32,
        ) -> Result<()> {
            let (buffer, op) = (buffer.into(), op.into());
            let recv = buffer.raw();
            let root = Rank::new(root);
            $self.submit(Operation {
                call: Call::Reduce { send: recv.as_send(), recv: Some(recv), op: op.raw, root },
                memory: [Some(buffer.memory()), None],
                op: op.keep,
                config: $self.config,
                site: Location::caller(),
            })
        }

        /// Copies `send` of `root` to `recv` of every rank, root included.
        ///
        /// *Shape*: on root, `send` is given and as long as `recv`; elsewhere it is ignored.
        ///
        /// # Errors
        /// As [`Collectives::broadcast`](collectives_core::Collectives::broadcast).
        #[doc(alias = "ncclBroadcast")]
        #[doc(alias = "MPI_Bcast")]
        #[track_caller]
        pub fn broadcast<$($declare,)? T: Element>(
            &$self,
            send: impl Into<Option<Slice<$lt, T>>>,
            recv: impl Into<SliceMut<$lt, T>>,
            root: u32,
        ) -> Result<()> {
            let (send, recv) = (send.into(), recv.into());
            let raw = send.as_ref().map(Slice::raw);
            let root = Rank::new(root);
            $self.submit(Operation {
                call: Call::Broadcast { send: raw, recv: recv.raw(), root },
                memory: [send.as_ref().map(Slice::memory), Some(recv.memory())],
                op: None,
                config: $self.config,
                site: Location::caller(),
            })
        }

        /// Copies `buffer` of `root` to `buffer` of every other rank.
        ///
        /// # Errors
        /// As [`Collectives::broadcast`](collectives_core::Collectives::broadcast).
        #[doc(alias = "ncclBcast")]
        #[track_caller]
        pub fn broadcast_in_place<$($declare,)? T: Element>(
            &$self,
            buffer: impl Into<SliceMut<$lt, T>>,
            root: u32,
        ) -> Result<()> {
            let buffer = buffer.into();
            let recv = buffer.raw();
            let root = Rank::new(root);
            $self.submit(Operation {
                call: Call::Broadcast { send: Some(recv.as_send()), recv, root },
                memory: [Some(buffer.memory()), None],
                op: None,
                config: $self.config,
                site: Location::caller(),
            })
        }

        /// Concatenates the `send` buffers of all ranks in rank order; every rank receives the
        /// result.
        ///
        /// *Shape*: `recv` is size times as long as `send`.
        ///
        /// # Errors
        /// As [`Collectives::all_gather`](collectives_core::Collectives::all_gather).
        #[doc(alias = "ncclAllGather")]
        #[doc(alias = "MPI_Allgather")]
        #[doc(alias = "all_gather_into_tensor")]
        #[track_caller]
        pub fn all_gather<$($declare,)? T: Element>(
            &$self,
            send: impl Into<Slice<$lt, T>>,
            recv: impl Into<SliceMut<$lt, T>>,
        ) -> Result<()> {
            let (send, recv) = (send.into(), recv.into());
            $self.submit(Operation {
                call: Call::AllGather { send: send.raw(), recv: recv.raw() },
                memory: [Some(send.memory()), Some(recv.memory())],
                op: None,
                config: $self.config,
                site: Location::caller(),
            })
        }

        /// [`all_gather`](Self::all_gather) where this rank's part is already in its place, at
        /// rank × length / size.
        ///
        /// *Shape*: the length is a multiple of the size.
        ///
        /// # Errors
        /// As [`Collectives::all_gather`](collectives_core::Collectives::all_gather).
        #[track_caller]
        pub fn all_gather_in_place<$($declare,)? T: Element>(
            &$self,
            buffer: impl Into<SliceMut<$lt, T>>,
        ) -> Result<()> {
            let buffer = buffer.into();
            let recv = buffer.raw();
            let send = $self.comm().own_part(recv).as_send();
            $self.submit(Operation {
                call: Call::AllGather { send, recv },
                memory: [Some(buffer.memory()), None],
                op: None,
                config: $self.config,
                site: Location::caller(),
            })
        }

        /// Gathers buffers of different lengths: rank i sends `counts[i]` elements.
        ///
        /// *Shape*: `send` holds `counts[rank]`, `recv` the sum of `counts`.
        ///
        /// # Errors
        /// As [`CollectivesExt::all_gather_v`](collectives_core::CollectivesExt::all_gather_v).
        #[doc(alias = "MPI_Allgatherv")]
        #[doc(alias = "all_gatherv")]
        #[track_caller]
        pub fn all_gather_v<$($declare,)? T: Element>(
            &$self,
            send: impl Into<Slice<$lt, T>>,
            recv: impl Into<SliceMut<$lt, T>>,
            counts: &$lt [usize],
        ) -> Result<()> {
            let (send, recv) = (send.into(), recv.into());
            $self.submit(Operation {
                call: Call::AllGatherV { send: send.raw(), recv: recv.raw(), counts },
                memory: [Some(send.memory()), Some(recv.memory())],
                op: None,
                config: $self.config,
                site: Location::caller(),
            })
        }

        /// Combines the `send` buffers of all ranks; rank i receives the i-th part of the result.
        ///
        /// *Shape*: `send` is size times as long as `recv`.
        ///
        /// # Errors
        /// As [`Collectives::reduce_scatter`](collectives_core::Collectives::reduce_scatter).
        #[doc(alias = "ncclReduceScatter")]
        #[doc(alias = "MPI_Reduce_scatter_block")]
        #[doc(alias = "reduce_scatter_tensor")]
        #[track_caller]
        pub fn reduce_scatter<$($declare,)? T: Element>(
            &$self,
            send: impl Into<Slice<$lt, T>>,
            recv: impl Into<SliceMut<$lt, T>>,
            op: impl Into<Op>,
        ) -> Result<()> {
            let (send, recv, op) = (send.into(), recv.into(), op.into());
            $self.submit(Operation {
                call: Call::ReduceScatter { send: send.raw(), recv: recv.raw(), op: op.raw },
                memory: [Some(send.memory()), Some(recv.memory())],
                op: op.keep,
                config: $self.config,
                site: Location::caller(),
            })
        }

        /// [`reduce_scatter`](Self::reduce_scatter) with this rank's result in its place of the
        /// input, at rank × length / size. The other parts are undefined afterwards.
        ///
        /// *Shape*: the length is a multiple of the size.
        ///
        /// # Errors
        /// As [`Collectives::reduce_scatter`](collectives_core::Collectives::reduce_scatter).
        #[track_caller]
        pub fn reduce_scatter_in_place<$($declare,)? T: Element>(
            &$self,
            buffer: impl Into<SliceMut<$lt, T>>,
            op: impl Into<Op>,
        ) -> Result<()> {
            let (buffer, op) = (buffer.into(), op.into());
            let send = buffer.raw().as_send();
            let recv = $self.comm().own_part(buffer.raw());
            $self.submit(Operation {
                call: Call::ReduceScatter { send, recv, op: op.raw },
                memory: [Some(buffer.memory()), None],
                op: op.keep,
                config: $self.config,
                site: Location::caller(),
            })
        }

        /// Combines the `send` buffers of all ranks; rank i receives its part, `counts[i]`
        /// elements.
        ///
        /// *Shape*: `send` holds the sum of `counts`, `recv` holds `counts[rank]`.
        ///
        /// # Errors
        /// As [`CollectivesExt::reduce_scatter_v`](collectives_core::CollectivesExt::reduce_scatter_v).
        #[doc(alias = "MPI_Reduce_scatter")]
        #[doc(alias = "reduce_scatterv")]
        #[track_caller]
        pub fn reduce_scatter_v<$($declare,)? T: Element>(
            &$self,
            send: impl Into<Slice<$lt, T>>,
            recv: impl Into<SliceMut<$lt, T>>,
            counts: &$lt [usize],
            op: impl Into<Op>,
        ) -> Result<()> {
            let (send, recv, op) = (send.into(), recv.into(), op.into());
            let (raw, into) = (send.raw(), recv.raw());
            $self.submit(Operation {
                call: Call::ReduceScatterV { send: raw, recv: into, counts, op: op.raw },
                memory: [Some(send.memory()), Some(recv.memory())],
                op: op.keep,
                config: $self.config,
                site: Location::caller(),
            })
        }

        /// Sends the i-th part of `send` to rank i, and receives rank i's part at the i-th place.
        ///
        /// *Shape*: both are as long, a multiple of the size.
        ///
        /// # Errors
        /// As [`Collectives::all_to_all`](collectives_core::Collectives::all_to_all).
        #[doc(alias = "ncclAlltoAll")]
        #[doc(alias = "MPI_Alltoall")]
        #[doc(alias = "all_to_all_single")]
        #[track_caller]
        pub fn all_to_all<$($declare,)? T: Element>(
            &$self,
            send: impl Into<Slice<$lt, T>>,
            recv: impl Into<SliceMut<$lt, T>>,
        ) -> Result<()> {
            let (send, recv) = (send.into(), recv.into());
            $self.submit(Operation {
                call: Call::AllToAll { send: send.raw(), recv: recv.raw() },
                memory: [Some(send.memory()), Some(recv.memory())],
                op: None,
                config: $self.config,
                site: Location::caller(),
            })
        }

        /// Sends `to[i]` elements to rank i and receives `from[i]` from it.
        ///
        /// *Shape*: each buffer holds the sum of its counts.
        ///
        /// # Errors
        /// As [`CollectivesExt::all_to_all_v`](collectives_core::CollectivesExt::all_to_all_v).
        #[doc(alias = "MPI_Alltoallv")]
        #[doc(alias = "all_to_allv")]
        #[doc(alias = "ncclAllToAllv")]
        #[track_caller]
        pub fn all_to_all_v<$($declare,)? T: Element>(
            &$self,
            send: impl Into<Slice<$lt, T>>,
            to: &$lt [usize],
            recv: impl Into<SliceMut<$lt, T>>,
            from: &$lt [usize],
        ) -> Result<()> {
            let (send, recv) = (send.into(), recv.into());
            $self.submit(Operation {
                call: Call::AllToAllV { send: send.raw(), to, recv: recv.raw(), from },
                memory: [Some(send.memory()), Some(recv.memory())],
                op: None,
                config: $self.config,
                site: Location::caller(),
            })
        }

        /// Concatenates the `send` buffers of all ranks in rank order; `root` receives the result.
        ///
        /// *Shape*: on root, `recv` is given and size times as long as `send`; elsewhere it is
        /// ignored.
        ///
        /// # Errors
        /// As [`Collectives::gather`](collectives_core::Collectives::gather).
        #[doc(alias = "ncclGather")]
        #[doc(alias = "MPI_Gather")]
        #[track_caller]
        pub fn gather<$($declare,)? T: Element>(
            &$self,
            send: impl Into<Slice<$lt, T>>,
            recv: impl Into<Option<SliceMut<$lt, T>>>,
            root: u32,
        ) -> Result<()> {
            let (send, recv) = (send.into(), recv.into());
            let raw = recv.as_ref().map(SliceMut::raw);
            $self.submit(Operation {
                call: Call::Gather { send: send.raw(), recv: raw, root: Rank::new(root) },
                memory: [Some(send.memory()), recv.as_ref().map(SliceMut::memory)],
                op: None,
                config: $self.config,
                site: Location::caller(),
            })
        }

        /// [`gather`](Self::gather) where root's part is already in its place. Other ranks
        /// give what they send.
        ///
        /// # Errors
        /// As [`Collectives::gather`](collectives_core::Collectives::gather).
        #[track_caller]
        pub fn gather_in_place<$($declare,)? T: Element>(
            &$self,
            buffer: impl Into<SliceMut<$lt, T>>,
            root: u32,
        ) -> Result<()> {
            let buffer = buffer.into();
            let root = Rank::new(root);
            let (send, recv) = $self.comm().rooted_parts(buffer.raw(), root);
            $self.submit(Operation {
                call: Call::Gather { send: send.as_send(), recv, root },
                memory: [Some(buffer.memory()), None],
                op: None,
                config: $self.config,
                site: Location::caller(),
            })
        }

        /// Gathers buffers of different lengths on `root`: rank i sends `counts[i]` elements.
        ///
        /// *Shape*: `send` holds `counts[rank]`; on root, `recv` holds the sum of `counts`.
        ///
        /// # Errors
        /// As [`CollectivesExt::gather_v`](collectives_core::CollectivesExt::gather_v).
        #[doc(alias = "MPI_Gatherv")]
        #[doc(alias = "gatherv")]
        #[track_caller]
        pub fn gather_v<$($declare,)? T: Element>(
            &$self,
            send: impl Into<Slice<$lt, T>>,
            recv: impl Into<Option<SliceMut<$lt, T>>>,
            counts: &$lt [usize],
            root: u32,
        ) -> Result<()> {
            let (send, recv) = (send.into(), recv.into());
            let raw = recv.as_ref().map(SliceMut::raw);
            let root = Rank::new(root);
            $self.submit(Operation {
                call: Call::GatherV { send: send.raw(), recv: raw, counts, root },
                memory: [Some(send.memory()), recv.as_ref().map(SliceMut::memory)],
                op: None,
                config: $self.config,
                site: Location::caller(),
            })
        }

        /// Sends the i-th part of `send` of `root` to rank i.
        ///
        /// *Shape*: on root, `send` is given and size times as long as `recv`; elsewhere it is
        /// ignored.
        ///
        /// # Errors
        /// As [`Collectives::scatter`](collectives_core::Collectives::scatter).
        #[doc(alias = "ncclScatter")]
        #[doc(alias = "MPI_Scatter")]
        #[track_caller]
        pub fn scatter<$($declare,)? T: Element>(
            &$self,
            send: impl Into<Option<Slice<$lt, T>>>,
            recv: impl Into<SliceMut<$lt, T>>,
            root: u32,
        ) -> Result<()> {
            let (send, recv) = (send.into(), recv.into());
            let raw = send.as_ref().map(Slice::raw);
            $self.submit(Operation {
                call: Call::Scatter { send: raw, recv: recv.raw(), root: Rank::new(root) },
                memory: [send.as_ref().map(Slice::memory), Some(recv.memory())],
                op: None,
                config: $self.config,
                site: Location::caller(),
            })
        }

        /// [`scatter`](Self::scatter) where root's part stays in its place. Other ranks give where
        /// they receive.
        ///
        /// # Errors
        /// As [`Collectives::scatter`](collectives_core::Collectives::scatter).
        #[track_caller]
        pub fn scatter_in_place<$($declare,)? T: Element>(
            &$self,
            buffer: impl Into<SliceMut<$lt, T>>,
            root: u32,
        ) -> Result<()> {
            let buffer = buffer.into();
            let root = Rank::new(root);
            let (recv, send) = $self.comm().rooted_parts(buffer.raw(), root);
            $self.submit(Operation {
                call: Call::Scatter { send: send.map(RecvBuf::as_send), recv, root },
                memory: [Some(buffer.memory()), None],
                op: None,
                config: $self.config,
                site: Location::caller(),
            })
        }

        /// Sends parts of different lengths from `root`: rank i receives `counts[i]` elements.
        ///
        /// *Shape*: `recv` holds `counts[rank]`; on root, `send` holds the sum of `counts`.
        ///
        /// # Errors
        /// As [`CollectivesExt::scatter_v`](collectives_core::CollectivesExt::scatter_v).
        #[doc(alias = "MPI_Scatterv")]
        #[doc(alias = "scatterv")]
        #[track_caller]
        pub fn scatter_v<$($declare,)? T: Element>(
            &$self,
            send: impl Into<Option<Slice<$lt, T>>>,
            recv: impl Into<SliceMut<$lt, T>>,
            counts: &$lt [usize],
            root: u32,
        ) -> Result<()> {
            let (send, recv) = (send.into(), recv.into());
            let raw = send.as_ref().map(Slice::raw);
            let root = Rank::new(root);
            $self.submit(Operation {
                call: Call::ScatterV { send: raw, recv: recv.raw(), counts, root },
                memory: [send.as_ref().map(Slice::memory), Some(recv.memory())],
                op: None,
                config: $self.config,
                site: Location::caller(),
            })
        }

        /// Sends `buffer` to `peer`, which receives as many elements.
        ///
        /// It may hold its stream until the peer receives: to exchange, use
        /// [`send_recv`](Self::send_recv) or a group.
        ///
        /// # Errors
        /// As [`Collectives::send`](collectives_core::Collectives::send).
        #[doc(alias = "ncclSend")]
        #[doc(alias = "MPI_Send")]
        #[doc(alias = "isend")]
        #[track_caller]
        pub fn send<$($declare,)? T: Element>(
            &$self,
            buffer: impl Into<Slice<$lt, T>>,
            peer: u32,
        ) -> Result<()> {
            let buffer = buffer.into();
            $self.submit(Operation {
                call: Call::Send { send: buffer.raw(), peer: Rank::new(peer) },
                memory: [Some(buffer.memory()), None],
                op: None,
                config: $self.config,
                site: Location::caller(),
            })
        }

        /// Receives into `buffer` from `peer`, which sends as many elements.
        ///
        /// # Errors
        /// As [`Collectives::recv`](collectives_core::Collectives::recv).
        #[doc(alias = "ncclRecv")]
        #[doc(alias = "MPI_Recv")]
        #[doc(alias = "irecv")]
        #[track_caller]
        pub fn recv<$($declare,)? T: Element>(
            &$self,
            buffer: impl Into<SliceMut<$lt, T>>,
            peer: u32,
        ) -> Result<()> {
            let buffer = buffer.into();
            $self.submit(Operation {
                call: Call::Recv { recv: buffer.raw(), peer: Rank::new(peer) },
                memory: [Some(buffer.memory()), None],
                op: None,
                config: $self.config,
                site: Location::caller(),
            })
        }

        /// Sends to one rank and receives from another, or the same, at once.
        ///
        /// # Errors
        /// As [`CollectivesExt::send_recv`](collectives_core::CollectivesExt::send_recv).
        #[doc(alias = "MPI_Sendrecv")]
        #[track_caller]
        pub fn send_recv<$($declare,)? T: Element>(
            &$self,
            send: impl Into<Slice<$lt, T>>,
            to: u32,
            recv: impl Into<SliceMut<$lt, T>>,
            from: u32,
        ) -> Result<()> {
            let (send, recv) = (send.into(), recv.into());
            let (to, from) = (Rank::new(to), Rank::new(from));
            $self.submit(Operation {
                call: Call::SendRecv { send: send.raw(), to, recv: recv.raw(), from },
                memory: [Some(send.memory()), Some(recv.memory())],
                op: None,
                config: $self.config,
                site: Location::caller(),
            })
        }

        /// Holds the stream until every rank's stream has come here. To hold the thread,
        /// synchronise the stream after it.
        ///
        /// # Errors
        /// As [`CollectivesExt::barrier`](collectives_core::CollectivesExt::barrier).
        #[doc(alias = "MPI_Barrier")]
        #[track_caller]
        pub fn barrier(&$self) -> Result<()> {
            let site = Location::caller();
            let (scratch, memory) = $self.comm().scratch()?;
            $self.submit(Operation {
                call: Call::Barrier { scratch: scratch.part(0, 1) },
                memory: [Some(memory), None],
                op: None,
                config: $self.config,
                site,
            })
        }

        /// Makes the library build its connections now, since the first use is slow, and inside a
        /// capture impossible.
        ///
        /// # Errors
        /// As [`CollectivesExt::warm_up`](collectives_core::CollectivesExt::warm_up).
        #[track_caller]
        pub fn warm_up(&$self) -> Result<()> {
            let site = Location::caller();
            let (scratch, memory) = $self.comm().scratch()?;
            $self.submit(Operation {
                call: Call::WarmUp { scratch },
                memory: [Some(memory), None],
                op: None,
                config: $self.config,
                site,
            })
        }
    };
}

pub(crate) use operations;
