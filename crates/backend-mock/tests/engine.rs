//! The engine's semantics, seen through the traits: what fires when, what is refused, what wakes.

use std::{
    ffi::c_void,
    sync::{Barrier, mpsc},
    thread,
    time::{Duration, Instant},
};

use collectives_backend_mock::{Mock, MockComm, MockConfig, MockDevice, PendingStatus};
use collectives_core::{
    Backend, BackendExt, Collectives, CollectivesExt, Device, Element, Error, ErrorKind,
    JoinAllConfig, JoinConfig, Launch, Rank, RawStream, RecvBuf, ReduceOp, Result, Scalar, SendBuf,
    Split, SplitConfig, UniqueId,
};

/// One rank with a stream of its own.
struct End {
    comm: MockComm,
    device: MockDevice,
    stream: RawStream,
}

/// A buffer of a device; freed with its engine.
#[derive(Clone, Copy)]
struct Buf {
    ptr: *mut c_void,
    count: usize,
}

impl Buf {
    fn send(self) -> SendBuf {
        SendBuf::typed::<i32>(self.ptr.cast(), self.count)
    }
    fn recv(self) -> RecvBuf {
        RecvBuf::typed::<i32>(self.ptr.cast(), self.count)
    }
}

impl End {
    fn buf(&self, values: &[i32]) -> Buf {
        let buf = Buf { ptr: self.device.alloc(4 * values.len()).unwrap(), count: values.len() };
        self.write(buf, values);
        buf
    }
    /// Writes on the host's side, as nothing pending uses the buffer.
    fn write(&self, buf: Buf, values: &[i32]) {
        // SAFETY: the buffer holds as many elements, and nothing else uses it.
        unsafe { buf.ptr.cast::<i32>().copy_from(values.as_ptr(), values.len()) };
    }
    fn read(&self, buf: Buf) -> Vec<i32> {
        // SAFETY: as in `write`; every buffer is written when it is made.
        unsafe { std::slice::from_raw_parts(buf.ptr.cast::<i32>(), buf.count) }.to_vec()
    }
    fn launch(&self) -> Launch<'static> {
        Launch::new(self.stream)
    }
    fn all_reduce(&self, send: Buf, recv: Buf) -> Result<()> {
        self.all_reduce_on(send, recv, self.stream)
    }
    fn all_reduce_on(&self, send: Buf, recv: Buf, stream: RawStream) -> Result<()> {
        // SAFETY: buffers live as long as the mock; tests wait before they look.
        unsafe {
            self.comm.all_reduce(send.send(), recv.recv(), ReduceOp::Sum, Launch::new(stream))
        }
    }
    fn send(&self, buf: Buf, peer: u32) -> Result<()> {
        // SAFETY: as in `all_reduce_on`.
        unsafe { self.comm.send(buf.send(), Rank::new(peer), self.launch()) }
    }
    fn recv(&self, buf: Buf, peer: u32) -> Result<()> {
        // SAFETY: as in `all_reduce_on`.
        unsafe { self.comm.recv(buf.recv(), Rank::new(peer), self.launch()) }
    }
    fn wait(&self) -> Result<()> {
        self.wait_on(self.stream)
    }
    fn wait_on(&self, stream: RawStream) -> Result<()> {
        // SAFETY: the stream is alive. No test needs this long; a hang becomes a message.
        unsafe { self.device.synchronize(stream, Some(Duration::from_secs(20))) }
    }
    /// Whether the stream passes its work soon; it is expected not to.
    fn is_stuck(&self) -> Error {
        // SAFETY: the stream is alive.
        let outcome =
            unsafe { self.device.synchronize(self.stream, Some(Duration::from_millis(20))) };
        let error = outcome.expect_err("the stream should be stuck");
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
        error
    }
    fn begin(&self) {
        // SAFETY: the stream is alive.
        unsafe { self.device.begin_capture(self.stream) }.unwrap();
    }
}

fn mock(devices: usize) -> Mock {
    Mock::new(MockConfig::new().with_devices(devices))
}

/// All ranks in this thread.
fn ends(mock: &Mock, ranks: usize) -> Vec<End> {
    let config = JoinAllConfig::new((0..ranks).collect::<Vec<_>>()).with_name("test");
    mock.join_all(config).unwrap().into_iter().map(|comm| end(mock, comm)).collect()
}

fn end(mock: &Mock, comm: MockComm) -> End {
    let device = mock.device(comm.info().device).unwrap();
    let stream = device.stream_create().unwrap();
    End { comm, device, stream }
}

