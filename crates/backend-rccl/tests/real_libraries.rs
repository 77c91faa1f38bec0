//! AMD's own libraries behind the backend, on a machine without a GPU.
//!
//! `scripts/real-libraries` downloads RCCL and the HIP runtime, unmodified, as Debian builds them,
//! and runs this. Each case has a process of its own, under that Debian's dynamic loader: see
//! `collectives-foreign`. What isn't there is ignored, by name.

use std::{
    ffi::{CStr, c_int, c_void},
    path::Path,
    process::ExitCode,
    ptr,
};

use collectives_backend_rccl::{
    HipDevice, Rccl,
    hip::{
        Table,
        types::{
            HIP_EVENT_DISABLE_TIMING, HIP_STREAM_NON_BLOCKING, hipDeviceAttribute_t, hipError_t,
            hipEvent_t, hipStream_t,
        },
    },
};
use collectives_core::{
    Backend, Error, ErrorKind, F8Format, JoinAllConfig, JoinConfig, Rank, UniqueId, Version,
};
use collectives_foreign::{Case, Ended, Release, case, run, same};
use collectives_nccl_abi::ncclResult_t;
use libtest_mimic::Failed;

const CASES: [Case; 11] = [
    case!(version_and_path_are_told),
    case!(capabilities_are_those_of_the_release),
    case!(hip_has_every_function_but_those_of_later_releases),
    case!(hip_names_every_error_but_those_of_later_releases),
    case!(a_missing_library_of_rocm_is_named).without(|release| release.smi),
    case!(a_forked_child_is_refused),
    case!(hip_answers_that_there_is_no_device).without_gpu(),
    case!(fp8_is_unknown_without_a_device).without_gpu(),
    case!(devices_are_missing_with_advice).without_gpu(),
    case!(unique_id_works_or_says_that_it_wants_a_device).without_gpu(),
    case!(a_failed_join_says_that_there_is_no_device).without_gpu().checked(output_is_a_reason),
];

fn main() -> ExitCode {
    run(&CASES)
}

fn open(path: &Path) -> Result<Rccl, Failed> {
    Ok(Rccl::load_from(path)?)
}

fn version_and_path_are_told(release: &Release, path: &Path) -> Result<(), Failed> {
    let rccl = open(path)?;
    let info = rccl.info();
    same("version", info.version.to_string().as_str(), release.name)?;
    same("backend", info.backend, "RCCL")?;
    same("found by", info.found_by.as_str(), "explicit path")?;
    same("path", info.path.as_deref(), Some(&*path.canonicalize()?))
}

/// Everything that is not native.
fn capabilities_are_those_of_the_release(release: &Release, path: &Path) -> Result<(), Failed> {
    let expected = match release.name {
        "2.13.4" => vec![
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
        ],
        // Its non-blocking init blocks while a rank is missing.
        _ => vec![
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
        ],
    };
    let found: Vec<_> = open(path)?
        .capabilities()
        .entries()
        .into_iter()
        .map(|(name, support)| (name, support.to_string()))
        .filter(|(_, support)| support != "native")
        .collect();
    let expected: Vec<_> =
        expected.into_iter().map(|(name, support)| (name, support.to_owned())).collect();
    same("what is not native", found, expected)
}

/// The functions of the HIP runtime that this RCCL uses.
fn hip(rccl: &Rccl) -> Result<Table, Failed> {
    // SAFETY: the functions are those of AMD's own runtime, which stays open.
    Ok(unsafe { Table::fill(|name| rccl.abi().symbol(name)) }?)
}

fn hip_has_every_function_but_those_of_later_releases(
    release: &Release,
    path: &Path,
) -> Result<(), Failed> {
    let rccl = open(path)?;
    let has = |name: &str| {
        let name = std::ffi::CString::new(name);
        name.is_ok_and(|name| !rccl.abi().symbol(&name).is_null())
    };
    let lacking = |names: &[&'static str]| -> Vec<&str> {
        names.iter().copied().filter(|name| !has(name)).collect()
    };
    same("required functions that are missing", lacking(Table::REQUIRED), Vec::new())?;
    let expected = match release.name {
        "2.13.4" => vec!["hipGetDevicePropertiesR0600"],
        _ => Vec::new(),
    };
    same("optional functions that are missing", lacking(Table::OPTIONAL), expected)?;
    same("a function of nobody's", has("hipGetDeviceCuont"), false)
}

