//! One type for every backend: the closed set this crate was built with, chosen at run time.
//!
//! `AnyBackend` is dispatched by the `enum_dispatch` crate over a trait of this module with method
//! names of its own, and implements core's [`Backend`] on top of it. [`AnyComm`] and [`AnyDevice`]
//! forward core's traits by hand, since `enum_dispatch` cannot see a trait of another crate. Why:
//! `docs/decisions/0001-dispatch.md`.
#![expect(unsafe_code, reason = "forwards core's traits, whose contract the caller keeps")]

use std::{ffi::c_void, time::Duration};

use collectives_backend_mock::{Mock, MockComm, MockDevice};
use collectives_backend_nccl::{CudaDevice, Nccl, NcclComm};
use collectives_backend_rccl::{HipDevice, Rccl, RcclComm};
use collectives_core::{
    AbortHandle, Backend, Capabilities, Collectives, CommInfo, Device, DeviceInfo, GroupEnd,
    GrowConfig, JoinAllConfig, JoinConfig, Launch, LibraryInfo, MemoryUse, PreMulSum, Rank,
    RawEvent, RawGraph, RawRegistration, RawStream, RawWindow, RecvBuf, ReduceOp, Result, Scalar,
    SendBuf, ShrinkConfig, SignalWait, Split, SplitConfig, UniqueId, WindowFlags,
};
use enum_dispatch::enum_dispatch;

/// A backend chosen at run time.
///
/// Implements [`Backend`], so code that is generic over backends takes it like any other.
#[enum_dispatch(Dispatch)]
#[derive(Clone, Debug)]
pub enum AnyBackend {
    /// The CPU mock.
    Mock(Mock),
    /// NCCL on CUDA.
    Nccl(Nccl),
    /// RCCL on ROCm.
    Rccl(Rccl),
}

/// One rank's end of a communicator, of any backend.
#[derive(Debug)]
pub enum AnyComm {
    /// Of the CPU mock.
    Mock(MockComm),
    /// Of NCCL.
    Nccl(NcclComm),
    /// Of RCCL.
    Rccl(RcclComm),
    /// Of a backend that this crate does not know.
    Other(OtherComm),
}

/// A communicator of a backend that this crate does not know.
pub struct OtherComm(Box<dyn Collectives>);

impl OtherComm {
    /// Takes a communicator over.
    ///
    /// # Safety
    /// It keeps the contract of [`Collectives`] from its side: it touches only the memory that it
    /// is given, only on the streams that it is given; its `info` is its own, with a rank below its
    /// size; what it allocates is memory of the device that `info` names.
    pub unsafe fn new(comm: Box<dyn Collectives>) -> Self {
        Self(comm)
    }
}

impl std::fmt::Debug for OtherComm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("OtherComm").field(self.0.info()).finish()
    }
}

/// A device of any backend.
#[derive(Clone, Debug)]
pub enum AnyDevice {
    /// Of the CPU mock.
    Mock(MockDevice),
    /// A CUDA device.
    Cuda(CudaDevice),
    /// A HIP device.
    Hip(HipDevice),
}

impl AnyDevice {
    /// Makes this the current device of this thread, and leaves it so, for other code that asks for
    /// one. The mock has no such thing, and does nothing.
    ///
    /// # Errors
    /// What the device's runtime reports.
    #[doc(alias = "cudaSetDevice")]
    pub fn make_current(&self) -> Result<()> {
        match self {
            Self::Mock(_) => Ok(()),
            Self::Cuda(device) => device.make_current(),
            Self::Hip(device) => device.make_current(),
        }
    }
}

