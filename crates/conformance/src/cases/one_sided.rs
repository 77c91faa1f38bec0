//! Writing to a peer's memory, and signals.
//!
//! On systems without windows that can be put to, all ranks are told so, and the case is skipped.

use collectives_core::{Backend, Collectives, DType, ErrorKind, Rank, RawWindow, SignalWait};

use crate::{
    cases::windows,
    check::{Outcome, check, check_eq, fails},
    ctx::{Ctx, rank},
    inputs::inputs,
    plan::{Collective, Plan, compare},
    workspace::Memory,
};

pub(super) fn what_is_put_arrives_with_its_signal<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    with_window(ctx, |window| {
        for round in 0..3 {
            let values = |rank| inputs::<f32>(None, ctx.seed + round, rank, ctx.size, COUNT);
            let (to, from) = neighbours(ctx);
            ctx.here.write(window.send, &values(ctx.rank))?;
            window.put(ctx, to, 0)?;
            ctx.lane().wait_signal(&[SignalWait::new(from)])?;
            let got = ctx.here.read::<f32>(window.slot(0))?;
            compare("what was put", &got, &values(from.index()), 0)?;
            // The next round writes there.
            ctx.meet()?;
        }
        Ok(())
    })
}

pub(super) fn a_put_waits_for_nobody<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    with_window(ctx, |window| {
        let values = |rank| inputs::<f32>(None, ctx.seed, rank, ctx.size, COUNT);
        let (to, from) = neighbours(ctx);
        ctx.here.write(window.send, &values(ctx.rank))?;
        window.put(ctx, to, 0)?;
        // It is done before anybody waits for its signal.
        ctx.here.synchronize()?;
        ctx.meet()?;
        ctx.lane().wait_signal(&[SignalWait::new(from)])?;
        let got = ctx.here.read::<f32>(window.slot(0))?;
        compare("what was put", &got, &values(from.index()), 0)
    })
}

pub(super) fn signals_count<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    with_window(ctx, |_| {
        let (to, from) = neighbours(ctx);
        for _ in 0..5 {
            ctx.lane().signal(to)?;
        }
        ctx.lane().wait_signal(&[SignalWait::new(from).with_count(3)])?;
        ctx.lane().wait_signal(&[SignalWait::new(from), SignalWait::new(from)])?;
        Ok(ctx.here.synchronize()?)
    })
}

pub(super) fn every_rank_puts_to_every_other<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    with_window(ctx, |window| {
        let values = |rank| inputs::<f32>(None, ctx.seed, rank, ctx.size, COUNT);
        ctx.here.write(window.send, &values(ctx.rank))?;
        let others = || (0..ctx.size).filter(|&other| other != ctx.rank);
        for other in others() {
            window.put(ctx, rank(other), ctx.rank)?;
        }
        let waits: Vec<_> = others().map(|other| SignalWait::new(rank(other))).collect();
        ctx.lane().wait_signal(&waits)?;
        for other in others() {
            let got = ctx.here.read::<f32>(window.slot(other))?;
            compare("what was put", &got, &values(other), 0)?;
        }
        Ok(())
    })
}

pub(super) fn signals_and_messages_do_not_mix<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    with_window(ctx, |window| {
        let values = |rank| inputs::<f32>(None, ctx.seed, rank, ctx.size, COUNT);
        let (to, from) = neighbours(ctx);
        ctx.here.write(window.send, &values(ctx.rank))?;
        let got = ctx.here.alloc(DType::F32, COUNT)?;
        ctx.lane().signal(to)?;
        ctx.lane().send_recv(window.send.send(), to, got.recv(), from)?;
        ctx.lane().wait_signal(&[SignalWait::new(from)])?;
        compare("the message", &ctx.here.read::<f32>(got)?, &values(from.index()), 0)
    })
}

