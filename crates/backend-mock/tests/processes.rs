//! Ranks as processes: what only shows between processes.
//!
//! Each test starts its own binary again, once for each process, and has it run the same test as a
//! rank. What fails there fails the process, and so the test.
#![cfg(target_os = "linux")]

use std::{
    env,
    ffi::c_void,
    fmt::Debug,
    process::{Child, Command, ExitStatus, Stdio},
    str::FromStr,
    thread,
    time::{Duration, Instant},
};

use collectives_backend_mock::{
    Action, ExitNotice, FaultPlan, Guards, JoinState, Mock, MockComm, MockConfig, MockDevice,
    Ranks, Rule, Schedule, VerdictKind,
};
use collectives_core::{
    Backend, BackendExt, Collectives, DType, Device, ErrorKind, GrowConfig, JoinConfig, Launch,
    Rank, RawStream, RecvBuf, ReduceOp, Result, SendBuf, ShrinkConfig, Split, SplitConfig,
    UniqueId,
};

/// One process of a test.
struct Process {
    /// Its number, and how many there are.
    number: usize,
    count: usize,
    mock: Mock,
    id: UniqueId,
}

impl Process {
    /// Joins as the only rank of this process.
    fn join(&self) -> MockComm {
        self.join_as(self.number, self.count)
    }

    fn join_as(&self, rank: usize, size: usize) -> MockComm {
        let config = JoinConfig::new(rank as u32, size).with_name("world");
        self.mock.join(&self.id, config.with_deadline(PATIENCE)).unwrap()
    }

    fn device(&self, comm: &MockComm) -> MockDevice {
        self.mock.device(comm.info().device).unwrap()
    }
}

/// Runs `body` in so many processes, and fails unless all of them end well.
fn processes(test: &str, count: usize, body: impl FnOnce(&Process)) {
    processes_with(test, count, MockConfig::new(), body, |_, status| status.success());
}

/// As [`processes`], where `expected` says how each may end.
fn processes_with(
    test: &str,
    count: usize,
    config: MockConfig,
    body: impl FnOnce(&Process),
    expected: impl Fn(usize, ExitStatus) -> bool,
) {
    let mock = Mock::new(config.with_ranks(Ranks::Processes));
    if let Some(number) = var::<usize>("NUMBER") {
        if var("COUNT") != Some(count) {
            return;
        }
        let id = env::var(format!("{PREFIX}ID")).unwrap();
        let id = UniqueId::from_str(&id).unwrap();
        body(&Process { number, count, mock, id });
        return;
    }
    let id = mock.unique_id().unwrap();
    // Who made the id need not be there any more.
    drop(mock);
    let start = |number: usize| {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", test, "--nocapture", "--test-threads=1"]);
        command.env(format!("{PREFIX}NUMBER"), number.to_string());
        command.env(format!("{PREFIX}COUNT"), count.to_string());
        command.env(format!("{PREFIX}ID"), id.to_base64());
        command.stdin(Stdio::null());
        let notice = ExitNotice::attach(&mut command).unwrap();
        (command.spawn().unwrap(), notice)
    };
    let mut children: Vec<_> = (0..count).map(|number| Some(start(number))).collect();
    let until = Instant::now() + PATIENCE;
    let mut wrong = Vec::new();
    while children.iter().any(Option::is_some) {
        for (number, place) in children.iter_mut().enumerate() {
            let Some((child, _)) = place else { continue };
            let Some(status) = ended(child, until) else { continue };
            if let Some((_, notice)) = place.take() {
                notice.publish(status);
            }
            if !expected(number, status) {
                wrong.push(format!("process {number}: {status}"));
            }
        }
        thread::sleep(Duration::from_millis(1));
    }
    assert!(wrong.is_empty(), "{}", wrong.join(", "));
}

/// Whether a child has ended. Past the time it is killed.
fn ended(child: &mut Child, until: Instant) -> Option<ExitStatus> {
    if Instant::now() > until {
        child.kill().unwrap();
    }
    child.try_wait().unwrap()
}

fn var<T: FromStr<Err: Debug>>(name: &str) -> Option<T> {
    env::var(format!("{PREFIX}{name}")).ok().map(|text| text.parse().unwrap())
}

const PREFIX: &str = "COLLECTIVES_TEST_";
const PATIENCE: Duration = Duration::from_secs(60);

/// Memory of a device.
struct Buffer<'a, T> {
    device: &'a MockDevice,
    ptr: *mut T,
    count: usize,
}

impl<'a, T: Copy> Buffer<'a, T> {
    fn new(device: &'a MockDevice, values: &[T]) -> Self {
        let ptr = device.alloc(size_of_val(values)).unwrap().cast::<T>();
        // SAFETY: the memory was just made, and holds as much.
        unsafe { ptr.copy_from_nonoverlapping(values.as_ptr(), values.len()) };
        Self { device, ptr, count: values.len() }
    }

    fn send(&self) -> SendBuf
    where
        T: collectives_core::Element,
    {
        SendBuf::typed(self.ptr, self.count)
    }

    fn recv(&self) -> RecvBuf
    where
        T: collectives_core::Element,
    {
        RecvBuf::typed(self.ptr, self.count)
    }

    /// What is in it now.
    fn values(&self) -> Vec<T> {
        // SAFETY: the memory lives; volatile, since others may write it.
        (0..self.count).map(|at| unsafe { self.ptr.wrapping_add(at).read_volatile() }).collect()
    }
}

impl<T> Drop for Buffer<'_, T> {
    fn drop(&mut self) {
        // SAFETY: made by `alloc`, and nothing uses it after the default stream's work.
        unsafe { self.device.free(self.ptr.cast::<c_void>(), RawStream::DEFAULT) }.unwrap();
    }
}

fn all_reduce<T: collectives_core::Element>(
    comm: &MockComm,
    send: &Buffer<'_, T>,
    recv: &Buffer<'_, T>,
) -> Result<()> {
    let launch = Launch::new(RawStream::DEFAULT);
    // SAFETY: the buffers outlive the operation: all tests wait for the stream.
    unsafe { comm.all_reduce(send.send(), recv.recv(), ReduceOp::Sum, launch) }
}