/// [`Backend`] with results of one type, under names that cannot be confused with its own.
#[enum_dispatch]
trait Dispatch {
    fn dispatch_info(&self) -> &LibraryInfo;
    fn dispatch_capabilities(&self) -> &Capabilities;
    fn dispatch_device_count(&self) -> Result<usize>;
    fn dispatch_device(&self, ordinal: usize) -> Result<AnyDevice>;
    fn dispatch_parameters(&self) -> Result<Vec<(String, String)>>;
    fn dispatch_set_encryption(&self, key: Option<&str>) -> Result<()>;
    fn dispatch_unique_id(&self) -> Result<UniqueId>;
    #[track_caller]
    fn dispatch_join(&self, id: &UniqueId, config: JoinConfig) -> Result<AnyComm>;
    #[track_caller]
    fn dispatch_join_grown(&self, id: &UniqueId, config: JoinConfig) -> Result<AnyComm>;
    #[track_caller]
    fn dispatch_join_all(&self, config: JoinAllConfig) -> Result<Vec<AnyComm>>;
    fn dispatch_group_start(&self) -> Result<()>;
    fn dispatch_group_end(&self, end: GroupEnd) -> Result<()>;
    /// # Safety
    /// See [`Backend::comm_from_raw`].
    unsafe fn dispatch_comm_from_raw(&self, raw: *mut c_void) -> Result<AnyComm>;
}

/// Implements [`Dispatch`] for a backend: its communicators and devices become these variants.
///
/// Not a blanket impl over [`Backend`]: that would overlap with `AnyBackend: Backend` (E0119).
macro_rules! dispatch {
    ($backend:ty, $comm:path, $device:path) => {
        impl Dispatch for $backend {
            fn dispatch_info(&self) -> &LibraryInfo {
                Backend::info(self)
            }

            fn dispatch_capabilities(&self) -> &Capabilities {
                Backend::capabilities(self)
            }

            fn dispatch_device_count(&self) -> Result<usize> {
                Backend::device_count(self)
            }

            fn dispatch_device(&self, ordinal: usize) -> Result<AnyDevice> {
                Backend::device(self, ordinal).map($device)
            }

            fn dispatch_parameters(&self) -> Result<Vec<(String, String)>> {
                Backend::parameters(self)
            }

            fn dispatch_set_encryption(&self, key: Option<&str>) -> Result<()> {
                Backend::set_encryption(self, key)
            }

            fn dispatch_unique_id(&self) -> Result<UniqueId> {
                Backend::unique_id(self)
            }

            fn dispatch_join(&self, id: &UniqueId, config: JoinConfig) -> Result<AnyComm> {
                Backend::join(self, id, config).map($comm)
            }

            fn dispatch_join_grown(&self, id: &UniqueId, config: JoinConfig) -> Result<AnyComm> {
                Backend::join_grown(self, id, config).map($comm)
            }

            fn dispatch_join_all(&self, config: JoinAllConfig) -> Result<Vec<AnyComm>> {
                let comms = Backend::join_all(self, config)?;
                Ok(comms.into_iter().map($comm).collect())
            }

            fn dispatch_group_start(&self) -> Result<()> {
                Backend::group_start(self)
            }

            fn dispatch_group_end(&self, end: GroupEnd) -> Result<()> {
                Backend::group_end(self, end)
            }

            unsafe fn dispatch_comm_from_raw(&self, raw: *mut c_void) -> Result<AnyComm> {
                // SAFETY: the caller's promise, handed on as it is.
                unsafe { Backend::comm_from_raw(self, raw) }.map($comm)
            }
        }
    };
}

dispatch!(Mock, AnyComm::Mock, AnyDevice::Mock);
dispatch!(Nccl, AnyComm::Nccl, AnyDevice::Cuda);
dispatch!(Rccl, AnyComm::Rccl, AnyDevice::Hip);

impl Backend for AnyBackend {
    type Comm = AnyComm;
    type Device = AnyDevice;

    fn info(&self) -> &LibraryInfo {
        self.dispatch_info()
    }

    fn capabilities(&self) -> &Capabilities {
        self.dispatch_capabilities()
    }

    fn device_count(&self) -> Result<usize> {
        self.dispatch_device_count()
    }

    fn device(&self, ordinal: usize) -> Result<AnyDevice> {
        self.dispatch_device(ordinal)
    }

    fn parameters(&self) -> Result<Vec<(String, String)>> {
        self.dispatch_parameters()
    }

    fn set_encryption(&self, key: Option<&str>) -> Result<()> {
        self.dispatch_set_encryption(key)
    }

    fn unique_id(&self) -> Result<UniqueId> {
        self.dispatch_unique_id()
    }

