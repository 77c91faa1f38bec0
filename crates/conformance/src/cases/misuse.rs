//! Calls that every backend must refuse, and after which its communicator must work.

use collectives_core::{Backend, DType, ErrorKind, RecvBuf, ReduceOp, Result, Scalar, SendBuf};

use crate::{
    check::{Failure, Outcome, check_eq, refused},
    ctx::{Ctx, rank},
    plan::{Collective, Plan},
    workspace::Memory,
};

pub(super) fn wrong_counts_are_refused<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let (lane, root, a, b) = (ctx.lane(), rank(ctx.rank), space(ctx)?, space(ctx)?);
    let (four, five) = (a.part(0, 4).send(), b.part(0, 5).recv());
    let (whole, less) = (4 * ctx.size, 4 * ctx.size - 1);
    let calls = [
        ("all_reduce", lane.all_reduce(four, five, ReduceOp::Sum)),
        ("reduce", lane.reduce(four, Some(five), ReduceOp::Sum, root)),
        ("broadcast", lane.broadcast(Some(four), five, root)),
        ("all_gather", lane.all_gather(four, b.part(0, less).recv())),
        ("gather", lane.gather(four, Some(b.part(0, less).recv()), root)),
        ("reduce_scatter", lane.reduce_scatter(a.part(0, less).send(), b.part(0, 4).recv(), SUM)),
        ("scatter", lane.scatter(Some(a.part(0, less).send()), b.part(0, 4).recv(), root)),
        ("all_to_all", lane.all_to_all(a.part(0, whole).send(), b.part(0, less).recv())),
    ];
    all_refused(ctx, calls, "holds", &[b])?;
    if ctx.size > 1 {
        let uneven = lane.all_to_all(a.part(0, less).send(), b.part(0, less).recv());
        all_refused(ctx, [("all_to_all", uneven)], "multiple", &[b])?;
    }
    Ok(())
}

pub(super) fn different_dtypes_are_refused<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let (lane, root, a, b) = (ctx.lane(), rank(ctx.rank), space(ctx)?, space(ctx)?);
    let four = a.part(0, 4).send();
    let whole = a.part(0, 4 * ctx.size).send();
    let as_f32 = |recv: Memory| RecvBuf { dtype: DType::F32, ..recv.recv() };
    let part = as_f32(b.part(0, 4));
    let all = as_f32(b.part(0, 4 * ctx.size));
    let calls = [
        ("all_reduce", lane.all_reduce(four, part, SUM)),
        ("reduce", lane.reduce(four, Some(part), SUM, root)),
        ("broadcast", lane.broadcast(Some(four), part, root)),
        ("all_gather", lane.all_gather(four, all)),
        ("gather", lane.gather(four, Some(all), root)),
        ("reduce_scatter", lane.reduce_scatter(whole, part, SUM)),
        ("scatter", lane.scatter(Some(whole), part, root)),
        ("all_to_all", lane.all_to_all(whole, all)),
    ];
    all_refused(ctx, calls, "f32", &[b])
}

pub(super) fn roots_and_peers_outside_are_refused<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let (lane, a, b) = (ctx.lane(), space(ctx)?, space(ctx)?);
    let (send, recv) = (a.part(0, 4).send(), b.part(0, 4).recv());
    for outside in [ctx.size, i32::MAX as usize, u32::MAX as usize] {
        let outside = rank(outside);
        let calls = [
            ("reduce", lane.reduce(send, Some(recv), SUM, outside)),
            ("broadcast", lane.broadcast(Some(send), recv, outside)),
            ("gather", lane.gather(send, Some(b.part(0, 4 * ctx.size).recv()), outside)),
            ("scatter", lane.scatter(Some(a.part(0, 4 * ctx.size).send()), recv, outside)),
            ("send", lane.send(send, outside)),
            ("recv", lane.recv(recv, outside)),
        ];
        all_refused(ctx, calls, "want 0 to", &[b])?;
    }
    Ok(())
}

pub(super) fn missing_buffers_on_root_are_refused<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let (lane, root, a, b) = (ctx.lane(), rank(ctx.rank), space(ctx)?, space(ctx)?);
    let (send, recv) = (a.part(0, 4).send(), b.part(0, 4).recv());
    let calls = [
        ("reduce", lane.reduce(send, None, SUM, root)),
        ("broadcast", lane.broadcast(None, recv, root)),
        ("gather", lane.gather(send, None, root)),
        ("scatter", lane.scatter(None, recv, root)),
    ];
    all_refused(ctx, calls, "is root", &[b])
}

