//! The exported functions.

use std::{
    ffi::{CStr, c_char, c_float, c_int, c_uint, c_ulonglong, c_void},
    ptr,
};

use crate::{
    conv::{self, CudaError, HipError, Reply},
    cudart::Function,
    properties::{Head, Layout, PointerAttributes, put},
};

/// Exports functions under their own names, and writes `$find`, which finds them by name.
macro_rules! export {
    ($find:ident: $(
        fn $name:ident($($arg:ident: $type:ty),* $(,)?) -> $answer:ty $body:block
    )*) => {
        $(
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $name($($arg: $type),*) -> $answer $body
        )*

        /// The function of this name.
        fn $find(name: &[u8]) -> Option<*const c_void> {
            $(
                if name == stringify!($name).as_bytes() {
                    return Some($name as *const c_void);
                }
            )*
            None
        }
    };
}

/// Exports functions that are CUDA's under another name, with the same arguments. Behind `=>` stands
/// what makes CUDA's value of HIP's where they differ.
macro_rules! forward {
    ($find:ident: $(
        $hip:ident($($arg:ident: $type:ty $(=> $convert:path)?),*) = $cuda:ident;
    )*) => {
        export! { $find: $(
            fn $hip($($arg: $type),*) -> HipError {
                type Cuda = unsafe extern "C" fn($($type),*) -> CudaError;
                // SAFETY: HIP kept CUDA's signature.
                static CUDA: Function<Cuda> = unsafe { Function::new(stringify!($cuda)) };
                match CUDA.find() {
                    // SAFETY: what the caller promises of the arguments is what CUDA asks for.
                    Ok(function) => unsafe { function($(forward!(@ $arg $($convert)?)),*) }.into(),
                    Err(code) => code,
                }
            }
        )* }
    };
    (@ $arg:ident) => { $arg };
    (@ $arg:ident $convert:path) => { $convert($arg) };
}

forward! { forwarded:
    // Devices.
    hipGetDeviceCount(count: *mut c_int) = cudaGetDeviceCount;
    hipSetDevice(device: c_int) = cudaSetDevice;
    hipGetDevice(device: *mut c_int) = cudaGetDevice;
    hipDeviceSynchronize() = cudaDeviceSynchronize;
    hipDeviceGetAttribute(value: *mut c_int, which: c_int => conv::attribute, device: c_int)
        = cudaDeviceGetAttribute;
    hipDeviceGetPCIBusId(address: *mut c_char, length: c_int, device: c_int)
        = cudaDeviceGetPCIBusId;
    hipDeviceGetByPCIBusId(device: *mut c_int, address: *const c_char) = cudaDeviceGetByPCIBusId;
    hipDeviceCanAccessPeer(can: *mut c_int, device: c_int, peer: c_int) = cudaDeviceCanAccessPeer;
    hipDeviceEnablePeerAccess(peer: c_int, flags: c_uint) = cudaDeviceEnablePeerAccess;

    // Errors.
    hipGetLastError() = cudaGetLastError;
    hipPeekAtLastError() = cudaPeekAtLastError;

    // Memory.
    hipMalloc(memory: *mut *mut c_void, bytes: usize) = cudaMalloc;
    hipFree(memory: *mut c_void) = cudaFree;
    hipMallocAsync(memory: *mut *mut c_void, bytes: usize, stream: Stream) = cudaMallocAsync;
    hipFreeAsync(memory: *mut c_void, stream: Stream) = cudaFreeAsync;
    hipHostMalloc(memory: *mut *mut c_void, bytes: usize, flags: c_uint => conv::host_flags)
        = cudaHostAlloc;
    hipHostFree(memory: *mut c_void) = cudaFreeHost;
    hipMemGetInfo(free: *mut usize, total: *mut usize) = cudaMemGetInfo;
    hipMemcpy(to: *mut c_void, from: *const c_void, bytes: usize, kind: c_uint => conv::copy_kind)
        = cudaMemcpy;
    hipMemcpyAsync(
        to: *mut c_void, from: *const c_void, bytes: usize, kind: c_uint => conv::copy_kind,
        stream: Stream
    ) = cudaMemcpyAsync;
    hipMemset(to: *mut c_void, value: c_int, bytes: usize) = cudaMemset;
    hipMemsetAsync(to: *mut c_void, value: c_int, bytes: usize, stream: Stream) = cudaMemsetAsync;
    hipIpcGetMemHandle(handle: *mut IpcHandle, memory: *mut c_void) = cudaIpcGetMemHandle;
    hipIpcOpenMemHandle(memory: *mut *mut c_void, handle: IpcHandle, flags: c_uint)
        = cudaIpcOpenMemHandle;
    hipIpcCloseMemHandle(memory: *mut c_void) = cudaIpcCloseMemHandle;

    // Streams and events.
    hipStreamCreate(stream: *mut Stream) = cudaStreamCreate;
    hipStreamCreateWithFlags(stream: *mut Stream, flags: c_uint) = cudaStreamCreateWithFlags;
    hipStreamCreateWithPriority(stream: *mut Stream, flags: c_uint, priority: c_int)
        = cudaStreamCreateWithPriority;
    hipStreamDestroy(stream: Stream) = cudaStreamDestroy;
    hipStreamQuery(stream: Stream) = cudaStreamQuery;
    hipStreamSynchronize(stream: Stream) = cudaStreamSynchronize;
    hipStreamWaitEvent(stream: Stream, event: Event, flags: c_uint) = cudaStreamWaitEvent;
    hipStreamGetDevice(stream: Stream, device: *mut c_int) = cudaStreamGetDevice;
    hipEventCreate(event: *mut Event) = cudaEventCreate;
    hipEventCreateWithFlags(event: *mut Event, flags: c_uint => conv::event_flags)
        = cudaEventCreateWithFlags;
    hipEventRecord(event: Event, stream: Stream) = cudaEventRecord;
    hipEventQuery(event: Event) = cudaEventQuery;
    hipEventSynchronize(event: Event) = cudaEventSynchronize;
    hipEventDestroy(event: Event) = cudaEventDestroy;
    hipEventElapsedTime(milliseconds: *mut c_float, start: Event, end: Event)
        = cudaEventElapsedTime;
    hipLaunchHostFunc(stream: Stream, function: HostFunction, data: *mut c_void)
        = cudaLaunchHostFunc;

    // Captures and graphs.
    hipStreamBeginCapture(stream: Stream, mode: c_uint) = cudaStreamBeginCapture;
    hipStreamEndCapture(stream: Stream, graph: *mut Graph) = cudaStreamEndCapture;
    hipStreamIsCapturing(stream: Stream, status: *mut c_uint) = cudaStreamIsCapturing;
    hipThreadExchangeStreamCaptureMode(mode: *mut c_uint) = cudaThreadExchangeStreamCaptureMode;
    hipGraphInstantiateWithFlags(instance: *mut Instance, graph: Graph, flags: c_ulonglong)
        = cudaGraphInstantiateWithFlags;
    hipGraphUpload(instance: Instance, stream: Stream) = cudaGraphUpload;
    hipGraphLaunch(instance: Instance, stream: Stream) = cudaGraphLaunch;
    hipGraphExecDestroy(instance: Instance) = cudaGraphExecDestroy;
    hipGraphDestroy(graph: Graph) = cudaGraphDestroy;
}

