//! Which ranks a communicator has exchanged messages with.
//!
//! NCCL connects two ranks for messages when the first group with one is launched, and notes that it
//! is to do so when the message is queued (2.26.2 to 2.30.7, `hasSeen` in `p2pTaskAppend`; later
//! releases are taken to be the same). If that group is dropped instead, the note stays, so nothing is
//! ever connected: from then on each message between these ranks fails with "Rank 0 has no transport
//! for recv peer 1". So a message to a rank that was not met is kept back until its group is launched
//! for sure; and with it those that follow on the communicator, since the order of messages counts.
//! `docs/decisions/0011-first-messages.md` has the reasons.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};

use collectives_core::Rank;

/// The ranks that an operation sends to and receives from, one message each.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Peers {
    /// No message: the operation has connections of its own.
    Nobody,
    From(Rank),
    To(Rank),
    FromAll,
    ToAll,
    /// From all and to all.
    All,
}

/// See the [module](self).
pub(crate) struct Met {
    /// [`SENT`] and [`RECEIVED`], for each rank.
    each: Box<[AtomicU8]>,
    /// Every rank was met both ways.
    all: AtomicBool,
}

const SENT: u8 = 1;
const RECEIVED: u8 = 2;

impl Met {
    /// Nobody but oneself.
    pub(crate) fn new(own: Rank, size: usize) -> Self {
        let of = |rank| AtomicU8::new(if rank == own.index() { SENT | RECEIVED } else { 0 });
        Self { each: (0..size).map(of).collect(), all: AtomicBool::new(size == 1) }
    }

    /// Whether all these ranks were met, in these ways.
    #[inline]
    pub(crate) fn covers(&self, peers: Peers) -> bool {
        peers == Peers::Nobody || self.all.load(Relaxed) || self.covers_each(peers)
    }

    fn covers_each(&self, peers: Peers) -> bool {
        let (ranks, ways) = self.parts(peers);
        ranks.iter().all(|met| met.load(Relaxed) & ways == ways)
    }

    /// Notes that messages were exchanged.
    pub(crate) fn add(&self, peers: Peers) {
        let (ranks, ways) = self.parts(peers);
        for met in ranks {
            met.fetch_or(ways, Relaxed);
        }
        if self.covers_each(Peers::All) {
            self.all.store(true, Relaxed);
        }
    }

    fn parts(&self, peers: Peers) -> (&[AtomicU8], u8) {
        // Ranks were checked; one outside would have no connection to wait for.
        let one = |rank: Rank| self.each.get(rank.index()..=rank.index()).unwrap_or_default();
        match peers {
            Peers::Nobody => (&[], 0),
            Peers::From(rank) => (one(rank), RECEIVED),
            Peers::To(rank) => (one(rank), SENT),
            Peers::FromAll => (&self.each, RECEIVED),
            Peers::ToAll => (&self.each, SENT),
            Peers::All => (&self.each, SENT | RECEIVED),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_is_met_for_itself() {
        let [other, third] = [Rank::new(1), Rank::new(2)];
        let met = Met::new(Rank::new(0), 3);
        assert!(met.covers(Peers::Nobody) && met.covers(Peers::To(Rank::new(0))));
        assert!(!met.covers(Peers::To(other)) && !met.covers(Peers::From(other)));
        met.add(Peers::To(other));
        assert!(met.covers(Peers::To(other)) && !met.covers(Peers::From(other)));
        met.add(Peers::To(third));
        assert!(met.covers(Peers::ToAll) && !met.covers(Peers::All));
        met.add(Peers::FromAll);
        assert!(met.covers(Peers::All) && met.all.load(Relaxed));
    }

    #[test]
    fn one_rank_has_met_all() {
        assert!(Met::new(Rank::new(0), 1).covers(Peers::All));
    }
}
