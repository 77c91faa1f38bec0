//! Whether this process is a forked child of one that had an engine.
//!
//! A child has the parent's memory but none of its threads: ranks and workers are gone, and a lock
//! may be held for ever. A flag that the fork itself sets costs one relaxed load per call;
//! comparing process ids would cost a system call. `collectives-nccl-abi` has the same for real
//! libraries; the mock does not depend on it, since it opens none.

use std::sync::{
    Once,
    atomic::{AtomicBool, Ordering},
};

use collectives_core::{Error, ErrorKind, Result};

/// Refuses in a forked child.
#[inline]
pub(crate) fn check() -> Result<()> {
    if in_forked_child() { Err(forked()) } else { Ok(()) }
}

/// Whether this is a forked child.
#[inline]
pub(crate) fn in_forked_child() -> bool {
    // Relaxed: the store happens before the child's only thread returns from fork.
    FORKED.load(Ordering::Relaxed)
}

/// Notices forks from now on.
pub(crate) fn arm() {
    static ARMED: Once = Once::new();
    ARMED.call_once(|| {
        #[cfg(all(unix, not(miri)))]
        {
            // SAFETY: the handler has the right signature, lives as long as the process, and only
            // stores to an atomic, which is async-signal-safe.
            let code = unsafe { libc::pthread_atfork(None, None, Some(note)) };
            if code != 0 {
                // Out of memory, the only failure there is; a missed diagnosis is no reason to
                // stop.
                tracing::warn!(code, "pthread_atfork refused: use after fork goes unnoticed");
            }
        }
    });
}

/// Runs in the child, where nothing but async-signal-safe calls is allowed.
#[cfg(all(unix, not(miri)))]
extern "C" fn note() {
    FORKED.store(true, Ordering::Relaxed);
}

#[cold]
fn forked() -> Error {
    Error::new(ErrorKind::Forked, "this process was forked from one that uses the mock")
        .with_backend("mock")
        .with_hint("make the mock in the child, after the fork, by executing a program")
}

static FORKED: AtomicBool = AtomicBool::new(false);

#[cfg(all(test, unix, not(miri)))] // Miri has no fork
mod tests {
    use collectives_core::{Backend, ErrorKind};

    use crate::{Mock, MockConfig};

    #[test]
    fn a_forked_child_is_refused_and_its_parent_is_not() {
        let mock = Mock::new(MockConfig::new());
        // SAFETY: the child makes one call, which must touch no lock, and ends.
        let child = unsafe { libc::fork() };
        assert!(child >= 0, "fork: {}", std::io::Error::last_os_error());
        if child == 0 {
            let kind = mock.unique_id().map_err(|error| error.kind());
            let code = i32::from(kind != Err(ErrorKind::Forked));
            // SAFETY: ends the child at once, running no destructor of the parent's.
            unsafe { libc::_exit(code) };
        }
        let mut status = 0;
        // SAFETY: `status` outlives the call.
        let waited = unsafe { libc::waitpid(child, &mut status, 0) };
        assert_eq!(waited, child, "waitpid: {}", std::io::Error::last_os_error());
        assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "status {status:#x}");
        mock.unique_id().unwrap();
    }
}
