//! Handles to and from the types of the crate `cudarc`, and the device of one of its contexts.
//!
//! ```no_run
//! use collectives_backend_nccl::interop::CudarcHandle;
//! use collectives_core::{Launch, RawStream};
//! use cudarc::driver::sys;
//!
//! let theirs: sys::CUstream = std::ptr::null_mut(); // or of `CudaStream::cu_stream`
//! let launch = Launch::new(RawStream::from_cudarc(theirs));
//! let again: sys::CUstream = launch.stream().to_cudarc();
//! # assert_eq!(theirs, again);
//! ```
//!
//! A device pointer (`CUdeviceptr`) is an integer there: `ptr.expose_provenance()` makes one, and
//! `std::ptr::with_exposed_provenance_mut` goes back. cudarc's owned streams and slices are for the
//! safe layer, in the crate `collectives`.

use collectives_core::{ErrorKind, RawEvent, RawGraph, RawStream, Result};
use cudarc::driver::{CudaContext, sys};

use crate::{CudaDevice, driver::refuse};

/// A handle that `cudarc` has a type for. Conversions keep the value, and own nothing.
pub trait CudarcHandle: Copy {
    /// Its type there.
    type Cudarc;

    /// Takes a handle of that type.
    fn from_cudarc(handle: Self::Cudarc) -> Self;

    /// The handle as that type.
    fn to_cudarc(self) -> Self::Cudarc;
}

macro_rules! raw_handles {
    ($($raw:ident: $cudarc:ident;)*) => { $(
        impl CudarcHandle for $raw {
            type Cudarc = sys::$cudarc;

            fn from_cudarc(handle: Self::Cudarc) -> Self {
                Self::from_ptr(handle.cast())
            }

            fn to_cudarc(self) -> Self::Cudarc {
                self.as_ptr().cast()
            }
        }
    )* };
}

raw_handles! {
    RawStream: CUstream;
    RawEvent: CUevent;
    RawGraph: CUgraphExec;
}

impl CudaDevice {
    /// The device whose primary context that of cudarc is. Streams and memory of it can be used here,
    /// and those of here there.
    ///
    /// # Errors
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) for another context of the device, since
    /// communicators are made in the primary one; as [`open`](Self::open).
    pub fn of_cudarc(context: &CudaContext) -> Result<Self> {
        let device = Self::open(context.ordinal())?;
        if device.context().is_primary(context.cu_ctx()) {
            return Ok(device);
        }
        let text = format!("not the primary context of device {}", context.ordinal());
        Err(refuse(ErrorKind::InvalidArgument, "of_cudarc", text)
            .with_hint("make it by CudaContext::new"))
    }
}
