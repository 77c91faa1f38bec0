//! What programs print, as times by size.
//!
//! Figures of a run that computed wrong results, or that did not say everything in the way agreed
//! on, are refused as a whole: a benchmark has no use for most of them.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::process::Failure;

/// One run of one side.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Run {
    /// What ran, in its own words.
    pub(crate) library: Option<String>,
    /// By the size of the largest buffer of any rank, in bytes.
    pub(crate) times: BTreeMap<u64, Time>,
    /// Where the operations that `times` is about put their results.
    pub(crate) placed: Placed,
    /// The times in place, where both were measured.
    pub(crate) in_place: BTreeMap<u64, Time>,
}

/// Microseconds of one call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Time {
    /// Until the result was there.
    pub(crate) us: f64,
    /// Until the last call returned, divided by the calls; `None` where that is the same or not
    /// known.
    pub(crate) issue_us: Option<f64>,
}

/// Where an operation puts its result.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Placed {
    #[default]
    OutOfPlace,
    InPlace,
}

/// Reads what `collectives perf --json` writes.
pub(crate) fn perf(text: &str, placed: Placed) -> Result<Run, Failure> {
    let report: Perf = serde_json::from_str(text)
        .map_err(|error| Failure::Unreadable(format!("no report of perf: {error}")))?;
    let mut run = Run { placed, ..Run::default() };
    for row in report.results {
        let bytes = row.bytes;
        for placement in [Some(&row.out_of_place), row.in_place.as_ref()].into_iter().flatten() {
            refuse_wrong(bytes, placement.wrong.unwrap_or_default() as f64)?;
        }
        let time = |Placement { time_us: us, issue_us, .. }| Time { us, issue_us };
        if let Some(in_place) = row.in_place {
            run.in_place.insert(bytes, measured(bytes, time(in_place))?);
        }
        match placed {
            Placed::OutOfPlace => run.insert(bytes, time(row.out_of_place))?,
            Placed::InPlace => match run.in_place.get(&bytes) {
                Some(&time) => run.insert(bytes, time)?,
                None => {
                    let what = format!("nothing in place at {bytes} bytes");
                    return Err(Failure::Unreadable(what));
                }
            },
        }
    }
    let ours = env!("CARGO_PKG_VERSION");
    run.library = Some(match report.backend.as_str() {
        "nccl" => format!("collectives {ours}, NCCL {}", report.version),
        // Its version is that of the NCCL whose rules it keeps.
        backend => format!("collectives {ours}, {backend}"),
    });
    run.complete()
}

/// Reads what the programs of `benches/peers` print: lines of `BYTES MICROSECONDS [ISSUE]`, and
/// `# library: …`, `# placement: in place`. Lines that start with no number are a library's own words.
pub(crate) fn peer(text: &str) -> Result<Run, Failure> {
    let mut run = Run::default();
    for line in text.lines() {
        if let Some(library) = line.strip_prefix("# library:") {
            run.library = Some(library.trim().to_owned());
        }
        if line.split_whitespace().eq(["#", "placement:", "in", "place"]) {
            run.placed = Placed::InPlace;
        }
        let Some(bytes) = leading_number(line) else { continue };
        let times: Option<Vec<f64>> =
            line.split_whitespace().skip(1).map(|field| field.parse().ok()).collect();
        let (us, issue_us) = match times.as_deref() {
            Some(&[us]) => (us, None),
            Some(&[us, issue]) => (us, Some(issue)),
            _ => return Err(Failure::Unreadable(format!("no size and times: {line:?}"))),
        };
        run.insert(bytes, Time { us, issue_us })?;
    }
    run.complete()
}

/// Reads the table of nccl-tests. Times are those out of place; with `-C 1`, they are those of the
/// calls alone.
///
/// A size of zero is left out: where a part would be less than 16 bytes, nccl-tests moves nothing.
pub(crate) fn nccl_tests(text: &str) -> Result<Run, Failure> {
    let mut run = Run::default();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# nccl-tests version ") {
            run.library = Some(nccl_tests_version(rest));
        }
        if line.starts_with("# Out of bounds values") && !line.trim_end().ends_with("OK") {
            let said = line.trim_start_matches("# ").to_owned();
            return Err(Failure::WrongData(said));
        }
        let Some(bytes) = leading_number(line) else { continue };
        // size count type redop root, then time algbw busbw #wrong, out of place first.
        let fields: Vec<_> = line.split_whitespace().collect();
        let unreadable = || Failure::Unreadable(format!("no row of nccl-tests: {line:?}"));
        let (&[_, _, _, _, _, time, _, _, wrong], in_place) =
            fields.split_first_chunk().ok_or_else(unreadable)?;
        if in_place.len() < 4 {
            return Err(unreadable());
        }
        if wrong != "N/A" {
            refuse_wrong(bytes, wrong.parse().map_err(|_| unreadable())?)?;
        }
        let us = time.parse().map_err(|_| unreadable())?;
        if bytes > 0 {
            run.insert(bytes, Time { us, issue_us: None })?;
        }
    }
    run.complete()
}

