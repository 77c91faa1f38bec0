//! `collectives-bench gpu`: the NCCL backend against what else calls the same library.
//!
//! Runs on a machine without Rust: everything that runs is named on the command line. What matters
//! most comes first, and the report is written after each round of a configuration, so that a run
//! that is cut short is worth what it has.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Result, bail, ensure};
use clap::ValueEnum;

use crate::{
    machine,
    operation::{Operation, Series},
    ours::{Backend, Ours, WARMUP},
    parse::{self, Run},
    process::{self, Failure},
    report::{Case, Report, Role},
    rounds::{Contender, Limits, Rounds},
    sizes::Sizes,
};

/// Measure NCCL through collectives, nccl-tests, torch.distributed and ctypes
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Folder with the program `collectives`
    #[arg(long, value_name = "FOLDER")]
    bin: PathBuf,

    /// Folder with libnccl.so.2, which all sides load
    #[arg(long, value_name = "FOLDER")]
    nccl_lib: PathBuf,

    /// Folder with the programs of nccl-tests, all_reduce_perf and so on
    #[arg(long, value_name = "FOLDER")]
    nccl_tests: Option<PathBuf>,

    /// Python with PyTorch, for the sides written in it
    #[arg(long, value_name = "FILE")]
    python: Option<PathBuf>,

    /// Folder with torch_nccl.py and pynccl.py
    #[arg(long, value_name = "FOLDER", default_value = "benches/peers")]
    sources: PathBuf,

    /// Operations to measure [default: all]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    ops: Vec<Operation>,

    /// Number of ranks, each on a GPU of its own
    #[arg(short = 'n', long, value_name = "N", default_value = "2",
          value_parser = clap::value_parser!(u32).range(1..))]
    ranks: u32,

    /// How calls are issued
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "eager,graph,eager-registered,graph-registered"
    )]
    series: Vec<Series>,

    #[command(flatten)]
    sizes: Sizes,

    /// Operations timed at each size
    #[arg(long, value_name = "N", default_value = "100",
          value_parser = clap::value_parser!(u32).range(1..))]
    iters: u32,

    /// Check results too, where that is an option
    #[arg(long)]
    check: bool,

    /// Rounds of the first operation, without registration; in a round, every side runs once
    #[arg(long, value_name = "N", default_value = "5",
          value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Rounds of everything else, as many as there is time for
    #[arg(long, value_name = "N", default_value = "3")]
    other_rounds: u32,

    /// Rounds of a configuration that the sides in Python take part in; they start slowly
    #[arg(long, value_name = "N", default_value = "2")]
    python_rounds: usize,

    /// Start no round that would probably end later than this
    #[arg(long, value_name = "SECONDS", default_value = "540")]
    seconds: u64,

    /// End a run of one side that takes longer
    #[arg(long, value_name = "SECONDS", default_value = "90",
          value_parser = clap::value_parser!(u64).range(1..))]
    run_seconds: u64,

    /// Folder that gets nccl.json
    #[arg(long, value_name = "FOLDER", default_value = "target/bench")]
    out: PathBuf,
}

/// Measures and writes the report.
pub(crate) fn run(args: &Args) -> Result<()> {
    let binary = args.bin.join("collectives");
    ensure!(binary.is_file(), "--bin {}: no program 'collectives'", args.bin.display());
    let library = args.nccl_lib.join(LIBRARY);
    ensure!(library.is_file(), "--nccl-lib {}: no {LIBRARY}", args.nccl_lib.display());
    for series in &args.series {
        ensure!(
            !matches!(series, Series::Loop | Series::SyncEach),
            "--series {series}: on GPUs, there are eager, graph and their registered forms"
        );
    }
    let Args { iters, check, .. } = *args;
    let sizes = args.sizes.or_max(LARGEST);
    let backend = Backend::Nccl { library, check };
    let nccl_tests = NcclTests {
        folder: args.nccl_tests.clone(),
        lib: args.nccl_lib.clone(),
        sizes,
        iters,
        check,
    };
    let python = |program| Python {
        program,
        interpreter: args.python.clone(),
        source: args.sources.join(program.file()),
        lib: args.nccl_lib.clone(),
        sizes,
        iters,
        check,
        rounds: args.python_rounds,
    };
    let contenders: Vec<Box<dyn Contender>> = vec![
        Box::new(Ours { binary, sizes, iters: Some(iters), backend }),
        Box::new(nccl_tests),
        Box::new(python(Program::Torch)),
        Box::new(python(Program::Ctypes)),
    ];
    let mut notes = vec![format!(
        "float32, out of place, sum where it reduces, root 0; {iters} operations a size"
    )];
    for name in RELEVANT {
        if let Ok(value) = std::env::var(name) {
            notes.push(format!("{name}={value}"));
        }
    }
    let machine = [machine::gpus(), Some(machine::cpu())].into_iter().flatten().collect();
    let limits = Limits {
        run: Duration::from_secs(args.run_seconds),
        whole: Duration::from_secs(args.seconds),
    };
    let path = args.out.join(FILE);
    let rounds = Rounds::new(contenders, Report::new(machine, notes), path.clone(), limits);
    let failures = rounds.run(&steps(args))?;
    eprintln!("{}", path.display());
    if !failures.is_empty() {
        bail!("collectives itself failed:\n{}", failures.join("\n"));
    }
    Ok(())
}

