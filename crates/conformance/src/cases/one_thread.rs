//! One thread that owns all ranks. Rank 0 does it; the others wait.

use std::thread;

use collectives_core::{Backend, Collectives, DType, Device, ErrorKind, JoinAllConfig, ReduceOp};

use crate::{
    check::{Failure, Outcome, check_eq, refused},
    ctx::{Ctx, rank},
    inputs::{Reduction, inputs},
    lane::Lane,
    oracle,
    plan::compare,
    workspace::{Memory, Workspace},
};

pub(super) fn drives_all_ranks<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    on_rank_0(ctx, |fleet| {
        for (ordinal, comm) in fleet.comms.iter().enumerate() {
            check_eq("rank", comm.info().rank, rank(ordinal))?;
            check_eq("size", comm.info().size, ctx.size)?;
            check_eq("device", comm.info().device, ctx.devices[ordinal])?;
        }
        for _ in 0..2 {
            let buffers = fleet.sum_buffers(ctx)?;
            ctx.group(|| {
                buffers.iter().enumerate().try_for_each(|(rank, (send, recv))| {
                    fleet.lane(ctx, rank).all_reduce(send.send(), recv.recv(), ReduceOp::Sum)
                })
            })?;
            fleet.verify_sum(ctx, &buffers)?;
        }
        Ok(())
    })
}

pub(super) fn drops_a_group_of_all_ranks<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    on_rank_0(ctx, |fleet| {
        let buffers = fleet.sum_buffers(ctx)?;
        let outcome = ctx.group(|| {
            for (rank, (send, recv)) in buffers.iter().enumerate() {
                fleet.lane(ctx, rank).all_reduce(send.send(), recv.recv(), ReduceOp::Sum)?;
            }
            let (send, recv) = buffers[0];
            let short = recv.part(0, COUNT - 1);
            let _ = fleet.lane(ctx, 0).all_reduce(send.send(), short.recv(), ReduceOp::Sum);
            Ok(())
        });
        refused(ErrorKind::InvalidArgument, "the group", outcome)?;
        for (space, (_, recv)) in fleet.spaces.iter().zip(&buffers) {
            space.check_untouched(*recv)?;
        }
        ctx.group(|| {
            buffers.iter().enumerate().try_for_each(|(rank, (send, recv))| {
                fleet.lane(ctx, rank).all_reduce(send.send(), recv.recv(), ReduceOp::Sum)
            })
        })?;
        fleet.verify_sum(ctx, &buffers)
    })
}

pub(super) fn exchanges_between_its_ranks<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    on_rank_0(ctx, |fleet| {
        let last = ctx.size - 1;
        let sent = fleet.spaces[0].upload(&[17_i32])?;
        let got = fleet.spaces[last].alloc(DType::I32, 1)?;
        ctx.group(|| {
            fleet.lane(ctx, 0).send(sent.send(), rank(last))?;
            fleet.lane(ctx, last).recv(got.recv(), rank(0))
        })?;
        check_eq("received", fleet.spaces[last].read::<i32>(got)?, vec![17])
    })
}

pub(super) fn is_refused_impossible_device_lists<B: Backend>(ctx: &Ctx<'_, B>) -> Outcome {
    let own = ctx.devices[ctx.rank];
    let lists = [vec![], vec![own, own], vec![ctx.backend.device_count()?]];
    for devices in lists {
        let what = format!("join_all on devices {devices:?}");
        let outcome = ctx.backend.join_all(JoinAllConfig::new(devices));
        refused(ErrorKind::InvalidArgument, what, outcome)?;
    }
    Ok(())
}

/// All ranks of a communicator, and a workspace for each.
struct Fleet<'w, B: Backend> {
    comms: Vec<B::Comm>,
    spaces: Vec<Workspace<'w, B::Device>>,
}

impl<'w, B: Backend> Fleet<'w, B> {
    fn lane<'a>(&'a self, ctx: &'a Ctx<'w, B>, rank: usize) -> Lane<'a> {
        ctx.lane_of(&self.comms[rank], self.spaces[rank].stream)
    }

    fn sum_buffers(&self, ctx: &Ctx<'_, B>) -> Outcome<Vec<(Memory, Memory)>> {
        let pair = |(rank, space): (usize, &Workspace<'w, B::Device>)| {
            let values = inputs::<f32>(Some(Reduction::Sum), ctx.seed, rank, ctx.size, COUNT);
            Ok((space.upload(&values)?, space.alloc(DType::F32, COUNT)?))
        };
        self.spaces.iter().enumerate().map(pair).collect()
    }

    fn verify_sum(&self, ctx: &Ctx<'_, B>, buffers: &[(Memory, Memory)]) -> Outcome {
        let of = |rank| inputs::<f32>(Some(Reduction::Sum), ctx.seed, rank, ctx.size, COUNT);
        let want = oracle::reduce(&(0..ctx.size).map(of).collect::<Vec<_>>(), Reduction::Sum);
        for (rank, (space, (_, recv))) in self.spaces.iter().zip(buffers).enumerate() {
            compare("received", &space.read::<f32>(*recv)?, &want, 0)
                .map_err(|failure| failure.during(format!("rank {rank}")))?;
        }
        Ok(())
    }
}

/// Joins all ranks on one thread, runs `body`, and finalizes each from a thread of its own.
fn on_rank_0<B: Backend>(ctx: &Ctx<'_, B>, body: impl FnOnce(&Fleet<'_, B>) -> Outcome) -> Outcome {
    if ctx.rank == 0 {
        let comms = ctx.backend.join_all(JoinAllConfig::new(ctx.devices))?;
        check_eq("number of communicators", comms.len(), ctx.size)?;
        comms.iter().for_each(|comm| ctx.guard(comm));
        let spaces = (0..ctx.size).map(|rank| ctx.elsewhere(rank)).collect::<Outcome<_>>()?;
        let fleet = Fleet { comms, spaces };
        body(&fleet)?;
        fleet.spaces.iter().try_for_each(settle)?;
        thread::scope(|scope| {
            let threads: Vec<_> = fleet
                .comms
                .into_iter()
                .map(|comm| scope.spawn(|| Box::new(comm).finalize()))
                .collect();
            threads.into_iter().try_for_each(|thread| match thread.join() {
                Ok(finalized) => Ok(finalized?),
                Err(payload) => Err(Failure::panic(&*payload)),
            })
        })?;
    }
    ctx.meet()
}

fn settle<D: Device>(space: &Workspace<'_, D>) -> Outcome {
    space.settle()
}

const COUNT: usize = 1025;
