//! Faults: each action, who notices, and that a plan does the same in every run.

mod kit;

use std::{panic, thread, time::Duration};

use collectives_backend_mock::{
    Action, AliveKind, FaultPlan, JoinState, Mock, MockConfig, PendingStatus, Rule, Schedule,
    Sequence,
};
use collectives_core::{
    Backend, BackendExt, Collectives, Device, ErrorKind, GrowConfig, JoinAllConfig, JoinConfig,
    Rank, ShrinkConfig, Split, SplitConfig, Version,
};
use kit::{End, end, ends, named};

fn mock(devices: usize, rule: Rule) -> Mock {
    with_plan(devices, FaultPlan::new().with_rule(rule))
}

fn with_plan(devices: usize, plan: FaultPlan) -> Mock {
    Mock::new(MockConfig::new().with_devices(devices).with_faults(plan))
}

/// What nobody lives to see.
const AGES: Duration = Duration::from_secs(3600);
/// A limit for what is meant to hang.
const SOON: Duration = Duration::from_millis(30);

fn held(mock: &Mock) -> Vec<(u32, u64)> {
    let is_held = |status: &PendingStatus| matches!(status, PendingStatus::Held(_));
    let pending = mock.pending();
    let held = pending.iter().filter(|op| is_held(&op.status));
    let mut held: Vec<_> = held.map(|op| (op.rank.get(), op.sequence)).collect();
    held.sort_unstable();
    held
}

#[test]
fn a_killed_rank_unwinds_and_the_others_are_told() {
    let mock = mock(3, Rule::new(Action::Kill).on_rank(1).on_operation("all_reduce").at(2..3));
    let (comms, side) = (ends(&mock, 3), named(&mock, 3, "side"));
    let outcomes: Vec<_> = thread::scope(|scope| {
        let ranks: Vec<_> = comms.into_iter().map(|end| scope.spawn(move || train(&end))).collect();
        ranks.into_iter().map(|rank| rank.join()).collect()
    });
    for (rank, outcome) in outcomes.into_iter().enumerate() {
        match outcome {
            Ok((rounds, error)) => {
                assert_eq!((rounds, error.kind()), (2, ErrorKind::Remote), "rank {rank}: {error}");
                let text = error.to_string();
                assert!(text.contains("fault rule 0 (kill)"), "{text}");
            }
            Err(payload) => {
                assert_eq!(rank, 1);
                let text = payload.downcast::<String>().expect("a String");
                let wanted = "killed by fault rule 0: rank 1 of 3 in 'test' before all_reduce #2 (";
                assert!(text.starts_with(wanted), "{text}");
            }
        }
    }
    // It is gone from its other communicators too, and stays so.
    let buf = side[0].buf(&[1]);
    side[0].all_reduce(buf, buf).unwrap();
    assert_eq!(side[0].wait().unwrap_err().kind(), ErrorKind::Remote);
    let error = side[1].all_reduce(side[1].buf(&[1]), side[1].buf(&[1])).unwrap_err();
    assert!(error.to_string().contains("killed by fault rule 0"), "{error}");
}

/// All-reduces until something fails.
fn train(end: &End) -> (usize, collectives_core::Error) {
    let buf = end.buf(&[1]);
    for round in 0..100 {
        if let Err(error) = end.all_reduce(buf, buf).and_then(|()| end.wait()) {
            return (round, error);
        }
    }
    panic!("nothing fails");
}

#[test]
fn a_kill_in_a_group_counts_the_members_before_it() {
    let mock = mock(2, Rule::new(Action::Kill).on_operation("send").on_rank(0).at(2..3));
    let ends = ends(&mock, 2);
    let outcome = panic::catch_unwind(panic::AssertUnwindSafe(|| {
        mock.group(|_| {
            for _ in 0..4 {
                ends[0].send(ends[0].buf(&[1]), 1)?;
            }
            Ok(())
        })
    }));
    assert!(outcome.unwrap_err().downcast::<String>().unwrap().contains("before send #2"));
    assert!(mock.pending().is_empty(), "nothing of the group was issued");
}

