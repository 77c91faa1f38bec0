//! Our constants and handles against those of the crate `hip-sys`, which were generated from AMD's
//! headers. Needs the feature `hip-sys`, so ROCm's headers.
//!
//! Their enums are read as numbers and never made of one: a number outside the list would be
//! undefined behaviour.

use std::{
    ffi::{c_int, c_void},
    mem::offset_of,
    ptr,
};

use collectives_backend_rccl::{
    hip::types::{
        self, HIP_EVENT_DISABLE_TIMING, HIP_STREAM_NON_BLOCKING, PROPERTIES_ARCHITECTURE_SIZE,
        PROPERTIES_R0000_ARCHITECTURE, PROPERTIES_R0000_SIZE, hipPointerAttribute_t,
    },
    interop::HipSysHandle,
};
use collectives_core::{RawEvent, RawGraph, RawStream};
use hip_sys::hiprt;

/// Compares each value of an enum of ours with theirs, which is empty for the names of `later`
/// releases.
macro_rules! same_values {
    ($type:ident, later: [$($later:literal),*], $($name:ident),* $(,)?) => {
        let theirs = [$((stringify!($name), hiprt::$type::$name as c_int)),*];
        let ours = types::$type::NAMED.iter().map(|value| (value.name().unwrap_or(""), value.0));
        let later: &[&str] = &[$($later),*];
        let (newer, common): (Vec<_>, Vec<_>) = ours.partition(|(name, _)| later.contains(name));
        assert_eq!(common, theirs);
        assert_eq!(newer.iter().map(|(name, _)| *name).collect::<Vec<_>>(), later);
        assert_eq!(size_of::<hiprt::$type>(), size_of::<types::$type>());
    };
}

#[test]
fn error_codes_are_the_same() {
    same_values!(
        hipError_t,
        later: [
            "hipErrorInvalidChannelDescriptor",
            "hipErrorInvalidTexture",
            "hipErrorInvalidResourceType",
            "hipErrorInvalidResourceConfiguration",
            "hipErrorStreamDetached"
        ],
        hipSuccess,
        hipErrorInvalidValue,
        hipErrorOutOfMemory,
        hipErrorNotInitialized,
        hipErrorDeinitialized,
        hipErrorProfilerDisabled,
        hipErrorProfilerNotInitialized,
        hipErrorProfilerAlreadyStarted,
        hipErrorProfilerAlreadyStopped,
        hipErrorInvalidConfiguration,
        hipErrorInvalidPitchValue,
        hipErrorInvalidSymbol,
        hipErrorInvalidDevicePointer,
        hipErrorInvalidMemcpyDirection,
        hipErrorInsufficientDriver,
        hipErrorMissingConfiguration,
        hipErrorPriorLaunchFailure,
        hipErrorInvalidDeviceFunction,
        hipErrorNoDevice,
        hipErrorInvalidDevice,
        hipErrorInvalidImage,
        hipErrorInvalidContext,
        hipErrorContextAlreadyCurrent,
        hipErrorMapFailed,
        hipErrorUnmapFailed,
        hipErrorArrayIsMapped,
        hipErrorAlreadyMapped,
        hipErrorNoBinaryForGpu,
        hipErrorAlreadyAcquired,
        hipErrorNotMapped,
        hipErrorNotMappedAsArray,
        hipErrorNotMappedAsPointer,
        hipErrorECCNotCorrectable,
        hipErrorUnsupportedLimit,
        hipErrorContextAlreadyInUse,
        hipErrorPeerAccessUnsupported,
        hipErrorInvalidKernelFile,
        hipErrorInvalidGraphicsContext,
        hipErrorInvalidSource,
        hipErrorFileNotFound,
        hipErrorSharedObjectSymbolNotFound,
        hipErrorSharedObjectInitFailed,
        hipErrorOperatingSystem,
        hipErrorInvalidHandle,
        hipErrorIllegalState,
        hipErrorNotFound,
        hipErrorNotReady,
        hipErrorIllegalAddress,
        hipErrorLaunchOutOfResources,
        hipErrorLaunchTimeOut,
        hipErrorPeerAccessAlreadyEnabled,
        hipErrorPeerAccessNotEnabled,
        hipErrorSetOnActiveProcess,
        hipErrorContextIsDestroyed,
        hipErrorAssert,
        hipErrorHostMemoryAlreadyRegistered,
        hipErrorHostMemoryNotRegistered,
        hipErrorLaunchFailure,
        hipErrorCooperativeLaunchTooLarge,
        hipErrorNotSupported,
        hipErrorStreamCaptureUnsupported,
        hipErrorStreamCaptureInvalidated,
        hipErrorStreamCaptureMerge,
        hipErrorStreamCaptureUnmatched,
        hipErrorStreamCaptureUnjoined,
        hipErrorStreamCaptureIsolation,
        hipErrorStreamCaptureImplicit,
        hipErrorCapturedEvent,
        hipErrorStreamCaptureWrongThread,
        hipErrorGraphExecUpdateFailure,
        hipErrorUnknown,
        hipErrorRuntimeMemory,
        hipErrorRuntimeOther,
    );
}

