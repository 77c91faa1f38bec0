//! Guards: what each notices, and that it leaves correct programs alone.

mod kit;

use std::time::Duration;

use collectives_backend_mock::{Guards, Mock, MockConfig, Schedule};
use collectives_core::{BackendExt, Collectives, Device, ErrorKind, Launch, Rank, ReduceOp};
use kit::{End, ends, here, named};

fn mock(guards: Guards) -> Mock {
    Mock::new(MockConfig::new().with_devices(2).with_guards(guards))
}

const POISON: Guards = Guards::NONE.with_poison(Some(0xff));
const CHECKSUMS: Guards = Guards::NONE.with_checksums(true);
const RACES: Guards = Guards::NONE.with_races(true);
/// Tests here look at memory that is the engine's, which `tests/protect.rs` is about.
const UNPROTECTED: Guards = Guards::ALL.with_protect(false);

#[test]
fn results_are_poisoned_until_they_are_there() {
    for (guards, early) in [(Guards::NONE, 5), (POISON, -1), (POISON.with_poison(Some(0)), 0)] {
        let mock = mock(guards);
        let ends = ends(&mock, 2);
        let bufs: Vec<_> = ends.iter().map(|end| (end.buf(&[3]), end.buf(&[5]))).collect();
        ends[0].all_reduce(bufs[0].0, bufs[0].1).unwrap();
        assert_eq!((bufs[0].0.now(), bufs[0].1.now()), (vec![3], vec![early]));
        ends[1].all_reduce(bufs[1].0, bufs[1].1).unwrap();
        for (end, buf) in ends.iter().zip(&bufs) {
            end.wait().unwrap();
            assert_eq!((buf.0.now(), buf.1.now()), (vec![3], vec![6]));
        }
    }
}

#[test]
fn a_late_schedule_keeps_the_poison_until_somebody_waits() {
    let config = MockConfig::new().with_devices(1).with_guards(UNPROTECTED);
    let mock = Mock::new(config.with_schedule(Schedule::Late));
    let end = &ends(&mock, 1)[0];
    let (send, recv) = (end.buf(&[3]), end.buf(&[5]));
    end.all_reduce(send, recv).unwrap();
    assert_eq!(recv.now(), [-1], "read too early");
    end.wait().unwrap();
    assert_eq!(recv.now(), [3]);
}

#[test]
fn only_what_is_overwritten_and_not_needed_is_poisoned() {
    let mock = mock(POISON);
    let ends = ends(&mock, 2);
    let end = &ends[0];
    let fresh = || end.buf(&[1, 2, 3, 4]);

    let all = fresh();
    end.all_reduce(all.part(0, 2), all.part(0, 2)).unwrap();
    assert_eq!(all.now(), [1, 2, 3, 4], "in place");

    // Behind that one nothing is the head, so the others have streams of their own.
    let streams: Vec<_> = (0..4).map(|_| end.device.stream_create().unwrap()).collect();
    let gather = fresh();
    let (send, recv) = (gather.part(0, 2).send(), gather.recv());
    // SAFETY: buffers live as long as the mock, here and below.
    unsafe { end.comm.all_gather(send, recv, Launch::new(streams[0])) }.unwrap();
    assert_eq!(gather.now(), [1, 2, -1, -1], "the own part lives there");

    let scatter = fresh();
    let (send, recv) = (scatter.send(), scatter.part(0, 2).recv());
    // SAFETY: as above.
    unsafe { end.comm.reduce_scatter(send, recv, ReduceOp::Sum, Launch::new(streams[1])) }.unwrap();
    assert_eq!(scatter.now(), [1, 2, 3, 4], "all of it is read");

    let (send, recv, root) = (fresh(), fresh(), Rank::new(1));
    let part = recv.part(1, 2).recv();
    // SAFETY: as above.
    unsafe { end.comm.broadcast(None, part, root, Launch::new(streams[2])) }.unwrap();
    assert_eq!(recv.now(), [1, -1, -1, 4], "not a byte more");
    let launch = Launch::new(streams[3]);
    // SAFETY: as above.
    unsafe { end.comm.reduce(send.send(), None, ReduceOp::Sum, root, launch) }.unwrap();
    assert_eq!(send.now(), [1, 2, 3, 4]);
}

