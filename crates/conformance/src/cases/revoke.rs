//! Giving a communicator up without ending it.

use collectives_core::{
    Backend, Collectives, DType, ErrorKind, GrowConfig, ReduceOp, ShrinkConfig, SplitConfig,
};

use crate::{
    cases::shrink::{network_failed, unless_the_network_failed},
    check::{Outcome, check, check_eq, fails, refused},
    ctx::{Ctx, rank},
    plan::{Collective, Plan},
    workspace::PATIENCE,
};

pub(super) fn afterwards_every_call_says_so<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let comm = ctx.join_again()?;
    works(ctx, &comm)?;
    // All ranks are done before the first of them revokes.
    ctx.meet()?;
    let handle = comm.abort_handle();
    ctx.revoke(&comm)?;
    ctx.revoke(&comm)?;
    check(!handle.is_aborted(), "not aborted")?;
    check_eq("failure", handle.failure().map(|error| error.kind()), Some(ErrorKind::Revoked))?;
    let memory = ctx.here.alloc(DType::F32, 1 + ctx.size)?;
    let (one, all) = (memory.part(0, 1), memory.part(1, ctx.size));
    let lane = ctx.lane_of(&comm, ctx.here.stream);
    for (name, call) in [
        ("all_reduce", lane.all_reduce(one.send(), one.recv(), ReduceOp::Sum)),
        ("broadcast", lane.broadcast(Some(one.send()), one.recv(), rank(ctx.rank))),
        ("all_gather", lane.all_gather(one.send(), all.recv())),
        ("send", lane.send(one.send(), rank((ctx.rank + 1) % ctx.size))),
        ("recv", lane.recv(one.recv(), rank((ctx.rank + 1) % ctx.size))),
    ] {
        let error = fails(ErrorKind::Revoked, name, call)?;
        check(error.poisons_communicator(), "a revoked communicator moves no data any more")?;
        check(!error.is_caller_bug(), "another rank may have revoked it")?;
    }
    fails(ErrorKind::Revoked, "poll_error", comm.poll_error())?;
    if comm.capabilities().split.is_available() {
        fails(ErrorKind::Revoked, "split", ctx.split(&comm, SplitConfig::new(0)))?;
    }
    if comm.capabilities().grow.is_available() {
        fails(ErrorKind::Revoked, "grow_id", comm.grow_id())?;
        fails(ErrorKind::Revoked, "grow", ctx.grow(&comm, GrowConfig::new(ctx.size + 1)))?;
    }
    ctx.here.check_untouched(memory)?;
    drop(comm);
    ctx.meet()?;
    works(ctx, ctx.comm)
}

pub(super) fn pending_operations_end<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let comm = ctx.join_again()?;
    works(ctx, &comm)?;
    let stream = ctx.here.new_stream()?;
    if ctx.rank == 0 {
        let memory = ctx.here.upload(&[1.0_f32])?;
        ctx.here.order(ctx.here.stream, stream)?;
        // No other rank calls this.
        ctx.lane_of(&comm, stream).all_reduce(memory.send(), memory.recv(), ReduceOp::Sum)?;
    }
    ctx.meet()?;
    ctx.revoke(&comm)?;
    // With an error or without, but not by its deadline.
    if let Err(error) = ctx.here.synchronize_stream(stream, PATIENCE) {
        check(error.kind() != ErrorKind::Timeout, "the stream goes on")?;
    }
    drop(comm);
    ctx.meet()?;
    works(ctx, ctx.comm)
}

pub(super) fn a_revoked_communicator_can_be_shrunk<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let parent = ctx.join_again()?;
    works(ctx, &parent)?;
    ctx.meet()?;
    ctx.revoke(&parent)?;
    if ctx.rank + 1 < ctx.size {
        let child = ctx.shrink(&parent, without_last(ctx))?;
        check_eq("rank", child.info().rank, rank(ctx.rank))?;
        check_eq("size", child.info().size, ctx.size - 1)?;
        check(child.abort_handle().failure().is_none(), "no failure of the child")?;
        works(ctx, &child)?;
        ctx.finalize(child)?;
    }
    ctx.finalize(parent)?;
    ctx.meet()?;
    works(ctx, ctx.comm)
}

/// The recipe: a rank is gone, the others wait for it in vain, revoke, shrink and go on.
pub(super) fn a_lost_rank_is_revoked_and_shrunk_away<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let parent = ctx.join_again()?;
    works(ctx, &parent)?;
    ctx.meet()?;
    if ctx.rank + 1 == ctx.size {
        Box::new(parent).abort()?;
        ctx.meet()?;
        network_failed(ctx, false)?;
        return works(ctx, ctx.comm);
    }
    let stream = ctx.here.new_stream()?;
    let memory = ctx.here.upload(&[1.0_f32])?;
    ctx.here.order(ctx.here.stream, stream)?;
    let lane = ctx.lane_of(&parent, stream);
    // That the other rank is lost may be known by now, or not.
    let _known = lane.all_reduce(memory.send(), memory.recv(), ReduceOp::Sum);
    ctx.meet()?;
    ctx.revoke(&parent)?;
    if let Err(error) = ctx.here.synchronize_stream(stream, PATIENCE) {
        check(error.kind() != ErrorKind::Timeout, "the stream goes on")?;
    }
    let child = ctx.shrink(&parent, without_last(ctx));
    let Some(child) = unless_the_network_failed(child)? else {
        drop(parent);
        network_failed(ctx, true)?;
        return works(ctx, ctx.comm);
    };
    works(ctx, &child)?;
    drop(parent);
    works(ctx, &child)?;
    ctx.finalize(child)?;
    network_failed(ctx, false)?;
    works(ctx, ctx.comm)
}

pub(super) fn finalize_abort_and_drop_work_afterwards<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let ends: [fn(B::Comm) -> collectives_core::Result<()>; 4] = [
        |comm| Box::new(comm).finalize(),
        |comm| Box::new(comm).abort(),
        |comm| comm.abort_handle().abort(),
        |comm| {
            drop(comm);
            Ok(())
        },
    ];
    for end in ends {
        let comm = ctx.join_again()?;
        works(ctx, &comm)?;
        ctx.meet()?;
        ctx.revoke(&comm)?;
        // No rank ends it before all have revoked it.
        ctx.meet()?;
        end(comm)?;
        ctx.meet()?;
    }
    works(ctx, ctx.comm)
}

pub(super) fn other_communicators_are_left_alone<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let (doomed, healthy) = (ctx.join_again()?, ctx.join_again()?);
    works(ctx, &doomed)?;
    works(ctx, &healthy)?;
    ctx.meet()?;
    ctx.revoke(&doomed)?;
    ctx.meet()?;
    works(ctx, &healthy)?;
    works(ctx, ctx.comm)?;
    check(healthy.abort_handle().failure().is_none(), "no failure of the other")?;
    drop(doomed);
    ctx.meet()?;
    Ok(ctx.finalize(healthy)?)
}

pub(super) fn inside_a_group_it_is_refused<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let outcome = ctx.group(|| ctx.revoke(ctx.comm));
    refused(ErrorKind::InvalidUsage, "revoke in a group", outcome)?;
    works(ctx, ctx.comm)
}

fn without_last<B: Backend>(ctx: &Ctx<'_, B>) -> ShrinkConfig {
    ShrinkConfig::new([rank(ctx.size - 1)])
}

fn works<B: Backend>(ctx: &Ctx<'_, B>, comm: &dyn Collectives) -> Outcome {
    let lane = ctx.lane_of(comm, ctx.here.stream);
    Plan::new(Collective::AllReduce, DType::F32, 257).run_on(ctx, lane)
}
