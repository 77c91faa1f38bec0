//! Composite operations: parts of different lengths, exchange, barrier, warm-up.

use collectives_core::{Backend, DType, ErrorKind, PeerOp, ReduceOp};

use crate::{
    check::{Outcome, check_eq, refused},
    ctx::{Ctx, rank},
    inputs::{Reduction, inputs},
    oracle,
    plan::{Collective, Plan},
};

pub(super) fn all_gather_v_matches_oracle<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    for counts in uneven(ctx.size) {
        let all = parts(ctx, &counts);
        let send = ctx.here.upload(&all[ctx.rank])?;
        let recv = ctx.here.alloc(DType::I32, counts.iter().sum())?;
        ctx.lane().all_gather_v(send.send(), recv.recv(), &counts)?;
        check_eq("received", ctx.here.read::<i32>(recv)?, all.concat())?;
    }
    Ok(())
}

pub(super) fn all_gather_v_works_in_place<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    for counts in uneven(ctx.size) {
        let all = parts(ctx, &counts);
        let recv = ctx.here.alloc(DType::I32, counts.iter().sum())?;
        let own = recv.part(start(&counts, ctx.rank), counts[ctx.rank]);
        ctx.here.write(own, &all[ctx.rank])?;
        ctx.lane().all_gather_v(own.send(), recv.recv(), &counts)?;
        check_eq("received", ctx.here.read::<i32>(recv)?, all.concat())?;
    }
    Ok(())
}

pub(super) fn reduce_scatter_v_matches_oracle<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    for counts in uneven(ctx.size) {
        let total = counts.iter().sum();
        let of = |rank| inputs::<f32>(Some(Reduction::Sum), ctx.seed, rank, ctx.size, total);
        let all: Vec<Vec<f32>> = (0..ctx.size).map(of).collect();
        let (own, count) = (start(&counts, ctx.rank), counts[ctx.rank]);
        let want = oracle::reduce(&all, Reduction::Sum)[own..own + count].to_vec();
        let send = ctx.here.upload(&all[ctx.rank])?;
        let recv = ctx.here.alloc(DType::F32, count)?;
        let lane = ctx.lane();
        lane.reduce_scatter_v(send.send(), recv.recv(), &counts, ReduceOp::Sum)?;
        check_eq("received", ctx.here.read::<f32>(recv)?, want.clone())?;
        // In place: the part of `send` that this rank receives.
        let part = send.part(own, count);
        lane.reduce_scatter_v(send.send(), part.recv(), &counts, ReduceOp::Sum)?;
        check_eq("received in place", ctx.here.read::<f32>(part)?, want)?;
    }
    Ok(())
}

pub(super) fn all_to_all_v_matches_oracle<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    // A third of the pairs exchange nothing.
    let count = |from: usize, to: usize| match (from + to) % 3 {
        0 => 0,
        _ => SIZES[(from * ctx.size + to) % SIZES.len()],
    };
    let message = |from: usize, to: usize| -> Vec<i32> {
        (0..count(from, to)).map(|at| (10_000 * from + 1000 * to + at) as i32).collect()
    };
    let sent: Vec<usize> = (0..ctx.size).map(|to| count(ctx.rank, to)).collect();
    let received: Vec<usize> = (0..ctx.size).map(|from| count(from, ctx.rank)).collect();
    let out: Vec<i32> = (0..ctx.size).flat_map(|to| message(ctx.rank, to)).collect();
    let send = ctx.here.upload(&out)?;
    let recv = ctx.here.alloc(DType::I32, received.iter().sum())?;
    ctx.lane().all_to_all_v(send.send(), &sent, recv.recv(), &received)?;
    let want = (0..ctx.size).flat_map(|from| message(from, ctx.rank)).collect();
    check_eq("received", ctx.here.read::<i32>(recv)?, want)
}

