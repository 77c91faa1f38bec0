//! One API for GPU collectives: NCCL on NVIDIA GPUs, RCCL on AMD GPUs, and a CPU mock with NCCL's
//! semantics everywhere else. The library is opened at run time, so one binary, built on a machine
//! with no GPU software, runs on all of them.
//!
//! ```no_run
//! use collectives::ReduceOp;
//!
//! fn main() -> collectives::Result<()> {
//!     // All ranks that torchrun, mpirun, srun or `collectives launch` started.
//!     let comm = collectives::init()?;
//!     let stream = comm.new_stream()?;
//!     let mut gradient = stream.upload(&[comm.rank() as f32; 4])?;
//!     comm.on(&stream).all_reduce_in_place(&mut gradient, ReduceOp::Sum)?;
//!     println!("rank {}: {:?}", comm.rank(), gradient.to_vec(&stream)?);
//!     comm.finalize()
//! }
//! ```
//!
//! The same on one machine, for a test, with a thread for each rank and no GPU:
//!
//! ```
//! use collectives::{ReduceOp, mock};
//!
//! let sums = mock::run(4, |comm| {
//!     let stream = comm.new_stream()?;
//!     let mut gradient = stream.upload(&[comm.rank() as f32; 4])?;
//!     comm.on(&stream).all_reduce_in_place(&mut gradient, ReduceOp::Sum)?;
//!     gradient.to_vec(&stream)
//! })?;
//! assert_eq!(sums, vec![[6.0; 4]; 4]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The tour
//!
//! 1. **A backend** is a loaded library. [`backend`] chooses it by the machine, [`backend_named`] by
//!    name; [`Selection::explain`] says why. [`Capabilities`] says what it can do.
//! 2. **A communicator** is one rank's end of a set of ranks. [`init`] makes it from what the launcher
//!    says, and [`World`] makes several; [`Communicator::join`] takes a [`UniqueId`] that the program
//!    passed on itself; [`Communicator::join_all`] makes all ranks of one process.
//! 3. **Buffers and streams** belong to the communicator's device: [`Communicator::new_stream`],
//!    [`Stream::upload`], [`Stream::zeros`], [`Buffer::to_vec`].
//! 4. **Operations** are asynchronous, on a stream: [`Communicator::on`] gives an [`On`], whose methods
//!    are the operations. [`Stream::synchronize`] and copies to the host wait for them.
//! 5. **A group** starts several operations as one, or none of them: [`group()`].
//! 6. **A graph** holds operations, and kernels of the program's own, to be launched again and again:
//!    [`Communicator::capture`].
//! 7. **Errors** are all one type, [`Error`]. [`Error::poisons_communicator`] says whether the
//!    communicator still works, [`Error::hint`] what to do.
//!
//! | to | see |
//! |---|---|
//! | test without GPUs; make ranks slow, racy or dead on purpose | [`mock`] |
//! | end what hangs | [`Communicator::watch`], [`Communicator::abort_handle`], [`JoinConfig::with_deadline`] |
//! | go on without a lost rank | [`Communicator::revoke`], [`Communicator::shrink`], [`Communicator::grow`] |
//! | split a communicator | [`Communicator::split`] |
//! | use NCCL's symmetric kernels, and write into a peer's memory | [`Communicator::alloc_symmetric`], [`On::put`] |
//! | bring memory and streams of cudarc, PyTorch or other code | [`interop`], [`Buffer::from_raw`], [`Stream::from_raw`] |
//! | call without the safe layer, with memory of one's own | [`Collectives`], [`Communicator::as_comm`] |
//! | meet ranks by hand, PyTorch's too | [`rendezvous`] |
//! | use one library alone, with what only it has | [`nccl`], [`rccl`] |
//!
//! NCCL's, MPI's and PyTorch's names can be searched for on these pages: `ncclAllReduce`,
//! `MPI_Allreduce`, `all_gather_into_tensor`. Guides are in the folder `docs` of the repository.
//!
//! # Variables
//!
//! | variable | meaning |
//! |---|---|
//! | `COLLECTIVES_BACKEND` | `nccl`, `rccl` or `mock`, in place of what the hardware suggests |
//! | `COLLECTIVES_NCCL_PATH`, `COLLECTIVES_RCCL_PATH`, `COLLECTIVES_HIP_PATH` | the library's file; an error if it cannot be opened |
//! | `COLLECTIVES_CHECK=pointers` | the device of every pointer is checked in raw calls, too; costs microseconds a call |
//! | `COLLECTIVES_WATCHDOG` | seconds after which an operation counts as hung, for every communicator; see [`Watch`] |
//! | `COLLECTIVES_UNIQUE_ID`, `COLLECTIVES_BIND_ADDRESS` | for [`init`]: an id from outside, in base64; where rank 0 listens |
//! | `COLLECTIVES_MOCK_RANKS`, `_DEVICES`, `_SCHEDULE`, `_GUARDS`, `_FAULTS` | the mock: see [`mock::MockConfig::from_env`] |

