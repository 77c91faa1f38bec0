//! How a rank and the one that runs its world talk, whatever carries the rank.

use std::sync::{Arc, Mutex, PoisonError, mpsc::Receiver};

use collectives_core::AbortHandle;
use serde::{Deserialize, Serialize};

use crate::{
    check::{End, Failure, Outcome},
    last_call::LastCall,
};

/// What a rank is told.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) enum Order {
    /// The exchange fails: this rank ended without it.
    Alone {
        /// Who ended first.
        rank: usize,
        /// Whether it failed.
        failed: bool,
    },
    /// Take leave of the world.
    Close,
    /// What the ranks gave to the exchange, in rank order.
    Gathered(Vec<Vec<u8>>),
    /// Run a case.
    Run {
        /// Its name.
        case: String,
        /// What its inputs depend on.
        seed: u64,
    },
}

/// What a rank tells, or what is told of it.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) enum Report {
    /// It has joined, run its case, or taken leave.
    Done(Outcome<End>),
    /// Its process has ended, of itself.
    Gone(String),
    /// It takes part in an exchange, with these bytes.
    Offer(Vec<u8>),
}

/// A rank's way to the others.
pub(crate) struct Post {
    pub(crate) rank: usize,
    pub(crate) orders: Receiver<Order>,
    pub(crate) report: Box<dyn Fn(Report) + Send>,
    pub(crate) watch: Arc<Watch>,
}

/// What can be seen of a rank while it is busy, or stuck, and done about it.
pub(crate) struct Watch {
    pub(crate) calls: LastCall,
    handles: Mutex<Vec<AbortHandle>>,
}

impl Post {
    /// Gives `bytes` to every rank and receives theirs, in rank order.
    #[track_caller]
    pub(crate) fn all_gather(&self, bytes: Vec<u8>) -> Outcome<Vec<Vec<u8>>> {
        (self.report)(Report::Offer(bytes));
        match self.orders.recv() {
            Ok(Order::Gathered(all)) => Ok(all),
            Ok(Order::Alone { rank, failed: true }) => {
                Err(Failure::echo(format!("rank {rank} failed meanwhile")))
            }
            Ok(Order::Alone { rank, failed: false }) => {
                Err(Failure::new(format!("rank {rank} ended without this exchange")))
            }
            Ok(other) => Err(Failure::new(format!("told {other:?} during an exchange"))),
            Err(_) => Err(Failure::echo("the world is gone")),
        }
    }
}

impl Watch {
    pub(crate) const fn new() -> Self {
        Self { calls: LastCall::new(), handles: Mutex::new(Vec::new()) }
    }

    /// Forgets the calls and the communicators of what was done before.
    pub(crate) fn begin(&self) {
        self.calls.forget();
        self.take_handles();
    }

    /// Has `handle` aborted if a rank fails and others do not end.
    pub(crate) fn guard(&self, handle: AbortHandle) {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner).push(handle);
    }

    /// Aborts what the rank may wait for.
    pub(crate) fn abort(&self) {
        for handle in self.take_handles() {
            // The failure that led here is what gets reported.
            let _ = handle.abort();
        }
    }

    fn take_handles(&self) -> Vec<AbortHandle> {
        std::mem::take(&mut self.handles.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
