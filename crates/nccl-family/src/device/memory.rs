//! A caching allocator over `cuMemAlloc` and `hipMalloc`.
//!
//! 1. Sizes are rounded up to classes, four for each doubling, so that blocks fit many requests and
//!    at most a fifth of one is unused.
//! 2. A freed block goes to the list of its class with an event, recorded on the stream of its last
//!    user. Once the event is reached the block is anybody's, on every stream.
//! 3. Only where the runtime has no memory left are unused blocks given back to it. `cuMemFree` and
//!    `hipFree` wait for all work of the device; in a process with several ranks that can be a
//!    collective whose other half is to be launched by the very thread that waits. Better this than
//!    no memory.
//!
//! What was tried and given up: `cuMemAllocAsync`. It does all this, but NCCL's direct transfers
//! then fail or copy twice, as memory of a pool is not open to peers.

use std::{
    collections::{HashMap, VecDeque},
    ffi::c_void,
    ptr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use collectives_core::{Error, ErrorKind, RawEvent, RawStream, Result};

use super::{RawDevice, refuse};

/// The memory of one device that was opened, and events for anybody's short use.
pub struct Memory(Mutex<Cache>);

#[derive(Default)]
struct Cache {
    /// Class of each block that is in use, by address.
    used: HashMap<usize, usize>,
    /// Blocks that were freed, by class, the oldest first.
    freed: HashMap<usize, VecDeque<Block>>,
    /// Events that nobody needs at the moment.
    events: Vec<RawEvent>,
}

/// A block that was freed, and is unused once the event is reached.
struct Block {
    address: usize,
    freed: RawEvent,
}

impl Memory {
    /// Nothing yet.
    pub fn new() -> Self {
        Self(Mutex::default())
    }

    /// An event that nobody else uses, until it is given back.
    pub(super) fn event<D: RawDevice>(&self, device: &D) -> Result<RawEvent> {
        let kept = self.cache().events.pop();
        kept.map_or_else(|| device.event_create(), Ok)
    }

    pub(super) fn keep_event(&self, event: RawEvent) {
        self.cache().events.push(event);
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        // Each change is one insert or remove, so a panic in another thread leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

/// Does what `collectives_core::Device::alloc` promises: takes a cached block whose last user has
/// passed, else asks the runtime; where that has no memory left, gives unused blocks back and asks
/// again.
///
/// # Errors
/// [`OutOfMemory`](ErrorKind::OutOfMemory), with what is free and what waits; what the runtime
/// reports.
pub fn alloc<D: RawDevice>(device: &D, bytes: usize) -> Result<*mut c_void> {
    let Some(class) = class_of(bytes) else {
        return Err(no_memory(device, bytes));
    };
    let address = match take(device, class)? {
        Some(address) => address,
        None => match device.raw_alloc(class)? {
            Some(address) => address,
            None => {
                give_back(device)?;
                device.raw_alloc(class)?.ok_or_else(|| no_memory(device, bytes))?
            }
        },
    };
    device.memory().cache().used.insert(address, class);
    Ok(ptr::with_exposed_provenance_mut(address))
}

/// Does what `collectives_core::Device::free` promises: puts the block into the cache, with an event
/// on `after`.
///
/// # Safety
/// See `collectives_core::Device::free`.
///
/// # Errors
/// [`InvalidUsage`](ErrorKind::InvalidUsage) where `after` is being captured, as nothing then tells
/// when the memory is unused; [`InvalidArgument`](ErrorKind::InvalidArgument) for memory that is not
/// of [`alloc`]; what the runtime reports. The block stays allocated.
pub unsafe fn free<D: RawDevice>(device: &D, ptr: *mut c_void, after: RawStream) -> Result<()> {
    const OPERATION: &str = "free";
    // SAFETY: the caller's promise.
    if unsafe { device.is_capturing(after) }? {
        let message = "the stream is being captured, so nothing tells when memory is unused";
        return Err(refuse::<D>(ErrorKind::InvalidUsage, OPERATION, message)
            .with_hint("free the memory after the capture; it stays allocated"));
    }
    let memory = device.memory();
    let Some(class) = memory.cache().used.remove(&ptr.addr()) else {
        let message = format!("{ptr:p} is not allocated on device {}", device.ordinal());
        return Err(refuse::<D>(ErrorKind::InvalidArgument, OPERATION, message)
            .with_hint("free what alloc of this device returned, once"));
    };
    let recorded = memory.event(device).and_then(|event| {
        // SAFETY: an event of this device; the stream is the caller's promise.
        unsafe { device.record(event, after) }.map(|()| event)
    });
    let mut cache = memory.cache();
    match recorded {
        Ok(freed) => {
            let block = Block { address: ptr.addr(), freed };
            cache.freed.entry(class).or_default().push_back(block);
            Ok(())
        }
        Err(error) => {
            cache.used.insert(ptr.addr(), class);
            Err(error.with_operation(OPERATION))
        }
    }
}

/// A cached block of this class that is unused. Looks at a few only: blocks of one stream become
/// unused in the order in which they were freed.
fn take<D: RawDevice>(device: &D, class: usize) -> Result<Option<usize>> {
    let mut cache = device.memory().cache();
    let Some(blocks) = cache.freed.get_mut(&class) else { return Ok(None) };
    for index in 0..blocks.len().min(LOOK_AT) {
        // SAFETY: an event of this device, which the block owns.
        if unsafe { device.query(blocks[index].freed) }? {
            let block = blocks.remove(index);
            cache.events.extend(block.as_ref().map(|block| block.freed));
            return Ok(block.map(|block| block.address));
        }
    }
    Ok(None)
}

/// Gives the blocks that are unused back to the runtime: all of them, also where it refuses one, and
/// then the first failure is returned.
fn give_back<D: RawDevice>(device: &D) -> Result<()> {
    let mut cache = device.memory().cache();
    let Cache { freed, events, .. } = &mut *cache;
    let mut unused = Vec::new();
    for blocks in freed.values_mut() {
        blocks.retain(|block| {
            // SAFETY: an event of this device, which the block owns.
            let passed = unsafe { device.query(block.freed) }.unwrap_or(false);
            if passed {
                events.push(block.freed);
                unused.push(block.address);
            }
            !passed
        });
    }
    drop(cache);
    tracing::debug!(device = device.ordinal(), blocks = unused.len(), "giving memory back");
    // SAFETY: the blocks are in no list any more, and their last users have passed.
    unsafe { device.raw_free(&unused) }
}

#[cold]
fn no_memory<D: RawDevice>(device: &D, bytes: usize) -> Error {
    let cached: usize = {
        let cache = device.memory().cache();
        cache.freed.iter().map(|(class, blocks)| class * blocks.len()).sum()
    };
    let left = match device.memory_info() {
        Ok((free, total)) => format!("{free} of {total} are free"),
        Err(error) => error.to_string(),
    };
    let message = format!(
        "no {bytes} bytes of memory on device {}: {left}, {cached} wait for work that uses them",
        device.ordinal()
    );
    refuse::<D>(ErrorKind::OutOfMemory, "alloc", message)
}

/// The size of the block that serves a request: four classes for each doubling, at least 512 bytes.
/// `None` for what fits into no address space.
fn class_of(bytes: usize) -> Option<usize> {
    let bytes = bytes.max(SMALLEST);
    let step = 1_usize << (bytes.ilog2() - 2);
    bytes.checked_next_multiple_of(step).filter(|&class| class <= isize::MAX as usize)
}

/// The runtimes' own granularity is finer, but not useful: see `class_of`.
const SMALLEST: usize = 512;
const LOOK_AT: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_few_and_waste_little() {
        assert_eq!(class_of(0), Some(512));
        assert_eq!(class_of(512), Some(512));
        assert_eq!(class_of(513), Some(640));
        assert_eq!(class_of(1 << 20), Some(1 << 20));
        assert_eq!(class_of((1 << 20) + 1), Some((1 << 20) + (1 << 18)));
        assert_eq!(class_of(usize::MAX), None);
        for bytes in (513..1 << 22).step_by(777) {
            let class = class_of(bytes).expect("it fits");
            assert!(class >= bytes && class - bytes <= bytes / 4, "{bytes} in {class}");
            assert_eq!(class % 128, 0, "{class}");
            assert_eq!(class_of(class), Some(class), "a class is its own");
        }
    }
}
