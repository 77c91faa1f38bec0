//! The client.

use std::{
    fmt,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream, ToSocketAddrs as _},
    sync::{Mutex, PoisonError, mpsc},
    thread,
    time::Duration,
};

use collectives_core::{Error, ErrorKind, Result};

use super::wire::{
    Dialect, Limits, MAGIC, Message, NOT_READY, Query, READY, STOP_WAITING, USER_KEYS,
    WAIT_CANCELED, WORKERS,
};
use crate::{
    Deadline, Store,
    deadline::Pauses,
    store::{keys_missing, store_error},
};

/// A store that a [`TcpStoreServer`](crate::TcpStoreServer) or PyTorch's TCPStore serves, from
/// PyTorch 2.1 to 2.15.
///
/// Keys are those that PyTorch's users see: what Python sets as `"key"` is `"key"` here.
///
/// Every operation waits for the server's word that it is done, also those that PyTorch only sends,
/// so one that returned is seen by all other ranks. An operation uses a connection of its own; they
/// are kept for the next, so there are as many as threads were inside at the same time.
///
/// # Errors
/// Those of [`Store`]. [`ErrorKind::Remote`] where the server cannot be reached, ended, or closed the
/// connection: the protocol has no other way to refuse.
pub struct TcpStore {
    address: String,
    dialect: Dialect,
    limits: Limits,
    /// Connections that no operation uses.
    idle: Mutex<Vec<Connection>>,
}

impl TcpStore {
    /// Connects to `HOST:PORT`, and tries again until the deadline where nobody listens yet.
    pub fn connect(address: &str, deadline: Deadline) -> Result<Self> {
        Self::connect_as(address, Dialect::default(), deadline)
    }

    /// The same for the server of a PyTorch that speaks another dialect.
    pub fn connect_as(address: &str, dialect: Dialect, deadline: Deadline) -> Result<Self> {
        let store = Self {
            address: address.to_owned(),
            dialect,
            limits: Limits::default(),
            idle: Mutex::default(),
        };
        let connection = store.open(deadline)?;
        store.put_back(connection);
        Ok(store)
    }

    /// Counts this process among the workers, as PyTorch's clients do when they are made.
    ///
    /// PyTorch's server waits for as many as the world size, in `init_process_group` too, before it
    /// lets its own process go on. Returns how many have come.
    pub fn announce_worker(&self, deadline: Deadline) -> Result<i64> {
        let query = self.query(Query::Add).bytes(WORKERS).number(1);
        self.ask("announce_worker", &query, deadline, Connection::number)
    }

    /// Waits until `workers` have come, as the process of PyTorch's server does.
    pub fn wait_for_workers(&self, workers: usize, deadline: Deadline) -> Result<()> {
        let mut pauses = Pauses::new(Duration::from_millis(1), Duration::from_millis(50));
        loop {
            // Adding nothing reads the number, and makes it where nobody has come.
            let query = self.query(Query::Add).bytes(WORKERS).number(0);
            let come = self.ask("wait_for_workers", &query, deadline, Connection::number)?;
            if come >= workers as i64 {
                return Ok(());
            }
            if !pauses.sleep(deadline) {
                let message = format!("{come} of {workers} came in {:?}", deadline.given());
                return Err(self.error(ErrorKind::Timeout, "wait_for_workers", message));
            }
        }
    }

    /// Adds a value to the end of a queue. Requires a libuv server of PyTorch 2.8, or ours.
    pub fn queue_push(&self, key: &str, value: &[u8], deadline: Deadline) -> Result<()> {
        let query = self.query(Query::QueuePush).bytes(self.key("queue_push", key)?);
        let query = query.bytes(self.value("queue_push", key, value)?);
        self.tell("queue_push", query, deadline)
    }

    /// Takes the first value of a queue; `None` where there is none. Requires what
    /// [`queue_push`](Self::queue_push) does.
    pub fn queue_pop(&self, key: &str, deadline: Deadline) -> Result<Option<Vec<u8>>> {
        let query = self.query(Query::QueuePop).bytes(self.key("queue_pop", key)?);
        self.ask("queue_pop", &query, deadline, |connection, deadline| {
            match connection.number(deadline)? {
                0 => Ok(None),
                _ => connection.value(deadline).map(Some),
            }
        })
    }

