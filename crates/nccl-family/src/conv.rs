//! Tables between this project's enums and the library's numbers.

use collectives_core::{DType, ReduceOp};
use collectives_nccl_abi::{ncclDataType_t, ncclRedOp_t};

/// `ncclDataType_t` of a dtype.
#[inline]
pub(crate) const fn dtype(dtype: DType) -> ncclDataType_t {
    match dtype {
        DType::I8 => ncclDataType_t::INT8,
        DType::U8 => ncclDataType_t::UINT8,
        DType::I32 => ncclDataType_t::INT32,
        DType::U32 => ncclDataType_t::UINT32,
        DType::I64 => ncclDataType_t::INT64,
        DType::U64 => ncclDataType_t::UINT64,
        DType::F16 => ncclDataType_t::FLOAT16,
        DType::F32 => ncclDataType_t::FLOAT32,
        DType::F64 => ncclDataType_t::FLOAT64,
        DType::Bf16 => ncclDataType_t::BFLOAT16,
        DType::F8E4M3 => ncclDataType_t::FLOAT8_E4M3,
        DType::F8E5M2 => ncclDataType_t::FLOAT8_E5M2,
    }
}

/// `ncclRedOp_t` of a built-in operator; `None` for one that a communicator made.
#[inline]
pub(crate) const fn reduce_op(op: ReduceOp) -> Option<ncclRedOp_t> {
    match op {
        ReduceOp::Sum => Some(ncclRedOp_t::SUM),
        ReduceOp::Prod => Some(ncclRedOp_t::PROD),
        ReduceOp::Max => Some(ncclRedOp_t::MAX),
        ReduceOp::Min => Some(ncclRedOp_t::MIN),
        ReduceOp::Avg => Some(ncclRedOp_t::AVG),
        ReduceOp::PreMulSum(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dtypes_keep_their_size_and_order() {
        for (index, ours) in DType::ALL.into_iter().enumerate() {
            let theirs = dtype(ours);
            assert_eq!(theirs.0 as usize, index, "{ours}");
            assert_eq!(theirs.size(), Some(ours.size()), "{ours}");
        }
    }

    #[test]
    fn built_in_operators_are_not_dynamic() {
        for op in ReduceOp::BUILT_IN {
            assert!(reduce_op(op).is_some_and(|raw| !raw.is_dynamic()), "{op}");
        }
    }
}
