//! Order and time: streams, events, memory that is freed early, peers that come late.

use std::time::Duration;

use collectives_core::{Backend, Collectives, DType, ErrorKind, ReduceOp};

use crate::{
    check::{Outcome, check, check_eq, fails},
    ctx::Ctx,
    inputs::{Reduction, inputs},
    oracle,
    plan::{Collective, Plan, Prepared, compare},
};

pub(super) fn a_call_does_not_wait_for_other_ranks<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let sum = warm_sum(ctx)?;
    // One rank after another issues, and none before the earlier one's call has returned.
    for turn in 0..ctx.size {
        if turn == ctx.rank {
            sum.issue(ctx.lane())?;
        }
        ctx.meet()?;
    }
    sum.verify(ctx)
}

pub(super) fn an_event_orders_two_streams<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let side = ctx.here.new_stream()?;
    let mut sum = warm_sum(ctx)?;
    for turn in 1..=5 {
        // Inputs are written on one stream, combined on the other, and read on the first.
        sum.refill(ctx, ctx.seed + turn)?;
        ctx.here.order(ctx.here.stream, side)?;
        sum.issue(ctx.lane_of(ctx.comm, side))?;
        ctx.here.order(side, ctx.here.stream)?;
        sum.verify(ctx)?;
    }
    Ok(())
}

pub(super) fn one_communicator_works_on_two_streams<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let side = ctx.here.new_stream()?;
    let (one, two) = (warm_sum(ctx)?, warm_sum(ctx)?);
    for _ in 0..5 {
        // The library itself orders the operations of one communicator.
        one.issue(ctx.lane())?;
        two.issue(ctx.lane_of(ctx.comm, side))?;
    }
    ctx.here.order(side, ctx.here.stream)?;
    one.verify(ctx)?;
    two.verify(ctx)
}

pub(super) fn two_communicators_work_on_two_streams<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let side = ctx.here.new_stream()?;
    let second = ctx.join_again()?;
    let other: &dyn Collectives = &second;
    Plan::new(Collective::AllReduce, DType::F32, COUNT)
        .run_on(ctx, ctx.lane_of(other, ctx.here.stream))?;
    let (one, two) = (warm_sum(ctx)?, warm_sum(ctx)?);
    for _ in 0..5 {
        one.issue(ctx.lane())?;
        two.issue(ctx.lane_of(other, side))?;
    }
    ctx.here.order(side, ctx.here.stream)?;
    one.verify(ctx)?;
    two.verify(ctx)?;
    Ok(ctx.finalize(second)?)
}

pub(super) fn buffers_may_be_freed_right_after_the_call<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let mut results = Vec::new();
    for turn in 0..6 {
        let (own, want) = sum_of(ctx, ctx.seed + turn);
        let (send, recv) = (ctx.here.upload(&own)?, ctx.here.alloc(DType::F32, COUNT)?);
        ctx.lane().all_reduce(send.send(), recv.recv(), ReduceOp::Sum)?;
        results.push((ctx.here.start_reading(recv)?, want));
        ctx.here.free(send)?;
        ctx.here.free(recv)?;
        // What is allocated next may be the same memory.
        let next = ctx.here.upload(&vec![-1.0_f32; COUNT])?;
        ctx.here.free(next)?;
    }
    for (result, want) in results {
        compare("received", &result.finish::<f32>()?, &want, 0)?;
    }
    Ok(())
}

pub(super) fn freed_memory_is_not_reused_too_early<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    warm_sum(ctx)?;
    let there = ctx.elsewhere(ctx.rank)?;
    let garbage = vec![-1.0_f32; COUNT];
    // A driver may refuse to allocate while a collective waits; freed memory it can hand out again.
    let spare = (0..8).map(|_| there.upload(&garbage)).collect::<Outcome<Vec<_>>>()?;
    spare.into_iter().try_for_each(|memory| there.free(memory))?;
    there.synchronize()?;
    let (own, want) = sum_of(ctx, ctx.seed + 1);
    let (send, recv) = (ctx.here.upload(&own)?, ctx.here.alloc(DType::F32, COUNT)?);
    ctx.here.synchronize()?;
    if ctx.rank > 0 {
        ctx.meet()?;
    }
    ctx.lane().all_reduce(send.send(), recv.recv(), ReduceOp::Sum)?;
    ctx.here.free(send)?;
    if ctx.rank == 0 {
        // The others have not come, so `send` is still to be read.
        for _ in 0..8 {
            there.upload(&garbage)?;
        }
        there.synchronize()?;
        ctx.meet()?;
    }
    compare("received", &ctx.here.read::<f32>(recv)?, &want, 0)?;
    there.settle()
}

