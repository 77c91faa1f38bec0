//! Return codes: CUDA's numbers, which HIP has kept.

use std::{
    error::Error as _,
    ffi::{CStr, c_int},
};

use collectives_backend_mock::CaptureFault;
use collectives_core::{Error, ErrorKind};

use crate::runtime;

/// What a function of the CUDA driver, the CUDA runtime or HIP returns.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use]
#[repr(transparent)]
pub struct Code(pub(crate) c_int);

/// What stands behind a return code.
pub(crate) type Reply<T = ()> = Result<T, Code>;

impl Code {
    /// It worked.
    pub const SUCCESS: Self = Self(0);
    /// An argument is wrong.
    pub const INVALID_VALUE: Self = Self(1);
    /// No memory is left.
    pub const OUT_OF_MEMORY: Self = Self(2);
    /// The library was not initialised, or the process was forked since.
    pub const NOT_INITIALIZED: Self = Self(3);
    /// No device is visible.
    pub const NO_DEVICE: Self = Self(100);
    /// There is no device of this number.
    pub const INVALID_DEVICE: Self = Self(101);
    /// No context is current.
    pub const INVALID_CONTEXT: Self = Self(201);
    /// Peers cannot reach each other.
    pub const PEER_ACCESS_UNSUPPORTED: Self = Self(217);
    /// A handle is none, or of something that is gone.
    pub const INVALID_HANDLE: Self = Self(400);
    /// Not in this state of things.
    pub const ILLEGAL_STATE: Self = Self(401);
    /// There is nothing of this name.
    pub const NOT_FOUND: Self = Self(500);
    /// Work is not done yet.
    pub const NOT_READY: Self = Self(600);
    /// Access to the peer is open already.
    pub const PEER_ACCESS_ALREADY_ENABLED: Self = Self(704);
    /// Access to the peer is not open.
    pub const PEER_ACCESS_NOT_ENABLED: Self = Self(705);
    /// The primary context is in use.
    pub const CONTEXT_IS_DESTROYED: Self = Self(709);
    /// The host memory is registered already.
    pub const HOST_MEMORY_ALREADY_REGISTERED: Self = Self(712);
    /// The host memory is not registered.
    pub const HOST_MEMORY_NOT_REGISTERED: Self = Self(713);
    /// Work of the device failed.
    pub const LAUNCH_FAILED: Self = Self(719);
    /// Cannot be done here.
    pub const NOT_SUPPORTED: Self = Self(801);
    /// Not while the stream, or this thread, captures.
    pub const CAPTURE_UNSUPPORTED: Self = Self(900);
    /// The capture was disturbed earlier.
    pub const CAPTURE_INVALIDATED: Self = Self(901);
    /// Two captures would become one.
    pub const CAPTURE_MERGE: Self = Self(902);
    /// The capture was begun on another stream.
    pub const CAPTURE_UNMATCHED: Self = Self(903);
    /// A stream was not joined again.
    pub const CAPTURE_UNJOINED: Self = Self(904);
    /// The capture would depend on work outside.
    pub const CAPTURE_ISOLATION: Self = Self(905);
    /// The legacy stream would depend on a capture.
    pub const CAPTURE_IMPLICIT: Self = Self(906);
    /// The event was recorded in a capture.
    pub const CAPTURED_EVENT: Self = Self(907);
    /// The capture was begun by another thread.
    pub const CAPTURE_WRONG_THREAD: Self = Self(908);
    /// Nobody knows.
    pub const UNKNOWN: Self = Self(999);

    /// The code that a body ends with.
    pub(crate) fn of(body: impl FnOnce() -> Reply) -> Self {
        body().err().unwrap_or(Self::SUCCESS)
    }

    /// The code for an error of the mock; `invalid` is the one for an invalid argument.
    pub(crate) fn from_error(error: &Error, invalid: Self) -> Self {
        let fault = error.source().and_then(|source| source.downcast_ref::<CaptureFault>());
        if let Some(fault) = fault {
            return Self::from_fault(*fault);
        }
        match error.kind() {
            ErrorKind::InvalidArgument => invalid,
            ErrorKind::OutOfMemory => Self::OUT_OF_MEMORY,
            ErrorKind::Forked => Self::NOT_INITIALIZED,
            ErrorKind::Unsupported => Self::NOT_SUPPORTED,
            ErrorKind::InvalidUsage => Self::ILLEGAL_STATE,
            _ => Self::UNKNOWN,
        }
    }

