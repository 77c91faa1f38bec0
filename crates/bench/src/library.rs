//! `collectives-bench library`: what the mock's C interface adds to the mock.
//!
//! A C program (`benches/peers/nccl.c`) calls the mock through its `libnccl.so`, and
//! `collectives perf` calls it directly; ranks are processes on all sides.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{
    machine,
    operation::{Operation, Series},
    ours::{Backend, Ours},
    parse::{self, Run},
    peers::{self, BUILD},
    process::{self, Failure},
    report::{Case, Report, Role},
    rounds::{Contender, Limits, Rounds},
    sizes::Sizes,
};

/// Measure the mock through its libnccl.so against the mock itself (ten minutes)
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Operations to measure
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "all_reduce")]
    ops: Vec<Operation>,

    /// Numbers of ranks
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "2",
          value_parser = clap::value_parser!(u32).range(1..=256))]
    ranks: Vec<u32>,

    /// How calls are waited for: loop, sync-each
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "loop,sync-each")]
    series: Vec<Series>,

    #[command(flatten)]
    sizes: Sizes,

    /// Rounds of each configuration; in one, every side runs once
    #[arg(long, value_name = "N", default_value = "9",
          value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Calls timed at each size, on all sides [default: each side's own, by size and time]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    iters: Option<u32>,

    /// Start no round that would probably end later than this
    #[arg(long, value_name = "SECONDS", default_value = "3600")]
    seconds: u64,

    /// End a run of one side that takes longer
    #[arg(long, value_name = "SECONDS", default_value = "120",
          value_parser = clap::value_parser!(u64).range(1..))]
    run_seconds: u64,

    /// Folder with `collectives` and the library, built before [default: built here, optimised]
    #[arg(long, value_name = "FOLDER")]
    bin: Option<PathBuf>,

    /// Folder with the source of the C program
    #[arg(long, value_name = "FOLDER", default_value = "benches/peers")]
    sources: PathBuf,

    /// Folder that gets library.json
    #[arg(long, value_name = "FOLDER", default_value = "target/bench")]
    out: PathBuf,
}

/// Builds, measures, writes the report.
pub(crate) fn run(args: &Args) -> Result<()> {
    let Args { sources, sizes, iters, .. } = args;
    peers::check(sources, &args.series)?;
    let bin = match &args.bin {
        Some(bin) => bin.clone(),
        None => peers::build_ours(&["collectives-cli", "collectives-mock-abi"])?,
    };
    let folder = tempfile::tempdir().context("a folder for the program")?;
    let program = compile(sources, folder.path())?;
    let library = bin.join(LIBRARY_FILE);
    let library = library.canonicalize().with_context(|| library.display().to_string())?;

    let sizes = sizes.or_max(LARGEST);
    let through = |memory| -> Box<dyn Contender> {
        let (program, library) = (program.clone(), library.clone());
        Box::new(Through { program, library, memory, sizes, iters: *iters })
    };
    let binary = bin.join("collectives");
    let ours = Ours { binary, sizes, iters: *iters, backend: Backend::MockProcesses };
    let contenders = vec![Box::new(ours) as _, through(Memory::Library), through(Memory::Plain)];

    let mut notes = vec!["float32, sum where it reduces, root 0; ranks are processes".to_owned()];
    if let Some(iters) = iters {
        notes.push(format!("{iters} calls a size"));
    }
    let limits = Limits {
        run: Duration::from_secs(args.run_seconds),
        whole: Duration::from_secs(args.seconds),
    };
    let report = Report::new(vec![machine::cpu()], notes);
    let path = args.out.join(FILE);
    let steps = peers::steps(&args.ops, &args.ranks, &args.series, args.rounds);
    let failures = Rounds::new(contenders, report, path.clone(), limits).run(&steps)?;
    eprintln!("{}", path.display());
    if !failures.is_empty() {
        bail!("not all sides ran:\n{}", failures.join("\n"));
    }
    Ok(())
}

/// The report's name in its folder.
pub(crate) const FILE: &str = "library.json";

/// The side that has memory like `collectives perf`.
pub(crate) const THROUGH: &str = "libnccl.so";

/// The side that has memory of its own.
pub(crate) const PLAIN: &str = "libnccl.so, plain memory";

/// The C program on the mock's library.
struct Through {
    program: PathBuf,
    library: PathBuf,
    memory: Memory,
    sizes: Sizes,
    iters: Option<u32>,
}

/// Where its buffers are.
#[derive(Clone, Copy)]
enum Memory {
    /// In memory of `ncclMemAlloc`, which the other ranks map.
    Library,
    /// In memory of `malloc`, which they cannot.
    Plain,
}

impl Contender for Through {
    fn name(&self) -> &str {
        match self.memory {
            Memory::Library => THROUGH,
            Memory::Plain => PLAIN,
        }
    }

    fn role(&self) -> Role {
        Role::Ours
    }

    fn absent(&self, _: Case) -> Option<String> {
        None
    }

    fn run(&self, case: Case, _: usize, limit: Duration) -> Result<Run, Failure> {
        let Case { op, ranks, series } = case;
        let ranks = ranks.to_string();
        let mut command = Command::new(&self.program);
        command.arg(&self.library).arg(match self.memory {
            Memory::Library => "device",
            Memory::Plain => "host",
        });
        command.args([op.name(), "-n", &ranks]).args(self.sizes.arguments());
        command.args((series == Series::SyncEach).then_some("--sync-each"));
        if let Some(iters) = self.iters {
            command.args(["--iters", &iters.to_string()]);
        }
        command.env("COLLECTIVES_MOCK_DEVICES", ranks);
        parse::peer(&process::run(&mut command, limit)?)
    }
}

/// Builds the C program.
fn compile(sources: &Path, folder: &Path) -> Result<PathBuf> {
    let program = folder.join("nccl");
    let mut compile = Command::new("cc");
    compile.args(["-std=c11", "-D_GNU_SOURCE", "-O3", "-pthread", "-o"]).arg(&program);
    compile.arg(sources.join("nccl.c")).arg("-ldl");
    match process::run(&mut compile, BUILD) {
        Ok(_) => Ok(program),
        Err(failure) => bail!("the C program is not built (on Debian: gcc): {failure}"),
    }
}

const LIBRARY_FILE: &str = "libcollectives_mock_abi.so";

const LARGEST: u64 = 64 << 20;
