//! What NVIDIA's own libraries do on a machine without a GPU, against what this crate says about
//! them.
//!
//! `scripts/real-libraries` downloads them and runs this. By hand: `COLLECTIVES_REAL_LIBRARIES`
//! names a folder with `nccl-2.32.3/libnccl.so.2` and the like. What isn't there is ignored, by
//! name.

use std::collections::BTreeSet;
use std::ffi::{CStr, c_int};
use std::path::{Path, PathBuf};
use std::ptr;

use collectives_nccl_abi::config::ncclEncryptionConfig_t;
use collectives_nccl_abi::{
    Library, Symbol, Vendor, inspect, loaded_copies, ncclComm_t, ncclConfig_t, ncclDataType_t,
    ncclRedOp_t, ncclResult_t, ncclSimInfo_t, ncclUniqueId, quirks, version_text,
};
use libtest_mimic::{Arguments, Failed, Trial};

/// A release whose library may be there: its name, its version code, its exports.
#[derive(Clone, Copy)]
struct Release {
    name: &'static str,
    version: c_int,
    exports: &'static str,
}

/// The oldest and the newest release that are tried by default.
const DEFAULT: [Release; 2] = [
    Release { name: "2.18.3", version: 21803, exports: include_str!("symbols/nccl-2.18.3.txt") },
    Release { name: "2.32.3", version: 23203, exports: include_str!("symbols/nccl-2.32.3.txt") },
];

/// Tried if they are there.
const MORE: [Release; 5] = [
    Release { name: "2.16.5", version: 21605, exports: include_str!("symbols/nccl-2.16.5.txt") },
    Release { name: "2.21.5", version: 22105, exports: include_str!("symbols/nccl-2.21.5.txt") },
    Release { name: "2.25.1", version: 22501, exports: include_str!("symbols/nccl-2.25.1.txt") },
    Release { name: "2.28.9", version: 22809, exports: include_str!("symbols/nccl-2.28.9.txt") },
    Release { name: "2.31.2", version: 23102, exports: include_str!("symbols/nccl-2.31.2.txt") },
];

/// What is tried of each library.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    /// Version code of the first release that it is about.
    since: c_int,
    /// Whether it is about a machine without a GPU: where there is one, init succeeds.
    without_gpu: bool,
    run: fn(Release, &'static Library) -> Result<(), Failed>,
}

/// Names a case by its function.
macro_rules! case {
    ($function:ident) => {
        Case { name: stringify!($function), since: 0, without_gpu: false, run: $function }
    };
}

const CASES: [Case; 13] = [
    case!(version_and_path_are_told),
    case!(the_file_tells_the_same_without_being_loaded),
    case!(absent_functions_are_those_of_the_release),
    case!(error_texts_are_the_documented_ones),
    case!(unique_ids_differ),
    case!(null_pointers_are_refused),
    case!(a_refused_call_is_named_by_the_last_error),
    case!(a_refused_call_fails_its_group),
    Case { since: 22_203, ..case!(a_group_can_be_simulated) },
    Case { since: 23_203, ..case!(encryption_config_has_the_right_layout) },
    Case { without_gpu: true, ..case!(init_fails_for_want_of_a_driver) },
    Case { without_gpu: true, ..case!(init_with_a_config_leaks_as_the_quirk_says) },
    Case { without_gpu: true, ..case!(undefined_blocking_is_refused_as_the_quirk_says) },
];

fn main() {
    let mut arguments = Arguments::from_args();
    // The last error is one buffer, and groups belong to a thread: one trial at a time.
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials()).exit();
}

/// One trial per library and case; what can't be run is ignored and says why in its name.
fn trials() -> Vec<Trial> {
    let folder = std::env::var_os(VARIABLE).map(PathBuf::from);
    let library = |release: Release| {
        let Some(folder) = &folder else {
            return Err(format!("needs {VARIABLE}: run scripts/real-libraries"));
        };
        let name = format!("nccl-{}", release.name);
        let path = folder.join(&name).join("libnccl.so.2");
        if path.is_file() { Ok(path) } else { Err(format!("needs {name} in {VARIABLE}")) }
    };
    let gpu = Path::new("/dev/nvidiactl").exists();
    let runnable = |release: Release, case: Case| {
        if release.version < case.since {
            return Err(format!("needs NCCL {}", version_text(case.since)));
        }
        if case.without_gpu && gpu {
            return Err("needs a machine without a GPU".to_owned());
        }
        library(release)
    };
    let more = MORE.into_iter().filter(|release| library(*release).is_ok());
    let pairs =
        DEFAULT.into_iter().chain(more).flat_map(|release| CASES.map(|case| (release, case)));
    pairs
        .map(|(release, case)| match runnable(release, case) {
            Ok(path) => Trial::test(format!("[NCCL {}] {}", release.name, case.name), move || {
                (case.run)(release, Library::load_from(Vendor::NCCL, path)?)
            }),
            Err(reason) => {
                let title = format!("[NCCL {}] [{reason}] {}", release.name, case.name);
                Trial::test(title, move || Err(reason.into())).with_ignored_flag(true)
            }
        })
        .collect()
}

