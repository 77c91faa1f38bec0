//! `mock::run`: what a test author gets back, in good and in bad health.

use std::{
    sync::{
        Arc, Mutex,
        mpsc::{self, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use collectives::{
    Communicator, Error, ErrorKind, ReduceOp, Result, SplitConfig,
    mock::{self, Action, Cause, FaultPlan, MockConfig, Rule, RunFailure, VerdictKind, World},
};

fn sum(comm: &Communicator) -> Result<f32> {
    let stream = comm.new_stream()?;
    let mut buffer = stream.upload(&[comm.rank() as f32 + 1.0])?;
    comm.on(&stream).all_reduce_in_place(&mut buffer, ReduceOp::Sum)?;
    Ok(buffer.to_vec(&stream)?[0])
}

#[track_caller]
fn fails<T: std::fmt::Debug>(outcome: Result<Vec<T>, RunFailure>, parts: &[&str]) -> RunFailure {
    let failure = outcome.unwrap_err();
    let text = failure.to_string();
    println!("{text}\n");
    assert_eq!(text, format!("{failure:?}"));
    for part in parts {
        assert!(text.contains(part), "'{part}' is not in: {text}");
    }
    failure
}

#[test]
fn values_come_in_rank_order() {
    let values = mock::run(5, |comm| Ok((comm.rank(), sum(&comm)?))).unwrap();
    assert_eq!(values, (0..5).map(|rank| (rank, 15.0)).collect::<Vec<_>>());
    // More ranks than the machine has devices unless told.
    assert_eq!(mock::run(11, |comm| sum(&comm)).unwrap(), [66.0; 11]);
    let config = MockConfig::new().with_devices(1).with_device_memory(64);
    let world = World::new(2).with_config(config);
    let failure = world.run(|comm| comm.new_stream()?.zeros::<f32>(1000).map(|_| ())).unwrap_err();
    assert!(failure.to_string().contains("rank 1: alloc: device 1 has no 4000 bytes"), "{failure}");
}

#[test]
fn the_root_cause_comes_before_what_follows() {
    let own = |comm: Communicator| {
        if comm.rank() == 2 {
            return Err(Error::new(ErrorKind::InvalidArgument, "no such file: weights.bin"));
        }
        sum(&comm)
    };
    let failure = fails(
        mock::run(4, own),
        &[
            "4 of 4 ranks failed after ",
            "\n  rank 2: no such file: weights.bin\n  ranks 0, 1, 3: ",
            "rank 2 left the communicator before it issued what rank ",
        ],
    );
    assert_eq!(failure.failures()[0].rank.map(|rank| rank.get()), Some(2));
    assert!(!failure.is_late());
    assert!(std::error::Error::source(&failure).is_some());
}

#[test]
fn panics_have_message_and_place() {
    let own = |comm: Communicator| {
        assert!(comm.rank() != 1, "rank 1 is out of {}", "luck");
        sum(&comm)
    };
    let failure = fails(
        mock::run(3, own),
        &["\n  rank 1: panicked at tests/mock_run.rs:", "rank 1 is out of luck"],
    );
    let Cause::Panic { message, location: Some(location) } = &failure.failures()[0].cause else {
        panic!("{failure}");
    };
    assert_eq!(message, "rank 1 is out of luck");
    assert!(location.starts_with("tests/mock_run.rs:"));
}

#[test]
fn a_range_outside_of_a_buffer_is_told_where_it_is_written() {
    let outside = |comm: Communicator| {
        let stream = comm.new_stream()?;
        let mut buffer = stream.zeros::<f32>(4)?;
        match comm.rank() {
            0 => drop(buffer.slice(2..9)),
            1 => drop(buffer.slice_mut(2..9)),
            _ => drop(buffer.view_mut().split_at_mut(9)),
        }
        Ok(())
    };
    fails(
        mock::run(3, outside),
        &[
            "rank 0: panicked at tests/mock_run.rs:",
            "rank 1: panicked at tests/mock_run.rs:",
            "rank 2: panicked at tests/mock_run.rs:",
            ": range 2..9 out of range for a buffer of 4 elements",
        ],
    );
}

#[test]
fn a_refusal_is_told_with_its_place() {
    let refused = |comm: Communicator| {
        let stream = comm.new_stream()?;
        let mut buffer = stream.zeros::<f32>(4)?;
        comm.on(&stream).broadcast_in_place(&mut buffer, 9)
    };
    let place = "root is 9, want 0 to 1, called at tests/mock_run.rs:";
    fails(mock::run(2, refused), &["\n  ranks 0, 1: broadcast: ", place]);
}

#[test]
fn a_mismatch_and_a_missing_rank_are_told_once() {
    let start = Instant::now();
    let mismatch = |comm: Communicator| {
        let stream = comm.new_stream()?;
        let mut buffer = stream.zeros::<f32>(4)?;
        let op = if comm.rank() == 0 { ReduceOp::Max } else { ReduceOp::Sum };
        comm.on(&stream).all_reduce_in_place(&mut buffer, op)?;
        stream.synchronize()
    };
    let failure = fails(
        mock::run(3, mismatch),
        &[
            "3 of 3 ranks failed",
            "\n  ranks 0–2: synchronize: ranks disagree on collective #0 in 'world': ",
            "rank 0 calls all_reduce of 4 × f32, max; ranks 1, 2 call all_reduce of 4 × f32, sum; \
             rank 0 is the odd one out",
            "\n      rank  operation   count  dtype  reduce op  stream",
        ],
    );
    assert_eq!(failure.to_string().matches("mock_run.rs:").count(), 2, "{failure}");
    let order = |comm: Communicator| {
        let tp = comm.split(SplitConfig::new(0).with_name("tp"))?.unwrap();
        let (first, second) = if comm.rank() == 0 { (&comm, &tp) } else { (&tp, &comm) };
        sum(first)?;
        sum(second)
    };
    fails(
        mock::run(2, order),
        &[
            "2 of 2 ranks failed",
            "\n  ranks 0, 1: ",
            "ranks 0, 1 wait for each other in 'world' and 'tp'",
            "waits for rank 1, which has not issued its side",
        ],
    );
    println!("both took {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[test]
fn a_rank_that_returns_early_frees_the_others() {
    let start = Instant::now();
    let early = |comm: Communicator| if comm.rank() == 0 { Ok(0.0) } else { sum(&comm) };
    let failure = fails(
        mock::run(3, early),
        &["2 of 3 ranks failed", "\n  ranks 1, 2: ", "rank 0 left the communicator"],
    );
    assert_eq!(failure.failures().len(), 2);
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[test]
fn a_late_world_says_what_its_ranks_do() {
    let held: Arc<Mutex<Vec<Sender<()>>>> = Arc::default();
    let senders = Arc::clone(&held);
    let start = Instant::now();
    // Rank 1 is at work for longer than the world may last; rank 0 waits for it.
    let world = World::new(2).with_deadline(Duration::from_millis(300));
    let outcome = world.run(move |comm| {
        if comm.rank() == 1 {
            let (sender, receiver) = mpsc::channel::<()>();
            senders.lock().unwrap().push(sender);
            let _ = receiver.recv_timeout(Duration::from_secs(9));
        }
        sum(&comm)
    });
    let failure = fails(
        outcome,
        &[
            "the world is not done after 300ms",
            "\n  rank 0: has not ended: its thread waits for stream",
            "its last operation was called at tests/mock_run.rs:",
            "pending: all_reduce #0 of 1 × f32, sum (tests/mock_run.rs:",
            "waiting for rank 1 in 'world'",
            "\n  rank 1: has not ended: its thread runs, or waits outside the library; it has issued \
             nothing",
        ],
    );
    assert!(failure.is_late());
    assert!(start.elapsed() < Duration::from_secs(5));
    held.lock().unwrap().clear();
}

#[test]
fn a_user_s_own_barrier_is_seen_through() {
    // Rank 1 waits outside the library for rank 0, which waits for rank 1.
    let barrier = Arc::new(std::sync::Barrier::new(2));
    let outcome = mock::run(2, move |comm| {
        if comm.rank() == 1 {
            barrier.wait();
            return sum(&comm);
        }
        let outcome = sum(&comm);
        barrier.wait();
        outcome
    });
    fails(outcome, &["rank 1 of 'world' never issues its side of all_reduce #0"]);
}

#[test]
fn helpers_of_a_rank_are_no_reason_for_a_verdict() {
    let sums = mock::run(3, |comm| {
        let other = comm.split(SplitConfig::new(0))?.unwrap();
        let late = comm.rank() == 1;
        let helper = thread::spawn(move || {
            thread::sleep(Duration::from_millis(if late { 150 } else { 0 }));
            sum(&other)
        });
        let first = sum(&comm)?;
        Ok(first + helper.join().unwrap()?)
    });
    assert_eq!(sums.unwrap(), [12.0; 3]);
}

#[test]
fn verdicts_are_data_too() {
    let verdicts = mock::run(1, |_| {
        use collectives::{Backend, Collectives, JoinAllConfig, Launch, RawStream, RecvBuf};
        let mock = mock::Mock::new(MockConfig::new());
        let comms = mock.join_all(JoinAllConfig::new([0, 1]))?;
        let mut value = [0_u8];
        let recv = RecvBuf::typed(value.as_mut_ptr(), 1);
        // SAFETY: nothing touches the value before the communicators are gone.
        unsafe { comms[0].recv(recv, 1.into(), Launch::new(RawStream::DEFAULT)) }?;
        let error = Box::new(comms).into_iter().next().map(|comm| Box::new(comm).finalize());
        assert!(matches!(error, Some(Err(_))), "{error:?}");
        Ok(mock.verdicts())
    });
    let verdicts = verdicts.unwrap().remove(0);
    assert_eq!(verdicts[0].kind, VerdictKind::MissingRank);
}

#[test]
fn a_failure_says_how_to_have_the_run_again() {
    let plan = FaultPlan::new().with_rule(Rule::new(Action::Kill).on_rank(1).at(2..3));
    let config = MockConfig::adversarial(7).with_faults(plan);
    let train = |comm: Communicator| (0..5).try_for_each(|_| sum(&comm).map(|_| ()));
    let failure = fails(
        World::new(3).with_config(config).run(train),
        &[
            "3 of 3 ranks failed after ",
            ", under schedule random(7), fault rule 0 (kill)\n  rank 1: panicked at ",
            "killed by fault rule 0: rank 1 of 3 in 'world' before all_reduce #2",
        ],
    );
    assert!(matches!(failure.failures()[0].cause, Cause::Panic { .. }));
}

/// Runs itself once more, as from the outside.
#[test]
fn the_environment_reaches_worlds() {
    const INSIDE: &str = "MOCK_RUN_INSIDE";
    if std::env::var_os(INSIDE).is_some() {
        println!("{}", mock::run(2, |comm| sum(&comm)).unwrap_err());
        return;
    }
    let run = |plan: &str| {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_environment_reaches_worlds", "--nocapture"])
            .env(INSIDE, "1")
            .env("COLLECTIVES_MOCK_SCHEDULE", "late")
            .env("COLLECTIVES_MOCK_FAULTS", plan)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let text = run("[[rule]]\nrank = 1\naction = 'kill'");
    for part in ["2 of 2 ranks failed", "under schedule late, fault rule 0 (kill)", "rank 1: panic"]
    {
        assert!(text.contains(part), "'{part}' is not in: {text}");
    }
    let text = run("rule = 5");
    assert!(text.contains("COLLECTIVES_MOCK_FAULTS: "), "{text}");
}

/// Ranks as processes of the tests that stand here.
#[cfg(unix)]
mod processes {
    use super::*;

    #[test]
    fn each_rank_has_one_of_its_own() {
        let greeting = String::from("borrowed");
        // As the standard harness names the threads of tests, where it has several.
        let named = thread::Builder::new().name("processes::each_rank_has_one_of_its_own".into());
        let values = thread::scope(|scope| {
            let greeting = &greeting;
            let body = move |comm: Communicator| {
                Ok((comm.rank(), sum(&comm)?, std::process::id(), greeting.len()))
            };
            let test = named.spawn_scoped(scope, move || mock::run_processes(RANKS, body));
            test.unwrap().join().unwrap()
        });
        let values = values.unwrap();
        let total = (1..=RANKS).sum::<usize>() as f32;
        for (rank, value) in (0..).zip(&values) {
            assert_eq!((value.0, value.1, value.3), (rank, total, 8));
            assert_ne!(value.2, std::process::id());
        }
        let mut pids: Vec<_> = values.iter().map(|value| value.2).collect();
        pids.dedup();
        assert_eq!(pids.len(), RANKS);
    }

    #[test]
    fn calls_follow_one_another() {
        let first =
            world("calls_follow_one_another").run_processes(|_| Ok(std::process::id())).unwrap();
        let failure = world("calls_follow_one_another").run_processes(|_| {
            Err::<(), _>(Error::new(ErrorKind::Unsupported, format!("not without {first:?}")))
        });
        let failure = failure.unwrap_err().to_string();
        let third = world("calls_follow_one_another")
            .run_processes(|comm| Ok((first.clone(), failure.clone(), comm.rank())));
        let third = third.unwrap();
        for (rank, (one, two, own)) in (0..).zip(third) {
            assert_eq!((one, two, own), (first.clone(), failure.clone(), rank));
        }
        assert!(failure.contains(&format!("not without {first:?}")), "{failure}");
    }

    #[test]
    fn errors_and_panics_come_with_their_processes() {
        let own =
            |_| Err::<(), _>(Error::new(ErrorKind::OutOfMemory, "no room").with_hint("tidy up"));
        let failure = fails(
            world("errors_and_panics_come_with_their_processes").run_processes(own),
            &[" ranks failed after ", ", as processes ", "no room; tidy up"],
        );
        let Cause::Error(error) = &failure.failures()[0].cause else { panic!("{failure}") };
        assert_eq!((error.kind(), error.hint()), (ErrorKind::OutOfMemory, Some("tidy up")));
        let failure = fails(
            world("errors_and_panics_come_with_their_processes")
                .run_processes::<()>(|comm| panic!("rank {} is out of luck", comm.rank())),
            &["rank 0: panicked at tests/mock_run.rs:", "rank 0 is out of luck"],
        );
        assert!(matches!(failure.failures()[0].cause, Cause::Panic { .. }));
    }

    #[test]
    fn a_death_is_told_with_process_and_status() {
        for (how, status) in [
            ((|| std::process::exit(3)) as fn(), "exit status: 3"),
            (|| std::process::abort(), "signal: 6 (SIGABRT)"),
        ] {
            let failure = world("a_death_is_told_with_process_and_status").run_processes(|_| {
                how();
                Ok(())
            });
            let failure = fails(failure, &["rank 0: its process ", &format!(" ended: {status}")]);
            assert!(matches!(failure.failures()[0].cause, Cause::Ended(_)));
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn survivors_learn_of_a_death() {
        let outcome = world("survivors_learn_of_a_death").run_processes(|comm| {
            sum(&comm)?;
            if comm.rank() == 1 {
                std::process::abort();
            }
            sum(&comm)
        });
        let failure = fails(
            outcome,
            &[
                "3 of 3 ranks failed after ",
                "\n  rank 1: its process ",
                " ended: signal: 6 (SIGABRT)",
                "\n  ranks 0, 2: ",
            ],
        );
        let remote = |cause: &Cause| matches!(cause, Cause::Error(error) if error.kind() == ErrorKind::Remote);
        assert!(failure.failures()[1..].iter().all(|rank| remote(&rank.cause)), "{failure}");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_rank_that_ends_before_the_call_is_not_waited_for() {
        // Who of the processes is rank 1, before the call says so.
        let seat = std::env::var("COLLECTIVES_CREW");
        if seat.is_ok_and(|seat| seat.starts_with("1/")) {
            // The others have the id by then, or would be told that there will be none.
            thread::sleep(Duration::from_secs(2));
            std::process::exit(4);
        }
        let start = Instant::now();
        let outcome = world("a_rank_that_ends_before_the_call_is_not_waited_for")
            .run_processes(|comm| Ok(comm.rank()));
        let failure = fails(
            outcome,
            &[
                "3 of 3 ranks failed after ",
                "\n  rank 1: its process ",
                " ended: exit status: 4",
                "\n  ranks 0, 2: join: ranks wait in the join of 'world' for ranks that never come",
                "rank 1: has not joined, and process 1 (pid ",
                ") ended with exit code 4",
            ],
        );
        let is_verdict = |cause: &Cause| matches!(cause, Cause::Error(error) if error.kind() == ErrorKind::Deadlock);
        assert!(failure.failures()[1..].iter().all(|rank| is_verdict(&rank.cause)), "{failure}");
        assert!(start.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_rank_that_ends_before_there_is_an_id_is_named() {
        // Rank 0 makes it.
        if std::env::var("COLLECTIVES_CREW").is_ok_and(|seat| seat.starts_with("0/")) {
            std::process::exit(4);
        }
        let outcome = world("a_rank_that_ends_before_there_is_an_id_is_named")
            .run_processes(|comm| Ok(comm.rank()));
        fails(
            outcome,
            &[
                "3 of 3 ranks failed after ",
                "\n  rank 0: its process ",
                "\n  ranks 1, 2: no rank has joined yet, and one never will: rank 0 (pid ",
                ") ended: exit status: 4; see what that rank printed last",
            ],
        );
    }

    #[test]
    fn a_late_world_is_killed_and_says_what_its_ranks_do() {
        let start = Instant::now();
        let world = world("a_late_world_is_killed_and_says_what_its_ranks_do")
            .with_deadline(Duration::from_millis(500));
        let outcome = world.run_processes(|comm| {
            if comm.rank() == 0 {
                thread::sleep(Duration::from_secs(600));
            }
            Ok(())
        });
        let failure = fails(
            outcome,
            &[
                "the world is not done after 500ms",
                "\n  rank 0: has not ended: its thread runs, or waits outside the library; it has issued \
             nothing",
            ],
        );
        assert!(failure.is_late());
        assert!(start.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn what_ranks_print_is_the_test_s() {
        // What a test prints is seen from outside alone.
        const INSIDE: &str = "MOCK_RUN_INSIDE";
        if std::env::var_os(INSIDE).is_some() {
            println!("before");
            let values = world("what_ranks_print_is_the_test_s").run_processes(|comm| {
                println!("out of {}", comm.rank());
                eprintln!("err of {}", comm.rank());
                Ok(f32::NAN)
            });
            println!("after: {}", values.unwrap_err());
            return;
        }
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "processes::what_ranks_print_is_the_test_s", "--nocapture"])
            .env(INSIDE, "1")
            .output()
            .unwrap();
        let [out, err] =
            [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        assert!(err.contains("rank 0| out of 0\n") && err.contains("rank 0| err of 0\n"), "{err}");
        assert_eq!(out.matches("before").count(), 1, "{out}");
        assert!(out.contains("after: ") && out.contains("return its bits"), "{out}");
    }

    #[test]
    fn a_test_needs_a_name_and_must_come_to_the_call() {
        let elsewhere = thread::Builder::new().name("main".into());
        let failure = elsewhere.spawn(|| mock::run_processes(RANKS, |_| Ok(()))).unwrap();
        fails(failure.join().unwrap(), &["not the name of a test", "with_test"]);
        let unknown = World::new(RANKS).with_test("processes::no_such_test");
        fails(
            unknown.run_processes(|_| Ok(())),
            &[" ended: exit status: 0, and did not come to this call: is there a test \
             'processes::no_such_test'"],
        );
    }

    /// The ranks of a test, whatever thread runs it.
    fn world(test: &str) -> World {
        World::new(RANKS).with_test(format!("processes::{test}"))
    }

    const RANKS: usize = 3;
}
