//! Collectives and messages.
#![expect(non_snake_case, reason = "C names stay C names, as in nccl.h")]
#![expect(clippy::too_many_arguments, reason = "the signatures are NCCL's")]

use std::{
    env,
    ffi::{c_int, c_void},
    panic::Location,
    sync::OnceLock,
};

use collectives_backend_mock::MockComm;
use collectives_core::{Collectives, DType, Launch, Rank, RecvBuf, ReduceOp, SendBuf};
use collectives_nccl_abi::{
    cudaStream_t, ncclCollConfig_t, ncclComm_t, ncclDataType_t, ncclRedOp_t, ncclResult_t,
};

use super::{
    comm::{Comm, State},
    config,
    group::{self, checked},
    identity::Identity,
    log::{self, Level, Pointer, Subsystem},
    refusal::{Refusal, Result},
};
use crate::runtime;

/// One call, as it came.
#[derive(Clone, Copy)]
struct Call {
    kind: Kind,
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    datatype: ncclDataType_t,
    op: ncclRedOp_t,
    /// The root, or the peer.
    root: c_int,
    comm: ncclComm_t,
    stream: cudaStream_t,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    AllGather,
    AllReduce,
    AlltoAll,
    Broadcast,
    Gather,
    Recv,
    Reduce,
    ReduceScatter,
    Scatter,
    Send,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::AllGather => "AllGather",
            Self::AllReduce => "AllReduce",
            Self::AlltoAll => "AlltoAll",
            Self::Broadcast => "Broadcast",
            Self::Gather => "Gather",
            Self::Recv => "Recv",
            Self::Reduce => "Reduce",
            Self::ReduceScatter => "ReduceScatter",
            Self::Scatter => "Scatter",
            Self::Send => "Send",
        }
    }

    const fn reduces(self) -> bool {
        matches!(self, Self::AllReduce | Self::Reduce | Self::ReduceScatter)
    }
}

impl Call {
    /// Enqueues, or adds to the open group.
    #[track_caller]
    fn run(self) -> ncclResult_t {
        let site = Location::caller();
        checked(|| {
            self.issue(site)?;
            Ok(ncclResult_t::SUCCESS)
        })
    }

    fn issue(self, site: &'static Location<'static>) -> Result<()> {
        let name = self.kind.name();
        let comm = Comm::of(name, self.comm)?;
        let mut state = comm.lock();
        let last = state.stream.take();
        let mock = state.live(name)?;
        if state.suspended {
            return Err(Refusal::usage(format!("{name} : the communicator is suspended")));
        }
        let size = mock.info().size;
        let root = self.root(size)?;
        let dtype = dtype(name, self.datatype)?;
        let op = self.operator(&state, dtype)?;
        self.tell(state.calls, size);
        let stream = runtime::stream(self.stream, mock.info().device, last)?;
        group::collect(comm, state.config.blocking)?;
        self.dispatch(mock, dtype, op, root, Launch::at(stream.raw, site))?;
        if runtime::is_without_devices() && !group::is_open() {
            // Whoever has no device polls memory, and calls nothing that would move work on.
            mock.poll_error()?;
        }
        state.calls += 1;
        state.stream = Some(stream);
        Ok(())
    }

    /// The root or the peer, inside the communicator.
    fn root(&self, size: usize) -> Result<Rank> {
        match u32::try_from(self.root) {
            Ok(root) if (root as usize) < size => Ok(Rank::new(root)),
            _ => Err(Refusal::argument(format!(
                "{} : invalid root {} (root should be in the 0..{size} range)",
                self.kind.name(),
                self.root
            ))),
        }
    }

