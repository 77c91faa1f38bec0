//! Memory, streams, events and graphs of one device.

use std::{ffi::c_void, time::Duration};

use serde::Serialize;

use crate::{RawEvent, RawGraph, RawStream, Result};

/// One device: what a collective needs around it.
///
/// Handles are raw and owned by the caller, as in the vendors' runtimes; the facade's `Stream`,
/// `Buffer` and `Graph` are the safe form. All methods may be called from any thread; a backend
/// makes the device current where its runtime wants that.
///
/// # Contract
/// A caller of the `unsafe` methods promises that handles and memory come from this device (or,
/// for copies, from a device that can reach it), are alive, and stay alive until the stream has
/// passed the work; that memory ranges are as long as said; and that nothing else touches them
/// meanwhile, in the sense of [`Collectives`](crate::Collectives), contract 2.
pub trait Device: Send + Sync {
    /// What the device is.
    fn info(&self) -> &DeviceInfo;

    /// Allocates `bytes` of device memory, at least 256-byte aligned, not zeroed, ready for use on
    /// every stream. Zero bytes give a valid, unique pointer.
    ///
    /// # Errors
    /// [`OutOfMemory`](crate::ErrorKind::OutOfMemory) naming the size.
    #[track_caller]
    fn alloc(&self, bytes: usize) -> Result<*mut c_void>;

    /// Frees memory of [`alloc`](Self::alloc) once `after` has passed what is enqueued on it now.
    /// Never blocks.
    ///
    /// # Safety
    /// See [`Device`]; `ptr` came from `alloc` of this device and is not used any more, except by
    /// work that `after` waits for.
    ///
    /// # Errors
    /// What the runtime reports.
    #[expect(unsafe_code, reason = "declares the contract; contains no unsafe code")]
    unsafe fn free(&self, ptr: *mut c_void, after: RawStream) -> Result<()>;

    /// Enqueues a copy of `bytes` from host to device.
    ///
    /// # Safety
    /// See [`Device`]; `src` is host memory.
    ///
    /// # Errors
    /// What the runtime reports.
    #[expect(unsafe_code, reason = "declares the contract; contains no unsafe code")]
    unsafe fn copy_to(
        &self,
        dst: *mut c_void,
        src: *const c_void,
        bytes: usize,
        stream: RawStream,
    ) -> Result<()>;

    /// Enqueues a copy of `bytes` from device to host.
    ///
    /// # Safety
    /// See [`Device`]; `dst` is host memory.
    ///
    /// # Errors
    /// What the runtime reports.
    #[expect(unsafe_code, reason = "declares the contract; contains no unsafe code")]
    unsafe fn copy_from(
        &self,
        dst: *mut c_void,
        src: *const c_void,
        bytes: usize,
        stream: RawStream,
    ) -> Result<()>;

    /// Enqueues a copy of `bytes` between device memory, of this or of two devices.
    ///
    /// # Safety
    /// See [`Device`]; the ranges do not overlap.
    ///
    /// # Errors
    /// What the runtime reports.
    #[expect(unsafe_code, reason = "declares the contract; contains no unsafe code")]
    unsafe fn copy_between(
        &self,
        dst: *mut c_void,
        src: *const c_void,
        bytes: usize,
        stream: RawStream,
    ) -> Result<()>;

    /// Enqueues filling `bytes` with `value`.
    ///
    /// # Safety
    /// See [`Device`].
    ///
    /// # Errors
    /// What the runtime reports.
    #[expect(unsafe_code, reason = "declares the contract; contains no unsafe code")]
    unsafe fn memset(
        &self,
        dst: *mut c_void,
        value: u8,
        bytes: usize,
        stream: RawStream,
    ) -> Result<()>;

    /// Makes a stream that does not synchronise with the default stream.
    ///
    /// # Errors
    /// What the runtime reports.
    #[track_caller]
    fn stream_create(&self) -> Result<RawStream>;

    /// Destroys a stream; work enqueued on it still runs. Never blocks.
    ///
    /// # Safety
    /// See [`Device`]; the handle is not used any more.
    ///
    /// # Errors
    /// What the runtime reports.
    #[expect(unsafe_code, reason = "declares the contract; contains no unsafe code")]
    unsafe fn stream_destroy(&self, stream: RawStream) -> Result<()>;

    /// Makes an event, without timing.
    ///
    /// # Errors
    /// What the runtime reports.
    #[track_caller]
    fn event_create(&self) -> Result<RawEvent>;

    /// Destroys an event; waits already enqueued on it still hold.
    ///
    /// # Safety
    /// See [`Device`]; the handle is not used any more.
    ///
    /// # Errors
    /// What the runtime reports.
    #[expect(unsafe_code, reason = "declares the contract; contains no unsafe code")]
    unsafe fn event_destroy(&self, event: RawEvent) -> Result<()>;

