//! A process's device memory, where every peer can reach it.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
};

use range_alloc::RangeAllocator;
use rustix::{
    fs::{self, FallocateFlags},
    io::Errno,
    mm::Advice,
};

use super::shared::{HUGE_PAGE, Shared};
use crate::sync::lock;

/// One sparse memfd, mapped once here and once in every peer, out of which ranges are handed out. So
/// an address in it is an offset, the same in all processes.
pub(crate) struct Segment {
    memory: Arc<Shared>,
    fd: OwnedFd,
    /// Bytes that it should have had.
    wanted: usize,
    ranges: Mutex<RangeAllocator<u64>>,
}

impl Segment {
    /// Makes a segment of `bytes`, rounded up to huge pages. No page is taken before it is touched.
    /// Where the system allows no mapping of that size, half of it is tried, and so on; see
    /// [`shortage`](Self::shortage).
    pub(crate) fn new(bytes: usize) -> io::Result<Self> {
        let round_up = |bytes: usize| bytes.max(1).checked_next_multiple_of(HUGE_PAGE);
        let wanted = round_up(bytes).ok_or(Errno::NOMEM)?;
        let mut size = wanted;
        let (memory, fd) = loop {
            let error = match Shared::create("collectives-device-memory", size) {
                Ok(made) => break made,
                Err(error) => error,
            };
            let too_large = [Errno::NOMEM, Errno::FBIG].map(Errno::raw_os_error);
            if size <= HUGE_PAGE
                || !too_large.iter().any(|&code| error.raw_os_error() == Some(code))
            {
                return Err(error);
            }
            size = round_up(size / 2).ok_or(Errno::NOMEM)?;
        };
        prepare(&memory);
        let ranges = Mutex::new(RangeAllocator::new(0..size as u64));
        Ok(Self { memory: Arc::new(memory), fd, wanted, ranges })
    }

    /// Hands out a range that nobody else has, with what was there before in it, and answers where it
    /// starts. Zero bytes get a place of their own too. Ranges are aligned to `align` (a power of
    /// two), at least to 256 bytes, and to huge pages where they are as large. `None` where there is
    /// no such range left.
    pub(crate) fn alloc(&self, bytes: usize, align: usize) -> Option<u64> {
        let length = length(bytes)?;
        let natural = if length >= HUGE_PAGE as u64 { HUGE_PAGE } else { GRANULE };
        let align = natural.max(align) as u64;
        let range = lock(&self.ranges).allocate_range_aligned(length, align).ok()?;
        Some(range.start)
    }

    /// Takes back the range that [`alloc`](Self::alloc) handed out for so many bytes. The pages of a
    /// large one go back to the system.
    pub(crate) fn free(&self, offset: u64, bytes: usize) {
        let Some(length) = length(bytes) else { return };
        if length >= HUGE_PAGE as u64 {
            // Before somebody else gets the range.
            let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            if let Err(error) = fs::fallocate(&self.fd, mode, offset, length) {
                tracing::debug!(%error, offset, length, "freed device memory stays in use");
            }
        }
        lock(&self.ranges).free_range(offset..offset + length);
    }

    /// Where it is mapped here.
    pub(crate) fn base(&self) -> *mut u8 {
        self.memory.base()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.memory.bytes()
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    pub(crate) fn memory(&self) -> &Arc<Shared> {
        &self.memory
    }

    /// Why it is smaller than it should be, where it is: to be said where it runs out.
    pub(crate) fn shortage(&self) -> Option<String> {
        let (has, wanted) = (self.bytes(), self.wanted);
        (has < wanted).then(|| {
            format!(
                "the system let the process map {} MiB of the {} MiB of device memory; see \
                 ulimit -v and ulimit -f, or ask for less",
                has >> 20,
                wanted >> 20
            )
        })
    }
}

/// What is to be known of every mapping of a segment, one's own and a peer's.
pub(crate) fn prepare(memory: &Shared) {
    memory.advise(Advice::LinuxHugepage);
    // A dump would look at every page of all peers' segments, while the peers wait for the end.
    memory.advise(Advice::LinuxDontDump);
}

/// Bytes that an allocation takes.
fn length(bytes: usize) -> Option<u64> {
    bytes.max(1).checked_next_multiple_of(GRANULE).map(|bytes| bytes as u64)
}

/// What CUDA promises of its allocations.
const GRANULE: usize = 256;
#[cfg(all(test, not(miri)))] // Miri has no memfd
mod tests {
    use super::*;

    #[test]
    fn ranges_are_apart_and_aligned() {
        let segment = Segment::new(16 << 20).unwrap();
        let small = segment.alloc(1, 1).unwrap();
        let (empty, other) = (segment.alloc(0, 1).unwrap(), segment.alloc(0, 1).unwrap());
        let large = segment.alloc(HUGE_PAGE, 1).unwrap();
        let page = segment.alloc(300, 4096).unwrap();
        let mut starts = [small, empty, other, large, page];
        assert!(starts.iter().all(|start| start % 256 == 0), "{starts:?}");
        assert_eq!((large % HUGE_PAGE as u64, page % 4096), (0, 0));
        starts.sort_unstable();
        assert!(starts.windows(2).all(|pair| pair[0] < pair[1]), "{starts:?}");
        assert!(large.abs_diff(page) >= 512);
    }

    #[test]
    fn what_is_freed_can_be_had_again() {
        let segment = Segment::new(4 << 20).unwrap();
        assert_eq!(segment.shortage(), None);
        let all = segment.alloc(4 << 20, 1).unwrap();
        assert_eq!(segment.alloc(0, 1), None);
        segment.free(all, 4 << 20);
        assert_eq!(segment.alloc(4 << 20, 1), Some(all));
        assert_eq!(segment.alloc(usize::MAX, 1), None);
    }

    #[test]
    fn freed_pages_go_back() {
        let segment = Segment::new(64 << 20).unwrap();
        let blocks = || fs::fstat(segment.fd()).unwrap().st_blocks;
        let bytes = 8 << 20;
        let offset = segment.alloc(bytes, 1).unwrap();
        assert_eq!(blocks(), 0, "nothing is taken before it is touched");
        let start = segment.base().wrapping_add(offset as usize);
        // SAFETY: the range was handed out, and lies within the mapping.
        unsafe { start.write_bytes(1, bytes) };
        assert_eq!(blocks(), (bytes / 512) as i64);
        segment.free(offset, bytes);
        assert_eq!(blocks(), 0);
    }

    #[test]
    fn a_world_of_memory_fits() {
        // Now and then another thread takes the place.
        let base = || Segment::new(128 << 30).unwrap().base().addr();
        assert!((0..10).any(|_| base().is_multiple_of(HUGE_PAGE)));
        let segment = Segment::new(128 << 30).unwrap();
        assert!(segment.bytes() == 128 << 30 || segment.shortage().is_some());
    }
}