    fn operator(&self, state: &State, dtype: DType) -> Result<ReduceOp> {
        let name = self.kind.name();
        let unknown =
            || Refusal::argument(format!("{name} : invalid reduction operation {}", self.op.0));
        if let Ok(op) = usize::try_from(self.op.0)
            && let Some(op) = BUILT_IN.get(op)
        {
            return Ok(*op);
        }
        let op = state.operators.get(&self.op.0).ok_or_else(unknown)?;
        if op.dtype() != dtype {
            return Err(Refusal::argument(format!(
                "{name} : invalid data type passed to user-created ncclRedOp_t {}",
                self.op.0
            )));
        }
        Ok(ReduceOp::PreMulSum(*op))
    }

    fn dispatch(
        &self,
        comm: &MockComm,
        dtype: DType,
        op: ReduceOp,
        root: Rank,
        launch: Launch<'_>,
    ) -> Result<()> {
        let size = comm.info().size;
        let (mut count, mut dtype) = (self.count, dtype);
        if !self.kind.reduces() && !is_strict() {
            // As NCCL, to which what it only moves is bytes.
            count = self.bytes(count.checked_mul(dtype.size()))?;
            dtype = DType::I8;
        }
        let whole = self.bytes(count.checked_mul(size))?;
        let send = |count| SendBuf::new(self.send, count, dtype);
        let recv = |count| RecvBuf::new(self.recv, count, dtype);
        let is_root = comm.info().rank == root;
        // SAFETY, for all: the caller of the C function keeps to the contract of `Collectives`,
        // which is that of NCCL.
        let issued = match self.kind {
            // SAFETY: see above.
            Kind::AllGather => unsafe { comm.all_gather(send(count), recv(whole), launch) },
            // SAFETY: see above.
            Kind::AllReduce => unsafe { comm.all_reduce(send(count), recv(count), op, launch) },
            // SAFETY: see above.
            Kind::AlltoAll => unsafe { comm.all_to_all(send(whole), recv(whole), launch) },
            Kind::Broadcast => {
                let send = is_root.then(|| send(count));
                // SAFETY: see above.
                unsafe { comm.broadcast(send, recv(count), root, launch) }
            }
            Kind::Gather => {
                let recv = is_root.then(|| recv(whole));
                // SAFETY: see above.
                unsafe { comm.gather(send(count), recv, root, launch) }
            }
            // SAFETY: see above.
            Kind::Recv => unsafe { comm.recv(recv(count), root, launch) },
            Kind::Reduce => {
                let recv = is_root.then(|| recv(count));
                // SAFETY: see above.
                unsafe { comm.reduce(send(count), recv, op, root, launch) }
            }
            // SAFETY: see above.
            Kind::ReduceScatter => unsafe {
                comm.reduce_scatter(send(whole), recv(count), op, launch)
            },
            Kind::Scatter => {
                let send = is_root.then(|| send(whole));
                // SAFETY: see above.
                unsafe { comm.scatter(send, recv(count), root, launch) }
            }
            // SAFETY: see above.
            Kind::Send => unsafe { comm.send(send(count), root, launch) },
        };
        issued.map_err(Refusal::from)
    }

    fn bytes(&self, count: Option<usize>) -> Result<usize> {
        count.ok_or_else(|| {
            let name = self.kind.name();
            Refusal::argument(format!("{name} : count {} is past the end of memory", self.count))
        })
    }

    /// NCCL's line for an enqueue.
    fn tell(&self, calls: u64, size: usize) {
        if !log::is_on(Level::Info) {
            return;
        }
        log::info(
            Subsystem::Coll,
            format_args!(
                "{}: opCount {calls:x} sendbuff {} recvbuff {} count {} datatype {} op {} root {} \
                 comm {} [nranks={size}] stream {}",
                self.kind.name(),
                Pointer(self.send),
                Pointer(self.recv),
                self.count,
                self.datatype.0,
                self.op.0,
                self.root,
                Pointer(self.comm.0),
                Pointer(self.stream),
            ),
        );
    }
}

/// The operators of `ncclRedOp_t`, in its order.
const BUILT_IN: [ReduceOp; 5] =
    [ReduceOp::Sum, ReduceOp::Prod, ReduceOp::Max, ReduceOp::Min, ReduceOp::Avg];

