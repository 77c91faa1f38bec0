//! Configurations of communicators, and several ids for one of them.

use collectives_core::{
    Backend, CallConfig, Collectives, CommConfig, CtaPolicy, DType, ErrorKind, GraphUsage, HostCft,
    ReduceOp, ShrinkConfig, SplitConfig, UniqueId,
};

use crate::{
    check::{Outcome, check, check_eq, fails},
    ctx::{Ctx, rank},
    lane::Lane,
    plan::{Collective, Plan},
};

/// Each field for itself: a library either knows it, or refuses it by name, on all ranks alike.
pub(super) fn each_field_works_or_is_refused_by_name<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let new = CommConfig::new;
    let fields = [
        ("cga_cluster_size", new().with_cga_cluster_size(2_u32)),
        ("ctas", new().with_ctas(1..=4)),
        ("collnet", new().with_collnet(false)),
        ("cta_policy", new().with_cta_policy(CtaPolicy::EFFICIENCY)),
        ("channels_per_net_peer", new().with_channels_per_net_peer(1_u32)),
        ("nvlink_centric_schedule", new().with_nvlink_centric_schedule(true)),
        ("graph_usage", new().with_graph_usage(GraphUsage::Mixed)),
        ("max_p2p_peers", new().with_max_p2p_peers(8_u32)),
        ("launch_order_implicit", new().with_launch_order_implicit(false)),
        ("host_cft", new().with_host_cft(HostCft::Disable)),
    ];
    for (field, config) in fields {
        let id = ctx.shared_id()?;
        let join = ctx.join_config().with_name(field).with_config(config);
        match ctx.join(&id, join) {
            Ok(comm) => {
                let sum = Plan::new(Collective::AllReduce, DType::F32, 33);
                sum.run_on(ctx, ctx.lane_of(&comm, ctx.here.stream))?;
                ctx.finalize(comm)?;
            }
            Err(error) => {
                check_eq(field, error.kind(), ErrorKind::Unsupported)?;
                check(error.message().contains(field), format!("{error} names {field}"))?;
                check(!error.poisons_communicator(), "nothing happened")?;
            }
        }
    }
    Ok(())
}

pub(super) fn impossible_values_are_refused<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let wrong = || CommConfig::new().with_ctas(0..=4);
    let refused = |name: &str, outcome: Result<(), collectives_core::Error>| -> Outcome {
        let error = fails(ErrorKind::InvalidArgument, name, outcome)?;
        check(error.message().contains("ctas is 0"), format!("{error} names the value"))
    };
    let id = ctx.shared_id()?;
    let join = ctx.join_config().with_config(wrong());
    refused("join", ctx.join(&id, join).map(drop))?;
    if ctx.backend.capabilities().split.is_available() {
        let split = SplitConfig::new(0).with_config(wrong());
        refused("split", ctx.split(ctx.comm, split).map(drop))?;
    }
    if ctx.backend.capabilities().shrink.is_available() && ctx.size > 1 {
        let other = rank((ctx.rank + 1) % ctx.size);
        let shrink = ShrinkConfig::new([other]).with_config(wrong());
        refused("shrink", ctx.shrink(ctx.comm, shrink).map(drop))?;
    }
    Plan::new(Collective::AllReduce, DType::F32, 5).run(ctx)
}

pub(super) fn a_part_has_a_configuration_of_its_own<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let config = CommConfig::new().with_ctas(1..=2);
    let split = SplitConfig::new(0).with_name("small").with_config(config);
    let part = ctx.split(ctx.comm, split);
    let part = match part {
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            ctx.skip("the library is older than the fields of the configuration");
            return Ok(());
        }
        part => part?,
    };
    let Some(part) = part else { return check(false, "every rank has the colour") };
    check_eq("name", part.info().name.as_deref(), Some("small"))?;
    let sum = Plan::new(Collective::AllReduce, DType::F32, 33);
    sum.run_on(ctx, ctx.lane_of(&part, ctx.here.stream))?;
    Ok(ctx.finalize(part)?)
}

/// The ranks `0` and `size - 1` make an id each.
pub(super) fn several_ids_make_one_communicator<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let own = ctx.backend.unique_id()?;
    let ids = ctx.exchange(own.as_bytes())?;
    let id = |maker: usize| UniqueId::from_bytes(&*ids[maker]);
    let (first, last) = (id(0), id(ctx.size - 1));
    let join = ctx.join_config().with_more_ids([last.clone()]);
    let comm = ctx.join(&first, join)?;
    let sum = Plan::new(Collective::AllReduce, DType::F32, 33);
    sum.run_on(ctx, ctx.lane_of(&comm, ctx.here.stream))?;
    ctx.finalize(comm)?;
    let many = ctx.join_config().with_more_ids(vec![last; ctx.size]);
    let error = fails(ErrorKind::InvalidArgument, "join", ctx.join(&first, many).map(drop))?;
    check(error.message().contains("ids were given"), format!("{error} says what is wrong"))
}

