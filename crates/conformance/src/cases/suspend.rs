//! Giving memory back for a time.

use collectives_core::{Backend, Collectives, DType, ErrorKind, ReduceOp};

use crate::{
    check::{Outcome, check, check_eq, fails},
    ctx::Ctx,
    plan::{Collective, Plan},
};

pub(super) fn a_suspended_communicator_resumes_and_works<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let comm = ctx.join_again()?;
    let sum = Plan::new(Collective::AllReduce, DType::F32, 4099);
    for _ in 0..2 {
        sum.run_on(ctx, ctx.lane_of(&comm, ctx.here.stream))?;
        quiet(ctx)?;
        comm.suspend()?;
        comm.poll_error()?;
        check(comm.abort_handle().failure().is_none(), "it is no failure")?;
        ctx.meet()?;
        comm.resume()?;
    }
    sum.run_on(ctx, ctx.lane_of(&comm, ctx.here.stream))?;
    Ok(ctx.finalize(comm)?)
}

pub(super) fn operations_meanwhile_are_refused<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let comm = ctx.join_again()?;
    quiet(ctx)?;
    comm.suspend()?;
    let memory = ctx.here.alloc(DType::F32, 4)?;
    let lane = ctx.lane_of(&comm, ctx.here.stream);
    let call = lane.all_reduce(memory.send(), memory.recv(), ReduceOp::Sum);
    let error = fails(ErrorKind::InvalidUsage, "all_reduce", call)?;
    check(error.message().contains("suspended"), format!("{error} says why"))?;
    check(!error.poisons_communicator(), "it can be resumed")?;
    fails(ErrorKind::InvalidUsage, "suspend", comm.suspend())?;
    ctx.here.check_untouched(memory)?;
    ctx.meet()?;
    comm.resume()?;
    fails(ErrorKind::InvalidUsage, "resume", comm.resume())?;
    Plan::new(Collective::AllReduce, DType::F32, 5)
        .run_on(ctx, ctx.lane_of(&comm, ctx.here.stream))?;
    Ok(ctx.finalize(comm)?)
}

pub(super) fn inside_a_group_it_is_refused<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    quiet(ctx)?;
    let error = fails(ErrorKind::InvalidUsage, "group", ctx.group(|| ctx.comm.suspend()))?;
    check(!error.poisons_communicator(), "nothing happened")?;
    Plan::new(Collective::AllReduce, DType::F32, 5).run(ctx)
}

pub(super) fn memory_use_adds_up<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    Plan::new(Collective::AllReduce, DType::F32, 5).run(ctx)?;
    let memory = ctx.comm.memory_use()?;
    check_eq("total", memory.total, memory.suspendable + memory.persistent)?;
    check(!memory.is_suspended, "not suspended")
}

/// Nothing is in flight on any rank.
fn quiet<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    ctx.here.synchronize()?;
    ctx.meet()
}