#[test]
fn a_delayed_operation_arrives_later_and_holds_up_nothing_else() {
    let rule = Rule::new(Action::Delay(AGES)).on_rank(1).on_communicator("test").at(0..1);
    let mock = mock(2, rule);
    let (ends, other) = (ends(&mock, 2), named(&mock, 2, "other"));
    let bufs: Vec<_> = ends.iter().map(|end| (end.buf(&[1]), end.buf(&[1]))).collect();
    for (rank, end) in ends.iter().enumerate() {
        end.all_reduce(bufs[rank].0, bufs[rank].0).unwrap();
        other[rank].all_reduce(bufs[rank].1, bufs[rank].1).unwrap();
    }
    other.iter().for_each(|end| end.wait().unwrap());
    assert_eq!(held(&mock), [(1, 0)]);
    let error = ends[0].wait_for(ends[0].stream, SOON).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    for part in ["waiting for rank 1", "held by fault rule 0", "under fault rule 0 (delay 3600s)"] {
        assert!(error.to_string().contains(part), "'{part}' is not in: {error}");
    }
    // An abort ends what is delayed.
    ends[0].comm.abort_handle().abort().unwrap();
    assert_eq!(ends[1].wait().unwrap_err().kind(), ErrorKind::Remote);
    assert!(mock.pending().is_empty());
}

#[test]
fn delays_end_by_themselves_under_every_schedule() {
    for schedule in [Schedule::Eager, Schedule::Late, Schedule::Random(1)] {
        let rule = Rule::new(Action::Delay(Duration::from_millis(2))).every(2);
        let config = MockConfig::strict().with_devices(2).with_schedule(schedule);
        let mock = Mock::new(config.with_faults(FaultPlan::new().with_rule(rule)));
        let ends = ends(&mock, 2);
        let bufs: Vec<_> = ends.iter().map(|end| end.buf(&[1])).collect();
        for _ in 0..6 {
            for (end, &buf) in ends.iter().zip(&bufs) {
                end.all_reduce(buf, buf).unwrap();
                mock.group(|_| {
                    let peer = 1 - end.comm.info().rank.get();
                    end.send(buf, peer)?;
                    end.recv(end.buf(&[0]), peer)
                })
                .unwrap();
            }
        }
        ends.iter().for_each(|end| end.wait().unwrap());
        assert_eq!(bufs[0].now(), [64], "{schedule}");
    }
}

#[test]
fn a_straggler_is_slow_from_then_on() {
    let mock = mock(2, Rule::new(Action::Straggle(AGES)).on_rank(0).at(2..3));
    let ends = ends(&mock, 2);
    let streams: Vec<_> = (0..5).map(|_| ends[0].device.stream_create().unwrap()).collect();
    for &stream in &streams {
        let buf = ends[0].buf(&[1]);
        ends[0].all_reduce_on(buf, buf, stream).unwrap();
    }
    assert_eq!(held(&mock), [(0, 2), (0, 3), (0, 4)]);
}

#[test]
fn a_rule_fires_as_often_as_it_may_on_each_rank_of_each_communicator() {
    let mock = mock(2, Rule::new(Action::Hang).every(2).at_most(2));
    for name in ["one", "two"] {
        let ends = named(&mock, 2, name);
        for end in &ends {
            for _ in 0..8 {
                let buf = end.buf(&[1]);
                let stream = end.device.stream_create().unwrap();
                end.all_reduce_on(buf, buf, stream).unwrap();
            }
        }
        assert_eq!(held(&mock), [(0, 1), (0, 3), (1, 1), (1, 3)], "{name}");
        ends[0].comm.abort_handle().abort().unwrap();
    }
}

