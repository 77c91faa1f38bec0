//! HIP: what it has and the CUDA runtime has not, or has with other arguments. The rest is in
//! [`crate::cudart`]. Numbers and layouts are those of HIP 6 and 7.

#![expect(non_snake_case, reason = "the functions have their C names")]

use std::ffi::{c_char, c_int, c_uint, c_ulonglong, c_ushort, c_void};

use crate::{
    cuda::{entry, stream::capture_info},
    cudart::{
        face, find,
        memory::{PointerAttributes, pointer_attributes},
        own::refuse,
    },
    gpu::{
        Code, Out, Reply,
        context::ensure,
        device::{Seat, attribute},
        graph,
        memory::{self, Copy, Direction, HostKind, Place},
        stream::NULL,
    },
};

/// `hipPointerAttribute_t`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct HipPointerAttributes {
    base: PointerAttributes,
    is_managed: c_int,
    flags: c_uint,
}

const _: () = assert!(size_of::<HipPointerAttributes>() == 32);

face! {
    Hip;

    /// Initialises nothing.
    fn hipInit [face] (flags: c_uint) {
        if flags != 0 {
            return Err(Code::INVALID_VALUE);
        }
        face.count().map(drop)
    }

    /// Tells the handle of a device.
    fn hipDeviceGet [face] (device: Out<c_int>, ordinal: c_int) {
        face.seat(ordinal)?;
        device.set(ordinal)
    }

    /// Tells the name of a device.
    fn hipDeviceGetName [face] (name: Out<c_char>, length: c_int, device: c_int) {
        name.set_text(&face.seat(device)?.name(), length)
    }

    /// Tells the unique number of a device.
    fn hipDeviceGetUuid [face] (uuid: Out<[u8; 16]>, device: c_int) {
        uuid.set(face.seat(device)?.uuid())
    }

    /// Tells the memory of a device.
    fn hipDeviceTotalMem [face] (bytes: Out<usize>, device: c_int) {
        bytes.set(face.seat(device)?.total_memory())
    }

    /// Tells the compute capability of a device.
    fn hipDeviceComputeCapability [face] (
        major: Out<c_int>,
        minor: Out<c_int>,
        device: c_int,
    ) {
        face.seat(device)?;
        major.set(CAPABILITY.0)?;
        minor.set(CAPABILITY.1)
    }

    /// Tells one property of a device.
    fn hipDeviceGetAttribute [face] (value: Out<c_int>, which: c_uint, device: c_int) {
        value.set(hip_attribute(face.seat(device)?, which)?)
    }

    /// Fills the property structure of HIP 6 and 7.
    fn hipGetDevicePropertiesR0600 [face] (properties: Out<[u8; 1472]>, device: c_int) {
        let mut bytes = [0; 1472];
        fill(&mut bytes, face.seat(device)?, &NEW);
        properties.set(bytes)
    }

    /// Fills the property structure of HIP 5, which this name still means.
    fn hipGetDeviceProperties [face] (properties: Out<[u8; 792]>, device: c_int) {
        let mut bytes = [0; 792];
        fill(&mut bytes, face.seat(device)?, &OLD);
        properties.set(bytes)
    }

    /// Fills the property structure of HIP 5.
    fn hipGetDevicePropertiesR0000 [face] (properties: Out<[u8; 792]>, device: c_int) {
        let mut bytes = [0; 792];
        fill(&mut bytes, face.seat(device)?, &OLD);
        properties.set(bytes)
    }

    /// Finds a function by its name. An unknown one is null, and said in the status.
    fn hipGetProcAddress [face] (
        name: *const c_char,
        function: Out<*mut c_void>,
        _version: c_int,
        _flags: c_ulonglong,
        status: Out<c_int>,
    ) {
        let found = entry::find(name, 0)?;
        function.set(found)?;
        status.set_if(found.is_null().into());
        if found.is_null() { Err(Code::INVALID_VALUE) } else { Ok(()) }
    }

    /// Allocates device memory; how it is cached means nothing here.
    fn hipExtMallocWithFlags [face] (memory: Out<usize>, bytes: usize, _flags: c_uint) {
        memory.set(0)?;
        let context = ensure(face)?;
        if bytes == 0 {
            return Ok(());
        }
        memory.set(memory::alloc(context.seat()?, bytes)?)
    }

    /// Allocates pinned host memory.
    fn hipHostAlloc [face] (memory: Out<usize>, bytes: usize, flags: c_uint) {
        let device = ensure(face)?.device();
        memory.set(memory::alloc_host(device, bytes, HostKind::Pinned, flags)?)
    }

    /// Gives pinned host memory back.
    fn hipFreeHost [face] (memory: usize) {
        memory::free_host(memory, HostKind::Pinned)
    }

    /// Tells what an address points into. Memory that nobody knows is told as such.
    fn hipPointerGetAttributes [face] (
        attributes: Out<HipPointerAttributes>,
        address: usize,
    ) {
        let (base, flags) = pointer_attributes(face, address)?;
        let is_managed = base.is_managed().into();
        attributes.set(HipPointerAttributes { base, is_managed, flags })
    }

    /// Tells the allocation that an address lies in.
    fn hipMemGetAddressRange [face] (base: Out<usize>, size: Out<usize>, address: usize) {
        match memory::look_up(address)? {
            Place::Device { range, .. } | Place::Host { range, .. } => {
                base.set_if(range.start);
                size.set_if(range.len());
                Ok(())
            }
            Place::Pageable => Err(Code::NOT_FOUND),
        }
    }

    /// Copies from host to device.
    fn hipMemcpyHtoD [face] (to: usize, from: usize, bytes: usize) {
        let copy = Copy { to, from, bytes, direction: Direction::HostToDevice };
        copy.make(&*find(face, NULL)?)
    }

    /// Copies from device to host.
    fn hipMemcpyDtoH [face] (to: usize, from: usize, bytes: usize) {
        let copy = Copy { to, from, bytes, direction: Direction::DeviceToHost };
        copy.make(&*find(face, NULL)?)
    }

    /// Copies between device memory.
    fn hipMemcpyDtoD [face] (to: usize, from: usize, bytes: usize) {
        let copy = Copy { to, from, bytes, direction: Direction::DeviceToDevice };
        copy.make(&*find(face, NULL)?)
    }

    /// Enqueues a copy from host to device.
    fn hipMemcpyHtoDAsync [face] (to: usize, from: usize, bytes: usize, stream: usize) {
        let copy = Copy { to, from, bytes, direction: Direction::HostToDevice };
        copy.enqueue(&*find(face, stream)?)
    }

    /// Enqueues a copy from device to host.
    fn hipMemcpyDtoHAsync [face] (to: usize, from: usize, bytes: usize, stream: usize) {
        let copy = Copy { to, from, bytes, direction: Direction::DeviceToHost };
        copy.enqueue(&*find(face, stream)?)
    }

    /// Enqueues a copy between device memory.
    fn hipMemcpyDtoDAsync [face] (to: usize, from: usize, bytes: usize, stream: usize) {
        let copy = Copy { to, from, bytes, direction: Direction::DeviceToDevice };
        copy.enqueue(&*find(face, stream)?)
    }

    /// Enqueues filling with a byte.
    fn hipMemsetD8Async [face] (to: usize, value: u8, count: usize, stream: usize) {
        memory::fill(&*find(face, stream)?, to, &[value], count)
    }

    /// Enqueues filling with two bytes.
    fn hipMemsetD16Async [face] (to: usize, value: c_ushort, count: usize, stream: usize) {
        memory::fill(&*find(face, stream)?, to, &value.to_ne_bytes(), count)
    }

    /// Enqueues filling with four bytes.
    fn hipMemsetD32Async [face] (to: usize, value: c_int, count: usize, stream: usize) {
        memory::fill(&*find(face, stream)?, to, &value.to_ne_bytes(), count)
    }

    /// Tells the capture that a stream takes part in.
    fn hipStreamGetCaptureInfo [face] (
        stream: usize,
        status: Out<c_uint>,
        id: Out<c_ulonglong>,
    ) {
        let (mut graph, mut dependencies, mut count) = (0, 0, 0);
        let others = [&mut graph, &mut dependencies, &mut count].map(Out::to);
        capture_info(&*find(face, stream)?, status, id, others)
    }

    /// Makes an instance of a graph, with the arguments of CUDA 11. Nothing can go wrong with a node.
    fn hipGraphInstantiate [face] (
        instance: Out<usize>,
        graph: usize,
        error_node: Out<usize>,
        _log: Out<c_char>,
        _log_length: usize,
    ) {
        error_node.set_if(0);
        instance.set(graph::instantiate(graph, 0)?)
    }

    /// Refuses: there are no kernels.
    fn hipLaunchKernel [face] () {
        refuse("hipLaunchKernel: the mock's devices run no kernels")
    }

    /// Refuses: memory is not shared between processes this way.
    fn hipIpcGetMemHandle [face] () {
        refuse("hipIpcGetMemHandle: the mock shares no memory this way")
    }

    /// Refuses: memory is not shared between processes this way.
    fn hipIpcOpenMemHandle [face] () {
        refuse("hipIpcOpenMemHandle: the mock shares no memory this way")
    }

    /// Refuses: memory is not shared between processes this way.
    fn hipIpcCloseMemHandle [face] () {
        refuse("hipIpcCloseMemHandle: the mock shares no memory this way")
    }

    /// Refuses: events are not shared between processes.
    fn hipIpcGetEventHandle [face] () {
        refuse("hipIpcGetEventHandle: the mock's events are of one process")
    }
}

