//! Schedules: what runs when, that it can be had again, and that it changes no result.

mod kit;

use std::{sync::Barrier, thread, time::Duration};

use collectives_backend_mock::{Guards, Mock, MockConfig, PendingStatus, Schedule};
use collectives_core::{
    Backend, BackendExt, Collectives, Device, ErrorKind, JoinAllConfig, JoinConfig, Rank, RawStream,
};
use kit::{Buf, End, end, ends, here, named, pending};

fn mock(schedule: Schedule, devices: usize) -> Mock {
    Mock::new(MockConfig::new().with_devices(devices).with_schedule(schedule))
}

#[test]
fn late_runs_nothing_before_somebody_waits_and_then_what_that_needs() {
    let mock = mock(Schedule::Late, 2);
    let ends = ends(&mock, 2);
    let bufs: Vec<_> = ends.iter().map(|end| end.buf(&[3])).collect();
    let sides: Vec<_> = ends.iter().map(|end| end.device.stream_create().unwrap()).collect();
    let others: Vec<_> = ends.iter().map(|end| end.buf(&[5])).collect();
    for (end, &buf) in ends.iter().zip(&bufs) {
        end.all_reduce(buf, buf).unwrap();
    }
    for ((end, &other), &side) in ends.iter().zip(&others).zip(&sides) {
        end.all_reduce_on(other, other, side).unwrap();
    }
    assert_eq!(bufs[0].now(), [3], "both sides came, and nobody waits");
    let held = PendingStatus::Held("schedule late".into());
    assert_eq!(mock.pending().iter().filter(|op| op.status == held).count(), 4);

    ends[0].wait().unwrap();
    // The peer's side had to run too, and nothing else.
    assert_eq!((bufs[0].now(), bufs[1].now()), (vec![6], vec![6]));
    assert_eq!((others[0].now(), others[1].now()), (vec![5], vec![5]));
    assert_eq!(mock.pending().len(), 2);
    ends[1].wait_on(sides[1]).unwrap();
    assert_eq!(others[0].now(), [10]);
    assert!(mock.pending().is_empty());
}

#[test]
fn late_runs_nothing_for_the_sake_of_those_who_only_watch() {
    let mock = mock(Schedule::Late, 2);
    let ends = ends(&mock, 2);
    let bufs: Vec<_> = ends.iter().map(|end| end.buf(&[3])).collect();
    let others: Vec<_> = ends.iter().map(|end| end.buf(&[5])).collect();
    let id = mock.unique_id().unwrap();
    let join = |rank: u32| {
        let config = JoinConfig::new(Rank::new(rank), 2).with_device(rank as usize);
        mock.join(&id, config.with_deadline(kit::PATIENCE)).unwrap();
    };
    thread::scope(|scope| {
        // As long as somebody waits, whether anything can still happen is looked at.
        scope.spawn(|| join(1));
        for ((end, &buf), &other) in ends.iter().zip(&bufs).zip(&others) {
            end.copy(other, buf, end.stream);
            end.all_reduce(buf, buf).unwrap();
        }
        thread::sleep(Duration::from_millis(100));
        assert_eq!((bufs[0].now(), bufs[1].now()), (vec![3], vec![3]));
        let held = PendingStatus::Held("schedule late".into());
        assert!(mock.pending().iter().all(|op| op.status != PendingStatus::Running));
        assert!(mock.pending().iter().all(|op| op.status != held), "copies are the heads");
        ends[1].wait().unwrap();
        assert_eq!(bufs[0].now(), [10]);
        join(0);
    });
    assert!(mock.verdicts().is_empty());
}

