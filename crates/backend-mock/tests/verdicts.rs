//! Every way to hang that the engine can see: who gets which error, with what in it, and how soon.
//!
//! Each case prints how long it took from the moment in which nothing could happen any more (the
//! last rank went to wait) to the last error. Only a second is asserted: machines are busy.

use std::{
    ffi::c_void,
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use collectives_backend_mock::{
    Action, FaultPlan, Mock, MockComm, MockConfig, MockDevice, Rule, Schedule, Verdict, VerdictKind,
};
use collectives_core::{
    Backend, BackendExt, Collectives, DType, Device, Error, ErrorKind, GrowConfig, JoinAllConfig,
    JoinConfig, Launch, Rank, RawStream, RecvBuf, ReduceOp, Result, SendBuf, ShrinkConfig, Split,
    SplitConfig,
};

/// One rank with a stream of its own.
struct End {
    mock: Mock,
    comm: MockComm,
    device: MockDevice,
    stream: RawStream,
    clock: Arc<Clock>,
}

/// When the last rank went to wait.
struct Clock(Mutex<Instant>);

impl Clock {
    fn start(&self) {
        *self.0.lock().unwrap() = Instant::now();
    }
}

impl End {
    fn new(mock: &Mock, comm: MockComm, clock: &Arc<Clock>) -> Self {
        let device = mock.device(comm.info().device).unwrap();
        let stream = device.stream_create().unwrap();
        Self { mock: mock.clone(), comm, device, stream, clock: Arc::clone(clock) }
    }
    fn rank(&self) -> usize {
        self.comm.info().rank.index()
    }
    fn memory(&self) -> *mut c_void {
        self.device.alloc(64).unwrap()
    }
    fn reduce_on(
        &self,
        comm: &MockComm,
        count: usize,
        dtype: DType,
        op: ReduceOp,
        stream: RawStream,
    ) -> Result<()> {
        let memory = self.memory();
        let (send, recv) = (SendBuf::new(memory, count, dtype), RecvBuf::new(memory, count, dtype));
        // SAFETY: the memory is as large, lives as long as the mock, and is used for nothing else.
        unsafe { comm.all_reduce(send, recv, op, Launch::new(stream)) }
    }
    fn all_reduce(&self) -> Result<()> {
        self.reduce_on(&self.comm, 4, DType::F32, ReduceOp::Sum, self.stream)
    }
    fn broadcast(&self, root: u32) -> Result<()> {
        let memory = self.memory();
        let send = SendBuf::new(memory, 4, DType::F32);
        let recv = RecvBuf::new(memory, 4, DType::F32);
        // SAFETY: as in `reduce_on`.
        unsafe { self.comm.broadcast(Some(send), recv, Rank::new(root), Launch::new(self.stream)) }
    }
    fn send(&self, peer: u32, count: usize) -> Result<()> {
        let buf = SendBuf::new(self.memory(), count, DType::F32);
        // SAFETY: as in `reduce_on`.
        unsafe { self.comm.send(buf, Rank::new(peer), Launch::new(self.stream)) }
    }
    fn recv(&self, peer: u32, count: usize) -> Result<()> {
        let buf = RecvBuf::new(self.memory(), count, DType::F32);
        // SAFETY: as in `reduce_on`.
        unsafe { self.comm.recv(buf, Rank::new(peer), Launch::new(self.stream)) }
    }
    fn wait(&self) -> Result<()> {
        self.wait_for(self.stream, None)
    }
    /// Waits for what comes after the case itself.
    fn settle(&self) {
        // SAFETY: the stream is alive.
        unsafe { self.device.synchronize(self.stream, None) }.unwrap();
    }
    fn wait_for(&self, stream: RawStream, deadline: Option<Duration>) -> Result<()> {
        self.clock.start();
        // SAFETY: the stream is alive.
        unsafe { self.device.synchronize(stream, deadline) }
    }
    /// A second communicator of the same ranks.
    fn again(&self, name: &str) -> MockComm {
        let color = SplitConfig::new(0).with_name(name);
        self.comm.split(color).unwrap().unwrap()
    }
}

/// What came of a world: each rank's outcome, and the verdicts.
struct Outcome {
    errors: Vec<Option<Error>>,
    verdicts: Vec<Verdict>,
}

impl Outcome {
    /// The one verdict, after every rank's error was found to be of `kind` and to have its text.
    fn verdict(&self, kind: ErrorKind) -> (&Verdict, String) {
        assert_eq!(self.verdicts.len(), 1, "{:#?}", self.verdicts);
        let text = self.verdicts[0].to_string();
        for error in self.errors.iter() {
            let error = error.as_ref().unwrap_or_else(|| panic!("a rank got no error: {text}"));
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.poisons_communicator());
            assert!(error.message().starts_with(&text), "{error}");
            assert!(error.hint().is_some());
        }
        println!("{}\n", self.errors[0].as_ref().unwrap());
        (&self.verdicts[0], text)
    }
}

