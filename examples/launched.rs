//! Sums a vector over ranks that are processes, which a launcher has started:
//!
//! ```console
//! $ cargo build --example launched
//! $ collectives launch -n 4 -- target/debug/examples/launched
//! ```

use std::{
    env,
    error::Error,
    io::{self, IsTerminal, Read, Write},
    net::{TcpListener, TcpStream},
    thread,
    time::Duration,
};

use collectives::{Backend, Communicator, JoinConfig, ReduceOp, UniqueId};

fn main() -> Result<(), Box<dyn Error>> {
    let colours = io::stderr().is_terminal();
    tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(colours).init();
    let (rank, size) = (number("RANK")?, number("WORLD_SIZE")?);
    let backend = collectives::backend()?;
    let id = exchange(rank, size, || Ok(backend.unique_id()?))?;
    let config = JoinConfig::new(rank as u32, size)
        .with_device(number("LOCAL_RANK")?)
        .with_deadline(Duration::from_secs(60));
    let comm = Communicator::join(&backend, &id, config)?;

    let stream = comm.new_stream()?;
    let send = stream.upload(&[comm.rank() as f32 + 1.0; 4])?;
    let mut recv = stream.zeros(4)?;
    comm.on(&stream).all_reduce(&send, &mut recv, ReduceOp::Sum)?;
    println!("{} says {:?}", backend.info().backend, recv.to_vec(&stream)?);
    Ok(comm.finalize()?)
}

/// Hands the id that rank 0 makes to all others, at the master's address.
fn exchange(
    rank: usize,
    size: usize,
    id: impl FnOnce() -> Result<UniqueId, Box<dyn Error>>,
) -> Result<UniqueId, Box<dyn Error>> {
    let address = (env::var("MASTER_ADDR")?, u16::try_from(number("MASTER_PORT")?)?);
    if rank == 0 {
        let id = id()?;
        let listener = TcpListener::bind(address)?;
        for _ in 1..size {
            listener.accept()?.0.write_all(id.as_bytes())?;
        }
        return Ok(id);
    }
    for _ in 0..TRIES {
        if let Ok(mut stream) = TcpStream::connect(&address) {
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes)?;
            return Ok(UniqueId::from_bytes(bytes));
        }
        // Rank 0 is not there yet.
        thread::sleep(Duration::from_millis(10));
    }
    Err(format!("rank 0 does not answer at {}:{}", address.0, address.1).into())
}

fn number(variable: &str) -> Result<usize, Box<dyn Error>> {
    let value = env::var(variable).map_err(|error| format!("{variable}: {error}"))?;
    value.parse().map_err(|error| format!("{variable} is '{value}': {error}").into())
}

/// A minute.
const TRIES: usize = 6000;
