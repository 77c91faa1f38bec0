//! Benchmarks against other libraries, and the page that shows them.
//!
//! ```console
//! $ just bench-peers       # the mock against MPI and Gloo        -> docs/performance/mock.json
//! $ just gpu-bench …       # NCCL against nccl-tests and Python   -> docs/performance/nccl.json
//! $ just bench-library     # the mock as libnccl against itself   -> docs/performance/library.json
//! $ just bench-overhead    # what our layers add to a call        -> docs/performance/overhead.json
//! $ just perf-docs         # docs/performance.md and its figures, from those files
//! ```
//!
//! The files' schema stands in the module `report`; how sides take turns in `rounds`; how times
//! become figures in `statistics`.

mod gpu;
mod library;
mod machine;
mod operation;
mod ours;
mod overhead;
mod parse;
mod peers;
mod process;
mod render;
mod report;
mod rounds;
mod sizes;
mod statistics;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use self::report::Report;

/// Measure collectives against other libraries, and write the page about it.
#[derive(Parser)]
#[command(name = "collectives-bench", arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Peers(peers::Args),
    Gpu(gpu::Args),
    Library(library::Args),
    Overhead(overhead::Args),
    Merge(Merge),
    Render(render::Args),
}

/// Put the reports of several runs on one machine together; later figures replace earlier ones
#[derive(clap::Args, Debug)]
struct Merge {
    /// Reports, the oldest first
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,

    /// The file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Peers(args) => peers::run(&args),
        Command::Gpu(args) => gpu::run(&args),
        Command::Library(args) => library::run(&args),
        Command::Overhead(args) => overhead::run(&args),
        Command::Merge(args) => merge(&args),
        Command::Render(args) => render::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn merge(Merge { files, out }: &Merge) -> Result<()> {
    let (first, later) = files.split_first().context("no reports")?;
    let mut whole = Report::read(first)?;
    for file in later {
        whole.merge(Report::read(file)?).with_context(|| file.display().to_string())?;
    }
    whole.write(out)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_contradicts_itself_nowhere() {
        Cli::command().debug_assert();
    }
}
