//! Collectives in graphs.
//!
//! Libraries build their connections on first use, which a capture does not allow. So each case
//! runs eagerly what it will capture.

use collectives_core::{
    Backend, Collectives, DType, Device, Error, ErrorKind, RawStream, ReduceOp, Result, Scalar,
};

use crate::{
    cases::group::Ring,
    check::{Failure, Outcome, check, check_eq, refused},
    ctx::Ctx,
    inputs::Reduction,
    lane::Lane,
    plan::{Collective, Plan, Prepared},
    workspace::PATIENCE,
};

pub(super) fn an_all_reduce_is_replayed_with_fresh_inputs<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let mut sum = warm_sum(ctx, ctx.lane())?;
    let graph = ctx.capture(ctx.here.stream, || Ok(sum.issue(ctx.lane())?))?;
    for turn in 1..=3 {
        sum.refill(ctx, ctx.seed + turn)?;
        graph.launch(ctx.here.stream)?;
        sum.verify(ctx)?;
    }
    Ok(())
}

pub(super) fn a_grouped_send_and_receive_are_replayed<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let ring = Ring::new(ctx)?;
    ctx.group(|| ring.issue(ctx.lane()))?;
    ring.verify(ctx, 0)?;
    let issue = || Ok(ctx.group(|| ring.issue(ctx.lane()))?);
    let graph = ctx.capture(ctx.here.stream, issue)?;
    for turn in 1..=3 {
        ring.refill(ctx, turn)?;
        graph.launch(ctx.here.stream)?;
        ring.verify(ctx, turn)?;
    }
    Ok(())
}

pub(super) fn every_operation_can_be_captured<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    for collective in Collective::ALL {
        for in_place in [false, true] {
            let plan =
                Plan::new(collective, DType::F32, 129).with_root(ctx.size - 1).in_place(in_place);
            plan.run(ctx)?;
            let mut call: Prepared<f32> = plan.prepare(ctx, ctx.lane(), ctx.seed + 1)?;
            let graph = ctx.capture(ctx.here.stream, || Ok(call.issue(ctx.lane())?))?;
            for turn in 1..=2 {
                call.refill(ctx, ctx.seed + turn)?;
                graph.launch(ctx.here.stream)?;
                call.verify(ctx).map_err(|failure| failure.during(plan))?;
            }
        }
    }
    Ok(())
}

pub(super) fn two_operations_share_a_graph<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let (mut one, mut two) = (warm_sum(ctx, ctx.lane())?, warm_sum(ctx, ctx.lane())?);
    let graph = ctx.capture(ctx.here.stream, || {
        one.issue(ctx.lane())?;
        Ok(two.issue(ctx.lane())?)
    })?;
    for turn in 1..=3 {
        one.refill(ctx, ctx.seed + turn)?;
        two.refill(ctx, ctx.seed + 10 * turn)?;
        graph.launch(ctx.here.stream)?;
        one.verify(ctx)?;
        two.verify(ctx)?;
    }
    Ok(())
}

/// A decode step in small: two groups, two operations, and work of other code between them.
pub(super) fn groups_operations_and_copies_share_a_graph<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let stream = ctx.here.stream;
    let rings = [Ring::new(ctx)?, Ring::new(ctx)?];
    let mut sum = warm_sum(ctx, ctx.lane())?;
    let copied = ctx.here.alloc(DType::F32, PLAN.count)?;
    for ring in &rings {
        ctx.group(|| ring.issue(ctx.lane()))?;
        ring.verify(ctx, 0)?;
    }
    let graph = ctx.capture(stream, || {
        ctx.group(|| rings[0].issue(ctx.lane()))?;
        sum.issue(ctx.lane())?;
        ctx.here.copy(copied, sum.recv, stream)?;
        ctx.group(|| rings[1].issue(ctx.lane()))?;
        Ok(sum.issue(ctx.lane())?)
    })?;
    for turn in 1..=3 {
        rings[0].refill(ctx, turn)?;
        rings[1].refill(ctx, -turn)?;
        sum.refill(ctx, ctx.seed + turn as u64)?;
        graph.launch(stream)?;
        rings[0].verify(ctx, turn)?;
        rings[1].verify(ctx, -turn)?;
        let want = ctx.here.read::<f32>(sum.recv)?;
        check_eq("the copy in the midst", ctx.here.read::<f32>(copied)?, want)?;
        sum.verify(ctx)?;
    }
    Ok(())
}

