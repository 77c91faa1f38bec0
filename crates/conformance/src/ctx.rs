//! What a case is given: its rank, a joined communicator, a device, and a way to reach the other
//! ranks.

use std::cell::Cell;

use collectives_core::{
    Backend, BackendExt, Collectives, Device, Error, GrowConfig, JoinConfig, Rank, RawStream,
    ShrinkConfig, Split, SplitConfig, UniqueId,
};

use crate::{
    check::{End, Outcome},
    lane::Lane,
    post::Post,
    workspace::{Graph, Workspace},
};

/// What a case is given, once per rank.
pub(crate) struct Ctx<'w, B: Backend> {
    pub(crate) rank: usize,
    pub(crate) size: usize,
    pub(crate) seed: u64,
    pub(crate) backend: &'w B,
    /// The communicator of all ranks. Other cases use it too, so none ends it.
    pub(crate) comm: &'w B::Comm,
    /// The device of each rank.
    pub(crate) devices: &'w [usize],
    /// This rank's device, a stream, and the memory of this case.
    pub(crate) here: Workspace<'w, B::Device>,
    post: &'w Post,
    /// What the system lacks.
    lack: Cell<Option<&'static str>>,
}

impl<'w, B: Backend> Ctx<'w, B> {
    pub(crate) fn new(
        backend: &'w B,
        comm: &'w B::Comm,
        devices: &'w [usize],
        device: &B::Device,
        stream: RawStream,
        seed: u64,
        post: &'w Post,
    ) -> Self {
        let info = comm.info();
        let rank = info.rank.index();
        Self {
            rank,
            size: info.size,
            seed,
            backend,
            comm,
            devices,
            here: Workspace::new(device.clone(), stream, &post.watch.calls),
            post,
            lack: Cell::new(None),
        }
    }

    /// Makes the case, when it ends, one that was skipped, as the system lacks what it needs.
    ///
    /// For what no capability tells, but only trying. Every rank has to come to the same.
    pub(crate) fn skip(&self, lack: &'static str) {
        self.lack.set(Some(lack));
    }

    /// How the case has ended.
    pub(crate) fn end(&self) -> End {
        self.lack.get().map_or(End::Complete, |lack| End::Skipped(lack.into()))
    }

    /// Gives `bytes` to every rank and receives theirs, in rank order. All that ranks share.
    #[track_caller]
    pub(crate) fn exchange(&self, bytes: &[u8]) -> Outcome<Vec<Vec<u8>>> {
        self.here.calls.note("exchange");
        self.post.all_gather(bytes.to_vec())
    }

    /// Waits for every rank, without a library.
    ///
    /// Cases call it between the end of a communicator and the next collective: ending one frees
    /// device memory, which on CUDA may wait for the kernels of the process's other ranks.
    #[track_caller]
    pub(crate) fn meet(&self) -> Outcome {
        self.exchange(&[]).map(drop)
    }

    /// The communicator of all ranks, on this rank's stream.
    pub(crate) fn lane(&self) -> Lane<'_> {
        self.lane_of(self.comm, self.here.stream)
    }

    pub(crate) fn lane_of<'a>(&'a self, comm: &'a dyn Collectives, stream: RawStream) -> Lane<'a> {
        Lane::new(comm, stream, self.here.calls)
    }

    /// An id that rank 0 made, on every rank.
    #[track_caller]
    pub(crate) fn shared_id(&self) -> Outcome<UniqueId> {
        self.here.calls.note("unique_id");
        let own =
            if self.rank == 0 { self.backend.unique_id()?.as_bytes().to_vec() } else { vec![] };
        Ok(UniqueId::from_bytes(self.exchange(&own)?.swap_remove(0)))
    }

    /// How this rank joins.
    pub(crate) fn join_config(&self) -> JoinConfig {
        JoinConfig::new(rank(self.rank), self.size).with_device(self.devices[self.rank])
    }

    /// A communicator of all ranks that this case may end.
    #[track_caller]
    pub(crate) fn join_again(&self) -> Outcome<B::Comm> {
        let id = self.shared_id()?;
        Ok(self.join(&id, self.join_config())?)
    }

    #[track_caller]
    pub(crate) fn join(&self, id: &UniqueId, config: JoinConfig) -> Result<B::Comm, Error> {
        self.here.calls.note("join");
        self.backend.join(id, config).inspect(|comm| self.guard(comm))
    }

    #[track_caller]
    pub(crate) fn split(
        &self,
        comm: &B::Comm,
        config: SplitConfig,
    ) -> Result<Option<B::Comm>, Error> {
        self.here.calls.note("split");
        let child = comm.split(config)?;
        child.iter().for_each(|child| self.guard(child));
        Ok(child)
    }

    #[track_caller]
    pub(crate) fn shrink(&self, comm: &B::Comm, config: ShrinkConfig) -> Result<B::Comm, Error> {
        self.here.calls.note("shrink");
        comm.shrink(config).inspect(|child| self.guard(child))
    }

    #[track_caller]
    pub(crate) fn grow(&self, comm: &B::Comm, config: GrowConfig) -> Result<B::Comm, Error> {
        self.here.calls.note("grow");
        comm.grow(config).inspect(|grown| self.guard(grown))
    }

    #[track_caller]
    pub(crate) fn join_grown(&self, id: &UniqueId, config: JoinConfig) -> Result<B::Comm, Error> {
        self.here.calls.note("join_grown");
        self.backend.join_grown(id, config).inspect(|grown| self.guard(grown))
    }

    #[track_caller]
    pub(crate) fn revoke(&self, comm: &B::Comm) -> Result<(), Error> {
        self.here.calls.note("revoke");
        comm.revoke()
    }

    /// Flushes and ends a communicator of this case.
    #[track_caller]
    pub(crate) fn finalize(&self, comm: B::Comm) -> Result<(), Error> {
        self.here.calls.note("finalize");
        Box::new(comm).finalize()
    }

    /// Lets the runner abort `comm` if another rank fails and this one waits for it.
    pub(crate) fn guard(&self, comm: &dyn Collectives) {
        self.post.watch.guard(comm.abort_handle());
    }

    #[track_caller]
    pub(crate) fn group<R>(&self, body: impl FnOnce() -> Result<R, Error>) -> Result<R, Error> {
        self.here.calls.note("group");
        self.backend.group(|_| body())
    }

    /// Another device, driven by this thread.
    pub(crate) fn elsewhere(&self, rank: usize) -> Outcome<Workspace<'w, B::Device>> {
        let device = self.backend.device(self.devices[rank])?;
        let stream = device.stream_create()?;
        Ok(Workspace::owning_stream(device, stream, self.here.calls))
    }

    /// Records what `body` enqueues on `stream` into a graph.
    #[track_caller]
    pub(crate) fn capture(
        &self,
        stream: RawStream,
        body: impl FnOnce() -> Outcome,
    ) -> Outcome<Graph<'_, B::Device>> {
        self.here.begin_capture(stream)?;
        let outcome = body();
        // Also after a failure, since the stream would go on capturing.
        let graph = self.here.end_capture(stream);
        outcome?;
        graph
    }
}

/// The rank at an index.
pub(crate) fn rank(index: usize) -> Rank {
    Rank::new(u32::try_from(index).expect("a world has few ranks"))
}
