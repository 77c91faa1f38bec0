//! Where the rank threads meet between two steps, and what ends them all when one fails.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use collectives::AbortHandle;

use super::run::Ended;

/// A barrier of the rank threads that a failure opens for good.
pub(super) struct Meeting {
    ranks: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    arrived: usize,
    round: u64,
    handles: Vec<AbortHandle>,
    failed: bool,
}

impl Meeting {
    pub(super) fn new(ranks: usize) -> Self {
        Self { ranks, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Waits until every rank is here.
    pub(super) fn wait(&self) -> Result<(), Ended> {
        let mut state = self.state();
        if state.failed {
            return Err(Ended);
        }
        state.arrived += 1;
        if state.arrived == self.ranks {
            state.arrived = 0;
            state.round += 1;
            self.changed.notify_all();
            return Ok(());
        }
        let round = state.round;
        while state.round == round {
            if state.failed {
                return Err(Ended);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    /// Names a communicator that is to end when a rank fails.
    pub(super) fn ends(&self, handle: AbortHandle) -> Result<(), Ended> {
        let mut state = self.state();
        if state.failed {
            return Err(Ended);
        }
        state.handles.push(handle);
        Ok(())
    }

    /// Ends all ranks. Answers whether this is the first failure, which is the cause of the others.
    pub(super) fn fail(&self) -> bool {
        let handles = {
            let mut state = self.state();
            if state.failed {
                return false;
            }
            state.failed = true;
            self.changed.notify_all();
            std::mem::take(&mut state.handles)
        };
        for handle in handles {
            // The run has failed; how its communicators end is of no more interest.
            drop(handle.abort());
        }
        true
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    #[test]
    fn nobody_leaves_before_all_have_come() {
        let meeting = Meeting::new(3);
        let arrived = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for round in 1..=100 {
                        arrived.fetch_add(1, Ordering::SeqCst);
                        meeting.wait().expect("nobody fails");
                        assert!(arrived.load(Ordering::SeqCst) >= 3 * round);
                        meeting.wait().expect("nobody fails");
                    }
                });
            }
        });
    }

    #[test]
    fn a_failure_frees_who_waits_and_who_comes_later() {
        let meeting = Arc::new(Meeting::new(3));
        let waiting = {
            let meeting = Arc::clone(&meeting);
            std::thread::spawn(move || meeting.wait())
        };
        assert!(meeting.fail());
        assert!(waiting.join().expect("does not panic").is_err());
        assert!(meeting.wait().is_err());
        assert!(!meeting.fail(), "the first failure is the cause");
    }
}