fn hip_names_every_error_but_those_of_later_releases(
    release: &Release,
    path: &Path,
) -> Result<(), Failed> {
    let table = hip(&open(path)?)?;
    let mut unknown = Vec::new();
    for &code in hipError_t::NAMED {
        // SAFETY: the function takes every number.
        let name = unsafe { (table.get_error_name)(code) };
        // SAFETY: static text of the runtime.
        let name = unsafe { CStr::from_ptr(name) }.to_str()?;
        if code != hipError_t::UNKNOWN && name == "hipErrorUnknown" {
            unknown.push(code.0);
        } else {
            same("name", Some(name), code.name())?;
        }
    }
    let expected = match release.name {
        "2.13.4" => vec![911, 912, 914, 915, 916],
        _ => vec![914, 915, 916],
    };
    same("codes without a name", unknown, expected)
}

fn a_missing_library_of_rocm_is_named(release: &Release, path: &Path) -> Result<(), Failed> {
    let error = Rccl::load_from(path).err().ok_or("it was opened without it")?;
    let text = error.to_string();
    same(&text, error.kind(), ErrorKind::Library)?;
    let words = format!("{}: cannot open shared object file", release.smi);
    same(&text, text.contains(&words) && text.contains(&path.display().to_string()), true)
}

/// Loading calls nothing of HIP, but a child cannot know what its parent did afterwards.
fn a_forked_child_is_refused(_: &Release, path: &Path) -> Result<(), Failed> {
    let rccl = open(path)?;
    // SAFETY: the child asks three questions and ends; this process has no other thread of ours
    // that could hold a lock.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let refusals = [rccl.device_count().err(), rccl.unique_id().err(), rccl.device(0).err()];
        let refused = refusals
            .iter()
            .all(|error| error.as_ref().is_some_and(|error| error.kind() == ErrorKind::Forked));
        // SAFETY: takes no pointer, and never returns.
        unsafe { libc::_exit(c_int::from(!refused)) };
    }
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    let waited = unsafe { libc::waitpid(child, &mut status, 0) };
    same("the child is ours", waited > 0 && waited == child, true)?;
    same("status of a child that is refused", status, 0)
}

fn hip_answers_that_there_is_no_device(release: &Release, path: &Path) -> Result<(), Failed> {
    let table = hip(&open(path)?)?;
    let (mut number, mut count) = (-1, -1);
    // SAFETY: `number` outlives the call.
    let result = unsafe { (table.runtime_get_version)(&mut number) };
    same("hipRuntimeGetVersion", (result, number), (hipError_t::SUCCESS, release.hip_version))?;
    // SAFETY: `count` outlives the call.
    let result = unsafe { (table.get_device_count)(&mut count) };
    same("hipGetDeviceCount", (result, count), (hipError_t::NO_DEVICE, 0))?;

    let (mut stream, mut event) = (hipStream_t::NULL, hipEvent_t::NULL);
    let mut memory: *mut c_void = ptr::null_mut();
    // SAFETY: what is written outlives the call.
    let get_device = unsafe { (table.get_device)(&mut number) };
    // SAFETY: takes no pointer.
    let set_device = unsafe { (table.set_device)(0) };
    // SAFETY: as above.
    let malloc = unsafe { (table.malloc)(&mut memory, 16) };
    // SAFETY: as above.
    let stream = unsafe { (table.stream_create_with_flags)(&mut stream, HIP_STREAM_NON_BLOCKING) };
    // SAFETY: as above.
    let event = unsafe { (table.event_create_with_flags)(&mut event, HIP_EVENT_DISABLE_TIMING) };
    // SAFETY: as above.
    let peer = unsafe { (table.device_can_access_peer)(&mut number, 0, 1) };
    let warp_size = hipDeviceAttribute_t::WARP_SIZE;
    // SAFETY: as above.
    let attribute = unsafe { (table.device_get_attribute)(&mut number, warp_size, 0) };
    for (name, result) in [
        ("hipGetDevice", get_device),
        ("hipSetDevice", set_device),
        ("hipMalloc", malloc),
        ("hipStreamCreateWithFlags", stream),
        ("hipEventCreateWithFlags", event),
        ("hipDeviceCanAccessPeer", peer),
        ("hipDeviceGetAttribute", attribute),
    ] {
        same(name, result, hipError_t::NO_DEVICE)?;
    }
    Ok(())
}

