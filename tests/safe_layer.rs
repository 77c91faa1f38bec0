//! The safe layer: what a user does with it, and what it must refuse, on every backend at hand.
//!
//! Data of every operation, dtype and shape is `tests/conformance.rs`'s matter; here it is about
//! ownership, ordering and errors. `COLLECTIVES_TEST_NCCL` adds NCCL: `default`, or library paths
//! with a colon between; so does `COLLECTIVES_TEST_RCCL` with RCCL.

use std::{
    cell::RefCell,
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    sync::{Arc, Barrier},
    thread,
    time::Duration,
};

use collectives::{
    AnyBackend, Backend, Collectives, Communicator, Device, Error, ErrorKind, GrowConfig,
    JoinAllConfig, JoinConfig, Rank, ReduceOp, Result, ShrinkConfig, SplitConfig, Stream, UniqueId,
    group,
    mock::{Mock, MockConfig},
    nccl::Nccl,
    rccl::Rccl,
};
use libtest_mimic::{Arguments, Failed, Trial};

/// What each rank runs; the barrier holds the threads of all ranks.
type Case = fn(Communicator, &Barrier) -> Result<()>;

const CASES: &[(&str, Case)] = &[
    ("out_of_place_and_in_place_agree", out_of_place_and_in_place_agree),
    ("in_place_forms_put_parts_where_they_belong", in_place_forms_put_parts_where_they_belong),
    ("rooted_operations_take_buffers_on_root_only", rooted_operations_take_buffers_on_root_only),
    ("variable_counts_concatenate", variable_counts_concatenate),
    ("views_move_parts", views_move_parts),
    ("a_second_stream_waits_for_the_first", a_second_stream_waits_for_the_first),
    ("buffers_dropped_early_stay_until_used", buffers_dropped_early_stay_until_used),
    ("a_failed_group_launches_nothing", a_failed_group_launches_nothing),
    ("an_unwinding_group_launches_nothing", an_unwinding_group_launches_nothing),
    ("an_ignored_refusal_drops_the_group", an_ignored_refusal_drops_the_group),
    ("a_group_reads_one_buffer_on_two_streams", a_group_reads_one_buffer_on_two_streams),
    ("a_graph_replays_with_fresh_inputs", a_graph_replays_with_fresh_inputs),
    ("a_graph_owns_what_it_captured", a_graph_owns_what_it_captured),
    ("a_graph_chains_operations", a_graph_chains_operations),
    ("a_failed_capture_leaves_nothing", a_failed_capture_leaves_nothing),
    ("an_unwinding_capture_leaves_nothing", an_unwinding_capture_leaves_nothing),
    ("pre_mul_sum_lives_as_long_as_it_is_used", pre_mul_sum_lives_as_long_as_it_is_used),
    ("registered_memory_moves_data", registered_memory_moves_data),
    ("finalize_refuses_while_a_graph_holds_on", finalize_refuses_while_a_graph_holds_on),
    ("a_wait_after_abort_is_an_error", a_wait_after_abort_is_an_error),
    ("an_abort_follows_the_buffer_to_another_stream", an_abort_follows_the_buffer),
    ("what_was_not_in_a_collective_survives_an_abort", what_was_not_in_a_collective_survives),
    ("a_raw_group_is_no_place_for_buffers", a_raw_group_is_no_place_for_buffers),
    ("memory_of_the_library_moves_data", memory_of_the_library_moves_data),
    ("wrong_lengths_are_refused_and_nothing_is_lost", wrong_lengths_are_refused),
    ("refusals_name_the_call_and_its_place", refusals_name_the_call_and_its_place),
    ("split_parts_work_beside_their_parent", split_parts_work_beside_their_parent),
    ("a_barrier_orders_streams", a_barrier_orders_streams),
];

