//! A world whose ranks are processes: the calling test, started again for each of them.
//!
//! A closure cannot cross to another process, but a test can be run in one: by its name. So the
//! process that a test author starts runs the test up to this call, and becomes the parent; those that
//! it starts run the same test up to the same call, and become the ranks. They do not go on behind it.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Read},
    process::{Command, ExitStatus, Stdio, exit},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use collectives_core::{Backend, Error, ErrorKind, Result, UniqueId};
use collectives_crew::{Crew, End, Event, Member, this_program};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    Cause, Mock, MockComm, Ranks, RunFailure, World,
    error::BACKEND,
    failure::{note_panics, sort_out},
    world::Seat,
};

impl World {
    /// Names the test for [`run_processes`](Self::run_processes), as the test harness prints it:
    /// `module::test`.
    #[must_use]
    pub fn with_test(mut self, name: impl Into<String>) -> Self {
        self.test = Some(name.into());
        self
    }

    /// As [`run`](Self::run), with each rank in a process of its own: this test, started again.
    ///
    /// The facade's method of this name says what that means to a test.
    ///
    /// # Errors
    /// As [`run`](Self::run); also where the test has no name, or cannot be started again.
    pub fn run_processes<T: DeserializeOwned + Serialize>(
        self,
        body: impl FnOnce(&Mock, MockComm) -> Result<T>,
    ) -> Result<Vec<T>, RunFailure> {
        note_panics();
        let start = Instant::now();
        let refused = |error| RunFailure::of_the_whole(self.ranks, start, Cause::Error(error));
        match Here::get().map_err(|error| refused(system("this process is no rank", error)))? {
            Some(here) => here.run(&self, body),
            None => {
                let test = self.test_name().map_err(refused)?;
                self.machine().map_err(refused)?;
                let earlier = lock(&EARLIER).get(&test).cloned().unwrap_or_default();
                let launch = Launch::start(&self, &test, earlier, start)
                    .map_err(|error| refused(system("no processes for the ranks", error)))?;
                let outcome = launch.collect();
                if let Ok(outcome) = serde_json::to_value(&outcome) {
                    lock(&EARLIER).entry(test).or_default().push(outcome);
                }
                parse(outcome)
            }
        }
    }

    fn test_name(&self) -> Result<String> {
        let named = self.test.clone().or_else(|| thread::current().name().map(Into::into));
        named.filter(|name| name != "main").ok_or_else(|| {
            let message = "this thread has not the name of a test that could be started again";
            let error = Error::new(ErrorKind::InvalidUsage, message).with_backend(BACKEND);
            error.with_hint("say it: World::new(n).with_test(\"module::test\")")
        })
    }
}

/// What a call came to, as it crosses to the ranks of later ones: values as JSON.
type Outcome = Result<Vec<Value>, RunFailure>;

/// What earlier calls of each test came to.
static EARLIER: Mutex<BTreeMap<String, Vec<Value>>> = Mutex::new(BTreeMap::new());

/// What a rank is told.
#[derive(Debug, Deserialize, Serialize)]
enum Order {
    /// There will be no id; who is to blame.
    Alone(String),
    Id(Vec<u8>),
    /// First of all: which call of the test this is, by what those before it came to.
    Start(Vec<Value>),
    /// To say what it does.
    Where,
}

/// What a rank says.
#[derive(Debug, Deserialize, Serialize)]
enum Word {
    Done {
        outcome: Result<Value, Cause>,
        note: Option<String>,
    },
    /// The unique id, from rank 0.
    Id(Vec<u8>),
    Joined,
    Where(String),
}

/// The ranks, as the parent sees them.
struct Launch {
    crew: Crew<Word>,
    ranks: Vec<Progress>,
    output: Vec<JoinHandle<()>>,
    /// By which the ranks learn how another has ended.
    notices: Vec<Notice>,
    test: String,
    start: Instant,
    deadline: Duration,
    has_id: bool,
    note: Option<String>,
}

/// How far a rank is.
#[derive(Default)]
struct Progress {
    joined: bool,
    outcome: Option<Result<Value, Cause>>,
    ended: bool,
    /// How it ended, where the system has told.
    status: Option<ExitStatus>,
}

