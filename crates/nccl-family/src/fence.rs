//! A fence whose price only the rare side pays.
//!
//! Two threads that each write one word and then read the other's need a full fence between the two
//! (Dekker's argument), or both may miss the other's write. Where one side is hot and the other
//! rare, Linux lets the rare one fence for both: `membarrier` returns once every running thread of
//! the process has passed a full fence, and a thread that doesn't run passed one when it stopped.
//! So the hot side only keeps the compiler from swapping its write and its read:
//!
//! - what it wrote before that fence is seen by the rare side, which reads after `membarrier`;
//! - what it reads after that fence shows what the rare side wrote before `membarrier`.
//!
//! Elsewhere, and where the kernel or a seccomp filter refuses, both sides have a full fence.

use std::sync::{
    OnceLock,
    atomic::{self, Ordering},
};

/// Which fences the two sides use. Both sides must use the same.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Fence {
    /// The light side orders the compiler only, the heavy one every thread of the process.
    Asymmetric,
    /// Both sides order themselves.
    Symmetric,
    /// Stands for a `membarrier` that fails after it was registered.
    #[cfg(test)]
    Broken,
}

impl Fence {
    /// The cheapest kind that this process may use, decided once and for ever. The first call may
    /// take milliseconds, as the kernel waits for all processors.
    pub(crate) fn of_process() -> Self {
        static KIND: OnceLock<Fence> = OnceLock::new();
        *KIND.get_or_init(|| match membarrier::register() {
            true => Self::Asymmetric,
            false => Self::Symmetric,
        })
    }

    /// Between the write and the read of the hot side.
    #[inline(always)]
    pub(crate) fn light(self) {
        match self {
            Self::Asymmetric => atomic::compiler_fence(Ordering::SeqCst),
            Self::Symmetric => atomic::fence(Ordering::SeqCst),
            #[cfg(test)]
            Self::Broken => {}
        }
    }

    /// Between the write and the read of the rare side. If this says no, which a kernel out of
    /// memory or a filter installed since may cause, nothing is known about the hot side.
    #[must_use]
    pub(crate) fn heavy(self) -> bool {
        atomic::fence(Ordering::SeqCst);
        match self {
            Self::Asymmetric => membarrier::run(),
            Self::Symmetric => true,
            #[cfg(test)]
            Self::Broken => false,
        }
    }
}

/// Miri runs no system calls, and would not know what this one orders.
#[cfg(all(target_os = "linux", not(miri)))]
mod membarrier {
    use rustix::thread::{MembarrierCommand, membarrier};

    pub(super) fn register() -> bool {
        let registered = membarrier(MembarrierCommand::RegisterPrivateExpedited)
            .and_then(|()| membarrier(MembarrierCommand::PrivateExpedited));
        if let Err(error) = registered {
            tracing::debug!(%error, "membarrier is refused: calls pay for a fence of their own");
        }
        registered.is_ok()
    }

    pub(super) fn run() -> bool {
        let done = membarrier(MembarrierCommand::PrivateExpedited);
        if let Err(error) = done {
            tracing::debug!(%error, "membarrier failed after it had been registered");
        }
        // What follows is not read before the fence.
        super::atomic::compiler_fence(super::Ordering::SeqCst);
        done.is_ok()
    }
}

#[cfg(not(all(target_os = "linux", not(miri))))]
mod membarrier {
    pub(super) fn register() -> bool {
        false
    }

    pub(super) fn run() -> bool {
        false
    }
}