    fn join(&self, id: &UniqueId, config: JoinConfig) -> Result<AnyComm> {
        self.dispatch_join(id, config)
    }

    fn join_grown(&self, id: &UniqueId, config: JoinConfig) -> Result<AnyComm> {
        self.dispatch_join_grown(id, config)
    }

    fn join_all(&self, config: JoinAllConfig) -> Result<Vec<AnyComm>> {
        self.dispatch_join_all(config)
    }

    fn group_start(&self) -> Result<()> {
        self.dispatch_group_start()
    }

    fn group_end(&self, end: GroupEnd) -> Result<()> {
        self.dispatch_group_end(end)
    }

    unsafe fn comm_from_raw(&self, raw: *mut c_void) -> Result<AnyComm> {
        // SAFETY: the caller's promise, handed on as it is.
        unsafe { self.dispatch_comm_from_raw(raw) }
    }
}

// No catch-all arm: a new backend must fail to compile here.
macro_rules! forward_comm {
    ($self:expr, $comm:ident => $call:expr) => {
        match $self {
            AnyComm::Mock($comm) => $call,
            AnyComm::Nccl($comm) => $call,
            AnyComm::Rccl($comm) => $call,
            AnyComm::Other(OtherComm($comm)) => $call,
        }
    };
}

// The same for calls under the trait's contract, which the caller of the outer method keeps.
macro_rules! forward_comm_unsafe {
    ($self:expr, $comm:ident => $call:expr) => {
        match $self {
            // SAFETY: the caller's promise, handed on as it is.
            AnyComm::Mock($comm) => unsafe { $call },
            // SAFETY: the caller's promise, handed on as it is.
            AnyComm::Nccl($comm) => unsafe { $call },
            // SAFETY: the caller's promise, handed on as it is.
            AnyComm::Rccl($comm) => unsafe { $call },
            // SAFETY: the caller's promise, handed on as it is.
            AnyComm::Other(OtherComm($comm)) => unsafe { $call },
        }
    };
}

#[deny(clippy::missing_trait_methods)] // a default method added later must be forwarded here
impl Collectives for AnyComm {
    #[inline]
    fn info(&self) -> &CommInfo {
        forward_comm!(self, comm => comm.info())
    }

    fn capabilities(&self) -> &Capabilities {
        forward_comm!(self, comm => comm.capabilities())
    }

    #[inline]
    unsafe fn all_reduce(
        &self,
        send: SendBuf,
        recv: RecvBuf,
        op: ReduceOp,
        launch: Launch<'_>,
    ) -> Result<()> {
        forward_comm_unsafe!(self, comm => comm.all_reduce(send, recv, op, launch))
    }

    #[inline]
    unsafe fn reduce(
        &self,
        send: SendBuf,
        recv: Option<RecvBuf>,
        op: ReduceOp,
        root: Rank,
        launch: Launch<'_>,
    ) -> Result<()> {
        forward_comm_unsafe!(self, comm => comm.reduce(send, recv, op, root, launch))
    }

    #[inline]
    unsafe fn broadcast(
        &self,
        send: Option<SendBuf>,
        recv: RecvBuf,
        root: Rank,
        launch: Launch<'_>,
    ) -> Result<()> {
        forward_comm_unsafe!(self, comm => comm.broadcast(send, recv, root, launch))
    }

    #[inline]
    unsafe fn all_gather(&self, send: SendBuf, recv: RecvBuf, launch: Launch<'_>) -> Result<()> {
        forward_comm_unsafe!(self, comm => comm.all_gather(send, recv, launch))
    }

    #[inline]
    unsafe fn reduce_scatter(
        &self,
        send: SendBuf,
        recv: RecvBuf,
        op: ReduceOp,
        launch: Launch<'_>,
    ) -> Result<()> {
        forward_comm_unsafe!(self, comm => comm.reduce_scatter(send, recv, op, launch))
    }

    #[inline]
    unsafe fn all_to_all(&self, send: SendBuf, recv: RecvBuf, launch: Launch<'_>) -> Result<()> {
        forward_comm_unsafe!(self, comm => comm.all_to_all(send, recv, launch))
    }

