//! The checks: what can be seen from one machine of what others have met.
//!
//! Each is a function of the [`Facts`] alone, and has an id that stays. `docs/doctor.md` tells which
//! thread led to which check.

mod backend;
mod devices;
mod driver;
mod library;
mod limits;
mod network;
mod topology;
mod variables;

use super::{
    facts::Facts,
    finding::{Finding, Observation, Severity},
};

/// A thing to look for.
#[derive(Debug)]
pub(crate) struct Check {
    pub(crate) id: &'static str,
    /// What it looks for, in one line.
    pub(crate) about: &'static str,
    /// Where it was met, or the manual that warns of it.
    pub(crate) links: &'static [&'static str],
    run: fn(&Facts) -> Vec<Observation>,
}

/// Every check, by subject.
pub(crate) fn all() -> impl Iterator<Item = &'static Check> {
    [
        backend::CHECKS,
        devices::CHECKS,
        driver::CHECKS,
        library::CHECKS,
        limits::CHECKS,
        topology::CHECKS,
        network::CHECKS,
        variables::CHECKS,
    ]
    .into_iter()
    .flatten()
}

/// What the checks find, the worst first.
pub(crate) fn findings(facts: &Facts) -> Vec<Finding> {
    let mut findings: Vec<Finding> = all()
        .flat_map(|check| {
            let observations = (check.run)(facts);
            observations.into_iter().map(|observation| observation.of(check.id, check.links))
        })
        .collect();
    // Whatever keeps the backend from working is an error, whether a check knows the cause or not.
    let explained = findings.iter().any(|finding| finding.severity == Severity::Error);
    if let Some(problem) = facts.selected.problem.as_ref().filter(|_| !explained) {
        findings.push(backend::unusable(problem).of(UNUSABLE.id, UNUSABLE.links));
    }
    findings.sort_by_key(|finding| finding.severity);
    findings
}

impl Facts {
    /// How bad trouble of NCCL's is: where NCCL isn't selected, it is worth knowing and no more.
    fn of_nccl(&self, severity: Severity) -> Severity {
        if self.needs_nccl() { severity } else { Severity::Note }
    }
}

/// What no other check explains.
pub(crate) const UNUSABLE: Check = Check {
    id: "backend-unusable",
    about: "the selected backend does not work, for a reason that no other check explains",
    links: &[],
    run: |_| Vec::new(),
};

/// A list for a sentence: at most `most` items, and how many more there are.
fn list<T: AsRef<str>>(items: &[T], most: usize) -> String {
    let shown: Vec<&str> = items.iter().take(most).map(AsRef::as_ref).collect();
    let more = items.len().saturating_sub(most);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", shown.join(", "))
}
