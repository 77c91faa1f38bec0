//! Waiting and locking.

use std::{
    cell::RefCell,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

// What is modelled with loom takes these from here.
#[cfg(all(loom, test))]
pub(crate) use loom::sync::{Mutex as Lock, MutexGuard as Guard, atomic};
#[cfg(not(all(loom, test)))]
pub(crate) use std::sync::{Mutex as Lock, MutexGuard as Guard, atomic};

use atomic::{AtomicU32, Ordering};
#[cfg(all(loom, test))]
use loom::thread::{self, Thread};
#[cfg(not(all(loom, test)))]
use std::thread::{self, Thread};

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
        OWN.with_borrow_mut(|own| Arc::clone(own.get_or_insert_with(|| Arc::new(Self::new()))))
    }

    /// One more of the calling thread's.
    pub(crate) fn new() -> Self {
        Self { state: AtomicU32::new(EMPTY), thread: thread::current() }
    }

    /// Forgets an earlier [`set`](Self::set). Comes before the lock is taken under which what is waited
    /// for is looked at, and under which others set: without it this could undo a set that the look
    /// did not see.
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
            park_timeout(left);
        }
        true
    }
}

#[cfg(not(all(loom, test)))]
fn park_timeout(time: Duration) {
    thread::park_timeout(time);
}

/// In a model there is no time.
#[cfg(all(loom, test))]
fn park_timeout(_: Duration) {
    thread::yield_now();
}

const EMPTY: u32 = 0;
const SET: u32 = 1;
const ASLEEP: u32 = 2;

/// Tries all ways in which threads can come upon each other, with so many switches at most where they
/// could go on.
#[cfg(all(loom, test))]
pub(crate) fn model(body: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(SWITCHES);
    builder.check(body);
}

#[cfg(all(loom, test))]
const SWITCHES: usize = 3;

#[cfg(all(loom, test))]
mod loom_tests {
    use super::*;

    #[test]
    fn a_parker_that_is_set_does_not_sleep_for_ever() {
        model(|| {
            let parker = loom::sync::Arc::new(Parker::new());
            let other = loom::sync::Arc::clone(&parker);
            let setter = loom::thread::spawn(move || {
                if other.set() {
                    other.wake();
                }
            });
            assert!(parker.sleep(None));
            setter.join().unwrap();
        });
    }

    #[test]
    fn a_parker_is_used_again() {
        model(|| {
            let shared = loom::sync::Arc::new((Parker::new(), Lock::new(0)));
            let other = loom::sync::Arc::clone(&shared);
            let setter = loom::thread::spawn(move || {
                let (parker, rounds) = &*other;
                for _ in 0..2 {
                    let mut rounds = rounds.lock().unwrap();
                    *rounds += 1;
                    let is_asleep = parker.set();
                    drop(rounds);
                    if is_asleep {
                        parker.wake();
                    }
                }
            });
            let (parker, rounds) = &*shared;
            loop {
                parker.reset();
                if *rounds.lock().unwrap() == 2 {
                    break;
                }
                parker.sleep(None);
            }
            setter.join().unwrap();
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
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
