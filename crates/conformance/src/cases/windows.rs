//! Memory of every rank that is registered as one.

use collectives_core::{Backend, DType, ErrorKind, RawWindow, ReduceOp, WindowFlags};

use crate::{
    check::{Outcome, check, check_eq, fails},
    ctx::Ctx,
    inputs::{Reduction, inputs},
    lane::Lane,
    oracle,
    plan::{Collective, Plan, compare},
    workspace::Memory,
};

pub(super) fn a_window_holds_what_collectives_move<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    with_window(ctx, COUNT, |memory| {
        for _ in 0..3 {
            sums(ctx, memory, memory)?;
        }
        Ok(())
    })
}

pub(super) fn parts_of_a_window_work_at_equal_offsets<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    with_window(ctx, 3 * COUNT, |memory| {
        sums(ctx, memory.part(0, COUNT), memory.part(2 * COUNT, COUNT))?;
        sums(ctx, memory.part(COUNT, COUNT), memory.part(COUNT, COUNT))
    })
}

pub(super) fn graphs_reach_into_windows<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    with_window(ctx, COUNT, |memory| {
        sums(ctx, memory, memory)?;
        let stream = ctx.here.new_stream()?;
        let lane = ctx.lane_of(ctx.comm, stream);
        let graph = ctx.capture(stream, || {
            Ok(lane.all_reduce(memory.send(), memory.recv(), ReduceOp::Sum)?)
        })?;
        for _ in 0..2 {
            let (all, want) = numbers(ctx);
            ctx.here.write(memory, &all[ctx.rank])?;
            graph.launch(ctx.here.stream)?;
            compare("received", &ctx.here.read::<f32>(memory)?, &want, 0)?;
        }
        Ok(())
    })
}

pub(super) fn several_windows_live_side_by_side<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    with_window(ctx, COUNT, |one| {
        with_window(ctx, 2 * COUNT, |other| {
            sums(ctx, one, other.part(COUNT, COUNT))?;
            sums(ctx, other.part(0, COUNT), one)
        })?;
        sums(ctx, one, one)
    })
}

pub(super) fn a_window_knows_its_memory<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let (base, bytes) = library_memory(ctx, COUNT)?.allocation();
    let Some(window) = register(ctx, ctx.lane(), (base, bytes))? else { return Ok(()) };
    check_eq("the window's start", ctx.lane().window_ptr(window)?.addr(), base.addr())?;
    ctx.lane().window_deregister(window)?;
    Ok(())
}

pub(super) fn what_is_left_is_gone_with_its_communicator<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let memory = library_memory(ctx, COUNT)?;
    let comm = ctx.join_again()?;
    let lane = ctx.lane_of(&comm, ctx.here.stream);
    register(ctx, lane, memory.allocation())?;
    lane.all_reduce(memory.send(), memory.recv(), ReduceOp::Sum)?;
    ctx.here.synchronize()?;
    ctx.meet()?;
    ctx.finalize(comm)?;
    ctx.meet()?;
    // Memory stays what it was.
    sums(ctx, memory, memory)
}

pub(super) fn nothing_cannot_be_registered<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let (base, bytes) = ctx.here.alloc(DType::F32, COUNT)?.allocation();
    for (ptr, bytes) in [(std::ptr::null_mut(), bytes), (base, 0)] {
        let call = ctx.lane().window_register(ptr, bytes, WindowFlags::SYMMETRIC);
        let error = fails(ErrorKind::InvalidArgument, "window_register", call)?;
        check(!error.poisons_communicator(), "nothing happened")?;
    }
    Plan::new(Collective::AllReduce, DType::F32, 5).run(ctx)
}

pub(super) fn inside_a_group_it_is_refused<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let memory = library_memory(ctx, COUNT)?;
    let (base, bytes) = memory.allocation();
    let body = || ctx.lane().window_register(base, bytes, WindowFlags::SYMMETRIC);
    let error = fails(ErrorKind::InvalidUsage, "group", ctx.group(body))?;
    check(!error.poisons_communicator(), "nothing happened")?;
    sums(ctx, memory, memory)
}

/// Memory that is a window while `body` runs. On systems without windows, it is but memory, and the
/// case counts as skipped.
fn with_window<B: Backend>(
    ctx: &Ctx<'_, B>,
    count: usize,
    body: impl FnOnce(Memory) -> Outcome,
) -> Outcome {
    let memory = library_memory(ctx, count)?;
    let window = register(ctx, ctx.lane(), memory.allocation())?;
    body(memory)?;
    ctx.here.synchronize()?;
    ctx.meet()?;
    if let Some(window) = window {
        ctx.lane().window_deregister(window)?;
    }
    // Others may still have it open.
    ctx.meet()?;
    sums(ctx, memory.part(0, COUNT), memory.part(0, COUNT))?;
    ctx.lane().free(memory)
}

/// A window; or nothing on all ranks, and the case counts as skipped.
pub(super) fn register<B: Backend>(
    ctx: &Ctx<'_, B>,
    lane: Lane<'_>,
    (base, bytes): (*mut std::ffi::c_void, usize),
) -> Outcome<Option<RawWindow>> {
    let window = match lane.window_register(base, bytes, WindowFlags::SYMMETRIC) {
        Ok(window) => Some(window),
        Err(error) if error.kind() == ErrorKind::Unsupported => None,
        Err(error) => return Err(error.into()),
    };
    let all = ctx.exchange(&[u8::from(window.is_some())])?;
    check(all.windows(2).all(|pair| pair[0] == pair[1]), "all ranks have a window, or none has")?;
    if window.is_none() {
        ctx.skip("the system has no windows");
    }
    Ok(window)
}

fn library_memory<B: Backend>(ctx: &Ctx<'_, B>, count: usize) -> Outcome<Memory> {
    let base = ctx.lane().comm.mem_alloc(Memory::bytes_for(DType::F32, count))?;
    ctx.here.adopt(base, DType::F32, count)
}

/// Every rank's numbers, and their sums.
fn numbers<B: Backend>(ctx: &Ctx<'_, B>) -> (Vec<Vec<f32>>, Vec<f32>) {
    let of = |rank| inputs::<f32>(Some(Reduction::Sum), ctx.seed, rank, ctx.size, COUNT);
    let all: Vec<Vec<f32>> = (0..ctx.size).map(of).collect();
    let sums = oracle::reduce(&all, Reduction::Sum);
    (all, sums)
}

fn sums<B: Backend>(ctx: &Ctx<'_, B>, send: Memory, recv: Memory) -> Outcome {
    let (all, want) = numbers(ctx);
    ctx.here.write(send, &all[ctx.rank])?;
    ctx.lane().all_reduce(send.send(), recv.recv(), ReduceOp::Sum)?;
    compare("received", &ctx.here.read::<f32>(recv)?, &want, 0)
}

const COUNT: usize = 10_007;
