//! `COLLECTIVES_CHECK=pointers`: do memory and stream belong to the communicator's device?
//!
//! The runtime is asked about each pointer, which costs microseconds a call; so it is for finding a
//! bug, and not on by default.

use std::ffi::{c_int, c_void};

use collectives_core::{Error, ErrorKind, RawStream, Result};

use crate::{
    HipDevice,
    device::{Context, raw},
    driver::refuse,
    graph::LAST_DEFAULT_STREAM,
    hip::types::{hipError_t, hipPointerAttribute_t},
};

/// Refuses buffers and streams of other devices.
///
/// Host memory that HIP knows (pinned, managed) passes: every device can reach it.
pub(crate) fn check(
    ordinal: usize,
    buffers: &[(&'static str, *const c_void)],
    stream: RawStream,
) -> Result<()> {
    let context = HipDevice::open(ordinal)?.context();
    let _current = context.bind()?;
    for &(name, ptr) in buffers {
        check_buffer(context, name, ptr)?;
    }
    check_stream(context, stream)
}

fn check_buffer(context: &Context, name: &str, ptr: *const c_void) -> Result<()> {
    let (hip, ordinal) = (context.hip, context.info.ordinal);
    let mut told = hipPointerAttribute_t::ZERO;
    // SAFETY: `told` outlives the call; any address may be asked about.
    match unsafe { (hip.table.pointer_get_attributes)(&mut told, ptr) } {
        hipError_t::SUCCESS => {}
        hipError_t::INVALID_VALUE => {
            hip.clear();
            return Err(unknown(ordinal, name, ptr));
        }
        failure => return Err(hip.error(CHECK, failure)),
    }
    // The numbers that say what kind of memory it is changed with HIP 6; the pointers did not.
    if told.device_pointer.is_null() {
        return Err(unknown(ordinal, name, ptr));
    }
    if !told.host_pointer.is_null() || told.is_managed != 0 || is(told.device, ordinal) {
        return Ok(());
    }
    let owner = told.device;
    Err(wrong(format!(
        "{name} at {ptr:p} is memory of device {owner}, the communicator is on device {ordinal}"
    )))
}

/// Up to HIP 5.2 no function tells the device of a stream; then it passes.
fn check_stream(context: &Context, stream: RawStream) -> Result<()> {
    // A default stream is that of the current device, which is the right one.
    if stream.bits() <= LAST_DEFAULT_STREAM {
        return Ok(());
    }
    let (hip, ordinal) = (context.hip, context.info.ordinal);
    let Some(stream_get_device) = hip.table.stream_get_device else { return Ok(()) };
    let mut owner: c_int = -1;
    // SAFETY: the caller of the operation promises a live stream; `owner` outlives the call.
    hip.check(CHECK, unsafe { stream_get_device(raw(stream), &mut owner) })?;
    if is(owner, ordinal) {
        return Ok(());
    }
    Err(wrong(format!(
        "the stream belongs to device {owner}, the communicator is on device {ordinal}"
    )))
}

fn is(device: c_int, ordinal: usize) -> bool {
    usize::try_from(device).is_ok_and(|device| device == ordinal)
}

fn unknown(ordinal: usize, name: &str, ptr: *const c_void) -> Error {
    wrong(format!("{name} at {ptr:p} is not memory that HIP knows"))
        .with_hint(format!("allocate it on device {ordinal}"))
}

fn wrong(message: String) -> Error {
    refuse(ErrorKind::InvalidArgument, CHECK, message)
}

const CHECK: &str = "check";
