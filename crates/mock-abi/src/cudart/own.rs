//! What the CUDA runtime has and HIP has not, or has with other arguments.

use std::ffi::{c_char, c_int, c_uint, c_ulonglong, c_void};

use super::{
    face, find,
    memory::{PointerAttributes, pointer_attributes},
};
use crate::{
    cuda::{
        device::VERSION,
        entry,
        stream::{capture_info, id_of},
    },
    gpu::{
        Code, Out, Reply,
        device::{Seat, attribute},
        event, graph,
    },
    runtime,
};

face! {
    Cuda;

    /// Tells one property of a device.
    fn cudaDeviceGetAttribute [face] (value: Out<c_int>, which: c_uint, device: c_int) {
        let which = c_int::try_from(which).map_err(|_| Code::INVALID_VALUE)?;
        value.set(attribute(face.seat(device)?, which)?)
    }

    /// Fills the property structure of CUDA 12.
    fn cudaGetDeviceProperties_v2 [face] (properties: Out<[u8; 1032]>, device: c_int) {
        let seat = face.seat(device)?;
        let mut bytes = [0; 1032];
        fill_head(&mut bytes, seat)?;
        // What CUDA 13 has no more, and what it therefore has elsewhere.
        let old: [(usize, c_int); 5] = [(348, 13), (384, 15), (388, 16), (396, 18), (608, 36)];
        for (at, which) in old {
            put(&mut bytes, at, attribute(seat, which)?);
        }
        put_pci(&mut bytes, 584, seat);
        put(&mut bytes, 580, 1);
        put(&mut bytes, 612, attribute(seat, 37)?);
        put(&mut bytes, 616, attribute(seat, 38)?);
        put(&mut bytes, 624, attribute(seat, 39)?);
        properties.set(bytes)
    }

    /// Fills the property structure of CUDA 13.
    fn cudaGetDeviceProperties [face] (properties: Out<[u8; 1008]>, device: c_int) {
        let seat = face.seat(device)?;
        let mut bytes = [0; 1008];
        fill_head(&mut bytes, seat)?;
        put(&mut bytes, 384, attribute(seat, 16)?);
        properties.set(bytes)
    }

    /// Tells what an address points into. Memory that nobody knows is told as such.
    fn cudaPointerGetAttributes [face] (attributes: Out<PointerAttributes>, address: usize) {
        attributes.set(pointer_attributes(face, address)?.0)
    }

    /// Tells a number that no other stream has.
    fn cudaStreamGetId [face] (stream: usize, id: Out<c_ulonglong>) {
        id.set(id_of(&*find(face, stream)?))
    }

    /// Tells the capture that a stream takes part in, with the arguments of CUDA 13. Its graph and
    /// its nodes cannot be had yet.
    fn cudaStreamGetCaptureInfo [face] (
        stream: usize,
        status: Out<c_uint>,
        id: Out<c_ulonglong>,
        graph: Out<usize>,
        dependencies: Out<usize>,
        edges: Out<usize>,
        count: Out<usize>,
    ) {
        edges.set_if(0);
        capture_info(&*find(face, stream)?, status, id, [graph, dependencies, count])
    }

    /// Tells the capture that a stream takes part in. Its graph and its nodes cannot be had yet.
    fn cudaStreamGetCaptureInfo_v3 [face] (
        stream: usize,
        status: Out<c_uint>,
        id: Out<c_ulonglong>,
        graph: Out<usize>,
        dependencies: Out<usize>,
        edges: Out<usize>,
        count: Out<usize>,
    ) {
        edges.set_if(0);
        capture_info(&*find(face, stream)?, status, id, [graph, dependencies, count])
    }

    /// Tells the milliseconds between two events.
    fn cudaEventElapsedTime_v2 [face] (milliseconds: Out<f32>, start: usize, end: usize) {
        milliseconds.set(event::elapsed(start, end)?)
    }

    /// Makes an instance of a graph, with the arguments of CUDA 12.
    fn cudaGraphInstantiate [face] (instance: Out<usize>, graph: usize, flags: c_ulonglong) {
        instance.set(graph::instantiate(graph, flags)?)
    }

    /// Finds a function of the driver.
    fn cudaGetDriverEntryPoint [face] (
        name: *const c_char,
        function: Out<*mut c_void>,
        _flags: c_ulonglong,
        status: Out<c_uint>,
    ) {
        driver_entry(name, function, VERSION, status)
    }

    /// Finds a function of the driver as a version of CUDA has it.
    fn cudaGetDriverEntryPointByVersion [face] (
        name: *const c_char,
        function: Out<*mut c_void>,
        version: c_uint,
        _flags: c_ulonglong,
        status: Out<c_uint>,
    ) {
        let version = c_int::try_from(version).map_err(|_| Code::INVALID_VALUE)?;
        driver_entry(name, function, version, status)
    }

    /// Refuses: there are no kernels.
    fn cudaLaunchKernel [face] () {
        refuse("cudaLaunchKernel: the mock's devices run no kernels")
    }

    /// Refuses: memory is not shared between processes this way.
    fn cudaIpcGetMemHandle [face] () {
        refuse("cudaIpcGetMemHandle: the mock shares no memory this way")
    }

    /// Refuses: memory is not shared between processes this way.
    fn cudaIpcOpenMemHandle [face] () {
        refuse("cudaIpcOpenMemHandle: the mock shares no memory this way")
    }

    /// Refuses: events are not shared between processes.
    fn cudaIpcGetEventHandle [face] () {
        refuse("cudaIpcGetEventHandle: the mock's events are of one process")
    }
}

