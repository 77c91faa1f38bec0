//! NCCL on CUDA: vendor constants and the CUDA device layer.
