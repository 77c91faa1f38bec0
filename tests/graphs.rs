//! Graphs as programs use them: warm-up, kernels of other code, threads, alignment, and what is
//! refused. On the mock, whatever the order, and on NCCL over the mock's C ABI;
//! `COLLECTIVES_TEST_NCCL` runs them on NCCL itself instead: `default`, or a library's path.

mod mock_abi;

use std::{
    env,
    process::ExitCode,
    sync::{Arc, Barrier, Condvar, Mutex},
    thread,
    time::Duration,
};

use collectives::{
    AnyBackend, Backend, Buffer, CallConfig, Communicator, Device, Error, ErrorKind, Graph,
    JoinAllConfig, JoinConfig, ReduceOp, Result, Scope, ShrinkConfig, SplitConfig, Stream, group,
    mock::{Mock, MockConfig, Schedule},
    nccl::Nccl,
};
use libtest_mimic::{Arguments, Failed, Trial};

/// What each rank runs; the barrier holds the threads of all ranks.
type Case = fn(&AnyBackend, Communicator, &Barrier) -> Result<()>;

const CASES: &[(&str, Case)] = &[
    ("operations_groups_and_kernels_share_a_graph", operations_groups_and_kernels_share_a_graph),
    ("what_never_ran_is_not_captured", what_never_ran_is_not_captured),
    ("what_would_run_now_is_refused_in_a_capture", what_would_run_now_is_refused_in_a_capture),
    ("a_stream_that_others_capture_is_refused", a_stream_that_others_capture_is_refused),
    ("a_capture_that_others_end_is_an_error", a_capture_that_others_end_is_an_error),
    ("the_error_of_a_kernel_discards_the_capture", the_error_of_a_kernel_discards_the_capture),
    ("a_graph_keeps_what_kernels_use", a_graph_keeps_what_kernels_use),
    ("calls_are_configured_wherever_they_are_made", calls_are_configured_wherever_they_are_made),
    ("threads_that_replay_take_turns", threads_that_replay_take_turns),
    ("ranks_at_different_steps_are_told", ranks_at_different_steps_are_told),
    ("ranks_in_different_graphs_are_told", ranks_in_different_graphs_are_told),
];

/// Cases that one rank alone cannot run.
const FOR_TWO: &[(&str, Case)] =
    &[("a_run_waits_for_the_last_of_its_communicator", a_run_waits_for_the_last)];