export! { own:
    fn hipInit(flags: c_uint) -> HipError {
        let mut count = 0;
        // SAFETY: the number outlives the call.
        if flags == 0 { unsafe { hipGetDeviceCount(&mut count) } } else { HipError::INVALID_VALUE }
    }

    fn hipRuntimeGetVersion(version: *mut c_int) -> HipError {
        // SAFETY: the caller promises that it may be written to.
        HipError::of(unsafe { put(version, VERSION) })
    }

    fn hipDriverGetVersion(version: *mut c_int) -> HipError {
        // SAFETY: the caller promises that it may be written to.
        HipError::of(unsafe { put(version, VERSION) })
    }

    fn hipGetErrorName(code: HipError) -> *const c_char {
        code.name().unwrap_or(UNRECOGNISED).as_ptr()
    }

    // CUDA's words, or the name where CUDA has none.
    fn hipGetErrorString(code: HipError) -> *const c_char {
        type GetString = unsafe extern "C" fn(CudaError) -> *const c_char;
        // SAFETY: as in `cuda_runtime_api.h`.
        static CUDA: Function<GetString> = unsafe { Function::new("cudaGetErrorString") };
        match (code.cuda(), CUDA.get()) {
            // SAFETY: any code may be asked for.
            (Some(same), Some(function)) => unsafe { function(same) },
            _ => code.name().unwrap_or(UNRECOGNISED).as_ptr(),
        }
    }

    fn hipDeviceGetName(name: *mut c_char, length: c_int, device: c_int) -> HipError {
        HipError::of(Head::of(device).and_then(|head| {
            let room = usize::try_from(length).unwrap_or(0);
            if name.is_null() || room == 0 {
                return Err(HipError::INVALID_VALUE);
            }
            let text = head.name();
            let length = text.len().min(room - 1);
            // SAFETY: the caller has room for so much.
            unsafe { ptr::copy_nonoverlapping(text.as_ptr().cast(), name, length) };
            // SAFETY: and for one more.
            let end = unsafe { name.add(length) };
            // SAFETY: as above.
            unsafe { end.write(0) };
            Ok(())
        }))
    }

    fn hipDeviceGetUuid(uuid: *mut [u8; 16], device: c_int) -> HipError {
        // SAFETY: the caller promises that it may be written to.
        HipError::of(Head::of(device).and_then(|head| unsafe { put(uuid, head.uuid) }))
    }

    fn hipDeviceTotalMem(bytes: *mut usize, device: c_int) -> HipError {
        // SAFETY: the caller promises that it may be written to.
        HipError::of(Head::of(device).and_then(|head| unsafe { put(bytes, head.total_memory) }))
    }

    // The structure of HIP 5, which this name still means.
    fn hipGetDeviceProperties(properties: *mut [u8; 792], device: c_int) -> HipError {
        // SAFETY: the caller promises that it may be written to.
        HipError::of(Layout::R0000.fill(device).and_then(|all| unsafe { put(properties, all) }))
    }

    fn hipGetDevicePropertiesR0600(properties: *mut [u8; 1472], device: c_int) -> HipError {
        // SAFETY: the caller promises that it may be written to.
        HipError::of(Layout::R0600.fill(device).and_then(|all| unsafe { put(properties, all) }))
    }

    fn hipPointerGetAttributes(
        attributes: *mut PointerAttributes,
        address: *const c_void,
    ) -> HipError {
        // SAFETY: the caller promises that it may be written to.
        HipError::of(PointerAttributes::of(address).and_then(|all| unsafe { put(attributes, all) }))
    }

    // How memory is cached means nothing to CUDA.
    fn hipExtMallocWithFlags(memory: *mut *mut c_void, bytes: usize, _flags: c_uint) -> HipError {
        // SAFETY: the caller promises what `hipMalloc` asks for.
        unsafe { hipMalloc(memory, bytes) }
    }

    fn hipStreamGetCaptureInfo(
        stream: Stream,
        status: *mut c_uint,
        id: *mut c_ulonglong,
    ) -> HipError {
        // SAFETY: the caller's promise.
        HipError::of(unsafe { capture_info(stream, status, id) })
    }

    // The arguments of CUDA 11. No node is told as the one that was wrong.
    fn hipGraphInstantiate(
        instance: *mut Instance,
        graph: Graph,
        error_node: *mut Node,
        _log: *mut c_char,
        _log_length: usize,
    ) -> HipError {
        if !error_node.is_null() {
            // SAFETY: not null, so the caller promises that it may be written to.
            unsafe { error_node.write(ptr::null_mut()) };
        }
        // SAFETY: the caller promises what this asks for.
        unsafe { hipGraphInstantiateWithFlags(instance, graph, 0) }
    }

    fn hipGetProcAddress(
        name: *const c_char,
        function: *mut *const c_void,
        _version: c_int,
        _flags: c_ulonglong,
        status: *mut c_uint,
    ) -> HipError {
        if name.is_null() {
            return HipError::INVALID_VALUE;
        }
        // SAFETY: not null, so the caller promises a string.
        let name = unsafe { CStr::from_ptr(name) }.to_bytes();
        let found = forwarded(name).or_else(|| own(name));
        if !status.is_null() {
            // SAFETY: not null, so the caller promises that it may be written to.
            unsafe { status.write(found.is_none().into()) };
        }
        // SAFETY: the caller promises that it may be written to.
        let put = unsafe { put(function, found.unwrap_or(ptr::null())) };
        HipError::of(if found.is_some() { put } else { Err(HipError::INVALID_VALUE) })
    }
}

