//! The library's result codes as errors.

use collectives_core::{CommInfo, Error, ErrorKind, LibraryInfo, VendorCode};
use collectives_nccl_abi::{self as abi, Flavour, LoadError, ncclResult_t};

/// An error for what the library answered, with its text and its last words, copied at once.
///
/// Codes 4 and 5 are refusals: the call had no effect. All others have broken the communicator,
/// also the unknown ones.
pub(crate) fn from_result(library: &abi::Library, result: ncclResult_t) -> Error {
    let last_words = library.last_error().unwrap_or_default();
    let out_of_memory = match library.flavour() {
        Flavour::Nccl => last_words.contains("out of memory"),
        Flavour::Rccl => last_words.contains("HIP failure") && last_words.contains("out of memory"),
    };
    let kind = match result {
        ncclResult_t::UNHANDLED_CUDA_ERROR if out_of_memory => ErrorKind::OutOfMemory,
        ncclResult_t::UNHANDLED_CUDA_ERROR => ErrorKind::Device,
        ncclResult_t::SYSTEM_ERROR => ErrorKind::System,
        ncclResult_t::INTERNAL_ERROR => ErrorKind::Internal,
        ncclResult_t::INVALID_ARGUMENT => ErrorKind::InvalidArgument,
        ncclResult_t::INVALID_USAGE => ErrorKind::InvalidUsage,
        ncclResult_t::REMOTE_ERROR => ErrorKind::Remote,
        // Waiting for it is our part (`Lifeline::settle`), so nobody else may see it.
        ncclResult_t::IN_PROGRESS => ErrorKind::Internal,
        // The number was `ncclNumResults` in older headers: no library answered it.
        ncclResult_t::TIMEOUT if library.version() >= FIRST_WITH_TIMEOUT => ErrorKind::Timeout,
        _ => ErrorKind::Vendor,
    };
    let message = match kind {
        ErrorKind::Vendor => format!("unknown code {}", result.0),
        _ => library.error_text(result),
    };
    let error = Error::new(kind, message)
        .with_vendor_code(VendorCode(result.0))
        .with_poison(poisons(result));
    match library.flavour() {
        Flavour::Nccl => error.with_last_error(last_words),
        // It leaves warnings there that have nothing to do with the failure.
        Flavour::Rccl => error.with_doubtful_last_error(last_words),
    }
}

/// Whether a communicator that answered this is of no more use.
pub(crate) const fn poisons(result: ncclResult_t) -> bool {
    !matches!(result, ncclResult_t::INVALID_ARGUMENT | ncclResult_t::INVALID_USAGE)
}

/// No usable library: all that was tried.
pub(crate) fn from_load(error: LoadError) -> Error {
    Error::new(ErrorKind::Library, error.to_string()).with_source(error)
}

/// A library that does not keep its own promises.
pub(crate) fn broken_promise(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Internal, what)
}

/// Use in a forked child.
#[cold]
pub(crate) fn forked(operation: &'static str, library: &LibraryInfo) -> Error {
    Error::new(ErrorKind::Forked, "the library was loaded before this process was forked")
        .with_library(library)
        .with_operation(operation)
        .with_hint("load it in the child, or start processes instead of forking them")
}

/// The same refusal a second time: one for the call, one for the end of its group.
pub(crate) fn copy(error: &Error, comm: &CommInfo) -> Error {
    let mut copy = Error::new(error.kind(), error.message())
        .with_comm(comm)
        .with_poison(error.poisons_communicator())
        .with_last_error(error.last_error().unwrap_or_default());
    if let Some(operation) = error.operation() {
        copy = copy.with_operation(operation);
    }
    if let Some(code) = error.vendor_code() {
        copy = copy.with_vendor_code(code);
    }
    match error.hint() {
        Some(hint) => copy.with_hint(hint),
        None => copy,
    }
}

/// Version code of the first release whose code 8 is `ncclTimeout`.
const FIRST_WITH_TIMEOUT: i32 = 23_003;
