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

    /// Its names and its meaning, where it is anybody's.
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

/// By code. Names and texts are those of the driver's `cuGetErrorName` and `cuGetErrorString` (580), the
/// runtime's `cudaGetErrorName` and HIP's `hipGetErrorName`; an empty name is a code that one has not.
#[rustfmt::skip]
const TEXTS: &[Text] = texts! {
    0 c"CUDA_SUCCESS" c"cudaSuccess" c"hipSuccess" c"no error";
    1 c"CUDA_ERROR_INVALID_VALUE" c"cudaErrorInvalidValue" c"hipErrorInvalidValue" c"invalid argument";
    2 c"CUDA_ERROR_OUT_OF_MEMORY" c"cudaErrorMemoryAllocation" c"hipErrorOutOfMemory" c"out of memory";
    3 c"CUDA_ERROR_NOT_INITIALIZED" c"cudaErrorInitializationError" c"hipErrorNotInitialized" c"initialization error";
    4 c"CUDA_ERROR_DEINITIALIZED" c"cudaErrorCudartUnloading" c"hipErrorDeinitialized" c"driver shutting down";
    5 c"CUDA_ERROR_PROFILER_DISABLED" c"cudaErrorProfilerDisabled" c"hipErrorProfilerDisabled" c"profiler disabled while using external profiling tool";
    6 c"CUDA_ERROR_PROFILER_NOT_INITIALIZED" c"cudaErrorProfilerNotInitialized" c"hipErrorProfilerNotInitialized" c"profiler not initialized: call cudaProfilerInitialize()";
    7 c"CUDA_ERROR_PROFILER_ALREADY_STARTED" c"cudaErrorProfilerAlreadyStarted" c"hipErrorProfilerAlreadyStarted" c"profiler already started";
    8 c"CUDA_ERROR_PROFILER_ALREADY_STOPPED" c"cudaErrorProfilerAlreadyStopped" c"hipErrorProfilerAlreadyStopped" c"profiler already stopped";
    9 c"" c"cudaErrorInvalidConfiguration" c"hipErrorInvalidConfiguration" c"invalid configuration argument";
    12 c"" c"cudaErrorInvalidPitchValue" c"hipErrorInvalidPitchValue" c"invalid pitch argument";
    13 c"" c"cudaErrorInvalidSymbol" c"hipErrorInvalidSymbol" c"invalid device symbol";
    17 c"" c"cudaErrorInvalidDevicePointer" c"hipErrorInvalidDevicePointer" c"invalid device pointer";
    21 c"" c"cudaErrorInvalidMemcpyDirection" c"hipErrorInvalidMemcpyDirection" c"invalid copy direction for memcpy";
    34 c"CUDA_ERROR_STUB_LIBRARY" c"cudaErrorStubLibrary" c"" c"CUDA driver is a stub library";
    35 c"" c"cudaErrorInsufficientDriver" c"hipErrorInsufficientDriver" c"CUDA driver version is insufficient for CUDA runtime version";
    36 c"CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER" c"cudaErrorCallRequiresNewerDriver" c"" c"API call is not supported in the installed CUDA driver";
    46 c"CUDA_ERROR_DEVICE_UNAVAILABLE" c"cudaErrorDevicesUnavailable" c"" c"CUDA-capable device(s) is/are busy or unavailable";
    52 c"" c"cudaErrorMissingConfiguration" c"hipErrorMissingConfiguration" c"__global__ function call is not configured";
    53 c"" c"cudaErrorPriorLaunchFailure" c"hipErrorPriorLaunchFailure" c"unspecified launch failure in prior launch";
    98 c"" c"cudaErrorInvalidDeviceFunction" c"hipErrorInvalidDeviceFunction" c"invalid device function";
    100 c"CUDA_ERROR_NO_DEVICE" c"cudaErrorNoDevice" c"hipErrorNoDevice" c"no CUDA-capable device is detected";
    101 c"CUDA_ERROR_INVALID_DEVICE" c"cudaErrorInvalidDevice" c"hipErrorInvalidDevice" c"invalid device ordinal";
    102 c"CUDA_ERROR_DEVICE_NOT_LICENSED" c"cudaErrorDeviceNotLicensed" c"" c"device doesn't have valid Grid license";
    200 c"CUDA_ERROR_INVALID_IMAGE" c"cudaErrorInvalidKernelImage" c"hipErrorInvalidImage" c"device kernel image is invalid";
    201 c"CUDA_ERROR_INVALID_CONTEXT" c"cudaErrorDeviceUninitialized" c"hipErrorInvalidContext" c"invalid device context";
    202 c"CUDA_ERROR_CONTEXT_ALREADY_CURRENT" c"" c"hipErrorContextAlreadyCurrent" c"context already current";
    205 c"CUDA_ERROR_MAP_FAILED" c"cudaErrorMapBufferObjectFailed" c"hipErrorMapFailed" c"mapping of buffer object failed";
    206 c"CUDA_ERROR_UNMAP_FAILED" c"cudaErrorUnmapBufferObjectFailed" c"hipErrorUnmapFailed" c"unmapping of buffer object failed";
    207 c"CUDA_ERROR_ARRAY_IS_MAPPED" c"cudaErrorArrayIsMapped" c"hipErrorArrayIsMapped" c"array is mapped";
    208 c"CUDA_ERROR_ALREADY_MAPPED" c"cudaErrorAlreadyMapped" c"hipErrorAlreadyMapped" c"resource already mapped";
    209 c"CUDA_ERROR_NO_BINARY_FOR_GPU" c"cudaErrorNoKernelImageForDevice" c"hipErrorNoBinaryForGpu" c"no kernel image is available for execution on the device";
    210 c"CUDA_ERROR_ALREADY_ACQUIRED" c"cudaErrorAlreadyAcquired" c"hipErrorAlreadyAcquired" c"resource already acquired";
    211 c"CUDA_ERROR_NOT_MAPPED" c"cudaErrorNotMapped" c"hipErrorNotMapped" c"resource not mapped";
    212 c"CUDA_ERROR_NOT_MAPPED_AS_ARRAY" c"cudaErrorNotMappedAsArray" c"hipErrorNotMappedAsArray" c"resource not mapped as array";
    213 c"CUDA_ERROR_NOT_MAPPED_AS_POINTER" c"cudaErrorNotMappedAsPointer" c"hipErrorNotMappedAsPointer" c"resource not mapped as pointer";
    214 c"CUDA_ERROR_ECC_UNCORRECTABLE" c"cudaErrorECCUncorrectable" c"hipErrorECCNotCorrectable" c"uncorrectable ECC error encountered";
    215 c"CUDA_ERROR_UNSUPPORTED_LIMIT" c"cudaErrorUnsupportedLimit" c"hipErrorUnsupportedLimit" c"limit is not supported on this architecture";
    216 c"CUDA_ERROR_CONTEXT_ALREADY_IN_USE" c"cudaErrorDeviceAlreadyInUse" c"hipErrorContextAlreadyInUse" c"exclusive-thread device already in use by a different thread";
    217 c"CUDA_ERROR_PEER_ACCESS_UNSUPPORTED" c"cudaErrorPeerAccessUnsupported" c"hipErrorPeerAccessUnsupported" c"peer access is not supported between these two devices";
    218 c"CUDA_ERROR_INVALID_PTX" c"cudaErrorInvalidPtx" c"hipErrorInvalidKernelFile" c"a PTX JIT compilation failed";
    219 c"CUDA_ERROR_INVALID_GRAPHICS_CONTEXT" c"cudaErrorInvalidGraphicsContext" c"hipErrorInvalidGraphicsContext" c"invalid OpenGL or DirectX context";
    220 c"CUDA_ERROR_NVLINK_UNCORRECTABLE" c"cudaErrorNvlinkUncorrectable" c"" c"uncorrectable NVLink error detected during the execution";
    221 c"CUDA_ERROR_JIT_COMPILER_NOT_FOUND" c"cudaErrorJitCompilerNotFound" c"" c"PTX JIT compiler library not found";
    222 c"CUDA_ERROR_UNSUPPORTED_PTX_VERSION" c"cudaErrorUnsupportedPtxVersion" c"" c"the provided PTX was compiled with an unsupported toolchain.";
    223 c"CUDA_ERROR_JIT_COMPILATION_DISABLED" c"cudaErrorJitCompilationDisabled" c"" c"PTX JIT compilation was disabled";
    224 c"CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY" c"cudaErrorUnsupportedExecAffinity" c"" c"the provided execution affinity is not supported";
    225 c"CUDA_ERROR_UNSUPPORTED_DEVSIDE_SYNC" c"cudaErrorUnsupportedDevSideSync" c"" c"the provided PTX contains unsupported call to cudaDeviceSynchronize";
    226 c"CUDA_ERROR_CONTAINED" c"cudaErrorContained" c"" c"Invalid access of peer GPU memory over nvlink or a hardware error";
    300 c"CUDA_ERROR_INVALID_SOURCE" c"cudaErrorInvalidSource" c"hipErrorInvalidSource" c"device kernel image is invalid";
    301 c"CUDA_ERROR_FILE_NOT_FOUND" c"cudaErrorFileNotFound" c"hipErrorFileNotFound" c"file not found";
    302 c"CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND" c"cudaErrorSharedObjectSymbolNotFound" c"hipErrorSharedObjectSymbolNotFound" c"shared object symbol not found";
    303 c"CUDA_ERROR_SHARED_OBJECT_INIT_FAILED" c"cudaErrorSharedObjectInitFailed" c"hipErrorSharedObjectInitFailed" c"shared object initialization failed";
    304 c"CUDA_ERROR_OPERATING_SYSTEM" c"cudaErrorOperatingSystem" c"hipErrorOperatingSystem" c"OS call failed or operation not supported on this OS";
    400 c"CUDA_ERROR_INVALID_HANDLE" c"cudaErrorInvalidResourceHandle" c"hipErrorInvalidHandle" c"invalid resource handle";
    401 c"CUDA_ERROR_ILLEGAL_STATE" c"cudaErrorIllegalState" c"hipErrorIllegalState" c"the operation cannot be performed in the present state";
    402 c"CUDA_ERROR_LOSSY_QUERY" c"cudaErrorLossyQuery" c"" c"attempted introspection would be semantically lossy";
    500 c"CUDA_ERROR_NOT_FOUND" c"cudaErrorSymbolNotFound" c"hipErrorNotFound" c"named symbol not found";
    600 c"CUDA_ERROR_NOT_READY" c"cudaErrorNotReady" c"hipErrorNotReady" c"device not ready";
    700 c"CUDA_ERROR_ILLEGAL_ADDRESS" c"cudaErrorIllegalAddress" c"hipErrorIllegalAddress" c"an illegal memory access was encountered";
    701 c"CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES" c"cudaErrorLaunchOutOfResources" c"hipErrorLaunchOutOfResources" c"too many resources requested for launch";
    702 c"CUDA_ERROR_LAUNCH_TIMEOUT" c"cudaErrorLaunchTimeout" c"hipErrorLaunchTimeOut" c"the launch timed out and was terminated";
    703 c"CUDA_ERROR_LAUNCH_INCOMPATIBLE_TEXTURING" c"cudaErrorLaunchIncompatibleTexturing" c"" c"launch uses incompatible texturing mode";
    704 c"CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED" c"cudaErrorPeerAccessAlreadyEnabled" c"hipErrorPeerAccessAlreadyEnabled" c"peer access is already enabled";
    705 c"CUDA_ERROR_PEER_ACCESS_NOT_ENABLED" c"cudaErrorPeerAccessNotEnabled" c"hipErrorPeerAccessNotEnabled" c"peer access has not been enabled";
    708 c"CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE" c"cudaErrorSetOnActiveProcess" c"hipErrorSetOnActiveProcess" c"cannot set while device is active in this process";
    709 c"CUDA_ERROR_CONTEXT_IS_DESTROYED" c"cudaErrorContextIsDestroyed" c"hipErrorContextIsDestroyed" c"context is destroyed";
    710 c"CUDA_ERROR_ASSERT" c"cudaErrorAssert" c"hipErrorAssert" c"device-side assert triggered";
    711 c"CUDA_ERROR_TOO_MANY_PEERS" c"cudaErrorTooManyPeers" c"" c"peer mapping resources exhausted";
    712 c"CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED" c"cudaErrorHostMemoryAlreadyRegistered" c"hipErrorHostMemoryAlreadyRegistered" c"part or all of the requested memory range is already mapped";
    713 c"CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED" c"cudaErrorHostMemoryNotRegistered" c"hipErrorHostMemoryNotRegistered" c"pointer does not correspond to a registered memory region";
    714 c"CUDA_ERROR_HARDWARE_STACK_ERROR" c"cudaErrorHardwareStackError" c"" c"hardware stack error";
    715 c"CUDA_ERROR_ILLEGAL_INSTRUCTION" c"cudaErrorIllegalInstruction" c"" c"an illegal instruction was encountered";
    716 c"CUDA_ERROR_MISALIGNED_ADDRESS" c"cudaErrorMisalignedAddress" c"" c"misaligned address";
    717 c"CUDA_ERROR_INVALID_ADDRESS_SPACE" c"cudaErrorInvalidAddressSpace" c"" c"operation not supported on global/shared address space";
    718 c"CUDA_ERROR_INVALID_PC" c"cudaErrorInvalidPc" c"" c"invalid program counter";
    719 c"CUDA_ERROR_LAUNCH_FAILED" c"cudaErrorLaunchFailure" c"hipErrorLaunchFailure" c"unspecified launch failure";
    720 c"CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE" c"cudaErrorCooperativeLaunchTooLarge" c"hipErrorCooperativeLaunchTooLarge" c"too many blocks in cooperative launch";
    721 c"CUDA_ERROR_TENSOR_MEMORY_LEAK" c"cudaErrorTensorMemoryLeak" c"" c"tensor memory not completely freed";
    800 c"CUDA_ERROR_NOT_PERMITTED" c"cudaErrorNotPermitted" c"" c"operation not permitted";
    801 c"CUDA_ERROR_NOT_SUPPORTED" c"cudaErrorNotSupported" c"hipErrorNotSupported" c"operation not supported";
    802 c"CUDA_ERROR_SYSTEM_NOT_READY" c"cudaErrorSystemNotReady" c"" c"system not yet initialized";
    803 c"CUDA_ERROR_SYSTEM_DRIVER_MISMATCH" c"cudaErrorSystemDriverMismatch" c"" c"system has unsupported display driver / cuda driver combination";
    804 c"CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE" c"cudaErrorCompatNotSupportedOnDevice" c"" c"forward compatibility was attempted on non supported HW";
    805 c"CUDA_ERROR_MPS_CONNECTION_FAILED" c"cudaErrorMpsConnectionFailed" c"" c"MPS client failed to connect to the MPS control daemon or the MPS server";
    806 c"CUDA_ERROR_MPS_RPC_FAILURE" c"cudaErrorMpsRpcFailure" c"" c"the remote procedural call between the MPS server and the MPS client failed";
    807 c"CUDA_ERROR_MPS_SERVER_NOT_READY" c"cudaErrorMpsServerNotReady" c"" c"MPS server is not ready to accept new MPS client requests";
    808 c"CUDA_ERROR_MPS_MAX_CLIENTS_REACHED" c"cudaErrorMpsMaxClientsReached" c"" c"the hardware resources required to create MPS client have been exhausted";
    809 c"CUDA_ERROR_MPS_MAX_CONNECTIONS_REACHED" c"cudaErrorMpsMaxConnectionsReached" c"" c"the hardware resources required to support device connections have been exhausted";
    810 c"CUDA_ERROR_MPS_CLIENT_TERMINATED" c"cudaErrorMpsClientTerminated" c"" c"the MPS client has been terminated by the server";
    811 c"CUDA_ERROR_CDP_NOT_SUPPORTED" c"cudaErrorCdpNotSupported" c"" c"is using CUDA Dynamic Parallelism, but the current configuration, like MPS, does not support it";
    812 c"CUDA_ERROR_CDP_VERSION_MISMATCH" c"cudaErrorCdpVersionMismatch" c"" c"unsupported interaction between different versions of CUDA Dynamic Parallelism";
    900 c"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED" c"cudaErrorStreamCaptureUnsupported" c"hipErrorStreamCaptureUnsupported" c"operation not permitted when stream is capturing";
    901 c"CUDA_ERROR_STREAM_CAPTURE_INVALIDATED" c"cudaErrorStreamCaptureInvalidated" c"hipErrorStreamCaptureInvalidated" c"operation failed due to a previous error during capture";
    902 c"CUDA_ERROR_STREAM_CAPTURE_MERGE" c"cudaErrorStreamCaptureMerge" c"hipErrorStreamCaptureMerge" c"operation would result in a merge of separate capture sequences";
    903 c"CUDA_ERROR_STREAM_CAPTURE_UNMATCHED" c"cudaErrorStreamCaptureUnmatched" c"hipErrorStreamCaptureUnmatched" c"capture was not ended in the same stream as it began";
    904 c"CUDA_ERROR_STREAM_CAPTURE_UNJOINED" c"cudaErrorStreamCaptureUnjoined" c"hipErrorStreamCaptureUnjoined" c"capturing stream has unjoined work";
    905 c"CUDA_ERROR_STREAM_CAPTURE_ISOLATION" c"cudaErrorStreamCaptureIsolation" c"hipErrorStreamCaptureIsolation" c"dependency created on uncaptured work in another stream";
    906 c"CUDA_ERROR_STREAM_CAPTURE_IMPLICIT" c"cudaErrorStreamCaptureImplicit" c"hipErrorStreamCaptureImplicit" c"operation would make the legacy stream depend on a capturing blocking stream";
    907 c"CUDA_ERROR_CAPTURED_EVENT" c"cudaErrorCapturedEvent" c"hipErrorCapturedEvent" c"operation not permitted on an event last recorded in a capturing stream";
    908 c"CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD" c"cudaErrorStreamCaptureWrongThread" c"hipErrorStreamCaptureWrongThread" c"attempt to terminate a thread-local capture sequence from another thread";
    909 c"CUDA_ERROR_TIMEOUT" c"cudaErrorTimeout" c"" c"wait operation timed out";
    910 c"CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE" c"cudaErrorGraphExecUpdateFailure" c"hipErrorGraphExecUpdateFailure" c"the graph update was not performed because it included changes which violated constraints specific to instantiated graph update";
    911 c"CUDA_ERROR_EXTERNAL_DEVICE" c"cudaErrorExternalDevice" c"" c"an async error has occured in external entity outside of CUDA";
    912 c"CUDA_ERROR_INVALID_CLUSTER_SIZE" c"cudaErrorInvalidClusterSize" c"" c"a kernel launch error has occurred due to cluster misconfiguration";
    913 c"CUDA_ERROR_FUNCTION_NOT_LOADED" c"cudaErrorFunctionNotLoaded" c"" c"the function handle is not loaded when calling an API that requires a loaded function";
    914 c"CUDA_ERROR_INVALID_RESOURCE_TYPE" c"cudaErrorInvalidResourceType" c"" c"one or more resources passed in are not valid resource types for the operation";
    915 c"CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION" c"cudaErrorInvalidResourceConfiguration" c"" c"one or more resources are insufficient or non-applicable for the operation";
    916 c"CUDA_ERROR_KEY_ROTATION" c"" c"" c"an error happened during the key rotation sequence";
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
