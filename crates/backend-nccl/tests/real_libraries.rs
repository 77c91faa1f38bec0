//! NVIDIA's own libraries behind the backend, on a machine without a GPU.
//!
//! `scripts/real-libraries` downloads them and runs this. By hand: `COLLECTIVES_REAL_LIBRARIES`
//! names a folder with `nccl-2.32.3/libnccl.so.2` and the like. What isn't there is ignored, by
//! name.

use std::{
    fmt::Debug,
    path::{Path, PathBuf},
    time::Duration,
};

use collectives_backend_nccl::Nccl;
use collectives_core::{Backend, ErrorKind, JoinAllConfig, JoinConfig, Rank, Support, Version};
use collectives_nccl_abi::ncclResult_t;
use libtest_mimic::{Arguments, Failed, Trial};

/// The oldest and the newest release that are tried by default; the others if they are there.
const DEFAULT: [Version; 2] = [Version::new(2, 18, 3), Version::new(2, 32, 3)];
const MORE: [Version; 5] = [
    Version::new(2, 16, 5),
    Version::new(2, 21, 5),
    Version::new(2, 25, 1),
    Version::new(2, 28, 9),
    Version::new(2, 31, 2),
];

/// What is tried of each library.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    /// Whether it is about a machine without a GPU.
    without_gpu: bool,
    run: fn(Version, &Nccl) -> Result<(), Failed>,
}

const CASES: [Case; 4] = [
    Case { name: "version_and_path_are_told", without_gpu: false, run: version_and_path_are_told },
    Case { name: "unique_ids_differ", without_gpu: false, run: unique_ids_differ },
    Case {
        name: "a_failed_join_is_told_in_the_library_s_words",
        without_gpu: true,
        run: a_failed_join_is_told_in_the_library_s_words,
    },
    Case {
        name: "devices_are_missing_with_advice",
        without_gpu: true,
        run: devices_are_missing_with_advice,
    },
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
    let library = |version: Version| {
        let Some(folder) = &folder else {
            return Err(format!("needs {VARIABLE}: run scripts/real-libraries"));
        };
        let name = format!("nccl-{version}");
        let path = folder.join(&name).join("libnccl.so.2");
        if path.is_file() { Ok(path) } else { Err(format!("needs {name} in {VARIABLE}")) }
    };
    let gpu = Path::new("/dev/nvidiactl").exists();
    let more = MORE.into_iter().filter(|version| library(*version).is_ok());
    let pairs =
        DEFAULT.into_iter().chain(more).flat_map(|version| CASES.map(|case| (version, case)));
    pairs
        .map(|(version, case)| {
            let runnable = match case.without_gpu && gpu {
                true => Err("needs a machine without a GPU".to_owned()),
                false => library(version),
            };
            match runnable {
                Ok(path) => Trial::test(format!("[NCCL {version}] {}", case.name), move || {
                    (case.run)(version, &Nccl::load_from(path)?)
                }),
                Err(reason) => {
                    let title = format!("[NCCL {version}] [{reason}] {}", case.name);
                    Trial::test(title, move || Err(reason.into())).with_ignored_flag(true)
                }
            }
        })
        .collect()
}

/// Fails with both values, and what they are, if they differ.
fn same<T: PartialEq + Debug>(what: &str, found: T, expected: T) -> Result<(), Failed> {
    if found == expected {
        return Ok(());
    }
    Err(format!("{what}: {found:?}, expected {expected:?}").into())
}

fn version_and_path_are_told(version: Version, nccl: &Nccl) -> Result<(), Failed> {
    same("version", nccl.info().version, version)?;
    same("backend", nccl.info().backend, "NCCL")?;
    same("found by", nccl.info().found_by.as_str(), "explicit path")?;
    same("there is a path", nccl.info().path.is_some(), true)
}

fn unique_ids_differ(_: Version, nccl: &Nccl) -> Result<(), Failed> {
    let (one, two) = (nccl.unique_id()?, nccl.unique_id()?);
    same("length", one.as_bytes().len(), 128)?;
    same("two identifiers are the same", one == two, false)
}

/// Every way of joining: an error with the library's code and last words, the missing driver as a
/// hint, and a thread that is in no group afterwards.
fn a_failed_join_is_told_in_the_library_s_words(
    version: Version,
    nccl: &Nccl,
) -> Result<(), Failed> {
    let id = nccl.unique_id()?;
    let one = || JoinConfig::new(Rank::new(0), 1).with_name("lonely");
    let mut failures = vec![
        ("join", nccl.join(&id, one()).map(drop)),
        ("join_all", nccl.join_all(JoinAllConfig::new([0])).map(drop)),
    ];
    let polled = nccl.capabilities().join_deadline == Support::Native;
    same("a release with split", version >= Version::new(2, 18, 1), polled)?;
    let deadline = Duration::from_secs(30);
    failures.push(("join", nccl.join(&id, one().with_deadline(deadline)).map(drop)));
    let all = JoinAllConfig::new([0]).with_deadline(deadline);
    failures.push(("join_all", nccl.join_all(all).map(drop)));
    for (operation, outcome) in failures {
        let Err(error) = outcome else { return Err("a join without a GPU succeeded".into()) };
        let text = error.to_string();
        same(&text, error.kind(), ErrorKind::Device)?;
        same(&text, error.vendor_code().map(|code| code.0), Some(1))?;
        same(&text, error.operation(), Some(operation))?;
        same(&text, error.library().map(|(_, version)| version), Some(version))?;
        same(&text, error.last_error().is_some_and(|words| words.contains(NO_DRIVER)), true)?;
        same(&text, error.hint().is_some_and(|hint| hint.contains("no CUDA driver")), true)?;
        // SAFETY: takes nothing, and there is nothing to launch.
        let end = unsafe { (nccl.abi().table().group_end)() };
        same("the thread is in no group", end, ncclResult_t::INVALID_USAGE)?;
    }
    Ok(())
}

fn devices_are_missing_with_advice(_: Version, nccl: &Nccl) -> Result<(), Failed> {
    for outcome in [nccl.device(0).map(drop), nccl.device_count().map(drop)] {
        let Err(error) = outcome else { return Err("there is a device".into()) };
        let text = error.to_string();
        same(&text, error.kind(), ErrorKind::Device)?;
        same(&text, text.starts_with("CUDA: no CUDA driver: tried libcuda.so ("), true)?;
        same(&text, error.hint().is_some_and(|hint| hint.contains("NVIDIA driver")), true)?;
    }
    Ok(())
}

/// The text behind every failure of an init on a machine without a driver.
const NO_DRIVER: &str = "CUDA driver version is insufficient for CUDA runtime version";

/// The folder of the libraries.
const VARIABLE: &str = "COLLECTIVES_REAL_LIBRARIES";