#[test]
fn what_hangs_is_named_and_an_abort_frees_it_to_join_again() {
    let mock = mock(2, Rule::new(Action::Hang).on_communicator("first").on_rank(1).at(1..2));
    let first = named(&mock, 2, "first");
    let bufs: Vec<_> = first.iter().map(|end| end.buf(&[1])).collect();
    for (end, &buf) in first.iter().zip(&bufs) {
        end.all_reduce(buf, buf).unwrap();
        end.all_reduce(buf, buf).unwrap();
    }
    let error = first[0].wait_for(first[0].stream, SOON).unwrap_err().to_string();
    for part in ["all_reduce #1", "waiting for rank 1", "held by fault rule 0", "(hang)"] {
        assert!(error.contains(part), "'{part}' is not in: {error}");
    }
    for end in &first {
        end.comm.abort_handle().abort().unwrap();
    }
    first[0].wait().unwrap();
    assert_eq!(first[1].wait().unwrap_err().kind(), ErrorKind::Remote, "rank 0 was the first");
    assert_eq!(bufs[0].now(), [2], "the first ran, the second moved nothing");
    drop(first);
    let second = named(&mock, 2, "second");
    for (end, &buf) in second.iter().zip(&bufs) {
        end.all_reduce(buf, buf).unwrap();
        end.all_reduce(buf, buf).unwrap();
    }
    second.iter().for_each(|end| end.wait().unwrap());
    assert_eq!(bufs[0].now(), [8]);
}

#[test]
fn a_member_that_hangs_holds_its_group() {
    let mock = mock(2, Rule::new(Action::Hang).on_operation("send").on_rank(0));
    let ends = ends(&mock, 2);
    for (rank, end) in ends.iter().enumerate() {
        mock.group(|_| {
            end.send(end.buf(&[1]), 1 - rank as u32)?;
            end.recv(end.buf(&[1]), 1 - rank as u32)
        })
        .unwrap();
    }
    assert_eq!(ends[1].wait_for(ends[1].stream, SOON).unwrap_err().kind(), ErrorKind::Timeout);
    ends[1].comm.abort_handle().abort().unwrap();
    assert_eq!(ends[0].wait().unwrap_err().kind(), ErrorKind::Remote);
}

#[test]
fn asynchronous_errors_come_at_once_or_by_polling() {
    for (after, kind) in [(0, ErrorKind::Remote), (3, ErrorKind::System), (1, ErrorKind::Internal)]
    {
        let mock = mock(2, Rule::new(Action::AsyncError { after, kind }).on_rank(1).at(1..2));
        let ends = ends(&mock, 2);
        let bufs: Vec<_> = ends.iter().map(|end| end.buf(&[1])).collect();
        let step = |rank: usize| ends[rank].all_reduce(bufs[rank], bufs[rank]);
        (0..2).for_each(|rank| step(rank).unwrap());
        ends.iter().for_each(|end| end.wait().unwrap());
        ends[1].comm.poll_error().unwrap();
        (0..2).for_each(|rank| step(rank).unwrap());
        let outcomes: Vec<_> = ends.iter().map(End::wait).collect();
        assert_eq!(outcomes.iter().all(Result::is_ok), after > 0, "after {after} polls");
        for poll in 1..after {
            ends[1].comm.poll_error().unwrap_or_else(|error| panic!("poll {poll}: {error}"));
            ends[0].comm.poll_error().unwrap();
        }
        for end in ends.iter().rev() {
            let error = end.comm.poll_error().unwrap_err();
            assert_eq!(error.kind(), kind);
            assert!(error.poisons_communicator());
            assert!(error.to_string().contains("by fault rule 0"), "{error}");
        }
        assert_eq!(step(0).unwrap_err().kind(), kind);
    }
}

#[test]
fn memory_runs_out_at_the_allocation_that_was_said() {
    let rule = Rule::new(Action::OutOfMemory { allocation: 1 }).on_rank(1).at_most(2);
    let mock = mock(2, rule);
    let [zero, one] = [0, 1].map(|device| mock.device(device).unwrap());
    let comms = mock.join_all(JoinAllConfig::new([0, 1])).unwrap();
    for _ in 0..4 {
        zero.alloc(8).unwrap();
    }
    one.alloc(8).unwrap();
    for error in [one.alloc(8).unwrap_err(), comms[1].mem_alloc(8).unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::OutOfMemory);
        assert!(error.to_string().contains("8 bytes left; by fault rule 0"), "{error}");
    }
    assert_eq!(mock.alive().count(AliveKind::Buffer), 5, "what was not had is not alive");
    one.alloc(8).unwrap();
    assert_eq!(mock.alive().count(AliveKind::Buffer), 6);
    assert!(mock.alive().to_string().contains("faults.rs:"), "{}", mock.alive());
}

