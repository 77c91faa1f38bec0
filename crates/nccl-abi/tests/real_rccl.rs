//! What AMD's own library does on a machine without a GPU, against what this crate says about it.
//!
//! `scripts/real-libraries` downloads the library, unmodified, as Debian builds it, and runs this.
//! Each case has a process of its own, under that Debian's dynamic loader: see
//! `collectives-foreign`. What isn't there is ignored, by name.

use std::collections::BTreeSet;
use std::ffi::{CStr, OsStr, c_int, c_void};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{fs, ptr};

use collectives_foreign::{Case, Ended, Release, case, run, same};
use collectives_nccl_abi::fork::in_forked_child;
use collectives_nccl_abi::{
    Library, Source, Symbol, Table, Vendor, cudaStream_t, inspect, loaded_copies, ncclComm_t,
    ncclConfig_t, ncclDataType_t, ncclRedOp_t, ncclResult_t, ncclSimInfo_t, ncclUniqueId, quirks,
};
use libtest_mimic::Failed;
use object::read::{Object, ObjectSymbol, ReadCache};

const CASES: [Case; 20] = [
    case!(version_and_path_are_told),
    case!(the_dynamic_loader_finds_it),
    case!(the_other_vendors_door_is_closed),
    case!(the_file_tells_the_same_without_being_loaded),
    case!(exports_are_those_of_the_list),
    case!(absent_functions_are_those_of_the_release),
    case!(error_texts_are_the_documented_ones),
    case!(null_pointers_are_refused),
    case!(null_communicators_crash_as_the_quirks_say),
    case!(a_refused_call_is_named_by_the_last_error),
    case!(groups_begin_and_end).without_gpu(),
    case!(a_group_can_be_simulated).since(22_203),
    case!(hip_is_the_one_that_rccl_uses),
    case!(a_forked_child_is_told),
    case!(the_load_failure_names_the_missing_hip_runtime).without(|release| release.hip),
    case!(the_load_failure_names_the_missing_management_library).without(|release| release.smi),
    case!(unique_id_needs_a_device_as_the_quirk_says).without_gpu().checked(output_is_a_reason),
    case!(init_fails_for_want_of_a_device).without_gpu().checked(output_is_a_reason),
    case!(init_with_a_config_leaks_as_the_quirk_says).since(21_505).without_gpu(),
    case!(the_last_error_is_not_the_reason).without_gpu(),
];

fn main() -> ExitCode {
    run(&CASES)
}

fn open(path: &Path) -> Result<&'static Library, Failed> {
    Ok(Library::load_from(Vendor::RCCL, path)?)
}

fn version_and_path_are_told(release: &Release, path: &Path) -> Result<(), Failed> {
    let library = open(path)?;
    same("version", library.version(), release.version)?;
    let told = library.path().ok_or("it has a path")?;
    same("path", told, &*path.canonicalize()?)?;
    same("display", library.to_string(), format!("RCCL {} ({})", release.name, told.display()))?;
    same("loaded copies", loaded_copies(Vendor::RCCL), vec![told.to_owned()])?;
    same("loaded copies of NCCL", loaded_copies(Vendor::NCCL), Vec::<PathBuf>::new())
}

fn the_dynamic_loader_finds_it(release: &Release, _: &Path) -> Result<(), Failed> {
    let library = Library::load(Vendor::RCCL)?;
    same("source", library.source(), Source::Soname)?;
    same("version", library.version(), release.version)
}

fn the_other_vendors_door_is_closed(_: &Release, path: &Path) -> Result<(), Failed> {
    let error = Library::load_from(Vendor::NCCL, path).err().ok_or("it was taken for NCCL")?;
    let text = error.to_string();
    same(&text, text.ends_with("this is RCCL's library by its name"), true)
}

