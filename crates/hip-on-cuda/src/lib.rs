//! HIP on CUDA, for tests: a `libamdhip64.so.7` that hands each call on to the CUDA runtime.
//!
//! With it and a copy of NVIDIA's `libnccl.so.2` named `librccl.so.1`, the whole path of the RCCL
//! backend runs on NVIDIA GPUs: its loader, its table of HIP functions, its devices, streams and
//! graphs, on real data. `scripts/hip-on-cuda` lays the two out. It proves nothing about AMD's
//! libraries, and is never shipped.
//!
//! * `hip` has the exported functions. Most are one line: HIP kept CUDA's signatures and most of
//!   its numbers.
//! * `conv` has what differs, as tables: codes, attributes, flags.
//! * `properties` has the structures that HIP lays out in its own way.
//! * `cudart` finds the CUDA runtime: `libcudart.so.13` or `.12` by name, or the file that
//!   `HIP_ON_CUDA_CUDART` names.
//!
//! Functions that the CUDA runtime lacks answer 801, not supported, and all of them 35, insufficient
//! driver, where there is no CUDA runtime; each with a line on standard error, once. Nothing here
//! panics. What the shim refuses by itself is not kept for `hipGetLastError`, which asks CUDA.

mod conv;
mod cudart;
mod hip;
mod properties;
