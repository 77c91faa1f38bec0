//! What is kept of a benchmark: the schema of `docs/performance/mock.json` and `nccl.json`.
//!
//! ```json
//! {
//!   "schema": 1,
//!   "date": "2026-11-23",
//!   "machine": ["AMD EPYC, 2 cores"],
//!   "versions": { "collectives": "mock 0.1.0", "Open MPI": "Open MPI 4.1.4" },
//!   "notes": ["float32, out of place"],
//!   "configurations": [
//!     {
//!       "op": "all_reduce", "ranks": 2, "series": "loop", "rounds": 5,
//!       "sides": [
//!         { "name": "collectives", "role": "ours", "rounds": 5 },
//!         { "name": "collectives, processes", "role": "ours", "rounds": 5 },
//!         { "name": "Open MPI", "role": "peer", "rounds": 5 },
//!         { "name": "Gloo", "role": "peer", "rounds": 0, "absent": "no gloo/context.h" }
//!       ],
//!       "rows": [
//!         { "bytes": 8,
//!           "sides": { "collectives": { "median_us": 0.18, "min_us": 0.16, "max_us": 0.2,
//!                                       "issue_us": 0.05, "busbw_gbps": 0.04 }, … },
//!           "ratio": { "Open MPI": { "median": 0.73, "min": 0.42, "max": 0.94 } } }
//!       ]
//!     }
//!   ]
//! }
//! ```
//!
//! Times are microseconds of one call; bandwidths are in 10⁹ bytes a second, from the median time;
//! a ratio is the time of `collectives` over that of the side, formed within each round; so is
//! `processes_ratio`, of `collectives, processes`. `bytes` is the largest buffer of any rank. Fields may be added; their meaning does not change within a
//! schema.

use std::{
    collections::BTreeMap,
    fmt,
    fs::{self, Permissions},
    io::Write,
    os::unix::fs::PermissionsExt,
    path::Path,
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize, Serializer, ser::SerializeSeq};
use serde_json::value::RawValue;

use crate::operation::{Operation, Series};

/// The side that all others are compared with.
pub(crate) const OURS: &str = "collectives";

/// The same with each rank in a process of its own, as those of MPI are.
pub(crate) const PROCESSES: &str = "collectives, processes";

const SCHEMA: u32 = 1;

/// What was measured on one machine.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Report {
    pub(crate) schema: u32,
    /// Of the measurement, year first.
    pub(crate) date: String,
    /// What it ran on, in words.
    pub(crate) machine: Vec<String>,
    /// What each side is, by its name.
    pub(crate) versions: BTreeMap<String, String>,
    pub(crate) notes: Vec<String>,
    /// What there was no time for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) unmeasured: Vec<Case>,
    pub(crate) configurations: Vec<Configuration>,
}

/// One operation, measured one way on all sides.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Configuration {
    pub(crate) op: Operation,
    pub(crate) ranks: u32,
    pub(crate) series: Series,
    /// How often a side ran at most.
    pub(crate) rounds: usize,
    pub(crate) sides: Vec<Side>,
    /// From the smallest size to the largest.
    #[serde(serialize_with = "a_line_each")]
    pub(crate) rows: Vec<Row>,
}

/// What tells configurations apart.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub(crate) struct Case {
    pub(crate) op: Operation,
    pub(crate) ranks: u32,
    pub(crate) series: Series,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { op, ranks, series } = self;
        write!(f, "{op}, {ranks} ranks, {}", series.text())
    }
}

/// Who is compared.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Side {
    pub(crate) name: String,
    pub(crate) role: Role,
    /// In how many rounds it was measured.
    pub(crate) rounds: usize,
    /// Whether it measures the operation in place only; its ratio is to that of `collectives`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) in_place: bool,
    /// Why there are no figures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) absent: Option<String>,
    /// Why there are figures of fewer rounds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) failed: Option<String>,
}

/// What a side is compared for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// This library, in one way or another.
    Ours,
    /// A library with the same operation.
    Peer,
    /// What the machine can do without any library.
    Limit,
}

