//! What a backend says of itself.

use std::collections::BTreeSet;

use collectives_core::{
    Backend, CallConfig, Collectives, DType, ErrorKind, GrowConfig, JoinConfig, RawWindow,
    ReduceOp, SendBuf, ShrinkConfig, SignalWait, Support, WindowFlags,
};

use crate::{
    check::{Outcome, check, check_eq, refused},
    ctx::{Ctx, rank},
    inputs::Reduction,
    number::with_element,
    plan::{Collective, Plan, Prepared},
};

pub(super) fn backend_and_communicator_agree<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    check_eq("capabilities", ctx.comm.capabilities(), ctx.backend.capabilities())?;
    check_eq("library", &ctx.comm.info().library, ctx.backend.info())?;
    let clone = ctx.backend.clone();
    check_eq("library of a clone", clone.info(), ctx.backend.info())
}

pub(super) fn parameters_have_distinct_names<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let parameters = ctx.backend.parameters()?;
    check(!parameters.is_empty(), "there are some")?;
    let names: BTreeSet<&str> = parameters.iter().map(|(name, _)| name.as_str()).collect();
    check_eq("distinct names", names.len(), parameters.len())?;
    check(names.iter().all(|name| !name.is_empty()), "they are named")
}

pub(super) fn what_is_missing_is_refused<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let has = ctx.backend.capabilities();
    let plan = |collective| Plan::new(collective, DType::F32, 8);
    let sum = |dtype| Plan::new(Collective::AllReduce, dtype, 8);
    let gated: [(Support, Plan); 14] = [
        (has.all_gather, plan(Collective::AllGather)),
        (has.all_reduce, plan(Collective::AllReduce)),
        (has.all_to_all, plan(Collective::AllToAll)),
        (has.broadcast, plan(Collective::Broadcast)),
        (has.gather, plan(Collective::Gather)),
        (has.reduce, plan(Collective::Reduce)),
        (has.reduce_scatter, plan(Collective::ReduceScatter)),
        (has.scatter, plan(Collective::Scatter)),
        (has.reduce_avg, sum(DType::F32).with_reduction(Reduction::Avg)),
        (has.reduce_pre_mul_sum, sum(DType::F32).with_reduction(Reduction::PreMulHost)),
        (has.dtype_bf16, sum(DType::Bf16)),
        (has.dtype_f8e4m3, Plan::new(Collective::AllGather, DType::F8E4M3, 8)),
        (has.dtype_f8e5m2, Plan::new(Collective::AllGather, DType::F8E5M2, 8)),
        (has.reduce_f8, sum(DType::F8E4M3)),
    ];
    for (support, plan) in gated {
        if !support.is_available() {
            with_element!(plan.dtype, T => {
                let call: Prepared<T> = plan.prepare(ctx, ctx.lane(), ctx.seed)?;
                refused(ErrorKind::Unsupported, plan, call.issue(ctx.lane()))?;
            });
        }
    }
    if !has.shrink.is_available() {
        let without = ShrinkConfig::new([rank((ctx.rank + 1) % ctx.size)]);
        refused(ErrorKind::Unsupported, "shrink", ctx.shrink(ctx.comm, without))?;
    }
    if !has.grow.is_available() {
        let (size, id) = (ctx.size + 1, ctx.backend.unique_id()?);
        let config = JoinConfig::new(rank(ctx.size), size).with_device(ctx.devices[ctx.rank]);
        refused(ErrorKind::Unsupported, "grow_id", ctx.comm.grow_id())?;
        refused(ErrorKind::Unsupported, "grow", ctx.grow(ctx.comm, GrowConfig::new(size)))?;
        refused(ErrorKind::Unsupported, "join_grown", ctx.join_grown(&id, config))?;
    }
    if !has.group_simulate.is_available() {
        ctx.comm.group_start()?;
        refused(ErrorKind::Unsupported, "group_simulate", ctx.comm.group_simulate())?;
    }
    if !has.parameters.is_available() {
        refused(ErrorKind::Unsupported, "parameters", ctx.backend.parameters())?;
    }
    if !has.suspend.is_available() {
        refused(ErrorKind::Unsupported, "suspend", ctx.comm.suspend())?;
        refused(ErrorKind::Unsupported, "resume", ctx.comm.resume())?;
    }
    if !has.memory_use.is_available() {
        refused(ErrorKind::Unsupported, "memory_use", ctx.comm.memory_use())?;
    }
    if !has.join_many_ids.is_available() && ctx.size > 1 {
        let id = ctx.backend.unique_id()?;
        let config = ctx.join_config().with_more_ids([id.clone()]);
        refused(ErrorKind::Unsupported, "join", ctx.join(&id, config))?;
    }
    let (base, bytes) = ctx.here.alloc(DType::F32, 4096)?.allocation();
    if !has.window_register.is_available() {
        let call = ctx.lane().window_register(base, bytes, WindowFlags::SYMMETRIC);
        refused(ErrorKind::Unsupported, "window_register", call)?;
    }
    if !has.call_config.is_available() {
        let (memory, config) = (ctx.here.alloc(DType::F32, 4)?, CallConfig::new().with_ctas(1..=4));
        let lane = ctx.lane().with_config(&config);
        let call = lane.all_reduce(memory.send(), memory.recv(), ReduceOp::Sum);
        refused(ErrorKind::Unsupported, "all_reduce", call)?;
    }
    if !has.encryption.is_available() {
        let call = ctx.backend.set_encryption(Some("a key that has more than 32 bytes"));
        refused(ErrorKind::Unsupported, "set_encryption", call)?;
    }
    if !has.put_signal.is_available() {
        let (peer, window) = (rank((ctx.rank + 1) % ctx.size), RawWindow::from_ptr(base));
        let send = SendBuf::new(base, 4, DType::F32);
        let waits = [SignalWait::new(peer)];
        let put = ctx.lane().put_signal(send, peer, window, 0);
        refused(ErrorKind::Unsupported, "put_signal", put)?;
        refused(ErrorKind::Unsupported, "signal", ctx.lane().signal(peer))?;
        refused(ErrorKind::Unsupported, "wait_signal", ctx.lane().wait_signal(&waits))?;
    }
    if !has.window_ptr.is_available() {
        let call = ctx.lane().window_ptr(RawWindow::from_ptr(base));
        refused(ErrorKind::Unsupported, "window_ptr", call)?;
    }
    if !has.revoke.is_available() {
        refused(ErrorKind::Unsupported, "revoke", ctx.revoke(ctx.comm))?;
    }
    Plan::new(Collective::AllReduce, DType::F32, 8).run(ctx)
}