/// The report's name in its folder.
pub(crate) const FILE: &str = "nccl.json";

/// The order of work: the first operation as often as asked for, then everything once, then
/// everything else again. Plain series come before registered ones.
fn steps(args: &Args) -> Vec<Vec<Case>> {
    let Args { ranks, .. } = *args;
    let ops = if args.ops.is_empty() { Operation::value_variants() } else { &args.ops };
    let (registered, plain): (Vec<_>, Vec<_>) =
        args.series.iter().partition(|series| series.is_registered());
    let cases = |ops: &[Operation], series: &[Series]| -> Vec<Case> {
        let of = |&op: &Operation| series.iter().map(move |&series| Case { op, ranks, series });
        ops.iter().flat_map(of).collect()
    };
    let (first, others) = ops.split_at(ops.len().min(1));
    let mut steps = cases(first, &plain).repeat(args.rounds as usize);
    for _ in 0..args.other_rounds {
        steps.extend(cases(others, &plain));
        steps.extend(cases(ops, &registered));
    }
    steps.into_iter().map(|case| vec![case]).collect()
}

/// NVIDIA's own programs.
struct NcclTests {
    /// `None` where the command line names none.
    folder: Option<PathBuf>,
    lib: PathBuf,
    sizes: Sizes,
    iters: u32,
    check: bool,
}

impl NcclTests {
    fn program(&self, op: Operation) -> Result<PathBuf, String> {
        let Some(folder) = &self.folder else { return Err("--nccl-tests was not given".into()) };
        let program = folder.join(op.nccl_tests());
        match program.is_file() {
            true => Ok(program),
            false => Err(format!("no {} in the folder of nccl-tests", op.nccl_tests())),
        }
    }

    /// Runs its program; with `calls_only`, the times are those until the last call returned.
    fn table(
        &self,
        program: &Path,
        Case { ranks, series, .. }: Case,
        sizes: Sizes,
        calls_only: bool,
        limit: Duration,
    ) -> Result<Run, Failure> {
        let flag = |name: &str, set: bool| [name.to_owned(), u32::from(set).to_string()];
        let mut command = Command::new(program);
        command.args(["-t", &ranks.to_string(), "-g", "1"]).args(sizes.arguments());
        command.args(["-f", "2", "-w", WARMUP, "-n", &self.iters.to_string()]);
        command.args(flag("-c", self.check && !calls_only));
        command.args(flag("-G", series.is_graph()));
        command.args(flag("-R", series.is_registered()));
        command.args(flag("-C", calls_only));
        command.env("LD_LIBRARY_PATH", search_first(&self.lib));
        parse::nccl_tests(&process::run(&mut command, limit)?)
    }
}

impl Contender for NcclTests {
    fn name(&self) -> &str {
        "nccl-tests"
    }

    fn role(&self) -> Role {
        Role::Peer
    }

    fn absent(&self, case: Case) -> Option<String> {
        self.program(case.op).err()
    }

