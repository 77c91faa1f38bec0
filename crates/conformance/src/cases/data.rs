//! Operations in which all ranks take part, against the oracle.

use collectives_core::{Backend, DType, RecvBuf, ReduceOp, SendBuf, bf16, f16};

use crate::{
    check::{Failure, Outcome, check, check_eq},
    ctx::{Ctx, rank},
    inputs::{Reduction, hash},
    number::{BASIC, Number},
    oracle,
    plan::{Collective, Plan, compare},
};

/// Every type × count × reduction, in and out of place; the root changes from one to the next.
pub(super) fn small<B: Backend>(
    ctx: &Ctx<'_, B>,
    collective: Collective,
    dtypes: &[DType],
    reductions: &[Reduction],
) -> Outcome {
    let mut roots = (0..ctx.size).cycle();
    for &dtype in dtypes {
        for count in COUNTS {
            for reduction in choices(reductions) {
                if scales_fp8_alone(ctx, dtype, reduction) {
                    continue;
                }
                for in_place in [false, true] {
                    let plan = Plan::new(collective, dtype, count).in_place(in_place);
                    with(plan, reduction).with_root(roots.next().unwrap_or(0)).run(ctx)?;
                }
            }
        }
        ctx.here.settle()?;
    }
    Ok(())
}

/// One rank that multiplies fp8 by a scalar: a case of its own, since libraries fail it.
fn scales_fp8_alone<B: Backend>(
    ctx: &Ctx<'_, B>,
    dtype: DType,
    reduction: Option<Reduction>,
) -> bool {
    let scales = matches!(reduction, Some(Reduction::PreMulHost | Reduction::PreMulDevice));
    ctx.size == 1 && dtype.is_fp8() && scales
}

pub(super) fn fp8_can_be_scaled<B: Backend>(ctx: &Ctx<'_, B>, collective: Collective) -> Outcome {
    for dtype in FP8 {
        Plan::new(collective, dtype, 131).with_reduction(Reduction::PreMulHost).run(ctx)?;
    }
    Ok(())
}

/// Buffers of 1 MiB. Each type meets each reduction, in one of the three operations that reduce;
/// place and root change from one to the next.
pub(super) fn large<B: Backend>(
    ctx: &Ctx<'_, B>,
    collective: Collective,
    dtypes: &[DType],
    reductions: &[Reduction],
) -> Outcome {
    let pairs = dtypes
        .iter()
        .flat_map(|&dtype| choices(reductions).map(move |reduction| (dtype, reduction)));
    let share = match collective {
        Collective::AllReduce => 0,
        Collective::Reduce => 1,
        _ => 2,
    };
    for (turn, (dtype, reduction)) in pairs.enumerate() {
        if reduction.is_some() && turn % 3 != share || scales_fp8_alone(ctx, dtype, reduction) {
            continue;
        }
        let whole = MIB / dtype.size();
        let each = match collective {
            Collective::AllReduce | Collective::Broadcast | Collective::Reduce => whole,
            _ => whole / ctx.size,
        };
        let plan = Plan::new(collective, dtype, each).in_place(turn % 2 == 1);
        with(plan, reduction).with_root(turn % ctx.size).run(ctx)?;
        ctx.here.settle()?;
    }
    Ok(())
}

/// Buffers that are aligned to their type and no further.
pub(super) fn unaligned<B: Backend>(
    ctx: &Ctx<'_, B>,
    collective: Collective,
    reductions: &[Reduction],
) -> Outcome {
    for dtype in BASIC {
        for reduction in choices(reductions) {
            let plan = Plan::new(collective, dtype, 131).with_offset(1);
            with(plan, reduction).run(ctx)?;
            with(plan, reduction).in_place(true).run(ctx)?;
        }
    }
    Ok(())
}

pub(super) fn nan_loses_against_a_number<B: Backend>(
    ctx: &Ctx<'_, B>,
    collective: Collective,
) -> Outcome {
    fn check<B: Backend, T: Number>(ctx: &Ctx<'_, B>, collective: Collective, nan: T) -> Outcome {
        for reduction in [Reduction::Max, Reduction::Min] {
            // Element i is a NaN on every rank but the i-th, which knows the answer.
            let of = |rank: usize| -> Vec<T> {
                (0..ctx.size)
                    .map(|at| if at == rank { T::from_f64(1.0 + at as f64) } else { nan })
                    .collect()
            };
            let inputs: Vec<Vec<T>> = (0..ctx.size).map(of).collect();
            let want = oracle::reduce(&inputs, reduction);
            let op = if reduction == Reduction::Max { ReduceOp::Max } else { ReduceOp::Min };
            let send = ctx.here.upload(&inputs[ctx.rank])?;
            let recv = ctx.here.alloc(T::DTYPE, ctx.size)?;
            let lane = ctx.lane();
            let (recv, want) = match collective {
                Collective::Reduce => {
                    lane.reduce(send.send(), Some(recv.recv()), op, rank(0))?;
                    if ctx.rank > 0 {
                        continue;
                    }
                    (recv, want)
                }
                Collective::ReduceScatter => {
                    let own = recv.part(0, 1);
                    lane.reduce_scatter(send.send(), own.recv(), op)?;
                    (own, vec![want[ctx.rank]])
                }
                _ => {
                    lane.all_reduce(send.send(), recv.recv(), op)?;
                    (recv, want)
                }
            };
            compare("received", &ctx.here.read::<T>(recv)?, &want, 0)
                .map_err(|failure| failure.during(format!("{reduction:?} of {}", T::DTYPE)))?;
        }
        Ok(())
    }
    check(ctx, collective, f16::NAN)?;
    check(ctx, collective, f32::NAN)?;
    check(ctx, collective, f64::NAN)?;
    if ctx.backend.capabilities().dtype_bf16.is_available() {
        check(ctx, collective, bf16::NAN)?;
    }
    Ok(())
}

