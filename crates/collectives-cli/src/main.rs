//! The `collectives` command: measures collectives ([`perf`]), finds out what a machine has and what
//! is wrong with it ([`doctor`]), starts a program as ranks ([`launch`]), installs the mock as a C
//! library ([`mock`]), and prints completion scripts for shells.
//!
//! Tables and JSON go to standard output; errors, logs and the progress bar to standard error. Exit
//! codes: 0 success, 1 a failed check or run, 2 wrong usage; of `launch`, those of the ranks.

mod doctor;
#[cfg(unix)]
mod launch;
mod mock;
mod perf;
mod text;

use std::{
    error::Error,
    io::{self, IsTerminal, Write as _},
    process::ExitCode,
};

use clap::{CommandFactory, Parser, Subcommand, error::ErrorKind};
use clap_complete::Shell;
use tracing_subscriber::EnvFilter;

/// Measure GPU collectives, find out why they do not work, and run their programs
#[derive(Parser)]
#[command(name = "collectives", version, arg_required_else_help = true, after_help = NOTES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Perf(perf::Args),
    Doctor(doctor::Args),
    #[cfg(unix)]
    Launch(launch::Args),
    Mock(mock::Args),
    /// Print a completion script for a shell
    #[command(after_help = "For bash: source <(collectives completions bash)")]
    Completions {
        /// The shell
        shell: Shell,
    },
}

const NOTES: &str = "\
Everything runs on NCCL, RCCL or a CPU mock, whichever fits the hardware.
COLLECTIVES_BACKEND=nccl|rccl|mock decides otherwise.

Exit codes: 0 success, 1 a failed check or run, 2 wrong usage; 'launch' exits
with the code of its ranks. RUST_LOG=info or =debug logs more to standard error.";

/// Why the command did not do what was asked.
enum Failure {
    /// A check failed, or this rank did; the output says why, or the parent was told.
    Check,
    /// Everything was said; exit with this code.
    #[cfg(unix)]
    Exit(u8),
    /// The run failed.
    Run(Box<dyn Error>),
    /// The arguments do not fit each other, or the library or machine.
    Usage(String),
}

impl<E: Into<Box<dyn Error>>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Run(error.into())
    }
}

fn main() -> ExitCode {
    log_to_stderr();
    #[cfg(unix)]
    match collectives_crew::keep() {
        Ok(false) => {}
        Ok(true) => return ExitCode::SUCCESS,
        Err(error) => {
            eprint!("{}", block("keeper", &error));
            return ExitCode::FAILURE;
        }
    }
    let (name, outcome) = match Cli::parse().command {
        Command::Perf(args) => ("perf", perf::run(&args)),
        Command::Doctor(args) => ("doctor", doctor::run(&args)),
        #[cfg(unix)]
        Command::Launch(args) => ("launch", launch::run(&args)),
        Command::Mock(args) => ("mock", mock::run(&args)),
        Command::Completions { shell } => ("completions", completions(shell)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Check) => ExitCode::FAILURE,
        #[cfg(unix)]
        Err(Failure::Exit(code)) => code.into(),
        // Whoever read the output has seen enough: `collectives perf … | head`.
        Err(Failure::Run(error)) if is_broken_pipe(&*error) => ExitCode::FAILURE,
        Err(Failure::Run(error)) => {
            eprint!("{}", block(name, &*error));
            ExitCode::FAILURE
        }
        Err(Failure::Usage(message)) => usage(name, message),
    }
}

fn completions(shell: Shell) -> Result<(), Failure> {
    // Into memory first: a failed write to standard output would panic in there.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "collectives", &mut script);
    Ok(io::stdout().write_all(&script)?)
}

fn is_broken_pipe(error: &(dyn Error + 'static)) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// An error as one block: what happened, what is underneath, and what to do.
fn block(command: &str, error: &(dyn Error + 'static)) -> String {
    let (text, mut hint) = without_hint(error);
    let mut source = error.source();
    let mut parts = vec![("error: ", format!("{command}: {text}"))];
    while let Some(error) = source {
        let (words, help) = without_hint(error);
        // Some errors repeat the one underneath in their own words.
        if !text.contains(&words) {
            parts.push(("  because: ", words));
        }
        hint = hint.or(help);
        source = error.source();
    }
    parts.extend(hint.map(|hint| ("  help: ", hint.to_owned())));
    let width = text::columns(io::stderr());
    let mut block = String::new();
    for (label, part) in parts {
        text::wrapped_to(width, &mut block, label, &part)
            .expect("writing to a string does not fail");
    }
    block
}

/// What an error says, but for what to do, and that.
fn without_hint<'a>(error: &'a (dyn Error + 'static)) -> (String, Option<&'a str>) {
    let text = error.to_string();
    let hint = error.downcast_ref::<collectives::Error>().and_then(collectives::Error::hint);
    match hint.and_then(|hint| text.strip_suffix(hint)) {
        Some(rest) => (rest.trim_end().trim_end_matches(';').to_owned(), hint),
        None => (text, hint),
    }
}

/// Reports a usage error as clap does, with the usage of the subcommand, and exits with 2.
fn usage(name: &str, message: String) -> ExitCode {
    let mut cli = Cli::command();
    cli.build();
    let command = cli.find_subcommand_mut(name).map(std::mem::take).unwrap_or(cli);
    command.clone().error(ErrorKind::ValueValidation, message).exit()
}

/// Logs are for people at a terminal: warnings unless `RUST_LOG` says otherwise.
fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .without_time()
        .init();
}
