//! One HIP device.

use std::{
    collections::BTreeMap,
    ffi::{CStr, c_char, c_int, c_void},
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use collectives_core::{
    Device, DeviceInfo, ErrorKind, F8Format, RawEvent, RawGraph, RawStream, Result,
};
use collectives_nccl_family::device::{self, Memory, RawDevice as _};

use crate::{
    driver::{self, Hip, c, refuse},
    hip::types::{
        PROPERTIES_ARCHITECTURE_SIZE, PROPERTIES_R0000_ARCHITECTURE, PROPERTIES_R0600_ARCHITECTURE,
        hipDeviceAttribute_t, hipError_t, hipEvent_t, hipMemcpyKind, hipStream_t,
    },
    topology,
};

/// One HIP device: its memory, streams, events and graphs.
///
/// Cheap to clone; all handles of one ordinal share one cache of memory, which lives as long as the
/// process. Methods make the device current for the call and leave the thread's current device as
/// they found it.
///
/// # Memory
/// See [`alloc`](Device::alloc): memory is `hipMalloc`'s and is cached, since giving it back to the
/// runtime (`hipFree`) waits for all work of the device. A thread that does so while other ranks of
/// the process have yet to launch their part of a collective would never return.
#[derive(Clone, Copy)]
pub struct HipDevice(&'static Context);

/// A device that was opened, for ever.
pub(crate) struct Context {
    pub(crate) hip: &'static Hip,
    pub(crate) info: DeviceInfo,
    pub(crate) memory: Memory,
    architecture: Option<String>,
}

impl HipDevice {
    /// Opens device `ordinal`, in the numbering of `HIP_VISIBLE_DEVICES`.
    ///
    /// # Errors
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) naming the number of devices;
    /// [`Device`](ErrorKind::Device) where there is no usable runtime, saying what to do.
    pub fn open(ordinal: usize) -> Result<Self> {
        static CONTEXTS: Mutex<BTreeMap<usize, &'static Context>> = Mutex::new(BTreeMap::new());
        let hip = driver::hip()?;
        // A panic in another thread leaves the map whole: it only ever grows.
        let mut contexts = CONTEXTS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(context) = contexts.get(&ordinal) {
            return Ok(Self(context));
        }
        let context: &'static Context = Box::leak(Box::new(Context::open(hip, ordinal)?));
        contexts.insert(ordinal, context);
        Ok(Self(context))
    }

    /// Makes this the current device of this thread, and leaves it so.
    ///
    /// # Errors
    /// What the runtime reports.
    #[doc(alias = "hipSetDevice")]
    pub fn make_current(&self) -> Result<()> {
        std::mem::forget(self.0.bind()?);
        Ok(())
    }

    /// Bytes of its memory that are free, and all there are.
    ///
    /// # Errors
    /// What the runtime reports.
    #[doc(alias = "hipMemGetInfo")]
    pub fn memory_info(&self) -> Result<(usize, usize)> {
        let _current = self.0.bind()?;
        self.0.memory_info()
    }

    /// One property, by HIP's own number for it.
    ///
    /// # Errors
    /// What the runtime reports, also for a number that it does not know.
    #[doc(alias = "hipDeviceGetAttribute")]
    pub fn attribute(&self, attribute: hipDeviceAttribute_t) -> Result<c_int> {
        let (hip, mut value) = (self.0.hip, 0);
        let get = hip.table.device_get_attribute;
        // SAFETY: `value` outlives the call; any number may be asked for.
        hip.check("attribute", unsafe { get(&mut value, attribute, c(self.0.ordinal())) })?;
        Ok(value)
    }

    /// The architecture, such as `gfx942`; `None` where the runtime does not tell it.
    #[doc(alias = "gcnArchName")]
    pub fn architecture(&self) -> Option<&str> {
        self.0.architecture.as_deref()
    }

    /// What the bits of an fp8 number mean to this device.
    pub fn f8_format(&self) -> F8Format {
        self.architecture().map_or(F8Format::Unknown, topology::f8_format)
    }

    /// Whether this device can reach the memory of `peer`.
    ///
    /// # Errors
    /// What the runtime reports.
    #[doc(alias = "hipDeviceCanAccessPeer")]
    pub fn can_access_peer(&self, peer: &Self) -> Result<bool> {
        let (hip, mut can) = (self.0.hip, 0);
        let (device, peer) = (c(self.0.ordinal()), c(peer.0.ordinal()));
        // SAFETY: `can` outlives the call; any numbers may be asked about.
        let asked = unsafe { (hip.table.device_can_access_peer)(&mut can, device, peer) };
        hip.check("can_access_peer", asked)?;
        Ok(can != 0)
    }

    /// Opens the memory of `peer` to the kernels of this device. RCCL does so itself where it wants
    /// it; copies between devices work without.
    ///
    /// # Errors
    /// What the runtime reports; that it is open already is none.
    #[doc(alias = "hipDeviceEnablePeerAccess")]
    pub fn enable_peer_access(&self, peer: &Self) -> Result<()> {
        let _current = self.0.bind()?;
        let hip = self.0.hip;
        // SAFETY: the device is current; the only flags are 0.
        match unsafe { (hip.table.device_enable_peer_access)(c(peer.0.ordinal()), 0) } {
            hipError_t::PEER_ACCESS_ALREADY_ENABLED => {
                hip.clear();
                Ok(())
            }
            answer => hip.check("enable_peer_access", answer),
        }
    }

    pub(crate) fn context(&self) -> &'static Context {
        self.0
    }
}

