//! One rank: it joins, warms up, measures every size and checks the results.
//!
//! The time is taken as nccl-tests takes it (2.19.6, `src/common.cu`), so that figures compare:
//!
//! 1. Before the first measurement, `--warmup` operations out of place of each size, doubled from
//!    the smallest on, and one wait after each size.
//! 2. For each size and placement, one operation and a wait, then all ranks meet.
//! 3. The clock runs from there: `--iters` operations in a loop, then one wait on the stream (or,
//!    with `--sync-each`, a wait after each). The time of an operation is the mean of the ranks'
//!    clocks, divided by the iterations. The clock is also read when the last call has returned,
//!    before the wait: what issuing costs, where calls return before the result is there.
//! 4. With `--graph`, the loop is captured into one graph. The ranks meet again when it can be
//!    launched, and the clock takes in its first launch, which is its only one, and the wait. There
//!    is no launch to warm up. What issuing costs is the call that launches, divided by the
//!    iterations.
//! 5. Operations move on through buffers of the largest size, and start over at their end, so that
//!    small ones do not find their operands in a cache for no other reason than being repeated.
//! 6. The check is an operation of its own, at the start of the buffers and not timed; with
//!    `--graph`, in a graph of its own.

use std::time::{Duration, Instant};

use collectives::{
    AbortHandle, AnyBackend, Communicator, DType, Error, JoinConfig, Rank, ReduceOp, Result, group,
};
use serde::{Deserialize, Serialize};

use super::{
    args::Registered,
    data::{Value, with_type},
    operation::Operation,
    seat::{Call, Seat},
};

/// What every rank does.
pub(super) struct Plan {
    pub(super) operation: Operation,
    pub(super) dtype: DType,
    /// Of no meaning where the operation does not reduce.
    pub(super) op: ReduceOp,
    /// Of no meaning where the operation has no root.
    pub(super) root: u32,
    pub(super) ranks: usize,
    /// What to measure, a line of the table each.
    pub(super) sizes: Vec<Repeated>,
    /// What to do before.
    pub(super) warmup: Vec<Repeated>,
    /// Elements of each buffer.
    pub(super) largest: usize,
    pub(super) registered: Registered,
    /// Ranks beyond these share them.
    pub(super) devices: usize,
    pub(super) graph: bool,
    pub(super) sync_each: bool,
    pub(super) check: bool,
}

/// A size, and how often.
pub(super) struct Repeated {
    /// Elements of one part.
    pub(super) count: usize,
    pub(super) repeats: usize,
}

/// What was found out about one size and placement.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Figures {
    pub(super) times: Times,
    /// Wrong elements; `None` where they were not checked.
    pub(super) wrong: Option<u64>,
}

/// Seconds that one operation took, on one rank or as the mean of all.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(super) struct Times {
    /// From the first call until the results are there.
    pub(super) done: f64,
    /// Until the last call returned. Where each operation is waited for, that takes in the waits.
    pub(super) issue: f64,
}

/// A rank's way to the other ranks and to what reports on them, outside of what is measured.
pub(super) trait Team {
    /// Joins the communicator that is measured.
    fn join(&self, backend: &AnyBackend, config: JoinConfig) -> Result<Communicator, Stop>;

    /// Waits until every rank is here.
    fn wait(&self) -> Result<(), Stop>;

    /// Names a communicator that is to end when a rank fails.
    fn ends(&self, handle: AbortHandle) -> Result<(), Stop>;

    /// Tells what this rank has measured. All tell it in the order of the plan, out of place first.
    fn tell(&self, figures: Figures) -> Result<(), Stop>;
}

/// Another rank failed, and has said why.
#[derive(Debug)]
pub(super) struct Ended;

