//! The bytes of the protocol: where a query ends, and what it says.
//!
//! A server must find the end of a query that arrives in pieces, without trusting its lengths. So
//! reading has two steps. A [`Scanner`] walks over the fields as they arrive, refuses a length as
//! soon as it is there, and never walks over a byte twice. When it has found the end, [`Request::read`]
//! takes the fields apart, without copying.

use std::{mem, time::Duration};

/// How the kinds of queries are numbered.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Dialect {
    /// As PyTorch 2.1: no handshake, and the kinds are one less than later.
    Torch21,
    /// As PyTorch 2.2 and newer: a connection starts with a magic number.
    #[default]
    Torch22,
}

/// What a server accepts, and a client sends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Bytes of a key. PyTorch's libuv server takes no longer ones.
    pub key: usize,
    /// Bytes of a value, and of one that others are appended to. PyTorch's libuv server takes no
    /// longer ones.
    pub value: usize,
    /// Keys of one query. PyTorch's libuv server takes no more.
    pub keys: usize,
    /// Bytes of one query, and of one answer.
    pub message: usize,
    /// Bytes of all keys and values that a server holds.
    pub stored: usize,
    /// How long a client's host may be silent, though the server's asks whether it is there, before the
    /// server drops it. At least two seconds; clients have deadlines of their own.
    pub silence: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            key: 8 << 10,
            value: 8 << 20,
            keys: 128 << 10,
            message: 64 << 20,
            stored: 1 << 30,
            silence: Duration::from_secs(180),
        }
    }
}

/// The kinds of queries, numbered as in [`Dialect::Torch22`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub(super) enum Query {
    Validate,
    Set,
    CompareSet,
    Get,
    Add,
    Check,
    Wait,
    GetNumKeys,
    DeleteKey,
    Append,
    MultiGet,
    MultiSet,
    CancelWait,
    Ping,
    QueuePush,
    QueuePop,
    QueueLen,
    ListKeys,
    Barrier,
}

impl Query {
    /// The number on the wire. What a dialect lacks has the number that it would have there.
    pub(super) fn byte(self, dialect: Dialect) -> u8 {
        match dialect {
            Dialect::Torch21 => (self as u8).wrapping_sub(1),
            Dialect::Torch22 => self as u8,
        }
    }

    fn from_byte(byte: u8, dialect: Dialect) -> Option<Self> {
        let (at, known) = match dialect {
            Dialect::Torch21 => (usize::from(byte) + 1, &ALL[..=Self::CancelWait as usize]),
            Dialect::Torch22 => (usize::from(byte), &ALL[..]),
        };
        known.get(at).copied()
    }

    /// The fields, and whether a count says how often they come.
    fn fields(self) -> (bool, &'static [Field]) {
        use Field::{Fixed, Key, Value};
        match self {
            Self::Validate | Self::Ping => (false, &[Fixed(4)]),
            Self::Set | Self::Append | Self::QueuePush => (false, &[Key, Value]),
            Self::CompareSet => (false, &[Key, Value, Value]),
            Self::Get | Self::DeleteKey | Self::QueuePop | Self::QueueLen => (false, &[Key]),
            Self::Add | Self::Barrier => (false, &[Key, Fixed(8)]),
            Self::Check | Self::Wait | Self::MultiGet => (true, &[Key]),
            Self::MultiSet => (true, &[Key, Value]),
            Self::GetNumKeys | Self::CancelWait | Self::ListKeys => (false, &[]),
        }
    }
}

const ALL: [Query; 19] = [
    Query::Validate,
    Query::Set,
    Query::CompareSet,
    Query::Get,
    Query::Add,
    Query::Check,
    Query::Wait,
    Query::GetNumKeys,
    Query::DeleteKey,
    Query::Append,
    Query::MultiGet,
    Query::MultiSet,
    Query::CancelWait,
    Query::Ping,
    Query::QueuePush,
    Query::QueuePop,
    Query::QueueLen,
    Query::ListKeys,
    Query::Barrier,
];

#[derive(Clone, Copy, Debug)]
enum Field {
    Fixed(usize),
    Key,
    Value,
}

/// What [`Query::Validate`] carries.
pub(super) const MAGIC: u32 = 0x3C85_F7CE;

/// The answers to [`Query::Check`].
pub(super) const READY: u8 = 0;
pub(super) const NOT_READY: u8 = 1;

/// The answers to [`Query::Wait`] and [`Query::CancelWait`].
pub(super) const STOP_WAITING: u8 = 0;
pub(super) const WAIT_CANCELED: u8 = 1;

