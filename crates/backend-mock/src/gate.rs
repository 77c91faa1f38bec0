//! How work gets past a lock that somebody else holds.
//!
//! What is behind the lock takes work over from inboxes, which have locks of their own. Three flags
//! see to it that nothing is left in them while somebody waits for it.
//!
//! * **Marks** tell which inboxes have something in them, so that not all need be looked at. Who puts
//!   the first thing into one [marks](Gate::mark) it afterwards; who takes over
//!   [takes the marks](Gate::take_marks) first.
//! * **Sleepers** are threads that are going to sleep until what they wait for is done. Such a thread
//!   counts itself [in](Gate::count_in), and then takes over once more before it sleeps. Who has put
//!   something in afterwards looks whether [anybody sleeps](Gate::anybody_sleeps), and presses. Both
//!   change the marks, so whoever does so second sees what the other did before.
//! * **Pressed** is the lock when somebody wanted it who would not wait. [`Gate::press`] raises the
//!   flag and then tries the lock; the holder lowers it ([`Gate::heed`]) before it takes over, and
//!   looks at it after it has [left](Gate::leave). Between flag and lock there is a `SeqCst` fence on
//!   both sides, so that either one gets the lock or the other sees the flag.

use std::sync::{PoisonError, TryLockError};

use crate::sync::{
    Guard, Lock,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence},
};

/// A lock, and what is asked of its holder.
pub(crate) struct Gate<T> {
    state: Lock<T>,
    /// Bit `index % 64` of inboxes that have something in them.
    marks: AtomicU64,
    /// Somebody wanted the lock while it was taken.
    pressed: AtomicBool,
    /// Threads that sleep, or are about to.
    sleepers: AtomicUsize,
}

impl<T> Gate<T> {
    pub(crate) fn new(state: T) -> Self {
        Self {
            state: Lock::new(state),
            marks: AtomicU64::new(0),
            pressed: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
        }
    }

    /// Notes that an inbox is empty no more.
    #[inline]
    pub(crate) fn mark(&self, inbox: u32) {
        self.marks.fetch_or(1 << (inbox % u64::BITS), Ordering::AcqRel);
    }

    /// Whether some inbox may have something in it.
    #[inline]
    pub(crate) fn is_marked(&self) -> bool {
        self.marks.load(Ordering::Relaxed) != 0
    }

    /// Takes the marks off. The inboxes come afterwards.
    #[inline]
    pub(crate) fn take_marks(&self) -> u64 {
        self.marks.swap(0, Ordering::AcqRel)
    }

