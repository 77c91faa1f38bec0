//! Groups: all or nothing.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use collectives_core::{Backend, DType, Error, ErrorKind, GroupEnd, Result};

use crate::{
    check::{Failure, Outcome, check, check_eq, fails, refused},
    ctx::{Ctx, rank},
    inputs::Reduction,
    lane::Lane,
    plan::{Collective, Plan, Prepared},
    workspace::Memory,
};

pub(super) fn different_operations_start_together<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let mix = Mix::new(ctx, ctx.lane())?;
    ctx.group(|| mix.issue(ctx.lane()))?;
    mix.verify(ctx)
}

pub(super) fn raw_calls_make_a_group<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let mix = Mix::new(ctx, ctx.lane())?;
    ctx.lane().comm.group_start()?;
    mix.issue(ctx.lane())?;
    ctx.lane().comm.group_end()?;
    mix.verify(ctx)
}

pub(super) fn nested_groups_start_at_the_outermost_end<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let mix = Mix::new(ctx, ctx.lane())?;
    ctx.backend.group_start()?;
    ctx.group(|| ctx.group(|| mix.issue(ctx.lane())))?;
    mix.check_not_run(ctx)?;
    ctx.backend.group_end(GroupEnd::Launch)?;
    mix.verify(ctx)
}

pub(super) fn an_empty_group_does_nothing<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    ctx.group(|| Ok(()))?;
    ctx.group(|| ctx.group(|| Ok(())))?;
    works(ctx)
}

pub(super) fn a_simulated_group_launches_nothing<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let (mix, comm) = (Mix::new(ctx, ctx.lane())?, ctx.lane().comm);
    comm.group_start()?;
    mix.issue(ctx.lane())?;
    comm.group_simulate()?;
    check(!comm.in_group(), "the group is over")?;
    mix.check_not_run(ctx)?;
    fails(ErrorKind::InvalidUsage, "no group", comm.group_simulate())?;
    // Only the outermost group is one that could be launched.
    comm.group_start()?;
    comm.group_start()?;
    mix.issue(ctx.lane())?;
    fails(ErrorKind::InvalidUsage, "an inner group", comm.group_simulate())?;
    fails(ErrorKind::InvalidUsage, "the group around it", comm.group_end())?;
    mix.check_not_run(ctx)?;
    works(ctx)
}

pub(super) fn a_failing_closure_launches_nothing<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let mix = Mix::new(ctx, ctx.lane())?;
    let outcome: Result<()> = ctx.group(|| {
        mix.issue(ctx.lane())?;
        Err(Error::new(ErrorKind::System, "the closure's own"))
    });
    let error = fails(ErrorKind::System, "the group", outcome)?;
    check_eq("the error", error.message(), "the closure's own")?;
    mix.check_not_run(ctx)?;
    works(ctx)
}

pub(super) fn an_unwinding_closure_launches_nothing<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let mix = Mix::new(ctx, ctx.lane())?;
    let unwound = catch_unwind(AssertUnwindSafe(|| -> Result<()> {
        ctx.group(|| {
            mix.issue(ctx.lane())?;
            // Not `panic!`, whose message would be printed.
            resume_unwind(Box::new("unwinding"))
        })
    }));
    check(unwound.is_err(), "the unwinding reaches the caller")?;
    mix.check_not_run(ctx)?;
    works(ctx)
}

pub(super) fn an_ignored_refusal_launches_nothing<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    // First, last, and alone.
    for (before, after) in [(false, true), (true, false), (false, false)] {
        let mix = Mix::new(ctx, ctx.lane())?;
        let outcome = ctx.group(|| {
            if before {
                mix.issue(ctx.lane())?;
            }
            let _ = refused_call(ctx);
            if after {
                // Whether calls after a refusal fail at once is the backend's choice.
                let _ = mix.issue(ctx.lane());
            }
            Ok(())
        });
        let error = refused(ErrorKind::InvalidArgument, "the group", outcome)?;
        check_eq("operation", error.operation(), Some("all_gather"))?;
        mix.check_not_run(ctx)?;
        works(ctx)?;
    }
    Ok(())
}

