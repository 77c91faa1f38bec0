//! The server: one thread for all clients.
//!
//! The thread waits in the kernel for whatever socket has something to say (mio: epoll without a
//! runtime around it, and without unsafe code here). No client can hold up another, and what one can
//! cost is bounded:
//!
//! 1. A client that is idle costs its socket and a few hundred bytes. Bytes are read into one buffer
//!    that all share; only the start of a query whose end has not come is kept, as it arrives.
//! 2. Lengths are refused as soon as they are read ([`wire`](super::wire)), so a client can make the
//!    server hold at most one query, and only by sending it.
//! 3. A client that does not read its answers is not read from, until it does.
//! 4. After a few reads the next client's turn comes.
//! 5. What breaks the rules ends that connection, never the server.
//! 6. A client whose host is gone is dropped when that has been silent for long enough
//!    ([`link`](super::link)).

use std::{
    collections::HashMap,
    fmt,
    io::{self, Read as _, Write as _},
    mem,
    net::{SocketAddr, ToSocketAddrs},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use collectives_core::{Error, ErrorKind, Result};
use mio::{Events, Interest, Poll, Token, Waker, net};
use slab::Slab;

use super::{
    link,
    wire::{
        Dialect, Limits, MAGIC, Message, NOT_READY, READY, Request, STOP_WAITING, Scanner,
        Violation, WAIT_CANCELED, dialect,
    },
};
use crate::table::{Refusal, Table};

/// A store that serves PyTorch's protocol, to [`TcpStore`](crate::TcpStore) and to
/// `torch.distributed.TCPStore` from PyTorch 2.1 to 2.15.
///
/// It listens where it was told to and nowhere else, and ends, with all its connections, when it is
/// dropped. Whoever can reach it can read and write it: PyTorch's protocol has no passwords. So let
/// it listen on the address that the other ranks use, not on every interface.
pub struct TcpStoreServer {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    waker: Waker,
    thread: Option<thread::JoinHandle<()>>,
}

impl TcpStoreServer {
    /// Serves at `address` (a port of 0 takes any free one; see [`address`](Self::address)), within
    /// the default [`Limits`].
    ///
    /// An address of every interface (`0.0.0.0`, `[::]`) is warned about.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if it is no address or none of this machine's,
    /// [`ErrorKind::System`] if it is taken.
    ///
    /// # Examples
    /// ```
    /// let server = collectives_rendezvous::TcpStoreServer::bind("127.0.0.1:0")?;
    /// assert!(server.address().ip().is_loopback());
    /// # Ok::<(), collectives_core::Error>(())
    /// ```
    pub fn bind(address: impl ToSocketAddrs + fmt::Debug) -> Result<Self> {
        Self::bind_within(address, Limits::default())
    }

    /// The same, within other limits.
    pub fn bind_within(address: impl ToSocketAddrs + fmt::Debug, limits: Limits) -> Result<Self> {
        let refused = |error: io::Error| {
            let kind = match error.kind() {
                io::ErrorKind::AddrNotAvailable | io::ErrorKind::InvalidInput => {
                    ErrorKind::InvalidArgument
                }
                _ => ErrorKind::System,
            };
            Error::new(kind, format!("store cannot listen at {address:?}: {error}"))
                .with_hint("give an address of this machine that the other ranks can reach, and a free port")
                .with_poison(false)
                .with_source(error)
        };
        let mut tried = io::Error::new(io::ErrorKind::InvalidInput, "the name has no address");
        for candidate in address.to_socket_addrs().map_err(refused)? {
            match net::TcpListener::bind(candidate) {
                Ok(listener) => return Self::serve(listener, limits).map_err(refused),
                Err(error) => tried = error,
            }
        }
        Err(refused(tried))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    fn serve(mut listener: net::TcpListener, limits: Limits) -> io::Result<Self> {
        let address = listener.local_addr()?;
        if address.ip().is_unspecified() {
            tracing::warn!(%address, "the store listens on every interface, without a password");
        }
        let poll = Poll::new()?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let waker = Waker::new(poll.registry(), WAKER)?;
        let stop = Arc::new(AtomicBool::new(false));
        let service = Service {
            poll,
            listener,
            limits,
            connections: Slab::new(),
            table: Table::default(),
            waiting: HashMap::new(),
            scratch: vec![0; SCRATCH],
            again: Vec::new(),
            answered: Vec::new(),
            full: false,
        };
        let thread = thread::Builder::new().name("collectives-store".into()).spawn({
            let stop = Arc::clone(&stop);
            move || service.run(&stop)
        })?;
        Ok(Self { address, stop, waker, thread: Some(thread) })
    }
}

impl Drop for TcpStoreServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Err(error) = self.waker.wake() {
            tracing::warn!(%error, address = %self.address, "the store's thread cannot be told to end");
            return;
        }
        // It waits for nothing but the sockets and this, so it comes.
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(address = %self.address, "the store's thread panicked");
        }
    }
}

