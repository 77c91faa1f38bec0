//! The function table: every host function of `nccl.h`, found by name at run time.
//!
//! One list makes the struct, its symbol data and the code that fills it. It is read beside
//! `nccl.h`: a line has the field, the C names in the order in which they are tried, the version
//! codes of the first NCCL and RCCL release that have it (`-` for none), and the signature.
//!
//! Left out on purpose:
//! * the host functions of the device headers (`ncclDevComm*`, `ncclTeam*`, …), which serve
//!   kernels;
//! * `mscclLoadAlgo` and its kin: RCCL 2.16.5 changed the number of arguments under the same name;
//! * `ncclCommInitRankMulti` (RCCL 2.12 to 2.17 only) and `ncclCommDump` (C++).

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::mem::transmute;

use crate::config::{ncclCollConfig_t, ncclConfig_t, ncclEncryptionConfig_t, ncclSimInfo_t};
use crate::error::MissingSymbols;
use crate::types::{
    cudaStream_t, ncclComm_t, ncclCommMemStat_t, ncclDataType_t, ncclParamHandle_t, ncclRedOp_t,
    ncclResult_t, ncclScalarResidence_t, ncclUniqueId, ncclWaitSignalDesc_t, ncclWindow_t,
};
use crate::vendor::Flavour;

