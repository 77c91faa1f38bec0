//! How a case says what is wrong: a [`Failure`] with its place in the source.

use std::{
    fmt::{self, Debug},
    panic::Location,
};

use collectives_core::{Error, ErrorKind};
use serde::{Deserialize, Serialize};

/// What a case returns.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

/// How a case ends on a rank that did not fail.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) enum End {
    /// It was tried to its end.
    Complete,
    /// The system lacks what it needs, which only trying told.
    Skipped(String),
}

/// Why a rank failed its case.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Failure {
    message: String,
    site: Option<String>,
    /// Whether it only says that another rank failed.
    echo: bool,
}

impl Failure {
    #[track_caller]
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), site: Some(Location::caller().to_string()), echo: false }
    }

    /// The failure of another rank, seen from this one.
    #[track_caller]
    pub(crate) fn echo(message: impl Into<String>) -> Self {
        Self { echo: true, ..Self::new(message) }
    }

    /// What a panic said.
    pub(crate) fn panic(payload: &(dyn std::any::Any + Send)) -> Self {
        let text = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let message = format!("panicked: {}", text.unwrap_or("(no text)"));
        Self::end(message)
    }

    /// How a rank ended that says nothing itself.
    pub(crate) const fn end(message: String) -> Self {
        Self { message, site: None, echo: false }
    }

    pub(crate) fn is_echo(&self) -> bool {
        self.echo
    }

    /// Says what was being done.
    #[must_use]
    pub(crate) fn during(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }
}

impl From<Error> for Failure {
    #[track_caller]
    fn from(error: Error) -> Self {
        Self::new(format!("{:?}: {error}", error.kind()))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.site {
            Some(site) => write!(f, "\n      at {site}"),
            None => Ok(()),
        }
    }
}

#[track_caller]
pub(crate) fn check(holds: bool, what: impl fmt::Display) -> Outcome {
    if holds { Ok(()) } else { Err(Failure::new(format!("{what} does not hold"))) }
}

#[track_caller]
pub(crate) fn check_eq<T: Debug + PartialEq>(what: impl fmt::Display, got: T, want: T) -> Outcome {
    if got == want {
        return Ok(());
    }
    Err(Failure::new(format!("{what} is {got:?}, want {want:?}")))
}

/// The error of a call that had to fail with `kind`.
#[track_caller]
pub(crate) fn fails<T>(
    kind: ErrorKind,
    what: impl fmt::Display,
    result: Result<T, Error>,
) -> Outcome<Error> {
    match result {
        Ok(_) => Err(Failure::new(format!("{what} succeeded, want {kind:?}"))),
        Err(error) if error.kind() == kind => Ok(error),
        Err(error) => Err(Failure::new(format!(
            "{what} failed with {:?}, want {kind:?}: {error}",
            error.kind()
        ))),
    }
}

/// The error of a call that had to be refused: it had no effect, and the communicator works on.
#[track_caller]
pub(crate) fn refused<T>(
    kind: ErrorKind,
    what: impl fmt::Display,
    result: Result<T, Error>,
) -> Outcome<Error> {
    let error = fails(kind, &what, result)?;
    if error.poisons_communicator() {
        return Err(Failure::new(format!("{what}: the refusal poisons: {error}")));
    }
    Ok(error)
}