pub(super) fn a_refusal_in_an_inner_group_drops_the_outer<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let mix = Mix::new(ctx, ctx.lane())?;
    let outcome = ctx.group(|| {
        mix.issue(ctx.lane())?;
        let _ = ctx.group(|| {
            let _ = refused_call(ctx);
            Ok(())
        });
        Ok(())
    });
    refused(ErrorKind::InvalidArgument, "the outer group", outcome)?;
    mix.check_not_run(ctx)?;
    works(ctx)
}

pub(super) fn the_first_refusal_is_returned<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let memory = ctx.here.alloc(DType::F32, 1)?;
    let outcome = ctx.group(|| {
        let _ = refused_call(ctx);
        let _ = ctx.lane().broadcast(None, memory.recv(), rank(ctx.size));
        Ok(())
    });
    let error = refused(ErrorKind::InvalidArgument, "the group", outcome)?;
    check_eq("operation", error.operation(), Some("all_gather"))?;
    works(ctx)
}

pub(super) fn a_dropped_group_of_two_communicators_launches_nothing<B: Backend>(
    ctx: &Ctx<'_, B>,
) -> Outcome {
    let second = ctx.join_again()?;
    let other = ctx.lane_of(&second, ctx.here.stream);
    let (mix, mix_of_other) = (Mix::new(ctx, ctx.lane())?, Mix::new(ctx, other)?);
    let outcome = ctx.group(|| {
        mix.issue(ctx.lane())?;
        mix_of_other.issue(other)?;
        let _ = refused_call(ctx);
        Ok(())
    });
    refused(ErrorKind::InvalidArgument, "the group", outcome)?;
    mix.check_not_run(ctx)?;
    mix_of_other.check_not_run(ctx)?;
    Plan::new(Collective::AllReduce, DType::F32, 33).run_on(ctx, other)?;
    works(ctx)?;
    Ok(ctx.finalize(second)?)
}

pub(super) fn an_end_without_a_start_is_refused<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    refused(ErrorKind::InvalidUsage, "Collectives::group_end", ctx.lane().comm.group_end())?;
    for end in [GroupEnd::Launch, GroupEnd::Discard] {
        let outcome = ctx.backend.group_end(end);
        refused(ErrorKind::InvalidUsage, format!("Backend::group_end({end:?})"), outcome)?;
    }
    works(ctx)
}

pub(super) fn two_communicators_share_a_group<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let second = ctx.join_again()?;
    let other = ctx.lane_of(&second, ctx.here.stream);
    let (mix, mix_of_other) = (Mix::new(ctx, ctx.lane())?, Mix::new(ctx, other)?);
    ctx.group(|| {
        mix.issue(ctx.lane())?;
        mix_of_other.issue(other)
    })?;
    mix.verify(ctx)?;
    mix_of_other.verify(ctx)?;
    Ok(ctx.finalize(second)?)
}

pub(super) fn an_operator_may_be_destroyed_before_the_group_ends<B: Backend>(
    ctx: &Ctx<'_, B>,
) -> Outcome {
    // Issuing makes the operator, uses it and destroys it.
    let scaled = Plan::new(Collective::AllReduce, DType::F32, 65)
        .with_reduction(Reduction::PreMulHost)
        .prepare::<B, f32>(ctx, ctx.lane(), ctx.seed)?;
    ctx.group(|| scaled.issue(ctx.lane()))?;
    scaled.verify(ctx)
}

pub(super) fn composites_of_a_dropped_group_launch_nothing<B: Backend>(
    ctx: &Ctx<'_, B>,
) -> Outcome {
    let lane = ctx.lane();
    let send = ctx.here.upload(&[1.0_f32])?;
    let recv = ctx.here.alloc(DType::F32, ctx.size)?;
    let outcome = ctx.group(|| {
        lane.all_gather_v(send.send(), recv.recv(), &vec![1; ctx.size])?;
        // A composite refuses before it opens its own group, but in this one.
        let _ = refused_call(ctx);
        Ok(())
    });
    refused(ErrorKind::InvalidArgument, "the group", outcome)?;
    ctx.here.check_untouched(recv)?;
    works(ctx)
}

