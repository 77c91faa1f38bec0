//! Running a test program again where the loader finds the library of `collectives-mock-abi` in place
//! of NCCL and CUDA.

use std::{env, path::PathBuf};

/// Where the library lies that stands for NCCL and CUDA, if this program runs on it.
pub(crate) fn folder() -> Option<PathBuf> {
    env::var_os(MOCK_ABI).map(PathBuf::from)
}

/// Runs this program again with the library, which lies beside it, and with these variables. Comes
/// back only with what was wrong.
#[cfg(target_os = "linux")]
pub(crate) fn run_again<const N: usize>(variables: [(&str, &str); N]) -> std::io::Error {
    use std::os::unix::process::CommandExt as _;

    let run = || {
        let folder = install()?;
        let mut again = std::process::Command::new(env::current_exe()?);
        again.args(env::args_os().skip(1)).env(MOCK_ABI, &folder).env("LD_LIBRARY_PATH", &folder);
        again.envs(variables);
        for hidden in ["CUDA_VISIBLE_DEVICES", "COLLECTIVES_MOCK_DEVICES"] {
            again.env_remove(hidden);
        }
        Err(again.exec())
    };
    run().map_or_else(|error| error, |never: std::convert::Infallible| match never {})
}

/// Links the library under the names by which it is looked for.
#[cfg(target_os = "linux")]
fn install() -> std::io::Result<PathBuf> {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("mock-abi");
    std::fs::create_dir_all(&folder)?;
    let library = env::current_exe()?.with_file_name("libcollectives_mock_abi.so");
    for name in ["libamdhip64.so.7", "libcuda.so.1", "libnccl.so.2", "librccl.so.1"] {
        // An earlier run may have left it.
        match std::os::unix::fs::symlink(&library, folder.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(folder)
}

const MOCK_ABI: &str = "COLLECTIVES_TEST_MOCK_ABI";
