//! The mock as a drop-in library: `libnccl`, `librccl`, `libcuda`, `libamdhip64` and `libcudart` in
//! one file, on a CPU.
//!
//! Programs that know nothing of this project open it under those names and get the semantics of
//! [`collectives_backend_mock`]: real data, no GPU. Rust programs use the mock itself; this crate
//! is for code above a C interface: loaders, bindings, frameworks.
//!
//! * [`nccl`] has all host functions of NCCL's newest release with their `pnccl` twins, and RCCL's
//!   own. [`nccl::TABLE`] is the same as a [`Table`](collectives_nccl_abi::Table), for tests that
//!   open no file.
//! * [`cuda`], [`cudart`] and [`hip`] have the functions of the CUDA driver, the CUDA runtime and HIP
//!   that programs need around them: three thin faces of one device runtime.
//! * `runtime` is what the two share: the one machine of the process, the device of a thread.
//!
//! `docs/mock-abi.md` says how to install it, which variables it reads, and where it differs from
//! the libraries that it replaces.
//!
//! # Rules of every entry
//! No panic leaves it: it becomes the library's own code for an internal error, with one line on
//! standard error. What cannot be done here is refused with the library's own code, and reported once.

#[macro_use]
mod export;
pub mod cuda;
pub mod cudart;
mod gpu;
pub mod hip;
pub mod nccl;
mod runtime;

pub use gpu::{Code, Out};