/// All cases for so many ranks.
fn cases(size: usize) -> impl Iterator<Item = (&'static str, Case)> {
    let more = if size > 1 { FOR_TWO } else { &[] };
    CASES.iter().chain(more).copied()
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    let real = env::var("COLLECTIVES_TEST_NCCL").ok();
    #[cfg(target_os = "linux")]
    if real.is_none() && mock_abi::folder().is_none() {
        eprintln!("{}", mock_abi::run_again([]));
        return ExitCode::FAILURE;
    }
    for size in [1, 2, 3] {
        for (name, case) in cases(size) {
            trials.push(Trial::test(format!("[mock/{size} ranks] {name}"), move || {
                let random =
                    (0..4).map(|seed| MockConfig::strict().with_schedule(Schedule::Random(seed)));
                for config in random.chain([MockConfig::strict().with_schedule(Schedule::Late)]) {
                    let mock = Mock::new(config);
                    ranks(&AnyBackend::Mock(mock.clone()), size, case)?;
                    mock.check_leaks()?;
                }
                Ok(())
            }));
        }
    }
    let folder = mock_abi::folder().filter(|_| real.is_none());
    let nccl = match (&real, folder) {
        (Some(path), _) if path == "default" => Some(Nccl::load()),
        (Some(path), _) => Some(Nccl::load_from(path)),
        (None, Some(folder)) => Some(Nccl::load_from(folder.join("libnccl.so.2"))),
        (None, None) => None,
    };
    if let Some(nccl) = nccl {
        let nccl = nccl.unwrap_or_else(|error| panic!("{error}"));
        let devices = nccl.device_count().unwrap_or_else(|error| panic!("{error}"));
        for size in [1, 2, 3].into_iter().filter(|&size| size <= devices) {
            for (name, case) in cases(size) {
                let backend = AnyBackend::Nccl(nccl.clone());
                let name = format!("[nccl {}/{size} ranks] {name}", nccl.info().version);
                trials.push(Trial::test(name, move || ranks(&backend, size, case)));
            }
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn ranks(backend: &AnyBackend, size: usize, case: Case) -> Result<(), Failed> {
    let id = backend.unique_id()?;
    let barrier = Arc::new(Barrier::new(size));
    let run = |rank| {
        let (backend, id, barrier) = (backend.clone(), id.clone(), Arc::clone(&barrier));
        thread::spawn(move || {
            let comm = Communicator::join(&backend, &id, JoinConfig::new(rank, size))?;
            case(&backend, comm, &barrier)
        })
    };
    let threads: Vec<_> = (0..size as u32).map(run).collect();
    for (rank, thread) in threads.into_iter().enumerate() {
        let outcome = thread.join().map_err(|_| Failed::from(format!("rank {rank} panicked")))?;
        outcome.map_err(|error: Error| format!("rank {rank}: {error}"))?;
    }
    Ok(())
}

fn warm(comm: &Communicator) -> Result<Stream> {
    let stream = comm.new_stream()?;
    comm.on(&stream).warm_up()?;
    Ok(stream)
}

/// Stands for a kernel, on every backend: copies a buffer's memory to another's.
fn copies(scope: &Scope, from: &Buffer<f32>, to: &mut Buffer<f32>) -> Result<()> {
    let bytes = size_of::<f32>() * from.len().min(to.len());
    let (from, to) = (scope.reads(from)?, scope.writes(to)?);
    let copy = |raw| {
        // SAFETY: both are as long, and the graph keeps them.
        unsafe { scope.device().copy_between(to.cast(), from.cast(), bytes, raw) }
    };
    // SAFETY: it enqueues on that stream alone.
    unsafe { scope.launch_with(copy) }
}

fn refused(what: &str, outcome: Result<()>) {
    let error = outcome.expect_err(what);
    assert_eq!(error.kind(), ErrorKind::InvalidUsage, "{what}: {error}");
    assert!(!error.poisons_communicator(), "{what}: {error}");
}

fn works(comm: &Communicator) -> Result<()> {
    let stream = comm.new_stream()?;
    let mut buffer = stream.upload(&[1_i32])?;
    comm.on(&stream).all_reduce_in_place(&mut buffer, ReduceOp::Sum)?;
    assert_eq!(buffer.to_vec(&stream)?, [comm.size() as i32]);
    Ok(())
}

fn operations_groups_and_kernels_share_a_graph(
    _: &AnyBackend,
    comm: Communicator,
    _: &Barrier,
) -> Result<()> {
    let stream = warm(&comm)?;
    let (rank, size) = (comm.rank(), comm.size() as u32);
    let (next, previous) = ((rank + 1) % size, (rank + size - 1) % size);
    let mut input = stream.zeros::<f32>(4)?;
    let mut middle = stream.zeros::<f32>(4)?;
    let mut theirs = stream.zeros::<f32>(4)?;
    let mut sum = stream.zeros::<f32>(4)?;
    let mut all = stream.zeros::<f32>(4 * size as usize)?;
    let graph = comm.capture(|scope| {
        copies(scope, &input, &mut middle)?;
        scope.group(|group| {
            group.on(&comm).send(&middle, next)?;
            group.on(&comm).recv(&mut theirs, previous)
        })?;
        scope.on(&comm).all_reduce(&theirs, &mut sum, ReduceOp::Sum)?;
        copies(scope, &sum, &mut middle)?;
        scope.group(|group| {
            group.on(&comm).all_gather(&theirs, &mut all)?;
            group.on(&comm).broadcast_in_place(&mut middle, 0)
        })
    })?;
    for step in 1..=3 {
        let value = |rank: u32| (10 * step + rank) as f32;
        input.copy_from_slice(&[value(rank); 4], &stream)?;
        graph.launch(&stream)?;
        let want: f32 = (0..size).map(value).sum();
        assert_eq!(middle.to_vec(&stream)?, [want; 4]);
        let want: Vec<_> =
            (0..size).flat_map(|rank| [value((rank + size - 1) % size); 4]).collect();
        assert_eq!(all.to_vec(&stream)?, want);
    }
    Ok(())
}

fn what_never_ran_is_not_captured(_: &AnyBackend, comm: Communicator, _: &Barrier) -> Result<()> {
    let stream = comm.new_stream()?;
    let mut buffer = stream.upload(&[1.0_f32])?;
    let mut all = stream.zeros::<f32>(comm.size())?;
    let mut sums = |comm: &Communicator| {
        comm.capture(|scope| scope.on(comm).all_reduce_in_place(&mut buffer, ReduceOp::Sum))
    };
    refused("a sum that never ran", sums(&comm).map(drop));
    works(&comm)?;
    let graph = sums(&comm)?;
    let gathers =
        comm.capture(|scope| scope.group(|group| group.on(&comm).all_gather_in_place(&mut all)));
    refused("another operation, in a group", gathers.map(drop));
    let exchange = |comm: &Communicator, all: &mut Buffer<f32>| {
        let one = comm.new_stream()?.zeros::<f32>(1)?;
        comm.capture(|scope| {
            scope.group(|group| {
                group.on(comm).send(&one, comm.rank())?;
                group.on(comm).recv(all.slice_mut(..1), comm.rank())
            })
        })
    };
    refused("a message", exchange(&comm, &mut all).map(drop));
    comm.on(&stream).warm_up()?;
    exchange(&comm, &mut all)?;

    // A part has connections of its own.
    let part = comm.split(SplitConfig::new(0))?.expect("it has a colour");
    refused("a sum of a part", sums(&part).map(drop));
    part.assume_warmed_up();
    sums(&part)?;
    graph.launch(&stream)?;
    stream.synchronize()?;
    works(&comm)
}

fn what_would_run_now_is_refused_in_a_capture(
    backend: &AnyBackend,
    comm: Communicator,
    _: &Barrier,
) -> Result<()> {
    let stream = warm(&comm)?;
    let mut buffer = stream.upload(&[1.0_f32])?;
    let mut other = stream.upload(&[1.0_f32])?;
    let earlier =
        comm.capture(|scope| scope.on(&comm).all_reduce_in_place(&mut other, ReduceOp::Sum))?;
    let graph = comm.capture(|scope| {
        refused("an operation", comm.on(&stream).all_reduce_in_place(&mut other, ReduceOp::Sum));
        let grouped =
            group(|g| g.on(&comm, &stream).all_reduce_in_place(&mut other, ReduceOp::Sum));
        refused("a group", grouped);
        refused("a launch", earlier.launch(&stream));
        refused("a capture", comm.capture(|_| Ok(())).map(drop));
        let join = Communicator::join_all(backend, JoinAllConfig::new([0]));
        refused("a join of all", join.map(drop));
        let id = backend.unique_id()?;
        refused("a join", Communicator::join(backend, &id, JoinConfig::new(0, 1)).map(drop));
        refused("a split", comm.split(SplitConfig::new(0)).map(drop));
        refused("a shrink", comm.shrink(ShrinkConfig::new([0; 0])).map(drop));
        refused("an allocation", comm.alloc::<f32>(1, &stream).map(drop));
        refused("a suspension", comm.suspend());
        scope.on(&comm).all_reduce_in_place(&mut buffer, ReduceOp::Sum)
    })?;
    graph.launch(&stream)?;
    assert_eq!(buffer.to_vec(&stream)?, [comm.size() as f32]);
    assert_eq!(other.to_vec(&stream)?, [1.0]);
    works(&comm)
}

fn a_stream_that_others_capture_is_refused(
    _: &AnyBackend,
    comm: Communicator,
    _: &Barrier,
) -> Result<()> {
    let stream = warm(&comm)?;
    let device = comm.device();
    let mut buffer = stream.upload(&[1.0_f32])?;
    let from = stream.upload(&[2.0_f32])?;
    let graph =
        comm.capture(|scope| scope.on(&comm).all_reduce_in_place(&mut buffer, ReduceOp::Sum))?;
    stream.synchronize()?;

    let raw = device.stream_create()?;
    // SAFETY: it is destroyed below, after everything that keeps the result is gone.
    let theirs = unsafe { Stream::from_raw(device, raw) };
    // SAFETY: the stream is alive.
    unsafe { device.begin_capture(raw) }?;
    refused("zeros", theirs.zeros::<f32>(1).map(drop));
    refused("an upload", theirs.upload(&[1.0_f32]).map(drop));
    refused("memory of the library", comm.alloc::<f32>(1, &theirs).map(drop));
    refused("registered memory", comm.alloc_registered::<f32>(1, &theirs).map(drop));
    refused("a copy to the host", buffer.to_vec(&theirs).map(drop));
    refused("a copy from the host", buffer.copy_from_slice(&[3.0], &theirs));
    refused("a copy", buffer.copy_from(&from, &theirs));
    refused("an operation", comm.on(&theirs).all_reduce_in_place(&mut buffer, ReduceOp::Sum));
    refused("a barrier", comm.on(&theirs).barrier());
    refused("a warm-up", comm.on(&theirs).warm_up());
    let grouped = group(|g| g.on(&comm, &theirs).all_reduce_in_place(&mut buffer, ReduceOp::Sum));
    refused("a group", grouped);
    refused("a launch", graph.launch(&theirs));
    refused("a wait", theirs.synchronize());
    // SAFETY: the stream is alive.
    assert!(unsafe { device.is_capturing(raw) }?, "nothing has ended or broken the capture");
    // SAFETY: this thread began the capture.
    let empty = unsafe { device.end_capture(raw) }?;
    // SAFETY: a graph of this device, launched nowhere.
    unsafe { device.graph_destroy(empty) }?;

    // And is good for all of it now.
    comm.on(&theirs).all_reduce_in_place(&mut buffer, ReduceOp::Sum)?;
    assert_eq!(buffer.to_vec(&theirs)?, [comm.size() as f32]);
    drop((buffer, from, graph, comm));
    let device = theirs.device().clone();
    drop(theirs);
    // SAFETY: nobody holds it any more.
    unsafe { device.stream_destroy(raw) }
}

fn a_capture_that_others_end_is_an_error(
    _: &AnyBackend,
    comm: Communicator,
    _: &Barrier,
) -> Result<()> {
    let stream = warm(&comm)?;
    let mut buffer = stream.upload(&[1.0_f32])?;
    let outcome = comm.capture(|scope| {
        let device = scope.device();
        let end = |raw| {
            // SAFETY: this thread began the capture.
            let graph = unsafe { device.end_capture(raw) }?;
            // SAFETY: nobody else knows the graph.
            unsafe { device.graph_destroy(graph) }
        };
        // SAFETY: against the contract, as the check is to notice: the capture ends.
        let ended = unsafe { scope.launch_with(end) };
        refused("an ended capture", ended);
        Ok(())
    });
    refused("a capture that was ended", outcome.map(drop));
    comm.on(&stream).all_reduce_in_place(&mut buffer, ReduceOp::Sum)?;
    assert_eq!(buffer.to_vec(&stream)?, [comm.size() as f32]);
    Ok(())
}

fn the_error_of_a_kernel_discards_the_capture(
    _: &AnyBackend,
    comm: Communicator,
    _: &Barrier,
) -> Result<()> {
    let stream = warm(&comm)?;
    let mut buffer = stream.upload(&[1.0_f32])?;
    let outcome = comm.capture(|scope| {
        scope.on(&comm).all_reduce_in_place(&mut buffer, ReduceOp::Sum)?;
        let failure = || Err::<(), _>(Error::new(ErrorKind::System, "no such kernel"));
        // SAFETY: nothing is enqueued.
        let failed = unsafe { scope.launch_with(|_| failure()) };
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::System);
        Ok(())
    });
    let error = outcome.expect_err("the kernel failed, though the body ignores it");
    assert!(error.to_string().contains("no such kernel"), "{error}");
    assert_eq!(buffer.to_vec(&stream)?, [1.0]);
    works(&comm)
}

fn a_graph_keeps_what_kernels_use(_: &AnyBackend, comm: Communicator, _: &Barrier) -> Result<()> {
    let stream = warm(&comm)?;
    let from = stream.upload(&[comm.rank() as f32 + 1.0])?;
    let mut to = stream.zeros::<f32>(1)?;
    let handle = Arc::new(());
    let graph = comm.capture(|scope| {
        copies(scope, &from, &mut to)?;
        scope.keep(Arc::clone(&handle));
        scope.on(&comm).all_reduce_in_place(&mut to, ReduceOp::Sum)
    })?;
    drop(from);
    // May get the memory of what was dropped, if the graph did not own it.
    let _others = [stream.upload(&[-9.0_f32])?, stream.upload(&[-9.0_f32])?];
    graph.launch(&stream)?;
    let want: usize = (1..=comm.size()).sum();
    assert_eq!(to.to_vec(&stream)?, [want as f32]);
    graph.launch(&stream)?;
    assert_eq!(Arc::strong_count(&handle), 2);
    drop(graph);
    assert_eq!(Arc::strong_count(&handle), 1);
    Ok(())
}

/// Whose turn it is to enqueue: threads take turns in the same order on every rank.
#[derive(Default)]
struct Turn(Mutex<usize>, Condvar);

impl Turn {
    fn take(&self, own: usize, enqueue: impl FnOnce() -> Result<()>) -> Result<()> {
        let turn = self.0.lock().unwrap();
        let mut turn = self.1.wait_while(turn, |turn| *turn % 2 != own).unwrap();
        let outcome = enqueue();
        *turn += 1;
        self.1.notify_all();
        outcome
    }
}

/// Two threads of each rank launch graphs of one communicator, each on a stream of its own. A graph has
/// several operations, so runs that overlap would mix them up.
/// That a configuration arrives shows in the refusal of one that cannot be.
fn calls_are_configured_wherever_they_are_made(
    _: &AnyBackend,
    comm: Communicator,
    _: &Barrier,
) -> Result<()> {
    let stream = warm(&comm)?;
    let mut value = stream.upload(&[1.0_f32])?;
    let impossible = CallConfig::new().with_ctas(0..=2);
    let available = comm.capabilities().call_config.is_available();
    let eager =
        comm.on(&stream).with_config(&impossible).all_reduce_in_place(&mut value, ReduceOp::Sum);
    let grouped = group(|g| {
        g.on(&comm, &stream).all_reduce_in_place(&mut value, ReduceOp::Sum)?;
        g.on(&comm, &stream).with_config(&impossible).barrier()
    });
    let captured = comm.capture(|scope| {
        scope.on(&comm).with_config(&impossible).all_reduce_in_place(&mut value, ReduceOp::Sum)
    });
    let in_group_of_graph = comm.capture(|scope| {
        scope.group(|g| {
            g.on(&comm).with_config(&impossible).all_reduce_in_place(&mut value, ReduceOp::Sum)
        })
    });
    for outcome in [eager, grouped, captured.map(drop), in_group_of_graph.map(drop)] {
        let error = outcome.expect_err("no thread blocks at all");
        let kind = if available { ErrorKind::InvalidArgument } else { ErrorKind::Unsupported };
        assert_eq!(error.kind(), kind, "{error}");
    }
    assert_eq!(value.to_vec(&stream)?, [1.0]);
    if !available {
        return Ok(());
    }
    let few = CallConfig::new().with_ctas(1..=2);
    comm.on(&stream).with_config(&few).warm_up()?;
    group(|g| {
        g.on(&comm, &stream).with_config(&few).all_reduce_in_place(&mut value, ReduceOp::Sum)
    })?;
    let graph = comm.capture(|scope| {
        scope.on(&comm).with_config(&few).all_reduce_in_place(&mut value, ReduceOp::Sum)
    })?;
    graph.launch(&stream)?;
    assert_eq!(value.to_vec(&stream)?, [(comm.size() as f32).powi(2)]);
    Ok(())
}

fn threads_that_replay_take_turns(_: &AnyBackend, comm: Communicator, _: &Barrier) -> Result<()> {
    const RUNS: i32 = 8;
    let stream = warm(&comm)?;
    let capture = |factor: f32| -> Result<(Graph, Buffer<f32>)> {
        let mut value = stream.upload(&[factor; 64])?;
        let mut sum = stream.zeros::<f32>(64)?;
        let mut most = stream.zeros::<f32>(64)?;
        let graph = comm.capture(|scope| {
            scope.on(&comm).all_reduce(&value, &mut sum, ReduceOp::Sum)?;
            scope.on(&comm).all_reduce(&sum, &mut most, ReduceOp::Max)?;
            copies(scope, &most, &mut value)
        })?;
        Ok((graph, value))
    };
    let graphs = [capture(1.0)?, capture(3.0)?];
    stream.synchronize()?;
    let turn = Turn::default();
    let size = comm.size() as f32;
    let device = comm.device();
    thread::scope(|threads| {
        let run = |(own, (graph, value)): (usize, (Graph, Buffer<f32>))| {
            let turn = &turn;
            threads.spawn(move || {
                let stream = Stream::new(device)?;
                for _ in 0..RUNS {
                    turn.take(own, || graph.launch(&stream))?;
                }
                let factor = [1.0, 3.0][own];
                assert_eq!(value.to_vec(&stream)?, [factor * size.powi(RUNS); 64]);
                Ok(())
            })
        };
        let threads: Vec<_> = graphs.into_iter().enumerate().map(run).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no thread panics"))
    })?;
    works(&comm)
}

/// A graph that is held up holds up the next of its communicator, on another stream, and so on. A library
/// may order the operations of a communicator itself; runs as a whole it does not.
fn a_run_waits_for_the_last(
    backend: &AnyBackend,
    comm: Communicator,
    ranks: &Barrier,
) -> Result<()> {
    // Of this rank alone, so that nothing but the order of runs holds them up.
    let alone = || -> Result<Communicator> {
        let config = JoinAllConfig::new([comm.info().device]);
        let comm = Communicator::join_all(backend, config)?.remove(0);
        warm(&comm)?.synchronize()?;
        Ok(comm)
    };
    let [one, two] = [alone()?, alone()?];
    let streams = [comm.new_stream()?, comm.new_stream()?, comm.new_stream()?];
    let capture = |comms: &[&Communicator]| {
        one.capture(|scope| {
            comms.iter().try_for_each(|comm| {
                let mut value = comm.new_stream()?.zeros::<f32>(1)?;
                scope.on(comm).all_reduce_in_place(&mut value, ReduceOp::Sum)
            })
        })
    };
    let graphs = [capture(&[&one])?, capture(&[&two, &one])?, capture(&[&two])?];
    let (held, free) = (&streams[0], &streams[2]);
    comm.on(held).warm_up()?;
    held.synchronize()?;

    let device = comm.device();
    let event = device.event_create()?;
    ranks.wait();
    let last = comm.rank() as usize == comm.size() - 1;
    if !last {
        comm.on(held).barrier()?;
    }
    for (graph, stream) in graphs.iter().zip(&streams) {
        graph.launch(stream)?;
    }
    // SAFETY: event and stream are alive, and of this device.
    unsafe { device.record(event, free.as_raw()) }?;
    if !last {
        thread::sleep(Duration::from_millis(30));
        // SAFETY: the event is alive.
        assert!(!unsafe { device.query(event) }?, "it ran past one that is held up");
    }
    ranks.wait();
    if last {
        comm.on(held).barrier()?;
    }
    free.synchronize()?;
    held.synchronize()?;
    // SAFETY: the event is alive.
    assert!(unsafe { device.query(event) }?);
    // SAFETY: nobody uses it any more.
    unsafe { device.event_destroy(event) }
}

fn ranks_at_different_steps_are_told(
    _: &AnyBackend,
    comm: Communicator,
    _: &Barrier,
) -> Result<()> {
    let stream = warm(&comm)?;
    let mut value = stream.upload(&[1.0_f32])?;
    let graph = comm
        .capture_aligned(|scope| scope.on(&comm).all_reduce_in_place(&mut value, ReduceOp::Sum))?;
    for step in 0..3 {
        graph.launch_step(step, &stream)?;
    }
    // One step without a check.
    graph.launch(&stream)?;
    let size = comm.size() as f32;
    assert_eq!(value.to_vec(&stream)?, [size.powi(4)]);
    if comm.size() == 1 {
        return Ok(());
    }
    // The last rank is a step behind.
    let last = comm.rank() as usize == comm.size() - 1;
    let error = graph.launch_step(if last { 3 } else { 4 }, &stream).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidUsage, "{error}");
    assert_eq!(error.operation(), Some("launch_step"), "{error}");
    let behind = format!("rank {} at step 3 of graph 0", comm.size() - 1);
    assert!(error.message().ends_with(&behind), "{error}");
    assert_eq!(value.to_vec(&stream)?, [size.powi(4)], "nothing was launched");
    graph.launch_step(4, &stream)?;
    assert_eq!(value.to_vec(&stream)?, [size.powi(5)]);
    works(&comm)
}

fn ranks_in_different_graphs_are_told(
    _: &AnyBackend,
    comm: Communicator,
    _: &Barrier,
) -> Result<()> {
    let stream = warm(&comm)?;
    let mut small = stream.upload(&[1.0_f32; 8])?;
    let mut large = stream.upload(&[1.0_f32; 16])?;
    let graphs = [
        comm.capture_aligned(|scope| {
            scope.on(&comm).all_reduce_in_place(&mut small, ReduceOp::Sum)
        })?,
        comm.capture_aligned(|scope| {
            scope.on(&comm).all_reduce_in_place(&mut large, ReduceOp::Sum)
        })?,
    ];
    // Rank 0 counts a smaller batch than the others.
    let mine = &graphs[usize::from(comm.rank() > 0)];
    let outcome = mine.launch_step(7, &stream);
    if comm.size() > 1 {
        let error = outcome.unwrap_err();
        assert!(error.message().contains("rank 0 at step 7 of graph 0, rank"), "{error}");
        graphs[1].launch_step(7, &stream)?;
    }
    assert_eq!(graphs.each_ref().map(|graph| graph.number()), [0, 1]);
    stream.synchronize()?;
    works(&comm)
}
