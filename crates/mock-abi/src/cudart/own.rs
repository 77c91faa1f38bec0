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
        fill(&mut bytes, seat, 0)?;
        // What CUDA 13 has no more: clocks, and whether copies overlap with kernels.
        for (at, which) in [(348, 13), (384, 15), (608, 36)] {
            put(&mut bytes, at, attribute(seat, which)?);
        }
        properties.set(bytes)
    }

    /// Fills the property structure of CUDA 13.
    fn cudaGetDeviceProperties [face] (properties: Out<[u8; 1008]>, device: c_int) {
        let seat = face.seat(device)?;
        let mut bytes = [0; 1008];
        fill(&mut bytes, seat, 1)?;
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

/// Fills `cudaDeviceProp` as of CUDA 12 (0) or 13 (1).
fn fill(bytes: &mut [u8], seat: &Seat, version: usize) -> Reply {
    let name = seat.name();
    let name = &name.as_bytes()[..name.len().min(255)];
    bytes[..name.len()].copy_from_slice(name);
    bytes[256..272].copy_from_slice(&seat.uuid());
    bytes[288..296].copy_from_slice(&seat.total_memory().to_ne_bytes());
    for (at, which) in WORDS {
        let value = attribute(seat, which)? as usize;
        bytes[at[version]..][..8].copy_from_slice(&value.to_ne_bytes());
    }
    for (at, which) in NUMBERS {
        put(bytes, at[version], attribute(seat, which)?);
    }
    Ok(())
}

fn put(bytes: &mut [u8], at: usize, value: c_int) {
    bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
}

/// Where `cudaDeviceProp` has attributes as a `size_t`, in CUDA 12 and 13: memory shared by a block,
/// pitch, constant memory, alignment of textures, memory shared by a multiprocessor and, at most, by a
/// block.
const WORDS: [([usize; 2], c_int); 6] = [
    ([296; 2], 8),
    ([312; 2], 11),
    ([352; 2], 9),
    ([368; 2], 14),
    ([640, 624], 81),
    ([696, 672], 97),
];

/// And as an `int`.
const NUMBERS: [([usize; 2], c_int); 26] = [
    // Registers, warp, threads of a block, dimensions of blocks and grids, compute capability.
    ([304; 2], 12),
    ([308; 2], 10),
    ([320; 2], 1),
    ([324; 2], 2),
    ([328; 2], 3),
    ([332; 2], 4),
    ([336; 2], 5),
    ([340; 2], 6),
    ([344; 2], 7),
    ([360; 2], 75),
    ([364; 2], 76),
    // Multiprocessors, integrated, mapped host memory, concurrent kernels.
    ([388, 384], 16),
    ([396, 388], 18),
    ([400, 392], 19),
    ([576, 560], 31),
    // Bus, device and domain.
    ([584, 568], 33),
    ([588, 572], 34),
    ([592, 576], 50),
    // Copy engines, unified addresses, width of the memory bus, L2 cache, threads of a
    // multiprocessor, priorities, managed memory, pools.
    ([600, 584], 40),
    ([604, 588], 41),
    ([612, 592], 37),
    ([616, 596], 38),
    ([624, 604], 39),
    ([628, 608], 78),
    ([652, 636], 83),
    ([744, 720], 115),
];
