//! Which parts of a heap are in use: plain numbers, the same on all ranks.

use std::collections::BTreeMap;

/// The book of a heap. What it answers depends on nothing but the calls made before, in their order.
#[derive(Debug)]
pub(super) struct Arena {
    ranks: usize,
    spaces: Vec<Space>,
    /// By their numbers, which are never used again.
    blocks: BTreeMap<u64, Block>,
    next: u64,
}

/// A segment.
#[derive(Debug)]
struct Space {
    bytes: usize,
    /// The gaps: their starts and lengths. No two of them touch.
    free: BTreeMap<usize, usize>,
}

#[derive(Debug)]
struct Block {
    place: Place,
    bytes: usize,
    /// By rank: whether it has given it up.
    freed: Box<[bool]>,
}

/// Where something lies in a heap.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Place {
    pub(super) segment: usize,
    pub(super) offset: usize,
}

impl Arena {
    pub(super) const fn new(ranks: usize) -> Self {
        Self { ranks, spaces: Vec::new(), blocks: BTreeMap::new(), next: 0 }
    }

    /// What a block takes for so many bytes: at least something, so that no two start at one place.
    pub(super) const fn rounded(bytes: usize) -> Option<usize> {
        let bytes = if bytes == 0 { 1 } else { bytes };
        bytes.checked_next_multiple_of(ALIGNMENT)
    }

    /// A new segment, all of it free.
    pub(super) fn add_space(&mut self, bytes: usize) {
        self.spaces.push(Space { bytes, free: BTreeMap::from([(0, bytes)]) });
    }

    /// The first gap that has room: in the oldest segment, at the lowest offset.
    pub(super) fn find(&self, bytes: usize) -> Option<Place> {
        self.spaces.iter().enumerate().find_map(|(segment, space)| {
            let (&offset, _) = space.free.iter().find(|&(_, &length)| length >= bytes)?;
            Some(Place { segment, offset })
        })
    }

    /// Takes `bytes`, rounded, from the start of a gap.
    pub(super) fn take(&mut self, place: Place, bytes: usize) -> u64 {
        let free = &mut self.spaces[place.segment].free;
        if let Some(left) = free.remove(&place.offset).map(|length| length - bytes)
            && left > 0
        {
            free.insert(place.offset + bytes, left);
        }
        let number = self.next;
        self.next += 1;
        let freed = vec![false; self.ranks].into();
        self.blocks.insert(number, Block { place, bytes, freed });
        number
    }

    /// A rank has given up a block: if it was the last of them, its place is free.
    pub(super) fn give_up(&mut self, rank: usize, number: u64) {
        let Some(block) = self.blocks.get_mut(&number) else { return };
        block.freed[rank] = true;
        if block.freed.iter().all(|&freed| freed) {
            self.reclaim(number);
        }
    }

    /// Frees the place of a block, whoever has given it up.
    pub(super) fn reclaim(&mut self, number: u64) {
        let Some(Block { place, bytes, .. }) = self.blocks.remove(&number) else { return };
        let free = &mut self.spaces[place.segment].free;
        let (mut start, mut length) = (place.offset, bytes);
        if let Some(behind) = free.remove(&(start + length)) {
            length += behind;
        }
        if let Some((&before, &gap)) = free.range(..start).next_back()
            && before + gap == start
        {
            (start, length) = (before, length + gap);
        }
        free.insert(start, length);
    }

    /// Bytes of all segments.
    pub(super) fn bytes(&self) -> usize {
        self.spaces.iter().map(|space| space.bytes).sum()
    }

    /// Bytes of blocks that some rank has not given up.
    pub(super) fn used(&self) -> usize {
        self.blocks.values().map(|block| block.bytes).sum()
    }

    /// How large a new segment is that has to hold `bytes`.
    pub(super) fn growth(&self, bytes: usize) -> Option<usize> {
        bytes.max(self.bytes() / 2).max(1).checked_next_multiple_of(GRANULE)
    }
}

/// Blocks start at multiples of so many bytes: NCCL's symmetric kernels want 16, its counted writes 256.
const ALIGNMENT: usize = 256;
/// Segments are multiples of so many bytes: the pages of device memory.
const GRANULE: usize = 2 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn place(segment: usize, offset: usize) -> Place {
        Place { segment, offset }
    }

    /// Takes a block where there is room.
    fn take(arena: &mut Arena, bytes: usize) -> (u64, Place) {
        let bytes = Arena::rounded(bytes).expect("a small number");
        let place = arena.find(bytes).expect("there is room");
        (arena.take(place, bytes), place)
    }

    #[test]
    fn blocks_lie_behind_one_another_and_aligned() {
        let mut arena = Arena::new(1);
        arena.add_space(4096);
        let places = [1, 256, 257, 0, 8].map(|bytes| take(&mut arena, bytes).1);
        assert_eq!(places, [0, 256, 512, 1024, 1280].map(|offset| place(0, offset)));
        assert_eq!((arena.bytes(), arena.used()), (4096, 1536));
        assert_eq!(Arena::rounded(usize::MAX), None);
    }

    #[test]
    fn a_place_is_free_when_all_ranks_have_given_it_up() {
        let mut arena = Arena::new(3);
        arena.add_space(256);
        let (number, _) = take(&mut arena, 256);
        for rank in [2, 0] {
            arena.give_up(rank, number);
            arena.give_up(rank, number);
            assert_eq!(arena.find(256), None);
        }
        arena.give_up(1, number);
        assert_eq!(arena.find(256), Some(place(0, 0)));
        arena.give_up(1, number);
        assert_eq!(arena.used(), 0);
    }

    #[test]
    fn gaps_become_one_whatever_the_order() {
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut arena = Arena::new(1);
            arena.add_space(3 * 256);
            let blocks = [(); 3].map(|()| take(&mut arena, 256).0);
            order.into_iter().for_each(|block| arena.give_up(0, blocks[block]));
            assert_eq!(arena.find(3 * 256), Some(place(0, 0)), "{order:?}");
        }
    }

    #[test]
    fn segments_grow_with_the_heap() {
        let mut arena = Arena::new(1);
        assert_eq!(arena.growth(1), Some(GRANULE));
        assert_eq!(arena.growth(3 * GRANULE + 1), Some(4 * GRANULE));
        arena.add_space(8 * GRANULE);
        assert_eq!(arena.growth(1), Some(4 * GRANULE));
        assert_eq!(arena.growth(usize::MAX), None);
        assert_eq!(arena.find(8 * GRANULE + 1), None);
        arena.add_space(16 * GRANULE);
        assert_eq!(arena.find(8 * GRANULE + 1), Some(place(1, 0)));
    }
}
