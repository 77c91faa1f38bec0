//! Sums a vector over all ranks: on NVIDIA GPUs through NCCL, elsewhere on the CPU.
//!
//! ```console
//! $ cargo run --example all_reduce
//! $ COLLECTIVES_BACKEND=mock cargo run --example all_reduce
//! ```

use std::thread;

use collectives::{Backend, Communicator, JoinConfig, ReduceOp, Result};

fn main() -> Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let backend = collectives::backend()?;
    let ranks = backend.device_count()?.min(4) as u32;
    println!("{} ranks on {} {}", ranks, backend.info().backend, backend.info().version);

    // One rank makes the id and hands it to the others; here they are threads of one process.
    let id = backend.unique_id()?;
    thread::scope(|scope| {
        let rank = |rank| {
            let (backend, id) = (&backend, &id);
            scope.spawn(move || {
                let config = JoinConfig::new(rank, ranks as usize);
                run(Communicator::join(backend, id, config)?)
            })
        };
        let threads: Vec<_> = (0..ranks).map(rank).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("a rank panicked"))
    })
}

/// What each rank does.
fn run(comm: Communicator) -> Result<()> {
    let stream = comm.new_stream()?;
    let send = stream.upload(&[comm.rank() as f32 + 1.0; 4])?;
    let mut recv = stream.zeros(4)?;
    comm.on(&stream).all_reduce(&send, &mut recv, ReduceOp::Sum)?;
    println!("rank {} of {}: {:?}", comm.rank(), comm.size(), recv.to_vec(&stream)?);
    comm.finalize()
}