/// Runs of graphs that share a communicator are ordered by events, as NCCL wants it.
pub(super) fn two_graphs_are_replayed_by_turns_on_two_streams<B: Backend>(
    ctx: &Ctx<'_, B>,
) -> Outcome {
    let streams = [ctx.here.stream, ctx.here.new_stream()?];
    let mut sums = [warm_sum(ctx, ctx.lane())?, warm_sum(ctx, ctx.lane())?];
    let graphs = [
        ctx.capture(streams[0], || Ok(sums[0].issue(ctx.lane())?))?,
        ctx.capture(streams[0], || Ok(sums[1].issue(ctx.lane())?))?,
    ];
    for turn in 1..=3 {
        for (index, sum) in sums.iter_mut().enumerate() {
            sum.refill(ctx, ctx.seed + 10 * turn + index as u64)?;
        }
        for _ in 0..2 {
            for (index, graph) in graphs.iter().enumerate() {
                ctx.here.order(streams[1 - index], streams[index])?;
                graph.launch(streams[index])?;
            }
        }
        ctx.here.order(streams[1], streams[0])?;
        sums[0].verify(ctx)?;
        sums[1].verify(ctx)?;
    }
    Ok(())
}

pub(super) fn memory_is_not_freed_behind_a_capture<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let stream = ctx.here.stream;
    let mut sum = warm_sum(ctx, ctx.lane())?;
    let memory = ctx.here.device.alloc(64)?;
    let graph = ctx.capture(stream, || {
        sum.issue(ctx.lane())?;
        // SAFETY: refused: nothing would tell when the memory is unused.
        let freed = unsafe { ctx.here.device.free(memory, stream) };
        refused(ErrorKind::InvalidUsage, "a free behind a capture", freed)?;
        check(ctx.here.is_capturing(stream)?, "still capturing")
    })?;
    // SAFETY: it was allocated above, and is used by nobody.
    unsafe { ctx.here.device.free(memory, stream) }?;
    sum.refill(ctx, ctx.seed + 1)?;
    graph.launch(stream)?;
    sum.verify(ctx)
}

pub(super) fn nothing_runs_before_the_launch<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    warm_sum(ctx, ctx.lane())?;
    let sum: Prepared<f32> = PLAN.prepare(ctx, ctx.lane(), ctx.seed)?;
    let graph = ctx.capture(ctx.here.stream, || Ok(sum.issue(ctx.lane())?))?;
    sum.check_not_run(ctx)?;
    graph.launch(ctx.here.stream)?;
    sum.verify(ctx)
}

pub(super) fn synchronizing_is_refused_and_the_capture_survives<B: Backend>(
    ctx: &Ctx<'_, B>,
) -> Outcome {
    let mut sum = warm_sum(ctx, ctx.lane())?;
    sum.refill(ctx, ctx.seed + 1)?;
    let stream = ctx.here.stream;
    let graph = ctx.capture(stream, || {
        sum.issue(ctx.lane())?;
        let waited = ctx.here.synchronize_stream(stream, PATIENCE);
        refused(ErrorKind::InvalidUsage, "synchronize during capture", waited)?;
        check(ctx.here.is_capturing(stream)?, "still capturing")
    })?;
    check(!ctx.here.is_capturing(stream)?, "capturing no more")?;
    graph.launch(stream)?;
    sum.verify(ctx)
}

