//! The scalar types, handles and constants of `hip_runtime_api.h` that a collective needs around it.
//!
//! C enums are open sets, as in [`collectives_nccl_abi::types`]: codes have grown with HIP 6 and 7,
//! and one that this crate does not know is kept. Values are the same from HIP 5.2 to 7.15, except
//! where a line says otherwise.

#![expect(non_camel_case_types, reason = "C names stay C names, as in hip_runtime_api.h")]

use std::ffi::{c_int, c_uint, c_void};

use collectives_nccl_abi::{handle, open_enum};

/// A device's number. An `int`, as in the header.
pub type hipDevice_t = c_int;

open_enum! {
    /// What a call answered.
    ///
    /// Numbers that have had two meanings (1054 and 1055) have no constant.
    #[must_use = "a refused call did nothing"]
    hipError_t {
        SUCCESS = 0, "hipSuccess";
        INVALID_VALUE = 1, "hipErrorInvalidValue";
        OUT_OF_MEMORY = 2, "hipErrorOutOfMemory";
        NOT_INITIALIZED = 3, "hipErrorNotInitialized";
        DEINITIALIZED = 4, "hipErrorDeinitialized";
        PROFILER_DISABLED = 5, "hipErrorProfilerDisabled";
        PROFILER_NOT_INITIALIZED = 6, "hipErrorProfilerNotInitialized";
        PROFILER_ALREADY_STARTED = 7, "hipErrorProfilerAlreadyStarted";
        PROFILER_ALREADY_STOPPED = 8, "hipErrorProfilerAlreadyStopped";
        INVALID_CONFIGURATION = 9, "hipErrorInvalidConfiguration";
        INVALID_PITCH_VALUE = 12, "hipErrorInvalidPitchValue";
        INVALID_SYMBOL = 13, "hipErrorInvalidSymbol";
        INVALID_DEVICE_POINTER = 17, "hipErrorInvalidDevicePointer";
        INVALID_MEMCPY_DIRECTION = 21, "hipErrorInvalidMemcpyDirection";
        INSUFFICIENT_DRIVER = 35, "hipErrorInsufficientDriver";
        MISSING_CONFIGURATION = 52, "hipErrorMissingConfiguration";
        PRIOR_LAUNCH_FAILURE = 53, "hipErrorPriorLaunchFailure";
        INVALID_DEVICE_FUNCTION = 98, "hipErrorInvalidDeviceFunction";
        NO_DEVICE = 100, "hipErrorNoDevice";
        INVALID_DEVICE = 101, "hipErrorInvalidDevice";
        INVALID_IMAGE = 200, "hipErrorInvalidImage";
        INVALID_CONTEXT = 201, "hipErrorInvalidContext";
        CONTEXT_ALREADY_CURRENT = 202, "hipErrorContextAlreadyCurrent";
        MAP_FAILED = 205, "hipErrorMapFailed";
        UNMAP_FAILED = 206, "hipErrorUnmapFailed";
        ARRAY_IS_MAPPED = 207, "hipErrorArrayIsMapped";
        ALREADY_MAPPED = 208, "hipErrorAlreadyMapped";
        NO_BINARY_FOR_GPU = 209, "hipErrorNoBinaryForGpu";
        ALREADY_ACQUIRED = 210, "hipErrorAlreadyAcquired";
        NOT_MAPPED = 211, "hipErrorNotMapped";
        NOT_MAPPED_AS_ARRAY = 212, "hipErrorNotMappedAsArray";
        NOT_MAPPED_AS_POINTER = 213, "hipErrorNotMappedAsPointer";
        ECC_NOT_CORRECTABLE = 214, "hipErrorECCNotCorrectable";
        UNSUPPORTED_LIMIT = 215, "hipErrorUnsupportedLimit";
        CONTEXT_ALREADY_IN_USE = 216, "hipErrorContextAlreadyInUse";
        PEER_ACCESS_UNSUPPORTED = 217, "hipErrorPeerAccessUnsupported";
        INVALID_KERNEL_FILE = 218, "hipErrorInvalidKernelFile";
        INVALID_GRAPHICS_CONTEXT = 219, "hipErrorInvalidGraphicsContext";
        INVALID_SOURCE = 300, "hipErrorInvalidSource";
        FILE_NOT_FOUND = 301, "hipErrorFileNotFound";
        SHARED_OBJECT_SYMBOL_NOT_FOUND = 302, "hipErrorSharedObjectSymbolNotFound";
        SHARED_OBJECT_INIT_FAILED = 303, "hipErrorSharedObjectInitFailed";
        OPERATING_SYSTEM = 304, "hipErrorOperatingSystem";
        INVALID_HANDLE = 400, "hipErrorInvalidHandle";
        ILLEGAL_STATE = 401, "hipErrorIllegalState";
        NOT_FOUND = 500, "hipErrorNotFound";
        /// Not done yet, and no failure:
        NOT_READY = 600, "hipErrorNotReady";
        ILLEGAL_ADDRESS = 700, "hipErrorIllegalAddress";
        LAUNCH_OUT_OF_RESOURCES = 701, "hipErrorLaunchOutOfResources";
        LAUNCH_TIME_OUT = 702, "hipErrorLaunchTimeOut";
        PEER_ACCESS_ALREADY_ENABLED = 704, "hipErrorPeerAccessAlreadyEnabled";
        PEER_ACCESS_NOT_ENABLED = 705, "hipErrorPeerAccessNotEnabled";
        SET_ON_ACTIVE_PROCESS = 708, "hipErrorSetOnActiveProcess";
        CONTEXT_IS_DESTROYED = 709, "hipErrorContextIsDestroyed";
        ASSERT = 710, "hipErrorAssert";
        HOST_MEMORY_ALREADY_REGISTERED = 712, "hipErrorHostMemoryAlreadyRegistered";
        HOST_MEMORY_NOT_REGISTERED = 713, "hipErrorHostMemoryNotRegistered";
        LAUNCH_FAILURE = 719, "hipErrorLaunchFailure";
        COOPERATIVE_LAUNCH_TOO_LARGE = 720, "hipErrorCooperativeLaunchTooLarge";
        NOT_SUPPORTED = 801, "hipErrorNotSupported";
        STREAM_CAPTURE_UNSUPPORTED = 900, "hipErrorStreamCaptureUnsupported";
        STREAM_CAPTURE_INVALIDATED = 901, "hipErrorStreamCaptureInvalidated";
        STREAM_CAPTURE_MERGE = 902, "hipErrorStreamCaptureMerge";
        STREAM_CAPTURE_UNMATCHED = 903, "hipErrorStreamCaptureUnmatched";
        STREAM_CAPTURE_UNJOINED = 904, "hipErrorStreamCaptureUnjoined";
        STREAM_CAPTURE_ISOLATION = 905, "hipErrorStreamCaptureIsolation";
        STREAM_CAPTURE_IMPLICIT = 906, "hipErrorStreamCaptureImplicit";
        CAPTURED_EVENT = 907, "hipErrorCapturedEvent";
        STREAM_CAPTURE_WRONG_THREAD = 908, "hipErrorStreamCaptureWrongThread";
        GRAPH_EXEC_UPDATE_FAILURE = 910, "hipErrorGraphExecUpdateFailure";
        /// Since HIP 6:
        INVALID_CHANNEL_DESCRIPTOR = 911, "hipErrorInvalidChannelDescriptor";
        /// Since HIP 6:
        INVALID_TEXTURE = 912, "hipErrorInvalidTexture";
        /// Since HIP 7.14:
        INVALID_RESOURCE_TYPE = 914, "hipErrorInvalidResourceType";
        /// Since HIP 7.14:
        INVALID_RESOURCE_CONFIGURATION = 915, "hipErrorInvalidResourceConfiguration";
        /// Since HIP 7.14:
        STREAM_DETACHED = 916, "hipErrorStreamDetached";
        UNKNOWN = 999, "hipErrorUnknown";
        RUNTIME_MEMORY = 1052, "hipErrorRuntimeMemory";
        RUNTIME_OTHER = 1053, "hipErrorRuntimeOther";
    }
}