    #[inline]
    unsafe fn gather(
        &self,
        send: SendBuf,
        recv: Option<RecvBuf>,
        root: Rank,
        launch: Launch<'_>,
    ) -> Result<()> {
        forward_comm_unsafe!(self, comm => comm.gather(send, recv, root, launch))
    }

    #[inline]
    unsafe fn scatter(
        &self,
        send: Option<SendBuf>,
        recv: RecvBuf,
        root: Rank,
        launch: Launch<'_>,
    ) -> Result<()> {
        forward_comm_unsafe!(self, comm => comm.scatter(send, recv, root, launch))
    }

    #[inline]
    unsafe fn send(&self, buf: SendBuf, peer: Rank, launch: Launch<'_>) -> Result<()> {
        forward_comm_unsafe!(self, comm => comm.send(buf, peer, launch))
    }

    #[inline]
    unsafe fn recv(&self, buf: RecvBuf, peer: Rank, launch: Launch<'_>) -> Result<()> {
        forward_comm_unsafe!(self, comm => comm.recv(buf, peer, launch))
    }

    fn group_start(&self) -> Result<()> {
        forward_comm!(self, comm => comm.group_start())
    }

    fn group_end(&self) -> Result<()> {
        forward_comm!(self, comm => comm.group_end())
    }

    fn group_simulate(&self) -> Result<Option<Duration>> {
        forward_comm!(self, comm => comm.group_simulate())
    }

    #[inline]
    fn in_group(&self) -> bool {
        forward_comm!(self, comm => comm.in_group())
    }

    unsafe fn create_pre_mul_sum(&self, scalar: Scalar) -> Result<PreMulSum> {
        forward_comm_unsafe!(self, comm => comm.create_pre_mul_sum(scalar))
    }

    fn destroy_pre_mul_sum(&self, op: PreMulSum) -> Result<()> {
        forward_comm!(self, comm => comm.destroy_pre_mul_sum(op))
    }

    fn mem_alloc(&self, bytes: usize) -> Result<*mut c_void> {
        forward_comm!(self, comm => comm.mem_alloc(bytes))
    }

    unsafe fn mem_free(&self, ptr: *mut c_void) -> Result<()> {
        forward_comm_unsafe!(self, comm => comm.mem_free(ptr))
    }

    unsafe fn register(&self, ptr: *mut c_void, bytes: usize) -> Result<RawRegistration> {
        forward_comm_unsafe!(self, comm => comm.register(ptr, bytes))
    }

    unsafe fn deregister(&self, registration: RawRegistration) -> Result<()> {
        forward_comm_unsafe!(self, comm => comm.deregister(registration))
    }

    unsafe fn window_register(
        &self,
        ptr: *mut c_void,
        bytes: usize,
        flags: WindowFlags,
    ) -> Result<RawWindow> {
        forward_comm_unsafe!(self, comm => comm.window_register(ptr, bytes, flags))
    }

    unsafe fn window_deregister(&self, window: RawWindow) -> Result<()> {
        forward_comm_unsafe!(self, comm => comm.window_deregister(window))
    }

    unsafe fn window_ptr(&self, window: RawWindow) -> Result<*mut c_void> {
        forward_comm_unsafe!(self, comm => comm.window_ptr(window))
    }

    unsafe fn put_signal(
        &self,
        send: SendBuf,
        peer: Rank,
        window: RawWindow,
        offset: usize,
        launch: Launch<'_>,
    ) -> Result<()> {
        forward_comm_unsafe!(self, comm => comm.put_signal(send, peer, window, offset, launch))
    }

    unsafe fn signal(&self, peer: Rank, launch: Launch<'_>) -> Result<()> {
        forward_comm_unsafe!(self, comm => comm.signal(peer, launch))
    }

    unsafe fn wait_signal(&self, waits: &[SignalWait], launch: Launch<'_>) -> Result<()> {
        forward_comm_unsafe!(self, comm => comm.wait_signal(waits, launch))
    }

    fn split_dyn(&self, config: SplitConfig) -> Result<Option<Box<dyn Collectives>>> {
        let part = self.split(config)?;
        Ok(part.map(|comm| Box::new(comm) as Box<dyn Collectives>))
    }

