//! The NCCL C ABI as data, and its run-time loader: NCCL and RCCL, every release, without a header,
//! a build script or a link line.
//!
//! The ABI has only grown: no function was removed or changed, and no number changed its meaning. So
//! one set of declarations serves every release, and what a library has is found out when it is
//! opened.
//!
//! # The tour
//!
//! * [`Library`] is an open library. [`load`](Library::load) searches as users expect,
//!   [`load_from`](Library::load_from) takes one path, [`from_table`](Library::from_table) opens
//!   nothing. [`LoadError`] lists what was tried, with the loader's messages.
//! * [`Table`] holds its functions as plain pointers; the optional ones are `Option`. [`Symbol`] says
//!   which release brought a function.
//! * [`ncclResult_t`] and the other names of `nccl.h` are in [`types`]; enums are open sets. The
//!   structs that carry their size are in [`config`]: one layout, all fields undefined until set.
//! * [`inspect()`] reads what a library's file says of itself, without opening it.
//! * [`quirks`] are the known bugs, each with its versions.
//! * [`Vendor`] is what differs between NCCL and RCCL, as data; [`search`] is where their libraries
//!   live.
//! * [`fork`] keeps a forked child from calling a library.
//!
//! Nothing here makes a communicator safe to use, and nothing knows the traits of
//! `collectives-core`: that is the next layer's work.
//!
//! # Example
//!
//! ```no_run
//! use collectives_nccl_abi::{Library, Vendor, ncclUniqueId};
//!
//! let nccl = Library::load(Vendor::NCCL)?;
//! // NCCL 2.27.3 (/usr/lib/x86_64-linux-gnu/libnccl.so.2.27.3), found by dynamic loader
//! println!("{nccl}, found by {}", nccl.source());
//!
//! for symbol in nccl.table().missing_optional() {
//!     println!("  has no {}", symbol.name());
//! }
//!
//! let mut id = ncclUniqueId::ZERO;
//! // SAFETY: `id` outlives the call.
//! let result = unsafe { (nccl.table().get_unique_id)(&mut id) };
//! if !result.is_success() {
//!     eprintln!("{}: {:?}", nccl.error_text(result), nccl.last_error());
//! }
//! # Ok::<(), collectives_nccl_abi::LoadError>(())
//! ```

pub mod config;
mod elf;
mod error;
pub mod fork;
mod inspect;
mod loader;
pub mod quirks;
pub mod search;
mod table;
pub mod types;
mod vendor;
mod version;

pub use config::{ncclCollConfig_t, ncclConfig_t, ncclSimInfo_t};
pub use error::{Attempt, LoadError, MissingSymbols, Refusal};
pub use inspect::{FileInfo, inspect};
pub use loader::{Library, Source, loaded_copies};
pub use search::Environment;
pub use table::{Symbol, Table};
pub use types::{
    cudaStream_t, ncclComm_t, ncclDataType_t, ncclRedOp_t, ncclResult_t, ncclScalarResidence_t,
    ncclUniqueId, ncclWindow_t,
};
pub use vendor::{Flavour, Vendor};
pub use version::version_text;
