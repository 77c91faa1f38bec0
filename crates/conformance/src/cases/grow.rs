//! Adding ranks to a communicator. Its members are the first ranks of the world, by a split.

use collectives_core::{
    Backend, Collectives, DType, ErrorKind, GrowConfig, JoinConfig, ShrinkConfig, Split,
    SplitConfig, UniqueId,
};

use crate::{
    check::{Failure, Outcome, check_eq, refused},
    ctx::{Ctx, rank},
    plan::{Collective, Plan},
};

pub(super) fn by_one_rank<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let parent = members(ctx, ctx.size - 1)?;
    let grown = grow(ctx, parent.as_ref(), 0, ctx.size)?;
    let grown = expect(grown)?;
    check_eq("rank", grown.info().rank, rank(ctx.rank))?;
    check_eq("size", grown.info().size, ctx.size)?;
    check_eq("device", grown.info().device, ctx.devices[ctx.rank])?;
    works(ctx, &grown)?;
    parent.map_or(Ok(()), |parent| ctx.finalize(parent))?;
    ctx.meet()?;
    works(ctx, &grown)?;
    Ok(ctx.finalize(grown)?)
}

pub(super) fn by_several_ranks<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let parent = members(ctx, 1)?;
    let grown = grow(ctx, parent.as_ref(), 0, ctx.size)?;
    let grown = expect(grown)?;
    check_eq("rank", grown.info().rank, rank(ctx.rank))?;
    check_eq("size", grown.info().size, ctx.size)?;
    works(ctx, &grown)?;
    ctx.finalize(grown)?;
    parent.map_or(Ok(()), |parent| ctx.finalize(parent))?;
    ctx.meet()
}

pub(super) fn any_member_makes_the_id<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let parent = members(ctx, ctx.size - 1)?;
    for maker in 0..ctx.size - 1 {
        let grown = grow(ctx, parent.as_ref(), maker, ctx.size)?;
        let grown = expect(grown)?;
        works(ctx, &grown)?;
        ctx.finalize(grown)?;
        ctx.meet()?;
    }
    parent.map_or(Ok(()), |parent| ctx.finalize(parent))?;
    ctx.meet()
}

pub(super) fn again_and_again<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let mut latest = members(ctx, 1)?;
    for size in 2..=ctx.size {
        let grown = grow(ctx, latest.as_ref(), 0, size)?;
        // Growing is over when the old one ends.
        ctx.meet()?;
        latest = grown;
        ctx.meet()?;
        latest.iter().try_for_each(|comm| works(ctx, comm))?;
    }
    let last = expect(latest)?;
    check_eq("size", last.info().size, ctx.size)?;
    Ok(ctx.finalize(last)?)
}

pub(super) fn the_parent_works_on<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let parent = members(ctx, ctx.size - 1)?;
    let grown = grow(ctx, parent.as_ref(), 0, ctx.size)?;
    let grown = expect(grown)?;
    for _ in 0..3 {
        works(ctx, &grown)?;
        parent.iter().try_for_each(|parent| works(ctx, parent))?;
    }
    ctx.finalize(grown)?;
    ctx.meet()?;
    if let Some(parent) = parent {
        works(ctx, &parent)?;
        ctx.finalize(parent)?;
    }
    ctx.meet()
}

pub(super) fn grow_dyn_does_as_grow<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let parent = members(ctx, ctx.size - 1)?;
    let id = shared_id(ctx, parent.as_ref(), 0)?;
    let grown: Box<dyn Collectives> = match &parent {
        Some(parent) => {
            (parent as &dyn Collectives).grow_dyn(GrowConfig::new(ctx.size).with_name("all"))?
        }
        None => Box::new(ctx.join_grown(&id, ctx.join_config().with_name("all"))?),
    };
    ctx.guard(&*grown);
    check_eq("name", grown.info().name.as_deref(), Some("all"))?;
    works(ctx, &*grown)?;
    grown.finalize()?;
    parent.map_or(Ok(()), |parent| ctx.finalize(parent))?;
    ctx.meet()
}

/// The recipe: a rank is replaced.
pub(super) fn a_rank_that_was_left_out_comes_back<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let whole = ctx.join_again()?;
    works(ctx, &whole)?;
    let small = match ctx.rank + 1 < ctx.size {
        true => Some(ctx.shrink(&whole, ShrinkConfig::new([rank(ctx.size - 1)]))?),
        false => None,
    };
    small.iter().try_for_each(|small| works(ctx, small))?;
    ctx.finalize(whole)?;
    ctx.meet()?;
    let whole = grow(ctx, small.as_ref(), 0, ctx.size)?;
    let whole = expect(whole)?;
    check_eq("rank", whole.info().rank, rank(ctx.rank))?;
    works(ctx, &whole)?;
    ctx.finalize(whole)?;
    small.map_or(Ok(()), |small| ctx.finalize(small))?;
    ctx.meet()
}

