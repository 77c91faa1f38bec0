//! The library under the names of those that it stands for, and programs that find it there.

use std::{
    env, fs,
    io::ErrorKind,
    os::unix::{fs::symlink, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
};

/// Runs this very program again with the library in place of CUDA, NCCL and HIP, unless it is that
/// run already.
pub(crate) fn run_on_the_mock() {
    if env::var_os(CHILD).is_some() {
        return;
    }
    let folder = install();
    let error = Command::new(env::current_exe().expect("a test has a path"))
        .args(env::args_os().skip(1))
        .env(CHILD, "1")
        .env("LD_LIBRARY_PATH", folder)
        .env("COLLECTIVES_MOCK_DEVICES", "4")
        .env_remove("CUDA_VISIBLE_DEVICES")
        .env_remove("HIP_VISIBLE_DEVICES")
        .env_remove("ROCR_VISIBLE_DEVICES")
        .exec();
    panic!("the test runs itself: {error}");
}

/// Links the library, which lies beside this test, under all names.
fn install() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mock-abi");
    fs::create_dir_all(&folder).expect("cargo made the folder above");
    let test = env::current_exe().expect("a test has a path");
    let library = test.with_file_name("libcollectives_mock_abi.so");
    for name in NAMES {
        // Another test may have been there first.
        match symlink(&library, folder.join(name)) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => panic!("{name}: {error}"),
            _ => {}
        }
    }
    folder
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