fn wait(device: &MockDevice) -> Result<()> {
    // SAFETY: the default stream always lives.
    unsafe { device.synchronize(RawStream::DEFAULT, Some(PATIENCE)) }
}

#[test]
fn every_type_is_summed() {
    for count in [1, 2, 4] {
        processes("every_type_is_summed", count, sum_every_type);
    }
}

fn sum_every_type(process: &Process) {
    let comm = process.join();
    let device = process.device(&comm);
    for dtype in DType::ALL {
        let count = 1000;
        let bytes = count * dtype.size();
        let (send, recv) =
            (Buffer::new(&device, &vec![0_u8; bytes]), Buffer::new(&device, &vec![1_u8; bytes]));
        // Zeros are zeros in every type.
        let sends = SendBuf::new(send.ptr.cast::<c_void>(), count, dtype);
        let recvs = RecvBuf::new(recv.ptr.cast::<c_void>(), count, dtype);
        let launch = Launch::new(RawStream::DEFAULT);
        // SAFETY: the buffers live until the stream has passed.
        unsafe { comm.all_reduce(sends, recvs, ReduceOp::Sum, launch) }.unwrap();
        wait(&device).unwrap();
        assert!(recv.values().iter().all(|&byte| byte == 0), "{dtype}");
    }
    let (send, recv) = (
        Buffer::new(&device, &[process.number as f32 + 1.0; 300]),
        Buffer::new(&device, &[0.0; 300]),
    );
    all_reduce(&comm, &send, &recv).unwrap();
    wait(&device).unwrap();
    let sum = (process.count * (process.count + 1) / 2) as f32;
    assert_eq!(recv.values(), [sum; 300]);
}

#[test]
fn a_long_series_is_done_in_order() {
    processes("a_long_series_is_done_in_order", 2, |process| {
        let comm = process.join();
        let device = process.device(&comm);
        let value = Buffer::new(&device, &[1_u64]);
        for _ in 0..10_000 {
            // In place: wrapping doubles, then stays 0; each depends on the one before.
            all_reduce(&comm, &value, &value).unwrap();
        }
        wait(&device).unwrap();
        assert_eq!(value.values(), [0]);
        let value = Buffer::new(&device, &[1_u64]);
        for done in 1..=2000_u32 {
            all_reduce(&comm, &value, &value).unwrap();
            if done % 37 == 0 {
                wait(&device).unwrap();
                assert_eq!(value.values(), [1_u64.checked_shl(done).unwrap_or(0)]);
            }
        }
        wait(&device).unwrap();
    });
}

/// Two sums of one value, to see that a communicator works.
fn works(process: &Process, comm: &MockComm) {
    let device = process.device(comm);
    let (send, recv) = (Buffer::new(&device, &[1_i32]), Buffer::new(&device, &[0_i32]));
    for _ in 0..2 {
        all_reduce(comm, &send, &recv).unwrap();
        wait(&device).unwrap();
        assert_eq!(recv.values(), [comm.info().size as i32]);
    }
}

#[test]
fn messages_go_round() {
    processes("messages_go_round", 4, |process| {
        let comm = process.join();
        let device = process.device(&comm);
        let own = process.number as u32;
        let (next, last) = ((own + 1) % 4, (own + 3) % 4);
        // More than a ring of the board holds at once, and some too large to be moved at once.
        for round in 0..100_u32 {
            let count = if round % 10 == 0 { 20_000 } else { 3 };
            let send = Buffer::new(&device, &vec![own + round; count]);
            let recv = Buffer::new(&device, &vec![0_u32; count]);
            let launch = || Launch::new(RawStream::DEFAULT);
            process
                .mock
                .group(|_| {
                    // SAFETY: the buffers live until the stream has passed, here and below.
                    unsafe { comm.send(send.send(), Rank::new(next), launch()) }?;
                    // SAFETY: as above.
                    unsafe { comm.recv(recv.recv(), Rank::new(last), launch()) }
                })
                .unwrap();
            wait(&device).unwrap();
            assert_eq!(recv.values(), vec![last + round; count]);
        }
        // Many that are sent ahead, one way.
        let values: Vec<_> = (0..100).map(|at| Buffer::new(&device, &[at + 1_u32])).collect();
        for value in &values {
            let launch = Launch::new(RawStream::DEFAULT);
            match own % 2 {
                // SAFETY: the buffers live until the stream has passed, here and below.
                0 => unsafe { comm.send(value.send(), Rank::new(own + 1), launch) },
                // SAFETY: as above.
                _ => unsafe { comm.recv(value.recv(), Rank::new(own - 1), launch) },
            }
            .unwrap();
        }
        wait(&device).unwrap();
        let got: Vec<u32> = values.iter().flat_map(|value| value.values()).collect();
        assert_eq!(got, (1..=100).collect::<Vec<_>>());
    });
}

#[test]
fn groups_of_two_communicators_meet() {
    processes("groups_of_two_communicators_meet", 2, |process| {
        let comm = process.join();
        let other = comm.split(SplitConfig::new(0).with_key(-(process.number as i32))).unwrap();
        let other = other.unwrap();
        assert_eq!(other.info().rank.index(), 1 - process.number);
        let device = process.device(&comm);
        let (one, two) = (Buffer::new(&device, &[1_i32]), Buffer::new(&device, &[2_i32]));
        // In another order on each rank: legal in a group.
        let mut both = [(&comm, &one), (&other, &two)];
        both.rotate_left(process.number);
        for _ in 0..50 {
            process.mock.group(|_| both.iter().try_for_each(|(c, b)| all_reduce(c, b, b))).unwrap();
            wait(&device).unwrap();
        }
        assert_eq!(one.values(), [0]);
        assert_eq!(two.values(), [0]);
    });
}