pub(super) fn impossible_sizes_are_refused<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    for size in [0, ctx.size - 1, ctx.size, usize::MAX] {
        let outcome = ctx.grow(ctx.comm, GrowConfig::new(size));
        refused(ErrorKind::InvalidArgument, format!("growing to {size}"), outcome)?;
    }
    let id = ctx.backend.unique_id()?;
    let outside = JoinConfig::new(rank(ctx.size), ctx.size).with_device(ctx.devices[ctx.rank]);
    let outcome = ctx.join_grown(&id, outside);
    refused(ErrorKind::InvalidArgument, "a new rank outside the size", outcome)?;
    let outcome = ctx.join_grown(&UniqueId::from_bytes(vec![7; 3]), ctx.join_config());
    refused(ErrorKind::InvalidArgument, "an id of three bytes", outcome)?;
    works(ctx, ctx.comm)
}

pub(super) fn an_id_is_made_once<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let parent = members(ctx, ctx.size - 1)?;
    let id = shared_id(ctx, parent.as_ref(), 0)?;
    if let Some(parent) = parent.as_ref().filter(|parent| parent.info().rank == rank(0)) {
        refused(ErrorKind::InvalidUsage, "a second id", parent.grow_id())?;
    }
    let grown = match &parent {
        Some(parent) => ctx.grow(parent, GrowConfig::new(ctx.size))?,
        None => ctx.join_grown(&id, ctx.join_config())?,
    };
    works(ctx, &grown)?;
    ctx.finalize(grown)?;
    parent.map_or(Ok(()), |parent| ctx.finalize(parent))?;
    ctx.meet()
}

pub(super) fn inside_a_group_it_is_refused<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let outcome = ctx.group(|| ctx.comm.grow(GrowConfig::new(ctx.size + 1)).map(drop));
    refused(ErrorKind::InvalidUsage, "grow in a group", outcome)?;
    works(ctx, ctx.comm)
}

/// A communicator of the first `count` ranks; none on the others.
fn members<B: Backend>(ctx: &Ctx<'_, B>, count: usize) -> Outcome<Option<B::Comm>> {
    let config = if ctx.rank < count { SplitConfig::new(0) } else { SplitConfig::no_color() };
    let parent = ctx.split(ctx.comm, config)?;
    check_eq("is a member", parent.is_some(), ctx.rank < count)?;
    Ok(parent)
}

/// The id that `maker` made, on every rank of the world.
fn shared_id<B: Backend>(
    ctx: &Ctx<'_, B>,
    parent: Option<&B::Comm>,
    maker: usize,
) -> Outcome<UniqueId> {
    let own = match parent {
        Some(parent) if ctx.rank == maker => parent.grow_id()?.as_bytes().to_vec(),
        _ => vec![],
    };
    Ok(UniqueId::from_bytes(ctx.exchange(&own)?.swap_remove(maker)))
}

/// Grows to the first `size` ranks of the world; none on the others.
fn grow<B: Backend>(
    ctx: &Ctx<'_, B>,
    parent: Option<&B::Comm>,
    maker: usize,
    size: usize,
) -> Outcome<Option<B::Comm>> {
    let id = shared_id(ctx, parent, maker)?;
    Ok(match parent {
        Some(parent) => Some(ctx.grow(parent, GrowConfig::new(size))?),
        None if ctx.rank < size => {
            let config = JoinConfig::new(rank(ctx.rank), size);
            Some(ctx.join_grown(&id, config.with_device(ctx.devices[ctx.rank]))?)
        }
        None => None,
    })
}

fn expect<C>(grown: Option<C>) -> Outcome<C> {
    grown.ok_or_else(|| Failure::new("a rank below the size got no communicator"))
}

fn works<B: Backend>(ctx: &Ctx<'_, B>, comm: &dyn Collectives) -> Outcome {
    let lane = ctx.lane_of(comm, ctx.here.stream);
    Plan::new(Collective::AllReduce, DType::F32, 257).run_on(ctx, lane)?;
    Plan::new(Collective::AllGather, DType::I64, 5).run_on(ctx, lane)
}
