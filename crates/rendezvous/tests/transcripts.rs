//! What PyTorch's clients and servers said, recorded by `tests/python/interop.py --record`.
//!
//! A line is who speaks (`>` the client, `<` the server) and bytes in hexadecimal.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use collectives_rendezvous::{Deadline, Dialect, TcpStore, TcpStoreServer};

#[path = "common/script.rs"]
mod script;

/// PyTorch's client among itself: our server answers the same as PyTorch's.
#[test]
fn our_server_answers_as_pytorchs() {
    for path in transcripts("client-") {
        let server = TcpStoreServer::bind("127.0.0.1:0").unwrap();
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        for (number, line) in read(&path).iter().enumerate() {
            match line {
                Line::Client(bytes) => stream.write_all(bytes).unwrap(),
                Line::Server(expected) => {
                    let mut answer = vec![0; expected.len()];
                    stream.read_exact(&mut answer).unwrap();
                    assert_eq!(&answer, expected, "{}, line {}", path.display(), number + 1);
                }
            }
        }
    }
}

/// Our client at PyTorch's server: it says the same again, and understands the answers.
#[test]
fn our_client_understands_pytorchs_server() {
    for path in transcripts("server-") {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let mut parts = name.split('-').skip(1);
        let version = parts.next().unwrap().split('.').take(2);
        let version: Vec<u32> = version.map(|part| part.parse().unwrap()).collect();
        let libuv = parts.next() == Some("libuv");
        let dialect = if version < vec![2, 2] { Dialect::Torch21 } else { Dialect::Torch22 };
        let features = script::Features {
            queues: libuv && version >= vec![2, 8],
            list_keys: version >= vec![2, 11],
        };

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            for (number, line) in read(&path).iter().enumerate() {
                match line {
                    Line::Client(expected) => {
                        let mut query = vec![0; expected.len()];
                        stream.read_exact(&mut query).unwrap();
                        assert_eq!(&query, expected, "{}, line {}", path.display(), number + 1);
                    }
                    Line::Server(bytes) => stream.write_all(bytes).unwrap(),
                }
            }
        });
        let deadline = Deadline::after(Duration::from_secs(60));
        let store = TcpStore::connect_as(&address, dialect, deadline).unwrap();
        assert_eq!(script::run(&store, features), [""; 0], "{name}");
        server.join().unwrap();
    }
}

enum Line {
    Client(Vec<u8>),
    Server(Vec<u8>),
}

fn transcripts(start: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let mut paths: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(start))
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "no transcripts {start}…");
    paths
}

fn read(path: &Path) -> Vec<Line> {
    let bytes = |hex: &str| {
        (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
            .collect()
    };
    fs::read_to_string(path)
        .unwrap()
        .lines()
        .map(|line| match line.split_at(2) {
            ("> ", hex) => Line::Client(bytes(hex)),
            ("< ", hex) => Line::Server(bytes(hex)),
            (other, _) => panic!("{}: a line starts with '{other}'", path.display()),
        })
        .collect()
}
