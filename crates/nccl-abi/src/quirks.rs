//! The libraries' known bugs: which versions have them, and where each is written down.
//!
//! Whether a library *has* a function is asked of the [`Table`](crate::Table). Versions are asked
//! only here: for behaviour that the symbols don't show. Every function takes the raw version code
//! of [`Library::version`](crate::Library::version).
//!
//! Some bugs need no question, because avoiding them costs nothing anywhere. These hold for every
//! call, with every version:
//! * **Write null to out pointers first.** NCCL 2.18.3 and 2.21.5 dereference a stale `*newcomm` on
//!   the error path of `ncclCommInitRankConfig`.
//! * **Never pass a null communicator.** It crashes `ncclCommShrink` (NCCL 2.27.3 and later, RCCL
//!   2.27.7), `ncclRedOpDestroy` (NCCL 2.16.5, RCCL 2.13.4), `ncclRedOpCreatePreMulSum` (RCCL
//!   2.13.4), `ncclAllToAll` (RCCL 2.13.4 and 2.27.7) and `ncclAllReduce` (RCCL 2.27.7 and 2.28.3;
//!   there also all-gather and reduce-scatter).
//! * **Give `ncclCommShrink` a copy of the excluded ranks**: it sorts the caller's list in place.
//! * **Never finalize a revoked communicator**, or revoke it twice: NCCL 2.28.7 and later answer
//!   `ncclInvalidArgument`. Destroying and aborting it is fine.
//! * **Give the id of `ncclCommGetUniqueId` to `ncclCommGrow` on the member that made it** alone, and
//!   null on the other members: the library brings it to those that need it (NCCL 2.30, `init.cc`).
//! * **Keep `commName` alive** as long as the communicator: NCCL 2.27.3 and later keep the pointer.
//! * **Set `minCTAs` and `maxCTAs` together**: a minimum is compared with the undefined maximum.
//! * **Test the window** that `ncclCommWindowRegister` made: it answers success with a null one
//!   where the system has no support.
//! * **Never `dlclose`**: each `ncclGetUniqueId` leaves a thread that runs the library's code.
//! * **Copy `ncclGetLastError` at once**, and don't take it for proof: it is one buffer for all
//!   threads that nothing clears.
//! * **Follow the library and not its manual on groups**: a refused call makes the outermost
//!   `ncclGroupEnd` answer its code and drop the whole group, `ncclInvalidArgument` included.

use std::ffi::c_int;
use std::fmt;

use crate::vendor::Flavour;
use crate::version::version_text;

/// Whether an undefined `blocking` in [`ncclConfig_t`](crate::ncclConfig_t) is answered with
/// `ncclInvalidArgument`: the releases from 2.14 to 2.16, of both vendors.
///
/// Their header initialises the field to 1, and their check knows no third value. Seen with NCCL
/// 2.16.5.
pub const fn rejects_undefined_blocking(_: Flavour, code: c_int) -> bool {
    code < 21_700
}

/// Whether `ncclCommInitRankConfig` and `ncclCommInitRankScalable` leave the calling thread inside
/// a group when they fail at `cudaGetDevice` (`hipGetDevice`), which is before everything else.
///
/// NCCL 2.23.4 to 2.32.3, the newest release that was tried; later ones are taken to be the same.
/// RCCL's code is that of the NCCL release it follows; seen with RCCL 2.27.7. Every later call of the thread would be queued and never run. The guard: ask the driver for the
/// current device *before* the call, which leaves only failures that don't leak. Where that can't
/// be done, one `ncclGroupEnd` after an `ncclUnhandledCudaError` closes the level, unless the
/// failure came later: then it answers `ncclInvalidUsage` or, worse, closes a group of the
/// caller's.
pub const fn leaks_group_level_on_failed_init(_: Flavour, code: c_int) -> bool {
    code >= 22_304
}

/// Whether `ncclCommInitRankConfig` reads through a stale `*newcomm` on its error path: NCCL 2.17.1
/// to 2.22.3, of which 2.18.3 and 2.21.5 were seen to crash, and 2.16.5 and 2.25.1 not to.
///
/// The guard costs nothing and is always applied: write null before the call. This function is for
/// reports.
pub const fn dereferences_stale_newcomm(flavour: Flavour, code: c_int) -> bool {
    matches!(flavour, Flavour::Nccl) && 21_701 <= code && code < 22_304
}