fn fp8_is_unknown_without_a_device(_: &Release, path: &Path) -> Result<(), Failed> {
    same("format", open(path)?.capabilities().f8_format, F8Format::Unknown)
}

/// What every error says that comes of the missing device, in our words.
const NO_DEVICE: &str = "HIP: the HIP runtime does not start: hipErrorNoDevice: no ROCm-capable \
                         device is detected (code 100); no AMD GPU is visible: see rocminfo, ";

fn devices_are_missing_with_advice(_: &Release, path: &Path) -> Result<(), Failed> {
    let rccl = open(path)?;
    let doors =
        [rccl.device_count().map(drop), rccl.device(0).map(drop), HipDevice::open(0).map(drop)];
    for outcome in doors {
        let error = outcome.err().ok_or("there is a device")?;
        let text = error.to_string();
        same(&text, error.kind(), ErrorKind::Device)?;
        same(&text, error.vendor_code().map(|code| code.0), Some(100))?;
        same(&text, text.starts_with(NO_DEVICE), true)?;
        same(&text, text.contains("HIP_VISIBLE_DEVICES"), true)?;
    }
    Ok(())
}

/// A failure of RCCL's that comes of the missing device.
fn is_for_want_of_a_device(error: &Error, release: &Release) -> Result<(), Failed> {
    let text = error.to_string();
    same(&text, error.kind(), ErrorKind::Device)?;
    same(&text, error.vendor_code().map(|code| code.0), Some(1))?;
    let version = error.library().map(|(_, version)| version);
    same(&text, version, Some(Version::from_code(release.version.unsigned_abs())))?;
    same(&text, text.starts_with("RCCL ") && text.contains(": unhandled cuda error"), true)?;
    // What RCCL said last may have nothing to do with it, and is marked so.
    let words = error.last_error();
    same(&text, words.is_none_or(|words| words.starts_with("perhaps of another call: ")), true)?;
    same(&text, error.hint().is_some_and(|hint| hint.starts_with(NO_DEVICE)), true)
}

fn unique_id_works_or_says_that_it_wants_a_device(
    release: &Release,
    path: &Path,
) -> Result<(), Failed> {
    let rccl = open(path)?;
    match (release.name, rccl.unique_id()) {
        ("2.13.4", Ok(one)) => {
            same("length", one.as_bytes().len(), 128)?;
            same("two identifiers are the same", one == rccl.unique_id()?, false)
        }
        ("2.27.7", Err(error)) => is_for_want_of_a_device(&error, release),
        (_, outcome) => Err(format!("{outcome:?}").into()),
    }
}

/// Both ways of joining; and the thread is in no group afterwards.
fn a_failed_join_says_that_there_is_no_device(
    release: &Release,
    path: &Path,
) -> Result<(), Failed> {
    let rccl = open(path)?;
    // Nobody reads it before there is a device.
    let id = UniqueId::from([7; 128]);
    let config = JoinConfig::new(Rank::new(0), 1).with_name("lonely");
    for (operation, outcome) in [
        ("join", rccl.join(&id, config).map(drop)),
        ("join_all", rccl.join_all(JoinAllConfig::new([0])).map(drop)),
    ] {
        let error = outcome.err().ok_or("a join without a GPU succeeded")?;
        is_for_want_of_a_device(&error, release)?;
        same(&error.to_string(), error.operation(), Some(operation))?;
        // SAFETY: takes nothing, and there is nothing to launch.
        let end = unsafe { (rccl.abi().table().group_end)() };
        same("the thread is in no group", end, ncclResult_t::INVALID_USAGE)?;
    }
    Ok(())
}

/// RCCL 2.27.7 writes to standard output, which the backend cannot prevent.
fn output_is_a_reason(release: &Release, ended: &Ended) -> Result<(), Failed> {
    ended.well()?;
    let fatal = ended.stdout.contains("[FATAL ERROR]: HIP failure: 'no ROCm-capable device");
    same(&format!("{:?} has the reason", ended.stdout), fatal, release.version >= 22_707)
}