/// What PyTorch puts before the keys of its users.
pub(super) const USER_KEYS: &str = "/";

/// Where PyTorch's clients count themselves.
pub(super) const WORKERS: &str = "init/";

/// Why a connection cannot go on.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum Violation {
    #[error("it started with neither PyTorch's magic number nor a query of PyTorch 2.1")]
    Magic,
    #[error("it sent a query of kind {0}, which is unknown")]
    Query(u8),
    #[error("it announced {what} of {size} bytes; {limit} is the limit")]
    Size { what: &'static str, size: u64, limit: usize },
    #[error("it announced {count} keys; {limit} is the limit")]
    Count { count: u64, limit: usize },
    #[error("{0}")]
    Refused(String),
}

/// Finds the dialect of a client by its first bytes; `None` if more are needed.
///
/// A client of PyTorch 2.1 that starts by setting a key sends a zero, too. As a length of a key, the
/// magic number would be a gigabyte.
pub(super) fn dialect(input: &[u8]) -> Result<Option<Dialect>, Violation> {
    match input {
        [] => Ok(None),
        [0, rest @ ..] => match rest.first_chunk::<4>() {
            None if MAGIC.to_le_bytes().starts_with(rest) => Ok(None),
            Some(magic) if u32::from_le_bytes(*magic) == MAGIC => Ok(Some(Dialect::Torch22)),
            _ => Ok(Some(Dialect::Torch21)),
        },
        [kind, ..] => match Query::from_byte(*kind, Dialect::Torch21) {
            Some(_) => Ok(Some(Dialect::Torch21)),
            None => Err(Violation::Magic),
        },
    }
}

/// Finds the end of one query after the other.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    dialect: Dialect,
    /// How many bytes of the query are known to be good.
    at: usize,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, Default)]
enum Stage {
    #[default]
    Kind,
    Count(Query),
    /// So many rounds of its fields are left, the first of them from `field` on.
    Fields {
        query: Query,
        rounds: u64,
        field: usize,
    },
}

impl Scanner {
    pub(super) fn set_dialect(&mut self, dialect: Dialect) {
        self.dialect = dialect;
    }

    /// The query at the start of `input` with its length, if all of it is there. If not, the next
    /// call must bring the same bytes and more.
    pub(super) fn scan(
        &mut self,
        input: &[u8],
        limits: &Limits,
    ) -> Result<Option<(Query, usize)>, Violation> {
        loop {
            match self.stage {
                Stage::Kind => {
                    let Some(&kind) = input.first() else { return Ok(None) };
                    let query =
                        Query::from_byte(kind, self.dialect).ok_or(Violation::Query(kind))?;
                    self.at = 1;
                    self.stage = match query.fields() {
                        (true, _) => Stage::Count(query),
                        (false, _) => Stage::Fields { query, rounds: 1, field: 0 },
                    };
                }
                Stage::Count(query) => {
                    let Some(count) = number(input, self.at) else { return Ok(None) };
                    if count > limits.keys as u64 {
                        return Err(Violation::Count { count, limit: limits.keys });
                    }
                    self.at += 8;
                    self.stage = Stage::Fields { query, rounds: count, field: 0 };
                }
                Stage::Fields { query, rounds: 0, .. } => {
                    self.stage = Stage::Kind;
                    return Ok(Some((query, mem::take(&mut self.at))));
                }
                Stage::Fields { query, rounds, field } => {
                    let Some(&next) = query.fields().1.get(field) else {
                        self.stage = Stage::Fields { query, rounds: rounds - 1, field: 0 };
                        continue;
                    };
                    let Some(end) = self.end(next, input, limits)? else { return Ok(None) };
                    self.at = end;
                    self.stage = Stage::Fields { query, rounds, field: field + 1 };
                }
            }
        }
    }

    /// Where the field that starts here ends, if all of it is there.
    fn end(&self, field: Field, input: &[u8], limits: &Limits) -> Result<Option<usize>, Violation> {
        let (what, limit) = match field {
            Field::Fixed(size) => return Ok(Some(self.at + size).filter(|end| *end <= input.len())),
            Field::Key => ("a key", limits.key),
            Field::Value => ("a value", limits.value),
        };
        let Some(size) = number(input, self.at) else { return Ok(None) };
        let start = self.at + 8;
        match usize::try_from(size).ok().filter(|size| *size <= limit) {
            None => Err(Violation::Size { what, size, limit }),
            Some(size) if start + size > limits.message => Err(Violation::Size {
                what: "a query",
                size: (start + size) as u64,
                limit: limits.message,
            }),
            Some(size) => Ok(Some(start + size).filter(|end| *end <= input.len())),
        }
    }
}