/// One size.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Row {
    pub(crate) bytes: u64,
    /// By name. A side that did not measure this size is not among them.
    pub(crate) sides: BTreeMap<String, Figures>,
    /// Time of `collectives` over time of the side, by its name.
    pub(crate) ratio: BTreeMap<String, Spread>,
    /// The same of `collectives, processes`, where that took part.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) processes_ratio: BTreeMap<String, Spread>,
}

/// The times of one side at one size.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Figures {
    pub(crate) median_us: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) min_us: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) max_us: Option<f64>,
    /// Until the last call returned, of one call; absent where a call returns with the result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) issue_us: Option<f64>,
    /// The median in place, where `median_us` is that out of place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) in_place_us: Option<f64>,
    pub(crate) busbw_gbps: f64,
}

/// The middle of a few rounds and their ends.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Report {
    /// An empty one of today.
    pub(crate) fn new(machine: Vec<String>, notes: Vec<String>) -> Self {
        Self {
            schema: SCHEMA,
            date: crate::machine::today(),
            machine,
            versions: BTreeMap::new(),
            notes,
            unmeasured: Vec::new(),
            configurations: Vec::new(),
        }
    }

    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    fn parse(text: &str) -> Result<Self> {
        let report: Self = serde_json::from_str(text)?;
        let schema = report.schema;
        ensure!(schema == SCHEMA, "schema {schema}, want {SCHEMA}: measure again");
        Ok(report)
    }

    /// Replaces the file in one step, so that whoever is killed leaves a whole one.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let write = || -> Result<()> {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            let folder = folder.unwrap_or_else(|| Path::new("."));
            fs::create_dir_all(folder)?;
            let mut file = tempfile::Builder::new();
            // Like any new file, and not for its owner alone, as is right for temporary ones.
            file.permissions(Permissions::from_mode(0o666));
            let mut file = file.tempfile_in(folder)?;
            serde_json::to_writer_pretty(&mut file, self)?;
            writeln!(file)?;
            file.persist(path)?;
            Ok(())
        };
        write().with_context(|| path.display().to_string())
    }

    pub(crate) fn configuration(&self, case: Case) -> Option<&Configuration> {
        self.configurations.iter().find(|configuration| configuration.case() == case)
    }

    /// Puts a configuration in its place, or in that of the same one measured before.
    pub(crate) fn insert(&mut self, configuration: Configuration) {
        let case = configuration.case();
        match self.configurations.binary_search_by_key(&case, Configuration::case) {
            Ok(at) => self.configurations[at] = configuration,
            Err(at) => self.configurations.insert(at, configuration),
        }
    }

    /// Takes the figures of a later run in, in place of the same ones measured before.
    ///
    /// # Errors
    /// Figures of another machine or of other versions do not belong into one report.
    pub(crate) fn merge(&mut self, later: Self) -> Result<()> {
        let Self { schema: _, date, machine, versions, notes, unmeasured, configurations } = later;
        ensure!(machine == self.machine, "the machines differ: {:?} and {machine:?}", self.machine);
        for (name, version) in versions {
            let known = self.versions.entry(name.clone()).or_insert_with(|| version.clone());
            ensure!(*known == version, "{name} is {known:?} in one report, {version:?} in another");
        }
        self.date = date;
        for note in notes {
            if !self.notes.contains(&note) {
                self.notes.push(note);
            }
        }
        self.configurations.sort_by_key(Configuration::case);
        for mut configuration in configurations {
            if let Some(earlier) = self.configuration(configuration.case()) {
                configuration.keep_sizes_of(earlier);
            }
            self.insert(configuration);
        }
        self.unmeasured.extend(unmeasured);
        self.unmeasured.sort_unstable();
        self.unmeasured.dedup();
        let measured: Vec<_> = self.configurations.iter().map(Configuration::case).collect();
        self.unmeasured.retain(|case| !measured.contains(case));
        Ok(())
    }
}

impl Configuration {
    pub(crate) const fn case(&self) -> Case {
        Case { op: self.op, ranks: self.ranks, series: self.series }
    }