#[test]
fn late_stops_behind_what_an_event_needs() {
    let mock = mock(Schedule::Late, 1);
    let end = &ends(&mock, 1)[0];
    let (buf, side) = (end.buf(&[1, 2, 3]), end.device.stream_create().unwrap());
    end.fill(buf.part(0, 1), 0, end.stream);
    let event = end.record(end.stream);
    end.fill(buf.part(1, 1), 0, end.stream);
    // SAFETY: event and stream are alive.
    unsafe { end.device.wait(side, event) }.unwrap();
    end.fill(buf.part(2, 1), 0, side);
    assert_eq!(buf.now(), [1, 2, 3]);
    end.wait_on(side).unwrap();
    assert_eq!(buf.now(), [0, 2, 0], "what is behind the event has no hurry");
    assert!(end.query(event));
    end.wait().unwrap();
    assert_eq!(buf.now(), [0, 0, 0]);
}

#[test]
fn late_runs_what_a_query_asks_for() {
    let mock = mock(Schedule::Late, 1);
    let end = &ends(&mock, 1)[0];
    let buf = end.buf(&[1, 2]);
    end.fill(buf.part(0, 1), 0, end.stream);
    let event = end.record(end.stream);
    end.fill(buf.part(1, 1), 0, end.stream);
    assert_eq!(buf.now(), [1, 2]);
    assert!(end.query(event), "a program that polls must come to an end");
    assert_eq!(buf.now(), [0, 2]);
}

#[test]
fn late_needs_all_of_a_group_and_what_stands_before_it() {
    let mock = mock(Schedule::Late, 2);
    let ends = ends(&mock, 2);
    let bufs: Vec<_> = ends.iter().map(|end| (end.buf(&[7]), end.buf(&[0]))).collect();
    ends[1].fill(bufs[1].0, 1, ends[1].stream);
    for (rank, end) in ends.iter().enumerate() {
        let (out, into) = bufs[rank];
        mock.group(|_| {
            end.send(out, 1 - rank as u32)?;
            end.recv(into, 1 - rank as u32)
        })
        .unwrap();
    }
    assert_eq!((bufs[0].1.now(), bufs[1].1.now()), (vec![0], vec![0]));
    ends[0].wait().unwrap();
    // What the other rank filled before it sent.
    assert_eq!((bufs[0].1.now(), bufs[1].1.now()), (vec![0x0101_0101], vec![7]));
}

#[test]
fn late_reaches_into_graphs() {
    let mock = mock(Schedule::Late, 2);
    let ends = ends(&mock, 2);
    let bufs: Vec<_> = ends.iter().map(|end| end.buf(&[1])).collect();
    let graphs: Vec<_> = ends
        .iter()
        .zip(&bufs)
        .map(|(end, &buf)| {
            // SAFETY: the stream is alive, here and below.
            unsafe { end.device.begin_capture(end.stream) }.unwrap();
            end.all_reduce(buf, buf).unwrap();
            // SAFETY: as above.
            unsafe { end.device.end_capture(end.stream) }.unwrap()
        })
        .collect();
    for _ in 0..3 {
        for (end, &graph) in ends.iter().zip(&graphs) {
            // SAFETY: graph and stream are alive.
            unsafe { end.device.launch(graph, end.stream) }.unwrap();
        }
    }
    let event = ends[0].record(ends[0].stream);
    assert_eq!(bufs[0].now(), [1]);
    assert!(ends[0].query(event), "three runs of both ranks' graphs stand before it");
    assert_eq!((bufs[0].now(), bufs[1].now()), (vec![8], vec![8]));
}

#[test]
fn late_serves_finalize_destroyed_streams_and_memory_that_is_needed() {
    let config = MockConfig::new().with_devices(1).with_device_memory(1000);
    let mock = Mock::new(config.with_schedule(Schedule::Late));
    let end = ends(&mock, 1).remove(0);
    let (buf, side) = (end.buf(&[4]), end.device.stream_create().unwrap());
    end.fill(buf, 0, side);
    // SAFETY: nothing uses the stream after this.
    unsafe { end.device.stream_destroy(side) }.unwrap();
    assert_eq!(buf.now(), [0], "nobody can wait for it any more");

    let large = end.device.alloc(900).unwrap();
    // SAFETY: nothing uses the memory.
    unsafe { end.device.free(large, end.stream) }.unwrap();
    let again = end.device.alloc(900).unwrap();
    // SAFETY: nothing uses the memory.
    unsafe { end.device.free(again, end.stream) }.unwrap();

    end.all_reduce(buf, buf).unwrap();
    assert_eq!(mock.pending().len(), 1);
    Box::new(end.comm).finalize().unwrap();
    assert!(mock.pending().is_empty());
}