/// Cases that not every library can run: a capability by its name, and the case.
const NEEDY: &[(&[&str], &str, Case)] = &[
    (&["revoke"], "a_wait_after_a_revoke_is_an_error", a_wait_after_a_revoke_is_an_error),
    (&["revoke", "shrink"], "the_rest_goes_on_after_a_revoke", the_rest_goes_on_after_a_revoke),
    (&["shrink"], "a_shrunk_part_works_beside_its_parent", a_shrunk_part_works_beside_its_parent),
    (&["grow", "split"], "a_communicator_grows", a_communicator_grows),
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    let mock = || AnyBackend::Mock(Mock::new(MockConfig::new()));
    for size in [1, 2, 4] {
        trials.extend(CASES.iter().map(|&(name, case)| trial("mock", mock(), size, name, case)));
        trials.extend(NEEDY.iter().map(|needy| needy_trial("mock", mock(), size, needy)));
    }
    trials.push(Trial::test("[mock] what_is_alive_names_the_lines_of_the_user", || {
        what_is_alive_names_the_lines_of_the_user().map_err(Failed::from)
    }));
    trials.push(Trial::test("[mock] a_stream_of_another_device_is_refused", move || {
        a_stream_of_another_device_is_refused(&mock()).map_err(Failed::from)
    }));
    trials.push(Trial::test("[mock] a_buffer_of_another_device_is_refused", move || {
        a_buffer_of_another_device_is_refused(&mock()).map_err(Failed::from)
    }));
    trials.push(Trial::test("[mock] one_thread_drives_all_ranks", move || {
        one_thread_drives_all_ranks(&mock()).map_err(Failed::from)
    }));
    trials.push(Trial::test("[mock] a_group_is_of_one_library", move || {
        a_group_is_of_one_library(&mock(), &mock()).map_err(Failed::from)
    }));
    for (kind, variable, open) in REAL {
        match std::env::var(variable) {
            Ok(libraries) => {
                let paths = libraries.split(':').filter(|path| !path.is_empty());
                trials.extend(paths.flat_map(|path| real_trials(kind, path, open)));
            }
            Err(_) => {
                let text = format!("[{kind}] not run: set {variable} to `default` or a path");
                trials.push(Trial::test(text, || Ok(())).with_ignored_flag(true));
            }
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Opens a vendor's library: that which is found, or that of a path.
type Open = fn(&str) -> Result<AnyBackend>;

/// The vendors, what asks for their libraries, and how to open one.
const REAL: [(&str, &str, Open); 2] = [
    ("nccl", "COLLECTIVES_TEST_NCCL", |path| match path {
        "default" => Nccl::load().map(AnyBackend::Nccl),
        path => Nccl::load_from(path).map(AnyBackend::Nccl),
    }),
    ("rccl", "COLLECTIVES_TEST_RCCL", |path| match path {
        "default" => Rccl::load().map(AnyBackend::Rccl),
        path => Rccl::load_from(path).map(AnyBackend::Rccl),
    }),
];

fn real_trials(kind: &str, path: &str, open: Open) -> Vec<Trial> {
    let backend = open(path).unwrap_or_else(|error| panic!("{error}"));
    let label = format!("{kind} {}", backend.info().version);
    let devices = backend.device_count().unwrap_or_else(|error| panic!("{error}"));
    let worlds = [1, 2, 4, 8].into_iter().filter(|&size| size <= devices);
    let mut trials: Vec<_> = worlds
        .flat_map(|size| {
            let trial = |&(name, case)| trial(&label, backend.clone(), size, name, case);
            let needy = |case| needy_trial(&label, backend.clone(), size, case);
            CASES.iter().map(trial).chain(NEEDY.iter().map(needy)).collect::<Vec<_>>()
        })
        .collect();
    if devices > 1 {
        type Whole = fn(&AnyBackend) -> Result<()>;
        let whole: [(&str, Whole); 3] = [
            ("a_stream_of_another_device_is_refused", a_stream_of_another_device_is_refused),
            ("a_buffer_of_another_device_is_refused", a_buffer_of_another_device_is_refused),
            ("one_thread_drives_all_ranks", one_thread_drives_all_ranks),
        ];
        trials.extend(whole.map(|(name, case)| {
            let backend = backend.clone();
            Trial::test(format!("[{label}] {name}"), move || case(&backend).map_err(Failed::from))
        }));
    }
    trials
}

fn trial(label: &str, backend: AnyBackend, size: usize, name: &str, case: Case) -> Trial {
    Trial::test(format!("[{label}/{size} ranks] {name}"), move || {
        ranks(&backend, size, case).map_err(Failed::from)
    })
}

thread_local! {
    /// The backend of the rank that this thread runs, for cases that make communicators.
    static BACKEND: RefCell<Option<AnyBackend>> = const { RefCell::new(None) };
}

/// A trial that is skipped, by a name that says why, where the library lacks something.
fn needy_trial(
    label: &str,
    backend: AnyBackend,
    size: usize,
    &(needs, name, case): &(&[&str], &'static str, Case),
) -> Trial {
    let entries = backend.capabilities().entries();
    let lacks = entries.iter().find(|(name, has)| needs.contains(name) && !has.is_available());
    match lacks {
        Some((lack, _)) => {
            Trial::test(format!("[{label}/{size} ranks] [needs {lack}] {name}"), || Ok(()))
                .with_ignored_flag(true)
        }
        None => trial(label, backend, size, name, case),
    }
}

/// Runs `case` once per rank, each on a thread of its own; the process ends if they hang.
fn ranks(backend: &AnyBackend, size: usize, case: Case) -> Result<()> {
    let id = backend.unique_id()?;
    let barrier = Arc::new(Barrier::new(size));
    let threads: Vec<_> = (0..size as u32)
        .map(|rank| {
            let (backend, id, barrier) = (backend.clone(), id.clone(), Arc::clone(&barrier));
            thread::spawn(move || {
                BACKEND.set(Some(backend.clone()));
                let config = JoinConfig::new(rank, size);
                case(Communicator::join(&backend, &id, config)?, &barrier)
            })
        })
        .collect();
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while !threads.iter().all(thread::JoinHandle::is_finished) {
        if std::time::Instant::now() > deadline {
            eprintln!("ranks hang; the process ends, since threads cannot be");
            std::process::exit(101);
        }
        thread::sleep(Duration::from_millis(1));
    }
    threads.into_iter().try_for_each(|thread| match thread.join() {
        Ok(outcome) => outcome,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).into()));
            Err(Error::new(ErrorKind::Internal, text.unwrap_or_else(|| "a rank panicked".into())))
        }
    })
}

fn sum_of_ranks(comm: &Communicator) -> f32 {
    (0..comm.size()).map(|rank| rank as f32 + 1.0).sum()
}

fn own(comm: &Communicator) -> f32 {
    comm.rank() as f32 + 1.0
}

/// The communicator still works: the check after every refusal.
fn works(comm: &Communicator) -> Result<()> {
    let stream = comm.new_stream()?;
    let mut buffer = stream.upload(&[own(comm); 3])?;
    comm.on(&stream).all_reduce_in_place(&mut buffer, ReduceOp::Sum)?;
    assert_eq!(buffer.to_vec(&stream)?, [sum_of_ranks(comm); 3]);
    Ok(())
}

fn out_of_place_and_in_place_agree(comm: Communicator, _: &Barrier) -> Result<()> {
    let stream = comm.new_stream()?;
    let send = stream.upload(&[own(&comm); 5])?;
    let mut recv = stream.zeros(5)?;
    comm.on(&stream).all_reduce(&send, &mut recv, ReduceOp::Sum)?;
    let mut both = stream.upload(&[own(&comm); 5])?;
    comm.on(&stream).all_reduce_in_place(&mut both, ReduceOp::Sum)?;
    assert_eq!(recv.to_vec(&stream)?, [sum_of_ranks(&comm); 5]);
    assert_eq!(both.to_vec(&stream)?, recv.to_vec(&stream)?);
    comm.finalize()
}

