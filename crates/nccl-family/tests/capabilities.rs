//! The capabilities of each release, pinned, from the functions that its library exports.

use std::{
    collections::BTreeSet,
    ffi::{CStr, c_void},
    ptr,
};

use collectives_core::Capabilities;
use collectives_nccl_abi::{Flavour, Table};
use collectives_nccl_family::capabilities_of;

macro_rules! exports {
    ($name:literal) => {
        include_str!(concat!("../../nccl-abi/tests/symbols/", $name, ".txt"))
    };
}

extern "C" fn stub() {}

fn capabilities(flavour: Flavour, code: i32, exports: &str) -> Capabilities {
    let exports: BTreeSet<&str> = exports.lines().collect();
    let find = |name: &CStr| match name.to_str() {
        Ok(name) if exports.contains(name) => stub as extern "C" fn() as *const c_void,
        _ => ptr::null(),
    };
    // SAFETY: the pointers have other signatures, but nothing here calls them.
    let table = unsafe { Table::fill(find) }.expect("every release has the required functions");
    capabilities_of(flavour, code, &table)
}

/// Everything that is not native, in the words of `Support`.
#[track_caller]
fn lacks(flavour: Flavour, code: i32, exports: &str, expected: &[(&str, &str)]) {
    let found: Vec<_> = capabilities(flavour, code, exports)
        .entries()
        .into_iter()
        .map(|(name, support)| (name, support.to_string()))
        .filter(|(_, support)| support != "native")
        .collect();
    let expected: Vec<_> =
        expected.iter().map(|(name, support)| (*name, (*support).to_owned())).collect();
    assert_eq!(found, expected, "{flavour} {code}");
}

const FP8_SINCE_2_24: [(&str, &str); 3] = [
    ("reduce_f8", "needs 2.24.3"),
    ("dtype_f8e4m3", "needs 2.24.3"),
    ("dtype_f8e5m2", "needs 2.24.3"),
];
const SHRINK_SINCE_2_27: (&str, &str) = ("shrink", "needs 2.27.3");
const GROW_SINCE_2_29: (&str, &str) = ("grow", "needs 2.29.2");
const REVOKE_SINCE_2_28: (&str, &str) = ("revoke", "needs 2.28.7");
/// Before 2.27.3.
const LATE: [(&str, &str); 3] = [SHRINK_SINCE_2_27, GROW_SINCE_2_29, REVOKE_SINCE_2_28];
const EMULATED: [(&str, &str); 3] =
    [("all_to_all", "emulated"), ("gather", "emulated"), ("scatter", "emulated")];

const SIMULATE_SINCE_2_22: (&str, &str) = ("group_simulate", "needs 2.22.3");
const SUSPEND_SINCE_2_29: [(&str, &str); 3] =
    [("parameters", "needs 2.30.4"), ("suspend", "needs 2.29.7"), ("memory_use", "needs 2.29.7")];
const WINDOWS_SINCE_2_27: [(&str, &str); 5] = [
    ("window_register", "needs 2.27.3"),
    ("window_ptr", "needs 2.29.2"),
    ("put_signal", "needs 2.29.2"),
    ("call_config", "needs 2.31.2"),
    ("encryption", "needs 2.32.3"),
];
const ONE_SIDED_SINCE_2_29: [(&str, &str); 4] = [
    ("window_ptr", "needs 2.29.2"),
    ("put_signal", "needs 2.29.2"),
    ("call_config", "needs 2.31.2"),
    ("encryption", "needs 2.32.3"),
];
const MANY_IDS_SINCE_2_23: (&str, &str) = ("join_many_ids", "needs 2.23.4");

#[test]
fn nccl_2_16_5() {
    let memory = [("mem_alloc", "needs 2.19.1"), ("register", "needs 2.19.1")];
    let (split, deadline) = ([("split", "needs 2.18.1")], [("join_deadline", "emulated")]);
    let late = [MANY_IDS_SINCE_2_23, SIMULATE_SINCE_2_22];
    let expected = [
        &EMULATED[..],
        &FP8_SINCE_2_24,
        &split,
        &LATE,
        &deadline,
        &late,
        &SUSPEND_SINCE_2_29,
        &memory,
        &WINDOWS_SINCE_2_27,
    ]
    .concat();
    lacks(Flavour::Nccl, 21605, exports!("nccl-2.16.5"), &expected);
}

