//! A fault drill: each round loses one rank of a job of processes, in one of nine ways. The others must
//! get an error in time, with the name of what they waited for, and go on without it.
//!
//! ```console
//! $ cargo build --release --package collectives-drill
//! $ collectives-drill --backend nccl -n 2                  # a GPU for each rank
//! $ collectives-drill --backend nccl -n 3 --one-gpu        # NCCL 2.30.3 and later
//! $ collectives-drill --backend nccl -n 3 --one-gpu --hosts 3 --rejoin    # every release
//! $ collectives-drill --backend mock -n 3 --rounds 9
//! ```
//!
//! * **Processes.** Each round starts its ranks anew. A rank that dies gets SIGKILL, so it does not
//!   say good-bye: no destructor runs, no socket is shut down in order.
//! * **What is judged.** Every survivor has an error; it came within the deadline and two seconds,
//!   from the call of the operation that failed; it names that operation; then all survivors shrink
//!   the communicator or join a new one, add up, capture and replay, with the right sums. Afterwards
//!   no process is left, be it a zombie, and GPUs have no more memory in use than before.
//! * **Survivors are not warned.** They learn of a loss only from the library, the watchdog and the
//!   deadlines of joins. Only *who* was lost, which no library tells all survivors alike, comes
//!   from the parent, as it would from a launcher.

mod case;
mod machine;
mod rank;
mod report;
mod round;
mod word;

use std::{error::Error, io, process::ExitCode, time::Duration};

use clap::{Parser, ValueEnum};
use collectives_crew::Member;
use tracing_subscriber::EnvFilter;

use crate::{case::Case, report::Report, round::Round, word::Task};

/// Loses ranks, and sees whether the others notice and go on
#[derive(Debug, Parser)]
#[command(name = "collectives-drill", version)]
struct Args {
    /// Backend: nccl, rccl or mock [default: COLLECTIVES_BACKEND, else what the machine has]
    #[arg(long, value_name = "NAME")]
    backend: Option<String>,

    /// Number of ranks
    #[arg(short = 'n', long, value_name = "N", default_value = "3",
          value_parser = clap::value_parser!(u16).range(2..))]
    ranks: u16,

    /// Number of rounds, spread over the cases
    #[arg(long, value_name = "N", default_value = "20")]
    rounds: usize,

    /// Deadline of joins and operations, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "3")]
    deadline: f64,

    /// How much later than that an error may come, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "2")]
    grace: f64,

    /// Cases to run [default: all]
    #[arg(long = "case", value_name = "LIST", value_delimiter = ',')]
    cases: Vec<Case>,

    /// Chooses victims and moments
    #[arg(long, value_name = "N", default_value = "1")]
    seed: u64,

    /// All ranks share device 0, with NCCL_MULTI_RANK_GPU_ENABLE=1
    #[arg(long)]
    one_gpu: bool,

    /// Ranks take themselves for those of N hosts, in turns, so that NCCL goes through the network
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    hosts: Option<u16>,

    /// Survivors always join anew, for libraries that cannot shrink
    #[arg(long)]
    rejoin: bool,

    /// Print JSON, with every error
    #[arg(long)]
    json: bool,

    /// Print how much of each GPU's memory is in use, and end
    #[arg(long, hide = true)]
    gpu_memory: bool,
}

fn main() -> ExitCode {
    let filter = EnvFilter::from_default_env();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("collectives-drill: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all was as it should be.
fn run() -> Result<bool, Box<dyn Error>> {
    if let Some(member) = Member::here(CREW)? {
        return rank::serve(member).map(|()| true);
    }
    let args = Args::parse();
    if args.gpu_memory {
        println!("{}", serde_json::to_string(&machine::gpu_memory_here()?)?);
        return Ok(true);
    }
    let deadline = Duration::try_from_secs_f64(args.deadline)?;
    let grace = Duration::try_from_secs_f64(args.grace)?;
    let ranks = usize::from(args.ranks);
    let backend = args.backend.as_deref();
    let memory = machine::gpu_memory(backend)?;
    let shared_memory = machine::shared_memory();
    let mut rounds = Vec::with_capacity(args.rounds);
    for task in tasks(&args, deadline) {
        let mut round = Round::run(task, ranks, backend, grace);
        if let Some(before) = &memory
            && let Some(after) = machine::gpu_memory_after(before, backend)?
        {
            round.problems.extend(machine::leaked(before, &after));
        }
        eprintln!(
            "round {} of {}: {}, rank {} lost, {:.1} s{}",
            rounds.len() + 1,
            args.rounds,
            round.task.case.name(),
            round.task.victim,
            round.seconds,
            if round.problems.is_empty() {
                String::new()
            } else {
                format!(": {:?}", round.problems)
            },
        );
        rounds.push(round);
    }
    let after = match &memory {
        Some(before) => machine::gpu_memory_after(before, backend)?,
        None => None,
    };
    let report = Report {
        ranks,
        deadline_seconds: args.deadline,
        seed: args.seed,
        rounds,
        gpu_memory: memory.zip(after).map(|(before, after)| [before, after]),
        shared_memory: [shared_memory, machine::shared_memory()],
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    Ok(report.problems().is_empty())
}

/// The rounds of a drill: all cases in turn, with victims and moments that the seed chooses.
fn tasks(args: &Args, deadline: Duration) -> Vec<Task> {
    let cases = if args.cases.is_empty() { Case::value_variants() } else { &args.cases };
    let ranks = usize::from(args.ranks);
    let mut random = Random(args.seed);
    let task = |number: usize| {
        let case = cases[number % cases.len()];
        let victim = random.below(ranks);
        // The rank that serves the id may be the one that goes.
        let maker = match case {
            Case::NeverJoins => usize::from(victim == 0),
            _ => random.below(ranks),
        };
        // Each case by turns.
        let odd = (number / cases.len()) % 2 == 1;
        Task {
            case,
            victim,
            maker,
            shrinks: !args.rejoin && !odd && !case.is_about_joins() && case.kills(),
            deadline,
            moment: match (case, odd) {
                (Case::KilledDuringJoin, false) => Duration::from_millis(500),
                _ => Duration::from_millis(random.below(400) as u64),
            },
            late: case == Case::KilledDuringJoin && !odd,
            one_gpu: args.one_gpu,
            hosts: args.hosts.map(usize::from),
        }
    };
    (0..args.rounds).map(task).collect()
}

/// SplitMix64: the same numbers from a seed on every machine.
struct Random(u64);

impl Random {
    /// From 0 up to, but not including, `bound`, which is not 0.
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((word ^ (word >> 31)) % bound as u64) as usize
    }
}

const CREW: &str = "drill";