/// Fails with both values, and what they are, if they differ.
fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: T, expected: T) -> Result<(), Failed> {
    if found == expected {
        return Ok(());
    }
    Err(format!("{what}: {found:?}, expected {expected:?}").into())
}

fn version_and_path_are_told(release: Release, library: &'static Library) -> Result<(), Failed> {
    same("version", library.version(), release.version)?;
    let path = library.path().ok_or("it has a path")?;
    same("display", library.to_string(), format!("NCCL {} ({})", release.name, path.display()))?;
    same("among the loaded copies", loaded_copies(Vendor::NCCL).iter().any(|p| p == path), true)
}

/// The file says which release it is, what it was built with, and which variables it reads.
fn the_file_tells_the_same_without_being_loaded(
    _: Release,
    library: &'static Library,
) -> Result<(), Failed> {
    let path = library.path().ok_or("a library without a path")?;
    let file = inspect(path)?;
    same("release", file.version, Some(library.version()))?;
    same("missing", file.missing.map(|missing| missing.to_string()), None)?;
    let toolkit = file.toolkit.ok_or("no CUDA release in the file")?;
    same("a release of CUDA", (11..=14).contains(&toolkit.0), true)?;
    for variable in ["NCCL_DEBUG", "NCCL_P2P_DISABLE", "NCCL_SOCKET_IFNAME", "NCCL_ALGO"] {
        same(variable, file.variables.contains(variable), true)?;
    }
    same("a variable of nobody's", file.variables.contains("NCCL_P2P_DISABEL"), false)
}

fn absent_functions_are_those_of_the_release(
    release: Release,
    library: &'static Library,
) -> Result<(), Failed> {
    let exports: BTreeSet<&str> = release.exports.lines().collect();
    let listed = |symbol: &Symbol| {
        symbol.names().iter().any(|name| name.to_str().is_ok_and(|name| exports.contains(name)))
    };
    for symbol in collectives_nccl_abi::Table::SYMBOLS {
        let absent = library.table().missing_optional().iter().any(|s| s.name() == symbol.name());
        same(symbol.name(), !absent, listed(symbol))?;
    }
    Ok(())
}

fn error_texts_are_the_documented_ones(
    release: Release,
    library: &'static Library,
) -> Result<(), Failed> {
    // Since 2.18 the texts say which log level tells more.
    let hint = |text: &str, level: &str| match release.version {
        ..21_800 => text.to_owned(),
        _ => format!("{text} (run with NCCL_DEBUG={level} for details)"),
    };
    let internal = match release.version {
        ..21_800 => "internal error",
        _ => "internal error - please report this issue to the NCCL developers",
    };
    let timeout = match release.version {
        ..23_003 => "unknown result code",
        _ => "timeout",
    };
    for (code, text) in [
        (0, "no error".to_owned()),
        (1, hint("unhandled cuda error", "INFO")),
        (2, hint("unhandled system error", "INFO")),
        (3, internal.to_owned()),
        (4, hint("invalid argument", "WARN")),
        (5, hint("invalid usage", "WARN")),
        (6, "remote process exited or there was a network error".to_owned()),
        (7, "NCCL operation in progress".to_owned()),
        (8, timeout.to_owned()),
        (99, "unknown result code".to_owned()),
        (-1, "unknown result code".to_owned()),
    ] {
        same(&format!("text of {code}"), library.error_text(ncclResult_t(code)), text)?;
    }
    Ok(())
}

fn unique_id(library: &Library) -> Result<ncclUniqueId, Failed> {
    let mut id = ncclUniqueId::ZERO;
    // SAFETY: `id` outlives the call.
    let result = unsafe { (library.table().get_unique_id)(&mut id) };
    same("ncclGetUniqueId", result, ncclResult_t::SUCCESS)?;
    Ok(id)
}

