//! Programs on the mock, ranks as threads: under a schedule, guards and benign faults that the seed says,
//! within a deadline.

use std::{
    any::Any,
    fmt,
    panic::{self, AssertUnwindSafe},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use collectives_backend_mock::{
    Accumulation, Action as Fault, FaultPlan, Guards, Mock, MockComm, MockConfig, Ranks, Rule,
    Schedule,
};
use collectives_core::{AbortHandle, Backend, Device, RawStream};

use crate::{
    deaths::Death,
    lower::{Action, lower},
    oracle::{Memory, expected},
    program::Program,
    random::Random,
    rank::{End, Keep, Post, Watch, run_rank},
};

/// Under what a program runs.
#[derive(Clone, Debug)]
pub struct Setting {
    /// When work runs.
    pub schedule: Schedule,
    /// What is watched.
    pub guards: Guards,
    /// How small floats are reduced; what programs reduce is exact in both.
    pub accumulation: Accumulation,
    /// Delays and stragglers.
    pub faults: FaultPlan,
}

impl Setting {
    /// The plainest.
    pub const fn plain() -> Self {
        Self {
            schedule: Schedule::Eager,
            guards: Guards::NONE,
            accumulation: Accumulation::Element,
            faults: FaultPlan::new(),
        }
    }

    /// What the seed says.
    pub fn draw(seed: u64) -> Self {
        let mut random = Random::new(seed, 2);
        let schedule = match random.below(5) {
            0 => Schedule::Eager,
            1 => Schedule::Late,
            _ => Schedule::Random(random.next() % 1_000_000),
        };
        let guards = if random.one_in(3) { Guards::NONE } else { Guards::ALL };
        let accumulation = random.of(&[Accumulation::Element, Accumulation::F32]);
        let mut faults = FaultPlan::new().with_seed(random.next());
        if random.one_in(4) {
            let by = Duration::from_micros(20 + random.next() % 400);
            faults = faults.with_rule(Rule::new(Fault::Delay(by)).with_probability(0.1));
        }
        if random.one_in(8) {
            let by = Duration::from_micros(random.next() % 100);
            let rule = Rule::new(Fault::Straggle(by)).on_rank(random.below(6) as u32);
            faults = faults.with_rule(rule.at(3..4));
        }
        if random.one_in(8) {
            let by = Duration::from_micros(random.next() % 1000);
            faults = faults.with_rule(Rule::new(Fault::JoinLate(by)).with_probability(0.3));
        }
        Self { schedule, guards, accumulation, faults }
    }

    /// The same with the rule of a death in front.
    #[must_use]
    pub(crate) fn with_death(mut self, program: &Program, death: Death) -> Self {
        self.faults.rules.splice(0..0, death.rule(program));
        self
    }

    pub(crate) fn mock(&self, program: &Program, ranks: Ranks) -> Mock {
        let config = MockConfig::new()
            .with_ranks(ranks)
            .with_devices(program.ranks)
            .with_schedule(self.schedule)
            .with_guards(self.guards)
            .with_accumulation(self.accumulation)
            .with_faults(self.faults.clone());
        Mock::new(config)
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { schedule, guards, accumulation, faults } = self;
        write!(f, "schedule {schedule}, guards {guards}, accumulation {accumulation:?}, faults")?;
        for rule in &faults.rules {
            write!(f, " [{}, p = {}]", rule.action, rule.probability)?;
        }
        if faults.rules.is_empty() { f.write_str(" none") } else { Ok(()) }
    }
}

/// What is wrong with a run.
#[derive(Debug)]
pub enum Trouble {
    /// Memory is not what the oracle says.
    Difference(String),
    /// A rank was told of an error.
    Error(String),
    /// It did not end; what was pending.
    Hang(String),
    /// Something was not given back, or is still pending, or there was a verdict.
    Left(String),
    /// A rank panicked.
    Panic(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Difference(text) => write!(f, "a difference: {text}"),
            Self::Error(text) => write!(f, "an error: {text}"),
            Self::Hang(text) => write!(f, "a hang: {text}"),
            Self::Left(text) => write!(f, "left behind: {text}"),
            Self::Panic(text) => write!(f, "a panic: {text}"),
        }
    }
}

