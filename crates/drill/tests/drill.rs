//! A short drill, of each case one round, where no GPU is needed.

#![cfg(target_os = "linux")]

use std::{env, fs, os::unix::fs::symlink, path::PathBuf, process::Command};

use serde_json::Value;

/// Runs a drill. How fast errors come is not judged, as other tests may take the processors.
fn drill(backend: &str, folder: Option<PathBuf>) {
    let mut program = Command::new(env!("CARGO_BIN_EXE_collectives-drill"));
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("COLLECTIVES_") || text.ends_with("_VISIBLE_DEVICES") {
            program.env_remove(name);
        }
    }
    program.args(["--backend", backend, "-n", "3", "--rounds", "9", "--deadline", "1"]);
    program.args(["--grace", "60", "--json"]);
    if let Some(folder) = folder {
        program.env("LD_LIBRARY_PATH", folder);
    }
    let output = program.output().expect("it can be started");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let rounds = report["rounds"].as_array().expect("a list");
    assert_eq!(rounds.len(), 9, "{errors}");
    for round in rounds {
        let told = round["told"].as_array().expect("a list");
        assert!(told.len() >= 2, "two of three ranks survive: {round}");
        let want = if round["case"] == "smaller-collective" { 3 } else { 2 };
        assert_eq!(round["went_on"], want, "{round}");
    }
    assert_eq!(report["gpu_memory"].is_array(), backend != "mock", "memory of GPUs is looked at");
}

#[test]
fn on_the_mock() {
    drill("mock", None);
}

#[test]
fn on_nccl_over_the_mocks_library() {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("drill");
    fs::create_dir_all(&folder).expect("a folder");
    let program = env::current_exe().expect("this program");
    let library = program.with_file_name("libcollectives_mock_abi.so");
    assert!(library.exists(), "{} is built with this test", library.display());
    for name in ["libcuda.so.1", "libnccl.so.2"] {
        // An earlier run may have left it.
        let _ = symlink(&library, folder.join(name));
    }
    drill("nccl", Some(folder));
}
