//! `collectives mock install`: what it lays out, and what it refuses.
#![cfg(unix)]

use std::{fs, os::unix::fs::MetadataExt as _, path::Path, process::Command as Shell};

use assert_cmd::Command;

/// The command, with a library that is only a file.
fn install(library: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("collectives").expect("the binary of this crate");
    command.env("COLLECTIVES_MOCK_LIB", library).args(["mock", "install"]).args(arguments);
    command
}

fn library(folder: &Path) -> std::path::PathBuf {
    let library = folder.join("built.so");
    fs::write(&library, "first").expect("a file");
    library
}

#[test]
fn all_names_are_one_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let (library, dir) = (library(folder.path()), folder.path().join("a b/lib"));
    let dir_text = dir.to_str().expect("text");
    install(&library, &[dir_text]).assert().success();
    let names = [
        "libnccl.so",
        "libnccl.so.2",
        "librccl.so",
        "librccl.so.1",
        "libcuda.so",
        "libcuda.so.1",
        "libamdhip64.so.5",
        "libamdhip64.so.6",
        "libamdhip64.so.7",
        "libcudart.so.12",
        "libcudart.so.13",
    ];
    let inode = |name: &str| fs::metadata(dir.join(name)).expect(name).ino();
    assert!(names.iter().all(|name| inode(name) == inode("libcollectives_mock_abi.so")));

    // A second time it brings the newer library.
    fs::write(&library, "second").expect("a file");
    install(&library, &[dir_text]).assert().success();
    assert_eq!(fs::read_to_string(dir.join("libnccl.so.2")).expect("a link"), "second");
}

#[test]
fn a_shell_can_take_the_environment() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("it's here");
    let output = install(&library(folder.path()), &[dir.to_str().expect("text"), "--print-env"]);
    let output = { output }.assert().success();
    let lines = String::from_utf8(output.get_output().stdout.clone()).expect("text");
    let script = format!("{lines}\nprintf %s \"$LD_LIBRARY_PATH\"");
    for (before, after) in [(None, ""), (Some("/other"), ":/other")] {
        let mut shell = Shell::new("sh");
        shell.args(["-euc", &script]).env_remove("LD_LIBRARY_PATH");
        shell.envs(before.map(|path| ("LD_LIBRARY_PATH", path)));
        let told = shell.output().expect("a shell").stdout;
        assert_eq!(String::from_utf8_lossy(&told), format!("{}{after}", dir.display()));
    }
}

#[test]
fn other_libraries_are_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let (library, dir) = (library(folder.path()), folder.path().join("lib"));
    fs::create_dir(&dir).expect("a folder");
    fs::write(dir.join("libcuda.so.1"), "the real one").expect("a file");
    let refused = install(&library, &[dir.to_str().expect("text")]).assert().code(1);
    let text = String::from_utf8_lossy(&refused.get_output().stderr).into_owned();
    assert!(text.contains("libcuda.so.1 exists, and is not the mock's"), "{text}");
    assert_eq!(fs::read_dir(&dir).expect("a folder").count(), 1, "nothing was written");
}

#[test]
fn a_missing_library_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let (dir, nowhere) = (folder.path().join("lib"), folder.path().join("nowhere.so"));
    let refused = install(&nowhere, &[dir.to_str().expect("text")]).assert().code(1);
    let text = String::from_utf8_lossy(&refused.get_output().stderr).into_owned();
    assert!(text.contains("COLLECTIVES_MOCK_LIB") && text.contains("nowhere.so"), "{text}");

    // Beside a command without one it says how to come by it.
    let command = folder.path().join("collectives");
    fs::copy(assert_cmd::cargo::cargo_bin("collectives"), &command).expect("a copy");
    let refused = Command::new(&command)
        .env_remove("COLLECTIVES_MOCK_LIB")
        .args(["mock", "install"])
        .arg(&dir)
        .assert()
        .code(1);
    let text = String::from_utf8_lossy(&refused.get_output().stderr).into_owned();
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(text.contains("cargo build --release --package collectives-mock-abi"), "{text}");
}
