//! A world of ranks for tests: threads that are started, watched over, and reported on together.

use std::{
    any::Any,
    cell::RefCell,
    error::Error as StdError,
    fmt,
    panic::{self, AssertUnwindSafe, Location},
    sync::{
        Arc, Once, OnceLock,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use collectives_core::{
    AbortControl, Backend, Error, ErrorKind, JoinConfig, Rank, Result, UniqueId,
};

use crate::{
    Mock, MockComm, MockConfig, comm_state::EndShared, error::BACKEND, threads::Thread, verdict,
};

/// Ranks to run, each on a thread of its own, on a machine of their own.
///
/// This is the raw layer's; the facade has one of the same name that gives each rank a safe
/// communicator, and `run` for short.
///
/// ```
/// use collectives_backend_mock::World;
/// use collectives_core::Collectives;
///
/// let sizes = World::new(3).run(|_mock, comm| Ok(comm.info().size))?;
/// assert_eq!(sizes, [3, 3, 3]);
/// # Ok::<_, collectives_backend_mock::RunFailure>(())
/// ```
#[derive(Clone, Debug)]
pub struct World {
    ranks: usize,
    /// As the environment says, where `None`.
    config: Option<MockConfig>,
    deadline: Duration,
}

impl World {
    /// So many ranks, rank i on device i, with a minute for all they do. The machine is as the
    /// environment says: see [`MockConfig::from_env`].
    pub const fn new(ranks: usize) -> Self {
        Self { ranks, config: None, deadline: Duration::from_secs(60) }
    }

    /// Sets how long all of it may take.
    #[must_use]
    pub const fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Sets the machine, whatever the environment says. It gets as many devices as there are ranks, if
    /// it has fewer.
    #[must_use]
    pub fn with_config(mut self, config: MockConfig) -> Self {
        self.config = Some(config);
        self
    }

    /// Joins the ranks as the communicator `world`, runs `body` on each, and collects what they
    /// return, in rank order.
    ///
    /// A rank that returns has left: others that wait for it are told at once. A world that is late
    /// has its communicator aborted; threads that don't end even then are left alone, with what they
    /// hold, since no thread can be ended from outside. That is why `body` may not borrow.
    ///
    /// # Errors
    /// The errors and panics of all ranks; or, where the deadline passes, what each rank that has
    /// not ended was doing.
    pub fn run<T: Send + 'static>(
        self,
        body: impl Fn(&Mock, MockComm) -> Result<T> + Send + Sync + 'static,
    ) -> Result<Vec<T>, RunFailure> {
        let Self { ranks, config, deadline } = self;
        note_panics();
        let start = Instant::now();
        let whole = |cause| RunFailure {
            ranks,
            elapsed: start.elapsed(),
            late: None,
            note: None,
            failures: vec![RankFailure { rank: None, cause }],
        };
        let config = config.map_or_else(MockConfig::from_env, Ok);
        let config = config.map_err(|error| whole(Cause::Error(error)))?;
        let devices = config.devices.max(ranks);
        let mock = Mock::new(config.with_devices(devices));
        let id = mock.unique_id().map_err(|error| whole(Cause::Error(error)))?;
        let seats: Arc<[Seat]> = (0..ranks).map(|_| Seat::default()).collect();
        let (body, (report, reports)) = (Arc::new(body), channel());
        for rank in 0..ranks {
            let rank_of = RankThread {
                mock: mock.clone(),
                id: id.clone(),
                rank,
                seats: Arc::clone(&seats),
                body: Arc::clone(&body),
                report: report.clone(),
            };
            let named = thread::Builder::new().name(format!("rank {rank}"));
            if let Err(source) = named.spawn(move || rank_of.run()) {
                // Those that were started wait in their join.
                abort(&mock, &seats);
                let message = format!("no thread for rank {rank} of {ranks}: {source}");
                let error = Error::new(ErrorKind::System, message).with_backend(BACKEND);
                return Err(whole(Cause::Error(error.with_source(source))));
            }
        }
        drop(report);
        let watched = Watched { mock, seats, reports, start, deadline };
        watched.collect(ranks)
    }
}

/// What others can see of a rank.
#[derive(Default)]
struct Seat {
    thread: OnceLock<Arc<Thread>>,
    end: OnceLock<Arc<EndShared>>,
}

type Report<T> = (usize, Result<T, Cause>);

struct RankThread<T, F> {
    mock: Mock,
    id: UniqueId,
    rank: usize,
    seats: Arc<[Seat]>,
    body: Arc<F>,
    report: Sender<Report<T>>,
}

impl<T, F: Fn(&Mock, MockComm) -> Result<T>> RankThread<T, F> {
    fn run(self) {
        let Self { mock, id, rank, seats, body, report } = self;
        let seat = &seats[rank];
        mock.engine.threads.note(Some(rank));
        let _ = seat.thread.set(Thread::current());
        let run = || {
            let config = JoinConfig::new(Rank::new(rank as u32), seats.len());
            let comm = mock.join(&id, config.with_device(rank).with_name("world"))?;
            let _ = seat.end.set(Arc::clone(comm.shared()));
            body(&mock, comm)
        };
        let outcome = match panic::catch_unwind(AssertUnwindSafe(run)) {
            Ok(outcome) => outcome.map_err(Cause::Error),
            Err(payload) => Err(Cause::panic(&*payload)),
        };
        // The body may hold the last of what the ranks share; it goes before the report, so that
        // nothing of a world is left when it is over.
        drop((body, mock));
        // Nobody listens to a rank that is late.
        let _ = report.send((rank, outcome));
    }
}

/// The ranks at work.
struct Watched<T> {
    mock: Mock,
    seats: Arc<[Seat]>,
    reports: Receiver<Report<T>>,
    start: Instant,
    deadline: Duration,
}

impl<T> Watched<T> {
    fn collect(self, ranks: usize) -> Result<Vec<T>, RunFailure> {
        // This thread will do nothing for any rank.
        let _aside = Thread::current().step_aside();
        let mut outcomes: Vec<Option<Result<T, Cause>>> = (0..ranks).map(|_| None).collect();
        let mut late = None;
        // A deadline past the end of time is none.
        let until = self.start.checked_add(self.deadline);
        while outcomes.iter().any(Option::is_none) {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let report = match left {
                Some(left) => self.reports.recv_timeout(left),
                None => self.reports.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            let Ok((rank, outcome)) = report else {
                late = Some(self.deadline);
                self.give_up(&mut outcomes);
                break;
            };
            outcomes[rank] = Some(outcome);
        }
        let (mut values, mut failures) = (Vec::new(), Vec::new());
        for (rank, outcome) in outcomes.into_iter().enumerate() {
            match outcome {
                Some(Ok(value)) => values.push(value),
                Some(Err(cause)) => {
                    failures.push(RankFailure { rank: Some(Rank::new(rank as u32)), cause });
                }
                None => {}
            }
        }
        if failures.is_empty() {
            return Ok(values);
        }
        failures.sort_by_key(|failure| failure.cause.weight());
        let note = self.mock.engine.with(|state| state.adversary.as_ref()?.note());
        Err(RunFailure { ranks, elapsed: self.start.elapsed(), late, note, failures })
    }

    /// Notes what each rank that has not ended does, and frees those that wait in the engine.
    fn give_up(&self, outcomes: &mut [Option<Result<T, Cause>>]) {
        for (seat, outcome) in self.seats.iter().zip(outcomes.iter_mut()) {
            if outcome.is_none() {
                *outcome = Some(Err(Cause::Late(verdict::whereabouts(
                    &self.mock.engine,
                    seat.thread.get(),
                    seat.end.get(),
                ))));
            }
        }
        abort(&self.mock, &self.seats);
        // They end on their own threads; what they say now follows from the abort.
        let until = Instant::now() + GRACE;
        while self.reports.recv_timeout(until.saturating_duration_since(Instant::now())).is_ok() {}
    }
}

fn abort(mock: &Mock, seats: &[Seat]) {
    for end in seats.iter().filter_map(|seat| seat.end.get()) {
        // Only a forked child is refused.
        let _ = end.abort();
    }
    mock.engine.meetings.call_off_all("the world has given up");
}

/// Why [`World::run`] failed: the errors and panics of all ranks, the root cause first.
///
/// `Debug` is as `Display`, so that an `unwrap` in a test reads well.
pub struct RunFailure {
    ranks: usize,
    elapsed: Duration,
    late: Option<Duration>,
    /// Schedule, faults and seeds, with which the run can be had again.
    note: Option<String>,
    failures: Vec<RankFailure>,
}

/// How one rank failed.
#[derive(Debug)]
#[non_exhaustive]
pub struct RankFailure {
    /// The rank; `None` where the world was not set up.
    pub rank: Option<Rank>,
    /// Why.
    pub cause: Cause,
}

/// Why a rank failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum Cause {
    /// It returned this.
    Error(Error),
    /// It had not ended when the deadline passed; this is what it was doing.
    Late(String),
    /// It panicked.
    Panic {
        /// What it said.
        message: String,
        /// Where.
        location: Option<String>,
    },
}

impl RunFailure {
    /// What each rank that failed came to, the root cause first: panics and errors of a rank's own
    /// before verdicts, and those before what merely follows from another rank's end.
    pub fn failures(&self) -> &[RankFailure] {
        &self.failures
    }

    /// Whether the deadline passed.
    pub fn is_late(&self) -> bool {
        self.late.is_some()
    }
}

impl Cause {
    fn panic(payload: &(dyn Any + Send)) -> Self {
        let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
        let message = text.unwrap_or_else(|| "(no text)".into());
        Self::Panic { message, location: LAST_PANIC.take() }
    }

    /// What comes first in a report.
    fn weight(&self) -> u8 {
        match self {
            Self::Panic { .. } => 0,
            Self::Error(error) => match error.kind() {
                ErrorKind::Aborted | ErrorKind::Remote => 3,
                ErrorKind::Deadlock => 1,
                _ => 0,
            },
            Self::Late(_) => 2,
        }
    }

    /// Where it happened. Ranks that say the same share a line wherever they say it.
    fn operation(&self) -> Option<&'static str> {
        match self {
            Self::Error(error) => error.operation(),
            Self::Late(_) | Self::Panic { .. } => None,
        }
    }

    /// What happened, without the rank and the operation.
    fn text(&self) -> String {
        match self {
            Self::Late(doing) => format!("has not ended: {doing}"),
            Self::Panic { message, location: Some(location) } => {
                format!("panicked at {location}: {message}")
            }
            Self::Panic { message, location: None } => format!("panicked: {message}"),
            Self::Error(error) => {
                let mut text = error.message().to_owned();
                if let Some(hint) = error.hint() {
                    text += if error.message().contains('\n') { "\n" } else { "; " };
                    text += hint;
                }
                text
            }
        }
    }
}