#[test]
fn attributes_and_modes_are_the_same() {
    same_values!(
        hipDeviceAttribute_t,
        later: [],
        hipDeviceAttributeClockRate,
        hipDeviceAttributeIntegrated,
        hipDeviceAttributeComputeCapabilityMajor,
        hipDeviceAttributeManagedMemory,
        hipDeviceAttributeMaxThreadsPerBlock,
        hipDeviceAttributeComputeCapabilityMinor,
        hipDeviceAttributeMultiprocessorCount,
        hipDeviceAttributePciBusId,
        hipDeviceAttributePciDeviceId,
        hipDeviceAttributePciDomainID,
        hipDeviceAttributeUnifiedAddressing,
        hipDeviceAttributeWarpSize,
    );
    same_values!(
        hipMemcpyKind,
        later: [],
        hipMemcpyHostToHost,
        hipMemcpyHostToDevice,
        hipMemcpyDeviceToHost,
        hipMemcpyDeviceToDevice,
        hipMemcpyDefault,
    );
    same_values!(
        hipStreamCaptureMode,
        later: [],
        hipStreamCaptureModeGlobal,
        hipStreamCaptureModeThreadLocal,
        hipStreamCaptureModeRelaxed,
    );
    same_values!(
        hipStreamCaptureStatus,
        later: [],
        hipStreamCaptureStatusNone,
        hipStreamCaptureStatusActive,
        hipStreamCaptureStatusInvalidated,
    );
    assert_eq!(HIP_STREAM_NON_BLOCKING, hiprt::hipStreamNonBlocking);
    assert_eq!(HIP_EVENT_DISABLE_TIMING, hiprt::hipEventDisableTiming);
}

#[test]
fn layouts_are_the_same() {
    type Theirs = hiprt::hipPointerAttribute_t;
    type Ours = hipPointerAttribute_t;
    assert_eq!(size_of::<Ours>(), size_of::<Theirs>());
    assert_eq!(offset_of!(Ours, kind), offset_of!(Theirs, memoryType));
    assert_eq!(offset_of!(Ours, device), offset_of!(Theirs, device));
    assert_eq!(offset_of!(Ours, device_pointer), offset_of!(Theirs, devicePointer));
    assert_eq!(offset_of!(Ours, host_pointer), offset_of!(Theirs, hostPointer));
    assert_eq!(offset_of!(Ours, is_managed), offset_of!(Theirs, isManaged));
    assert_eq!(offset_of!(Ours, flags), offset_of!(Theirs, allocationFlags));

    // Theirs is that of HIP 5, which the symbol without a release in its name still fills.
    assert_eq!(PROPERTIES_R0000_SIZE, size_of::<hiprt::hipDeviceProp_t>());
    let architecture = offset_of!(hiprt::hipDeviceProp_t, gcnArchName);
    assert_eq!(PROPERTIES_R0000_ARCHITECTURE, architecture);
    let properties = hiprt::hipDeviceProp_t::default();
    assert_eq!(PROPERTIES_ARCHITECTURE_SIZE, properties.gcnArchName.len());
}

#[test]
fn handles_keep_their_value_both_ways() {
    /// To theirs and back.
    fn there_and_back<H: HipSysHandle>(handle: H) -> H {
        H::from_hip_sys(handle.to_hip_sys())
    }
    for bits in [0, 1, 2, 0x7f00_dead_bee0] {
        let address: *mut c_void = ptr::with_exposed_provenance_mut(bits);
        let (stream, event) = (RawStream::from_bits(bits), RawEvent::from_bits(bits));
        assert_eq!(there_and_back(stream), stream);
        assert_eq!(there_and_back(event), event);
        assert_eq!(there_and_back(RawGraph::from_bits(bits)).bits(), bits);
        assert_eq!(there_and_back(types::hipGraph_t(address)).0, address);
        assert_eq!(there_and_back(types::hipGraphNode_t(address)).0, address);

        let theirs: hiprt::hipStream_t = stream.to_hip_sys();
        assert_eq!(theirs.addr(), bits);
        assert_eq!(types::hipStream_t::from_hip_sys(theirs).0, address);
        let theirs: hiprt::hipEvent_t = event.to_hip_sys();
        assert_eq!(types::hipEvent_t::from_hip_sys(theirs).0, address);
        let theirs: hiprt::hipGraphExec_t = RawGraph::from_bits(bits).to_hip_sys();
        assert_eq!(types::hipGraphExec_t::from_hip_sys(theirs).0, address);

        // One type on both sides: this compiles.
        let pointer: hiprt::hipDeviceptr_t = address;
        assert_eq!(pointer, address);
    }
    let device: (hiprt::hipDevice_t, types::hipDevice_t) = (3, 3);
    assert_eq!(device.0, device.1);
}

#[test]
fn an_error_of_theirs_is_one_of_ours() {
    let ours = types::hipError_t::from(hiprt::hipError_t::hipErrorNoDevice);
    assert_eq!(ours, types::hipError_t::NO_DEVICE);
    // A code that we have no name for keeps its number.
    let ours = types::hipError_t::from(hiprt::hipError_t::hipErrorTbd);
    assert_eq!((ours.0, ours.name()), (1054, None));
}
