//! `Backend` and `Collectives` for any library that speaks the NCCL C ABI: written once, for NCCL
//! and RCCL of every release.
//!
//! What differs between the vendors is data and a device layer, given as a [`Vendor`]. A backend
//! crate writes that and gets the rest: [`Library`] is the loaded library, [`Comm`] one rank's end
//! of a communicator.
//!
//! # How a call runs
//!
//! 1. Fork flag (one relaxed load) and life line (one store, one load): calls in a forked child and on
//!    an aborted communicator are refused, and an abort from another thread knows of this call.
//! 2. Shape rules of `collectives_core`, which refuse what the library would misread.
//! 3. The library's numbers ([`ncclDataType_t`](collectives_nccl_abi::ncclDataType_t) and the
//!    like), then its function, by pointer.
//!
//! # What it takes care of
//!
//! | | |
//! |---|---|
//! | a refused call in a group | the whole group is dropped, never half of it launched |
//! | threads that join by one id and do not fit; an id used twice | refused before the library waits for ever |
//! | a deadline on joining | a non-blocking parent, split into a blocking child |
//! | abort from another thread | no call touches the freed pointer; what cannot be freed is leaked |
//! | a lost rank | revoke, shrink and grow; a revoked communicator is never finalized |
//! | dropping | bounded: a dead peer does not hang it |
//! | the end of the process | waits, for a bounded time, for work in the background |
//! | missing functions | emulated (named so in the capabilities) or refused with the version |
//! | memory, waits | one cache of device memory and one way to wait, for all vendors: [`device`] |
//! | known bugs | [`collectives_nccl_abi::quirks`], from the first join on |

mod backend;
mod capabilities;
mod comm;
mod config;
mod conv;
pub mod device;
mod error;
mod fence;
mod group;
mod helper;
mod join;
mod meeting;
mod met;
mod split;
mod state;
mod vendor;

pub use backend::Library;
pub use capabilities::capabilities_of;
pub use comm::Comm;
#[doc(hidden)]
pub use join::ParentPolicy;
pub use vendor::Vendor;