#[test]
fn earlier_work_of_the_stream_keeps_the_buffer_until_it_is_passed() {
    let mock = mock(UNPROTECTED);
    let ends = ends(&mock, 2);
    let bufs: Vec<_> =
        ends.iter().map(|end| (end.buf(&[1]), end.buf(&[0]), end.buf(&[9]))).collect();
    let issue = |rank: usize| {
        let (end, (first, kept, next)) = (&ends[rank], bufs[rank]);
        end.all_reduce(first, first).unwrap();
        // Reads `next` before the operation that overwrites it, and writes what that one sends.
        end.copy(next, kept, end.stream);
        end.fill(first, 1, end.stream);
        end.all_reduce(first, next).unwrap();
    };
    issue(0);
    assert_eq!(bufs[0].2.now(), [9], "the copy is still to come");
    issue(1);
    for (end, buf) in ends.iter().zip(&bufs) {
        end.wait().unwrap();
        assert_eq!((buf.1.now(), buf.2.now()), (vec![9], vec![0x0202_0202]));
    }
}

#[test]
fn a_changed_send_buffer_fails_the_communicator_on_all_ranks() {
    for guards in [Guards::NONE, CHECKSUMS] {
        let mock = mock(guards);
        let (ends, other) = (ends(&mock, 2), named(&mock, 2, "other"));
        let bufs: Vec<_> =
            ends.iter().map(|end| (end.buf(&[1; 100]), end.buf(&[0; 100]))).collect();
        let site = here();
        ends[0].all_reduce(bufs[0].0, bufs[0].1).unwrap();
        bufs[0].0.part(40, 1).set(&[2]);
        ends[1].all_reduce(bufs[1].0, bufs[1].1).unwrap();
        let outcomes: Vec<_> = ends.iter().map(End::wait).collect();
        if guards == Guards::NONE {
            outcomes.into_iter().for_each(|outcome| outcome.unwrap());
            continue;
        }
        let file = site.split(':').next().unwrap();
        for (end, outcome) in ends.iter().zip(outcomes) {
            let error = outcome.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidUsage);
            let text = error.to_string();
            for part in [
                "the send buffer of all_reduce #0 of rank 0 in 'test'",
                file,
                "400 bytes",
                "bytes 128 to 192 differ",
            ] {
                assert!(text.contains(part), "'{part}' is not in: {text}");
            }
            let error = end.comm.poll_error().unwrap_err();
            assert!(error.poisons_communicator() && error.kind() == ErrorKind::InvalidUsage);
        }
        assert_eq!(bufs[1].1.now(), [0; 100], "nothing was moved");
        // Other communicators know nothing of it.
        for (end, buf) in other.iter().zip(&bufs) {
            end.all_reduce(buf.1, buf.1).unwrap();
        }
        other.iter().for_each(|end| end.wait().unwrap());
    }
}

#[test]
fn a_send_buffer_is_watched_while_its_operation_is_put_off() {
    let config = MockConfig::new().with_devices(1).with_guards(CHECKSUMS);
    let mock = Mock::new(config.with_schedule(Schedule::Late));
    let end = &ends(&mock, 1)[0];
    let (send, recv) = (end.buf(&[1]), end.buf(&[0]));
    end.all_reduce(send, recv).unwrap();
    send.set(&[2]);
    let text = end.wait().unwrap_err().to_string();
    assert!(
        text.contains("the send buffer of all_reduce #0") && text.contains("schedule late"),
        "{text}"
    );
}