/// The element type of a number that a program gave.
pub(super) fn dtype(call: &str, datatype: ncclDataType_t) -> Result<DType> {
    let known =
        usize::try_from(datatype.0).ok().filter(|_| datatype.0 < Identity::get().datatypes());
    let dtype = known.and_then(|index| DType::ALL.get(index)).copied();
    dtype.ok_or_else(|| Refusal::argument(format!("{call} : invalid type {}", datatype.0)))
}

/// Whether what the mock sees and NCCL does not is an error: unless `COLLECTIVES_MOCK_STRICT=0`.
pub(super) fn is_strict() -> bool {
    static STRICT: OnceLock<bool> = OnceLock::new();
    *STRICT.get_or_init(|| env::var_os("COLLECTIVES_MOCK_STRICT").is_none_or(|value| value != "0"))
}

export! {
    nccl, on_panic = ncclResult_t::INTERNAL_ERROR;

    /// Reduces `count` elements of every rank, the result to all.
    fn ncclAllReduce(
        sendbuff: *const c_void, recvbuff: *mut c_void, count: usize, datatype: ncclDataType_t,
        op: ncclRedOp_t, comm: ncclComm_t, stream: cudaStream_t,
    ) -> ncclResult_t {
        collective(Kind::AllReduce, sendbuff, recvbuff, count, datatype, op, 0, comm, stream)
    }

    /// Copies `count` elements of the root to all.
    fn ncclBroadcast(
        sendbuff: *const c_void, recvbuff: *mut c_void, count: usize, datatype: ncclDataType_t,
        root: c_int, comm: ncclComm_t, stream: cudaStream_t,
    ) -> ncclResult_t {
        plain(Kind::Broadcast, sendbuff, recvbuff, count, datatype, root, comm, stream)
    }

    /// Broadcasts in place.
    fn ncclBcast(
        buff: *mut c_void, count: usize, datatype: ncclDataType_t, root: c_int, comm: ncclComm_t,
        stream: cudaStream_t,
    ) -> ncclResult_t {
        plain(Kind::Broadcast, buff, buff, count, datatype, root, comm, stream)
    }

    /// Reduces `count` elements of every rank, the result to the root.
    fn ncclReduce(
        sendbuff: *const c_void, recvbuff: *mut c_void, count: usize, datatype: ncclDataType_t,
        op: ncclRedOp_t, root: c_int, comm: ncclComm_t, stream: cudaStream_t,
    ) -> ncclResult_t {
        collective(Kind::Reduce, sendbuff, recvbuff, count, datatype, op, root, comm, stream)
    }

    /// Gathers `sendcount` elements of every rank, all of them to all.
    fn ncclAllGather(
        sendbuff: *const c_void, recvbuff: *mut c_void, sendcount: usize, datatype: ncclDataType_t,
        comm: ncclComm_t, stream: cudaStream_t,
    ) -> ncclResult_t {
        plain(Kind::AllGather, sendbuff, recvbuff, sendcount, datatype, 0, comm, stream)
    }

    /// Reduces, then leaves `recvcount` elements on each rank.
    fn ncclReduceScatter(
        sendbuff: *const c_void, recvbuff: *mut c_void, recvcount: usize, datatype: ncclDataType_t,
        op: ncclRedOp_t, comm: ncclComm_t, stream: cudaStream_t,
    ) -> ncclResult_t {
        collective(
            Kind::ReduceScatter, sendbuff, recvbuff, recvcount, datatype, op, 0, comm, stream,
        )
    }

    /// Exchanges `count` elements between every two ranks; not in place.
    fn ncclAlltoAll(
        sendbuff: *const c_void, recvbuff: *mut c_void, count: usize, datatype: ncclDataType_t,
        comm: ncclComm_t, stream: cudaStream_t,
    ) -> ncclResult_t {
        plain(Kind::AlltoAll, sendbuff, recvbuff, count, datatype, 0, comm, stream)
    }

    /// Gathers `count` elements of every rank on the root.
    fn ncclGather(
        sendbuff: *const c_void, recvbuff: *mut c_void, count: usize, datatype: ncclDataType_t,
        root: c_int, comm: ncclComm_t, stream: cudaStream_t,
    ) -> ncclResult_t {
        plain(Kind::Gather, sendbuff, recvbuff, count, datatype, root, comm, stream)
    }

    /// Scatters `count` elements to every rank from the root.
    fn ncclScatter(
        sendbuff: *const c_void, recvbuff: *mut c_void, count: usize, datatype: ncclDataType_t,
        root: c_int, comm: ncclComm_t, stream: cudaStream_t,
    ) -> ncclResult_t {
        plain(Kind::Scatter, sendbuff, recvbuff, count, datatype, root, comm, stream)
    }

    /// Sends `count` elements to a peer, which receives as many.
    fn ncclSend(
        sendbuff: *const c_void, count: usize, datatype: ncclDataType_t, peer: c_int,
        comm: ncclComm_t, stream: cudaStream_t,
    ) -> ncclResult_t {
        let recv = std::ptr::null_mut();
        plain(Kind::Send, sendbuff, recv, count, datatype, peer, comm, stream)
    }

    /// Receives `count` elements from a peer, which sends as many.
    fn ncclRecv(
        recvbuff: *mut c_void, count: usize, datatype: ncclDataType_t, peer: c_int,
        comm: ncclComm_t, stream: cudaStream_t,
    ) -> ncclResult_t {
        let send = std::ptr::null();
        plain(Kind::Recv, send, recvbuff, count, datatype, peer, comm, stream)
    }

    /// `ncclAllReduce` with a configuration of its own.
    fn ncclAllReduceConfig(
        sendbuff: *const c_void, recvbuff: *mut c_void, count: usize, datatype: ncclDataType_t,
        op: ncclRedOp_t, comm: ncclComm_t, stream: cudaStream_t, config: *const ncclCollConfig_t,
    ) -> ncclResult_t {
        configured(config, || {
            collective(Kind::AllReduce, sendbuff, recvbuff, count, datatype, op, 0, comm, stream)
        })
    }

    /// `ncclBroadcast` with a configuration of its own.
    fn ncclBroadcastConfig(
        sendbuff: *const c_void, recvbuff: *mut c_void, count: usize, datatype: ncclDataType_t,
        root: c_int, comm: ncclComm_t, stream: cudaStream_t, config: *const ncclCollConfig_t,
    ) -> ncclResult_t {
        configured(config, || {
            plain(Kind::Broadcast, sendbuff, recvbuff, count, datatype, root, comm, stream)
        })
    }

    /// `ncclReduce` with a configuration of its own.
    fn ncclReduceConfig(
        sendbuff: *const c_void, recvbuff: *mut c_void, count: usize, datatype: ncclDataType_t,
        op: ncclRedOp_t, root: c_int, comm: ncclComm_t, stream: cudaStream_t,
        config: *const ncclCollConfig_t,
    ) -> ncclResult_t {
        configured(config, || {
            collective(Kind::Reduce, sendbuff, recvbuff, count, datatype, op, root, comm, stream)
        })
    }

    /// `ncclAllGather` with a configuration of its own.
    fn ncclAllGatherConfig(
        sendbuff: *const c_void, recvbuff: *mut c_void, sendcount: usize, datatype: ncclDataType_t,
        comm: ncclComm_t, stream: cudaStream_t, config: *const ncclCollConfig_t,
    ) -> ncclResult_t {
        configured(config, || {
            plain(Kind::AllGather, sendbuff, recvbuff, sendcount, datatype, 0, comm, stream)
        })
    }

    /// `ncclReduceScatter` with a configuration of its own.
    fn ncclReduceScatterConfig(
        sendbuff: *const c_void, recvbuff: *mut c_void, recvcount: usize, datatype: ncclDataType_t,
        op: ncclRedOp_t, comm: ncclComm_t, stream: cudaStream_t, config: *const ncclCollConfig_t,
    ) -> ncclResult_t {
        configured(config, || {
            collective(
                Kind::ReduceScatter, sendbuff, recvbuff, recvcount, datatype, op, 0, comm, stream,
            )
        })
    }

    /// `ncclAlltoAll` with a configuration of its own.
    fn ncclAlltoAllConfig(
        sendbuff: *const c_void, recvbuff: *mut c_void, count: usize, datatype: ncclDataType_t,
        comm: ncclComm_t, stream: cudaStream_t, config: *const ncclCollConfig_t,
    ) -> ncclResult_t {
        configured(config, || {
            plain(Kind::AlltoAll, sendbuff, recvbuff, count, datatype, 0, comm, stream)
        })
    }

    /// `ncclGather` with a configuration of its own.
    fn ncclGatherConfig(
        sendbuff: *const c_void, recvbuff: *mut c_void, count: usize, datatype: ncclDataType_t,
        root: c_int, comm: ncclComm_t, stream: cudaStream_t, config: *const ncclCollConfig_t,
    ) -> ncclResult_t {
        configured(config, || {
            plain(Kind::Gather, sendbuff, recvbuff, count, datatype, root, comm, stream)
        })
    }

    /// `ncclScatter` with a configuration of its own.
    fn ncclScatterConfig(
        sendbuff: *const c_void, recvbuff: *mut c_void, count: usize, datatype: ncclDataType_t,
        root: c_int, comm: ncclComm_t, stream: cudaStream_t, config: *const ncclCollConfig_t,
    ) -> ncclResult_t {
        configured(config, || {
            plain(Kind::Scatter, sendbuff, recvbuff, count, datatype, root, comm, stream)
        })
    }
}

