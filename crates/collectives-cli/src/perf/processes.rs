//! Ranks as processes: this program again, with the same arguments, once for each rank.
//!
//! A process makes the same plan from the same arguments, and finds in its environment which rank it
//! is. The parent passes the unique id on, lets the ranks go on when all have met, and sums up what
//! they tell; it does not run while they measure.

use std::{
    env,
    error::Error as StdError,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver},
    },
    time::{Duration, Instant},
};

use collectives::{
    AbortHandle, AnyBackend, Backend, Communicator, Error, ErrorKind, JoinConfig, UniqueId,
};
use collectives_crew::{Crew, End, Event, Member, this_program};
use serde::{Deserialize, Serialize};

use super::{
    ranks::{Ranks, Sum},
    run::{self, Figures, Plan, Stop, Team},
};
use crate::Failure;

/// The ranks, as the parent sees them.
pub(super) struct Processes {
    crew: Crew<Word>,
    /// How many ranks have come to the present meeting.
    here: usize,
    sum: Sum,
}

/// What a rank says.
#[derive(Debug, Deserialize, Serialize)]
enum Word {
    Failed(Error),
    Figures(Figures),
    /// It waits for the others.
    Here,
    /// The unique id, from rank 0.
    Id(Vec<u8>),
}

/// What a rank is told.
#[derive(Debug, Deserialize, Serialize)]
enum Order {
    /// Another rank failed.
    End,
    /// All ranks are here.
    Go,
    Id(Vec<u8>),
}

impl Processes {
    /// Starts a process for each rank.
    pub(super) fn start(plan: &Plan, backend: &AnyBackend) -> Result<Self, Failure> {
        let name = backend.info().backend.to_ascii_lowercase();
        let crew = Crew::start(CREW, plan.ranks, |_| {
            let mut program = this_program()?;
            program.args(env::args_os().skip(1));
            // What was chosen is not chosen again; a fallback has been warned of.
            program.env("COLLECTIVES_BACKEND", &name).env("COLLECTIVES_MOCK_RANKS", "processes");
            Ok(program)
        })?;
        Ok(Self { crew, here: 0, sum: Sum::default() })
    }

    /// Ends all ranks after one failed, and picks the cause out of what they say meanwhile.
    fn failure(&mut self, first: Cause) -> Failure {
        let mut causes = vec![first];
        let until = Instant::now() + GRACE;
        self.crew.tell_all(&Order::End);
        while let Some((rank, event)) = self.crew.next(Some(until)) {
            let pid = self.crew.pid(rank);
            let known = causes.iter_mut().find(|cause| cause.rank == rank);
            match (event, known) {
                (Event::Said(Word::Failed(error)), None) => {
                    causes.push(Cause { rank, pid, error: Some(error), end: None });
                }
                (Event::Ended(end), Some(cause)) => cause.end = Some(end),
                (Event::Ended(end), None) if !end.success() => {
                    causes.push(Cause { rank, pid, error: None, end: Some(end) });
                }
                (Event::Ended(_) | Event::Said(_), _) => {}
            }
        }
        self.crew.kill();
        // The first of the weightiest.
        causes.sort_by_key(Cause::weight);
        Failure::from(causes.swap_remove(0))
    }
}

impl Ranks for Processes {
    fn next(&mut self) -> Result<Figures, Failure> {
        loop {
            let Some((rank, event)) = self.crew.next(None) else {
                return Err(Failure::from("all ranks have ended before they measured everything"));
            };
            let pid = self.crew.pid(rank);
            match event {
                Event::Said(Word::Id(id)) => self.crew.tell_all(&Order::Id(id)),
                Event::Said(Word::Here) => {
                    self.here += 1;
                    if self.here == self.crew.size() {
                        self.here = 0;
                        self.crew.tell_all(&Order::Go);
                    }
                }
                Event::Said(Word::Figures(figures)) => {
                    self.sum.add(figures);
                    if self.sum.ranks() == self.crew.size() {
                        return Ok(std::mem::take(&mut self.sum).mean());
                    }
                }
                Event::Said(Word::Failed(error)) => {
                    return Err(self.failure(Cause { rank, pid, error: Some(error), end: None }));
                }
                // It was the first to tell its last figures.
                Event::Ended(end) if end.success() => {}
                Event::Ended(end) => {
                    return Err(self.failure(Cause { rank, pid, error: None, end: Some(end) }));
                }
            }
        }
    }