#[test]
fn nccl_2_18_3() {
    let memory = [("mem_alloc", "needs 2.19.1"), ("register", "needs 2.19.1")];
    let late = [MANY_IDS_SINCE_2_23, SIMULATE_SINCE_2_22];
    let expected = [
        &EMULATED[..],
        &FP8_SINCE_2_24,
        &LATE,
        &late,
        &SUSPEND_SINCE_2_29,
        &memory,
        &WINDOWS_SINCE_2_27,
    ]
    .concat();
    lacks(Flavour::Nccl, 21803, exports!("nccl-2.18.3"), &expected);
}

#[test]
fn nccl_2_21_5() {
    let late = [MANY_IDS_SINCE_2_23, SIMULATE_SINCE_2_22];
    let expected =
        [&EMULATED[..], &FP8_SINCE_2_24, &LATE, &late, &SUSPEND_SINCE_2_29, &WINDOWS_SINCE_2_27]
            .concat();
    lacks(Flavour::Nccl, 22105, exports!("nccl-2.21.5"), &expected);
}

#[test]
fn nccl_2_25_1() {
    let expected = [&EMULATED[..], &LATE, &SUSPEND_SINCE_2_29, &WINDOWS_SINCE_2_27].concat();
    lacks(Flavour::Nccl, 22501, exports!("nccl-2.25.1"), &expected);
}

#[test]
fn nccl_2_28_9() {
    lacks(
        Flavour::Nccl,
        22809,
        exports!("nccl-2.28.9"),
        &[&[GROW_SINCE_2_29][..], &SUSPEND_SINCE_2_29, &ONE_SIDED_SINCE_2_29].concat(),
    );
}

#[test]
fn nccl_2_32_has_everything() {
    let expected = [("encryption", "needs 2.32.3")];
    lacks(Flavour::Nccl, 23102, exports!("nccl-2.31.2"), &expected);
    lacks(Flavour::Nccl, 23203, exports!("nccl-2.32.3"), &[]);
}

#[test]
fn rccl_2_13_4() {
    let expected = [
        ("reduce_f8", "needs 2.20.5"),
        ("dtype_f8e4m3", "needs 2.20.5"),
        ("dtype_f8e5m2", "needs 2.20.5"),
        ("split", "needs 2.18.3"),
        ("shrink", "needs 2.27.3"),
        ("grow", "needs 2.30.4"),
        ("revoke", "needs 2.30.4"),
        ("finalize", "needs 2.15.5"),
        ("join_deadline", "emulated"),
        ("join_many_ids", "needs 2.23.4"),
        ("config", "needs 2.15.5"),
        ("group_simulate", "needs 2.22.3"),
        ("parameters", "no"),
        ("suspend", "needs 2.30.4"),
        ("memory_use", "needs 2.30.4"),
        ("mem_alloc", "needs 2.20.5"),
        ("register", "needs 2.20.5"),
        ("window_register", "needs 2.27.3"),
        ("window_ptr", "needs 2.30.4"),
        ("put_signal", "needs 2.30.4"),
        ("call_config", "needs 2.31.2"),
        ("encryption", "no"),
    ];
    lacks(Flavour::Rccl, 21304, exports!("rccl-2.13.4"), &expected);
}

#[test]
fn rccl_2_27_7() {
    // Its non-blocking init blocks while a rank is missing.
    let expected = [
        ("grow", "needs 2.30.4"),
        ("revoke", "needs 2.30.4"),
        ("join_deadline", "emulated"),
        ("parameters", "no"),
        ("suspend", "needs 2.30.4"),
        ("memory_use", "needs 2.30.4"),
        ("window_ptr", "needs 2.30.4"),
        ("put_signal", "needs 2.30.4"),
        ("call_config", "needs 2.31.2"),
        ("encryption", "no"),
    ];
    lacks(Flavour::Rccl, 22707, exports!("rccl-2.27.7"), &expected);
}
