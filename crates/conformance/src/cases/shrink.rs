//! Leaving ranks out of a communicator.

use collectives_core::{
    Backend, Collectives, DType, ErrorKind, Rank, ReduceOp, ShrinkConfig, SplitConfig,
};

use crate::{
    check::{Outcome, check, check_eq, fails, refused},
    ctx::{Ctx, rank},
    plan::{Collective, Plan},
    workspace::PATIENCE,
};

pub(super) fn the_ranks_that_stay_close_the_gaps<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let parent = ctx.join_again()?;
    for gone in [0, ctx.size - 1] {
        if ctx.rank != gone {
            let config = ShrinkConfig::new([rank(gone)]).with_name("rest");
            let child = ctx.shrink(&parent, config)?;
            let place = if ctx.rank > gone { ctx.rank - 1 } else { ctx.rank };
            check_eq("rank", child.info().rank, rank(place))?;
            check_eq("size", child.info().size, ctx.size - 1)?;
            check_eq("device", child.info().device, ctx.devices[ctx.rank])?;
            check_eq("name", child.info().name.as_deref(), Some("rest"))?;
            check(child.info().id != parent.info().id, "an identity of its own")?;
            works(ctx, &child)?;
            ctx.finalize(child)?;
        }
        ctx.meet()?;
    }
    works(ctx, &parent)?;
    Ok(ctx.finalize(parent)?)
}

pub(super) fn several_ranks_are_left_out_in_any_order<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let parent = ctx.join_again()?;
    let odd: Vec<Rank> = (0..ctx.size).rev().filter(|other| other % 2 == 1).map(rank).collect();
    if ctx.rank.is_multiple_of(2) {
        let child = ctx.shrink(&parent, ShrinkConfig::new(odd))?;
        check_eq("rank", child.info().rank, rank(ctx.rank / 2))?;
        check_eq("size", child.info().size, ctx.size.div_ceil(2))?;
        works(ctx, &child)?;
        ctx.finalize(child)?;
    }
    ctx.meet()?;
    works(ctx, &parent)?;
    Ok(ctx.finalize(parent)?)
}

pub(super) fn parent_and_child_work_in_turn<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let parent = ctx.join_again()?;
    works(ctx, &parent)?;
    let child = match stays(ctx) {
        true => Some(ctx.shrink(&parent, without_last(ctx))?),
        false => None,
    };
    for _ in 0..3 {
        child.iter().try_for_each(|child| works(ctx, child))?;
        works(ctx, &parent)?;
    }
    child.map_or(Ok(()), |child| ctx.finalize(child))?;
    ctx.meet()?;
    works(ctx, &parent)?;
    Ok(ctx.finalize(parent)?)
}

pub(super) fn a_child_outlives_its_parent<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let parent = ctx.join_again()?;
    let child = match stays(ctx) {
        true => Some(ctx.shrink(&parent, without_last(ctx))?),
        false => None,
    };
    ctx.finalize(parent)?;
    ctx.meet()?;
    if let Some(child) = child {
        works(ctx, &child)?;
        // What came of a shrink is a communicator like any other.
        let half = ctx.split(&child, SplitConfig::new(0))?;
        half.iter().try_for_each(|half| works(ctx, half))?;
        half.map_or(Ok(()), |half| ctx.finalize(half))?;
        ctx.finalize(child)?;
    }
    ctx.meet()
}

pub(super) fn a_child_can_be_shrunk_again<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let parent = ctx.join_again()?;
    if stays(ctx) {
        let child = ctx.shrink(&parent, without_last(ctx))?;
        if ctx.rank > 0 {
            let grandchild = ctx.shrink(&child, ShrinkConfig::new([rank(0)]))?;
            check_eq("rank", grandchild.info().rank, rank(ctx.rank - 1))?;
            check_eq("size", grandchild.info().size, ctx.size - 2)?;
            works(ctx, &grandchild)?;
            ctx.finalize(grandchild)?;
        }
        ctx.finalize(child)?;
    }
    ctx.meet()?;
    Ok(ctx.finalize(parent)?)
}

pub(super) fn shrink_dyn_does_as_shrink<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let parent = ctx.join_again()?;
    if stays(ctx) {
        let child = (&parent as &dyn Collectives).shrink_dyn(without_last(ctx))?;
        ctx.guard(&*child);
        check_eq("size", child.info().size, ctx.size - 1)?;
        works(ctx, &*child)?;
        child.finalize()?;
    }
    ctx.meet()?;
    Ok(ctx.finalize(parent)?)
}

pub(super) fn an_aborted_child_leaves_its_parent_alone<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let parent = ctx.join_again()?;
    if stays(ctx) {
        let child = ctx.shrink(&parent, without_last(ctx))?;
        works(ctx, &child)?;
        let handle = child.abort_handle();
        handle.abort()?;
        check(handle.is_aborted() && !parent.abort_handle().is_aborted(), "the child alone")?;
        fails(ErrorKind::Aborted, "poll_error", child.poll_error())?;
    }
    ctx.meet()?;
    works(ctx, &parent)?;
    Ok(ctx.finalize(parent)?)
}