export! {
    plain, on_panic = ncclResult_t::INTERNAL_ERROR;

    /// `ncclAlltoAll`, as RCCL spells it.
    fn ncclAllToAll(
        sendbuff: *const c_void, recvbuff: *mut c_void, count: usize, datatype: ncclDataType_t,
        comm: ncclComm_t, stream: cudaStream_t,
    ) -> ncclResult_t {
        plain(Kind::AlltoAll, sendbuff, recvbuff, count, datatype, 0, comm, stream)
    }

    /// Exchanges unequal counts; counts and displacements in elements, one of each per rank.
    fn ncclAlltoAllv(
        sendbuff: *const c_void, sendcounts: *const usize, sdispls: *const usize,
        recvbuff: *mut c_void, recvcounts: *const usize, rdispls: *const usize,
        datatype: ncclDataType_t, comm: ncclComm_t, stream: cudaStream_t,
    ) -> ncclResult_t {
        let sends = Parts { counts: sendcounts, displacements: sdispls };
        let recvs = Parts { counts: recvcounts, displacements: rdispls };
        all_to_all_v(sendbuff, sends, recvbuff, recvs, datatype, comm, stream)
    }

    /// `ncclAlltoAllv`, as RCCL spelled it first.
    fn ncclAllToAllv(
        sendbuff: *const c_void, sendcounts: *const usize, sdispls: *const usize,
        recvbuff: *mut c_void, recvcounts: *const usize, rdispls: *const usize,
        datatype: ncclDataType_t, comm: ncclComm_t, stream: cudaStream_t,
    ) -> ncclResult_t {
        let sends = Parts { counts: sendcounts, displacements: sdispls };
        let recvs = Parts { counts: recvcounts, displacements: rdispls };
        all_to_all_v(sendbuff, sends, recvbuff, recvs, datatype, comm, stream)
    }

    /// `ncclAllReduce`, with `acc` added to the result: refused, as the mock has no such operation.
    fn ncclAllReduceWithBias(
        _sendbuff: *const c_void, _recvbuff: *mut c_void, _count: usize, _datatype: ncclDataType_t,
        _op: ncclRedOp_t, comm: ncclComm_t, _stream: cudaStream_t, acc: *const c_void,
    ) -> ncclResult_t {
        checked(|| {
            Comm::of("AllReduceWithBias", comm)?;
            if acc.is_null() {
                return Err(Refusal::null("AllReduceWithBias", "acc"));
            }
            Err(super::unsupported("ncclAllReduceWithBias"))
        })
    }
}

