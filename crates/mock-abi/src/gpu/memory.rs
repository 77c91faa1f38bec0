//! Memory: of devices, pinned, managed, from pools, kept by graphs; copies and fills.
//!
//! Device memory is the engine's. Pinned and managed memory is host memory that is listed here, so
//! that programs can ask what a pointer is. Any other memory of the process is *pageable*, and is
//! treated as the drivers treat it: a copy from there is staged, so its source may be reused when an
//! asynchronous call returns; a copy to there has been made when the call returns.

use std::{
    alloc::{self, Layout},
    collections::BTreeMap,
    ffi::c_void,
    ops::Range,
    ptr::{self, NonNull},
    sync::{Arc, Mutex},
};

use collectives_core::{Device as _, Error, RawStream};

use super::{
    Code, Reply, capture,
    device::{Seat, machine, seat},
    graph, lock,
    stream::Stream,
};

/// What a pointer points into.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// Memory of a device.
    Device {
        device: usize,
        range: Range<usize>,
    },
    /// Host memory that the runtime knows.
    Host {
        device: usize,
        range: Range<usize>,
        kind: HostKind,
        flags: u32,
    },
    Pageable,
}

/// How the runtime came to know host memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum HostKind {
    Managed,
    Pinned,
    Registered,
}

struct HostBlock {
    bytes: usize,
    kind: HostKind,
    flags: u32,
    device: usize,
    /// How it was allocated, where it was here.
    layout: Option<Layout>,
}

static HOST: Mutex<BTreeMap<usize, HostBlock>> = Mutex::new(BTreeMap::new());

/// What is at an address.
pub(crate) fn look_up(address: usize) -> Reply<Place> {
    let found = machine()?.mock.allocation(pointer(address));
    if let Some(found) = found {
        let start = found.start.addr();
        return Ok(Place::Device { device: found.device, range: start..start + found.bytes });
    }
    let host = lock(&HOST);
    let Some((&start, block)) = host.range(..=address).next_back() else {
        return Ok(Place::Pageable);
    };
    let range = start..start + block.bytes;
    if !range.contains(&address) {
        return Ok(Place::Pageable);
    }
    let &HostBlock { kind, flags, device, .. } = block;
    Ok(Place::Host { device, range, kind, flags })
}

impl Place {
    /// Whether copies that name device memory may use it.
    fn is_known(&self) -> bool {
        !matches!(self, Self::Pageable)
    }

    /// Whether it is host memory that nobody pinned.
    fn is_pageable(&self) -> bool {
        matches!(self, Self::Pageable)
    }
}

/// Device memory, at once.
pub(crate) fn alloc(seat: &Seat, bytes: usize) -> Reply<usize> {
    capture::forbid_unsafe()?;
    raw_alloc(seat, bytes)
}

fn raw_alloc(seat: &Seat, bytes: usize) -> Reply<usize> {
    let ptr = seat.device.alloc(bytes).map_err(|error| value(&error))?;
    Ok(ptr.expose_provenance())
}

/// Device memory in the order of a stream; what a capture allocates is its graph's.
pub(crate) fn alloc_async(stream: &Stream, bytes: usize) -> Reply<usize> {
    let captured = stream.enter()?;
    if bytes == 0 {
        return Ok(0);
    }
    if !captured {
        capture::forbid_unsafe()?;
    }
    let ptr = raw_alloc(stream.seat()?, bytes)?;
    if captured {
        capture::hold(stream, ptr)?;
    }
    Ok(ptr)
}

/// Gives memory back, device or managed, once all work of its device is done.
pub(crate) fn free(address: usize) -> Reply {
    if address == 0 {
        return Ok(());
    }
    match look_up(address)? {
        Place::Device { device, range } if range.start == address => {
            capture::forbid_unsafe()?;
            let device = &seat(device)?.device;
            device.settle_all().map_err(|error| value(&error))?;
            graph::release(address);
            // SAFETY: all work that may use it is done; that none follows is the caller's promise.
            unsafe { device.free_now(pointer(address)) }.map_err(|error| value(&error))
        }
        Place::Host { kind: HostKind::Managed, .. } => free_host(address, HostKind::Managed),
        _ => Err(Code::INVALID_VALUE),
    }
}

/// Gives device memory back in the order of a stream.
pub(crate) fn free_async(address: usize, stream: &Stream) -> Reply {
    let captured = stream.enter()?;
    if address == 0 {
        return Ok(());
    }
    let Place::Device { device, range } = look_up(address)? else {
        return Err(Code::INVALID_VALUE);
    };
    if range.start != address {
        return Err(Code::INVALID_VALUE);
    }
    if captured {
        // It stays with the graph, which every launch uses again.
        return match capture::holds(stream, address)? {
            true => Ok(()),
            false => Err(Code::INVALID_VALUE),
        };
    }
    graph::release(address);
    if device != stream.device_ordinal() {
        return free(address);
    }
    // SAFETY: that nothing uses it which the stream does not wait for is the caller's promise.
    unsafe { stream.device()?.free(pointer(address), stream.raw) }.map_err(|error| value(&error))
}

