//! Backend and Collectives for any library that speaks the NCCL C ABI.