pub(super) fn a_rank_that_left_is_left_out<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let parent = ctx.join_again()?;
    works(ctx, &parent)?;
    if !stays(ctx) {
        drop(parent);
        // The others know that it is gone when they go on, and nothing of theirs runs until then.
        ctx.meet()?;
        return ctx.meet();
    }
    ctx.meet()?;
    let child = ctx.shrink(&parent, without_last(ctx))?;
    works(ctx, &child)?;
    drop(parent);
    ctx.finalize(child)?;
    ctx.meet()
}

pub(super) fn with_abort_it_drops_what_waits_for_a_lost_rank<B: Backend>(
    ctx: &Ctx<'_, B>,
) -> Outcome {
    let parent = ctx.join_again()?;
    works(ctx, &parent)?;
    ctx.meet()?;
    if !stays(ctx) {
        Box::new(parent).abort()?;
        ctx.meet()?;
        network_failed(ctx, false)?;
        return works(ctx, ctx.comm);
    }
    let stream = ctx.here.new_stream()?;
    let memory = ctx.here.upload(&[1.0_f32])?;
    ctx.here.order(ctx.here.stream, stream)?;
    let lane = ctx.lane_of(&parent, stream);
    // That the other rank is lost may be known by now, or not.
    let _known = lane.all_reduce(memory.send(), memory.recv(), ReduceOp::Sum);
    ctx.meet()?;
    let child = ctx.shrink(&parent, without_last(ctx).with_abort());
    let Some(child) = unless_the_network_failed(child)? else {
        drop(parent);
        network_failed(ctx, true)?;
        return works(ctx, ctx.comm);
    };
    check_eq("size", child.info().size, ctx.size - 1)?;
    if let Err(error) = ctx.here.synchronize_stream(stream, PATIENCE) {
        check(error.kind() != ErrorKind::Timeout, "the stream goes on")?;
    }
    works(ctx, &child)?;
    let after = lane.all_reduce(memory.send(), memory.recv(), ReduceOp::Sum);
    fails(ErrorKind::Revoked, "an operation of the parent", after)?;
    drop(parent);
    ctx.finalize(child)?;
    network_failed(ctx, false)?;
    works(ctx, ctx.comm)
}

/// What came of shrinking a lost rank away; nothing where the library cannot, since its network has
/// noticed the loss, which it says together with what to do instead.
pub(super) fn unless_the_network_failed<T>(
    shrunk: collectives_core::Result<T>,
) -> Outcome<Option<T>> {
    match shrunk {
        Err(error) if error.kind() == ErrorKind::Remote => {
            let hint = error.hint().unwrap_or_default();
            check(hint.contains("join a new one"), format!("{error} says what to do"))?;
            Ok(None)
        }
        shrunk => Ok(Some(shrunk?)),
    }
}

/// Waits for every rank. If the network has failed for one, there is nothing to see for all.
pub(super) fn network_failed<B: Backend>(ctx: &Ctx<'_, B>, here: bool) -> Outcome {
    let everywhere = ctx.exchange(&[u8::from(here)])?;
    if everywhere.iter().any(|there| there[..] == [1]) {
        ctx.skip("the network has noticed the loss, and the library does not shrink then");
    }
    Ok(())
}

pub(super) fn impossible_lists_are_refused<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let (own, other) = (rank(ctx.rank), rank((ctx.rank + 1) % ctx.size));
    let mut lists = vec![
        ("no rank", vec![]),
        ("this rank", vec![own]),
        ("a rank outside", vec![rank(ctx.size)]),
        ("all ranks", (0..ctx.size).map(rank).collect()),
    ];
    if ctx.size > 1 {
        lists.push(("one rank twice", vec![other, other]));
        lists.push(("another and a rank outside", vec![other, Rank::new(u32::MAX)]));
    }
    for (what, list) in lists {
        let outcome = ctx.shrink(ctx.comm, ShrinkConfig::new(list));
        refused(ErrorKind::InvalidArgument, format!("excluding {what}"), outcome)?;
    }
    works(ctx, ctx.comm)
}

pub(super) fn inside_a_group_it_is_refused<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let other = rank((ctx.rank + 1) % ctx.size);
    let outcome = ctx.group(|| ctx.shrink(ctx.comm, ShrinkConfig::new([other])).map(drop));
    refused(ErrorKind::InvalidUsage, "shrink in a group", outcome)?;
    works(ctx, ctx.comm)
}

/// Whether this rank is not the one that is left out.
fn stays<B: Backend>(ctx: &Ctx<'_, B>) -> bool {
    ctx.rank + 1 < ctx.size
}

fn without_last<B: Backend>(ctx: &Ctx<'_, B>) -> ShrinkConfig {
    ShrinkConfig::new([rank(ctx.size - 1)])
}

fn works<B: Backend>(ctx: &Ctx<'_, B>, comm: &dyn Collectives) -> Outcome {
    let lane = ctx.lane_of(comm, ctx.here.stream);
    Plan::new(Collective::AllReduce, DType::F32, 257).run_on(ctx, lane)?;
    Plan::new(Collective::AllGather, DType::I64, 5).run_on(ctx, lane)
}