    /// Enqueues recording `event`: it is reached when `stream` has passed what is enqueued now.
    ///
    /// # Safety
    /// See [`Device`].
    ///
    /// # Errors
    /// What the runtime reports.
    #[expect(unsafe_code, reason = "declares the contract; contains no unsafe code")]
    unsafe fn record(&self, event: RawEvent, stream: RawStream) -> Result<()>;

    /// Enqueues a wait: `stream` goes on when the latest recording of `event` is reached; at once
    /// if it was never recorded. The event may belong to another device.
    ///
    /// # Safety
    /// See [`Device`].
    ///
    /// # Errors
    /// What the runtime reports.
    #[expect(unsafe_code, reason = "declares the contract; contains no unsafe code")]
    unsafe fn wait(&self, stream: RawStream, event: RawEvent) -> Result<()>;

    /// Whether the latest recording of `event` was reached, or none was ever made.
    ///
    /// # Safety
    /// See [`Device`].
    ///
    /// # Errors
    /// What the runtime reports, failures of earlier work included.
    #[expect(unsafe_code, reason = "declares the contract; contains no unsafe code")]
    unsafe fn query(&self, event: RawEvent) -> Result<bool>;

    /// Blocks until `stream` has passed everything enqueued on it, at most `deadline`.
    ///
    /// It knows nothing of communicators: an aborted collective lets the stream go on. The
    /// facade's `Stream` asks them too.
    ///
    /// # Safety
    /// See [`Device`].
    ///
    /// # Errors
    /// [`Timeout`](crate::ErrorKind::Timeout); [`InvalidUsage`](crate::ErrorKind::InvalidUsage) on
    /// a stream that is being captured, which stays capturing; failures of earlier work.
    #[expect(unsafe_code, reason = "declares the contract; contains no unsafe code")]
    unsafe fn synchronize(&self, stream: RawStream, deadline: Option<Duration>) -> Result<()>;

    /// Starts capturing: from now on work on `stream` is recorded, not run. The capture does not
    /// restrict what other threads may call meanwhile.
    ///
    /// # Safety
    /// See [`Device`].
    ///
    /// # Errors
    /// [`InvalidUsage`](crate::ErrorKind::InvalidUsage) on the default stream or one that is
    /// being captured already; what the runtime reports.
    #[expect(unsafe_code, reason = "declares the contract; contains no unsafe code")]
    unsafe fn begin_capture(&self, stream: RawStream) -> Result<()>;

    /// Ends capturing and makes a graph that can be launched any number of times.
    ///
    /// # Safety
    /// See [`Device`]; the thread is the one that began the capture. Until the graph is destroyed,
    /// all that was captured into it lives: buffers, communicators, reduce ops.
    ///
    /// # Errors
    /// [`InvalidUsage`](crate::ErrorKind::InvalidUsage) where nothing is being captured; what the
    /// runtime reports. Either way the stream captures no longer.
    #[expect(unsafe_code, reason = "declares the contract; contains no unsafe code")]
    #[track_caller]
    unsafe fn end_capture(&self, stream: RawStream) -> Result<RawGraph>;

    /// Whether `stream` is being captured.
    ///
    /// # Safety
    /// See [`Device`].
    ///
    /// # Errors
    /// What the runtime reports.
    #[expect(unsafe_code, reason = "declares the contract; contains no unsafe code")]
    unsafe fn is_capturing(&self, stream: RawStream) -> Result<bool>;

    /// Enqueues one run of `graph`. Runs of one graph do not overlap.
    ///
    /// # Safety
    /// See [`Device`], for everything captured into the graph.
    ///
    /// # Errors
    /// What the runtime reports.
    #[doc(alias = "cuGraphLaunch")]
    #[expect(unsafe_code, reason = "declares the contract; contains no unsafe code")]
    unsafe fn launch(&self, graph: RawGraph, stream: RawStream) -> Result<()>;

    /// Destroys a graph; runs already enqueued still complete.
    ///
    /// # Safety
    /// See [`Device`]; the handle is not used any more.
    ///
    /// # Errors
    /// What the runtime reports.
    #[expect(unsafe_code, reason = "declares the contract; contains no unsafe code")]
    unsafe fn graph_destroy(&self, graph: RawGraph) -> Result<()>;
}

/// What a device is.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// The backend it belongs to, as people write it.
    pub backend: &'static str,
    /// Its number in this process.
    pub ordinal: usize,
    /// Its product name.
    pub name: String,
    /// Its PCI address (`0000:3b:00.0`), which tells devices of several processes apart.
    pub pci_bus_id: Option<String>,
    /// Its compute capability, for CUDA devices: 9.0 is `(9, 0)`.
    pub compute_capability: Option<(u32, u32)>,
    /// Its memory in bytes.
    pub total_memory: usize,
}

impl DeviceInfo {
    /// Describes a device.
    pub fn new(
        backend: &'static str,
        ordinal: usize,
        name: impl Into<String>,
        total_memory: usize,
    ) -> Self {
        Self {
            backend,
            ordinal,
            name: name.into(),
            pci_bus_id: None,
            compute_capability: None,
            total_memory,
        }
    }
}
