//! Ranks on two hosts, and what happens when the link between them is cut.
//!
//! The hosts are two network namespaces, joined by a pair of virtual interfaces. Each trial runs in a
//! process that has new namespaces of its own, so nothing of it is seen outside. Where a test may not
//! have them, or `unshare` and `ip` are not there, the trials are ignored, by name.

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("skipped: network namespaces are Linux's");
}

#[cfg(target_os = "linux")]
#[path = "common/script.rs"]
mod script;

#[cfg(target_os = "linux")]
fn main() {
    linux::main();
}

#[cfg(target_os = "linux")]
mod linux {
    use std::{
        env, fs,
        io::Write as _,
        net::{SocketAddr, TcpStream},
        os::fd::AsFd as _,
        process::{Child, Command, Stdio},
        thread,
        time::{Duration, Instant},
    };

    use collectives_core::{Error, ErrorKind, Result};
    use collectives_rendezvous::{
        Deadline, Limits, Store, TcpStore, TcpStoreServer, exchange, share,
    };
    use libtest_mimic::{Arguments, Failed, Trial};
    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

    use crate::script;

    /// What a trial does on the hosts.
    type Stage = fn(&Hosts);

    const STAGES: [(&str, Stage); 3] = [
        ("ranks_of_two_hosts_meet", ranks_of_two_hosts_meet),
        ("a_cut_link_ends_every_wait", a_cut_link_ends_every_wait),
        ("the_server_drops_who_is_gone", the_server_drops_who_is_gone),
    ];

    fn ranks_of_two_hosts_meet(hosts: &Hosts) {
        let server = hosts.server(Limits::default());
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
        let given = Duration::from_secs(3);
        let server = hosts.server(Limits::default());
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
            // The rank on this host learns who is missing from the store, which is here.
            let first = scope.spawn(|| {
                exchange(&connect(&server), "meeting", 0, 3, b"", Deadline::after(given))
                    .unwrap_err()
            });
            here.wait(&["begun/get", "begun/wait", "begun/share", "meeting/1"], long()).unwrap();
            thread::sleep(Duration::from_millis(100));
            hosts.cut();
            for wait in waiting {
                let (name, error) = wait.join().unwrap();
                let words = "no answer within 3s, nor when asked which keys are missing";
                is_cut_off(name, &error, words);
            }
            let told = first.join().unwrap().to_string();
            assert!(told.contains("rank 2 of 3 did not come within 3s"), "{told}");
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
        let server = hosts.server(Limits { silence, ..Limits::default() });
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

    fn connect(server: &TcpStoreServer) -> TcpStore {
        TcpStore::connect(&server.address().to_string(), long()).unwrap()
    }

    fn long() -> Deadline {
        Deadline::after(Duration::from_secs(60))
    }

    /// This process's network, and that of another that does nothing.
    struct Hosts {
        other: Child,
    }

    impl Hosts {
        fn new() -> Self {
            let other = Command::new("unshare")
                .args(["--net", "cat"])
                .stdin(Stdio::piped())
                .spawn()
                .expect("unshare");
            let hosts = Self { other };
            let own = fs::read_link("/proc/self/ns/net").unwrap();
            while fs::read_link(hosts.namespace()).unwrap() == own {
                thread::sleep(Duration::from_millis(1));
            }
            ip("link add here type veth peer name there");
            ip(&format!("link set there netns {}", hosts.other.id()));
            ip("link set lo up");
            ip(&format!("address add {HERE}/24 dev here"));
            hosts.mend();
            hosts.there(|| {
                ip(&format!("address add {THERE}/24 dev there"));
                ip("link set there up");
            });
            hosts
        }

        fn server(&self, limits: Limits) -> TcpStoreServer {
            TcpStoreServer::bind_within((HERE, 0), limits).unwrap()
        }

        fn cut(&self) {
            ip("link set here down");
        }

        fn mend(&self) {
            ip("link set here up");
        }

        fn namespace(&self) -> String {
            format!("/proc/{}/ns/net", self.other.id())
        }

        /// Runs something on the other host.
        fn there<R: Send>(&self, run: impl FnOnce() -> R + Send) -> R {
            thread::scope(|scope| scope.spawn(self.over_there(run)).join().unwrap())
        }

        /// What a thread of its own runs on the other host. What it connects there stays there.
        fn over_there<R, F: FnOnce() -> R>(&self, run: F) -> impl FnOnce() -> R + use<R, F> {
            let namespace = fs::File::open(self.namespace()).unwrap();
            move || {
                let kind = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(namespace.as_fd(), kind).expect("the other host");
                run()
            }
        }
    }

    impl Drop for Hosts {
        fn drop(&mut self) {
            // It is this process's own, and holds nothing; if it cannot be ended, it ends with its input.
            let _ = self.other.kill();
            let _ = self.other.wait();
        }
    }

    const HERE: &str = "10.77.0.1";
    const THERE: &str = "10.77.0.2";

    fn ip(arguments: &str) {
        let status = Command::new("ip").args(arguments.split(' ')).status().expect("ip");
        assert!(status.success(), "ip {arguments}: {status}");
    }

    pub(super) fn main() {
        if let Ok(name) = env::var(STAGE) {
            let (_, stage) = STAGES.into_iter().find(|(stage, _)| *stage == name).expect("a stage");
            return stage(&Hosts::new());
        }
        let arguments = Arguments::from_args();
        let way = WAYS.into_iter().find(|way| is_permitted(way));
        let trials = STAGES.into_iter().map(|(name, _)| {
            let trial = Trial::test(name, move || run(way.unwrap_or(WAYS[0]), name));
            match way {
                Some(_) => trial,
                None => trial.with_kind("needs network namespaces").with_ignored_flag(true),
            }
        });
        libtest_mimic::run(&arguments, trials.collect()).exit();
    }

    /// Runs a stage in a network of its own.
    fn run(way: &[&str], name: &str) -> std::result::Result<(), Failed> {
        let program = env::current_exe()?;
        let output = Command::new(way[0]).args(&way[1..]).arg(program).env(STAGE, name).output()?;
        if output.status.success() {
            return Ok(());
        }
        Err(format!("{}\n{}", output.status, String::from_utf8_lossy(&output.stderr)).into())
    }

    fn is_permitted(way: &[&str]) -> bool {
        Command::new(way[0])
            .args(&way[1..])
            .args(["ip", "link", "add", "here", "type", "veth", "peer", "name", "there"])
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    }

    /// Without being root, and being it where users may not be root of their own namespaces.
    const WAYS: [&[&str]; 2] =
        [&["unshare", "--user", "--map-root-user", "--net"], &["unshare", "--net"]];

    /// Which stage this process is for.
    const STAGE: &str = "COLLECTIVES_HOSTS_STAGE";
}
