//! What differs between the two, as data: codes, attributes of devices, flags, kinds of copies.
//!
//! Numbers are those of HIP 7.2 and of CUDA 12 and 13. What is not listed here is the same in both:
//! modes and states of captures, flags of streams and of graph instances, kinds of memory (as in
//! HIP 6 and later).

use std::ffi::{CStr, c_int, c_uint};

/// What a function of HIP returns: `hipError_t`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use]
#[repr(transparent)]
pub(crate) struct HipError(pub(crate) c_int);

/// What a function of the CUDA runtime returns: `cudaError_t`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use]
#[repr(transparent)]
pub(crate) struct CudaError(pub(crate) c_int);

/// What stands behind a code.
pub(crate) type Reply<T = ()> = Result<T, HipError>;

impl HipError {
    pub(crate) const SUCCESS: Self = Self(0);
    pub(crate) const INVALID_VALUE: Self = Self(1);
    pub(crate) const INSUFFICIENT_DRIVER: Self = Self(35);
    pub(crate) const NOT_SUPPORTED: Self = Self(801);
    pub(crate) const UNKNOWN: Self = Self(999);

    /// The name of the code, if HIP has one.
    pub(crate) fn name(self) -> Option<&'static CStr> {
        let found = ERRORS.binary_search_by_key(&self.0, |(code, _)| *code).ok()?;
        ERRORS.get(found).map(|(_, name)| *name)
    }

    /// The code of CUDA that means the same.
    pub(crate) fn cuda(self) -> Option<CudaError> {
        let same = CudaError(self.0);
        (Self::from(same) == self && self != Self::UNKNOWN).then_some(same)
    }

    /// The code of a call that has an answer or none.
    pub(crate) fn of(reply: Reply) -> Self {
        reply.err().unwrap_or(Self::SUCCESS)
    }
}

impl From<CudaError> for HipError {
    /// HIP kept CUDA's numbers, two of which it gave another meaning. It has no twin for dozens of
    /// others.
    fn from(CudaError(code): CudaError) -> Self {
        if OTHERWISE.contains(&code) || Self(code).name().is_none() {
            return Self::UNKNOWN;
        }
        Self(code)
    }
}

impl CudaError {
    /// Whether it worked.
    ///
    /// # Errors
    /// HIP's code for what went wrong.
    pub(crate) fn ok(self) -> Reply {
        match self.into() {
            HipError::SUCCESS => Ok(()),
            error => Err(error),
        }
    }
}

/// CUDA: `ExternalDevice`, `InvalidClusterSize`. HIP: `InvalidChannelDescriptor`, `InvalidTexture`.
const OTHERWISE: [c_int; 2] = [911, 912];

