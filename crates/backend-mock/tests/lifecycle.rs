//! What only the mock does when ranks are lost, added or late, and its list of what is alive.

use std::{ffi::c_void, panic::Location, sync::Barrier, thread, time::Duration};

use collectives_backend_mock::{AliveKind, JoinState, Mock, MockComm, MockConfig, MockDevice};
use collectives_core::{
    Backend, Collectives, Device, Error, ErrorKind, GrowConfig, JoinAllConfig, JoinConfig, Launch,
    PreMulSum, Rank, RawGraph, RawRegistration, RawStream, RecvBuf, ReduceOp, Result, Scalar,
    ShrinkConfig, Split, SplitConfig,
};

fn mock(devices: usize) -> Mock {
    Mock::new(MockConfig::new().with_devices(devices))
}

fn ends(mock: &Mock, size: usize) -> Vec<MockComm> {
    let devices: Vec<usize> = (0..size).collect();
    mock.join_all(JoinAllConfig::new(devices).with_name("world")).unwrap()
}

fn without(ranks: &[u32]) -> ShrinkConfig {
    ShrinkConfig::new(ranks.iter().copied().map(Rank::new).collect::<Vec<_>>())
}

/// Sums `value` over the ranks on the default stream, and waits for it.
fn sum(mock: &Mock, comm: &MockComm, value: i32) -> Result<i32> {
    let mut value = value;
    let outcome = enqueue(comm, &mut value).and_then(|()| wait(mock, comm));
    outcome.map(|()| value)
}

fn enqueue(comm: &MockComm, value: &mut i32) -> Result<()> {
    let buf = RecvBuf::typed(value, 1);
    // SAFETY: the callers wait for the stream, or end the communicator, before the value goes.
    unsafe { comm.all_reduce(buf.as_send(), buf, ReduceOp::Sum, Launch::new(RawStream::DEFAULT)) }
}

fn wait(mock: &Mock, comm: &MockComm) -> Result<()> {
    let device = mock.device(comm.info().device)?;
    // SAFETY: the default stream always lives.
    unsafe { device.synchronize(RawStream::DEFAULT, Some(PATIENCE)) }
}

/// Runs one thread per end, and gives their answers in rank order.
fn each<R: Send>(ends: Vec<MockComm>, run: impl Fn(MockComm) -> R + Sync) -> Vec<R> {
    let run = &run;
    thread::scope(|scope| {
        let threads: Vec<_> = ends.into_iter().map(|end| scope.spawn(move || run(end))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn kinds(errors: &[Error]) -> Vec<ErrorKind> {
    errors.iter().map(Error::kind).collect()
}

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn ranks_that_disagree_on_whom_to_exclude_are_told() {
    let mock = mock(4);
    let mut ends = ends(&mock, 4);
    let others = ends.split_off(2);
    let errors = each(ends, |end| {
        let list: &[u32] = if end.info().rank.get() == 0 { &[3] } else { &[3, 2] };
        end.shrink(without(list)).unwrap_err()
    });
    assert_eq!(kinds(&errors), [ErrorKind::InvalidArgument; 2]);
    for error in &errors {
        let text = error.to_string();
        let [one, two] = ["rank 0 excludes 3, rank 1 2, 3", "rank 1 excludes 2, 3, rank 0 3"];
        assert!(text.contains(one) || text.contains(two), "{error}");
        assert!(!error.poisons_communicator());
    }
    drop(others);
}

#[test]
fn parts_that_exclude_each_other_shrink_side_by_side() {
    let mock = mock(4);
    let sums = each(ends(&mock, 4), |end| {
        let rank = end.info().rank.get();
        let list: &[u32] = if rank < 2 { &[3, 2] } else { &[0, 1] };
        let half = end.shrink(without(list)).unwrap();
        assert_eq!((half.info().rank.get(), half.info().size), (rank % 2, 2));
        sum(&mock, &half, rank as i32).unwrap()
    });
    assert_eq!(sums, [1, 1, 5, 5]);
}

#[test]
fn a_lost_rank_that_is_not_excluded_is_an_error_on_all() {
    let mock = mock(4);
    let mut ends = ends(&mock, 4);
    drop(ends.pop());
    let failed = Barrier::new(2);
    let errors = each(ends, |end| match end.info().rank.get() {
        2 => None,
        _ => {
            let error = end.shrink(without(&[2])).unwrap_err();
            // Its end would be a loss too.
            failed.wait();
            Some(error)
        }
    });
    let errors: Vec<Error> = errors.into_iter().flatten().collect();
    assert_eq!(kinds(&errors), [ErrorKind::Remote, ErrorKind::Remote]);
    assert_eq!(
        errors[0].to_string(),
        "mock shrink (rank 0 of 4, communicator 'world'): rank 3 left the communicator, and should \
         have been excluded; shrink without what is gone"
    );
}

#[test]
fn a_rank_that_leaves_or_is_aborted_frees_those_that_wait_to_shrink() {
    for abort in [true, false] {
        let mock = mock(3);
        let mut ends = ends(&mock, 3);
        let (excluded, late) = (ends.pop(), ends.pop().unwrap());
        let first = ends.pop().unwrap();
        let error = thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let first = first;
                first.shrink(without(&[2])).unwrap_err()
            });
            thread::sleep(Duration::from_millis(20));
            if abort {
                late.abort_handle().abort().unwrap();
            } else {
                drop(late);
            }
            waiting.join().unwrap()
        });
        assert_eq!(error.kind(), ErrorKind::Remote, "{error}");
        drop(excluded);
    }
}

