//! A clock that has streams looked at later: for operations that are delayed on purpose.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    sync::{Arc, Condvar, Mutex, PoisonError, Weak},
    thread,
    time::Instant,
};

use crate::{engine::Engine, sync::lock, threads};

/// The timer of one engine. Its thread starts with the first delay, and ends with the timer.
pub(crate) struct Timer {
    engine: Weak<Engine>,
    shared: Arc<Shared>,
    runs: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    /// The earliest first.
    due: BinaryHeap<Reverse<(Instant, u32)>>,
    closed: bool,
}

impl Timer {
    pub(crate) fn new(engine: Weak<Engine>) -> Self {
        Self { engine, shared: Arc::default(), runs: false }
    }

    /// Has the head of a stream looked at then. `false` where the system gives no thread for it.
    pub(crate) fn look_at(&mut self, stream: u32, when: Instant) -> bool {
        if !self.runs {
            let (engine, shared) = (self.engine.clone(), Arc::clone(&self.shared));
            let thread = thread::Builder::new().name("collectives-mock-timer".into());
            match thread.spawn(move || shared.run(&engine)) {
                Ok(_) => self.runs = true,
                Err(error) => {
                    tracing::warn!(%error, "no thread for the mock's timer; nothing is delayed");
                    return false;
                }
            }
        }
        lock(&self.shared.queue).due.push(Reverse((when, stream)));
        self.shared.changed.notify_one();
        true
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        lock(&self.shared.queue).closed = true;
        self.shared.changed.notify_one();
    }
}

impl Shared {
    fn run(&self, engine: &Weak<Engine>) {
        // So that no engine takes this thread for one that may act.
        threads::enlist();
        let mut queue = lock(&self.queue);
        while !queue.closed {
            let Some(&Reverse((when, stream))) = queue.due.peek() else {
                queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = when.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                let waited = self.changed.wait_timeout(queue, left);
                queue = waited.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            queue.due.pop();
            // The engine takes this lock while it holds its own, so never the other way round. And
            // this may be its last owner, who drops the timer.
            drop(queue);
            let Some(engine) = engine.upgrade() else { return };
            engine.with(|state| state.look_at(stream));
            drop(engine);
            queue = lock(&self.queue);
        }
    }
}