#[test]
#[cfg_attr(miri, ignore = "large operations take minutes")]
fn ranks_in_threads_agree_and_large_operations_are_shared_out() {
    let mock = mock(4);
    for count in [1, 1000, 300_001] {
        thread::scope(|scope| {
            for end in ends(&mock, 4) {
                scope.spawn(move || {
                    let rank = end.comm.info().rank.get() as i32;
                    let send = end.buf(&vec![rank + 1; count]);
                    let recv = end.buf(&vec![0; count]);
                    for _ in 0..3 {
                        end.all_reduce(send, recv).unwrap();
                    }
                    end.wait().unwrap();
                    assert_eq!(end.read(recv), vec![10; count]);
                    let boxed = Box::new(end.comm);
                    boxed.finalize().unwrap();
                });
            }
        });
    }
}

#[test]
fn one_thread_drives_all_ranks_without_a_group() {
    let mock = mock(3);
    let ends = ends(&mock, 3);
    let bufs: Vec<_> = ends.iter().map(|end| end.buf(&[7, 8])).collect();
    for (end, &buf) in ends.iter().zip(&bufs) {
        end.all_reduce(buf, buf).unwrap();
    }
    for (end, &buf) in ends.iter().zip(&bufs) {
        end.wait().unwrap();
        assert_eq!(end.read(buf), [21, 24]);
    }
}

#[test]
fn a_stream_is_passed_in_order_and_streams_do_not_hold_each_other() {
    let mock = mock(2);
    let ends = ends(&mock, 2);
    let buf = ends[0].buf(&[1]);
    ends[0].all_reduce(buf, buf).unwrap();
    // Behind the all-reduce.
    // SAFETY: the buffer lives as long as the mock.
    unsafe { ends[0].device.memset(buf.ptr, 0, 4, ends[0].stream) }.unwrap();
    let error = ends[0].is_stuck();
    assert!(error.to_string().contains("all_reduce #0"), "{error}");
    assert!(error.to_string().contains("waiting for rank 1"), "{error}");
    assert!(error.to_string().contains("engine.rs:"), "{error}");
    // Another stream of the same device goes on.
    ends[0].wait_on(RawStream::DEFAULT).unwrap();
    let pending = mock.pending();
    assert_eq!(pending.len(), 1);
    assert_eq!(pending[0].status, PendingStatus::Waiting(vec![Rank::new(1)]));
    assert_eq!((pending[0].operation, pending[0].communicator.as_str()), ("all_reduce", "test"));

    let other = ends[1].buf(&[2]);
    ends[1].all_reduce(other, other).unwrap();
    ends[1].wait().unwrap();
    ends[0].wait().unwrap();
    assert_eq!((ends[0].read(buf), ends[1].read(other)), (vec![0], vec![3]));
    assert!(mock.pending().is_empty());
}

#[test]
fn collectives_match_by_issue_order_whatever_the_stream() {
    let mock = mock(2);
    let ends = ends(&mock, 2);
    let second = ends[0].device.stream_create().unwrap();
    let (a0, b0) = (ends[0].buf(&[1]), ends[0].buf(&[10]));
    let (a1, b1) = (ends[1].buf(&[2]), ends[1].buf(&[20]));
    ends[0].all_reduce_on(a0, a0, second).unwrap();
    ends[0].all_reduce(b0, b0).unwrap();
    ends[1].all_reduce(a1, a1).unwrap();
    ends[1].all_reduce(b1, b1).unwrap();
    ends[1].wait().unwrap();
    ends[0].wait().unwrap();
    ends[0].wait_on(second).unwrap();
    assert_eq!((ends[0].read(a0), ends[0].read(b0)), (vec![3], vec![30]));
}

#[test]
fn events_order_streams_and_answer_queries() {
    let mock = mock(2);
    let ends = ends(&mock, 2);
    let device = &ends[0].device;
    let (event, other) = (device.event_create().unwrap(), device.stream_create().unwrap());
    let buf = ends[0].buf(&[5]);
    // SAFETY: event, streams and buffers live to the end, here and below.
    assert!(unsafe { device.query(event) }.unwrap());
    ends[0].all_reduce(buf, buf).unwrap();
    // SAFETY: as above.
    unsafe { device.record(event, ends[0].stream) }.unwrap();
    // SAFETY: as above.
    unsafe { device.wait(other, event) }.unwrap();
    let copy = ends[0].buf(&[0]);
    // SAFETY: as above.
    unsafe { device.copy_between(copy.ptr, buf.ptr, 4, other) }.unwrap();
    // SAFETY: as above.
    assert!(!unsafe { device.query(event) }.unwrap());
    // Destroying an event does not undo waits.
    // SAFETY: not used any more.
    unsafe { device.event_destroy(event) }.unwrap();
    // SAFETY: refused, as it is gone.
    let error = unsafe { device.query(event) }.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert_eq!(ends[0].read(copy), [0]);
    let peer = ends[1].buf(&[6]);
    ends[1].all_reduce(peer, peer).unwrap();
    ends[0].wait_on(other).unwrap();
    assert_eq!(ends[0].read(copy), [11]);
}

