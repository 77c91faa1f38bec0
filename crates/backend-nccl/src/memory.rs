//! A caching allocator over `cuMemAlloc`.
//!
//! 1. Sizes are rounded up to classes, four for each doubling, so that blocks fit many requests and
//!    at most a fifth of one is unused.
//! 2. A freed block goes to the list of its class with an event, recorded on the stream of its last
//!    user. Once the event is reached the block is anybody's, on every stream.
//! 3. Only where the driver has no memory left are unused blocks given back to it. `cuMemFree`
//!    waits for all work of the device; in a process with several ranks that can be a collective
//!    whose other half is to be launched by the very thread that waits. Better this than no memory.
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
use cudarc::driver::sys::{self, CUresult};

use crate::{
    device::Context,
    driver::{check, error, refuse},
    stream::RelaxedCapture,
};

/// The memory of one device.
pub(crate) struct Memory(Mutex<Cache>);

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
    pub(crate) fn new() -> Self {
        Self(Mutex::default())
    }

    /// An event that nobody else uses, until it is given back. The device is current.
    pub(crate) fn event(&self, context: &Context) -> Result<RawEvent> {
        let kept = self.cache().events.pop();
        kept.map_or_else(|| context.event_create(), Ok)
    }

    pub(crate) fn keep_event(&self, event: RawEvent) {
        self.cache().events.push(event);
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        // Each change is one insert or remove, so a panic in another thread leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Context {
    /// See `collectives_core::Device::alloc`. The device is current.
    pub(crate) fn alloc(&self, bytes: usize) -> Result<*mut c_void> {
        let Some(class) = class_of(bytes) else {
            return Err(self.no_memory(bytes));
        };
        let address = match self.take(class)? {
            Some(address) => address,
            None => match raw_alloc(class)? {
                Some(address) => address,
                None => {
                    self.give_back()?;
                    raw_alloc(class)?.ok_or_else(|| self.no_memory(bytes))?
                }
            },
        };
        self.memory.cache().used.insert(address, class);
        Ok(ptr::with_exposed_provenance_mut(address))
    }

    /// See `collectives_core::Device::free`. The device is current.
    ///
    /// # Safety
    /// See `collectives_core::Device::free`.
    pub(crate) unsafe fn free(&self, ptr: *mut c_void, after: RawStream) -> Result<()> {
        const OPERATION: &str = "free";
        // SAFETY: the caller's promise.
        if unsafe { self.is_capturing(after) }? {
            let message = "the stream is being captured, so nothing tells when memory is unused";
            return Err(refuse(ErrorKind::InvalidUsage, OPERATION, message)
                .with_hint("free the memory after the capture; it stays allocated"));
        }
        let Some(class) = self.memory.cache().used.remove(&ptr.addr()) else {
            let message = format!("{ptr:p} is not allocated on device {}", self.ordinal());
            return Err(refuse(ErrorKind::InvalidArgument, OPERATION, message)
                .with_hint("free what alloc of this device returned, once"));
        };
        let recorded = self.memory.event(self).and_then(|event| {
            // SAFETY: an event of this device; the stream is the caller's promise.
            unsafe { self.record(event, after) }.map(|()| event)
        });
        let mut cache = self.memory.cache();
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

    /// A cached block of this class that is unused. Looks at a few only: blocks of one stream
    /// become unused in the order in which they were freed.
    fn take(&self, class: usize) -> Result<Option<usize>> {
        let mut cache = self.memory.cache();
        let Some(blocks) = cache.freed.get_mut(&class) else { return Ok(None) };
        for index in 0..blocks.len().min(LOOK_AT) {
            // SAFETY: an event of this device, which the block owns.
            if unsafe { self.query(blocks[index].freed) }? {
                let block = blocks.remove(index);
                cache.events.extend(block.as_ref().map(|block| block.freed));
                return Ok(block.map(|block| block.address));
            }
        }
        Ok(None)
    }

    /// Gives the blocks that are unused back to the driver: all of them, also where it refuses
    /// one, and then the first failure is returned.
    fn give_back(&self) -> Result<()> {
        // First of all, as from the list on the addresses are nowhere else.
        let _relaxed = RelaxedCapture::enter()?;
        let mut cache = self.memory.cache();
        let Cache { freed, events, .. } = &mut *cache;
        let mut unused = Vec::new();
        for blocks in freed.values_mut() {
            blocks.retain(|block| {
                // SAFETY: an event of this device, which the block owns.
                let passed = unsafe { self.query(block.freed) }.unwrap_or(false);
                if passed {
                    events.push(block.freed);
                    unused.push(block.address);
                }
                !passed
            });
        }
        drop(cache);
        tracing::debug!(device = self.ordinal(), blocks = unused.len(), "giving memory back");
        let mut outcome = Ok(());
        for address in unused {
            // SAFETY: the block is in no list any more, and its last user has passed.
            let freed = check("free", unsafe { sys::cuMemFree_v2(address as sys::CUdeviceptr) });
            outcome = outcome.and(freed);
        }
        outcome
    }

    #[cold]
    fn no_memory(&self, bytes: usize) -> Error {
        let cached: usize = {
            let cache = self.memory.cache();
            cache.freed.iter().map(|(class, blocks)| class * blocks.len()).sum()
        };
        let left = match self.memory_info() {
            Ok((free, total)) => format!("{free} of {total} are free"),
            Err(error) => error.to_string(),
        };
        let message = format!(
            "no {bytes} bytes of memory on device {}: {left}, {cached} wait for work that uses them",
            self.ordinal()
        );
        refuse(ErrorKind::OutOfMemory, "alloc", message)
    }
}

/// Asks the driver; `None` where it has no memory left.
fn raw_alloc(bytes: usize) -> Result<Option<usize>> {
    let _relaxed = RelaxedCapture::enter()?;
    let mut block = 0;
    // SAFETY: a device is current; `block` outlives the call.
    match unsafe { sys::cuMemAlloc_v2(&mut block, bytes) } {
        CUresult::CUDA_SUCCESS => Ok(usize::try_from(block).ok()),
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => Ok(None),
        failure => Err(error("alloc", failure)),
    }
}

/// The size of the block that serves a request: four classes for each doubling, at least 512 bytes.
/// `None` for what fits into no address space.
fn class_of(bytes: usize) -> Option<usize> {
    let bytes = bytes.max(SMALLEST);
    let step = 1_usize << (bytes.ilog2() - 2);
    bytes.checked_next_multiple_of(step).filter(|&class| class <= isize::MAX as usize)
}

/// The driver's own granularity is finer, but not useful: see `class_of`.
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
