//! One rank of a communicator whose others may be Python programs that call NCCL by ctypes, as SGLang's
//! and vLLM's pynccl do.
//!
//! ```console
//! $ RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 \
//!     mixed_rank [--id HOW] [--mode eager|graph] [--device N]
//! ```
//!
//! The Python side is [pynccl_rank.py](python/pynccl_rank.py), where the ways to hand on the unique id
//! (`--id`) are told, and `scripts/mixed` starts both, in all of them. The ranks join, sum one float, as
//! pynccl does to warm up, and then three vectors: one after the other, or by three launches of one
//! captured graph. Each checks every sum, and prints one line.

use std::{env, error::Error, path::Path, time::Duration};

use collectives::{
    Backend, Communicator, JoinConfig, ReduceOp, UniqueId,
    rendezvous::{Deadline, Environment, Store, TcpStore, TcpStoreServer, share, unique_id},
};

fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let environment = Environment::from_env()?;
    let options = Options::parse(&environment)?;
    let (rank, size) = (environment.rank(), environment.size());
    let backend = collectives::backend_named("nccl")?;
    let make = || backend.unique_id();
    let (id, _server) = share_id(&options.id, &environment, make)?;

    // No deadline: a join with one makes two communicators, and pynccl's ranks make one.
    let config = JoinConfig::new(rank, size).with_device(options.device).with_name("mixed");
    let comm = Communicator::join(&backend, &id, config)?;
    let stream = comm.new_stream()?;

    // What every pynccl does first. `warm_up` would send messages that nobody there expects.
    let mut one = stream.zeros::<f32>(1)?;
    comm.on(&stream).all_reduce_in_place(&mut one, ReduceOp::Sum)?;
    stream.synchronize()?;

    let mut send = stream.zeros::<f32>(COUNT)?;
    let mut recv = stream.zeros::<f32>(COUNT)?;
    let captured = options.mode == "graph";
    let graph = captured
        .then(|| comm.capture(|scope| scope.on(&comm).all_reduce(&send, &mut recv, ReduceOp::Sum)))
        .transpose()?;
    for step in 0..3 {
        send.copy_from_slice(&part(rank, step), &stream)?;
        match &graph {
            None => comm.on(&stream).all_reduce(&send, &mut recv, ReduceOp::Sum)?,
            Some(graph) => graph.launch(&stream)?,
        }
        expect(step, &recv.to_vec(&stream)?, &total(size, step))?;
    }
    drop(graph);
    comm.finalize()?;
    let info = backend.info();
    println!(
        "Rust rank {rank} of {size}: {} sums are right; NCCL {}, device {}, id by {}",
        options.mode, info.version, options.device, options.id
    );
    Ok(())
}

/// The id that rank 0 makes, and the store's server, where this rank serves it.
fn share_id(
    how: &str,
    environment: &Environment,
    make: impl FnOnce() -> collectives::Result<UniqueId>,
) -> Result<(UniqueId, Option<TcpStoreServer>), Box<dyn Error>> {
    let deadline = Deadline::after(PATIENCE);
    let is_first = environment.rank() == 0;
    if how == "store" || how == "serve" {
        let (Some(host), Some(port)) = (environment.master_address(), environment.master_port())
        else {
            return Err("a store needs MASTER_ADDR and MASTER_PORT".into());
        };
        let serves = how == "serve" || (is_first && !environment.store_is_served());
        let server = serves.then(|| TcpStoreServer::bind((host, port))).transpose()?;
        let store = TcpStore::connect(&format!("{host}:{port}"), deadline)?;
        return Ok((through(&store, is_first, make, deadline)?, server));
    }
    let id = match (is_first, how.split_once(':')) {
        (true, Some(("file", path))) => {
            let id = make()?;
            unique_id::to_file(&id, Path::new(path))?;
            id
        }
        (false, Some(("file", path))) => unique_id::from_file(Path::new(path), deadline)?,
        (false, Some(("env", name))) => {
            unique_id::from_variable(name)?.ok_or_else(|| format!("{name} is not set"))?
        }
        (true, None) if how == "print" => {
            let id = make()?;
            println!("id {}", id.to_base64());
            id
        }
        _ => return Err(format!("--id {how}: of no use to rank {}", environment.rank()).into()),
    };
    Ok((id, None))
}

/// The key is raw bytes, so Python reads the same with `store.get("mixed/id")`.
fn through(
    store: &impl Store,
    is_first: bool,
    make: impl FnOnce() -> collectives::Result<UniqueId>,
    deadline: Deadline,
) -> collectives::Result<UniqueId> {
    let made = is_first.then(make).transpose()?;
    let bytes = share(store, "mixed/id", made.as_ref().map(UniqueId::as_bytes), deadline)?;
    Ok(UniqueId::from_bytes(bytes))
}

/// What a rank gives to a step: sums of these are exact.
fn part(rank: u32, step: usize) -> Vec<f32> {
    (0..COUNT).map(|i| ((rank as usize + 1) * (step + 1) + i % 7) as f32).collect()
}

fn total(size: usize, step: usize) -> Vec<f32> {
    let ranks = size * (size + 1) / 2;
    (0..COUNT).map(|i| (ranks * (step + 1) + size * (i % 7)) as f32).collect()
}

fn expect(step: usize, got: &[f32], want: &[f32]) -> Result<(), Box<dyn Error>> {
    match got.iter().zip(want).position(|(got, want)| got != want) {
        None => Ok(()),
        Some(i) => Err(format!("step {step}: element {i} is {}, want {}", got[i], want[i]).into()),
    }
}

struct Options {
    id: String,
    mode: String,
    device: usize,
}

impl Options {
    fn parse(environment: &Environment) -> Result<Self, Box<dyn Error>> {
        let device = environment.local_rank().unwrap_or(0) as usize;
        let mut options = Self { id: "store".into(), mode: "eager".into(), device };
        let mut arguments = env::args().skip(1);
        while let Some(name) = arguments.next() {
            let value = arguments.next().ok_or_else(|| format!("{name} wants a value"))?;
            match (name.as_str(), value.as_str()) {
                ("--id", _) => options.id = value,
                ("--mode", "eager" | "graph") => options.mode = value,
                ("--device", _) => options.device = value.parse()?,
                _ => return Err(format!("unknown: {name} {value}").into()),
            }
        }
        Ok(options)
    }
}

const PATIENCE: Duration = Duration::from_secs(60);
const COUNT: usize = 65_536;
