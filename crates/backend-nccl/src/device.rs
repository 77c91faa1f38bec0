//! One CUDA device.

use std::{
    collections::BTreeMap,
    ffi::{CStr, c_char, c_int, c_void},
    fmt, ptr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use collectives_core::{Device, DeviceInfo, ErrorKind, RawEvent, RawGraph, RawStream, Result};
use collectives_nccl_family::device::{self, Memory, RawDevice as _};
use cudarc::driver::sys::{self, CUcontext, CUdevice, CUdevice_attribute, CUevent, CUstream};

use crate::driver::{self, check, refuse};

/// One CUDA device: its primary context, its memory, streams, events and graphs.
///
/// Cheap to clone; all handles of one ordinal share one cache of memory, which lives as long as the
/// process. Methods make the device current for the call and leave the thread's current context as
/// they found it.
///
/// # Memory
/// See [`alloc`](Device::alloc): memory is `cuMemAlloc`'s and is cached, since giving it back to
/// the driver (`cuMemFree`) waits for all work of the device. A thread that does so while other
/// ranks of the process have yet to launch their part of a collective would never return. It is not
/// from CUDA's memory pools: NCCL's direct transfers between GPUs need peer access to the users'
/// buffers, which memory of a pool has only where somebody granted it.
#[derive(Clone, Copy)]
pub struct CudaDevice(&'static Context);

/// A device that was opened, for ever: the primary context is shared with everybody in the process,
/// and at exit the driver may be gone before we are.
pub(crate) struct Context {
    device: CUdevice,
    /// The primary context.
    context: CUcontext,
    pub(crate) info: DeviceInfo,
    pub(crate) memory: Memory,
}

// SAFETY: a context is bound to no thread; the driver's functions may be called from any.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl CudaDevice {
    /// Opens device `ordinal`, in the numbering of `CUDA_VISIBLE_DEVICES`.
    ///
    /// # Errors
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) naming the number of devices;
    /// [`Device`](ErrorKind::Device) where there is no usable driver, saying what to do.
    #[doc(alias = "cuDevicePrimaryCtxRetain")]
    pub fn open(ordinal: usize) -> Result<Self> {
        static CONTEXTS: Mutex<BTreeMap<usize, &'static Context>> = Mutex::new(BTreeMap::new());
        driver::ready()?;
        // A panic in another thread leaves the map whole: it only ever grows.
        let mut contexts = CONTEXTS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(context) = contexts.get(&ordinal) {
            return Ok(Self(context));
        }
        let context: &'static Context = Box::leak(Box::new(Context::open(ordinal)?));
        contexts.insert(ordinal, context);
        Ok(Self(context))
    }

    /// Makes this the current device of this thread, and leaves it so.
    ///
    /// # Errors
    /// What the driver reports.
    #[doc(alias = "cuCtxSetCurrent")]
    #[doc(alias = "cudaSetDevice")]
    pub fn make_current(&self) -> Result<()> {
        std::mem::forget(self.0.bind()?);
        Ok(())
    }

    /// Bytes of its memory that are free, and all there are.
    ///
    /// # Errors
    /// What the driver reports.
    #[doc(alias = "cuMemGetInfo")]
    pub fn memory_info(&self) -> Result<(usize, usize)> {
        let _current = self.0.bind()?;
        self.0.memory_info()
    }

    pub(crate) fn context(&self) -> &'static Context {
        self.0
    }
}

impl fmt::Debug for CudaDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CudaDevice").field(&self.0.info).finish()
    }
}

impl Device for CudaDevice {
    fn info(&self) -> &DeviceInfo {
        &self.0.info
    }

    /// Takes a cached block whose last user has passed, else asks `cuMemAlloc`; where that has no
    /// memory left, gives unused blocks back and asks again.
    #[doc(alias = "cuMemAlloc")]
    fn alloc(&self, bytes: usize) -> Result<*mut c_void> {
        let _current = self.0.bind()?;
        device::alloc(self.0, bytes)
    }

    /// Puts the block into the cache, with an event on `after`.
    ///
    /// # Errors
    /// [`InvalidUsage`](ErrorKind::InvalidUsage) where `after` is being captured, as nothing then
    /// tells when the memory is unused; the block stays allocated. Free it after the capture.
    unsafe fn free(&self, ptr: *mut c_void, after: RawStream) -> Result<()> {
        let _current = self.0.bind()?;
        // SAFETY: the caller's promise.
        unsafe { device::free(self.0, ptr, after) }
    }

