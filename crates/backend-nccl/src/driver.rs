//! The CUDA driver: is it there, is it whole, and what do its errors say.
//!
//! cudarc opens libcuda at its first call and panics if it finds none, or if a function is missing.
//! So before that call the library is opened here, under the names that cudarc tries and in its
//! order, and every function that this crate uses is looked up. A build in which another crate
//! switches cudarc to link-time binding (`dynamic-linking`) passes the same probe: the library is
//! in the process then, under the same name.

use std::{
    ffi::{CStr, c_char, c_int},
    fmt::Write as _,
    ptr,
    sync::OnceLock,
};

use collectives_core::{Error, ErrorKind, Result, VendorCode};
use collectives_nccl_abi::fork;
use cudarc::driver::sys::{self, CUresult};

/// Whether the driver can be used; finds out once.
///
/// # Errors
/// [`Device`](ErrorKind::Device), saying what is missing and what to do;
/// [`Forked`](ErrorKind::Forked).
pub(crate) fn ready() -> Result<()> {
    static STATE: OnceLock<Result<(), Refusal>> = OnceLock::new();
    if fork::in_forked_child() {
        return Err(Error::new(ErrorKind::Forked, "CUDA was used before this process was forked")
            .with_backend(CUDA)
            .with_hint("use CUDA in the child only, or start processes instead of forking them"));
    }
    match STATE.get_or_init(|| probe().and_then(|()| init())) {
        Ok(()) => Ok(()),
        Err(refusal) => Err(refusal.error()),
    }
}

