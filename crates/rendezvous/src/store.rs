//! What every store offers.

use collectives_core::{Error, ErrorKind, Result};

use crate::Deadline;

/// A map from keys to bytes that all ranks of a job see.
///
/// # Contract
/// 1. Every operation is atomic, and what it wrote is seen by whatever is called after it returned,
///    on any rank.
/// 2. Every operation ends by its deadline, or up to a second later where it must ask what was
///    missing. An error with [`ErrorKind::Timeout`] had no effect on waits; an operation that
///    writes may or may not have written.
/// 3. Numbers are stored as decimal text, so that [`set`](Self::set) and [`add`](Self::add) can be
///    mixed, and so that PyTorch reads them.
/// 4. A wait for several keys ends when each of them has been seen. A key that is deleted while
///    others wait for it may be missed.
///
/// Stores may be used from any thread; a thread that waits does not hold up another.
///
/// # Errors
/// [`ErrorKind::Timeout`] at the deadline, naming the keys that are missing;
/// [`ErrorKind::InvalidArgument`] for keys and values over the store's limits, and where `add` meets
/// what is no number; [`ErrorKind::Remote`] and [`ErrorKind::System`] for the network and the file
/// system. None poisons a communicator.
pub trait Store: Send + Sync {
    /// Stores `value` under `key`, whatever was there.
    fn set(&self, key: &str, value: &[u8], deadline: Deadline) -> Result<()>;

    /// Waits until `key` exists, and returns its value.
    fn get(&self, key: &str, deadline: Deadline) -> Result<Vec<u8>>;

    /// Waits until all of `keys` exist.
    fn wait(&self, keys: &[&str], deadline: Deadline) -> Result<()>;

    /// Which of `keys` do not exist now, by their positions.
    fn missing(&self, keys: &[&str], deadline: Deadline) -> Result<Vec<usize>>;

    /// Whether all of `keys` exist now.
    fn check(&self, keys: &[&str], deadline: Deadline) -> Result<bool>;

    /// Adds to the number under `key`, zero where there is none, and returns the sum.
    fn add(&self, key: &str, delta: i64, deadline: Deadline) -> Result<i64>;

    /// Adds `value` to the end of what is under `key`.
    fn append(&self, key: &str, value: &[u8], deadline: Deadline) -> Result<()>;

    /// Stores `desired` if `key` holds `expected`, or if there is no `key` and `expected` is empty;
    /// returns the value that is there afterwards. As in PyTorch, where there is no `key` and
    /// `expected` is not empty, nothing is stored and `expected` is returned.
    fn compare_set(
        &self,
        key: &str,
        expected: &[u8],
        desired: &[u8],
        deadline: Deadline,
    ) -> Result<Vec<u8>>;

    /// Removes `key`; whether it was there.
    fn delete(&self, key: &str, deadline: Deadline) -> Result<bool>;

    /// Waits until all of `keys` exist, and returns their values in that order.
    fn multi_get(&self, keys: &[&str], deadline: Deadline) -> Result<Vec<Vec<u8>>>;

    /// Stores all pairs, in that order.
    fn multi_set(&self, pairs: &[(&str, &[u8])], deadline: Deadline) -> Result<()>;

    /// How many keys the whole store holds. Prefixes do not matter, and PyTorch's own keys count.
    fn num_keys(&self, deadline: Deadline) -> Result<u64>;

    /// What and where this store is, for errors: `TCP store at 10.0.0.1:29500`.
    fn describe(&self) -> String;
}

/// A part of a store: every key has a prefix, as in PyTorch (`prefix/key`).
///
/// It keeps apart what would otherwise meet under one name: several communicators, and the attempts
/// of a job that is restarted.
///
/// ```
/// use std::time::Duration;
///
/// use collectives_rendezvous::{Deadline, MemoryStore, PrefixStore, Store};
///
/// # fn main() -> collectives_core::Result<()> {
/// let store = MemoryStore::new();
/// let deadline = Deadline::after(Duration::from_secs(1));
/// PrefixStore::new("tensor_parallel/epoch 3", &store).set("id", b"abc", deadline)?;
/// assert_eq!(store.get("tensor_parallel/epoch 3/id", deadline)?, b"abc");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct PrefixStore<S> {
    prefix: String,
    inner: S,
}

impl<S: Store> PrefixStore<S> {
    /// The keys of `inner` that start with `prefix` and a slash.
    pub fn new(prefix: impl Into<String>, inner: S) -> Self {
        Self { prefix: prefix.into(), inner }
    }

    /// The store around this one.
    pub fn inner(&self) -> &S {
        &self.inner
    }

    fn key(&self, key: &str) -> String {
        format!("{}/{key}", self.prefix)
    }

