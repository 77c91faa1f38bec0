//! From joining to the end of a communicator.

use std::{thread, time::Duration};

use collectives_core::{Backend, Collectives, DType, ErrorKind, Launch, RecvBuf, ReduceOp, Result};

use crate::{
    check::{Failure, Outcome, check, check_eq, fails},
    ctx::{Ctx, rank},
    lane::Lane,
    plan::{Collective, Plan},
    workspace::{Memory, PATIENCE},
};

pub(super) fn a_communicator_knows_itself<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let named = ctx.join(&ctx.shared_id()?, ctx.join_config().with_name("tensor parallel"))?;
    let info = named.info();
    check_eq("rank", info.rank, rank(ctx.rank))?;
    check_eq("size", info.size, ctx.size)?;
    check_eq("device", info.device, ctx.devices[ctx.rank])?;
    check_eq("name", info.name.as_deref(), Some("tensor parallel"))?;
    check_eq("library", &info.library, ctx.backend.info())?;
    check(info.id != ctx.comm.info().id, "an identity of its own")?;
    let memory = ctx.here.alloc(DType::F32, 1)?;
    let lane = ctx.lane_of(&named, ctx.here.stream);
    let error = fails(
        ErrorKind::InvalidArgument,
        "a wrong root",
        lane.broadcast(None, memory.recv(), rank(ctx.size)),
    )?;
    check_eq("communicator named by the error", error.communicator(), Some("tensor parallel"))?;
    check_eq("backend named by the error", error.backend(), Some(ctx.backend.info().backend))?;
    Ok(ctx.finalize(named)?)
}

pub(super) fn finalize_flushes_what_was_enqueued<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let comm = ctx.join_again()?;
    let lane = ctx.lane_of(&comm, ctx.here.stream);
    let sum = Plan::new(Collective::AllReduce, DType::F32, 4099)
        .prepare::<B, f32>(ctx, lane, ctx.seed)?;
    sum.issue(lane)?;
    ctx.finalize(comm)?;
    sum.verify(ctx)
}

pub(super) fn ranks_join_drop_and_join_again<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    for _ in 0..3 {
        let comm = ctx.join_again()?;
        works(ctx, &comm)?;
        drop(comm);
    }
    // Also one that was never used.
    drop(ctx.join_again()?);
    ctx.meet()?;
    works(ctx, ctx.comm)
}

pub(super) fn many_communicators_live_side_by_side<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let comms = (0..3).map(|_| ctx.join_again()).collect::<Outcome<Vec<_>>>()?;
    for _ in 0..2 {
        comms.iter().try_for_each(|comm| works(ctx, comm))?;
        works(ctx, ctx.comm)?;
    }
    comms.into_iter().try_for_each(|comm| Ok(ctx.finalize(comm)?))
}

pub(super) fn a_communicator_moves_between_threads<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let comm = ctx.join_again()?;
    let memory = ctx.here.upload(&[ctx.rank as i32])?;
    let (stream, address) = (ctx.here.stream, memory.ptr().expose_provenance());
    let (comm, outcome) = thread::spawn(move || {
        let pointer = std::ptr::with_exposed_provenance_mut(address);
        let buf = RecvBuf::new(pointer, 1, DType::I32);
        // SAFETY: one element of the case's memory, which lives until the stream has passed this;
        // every rank issues the same.
        let outcome =
            unsafe { comm.all_reduce(buf.as_send(), buf, ReduceOp::Sum, Launch::new(stream)) };
        (comm, outcome)
    })
    .join()
    .map_err(|payload| Failure::panic(&*payload))?;
    outcome?;
    let sum = (0..ctx.size as i32).sum();
    check_eq("received", ctx.here.read::<i32>(memory)?, vec![sum])?;
    works(ctx, &comm)?;
    Ok(ctx.finalize(comm)?)
}

pub(super) fn a_healthy_communicator_reports_no_error<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    works(ctx, ctx.comm)?;
    ctx.comm.poll_error()?;
    let handle = ctx.comm.abort_handle();
    check(!handle.is_aborted(), "not aborted")?;
    check(handle.failure().is_none(), "no failure")?;
    check(handle.is_same(&ctx.comm.abort_handle()), "the same handle again")
}

pub(super) fn after_abort_every_call_says_so<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let comm = ctx.join_again()?;
    works(ctx, &comm)?;
    // All ranks are done before the first of them aborts.
    ctx.meet()?;
    let handle = comm.abort_handle();
    handle.abort()?;
    handle.abort()?;
    check(handle.is_aborted(), "aborted")?;
    check_eq("failure", handle.failure().map(|error| error.kind()), Some(ErrorKind::Aborted))?;
    let memory = ctx.here.alloc(DType::F32, 2 * ctx.size)?;
    for (name, call) in calls(ctx.lane_of(&comm, ctx.here.stream), memory) {
        let error = fails(ErrorKind::Aborted, name, call)?;
        check(error.poisons_communicator(), "an aborted communicator is of no more use")?;
    }
    fails(ErrorKind::Aborted, "poll_error", comm.poll_error())?;
    ctx.here.check_untouched(memory)?;
    drop(comm);
    ctx.meet()?;
    works(ctx, ctx.comm)
}