    /// Takes in the sizes that were measured before and not again, where the same sides ran as often.
    fn keep_sizes_of(&mut self, earlier: &Self) {
        let ran = |sides: &[Side]| -> Vec<_> {
            sides.iter().map(|side| (side.name.clone(), side.rounds)).collect()
        };
        if ran(&self.sides) != ran(&earlier.sides) {
            return;
        }
        let is_new = |row: &&Row| self.rows.iter().all(|own| own.bytes != row.bytes);
        let kept: Vec<_> = earlier.rows.iter().filter(is_new).cloned().collect();
        self.rows.extend(kept);
        self.rows.sort_by_key(|row| row.bytes);
    }

    /// The sides that were measured, ours first.
    pub(crate) fn measured(&self) -> impl Iterator<Item = &Side> {
        self.sides.iter().filter(|side| side.absent.is_none())
    }
}

/// Writes each row on one line, however pretty the rest is: a size that changed is a line that
/// changed.
fn a_line_each<S: Serializer>(rows: &[Row], serializer: S) -> Result<S::Ok, S::Error> {
    let mut lines = serializer.serialize_seq(Some(rows.len()))?;
    for row in rows {
        let line = serde_json::to_string(row).and_then(RawValue::from_string);
        lines.serialize_element(&line.map_err(serde::ser::Error::custom)?)?;
    }
    lines.end()
}

/// Reports as tests need them.
#[cfg(test)]
pub(crate) mod samples {
    use super::*;

    pub(crate) fn side(name: &str, role: Role) -> Side {
        Side { name: name.into(), role, rounds: 3, in_place: false, absent: None, failed: None }
    }

    pub(crate) fn row(bytes: u64, ours: f64, theirs: &[(&str, f64)]) -> Row {
        let figures = |median_us: f64| Figures {
            median_us,
            min_us: Some(median_us * 0.9),
            max_us: Some(median_us * 1.1),
            issue_us: Some(median_us / 2.0),
            in_place_us: None,
            busbw_gbps: bytes as f64 / median_us / 1e3,
        };
        let mut sides = BTreeMap::from([(OURS.to_owned(), figures(ours))]);
        let mut ratio = BTreeMap::new();
        for &(name, time) in theirs {
            sides.insert(name.to_owned(), figures(time));
            let median = ours / time;
            let spread = Spread { median, min: median * 0.8, max: median * 1.2 };
            ratio.insert(name.to_owned(), spread);
        }
        Row { bytes, sides, ratio, processes_ratio: BTreeMap::new() }
    }

    /// As if ranks as processes took this many times as long.
    pub(crate) fn with_processes(mut known: Configuration, slower: f64) -> Configuration {
        known.sides.insert(1, side(PROCESSES, Role::Ours));
        for row in &mut known.rows {
            let mut figures = row.sides[OURS];
            figures.median_us *= slower;
            row.sides.insert(PROCESSES.into(), figures);
            row.processes_ratio = row.ratio.clone();
            for Spread { median, min, max } in row.processes_ratio.values_mut() {
                [median, min, max].into_iter().for_each(|ratio| *ratio *= slower);
            }
        }
        known
    }

    pub(crate) fn configuration(op: Operation, ranks: u32, series: Series) -> Configuration {
        let gone =
            Side { rounds: 0, absent: Some("no compiler".into()), ..side("Gloo", Role::Peer) };
        Configuration {
            op,
            ranks,
            series,
            rounds: 3,
            sides: vec![
                side(OURS, Role::Ours),
                side("Open MPI", Role::Peer),
                side("MPICH", Role::Peer),
                gone,
                side("limit", Role::Limit),
            ],
            rows: vec![
                row(8, 1.0, &[("Open MPI", 2.0), ("MPICH", 0.5), ("limit", 0.25)]),
                row(1 << 20, 100.0, &[("Open MPI", 200.0), ("limit", 50.0)]),
            ],
        }
    }

