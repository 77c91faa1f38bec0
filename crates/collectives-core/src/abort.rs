//! Ending a communicator from another thread.

use std::{fmt, sync::Arc};

use crate::{Error, Result};

/// Ends a communicator from any thread, and says whether it is still alive.
///
/// It outlives the communicator: once that is gone, [`abort`](Self::abort) does nothing. Aborting
/// never ends the process and returns after a bounded time, also when a call of another thread is
/// stuck inside the library.
#[doc(alias = "ncclCommAbort")]
#[derive(Clone)]
pub struct AbortHandle(Arc<dyn AbortControl>);

impl AbortHandle {
    /// For backends: wraps what they share between a communicator and its handles.
    pub fn new(control: Arc<dyn AbortControl>) -> Self {
        Self(control)
    }

    /// Ends the communicator: operations in flight stop, and every later call on it returns an
    /// error of kind [`Aborted`](crate::ErrorKind::Aborted). A second abort does nothing.
    ///
    /// # Errors
    /// What the library reported while it was ending; the communicator is ended all the same.
    pub fn abort(&self) -> Result<()> {
        self.0.abort()
    }

    /// Whether the communicator was aborted.
    pub fn is_aborted(&self) -> bool {
        self.0.is_aborted()
    }

    /// Why results that depend on the communicator must not be trusted: it was aborted, it failed on
    /// its own, or it was [condemned](Self::condemn). `None` while it is healthy, and after it was finalized in good health.
    #[doc(alias = "ncclCommGetAsyncError")]
    pub fn failure(&self) -> Option<Error> {
        self.0.failure()
    }

    /// Gives the communicator a failure that somebody else has found: a watchdog, a heartbeat, a
    /// launcher. From now on [`failure`](Self::failure) and waits return it, and so does every call
    /// after an [`abort`](Self::abort), in place of the bare news that it was aborted. The
    /// communicator is not ended by this: it can still be revoked and shrunk. The first reason
    /// stays; one that has failed already keeps its own failure until it is aborted.
    pub fn condemn(&self, reason: Error) {
        self.0.condemn(reason);
    }

    /// Whether both handles end the same communicator.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for AbortHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AbortHandle").field("aborted", &self.is_aborted()).finish()
    }
}

/// What a backend shares between a communicator and its [`AbortHandle`]s.
pub trait AbortControl: Send + Sync {
    /// See [`AbortHandle::abort`].
    fn abort(&self) -> Result<()>;

    /// See [`AbortHandle::is_aborted`].
    fn is_aborted(&self) -> bool;

    /// See [`AbortHandle::failure`].
    fn failure(&self) -> Option<Error>;

    /// See [`AbortHandle::condemn`].
    fn condemn(&self, reason: Error);
}