impl Run {
    /// The times until the last call returned, from a run that measured only those.
    pub(crate) fn with_issue(mut self, calls: &Self) -> Self {
        for (bytes, time) in &mut self.times {
            time.issue_us = calls.times.get(bytes).map(|calls| calls.us);
        }
        self
    }

    /// The times of operations that put their results there.
    pub(crate) fn times_of(&self, placed: Placed) -> &BTreeMap<u64, Time> {
        match (placed, self.placed) {
            (Placed::InPlace, Placed::OutOfPlace) => &self.in_place,
            // Where a run is in place, so is whatever it is compared with.
            (Placed::InPlace, Placed::InPlace) | (Placed::OutOfPlace, _) => &self.times,
        }
    }

    fn insert(&mut self, bytes: u64, time: Time) -> Result<(), Failure> {
        if self.times.insert(bytes, measured(bytes, time)?).is_some() {
            return Err(Failure::Unreadable(format!("{bytes} bytes twice")));
        }
        Ok(())
    }

    fn complete(self) -> Result<Self, Failure> {
        match self.times.is_empty() {
            true => Err(Failure::Unreadable("no figures in its output".into())),
            false => Ok(self),
        }
    }
}

/// What this needs of a report of perf.
#[derive(Deserialize)]
struct Perf {
    backend: String,
    version: String,
    results: Vec<PerfRow>,
}

#[derive(Deserialize)]
struct PerfRow {
    bytes: u64,
    out_of_place: Placement,
    in_place: Option<Placement>,
}

#[derive(Deserialize)]
struct Placement {
    time_us: f64,
    issue_us: Option<f64>,
    wrong: Option<u64>,
}

/// The time, if it is one.
fn measured(bytes: u64, time: Time) -> Result<Time, Failure> {
    let Time { us, issue_us } = time;
    let is_time = us.is_finite() && us > 0.0;
    let is_issue = issue_us.is_none_or(|us| us.is_finite() && us >= 0.0);
    match is_time && is_issue {
        true => Ok(time),
        false => Err(Failure::Unreadable(format!("no time at {bytes} bytes: {us} µs"))),
    }
}

fn refuse_wrong(bytes: u64, wrong: f64) -> Result<(), Failure> {
    match wrong == 0.0 {
        true => Ok(()),
        false => Err(Failure::WrongData(format!("{wrong} wrong elements at {bytes} bytes"))),
    }
}

/// The number that a line starts with, if all of its first word is one.
fn leading_number(line: &str) -> Option<u64> {
    line.split_whitespace().next()?.parse().ok()
}

