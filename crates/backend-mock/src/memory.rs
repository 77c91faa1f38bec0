//! The memory of the fake devices: host memory, with a map that knows which device owns what.

use std::{
    alloc::{self, Layout},
    collections::BTreeMap,
    io,
    ops::Range,
    ptr::NonNull,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{mirror::Mirror, process::segment::Segment, sync::lock};

/// All allocations of one engine. Addresses are those that the program has; see
/// [`inner`](Self::inner).
pub(crate) struct Memory {
    map: Mutex<Map>,
    /// Where it lies if other processes are to reach it, or it can be taken from the program; else in
    /// this process's heap.
    segment: Option<Arc<Segment>>,
    /// How the program sees it, if it can be taken away.
    mirror: Option<Arc<Mirror>>,
    /// Changes with every allocation and every free, so that what was learned before can be cached.
    epoch: AtomicU64,
}

struct Map {
    /// By address.
    allocations: BTreeMap<usize, Allocation>,
    /// Bytes in use, by device.
    used: Vec<usize>,
    /// Bytes that each device has.
    capacity: usize,
}

/// One allocation.
pub(crate) struct Allocation {
    ptr: NonNull<u8>,
    layout: Layout,
    device: usize,
    /// The segment in which it lies, if it does, where, and how many bytes it takes there.
    segment: Option<(Arc<Segment>, u64, usize)>,
}

// SAFETY: owns its memory, like a box.
unsafe impl Send for Allocation {}

impl Drop for Allocation {
    fn drop(&mut self) {
        match &self.segment {
            Some((segment, offset, bytes)) => segment.free(*offset, *bytes),
            // SAFETY: allocated in `Memory::alloc` with this layout, and owned by `self` alone.
            None => unsafe { alloc::dealloc(self.ptr.as_ptr(), self.layout) },
        }
    }
}

/// What is wrong with a range of memory.
pub(crate) enum Misuse {
    /// It belongs to this other device.
    Foreign(usize),
    /// It runs past its allocation, of which this many bytes are left from its start on.
    PastEnd(usize),
    /// It starts in unknown memory and runs into an allocation.
    Straddles,
}

impl Memory {
    /// In a segment, if one is given.
    pub(crate) fn new(devices: usize, capacity: usize, segment: Option<Arc<Segment>>) -> Self {
        let map = Map { allocations: BTreeMap::new(), used: vec![0; devices], capacity };
        Self { map: Mutex::new(map), segment, mirror: None, epoch: AtomicU64::new(0) }
    }

    /// The same, where it can be taken from the program. Nothing is allocated yet.
    ///
    /// # Errors
    /// What the system has against it.
    pub(crate) fn make_mirror(&mut self) -> io::Result<()> {
        if cfg!(miri) {
            // There are neither signals nor memfds.
            return Err(io::ErrorKind::Unsupported.into());
        }
        let map = lock(&self.map);
        let segment = match &self.segment {
            Some(segment) => Arc::clone(segment),
            None => {
                let bytes = map.capacity.saturating_mul(map.used.len());
                Arc::new(Segment::new(bytes.saturating_add(PAGES))?)
            }
        };
        drop(map);
        self.mirror = Some(Arc::new(Mirror::of(&segment)?));
        self.segment = Some(segment);
        Ok(())
    }

    pub(crate) fn mirror(&self) -> Option<&Arc<Mirror>> {
        self.mirror.as_ref()
    }

    pub(crate) fn segment(&self) -> Option<&Arc<Segment>> {
        self.segment.as_ref()
    }

    /// Where the engine finds what is at an address of the program. Everything that the program names
    /// goes through here on its way in, so that all addresses inside are the engine's.
    pub(crate) fn inner(&self, at: *mut u8) -> *mut u8 {
        self.mirror.as_ref().map_or(at, |mirror| mirror.inner(at))
    }

    /// Allocates; `None` where the device or the host has not that much.
    pub(crate) fn alloc(&self, device: usize, bytes: usize) -> Option<NonNull<u8>> {
        // Zero bytes take one, so that every pointer is unique.
        let size = bytes.max(1);
        let align = if size >= HUGE_PAGE { HUGE_PAGE } else { ALIGNMENT };
        let layout = Layout::from_size_align(size, align).ok()?;
        let mut map = lock(&self.map);
        let used = map.used[device].checked_add(size).filter(|&used| used <= map.capacity)?;
        let (ptr, segment) = match &self.segment {
            Some(segment) => {
                // What is taken from the program are whole pages, which hold nothing else then.
                let page = self.mirror.as_ref().map_or(1, |mirror| mirror.page());
                let room = size.checked_next_multiple_of(page)?;
                let offset = segment.alloc(room, align.max(page))?;
                let inner = segment.base().wrapping_add(offset as usize);
                let ptr = self.mirror.as_ref().map_or(inner, |mirror| mirror.outer(inner));
                (NonNull::new(ptr)?, Some((Arc::clone(segment), offset, room)))
            }
            None => {
                // SAFETY: the size is not zero.
                let ptr = unsafe { alloc::alloc(layout) };
                (NonNull::new(ptr)?, None)
            }
        };
        map.used[device] = used;
        map.allocations.insert(ptr.addr().get(), Allocation { ptr, layout, device, segment });
        self.epoch.fetch_add(1, Ordering::Release);
        Some(ptr)
    }

    /// Takes an allocation out; dropping it frees the memory. `None` where `ptr` is not the start
    /// of one.
    pub(crate) fn take(&self, ptr: usize) -> Option<Allocation> {
        let mut map = lock(&self.map);
        let allocation = map.allocations.remove(&ptr)?;
        map.used[allocation.device] -= allocation.layout.size();
        self.epoch.fetch_add(1, Ordering::Release);
        Some(allocation)
    }

    /// The device on which an allocation starts at `ptr`.
    pub(crate) fn owner(&self, ptr: usize) -> Option<usize> {
        lock(&self.map).allocations.get(&ptr).map(|allocation| allocation.device)
    }

    /// Where the engine finds the allocation that starts at `ptr`; nowhere, where none does.
    pub(crate) fn extent(&self, ptr: usize) -> Range<usize> {
        let map = lock(&self.map);
        let Some(allocation) = map.allocations.get(&ptr) else { return ptr..ptr };
        let start = self.inner(allocation.ptr.as_ptr()).addr();
        start..start + allocation.layout.size()
    }

    /// The allocation that holds the byte at `ptr`: its device and where it lies.
    pub(crate) fn find(&self, ptr: usize) -> Option<(usize, Range<usize>)> {
        let map = lock(&self.map);
        let (&start, allocation) = map.allocations.range(..=ptr).next_back()?;
        let range = start..start + allocation.layout.size();
        range.contains(&ptr).then_some((allocation.device, range))
    }

    /// Bytes of a device that are allocated, and all it has.
    pub(crate) fn usage(&self, device: usize) -> (usize, usize) {
        let map = lock(&self.map);
        (map.used[device], map.capacity)
    }

    /// A number that changes when the map does.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Checks that `bytes` at `start` may be used by `device` (any device, where `None`). The answer
    /// is the whole stretch of memory of which the same is known: the allocation, or, for memory
    /// that the engine does not know, the gap between two allocations.
    pub(crate) fn check(
        &self,
        device: Option<usize>,
        start: usize,
        bytes: usize,
    ) -> Result<Range<usize>, Misuse> {
        let map = lock(&self.map);
        let end = start.saturating_add(bytes);
        let before = map.allocations.range(..=start).next_back();
        let mut gap_start = 0;
        if let Some((&base, allocation)) = before {
            let stop = base + allocation.layout.size();
            if start < stop {
                if device.is_some_and(|device| device != allocation.device) {
                    return Err(Misuse::Foreign(allocation.device));
                }
                if end > stop {
                    return Err(Misuse::PastEnd(stop - start));
                }
                return Ok(base..stop);
            }
            gap_start = stop;
        }
        let after = map.allocations.range(start.saturating_add(1)..).next();
        let gap_end = after.map_or(usize::MAX, |(&base, _)| base);
        if end > gap_end { Err(Misuse::Straddles) } else { Ok(gap_start..gap_end) }
    }
}

/// What CUDA promises of its allocations.
const ALIGNMENT: usize = 256;

/// Address space for what allocations waste that take whole pages.
pub(crate) const PAGES: usize = 1 << 30;

/// Large allocations start at a huge page, where the system has them.
const HUGE_PAGE: usize = 2 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_known_by_device_and_end() {
        let memory = Memory::new(2, 1 << 20, None);
        let ptr = memory.alloc(1, 1000).unwrap().addr().get();
        assert_eq!(ptr % ALIGNMENT, 0);
        assert!(
            matches!(memory.check(Some(1), ptr + 8, 992), Ok(range) if range == (ptr..ptr + 1000))
        );
        assert!(matches!(memory.check(Some(0), ptr, 8), Err(Misuse::Foreign(1))));
        assert!(matches!(memory.check(None, ptr + 8, 993), Err(Misuse::PastEnd(992))));
        assert!(matches!(memory.check(Some(1), ptr - 4, 8), Err(Misuse::Straddles)));
        assert!(memory.check(Some(0), ptr + 1000, 8).is_ok());
        let before = memory.epoch();
        drop(memory.take(ptr).unwrap());
        assert_ne!(memory.epoch(), before);
        assert!(memory.take(ptr).is_none());
    }

    #[test]
    fn a_device_runs_out_on_its_own() {
        let memory = Memory::new(2, 1000, None);
        let ptr = memory.alloc(0, 600).unwrap();
        assert!(memory.alloc(0, 600).is_none());
        let other = memory.alloc(1, 600).unwrap();
        for ptr in [ptr, other] {
            memory.take(ptr.addr().get());
        }
        assert!(memory.alloc(0, 1001).is_none());
        let empty = memory.alloc(0, 0).unwrap();
        assert!(memory.take(empty.addr().get()).is_some());
    }
}
