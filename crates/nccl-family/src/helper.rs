//! Threads for calls that may hang, and the end of the process.
//!
//! A helper that was not waited for to its end may still be inside the library when the program
//! returns from `main`. The libraries tear themselves down at exit, under its feet: a crash after all
//! work was done (seen with NCCL 2.28.9, whose abort waits for captured graphs). So the exit of the
//! process waits for helpers too, for a bounded time.

use std::{
    sync::{Arc, Mutex, Once, PoisonError, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use collectives_core::Result;
use collectives_nccl_abi::fork;

/// Runs `work` on a helper thread and waits for its answer at most `limit`. Afterwards it goes on
/// alone.
pub(crate) fn bounded<R: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> R + Send + 'static,
) -> Option<R> {
    let (done, answer) = mpsc::sync_channel(1);
    let helper = thread::Builder::new().name("collectives-end".into()).spawn(move || {
        // Nobody listens any more if it took too long.
        let _ = done.send(work());
    });
    match helper {
        Ok(helper) => {
            keep(helper);
            answer.recv_timeout(limit).ok()
        }
        Err(error) => {
            tracing::warn!(%error, "no thread to end a communicator on: it is leaked");
            None
        }
    }
}

/// Runs `work`, which keeps a deadline by itself as well as it can, on a helper thread, and waits for
/// its answer a little longer than that. What succeeds too late is given to `undo`, on the helper.
///
/// Without a thread the work is done here.
pub(crate) fn within<R: Send + 'static>(
    deadline: Duration,
    work: impl FnOnce() -> Result<R> + Send + 'static,
    undo: impl FnOnce(R) + Send + 'static,
) -> Option<Result<R>> {
    // Without room, so that an answer is either taken or comes back.
    let (done, answer) = mpsc::sync_channel(0);
    let work = Shared::new(work);
    let taken = work.clone();
    let on_helper = move || {
        if let Some(work) = taken.take()
            && let Err(mpsc::SendError(Ok(late))) = done.send(work())
        {
            undo(late);
        }
    };
    if !start("collectives-join", on_helper) {
        return work.take().map(|work| work());
    }
    match deadline.checked_add(GRACE) {
        Some(limit) => answer.recv_timeout(limit).ok(),
        // Past the end of time.
        None => answer.recv().ok(),
    }
}

/// Runs `work` on a helper thread and waits for its answer, unless `given_up` becomes true: then it is
/// left alone. Without a thread the work is done here.
pub(crate) fn unless<R: Send + 'static>(
    work: impl FnOnce() -> R + Send + 'static,
    given_up: impl Fn() -> bool,
) -> Option<R> {
    let (done, answer) = mpsc::sync_channel(1);
    let work = Shared::new(work);
    let taken = work.clone();
    let on_helper = move || {
        if let Some(work) = taken.take() {
            // Nobody listens any more if it was given up.
            let _ = done.send(work());
        }
    };
    if !start("collectives-end", on_helper) {
        return work.take().map(|work| work());
    }
    loop {
        match answer.recv_timeout(LOOK) {
            Ok(answer) => return Some(answer),
            Err(mpsc::RecvTimeoutError::Timeout) if !given_up() => {}
            Err(_) => return None,
        }
    }
}

/// Starts a helper; tells whether there is one.
fn start(name: &str, work: impl FnOnce() + Send + 'static) -> bool {
    match thread::Builder::new().name(name.into()).spawn(work) {
        Ok(helper) => {
            keep(helper);
            true
        }
        Err(error) => {
            tracing::warn!(%error, "no thread for a call that may last: it cannot be given up");
            false
        }
    }
}

/// Work for a thread that may not come about.
struct Shared<W>(Arc<Mutex<Option<W>>>);

impl<W> Shared<W> {
    fn new(work: W) -> Self {
        Self(Arc::new(Mutex::new(Some(work))))
    }

    fn take(&self) -> Option<W> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl<W> Clone for Shared<W> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// How often somebody who waits looks whether that is still wanted.
const LOOK: Duration = Duration::from_millis(20);

/// How much longer than its deadline a helper may take to clean up.
const GRACE: Duration = Duration::from_millis(500);

/// Helpers that have not been seen to end.
static HELPERS: Mutex<Vec<JoinHandle<()>>> = Mutex::new(Vec::new());

fn keep(helper: JoinHandle<()>) {
    static AT_EXIT: Once = Once::new();
    // Functions run in the reverse order of their registration, and the libraries have registered
    // theirs: there is a communicator to end.
    AT_EXIT.call_once(|| {
        // Miri has no `atexit`.
        // SAFETY: the function lives as long as the program, takes nothing and does not unwind.
        if !cfg!(miri) && unsafe { libc::atexit(wait_for_helpers) } != 0 {
            tracing::warn!("the exit of the process will not wait for calls in the background");
        }
    });
    let mut helpers = HELPERS.lock().unwrap_or_else(PoisonError::into_inner);
    helpers.retain(|helper| !helper.is_finished());
    helpers.push(helper);
}

/// At exit: lets helpers come out of the library.
extern "C" fn wait_for_helpers() {
    // A child of fork has the list, but not the threads.
    if fork::in_forked_child() {
        return;
    }
    let helpers = std::mem::take(&mut *HELPERS.lock().unwrap_or_else(PoisonError::into_inner));
    let until = Instant::now() + EXIT_PATIENCE;
    for helper in helpers {
        while !helper.is_finished() {
            if Instant::now() >= until {
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
        // What it panicked with was printed. Joining waits for the thread's own destructors, which
        // are the library's too.
        let _ = helper.join();
    }
}

/// How long the exit of the process waits.
const EXIT_PATIENCE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn an_answer_comes_back_and_a_late_one_is_not_waited_for() {
        assert_eq!(bounded(Duration::from_secs(60), || 1), Some(1));
        let (go, gone) = mpsc::channel::<()>();
        let late = bounded(Duration::ZERO, move || gone.recv().is_ok());
        assert_eq!(late, None);
        drop(go);
    }

    #[test]
    fn what_comes_too_late_is_undone_and_what_comes_in_time_is_not() {
        let minute = Duration::from_secs(60);
        let never = |_| panic!("it was taken");
        assert!(matches!(within(minute, || Ok(1), never), Some(Ok(1))));
        let (go, gone) = mpsc::channel::<()>();
        let (undo, undone) = mpsc::channel();
        let work = move || {
            let _ = gone.recv();
            Ok(2)
        };
        assert!(within(Duration::ZERO, work, move |late| undo.send(late).unwrap()).is_none());
        drop(go);
        assert_eq!(undone.recv(), Ok(2));
    }

    #[test]
    fn the_exit_of_the_process_waits_for_helpers() {
        if std::env::var_os(CHILD).is_some() {
            let slow = || {
                thread::sleep(Duration::from_millis(300));
                // Not through the test harness, which captures what tests print.
                let _ = std::io::Write::write_all(&mut std::io::stderr(), b"came out\n");
            };
            assert_eq!(bounded(Duration::ZERO, slow), None);
            std::process::exit(0);
        }
        let this = std::env::current_exe().expect("the test's own path");
        let name = concat!(module_path!(), "::the_exit_of_the_process_waits_for_helpers");
        let name = name.split_once("::").map_or(name, |(_, name)| name);
        let output = Command::new(this)
            .args(["--exact", name, "--nocapture"])
            .env(CHILD, "1")
            .output()
            .expect("the test can be started again");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.contains("came out"), "{output:?}");
    }

    const CHILD: &str = "COLLECTIVES_TEST_EXIT";
}
