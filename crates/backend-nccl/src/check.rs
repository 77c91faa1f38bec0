//! `COLLECTIVES_CHECK=pointers`: do memory and stream belong to the communicator's device?
//!
//! The driver is asked about each pointer, which costs microseconds a call; so it is for finding a
//! bug, and not on by default.

use std::{
    ffi::{c_int, c_void},
    ptr,
};

use collectives_core::{Error, ErrorKind, RawStream, Result};
use collectives_nccl_family::device::RawDevice as _;
use cudarc::driver::sys::{self, CUcontext, CUmemorytype, CUpointer_attribute, CUresult};

use crate::{
    CudaDevice,
    device::{Context, address, cu},
    driver::{check as ok, error, refuse},
    graph::LAST_DEFAULT_STREAM,
};

/// Refuses buffers and streams of other devices.
///
/// Host memory that CUDA knows (pinned, managed) passes: every device can reach it.
pub(crate) fn check(
    ordinal: usize,
    buffers: &[(&'static str, *const c_void)],
    stream: RawStream,
) -> Result<()> {
    let context = CudaDevice::open(ordinal)?.context();
    let _current = context.bind()?;
    for &(name, ptr) in buffers {
        check_buffer(ordinal, name, ptr)?;
    }
    check_stream(context, stream)
}

fn check_buffer(ordinal: usize, name: &str, ptr: *const c_void) -> Result<()> {
    let mut kind: c_int = 0;
    let of_kind = CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE;
    // SAFETY: the attribute is a C enum; `kind` outlives the call.
    match unsafe { sys::cuPointerGetAttribute((&raw mut kind).cast(), of_kind, address(ptr)) } {
        CUresult::CUDA_SUCCESS => {}
        CUresult::CUDA_ERROR_INVALID_VALUE => {
            return Err(wrong(format!("{name} at {ptr:p} is not memory that CUDA knows"))
                .with_hint(format!("allocate it on device {ordinal}")));
        }
        failure => return Err(error(CHECK, failure)),
    }
    let mut managed: c_int = 0;
    let of_managed = CUpointer_attribute::CU_POINTER_ATTRIBUTE_IS_MANAGED;
    // SAFETY: the attribute is one C bool, for which an int has room.
    let asked =
        unsafe { sys::cuPointerGetAttribute((&raw mut managed).cast(), of_managed, address(ptr)) };
    ok(CHECK, asked)?;
    if kind == CUmemorytype::CU_MEMORYTYPE_HOST as c_int || managed != 0 {
        return Ok(());
    }
    let mut owner: c_int = -1;
    let of_owner = CUpointer_attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL;
    // SAFETY: the attribute is an int; `owner` outlives the call.
    let asked =
        unsafe { sys::cuPointerGetAttribute((&raw mut owner).cast(), of_owner, address(ptr)) };
    ok(CHECK, asked)?;
    if usize::try_from(owner).is_ok_and(|owner| owner == ordinal) {
        return Ok(());
    }
    Err(wrong(format!(
        "{name} at {ptr:p} is memory of device {owner}, the communicator is on device {ordinal}"
    )))
}

fn check_stream(context: &'static Context, stream: RawStream) -> Result<()> {
    // A default stream is that of the current device, which is the right one.
    if stream.bits() <= LAST_DEFAULT_STREAM {
        return Ok(());
    }
    let mut owner = ptr::null_mut();
    // SAFETY: the caller of the operation promises a live stream; `owner` outlives the call.
    ok(CHECK, unsafe { sys::cuStreamGetCtx(cu(stream), &mut owner) })?;
    if context.is_primary(owner) {
        return Ok(());
    }
    let (ordinal, other) = (context.ordinal(), device_of(owner)?);
    if usize::try_from(other).is_ok_and(|other| other == ordinal) {
        // Another context of the same device: unusual, and fine.
        return Ok(());
    }
    Err(wrong(format!(
        "the stream belongs to device {other}, the communicator is on device {ordinal}"
    )))
}

/// The device of a context, which becomes current; the caller's guard restores.
fn device_of(context: CUcontext) -> Result<c_int> {
    let mut before = ptr::null_mut();
    // SAFETY: `before` outlives the call.
    ok(CHECK, unsafe { sys::cuCtxGetCurrent(&mut before) })?;
    // SAFETY: the context of a live stream.
    ok(CHECK, unsafe { sys::cuCtxSetCurrent(context) })?;
    let mut device = -1;
    // SAFETY: a context is current; `device` outlives the call.
    let asked = unsafe { sys::cuCtxGetDevice(&mut device) };
    // SAFETY: it was current before.
    ok(CHECK, unsafe { sys::cuCtxSetCurrent(before) })?;
    ok(CHECK, asked)?;
    Ok(device)
}

fn wrong(message: String) -> Error {
    refuse(ErrorKind::InvalidArgument, CHECK, message)
}

const CHECK: &str = "check";