pub(super) fn overlapping_buffers_are_refused<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let (lane, root, a) = (ctx.lane(), rank(ctx.rank), space(ctx)?);
    let (two, shifted) = (a.part(0, 2), a.part(1, 2));
    let whole = a.part(0, 2 * ctx.size);
    let calls = [
        ("all_reduce", lane.all_reduce(two.send(), shifted.recv(), SUM)),
        ("reduce", lane.reduce(two.send(), Some(shifted.recv()), SUM, root)),
        ("broadcast", lane.broadcast(Some(two.send()), shifted.recv(), root)),
        ("all_gather", lane.all_gather(shifted.send(), whole.recv())),
        ("gather", lane.gather(shifted.send(), Some(whole.recv()), root)),
        ("reduce_scatter", lane.reduce_scatter(whole.send(), shifted.recv(), SUM)),
        ("scatter", lane.scatter(Some(whole.send()), shifted.recv(), root)),
        ("all_to_all", lane.all_to_all(whole.send(), whole.recv())),
    ];
    all_refused(ctx, calls, "overlap", &[a])
}

pub(super) fn null_pointers_are_refused<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let b = space(ctx)?;
    every_operation_refuses(ctx, "null", b, |buf| SendBuf { ptr: std::ptr::null(), ..buf })
}

pub(super) fn misaligned_pointers_are_refused<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let b = space(ctx)?;
    let shift = |buf: SendBuf| SendBuf { ptr: buf.ptr.wrapping_byte_add(1), ..buf };
    every_operation_refuses(ctx, "aligned", b, shift)
}

pub(super) fn buffers_past_the_end_of_memory_are_refused<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let b = space(ctx)?;
    let endless = |buf: SendBuf| SendBuf { count: usize::MAX / 2, ..buf };
    every_operation_refuses(ctx, "past the end", b, endless)
}

pub(super) fn foreign_operators_are_refused<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let other = ctx.join_again()?;
    let lane_of_other = ctx.lane_of(&other, ctx.here.stream);
    let foreign = lane_of_other.pre_mul_sum(Scalar::host(2_i32))?;
    reductions_refuse(ctx, ReduceOp::PreMulSum(foreign))?;
    refused(
        ErrorKind::InvalidArgument,
        "destroying a foreign operator",
        ctx.lane().comm.destroy_pre_mul_sum(foreign),
    )?;
    lane_of_other.comm.destroy_pre_mul_sum(foreign)?;
    Ok(ctx.finalize(other)?)
}

pub(super) fn destroyed_operators_are_refused<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let lane = ctx.lane();
    let gone = lane.pre_mul_sum(Scalar::host(2_i32))?;
    lane.comm.destroy_pre_mul_sum(gone)?;
    // A newer operator must not be taken for it.
    let newer = lane.pre_mul_sum(Scalar::host(3_i32))?;
    reductions_refuse(ctx, ReduceOp::PreMulSum(gone))?;
    refused(
        ErrorKind::InvalidArgument,
        "destroying an operator twice",
        lane.comm.destroy_pre_mul_sum(gone),
    )?;
    Ok(lane.comm.destroy_pre_mul_sum(newer)?)
}

pub(super) fn operators_of_another_dtype_are_refused<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let lane = ctx.lane();
    let of_floats = lane.pre_mul_sum(Scalar::host(2.0_f32))?;
    reductions_refuse(ctx, ReduceOp::PreMulSum(of_floats))?;
    Ok(lane.comm.destroy_pre_mul_sum(of_floats)?)
}

pub(super) fn memory_of_another_device_is_refused<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let there = ctx.elsewhere((ctx.rank + 1) % ctx.size)?;
    let (own, foreign) = (space(ctx)?.part(0, 4), there.alloc(DType::I32, 4)?);
    there.synchronize()?;
    let lane = ctx.lane();
    let calls = [
        ("all_reduce", lane.all_reduce(foreign.send(), own.recv(), SUM)),
        ("all_reduce", lane.all_reduce(own.send(), foreign.recv(), SUM)),
        ("broadcast", lane.broadcast(None, foreign.recv(), rank((ctx.rank + 1) % ctx.size))),
        ("send", lane.send(foreign.send(), rank((ctx.rank + 1) % ctx.size))),
        ("recv", lane.recv(foreign.recv(), rank((ctx.rank + 1) % ctx.size))),
    ];
    all_refused(ctx, calls, "device", &[own])?;
    there.check_untouched(foreign)?;
    there.settle()
}

pub(super) fn a_stream_of_another_device_is_refused<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let there = ctx.elsewhere((ctx.rank + 1) % ctx.size)?;
    let (send, recv) = (space(ctx)?, space(ctx)?);
    let lane = ctx.lane_of(ctx.comm, there.stream);
    let calls = [
        ("all_reduce", lane.all_reduce(send.send(), recv.recv(), SUM)),
        ("send", lane.send(send.send(), rank((ctx.rank + 1) % ctx.size))),
    ];
    all_refused(ctx, calls, "device", &[recv])?;
    there.settle()
}

