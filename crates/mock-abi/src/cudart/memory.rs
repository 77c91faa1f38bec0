//! Memory, copies and fills.

use std::ffi::{c_int, c_uint};

use super::{context, find, twins};
use crate::{
    cuda::memory::{get_pool_attribute, set_pool_attribute},
    gpu::{
        Code, Out, Reply,
        device::{Face, seat},
        memory::{self, Copy, Direction, HostKind, Place, Pool},
        stream::NULL,
    },
};

/// The start of `cudaPointerAttributes`, which is all of it before CUDA 13, and of
/// `hipPointerAttribute_t`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct PointerAttributes {
    kind: c_int,
    device: c_int,
    device_pointer: usize,
    host_pointer: usize,
}

twins! {
    /// Allocates device memory; nothing for nothing.
    fn cudaMalloc | hipMalloc [face] (memory: Out<usize>, bytes: usize) {
        memory.set(0)?;
        let context = context(face)?;
        if bytes == 0 {
            return Ok(());
        }
        memory.set(memory::alloc(context.seat()?, bytes)?)
    }

    /// Gives device or managed memory back, once all work of the device is done.
    fn cudaFree | hipFree [face] (memory: usize) {
        context(face)?;
        memory::free(memory)
    }

    /// Allocates device memory in the order of a stream.
    fn cudaMallocAsync | hipMallocAsync [face] (
        memory: Out<usize>,
        bytes: usize,
        stream: usize,
    ) {
        memory.set(memory::alloc_async(&*find(face, stream)?, bytes)?)
    }

    /// Gives device memory back in the order of a stream.
    fn cudaFreeAsync | hipFreeAsync [face] (memory: usize, stream: usize) {
        memory::free_async(memory, &*find(face, stream)?)
    }

    /// Allocates device memory in the order of a stream. A pool is only the device that it is of.
    fn cudaMallocFromPoolAsync | hipMallocFromPoolAsync [face] (
        memory: Out<usize>,
        bytes: usize,
        pool: usize,
        stream: usize,
    ) {
        let (pool, stream) = (Pool::find(pool)?, find(face, stream)?);
        if pool.device == stream.device_ordinal() {
            return memory.set(memory::alloc_async(&stream, bytes)?);
        }
        memory.set(memory::alloc(seat(pool.device)?, bytes)?)
    }

    /// Keeps nothing back anyway.
    fn cudaMemPoolTrimTo | hipMemPoolTrimTo [face] (pool: usize, _keep: usize) {
        Pool::find(pool).map(drop)
    }

    /// Sets an attribute of a pool.
    fn cudaMemPoolSetAttribute | hipMemPoolSetAttribute [face] (
        pool: usize,
        attribute: c_uint,
        value: Out<u8>,
    ) {
        set_pool_attribute(pool, attribute, value)
    }

    /// Tells an attribute of a pool.
    fn cudaMemPoolGetAttribute | hipMemPoolGetAttribute [face] (
        pool: usize,
        attribute: c_uint,
        value: Out<u8>,
    ) {
        get_pool_attribute(pool, attribute, value)
    }

    /// Destroys a memory pool; memory from it lives on.
    fn cudaMemPoolDestroy | hipMemPoolDestroy [face] (pool: usize) {
        Pool::destroy(pool)
    }

    /// Allocates pinned host memory.
    fn cudaHostAlloc | hipHostMalloc [face] (memory: Out<usize>, bytes: usize, flags: c_uint) {
        alloc_host(face, memory, bytes, HostKind::Pinned, flags)
    }

    /// Allocates pinned host memory.
    fn cudaMallocHost | hipMallocHost [face] (memory: Out<usize>, bytes: usize) {
        alloc_host(face, memory, bytes, HostKind::Pinned, 0)
    }

    /// Gives pinned host memory back, once all work of its device is done.
    fn cudaFreeHost | hipHostFree [face] (memory: usize) {
        context(face)?;
        memory::free_host(memory, HostKind::Pinned)
    }

    /// Pins memory of the program.
    fn cudaHostRegister | hipHostRegister [face] (memory: usize, bytes: usize, flags: c_uint) {
        memory::register(context(face)?.device(), memory, bytes, flags)
    }

    /// Takes that back.
    fn cudaHostUnregister | hipHostUnregister [face] (memory: usize) {
        memory::unregister(memory)
    }

    /// Tells under which address devices reach host memory: its own.
    fn cudaHostGetDevicePointer | hipHostGetDevicePointer [face] (
        device: Out<usize>,
        memory: usize,
        flags: c_uint,
    ) {
        match memory::look_up(memory)? {
            Place::Host { .. } if flags == 0 => device.set(memory),
            _ => Err(Code::INVALID_VALUE),
        }
    }

    /// Tells with which flags host memory was pinned.
    fn cudaHostGetFlags | hipHostGetFlags [face] (flags: Out<c_uint>, memory: usize) {
        match memory::look_up(memory)? {
            Place::Host { flags: set, kind: HostKind::Pinned, .. } => flags.set(set),
            _ => Err(Code::INVALID_VALUE),
        }
    }

    /// Allocates memory that host and devices reach.
    fn cudaMallocManaged | hipMallocManaged [face] (
        memory: Out<usize>,
        bytes: usize,
        flags: c_uint,
    ) {
        alloc_host(face, memory, bytes, HostKind::Managed, flags)
    }

    /// Tells the free memory of the thread's device, and all it has.
    fn cudaMemGetInfo | hipMemGetInfo [face] (free: Out<usize>, total: Out<usize>) {
        let info = context(face)?.seat()?.device.memory_info();
        free.set(info.0)?;
        total.set(info.1)
    }

    /// Copies.
    fn cudaMemcpy | hipMemcpy [face] (to: usize, from: usize, bytes: usize, kind: c_uint) {
        let direction = Direction::from_kind(kind)?;
        Copy { to, from, bytes, direction }.make(&*find(face, NULL)?)
    }

    /// Enqueues a copy.
    fn cudaMemcpyAsync | hipMemcpyAsync [face] (
        to: usize,
        from: usize,
        bytes: usize,
        kind: c_uint,
        stream: usize,
    ) {
        let direction = Direction::from_kind(kind)?;
        Copy { to, from, bytes, direction }.enqueue(&*find(face, stream)?)
    }

    /// Copies between two devices.
    fn cudaMemcpyPeer | hipMemcpyPeer [face] (
        to: usize,
        to_device: c_int,
        from: usize,
        from_device: c_int,
        bytes: usize,
    ) {
        face.seat(to_device)?;
        face.seat(from_device)?;
        let copy = Copy { to, from, bytes, direction: Direction::DeviceToDevice };
        copy.make(&*find(face, NULL)?)
    }

    /// Enqueues a copy between two devices.
    fn cudaMemcpyPeerAsync | hipMemcpyPeerAsync [face] (
        to: usize,
        to_device: c_int,
        from: usize,
        from_device: c_int,
        bytes: usize,
        stream: usize,
    ) {
        face.seat(to_device)?;
        face.seat(from_device)?;
        let copy = Copy { to, from, bytes, direction: Direction::DeviceToDevice };
        copy.enqueue(&*find(face, stream)?)
    }

    /// Fills with a byte.
    fn cudaMemset | hipMemset [face] (to: usize, value: c_int, bytes: usize) {
        memory::fill(&*find(face, NULL)?, to, &[value as u8], bytes)
    }

    /// Enqueues filling with a byte.
    fn cudaMemsetAsync | hipMemsetAsync [face] (
        to: usize,
        value: c_int,
        bytes: usize,
        stream: usize,
    ) {
        memory::fill(&*find(face, stream)?, to, &[value as u8], bytes)
    }
}

