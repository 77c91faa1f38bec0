//! The CUDA driver, the CUDA runtime and HIP, as far as programs around NCCL and RCCL call them.

use std::ffi::c_void;

use collectives_core::{RawStream, Result};

/// The mock's stream behind a handle that is used on `device`.
#[expect(clippy::unnecessary_wraps, reason = "a handle that is no stream will be refused")]
pub(crate) fn stream(handle: *mut c_void, _device: usize) -> Result<RawStream> {
    Ok(match handle.addr() {
        // The null stream, the legacy default stream and the one of the thread.
        0..=2 => RawStream::DEFAULT,
        _ => RawStream::from_ptr(handle),
    })
}