/// Runs a program and compares all memory of all ranks with the oracle's.
///
/// # Errors
/// What is wrong.
pub fn check(program: &Program, setting: &Setting, deadline: Duration) -> Result<(), Trouble> {
    check_altered(program, &expected(program), setting, deadline, |_, _| {})
}

/// The same, with what ranks do altered behind the back of the oracle.
pub(crate) fn check_altered(
    program: &Program,
    want: &[Memory],
    setting: &Setting,
    deadline: Duration,
    alter: impl Fn(usize, &mut Vec<Action<'_>>) + Send + Sync + 'static,
) -> Result<(), Trouble> {
    let mock = setting.mock(program, Ranks::Threads);
    let keep = Arc::default();
    let outcomes = run(&mock, &keep, program, deadline, None, Arc::new(alter), |_| {})?;
    let (mut ends, mut panics, mut errors) = (Vec::new(), String::new(), String::new());
    for (rank, outcome) in outcomes.into_iter().enumerate() {
        match outcome {
            Ok(End { outcome: Ok(memory), world }) => ends.push((memory, world)),
            Ok(End { outcome: Err(failure), .. }) => {
                errors += &format!("\n  rank {rank}: {failure}");
            }
            Err(text) => panics += &format!("\n  rank {rank}: {text}"),
        }
    }
    if !panics.is_empty() {
        return Err(Trouble::Panic(panics + &errors));
    }
    if !errors.is_empty() {
        return Err(Trouble::Error(errors));
    }
    for (rank, ((have, _), want)) in ends.iter().zip(want).enumerate() {
        if let Some(text) = difference(have, want) {
            return Err(Trouble::Difference(format!("rank {rank}: {text}")));
        }
    }
    drop(ends);
    nothing_left(&mock)?;
    match mock.verdicts().first() {
        Some(verdict) => Err(Trouble::Left(format!("a verdict, without an error: {verdict:?}"))),
        None => Ok(()),
    }
}

/// Fails unless all was given back, and nothing is pending.
pub(crate) fn nothing_left(mock: &Mock) -> Result<(), Trouble> {
    mock.check_leaks().map_err(|error| Trouble::Left(error.to_string()))?;
    for device in 0..mock.device_count().unwrap_or_default() {
        // A schedule may put off what nobody looks at. Failures were told before.
        let Ok(device) = mock.device(device) else { continue };
        // SAFETY: the default stream always lives.
        let _ = unsafe { device.synchronize(RawStream::DEFAULT, Some(Duration::from_secs(5))) };
    }
    match mock.pending().first() {
        None => Ok(()),
        Some(pending) => Err(Trouble::Left(format!("still pending: {pending}"))),
    }
}

/// Changes what a rank does.
pub(crate) type Alter = dyn Fn(usize, &mut Vec<Action<'_>>) + Send + Sync;

/// By rank: how it ended, or what it panicked with.
pub(crate) type Outcomes = Vec<Result<End<MockComm>, String>>;

/// Runs all ranks of a program; joins give up after `joins`. `about_to` is called before everything
/// that a rank does.
pub(crate) fn run(
    mock: &Mock,
    keep: &Arc<Keep>,
    program: &Program,
    deadline: Duration,
    joins: Option<Duration>,
    alter: Arc<Alter>,
    about_to: impl Fn(usize) + Send + Sync + 'static,
) -> Result<Outcomes, Trouble> {
    let error = |error: collectives_core::Error| Trouble::Error(error.to_string());
    let ids = program.comms.iter().map(|_| mock.unique_id()).collect::<Result<Vec<_>, _>>();
    let looker = Arc::new(Looker {
        about_to: Box::new(about_to),
        doing: (0..program.ranks).map(|_| Mutex::default()).collect(),
        handles: Mutex::default(),
    });
    let shared = Arc::new((ids.map_err(error)?, program.clone(), Arc::clone(keep)));
    let (sender, receiver) = mpsc::channel();
    for rank in 0..program.ranks {
        let (mock, shared, looker) = (mock.clone(), Arc::clone(&shared), Arc::clone(&looker));
        let (sender, alter) = (sender.clone(), Arc::clone(&alter));
        let name = format!("rank {rank}");
        let body = move || {
            let (ids, program, keep) = &*shared;
            let post = Post { backend: &mock, ids, rank, joins, watch: &*looker, keep };
            let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
                let mut actions = lower(program, rank);
                alter(rank, &mut actions);
                run_rank(&post, program, &actions)
            }));
            // Nobody listens any more after a hang.
            let _ = sender.send((rank, outcome.map_err(|payload| text_of(&*payload))));
        };
        let spawned = thread::Builder::new().name(name).spawn(body);
        spawned.map_err(|error| Trouble::Error(format!("no thread: {error}")))?;
    }
    let mut outcomes: Vec<_> = (0..program.ranks).map(|_| None).collect();
    let end = Instant::now() + deadline;
    while outcomes.iter().any(Option::is_none) {
        match receiver.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok((rank, outcome)) => outcomes[rank] = Some(outcome),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                let missing = (0..program.ranks).filter(|&rank| outcomes[rank].is_none());
                return Err(looker.hang(mock, missing));
            }
        }
    }
    Ok(outcomes.into_iter().flatten().collect())
}