    /// How many values a queue has. Requires what [`queue_push`](Self::queue_push) does.
    pub fn queue_len(&self, key: &str, deadline: Deadline) -> Result<i64> {
        let query = self.query(Query::QueueLen).bytes(self.key("queue_len", key)?);
        self.ask("queue_len", &query, deadline, Connection::number)
    }

    /// The keys of the store, in no order. Requires a server of PyTorch 2.10, or ours.
    pub fn list_keys(&self, deadline: Deadline) -> Result<Vec<String>> {
        let query = self.query(Query::ListKeys);
        let keys = self.ask("list_keys", &query, deadline, |connection, deadline| {
            let count = connection.number(deadline)?;
            (0..count).map(|_| connection.value(deadline)).collect::<io::Result<Vec<_>>>()
        })?;
        Ok(keys
            .iter()
            .filter_map(|key| key.strip_prefix(USER_KEYS.as_bytes()))
            .map(|key| String::from_utf8_lossy(key).into_owned())
            .collect())
    }

    fn query(&self, query: Query) -> Message {
        Message::query(query, self.dialect)
    }

    /// The key as it is on the wire.
    fn key(&self, operation: &'static str, key: &str) -> Result<String> {
        let wire = format!("{USER_KEYS}{key}");
        if wire.len() <= self.limits.key {
            return Ok(wire);
        }
        let start: String = key.chars().take(32).collect();
        let message = format!(
            "key '{start}…' has {} bytes; servers take {}",
            key.len(),
            self.limits.key - USER_KEYS.len()
        );
        Err(self.error(ErrorKind::InvalidArgument, operation, message))
    }

    fn value<'a>(&self, operation: &'static str, key: &str, value: &'a [u8]) -> Result<&'a [u8]> {
        if value.len() <= self.limits.value {
            return Ok(value);
        }
        let message = format!(
            "the value of '{key}' has {} bytes; servers take {}",
            value.len(),
            self.limits.value
        );
        Err(self.error(ErrorKind::InvalidArgument, operation, message))
    }

    fn keys(&self, operation: &'static str, query: Query, keys: &[&str]) -> Result<Message> {
        if keys.len() > self.limits.keys {
            let message = format!("{} keys; servers take {}", keys.len(), self.limits.keys);
            return Err(self.error(ErrorKind::InvalidArgument, operation, message));
        }
        let mut message = self.query(query).count(keys.len());
        for key in keys {
            message = message.bytes(self.key(operation, key)?);
        }
        self.sized(operation, message)
    }

    fn sized(&self, operation: &'static str, message: Message) -> Result<Message> {
        let (size, limit) = (message.0.len(), self.limits.message);
        if size <= limit {
            return Ok(message);
        }
        let message = format!("a query of {size} bytes; {limit} is the limit");
        Err(self.error(ErrorKind::InvalidArgument, operation, message))
    }

    /// Sends a query and reads its answer, on a connection that nobody else uses meanwhile.
    fn ask<R>(
        &self,
        operation: &'static str,
        query: &Message,
        deadline: Deadline,
        read: impl FnOnce(&mut Connection, Deadline) -> io::Result<R>,
    ) -> Result<R> {
        let mut connection = self.take(deadline)?;
        let result =
            connection.send(&query.0, deadline).and_then(|()| read(&mut connection, deadline));
        match result {
            Ok(result) => {
                self.put_back(connection);
                Ok(result)
            }
            // What is left of the answer may still come: that connection is of no more use.
            Err(error) => Err(self.network_error(operation, error, deadline)),
        }
    }

    /// Sends a query that has no answer, with one behind it that has: then the first is done.
    fn tell(&self, operation: &'static str, query: Message, deadline: Deadline) -> Result<()> {
        let query = self.sized(operation, query)?.then(Query::GetNumKeys, self.dialect);
        self.ask(operation, &query, deadline, Connection::number).map(drop)
    }