/// The file says which release it is, what it was built with, and which variables it reads.
fn the_file_tells_the_same_without_being_loaded(
    release: &Release,
    path: &Path,
) -> Result<(), Failed> {
    let file = inspect(path)?;
    same("release", file.version, Some(release.version))?;
    let toolkit = if release.version < 22_707 { (5, 7) } else { (7, 2) };
    same("toolkit", file.toolkit, Some(toolkit))?;
    same("missing", file.missing.map(|missing| missing.to_string()), None)?;
    for variable in ["NCCL_DEBUG", "NCCL_P2P_DISABLE", "NCCL_SOCKET_IFNAME", "NCCL_ALGO"] {
        same(variable, file.variables.contains(variable), true)?;
    }
    same("a variable of nobody's", file.variables.contains("NCCL_P2P_DISABEL"), false)
}

/// The checked-in list of what the release exports.
fn listed(release: &Release) -> Result<BTreeSet<&'static str>, Failed> {
    let list = match release.name {
        "2.13.4" => include_str!("symbols/rccl-2.13.4.txt"),
        "2.27.7" => include_str!("symbols/rccl-2.27.7.txt"),
        other => return Err(format!("no list of {other}").into()),
    };
    Ok(list.lines().collect())
}

fn exports_are_those_of_the_list(release: &Release, path: &Path) -> Result<(), Failed> {
    let data = ReadCache::new(fs::File::open(path)?);
    let file = object::read::elf::ElfFile64::<object::Endianness, _>::parse(&data)?;
    let exports: BTreeSet<&str> = file
        .dynamic_symbols()
        .filter(|symbol| symbol.is_definition())
        .filter_map(|symbol| symbol.name().ok())
        .filter(|name| ["nccl", "rccl", "mscc"].iter().any(|prefix| name.starts_with(prefix)))
        .collect();
    same("exports", exports, listed(release)?)
}

fn absent_functions_are_those_of_the_release(release: &Release, path: &Path) -> Result<(), Failed> {
    let library = open(path)?;
    let exports = listed(release)?;
    let present = |symbol: &&Symbol| {
        symbol.names().iter().any(|name| name.to_str().is_ok_and(|name| exports.contains(name)))
    };
    let names = |symbol: &Symbol| symbol.name();
    let expected: Vec<_> =
        Table::SYMBOLS.iter().filter(|symbol| !present(symbol)).map(names).collect();
    let absent: Vec<_> = library.table().missing_optional().into_iter().map(names).collect();
    same("absent", absent, expected.clone())?;
    // So that an empty list on both sides is no success.
    let counts = if release.version < 22_707 { (28, 47) } else { (42, 33) };
    same("present and absent", (Table::SYMBOLS.len() - expected.len(), expected.len()), counts)
}

fn error_texts_are_the_documented_ones(release: &Release, path: &Path) -> Result<(), Failed> {
    let library = open(path)?;
    let old = release.version < 21_800;
    // Since 2.18 the texts say which log level tells more.
    let hint = |text: &str, level: &str| match old {
        true => text.to_owned(),
        false => format!("{text} (run with NCCL_DEBUG={level} for details)"),
    };
    let unknown = "unknown result code";
    let internal = "internal error - please report this issue to the NCCL developers";
    for (code, text) in [
        (0, "no error".to_owned()),
        (1, hint("unhandled cuda error", "INFO")),
        (2, hint("unhandled system error", "INFO")),
        (3, if old { "internal error" } else { internal }.to_owned()),
        (4, hint("invalid argument", "WARN")),
        (5, hint("invalid usage", "WARN")),
        (6, "remote process exited or there was a network error".to_owned()),
        (7, if old { unknown } else { "NCCL operation in progress" }.to_owned()),
        (8, unknown.to_owned()),
        (99, unknown.to_owned()),
        (-1, unknown.to_owned()),
    ] {
        same(&format!("text of {code}"), library.error_text(ncclResult_t(code)), text)?;
    }
    Ok(())
}