/// What a rank does now, and what can end it.
struct Looker {
    about_to: Box<dyn Fn(usize) + Send + Sync>,
    doing: Vec<Mutex<String>>,
    handles: Mutex<Vec<AbortHandle>>,
}

impl Watch for Looker {
    fn about_to(&self, rank: usize, what: &dyn fmt::Debug) {
        let text = format!("{what:?}");
        let end = text.char_indices().nth(300).map_or(text.len(), |(end, _)| end);
        *self.doing[rank].lock().unwrap_or_else(PoisonError::into_inner) = text[..end].into();
        (self.about_to)(rank);
    }

    fn has(&self, _rank: usize, handle: AbortHandle) {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner).push(handle);
    }
}

impl Looker {
    /// Reports a hang, and ends what can be ended, so that threads are not in the way of what comes
    /// next.
    fn hang(&self, mock: &Mock, missing: impl Iterator<Item = usize>) -> Trouble {
        let mut report = String::new();
        for rank in missing {
            let doing = self.doing[rank].lock().unwrap_or_else(PoisonError::into_inner);
            report += &format!("\n  rank {rank}: {doing}");
        }
        for op in mock.pending() {
            report += &format!("\n  pending: {op}");
        }
        for verdict in mock.verdicts() {
            report += &format!("\n  verdict: {verdict}");
        }
        for handle in &*self.handles.lock().unwrap_or_else(PoisonError::into_inner) {
            // It hangs anyway.
            let _ = handle.abort();
        }
        Trouble::Hang(report)
    }
}

/// Where two memories differ first.
pub(crate) fn difference(have: &Memory, want: &Memory) -> Option<String> {
    let bytes = |name: String, have: &[u8], want: &[u8]| {
        if have.len() != want.len() {
            return Some(format!("{name} has {} bytes, want {}", have.len(), want.len()));
        }
        let at = (0..have.len()).find(|&at| have[at] != want[at])?;
        let count = (0..have.len()).filter(|&at| have[at] != want[at]).count();
        let end = have.len().min(at + 8);
        let (have, want) = (&have[at..end], &want[at..end]);
        Some(format!(
            "{name} differs in {count} bytes, from {at} on: {have:02x?}, want {want:02x?}"
        ))
    };
    if (have.areas.len(), have.observed.len()) != (want.areas.len(), want.observed.len()) {
        return Some("another number of areas or looks".into());
    }
    let seen = have.observed.iter().zip(&want.observed).enumerate();
    let seen = seen.map(|(index, (have, want))| bytes(format!("look {index}"), have, want));
    let areas = have.areas.iter().zip(&want.areas).enumerate();
    let areas = areas.map(|(area, pair)| match pair {
        (Some(have), Some(want)) => bytes(format!("area {area}"), have, want),
        (None, None) => None,
        _ => Some(format!("area {area} is there on one side only")),
    });
    seen.chain(areas).flatten().next()
}