impl hipError_t {
    /// Whether the call succeeded.
    pub const fn is_success(self) -> bool {
        matches!(self, Self::SUCCESS)
    }
}

open_enum! {
    /// What `hipDeviceGetAttribute` is asked for. The numbering is HIP's own, not CUDA's.
    hipDeviceAttribute_t {
        CLOCK_RATE = 5, "hipDeviceAttributeClockRate";
        INTEGRATED = 16, "hipDeviceAttributeIntegrated";
        COMPUTE_CAPABILITY_MAJOR = 23, "hipDeviceAttributeComputeCapabilityMajor";
        MANAGED_MEMORY = 24, "hipDeviceAttributeManagedMemory";
        MAX_THREADS_PER_BLOCK = 56, "hipDeviceAttributeMaxThreadsPerBlock";
        COMPUTE_CAPABILITY_MINOR = 61, "hipDeviceAttributeComputeCapabilityMinor";
        MULTIPROCESSOR_COUNT = 63, "hipDeviceAttributeMultiprocessorCount";
        PCI_BUS_ID = 67, "hipDeviceAttributePciBusId";
        PCI_DEVICE_ID = 68, "hipDeviceAttributePciDeviceId";
        PCI_DOMAIN_ID = 69, "hipDeviceAttributePciDomainID";
        UNIFIED_ADDRESSING = 85, "hipDeviceAttributeUnifiedAddressing";
        WARP_SIZE = 87, "hipDeviceAttributeWarpSize";
    }
}

