//! What goes wrong in a round.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// What the victim of a round does, or what is done to it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Case {
    /// Killed when it has the id, and has not joined
    KilledBeforeJoin,
    /// Killed inside its join
    KilledDuringJoin,
    /// Killed while the others wait in a collective that it has not called
    KilledBeforeCollective,
    /// Killed at a random moment of a loop of collectives
    KilledDuringCollective,
    /// Killed right after it has the result of a collective
    KilledAfterCollective,
    /// Killed while it captures a graph
    KilledDuringCapture,
    /// Killed at a random moment of a loop of replays
    KilledDuringReplay,
    /// Alive, and does not join
    NeverJoins,
    /// Issues a collective of fewer elements than the others
    SmallerCollective,
}

impl Case {
    /// Whether the victim ends by a signal.
    pub(crate) const fn kills(self) -> bool {
        !matches!(self, Self::NeverJoins | Self::SmallerCollective)
    }

    /// Whether the others may have no communicator when they are told.
    pub(crate) const fn is_about_joins(self) -> bool {
        matches!(self, Self::KilledBeforeJoin | Self::KilledDuringJoin | Self::NeverJoins)
    }

    /// The operations that may fail, one of which the others' errors have to name.
    pub(crate) const fn operations(self) -> &'static [&'static str] {
        match self {
            Self::KilledBeforeJoin | Self::NeverJoins => &["join"],
            // The kill may come when the join has just succeeded.
            Self::KilledDuringJoin => &["join", "all_reduce"],
            Self::KilledBeforeCollective
            | Self::KilledDuringCollective
            | Self::KilledAfterCollective
            | Self::SmallerCollective => &["all_reduce"],
            // The library may hear of it in a capture that others are still in.
            Self::KilledDuringCapture => &["launch", "all_reduce"],
            Self::KilledDuringReplay => &["launch"],
        }
    }

    /// Its name, as the command line has it.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}
