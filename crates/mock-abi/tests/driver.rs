//! A C program that asks the CUDA driver what documentation does not say, and what NVIDIA's driver
//! answered: see `c/driver.c`.

mod common;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use libtest_mimic::{Arguments, Failed, Trial};

fn main() {
    let arguments = Arguments::from_args();
    common::run_on_the_mock();
    let has_compiler = Command::new("cc").arg("--version").output().is_ok();
    let name = "a_c_program_is_answered_as_on_a_gpu";
    let trial = if has_compiler {
        Trial::test(name, a_c_program_is_answered_as_on_a_gpu)
    } else {
        let name = format!("[needs a C compiler] {name}");
        Trial::test(name, || Err("not run".into())).with_ignored_flag(true)
    };
    libtest_mimic::run(&arguments, vec![trial]).exit();
}

fn a_c_program_is_answered_as_on_a_gpu() -> Result<(), Failed> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c/driver.c");
    let program = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("driver");
    let compiled = Command::new("cc")
        .args(["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror"])
        .arg(source)
        .arg("-o")
        .arg(&program)
        .args(["-ldl", "-lpthread"])
        .status()?;
    if !compiled.success() {
        return Err(format!("the compiler ended with {compiled}").into());
    }
    // What guards look for the program does not do.
    ["none", "all"].into_iter().try_for_each(|guards| is_answered_as_on_a_gpu(&program, guards))
}

fn is_answered_as_on_a_gpu(program: &Path, guards: &str) -> Result<(), Failed> {
    let output = Command::new(program).env("COLLECTIVES_MOCK_GUARDS", guards).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let want = include_str!("c/driver.expected");
    let differ = want.lines().zip(text.lines()).find(|(want, got)| want != got);
    if let Some((want, got)) = differ {
        let errors = String::from_utf8_lossy(&output.stderr);
        let text = format!("a GPU answers  {want}\nthe mock answers {got}");
        return Err(format!("{text}\nwith guards: {guards}\n{errors}").into());
    }
    match (output.status.success(), want.lines().count() == text.lines().count()) {
        (true, true) => Ok(()),
        _ => Err(format!("it ended with {}, after {text}", output.status).into()),
    }
}