fn unique_ids_differ(_: Release, library: &'static Library) -> Result<(), Failed> {
    let (one, two) = (unique_id(library)?, unique_id(library)?);
    same("two identifiers are the same", one == two, false)?;
    same("an identifier is empty", one == ncclUniqueId::ZERO, false)
}

fn null_pointers_are_refused(_: Release, library: &'static Library) -> Result<(), Failed> {
    let table = library.table();
    // SAFETY: null is checked by these functions, in every release.
    let result = unsafe { (table.get_version)(ptr::null_mut()) };
    same("ncclGetVersion(NULL)", result, ncclResult_t::INVALID_ARGUMENT)?;
    // SAFETY: as above.
    let result = unsafe { (table.get_unique_id)(ptr::null_mut()) };
    same("ncclGetUniqueId(NULL)", result, ncclResult_t::INVALID_ARGUMENT)?;
    same("ncclAllReduce(NULL)", all_reduce_null(library), ncclResult_t::INVALID_ARGUMENT)?;
    for (name, function) in [
        ("ncclCommDestroy", Some(table.comm_destroy)),
        ("ncclCommAbort", table.comm_abort),
        ("ncclCommFinalize", table.comm_finalize),
    ] {
        let function = function.ok_or(name)?;
        // SAFETY: as above.
        let result = unsafe { function(ncclComm_t::NULL) };
        same(&format!("{name}(NULL)"), result, ncclResult_t::SUCCESS)?;
    }
    Ok(())
}

/// An all-reduce on a null communicator, which NCCL refuses before it looks at anything else.
fn all_reduce_null(library: &Library) -> ncclResult_t {
    // SAFETY: NCCL checks the communicator first, in every release.
    unsafe {
        (library.table().all_reduce)(
            ptr::null(),
            ptr::null_mut(),
            1,
            ncclDataType_t::FLOAT32,
            ncclRedOp_t::SUM,
            ncclComm_t::NULL,
            ptr::null_mut(),
        )
    }
}

fn a_refused_call_is_named_by_the_last_error(
    _: Release,
    library: &'static Library,
) -> Result<(), Failed> {
    same("ncclAllReduce(NULL)", all_reduce_null(library), ncclResult_t::INVALID_ARGUMENT)?;
    let text = library.last_error().ok_or("a refusal leaves a text")?;
    same(&format!("{text:?} is about it"), text.contains("AllReduce : comm argument is NULL"), true)
}

fn group_start(library: &Library) -> Result<(), Failed> {
    // SAFETY: takes nothing.
    let result = unsafe { (library.table().group_start)() };
    same("ncclGroupStart", result, ncclResult_t::SUCCESS)
}

fn group_end(library: &Library) -> ncclResult_t {
    // SAFETY: takes nothing.
    unsafe { (library.table().group_end)() }
}

fn a_refused_call_fails_its_group(_: Release, library: &'static Library) -> Result<(), Failed> {
    group_start(library)?;
    group_start(library)?;
    same("ncclAllReduce(NULL)", all_reduce_null(library), ncclResult_t::INVALID_ARGUMENT)?;
    same("inner end", group_end(library), ncclResult_t::SUCCESS)?;
    same("outer end", group_end(library), ncclResult_t::INVALID_ARGUMENT)?;
    same("end too many", group_end(library), ncclResult_t::INVALID_USAGE)?;
    group_start(library)?;
    same("empty group", group_end(library), ncclResult_t::SUCCESS)
}

fn a_group_can_be_simulated(_: Release, library: &'static Library) -> Result<(), Failed> {
    let simulate_end = library.table().group_simulate_end.ok_or("2.22.3 and later have it")?;
    let mut info = ncclSimInfo_t::undefined();
    group_start(library)?;
    // SAFETY: `info` outlives the call.
    let result = unsafe { simulate_end(&mut info) };
    same("ncclGroupSimulateEnd", result, ncclResult_t::SUCCESS)?;
    same("time of an empty group", info.estimatedTime, -1.0)?;
    info.magic = 0;
    group_start(library)?;
    // SAFETY: as above.
    let result = unsafe { simulate_end(&mut info) };
    same("with a wrong magic", result, ncclResult_t::INVALID_ARGUMENT)?;
    while group_end(library) != ncclResult_t::INVALID_USAGE {} // close what the refusal left open
    Ok(())
}

