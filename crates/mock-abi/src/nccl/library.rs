//! What the library says of itself.
#![expect(non_snake_case, reason = "C names stay C names, as in nccl.h")]

use std::ffi::c_int;

use collectives_nccl_abi::ncclResult_t;

export! {
    nccl, on_panic = ncclResult_t::INTERNAL_ERROR;

    /// Tells the version code.
    fn ncclGetVersion(version: *mut c_int) -> ncclResult_t {
        if version.is_null() {
            return ncclResult_t::INVALID_ARGUMENT;
        }
        // SAFETY: not null, so the caller's.
        unsafe { version.write(23203) };
        ncclResult_t::SUCCESS
    }
}