/// Runs ranks on threads of their own, and checks that they end within a second of their last wait.
fn world(
    name: &str,
    ranks: usize,
    body: impl Fn(End) -> Result<()> + Send + Sync + 'static,
) -> Outcome {
    // So that all of it can be run under any schedule.
    world_of(name, MockConfig::from_env().unwrap(), ranks, body)
}

fn world_of(
    name: &str,
    config: MockConfig,
    ranks: usize,
    body: impl Fn(End) -> Result<()> + Send + Sync + 'static,
) -> Outcome {
    let mock = Mock::new(config.with_devices(ranks));
    let (id, clock) = (mock.unique_id().unwrap(), Arc::new(Clock(Mutex::new(Instant::now()))));
    let (body, (tell, told)) = (Arc::new(body), mpsc::channel());
    for rank in 0..ranks {
        let (mock, id, clock) = (mock.clone(), id.clone(), Arc::clone(&clock));
        let (body, tell) = (Arc::clone(&body), tell.clone());
        let run = move || {
            let config =
                JoinConfig::new(Rank::new(rank as u32), ranks).with_device(rank).with_name("world");
            let end = End::new(&mock, mock.join(&id, config).unwrap(), &clock);
            let outcome = body(end);
            tell.send((rank, outcome.err(), Instant::now())).unwrap();
        };
        thread::Builder::new().name(format!("rank {rank}")).spawn(run).unwrap();
    }
    drop(tell);
    collect(name, &mock, ranks, &clock, &told)
}

fn collect(
    name: &str,
    mock: &Mock,
    ranks: usize,
    clock: &Clock,
    told: &mpsc::Receiver<(usize, Option<Error>, Instant)>,
) -> Outcome {
    let mut errors: Vec<Option<Error>> = (0..ranks).map(|_| None).collect();
    let mut last = None;
    for _ in 0..ranks {
        // A rank that panics does not tell.
        match told.recv_timeout(PATIENCE) {
            Ok((rank, error, at)) => {
                if error.is_some() {
                    last = last.max(Some(at));
                }
                errors[rank] = error;
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("{name} hangs: {:#?}", mock.pending()),
        }
    }
    if let Some(last) = last {
        let latency = last.saturating_duration_since(*clock.0.lock().unwrap());
        println!("latency of {name}: {:.1} ms", latency.as_secs_f64() * 1e3);
        assert!(latency < Duration::from_secs(1), "{name} took {latency:?}");
    }
    Outcome { errors, verdicts: mock.verdicts() }
}

/// So long that the engine takes the thread that watches for a mere watcher.
const PATIENCE: Duration = Duration::from_secs(60);

#[track_caller]
fn contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "'{part}' is not in: {text}");
    }
}

#[test]
fn a_rank_that_waits_for_something_else() {
    let outcome = world("missing rank", 3, |end| {
        if end.rank() == 2 {
            end.recv(0, 1)?
        } else {
            end.all_reduce()?
        }
        end.wait()
    });
    let (verdict, text) = outcome.verdict(ErrorKind::InvalidUsage);
    assert_eq!(verdict.kind, VerdictKind::Mismatch);
    assert_eq!(verdict.odd, [Rank::new(2)]);
    assert!(verdict.fields.contains(&"operation"));
    contains(
        &text,
        &[
            "ranks disagree on what comes next in 'world'",
            "rank 2 calls recv of 1 × f32, from rank 0",
            "ranks 0, 1 call all_reduce of 4 × f32, sum",
            "rank 2 is the odd one out",
            "verdicts.rs:",
        ],
    );
}

#[test]
fn one_thread_that_waits_before_it_issued_all() {
    let outcome = one_thread("one thread", |ends| {
        ends[0].all_reduce()?;
        ends[0].wait()
    });
    let (verdict, text) = outcome.verdict(ErrorKind::Deadlock);
    assert_eq!(verdict.kind, VerdictKind::MissingRank);
    contains(
        &text,
        &[
            "rank 1 of 'test' never issues its side of all_reduce #0, for which rank 0 waits",
            "rank 0: all_reduce #0 of 4 × f32, sum (crates/backend-mock/tests/verdicts.rs:",
            "waiting for rank 1; on stream 0x",
            "rank 1: nothing; its thread '",
        ],
    );
    assert_eq!(verdict.ranks[0].operation.as_ref().unwrap().operation, "all_reduce");
    assert!(verdict.ranks[1].operation.is_none());
}