#[test]
fn a_group_is_one_unit_and_exchanges_do_not_deadlock() {
    let mock = mock(2);
    let ends = ends(&mock, 2);
    let bufs: Vec<_> = (0..2)
        .map(|i| (ends[i].buf(&[i as i32 + 1]), ends[i].buf(&[0]), ends[i].buf(&[0])))
        .collect();
    for (i, end) in ends.iter().enumerate() {
        let (send, recv, own) = bufs[i];
        mock.group(|_| {
            end.send(send, 1 - i as u32)?;
            end.recv(recv, 1 - i as u32)?;
            end.send(send, i as u32)?;
            end.recv(own, i as u32)
        })
        .unwrap();
        if i == 0 {
            end.is_stuck();
        }
    }
    for (i, end) in ends.iter().enumerate() {
        end.wait().unwrap();
        assert_eq!(end.read(bufs[i].1), [2 - i as i32]);
        assert_eq!(end.read(bufs[i].2), [i as i32 + 1]);
    }
}

#[test]
fn one_group_drives_many_ranks_and_many_communicators() {
    let mock = mock(2);
    let (first, second) = (ends(&mock, 2), ends(&mock, 2));
    let bufs: Vec<_> = (0..2).map(|i| (first[i].buf(&[1]), first[i].buf(&[10]))).collect();
    // The two communicators in opposite orders on one stream: as a group they are one unit.
    for i in 0..2 {
        mock.group(|_| {
            let (a, b) = bufs[i];
            let stream = first[i].stream;
            if i == 0 {
                first[i].all_reduce_on(a, a, stream)?;
                second[i].all_reduce_on(b, b, stream)
            } else {
                second[i].all_reduce_on(b, b, stream)?;
                first[i].all_reduce_on(a, a, stream)
            }
        })
        .unwrap();
    }
    for i in 0..2 {
        first[i].wait().unwrap();
        assert_eq!((first[i].read(bufs[i].0), first[i].read(bufs[i].1)), (vec![2], vec![20]));
    }
}

#[test]
fn a_refused_call_drops_the_whole_group() {
    let mock = mock(2);
    let ends = ends(&mock, 2);
    let (good, short) = (ends[0].buf(&[1, 2]), ends[0].buf(&[0]));
    let error = mock
        .group(|_| {
            ends[0].all_reduce(good, good)?;
            let _ = ends[0].all_reduce(good, short);
            Ok(())
        })
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().contains("recv holds 1 elements, want 2"), "{error}");
    assert!(mock.pending().is_empty());
    ends[0].wait().unwrap();
    assert_eq!(ends[0].comm.group_end().unwrap_err().kind(), ErrorKind::InvalidUsage);
    // Unmatched sends to oneself are refused, bare or in a group.
    assert_eq!(ends[0].send(good, 0).unwrap_err().kind(), ErrorKind::InvalidUsage);
    let error = mock.group(|_| ends[0].send(good, 0)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidUsage, "{error}");
    // And the communicator works as before.
    let peer = ends[1].buf(&[10, 20]);
    ends[0].all_reduce(good, good).unwrap();
    ends[1].all_reduce(peer, peer).unwrap();
    ends[0].wait().unwrap();
    assert_eq!(ends[0].read(good), [11, 22]);
}

#[test]
fn nothing_is_buffered_and_zero_counts_differ_by_operation() {
    let mock = mock(2);
    let ends = ends(&mock, 2);
    let empty = Buf { ptr: std::ptr::null_mut(), count: 0 };
    ends[0].all_reduce(empty, empty).unwrap();
    ends[0].wait().unwrap();
    ends[0].send(empty, 1).unwrap();
    ends[0].is_stuck();
    ends[1].recv(empty, 0).unwrap();
    ends[0].wait().unwrap();
}