#[test]
fn a_split_makes_a_communicator_for_each_color() {
    processes("a_split_makes_a_communicator_for_each_color", 4, |process| {
        let comm = process.join();
        for round in 0..3 {
            let config = match process.number {
                3 => SplitConfig::no_color(),
                number => SplitConfig::new(number as u32 % 2).with_name(format!("part {round}")),
            };
            let part = comm.split(config).unwrap();
            assert_eq!(part.is_none(), process.number == 3);
            if let Some(part) = part {
                let size = if process.number == 1 { 1 } else { 2 };
                assert_eq!(
                    (part.info().size, part.info().rank.index()),
                    (size, process.number / 2)
                );
                works(process, &part);
            }
        }
        works(process, &comm);
    });
}

#[test]
fn survivors_of_a_killed_rank_are_told_and_shrink() {
    let test = "survivors_of_a_killed_rank_are_told_and_shrink";
    let killed = |number: usize, status: ExitStatus| match number {
        2 => std::os::unix::process::ExitStatusExt::signal(&status) == Some(9),
        _ => status.success(),
    };
    let body = |process: &Process| {
        let comm = process.join();
        let device = process.device(&comm);
        let others = comm.split(if process.number == 2 {
            SplitConfig::no_color()
        } else {
            SplitConfig::new(0)
        });
        let others = others.unwrap();
        works(process, &comm);
        if process.number == 2 {
            // SAFETY: sends this process a signal.
            unsafe { libc::raise(libc::SIGKILL) };
        }
        let value = Buffer::new(&device, &[1_i32]);
        let started = Instant::now();
        let error = all_reduce(&comm, &value, &value).and_then(|()| wait(&device)).unwrap_err();
        assert!(started.elapsed() < PATIENCE / 2, "waited for the deadline");
        assert_eq!(error.kind(), ErrorKind::Remote, "{error}");
        for part in ["rank 2 (pid ", "ended by signal 9"] {
            assert!(error.to_string().contains(part), "'{part}' is not in: {error}");
        }
        assert_eq!(comm.poll_error().unwrap_err().kind(), ErrorKind::Remote);
        // All have seen it before one revokes.
        works(process, others.as_ref().unwrap());
        let left = comm.shrink(ShrinkConfig::new([Rank::new(2)]).with_abort()).unwrap();
        assert_eq!(left.info().size, 3);
        works(process, &left);
        drop(comm);
        works(process, &left);
    };
    processes_with(test, 4, MockConfig::new(), body, killed);
}

#[test]
fn a_shrink_that_leaves_a_lost_rank_in_fails_and_can_be_done_again() {
    let test = "a_shrink_that_leaves_a_lost_rank_in_fails_and_can_be_done_again";
    let body = |process: &Process| {
        let comm = process.join();
        let pair = comm.split(match process.number {
            0 | 1 => SplitConfig::new(0),
            _ => SplitConfig::no_color(),
        });
        let pair = pair.unwrap();
        if process.number == 3 {
            return;
        }
        let error = comm.shrink(ShrinkConfig::new([Rank::new(2)]).with_abort());
        if process.number == 2 {
            // It is not to be part of it.
            assert!(error.is_err());
            return;
        }
        let error = error.unwrap_err().to_string();
        assert!(error.contains("rank 3 left the communicator, and should have been"), "{error}");
        // Who goes on before the other has failed disagrees with it.
        works(process, pair.as_ref().unwrap());
        let both = [Rank::new(2), Rank::new(3)];
        works(process, &comm.shrink(ShrinkConfig::new(both).with_abort()).unwrap());
    };
    processes_with(test, 4, MockConfig::new(), body, |_, status| status.success());
}

#[test]
fn lists_that_differ_are_shown_to_all() {
    processes("lists_that_differ_are_shown_to_all", 4, |process| {
        let comm = process.join();
        let all = comm.split(SplitConfig::new(0)).unwrap().unwrap();
        if process.number < 2 {
            // They wait for each other, and each for one more.
            let out = Rank::new(3 - process.number as u32);
            let error = comm.shrink(ShrinkConfig::new([out]).with_abort()).unwrap_err().to_string();
            assert!(error.contains("disagree on whom to exclude: rank "), "{error}");
            assert!(error.contains("rank 0 ") && error.contains("rank 1 "), "{error}");
        }
        works(process, &all);
    });
}

#[test]
fn who_is_left_out_of_a_shrink_may_go_ahead_to_the_next() {
    processes("who_is_left_out_of_a_shrink_may_go_ahead_to_the_next", 4, |process| {
        let comm = process.join();
        for _ in 0..100 {
            for out in [0, 3] {
                if process.number != out {
                    let left = comm.shrink(ShrinkConfig::new([Rank::new(out as u32)])).unwrap();
                    assert_eq!(left.info().size, 3);
                }
            }
        }
        works(process, &comm);
    });
}

#[test]
fn a_revoke_ends_a_shrink_that_was_planned() {
    processes("a_revoke_ends_a_shrink_that_was_planned", 4, |process| {
        let comm = process.join();
        match process.number {
            1 => {
                // Time for the others to come to the shrink.
                thread::sleep(Duration::from_millis(50));
                comm.revoke().unwrap();
            }
            3 => while comm.poll_error().is_ok() {},
            _ => {
                let error = comm.shrink(ShrinkConfig::new([Rank::new(3)])).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Revoked, "{error}");
                assert!(error.to_string().contains("rank 1 revoked the communicator"), "{error}");
            }
        }
        // Whoever comes first has no quarrel with those who have not heard of it.
        if process.number != 2 {
            works(process, &comm.shrink(ShrinkConfig::new([Rank::new(2)])).unwrap());
        }
    });
}

