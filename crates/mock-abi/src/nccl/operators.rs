//! Operators that multiply by a scalar, then sum.
#![expect(non_snake_case, reason = "C names stay C names, as in nccl.h")]

use std::{
    ffi::{c_int, c_void},
    ptr,
};

use collectives_core::{Collectives, Scalar};
use collectives_nccl_abi::{
    ncclComm_t, ncclDataType_t, ncclRedOp_t, ncclResult_t, ncclScalarResidence_t,
};

use super::{
    collectives::dtype,
    comm::Comm,
    refusal::{Refusal, answer, tell},
};

export! {
    nccl, on_panic = ncclResult_t::INTERNAL_ERROR;

    /// Makes an operator that multiplies each input by a scalar, then sums.
    fn ncclRedOpCreatePreMulSum(
        op: *mut ncclRedOp_t, scalar: *mut c_void, datatype: ncclDataType_t,
        residence: ncclScalarResidence_t, comm: ncclComm_t,
    ) -> ncclResult_t {
        const CALL: &str = "ncclRedOpCreatePreMulSum";
        answer(|| {
            let comm = Comm::of(CALL, comm)?;
            let mut state = comm.lock();
            let mock = state.live(CALL)?;
            let dtype = dtype(CALL, datatype)?;
            if op.is_null() || scalar.is_null() {
                return Err(Refusal::null(CALL, "op or scalar"));
            }
            let scalar = match residence {
                ncclScalarResidence_t::HOST_IMMEDIATE => {
                    let mut bytes = [0; 8];
                    // SAFETY: the caller's scalar is one element of this type.
                    unsafe {
                        ptr::copy_nonoverlapping(
                            scalar.cast::<u8>(), bytes.as_mut_ptr(), dtype.size(),
                        );
                    }
                    Scalar::Host { dtype, bytes }
                }
                ncclScalarResidence_t::DEVICE => Scalar::Device { dtype, ptr: scalar },
                other => {
                    return Err(Refusal::argument(format!(
                        "{CALL} : invalid scalar residence {}", other.0
                    )));
                }
            };
            // SAFETY: the caller keeps a device scalar as long as NCCL wants it.
            let made = unsafe { mock.create_pre_mul_sum(scalar) }?;
            let number = number_of(state.operators_made, comm.handle());
            state.operators_made += 1;
            state.operators.insert(number, made);
            tell(CALL, "op", op, ncclRedOp_t(number))
        })
    }

    /// Destroys an operator; it may be in use by calls that have returned.
    fn ncclRedOpDestroy(op: ncclRedOp_t, comm: ncclComm_t) -> ncclResult_t {
        const CALL: &str = "ncclRedOpDestroy";
        answer(|| {
            if !op.is_dynamic() {
                return Err(Refusal::argument(format!(
                    "{CALL} : operator {} is builtin or invalid", op.0
                )));
            }
            let mut state = Comm::of(CALL, comm)?.lock();
            let Some(made) = state.operators.remove(&op.0) else {
                return Err(Refusal::argument(format!(
                    "{CALL} : operator unknown to this communicator"
                )));
            };
            state.usable(CALL)?.destroy_pre_mul_sum(made)?;
            Ok(ncclResult_t::SUCCESS)
        })
    }
}

/// What the program knows the `index`th operator of a communicator by: any number from 5 up, mixed
/// with the communicator so that an operator of another one is seen.
fn number_of(index: u32, comm: ncclComm_t) -> c_int {
    let mixed = (comm.0.addr() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    // Below 2^31: 24 bits of the communicator above the lowest seven of the index.
    let number = (mixed << 7 | u64::from(index & 0x7f)) & 0x7fff_ffff;
    let first = i64::from(ncclRedOp_t::FIRST_DYNAMIC.0);
    let number = (number as i64 + i64::from(index >> 7)) % (i64::from(c_int::MAX) - first);
    (number + first) as c_int
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn numbers_are_legal_and_differ() {
        let comms = [0x7f00_0000_1000_usize, 0x7f00_0000_1040];
        let comm = |at: usize| ncclComm_t(ptr::without_provenance_mut(at));
        let numbers: BTreeSet<c_int> =
            comms.iter().flat_map(|&at| (0..100).map(move |i| number_of(i, comm(at)))).collect();
        assert_eq!(numbers.len(), 200);
        assert!(numbers.iter().all(|&number| number >= 5));
    }
}