#[test]
fn mismatches_are_told_to_all_ranks_with_both_call_sites() {
    let mock = mock(2);
    let ends = ends(&mock, 2);
    let (a, b) = (ends[0].buf(&[1, 2]), ends[1].buf(&[1]));
    ends[0].all_reduce(a, a).unwrap();
    ends[1].all_reduce(b, b).unwrap();
    for end in &ends {
        let error = end.wait().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidUsage);
        let text = error.to_string();
        assert!(text.contains("rank 0 calls all_reduce of 2 × i32, sum"), "{text}");
        assert!(text.contains("rank 1 calls all_reduce of 1 × i32, sum"), "{text}");
        assert_eq!(text.matches("engine.rs:").count(), 2, "{text}");
        let error = end.comm.poll_error().unwrap_err();
        assert!(error.poisons_communicator());
        assert!(end.comm.abort_handle().failure().is_some());
    }
    assert_eq!((ends[0].read(a), ends[1].read(b)), (vec![1, 2], vec![1]));
    // The stream is good for other work.
    ends[0].wait().unwrap();
}

#[test]
fn split_divides_by_color_and_orders_by_key() {
    let mock = mock(4);
    let (sender, receiver) = mpsc::channel();
    thread::scope(|scope| {
        for end in ends(&mock, 4) {
            let sender = sender.clone();
            scope.spawn(move || {
                let rank = end.comm.info().rank.get();
                let config = match rank {
                    3 => SplitConfig::no_color(),
                    _ => SplitConfig::new(rank % 2).with_key(-(rank as i32)).with_name("part"),
                };
                let part = end.comm.split(config).unwrap();
                let seen = part.as_ref().map(|part| (part.info().rank.get(), part.info().size));
                sender.send((rank, seen)).unwrap();
            });
        }
    });
    let mut seen: Vec<_> = receiver.try_iter().collect();
    seen.sort();
    assert_eq!(seen, [(0, Some((1, 2))), (1, Some((0, 1))), (2, Some((0, 2))), (3, None)]);
}

#[test]
fn an_abort_wakes_waiters_and_tells_the_other_ranks() {
    let mock = mock(2);
    let mut ends = ends(&mock, 2);
    let buf = ends[0].buf(&[1]);
    ends[0].all_reduce(buf, buf).unwrap();
    let handle = ends[0].comm.abort_handle();
    let first = ends.remove(0);
    thread::scope(|scope| {
        let waiter = scope.spawn(move || {
            let outcome = first.wait();
            (first, outcome)
        });
        thread::sleep(Duration::from_millis(20));
        handle.abort().unwrap();
        handle.abort().unwrap();
        let (first, outcome) = waiter.join().unwrap();
        // A stream knows nothing of communicators that its own side aborted.
        outcome.unwrap();
        assert!(handle.is_aborted());
        assert_eq!(first.all_reduce(buf, buf).unwrap_err().kind(), ErrorKind::Aborted);
    });
    let buf = ends[0].buf(&[1]);
    let error = ends[0].all_reduce(buf, buf).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Remote);
    assert!(error.to_string().contains("rank 0 aborted"), "{error}");
    assert!(!ends[0].comm.abort_handle().is_aborted());
}

#[test]
fn a_rank_that_leaves_early_fails_those_who_wait_for_it() {
    let mock = mock(2);
    let mut ends = ends(&mock, 2);
    let buf = ends[0].buf(&[1]);
    ends[0].all_reduce(buf, buf).unwrap();
    let last = ends.pop().unwrap();
    drop(last.comm);
    let error = ends[0].wait().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Remote);
    assert!(error.to_string().contains("rank 1 left"), "{error}");
    // Also for what is issued later.
    assert!(ends[0].all_reduce(buf, buf).is_err());
}

#[test]
fn a_drop_is_bounded_and_leaves_what_it_issued_valid() {
    let mock = mock(2);
    let mut ends = ends(&mock, 2);
    let (a, b) = (ends[0].buf(&[1]), ends[1].buf(&[2]));
    let first = ends.remove(0);
    first.all_reduce(a, a).unwrap();
    let start = Instant::now();
    drop(first.comm);
    assert!(start.elapsed() < Duration::from_secs(15));
    ends[0].all_reduce(b, b).unwrap();
    ends[0].wait().unwrap();
    assert_eq!(ends[0].read(b), [3]);
}

#[test]
fn finalize_flushes() {
    let mock = mock(2);
    let barrier = Barrier::new(2);
    thread::scope(|scope| {
        for end in ends(&mock, 2) {
            let barrier = &barrier;
            scope.spawn(move || {
                let buf = end.buf(&[1; 100]);
                for _ in 0..100 {
                    end.all_reduce(buf, buf).unwrap();
                    end.write_nothing();
                }
                let handle = end.comm.abort_handle();
                let End { comm, device, stream } = end;
                Box::new(comm).finalize().unwrap();
                barrier.wait();
                assert!(handle.failure().is_none());
                handle.abort().unwrap();
                assert!(!handle.is_aborted());
                // SAFETY: the stream is alive.
                unsafe { device.synchronize(stream, Some(Duration::ZERO)) }.unwrap();
            });
        }
    });
}