/// A call that reduces.
#[track_caller]
fn collective(
    kind: Kind,
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    datatype: ncclDataType_t,
    op: ncclRedOp_t,
    root: c_int,
    comm: ncclComm_t,
    stream: cudaStream_t,
) -> ncclResult_t {
    Call { kind, send, recv, count, datatype, op, root, comm, stream }.run()
}

/// A call that only moves data.
#[track_caller]
fn plain(
    kind: Kind,
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    datatype: ncclDataType_t,
    root: c_int,
    comm: ncclComm_t,
    stream: cudaStream_t,
) -> ncclResult_t {
    collective(kind, send, recv, count, datatype, ncclRedOp_t::SUM, root, comm, stream)
}

/// A call with a configuration, which is looked at before anything else.
fn configured(
    config: *const ncclCollConfig_t,
    call: impl FnOnce() -> ncclResult_t,
) -> ncclResult_t {
    checked(|| {
        // SAFETY: null, or the caller's struct, which is as long as it says.
        unsafe { config::check_collective(config) }?;
        match call() {
            ncclResult_t::SUCCESS => Ok(ncclResult_t::SUCCESS),
            code => Err(Refusal::again(code)),
        }
    })
}

/// The parts of a buffer that belong to the ranks.
#[derive(Clone, Copy)]
struct Parts {
    counts: *const usize,
    displacements: *const usize,
}