#[test]
fn an_abort_takes_a_rank_out_of_a_shrink_for_good() {
    processes("an_abort_takes_a_rank_out_of_a_shrink_for_good", 4, |process| {
        let comm = process.join();
        let all = comm.split(SplitConfig::new(0)).unwrap().unwrap();
        match process.number {
            0 => {
                let handle = comm.abort_handle();
                let aborter = thread::spawn(move || {
                    thread::sleep(Duration::from_millis(50));
                    handle.abort().unwrap();
                });
                let error = comm.shrink(ShrinkConfig::new([Rank::new(3)])).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Aborted, "{error}");
                aborter.join().unwrap();
            }
            1 => {
                let error = comm.shrink(ShrinkConfig::new([Rank::new(3)])).unwrap_err();
                // It left the shrink; or, before this rank came, the communicator.
                assert!(error.to_string().contains("rank 0 "), "{error}");
            }
            // They do not come, but could, until the first has left.
            _ => while comm.poll_error().is_ok() {},
        }
        works(process, &all);
    });
}

#[test]
fn a_revoke_reaches_all() {
    processes("a_revoke_reaches_all", 3, |process| {
        let comm = process.join();
        let device = process.device(&comm);
        works(process, &comm);
        let value = Buffer::new(&device, &[1_i32]);
        if process.number == 0 {
            comm.revoke().unwrap();
        } else {
            let error = all_reduce(&comm, &value, &value).and_then(|()| wait(&device)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Revoked, "{error}");
            assert!(error.to_string().contains("rank 0 revoked"), "{error}");
        }
        if process.number < 2 {
            works(process, &comm.shrink(ShrinkConfig::new([Rank::new(2)])).unwrap());
        }
        Box::new(comm).finalize().unwrap();
    });
}

#[test]
fn an_abort_reaches_all() {
    processes("an_abort_reaches_all", 3, |process| {
        let comm = process.join();
        let device = process.device(&comm);
        let value = Buffer::new(&device, &[1_i32]);
        let outcome = all_reduce(&comm, &value, &value);
        if process.number == 0 {
            // The second is what nobody else issues.
            all_reduce(&comm, &value, &value).unwrap();
            let handle = comm.abort_handle();
            thread::spawn(move || {
                thread::sleep(Duration::from_millis(20));
                handle.abort().unwrap();
            });
            // Who aborts knows.
            wait(&device).unwrap();
            assert_eq!(comm.poll_error().unwrap_err().kind(), ErrorKind::Aborted);
            return;
        }
        outcome.unwrap();
        while comm.poll_error().is_ok() {
            thread::sleep(Duration::from_millis(1));
        }
        let error = comm.poll_error().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Remote);
        assert!(error.to_string().contains("rank 0 aborted the communicator"), "{error}");
        let _ = wait(&device);
    });
}

#[test]
fn a_mismatch_is_shown_to_all_with_both_places() {
    processes("a_mismatch_is_shown_to_all_with_both_places", 2, |process| {
        let comm = process.join();
        let other = comm.split(SplitConfig::new(0).with_name("other")).unwrap().unwrap();
        let device = process.device(&comm);
        let value = Buffer::new(&device, &[1_i32; 8]);
        works(process, &comm);
        let launch = Launch::new(RawStream::DEFAULT);
        let count = 4 + process.number;
        let buf = RecvBuf::typed(value.ptr, count);
        let issued = match process.number {
            // SAFETY: the buffer lives until the stream has passed, here and below.
            0 => unsafe { comm.all_reduce(buf.as_send(), buf, ReduceOp::Sum, launch) },
            // SAFETY: as above.
            _ => unsafe { comm.all_reduce(buf.as_send(), buf, ReduceOp::Sum, launch) },
        };
        let error = issued.and_then(|()| wait(&device)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidUsage, "{error}");
        let text = error.to_string();
        for part in [
            "rank 0 calls all_reduce of 4 × i32",
            "rank 1 calls all_reduce of 5 × i32",
            "call site",
        ] {
            assert!(text.contains(part), "'{part}' is not in: {text}");
        }
        let places = text.matches("processes.rs:").count();
        assert_eq!(places, 2, "{text}");
        assert_eq!(value.values(), [1; 8], "nothing was moved");
        // As data, too, whoever found it.
        let verdicts = process.mock.verdicts();
        assert_eq!(verdicts.len(), 1, "{verdicts:#?}");
        assert_eq!((verdicts[0].kind, verdicts[0].ranks.len()), (VerdictKind::Mismatch, 2));
        assert_eq!(verdicts[0].fields, ["count"]);
        assert!(error.message().starts_with(&verdicts[0].to_string()), "{error}");
        // What has no part in it can be used.
        works(process, &other);
    });
}

#[test]
fn two_ranks_in_each_of_two_processes() {
    processes("two_ranks_in_each_of_two_processes", 2, |process| {
        thread::scope(|scope| {
            for rank in [2 * process.number, 2 * process.number + 1] {
                scope.spawn(move || {
                    let comm = process.join_as(rank, 4);
                    works(process, &comm);
                    let device = process.device(&comm);
                    let large = Buffer::new(&device, &vec![rank as f64; 100_000]);
                    let sum = Buffer::new(&device, &vec![0.0; 100_000]);
                    for _ in 0..20 {
                        all_reduce(&comm, &large, &sum).unwrap();
                    }
                    wait(&device).unwrap();
                    assert!(sum.values().iter().all(|&value| value == 6.0));
                    let pair = comm.split(SplitConfig::new(rank as u32 % 2)).unwrap().unwrap();
                    works(process, &pair);
                });
            }
        });
        process.mock.check_leaks().unwrap();
    });
}

