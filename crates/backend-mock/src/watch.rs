//! The thread that looks after those who wait.
//!
//! There is one for the process, started by the first thread that has to sleep. While somebody waits
//! it looks every few milliseconds whether anything can still happen, and less often while nothing
//! changes; where nobody has waited for a while it sleeps until somebody does. So the calls
//! themselves, and waits that end soon, pay nothing but a look at one flag.

use std::{
    sync::{
        Arc, Condvar, Mutex, Once, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, Ordering, fence},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    engine::Engine,
    sync::lock,
    threads::{self, Threads, Wait, What},
};

/// What a look at an engine found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Found {
    /// Nobody waits.
    Nobody,
    /// Something has moved since the last look.
    Progress,
    /// Nothing has moved, but something still can.
    Slow,
}

/// An engine in which somebody has waited. The threads come apart from it, since the engine is to be
/// kept alive only while somebody waits, who does that too.
struct Enrolled {
    threads: Arc<Threads>,
    engine: Weak<Engine>,
}

impl Enrolled {
    fn if_waited_in(&self) -> Option<Arc<Engine>> {
        if self.threads.anybody_waits() { self.engine.upgrade() } else { None }
    }
}

struct Watch {
    engines: Mutex<Vec<Enrolled>>,
    /// Whether the thread sleeps until it is called.
    idle: AtomicBool,
    called: Condvar,
}

impl Engine {
    /// Notes that the calling thread goes into a wait; the answer ends it.
    pub(crate) fn begin_wait(&self, what: What, until: Option<Instant>) -> Option<Wait<'_>> {
        let wait = self.threads.wait(what, until)?;
        self.enrolled.call_once(|| {
            let threads = Arc::clone(&self.threads);
            Watch::enrol(Enrolled { threads, engine: self.me.clone() });
        });
        Watch::call();
        Some(wait)
    }
}

impl Watch {
    fn global() -> &'static Self {
        static WATCH: OnceLock<Watch> = OnceLock::new();
        WATCH.get_or_init(|| Self {
            engines: Mutex::new(Vec::new()),
            idle: AtomicBool::new(false),
            called: Condvar::new(),
        })
    }

    fn enrol(engine: Enrolled) {
        static STARTED: Once = Once::new();
        let watch = Self::global();
        let mut engines = lock(&watch.engines);
        engines.retain(|known| known.engine.strong_count() > 0);
        engines.push(engine);
        drop(engines);
        STARTED.call_once(|| {
            let thread = thread::Builder::new().name("collectives-watch".into());
            if let Err(error) = thread.spawn(|| watch.run()) {
                tracing::warn!(%error, "no thread for the mock's verdicts: deadlocks will hang");
            }
        });
    }

    /// Has the thread look, where it sleeps.
    fn call() {
        let watch = Self::global();
        // Either the thread sees the wait that was noted before this, or this sees the flag.
        fence(Ordering::SeqCst);
        if watch.idle.load(Ordering::Relaxed) {
            let engines = lock(&watch.engines);
            watch.idle.store(false, Ordering::Relaxed);
            watch.called.notify_one();
            drop(engines);
        }
    }

    fn run(&self) {
        // So that no engine takes this thread for one that may act.
        threads::enlist_watcher();
        let (mut pause, mut quiet) = (SHORTEST, 0);
        loop {
            thread::sleep(pause);
            let found = self.look();
            pause = match found {
                Found::Slow => (2 * pause).min(LONGEST),
                Found::Nobody | Found::Progress => SHORTEST,
            };
            quiet = if found == Found::Nobody { quiet + 1 } else { 0 };
            if quiet == PATIENCE {
                self.rest();
                quiet = 0;
            }
        }
    }

    /// Looks at all engines in which somebody waits.
    fn look(&self) -> Found {
        let engines: Vec<_> =
            lock(&self.engines).iter().filter_map(Enrolled::if_waited_in).collect();
        let found = |engine: Arc<Engine>| engine.look();
        let rank = |found: &Found| match found {
            Found::Nobody => 0,
            Found::Slow => 1,
            Found::Progress => 2,
        };
        engines.into_iter().map(found).max_by_key(rank).unwrap_or(Found::Nobody)
    }

    /// Sleeps until somebody waits.
    fn rest(&self) {
        let mut engines = lock(&self.engines);
        self.idle.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if engines.iter().any(|known| known.threads.anybody_waits()) {
            self.idle.store(false, Ordering::Relaxed);
            return;
        }
        while self.idle.load(Ordering::Relaxed) {
            engines = self.called.wait(engines).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The time between looks where things move.
const SHORTEST: Duration = Duration::from_millis(5);
/// And where they don't.
const LONGEST: Duration = Duration::from_millis(20);
/// Looks that find nobody before the thread sleeps until it is called: half a second.
const PATIENCE: u32 = 100;