fn in_place_forms_put_parts_where_they_belong(comm: Communicator, _: &Barrier) -> Result<()> {
    let stream = comm.new_stream()?;
    let (rank, size) = (comm.rank() as usize, comm.size());
    let all: Vec<i32> = (0..size as i32).collect();

    let mut gathered = stream.zeros::<i32>(size)?;
    gathered.slice_mut(rank..=rank).copy_from_slice(&[rank as i32], &stream)?;
    comm.on(&stream).all_gather_in_place(&mut gathered)?;
    assert_eq!(gathered.to_vec(&stream)?, all);

    comm.on(&stream).reduce_scatter_in_place(&mut gathered, ReduceOp::Sum)?;
    assert_eq!(gathered.slice(rank..=rank).to_vec(&stream)?, [(rank * size) as i32]);

    let mut rooted = match rank {
        0 => stream.zeros::<i32>(size)?,
        _ => stream.upload(&[rank as i32])?,
    };
    comm.on(&stream).gather_in_place(&mut rooted, 0)?;
    comm.on(&stream).scatter_in_place(&mut rooted, 0)?;
    let want = if rank == 0 { all } else { vec![rank as i32] };
    assert_eq!(rooted.to_vec(&stream)?, want);

    let mut sum = stream.upload(&[own(&comm)])?;
    comm.on(&stream).reduce_in_place(&mut sum, ReduceOp::Sum, 0)?;
    comm.on(&stream).broadcast_in_place(&mut sum, 0)?;
    assert_eq!(sum.to_vec(&stream)?, [sum_of_ranks(&comm)]);
    Ok(())
}

fn rooted_operations_take_buffers_on_root_only(comm: Communicator, _: &Barrier) -> Result<()> {
    let stream = comm.new_stream()?;
    let root = comm.size() as u32 - 1;
    let is_root = comm.rank() == root;
    let mine = stream.upload(&[own(&comm)])?;
    let mut sum = is_root.then(|| stream.zeros(1)).transpose()?;
    let into = sum.as_mut().map(|sum| sum.view_mut());
    comm.on(&stream).reduce(&mine, into, ReduceOp::Sum, root)?;
    let mut everywhere = stream.zeros(1)?;
    let from = sum.as_ref().map(|sum| sum.view());
    comm.on(&stream).broadcast(from, &mut everywhere, root)?;
    assert_eq!(everywhere.to_vec(&stream)?, [sum_of_ranks(&comm)]);

    let mut all = is_root.then(|| stream.zeros(comm.size())).transpose()?;
    comm.on(&stream).gather(&mine, all.as_mut().map(|all| all.view_mut()), root)?;
    let mut back = stream.zeros(1)?;
    comm.on(&stream).scatter(all.as_ref().map(|all| all.view()), &mut back, root)?;
    assert_eq!(back.to_vec(&stream)?, mine.to_vec(&stream)?);

    // Where all ranks have the buffer, they all may give it.
    let mut whole = stream.zeros(comm.size())?;
    comm.on(&stream).gather(&mine, &mut whole, root)?;
    if is_root {
        assert_eq!(whole.to_vec(&stream)?, all.as_ref().map(|all| all.to_vec(&stream)).unwrap()?);
    }
    comm.on(&stream).scatter(&whole, &mut back, root)?;
    assert_eq!(back.to_vec(&stream)?, mine.to_vec(&stream)?);
    group(|g| g.on(&comm, &stream).reduce(&mine, &mut everywhere, ReduceOp::Sum, root))?;
    comm.on(&stream).broadcast(&everywhere, &mut back, root)?;
    assert_eq!(back.to_vec(&stream)?, [sum_of_ranks(&comm)]);

    if is_root {
        let error = comm.on(&stream).reduce(&mine, None, ReduceOp::Sum, root).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    }
    works(&comm)
}

fn variable_counts_concatenate(comm: Communicator, _: &Barrier) -> Result<()> {
    let stream = comm.new_stream()?;
    let (rank, size) = (comm.rank() as usize, comm.size());
    // Rank i sends i elements, so rank 0 none.
    let counts: Vec<usize> = (0..size).collect();
    let total: usize = counts.iter().sum();
    let want: Vec<u32> = (0..size).flat_map(|peer| vec![peer as u32; peer]).collect();
    let mine = stream.upload(&vec![rank as u32; rank])?;
    let mut all = stream.zeros::<u32>(total)?;
    comm.on(&stream).all_gather_v(&mine, &mut all, &counts)?;
    assert_eq!(all.to_vec(&stream)?, want);

    let mut part = stream.zeros::<u32>(rank)?;
    comm.on(&stream).reduce_scatter_v(&all, &mut part, &counts, ReduceOp::Max)?;
    assert_eq!(part.to_vec(&stream)?, vec![rank as u32; rank]);

    let to = vec![rank; size];
    let send = stream.upload(&vec![rank as u32; rank * size])?;
    let mut recv = stream.zeros::<u32>(total)?;
    comm.on(&stream).all_to_all_v(&send, &to, &mut recv, &counts)?;
    assert_eq!(recv.to_vec(&stream)?, want);

    let mut rooted = (rank == 0).then(|| stream.zeros::<u32>(total)).transpose()?;
    let into = rooted.as_mut().map(|rooted| rooted.view_mut());
    comm.on(&stream).gather_v(&mine, into, &counts, 0)?;
    let mut back = stream.zeros::<u32>(rank)?;
    let from = rooted.as_ref().map(|rooted| rooted.view());
    comm.on(&stream).scatter_v(from, &mut back, &counts, 0)?;
    assert_eq!(back.to_vec(&stream)?, vec![rank as u32; rank]);
    Ok(())
}