impl End {
    /// A call between operations that changes nothing.
    fn write_nothing(&self) {
        // SAFETY: zero bytes.
        unsafe { self.device.memset(std::ptr::null_mut(), 0, 0, self.stream) }.unwrap();
    }
}

#[test]
fn join_meets_by_id_and_refuses_what_cannot_be() {
    let mock = mock(4);
    let id = mock.unique_id().unwrap();
    thread::scope(|scope| {
        for rank in 0..3 {
            let (mock, id) = (&mock, &id);
            scope.spawn(move || {
                let comm = mock.join(id, JoinConfig::new(Rank::new(rank), 3)).unwrap();
                assert_eq!(comm.info().rank.get(), rank);
            });
        }
    });
    let zero = |size| JoinConfig::new(Rank::new(0), size);
    let kind = |outcome: Result<MockComm>| outcome.unwrap_err().kind();
    assert_eq!(kind(mock.join(&id, zero(1))), ErrorKind::InvalidUsage);
    let foreign = self::mock(1).unique_id().unwrap();
    assert_eq!(kind(mock.join(&foreign, zero(1))), ErrorKind::InvalidArgument);
    let garbage = UniqueId::from([7; 128]);
    assert_eq!(kind(mock.join(&garbage, zero(1))), ErrorKind::InvalidArgument);
    let short = UniqueId::from_bytes(vec![1]);
    assert_eq!(kind(mock.join(&short, zero(1))), ErrorKind::InvalidArgument);
    let fresh = || mock.unique_id().unwrap();
    assert_eq!(
        kind(mock.join(&fresh(), JoinConfig::new(Rank::new(1), 1))),
        ErrorKind::InvalidArgument
    );
    assert_eq!(kind(mock.join(&fresh(), zero(1).with_device(4))), ErrorKind::InvalidArgument);
    let error = mock.group(|_| mock.join(&fresh(), zero(1))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidUsage);
    assert_eq!(
        mock.join_all(JoinAllConfig::new([])).unwrap_err().kind(),
        ErrorKind::InvalidArgument
    );
    let twice = mock.join_all(JoinAllConfig::new([1, 1])).unwrap_err();
    assert!(twice.to_string().contains("ranks 0 and 1 are both on device 1"), "{twice}");
}

#[test]
fn a_late_join_names_the_missing_and_leaves_nothing_behind() {
    let mock = mock(3);
    let id = mock.unique_id().unwrap();
    let early = JoinConfig::new(Rank::new(1), 3).with_deadline(Duration::from_millis(20));
    let error = mock.join(&id, early).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(
        error.to_string().contains("1 of 3 ranks joined in 20ms: came 1; missing 0, 2"),
        "{error}"
    );
    thread::scope(|scope| {
        for rank in 0..3 {
            let (mock, id) = (&mock, &id);
            scope.spawn(move || mock.join(id, JoinConfig::new(Rank::new(rank), 3)).unwrap());
        }
    });
}

#[test]
fn two_ranks_on_one_device_and_two_sizes_fail_all_ranks() {
    let mock = mock(2);
    for second in [
        JoinConfig::new(Rank::new(1), 2).with_device(0),
        JoinConfig::new(Rank::new(1), 3).with_device(1),
    ] {
        let id = mock.unique_id().unwrap();
        thread::scope(|scope| {
            let first = scope.spawn(|| mock.join(&id, JoinConfig::new(Rank::new(0), 2)));
            // Both orders of arrival end the same way.
            assert!(mock.join(&id, second).is_err());
            assert!(first.join().unwrap().is_err());
        });
    }
}