#[test]
fn a_group_that_has_started_still_needs_its_peers() {
    // By chance rank 0's group starts at once, and rank 1's is put off until somebody waits.
    for seed in 0..40 {
        let mock = mock(Schedule::Random(seed), 2);
        let ends = ends(&mock, 2);
        let bufs: Vec<_> = ends.iter().map(|end| [end.buf(&[1]), end.buf(&[2])]).collect();
        for (end, [one, two]) in ends.iter().zip(&bufs) {
            mock.group(|_| {
                end.all_reduce(*one, *one)?;
                end.all_reduce(*two, *two)
            })
            .unwrap();
        }
        ends[0].wait().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_eq!((bufs[0][0].now(), bufs[0][1].now()), (vec![2], vec![4]));
    }
}

#[test]
fn random_runs_some_at_once_some_a_little_later_and_some_late() {
    let mock = mock(Schedule::Random(1), 1);
    let end = &ends(&mock, 1)[0];
    let rows: Vec<_> =
        (0..40).map(|_| (end.device.stream_create().unwrap(), end.buf(&[1; 8]))).collect();
    let fill = |from: usize, to: usize| {
        for &(stream, buf) in &rows {
            (from..to).for_each(|place| end.fill(buf.part(place, 1), 0, stream));
        }
    };
    let started = || rows.iter().filter(|(_, buf)| buf.now()[0] == 0).count();
    fill(0, 1);
    let at_once = started();
    fill(1, 8);
    let later = started();
    assert!(0 < at_once && at_once < later && later < rows.len(), "{at_once}, then {later}");
    for &(stream, buf) in &rows {
        end.wait_on(stream).unwrap();
        assert_eq!(buf.now(), [0; 8]);
    }
}

#[test]
fn what_hangs_hangs_under_every_schedule_and_says_which() {
    for (schedule, note) in [
        (Schedule::Eager, None),
        (Schedule::Late, Some("schedule late")),
        (Schedule::Random(42), Some("schedule random(42)")),
    ] {
        let mock = mock(schedule, 2);
        let ends = ends(&mock, 2);
        let buf = ends[0].buf(&[1]);
        let line = here();
        ends[0].all_reduce(buf, buf).unwrap();
        let error = ends[0].wait_for(ends[0].stream, Duration::from_millis(20)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        let text = error.to_string();
        assert!(text.contains("waiting for rank 1"), "{text}");
        assert!(text.contains(line.split(':').next().unwrap()), "{text}");
        assert_eq!(text.contains("under "), note.is_some(), "{text}");
        assert!(note.is_none_or(|note| text.contains(note)), "{text}");
        // And a failure of the communicator says it too.
        ends[1].comm.abort_handle().abort().unwrap();
        let text = ends[0].wait().unwrap_err().to_string();
        assert!(note.is_none_or(|note| text.contains(note)), "{text}");
    }
}

/// A random stream that all ranks share.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }
}

/// One step of a program: the same for all ranks but for the fills.
fn step(end: &End, streams: &[RawStream], bufs: &[Buf], dice: &mut Dice) {
    let [a, b] = [dice.below(streams.len()), dice.below(streams.len())];
    let lane = |stream: usize| bufs[stream];
    match dice.below(4) {
        0 => end.fill(lane(a).part(0, 1), 1, streams[a]),
        1 => end.order(streams[a], streams[b]),
        _ => end.all_reduce_on(lane(a), lane(a), streams[a]).unwrap(),
    }
}

/// What is pending after every call of a program that one thread runs for all ranks.
fn history(schedule: Schedule, program: u64) -> History {
    history_on(&mock(schedule, 3), program)
}