pub(super) fn impossible_calls_are_refused<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    with_window(ctx, |window| {
        let lane = ctx.lane();
        let (itself, outside) = (rank(ctx.rank), rank(ctx.size));
        let kind = ErrorKind::InvalidArgument;
        for peer in [itself, outside] {
            fails(kind, "put_signal", window.put(ctx, peer, 0))?;
            fails(kind, "signal", lane.signal(peer))?;
            fails(kind, "wait_signal", lane.wait_signal(&[SignalWait::new(peer)]))?;
        }
        fails(kind, "wait_signal", lane.wait_signal(&[]))?;
        if ctx.size > 1 {
            let (to, _) = neighbours(ctx);
            let none = SignalWait::new(to).with_count(0);
            fails(kind, "wait_signal", lane.wait_signal(&[none]))?;
        }
        Plan::new(Collective::AllReduce, DType::F32, 5).run(ctx)
    })
}

pub(super) fn inside_a_group_it_is_refused<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    with_window(ctx, |_| {
        let (to, _) = neighbours(ctx);
        let error = fails(ErrorKind::InvalidUsage, "group", ctx.group(|| ctx.lane().signal(to)))?;
        check(!error.poisons_communicator(), "nothing happened")?;
        Plan::new(Collective::AllReduce, DType::F32, 5).run(ctx)
    })
}

/// A window with memory to put from, and room for what each rank puts.
struct Window {
    raw: RawWindow,
    memory: Memory,
    send: Memory,
}

impl Window {
    /// Puts this rank's numbers into a slot of a peer's.
    #[track_caller]
    fn put<B: Backend>(
        &self,
        ctx: &Ctx<'_, B>,
        peer: Rank,
        slot: usize,
    ) -> Result<(), collectives_core::Error> {
        let (base, _) = self.memory.allocation();
        let offset = self.slot(slot).ptr().addr() - base.addr();
        ctx.lane().put_signal(self.send.send(), peer, self.raw, offset)
    }

    fn slot(&self, index: usize) -> Memory {
        self.memory.part((1 + index) * COUNT, COUNT)
    }
}

fn with_window<B: Backend>(ctx: &Ctx<'_, B>, body: impl FnOnce(&Window) -> Outcome) -> Outcome {
    let count = (1 + ctx.size) * COUNT;
    let base = ctx.lane().comm.mem_alloc(Memory::bytes_for(DType::F32, count))?;
    let memory = ctx.here.adopt(base, DType::F32, count)?;
    ctx.here.synchronize()?;
    ctx.meet()?;
    let Some(raw) = windows::register(ctx, ctx.lane(), memory.allocation())? else {
        return ctx.lane().free(memory);
    };
    let window = Window { raw, memory, send: memory.part(0, COUNT) };
    match can_signal(ctx)? {
        true => body(&window)?,
        false => ctx.skip("the system has no signals"),
    }
    ctx.here.synchronize()?;
    ctx.meet()?;
    ctx.lane().window_deregister(raw)?;
    ctx.meet()?;
    ctx.lane().free(memory)
}

/// Whether the system has signals, which only the first one tells.
fn can_signal<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome<bool> {
    if ctx.size == 1 || ctx.comm.info().library.backend == "mock" {
        return Ok(true);
    }
    let (to, from) = neighbours(ctx);
    let can = match ctx.lane().signal(to) {
        Ok(()) => true,
        Err(error) if error.vendor_code().is_some() => false,
        Err(error) => return Err(error.into()),
    };
    let all = ctx.exchange(&[u8::from(can)])?;
    check_eq("whether all ranks can signal", all.iter().all(|one| *one == all[0]), true)?;
    if can {
        ctx.lane().wait_signal(&[SignalWait::new(from)])?;
    }
    Ok(can)
}

/// The ranks that this one puts to, and hears of.
fn neighbours<B: Backend>(ctx: &Ctx<'_, B>) -> (Rank, Rank) {
    (rank((ctx.rank + 1) % ctx.size), rank((ctx.rank + ctx.size - 1) % ctx.size))
}

const COUNT: usize = 1009;
