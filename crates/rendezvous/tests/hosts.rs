//! Ranks on two hosts, and what happens when the link between them is cut.
//!
//! Needs network namespaces; where a test may not have them, the trials are ignored, by name.

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("skipped: network namespaces are Linux's");
}

#[cfg(target_os = "linux")]
#[path = "common/hosts.rs"]
mod hosts;
#[cfg(target_os = "linux")]
#[path = "common/script.rs"]
mod script;

#[cfg(target_os = "linux")]
fn main() {
    hosts::main(&linux::STAGES);
}

#[cfg(target_os = "linux")]
mod linux {
    use std::{
        fs,
        io::Write as _,
        net::{SocketAddr, TcpStream},
        thread,
        time::{Duration, Instant},
    };

    use collectives_core::{Error, ErrorKind, Result};
    use collectives_rendezvous::{
        Deadline, Limits, Store, TcpStore, TcpStoreServer, exchange, share,
    };

    use crate::{
        hosts::{HERE, Hosts, Stage},
        script,
    };

    pub(super) const STAGES: [(&str, Stage); 3] = [
        ("ranks_of_two_hosts_meet", ranks_of_two_hosts_meet),
        ("a_cut_link_ends_every_wait", a_cut_link_ends_every_wait),
        ("the_server_drops_who_is_gone", the_server_drops_who_is_gone),
    ];

    fn ranks_of_two_hosts_meet(hosts: &Hosts) {
        let server = serve(Limits::default());
        let features = script::Features { queues: true, list_keys: true };
        assert_eq!(hosts.there(|| script::run(&connect(&server), features)), [""; 0]);

        let rank = |rank: u32, part: &[u8]| {
            let store = connect(&server);
            let made = (rank == 0).then_some(&b"id"[..]);
            assert_eq!(share(&store, "id/0", made, long()).unwrap(), b"id");
            exchange(&store, "parts/0", rank, 2, part, long()).unwrap()
        };
        thread::scope(|scope| {
            let there = scope.spawn(hosts.over_there(|| rank(1, b"beta")));
            let here = rank(0, b"alpha");
            assert_eq!(here, [&b"alpha"[..], b"beta"]);
            assert_eq!(there.join().unwrap(), here);
        });
    }

    fn a_cut_link_ends_every_wait(hosts: &Hosts) {
        type Wait = fn(&TcpStore, Deadline) -> Result<()>;
        let waits: [(&str, Wait); 4] = [
            ("get", |store, deadline| store.get("never", deadline).map(drop)),
            ("wait", |store, deadline| store.wait(&["never", "nor this"], deadline)),
            ("share", |store, deadline| share(store, "never", None, deadline).map(drop)),
            ("exchange", |store, deadline| {
                exchange(store, "meeting", 1, 3, b"", deadline).map(drop)
            }),
        ];
        let given = Duration::from_secs(6);
        let server = serve(Limits::default());
        let here = connect(&server);
        let there = hosts.there(|| connect(&server));
        thread::scope(|scope| {
            let wait = |(name, wait): (&'static str, Wait)| {
                let (server, given) = (&server, &given);
                scope.spawn(hosts.over_there(move || {
                    let store = connect(server);
                    // The link is not to be cut before.
                    store.set(&format!("begun/{name}"), b"", long()).unwrap();
                    (name, wait(&store, Deadline::after(*given)).unwrap_err())
                }))
            };
            let waiting = waits.map(wait);
            here.wait(&["begun/get", "begun/wait", "begun/share", "meeting/1"], long()).unwrap();
            // The rank on this host learns who is missing from the store, which is here.
            let first = scope.spawn(|| {
                exchange(&connect(&server), "meeting", 0, 3, b"", Deadline::after(given))
                    .unwrap_err()
            });
            thread::sleep(Duration::from_millis(100));
            hosts.cut();
            for wait in waiting {
                let (name, error) = wait.join().unwrap();
                let words = "no answer within 6s, nor when asked which keys are missing";
                is_cut_off(name, &error, words);
            }
            let told = first.join().unwrap().to_string();
            assert!(told.contains("rank 2 of 3 did not come within 6s"), "{told}");
        });

        // What begins now ends as well: on a connection from before, and on new ones.
        let soon = || Deadline::after(Duration::from_secs(1));
        let set = hosts.there(|| there.set("key", b"", soon()).unwrap_err());
        is_cut_off("set", &set, "no answer within 1s");
        for _ in 0..2 {
            let add = hosts.there(|| there.add("number", 1, soon()).unwrap_err()).to_string();
            assert!(add.contains("connect: "), "{add}");
            assert!(add.contains("see whether this host reaches that one"), "{add}");
        }

        // Nothing is lost for good.
        hosts.mend();
        hosts.there(|| there.set("after", b"the cut", long()).unwrap());
        assert_eq!(here.get("after", long()).unwrap(), b"the cut");
    }

    fn is_cut_off(name: &str, error: &Error, words: &str) {
        assert_eq!(error.kind(), ErrorKind::Timeout, "{name}: {error}");
        let text = error.to_string();
        assert!(text.contains(words), "{name}: {text}");
        assert!(text.contains("see whether rank 0, which serves the store, is alive"), "{text}");
    }

    fn the_server_drops_who_is_gone(hosts: &Hosts) {
        let silence = Duration::from_secs(2);
        let server = serve(Limits { silence, ..Limits::default() });
        let here = connect(&server);
        let connected = |count: usize| {
            let deadline = Instant::now() + Duration::from_secs(60);
            while connections(server.address()) != count {
                assert!(Instant::now() < deadline, "{} clients", connections(server.address()));
                thread::sleep(Duration::from_millis(50));
            }
        };
        connected(1);
        // One that is idle, and one that waits.
        let _clients = hosts.there(|| {
            let idle = TcpStream::connect(server.address()).unwrap();
            let mut waiting = TcpStream::connect(server.address()).unwrap();
            let key = [&[6][..], &1_u64.to_le_bytes(), &4_u64.to_le_bytes(), b"/key"].concat();
            waiting.write_all(&[&[0, 0xce, 0xf7, 0x85, 0x3c][..], &key].concat()).unwrap();
            [idle, waiting]
        });
        connected(3);
        // To be silent for longer than that on a good link is no reason to be dropped.
        thread::sleep(2 * silence);
        assert_eq!(connections(server.address()), 3);
        hosts.cut();
        // Only the one on this host is left.
        connected(1);
        here.set("key", b"", long()).unwrap();
    }

    /// Clients that the kernel of this host has connections of.
    fn connections(server: SocketAddr) -> usize {
        const ESTABLISHED: &str = "01";
        let table = fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
        let port = format!(":{:04X}", server.port());
        table
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .filter(|line| line[1].ends_with(&port) && line[3] == ESTABLISHED)
            .count()
    }

    fn serve(limits: Limits) -> TcpStoreServer {
        TcpStoreServer::bind_within((HERE, 0), limits).unwrap()
    }

    fn connect(server: &TcpStoreServer) -> TcpStore {
        TcpStore::connect(&server.address().to_string(), long()).unwrap()
    }

    fn long() -> Deadline {
        Deadline::after(Duration::from_secs(60))
    }
}