    fn ended(&mut self) -> Result<(), Failure> {
        while let Some((rank, event)) = self.crew.next(None) {
            let pid = self.crew.pid(rank);
            let cause = match event {
                Event::Said(Word::Failed(error)) => {
                    Cause { rank, pid, error: Some(error), end: None }
                }
                Event::Ended(end) if !end.success() => {
                    Cause { rank, pid, error: None, end: Some(end) }
                }
                Event::Ended(_) | Event::Said(_) => continue,
            };
            return Err(self.failure(cause));
        }
        Ok(())
    }
}

/// How one rank failed.
#[derive(Debug)]
struct Cause {
    rank: usize,
    pid: u32,
    /// What it said.
    error: Option<Error>,
    /// How its process ended, if it has.
    end: Option<End>,
}

impl Cause {
    /// What is told first: an end without a word, then errors of a rank's own, then what follows
    /// from another's.
    fn weight(&self) -> u8 {
        match self.error.as_ref().map(Error::kind) {
            None => 0,
            Some(ErrorKind::Aborted | ErrorKind::Remote) => 2,
            Some(_) => 1,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rank, pid, end, .. } = self;
        match end {
            Some(end) => write!(f, "rank {rank} failed: {end}"),
            None => write!(f, "rank {rank} failed: process {pid} did not end, and was killed"),
        }
    }
}

impl StdError for Cause {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.error.as_ref().map(|error| error as _)
    }
}

/// This process as a rank, where it was started as one.
pub(super) fn here() -> Result<Option<&'static Member>, Failure> {
    Ok(Member::here(CREW)?)
}

/// Runs the rank that this process is.
pub(super) fn serve(
    member: &'static Member,
    plan: &Plan,
    backend: &AnyBackend,
) -> Result<(), Failure> {
    let handles = Arc::new(Mutex::new(Vec::<AbortHandle>::new()));
    let (sender, orders) = mpsc::channel();
    let guarded = Arc::clone(&handles);
    member.listen(move |order| {
        if matches!(order, Order::End) {
            let handles =
                std::mem::take(&mut *guarded.lock().unwrap_or_else(PoisonError::into_inner));
            // The run has failed; how its communicators end is of no more interest.
            handles.into_iter().for_each(|handle| drop(handle.abort()));
        }
        // The rank waits for no order once it is done.
        drop(sender.send(order));
    })?;
    let team = Process { member, orders, handles };
    let rank = u32::try_from(member.rank())?;
    match run::rank(backend, plan, rank, &team) {
        Ok(()) => Ok(()),
        Err(Stop::Ended) => Err(Failure::Check),
        Err(Stop::Failed(error)) => {
            member.tell(&Word::Failed(error));
            Err(Failure::Check)
        }
    }
}

/// A rank's way to its parent.
struct Process {
    member: &'static Member,
    orders: Receiver<Order>,
    handles: Arc<Mutex<Vec<AbortHandle>>>,
}

impl Team for Process {
    fn join(&self, backend: &AnyBackend, config: JoinConfig) -> Result<Communicator, Stop> {
        if self.member.rank() == 0 {
            // A library may serve the id from the process that made it.
            self.member.tell(&Word::Id(backend.unique_id()?.as_bytes().to_vec()));
        }
        match self.orders.recv() {
            Ok(Order::Id(id)) => {
                Ok(Communicator::join(backend, &UniqueId::from_bytes(id), config)?)
            }
            Ok(Order::End | Order::Go) | Err(mpsc::RecvError) => Err(Stop::Ended),
        }
    }

    fn wait(&self) -> Result<(), Stop> {
        self.member.tell(&Word::Here);
        match self.orders.recv() {
            Ok(Order::Go) => Ok(()),
            Ok(Order::End | Order::Id(_)) | Err(mpsc::RecvError) => Err(Stop::Ended),
        }
    }

    fn ends(&self, handle: AbortHandle) -> Result<(), Stop> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner).push(handle);
        Ok(())
    }

    fn tell(&self, figures: Figures) -> Result<(), Stop> {
        self.member.tell(&Word::Figures(figures));
        Ok(())
    }
}

const CREW: &str = "perf";

/// How long ranks may take to end after one failed.
const GRACE: Duration = Duration::from_secs(5);