#[test]
fn a_graph_replays_with_fresh_input_and_mixes_with_eager_work() {
    let mock = mock(2);
    let ends = ends(&mock, 2);
    let bufs: Vec<_> = ends.iter().map(|end| (end.buf(&[1, 2]), end.buf(&[0, 0]))).collect();
    let mut graphs = Vec::new();
    for (end, &(send, recv)) in ends.iter().zip(&bufs) {
        end.begin();
        // SAFETY: the stream is alive, here and below.
        assert!(unsafe { end.device.is_capturing(end.stream) }.unwrap());
        end.all_reduce(send, recv).unwrap();
        // A fork to a second stream, and the join back.
        let (event, side) =
            (end.device.event_create().unwrap(), end.device.stream_create().unwrap());
        // SAFETY: as above.
        unsafe { end.device.record(event, end.stream) }.unwrap();
        // SAFETY: as above.
        unsafe { end.device.wait(side, event) }.unwrap();
        end.all_reduce_on(recv, recv, side).unwrap();
        // SAFETY: as above.
        unsafe { end.device.record(event, side) }.unwrap();
        // SAFETY: as above.
        unsafe { end.device.wait(end.stream, event) }.unwrap();
        // A group in the capture, too.
        end.comm.group_start().unwrap();
        end.all_reduce(recv, recv).unwrap();
        end.comm.group_end().unwrap();
        let error = end.wait().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidUsage);
        // SAFETY: as above.
        graphs.push(unsafe { end.device.end_capture(end.stream) }.unwrap());
        assert_eq!(end.read(recv), [0, 0], "captured work must not run");
    }
    for round in 1..4 {
        for (end, &(send, _)) in ends.iter().zip(&bufs) {
            end.write(send, &[round, 10 * round]);
        }
        for _ in 0..2 {
            for (i, end) in ends.iter().enumerate() {
                // SAFETY: all that was captured is alive.
                unsafe { end.device.launch(graphs[i], end.stream) }.unwrap();
            }
        }
        for (end, &(_, recv)) in ends.iter().zip(&bufs) {
            end.all_reduce(recv, recv).unwrap();
        }
        for (end, &(_, recv)) in ends.iter().zip(&bufs) {
            end.wait().unwrap();
            assert_eq!(end.read(recv), [16 * round, 160 * round]);
        }
    }
    for (i, end) in ends.iter().enumerate() {
        // SAFETY: not used any more.
        unsafe { end.device.graph_destroy(graphs[i]) }.unwrap();
        // SAFETY: refused, as it is gone.
        assert!(unsafe { end.device.launch(graphs[i], end.stream) }.is_err());
    }
}

#[test]
fn captures_are_isolated_and_must_be_joined() {
    let mock = mock(2);
    let ends = ends(&mock, 2);
    let end = &ends[0];
    let device = &end.device;
    let (event, side) = (device.event_create().unwrap(), device.stream_create().unwrap());
    let buf = end.buf(&[1]);
    // SAFETY: handles and buffers are alive, here and below.
    let usage =
        |outcome: Result<()>| assert_eq!(outcome.unwrap_err().kind(), ErrorKind::InvalidUsage);
    // SAFETY: as above.
    usage(unsafe { device.begin_capture(RawStream::DEFAULT) });
    // SAFETY: as above.
    unsafe { device.record(event, side) }.unwrap();
    end.begin();
    // SAFETY: as above.
    usage(unsafe { device.begin_capture(end.stream) });
    // SAFETY: as above.
    usage(unsafe { device.wait(end.stream, event) });
    // SAFETY: as above.
    usage(unsafe { device.free(buf.ptr, end.stream) });
    // A group with one captured and one uncaptured stream.
    usage(mock.group(|_| {
        end.all_reduce(buf, buf)?;
        end.all_reduce_on(buf, buf, side)
    }));
    // A fork that is never joined.
    // SAFETY: as above.
    unsafe { device.record(event, end.stream) }.unwrap();
    // SAFETY: as above.
    unsafe { device.wait(side, event) }.unwrap();
    end.all_reduce_on(buf, buf, side).unwrap();
    // SAFETY: as above.
    let error = unsafe { device.end_capture(end.stream) }.unwrap_err();
    assert!(error.to_string().contains("never joined"), "{error}");
    // SAFETY: as above.
    assert!(!unsafe { device.is_capturing(side) }.unwrap());
    // SAFETY: as above.
    usage(unsafe { device.end_capture(end.stream) }.map(|_| ()));
    end.wait().unwrap();
}

