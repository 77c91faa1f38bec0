//! NCCL's functions, and RCCL's own.
//!
//! Semantics, codes and texts are NCCL's, also where they are strange; what the mock sees and NCCL
//! does not is an error that says so in `ncclGetLastError`. A file here has the functions of one
//! subject; `comm`, `group` and `birth` have what they share.

mod birth;
mod collectives;
mod comm;
mod config;
mod group;
mod identity;
mod init;
mod kernels;
mod library;
mod lifecycle;
mod log;
mod memory;
mod operators;
mod params;
mod refusal;

pub use collectives::*;
pub use init::*;
pub use kernels::*;
pub use library::*;
pub use lifecycle::*;
pub use memory::*;
pub use operators::*;
pub use params::*;

use collectives_nccl_abi::Table;

use self::refusal::Refusal;
use crate::runtime;

/// The functions of this library as a table, whose types they so have.
pub static TABLE: Table = Table {
    get_version: ncclGetVersion,
    get_error_string: ncclGetErrorString,
    get_unique_id: ncclGetUniqueId,
    comm_init_rank: ncclCommInitRank,
    comm_destroy: ncclCommDestroy,
    all_reduce: ncclAllReduce,
    all_gather: ncclAllGather,
    reduce_scatter: ncclReduceScatter,
    broadcast: ncclBroadcast,
    reduce: ncclReduce,
    send: ncclSend,
    recv: ncclRecv,
    group_start: ncclGroupStart,
    group_end: ncclGroupEnd,
    get_last_error: Some(ncclGetLastError),
    reset_debug_init: Some(ncclResetDebugInit),
    set_encryption: Some(ncclSetEncryption),
    comm_init_all: Some(ncclCommInitAll),
    comm_init_rank_config: Some(ncclCommInitRankConfig),
    comm_init_rank_scalable: Some(ncclCommInitRankScalable),
    comm_finalize: Some(ncclCommFinalize),
    comm_abort: Some(ncclCommAbort),
    comm_revoke: Some(ncclCommRevoke),
    comm_split: Some(ncclCommSplit),
    comm_shrink: Some(ncclCommShrink),
    comm_get_unique_id: Some(ncclCommGetUniqueId),
    comm_grow: Some(ncclCommGrow),
    comm_suspend: Some(ncclCommSuspend),
    comm_resume: Some(ncclCommResume),
    comm_get_async_error: Some(ncclCommGetAsyncError),
    comm_count: Some(ncclCommCount),
    comm_cu_device: Some(ncclCommCuDevice),
    comm_user_rank: Some(ncclCommUserRank),
    comm_mem_stats: Some(ncclCommMemStats),
    bcast: Some(ncclBcast),
    all_to_all: Some(ncclAlltoAll),
    all_to_all_v: Some(ncclAlltoAllv),
    gather: Some(ncclGather),
    scatter: Some(ncclScatter),
    all_reduce_with_bias: Some(ncclAllReduceWithBias),
    all_reduce_config: Some(ncclAllReduceConfig),
    broadcast_config: Some(ncclBroadcastConfig),
    reduce_config: Some(ncclReduceConfig),
    all_gather_config: Some(ncclAllGatherConfig),
    reduce_scatter_config: Some(ncclReduceScatterConfig),
    all_to_all_config: Some(ncclAlltoAllConfig),
    gather_config: Some(ncclGatherConfig),
    scatter_config: Some(ncclScatterConfig),
    put_signal: Some(ncclPutSignal),
    signal: Some(ncclSignal),
    wait_signal: Some(ncclWaitSignal),
    group_simulate_end: Some(ncclGroupSimulateEnd),
    red_op_create_pre_mul_sum: Some(ncclRedOpCreatePreMulSum),
    red_op_destroy: Some(ncclRedOpDestroy),
    mem_alloc: Some(ncclMemAlloc),
    mem_free: Some(ncclMemFree),
    comm_register: Some(ncclCommRegister),
    comm_deregister: Some(ncclCommDeregister),
    comm_window_register: Some(ncclCommWindowRegister),
    comm_window_deregister: Some(ncclCommWindowDeregister),
    win_get_user_ptr: Some(ncclWinGetUserPtr),
    param_bind: Some(ncclParamBind),
    param_get_i8: Some(ncclParamGetI8),
    param_get_i16: Some(ncclParamGetI16),
    param_get_i32: Some(ncclParamGetI32),
    param_get_i64: Some(ncclParamGetI64),
    param_get_u8: Some(ncclParamGetU8),
    param_get_u16: Some(ncclParamGetU16),
    param_get_u32: Some(ncclParamGetU32),
    param_get_u64: Some(ncclParamGetU64),
    param_get_str: Some(ncclParamGetStr),
    param_get: Some(ncclParamGet),
    param_get_parameter: Some(ncclParamGetParameter),
    param_get_all_parameter_keys: Some(ncclParamGetAllParameterKeys),
    param_dump_all: Some(ncclParamDumpAll),
};

/// The refusal of a function that cannot work here, which is said once on standard error.
fn unsupported(function: &'static str) -> Refusal {
    runtime::say_once(function, &format!("{function} is not supported on a CPU"));
    Refusal::usage(format!("{function} : not supported by the mock"))
}

/// Keeps what went wrong on a stream, for `ncclGetLastError`: the device layer meets it first.
pub(crate) fn note_failure(error: &collectives_core::Error) {
    log::warn(&error.to_string());
}
