//! Waiting and locking.

use std::{
    cell::RefCell,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread::{self, Thread},
    time::Instant,
};

use crate::process::bell::Bell;

/// Locks, also after a thread panicked while it held the lock: the engine's state changes only in
/// steps that leave it valid.
#[inline]
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One thread's place to wait. One word per waiter, so that waking one never wakes the herd.
pub(crate) struct Parker {
    state: AtomicU32,
    thread: Thread,
}

impl Parker {
    /// The calling thread's own, reset.
    pub(crate) fn current() -> Arc<Self> {
        thread_local! {
            static OWN: RefCell<Option<Arc<Parker>>> = const { RefCell::new(None) };
        }
        OWN.with_borrow_mut(|own| {
            let fresh =
                || Arc::new(Self { state: AtomicU32::new(EMPTY), thread: thread::current() });
            Arc::clone(own.get_or_insert_with(fresh))
        })
    }

    /// Forgets an earlier [`set`](Self::set).
    pub(crate) fn reset(&self) {
        self.state.store(EMPTY, Ordering::Relaxed);
    }

    /// Whether it was set since the last reset.
    #[inline]
    pub(crate) fn is_set(&self) -> bool {
        self.state.load(Ordering::Acquire) == SET
    }

    /// Lets the thread go on. Cheap where it doesn't sleep; the answer is whether it does, and
    /// [`wake`](Self::wake) must follow, after locks are released.
    pub(crate) fn set(&self) -> bool {
        self.state.swap(SET, Ordering::AcqRel) == ASLEEP
    }

    /// Wakes the thread.
    pub(crate) fn wake(&self) {
        self.thread.unpark();
    }

    /// As [`sleep`](Self::sleep), where also the ring of a bell ends it that was in state `seen` before
    /// the thread looked at what it waits for. The answer is whether it was set or rung.
    pub(crate) fn sleep_at(&self, bell: &Bell, seen: u32, until: Option<Instant>) -> bool {
        let state = &self.state;
        if state.compare_exchange(EMPTY, ASLEEP, Ordering::AcqRel, Ordering::Acquire).is_err() {
            return true;
        }
        let rung = bell.sleep(seen, until);
        state.swap(EMPTY, Ordering::AcqRel) == SET || rung
    }

    /// Sleeps until set, or `until`. The answer is whether it was set. Only its own thread calls.
    pub(crate) fn sleep(&self, until: Option<Instant>) -> bool {
        let state = &self.state;
        if state.compare_exchange(EMPTY, ASLEEP, Ordering::AcqRel, Ordering::Acquire).is_err() {
            return true;
        }
        while !self.is_set() {
            let Some(until) = until else {
                thread::park();
                continue;
            };
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                // Set at the last moment counts.
                return state.swap(EMPTY, Ordering::AcqRel) == SET;
            }
            thread::park_timeout(left);
        }
        true
    }
}

const EMPTY: u32 = 0;
const SET: u32 = 1;
const ASLEEP: u32 = 2;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_set_before_the_sleep_is_not_lost() {
        let parker = Parker::current();
        parker.reset();
        assert!(!parker.set());
        assert!(parker.sleep(None));
    }

    #[test]
    fn a_sleeper_is_woken_and_a_late_one_gives_up() {
        let parker = Parker::current();
        parker.reset();
        let other = Arc::clone(&parker);
        let thread = thread::spawn(move || {
            if other.set() {
                other.wake();
            }
        });
        assert!(parker.sleep(None));
        thread.join().unwrap();
        parker.reset();
        assert!(!parker.sleep(Some(Instant::now() + Duration::from_millis(1))));
    }
}