pub(super) fn one_call_has_a_configuration_of_its_own<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let config =
        CallConfig::new().with_ctas(1..=4).with_cta_policy(CtaPolicy::DEFAULT).with_profiler_tag(7);
    let lane = ctx.lane().with_config(&config);
    let (root, sum) = (rank(0), ReduceOp::Sum);
    let memory = ctx.here.upload(&[ctx.rank as f32; 5])?;
    let (send, recv) = (memory.send(), memory.recv());
    lane.all_reduce(send, recv, sum)?;
    let want = (0..ctx.size).sum::<usize>() as f32;
    check_eq("the sum", ctx.here.read::<f32>(memory)?, vec![want; 5])?;
    let all = ctx.here.alloc(DType::F32, 5 * ctx.size)?;
    let wide = ctx.here.alloc(DType::F32, 5 * ctx.size)?;
    lane.all_gather(send, all.recv())?;
    check_eq("the parts", ctx.here.read::<f32>(all)?, vec![want; 5 * ctx.size])?;
    lane.all_to_all(all.send(), wide.recv())?;
    lane.gather(send, Some(all.recv()), root)?;
    lane.scatter(Some(all.send()), recv, root)?;
    lane.broadcast(Some(send), recv, root)?;
    check_eq("what came around", ctx.here.read::<f32>(memory)?, vec![want; 5])?;
    lane.reduce(send, Some(recv), sum, root)?;
    lane.reduce_scatter(wide.send(), recv, sum)?;
    let sums = vec![want * ctx.size as f32; 5];
    check_eq("the sums", ctx.here.read::<f32>(memory)?, sums)
}

pub(super) fn impossible_configurations_of_a_call_are_refused<B: Backend>(
    ctx: &Ctx<'_, B>,
) -> Outcome {
    let memory = ctx.here.alloc(DType::F32, 4)?;
    let (none, some) = (CallConfig::new().with_ctas(0..=4), CallConfig::new().with_ctas(1..=4));
    let lane = ctx.lane().with_config(&none);
    let call = lane.all_reduce(memory.send(), memory.recv(), ReduceOp::Sum);
    let error = fails(ErrorKind::InvalidArgument, "all_reduce", call)?;
    check(error.message().contains("ctas"), format!("{error} names the field"))?;
    if ctx.size > 1 {
        let peer = rank((ctx.rank + 1) % ctx.size);
        let call = ctx.lane().with_config(&some).send(memory.send(), peer);
        fails(ErrorKind::Unsupported, "send", call)?;
    }
    ctx.here.check_untouched(memory)?;
    Plan::new(Collective::AllReduce, DType::F32, 5).run(ctx)
}

pub(super) fn a_group_has_one_cluster_size<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let memory = ctx.here.upload(&[1_f32; 5])?;
    let sum = |lane: Lane<'_>| lane.all_reduce(memory.send(), memory.recv(), ReduceOp::Sum);
    let [one, two] = [1_u32, 2].map(|size| CallConfig::new().with_cga_cluster_size(size));
    let (plain, one, two) =
        (ctx.lane(), ctx.lane().with_config(&one), ctx.lane().with_config(&two));
    for (first, second, words) in [
        (two, one, "is 1, and 2 for the first"),
        (two, plain, "is not set, and 2 for the first"),
        (plain, two, "is 2, and not set for the first"),
    ] {
        let group = ctx.group(|| sum(first).and_then(|()| sum(second)));
        let error = fails(ErrorKind::InvalidArgument, "all_reduce", group)?;
        check(error.message().contains(words), format!("{error} names both"))?;
        check_eq("dropped with its group", ctx.here.read::<f32>(memory)?, vec![1.0; 5])?;
    }
    // No group knows of those before it.
    let apart = ctx.here.upload(&[2_f32; 5])?;
    ctx.group(|| {
        sum(two)?;
        two.all_reduce(apart.send(), apart.recv(), ReduceOp::Sum)
    })?;
    let size = ctx.size as f32;
    check_eq("one sum", ctx.here.read::<f32>(memory)?, vec![size; 5])?;
    check_eq("the other", ctx.here.read::<f32>(apart)?, vec![2.0 * size; 5])
}

pub(super) fn a_configured_call_is_captured<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let config = CallConfig::new().with_ctas(1..=2);
    let lane = ctx.lane().with_config(&config);
    let scratch = ctx.here.alloc(DType::F32, 2 * ctx.size)?;
    lane.warm_up(scratch.recv())?;
    let memory = ctx.here.upload(&[1_f32; 5])?;
    let graph = ctx.capture(ctx.here.stream, || {
        lane.all_reduce(memory.send(), memory.recv(), ReduceOp::Sum)?;
        Ok(ctx.group(|| lane.all_reduce(memory.send(), memory.recv(), ReduceOp::Sum))?)
    })?;
    graph.launch(ctx.here.stream)?;
    graph.launch(ctx.here.stream)?;
    let want = (ctx.size as f32).powi(4);
    check_eq("two sums, twice", ctx.here.read::<f32>(memory)?, vec![want; 5])
}

pub(super) fn keys_that_are_too_short_are_refused<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    for key in ["", "short", "a key of enough bytes with a NUL \0 in it"] {
        let set = ctx.backend.set_encryption(Some(key));
        let error = fails(ErrorKind::InvalidArgument, "set_encryption", set)?;
        check(key.is_empty() || !error.to_string().contains(key), "the key is not shown")?;
    }
    Ok(ctx.backend.set_encryption(None)?)
}