pub(super) fn gather_v_matches_oracle<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    for (turn, counts) in uneven(ctx.size).into_iter().enumerate() {
        for in_place in [false, true] {
            let root = (turn + 1) % ctx.size;
            let on_root = ctx.rank == root;
            let all = parts(ctx, &counts);
            let recv = ctx.here.alloc(DType::I32, counts.iter().sum())?;
            let own = recv.part(start(&counts, ctx.rank), counts[ctx.rank]);
            let send = if in_place && on_root { own } else { ctx.here.upload(&all[ctx.rank])? };
            ctx.here.write(send, &all[ctx.rank])?;
            let target = on_root.then(|| recv.recv());
            ctx.lane().gather_v(send.send(), target, &counts, rank(root))?;
            if on_root {
                check_eq("received", ctx.here.read::<i32>(recv)?, all.concat())?;
            } else {
                ctx.here.check_untouched(recv)?;
            }
        }
    }
    Ok(())
}

pub(super) fn scatter_v_matches_oracle<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    for (turn, counts) in uneven(ctx.size).into_iter().enumerate() {
        for in_place in [false, true] {
            let root = (turn + 1) % ctx.size;
            let on_root = ctx.rank == root;
            let all = parts(ctx, &counts);
            let send = ctx.here.upload(&all.concat())?;
            let own = send.part(start(&counts, ctx.rank), counts[ctx.rank]);
            let recv = if in_place && on_root {
                own
            } else {
                ctx.here.alloc(DType::I32, counts[ctx.rank])?
            };
            let source = on_root.then(|| send.send());
            ctx.lane().scatter_v(source, recv.recv(), &counts, rank(root))?;
            check_eq("received", ctx.here.read::<i32>(recv)?, all[ctx.rank].clone())?;
        }
    }
    Ok(())
}

pub(super) fn no_elements_at_all_are_fine<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let none = ctx.here.alloc(DType::F32, 0)?;
    let (send, recv, counts) = (none.send(), none.recv(), vec![0; ctx.size]);
    let lane = ctx.lane();
    lane.all_gather_v(send, recv, &counts)?;
    lane.reduce_scatter_v(send, recv, &counts, ReduceOp::Sum)?;
    lane.all_to_all_v(send, &counts, recv, &counts)?;
    lane.gather_v(send, Some(recv), &counts, rank(0))?;
    lane.scatter_v(Some(send), recv, &counts, rank(0))?;
    lane.batch(&[])?;
    works(ctx)
}

pub(super) fn send_recv_turns_a_ring<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let lane = ctx.lane();
    let (next, previous) = ((ctx.rank + 1) % ctx.size, (ctx.rank + ctx.size - 1) % ctx.size);
    let mut holds = ctx.here.upload(&[ctx.rank as i32])?;
    // After as many turns as there are ranks, everything is home again.
    for turn in 1..=ctx.size {
        let got = ctx.here.alloc(DType::I32, 1)?;
        lane.send_recv(holds.send(), rank(next), got.recv(), rank(previous))?;
        let want = (ctx.rank + ctx.size - turn) % ctx.size;
        check_eq("received", ctx.here.read::<i32>(got)?, vec![want as i32])?;
        holds = got;
    }
    Ok(())
}

pub(super) fn a_batch_progresses_together<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let sent = ctx.here.upload(&vec![ctx.rank as i32; ctx.size])?;
    let got = ctx.here.alloc(DType::I32, ctx.size)?;
    // All sends first: as single calls these could wait for each other.
    let sends = (0..ctx.size).map(|to| PeerOp::Send(sent.part(to, 1).send(), rank(to)));
    let recvs = (0..ctx.size).map(|from| PeerOp::Recv(got.part(from, 1).recv(), rank(from)));
    ctx.lane().batch(&sends.chain(recvs).collect::<Vec<_>>())?;
    check_eq("received", ctx.here.read::<i32>(got)?, (0..ctx.size as i32).collect())
}

pub(super) fn a_barrier_holds_every_stream<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let scratch = ctx.here.upload(&[0_u8])?;
    for _ in 0..3 {
        ctx.lane().barrier(scratch.recv())?;
    }
    Ok(ctx.here.synchronize()?)
}

