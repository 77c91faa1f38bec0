//! A world on two hosts, and what its ranks are told when the link between them is cut.
//!
//! Needs network namespaces; where a test may not have them, the trials are ignored, by name. The ranks
//! are threads, each with a network of its host; the mock between them needs none.

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("skipped: network namespaces are Linux's");
}

#[cfg(target_os = "linux")]
#[path = "../crates/rendezvous/tests/common/hosts.rs"]
mod hosts;

#[cfg(target_os = "linux")]
fn main() {
    hosts::main(&linux::STAGES);
}

#[cfg(target_os = "linux")]
mod linux {
    use std::{thread, time::Duration};

    use collectives::{
        Error, ErrorKind, ReduceOp, Result, World, WorldConfig, backend_named,
        rendezvous::{Deadline, Environment, Store, TcpStore},
    };

    use crate::hosts::{HERE, Hosts, Stage};

    pub(super) const STAGES: [(&str, Stage); 3] = [
        ("a_world_has_two_hosts", a_world_has_two_hosts),
        ("a_link_is_cut_within_the_roll", a_link_is_cut_within_the_roll),
        ("a_link_is_cut_before_a_join", a_link_is_cut_before_a_join),
    ];

    fn a_world_has_two_hosts(hosts: &Hosts) {
        let sum = |rank: u32| -> Result<f32> {
            let comm = world(rank, 2, LONG)?.communicator("train")?;
            let stream = comm.new_stream()?;
            let mut buffer = stream.upload(&[rank as f32 + 1.0])?;
            comm.on(&stream).all_reduce_in_place(&mut buffer, ReduceOp::Sum)?;
            let sum = buffer.to_vec(&stream)?[0];
            comm.finalize()?;
            Ok(sum)
        };
        thread::scope(|scope| {
            let there = scope.spawn(hosts.over_there(|| sum(1)));
            assert_eq!(sum(0).unwrap(), 3.0);
            assert_eq!(there.join().unwrap().unwrap(), 3.0);
        });
    }

    fn a_link_is_cut_within_the_roll(hosts: &Hosts) {
        // Rank 2 never comes.
        let given = Duration::from_secs(8);
        thread::scope(|scope| {
            let here = scope.spawn(|| world(0, 3, given).unwrap_err());
            let there = scope.spawn(hosts.over_there(|| world(1, 3, given).unwrap_err()));
            let store = TcpStore::connect(&format!("{HERE}:{PORT}"), long()).unwrap();
            store.wait(&["collectives/job/0/0/roll/rank/1"], long()).unwrap();
            hosts.cut();
            is_told(&here.join().unwrap(), "rank 2 of 3 did not come within 8s");
            is_told(
                &there.join().unwrap(),
                "rank 0 of 3, which serves the store, has ended or cannot be reached",
            );
        });
    }

    fn a_link_is_cut_before_a_join(hosts: &Hosts) {
        let given = Duration::from_secs(8);
        thread::scope(|scope| {
            let there = scope.spawn(hosts.over_there(|| world(1, 2, given).unwrap()));
            let here = world(0, 2, given).unwrap();
            let there = there.join().unwrap();
            hosts.cut();
            let cut_off = scope.spawn(hosts.over_there(move || join(&there)));
            is_told(&join(&here), "communicator 'train': rank 1 of 2 did not come within 8s");
            is_told(
                &cut_off.join().unwrap(),
                "rank 0 of 2, which serves the store, has ended or cannot be reached",
            );
        });
    }

    /// The error of a communicator that cannot be.
    fn join(world: &World) -> Error {
        world.communicator("train").map(drop).unwrap_err()
    }

    fn is_told(error: &Error, words: &str) {
        let text = error.to_string();
        assert!(text.contains(words), "'{words}' is not in: {text}");
        assert!(matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Remote), "{error:?}");
    }

    /// As torchrun's variables would have it, with a store that rank 0 serves.
    fn world(rank: u32, size: usize, deadline: Duration) -> Result<World> {
        let variables = [
            ("RANK", rank.to_string()),
            ("WORLD_SIZE", size.to_string()),
            ("MASTER_ADDR", HERE.to_owned()),
            ("MASTER_PORT", PORT.to_string()),
        ];
        let environment = Environment::from_variables(|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone())
        })?;
        WorldConfig::new()
            .with_environment(environment)
            .with_backend(backend_named("mock")?)
            .with_device(rank as usize)
            .with_deadline(deadline)
            .open()
    }

    fn long() -> Deadline {
        Deadline::after(LONG)
    }

    const LONG: Duration = Duration::from_secs(60);

    /// Of a network that nobody else is in.
    const PORT: u16 = 29_500;
}
