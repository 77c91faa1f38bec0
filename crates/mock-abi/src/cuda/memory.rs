//! Memory, copies and fills.

use std::ffi::{c_int, c_uint, c_ulonglong, c_ushort, c_void};

use super::{
    CUcontext, CUdeviceptr, CUmemoryPool, CUstream, current, current_seat, driver, find, seat,
};
use crate::gpu::{
    Code, Out, Reply,
    context::{Context, initialized, require},
    device::Face,
    memory::{self, Copy, Direction, HostKind, Place, Pool},
    stream::{NULL, Stream},
};

/// `CUmemLocation`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct CUmemLocation {
    kind: c_int,
    id: c_int,
}

/// The start of `CUmemPoolProps`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct CUmemPoolProps {
    allocation: c_int,
    handles: c_int,
    location: CUmemLocation,
}

driver! {
    /// Tells the free memory of the current device, and all it has.
    fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) {
        let info = current_seat()?.device.memory_info();
        free.set(info.0)?;
        total.set(info.1)
    }

    /// Allocates device memory.
    fn cuMemAlloc_v2(memory: Out<CUdeviceptr>, bytes: usize) {
        if bytes == 0 || memory.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        memory.set(memory::alloc(current_seat()?, bytes)?)
    }

    /// Allocates rows of device memory.
    fn cuMemAllocPitch_v2(
        memory: Out<CUdeviceptr>,
        pitch: Out<usize>,
        width: usize,
        height: usize,
        _element: c_uint,
    ) {
        let row = width.checked_next_multiple_of(PITCH).ok_or(Code::OUT_OF_MEMORY)?;
        let bytes = row.checked_mul(height).ok_or(Code::OUT_OF_MEMORY)?;
        if bytes == 0 || memory.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        pitch.set(row)?;
        memory.set(memory::alloc(current_seat()?, bytes)?)
    }

    /// Gives device or managed memory back, once all work of the device is done.
    fn cuMemFree_v2(memory: CUdeviceptr) {
        initialized()?;
        memory::free(memory)
    }

    /// Tells the allocation that an address lies in.
    fn cuMemGetAddressRange_v2(
        base: Out<CUdeviceptr>,
        size: Out<usize>,
        address: CUdeviceptr,
    ) {
        initialized()?;
        match memory::look_up(address)? {
            Place::Device { range, .. } | Place::Host { range, .. } => {
                base.set_if(range.start);
                size.set_if(range.len());
                Ok(())
            }
            Place::Pageable => Err(Code::NOT_FOUND),
        }
    }

    /// Allocates pinned host memory.
    fn cuMemAllocHost_v2(memory: Out<usize>, bytes: usize) {
        alloc_host(memory, bytes, 0)
    }

    /// Allocates pinned host memory.
    fn cuMemHostAlloc(memory: Out<usize>, bytes: usize, flags: c_uint) {
        alloc_host(memory, bytes, flags)
    }

    /// Gives pinned host memory back, once all work of its device is done.
    fn cuMemFreeHost(memory: usize) {
        initialized()?;
        memory::free_host(memory, HostKind::Pinned)
    }

    /// Tells under which address devices reach host memory: its own.
    fn cuMemHostGetDevicePointer_v2(
        device: Out<CUdeviceptr>,
        memory: usize,
        flags: c_uint,
    ) {
        initialized()?;
        match memory::look_up(memory)? {
            Place::Host { .. } if flags == 0 => device.set(memory),
            _ => Err(Code::INVALID_VALUE),
        }
    }

    /// Tells with which flags host memory was pinned.
    fn cuMemHostGetFlags(flags: Out<c_uint>, memory: usize) {
        initialized()?;
        match memory::look_up(memory)? {
            Place::Host { flags: set, kind: HostKind::Pinned, .. } => flags.set(set),
            _ => Err(Code::INVALID_VALUE),
        }
    }

    /// Pins memory of the program.
    fn cuMemHostRegister_v2(memory: usize, bytes: usize, flags: c_uint) {
        memory::register(current()?.device(), memory, bytes, flags)
    }

    /// Takes that back.
    fn cuMemHostUnregister(memory: usize) {
        initialized()?;
        memory::unregister(memory)
    }

    /// Allocates memory that host and devices reach.
    fn cuMemAllocManaged(memory: Out<CUdeviceptr>, bytes: usize, flags: c_uint) {
        if bytes == 0 || ![1, 2].contains(&flags) {
            return Err(Code::INVALID_VALUE);
        }
        let device = current()?.device();
        memory.set(memory::alloc_host(device, bytes, HostKind::Managed, flags)?)
    }

    /// Allocates device memory in the order of a stream.
    fn cuMemAllocAsync(memory: Out<CUdeviceptr>, bytes: usize, stream: CUstream) {
        memory.set(memory::alloc_async(&*find(stream)?, bytes)?)
    }

    /// Allocates device memory in the order of a stream. A pool is only the device that it is of.
    fn cuMemAllocFromPoolAsync(
        memory: Out<CUdeviceptr>,
        bytes: usize,
        pool: CUmemoryPool,
        stream: CUstream,
    ) {
        let (pool, stream) = (Pool::find(pool)?, find(stream)?);
        if pool.device == stream.device_ordinal() {
            return memory.set(memory::alloc_async(&stream, bytes)?);
        }
        memory.set(memory::alloc(crate::gpu::device::seat(pool.device)?, bytes)?)
    }

    /// Gives device memory back in the order of a stream.
    fn cuMemFreeAsync(memory: CUdeviceptr, stream: CUstream) {
        memory::free_async(memory, &*find(stream)?)
    }

    /// Makes a memory pool.
    fn cuMemPoolCreate(pool: Out<CUmemoryPool>, props: Out<CUmemPoolProps>) {
        let location = props.get()?.location;
        if location.kind != ON_DEVICE {
            return Err(Code::NOT_SUPPORTED);
        }
        pool.set(Pool::create(seat(location.id)?.ordinal()))
    }

    /// Destroys a memory pool; memory from it lives on.
    fn cuMemPoolDestroy(pool: CUmemoryPool) {
        initialized()?;
        Pool::destroy(pool)
    }

    /// Keeps nothing back anyway.
    fn cuMemPoolTrimTo(pool: CUmemoryPool, _keep: usize) {
        initialized()?;
        Pool::find(pool).map(drop)
    }

    /// Sets an attribute of a pool.
    fn cuMemPoolSetAttribute(pool: CUmemoryPool, attribute: c_uint, value: Out<u8>) {
        initialized()?;
        set_pool_attribute(pool, attribute, value)
    }

    /// Tells an attribute of a pool.
    fn cuMemPoolGetAttribute(pool: CUmemoryPool, attribute: c_uint, value: Out<u8>) {
        initialized()?;
        get_pool_attribute(pool, attribute, value)
    }

    /// Has nothing to open: all devices reach the memory of all.
    fn cuMemPoolSetAccess(pool: CUmemoryPool, _access: *const c_void, _count: usize) {
        initialized()?;
        Pool::find(pool).map(drop)
    }

    /// Tells that a device may read and write memory of a pool.
    fn cuMemPoolGetAccess(flags: Out<c_uint>, pool: CUmemoryPool, location: Out<CUmemLocation>) {
        seat(location.get()?.id)?;
        Pool::find(pool)?;
        flags.set(READ_WRITE)
    }

    /// Has nothing to move.
    fn cuMemPrefetchAsync_v2(
        _memory: CUdeviceptr,
        _bytes: usize,
        _location: CUmemLocation,
        _flags: c_uint,
        stream: CUstream,
    ) {
        find(stream)?.enter().map(drop)
    }

    /// Takes no advice.
    fn cuMemAdvise_v2(
        _memory: CUdeviceptr,
        _bytes: usize,
        _advice: c_uint,
        _location: CUmemLocation,
    ) {
        initialized()
    }

    /// Tells a property of what an address points into.
    fn cuPointerGetAttribute(data: Out<u8>, attribute: c_uint, address: CUdeviceptr) {
        initialized()?;
        let place = memory::look_up(address)?;
        if matches!(place, Place::Pageable) {
            return Err(Code::INVALID_VALUE);
        }
        pointer_attribute(data, attribute, address, &place)
    }

    /// Tells properties of what an address points into; zeros where nobody knows it.
    fn cuPointerGetAttributes(
        count: c_uint,
        attributes: Out<c_uint>,
        data: Out<Out<u8>>,
        address: CUdeviceptr,
    ) {
        initialized()?;
        let place = memory::look_up(address)?;
        for index in 0..count as usize {
            let attribute = attributes.get_at(index)?;
            pointer_attribute(data.get_at(index)?, attribute, address, &place)?;
        }
        Ok(())
    }

    /// Sets a property that changes nothing here.
    fn cuPointerSetAttribute(_value: *const c_void, attribute: c_uint, address: CUdeviceptr) {
        initialized()?;
        match memory::look_up(address)? {
            Place::Device { .. } | Place::Host { .. } if attribute == SYNC_MEMOPS => Ok(()),
            _ => Err(Code::INVALID_VALUE),
        }
    }

    /// Copies.
    fn cuMemcpy(to: CUdeviceptr, from: CUdeviceptr, bytes: usize) {
        copy(to, from, bytes, Direction::Any)
    }

    /// Copies from host to device.
    fn cuMemcpyHtoD_v2(to: CUdeviceptr, from: usize, bytes: usize) {
        copy(to, from, bytes, Direction::HostToDevice)
    }

    /// Copies from device to host.
    fn cuMemcpyDtoH_v2(to: usize, from: CUdeviceptr, bytes: usize) {
        copy(to, from, bytes, Direction::DeviceToHost)
    }

    /// Copies between device memory.
    fn cuMemcpyDtoD_v2(to: CUdeviceptr, from: CUdeviceptr, bytes: usize) {
        copy(to, from, bytes, Direction::DeviceToDevice)
    }

    /// Copies between two devices.
    fn cuMemcpyPeer(
        to: CUdeviceptr,
        to_context: CUcontext,
        from: CUdeviceptr,
        from_context: CUcontext,
        bytes: usize,
    ) {
        Context::from_bits(to_context)?;
        Context::from_bits(from_context)?;
        copy(to, from, bytes, Direction::DeviceToDevice)
    }

    /// Enqueues a copy.
    fn cuMemcpyAsync(to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream) {
        enqueue(to, from, bytes, Direction::Any, stream)
    }

    /// Enqueues a copy from host to device.
    fn cuMemcpyHtoDAsync_v2(to: CUdeviceptr, from: usize, bytes: usize, stream: CUstream) {
        enqueue(to, from, bytes, Direction::HostToDevice, stream)
    }

    /// Enqueues a copy from device to host.
    fn cuMemcpyDtoHAsync_v2(to: usize, from: CUdeviceptr, bytes: usize, stream: CUstream) {
        enqueue(to, from, bytes, Direction::DeviceToHost, stream)
    }

    /// Enqueues a copy between device memory.
    fn cuMemcpyDtoDAsync_v2(
        to: CUdeviceptr,
        from: CUdeviceptr,
        bytes: usize,
        stream: CUstream,
    ) {
        enqueue(to, from, bytes, Direction::DeviceToDevice, stream)
    }

    /// Enqueues a copy between two devices.
    fn cuMemcpyPeerAsync(
        to: CUdeviceptr,
        to_context: CUcontext,
        from: CUdeviceptr,
        from_context: CUcontext,
        bytes: usize,
        stream: CUstream,
    ) {
        Context::from_bits(to_context)?;
        Context::from_bits(from_context)?;
        enqueue(to, from, bytes, Direction::DeviceToDevice, stream)
    }

    /// Fills with a byte.
    fn cuMemsetD8_v2(to: CUdeviceptr, value: u8, count: usize) {
        fill(NULL, to, &[value], count)
    }

    /// Fills with two bytes.
    fn cuMemsetD16_v2(to: CUdeviceptr, value: c_ushort, count: usize) {
        fill(NULL, to, &value.to_ne_bytes(), count)
    }

    /// Fills with four bytes.
    fn cuMemsetD32_v2(to: CUdeviceptr, value: c_uint, count: usize) {
        fill(NULL, to, &value.to_ne_bytes(), count)
    }

    /// Enqueues filling with a byte.
    fn cuMemsetD8Async(to: CUdeviceptr, value: u8, count: usize, stream: CUstream) {
        fill(stream, to, &[value], count)
    }

    /// Enqueues filling with two bytes.
    fn cuMemsetD16Async(to: CUdeviceptr, value: c_ushort, count: usize, stream: CUstream) {
        fill(stream, to, &value.to_ne_bytes(), count)
    }

    /// Enqueues filling with four bytes.
    fn cuMemsetD32Async(to: CUdeviceptr, value: c_uint, count: usize, stream: CUstream) {
        fill(stream, to, &value.to_ne_bytes(), count)
    }
}

