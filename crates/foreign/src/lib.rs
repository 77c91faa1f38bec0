//! Tests on AMD's own libraries, from the packages of another Linux system.
//!
//! `scripts/fetch-rocm` unpacks Debian's RCCL with everything below it, including the C library, which
//! is newer than that of most systems. So no process of this system can open it. But the unpacked
//! dynamic loader can start any program, and then every library comes from the same [`Tree`]:
//!
//! ```text
//! rccl-2.27.7/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 --library-path … the-test
//! ```
//!
//! A test of this kind has a `main` that calls [`run`] and nothing else. It makes one trial per
//! release and case, and each trial starts the test again, under the release's loader and with an
//! empty environment, for that one case. A process of its own also lets a case test what would spoil
//! or end a shared one: last errors, groups that stay open, words on standard output, crashes.
//!
//! `COLLECTIVES_REAL_LIBRARIES` names the folder of the trees; what isn't there is ignored, by name.

use std::{
    env,
    ffi::{OsStr, OsString},
    fmt::Debug,
    fs, io,
    io::{Read, Seek},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode, ExitStatus},
    time::Duration,
};

use libtest_mimic::{Arguments, Failed, Trial};
use wait_timeout::ChildExt;

/// A release of RCCL that `scripts/fetch-rccl` knows.
#[derive(Clone, Copy, Debug)]
pub struct Release {
    /// As the script names it, and users do.
    pub name: &'static str,
    /// What `ncclGetVersion` tells.
    pub version: i32,
    /// What `hipRuntimeGetVersion` of the HIP below it tells.
    pub hip_version: i32,
    /// The file name of that HIP.
    pub hip: &'static str,
    /// The file name of the system management library that it needs besides.
    pub smi: &'static str,
}

/// The two releases that Debian has: the oldest RCCL that this project supports, and ROCm 7.2's.
pub const RELEASES: [Release; 2] = [
    Release {
        name: "2.13.4",
        version: 21_304,
        hip_version: 50_731_921,
        hip: "libamdhip64.so.5",
        smi: "librocm_smi64.so.1",
    },
    Release {
        name: "2.27.7",
        version: 22_707,
        hip_version: 70_253_211,
        hip: "libamdhip64.so.7",
        smi: "librocm_smi64.so.7",
    },
];

impl Release {
    /// Its unpacked packages.
    ///
    /// # Errors
    ///
    /// What is missing, as the name of a trial says it.
    pub fn tree(&self) -> Result<Tree, String> {
        Tree::find(&format!("rccl-{}", self.name))
    }
}

/// One thing that is tried of each release; made by [`case!`].
#[derive(Clone, Copy)]
pub struct Case {
    name: &'static str,
    /// Version code of the first release that it is about.
    since: i32,
    /// What is done, in a process of its own.
    run: fn(&Release, &Path) -> Result<(), Failed>,
    /// What that process must have left behind.
    check: fn(&Release, &Ended) -> Result<(), Failed>,
    /// Whether it is about a machine without an AMD GPU.
    without_gpu: bool,
    /// A library that the process must not find.
    hidden: Option<fn(&Release) -> &'static str>,
}

impl Case {
    /// A case that passes if its function does, which is given the path of the release's
    /// `librccl.so.1`; with or without devices.
    pub const fn new(name: &'static str, run: fn(&Release, &Path) -> Result<(), Failed>) -> Self {
        let check = |_: &Release, ended: &Ended| ended.well();
        Self { name, since: 0, run, check, without_gpu: false, hidden: None }
    }

    /// About releases from this version code on.
    pub const fn since(self, since: i32) -> Self {
        Self { since, ..self }
    }

    /// About a machine without an AMD GPU.
    pub const fn without_gpu(self) -> Self {
        Self { without_gpu: true, ..self }
    }

    /// About a process that does not find this library.
    pub const fn without(self, library: fn(&Release) -> &'static str) -> Self {
        Self { hidden: Some(library), ..self }
    }

    /// Passes only if the process also left behind what it must; see [`Ended::well`].
    pub const fn checked(self, check: fn(&Release, &Ended) -> Result<(), Failed>) -> Self {
        Self { check, ..self }
    }
}

/// Names a [`Case`] by its function.
#[macro_export]
macro_rules! case {
    ($function:ident) => {
        $crate::Case::new(stringify!($function), $function)
    };
}