impl Launch {
    fn start(world: &World, test: &str, earlier: Vec<Value>, start: Instant) -> io::Result<Self> {
        let (job, mut notices) = (Notices::for_job(world.ranks)?, Vec::new());
        let mut crew = Crew::start(CREW, world.ranks, |rank| {
            let mut program = program(test)?;
            notices.push(job.attach(rank, &mut program)?);
            Ok(program)
        })?;
        crew.tell_all(&Order::Start(earlier));
        let mut output = Vec::new();
        for rank in 0..world.ranks {
            if let Some(stderr) = crew.take_stderr(rank) {
                // A thread that this one starts, so that a test harness captures what it prints.
                let named = thread::Builder::new().name(format!("output of rank {rank}"));
                output.push(named.spawn(move || print_all(rank, stderr))?);
            }
        }
        Ok(Self {
            crew,
            ranks: (0..world.ranks).map(|_| Progress::default()).collect(),
            output,
            notices,
            test: test.into(),
            start,
            deadline: world.deadline,
            has_id: false,
            note: None,
        })
    }

    fn collect(mut self) -> Outcome {
        // A deadline past the end of time is none.
        let end = self.start.checked_add(self.deadline);
        let mut rescue = None;
        let mut late = None;
        while self.ranks.iter().any(|rank| rank.outcome.is_none()) {
            let Some((rank, event)) = self.crew.next(rescue.or(end)) else {
                if rescue.is_none() {
                    late = Some(self.deadline);
                }
                self.give_up();
                break;
            };
            self.hear(rank, event);
            if rescue.is_none()
                && let Some(lost) = self.lost()
            {
                if !self.has_id {
                    self.crew.tell_all(&Order::Alone(lost));
                }
                let soon = Instant::now() + GRACE;
                rescue = Some(end.map_or(soon, |end| end.min(soon)));
            }
        }
        let pids = (0..self.ranks.len()).map(|rank| self.crew.pid(rank)).collect();
        self.settle();
        let outcomes = self.ranks.into_iter().filter_map(|rank| rank.outcome);
        sort_out(outcomes, |failures| RunFailure {
            ranks: self.crew.size(),
            elapsed: self.start.elapsed(),
            late,
            note: self.note,
            pids,
            failures,
        })
    }

    /// Who will never join, and why, if that is known of one.
    fn lost(&self) -> Option<String> {
        (0..).zip(&self.ranks).find_map(|(rank, progress)| {
            let outcome = progress.outcome.as_ref().filter(|_| !progress.joined)?;
            let who = format!("rank {rank} (pid {})", self.crew.pid(rank));
            Some(match (outcome, progress.status) {
                (Err(Cause::Error(error)), _) => format!("{who} failed: {error}"),
                (Err(Cause::Panic { message, .. }), _) => format!("{who} panicked: {message}"),
                (_, Some(status)) => format!("{who} ended: {status}"),
                (_, None) => format!("{who} ended"),
            })
        })
    }

    fn hear(&mut self, rank: usize, event: Event<Word>) {
        let progress = &mut self.ranks[rank];
        match event {
            Event::Said(Word::Done { outcome, note }) => {
                progress.outcome = Some(outcome);
                self.note = self.note.take().or(note);
            }
            Event::Said(Word::Id(id)) => {
                self.has_id = true;
                self.crew.tell_all(&Order::Id(id));
            }
            Event::Said(Word::Joined) => progress.joined = true,
            // It comes too late.
            Event::Said(Word::Where(_)) => {}
            Event::Ended(end) => {
                (progress.ended, progress.status) = (true, end.status);
                self.notices[rank].publish(&end);
                let outcome = || Err(Cause::Ended(how_it_ended(&self.test, &end)));
                progress.outcome.get_or_insert_with(outcome);
            }
        }
    }

    /// Notes what each rank that has not ended does, and kills it.
    fn give_up(&mut self) {
        let stuck = |ranks: &[Progress]| ranks.iter().any(|rank| rank.outcome.is_none());
        self.crew.tell_all(&Order::Where);
        let until = Instant::now() + ANSWER;
        while stuck(&self.ranks)
            && let Some((rank, event)) = self.crew.next(Some(until))
        {
            match event {
                Event::Said(Word::Where(text)) => {
                    let late = || Err(Cause::Late(text));
                    self.ranks[rank].outcome.get_or_insert_with(late);
                }
                event => self.hear(rank, event),
            }
        }
        for rank in &mut self.ranks {
            let silent = || Err(Cause::Late("its process does not answer".into()));
            rank.outcome.get_or_insert_with(silent);
        }
        self.crew.kill();
    }