    #[doc(alias = "cuMemcpyHtoDAsync")]
    unsafe fn copy_to(
        &self,
        dst: *mut c_void,
        src: *const c_void,
        bytes: usize,
        stream: RawStream,
    ) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let _current = self.0.bind()?;
        // SAFETY: the caller's promise.
        let result = unsafe { sys::cuMemcpyHtoDAsync_v2(address(dst), src, bytes, cu(stream)) };
        check("copy_to", result)
    }

    #[doc(alias = "cuMemcpyDtoHAsync")]
    unsafe fn copy_from(
        &self,
        dst: *mut c_void,
        src: *const c_void,
        bytes: usize,
        stream: RawStream,
    ) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let _current = self.0.bind()?;
        // SAFETY: the caller's promise.
        let result = unsafe { sys::cuMemcpyDtoHAsync_v2(dst, address(src), bytes, cu(stream)) };
        check("copy_from", result)
    }

    /// `cuMemcpyAsync`, which finds out from the addresses which devices they belong to.
    #[doc(alias = "cuMemcpyAsync")]
    unsafe fn copy_between(
        &self,
        dst: *mut c_void,
        src: *const c_void,
        bytes: usize,
        stream: RawStream,
    ) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let _current = self.0.bind()?;
        // SAFETY: the caller's promise.
        let result = unsafe { sys::cuMemcpyAsync(address(dst), address(src), bytes, cu(stream)) };
        check("copy_between", result)
    }

    #[doc(alias = "cuMemsetD8Async")]
    unsafe fn memset(
        &self,
        dst: *mut c_void,
        value: u8,
        bytes: usize,
        stream: RawStream,
    ) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let _current = self.0.bind()?;
        // SAFETY: the caller's promise.
        let result = unsafe { sys::cuMemsetD8Async(address(dst), value, bytes, cu(stream)) };
        check("memset", result)
    }

    fn stream_create(&self) -> Result<RawStream> {
        self.0.stream_create()
    }

    unsafe fn stream_destroy(&self, stream: RawStream) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.0.stream_destroy(stream) }
    }

    fn event_create(&self) -> Result<RawEvent> {
        let _current = self.0.bind()?;
        self.0.event_create()
    }

    unsafe fn event_destroy(&self, event: RawEvent) -> Result<()> {
        let _current = self.0.bind()?;
        // SAFETY: the caller's promise.
        unsafe { self.0.event_destroy(event) }
    }

    unsafe fn record(&self, event: RawEvent, stream: RawStream) -> Result<()> {
        let _current = self.0.bind()?;
        // SAFETY: the caller's promise.
        unsafe { self.0.record(event, stream) }
    }

    unsafe fn wait(&self, stream: RawStream, event: RawEvent) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.0.wait(stream, event) }
    }

    unsafe fn query(&self, event: RawEvent) -> Result<bool> {
        let _current = self.0.bind()?;
        // SAFETY: the caller's promise.
        unsafe { self.0.query(event) }
    }

    /// Without a deadline `cuStreamSynchronize`; with one, an event that is polled: a short spin,
    /// then pauses that grow from 50 µs to 1 ms.
    unsafe fn synchronize(&self, stream: RawStream, deadline: Option<Duration>) -> Result<()> {
        let _current = self.0.bind()?;
        // SAFETY: the caller's promise.
        unsafe { device::synchronize(self.0, stream, deadline) }
    }

    /// `cuStreamBeginCapture` in relaxed mode, so that other threads may call what they like.
    unsafe fn begin_capture(&self, stream: RawStream) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.0.begin_capture(stream) }
    }

    /// `cuStreamEndCapture`, `cuGraphInstantiateWithFlags` and `cuGraphUpload`.
    unsafe fn end_capture(&self, stream: RawStream) -> Result<RawGraph> {
        // SAFETY: the caller's promise.
        unsafe { self.0.end_capture(stream) }
    }

    unsafe fn is_capturing(&self, stream: RawStream) -> Result<bool> {
        let _current = self.0.bind()?;
        // SAFETY: the caller's promise.
        unsafe { self.0.is_capturing(stream) }
    }

    unsafe fn launch(&self, graph: RawGraph, stream: RawStream) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.0.launch(graph, stream) }
    }

    unsafe fn graph_destroy(&self, graph: RawGraph) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.0.graph_destroy(graph) }
    }
}