fn null_pointers_are_refused(_: &Release, path: &Path) -> Result<(), Failed> {
    let table = open(path)?.table();
    // SAFETY: null is checked by this function, in both releases.
    let result = unsafe { (table.get_version)(ptr::null_mut()) };
    same("ncclGetVersion(NULL)", result, ncclResult_t::INVALID_ARGUMENT)?;
    for (name, function) in [
        ("ncclCommDestroy", Some(table.comm_destroy)),
        ("ncclCommAbort", table.comm_abort),
        ("ncclCommFinalize", table.comm_finalize),
    ] {
        let Some(function) = function else { continue }; // 2.13.4 has no finalize
        // SAFETY: as above.
        let result = unsafe { function(ncclComm_t::NULL) };
        same(&format!("{name}(NULL)"), result, ncclResult_t::SUCCESS)?;
    }
    let mut number = 0;
    for (name, function) in [
        ("ncclCommCount", table.comm_count),
        ("ncclCommCuDevice", table.comm_cu_device),
        ("ncclCommUserRank", table.comm_user_rank),
    ] {
        let function = function.ok_or(name)?;
        // SAFETY: as above; `number` outlives the call.
        let result = unsafe { function(ncclComm_t::NULL, &mut number) };
        same(&format!("{name}(NULL)"), result, ncclResult_t::INVALID_ARGUMENT)?;
    }
    Ok(())
}

/// The rule "never pass a null communicator" of [`quirks`], function by function.
fn null_communicators_crash_as_the_quirks_say(
    release: &Release,
    path: &Path,
) -> Result<(), Failed> {
    let library = open(path)?;
    let table = *library.table();
    let (float, sum, comm) = (ncclDataType_t::FLOAT32, ncclRedOp_t::SUM, ncclComm_t::NULL);
    let stream: cudaStream_t = ptr::null_mut();
    let (from, to): (*const c_void, *mut c_void) = (ptr::null(), ptr::null_mut());

    let mut crashed = BTreeSet::new();
    let mut call = |name, function: &dyn Fn() -> ncclResult_t| -> Result<(), Failed> {
        if crashes(function)? {
            crashed.insert(name);
        }
        Ok(())
    };
    // Each of them in a child, which a crash ends. No pointer is read if the communicator is
    // refused.
    // SAFETY (of all calls below): to pass null is what is tried, and the child is what it costs.
    call("ncclAllReduce", &|| {
        // SAFETY: see above.
        unsafe { (table.all_reduce)(from, to, 1, float, sum, comm, stream) }
    })?;
    call("ncclAllGather", &|| {
        // SAFETY: see above.
        unsafe { (table.all_gather)(from, to, 1, float, comm, stream) }
    })?;
    call("ncclReduceScatter", &|| {
        // SAFETY: see above.
        unsafe { (table.reduce_scatter)(from, to, 1, float, sum, comm, stream) }
    })?;
    call("ncclBroadcast", &|| {
        // SAFETY: see above.
        unsafe { (table.broadcast)(from, to, 1, float, 0, comm, stream) }
    })?;
    call("ncclReduce", &|| {
        // SAFETY: see above.
        unsafe { (table.reduce)(from, to, 1, float, sum, 0, comm, stream) }
    })?;
    call("ncclSend", &|| {
        // SAFETY: see above.
        unsafe { (table.send)(from, 1, float, 0, comm, stream) }
    })?;
    call("ncclRecv", &|| {
        // SAFETY: see above.
        unsafe { (table.recv)(to, 1, float, 0, comm, stream) }
    })?;
    let all_to_all = table.all_to_all.ok_or("ncclAllToAll")?;
    call("ncclAllToAll", &|| {
        // SAFETY: see above.
        unsafe { all_to_all(from, to, 1, float, comm, stream) }
    })?;
    let create = table.red_op_create_pre_mul_sum.ok_or("ncclRedOpCreatePreMulSum")?;
    call("ncclRedOpCreatePreMulSum", &|| {
        let (mut op, mut scalar) = (sum, 1.0_f32);
        let host = collectives_nccl_abi::ncclScalarResidence_t::HOST_IMMEDIATE;
        // SAFETY: see above; the scalar and the operator outlive the call.
        unsafe { create(&mut op, ptr::from_mut(&mut scalar).cast(), float, host, comm) }
    })?;
    let destroy = table.red_op_destroy.ok_or("ncclRedOpDestroy")?;
    call("ncclRedOpDestroy", &|| {
        // SAFETY: see above.
        unsafe { destroy(ncclRedOp_t::FIRST_DYNAMIC, comm) }
    })?;
    if let Some(shrink) = table.comm_shrink {
        call("ncclCommShrink", &|| {
            let (mut excluded, mut new) = ([0], ncclComm_t::NULL);
            // SAFETY: see above; the list and the new communicator outlive the call.
            unsafe { shrink(comm, excluded.as_mut_ptr(), 1, &mut new, ptr::null_mut(), 0) }
        })?;
    }
    if let Some(split) = table.comm_split {
        call("ncclCommSplit", &|| {
            let mut new = ncclComm_t::NULL;
            // SAFETY: see above; the new communicator outlives the call.
            unsafe { split(comm, 0, 0, &mut new, ptr::null_mut()) }
        })?;
    }

    let expected = match release.name {
        "2.13.4" => vec!["ncclAllToAll", "ncclRedOpCreatePreMulSum", "ncclRedOpDestroy"],
        _ => vec![
            "ncclAllGather",
            "ncclAllReduce",
            "ncclAllToAll",
            "ncclCommShrink",
            "ncclReduceScatter",
        ],
    };
    let quirk = quirks::crashes_on_null_communicator(library.flavour(), library.version());
    same("the quirk about ncclAllReduce", crashed.contains("ncclAllReduce"), quirk)?;
    same("crashes", crashed, BTreeSet::from_iter(expected))
}

