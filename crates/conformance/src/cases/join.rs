//! Joining, and what is refused there.

use std::{sync::mpsc, thread, time::Duration};

use collectives_core::{Backend, Collectives, DType, ErrorKind, JoinConfig, UniqueId};

use crate::{
    check::{Failure, Outcome, check, check_eq, fails, refused},
    ctx::{Ctx, rank},
    plan::{Collective, Plan},
};

pub(super) fn a_rank_outside_the_size_is_refused<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let config = JoinConfig::new(rank(ctx.size), ctx.size).with_device(ctx.devices[ctx.rank]);
    let outcome = ctx.join(&ctx.backend.unique_id()?, config);
    refused(ErrorKind::InvalidArgument, "a rank outside the size", outcome)?;
    can_still_join(ctx)
}

pub(super) fn a_size_of_zero_is_refused<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let config = JoinConfig::new(rank(0), 0).with_device(ctx.devices[ctx.rank]);
    let outcome = ctx.join(&ctx.backend.unique_id()?, config);
    refused(ErrorKind::InvalidArgument, "a size of zero", outcome)?;
    can_still_join(ctx)
}

pub(super) fn a_missing_device_is_refused<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let config = ctx.join_config().with_device(ctx.backend.device_count()?);
    let outcome = ctx.join(&ctx.backend.unique_id()?, config);
    refused(ErrorKind::InvalidArgument, "a device that is not there", outcome)?;
    can_still_join(ctx)
}

pub(super) fn an_id_of_the_wrong_length_is_refused<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let right = ctx.backend.unique_id()?.as_bytes().len();
    for length in [0, 3, right - 1, right + 1] {
        let id = UniqueId::from_bytes(vec![7; length]);
        let outcome = ctx.join(&id, ctx.join_config());
        refused(ErrorKind::InvalidArgument, format!("an id of {length} bytes"), outcome)?;
    }
    can_still_join(ctx)
}

pub(super) fn ids_differ_and_travel_as_text<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let (one, two) = (ctx.backend.unique_id()?, ctx.backend.unique_id()?);
    check(one != two, "each id is new")?;
    let text = ctx.exchange(one.to_base64().as_bytes())?.swap_remove(0);
    let id: UniqueId = String::from_utf8_lossy(&text).parse()?;
    let comm = ctx.join(&id, ctx.join_config())?;
    works(ctx, &comm)?;
    Ok(ctx.finalize(comm)?)
}

pub(super) fn a_deadline_is_no_hindrance<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let config = ctx.join_config().with_deadline(Duration::from_secs(60));
    let comm = ctx.join(&ctx.shared_id()?, config)?;
    check_eq("size", comm.info().size, ctx.size)?;
    works(ctx, &comm)?;
    Ok(ctx.finalize(comm)?)
}

pub(super) fn a_missing_rank_is_a_timeout<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let id = ctx.shared_id()?;
    if ctx.rank + 1 < ctx.size {
        let config = ctx.join_config().with_deadline(Duration::from_millis(500));
        let error = fails(ErrorKind::Timeout, "joining without one rank", ctx.join(&id, config))?;
        check(!error.is_caller_bug(), "a missing rank is not this caller's bug")?;
    }
    ctx.meet()?;
    can_still_join(ctx)
}

/// NCCL itself would let all ranks wait for ever, the right ones too.
pub(super) fn a_second_thread_of_one_rank_is_refused<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    if ctx.rank == 0 {
        let (backend, id) = (ctx.backend, ctx.backend.unique_id()?);
        let config = |index: usize| part(ctx, index, 2).with_deadline(Duration::from_secs(60));
        let (sender, outcomes) = mpsc::channel();
        thread::scope(|scope| -> Outcome {
            for sender in [sender.clone(), sender] {
                let (id, config) = (&id, config(0));
                // Nobody listens any more if the case has failed.
                scope.spawn(move || sender.send(backend.join(id, config).map(drop)));
            }
            let next = || outcomes.recv().map_err(|_| Failure::new("a thread was lost"));
            // Whichever is the second.
            refused(ErrorKind::InvalidArgument, "joining as a rank that joins", next()?)?;
            // The first still waits for the other rank.
            drop(ctx.join(&id, config(1))?);
            Ok(next()??)
        })?;
    }
    ctx.meet()?;
    can_still_join(ctx)
}

pub(super) fn another_size_is_refused<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let mut was_refused = ctx.rank != 0;
    let mut attempts = 0..20;
    while !was_refused && attempts.next().is_some() {
        let (backend, id) = (ctx.backend, ctx.backend.unique_id()?);
        let config = |index, size| part(ctx, index, size).with_deadline(Duration::from_millis(500));
        let outcomes = thread::scope(|scope| {
            let (id, odd) = (&id, config(1, 3));
            let other = scope.spawn(move || backend.join(id, odd).map(drop));
            [ctx.join(id, config(0, 2)).map(drop), other.join().unwrap_or(Ok(()))]
        });
        for outcome in outcomes {
            match outcome {
                Err(error) if error.kind() == ErrorKind::InvalidArgument => was_refused = true,
                // The first, where the second alone is refused; both, where they missed each other.
                outcome => {
                    drop(fails(ErrorKind::Timeout, "joining with half of the ranks", outcome)?)
                }
            }
        }
    }
    check(was_refused, "who joins by an id with another size than others is refused")?;
    ctx.meet()?;
    can_still_join(ctx)
}

pub(super) fn an_id_is_good_for_one_communicator<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let id = ctx.shared_id()?;
    let again = |when| {
        let outcome = ctx.join(&id, ctx.join_config());
        refused(ErrorKind::InvalidUsage, format!("an id whose communicator {when}"), outcome)
    };
    let comm = ctx.join(&id, ctx.join_config())?;
    again("lives")?;
    works(ctx, &comm)?;
    ctx.finalize(comm)?;
    again("has ended")?;
    ctx.meet()?;
    can_still_join(ctx)
}

/// How a rank of so many joins, which this process has for it.
fn part<B: Backend>(ctx: &Ctx<'_, B>, index: usize, size: usize) -> JoinConfig {
    JoinConfig::new(rank(index), size).with_device(ctx.devices[index])
}

fn can_still_join<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let comm = ctx.join_again()?;
    works(ctx, &comm)?;
    ctx.finalize(comm)?;
    ctx.meet()?;
    works(ctx, ctx.comm)
}

fn works<B: Backend>(ctx: &Ctx<'_, B>, comm: &dyn Collectives) -> Outcome {
    let lane = ctx.lane_of(comm, ctx.here.stream);
    Plan::new(Collective::AllReduce, DType::F32, 65).run_on(ctx, lane)
}