/// Whether `ncclCommAbort` is known to hang on a communicator with work in flight, so that a
/// process must not wait for it without a bound.
///
/// NCCL 2.17.1 (<https://github.com/pytorch/pytorch/issues/119215>) and 2.25.1, fixed in 2.26.2
/// (<https://github.com/pytorch/pytorch/issues/149153>).
pub const fn abort_hangs(flavour: Flavour, code: c_int) -> bool {
    matches!(flavour, Flavour::Nccl) && matches!(code, 21_701 | 22_501)
}

/// Whether an operation of zero elements still synchronises the ranks: NCCL 2.19 and earlier
/// enqueued it, 2.20.3 and later return after the argument checks.
pub const fn enqueues_empty_operations(_: Flavour, code: c_int) -> bool {
    code < 22_003
}

/// Whether `ncclCommShrink` sorts the caller's list of excluded ranks in place: every release that
/// has the function. The guard is always applied: pass a copy.
pub const fn shrink_sorts_callers_list(_: Flavour, code: c_int) -> bool {
    code >= 22_703
}

/// Whether `ncclAllReduce` crashes on a null communicator instead of refusing it: RCCL 2.27.7 was
/// seen to, 2.28.3 reads as if it did. The guard is always applied: never pass one.
pub const fn crashes_on_null_communicator(flavour: Flavour, code: c_int) -> bool {
    matches!(flavour, Flavour::Rccl) && 22_707 <= code && code <= 22_803
}

/// Whether `ncclGetUniqueId` needs a device: RCCL 2.27.7 answers `ncclUnhandledCudaError` without
/// one and prints to standard output; 2.13.4 and every NCCL answer an identifier.
pub const fn unique_id_needs_device(flavour: Flavour, code: c_int) -> bool {
    matches!(flavour, Flavour::Rccl) && code >= 22_707
}

/// Whether a non-blocking init blocks all the same while a rank is missing: RCCL before August 2026
/// (<https://github.com/ROCm/rocm-systems/pull/10796>), so that a deadline can't be kept by
/// polling.
pub const fn nonblocking_init_blocks(flavour: Flavour, code: c_int) -> bool {
    matches!(flavour, Flavour::Rccl) && code <= 23_004
}

/// What is known against this version, for reports. Empty is no promise.
pub fn known_bad(flavour: Flavour, code: c_int) -> impl Iterator<Item = &'static KnownIssue> {
    KNOWN_BAD
        .iter()
        .filter(move |issue| issue.flavour == flavour && issue.first <= code && code <= issue.last)
}

/// A problem that users of a release have met, and can't be guarded against from outside.
#[derive(Debug, Eq, PartialEq)]
pub struct KnownIssue {
    /// The vendor.
    pub flavour: Flavour,
    /// Version code of the first release that has it.
    pub first: c_int,
    /// Version code of the last release that has it.
    pub last: c_int,
    /// When it happens.
    pub condition: &'static str,
    /// What happens.
    pub effect: &'static str,
    /// What helps; empty if nothing is known to.
    pub remedy: &'static str,
    /// Where it is discussed.
    pub link: &'static str,
    /// Whether the backends of this workspace avoid it, so that only other users of the library meet
    /// it.
    pub guarded: bool,
}

impl fmt::Display for KnownIssue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { flavour, first, last, condition, effect, remedy, link, guarded: _ } = self;
        write!(f, "{flavour} {}", version_text(*first))?;
        if first != last {
            write!(f, " to {}", version_text(*last))?;
        }
        write!(f, ": {condition}: {effect}")?;
        if !remedy.is_empty() {
            write!(f, "; {remedy}")?;
        }
        write!(f, " ({link})")
    }
}

const fn issue(
    (flavour, first, last): (Flavour, c_int, c_int),
    (condition, effect): (&'static str, &'static str),
    remedy: &'static str,
    link: &'static str,
) -> KnownIssue {
    KnownIssue { flavour, first, last, condition, effect, remedy, link, guarded: false }
}