impl fmt::Debug for TcpStoreServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TcpStoreServer({})", self.address)
    }
}

/// All that the thread has.
struct Service {
    poll: Poll,
    listener: net::TcpListener,
    limits: Limits,
    connections: Slab<Connection>,
    table: Table,
    /// Who waits for a key, in the order of arrival; once for each time that it was named.
    waiting: HashMap<Box<[u8]>, Vec<usize>>,
    scratch: Vec<u8>,
    /// Connections whose turn was over before their bytes were.
    again: Vec<usize>,
    /// Connections that another one's query has given an answer.
    answered: Vec<usize>,
    /// The process had no descriptor left for a client; the kernel will not say it twice.
    full: bool,
}

struct Connection {
    stream: net::TcpStream,
    peer: SocketAddr,
    stage: Stage,
    scanner: Scanner,
    /// The start of a query whose end has not come.
    input: Vec<u8>,
    /// Answers, of which `sent` bytes have gone.
    output: Vec<u8>,
    sent: usize,
    /// Whether `input` may hold whole queries, because too many answers stood in the way.
    paused: bool,
    /// What it waits for, and how many of these have not come.
    awaited: Vec<Box<[u8]>>,
    left: usize,
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Stage {
    /// Nothing has come yet.
    New,
    /// It speaks PyTorch 2.2's dialect, and this must be its magic number.
    Validating,
    Ready,
}

impl Service {
    fn run(mut self, stop: &AtomicBool) {
        let mut events = Events::with_capacity(1024);
        loop {
            let patience = if !self.again.is_empty() {
                Some(Duration::ZERO)
            } else if self.full {
                Some(Duration::from_millis(100))
            } else {
                None
            };
            match self.poll.poll(&mut events, patience) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::error!(%error, "the store cannot wait for its clients, and ends");
                    return;
                }
            }
            if stop.load(Ordering::Acquire) {
                return;
            }
            let again = mem::take(&mut self.again);
            let mut accept = mem::take(&mut self.full);
            for event in &events {
                match event.token() {
                    LISTENER => accept = true,
                    WAKER => {}
                    Token(id) => {
                        let only_bytes = !event.is_read_closed() && !event.is_error();
                        self.advance(id, only_bytes);
                    }
                }
            }
            for id in again {
                self.advance(id, false);
            }
            if accept {
                self.accept();
            }
        }
    }

    fn accept(&mut self) {
        loop {
            match self.listener.accept() {
                Ok((stream, peer)) => {
                    if let Err(error) = self.admit(stream, peer) {
                        tracing::warn!(%error, %peer, "the store cannot serve a client");
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The client was gone before it was welcomed.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!(
                        %error,
                        clients = self.connections.len(),
                        "the store cannot take another client now"
                    );
                    self.full = true;
                    return;
                }
            }
        }
    }

    fn admit(&mut self, mut stream: net::TcpStream, peer: SocketAddr) -> io::Result<()> {
        // Answers are small, and each is waited for.
        stream.set_nodelay(true)?;
        // One whose host is gone would be kept for ever.
        link::give_up_after(&stream, self.limits.silence)?;
        let entry = self.connections.vacant_entry();
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut stream, Token(entry.key()), interest)?;
        entry.insert(Connection {
            stream,
            peer,
            stage: Stage::New,
            scanner: Scanner::default(),
            input: Vec::new(),
            output: Vec::new(),
            sent: 0,
            paused: false,
            awaited: Vec::new(),
            left: 0,
        });
        Ok(())
    }

    /// Writes and reads what this connection can, for one turn. With `only_bytes` there was no end of
    /// them when the kernel spoke up.
    fn advance(&mut self, id: usize, only_bytes: bool) {
        for _ in 0..READS_PER_TURN {
            let mut is_drained = false;
            // An event may be about a connection that has ended since; then nothing is done.
            let Some(connection) = self.connections.get_mut(id) else { return };
            match connection.flush() {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => return self.close(id, &error),
            }
            let served = if connection.paused {
                self.serve(id, 0)
            } else {
                match connection.stream.read(&mut self.scratch) {
                    Ok(0) => return self.close(id, &"the client closed it"),
                    Ok(size) => {
                        // Of what comes later, its end too, Linux will speak again (epoll(7), question
                        // 9). Elsewhere it takes a read that finds nothing.
                        is_drained = cfg!(target_os = "linux") && only_bytes && size < SCRATCH;
                        self.serve(id, size)
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return self.close(id, &error),
                }
            };
            self.deliver(id);
            if let Err(violation) = served {
                return self.expel(id, &violation);
            }
            if is_drained && self.connections.get(id).is_none_or(|connection| !connection.paused) {
                return;
            }
        }
        self.again.push(id);
    }

    /// Does what the queries say that are in the connection's input and the first `size` bytes of
    /// the scratch buffer, and keeps the rest.
    fn serve(&mut self, id: usize, size: usize) -> Result<(), Violation> {
        let scratch = mem::take(&mut self.scratch);
        let result = self.serve_bytes(id, &scratch[..size]);
        self.scratch = scratch;
        result
    }

    fn serve_bytes(&mut self, id: usize, fresh: &[u8]) -> Result<(), Violation> {
        let Some(connection) = self.connections.get_mut(id) else { return Ok(()) };
        let mut kept = mem::take(&mut connection.input);
        if kept.is_empty() {
            let done = self.serve_queries(id, fresh)?;
            kept = fresh[done..].to_vec();
        } else {
            kept.extend_from_slice(fresh);
            let done = self.serve_queries(id, &kept)?;
            if done > 0 {
                kept = kept[done..].to_vec();
            }
        }
        if let Some(connection) = self.connections.get_mut(id) {
            connection.input = kept;
        }
        Ok(())
    }

    /// Does one query after the other, and says how many bytes they had.
    fn serve_queries(&mut self, id: usize, input: &[u8]) -> Result<usize, Violation> {
        let mut done = 0;
        while let Some(connection) = self.connections.get_mut(id) {
            connection.paused = connection.output.len() > HIGH_WATER;
            if connection.paused {
                break;
            }
            let rest = &input[done..];
            if connection.stage == Stage::New {
                let Some(dialect) = dialect(rest)? else { break };
                connection.scanner.set_dialect(dialect);
                connection.stage = match dialect {
                    Dialect::Torch21 => Stage::Ready,
                    Dialect::Torch22 => Stage::Validating,
                };
            }
            let Some((query, size)) = connection.scanner.scan(rest, &self.limits)? else { break };
            if let Some(request) = Request::read(query, &rest[..size]) {
                let answer = self.answer(id, request)?.0;
                match self.connections.get_mut(id) {
                    Some(connection) if connection.output.is_empty() => connection.output = answer,
                    Some(connection) => connection.output.extend_from_slice(&answer),
                    None => {}
                }
            }
            done += size;
        }
        Ok(done)
    }

    /// Does what `request` says, and returns the answer, which may be empty.
    fn answer(&mut self, id: usize, request: Request<'_>) -> Result<Message, Violation> {
        let table = &mut self.table;
        let answer = Message::default();
        match request {
            Request::Validate { magic } if magic == MAGIC => {
                if let Some(connection) = self.connections.get_mut(id) {
                    connection.stage = Stage::Ready;
                }
            }
            Request::Validate { .. } => return Err(Violation::Magic),
            Request::Ping { nonce } => return Ok(answer.fixed(&nonce)),
            Request::Set { key, value } => {
                self.room_for(key.len() + value.len())?;
                self.table.set(key, value);
                self.wake(id, key);
            }
            Request::CompareSet { key, expected, desired } => {
                self.room_for(key.len() + desired.len())?;
                let value = self.table.compare_set(key, expected, desired);
                if self.table.contains(key) {
                    self.wake(id, key);
                }
                return Ok(answer.bytes(value));
            }
            Request::Get { key } => return Ok(answer.bytes(table.get(key).unwrap_or_default())),
            Request::Add { key, delta } => {
                self.room_for(key.len() + NUMBER)?;
                let sum = self.table.add(key, delta).map_err(|refusal| refused(key, &refusal))?;
                self.wake(id, key);
                return Ok(answer.number(sum));
            }
            Request::Check { keys } => {
                let ready = keys.iter().all(|key| table.contains(key));
                return Ok(answer.fixed(&[if ready { READY } else { NOT_READY }]));
            }
            Request::Wait { keys } => {
                let missing: Vec<Box<[u8]>> = keys
                    .iter()
                    .filter(|key| !table.contains(key))
                    .map(|key| Box::from(*key))
                    .collect();
                if missing.is_empty() {
                    return Ok(answer.fixed(&[STOP_WAITING]));
                }
                self.stop_waiting(id);
                self.start_waiting(id, missing);
            }
            Request::GetNumKeys => return Ok(answer.count(table.len())),
            Request::DeleteKey { key } => return Ok(answer.number(table.delete(key).into())),
            Request::Append { key, value } => {
                let size = table.get(key).map_or(0, <[u8]>::len) + value.len();
                if size > self.limits.value {
                    let limit = self.limits.value;
                    return Err(Violation::Size { what: "a value", size: size as u64, limit });
                }
                self.room_for(key.len() + value.len())?;
                self.table.append(key, value);
                self.wake(id, key);
            }
            Request::MultiGet { keys } => {
                let size = |key: &&[u8]| 8 + self.table.get(key).map_or(0, <[u8]>::len);
                self.fits(keys.iter().map(size).sum())?;
                return Ok(keys.iter().fold(answer, |answer, key| {
                    answer.bytes(self.table.get(key).unwrap_or_default())
                }));
            }
            Request::MultiSet { pairs } => {
                self.room_for(pairs.iter().map(|(key, value)| key.len() + value.len()).sum())?;
                for (key, value) in pairs {
                    self.table.set(key, value);
                    self.wake(id, key);
                }
            }
            Request::CancelWait => {
                self.stop_waiting(id);
                return Ok(answer.fixed(&[WAIT_CANCELED]));
            }
            Request::QueuePush { key, value } => {
                self.room_for(key.len() + value.len())?;
                self.table.push(key, value);
                self.wake_one(id, key);
            }
            Request::QueuePop { key } => {
                let answer = answer.count(table.queue_len(key));
                return Ok(match table.pop(key) {
                    Some(value) => answer.bytes(value),
                    None => answer,
                });
            }
            Request::QueueLen { key } => return Ok(answer.count(table.queue_len(key))),
            Request::ListKeys => {
                self.fits(self.table.size() + 8 * self.table.len())?;
                return Ok(self
                    .table
                    .keys()
                    .fold(answer.count(self.table.len()), |answer, key| answer.bytes(key)));
            }
            Request::Barrier { key, size } => {
                self.room_for(key.len() + NUMBER)?;
                let come = self.table.add(key, 1).map_err(|refusal| refused(key, &refusal))?;
                if come >= size {
                    self.wake(id, key);
                    return Ok(answer.fixed(&[STOP_WAITING]));
                }
                self.stop_waiting(id);
                self.start_waiting(id, vec![key.into()]);
            }
        }
        Ok(answer)
    }

    /// Refuses what would make the store too large.
    fn room_for(&self, size: usize) -> Result<(), Violation> {
        let limit = self.limits.stored;
        match self.table.size().checked_add(size).filter(|size| *size <= limit) {
            Some(_) => Ok(()),
            None => Err(Violation::Refused(format!(
                "it wrote {size} bytes to a store that holds {}; {limit} is the limit",
                self.table.size()
            ))),
        }
    }

    /// Refuses what would have too large an answer.
    fn fits(&self, size: usize) -> Result<(), Violation> {
        let limit = self.limits.message;
        if size <= limit {
            return Ok(());
        }
        Err(Violation::Refused(format!("it asked for {size} bytes at once; {limit} is the limit")))
    }

    fn start_waiting(&mut self, id: usize, keys: Vec<Box<[u8]>>) {
        for key in &keys {
            self.waiting.entry(key.clone()).or_default().push(id);
        }
        if let Some(connection) = self.connections.get_mut(id) {
            connection.left = keys.len();
            connection.awaited = keys;
        }
    }

    fn stop_waiting(&mut self, id: usize) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        connection.left = 0;
        for key in mem::take(&mut connection.awaited) {
            if let Some(waiting) = self.waiting.get_mut(&key) {
                waiting.retain(|other| *other != id);
                if waiting.is_empty() {
                    self.waiting.remove(&key);
                }
            }
        }
    }

    /// Tells those who wait for nothing but `key`.
    fn wake(&mut self, by: usize, key: &[u8]) {
        for id in self.waiting.remove(key).unwrap_or_default() {
            self.arrived(by, id);
        }
    }

    /// Tells the first of those who wait for nothing but `key`: one value of a queue is for one.
    fn wake_one(&mut self, by: usize, key: &[u8]) {
        let first = self.waiting.get(key).and_then(|waiting| {
            waiting
                .iter()
                .copied()
                .find(|id| self.connections.get(*id).is_some_and(|c| c.left == 1))
        });
        if let Some(id) = first {
            self.stop_waiting(id);
            if let Some(connection) = self.connections.get_mut(id) {
                connection.left = 1;
            }
            self.arrived(by, id);
        }
    }

    /// One of the keys that `id` waits for is there.
    fn arrived(&mut self, by: usize, id: usize) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        connection.left = connection.left.saturating_sub(1);
        if connection.left == 0 {
            connection.awaited = Vec::new();
            connection.output.push(STOP_WAITING);
            if id != by {
                self.answered.push(id);
            }
        }
    }

    /// Sends what the queries of `by` gave to others, and to itself.
    fn deliver(&mut self, by: usize) {
        let mut answered = mem::take(&mut self.answered);
        for id in answered.drain(..).chain([by]) {
            if let Some(connection) = self.connections.get_mut(id)
                && let Err(error) = connection.flush()
            {
                self.close(id, &error);
            }
        }
        self.answered = answered;
    }

    fn expel(&mut self, id: usize, violation: &Violation) {
        if let Some(connection) = self.connections.get(id)
            && connection.stage == Stage::Ready
        {
            tracing::warn!(peer = %connection.peer, "the store closes a connection: {violation}");
        }
        self.close(id, violation);
    }

    fn close(&mut self, id: usize, reason: &dyn fmt::Display) {
        self.stop_waiting(id);
        if let Some(connection) = self.connections.try_remove(id) {
            tracing::debug!(peer = %connection.peer, "connection of the store ends: {reason}");
        }
    }
}

impl Connection {
    /// Sends answers; whether all have gone.
    fn flush(&mut self) -> io::Result<bool> {
        while self.sent < self.output.len() {
            match self.stream.write(&self.output[self.sent..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(size) => self.sent += size,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.sent = 0;
        self.output.clear();
        self.output.shrink_to(KEPT);
        Ok(true)
    }
}

fn refused(key: &[u8], refusal: &Refusal) -> Violation {
    Violation::Refused(format!("key '{}' {refusal}", String::from_utf8_lossy(key)))
}

const LISTENER: Token = Token(usize::MAX);
const WAKER: Token = Token(usize::MAX - 1);

/// The buffer that all clients' bytes are read into.
const SCRATCH: usize = 64 << 10;

/// Reads of one connection before others have their turn.
const READS_PER_TURN: usize = 16;

/// Bytes of answers that may wait for a client before its queries do.
const HIGH_WATER: usize = 256 << 10;

/// Bytes that an idle connection keeps for answers.
const KEPT: usize = 1 << 10;

/// Bytes that a number takes at most.
const NUMBER: usize = 20;
