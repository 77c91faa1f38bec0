//! All-gather of bytes between ranks, as the world relays it: it fails on all when one of them ends.

use crate::post::Order;

/// The exchange that is going on.
pub(crate) struct Exchange {
    offered: Vec<Option<Vec<u8>>>,
    /// The first rank that ended, and whether it failed.
    left: Option<(usize, bool)>,
}

/// What is to be told, and to which rank.
pub(crate) type Orders = Vec<(usize, Order)>;

impl Exchange {
    pub(crate) fn new(size: usize) -> Self {
        Self { offered: vec![None; size], left: None }
    }

    /// A rank takes part. Each offer is answered once.
    pub(crate) fn offer(&mut self, rank: usize, bytes: Vec<u8>) -> Orders {
        self.offered[rank] = Some(bytes);
        if self.offered.iter().any(Option::is_none) {
            return self.call_off();
        }
        let gathered = Order::Gathered(self.offered.iter_mut().filter_map(Option::take).collect());
        (0..self.offered.len()).map(|rank| (rank, gathered.clone())).collect()
    }

    /// A rank ends. What failed says more than who is merely done.
    pub(crate) fn leave(&mut self, rank: usize, failed: bool) -> Orders {
        if self.left.is_none_or(|(_, earlier)| failed && !earlier) {
            self.left = Some((rank, failed));
        }
        self.call_off()
    }

    /// Lets go of those who wait for one that has ended.
    fn call_off(&mut self) -> Orders {
        let Some((rank, failed)) = self.left else { return Vec::new() };
        let waiting = self.offered.iter_mut().enumerate();
        let waiting = waiting.filter_map(|(who, offered)| offered.take().map(|_| who));
        waiting.map(|who| (who, Order::Alone { rank, failed })).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rank_gets_all_bytes_in_rank_order() {
        let mut exchange = Exchange::new(3);
        for round in 0..3 {
            assert_eq!(exchange.offer(2, vec![2, round]), []);
            assert_eq!(exchange.offer(0, vec![0, round]), []);
            let all = Order::Gathered(vec![vec![0, round], vec![1, round], vec![2, round]]);
            let want = [0, 1, 2].map(|rank| (rank, all.clone()));
            assert_eq!(exchange.offer(1, vec![1, round]), want);
        }
    }

    #[test]
    fn a_rank_that_ends_frees_those_that_wait_and_those_that_come() {
        for failed in [true, false] {
            let mut exchange = Exchange::new(3);
            let alone = Order::Alone { rank: 1, failed };
            assert_eq!(exchange.offer(0, vec![]), []);
            assert_eq!(exchange.leave(1, failed), [(0, alone.clone())]);
            assert_eq!(exchange.offer(2, vec![]), [(2, alone)]);
        }
    }

    #[test]
    fn a_failure_says_more_than_an_end() {
        let mut exchange = Exchange::new(4);
        exchange.leave(1, false);
        exchange.leave(2, true);
        exchange.leave(3, true);
        let alone = Order::Alone { rank: 2, failed: true };
        assert_eq!(exchange.offer(0, vec![]), [(0, alone)]);
    }
}