fn alloc_host(
    face: Face,
    memory: Out<usize>,
    bytes: usize,
    kind: HostKind,
    flags: c_uint,
) -> Reply {
    memory.set(0)?;
    memory.set(memory::alloc_host(context(face)?.device(), bytes, kind, flags)?)
}

/// What `cudaPointerGetAttributes` and `hipPointerGetAttributes` tell, and the flags of pinned
/// memory.
pub(crate) fn pointer_attributes(face: Face, address: usize) -> Reply<(PointerAttributes, c_uint)> {
    let (kind, device, host, flags) = match memory::look_up(address)? {
        Place::Pageable => {
            let (device, host_pointer) = (NO_DEVICE, address);
            let nothing =
                PointerAttributes { kind: UNREGISTERED, device, device_pointer: 0, host_pointer };
            return Ok((nothing, 0));
        }
        Place::Device { device, .. } => (DEVICE, device, 0, 0),
        Place::Host { device, kind: HostKind::Managed, flags, .. } => {
            (MANAGED, device, address, flags)
        }
        Place::Host { device, flags, .. } => (HOST, device, address, flags),
    };
    let device = face.number(device)?;
    let attributes =
        PointerAttributes { kind, device, device_pointer: address, host_pointer: host };
    Ok((attributes, flags))
}

impl PointerAttributes {
    /// Whether it is managed memory.
    pub(crate) fn is_managed(&self) -> bool {
        self.kind == MANAGED
    }
}

/// `cudaMemoryType`, and HIP's since 6.0.
const UNREGISTERED: c_int = 0;
const HOST: c_int = 1;
const DEVICE: c_int = 2;
const MANAGED: c_int = 3;
/// `cudaInvalidDeviceId`.
const NO_DEVICE: c_int = -2;