    /// Its programs measure either the time of an operation or that of its call. The second is asked
    /// for once, and at the sizes where it shows.
    fn run(&self, case: Case, round: usize, limit: Duration) -> Result<Run, Failure> {
        let program = self.program(case.op).map_err(Failure::Ended)?;
        let run = self.table(&program, case, self.sizes, false, limit)?;
        if round > 0 {
            return Ok(run);
        }
        let small = self.sizes.at_most(LARGEST_ISSUED);
        Ok(run.with_issue(&self.table(&program, case, small, true, limit)?))
    }
}

/// What is written in Python.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Program {
    Torch,
    Ctypes,
}

impl Program {
    const fn name(self) -> &'static str {
        match self {
            Self::Torch => "torch.distributed",
            Self::Ctypes => "Python ctypes",
        }
    }

    const fn file(self) -> &'static str {
        match self {
            Self::Torch => "torch_nccl.py",
            Self::Ctypes => "pynccl.py",
        }
    }
}

struct Python {
    program: Program,
    /// `None` where the command line names none.
    interpreter: Option<PathBuf>,
    source: PathBuf,
    lib: PathBuf,
    sizes: Sizes,
    iters: u32,
    check: bool,
    rounds: usize,
}

impl Contender for Python {
    fn name(&self) -> &str {
        self.program.name()
    }

    fn role(&self) -> Role {
        Role::Peer
    }

    fn absent(&self, case: Case) -> Option<String> {
        if case.series.is_registered() {
            return Some("does not register buffers".into());
        }
        if self.interpreter.is_none() {
            return Some("--python was not given".into());
        }
        (!self.source.is_file()).then(|| format!("no {}", self.source.display()))
    }

    fn rounds(&self) -> usize {
        self.rounds
    }

    fn run(&self, case: Case, _: usize, limit: Duration) -> Result<Run, Failure> {
        let Some(interpreter) = &self.interpreter else {
            return Err(Failure::Ended("--python was not given".into()));
        };
        let mut command = Command::new(interpreter);
        command.arg(&self.source).arg(case.op.name()).args(self.sizes.arguments());
        command.args(["-n", &case.ranks.to_string()]);
        command.args(["--iters", &self.iters.to_string(), "--warmup", WARMUP]);
        command.args(case.series.is_graph().then_some("--graph"));
        command.args((!self.check).then_some("--no-check"));
        if self.program == Program::Ctypes {
            command.arg("--lib").arg(self.lib.join(LIBRARY));
        }
        // PyTorch brings a library of its own, which this may or may not replace; the report says
        // which one it was.
        command.env("LD_LIBRARY_PATH", search_first(&self.lib));
        parse::peer(&process::run(&mut command, limit)?)
    }
}

/// A search path for libraries that begins with this folder.
fn search_first(folder: &Path) -> std::ffi::OsString {
    let mut path = folder.as_os_str().to_owned();
    if let Some(others) = std::env::var_os("LD_LIBRARY_PATH").filter(|path| !path.is_empty()) {
        path.push(":");
        path.push(others);
    }
    path
}

const LIBRARY: &str = "libnccl.so.2";

const LARGEST: u64 = 2 << 30;

/// Above, the queue is full, and calls wait for the device.
const LARGEST_ISSUED: u64 = 1 << 20;