/// `hipDeviceAttribute_t`, whose numbers are not CUDA's.
fn hip_attribute(seat: &Seat, which: c_uint) -> Reply<c_int> {
    let same = |number| attribute(seat, number);
    match which {
        5 => same(13),
        16 => same(18),
        23 => Ok(CAPABILITY.0),
        24 => same(83),
        56 => same(1),
        61 => Ok(CAPABILITY.1),
        63 => same(16),
        67 => same(33),
        68 => same(34),
        69 => same(50),
        85 => same(41),
        87 => Ok(WAVE),
        0..=LAST_SHARED | FIRST_OF_AMD..=LAST_OF_AMD => Ok(0),
        _ => Err(Code::INVALID_VALUE),
    }
}

/// Where `hipDeviceProp_t` has what: memory, wave, processors, PCI bus, device and domain, compute
/// capability (major, minor), and the name of the architecture.
struct Layout {
    memory: usize,
    wave: usize,
    processors: usize,
    pci: [usize; 3],
    capability: usize,
    architecture: usize,
}

/// Since HIP 6.0.
const NEW: Layout = Layout {
    memory: 288,
    wave: 308,
    processors: 388,
    pci: [584, 588, 592],
    capability: 360,
    architecture: 1160,
};

/// Up to HIP 5.
const OLD: Layout = Layout {
    memory: 256,
    wave: 276,
    processors: 336,
    pci: [368, 372, 364],
    capability: 328,
    architecture: 396,
};