#[test]
fn joins_fail_hang_and_come_late() {
    let join = |mock: &Mock, deadline: Duration| {
        let id = mock.unique_id().unwrap();
        let join = |rank: u32| {
            let config = JoinConfig::new(Rank::new(rank), 2).with_name("test");
            mock.join(&id, config.with_deadline(deadline)).map(|_| ())
        };
        thread::scope(|scope| {
            let other = scope.spawn(|| join(1));
            [join(0), other.join().unwrap()]
        })
    };
    let late = Duration::from_millis(20);
    for (action, kind, text) in [
        (Action::JoinFails, ErrorKind::System, "joining failed by fault rule 0"),
        (Action::JoinHangs, ErrorKind::Timeout, "by fault rule 0"),
        (Action::JoinLate(AGES), ErrorKind::Timeout, "by fault rule 0"),
    ] {
        let mock = mock(2, Rule::new(action).on_rank(1).at_most(1));
        let [zero, one] = join(&mock, SOON);
        let (zero, one) = (zero.unwrap_err(), one.unwrap_err());
        assert_eq!((zero.kind(), one.kind()), (ErrorKind::Timeout, kind), "{zero}; {one}");
        assert!(zero.to_string().contains("missing 1"), "{zero}");
        assert!(zero.to_string().contains("fault rule 0 (join_"), "{zero}");
        assert!(one.to_string().contains(text), "{one}");
        // Once was enough: the next try meets.
        join(&mock, kit::PATIENCE).into_iter().for_each(|outcome| outcome.unwrap());
    }
    let mock = mock(2, Rule::new(Action::JoinLate(late)).on_rank(1));
    join(&mock, kit::PATIENCE).into_iter().for_each(|outcome| outcome.unwrap());
    let failing = self::mock(2, Rule::new(Action::JoinFails).on_communicator("wanted"));
    failing.join_all(JoinAllConfig::new([0, 1])).unwrap();
    let error = failing.join_all(JoinAllConfig::new([0, 1]).with_name("wanted")).unwrap_err();
    assert!(error.to_string().contains("fault rule 0"), "{error}");
}

#[test]
fn pending_joins_and_new_ranks_fail_hang_and_come_late() {
    let config = |rank: u32| JoinConfig::new(Rank::new(rank), 2).with_name("test");
    let start = |mock: &Mock, deadline: Duration| {
        let id = mock.unique_id().unwrap();
        let [zero, one] =
            [0, 1].map(|rank| mock.join_start(&id, config(rank).with_deadline(deadline)));
        (zero.unwrap(), one)
    };
    let rule = |action| Rule::new(action).on_rank(1).at_most(1);
    let failing = mock(2, rule(Action::JoinFails));
    let (zero, one) = start(&failing, kit::PATIENCE);
    let error = one.unwrap_err();
    assert_eq!((error.kind(), error.operation()), (ErrorKind::System, Some("join")));
    zero.abort();
    for action in [Action::JoinHangs, Action::JoinLate(AGES)] {
        let (mut zero, one) = start(&mock(2, rule(action)), SOON);
        let mut one = one.unwrap();
        while one.poll() == JoinState::InProgress || zero.poll() == JoinState::InProgress {
            thread::yield_now();
        }
        let (zero, one) = (zero.finish().unwrap_err(), one.finish().unwrap_err());
        assert_eq!((zero.kind(), one.kind()), (ErrorKind::Timeout, ErrorKind::Timeout));
        assert!(zero.to_string().contains("missing 1"), "{zero}");
        assert!(one.to_string().contains("by fault rule 0"), "{one}");
    }
    let late = mock(2, rule(Action::JoinLate(Duration::from_millis(2))));
    let (mut zero, one) = start(&late, kit::PATIENCE);
    let mut one = one.unwrap();
    while one.poll() == JoinState::InProgress {
        thread::yield_now();
    }
    assert_eq!((zero.poll(), one.poll()), (JoinState::Ready, JoinState::Ready));

    // A new rank fails, and comes at its second try.
    let mock = mock(2, Rule::new(Action::JoinFails).on_communicator("more").at_most(1));
    let member = mock.join_all(JoinAllConfig::new([0])).unwrap().remove(0);
    let id = member.grow_id().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || member.grow(GrowConfig::new(2).with_name("more")).unwrap());
        let new = || mock.join_grown(&id, config(1).with_device(1).with_name("more"));
        let error = new().unwrap_err();
        assert_eq!((error.kind(), error.operation()), (ErrorKind::System, Some("join_grown")));
        assert_eq!(new().unwrap().info().size, 2);
    });
}