open_enum! {
    /// The direction of a copy.
    hipMemcpyKind {
        HOST_TO_HOST = 0, "hipMemcpyHostToHost";
        HOST_TO_DEVICE = 1, "hipMemcpyHostToDevice";
        DEVICE_TO_HOST = 2, "hipMemcpyDeviceToHost";
        DEVICE_TO_DEVICE = 3, "hipMemcpyDeviceToDevice";
        /// Found out from the addresses:
        DEFAULT = 4, "hipMemcpyDefault";
    }
}

open_enum! {
    /// What other threads, and other streams of this one, may do while a stream is captured.
    hipStreamCaptureMode {
        GLOBAL = 0, "hipStreamCaptureModeGlobal";
        THREAD_LOCAL = 1, "hipStreamCaptureModeThreadLocal";
        RELAXED = 2, "hipStreamCaptureModeRelaxed";
    }
}

open_enum! {
    /// Whether a stream is being captured.
    hipStreamCaptureStatus {
        NONE = 0, "hipStreamCaptureStatusNone";
        ACTIVE = 1, "hipStreamCaptureStatusActive";
        INVALIDATED = 2, "hipStreamCaptureStatusInvalidated";
    }
}

handle! {
    /// A stream. The null one, 1 and 2 are default streams.
    hipStream_t
}
handle! {
    /// An event.
    hipEvent_t
}
handle! {
    /// A captured graph.
    hipGraph_t
}
handle! {
    /// A graph that can be launched.
    hipGraphExec_t
}
handle! {
    /// A node of a graph.
    hipGraphNode_t
}

/// What `hipPointerGetAttributes` tells of an address: 32 bytes in every release.
///
/// The numbers of `kind` changed with HIP 6 (host memory was 0 and became 1), so nothing here reads
/// them: the pointers and `is_managed` say the same.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct hipPointerAttribute_t {
    /// `type`, called `memoryType` up to HIP 5.
    pub kind: c_int,
    /// The device that owns the memory.
    pub device: c_int,
    /// The address for the device; null where no device can use it.
    pub device_pointer: *mut c_void,
    /// The address for the host; null for device memory.
    pub host_pointer: *mut c_void,
    /// Not 0 for managed memory.
    pub is_managed: c_int,
    /// Flags of the allocation.
    pub flags: c_uint,
}

impl hipPointerAttribute_t {
    /// Zeros, to be filled by the call.
    pub const ZERO: Self = Self {
        kind: 0,
        device: 0,
        device_pointer: std::ptr::null_mut(),
        host_pointer: std::ptr::null_mut(),
        is_managed: 0,
        flags: 0,
    };
}

/// `hipStreamNonBlocking`: does not synchronise with the default stream.
pub const HIP_STREAM_NON_BLOCKING: c_uint = 1;
/// `hipEventDisableTiming`.
pub const HIP_EVENT_DISABLE_TIMING: c_uint = 2;

/// `sizeof(hipDeviceProp_t)` up to HIP 5, and what `hipGetDeviceProperties` still fills.
pub const PROPERTIES_R0000_SIZE: usize = 792;
/// `offsetof(hipDeviceProp_t, gcnArchName)` there.
pub const PROPERTIES_R0000_ARCHITECTURE: usize = 396;
/// `sizeof(hipDeviceProp_t)` since HIP 6, which `hipGetDevicePropertiesR0600` fills.
pub const PROPERTIES_R0600_SIZE: usize = 1472;
/// `offsetof(hipDeviceProp_t, gcnArchName)` there.
pub const PROPERTIES_R0600_ARCHITECTURE: usize = 1160;
/// `sizeof(hipDeviceProp_t::gcnArchName)`.
pub const PROPERTIES_ARCHITECTURE_SIZE: usize = 256;

const _: () = {
    assert!(size_of::<hipError_t>() == 4);
    assert!(size_of::<hipDeviceAttribute_t>() == 4);
    assert!(size_of::<hipMemcpyKind>() == 4);
    assert!(size_of::<hipStream_t>() == size_of::<*const ()>());
    assert!(size_of::<hipPointerAttribute_t>() == 32);
    assert!(std::mem::offset_of!(hipPointerAttribute_t, device_pointer) == 8);
    assert!(std::mem::offset_of!(hipPointerAttribute_t, is_managed) == 24);
};
