//! All ranks driven by one thread, which issues each operation for all of them in one group, as
//! nccl-tests does with `-g`.

use std::{iter, panic, thread};

use collectives::{AnyBackend, Communicator, Graph, JoinAllConfig, Result, group};

use super::{
    data::{Value, with_type},
    ranks::Ranks,
    run::{Clock, Figures, Plan, Repeated, Step, Times},
    seat::{Call, Seat},
};
use crate::Failure;

/// Joins all ranks of the plan.
pub(super) fn start<'a>(plan: &'a Plan, backend: &AnyBackend) -> Result<Box<dyn Ranks + 'a>> {
    let devices: Vec<_> = (0..plan.ranks).collect();
    let comms = Communicator::join_all(backend, JoinAllConfig::new(devices).with_name("perf"))?;
    Ok(with_type!(plan.dtype, T => Box::new(OneThread::<T>::new(plan, comms)?)))
}

/// The ranks, and where in the plan they are.
struct OneThread<'a, T: Value> {
    plan: &'a Plan,
    seats: Vec<Seat<'a, T>>,
    steps: Box<dyn Iterator<Item = Step> + 'a>,
}

impl<'a, T: Value> OneThread<'a, T> {
    fn new(plan: &'a Plan, comms: Vec<Communicator>) -> Result<Self> {
        let seats: Vec<_> =
            comms.into_iter().map(|comm| Seat::new(comm, plan)).collect::<Result<_>>()?;
        if plan.graph {
            group(|group| seats.iter().try_for_each(|seat: &Seat<'_, T>| seat.warm_up(group)))?;
        }
        let mut ranks = Self { plan, seats, steps: Box::new(plan.steps()) };
        for &Repeated { count, repeats } in &plan.warmup {
            let calls = ranks.calls(count, false);
            if let Some(places) = calls.first().map(|first| first.places(plan, repeats)) {
                ranks.issue(&calls, places)?;
            }
            ranks.synchronize()?;
        }
        Ok(ranks)
    }

    /// Each rank's own.
    fn calls(&self, count: usize, in_place: bool) -> Vec<Call> {
        let call = |seat: &Seat<'_, T>| Call::new(self.plan, seat.rank(), count, in_place);
        self.seats.iter().map(call).collect()
    }

    /// Issues the operation for all ranks at each of these places, in a group each.
    fn issue(&mut self, calls: &[Call], mut places: impl Iterator<Item = usize>) -> Result<()> {
        places.try_for_each(|at| {
            let mut seats = self.seats.iter_mut().zip(calls);
            group(|group| seats.try_for_each(|(seat, call)| seat.record(call, group, at)))
        })
    }

    /// Captures the operation at each of these places, into a graph for each rank.
    fn capture(
        &mut self,
        calls: &[Call],
        places: impl Iterator<Item = usize> + Clone,
    ) -> Result<Vec<Graph>> {
        let seats = self.seats.iter_mut().zip(calls);
        seats.map(|(seat, call)| seat.capture(call, places.clone())).collect()
    }

    fn launch(&self, graphs: &[Graph]) -> Result<()> {
        self.seats.iter().zip(graphs).try_for_each(|(seat, graph)| seat.launch(graph))
    }

    fn synchronize(&self) -> Result<()> {
        self.seats.iter().try_for_each(Seat::synchronize)
    }

    /// What one operation took, of all ranks.
    fn time(&mut self, calls: &[Call], iters: usize) -> Result<Times> {
        self.issue(calls, iter::once(0))?;
        self.synchronize()?;
        // All ranks' calls move through the buffers alike.
        let Some(first) = calls.first() else { return Ok(Times::default()) };
        let mut places = first.places(self.plan, iters);
        let clock = if self.plan.graph {
            let graphs = self.capture(calls, places)?;
            let clock = Clock::start();
            self.launch(&graphs)?;
            let clock = clock.issued();
            self.synchronize()?;
            clock.done()
        } else {
            let clock = Clock::start();
            if self.plan.sync_each {
                places.try_for_each(|at| {
                    self.issue(calls, iter::once(at))?;
                    self.synchronize()
                })?;
            } else {
                self.issue(calls, places)?;
            }
            let clock = clock.issued();
            self.synchronize()?;
            clock.done()
        };
        Ok(clock.each(iters))
    }

    /// Runs the operation once more on known inputs; answers how many elements are wrong.
    fn wrong(&mut self, calls: &[Call], count: usize, seed: u64) -> Result<u64> {
        for (seat, call) in self.seats.iter_mut().zip(calls) {
            seat.set_inputs(call, count, seed)?;
        }
        if self.plan.graph {
            let graphs = self.capture(calls, iter::once(0))?;
            self.launch(&graphs)?;
            self.synchronize()?;
        } else {
            self.issue(calls, iter::once(0))?;
            self.synchronize()?;
        }
        let seats = self.seats.iter_mut().zip(calls);
        seats.map(|(seat, call)| seat.wrong(call, count, seed)).sum()
    }
}

impl<T: Value> Ranks for OneThread<'_, T> {
    fn next(&mut self) -> Result<Figures, Failure> {
        let Some(Step { count, repeats, in_place, seed }) = self.steps.next() else {
            return Err(Failure::from("everything has been measured"));
        };
        let calls = self.calls(count, in_place);
        let times = self.time(&calls, repeats)?;
        let wrong = self.plan.check.then(|| self.wrong(&calls, count, seed)).transpose()?;
        Ok(Figures { times, wrong })
    }

    fn ended(&mut self) -> Result<(), Failure> {
        let comms: Vec<_> = std::mem::take(&mut self.seats).into_iter().map(Seat::leave).collect();
        // Each waits for the others.
        let ended = thread::scope(|scope| {
            let ends: Vec<_> =
                comms.into_iter().map(|comm| scope.spawn(|| comm.finalize())).collect();
            ends.into_iter()
                .try_for_each(|end| end.join().unwrap_or_else(|panic| panic::resume_unwind(panic)))
        });
        Ok(ended?)
    }
}
