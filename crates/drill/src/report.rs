//! What all rounds come to.

use std::fmt;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::{case::Case, machine, round::Round};

/// A drill, as `--json` prints it.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) ranks: usize,
    pub(crate) deadline_seconds: f64,
    pub(crate) seed: u64,
    pub(crate) rounds: Vec<Round>,
    /// In MiB, before and after, where there is a GPU.
    pub(crate) gpu_memory: Option<[Vec<u64>; 2]>,
    /// Files of NCCL in `/dev/shm`, before and after.
    pub(crate) shared_memory: [usize; 2],
}

impl Report {
    /// All that should not have been.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems: Vec<_> = self
            .rounds
            .iter()
            .enumerate()
            .flat_map(|(number, round)| {
                let name = round.task.case.name();
                round.problems.iter().map(move |text| format!("round {number}, {name}: {text}"))
            })
            .collect();
        if let Some([before, after]) = &self.gpu_memory {
            problems.extend(machine::leaked(before, after));
        }
        problems
    }

    fn cases(&self) -> Vec<Case> {
        let mut cases = Vec::new();
        for round in &self.rounds {
            if !cases.contains(&round.task.case) {
                cases.push(round.task.case);
            }
        }
        cases
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let library = self.rounds.iter().find_map(|round| round.library.as_deref());
        writeln!(
            f,
            "{}, {} ranks, deadline {} s, seed {}",
            library.unwrap_or("no library"),
            self.ranks,
            self.deadline_seconds,
            self.seed
        )?;
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header([
            "case",
            "rounds",
            "time to error, max",
            "errors",
            "went on by",
            "problems",
        ]);
        for column in [1, 2, 5] {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        for case in self.cases() {
            let rounds: Vec<_> =
                self.rounds.iter().filter(|round| round.task.case == case).collect();
            let slowest = rounds.iter().filter_map(|round| round.slowest()).max();
            let kinds = rounds.iter().flat_map(|round| {
                round.told.iter().map(|told| {
                    let operation = told.error.operation().unwrap_or("nothing");
                    format!("{:?} ({operation})", told.error.kind())
                })
            });
            let ways = rounds.iter().filter(|round| round.went_on > 0).map(|round| {
                let way = if round.shrunk { "shrink" } else { "rejoin" };
                format!("{way} to {}", round.went_on)
            });
            table.add_row([
                case.name(),
                rounds.len().to_string(),
                slowest.map_or_else(|| "-".into(), |millis| format!("{millis} ms")),
                distinct(kinds),
                distinct(ways),
                rounds.iter().map(|round| round.problems.len()).sum::<usize>().to_string(),
            ]);
        }
        writeln!(f, "{table}")?;
        match &self.gpu_memory {
            Some([before, after]) => {
                writeln!(f, "GPU memory in use: {before:?} MiB before, {after:?} MiB after")?;
            }
            None => writeln!(f, "GPU memory: not looked at, the mock has none")?,
        }
        let [before, after] = self.shared_memory;
        writeln!(f, "files of NCCL in /dev/shm: {before} before, {after} after")?;
        for problem in self.problems() {
            writeln!(f, "PROBLEM: {problem}")?;
        }
        Ok(())
    }
}

/// Each once, in the order in which they come first.
fn distinct(texts: impl Iterator<Item = String>) -> String {
    let mut list: Vec<String> = Vec::new();
    for text in texts {
        if !list.contains(&text) {
            list.push(text);
        }
    }
    list.join(", ")
}