#[test]
fn survivors_of_a_kill_shrink_and_go_on() {
    for schedule in [Schedule::Eager, Schedule::Late, Schedule::Random(4)] {
        let rule = Rule::new(Action::Kill).on_rank(1).on_communicator("test").at(3..4);
        let config = MockConfig::strict().with_devices(3).with_schedule(schedule);
        let mock = Mock::new(config.with_faults(FaultPlan::new().with_rule(rule)));
        let run = |end: End| {
            let (rounds, error) = train(&end);
            assert_eq!(rounds, 3, "{error}");
            // Or the other survivor was quicker.
            assert!([ErrorKind::Remote, ErrorKind::Revoked].contains(&error.kind()), "{error}");
            end.comm.revoke().unwrap();
            let fewer = ShrinkConfig::new([Rank::new(1)]).with_name("fewer");
            let comm = end.comm.shrink(fewer).unwrap();
            let end = self::end(&mock, comm);
            let buf = end.buf(&[1]);
            end.all_reduce(buf, buf).unwrap();
            end.wait().unwrap();
            buf.now()
        };
        let outcomes: Vec<_> = thread::scope(|scope| {
            let ends = ends(&mock, 3).into_iter();
            let ranks: Vec<_> = ends.map(|end| scope.spawn(|| run(end))).collect();
            ranks.into_iter().map(|rank| rank.join().ok()).collect()
        });
        assert_eq!(outcomes, [Some(vec![2]), None, Some(vec![2])], "{schedule}");
        assert!(mock.verdicts().is_empty());
    }
}

#[test]
fn the_version_can_be_another() {
    let mock = mock(1, Rule::new(Action::Version(Version::new(2, 18, 3))));
    assert_eq!(mock.info().version, Version::new(2, 18, 3));
    let comms = mock.join_all(JoinAllConfig::new([0])).unwrap();
    assert_eq!(comms[0].info().library.version, Version::new(2, 18, 3));
}

/// Which operations of four ranks hang, each on a stream of its own.
fn hung(seed: u64, threads: bool) -> Vec<(u32, u64)> {
    let plan = FaultPlan::new()
        .with_rule(Rule::new(Action::Hang).with_probability(0.2))
        .with_rule(Rule::new(Action::Hang).on_rank(2).every(5).at_most(1));
    let mock = with_plan(4, plan.with_seed(seed));
    let issue = |end: &End| {
        for turn in 0..30 {
            let stream = end.device.stream_create().unwrap();
            let buf = end.buf(&[1]);
            end.all_reduce_on(buf, buf, stream).unwrap();
            if threads && (turn + end.comm.info().rank.get()).is_multiple_of(4) {
                thread::sleep(Duration::from_micros(100));
            }
        }
    };
    let ends = ends(&mock, 4);
    if threads {
        thread::scope(|scope| {
            let ranks: Vec<_> = ends
                .into_iter()
                .map(|end| {
                    scope.spawn(move || {
                        issue(&end);
                        end
                    })
                })
                .collect();
            let ends: Vec<_> = ranks.into_iter().map(|rank| rank.join().unwrap()).collect();
            let held = held(&mock);
            ends[0].comm.abort_handle().abort().unwrap();
            held
        })
    } else {
        ends.iter().for_each(issue);
        let held = held(&mock);
        ends[0].comm.abort_handle().abort().unwrap();
        held
    }
}

