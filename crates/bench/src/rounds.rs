//! Runs every side in turns, and keeps the report up to date while it does.
//!
//! A step is one round of one configuration: each side runs once, and of those that take part the
//! one that starts is another each time, so that none always runs on a machine that another has
//! warmed up. Where several configurations are the same to some side, as `loop` and `sync-each` are
//! to a library whose calls block, a step is a round of all of them, and that side runs once for all.
//! What the machine could do is measured in the first round, and every round is held against it. The
//! report is written after each step; whoever stops the program loses that step only.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

use crate::{
    parse::{Placed, Run},
    process::Failure,
    report::{Case, Configuration, OURS, Report, Role, Side},
    statistics::{self, Round},
};

/// Who can be measured.
pub(crate) trait Contender {
    fn name(&self) -> &str;

    fn role(&self) -> Role;

    /// Why this side has no part in a configuration: what is missing, or what it cannot do.
    fn absent(&self, case: Case) -> Option<String>;

    /// The configuration that is run in place of this one, since they are the same to this side.
    fn stand_in(&self, case: Case) -> Case {
        case
    }

    /// How many rounds of a configuration it takes part in.
    fn rounds(&self) -> usize {
        usize::MAX
    }

    /// Runs once. `round` counts from 0.
    fn run(&self, case: Case, round: usize, limit: Duration) -> Result<Run, Failure>;
}

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// One run of one side.
    pub(crate) run: Duration,
    /// Everything; no step is started that would probably end later.
    pub(crate) whole: Duration,
}

/// A measurement under way.
pub(crate) struct Rounds {
    contenders: Vec<Box<dyn Contender>>,
    report: Report,
    path: PathBuf,
    states: BTreeMap<Case, State>,
    limits: Limits,
    start: Instant,
    progress: ProgressBar,
}

/// What is known of a configuration so far.
#[derive(Default)]
struct State {
    rounds: Vec<Round>,
    /// Sides that take no part any more, and why.
    out: BTreeMap<String, Failure>,
    longest: Duration,
}

impl Rounds {
    /// Starts with an empty report, to be written to `path`.
    pub(crate) fn new(
        contenders: Vec<Box<dyn Contender>>,
        report: Report,
        path: PathBuf,
        limits: Limits,
    ) -> Self {
        let (states, start) = (BTreeMap::new(), Instant::now());
        let progress = ProgressBar::hidden();
        Self { contenders, report, path, states, limits, start, progress }
    }

    /// Takes the steps in their order, each the configurations that are measured together; one may
    /// be taken more than once. Answers the failures of `collectives` itself: those are for whoever
    /// runs this, not for readers of the report alone.
    pub(crate) fn run(mut self, steps: &[Vec<Case>]) -> Result<Vec<String>> {
        self.progress = progress_bar(steps.len());
        for step in steps {
            if self.is_late(step) {
                say(&self.progress, &format!("left out, no time: {}", texts(step)));
            } else {
                self.step(step);
                for &case in step {
                    self.keep(case);
                }
                self.report.write(&self.path)?;
            }
            self.progress.inc(1);
        }
        self.note_unmeasured(steps);
        self.report.write(&self.path)?;
        self.progress.finish_and_clear();
        let ours = self.contenders.iter().filter(|side| side.role() == Role::Ours);
        let ours: Vec<_> = ours.map(|side| side.name()).collect();
        let failed = |(case, state): (&Case, &State)| {
            let failures = ours.iter().filter_map(|&name| Some((name, state.out.get(name)?)));
            failures.map(|(name, why)| format!("{case}: {name}: {why}")).collect::<Vec<_>>()
        };
        Ok(self.states.iter().flat_map(failed).collect())
    }

