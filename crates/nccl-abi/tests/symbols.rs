//! The table against the export lists of real libraries (`tests/symbols`).
//!
//! A list holds the `nccl*` names that one release's library exports, as read from the file itself.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, c_void};
use std::path::Path;
use std::ptr;

use collectives_nccl_abi::{Flavour, Table};

/// A release, the version code that its library tells, and its list.
const RELEASES: [(&str, Flavour, i32, &str); 9] = [
    ("NCCL 2.16.5", Flavour::Nccl, 21605, include_str!("symbols/nccl-2.16.5.txt")),
    ("NCCL 2.18.3", Flavour::Nccl, 21803, include_str!("symbols/nccl-2.18.3.txt")),
    ("NCCL 2.21.5", Flavour::Nccl, 22105, include_str!("symbols/nccl-2.21.5.txt")),
    ("NCCL 2.25.1", Flavour::Nccl, 22501, include_str!("symbols/nccl-2.25.1.txt")),
    ("NCCL 2.28.9", Flavour::Nccl, 22809, include_str!("symbols/nccl-2.28.9.txt")),
    ("NCCL 2.31.2", Flavour::Nccl, 23102, include_str!("symbols/nccl-2.31.2.txt")),
    ("NCCL 2.32.3", Flavour::Nccl, 23203, include_str!("symbols/nccl-2.32.3.txt")),
    ("RCCL 2.13.4", Flavour::Rccl, 21304, include_str!("symbols/rccl-2.13.4.txt")),
    ("RCCL 2.27.7", Flavour::Rccl, 22707, include_str!("symbols/rccl-2.27.7.txt")),
];

/// Exported, and left out of the table on purpose.
const LEFT_OUT: [(&str, &[&str]); 3] = [
    (
        "host functions of the device headers, which serve kernels",
        &[
            "ncclCommQueryProperties",
            "ncclDevCommCreate",
            "ncclDevCommDestroy",
            "ncclGetCftDeviceLeInfo",
            "ncclGetLsaDevicePointer",
            "ncclGetLsaMultimemDevicePointer",
            "ncclGetMultimemDeviceLeInfo",
            "ncclGetMultimemDevicePointer",
            "ncclGetPeerDeviceLeInfo",
            "ncclGetPeerDevicePointer",
            "ncclGinBarrierCreateRequirement",
            "ncclGinInboxA2ACreateRequirement",
            "ncclGinOutboxCreateRequirement",
            "ncclLLA2ACalcSlots",
            "ncclLLA2ACreateRequirement",
            "ncclLsaBarrierCreateRequirement",
            "ncclTeamCft",
            "ncclTeamCftMultimem",
            "ncclTeamLsa",
            "ncclTeamRail",
            "ncclTeamRankToLsa",
            "ncclTeamRankToWorld",
            "ncclTeamWorld",
        ],
    ),
    ("in no header", &["ncclResetDebugInitInternal"]),
    (
        "RCCL's own, gone or changed under the same name",
        &[
            "mscclLoadAlgo",
            "mscclRunAlgo",
            "mscclUnloadAlgo",
            "ncclCommInitRankMulti",
            "rcclGetAlgoInfo",
            "rcclGetAlgoName",
            "rcclGetProtocolName",
        ],
    ),
];

extern "C" fn stub() {}

/// The table as filled by a library with these exports; its functions must not be called.
fn table(exports: &BTreeSet<&str>) -> Table {
    let find = |name: &CStr| match name.to_str() {
        Ok(name) if exports.contains(name) => stub as extern "C" fn() as *const c_void,
        _ => ptr::null(),
    };
    // SAFETY: the pointers have other signatures, but nothing here calls them.
    unsafe { Table::fill(find) }.expect("every release has the required functions")
}

fn absent(list: &str) -> Vec<&'static str> {
    let exports = list.lines().collect();
    table(&exports).missing_optional().iter().map(|symbol| symbol.name()).collect()
}

#[test]
fn every_list_is_read() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/symbols");
    let files = std::fs::read_dir(folder).expect("the folder of lists").count();
    assert_eq!(files, RELEASES.len());
    for (release, _, _, list) in RELEASES {
        assert!(list.lines().count() >= 26, "{release}");
    }
}