/// Two ranks on one thread.
fn one_thread(name: &str, body: impl FnOnce(&[End]) -> Result<()> + Send + 'static) -> Outcome {
    let mock = Mock::new(MockConfig::new().with_devices(2));
    let clock = Arc::new(Clock(Mutex::new(Instant::now())));
    let (tell, told) = mpsc::channel();
    let (driver, at) = (mock.clone(), Arc::clone(&clock));
    thread::spawn(move || {
        let comms = driver.join_all(JoinAllConfig::new([0, 1]).with_name("test")).unwrap();
        let ends: Vec<_> = comms.into_iter().map(|comm| End::new(&driver, comm, &at)).collect();
        tell.send((0, body(&ends).err(), Instant::now())).unwrap();
    });
    collect(name, &mock, 1, &clock, &told)
}

#[test]
fn a_deadline_far_away_is_no_hope_and_a_near_one_is() {
    let outcome = one_thread("deadline", |ends| {
        ends[0].all_reduce()?;
        let soon = Some(Duration::from_millis(30));
        let error = ends[0].wait_for(ends[0].stream, soon).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
        ends[0].wait_for(ends[0].stream, Some(PATIENCE))
    });
    outcome.verdict(ErrorKind::Deadlock);
}

#[test]
fn a_rank_that_sleeps_outside_the_library() {
    let never = Mutex::new(None);
    let outcome = world("asleep", 2, move |end| {
        if end.rank() == 1 {
            let (sender, receiver) = mpsc::channel::<()>();
            *never.lock().unwrap() = Some(sender);
            thread::spawn(move || drop((receiver.recv().is_ok(), end)));
            // The end lives on in a thread that never calls.
            return Ok(());
        }
        end.all_reduce()?;
        end.wait()
    });
    let error = outcome.errors[0].as_ref().unwrap();
    assert_eq!(error.kind(), ErrorKind::Remote, "{error}");
    assert_eq!(outcome.verdicts[0].kind, VerdictKind::RankEnded);
    contains(
        error.message(),
        &["rank 1 of 'world' has ended without issuing its side of all_reduce #0", "'rank 1'"],
    );
}

#[test]
fn a_rank_that_waits_at_a_barrier_of_its_own() {
    let barrier = Arc::new(Barrier::new(2));
    let outcome = world("own barrier", 2, move |end| {
        if end.rank() == 0 {
            end.all_reduce()?;
            let outcome = end.wait();
            barrier.wait();
            return outcome;
        }
        barrier.wait();
        end.all_reduce()
    });
    assert_eq!(outcome.verdicts[0].kind, VerdictKind::MissingRank);
    contains(&outcome.verdicts[0].to_string(), &["rank 1: nothing; its thread 'rank 1' sleeps"]);
    assert_eq!(outcome.errors[0].as_ref().unwrap().kind(), ErrorKind::Deadlock);
    assert_eq!(outcome.errors[1].as_ref().unwrap().kind(), ErrorKind::Deadlock);
}

#[test]
fn a_rank_that_returned_or_panicked() {
    for panics in [false, true] {
        let outcome = world(if panics { "panicked" } else { "returned" }, 3, move |end| {
            end.all_reduce()?;
            end.wait()?;
            if end.rank() == 1 {
                assert!(!panics, "this panic is part of the test");
                return Ok(());
            }
            end.all_reduce()?;
            end.wait()
        });
        for rank in [0, 2] {
            let error = outcome.errors[rank].as_ref().unwrap();
            assert_eq!(error.kind(), ErrorKind::Remote);
            contains(error.message(), &["rank 1 left the communicator", "all_reduce #1"]);
        }
    }
}

