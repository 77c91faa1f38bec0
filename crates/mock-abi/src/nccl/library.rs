//! What the library says of itself, and groups.
#![expect(non_snake_case, reason = "C names stay C names, as in nccl.h")]

use std::ffi::{c_char, c_int};

use collectives_nccl_abi::{
    config::{ncclEncryptionConfig_t, ncclSimInfo_t},
    ncclComm_t, ncclResult_t,
};

use super::{
    config, group,
    identity::Identity,
    log,
    refusal::{answer, tell},
};

export! {
    nccl, on_panic = ncclResult_t::INTERNAL_ERROR;

    /// Tells the version code.
    fn ncclGetVersion(version: *mut c_int) -> ncclResult_t {
        answer(|| tell("GetVersion", "version", version, Identity::get().code))
    }

    /// Encrypts the bootstrap network of communicators made later: checked, and of no effect, as the
    /// mock has no network.
    fn ncclSetEncryption(config: *const ncclEncryptionConfig_t) -> ncclResult_t {
        answer(|| {
            // SAFETY: null, or the caller's struct, which is as long as it says.
            unsafe { config::check_encryption(config) }?;
            Ok(ncclResult_t::SUCCESS)
        })
    }

    /// Opens a group on this thread; groups nest.
    fn ncclGroupStart() -> ncclResult_t {
        group::start();
        ncclResult_t::SUCCESS
    }

    /// Closes a group on this thread; the outermost one launches what it holds.
    fn ncclGroupEnd() -> ncclResult_t {
        group::end(None)
    }

    /// Closes a group without launching, and estimates its time: a number made up. With null it is
    /// `ncclGroupEnd`.
    fn ncclGroupSimulateEnd(sim_info: *mut ncclSimInfo_t) -> ncclResult_t {
        group::end((!sim_info.is_null()).then_some(sim_info))
    }
}

export! {
    nccl, on_panic = c"internal error".as_ptr();

    /// Names a result, in static text.
    fn ncclGetErrorString(result: ncclResult_t) -> *const c_char {
        let identity = Identity::get();
        let long = identity.is_at_least(21803);
        match (result, long) {
            (ncclResult_t::SUCCESS, _) => c"no error",
            (ncclResult_t::UNHANDLED_CUDA_ERROR, true) => {
                c"unhandled cuda error (run with NCCL_DEBUG=INFO for details)"
            }
            (ncclResult_t::UNHANDLED_CUDA_ERROR, false) => c"unhandled cuda error",
            (ncclResult_t::SYSTEM_ERROR, true) => {
                c"unhandled system error (run with NCCL_DEBUG=INFO for details)"
            }
            (ncclResult_t::SYSTEM_ERROR, false) => c"unhandled system error",
            (ncclResult_t::INTERNAL_ERROR, true) => {
                c"internal error - please report this issue to the NCCL developers"
            }
            (ncclResult_t::INTERNAL_ERROR, false) => c"internal error",
            (ncclResult_t::INVALID_ARGUMENT, true) => {
                c"invalid argument (run with NCCL_DEBUG=WARN for details)"
            }
            (ncclResult_t::INVALID_ARGUMENT, false) => c"invalid argument",
            (ncclResult_t::INVALID_USAGE, true) => {
                c"invalid usage (run with NCCL_DEBUG=WARN for details)"
            }
            (ncclResult_t::INVALID_USAGE, false) => c"invalid usage",
            (ncclResult_t::REMOTE_ERROR, _) => {
                c"remote process exited or there was a network error"
            }
            (ncclResult_t::IN_PROGRESS, _) => c"NCCL operation in progress",
            (ncclResult_t::TIMEOUT, _) if identity.is_at_least(23003) => c"timeout",
            _ => c"unknown result code",
        }
        .as_ptr()
    }

    /// The last warning, from one process-wide buffer that is never cleared.
    fn ncclGetLastError(_comm: ncclComm_t) -> *const c_char {
        log::last_error()
    }
}

export! {
    nccl, on_panic = ();

    /// Reads the variables of the log again.
    fn ncclResetDebugInit() {
        log::reset();
    }
}

export! {
    plain, on_panic = ();

    /// As `ncclResetDebugInit`: in no header, but exported.
    fn ncclResetDebugInitInternal() {
        log::reset();
    }
}