pub(super) fn a_refused_call_leaves_the_capture_intact<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let mut sum = warm_sum(ctx, ctx.lane())?;
    sum.refill(ctx, ctx.seed + 1)?;
    let memory = ctx.here.alloc(DType::F32, 5)?;
    let graph = ctx.capture(ctx.here.stream, || {
        let (send, recv) = (memory.part(0, 2), memory.part(2, 3));
        let call = ctx.lane().all_reduce(send.send(), recv.recv(), ReduceOp::Sum);
        refused(ErrorKind::InvalidArgument, "a wrong count during capture", call)?;
        Ok(sum.issue(ctx.lane())?)
    })?;
    graph.launch(ctx.here.stream)?;
    sum.verify(ctx)?;
    ctx.here.check_untouched(memory)
}

pub(super) fn a_dropped_group_leaves_the_capture_intact<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let mut sum = warm_sum(ctx, ctx.lane())?;
    sum.refill(ctx, ctx.seed + 1)?;
    let dropped: Prepared<f32> = PLAN.prepare(ctx, ctx.lane(), ctx.seed)?;
    let graph = ctx.capture(ctx.here.stream, || {
        let outcome: Result<()> = ctx.group(|| {
            dropped.issue(ctx.lane())?;
            Err(Error::new(ErrorKind::System, "the closure's own"))
        });
        check(outcome.is_err(), "the closure's error comes back")?;
        Ok(sum.issue(ctx.lane())?)
    })?;
    graph.launch(ctx.here.stream)?;
    sum.verify(ctx)?;
    dropped.check_not_run(ctx)
}

pub(super) fn eager_calls_and_replays_alternate<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let (mut replayed, mut eager) = (warm_sum(ctx, ctx.lane())?, warm_sum(ctx, ctx.lane())?);
    let graph = ctx.capture(ctx.here.stream, || Ok(replayed.issue(ctx.lane())?))?;
    for turn in 1..=3 {
        eager.refill(ctx, ctx.seed + turn)?;
        replayed.refill(ctx, ctx.seed + 10 * turn)?;
        eager.issue(ctx.lane())?;
        graph.launch(ctx.here.stream)?;
        eager.verify(ctx)?;
        replayed.verify(ctx)?;
        // And the other way round.
        graph.launch(ctx.here.stream)?;
        eager.issue(ctx.lane())?;
        replayed.verify(ctx)?;
        eager.verify(ctx)?;
    }
    Ok(())
}

pub(super) fn two_communicators_share_a_captured_stream<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    two_communicators(ctx, false)
}

pub(super) fn two_communicators_on_two_streams_share_a_graph<B: Backend>(
    ctx: &Ctx<'_, B>,
) -> Outcome {
    two_communicators(ctx, true)
}

pub(super) fn a_device_scalar_is_read_at_each_replay<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let lane = ctx.lane();
    let scalar = ctx.here.upload(&[1_i32])?;
    let send = ctx.here.upload(&[1 + ctx.rank as i32; 9])?;
    let recv = ctx.here.alloc(DType::I32, 9)?;
    let op = lane.pre_mul_sum(Scalar::Device { dtype: DType::I32, ptr: scalar.ptr() })?;
    let issue = || lane.all_reduce(send.send(), recv.recv(), ReduceOp::PreMulSum(op));
    issue()?;
    let graph = ctx.capture(ctx.here.stream, || Ok(issue()?))?;
    for turn in 1..=3 {
        // Each rank multiplies by a number of its own.
        let factor = |rank: usize| turn * (rank as i32 + 2);
        ctx.here.write(scalar, &[factor(ctx.rank)])?;
        graph.launch(ctx.here.stream)?;
        let want = (0..ctx.size).map(|rank| factor(rank) * (1 + rank as i32)).sum();
        check_eq("received", ctx.here.read::<i32>(recv)?, vec![want; 9])?;
    }
    drop(graph);
    Ok(lane.comm.destroy_pre_mul_sum(op)?)
}