#[test]
fn an_end_that_outlives_its_thread() {
    let kept = Arc::new(Mutex::new(Vec::new()));
    let outcome = world("thread ended", 3, move |end| {
        end.all_reduce()?;
        end.wait()?;
        if end.rank() == 1 {
            kept.lock().unwrap().push(end);
            return Ok(());
        }
        end.all_reduce()?;
        end.wait()
    });
    let error = outcome.errors[0].as_ref().unwrap();
    assert_eq!(error.kind(), ErrorKind::Remote);
    assert_eq!(outcome.verdicts[0].kind, VerdictKind::RankEnded);
    contains(
        error.message(),
        &[
            "rank 1 of 'world' has ended without issuing its side of all_reduce #1",
            "ranks 0, 2: all_reduce #1 of 4 × f32, sum",
            "rank 1: nothing; its thread 'rank 1' has ended",
        ],
    );
}

#[test]
fn ranks_that_disagree_on_a_collective() {
    type Call = fn(&End) -> Result<()>;
    let usual: Call = |end| end.all_reduce();
    let cases: [(&str, Call, &str); 4] = [
        ("operation", |end| end.broadcast(0), "broadcast of 4 × f32, root 0"),
        (
            "count",
            |end| end.reduce_on(&end.comm, 5, DType::F32, ReduceOp::Sum, end.stream),
            "all_reduce of 5 × f32, sum",
        ),
        (
            "dtype",
            |end| end.reduce_on(&end.comm, 4, DType::I32, ReduceOp::Sum, end.stream),
            "all_reduce of 4 × i32, sum",
        ),
        (
            "reduce op",
            |end| end.reduce_on(&end.comm, 4, DType::F32, ReduceOp::Max, end.stream),
            "all_reduce of 4 × f32, max",
        ),
    ];
    for (field, odd, text) in cases {
        disagree(field, usual, "all_reduce of 4 × f32, sum", odd, text);
    }
    disagree(
        "root",
        |end| end.broadcast(0),
        "broadcast of 4 × f32, root 0",
        |end| end.broadcast(1),
        "broadcast of 4 × f32, root 1",
    );
}

fn disagree(
    field: &'static str,
    usual: fn(&End) -> Result<()>,
    usual_text: &str,
    odd: fn(&End) -> Result<()>,
    odd_text: &str,
) {
    let outcome = world(field, 4, move |end| {
        let other = end.again("other");
        end.all_reduce()?;
        let call = if end.rank() == 2 { odd } else { usual };
        call(&end)?;
        let outcome = end.wait();
        // The other communicator works as before, also on this stream.
        end.reduce_on(&other, 3, DType::F64, ReduceOp::Prod, end.stream)?;
        end.settle();
        outcome
    });
    let (verdict, text) = outcome.verdict(ErrorKind::InvalidUsage);
    assert_eq!(verdict.kind, VerdictKind::Mismatch);
    assert!(verdict.fields.contains(&field), "{:?}", verdict.fields);
    assert_eq!(verdict.odd, [Rank::new(2)]);
    contains(
        &text,
        &[
            "ranks disagree on collective #1 in 'world'",
            &format!("rank 2 calls {odd_text}"),
            &format!("ranks 0, 1, 3 call {usual_text}"),
            "rank 2 is the odd one out",
            "^^^^",
        ],
    );
    // Both call sites.
    assert_eq!(text.matches("verdicts.rs:").count(), 2, "{text}");
}

#[test]
fn two_ranks_have_no_majority() {
    let outcome = world("two ranks", 2, |end| {
        end.reduce_on(&end.comm, 1 + end.rank(), DType::F32, ReduceOp::Sum, end.stream)?;
        end.wait()
    });
    let (verdict, text) = outcome.verdict(ErrorKind::InvalidUsage);
    assert_eq!((verdict.fields.as_slice(), verdict.odd.len()), (&["count"][..], 0));
    contains(&text, &["rank 0 calls all_reduce of 1 ×", "rank 1 calls all_reduce of 2 ×"]);
}

#[test]
fn messages_of_unequal_size() {
    let outcome = world("unequal messages", 2, |end| {
        if end.rank() == 0 {
            end.send(1, 3)?
        } else {
            end.recv(0, 4)?
        }
        end.wait()
    });
    let (verdict, text) = outcome.verdict(ErrorKind::InvalidUsage);
    assert_eq!(verdict.fields, ["count"]);
    contains(
        &text,
        &[
            "ranks disagree on message #0 in 'world'",
            "rank 0 calls send of 3 × f32, to rank 1",
            "rank 1 calls recv of 4 × f32, from rank 0",
        ],
    );
}

