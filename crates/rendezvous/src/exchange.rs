//! Ranks that meet through a store, and are told by name who did not come.
//!
//! # One outcome for all
//! If every rank looked at the clock alone, the last one to come could find all others' parts and go
//! on, while these have given up: the worst of all outcomes, since what follows (a join of the
//! vendor's library) then hangs. So the ranks decide together, by one key that the first writes: that
//! all have come, or who is missing. Whatever stands there holds for everybody.

use collectives_core::{Error, ErrorKind, Result};

use crate::{Deadline, Store, store::store_error};

/// Gives every rank's `part` to every rank, in the order of ranks.
///
/// All `size` ranks call it with the same `name`, which no exchange of this store had before: put a
/// number into it that goes up (an epoch), or use a [`PrefixStore`](crate::PrefixStore) for each
/// attempt.
///
/// It may take up to two seconds more than the deadline, to find out and to agree on who is missing.
///
/// # Errors
/// * [`ErrorKind::Timeout`] when ranks did not come by the deadline, naming them. All ranks that came
///   get it, those that came late, too. Who is cut off from the store by then is told so instead.
/// * [`ErrorKind::InvalidArgument`] for a rank outside of the world, and when two processes came as the
///   same rank.
/// * Those of the store.
///
/// # Examples
/// ```
/// use std::time::Duration;
///
/// use collectives_rendezvous::{Deadline, MemoryStore, exchange};
///
/// // Rank 0 of 3 comes alone.
/// let store = MemoryStore::new();
/// let error = exchange(&store, "hosts/0", 0, 3, b"alpha", Deadline::after(Duration::ZERO)).unwrap_err();
/// assert!(error.to_string().contains("ranks 1 and 2 of 3 did not come"), "{error}");
/// ```
pub fn exchange(
    store: &(impl Store + ?Sized),
    name: &str,
    rank: u32,
    size: usize,
    part: &[u8],
    deadline: Deadline,
) -> Result<Vec<Vec<u8>>> {
    let meeting = Meeting { store, name, rank, size };
    meeting.take_seat(deadline)?;
    store.set(&meeting.key(rank as usize), part, deadline).map_err(|error| meeting.named(error))?;
    let keys: Vec<_> = (0..size).map(|rank| meeting.key(rank)).collect();
    let keys: Vec<_> = keys.iter().map(String::as_str).collect();
    let missing = match store.wait(&keys, deadline) {
        Ok(()) => Vec::new(),
        Err(error) if error.kind() == ErrorKind::Timeout => {
            // If the store cannot be asked any more, what the wait said is all there is.
            store.missing(&keys, Deadline::grace()).map_err(|_| meeting.named(error))?
        }
        Err(error) => return Err(meeting.named(error)),
    };
    meeting.decide(&missing, deadline)?;
    store.multi_get(&keys, deadline.or_grace()).map_err(|error| meeting.named(error))
}

/// Waits until all ranks have come; see [`exchange`].
pub fn barrier(
    store: &(impl Store + ?Sized),
    name: &str,
    rank: u32,
    size: usize,
    deadline: Deadline,
) -> Result<()> {
    exchange(store, name, rank, size, &[], deadline).map(drop)
}

/// Gives what one rank makes to every rank: the one that passes `Some`.
///
/// The others wait for it, and it waits for nobody. As with [`exchange`], `name` must be new.
///
/// ```
/// use std::time::Duration;
///
/// use collectives_core::UniqueId;
/// use collectives_rendezvous::{Deadline, MemoryStore, share};
///
/// let store = MemoryStore::new();
/// let deadline = Deadline::after(Duration::from_secs(1));
/// let id = UniqueId::from([7; 128]);
/// share(&store, "id/0", Some(id.as_bytes()), deadline)?;
/// assert_eq!(share(&store, "id/0", None, deadline)?, id.as_bytes());
/// # Ok::<(), collectives_core::Error>(())
/// ```
pub fn share(
    store: &(impl Store + ?Sized),
    name: &str,
    made: Option<&[u8]>,
    deadline: Deadline,
) -> Result<Vec<u8>> {
    let Some(made) = made else { return store.get(name, deadline) };
    store.set(name, made, deadline)?;
    Ok(made.to_vec())
}

