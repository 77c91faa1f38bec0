//! A store for ranks that are threads of one process.

use std::{
    fmt,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use collectives_core::{ErrorKind, Result};

use crate::{
    Deadline, Store,
    store::{keys_missing, store_error},
    table::Table,
};

/// A store in the memory of this process. Clones are the same store.
#[derive(Clone, Default)]
pub struct MemoryStore(Arc<Shared>);

#[derive(Default)]
struct Shared {
    table: Mutex<Table>,
    changed: Condvar,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Each change is one call on the table, so a panic elsewhere leaves nothing half done.
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<R>(&self, change: impl FnOnce(&mut Table) -> R) -> R {
        let result = change(&mut self.table());
        self.0.changed.notify_all();
        result
    }

    /// Waits for `keys`, then reads from the same state of the table.
    fn when<R>(
        &self,
        operation: &'static str,
        keys: &[&str],
        deadline: Deadline,
        read: impl FnOnce(&Table) -> R,
    ) -> Result<R> {
        let mut table = self.table();
        // A key counts once it has been seen, even if it is deleted while others are awaited.
        let mut awaited: Vec<usize> = (0..keys.len()).collect();
        loop {
            awaited.retain(|&at| !table.contains(keys[at].as_bytes()));
            if awaited.is_empty() {
                return Ok(read(&table));
            }
            let Some(left) = deadline.remaining() else {
                return Err(keys_missing(NAME, operation, keys, &awaited, deadline));
            };
            table = self
                .0
                .changed
                .wait_timeout(table, left)
                .map_or_else(|poisoned| poisoned.into_inner().0, |(table, _)| table);
        }
    }
}

impl Store for MemoryStore {
    fn set(&self, key: &str, value: &[u8], _: Deadline) -> Result<()> {
        self.change(|table| table.set(key.as_bytes(), value));
        Ok(())
    }

    fn get(&self, key: &str, deadline: Deadline) -> Result<Vec<u8>> {
        self.when("get", &[key], deadline, |table| {
            table.get(key.as_bytes()).unwrap_or_default().to_vec()
        })
    }

    fn wait(&self, keys: &[&str], deadline: Deadline) -> Result<()> {
        self.when("wait", keys, deadline, |_| ())
    }

    fn missing(&self, keys: &[&str], _: Deadline) -> Result<Vec<usize>> {
        let table = self.table();
        Ok((0..keys.len()).filter(|&at| !table.contains(keys[at].as_bytes())).collect())
    }

    fn check(&self, keys: &[&str], _: Deadline) -> Result<bool> {
        let table = self.table();
        Ok(keys.iter().all(|key| table.contains(key.as_bytes())))
    }

    fn add(&self, key: &str, delta: i64, _: Deadline) -> Result<i64> {
        self.change(|table| table.add(key.as_bytes(), delta)).map_err(|refusal| {
            let message = format!("key '{key}' {refusal}");
            store_error(ErrorKind::InvalidArgument, NAME, "add", message)
        })
    }

    fn append(&self, key: &str, value: &[u8], _: Deadline) -> Result<()> {
        self.change(|table| table.append(key.as_bytes(), value));
        Ok(())
    }

    fn compare_set(
        &self,
        key: &str,
        expected: &[u8],
        desired: &[u8],
        _: Deadline,
    ) -> Result<Vec<u8>> {
        Ok(self.change(|table| table.compare_set(key.as_bytes(), expected, desired)))
    }

    fn delete(&self, key: &str, _: Deadline) -> Result<bool> {
        Ok(self.change(|table| table.delete(key.as_bytes())))
    }

    fn multi_get(&self, keys: &[&str], deadline: Deadline) -> Result<Vec<Vec<u8>>> {
        self.when("multi_get", keys, deadline, |table| {
            keys.iter().map(|key| table.get(key.as_bytes()).unwrap_or_default().to_vec()).collect()
        })
    }

    fn multi_set(&self, pairs: &[(&str, &[u8])], _: Deadline) -> Result<()> {
        self.change(|table| {
            for (key, value) in pairs {
                table.set(key.as_bytes(), value);
            }
        });
        Ok(())
    }

    fn num_keys(&self, _: Deadline) -> Result<u64> {
        Ok(self.table().len() as u64)
    }

    fn describe(&self) -> String {
        NAME.to_owned()
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryStore({} keys)", self.table().len())
    }
}

const NAME: &str = "store in memory";
