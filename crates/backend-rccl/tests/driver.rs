//! The HIP runtime: found where RCCL has it, and an error that says what to do where it is missing,
//! broken or without devices. Each case runs in a process of its own, as a process has one runtime.
//!
//! The runtime that works is the mock's, `libcollectives_mock_abi.so` beside this test.

use std::{
    env,
    ffi::{c_int, c_void},
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use collectives_backend_rccl::{
    HipDevice, Rccl, Rocm,
    hip::{Table, types::hipDeviceAttribute_t},
    hip_version,
};
use collectives_core::{Backend as _, Device as _, Error, ErrorKind, F8Format};
use collectives_nccl_family::Vendor;
use libtest_mimic::{Arguments, Failed, Trial};

/// A case: what its process does, and what the loader finds there.
struct Case {
    name: &'static str,
    world: World,
    run: fn() -> Result<(), Failed>,
}

/// What the loader finds under the names of HIP and RCCL.
#[derive(Clone, Copy, PartialEq)]
enum World {
    /// Nothing but what the machine has.
    Empty,
    /// A library that is neither.
    CLibrary,
    /// The mock as RCCL, and a library that is no runtime under its name.
    MockAsRccl,
    /// The mock.
    Mock,
}

const CASES: [Case; 9] = [
    case("a_missing_runtime_is_an_error_with_advice", World::Empty, missing),
    case("a_broken_runtime_is_named", World::CLibrary, broken),
    case("the_variable_is_a_demand", World::Mock, demanded),
    case("the_variable_names_the_runtime", World::Empty, named),
    case("no_device_is_an_error_with_advice", World::Mock, no_device),
    case("the_runtime_of_rccl_is_taken", World::MockAsRccl, through_rccl),
    case("a_device_tells_what_it_is", World::Mock, what_it_is),
    case("a_failed_call_leaves_no_error_behind", World::Mock, no_sticky_error),
    case("a_forked_child_is_refused", World::Mock, forked),
];

const fn case(name: &'static str, world: World, run: fn() -> Result<(), Failed>) -> Case {
    Case { name, world, run }
}

fn main() {
    if let Ok(name) = env::var(CHILD) {
        let case = CASES.iter().find(|case| case.name == name).expect("a case of this test");
        if let Err(failed) = (case.run)() {
            println!("{}", failed.message().unwrap_or_default());
            std::process::exit(1);
        }
        return;
    }
    let has_runtime = has_runtime();
    let trials = CASES.iter().map(|case| {
        let spoilt = case.world == World::Empty && has_runtime;
        let title = match spoilt {
            true => format!("[needs a machine without a HIP runtime] {}", case.name),
            false => case.name.to_owned(),
        };
        Trial::test(title, || in_child(case)).with_ignored_flag(spoilt)
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}

/// Runs this program again for one case.
fn in_child(case: &Case) -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let libraries = match case.world {
        World::Empty => None,
        World::CLibrary => Some([c_library()?, c_library()?]),
        World::MockAsRccl => Some([c_library()?, mock()?]),
        World::Mock => Some([mock()?, mock()?]),
    };
    for (library, name) in libraries.into_iter().flatten().zip(["libamdhip64.so.7", "librccl.so.1"])
    {
        symlink(&library, folder.path().join(name))?;
    }
    let mut child = Command::new(env::current_exe()?);
    child.env(CHILD, case.name).env("LD_LIBRARY_PATH", folder.path());
    child.env_remove(PATH).env_remove("COLLECTIVES_RCCL_PATH").env("COLLECTIVES_MOCK_DEVICES", "4");
    for variable in ["HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"] {
        child.env_remove(variable);
    }
    match case.name {
        "the_variable_is_a_demand" => child.env(PATH, "/nowhere/libamdhip64.so"),
        "the_variable_names_the_runtime" => child.env(PATH, mock()?),
        "no_device_is_an_error_with_advice" => child.env("HIP_VISIBLE_DEVICES", ""),
        _ => &mut child,
    };
    let output = child.output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stdout);
    Err(format!("{}: {said}{}", output.status, String::from_utf8_lossy(&output.stderr)).into())
}

fn missing() -> Result<(), Failed> {
    contains(
        &refusal()?,
        &[
            "HIP: no HIP runtime: tried libamdhip64.so.7 (",
            ", libamdhip64.so.6 (",
            ", libamdhip64.so.5 (",
            ", libamdhip64.so (",
            "install ROCm's HIP runtime",
            "COLLECTIVES_HIP_PATH",
        ],
    )
}

fn broken() -> Result<(), Failed> {
    let text = refusal()?;
    contains(
        &text,
        &["HIP: the HIP runtime libamdhip64.so.7 lacks ", "install ROCm 5.2 or newer"],
    )?;
    contains(&text, Table::REQUIRED)
}

fn demanded() -> Result<(), Failed> {
    contains(
        &refusal()?,
        &["COLLECTIVES_HIP_PATH=/nowhere/libamdhip64.so: cannot open", "correct the variable"],
    )
}

fn named() -> Result<(), Failed> {
    same("devices", Rocm::device_count()?, 4)
}

/// The code of the runtime, its name, and every variable that may hide devices.
fn no_device() -> Result<(), Failed> {
    contains(
        &refusal()?,
        &[
            "HIP: the HIP runtime does not start: hipErrorNoDevice",
            "/dev/kfd",
            "HIP_VISIBLE_DEVICES",
        ],
    )?;
    let Err(error) = Rocm::runtime() else { return Err("there is a device".into()) };
    same("code", error.vendor_code().map(|code| code.0), Some(100))?;
    same("poison", error.poisons_communicator(), false)
}

/// The runtime is the one that the handle of RCCL leads to, and not the one that has the name.
fn through_rccl() -> Result<(), Failed> {
    let rccl = Rccl::load()?;
    same("devices", rccl.device_count()?, 4)?;
    same("RCCL leads to it", rccl.abi().symbol(c"hipGetDeviceCount").is_null(), false)?;
    same("a name that nobody has", rccl.abi().symbol(c"hipNoSuchFunction").is_null(), true)
}

fn what_it_is() -> Result<(), Failed> {
    let rccl = Rccl::load()?;
    let device = rccl.device(2)?;
    let info = device.info();
    same("backend", info.backend, "RCCL")?;
    same("ordinal", info.ordinal, 2)?;
    same("name", info.name.as_str(), "mock device 2")?;
    same("compute capability", info.compute_capability, None)?;
    let address = info.pci_bus_id.as_deref().unwrap_or_default();
    same("PCI address", address.starts_with("0000:"), true)?;
    same("memory", device.memory_info()?.1, info.total_memory)?;
    same("wave", device.attribute(hipDeviceAttribute_t::WARP_SIZE)?, 64)?;
    same("release of HIP", hip_version()?.to_string().starts_with("7."), true)?;
    same("architecture", device.architecture(), Some("gfx950"))?;
    same("fp8", device.f8_format(), F8Format::Ocp)?;
    let peer = rccl.device(1)?;
    same("peer", device.can_access_peer(&peer)?, true)?;
    device.enable_peer_access(&peer)?;
    device.enable_peer_access(&peer)?; // once more is no error
    let Err(error) = rccl.device(4) else { return Err("there are four devices".into()) };
    same("kind", error.kind(), ErrorKind::InvalidArgument)?;
    contains(&error.to_string(), &["device is 4, but there are 4", "ROCR_VISIBLE_DEVICES"])
}

fn no_sticky_error() -> Result<(), Failed> {
    let rccl = Rccl::load()?;
    let device = rccl.device(0)?;
    let Err(error) = device.alloc(1 << 60) else { return Err("nobody has an exbibyte".into()) };
    same("kind", error.kind(), ErrorKind::OutOfMemory)?;
    same("after an allocation", last_error(&rccl)?, 0)?;
    let Err(error) = device.enable_peer_access(&device) else {
        return Err("a device is its own peer".into());
    };
    same("a code", error.vendor_code().is_some_and(|code| code.0 != 0), true)?;
    contains(&error.to_string(), &["HIP enable_peer_access: hipError"])?;
    same("after a refusal", last_error(&rccl)?, 0)
}

/// What `hipPeekAtLastError` answers on this thread.
fn last_error(rccl: &Rccl) -> Result<c_int, Failed> {
    let peek = rccl.abi().symbol(c"hipPeekAtLastError");
    same("the runtime can be asked", peek.is_null(), false)?;
    // SAFETY: the runtime's function of this name has this type.
    let peek =
        unsafe { std::mem::transmute::<*const c_void, unsafe extern "C" fn() -> c_int>(peek) };
    // SAFETY: takes nothing.
    Ok(unsafe { peek() })
}

/// A parent that only loaded RCCL may fork; what it loaded is refused in the child, by name.
fn forked() -> Result<(), Failed> {
    let rccl = Rccl::load()?;
    // SAFETY: this process has one thread; the child only makes texts, and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let told = |error: Error| error.kind() == ErrorKind::Forked;
        let refused = HipDevice::open(0).is_err_and(told) && rccl.unique_id().is_err_and(told);
        // SAFETY: ends the child at once, running no destructor of the parent's.
        unsafe { libc::_exit(if refused { 0 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    let waited = unsafe { libc::waitpid(child, &mut status, 0) };
    same("the child", (waited, status), (child, 0))?;
    same("devices of the parent", rccl.device_count()?, 4)
}

/// What the device layer answers where it can't work: one text from each door.
fn refusal() -> Result<String, Failed> {
    let doors: [Result<(), Error>; 4] = [
        Rocm::runtime(),
        Rocm::device_count().map(drop),
        HipDevice::open(0).map(drop),
        Rocm::make_current(0),
    ];
    let mut texts = Vec::new();
    for door in doors {
        let Err(error) = door else { return Err("a runtime works".into()) };
        same("kind", error.kind(), ErrorKind::Device)?;
        texts.push(error.to_string());
    }
    texts.dedup();
    match &texts[..] {
        [text] => Ok(text.clone()),
        _ => Err(format!("{texts:?}").into()),
    }
}

fn contains(text: &str, parts: &[&str]) -> Result<(), Failed> {
    match parts.iter().find(|part| !text.contains(**part)) {
        Some(part) => Err(format!("{text:?} lacks {part:?}").into()),
        None => Ok(()),
    }
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: T, expected: T) -> Result<(), Failed> {
    if found == expected {
        return Ok(());
    }
    Err(format!("{what}: {found:?}, expected {expected:?}").into())
}

fn has_runtime() -> bool {
    ["libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so.5", "libamdhip64.so"].iter().any(
        // SAFETY: the runtime's own initialisers, which every HIP program runs.
        |name| unsafe { libloading::Library::new(*name) }.is_ok(),
    )
}

/// The mock's library, which lies beside this test.
fn mock() -> Result<PathBuf, Failed> {
    Ok(env::current_exe()?.with_file_name("libcollectives_mock_abi.so"))
}

/// The file of a library that is no HIP runtime.
fn c_library() -> Result<PathBuf, Failed> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let path = maps.split_whitespace().find(|word| word.contains("/libc.so"));
    Ok(Path::new(path.ok_or("the C library is mapped")?).to_owned())
}

/// Tells this program which case it is to run.
const CHILD: &str = "COLLECTIVES_TEST_DRIVER_CASE";
const PATH: &str = "COLLECTIVES_HIP_PATH";