#[test]
fn absent_functions_are_exactly_those_of_the_release() {
    // From release to release NCCL only gains functions, so each line says what the next one
    // gained.
    let gained: [(&str, &[&str]); 6] = [
        ("NCCL 2.18.3", &["ncclCommSplit"]),
        ("NCCL 2.21.5", &["ncclMemAlloc", "ncclMemFree", "ncclCommRegister", "ncclCommDeregister"]),
        (
            "NCCL 2.25.1",
            &["ncclResetDebugInit", "ncclCommInitRankScalable", "ncclGroupSimulateEnd"],
        ),
        (
            "NCCL 2.28.9",
            &[
                "ncclCommRevoke",
                "ncclCommShrink",
                "ncclAlltoAll",
                "ncclGather",
                "ncclScatter",
                "ncclCommWindowRegister",
                "ncclCommWindowDeregister",
            ],
        ),
        (
            "NCCL 2.31.2",
            &[
                "ncclCommGetUniqueId",
                "ncclCommGrow",
                "ncclCommSuspend",
                "ncclCommResume",
                "ncclCommMemStats",
                "ncclAllReduceConfig",
                "ncclBroadcastConfig",
                "ncclReduceConfig",
                "ncclAllGatherConfig",
                "ncclReduceScatterConfig",
                "ncclAlltoAllConfig",
                "ncclGatherConfig",
                "ncclScatterConfig",
                "ncclPutSignal",
                "ncclSignal",
                "ncclWaitSignal",
                "ncclWinGetUserPtr",
                "ncclParamBind",
                "ncclParamGetI8",
                "ncclParamGetI16",
                "ncclParamGetI32",
                "ncclParamGetI64",
                "ncclParamGetU8",
                "ncclParamGetU16",
                "ncclParamGetU32",
                "ncclParamGetU64",
                "ncclParamGetStr",
                "ncclParamGet",
                "ncclParamGetParameter",
                "ncclParamGetAllParameterKeys",
                "ncclParamDumpAll",
            ],
        ),
        ("NCCL 2.32.3", &["ncclSetEncryption"]),
    ];
    // What NCCL never had: RCCL's own.
    let mut expected = BTreeSet::from(["ncclAlltoAllv", "ncclAllReduceWithBias"]);
    let lists: BTreeMap<_, _> = RELEASES.iter().map(|(name, _, _, list)| (*name, *list)).collect();
    for (release, names) in gained.iter().rev() {
        assert_eq!(BTreeSet::from_iter(absent(lists[release])), expected, "{release}");
        expected.extend(*names);
    }
    assert_eq!(BTreeSet::from_iter(absent(lists["NCCL 2.16.5"])), expected, "NCCL 2.16.5");
    assert_eq!(expected.len(), 2 + 47);
}

#[test]
fn absent_functions_of_rccl_are_exactly_those_of_the_release() {
    let lists: BTreeMap<_, _> = RELEASES.iter().map(|(name, _, _, list)| (*name, *list)).collect();
    let nccl_2_28 = BTreeSet::from_iter(absent(lists["NCCL 2.28.9"]));

    // Like NCCL 2.28.9, without revoke, and with RCCL's own two.
    let mut expected = nccl_2_28;
    expected.insert("ncclCommRevoke");
    expected.remove("ncclAlltoAllv");
    expected.remove("ncclAllReduceWithBias");
    assert_eq!(BTreeSet::from_iter(absent(lists["RCCL 2.27.7"])), expected, "RCCL 2.27.7");

    expected.extend([
        "ncclAllReduceWithBias",
        "ncclCommDeregister",
        "ncclCommFinalize",
        "ncclCommInitRankConfig",
        "ncclCommInitRankScalable",
        "ncclCommRegister",
        "ncclCommShrink",
        "ncclCommSplit",
        "ncclCommWindowDeregister",
        "ncclCommWindowRegister",
        "ncclGroupSimulateEnd",
        "ncclMemAlloc",
        "ncclMemFree",
        "ncclResetDebugInit",
    ]);
    assert_eq!(BTreeSet::from_iter(absent(lists["RCCL 2.13.4"])), expected, "RCCL 2.13.4");
}

#[test]
fn every_export_is_in_the_table_or_left_out_on_purpose() {
    let known: BTreeSet<&str> = Table::SYMBOLS
        .iter()
        .flat_map(|symbol| symbol.names())
        .map(|name| name.to_str().expect("names are ASCII"))
        .collect();
    let left_out: BTreeSet<&str> = LEFT_OUT.iter().flat_map(|(_, names)| *names).copied().collect();
    assert!(known.is_disjoint(&left_out));
    let mut unused = left_out.clone();
    for (release, _, _, list) in RELEASES {
        for name in list.lines() {
            assert!(known.contains(name) || left_out.contains(name), "{release} exports {name}");
            unused.remove(name);
        }
    }
    assert!(unused.is_empty(), "exported by no release: {unused:?}");
}

#[test]
fn a_function_is_there_from_its_first_release_on() {
    for (release, flavour, version, list) in RELEASES {
        let absent = BTreeSet::from_iter(absent(list));
        for symbol in Table::SYMBOLS {
            let due = symbol.since(flavour).is_some_and(|since| since <= version);
            assert_eq!(!absent.contains(symbol.name()), due, "{release}: {}", symbol.name());
        }
    }
}

#[test]
fn the_newest_header_is_covered() {
    // nccl.h of 2.32.3 declares 73 functions, all exported.
    let nccl = Table::SYMBOLS.iter().filter(|symbol| symbol.since(Flavour::Nccl).is_some());
    assert_eq!(nccl.count(), 73);
}
