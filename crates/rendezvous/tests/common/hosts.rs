//! Two hosts, and a link between them that can be cut: network namespaces, joined by a pair of virtual
//! interfaces.
//!
//! Each trial runs in a process that has new namespaces of its own, so nothing of it is seen outside.
//! Where a test may not have them, or `unshare` and `ip` are not there, trials are ignored, by name.

use std::{
    env, fs,
    os::fd::AsFd as _,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use libtest_mimic::{Arguments, Failed, Trial};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// What a trial does on the hosts.
pub(crate) type Stage = fn(&Hosts);

/// The whole of a test program: a trial for each of `stages`.
pub(crate) fn main(stages: &[(&'static str, Stage)]) {
    if let Ok(name) = env::var(STAGE) {
        let (_, stage) = stages.iter().find(|(stage, _)| *stage == name).expect("a stage");
        return stage(&Hosts::new());
    }
    let arguments = Arguments::from_args();
    let way = WAYS.into_iter().find(|way| is_permitted(way));
    let trials = stages.iter().map(|&(name, _)| {
        let trial = Trial::test(name, move || run(way.unwrap_or(WAYS[0]), name));
        match way {
            Some(_) => trial,
            None => trial.with_kind("needs network namespaces").with_ignored_flag(true),
        }
    });
    libtest_mimic::run(&arguments, trials.collect()).exit();
}

/// This process's network, and that of another that does nothing.
pub(crate) struct Hosts {
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

    pub(crate) fn cut(&self) {
        ip("link set here down");
    }

    pub(crate) fn mend(&self) {
        ip("link set here up");
    }

    fn namespace(&self) -> String {
        format!("/proc/{}/ns/net", self.other.id())
    }

    /// Runs something on the other host.
    pub(crate) fn there<R: Send>(&self, run: impl FnOnce() -> R + Send) -> R {
        thread::scope(|scope| scope.spawn(self.over_there(run)).join().unwrap())
    }

    /// What a thread of its own runs on the other host. What it connects there stays there.
    pub(crate) fn over_there<R, F: FnOnce() -> R>(&self, run: F) -> impl FnOnce() -> R + use<R, F> {
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

/// The address of this host, and of the other, on their link.
pub(crate) const HERE: &str = "10.77.0.1";
const THERE: &str = "10.77.0.2";

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("ip");
    assert!(status.success(), "ip {arguments}: {status}");
}

/// Runs a stage in a network of its own.
fn run(way: &[&str], name: &str) -> Result<(), Failed> {
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

/// As anybody; and as root, where users may not have namespaces of their own.
const WAYS: [&[&str]; 2] =
    [&["unshare", "--user", "--map-root-user", "--net"], &["unshare", "--net"]];

/// Which stage this process is for.
const STAGE: &str = "COLLECTIVES_HOSTS_STAGE";