const SUM: ReduceOp = ReduceOp::Sum;

/// Room for the largest buffer of a table; not written to.
fn space<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome<Memory> {
    ctx.here.alloc(DType::I32, 4 * ctx.size + 5)
}

/// Every operation, once with a broken send and once with a broken receive buffer.
fn every_operation_refuses<B: Backend>(
    ctx: &Ctx<'_, B>,
    word: &str,
    b: Memory,
    broken: impl Fn(SendBuf) -> SendBuf,
) -> Outcome {
    let (lane, root, a) = (ctx.lane(), rank(ctx.rank), space(ctx)?);
    let peer = rank((ctx.rank + 1) % ctx.size);
    let whole = 4 * ctx.size;
    let broken_recv = |memory: Memory| {
        let SendBuf { ptr, count, dtype } = broken(memory.send());
        RecvBuf::new(ptr.cast_mut(), count, dtype)
    };
    let (send, recv) = (a.part(0, 4).send(), b.part(0, 4).recv());
    let (all_sent, all_received) = (a.part(0, whole).send(), b.part(0, whole).recv());
    let bad_send = broken(send);
    let bad_all_sent = broken(all_sent);
    let bad_recv = broken_recv(b.part(0, 4));
    let bad_all_received = broken_recv(b.part(0, whole));
    let calls = [
        ("all_reduce", lane.all_reduce(bad_send, recv, SUM)),
        ("all_reduce", lane.all_reduce(send, bad_recv, SUM)),
        ("reduce", lane.reduce(bad_send, Some(recv), SUM, root)),
        ("reduce", lane.reduce(send, Some(bad_recv), SUM, root)),
        ("broadcast", lane.broadcast(Some(bad_send), recv, root)),
        ("broadcast", lane.broadcast(Some(send), bad_recv, root)),
        ("all_gather", lane.all_gather(bad_send, all_received)),
        ("all_gather", lane.all_gather(send, bad_all_received)),
        ("gather", lane.gather(bad_send, Some(all_received), root)),
        ("gather", lane.gather(send, Some(bad_all_received), root)),
        ("reduce_scatter", lane.reduce_scatter(bad_all_sent, recv, SUM)),
        ("reduce_scatter", lane.reduce_scatter(all_sent, bad_recv, SUM)),
        ("scatter", lane.scatter(Some(bad_all_sent), recv, root)),
        ("scatter", lane.scatter(Some(all_sent), bad_recv, root)),
        ("all_to_all", lane.all_to_all(bad_all_sent, all_received)),
        ("all_to_all", lane.all_to_all(all_sent, bad_all_received)),
        ("send", lane.send(bad_send, peer)),
        ("recv", lane.recv(bad_recv, peer)),
    ];
    all_refused(ctx, calls, word, &[b])
}

/// Every operation that reduces.
fn reductions_refuse<B: Backend>(ctx: &Ctx<'_, B>, op: ReduceOp) -> Outcome {
    let (lane, root, a, b) = (ctx.lane(), rank(ctx.rank), space(ctx)?, space(ctx)?);
    let (send, recv) = (a.part(0, 4).send(), b.part(0, 4).recv());
    let calls = [
        ("all_reduce", lane.all_reduce(send, recv, op)),
        ("reduce", lane.reduce(send, Some(recv), op, root)),
        ("reduce_scatter", lane.reduce_scatter(a.part(0, 4 * ctx.size).send(), recv, op)),
    ];
    all_refused(ctx, calls, "reduce op", &[b])
}

/// Fails unless every call was refused in words that name it, this rank and `word`, nothing was
/// received, and the communicator works.
#[track_caller]
fn all_refused<B: Backend>(
    ctx: &Ctx<'_, B>,
    calls: impl IntoIterator<Item = (&'static str, Result<()>)>,
    word: &str,
    received: &[Memory],
) -> Outcome {
    for (name, call) in calls {
        let error = refused(ErrorKind::InvalidArgument, name, call)?;
        check_eq("operation of the error", error.operation(), Some(name))?;
        check_eq("rank of the error", error.rank(), Some((ctx.rank as u32, ctx.size)))?;
        check_eq("caller's bug", error.is_caller_bug(), true)?;
        if !error.to_string().contains(word) {
            return Err(Failure::new(format!("{name}: '{error}' does not say '{word}'")));
        }
    }
    for &memory in received {
        ctx.here.check_untouched(memory)?;
    }
    Plan::new(Collective::AllReduce, DType::F32, 33).run(ctx)
}