#[test]
fn a_message_and_a_member_of_a_group_are_summed_too() {
    let mock = mock(CHECKSUMS);
    let one = ends(&mock, 2);
    let buf = one[0].buf(&[1, 2]);
    one[0].send(buf, 1).unwrap();
    buf.set(&[1, 3]);
    one[1].recv(one[1].buf(&[0, 0]), 0).unwrap();
    let text = one[0].wait().unwrap_err().to_string();
    assert!(text.contains("the send buffer of send #0 of rank 0"), "{text}");

    let two = ends(&mock, 2);
    mock.group(|_| {
        two[0].send(buf, 1)?;
        two[0].recv(two[0].buf(&[0, 0]), 1)
    })
    .unwrap();
    buf.set(&[0, 3]);
    mock.group(|_| {
        two[1].send(two[1].buf(&[5, 5]), 0)?;
        two[1].recv(two[1].buf(&[0, 0]), 0)
    })
    .unwrap();
    let text = two[1].wait().unwrap_err().to_string();
    assert!(text.contains("changed before it was read: send of 2 × i32, to rank 1"), "{text}");
}

#[test]
fn a_write_by_another_stream_is_named() {
    let mock = mock(CHECKSUMS);
    let ends = ends(&mock, 2);
    let (buf, side) = (ends[0].buf(&[1]), ends[0].device.stream_create().unwrap());
    ends[0].all_reduce(buf, buf).unwrap();
    ends[0].fill(buf, 3, side);
    let other = ends[1].buf(&[1]);
    ends[1].all_reduce(other, other).unwrap();
    let text = ends[1].wait().unwrap_err().to_string();
    assert!(text.contains("written by memset (") && text.contains("guards.rs:"), "{text}");
}

#[test]
fn unordered_streams_race_whichever_ran_first() {
    for schedule in [Schedule::Eager, Schedule::Late, Schedule::Random(5)] {
        let config = MockConfig::new().with_devices(1).with_guards(RACES).with_schedule(schedule);
        let mock = Mock::new(config);
        let end = &ends(&mock, 1)[0];
        let (buf, copy) = (end.buf(&[1]), end.buf(&[0]));
        let side = end.device.stream_create().unwrap();
        end.all_reduce(buf, buf).unwrap();
        end.copy(buf, copy, side);
        // In either order the second to run is refused, and both are told.
        let outcomes = [end.wait_on(side), end.wait()];
        let errors: Vec<_> = outcomes.into_iter().filter_map(Result::err).collect();
        assert!(!errors.is_empty(), "{schedule}");
        for error in errors {
            assert_eq!(error.kind(), ErrorKind::InvalidUsage, "{schedule}: {error}");
            let text = error.to_string();
            assert!(text.contains("two streams race"), "{text}");
            assert!(text.contains("all_reduce #0 of rank 0 in 'test' (crates"), "{text}");
            assert!(text.contains("copy (crates") && text.contains("4 bytes"), "{text}");
        }
        let error = end.comm.poll_error().unwrap_err();
        assert!(error.to_string().contains("record an event"), "{error}");
    }
}

#[test]
fn a_copy_that_overtakes_a_pending_operation_is_reported_when_that_runs() {
    let mock = mock(RACES);
    let ends = ends(&mock, 2);
    let (buf, copy) = (ends[0].buf(&[1]), ends[0].buf(&[0]));
    let side = ends[0].device.stream_create().unwrap();
    ends[0].all_reduce(buf, buf).unwrap();
    ends[0].copy(buf, copy, side);
    let other = ends[1].buf(&[1]);
    ends[1].all_reduce(other, other).unwrap();
    for end in &ends {
        let text = end.wait().unwrap_err().to_string();
        assert!(text.contains("two streams race"), "{text}");
    }
    assert!(ends[0].wait_on(side).is_err(), "the stream of the copy is told too");
}

