//! Symmetric memory on the mock, and on NCCL and RCCL over the mock's C ABI, of releases that have
//! windows and of such that have not: the same everywhere but for the kind of memory, which says why.

mod mock_abi;

use std::{
    ffi::{CStr, c_void},
    fmt,
    path::Path,
    process::ExitCode,
    ptr,
    sync::{Arc, Barrier},
    thread,
};

use collectives::{
    AnyBackend, Backend, Buffer, Communicator, Error, ErrorKind, JoinConfig, MemoryKind, ReduceOp,
    Result, SignalWait, Stream, SymmetricPlan, UniqueId,
    mock::{FaultPlan, Mock, MockConfig},
};
use collectives_nccl_abi::Table;
use collectives_nccl_family::{Library, Vendor};
use libtest_mimic::{Arguments, Failed, Trial};

/// What each rank runs.
type Case = fn(&Rank) -> Result<()>;

const CASES: &[(&str, Case)] = &[
    ("collectives_work_in_it", collectives_work_in_it),
    ("it_says_its_kind_and_why", it_says_its_kind_and_why),
    ("places_are_equal_on_all_ranks", places_are_equal),
    ("it_is_zeroed_also_where_it_was_used_before", it_is_zeroed),
    ("different_sizes_are_told_on_every_rank", different_sizes_are_told),
    ("different_types_and_plans_are_told", different_plans_are_told),
    ("a_place_is_used_again_when_all_ranks_have_dropped_it", places_are_used_again),
    ("many_dropped_buffers_are_told_at_once", many_dropped_buffers),
    ("a_place_in_use_by_a_stream_is_not_used_again", a_place_in_use),
    ("the_heap_grows_by_segments", the_heap_grows),
    ("a_plan_is_one_stretch", a_plan_is_one_stretch),
    ("what_is_too_large_is_refused_on_all_ranks", too_large_is_refused),
    ("a_graph_owns_what_it_captured", a_graph_owns_what_it_captured),
    ("buffers_outlive_their_communicator", buffers_outlive_their_communicator),
    ("finalize_waits_for_no_buffer", finalize_waits_for_no_buffer),
    ("after_an_abort_all_is_given_back", after_an_abort),
    ("each_communicator_has_a_heap_of_its_own", each_has_its_own),
    ("what_one_rank_alone_is_refused_harms_nobody", a_refusal_of_one_rank),
    ("what_is_put_arrives", what_is_put_arrives),
    ("a_put_to_an_impossible_place_is_refused", impossible_puts_are_refused),
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    #[cfg(target_os = "linux")]
    if mock_abi::folder().is_none() {
        let error = mock_abi::run_again([]);
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    let mut trials = Vec::new();
    for &(name, case) in CASES {
        for ranks in [1, 2, 3] {
            trials.push(Trial::test(format!("[mock] {name}, {ranks} ranks"), move || {
                on_mock(case, ranks)
            }));
        }
        let Some(folder) = mock_abi::folder() else { continue };
        for &(release, exports, kind, reason) in RELEASES {
            let folder = folder.clone();
            trials.push(Trial::test(format!("[{release} over mock-abi] {name}"), move || {
                let expected = Expected { kind, reason };
                let backend = if release.starts_with("rccl") {
                    AnyBackend::Rccl(with_exports(&folder.join("librccl.so.1"), exports)?)
                } else {
                    AnyBackend::Nccl(with_exports(&folder.join("libnccl.so.2"), exports)?)
                };
                run(&backend, case, 2, expected)
            }));
        }
    }
    trials.push(Trial::test("[mock] a rank without memory is named on all", a_rank_without_memory));
    libtest_mimic::run(&arguments, trials).exit_code()
}

macro_rules! exports {
    ($name:literal) => {
        include_str!(concat!("../crates/nccl-abi/tests/symbols/", $name, ".txt"))
    };
}

/// Releases, what they export, and what their memory is.
const RELEASES: &[(&str, &str, MemoryKind, &str)] = &[
    ("nccl 2.32.3", exports!("nccl-2.32.3"), MemoryKind::Symmetric, ""),
    ("nccl 2.21.5", exports!("nccl-2.21.5"), MemoryKind::Registered, "needs version 2.27.3"),
    ("nccl 2.16.5", exports!("nccl-2.16.5"), MemoryKind::Plain, "needs version 2.19.1"),
    ("rccl 2.27.7", exports!("rccl-2.27.7"), MemoryKind::Symmetric, ""),
    ("rccl 2.13.4", exports!("rccl-2.13.4"), MemoryKind::Plain, "needs version 2.20.5"),
];

#[derive(Clone, Copy)]
struct Expected {
    kind: MemoryKind,
    /// What the reason holds.
    reason: &'static str,
}

/// On a mock of its own, on which nothing may be left.
fn on_mock(case: Case, ranks: u32) -> Result<(), Failed> {
    let mock = Mock::new(MockConfig::new());
    let expected = Expected { kind: MemoryKind::Symmetric, reason: "" };
    run(&AnyBackend::Mock(mock.clone()), case, ranks, expected)?;
    Ok(mock.check_leaks()?)
}

/// One rank.
struct Rank {
    backend: AnyBackend,
    rank: u32,
    size: u32,
    expected: Expected,
    ids: Arc<Vec<UniqueId>>,
    barrier: Arc<Barrier>,
}

impl Rank {
    fn join(&self) -> Result<Communicator> {
        self.join_nth(0)
    }

    fn join_nth(&self, nth: usize) -> Result<Communicator> {
        let config = JoinConfig::new(self.rank, self.size as usize);
        Communicator::join(&self.backend, &self.ids[nth], config.with_device(self.rank as usize))
    }

    fn is_last(&self) -> bool {
        self.rank + 1 == self.size
    }
}

fn run(backend: &AnyBackend, case: Case, size: u32, expected: Expected) -> Result<(), Failed> {
    let ids = Arc::new((0..2).map(|_| backend.unique_id()).collect::<Result<Vec<_>>>()?);
    let barrier = Arc::new(Barrier::new(size as usize));
    let start = |rank| {
        let (backend, ids, barrier) = (backend.clone(), Arc::clone(&ids), Arc::clone(&barrier));
        thread::spawn(move || case(&Rank { backend, rank, size, expected, ids, barrier }))
    };
    let threads: Vec<_> = (0..size).map(start).collect();
    for (rank, thread) in threads.into_iter().enumerate() {
        let outcome = thread.join().map_err(|_| Failed::from(format!("rank {rank} panicked")))?;
        outcome.map_err(|error| format!("rank {rank}: {error}"))?;
    }
    Ok(())
}

fn all_equal<T: PartialEq + std::fmt::Debug>(
    comm: &Communicator,
    value: T,
    of: impl Fn(&T) -> u64,
) {
    let stream = comm.new_stream().unwrap();
    let send = stream.upload(&[of(&value)]).unwrap();
    let mut all = stream.zeros::<u64>(comm.size()).unwrap();
    comm.on(&stream).all_gather(&send, &mut all).unwrap();
    let all = all.to_vec(&stream).unwrap();
    assert!(all.iter().all(|&other| other == of(&value)), "{value:?}: {all:?}");
}

fn sums(comm: &Communicator, stream: &Stream, buffer: &mut Buffer<f32>) -> Result<()> {
    let values: Vec<f32> = (0..buffer.len()).map(|at| at as f32 + comm.rank() as f32).collect();
    buffer.copy_from_slice(&values, stream)?;
    comm.on(stream).all_reduce_in_place(&mut *buffer, ReduceOp::Sum)?;
    let (size, ranks) = (comm.size() as f32, (0..comm.size()).sum::<usize>() as f32);
    let want: Vec<f32> = (0..buffer.len()).map(|at| size * at as f32 + ranks).collect();
    assert_eq!(buffer.to_vec(stream)?, want);
    Ok(())
}

fn collectives_work_in_it(rank: &Rank) -> Result<()> {
    let comm = rank.join()?;
    let stream = comm.new_stream()?;
    let mut buffers = [comm.alloc_symmetric(1000)?, comm.alloc_symmetric(3)?];
    for _ in 0..3 {
        for buffer in &mut buffers {
            sums(&comm, &stream, buffer)?;
        }
    }
    let empty = comm.alloc_symmetric::<f64>(0)?;
    assert!(empty.to_vec(&stream)?.is_empty());
    Ok(())
}

fn it_says_its_kind_and_why(rank: &Rank) -> Result<()> {
    let comm = rank.join()?;
    assert!(comm.symmetric_heap().is_none());
    let buffer = comm.alloc_symmetric::<u8>(10)?;
    let Expected { kind, reason } = rank.expected;
    assert_eq!(buffer.memory_kind(), kind);
    let heap = comm.symmetric_heap().expect("there is one");
    assert_eq!(heap.kind, kind);
    assert_eq!(heap.reason.as_deref(), buffer.memory_reason());
    match buffer.memory_reason() {
        None => assert_eq!(kind, MemoryKind::Symmetric),
        Some(text) => {
            assert!(!reason.is_empty() && text.contains(reason), "{text}");
            assert!(text.starts_with("rank 0: "), "{text}");
        }
    }
    let stream = comm.new_stream()?;
    assert_eq!(stream.zeros::<u8>(1)?.memory_kind(), MemoryKind::Plain);
    Ok(())
}

fn places_are_equal(rank: &Rank) -> Result<()> {
    let comm = rank.join()?;
    let first = comm.alloc_symmetric::<u8>(1)?;
    let base = first.as_ptr().addr();
    let mut buffers = vec![first];
    for len in [300, 1, 256, 0, 4096, 77] {
        let buffer = comm.alloc_symmetric::<u8>(len)?;
        assert!(buffer.as_ptr().addr().is_multiple_of(256) || !base.is_multiple_of(256));
        all_equal(&comm, buffer.as_ptr().addr() - base, |&offset| offset as u64);
        buffers.push(buffer);
        if buffers.len() == 4 {
            drop(buffers.remove(if rank.is_last() { 1 } else { 2 }));
        }
    }
    Ok(())
}

fn it_is_zeroed(rank: &Rank) -> Result<()> {
    let comm = rank.join()?;
    let stream = comm.new_stream()?;
    for _ in 0..4 {
        let mut buffer = comm.alloc_symmetric::<i32>(100)?;
        assert_eq!(buffer.to_vec(&stream)?, [0; 100]);
        buffer.copy_from_slice(&[7; 100], &stream)?;
    }
    Ok(())
}

#[track_caller]
fn refused<T: fmt::Debug>(outcome: Result<T>, kind: ErrorKind, parts: &[&str]) -> Error {
    let error = outcome.unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert!(!error.poisons_communicator(), "{error}");
    for part in parts {
        assert!(error.to_string().contains(part), "'{part}' is not in: {error}");
    }
    error
}

fn different_sizes_are_told(rank: &Rank) -> Result<()> {
    let comm = rank.join()?;
    if rank.size == 1 {
        return sums(&comm, &comm.new_stream()?, &mut comm.alloc_symmetric(5)?);
    }
    let (last, rest) = (rank.size - 1, if rank.size == 2 { "rank 0" } else { "ranks 0, 1" });
    let odd = format!("2000 × f32 (call 1) on rank {last}");
    let others = format!("1000 × f32 (call 1) on {rest}");
    let outcome = comm.alloc_symmetric::<f32>(if rank.is_last() { 2000 } else { 1000 });
    refused(outcome, ErrorKind::InvalidArgument, &["alloc_symmetric", &odd, &others]);
    // Nothing has happened.
    assert_eq!(comm.symmetric_heap().expect("there is one").bytes, 0);
    sums(&comm, &comm.new_stream()?, &mut comm.alloc_symmetric(1000)?)
}

fn different_plans_are_told(rank: &Rank) -> Result<()> {
    let comm = rank.join()?;
    if rank.size > 1 {
        // As many bytes of another type.
        let outcome = match rank.is_last() {
            true => comm.alloc_symmetric::<u8>(4).map(drop),
            false => comm.alloc_symmetric::<f32>(1).map(drop),
        };
        let text = outcome.unwrap_err().to_string();
        assert!(text.contains("4 × u8") && text.contains("1 × f32"), "{text}");
        let mut plan = SymmetricPlan::new();
        plan.add::<f32>(4);
        plan.add::<i64>(if rank.is_last() { 6 } else { 5 });
        plan.add::<f32>(4);
        let text = comm.alloc_symmetric_set(plan).unwrap_err().to_string();
        assert!(text.contains("buffer 1 of 3 of a plan"), "{text}");
        assert!(text.contains("6 × i64") && text.contains("5 × i64"), "{text}");
        let mut plan = SymmetricPlan::new();
        plan.add::<f32>(4);
        if rank.is_last() {
            plan.add::<f32>(4);
        }
        let text = comm.alloc_symmetric_set(plan).unwrap_err().to_string();
        assert!(text.contains("2 buffers, 32 bytes"), "{text}");
    }
    sums(&comm, &comm.new_stream()?, &mut comm.alloc_symmetric(9)?)
}

fn places_are_used_again(rank: &Rank) -> Result<()> {
    let comm = rank.join()?;
    let mut first = Some(comm.alloc_symmetric::<f32>(64)?);
    let place = first.as_ref().map(|buffer| buffer.as_ptr().addr());
    let second = comm.alloc_symmetric::<f32>(64)?;
    if rank.rank == 0 {
        first = None;
    }
    let third = comm.alloc_symmetric::<f32>(64)?;
    assert_eq!(Some(third.as_ptr().addr()) == place, rank.size == 1, "a rank holds it");
    drop(first);
    let fourth = comm.alloc_symmetric::<f32>(64)?;
    if rank.size > 1 {
        assert_eq!(Some(fourth.as_ptr().addr()), place);
    }
    drop(second);
    let used = |comm: &Communicator| comm.symmetric_heap().expect("there is one").used;
    drop((third, fourth, comm.alloc_symmetric::<f32>(64)?));
    let last = comm.alloc_symmetric::<f32>(64)?;
    assert_eq!(used(&comm), 256, "all but the last are free");
    drop(last);
    Ok(())
}

fn many_dropped_buffers(rank: &Rank) -> Result<()> {
    let comm = rank.join()?;
    let mut buffers = (0..40).map(|_| comm.alloc_symmetric::<u8>(1)).collect::<Result<Vec<_>>>()?;
    if rank.is_last() {
        buffers.reverse();
    }
    // More than one message names, and more on some ranks than on others.
    buffers.truncate(if rank.rank == 0 { 3 } else { 20 });
    let one = comm.alloc_symmetric::<u8>(1)?;
    drop(buffers);
    let other = comm.alloc_symmetric::<u8>(1)?;
    assert_eq!(comm.symmetric_heap().expect("there is one").used, 512);
    drop((one, other));
    Ok(())
}

fn a_place_in_use(rank: &Rank) -> Result<()> {
    if rank.size == 1 {
        return Ok(());
    }
    let (comm, other) = (rank.join()?, rank.join_nth(1)?);
    let stream = comm.new_stream()?;
    let mut buffer = comm.alloc_symmetric::<f32>(64)?;
    let place = buffer.as_ptr().addr();
    if rank.rank == 0 {
        // The others come to it later.
        other.on(&stream).all_reduce_in_place(&mut buffer, ReduceOp::Sum)?;
    }
    drop(buffer);
    let second = comm.alloc_symmetric::<f32>(64)?;
    assert_ne!(second.as_ptr().addr(), place, "rank 0's stream has not passed it");
    if rank.rank > 0 {
        let mut buffer = stream.zeros::<f32>(64)?;
        other.on(&stream).all_reduce_in_place(&mut buffer, ReduceOp::Sum)?;
    }
    stream.synchronize()?;
    rank.barrier.wait();
    let third = comm.alloc_symmetric::<f32>(64)?;
    assert_eq!(third.as_ptr().addr(), place);
    Ok(())
}

fn the_heap_grows(rank: &Rank) -> Result<()> {
    let comm = rank.join()?;
    let stream = comm.new_stream()?;
    let heap = || comm.symmetric_heap().expect("there is one");
    let mut small = comm.alloc_symmetric::<f32>(10)?;
    assert_eq!((heap().segments, heap().bytes), (1, 2 << 20));
    let mut large = comm.alloc_symmetric::<f32>(1 << 20)?;
    assert_eq!((heap().segments, heap().bytes), (2, 6 << 20));
    // Half of what there is.
    let mut third = comm.alloc_symmetric::<f32>((1 << 19) + 1)?;
    assert_eq!((heap().segments, heap().bytes), (3, 10 << 20));
    for buffer in [&mut small, &mut large, &mut third] {
        sums(&comm, &stream, buffer)?;
    }
    Ok(())
}

fn a_plan_is_one_stretch(rank: &Rank) -> Result<()> {
    let comm = rank.join()?;
    let mut plan = SymmetricPlan::new();
    let slots: Vec<_> = (1..=20).map(|count| plan.add::<f32>(count * 1000)).collect();
    let odd = plan.add::<u8>(3);
    assert_eq!(plan.len(), 21);
    let mut set = comm.alloc_symmetric_set(plan)?;
    assert_eq!(comm.symmetric_heap().expect("there is one").segments, 1);
    let stream = comm.new_stream()?;
    let mut end = 0;
    for slot in slots {
        let mut buffer = set.take(slot)?;
        assert!(end == 0 || buffer.as_ptr().addr() == end, "one behind the other");
        end = (buffer.as_ptr().addr() + buffer.len() * 4).next_multiple_of(256);
        sums(&comm, &stream, &mut buffer)?;
    }
    let mut other = SymmetricPlan::new();
    let foreign = other.add::<u8>(3);
    refused(set.take(foreign), ErrorKind::InvalidArgument, &["another plan"]);
    assert_eq!(set.take(odd)?.len(), 3);
    assert!(comm.alloc_symmetric_set(SymmetricPlan::new()).is_ok());
    Ok(())
}

fn too_large_is_refused(rank: &Rank) -> Result<()> {
    let comm = rank.join()?;
    let outcome = comm.alloc_symmetric::<f64>(usize::MAX);
    refused(outcome, ErrorKind::InvalidArgument, &["does not fit into memory"]);
    let outcome = comm.alloc_symmetric::<u8>(1 << 45);
    refused(outcome, ErrorKind::OutOfMemory, &["rank 0 could not allocate a segment of "]);
    sums(&comm, &comm.new_stream()?, &mut comm.alloc_symmetric(5)?)
}

fn a_graph_owns_what_it_captured(rank: &Rank) -> Result<()> {
    let comm = rank.join()?;
    let stream = comm.new_stream()?;
    let mut buffer = comm.alloc_symmetric::<f32>(64)?;
    sums(&comm, &stream, &mut buffer)?;
    let place = buffer.as_ptr().addr();
    let graph =
        comm.capture(|scope| scope.on(&comm).all_reduce_in_place(&mut buffer, ReduceOp::Max))?;
    drop(buffer);
    let second = comm.alloc_symmetric::<f32>(64)?;
    assert_ne!(second.as_ptr().addr(), place, "the graph has it");
    graph.launch(&stream)?;
    stream.synchronize()?;
    drop(graph);
    rank.barrier.wait();
    let third = comm.alloc_symmetric::<f32>(64)?;
    assert_eq!(third.as_ptr().addr(), place);
    Ok(())
}

fn buffers_outlive_their_communicator(rank: &Rank) -> Result<()> {
    let comm = rank.join()?;
    let stream = comm.new_stream()?;
    let mut buffer = comm.alloc_symmetric::<f32>(64)?;
    sums(&comm, &stream, &mut buffer)?;
    rank.barrier.wait();
    drop(comm);
    buffer.copy_from_slice(&[3.0; 64], &stream)?;
    assert_eq!(buffer.to_vec(&stream)?, [3.0; 64]);
    rank.barrier.wait();
    // Anywhere.
    thread::spawn(move || drop(buffer)).join().expect("no panic");
    Ok(())
}

fn finalize_waits_for_no_buffer(rank: &Rank) -> Result<()> {
    let comm = rank.join_nth(1)?;
    drop(comm.alloc_symmetric::<f32>(64)?);
    comm.finalize()?;
    let comm = rank.join()?;
    let buffer = comm.alloc_symmetric::<f32>(64)?;
    rank.barrier.wait();
    let error = comm.finalize().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidUsage);
    rank.barrier.wait();
    drop(buffer);
    Ok(())
}