/// Why a rank stopped.
pub(super) enum Stop {
    /// It failed.
    Failed(Error),
    /// Another one did.
    Ended,
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<Ended> for Stop {
    fn from(Ended: Ended) -> Self {
        Self::Ended
    }
}

/// Runs one rank to its end.
pub(super) fn rank(
    backend: &AnyBackend,
    plan: &Plan,
    rank: u32,
    team: &dyn Team,
) -> Result<(), Stop> {
    with_type!(plan.dtype, T => work::<T>(backend, plan, rank, team))
}

fn work<T: Value>(
    backend: &AnyBackend,
    plan: &Plan,
    rank: u32,
    team: &dyn Team,
) -> Result<(), Stop> {
    let device = rank as usize % plan.devices;
    let config = JoinConfig::new(Rank::new(rank), plan.ranks).with_name("perf").with_device(device);
    let comm = team.join(backend, config)?;
    team.ends(comm.abort_handle())?;
    let mut seat = Seat::<T>::new(comm, plan)?;
    warm_up(&mut seat, plan)?;
    for Step { count, repeats, in_place, seed } in plan.steps() {
        let call = Call::new(plan, rank, count, in_place);
        let times = time(&mut seat, plan, team, &call, repeats)?;
        let wrong = plan.check.then(|| wrong(&mut seat, plan, &call, count, seed)).transpose()?;
        team.tell(Figures { times, wrong })?;
    }
    seat.leave().finalize()?;
    Ok(())
}

fn warm_up<T: Value>(seat: &mut Seat<'_, T>, plan: &Plan) -> Result<()> {
    if plan.graph {
        group(|group| seat.warm_up(group))?;
    }
    for &Repeated { count, repeats } in &plan.warmup {
        let call = Call::new(plan, seat.rank(), count, false);
        call.places(plan, repeats).try_for_each(|at| seat.enqueue(&call, at))?;
        seat.synchronize()?;
    }
    Ok(())
}

/// What one operation took on this rank.
fn time<T: Value>(
    seat: &mut Seat<'_, T>,
    plan: &Plan,
    team: &dyn Team,
    call: &Call,
    iters: usize,
) -> Result<Times, Stop> {
    seat.enqueue(call, 0)?;
    seat.synchronize()?;
    team.wait()?;
    let places = call.places(plan, iters);
    let clock = if plan.graph {
        let graph = seat.capture(call, places)?;
        team.wait()?;
        let clock = Clock::start();
        seat.launch(&graph)?;
        let clock = clock.issued();
        seat.synchronize()?;
        clock.done()
    } else {
        let clock = Clock::start();
        for at in places {
            seat.enqueue(call, at)?;
            if plan.sync_each {
                seat.synchronize()?;
            }
        }
        let clock = clock.issued();
        seat.synchronize()?;
        clock.done()
    };
    // What comes next takes no time from ranks that still measure.
    team.wait()?;
    Ok(clock.each(iters))
}

/// Runs the operation once more on known inputs; answers how many elements are wrong on this rank.
fn wrong<T: Value>(
    seat: &mut Seat<'_, T>,
    plan: &Plan,
    call: &Call,
    count: usize,
    seed: u64,
) -> Result<u64> {
    seat.set_inputs(call, count, seed)?;
    if plan.graph {
        let graph = seat.capture(call, std::iter::once(0))?;
        seat.launch(&graph)?;
        seat.synchronize()?;
    } else {
        seat.enqueue(call, 0)?;
        seat.synchronize()?;
    }
    seat.wrong(call, count, seed)
}

/// One measurement, in the order of the table.
pub(super) struct Step {
    pub(super) count: usize,
    pub(super) repeats: usize,
    pub(super) in_place: bool,
    /// Of the check's data, another for each.
    pub(super) seed: u64,
}

impl Plan {
    /// What is measured one after the other: every size, out of place first.
    pub(super) fn steps(&self) -> impl Iterator<Item = Step> {
        let placements = if self.operation.has_in_place() { &[false, true][..] } else { &[false] };
        (0..).zip(&self.sizes).flat_map(move |(index, &Repeated { count, repeats })| {
            placements.iter().map(move |&in_place| Step {
                count,
                repeats,
                in_place,
                seed: 1 + 2 * index + u64::from(in_place),
            })
        })
    }
}

/// Reads the two times of a loop.
pub(super) struct Clock {
    start: Instant,
    issued: Duration,
    done: Duration,
}

impl Clock {
    pub(super) fn start() -> Self {
        Self { start: Instant::now(), issued: Duration::ZERO, done: Duration::ZERO }
    }

    /// The last call has returned.
    pub(super) fn issued(self) -> Self {
        Self { issued: self.start.elapsed(), ..self }
    }

    /// The results are there.
    pub(super) fn done(self) -> Self {
        Self { done: self.start.elapsed(), ..self }
    }

    /// Of one operation out of so many.
    pub(super) fn each(self, iters: usize) -> Times {
        let each = |time: Duration| time.as_secs_f64() / iters as f64;
        Times { done: each(self.done), issue: each(self.issued) }
    }
}
