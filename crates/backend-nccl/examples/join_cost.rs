//! What a join with a deadline costs, in time and device memory, for each policy of its parent:
//! two ranks as threads, on devices 0 and 1.
//!
//! `cargo run --release -p collectives-backend-nccl --example join_cost [ROUNDS]`

use std::{
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use collectives_backend_nccl::{CudaDevice, Nccl};
use collectives_core::{
    Backend, Collectives, DType, Device, JoinConfig, Launch, Rank, RecvBuf, ReduceOp, Result,
    UniqueId,
};
use collectives_nccl_family::ParentPolicy;

const RANKS: usize = 2;
const DEADLINE: Duration = Duration::from_secs(60);

/// How a round joins.
#[derive(Clone, Copy)]
struct Way {
    name: &'static str,
    deadline: Option<Duration>,
    policy: ParentPolicy,
}

const WAYS: [Way; 3] = [
    Way { name: "blocking", deadline: None, policy: ParentPolicy::Destroy },
    Way {
        name: "deadline, parent kept, shared",
        deadline: Some(DEADLINE),
        policy: ParentPolicy::KeepShared,
    },
    Way {
        name: "deadline, parent destroyed",
        deadline: Some(DEADLINE),
        policy: ParentPolicy::Destroy,
    },
];

/// What one rank saw.
struct Cost {
    join: Duration,
    /// Device memory that the join took, in bytes.
    joined: isize,
    /// The same after the first all-reduce, which connects.
    used: isize,
    /// Time of one all-reduce of two floats, enqueued and waited for.
    all_reduce: Duration,
    drop: Duration,
}

fn main() -> Result<()> {
    let rounds = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(5);
    let nccl = Nccl::load()?;
    println!("NCCL {} ({})", nccl.info().version, nccl.info().found_by);
    println!(
        "{:<30} {:>5} {:>4} {:>10} {:>10} {:>10} {:>14} {:>10}",
        "way", "round", "rank", "join ms", "join MiB", "used MiB", "all_reduce us", "drop ms"
    );
    for way in WAYS {
        for round in 0..rounds {
            for (rank, cost) in run(&nccl.with_parent_policy(way.policy), way)?.iter().enumerate() {
                println!(
                    "{:<30} {round:>5} {rank:>4} {:>10.1} {:>10.1} {:>10.1} {:>14.1} {:>10.1}",
                    way.name,
                    cost.join.as_secs_f64() * 1e3,
                    cost.joined as f64 / MIB,
                    cost.used as f64 / MIB,
                    cost.all_reduce.as_secs_f64() * 1e6,
                    cost.drop.as_secs_f64() * 1e3,
                );
            }
        }
    }
    Ok(())
}

fn run(nccl: &Nccl, way: Way) -> Result<Vec<Cost>> {
    let id = nccl.unique_id()?;
    let barrier = Barrier::new(RANKS);
    thread::scope(|scope| {
        let ranks: Vec<_> = (0..RANKS)
            .map(|rank| {
                let (id, barrier) = (&id, &barrier);
                scope.spawn(move || one_rank(nccl, way, id, rank, barrier))
            })
            .collect();
        ranks
            .into_iter()
            .map(|rank| rank.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

fn one_rank(nccl: &Nccl, way: Way, id: &UniqueId, rank: usize, barrier: &Barrier) -> Result<Cost> {
    let device = nccl.device(rank)?;
    let stream = device.stream_create()?;
    let memory = device.alloc(8)?;
    barrier.wait();
    let before = free(&device)?;

    let mut config = JoinConfig::new(Rank::new(rank as u32), RANKS);
    config.deadline = way.deadline;
    let start = Instant::now();
    let comm = nccl.join(id, config)?;
    let join = start.elapsed();
    barrier.wait();
    let joined = before - free(&device)?;

    let all_reduce = || {
        let buffer = RecvBuf::new(memory, 2, DType::F32);
        let launch = Launch::new(stream);
        // SAFETY: two floats of this device, that nothing else uses; every rank does the same.
        unsafe { comm.all_reduce(buffer.as_send(), buffer, ReduceOp::Max, launch) }?;
        // SAFETY: a stream of this device.
        unsafe { device.synchronize(stream, None) }
    };
    all_reduce()?;
    barrier.wait();
    let used = before - free(&device)?;
    let start = Instant::now();
    for _ in 0..CALLS {
        all_reduce()?;
    }
    let all_reduce = start.elapsed() / CALLS;

    barrier.wait();
    let start = Instant::now();
    drop(comm);
    let drop = start.elapsed();
    // The library frees the ranks of one process together; the next round starts from there.
    barrier.wait();
    // SAFETY: nothing uses the memory any more.
    unsafe { device.free(memory, stream) }?;
    // SAFETY: nothing uses the stream any more.
    unsafe { device.stream_destroy(stream) }?;
    Ok(Cost { join, joined, used, all_reduce, drop })
}

fn free(device: &CudaDevice) -> Result<isize> {
    device.memory_info().map(|(free, _)| free.cast_signed())
}

const CALLS: u32 = 1000;
const MIB: f64 = (1 << 20) as f64;