pub(super) fn copies_are_captured_too<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let stream = ctx.here.stream;
    let sum = warm_sum(ctx, ctx.lane())?;
    let fresh: Prepared<f32> = PLAN.prepare(ctx, ctx.lane(), ctx.seed + 1)?;
    let result = ctx.here.alloc(DType::F32, PLAN.count)?;
    let graph = ctx.capture(stream, || {
        ctx.here.fill(sum.recv, 0)?;
        ctx.here.copy(sum.send, fresh.send, stream)?;
        sum.issue(ctx.lane())?;
        ctx.here.copy(result, sum.recv, stream)
    })?;
    graph.launch(stream)?;
    fresh.issue(ctx.lane())?;
    let want = ctx.here.read::<f32>(fresh.recv)?;
    check_eq("the copy of the result", ctx.here.read::<f32>(result)?, want)?;
    fresh.verify(ctx)
}

pub(super) fn a_graph_may_be_destroyed_while_it_runs<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let mut sum = warm_sum(ctx, ctx.lane())?;
    sum.refill(ctx, ctx.seed + 1)?;
    let graph = ctx.capture(ctx.here.stream, || Ok(sum.issue(ctx.lane())?))?;
    graph.launch(ctx.here.stream)?;
    drop(graph);
    sum.verify(ctx)
}

pub(super) fn misplaced_begins_and_ends_are_refused<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let stream = ctx.here.stream;
    let device = &ctx.here.device;
    // SAFETY: refused: nothing is being captured.
    let ended = unsafe { device.end_capture(stream) };
    refused(ErrorKind::InvalidUsage, "an end without a begin", ended)?;
    // SAFETY: refused: the default stream cannot be captured.
    let begun = unsafe { device.begin_capture(RawStream::DEFAULT) };
    refused(ErrorKind::InvalidUsage, "capturing the default stream", begun)?;
    let mut sum = warm_sum(ctx, ctx.lane())?;
    sum.refill(ctx, ctx.seed + 1)?;
    let graph = ctx.capture(stream, || {
        // SAFETY: refused: the stream is being captured already.
        let again = unsafe { device.begin_capture(stream) };
        refused(ErrorKind::InvalidUsage, "a second begin", again)?;
        Ok(sum.issue(ctx.lane())?)
    })?;
    graph.launch(stream)?;
    sum.verify(ctx)
}

/// Captures and replays a sum on the communicator of all ranks and one on another, on the same
/// stream or on a side stream that forks from it and joins it again.
fn two_communicators<B: Backend>(ctx: &Ctx<'_, B>, two_streams: bool) -> Outcome {
    let stream = ctx.here.stream;
    let side = if two_streams { ctx.here.new_stream()? } else { stream };
    let second = ctx.join_again()?;
    let mut one = warm_sum(ctx, ctx.lane())?;
    let mut two = warm_sum(ctx, ctx.lane_of(&second, stream))?;
    let on_side: &dyn Collectives = &second;
    let graph = ctx.capture(stream, || {
        if two_streams {
            ctx.here.order(stream, side)?;
        }
        one.issue(ctx.lane())?;
        two.issue(ctx.lane_of(on_side, side))?;
        if two_streams {
            ctx.here.order(side, stream)?;
        }
        Ok(())
    })?;
    for turn in 1..=3 {
        one.refill(ctx, ctx.seed + turn)?;
        two.refill(ctx, ctx.seed + 10 * turn)?;
        graph.launch(stream)?;
        one.verify(ctx)?;
        two.verify(ctx)?;
    }
    drop(graph);
    Ok(ctx.finalize(second)?)
}

/// An all-reduce that has run eagerly once.
fn warm_sum<B: Backend>(ctx: &Ctx<'_, B>, lane: Lane<'_>) -> Outcome<Prepared<f32>> {
    let sum = PLAN.prepare(ctx, lane, ctx.seed)?;
    sum.issue(lane).map_err(|error| Failure::from(error).during("eagerly"))?;
    sum.verify(ctx)?;
    Ok(sum)
}

const PLAN: Plan = Plan {
    collective: Collective::AllReduce,
    dtype: DType::F32,
    reduction: Some(Reduction::Sum),
    root: 0,
    count: 1025,
    in_place: false,
    offset: 0,
};