#[test]
fn host_memory_can_be_used() {
    processes("host_memory_can_be_used", 2, |process| {
        let comm = process.join();
        let device = process.device(&comm);
        let own = process.number as u32;
        let launch = || Launch::new(RawStream::DEFAULT);
        let mut value = [1_u64; 100];
        let in_place = RecvBuf::typed(value.as_mut_ptr(), value.len());
        for _ in 0..20 {
            // SAFETY: the value lives until the stream has passed.
            unsafe { comm.all_reduce(in_place.as_send(), in_place, ReduceOp::Sum, launch()) }
                .unwrap();
        }
        wait(&device).unwrap();
        assert_eq!(value, [1 << 20; 100]);
        // One's own part of what is gathered, in place, and large.
        let mut all = vec![0_u32; 100_000];
        all[own as usize * 50_000..][..50_000].fill(own + 1);
        let recv = RecvBuf::typed(all.as_mut_ptr(), all.len());
        let send = SendBuf::typed(all[own as usize * 50_000..].as_ptr(), 50_000);
        // SAFETY: as above.
        unsafe { comm.all_gather(send, recv, launch()) }.unwrap();
        wait(&device).unwrap();
        assert!(
            all[..50_000].iter().all(|&one| one == 1) && all[50_000..].iter().all(|&two| two == 2)
        );
        let mut message = [own];
        let peer = Rank::new(1 - own);
        // SAFETY: as above.
        let message_of = |ptr: *mut u32| match own {
            // SAFETY: as above.
            0 => unsafe { comm.send(SendBuf::typed(ptr, 1), peer, launch()) },
            // SAFETY: as above.
            _ => unsafe { comm.recv(RecvBuf::typed(ptr, 1), peer, launch()) },
        };
        message_of(message.as_mut_ptr()).unwrap();
        wait(&device).unwrap();
        assert_eq!(message, [0]);
    });
}

#[test]
fn a_graph_is_replayed() {
    processes("a_graph_is_replayed", 2, |process| {
        let comm = process.join();
        let device = process.device(&comm);
        let value = Buffer::new(&device, &[1_u64]);
        let stream = device.stream_create().unwrap();
        // SAFETY: stream, graph and buffer live until all runs have ended, here and below.
        unsafe { device.begin_capture(stream) }.unwrap();
        for _ in 0..3 {
            let launch = Launch::new(stream);
            // SAFETY: as above.
            unsafe { comm.all_reduce(value.send(), value.recv(), ReduceOp::Sum, launch) }.unwrap();
        }
        // SAFETY: as above.
        let graph = unsafe { device.end_capture(stream) }.unwrap();
        for _ in 0..10 {
            // SAFETY: as above.
            unsafe { device.launch(graph, stream) }.unwrap();
        }
        // SAFETY: as above.
        unsafe { device.synchronize(stream, Some(PATIENCE)) }.unwrap();
        assert_eq!(value.values(), [1 << 30]);
        // SAFETY: as above.
        unsafe { device.graph_destroy(graph) }.unwrap();
        // SAFETY: as above.
        unsafe { device.stream_destroy(stream) }.unwrap();
    });
}

#[test]
fn streams_of_one_rank_need_not_keep_the_order() {
    processes("streams_of_one_rank_need_not_keep_the_order", 2, |process| {
        let comm = process.join();
        let device = process.device(&comm);
        let streams = [device.stream_create().unwrap(), device.stream_create().unwrap()];
        let event = device.event_create().unwrap();
        let values = [Buffer::new(&device, &[1_u64]), Buffer::new(&device, &[1_u64])];
        let issue = |which: usize| {
            let (value, launch) = (&values[which], Launch::new(streams[which]));
            // SAFETY: the buffers live until the streams have passed, here and below.
            unsafe { comm.all_reduce(value.send(), value.recv(), ReduceOp::Sum, launch) }.unwrap();
        };
        for round in 0..200 {
            // The first operation waits for the second on one rank.
            if process.number == round % 2 {
                let other = device.stream_create().unwrap();
                // SAFETY: streams and event live, here and below.
                unsafe { device.record(event, streams[1]) }.unwrap();
                // SAFETY: as above.
                unsafe { device.wait(streams[0], event) }.unwrap();
                // SAFETY: as above.
                unsafe { device.stream_destroy(other) }.unwrap();
            }
            issue(0);
            issue(1);
        }
        for stream in streams {
            // SAFETY: as above.
            unsafe { device.synchronize(stream, Some(PATIENCE)) }.unwrap();
            // SAFETY: as above.
            unsafe { device.stream_destroy(stream) }.unwrap();
        }
        // SAFETY: as above.
        unsafe { device.event_destroy(event) }.unwrap();
        assert_eq!([values[0].values(), values[1].values()], [[0], [0]]);
    });
}

#[test]
fn a_program_that_only_polls_its_buffer_sees_the_result() {
    processes("a_program_that_only_polls_its_buffer_sees_the_result", 2, |process| {
        let comm = process.join();
        let device = process.device(&comm);
        let (value, copy) = (Buffer::new(&device, &[1_i32]), Buffer::new(&device, &[0_i32]));
        all_reduce(&comm, &value, &value).unwrap();
        // What comes behind goes on, too.
        // SAFETY: the buffers live until the copy was seen.
        unsafe { device.copy_to(copy.ptr.cast(), value.ptr.cast(), 4, RawStream::DEFAULT) }
            .unwrap();
        let until = Instant::now() + PATIENCE;
        while copy.values() != [2] {
            assert!(Instant::now() < until, "it never came");
            thread::yield_now();
        }
        assert_eq!(value.values(), [2]);
        // Both have seen theirs before either goes.
        works(process, &comm);
    });
}

#[test]
fn a_process_that_just_exits_is_missed() {
    let test = "a_process_that_just_exits_is_missed";
    let body = |process: &Process| {
        let comm = process.join();
        works(process, &comm);
        if process.number == 1 {
            std::process::exit(7);
        }
        let device = process.device(&comm);
        let value = Buffer::new(&device, &[1_i32]);
        let error = all_reduce(&comm, &value, &value).and_then(|()| wait(&device)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Remote);
        assert!(error.to_string().contains("ended with exit code 7"), "{error}");
    };
    processes_with(test, 2, MockConfig::new(), body, |number, status| {
        status.code() == Some(if number == 1 { 7 } else { 0 })
    });
}