/// The same while somebody else waits, so that whether anything can still happen is looked at.
fn watched_history(schedule: Schedule, program: u64) -> History {
    let mock = mock(schedule, 3);
    let id = mock.unique_id().unwrap();
    let join = |rank: u32| {
        let config = JoinConfig::new(Rank::new(rank), 2).with_device(rank as usize);
        mock.join(&id, config.with_deadline(kit::PATIENCE)).unwrap();
    };
    thread::scope(|scope| {
        scope.spawn(|| join(1));
        let history = history_on(&mock, program);
        join(0);
        history
    })
}

/// What was pending after each call, and what the buffers came to.
type History = (Vec<Vec<String>>, Vec<Vec<i32>>);

fn history_on(mock: &Mock, program: u64) -> History {
    let ends = ends(mock, 3);
    let streams: Vec<Vec<_>> = ends
        .iter()
        .map(|end| (0..3).map(|_| end.device.stream_create().unwrap()).collect())
        .collect();
    let bufs: Vec<Vec<_>> = ends
        .iter()
        .zip(1..)
        .map(|(end, rank)| (0..3).map(|_| end.buf(&[rank, 2 * rank])).collect())
        .collect();
    let mut dice: Vec<_> = ends.iter().map(|_| Dice(program)).collect();
    let mut history = Vec::new();
    for turn in 0..40 {
        for (rank, end) in ends.iter().enumerate() {
            step(end, &streams[rank], &bufs[rank], &mut dice[rank]);
            history.push(pending(mock));
        }
        if turn % 10 == 9 {
            ends[1].wait_on(streams[1][turn / 10 % 3]).unwrap();
            history.push(pending(mock));
        }
    }
    for (end, streams) in ends.iter().zip(&streams) {
        for &stream in streams {
            end.wait_on(stream).unwrap();
        }
    }
    assert!(mock.pending().is_empty());
    (history, bufs.iter().flatten().map(|buf| buf.now()).collect())
}

#[test]
fn one_seed_is_one_order_of_completion_and_no_schedule_changes_a_result() {
    for program in 0..4 {
        let (eager, want) = history(Schedule::Eager, program);
        let (late, values) = history(Schedule::Late, program);
        assert_eq!(values, want, "late, program {program}");
        assert_ne!(late, eager, "the schedule does something");
        let mut different = Vec::new();
        for seed in 0..6 {
            let (first, values) = history(Schedule::Random(seed), program);
            assert_eq!(values, want, "seed {seed}, program {program}");
            for _ in 0..2 {
                assert_eq!(history(Schedule::Random(seed), program).0, first, "seed {seed}");
                let watched = watched_history(Schedule::Random(seed), program).0;
                assert_eq!(watched, first, "seed {seed}, watched");
            }
            different.push(first);
        }
        different.sort();
        different.dedup();
        assert!(different.len() > 3, "{} orders of 6 seeds", different.len());
    }
}

/// What is put off once many threads have issued all they have, and none waits.
fn put_off(schedule: Schedule, disturb: u64) -> Vec<String> {
    let mock = mock(schedule, 4);
    let id = mock.unique_id().unwrap();
    let (mock, id, barrier) = (&mock, &id, &Barrier::new(5));
    thread::scope(|scope| {
        for rank in 0..4 {
            scope.spawn(move || {
                let config = JoinConfig::new(Rank::new(rank), 4)
                    .with_device(rank as usize)
                    .with_name("many");
                let end = end(mock, mock.join(id, config).unwrap());
                let streams: Vec<_> = (0..3).map(|_| end.device.stream_create().unwrap()).collect();
                let bufs: Vec<_> = (0..3).map(|_| end.buf(&[1, 2])).collect();
                let (mut dice, mut delays) = (Dice(9), Dice(disturb ^ u64::from(rank)));
                for _ in 0..60 {
                    step(&end, &streams, &bufs, &mut dice);
                    if delays.below(4) == 0 {
                        thread::sleep(Duration::from_micros(delays.below(300) as u64));
                    }
                }
                barrier.wait();
                barrier.wait();
                for stream in streams {
                    end.wait_on(stream).unwrap();
                }
            });
        }
        barrier.wait();
        let pending = pending(mock);
        barrier.wait();
        pending
    })
}