macro_rules! function_table {
    (
        required { $(
            $(#[doc = $required_doc:literal])*
            $required:ident = $required_name:literal,
            nccl $required_nccl:tt, rccl $required_rccl:tt:
            fn($($required_arg:ident: $required_type:ty),* $(,)?) $(-> $required_return:ty)?;
        )* }
        optional { $(
            $(#[doc = $optional_doc:literal])*
            $optional:ident = $($optional_name:literal)|+,
            nccl $optional_nccl:tt, rccl $optional_rccl:tt:
            fn($($optional_arg:ident: $optional_type:ty),* $(,)?) $(-> $optional_return:ty)?;
        )* }
    ) => {
        /// The functions of one library: plain pointers, valid for the life of the process.
        ///
        /// A required function is there; an optional one is `None` where the library lacks it.
        /// Whether a library *has* a function is asked here, never by its version.
        ///
        /// The fields are public so that a library of this ABI can write out the whole table of its
        /// own exports: a wrong signature or a forgotten function then doesn't compile.
        #[derive(Clone, Copy, Debug)]
        pub struct Table {
            $(
                $(#[doc = $required_doc])*
                #[doc(alias = $required_name)]
                pub $required:
                    unsafe extern "C" fn(
                        $($required_arg: $required_type),*
                    ) $(-> $required_return)?,
            )*
            $(
                $(#[doc = $optional_doc])*
                #[doc = concat!("\n\n", since_doc!($optional_nccl, $optional_rccl))]
                $(#[doc(alias = $optional_name)])+
                pub $optional: Option<
                    unsafe extern "C" fn(
                        $($optional_arg: $optional_type),*
                    ) $(-> $optional_return)?,
                >,
            )*
        }

        impl Table {
            /// Every function of the table, the required ones first.
            pub const SYMBOLS: &'static [Symbol] = &[
                $( Symbol {
                    field: stringify!($required),
                    names: &[c_name(concat!($required_name, "\0"))],
                    signature: stringify!(fn($($required_type),*) $(-> $required_return)?),
                    required: true,
                    nccl: since!($required_nccl),
                    rccl: since!($required_rccl),
                }, )*
                $( Symbol {
                    field: stringify!($optional),
                    names: &[$(c_name(concat!($optional_name, "\0"))),+],
                    signature: stringify!(fn($($optional_type),*) $(-> $optional_return)?),
                    required: false,
                    nccl: since!($optional_nccl),
                    rccl: since!($optional_rccl),
                }, )*
            ];

            /// Fills the table from `find`, which answers null for a name that the library lacks.
            ///
            /// `find` is asked for the names of [`SYMBOLS`](Self::SYMBOLS) in order, for an alias
            /// only if the names before it were null.
            ///
            /// # Safety
            ///
            /// Every pointer that `find` answers is null or a function of that name's signature in
            /// `nccl.h`, and can be called until the process ends.
            ///
            /// # Errors
            ///
            /// All required functions that are missing, in one error.
            pub unsafe fn fill(
                mut find: impl FnMut(&CStr) -> *const c_void,
            ) -> Result<Self, MissingSymbols> {
                let mut missing = Vec::new();
                let mut symbols = Self::SYMBOLS.iter();
                // The macro asks once per symbol, in the order of the list.
                let mut next = || {
                    let symbol = symbols.next()?;
                    let found = symbol.names.iter().map(|name| find(name)).find(|p| !p.is_null());
                    if found.is_none() && symbol.required {
                        missing.push(symbol);
                    }
                    found
                };
                $( let $required = next(); )*
                $( let $optional = next(); )*
                let ($(Some($required),)*) = ($($required,)*) else {
                    return Err(MissingSymbols(missing));
                };
                Ok(Self {
                    $(
                        // SAFETY: not null, and the caller promises a function of this signature.
                        $required: unsafe {
                            transmute::<
                                *const c_void,
                                unsafe extern "C" fn(
                                    $($required_type),*
                                ) $(-> $required_return)?,
                            >($required)
                        },
                    )*
                    $(
                        $optional: $optional.map(|found| {
                            // SAFETY: not null, and the caller promises a function of this
                            // signature.
                            unsafe {
                                transmute::<
                                    *const c_void,
                                    unsafe extern "C" fn(
                                    $($optional_type),*
                                ) $(-> $optional_return)?,
                                >(found)
                            }
                        }),
                    )*
                })
            }

            /// The optional functions that this library lacks.
            pub fn missing_optional(&self) -> Vec<&'static Symbol> {
                let present = [$(self.$optional.is_some()),*];
                Self::SYMBOLS
                    .iter()
                    .filter(|symbol| !symbol.required)
                    .zip(present)
                    .filter_map(|(symbol, present)| (!present).then_some(symbol))
                    .collect()
            }
        }
    };
}

/// The version code of a first release; `-` is never.
macro_rules! since {
    (-) => {
        None
    };
    ($code:literal) => {
        Some($code)
    };
}

/// The last line of an optional function's documentation.
macro_rules! since_doc {
    (-, $rccl:literal) => {
        concat!("RCCL only, since version code ", $rccl, ".")
    };
    ($nccl:literal, -) => {
        concat!("NCCL only, since version code ", $nccl, ".")
    };
    ($nccl:literal, $rccl:literal) => {
        concat!("Since version code ", $nccl, " (RCCL: ", $rccl, ").")
    };
}

function_table! {
    required {
        /// Tells the version code; [`version_text`](crate::version_text) reads it.
        get_version = "ncclGetVersion", nccl 2305, rccl 2507:
            fn(version: *mut c_int) -> ncclResult_t;
        /// Names a result, in static text; never null.
        get_error_string = "ncclGetErrorString", nccl 2305, rccl 2507:
            fn(result: ncclResult_t) -> *const c_char;
        /// Makes the identifier of a communicator. Each call leaves a listener thread in the
        /// process.
        get_unique_id = "ncclGetUniqueId", nccl 2305, rccl 2507:
            fn(unique_id: *mut ncclUniqueId) -> ncclResult_t;
        /// Joins a communicator; every rank calls it, with the same `comm_id`.
        comm_init_rank = "ncclCommInitRank", nccl 2305, rccl 2507:
            fn(
                comm: *mut ncclComm_t, nranks: c_int, comm_id: ncclUniqueId, rank: c_int,
            ) -> ncclResult_t;
        /// Destroys a communicator, finalizing it first if need be.
        comm_destroy = "ncclCommDestroy", nccl 2305, rccl 2507:
            fn(comm: ncclComm_t) -> ncclResult_t;
        /// Reduces `count` elements of every rank, the result to all.
        all_reduce = "ncclAllReduce", nccl 2305, rccl 2507:
            fn(
                sendbuff: *const c_void, recvbuff: *mut c_void, count: usize,
                datatype: ncclDataType_t, op: ncclRedOp_t, comm: ncclComm_t, stream: cudaStream_t,
            ) -> ncclResult_t;
        /// Gathers `sendcount` elements of every rank, all of them to all.
        all_gather = "ncclAllGather", nccl 2305, rccl 2507:
            fn(
                sendbuff: *const c_void, recvbuff: *mut c_void, sendcount: usize,
                datatype: ncclDataType_t, comm: ncclComm_t, stream: cudaStream_t,
            ) -> ncclResult_t;
        /// Reduces, then leaves `recvcount` elements on each rank.
        reduce_scatter = "ncclReduceScatter", nccl 2305, rccl 2507:
            fn(
                sendbuff: *const c_void, recvbuff: *mut c_void, recvcount: usize,
                datatype: ncclDataType_t, op: ncclRedOp_t, comm: ncclComm_t, stream: cudaStream_t,
            ) -> ncclResult_t;
        /// Copies `count` elements of the root to all.
        broadcast = "ncclBroadcast", nccl 2305, rccl 2507:
            fn(
                sendbuff: *const c_void, recvbuff: *mut c_void, count: usize,
                datatype: ncclDataType_t, root: c_int, comm: ncclComm_t, stream: cudaStream_t,
            ) -> ncclResult_t;
        /// Reduces `count` elements of every rank, the result to the root.
        reduce = "ncclReduce", nccl 2305, rccl 2507:
            fn(
                sendbuff: *const c_void, recvbuff: *mut c_void, count: usize,
                datatype: ncclDataType_t, op: ncclRedOp_t, root: c_int, comm: ncclComm_t,
                stream: cudaStream_t,
            ) -> ncclResult_t;
        /// Sends `count` elements to a peer, which receives as many.
        send = "ncclSend", nccl 2703, rccl 2706:
            fn(
                sendbuff: *const c_void, count: usize, datatype: ncclDataType_t, peer: c_int,
                comm: ncclComm_t, stream: cudaStream_t,
            ) -> ncclResult_t;
        /// Receives `count` elements from a peer, which sends as many.
        recv = "ncclRecv", nccl 2703, rccl 2706:
            fn(
                recvbuff: *mut c_void, count: usize, datatype: ncclDataType_t, peer: c_int,
                comm: ncclComm_t, stream: cudaStream_t,
            ) -> ncclResult_t;
        /// Opens a group on this thread; groups nest.
        group_start = "ncclGroupStart", nccl 2305, rccl 2507:
            fn() -> ncclResult_t;
        /// Closes a group on this thread; the outermost one launches what it holds.
        group_end = "ncclGroupEnd", nccl 2305, rccl 2507:
            fn() -> ncclResult_t;
    }
    optional {
        // Library and errors.
        /// The last warning, from one process-wide buffer that is never cleared: copy it at once,
        /// and take it as a hint.
        get_last_error = "ncclGetLastError", nccl 21304, rccl 21304:
            fn(comm: ncclComm_t) -> *const c_char;
        /// Reads the variables of the log again. Deprecated.
        reset_debug_init = "ncclResetDebugInit", nccl 22403, rccl 22403:
            fn();
        /// Encrypts the bootstrap network of communicators made later.
        set_encryption = "ncclSetEncryption", nccl 23203, rccl -:
            fn(config: *const ncclEncryptionConfig_t) -> ncclResult_t;

        // Communicators: life cycle.
        /// Makes one communicator per device of this process.
        comm_init_all = "ncclCommInitAll", nccl 2305, rccl 2507:
            fn(comm: *mut ncclComm_t, ndev: c_int, devlist: *const c_int) -> ncclResult_t;
        /// `ncclCommInitRank` with a configuration. Set `*comm` to null first: see
        /// [`quirks`](crate::quirks).
        comm_init_rank_config = "ncclCommInitRankConfig", nccl 21403, rccl 21505:
            fn(
                comm: *mut ncclComm_t, nranks: c_int, comm_id: ncclUniqueId, rank: c_int,
                config: *mut ncclConfig_t,
            ) -> ncclResult_t;
        /// `ncclCommInitRankConfig` with several identifiers, so that several ranks serve the
        /// bootstrap.
        comm_init_rank_scalable = "ncclCommInitRankScalable", nccl 22304, rccl 22304:
            fn(
                newcomm: *mut ncclComm_t, nranks: c_int, myrank: c_int, n_id: c_int,
                comm_ids: *mut ncclUniqueId, config: *mut ncclConfig_t,
            ) -> ncclResult_t;
        /// Flushes a communicator's operations, so that destroying it is local.
        comm_finalize = "ncclCommFinalize", nccl 21403, rccl 21505:
            fn(comm: ncclComm_t) -> ncclResult_t;
        /// Ends a communicator's operations and frees it.
        comm_abort = "ncclCommAbort", nccl 2402, rccl 2507:
            fn(comm: ncclComm_t) -> ncclResult_t;
        /// Ends a communicator's operations without freeing it.
        comm_revoke = "ncclCommRevoke", nccl 22807, rccl 23004:
            fn(comm: ncclComm_t, revoke_flags: c_int) -> ncclResult_t;
        /// Makes a communicator for each color; every rank of the parent calls it.
        comm_split = "ncclCommSplit", nccl 21801, rccl 21803:
            fn(
                comm: ncclComm_t, color: c_int, key: c_int, newcomm: *mut ncclComm_t,
                config: *mut ncclConfig_t,
            ) -> ncclResult_t;
        /// Makes a communicator without some ranks; only those that stay call it. It sorts the
        /// caller's list.
        comm_shrink = "ncclCommShrink", nccl 22703, rccl 22703:
            fn(
                comm: ncclComm_t, exclude_ranks_list: *mut c_int, exclude_ranks_count: c_int,
                newcomm: *mut ncclComm_t, config: *mut ncclConfig_t, shrink_flags: c_int,
            ) -> ncclResult_t;
        /// Makes the identifier with which new ranks join a growing communicator.
        comm_get_unique_id = "ncclCommGetUniqueId", nccl 22902, rccl 23004:
            fn(comm: ncclComm_t, unique_id: *mut ncclUniqueId) -> ncclResult_t;
        /// Makes a communicator with more ranks than its parent.
        comm_grow = "ncclCommGrow", nccl 22902, rccl 23004:
            fn(
                comm: ncclComm_t, n_ranks: c_int, unique_id: *const ncclUniqueId, rank: c_int,
                newcomm: *mut ncclComm_t, config: *mut ncclConfig_t,
            ) -> ncclResult_t;
        /// Gives resources back until `ncclCommResume`.
        comm_suspend = "ncclCommSuspend", nccl 22907, rccl 23004:
            fn(comm: ncclComm_t, flags: c_int) -> ncclResult_t;
        /// Takes the resources of a suspended communicator again.
        comm_resume = "ncclCommResume", nccl 22907, rccl 23004:
            fn(comm: ncclComm_t) -> ncclResult_t;

        // Communicators: queries.
        /// Tells the state of a communicator: success, in progress, or what broke it.
        comm_get_async_error = "ncclCommGetAsyncError", nccl 2402, rccl 2507:
            fn(comm: ncclComm_t, async_error: *mut ncclResult_t) -> ncclResult_t;
        /// Tells the number of ranks.
        comm_count = "ncclCommCount", nccl 2305, rccl 2507:
            fn(comm: ncclComm_t, count: *mut c_int) -> ncclResult_t;
        /// Tells the device.
        comm_cu_device = "ncclCommCuDevice", nccl 2305, rccl 2507:
            fn(comm: ncclComm_t, device: *mut c_int) -> ncclResult_t;
        /// Tells the rank.
        comm_user_rank = "ncclCommUserRank", nccl 2305, rccl 2507:
            fn(comm: ncclComm_t, rank: *mut c_int) -> ncclResult_t;
        /// Tells how much device memory a communicator uses.
        comm_mem_stats = "ncclCommMemStats", nccl 22907, rccl 23004:
            fn(comm: ncclComm_t, stat: ncclCommMemStat_t, value: *mut u64) -> ncclResult_t;

        // Collectives.
        /// Broadcasts in place.
        bcast = "ncclBcast", nccl 2305, rccl 2507:
            fn(
                buff: *mut c_void, count: usize, datatype: ncclDataType_t, root: c_int,
                comm: ncclComm_t, stream: cudaStream_t,
            ) -> ncclResult_t;
        /// Exchanges `count` elements between every two ranks; not in place.
        all_to_all = "ncclAlltoAll" | "ncclAllToAll", nccl 22803, rccl 2706:
            fn(
                sendbuff: *const c_void, recvbuff: *mut c_void, count: usize,
                datatype: ncclDataType_t, comm: ncclComm_t, stream: cudaStream_t,
            ) -> ncclResult_t;
        /// Exchanges unequal counts; counts and displacements in elements, one of each per rank.
        all_to_all_v = "ncclAlltoAllv" | "ncclAllToAllv", nccl -, rccl 2708:
            fn(
                sendbuff: *const c_void, sendcounts: *const usize, sdispls: *const usize,
                recvbuff: *mut c_void, recvcounts: *const usize, rdispls: *const usize,
                datatype: ncclDataType_t, comm: ncclComm_t, stream: cudaStream_t,
            ) -> ncclResult_t;
        /// Gathers `count` elements of every rank on the root.
        gather = "ncclGather", nccl 22803, rccl 2706:
            fn(
                sendbuff: *const c_void, recvbuff: *mut c_void, count: usize,
                datatype: ncclDataType_t, root: c_int, comm: ncclComm_t, stream: cudaStream_t,
            ) -> ncclResult_t;
        /// Scatters `count` elements to every rank from the root.
        scatter = "ncclScatter", nccl 22803, rccl 2706:
            fn(
                sendbuff: *const c_void, recvbuff: *mut c_void, count: usize,
                datatype: ncclDataType_t, root: c_int, comm: ncclComm_t, stream: cudaStream_t,
            ) -> ncclResult_t;
        /// `ncclAllReduce`, with `acc` added to the result.
        all_reduce_with_bias = "ncclAllReduceWithBias", nccl -, rccl 22606:
            fn(
                sendbuff: *const c_void, recvbuff: *mut c_void, count: usize,
                datatype: ncclDataType_t, op: ncclRedOp_t, comm: ncclComm_t, stream: cudaStream_t,
                acc: *const c_void,
            ) -> ncclResult_t;

        // Collectives with a configuration.
        /// `ncclAllReduce` with a configuration of its own.
        all_reduce_config = "ncclAllReduceConfig", nccl 23102, rccl 23102:
            fn(
                sendbuff: *const c_void, recvbuff: *mut c_void, count: usize,
                datatype: ncclDataType_t, op: ncclRedOp_t, comm: ncclComm_t, stream: cudaStream_t,
                config: *const ncclCollConfig_t,
            ) -> ncclResult_t;
        /// `ncclBroadcast` with a configuration of its own.
        broadcast_config = "ncclBroadcastConfig", nccl 23102, rccl 23102:
            fn(
                sendbuff: *const c_void, recvbuff: *mut c_void, count: usize,
                datatype: ncclDataType_t, root: c_int, comm: ncclComm_t, stream: cudaStream_t,
                config: *const ncclCollConfig_t,
            ) -> ncclResult_t;
        /// `ncclReduce` with a configuration of its own.
        reduce_config = "ncclReduceConfig", nccl 23102, rccl 23102:
            fn(
                sendbuff: *const c_void, recvbuff: *mut c_void, count: usize,
                datatype: ncclDataType_t, op: ncclRedOp_t, root: c_int, comm: ncclComm_t,
                stream: cudaStream_t, config: *const ncclCollConfig_t,
            ) -> ncclResult_t;
        /// `ncclAllGather` with a configuration of its own.
        all_gather_config = "ncclAllGatherConfig", nccl 23102, rccl 23102:
            fn(
                sendbuff: *const c_void, recvbuff: *mut c_void, sendcount: usize,
                datatype: ncclDataType_t, comm: ncclComm_t, stream: cudaStream_t,
                config: *const ncclCollConfig_t,
            ) -> ncclResult_t;
        /// `ncclReduceScatter` with a configuration of its own.
        reduce_scatter_config = "ncclReduceScatterConfig", nccl 23102, rccl 23102:
            fn(
                sendbuff: *const c_void, recvbuff: *mut c_void, recvcount: usize,
                datatype: ncclDataType_t, op: ncclRedOp_t, comm: ncclComm_t, stream: cudaStream_t,
                config: *const ncclCollConfig_t,
            ) -> ncclResult_t;
        /// `ncclAlltoAll` with a configuration of its own.
        all_to_all_config = "ncclAlltoAllConfig", nccl 23102, rccl 23102:
            fn(
                sendbuff: *const c_void, recvbuff: *mut c_void, count: usize,
                datatype: ncclDataType_t, comm: ncclComm_t, stream: cudaStream_t,
                config: *const ncclCollConfig_t,
            ) -> ncclResult_t;
        /// `ncclGather` with a configuration of its own.
        gather_config = "ncclGatherConfig", nccl 23102, rccl 23102:
            fn(
                sendbuff: *const c_void, recvbuff: *mut c_void, count: usize,
                datatype: ncclDataType_t, root: c_int, comm: ncclComm_t, stream: cudaStream_t,
                config: *const ncclCollConfig_t,
            ) -> ncclResult_t;
        /// `ncclScatter` with a configuration of its own.
        scatter_config = "ncclScatterConfig", nccl 23102, rccl 23102:
            fn(
                sendbuff: *const c_void, recvbuff: *mut c_void, count: usize,
                datatype: ncclDataType_t, root: c_int, comm: ncclComm_t, stream: cudaStream_t,
                config: *const ncclCollConfig_t,
            ) -> ncclResult_t;

        // One-sided operations.
        /// Writes into a peer's window, then signals it.
        put_signal = "ncclPutSignal", nccl 22902, rccl 23004:
            fn(
                localbuff: *const c_void, count: usize, datatype: ncclDataType_t, peer: c_int,
                peer_win: ncclWindow_t, peer_win_offset: usize, sig_idx: c_int, ctx: c_int,
                flags: c_uint, comm: ncclComm_t, stream: cudaStream_t,
            ) -> ncclResult_t;
        /// Signals a peer.
        signal = "ncclSignal", nccl 22902, rccl 23004:
            fn(
                peer: c_int, sig_idx: c_int, ctx: c_int, flags: c_uint, comm: ncclComm_t,
                stream: cudaStream_t,
            ) -> ncclResult_t;
        /// Waits for signals of peers.
        wait_signal = "ncclWaitSignal", nccl 22902, rccl 23004:
            fn(
                n_desc: c_int, signal_descs: *mut ncclWaitSignalDesc_t, comm: ncclComm_t,
                stream: cudaStream_t,
            ) -> ncclResult_t;

        // Groups and operators.
        /// Closes a group without launching, and estimates its time.
        group_simulate_end = "ncclGroupSimulateEnd", nccl 22203, rccl 22203:
            fn(sim_info: *mut ncclSimInfo_t) -> ncclResult_t;
        /// Makes an operator that multiplies each input by a scalar, then sums.
        red_op_create_pre_mul_sum = "ncclRedOpCreatePreMulSum", nccl 21104, rccl 21104:
            fn(
                op: *mut ncclRedOp_t, scalar: *mut c_void, datatype: ncclDataType_t,
                residence: ncclScalarResidence_t, comm: ncclComm_t,
            ) -> ncclResult_t;
        /// Destroys an operator; it may be in use by calls that have returned.
        red_op_destroy = "ncclRedOpDestroy", nccl 21104, rccl 21104:
            fn(op: ncclRedOp_t, comm: ncclComm_t) -> ncclResult_t;

        // Memory, registration, windows.
        /// Allocates device memory that other ranks may map.
        mem_alloc = "ncclMemAlloc", nccl 21901, rccl 22005:
            fn(ptr: *mut *mut c_void, size: usize) -> ncclResult_t;
        /// Frees memory of `ncclMemAlloc`.
        mem_free = "ncclMemFree", nccl 21901, rccl 22005:
            fn(ptr: *mut c_void) -> ncclResult_t;
        /// Registers a buffer with a communicator; local.
        comm_register = "ncclCommRegister", nccl 21901, rccl 22005:
            fn(
                comm: ncclComm_t, buff: *mut c_void, size: usize, handle: *mut *mut c_void,
            ) -> ncclResult_t;
        /// Undoes `ncclCommRegister`.
        comm_deregister = "ncclCommDeregister", nccl 21901, rccl 22005:
            fn(comm: ncclComm_t, handle: *mut c_void) -> ncclResult_t;
        /// Registers a buffer of every rank; collective. Succeeds with a null window where
        /// unsupported.
        comm_window_register = "ncclCommWindowRegister", nccl 22703, rccl 22703:
            fn(
                comm: ncclComm_t, buff: *mut c_void, size: usize, win: *mut ncclWindow_t,
                win_flags: c_int,
            ) -> ncclResult_t;
        /// Undoes `ncclCommWindowRegister`.
        comm_window_deregister = "ncclCommWindowDeregister", nccl 22703, rccl 22703:
            fn(comm: ncclComm_t, win: ncclWindow_t) -> ncclResult_t;
        /// Tells the address that a window was registered with.
        win_get_user_ptr = "ncclWinGetUserPtr", nccl 22902, rccl 23004:
            fn(comm: ncclComm_t, win: ncclWindow_t, out_user_ptr: *mut *mut c_void) -> ncclResult_t;

        // Parameters.
        /// Finds a parameter by its key.
        param_bind = "ncclParamBind", nccl 23004, rccl -:
            fn(out: *mut ncclParamHandle_t, key: *const c_char) -> ncclResult_t;
        /// Reads an `int8_t` parameter.
        param_get_i8 = "ncclParamGetI8", nccl 23004, rccl -:
            fn(h: ncclParamHandle_t, out: *mut i8) -> ncclResult_t;
        /// Reads an `int16_t` parameter.
        param_get_i16 = "ncclParamGetI16", nccl 23004, rccl -:
            fn(h: ncclParamHandle_t, out: *mut i16) -> ncclResult_t;
        /// Reads an `int32_t` parameter.
        param_get_i32 = "ncclParamGetI32", nccl 23004, rccl -:
            fn(h: ncclParamHandle_t, out: *mut i32) -> ncclResult_t;
        /// Reads an `int64_t` parameter.
        param_get_i64 = "ncclParamGetI64", nccl 23004, rccl -:
            fn(h: ncclParamHandle_t, out: *mut i64) -> ncclResult_t;
        /// Reads a `uint8_t` parameter.
        param_get_u8 = "ncclParamGetU8", nccl 23004, rccl -:
            fn(h: ncclParamHandle_t, out: *mut u8) -> ncclResult_t;
        /// Reads a `uint16_t` parameter.
        param_get_u16 = "ncclParamGetU16", nccl 23004, rccl -:
            fn(h: ncclParamHandle_t, out: *mut u16) -> ncclResult_t;
        /// Reads a `uint32_t` parameter.
        param_get_u32 = "ncclParamGetU32", nccl 23004, rccl -:
            fn(h: ncclParamHandle_t, out: *mut u32) -> ncclResult_t;
        /// Reads a `uint64_t` parameter.
        param_get_u64 = "ncclParamGetU64", nccl 23004, rccl -:
            fn(h: ncclParamHandle_t, out: *mut u64) -> ncclResult_t;
        /// Reads a text parameter.
        param_get_str = "ncclParamGetStr", nccl 23004, rccl -:
            fn(h: ncclParamHandle_t, out: *mut *const c_char) -> ncclResult_t;
        /// Reads a parameter of any type into `max_len` bytes.
        param_get = "ncclParamGet", nccl 23004, rccl -:
            fn(
                h: ncclParamHandle_t, out: *mut c_void, max_len: c_int, len: *mut c_int,
            ) -> ncclResult_t;
        /// Reads a parameter as text, by its key.
        param_get_parameter = "ncclParamGetParameter", nccl 23004, rccl -:
            fn(
                key: *const c_char, value: *mut *const c_char, value_len: *mut c_int,
            ) -> ncclResult_t;
        /// Lists the keys of all parameters.
        param_get_all_parameter_keys = "ncclParamGetAllParameterKeys", nccl 23004, rccl -:
            fn(table: *mut *mut *const c_char, table_len: *mut c_int) -> ncclResult_t;
        /// Logs all parameters.
        param_dump_all = "ncclParamDumpAll", nccl 23004, rccl -:
            fn();
    }
}

/// One function of the [`Table`]: how it is called in C, and which releases have it.
#[derive(Clone, Copy, Debug)]
pub struct Symbol {
    field: &'static str,
    names: &'static [&'static CStr],
    signature: &'static str,
    required: bool,
    nccl: Option<c_int>,
    rccl: Option<c_int>,
}

impl Symbol {
    /// The symbol behind a field of [`Table`], by the field's name.
    pub fn of_field(field: &str) -> Option<&'static Self> {
        Table::SYMBOLS.iter().find(|symbol| symbol.field == field)
    }

    /// The field of [`Table`].
    pub const fn field(&self) -> &'static str {
        self.field
    }

    /// The C name; the one tried first, if there are several.
    pub fn name(&self) -> &'static str {
        // The names are ASCII literals of the list.
        self.names[0].to_str().unwrap_or(self.field)
    }

    /// All C names, in the order in which they are tried.
    pub const fn names(&self) -> &'static [&'static CStr] {
        self.names
    }

    /// The types that the table gives it, as Rust writes them: `fn(*mut c_int) -> ncclResult_t`. For
    /// tests against a C header; spaces are the compiler's choice.
    pub const fn signature(&self) -> &'static str {
        self.signature
    }

    /// Whether a library without it is refused.
    pub const fn is_required(&self) -> bool {
        self.required
    }

    /// The version code of the vendor's first release that has it; `None` if no known release does.
    pub const fn since(&self, flavour: Flavour) -> Option<c_int> {
        match flavour {
            Flavour::Nccl => self.nccl,
            Flavour::Rccl => self.rccl,
        }
    }
}

