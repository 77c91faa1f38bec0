//! The CPU backend: real data, NCCL's semantics, no GPU.