/// Runs every case on every release: the whole `main` of a test without the harness.
pub fn run(cases: &'static [Case]) -> ExitCode {
    if let Some(title) = env::var_os(CASE) {
        return run_one(cases, &title);
    }
    let trials = RELEASES
        .into_iter()
        .flat_map(|release| cases.iter().map(move |case| trial(release, case)))
        .collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// One case on one release; ignored, with the reason in its name, where it can't be run.
fn trial(release: Release, case: &'static Case) -> Trial {
    let runnable = match case {
        case if release.version < case.since => Err("the release lacks it".to_owned()),
        case if case.without_gpu && Path::new("/dev/kfd").exists() => {
            Err("needs a machine without an AMD GPU".to_owned())
        }
        Case { hidden: Some(hidden), .. } if is_installed(hidden(&release)) => {
            Err(format!("needs a machine without {}", hidden(&release)))
        }
        _ => release.tree(),
    };
    match runnable {
        Ok(tree) => Trial::test(format!("[RCCL {}] {}", release.name, case.name), move || {
            let ended = start(&release, &tree, case)?;
            (case.check)(&release, &ended)
        }),
        Err(reason) => {
            let title = format!("[RCCL {}] [{reason}] {}", release.name, case.name);
            Trial::test(title, move || Err(reason.into())).with_ignored_flag(true)
        }
    }
}

/// Whether this system's own packages have the library, where every dynamic loader looks last.
fn is_installed(library: &str) -> bool {
    ["/lib", "/usr/lib", "/lib64", "/usr/lib64", "/lib/x86_64-linux-gnu"]
        .iter()
        .any(|folder| Path::new(folder).join(library).exists())
}

/// Starts this test again for one case, under the tree's loader, and waits for its end.
fn start(release: &Release, tree: &Tree, case: &Case) -> Result<Ended, Failed> {
    let work = tempfile::tempdir()?;
    let libraries = match case.hidden {
        None => tree.libraries(),
        Some(hidden) => {
            link_all_but(hidden(release), &tree.libraries(), work.path())?;
            work.path().to_owned()
        }
    };
    let (mut stdout, mut stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    let mut child = Command::new(tree.loader())
        // Without this system's cache, so that a library that is hidden is not found in it.
        .arg("--inhibit-cache")
        .arg("--library-path")
        .arg(&libraries)
        .arg(env::current_exe()?)
        .env_clear()
        .env(CASE, title(release, case))
        .env(LIBRARY, libraries.join("librccl.so.1"))
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?)
        .spawn()?;
    let Some(status) = child.wait_timeout(DEADLINE)? else {
        child.kill()?;
        child.wait()?;
        return Err(format!("still running after {DEADLINE:?}").into());
    };
    Ok(Ended { status, stdout: read_back(&mut stdout)?, stderr: read_back(&mut stderr)? })
}

/// Fills a folder with links to the files of another one, except for one library.
fn link_all_but(hidden: &str, from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_name() != hidden {
            std::os::unix::fs::symlink(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

fn read_back(file: &mut fs::File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The part of a trial that the started process does.
fn run_one(cases: &[Case], wanted: &OsStr) -> ExitCode {
    let pair = RELEASES
        .iter()
        .flat_map(|release| cases.iter().map(move |case| (release, case)))
        .find(|(release, case)| title(release, case) == wanted);
    let (Some((release, case)), Some(library)) = (pair, env::var_os(LIBRARY)) else {
        eprintln!("{CASE} is set, but names no case of this test, or {LIBRARY} is not");
        return ExitCode::FAILURE;
    };
    match (case.run)(release, Path::new(&library)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            eprintln!("{}", failed.message().unwrap_or("failed"));
            ExitCode::FAILURE
        }
    }
}

fn title(release: &Release, case: &Case) -> OsString {
    format!("{} {}", release.name, case.name).into()
}

/// How the process of a case ended, and what it had said.
#[derive(Debug)]
pub struct Ended {
    /// Its status.
    pub status: ExitStatus,
    /// Its standard output, where RCCL writes too.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Ended {
    /// Passes if the case did.
    ///
    /// # Errors
    ///
    /// What the process said before it failed.
    pub fn well(&self) -> Result<(), Failed> {
        if self.status.success() {
            return Ok(());
        }
        let end = match self.status.signal() {
            Some(signal) => format!("ended by signal {signal}"),
            None => "failed".to_owned(),
        };
        Err(format!("{end}\n{}{}", self.stderr, self.stdout).into())
    }
}

/// Packages that are unpacked in a folder of their own.
#[derive(Clone, Debug)]
pub struct Tree {
    root: PathBuf,
}

impl Tree {
    /// The tree of this name in the folder that `COLLECTIVES_REAL_LIBRARIES` names.
    ///
    /// # Errors
    ///
    /// What is missing, as the name of a trial says it.
    pub fn find(name: &str) -> Result<Self, String> {
        let Some(folder) = env::var_os(FOLDER) else {
            return Err(format!("needs {FOLDER}: run scripts/real-libraries"));
        };
        let root = Path::new(&folder).join(name);
        if root.is_dir() { Ok(Self { root }) } else { Err(format!("needs {name} in {FOLDER}")) }
    }

    /// The folder of its headers.
    pub fn headers(&self) -> PathBuf {
        self.root.join("usr/include")
    }

    /// The folder of its libraries.
    fn libraries(&self) -> PathBuf {
        self.root.join("usr/lib/x86_64-linux-gnu")
    }

    /// Its dynamic loader.
    fn loader(&self) -> PathBuf {
        self.libraries().join("ld-linux-x86-64.so.2")
    }
}

/// Fails with both values, and what they are, if they differ.
///
/// # Errors
///
/// If they differ.
pub fn same<T: PartialEq + Debug>(what: &str, found: T, expected: T) -> Result<(), Failed> {
    if found == expected {
        return Ok(());
    }
    Err(format!("{what}: {found:?}, expected {expected:?}").into())
}

/// The folder of the trees.
const FOLDER: &str = "COLLECTIVES_REAL_LIBRARIES";

/// Tells a started process which release and case are its own.
const CASE: &str = "COLLECTIVES_FOREIGN_CASE";

/// Tells a started process where the library is.
const LIBRARY: &str = "COLLECTIVES_FOREIGN_LIBRARY";

/// More than any case takes, by far; what hangs shall be seen.
const DEADLINE: Duration = Duration::from_secs(120);