    /// Whether a step would probably end too late. One that was never taken takes as long as the
    /// longest that was.
    fn is_late(&self, step: &[Case]) -> bool {
        let known = step.iter().find_map(|case| Some(self.states.get(case)?.longest));
        let longest = known.unwrap_or_else(|| {
            self.states.values().map(|state| state.longest).max().unwrap_or_default()
        });
        self.start.elapsed() + longest > self.limits.whole
    }

    fn step(&mut self, step: &[Case]) {
        let start = Instant::now();
        let number = step.iter().find_map(|case| Some(self.states.get(case)?.rounds.len()));
        let number = number.unwrap_or_default();
        let what = format!("{}, round {}", texts(step), number + 1);
        let mut rounds: BTreeMap<Case, Round> = BTreeMap::new();
        for at in self.order(step, number) {
            let contender = &self.contenders[at];
            let name = contender.name();
            let mut ran: BTreeMap<Case, Result<Run, Failure>> = BTreeMap::new();
            for &case in step {
                let state = self.states.entry(case).or_default();
                if contender.role() == Role::Limit
                    && let Some(run) = state.rounds.iter().find_map(|round| round.get(name))
                {
                    // It is the machine's, and not of this round.
                    rounds.entry(case).or_default().insert(name.to_owned(), run.clone());
                    continue;
                }
                if !takes_part(contender.as_ref(), case, number, Some(state)) {
                    continue;
                }
                self.progress.set_message(format!("{what}: {name}"));
                let stand_in = contender.stand_in(case);
                let run = || contender.run(stand_in, number, self.limits.run);
                match ran.entry(stand_in).or_insert_with(run).clone() {
                    Ok(run) => {
                        if let Some(library) = &run.library {
                            self.report.versions.insert(name.to_owned(), library.clone());
                        }
                        rounds.entry(case).or_default().insert(name.to_owned(), run);
                    }
                    Err(failure) => {
                        say(&self.progress, &format!("{case}: {name}: {failure}"));
                        state.out.insert(name.to_owned(), failure);
                    }
                }
            }
        }
        for &case in step {
            let mut round = rounds.remove(&case).unwrap_or_default();
            let state = self.states.entry(case).or_default();
            for (name, failure) in refuse_strange_sizes(case, &mut round) {
                say(&self.progress, &format!("{case}: {name}: {failure}"));
                state.out.insert(name, failure);
            }
            state.rounds.push(round);
            state.longest = state.longest.max(start.elapsed());
        }
        if self.progress.is_hidden() {
            eprintln!("{what}: {:.1} s", start.elapsed().as_secs_f64());
        }
    }

    /// The contenders of a round in their turns. Whoever takes no part has no turn, else the next
    /// one would start twice as often; limits, which run in the first round alone, come last.
    fn order(&self, step: &[Case], number: usize) -> Vec<usize> {
        let all = (0..self.contenders.len()).filter(|&at| {
            let contender = self.contenders[at].as_ref();
            step.iter().any(|&case| takes_part(contender, case, number, self.states.get(&case)))
        });
        let (limits, mut order): (Vec<_>, Vec<_>) =
            all.partition(|&at| self.contenders[at].role() == Role::Limit);
        if !order.is_empty() {
            let start = number % order.len();
            order.rotate_left(start);
        }
        order.extend(limits);
        order
    }

    /// Puts what is known of a configuration into the report.
    fn keep(&mut self, case: Case) {
        let Some(state) = self.states.get_mut(&case) else { return };
        let tainted = |name: &str| state.out.get(name).is_some_and(Failure::taints);
        for round in &mut state.rounds {
            round.retain(|name, _| !tainted(name));
        }
        let sides = self.contenders.iter().map(|contender| {
            let name = contender.name().to_owned();
            let runs = || state.rounds.iter().filter_map(|round| round.get(&name));
            let (rounds, in_place) =
                (runs().count(), runs().any(|run| run.placed == Placed::InPlace));
            let failure = state.out.get(&name).map(Failure::to_string);
            let (absent, failed) = match (contender.absent(case), rounds > 0) {
                (Some(reason), _) => (Some(reason), None),
                (None, true) => (None, failure),
                (None, false) => (failure, None),
            };
            Side { name, role: contender.role(), rounds, in_place, absent, failed }
        });
        let sides: Vec<_> = sides.collect();
        let names: Vec<_> = sides.iter().map(|side| side.name.clone()).collect();
        let Case { op, ranks, series } = case;
        let rows = statistics::rows(case, &names, &state.rounds);
        let rounds = state.rounds.len();
        self.report.insert(Configuration { op, ranks, series, rounds, sides, rows });
    }