/// Host memory that devices can reach. Nothing for nothing.
pub(crate) fn alloc_host(device: usize, bytes: usize, kind: HostKind, flags: u32) -> Reply<usize> {
    capture::forbid_unsafe()?;
    if bytes == 0 {
        return Ok(0);
    }
    let layout = Layout::from_size_align(bytes, PAGE).map_err(|_| Code::OUT_OF_MEMORY)?;
    // SAFETY: the size is not zero.
    let ptr = NonNull::new(unsafe { alloc::alloc(layout) }).ok_or(Code::OUT_OF_MEMORY)?;
    let address = ptr.as_ptr().expose_provenance();
    let block = HostBlock { bytes, kind, flags, device, layout: Some(layout) };
    lock(&HOST).insert(address, block);
    Ok(address)
}

/// Gives host memory back that was allocated here, once all work that may use it is done.
pub(crate) fn free_host(address: usize, kind: HostKind) -> Reply {
    if address == 0 {
        return Ok(());
    }
    capture::forbid_unsafe()?;
    let is_it = |block: &HostBlock| block.kind == kind && block.layout.is_some();
    let device = lock(&HOST).get(&address).filter(|block| is_it(block)).map(|block| block.device);
    let device = device.ok_or(Code::INVALID_VALUE)?;
    seat(device)?.device.settle_all().map_err(|error| value(&error))?;
    let block = lock(&HOST).remove(&address).ok_or(Code::INVALID_VALUE)?;
    if let Some(layout) = block.layout {
        // SAFETY: allocated in `alloc_host` with this layout, and just taken out of the list.
        unsafe { alloc::dealloc(ptr::with_exposed_provenance_mut(address), layout) };
    }
    Ok(())
}

/// Makes memory of the program's known.
pub(crate) fn register(device: usize, address: usize, bytes: usize, flags: u32) -> Reply {
    capture::forbid_unsafe()?;
    let end = address.checked_add(bytes).filter(|_| address != 0 && bytes != 0);
    let end = end.ok_or(Code::INVALID_VALUE)?;
    let mut host = lock(&HOST);
    let before = host.range(..end).next_back();
    if before.is_some_and(|(&start, block)| start + block.bytes > address) {
        return Err(Code::HOST_MEMORY_ALREADY_REGISTERED);
    }
    let block = HostBlock { bytes, kind: HostKind::Registered, flags, device, layout: None };
    host.insert(address, block);
    Ok(())
}

/// Takes that back.
pub(crate) fn unregister(address: usize) -> Reply {
    capture::forbid_unsafe()?;
    let mut host = lock(&HOST);
    match host.get(&address) {
        Some(HostBlock { kind: HostKind::Registered, .. }) => {
            host.remove(&address);
            Ok(())
        }
        Some(_) => Err(Code::INVALID_VALUE),
        None => Err(Code::HOST_MEMORY_NOT_REGISTERED),
    }
}

/// Which side of a copy is said to be a device's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Direction {
    /// The addresses say it.
    Any,
    DeviceToDevice,
    DeviceToHost,
    HostToDevice,
    HostToHost,
}

impl Direction {
    /// `cudaMemcpyKind` and `hipMemcpyKind`.
    pub(crate) fn from_kind(kind: u32) -> Reply<Self> {
        match kind {
            0 => Ok(Self::HostToHost),
            1 => Ok(Self::HostToDevice),
            2 => Ok(Self::DeviceToHost),
            // And HIP's `hipMemcpyDeviceToDeviceNoCU`.
            3 | 1024 => Ok(Self::DeviceToDevice),
            4 => Ok(Self::Any),
            _ => Err(Code(INVALID_MEMCPY_DIRECTION)),
        }
    }
}

/// One copy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Copy {
    pub(crate) to: usize,
    pub(crate) from: usize,
    pub(crate) bytes: usize,
    pub(crate) direction: Direction,
}

impl Copy {
    /// What its ends are.
    fn places(&self) -> Reply<[Place; 2]> {
        if self.to == 0 || self.from == 0 {
            return Err(Code::INVALID_VALUE);
        }
        let (to, from) = (look_up(self.to)?, look_up(self.from)?);
        let (to_device, from_device) = match self.direction {
            Direction::Any | Direction::HostToHost => (false, false),
            Direction::DeviceToDevice => (true, true),
            Direction::DeviceToHost => (false, true),
            Direction::HostToDevice => (true, false),
        };
        if to_device && !to.is_known() || from_device && !from.is_known() {
            return Err(Code::INVALID_VALUE);
        }
        Ok([to, from])
    }