/// One rank's view of an exchange.
struct Meeting<'a, S: ?Sized> {
    store: &'a S,
    name: &'a str,
    rank: u32,
    size: usize,
}

impl<S: Store + ?Sized> Meeting<'_, S> {
    fn key(&self, rank: usize) -> String {
        format!("{}/{rank}", self.name)
    }

    /// Sees to it that nobody else is this rank.
    fn take_seat(&self, deadline: Deadline) -> Result<()> {
        let (rank, size) = (self.rank, self.size);
        if rank as usize >= size {
            let message = format!("there is no rank {rank} in a world of {size}");
            return Err(self.error(ErrorKind::InvalidArgument, message));
        }
        let seat = format!("{}/seat/{rank}", self.name);
        match self.store.add(&seat, 1, deadline).map_err(|error| self.named(error))? {
            1 => Ok(()),
            comers => Err(self
                .error(
                    ErrorKind::InvalidArgument,
                    format!("{comers} processes came to '{}' as rank {rank}", self.name),
                )
                .with_hint(
                    "each process needs a rank of its own, and each exchange of a store a new name",
                )),
        }
    }

    /// Writes down who is missing, or that nobody is, unless another rank has; then what it wrote
    /// holds.
    fn decide(&self, missing: &[usize], deadline: Deadline) -> Result<()> {
        let mine = match missing {
            [] => COMPLETE.to_owned(),
            _ => format!(
                "{} of {} did not come within {:?}, says rank {}",
                list_ranks(missing),
                self.size,
                deadline.given(),
                self.rank
            ),
        };
        let key = format!("{}/outcome", self.name);
        let outcome = self
            .store
            .compare_set(&key, b"", mine.as_bytes(), deadline.or_grace())
            .map_err(|error| self.named(error))?;
        if outcome == COMPLETE.as_bytes() {
            return Ok(());
        }
        let message = format!("'{}': {}", self.name, String::from_utf8_lossy(&outcome));
        Err(self
            .error(ErrorKind::Timeout, message)
            .with_hint("look for the last words of the ranks that are named, or allow more time"))
    }

    fn error(&self, kind: ErrorKind, message: String) -> Error {
        self.named(store_error(kind, &self.store.describe(), "exchange", message))
    }

    fn named(&self, error: Error) -> Error {
        error.with_rank(self.rank, self.size)
    }
}

/// Names ranks, given in ascending order, as people do: `rank 3`, `ranks 1 and 2`,
/// `ranks 1 to 5, 8 and 9`.
///
/// ```
/// assert_eq!(collectives_rendezvous::list_ranks(&[0, 1, 2, 4]), "ranks 0 to 2 and 4");
/// ```
pub fn list_ranks(ranks: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &rank in ranks {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == rank => *last = rank,
            _ => runs.push((rank, rank)),
        }
    }
    let mut texts = Vec::new();
    for (first, last) in runs {
        match last - first {
            0 => texts.push(first.to_string()),
            1 => texts.extend([first.to_string(), last.to_string()]),
            _ => texts.push(format!("{first} to {last}")),
        }
    }
    let word = if ranks.len() == 1 { "rank" } else { "ranks" };
    match texts.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{word} {} and {last}", rest.join(", ")),
        _ => format!("{word} {}", texts.concat()),
    }
}

/// The outcome where nobody is missing.
const COMPLETE: &str = "complete";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_read_well() {
        for (missing, text) in [
            (&[3][..], "rank 3"),
            (&[1, 2], "ranks 1 and 2"),
            (&[1, 3, 9], "ranks 1, 3 and 9"),
            (&[1, 2, 3, 4, 5, 8, 9], "ranks 1 to 5, 8 and 9"),
            (&[0, 4, 5, 6], "ranks 0 and 4 to 6"),
        ] {
            assert_eq!(list_ranks(missing), text);
        }
    }
}
