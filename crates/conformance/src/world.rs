//! Ranks as threads, which live as long as their communicator and run one case after another.
//!
//! Joining costs a third of a second on a real library, so a world is kept and used again by the
//! next case of its size; one in which a case failed is not. Threads that are stuck in a library
//! cannot be ended. So when a rank fails, the others' communicators are aborted after a moment, and
//! when that does not help until the deadline, the process ends, with every rank's last call.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use collectives_core::{AbortHandle, Backend, Collectives, Device, JoinConfig, UniqueId};

use crate::{
    check::{Failure, Outcome},
    ctx::{Ctx, rank},
    last_call::LastCall,
};

/// A case, as every rank runs it.
pub(crate) type Run<B> = for<'a, 'w> fn(&'a Ctx<'w, B>) -> Outcome;

/// Joined ranks, each on a thread of its own.
pub(crate) struct World<B: Backend> {
    name: String,
    seats: Vec<Sender<Arc<Job<B>>>>,
    reports: Receiver<(usize, Outcome)>,
    /// What the ranks are doing now.
    job: Arc<Job<B>>,
    deadline: Duration,
}

impl<B: Backend> World<B> {
    /// Starts a thread per rank and joins them. `devices` names the device of each rank.
    pub(crate) fn open(
        name: String,
        backend: &B,
        devices: &[usize],
        deadline: Duration,
    ) -> Result<Self, String> {
        let size = devices.len();
        let id =
            backend.unique_id().map_err(|error| format!("cannot make a unique id: {error}"))?;
        let job = Arc::new(Job::new("joining", 0, size, |_| Ok(())));
        let (report, reports) = channel();
        let mut seats = Vec::new();
        for index in 0..size {
            let (seat, jobs) = channel();
            let seat_of = Seat {
                backend: backend.clone(),
                devices: devices.to_vec(),
                rank: index,
                report: report.clone(),
            };
            let (id, first) = (id.clone(), Arc::clone(&job));
            thread::Builder::new()
                .name(format!("{name} rank {index}"))
                .spawn(move || seat_of.serve(&id, &first, &jobs))
                .map_err(|error| format!("cannot start a thread: {error}"))?;
            seats.push(seat);
        }
        let mut world = Self { name, seats, reports, job, deadline };
        world.collect().map_err(|failure| format!("the world was not set up\n{failure}"))?;
        Ok(world)
    }

    /// Runs `case` on every rank. After an error the world is of no more use.
    pub(crate) fn run(&mut self, case: &'static str, seed: u64, run: Run<B>) -> Result<(), String> {
        self.job = Arc::new(Job::new(case, seed, self.seats.len(), run));
        for seat in &self.seats {
            // A seat that ended early is missed by `collect`.
            let _ = seat.send(Arc::clone(&self.job));
        }
        // After a failure, closing must not wait for work whose peer never comes.
        self.collect().inspect_err(|_| self.job.abort_all())
    }

    /// Waits until every rank has reported.
    fn collect(&mut self) -> Result<(), String> {
        let end = Instant::now() + self.deadline;
        let mut rescue = None;
        let mut outcomes: Vec<Option<Outcome>> = self.seats.iter().map(|_| None).collect();
        while outcomes.iter().any(Option::is_none) {
            let until = rescue.unwrap_or(end).saturating_duration_since(Instant::now());
            match self.reports.recv_timeout(until) {
                Ok((rank, outcome)) => {
                    if outcome.is_err() && rescue.is_none() {
                        rescue = Some(Instant::now() + GRACE);
                    }
                    outcomes[rank] = Some(outcome);
                }
                Err(RecvTimeoutError::Timeout) if rescue.is_some_and(|at| at < end) => {
                    self.job.abort_all();
                    rescue = Some(end);
                }
                Err(_) => self.end_process(&outcomes),
            }
        }
        report(outcomes.into_iter().flatten())
    }