pub(super) fn work_on_a_destroyed_stream_still_runs<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let mut sum = warm_sum(ctx)?;
    sum.refill(ctx, ctx.seed + 1)?;
    let side = ctx.here.new_stream()?;
    ctx.here.order(ctx.here.stream, side)?;
    sum.issue(ctx.lane_of(ctx.comm, side))?;
    ctx.here.order(side, ctx.here.stream)?;
    ctx.here.destroy_stream(side)?;
    sum.verify(ctx)
}

pub(super) fn a_wait_gives_up_and_the_work_completes_later<B: Backend>(
    ctx: &Ctx<'_, B>,
) -> Outcome {
    let mut sum = warm_sum(ctx)?;
    sum.refill(ctx, ctx.seed + 1)?;
    ctx.here.synchronize()?;
    if ctx.rank > 0 {
        ctx.meet()?;
        sum.issue(ctx.lane())?;
    } else {
        sum.issue(ctx.lane())?;
        for patience in [0, 1, 50] {
            let patience = Duration::from_millis(patience);
            let waited = ctx.here.synchronize_stream(ctx.here.stream, patience);
            let error = fails(ErrorKind::Timeout, "waiting for a missing rank", waited)?;
            check(!error.poisons_communicator(), "a wait that gives up harms nothing")?;
        }
        ctx.meet()?;
    }
    sum.verify(ctx)?;
    Plan::new(Collective::AllReduce, DType::F32, COUNT).run(ctx)
}

pub(super) fn an_event_behind_waiting_work_is_not_reached<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let sum = warm_sum(ctx)?;
    let event = ctx.here.new_event()?;
    if ctx.rank > 0 {
        ctx.meet()?;
    }
    sum.issue(ctx.lane())?;
    ctx.here.record(event, ctx.here.stream)?;
    if ctx.rank == 0 {
        check(!ctx.here.query(event)?, "the event is ahead")?;
        ctx.meet()?;
    }
    ctx.here.synchronize()?;
    check(ctx.here.query(event)?, "the event is reached")
}

pub(super) fn many_operations_queue_up<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    const DEPTH: u32 = 100;
    let memory = ctx.here.upload(&[1_i32; 17])?;
    for _ in 0..DEPTH {
        ctx.lane().all_reduce(memory.send(), memory.recv(), ReduceOp::Sum)?;
    }
    // Each multiplies by the size, and wraps.
    let want = (ctx.size as i32).wrapping_pow(DEPTH);
    check_eq("received", ctx.here.read::<i32>(memory)?, vec![want; 17])
}

const COUNT: usize = 2049;

/// This rank's inputs, and what all of them add up to.
fn sum_of<B: Backend>(ctx: &Ctx<'_, B>, seed: u64) -> (Vec<f32>, Vec<f32>) {
    let of = |rank| inputs::<f32>(Some(Reduction::Sum), seed, rank, ctx.size, COUNT);
    let all: Vec<Vec<f32>> = (0..ctx.size).map(of).collect();
    (all[ctx.rank].clone(), oracle::reduce(&all, Reduction::Sum))
}

/// An all-reduce that has run once: a library may wait for its peers when it first connects.
fn warm_sum<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome<Prepared<f32>> {
    let plan = Plan::new(Collective::AllReduce, DType::F32, COUNT);
    let sum = plan.prepare(ctx, ctx.lane(), ctx.seed)?;
    sum.issue(ctx.lane())?;
    sum.verify(ctx)?;
    Ok(sum)
}