fn copy(to: usize, from: usize, bytes: usize, direction: Direction) -> Reply {
    Copy { to, from, bytes, direction }.make(&*Stream::find(NULL, current)?)
}

fn enqueue(to: usize, from: usize, bytes: usize, direction: Direction, stream: CUstream) -> Reply {
    Copy { to, from, bytes, direction }.enqueue(&*find(stream)?)
}

fn fill(stream: CUstream, to: usize, pattern: &[u8], count: usize) -> Reply {
    initialized()?;
    memory::fill(&*Stream::find(stream, require)?, to, pattern, count)
}

fn alloc_host(memory: Out<usize>, bytes: usize, flags: c_uint) -> Reply {
    let device = current()?.device();
    memory.set(0)?;
    memory.set(memory::alloc_host(device, bytes, HostKind::Pinned, flags)?)
}

/// The numbers of pools are C ints or 64 bits wide.
pub(crate) fn set_pool_attribute(pool: usize, attribute: c_uint, value: Out<u8>) -> Reply {
    let pool = Pool::find(pool)?;
    let value = match Pool::is_wide(attribute)? {
        true => value.cast::<u64>().get()?,
        false => value.cast::<c_uint>().get()?.into(),
    };
    pool.set_attribute(attribute, value)
}

pub(crate) fn get_pool_attribute(pool: usize, attribute: c_uint, value: Out<u8>) -> Reply {
    match Pool::find(pool)?.attribute(attribute)? {
        (number, true) => value.cast::<u64>().set(number),
        (number, false) => value.cast::<c_uint>().set(number as c_uint),
    }
}

