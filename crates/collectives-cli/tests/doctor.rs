//! `collectives doctor` as scripts use it: real files, real variables, the real exit code.
//!
//! What each check finds is tested beside the checks, on machines made for it. Here is what only the
//! program can show: that libraries are asked in other processes, and what becomes of those.

#![cfg(target_os = "linux")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command as Process,
};

use assert_cmd::Command;
use serde_json::Value;
use tempfile::TempDir;

/// The command, without what the caller's environment says.
fn doctor(arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("collectives").expect("the binary of this crate");
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let matters = ["COLLECTIVES_", "NCCL_", "SGLANG_", "VLLM_", "RUST_LOG", "LD_"];
        if matters.iter().any(|start| text.starts_with(start)) || text.ends_with("_VISIBLE_DEVICES")
        {
            command.env_remove(name);
        }
    }
    command.arg("doctor").args(arguments).timeout(TIMEOUT);
    command
}

/// Far more than any of these takes, so that what hangs fails.
const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(180);

/// The report of a run that ends with `code` and prints nothing else.
fn report(code: i32, variables: &[(&str, &str)]) -> Value {
    let mut command = doctor(&["--json"]);
    report_of(command.envs(variables.iter().copied()), code)
}

fn report_of(command: &mut Command, code: i32) -> Value {
    let result = command.assert().code(code).stderr("");
    serde_json::from_slice(&result.get_output().stdout).expect("JSON and nothing else")
}

/// The finding of this check.
fn finding<'a>(report: &'a Value, id: &str) -> &'a Value {
    let findings = report["findings"].as_array().expect("a list");
    let found = findings.iter().find(|finding| finding["id"] == id);
    found.unwrap_or_else(|| panic!("no {id} in {findings:#?}"))
}

fn text<'a>(finding: &'a Value, field: &str) -> &'a str {
    finding[field].as_str().unwrap_or_else(|| panic!("no {field} in {finding}"))
}

/// A library with NCCL's names and this piece of C in it.
fn library(code: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let stub = Path::new(env!("CARGO_MANIFEST_DIR")).join("../nccl-abi/tests/stub/nccl.c");
    let source = folder.path().join("more.c");
    fs::write(&source, code).expect("a file");
    let library = folder.path().join("libnccl.so.2");
    let status = Process::new("cc")
        .args(["-shared", "-fPIC", "-DVERSION=22703", "-o"])
        .args([library.as_path(), &stub, &source])
        .status()
        .expect("a C compiler, as CONTRIBUTING.md asks for");
    assert!(status.success(), "cc: {status}");
    (folder, library)
}

/// The variables that select NCCL, in this file, with no device: what a machine has of them is
/// hidden, so that the outcome is the same on all.
fn select(library: &Path) -> [(&str, &str); 3] {
    let path = library.to_str().expect("a path that is text");
    [
        ("COLLECTIVES_BACKEND", "nccl"),
        ("COLLECTIVES_NCCL_PATH", path),
        ("CUDA_VISIBLE_DEVICES", "-1"),
    ]
}

#[test]
fn the_mock_that_was_asked_for_works_and_nothing_is_wrong() {
    let report = report(0, &[("COLLECTIVES_BACKEND", "mock")]);
    assert_eq!(report["works"], true);
    assert_eq!(report["problem"], Value::Null);
    // What a machine has of NCCL and GPUs is worth a note at most.
    let checks = report["checks"].as_object().expect("every check");
    let fine = |state: &Value| state == "ok" || state == "note";
    assert!(checks.len() > 60 && checks.values().all(fine), "{}", report["findings"]);
}

#[test]
fn a_path_that_leads_nowhere_is_an_error_with_its_remedy() {
    let report = report(1, &select(Path::new("/no/such/libnccl.so.2")));
    let finding = finding(&report, "library-variable");
    assert_eq!(finding["severity"], "error");
    assert_eq!(text(finding, "found"), "COLLECTIVES_NCCL_PATH=/no/such/libnccl.so.2: no such file");
    assert!(text(finding, "remedy").contains("unset it"), "{finding}");
    assert!(finding["links"][0].as_str().is_some_and(|link| link.starts_with("https://")));
    assert_eq!(report["checks"]["library-variable"], "error");
    assert_eq!(report["works"], false);
}

#[test]
fn the_same_path_is_a_note_where_the_mock_is_selected() {
    let report = report(
        0,
        &[("COLLECTIVES_BACKEND", "mock"), ("COLLECTIVES_NCCL_PATH", "/no/such/libnccl.so.2")],
    );
    assert_eq!(finding(&report, "library-variable")["severity"], "note");
}

#[test]
fn a_truncated_library_is_refused_before_it_is_mapped() {
    let (_folder, library) = library("");
    let whole = fs::read(&library).expect("the library");
    fs::write(&library, &whole[..whole.len() / 2]).expect("a shorter file");
    let report = report(1, &select(&library));
    assert!(text(finding(&report, "library-variable"), "found").contains("truncated"));
}

#[test]
fn a_library_that_crashes_is_a_finding_and_the_report_is_whole() {
    let (_folder, library) = library(
        "#include <stdlib.h>\n#include <stdio.h>\n\
         __attribute__((constructor)) static void crash(void) {\n\
         fputs(\"last words\\n\", stderr); abort(); }\n",
    );
    let report = report(1, &select(&library));
    let finding = finding(&report, "probe-died");
    assert_eq!(finding["severity"], "error");
    assert!(text(finding, "found").contains("signal 6"), "{finding}");
    assert!(text(finding, "found").contains("last words"), "{finding}");
    assert!(report["problem"].as_str().is_some_and(|problem| problem.contains("signal 6")));

    // The mock does not open it, and works; what asked NCCL ended.
    let path = library.to_str().expect("text");
    let mock = self::report(0, &[("COLLECTIVES_BACKEND", "mock"), ("COLLECTIVES_NCCL_PATH", path)]);
    assert_eq!(mock["checks"]["probe-died"], "note");
    assert_eq!(mock["works"], true);
}