impl fmt::Debug for HipDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HipDevice").field(&self.0.info).finish()
    }
}

impl Device for HipDevice {
    fn info(&self) -> &DeviceInfo {
        &self.0.info
    }

    /// Takes a cached block whose last user has passed, else asks `hipMalloc`; where that has no
    /// memory left, gives unused blocks back and asks again.
    #[doc(alias = "hipMalloc")]
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

    #[doc(alias = "hipMemcpyAsync")]
    unsafe fn copy_to(
        &self,
        dst: *mut c_void,
        src: *const c_void,
        bytes: usize,
        stream: RawStream,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.0.copy("copy_to", dst, src, bytes, hipMemcpyKind::HOST_TO_DEVICE, stream) }
    }

    #[doc(alias = "hipMemcpyAsync")]
    unsafe fn copy_from(
        &self,
        dst: *mut c_void,
        src: *const c_void,
        bytes: usize,
        stream: RawStream,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.0.copy("copy_from", dst, src, bytes, hipMemcpyKind::DEVICE_TO_HOST, stream) }
    }

    /// `hipMemcpyAsync`, which finds out from the addresses which devices they belong to.
    #[doc(alias = "hipMemcpyAsync")]
    unsafe fn copy_between(
        &self,
        dst: *mut c_void,
        src: *const c_void,
        bytes: usize,
        stream: RawStream,
    ) -> Result<()> {
        let kind = hipMemcpyKind::DEVICE_TO_DEVICE;
        // SAFETY: the caller's promise.
        unsafe { self.0.copy("copy_between", dst, src, bytes, kind, stream) }
    }

    #[doc(alias = "hipMemsetAsync")]
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
        let hip = self.0.hip;
        // SAFETY: the caller's promise.
        let code = unsafe { (hip.table.memset_async)(dst, value.into(), bytes, raw(stream)) };
        hip.check("memset", code)
    }

    fn stream_create(&self) -> Result<RawStream> {
        let _current = self.0.bind()?;
        self.0.stream_create()
    }

    unsafe fn stream_destroy(&self, stream: RawStream) -> Result<()> {
        let _current = self.0.bind()?;
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
        let _current = self.0.bind()?;
        // SAFETY: the caller's promise.
        unsafe { self.0.wait(stream, event) }
    }

    unsafe fn query(&self, event: RawEvent) -> Result<bool> {
        let _current = self.0.bind()?;
        // SAFETY: the caller's promise.
        unsafe { self.0.query(event) }
    }

    /// Without a deadline `hipStreamSynchronize`; with one, an event that is polled: a short spin,
    /// then pauses that grow from 50 µs to 1 ms.
    unsafe fn synchronize(&self, stream: RawStream, deadline: Option<Duration>) -> Result<()> {
        let _current = self.0.bind()?;
        // SAFETY: the caller's promise.
        unsafe { device::synchronize(self.0, stream, deadline) }
    }

    /// `hipStreamBeginCapture` in relaxed mode, so that other threads may call what they like.
    unsafe fn begin_capture(&self, stream: RawStream) -> Result<()> {
        let _current = self.0.bind()?;
        // SAFETY: the caller's promise.
        unsafe { self.0.begin_capture(stream) }
    }

    /// `hipStreamEndCapture`, `hipGraphInstantiate` and, where the runtime has it,
    /// `hipGraphUpload`.
    unsafe fn end_capture(&self, stream: RawStream) -> Result<RawGraph> {
        let _current = self.0.bind()?;
        // SAFETY: the caller's promise.
        unsafe { self.0.end_capture(stream) }
    }

    unsafe fn is_capturing(&self, stream: RawStream) -> Result<bool> {
        let _current = self.0.bind()?;
        // SAFETY: the caller's promise.
        unsafe { self.0.is_capturing(stream) }
    }

    unsafe fn launch(&self, graph: RawGraph, stream: RawStream) -> Result<()> {
        let _current = self.0.bind()?;
        // SAFETY: the caller's promise.
        unsafe { self.0.launch(graph, stream) }
    }

    unsafe fn graph_destroy(&self, graph: RawGraph) -> Result<()> {
        let _current = self.0.bind()?;
        // SAFETY: the caller's promise.
        unsafe { self.0.graph_destroy(graph) }
    }
}