    pub(crate) fn report(configurations: Vec<Configuration>) -> Report {
        Report {
            schema: SCHEMA,
            date: "2026-11-23".into(),
            machine: vec!["a machine".into()],
            versions: BTreeMap::from([
                (OURS.into(), "mock 0.1.0".into()),
                ("Open MPI".into(), "Open MPI 4.1.4".into()),
            ]),
            notes: vec!["float32".into()],
            unmeasured: vec![],
            configurations,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{samples::*, *};

    fn all_reduce(ranks: u32) -> Configuration {
        configuration(Operation::AllReduce, ranks, Series::Loop)
    }

    #[test]
    fn a_report_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("new/report.json");
        let report = report(vec![all_reduce(2)]);
        report.write(&path).expect("room");
        assert_eq!(Report::read(&path).expect("a report"), report);
        let text = fs::read_to_string(&path).expect("text");
        let lines: Vec<_> = text.lines().filter(|line| line.contains("\"bytes\"")).collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[0].contains("\"ratio\":{\"MPICH\":"), "{text}");
    }

    #[test]
    fn what_is_no_report_is_refused() {
        let whole = serde_json::to_string(&report(vec![all_reduce(2)])).expect("JSON");
        let refusal = |text: &str| Report::parse(text).expect_err("refused").to_string();
        assert_eq!(
            refusal(&whole.replace("\"schema\":1", "\"schema\":2")),
            "schema 2, want 1: measure again"
        );
        assert!(refusal(&whole.replace("\"absent\"", "\"absence\"")).contains("unknown field"));
        assert!(refusal(&whole.replace("\"loop\"", "\"lop\"")).contains("unknown variant"));
        assert!(refusal(&whole[..whole.len() / 2]).contains("EOF"));
    }

    #[test]
    fn merging_replaces_what_was_measured_again() {
        let mut first = report(vec![all_reduce(4), all_reduce(2)]);
        first.unmeasured = vec![all_reduce(8).case()];
        let mut again = all_reduce(2);
        again.rounds = 9;
        let mut later = report(vec![again.clone()]);
        later.date = "2026-11-24".into();
        later.notes.push("again".into());
        later.versions.insert("MPICH".into(), "MPICH 4.0.2".into());
        first.merge(later).expect("the same machine");
        assert_eq!(first.configurations, [again.clone(), all_reduce(4)]);
        assert_eq!(first.unmeasured, [all_reduce(8).case()]);
        assert_eq!(first.notes, ["float32", "again"]);
        assert_eq!(first.versions.len(), 3);
        assert_eq!(first.date, "2026-11-24");
        first.merge(report(vec![all_reduce(8)])).expect("the same machine");
        assert_eq!(first.configurations, [again, all_reduce(4), all_reduce(8)]);
        assert_eq!(first.unmeasured, []);
    }

    #[test]
    fn merging_adds_sizes_where_the_same_sides_ran_as_often() {
        let sizes = |report: &Report| -> Vec<_> {
            report.configurations[0].rows.iter().map(|row| row.bytes).collect()
        };
        let mut larger = all_reduce(2);
        larger.rows = vec![row(1 << 20, 90.0, &[]), row(1 << 30, 1e5, &[])];
        let mut first = report(vec![all_reduce(2)]);
        first.merge(report(vec![larger.clone()])).expect("the same machine");
        assert_eq!(sizes(&first), [8, 1 << 20, 1 << 30]);
        assert_eq!(first.configurations[0].rows[1..], larger.rows);
        larger.sides[1].rounds = 1;
        first.merge(report(vec![larger])).expect("the same machine");
        assert_eq!(sizes(&first), [1 << 20, 1 << 30]);
    }

    #[test]
    fn figures_of_different_things_are_not_merged() {
        let mut other = report(vec![]);
        other.machine = vec!["another".into()];
        let error = report(vec![]).merge(other).expect_err("refused").to_string();
        assert!(error.starts_with("the machines differ"), "{error}");
        let mut other = report(vec![]);
        other.versions.insert("Open MPI".into(), "Open MPI 5".into());
        let error = report(vec![]).merge(other).expect_err("refused").to_string();
        assert_eq!(
            error,
            "Open MPI is \"Open MPI 4.1.4\" in one report, \"Open MPI 5\" in another"
        );
    }
}
