//! The CUDA driver: the functions that cudarc, the NCCL backend and programs around NCCL call.
//!
//! Thin faces over the device runtime: each looks at what is specific to the driver (that `cuInit`
//! was called, that a context is current) and hands on. The version is that of CUDA 13.0; names
//! that this page lacks are [stubs].

#![expect(non_snake_case, reason = "the functions have their C names")]

pub mod context;
pub mod device;
pub mod entry;
pub mod event;
pub mod graph;
pub mod memory;
pub mod stream;
pub mod stubs;

use std::{ffi::c_void, sync::Arc};

use collectives_core::{Error, ErrorKind, Result};

use crate::gpu::{
    Code, Reply,
    context::{self as contexts, Context},
    device::{Face, Seat},
    stream::Stream,
};

/// Defines functions of the driver. A body is a [`Reply`].
macro_rules! driver {
    ($(
        $(#[$meta:meta])*
        fn $name:ident($($arg:ident: $type:ty),* $(,)?) $body:block
    )*) => {
        export! {
            plain, on_panic = $crate::gpu::Code::UNKNOWN;
            $(
                $(#[$meta])*
                fn $name($($arg: $type),*) -> $crate::gpu::Code {
                    $crate::gpu::Code::of(|| $body)
                }
            )*
        }
    };
}
use driver;

/// `CUdevice`: a number among those that are visible.
pub type CUdevice = std::ffi::c_int;
/// `CUdeviceptr`.
pub type CUdeviceptr = usize;
/// `CUcontext`. Handles are numbers; nothing is behind them in memory.
pub type CUcontext = usize;
/// `CUstream`.
pub type CUstream = usize;
/// `CUevent`.
pub type CUevent = usize;
/// `CUgraph`.
pub type CUgraph = usize;
/// `CUgraphExec`.
pub type CUgraphExec = usize;
/// `CUmemoryPool`.
pub type CUmemoryPool = usize;
/// `CUhostFn`.
pub type CUhostFn = Option<unsafe extern "C" fn(*mut c_void)>;

/// The stream behind a handle that is used on `device`, ready for work to be enqueued: what it has to
/// wait for as a blocking stream, or as the legacy default stream, comes first. `last` is one that was
/// found for this device before, as it may well be the same.
///
/// # Errors
/// [`InvalidArgument`](ErrorKind::InvalidArgument) for a handle that is no stream, or one of another
/// device; [`InvalidUsage`](ErrorKind::InvalidUsage) where captures forbid its use.
pub(crate) fn stream(
    handle: *mut c_void,
    device: usize,
    last: Option<Arc<Stream>>,
) -> Result<Arc<Stream>> {
    let entered = || {
        let stream = match last.filter(|last| last.is_behind(handle.addr())) {
            Some(last) => last,
            None => Stream::find(handle.addr(), || Ok(Context::primary(device)))?,
        };
        stream.enter()?;
        Ok::<_, Code>(stream)
    };
    match entered() {
        Ok(stream) if stream.device_ordinal() == device => Ok(stream),
        Ok(stream) => {
            let owner = stream.device_ordinal();
            let message = format!("the stream belongs to device {owner}, want one of {device}");
            Err(Error::new(ErrorKind::InvalidArgument, message))
        }
        Err(Code::INVALID_HANDLE) => {
            let message = format!("{handle:p} is no stream");
            Err(Error::new(ErrorKind::InvalidArgument, message)
                .with_hint("pass a stream of this library's CUDA or HIP, or null"))
        }
        Err(code) => {
            let meaning = code.text().map_or(c"unknown error", |text| text.meaning);
            let message = format!("the stream cannot be used: {}", meaning.to_string_lossy());
            Err(Error::new(ErrorKind::InvalidUsage, message))
        }
    }
}

/// The number under which CUDA programs know a device of the machine.
pub(crate) fn number(device: usize) -> Option<std::ffi::c_int> {
    Face::Cuda.number(device).ok()
}

/// The machine's devices that CUDA programs see, by the numbers under which they do.
///
/// # Errors
/// Those of the machine.
pub(crate) fn visible() -> Result<&'static [usize]> {
    // Why there is no machine is what this says; the other function only has a code.
    crate::runtime::mock()?;
    Face::Cuda.visible().map_err(|_| Error::new(ErrorKind::Device, "the mock has no devices"))
}

/// The current context.
fn current() -> Reply<Context> {
    contexts::initialized()?;
    contexts::require()
}

/// The device of the current context.
fn current_seat() -> Reply<&'static Seat> {
    current()?.seat()
}

/// The device behind a number.
fn seat(device: CUdevice) -> Reply<&'static Seat> {
    contexts::initialized()?;
    Face::Cuda.seat(device)
}

/// The stream behind a handle.
fn find(stream: CUstream) -> Reply<Arc<Stream>> {
    contexts::initialized()?;
    Stream::find(stream, contexts::require)
}