#[test]
fn messages_that_cross() {
    type Calls = fn(&End) -> Result<()>;
    let cases: [(&str, Calls); 2] = [
        ("ungrouped sends", |end| {
            end.send(1 - end.rank() as u32, 2)?;
            end.recv(1 - end.rank() as u32, 2)
        }),
        ("crossed receives", |end| {
            end.recv(1 - end.rank() as u32, 2)?;
            end.send(1 - end.rank() as u32, 2)
        }),
    ];
    for (name, calls) in cases {
        let outcome = world(name, 2, move |end| {
            calls(&end)?;
            end.wait()
        });
        let (verdict, text) = outcome.verdict(ErrorKind::Deadlock);
        assert_eq!(verdict.kind, VerdictKind::Cycle);
        assert_eq!(verdict.chain.len(), 2, "{text}");
        contains(&text, &["ranks 0, 1 wait for each other in 'world'", "which is behind rank"]);
    }
}

#[test]
fn a_message_to_the_wrong_rank() {
    let outcome = world("wrong peer", 3, |end| {
        match end.rank() {
            0 => end.send(2, 1)?,
            1 => end.recv(0, 1)?,
            _ => end.recv(1, 1)?,
        }
        end.wait()
    });
    let (verdict, text) = outcome.verdict(ErrorKind::Deadlock);
    assert_eq!(verdict.kind, VerdictKind::Cycle);
    contains(
        &text,
        &[
            "rank 0: send #0 of 1 × f32, to rank 2",
            "rank 1: recv #0 of 1 × f32, from rank 0",
            "rank 2: recv #0 of 1 × f32, from rank 1",
        ],
    );
}

#[test]
fn communicators_in_another_order() {
    let outcome = world("order of communicators", 2, |end| {
        let (tp, dp) = (end.again("tp"), end.again("dp"));
        let order = if end.rank() == 0 { [&tp, &dp] } else { [&dp, &tp] };
        for comm in order {
            end.reduce_on(comm, 4, DType::F32, ReduceOp::Sum, end.stream)?;
        }
        let outcome = end.wait();
        assert!(tp.poll_error().is_err() && dp.poll_error().is_err());
        // The third communicator is no part of it.
        end.all_reduce()?;
        end.settle();
        outcome
    });
    let (verdict, text) = outcome.verdict(ErrorKind::Deadlock);
    assert_eq!(verdict.kind, VerdictKind::Cycle);
    assert_eq!(verdict.communicators, ["tp", "dp"]);
    assert_eq!(verdict.ranks.len(), 4);
    contains(
        &text,
        &[
            "ranks 0, 1 wait for each other in 'tp' and 'dp'",
            "rank 0's all_reduce #0 in 'tp'",
            "waits for rank 1's all_reduce #0 in 'tp'",
            "which is behind rank 1's all_reduce #0 in 'dp'",
        ],
    );
}

#[test]
fn a_wait_for_the_sake_of_another_communicator() {
    // Rank 0's own operation on 'tp' stands behind one on 'world' that rank 1 never issues.
    let outcome = world("other communicator", 2, |end| {
        let tp = end.again("tp");
        if end.rank() == 0 {
            end.all_reduce()?;
        }
        end.reduce_on(&tp, 4, DType::F32, ReduceOp::Sum, end.stream)?;
        end.wait()
    });
    let (verdict, text) = outcome.verdict(ErrorKind::Deadlock);
    assert_eq!(verdict.kind, VerdictKind::MissingRank);
    contains(&text, &["rank 1 of 'world' issues nothing: its thread 'rank 1' waits for stream"]);
}

#[test]
fn a_split_that_one_rank_never_calls() {
    let outcome = world("split", 3, |end| {
        let other = if end.rank() == 1 {
            end.all_reduce()?;
            end.wait().map(|()| None)
        } else {
            end.clock.start();
            end.comm.split(SplitConfig::new(0))
        };
        other.map(|_| ())
    });
    let (verdict, text) = outcome.verdict(ErrorKind::Deadlock);
    assert_eq!(verdict.kind, VerdictKind::SplitIncomplete);
    contains(
        &text,
        &[
            "ranks wait in the split of 'world' for ranks that never call it",
            "rank 0: nothing; its thread 'rank 0' waits in split of 'world'",
            "rank 1: all_reduce #0 of 4 × f32, sum",
        ],
    );
}

