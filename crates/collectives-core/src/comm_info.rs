//! What is known of a communicator and of the library behind it.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
};

use serde::Serialize;

use crate::{Rank, Version};

/// The identity of one rank's end of a communicator, unique in this process and never reused.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct CommId(u64);

impl CommId {
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// The number behind this identity; never zero.
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// What one rank's end of a communicator knows of itself.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CommInfo {
    /// Identity of this end in this process.
    pub id: CommId,
    /// This end's rank.
    pub rank: Rank,
    /// Number of ranks.
    pub size: usize,
    /// Ordinal of the device that this end is bound to.
    pub device: usize,
    /// The name its creator gave it, for errors and logs.
    pub name: Option<String>,
    /// The library that carries it.
    pub library: LibraryInfo,
}

impl CommInfo {
    /// Describes a new end of a communicator, with an identity of its own.
    pub fn new(
        rank: Rank,
        size: usize,
        device: usize,
        name: Option<String>,
        library: LibraryInfo,
    ) -> Self {
        Self { id: CommId::next(), rank, size, device, name, library }
    }
}

/// How much device memory a communicator uses; see
/// [`Collectives::memory_use`](crate::Collectives::memory_use).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct MemoryUse {
    /// Bytes in all.
    pub total: u64,
    /// Bytes that a suspend gives back.
    pub suspendable: u64,
    /// Bytes that it cannot give back.
    pub persistent: u64,
    /// Whether they are given back now.
    pub is_suspended: bool,
}

/// The library behind a backend: what was opened, from where, and which version it says it is.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct LibraryInfo {
    /// The backend's name, as people write it: `NCCL`, `RCCL`, `mock`.
    pub backend: &'static str,
    /// The file that was opened, with links resolved; `None` where there is no file.
    pub path: Option<PathBuf>,
    /// The version that the library reports.
    pub version: Version,
    /// How the file was found, for people: an environment variable, the soname, a wheel.
    pub found_by: String,
}
