//! A store as a program: what tests with PyTorch, measurements and curious people start.
//!
//! ```console
//! $ tcp_store serve 127.0.0.1:29500          # until its standard input ends
//! $ tcp_store check 127.0.0.1:29500 [--torch21] [--queues] [--list-keys]
//! $ tcp_store wait 127.0.0.1:29500 KEY       # prints the value
//! $ tcp_store bench 127.0.0.1:29500 CLIENTS SECONDS
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
        ["bench", address, clients, seconds] => match (clients.parse(), seconds.parse()) {
            (Ok(clients), Ok(seconds)) => bench(address, clients, seconds),
            _ => usage(),
        },
        _ => usage(),
    };
    result.unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::FAILURE
    })
}

fn usage() -> Result<ExitCode> {
    eprintln!("usage: tcp_store serve|check|wait|bench HOST:PORT …");
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

/// How many operations a second a server does for so many clients, each of which waits for its own.
fn bench(address: &str, clients: usize, seconds: f64) -> Result<ExitCode> {
    let time = Duration::from_secs_f64(seconds);
    let value = [7_u8; 128];
    type Call = fn(&TcpStore, &str, &[u8]) -> Result<()>;
    let calls: [(&str, Call); 3] = [
        ("set", |store, key, value| store.set(key, value, patience())),
        ("add", |store, key, _| store.add(&format!("{key}/number"), 1, patience()).map(drop)),
        ("get", |store, key, _| store.get(key, patience()).map(drop)),
    ];
    let stores: Vec<_> =
        (0..clients).map(|_| TcpStore::connect(address, patience())).collect::<Result<_>>()?;
    let key = |rank| format!("bench/{rank}");
    // A client may get no turn while others set for a while; what it reads then must be there.
    for (rank, store) in stores.iter().enumerate() {
        store.set(&key(rank), &value, patience())?;
    }
    for (name, call) in calls {
        let stop = AtomicBool::new(false);
        let started = Barrier::new(clients + 1);
        let (counts, took) = thread::scope(|scope| {
            let threads: Vec<_> = stores
                .iter()
                .enumerate()
                .map(|(rank, store)| {
                    let (stop, started) = (&stop, &started);
                    scope.spawn(move || {
                        let key = key(rank);
                        started.wait();
                        let mut count = 0_u64;
                        while !stop.load(Ordering::Relaxed) {
                            call(store, &key, &value)?;
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
            (counts, start.elapsed())
        });
        let count: u64 = counts.into_iter().sum::<Result<u64>>()?;
        println!("{name} {count} {:.0}", count as f64 / took.as_secs_f64());
    }
    Ok(ExitCode::SUCCESS)
}

fn patience() -> Deadline {
    Deadline::after(Duration::from_secs(30))
}