fn after_an_abort(rank: &Rank) -> Result<()> {
    let comm = rank.join()?;
    let stream = comm.new_stream()?;
    let mut buffer = comm.alloc_symmetric::<f32>(64)?;
    sums(&comm, &stream, &mut buffer)?;
    rank.barrier.wait();
    comm.abort_handle().abort()?;
    let error = comm.alloc_symmetric::<f32>(64).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Aborted, "{error}");
    drop(comm);
    drop(buffer);
    Ok(())
}

fn each_has_its_own(rank: &Rank) -> Result<()> {
    let (one, other) = (rank.join()?, rank.join_nth(1)?);
    let stream = one.new_stream()?;
    let mut first = one.alloc_symmetric(70)?;
    let mut second = other.alloc_symmetric(70)?;
    for comm in [&one, &other] {
        for buffer in [&mut first, &mut second] {
            sums(comm, &stream, buffer)?;
        }
    }
    assert_eq!(one.symmetric_heap().expect("there is one").segments, 1);
    Ok(())
}

fn what_is_put_arrives(rank: &Rank) -> Result<()> {
    let comm = rank.join()?;
    let stream = comm.new_stream()?;
    let mut send = comm.alloc_symmetric::<u32>(100)?;
    let mut slots = comm.alloc_symmetric::<u32>(100 * rank.size as usize)?;
    if !comm.capabilities().put_signal.is_available() || rank.expected.kind != MemoryKind::Symmetric
    {
        // SAFETY: refused.
        let put = unsafe { comm.on(&stream).put(&send, &slots, 0, 1 - rank.rank) };
        assert_eq!(put.unwrap_err().kind(), ErrorKind::Unsupported);
        return Ok(());
    }
    let others = || (0..rank.size).filter(|&other| other != rank.rank);
    for round in 0..3 {
        let value = |from: u32| 100 * round + from;
        send.copy_from_slice(&[value(rank.rank); 100], &stream)?;
        for peer in others() {
            // SAFETY: every rank writes to a slot of its own, and looks at the others' after its wait;
            // the barrier below keeps the next round away.
            unsafe { comm.on(&stream).put(&send, &slots, 100 * rank.rank as usize, peer) }?;
        }
        let waits: Vec<_> = others().map(SignalWait::new).collect();
        if !waits.is_empty() {
            comm.on(&stream).wait_put(&mut slots, &waits)?;
        }
        // On another stream, which comes after the wait.
        let reader = comm.new_stream()?;
        let got = slots.to_vec(&reader)?;
        for from in others() {
            let start = 100 * from as usize;
            assert_eq!(got[start..start + 100], [value(from); 100]);
        }
        rank.barrier.wait();
    }
    Ok(())
}