    /// Waits for keys, and asks which are missing if they do not come.
    fn wait_for(&self, operation: &'static str, keys: &[&str], deadline: Deadline) -> Result<()> {
        let query = self.keys(operation, Query::Wait, keys)?;
        // Starts when the deadline has passed.
        let mut grace = None;
        let came = self.ask(operation, &query, deadline, |connection, deadline| {
            match connection.byte(deadline) {
                Ok(STOP_WAITING) => return Ok(true),
                Ok(other) => return Err(unexpected("wait", other)),
                Err(error) if is_timeout(&error) => {}
                Err(error) => return Err(error),
            }
            let grace = *grace.insert(Deadline::grace());
            connection.send(&self.query(Query::CancelWait).0, grace)?;
            match connection.byte(grace)? {
                WAIT_CANCELED => Ok(false),
                // The keys came just now.
                STOP_WAITING => match connection.byte(grace)? {
                    WAIT_CANCELED => Ok(true),
                    other => Err(unexpected("cancel_wait", other)),
                },
                other => Err(unexpected("cancel_wait", other)),
            }
        });
        match came {
            Ok(true) => return Ok(()),
            Err(error) if error.kind() != ErrorKind::Timeout => return Err(error),
            Ok(false) | Err(_) => {}
        }
        match self.missing(keys, grace.unwrap_or_else(Deadline::grace)) {
            Ok(missing) if missing.is_empty() => Ok(()),
            Ok(missing) => Err(keys_missing(&self.describe(), operation, keys, &missing, deadline)),
            Err(error) => {
                let message = format!(
                    "no answer within {:?}, nor when asked which keys are missing",
                    deadline.given()
                );
                Err(self
                    .error(ErrorKind::Timeout, operation, message)
                    .with_hint(UNREACHABLE)
                    .with_source(error))
            }
        }
    }

    fn take(&self, deadline: Deadline) -> Result<Connection> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        idle.map_or_else(|| self.open(deadline), Ok)
    }

    fn put_back(&self, connection: Connection) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
    }

    /// Connects, and makes sure that a store is there.
    fn open(&self, deadline: Deadline) -> Result<Connection> {
        let mut pauses = Pauses::new(Duration::from_millis(10), Duration::from_millis(500));
        let mut before = None;
        loop {
            let error = match self.try_open(deadline) {
                Ok(connection) => return Ok(connection),
                Err(error) => error,
            };
            // A server that is not there yet, or whose queue of new clients is full.
            let soon = matches!(
                error.kind(),
                io::ErrorKind::ConnectionRefused
                    | io::ErrorKind::ConnectionReset
                    | io::ErrorKind::ConnectionAborted
                    | io::ErrorKind::UnexpectedEof
                    | io::ErrorKind::BrokenPipe
                    | io::ErrorKind::HostUnreachable
                    | io::ErrorKind::NetworkDown
                    | io::ErrorKind::NetworkUnreachable
            ) || (error.kind() == io::ErrorKind::TimedOut && !is_timeout(&error));
            if soon && pauses.sleep(deadline) {
                before = Some(error);
                continue;
            }
            // The last attempt may have had no time left to fail as the others did.
            let error = if is_timeout(&error) { before.unwrap_or(error) } else { error };
            let hint = match error.kind() {
                io::ErrorKind::ConnectionRefused => {
                    "nobody listens there: see whether rank 0 runs, and MASTER_ADDR and MASTER_PORT"
                }
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
                    "somebody listens there and hangs up: is it a store, and of PyTorch 2.2 or newer?"
                }
                _ => "see whether this host reaches that one, and MASTER_ADDR and MASTER_PORT",
            };
            return Err(self.network_error("connect", error, deadline).with_hint(hint));
        }
    }

    fn try_open(&self, deadline: Deadline) -> io::Result<Connection> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in resolve(&self.address, deadline)? {
            let left = deadline.remaining().ok_or(io::ErrorKind::TimedOut)?;
            match TcpStream::connect_timeout(&address, left) {
                Ok(stream) => return self.greet(stream, deadline),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Says who we are, and hears something: newer servers know a ping, but all can count.
    fn greet(&self, stream: TcpStream, deadline: Deadline) -> io::Result<Connection> {
        stream.set_nodelay(true)?;
        let mut connection = Connection {
            stream,
            buffer: vec![0; BUFFER].into(),
            start: 0,
            end: 0,
            limits: self.limits,
        };
        let greeting = match self.dialect {
            Dialect::Torch21 => Message::default(),
            Dialect::Torch22 => self.query(Query::Validate).fixed(&MAGIC.to_le_bytes()),
        };
        connection.send(&greeting.then(Query::GetNumKeys, self.dialect).0, deadline)?;
        connection.number(deadline)?;
        Ok(connection)
    }

    fn network_error(
        &self,
        operation: &'static str,
        error: io::Error,
        deadline: Deadline,
    ) -> Error {
        let (kind, message) = match error.kind() {
            _ if is_timeout(&error) => {
                (ErrorKind::Timeout, format!("no answer within {:?}", deadline.given()))
            }
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
                (ErrorKind::Remote, "the server closed the connection".to_owned())
            }
            _ => (ErrorKind::Remote, error.to_string()),
        };
        let hint = match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::InvalidData => None,
            _ => Some(UNREACHABLE),
        };
        let told = self.error(kind, operation, message).with_source(error);
        match hint {
            Some(hint) => told.with_hint(hint),
            None => told,
        }
    }

    fn error(&self, kind: ErrorKind, operation: &'static str, message: impl fmt::Display) -> Error {
        store_error(kind, &self.describe(), operation, message)
    }
}

