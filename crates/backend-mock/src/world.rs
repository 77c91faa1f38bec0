//! A world of ranks for tests: threads that are started, watched over, and reported on together.

use std::{
    panic::{self, AssertUnwindSafe},
    sync::{
        Arc, OnceLock,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use collectives_core::{
    AbortControl, Backend, Error, ErrorKind, JoinConfig, Rank, Result, UniqueId,
};

use crate::{
    Cause, Mock, MockComm, MockConfig, RunFailure,
    comm_state::EndShared,
    error::BACKEND,
    failure::{self, note_panics},
    threads::Thread,
    verdict,
};

/// Ranks to run, on a machine of their own: each on a thread, or in a process of its own.
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
    pub(crate) ranks: usize,
    /// As the environment says, where `None`.
    config: Option<MockConfig>,
    pub(crate) deadline: Duration,
    /// The test that processes are to run; the thread's name where `None`.
    pub(crate) test: Option<String>,
}

impl World {
    /// So many ranks, rank i on device i, with a minute for all they do. The machine is as the
    /// environment says: see [`MockConfig::from_env`].
    pub const fn new(ranks: usize) -> Self {
        Self { ranks, config: None, deadline: Duration::from_secs(60), test: None }
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
        note_panics();
        let (ranks, deadline) = (self.ranks, self.deadline);
        let start = Instant::now();
        let whole = |cause| RunFailure::of_the_whole(ranks, start, cause);
        let mock = Mock::new(self.machine().map_err(|error| whole(Cause::Error(error)))?);
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

    /// The machine, with a device for each rank.
    pub(crate) fn machine(&self) -> Result<MockConfig> {
        let config = self.config.clone().map_or_else(MockConfig::from_env, Ok)?;
        let devices = config.devices.max(self.ranks);
        Ok(config.with_devices(devices))
    }
}

/// What others can see of a rank.
#[derive(Default)]
pub(crate) struct Seat {
    thread: OnceLock<Arc<Thread>>,
    end: OnceLock<Arc<EndShared>>,
}

impl Seat {
    /// Joins the world as this rank, on the calling thread, and runs `body`.
    pub(crate) fn attend<T>(
        &self,
        mock: &Mock,
        rank: usize,
        size: usize,
        id: impl FnOnce() -> Result<UniqueId>,
        body: impl FnOnce(&Mock, MockComm) -> Result<T>,
    ) -> Result<T, Cause> {
        mock.engine.threads.note(Some(rank));
        let _ = self.thread.set(Thread::current());
        let run = || {
            let config = JoinConfig::new(Rank::new(rank as u32), size);
            let comm = mock.join(&id()?, config.with_device(rank).with_name("world"))?;
            let _ = self.end.set(Arc::clone(comm.shared()));
            body(mock, comm)
        };
        match panic::catch_unwind(AssertUnwindSafe(run)) {
            Ok(outcome) => outcome.map_err(Cause::Error),
            Err(payload) => Err(Cause::panic(&*payload)),
        }
    }

    /// What the rank does now.
    pub(crate) fn whereabouts(&self, mock: &Mock) -> String {
        verdict::whereabouts(&mock.engine, self.thread.get(), self.end.get())
    }
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
        let own = |mock: &Mock, comm| body(mock, comm);
        let outcome = seats[rank].attend(&mock, rank, seats.len(), || Ok(id), own);
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
        failure::sort_out(outcomes.into_iter().flatten(), |failures| RunFailure {
            ranks,
            elapsed: self.start.elapsed(),
            late,
            note: self.mock.note(),
            pids: Vec::new(),
            failures,
        })
    }

    /// Notes what each rank that has not ended does, and frees those that wait in the engine.
    fn give_up(&self, outcomes: &mut [Option<Result<T, Cause>>]) {
        for (seat, outcome) in self.seats.iter().zip(outcomes.iter_mut()) {
            if outcome.is_none() {
                *outcome = Some(Err(Cause::Late(seat.whereabouts(&self.mock))));
            }
        }
        abort(&self.mock, &self.seats);
        // They end on their own threads; what they say now follows from the abort.
        let until = Instant::now() + GRACE;
        while self.reports.recv_timeout(until.saturating_duration_since(Instant::now())).is_ok() {}
    }
}

impl Mock {
    /// Schedule, faults and seeds, with which a run can be had again.
    pub(crate) fn note(&self) -> Option<String> {
        self.engine.with(|state| state.adversary.as_ref()?.note())
    }
}

fn abort(mock: &Mock, seats: &[Seat]) {
    for end in seats.iter().filter_map(|seat| seat.end.get()) {
        // Only a forked child is refused.
        let _ = end.abort();
    }
    mock.engine.meetings.call_off_all("the world has given up");
}

/// How long the ranks of a late world have to end once they were aborted.
const GRACE: Duration = Duration::from_secs(1);
