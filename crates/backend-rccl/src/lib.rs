//! RCCL on ROCm: the vendor's constants and the HIP device layer.
//!
//! [`Rccl`] is `collectives_nccl_family::Library` for [`Rocm`]. RCCL and the HIP runtime are opened at
//! run time, so this crate builds and loads on machines without either; what is missing is an error
//! that says so, at the call that needs it.
//!
//! ```no_run
//! use collectives_backend_rccl::Rccl;
//! use collectives_core::Backend;
//!
//! let rccl = Rccl::load()?;
//! println!("{} {}, {} devices", rccl.info().backend, rccl.info().version, rccl.device_count()?);
//! # Ok::<(), collectives_core::Error>(())
//! ```
//!
//! # What has been run
//!
//! Never AMD hardware. `docs/hardware.md` of the workspace says what was run instead.
//!
//! # Where RCCL differs
//!
//! * **It depends on ROCm's libraries**, so it doesn't load where one of them is missing; the error
//!   has the loader's words, which name it. The HIP runtime is taken through RCCL's own handle, or
//!   from `COLLECTIVES_HIP_PATH`.
//! * **It lags behind NCCL.** What a release lacks is emulated, or refused with the version that has
//!   it; `Capabilities` says which. Down to 2.13.4, which has no configuration, split, finalize or
//!   registration, every operation works.
//! * **All-to-all has two spellings**, `ncclAllToAll` and, since 2.28.3, `ncclAlltoAll`. Both are
//!   looked up.
//! * **fp8 means other bits on the MI300 series** (gfx942): FNUZ instead of OCP. Nothing converts;
//!   `Capabilities::f8_format` and [`HipDevice::f8_format`] say what reductions take the bits for.
//! * **It writes to standard output**: a banner of its version when a communicator is made, and fatal
//!   errors. A program whose output is read by another should not leave it on descriptor 1.
//! * **Its last error may be of another call.** 2.27.7 tells a warning about the kernel's command
//!   line whatever went wrong. So errors carry it as what it is.
//! * **`ncclGetUniqueId` needs a device** since 2.27.7; its error then says which is missing.
//! * **A null communicator crashes it.** None is ever passed.
//!
//! # Forks
//!
//! Loading RCCL calls nothing of HIP. A process may do so and fork; but what was loaded before is
//! refused in the child, as a child of a process that had used a device would fail in HIP itself.

mod check;
mod device;
mod driver;
mod graph;
pub mod hip;
#[cfg(feature = "hip-sys")]
pub mod interop;
mod memory;
mod stream;
mod topology;

use std::ffi::c_void;

use collectives_core::{F8Format, RawStream, Result, Version};
use collectives_nccl_abi as abi;
use collectives_nccl_family::{Comm, Library, Vendor};

pub use device::HipDevice;

/// The version of the HIP runtime that this process uses; opens it.
///
/// Like every call of HIP it starts the runtime, so a process that asks must not fork afterwards.
///
/// # Errors
/// [`Device`](collectives_core::ErrorKind::Device) where there is no usable runtime, saying what to do.
#[doc(alias = "hipRuntimeGetVersion")]
pub fn hip_version() -> Result<Version> {
    driver::version()
}

/// RCCL, loaded at run time.
pub type Rccl = Library<Rocm>;

/// One rank's end of an RCCL communicator.
pub type RcclComm = Comm<Rocm>;

/// The vendor: AMD's RCCL, and the HIP runtime.
#[derive(Debug)]
pub enum Rocm {}

impl Vendor for Rocm {
    const ABI: &'static abi::Vendor = abi::Vendor::RCCL;

    type Device = HipDevice;

    fn runtime() -> Result<()> {
        driver::device_count().map(drop)
    }

    fn device_count() -> Result<usize> {
        driver::device_count()
    }

    fn device(ordinal: usize) -> Result<HipDevice> {
        HipDevice::open(ordinal)
    }

    fn make_current(ordinal: usize) -> Result<()> {
        HipDevice::open(ordinal)?.make_current()
    }

    fn check(
        ordinal: usize,
        buffers: &[(&'static str, *const c_void)],
        stream: RawStream,
    ) -> Result<()> {
        check::check(ordinal, buffers, stream)
    }

    fn f8_format() -> F8Format {
        topology::machine()
    }
}
