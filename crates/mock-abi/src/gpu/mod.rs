//! The device runtime behind the CUDA driver, the CUDA runtime and HIP: what the three have in
//! common, once, on the engine of the mock.
//!
//! The three speak of the same things in the same numbers (HIP kept CUDA's codes), so this is
//! written in terms of none of them: [`Code`] is the answer of all, handles are numbers, and the
//! exported functions in `cuda`, `cudart` and `hip` only translate. What is added to the engine:
//!
//! * [`context`]: current contexts, a stack of them for each thread;
//! * [`stream`]: the null, legacy and per-thread default streams, and what *blocking* streams owe
//!   the legacy one;
//! * [`capture`]: the three modes, and what becomes of a capture that somebody disturbed;
//! * [`memory`]: pinned, managed, pooled and graph-owned memory, and pageable host memory, which is
//!   staged as the drivers do it;
//! * [`event`], [`graph`], [`device`].

pub(crate) mod capture;
pub(crate) mod code;
pub(crate) mod context;
pub(crate) mod device;
pub(crate) mod event;
pub(crate) mod graph;
pub(crate) mod memory;
pub(crate) mod out;
pub(crate) mod stream;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use code::Code;
pub(crate) use code::Reply;
pub use out::Out;

/// Locks, also after a panic elsewhere: what is behind these locks changes in single steps.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