/// Number of devices that this process may use.
pub(crate) fn device_count() -> Result<usize> {
    ready()?;
    let mut count = 0;
    // SAFETY: the driver is ready, and `count` outlives the call.
    check("device_count", unsafe { sys::cuDeviceGetCount(&mut count) })?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// The driver's answer as a result.
#[inline]
pub(crate) fn check(operation: &'static str, result: CUresult) -> Result<()> {
    match result {
        CUresult::CUDA_SUCCESS => Ok(()),
        failure => Err(error(operation, failure)),
    }
}

/// An error for what the driver answered, in its own words. The driver is ready.
#[cold]
pub(crate) fn error(operation: &'static str, result: CUresult) -> Error {
    let kind = match result {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => ErrorKind::OutOfMemory,
        _ => ErrorKind::Device,
    };
    Error::new(kind, describe(result))
        .with_backend(CUDA)
        .with_operation(operation)
        .with_vendor_code(code(result))
}

/// What a caller did wrong, in our words.
#[cold]
pub(crate) fn refuse(
    kind: ErrorKind,
    operation: &'static str,
    message: impl Into<String>,
) -> Error {
    Error::new(kind, message).with_backend(CUDA).with_operation(operation)
}

/// `CUDA_ERROR_OUT_OF_MEMORY: out of memory`.
fn describe(result: CUresult) -> String {
    let mut name = ptr::null();
    // SAFETY: `name` outlives the call; the function takes every number.
    let _unknown_leaves_null = unsafe { sys::cuGetErrorName(result, &mut name) };
    let mut text = ptr::null();
    // SAFETY: as above.
    let _unknown_leaves_null = unsafe { sys::cuGetErrorString(result, &mut text) };
    // SAFETY: null, or static text of the driver.
    let (name, text) = (unsafe { copy(name) }, unsafe { copy(text) });
    match (name, text) {
        (Some(name), Some(text)) => format!("{name}: {text}"),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => "unknown CUDA error".to_owned(),
    }
}

/// # Safety
/// `text` is null, or ends in a NUL and stays.
unsafe fn copy(text: *const c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: the caller's promise.
    Some(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

fn code(result: CUresult) -> VendorCode {
    VendorCode(result as c_int)
}

/// Why the driver cannot be used: kept, as it stays true for the life of the process.
#[derive(Clone, Debug)]
struct Refusal {
    message: String,
    hint: &'static str,
    code: Option<VendorCode>,
}

impl Refusal {
    fn error(&self) -> Error {
        let error = Error::new(ErrorKind::Device, &*self.message)
            .with_backend(CUDA)
            .with_hint(self.hint)
            .with_poison(false);
        match self.code {
            Some(code) => error.with_vendor_code(code),
            None => error,
        }
    }
}

/// Opens the library and looks up every function.
fn probe() -> Result<(), Refusal> {
    let mut tried = String::new();
    for name in NAMES {
        // SAFETY: the driver's library, whose initialisers every CUDA program runs.
        match unsafe { libloading::Library::new(*name) } {
            Ok(library) => {
                let missing = missing(&library);
                // Stays open for ever: cudarc calls into it.
                std::mem::forget(library);
                return missing.map_or(Ok(()), |missing| {
                    Err(Refusal {
                        message: format!("the CUDA driver {name} lacks {missing}"),
                        hint: "install a driver for CUDA 11.4 or newer",
                        code: None,
                    })
                });
            }
            Err(error) => {
                let comma = if tried.is_empty() { "" } else { ", " };
                let _infallible = write!(tried, "{comma}{name} ({error})");
            }
        }
    }
    Err(Refusal {
        message: format!("no CUDA driver: tried {tried}"),
        hint: "install the NVIDIA driver; in a container, start it with the NVIDIA container \
               runtime (docker run --gpus all)",
        code: None,
    })
}

/// The functions that a library lacks, in one text.
fn missing(library: &libloading::Library) -> Option<String> {
    let lacks = |name: &&&str| {
        // SAFETY: only looked for, not called.
        unsafe { library.get::<unsafe extern "C" fn()>(name.as_bytes()) }.is_err()
    };
    let names: Vec<&str> = SYMBOLS.iter().filter(lacks).copied().collect();
    (!names.is_empty()).then(|| names.join(", "))
}

/// `cuInit`.
fn init() -> Result<(), Refusal> {
    fork::arm();
    // SAFETY: every function that is used is there.
    let result = unsafe { sys::cuInit(0) };
    let hint = match result {
        CUresult::CUDA_SUCCESS => return Ok(()),
        CUresult::CUDA_ERROR_NO_DEVICE => {
            "no GPU is visible: see nvidia-smi, and whether CUDA_VISIBLE_DEVICES hides them all"
        }
        CUresult::CUDA_ERROR_STUB_LIBRARY => {
            "the CUDA toolkit's stub was found instead of the driver: take the stubs folder out of \
             LD_LIBRARY_PATH"
        }
        CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => {
            "the library and the kernel module are of different releases: reboot, or restart the \
             container"
        }
        _ => "see whether nvidia-smi works",
    };
    let message = format!("the CUDA driver does not start: {}", describe(result));
    Err(Refusal { message, hint, code: Some(code(result)) })
}

/// What cudarc tries first and last; the names between are of other platforms and long gone.
const NAMES: &[&str] =
    if cfg!(windows) { &["nvcuda.dll"] } else { &["libcuda.so", "libcuda.so.1"] };

/// Every function of the driver that this crate calls, through cudarc.
///
/// All of them exist since CUDA 11.4, in each linking mode of cudarc.
pub const SYMBOLS: &[&str] = &[
    "cuCtxGetCurrent",
    "cuCtxGetDevice",
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDeviceGetPCIBusId",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventQuery",
    "cuEventRecord",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphUpload",
    "cuInit",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemcpyAsync",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuPointerGetAttribute",
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamGetCtx",
    "cuStreamIsCapturing",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuThreadExchangeStreamCaptureMode",
];

pub(crate) const CUDA: &str = "CUDA";

#[cfg(test)]
mod tests {
    use super::*;

    /// The functions that the sources call, against the list that is probed.
    #[test]
    fn every_function_that_is_called_is_probed() {
        let sources = [
            include_str!("check.rs"),
            include_str!("device.rs"),
            include_str!("driver.rs"),
            include_str!("graph.rs"),
            include_str!("memory.rs"),
            include_str!("stream.rs"),
        ];
        let mut called: Vec<&str> = sources
            .iter()
            .flat_map(|source| source.split("sys::cu").skip(1))
            .filter_map(|rest| rest.split_once('('))
            .map(|(name, _)| name)
            .filter(|name| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'))
            .collect();
        called.sort_unstable();
        called.dedup();
        let mut probed: Vec<&str> =
            SYMBOLS.iter().map(|name| name.trim_start_matches("cu")).collect();
        probed.sort_unstable();
        assert_eq!(called, probed);
    }

    #[test]
    fn a_library_without_the_functions_is_named_with_what_it_lacks() {
        // SAFETY: the C library, which is in the process already.
        let library = unsafe { libloading::Library::new("libc.so.6") }.expect("it is running");
        let missing = missing(&library).expect("the C library is no CUDA driver");
        assert_eq!(missing.split(", ").count(), SYMBOLS.len());
        assert!(missing.contains("cuGraphLaunch"), "{missing}");
    }
}
