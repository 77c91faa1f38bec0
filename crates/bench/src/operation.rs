//! What is measured: the operations of `collectives perf`, and how their calls are timed.

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// An operation, by the name that `collectives perf` and the programs of `benches/peers` know.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub(crate) enum Operation {
    AllReduce,
    AllGather,
    ReduceScatter,
    Broadcast,
    Reduce,
    AllToAll,
    Gather,
    Scatter,
    SendRecv,
}

impl Operation {
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

    /// The program of nccl-tests that measures it.
    pub(crate) const fn nccl_tests(self) -> &'static str {
        match self {
            Self::AllReduce => "all_reduce_perf",
            Self::AllGather => "all_gather_perf",
            Self::ReduceScatter => "reduce_scatter_perf",
            Self::Broadcast => "broadcast_perf",
            Self::Reduce => "reduce_perf",
            Self::AllToAll => "alltoall_perf",
            Self::Gather => "gather_perf",
            Self::Scatter => "scatter_perf",
            Self::SendRecv => "sendrecv_perf",
        }
    }

    /// Bus bandwidth over algorithm bandwidth: what the operation needs of each rank's link,
    /// whatever the algorithm. nccl-tests' `PERFORMANCE.md`.
    pub(crate) fn bus_factor(self, ranks: u32) -> f64 {
        let n = f64::from(ranks);
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
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How calls are issued and waited for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
#[value(rename_all = "kebab-case")]
pub(crate) enum Series {
    /// CPU: calls one after another, one wait at the end.
    Loop,
    /// CPU: each call waited for.
    SyncEach,
    /// GPU: calls one after another, one wait at the end.
    Eager,
    /// GPU: all calls captured into one graph, one launch of it, one wait.
    Graph,
    /// GPU: as eager, with buffers registered with the communicator.
    EagerRegistered,
    /// GPU: as graph, with buffers registered with the communicator.
    GraphRegistered,
}

impl Series {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Loop => "loop",
            Self::SyncEach => "sync-each",
            Self::Eager => "eager",
            Self::Graph => "graph",
            Self::EagerRegistered => "eager-registered",
            Self::GraphRegistered => "graph-registered",
        }
    }

    /// For people.
    pub(crate) fn text(self) -> String {
        self.name().replace("-registered", ", registered buffers")
    }

    pub(crate) const fn is_graph(self) -> bool {
        matches!(self, Self::Graph | Self::GraphRegistered)
    }

    pub(crate) const fn is_registered(self) -> bool {
        matches!(self, Self::EagerRegistered | Self::GraphRegistered)
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The name on the command line, in a report and for people is one and the same.
    #[test]
    fn names_are_the_same_everywhere() {
        fn check<T: ValueEnum + Serialize + fmt::Display>() {
            for value in T::value_variants() {
                let argument = value.to_possible_value().expect("no variant is skipped");
                assert_eq!(argument.get_name(), value.to_string());
                let json = serde_json::to_value(value).expect("a name");
                assert_eq!(json, value.to_string());
            }
        }
        check::<Operation>();
        check::<Series>();
    }

    #[test]
    fn bus_factors_are_those_of_nccl_tests() {
        let factors =
            |ranks| Operation::value_variants().iter().map(move |op| op.bus_factor(ranks));
        assert!(factors(2).eq([1.0, 0.5, 0.5, 1.0, 1.0, 0.5, 0.5, 0.5, 1.0]));
        assert!(factors(4).eq([1.5, 0.75, 0.75, 1.0, 1.0, 0.75, 0.75, 0.75, 1.0]));
    }
}
