//! Initialisation and devices.

use std::ffi::{CStr, c_char, c_int, c_uint};

use super::{CUdevice, CUmemoryPool, driver, seat};
use crate::gpu::{
    Code, Out,
    context::{initialize, initialized},
    device::{Face, attribute},
    memory::Pool,
};

/// `CUuuid`.
pub type CUuuid = [u8; 16];

driver! {
    /// Initialises the driver.
    fn cuInit(flags: c_uint) {
        if flags != 0 {
            return Err(Code::INVALID_VALUE);
        }
        initialize()
    }

    /// Tells the newest CUDA version that the driver can serve.
    fn cuDriverGetVersion(version: Out<c_int>) {
        version.set(VERSION)
    }

    /// Tells the handle of a device.
    fn cuDeviceGet(device: Out<CUdevice>, ordinal: c_int) {
        seat(ordinal)?;
        device.set(ordinal)
    }

    /// Tells the number of devices.
    fn cuDeviceGetCount(count: Out<c_int>) {
        initialized()?;
        count.set(Face::Cuda.count()?)
    }

    /// Tells the name of a device.
    fn cuDeviceGetName(name: Out<c_char>, length: c_int, device: CUdevice) {
        name.set_text(&seat(device)?.name(), length)
    }

    /// Tells the unique number of a device.
    fn cuDeviceGetUuid(uuid: Out<CUuuid>, device: CUdevice) {
        uuid.set(seat(device)?.uuid())
    }

    /// Tells the unique number of a device.
    fn cuDeviceGetUuid_v2(uuid: Out<CUuuid>, device: CUdevice) {
        uuid.set(seat(device)?.uuid())
    }

    /// Tells one property of a device.
    fn cuDeviceGetAttribute(value: Out<c_int>, which: c_uint, device: CUdevice) {
        let which = c_int::try_from(which).map_err(|_| Code::INVALID_VALUE)?;
        value.set(attribute(seat(device)?, which)?)
    }

    /// Tells the memory of a device.
    fn cuDeviceTotalMem_v2(bytes: Out<usize>, device: CUdevice) {
        bytes.set(seat(device)?.total_memory())
    }

    /// Tells the address of a device on the PCI bus.
    fn cuDeviceGetPCIBusId(address: Out<c_char>, length: c_int, device: CUdevice) {
        address.set_text(&seat(device)?.pci_text(), length)
    }

    /// Finds a device by its address on the PCI bus.
    fn cuDeviceGetByPCIBusId(device: Out<CUdevice>, address: *const c_char) {
        initialized()?;
        device.set(by_pci(Face::Cuda, address)?)
    }

    /// Tells the compute capability of a device.
    fn cuDeviceComputeCapability(major: Out<c_int>, minor: Out<c_int>, device: CUdevice) {
        let seat = seat(device)?;
        major.set(attribute(seat, 75)?)?;
        minor.set(attribute(seat, 76)?)
    }

    /// Tells whether a device can access the memory of another: all can.
    fn cuDeviceCanAccessPeer(can: Out<c_int>, device: CUdevice, peer: CUdevice) {
        seat(device)?;
        seat(peer)?;
        can.set((device != peer).into())
    }

    /// Tells a property of the link between two devices.
    fn cuDeviceGetP2PAttribute(
        value: Out<c_int>,
        which: c_uint,
        device: CUdevice,
        peer: CUdevice,
    ) {
        seat(device)?;
        seat(peer)?;
        if device == peer {
            return Err(Code::INVALID_DEVICE);
        }
        value.set(match which {
            // Rank of the link; access, native atomics, array access.
            1 => 0,
            2 | 3 => 1,
            4 => 0,
            _ => return Err(Code::INVALID_VALUE),
        })
    }

    /// Tells the memory pool that a device allocates from.
    fn cuDeviceGetMemPool(pool: Out<CUmemoryPool>, device: CUdevice) {
        pool.set(Pool::chosen(seat(device)?.ordinal()))
    }

    /// Tells a device's own memory pool.
    fn cuDeviceGetDefaultMemPool(pool: Out<CUmemoryPool>, device: CUdevice) {
        pool.set(Pool::of_device(seat(device)?.ordinal()))
    }

    /// Chooses the memory pool that a device allocates from.
    fn cuDeviceSetMemPool(device: CUdevice, pool: CUmemoryPool) {
        Pool::choose(seat(device)?.ordinal(), pool)
    }
}

/// The number of the device at an address on the PCI bus, written with or without its domain.
pub(crate) fn by_pci(face: Face, address: *const c_char) -> Result<c_int, Code> {
    if address.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    // SAFETY: a text that the caller of a C function passes.
    let address = unsafe { CStr::from_ptr(address) }.to_str().map_err(|_| Code::INVALID_VALUE)?;
    let address = address.to_uppercase();
    for number in 0..face.count()? {
        let text = face.seat(number)?.pci_text();
        let short = text.trim_end_matches(".0");
        let forms = [&*text, short];
        if forms
            .into_iter()
            .any(|form| form == address || form.strip_prefix("0000:") == Some(&address))
        {
            return Ok(number);
        }
    }
    Err(Code::INVALID_DEVICE)
}

/// CUDA 13.0.
pub(crate) const VERSION: c_int = 13000;
