//! What an engine whose ranks are processes has going on while no thread of the program calls.

use std::{
    io,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use collectives_core::{ErrorKind, Result};

use crate::{
    MockConfig,
    clerk::Clerk,
    engine::Engine,
    error::{Failure, refuse},
    fork,
    memory::PAGES,
    process::{
        peer::{Process, Token, random},
        watch::Watch,
    },
    threads,
};

/// The threads of one engine. They end with it.
pub(crate) struct Aides {
    _watch: Option<Watch>,
    process: Option<Arc<Process>>,
    stopped: Arc<AtomicBool>,
}

impl Aides {
    /// Starts the thread that sees peers end, and the one that makes progress.
    pub(crate) fn start(engine: &Engine) -> Self {
        let stopped = Arc::new(AtomicBool::new(false));
        let Some(process) = engine.process.clone() else {
            return Self { _watch: None, process: None, stopped };
        };
        let me = engine.me.clone();
        let watch = Watch::start(
            &process,
            Box::new(move |peer| {
                if let Some(engine) = me.upgrade() {
                    engine.lose(peer);
                }
            }),
        );
        if let Err(error) = &watch {
            tracing::warn!(%error, "no thread to see ranks end: those who wait for them hang");
        }
        let progress = Progress {
            engine: engine.me.clone(),
            process: Arc::clone(&process),
            stopped: Arc::clone(&stopped),
        };
        let thread = thread::Builder::new().name("collectives-progress".into());
        if let Err(error) = thread.spawn(move || progress.run()) {
            tracing::warn!(%error, "no thread for progress: work goes on only when this rank calls");
        }
        let clerk = Clerk {
            engine: engine.me.clone(),
            process: Arc::clone(&process),
            stopped: Arc::clone(&stopped),
        };
        let thread = thread::Builder::new().name("collectives-clerk".into());
        if let Err(error) = thread.spawn(move || clerk.run()) {
            tracing::warn!(%error, "no thread to speak for this process: deadlocks will hang");
        }
        Self { _watch: watch.ok(), process: Some(process), stopped }
    }
}

impl Drop for Aides {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Release);
        if let Some(process) = self.process.as_ref().filter(|_| !fork::in_forked_child()) {
            process.own().bell().ring();
            Clerk::wake(process);
        }
    }
}

/// Moves the engine on where its program does not: a program that polls a buffer, or an event behind
/// an operation, never waits here. Not often: where the program calls itself there is nothing to do.
struct Progress {
    engine: Weak<Engine>,
    process: Arc<Process>,
    stopped: Arc<AtomicBool>,
}

impl Progress {
    fn run(&self) {
        // So that no engine takes this thread for one that may act.
        threads::enlist();
        let bell = self.process.own().bell();
        while !self.stopped.load(Ordering::Acquire) {
            let seen = bell.state();
            // May be its last owner, and end the aides.
            match self.engine.upgrade() {
                Some(engine) => engine.press(),
                None => return,
            }
            bell.sleep(seen, None);
            thread::sleep(PAUSE);
        }
    }
}

/// This process for an engine of its own.
pub(crate) fn process(config: &MockConfig) -> Result<Arc<Process>, Failure> {
    let waste = if config.guards.protect { PAGES } else { 0 };
    let bytes = config.device_memory.saturating_mul(config.devices).saturating_add(waste);
    Process::new(bytes).map(Arc::new).map_err(|error| {
        let kind = match error.kind() {
            io::ErrorKind::Unsupported => ErrorKind::Unsupported,
            _ => ErrorKind::System,
        };
        Failure::new(kind, format!("ranks cannot be processes here: {error}"))
            .with_hint("that takes Linux 5.3 or later; ranks as threads work everywhere")
    })
}

impl Engine {
    /// A token for an id.
    pub(crate) fn random_token(&self) -> Result<Token> {
        self.check_able()?;
        random().map_err(|error| refuse(ErrorKind::System, format!("random bits: {error}")))
    }
}

/// Ends the process as if somebody had killed it.
pub(crate) fn kill_self() -> ! {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{Signal, getpid, kill_process};
        let _ = kill_process(getpid(), Signal::KILL);
    }
    // The signal is on its way.
    std::process::abort()
}

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(1);
