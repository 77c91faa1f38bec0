//! Every way to hang that shows only between processes: who is told what, and how soon.
//!
//! Each test starts its own binary again, once for each process, and has it run the same test as a
//! rank. What fails there fails the process, and so the test.
//!
//! Each case prints how long it took from its last call to its error. Only some seconds are asserted:
//! machines are busy.
#![cfg(target_os = "linux")]

use std::{
    env,
    process::{self, Child, Command, Stdio},
    str::FromStr,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use collectives_backend_mock::{
    ExitNotice, Mock, MockComm, MockConfig, MockDevice, Ranks, Verdict, VerdictKind,
};
use collectives_core::{
    Backend, Collectives, DType, Device, Error, ErrorKind, GrowConfig, JoinConfig, Launch, Rank,
    RawStream, RecvBuf, ReduceOp, Result, SendBuf, ShrinkConfig, Split, SplitConfig, UniqueId,
};

/// One process of a test.
struct Process {
    number: u32,
    count: usize,
    mock: Mock,
    id: UniqueId,
}

/// One rank.
struct End {
    mock: Mock,
    comm: MockComm,
    device: MockDevice,
}

impl Process {
    /// Joins as the only rank of this process.
    fn join(&self) -> End {
        self.join_as(self.number, self.count)
    }

    fn join_as(&self, rank: u32, size: usize) -> End {
        let config = JoinConfig::new(rank, size).with_name("world").with_device(rank as usize);
        let comm = self.mock.join(&self.id, config.with_deadline(PATIENCE)).unwrap();
        let end = End::new(&self.mock, comm);
        // So that all begin at about the same time.
        end.all_reduce().unwrap();
        end.wait().unwrap();
        end
    }

    /// The one verdict, once it is known here.
    fn verdict(&self) -> Verdict {
        // The error may come from another process before this one has noted the verdict.
        let until = Instant::now() + Duration::from_secs(5);
        while self.mock.verdicts().is_empty() && Instant::now() < until {
            thread::sleep(Duration::from_millis(1));
        }
        let verdicts = self.mock.verdicts();
        assert_eq!(verdicts.len(), 1, "{verdicts:#?}");
        verdicts[0].clone()
    }
}

impl End {
    fn new(mock: &Mock, comm: MockComm) -> Self {
        let device = mock.device(comm.info().device).unwrap();
        Self { mock: mock.clone(), comm, device }
    }

    fn rank(&self) -> u32 {
        self.comm.info().rank.get()
    }

    fn buffers(&self) -> (SendBuf, RecvBuf) {
        let memory = self.device.alloc(64).unwrap();
        (SendBuf::new(memory, 4, DType::F32), RecvBuf::new(memory, 4, DType::F32))
    }

    fn all_reduce(&self) -> Result<()> {
        let (send, recv) = self.buffers();
        // SAFETY: the memory is as large, lives as long as the mock, and is used for nothing else.
        unsafe { self.comm.all_reduce(send, recv, ReduceOp::Sum, Launch::new(RawStream::DEFAULT)) }
    }

    fn send(&self, peer: u32) -> Result<()> {
        // SAFETY: as in `all_reduce`.
        unsafe {
            self.comm.send(self.buffers().0, Rank::new(peer), Launch::new(RawStream::DEFAULT))
        }
    }

    fn recv(&self, peer: u32) -> Result<()> {
        // SAFETY: as in `all_reduce`.
        unsafe {
            self.comm.recv(self.buffers().1, Rank::new(peer), Launch::new(RawStream::DEFAULT))
        }
    }

    fn wait(&self) -> Result<()> {
        // SAFETY: the default stream always lives.
        unsafe { self.device.synchronize(RawStream::DEFAULT, None) }
    }

    /// A second communicator of the same ranks.
    fn again(&self, name: &str) -> Self {
        let comm = self.comm.split(SplitConfig::new(0).with_name(name)).unwrap().unwrap();
        Self::new(&self.mock, comm)
    }
}

/// The error of a case, and how long it took.
#[track_caller]
fn told(case: &str, kind: ErrorKind, act: impl FnOnce() -> Result<()>) -> Error {
    let start = Instant::now();
    let error = act().unwrap_err();
    let latency = start.elapsed();
    println!("latency of {case}: {:.1} ms", latency.as_secs_f64() * 1e3);
    assert_eq!(error.kind(), kind, "{error}");
    assert!(latency < Duration::from_secs(5), "{case} took {latency:?}");
    error
}

#[track_caller]
fn contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "'{part}' is not in: {text}");
    }
}

