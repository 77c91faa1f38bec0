//! Errors of the mock, and failures that are kept until somebody asks.

use std::sync::Arc;

use collectives_core::{CommInfo, Error, ErrorKind};

use crate::verdict::Verdict;

/// Why a communicator failed, or work on a stream: kept, and made an [`Error`] each time it is asked
/// for.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    kind: ErrorKind,
    message: Arc<str>,
    hint: Option<Arc<str>>,
    /// Which says the same as data.
    verdict: Option<Arc<Verdict>>,
}

impl Failure {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<Arc<str>>) -> Self {
        Self { kind, message: message.into(), hint: None, verdict: None }
    }

    /// Of a verdict.
    #[must_use]
    pub(crate) fn with_verdict(mut self, verdict: Verdict) -> Self {
        self.verdict = Some(Arc::new(verdict));
        self
    }

    #[must_use]
    pub(crate) fn with_hint(mut self, hint: impl Into<Arc<str>>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// With what it takes to have the same run again.
    #[must_use]
    pub(crate) fn with_note(mut self, note: &str) -> Self {
        if !self.message.ends_with(note) {
            // Behind a table it would be lost.
            let gap = if self.message.contains('\n') { "\n" } else { "; " };
            self.message = format!("{}{gap}{note}", self.message).into();
        }
        self
    }

    pub(crate) fn kind(&self) -> ErrorKind {
        self.kind
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    pub(crate) fn verdict(&self) -> Option<&Verdict> {
        self.verdict.as_deref()
    }

    pub(crate) fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// As an error of the communicator, which is of no more use.
    pub(crate) fn of(&self, comm: &CommInfo) -> Error {
        self.plain().with_comm(comm).with_poison(true)
    }

    /// As an error of the backend.
    pub(crate) fn plain(&self) -> Error {
        let error = refuse(self.kind, &*self.message);
        match &self.hint {
            Some(hint) => error.with_hint(&**hint),
            None => error,
        }
    }
}

/// An error of this backend.
#[cold]
pub(crate) fn refuse(kind: ErrorKind, message: impl Into<String>) -> Error {
    Error::new(kind, message).with_backend(BACKEND)
}

/// A refused argument.
#[cold]
pub(crate) fn invalid(message: impl Into<String>) -> Error {
    refuse(ErrorKind::InvalidArgument, message)
}

/// A refused call.
#[cold]
pub(crate) fn misuse(message: impl Into<String>) -> Error {
    refuse(ErrorKind::InvalidUsage, message)
}

/// The backend's name, as people write it.
pub(crate) const BACKEND: &str = "mock";