/// Refuses what cannot be done here, and says why, once.
pub(crate) fn refuse(why: &'static str) -> Reply {
    runtime::say_once(why, &format!("{why}; returns code 801, not supported"));
    Err(Code::NOT_SUPPORTED)
}

fn driver_entry(
    name: *const c_char,
    function: Out<*mut c_void>,
    version: c_int,
    status: Out<c_uint>,
) -> Reply {
    let found = entry::find(name, version)?;
    function.set(found)?;
    // `cudaDriverEntryPointSymbolNotFound`.
    status.set_if(found.is_null().into());
    Ok(())
}

/// The members at whose offsets all versions agree.
fn fill_head(bytes: &mut [u8], seat: &Seat) -> Reply {
    let name = seat.name();
    let name = &name.as_bytes()[..name.len().min(255)];
    bytes[..name.len()].copy_from_slice(name);
    bytes[256..272].copy_from_slice(&seat.uuid());
    for (at, value) in [
        (288, seat.total_memory()),
        (296, attribute(seat, 8)? as usize),
        (312, attribute(seat, 11)? as usize),
        (352, attribute(seat, 9)? as usize),
        (368, attribute(seat, 14)? as usize),
    ] {
        bytes[at..at + 8].copy_from_slice(&value.to_ne_bytes());
    }
    // Registers, warp, threads of a block, dimensions of blocks and grids, compute capability.
    let numbers: [(usize, c_int); 11] = [
        (304, 12),
        (308, 10),
        (320, 1),
        (324, 2),
        (328, 3),
        (332, 4),
        (336, 5),
        (340, 6),
        (344, 7),
        (360, 75),
        (364, 76),
    ];
    for (at, which) in numbers {
        put(bytes, at, attribute(seat, which)?);
    }
    Ok(())
}

/// Bus, device and domain, in this order.
fn put_pci(bytes: &mut [u8], at: usize, seat: &Seat) {
    let (domain, bus, device) = seat.pci();
    put(bytes, at, bus.into());
    put(bytes, at + 4, device.into());
    put(bytes, at + 8, domain.into());
}

fn put(bytes: &mut [u8], at: usize, value: c_int) {
    bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
}