    /// Names what the time was too short for.
    fn note_unmeasured(&mut self, steps: &[Vec<Case>]) {
        let unknown = |case: &&Case| self.report.configuration(**case).is_none();
        let mut unmeasured: Vec<_> = steps.iter().flatten().filter(unknown).copied().collect();
        unmeasured.sort_unstable();
        unmeasured.dedup();
        self.report.unmeasured = unmeasured;
    }
}

fn takes_part(contender: &dyn Contender, case: Case, round: usize, state: Option<&State>) -> bool {
    let is_out = state.is_some_and(|state| state.out.contains_key(contender.name()));
    round < contender.rounds() && contender.absent(case).is_none() && !is_out
}

/// Several configurations in one line.
fn texts(cases: &[Case]) -> String {
    cases.iter().map(Case::to_string).collect::<Vec<_>>().join("; ")
}

/// Takes out of a round what measured other sizes than `collectives` did: a side that reckons sizes
/// in another way would be compared at sizes that only seem to be the same.
///
/// Where a part would be less than 16 bytes, nccl-tests measures nothing; such sizes may be missing.
fn refuse_strange_sizes(case: Case, round: &mut Round) -> Vec<(String, Failure)> {
    let ours = statistics::ours(round).map(|run| run.times.clone());
    let Some(ours) = ours else { return Vec::new() };
    let mut refused = Vec::new();
    round.retain(|name, run| {
        let missing = ours.keys().filter(|bytes| **bytes >= SMALLEST_PART * u64::from(case.ranks));
        let missing = missing.filter(|bytes| !run.times.contains_key(bytes));
        let added = run.times.keys().filter(|bytes| !ours.contains_key(bytes));
        let strange: Vec<_> = missing.chain(added).map(u64::to_string).collect();
        if !strange.is_empty() {
            let what = format!("sizes that only one of it and {OURS} measured: ");
            refused.push((name.clone(), Failure::Unreadable(what + &strange.join(", "))));
        }
        strange.is_empty()
    });
    refused
}

/// Hidden where standard error is no terminal. Drawn only between runs, so that it takes no time
/// from them.
fn progress_bar(steps: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40.cyan/dim} {pos:>3}/{len} {elapsed}  {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━╸─");
    ProgressBar::new(steps as u64).with_style(style)
}

/// A line beside the progress, wherever that goes.
fn say(progress: &ProgressBar, line: &str) {
    progress.suspend(|| eprintln!("{line}"));
}

