//! Whether this process is a forked child of one that had a library open.
//!
//! GPU drivers and NCCL don't survive a fork: their threads are gone, their locks may be held for
//! ever, and the first call hangs. A child must hear about it before that call. Comparing process
//! ids on each call would cost a system call; a flag that the fork itself sets costs one relaxed
//! load.

use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether this process was forked, directly or not, from one that had called [`arm`].
///
/// A child that executes another program starts afresh.
#[inline]
pub fn in_forked_child() -> bool {
    // Relaxed: the store happens before the child's only thread returns from fork.
    FORKED.load(Ordering::Relaxed)
}

/// Notices forks from now on. Loading a library calls this; calling it again does nothing.
///
/// Where there is no fork, as on Windows and under Miri, it does nothing at all.
pub fn arm() {
    ARMED.call_once(|| {
        #[cfg(all(unix, not(miri)))]
        {
            // SAFETY: the handler has the right signature, lives as long as the process, and only
            // stores to an atomic, which is async-signal-safe.
            let code = unsafe { libc::pthread_atfork(None, None, Some(note_fork)) };
            if code != 0 {
                // Out of memory, the only failure there is; a missed diagnosis is no reason to
                // stop.
                tracing::warn!(code, "pthread_atfork refused: use after fork goes unnoticed");
            }
        }
    });
}

/// Runs in the child, on its only thread, where nothing but async-signal-safe calls is allowed.
#[cfg(all(unix, not(miri)))]
extern "C" fn note_fork() {
    FORKED.store(true, Ordering::Relaxed);
}

static ARMED: Once = Once::new();
static FORKED: AtomicBool = AtomicBool::new(false);

#[cfg(all(test, unix, not(miri)))] // Miri has no fork
mod tests {
    use super::*;

    /// Forks; the child answers with a number, which is its exit status.
    fn in_child(answer: impl FnOnce() -> i32) -> i32 {
        // SAFETY: the child only runs `answer`, which loads atomics and forks, and then ends.
        let child = unsafe { libc::fork() };
        assert!(child >= 0, "fork: {}", std::io::Error::last_os_error());
        if child == 0 {
            let code = answer();
            // SAFETY: ends the child at once, running no destructor of the parent's.
            unsafe { libc::_exit(code) };
        }
        let mut status = 0;
        // SAFETY: `status` outlives the call.
        let waited = unsafe { libc::waitpid(child, &mut status, 0) };
        assert_eq!(waited, child, "waitpid: {}", std::io::Error::last_os_error());
        assert!(libc::WIFEXITED(status), "the child ended by status {status:#x}");
        libc::WEXITSTATUS(status)
    }

    #[test]
    fn children_and_grandchildren_know_and_the_parent_does_not() {
        arm();
        arm();
        assert!(!in_forked_child());
        assert_eq!(in_child(|| i32::from(in_forked_child())), 1);
        assert_eq!(in_child(|| 2 + in_child(|| i32::from(in_forked_child()))), 3);
        assert!(!in_forked_child());
    }
}