#[test]
fn a_revoke_ends_a_shrink_that_was_planned() {
    let mock = mock(4);
    let sums = each(ends(&mock, 4), |end| {
        let rank = end.info().rank.get();
        match rank {
            1 => {
                // Time for the others to come to the shrink.
                thread::sleep(Duration::from_millis(20));
                end.revoke().unwrap();
            }
            3 => while end.poll_error().is_ok() {},
            _ => {
                let error = end.shrink(without(&[3])).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Revoked, "{error}");
                assert!(error.to_string().contains("rank 1 revoked the communicator"), "{error}");
            }
        }
        if rank == 2 {
            return None;
        }
        sum(&mock, &end.shrink(without(&[2])).unwrap(), 1).ok()
    });
    assert_eq!(sums, [Some(3), Some(3), None, Some(3)]);
}

#[test]
fn an_abort_by_handle_frees_its_own_rank_from_a_shrink() {
    let mock = mock(3);
    let mut ends = ends(&mock, 3);
    let handle = ends[0].abort_handle();
    let first = ends.remove(0);
    let waiting = thread::spawn(move || first.shrink(without(&[2])).unwrap_err());
    thread::sleep(Duration::from_millis(20));
    handle.abort().unwrap();
    assert_eq!(waiting.join().unwrap().kind(), ErrorKind::Aborted);
}

#[test]
fn a_failed_communicator_wants_a_revoke_or_an_abort_to_be_shrunk() {
    let mock = mock(3);
    let mut ends = ends(&mock, 3);
    drop(ends.pop());
    let seen = Barrier::new(2);
    let sums = each(ends, |end| {
        let failure = sum(&mock, &end, 1).unwrap_err();
        assert_eq!(failure.kind(), ErrorKind::Remote);
        let error = end.shrink(without(&[2])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Remote);
        assert!(error.to_string().contains("or shrink with abort"), "{error}");
        seen.wait();
        let rank = end.info().rank.get();
        let config = if rank == 0 { without(&[2]).with_abort() } else { without(&[2]) };
        if rank == 1 {
            end.revoke().unwrap();
        }
        let small = end.shrink(config).unwrap();
        assert_eq!(sum(&mock, &end, 1).unwrap_err().kind(), ErrorKind::Revoked);
        sum(&mock, &small, 1).unwrap()
    });
    assert_eq!(sums, [2, 2]);
}