#[test]
fn a_seed_is_a_plan_whatever_the_threads_do() {
    let first = hung(1, false);
    assert!((12..50).contains(&first.len()), "{first:?}");
    assert!(first.contains(&(2, 4)), "every fifth, once: {first:?}");
    for _ in 0..3 {
        assert_eq!(hung(1, true), first);
    }
    assert_ne!(hung(2, true), first);
}

#[test]
fn survivors_split_off_and_go_on() {
    // Rank 2 never comes to step 3. The others give up, and go on without it.
    let mock = mock(3, Rule::new(Action::Kill).on_rank(2).at(3..4));
    let sums: Vec<_> = thread::scope(|scope| {
        let ranks: Vec<_> = ends(&mock, 3)
            .into_iter()
            .map(|whole| {
                let mock = &mock;
                scope.spawn(move || {
                    let rank = whole.comm.info().rank.get();
                    let pair = whole.comm.split(SplitConfig::new(rank / 2)).unwrap();
                    let pair = pair.map(|comm| end(mock, comm)).expect("a color");
                    let (_, error) = train(&whole);
                    assert_eq!(error.kind(), ErrorKind::Remote, "{error}");
                    let buf = pair.buf(&[1]);
                    pair.all_reduce(buf, buf).unwrap();
                    pair.wait().unwrap();
                    buf.now()[0]
                })
            })
            .collect();
        ranks.into_iter().filter_map(|rank| rank.join().ok()).collect()
    });
    assert_eq!(sums, [2, 2]);
}

#[test]
fn plans_are_read_from_toml() {
    let plan: FaultPlan = r#"
        seed = 9
        [[rule]]
        rank = [1, 3]
        communicator = "dp"
        operation = ["send", "recv"]
        sequence = "2..5"
        probability = 0.5
        times = 4
        action = { delay = "1.5ms" }
        [[rule]]
        operation = "all_reduce"
        sequence = "every 4"
        rank = 0
        action = { async_error = { after = 2, kind = "system" } }
        [[rule]]
        sequence = 7
        action = "hang"
        [[rule]]
        sequence = "7.."
        action = { straggle = "2s" }
        [[rule]]
        action = { async_error = {} }
        [[rule]]
        probability = 1
        action = { out_of_memory = 3 }
        [[rule]]
        action = { version = "2.18.3" }
        [[rule]]
        action = "kill"
        [[rule]]
        action = "join_fails"
        [[rule]]
        action = "join_hangs"
        [[rule]]
        action = { join_late = "20us" }
    "#
    .parse()
    .unwrap();
    let half = Duration::from_micros(1500);
    let delay = Rule::new(Action::Delay(half)).on_rank(1).on_rank(3).on_communicator("dp");
    let delay = delay.on_operation("send").on_operation("recv").at(2..5).with_probability(0.5);
    let mut straggle = Rule::new(Action::Straggle(Duration::from_secs(2)));
    straggle.sequence = Sequence::In(7, u64::MAX);
    let error = |after, kind| Rule::new(Action::AsyncError { after, kind });
    let want = [
        delay.at_most(4),
        error(2, ErrorKind::System).on_operation("all_reduce").every(4).on_rank(0),
        Rule::new(Action::Hang).at(7..8),
        straggle,
        error(0, ErrorKind::Remote),
        Rule::new(Action::OutOfMemory { allocation: 3 }),
        Rule::new(Action::Version(Version::new(2, 18, 3))),
        Rule::new(Action::Kill),
        Rule::new(Action::JoinFails),
        Rule::new(Action::JoinHangs),
        Rule::new(Action::JoinLate(Duration::from_micros(20))),
    ];
    let want = want.into_iter().fold(FaultPlan::new().with_seed(9), FaultPlan::with_rule);
    assert_eq!(plan, want);
    assert_eq!("".parse::<FaultPlan>().unwrap(), FaultPlan::new());
}

