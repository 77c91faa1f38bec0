//! Failures that somebody else has found.

use collectives_core::{Backend, Collectives, DType, Error, ErrorKind, ReduceOp, ShrinkConfig};

use crate::{
    check::{Outcome, check, check_eq, fails},
    ctx::{Ctx, rank},
    plan::{Collective, Plan},
};

pub(super) fn the_first_reason_is_what_calls_are_told_after_the_abort<B: Backend>(
    ctx: &Ctx<'_, B>,
) -> Outcome {
    let comm = ctx.join_again()?;
    works(ctx, &comm)?;
    let handle = comm.abort_handle();
    handle.condemn(reason());
    handle.condemn(Error::new(ErrorKind::Remote, "the second"));
    check(!handle.is_aborted(), "not aborted")?;
    tells(handle.failure())?;
    // It is not ended.
    works(ctx, &comm)?;
    // All ranks are done before the first of them aborts.
    ctx.meet()?;
    handle.abort()?;
    check(handle.is_aborted(), "aborted")?;
    tells(handle.failure())?;
    let memory = ctx.here.alloc(DType::F32, 1)?;
    let lane = ctx.lane_of(&comm, ctx.here.stream);
    tells(lane.all_reduce(memory.send(), memory.recv(), ReduceOp::Sum).err())?;
    tells(lane.broadcast(Some(memory.send()), memory.recv(), rank(0)).err())?;
    tells(comm.poll_error().err())?;
    ctx.here.check_untouched(memory)?;
    drop(comm);
    tells(handle.failure())?;
    ctx.meet()?;
    works(ctx, ctx.comm)?;
    check(ctx.comm.abort_handle().failure().is_none(), "no failure of another communicator")
}

pub(super) fn a_condemned_communicator_can_be_shrunk<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let parent = ctx.join_again()?;
    works(ctx, &parent)?;
    parent.abort_handle().condemn(reason());
    ctx.meet()?;
    ctx.revoke(&parent)?;
    if ctx.rank + 1 < ctx.size {
        let child = ctx.shrink(&parent, ShrinkConfig::new([rank(ctx.size - 1)]))?;
        check(child.abort_handle().failure().is_none(), "no failure of the child")?;
        works(ctx, &child)?;
        ctx.finalize(child)?;
    }
    drop(parent);
    ctx.meet()?;
    works(ctx, ctx.comm)
}

pub(super) fn one_that_has_failed_keeps_its_failure_until_it_is_aborted<B: Backend>(
    ctx: &Ctx<'_, B>,
) -> Outcome {
    let comm = ctx.join_again()?;
    works(ctx, &comm)?;
    // All ranks are done before the first of them revokes.
    ctx.meet()?;
    ctx.revoke(&comm)?;
    let handle = comm.abort_handle();
    handle.condemn(reason());
    check_eq("failure", handle.failure().map(|error| error.kind()), Some(ErrorKind::Revoked))?;
    fails(ErrorKind::Revoked, "poll_error", comm.poll_error())?;
    ctx.meet()?;
    handle.abort()?;
    tells(handle.failure())?;
    tells(comm.poll_error().err())?;
    drop(comm);
    ctx.meet()?;
    works(ctx, ctx.comm)
}

fn reason() -> Error {
    Error::new(ErrorKind::Timeout, TEXT).with_operation("heartbeat")
}

/// Whether the error is the one that the communicator was condemned for.
fn tells(error: Option<Error>) -> Outcome {
    let told = error.as_ref().map(|error| (error.kind(), error.message()));
    check_eq("reason", told, Some((ErrorKind::Timeout, TEXT)))?;
    let poisons = error.is_some_and(|error| error.poisons_communicator());
    check(poisons, "a condemned communicator's results are of no use")
}

fn works<B: Backend>(ctx: &Ctx<'_, B>, comm: &dyn Collectives) -> Outcome {
    let lane = ctx.lane_of(comm, ctx.here.stream);
    Plan::new(Collective::AllReduce, DType::F32, 65).run_on(ctx, lane)
}

const TEXT: &str = "rank 0 has no pulse";