#[test]
fn a_join_that_one_rank_never_comes_to() {
    let mock = Mock::new(MockConfig::new().with_devices(3));
    let clock = Arc::new(Clock(Mutex::new(Instant::now())));
    let (id, (tell, told)) = (mock.unique_id().unwrap(), mpsc::channel());
    for rank in [0, 2] {
        let (mock, id, clock, tell) = (mock.clone(), id.clone(), Arc::clone(&clock), tell.clone());
        let named = thread::Builder::new().name(format!("rank {rank}"));
        let run = move || {
            clock.start();
            let config = JoinConfig::new(Rank::new(rank), 3).with_device(rank as usize);
            let outcome = mock.join(&id, config.with_name("trio"));
            tell.send((rank as usize / 2, outcome.err(), Instant::now())).unwrap();
        };
        named.spawn(run).unwrap();
    }
    let outcome = collect("join", &mock, 2, &clock, &told);
    for error in outcome.errors {
        let error = error.unwrap();
        assert_eq!((error.kind(), error.operation()), (ErrorKind::Deadlock, Some("join")));
        contains(
            error.message(),
            &[
                "ranks wait in the join of 'trio' for ranks that never come",
                "rank 0: waits in join (thread 'rank 0')",
                "rank 1: has not joined, and no thread is left that could",
            ],
        );
    }
    assert_eq!(outcome.verdicts[0].kind, VerdictKind::JoinIncomplete);
}

#[test]
fn a_shrink_that_a_survivor_never_calls() {
    let kept = Mutex::new(Vec::new());
    let outcome = world("shrink", 4, move |end| {
        if end.rank() == 3 {
            return Ok(());
        }
        if end.rank() == 1 {
            // Its end lives on, and nobody calls on it again.
            kept.lock().unwrap().push(end.comm);
            return Ok(());
        }
        end.comm.revoke()?;
        end.clock.start();
        let without = |ranks: &[u32]| {
            let ranks: Vec<_> = ranks.iter().copied().map(Rank::new).collect();
            end.comm.shrink(ShrinkConfig::new(ranks).with_name("fewer"))
        };
        let error = without(&[3]).err();
        // A verdict on one shrink leaves the next one possible.
        assert_eq!(without(&[1, 3])?.info().size, 2);
        error.map_or(Ok(()), Err)
    });
    assert_eq!(outcome.verdicts.len(), 1, "{:#?}", outcome.verdicts);
    assert_eq!(outcome.verdicts[0].kind, VerdictKind::ShrinkIncomplete);
    for rank in [0, 2] {
        let error = outcome.errors[rank].as_ref().unwrap();
        assert_eq!((error.kind(), error.operation()), (ErrorKind::Deadlock, Some("shrink")));
        contains(
            error.message(),
            &[
                "ranks wait in the shrink of 'world' for ranks that never call it",
                "rank 0: nothing; its thread 'rank 0' waits in shrink of 'world'",
                "rank 1: nothing; its thread 'rank 1' has ended",
                "rank 3: has left the communicator",
                " waits in shrink of 'world' for rank 1",
            ],
        );
    }
}

#[test]
fn a_grow_whose_new_rank_never_comes() {
    let outcome = world("grow", 2, |end| {
        if end.rank() == 0 {
            end.comm.grow_id()?;
        }
        end.clock.start();
        let grown = end.comm.grow(GrowConfig::new(3).with_name("more"));
        // What could not grow is as it was.
        end.all_reduce()?;
        end.settle();
        grown.map(|_| ())
    });
    assert_eq!(outcome.verdicts.len(), 1, "{:#?}", outcome.verdicts);
    assert_eq!(outcome.verdicts[0].kind, VerdictKind::JoinIncomplete);
    for error in outcome.errors {
        let error = error.unwrap();
        assert_eq!((error.kind(), error.operation()), (ErrorKind::Deadlock, Some("grow")));
        contains(
            error.message(),
            &[
                "ranks wait in the join of 'more' for ranks that never come",
                "rank 0: waits in grow (thread 'rank 0')",
                "rank 2: has not joined, and no thread is left that could",
            ],
        );
    }
}

#[test]
fn a_grow_for_which_nobody_makes_an_id() {
    let outcome = world("grow id", 2, |end| {
        if end.rank() == 1 {
            end.recv(0, 1)?;
            return end.wait();
        }
        end.clock.start();
        end.comm.grow(GrowConfig::new(3)).map(|_| ())
    });
    let (verdict, text) = outcome.verdict(ErrorKind::Deadlock);
    assert_eq!(verdict.kind, VerdictKind::GrowIncomplete);
    contains(
        &text,
        &[
            "members of 'world' wait in grow for an id that nobody makes",
            "rank 0: nothing; its thread 'rank 0' waits in grow of 'world'",
            "rank 1: recv #0 of 1 × f32, from rank 0",
        ],
    );
}