    /// Enqueues it; returns when the program may use pageable memory again.
    pub(crate) fn enqueue(self, stream: &Stream) -> Reply {
        let captured = stream.enter()?;
        if self.bytes == 0 {
            return Ok(());
        }
        let [to, from] = self.places()?;
        if captured {
            return self.raw(stream);
        }
        if to.is_pageable() {
            self.raw(stream)?;
            return stream.wait();
        }
        if !from.is_pageable() {
            return self.raw(stream);
        }
        let staging = Staging::new(stream, self.bytes)?;
        // SAFETY: the staging area is as long, and new; the source is the caller's promise.
        unsafe { pointer::<u8>(staging.address).copy_from(pointer(self.from), self.bytes) };
        let copied = Self { from: staging.address, ..self }.raw(stream);
        staging.end(stream)?;
        copied
    }

    /// Makes it in the order of the default stream. Returns when it is made, except between device
    /// memory, where CUDA does not wait either.
    pub(crate) fn make(self, stream: &Stream) -> Reply {
        stream.enter()?;
        if self.bytes == 0 {
            return Ok(());
        }
        let places = self.places()?;
        self.raw(stream)?;
        let of_device = |place: &Place| matches!(place, Place::Device { .. });
        if places.iter().all(of_device) { Ok(()) } else { stream.wait() }
    }

    fn raw(self, stream: &Stream) -> Reply {
        let (to, from) = (pointer(self.to), pointer::<c_void>(self.from));
        // SAFETY: that the ranges are valid and stay so is the caller's promise; those that the
        // engine knows it checks.
        unsafe { stream.device()?.copy_between(to, from, self.bytes, stream.raw) }
            .map_err(|error| value(&error))
    }
}

/// Enqueues filling memory with a value of 1, 2 or 4 bytes, `count` times.
pub(crate) fn fill(stream: &Stream, to: usize, pattern: &[u8], count: usize) -> Reply {
    let captured = stream.enter()?;
    if count == 0 {
        return Ok(());
    }
    if !to.is_multiple_of(pattern.len()) || !look_up(to)?.is_known() {
        return Err(Code::INVALID_VALUE);
    }
    let bytes = count.checked_mul(pattern.len()).ok_or(Code::INVALID_VALUE)?;
    let device = stream.device()?;
    if pattern.iter().all(|&byte| byte == pattern[0]) {
        // SAFETY: as in `Copy::raw`.
        return unsafe { device.memset(pointer(to), pattern[0], bytes, stream.raw) }
            .map_err(|error| value(&error));
    }
    let staging = Staging::new(stream, bytes)?;
    for offset in (0..bytes).step_by(pattern.len()) {
        let at = pointer::<u8>(staging.address + offset);
        // SAFETY: within the staging area, which is a multiple of the pattern.
        unsafe { at.copy_from(pattern.as_ptr(), pattern.len()) };
    }
    let copy = Copy { to, from: staging.address, bytes, direction: Direction::Any };
    let copied = copy.raw(stream);
    if captured {
        capture::hold(stream, staging.address)?;
        return copied;
    }
    staging.end(stream)?;
    copied
}

/// Memory that lives until the stream has passed what uses it.
struct Staging {
    address: usize,
}

impl Staging {
    fn new(stream: &Stream, bytes: usize) -> Reply<Self> {
        Ok(Self { address: raw_alloc(stream.seat()?, bytes)? })
    }

    fn end(self, stream: &Stream) -> Reply {
        // SAFETY: only what is enqueued on the stream uses it.
        unsafe { stream.device()?.free(pointer(self.address), stream.raw) }
            .map_err(|error| value(&error))
    }
}

/// Memory that a graph keeps.
pub(crate) struct Held {
    device: usize,
    state: Mutex<HeldState>,
}

#[derive(Default)]
struct HeldState {
    blocks: Vec<usize>,
    /// The stream of the last launch.
    last: Option<RawStream>,
}

impl Held {
    pub(crate) fn new(device: usize) -> Self {
        Self { device, state: Mutex::default() }
    }

    pub(crate) fn device(&self) -> usize {
        self.device
    }

    pub(crate) fn add(&self, block: usize) {
        lock(&self.state).blocks.push(block);
    }

    pub(crate) fn has(&self, block: usize) -> bool {
        lock(&self.state).blocks.contains(&block)
    }

    pub(crate) fn release(&self, block: usize) {
        lock(&self.state).blocks.retain(|&other| other != block);
    }

