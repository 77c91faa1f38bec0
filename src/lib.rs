#![doc = include_str!("../README.md")]

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
