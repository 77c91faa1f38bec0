//! Captures an exchange and a sum into one graph, and launches it with fresh inputs.
//!
//! ```console
//! $ cargo run --example graph_capture
//! ```

use std::thread;

use collectives::{Backend, Communicator, JoinAllConfig, ReduceOp, Result};

fn main() -> Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let backend = collectives::backend()?;
    let devices: Vec<_> = (0..backend.device_count()?.min(2)).collect();
    let comms = Communicator::join_all(&backend, JoinAllConfig::new(devices))?;
    thread::scope(|scope| {
        let threads: Vec<_> =
            comms.into_iter().map(|comm| scope.spawn(move || run(&comm))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("a rank panicked"))
    })
}

/// What each rank does.
fn run(comm: &Communicator) -> Result<()> {
    let stream = comm.new_stream()?;
    let (rank, size) = (comm.rank(), comm.size() as u32);
    let (next, previous) = ((rank + 1) % size, (rank + size - 1) % size);
    let mut mine = stream.zeros::<f32>(1)?;
    let mut theirs = stream.zeros::<f32>(1)?;
    let mut sum = stream.zeros::<f32>(1)?;

    // Libraries connect on first use, which is not possible inside a capture.
    comm.on(&stream).warm_up()?;
    let graph = comm.capture(|scope| {
        scope.group(|group| {
            group.on(comm).send(&mine, next)?;
            group.on(comm).recv(&mut theirs, previous)
        })?;
        scope.on(comm).all_reduce(&mine, &mut sum, ReduceOp::Sum)
    })?;

    for step in 0..3 {
        mine.copy_from_slice(&[(10 * step + rank) as f32], &stream)?;
        graph.launch(&stream)?;
        let (theirs, sum) = (theirs.to_vec(&stream)?[0], sum.to_vec(&stream)?[0]);
        println!("rank {rank}, step {step}: from rank {previous} {theirs}, sum {sum}");
    }
    Ok(())
}