impl Context {
    /// Retains the primary context and asks what the device is. The driver is ready.
    fn open(ordinal: usize) -> Result<Self> {
        let count = driver::device_count()?;
        if ordinal >= count {
            let message = format!("device is {ordinal}, but there are {count}");
            return Err(refuse(ErrorKind::InvalidArgument, DEVICE, message)
                .with_hint("devices are counted from 0 among those of CUDA_VISIBLE_DEVICES"));
        }
        let mut device = 0;
        // SAFETY: the driver is ready; `device` outlives the call; the ordinal is below the count,
        // which is a C int.
        check(DEVICE, unsafe { sys::cuDeviceGet(&mut device, ordinal as c_int) })?;
        let info = device_info(ordinal, device)?;
        let mut context = ptr::null_mut();
        // SAFETY: a device of this driver; `context` outlives the call.
        check(DEVICE, unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, device) })?;
        Ok(Self { device, context, info, memory: Memory::new() })
    }

    /// Makes the device current, until the guard is dropped.
    pub(crate) fn bind(&self) -> Result<Current> {
        driver::ready()?;
        let mut before = ptr::null_mut();
        // SAFETY: the driver is ready; `before` outlives the call.
        check("bind", unsafe { sys::cuCtxGetCurrent(&mut before) })?;
        if before == self.context {
            return Ok(Current { restore: None });
        }
        // SAFETY: a context that is retained for ever.
        check("bind", unsafe { sys::cuCtxSetCurrent(self.context) })?;
        // A thread without a device had no choice of its own: it keeps this one.
        Ok(Current { restore: (!before.is_null()).then_some(before) })
    }

    pub(crate) fn is_primary(&self, context: CUcontext) -> bool {
        self.context == context
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("device", &self.device).finish_non_exhaustive()
    }
}

/// The device is current while this lives; then the thread's own is again.
pub(crate) struct Current {
    restore: Option<CUcontext>,
}

impl Drop for Current {
    fn drop(&mut self) {
        if let Some(before) = self.restore {
            // SAFETY: it was current when this was made. If its owner has destroyed it since, the
            // driver says so and nothing happens.
            let _gone = unsafe { sys::cuCtxSetCurrent(before) };
        }
    }
}

fn device_info(ordinal: usize, device: CUdevice) -> Result<DeviceInfo> {
    let mut name: [c_char; 256] = [0; 256];
    // SAFETY: the text is as long as said.
    let named = unsafe { sys::cuDeviceGetName(name.as_mut_ptr(), name.len() as c_int, device) };
    check(DEVICE, named)?;
    let mut total = 0;
    // SAFETY: `total` outlives the call.
    check(DEVICE, unsafe { sys::cuDeviceTotalMem_v2(&mut total, device) })?;
    let mut info = DeviceInfo::new("NCCL", ordinal, text(&name), total);

    let mut address: [c_char; 32] = [0; 32];
    // SAFETY: the text is as long as said.
    let addressed =
        unsafe { sys::cuDeviceGetPCIBusId(address.as_mut_ptr(), address.len() as c_int, device) };
    check(DEVICE, addressed)?;
    info.pci_bus_id = Some(text(&address).to_lowercase());

    let major =
        attribute(device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor =
        attribute(device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    info.compute_capability = u32::try_from(major).ok().zip(u32::try_from(minor).ok());
    Ok(info)
}

fn attribute(device: CUdevice, attribute: CUdevice_attribute) -> Result<c_int> {
    let mut value = 0;
    // SAFETY: `value` outlives the call.
    check(DEVICE, unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, device) })?;
    Ok(value)
}

/// The text before the first NUL.
fn text(chars: &[c_char]) -> String {
    let bytes: Vec<u8> = chars.iter().map(|&c| c as u8).collect();
    CStr::from_bytes_until_nul(&bytes)
        .map(|text| text.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// A device address as the driver's number.
pub(crate) fn address(ptr: *const c_void) -> sys::CUdeviceptr {
    ptr.expose_provenance() as sys::CUdeviceptr
}

pub(crate) fn cu(stream: RawStream) -> CUstream {
    stream.as_ptr().cast()
}

pub(crate) fn cu_event(event: RawEvent) -> CUevent {
    event.as_ptr().cast()
}

const DEVICE: &str = "device";
