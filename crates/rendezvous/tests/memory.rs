//! What clients cost the server. Apart from other tests, which take and give back memory of the
//! same process; and one after the other.
#![cfg(target_os = "linux")]

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use collectives_rendezvous::{Deadline, Store, TcpStore, TcpStoreServer};
use proptest::prelude::*;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const HELLO: [u8; 5] = [0, 0xce, 0xf7, 0x85, 0x3c];

fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn long() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

fn server() -> TcpStoreServer {
    TcpStoreServer::bind("127.0.0.1:0").unwrap()
}

fn client(server: &TcpStoreServer) -> TcpStore {
    TcpStore::connect(&server.address().to_string(), long()).unwrap()
}

fn stranger(server: &TcpStoreServer) -> TcpStream {
    let stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

fn greeted(server: &TcpStoreServer) -> TcpStream {
    let mut stream = stranger(server);
    stream.write_all(&HELLO).unwrap();
    stream
}

/// A text with its length.
fn text(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes(), bytes].concat()
}

fn is_well(store: &TcpStore) {
    let before = store.add("well", 0, long()).unwrap();
    assert_eq!(store.add("well", 1, long()).unwrap(), before + 1);
}

/// Raises the limit of open files, if it is lower, as far as that goes without privileges.
fn may_open(files: u64) {
    let limit = getrlimit(Resource::Nofile);
    // No limit is one that nothing exceeds.
    let [current, most] = [limit.current, limit.maximum].map(|limit| limit.unwrap_or(u64::MAX));
    if current >= files {
        return;
    }
    assert!(
        most >= files,
        "this needs {files} open files, but the hard limit is {most}: raise it with `ulimit -Hn`"
    );
    setrlimit(Resource::Nofile, Rlimit { current: Some(files), ..limit }).unwrap();
}

/// What the process holds in memory.
fn resident() -> usize {
    status("VmRSS:")
}

fn status(name: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() << 10
}

/// A thousand clients that all wait, and are all told.
#[test]
fn a_thousand_clients() {
    let _alone = alone();
    const CLIENTS: usize = 1000;
    may_open(CLIENTS as u64 * 2 + 100);
    let server = server();
    let store = client(&server);
    let before = resident();
    let mut streams: Vec<_> = (0..CLIENTS).map(|_| greeted(&server)).collect();
    for stream in &mut streams {
        stream.write_all(&[13, 4, 3, 2, 1]).unwrap();
        let mut nonce = [0; 4];
        stream.read_exact(&mut nonce).unwrap();
        assert_eq!(nonce, [4, 3, 2, 1]);
    }
    let grown = resident().saturating_sub(before);
    println!("{} bytes for each idle client, both ends", grown / CLIENTS);
    assert!(grown / CLIENTS < 16 << 10, "{} bytes for each idle client", grown / CLIENTS);

    let wait = [&[6][..], &2_u64.to_le_bytes(), &text(b"/a"), &text(b"/b")].concat();
    for stream in &mut streams {
        stream.write_all(&wait).unwrap();
    }
    store.set("a", b"", long()).unwrap();
    is_well(&store);
    store.set("b", b"", long()).unwrap();
    for stream in &mut streams {
        let mut answer = [9];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer, [0]);
    }
}

/// What is only announced takes no memory, though it may be sent; not even memory that nobody touches.
#[test]
fn half_of_a_large_value_costs_what_came() {
    let _alone = alone();
    const CLIENTS: usize = 100;
    let server = server();
    let store = client(&server);
    let before = status("VmData:");
    let large = (8_u64 << 20).to_le_bytes();
    let query = [&[1][..], &text(b"/large"), &large, &[7; 1000]].concat();
    let streams: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let mut stream = greeted(&server);
            stream.write_all(&query).unwrap();
            stream
        })
        .collect();
    is_well(&store);
    let grown = status("VmData:").saturating_sub(before);
    println!("{} bytes for each client that sent a kilobyte of 8 MiB", grown / CLIENTS);
    assert!(grown / CLIENTS < 64 << 10, "{} bytes for each client", grown / CLIENTS);
    drop(streams);
    assert!(!store.check(&["large"], long()).unwrap());
}

/// What comes out of a random stream: nothing that lasts.
fn babble() -> impl Strategy<Value = Vec<u8>> {
    let query = (0..24_u8, prop::collection::vec(piece(), 0..5))
        .prop_map(|(kind, pieces)| [vec![kind], pieces.concat()].concat());
    let start = prop_oneof![Just(HELLO.to_vec()), Just(Vec::new())];
    (start, prop::collection::vec(query, 0..8), prop::collection::vec(any::<u8>(), 0..40))
        .prop_map(|(start, queries, end)| [start, queries.concat(), end].concat())
}

/// What a query could be made of.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..20).prop_map(|bytes| text(&bytes)),
        (0..5_u64).prop_map(|number| number.to_le_bytes().to_vec()),
        any::<u64>().prop_map(|number| number.to_le_bytes().to_vec()),
        (0..40_u64).prop_map(|power| (1_u64 << power).to_le_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 0..20),
    ]
}

/// `COLLECTIVES_BABBLE` says how many streams, 10,000 unless set.
#[test]
fn random_bytes_do_no_harm() {
    let _alone = alone();
    let streams =
        std::env::var("COLLECTIVES_BABBLE").map_or(10_000, |count| count.parse().unwrap());
    let server = server();
    let store = client(&server);
    store.set("fixed", b"value", long()).unwrap();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: streams,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let before = resident();
    runner
        .run(&babble(), |bytes| {
            let mut stream = stranger(&server);
            stream.set_nonblocking(true).unwrap();
            // The server may hang up in the midst of it.
            let _ = stream.write_all(&bytes);
            let _ = stream.read(&mut [0; 4096]);
            drop(stream);
            is_well(&store);
            Ok(())
        })
        .unwrap();
    let grown = resident().saturating_sub(before);
    println!("{grown} bytes more after {streams} streams");
    assert!(grown < 4 << 20, "{grown} bytes more after {streams} streams");
    println!("{} keys at last, of which 2 were meant", store.num_keys(long()).unwrap());
    assert_eq!(store.get("fixed", long()).unwrap(), b"value");
}