#[test]
fn a_revoke_by_one_rank_is_seen_by_all() {
    let mock = mock(2);
    let mut ends = ends(&mock, 2);
    let (second, first) = (ends.pop().unwrap(), ends.pop().unwrap());
    let mut value = 1;
    enqueue(&first, &mut value).unwrap();
    second.revoke().unwrap();
    let error = wait(&mock, &first).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Revoked);
    assert!(error.to_string().contains("rank 1 revoked the communicator"), "{error}");
    assert_eq!(first.poll_error().unwrap_err().kind(), ErrorKind::Revoked);
    // Who revokes knows.
    wait(&mock, &second).unwrap();
    Box::new(first).finalize().unwrap();
    Box::new(second).finalize().unwrap();
    mock.check_leaks().unwrap();
}

#[test]
fn a_revoke_frees_those_that_wait_to_split() {
    let mock = mock(2);
    let mut ends = ends(&mock, 2);
    let second = ends.pop().unwrap();
    let first = ends.pop().unwrap();
    let waiting = thread::spawn(move || first.split(SplitConfig::new(0)).unwrap_err());
    thread::sleep(Duration::from_millis(20));
    second.revoke().unwrap();
    assert_eq!(waiting.join().unwrap().kind(), ErrorKind::Revoked);
}

#[test]
fn members_without_an_id_are_told_instead_of_waiting() {
    let mock = mock(4);
    let errors = each(ends(&mock, 2), |end| {
        let error = end.grow(GrowConfig::new(3)).unwrap_err();
        // The communicator is as it was.
        assert_eq!(sum(&mock, &end, 2).unwrap(), 4);
        error
    });
    assert_eq!(kinds(&errors), [ErrorKind::InvalidUsage, ErrorKind::InvalidUsage]);
    assert!(errors[1].to_string().contains("one of them calls grow_id first"), "{}", errors[1]);
}

#[test]
fn ids_are_for_what_they_were_made_for() {
    let mock = mock(4);
    let ends = ends(&mock, 2);
    let (plain, grown) = (mock.unique_id().unwrap(), ends[0].grow_id().unwrap());
    for error in [
        mock.join(&grown, JoinConfig::new(2, 3)).unwrap_err(),
        mock.join_start(&grown, JoinConfig::new(2, 3)).unwrap_err(),
        mock.join_grown(&plain, JoinConfig::new(2, 3)).unwrap_err(),
        mock.join_grown(&grown, JoinConfig::new(1, 3)).unwrap_err(),
        mock.join_grown(&grown, JoinConfig::new(3, 3)).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    }
    // By another member too: the id is the communicator's.
    assert_eq!(ends[1].grow_id().unwrap_err().kind(), ErrorKind::InvalidUsage);
    let config = JoinConfig::new(2, 3).with_deadline(Duration::from_millis(20));
    let error = mock.join_grown(&grown, config).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(error.to_string().contains("missing 0, 1"), "{error}");
}

#[test]
fn members_and_new_ranks_must_agree_on_the_size() {
    let mock = mock(4);
    let mut ends = ends(&mock, 1);
    let only = ends.pop().unwrap();
    let id = only.grow_id().unwrap();
    let member = thread::spawn(move || only.grow(GrowConfig::new(3)).map(drop).unwrap_err());
    let new = mock.join_grown(&id, JoinConfig::new(1, 2)).unwrap_err();
    let member = member.join().unwrap();
    assert_eq!(kinds(&[new, member]), [ErrorKind::InvalidArgument; 2]);
}

#[test]
fn a_pending_join_shows_every_state() {
    let mock = mock(3);
    let id = mock.unique_id().unwrap();
    let mut first = mock.join_start(&id, JoinConfig::new(0, 3)).unwrap();
    assert_eq!(first.poll(), JoinState::InProgress);
    let second = mock.join_start(&id, JoinConfig::new(1, 3)).unwrap();
    // Given up, and taken by another.
    second.abort();
    let mut second = mock.join_start(&id, JoinConfig::new(1, 3)).unwrap();
    assert_eq!((first.poll(), second.poll()), (JoinState::InProgress, JoinState::InProgress));
    // The third blocks, and has nothing to wait for.
    let third = mock.join(&id, JoinConfig::new(2, 3)).unwrap();
    assert_eq!((first.poll(), second.poll()), (JoinState::Ready, JoinState::Ready));
    assert_eq!(first.poll(), JoinState::Ready);
    let ends = vec![first.finish().unwrap(), second.finish().unwrap(), third];
    assert_eq!(each(ends, |end| sum(&mock, &end, 1).unwrap()), [3, 3, 3]);
    mock.check_leaks().unwrap();
}

