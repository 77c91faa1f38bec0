//! Handles to and from the types of the crate `hip-sys`, with the feature of that name.
//!
//! For programs that use HIP through that crate: a stream of theirs can carry a collective of ours,
//! and the other way round.
//!
//! ```no_run
//! use collectives_backend_rccl::interop::HipSysHandle;
//! use collectives_core::{Launch, RawStream};
//! use hip_sys::hiprt;
//!
//! let theirs: hiprt::hipStream_t = std::ptr::null_mut(); // or of hipStreamCreate
//! let launch = Launch::new(RawStream::from_hip_sys(theirs));
//! let again: hiprt::hipStream_t = launch.stream().to_hip_sys();
//! # assert_eq!(theirs, again);
//! ```
//!
//! A device pointer (`hipDeviceptr_t`) is a `*mut c_void` and a device (`hipDevice_t`) a `c_int` on
//! both sides, so they need no conversion. An error code of theirs becomes one of ours by `From`. The
//! way back is closed: their enum lists HIP 5.4's codes, and to make one of it from another code,
//! which every later HIP may answer, is undefined behaviour.
//!
//! Nothing of HIP is called here, or by this crate through `hip-sys`. But `hip-sys` needs ROCm's
//! headers to build, and links `libamdhip64`, so that a program that calls it no longer starts on
//! machines without one. That is why the feature is off by default.

use collectives_core::{RawEvent, RawGraph, RawStream};
use hip_sys::hiprt;

use crate::hip::types::{
    hipError_t, hipEvent_t, hipGraph_t, hipGraphExec_t, hipGraphNode_t, hipStream_t,
};

/// A handle that `hip-sys` has a type for. Conversions keep the value, and own nothing.
pub trait HipSysHandle: Copy {
    /// Its type there.
    type HipSys;

    /// Takes a handle of that type.
    fn from_hip_sys(handle: Self::HipSys) -> Self;

    /// The handle as that type.
    fn to_hip_sys(self) -> Self::HipSys;
}

/// Handles of `collectives-core`, which any runtime's pointer fits.
macro_rules! raw_handles {
    ($($raw:ident: $hip_sys:ident;)*) => { $(
        impl HipSysHandle for $raw {
            type HipSys = hiprt::$hip_sys;

            fn from_hip_sys(handle: Self::HipSys) -> Self {
                Self::from_ptr(handle.cast())
            }

            fn to_hip_sys(self) -> Self::HipSys {
                self.as_ptr().cast()
            }
        }
    )* };
}

raw_handles! {
    RawStream: hipStream_t;
    RawEvent: hipEvent_t;
    RawGraph: hipGraphExec_t;
}

/// Handles of this crate's function table, which have their names in common.
macro_rules! handles {
    ($($handle:ident),*) => { $(
        impl HipSysHandle for $handle {
            type HipSys = hiprt::$handle;

            fn from_hip_sys(handle: Self::HipSys) -> Self {
                Self(handle.cast())
            }

            fn to_hip_sys(self) -> Self::HipSys {
                self.0.cast()
            }
        }
    )* };
}

handles!(hipStream_t, hipEvent_t, hipGraph_t, hipGraphExec_t, hipGraphNode_t);

impl From<hiprt::hipError_t> for hipError_t {
    fn from(error: hiprt::hipError_t) -> Self {
        Self(error as i32)
    }
}
