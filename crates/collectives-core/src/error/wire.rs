//! Errors on their way to another process: that of a rank to the one that reports on all ranks.
//!
//! Everything arrives but the types underneath: what an error [has as its source](StdError::source)
//! arrives as its words.

use std::{
    collections::BTreeSet,
    error::Error as StdError,
    fmt,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Error, ErrorKind, Inner, VendorCode};
use crate::Version;

#[derive(Deserialize, Serialize)]
struct Wire {
    kind: ErrorKind,
    message: String,
    backend: Option<String>,
    operation: Option<String>,
    library: Option<(PathBuf, Version)>,
    rank: Option<(u32, usize)>,
    communicator: Option<String>,
    site: Option<String>,
    vendor_code: Option<i32>,
    last_error: Option<String>,
    hint: Option<String>,
    poisons_communicator: bool,
    /// The words of each error underneath, the nearest first.
    sources: Vec<String>,
}

impl Serialize for Error {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
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
        let wire = Wire {
            kind: *kind,
            message: message.clone(),
            backend: backend.map(Into::into),
            operation: operation.map(Into::into),
            library: library.clone(),
            rank: *rank,
            communicator: communicator.clone(),
            site: site.clone(),
            vendor_code: vendor_code.map(|code| code.0),
            last_error: last_error.clone(),
            hint: hint.clone(),
            poisons_communicator: *poisons_communicator,
            sources: words_underneath(self),
        };
        wire.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Error {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wire = Wire::deserialize(deserializer)?;
        let underneath = |source: Option<Box<Words>>, text| Some(Box::new(Words { text, source }));
        let source = wire.sources.into_iter().rev().fold(None, underneath);
        Ok(Self(Box::new(Inner {
            kind: wire.kind,
            message: wire.message,
            backend: wire.backend.map(kept),
            operation: wire.operation.map(kept),
            library: wire.library,
            rank: wire.rank,
            communicator: wire.communicator,
            site: wire.site,
            vendor_code: wire.vendor_code.map(VendorCode),
            last_error: wire.last_error,
            hint: wire.hint,
            poisons_communicator: wire.poisons_communicator,
            source: source.map(|source| source as _),
        })))
    }
}

fn words_underneath(error: &dyn StdError) -> Vec<String> {
    let (mut words, mut source) = (Vec::new(), error.source());
    while let Some(error) = source {
        words.push(error.to_string());
        source = error.source();
    }
    words
}

/// What an error underneath said.
#[derive(Debug)]
struct Words {
    text: String,
    source: Option<Box<Self>>,
}

impl fmt::Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl StdError for Words {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// A name for as long as the process lives. There are as many as backends and operations.
fn kept(name: String) -> &'static str {
    static NAMES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    match names.get(name.as_str()) {
        Some(known) => known,
        None => {
            let name = name.leak();
            names.insert(name);
            name
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::Location;

    use super::*;
    use crate::{CommInfo, LibraryInfo, Rank};

    #[test]
    fn everything_arrives() {
        let library = LibraryInfo {
            backend: "NCCL",
            path: Some("/opt/libnccl.so.2".into()),
            version: Version::new(2, 28, 9),
            found_by: "soname".into(),
        };
        let comm = CommInfo::new(Rank::new(2), 8, 2, Some("tp".into()), library);
        let deep = Error::new(ErrorKind::System, "no such file").with_source(std::fmt::Error);
        let sent = Error::new(ErrorKind::Device, "unhandled cuda error")
            .with_comm(&comm)
            .with_operation("all_reduce")
            .with_site(Location::caller())
            .with_vendor_code(VendorCode(1))
            .with_last_error("Cuda failure")
            .with_hint("free memory")
            .with_poison(false)
            .with_source(deep);
        let text = serde_json::to_string(&sent).expect("serializes");
        let got: Error = serde_json::from_str(&text).expect("deserializes");
        assert_eq!(got.to_string(), sent.to_string());
        assert_eq!(got.kind(), ErrorKind::Device);
        assert_eq!(got.operation(), Some("all_reduce"));
        assert!(!got.poisons_communicator());
        let nearest = got.source().expect("a source");
        assert_eq!(nearest.to_string(), "no such file");
        let deepest = nearest.source().expect("a source of the source").to_string();
        assert_eq!(deepest, std::fmt::Error.to_string());
        assert_eq!(serde_json::to_string(&got).expect("serializes"), text);
    }

    #[test]
    fn names_are_kept_once() {
        let (one, two) = (kept("barrier_of_this_test".into()), kept("barrier_of_this_test".into()));
        assert!(std::ptr::eq(one, two));
    }
}
