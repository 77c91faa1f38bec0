//! What a vendor brings: its name and library as data, and the devices.

use std::ffi::c_void;

use collectives_core::{Device, F8Format, RawStream, Result};
use collectives_nccl_abi as abi;

/// A vendor of the NCCL C ABI, with the device runtime that goes with it.
///
/// The functions take no `self`: a process has one driver. They are called on the thread that joins
/// or allocates, and never on the path of a collective, unless [`check`](Self::check) is asked for.
pub trait Vendor: Send + Sync + 'static {
    /// The library, as data: its names, its places, its flavour.
    const ABI: &'static abi::Vendor;

    /// Memory, streams, events and graphs of one device.
    type Device: Device + Clone + 'static;

    /// Whether the device runtime can be used at all.
    ///
    /// Where it can't, a join still asks the library, whose words say more than ours about what is
    /// missing.
    ///
    /// # Errors
    /// [`Device`](collectives_core::ErrorKind::Device), saying what is missing and what to do.
    fn runtime() -> Result<()>;

    /// Number of devices.
    ///
    /// # Errors
    /// As [`runtime`](Self::runtime).
    fn device_count() -> Result<usize>;

    /// Opens device `ordinal`.
    ///
    /// # Errors
    /// [`InvalidArgument`](collectives_core::ErrorKind::InvalidArgument) naming the number of
    /// devices; as [`runtime`](Self::runtime).
    fn device(ordinal: usize) -> Result<Self::Device>;

    /// Makes device `ordinal` the current one of this thread, and leaves it so.
    ///
    /// The libraries take a communicator's device, and that of `ncclMemAlloc`, from the thread.
    ///
    /// # Errors
    /// As [`device`](Self::device).
    fn make_current(ordinal: usize) -> Result<()>;

    /// Checks that memory and stream belong to device `ordinal`, for `COLLECTIVES_CHECK=pointers`.
    ///
    /// Each buffer is its name in errors and its address, which is not null.
    ///
    /// # Errors
    /// [`InvalidArgument`](collectives_core::ErrorKind::InvalidArgument) naming both devices.
    fn check(
        ordinal: usize,
        buffers: &[(&'static str, *const c_void)],
        stream: RawStream,
    ) -> Result<()>;

    /// What the devices of this machine take the bits of an fp8 number for. Asked whenever a library
    /// is loaded, so it calls no device runtime: its answer comes from files, or is always the same.
    fn f8_format() -> F8Format;
}