/// All codes of HIP 7.2.
const ERRORS: [(c_int, &CStr); 76] = [
    (0, c"hipSuccess"),
    (1, c"hipErrorInvalidValue"),
    (2, c"hipErrorOutOfMemory"),
    (3, c"hipErrorNotInitialized"),
    (4, c"hipErrorDeinitialized"),
    (5, c"hipErrorProfilerDisabled"),
    (6, c"hipErrorProfilerNotInitialized"),
    (7, c"hipErrorProfilerAlreadyStarted"),
    (8, c"hipErrorProfilerAlreadyStopped"),
    (9, c"hipErrorInvalidConfiguration"),
    (12, c"hipErrorInvalidPitchValue"),
    (13, c"hipErrorInvalidSymbol"),
    (17, c"hipErrorInvalidDevicePointer"),
    (21, c"hipErrorInvalidMemcpyDirection"),
    (35, c"hipErrorInsufficientDriver"),
    (52, c"hipErrorMissingConfiguration"),
    (53, c"hipErrorPriorLaunchFailure"),
    (98, c"hipErrorInvalidDeviceFunction"),
    (100, c"hipErrorNoDevice"),
    (101, c"hipErrorInvalidDevice"),
    (200, c"hipErrorInvalidImage"),
    (201, c"hipErrorInvalidContext"),
    (202, c"hipErrorContextAlreadyCurrent"),
    (205, c"hipErrorMapFailed"),
    (206, c"hipErrorUnmapFailed"),
    (207, c"hipErrorArrayIsMapped"),
    (208, c"hipErrorAlreadyMapped"),
    (209, c"hipErrorNoBinaryForGpu"),
    (210, c"hipErrorAlreadyAcquired"),
    (211, c"hipErrorNotMapped"),
    (212, c"hipErrorNotMappedAsArray"),
    (213, c"hipErrorNotMappedAsPointer"),
    (214, c"hipErrorECCNotCorrectable"),
    (215, c"hipErrorUnsupportedLimit"),
    (216, c"hipErrorContextAlreadyInUse"),
    (217, c"hipErrorPeerAccessUnsupported"),
    (218, c"hipErrorInvalidKernelFile"),
    (219, c"hipErrorInvalidGraphicsContext"),
    (300, c"hipErrorInvalidSource"),
    (301, c"hipErrorFileNotFound"),
    (302, c"hipErrorSharedObjectSymbolNotFound"),
    (303, c"hipErrorSharedObjectInitFailed"),
    (304, c"hipErrorOperatingSystem"),
    (400, c"hipErrorInvalidHandle"),
    (401, c"hipErrorIllegalState"),
    (500, c"hipErrorNotFound"),
    (600, c"hipErrorNotReady"),
    (700, c"hipErrorIllegalAddress"),
    (701, c"hipErrorLaunchOutOfResources"),
    (702, c"hipErrorLaunchTimeOut"),
    (704, c"hipErrorPeerAccessAlreadyEnabled"),
    (705, c"hipErrorPeerAccessNotEnabled"),
    (708, c"hipErrorSetOnActiveProcess"),
    (709, c"hipErrorContextIsDestroyed"),
    (710, c"hipErrorAssert"),
    (712, c"hipErrorHostMemoryAlreadyRegistered"),
    (713, c"hipErrorHostMemoryNotRegistered"),
    (719, c"hipErrorLaunchFailure"),
    (720, c"hipErrorCooperativeLaunchTooLarge"),
    (801, c"hipErrorNotSupported"),
    (900, c"hipErrorStreamCaptureUnsupported"),
    (901, c"hipErrorStreamCaptureInvalidated"),
    (902, c"hipErrorStreamCaptureMerge"),
    (903, c"hipErrorStreamCaptureUnmatched"),
    (904, c"hipErrorStreamCaptureUnjoined"),
    (905, c"hipErrorStreamCaptureIsolation"),
    (906, c"hipErrorStreamCaptureImplicit"),
    (907, c"hipErrorCapturedEvent"),
    (908, c"hipErrorStreamCaptureWrongThread"),
    (910, c"hipErrorGraphExecUpdateFailure"),
    (911, c"hipErrorInvalidChannelDescriptor"),
    (912, c"hipErrorInvalidTexture"),
    (999, c"hipErrorUnknown"),
    (1052, c"hipErrorRuntimeMemory"),
    (1053, c"hipErrorRuntimeOther"),
    (1054, c"hipErrorTbd"),
];

/// A property of a device, by HIP's number and by CUDA's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attribute {
    hip: c_int,
    pub(crate) cuda: c_int,
}

macro_rules! attributes {
    ($($name:ident: $hip:literal = $cuda:literal;)*) => {
        impl Attribute {
            $(pub(crate) const $name: Self = Self { hip: $hip, cuda: $cuda };)*

            /// Those that are known here.
            const ALL: &[Self] = &[$(Self::$name),*];
        }
    };
}

// `hipDeviceAttribute_t` is numbered in alphabetical order, `cudaDeviceAttr` by age.
attributes! {
    CLOCK_RATE: 5 = 13;
    INTEGRATED: 16 = 18;
    COMPUTE_CAPABILITY_MAJOR: 23 = 75;
    MANAGED_MEMORY: 24 = 83;
    MAX_THREADS_PER_BLOCK: 56 = 1;
    COMPUTE_CAPABILITY_MINOR: 61 = 76;
    MULTIPROCESSOR_COUNT: 63 = 16;
    PCI_BUS_ID: 67 = 33;
    PCI_DEVICE_ID: 68 = 34;
    PCI_DOMAIN_ID: 69 = 50;
    UNIFIED_ADDRESSING: 85 = 41;
    WARP_SIZE: 87 = 10;
}

/// CUDA's number of an attribute of HIP. One that is not known here becomes −1, which CUDA refuses
/// and keeps as its last error.
pub(crate) fn attribute(hip: c_int) -> c_int {
    Attribute::ALL.iter().find(|known| known.hip == hip).map_or(-1, |known| known.cuda)
}

/// Flags of `hipHostMalloc` that CUDA has: portable, mapped, write-combined.
pub(crate) fn host_flags(hip: c_uint) -> c_uint {
    hip & !(HOST_NUMA_USER | HOST_COHERENT | HOST_NON_COHERENT)
}

const HOST_NUMA_USER: c_uint = 0x2000_0000;
const HOST_COHERENT: c_uint = 0x4000_0000;
const HOST_NON_COHERENT: c_uint = 0x8000_0000;

/// Flags of events that CUDA has: blocking wait, no timing, for other processes. HIP's other ones say
/// how far a recording is seen, which is everywhere with CUDA.
pub(crate) fn event_flags(hip: c_uint) -> c_uint {
    hip & !(EVENT_DISABLE_SYSTEM_FENCE | EVENT_RELEASE_TO_DEVICE | EVENT_RELEASE_TO_SYSTEM)
}