impl Store for TcpStore {
    fn set(&self, key: &str, value: &[u8], deadline: Deadline) -> Result<()> {
        let query = self.query(Query::Set).bytes(self.key("set", key)?);
        self.tell("set", query.bytes(self.value("set", key, value)?), deadline)
    }

    fn get(&self, key: &str, deadline: Deadline) -> Result<Vec<u8>> {
        self.wait_for("get", &[key], deadline)?;
        let query = self.query(Query::Get).bytes(self.key("get", key)?);
        self.ask("get", &query, deadline.or_grace(), Connection::value)
    }

    fn wait(&self, keys: &[&str], deadline: Deadline) -> Result<()> {
        self.wait_for("wait", keys, deadline)
    }

    fn missing(&self, keys: &[&str], deadline: Deadline) -> Result<Vec<usize>> {
        let mut missing = Vec::new();
        // Each key is a query. Many at once would fill the buffers of both sides: the server writes
        // answers that nobody reads yet.
        for (chunk, first) in keys.chunks(CHECKS).zip((0..).step_by(CHECKS)) {
            let mut query = Message::default();
            for key in chunk {
                query = query
                    .then(Query::Check, self.dialect)
                    .count(1)
                    .bytes(self.key("missing", key)?);
            }
            self.ask("missing", &query, deadline, |connection, deadline| {
                for at in 0..chunk.len() {
                    if !connection.is_ready(deadline)? {
                        missing.push(first + at);
                    }
                }
                Ok(())
            })?;
        }
        Ok(missing)
    }

    fn check(&self, keys: &[&str], deadline: Deadline) -> Result<bool> {
        let query = self.keys("check", Query::Check, keys)?;
        self.ask("check", &query, deadline, Connection::is_ready)
    }

    fn add(&self, key: &str, delta: i64, deadline: Deadline) -> Result<i64> {
        let query = self.query(Query::Add).bytes(self.key("add", key)?).number(delta);
        self.ask("add", &query, deadline, Connection::number)
    }

    fn append(&self, key: &str, value: &[u8], deadline: Deadline) -> Result<()> {
        let query = self.query(Query::Append).bytes(self.key("append", key)?);
        self.tell("append", query.bytes(self.value("append", key, value)?), deadline)
    }

    fn compare_set(
        &self,
        key: &str,
        expected: &[u8],
        desired: &[u8],
        deadline: Deadline,
    ) -> Result<Vec<u8>> {
        let query = self
            .query(Query::CompareSet)
            .bytes(self.key("compare_set", key)?)
            .bytes(self.value("compare_set", key, expected)?)
            .bytes(self.value("compare_set", key, desired)?);
        self.ask("compare_set", &query, deadline, Connection::value)
    }

    fn delete(&self, key: &str, deadline: Deadline) -> Result<bool> {
        let query = self.query(Query::DeleteKey).bytes(self.key("delete", key)?);
        Ok(self.ask("delete", &query, deadline, Connection::number)? > 0)
    }

    fn multi_get(&self, keys: &[&str], deadline: Deadline) -> Result<Vec<Vec<u8>>> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        self.wait_for("multi_get", keys, deadline)?;
        let query = self.keys("multi_get", Query::MultiGet, keys)?;
        self.ask("multi_get", &query, deadline.or_grace(), |connection, deadline| {
            keys.iter().map(|_| connection.value(deadline)).collect()
        })
    }

    fn multi_set(&self, pairs: &[(&str, &[u8])], deadline: Deadline) -> Result<()> {
        let mut query = self.query(Query::MultiSet).count(pairs.len());
        for (key, value) in pairs {
            query = query.bytes(self.key("multi_set", key)?).bytes(self.value(
                "multi_set",
                key,
                value,
            )?);
        }
        self.tell("multi_set", query, deadline)
    }

    fn num_keys(&self, deadline: Deadline) -> Result<u64> {
        let keys =
            self.ask("num_keys", &self.query(Query::GetNumKeys), deadline, Connection::number)?;
        Ok(keys.unsigned_abs())
    }

    fn describe(&self) -> String {
        format!("TCP store at {}", self.address)
    }
}