/// As a daemon that a driver starts: it outlives the process, with the process's ends of the pipes.
#[test]
fn what_a_library_starts_and_leaves_running_is_not_waited_for() {
    let life = tempfile::tempdir().expect("a temporary folder");
    let (_folder, library) = library(&format!(
        "#include <unistd.h>\n\
         __attribute__((constructor)) static void start(void) {{\n\
         if (fork() == 0) {{ while (access(\"{}\", F_OK) == 0) usleep(100000); _exit(0); }} }}\n",
        life.path().display()
    ));
    let report = report(1, &select(&library)); // for want of a device
    assert_eq!(report["nccl"]["library"]["version"], "2.27.3");
}

#[test]
fn what_a_library_prints_stays_out_of_the_json() {
    let (_folder, library) = library(
        "#include <stdio.h>\n\
         __attribute__((constructor)) static void greet(void) {\n\
         puts(\"NCCL version 2.27.3\"); fflush(stdout); }\n\
         __attribute__((destructor)) static void part(void) { puts(\"bye\"); }\n",
    );
    let report = report(1, &select(&library)); // for want of a device
    assert_eq!(report["nccl"]["library"]["version"], "2.27.3");
}

#[test]
fn only_one_copy_is_ever_loaded() {
    let (_used, used) = library("");
    // Whoever loads this one leaves a file behind.
    let mark = tempfile::tempdir().expect("a temporary folder");
    let mark = mark.path().join("loaded");
    let (_other, other) = library(&format!(
        "#include <stdio.h>\n\
         __attribute__((constructor)) static void mark(void) {{\n\
         FILE *file = fopen(\"{}\", \"w\"); if (file) fclose(file); }}\n\
         const char release[] = \"NCCL version 2.18.3+cuda12.1\";\n",
        mark.display()
    ));
    let folder = other.parent().and_then(Path::to_str).expect("text");
    let [backend, path, hidden] = select(&used);
    let report = report(1, &[backend, path, hidden, ("LD_LIBRARY_PATH", folder)]);
    let opened = report["nccl"]["library"]["path"].as_str().map(PathBuf::from);
    assert_eq!(opened, used.canonicalize().ok());
    assert!(!mark.exists(), "the other copy was loaded");
    // It was looked at, and it does leave its mark.
    assert!(text(finding(&report, "library-needs-variable"), "cause").contains("finds none"));
    self::report(1, &select(&other));
    assert!(mark.exists(), "the mark shows nothing");
}

#[test]
fn an_interface_that_is_not_there_is_named_with_those_that_are() {
    let (_folder, library) = library("");
    let [backend, path, hidden] = select(&library);
    let report = report(1, &[backend, path, hidden, ("NCCL_SOCKET_IFNAME", "eth99")]);
    let finding = finding(&report, "socket-ifname");
    assert_eq!(finding["severity"], "error");
    assert!(text(finding, "found").contains("eth99"), "{finding}");
}

#[test]
fn a_misspelt_variable_is_told_by_what_the_library_reads() {
    let (_folder, library) = library("const char *name(void) { return \"NCCL_P2P_DISABLE\"; }\n");
    let [backend, path, hidden] = select(&library);
    let report = report(1, &[backend, path, hidden, ("NCCL_P2P_DISABEL", "1")]);
    assert!(text(finding(&report, "variable-unknown"), "remedy").contains("NCCL_P2P_DISABLE?"));
}

#[test]
fn a_file_of_settings_is_judged_like_the_environment() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::write(folder.path().join("nccl.conf"), "NCCL_IB_DISABLE=true\n").expect("a file");
    let (_folder, library) = library("");
    let whole = folder.path().join("nccl.conf").display().to_string();
    // A relative path starts where the program does.
    for file in [whole.as_str(), "nccl.conf"] {
        let mut command = doctor(&["--json"]);
        command.envs(select(&library)).env("NCCL_CONF_FILE", file).current_dir(folder.path());
        let report = report_of(&mut command, 1);
        assert!(text(finding(&report, "conf-file"), "found").contains("NCCL_IB_DISABLE=true"));
        let value = finding(&report, "variable-value");
        assert!(text(value, "found").ends_with("nccl.conf)"), "{value}");
    }
}

#[test]
fn people_read_one_block_for_each_finding_and_a_summary() {
    let mut command = doctor(&[]);
    command.env("COLLECTIVES_BACKEND", "nccl").env("COLLECTIVES_NCCL_PATH", "/no/such/file.so");
    let result = command.assert().code(1).stderr("");
    let text = String::from_utf8_lossy(&result.get_output().stdout).into_owned();
    let block =
        text.find("  error: library-variable\n    what  COLLECTIVES_NCCL_PATH=/no/such/file.so");
    assert!(block.is_some(), "{text}");
    assert!(text.contains("\n    why   ") && text.contains("\n    do    "), "{text}");
    assert!(text.lines().last().is_some_and(|line| line.contains(" checks: ")), "{text}");
}

#[test]
fn the_list_names_every_check_once() {
    let result = doctor(&["--list"]).assert().success().stderr("");
    let text = String::from_utf8_lossy(&result.get_output().stdout).into_owned();
    let ids: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with(' '))
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert!(ids.len() > 60 && ids.contains(&"shm-small"), "{text}");
    let mut once = ids.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), ids.len(), "{text}");
}
