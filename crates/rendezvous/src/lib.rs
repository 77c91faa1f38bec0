//! How ranks find each other.
//!
//! NCCL leaves it to the program to get 128 bytes to the other ranks. This crate does that: it reads
//! what the launcher told the process, opens a store that all ranks can reach, and exchanges data
//! through it, under a deadline, with an error that names the ranks that did not come.
//!
//! | to learn about | read |
//! |---|---|
//! | which rank this process is, by torchrun, Slurm, Open MPI, PMIx, PMI | [`Environment`] |
//! | a place that all ranks read and write | [`Store`]; [`MemoryStore`], [`FileStore`], [`TcpStore`] |
//! | keys of several communicators or attempts, kept apart | [`PrefixStore`] |
//! | PyTorch's store: as a client, and as a server for Rust and Python ranks | [`TcpStore`], [`TcpStoreServer`] |
//! | an exchange of data between all ranks | [`exchange`], [`barrier`] |
//! | data of one rank for all, without torch and without MPI | [`share`], [`unique_id`] |
//!
//! ```
//! use std::{thread, time::Duration};
//!
//! use collectives_rendezvous::{Deadline, TcpStore, TcpStoreServer, exchange};
//!
//! # fn main() -> collectives_core::Result<()> {
//! // One process serves; here every rank is a thread of it.
//! let server = TcpStoreServer::bind("127.0.0.1:0")?;
//! let address = server.address().to_string();
//! let ranks: Vec<_> = (0..4)
//!     .map(|rank| {
//!         let address = address.clone();
//!         thread::spawn(move || {
//!             let deadline = Deadline::after(Duration::from_secs(30));
//!             let store = TcpStore::connect(&address, deadline)?;
//!             exchange(&store, "hosts/0", rank, 4, format!("host of {rank}").as_bytes(), deadline)
//!         })
//!     })
//!     .collect();
//! for rank in ranks {
//!     assert_eq!(rank.join().unwrap()?[2], b"host of 2");
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A store is not a database: it holds a few small values for as long as the ranks need to meet.

mod deadline;
mod environment;
mod exchange;
mod file;
mod hosts;
mod memory;
mod store;
mod table;
mod tcp;
pub mod unique_id;

pub use deadline::Deadline;
pub use environment::{Environment, Launcher};
pub use exchange::{barrier, exchange, list_ranks, share};
pub use file::FileStore;
pub use hosts::parse_host_list;
pub use memory::MemoryStore;
pub use store::{PrefixStore, Store};
pub use tcp::{Dialect, Limits, TcpStore, TcpStoreServer};