/// Asks what capture a stream takes part in. CUDA 13 has given the name of CUDA 11's function to one
/// with all arguments, and dropped CUDA 12's.
///
/// # Safety
/// As `hipStreamGetCaptureInfo`.
unsafe fn capture_info(stream: Stream, status: *mut c_uint, id: *mut c_ulonglong) -> Reply {
    type Of12 = unsafe extern "C" fn(
        Stream,
        *mut c_uint,
        *mut c_ulonglong,
        *mut Graph,
        *mut *const Node,
        *mut usize,
    ) -> CudaError;
    type Of13 = unsafe extern "C" fn(
        Stream,
        *mut c_uint,
        *mut c_ulonglong,
        *mut Graph,
        *mut *const Node,
        *mut *const c_void,
        *mut usize,
    ) -> CudaError;
    // SAFETY: as in CUDA 12's `cuda_runtime_api.h`.
    static OF_12: Function<Of12> = unsafe { Function::new("cudaStreamGetCaptureInfo_v2") };
    // SAFETY: as in CUDA 13's, which has no function of the name above.
    static OF_13: Function<Of13> = unsafe { Function::new("cudaStreamGetCaptureInfo") };
    let (graph, nodes, edges, count) =
        (ptr::null_mut(), ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
    match OF_12.get() {
        // SAFETY: the caller's promise; what is null is not wanted.
        Some(function) => unsafe { function(stream, status, id, graph, nodes, count) },
        None => {
            let function = OF_13.find()?;
            // SAFETY: as above.
            unsafe { function(stream, status, id, graph, nodes, edges, count) }
        }
    }
    .ok()
}

/// Handles, which are CUDA's.
type Stream = *mut c_void;
type Event = *mut c_void;
type Graph = *mut c_void;
type Instance = *mut c_void;
type Node = *mut c_void;

/// `hipHostFn_t`.
type HostFunction = Option<unsafe extern "C" fn(*mut c_void)>;

/// `hipIpcMemHandle_t`, which is passed by value.
#[derive(Clone, Copy)]
#[repr(C)]
struct IpcHandle([c_char; 64]);

/// HIP 7.2, whose codes and structures these are.
const VERSION: c_int = 70_253_211;

/// What HIP calls a code that it does not know.
const UNRECOGNISED: &CStr = c"hipErrorUnknown";
