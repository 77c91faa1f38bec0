//! What a store holds, and what its operations mean: one copy of the rules, for stores in memory,
//! in files and behind sockets.
//!
//! The rules are those of PyTorch's TCPStore, so that it makes no difference to a rank whose store it
//! uses. Where PyTorch would end the connection (a number that is none), this says why.

use std::collections::{HashMap, VecDeque};

/// Keys with values, and, apart from them, keys with queues.
#[derive(Debug, Default)]
pub(crate) struct Table {
    values: HashMap<Box<[u8]>, Vec<u8>>,
    queues: HashMap<Box<[u8]>, VecDeque<Vec<u8>>>,
    /// Bytes in keys, values and queues.
    size: usize,
}

impl Table {
    pub(crate) fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.values.get(key).map(Vec::as_slice)
    }

    /// Whether there is a value, or something in a queue.
    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        self.values.contains_key(key) || self.queue_len(key) > 0
    }

    pub(crate) fn len(&self) -> usize {
        self.values.len()
    }

    /// Bytes in keys, values and queues.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &[u8]> {
        self.values.keys().map(|key| &**key)
    }

    pub(crate) fn set(&mut self, key: &[u8], value: &[u8]) {
        self.put(key, value.to_vec());
    }

    /// The sum that `add` would store.
    pub(crate) fn sum(&self, key: &[u8], delta: i64) -> Result<i64, Refusal> {
        let Some(value) = self.get(key) else { return Ok(delta) };
        let number: Option<i64> =
            std::str::from_utf8(value).ok().and_then(|text| text.trim().parse().ok());
        let number = number.ok_or_else(|| Refusal::NotANumber {
            value: String::from_utf8_lossy(&value[..value.len().min(32)]).into_owned(),
        })?;
        number.checked_add(delta).ok_or(Refusal::Overflow { number, delta })
    }

    pub(crate) fn add(&mut self, key: &[u8], delta: i64) -> Result<i64, Refusal> {
        let sum = self.sum(key, delta)?;
        self.put(key, sum.to_string().into_bytes());
        Ok(sum)
    }

    pub(crate) fn append(&mut self, key: &[u8], value: &[u8]) {
        if let Some(old) = self.values.get_mut(key) {
            old.extend_from_slice(value);
            self.size += value.len();
        } else {
            self.set(key, value);
        }
    }

    /// Whether `compare_set` would store.
    pub(crate) fn matches(&self, key: &[u8], expected: &[u8]) -> bool {
        self.get(key).map_or(expected.is_empty(), |value| value == expected)
    }

    /// What `compare_set` leaves or, if there is nothing, was told to expect.
    pub(crate) fn compare_set(&mut self, key: &[u8], expected: &[u8], desired: &[u8]) -> Vec<u8> {
        if self.matches(key, expected) {
            self.set(key, desired);
        }
        self.get(key).unwrap_or(expected).to_vec()
    }

    pub(crate) fn delete(&mut self, key: &[u8]) -> bool {
        let Some(value) = self.values.remove(key) else { return false };
        self.size -= key.len() + value.len();
        true
    }

    pub(crate) fn push(&mut self, key: &[u8], value: &[u8]) {
        self.size += value.len();
        if let Some(queue) = self.queues.get_mut(key) {
            queue.push_back(value.to_vec());
        } else {
            self.size += key.len();
            self.queues.insert(key.into(), VecDeque::from([value.to_vec()]));
        }
    }

    pub(crate) fn pop(&mut self, key: &[u8]) -> Option<Vec<u8>> {
        let queue = self.queues.get_mut(key)?;
        let value = queue.pop_front()?;
        self.size -= value.len();
        if queue.is_empty() {
            self.queues.remove(key);
            self.size -= key.len();
        }
        Some(value)
    }

    pub(crate) fn queue_len(&self, key: &[u8]) -> usize {
        self.queues.get(key).map_or(0, VecDeque::len)
    }

    fn put(&mut self, key: &[u8], value: Vec<u8>) {
        self.size += value.len();
        if let Some(old) = self.values.get_mut(key) {
            self.size -= old.len();
            *old = value;
        } else {
            self.size += key.len();
            self.values.insert(key.into(), value);
        }
    }
}

/// Why an operation was refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("holds '{value}', which is no number")]
    NotANumber { value: String },
    #[error("holds {number}, and adding {delta} overflows 64 bits")]
    Overflow { number: i64, delta: i64 },
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the size should be.
    fn counted(table: &Table) -> usize {
        let values: usize = table.values.iter().map(|(key, value)| key.len() + value.len()).sum();
        let queues: usize = table
            .queues
            .iter()
            .map(|(key, queue)| key.len() + queue.iter().map(Vec::len).sum::<usize>())
            .sum();
        values + queues
    }

    #[test]
    fn the_size_is_that_of_what_is_held() {
        let mut table = Table::default();
        let steps: [fn(&mut Table); 12] = [
            |table| table.set(b"a", b"12345"),
            |table| table.set(b"a", b"1"),
            |table| table.append(b"a", b"23"),
            |table| table.append(b"new", b"x"),
            |table| assert_eq!(table.add(b"a", 1), Ok(124)),
            |table| assert_eq!(table.compare_set(b"a", b"124", b""), b""),
            |table| table.push(b"q", b"one"),
            |table| table.push(b"q", b"two"),
            |table| assert_eq!(table.pop(b"q").as_deref(), Some(&b"one"[..])),
            |table| assert_eq!(table.pop(b"q").as_deref(), Some(&b"two"[..])),
            |table| assert!(table.delete(b"a")),
            |table| assert!(table.delete(b"new")),
        ];
        for (at, step) in steps.into_iter().enumerate() {
            step(&mut table);
            assert_eq!(table.size(), counted(&table), "after step {at}");
        }
        assert_eq!(table.size(), 0);
    }

    #[test]
    fn numbers_are_decimal_text() {
        let mut table = Table::default();
        assert_eq!(table.add(b"n", -3), Ok(-3));
        assert_eq!(table.get(b"n"), Some(&b"-3"[..]));
        table.set(b"n", b"not one");
        assert_eq!(table.add(b"n", 1), Err(Refusal::NotANumber { value: "not one".into() }));
        table.set(b"n", i64::MAX.to_string().as_bytes());
        assert_eq!(table.add(b"n", 1), Err(Refusal::Overflow { number: i64::MAX, delta: 1 }));
    }
}