fn views_move_parts(comm: Communicator, _: &Barrier) -> Result<()> {
    let stream = comm.new_stream()?;
    let mut buffer = stream.upload(&[own(&comm), 0.0, 10.0, 20.0])?;
    {
        let (mut left, right) = buffer.split_at_mut(2);
        let (from, into) = left.reborrow().split_at_mut(1);
        comm.on(&stream).all_reduce(from, into, ReduceOp::Sum)?;
        comm.on(&stream).all_reduce_in_place(right.slice_mut(1..), ReduceOp::Max)?;
    }
    let sum = sum_of_ranks(&comm);
    assert_eq!(buffer.to_vec(&stream)?, [own(&comm), sum, 10.0, 20.0]);
    let mut copy = stream.zeros::<f32>(2)?;
    copy.view_mut().copy_from(buffer.slice(1..3), &stream)?;
    assert_eq!(copy.to_vec(&stream)?, [sum, 10.0]);
    Ok(())
}

fn a_second_stream_waits_for_the_first(comm: Communicator, _: &Barrier) -> Result<()> {
    let (first, second) = (comm.new_stream()?, comm.new_stream()?);
    let len = 1 << 16;
    let mut buffer = first.upload(&vec![1.0_f32; len])?;
    for _ in 0..4 {
        comm.on(&first).all_reduce_in_place(&mut buffer, ReduceOp::Max)?;
        comm.on(&second).all_reduce_in_place(&mut buffer, ReduceOp::Sum)?;
    }
    let want = (comm.size() as f32).powi(4);
    assert_eq!(buffer.to_vec(&first)?, vec![want; len]);
    Ok(())
}

fn buffers_dropped_early_stay_until_used(comm: Communicator, _: &Barrier) -> Result<()> {
    let stream = comm.new_stream()?;
    let len = 1 << 14;
    let mut sums = stream.zeros::<f32>(len)?;
    for _ in 0..20 {
        let send = stream.upload(&vec![own(&comm); len])?;
        comm.on(&stream).all_reduce(&send, &mut sums, ReduceOp::Sum)?;
        drop(send);
        // May get the memory of the one just dropped, and must not disturb it.
        let _other = stream.upload(&vec![-1.0_f32; len])?;
    }
    assert_eq!(sums.to_vec(&stream)?, vec![sum_of_ranks(&comm); len]);
    Ok(())
}

fn a_failed_group_launches_nothing(comm: Communicator, _: &Barrier) -> Result<()> {
    let stream = comm.new_stream()?;
    let send = stream.upload(&[1.0_f32; 4])?;
    let (mut recv, mut short) = (stream.zeros(4)?, stream.zeros(3)?);
    let error = group(|g| {
        g.on(&comm, &stream).all_reduce(&send, &mut recv, ReduceOp::Sum)?;
        g.on(&comm, &stream).all_reduce(&send, &mut short, ReduceOp::Sum)
    })
    .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    let own_error = Error::new(ErrorKind::Internal, "the body's own");
    let error = group(|g| -> Result<()> {
        g.on(&comm, &stream).all_reduce(&send, &mut recv, ReduceOp::Sum)?;
        Err(own_error)
    })
    .unwrap_err();
    assert_eq!(error.message(), "the body's own");
    assert_eq!(recv.to_vec(&stream)?, [0.0; 4], "nothing was launched");
    works(&comm)
}

fn an_unwinding_group_launches_nothing(comm: Communicator, _: &Barrier) -> Result<()> {
    let stream = comm.new_stream()?;
    let mut buffer = stream.upload(&[7.0_f32; 4])?;
    let unwound = catch_unwind(AssertUnwindSafe(|| {
        group(|g| -> Result<()> {
            g.on(&comm, &stream).all_reduce_in_place(&mut buffer, ReduceOp::Sum)?;
            std::panic::resume_unwind(Box::new("on purpose"))
        })
    }));
    assert!(unwound.is_err());
    assert_eq!(buffer.to_vec(&stream)?, [7.0; 4], "nothing was launched");
    works(&comm)
}

fn an_ignored_refusal_drops_the_group(comm: Communicator, _: &Barrier) -> Result<()> {
    let stream = comm.new_stream()?;
    let mut buffer = stream.upload(&[7.0_f32; 4])?;
    let (send, mut short) = (stream.zeros::<f32>(4)?, stream.zeros(3)?);
    let error = group(|g| {
        g.on(&comm, &stream).all_reduce_in_place(&mut buffer, ReduceOp::Sum)?;
        let _ = g.on(&comm, &stream).all_reduce(&send, &mut short, ReduceOp::Sum);
        Ok(())
    })
    .unwrap_err();
    assert!(error.is_caller_bug(), "{error}");
    assert_eq!(buffer.to_vec(&stream)?, [7.0; 4], "nothing was launched");
    works(&comm)
}

fn a_group_reads_one_buffer_on_two_streams(comm: Communicator, _: &Barrier) -> Result<()> {
    let (first, second) = (comm.new_stream()?, comm.new_stream()?);
    let len = 1 << 14;
    let mut send = first.upload(&vec![own(&comm); len])?;
    let (mut a, mut b) = (first.zeros(len)?, second.zeros(len)?);
    for _ in 0..5 {
        group(|g| {
            g.on(&comm, &first).all_reduce(&send, &mut a, ReduceOp::Sum)?;
            g.on(&comm, &second).all_reduce(&send, &mut b, ReduceOp::Max)
        })?;
        // Both reads are over before this write.
        send.copy_from_slice(&vec![own(&comm); len], &first)?;
    }
    assert_eq!(a.to_vec(&first)?, vec![sum_of_ranks(&comm); len]);
    assert_eq!(b.to_vec(&first)?, vec![comm.size() as f32; len]);
    Ok(())
}

