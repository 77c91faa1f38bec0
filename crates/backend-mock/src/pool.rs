//! The workers that share the data of large operations.
//!
//! One pool per process, as many threads as cores, started when the first large operation needs
//! them. A job is cut into slices; whoever comes takes the next one. A thread that waits for a
//! stream lends a hand too, as long as no more threads work than there are cores.

use std::{
    collections::VecDeque,
    hint,
    sync::{
        Arc, Condvar, Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use crate::sync::lock;

/// Work in slices that any threads may do, in any order.
pub(crate) trait Task: Send + Sync {
    /// Does one slice. Each is done once.
    fn run(&self, slice: usize);

    /// Called once, by the thread that did the last slice.
    fn finish(&self);
}

/// The process's workers.
pub(crate) struct Pool {
    cores: usize,
    /// Threads that are doing slices.
    busy: AtomicUsize,
    /// Workers that look out for a job without sleeping.
    eager: AtomicUsize,
    /// Jobs that have slices to take.
    open: AtomicUsize,
    queue: Mutex<Queue>,
    wake: Condvar,
}

struct Queue {
    jobs: VecDeque<Arc<Job>>,
    /// Workers that sleep.
    idle: usize,
    /// Workers that exist.
    workers: usize,
}

struct Job {
    task: Box<dyn Task>,
    slices: usize,
    /// The next slice to take.
    next: AtomicUsize,
    /// Slices not done yet.
    left: AtomicUsize,
}

impl Pool {
    /// The one pool.
    pub(crate) fn global() -> &'static Self {
        static POOL: OnceLock<Pool> = OnceLock::new();
        POOL.get_or_init(|| Self {
            cores: thread::available_parallelism().map_or(1, usize::from),
            busy: AtomicUsize::new(0),
            eager: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            queue: Mutex::new(Queue { jobs: VecDeque::new(), idle: 0, workers: 0 }),
            wake: Condvar::new(),
        })
    }

    /// Number of threads that can work at once.
    pub(crate) fn cores(&self) -> usize {
        self.cores
    }

    /// Lets workers do `task`. Never blocks.
    pub(crate) fn submit(&'static self, slices: usize, task: Box<dyn Task>) {
        let (next, left) = (AtomicUsize::new(0), AtomicUsize::new(slices));
        let job = Arc::new(Job { task, slices, next, left });
        let mut queue = lock(&self.queue);
        queue.jobs.push_back(job);
        self.open.fetch_add(1, Ordering::Release);
        let awake = self.busy.load(Ordering::Relaxed) + self.eager.load(Ordering::Relaxed);
        let wanted = slices.min(self.cores.saturating_sub(awake));
        for _ in 0..wanted.min(queue.idle) {
            self.wake.notify_one();
        }
        let mut missing = wanted.saturating_sub(queue.idle).min(self.cores - queue.workers);
        if queue.workers == 0 {
            missing = missing.max(1);
        }
        for _ in 0..missing {
            let worker = thread::Builder::new().name("collectives-mock".into());
            match worker.spawn(|| self.work()) {
                Ok(_) => queue.workers += 1,
                Err(error) => {
                    tracing::warn!(%error, "no thread for the mock's pool; waiting ranks will do its work");
                }
            }
        }
        let nobody = queue.workers == 0;
        drop(queue);
        if nobody {
            // No thread could ever be started, so this one must do it.
            while self.help() {}
        }
    }

    /// Whether there is something to help with.
    #[inline]
    pub(crate) fn has_work(&self) -> bool {
        self.open.load(Ordering::Relaxed) > 0
    }

    /// Does slices of one job, if there is one and a core is free for it.
    pub(crate) fn help(&self) -> bool {
        if !self.has_work() {
            return false;
        }
        if self.busy.fetch_add(1, Ordering::Relaxed) >= self.cores {
            self.busy.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        let job = lock(&self.queue).jobs.front().map(Arc::clone);
        let helped = job.is_some();
        if let Some(job) = job {
            self.take_slices(&job);
        }
        self.busy.fetch_sub(1, Ordering::Relaxed);
        if self.has_work() {
            // Who submitted it may have counted on this thread, which may not come back.
            let queue = lock(&self.queue);
            if queue.idle > 0 {
                self.wake.notify_one();
            }
        }
        helped
    }

    fn take_slices(&self, job: &Arc<Job>) {
        loop {
            let slice = job.next.fetch_add(1, Ordering::Relaxed);
            if slice >= job.slices {
                return;
            }
            if slice + 1 == job.slices {
                // The last one is taken: the job leaves the queue.
                lock(&self.queue).jobs.retain(|other| !Arc::ptr_eq(other, job));
                self.open.fetch_sub(1, Ordering::Relaxed);
            }
            job.task.run(slice);
            // Release: what was written is seen by the one who finishes, which acquires.
            if job.left.fetch_sub(1, Ordering::AcqRel) == 1 {
                job.task.finish();
            }
        }
    }

    fn work(&self) {
        // So that no engine takes this thread for one that may act.
        crate::threads::enlist();
        loop {
            if self.help() || self.look_out() {
                continue;
            }
            let mut queue = lock(&self.queue);
            queue.idle += 1;
            queue = if queue.jobs.is_empty() {
                self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner)
            } else {
                // Others are on it; look again in case they were only passing by.
                let waited = self.wake.wait_timeout(queue, RECHECK);
                waited.unwrap_or_else(PoisonError::into_inner).0
            };
            queue.idle -= 1;
        }
    }

    /// Waits a few microseconds for a job: operations often come one after another, and going to
    /// sleep costs more than that. Not where it would keep a core from someone who works.
    fn look_out(&self) -> bool {
        let awake = self.eager.fetch_add(1, Ordering::Relaxed) + self.busy.load(Ordering::Relaxed);
        let mut found = false;
        if awake < self.cores {
            for _ in 0..LOOKS {
                if self.has_work() && self.busy.load(Ordering::Relaxed) < self.cores {
                    found = true;
                    break;
                }
                hint::spin_loop();
            }
        }
        self.eager.fetch_sub(1, Ordering::Relaxed);
        found
    }
}

/// How soon a worker looks again for room in a job that enough others seem to work on.
const RECHECK: Duration = Duration::from_millis(1);

/// Some ten microseconds.
const LOOKS: usize = 400;

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    struct Count(Vec<AtomicUsize>, mpsc::Sender<Vec<usize>>);

    impl Task for Count {
        fn run(&self, slice: usize) {
            self.0[slice].fetch_add(1, Ordering::Relaxed);
        }
        fn finish(&self) {
            let counts = self.0.iter().map(|count| count.load(Ordering::Relaxed)).collect();
            self.1.send(counts).unwrap();
        }
    }

    #[test]
    fn every_slice_is_done_once_before_the_finish() {
        let (sender, receiver) = mpsc::channel();
        for slices in [1, 2, 100] {
            let counts = (0..slices).map(|_| AtomicUsize::new(0)).collect();
            Pool::global().submit(slices, Box::new(Count(counts, sender.clone())));
            let counts = receiver.recv().unwrap();
            assert_eq!(counts, vec![1; slices]);
        }
    }
}