impl fmt::Display for RunFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ranks, elapsed, late, note, failures } = self;
        match late {
            Some(deadline) => write!(f, "the world is not done after {deadline:?}")?,
            None => write!(f, "{} of {ranks} ranks failed after {elapsed:.1?}", failures.len())?,
        }
        if let Some(note) = note {
            write!(f, ", {note}")?;
        }
        let mut lines: Vec<(String, Vec<u32>, Option<&str>)> = Vec::new();
        for RankFailure { rank, cause } in failures {
            let (text, operation) = (cause.text(), cause.operation());
            match lines.iter_mut().find(|(known, ..)| *known == text) {
                Some((_, ranks, known)) => {
                    ranks.extend(rank.map(Rank::get));
                    *known = known.filter(|known| Some(*known) == operation);
                }
                None => lines.push((text, rank.map(Rank::get).into_iter().collect(), operation)),
            }
        }
        for (text, ranks, operation) in lines {
            f.write_str("\n  ")?;
            if !ranks.is_empty() {
                write!(f, "{}: ", verdict::list("rank", &ranks))?;
            }
            if let Some(operation) = operation {
                write!(f, "{operation}: ")?;
            }
            f.write_str(&text.replace('\n', "\n    "))?;
        }
        Ok(())
    }
}

impl fmt::Debug for RunFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl StdError for RunFailure {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match &self.failures.first()?.cause {
            Cause::Error(error) => Some(error),
            Cause::Late(_) | Cause::Panic { .. } => None,
        }
    }
}

thread_local! {
    /// Where this thread panicked last.
    static LAST_PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Has the place of each panic kept: what a panic leaves behind has only its message.
fn note_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let others = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let place = info.location().map(Location::to_string);
            // Fails where the thread is being torn down, and then nobody asks.
            let _ = LAST_PANIC.try_with(|last| last.replace(place));
            others(info);
        }));
    });
}

/// How long the ranks of a late world have to end once they were aborted.
const GRACE: Duration = Duration::from_secs(1);