fn a_graph_replays_with_fresh_inputs(comm: Communicator, _: &Barrier) -> Result<()> {
    let (stream, other) = (comm.new_stream()?, comm.new_stream()?);
    comm.on(&stream).warm_up()?;
    let mut input = stream.zeros::<f32>(8)?;
    let mut output = stream.zeros::<f32>(8)?;
    let graph =
        comm.capture(|scope| scope.on(&comm).all_reduce(&input, &mut output, ReduceOp::Sum))?;
    assert_eq!(output.to_vec(&stream)?, [0.0; 8], "capturing runs nothing");
    for step in 1..=3 {
        // Launches and host copies on different streams are ordered all the same.
        input.copy_from_slice(&[step as f32 * own(&comm); 8], &other)?;
        graph.launch(&stream)?;
        assert_eq!(output.to_vec(&other)?, [step as f32 * sum_of_ranks(&comm); 8]);
    }
    Ok(())
}

fn a_graph_owns_what_it_captured(comm: Communicator, _: &Barrier) -> Result<()> {
    let stream = comm.new_stream()?;
    comm.on(&stream).warm_up()?;
    let op = comm.pre_mul_sum(2.0_f32)?;
    let input = stream.upload(&[own(&comm); 4])?;
    let mut middle = stream.zeros::<f32>(4)?;
    let mut output = stream.zeros::<f32>(4)?;
    let graph = comm.capture(|scope| {
        scope.on(&comm).all_reduce(&input, &mut middle, &op)?;
        scope.on(&comm).all_reduce(&middle, &mut output, ReduceOp::Max)
    })?;
    drop((input, middle, op));
    // May get the memory of what was dropped, if the graph did not own it.
    let _others = [stream.upload(&[-9.0_f32; 4])?, stream.upload(&[-9.0_f32; 4])?];
    graph.launch(&stream)?;
    assert_eq!(output.to_vec(&stream)?, [2.0 * sum_of_ranks(&comm); 4]);
    drop(comm);
    drop(graph);
    Ok(())
}

fn a_graph_chains_operations(comm: Communicator, _: &Barrier) -> Result<()> {
    let stream = comm.new_stream()?;
    comm.on(&stream).warm_up()?;
    let (rank, size) = (comm.rank(), comm.size() as u32);
    let mut mine = stream.zeros::<i32>(2)?;
    let mut theirs = stream.zeros::<i32>(2)?;
    let graph = comm.capture(|scope| {
        scope.group(|group| {
            group.on(&comm).send(&mine, (rank + 1) % size)?;
            group.on(&comm).recv(&mut theirs, (rank + size - 1) % size)
        })?;
        scope.on(&comm).all_reduce_in_place(&mut theirs, ReduceOp::Sum)
    })?;
    for step in 0..3 {
        mine.copy_from_slice(&[step, rank as i32], &stream)?;
        graph.launch(&stream)?;
        let ranks = (0..size as i32).sum();
        assert_eq!(theirs.to_vec(&stream)?, [step * size as i32, ranks]);
        // Between launches the communicator works as ever.
        works(&comm)?;
    }
    Ok(())
}

fn a_failed_capture_leaves_nothing(comm: Communicator, _: &Barrier) -> Result<()> {
    let stream = comm.new_stream()?;
    comm.on(&stream).warm_up()?;
    let send = stream.zeros::<f32>(4)?;
    let (mut recv, mut short) = (stream.zeros(4)?, stream.zeros(3)?);
    let error = comm
        .capture(|scope| {
            scope.on(&comm).all_reduce(&send, &mut recv, ReduceOp::Sum)?;
            let _ = scope.on(&comm).all_reduce(&send, &mut short, ReduceOp::Sum);
            Ok(())
        })
        .unwrap_err();
    assert!(error.is_caller_bug(), "{error}");
    works(&comm)
}

fn an_unwinding_capture_leaves_nothing(comm: Communicator, _: &Barrier) -> Result<()> {
    let stream = comm.new_stream()?;
    comm.on(&stream).warm_up()?;
    let mut buffer = stream.upload(&[3.0_f32])?;
    let unwound = catch_unwind(AssertUnwindSafe(|| {
        comm.capture(|scope| {
            scope.on(&comm).all_reduce_in_place(&mut buffer, ReduceOp::Sum)?;
            std::panic::resume_unwind(Box::new("on purpose"))
        })
    }));
    assert!(unwound.is_err());
    assert_eq!(buffer.to_vec(&stream)?, [3.0]);
    works(&comm)
}

fn pre_mul_sum_lives_as_long_as_it_is_used(comm: Communicator, _: &Barrier) -> Result<()> {
    let stream = comm.new_stream()?;
    let mut buffer = stream.upload(&[1.0_f32; 3])?;
    let op = comm.pre_mul_sum(own(&comm))?;
    group(|g| g.on(&comm, &stream).all_reduce_in_place(&mut buffer, &op))?;
    drop(op);
    assert_eq!(buffer.to_vec(&stream)?, [sum_of_ranks(&comm); 3]);
    works(&comm)
}

fn registered_memory_moves_data(comm: Communicator, _: &Barrier) -> Result<()> {
    let stream = comm.new_stream()?;
    let len = 1 << 12;
    for _ in 0..3 {
        let mut send = comm.alloc_registered::<f32>(len, &stream)?;
        let mut recv = comm.alloc_registered::<f32>(len, &stream)?;
        send.copy_from_slice(&vec![own(&comm); len], &stream)?;
        comm.on(&stream).all_reduce(&send, &mut recv, ReduceOp::Sum)?;
        assert_eq!(recv.to_vec(&stream)?, vec![sum_of_ranks(&comm); len]);
    }
    works(&comm)
}

