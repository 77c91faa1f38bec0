//! `collectives mock install`: installs the mock's C library under the names of the libraries that it
//! replaces.
//!
//! All names are links to one file: a program that opens two of them gets one library, with one
//! state.

use std::{
    env,
    error::Error,
    fmt, fs,
    io::{self, Write as _},
    path::{self, Path, PathBuf},
};

use clap::Subcommand;

use crate::Failure;

/// Use the mock as a C library: NCCL, RCCL, CUDA and HIP on a CPU
#[derive(clap::Args, Debug)]
#[command(arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install the library into DIR as libnccl, librccl, libcuda, libamdhip64, libcudart
    ///
    /// The library is the file libcollectives_mock_abi.so beside this command, or that of
    /// COLLECTIVES_MOCK_LIB. DIR gets a copy of it and a link for each name.
    Install {
        /// The directory; it is made if it does not exist
        dir: PathBuf,
        /// Print only the shell command that puts it to use, for 'eval'
        #[arg(long)]
        print_env: bool,
    },
}

/// What programs open, and what linkers look for.
const NAMES: [&str; 11] = [
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
/// For linkers as well: `-lcudart`, `-lamdhip64`.
const FOR_LINKERS: [&str; 2] = ["libcudart.so", "libamdhip64.so"];

/// The file that all of them are links to.
const LIBRARY: &str = "libcollectives_mock_abi.so";
/// Where the library is, if not beside the command.
const VARIABLE: &str = "COLLECTIVES_MOCK_LIB";

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let Command::Install { dir, print_env } = &args.command;
    let library = find(env::var_os(VARIABLE).map(PathBuf::from), env::current_exe().ok())?;
    let dir = path::absolute(dir).map_err(|error| Trouble::at("cannot find", dir, error))?;
    install(&library, &dir)?;
    let mut out = io::stdout();
    if *print_env {
        writeln!(out, "{}", environment(&dir))?;
        return Ok(());
    }
    writeln!(out, "{} from {}", dir.join(LIBRARY).display(), library.display())?;
    for name in names() {
        writeln!(out, "  {name}")?;
    }
    writeln!(out, "\nto use it: {}", environment(&dir))?;
    Ok(())
}

fn names() -> impl Iterator<Item = &'static str> {
    NAMES.into_iter().chain(FOR_LINKERS)
}

/// The library to install: the one of the variable, or the one beside the command.
fn find(named: Option<PathBuf>, command: Option<PathBuf>) -> Result<PathBuf, Trouble> {
    if let Some(path) = named {
        return match path.is_file() {
            true => Ok(path),
            false => {
                let path = path.display();
                Err(Trouble::new(format!("{VARIABLE} names '{path}', which is not a file")))
            }
        };
    }
    let beside = command.map(|command| command.with_file_name(LIBRARY));
    beside.clone().filter(|path| path.is_file()).ok_or_else(|| {
        let place = beside.map_or_else(String::new, |path| format!(" at {}", path.display()));
        Trouble::new(format!(
            "the mock's library was not found{place}; build it with 'cargo build --release \
             --package collectives-mock-abi', or set {VARIABLE} to its path"
        ))
    })
}

/// Copies the library, and makes the links. Nothing is touched where a name is taken.
fn install(library: &Path, dir: &Path) -> Result<(), Trouble> {
    fs::create_dir_all(dir).map_err(|error| Trouble::at("cannot make", dir, error))?;
    let missing = |name: &&str| !is_ours(&dir.join(name));
    let missing: Vec<_> = names().filter(missing).collect();
    for name in &missing {
        let path = dir.join(name);
        if path.symlink_metadata().is_ok() {
            let path = path.display();
            return Err(Trouble::new(format!(
                "{path} exists, and is not the mock's; install into a directory of its own"
            )));
        }
    }
    // Moved into place, since programs may be running on what is there.
    let (target, fresh) = (dir.join(LIBRARY), dir.join(format!(".{LIBRARY}.new")));
    let copied = fs::copy(library, &fresh).and_then(|_| fs::rename(&fresh, &target));
    copied.map_err(|error| Trouble::at("cannot write", &target, error))?;
    for name in missing {
        let path = dir.join(name);
        link(&path).map_err(|error| Trouble::at("cannot link", &path, error))?;
    }
    Ok(())
}

fn is_ours(path: &Path) -> bool {
    fs::read_link(path).is_ok_and(|target| target == Path::new(LIBRARY))
}

#[cfg(unix)]
fn link(path: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(LIBRARY, path)
}

#[cfg(not(unix))]
fn link(_path: &Path) -> io::Result<()> {
    Err(io::Error::from(io::ErrorKind::Unsupported))
}

/// What a shell does to find the library before any other.
fn environment(dir: &Path) -> String {
    let quoted = dir.display().to_string().replace('\'', r"'\''");
    format!("export LD_LIBRARY_PATH='{quoted}'\"${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}\"")
}

/// Why nothing was installed.
#[derive(Debug)]
struct Trouble {
    message: String,
    source: Option<io::Error>,
}

impl Trouble {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), source: None }
    }

    fn at(what: &str, path: &Path, source: io::Error) -> Self {
        Self { message: format!("{what} {}", path.display()), source: Some(source) }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Trouble {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}
