//! This process as one rank of those that a launcher started, as nccl-tests under `mpirun`.
//!
//! Every process makes the same plan from the same arguments. What ranks tell each other while they
//! measure goes through a communicator of its own, as it is fast and lets them go at one moment: a
//! barrier before the clock starts, and a sum of what they found. Rank 0 prints.

use std::{
    sync::{
        Arc,
        mpsc::{self, Receiver, Sender},
    },
    thread,
};

use collectives::{
    AbortHandle, AnyBackend, Communicator, Device, DeviceInfo, JoinConfig, ReduceOp, Result,
    Stream, World, WorldConfig,
};

use super::{
    args::Args,
    ranks::Ranks,
    run::{self, Figures, Plan, Stop, Team, Times},
};
use crate::Failure;

/// Meets the other ranks.
pub(super) fn meet(args: &Args) -> Result<World> {
    let config = WorldConfig::new();
    match args.backend.name() {
        Some(name) => config.with_backend_name(name),
        None => config,
    }
    .open()
}

/// The devices of all ranks. Of those that are elsewhere, the memory is taken to be as much as here.
pub(super) fn devices(world: &World) -> Result<Vec<DeviceInfo>> {
    let own = world.device().info();
    let mut devices = vec![own.clone(); world.size()];
    for (info, peer) in devices.iter_mut().zip(world.peers()?) {
        info.ordinal = peer.device.unwrap_or_default();
        info.name =
            format!("{} of {}", peer.device_name.as_deref().unwrap_or("a device"), peer.host);
        info.pci_bus_id = peer.pci_bus_id;
    }
    Ok(devices)
}

/// Runs the rank that this process is, where it is not the one that prints.
pub(super) fn serve(world: World, plan: &Plan) -> Result<()> {
    Process::new(world, None)?.run(plan)
}

/// All ranks, as the one sees them that prints.
pub(super) struct Launched {
    figures: Receiver<Figures>,
    rank: Option<thread::JoinHandle<Result<()>>>,
}

impl Launched {
    /// Runs rank 0 beside the thread that prints.
    pub(super) fn start(plan: &Arc<Plan>, world: World) -> Result<Self, Failure> {
        let (sender, figures) = mpsc::channel();
        let plan = Arc::clone(plan);
        let named = thread::Builder::new().name("rank 0".into());
        let rank = named.spawn(move || Process::new(world, Some(sender))?.run(&plan))?;
        Ok(Self { figures, rank: Some(rank) })
    }
}

impl Ranks for Launched {
    fn next(&mut self) -> Result<Figures, Failure> {
        match self.figures.recv() {
            Ok(figures) => Ok(figures),
            Err(mpsc::RecvError) => {
                self.ended()?;
                Err(Failure::from("rank 0 has ended before it measured everything"))
            }
        }
    }

    fn ended(&mut self) -> Result<(), Failure> {
        match self.rank.take().map(thread::JoinHandle::join) {
            Some(Ok(outcome)) => Ok(outcome?),
            Some(Err(_)) => Err(Failure::from("rank 0 panicked; what it said stands above")),
            None => Ok(()),
        }
    }
}

/// One rank.
struct Process {
    /// For what is told between measurements.
    stream: Stream,
    between: Communicator,
    figures: Option<Sender<Figures>>,
    world: World,
}

impl Process {
    fn new(world: World, figures: Option<Sender<Figures>>) -> Result<Self> {
        let between = world.communicator("perf, between measurements")?;
        Ok(Self { stream: between.new_stream()?, between, figures, world })
    }

    fn run(self, plan: &Plan) -> Result<()> {
        match run::rank(self.world.backend(), plan, self.world.rank(), &self) {
            // Others end by their own errors; none of them ends this one.
            Ok(()) | Err(Stop::Ended) => self.between.finalize(),
            Err(Stop::Failed(error)) => Err(error),
        }
    }
}

impl Team for Process {
    fn join(&self, _: &AnyBackend, _: JoinConfig) -> Result<Communicator, Stop> {
        Ok(self.world.communicator("perf")?)
    }

    fn wait(&self) -> Result<(), Stop> {
        self.between.on(&self.stream).barrier()?;
        Ok(self.stream.synchronize()?)
    }

    fn ends(&self, _: AbortHandle) -> Result<(), Stop> {
        // The launcher ends the ranks when one fails.
        Ok(())
    }

    fn tell(&self, Figures { times: Times { done, issue }, wrong }: Figures) -> Result<(), Stop> {
        let mine = [done, issue, wrong.unwrap_or_default() as f64];
        let mut sum = self.stream.upload(&mine)?;
        self.between.on(&self.stream).all_reduce_in_place(&mut sum, ReduceOp::Sum)?;
        let sums = sum.to_vec(&self.stream)?;
        let (Some(figures), &[done, issue, all_wrong]) = (&self.figures, &sums[..]) else {
            return Ok(());
        };
        let ranks = self.world.size() as f64;
        let times = Times { done: done / ranks, issue: issue / ranks };
        let figures = figures.send(Figures { times, wrong: wrong.map(|_| all_wrong as u64) });
        // Nobody listens any more only where the main thread gave up.
        figures.map_err(|_| Stop::Ended)
    }
}