fn encryption_config_has_the_right_layout(
    _: Release,
    library: &'static Library,
) -> Result<(), Failed> {
    let set_encryption = library.table().set_encryption.ok_or("2.32.3 and later have it")?;
    let set = |config: ncclEncryptionConfig_t| {
        // SAFETY: the configuration outlives the call.
        unsafe { set_encryption(&config) }
    };
    let config = ncclEncryptionConfig_t::none();
    same("none", set(config), ncclResult_t::SUCCESS)?;
    let wrong_magic = ncclEncryptionConfig_t { magic: 0, ..config };
    same("wrong magic", set(wrong_magic), ncclResult_t::INVALID_ARGUMENT)?;
    let psk = |key: &'static CStr| {
        let mode = collectives_nccl_abi::types::ncclEncryptionMode_t::PSK;
        set(ncclEncryptionConfig_t { mode, psk: key.as_ptr(), ..config })
    };
    same("short key", psk(c"too short"), ncclResult_t::INVALID_ARGUMENT)?;
    same("long key", psk(c"0123456789abcdef0123456789abcdef"), ncclResult_t::SUCCESS)?;
    same("none again", set(config), ncclResult_t::SUCCESS)
}

/// The text behind every failure of an init on a machine without a driver.
const NO_DRIVER: &str = "CUDA driver version is insufficient for CUDA runtime version";

fn init_fails_for_want_of_a_driver(_: Release, library: &'static Library) -> Result<(), Failed> {
    let id = unique_id(library)?;
    let mut comm = ncclComm_t::NULL;
    // SAFETY: `comm` outlives the call.
    let result = unsafe { (library.table().comm_init_rank)(&mut comm, 1, id, 0) };
    same("ncclCommInitRank", result, ncclResult_t::UNHANDLED_CUDA_ERROR)?;
    same("communicator", comm, ncclComm_t::NULL)?;
    let text = library.last_error().ok_or("a failure leaves a text")?;
    same(&format!("{text:?} is about the driver"), text.contains(NO_DRIVER), true)?;
    same("no group is left open", group_end(library), ncclResult_t::INVALID_USAGE)
}

/// `ncclCommInitRankConfig` for one rank, with a null communicator to begin with.
fn init_with(library: &Library, mut config: ncclConfig_t) -> Result<ncclResult_t, Failed> {
    let id = unique_id(library)?;
    let init = library.table().comm_init_rank_config.ok_or("2.14.3 or newer has it")?;
    let mut comm = ncclComm_t::NULL;
    // SAFETY: `comm` and `config` outlive the call, which fails.
    let result = unsafe { init(&mut comm, 1, id, 0, &mut config) };
    same("communicator", comm, ncclComm_t::NULL)?;
    Ok(result)
}

fn init_with_a_config_leaks_as_the_quirk_says(
    _: Release,
    library: &'static Library,
) -> Result<(), Failed> {
    let config = ncclConfig_t::for_version(library.version());
    same("init", init_with(library, config)?, ncclResult_t::UNHANDLED_CUDA_ERROR)?;
    let text = library.last_error().ok_or("a failure leaves a text")?;
    same(&format!("{text:?} is about the driver"), text.contains(NO_DRIVER), true)?;

    let end = group_end(library);
    let leaks = quirks::leaks_group_level_on_failed_init(library.flavour(), library.version());
    same("the thread is inside a group", end != ncclResult_t::INVALID_USAGE, leaks)?;
    same("one end was enough", group_end(library), ncclResult_t::INVALID_USAGE)
}

fn undefined_blocking_is_refused_as_the_quirk_says(
    _: Release,
    library: &'static Library,
) -> Result<(), Failed> {
    let result = init_with(library, ncclConfig_t::undefined())?;
    let refused = quirks::rejects_undefined_blocking(library.flavour(), library.version());
    let expected = match refused {
        true => ncclResult_t::INVALID_ARGUMENT,
        false => ncclResult_t::UNHANDLED_CUDA_ERROR,
    };
    while group_end(library) != ncclResult_t::INVALID_USAGE {} // close what the quirk left open
    same("init with an undefined config", result, expected)
}

/// The folder of the libraries.
const VARIABLE: &str = "COLLECTIVES_REAL_LIBRARIES";