impl Parts {
    /// Elements of `rank`, and where they start.
    ///
    /// # Safety
    /// The arrays have an entry for `rank`.
    unsafe fn of(self, rank: usize) -> (usize, usize) {
        let (count, start) =
            (self.counts.wrapping_add(rank), self.displacements.wrapping_add(rank));
        // SAFETY: as this function's contract has it.
        let count = unsafe { count.read() };
        // SAFETY: as above.
        let start = unsafe { start.read() };
        (count, start)
    }
}

/// One group of as many sends and receives as there are ranks, as in RCCL.
fn all_to_all_v(
    sendbuff: *const c_void,
    sends: Parts,
    recvbuff: *mut c_void,
    recvs: Parts,
    datatype: ncclDataType_t,
    comm: ncclComm_t,
    stream: cudaStream_t,
) -> ncclResult_t {
    const CALL: &str = "AllToAllv";
    checked(|| {
        let size = Comm::of(CALL, comm)?.lock().live(CALL)?.info().size;
        let bytes = dtype(CALL, datatype)?.size();
        for array in [sends.counts, sends.displacements, recvs.counts, recvs.displacements] {
            if array.is_null() {
                return Err(Refusal::null(CALL, "counts or displacements"));
            }
        }
        group::start();
        for rank in 0..size {
            let peer = rank as c_int;
            // SAFETY: the arrays have an entry for each rank, as RCCL wants.
            let (count, start) = unsafe { sends.of(rank) };
            let send = sendbuff.wrapping_byte_add(start.wrapping_mul(bytes));
            let null = std::ptr::null_mut();
            // What is refused comes back from the end of the group.
            let _ = plain(Kind::Send, send, null, count, datatype, peer, comm, stream);
            // SAFETY: as above.
            let (count, start) = unsafe { recvs.of(rank) };
            let recv = recvbuff.wrapping_byte_add(start.wrapping_mul(bytes));
            let _ = plain(Kind::Recv, null, recv, count, datatype, peer, comm, stream);
        }
        match group::end(None) {
            ncclResult_t::SUCCESS => Ok(ncclResult_t::SUCCESS),
            code => Err(Refusal::again(code)),
        }
    })
}
