//! The watchdog on the mock, and on NCCL over the mock's C ABI with its faults: what hangs or fails
//! ends with an error that names it, and what is only slow is left alone.

mod mock_abi;

use std::{
    process::ExitCode,
    sync::{Arc, Barrier},
    thread,
    time::{Duration, Instant},
};

use collectives::{
    AnyBackend, Backend, Communicator, Error, ErrorKind, JoinConfig, Rank, ReduceOp, Result,
    ShrinkConfig, SplitConfig, Stream, UniqueId, Watch,
    mock::{Mock, MockConfig},
    nccl::Nccl,
};
use libtest_mimic::{Arguments, Failed, Trial};

/// By the communicator's name: an all-reduce of rank 1 never comes; the communicator fails.
const FAULTS: &str = r#"
[[rule]]
communicator = "hangs"
rank = 1
operation = "all_reduce"
action = "hang"

[[rule]]
communicator = "fails"
rank = 0
operation = "all_reduce"
sequence = 1
action = { async_error = { after = 0, kind = "remote" } }
"#;

/// What each of two ranks runs.
type Case = fn(&Rank2) -> Result<()>;

const CASES: &[(&str, Case)] = &[
    ("what_hangs_ends_with_its_name_and_the_job_goes_on", what_hangs_ends),
    ("the_first_call_that_hangs_is_named_with_those_behind", the_first_call_is_named),
    ("a_failure_ends_the_communicator", a_failure_ends_the_communicator),
    ("without_abort_the_rest_can_revoke_and_shrink", without_abort_the_rest_shrinks),
    ("what_is_slow_is_left_alone", what_is_slow_is_left_alone),
    ("a_refused_call_is_not_waited_for", a_refused_call_is_not_waited_for),
    ("a_capture_goes_on_under_it", a_capture_goes_on_under_it),
    ("a_replay_that_hangs_is_named", a_replay_that_hangs_is_named),
    ("an_allocation_that_not_all_come_to_is_named", an_allocation_is_named),
    ("a_part_is_watched_like_its_whole", a_part_is_watched_like_its_whole),
    ("streams_may_go_while_they_are_watched", streams_may_go),
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    #[cfg(target_os = "linux")]
    if mock_abi::folder().is_none() {
        let error = mock_abi::run_again([("COLLECTIVES_MOCK_FAULTS", FAULTS)]);
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    let mut trials = Vec::new();
    for &(name, case) in CASES {
        trials.push(Trial::test(format!("[mock] {name}"), move || on_mock(case)));
        if let Some(folder) = mock_abi::folder() {
            trials.push(Trial::test(format!("[nccl over mock-abi] {name}"), move || {
                let nccl = Nccl::load_from(folder.join("libnccl.so.2"))?;
                two_ranks(&AnyBackend::Nccl(nccl), case)
            }));
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// On a mock of its own, on which nothing may be left.
fn on_mock(case: Case) -> Result<(), Failed> {
    let plan = FAULTS.parse::<collectives::mock::FaultPlan>()?;
    let mock = Mock::new(MockConfig::new().with_faults(plan));
    two_ranks(&AnyBackend::Mock(mock.clone()), case)?;
    Ok(mock.check_leaks()?)
}

/// One of two ranks.
struct Rank2 {
    backend: AnyBackend,
    rank: u32,
    ids: Arc<Vec<UniqueId>>,
    barrier: Arc<Barrier>,
}

impl Rank2 {
    fn join(&self, nth: usize, name: &str) -> Result<Communicator> {
        let config = JoinConfig::new(self.rank, 2).with_name(name);
        Communicator::join(&self.backend, &self.ids[nth], config)
    }
}

fn two_ranks(backend: &AnyBackend, case: Case) -> Result<(), Failed> {
    let ids = Arc::new((0..2).map(|_| backend.unique_id()).collect::<Result<Vec<_>>>()?);
    let barrier = Arc::new(Barrier::new(2));
    let run = |rank| {
        let (backend, ids, barrier) = (backend.clone(), Arc::clone(&ids), Arc::clone(&barrier));
        thread::spawn(move || case(&Rank2 { backend, rank, ids, barrier }))
    };
    for (rank, thread) in [run(0), run(1)].into_iter().enumerate() {
        let outcome = thread.join().map_err(|_| Failed::from(format!("rank {rank} panicked")))?;
        outcome.map_err(|error| format!("rank {rank}: {error}"))?;
    }
    Ok(())
}

const DEADLINE: Duration = Duration::from_millis(400);

fn an_allocation_is_named(rank: &Rank2) -> Result<()> {
    let comm = rank.join(0, "slow")?;
    drop(comm.alloc_symmetric::<f32>(4)?);
    comm.watch(Watch::new().with_deadline(DEADLINE));
    if rank.rank == 0 {
        let error = comm.alloc_symmetric::<f32>(4).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
        assert!(error.to_string().contains("all_gather"), "{error}");
        assert!(error.to_string().contains("watchdog.rs"), "{error}");
    }
    rank.barrier.wait();
    Ok(())
}

fn all_reduce(comm: &Communicator, stream: &Stream) -> Result<()> {
    let mut buffer = stream.upload(&[1.0_f32; 4])?;
    comm.on(stream).all_reduce_in_place(&mut buffer, ReduceOp::Sum)
}

fn works(comm: &Communicator) -> Result<()> {
    let stream = comm.new_stream()?;
    let mut buffer = stream.upload(&[1_i32])?;
    comm.on(&stream).all_reduce_in_place(&mut buffer, ReduceOp::Sum)?;
    assert_eq!(buffer.to_vec(&stream)?, [comm.size() as i32]);
    Ok(())
}

/// Either this rank noticed that it was late, or the other did, and ended it for both.
fn check_late(error: &Error, name: &str) {
    let kinds = [ErrorKind::Timeout, ErrorKind::Remote];
    assert!(kinds.contains(&error.kind()), "{error}");
    assert!(error.poisons_communicator(), "{error}");
    assert_eq!(error.operation(), Some(name), "{error}");
    assert!(error.message().contains("tests/watchdog.rs"), "{error}");
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < limit, "not in a minute: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until the watchdog has come by, whoever noticed first.
fn condemned(comm: &Communicator) -> Error {
    let handle = comm.abort_handle();
    until("the watchdog comes by", || handle.is_aborted());
    handle.failure().expect("it was aborted")
}

fn what_hangs_ends(rank: &Rank2) -> Result<()> {
    let comm = rank.join(0, "hangs")?;
    comm.watch(Watch::new().with_deadline(DEADLINE));
    let stream = comm.new_stream()?;
    all_reduce(&comm, &stream)?;
    stream.synchronize().expect_err("it hangs");
    check_late(&condemned(&comm), "all_reduce");
    let error = stream.synchronize().expect_err("the results are not there");
    check_late(&error, "all_reduce");
    let error = all_reduce(&comm, &comm.new_stream()?).expect_err("it was aborted");
    check_late(&error, "all_reduce");
    drop((comm, stream));
    rank.barrier.wait();
    works(&rank.join(1, "again")?)
}

fn the_first_call_is_named(rank: &Rank2) -> Result<()> {
    let comm = rank.join(0, "hangs")?;
    comm.watch(Watch::new().with_deadline(DEADLINE));
    let stream = comm.new_stream()?;
    let mut buffer = stream.zeros::<u8>(2)?;
    comm.on(&stream).broadcast_in_place(&mut buffer, 0)?;
    stream.synchronize()?;
    all_reduce(&comm, &stream)?;
    comm.on(&stream).broadcast_in_place(&mut buffer, 0)?;
    stream.synchronize().expect_err("the second hangs");
    let error = condemned(&comm);
    check_late(&error, "all_reduce");
    if error.kind() == ErrorKind::Timeout {
        assert!(error.message().contains("operation 1 of"), "{error}");
        assert!(error.message().contains("the 1 behind it, up to broadcast at"), "{error}");
    }
    Ok(())
}

fn a_failure_ends_the_communicator(rank: &Rank2) -> Result<()> {
    let comm = rank.join(0, "fails")?;
    comm.watch(Watch::new());
    let stream = comm.new_stream()?;
    all_reduce(&comm, &stream)?;
    stream.synchronize()?;
    rank.barrier.wait();
    // The second fails on one rank, and the other hears of it when that one aborts.
    let issued = all_reduce(&comm, &stream).and_then(|()| stream.synchronize());
    let error = condemned(&comm);
    assert_eq!(error.kind(), ErrorKind::Remote, "{error}");
    drop(issued);
    stream.synchronize().expect_err("the communicator failed");
    Ok(())
}

fn without_abort_the_rest_shrinks(rank: &Rank2) -> Result<()> {
    let comm = rank.join(0, "hangs")?;
    comm.watch(Watch::new().with_deadline(DEADLINE).without_abort());
    let stream = comm.new_stream()?;
    all_reduce(&comm, &stream)?;
    let error = stream.synchronize().expect_err("it hangs");
    check_late(&error, "all_reduce");
    assert!(!comm.abort_handle().is_aborted(), "{error}");
    rank.barrier.wait();
    if rank.rank == 1 {
        // Its own operation is what hangs; it goes, once the other has revoked.
        rank.barrier.wait();
        return comm.abort();
    }
    comm.revoke()?;
    let rest = comm.shrink(ShrinkConfig::new([Rank::new(1)]))?;
    rank.barrier.wait();
    works(&rest)
}

fn what_is_slow_is_left_alone(rank: &Rank2) -> Result<()> {
    let comm = rank.join(0, "slow")?;
    comm.watch(Watch::new().with_deadline(DEADLINE));
    let stream = comm.new_stream()?;
    let begin = Instant::now();
    let enough = |begin: Instant| begin.elapsed() > 3 * DEADLINE;
    let mut over = false;
    while !over {
        // Both ranks stop at the same step: the first to have had enough says so.
        let mut vote = stream.upload(&[u8::from(enough(begin))])?;
        comm.on(&stream).all_reduce_in_place(&mut vote, ReduceOp::Max)?;
        thread::sleep(Duration::from_millis(20));
        over = vote.to_vec(&stream)? == [1];
    }
    // And idle for longer than the deadline.
    thread::sleep(2 * DEADLINE);
    assert!(comm.abort_handle().failure().is_none());
    works(&comm)?;
    comm.finalize()
}

fn a_refused_call_is_not_waited_for(rank: &Rank2) -> Result<()> {
    let comm = rank.join(0, "refuses")?;
    comm.watch(Watch::new().with_deadline(DEADLINE));
    let stream = comm.new_stream()?;
    let (short, mut long) = (stream.zeros::<f32>(1)?, stream.zeros::<f32>(2)?);
    let refused = comm.on(&stream).all_reduce(&short, &mut long, ReduceOp::Sum);
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidArgument);
    thread::sleep(3 * DEADLINE);
    works(&comm)?;
    comm.finalize()
}

fn a_capture_goes_on_under_it(rank: &Rank2) -> Result<()> {
    let comm = rank.join(0, "captures")?;
    comm.watch(Watch::new().with_deadline(DEADLINE));
    let stream = comm.new_stream()?;
    comm.on(&stream).warm_up()?;
    let input = stream.upload(&[1.0_f32])?;
    let mut output = stream.zeros::<f32>(1)?;
    let graph = comm.capture(|scope| {
        thread::sleep(DEADLINE / 2);
        scope.on(&comm).all_reduce(&input, &mut output, ReduceOp::Sum)?;
        thread::sleep(2 * DEADLINE);
        Ok(())
    })?;
    for _ in 0..3 {
        graph.launch(&stream)?;
        assert_eq!(output.to_vec(&stream)?, [2.0]);
    }
    drop(graph);
    works(&comm)
}

fn a_replay_that_hangs_is_named(rank: &Rank2) -> Result<()> {
    let comm = rank.join(0, "replays")?;
    comm.watch(Watch::new().with_deadline(DEADLINE));
    let stream = comm.new_stream()?;
    comm.on(&stream).warm_up()?;
    let mut buffer = stream.upload(&[1.0_f32])?;
    stream.synchronize()?;
    let graph =
        comm.capture(|scope| scope.on(&comm).all_reduce_in_place(&mut buffer, ReduceOp::Sum))?;
    // Rank 1 does not replay.
    if rank.rank == 0 {
        graph.launch(&stream)?;
        stream.synchronize().expect_err("rank 1 does not replay");
        check_late(&condemned(&comm), "launch");
    }
    rank.barrier.wait();
    Ok(())
}

fn a_part_is_watched_like_its_whole(rank: &Rank2) -> Result<()> {
    let comm = rank.join(0, "whole")?;
    comm.watch(Watch::new().with_deadline(DEADLINE));
    let part = comm.split(SplitConfig::new(0).with_name("hangs"))?.expect("it has a colour");
    let stream = part.new_stream()?;
    all_reduce(&part, &stream)?;
    stream.synchronize().expect_err("it hangs");
    check_late(&condemned(&part), "all_reduce");
    rank.barrier.wait();
    works(&comm)
}

fn streams_may_go(rank: &Rank2) -> Result<()> {
    let comm = rank.join(0, "streams")?;
    comm.watch(Watch::new().with_deadline(DEADLINE));
    let end = Instant::now() + 2 * DEADLINE;
    let stream = comm.new_stream()?;
    let mut over = false;
    while !over {
        let short = comm.new_stream()?;
        all_reduce(&comm, &short)?;
        drop(short);
        let mut vote = stream.upload(&[u8::from(Instant::now() > end)])?;
        comm.on(&stream).all_reduce_in_place(&mut vote, ReduceOp::Max)?;
        over = vote.to_vec(&stream)? == [1];
    }
    thread::sleep(2 * DEADLINE);
    comm.finalize()
}