/// On inputs whose sum depends on the order of evaluation, all ranks see the same order.
pub(super) fn every_rank_receives_the_same_bits<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    for count in [1, 1000, 100_003] {
        let values: Vec<f32> =
            (0..count).map(|at| hash([ctx.seed, ctx.rank as u64, at]) as f32 / 1e12).collect();
        let send = ctx.here.upload(&values)?;
        let recv = ctx.here.alloc(DType::F32, values.len())?;
        ctx.lane().all_reduce(send.send(), recv.recv(), ReduceOp::Sum)?;
        let bits = ctx.here.read::<f32>(recv)?.into_iter().map(f32::to_bits);
        let digest = bits.fold(0, |digest, bits| hash([digest, u64::from(bits)]));
        let all = ctx.exchange(&digest.to_ne_bytes())?;
        check(all.iter().all(|other| *other == all[0]), "one result on all ranks")?;
    }
    Ok(())
}

pub(super) fn buffers_given_off_root_are_ignored<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let root = rank(ctx.size - 1);
    let on_root = ctx.rank == root.index();
    let lane = ctx.lane();
    let four = ctx.here.upload(&[1_i32, 2, 3, 4])?;
    // Off root, even a buffer that breaks every rule.
    let odd = ctx.here.alloc(DType::U8, 3)?;
    let space = ctx.here.alloc(DType::I32, 4)?;
    let wide = ctx.here.alloc(DType::I32, 4 * ctx.size)?;

    let recv = if on_root { space } else { odd };
    lane.reduce(four.send(), Some(recv.recv()), ReduceOp::Sum, root)?;
    let recv = if on_root { wide } else { odd };
    lane.gather(four.send(), Some(recv.recv()), root)?;
    if !on_root {
        ctx.here.check_untouched(odd)?;
    }
    let send = if on_root { four } else { odd };
    lane.broadcast(Some(send.send()), space.recv(), root)?;
    check_eq("broadcast", ctx.here.read::<i32>(space)?, vec![1, 2, 3, 4])?;

    let whole = ctx.here.upload(&vec![7_i32; 4 * ctx.size])?;
    let send = if on_root { whole } else { odd };
    lane.scatter(Some(send.send()), space.recv(), root)?;
    check_eq("scatter", ctx.here.read::<i32>(space)?, vec![7; 4])
}

pub(super) fn null_pointers_are_fine_for_no_elements<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let send = SendBuf::new(std::ptr::null(), 0, DType::F32);
    let recv = RecvBuf::new(std::ptr::null_mut(), 0, DType::F32);
    let (lane, root) = (ctx.lane(), rank(0));
    let calls = [
        ("all_reduce", lane.all_reduce(send, recv, ReduceOp::Sum)),
        ("reduce", lane.reduce(send, Some(recv), ReduceOp::Sum, root)),
        ("broadcast", lane.broadcast(Some(send), recv, root)),
        ("all_gather", lane.all_gather(send, recv)),
        ("reduce_scatter", lane.reduce_scatter(send, recv, ReduceOp::Sum)),
        ("all_to_all", lane.all_to_all(send, recv)),
        ("gather", lane.gather(send, Some(recv), root)),
        ("scatter", lane.scatter(Some(send), recv, root)),
    ];
    for (name, call) in calls {
        call.map_err(|error| Failure::from(error).during(name))?;
    }
    Ok(ctx.here.synchronize()?)
}

/// The reductions that every library has, and that need nothing made for them.
pub(super) const COMMON: [Reduction; 4] =
    [Reduction::Sum, Reduction::Prod, Reduction::Max, Reduction::Min];
pub(super) const BF16: [DType; 1] = [DType::Bf16];
pub(super) const FP8: [DType; 2] = [DType::F8E4M3, DType::F8E5M2];
pub(super) const SMALL_FLOATS: [DType; 3] = [DType::Bf16, DType::F8E4M3, DType::F8E5M2];

/// None, one, an odd number, one past a power of two.
const COUNTS: [usize; 4] = [0, 1, 7, 1025];
const MIB: usize = 1 << 20;

/// The reductions to try, or once none where the operation only moves.
fn choices(reductions: &[Reduction]) -> impl Iterator<Item = Option<Reduction>> {
    let none = reductions.is_empty().then_some(None);
    reductions.iter().copied().map(Some).chain(none)
}

fn with(plan: Plan, reduction: Option<Reduction>) -> Plan {
    reduction.map_or(plan, |reduction| plan.with_reduction(reduction))
}
