//! Sends and receives.

use collectives_core::{Backend, DType, ErrorKind};

use crate::{
    check::{Outcome, check_eq, refused},
    ctx::{Ctx, rank},
    inputs::inputs,
    number::{BASIC, Number, with_element},
    plan::compare,
};

pub(super) fn every_dtype_arrives<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    first_to_last(ctx, &BASIC, &[1, 7, 1025])
}

pub(super) fn small_floats_arrive<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    first_to_last(ctx, &[DType::Bf16, DType::F8E4M3, DType::F8E5M2], &[1, 7, 1025])
}

pub(super) fn large_messages_arrive<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    first_to_last(ctx, &[DType::U8, DType::F64], &[1 << 20])
}

pub(super) fn messages_match_in_the_order_of_issue<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let lane = ctx.lane();
    for grouped in [false, true] {
        let numbers: Vec<i32> = (0..5).collect();
        match ctx.rank {
            0 => {
                let sent = ctx.here.upload(&numbers)?;
                let issue =
                    || (0..5).try_for_each(|at| lane.send(sent.part(at, 1).send(), rank(1)));
                if grouped { ctx.group(issue)? } else { issue()? }
            }
            1 => {
                let got = ctx.here.alloc(DType::I32, 5)?;
                let issue = || (0..5).try_for_each(|at| lane.recv(got.part(at, 1).recv(), rank(0)));
                if grouped {
                    ctx.group(issue)?
                } else {
                    issue()?
                }
                check_eq("received", ctx.here.read::<i32>(got)?, numbers)?;
            }
            _ => {}
        }
    }
    Ok(())
}

pub(super) fn messages_without_elements_match_too<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let lane = ctx.lane();
    let memory = ctx.here.upload(&[ctx.rank as i32 + 10])?;
    let empty = memory.part(0, 0);
    match ctx.rank {
        0 => {
            lane.send(empty.send(), rank(1))?;
            lane.send(memory.send(), rank(1))?;
        }
        1 => {
            lane.recv(empty.recv(), rank(0))?;
            lane.recv(memory.recv(), rank(0))?;
            check_eq("received", ctx.here.read::<i32>(memory)?, vec![10])?;
        }
        _ => {}
    }
    Ok(())
}

pub(super) fn every_pair_exchanges_in_one_group<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let lane = ctx.lane();
    let number = |from: usize, to: usize| (100 * from + to) as i64;
    let sent: Vec<i64> = (0..ctx.size).map(|to| number(ctx.rank, to)).collect();
    let sent = ctx.here.upload(&sent)?;
    let got = ctx.here.alloc(DType::I64, ctx.size)?;
    ctx.group(|| {
        for peer in 0..ctx.size {
            lane.send(sent.part(peer, 1).send(), rank(peer))?;
            lane.recv(got.part(peer, 1).recv(), rank(peer))?;
        }
        Ok(())
    })?;
    let want = (0..ctx.size).map(|from| number(from, ctx.rank)).collect();
    check_eq("received", ctx.here.read::<i64>(got)?, want)
}

pub(super) fn a_message_to_oneself_arrives<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let lane = ctx.lane();
    let sent = ctx.here.upload(&[3.5_f32, -1.0])?;
    let got = ctx.here.alloc(DType::F32, 2)?;
    ctx.group(|| {
        lane.recv(got.recv(), rank(ctx.rank))?;
        lane.send(sent.send(), rank(ctx.rank))
    })?;
    check_eq("received", ctx.here.read::<f32>(got)?, vec![3.5, -1.0])
}

pub(super) fn a_message_to_oneself_outside_a_group_is_refused<B: Backend>(
    ctx: &Ctx<'_, B>,
) -> Outcome {
    let memory = ctx.here.alloc(DType::F32, 2)?;
    let (lane, own) = (ctx.lane(), rank(ctx.rank));
    refused(ErrorKind::InvalidUsage, "send to self", lane.send(memory.send(), own))?;
    refused(ErrorKind::InvalidUsage, "receive from self", lane.recv(memory.recv(), own))?;
    a_message_to_oneself_arrives(ctx)
}

pub(super) fn a_message_to_oneself_without_its_receive_is_refused<B: Backend>(
    ctx: &Ctx<'_, B>,
) -> Outcome {
    let lane = ctx.lane();
    let memory = ctx.here.alloc(DType::F32, 2)?;
    let outcome = ctx.group(|| lane.send(memory.send(), rank(ctx.rank)));
    refused(ErrorKind::InvalidUsage, "a group with half a message", outcome)?;
    a_message_to_oneself_arrives(ctx)
}

/// Bare calls: rank 0 sends, the last rank receives.
fn first_to_last<B: Backend>(ctx: &Ctx<'_, B>, dtypes: &[DType], counts: &[usize]) -> Outcome {
    fn one<B: Backend, T: Number>(ctx: &Ctx<'_, B>, count: usize) -> Outcome {
        let (lane, last) = (ctx.lane(), ctx.size - 1);
        let values = inputs::<T>(None, ctx.seed, 0, ctx.size, count);
        if ctx.rank == 0 {
            lane.send(ctx.here.upload(&values)?.send(), rank(last))?;
        } else if ctx.rank == last {
            let got = ctx.here.alloc(T::DTYPE, count)?;
            lane.recv(got.recv(), rank(0))?;
            compare("received", &ctx.here.read::<T>(got)?, &values, 0)?;
        }
        Ok(())
    }
    for &dtype in dtypes {
        for &count in counts {
            with_element!(dtype, T => one::<B, T>(ctx, count))
                .map_err(|failure| failure.during(format!("{count} × {dtype}")))?;
        }
    }
    Ok(())
}