const EVENT_DISABLE_SYSTEM_FENCE: c_uint = 0x2000_0000;
const EVENT_RELEASE_TO_DEVICE: c_uint = 0x4000_0000;
const EVENT_RELEASE_TO_SYSTEM: c_uint = 0x8000_0000;

/// The kind of a copy. HIP's one without compute units is a copy between devices like any other.
pub(crate) fn copy_kind(hip: c_uint) -> c_uint {
    if hip == DEVICE_TO_DEVICE_NO_CU { DEVICE_TO_DEVICE } else { hip }
}

const DEVICE_TO_DEVICE: c_uint = 3;
const DEVICE_TO_DEVICE_NO_CU: c_uint = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_in_order_and_have_names_of_their_own() {
        assert!(ERRORS.is_sorted_by(|(one, _), (next, _)| one < next));
        for (code, name) in ERRORS {
            assert_eq!(HipError(code).name(), Some(name));
            assert_eq!(ERRORS.iter().filter(|(_, other)| *other == name).count(), 1, "{name:?}");
        }
        assert_eq!(HipError(101).name(), Some(c"hipErrorInvalidDevice"));
        assert_eq!(HipError(46).name(), None);
    }

    /// The codes of CUDA 13.0 and 12.9, which are the same ones.
    const OF_CUDA: &[c_int] = &[
        0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28,
        31, 32, 34, 35, 36, 37, 43, 44, 45, 46, 49, 52, 53, 65, 66, 67, 68, 69, 98, 100, 101, 102,
        103, 127, 200, 201, 205, 206, 207, 208, 209, 210, 211, 212, 213, 214, 215, 216, 217, 218,
        219, 220, 221, 222, 223, 224, 225, 226, 300, 301, 302, 303, 304, 400, 401, 402, 500, 600,
        700, 701, 702, 703, 704, 705, 708, 709, 710, 711, 712, 713, 714, 715, 716, 717, 718, 719,
        720, 721, 800, 801, 802, 803, 804, 805, 806, 807, 808, 809, 810, 811, 812, 900, 901, 902,
        903, 904, 905, 906, 907, 908, 909, 910, 911, 912, 913, 914, 915, 999, 10000,
    ];

    #[test]
    fn codes_of_cuda_keep_their_numbers_or_are_unknown() {
        let (same, unknown): (Vec<c_int>, Vec<c_int>) =
            OF_CUDA.iter().partition(|code| HipError::from(CudaError(**code)) == HipError(**code));
        for code in &unknown {
            assert_eq!(HipError::from(CudaError(*code)), HipError::UNKNOWN, "{code}");
        }
        // What HIP has, without the two that mean something else and the four that CUDA lacks.
        let twins = ERRORS.iter().map(|(code, _)| *code);
        let twins = twins.filter(|code| ![202, 911, 912, 1052, 1053, 1054].contains(code));
        assert_eq!(same, twins.collect::<Vec<_>>());
        assert_eq!(HipError::from(CudaError(46)), HipError::UNKNOWN);
        assert_eq!(HipError::from(CudaError(10_000)), HipError::UNKNOWN);
        assert_eq!(HipError::from(CudaError(-1)), HipError::UNKNOWN);
    }

    #[test]
    fn only_twins_have_cudas_words() {
        assert_eq!(HipError(400).cuda(), Some(CudaError(400)));
        for code in [911, 912, 999, 46, 12345] {
            assert_eq!(HipError(code).cuda(), None, "{code}");
        }
    }

    #[test]
    fn attributes_are_renumbered() {
        assert_eq!([5, 23, 61, 63, 67, 87].map(attribute), [13, 75, 76, 16, 33, 10]);
        assert_eq!([0, 10, 10_000, -1].map(attribute), [-1; 4]);
        let mut numbers: Vec<c_int> = Attribute::ALL.iter().map(|known| known.cuda).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 12, "two of HIP's are one of CUDA's");
    }

    #[test]
    fn flags_that_only_hip_has_are_dropped() {
        assert_eq!([0, 7, 0x2000_0001, 0x4000_0002, 0x8000_0004].map(host_flags), [0, 7, 1, 2, 4]);
        assert_eq!([2, 0x2000_0002, 0x4000_0006, 0x8000_0001].map(event_flags), [2, 2, 6, 1]);
        // A wrong flag stays wrong.
        assert_eq!((host_flags(8), event_flags(8)), (8, 8));
        assert_eq!([0, 1, 2, 3, 4, 1024, 7].map(copy_kind), [0, 1, 2, 3, 4, 3, 7]);
    }
}