#[test]
fn streams_and_memory_of_other_devices_are_refused() {
    let mock = mock(2);
    let ends = ends(&mock, 2);
    let (own, foreign) = (ends[0].buf(&[1, 2]), ends[1].buf(&[1, 2]));
    let refused = |outcome: Result<()>, text: &str| {
        let error = outcome.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert!(error.to_string().contains(text), "{error}");
    };
    refused(ends[0].all_reduce_on(own, own, ends[1].stream), "device 1");
    refused(ends[0].all_reduce(foreign, foreign), "memory of device 1, want memory of device 0");
    let long = Buf { count: 3, ..own };
    refused(ends[0].all_reduce(long, long), "12 bytes");
    refused(
        ends[0].all_reduce_on(own, own, RawStream::from_bits(0x1234)),
        "no stream of this mock",
    );
    let gone = ends[0].device.stream_create().unwrap();
    // SAFETY: the stream is alive, and not used again except to be refused.
    unsafe { ends[0].device.stream_destroy(gone) }.unwrap();
    refused(ends[0].all_reduce_on(own, own, gone), "destroyed");
    // SAFETY: refused, as it is another device's.
    refused(unsafe { ends[0].device.free(foreign.ptr, RawStream::DEFAULT) }, "not the start");
    // SAFETY: refused, as it runs past the end.
    refused(unsafe { ends[0].device.memset(own.ptr, 0, 9, RawStream::DEFAULT) }, "only 8");
    // Memory of the host is taken as it is; between devices there is `copy_between`.
    let mut host = [3, 4];
    let host = Buf { ptr: host.as_mut_ptr().cast(), count: 2 };
    ends[0].all_reduce(host, host).unwrap();
    ends[1].all_reduce(foreign, foreign).unwrap();
    // SAFETY: both live to the end.
    unsafe { ends[0].device.copy_between(own.ptr, foreign.ptr, 8, ends[1].stream) }.unwrap_err();
    // SAFETY: as above.
    unsafe { ends[1].device.copy_between(own.ptr, foreign.ptr, 8, ends[1].stream) }.unwrap();
    ends[1].wait().unwrap();
    ends[0].wait().unwrap();
    assert_eq!(ends[0].read(own), [4, 6]);
}

#[test]
fn a_free_waits_for_its_stream() {
    let mock = Mock::new(MockConfig::new().with_devices(2).with_device_memory(1 << 20));
    let ends = ends(&mock, 2);
    let buf = ends[0].buf(&vec![1; 200_000]);
    ends[0].all_reduce(buf, buf).unwrap();
    // SAFETY: only used by work on that stream.
    unsafe { ends[0].device.free(buf.ptr, ends[0].stream) }.unwrap();
    let error = ends[0].device.alloc(800_000).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfMemory);
    assert!(error.to_string().contains("800000"), "{error}");
    let peer = ends[1].buf(&vec![2; 200_000]);
    ends[1].all_reduce(peer, peer).unwrap();
    ends[1].wait().unwrap();
    ends[0].wait().unwrap();
    assert_eq!(ends[1].read(peer), vec![3; 200_000]);
    ends[0].device.alloc(800_000).unwrap();
    assert_eq!(ends[0].device.alloc(usize::MAX).unwrap_err().kind(), ErrorKind::OutOfMemory);
}

