//! `collectives-bench peers`: the mock against what else moves data between the ranks of a CPU.
//!
//! The other sides are small programs of `benches/peers`, built here. What cannot be built or run
//! is named in the report; the rest goes on without it.

use std::{
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;

use crate::{
    machine,
    operation::{Operation, Series},
    ours::{Backend, Ours},
    parse::{self, Run},
    process::{self, Failure},
    report::{Case, Report, Role},
    rounds::{Contender, Limits, Rounds},
    sizes::Sizes,
};

/// Measure the mock against Open MPI, MPICH, Gloo and the machine's memory (half an hour)
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Operations to measure
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "all_reduce,all_gather,reduce_scatter,broadcast,send_recv"
    )]
    ops: Vec<Operation>,

    /// Numbers of ranks
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "2,4,8",
          value_parser = clap::value_parser!(u32).range(1..=256))]
    ranks: Vec<u32>,

    /// How calls are waited for: loop, sync-each
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "loop,sync-each")]
    series: Vec<Series>,

    #[command(flatten)]
    sizes: Sizes,

    /// Rounds of each configuration; in one, every side runs once
    #[arg(long, value_name = "N", default_value = "3",
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

    /// A `collectives` built before [default: built here, optimised]
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,

    /// Folder with the sources of the other sides
    #[arg(long, value_name = "FOLDER", default_value = "benches/peers")]
    sources: PathBuf,

    /// Folder that gets mock.json
    #[arg(long, value_name = "FOLDER", default_value = "target/bench")]
    out: PathBuf,
}

/// Builds, measures, writes the report.
pub(crate) fn run(args: &Args) -> Result<()> {
    let Args { sources, sizes, iters, .. } = args;
    check(sources, &args.series)?;
    let binary = match &args.binary {
        Some(binary) => binary.clone(),
        None => build_ours(&["collectives-cli"])?.join("collectives"),
    };
    let folder = tempfile::tempdir().context("a folder for the programs")?;
    let sizes = sizes.or_max(LARGEST);
    let ours = |backend| -> Box<dyn Contender> {
        Box::new(Ours { binary: binary.clone(), sizes, iters: *iters, backend })
    };
    let mut contenders = vec![ours(Backend::Mock), ours(Backend::MockProcesses)];
    for kind in Kind::value_variants() {
        let program = kind.build(sources, folder.path());
        if let Err(reason) = &program {
            eprintln!("{}: {reason}", kind.name());
        }
        contenders.push(Box::new(Peer { kind: *kind, program, sizes, iters: *iters }));
    }

    let mut notes = vec![
        "float32, sum where it reduces, root 0; ranks of collectives are threads, unless it says \
         processes; those of the others are processes"
            .to_owned(),
        "broadcast is in place on all sides, everything else out of place".to_owned(),
    ];
    if let Some(iters) = iters {
        notes.push(format!("{iters} calls a size"));
    }
    let limits = Limits {
        run: Duration::from_secs(args.run_seconds),
        whole: Duration::from_secs(args.seconds),
    };
    let report = Report::new(vec![machine::cpu()], notes);
    let path = args.out.join(FILE);
    let rounds = Rounds::new(contenders, report, path.clone(), limits);
    let failures = rounds.run(&steps(&args.ops, &args.ranks, &args.series, args.rounds))?;
    eprintln!("{}", path.display());
    if !failures.is_empty() {
        bail!("collectives itself failed:\n{}", failures.join("\n"));
    }
    Ok(())
}

/// The report's name in its folder.
pub(crate) const FILE: &str = "mock.json";

/// All configurations, as often as there are rounds: whenever time runs out, each has as many rounds
/// as another, or one more. All series of an operation are measured together, for they are the same
/// to libraries whose calls block.
pub(crate) fn steps(
    ops: &[Operation],
    ranks: &[u32],
    series: &[Series],
    rounds: u32,
) -> Vec<Vec<Case>> {
    let mut cases = Vec::new();
    for &op in ops {
        for &ranks in ranks {
            let step = series.iter().map(|&series| Case { op, ranks, series });
            cases.push(step.collect::<Vec<_>>());
        }
    }
    let count = cases.len() * rounds as usize;
    cases.into_iter().cycle().take(count).collect()
}

/// Refuses what cannot be measured on a CPU.
pub(crate) fn check(sources: &Path, series: &[Series]) -> Result<()> {
    ensure!(
        sources.is_dir(),
        "--sources {}: no folder; run this at the root of the repository",
        sources.display()
    );
    for series in series {
        ensure!(
            matches!(series, Series::Loop | Series::SyncEach),
            "--series {series}: only loop and sync-each are measured on a CPU"
        );
    }
    Ok(())
}