fn number(input: &[u8], at: usize) -> Option<u64> {
    input.get(at..)?.first_chunk().copied().map(u64::from_le_bytes)
}

/// What a query says.
#[derive(Debug)]
pub(super) enum Request<'a> {
    Validate { magic: u32 },
    Set { key: &'a [u8], value: &'a [u8] },
    CompareSet { key: &'a [u8], expected: &'a [u8], desired: &'a [u8] },
    Get { key: &'a [u8] },
    Add { key: &'a [u8], delta: i64 },
    Check { keys: Vec<&'a [u8]> },
    Wait { keys: Vec<&'a [u8]> },
    GetNumKeys,
    DeleteKey { key: &'a [u8] },
    Append { key: &'a [u8], value: &'a [u8] },
    MultiGet { keys: Vec<&'a [u8]> },
    MultiSet { pairs: Vec<(&'a [u8], &'a [u8])> },
    CancelWait,
    Ping { nonce: [u8; 4] },
    QueuePush { key: &'a [u8], value: &'a [u8] },
    QueuePop { key: &'a [u8] },
    QueueLen { key: &'a [u8] },
    ListKeys,
    Barrier { key: &'a [u8], size: i64 },
}

impl<'a> Request<'a> {
    /// Takes `message` apart, which a [`Scanner`] has found to be a whole `query`.
    pub(super) fn read(query: Query, message: &'a [u8]) -> Option<Self> {
        let mut fields = Fields(message.get(1..)?);
        Some(match query {
            Query::Validate => Self::Validate { magic: u32::from_le_bytes(fields.fixed()?) },
            Query::Set => Self::Set { key: fields.bytes()?, value: fields.bytes()? },
            Query::CompareSet => Self::CompareSet {
                key: fields.bytes()?,
                expected: fields.bytes()?,
                desired: fields.bytes()?,
            },
            Query::Get => Self::Get { key: fields.bytes()? },
            Query::Add => {
                Self::Add { key: fields.bytes()?, delta: i64::from_le_bytes(fields.fixed()?) }
            }
            Query::Check => Self::Check { keys: fields.list(Fields::bytes)? },
            Query::Wait => Self::Wait { keys: fields.list(Fields::bytes)? },
            Query::GetNumKeys => Self::GetNumKeys,
            Query::DeleteKey => Self::DeleteKey { key: fields.bytes()? },
            Query::Append => Self::Append { key: fields.bytes()?, value: fields.bytes()? },
            Query::MultiGet => Self::MultiGet { keys: fields.list(Fields::bytes)? },
            Query::MultiSet => Self::MultiSet {
                pairs: fields.list(|fields| Some((fields.bytes()?, fields.bytes()?)))?,
            },
            Query::CancelWait => Self::CancelWait,
            Query::Ping => Self::Ping { nonce: fields.fixed()? },
            Query::QueuePush => Self::QueuePush { key: fields.bytes()?, value: fields.bytes()? },
            Query::QueuePop => Self::QueuePop { key: fields.bytes()? },
            Query::QueueLen => Self::QueueLen { key: fields.bytes()? },
            Query::ListKeys => Self::ListKeys,
            Query::Barrier => {
                Self::Barrier { key: fields.bytes()?, size: i64::from_le_bytes(fields.fixed()?) }
            }
        })
    }
}

/// What is left of a message.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn fixed<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let size = usize::try_from(u64::from_le_bytes(self.fixed()?)).ok()?;
        let (field, rest) = self.0.split_at_checked(size)?;
        self.0 = rest;
        Some(field)
    }

    fn list<T>(&mut self, item: impl Fn(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = u64::from_le_bytes(self.fixed()?);
        (0..count).map(|_| item(self)).collect()
    }
}

/// Writes a query or an answer.
#[derive(Debug, Default)]
pub(super) struct Message(pub(super) Vec<u8>);

impl Message {
    pub(super) fn query(query: Query, dialect: Dialect) -> Self {
        Self(vec![query.byte(dialect)])
    }

    /// Adds another query behind this one.
    pub(super) fn then(mut self, query: Query, dialect: Dialect) -> Self {
        self.0.push(query.byte(dialect));
        self
    }

    pub(super) fn bytes(mut self, bytes: impl AsRef<[u8]>) -> Self {
        let bytes = bytes.as_ref();
        self.0.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        self.0.extend_from_slice(bytes);
        self
    }

    pub(super) fn number(mut self, number: i64) -> Self {
        self.0.extend_from_slice(&number.to_le_bytes());
        self
    }

    pub(super) fn count(self, count: usize) -> Self {
        self.number(count as i64)
    }

    pub(super) fn fixed(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One of each kind.
    fn messages(dialect: Dialect) -> Vec<(Query, Vec<u8>)> {
        ALL.into_iter()
            .filter(|query| Query::from_byte(query.byte(dialect), dialect) == Some(*query))
            .map(|query| {
                let (counted, fields) = query.fields();
                let rounds = if counted { 3 } else { 1 };
                let mut message = Message::query(query, dialect);
                if counted {
                    message = message.count(rounds);
                }
                for field in fields.iter().cycle().take(fields.len() * rounds) {
                    message = match field {
                        Field::Fixed(size) => message.fixed(&[7; 8][..*size]),
                        Field::Key => message.bytes("key"),
                        Field::Value => message.bytes([0xff; 300]),
                    };
                }
                (query, message.0)
            })
            .collect()
    }

    #[test]
    fn queries_have_pytorchs_numbers() {
        for (number, query) in ALL.into_iter().enumerate() {
            assert_eq!(usize::from(query.byte(Dialect::Torch22)), number);
            assert_eq!(Query::from_byte(number as u8, Dialect::Torch22), Some(query));
        }
        assert_eq!(Query::from_byte(19, Dialect::Torch22), None);
        assert_eq!(Query::from_byte(0, Dialect::Torch21), Some(Query::Set));
        assert_eq!(Query::from_byte(11, Dialect::Torch21), Some(Query::CancelWait));
        assert_eq!(Query::from_byte(12, Dialect::Torch21), None);
        assert_eq!(messages(Dialect::Torch21).len(), 12);
    }

    #[test]
    fn the_end_is_found_however_the_bytes_arrive() {
        for dialect in [Dialect::Torch21, Dialect::Torch22] {
            let messages = messages(dialect);
            let stream: Vec<u8> = messages.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
            for piece in [1, 2, 3, 7, 64, stream.len()] {
                let mut scanner = Scanner::default();
                scanner.set_dialect(dialect);
                let mut found = Vec::new();
                let mut start = 0;
                let mut arrived = 0;
                while arrived < stream.len() {
                    arrived = (arrived + piece).min(stream.len());
                    while let Some((query, size)) =
                        scanner.scan(&stream[start..arrived], &Limits::default()).unwrap()
                    {
                        let message = &stream[start..start + size];
                        assert!(Request::read(query, message).is_some(), "{query:?}");
                        found.push((query, message.to_vec()));
                        start += size;
                    }
                }
                assert_eq!(found, messages, "{dialect:?} in pieces of {piece}");
            }
        }
    }

    #[test]
    fn lengths_are_refused_before_their_bytes_arrive() {
        let limits = Limits { key: 10, value: 20, keys: 3, message: 60, ..Limits::default() };
        let refused = |message: Message| Scanner::default().scan(&message.0, &limits).unwrap_err();
        let query = |query| Message::query(query, Dialect::Torch22);
        assert_eq!(
            refused(query(Query::Get).number(11)),
            Violation::Size { what: "a key", size: 11, limit: 10 }
        );
        assert_eq!(
            refused(query(Query::Set).bytes("key").number(1 << 30)),
            Violation::Size { what: "a value", size: 1 << 30, limit: 20 }
        );
        assert_eq!(
            refused(query(Query::Wait).number(-1)),
            Violation::Count { count: u64::MAX, limit: 3 }
        );
        assert_eq!(
            refused(
                query(Query::MultiSet).count(3).bytes("key").bytes([0; 20]).bytes("key").number(20)
            ),
            Violation::Size { what: "a query", size: 1 + 8 + 11 + 28 + 11 + 28, limit: 60 }
        );
        assert_eq!(refused(Message(vec![19])), Violation::Query(19));
    }

    #[test]
    fn the_first_bytes_tell_the_dialect() {
        let validate =
            Message::query(Query::Validate, Dialect::Torch22).fixed(&MAGIC.to_le_bytes());
        for size in 0..5 {
            assert_eq!(dialect(&validate.0[..size]), Ok(None));
        }
        assert_eq!(dialect(&validate.0), Ok(Some(Dialect::Torch22)));
        let set = Message::query(Query::Set, Dialect::Torch21).bytes("/key").bytes("value");
        assert_eq!(dialect(&set.0), Ok(Some(Dialect::Torch21)));
        assert_eq!(dialect(&[11]), Ok(Some(Dialect::Torch21)));
        assert_eq!(dialect(b"GET / HTTP/1.1"), Err(Violation::Magic));
    }
}