    const fn from_fault(fault: CaptureFault) -> Self {
        match fault {
            CaptureFault::CapturedEvent => Self::CAPTURED_EVENT,
            CaptureFault::Capturing | CaptureFault::NotCapturing => Self::ILLEGAL_STATE,
            CaptureFault::Implicit => Self::CAPTURE_IMPLICIT,
            CaptureFault::Isolation => Self::CAPTURE_ISOLATION,
            CaptureFault::Merge => Self::CAPTURE_MERGE,
            CaptureFault::Unjoined => Self::CAPTURE_UNJOINED,
            CaptureFault::Unmatched => Self::CAPTURE_UNMATCHED,
            _ => Self::CAPTURE_UNSUPPORTED,
        }
    }

    /// The answer to a wait.
    ///
    /// A communicator that was aborted or revoked, or lost a rank, lets its streams go on, and tells of
    /// it by itself: CUDA knows nothing of communicators. A verdict (ranks that disagree, or can never go
    /// on) is a failed launch: on a GPU this wait would never end.
    pub(crate) fn of_wait(waited: collectives_core::Result<()>) -> Reply {
        let Err(error) = waited else { return Ok(()) };
        let about_capture = error.source().is_some_and(|source| source.is::<CaptureFault>());
        match error.kind() {
            ErrorKind::Aborted | ErrorKind::Remote | ErrorKind::Revoked => Ok(()),
            ErrorKind::InvalidArgument => Err(Self::INVALID_HANDLE),
            ErrorKind::Forked => Err(Self::NOT_INITIALIZED),
            _ if about_capture => Err(Self::from_error(&error, Self::INVALID_HANDLE)),
            _ => {
                crate::nccl::note_failure(&error);
                runtime::say_once("failed work", &error.to_string());
                Err(Self::LAUNCH_FAILED)
            }
        }
    }

    /// Its names and its meaning, where it is one of theirs.
    pub(crate) fn text(self) -> Option<&'static Text> {
        TEXTS.binary_search_by_key(&self.0, |text| text.code).ok().map(|index| &TEXTS[index])
    }
}

/// What a code is called.
pub(crate) struct Text {
    code: c_int,
    /// By the driver.
    pub(crate) driver: &'static CStr,
    /// By the CUDA runtime.
    pub(crate) runtime: &'static CStr,
    /// By HIP.
    pub(crate) hip: &'static CStr,
    pub(crate) meaning: &'static CStr,
}

macro_rules! texts {
    ($($code:literal $driver:literal $runtime:literal $hip:literal $meaning:literal;)*) => {
        &[$(Text {
            code: $code,
            driver: $driver,
            runtime: $runtime,
            hip: $hip,
            meaning: $meaning,
        }),*]
    };
}

