//! NCCL on CUDA: the vendor's constants and the CUDA device layer.
//!
//! [`Nccl`] is `collectives_nccl_family::Library` for [`Cuda`]. The library and the driver are
//! opened at run time, so this crate builds and loads on machines without either; what is missing
//! is an error that says so, at the call that needs it.
//!
//! The device layer uses the primary context of each device, which is the one that the CUDA
//! runtime, PyTorch and cudarc use, so streams and memory can be exchanged with them.
//!
//! ```no_run
//! use collectives_backend_nccl::Nccl;
//! use collectives_core::Backend;
//!
//! let nccl = Nccl::load()?;
//! println!("{} {}, {} devices", nccl.info().backend, nccl.info().version, nccl.device_count()?);
//! # Ok::<(), collectives_core::Error>(())
//! ```

mod check;
mod device;
mod driver;
mod graph;
pub mod interop;
mod memory;
mod stream;

use std::ffi::c_void;

use collectives_core::{F8Format, RawStream, Result};
use collectives_nccl_abi as abi;
use collectives_nccl_family::{Comm, Library, Vendor};

pub use device::CudaDevice;
pub use driver::SYMBOLS as DRIVER_SYMBOLS;

/// NCCL, loaded at run time.
pub type Nccl = Library<Cuda>;

/// One rank's end of an NCCL communicator.
pub type NcclComm = Comm<Cuda>;

/// The vendor: NVIDIA's NCCL, and the CUDA driver.
#[derive(Debug)]
pub enum Cuda {}

impl Vendor for Cuda {
    const ABI: &'static abi::Vendor = abi::Vendor::NCCL;

    type Device = CudaDevice;

    fn runtime() -> Result<()> {
        driver::ready()
    }

    fn device_count() -> Result<usize> {
        driver::device_count()
    }

    fn device(ordinal: usize) -> Result<CudaDevice> {
        CudaDevice::open(ordinal)
    }

    fn make_current(ordinal: usize) -> Result<()> {
        CudaDevice::open(ordinal)?.make_current()
    }

    fn check(
        ordinal: usize,
        buffers: &[(&'static str, *const c_void)],
        stream: RawStream,
    ) -> Result<()> {
        check::check(ordinal, buffers, stream)
    }

    fn f8_format() -> F8Format {
        F8Format::Ocp
    }
}