/// A C name from a literal of the list.
const fn c_name(name: &'static str) -> &'static CStr {
    match CStr::from_bytes_with_nul(name.as_bytes()) {
        Ok(name) => name,
        Err(_) => panic!("a name of the list holds a NUL byte"),
    }
}

const _: () = {
    const fn all_threads<T: Copy + Send + Sync + 'static>() {}
    all_threads::<Table>();
};

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::ptr;

    use super::*;

    /// A function to stand for any other; the tests that use it never call it.
    extern "C" fn stub() {}

    fn fill(has: impl Fn(&str) -> bool) -> Result<Table, MissingSymbols> {
        let find = |name: &CStr| {
            if has(name.to_str().expect("names are ASCII")) {
                stub as extern "C" fn() as *const c_void
            } else {
                ptr::null()
            }
        };
        // SAFETY: the pointers have other signatures, but no test calls them.
        unsafe { Table::fill(find) }
    }

    fn absent(table: &Table) -> Vec<&'static str> {
        table.missing_optional().iter().map(|symbol| symbol.name()).collect()
    }

    #[test]
    fn a_library_with_everything_lacks_nothing() {
        let table = fill(|_| true).expect("nothing is missing");
        assert!(absent(&table).is_empty());
    }

    #[test]
    fn required_functions_are_enough() {
        let required: HashSet<_> =
            Table::SYMBOLS.iter().filter(|s| s.is_required()).map(Symbol::name).collect();
        assert_eq!(required.len(), 14);
        let table = fill(|name| required.contains(name)).expect("the required ones are there");
        assert_eq!(absent(&table).len(), Table::SYMBOLS.len() - 14);
    }

    #[test]
    fn all_missing_required_functions_come_in_one_error() {
        let error = fill(|name| !matches!(name, "ncclSend" | "ncclRecv" | "ncclCommSplit"))
            .expect_err("two required ones are missing");
        let names: Vec<_> = error.0.iter().map(|symbol| symbol.name()).collect();
        assert_eq!(names, ["ncclSend", "ncclRecv"]);
    }

    #[test]
    fn an_alias_fills_the_slot() {
        let table = fill(|name| name != "ncclAlltoAll").expect("an optional one");
        assert!(table.all_to_all.is_some(), "ncclAllToAll stands in");
        let table =
            fill(|name| !name.eq_ignore_ascii_case("ncclAllToAll")).expect("an optional one");
        assert!(table.all_to_all.is_none());
        assert_eq!(absent(&table), ["ncclAlltoAll"]);
    }

    #[test]
    fn an_alias_is_asked_for_only_when_needed() {
        let mut asked = Vec::new();
        // SAFETY: as in `fill`.
        let table = unsafe {
            Table::fill(|name| {
                asked.push(name.to_owned());
                stub as extern "C" fn() as *const c_void
            })
        };
        assert!(table.is_ok());
        assert!(asked.contains(&c"ncclAlltoAll".to_owned()));
        assert!(!asked.contains(&c"ncclAllToAll".to_owned()));
    }

    #[test]
    fn each_slot_is_filled_with_its_own_function() {
        // Each name gets its own pointer, so that a slip in the order of the list is seen.
        let mut pointers = Vec::new();
        // SAFETY: the pointers are never called.
        let table = unsafe {
            Table::fill(|name| {
                pointers.push(name.to_owned());
                ptr::without_provenance(pointers.len())
            })
        }
        .expect("nothing is missing");
        let asked = |function: usize| pointers[function - 1].to_str().expect("names are ASCII");
        assert_eq!(asked(table.get_version as usize), "ncclGetVersion");
        assert_eq!(asked(table.group_end as usize), "ncclGroupEnd");
        assert_eq!(table.comm_split.map(|f| asked(f as usize)), Some("ncclCommSplit"));
        assert_eq!(table.param_dump_all.map(|f| asked(f as usize)), Some("ncclParamDumpAll"));
    }

    #[test]
    fn symbols_are_found_by_field() {
        let symbol = Symbol::of_field("all_to_all").expect("a field");
        assert_eq!(symbol.name(), "ncclAlltoAll");
        assert_eq!(symbol.since(Flavour::Nccl), Some(22803));
        assert_eq!(symbol.since(Flavour::Rccl), Some(2706));
        assert!(Symbol::of_field("no_such_field").is_none());
    }

    #[test]
    fn no_name_stands_twice() {
        let mut seen = HashSet::new();
        for name in Table::SYMBOLS.iter().flat_map(|symbol| symbol.names()) {
            assert!(seen.insert(name), "{name:?}");
        }
    }
}