fn finalize_refuses_while_a_graph_holds_on(comm: Communicator, _: &Barrier) -> Result<()> {
    let stream = comm.new_stream()?;
    comm.on(&stream).warm_up()?;
    let mut buffer = stream.upload(&[1.0_f32])?;
    let graph =
        comm.capture(|scope| scope.on(&comm).all_reduce_in_place(&mut buffer, ReduceOp::Sum))?;
    graph.launch(&stream)?;
    stream.synchronize()?;
    let error = comm.finalize().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidUsage, "{error}");
    drop(graph);
    Ok(())
}

fn a_wait_after_abort_is_an_error(comm: Communicator, ranks: &Barrier) -> Result<()> {
    let stream = comm.new_stream()?;
    let mut buffer = stream.upload(&[1.0_f32; 4])?;
    let graph = {
        comm.on(&stream).warm_up()?;
        comm.capture(|scope| scope.on(&comm).all_reduce_in_place(&mut buffer, ReduceOp::Sum))?
    };
    stream.synchronize()?;
    comm.on(&stream).all_reduce_in_place(&mut buffer, ReduceOp::Sum)?;
    ranks.wait();
    comm.abort_handle().abort()?;
    let aborted = |outcome: Result<()>| {
        let error = outcome.expect_err("no success after an abort");
        assert!(error.poisons_communicator(), "{error}");
    };
    aborted(stream.synchronize());
    aborted(buffer.to_vec(&stream).map(drop));
    aborted(graph.launch(&stream));
    aborted(comm.on(&stream).all_reduce_in_place(&mut buffer, ReduceOp::Sum));
    aborted(comm.poll_error());
    assert!(comm.abort_handle().is_aborted());
    Ok(())
}

fn a_wait_after_a_revoke_is_an_error(comm: Communicator, ranks: &Barrier) -> Result<()> {
    let stream = comm.new_stream()?;
    let weights = stream.upload(&[5.0_f32; 4])?;
    let mut buffer = stream.upload(&[1.0_f32; 4])?;
    let graph = {
        comm.on(&stream).warm_up()?;
        comm.capture(|scope| scope.on(&comm).all_reduce_in_place(&mut buffer, ReduceOp::Sum))?
    };
    stream.synchronize()?;
    comm.on(&stream).all_reduce_in_place(&mut buffer, ReduceOp::Sum)?;
    ranks.wait();
    comm.revoke()?;
    comm.revoke()?;
    let revoked = |outcome: Result<()>| {
        let error = outcome.expect_err("no success after a revoke");
        assert_eq!(error.kind(), ErrorKind::Revoked, "{error}");
    };
    revoked(stream.synchronize());
    revoked(buffer.to_vec(&stream).map(drop));
    revoked(graph.launch(&stream));
    revoked(comm.on(&stream).all_reduce_in_place(&mut buffer, ReduceOp::Sum));
    revoked(comm.poll_error());
    revoked(comm.split(SplitConfig::new(0)).map(drop));
    assert!(!comm.abort_handle().is_aborted());
    ranks.wait();
    drop(graph);
    comm.finalize()?;
    revoked(stream.synchronize());
    stream.forget_failures()?;
    assert_eq!(weights.to_vec(&stream)?, [5.0; 4]);
    Ok(())
}

/// What was made on the old communicator is given back to it, also after it was revoked.
fn the_rest_goes_on_after_a_revoke(comm: Communicator, ranks: &Barrier) -> Result<()> {
    works(&comm)?;
    let (rank, size) = (comm.rank(), comm.size());
    let last = Rank::new(size as u32 - 1);
    let stream = comm.new_stream()?;
    let memory = match comm.capabilities().register.is_available() {
        true => Some(comm.alloc_registered::<f32>(64, &stream)?),
        false => None,
    };
    let scaled = comm.pre_mul_sum(2.0_f32)?;
    ranks.wait();
    comm.revoke()?;
    if size == 1 || rank == last.get() {
        drop((memory, scaled));
        drop(comm);
        ranks.wait();
        return Ok(());
    }
    let rest = comm.shrink(ShrinkConfig::new([last]).with_name("rest"))?;
    assert_eq!((rest.rank(), rest.size()), (rank, size - 1));
    assert_eq!(rest.device().info().ordinal, comm.device().info().ordinal);
    drop((memory, scaled));
    drop(comm);
    // All ranks of the process have ended the old one.
    ranks.wait();
    works(&rest)?;
    rest.finalize()
}

fn a_shrunk_part_works_beside_its_parent(comm: Communicator, ranks: &Barrier) -> Result<()> {
    let error = comm.shrink(ShrinkConfig::new([0; 0])).expect_err("nobody is left out");
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    if comm.size() > 1 && comm.rank() > 0 {
        let part = comm.shrink(ShrinkConfig::new([Rank::new(0)]))?;
        assert_eq!((part.rank(), part.size()), (comm.rank() - 1, comm.size() - 1));
        works(&part)?;
        part.finalize()?;
    }
    ranks.wait();
    works(&comm)
}

fn a_communicator_grows(comm: Communicator, ranks: &Barrier) -> Result<()> {
    let (rank, size) = (comm.rank(), comm.size());
    let error = comm.grow(GrowConfig::new(size)).expect_err("no more ranks");
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    if size == 1 {
        return Ok(());
    }
    let is_new = rank as usize == size - 1;
    let config = if is_new { SplitConfig::no_color() } else { SplitConfig::new(0) };
    let members = comm.split(config)?;
    // The communicator of all brings the id to the new rank.
    let own = match &members {
        Some(members) if rank == 0 => members.grow_id()?.as_bytes().to_vec(),
        _ => vec![0; 128],
    };
    let stream = comm.new_stream()?;
    let mut id = stream.upload::<u8>(&own)?;
    comm.on(&stream).broadcast_in_place(&mut id, 0)?;
    let id = UniqueId::from_bytes(id.to_vec(&stream)?);
    let grown = match &members {
        Some(members) => members.grow(GrowConfig::new(size))?,
        None => {
            let config = JoinConfig::new(rank, size);
            let backend = BACKEND.with_borrow(|backend| backend.clone());
            Communicator::join_grown(&backend.expect("the rank has one"), &id, config)?
        }
    };
    assert_eq!((grown.rank(), grown.size()), (rank, size));
    works(&grown)?;
    drop(members);
    ranks.wait();
    grown.finalize()
}

