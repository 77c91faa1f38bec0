//! What a rank and its parent tell each other.

use std::time::Duration;

use collectives::Error;
use serde::{Deserialize, Serialize};

use crate::case::Case;

/// What a rank is told.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) enum Order {
    /// First of all.
    Begin(Task),
    /// All ranks are here.
    Go,
    /// The id by which to join.
    Id(String),
    /// The round is over.
    Leave,
    /// The victim's process has ended.
    Lost,
    /// Everybody was told: go on as these ranks.
    Regroup(Vec<usize>),
}

/// What a rank says.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) enum Word {
    /// It has gone on, in a communicator that was shrunk or in a new one, and ended it.
    Done { shrunk: bool },
    /// Something is wrong that no round wants.
    Failed(String),
    /// It waits for the others.
    Here,
    /// The id that it made.
    Id(String),
    /// What it has opened.
    Library(String),
    /// An operation failed, as it should, after so many milliseconds.
    Told { error: Error, millis: u64 },
    /// Its own operation was good: only who issues a smaller one may say so.
    Unharmed,
}

/// A round, as every rank knows it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Task {
    pub(crate) case: Case,
    pub(crate) victim: usize,
    /// The rank that makes the first id.
    pub(crate) maker: usize,
    /// Whether the survivors shrink, if the library can; else they join anew.
    pub(crate) shrinks: bool,
    pub(crate) deadline: Duration,
    /// When the victim is killed, where that is random.
    pub(crate) moment: Duration,
    /// Whether a survivor joins late, so that the victim is killed inside its join for sure.
    pub(crate) late: bool,
    /// Whether all ranks use device 0.
    pub(crate) one_gpu: bool,
    /// Of how many hosts the ranks take themselves to be, if not of this one.
    pub(crate) hosts: Option<usize>,
}