/// What somebody panicked with.
pub(crate) fn text_of(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without text").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        program::{Call, Reduction, What},
        shrink::shrink,
    };

    const DEADLINE: Duration = Duration::from_secs(60);

    /// What a backend does wrong that does `program` where another was asked for.
    fn done_instead(program: &Program, want: &[Memory], setting: &Setting) -> Result<(), Trouble> {
        check_altered(program, want, setting, DEADLINE, |_, _| {})
    }

    #[test]
    fn a_backend_that_drops_a_step_or_does_another_is_found() {
        let (mut found, mut seed) = (0, 0);
        while found < 60 {
            seed += 1;
            let (program, setting) = (Program::generate(seed), Setting::draw(seed));
            let want = expected(&program);
            let mut random = Random::new(seed, 4);
            let mut wrong = program.clone();
            let index = random.below(wrong.steps.len());
            match &mut wrong.steps[index].what {
                What::Fill { value, .. } => *value ^= 1,
                What::Load { to, .. } | What::Copy { to, .. } if to.start > 0 => to.start -= 1,
                What::Meet { ops, .. } => match &mut ops[0].call {
                    Call::AllReduce(reduction) | Call::ReduceScatter(reduction)
                        if *reduction == Reduction::Sum =>
                    {
                        *reduction = Reduction::Prod;
                    }
                    _ => _ = ops.remove(0),
                },
                _ => continue,
            }
            wrong.prune();
            let Ok(other) = panic::catch_unwind(|| expected(&wrong)) else { continue };
            if other == want {
                // Nobody could tell.
                continue;
            }
            let outcome = done_instead(&wrong, &want, &setting);
            let found_it = matches!(outcome, Err(Trouble::Difference(_) | Trouble::Error(_)));
            assert!(found_it, "seed {seed}, step {index}: {outcome:?}");
            found += 1;
        }
    }

    #[test]
    fn streams_that_do_not_wait_are_found_by_the_guards() {
        let (mut without, mut found) = (0, 0);
        for seed in 0..200 {
            let program = Program::generate(seed);
            let is_wait = |action: &Action<'_>| matches!(action, Action::Await { .. });
            if lower(&program, 0).iter().filter(|action| is_wait(action)).count() < 5 {
                continue;
            }
            let alter = move |rank: usize, actions: &mut Vec<Action<'_>>| {
                actions.retain(|action| rank != 0 || !is_wait(action));
            };
            let setting = Setting { guards: Guards::ALL, ..Setting::plain() };
            let outcome = check_altered(&program, &expected(&program), &setting, DEADLINE, alter);
            without += 1;
            found += usize::from(outcome.is_err());
        }
        // A few are lucky: ranks that met are ordered, and so is what the thread waited for.
        println!("{found} of {without} without waits are found");
        assert!(without > 30 && 5 * found > 4 * without, "{found} of {without}");
    }

    #[test]
    fn what_fails_is_shrunk_to_what_matters() {
        let alter = |_: usize, actions: &mut Vec<Action<'_>>| {
            for action in actions {
                if let Action::Fill { value, .. } = action {
                    *value ^= 1;
                }
            }
        };
        let fails = |program: &Program, setting: &Setting| {
            check_altered(program, &expected(program), setting, DEADLINE, alter).is_err()
        };
        let is_long =
            |program: &Program, setting: &Setting| program.len() > 20 && fails(program, setting);
        let seed = (0..).find(|&seed| is_long(&Program::generate(seed), &Setting::draw(seed)));
        let seed = seed.expect("one of so many");
        let (small, setting) = shrink(&Program::generate(seed), &Setting::draw(seed), 1000, fails);
        assert_eq!(small.len(), 1, "{small}{setting}");
        assert!(small.to_string().contains("fill"), "{small}");
        assert_eq!((setting.guards, setting.schedule), (Guards::NONE, Schedule::Eager));
    }
}
