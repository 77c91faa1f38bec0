//! The contract of `collectives`: traits, types, errors and shape rules.
//!
//! This crate knows no vendor, opens no library, does no I/O and contains no unsafe code. A backend
//! crate implements the traits; a user normally depends on the facade crate `collectives`.
//!
//! | to learn about | read |
//! |---|---|
//! | moving data, and the one safety contract | [`Collectives`] |
//! | what is built on it once, for every backend | [`CollectivesExt`] |
//! | loading a library, joining, groups | [`Backend`], [`BackendExt`] |
//! | memory, streams, events, graphs | [`Device`] |
//! | what a backend can do | [`Capabilities`] |
//! | which arguments are refused, and why | [`shape`] |
//! | what went wrong | [`Error`] |
//!
//! # To write a backend
//!
//! 1. Implement [`Device`], [`Collectives`] with [`Split`], and [`Backend`]. The traits have no default
//!    methods, so the compiler lists what is missing.
//! 2. Call the [`shape`] rules first in every operation: they refuse what one rank can see to be wrong,
//!    with the same words on every backend.
//! 3. Say in [`Capabilities`] what the library can do, and refuse the rest with
//!    [`Support::require`].
//! 4. Give every [`Error`] what it is about: [`with_comm`](Error::with_comm),
//!    [`with_operation`](Error::with_operation), [`with_hint`](Error::with_hint).
//! 5. Run the crate `collectives-conformance` of the workspace: a backend that implements its `Harness`
//!    gets every case.
#![deny(unsafe_code)]

mod abort;
mod backend;
mod buffer;
mod capabilities;
mod collectives;
mod comm_config;
mod comm_info;
mod device;
mod dtype;
mod element;
mod error;
mod ext;
mod launch;
mod rank;
mod reduce_op;
pub mod shape;
mod unique_id;
mod version;

pub use abort::{AbortControl, AbortHandle};
pub use backend::{
    Backend, BackendExt, GroupEnd, GroupToken, GrowConfig, JoinAllConfig, JoinConfig, ShrinkConfig,
    Split, SplitConfig,
};
pub use buffer::{RecvBuf, SendBuf};
pub use capabilities::{Capabilities, F8Format, Support};
pub use collectives::Collectives;
pub use comm_config::{CallConfig, CommConfig, CtaPolicy, GraphUsage, HostCft, NvlsHost};
pub use comm_info::{CommId, CommInfo, LibraryInfo, MemoryUse};
pub use device::{Device, DeviceInfo};
pub use dtype::DType;
pub use element::Element;
pub use error::{Error, ErrorKind, Result, VendorCode};
pub use ext::{CollectivesExt, PeerOp};
pub use launch::{
    Launch, RawEvent, RawGraph, RawRegistration, RawStream, RawWindow, SignalWait, WindowFlags,
};
pub use rank::Rank;
pub use reduce_op::{PreMulSum, ReduceOp, Scalar};
pub use unique_id::UniqueId;
pub use version::Version;

pub use float8::{F8E4M3, F8E5M2};
pub use half::{bf16, f16};
