//! RCCL on ROCm: the vendor's constants and the HIP device layer.

pub mod hip;