mod aligned;
mod any;
mod buffer;
mod communicator;
mod graph;
mod group;
pub mod interop;
pub mod mock;
mod operation;
mod place;
mod platform;
mod reduce;
mod select;
mod stream;
mod symmetric;
mod watchdog;
mod world;

pub use aligned::AlignedGraph;
pub use any::{AnyBackend, AnyComm, AnyDevice, OtherComm};
pub use buffer::{Buffer, Slice, SliceMut};
pub use communicator::{Communicator, On};
pub use graph::{CaptureGroup, CaptureOn, Graph, Scope};
pub use group::{Group, Recorder, group, simulate};
pub use interop::Lent;
pub use platform::{BackendName, Decision, Devices, FoundDevice, HiddenBy, Platform, Roots};
pub use reduce::{Op, PreMulSumOp};
pub use select::{Explanation, Selection, backend, backend_named};
pub use stream::Stream;
pub use symmetric::{HeapInfo, MemoryKind, Slot, SymmetricPlan, SymmetricSet};
pub use watchdog::Watch;
pub use world::{Peer, World, WorldConfig, init};

pub use collectives_core::{
    AbortControl, AbortHandle, Backend, BackendExt, CallConfig, Capabilities, Collectives,
    CollectivesExt, CommConfig, CommId, CommInfo, CtaPolicy, DType, Device, DeviceInfo, Element,
    Error, ErrorKind, F8E4M3, F8E5M2, F8Format, GraphUsage, GroupEnd, GroupToken, GrowConfig,
    HostCft, JoinAllConfig, JoinConfig, Launch, LibraryInfo, MemoryUse, NvlsHost, PeerOp,
    PreMulSum, Rank, RawEvent, RawGraph, RawRegistration, RawStream, RawWindow, RecvBuf, ReduceOp,
    Result, Scalar, SendBuf, ShrinkConfig, SignalWait, Split, SplitConfig, Support, UniqueId,
    VendorCode, Version, WindowFlags, bf16, f16, shape,
};

/// How ranks find each other: what [`init`] is made of.
pub mod rendezvous {
    pub use collectives_rendezvous::*;
}

/// NCCL on CUDA, opened at run time.
pub mod nccl {
    pub use collectives_backend_nccl::*;
}

/// RCCL on ROCm, opened at run time.
pub mod rccl {
    pub use collectives_backend_rccl::*;
}

/// The front page of the repository, so that its code is tested.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// The recipes for recovery, so that their code is tested.
#[cfg(doctest)]
#[doc = include_str!("../docs/recovery.md")]
struct RecoveryGuide;

/// What is bounded by what, so that its code is tested.
#[cfg(doctest)]
#[doc = include_str!("../docs/reliability.md")]
struct ReliabilityGuide;

/// The guide on symmetric memory, so that its code is tested.
#[cfg(doctest)]
#[doc = include_str!("../docs/symmetric.md")]
struct SymmetricGuide;

/// How ranks find each other, so that its code is tested.
#[cfg(doctest)]
#[doc = include_str!("../docs/rendezvous.md")]
struct RendezvousGuide;

/// The guide on tests without GPUs, so that its code is tested.
#[cfg(doctest)]
#[doc = include_str!("../docs/testing.md")]
struct TestingGuide;

/// The guide for users of pynccl, so that its code is tested.
#[cfg(doctest)]
#[doc = include_str!("../docs/pynccl.md")]
struct PyncclGuide;

/// The guide on faults, so that its code is tested.
#[cfg(doctest)]
#[doc = include_str!("../docs/faults.md")]
struct FaultsGuide;