    /// A launch on `stream` uses it.
    pub(crate) fn note_use(&self, stream: RawStream) {
        lock(&self.state).last = Some(stream);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let HeldState { blocks, last } = std::mem::take(&mut *lock(&self.state));
        let Ok(seat) = seat(self.device) else { return };
        for block in blocks {
            // Where the stream is gone, so that nothing tells when the last run ends, it is leaked.
            let _leaked = match last {
                // SAFETY: runs of a graph follow one another, so the last one ends last.
                Some(stream) => unsafe { seat.device.free(pointer(block), stream) },
                // SAFETY: no run ever used it.
                None => unsafe { seat.device.free_now(pointer(block)) },
            };
        }
    }
}

/// A memory pool: where it allocates, and the numbers that programs leave with it.
pub(crate) struct Pool {
    pub(crate) device: usize,
    attributes: Mutex<BTreeMap<u32, u64>>,
}

static POOLS: Mutex<BTreeMap<usize, Arc<Pool>>> = Mutex::new(BTreeMap::new());
/// The pool that each device allocates from, where it is not its own.
static CHOSEN: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());

impl Pool {
    /// The handle of a device's own pool.
    pub(crate) fn of_device(device: usize) -> usize {
        let handle = POOL_TAG | device;
        lock(&POOLS).entry(handle).or_insert_with(|| Arc::new(Self::new(device)));
        handle
    }

    fn new(device: usize) -> Self {
        Self { device, attributes: Mutex::default() }
    }

    pub(crate) fn create(device: usize) -> usize {
        let mut pools = lock(&POOLS);
        // Device numbers end below that.
        let last = pools.last_key_value().map_or(0, |(&handle, _)| handle);
        let handle = last.max(POOL_TAG | 0xffff) + 1;
        pools.insert(handle, Arc::new(Self::new(device)));
        handle
    }

    /// Memory that came from it lives on.
    pub(crate) fn destroy(handle: usize) -> Reply {
        if handle & !0xffff == POOL_TAG {
            // A device's own.
            return Err(Code::INVALID_VALUE);
        }
        lock(&CHOSEN).retain(|_, chosen| *chosen != handle);
        lock(&POOLS).remove(&handle).map(drop).ok_or(Code::INVALID_VALUE)
    }

    pub(crate) fn find(handle: usize) -> Reply<Arc<Self>> {
        lock(&POOLS).get(&handle).map(Arc::clone).ok_or(Code::INVALID_VALUE)
    }

    /// The pool that a device allocates from.
    pub(crate) fn chosen(device: usize) -> usize {
        let chosen = lock(&CHOSEN).get(&device).copied();
        chosen.unwrap_or_else(|| Self::of_device(device))
    }

    pub(crate) fn choose(device: usize, handle: usize) -> Reply {
        Self::find(handle)?;
        lock(&CHOSEN).insert(device, handle);
        Ok(())
    }

    /// An attribute, and whether it is 8 bytes wide. The first three are C ints that are on.
    pub(crate) fn attribute(&self, attribute: u32) -> Reply<(u64, bool)> {
        let set = lock(&self.attributes).get(&attribute).copied();
        let is_wide = Self::is_wide(attribute)?;
        let (free, total) = seat(self.device)?.device.memory_info();
        Ok((
            match attribute {
                // Reserved and used, now and at most.
                5..=8 => set.unwrap_or((total - free) as u64),
                1..=3 => set.unwrap_or(1),
                _ => set.unwrap_or(0),
            },
            is_wide,
        ))
    }

    pub(crate) fn set_attribute(&self, attribute: u32, value: u64) -> Reply {
        match attribute {
            1..=4 => drop(lock(&self.attributes).insert(attribute, value)),
            // Watermarks can only be set back.
            6 | 8 if value == 0 => {}
            _ => return Err(Code::INVALID_VALUE),
        }
        Ok(())
    }

    pub(crate) fn is_wide(attribute: u32) -> Reply<bool> {
        match attribute {
            1..=3 => Ok(false),
            4..=8 => Ok(true),
            _ => Err(Code::INVALID_VALUE),
        }
    }
}

/// A pointer that programs made of a number, or the other way round.
pub(crate) fn pointer<T>(address: usize) -> *mut T {
    ptr::with_exposed_provenance_mut(address)
}

fn value(error: &Error) -> Code {
    Code::from_error(error, Code::INVALID_VALUE)
}

/// As wide as pages, which is what pinned memory is made of.
const PAGE: usize = 4096;
const POOL_TAG: usize = 0x0c77 << 48;
/// `cudaErrorInvalidMemcpyDirection`.
const INVALID_MEMCPY_DIRECTION: i32 = 21;