/// Every issue that is listed, in the order of vendors and releases.
pub const KNOWN_BAD: &[KnownIssue] = &[
    issue(
        (Flavour::Nccl, 21_701, 21_701),
        ("abort", "hangs"),
        "use another release",
        "https://github.com/pytorch/pytorch/issues/119215",
    ),
    issue(
        (Flavour::Nccl, 21_701, 22_203),
        ("a group of collectives and messages between hosts", "illegal memory access"),
        "set NCCL_PROTO=Simple; 2.23.4 fixes it",
        "https://github.com/NVIDIA/nccl",
    ),
    KnownIssue {
        guarded: true,
        ..issue(
            (Flavour::Nccl, 21_901, 21_904),
            ("a PreMulSum of no elements on a communicator of one rank", "fails"),
            "leave it out",
            "https://github.com/NVIDIA/nccl",
        )
    },
    issue(
        (Flavour::Nccl, 21_901, 21_903),
        ("CUDA graphs", "memory grows"),
        "use another release",
        "https://github.com/NVIDIA/nccl/issues/1234",
    ),
    issue(
        (Flavour::Nccl, 22_105, 22_105),
        ("tensor-parallel serving", "deadlock"),
        "2.22.3 fixes it",
        "https://github.com/sgl-project/sglang/issues/7602",
    ),
    KnownIssue {
        guarded: true,
        ..issue(
            (Flavour::Nccl, 22_304, 23_203),
            (
                "ncclCommInitRankConfig or ncclCommInitRankScalable fails for want of a device",
                "the thread stays inside a group",
            ),
            "ask the driver for the current device before the call",
            "https://github.com/NVIDIA/nccl",
        )
    },
    issue(
        (Flavour::Nccl, 22_501, 22_501),
        ("abort", "hangs"),
        "2.26.2 fixes it",
        "https://github.com/pytorch/pytorch/issues/149153",
    ),
    issue(
        (Flavour::Nccl, 22_501, 22_501),
        ("all-gather on two nodes", "fails"),
        "2.26.2 fixes it",
        "https://github.com/NVIDIA/TensorRT-LLM/issues/4238",
    ),
    issue(
        (Flavour::Nccl, 22_501, 22_501),
        ("bf16 all-reduce into a pool of virtual memory", "out-of-bounds write"),
        "grant the peers access to the pool; 2.27.5 helps",
        "https://github.com/ggml-org/llama.cpp/issues/24489",
    ),
    issue(
        (Flavour::Nccl, 22_602, 22_602),
        ("two RTX PRO 6000, 512 KiB or more", "illegal access"),
        "2.31.2 is fine",
        "https://github.com/NVIDIA/nccl/issues/2418",
    ),
    issue(
        (Flavour::Nccl, 22_602, 22_707),
        ("the RAS thread, when polled", "crash"),
        "set NCCL_RAS_ENABLE=0",
        "https://github.com/NVIDIA/nccl/issues/1996",
    ),
    KnownIssue {
        guarded: true,
        ..issue(
            (Flavour::Nccl, 22_602, 23_007),
            (
                "a group with the first messages of two ranks fails, or is only estimated",
                "these ranks can exchange no messages any more",
            ),
            "exchange messages with every rank before",
            "https://github.com/NVIDIA/nccl/blob/v2.30.7-1/src/group.cc",
        )
    },
    issue(
        (Flavour::Nccl, 22_703, 23_102),
        ("shrink after the network has noticed a lost rank", "fails, with abort and revoked too"),
        "abort, and join anew without the lost ranks",
        "https://github.com/NVIDIA/nccl/blob/v2.30.7-1/src/init.cc",
    ),
    issue(
        (Flavour::Nccl, 22_809, 22_809),
        ("graph replay across nodes", "deadlock"),
        "2.30.4 fixes it",
        "https://github.com/vllm-project/vllm/issues/52504",
    ),
    issue(
        (Flavour::Nccl, 22_902, 22_902),
        ("window registration without GIN support", "does nothing, without a word"),
        "test the window for null",
        "https://github.com/NVIDIA/nccl/issues/1963",
    ),
    issue(
        (Flavour::Nccl, 22_907, 22_907),
        ("window registration while operations run", "a lost message, then a silent deadlock"),
        "register before serving",
        "https://github.com/sgl-project/sglang/issues/36943",
    ),
    issue(
        (Flavour::Nccl, 23_004, 23_004),
        ("small all-to-all on GB300", "slower than 2.29.7, which needs 60 % less time"),
        "use 2.29.7",
        "https://github.com/NVIDIA/TensorRT-LLM/pull/17160",
    ),
    KnownIssue {
        guarded: true,
        ..issue(
            (Flavour::Rccl, 22_707, 22_707),
            (
                "ncclCommInitRankConfig fails for want of a device",
                "the thread stays inside a group",
            ),
            "ask HIP for the current device before the call",
            "https://github.com/ROCm/rocm-systems",
        )
    },
    issue(
        (Flavour::Rccl, 21_505, 23_004),
        ("non-blocking init while a rank is missing", "blocks"),
        "releases from August 2026 on return",
        "https://github.com/ROCm/rocm-systems/pull/10796",
    ),
    issue(
        (Flavour::Rccl, 22_707, 22_707),
        ("serving on ROCm 7.2", "hangs"),
        "users went back to an older ROCm",
        "https://github.com/vllm-project/vllm/issues/39010",
    ),
    issue(
        (Flavour::Rccl, 23_000, 23_099),
        ("process exit", "the RAS thread aborts the process"),
        "set NCCL_RAS_ENABLE=0",
        "https://github.com/ROCm/rocm-systems/issues/13572",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// The codes among `codes` for which the quirk holds.
    fn having(quirk: fn(Flavour, c_int) -> bool, flavour: Flavour, codes: &[c_int]) -> Vec<c_int> {
        codes.iter().copied().filter(|code| quirk(flavour, *code)).collect()
    }

    const NCCL: [c_int; 9] = [21605, 21701, 21803, 22105, 22203, 22304, 22501, 22809, 23203];
    const RCCL: [c_int; 5] = [21304, 21505, 22707, 22803, 23004];

    #[test]
    fn quirks_hold_for_their_releases_and_no_other() {
        let nccl = |quirk| having(quirk, Flavour::Nccl, &NCCL);
        assert_eq!(nccl(rejects_undefined_blocking), [21605]);
        assert_eq!(nccl(leaks_group_level_on_failed_init), [22304, 22501, 22809, 23203]);
        assert_eq!(nccl(dereferences_stale_newcomm), [21701, 21803, 22105, 22203]);
        assert_eq!(nccl(abort_hangs), [21701, 22501]);
        assert_eq!(nccl(enqueues_empty_operations), [21605, 21701, 21803]);
        assert_eq!(nccl(shrink_sorts_callers_list), [22809, 23203]);
        assert!(nccl(crashes_on_null_communicator).is_empty());
        assert!(nccl(unique_id_needs_device).is_empty());
        assert!(nccl(nonblocking_init_blocks).is_empty());

        let rccl = |quirk| having(quirk, Flavour::Rccl, &RCCL);
        assert_eq!(rccl(rejects_undefined_blocking), [21304, 21505]);
        assert_eq!(rccl(leaks_group_level_on_failed_init), [22707, 22803, 23004]);
        assert!(rccl(dereferences_stale_newcomm).is_empty());
        assert!(rccl(abort_hangs).is_empty());
        assert_eq!(rccl(crashes_on_null_communicator), [22707, 22803]);
        assert_eq!(rccl(unique_id_needs_device), [22707, 22803, 23004]);
        assert_eq!(rccl(nonblocking_init_blocks), RCCL);
    }

    #[test]
    fn every_issue_is_found_by_its_versions_and_has_a_link() {
        for issue in KNOWN_BAD {
            assert!(issue.first <= issue.last, "{issue}");
            assert!(issue.link.starts_with("https://"), "{issue}");
            assert!(known_bad(issue.flavour, issue.first).any(|found| found == issue));
            assert!(known_bad(issue.flavour, issue.last).any(|found| found == issue));
            assert!(!known_bad(issue.flavour, issue.last + 1).any(|found| found == issue));
        }
        assert_eq!(known_bad(Flavour::Nccl, 22_501).count(), 4);
        assert_eq!(known_bad(Flavour::Nccl, 21_605).count(), 0);
    }

    #[test]
    fn an_issue_is_one_readable_line() {
        let text: Vec<_> = known_bad(Flavour::Nccl, 21_701).map(ToString::to_string).collect();
        assert_eq!(
            text,
            [
                "NCCL 2.17.1: abort: hangs; use another release \
                 (https://github.com/pytorch/pytorch/issues/119215)",
                "NCCL 2.17.1 to 2.22.3: a group of collectives and messages between hosts: illegal \
                 memory access; set NCCL_PROTO=Simple; 2.23.4 fixes it \
                 (https://github.com/NVIDIA/nccl)",
            ]
        );
    }
}