pub(super) fn warm_up_can_be_repeated<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let scratch = ctx.here.upload(&vec![0.0_f32; 2 * ctx.size])?;
    for _ in 0..2 {
        ctx.lane().warm_up(scratch.recv())?;
    }
    works(ctx)
}

pub(super) fn composites_stand_inside_a_group<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let lane = ctx.lane();
    let counts = SIZES.iter().copied().cycle().take(ctx.size).collect::<Vec<_>>();
    let all = parts(ctx, &counts);
    let send = ctx.here.upload(&all[ctx.rank])?;
    let recv = ctx.here.alloc(DType::I32, counts.iter().sum())?;
    let sum =
        Plan::new(Collective::AllReduce, DType::F64, 19).prepare::<B, f64>(ctx, lane, ctx.seed)?;
    ctx.group(|| {
        lane.all_gather_v(send.send(), recv.recv(), &counts)?;
        sum.issue(lane)
    })?;
    check_eq("received", ctx.here.read::<i32>(recv)?, all.concat())?;
    sum.verify(ctx)
}

pub(super) fn counts_that_do_not_fit_are_refused<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let (lane, root) = (ctx.lane(), rank(ctx.rank));
    let memory = ctx.here.alloc(DType::I32, 4 * ctx.size)?;
    let other = ctx.here.alloc(DType::I32, 4 * ctx.size)?;
    let (send, recv) = (memory.part(0, 4).send(), other.recv());
    let (whole, part) = (memory.send(), other.part(0, 4).recv());
    let fit = vec![4; ctx.size];
    let mut large = fit.clone();
    large[ctx.rank] = 5;
    let many = vec![4; ctx.size + 1];
    let endless = vec![usize::MAX; ctx.size.max(2)];
    for counts in [&large, &many, &endless] {
        let calls = [
            ("all_gather_v", lane.all_gather_v(send, recv, counts)),
            ("reduce_scatter_v", lane.reduce_scatter_v(whole, part, counts, ReduceOp::Sum)),
            ("all_to_all_v", lane.all_to_all_v(whole, counts, recv, &fit)),
            ("all_to_all_v", lane.all_to_all_v(whole, &fit, recv, counts)),
            ("gather_v", lane.gather_v(send, Some(recv), counts, root)),
            ("scatter_v", lane.scatter_v(Some(whole), part, counts, root)),
        ];
        for (name, call) in calls {
            let error = refused(ErrorKind::InvalidArgument, name, call)?;
            check_eq("operation", error.operation(), Some(name))?;
        }
    }
    let calls = [
        ("barrier", lane.barrier(other.recv().part(0, 2))),
        ("warm_up", lane.warm_up(other.recv().part(0, 1))),
    ];
    for (name, call) in calls {
        refused(ErrorKind::InvalidArgument, name, call)?;
    }
    ctx.here.check_untouched(other)?;
    works(ctx)
}

/// The lengths that SGLang's and vLLM's own tests use.
const SIZES: [usize; 8] = [81, 20, 57, 52, 81, 5, 49, 49];

/// Lengths per rank: those, and the same with gaps.
fn uneven(size: usize) -> [Vec<usize>; 3] {
    let full: Vec<usize> = SIZES.iter().copied().cycle().take(size).collect();
    let gaps = |odd: usize| {
        full.iter().enumerate().map(|(at, &n)| if at % 2 == odd { 0 } else { n }).collect()
    };
    [gaps(0), gaps(1), full]
}

fn start(counts: &[usize], rank: usize) -> usize {
    counts[..rank].iter().sum()
}

/// What each rank gives.
fn parts<B: Backend>(ctx: &Ctx<'_, B>, counts: &[usize]) -> Vec<Vec<i32>> {
    let of = |(rank, &count)| inputs::<i32>(None, ctx.seed, rank, ctx.size, count);
    counts.iter().enumerate().map(of).collect()
}

fn works<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    Plan::new(Collective::AllReduce, DType::F32, 33).run(ctx)
}