/// Whether a call ends a child of this process with a segmentation fault.
fn crashes(call: &dyn Fn() -> ncclResult_t) -> Result<bool, Failed> {
    match in_child(&|| c_int::from(call().is_success()))? {
        Err(libc::SIGSEGV) => Ok(true),
        Err(signal) => Err(format!("ended by signal {signal}").into()),
        Ok(0) => Ok(false),
        Ok(_) => Err("a null communicator was taken".into()),
    }
}

/// What a child of this process answers: its exit code, or the signal that ended it.
fn in_child(answer: &dyn Fn() -> c_int) -> Result<Result<c_int, c_int>, Failed> {
    // SAFETY: the child runs `answer` and ends; this process has no other thread of ours that could
    // hold a lock.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let code = answer();
        // SAFETY: takes no pointer, and never returns.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    if child < 0 || unsafe { libc::waitpid(child, &mut status, 0) } != child {
        return Err(std::io::Error::last_os_error().into());
    }
    if libc::WIFEXITED(status) {
        return Ok(Ok(libc::WEXITSTATUS(status)));
    }
    Ok(Err(libc::WTERMSIG(status)))
}

fn a_refused_call_is_named_by_the_last_error(_: &Release, path: &Path) -> Result<(), Failed> {
    let library = open(path)?;
    same("before any call", library.last_error(), None)?;
    let count = library.table().comm_count.ok_or("ncclCommCount")?;
    let mut number = 0;
    // SAFETY: the function checks the communicator first; `number` outlives the call.
    let result = unsafe { count(ncclComm_t::NULL, &mut number) };
    same("ncclCommCount(NULL)", result, ncclResult_t::INVALID_ARGUMENT)?;
    let text = library.last_error();
    same("last error", text.as_deref(), Some("CommCount : comm argument is NULL"))
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

/// The older release asks for a device at the outermost end, even of an empty group.
fn groups_begin_and_end(release: &Release, path: &Path) -> Result<(), Failed> {
    let library = open(path)?;
    same("end without a start", group_end(library), ncclResult_t::INVALID_USAGE)?;
    group_start(library)?;
    group_start(library)?;
    same("inner end", group_end(library), ncclResult_t::SUCCESS)?;
    let outer = match release.name {
        "2.13.4" => ncclResult_t::UNHANDLED_CUDA_ERROR,
        _ => ncclResult_t::SUCCESS,
    };
    same("outer end", group_end(library), outer)?;
    same("end too many", group_end(library), ncclResult_t::INVALID_USAGE)
}

fn a_group_can_be_simulated(_: &Release, path: &Path) -> Result<(), Failed> {
    let library = open(path)?;
    let simulate_end = library.table().group_simulate_end.ok_or("ncclGroupSimulateEnd")?;
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
    same("with a wrong magic", result, ncclResult_t::INVALID_ARGUMENT)
}

/// RCCL's handle leads to HIP's functions: to those of the runtime that RCCL itself was bound to.
fn hip_is_the_one_that_rccl_uses(release: &Release, path: &Path) -> Result<(), Failed> {
    let library = open(path)?;
    let hip = path.with_file_name(release.hip).canonicalize()?;
    for function in [c"hipGetDeviceCount", c"hipMalloc", c"hipStreamBeginCapture"] {
        let mut info = MaybeUninit::<libc::Dl_info>::zeroed();
        // SAFETY: `info` outlives the call; any address may be asked about.
        let found = unsafe { libc::dladdr(library.symbol(function), info.as_mut_ptr()) };
        same(&format!("{function:?} is found"), found != 0, true)?;
        // SAFETY: zeroes are a valid `Dl_info`, and the call has filled it.
        let info = unsafe { info.assume_init() };
        // SAFETY: the name of an open object, which is never closed.
        let file = unsafe { CStr::from_ptr(info.dli_fname) };
        same("file", Path::new(OsStr::from_bytes(file.to_bytes())).canonicalize()?, hip.clone())?;
    }
    same("of nobody's", library.symbol(c"hipGetDeviceCuont").is_null(), true)?;
    let open_runtimes = fs::read_to_string("/proc/self/maps")?;
    let others = open_runtimes.lines().filter(|line| line.contains("libamdhip64"));
    let ours = hip.display().to_string();
    same("another runtime", others.filter(|line| !line.ends_with(&ours)).count(), 0)
}

/// Opening it starts nothing that a fork breaks, and the child knows that it is one.
fn a_forked_child_is_told(release: &Release, path: &Path) -> Result<(), Failed> {
    let library = open(path)?;
    same("in the parent", in_forked_child(), false)?;
    let answer = in_child(&|| {
        let mut version = 0;
        // SAFETY: `version` outlives the call.
        let result = unsafe { (library.table().get_version)(&mut version) };
        let well = result.is_success() && version == library.version() && in_forked_child();
        c_int::from(well)
    })?;
    same(release.name, answer, Ok(1))
}

fn the_load_failure_names_the_missing_hip_runtime(
    release: &Release,
    path: &Path,
) -> Result<(), Failed> {
    names_what_is_missing(path, release.hip)
}

fn the_load_failure_names_the_missing_management_library(
    release: &Release,
    path: &Path,
) -> Result<(), Failed> {
    names_what_is_missing(path, release.smi)
}

fn names_what_is_missing(path: &Path, missing: &str) -> Result<(), Failed> {
    let error = Library::load_from(Vendor::RCCL, path).err().ok_or("it was opened without it")?;
    same(
        "error",
        error.to_string(),
        format!(
            "RCCL: {}: {missing}: cannot open shared object file: No such file or directory",
            path.display()
        ),
    )
}

/// What the newer release writes where programs write their results.
fn output_is_a_reason(release: &Release, ended: &Ended) -> Result<(), Failed> {
    ended.well()?;
    let told = ended.stdout.contains(&format!("[FATAL ERROR]: HIP failure: '{NO_DEVICE}'"));
    same(&format!("{:?} is the reason", ended.stdout), told, release.version >= 22_707)
}

fn unique_id_needs_a_device_as_the_quirk_says(_: &Release, path: &Path) -> Result<(), Failed> {
    let library = open(path)?;
    let mut id = ncclUniqueId::ZERO;
    // SAFETY: `id` outlives the call.
    let result = unsafe { (library.table().get_unique_id)(&mut id) };
    let needs = quirks::unique_id_needs_device(library.flavour(), library.version());
    let expected = if needs { ncclResult_t::UNHANDLED_CUDA_ERROR } else { ncclResult_t::SUCCESS };
    same("ncclGetUniqueId", result, expected)?;
    same("the identifier is empty", id == ncclUniqueId::ZERO, needs)
}

/// Every way of making a communicator looks for a device before it looks at its arguments.
fn init_fails_for_want_of_a_device(_: &Release, path: &Path) -> Result<(), Failed> {
    let library = open(path)?;
    let table = library.table();
    let mut comm = ncclComm_t::NULL;
    let out: *mut ncclComm_t = &mut comm;
    for (what, comm, ranks, rank) in
        [("one rank", out, 1, 0), ("rank 5 of 2", out, 2, 5), ("null", ptr::null_mut(), 1, 0)]
    {
        // SAFETY: `comm` outlives the call; that null is refused is what is tried.
        let result = unsafe { (table.comm_init_rank)(comm, ranks, ncclUniqueId::ZERO, rank) };
        same(what, result, ncclResult_t::UNHANDLED_CUDA_ERROR)?;
        same("no group is left open", group_end(library), ncclResult_t::INVALID_USAGE)?;
    }
    let init_all = table.comm_init_all.ok_or("ncclCommInitAll")?;
    // SAFETY: one communicator and one device, which outlive the call.
    let result = unsafe { init_all(out, 1, &0) };
    same("ncclCommInitAll", result, ncclResult_t::UNHANDLED_CUDA_ERROR)?;
    same("no group is left open", group_end(library), ncclResult_t::INVALID_USAGE)?;
    same("communicator", comm, ncclComm_t::NULL)
}

fn init_with_a_config_leaks_as_the_quirk_says(_: &Release, path: &Path) -> Result<(), Failed> {
    let library = open(path)?;
    let init = library.table().comm_init_rank_config.ok_or("ncclCommInitRankConfig")?;
    let (flavour, version) = (library.flavour(), library.version());
    same("undefined is refused", quirks::rejects_undefined_blocking(flavour, version), false)?;
    for mut config in [ncclConfig_t::for_version(version), ncclConfig_t::undefined()] {
        let mut comm = ncclComm_t::NULL;
        // SAFETY: `comm` and `config` outlive the call, which fails.
        let result = unsafe { init(&mut comm, 1, ncclUniqueId::ZERO, 0, &mut config) };
        same("ncclCommInitRankConfig", result, ncclResult_t::UNHANDLED_CUDA_ERROR)?;
        same("communicator", comm, ncclComm_t::NULL)?;
        let leaks = quirks::leaks_group_level_on_failed_init(flavour, version);
        let inside = group_end(library) != ncclResult_t::INVALID_USAGE;
        same("the thread is inside a group", inside, leaks)?;
        same("one end was enough", group_end(library), ncclResult_t::INVALID_USAGE)?;
    }
    Ok(())
}

/// Another error in the older release, an unrelated warning in the newer: the text is no proof.
fn the_last_error_is_not_the_reason(release: &Release, path: &Path) -> Result<(), Failed> {
    let library = open(path)?;
    let mut comm = ncclComm_t::NULL;
    // SAFETY: `comm` outlives the call.
    let result = unsafe { (library.table().comm_init_rank)(&mut comm, 1, ncclUniqueId::ZERO, 0) };
    same("ncclCommInitRank", result, ncclResult_t::UNHANDLED_CUDA_ERROR)?;
    let text = library.last_error().ok_or("a failure leaves a text")?;
    same(&format!("{text:?} is the reason"), text.contains(NO_DEVICE), false)?;
    let other = text.contains("HIP failure 'invalid device ordinal'");
    same(&format!("{text:?} is another"), other, release.version < 22_707)
}

/// The HIP runtime's text for `hipErrorNoDevice`.
const NO_DEVICE: &str = "no ROCm-capable device is detected";