#[test]
fn a_cycle_under_a_schedule_says_which() {
    for schedule in [Schedule::Late, Schedule::Random(3)] {
        let config = MockConfig::strict().with_schedule(schedule);
        let outcome = world_of("schedule", config, 2, |end| {
            let peer = 1 - end.rank() as u32;
            end.all_reduce()?;
            end.send(peer, 1)?;
            end.recv(peer, 1)?;
            end.wait()
        });
        let (verdict, _) = outcome.verdict(ErrorKind::Deadlock);
        assert_eq!(verdict.kind, VerdictKind::Cycle);
        let note = format!("\nunder schedule {schedule}");
        for error in outcome.errors.iter().flatten() {
            assert!(error.message().ends_with(&note), "{error}");
        }
    }
}

#[test]
fn what_a_fault_holds_up_gets_no_verdict() {
    // A verdict would take a few milliseconds.
    let a_while = Duration::from_millis(300);
    let plan = |action| FaultPlan::new().with_rule(Rule::new(action).on_rank(1).at_most(1));
    let config = |action| MockConfig::new().with_faults(plan(action));
    let meet = |end: End| {
        end.all_reduce()?;
        end.wait_for(end.stream, Some(PATIENCE))
    };
    let outcome = world_of("delay", config(Action::Delay(a_while)), 2, meet);
    assert!(outcome.verdicts.is_empty() && outcome.errors.iter().all(Option::is_none));
    let outcome = world_of("join_late", config(Action::JoinLate(a_while)), 2, meet);
    assert!(outcome.verdicts.is_empty() && outcome.errors.iter().all(Option::is_none));
    // What hangs is there to try out deadlines, not to be told.
    let barrier = Barrier::new(2);
    let outcome = world_of("hang", config(Action::Hang), 2, move |end| {
        end.all_reduce()?;
        let outcome = end.wait_for(end.stream, Some(a_while));
        barrier.wait();
        // Else the drop would wait a second for it.
        end.comm.abort_handle().abort()?;
        outcome
    });
    assert!(outcome.verdicts.is_empty(), "{:#?}", outcome.verdicts);
    for error in outcome.errors {
        let error = error.unwrap();
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
        contains(&error.to_string(), &["held by fault rule 0"]);
    }
    let outcome = hung_join(config(Action::JoinHangs), a_while);
    assert!(outcome.iter().all(|error| error.kind() == ErrorKind::Timeout), "{outcome:?}");
}

/// The errors of two ranks that join with a deadline.
fn hung_join(config: MockConfig, deadline: Duration) -> Vec<Error> {
    let mock = Mock::new(config.with_devices(2));
    let id = mock.unique_id().unwrap();
    let join = |rank: u32| {
        let config = JoinConfig::new(Rank::new(rank), 2).with_device(rank as usize);
        mock.join(&id, config.with_deadline(deadline)).unwrap_err()
    };
    thread::scope(|scope| {
        let other = scope.spawn(|| join(1));
        vec![join(0), other.join().unwrap()]
    })
}

#[test]
fn a_graph_that_is_replayed_on_one_rank() {
    let outcome = world("graph", 2, |end| {
        // SAFETY: stream and graph are alive, here and below.
        unsafe { end.device.begin_capture(end.stream) }?;
        end.all_reduce()?;
        // SAFETY: as above.
        let graph = unsafe { end.device.end_capture(end.stream) }?;
        for _ in 0..=end.rank() {
            // SAFETY: as above.
            unsafe { end.device.launch(graph, end.stream) }?;
        }
        let outcome = end.wait();
        if end.rank() == 0 {
            outcome?;
            // Waits for rank 1 in turn.
            end.recv(1, 1)?;
            return end.wait();
        }
        outcome
    });
    let (verdict, text) = outcome.verdict(ErrorKind::InvalidUsage);
    assert_eq!(verdict.kind, VerdictKind::Mismatch);
    contains(
        &text,
        &["a graph's stream", "rank 1 calls all_reduce", "rank 0 calls recv of 1 × f32"],
    );
    assert!(verdict.ranks[1].operation.as_ref().unwrap().in_graph);
}

#[test]
fn an_event_behind_what_never_happens() {
    let outcome = world("event", 2, |end| {
        let side = end.device.stream_create()?;
        let event = end.device.event_create()?;
        if end.rank() == 0 {
            end.all_reduce()?;
        } else {
            end.recv(0, 1)?;
        }
        // SAFETY: event and streams are alive, here and below.
        unsafe { end.device.record(event, end.stream) }?;
        // SAFETY: as above.
        unsafe { end.device.wait(side, event) }?;
        end.wait_for(side, None)
    });
    let (_, text) = outcome.verdict(ErrorKind::InvalidUsage);
    contains(&text, &["all_reduce", "recv"]);
}

