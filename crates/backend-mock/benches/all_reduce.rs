//! All-reduce of f32 sums over two ranks on two threads, out of place: microseconds per operation.
//!
//! *loop*: operations issued one after another with one synchronisation for all; *sync each*: one
//! each. The best of several rounds is printed, since other programs disturb. `--test` runs a
//! little of everything, to see that it runs; `-n RANKS` sets the number of ranks; `--processes` has
//! each rank in a process of its own.

use std::{
    env,
    process::Command,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use collectives_backend_mock::{Mock, MockConfig, Ranks};
use collectives_core::{
    Backend, Collectives, Device, JoinAllConfig, JoinConfig, Launch, RawStream, RecvBuf, ReduceOp,
    Result, SendBuf, UniqueId,
};

fn main() -> Result<()> {
    let mut arguments = env::args().skip(1);
    let (mut smoke, mut ranks, mut processes) = (false, 2, false);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--processes" => processes = true,
            "--test" => smoke = true,
            "-n" => {
                let number = arguments.next().and_then(|text| text.parse().ok());
                ranks = number.expect("-n wants a number of ranks");
            }
            // Cargo passes `--bench`.
            _ => {}
        }
    }
    let processes = if processes { Some(Processes::start(ranks)?) } else { None };
    let is_first = processes.as_ref().is_none_or(|processes| processes.rank == 0);
    if is_first {
        println!("{ranks} ranks, f32 sum, out of place; µs per operation, best round");
        println!("{:>10} {:>12} {:>12}", "bytes", "loop", "sync each");
    }
    let sizes =
        [8, 64, 512, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 8 << 20, 64 << 20];
    for bytes in sizes {
        let (rounds, budget) = if smoke { (1, 1 << 20) } else { (7, 256 << 20) };
        let operations = (budget / bytes).clamp(if smoke { 1 } else { 4 }, 1000);
        let measure = |every: usize| match &processes {
            Some(processes) => processes.measure(bytes, operations, every, rounds),
            None => measure(ranks, bytes, operations, every, rounds),
        };
        let (looped, each) = (measure(operations)?, measure(1)?);
        if is_first {
            println!("{bytes:>10} {looped:>12.3} {each:>12.3}");
        }
    }
    processes.map_or(Ok(()), Processes::end)
}

/// One rank of several processes; the first has started the others.
struct Processes {
    rank: usize,
    mock: Mock,
    comm: <Mock as Backend>::Comm,
    others: Vec<std::process::Child>,
}

impl Processes {
    fn start(ranks: usize) -> Result<Self> {
        let config = MockConfig::new().with_devices(ranks).with_ranks(Ranks::Processes);
        let mock = Mock::new(config);
        let (mut rank, mut others) = (0, Vec::new());
        let id = match env::var("BENCH_RANK") {
            Ok(text) => {
                rank = text.parse().expect("a rank");
                env::var("BENCH_ID").expect("the id comes with the rank").parse()?
            }
            Err(_) => {
                let id: UniqueId = mock.unique_id()?;
                for rank in 1..ranks {
                    let mut command = Command::new(env::current_exe().expect("this program"));
                    command.args(env::args().skip(1));
                    command.env("BENCH_RANK", rank.to_string()).env("BENCH_ID", id.to_base64());
                    others.push(command.spawn().expect("another rank"));
                }
                id
            }
        };
        let comm = mock.join(&id, JoinConfig::new(rank as u32, ranks))?;
        Ok(Self { rank, mock, comm, others })
    }

    /// Microseconds per operation, as this rank sees it.
    fn measure(&self, bytes: usize, operations: usize, every: usize, rounds: usize) -> Result<f64> {
        let device = self.mock.device(self.rank)?;
        let best =
            run(&self.comm, &device, &|| self.barrier(&device), bytes, operations, every, rounds)?;
        Ok(best.as_secs_f64() * 1e6 / operations as f64)
    }

    fn barrier(&self, device: &impl Device) {
        let mut value = 0_u8;
        let (send, recv) = (SendBuf::typed(&raw const value, 1), RecvBuf::typed(&raw mut value, 1));
        // SAFETY: the value lives until the stream has passed.
        let issued = unsafe {
            self.comm.all_reduce(send, recv, ReduceOp::Sum, Launch::new(RawStream::DEFAULT))
        };
        // SAFETY: the default stream always lives.
        let passed = unsafe { device.synchronize(RawStream::DEFAULT, None) };
        issued.and(passed).expect("a barrier");
    }

    fn end(self) -> Result<()> {
        drop(self.comm);
        for mut other in self.others {
            other.wait().expect("another rank ends");
        }
        Ok(())
    }
}

/// Microseconds per operation, with one synchronisation every `every` operations.
fn measure(
    ranks: usize,
    bytes: usize,
    operations: usize,
    every: usize,
    rounds: usize,
) -> Result<f64> {
    let mock = Mock::new(MockConfig::new().with_devices(ranks));
    let comms = mock.join_all(JoinAllConfig::new((0..ranks).collect::<Vec<_>>()))?;
    let barrier = Barrier::new(ranks);
    let best = thread::scope(|scope| {
        let handles: Vec<_> = comms
            .into_iter()
            .map(|comm| {
                let device = mock.device(comm.info().device);
                let barrier = &barrier;
                let meet = move || {
                    barrier.wait();
                };
                scope.spawn(move || run(&comm, &device?, &meet, bytes, operations, every, rounds))
            })
            .collect();
        let times = handles.into_iter().map(|handle| handle.join().expect("a rank panicked"));
        times.collect::<Result<Vec<_>>>()
    })?;
    let slowest = best.into_iter().max().unwrap_or_default();
    Ok(slowest.as_secs_f64() * 1e6 / operations as f64)
}

/// One rank: the best time of a round.
fn run(
    comm: &impl Collectives,
    device: &impl Device,
    barrier: &impl Fn(),
    bytes: usize,
    operations: usize,
    every: usize,
    rounds: usize,
) -> Result<Duration> {
    let stream = device.stream_create()?;
    let (send, recv) = (device.alloc(bytes)?, device.alloc(bytes)?);
    let mut best = Duration::MAX;
    for ptr in [send, recv] {
        // SAFETY: the memory is ours, and nothing else uses it.
        unsafe { device.memset(ptr, 0, bytes, stream) }?;
    }
    let send_buf = SendBuf::typed::<f32>(send.cast(), bytes / 4);
    let recv_buf = RecvBuf::typed::<f32>(recv.cast(), bytes / 4);
    // The first round warms up.
    for round in 0..=rounds {
        barrier();
        let start = Instant::now();
        for operation in 1..=operations {
            // SAFETY: the buffers are ours, and live until the last synchronisation.
            unsafe { comm.all_reduce(send_buf, recv_buf, ReduceOp::Sum, Launch::new(stream)) }?;
            if operation % every == 0 {
                // SAFETY: the stream is ours.
                unsafe { device.synchronize(stream, None) }?;
            }
        }
        // SAFETY: the stream is ours.
        unsafe { device.synchronize(stream, None) }?;
        if round > 0 {
            best = best.min(start.elapsed());
        }
    }
    for ptr in [send, recv] {
        // SAFETY: nothing uses the memory any more.
        unsafe { device.free(ptr, RawStream::DEFAULT) }?;
    }
    // SAFETY: nothing uses the stream any more.
    unsafe { device.stream_destroy(stream) }?;
    Ok(best)
}
