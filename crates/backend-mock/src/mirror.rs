//! Device memory as the program sees it, where that can be taken from it.
//!
//! The memory is mapped twice. The engine works in one mapping, which is always open. The addresses
//! that the program has are in the other, the *mirror*, whose pages are closed while operations have them.
//! An address of the program is made one of the engine where its call comes in
//! ([`Memory::inner`](crate::memory::Memory::inner)), and back where a message shows it; in between there
//! are none.

use std::{ffi::c_void, io, ops::Range, sync::Arc};

use rustix::{
    mm::{Advice, MprotectFlags, mprotect},
    param::page_size,
};

pub(crate) use crate::trap::in_order;
use crate::{
    process::{segment::Segment, shared::Shared},
    trap::{Spot, Touch},
    veil::Open,
};

/// A second mapping of a segment.
pub(crate) struct Mirror {
    inner: Arc<Shared>,
    outer: Shared,
    page: usize,
    spot: &'static Spot,
}

impl Mirror {
    /// # Errors
    /// Where the system allows no such mapping, or no signal handler.
    pub(crate) fn of(segment: &Segment) -> io::Result<Self> {
        let inner = Arc::clone(segment.memory());
        let outer = Shared::map(segment.fd(), inner.bytes())?;
        outer.advise(Advice::LinuxDontDump);
        let start = outer.base().expose_provenance();
        let spot = Spot::watch(start, outer.bytes())?;
        Ok(Self { inner, outer, page: page_size(), spot })
    }

    /// Bytes of a page.
    pub(crate) fn page(&self) -> usize {
        self.page
    }

    /// The engine's address of what is at an address of the program. Others are left as they are.
    pub(crate) fn inner(&self, at: *mut u8) -> *mut u8 {
        across(at, &self.outer, &self.inner)
    }

    /// The program's address of what is at one of the engine.
    pub(crate) fn outer(&self, at: *mut u8) -> *mut u8 {
        across(at, &self.inner, &self.outer)
    }

    /// The pages under a range of engine addresses. `None` where it is other memory.
    pub(crate) fn pages(&self, range: &Range<usize>) -> Option<Range<usize>> {
        let start = self.inner.base().addr();
        let memory = start..start + self.inner.bytes();
        let is_inside = memory.start <= range.start && range.end <= memory.end;
        let end = range.end.next_multiple_of(self.page);
        is_inside.then(|| range.start - range.start % self.page..end)
    }

    /// Says what the program may do with pages of [`pages`](Self::pages).
    pub(crate) fn set(&self, pages: &Range<usize>, open: Open) -> io::Result<()> {
        let offset = pages.start - self.inner.base().addr();
        self.protect(offset, pages.len(), open)
    }

    /// Gives the program all of it.
    pub(crate) fn open_all(&self) -> io::Result<()> {
        self.protect(0, self.outer.bytes(), Open::ReadWrite)
    }

    fn protect(&self, offset: usize, bytes: usize, open: Open) -> io::Result<()> {
        let flags = match open {
            Open::No => MprotectFlags::empty(),
            Open::Read => MprotectFlags::READ,
            Open::ReadWrite => MprotectFlags::READ | MprotectFlags::WRITE,
        };
        let start = self.outer.base().wrapping_add(offset).cast::<c_void>();
        // SAFETY: whole pages of the mirror, which only the program uses: an access that is not allowed
        // comes to the handler.
        Ok(unsafe { mprotect(start, bytes, flags) }?)
    }

    /// See [`Spot::note_taking`].
    pub(crate) fn note_taking(&self) -> u64 {
        self.spot.note_taking()
    }

    /// Whether the program has touched what was closed.
    #[inline]
    pub(crate) fn has_news(&self) -> bool {
        self.spot.has_news()
    }

    /// Where it did, in engine addresses; see [`Spot::take`].
    pub(crate) fn take_touches(&self) -> (Vec<Touch>, bool) {
        let (mut touches, lost) = self.spot.take();
        let (outer, inner) = (self.outer.base().addr(), self.inner.base().addr());
        for touch in &mut touches {
            touch.address = touch.address.wrapping_sub(outer).wrapping_add(inner);
        }
        (touches, lost)
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.spot.forget();
    }
}

/// Mappings that a guard may add: a quarter of what the system allows, so that the program has the rest.
pub(crate) fn most_mappings() -> usize {
    let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count");
    let limit = limit.ok().and_then(|text| text.trim().parse().ok());
    limit.unwrap_or(65_530_usize) / 4
}

/// What is at the same offset in another mapping.
fn across(at: *mut u8, from: &Shared, to: &Shared) -> *mut u8 {
    let offset = at.addr().wrapping_sub(from.base().addr());
    if offset < from.bytes() { to.base().wrapping_add(offset) } else { at }
}