fn impossible_puts_are_refused(rank: &Rank) -> Result<()> {
    let (comm, other) = (rank.join()?, rank.join_nth(1)?);
    if !comm.capabilities().put_signal.is_available() || rank.expected.kind != MemoryKind::Symmetric
    {
        return Ok(());
    }
    let stream = comm.new_stream()?;
    let (send, mut target) = (comm.alloc_symmetric::<f32>(10)?, comm.alloc_symmetric::<f32>(20)?);
    let (plain, foreign) = (stream.zeros::<f32>(10)?, other.alloc_symmetric::<f32>(20)?);
    let peer = (rank.rank + 1) % rank.size;
    let put = |send: &Buffer<f32>, target: &Buffer<f32>, at, peer: u32, text: &str| {
        // SAFETY: refused.
        let error = unsafe { comm.on(&stream).put(send, target, at, peer) }.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert!(error.to_string().contains(text), "'{text}' is not in: {error}");
    };
    put(&send, &target, 11, peer, "10 elements at 11 do not lie in the target of 20");
    put(&send, &target, usize::MAX, peer, "do not lie in the target");
    put(&plain, &target, 0, peer, "what is put is no symmetric memory of this communicator");
    put(&send, &foreign, 0, peer, "the target is no symmetric memory of this communicator");
    put(&send, &target, 0, rank.rank, "this rank itself");
    put(&send, &target, 0, rank.size, "peer is ");
    let graph = comm.capture(|_| {
        let (on, waits) = (comm.on(&stream), [SignalWait::new(peer)]);
        // SAFETY: refused.
        let put = unsafe { on.put(&send, &target, 0, peer) };
        let others = [on.signal(peer), on.wait_signal(&waits), on.wait_put(&mut target, &waits)];
        for outcome in others.into_iter().chain([put]) {
            refused(outcome, ErrorKind::InvalidUsage, &["this thread is capturing"]);
        }
        Ok(())
    })?;
    drop(graph);
    sums(&comm, &stream, &mut comm.alloc_symmetric(7)?)
}