/// `CUpointer_attribute`. Booleans are one byte: programs pass a `bool` or an int that is 0.
fn pointer_attribute(data: Out<u8>, attribute: c_uint, address: usize, place: &Place) -> Reply {
    let (device, range, host) = match place {
        Place::Device { device, range } => (*device, range.clone(), None),
        Place::Host { device, range, kind, .. } => (*device, range.clone(), Some(*kind)),
        Place::Pageable => {
            // Only asked for in lists.
            return match attribute {
                1 | 3 | 4 | 7 | 11 | 12 | 14 | 17 => data.cast::<usize>().set(0),
                9 => data.cast::<c_int>().set(NO_DEVICE),
                2 | 16 => data.cast::<c_uint>().set(0),
                _ => data.set(0),
            };
        }
    };
    let is_managed = host == Some(HostKind::Managed);
    match attribute {
        1 => data.cast::<usize>().set(Context::primary(device).bits()),
        2 => {
            let on_host = host.is_some() && !is_managed;
            data.cast::<c_uint>().set(if on_host { HOST } else { DEVICE })
        }
        3 => data.cast::<usize>().set(address),
        4 if host.is_some() => data.cast::<usize>().set(address),
        SYNC_MEMOPS => data.set(0),
        7 => data.cast::<c_ulonglong>().set(range.start as c_ulonglong),
        8 => data.set(is_managed.into()),
        9 => data.cast::<c_int>().set(Face::Cuda.number(device)?),
        10 | 15 => data.set(0),
        11 => data.cast::<usize>().set(range.start),
        12 => data.cast::<usize>().set(range.len()),
        13 => data.set(1),
        14 => data.cast::<u64>().set(0),
        16 => data.cast::<c_uint>().set(READ_WRITE),
        17 if host.is_none() => data.cast::<usize>().set(0),
        _ => Err(Code::INVALID_VALUE),
    }
}

/// `CU_MEMORYTYPE_HOST` and `CU_MEMORYTYPE_DEVICE`.
const HOST: c_uint = 1;
const DEVICE: c_uint = 2;
/// `CU_DEVICE_INVALID`.
const NO_DEVICE: c_int = -2;
/// `CU_POINTER_ATTRIBUTE_SYNC_MEMOPS`.
const SYNC_MEMOPS: c_uint = 6;
/// `CU_MEM_LOCATION_TYPE_DEVICE`.
const ON_DEVICE: c_int = 1;
/// `CU_MEM_ACCESS_FLAGS_PROT_READWRITE`, and `CU_POINTER_ATTRIBUTE_ACCESS_FLAG_READWRITE`.
const READ_WRITE: c_uint = 3;
/// Rows start at multiples of this.
const PITCH: usize = 512;
