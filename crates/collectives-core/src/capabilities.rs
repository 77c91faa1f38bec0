//! What a backend can do.

use std::fmt;

use serde::Serialize;

use crate::{Error, ErrorKind, Version};

/// What a loaded library can do, decided once when it is loaded.
///
/// # Naming
/// An operation's field is its method's name (`all_to_all`). A variant adds what it is
/// (`reduce_avg`). A type is `dtype_<name>`. A limit is `max_<thing>`. What is no question of having
/// it is a `<thing>_format`.
///
/// The checks in [`crate::shape`] refuse what is [`Support::Unsupported`] before any library is
/// called.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub struct Capabilities {
    /// [`Collectives::all_gather`](crate::Collectives::all_gather).
    pub all_gather: Support,
    /// [`Collectives::all_reduce`](crate::Collectives::all_reduce).
    pub all_reduce: Support,
    /// [`Collectives::all_to_all`](crate::Collectives::all_to_all).
    pub all_to_all: Support,
    /// [`Collectives::broadcast`](crate::Collectives::broadcast).
    pub broadcast: Support,
    /// [`Collectives::gather`](crate::Collectives::gather).
    pub gather: Support,
    /// [`Collectives::recv`](crate::Collectives::recv).
    pub recv: Support,
    /// [`Collectives::reduce`](crate::Collectives::reduce).
    pub reduce: Support,
    /// [`Collectives::reduce_scatter`](crate::Collectives::reduce_scatter).
    pub reduce_scatter: Support,
    /// [`Collectives::scatter`](crate::Collectives::scatter).
    pub scatter: Support,
    /// [`Collectives::send`](crate::Collectives::send).
    pub send: Support,
    /// [`ReduceOp::Avg`](crate::ReduceOp::Avg).
    pub reduce_avg: Support,
    /// [`Collectives::create_pre_mul_sum`](crate::Collectives::create_pre_mul_sum).
    pub reduce_pre_mul_sum: Support,
    /// Reductions of [`DType::F8E4M3`](crate::DType::F8E4M3) and
    /// [`DType::F8E5M2`](crate::DType::F8E5M2). NCCL also needs a GPU of compute capability 9.0.
    pub reduce_f8: Support,
    /// [`DType::Bf16`](crate::DType::Bf16).
    pub dtype_bf16: Support,
    /// [`DType::F8E4M3`](crate::DType::F8E4M3); what its bits mean is `f8_format`.
    pub dtype_f8e4m3: Support,
    /// [`DType::F8E5M2`](crate::DType::F8E5M2); what its bits mean is `f8_format`.
    pub dtype_f8e5m2: Support,
    /// What reductions take the bits of an fp8 number for.
    pub f8_format: F8Format,
    /// [`Split::split`](crate::Split::split).
    pub split: Support,
    /// [`Split::shrink`](crate::Split::shrink).
    pub shrink: Support,
    /// [`Split::grow`](crate::Split::grow), [`Backend::join_grown`](crate::Backend::join_grown) and
    /// [`Collectives::grow_id`](crate::Collectives::grow_id).
    pub grow: Support,
    /// [`Collectives::revoke`](crate::Collectives::revoke).
    pub revoke: Support,
    /// [`Collectives::finalize`](crate::Collectives::finalize) flushes before it destroys.
    pub finalize: Support,
    /// [`Collectives::abort`](crate::Collectives::abort).
    pub abort: Support,
    /// A deadline on [`Backend::join`](crate::Backend::join). Emulated where the attempt cannot be
    /// given up: the caller gets its error in time, and a thread waits on.
    pub join_deadline: Support,
    /// [`Backend::join_all`](crate::Backend::join_all).
    pub join_all: Support,
    /// [`JoinConfig::with_more_ids`](crate::JoinConfig::with_more_ids).
    pub join_many_ids: Support,
    /// [`CommConfig`](crate::CommConfig). Its fields are younger than it, each by itself.
    pub config: Support,
    /// [`Collectives::group_simulate`](crate::Collectives::group_simulate).
    pub group_simulate: Support,
    /// [`Backend::parameters`](crate::Backend::parameters).
    pub parameters: Support,
    /// [`Collectives::suspend`](crate::Collectives::suspend) and
    /// [`Collectives::resume`](crate::Collectives::resume).
    pub suspend: Support,
    /// [`Collectives::memory_use`](crate::Collectives::memory_use).
    pub memory_use: Support,
    /// [`Collectives::mem_alloc`](crate::Collectives::mem_alloc).
    pub mem_alloc: Support,
    /// [`Collectives::register`](crate::Collectives::register).
    pub register: Support,
    /// [`Collectives::window_register`](crate::Collectives::window_register). A system may be unable
    /// all the same, which only an attempt to register shows.
    pub window_register: Support,
    /// [`Collectives::window_ptr`](crate::Collectives::window_ptr).
    pub window_ptr: Support,
    /// [`Collectives::put_signal`](crate::Collectives::put_signal),
    /// [`Collectives::signal`](crate::Collectives::signal) and
    /// [`Collectives::wait_signal`](crate::Collectives::wait_signal). A system may be unable all the
    /// same, which the first call shows.
    pub put_signal: Support,
    /// [`CallConfig`](crate::CallConfig), for collectives.
    pub call_config: Support,
    /// [`Backend::set_encryption`](crate::Backend::set_encryption).
    pub encryption: Support,
    /// Collectives on a stream that is being captured into a graph.
    pub capture: Support,
}