/// `2.19.6 nccl-headers=22809 nccl-library=22809` for people.
fn nccl_tests_version(text: &str) -> String {
    let mut words = text.split_whitespace();
    let version = words.next().unwrap_or_default();
    let library = words.find_map(|word| word.strip_prefix("nccl-library="));
    match library.and_then(|code| code.parse::<u32>().ok()) {
        // NCCL_VERSION in nccl.h, from 2.9 on.
        Some(code) => format!(
            "nccl-tests {version}, NCCL {}.{}.{}",
            code / 10_000,
            code / 100 % 100,
            code % 100
        ),
        None => format!("nccl-tests {version}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NCCL_TESTS: &str = "\
# nccl-tests version 2.19.6 nccl-headers=22809 nccl-library=22809
# Collective test starting: all_gather_perf
#       size         count      type   redop    root     time   algbw   busbw  #wrong
host: Test NCCL words on stdout
           0        0  float  none  -1   5.00    0.00    0.00  N/A   5.10    0.00    0.00  N/A
          32        4  float  none  -1   6.00    0.00    0.00  N/A   6.10    0.00    0.00  N/A
    16777216  4194304  float  none  -1  80.00  209.72  209.72    0  80.30  208.93  208.93    0
# Out of bounds values : 0 OK
";

    fn perf_json(time: &str, wrong: &str) -> String {
        format!(
            r#"{{"backend": "nccl", "library": "/opt/libnccl.so.2", "version": "2.28.9",
            "ranks": 2, "results": [{{"op": "all_reduce", "bytes": 8, "count": 2,
            "out_of_place": {{"time_us": {time}, "busbw_gbps": 1, "issue_us": 0.5, "wrong": 0}},
            "in_place": {{"time_us": 9, "busbw_gbps": 1, "issue_us": null, "wrong": {wrong}}}}}]}}"#
        )
    }

    fn time(us: f64) -> Time {
        Time { us, issue_us: None }
    }

    fn why<T: std::fmt::Debug>(result: Result<T, Failure>) -> String {
        result.expect_err("refused").to_string()
    }

    fn out_of_place(text: &str) -> Result<Run, Failure> {
        perf(text, Placed::OutOfPlace)
    }

    #[test]
    fn reports_of_perf_give_times_of_either_form() {
        let run = out_of_place(&perf_json("3.5", "null")).expect("a report");
        let library = run.library.expect("it says so");
        assert!(library.starts_with("collectives ") && library.ends_with(", NCCL 2.28.9"));
        assert_eq!(run.times, BTreeMap::from([(8, Time { us: 3.5, issue_us: Some(0.5) })]));
        let older = perf_json("3.5", "0").replace(r#""issue_us": 0.5, "#, "");
        assert_eq!(out_of_place(&older).expect("a report").times[&8], time(3.5));
        let run = perf(&perf_json("3.5", "0"), Placed::InPlace).expect("a report");
        assert_eq!(run.times[&8], time(9.0));
        let none = perf_json("3.5", "0").replace("in_place\": {", "other\": {");
        assert_eq!(why(perf(&none, Placed::InPlace)), "unreadable: nothing in place at 8 bytes");
    }

    #[test]
    fn wrong_data_is_refused_wherever_it_is() {
        let in_place = out_of_place(&perf_json("3.5", "3"));
        assert!(matches!(&in_place, Err(Failure::WrongData(_))));
        assert_eq!(why(in_place), "wrong data: 3 wrong elements at 8 bytes");
        let out_of_place = nccl_tests(&NCCL_TESTS.replace("209.72    0", "209.72    5"));
        assert_eq!(why(out_of_place), "wrong data: 5 wrong elements at 16777216 bytes");
        let in_place = nccl_tests(&NCCL_TESTS.replace(": 0 OK", ": 7 FAILED"));
        assert_eq!(why(in_place), "wrong data: Out of bounds values : 7 FAILED");
    }

    #[test]
    fn tables_of_nccl_tests_give_times_out_of_place() {
        let run = nccl_tests(NCCL_TESTS).expect("a table");
        assert_eq!(run.library.as_deref(), Some("nccl-tests 2.19.6, NCCL 2.28.9"));
        assert_eq!(run.times, BTreeMap::from([(32, time(6.0)), (16_777_216, time(80.0))]));
        let calls = nccl_tests(&NCCL_TESTS.replace("   6.00", "   1.50")).expect("a table");
        let run = run.with_issue(&calls);
        assert_eq!(run.times[&32], Time { us: 6.0, issue_us: Some(1.5) });
    }

    #[test]
    fn lines_of_peers_give_times_and_what_calls_cost() {
        let text = "# library: Open MPI 4.1.4\n# ranks: 2\nmpirun says hello\n8 0.25\n16 0.5 0.1\n";
        let run = peer(text).expect("figures");
        assert_eq!(run.library.as_deref(), Some("Open MPI 4.1.4"));
        let issued = Time { us: 0.5, issue_us: Some(0.1) };
        assert_eq!(run.times, BTreeMap::from([(8, time(0.25)), (16, issued)]));
        assert_eq!(run.placed, Placed::OutOfPlace);
        let run = peer("# placement: in place\n8 1\n").expect("figures");
        assert_eq!(run.placed, Placed::InPlace);
    }

    #[test]
    fn what_is_malformed_is_refused() {
        assert_eq!(why(peer("8 fast\n")), "unreadable: no size and times: \"8 fast\"");
        assert_eq!(why(peer("8\n")), "unreadable: no size and times: \"8\"");
        assert_eq!(why(peer("8 1 2 3\n")), "unreadable: no size and times: \"8 1 2 3\"");
        assert_eq!(why(peer("8 0\n")), "unreadable: no time at 8 bytes: 0 µs");
        assert_eq!(why(peer("8 -1\n")), "unreadable: no time at 8 bytes: -1 µs");
        assert_eq!(why(peer("8 nan\n")), "unreadable: no time at 8 bytes: NaN µs");
        assert_eq!(why(peer("8 1\n8 2\n")), "unreadable: 8 bytes twice");
        assert_eq!(why(peer("# library: X\n")), "unreadable: no figures in its output");
        assert_eq!(why(nccl_tests("")), "unreadable: no figures in its output");
        let cut = NCCL_TESTS.replace("   6.10    0.00    0.00  N/A", "");
        assert!(why(nccl_tests(&cut)).starts_with("unreadable: no row of nccl-tests"));
        assert_eq!(why(out_of_place(&perf_json("0", "0"))), "unreadable: no time at 8 bytes: 0 µs");
        assert!(why(out_of_place("{")).starts_with("unreadable: no report of perf: EOF"));
        assert!(why(out_of_place("{}")).contains("missing field"));
        let empty = r#"{"backend": "mock", "version": "0.1.0", "results": []}"#;
        assert_eq!(why(out_of_place(empty)), "unreadable: no figures in its output");
    }

    #[test]
    fn versions_are_for_people() {
        assert_eq!(
            nccl_tests_version("2.19.6 nccl-library=23203"),
            "nccl-tests 2.19.6, NCCL 2.32.3"
        );
        assert_eq!(nccl_tests_version("2.13"), "nccl-tests 2.13");
    }
}