#[test]
fn finalize_waits_in_vain_too() {
    let outcome = world("finalize", 2, |end| {
        if end.rank() == 0 {
            end.all_reduce()?
        } else {
            end.recv(0, 1)?
        }
        let End { comm, clock, .. } = end;
        clock.start();
        Box::new(comm).finalize()
    });
    outcome.verdict(ErrorKind::InvalidUsage);
}

#[test]
fn groups_that_wait_for_each_other() {
    let outcome = world("groups", 2, |end| {
        let peer = 1 - end.rank() as u32;
        // Each group sends what the other receives only in its next one.
        end.mock.group(|_| {
            end.send(peer, 1)?;
            end.send(peer, 1)
        })?;
        end.mock.group(|_| {
            end.recv(peer, 1)?;
            end.recv(peer, 1)
        })?;
        end.wait()
    });
    let (verdict, _) = outcome.verdict(ErrorKind::Deadlock);
    assert_eq!(verdict.kind, VerdictKind::Cycle);
}

#[test]
fn a_drop_does_not_wait_for_what_never_comes() {
    let start = Instant::now();
    let outcome = one_thread("drop", |ends| {
        let comm = ends[0].comm.split(SplitConfig::no_color());
        comm.map(|_| ())
    });
    // One thread cannot split for two ranks.
    outcome.verdict(ErrorKind::Deadlock);
    let mock = Mock::new(MockConfig::new().with_devices(2));
    let mut comms = mock.join_all(JoinAllConfig::new([0, 1])).unwrap();
    let (last, clock) = (comms.pop().unwrap(), Arc::new(Clock(Mutex::new(start))));
    let first = End::new(&mock, comms.pop().unwrap(), &clock);
    first.all_reduce().unwrap();
    let before = Instant::now();
    drop(first.comm);
    println!("latency of drop: {:?}", before.elapsed());
    assert!(mock.verdicts().is_empty());
    // What it issued is valid.
    let last = End::new(&mock, last, &clock);
    last.all_reduce().unwrap();
    last.wait().unwrap();
}

#[test]
fn two_hangs_at_once_are_two_verdicts() {
    let outcome = world("two hangs", 4, |end| {
        let pair = end.rank() as u32 / 2;
        let name = format!("pair {pair}");
        let half = end.comm.split(SplitConfig::new(pair).with_name(name))?.unwrap();
        let half = End { comm: half, mock: end.mock.clone(), clock: Arc::clone(&end.clock), ..end };
        half.send(1 - half.rank() as u32, 1)?;
        half.recv(1 - half.rank() as u32, 1)?;
        half.wait()
    });
    assert_eq!(outcome.verdicts.len(), 2);
    for (rank, error) in outcome.errors.iter().enumerate() {
        let error = error.as_ref().unwrap();
        contains(error.message(), &[&format!("in 'pair {}'", rank / 2)]);
        assert!(!error.message().contains(&format!("'pair {}'", 1 - rank / 2)), "{error}");
    }
}

#[test]
fn waiting_for_an_event_that_was_never_recorded_is_warned_of_once() {
    static WARNINGS: AtomicUsize = AtomicUsize::new(0);
    struct Count;
    impl tracing::Subscriber for Count {
        fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
            tracing::span::Id::from_u64(1)
        }
        fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
        fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
        fn event(&self, event: &tracing::Event<'_>) {
            if *event.metadata().level() == tracing::Level::WARN {
                WARNINGS.fetch_add(1, Ordering::SeqCst);
            }
        }
        fn enter(&self, _: &tracing::span::Id) {}
        fn exit(&self, _: &tracing::span::Id) {}
    }
    tracing::subscriber::with_default(Count, || {
        let mock = Mock::new(MockConfig::new().with_devices(1));
        let device = mock.device(0).unwrap();
        let event = device.event_create().unwrap();
        for _ in 0..2 {
            // SAFETY: the event is alive.
            unsafe { device.wait(RawStream::DEFAULT, event) }.unwrap();
        }
        // SAFETY: the default stream always lives.
        unsafe { device.synchronize(RawStream::DEFAULT, None) }.unwrap();
    });
    assert_eq!(WARNINGS.load(Ordering::SeqCst), 1);
}