/// Settings of the library that change what is measured.
const RELEVANT: [&str; 4] = ["NCCL_NVLS_ENABLE", "NCCL_ALGO", "NCCL_PROTO", "NCCL_P2P_DISABLE"];

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn args(more: &[&str]) -> Args {
        let given = ["bench", "--bin", "bin", "--nccl-lib", "lib", "-n", "2"];
        Cli::try_parse_from(given.iter().chain(more)).expect("good arguments").args
    }

    #[test]
    fn what_matters_most_comes_first() {
        let steps = steps(&args(&["--rounds", "2", "--other-rounds", "1"]));
        let texts: Vec<_> = steps
            .iter()
            .flatten()
            .map(|Case { op, series, .. }| format!("{op} {series}"))
            .collect();
        assert_eq!(
            texts[..6],
            [
                "all_reduce eager",
                "all_reduce graph",
                "all_reduce eager",
                "all_reduce graph",
                "all_gather eager",
                "all_gather graph",
            ]
        );
        // 2 × 2, then 8 × 2 of the other operations, then 9 × 2 registered.
        assert_eq!(texts.len(), 4 + 16 + 18);
        assert_eq!(texts[20], "all_reduce eager-registered");
    }

    /// A script in place of each program, with made up times.
    fn scripts(folder: &Path, scripts: &[(&str, &str)]) {
        for (name, body) in scripts {
            let path = folder.join(name);
            fs::write(&path, format!("#!/bin/sh\n{body}\n")).expect("room");
            let executable = fs::Permissions::from_mode(0o755);
            fs::set_permissions(&path, executable).expect("it is ours");
        }
    }

    #[test]
    fn every_side_is_asked_in_its_own_way_and_held_against_its_like() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = folder.path();
        scripts(
            at,
            &[
                ("libnccl.so.2", ""),
                ("torch_nccl.py", ""),
                ("pynccl.py", ""),
                (
                    // Out of place 8 µs, in place 4 µs, a call 2 µs.
                    "collectives",
                    r#"test "$COLLECTIVES_NCCL_PATH" && test "$1 $2 $3 $4" = "perf all_reduce --ranks 2"
                   cat > "$6" <<END
{"backend": "nccl", "version": "2.28.9", "results": [{"bytes": 8,
 "out_of_place": {"time_us": 8, "issue_us": 2, "wrong": null},
 "in_place": {"time_us": 4, "issue_us": 2, "wrong": null}}]}
END"#,
                ),
                (
                    // A call takes 1 µs (-C 1), an operation 16 µs.
                    "all_reduce_perf",
                    r#"case "$*" in *"-C 1"*) time=1.00 ;; *) time=16.00 ;; esac
                   echo '# nccl-tests version 2.19.6 nccl-library=22809'
                   echo "8 2 float sum -1 $time 0.0 0.0 N/A 16.0 0.0 0.0 N/A""#,
                ),
                (
                    // PyTorch works in place. The other one fails.
                    "python",
                    r#"case "$1" in
                   *torch*) printf '# library: PyTorch 2\n# placement: in place\n8 2.0 0.5\n' ;;
                   *) echo no such device >&2; exit 1 ;;
                   esac"#,
                ),
            ],
        );
        let path = |name: &str| at.join(name).to_str().expect("text").to_owned();
        let more = [
            ("--bin", path("")),
            ("--nccl-lib", path("")),
            ("--nccl-tests", path("")),
            ("--sources", path("")),
            ("--python", path("python")),
            ("--out", path("out")),
            ("--ops", "all_reduce".into()),
            ("--series", "eager".into()),
            ("--rounds", "2".into()),
            ("--python-rounds", "1".into()),
        ];
        let given = more.iter().flat_map(|(name, value)| [*name, value.as_str()]);
        let args = Cli::try_parse_from(std::iter::once("bench").chain(given)).expect("good").args;
        run(&args).expect("collectives does not fail");

        let report = Report::read(&at.join("out").join(FILE)).expect("written");
        let [known] = &report.configurations[..] else { panic!("one configuration") };
        let rounds: Vec<_> = known.sides.iter().map(|side| (&*side.name, side.rounds)).collect();
        assert_eq!(
            rounds,
            [("collectives", 2), ("nccl-tests", 2), ("torch.distributed", 1), ("Python ctypes", 0)]
        );
        let ctypes = known.sides[3].absent.as_deref().expect("it failed");
        assert!(ctypes.ends_with("python ended with exit status: 1: no such device"), "{ctypes}");
        let ratio = |name: &str| known.rows[0].ratio[name].median;
        assert_eq!((ratio("nccl-tests"), ratio("torch.distributed")), (0.5, 2.0));
        assert!(known.sides[2].in_place);
        let issue = |name: &str| known.rows[0].sides[name].issue_us;
        assert_eq!((issue("nccl-tests"), issue("torch.distributed")), (Some(1.0), Some(0.5)));
        assert_eq!(report.versions["nccl-tests"], "nccl-tests 2.19.6, NCCL 2.28.9");
    }

    #[test]
    fn operations_and_series_can_be_chosen() {
        let chosen = ["--ops", "reduce", "--series", "graph,graph-registered"];
        let steps =
            steps(&args(&[&chosen[..], &["--rounds", "1", "--other-rounds", "2"]].concat()));
        let series: Vec<_> = steps.iter().flatten().map(|case| case.series.name()).collect();
        assert_eq!(series, ["graph", "graph-registered", "graph-registered"]);
    }
}
