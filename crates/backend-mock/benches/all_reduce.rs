//! All-reduce of f32 sums over two ranks on two threads, out of place: microseconds per operation.
//!
//! *loop*: operations issued one after another with one synchronisation for all; *sync each*: one
//! each. The best of several rounds is printed, since other programs disturb. `--test` runs a
//! little of everything, to see that it runs; `-n RANKS` sets the number of ranks.

use std::{
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use collectives_backend_mock::{Mock, MockConfig};
use collectives_core::{
    Backend, Collectives, Device, JoinAllConfig, Launch, RawStream, RecvBuf, ReduceOp, Result,
    SendBuf,
};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (mut smoke, mut ranks) = (false, 2);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--test" => smoke = true,
            "-n" => {
                let number = arguments.next().and_then(|text| text.parse().ok());
                ranks = number.expect("-n wants a number of ranks");
            }
            // Cargo passes `--bench`.
            _ => {}
        }
    }
    println!("{ranks} ranks, f32 sum, out of place; µs per operation, best round");
    println!("{:>10} {:>12} {:>12}", "bytes", "loop", "sync each");
    let sizes =
        [8, 64, 512, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 8 << 20, 64 << 20];
    for bytes in sizes {
        let (rounds, budget) = if smoke { (1, 1 << 20) } else { (7, 256 << 20) };
        let operations = (budget / bytes).clamp(if smoke { 1 } else { 4 }, 1000);
        let looped = measure(ranks, bytes, operations, operations, rounds)?;
        let each = measure(ranks, bytes, operations, 1, rounds)?;
        println!("{bytes:>10} {looped:>12.3} {each:>12.3}");
    }
    Ok(())
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
                scope.spawn(move || run(comm, &device?, barrier, bytes, operations, every, rounds))
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
    comm: impl Collectives,
    device: &impl Device,
    barrier: &Barrier,
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
        barrier.wait();
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