fn fill(bytes: &mut [u8], seat: &Seat, layout: &Layout) {
    let name = seat.name();
    let name = &name.as_bytes()[..name.len().min(255)];
    bytes[..name.len()].copy_from_slice(name);
    let at = layout.memory;
    bytes[at..at + 8].copy_from_slice(&seat.total_memory().to_ne_bytes());
    let at = layout.architecture;
    bytes[at..at + ARCHITECTURE.len()].copy_from_slice(ARCHITECTURE);
    let (domain, bus, device) = seat.pci();
    for (at, value) in [
        (layout.wave, WAVE),
        (layout.processors, PROCESSORS),
        (layout.pci[0], bus.into()),
        (layout.pci[1], device.into()),
        (layout.pci[2], domain.into()),
        (layout.capability, CAPABILITY.0),
        (layout.capability + 4, CAPABILITY.1),
    ] {
        bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
}

/// Those of a gfx950, whose fp8 is OCP's, as the mock's is.
const ARCHITECTURE: &[u8] = b"gfx950";
const CAPABILITY: (c_int, c_int) = (9, 5);
const WAVE: c_int = 64;
const PROCESSORS: c_int = 132;
/// The attributes that CUDA has too, and AMD's own.
const LAST_SHARED: c_uint = 199;
const FIRST_OF_AMD: c_uint = 10000;
const LAST_OF_AMD: c_uint = 10100;