/// Operations of different kinds, ready to be issued together: two collectives and a ring.
pub(super) struct Mix {
    sum: Prepared<f32>,
    gathered: Prepared<i32>,
    ring: Ring,
}

impl Mix {
    pub(super) fn new<B: Backend>(ctx: &Ctx<'_, B>, lane: Lane<'_>) -> Outcome<Self> {
        let sum = Plan::new(Collective::AllReduce, DType::F32, 1025);
        let gathered = Plan::new(Collective::AllGather, DType::I32, 33);
        Ok(Self {
            sum: sum.prepare(ctx, lane, ctx.seed)?,
            gathered: gathered.prepare(ctx, lane, ctx.seed)?,
            ring: Ring::new(ctx)?,
        })
    }

    /// To be called in a group: the ring's messages wait for each other.
    #[track_caller]
    pub(super) fn issue(&self, lane: Lane<'_>) -> Result<()> {
        self.sum.issue(lane)?;
        self.ring.issue(lane)?;
        self.gathered.issue(lane)
    }

    #[track_caller]
    pub(super) fn verify<B: Backend>(&self, ctx: &Ctx<'_, B>) -> Outcome {
        self.sum.verify(ctx).map_err(|failure| failure.during("all_reduce"))?;
        self.gathered.verify(ctx).map_err(|failure| failure.during("all_gather"))?;
        self.ring.verify(ctx, 0)
    }

    #[track_caller]
    pub(super) fn check_not_run<B: Backend>(&self, ctx: &Ctx<'_, B>) -> Outcome {
        self.sum.check_not_run(ctx)?;
        self.gathered.check_not_run(ctx)?;
        ctx.here.check_untouched(self.ring.received)
    }
}

/// A message from each rank to the next.
pub(super) struct Ring {
    rank: usize,
    size: usize,
    sent: Memory,
    received: Memory,
}

impl Ring {
    pub(super) fn new<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome<Self> {
        let ring = Self {
            rank: ctx.rank,
            size: ctx.size,
            sent: ctx.here.alloc(DType::I32, 2)?,
            received: ctx.here.alloc(DType::I32, 2)?,
        };
        ring.refill(ctx, 0)?;
        Ok(ring)
    }

    pub(super) fn refill<B: Backend>(&self, ctx: &Ctx<'_, B>, turn: i32) -> Outcome {
        ctx.here.write(self.sent, &[self.rank as i32, turn])
    }

    /// To be called in a group.
    #[track_caller]
    pub(super) fn issue(&self, lane: Lane<'_>) -> Result<()> {
        lane.send(self.sent.send(), rank((self.rank + 1) % self.size))?;
        lane.recv(self.received.recv(), rank((self.rank + self.size - 1) % self.size))
    }

    #[track_caller]
    pub(super) fn verify<B: Backend>(&self, ctx: &Ctx<'_, B>, turn: i32) -> Outcome {
        let previous = (self.rank + self.size - 1) % self.size;
        let got = ctx.here.read::<i32>(self.received)?;
        check_eq("message of the ring", got, vec![previous as i32, turn])
    }
}

/// A call whose counts do not fit.
#[track_caller]
fn refused_call<B: Backend>(ctx: &Ctx<'_, B>) -> Result<(), Failure> {
    let memory = ctx.here.alloc(DType::F32, 3 * ctx.size + 2)?;
    let (send, recv) = (memory.part(0, 1), memory.part(1, 2 * ctx.size + 1));
    refused(
        ErrorKind::InvalidArgument,
        "a call with a wrong count",
        ctx.lane().all_gather(send.send(), recv.recv()),
    )
    .map(drop)
}

fn works<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let mix = Mix::new(ctx, ctx.lane())?;
    ctx.group(|| mix.issue(ctx.lane()))?;
    mix.verify(ctx)
}
