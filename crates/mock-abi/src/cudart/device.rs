//! Devices, and what is asked of a runtime as a whole.

use std::ffi::{c_char, c_int, c_uint};

use super::{context, last_error, twins};
use crate::{
    cuda::device::{VERSION, by_pci},
    gpu::{
        Code, Out,
        context::{choose, ensure},
        device::Face,
        memory::Pool,
        stream::{PRIORITIES, synchronize_device},
    },
};

twins! {
    /// Tells the number of devices.
    fn cudaGetDeviceCount | hipGetDeviceCount [face] (count: Out<c_int>) {
        count.set(0)?;
        count.set(face.count()?)
    }

    /// Makes a device the thread's.
    fn cudaSetDevice | hipSetDevice [face] (device: c_int) {
        choose(face.seat(device)?.ordinal()).map(drop)
    }

    /// Tells the device of the thread.
    fn cudaGetDevice | hipGetDevice [face] (device: Out<c_int>) {
        device.set(face.number(context(face)?.device())?)
    }

    /// Waits for all work of the thread's device.
    fn cudaDeviceSynchronize | hipDeviceSynchronize [face] () {
        synchronize_device(context(face)?.seat()?)
    }

    /// Waits for all work of the thread's device; what was made on it is left alone.
    fn cudaDeviceReset | hipDeviceReset [face] () {
        synchronize_device(context(face)?.seat()?)
    }

    /// Tells the address of a device on the PCI bus.
    fn cudaDeviceGetPCIBusId | hipDeviceGetPCIBusId [face] (
        address: Out<c_char>,
        length: c_int,
        device: c_int,
    ) {
        address.set_text(&face.seat(device)?.pci_text(), length)
    }

    /// Finds a device by its address on the PCI bus.
    fn cudaDeviceGetByPCIBusId | hipDeviceGetByPCIBusId [face] (
        device: Out<c_int>,
        address: *const c_char,
    ) {
        device.set(by_pci(face, address)?)
    }

    /// Tells the version of the runtime.
    fn cudaRuntimeGetVersion | hipRuntimeGetVersion [face] (version: Out<c_int>) {
        version.set(version_of(face))
    }

    /// Tells the version of the driver.
    fn cudaDriverGetVersion | hipDriverGetVersion [face] (version: Out<c_int>) {
        version.set(version_of(face))
    }

    /// Tells whether a device can access the memory of another: all can.
    fn cudaDeviceCanAccessPeer | hipDeviceCanAccessPeer [face] (
        can: Out<c_int>,
        device: c_int,
        peer: c_int,
    ) {
        face.seat(device)?;
        face.seat(peer)?;
        can.set((device != peer).into())
    }

    /// Opens the memory of a peer to the thread's device.
    fn cudaDeviceEnablePeerAccess | hipDeviceEnablePeerAccess [face] (
        peer: c_int,
        flags: c_uint,
    ) {
        let (own, peer) = (context(face)?.seat()?, face.seat(peer)?);
        if flags != 0 {
            return Err(Code::INVALID_VALUE);
        }
        if own.ordinal() == peer.ordinal() {
            return Err(Code::INVALID_DEVICE);
        }
        own.set_peer_access(peer.ordinal(), true)
    }

    /// Closes the memory of a peer.
    fn cudaDeviceDisablePeerAccess | hipDeviceDisablePeerAccess [face] (peer: c_int) {
        let own = context(face)?.seat()?;
        own.set_peer_access(face.seat(peer)?.ordinal(), false)
    }

    /// Tells the least and the greatest priority of streams.
    fn cudaDeviceGetStreamPriorityRange | hipDeviceGetStreamPriorityRange [face] (
        least: Out<c_int>,
        greatest: Out<c_int>,
    ) {
        context(face)?;
        least.set_if(PRIORITIES.0);
        greatest.set_if(PRIORITIES.1);
        Ok(())
    }

    /// Sets flags of the thread's device, which mean nothing here.
    fn cudaSetDeviceFlags | hipSetDeviceFlags [face] (_flags: c_uint) {
        ensure(face).map(drop)
    }

    /// Tells the memory pool that a device allocates from.
    fn cudaDeviceGetMemPool | hipDeviceGetMemPool [face] (pool: Out<usize>, device: c_int) {
        pool.set(Pool::chosen(face.seat(device)?.ordinal()))
    }

    /// Tells a device's own memory pool.
    fn cudaDeviceGetDefaultMemPool | hipDeviceGetDefaultMemPool [face] (
        pool: Out<usize>,
        device: c_int,
    ) {
        pool.set(Pool::of_device(face.seat(device)?.ordinal()))
    }

    /// Chooses the memory pool that a device allocates from.
    fn cudaDeviceSetMemPool | hipDeviceSetMemPool [face] (device: c_int, pool: usize) {
        Pool::choose(face.seat(device)?.ordinal(), pool)
    }
}

export! {
    plain, on_panic = Code::UNKNOWN;

    /// Tells the last failure of a call on this thread, and forgets it.
    fn cudaGetLastError() -> Code {
        last_error(true)
    }

    /// Tells the last failure of a call on this thread.
    fn cudaPeekAtLastError() -> Code {
        last_error(false)
    }

    /// Tells the last failure of a call on this thread, and forgets it.
    fn hipGetLastError() -> Code {
        last_error(true)
    }

    /// Tells the last failure of a call on this thread.
    fn hipPeekAtLastError() -> Code {
        last_error(false)
    }
}

export! {
    plain, on_panic = std::ptr::null();

    /// Tells the name of a code.
    fn cudaGetErrorName(code: Code) -> *const c_char {
        let text = code.text().filter(|text| !text.runtime.is_empty());
        text.map_or(c"unrecognized error code", |text| text.runtime).as_ptr()
    }

    /// Tells what a code means.
    fn cudaGetErrorString(code: Code) -> *const c_char {
        code.text().map_or(c"unrecognized error code", |text| text.meaning).as_ptr()
    }

    /// Tells the name of a code.
    fn hipGetErrorName(code: Code) -> *const c_char {
        let text = code.text().filter(|text| !text.hip.is_empty());
        text.map_or(c"hipErrorUnknown", |text| text.hip).as_ptr()
    }

    /// Tells what a code means.
    fn hipGetErrorString(code: Code) -> *const c_char {
        match code {
            Code::NO_DEVICE => c"no ROCm-capable device is detected",
            code => code.text().map_or(c"unknown error", |text| text.meaning),
        }
        .as_ptr()
    }
}

/// CUDA 13.0; HIP 7.2.
fn version_of(face: Face) -> c_int {
    match face {
        Face::Cuda => VERSION,
        Face::Hip => 70_253_211,
    }
}
