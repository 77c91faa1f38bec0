//! Sums a vector over ranks that are processes, whoever started them:
//!
//! ```console
//! $ cargo build --example launched
//! $ collectives launch -n 4 -- target/debug/examples/launched
//! $ mpirun -n 4 target/debug/examples/launched
//! $ torchrun --no-python --nproc-per-node 4 target/debug/examples/launched
//! $ srun -n 4 target/debug/examples/launched
//! ```

use std::{
    io::{self, IsTerminal},
    process::ExitCode,
};

use collectives::ReduceOp;

fn main() -> ExitCode {
    let colours = io::stderr().is_terminal();
    tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(colours).init();
    match sum() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn sum() -> collectives::Result<()> {
    let comm = collectives::init()?;
    let stream = comm.new_stream()?;
    let mut buffer = stream.upload(&[comm.rank() as f32 + 1.0; 4])?;
    comm.on(&stream).all_reduce_in_place(&mut buffer, ReduceOp::Sum)?;
    println!("{} says {:?}", comm.info().library.backend, buffer.to_vec(&stream)?);
    comm.finalize()
}