fn an_abort_follows_the_buffer(comm: Communicator, ranks: &Barrier) -> Result<()> {
    let (first, second) = (comm.new_stream()?, comm.new_stream()?);
    let mut buffer = first.upload(&[1.0_f32; 4])?;
    comm.on(&first).all_reduce_in_place(&mut buffer, ReduceOp::Sum)?;
    ranks.wait();
    comm.abort_handle().abort()?;
    // The second stream never carried the communicator's work, but what it reads comes from it.
    let error = buffer.to_vec(&second).expect_err("no success after an abort");
    assert!(error.poisons_communicator(), "{error}");
    Ok(())
}

fn what_was_not_in_a_collective_survives(comm: Communicator, ranks: &Barrier) -> Result<()> {
    let stream = comm.new_stream()?;
    let weights = stream.upload(&[5.0_f32; 4])?;
    let mut gradients = stream.upload(&[1.0_f32; 4])?;
    comm.on(&stream).all_reduce_in_place(&mut gradients, ReduceOp::Sum)?;
    ranks.wait();
    comm.abort_handle().abort()?;
    weights.to_vec(&stream).expect_err("the stream carried the communicator's work");
    stream.forget_failures()?;
    assert_eq!(weights.to_vec(&stream)?, [5.0; 4]);
    Ok(())
}

fn a_raw_group_is_no_place_for_buffers(comm: Communicator, _: &Barrier) -> Result<()> {
    let stream = comm.new_stream()?;
    let mut buffer = stream.upload(&[1.0_f32; 4])?;
    comm.as_comm().group_start()?;
    let now = comm.on(&stream).all_reduce_in_place(&mut buffer, ReduceOp::Sum);
    let grouped = group(|g| g.on(&comm, &stream).all_reduce_in_place(&mut buffer, ReduceOp::Sum));
    comm.as_comm().group_end()?;
    for outcome in [now, grouped] {
        let error = outcome.expect_err("the raw group would outlive the call");
        assert_eq!(error.kind(), ErrorKind::InvalidUsage, "{error}");
    }
    works(&comm)
}

fn memory_of_the_library_moves_data(comm: Communicator, _: &Barrier) -> Result<()> {
    let stream = comm.new_stream()?;
    let mut buffer = comm.alloc::<f32>(5, &stream)?;
    assert_eq!(buffer.to_vec(&stream)?, [0.0; 5]);
    buffer.copy_from_slice(&[own(&comm); 5], &stream)?;
    comm.on(&stream).all_reduce_in_place(&mut buffer, ReduceOp::Sum)?;
    assert_eq!(buffer.to_vec(&stream)?, [sum_of_ranks(&comm); 5]);
    Ok(())
}

fn wrong_lengths_are_refused(comm: Communicator, _: &Barrier) -> Result<()> {
    let stream = comm.new_stream()?;
    let send = stream.zeros::<f32>(4)?;
    let mut recv = stream.zeros::<f32>(5)?;
    let wrong = [
        comm.on(&stream).all_reduce(&send, &mut recv, ReduceOp::Sum),
        comm.on(&stream).broadcast_in_place(&mut recv, 99),
        comm.on(&stream).send(&send, 99),
        comm.on(&stream).all_gather(recv.slice(..3), stream.zeros(1)?.view_mut()),
        recv.copy_from_slice(&[0.0], &stream),
    ];
    for outcome in wrong {
        let error = outcome.expect_err("wrong arguments are refused");
        assert!(error.is_caller_bug() && !error.poisons_communicator(), "{error}");
    }
    works(&comm)
}

fn split_parts_work_beside_their_parent(comm: Communicator, _: &Barrier) -> Result<()> {
    let (rank, size) = (comm.rank(), comm.size());
    // Evens and odds, in reverse order.
    let config = SplitConfig::new(rank % 2).with_key(-(rank as i32)).with_name("parity");
    let part = comm.split(config)?.expect("every rank gave a colour");
    let members = (0..size as u32).filter(|other| other % 2 == rank % 2).count();
    assert_eq!(part.size(), members);
    assert_eq!(part.rank() as usize, members - 1 - (rank / 2) as usize);
    works(&part)?;
    works(&comm)?;
    let nobody = comm.split(SplitConfig::no_color())?;
    assert!(nobody.is_none());
    works(&comm)
}

fn a_barrier_orders_streams(comm: Communicator, _: &Barrier) -> Result<()> {
    let stream = comm.new_stream()?;
    for _ in 0..3 {
        comm.on(&stream).barrier()?;
        stream.synchronize_for(Duration::from_secs(30))?;
    }
    works(&comm)
}

/// Through the dispatch and the safe layer, no line but the user's is named.
fn what_is_alive_names_the_lines_of_the_user() -> Result<()> {
    let mock = Mock::new(MockConfig::new().with_devices(2));
    let backend = AnyBackend::Mock(mock.clone());
    let first = line!() + 1;
    let comm = Communicator::join_all(&backend, JoinAllConfig::new([1]))?.remove(0);
    let stream = comm.new_stream()?;
    let zeros = stream.zeros::<f32>(4)?;
    let mut values = stream.upload(&[1.0_f32; 4])?;
    let library = comm.alloc::<f32>(4, &stream)?;
    let registered = comm.alloc_registered::<f32>(4, &stream)?;
    let scaled = comm.pre_mul_sum(2.0_f32)?;
    let part = comm.split(SplitConfig::new(0))?;
    comm.assume_warmed_up();
    let graph = comm.capture(|on| on.on(&comm).all_reduce_in_place(&mut values, ReduceOp::Sum))?;
    let last = line!() - 1;
    let alive = mock.alive();
    // A thing per line but one, and a registration.
    assert_eq!(alive.things().len() as u32, last - first + 1, "{alive}");
    for thing in alive.things() {
        assert_eq!(thing.site.file(), file!(), "{alive}");
        assert!((first..=last).contains(&thing.site.line()), "{alive}");
    }
    drop((graph, part, scaled, registered, library, values, zeros, stream));
    comm.finalize()?;
    mock.check_leaks()
}