/// It has asked nobody, so the others know nothing of it.
fn a_refusal_of_one_rank(rank: &Rank) -> Result<()> {
    let comm = rank.join()?;
    if rank.is_last() {
        let graph = comm.capture(|_| {
            let outcome = comm.alloc_symmetric::<f32>(5);
            refused(outcome, ErrorKind::InvalidUsage, &["this thread is capturing"]);
            Ok(())
        })?;
        drop(graph);
    }
    sums(&comm, &comm.new_stream()?, &mut comm.alloc_symmetric(5)?)
}

/// One rank's device is out of memory; all ranks are told which, and can go on.
fn a_rank_without_memory() -> Result<(), Failed> {
    // The first two are for what ranks tell each other.
    let plan = r#"rule = [{ rank = 1, action = { out_of_memory = 2 } }]"#.parse::<FaultPlan>()?;
    let backend = AnyBackend::Mock(Mock::new(MockConfig::new().with_faults(plan)));
    let case: Case = |rank| {
        let comm = rank.join()?;
        let outcome = comm.alloc_symmetric::<f32>(5);
        let whose = "rank 1 could not allocate a segment of 2097152 bytes: ";
        refused(outcome, ErrorKind::OutOfMemory, &[whose, "by fault rule 0"]);
        sums(&comm, &comm.new_stream()?, &mut comm.alloc_symmetric(5)?)
    };
    run(&backend, case, 3, Expected { kind: MemoryKind::Symmetric, reason: "" })
}

/// The library at `path` as far as it exports these names.
fn with_exports<V: Vendor>(path: &Path, exports: &str) -> Result<Library<V>> {
    // SAFETY: the mock's library, which runs nothing when it is opened.
    let library = unsafe { libloading::Library::new(path) }
        .map_err(|error| Error::new(ErrorKind::Library, error.to_string()))?;
    // Open until the process ends, like every library behind a table.
    let library: &'static libloading::Library = Box::leak(Box::new(library));
    let find = |name: &CStr| -> *const c_void {
        if !exports.lines().any(|export| export.as_bytes() == name.to_bytes()) {
            return ptr::null();
        }
        // SAFETY: only looked for here; the table has the types of `nccl.h`.
        let found = unsafe { library.get::<*const c_void>(name.to_bytes_with_nul()) };
        found.map_or(ptr::null(), |symbol| *symbol)
    };
    // SAFETY: what is found are the functions of these names, which the library has with the types of
    // `nccl.h`: its own compiler checked that.
    let table = unsafe { Table::fill(find) }
        .map_err(|missing| Error::new(ErrorKind::Library, missing.to_string()))?;
    // SAFETY: as above.
    unsafe { Library::from_table(table) }
}
