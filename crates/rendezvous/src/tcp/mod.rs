//! PyTorch's TCPStore: the protocol, a client and a server.
//!
//! # The protocol
//! A client connects, says [`VALIDATE`](wire::Query::Validate) with a magic number, and then sends
//! queries: a byte for the kind, then its fields. Integers are as the machines of both sides have
//! them, so little endian; texts and values have their length, a `u64`, before them. The server
//! answers in order, without any frame, and to some queries not at all. There is no error reply: a
//! server that dislikes a query closes the connection.
//!
//! | kind | query | fields | answer |
//! |---|---|---|---|
//! | 0 | `VALIDATE` | `u32` magic | |
//! | 1 | `SET` | key, value | |
//! | 2 | `COMPARE_SET` | key, expected, desired | value |
//! | 3 | `GET` | key | value; empty where there is none |
//! | 4 | `ADD` | key, `i64` | `i64` |
//! | 5 | `CHECK` | `u64` count, keys | 0 if all are there, else 1 |
//! | 6 | `WAIT` | `u64` count, keys | 0, when all are there |
//! | 7 | `GETNUMKEYS` | | `i64` |
//! | 8 | `DELETE_KEY` | key | `i64`, 0 or 1 |
//! | 9 | `APPEND` | key, value | |
//! | 10 | `MULTI_GET` | `u64` count, keys | values |
//! | 11 | `MULTI_SET` | `u64` count, pairs of key and value | |
//! | 12 | `CANCEL_WAIT` | | 1, behind the 0 of a wait that ended before |
//! | 13 | `PING` | `u32` | the same `u32` |
//! | 14 | `QUEUE_PUSH` | key, value | |
//! | 15 | `QUEUE_POP` | key | `i64` length before; if not 0, the value |
//! | 16 | `QUEUE_LEN` | key | `i64` |
//! | 17 | `LIST_KEYS` | | `i64` count, keys |
//! | 18 | `BARRIER` | key, `i64` size | 0, when `size` clients have come |
//!
//! PyTorch 2.1 has no `VALIDATE`, so its kinds are one less ([`Dialect`]); later releases only added
//! queries at the end. PyTorch puts a slash before the keys of its users, and keeps its count of
//! workers under `init/`. Its two servers, with libuv and without, speak the same; the one without
//! closes the connection on what it has no answer to, and knows neither `PING` as a duty nor queues.

mod client;
mod link;
mod server;
mod wire;

pub use client::TcpStore;
pub use server::TcpStoreServer;
pub use wire::{Dialect, Limits};
