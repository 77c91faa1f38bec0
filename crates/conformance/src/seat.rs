//! The life of a rank, on a thread or in a process of its own: it joins, runs cases as it is told,
//! and takes leave.

use std::panic::{AssertUnwindSafe, catch_unwind};

use collectives_core::{Backend, Collectives, Device, JoinConfig, RawStream, UniqueId};

use crate::{
    cases::cases,
    check::{End, Failure, Outcome},
    ctx::{Ctx, rank},
    post::{Order, Post, Report},
};

/// One rank of a world.
pub(crate) struct Seat<B: Backend> {
    pub(crate) backend: B,
    /// The device of each rank.
    pub(crate) devices: Vec<usize>,
    pub(crate) post: Post,
}

/// What a rank keeps from case to case.
struct Joined<B: Backend> {
    device: B::Device,
    stream: RawStream,
    comm: B::Comm,
}

impl<B: Backend> Seat<B> {
    /// Serves until the world closes.
    pub(crate) fn serve(self) {
        let joined = attempt(|| self.join());
        let (joined, outcome) = match joined {
            Ok(joined) => (Some(joined), Ok(End::Complete)),
            Err(failure) => (None, Err(failure)),
        };
        self.done(outcome);
        while let Ok(order) = self.post.orders.recv() {
            match (order, &joined) {
                (Order::Run { case, seed }, Some(joined)) => {
                    self.post.watch.begin();
                    let outcome = attempt(|| self.run(joined, &case, seed));
                    self.done(outcome);
                }
                _ => break,
            }
        }
        self.post.watch.begin();
        let outcome = joined.map_or(Ok(()), |joined| attempt(|| leave(joined)));
        self.done(outcome.map(|()| End::Complete));
    }

    fn join(&self) -> Outcome<Joined<B>> {
        let Self { backend, devices, post } = self;
        let own =
            if post.rank == 0 { backend.unique_id()?.as_bytes().to_vec() } else { Vec::new() };
        let id = UniqueId::from_bytes(post.all_gather(own)?.swap_remove(0));
        let device = backend.device(devices[post.rank])?;
        let stream = device.stream_create()?;
        let config = JoinConfig::new(rank(post.rank), devices.len())
            .with_device(devices[post.rank])
            .with_name("world");
        Ok(Joined { device, stream, comm: backend.join(&id, config)? })
    }

    fn run(&self, joined: &Joined<B>, case: &str, seed: u64) -> Outcome<End> {
        let Joined { device, stream, comm } = joined;
        self.post.watch.guard(comm.abort_handle());
        let known = cases::<B>().into_iter().find(|known| known.name == case);
        let case = known.ok_or_else(|| Failure::new(format!("there is no case '{case}'")))?;
        let ctx = Ctx::new(&self.backend, comm, &self.devices, device, *stream, seed, &self.post);
        (case.run)(&ctx)?;
        ctx.here.settle().map_err(|failure| failure.during("after the case"))?;
        Ok(ctx.end())
    }

    fn done(&self, outcome: Outcome<End>) {
        (self.post.report)(Report::Done(outcome));
    }
}

fn leave<B: Backend>(joined: Joined<B>) -> Outcome {
    let Joined { device, stream, comm } = joined;
    drop(comm);
    // SAFETY: the stream was made by `join`, and nothing uses it any more.
    Ok(unsafe { device.stream_destroy(stream) }?)
}

fn attempt<T>(body: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|payload| Err(Failure::panic(&*payload)))
}