impl fmt::Debug for TcpStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TcpStore({})", self.address)
    }
}

/// A connection between two operations, or inside one.
struct Connection {
    stream: TcpStream,
    /// What has arrived and was not asked for yet: `start..end`.
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    limits: Limits,
}

impl Connection {
    fn send(&mut self, mut bytes: &[u8], deadline: Deadline) -> io::Result<()> {
        while !bytes.is_empty() {
            let left = deadline.remaining().ok_or(io::ErrorKind::TimedOut)?;
            self.stream.set_write_timeout(Some(left))?;
            match self.stream.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(size) => bytes = &bytes[size..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn byte(&mut self, deadline: Deadline) -> io::Result<u8> {
        self.fixed(deadline).map(|[byte]| byte)
    }

    fn number(&mut self, deadline: Deadline) -> io::Result<i64> {
        self.fixed(deadline).map(i64::from_le_bytes)
    }

    /// A length, and as many bytes; memory is taken as they come, not as they are announced.
    fn value(&mut self, deadline: Deadline) -> io::Result<Vec<u8>> {
        let size = u64::from_le_bytes(self.fixed(deadline)?);
        let limit = self.limits.message;
        let Some(size) = usize::try_from(size).ok().filter(|size| *size <= limit) else {
            let message =
                format!("the server announced {size} bytes, {limit} is the limit: is it a store?");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        };
        let mut value = Vec::new();
        while value.len() < size {
            let arrived = self.arrived(deadline)?;
            let part = &arrived[..arrived.len().min(size - value.len())];
            value.extend_from_slice(part);
            self.start += part.len();
        }
        Ok(value)
    }

    fn is_ready(&mut self, deadline: Deadline) -> io::Result<bool> {
        match self.byte(deadline)? {
            READY => Ok(true),
            NOT_READY => Ok(false),
            other => Err(unexpected("check", other)),
        }
    }

    fn fixed<const N: usize>(&mut self, deadline: Deadline) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        let mut have = 0;
        while have < N {
            let arrived = self.arrived(deadline)?;
            let size = arrived.len().min(N - have);
            bytes[have..have + size].copy_from_slice(&arrived[..size]);
            self.start += size;
            have += size;
        }
        Ok(bytes)
    }

    /// What has arrived, at least a byte.
    fn arrived(&mut self, deadline: Deadline) -> io::Result<&[u8]> {
        while self.start == self.end {
            let left = deadline.remaining().ok_or(io::ErrorKind::TimedOut)?;
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(&mut self.buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(size) => (self.start, self.end) = (0, size),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(&self.buffer[self.start..self.end])
    }
}

/// The addresses of `HOST:PORT`. A name server that does not answer must not outlast the deadline,
/// and the system's call has none; so a thread makes it, which may stay behind.
fn resolve(address: &str, deadline: Deadline) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = address.parse() {
        return Ok(vec![address]);
    }
    let (tell, answer) = mpsc::channel();
    let name = address.to_owned();
    thread::Builder::new().name("collectives-resolve".into()).spawn(move || {
        // Nobody listens any more after the deadline.
        let _ = tell.send(name.to_socket_addrs().map(Vec::from_iter));
    })?;
    let left = deadline.remaining().ok_or(io::ErrorKind::TimedOut)?;
    answer.recv_timeout(left).map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// Whether the deadline passed. A socket's timeout is `WouldBlock` on Unix; there the system's own
/// `TimedOut` says that the other host has been silent for long.
fn is_timeout(error: &io::Error) -> bool {
    match error.kind() {
        io::ErrorKind::TimedOut => cfg!(windows) || error.raw_os_error().is_none(),
        kind => kind == io::ErrorKind::WouldBlock,
    }
}

fn unexpected(query: &str, answer: u8) -> io::Error {
    let message = format!("the server answered {answer} to {query}: is it a store?");
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// What to do where nothing comes back.
const UNREACHABLE: &str =
    "see whether rank 0, which serves the store, is alive and can be reached from here";

/// Bytes that are read at once.
const BUFFER: usize = 4 << 10;

/// Queries on the way at once.
const CHECKS: usize = 256;