#[test]
fn what_a_rank_issued_before_it_left_is_valid() {
    processes("what_a_rank_issued_before_it_left_is_valid", 2, |process| {
        let comm = process.join();
        let device = process.device(&comm);
        let value = Buffer::new(&device, &[1_i32]);
        if process.number == 1 {
            all_reduce(&comm, &value, &value).unwrap();
            // Waits for what was issued.
            drop(comm);
            assert_eq!(value.values(), [2]);
            return;
        }
        thread::sleep(Duration::from_millis(50));
        all_reduce(&comm, &value, &value).unwrap();
        wait(&device).unwrap();
        assert_eq!(value.values(), [2]);
        let error = all_reduce(&comm, &value, &value).and_then(|()| wait(&device)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Remote, "{error}");
        assert!(error.to_string().contains("rank 1 left the communicator before"), "{error}");
    });
}

#[test]
fn a_killed_rank_is_a_killed_process() {
    let test = "a_killed_rank_is_a_killed_process";
    let plan = FaultPlan::new().with_rule(Rule::new(Action::Kill).on_rank(1).at(2..3));
    let body = |process: &Process| {
        let comm = process.join();
        works(process, &comm);
        let device = process.device(&comm);
        let value = Buffer::new(&device, &[1_i32]);
        let error = all_reduce(&comm, &value, &value).and_then(|()| wait(&device)).unwrap_err();
        assert!(error.to_string().contains("ended by signal 9"), "{error}");
    };
    processes_with(test, 2, MockConfig::new().with_faults(plan), body, |number, status| {
        status.success() == (number == 0)
    });
}

#[test]
fn a_late_schedule_lets_run_what_another_process_waits_for() {
    let test = "a_late_schedule_lets_run_what_another_process_waits_for";
    let body = |process: &Process| {
        let comm = process.join();
        let device = process.device(&comm);
        let values: Vec<_> = (0..10).map(|_| Buffer::new(&device, &[1_i32])).collect();
        for value in &values {
            all_reduce(&comm, value, value).unwrap();
        }
        if process.number == 0 {
            wait(&device).unwrap();
        } else {
            // Never asks for it.
            let until = Instant::now() + PATIENCE;
            while values.iter().any(|value| value.values() != [2]) {
                assert!(Instant::now() < until, "it never came");
                thread::sleep(Duration::from_millis(1));
            }
        }
        drop(comm);
    };
    let config = MockConfig::new().with_schedule(Schedule::Late);
    processes_with(test, 2, config, body, |_, status| status.success());
}

#[test]
fn what_changes_while_it_is_lent_is_noticed() {
    let test = "what_changes_while_it_is_lent_is_noticed";
    let body = |process: &Process| {
        let comm = process.join();
        let device = process.device(&comm);
        works(process, &comm);
        let (send, recv) = (Buffer::new(&device, &[1_i32; 9]), Buffer::new(&device, &[0_i32; 9]));
        if process.number == 1 {
            // The other's part has been published, and is changed by now.
            thread::sleep(Duration::from_millis(200));
        }
        all_reduce(&comm, &send, &recv).unwrap();
        if process.number == 0 {
            comm.poll_error().unwrap();
            // SAFETY: the memory lives; against the contract, which is what is tried here.
            unsafe { send.ptr.write_volatile(5) };
        }
        let error = wait(&device).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidUsage, "{error}");
        assert!(error.to_string().contains("changed before it was read"), "{error}");
    };
    let config = MockConfig::new().with_guards(Guards::NONE.with_checksums(true));
    processes_with(test, 2, config, body, |_, status| status.success());
}

#[test]
fn a_communicator_grows_by_a_process() {
    processes("a_communicator_grows_by_a_process", 3, |process| {
        // Ranks 0 and 1 are members; the id for the third goes through a file descriptor's twin: a
        // communicator of all three.
        let all = process.join();
        let device = process.device(&all);
        let members = all.split(match process.number {
            2 => SplitConfig::no_color(),
            _ => SplitConfig::new(0),
        });
        let members = members.unwrap();
        let bytes = Buffer::new(&device, &[0_u8; 128]);
        if process.number == 0 {
            let id = members.as_ref().unwrap().grow_id().unwrap();
            // SAFETY: the memory is ours, and as long.
            unsafe { bytes.ptr.copy_from_nonoverlapping(id.as_bytes().as_ptr(), 128) };
        }
        all_reduce(&all, &bytes, &bytes).unwrap();
        wait(&device).unwrap();
        let id = UniqueId::from_bytes(bytes.values());
        let grown = match members {
            Some(members) => members.grow(GrowConfig::new(3)).unwrap(),
            None => process.mock.join_grown(&id, JoinConfig::new(2, 3)).unwrap(),
        };
        assert_eq!((grown.info().rank.index(), grown.info().size), (process.number, 3));
        works(process, &grown);
    });
}

#[test]
fn a_join_that_is_polled_comes_about() {
    processes("a_join_that_is_polled_comes_about", 2, |process| {
        let config = JoinConfig::new(process.number as u32, 2).with_deadline(PATIENCE);
        let mut pending = process.mock.join_start(&process.id, config).unwrap();
        while pending.poll() == JoinState::InProgress {
            thread::yield_now();
        }
        works(process, &pending.finish().unwrap());
    });
}

#[test]
fn a_join_without_all_says_who_is_missing() {
    processes("a_join_without_all_says_who_is_missing", 2, |process| {
        let config = JoinConfig::new(process.number as u32, 3);
        let error =
            process.mock.join(&process.id, config.with_deadline(Duration::from_millis(500)));
        let error = error.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
        assert!(error.to_string().contains("came 0, 1; missing 2"), "{error}");
    });
}