#[test]
fn what_is_wrong_in_a_plan_is_shown_with_its_line_and_what_is_wanted() {
    for (rule, parts) in [
        ("action = 'explode'", &["explode", "`async_error`", "line 2"][..]),
        ("action = 'delay'", &["line 2"]),
        ("action = { delay = 5 }", &["5", "a string"]),
        ("action = { delay = '5 weeks' }", &["\"5 weeks\"", "\"1.5ms\""]),
        ("action = { delay = 'ms' }", &["\"ms\"", "a duration like"]),
        ("action = { delay = '-1ms' }", &["\"-1ms\"", "a duration like"]),
        ("action = { out_of_memory = -1 }", &["-1", "u64"]),
        ("action = { version = 'new' }", &["new"]),
        ("action = { async_error = { kind = 'sad' } }", &["sad", "`remote`"]),
        ("action = { async_error = { polls = 1 } }", &["polls", "`after`"]),
        ("rank = 1", &["missing field `action`"]),
        ("action = 'kill'\nrank = -1", &["-1", "u32", "line 3"]),
        ("action = 'kill'\nrank = 'one'", &["\"one\"", "u32"]),
        ("action = 'kill'\nrank = [0, 'one']", &["\"one\"", "u32"]),
        ("action = 'kill'\nrank = 0.5", &["0.5", "one value or a list"]),
        ("action = 'kill'\noperation = 'allreduce'", &["\"allreduce\"", "all_reduce, all_to_all"]),
        ("action = 'kill'\nsequence = -1", &["-1", "a number from 0"]),
        ("action = 'kill'\nsequence = '3-5'", &["\"3-5\"", "\"3..7\""]),
        ("action = 'kill'\nsequence = '5..3'", &["\"5..3\"", "\"3..7\""]),
        ("action = 'kill'\nsequence = 'every 0'", &["\"every 0\"", "\"every 4\""]),
        ("action = 'kill'\nprobability = 1.5", &["1.5", "a number from 0 to 1"]),
        ("action = 'kill'\nprobability = 'often'", &["\"often\"", "f64"]),
        ("action = 'kill'\ntimes = -1", &["-1", "u64"]),
        ("action = 'kill'\nranks = 1", &["unknown field `ranks`", "`rank`"]),
        ("action = kill", &["line 2"]),
    ] {
        let error = format!("[[rule]]\n{rule}").parse::<FaultPlan>().expect_err(rule);
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        let text = error.to_string();
        for part in parts {
            assert!(text.contains(part), "'{part}' is not in the error for {rule}: {text}");
        }
    }
    let error = "sead = 1".parse::<FaultPlan>().unwrap_err().to_string();
    assert!(error.contains("unknown field `sead`") && error.contains("`seed`"), "{error}");
    let error = FaultPlan::load("@/nowhere/plan.toml").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::System);
    assert!(error.to_string().contains("'/nowhere/plan.toml'"), "{error}");
}

#[test]
fn the_plans_of_the_guide_are_plans() {
    let guide = include_str!("../../../docs/faults.md");
    let blocks = guide.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let rules: Vec<usize> =
        blocks.map(|text| text.parse::<FaultPlan>().expect(text).rules.len()).collect();
    assert_eq!(rules, [1, 1, 1, 1, 2, 1, 1]);
    // And each action of its table is one.
    let rows = guide.lines().filter_map(|line| line.strip_prefix("| `")?.split(" |").next());
    let actions = rows.flat_map(|cell| cell.trim_end_matches('`').split("`, `"));
    let mut known = 0;
    for action in actions.filter(|text| text.starts_with(['{', '"'])) {
        let text = format!("[[rule]]\naction = {action}");
        assert_eq!(text.parse::<FaultPlan>().expect(action).rules.len(), 1);
        known += 1;
    }
    assert_eq!(known, 10);
}