    /// Ends the process: the ranks that did not report cannot be ended.
    fn end_process(&self, outcomes: &[Option<Outcome>]) -> ! {
        eprintln!(
            "\n[{}] {} did not end within {:?} (seed {}):",
            self.name, self.job.case, self.deadline, self.job.seed
        );
        for (rank, (outcome, calls)) in outcomes.iter().zip(&self.job.calls).enumerate() {
            match outcome {
                None => eprintln!("  rank {rank} is stuck; it {}", calls.describe()),
                Some(Ok(())) => eprintln!("  rank {rank} is done; it {}", calls.describe()),
                Some(Err(failure)) => eprintln!("  rank {rank} failed: {failure}"),
            }
        }
        // Not `exit`: a vendor's exit handlers may wait for the very work that is stuck.
        std::process::abort()
    }
}

impl<B: Backend> Drop for World<B> {
    fn drop(&mut self) {
        self.job = Arc::new(Job::new("closing", 0, self.seats.len(), |_| Ok(())));
        self.seats.iter_mut().for_each(|seat| *seat = channel().0);
        // Each seat reports once more when its communicator is gone.
        let _ = self.collect();
    }
}

/// One case on its way through a world, and what the ranks share meanwhile.
pub(crate) struct Job<B: Backend> {
    case: &'static str,
    pub(crate) seed: u64,
    run: Run<B>,
    pub(crate) exchange: Exchange,
    /// The last call of each rank.
    pub(crate) calls: Vec<LastCall>,
    handles: Mutex<Vec<AbortHandle>>,
}

impl<B: Backend> Job<B> {
    fn new(case: &'static str, seed: u64, size: usize, run: Run<B>) -> Self {
        Self {
            case,
            seed,
            run,
            exchange: Exchange::new(size),
            calls: (0..size).map(|_| LastCall::new()).collect(),
            handles: Mutex::default(),
        }
    }

    /// Has `handle` aborted if a rank fails and others do not end.
    pub(crate) fn guard(&self, handle: AbortHandle) {
        lock(&self.handles).push(handle);
    }

    fn abort_all(&self) {
        let handles = std::mem::take(&mut *lock(&self.handles));
        for handle in handles {
            // The failure that led here is what gets reported.
            let _ = handle.abort();
        }
    }
}

/// One rank's thread.
struct Seat<B: Backend> {
    backend: B,
    devices: Vec<usize>,
    rank: usize,
    report: Sender<(usize, Outcome)>,
}

impl<B: Backend> Seat<B> {
    fn serve(self, id: &UniqueId, first: &Job<B>, jobs: &Receiver<Arc<Job<B>>>) {
        let joined = first.attend(self.rank, || {
            let device = self.backend.device(self.devices[self.rank])?;
            let stream = device.stream_create()?;
            let config = JoinConfig::new(rank(self.rank), self.devices.len())
                .with_device(self.devices[self.rank])
                .with_name("world");
            Ok((device, stream, self.backend.join(id, config)?))
        });
        let (device, stream, comm) = match joined {
            Ok(joined) => {
                self.tell(Ok(()));
                joined
            }
            Err(failure) => {
                self.tell(Err(failure));
                // Ends when the world closes, where every seat reports once more.
                let _ = jobs.recv();
                return self.tell(Ok(()));
            }
        };
        for job in jobs {
            job.guard(comm.abort_handle());
            let outcome = job.attend(self.rank, || {
                let ctx = Ctx::new(&self.backend, &comm, &self.devices, &device, stream, &job);
                (job.run)(&ctx)?;
                ctx.here.settle().map_err(|failure| failure.during("after the case"))
            });
            drop(job);
            self.tell(outcome);
        }
        drop(comm);
        // SAFETY: the stream was made above, and nothing uses it any more.
        let destroyed = unsafe { device.stream_destroy(stream) };
        self.tell(destroyed.map_err(Failure::from));
    }

    fn tell(&self, outcome: Outcome) {
        // Nobody listens only when the process is about to end.
        let _ = self.report.send((self.rank, outcome));
    }
}

impl<B: Backend> Job<B> {
    /// Runs `body`, and lets the others know when it ends.
    fn attend<T>(&self, rank: usize, body: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
        let outcome = catch_unwind(AssertUnwindSafe(body))
            .unwrap_or_else(|payload| Err(Failure::panic(&*payload)));
        self.exchange.leave(rank, outcome.is_err());
        outcome
    }
}

/// All-gather of bytes between threads; fails on all when one of them is gone.
pub(crate) struct Exchange {
    round: Mutex<Round>,
    changed: Condvar,
}