/// By code. Names and texts of the driver's `cuGetErrorName` and `cuGetErrorString`, the runtime's
/// `cudaGetErrorName` and HIP's `hipGetErrorName`.
#[rustfmt::skip]
const TEXTS: &[Text] = texts! {
    0 c"CUDA_SUCCESS" c"cudaSuccess" c"hipSuccess" c"no error";
    1 c"CUDA_ERROR_INVALID_VALUE" c"cudaErrorInvalidValue" c"hipErrorInvalidValue" c"invalid argument";
    2 c"CUDA_ERROR_OUT_OF_MEMORY" c"cudaErrorMemoryAllocation" c"hipErrorOutOfMemory" c"out of memory";
    3 c"CUDA_ERROR_NOT_INITIALIZED" c"cudaErrorInitializationError" c"hipErrorNotInitialized" c"initialization error";
    4 c"CUDA_ERROR_DEINITIALIZED" c"cudaErrorCudartUnloading" c"hipErrorDeinitialized" c"driver shutting down";
    34 c"CUDA_ERROR_STUB_LIBRARY" c"cudaErrorStubLibrary" c"hipErrorUnknown" c"CUDA driver is a stub library";
    35 c"CUDA_ERROR_UNKNOWN" c"cudaErrorInsufficientDriver" c"hipErrorInsufficientDriver" c"CUDA driver version is insufficient for CUDA runtime version";
    46 c"CUDA_ERROR_DEVICE_UNAVAILABLE" c"cudaErrorDevicesUnavailable" c"hipErrorUnknown" c"CUDA-capable device(s) is/are busy or unavailable";
    98 c"CUDA_ERROR_UNKNOWN" c"cudaErrorInvalidDeviceFunction" c"hipErrorInvalidDeviceFunction" c"invalid device function";
    100 c"CUDA_ERROR_NO_DEVICE" c"cudaErrorNoDevice" c"hipErrorNoDevice" c"no CUDA-capable device is detected";
    101 c"CUDA_ERROR_INVALID_DEVICE" c"cudaErrorInvalidDevice" c"hipErrorInvalidDevice" c"invalid device ordinal";
    200 c"CUDA_ERROR_INVALID_IMAGE" c"cudaErrorInvalidKernelImage" c"hipErrorInvalidImage" c"device kernel image is invalid";
    201 c"CUDA_ERROR_INVALID_CONTEXT" c"cudaErrorDeviceUninitialized" c"hipErrorInvalidContext" c"invalid device context";
    205 c"CUDA_ERROR_MAP_FAILED" c"cudaErrorMapBufferObjectFailed" c"hipErrorMapFailed" c"mapping of buffer object failed";
    206 c"CUDA_ERROR_UNMAP_FAILED" c"cudaErrorUnmapBufferObjectFailed" c"hipErrorUnmapFailed" c"unmapping of buffer object failed";
    208 c"CUDA_ERROR_ALREADY_MAPPED" c"cudaErrorAlreadyMapped" c"hipErrorAlreadyMapped" c"resource already mapped";
    209 c"CUDA_ERROR_NO_BINARY_FOR_GPU" c"cudaErrorNoKernelImageForDevice" c"hipErrorNoBinaryForGpu" c"no kernel image is available for execution on the device";
    211 c"CUDA_ERROR_NOT_MAPPED" c"cudaErrorNotMapped" c"hipErrorNotMapped" c"resource not mapped";
    215 c"CUDA_ERROR_UNSUPPORTED_LIMIT" c"cudaErrorUnsupportedLimit" c"hipErrorUnsupportedLimit" c"limit is not supported on this architecture";
    216 c"CUDA_ERROR_CONTEXT_ALREADY_IN_USE" c"cudaErrorDeviceAlreadyInUse" c"hipErrorContextAlreadyInUse" c"exclusive-thread device already in use by a different thread";
    217 c"CUDA_ERROR_PEER_ACCESS_UNSUPPORTED" c"cudaErrorPeerAccessUnsupported" c"hipErrorPeerAccessUnsupported" c"peer access is not supported between these two devices";
    300 c"CUDA_ERROR_INVALID_SOURCE" c"cudaErrorInvalidSource" c"hipErrorInvalidSource" c"device kernel image is invalid";
    301 c"CUDA_ERROR_FILE_NOT_FOUND" c"cudaErrorFileNotFound" c"hipErrorFileNotFound" c"file not found";
    302 c"CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND" c"cudaErrorSharedObjectSymbolNotFound" c"hipErrorSharedObjectSymbolNotFound" c"shared object symbol not found";
    303 c"CUDA_ERROR_SHARED_OBJECT_INIT_FAILED" c"cudaErrorSharedObjectInitFailed" c"hipErrorSharedObjectInitFailed" c"shared object initialization failed";
    304 c"CUDA_ERROR_OPERATING_SYSTEM" c"cudaErrorOperatingSystem" c"hipErrorOperatingSystem" c"OS call failed or operation not supported on this OS";
    400 c"CUDA_ERROR_INVALID_HANDLE" c"cudaErrorInvalidResourceHandle" c"hipErrorInvalidHandle" c"invalid resource handle";
    401 c"CUDA_ERROR_ILLEGAL_STATE" c"cudaErrorIllegalState" c"hipErrorIllegalState" c"the operation cannot be performed in the present state";
    500 c"CUDA_ERROR_NOT_FOUND" c"cudaErrorSymbolNotFound" c"hipErrorNotFound" c"named symbol not found";
    600 c"CUDA_ERROR_NOT_READY" c"cudaErrorNotReady" c"hipErrorNotReady" c"device not ready";
    700 c"CUDA_ERROR_ILLEGAL_ADDRESS" c"cudaErrorIllegalAddress" c"hipErrorIllegalAddress" c"an illegal memory access was encountered";
    701 c"CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES" c"cudaErrorLaunchOutOfResources" c"hipErrorLaunchOutOfResources" c"too many resources requested for launch";
    702 c"CUDA_ERROR_LAUNCH_TIMEOUT" c"cudaErrorLaunchTimeout" c"hipErrorLaunchTimeOut" c"the launch timed out and was terminated";
    704 c"CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED" c"cudaErrorPeerAccessAlreadyEnabled" c"hipErrorPeerAccessAlreadyEnabled" c"peer access is already enabled";
    705 c"CUDA_ERROR_PEER_ACCESS_NOT_ENABLED" c"cudaErrorPeerAccessNotEnabled" c"hipErrorPeerAccessNotEnabled" c"peer access has not been enabled";
    708 c"CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE" c"cudaErrorSetOnActiveProcess" c"hipErrorSetOnActiveProcess" c"cannot set while device is active in this process";
    709 c"CUDA_ERROR_CONTEXT_IS_DESTROYED" c"cudaErrorContextIsDestroyed" c"hipErrorContextIsDestroyed" c"context is destroyed";
    710 c"CUDA_ERROR_ASSERT" c"cudaErrorAssert" c"hipErrorAssert" c"device-side assert triggered";
    712 c"CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED" c"cudaErrorHostMemoryAlreadyRegistered" c"hipErrorHostMemoryAlreadyRegistered" c"part or all of the requested memory range is already mapped";
    713 c"CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED" c"cudaErrorHostMemoryNotRegistered" c"hipErrorHostMemoryNotRegistered" c"pointer does not correspond to a registered memory region";
    719 c"CUDA_ERROR_LAUNCH_FAILED" c"cudaErrorLaunchFailure" c"hipErrorLaunchFailure" c"unspecified launch failure";
    720 c"CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE" c"cudaErrorCooperativeLaunchTooLarge" c"hipErrorCooperativeLaunchTooLarge" c"too many blocks in cooperative launch";
    800 c"CUDA_ERROR_NOT_PERMITTED" c"cudaErrorNotPermitted" c"hipErrorUnknown" c"operation not permitted";
    801 c"CUDA_ERROR_NOT_SUPPORTED" c"cudaErrorNotSupported" c"hipErrorNotSupported" c"operation not supported";
    802 c"CUDA_ERROR_SYSTEM_NOT_READY" c"cudaErrorSystemNotReady" c"hipErrorUnknown" c"system not yet initialized";
    803 c"CUDA_ERROR_SYSTEM_DRIVER_MISMATCH" c"cudaErrorSystemDriverMismatch" c"hipErrorUnknown" c"system has unsupported display driver / cuda driver combination";
    900 c"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED" c"cudaErrorStreamCaptureUnsupported" c"hipErrorStreamCaptureUnsupported" c"operation not permitted when stream is capturing";
    901 c"CUDA_ERROR_STREAM_CAPTURE_INVALIDATED" c"cudaErrorStreamCaptureInvalidated" c"hipErrorStreamCaptureInvalidated" c"operation failed due to a previous error during capture";
    902 c"CUDA_ERROR_STREAM_CAPTURE_MERGE" c"cudaErrorStreamCaptureMerge" c"hipErrorStreamCaptureMerge" c"operation would result in a merge of separate capture sequences";
    903 c"CUDA_ERROR_STREAM_CAPTURE_UNMATCHED" c"cudaErrorStreamCaptureUnmatched" c"hipErrorStreamCaptureUnmatched" c"capture was not ended in the same stream as it began";
    904 c"CUDA_ERROR_STREAM_CAPTURE_UNJOINED" c"cudaErrorStreamCaptureUnjoined" c"hipErrorStreamCaptureUnjoined" c"capturing stream has unjoined work";
    905 c"CUDA_ERROR_STREAM_CAPTURE_ISOLATION" c"cudaErrorStreamCaptureIsolation" c"hipErrorStreamCaptureIsolation" c"dependency created on uncaptured work in another stream";
    906 c"CUDA_ERROR_STREAM_CAPTURE_IMPLICIT" c"cudaErrorStreamCaptureImplicit" c"hipErrorStreamCaptureImplicit" c"operation would make the legacy stream depend on a capturing blocking stream";
    907 c"CUDA_ERROR_CAPTURED_EVENT" c"cudaErrorCapturedEvent" c"hipErrorCapturedEvent" c"operation not permitted on an event last recorded in a capturing stream";
    908 c"CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD" c"cudaErrorStreamCaptureWrongThread" c"hipErrorStreamCaptureWrongThread" c"attempt to terminate a thread-local capture sequence from another thread";
    909 c"CUDA_ERROR_TIMEOUT" c"cudaErrorTimeout" c"hipErrorUnknown" c"wait operation timed out";
    910 c"CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE" c"cudaErrorGraphExecUpdateFailure" c"hipErrorGraphExecUpdateFailure" c"the graph update was not performed because it included changes which violated constraints specific to instantiated graph update";
    999 c"CUDA_ERROR_UNKNOWN" c"cudaErrorUnknown" c"hipErrorUnknown" c"unknown error";
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_found_by_code() {
        assert!(TEXTS.is_sorted_by_key(|text| text.code));
        assert_eq!(
            Code::CAPTURE_ISOLATION.text().unwrap().runtime,
            c"cudaErrorStreamCaptureIsolation"
        );
        assert!(Code(12345).text().is_none());
    }
}