/// Sleeps until the process is killed: outside the library, with nobody to wake it.
fn sleep_for_ever() -> ! {
    let (_sender, receiver) = mpsc::channel::<()>();
    let _ = receiver.recv();
    unreachable!("the sender lives");
}

/// Runs `body` in so many processes. They must end well, but for those of `left`: these are killed
/// when the others have ended.
fn processes(test: &str, count: usize, left: &[u32], body: impl FnOnce(&Process)) {
    let config = MockConfig::from_env().unwrap().with_ranks(Ranks::Processes);
    let mock = Mock::new(config);
    if let Ok(number) = env::var(NUMBER) {
        let id = UniqueId::from_str(&env::var(ID).unwrap()).unwrap();
        let number = number.parse().unwrap();
        body(&Process { number, count, mock, id });
        return;
    }
    let id = mock.unique_id().unwrap().to_base64();
    drop(mock);
    let start = |number: u32| {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", test, "--nocapture", "--test-threads=1"]);
        command.env(NUMBER, number.to_string()).env(ID, &id).stdin(Stdio::null());
        let notice = ExitNotice::attach(&mut command).unwrap();
        (number, command.spawn().unwrap(), Some(notice))
    };
    let (mut sleepers, mut children): (Vec<_>, Vec<_>) =
        (0..count as u32).map(start).partition(|(number, ..)| left.contains(number));
    let until = Instant::now() + PATIENCE;
    let mut wrong = Vec::new();
    while !children.is_empty() {
        children.retain_mut(|(number, child, notice)| {
            let Some(status) = ended(child, until) else { return true };
            notice.take().into_iter().for_each(|notice| notice.publish(status));
            if !(status.success() || status.code() == Some(i32::from(EXPECTED))) {
                wrong.push(format!("process {number}: {status}"));
            }
            false
        });
        thread::sleep(Duration::from_millis(1));
    }
    for (_, child, _) in &mut sleepers {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(wrong.is_empty(), "{}", wrong.join(", "));
}

/// How a child has ended, if it has. Past the time it is killed.
fn ended(child: &mut Child, until: Instant) -> Option<process::ExitStatus> {
    if Instant::now() > until {
        child.kill().unwrap();
    }
    child.try_wait().unwrap()
}

const NUMBER: &str = "COLLECTIVES_TEST_NUMBER";
const ID: &str = "COLLECTIVES_TEST_ID";
const PATIENCE: Duration = Duration::from_secs(60);
/// The exit code of a rank that leaves on purpose.
const EXPECTED: u8 = 3;

#[test]
fn messages_that_cross() {
    processes("messages_that_cross", 2, &[], |process| {
        let end = process.join();
        let peer = 1 - end.rank();
        let error = told("crossed sends", ErrorKind::Deadlock, || {
            end.send(peer)?;
            end.recv(peer)?;
            end.wait()
        });
        let verdict = process.verdict();
        assert_eq!(verdict.kind, VerdictKind::Cycle);
        assert!(error.message().starts_with(&verdict.to_string()), "{error}");
        contains(
            error.message(),
            &[
                "ranks 0, 1 wait for each other in 'world'",
                "rank 0: send #0 of 4 × f32, to rank 1 (crates/backend-mock/tests/process_verdicts.rs:",
                "rank 1: send #0 of 4 × f32, to rank 0 (crates/backend-mock/tests/process_verdicts.rs:",
                "which is behind rank ",
            ],
        );
        assert!(verdict.ranks.iter().all(|rank| rank.operation.is_some()));
    });
}

#[test]
fn communicators_in_another_order() {
    processes("communicators_in_another_order", 2, &[], |process| {
        let end = process.join();
        let other = end.again("other");
        let ends = if end.rank() == 0 { [&end, &other] } else { [&other, &end] };
        let error = told("another order", ErrorKind::Deadlock, || {
            ends[0].all_reduce()?;
            ends[1].all_reduce()?;
            end.wait()
        });
        assert_eq!(process.verdict().kind, VerdictKind::Cycle);
        contains(error.message(), &["wait for each other in 'world' and 'other'"]);
    });
}

#[test]
fn a_rank_that_waits_for_something_else() {
    processes("a_rank_that_waits_for_something_else", 3, &[], |process| {
        let end = process.join();
        let error = told("mismatch", ErrorKind::InvalidUsage, || {
            if end.rank() == 2 {
                end.recv(0)?
            } else {
                end.all_reduce()?
            }
            end.wait()
        });
        assert_eq!(process.verdict().kind, VerdictKind::Mismatch);
        contains(
            error.message(),
            &["rank 2 calls recv of 4 × f32, from rank 0", "rank 2 is the odd one out"],
        );
    });
}

#[test]
fn a_rank_that_never_comes() {
    processes("a_rank_that_never_comes", 3, &[2], |process| {
        let end = process.join();
        if end.rank() == 2 {
            sleep_for_ever();
        }
        let error = told("missing rank", ErrorKind::Deadlock, || {
            end.all_reduce()?;
            end.wait()
        });
        assert_eq!(process.verdict().kind, VerdictKind::MissingRank);
        contains(
            error.message(),
            &["rank 2 of 'world' never issues its side of all_reduce #1", "outside the library"],
        );
    });
}

#[test]
fn a_rank_whose_thread_has_ended() {
    processes("a_rank_whose_thread_has_ended", 2, &[1], |process| {
        if process.number == 1 {
            let (mock, id) = (process.mock.clone(), process.id.clone());
            let process = Process { number: 1, count: 2, mock, id };
            thread::spawn(move || std::mem::forget(process.join())).join().unwrap();
            sleep_for_ever();
        }
        let end = process.join();
        let error = told("ended thread", ErrorKind::Remote, || {
            end.all_reduce()?;
            end.wait()
        });
        assert_eq!(process.verdict().kind, VerdictKind::RankEnded);
        contains(error.message(), &["rank 1 of 'world' has ended without issuing"]);
    });
}

#[test]
fn a_rank_whose_process_exits() {
    processes("a_rank_whose_process_exits", 2, &[], |process| {
        let end = process.join();
        if end.rank() == 1 {
            process::exit(EXPECTED.into());
        }
        let error = told("exit", ErrorKind::Remote, || {
            end.all_reduce()?;
            end.wait()
        });
        contains(error.message(), &["rank 1"]);
        assert!(process.mock.verdicts().is_empty());
    });
}

#[test]
fn a_split_that_one_rank_never_calls() {
    processes("a_split_that_one_rank_never_calls", 3, &[], |process| {
        let end = process.join();
        let error = told("split", ErrorKind::Deadlock, || {
            if end.rank() == 2 {
                end.recv(0)?;
                return end.wait();
            }
            end.comm.split(SplitConfig::new(0)).map(drop)
        });
        assert_eq!(process.verdict().kind, VerdictKind::SplitIncomplete);
        contains(
            error.message(),
            &["ranks wait in the split of 'world'", "waits in split of 'world' for rank 2"],
        );
    });
}

#[test]
fn a_shrink_that_one_rank_never_calls() {
    processes("a_shrink_that_one_rank_never_calls", 4, &[2, 3], |process| {
        let end = process.join();
        if end.rank() >= 2 {
            sleep_for_ever();
        }
        let without = |ranks: &[u32]| {
            let ranks: Vec<_> = ranks.iter().copied().map(Rank::new).collect();
            end.comm.shrink(ShrinkConfig::new(ranks).with_name("fewer"))
        };
        end.comm.revoke().unwrap();
        let error = told("shrink", ErrorKind::Deadlock, || without(&[3]).map(drop));
        assert_eq!(process.verdict().kind, VerdictKind::ShrinkIncomplete);
        contains(error.message(), &["ranks wait in the shrink of 'world'"]);
        // A verdict on one shrink leaves the next one possible.
        assert_eq!(without(&[2, 3]).unwrap().info().size, 2);
    });
}

#[test]
fn a_grow_for_which_nobody_makes_an_id() {
    processes("a_grow_for_which_nobody_makes_an_id", 2, &[], |process| {
        let end = process.join();
        told("grow", ErrorKind::Deadlock, || {
            if end.rank() == 1 {
                end.recv(0)?;
                return end.wait();
            }
            end.comm.grow(GrowConfig::new(3)).map(drop)
        });
        assert_eq!(process.verdict().kind, VerdictKind::GrowIncomplete);
    });
}

#[test]
fn messages_of_unequal_size() {
    processes("messages_of_unequal_size", 2, &[], |process| {
        let end = process.join();
        let error = told("unequal sizes", ErrorKind::InvalidUsage, || {
            if end.rank() == 0 {
                end.send(1)?;
            } else {
                let recv = RecvBuf { count: 5, ..end.buffers().1 };
                let launch = Launch::new(RawStream::DEFAULT);
                // SAFETY: as in `all_reduce`; the memory has room for 16.
                unsafe { end.comm.recv(recv, Rank::new(0), launch) }?;
            }
            end.wait()
        });
        assert_eq!(process.verdict().kind, VerdictKind::Mismatch);
        contains(
            error.message(),
            &["rank 0 calls send of 4 × f32", "rank 1 calls recv of 5 × f32"],
        );
    });
}

#[test]
fn a_message_to_the_wrong_rank() {
    processes("a_message_to_the_wrong_rank", 3, &[], |process| {
        let end = process.join();
        let error = told("a wrong peer", ErrorKind::Deadlock, || {
            match end.rank() {
                0 => end.send(2)?,
                1 => end.recv(0)?,
                _ => end.recv(1)?,
            }
            end.wait()
        });
        assert_eq!(process.verdict().kind, VerdictKind::Cycle);
        contains(
            error.message(),
            &[
                "rank 0: send #0 of 4 × f32, to rank 2",
                "rank 1: recv #0 of 4 × f32, from rank 0",
                "rank 2: recv #0 of 4 × f32, from rank 1",
            ],
        );
    });
}

#[test]
fn a_graph_that_is_replayed_by_one_process() {
    processes("a_graph_that_is_replayed_by_one_process", 2, &[], |process| {
        let end = process.join();
        let stream = end.device.stream_create().unwrap();
        let (send, recv) = end.buffers();
        // SAFETY: the stream was made above, and lives as long as the mock, here and below.
        unsafe { end.device.begin_capture(stream) }.unwrap();
        // SAFETY: as in `all_reduce`.
        unsafe { end.comm.all_reduce(send, recv, ReduceOp::Sum, Launch::new(stream)) }.unwrap();
        // SAFETY: as above.
        let graph = unsafe { end.device.end_capture(stream) }.unwrap();
        let error = told("a graph", ErrorKind::InvalidUsage, || {
            if end.rank() == 1 {
                end.recv(0)?;
                return end.wait();
            }
            // SAFETY: as above.
            unsafe { end.device.launch(graph, stream) }?;
            // SAFETY: as above.
            unsafe { end.device.synchronize(stream, None) }
        });
        let verdict = process.verdict();
        assert_eq!(verdict.kind, VerdictKind::Mismatch);
        assert!(verdict.ranks[0].operation.as_ref().is_some_and(|op| op.in_graph), "{verdict}");
        contains(error.message(), &["rank 0 calls all_reduce", "rank 1 calls recv of 4 × f32"]);
    });
}

#[test]
fn a_rank_that_leaves_the_communicator() {
    processes("a_rank_that_leaves_the_communicator", 2, &[1], |process| {
        let end = process.join();
        if end.rank() == 1 {
            drop(end);
            sleep_for_ever();
        }
        let error = told("left", ErrorKind::Remote, || {
            end.all_reduce()?;
            end.wait()
        });
        contains(error.message(), &["rank 1"]);
    });
}

#[test]
fn a_finalize_that_waits_in_vain() {
    processes("a_finalize_that_waits_in_vain", 2, &[1], |process| {
        let end = process.join();
        if end.rank() == 1 {
            sleep_for_ever();
        }
        end.all_reduce().unwrap();
        let comm = Box::new(end.comm);
        told("finalize", ErrorKind::Deadlock, || comm.finalize());
        assert_eq!(process.verdict().kind, VerdictKind::MissingRank);
    });
}

#[test]
fn ranks_as_threads_of_processes() {
    // Ranks 0 and 1 in one process, 2 in another: each waits for the next one.
    processes("ranks_as_threads_of_processes", 2, &[], |process| {
        let ranks = if process.number == 0 { vec![0, 1] } else { vec![2] };
        let act = |rank: u32| {
            let end = process.join_as(rank, 3);
            told("threads of processes", ErrorKind::Deadlock, || {
                end.recv((rank + 1) % 3)?;
                end.send((rank + 2) % 3)?;
                end.wait()
            });
            end
        };
        // Kept until the verdict is known.
        let _ends: Vec<_> = thread::scope(|scope| {
            let ranks: Vec<_> =
                ranks.into_iter().map(|rank| scope.spawn(move || act(rank))).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        let verdict = process.verdict();
        assert_eq!((verdict.kind, verdict.ranks.len()), (VerdictKind::Cycle, 3));
    });
}

#[test]
fn a_hang_of_some_leaves_the_others_alone() {
    processes("a_hang_of_some_leaves_the_others_alone", 3, &[], |process| {
        let end = process.join();
        let pair = SplitConfig::new(u32::from(end.rank() == 2));
        let part = End::new(&process.mock, end.comm.split(pair).unwrap().unwrap());
        if end.rank() < 2 {
            let peer = 1 - part.rank();
            told("a pair", ErrorKind::Deadlock, || {
                part.send(peer)?;
                part.recv(peer)?;
                part.wait()
            });
        } else {
            // Not so soon in what all have in common that it would be part of the hang.
            thread::sleep(Duration::from_secs(1));
            part.all_reduce().unwrap();
            part.wait().unwrap();
        }
        // What all have in common works.
        end.all_reduce().unwrap();
        end.wait().unwrap();
        assert_eq!(process.mock.verdicts().len(), usize::from(end.rank() < 2));
    });
}

#[test]
fn ranks_that_are_only_slow() {
    processes("ranks_that_are_only_slow", 3, &[], |process| {
        let end = process.join();
        for round in 0..12_u32 {
            // A different one each time, by sleeping, computing, or waiting for another thread.
            if round % 3 == end.rank() {
                let a_while = Duration::from_millis(if round < 3 { 400 } else { 60 });
                match round % 4 {
                    0 => thread::sleep(a_while),
                    1 => thread::scope(|scope| {
                        scope.spawn(|| thread::sleep(a_while));
                    }),
                    2 => {
                        let start = Instant::now();
                        while start.elapsed() < a_while {}
                    }
                    _ => thread::park_timeout(a_while),
                }
            }
            end.all_reduce().unwrap();
            end.wait().unwrap();
        }
        assert!(process.mock.verdicts().is_empty(), "{:#?}", process.mock.verdicts());
    });
}
