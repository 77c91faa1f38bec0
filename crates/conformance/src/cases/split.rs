//! Dividing a communicator.

use collectives_core::{Backend, Collectives, DType, ErrorKind, SplitConfig};

use crate::{
    check::{Failure, Outcome, check, check_eq, refused},
    ctx::{Ctx, rank},
    plan::{Collective, Plan},
};

pub(super) fn two_colours_make_two_communicators<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let config = SplitConfig::new(ctx.rank as u32 % 2).with_name("half");
    let half = expect(ctx.split(ctx.comm, config)?)?;
    check_eq("rank", half.info().rank, rank(ctx.rank / 2))?;
    check_eq("size", half.info().size, (ctx.size + 1 - ctx.rank % 2) / 2)?;
    check_eq("device", half.info().device, ctx.devices[ctx.rank])?;
    check_eq("name", half.info().name.as_deref(), Some("half"))?;
    check(half.info().id != ctx.comm.info().id, "an identity of its own")?;
    works(ctx, &half)?;
    Ok(ctx.finalize(half)?)
}

/// 8 ranks: 2 × 4, 4 × 2, 8 × 1 and 1 × 8, as tensor and pipeline parallelism divide them; in blocks of
/// neighbours and across them.
pub(super) fn blocks_and_stripes_of_every_size<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    for width in (1..=ctx.size).filter(|width| ctx.size.is_multiple_of(*width)) {
        let count = ctx.size / width;
        let block = expect(ctx.split(ctx.comm, SplitConfig::new((ctx.rank / width) as u32))?)?;
        let stripe = expect(ctx.split(ctx.comm, SplitConfig::new((ctx.rank % width) as u32))?)?;
        check_eq("size of a block", block.info().size, width)?;
        check_eq("rank in a block", block.info().rank, rank(ctx.rank % width))?;
        check_eq("size of a stripe", stripe.info().size, count)?;
        check_eq("rank in a stripe", stripe.info().rank, rank(ctx.rank / width))?;
        for _ in 0..2 {
            works(ctx, &block)?;
            works(ctx, &stripe)?;
        }
        works(ctx, ctx.comm)?;
        ctx.finalize(stripe)?;
        ctx.finalize(block)?;
    }
    Ok(())
}

pub(super) fn keys_reverse_the_order<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let config = SplitConfig::new(7).with_key(-(ctx.rank as i32));
    let reversed = expect(ctx.split(ctx.comm, config)?)?;
    check_eq("rank", reversed.info().rank, rank(ctx.size - 1 - ctx.rank))?;
    works(ctx, &reversed)?;
    ctx.finalize(reversed)?;
    // Equal keys keep the order.
    let same = expect(ctx.split(ctx.comm, SplitConfig::new(0).with_key(3))?)?;
    check_eq("rank", same.info().rank, rank(ctx.rank))?;
    Ok(ctx.finalize(same)?)
}

pub(super) fn no_colour_takes_no_part<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let config = if ctx.rank == 0 { SplitConfig::no_color() } else { SplitConfig::new(0) };
    let child = ctx.split(ctx.comm, config)?;
    check_eq("has a communicator", child.is_some(), ctx.rank > 0)?;
    if let Some(child) = child {
        check_eq("size", child.info().size, ctx.size - 1)?;
        works(ctx, &child)?;
        ctx.finalize(child)?;
    }
    ctx.meet()?;
    works(ctx, ctx.comm)
}

pub(super) fn parent_and_children_work_in_turn<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let half = expect(ctx.split(ctx.comm, SplitConfig::new(ctx.rank as u32 % 2))?)?;
    let all = expect(ctx.split(ctx.comm, SplitConfig::new(0))?)?;
    for _ in 0..3 {
        works(ctx, ctx.comm)?;
        works(ctx, &half)?;
        works(ctx, &all)?;
    }
    ctx.finalize(half)?;
    ctx.meet()?;
    works(ctx, &all)?;
    ctx.finalize(all)?;
    ctx.meet()?;
    works(ctx, ctx.comm)
}

pub(super) fn children_outlive_their_parent<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let parent = ctx.join_again()?;
    let child = expect(ctx.split(&parent, SplitConfig::new(0))?)?;
    ctx.finalize(parent)?;
    ctx.meet()?;
    works(ctx, &child)?;
    Ok(ctx.finalize(child)?)
}

pub(super) fn a_child_can_be_split_again<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let child = expect(ctx.split(ctx.comm, SplitConfig::new(0).with_key(-(ctx.rank as i32)))?)?;
    let color = child.info().rank.get() % 2;
    let grandchild = expect(ctx.split(&child, SplitConfig::new(color))?)?;
    works(ctx, &grandchild)?;
    works(ctx, &child)?;
    ctx.finalize(grandchild)?;
    Ok(ctx.finalize(child)?)
}

pub(super) fn split_dyn_divides_as_split_does<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let parent: &dyn Collectives = ctx.comm;
    let none = ctx.rank == 0 && ctx.size > 1;
    let config = if none { SplitConfig::no_color() } else { SplitConfig::new(1) };
    let child = parent.split_dyn(config)?;
    check_eq("has a communicator", child.is_some(), !none)?;
    if let Some(child) = child {
        ctx.guard(&*child);
        works(ctx, &*child)?;
        child.finalize()?;
    }
    Ok(())
}

pub(super) fn inside_a_group_it_is_refused<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let outcome = ctx.group(|| ctx.split(ctx.comm, SplitConfig::new(0)).map(drop));
    refused(ErrorKind::InvalidUsage, "split in a group", outcome)?;
    works(ctx, ctx.comm)
}

fn expect<C>(child: Option<C>) -> Outcome<C> {
    child.ok_or_else(|| Failure::new("a rank with a colour got no communicator"))
}

fn works<B: Backend>(ctx: &Ctx<'_, B>, comm: &dyn Collectives) -> Outcome {
    let lane = ctx.lane_of(comm, ctx.here.stream);
    Plan::new(Collective::AllReduce, DType::F32, 257).run_on(ctx, lane)?;
    let root = comm.info().size - 1;
    Plan::new(Collective::Broadcast, DType::I64, 5).with_root(root).run_on(ctx, lane)
}