#[test]
fn a_process_that_dies_at_work_leaves_nobody_waiting() {
    let test = "a_process_that_dies_at_work_leaves_nobody_waiting";
    // Large operations under way as a process is killed: the others end, whatever had been claimed.
    let body = |process: &Process| {
        let comm = process.join();
        let device = process.device(&comm);
        let (send, recv) = (
            Buffer::new(&device, &vec![1.0_f32; 1 << 20]),
            Buffer::new(&device, &vec![0.0_f32; 1 << 20]),
        );
        works(process, &comm);
        if process.number == 1 {
            thread::spawn(|| {
                thread::sleep(Duration::from_millis(100));
                // SAFETY: sends this process a signal.
                unsafe { libc::raise(libc::SIGKILL) };
            });
        }
        let error = loop {
            let issued = (0..10).try_for_each(|_| all_reduce(&comm, &send, &recv));
            if let Err(error) = issued.and_then(|()| wait(&device)) {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::Remote, "{error}");
    };
    processes_with(test, 3, MockConfig::new(), body, |number, status| {
        status.success() == (number != 1)
    });
}

#[test]
fn more_messages_than_the_board_has_room_for_in_one_group() {
    processes("more_messages_than_the_board_has_room_for_in_one_group", 2, |process| {
        let comm = process.join();
        let device = process.device(&comm);
        for count in [1, 10_000] {
            let values: Vec<_> =
                (0..60_u32).map(|at| Buffer::new(&device, &vec![at + 1; count])).collect();
            let results: Vec<_> =
                (0..60).map(|_| Buffer::new(&device, &vec![0_u32; count])).collect();
            let peer = Rank::new(1 - process.number as u32);
            let launch = || Launch::new(RawStream::DEFAULT);
            let issue = || {
                for (value, result) in values.iter().zip(&results) {
                    // SAFETY: the buffers live until the stream has passed, here and below.
                    unsafe { comm.send(value.send(), peer, launch()) }?;
                    // SAFETY: as above.
                    unsafe { comm.recv(result.recv(), peer, launch()) }?;
                }
                Ok(())
            };
            process.mock.group(|_| issue()).unwrap();
            wait(&device).unwrap();
            for (value, result) in values.iter().zip(&results) {
                assert_eq!(value.values(), result.values());
            }
        }
    });
}

#[test]
fn an_operation_is_not_mistaken_for_the_one_before_it() {
    // The first of two may be done by another process just as the second is published here. More ranks
    // than there may be cores, so that they are held up anywhere.
    processes("an_operation_is_not_mistaken_for_the_one_before_it", 4, |process| {
        let comm = process.join();
        let device = process.device(&comm);
        let first = Buffer::new(&device, &[1_u64; 3]);
        let second = Buffer::new(&device, &[process.number as u64; 5]);
        let (first, second) =
            (RecvBuf::typed(first.ptr, 3), (RecvBuf::typed(second.ptr, 5), &second));
        for _ in 0..4000 {
            let launch = || Launch::new(RawStream::DEFAULT);
            // SAFETY: the buffers live until the stream has passed, here and below.
            unsafe { comm.all_reduce(first.as_send(), first, ReduceOp::Max, launch()) }.unwrap();
            let (recv, _) = second;
            // SAFETY: as above.
            unsafe { comm.broadcast(Some(recv.as_send()), recv, Rank::new(2), launch()) }.unwrap();
            wait(&device).unwrap();
        }
        assert_eq!(second.1.values(), [2; 5]);
    });
}

#[test]
fn long_programs_of_many_streams_and_communicators_agree() {
    /// Cheap random numbers.
    struct Dice(u64);
    impl Dice {
        fn throw(&mut self, sides: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (self.0 >> 33) % sides
        }
    }
    fn program(process: &Process, rank: usize, ranks: usize) {
        let world = process.join_as(rank, ranks);
        let half = world.split(SplitConfig::new(rank as u32 / 2)).unwrap().unwrap();
        let cross = world.split(SplitConfig::new(rank as u32 % 2)).unwrap().unwrap();
        let comms = [world, half, cross];
        let device = process.device(&comms[0]);
        let streams: Vec<_> = (0..3).map(|_| device.stream_create().unwrap()).collect();
        let buffers: Vec<_> = (0..3).map(|_| Buffer::new(&device, &vec![3_u64; 5000])).collect();
        // Powers of odd numbers: never zero, and each step shows.
        let mut expected = [[3_u64; 2]; 3];
        // The program is everybody's, the time that it takes one's own.
        let (mut shared, mut own) = (Dice(4711), Dice(rank as u64));
        for _ in 0..6000 {
            let (comm, stream) = (shared.throw(3) as usize, shared.throw(3) as usize);
            let count = if shared.throw(50) == 0 { 5000 } else { 3 };
            let buf = RecvBuf::typed(buffers[stream].ptr, count);
            let launch = Launch::new(streams[stream]);
            // SAFETY: the buffers live until the streams have passed, here and below.
            unsafe { comms[comm].all_reduce(buf.as_send(), buf, ReduceOp::Prod, launch) }.unwrap();
            let size = comms[comm].info().size as u32;
            let [few, many] = &mut expected[stream];
            *few = few.wrapping_pow(size);
            if count == 5000 {
                *many = many.wrapping_pow(size);
            }
            // Powers come to 1 in the end, so there is a new start now and then.
            let fresh = (shared.throw(20) == 0).then(|| 2 * shared.throw(1 << 30) + 3);
            if fresh.is_some() || own.throw(200) == 0 {
                // SAFETY: the stream is ours.
                unsafe { device.synchronize(streams[stream], Some(PATIENCE)) }.unwrap();
                let values = buffers[stream].values();
                assert_eq!([values[2], values[4999]], expected[stream]);
            }
            if let Some(fresh) = fresh {
                let all = 0..buffers[stream].count;
                // SAFETY: the memory is ours, and nothing of the stream is left.
                all.for_each(|at| unsafe { buffers[stream].ptr.wrapping_add(at).write(fresh) });
                expected[stream] = [fresh; 2];
            }
            if own.throw(100) == 0 {
                thread::yield_now();
            }
        }
        for ((stream, buffer), expected) in streams.into_iter().zip(&buffers).zip(expected) {
            // SAFETY: the stream is ours, here and below.
            unsafe { device.synchronize(stream, Some(PATIENCE)) }.unwrap();
            // SAFETY: as above.
            unsafe { device.stream_destroy(stream) }.unwrap();
            let values = buffer.values();
            assert_eq!([values[2], values[4999]], expected);
        }
    }
    let test = "long_programs_of_many_streams_and_communicators_agree";
    // More than there may be cores, so that ranks are held up anywhere.
    processes(test, 4, |process| program(process, process.number, 4));
    processes(test, 2, |process| {
        thread::scope(|scope| {
            for rank in [2 * process.number, 2 * process.number + 1] {
                scope.spawn(move || program(process, rank, 4));
            }
        });
        process.mock.check_leaks().unwrap();
    });
}

/// Runs `body` in two processes, under a plan of one rule.
fn two_with(test: &str, rule: Rule, body: impl FnOnce(&Process)) {
    let config = MockConfig::new().with_faults(FaultPlan::new().with_rule(rule));
    processes_with(test, 2, config, body, |_, status| status.success());
}

#[test]
fn a_delay_is_waited_for_across_processes() {
    let rule = Rule::new(Action::Delay(Duration::from_millis(300))).on_rank(1).at(1..2);
    two_with("a_delay_is_waited_for_across_processes", rule, is_only_slow);
}

#[test]
fn a_straggler_is_waited_for_across_processes() {
    let rule = Rule::new(Action::Straggle(Duration::from_millis(100))).on_rank(1).at(1..2);
    two_with("a_straggler_is_waited_for_across_processes", rule, is_only_slow);
}

fn is_only_slow(process: &Process) {
    let comm = process.join();
    (0..4).for_each(|_| works(process, &comm));
    assert!(process.mock.verdicts().is_empty(), "{:#?}", process.mock.verdicts());
}

#[test]
fn what_hangs_in_another_process_ends_by_a_deadline_and_an_abort() {
    let test = "what_hangs_in_another_process_ends_by_a_deadline_and_an_abort";
    let rule = Rule::new(Action::Hang).on_communicator("world").on_rank(1).at(2..3);
    two_with(test, rule, |process| {
        let comm = process.join();
        works(process, &comm);
        let device = process.device(&comm);
        let value = Buffer::new(&device, &[1_i32]);
        all_reduce(&comm, &value, &value).unwrap();
        let soon = Some(Duration::from_millis(500));
        if process.number == 0 {
            // SAFETY: the default stream always lives.
            let error = unsafe { device.synchronize(RawStream::DEFAULT, soon) }.unwrap_err();
            // It was asked for, to try out deadlines: there is no verdict on it.
            assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
            assert!(error.to_string().contains("waiting for rank 1"), "{error}");
            comm.abort_handle().abort().unwrap();
            // Who aborts knows.
            wait(&device).unwrap();
        } else {
            assert_eq!(wait(&device).unwrap_err().kind(), ErrorKind::Remote);
        }
        assert!(process.mock.verdicts().is_empty(), "{:#?}", process.mock.verdicts());
        drop((comm, value));
        let id = process.mock.unique_id_named(&process.id.to_base64()).unwrap();
        let config = JoinConfig::new(process.number as u32, 2).with_name("second");
        let second = process.mock.join(&id, config.with_deadline(PATIENCE)).unwrap();
        works(process, &second);
        works(process, &second);
    });
}

#[test]
fn an_asynchronous_error_reaches_the_other_process() {
    let action = Action::AsyncError { after: 3, kind: ErrorKind::System };
    let rule = Rule::new(action).on_rank(1).at(3..4);
    two_with("an_asynchronous_error_reaches_the_other_process", rule, |process| {
        let comm = process.join();
        works(process, &comm);
        works(process, &comm);
        let until = Instant::now() + PATIENCE;
        let mut polls = 0;
        let error = loop {
            polls += 1;
            match comm.poll_error() {
                Err(error) => break error,
                Ok(()) if Instant::now() > until => panic!("nobody is told"),
                Ok(()) => thread::sleep(Duration::from_millis(1)),
            }
        };
        assert_eq!((error.kind(), error.poisons_communicator()), (ErrorKind::System, true));
        assert!(error.to_string().contains("by fault rule 0"), "{error}");
        assert!(process.number == 0 || polls == 3, "told at poll {polls}");
    });
}

#[test]
fn memory_of_a_process_runs_out_at_the_allocation_that_was_said() {
    let test = "memory_of_a_process_runs_out_at_the_allocation_that_was_said";
    let rule = Rule::new(Action::OutOfMemory { allocation: 1 }).on_rank(1).at_most(1);
    two_with(test, rule, |process| {
        let comm = process.join();
        let device = process.device(&comm);
        let allocations = [(); 3].map(|()| device.alloc(8));
        for (number, allocation) in allocations.into_iter().enumerate() {
            let runs_out = (process.number, number) == (1, 1);
            let kind = allocation.map_err(|error| error.kind()).err();
            assert_eq!(kind, runs_out.then_some(ErrorKind::OutOfMemory));
        }
        works(process, &comm);
    });
}

#[test]
fn a_join_that_hangs_in_another_process_is_late() {
    let rule = Rule::new(Action::JoinHangs).on_rank(1).at_most(1);
    two_with("a_join_that_hangs_in_another_process_is_late", rule, |process| {
        let config = JoinConfig::new(process.number as u32, 2).with_name("world");
        let soon = Duration::from_millis(500);
        let error = process.mock.join(&process.id, config.with_deadline(soon)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
        assert!(process.mock.verdicts().is_empty(), "{:#?}", process.mock.verdicts());
        // Not so soon that it would meet the first try of the other.
        thread::sleep(if process.number == 1 { 4 * soon } else { Duration::ZERO });
        // Once was enough: the next try meets.
        works(process, &process.join());
    });
}

#[test]
fn a_late_joiner_of_another_process_is_waited_for() {
    let rule = Rule::new(Action::JoinLate(Duration::from_millis(300))).on_rank(1);
    two_with("a_late_joiner_of_another_process_is_waited_for", rule, |process| {
        works(process, &process.join());
        assert!(process.mock.verdicts().is_empty(), "{:#?}", process.mock.verdicts());
    });
}
