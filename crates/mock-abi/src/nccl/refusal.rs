//! Why a call is refused: a code, and the text of a warning.

use std::fmt::Display;

use collectives_core::{Error, ErrorKind};
use collectives_nccl_abi::ncclResult_t;

use super::{identity::Identity, log};

/// Why a call is refused or failed.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) code: ncclResult_t,
    text: String,
}

pub(super) type Result<T, E = Refusal> = std::result::Result<T, E>;

impl Refusal {
    pub(super) fn argument(text: impl Into<String>) -> Self {
        Self { code: ncclResult_t::INVALID_ARGUMENT, text: text.into() }
    }

    pub(super) fn usage(text: impl Into<String>) -> Self {
        Self { code: ncclResult_t::INVALID_USAGE, text: text.into() }
    }

    pub(super) fn cuda(text: impl Into<String>) -> Self {
        Self { code: ncclResult_t::UNHANDLED_CUDA_ERROR, text: text.into() }
    }

    /// What an out argument that is null gets.
    pub(super) fn null(call: impl Display, argument: &str) -> Self {
        Self::argument(format!("{call} : {argument} argument is NULL"))
    }

    /// A code that was reported before, whose text shall stay.
    pub(super) const fn again(code: ncclResult_t) -> Self {
        Self { code, text: String::new() }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let stricter = match error.kind() {
            ErrorKind::Deadlock => true,
            // Ranks that disagree; a refused call would leave the communicator as it was.
            ErrorKind::InvalidUsage => error.poisons_communicator(),
            _ => false,
        };
        let strict = if stricter { "stricter than NCCL, which would hang: " } else { "" };
        Self { code: code_of(error.kind()), text: format!("{strict}{error}") }
    }
}

/// NCCL's code for a kind of error.
pub(super) fn code_of(kind: ErrorKind) -> ncclResult_t {
    let identity = Identity::get();
    match kind {
        ErrorKind::Device | ErrorKind::OutOfMemory => ncclResult_t::UNHANDLED_CUDA_ERROR,
        ErrorKind::Forked | ErrorKind::Library | ErrorKind::System => ncclResult_t::SYSTEM_ERROR,
        ErrorKind::Aborted | ErrorKind::InvalidArgument => ncclResult_t::INVALID_ARGUMENT,
        ErrorKind::Deadlock
        | ErrorKind::InvalidUsage
        | ErrorKind::Revoked
        | ErrorKind::Unsupported => ncclResult_t::INVALID_USAGE,
        ErrorKind::Timeout if identity.is_at_least(23003) => ncclResult_t::TIMEOUT,
        ErrorKind::Remote | ErrorKind::Timeout if identity.is_at_least(21304) => {
            ncclResult_t::REMOTE_ERROR
        }
        ErrorKind::Remote | ErrorKind::Timeout => ncclResult_t::SYSTEM_ERROR,
        _ => ncclResult_t::INTERNAL_ERROR,
    }
}

/// What a call answers: its own code, or that of its refusal, whose text is kept and printed.
pub(super) fn answer(body: impl FnOnce() -> Result<ncclResult_t>) -> ncclResult_t {
    body().unwrap_or_else(|refusal| refusal.report())
}

impl Refusal {
    /// Keeps the text and prints it.
    pub(super) fn report(self) -> ncclResult_t {
        if !self.text.is_empty() {
            log::warn(&self.text);
        }
        self.code
    }
}

/// Writes one of the things that a call tells, where the caller wants it.
///
/// # Errors
/// NCCL's for a null argument.
pub(super) fn put<T>(call: &str, argument: &str, place: *mut T, value: T) -> Result<()> {
    if place.is_null() {
        return Err(Refusal::null(call, argument));
    }
    // SAFETY: not null, so it is the caller's, and of this type by the function's signature.
    unsafe { place.write(value) };
    Ok(())
}

/// As [`put`], where that was all.
///
/// # Errors
/// NCCL's for a null argument.
pub(super) fn tell<T>(call: &str, argument: &str, place: *mut T, value: T) -> Result<ncclResult_t> {
    put(call, argument, place, value)?;
    Ok(ncclResult_t::SUCCESS)
}