    fn shrink_dyn(&self, config: ShrinkConfig) -> Result<Box<dyn Collectives>> {
        Ok(Box::new(self.shrink(config)?))
    }

    fn grow_dyn(&self, config: GrowConfig) -> Result<Box<dyn Collectives>> {
        Ok(Box::new(self.grow(config)?))
    }

    fn grow_id(&self) -> Result<UniqueId> {
        forward_comm!(self, comm => comm.grow_id())
    }

    fn revoke(&self) -> Result<()> {
        forward_comm!(self, comm => comm.revoke())
    }

    fn suspend(&self) -> Result<()> {
        forward_comm!(self, comm => comm.suspend())
    }

    fn resume(&self) -> Result<()> {
        forward_comm!(self, comm => comm.resume())
    }

    fn memory_use(&self) -> Result<MemoryUse> {
        forward_comm!(self, comm => comm.memory_use())
    }

    fn poll_error(&self) -> Result<()> {
        forward_comm!(self, comm => comm.poll_error())
    }

    fn abort_handle(&self) -> AbortHandle {
        forward_comm!(self, comm => comm.abort_handle())
    }

    fn as_raw(&self) -> *mut c_void {
        forward_comm!(self, comm => comm.as_raw())
    }

    fn finalize(self: Box<Self>) -> Result<()> {
        match *self {
            Self::Mock(comm) => Box::new(comm).finalize(),
            Self::Nccl(comm) => Box::new(comm).finalize(),
            Self::Rccl(comm) => Box::new(comm).finalize(),
            Self::Other(OtherComm(comm)) => comm.finalize(),
        }
    }

    fn abort(self: Box<Self>) -> Result<()> {
        match *self {
            Self::Mock(comm) => Box::new(comm).abort(),
            Self::Nccl(comm) => Box::new(comm).abort(),
            Self::Rccl(comm) => Box::new(comm).abort(),
            Self::Other(OtherComm(comm)) => comm.abort(),
        }
    }
}

#[deny(clippy::missing_trait_methods)]
impl Split for AnyComm {
    fn split(&self, config: SplitConfig) -> Result<Option<Self>> {
        match self {
            Self::Mock(comm) => Ok(comm.split(config)?.map(Self::Mock)),
            Self::Nccl(comm) => Ok(comm.split(config)?.map(Self::Nccl)),
            Self::Rccl(comm) => Ok(comm.split(config)?.map(Self::Rccl)),
            Self::Other(OtherComm(comm)) => {
                Ok(comm.split_dyn(config)?.map(|part| Self::Other(OtherComm(part))))
            }
        }
    }

    fn shrink(&self, config: ShrinkConfig) -> Result<Self> {
        match self {
            Self::Mock(comm) => Ok(Self::Mock(comm.shrink(config)?)),
            Self::Nccl(comm) => Ok(Self::Nccl(comm.shrink(config)?)),
            Self::Rccl(comm) => Ok(Self::Rccl(comm.shrink(config)?)),
            Self::Other(OtherComm(comm)) => Ok(Self::Other(OtherComm(comm.shrink_dyn(config)?))),
        }
    }

    fn grow(&self, config: GrowConfig) -> Result<Self> {
        match self {
            Self::Mock(comm) => Ok(Self::Mock(comm.grow(config)?)),
            Self::Nccl(comm) => Ok(Self::Nccl(comm.grow(config)?)),
            Self::Rccl(comm) => Ok(Self::Rccl(comm.grow(config)?)),
            Self::Other(OtherComm(comm)) => Ok(Self::Other(OtherComm(comm.grow_dyn(config)?))),
        }
    }
}

macro_rules! forward_device {
    ($self:expr, $device:ident => $call:expr) => {
        match $self {
            AnyDevice::Mock($device) => $call,
            AnyDevice::Cuda($device) => $call,
            AnyDevice::Hip($device) => $call,
        }
    };
}