    /// Waits for processes that end, and for what they print, if not for long.
    fn settle(&mut self) {
        let until = Instant::now() + GRACE;
        while self.ranks.iter().any(|rank| !rank.ended)
            && let Some((rank, event)) = self.crew.next(Some(until))
        {
            self.hear(rank, event);
        }
        self.crew.kill();
        while self.output.iter().any(|thread| !thread.is_finished()) && Instant::now() < until {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// What tells the ranks how others have ended, where the system has such means.
struct Notices {
    #[cfg(target_os = "linux")]
    job: crate::ExitNotices,
}

/// That of one rank.
struct Notice {
    #[cfg(target_os = "linux")]
    notice: Option<crate::ExitNotice>,
}

#[cfg(target_os = "linux")]
impl Notices {
    fn for_job(ranks: usize) -> io::Result<Self> {
        Ok(Self { job: crate::ExitNotices::for_job(ranks)? })
    }

    fn attach(&self, rank: usize, program: &mut Command) -> io::Result<Notice> {
        Ok(Notice { notice: Some(self.job.attach(rank, program)?) })
    }
}

#[cfg(target_os = "linux")]
impl Notice {
    fn publish(&mut self, end: &End) {
        if let (Some(notice), Some(status)) = (self.notice.take(), end.status) {
            notice.publish(status);
        }
    }
}

#[cfg(not(target_os = "linux"))]
impl Notices {
    fn for_job(_: usize) -> io::Result<Self> {
        Ok(Self {})
    }

    fn attach(&self, _: usize, _: &mut Command) -> io::Result<Notice> {
        Ok(Notice {})
    }
}

#[cfg(not(target_os = "linux"))]
impl Notice {
    fn publish(&mut self, _: &End) {}
}

/// This executable, to run one test.
fn program(test: &str) -> io::Result<Command> {
    let mut program = this_program()?;
    program.args(["--exact", test, "--nocapture", "--include-ignored"]);
    // What the harness says of its one test is of no interest.
    program.stdout(Stdio::null()).stderr(Stdio::piped());
    Ok(program)
}

fn how_it_ended(test: &str, end: &End) -> String {
    if end.success() {
        return format!(
            "its {end}, and did not come to this call: is there a test '{test}', and is what stands \
             before the call the same in every process?"
        );
    }
    format!("its {end}")
}

/// Prints line by line, as this process's own.
fn print_all(rank: usize, output: impl Read) {
    for line in BufReader::new(output).split(b'\n').map_while(io::Result::ok) {
        eprintln!("rank {rank}| {}", String::from_utf8_lossy(&line));
    }
}

/// This process, as a rank.
struct Here {
    member: &'static Member,
    orders: Mutex<Receiver<Order>>,
    earlier: Vec<Value>,
    /// How many calls it has come to.
    calls: AtomicUsize,
    shown: Arc<Shown>,
}

/// What the thread that listens sees of the rank.
#[derive(Default)]
struct Shown {
    mock: OnceLock<Mock>,
    seat: Seat,
}

impl Here {
    fn get() -> io::Result<Option<&'static Self>> {
        static HERE: OnceLock<Result<Here, String>> = OnceLock::new();
        let Some(member) = Member::here(CREW)? else { return Ok(None) };
        let here = HERE.get_or_init(|| Self::begin(member).map_err(|error| error.to_string()));
        here.as_ref().map(Some).map_err(|text| io::Error::other(text.as_str()))
    }

    fn begin(member: &'static Member) -> io::Result<Self> {
        let shown = Arc::<Shown>::default();
        let (sender, orders) = channel();
        let seen = Arc::clone(&shown);
        member.listen(move |order| match order {
            Order::Where => member.tell(&Word::Where(seen.whereabouts())),
            // The rank takes no orders once it has joined.
            order => drop(sender.send(order)),
        })?;
        let Ok(Order::Start(earlier)) = orders.recv() else {
            return Err(io::Error::other("the parent does not say which call this is"));
        };
        let (orders, calls) = (Mutex::new(orders), AtomicUsize::new(0));
        Ok(Self { member, orders, earlier, calls, shown })
    }

    /// Runs the rank and ends the process, if this is the call for which it was started; answers what
    /// an earlier one came to.
    fn run<T: DeserializeOwned + Serialize>(
        &self,
        world: &World,
        body: impl FnOnce(&Mock, MockComm) -> Result<T>,
    ) -> Result<Vec<T>, RunFailure> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        if let Some(outcome) = self.earlier.get(call) {
            return parse(outcome_of(outcome.clone()));
        }
        if let Err(error) = self.member.join_outputs() {
            eprintln!("standard output is lost: {error}");
        }
        let outcome = self.attend(world, body);
        let failed = outcome.is_err();
        let note = self.shown.mock.get().and_then(Mock::note);
        self.member.tell(&Word::Done { outcome, note });
        exit(i32::from(failed))
    }

    fn attend<T: Serialize>(
        &self,
        world: &World,
        body: impl FnOnce(&Mock, MockComm) -> Result<T>,
    ) -> Result<Value, Cause> {
        let (rank, size) = (self.member.rank(), self.member.size());
        let config = world.machine().map_err(Cause::Error)?.with_ranks(Ranks::Processes);
        let mock = Mock::new(config);
        let mock = self.shown.mock.get_or_init(|| mock);
        let body = |mock: &Mock, comm| {
            self.member.tell(&Word::Joined);
            body(mock, comm)
        };
        let value = self.shown.seat.attend(mock, rank, size, || self.id(mock), body)?;
        serde_json::to_value(value).map_err(|error| Cause::Error(unsendable(error)))
    }

    fn id(&self, mock: &Mock) -> Result<UniqueId> {
        if self.member.rank() == 0 {
            self.member.tell(&Word::Id(mock.unique_id()?.as_bytes().to_vec()));
        }
        match lock(&self.orders).recv() {
            Ok(Order::Id(id)) => Ok(UniqueId::from_bytes(id)),
            Ok(Order::Alone(lost)) => {
                let message = format!("no rank has joined yet, and one never will: {lost}");
                Err(Error::new(ErrorKind::Remote, message).with_backend(BACKEND).with_hint(
                    "see what that rank printed last, and what it does before this call",
                ))
            }
            Ok(Order::Start(_) | Order::Where) | Err(_) => {
                let message = "the parent, which hands the unique id on, says something else";
                Err(Error::new(ErrorKind::Remote, message).with_backend(BACKEND))
            }
        }
    }
}

impl Shown {
    fn whereabouts(&self) -> String {
        match self.mock.get() {
            Some(mock) => self.seat.whereabouts(mock),
            None => "its process has not come to this call".into(),
        }
    }
}

/// What an earlier call came to.
fn outcome_of(value: Value) -> Outcome {
    serde_json::from_value(value).unwrap_or_else(|error| {
        let cause = Cause::Error(system("what an earlier call came to is lost", error.into()));
        Err(RunFailure::of_the_whole(0, Instant::now(), cause))
    })
}

/// The ranks' values.
fn parse<T: DeserializeOwned>(outcome: Outcome) -> Result<Vec<T>, RunFailure> {
    let (values, start) = (outcome?, Instant::now());
    let size = values.len();
    let parsed: serde_json::Result<_> = values.into_iter().map(serde_json::from_value).collect();
    parsed.map_err(|error| RunFailure::of_the_whole(size, start, Cause::Error(unsendable(error))))
}

fn unsendable(error: serde_json::Error) -> Error {
    Error::new(ErrorKind::InvalidUsage, format!("a rank returns what JSON does not hold: {error}"))
        .with_backend(BACKEND)
        .with_hint("a float may be NaN or infinite: return its bits")
}

fn system(what: &str, error: io::Error) -> Error {
    let message = format!("{what}: {error}");
    Error::new(ErrorKind::System, message).with_backend(BACKEND).with_source(error)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const CREW: &str = "mock world";

/// How long ranks may take to end where they have no more reason to go on.
const GRACE: Duration = Duration::from_secs(2);

/// How long a rank may take to say what it does; it has a thread for that alone.
const ANSWER: Duration = Duration::from_secs(1);