impl Capabilities {
    /// Everything native: what the reference semantics of this API offer.
    pub const FULL: Self = Self {
        all_gather: Support::Native,
        all_reduce: Support::Native,
        all_to_all: Support::Native,
        broadcast: Support::Native,
        gather: Support::Native,
        recv: Support::Native,
        reduce: Support::Native,
        reduce_scatter: Support::Native,
        scatter: Support::Native,
        send: Support::Native,
        reduce_avg: Support::Native,
        reduce_pre_mul_sum: Support::Native,
        reduce_f8: Support::Native,
        dtype_bf16: Support::Native,
        dtype_f8e4m3: Support::Native,
        dtype_f8e5m2: Support::Native,
        f8_format: F8Format::Ocp,
        split: Support::Native,
        shrink: Support::Native,
        grow: Support::Native,
        revoke: Support::Native,
        finalize: Support::Native,
        abort: Support::Native,
        join_deadline: Support::Native,
        join_all: Support::Native,
        join_many_ids: Support::Native,
        config: Support::Native,
        group_simulate: Support::Native,
        parameters: Support::Native,
        suspend: Support::Native,
        memory_use: Support::Native,
        mem_alloc: Support::Native,
        register: Support::Native,
        window_register: Support::Native,
        window_ptr: Support::Native,
        put_signal: Support::Native,
        call_config: Support::Native,
        encryption: Support::Native,
        capture: Support::Native,
    };