macro_rules! forward_device_unsafe {
    ($self:expr, $device:ident => $call:expr) => {
        match $self {
            // SAFETY: the caller's promise, handed on as it is.
            AnyDevice::Mock($device) => unsafe { $call },
            // SAFETY: the caller's promise, handed on as it is.
            AnyDevice::Cuda($device) => unsafe { $call },
            // SAFETY: the caller's promise, handed on as it is.
            AnyDevice::Hip($device) => unsafe { $call },
        }
    };
}

#[deny(clippy::missing_trait_methods)]
impl Device for AnyDevice {
    fn info(&self) -> &DeviceInfo {
        forward_device!(self, device => device.info())
    }

    fn alloc(&self, bytes: usize) -> Result<*mut c_void> {
        forward_device!(self, device => device.alloc(bytes))
    }

    #[track_caller]
    unsafe fn free(&self, ptr: *mut c_void, after: RawStream) -> Result<()> {
        forward_device_unsafe!(self, device => device.free(ptr, after))
    }

    #[track_caller]
    unsafe fn copy_to(
        &self,
        dst: *mut c_void,
        src: *const c_void,
        bytes: usize,
        stream: RawStream,
    ) -> Result<()> {
        forward_device_unsafe!(self, device => device.copy_to(dst, src, bytes, stream))
    }

    #[track_caller]
    unsafe fn copy_from(
        &self,
        dst: *mut c_void,
        src: *const c_void,
        bytes: usize,
        stream: RawStream,
    ) -> Result<()> {
        forward_device_unsafe!(self, device => device.copy_from(dst, src, bytes, stream))
    }

    #[track_caller]
    unsafe fn copy_between(
        &self,
        dst: *mut c_void,
        src: *const c_void,
        bytes: usize,
        stream: RawStream,
    ) -> Result<()> {
        forward_device_unsafe!(self, device => device.copy_between(dst, src, bytes, stream))
    }

    #[track_caller]
    unsafe fn memset(
        &self,
        dst: *mut c_void,
        value: u8,
        bytes: usize,
        stream: RawStream,
    ) -> Result<()> {
        forward_device_unsafe!(self, device => device.memset(dst, value, bytes, stream))
    }

    fn stream_create(&self) -> Result<RawStream> {
        forward_device!(self, device => device.stream_create())
    }

    unsafe fn stream_destroy(&self, stream: RawStream) -> Result<()> {
        forward_device_unsafe!(self, device => device.stream_destroy(stream))
    }

    fn event_create(&self) -> Result<RawEvent> {
        forward_device!(self, device => device.event_create())
    }

    unsafe fn event_destroy(&self, event: RawEvent) -> Result<()> {
        forward_device_unsafe!(self, device => device.event_destroy(event))
    }

    unsafe fn record(&self, event: RawEvent, stream: RawStream) -> Result<()> {
        forward_device_unsafe!(self, device => device.record(event, stream))
    }

    unsafe fn wait(&self, stream: RawStream, event: RawEvent) -> Result<()> {
        forward_device_unsafe!(self, device => device.wait(stream, event))
    }

    unsafe fn query(&self, event: RawEvent) -> Result<bool> {
        forward_device_unsafe!(self, device => device.query(event))
    }

    unsafe fn synchronize(&self, stream: RawStream, deadline: Option<Duration>) -> Result<()> {
        forward_device_unsafe!(self, device => device.synchronize(stream, deadline))
    }

    unsafe fn begin_capture(&self, stream: RawStream) -> Result<()> {
        forward_device_unsafe!(self, device => device.begin_capture(stream))
    }

    unsafe fn end_capture(&self, stream: RawStream) -> Result<RawGraph> {
        forward_device_unsafe!(self, device => device.end_capture(stream))
    }

    unsafe fn is_capturing(&self, stream: RawStream) -> Result<bool> {
        forward_device_unsafe!(self, device => device.is_capturing(stream))
    }

    unsafe fn launch(&self, graph: RawGraph, stream: RawStream) -> Result<()> {
        forward_device_unsafe!(self, device => device.launch(graph, stream))
    }

    unsafe fn graph_destroy(&self, graph: RawGraph) -> Result<()> {
        forward_device_unsafe!(self, device => device.graph_destroy(graph))
    }
}
