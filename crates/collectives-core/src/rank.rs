//! The position of a process or thread in a communicator.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A rank: the position of a participant in its communicator, from 0 to size − 1.
///
/// A rank carries no communicator with it, so operations check it against theirs: a root or peer
/// outside the communicator is refused ([`crate::shape`]) before any library is called.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct Rank(u32);

impl Rank {
    /// The rank at `position`.
    pub const fn new(position: u32) -> Self {
        Self(position)
    }

    /// The position as an index.
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The position.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl From<u32> for Rank {
    fn from(position: u32) -> Self {
        Self(position)
    }
}

impl From<&Self> for Rank {
    fn from(rank: &Self) -> Self {
        *rank
    }
}

impl fmt::Display for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