#[test]
fn a_pending_join_fails_for_a_reason() {
    let mock = mock(2);
    let id = mock.unique_id().unwrap();
    let config = JoinConfig::new(0, 2).with_deadline(Duration::from_millis(1));
    let mut late = mock.join_start(&id, config).unwrap();
    while late.poll() == JoinState::InProgress {
        thread::yield_now();
    }
    assert_eq!(late.poll(), JoinState::Failed);
    let error = late.finish().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(error.to_string().contains("missing 1"), "{error}");

    let mut first = mock.join_start(&id, JoinConfig::new(0, 2)).unwrap();
    let error = mock.join_start(&id, JoinConfig::new(1, 2).with_device(0)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidUsage);
    assert_eq!(first.poll(), JoinState::Failed);
    assert!(first.finish().unwrap_err().to_string().contains("both on device 0"));

    let early = mock.join_start(&mock.unique_id().unwrap(), JoinConfig::new(0, 2)).unwrap();
    assert_eq!(early.finish().unwrap_err().kind(), ErrorKind::InvalidUsage);
    assert!(mock.join_start(&id, JoinConfig::new(2, 2)).is_err());
}

#[test]
fn a_ready_join_that_is_given_up_leaves_the_communicator() {
    let mock = mock(2);
    let id = mock.unique_id().unwrap();
    let first = mock.join_start(&id, JoinConfig::new(0, 2)).unwrap();
    let second = mock.join(&id, JoinConfig::new(1, 2)).unwrap();
    first.abort();
    assert_eq!(sum(&mock, &second, 1).unwrap_err().kind(), ErrorKind::Remote);
}

#[test]
fn an_abort_from_another_thread_frees_finalize() {
    let mock = mock(2);
    let mut ends = ends(&mock, 2);
    let (second, first) = (ends.pop().unwrap(), ends.pop().unwrap());
    let handle = first.abort_handle();
    let finalizing = thread::spawn(move || {
        // Rank 1 never calls it.
        let mut value = 1;
        enqueue(&first, &mut value).unwrap();
        Box::new(first).finalize().map(|()| value)
    });
    // Only makes it likely that the wait has begun; either order must work.
    thread::sleep(Duration::from_millis(20));
    handle.abort().unwrap();
    assert_eq!(finalizing.join().unwrap().unwrap_err().kind(), ErrorKind::Aborted);
    assert_eq!(second.poll_error().unwrap_err().kind(), ErrorKind::Remote);
    drop(second);
    mock.check_leaks().unwrap();
}