struct Round {
    number: u64,
    offered: Vec<Option<Vec<u8>>>,
    gathered: Arc<Vec<Vec<u8>>>,
    /// The first rank that ended, and whether it failed.
    left: Option<(usize, bool)>,
}

impl Exchange {
    fn new(size: usize) -> Self {
        let round =
            Round { number: 0, offered: vec![None; size], gathered: Arc::default(), left: None };
        Self { round: Mutex::new(round), changed: Condvar::new() }
    }

    #[track_caller]
    pub(crate) fn all_gather(&self, rank: usize, bytes: Vec<u8>) -> Outcome<Vec<Vec<u8>>> {
        let mut round = lock(&self.round);
        let mine = round.number;
        round.offered[rank] = Some(bytes);
        if round.offered.iter().all(Option::is_some) {
            round.gathered = Arc::new(round.offered.iter_mut().filter_map(Option::take).collect());
            round.number += 1;
            self.changed.notify_all();
        }
        while round.number == mine {
            match round.left {
                Some((who, true)) => {
                    return Err(Failure::echo(format!("rank {who} failed meanwhile")));
                }
                Some((who, false)) => {
                    return Err(Failure::new(format!("rank {who} ended without this exchange")));
                }
                None => {}
            }
            round = self.changed.wait(round).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(round.gathered.to_vec())
    }

    fn leave(&self, rank: usize, failed: bool) {
        let mut round = lock(&self.round);
        if round.left.is_none_or(|(_, earlier)| failed && !earlier) {
            round.left = Some((rank, failed));
        }
        self.changed.notify_all();
    }
}

/// One readable text for what all ranks said; ranks that say the same share a line.
fn report(outcomes: impl Iterator<Item = Outcome>) -> Result<(), String> {
    let mut failures: Vec<(String, Vec<usize>)> = Vec::new();
    let mut echoes = Vec::new();
    for (rank, outcome) in outcomes.enumerate() {
        let Err(failure) = outcome else { continue };
        if failure.is_echo() {
            echoes.push(rank);
            continue;
        }
        let text = failure.to_string();
        match failures.iter_mut().find(|(known, _)| *known == text) {
            Some((_, ranks)) => ranks.push(rank),
            None => failures.push((text, vec![rank])),
        }
    }
    if failures.is_empty() && echoes.is_empty() {
        return Ok(());
    }
    let mut lines: Vec<String> =
        failures.iter().map(|(text, ranks)| format!("  {}: {text}", name(ranks))).collect();
    if !echoes.is_empty() {
        lines.push(format!("  {}: gave up, since another rank failed", name(&echoes)));
    }
    Err(lines.join("\n"))
}

fn name(ranks: &[usize]) -> String {
    let numbers: Vec<String> = ranks.iter().map(ToString::to_string).collect();
    format!("rank {}", numbers.join(", "))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long the other ranks have to end by themselves once one has failed.
const GRACE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exchange_gives_every_rank_all_bytes_in_rank_order() {
        let exchange = Exchange::new(3);
        thread::scope(|scope| {
            for rank in 0..3_u8 {
                let exchange = &exchange;
                scope.spawn(move || {
                    for round in 0..100_u8 {
                        let all = exchange.all_gather(rank.into(), vec![rank, round]).unwrap();
                        assert_eq!(all, [[0, round], [1, round], [2, round]]);
                    }
                });
            }
        });
    }

    #[test]
    fn a_rank_that_ends_frees_those_that_wait_for_it() {
        for (failed, echo) in [(true, true), (false, false)] {
            let exchange = Exchange::new(2);
            let failure = thread::scope(|scope| {
                let waiting = scope.spawn(|| exchange.all_gather(0, vec![]).unwrap_err());
                exchange.leave(1, failed);
                waiting.join().unwrap()
            });
            assert_eq!(failure.is_echo(), echo, "{failure}");
        }
    }

    #[test]
    fn a_report_says_each_thing_once() {
        let same = || Failure::panic(&"boom");
        let outcomes = [Err(same()), Ok(()), Err(same()), Err(Failure::echo("rank 0 failed"))];
        let text = report(outcomes.into_iter()).unwrap_err();
        assert_eq!(
            text,
            "  rank 0, 2: panicked: boom\n  rank 3: gave up, since another rank failed"
        );
        assert!(report([Ok(()), Ok(())].into_iter()).is_ok());
    }
}