pub(super) fn abort_from_another_thread_frees_a_waiting_rank<B: Backend>(
    ctx: &Ctx<'_, B>,
) -> Outcome {
    let comm = ctx.join_again()?;
    works(ctx, &comm)?;
    let handle = comm.abort_handle();
    if ctx.rank == 0 {
        let memory = ctx.here.upload(&[1.0_f32])?;
        let stream = ctx.here.new_stream()?;
        ctx.here.order(ctx.here.stream, stream)?;
        // No other rank calls this.
        ctx.lane_of(&comm, stream).all_reduce(memory.send(), memory.recv(), ReduceOp::Sum)?;
        thread::scope(|scope| {
            let aborter = scope.spawn(|| {
                // Only makes it likely that the wait has begun; either order must work.
                thread::sleep(Duration::from_millis(50));
                handle.abort()
            });
            let waited = ctx.here.synchronize_stream(stream, PATIENCE);
            aborter.join().map_err(|payload| Failure::panic(&*payload))??;
            // The stream goes on, with or without an error, but not by its deadline.
            match waited {
                Err(error) if error.kind() == ErrorKind::Timeout => Err(error.into()),
                Err(_) | Ok(()) => Ok::<(), Failure>(()),
            }
        })?;
        check_eq("failure", handle.failure().map(|error| error.kind()), Some(ErrorKind::Aborted))?;
    }
    ctx.meet()?;
    Box::new(comm).abort()?;
    ctx.meet()?;
    works(ctx, ctx.comm)
}

pub(super) fn abort_frees_an_enqueued_stream<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let comm = ctx.join_again()?;
    works(ctx, &comm)?;
    let stream = ctx.here.new_stream()?;
    if ctx.rank == 0 {
        let memory = ctx.here.upload(&[1.0_f32])?;
        ctx.here.order(ctx.here.stream, stream)?;
        ctx.lane_of(&comm, stream).all_reduce(memory.send(), memory.recv(), ReduceOp::Sum)?;
    }
    ctx.meet()?;
    Box::new(comm).abort()?;
    if let Err(error) = ctx.here.synchronize_stream(stream, PATIENCE) {
        check(error.kind() != ErrorKind::Timeout, "the stream goes on")?;
    }
    ctx.meet()?;
    works(ctx, ctx.comm)
}

pub(super) fn an_abort_handle_outlives_its_communicator<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let finalized = ctx.join_again()?;
    let handle = finalized.abort_handle();
    works(ctx, &finalized)?;
    ctx.finalize(finalized)?;
    check(handle.failure().is_none(), "no failure after finalize in good health")?;
    handle.abort()?;

    let aborted = ctx.join_again()?;
    let handle = aborted.abort_handle();
    ctx.meet()?;
    Box::new(aborted).abort()?;
    check(handle.is_aborted(), "aborted")?;
    check(handle.failure().is_some(), "a failure")?;
    Ok(handle.abort()?)
}

pub(super) fn an_aborted_communicator_leaves_others_alone<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let (doomed, healthy) = (ctx.join_again()?, ctx.join_again()?);
    works(ctx, &doomed)?;
    works(ctx, &healthy)?;
    ctx.meet()?;
    doomed.abort_handle().abort()?;
    ctx.meet()?;
    works(ctx, &healthy)?;
    works(ctx, ctx.comm)?;
    check(healthy.abort_handle().failure().is_none(), "no failure of the other")?;
    drop(doomed);
    Ok(ctx.finalize(healthy)?)
}

/// One call of every kind that every backend has.
fn calls(lane: Lane<'_>, memory: Memory) -> Vec<(&'static str, Result<()>)> {
    let size = lane.size();
    let (one, all) = (memory.part(0, 1), memory.part(size, size));
    let (root, peer) = (rank(lane.rank()), rank((lane.rank() + 1) % size));
    let mut calls = vec![
        ("all_reduce", lane.all_reduce(one.send(), one.recv(), ReduceOp::Sum)),
        ("reduce", lane.reduce(one.send(), Some(one.recv()), ReduceOp::Sum, root)),
        ("broadcast", lane.broadcast(Some(one.send()), one.recv(), root)),
        ("all_gather", lane.all_gather(one.send(), all.recv())),
        ("reduce_scatter", lane.reduce_scatter(all.send(), one.recv(), ReduceOp::Sum)),
    ];
    if size > 1 {
        calls.push(("send", lane.send(one.send(), peer)));
        calls.push(("recv", lane.recv(one.recv(), peer)));
    }
    calls
}

fn works<B: Backend>(ctx: &Ctx<'_, B>, comm: &dyn Collectives) -> Outcome {
    let lane = ctx.lane_of(comm, ctx.here.stream);
    Plan::new(Collective::AllReduce, DType::F32, 65).run_on(ctx, lane)
}