const SMALLEST_PART: u64 = 16;

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc};

    use super::*;
    use crate::{
        operation::{Operation, Series},
        parse::Time,
        report::PROCESSES,
    };

    const CASE: Case = Case { op: Operation::AllGather, ranks: 2, series: Series::Loop };
    const OTHER: Case = Case { op: Operation::Reduce, ..CASE };

    const BLOCKING: &str = "blocking";
    const LIMIT: &str = "limit";

    type Runs = Vec<Result<Run, Failure>>;

    /// Answers from a list, a run each.
    struct Script {
        name: &'static str,
        absent: Option<&'static str>,
        runs: RefCell<Runs>,
        log: Rc<RefCell<Vec<&'static str>>>,
    }

    impl Contender for Script {
        fn name(&self) -> &str {
            self.name
        }

        fn role(&self) -> Role {
            match self.name {
                OURS | PROCESSES => Role::Ours,
                LIMIT => Role::Limit,
                _ => Role::Peer,
            }
        }

        fn absent(&self, _: Case) -> Option<String> {
            self.absent.map(str::to_owned)
        }

        fn stand_in(&self, case: Case) -> Case {
            let series = if self.name == BLOCKING { Series::Loop } else { case.series };
            Case { series, ..case }
        }

        fn run(&self, _: Case, _: usize, _: Duration) -> Result<Run, Failure> {
            self.log.borrow_mut().push(self.name);
            self.runs.borrow_mut().remove(0)
        }
    }

    fn times(us: f64) -> Result<Run, Failure> {
        let times = [(8, us), (64, us)].map(|(bytes, us)| (bytes, Time { us, issue_us: None }));
        Ok(Run { library: Some("a library".into()), times: times.into(), ..Run::default() })
    }

    /// Runs the steps; answers the report, who ran, and the failures of ours.
    fn measure<const N: usize>(
        scripts: Vec<(&'static str, Option<&'static str>, Runs)>,
        steps: &[[Case; N]],
        whole: Duration,
    ) -> (Report, Vec<&'static str>, Vec<String>) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("report.json");
        let log = Rc::new(RefCell::new(Vec::new()));
        let contender = |(name, absent, runs)| {
            let (runs, log) = (RefCell::new(runs), Rc::clone(&log));
            Box::new(Script { name, absent, runs, log }) as Box<dyn Contender>
        };
        let contenders = scripts.into_iter().map(contender).collect();
        let limits = Limits { run: Duration::from_secs(1), whole };
        let report = Report::new(vec!["a machine".into()], vec![]);
        let rounds = Rounds::new(contenders, report, path.clone(), limits);
        let steps: Vec<_> = steps.iter().map(|step| step.to_vec()).collect();
        let failures = rounds.run(&steps).expect("a report");
        (Report::read(&path).expect("a report"), log.take(), failures)
    }

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn sides_take_turns_in_starting() {
        let four = || vec![times(1.0), times(2.0), times(2.0), times(4.0)];
        let scripts =
            vec![(OURS, None, four()), ("X", None, four()), ("gone", Some("no compiler"), vec![])];
        let (report, log, failures) = measure(scripts, &[[CASE]; 4], HOUR);
        // Had the absent one a turn, `collectives` would start in three of the four.
        assert_eq!(log, [OURS, "X", "X", OURS, OURS, "X", "X", OURS]);
        let configuration = report.configuration(CASE).expect("measured");
        assert_eq!(configuration.rounds, 4);
        assert_eq!(configuration.sides[2].absent.as_deref(), Some("no compiler"));
        assert_eq!(configuration.rows[0].sides[OURS].median_us, 2.0);
        assert_eq!(configuration.rows[0].ratio["X"].median, 1.0);
        assert_eq!(report.versions["X"], "a library");
        assert!(failures.is_empty());
    }

    #[test]
    fn a_side_to_which_series_are_the_same_runs_once_for_all() {
        let synced = Case { series: Series::SyncEach, ..CASE };
        let scripts =
            vec![(OURS, None, vec![times(1.0), times(3.0)]), (BLOCKING, None, vec![times(2.0)])];
        let (report, log, _) = measure(scripts, &[[CASE, synced]], HOUR);
        assert_eq!(log, [OURS, OURS, BLOCKING]);
        let ratio = |case| {
            let known = report.configuration(case).expect("measured");
            known.rows[0].ratio[BLOCKING].median
        };
        assert_eq!((ratio(CASE), ratio(synced)), (0.5, 1.5));
    }

    #[test]
    fn the_machine_is_measured_once_and_every_round_held_against_it() {
        let scripts = vec![
            (OURS, None, vec![times(1.0), times(2.0), times(6.0)]),
            (LIMIT, None, vec![times(0.5)]),
        ];
        let (report, log, _) = measure(scripts, &[[CASE]; 3], HOUR);
        assert_eq!(log, [OURS, LIMIT, OURS, OURS]);
        let known = report.configuration(CASE).expect("measured");
        assert_eq!(known.rows[0].ratio[LIMIT].median, 4.0);
    }

    #[test]
    fn a_failed_side_runs_no_more_and_says_why() {
        let late = Failure::TimedOut(Duration::from_secs(60));
        let wrong = Failure::WrongData("1 wrong element".into());
        let ended = Failure::Ended("exit status: 1".into());
        let scripts = vec![
            (OURS, None, vec![times(1.0), times(1.0), times(1.0)]),
            ("late", None, vec![times(2.0), Err(late)]),
            ("wrong", None, vec![times(2.0), Err(wrong)]),
            ("ended", None, vec![times(2.0), Err(ended)]),
        ];
        let (report, log, _) = measure(scripts, &[[CASE]; 3], HOUR);
        assert_eq!(log.iter().filter(|name| **name != OURS).count(), 6, "{log:?}");
        let configuration = report.configuration(CASE).expect("measured");
        let [_, late, wrong, ended] = &configuration.sides[..] else { panic!("four sides") };
        assert_eq!(late.failed.as_deref(), Some("ended after 60 s without result"));
        assert!(late.absent.is_none() && configuration.rows[0].ratio.contains_key("late"));
        // What was measured before cannot be trusted either.
        assert_eq!(wrong.absent.as_deref(), Some("wrong data: 1 wrong element"));
        assert_eq!(ended.absent.as_deref(), Some("exit status: 1"));
        let known = &configuration.rows[0].sides;
        assert!(!known.contains_key("wrong") && !known.contains_key("ended"));
    }

    #[test]
    fn failures_of_ours_are_told_apart() {
        let failure = Failure::Ended("perf ended with exit status: 1".into());
        let failing = || vec![Err(failure.clone())];
        for name in [OURS, PROCESSES] {
            let scripts = vec![(name, None, failing()), ("X", None, vec![times(1.0)])];
            let (report, _, failures) = measure(scripts, &[[CASE]], HOUR);
            let want = format!("all_gather, 2 ranks, loop: {name}: perf ended with exit status: 1");
            assert_eq!(failures, [want]);
            assert!(report.configuration(CASE).expect("kept").rows.is_empty());
        }
    }

    #[test]
    fn what_the_time_is_too_short_for_is_named() {
        let scripts = vec![(OURS, None, vec![])];
        let (report, log, _) = measure(scripts, &[[OTHER], [CASE], [CASE]], Duration::ZERO);
        assert!(log.is_empty() && report.configurations.is_empty());
        assert_eq!(report.unmeasured, [CASE, OTHER]);
    }

    #[test]
    fn sizes_must_be_those_of_ours() {
        let sizes = |sizes: &[u64]| {
            let times = sizes.iter().map(|&bytes| (bytes, Time { us: 1.0, issue_us: None }));
            Run { times: times.collect(), ..Run::default() }
        };
        let mut round: Round = [
            (OURS, sizes(&[8, 64, 128])),
            ("same", sizes(&[8, 64, 128])),
            ("no small ones", sizes(&[64, 128])),
            ("fewer", sizes(&[8, 128])),
            ("others", sizes(&[8, 64, 100, 128])),
        ]
        .map(|(name, run)| (name.to_owned(), run))
        .into();
        let refused = refuse_strange_sizes(CASE, &mut round);
        assert_eq!(round.keys().collect::<Vec<_>>(), [OURS, "no small ones", "same"]);
        let refused: Vec<_> =
            refused.iter().map(|(name, failure)| format!("{name}: {failure}")).collect();
        assert_eq!(
            refused,
            [
                "fewer: unreadable: sizes that only one of it and collectives measured: 64",
                "others: unreadable: sizes that only one of it and collectives measured: 100",
            ]
        );
    }
}
