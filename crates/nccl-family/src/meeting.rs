//! Joins of this process, side by side: what the library would answer by waiting for ever.
//!
//! Each unique id is served by a thread of the library, which goes away without a word when a rank comes
//! twice, or with another size, and when all have come (`bootstrapRoot` in NCCL's `bootstrap.cc`). Then
//! nobody comes together any more: neither the rank that was wrong nor those that were right. Where ranks
//! are threads of one process, that can be known before the library is called.
//!
//! 1. Who joins takes a [`Place`], and keeps it for as long as the library is at it.
//! 2. Who comes with the same id meanwhile, and does not fit to those who have a place, is refused. They
//!    go on waiting, and the right one may come yet.
//! 3. An id whose communicator has come about is remembered, and refused. All ranks have called by then,
//!    so nobody comes too late. One whose join has failed may be tried again: nobody else may have
//!    come to it.
//!
//! Two ranks on one device are left to the library. It tells both; here one of them would go on waiting.

use std::{
    collections::VecDeque,
    env,
    ffi::c_int,
    sync::{Mutex, MutexGuard, PoisonError},
};

use collectives_core::{Error, ErrorKind, LibraryInfo, Rank, Result};
use collectives_nccl_abi::{self as abi, ncclUniqueId};

/// A rank's place in a join, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    number: u64,
    /// Those of its ids that are good for one communicator.
    ids: Vec<ncclUniqueId>,
}

/// Joins that go on, and ids that are used up.
struct Joins {
    next: u64,
    places: Vec<Taken>,
    /// The latest, at the end.
    used: VecDeque<ncclUniqueId>,
}

struct Taken {
    number: u64,
    /// The first, where there are several: they are the same on all ranks.
    id: ncclUniqueId,
    rank: Rank,
    size: usize,
    library: Origin,
}

/// Which library, of those that are open in this process.
struct Origin {
    /// Where it has a function that every release has: copies of one release differ in that.
    address: usize,
    name: String,
}

impl Place {
    /// Takes the place of `rank` under `ids`, of which there is one at least.
    ///
    /// # Errors
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) where another thread of this process joins by
    /// that id, and the two do not fit; [`InvalidUsage`](ErrorKind::InvalidUsage) for an id that was used
    /// up.
    pub(crate) fn take(
        ids: &[ncclUniqueId],
        rank: Rank,
        size: usize,
        library: &abi::Library,
        info: &LibraryInfo,
    ) -> Result<Self> {
        let invalid = |message| Error::new(ErrorKind::InvalidArgument, message);
        let origin = Origin::of(library, info);
        let mut joins = joins();
        if ids.iter().any(|id| joins.used.contains(id)) {
            let message = "this unique id was used up by an earlier join";
            return Err(Error::new(ErrorKind::InvalidUsage, message)
                .with_hint("make a new id for each communicator"));
        }
        for other in joins.places.iter().filter(|other| other.id == ids[0]) {
            if other.library.address != origin.address {
                let (theirs, ours) = (&other.library.name, &origin.name);
                let message =
                    format!("libraries differ: rank {}: {theirs}; rank {rank}: {ours}", other.rank);
                return Err(invalid(message).with_hint("join by one loaded library in all threads"));
            }
            if other.size != size {
                let known = other.size;
                return Err(invalid(format!(
                    "ranks disagree on the size: rank {rank} says {size}, others say {known}"
                )));
            }
            if other.rank == rank {
                return Err(invalid(format!("rank {rank} has joined already")).with_hint(
                    "give each participant a rank of its own, and each attempt a new id",
                ));
            }
        }
        let number = joins.next;
        joins.next += 1;
        joins.places.push(Taken { number, id: ids[0], rank, size, library: origin });
        let once = |id: &&ncclUniqueId| is_good_once(id, library.version());
        Ok(Self { number, ids: ids.iter().filter(once).copied().collect() })
    }

    /// Joins in it, and gives it up.
    pub(crate) fn hold<T>(self, join: impl FnOnce() -> Result<T>) -> Result<T> {
        let made = join();
        if made.is_ok() {
            let used = &mut joins().used;
            used.extend(&self.ids);
            let forgotten = used.len().saturating_sub(MEMORY);
            used.drain(..forgotten);
        }
        made
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        joins().places.retain(|place| place.number != self.number);
    }
}

impl Origin {
    fn of(library: &abi::Library, info: &LibraryInfo) -> Self {
        let LibraryInfo { backend, version, path, .. } = info;
        let name = match path {
            Some(path) => format!("{backend} {version} ({})", path.display()),
            None => format!("{backend} {version}"),
        };
        Self { address: library.table().comm_init_rank as usize, name }
    }
}

fn joins() -> MutexGuard<'static, Joins> {
    static JOINS: Mutex<Joins> =
        Mutex::new(Joins { next: 0, places: Vec::new(), used: VecDeque::new() });
    JOINS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the id, of a library of version `code`, makes one communicator and no more.
fn is_good_once(id: &ncclUniqueId, code: c_int) -> bool {
    // With an address from outside, rank 0 serves it anew in each join. The variable may be set for
    // rank 0 alone; the mark tells the others.
    let is_served_again = id.internal.starts_with(&SERVED_AGAIN) || env::var_os(ADDRESS).is_some();
    code >= FIRST_WITH_NONCE && !is_served_again
}

/// How many used ids are remembered.
const MEMORY: usize = 1024;

/// An address that all ranks meet at, in place of one that an id brings.
const ADDRESS: &str = "NCCL_COMM_ID";

/// What ids for such an address begin with, from NCCL 2.22.3 on (`NCCL_MAGIC`).
const SERVED_AGAIN: [u8; 8] = 0x0280_0280_0280_0280_u64.to_le_bytes();

/// Version code of the first release whose ids begin with a random number. Before, they are addresses,
/// and a port comes back.
const FIRST_WITH_NONCE: c_int = 21_602;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_for_an_address_from_outside_and_those_without_a_nonce_can_come_again() {
        let id = ncclUniqueId { internal: [3; 128] };
        let mut fixed = id;
        fixed.internal[..8].copy_from_slice(&SERVED_AGAIN);
        assert!(is_good_once(&id, 22_809) && is_good_once(&id, FIRST_WITH_NONCE));
        assert!(!is_good_once(&id, 21_505) && !is_good_once(&fixed, 22_809));
    }
}
