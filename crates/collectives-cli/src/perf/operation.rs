//! What is measured: the operations, how much each moves, and nccl-tests' bandwidth factors.

use std::fmt;

use clap::ValueEnum;
use collectives::{Capabilities, Support};
use serde::Serialize;

/// An operation that `perf` measures.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub(crate) enum Operation {
    /// Every rank gets the reduction of all buffers
    AllReduce,
    /// Every rank gets the buffers of all ranks
    AllGather,
    /// Each rank gets one part of the reduction
    ReduceScatter,
    /// Every rank gets the root's buffer
    Broadcast,
    /// The root gets the reduction of all buffers
    Reduce,
    /// Each rank sends one part to every rank
    AllToAll,
    /// The root gets the buffers of all ranks
    Gather,
    /// Each rank gets one part of the root's buffer
    Scatter,
    /// Each rank sends to the next one and receives from the one before
    SendRecv,
}

/// How many elements one rank's buffers hold.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Lengths {
    pub(crate) send: usize,
    pub(crate) recv: usize,
    /// Where input and result share their place.
    pub(crate) in_place: usize,
}

impl Operation {
    /// Its name, as on the command line.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::AllReduce => "all_reduce",
            Self::AllGather => "all_gather",
            Self::ReduceScatter => "reduce_scatter",
            Self::Broadcast => "broadcast",
            Self::Reduce => "reduce",
            Self::AllToAll => "all_to_all",
            Self::Gather => "gather",
            Self::Scatter => "scatter",
            Self::SendRecv => "send_recv",
        }
    }

    /// Whether elements are combined, by a reduce op.
    pub(crate) const fn reduces(self) -> bool {
        matches!(self, Self::AllReduce | Self::ReduceScatter | Self::Reduce)
    }

    /// Whether one rank plays a part of its own.
    pub(crate) const fn has_root(self) -> bool {
        matches!(self, Self::Broadcast | Self::Reduce | Self::Gather | Self::Scatter)
    }

    /// Whether there is a form with input and result in one place.
    pub(crate) const fn has_in_place(self) -> bool {
        !matches!(self, Self::AllToAll | Self::SendRecv)
    }

    /// Whether the largest buffer holds one part per rank, and the count is that of a part.
    const fn has_parts(self) -> bool {
        matches!(
            self,
            Self::AllGather | Self::ReduceScatter | Self::AllToAll | Self::Gather | Self::Scatter
        )
    }

    /// The count (elements of one part) for a largest buffer of `bytes`.
    ///
    /// Parts are rounded down to 16 bytes, as in nccl-tests, so that all start aligned. What would
    /// be less than 16 bytes is not rounded, and at least one element; nccl-tests measures zero
    /// elements there.
    pub(crate) fn count(self, bytes: usize, element: usize, ranks: usize) -> usize {
        if !self.has_parts() {
            return (bytes / element).max(1);
        }
        let part = bytes / ranks;
        let part = if part < 16 { part } else { part & !15 };
        (part / element).max(1)
    }

    /// Elements of the largest buffer of any rank: what nccl-tests calls the size.
    pub(crate) const fn largest(self, count: usize, ranks: usize) -> usize {
        if self.has_parts() { count * ranks } else { count }
    }

    /// The lengths of the buffers of a rank.
    pub(crate) const fn lengths(self, count: usize, ranks: usize, is_root: bool) -> Lengths {
        let whole = count * ranks;
        let (send, recv, in_place) = match self {
            Self::AllReduce | Self::Broadcast | Self::Reduce | Self::SendRecv => {
                (count, count, count)
            }
            Self::AllGather => (count, whole, whole),
            Self::ReduceScatter => (whole, count, whole),
            Self::AllToAll => (whole, whole, whole),
            Self::Gather => (count, whole, if is_root { whole } else { count }),
            Self::Scatter => (whole, count, if is_root { whole } else { count }),
        };
        Lengths { send, recv, in_place }
    }

    /// Bus bandwidth over algorithm bandwidth: what the operation needs of each rank's link,
    /// whatever the algorithm. nccl-tests' `PERFORMANCE.md`.
    pub(crate) fn bus_factor(self, ranks: usize) -> f64 {
        let n = ranks as f64;
        match self {
            Self::AllReduce => 2.0 * (n - 1.0) / n,
            Self::AllGather
            | Self::ReduceScatter
            | Self::AllToAll
            | Self::Gather
            | Self::Scatter => (n - 1.0) / n,
            Self::Broadcast | Self::Reduce | Self::SendRecv => 1.0,
        }
    }

    /// How the library offers it.
    pub(crate) const fn support(self, capabilities: &Capabilities) -> Support {
        match self {
            Self::AllReduce => capabilities.all_reduce,
            Self::AllGather => capabilities.all_gather,
            Self::ReduceScatter => capabilities.reduce_scatter,
            Self::Broadcast => capabilities.broadcast,
            Self::Reduce => capabilities.reduce,
            Self::AllToAll => capabilities.all_to_all,
            Self::Gather => capabilities.gather,
            Self::Scatter => capabilities.scatter,
            Self::SendRecv => capabilities.send,
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bus_factors_are_those_of_nccl_tests() {
        let factors = |ranks| {
            Operation::value_variants().iter().map(|op| op.bus_factor(ranks)).collect::<Vec<_>>()
        };
        assert_eq!(factors(2), [1.0, 0.5, 0.5, 1.0, 1.0, 0.5, 0.5, 0.5, 1.0]);
        assert_eq!(factors(4), [1.5, 0.75, 0.75, 1.0, 1.0, 0.75, 0.75, 0.75, 1.0]);
        assert_eq!(factors(1), [0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0]);
    }

    #[test]
    fn names_are_those_of_the_command_line() {
        for op in Operation::value_variants() {
            let value = op.to_possible_value().expect("no variant is skipped");
            assert_eq!(value.get_name(), op.name());
        }
    }

    #[test]
    fn counts_are_those_of_nccl_tests() {
        assert_eq!(Operation::AllReduce.count(1 << 20, 4, 4), 262_144);
        assert_eq!(Operation::AllGather.count(1 << 20, 4, 4), 65_536);
        // 1000 / 3 = 333 bytes a part, rounded down to 320.
        assert_eq!(Operation::AllToAll.count(1000, 4, 3), 80);
        assert_eq!(Operation::AllToAll.largest(80, 3), 240);
        assert_eq!(Operation::SendRecv.count(1000, 8, 3), 125);
    }

    #[test]
    fn sizes_too_small_for_a_part_still_move_one_element() {
        assert_eq!(Operation::AllGather.count(8, 4, 2), 1);
        assert_eq!(Operation::AllGather.count(8, 4, 8), 1);
        assert_eq!(Operation::AllGather.count(24, 4, 2), 3);
        assert_eq!(Operation::Reduce.count(4, 8, 2), 1);
    }

    #[test]
    fn no_rank_needs_more_than_the_largest_buffer() {
        for op in Operation::value_variants() {
            for is_root in [false, true] {
                let Lengths { send, recv, in_place } = op.lengths(5, 3, is_root);
                assert!(send.max(recv).max(in_place) <= op.largest(5, 3), "{op}");
            }
        }
    }
}