#[test]
fn events_waits_groups_and_peers_order() {
    let mock = Mock::new(MockConfig::strict().with_devices(2));
    let ends = ends(&mock, 2);
    let sides: Vec<_> = ends.iter().map(|end| end.device.stream_create().unwrap()).collect();
    let bufs: Vec<_> = ends.iter().map(|end| end.buf(&[1])).collect();
    let each = |act: &dyn Fn(&End, usize)| {
        for (rank, end) in ends.iter().enumerate() {
            act(end, rank);
        }
    };
    // An event.
    each(&|end, rank| end.all_reduce(bufs[rank], bufs[rank]).unwrap());
    each(&|end, rank| end.order(end.stream, sides[rank]));
    each(&|end, rank| end.fill(bufs[rank], 1, sides[rank]));
    // A wait of the host.
    each(&|end, rank| end.wait_on(sides[rank]).unwrap());
    each(&|end, rank| end.fill(bufs[rank], 2, end.stream));
    // A query that says yes.
    each(&|end, rank| {
        let event = end.record(end.stream);
        assert!(end.query(event));
        end.fill(bufs[rank], 3, sides[rank]);
    });
    // A message that goes to the other rank and back.
    each(&|end, rank| end.wait_on(sides[rank]).unwrap());
    ends[0].send(bufs[0], 1).unwrap();
    ends[1].recv(bufs[1], 0).unwrap();
    ends[1].send(bufs[1], 0).unwrap();
    let launch = Launch::new(sides[0]);
    // SAFETY: buffers and streams live as long as the mock.
    unsafe { ends[0].comm.recv(bufs[0].recv(), Rank::new(1), launch) }.unwrap();
    ends[0].fill(bufs[0], 4, sides[0]);
    each(&|end, _| end.wait().unwrap());
    ends[0].wait_on(sides[0]).unwrap();
    assert_eq!(bufs[0].now(), [0x0404_0404]);
}

#[test]
fn memory_freed_behind_the_wrong_stream_is_a_race() {
    let mock = mock(RACES);
    let ends = ends(&mock, 2);
    let (buf, side) = (ends[0].buf(&[1]), ends[0].device.stream_create().unwrap());
    ends[0].fill(buf, 0, ends[0].stream);
    // SAFETY: the memory is used by nothing that is still to run.
    unsafe { ends[0].device.free(buf.ptr, side) }.unwrap();
    let text = ends[0].wait_on(side).unwrap_err().to_string();
    assert!(text.contains("free (crates") && text.contains("memset (crates"), "{text}");
    assert!(ends[0].wait().is_err());
}

#[test]
fn reuse_of_memory_is_no_race() {
    let mock = mock(RACES);
    let end = &ends(&mock, 2)[0];
    let side = end.device.stream_create().unwrap();
    for turn in 0..600 {
        let buf = end.buf(&[1]);
        end.fill(buf, 0, if turn % 2 == 0 { end.stream } else { side });
        let stream = if turn % 2 == 0 { end.stream } else { side };
        // SAFETY: nothing uses the memory any more.
        unsafe { end.device.free(buf.ptr, stream) }.unwrap();
    }
    end.wait().unwrap();
    end.wait_on(side).unwrap();
}

#[test]
fn an_aborted_communicator_touches_no_buffer() {
    let mock = Mock::new(MockConfig::strict().with_devices(2));
    let mut ends = ends(&mock, 2);
    let buf = ends[0].buf(&[1]);
    ends[0].all_reduce(buf, buf).unwrap();
    let next = ends[0].buf(&[7]);
    ends[0].all_reduce(buf, next).unwrap();
    Box::new(ends.remove(0).comm).abort().unwrap();
    assert_eq!(next.now(), [7], "it never came to the head of a stream of a live communicator");
    let error = ends[0].wait_for(ends[0].stream, Duration::from_secs(1));
    assert!(error.is_ok(), "nothing was issued there");
}
