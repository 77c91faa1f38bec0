//! NCCL's functions, and RCCL's own.

mod library;

pub use library::ncclGetVersion;