    fn with_keys<R>(&self, keys: &[&str], call: impl FnOnce(&[&str]) -> R) -> R {
        let keys: Vec<_> = keys.iter().map(|key| self.key(key)).collect();
        call(&keys.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

#[deny(clippy::missing_trait_methods)]
impl<S: Store> Store for PrefixStore<S> {
    fn set(&self, key: &str, value: &[u8], deadline: Deadline) -> Result<()> {
        self.inner.set(&self.key(key), value, deadline)
    }

    fn get(&self, key: &str, deadline: Deadline) -> Result<Vec<u8>> {
        self.inner.get(&self.key(key), deadline)
    }

    fn wait(&self, keys: &[&str], deadline: Deadline) -> Result<()> {
        self.with_keys(keys, |keys| self.inner.wait(keys, deadline))
    }

    fn missing(&self, keys: &[&str], deadline: Deadline) -> Result<Vec<usize>> {
        self.with_keys(keys, |keys| self.inner.missing(keys, deadline))
    }

    fn check(&self, keys: &[&str], deadline: Deadline) -> Result<bool> {
        self.with_keys(keys, |keys| self.inner.check(keys, deadline))
    }

    fn add(&self, key: &str, delta: i64, deadline: Deadline) -> Result<i64> {
        self.inner.add(&self.key(key), delta, deadline)
    }

    fn append(&self, key: &str, value: &[u8], deadline: Deadline) -> Result<()> {
        self.inner.append(&self.key(key), value, deadline)
    }

    fn compare_set(
        &self,
        key: &str,
        expected: &[u8],
        desired: &[u8],
        deadline: Deadline,
    ) -> Result<Vec<u8>> {
        self.inner.compare_set(&self.key(key), expected, desired, deadline)
    }

    fn delete(&self, key: &str, deadline: Deadline) -> Result<bool> {
        self.inner.delete(&self.key(key), deadline)
    }

    fn multi_get(&self, keys: &[&str], deadline: Deadline) -> Result<Vec<Vec<u8>>> {
        self.with_keys(keys, |keys| self.inner.multi_get(keys, deadline))
    }

    fn multi_set(&self, pairs: &[(&str, &[u8])], deadline: Deadline) -> Result<()> {
        let keys: Vec<_> = pairs.iter().map(|(key, _)| self.key(key)).collect();
        let pairs: Vec<_> =
            keys.iter().zip(pairs).map(|(key, (_, value))| (key.as_str(), *value)).collect();
        self.inner.multi_set(&pairs, deadline)
    }

    fn num_keys(&self, deadline: Deadline) -> Result<u64> {
        self.inner.num_keys(deadline)
    }

    fn describe(&self) -> String {
        format!("{}, keys '{}/…'", self.inner.describe(), self.prefix)
    }
}

/// The same for what only points to a store.
macro_rules! forward_store {
    ($pointer:ty) => {
        #[deny(clippy::missing_trait_methods)]
        impl<S: Store + ?Sized> Store for $pointer {
            fn set(&self, key: &str, value: &[u8], deadline: Deadline) -> Result<()> {
                (**self).set(key, value, deadline)
            }

            fn get(&self, key: &str, deadline: Deadline) -> Result<Vec<u8>> {
                (**self).get(key, deadline)
            }

            fn wait(&self, keys: &[&str], deadline: Deadline) -> Result<()> {
                (**self).wait(keys, deadline)
            }

            fn missing(&self, keys: &[&str], deadline: Deadline) -> Result<Vec<usize>> {
                (**self).missing(keys, deadline)
            }

            fn check(&self, keys: &[&str], deadline: Deadline) -> Result<bool> {
                (**self).check(keys, deadline)
            }

            fn add(&self, key: &str, delta: i64, deadline: Deadline) -> Result<i64> {
                (**self).add(key, delta, deadline)
            }

            fn append(&self, key: &str, value: &[u8], deadline: Deadline) -> Result<()> {
                (**self).append(key, value, deadline)
            }

            fn compare_set(
                &self,
                key: &str,
                expected: &[u8],
                desired: &[u8],
                deadline: Deadline,
            ) -> Result<Vec<u8>> {
                (**self).compare_set(key, expected, desired, deadline)
            }

            fn delete(&self, key: &str, deadline: Deadline) -> Result<bool> {
                (**self).delete(key, deadline)
            }

            fn multi_get(&self, keys: &[&str], deadline: Deadline) -> Result<Vec<Vec<u8>>> {
                (**self).multi_get(keys, deadline)
            }

            fn multi_set(&self, pairs: &[(&str, &[u8])], deadline: Deadline) -> Result<()> {
                (**self).multi_set(pairs, deadline)
            }

            fn num_keys(&self, deadline: Deadline) -> Result<u64> {
                (**self).num_keys(deadline)
            }

            fn describe(&self) -> String {
                (**self).describe()
            }
        }
    };
}

forward_store!(&S);
forward_store!(Box<S>);
forward_store!(std::sync::Arc<S>);

/// A store's error: `TCP store at HOST:PORT: get: …`.
pub(crate) fn store_error(
    kind: ErrorKind,
    store: &str,
    operation: &'static str,
    message: impl std::fmt::Display,
) -> Error {
    Error::new(kind, format!("{store}: {message}")).with_operation(operation).with_poison(false)
}

/// The error of a wait that was in vain: names the keys that are missing.
pub(crate) fn keys_missing(
    store: &str,
    operation: &'static str,
    keys: &[&str],
    missing: &[usize],
    deadline: Deadline,
) -> Error {
    let names: Vec<_> = missing.iter().filter_map(|&at| keys.get(at).copied()).collect();
    let message = format!(
        "{} of {} {} missing after {:?}: {}",
        names.len(),
        keys.len(),
        if names.len() == 1 { "is" } else { "are" },
        deadline.given(),
        listed(&names)
    );
    store_error(ErrorKind::Timeout, store, operation, message)
        .with_hint("see whether the rank that should write it is alive, or allow more time")
}

/// The first few of many names.
fn listed(names: &[&str]) -> String {
    const SHOWN: usize = 16;
    let shown: Vec<_> = names.iter().take(SHOWN).map(|name| format!("'{name}'")).collect();
    match names.len().checked_sub(SHOWN) {
        Some(more) if more > 0 => format!("{} and {more} more", shown.join(", ")),
        _ => shown.join(", "),
    }
}
