//! Wakes a process that sleeps, from any process that maps the bell.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    thread::{
        Timespec,
        futex::{self, Flags},
    },
};

use super::shared::Plain;

/// A place in shared memory where threads sleep until somebody rings. Zero bytes are a fresh one.
///
/// Who waits for a condition: takes the [`state`](Self::state), looks at the condition, and, where it
/// does not hold, [`sleep`](Self::sleep)s with that state. Who makes the condition true
/// [`ring`](Self::ring)s afterwards.
///
/// # No wake-up is lost
/// The sleeper first adds itself to `sleepers`, then looks whether `rung` is still what it has seen;
/// the ringer first changes `rung`, then looks at `sleepers`. All four are `SeqCst`, so in their one
/// order at least one of them sees the other's change. Is it the sleeper, it does not sleep. Is it the
/// ringer, it calls the system, which holds a lock of the bell while it wakes; the sleeper compares
/// `rung` once more under that lock before it sleeps, so it either sleeps already and is woken, or sees
/// the change. And a condition that became true before the sleeper took the state is seen by its look
/// at it: the ringer's change of `rung` comes after the condition, the sleeper's reading before it.
///
/// Two limits. A sleeper that is killed stays in `sleepers`: each ring of that bell then costs a
/// system call, until the dead process is noticed. And 2^32 rings between state and sleep would go
/// unseen.
#[repr(C, align(64))]
#[derive(Debug)]
pub(crate) struct Bell {
    /// How often it was rung, wrapping.
    rung: AtomicU32,
    /// Threads that sleep, or are about to.
    sleepers: AtomicU32,
    /// Nobody else's word shares the cache line.
    rest: [AtomicU32; 14],
}

// SAFETY: made of atomic integers, to the last byte.
unsafe impl Plain for Bell {}

impl Bell {
    /// To be taken before a look at what is waited for.
    #[inline]
    pub(crate) fn state(&self) -> u32 {
        self.rung.load(Ordering::SeqCst)
    }

    /// Sleeps until the bell is rung, or `until`. Does not sleep where it was rung since `seen`. The
    /// answer is whether it was rung.
    pub(crate) fn sleep(&self, seen: u32, until: Option<Instant>) -> bool {
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let rung = self.sleep_as_counted(seen, until);
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        rung
    }

    /// Wakes all who sleep. Without a system call where nobody does.
    #[inline]
    pub(crate) fn ring(&self) {
        self.rung.fetch_add(1, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) != 0 {
            self.wake();
        }
    }

    fn sleep_as_counted(&self, seen: u32, until: Option<Instant>) -> bool {
        while self.state() == seen {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return false;
            }
            // A time that the system can't express is as good as none.
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            match futex::wait(&self.rung, SHARED, seen, timeout.as_ref()) {
                Ok(()) | Err(Errno::AGAIN | Errno::INTR | Errno::TIMEDOUT) => {}
                // There is no other in a working system; one that forbids the call gets polled.
                Err(_) => thread::sleep(Duration::from_millis(1)),
            }
        }
        true
    }

    #[cold]
    fn wake(&self) {
        // The word is mapped, so there is nothing that could fail; and nobody to tell.
        let _ = futex::wake(&self.rung, SHARED, i32::MAX.cast_unsigned());
    }
}

/// Not private to a process.
const SHARED: Flags = Flags::empty();

#[cfg(all(test, not(miri)))] // Miri has no memfd
mod tests {
    use std::thread;

    use super::{super::shared::Shared, *};

    #[test]
    fn a_ring_before_the_sleep_is_not_lost() {
        let (shared, _fd) = Shared::create("collectives-test", 64).unwrap();
        let bell = shared.at::<Bell>(0).unwrap();
        let seen = bell.state();
        bell.ring();
        assert!(bell.sleep(seen, None));
        assert!(!bell.sleep(bell.state(), Some(Instant::now() + Duration::from_millis(1))));
    }

    #[test]
    fn sleepers_of_another_mapping_are_woken() {
        let (here, fd) = Shared::create("collectives-test", 128).unwrap();
        let there = Shared::map(&fd, 128).unwrap();
        let rounds = 10_000;
        thread::scope(|scope| {
            scope.spawn(|| {
                let (own, other) = (there.at::<Bell>(0).unwrap(), there.at::<Bell>(64).unwrap());
                for round in 0..rounds {
                    assert!(own.sleep(round, None));
                    other.ring();
                }
            });
            let (own, other) = (here.at::<Bell>(64).unwrap(), here.at::<Bell>(0).unwrap());
            for round in 0..rounds {
                other.ring();
                assert!(own.sleep(round, None));
            }
            assert_eq!((own.state(), other.state()), (rounds, rounds));
        });
        assert_eq!(here.at::<Bell>(0).unwrap().sleepers.load(Ordering::SeqCst), 0);
    }
}
