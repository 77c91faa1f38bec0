//! Ranks as threads of this process.

use std::{
    sync::{
        Arc,
        mpsc::{self, Receiver, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use collectives::{AbortHandle, AnyBackend, Backend, Communicator, Error, JoinConfig, UniqueId};

use super::{
    meeting::Meeting,
    ranks::{Ranks, Sum},
    run::{self, Figures, Plan, Stop, Team},
};
use crate::Failure;

/// The ranks, as the main thread sees them.
pub(super) struct Threads {
    shared: Arc<Shared>,
    events: Receiver<Event>,
}

enum Event {
    /// What a rank has measured.
    Figures(Figures),
    /// A rank failed, and with it the run.
    Failed(Error),
}

/// What the ranks share.
struct Shared {
    backend: AnyBackend,
    id: UniqueId,
    plan: Arc<Plan>,
    meeting: Meeting,
}

impl Threads {
    /// Starts a thread for each rank. They are not joined: one that is stuck inside a library must
    /// not keep the process.
    pub(super) fn start(plan: &Arc<Plan>, backend: &AnyBackend) -> Result<Self, Failure> {
        let shared = Arc::new(Shared {
            backend: backend.clone(),
            id: backend.unique_id()?,
            plan: Arc::clone(plan),
            meeting: Meeting::new(plan.ranks),
        });
        let (sender, events) = mpsc::channel();
        for number in (0..).take(plan.ranks) {
            let rank = Rank { shared: Arc::clone(&shared), events: sender.clone() };
            let named = thread::Builder::new().name(format!("rank {number}"));
            named.spawn(move || rank.run(number))?;
        }
        Ok(Self { shared, events })
    }

    fn failure(&self, cause: Failure) -> Failure {
        self.shared.meeting.fail();
        // So that nothing is in the middle of a call when the process ends. A rank that does not
        // come back is left.
        let until = Instant::now() + GRACE;
        let left = || until.saturating_duration_since(Instant::now());
        while self.events.recv_timeout(left()).is_ok() {}
        cause
    }
}

impl Ranks for Threads {
    fn next(&mut self) -> Result<Figures, Failure> {
        let mut sum = Sum::default();
        for _ in 0..self.shared.plan.ranks {
            match self.events.recv() {
                Ok(Event::Figures(figures)) => sum.add(figures),
                Ok(Event::Failed(error)) => return Err(self.failure(error.into())),
                Err(mpsc::RecvError) => return Err(self.failure(Failure::from(PANICKED))),
            }
        }
        Ok(sum.mean())
    }

    fn ended(&mut self) -> Result<(), Failure> {
        match self.events.recv() {
            Ok(Event::Failed(error)) => Err(error.into()),
            // All threads are gone.
            Ok(Event::Figures(_)) | Err(mpsc::RecvError) => Ok(()),
        }
    }
}

/// One rank.
struct Rank {
    shared: Arc<Shared>,
    events: Sender<Event>,
}

impl Rank {
    /// Runs to the end; says so if it is the first to fail.
    fn run(&self, number: u32) {
        let Shared { backend, plan, meeting, .. } = &*self.shared;
        let panic = EndOnPanic(meeting);
        let outcome = run::rank(backend, plan, number, self);
        std::mem::forget(panic);
        if let Err(Stop::Failed(error)) = outcome
            && meeting.fail()
        {
            // Nobody listens any more only if the main thread gave up before.
            drop(self.events.send(Event::Failed(error)));
        }
    }
}

impl Team for Rank {
    fn join(&self, backend: &AnyBackend, config: JoinConfig) -> Result<Communicator, Stop> {
        Ok(Communicator::join(backend, &self.shared.id, config)?)
    }

    fn wait(&self) -> Result<(), Stop> {
        Ok(self.shared.meeting.wait()?)
    }

    fn ends(&self, handle: AbortHandle) -> Result<(), Stop> {
        Ok(self.shared.meeting.ends(handle)?)
    }

    fn tell(&self, figures: Figures) -> Result<(), Stop> {
        self.events.send(Event::Figures(figures)).map_err(|_| {
            self.shared.meeting.fail();
            Stop::Ended
        })
    }
}

/// Ends the other ranks when this one panics.
struct EndOnPanic<'a>(&'a Meeting);

impl Drop for EndOnPanic<'_> {
    fn drop(&mut self) {
        self.0.fail();
    }
}

/// How long ranks may take to end after one failed.
const GRACE: Duration = Duration::from_secs(5);

const PANICKED: &str = "a rank panicked; what it said stands above";
