//! `collectives doctor`: what this machine has, which backend follows from it and why, and which of
//! the problems that others have reported it has.
//!
//! The [`System`] is looked at, libraries and drivers are asked in processes of their own
//! ([`probe`]), and both make the [`Facts`]. The [`checks`] are functions of those, and the
//! [`report`] prints them: text for people, `--json` for programs.

mod checks;
mod cuda;
mod facts;
mod finding;
mod probe;
mod report;
mod settings;
mod system;
#[cfg(all(test, unix))]
mod tests;

use std::io::{self, Write as _};

use collectives::Platform;

use self::{
    facts::Facts,
    finding::Severity,
    probe::{Probes, Subject},
    report::Report,
    system::System,
};
use crate::{Failure, text};

/// Show which backend this machine gets and why, and what is wrong with it
///
/// Looks at hardware, drivers, libraries, limits and variables, and checks them for the known causes of
/// failures, each with a remedy. It changes nothing and makes no communicator. Run it where the job
/// will run: in the same container, by the same user, from the same launcher.
#[derive(clap::Args, Debug)]
#[command(after_help = "Exits with 1 if the selected backend cannot work, else with 0.")]
pub(crate) struct Args {
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    /// List all checks and what each looks for
    #[arg(long, conflicts_with = "json")]
    list: bool,
    /// Answer one question as JSON: what the doctor starts itself for
    #[arg(long, hide = true, conflicts_with_all = ["json", "list"])]
    probe: Option<Subject>,
}

/// Looks at everything, prints it, and fails where the selected backend cannot work.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    if let Some(subject) = args.probe {
        return probe::answer(subject);
    }
    let mut out = io::stdout();
    if args.list {
        return list(&mut out);
    }
    let system = System::this();
    let platform = Platform::detect_in(&system.roots());
    let probes = Probes::ask(!platform.nvidia.found.is_empty());
    let facts = Facts::gather(&system, platform, probes);
    let findings = checks::findings(&facts);
    let works = findings.iter().all(|finding| finding.severity != Severity::Error);
    let report = Report::new(facts, findings);
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        write!(out, "{}", report.text(text::columns(io::stdout()))?)?;
    }
    if works { Ok(()) } else { Err(Failure::Check) }
}

fn list(out: &mut impl io::Write) -> Result<(), Failure> {
    let width = text::columns(io::stdout());
    for check in checks::all() {
        let mut line = String::new();
        text::wrapped_to(width, &mut line, &format!("{:<28}", check.id), check.about)?;
        write!(out, "{line}")?;
    }
    Ok(())
}