    /// Every capability that a library has or lacks, with its field name, in the order of the fields.
    pub fn entries(&self) -> [(&'static str, Support); 38] {
        // Destructured in full, so that a new field cannot be forgotten here.
        let Self {
            all_gather,
            all_reduce,
            all_to_all,
            broadcast,
            gather,
            recv,
            reduce,
            reduce_scatter,
            scatter,
            send,
            reduce_avg,
            reduce_pre_mul_sum,
            reduce_f8,
            dtype_bf16,
            dtype_f8e4m3,
            dtype_f8e5m2,
            f8_format: _,
            split,
            shrink,
            grow,
            revoke,
            finalize,
            abort,
            join_deadline,
            join_all,
            join_many_ids,
            config,
            group_simulate,
            parameters,
            suspend,
            memory_use,
            mem_alloc,
            register,
            window_register,
            window_ptr,
            put_signal,
            call_config,
            encryption,
            capture,
        } = *self;
        [
            ("all_gather", all_gather),
            ("all_reduce", all_reduce),
            ("all_to_all", all_to_all),
            ("broadcast", broadcast),
            ("gather", gather),
            ("recv", recv),
            ("reduce", reduce),
            ("reduce_scatter", reduce_scatter),
            ("scatter", scatter),
            ("send", send),
            ("reduce_avg", reduce_avg),
            ("reduce_pre_mul_sum", reduce_pre_mul_sum),
            ("reduce_f8", reduce_f8),
            ("dtype_bf16", dtype_bf16),
            ("dtype_f8e4m3", dtype_f8e4m3),
            ("dtype_f8e5m2", dtype_f8e5m2),
            ("split", split),
            ("shrink", shrink),
            ("grow", grow),
            ("revoke", revoke),
            ("finalize", finalize),
            ("abort", abort),
            ("join_deadline", join_deadline),
            ("join_all", join_all),
            ("join_many_ids", join_many_ids),
            ("config", config),
            ("group_simulate", group_simulate),
            ("parameters", parameters),
            ("suspend", suspend),
            ("memory_use", memory_use),
            ("mem_alloc", mem_alloc),
            ("register", register),
            ("window_register", window_register),
            ("window_ptr", window_ptr),
            ("put_signal", put_signal),
            ("call_config", call_config),
            ("encryption", encryption),
            ("capture", capture),
        ]
    }
}

/// What the bits of an fp8 number mean, [`DType::F8E4M3`](crate::DType::F8E4M3) and
/// [`DType::F8E5M2`](crate::DType::F8E5M2) alike.
///
/// The Rust types [`F8E4M3`](crate::F8E4M3) and [`F8E5M2`](crate::F8E5M2) are OCP's. Moving fp8 numbers
/// is the same in either format; reducing them is not, and nothing converts: on a device with
/// [`Fnuz`](Self::Fnuz) the sum of two OCP numbers, read as OCP, is right only by luck.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum F8Format {
    /// `e4m3fnuz` and `e5m2fnuz`: the exponent's bias is larger by one, so the same bits mean half
    /// the value; no infinity and no negative zero, whose bits are the one NaN. AMD's gfx940 to
    /// gfx942, the MI300 series.
    Fnuz,
    /// `e4m3fn` and `e5m2` of the Open Compute Project: NVIDIA's devices, AMD's since gfx950, and the
    /// mock.
    Ocp,
    /// Unknown, or the devices of this process differ.
    Unknown,
}

impl fmt::Display for F8Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fnuz => "FNUZ",
            Self::Ocp => "OCP",
            Self::Unknown => "unknown",
        })
    }
}

/// How a backend offers something.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Support {
    /// By the library itself.
    Native,
    /// By this crate, out of other operations of the library.
    Emulated,
    /// Not at all.
    Unsupported {
        /// The first version of the library that has it, where there is one.
        since: Option<Version>,
    },
}

impl Support {
    /// Whether it can be used.
    pub const fn is_available(self) -> bool {
        matches!(self, Self::Native | Self::Emulated)
    }

    /// Refuses with [`ErrorKind::Unsupported`] where it cannot be used; `what` names it.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`], with the version that has it.
    #[inline]
    pub fn require(self, what: &str) -> Result<(), Error> {
        match self {
            Self::Native | Self::Emulated => Ok(()),
            Self::Unsupported { since } => Err(unsupported(what, since)),
        }
    }
}

#[cold]
fn unsupported(what: &str, since: Option<Version>) -> Error {
    let error = Error::new(ErrorKind::Unsupported, format!("this library has no {what}"));
    match since {
        Some(version) => error.with_hint(format!("needs version {version} or newer")),
        None => error,
    }
}

impl fmt::Display for Support {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Native => f.write_str("native"),
            Self::Emulated => f.write_str("emulated"),
            Self::Unsupported { since: Some(version) } => write!(f, "needs {version}"),
            Self::Unsupported { since: None } => f.write_str("no"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_version_that_has_it() {
        let support = Support::Unsupported { since: Some(Version::new(2, 18, 1)) };
        let error = support.require("split").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(error.to_string(), "this library has no split; needs version 2.18.1 or newer");
    }

    #[test]
    fn entries_are_named_once_each() {
        let entries = Capabilities::FULL.entries();
        let names: std::collections::BTreeSet<_> = entries.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), entries.len());
        assert!(entries.iter().all(|(_, support)| support.is_available()));
    }
}