impl Context {
    /// Asks what the device is.
    fn open(hip: &'static Hip, ordinal: usize) -> Result<Self> {
        let count = driver::device_count()?;
        if ordinal >= count {
            let message = format!("device is {ordinal}, but there are {count}");
            return Err(refuse(ErrorKind::InvalidArgument, DEVICE, message).with_hint(
                "devices are counted from 0 among those that ROCR_VISIBLE_DEVICES, then \
                 HIP_VISIBLE_DEVICES leave",
            ));
        }
        let mut context = Self {
            hip,
            info: DeviceInfo::new("RCCL", ordinal, String::new(), 0),
            memory: Memory::new(),
            architecture: architecture(hip, ordinal),
        };
        let current = context.bind()?;
        let total_memory = context.memory_info()?.1;
        drop(current);
        let told = |buffer: &mut [c_char; 256]| {
            // SAFETY: the text is as long as said.
            unsafe { (hip.table.device_get_name)(buffer.as_mut_ptr(), 256, c(ordinal)) }
        };
        let product = text(hip, told)?;
        let told = |buffer: &mut [c_char; 256]| {
            // SAFETY: the text is as long as said.
            unsafe { (hip.table.device_get_pci_bus_id)(buffer.as_mut_ptr(), 256, c(ordinal)) }
        };
        let address = text(hip, told)?.to_lowercase();
        // Some devices have no product name; the architecture says more than nothing.
        let name = match (&context.architecture, product.is_empty()) {
            (Some(architecture), true) => architecture.clone(),
            _ => product,
        };
        context.info = DeviceInfo::new("RCCL", ordinal, name, total_memory);
        context.info.pci_bus_id = Some(address);
        Ok(context)
    }

    /// Makes the device current, until the guard is dropped.
    pub(crate) fn bind(&self) -> Result<Current> {
        let hip = driver::hip()?;
        let (ours, mut before) = (c(self.info.ordinal), 0);
        // SAFETY: `before` outlives the call.
        hip.check("bind", unsafe { (hip.table.get_device)(&mut before) })?;
        if before == ours {
            return Ok(Current { hip, restore: None });
        }
        // SAFETY: takes any number.
        hip.check("bind", unsafe { (hip.table.set_device)(ours) })?;
        Ok(Current { hip, restore: Some(before) })
    }

    /// # Safety
    /// See the copies of `collectives_core::Device`.
    unsafe fn copy(
        &self,
        operation: &'static str,
        dst: *mut c_void,
        src: *const c_void,
        bytes: usize,
        kind: hipMemcpyKind,
        stream: RawStream,
    ) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let _current = self.bind()?;
        // SAFETY: the caller's promise.
        let code = unsafe { (self.hip.table.memcpy_async)(dst, src, bytes, kind, raw(stream)) };
        self.hip.check(operation, code)
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("info", &self.info).finish_non_exhaustive()
    }
}

/// The device is current while this lives; then the one before is again.
pub(crate) struct Current {
    hip: &'static Hip,
    restore: Option<c_int>,
}

impl Drop for Current {
    fn drop(&mut self) {
        if let Some(before) = self.restore {
            // SAFETY: takes any number; this one was current when the guard was made.
            let _was_current = unsafe { (self.hip.table.set_device)(before) };
        }
    }
}

/// The text that `tell` writes, up to the first NUL.
fn text(hip: &Hip, tell: impl FnOnce(&mut [c_char; 256]) -> hipError_t) -> Result<String> {
    let mut chars: [c_char; 256] = [0; 256];
    hip.check(DEVICE, tell(&mut chars))?;
    Ok(until_nul(&chars.map(|c| c as u8)))
}

/// `gfx942` of `gfx942:sramecc+:xnack-`, out of the property structure, whose layout follows from
/// the name of the function that fills it. A runtime that fails here is not held against the device.
fn architecture(hip: &Hip, ordinal: usize) -> Option<String> {
    let properties = [
        (hip.table.get_device_properties_r0600, PROPERTIES_R0600_ARCHITECTURE),
        (hip.table.get_device_properties_r0000, PROPERTIES_R0000_ARCHITECTURE),
    ];
    let (fill, at) = properties.into_iter().find_map(|(fill, at)| Some((fill?, at)))?;
    // Longer than any layout, should one grow.
    let mut bytes = [0_u64; 512];
    // SAFETY: 4096 bytes, aligned for every field, and no layout is longer.
    if !unsafe { fill(bytes.as_mut_ptr().cast(), c(ordinal)) }.is_success() {
        hip.clear();
        return None;
    }
    let bytes: Vec<u8> = bytes.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let name = until_nul(&bytes[at..at + PROPERTIES_ARCHITECTURE_SIZE]);
    let name = name.split(':').next().unwrap_or_default();
    (!name.is_empty()).then(|| name.to_owned())
}

fn until_nul(bytes: &[u8]) -> String {
    CStr::from_bytes_until_nul(bytes)
        .map(|text| text.to_string_lossy().into_owned())
        .unwrap_or_default()
}

pub(crate) fn raw(stream: RawStream) -> hipStream_t {
    hipStream_t(stream.as_ptr())
}

pub(crate) fn raw_event(event: RawEvent) -> hipEvent_t {
    hipEvent_t(event.as_ptr())
}

const DEVICE: &str = "device";