/// Builds packages as users run them; answers the folder with what was built.
pub(crate) fn build_ours(packages: &[&str]) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--release"]);
    build.args(packages.iter().flat_map(|package| ["--package", package]));
    let status = build.status().context("cargo; options take what was built elsewhere")?;
    ensure!(status.success(), "cargo build ended with {status}");
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    Ok(Path::new(&target).join("release"))
}

/// The other sides.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Kind {
    OpenMpi,
    Mpich,
    Gloo,
    Limit,
}

/// One of them, or why it is not there.
struct Peer {
    kind: Kind,
    program: Result<PathBuf, String>,
    sizes: Sizes,
    iters: Option<u32>,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::OpenMpi => "Open MPI",
            Self::Mpich => "MPICH",
            Self::Gloo => "Gloo",
            Self::Limit => "machine limit",
        }
    }

    /// The compiler, the source, and what else the compiler needs to know; then the launcher.
    const fn recipe(self) -> (&'static str, &'static str, &'static [&'static str]) {
        match self {
            Self::OpenMpi => ("mpicc.openmpi", "mpi.c", &["-std=c11"]),
            Self::Mpich => ("mpicc.mpich", "mpi.c", &["-std=c11"]),
            Self::Gloo => ("c++", "gloo.cc", &["-std=c++17", "-lgloo"]),
            Self::Limit => ("cc", "limit.c", &["-std=c11", "-march=native", "-pthread"]),
        }
    }

    /// Where Debian has it.
    const fn packages(self) -> &'static str {
        match self {
            Self::OpenMpi => "openmpi-bin and libopenmpi-dev",
            Self::Mpich => "mpich and libmpich-dev",
            Self::Gloo => "g++ and libgloo-dev",
            Self::Limit => "gcc",
        }
    }

    const fn launcher(self) -> Option<&'static str> {
        match self {
            Self::OpenMpi => Some("mpirun.openmpi"),
            Self::Mpich => Some("mpirun.mpich"),
            Self::Gloo | Self::Limit => None,
        }
    }

    /// The built program, or for people why there is none.
    fn build(self, sources: &Path, folder: &Path) -> Result<PathBuf, String> {
        let (compiler, source, options) = self.recipe();
        let tools = [Some(compiler), self.launcher()];
        if let Some(missing) =
            tools.into_iter().flatten().find(|tool| process::find(tool).is_none())
        {
            return Err(format!("no {missing} (on Debian: {})", self.packages()));
        }
        let source = sources.join(source);
        if !source.is_file() {
            return Err(format!("no {}", source.display()));
        }
        let program = folder.join(format!("{self:?}"));
        let mut compile = Command::new(compiler);
        // Libraries come after what needs them.
        compile.args(["-O3", "-o"]).arg(&program).arg(source).args(options);
        process::run(&mut compile, BUILD)
            .map_err(|failure| format!("not built (on Debian: {}): {failure}", self.packages()))?;
        Ok(program)
    }

    /// How so many ranks of a program are started.
    fn command(self, program: &Path, ranks: u32) -> Command {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let crowded = ranks as usize > cores;
        let count = ranks.to_string();
        let mut command = Command::new(self.launcher().map_or(program, Path::new));
        match self {
            Self::OpenMpi => {
                command.args(["--allow-run-as-root", "-n", &count, "--bind-to"]);
                command.args(if crowded { &["none", "--oversubscribe"][..] } else { &["core"] });
                command.arg(program);
            }
            Self::Mpich => {
                command.args(["-n", &count, "-bind-to", if crowded { "none" } else { "core" }]);
                command.arg(program);
            }
            Self::Gloo | Self::Limit => {}
        }
        command
    }
}

impl Contender for Peer {
    fn name(&self) -> &str {
        self.kind.name()
    }

    fn role(&self) -> Role {
        match self.kind {
            Kind::Limit => Role::Limit,
            Kind::OpenMpi | Kind::Mpich | Kind::Gloo => Role::Peer,
        }
    }

    fn absent(&self, _: Case) -> Option<String> {
        self.program.as_ref().err().cloned()
    }

    fn stand_in(&self, case: Case) -> Case {
        Case { series: Series::Loop, ..case }
    }

    fn run(&self, case: Case, _: usize, limit: Duration) -> Result<Run, Failure> {
        let program = self.program.as_ref().map_err(|reason| Failure::Ended(reason.clone()))?;
        let mut command = self.kind.command(program, case.ranks);
        command.arg(case.op.name()).args(self.sizes.arguments());
        if let Some(iters) = self.iters {
            command.args(["--iters", &iters.to_string()]);
        }
        if self.kind.launcher().is_none() {
            command.args(["-n", &case.ranks.to_string()]);
        }
        parse::peer(&process::run(&mut command, limit)?)
    }
}

const LARGEST: u64 = 64 << 20;

/// How long a compiler may take.
pub(crate) const BUILD: Duration = Duration::from_secs(120);