#[test]
fn operators_and_registrations_have_a_life_of_their_own() {
    let mock = mock(2);
    let ends = ends(&mock, 2);
    let scalar = ends[1].buf(&[100]);
    // SAFETY: a host scalar, and a device scalar that lives to the end.
    let host = unsafe { ends[0].comm.create_pre_mul_sum(Scalar::host(10_i32)) }.unwrap();
    let at = Scalar::Device { dtype: i32::DTYPE, ptr: scalar.ptr };
    // SAFETY: as above.
    let device = unsafe { ends[1].comm.create_pre_mul_sum(at) }.unwrap();
    let bufs = [ends[0].buf(&[1]), ends[1].buf(&[2])];
    let reduce = |i: usize, op| {
        let (comm, buf) = (&ends[i].comm, bufs[i]);
        // SAFETY: buffers and scalars live to the end.
        unsafe {
            comm.all_reduce(buf.send(), buf.recv(), ReduceOp::PreMulSum(op), ends[i].launch())
        }
    };
    reduce(1, device).unwrap();
    // Read when the operation runs, not when it was called.
    ends[1].write(scalar, &[1000]);
    reduce(0, host).unwrap();
    ends[0].comm.destroy_pre_mul_sum(host).unwrap();
    for end in &ends {
        end.wait().unwrap();
    }
    assert_eq!((ends[0].read(bufs[0]), ends[1].read(bufs[1])), (vec![2010], vec![2010]));
    assert_eq!(reduce(0, host).unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert_eq!(reduce(0, device).unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert!(ends[0].comm.destroy_pre_mul_sum(host).is_err());

    let comm = &ends[0].comm;
    let memory = comm.mem_alloc(100).unwrap();
    // SAFETY: the memory is alive until it is freed below.
    let registration = unsafe { comm.register(memory, 100) }.unwrap();
    // SAFETY: refused while it is registered.
    assert_eq!(unsafe { comm.mem_free(memory) }.unwrap_err().kind(), ErrorKind::InvalidUsage);
    // SAFETY: refused, as it is another communicator's.
    assert!(unsafe { ends[1].comm.deregister(registration) }.is_err());
    // SAFETY: registered above.
    unsafe { comm.deregister(registration) }.unwrap();
    // SAFETY: refused the second time.
    assert!(unsafe { comm.deregister(registration) }.is_err());
    // SAFETY: allocated above and not used.
    unsafe { comm.mem_free(memory) }.unwrap();
    // SAFETY: refused the second time.
    assert!(unsafe { comm.mem_free(memory) }.is_err());
}

#[test]
fn every_collective_places_its_parts() {
    let mock = mock(3);
    let ends = ends(&mock, 3);
    let root = Rank::new(1);
    let parts = |i: usize| [10 * i as i32, 10 * i as i32 + 1, 10 * i as i32 + 2];
    let run = |issue: &dyn Fn(&End, usize, Buf, Buf) -> Result<()>, send: usize, recv: usize| {
        let bufs: Vec<_> = ends
            .iter()
            .enumerate()
            .map(|(i, end)| (end.buf(&parts(i)[..send]), end.buf(&vec![-1; recv])))
            .collect();
        for (i, end) in ends.iter().enumerate() {
            issue(end, i, bufs[i].0, bufs[i].1).unwrap();
        }
        let read = |(i, end): (usize, &End)| {
            end.wait().unwrap();
            end.read(bufs[i].1)
        };
        ends.iter().enumerate().map(read).collect::<Vec<_>>()
    };
    // SAFETY: buffers live to the end, here and below.
    let all_gather =
        |e: &End, _, s: Buf, r: Buf| unsafe { e.comm.all_gather(s.send(), r.recv(), e.launch()) };
    assert_eq!(run(&all_gather, 1, 3), [[0, 10, 20]; 3]);
    let reduce_scatter =
        // SAFETY: as above.
        |e: &End, _, s: Buf, r: Buf| unsafe { e.comm.reduce_scatter(s.send(), r.recv(), ReduceOp::Sum, e.launch()) };
    assert_eq!(run(&reduce_scatter, 3, 1), [[30], [33], [36]]);
    // SAFETY: as above.
    let all_to_all =
        |e: &End, _, s: Buf, r: Buf| unsafe { e.comm.all_to_all(s.send(), r.recv(), e.launch()) };
    assert_eq!(run(&all_to_all, 3, 3), [[0, 10, 20], [1, 11, 21], [2, 12, 22]]);
    let broadcast =
        // SAFETY: as above.
        |e: &End, _, s: Buf, r: Buf| unsafe { e.comm.broadcast(Some(s.send()), r.recv(), root, e.launch()) };
    assert_eq!(run(&broadcast, 3, 3), [[10, 11, 12]; 3]);
    let reduce =
        // SAFETY: as above.
        |e: &End, _, s: Buf, r: Buf| unsafe { e.comm.reduce(s.send(), Some(r.recv()), ReduceOp::Max, root, e.launch()) };
    assert_eq!(run(&reduce, 2, 2), [[-1, -1], [20, 21], [-1, -1]]);
    let gather =
        // SAFETY: as above.
        |e: &End, _, s: Buf, r: Buf| unsafe { e.comm.gather(s.send(), Some(r.recv()), root, e.launch()) };
    assert_eq!(run(&gather, 1, 3), [[-1, -1, -1], [0, 10, 20], [-1, -1, -1]]);
    let scatter =
        // SAFETY: as above.
        |e: &End, _, s: Buf, r: Buf| unsafe { e.comm.scatter(Some(s.send()), r.recv(), root, e.launch()) };
    assert_eq!(run(&scatter, 3, 1), [[10], [11], [12]]);
}

#[test]
fn composites_of_core_work() {
    let mock = mock(2);
    thread::scope(|scope| {
        for end in ends(&mock, 2) {
            scope.spawn(move || {
                let scratch = end.buf(&[0; 4]);
                // SAFETY: buffers live as long as the mock.
                unsafe { end.comm.warm_up(scratch.recv(), end.launch()) }.unwrap();
                let one = end.buf(&[0]);
                // SAFETY: as above.
                unsafe { end.comm.barrier(one.recv(), end.launch()) }.unwrap();
                end.wait().unwrap();
            });
        }
    });
}

#[test]
#[cfg_attr(miri, ignore = "a deep backlog takes minutes")]
fn a_deep_backlog_is_worked_off_in_order() {
    let mock = mock(3);
    let ends = ends(&mock, 3);
    let bufs: Vec<_> = ends.iter().map(|end| end.buf(&[0])).collect();
    let (one, rounds) = (ends[2].buf(&[1]), 20_000);
    for (end, &buf) in ends.iter().zip(&bufs).take(2) {
        for _ in 0..rounds {
            end.all_reduce(buf, buf).unwrap();
        }
    }
    for _ in 0..rounds {
        ends[2].all_reduce(one, bufs[2]).unwrap();
    }
    for end in &ends {
        end.wait().unwrap();
    }
    assert!(mock.pending().is_empty());
}