    /// One more thread is going to sleep, and takes over once more before.
    pub(crate) fn count_in(&self) {
        self.sleepers.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn count_out(&self) {
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether work that was just put in has to be looked at.
    #[inline]
    pub(crate) fn anybody_sleeps(&self) -> bool {
        self.sleepers.load(Ordering::Acquire) > 0
    }

    /// Takes the lock, also after a thread panicked that held it: what is behind it changes only in
    /// steps that leave it valid.
    pub(crate) fn lock(&self) -> Guard<'_, T> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the lock, unless somebody has it.
    pub(crate) fn try_lock(&self) -> Option<Guard<'_, T>> {
        match self.state.try_lock() {
            Ok(state) => Some(state),
            Err(TryLockError::Poisoned(state)) => Some(state.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Sees to it that what is in the inboxes is looked at: by this thread, which then does `settle`,
    /// or by the one that holds the lock.
    pub(crate) fn press<'a>(&'a self, mut settle: impl FnMut(Guard<'a, T>)) {
        loop {
            self.pressed.store(true, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            let Some(state) = self.try_lock() else { return };
            settle(state);
            if !self.is_pressed() {
                return;
            }
        }
    }

    /// The holder of the lock is going to look at the inboxes.
    #[inline]
    pub(crate) fn heed(&self) {
        self.pressed.store(false, Ordering::SeqCst);
    }

    /// Lets go of the lock. Afterwards comes a look whether it is pressed.
    #[inline]
    pub(crate) fn leave(&self, state: Guard<'_, T>) {
        drop(state);
        fence(Ordering::SeqCst);
    }

    #[inline]
    pub(crate) fn is_pressed(&self) -> bool {
        self.pressed.load(Ordering::SeqCst)
    }
}

/// Run with `RUSTFLAGS="--cfg loom"`: see `just loom`.
#[cfg(all(loom, test))]
mod loom_tests {
    use loom::{
        sync::{Arc, Mutex},
        thread,
    };

    use super::*;
    use crate::sync::{Parker, model};

    /// An engine of one stream, as far as waiting goes.
    struct Engine {
        gate: Gate<State>,
        inbox: Mutex<Vec<u32>>,
    }

    #[derive(Default)]
    struct State {
        passed: u32,
        is_aborted: bool,
        waiter: Option<(u32, Arc<Parker>)>,
    }

    impl Engine {
        fn new() -> Arc<Self> {
            let gate = Gate::new(State::default());
            Arc::new(Self { gate, inbox: Mutex::new(Vec::new()) })
        }

        fn enqueue(&self, urgent: bool) {
            let mut inbox = self.inbox.lock().unwrap();
            inbox.push(1);
            let held = inbox.len();
            drop(inbox);
            if held == 1 {
                self.gate.mark(0);
            }
            if urgent || self.gate.anybody_sleeps() {
                self.press();
            }
        }

        fn press(&self) {
            self.gate.press(|state| self.settle(state));
        }

        fn with<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
            let mut state = self.gate.lock();
            self.drain(&mut state);
            let result = act(&mut state);
            self.settle(state);
            if self.gate.is_pressed() {
                self.press();
            }
            result
        }

        fn settle(&self, mut state: Guard<'_, State>) {
            self.gate.heed();
            self.drain(&mut state);
            let done = |state: &State, target| state.is_aborted || state.passed >= target;
            let ready = state.waiter.as_ref().is_some_and(|&(target, _)| done(&state, target));
            let waiter = if ready { state.waiter.take() } else { None };
            let asleep = waiter.filter(|(_, parker)| parker.set());
            self.gate.leave(state);
            if let Some((_, parker)) = asleep {
                parker.wake();
            }
        }

        fn drain(&self, state: &mut State) {
            if self.gate.take_marks() != 0 {
                state.passed += self.inbox.lock().unwrap().drain(..).sum::<u32>();
            }
        }

        /// Waits until so many entries have passed. The answer is whether they have.
        fn wait(&self, target: u32) -> bool {
            let parker = Arc::new(Parker::new());
            let look = || {
                parker.reset();
                self.with(|state| {
                    if state.is_aborted || state.passed >= target {
                        return Some(!state.is_aborted);
                    }
                    state.waiter = Some((target, Arc::clone(&parker)));
                    None
                })
            };
            let mut answer = look();
            if answer.is_none() {
                self.gate.count_in();
                // One more look before it sleeps.
                answer = look();
                while answer.is_none() {
                    parker.sleep(None);
                    answer = look();
                }
                self.gate.count_out();
            }
            answer.unwrap()
        }
    }

    #[test]
    fn work_that_comes_while_somebody_goes_to_sleep_is_not_left_behind() {
        model(|| {
            let engine = Engine::new();
            let other = Arc::clone(&engine);
            let caller = thread::spawn(move || other.enqueue(false));
            assert!(engine.wait(1));
            caller.join().unwrap();
        });
    }

    #[test]
    fn work_of_two_threads_is_not_left_behind() {
        model(|| {
            let engine = Engine::new();
            let others = [false, true].map(|urgent| {
                let other = Arc::clone(&engine);
                thread::spawn(move || other.enqueue(urgent))
            });
            assert!(engine.wait(2));
            for other in others {
                other.join().unwrap();
            }
        });
    }

    #[test]
    fn who_presses_in_vain_is_heard_by_the_holder() {
        model(|| {
            let engine = Engine::new();
            let other = Arc::clone(&engine);
            let caller = thread::spawn(move || other.enqueue(true));
            engine.enqueue(true);
            caller.join().unwrap();
            // Nobody has to come by for it.
            assert_eq!(engine.gate.lock().passed, 2);
        });
    }

    #[test]
    fn an_abort_ends_a_wait() {
        model(|| {
            let engine = Engine::new();
            let other = Arc::clone(&engine);
            let aborter = thread::spawn(move || other.with(|state| state.is_aborted = true));
            assert!(!engine.wait(1));
            aborter.join().unwrap();
        });
    }

    #[test]
    fn an_abort_and_the_last_piece_of_work_at_once() {
        model(|| {
            let engine = Engine::new();
            let (one, other) = (Arc::clone(&engine), Arc::clone(&engine));
            let aborter = thread::spawn(move || one.with(|state| state.is_aborted = true));
            let caller = thread::spawn(move || other.enqueue(false));
            engine.wait(1);
            aborter.join().unwrap();
            caller.join().unwrap();
        });
    }
}
