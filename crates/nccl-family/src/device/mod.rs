//! What the device layers of all vendors have in common: memory and waits, over a few raw calls of
//! the device runtime.

mod memory;
mod wait;

use collectives_core::{Error, ErrorKind, RawEvent, RawStream, Result};

pub use memory::{Memory, alloc, free};
pub use wait::synchronize;

/// A device that was opened, as the functions of this module use it.
///
/// The device is current on the calling thread when a method is called.
pub trait RawDevice {
    /// The device runtime, as people write it.
    const RUNTIME: &'static str;

    /// The device's number.
    fn ordinal(&self) -> usize;

    /// What is cached of its memory.
    fn memory(&self) -> &Memory;

    /// Bytes of its memory that are free, and all there are.
    ///
    /// # Errors
    /// What the runtime reports.
    fn memory_info(&self) -> Result<(usize, usize)>;

    /// Allocates; `None` where there is no memory left. Disturbs no capture.
    ///
    /// # Errors
    /// What the runtime reports.
    fn raw_alloc(&self, bytes: usize) -> Result<Option<usize>>;

    /// Frees blocks of [`raw_alloc`](Self::raw_alloc): all of them, also where the runtime refuses
    /// one. May wait for all work of the device. Disturbs no capture.
    ///
    /// # Safety
    /// Nobody uses them any more.
    ///
    /// # Errors
    /// The first failure that the runtime reports.
    unsafe fn raw_free(&self, blocks: &[usize]) -> Result<()>;

    /// Makes an event.
    ///
    /// # Errors
    /// What the runtime reports.
    fn event_create(&self) -> Result<RawEvent>;

    /// Enqueues recording an event.
    ///
    /// # Safety
    /// See `collectives_core::Device::record`.
    ///
    /// # Errors
    /// What the runtime reports.
    unsafe fn record(&self, event: RawEvent, stream: RawStream) -> Result<()>;

    /// Whether an event was reached. Disturbs no capture.
    ///
    /// # Safety
    /// See `collectives_core::Device::query`.
    ///
    /// # Errors
    /// What the runtime reports.
    unsafe fn query(&self, event: RawEvent) -> Result<bool>;

    /// Whether the stream is being captured, or was and the capture broke: it must be ended.
    ///
    /// # Safety
    /// See `collectives_core::Device::is_capturing`.
    ///
    /// # Errors
    /// What the runtime reports.
    unsafe fn is_capturing(&self, stream: RawStream) -> Result<bool>;

    /// Blocks until all is done that is enqueued on a stream.
    ///
    /// # Safety
    /// See `collectives_core::Device::synchronize`.
    ///
    /// # Errors
    /// What the runtime reports.
    unsafe fn raw_synchronize(&self, stream: RawStream) -> Result<()>;
}

/// What a caller did wrong, in our words.
#[cold]
fn refuse<D: RawDevice>(
    kind: ErrorKind,
    operation: &'static str,
    message: impl Into<String>,
) -> Error {
    Error::new(kind, message).with_backend(D::RUNTIME).with_operation(operation)
}