#[test]
fn what_is_alive_is_listed_with_where_it_was_made() {
    /// The line below the caller's.
    #[track_caller]
    fn next_line() -> String {
        let here = Location::caller();
        format!("{}:{}:", here.file(), here.line() + 1)
    }
    let mock = mock(2);
    let device = mock.device(1).unwrap();
    let tp = JoinConfig::new(0, 1).with_device(1).with_name("tp");
    let (id, mut sites) = (mock.unique_id().unwrap(), Vec::new());
    sites.push(next_line());
    let comm = mock.join(&id, tp).unwrap();
    sites.push(next_line());
    let buffer = device.alloc(4096).unwrap();
    sites.push(next_line());
    let stream = device.stream_create().unwrap();
    sites.push(next_line());
    let event = device.event_create().unwrap();
    // SAFETY: made above.
    unsafe { device.begin_capture(stream) }.unwrap();
    sites.push(next_line());
    let graph = end_capture(&device, stream);
    sites.push(next_line());
    let scaled = scale(&comm);
    sites.push(next_line());
    let memory = comm.mem_alloc(64).unwrap();
    sites.push(next_line());
    let registration = register(&comm, memory);
    sites.push(next_line());
    let part = comm.split(SplitConfig::new(0)).unwrap().unwrap();

    let alive = mock.alive();
    let found: Vec<_> = alive.things().iter().map(|thing| thing.site.to_string()).collect();
    assert_eq!(found.len(), sites.len(), "{alive}");
    for (found, expected) in found.iter().zip(&sites) {
        assert!(found.starts_with(expected), "{found}, want {expected}\n{alive}");
    }
    let report = alive.to_string();
    let lines: Vec<_> = report.lines().collect();
    assert_eq!(lines[0], "9 things are alive");
    for (line, start) in lines[1..].iter().zip([
        "  communicator 'tp' (rank 0 of 1) on device 1, made at ",
        "  buffer of 4096 bytes on device 1, made at ",
        "  stream on device 1, made at ",
        "  event on device 1, made at ",
        "  graph on device 1, made at ",
        "  reduce op of communicator 'tp' (rank 0 of 1) on device 1, made at ",
        "  buffer of 64 bytes on device 1, made at ",
        "  registration of 64 bytes of communicator 'tp' (rank 0 of 1) on device 1, made at ",
        "  communicator (rank 0 of 1) on device 1, made at ",
    ]) {
        assert!(line.starts_with(start), "{line}, want {start}");
    }
    let error = mock.check_leaks().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidUsage);
    assert!(error.to_string().contains("9 things are alive: communicator 'tp'"), "{error}");

    drop(part);
    comm.destroy_pre_mul_sum(scaled).unwrap();
    // SAFETY: registered above, and not in use.
    unsafe { comm.deregister(registration) }.unwrap();
    // SAFETY: allocated above, and not in use.
    unsafe { comm.mem_free(memory) }.unwrap();
    // SAFETY: made above, and not in use.
    unsafe { device.graph_destroy(graph) }.unwrap();
    // SAFETY: as above.
    unsafe { device.event_destroy(event) }.unwrap();
    // SAFETY: as above.
    unsafe { device.free(buffer, stream) }.unwrap();
    // SAFETY: as above.
    unsafe { device.stream_destroy(stream) }.unwrap();
    assert_eq!(mock.alive().things().len(), 1);
    assert_eq!(mock.alive().count(AliveKind::Communicator), 1);
    drop(comm);
    assert!(mock.alive().is_empty());
    assert_eq!(mock.alive().to_string(), "nothing is alive");
}

#[test]
fn what_belongs_to_a_communicator_goes_with_it() {
    let mock = mock(1);
    let comm = ends(&mock, 1).pop().unwrap();
    let memory = comm.mem_alloc(64).unwrap();
    register(&comm, memory);
    scale(&comm);
    assert_eq!(mock.alive().things().len(), 4);
    comm.abort_handle().abort().unwrap();
    assert_eq!(mock.alive().count(AliveKind::Communicator), 1, "its owner has it yet");
    drop(comm);
    let alive = mock.alive();
    assert_eq!((alive.things().len(), alive.count(AliveKind::Buffer)), (1, 1), "{alive}");
}

#[track_caller]
fn end_capture(device: &MockDevice, stream: RawStream) -> RawGraph {
    // SAFETY: the stream is the caller's, and nothing was captured.
    unsafe { device.end_capture(stream) }.unwrap()
}

#[track_caller]
fn scale(comm: &MockComm) -> PreMulSum {
    // SAFETY: a host scalar.
    unsafe { comm.create_pre_mul_sum(Scalar::host(2.0_f32)) }.unwrap()
}

#[track_caller]
fn register(comm: &MockComm, memory: *mut c_void) -> RawRegistration {
    // SAFETY: the caller has just allocated so much, which lives until it is deregistered.
    unsafe { comm.register(memory, 64) }.unwrap()
}