/// Where it is called, and not where a group or a graph is closed.
fn refusals_name_the_call_and_its_place(comm: Communicator, _: &Barrier) -> Result<()> {
    let stream = comm.new_stream()?;
    comm.on(&stream).warm_up()?;
    let root = comm.size() as u32;
    let named = |error: Error, line: u32| {
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert_eq!(error.operation(), Some("broadcast"), "{error}");
        let site = format!("{}:{line}:", file!());
        assert!(error.site().is_some_and(|place| place.starts_with(&site)), "{error}");
        assert!(error.to_string().contains(&format!(", called at {site}")), "{error}");
    };
    let mut value = stream.upload(&[1.0_f32])?;
    named(comm.on(&stream).broadcast_in_place(&mut value, root).unwrap_err(), line!());
    let mut line = 0;
    let in_group = group(|g| {
        line = line!() + 1;
        g.on(&comm, &stream).broadcast_in_place(&mut value, root)?;
        g.on(&comm, &stream).barrier()
    });
    named(in_group.unwrap_err(), line);
    let in_graph = comm.capture(|scope| {
        line = line!() + 1;
        scope.on(&comm).broadcast_in_place(&mut value, root)
    });
    named(in_graph.map(drop).unwrap_err(), line);
    let error = value.copy_from_slice(&[1.0, 2.0], &stream).unwrap_err();
    assert!(error.site().is_some_and(|place| place.starts_with(file!())), "{error}");
    works(&comm)
}

fn a_stream_of_another_device_is_refused(backend: &AnyBackend) -> Result<()> {
    let comms = Communicator::join_all(backend, JoinAllConfig::new([0, 1]))?;
    let theirs = comms[1].new_stream()?;
    let mut buffer = theirs.upload(&[1.0_f32])?;
    let error = comms[0].on(&theirs).all_reduce_in_place(&mut buffer, ReduceOp::Sum).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    assert!(error.to_string().contains("device 1"), "{error}");
    assert!(error.to_string().contains("device 0"), "{error}");
    assert_eq!(error.operation(), Some("all_reduce"), "{error}");
    Ok(())
}

fn a_buffer_of_another_device_is_refused(backend: &AnyBackend) -> Result<()> {
    let comms = Communicator::join_all(backend, JoinAllConfig::new([0, 1]))?;
    let (ours, theirs) = (comms[0].new_stream()?, comms[1].new_stream()?);
    let mut buffer = theirs.upload(&[1.0_f32])?;
    let error = comms[0].on(&ours).all_reduce_in_place(&mut buffer, ReduceOp::Sum).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    let error = buffer.to_vec(&ours).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    assert_eq!(buffer.to_vec(&theirs)?, [1.0]);
    Ok(())
}

fn a_group_is_of_one_library(one: &AnyBackend, other: &AnyBackend) -> Result<()> {
    let join = |backend| Communicator::join_all(backend, JoinAllConfig::new([0]));
    let (ours, theirs) = (join(one)?.remove(0), join(other)?.remove(0));
    let streams = [ours.new_stream()?, theirs.new_stream()?];
    let mut a = streams[0].upload(&[1.0_f32])?;
    let mut b = streams[1].upload(&[1.0_f32])?;
    let error = group(|g| {
        g.on(&ours, &streams[0]).all_reduce_in_place(&mut a, ReduceOp::Sum)?;
        g.on(&theirs, &streams[1]).all_reduce_in_place(&mut b, ReduceOp::Sum)
    })
    .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidUsage, "{error}");
    works(&ours)?;
    works(&theirs)
}

fn one_thread_drives_all_ranks(backend: &AnyBackend) -> Result<()> {
    let comms = Communicator::join_all(backend, JoinAllConfig::new([0, 1]))?;
    let streams: Vec<Stream> = comms.iter().map(Communicator::new_stream).collect::<Result<_>>()?;
    let mut buffers = (0..2)
        .map(|rank| streams[rank].upload(&[rank as i64 + 1; 6]))
        .collect::<Result<Vec<_>>>()?;
    for _ in 0..3 {
        group(|g| {
            let each = comms.iter().zip(&streams).zip(&mut buffers);
            for ((comm, stream), buffer) in each {
                g.on(comm, stream).all_reduce_in_place(buffer, ReduceOp::Max)?;
            }
            Ok(())
        })?;
    }
    for (buffer, stream) in buffers.iter().zip(&streams) {
        assert_eq!(buffer.to_vec(stream)?, [2; 6]);
    }
    // A communicator moves to another thread; its buffers and streams with it.
    let barrier = Arc::new(Barrier::new(2));
    let threads: Vec<_> = comms
        .into_iter()
        .zip(streams)
        .zip(buffers)
        .map(|((comm, stream), mut buffer)| {
            let barrier = Arc::clone(&barrier);
            thread::spawn(move || -> Result<()> {
                barrier.wait();
                comm.on(&stream).all_reduce_in_place(&mut buffer, ReduceOp::Sum)?;
                assert_eq!(buffer.to_vec(&stream)?, [4; 6]);
                Ok(())
            })
        })
        .collect();
    threads.into_iter().try_for_each(|thread| thread.join().expect("a rank panicked"))
}
