//! The library under the names of those that it stands for, and programs that find it there.

use std::{
    env,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

/// Runs this very program again with the library in place of CUDA, NCCL and HIP, unless it is that
/// run already: then the answer is `None`.
pub(crate) fn rerun_on_the_mock() -> Option<ExitCode> {
    if env::var_os(CHILD).is_some() {
        return None;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    install(folder.path());
    let status = Command::new(env::current_exe().expect("a test has a path"))
        .args(env::args_os().skip(1))
        .env(CHILD, "1")
        .env("LD_LIBRARY_PATH", folder.path())
        .env("COLLECTIVES_MOCK_DEVICES", "4")
        .env_remove("CUDA_VISIBLE_DEVICES")
        .env_remove("HIP_VISIBLE_DEVICES")
        .env_remove("ROCR_VISIBLE_DEVICES")
        .status()
        .expect("the test runs itself");
    Some(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Links the library, which lies beside this test, under all names.
fn install(folder: &Path) {
    for name in NAMES {
        symlink(library(), folder.join(name)).expect("a fresh folder takes a link");
    }
}

fn library() -> PathBuf {
    let test = env::current_exe().expect("a test has a path");
    test.with_file_name("libcollectives_mock_abi.so")
}

/// As programs ask for them.
const NAMES: [&str; 6] = [
    "libcuda.so.1",
    "libcudart.so.13",
    "libnccl.so",
    "libnccl.so.2",
    "libamdhip64.so.7",
    "librccl.so.1",
];

/// Tells this program that it is the child.
const CHILD: &str = "COLLECTIVES_TEST_ON_THE_MOCK";
