//! What a library can do, from the functions that it has and its version.
//!
//! A function is asked for by symbol; the version is asked only for what shows in no symbol: data
//! types, a built-in operator, graphs.

use std::ffi::c_int;

use collectives_core::{Capabilities, F8Format, Support, Version};
use collectives_nccl_abi::{Flavour, Symbol, Table, quirks};

/// What a library of `flavour` and version `code` can do, whose functions are those of `table`.
///
/// What fp8 means to RCCL's devices is theirs to tell, so it is unknown here.
pub fn capabilities_of(flavour: Flavour, code: c_int, table: &Table) -> Capabilities {
    let from = Source { flavour, code };
    let split = from.symbol("comm_split", table.comm_split.is_some());
    let abort = from.symbol("comm_abort", table.comm_abort.is_some());
    let config = from.symbol("comm_init_rank_config", table.comm_init_rank_config.is_some());
    let polls = from.symbol("comm_get_async_error", table.comm_get_async_error.is_some());
    let polled = [split, config, polls, abort].into_iter().all(Support::is_available)
        && !quirks::nonblocking_init_blocks(flavour, code);
    let fp8 = from.since(Since { nccl: 22_403, rccl: 22_005 });
    Capabilities {
        all_gather: Support::Native,
        all_reduce: Support::Native,
        all_to_all: emulated_without(table.all_to_all.is_some()),
        broadcast: Support::Native,
        gather: emulated_without(table.gather.is_some()),
        recv: Support::Native,
        reduce: Support::Native,
        reduce_scatter: Support::Native,
        scatter: emulated_without(table.scatter.is_some()),
        send: Support::Native,
        reduce_avg: from.since(Since { nccl: 21_003, rccl: 21_003 }),
        reduce_pre_mul_sum: from
            .symbol("red_op_create_pre_mul_sum", table.red_op_create_pre_mul_sum.is_some())
            .and(from.symbol("red_op_destroy", table.red_op_destroy.is_some())),
        reduce_f8: fp8,
        dtype_bf16: from.since(Since { nccl: 21_003, rccl: 2_507 }),
        dtype_f8e4m3: fp8,
        dtype_f8e5m2: fp8,
        f8_format: match flavour {
            Flavour::Nccl => F8Format::Ocp,
            Flavour::Rccl => F8Format::Unknown,
        },
        split,
        shrink: from.symbol("comm_shrink", table.comm_shrink.is_some()),
        grow: from
            .symbol("comm_grow", table.comm_grow.is_some())
            .and(from.symbol("comm_get_unique_id", table.comm_get_unique_id.is_some())),
        revoke: from.symbol("comm_revoke", table.comm_revoke.is_some()),
        finalize: from.symbol("comm_finalize", table.comm_finalize.is_some()),
        abort,
        // Else a thread is left to it that nobody can call back.
        join_deadline: if polled { Support::Native } else { Support::Emulated },
        join_all: Support::Native,
        join_many_ids: from
            .symbol("comm_init_rank_scalable", table.comm_init_rank_scalable.is_some()),
        config,
        group_simulate: from.symbol("group_simulate_end", table.group_simulate_end.is_some()),
        parameters: from
            .symbol("param_get_all_parameter_keys", table.param_get_all_parameter_keys.is_some())
            .and(from.symbol("param_get_parameter", table.param_get_parameter.is_some())),
        suspend: from
            .symbol("comm_suspend", table.comm_suspend.is_some())
            .and(from.symbol("comm_resume", table.comm_resume.is_some())),
        memory_use: from.symbol("comm_mem_stats", table.comm_mem_stats.is_some()),
        mem_alloc: from
            .symbol("mem_alloc", table.mem_alloc.is_some())
            .and(from.symbol("mem_free", table.mem_free.is_some())),
        register: from
            .symbol("comm_register", table.comm_register.is_some())
            .and(from.symbol("comm_deregister", table.comm_deregister.is_some())),
        window_register: from
            .symbol("comm_window_register", table.comm_window_register.is_some())
            .and(from.symbol("comm_window_deregister", table.comm_window_deregister.is_some())),
        window_ptr: from.symbol("win_get_user_ptr", table.win_get_user_ptr.is_some()),
        put_signal: from
            .symbol("put_signal", table.put_signal.is_some())
            .and(from.symbol("signal", table.signal.is_some()))
            .and(from.symbol("wait_signal", table.wait_signal.is_some())),
        // The eight came together.
        call_config: from.symbol("all_reduce_config", table.all_reduce_config.is_some()),
        encryption: from.symbol("set_encryption", table.set_encryption.is_some()),
        capture: from.since(Since { nccl: 20_906, rccl: 20_906 }),
    }
}

/// The library that is asked.
struct Source {
    flavour: Flavour,
    code: c_int,
}

impl Source {
    /// By symbol: the field of [`Table`], and whether the library has it.
    fn symbol(&self, field: &str, present: bool) -> Support {
        if present {
            return Support::Native;
        }
        let since = Symbol::of_field(field).and_then(|symbol| symbol.since(self.flavour));
        Support::Unsupported { since: since.map(version) }
    }

    /// By version.
    fn since(&self, since: Since) -> Support {
        let first = match self.flavour {
            Flavour::Nccl => since.nccl,
            Flavour::Rccl => since.rccl,
        };
        if self.code >= first {
            return Support::Native;
        }
        Support::Unsupported { since: Some(version(first)) }
    }
}

/// Version codes of the first releases that have something.
struct Since {
    nccl: c_int,
    rccl: c_int,
}

/// Operations that are made of sends and receives where the library lacks them.
const fn emulated_without(present: bool) -> Support {
    if present { Support::Native } else { Support::Emulated }
}

/// A version code; what is no code is version 0.
pub(crate) fn version(code: c_int) -> Version {
    Version::from_code(u32::try_from(code).unwrap_or_default())
}

trait And {
    /// Both, or the first reason against it.
    fn and(self, other: Self) -> Self;
}

impl And for Support {
    fn and(self, other: Self) -> Self {
        match self {
            Self::Native | Self::Emulated => other,
            Self::Unsupported { .. } => self,
        }
    }
}
