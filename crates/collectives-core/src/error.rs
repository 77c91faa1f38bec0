//! One error type for every backend: who, what, where, then what to do.

mod wire;

use std::{
    error::Error as StdError,
    fmt,
    panic::Location,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{CommInfo, LibraryInfo, Version};

/// The result of a call into this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, on which rank, with which values and library, and what to do about it.
///
/// Code branches on [`kind`](Self::kind), [`is_caller_bug`](Self::is_caller_bug) and
/// [`poisons_communicator`](Self::poisons_communicator); people read the `Display`, which is one line
/// unless it reports on several ranks. `Debug` (`{:?}`) is the same text and what the errors underneath add
/// to it, since that is what `unwrap` and a `main` that returns the error show; `{:#?}` shows every field.
/// An error can be serialised for another process; of the errors underneath, only the text arrives.
///
/// ```
/// use collectives_core::{DType, ErrorKind};
/// let error = DType::from_torch_name("torch.bool").unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Unsupported);
/// assert_eq!(error.to_string(), "dtype 'torch.bool' has no collective; send it as uint8");
/// ```
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    message: String,
    backend: Option<&'static str>,
    operation: Option<&'static str>,
    library: Option<(PathBuf, Version)>,
    rank: Option<(u32, usize)>,
    communicator: Option<String>,
    site: Option<String>,
    vendor_code: Option<VendorCode>,
    last_error: Option<String>,
    hint: Option<String>,
    poisons_communicator: bool,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// Makes an error of `kind`; `message` says what happened, in lower case, without a full stop.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            message: message.into(),
            backend: None,
            operation: None,
            library: None,
            rank: None,
            communicator: None,
            site: None,
            vendor_code: None,
            last_error: None,
            hint: None,
            poisons_communicator: kind.poisons_communicator(),
            source: None,
        }))
    }

    /// Names the operation that was refused or failed, as the trait method is called.
    #[must_use]
    pub fn with_operation(mut self, operation: &'static str) -> Self {
        self.0.operation = Some(operation);
        self
    }

    /// Names the backend, as people write it: `NCCL`, `RCCL`, `mock`.
    #[must_use]
    pub fn with_backend(mut self, backend: &'static str) -> Self {
        self.0.backend = Some(backend);
        self
    }

    /// Names the library and its version.
    #[must_use]
    pub fn with_library(mut self, library: &LibraryInfo) -> Self {
        self.0.backend = Some(library.backend);
        if let Some(path) = &library.path {
            self.0.library = Some((path.clone(), library.version));
        }
        self
    }

    /// Names the communicator, the rank and its size, the backend and the library.
    #[must_use]
    pub fn with_comm(mut self, comm: &CommInfo) -> Self {
        self.0.rank = Some((comm.rank.get(), comm.size));
        self.0.communicator = comm.name.clone();
        self.with_library(&comm.library)
    }

    /// Names the rank and the size of the world, where there is no communicator yet.
    #[must_use]
    pub fn with_rank(mut self, rank: u32, size: usize) -> Self {
        self.0.rank = Some((rank, size));
        self
    }

    /// Names the place in the program where the operation was called.
    #[must_use]
    pub fn with_site(mut self, site: &Location<'_>) -> Self {
        self.0.site = Some(site.to_string());
        self
    }

    /// Keeps the code that the vendor's library returned.
    #[must_use]
    pub fn with_vendor_code(mut self, code: VendorCode) -> Self {
        self.0.vendor_code = Some(code);
        self
    }

    /// Keeps the vendor's last error text (`ncclGetLastError`). An empty text is dropped.
    #[must_use]
    pub fn with_last_error(mut self, text: impl Into<String>) -> Self {
        let text = text.into();
        self.0.last_error = Some(text).filter(|text| !text.is_empty());
        self
    }

    /// As [`with_last_error`](Self::with_last_error), where the words may have nothing to do with this
    /// error: [`last_error`](Self::last_error) says so in front of them.
    #[must_use]
    pub fn with_doubtful_last_error(self, text: impl AsRef<str>) -> Self {
        match text.as_ref() {
            "" => self,
            text => self.with_last_error(format!("{PERHAPS}{text}")),
        }
    }

    /// Says what to do.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Says whether the communicator can still be used, where the kind alone does not decide it.
    #[must_use]
    pub fn with_poison(mut self, poisons_communicator: bool) -> Self {
        self.0.poisons_communicator = poisons_communicator;
        self
    }

    /// Keeps the error underneath.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// The same error for one more reader; without the error underneath, which has one owner.
    #[must_use]
    pub fn copy(&self) -> Self {
        let Inner {
            kind,
            message,
            backend,
            operation,
            library,
            rank,
            communicator,
            site,
            vendor_code,
            last_error,
            hint,
            poisons_communicator,
            source: _,
        } = &*self.0;
        Self(Box::new(Inner {
            kind: *kind,
            message: message.clone(),
            backend: *backend,
            operation: *operation,
            library: library.clone(),
            rank: *rank,
            communicator: communicator.clone(),
            site: site.clone(),
            vendor_code: *vendor_code,
            last_error: last_error.clone(),
            hint: hint.clone(),
            poisons_communicator: *poisons_communicator,
            source: None,
        }))
    }

    /// The class of this error.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What happened, without the names around it.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The operation that was refused or failed.
    pub fn operation(&self) -> Option<&'static str> {
        self.0.operation
    }

    /// The backend, as people write it.
    pub fn backend(&self) -> Option<&'static str> {
        self.0.backend
    }

    /// The library's path and version, where a library was involved.
    pub fn library(&self) -> Option<(&Path, Version)> {
        self.0.library.as_ref().map(|(path, version)| (path.as_path(), *version))
    }

    /// The rank the error is about, and the size of its communicator.
    pub fn rank(&self) -> Option<(u32, usize)> {
        self.0.rank
    }

    /// The name given to the communicator.
    pub fn communicator(&self) -> Option<&str> {
        self.0.communicator.as_deref()
    }

    /// Where in the program the operation was called that was refused: `src/step.rs:41:22`.
    pub fn site(&self) -> Option<&str> {
        self.0.site.as_deref()
    }

    /// The code that the vendor's library returned.
    pub fn vendor_code(&self) -> Option<VendorCode> {
        self.0.vendor_code
    }

    /// The vendor's last error text. NCCL keeps one such text for the whole process and never clears it,
    /// so it is a hint, not proof.
    #[doc(alias = "ncclGetLastError")]
    pub fn last_error(&self) -> Option<&str> {
        self.0.last_error.as_deref()
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// Whether the calling code has to change.
    pub fn is_caller_bug(&self) -> bool {
        self.0.kind.is_caller_bug()
    }

    /// Whether the communicator can no longer be used: abort it and join again, or revoke and shrink it.
    /// If `false`, the call had no effect and the communicator works as before.
    pub fn poisons_communicator(&self) -> bool {
        self.0.poisons_communicator
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &*self.0;
        let mut named = false;
        if let Some(backend) = inner.backend {
            f.write_str(backend)?;
            named = true;
        }
        if let Some(operation) = inner.operation {
            write!(f, "{}{operation}", if named { " " } else { "" })?;
            named = true;
        }
        if let Some((rank, size)) = inner.rank {
            write!(f, "{}(rank {rank} of {size}", if named { " " } else { "" })?;
            if let Some(name) = &inner.communicator {
                write!(f, ", communicator '{name}'")?;
            }
            f.write_str(")")?;
            named = true;
        }
        if named {
            f.write_str(": ")?;
        }
        f.write_str(&inner.message)?;
        match (inner.vendor_code, &inner.library) {
            (Some(code), Some((path, version))) => {
                write!(f, " (code {code}, {} {version})", path.display())?;
            }
            (Some(code), None) => write!(f, " (code {code})")?,
            (None, _) => {}
        }
        if let Some(text) = &inner.last_error {
            let (doubt, words) = match text.strip_prefix(PERHAPS) {
                Some(words) => (PERHAPS, words),
                None => ("", text.as_str()),
            };
            // A quote in them would look like their end.
            write!(f, ": {doubt}\"{}\"", words.trim_end().replace('"', "'"))?;
        }
        if let Some(site) = &inner.site {
            write!(f, ", called at {site}")?;
        }
        if let Some(hint) = &inner.hint {
            // Behind a table it would be lost.
            f.write_str(if inner.message.contains('\n') { "\n" } else { "; " })?;
            f.write_str(hint)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if f.alternate() {
            return self.0.fmt(f);
        }
        let said = self.to_string();
        f.write_str(&said)?;
        let mut source = self.source();
        while let Some(error) = source {
            let why = error.to_string();
            if !said.contains(&why) {
                write!(f, "\n  because of: {why}")?;
            }
            source = error.source();
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

/// In front of a vendor's last words that may not belong to the error.
const PERHAPS: &str = "perhaps of another call: ";

/// A code that a vendor's library returned. The set is open: NCCL adds codes, so an unknown one is
/// kept as it is.
#[doc(alias = "ncclResult_t")]
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct VendorCode(pub i32);

impl fmt::Display for VendorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The class of an [`Error`].
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The communicator was aborted, here or by another holder of its abort handle.
    Aborted,
    /// No rank can go on: they wait for each other, or for a rank that waits, too.
    Deadlock,
    /// The vendor's device runtime failed: driver missing, illegal access, lost device.
    Device,
    /// A library loaded before `fork` was used in the child.
    Forked,
    /// A library broke its own promises.
    Internal,
    /// An argument is wrong: count, dtype, root, peer, overlap, null pointer, wrong device.
    InvalidArgument,
    /// The call is not allowed now: outside a group, during capture, after finalize.
    InvalidUsage,
    /// No usable library was found.
    Library,
    /// Device or host memory ran out.
    OutOfMemory,
    /// Another rank ended, or the network to it failed.
    Remote,
    /// The communicator was revoked, here or by another rank: shrink it, or end it.
    Revoked,
    /// The operating system refused something the library needs.
    System,
    /// A deadline passed.
    Timeout,
    /// The library is too old for this, or the backend has no such operation.
    Unsupported,
    /// The vendor's library returned a code this version does not know.
    Vendor,
}

impl ErrorKind {
    /// Whether changing the calling code is what cures an error of this kind.
    pub const fn is_caller_bug(self) -> bool {
        match self {
            Self::Deadlock | Self::Forked | Self::InvalidArgument | Self::InvalidUsage => true,
            Self::Aborted
            | Self::Device
            | Self::Internal
            | Self::Library
            | Self::OutOfMemory
            | Self::Remote
            | Self::Revoked
            | Self::System
            | Self::Timeout
            | Self::Unsupported
            | Self::Vendor => false,
        }
    }

    const fn poisons_communicator(self) -> bool {
        match self {
            Self::Aborted
            | Self::Deadlock
            | Self::Device
            | Self::Forked
            | Self::Internal
            | Self::Remote
            | Self::Revoked
            | Self::System
            | Self::Vendor => true,
            Self::InvalidArgument
            | Self::InvalidUsage
            | Self::Library
            | Self::OutOfMemory
            | Self::Timeout
            | Self::Unsupported => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn comm() -> CommInfo {
        CommInfo::new(
            crate::Rank::new(2),
            8,
            2,
            Some("tp".into()),
            LibraryInfo {
                backend: "NCCL",
                path: Some("/opt/nccl/libnccl.so.2".into()),
                version: Version::new(2, 28, 9),
                found_by: "soname".into(),
            },
        )
    }

    #[test]
    fn display_names_who_what_where_and_what_to_do() {
        let plain = Error::new(ErrorKind::InvalidArgument, "recv holds 1024 elements, want 2048");
        assert_eq!(plain.to_string(), "recv holds 1024 elements, want 2048");

        let full = Error::new(ErrorKind::Device, "unhandled cuda error")
            .with_comm(&comm())
            .with_operation("all_reduce")
            .with_vendor_code(VendorCode(1))
            .with_last_error("Cuda failure 'out of memory'\n")
            .with_hint("free memory");
        assert_eq!(
            full.to_string(),
            "NCCL all_reduce (rank 2 of 8, communicator 'tp'): unhandled cuda error (code 1, \
             /opt/nccl/libnccl.so.2 2.28.9): \"Cuda failure 'out of memory'\"; free memory"
        );
        assert_eq!(full.vendor_code(), Some(VendorCode(1)));

        let doubtful = Error::new(ErrorKind::Device, "unhandled cuda error")
            .with_doubtful_last_error("Missing \"iommu=pt\" from kernel command line")
            .with_hint("see rocminfo");
        assert_eq!(
            doubtful.to_string(),
            "unhandled cuda error: perhaps of another call: \"Missing 'iommu=pt' from kernel command \
             line\"; see rocminfo"
        );
        let words = "perhaps of another call: Missing \"iommu=pt\" from kernel command line";
        assert_eq!(doubtful.last_error(), Some(words), "code has the words as they are");
        assert_eq!(plain.with_doubtful_last_error("").last_error(), None);
        assert_eq!(full.rank(), Some((2, 8)));
    }

    #[test]
    fn display_names_the_place_before_what_to_do() {
        let site = Location::caller();
        let error = Error::new(ErrorKind::InvalidArgument, "root is 7, want 0 to 3")
            .with_operation("broadcast")
            .with_site(site)
            .with_hint("mind the size");
        assert_eq!(error.site(), Some(&*site.to_string()));
        assert_eq!(
            error.to_string(),
            format!("broadcast: root is 7, want 0 to 3, called at {site}; mind the size")
        );
    }

    #[test]
    fn debug_is_for_people_and_alternate_debug_for_engineers() {
        let file = std::io::Error::other("no such file");
        let error = Error::new(ErrorKind::System, "nothing to read").with_hint("look");
        assert_eq!(format!("{error:?}"), error.to_string());
        let known = Error::new(ErrorKind::System, "to read").with_source(file);
        let error = error.with_source(known);
        assert_eq!(format!("{error:?}"), format!("{error}\n  because of: no such file"));
        assert!(format!("{error:#?}").contains("kind: System"), "{error:#?}");
    }

    #[test]
    fn kinds_say_who_must_act_and_what_is_lost() {
        let bug = Error::new(ErrorKind::InvalidArgument, "x");
        assert!(bug.is_caller_bug() && !bug.poisons_communicator());
        let world = Error::new(ErrorKind::Remote, "x");
        assert!(!world.is_caller_bug() && world.poisons_communicator());
        assert!(!world.with_poison(false).poisons_communicator());
    }

    #[test]
    fn a_copy_says_the_same() {
        let error = Error::new(ErrorKind::Timeout, "not done")
            .with_comm(&comm())
            .with_operation("all_reduce")
            .with_site(Location::caller())
            .with_vendor_code(VendorCode(8))
            .with_last_error("words")
            .with_hint("abort")
            .with_poison(true)
            .with_source(std::fmt::Error);
        let copy = error.copy();
        assert_eq!(copy.to_string(), error.to_string());
        assert_eq!((copy.kind(), copy.poisons_communicator()), (ErrorKind::Timeout, true));
        assert!(copy.source().is_none());
    }

    #[test]
    fn an_error_is_one_word_wide() {
        assert_eq!(size_of::<Result<()>>(), size_of::<usize>());
    }
}
