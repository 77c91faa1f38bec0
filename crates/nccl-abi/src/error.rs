//! Why a library can't be used.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::loader::Source;
use crate::table::{Symbol, Table};
use crate::types::ncclResult_t;
use crate::vendor::{Flavour, Vendor};
use crate::version::version_text;

/// No usable library: what was tried, and why each of it was refused.
///
/// After an explicit path or a variable there is one attempt, as such a choice is never skipped.
#[derive(Debug)]
pub struct LoadError {
    vendor: &'static Vendor,
    attempts: Vec<Attempt>,
}

impl LoadError {
    pub(crate) const fn new(vendor: &'static Vendor, attempts: Vec<Attempt>) -> Self {
        Self { vendor, attempts }
    }

    /// The vendor whose library was looked for.
    pub const fn vendor(&self) -> &'static Vendor {
        self.vendor
    }

    /// What was tried, in order.
    pub fn attempts(&self) -> &[Attempt] {
        &self.attempts
    }

    /// The attempt that the caller or the environment demanded; `None` if this was a search.
    pub fn demanded(&self) -> Option<&Attempt> {
        self.attempts.last().filter(|attempt| attempt.source.is_demand())
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.vendor)?;
        if let Some(Attempt { source, target, refusal }) = self.demanded() {
            return match source {
                Source::EnvVar(variable) => write!(
                    f,
                    "{variable}={}: {refusal}; correct the variable, or unset it to search",
                    target.display()
                ),
                _ => write!(f, "{}: {refusal}", target.display()),
            };
        }
        f.write_str("no usable library: tried ")?;
        for (index, attempt) in self.attempts.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{attempt}")?;
        }
        write!(f, "; {}", self.vendor.advice)
    }
}

impl std::error::Error for LoadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        // A search has as many causes as attempts; they stand in the message.
        match self.demanded().map(|attempt| &attempt.refusal) {
            Some(Refusal::Unreadable(error)) => Some(error),
            _ => None,
        }
    }
}

/// One library that was tried and refused.
#[derive(Debug)]
pub struct Attempt {
    pub(crate) source: Source,
    pub(crate) target: PathBuf,
    pub(crate) refusal: Refusal,
}

impl Attempt {
    /// Where the candidate came from.
    pub const fn source(&self) -> Source {
        self.source
    }

    /// The path, or the bare name that was given to the dynamic loader.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Why it was refused.
    pub const fn refusal(&self) -> &Refusal {
        &self.refusal
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.target.display(), self.refusal)
    }
}

/// Why a candidate was refused.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The path is a folder.
    #[error("is a folder; give the file in it")]
    Directory,
    /// The dynamic loader's own words.
    #[error("{0}")]
    Loader(String),
    /// There is no such file.
    #[error("no such file")]
    Missing,
    /// It opens, and lacks functions that every supported release has.
    #[error("{0}")]
    MissingSymbols(#[from] MissingSymbols),
    /// The file isn't a shared library.
    #[error("not an ELF shared library{0}")]
    NotALibrary(&'static str),
    /// The path is a pipe, socket or device.
    #[error("not a regular file")]
    NotAFile,
    /// No copy is in the process yet, so none can be shared.
    #[error("not in the process yet")]
    NotLoaded,
    /// The name is that of the other vendor's library.
    #[error("this is {0}'s library by its name")]
    OtherVendor(Flavour),
    /// Libraries are opened on Linux only.
    #[error("vendor libraries are opened on Linux only")]
    Platform,
    /// The file ends before its own headers say so; mapping it would kill the process.
    #[error("truncated: {size} bytes, but its headers want {wanted}; install it again")]
    Truncated {
        /// Bytes of the file.
        size: u64,
        /// Bytes that its headers speak of.
        wanted: u64,
    },
    /// The file can't be read.
    #[error("unreadable: {0}")]
    Unreadable(io::Error),
    /// `ncclGetVersion` didn't answer.
    #[error("ncclGetVersion answered {0:?}; is this an NCCL library?")]
    Version(ncclResult_t),
    /// The library was built for another machine.
    #[error("built for {found}, but this process is {wanted}")]
    WrongMachine {
        /// What the file's header says.
        found: String,
        /// What this process is.
        wanted: &'static str,
    },
}

/// The required functions that a library lacks: all of them, at least one.
#[derive(Clone, Debug)]
pub struct MissingSymbols(pub(crate) Vec<&'static Symbol>);

impl MissingSymbols {
    /// The functions, in the order of the [`Table`].
    pub fn symbols(&self) -> &[&'static Symbol] {
        &self.0
    }
}

impl fmt::Display for MissingSymbols {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.0.iter().map(|symbol| symbol.name()).collect();
        write!(f, "lacks {}", names.join(", "))?;
        let required = Table::SYMBOLS.iter().filter(|symbol| symbol.is_required()).count();
        let since = |flavour| self.0.iter().filter_map(|symbol| symbol.since(flavour)).max();
        match (since(Flavour::Nccl), since(Flavour::Rccl)) {
            (Some(nccl), Some(rccl)) if names.len() < required => write!(
                f,
                "; needs NCCL {} or RCCL {}, or newer",
                version_text(nccl),
                version_text(rccl)
            ),
            _ => f.write_str("; is this an NCCL library?"),
        }
    }
}

impl std::error::Error for MissingSymbols {}
