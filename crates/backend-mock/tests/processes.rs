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
    Ranks, Rule, Schedule,
};
use collectives_core::{
    Backend, Collectives, DType, Device, Error, ErrorKind, GroupEnd, GrowConfig, JoinConfig,
    Launch, Rank, RawStream, RecvBuf, ReduceOp, Result, SendBuf, ShrinkConfig, Split, SplitConfig,
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
) -> Result<()>
where
    T: Copy,
{
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
