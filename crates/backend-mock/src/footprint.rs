//! What an operation reads and writes of its own rank's memory.

use std::ops::Range;

use crate::{
    op::{Factor, Kind, Op},
    stream::Entry,
};

/// Addresses that one piece of work reads and writes.
#[derive(Default)]
pub(crate) struct Footprint {
    pub(crate) reads: Vec<Range<usize>>,
    pub(crate) writes: Vec<Range<usize>>,
}

impl Footprint {
    /// Of one rank's operation in a communicator of `size`.
    pub(crate) fn of_op(op: &Op, size: usize) -> Self {
        // Checked when the call was made.
        let (sent, received) = extents(op, size).unwrap_or((0, 0));
        let mut footprint = Self::default();
        footprint.read(op.send.expose_provenance(), sent);
        footprint.write(op.recv.expose_provenance(), received);
        if let Factor::At(scalar) = op.factor {
            footprint.read(scalar.expose_provenance(), op.width());
        }
        footprint
    }

    /// Of work that one stream does by itself. `freed` says where an allocation lies.
    pub(crate) fn of_local(entry: &Entry, freed: impl Fn(usize) -> Range<usize>) -> Self {
        let mut footprint = Self::default();
        match *entry {
            Entry::Copy { from, to, bytes, .. } => {
                footprint.read(from.addr(), bytes);
                footprint.write(to.addr(), bytes);
            }
            Entry::Fill { to, bytes, .. } => footprint.write(to.addr(), bytes),
            Entry::Free { start, .. } => {
                let range = freed(start);
                footprint.write(range.start, range.len());
            }
            _ => {}
        }
        footprint
    }

    /// Adds what another piece of work of the same group reads and writes.
    pub(crate) fn merge(&mut self, other: Self) {
        self.reads.extend(other.reads);
        self.writes.extend(other.writes);
    }

    /// What is written and not read: bytes whose present value nobody has a use for.
    pub(crate) fn overwritten(&self) -> Vec<Range<usize>> {
        let mut left = self.writes.clone();
        for read in &self.reads {
            left = left.into_iter().flat_map(|range| without(range, read)).collect();
        }
        left
    }

    fn read(&mut self, start: usize, bytes: usize) {
        if bytes > 0 && start > 0 {
            self.reads.push(start..start + bytes);
        }
    }

    fn write(&mut self, start: usize, bytes: usize) {
        if bytes > 0 && start > 0 {
            self.writes.push(start..start + bytes);
        }
    }
}

/// Bytes that one rank's operation reads and writes, in a communicator of `size`. `None` where there
/// can't be so many.
#[inline]
pub(crate) fn extents(op: &Op, size: usize) -> Option<(usize, usize)> {
    let is_root = op.other == op.rank;
    // In multiples of the operation's count.
    let (sent, received) = match op.kind {
        Kind::AllGather => (1, size),
        Kind::AllReduce => (1, 1),
        Kind::AllToAll => (size, size),
        Kind::Broadcast => (usize::from(is_root), 1),
        Kind::Gather => (1, if is_root { size } else { 0 }),
        Kind::Recv => (0, 1),
        Kind::Reduce => (1, usize::from(is_root)),
        Kind::ReduceScatter => (size, 1),
        Kind::Scatter => (if is_root { size } else { 0 }, 1),
        Kind::Send => (1, 0),
        Kind::WindowRegister => (0, 0),
    };
    let bytes = op.count.checked_mul(op.width())?;
    Some((bytes.checked_mul(sent)?, bytes.checked_mul(received)?))
}

/// Whether two stretches of memory share a byte.
pub(crate) fn overlap(one: &Range<usize>, other: &Range<usize>) -> bool {
    one.start < other.end && other.start < one.end
}

/// `range` less `hole`, in at most two pieces.
fn without(range: Range<usize>, hole: &Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let before = range.start..range.end.min(hole.start);
    let after = range.start.max(hole.end)..range.end;
    [before, after].into_iter().filter(|piece| piece.start < piece.end)
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "lists of ranges is what these are")]
mod tests {
    use super::*;

    #[test]
    fn what_lives_in_place_is_not_overwritten() {
        let footprint = Footprint { reads: vec![20..30, 5..12], writes: vec![10..40] };
        assert_eq!(footprint.overwritten(), [12..20, 30..40]);
        let untouched = Footprint { reads: vec![0..10, 40..50], writes: vec![10..40] };
        assert_eq!(untouched.overwritten(), [10..40]);
        let all = Footprint { reads: vec![0..50], writes: vec![10..40] };
        assert!(all.overwritten().is_empty());
    }
}
