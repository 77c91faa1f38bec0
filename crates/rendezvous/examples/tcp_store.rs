//! A store as a program: what tests with PyTorch, measurements and curious people start.
//!
//! ```console
//! $ tcp_store serve 127.0.0.1:29500          # until its standard input ends
//! $ tcp_store check 127.0.0.1:29500 [--torch21] [--queues] [--list-keys]
//! $ tcp_store wait 127.0.0.1:29500 KEY       # prints the value
//! $ tcp_store bench CLIENTS SECONDS ROUNDS 127.0.0.1:29500 127.0.0.1:29501 …
//! ```

use std::{
    env, io,
    process::ExitCode,
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use collectives_core::Result;
use collectives_rendezvous::{Deadline, Dialect, Store, TcpStore, TcpStoreServer};

#[path = "../tests/common/script.rs"]
mod script;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match *arguments {
        ["serve", address] => serve(address),
        ["check", address, ref options @ ..] => check(address, options),
        ["wait", address, key] => wait(address, key),
        ["bench", clients, seconds, rounds, ref addresses @ ..] => {
            match (clients.parse(), seconds.parse(), rounds.parse()) {
                (Ok(clients), Ok(seconds), Ok(rounds)) => {
                    bench(clients, Duration::from_secs_f64(seconds), rounds, addresses)
                }
                _ => usage(),
            }
        }
        _ => usage(),
    };
    result.unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::FAILURE
    })
}

fn usage() -> Result<ExitCode> {
    eprintln!("usage: tcp_store serve|check|wait HOST:PORT …, or tcp_store bench …");
    Ok(ExitCode::from(2))
}

/// Serves until whoever started this lets go of it.
fn serve(address: &str) -> Result<ExitCode> {
    let server = TcpStoreServer::bind(address)?;
    println!("{}", server.address());
    let ended = io::copy(&mut io::stdin(), &mut io::sink());
    Ok(if ended.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Calls every operation, and says which went wrong.
fn check(address: &str, options: &[&str]) -> Result<ExitCode> {
    let has = |option| options.contains(&option);
    let dialect = if has("--torch21") { Dialect::Torch21 } else { Dialect::Torch22 };
    let store = TcpStore::connect_as(address, dialect, patience())?;
    let features = script::Features { queues: has("--queues"), list_keys: has("--list-keys") };
    let wrong = script::run(&store, features);
    for line in &wrong {
        eprintln!("{line}");
    }
    Ok(if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Waits for a key that somebody else sets, and announces that it came.
fn wait(address: &str, key: &str) -> Result<ExitCode> {
    let store = TcpStore::connect(address, patience())?;
    store.add("waiting", 1, patience())?;
    println!("{}", String::from_utf8_lossy(&store.get(key, patience())?));
    Ok(ExitCode::SUCCESS)
}

/// How many operations a second servers do for so many clients, each of which waits for its own. The
/// servers take turns of so much time: a line for each, with the operation, the server's place among
/// `addresses`, operations, and seconds.
fn bench(clients: usize, time: Duration, rounds: usize, addresses: &[&str]) -> Result<ExitCode> {
    let calls: [(&str, Call); 3] = [
        ("set", |store, key| store.set(key, &VALUE, patience())),
        ("add", |store, key| store.add(&format!("{key}/number"), 1, patience()).map(drop)),
        ("get", |store, key| store.get(key, patience()).map(drop)),
    ];
    let mut servers = Vec::new();
    for address in addresses {
        let stores: Vec<_> =
            (0..clients).map(|_| TcpStore::connect(address, patience())).collect::<Result<_>>()?;
        // A client may get no turn while others set; what it gets then must be there.
        for (client, store) in stores.iter().enumerate() {
            store.set(&key(client), &VALUE, patience())?;
        }
        servers.push(stores);
    }
    for (name, call) in calls {
        for round in 0..rounds {
            for turn in 0..servers.len() {
                let server = (round + turn) % servers.len();
                let (count, took) = turn_of(&servers[server], call, time)?;
                println!("{name} {server} {count} {}", took.as_secs_f64());
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

type Call = fn(&TcpStore, &str) -> Result<()>;

const VALUE: [u8; 128] = [7; 128];

fn key(client: usize) -> String {
    format!("bench/{client}")
}

/// How often all clients together made the call, in how much time.
fn turn_of(stores: &[TcpStore], call: Call, time: Duration) -> Result<(u64, Duration)> {
    let stop = AtomicBool::new(false);
    let started = Barrier::new(stores.len() + 1);
    thread::scope(|scope| {
        let threads: Vec<_> = stores
            .iter()
            .enumerate()
            .map(|(client, store)| {
                let (stop, started) = (&stop, &started);
                scope.spawn(move || {
                    let key = key(client);
                    started.wait();
                    let mut count = 0;
                    while !stop.load(Ordering::Relaxed) {
                        call(store, &key)?;
                        count += 1;
                    }
                    Ok(count)
                })
            })
            .collect();
        started.wait();
        let start = Instant::now();
        thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
        let counts: Vec<Result<u64>> =
            threads.into_iter().filter_map(|thread| thread.join().ok()).collect();
        let took = start.elapsed();
        Ok((counts.into_iter().sum::<Result<u64>>()?, took))
    })
}

fn patience() -> Deadline {
    Deadline::after(Duration::from_secs(30))
}
