//! Memory that the library allocates, and registration.

use collectives_core::{Backend, DType, RawRegistration, ReduceOp};

use crate::{
    check::Outcome,
    ctx::Ctx,
    inputs::{Reduction, inputs},
    oracle,
    plan::compare,
    workspace::Memory,
};

pub(super) fn memory_of_the_library_works_unregistered<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let (send, recv) = (library_memory(ctx)?, library_memory(ctx)?);
    sums(ctx, send, recv)?;
    ctx.lane().free(send)?;
    ctx.lane().free(recv)
}

pub(super) fn registered_memory_works<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let lane = ctx.lane();
    let (send, recv) = (library_memory(ctx)?, library_memory(ctx)?);
    let registrations = [register(ctx, send)?, register(ctx, recv)?];
    for _ in 0..3 {
        sums(ctx, send, recv)?;
    }
    registrations.into_iter().try_for_each(|registration| lane.deregister(registration))?;
    // Memory stays what it was.
    sums(ctx, send, recv)?;
    lane.free(send)?;
    lane.free(recv)
}

pub(super) fn memory_of_the_device_can_be_registered<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let (send, recv) = (ctx.here.alloc(DType::F32, COUNT)?, ctx.here.alloc(DType::F32, COUNT)?);
    let registrations = [register(ctx, send)?, register(ctx, recv)?];
    sums(ctx, send, recv)?;
    Ok(registrations
        .into_iter()
        .try_for_each(|registration| ctx.lane().deregister(registration))?)
}

fn library_memory<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome<Memory> {
    let base = ctx.lane().comm.mem_alloc(Memory::bytes_for(DType::F32, COUNT))?;
    ctx.here.adopt(base, DType::F32, COUNT)
}

fn register<B: Backend>(ctx: &Ctx<'_, B>, memory: Memory) -> Outcome<RawRegistration> {
    let (base, bytes) = memory.allocation();
    Ok(ctx.lane().register(base, bytes)?)
}

fn sums<B: Backend>(ctx: &Ctx<'_, B>, send: Memory, recv: Memory) -> Outcome {
    let of = |rank| inputs::<f32>(Some(Reduction::Sum), ctx.seed, rank, ctx.size, COUNT);
    let all: Vec<Vec<f32>> = (0..ctx.size).map(of).collect();
    ctx.here.write(send, &all[ctx.rank])?;
    ctx.here.fill(recv, 0)?;
    ctx.lane().all_reduce(send.send(), recv.recv(), ReduceOp::Sum)?;
    let want = oracle::reduce(&all, Reduction::Sum);
    compare("received", &ctx.here.read::<f32>(recv)?, &want, 0)
}

const COUNT: usize = 100_003;