#[test]
fn what_is_put_off_does_not_depend_on_how_threads_are_scheduled() {
    for seed in [1, 2] {
        let first = put_off(Schedule::Random(seed), 0);
        assert!(!first.is_empty(), "the schedule does something");
        for disturb in 1..6 {
            assert_eq!(put_off(Schedule::Random(seed), disturb), first, "seed {seed}");
        }
    }
    assert_ne!(put_off(Schedule::Random(1), 0), put_off(Schedule::Random(2), 0));
    assert!(put_off(Schedule::Eager, 0).is_empty());
}

#[test]
fn correct_programs_of_many_threads_pass_under_everything() {
    let configs = [
        MockConfig::new().with_schedule(Schedule::Late),
        MockConfig::new().with_schedule(Schedule::Random(3)),
        MockConfig::strict(),
        MockConfig::strict().with_schedule(Schedule::Late),
        MockConfig::adversarial(4),
        MockConfig::new().with_guards(Guards::NONE.with_races(true)),
    ];
    for config in configs {
        let mock = Mock::new(config.clone().with_devices(3));
        let comms = mock.join_all(JoinAllConfig::new([0, 1, 2])).unwrap();
        thread::scope(|scope| {
            for comm in comms {
                let (mock, config) = (&mock, &config);
                scope.spawn(move || program(&end(mock, comm), mock, config));
            }
        });
        assert!(mock.pending().is_empty(), "{config:?}");
    }
}

/// Collectives, a ring, copies and events on two streams, with sizes on both sides of what moves at once.
fn program(end: &End, mock: &Mock, config: &MockConfig) {
    let (rank, side) = (end.comm.info().rank.get(), end.device.stream_create().unwrap());
    let mut dice = Dice(11);
    for turn in 0..40 {
        let count = [1, 3, 500, 40_000][dice.below(4)];
        let (send, recv) = (end.buf(&vec![rank as i32 + 1; count]), end.buf(&vec![-7; count]));
        let (ring, host) = (end.buf(&vec![0; count]), end.buf(&vec![0; count]));
        end.all_reduce(send, recv).unwrap();
        if dice.below(2) == 0 {
            end.order(end.stream, side);
            end.copy(recv, host, side);
            end.order(side, end.stream);
        } else {
            end.copy(recv, host, end.stream);
        }
        // Behind the copies, on the same stream.
        mock.group(|_| {
            end.send(recv, (rank + 1) % 3)?;
            end.recv(ring, (rank + 2) % 3)
        })
        .unwrap();
        end.all_reduce(ring, ring).unwrap();
        end.wait().unwrap_or_else(|error| panic!("{config:?}, turn {turn}: {error}"));
        assert_eq!(host.now(), vec![6; count], "{config:?}, turn {turn}");
        assert_eq!(ring.now(), vec![18; count], "{config:?}, turn {turn}");
        for buf in [send, recv, ring, host] {
            // SAFETY: nothing uses the memory any more.
            unsafe { end.device.free(buf.ptr, side) }.unwrap();
        }
    }
}

#[test]
fn two_communicators_of_two_threads_pass_late() {
    let mock = mock(Schedule::Late, 2);
    let (one, two) = (named(&mock, 2, "one"), named(&mock, 2, "two"));
    thread::scope(|scope| {
        for ends in [one, two] {
            scope.spawn(move || {
                let bufs: Vec<_> = ends.iter().map(|end| end.buf(&[1])).collect();
                for turn in 1..=10 {
                    for (end, &buf) in ends.iter().zip(&bufs) {
                        end.all_reduce(buf, buf).unwrap();
                    }
                    ends[turn % 2].wait().unwrap();
                    ends[1 - turn % 2].wait().unwrap();
                    assert_eq!(bufs[0].now(), [1 << turn]);
                }
            });
        }
    });
}
