//! What reaches the library, and what does not: over a table of functions that write it down.

mod fake;

use std::{
    ptr,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use collectives_core::{
    Backend, BackendExt, Collectives, CollectivesExt, DType, Error, ErrorKind, GrowConfig,
    JoinAllConfig, JoinConfig, Launch, Rank, RawStream, RecvBuf, ReduceOp, Scalar, SendBuf,
    ShrinkConfig, Split, SplitConfig, Support,
};
use collectives_nccl_family::{Comm, Library, ParentPolicy};
use static_assertions::{assert_impl_all, assert_not_impl_any};

use fake::{BOUND, FOREIGN, Fake, RUNTIME, World, group_depth};

assert_impl_all!(Comm<Fake>: Send);
assert_not_impl_any!(Comm<Fake>: Sync);

const NEWEST: i32 = 23203;

fn send(at: usize, count: usize) -> SendBuf {
    SendBuf::new(ptr::without_provenance(at), count, DType::F32)
}

fn recv(at: usize, count: usize) -> RecvBuf {
    RecvBuf::new(ptr::without_provenance_mut(at), count, DType::F32)
}

fn launch() -> Launch<'static> {
    Launch::new(RawStream::from_bits(0x5))
}

/// Issues an operation that is to succeed.
macro_rules! issue {
    ($operation:expr) => {
        // SAFETY: the library of these tests touches no memory.
        unsafe { $operation }.unwrap()
    };
}

/// An all-reduce of `count` elements into a buffer for four.
fn sum(comm: &Comm<Fake>, count: usize) -> collectives_core::Result<()> {
    // SAFETY: the library of these tests touches no memory.
    unsafe { comm.all_reduce(send(0x1000, 4), recv(0x2000, count), ReduceOp::Sum, launch()) }
}

const SUM: &str = "all_reduce(0x1000, 0x2000, 4, 7, 0, 0x5) on 0";
const POISON: &str = "all_reduce(poison) on 0";

#[test]
fn operations_reach_the_library_with_its_numbers() {
    let world = World::enter(NEWEST);
    let comm = world.comm(&world.library(), 0, 2);
    let (one, two) = (Rank::new(0), Rank::new(1));
    sum(&comm, 4).unwrap();
    issue!(comm.reduce(send(0x1000, 4), None, ReduceOp::Max, two, launch()));
    issue!(comm.reduce(send(0x1000, 4), Some(recv(0x2000, 4)), ReduceOp::Min, one, launch()));
    issue!(comm.broadcast(None, recv(0x2000, 4), two, launch()));
    issue!(comm.broadcast(Some(send(0x1000, 4)), recv(0x2000, 4), one, launch()));
    issue!(comm.all_gather(send(0x1000, 4), recv(0x2000, 8), launch()));
    issue!(comm.reduce_scatter(send(0x1000, 8), recv(0x2000, 4), ReduceOp::Prod, launch()));
    issue!(comm.all_to_all(send(0x1000, 8), recv(0x2000, 8), launch()));
    issue!(comm.gather(send(0x1000, 4), Some(recv(0x2000, 8)), one, launch()));
    issue!(comm.scatter(None, recv(0x2000, 4), two, launch()));
    issue!(comm.send(send(0x1000, 4), two, launch()));
    issue!(comm.recv(recv(0x2000, 4), two, launch()));
    assert_eq!(
        world.log(),
        [
            SUM,
            "reduce(0x1000, 0x0, 4, 7, 2, root 1) on 0",
            "reduce(0x1000, 0x2000, 4, 7, 3, root 0) on 0",
            "broadcast(0x2000, 0x2000, 4, 7, root 1) on 0",
            "broadcast(0x1000, 0x2000, 4, 7, root 0) on 0",
            "all_gather(0x1000, 0x2000, 4, 7) on 0",
            "reduce_scatter(0x1000, 0x2000, 4, 7, 1) on 0",
            "all_to_all(0x1000, 0x2000, 4, 7) on 0",
            "gather(0x1000, 0x2000, 4, 7, root 0) on 0",
            "scatter(0x0, 0x2000, 4, 7, root 1) on 0",
            "send(0x1000, 4, to 1) on 0",
            "recv(0x2000, 4, from 1) on 0",
        ]
    );
}

#[test]
fn refusals_never_reach_the_library() {
    let world = World::enter(NEWEST);
    let comm = world.comm(&world.library(), 0, 2);
    let error = sum(&comm, 5).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    // SAFETY: the library of these tests touches no memory.
    let error = unsafe { comm.send(send(0x1000, 4), Rank::new(0), launch()) }.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidUsage);
    assert_eq!(
        error.to_string(),
        "NCCL send (rank 0 of 2): a send to this rank itself is alone; put it into a group with \
         its receive"
    );
    assert!(!error.poisons_communicator());
    assert!(world.log().is_empty());
    sum(&comm, 4).unwrap();
}

#[test]
fn a_group_with_a_refused_call_is_dropped_whole() {
    let world = World::enter(NEWEST);
    let library = world.library();
    let comm = world.comm(&library, 0, 2);
    let outcome = library.group(|_| {
        sum(&comm, 4)?;
        let ignored = sum(&comm, 5);
        assert!(ignored.is_err());
        sum(&comm, 4)
    });
    let error = outcome.unwrap_err();
    assert_eq!(error.to_string(), "NCCL all_reduce (rank 0 of 2): recv holds 5 elements, want 4");
    assert_eq!(world.log(), [SUM, SUM, POISON, "dropped 2"]);

    library.group(|_| sum(&comm, 4)).unwrap();
    assert_eq!(world.log(), [SUM, "launched 1"]);
}

/// A message to the other rank, or one from it, or both from all to all.
fn exchange(comm: &Comm<Fake>, what: &str) -> collectives_core::Result<()> {
    let other = Rank::new(1);
    match what {
        // SAFETY: the library of these tests touches no memory.
        "send" => unsafe { comm.send(send(0x1000, 4), other, launch()) },
        // SAFETY: as above.
        "recv" => unsafe { comm.recv(recv(0x2000, 4), other, launch()) },
        // SAFETY: as above.
        _ => unsafe { comm.all_to_all(send(0x3000, 8), recv(0x4000, 8), launch()) },
    }
}

const SEND: &str = "send(0x1000, 4, to 1) on 0";
const RECV: &str = "recv(0x2000, 4, from 1) on 0";
const ALL_TO_ALL: &str = "all_to_all(0x3000, 0x4000, 4, 7) on 0";

#[test]
fn a_library_never_hears_of_first_messages_that_are_dropped() {
    let world = World::enter(NEWEST);
    let library = world.library();
    let comm = world.comm(&library, 0, 2);
    let fail = |what| {
        let outcome = library.group(|_| {
            exchange(&comm, what)?;
            sum(&comm, 4)?;
            DType::from_torch_name("floaty")
        });
        outcome.unwrap_err();
        world.log()
    };
    for what in ["send", "recv", "all to all"] {
        assert_eq!(fail(what), [SUM, POISON, "dropped 1"], "{what}");
    }
    // Sent once, its connection is there; the others are not.
    exchange(&comm, "send").unwrap();
    world.log();
    assert_eq!(fail("send"), [SEND, SUM, POISON, "dropped 2"]);
    assert_eq!(fail("recv"), [SUM, POISON, "dropped 1"]);
    library.group(|_| exchange(&comm, "all to all")).unwrap();
    world.log();
    assert_eq!(fail("recv"), [RECV, SUM, POISON, "dropped 2"]);
    assert_eq!(fail("all to all"), [ALL_TO_ALL, SUM, POISON, "dropped 2"]);
}

#[test]
fn messages_keep_their_order_behind_one_that_waits() {
    let world = World::enter(NEWEST);
    let library = world.library();
    let comm = world.comm(&library, 0, 2);
    exchange(&comm, "send").unwrap();
    world.log();
    library
        .group(|_| {
            exchange(&comm, "send")?;
            exchange(&comm, "all to all")?;
            sum(&comm, 4)?;
            exchange(&comm, "send")?;
            exchange(&comm, "recv")
        })
        .unwrap();
    let log = world.log();
    let messages: Vec<_> = log.iter().filter(|line| *line != SUM).take(4).collect();
    assert_eq!(messages, [SEND, ALL_TO_ALL, SEND, RECV]);
    assert_eq!(log[..2], [SEND, SUM], "only what may not be dropped waits");
}

#[test]
fn nothing_of_one_rank_asks_the_library_nothing() {
    let world = World::enter(NEWEST);
    let comm = world.comm(&world.library(), 0, 1);
    issue!(comm.all_reduce(send(0, 0), recv(0, 0), ReduceOp::Sum, launch()));
    issue!(comm.reduce_scatter(send(0, 0), recv(0, 0), ReduceOp::Sum, launch()));
    issue!(comm.reduce(send(0, 0), Some(recv(0, 0)), ReduceOp::Sum, Rank::new(0), launch()));
    assert!(world.log().is_empty());
}

#[test]
fn a_group_with_nothing_but_a_refusal_asks_the_library_nothing() {
    let world = World::enter(NEWEST);
    let library = world.library();
    let comm = world.comm(&library, 0, 2);
    let error = library.group(|_| drop_result(sum(&comm, 5))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(world.log().is_empty());
    assert_eq!(group_depth(), 0);
}

fn drop_result<T, E>(_: Result<T, E>) -> collectives_core::Result<()> {
    Ok(())
}

#[test]
fn a_group_whose_body_fails_or_unwinds_launches_nothing() {
    let world = World::enter(NEWEST);
    let library = world.library();
    let comm = world.comm(&library, 0, 2);
    let outcome = library.group(|_| {
        sum(&comm, 4)?;
        DType::from_torch_name("floaty")
    });
    assert!(outcome.unwrap_err().to_string().contains("floaty"));
    assert_eq!(world.log(), [SUM, POISON, "dropped 1"]);

    let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        library.group(|_| -> collectives_core::Result<()> {
            sum(&comm, 4)?;
            panic!("in the body of a group");
        })
    }));
    assert!(unwound.is_err());
    assert_eq!(world.log(), [SUM, POISON, "dropped 1"]);
    assert_eq!(group_depth(), 0);
}

#[test]
fn a_discarded_inner_group_drops_the_outer_one() {
    let world = World::enter(NEWEST);
    let library = world.library();
    let comm = world.comm(&library, 0, 2);
    let outcome = library.group(|_| {
        sum(&comm, 4)?;
        drop_result(library.group(|_| DType::from_torch_name("floaty")))
    });
    let error = outcome.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidUsage);
    assert_eq!(world.log(), [SUM, POISON, "dropped 1"]);
}

#[test]
fn an_end_without_a_group_does_not_reach_the_library() {
    let world = World::enter(NEWEST);
    let comm = world.comm(&world.library(), 0, 2);
    let error = comm.group_end().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidUsage);
    assert_eq!(error.to_string(), "NCCL group_end: no group is open on this thread");
    assert!(world.log().is_empty());
}

#[test]
fn what_the_library_refuses_in_a_group_is_its_first_refusal() {
    let world = World::enter(NEWEST);
    let library = world.library();
    let comm = world.comm(&library, 0, 2);
    world.answer("all_reduce", 5);
    comm.group_start().unwrap();
    let first = sum(&comm, 4).unwrap_err();
    let end = comm.group_end().unwrap_err();
    assert_eq!(end.to_string(), first.to_string());
    assert_eq!(end.kind(), ErrorKind::InvalidUsage);
    world.answer("all_reduce", 0);
    sum(&comm, 4).unwrap();
}

#[test]
fn codes_become_kinds_and_unknown_ones_are_kept() {
    let kinds = [
        (1, ErrorKind::Device, true),
        (2, ErrorKind::System, true),
        (3, ErrorKind::Internal, true),
        (4, ErrorKind::InvalidArgument, false),
        (5, ErrorKind::InvalidUsage, false),
        (6, ErrorKind::Remote, true),
        (8, ErrorKind::Timeout, true),
        (42, ErrorKind::Vendor, true),
        (-3, ErrorKind::Vendor, true),
    ];
    for (code, kind, poisons) in kinds {
        let world = World::enter(NEWEST);
        let comm = world.comm(&world.library(), 0, 2);
        world.answer("all_reduce", code);
        let error = sum(&comm, 4).unwrap_err();
        assert_eq!(error.kind(), kind, "code {code}");
        assert_eq!(error.poisons_communicator(), poisons, "code {code}");
        assert_eq!(error.vendor_code().map(|code| code.0), Some(code));
        assert_eq!(comm.abort_handle().failure().is_some(), poisons, "code {code}");
    }
    let world = World::enter(22809);
    let comm = world.comm(&world.library(), 0, 2);
    world.answer("all_reduce", 8);
    world.set_last_error("the last words\n");
    let error = sum(&comm, 4).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Vendor, "8 was no code before 2.30.3");
    assert_eq!(
        error.to_string(),
        "NCCL all_reduce (rank 0 of 2): unknown code 8 (code 8): \"the last words\""
    );
    world.answer("all_reduce", 1);
    world.set_last_error("Cuda failure 'out of memory'");
    assert_eq!(sum(&comm, 4).unwrap_err().kind(), ErrorKind::OutOfMemory);
}

#[test]
fn a_failed_init_leaves_no_group_open_and_keeps_the_last_words() {
    for version in [21605, 22105, 22501, NEWEST] {
        let world = World::enter(version);
        let library = world.library();
        world.answer("init", 1);
        world.set_last_error("Cuda failure 'no device'");
        RUNTIME.set(false);
        let id = library.unique_id().unwrap();
        let error = library.join(&id, JoinConfig::new(Rank::new(0), 1)).unwrap_err();
        assert_eq!(group_depth(), 0, "version code {version}");
        assert_eq!(error.kind(), ErrorKind::Device);
        assert_eq!(error.last_error(), Some("Cuda failure 'no device'"));
        assert_eq!(error.hint(), Some("no driver in this test"));
        assert_eq!(error.rank(), Some((0, 1)));
        assert!(!error.poisons_communicator());
    }
    RUNTIME.set(true);
}

#[test]
fn join_checks_its_arguments_before_the_library_is_asked() {
    let world = World::enter(NEWEST);
    let library = world.library();
    let id = library.unique_id().unwrap();
    world.log();
    let refused = |config: JoinConfig, kind: ErrorKind, text: &str| {
        let error = library.join(&id, config).unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (kind, text));
    };
    refused(
        JoinConfig::new(Rank::new(2), 2),
        ErrorKind::InvalidArgument,
        "NCCL join (rank 2 of 2): rank is 2, want less than the size 2",
    );
    refused(
        JoinConfig::new(Rank::new(0), 2).with_device(8),
        ErrorKind::InvalidArgument,
        "NCCL join (rank 0 of 2): device is 8, but there are 8; set the device in the JoinConfig; \
         unset, it is the rank",
    );
    refused(
        JoinConfig::new(Rank::new(0), 2).with_name("a\0b"),
        ErrorKind::InvalidArgument,
        "NCCL join (rank 0 of 2): the communicator's name holds a NUL byte",
    );
    let short = collectives_core::UniqueId::from_bytes(vec![0; 3]);
    let error = library.join(&short, JoinConfig::new(Rank::new(0), 2)).unwrap_err();
    assert!(error.to_string().contains("holds 3 bytes, want 128"), "{error}");
    library.group_start().unwrap();
    refused(
        JoinConfig::new(Rank::new(0), 2),
        ErrorKind::InvalidUsage,
        "NCCL join: a group is open on this thread; join outside of groups; join_all makes all \
         ranks of one process",
    );
    library.group_end(collectives_core::GroupEnd::Launch).unwrap();
    assert!(world.log().is_empty());
}

#[test]
fn threads_that_join_by_one_id_are_compared_before_the_library_waits_for_ever() {
    let world = World::enter(NEWEST);
    let library = world.library();
    let id = library.unique_id().unwrap();
    world.log();
    world.hang("init");
    let waiting = thread::spawn({
        let (library, id) = (library.clone(), id.clone());
        move || library.join(&id, JoinConfig::new(1, 3).with_device(0)).map(drop)
    });
    world.wait_for("init_config");
    let refused = |library: &Library<Fake>, config: JoinConfig, text: &str| {
        let error = library.join(&id, config).unwrap_err();
        let said = (error.kind(), error.to_string());
        assert_eq!(said, (ErrorKind::InvalidArgument, text.to_owned()));
    };
    refused(
        &library,
        JoinConfig::new(1, 3),
        "NCCL join (rank 1 of 3): rank 1 has joined already; give each participant a rank of its \
         own, and each attempt a new id",
    );
    refused(
        &library,
        JoinConfig::new(0, 2),
        "NCCL join (rank 0 of 2): ranks disagree on the size: rank 0 says 2, others say 3",
    );
    refused(
        &World::enter(22809).another_copy(),
        JoinConfig::new(0, 3),
        "NCCL join (rank 0 of 3): libraries differ: rank 1: NCCL 2.32.3; rank 0: NCCL 2.28.9; join \
         by one loaded library in all threads",
    );
    // Two ranks on one device are the library's to tell; and of what was refused it has heard nothing.
    let twin = thread::spawn({
        let (library, id) = (library.clone(), id.clone());
        move || library.join(&id, JoinConfig::new(0, 3).with_device(0)).map(drop)
    });
    world.wait_for("init_config(0 of 3");
    world.release("init");
    waiting.join().unwrap().unwrap();
    twin.join().unwrap().unwrap();
    let asked: Vec<_> = world.log().into_iter().filter(|line| line.starts_with("init")).collect();
    let call = |rank| format!("init_config({rank} of 3, blocking 1, share -1)");
    assert_eq!(asked, [call(1), call(0)]);
}

#[test]
fn an_id_is_good_for_one_communicator_and_for_as_many_attempts_as_it_takes() {
    let world = World::enter(NEWEST);
    let library = world.library();
    let id = library.unique_id().unwrap();
    let config = || JoinConfig::new(0, 2);
    world.answer("init", 1);
    for _ in 0..2 {
        assert_eq!(library.join(&id, config()).unwrap_err().kind(), ErrorKind::Device);
    }
    world.answer("init", 0);
    let comm = library.join(&id, config()).unwrap();
    world.log();
    let used_up = "this unique id was used up by an earlier join";
    for config in [config(), JoinConfig::new(1, 2), config().with_deadline(Duration::from_secs(9))]
    {
        let error = library.join(&id, config).unwrap_err();
        assert_eq!((error.kind(), error.message()), (ErrorKind::InvalidUsage, used_up));
    }
    assert!(world.log().is_empty());
    drop(comm);
    assert_eq!(library.join(&id, config()).unwrap_err().message(), used_up);
    // Ids of such a release are addresses, and these come back.
    let world = World::enter(21304);
    let library = world.library_without(&["ncclCommInitRankConfig"]);
    let id = library.unique_id().unwrap();
    drop(library.join(&id, config()).unwrap());
    drop(library.join(&id, config()).unwrap());
}

#[test]
fn a_library_that_gives_no_communicator_is_found_out() {
    let world = World::enter(NEWEST);
    let library = world.library();
    let id = library.unique_id().unwrap();
    world.answer("no communicator", 0);
    let error = library.join(&id, JoinConfig::new(Rank::new(0), 1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
}

#[test]
fn a_joined_communicator_is_blocking_and_its_name_outlives_it() {
    let world = World::enter(NEWEST);
    let library = world.library();
    let id = library.unique_id().unwrap();
    world.log();
    let config = JoinConfig::new(Rank::new(1), 2).with_name("tensor parallel").with_device(3);
    let comm = library.join(&id, config).unwrap();
    assert_eq!(BOUND.get(), Some(3), "the library finds the device on the thread");
    assert_eq!(comm.info().device, 3);
    assert_eq!(comm.info().name.as_deref(), Some("tensor parallel"));
    drop(comm);
    assert_eq!(
        world.log(),
        ["init_config(1 of 2, blocking 1, share -1)", "destroy(comm 'tensor parallel')"]
    );
}

#[test]
fn a_library_of_2_16_gets_an_explicit_blocking_and_has_no_split() {
    let world = World::enter(21605);
    let library = world.library_without(&["ncclCommSplit", "ncclAlltoAll"]);
    let id = library.unique_id().unwrap();
    let comm = library.join(&id, JoinConfig::new(Rank::new(0), 2)).unwrap();
    let error = comm.split(SplitConfig::new(0)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!(
        error.to_string(),
        "NCCL split (rank 0 of 2): this library has no split; needs version 2.18.1 or newer"
    );
}

#[test]
fn where_nothing_can_be_polled_a_thread_is_left_to_the_join() {
    let world = World::enter(21605);
    let library = world.library_without(&["ncclCommSplit"]);
    assert_eq!(library.capabilities().join_deadline, Support::Emulated);
    let id = library.unique_id().unwrap();
    world.log();
    let minute = JoinConfig::new(Rank::new(0), 2).with_deadline(Duration::from_secs(60));
    drop(library.join(&id, minute).unwrap());
    assert_eq!(world.log(), ["init_config(0 of 2, blocking 1, share -1)", "destroy(comm)"]);

    let id = library.unique_id().unwrap();
    world.log();
    world.hang("init");
    let short = JoinConfig::new(Rank::new(0), 2).with_deadline(Duration::from_millis(20));
    let error = library.join(&id, short).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert_eq!(
        error.to_string(),
        "NCCL join (rank 0 of 2): not all 2 ranks joined within 20ms; see whether every rank runs \
         and was given this unique id"
    );
    // It cannot be called back, and a second of its rank would spoil it for all.
    let again = library.join(&id, JoinConfig::new(Rank::new(0), 2)).unwrap_err();
    assert_eq!(again.message(), "rank 0 has joined already");
    // The others come after all, and nobody wants the communicator any more.
    world.release("init");
    world.wait_for("abort(comm)");
    assert_eq!(world.log(), ["init_config(0 of 2, blocking 1, share -1)", "abort(comm)"]);
}

#[test]
fn what_blocks_although_it_should_not_is_left_to_its_thread() {
    let world = World::enter(NEWEST);
    let library = world.library();
    let id = library.unique_id().unwrap();
    world.hang("init");
    let short = JoinConfig::new(Rank::new(1), 2).with_deadline(Duration::from_millis(20));
    assert_eq!(library.join(&id, short).unwrap_err().kind(), ErrorKind::Timeout);
    let grown = JoinConfig::new(2, 3).with_deadline(Duration::from_millis(20));
    world.hang("grow");
    let id = library.unique_id().unwrap();
    assert_eq!(library.join_grown(&id, grown).unwrap_err().kind(), ErrorKind::Timeout);
    let all = JoinAllConfig::new([0, 1]).with_deadline(Duration::from_millis(20));
    let error = library.join_all(all).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert_eq!(error.to_string(), "NCCL join_all: not all 2 devices joined within 20ms");
    world.log();
    world.release("grow");
    world.wait_for("abort(grown)");
    world.release("init");
    world.wait_for("abort(comm)");
    assert_eq!(group_depth(), 0, "the group was open on another thread");
}

#[test]
fn a_reason_is_what_calls_and_waits_are_told_after_the_abort() {
    let world = World::enter(NEWEST);
    let comm = world.comm(&world.library(), 0, 2);
    let handle = comm.abort_handle();
    let late = Error::new(ErrorKind::Timeout, "not done").with_operation("all_reduce");
    handle.condemn(late);
    handle.condemn(Error::new(ErrorKind::Remote, "the second"));
    let failure = handle.failure().unwrap();
    assert_eq!((failure.kind(), failure.poisons_communicator()), (ErrorKind::Timeout, true));
    assert!(!handle.is_aborted());
    sum(&comm, 4).unwrap();
    handle.abort().unwrap();
    assert_eq!(sum(&comm, 4).unwrap_err().message(), "not done");
    assert_eq!(handle.failure().unwrap().kind(), ErrorKind::Timeout);
    // One that failed by itself says so until it is aborted.
    let comm = world.comm(&world.library(), 1, 2);
    world.set_state(6);
    assert_eq!(comm.poll_error().unwrap_err().kind(), ErrorKind::Remote);
    comm.abort_handle().condemn(Error::new(ErrorKind::Timeout, "not done"));
    assert_eq!(comm.poll_error().unwrap_err().kind(), ErrorKind::Remote);
}

#[test]
fn a_library_before_2_14_is_joined_without_a_config() {
    let world = World::enter(21304);
    let library = world.library_without(&["ncclCommInitRankConfig", "ncclCommFinalize"]);
    let id = library.unique_id().unwrap();
    world.log();
    let comm = library.join(&id, JoinConfig::new(Rank::new(0), 2)).unwrap();
    Box::new(comm).finalize().unwrap();
    assert_eq!(world.log(), ["init(0 of 2)", "destroy(comm)"]);
}

#[test]
fn a_join_with_a_deadline_is_a_split_of_a_non_blocking_parent() {
    for (policy, expected) in [
        (
            ParentPolicy::Destroy,
            [
                "init_config(1 of 2, blocking 0, share 0)",
                "split(0, 1, blocking 1) of parent",
                "destroy(parent)",
                "sum",
                "destroy(child)",
            ],
        ),
        (
            ParentPolicy::KeepShared,
            [
                "init_config(1 of 2, blocking 0, share 1)",
                "split(0, 1, blocking 1) of parent",
                "sum",
                "destroy(child)",
                "destroy(parent)",
            ],
        ),
    ] {
        let world = World::enter(NEWEST);
        let library = world.library().with_parent_policy(policy);
        let id = library.unique_id().unwrap();
        world.log();
        world.answer("init", 7);
        let config = JoinConfig::new(Rank::new(1), 2).with_deadline(Duration::from_secs(60));
        let comm = library.join(&id, config).unwrap();
        sum(&comm, 4).unwrap();
        drop(comm);
        let mut log = world.log();
        for line in &mut log {
            if line.starts_with("all_reduce") {
                "sum".clone_into(line);
            }
        }
        assert_eq!(log, expected, "{policy:?}");
    }
}

#[test]
fn a_join_past_its_deadline_ends_the_parent() {
    let world = World::enter(NEWEST);
    let library = world.library();
    let id = library.unique_id().unwrap();
    world.log();
    world.answer("init", 7);
    world.set_state(7);
    let config = JoinConfig::new(Rank::new(1), 2).with_deadline(Duration::from_millis(20));
    let error = library.join(&id, config).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert_eq!(
        error.to_string(),
        "NCCL join (rank 1 of 2): not all 2 ranks joined within 20ms; see whether every rank runs \
         and was given this unique id"
    );
    assert_eq!(world.log(), ["init_config(1 of 2, blocking 0, share 0)", "abort(parent)"]);

    world.set_state(6);
    let config = JoinConfig::new(Rank::new(1), 2).with_deadline(Duration::from_secs(60));
    let error = library.join(&id, config).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Remote);
    assert_eq!(world.log(), ["init_config(1 of 2, blocking 0, share 0)", "abort(parent)"]);
}

#[test]
fn a_split_is_left_to_a_parent_whose_abort_does_not_return() {
    let world = World::enter(NEWEST);
    let library = world.library();
    let id = library.unique_id().unwrap();
    world.hang("split");
    world.hang("abort");
    let stall = thread::spawn({
        let world = Arc::clone(&world);
        move || {
            world.wait_for("split");
            world.set_state(7);
            world.release("split");
        }
    });
    world.log();
    let config = JoinConfig::new(Rank::new(1), 2).with_deadline(Duration::from_millis(20));
    let error = library.join(&id, config).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    stall.join().unwrap();
    assert_eq!(
        world.log(),
        [
            "init_config(1 of 2, blocking 0, share 0)",
            "split(0, 1, blocking 1) of parent",
            "abort(parent)",
        ]
    );
    world.release("abort");
}

#[test]
fn join_all_waits_for_every_rank_of_a_non_blocking_library() {
    let world = World::enter(NEWEST);
    let library = world.library();
    world.answer("end of joins", 7);
    drop(library.join_all(JoinAllConfig::new([0, 1])).unwrap());
    for failed in [0, 1] {
        world.set_state_of(failed, 6);
        let error = library.join_all(JoinAllConfig::new([0, 1])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Remote, "rank {failed}");
        world.set_state_of(failed, 0);
    }
}

#[test]
fn join_all_is_one_group_and_refuses_what_cannot_be() {
    let world = World::enter(NEWEST);
    let library = world.library();
    let comms = library.join_all(JoinAllConfig::new([5, 2]).with_name("pp")).unwrap();
    let places: Vec<_> =
        comms.iter().map(|c| (c.info().rank.get(), c.info().size, c.info().device)).collect();
    assert_eq!(places, [(0, 2, 5), (1, 2, 2)]);
    assert_eq!(group_depth(), 0);
    drop(comms);
    world.log();
    let error = library.join_all(JoinAllConfig::new([1, 0, 1])).unwrap_err();
    assert_eq!(error.to_string(), "NCCL join_all: device 1 is given to rank 0 and rank 2");
    assert!(library.join_all(JoinAllConfig::new([])).unwrap_err().is_caller_bug());
    assert!(world.log().is_empty());
    world.answer("init", 1);
    assert_eq!(library.join_all(JoinAllConfig::new([0, 1])).unwrap_err().kind(), ErrorKind::Device);
    assert_eq!(group_depth(), 0);
}

#[test]
fn after_an_abort_no_call_reaches_the_library() {
    let world = World::enter(NEWEST);
    let library = world.library();
    let comm = world.comm(&library, 0, 2);
    let handle = comm.abort_handle();
    assert!(handle.is_same(&comm.abort_handle()));
    assert!(handle.failure().is_none());
    handle.abort().unwrap();
    handle.abort().unwrap();
    assert_eq!(world.log(), ["abort(comm)"]);
    let error = sum(&comm, 4).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Aborted);
    assert_eq!(comm.poll_error().unwrap_err().kind(), ErrorKind::Aborted);
    assert_eq!(handle.failure().map(|error| error.kind()), Some(ErrorKind::Aborted));
    assert!(comm.as_raw().is_null());
    assert!(comm.split(SplitConfig::new(0)).is_err());
    assert!(comm.create_pre_mul_sum_of_one().is_err());
    drop(comm);
    assert!(world.log().is_empty());
}

trait OfOne {
    fn create_pre_mul_sum_of_one(&self) -> collectives_core::Result<()>;
}

impl OfOne for Comm<Fake> {
    fn create_pre_mul_sum_of_one(&self) -> collectives_core::Result<()> {
        // SAFETY: a host scalar.
        unsafe { self.create_pre_mul_sum(Scalar::host(1.0_f32)) }.map(drop)
    }
}

#[test]
fn an_abort_revokes_and_waits_for_a_call_of_another_thread() {
    let world = World::enter(NEWEST);
    let comm = world.comm(&world.library(), 0, 2);
    let handle = comm.abort_handle();
    world.hang("all_reduce");
    let stuck = thread::spawn(move || sum(&comm, 4));
    world.wait_for("all_reduce");
    handle.abort().unwrap();
    stuck.join().unwrap().unwrap();
    assert_eq!(world.log(), [SUM, "revoke(comm)", "abort(comm)"]);
}

#[test]
fn a_communicator_whose_call_never_leaves_is_leaked() {
    let world = World::enter(NEWEST);
    let comm = world.comm(&world.library_without(&["ncclCommRevoke"]), 0, 2);
    let handle = comm.abort_handle();
    world.hang("all_reduce");
    let stuck = thread::spawn(move || sum(&comm, 4));
    world.wait_for("all_reduce");
    handle.abort().unwrap();
    assert!(handle.is_aborted());
    world.release("all_reduce");
    stuck.join().unwrap().unwrap();
    assert_eq!(world.log(), [SUM], "the pointer was neither aborted nor destroyed");
}

#[test]
fn an_abort_inside_a_group_drops_it_and_keeps_the_pointer() {
    let world = World::enter(NEWEST);
    let library = world.library();
    let comm = world.comm(&library, 0, 2);
    let outcome = library.group(|_| {
        sum(&comm, 4)?;
        comm.abort_handle().abort()
    });
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Aborted);
    assert_eq!(world.log(), [SUM, POISON, "dropped 1"]);
}

#[test]
fn an_abort_during_a_group_s_first_call_waits_for_the_group() {
    let world = World::enter(NEWEST);
    let library = world.library();
    let comm = world.comm(&library, 0, 2);
    let handle = comm.abort_handle();
    world.hang("all_reduce");
    let aborter = thread::spawn({
        let world = Arc::clone(&world);
        move || {
            world.wait_for("all_reduce");
            handle.abort()
        }
    });
    let outcome = library.group(|_| {
        sum(&comm, 4)?;
        // Time for an abort that does not wait.
        thread::sleep(Duration::from_millis(100));
        Ok(())
    });
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Aborted);
    aborter.join().unwrap().unwrap();
    assert_eq!(world.log(), [SUM, "revoke(comm)", POISON, "dropped 1", "abort(comm)"]);
}

#[test]
fn a_communicator_whose_revoke_never_returns_is_leaked() {
    let world = World::enter(NEWEST);
    let comm = world.comm(&world.library(), 0, 2);
    let handle = comm.abort_handle();
    world.hang("all_reduce");
    world.hang("revoke");
    let stuck = thread::spawn(move || sum(&comm, 4));
    world.wait_for("all_reduce");
    let aborter = thread::spawn(move || handle.abort());
    world.wait_for("revoke");
    world.release("all_reduce");
    stuck.join().unwrap().unwrap();
    aborter.join().unwrap().unwrap();
    assert_eq!(world.log(), [SUM, "revoke(comm)"], "nothing is freed under the revoke");
    world.release("revoke");
}

#[test]
fn the_owner_may_abort_after_its_handle_did() {
    let world = World::enter(NEWEST);
    let comm = world.comm(&world.library(), 0, 2);
    comm.abort_handle().abort().unwrap();
    Box::new(comm).abort().unwrap();
    assert_eq!(world.log(), ["abort(comm)"]);
}

#[test]
fn memory_is_freed_after_an_abort_and_registrations_are_left_alone() {
    let world = World::enter(NEWEST);
    let comm = world.comm(&world.library(), 0, 2);
    let memory = comm.mem_alloc(64).unwrap();
    // SAFETY: the library of these tests touches no memory.
    let registration = unsafe { comm.register(memory, 64) }.unwrap();
    comm.abort_handle().abort().unwrap();
    world.log();
    // SAFETY: as above.
    let error = unsafe { comm.deregister(registration) }.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Aborted);
    assert!(world.log().is_empty(), "the communicator is gone, and its registrations with it");
    // SAFETY: as above.
    unsafe { comm.mem_free(memory) }.unwrap();
    assert_eq!(world.log(), ["mem_free(0xa000)"]);
}

#[test]
fn dropping_inside_a_group_leaks_and_the_group_still_ends() {
    let world = World::enter(NEWEST);
    let library = world.library();
    let comm = world.comm(&library, 0, 2);
    let outcome = library.group(|_| {
        sum(&comm, 4)?;
        drop(comm);
        Ok(())
    });
    assert!(outcome.is_err(), "a communicator went away with operations queued");
    assert_eq!(world.log(), [SUM, POISON, "dropped 1"]);
}

#[test]
fn dropping_is_bounded_when_destroying_hangs() {
    let world = World::enter(NEWEST);
    let comm = world.comm(&world.library(), 0, 2);
    let handle = comm.abort_handle();
    world.hang("destroy");
    drop(comm);
    assert_eq!(world.log(), ["destroy(comm)"], "it went on in the background");
    let failure = handle.failure().expect("nobody else can end what waits for its streams");
    assert_eq!(
        failure.to_string(),
        "NCCL drop (rank 0 of 2): it was dropped with work pending; join a new one"
    );
    assert!(failure.poisons_communicator());
    world.release("destroy");
}

#[test]
fn a_failed_communicator_is_aborted_and_not_destroyed() {
    let world = World::enter(NEWEST);
    let library = world.library();
    let comm = world.comm(&library, 0, 2);
    comm.poll_error().unwrap();
    world.set_state(6);
    assert_eq!(comm.poll_error().unwrap_err().kind(), ErrorKind::Remote);
    let handle = comm.abort_handle();
    drop(comm);
    assert_eq!(world.log(), ["abort(comm)"]);
    assert_eq!(handle.failure().map(|error| error.kind()), Some(ErrorKind::Remote));

    world.set_state(0);
    let comm = world.comm(&library, 0, 2);
    let handle = comm.abort_handle();
    Box::new(comm).finalize().unwrap();
    assert_eq!(world.log(), ["finalize(comm)", "destroy(comm)"]);
    assert!(handle.failure().is_none());
    handle.abort().unwrap();
    assert!(world.log().is_empty());
}

#[test]
fn what_a_library_lacks_is_made_of_sends_and_receives() {
    let world = World::enter(22703);
    let absent = ["ncclAlltoAll", "ncclAllToAll", "ncclGather", "ncclScatter"];
    let library = world.library_without(&absent);
    assert_eq!(library.capabilities().all_to_all, Support::Emulated);
    let comm = world.comm(&library, 1, 2);
    let (this, other) = (Rank::new(1), Rank::new(0));
    issue!(comm.all_to_all(send(0x1000, 6), recv(0x2000, 6), launch()));
    assert_eq!(
        world.log(),
        [
            "send(0x1000, 3, to 0) on 1",
            "recv(0x2000, 3, from 0) on 1",
            "send(0x100c, 3, to 1) on 1",
            "recv(0x200c, 3, from 1) on 1",
            "launched 4",
        ]
    );
    issue!(comm.gather(send(0x1000, 3), Some(recv(0x2000, 6)), this, launch()));
    assert_eq!(
        world.log(),
        [
            "recv(0x2000, 3, from 0) on 1",
            "recv(0x200c, 3, from 1) on 1",
            "send(0x1000, 3, to 1) on 1",
            "launched 3",
        ]
    );
    issue!(comm.gather(send(0x200c, 3), Some(recv(0x2000, 6)), this, launch()));
    assert_eq!(world.log(), ["recv(0x2000, 3, from 0) on 1", "launched 1"], "in place");
    issue!(comm.gather(send(0x1000, 3), None, other, launch()));
    assert_eq!(world.log(), ["send(0x1000, 3, to 0) on 1", "launched 1"]);
    issue!(comm.scatter(Some(send(0x1000, 6)), recv(0x2000, 3), this, launch()));
    assert_eq!(
        world.log(),
        [
            "send(0x1000, 3, to 0) on 1",
            "send(0x100c, 3, to 1) on 1",
            "recv(0x2000, 3, from 1) on 1",
            "launched 3",
        ]
    );
    issue!(comm.scatter(None, recv(0x2000, 3), other, launch()));
    assert_eq!(world.log(), ["recv(0x2000, 3, from 0) on 1", "launched 1"]);
    issue!(comm.all_to_all(send(0, 0), recv(0, 0), launch()));
    assert!(world.log().is_empty(), "nothing to exchange");

    world.answer("recv", 4);
    // SAFETY: as above.
    let error = unsafe { comm.all_to_all(send(0x1000, 6), recv(0x2000, 6), launch()) }.unwrap_err();
    assert_eq!((error.kind(), error.operation()), (ErrorKind::InvalidArgument, Some("all_to_all")));
    assert_eq!(group_depth(), 0);
    assert!(world.log().contains(&"dropped 1".to_owned()));
}

#[test]
fn an_emulated_operation_joins_the_group_around_it() {
    let world = World::enter(22703);
    let library = world.library_without(&["ncclAlltoAll", "ncclAllToAll"]);
    let comm = world.comm(&library, 0, 1);
    library
        .group(|_| {
            sum(&comm, 4)?;
            // SAFETY: the library of these tests touches no memory.
            unsafe { comm.all_to_all(send(0x1000, 4), recv(0x2000, 4), launch()) }
        })
        .unwrap();
    assert_eq!(world.log().last().map(String::as_str), Some("launched 3"));
}

#[test]
fn a_send_to_self_is_fine_in_a_group() {
    let world = World::enter(NEWEST);
    let comm = world.comm(&world.library(), 0, 2);
    let this = Rank::new(0);
    issue!(comm.send_recv(send(0x1000, 4), this, recv(0x2000, 4), this, launch()));
    assert_eq!(world.log().last().map(String::as_str), Some("launched 2"));
}

#[test]
fn sends_to_self_that_do_not_pair_up_drop_their_group() {
    let world = World::enter(NEWEST);
    let library = world.library();
    let (comm, other) = (world.comm(&library, 0, 2), world.comm(&library, 1, 2));
    let this = Rank::new(0);
    // SAFETY: the library of these tests touches no memory.
    let send_to = |peer| unsafe { comm.send(send(0x1000, 4), peer, launch()) };
    // SAFETY: as above.
    let recv_from = |peer| unsafe { comm.recv(recv(0x2000, 4), peer, launch()) };

    let outcome = library.group(|_| sum(&other, 4).and_then(|()| send_to(this)));
    let error = outcome.unwrap_err();
    assert_eq!(
        error.to_string(),
        "NCCL group_end (rank 0 of 2): the group holds 1 more sends to this rank itself than \
         receives from it"
    );
    assert_eq!(error.kind(), ErrorKind::InvalidUsage);
    assert!(!error.poisons_communicator());
    assert_eq!(world.log().last().map(String::as_str), Some("dropped 2"));

    let outcome = library
        .group(|_| recv_from(this).and_then(|()| recv_from(this)).and_then(|()| send_to(this)));
    let error = outcome.unwrap_err().to_string();
    assert!(error.contains("1 more receives from this rank itself than sends to it"), "{error}");
    assert_eq!(world.log().last().map(String::as_str), Some("dropped 3"));

    // Other peers are other ranks' business, and a nested group is part of the outer one.
    library
        .group(|_| {
            library.group(|_| send_to(this))?;
            send_to(Rank::new(1))?;
            recv_from(this)
        })
        .unwrap();
    assert_eq!(world.log().last().map(String::as_str), Some("launched 3"));
    assert!(comm.abort_handle().failure().is_none());
}

#[test]
fn what_the_library_refuses_in_the_launch_breaks_the_communicators() {
    let world = World::enter(NEWEST);
    let library = world.library();
    let comm = world.comm(&library, 0, 2);
    world.answer("launch", 5);
    let error = library.group(|_| sum(&comm, 4)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidUsage);
    assert!(error.poisons_communicator(), "a part of the group may run");
    assert!(comm.abort_handle().failure().is_some());
}

#[test]
fn a_pre_mul_sum_is_the_library_s_until_it_is_destroyed() {
    let world = World::enter(NEWEST);
    let comm = world.comm(&world.library(), 0, 2);
    // SAFETY: a host scalar.
    let op = unsafe { comm.create_pre_mul_sum(Scalar::host(2.5_f32)) }.unwrap();
    let reduce = || {
        let op = ReduceOp::PreMulSum(op);
        // SAFETY: the library of these tests touches no memory.
        unsafe { comm.all_reduce(send(0x1000, 4), recv(0x2000, 4), op, launch()) }
    };
    reduce().unwrap();
    comm.destroy_pre_mul_sum(op).unwrap();
    let expected =
        ["create(2.5, 7)", "all_reduce(0x1000, 0x2000, 4, 7, 77, 0x5) on 0", "destroy_op(77)"];
    assert_eq!(world.log(), expected);
    assert_eq!(reduce().unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert_eq!(comm.destroy_pre_mul_sum(op).unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert!(world.log().is_empty());
}

#[test]
fn memory_and_registration_reach_the_library() {
    let world = World::enter(NEWEST);
    let comm = world.comm(&world.library(), 4, 8);
    let memory = comm.mem_alloc(64).unwrap();
    assert_eq!(BOUND.get(), Some(4), "the library allocates on the thread's device");
    // SAFETY: the library of these tests touches no memory.
    let registration = unsafe { comm.register(memory, 64) }.unwrap();
    // SAFETY: as above.
    unsafe { comm.deregister(registration) }.unwrap();
    // SAFETY: as above.
    unsafe { comm.mem_free(memory) }.unwrap();
    assert_eq!(
        world.log(),
        ["mem_alloc(64)", "register(0xa000, 64)", "deregister(0x99)", "mem_free(0xa000)"]
    );
}

#[test]
fn a_split_makes_a_blocking_part_or_none() {
    let world = World::enter(NEWEST);
    let comm = world.comm(&world.library(), 1, 4);
    let part = comm.split(SplitConfig::new(3).with_key(-2).with_name("half")).unwrap();
    assert_eq!(part.as_ref().map(|part| part.info().size), Some(4));
    drop(part);
    assert!(comm.split(SplitConfig::no_color()).unwrap().is_none());
    assert_eq!(
        world.log(),
        [
            "split(3, -2, blocking 1) of comm",
            "destroy(child 'half')",
            "split(-1, 0, blocking 1) of comm",
        ]
    );
    let error = comm.split(SplitConfig::new(u32::MAX)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    comm.group_start().unwrap();
    assert_eq!(comm.split(SplitConfig::new(0)).unwrap_err().kind(), ErrorKind::InvalidUsage);
    comm.group_end().unwrap();
    assert!(world.log().is_empty());
}

#[test]
fn a_part_with_no_place_in_itself_is_refused_and_ended() {
    let world = World::enter(NEWEST);
    let comm = world.comm(&world.library(), 1, 4);
    world.answer("child size", 1);
    let error = comm.split(SplitConfig::new(0)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert_eq!(
        error.to_string(),
        "NCCL split (rank 1 of 4): the new communicator calls itself rank 1 of 1"
    );
    assert_eq!(world.log(), ["split(0, 0, blocking 1) of comm", "abort(child)"]);
    assert!(comm.abort_handle().failure().is_none(), "it works as before");
}

#[test]
fn a_raw_communicator_with_no_place_in_itself_is_refused() {
    let world = World::enter(NEWEST);
    let library = world.library();
    for (rank, size) in [(0, 0), (2, 2), (-1, 2)] {
        let raw = world.raw(rank, size).0;
        // SAFETY: a communicator of this library, handed over.
        let error = unsafe { library.comm_from_raw(raw) }.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal, "rank {rank} of {size}");
    }
}

#[test]
fn a_null_communicator_is_refused() {
    let world = World::enter(NEWEST);
    // SAFETY: null is refused.
    let error = unsafe { world.library().comm_from_raw(ptr::null_mut()) }.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
}

#[test]
fn a_communicator_made_non_blocking_by_others_is_waited_for() {
    let world = World::enter(NEWEST);
    let comm = world.comm(&world.library(), 0, 2);
    world.answer("all_reduce", 7);
    sum(&comm, 4).unwrap();
    world.set_state(3);
    assert_eq!(sum(&comm, 4).unwrap_err().kind(), ErrorKind::Internal);
}

#[test]
fn groups_of_two_libraries_do_not_mix() {
    let world = World::enter(NEWEST);
    let (one, two) = (world.library(), world.library());
    one.group_start().unwrap();
    assert_eq!(
        two.group_end(collectives_core::GroupEnd::Launch).unwrap_err().kind(),
        ErrorKind::InvalidUsage
    );
    one.group_end(collectives_core::GroupEnd::Launch).unwrap();
}

#[test]
fn a_forked_child_is_told_so() {
    let world = World::enter(NEWEST);
    let library = world.library();
    let comm = world.comm(&library, 0, 2);
    // SAFETY: the child asks and ends; it allocates, which glibc allows a forked child.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "fork: {}", std::io::Error::last_os_error());
    if child == 0 {
        let kinds = [
            sum(&comm, 4).map_err(|error| error.kind()),
            library.group_start().map_err(|error| error.kind()),
            library.unique_id().map(drop).map_err(|error| error.kind()),
            comm.abort_handle().abort().map_err(|error| error.kind()),
        ];
        drop(comm);
        let good = kinds == [Err(ErrorKind::Forked); 4];
        // SAFETY: ends the child at once, running no destructor of the parent's.
        unsafe { libc::_exit(i32::from(!good)) };
    }
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    let waited = unsafe { libc::waitpid(child, &mut status, 0) };
    assert_eq!((waited, status), (child, 0));
    sum(&comm, 4).unwrap();
}

#[test]
fn one_thread_drops_all_ranks_of_a_process() {
    let world = World::enter(NEWEST);
    let library = world.library();
    let start = Instant::now();
    let comms: Vec<_> = (0..8).map(|rank| world.comm(&library, rank, 8)).collect();
    drop(comms);
    assert_eq!(world.log().len(), 8, "after {:?}", start.elapsed());
}

#[test]
fn aborts_and_calls_race_without_a_late_call() {
    for _ in 0..200 {
        let world = World::enter(NEWEST);
        let comm = world.comm(&world.library(), 0, 2);
        let handle = comm.abort_handle();
        let caller = thread::spawn(move || while sum(&comm, 4).is_ok() {});
        let polls = handle.clone();
        let poller = thread::spawn(move || while polls.failure().is_none() {});
        handle.abort().unwrap();
        caller.join().unwrap();
        poller.join().unwrap();
        let log = world.log();
        let last = log.last().map(String::as_str);
        assert_eq!(last, Some("abort(comm)"), "nothing comes after the end");
        drop(Arc::clone(&world));
    }
}

#[test]
fn pointers_are_checked_where_the_environment_asks_for_it() {
    // The variable is read once for the process, so a process of its own has it.
    let this = std::env::current_exe().expect("the test is a file");
    let outcome = std::process::Command::new(this)
        .args(["--exact", "buffers_of_other_devices_are_refused", "--ignored"])
        .env("COLLECTIVES_CHECK", "pointers")
        .output()
        .expect("it starts");
    let text = String::from_utf8_lossy(&outcome.stdout);
    assert!(outcome.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
#[ignore = "needs COLLECTIVES_CHECK=pointers; the test above runs it"]
fn buffers_of_other_devices_are_refused() {
    let world = World::enter(NEWEST);
    let comm = world.comm(&world.library(), 0, 2);
    let (foreign, own) = (send(FOREIGN, 4), recv(0x2000, 4));
    // SAFETY: the library of these tests touches no memory.
    let error = unsafe { comm.all_reduce(foreign, own, ReduceOp::Sum, launch()) }.unwrap_err();
    assert_eq!(
        error.to_string(),
        "NCCL all_reduce (rank 0 of 2): send is memory of device 1, the communicator is on device 0"
    );
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(world.log().is_empty());
    sum(&comm, 4).unwrap();
}

/// Leaves these ranks out.
fn without(ranks: &[u32]) -> ShrinkConfig {
    ShrinkConfig::new(ranks.iter().copied().map(Rank::new).collect::<Vec<_>>())
}

#[test]
fn a_shrink_makes_a_blocking_communicator_of_the_ranks_that_stay() {
    let world = World::enter(NEWEST);
    let comm = world.comm(&world.library(), 2, 5);
    let config = without(&[4, 1]);
    let small = comm.shrink(config.clone().with_name("rest")).unwrap();
    assert_eq!(config.exclude, [Rank::new(4), Rank::new(1)], "the library sorted a copy");
    assert_eq!((small.info().rank, small.info().size), (Rank::new(1), 3));
    assert_eq!((small.info().device, small.info().name.as_deref()), (2, Some("rest")));
    assert_eq!(world.log(), ["shrink([1, 4], flags 0, blocking 1, share 0)"]);
    issue!(comm.send(send(0x1000, 4), Rank::new(0), launch()));
    comm.shrink_dyn(without(&[0])).unwrap();
    world.log();
    drop(small);
    assert_eq!(world.log(), ["destroy(child 'rest')"]);
}

#[test]
fn what_cannot_be_shrunk_or_grown_never_reaches_the_library() {
    let world = World::enter(NEWEST);
    let library = world.library();
    let comm = world.comm(&library, 1, 3);
    for ranks in [&[][..], &[1], &[3], &[0, 0]] {
        let error = comm.shrink(without(ranks)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert!(!error.poisons_communicator(), "{error}");
    }
    let error = comm.grow(GrowConfig::new(3)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    let in_group = |body: &dyn Fn() -> collectives_core::Result<()>| {
        let error = library.group(|_| body()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidUsage, "{error}");
    };
    in_group(&|| comm.shrink(without(&[0])).map(drop));
    in_group(&|| comm.grow(GrowConfig::new(4)).map(drop));
    in_group(&|| comm.revoke());
    let id = library.unique_id().unwrap();
    world.log();
    let error = library.join_grown(&id, JoinConfig::new(4, 4)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    assert!(world.log().is_empty());
    sum(&world.comm(&library, 0, 2), 4).unwrap();
}

#[test]
fn what_a_release_lacks_is_refused_with_the_one_that_has_it() {
    let world = World::enter(22501);
    let absent =
        ["ncclCommShrink", "ncclCommRevoke", "ncclCommGrow", "ncclCommGetUniqueId"].as_slice();
    let library = world.library_without(absent);
    let comm = world.comm(&library, 0, 2);
    let errors = [
        comm.shrink(without(&[1])).map(drop).unwrap_err(),
        comm.revoke().unwrap_err(),
        comm.grow(GrowConfig::new(3)).map(drop).unwrap_err(),
        comm.grow_id().map(drop).unwrap_err(),
        library.join_grown(&library.unique_id().unwrap(), JoinConfig::new(2, 3)).unwrap_err(),
    ];
    assert_eq!(
        errors.map(|error| error.to_string()),
        [
            "NCCL shrink (rank 0 of 2): this library has no shrink; needs version 2.27.3 or newer",
            "NCCL revoke (rank 0 of 2): this library has no revoke; needs version 2.28.7 or newer",
            "NCCL grow (rank 0 of 2): this library has no grow; needs version 2.29.2 or newer",
            "NCCL grow_id (rank 0 of 2): this library has no grow; needs version 2.29.2 or newer",
            "NCCL join_grown (rank 2 of 3): this library has no grow; needs version 2.29.2 or newer",
        ]
    );
    sum(&comm, 4).unwrap();
}

#[test]
fn a_revoked_communicator_shrinks_and_ends_and_does_nothing_else() {
    let world = World::enter(NEWEST);
    let comm = world.comm(&world.library(), 0, 2);
    // SAFETY: a host scalar.
    let scaled = unsafe { comm.create_pre_mul_sum(Scalar::host(1.0_f32)) }.unwrap();
    world.log();
    let handle = comm.abort_handle();
    comm.revoke().unwrap();
    comm.revoke().unwrap();
    assert_eq!(world.log(), ["revoke(comm)"]);

    let error = sum(&comm, 4).unwrap_err();
    assert_eq!(
        error.to_string(),
        "NCCL all_reduce (rank 0 of 2): the communicator was revoked; shrink it, or end it and \
         join a new one"
    );
    assert!(error.poisons_communicator() && !error.is_caller_bug());
    let refused = [
        comm.poll_error().unwrap_err().kind(),
        comm.split(SplitConfig::new(0)).unwrap_err().kind(),
        comm.grow(GrowConfig::new(3)).unwrap_err().kind(),
        handle.failure().expect("a failure").kind(),
    ];
    assert_eq!(refused, [ErrorKind::Revoked; 4]);
    assert!(!handle.is_aborted());
    assert!(world.log().is_empty());

    // What was made on it can be given back.
    comm.destroy_pre_mul_sum(scaled).unwrap();
    let small = comm.shrink(without(&[1])).unwrap();
    world.log();
    sum(&small, 4).unwrap();
    world.log();
    Box::new(comm).finalize().unwrap();
    assert_eq!(world.log(), ["destroy(comm)"], "the library would refuse to finalize it");
    assert_eq!(handle.failure().map(|error| error.kind()), Some(ErrorKind::Revoked));
}

#[test]
fn a_revoked_communicator_can_be_aborted_and_dropped() {
    let world = World::enter(NEWEST);
    let library = world.library();
    let comm = world.comm(&library, 0, 2);
    comm.revoke().unwrap();
    comm.abort_handle().abort().unwrap();
    assert_eq!(world.log(), ["revoke(comm)", "abort(comm)"]);
    assert_eq!(comm.revoke().unwrap_err().kind(), ErrorKind::Aborted);
    assert_eq!(comm.shrink(without(&[1])).unwrap_err().kind(), ErrorKind::Aborted);

    let comm = world.comm(&library, 0, 2);
    comm.revoke().unwrap();
    world.log();
    drop(comm);
    assert_eq!(world.log(), ["destroy(comm)"]);
}

#[test]
fn a_revoke_that_the_library_refuses_leaves_the_communicator_revoked() {
    let world = World::enter(NEWEST);
    let comm = world.comm(&world.library(), 0, 2);
    world.answer("revoke", 1);
    let error = comm.revoke().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Device);
    assert!(error.poisons_communicator());
    assert_eq!(sum(&comm, 4).unwrap_err().kind(), ErrorKind::Revoked);
    world.log();
    drop(comm);
    assert_eq!(world.log(), ["abort(comm)"]);
}

#[test]
fn a_shrink_with_abort_leaves_nothing_to_do_with_the_parent() {
    let world = World::enter(NEWEST);
    let comm = world.comm(&world.library(), 0, 3);
    world.set_state(6);
    let error = comm.shrink(without(&[2])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Remote, "{error}");
    assert!(error.to_string().contains("shrink with abort"), "{error}");
    assert!(world.log().is_empty());
    let small = comm.shrink(without(&[2]).with_abort()).unwrap();
    assert_eq!(world.log(), ["shrink([2], flags 1, blocking 1, share 0)"]);
    assert_eq!((small.info().rank, small.info().size), (Rank::new(0), 2));
    assert_eq!(sum(&comm, 4).unwrap_err().kind(), ErrorKind::Revoked);
    drop(comm.shrink(without(&[1])).unwrap());
    world.log();
    drop(comm);
    assert_eq!(world.log(), ["abort(comm)"], "the library would flush what was dropped");
}

#[test]
fn an_abort_frees_a_rank_that_waits_in_a_shrink() {
    let world = World::enter(NEWEST);
    let comm = world.comm(&world.library(), 0, 2);
    world.hang("shrink");
    let handle = comm.abort_handle();
    let owner = thread::spawn(move || comm.shrink(without(&[1])).map(drop));
    world.wait_for("shrink");
    world.answer("shrink", 3);
    handle.abort().unwrap();
    assert_eq!(owner.join().unwrap().unwrap_err().kind(), ErrorKind::Aborted);
    assert_eq!(
        world.log(),
        ["shrink([1], flags 0, blocking 1, share 0)", "revoke(comm)", "abort(comm)"]
    );
}

#[test]
fn an_abort_frees_a_rank_whose_finalize_never_returns() {
    let world = World::enter(NEWEST);
    // Without a revoke nothing makes a call leave: older than 2.28.7.
    let comm = world.comm(&world.library_without(&["ncclCommRevoke"]), 0, 2);
    let handle = comm.abort_handle();
    world.hang("finalize");
    let owner = thread::spawn(move || Box::new(comm).finalize());
    world.wait_for("finalize");
    let aborter = thread::spawn(move || handle.abort());
    let error = owner.join().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Aborted);
    aborter.join().unwrap().unwrap();
    assert_eq!(world.log(), ["finalize(comm)"], "what is inside is leaked");
    world.release("finalize");
}

#[test]
fn finalizing_does_not_wait_for_ever_for_captured_graphs() {
    let world = World::enter(NEWEST);
    let comm = world.comm(&world.library(), 0, 2);
    world.hang("destroy");
    let error = Box::new(comm).finalize().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert_eq!(
        error.to_string(),
        "NCCL finalize (rank 0 of 2): flushed, but the library does not let go of it in 10s; \
         captured graphs may hold it: destroy them first; it goes on in the background"
    );
    assert_eq!(world.log(), ["finalize(comm)", "destroy(comm)"]);
    world.release("destroy");
}

#[test]
fn a_suspended_communicator_turns_operations_back() {
    let world = World::enter(NEWEST);
    let comm = world.comm(&world.library(), 0, 2);
    comm.suspend().unwrap();
    let error = sum(&comm, 4).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidUsage);
    assert_eq!(
        error.to_string(),
        "NCCL all_reduce (rank 0 of 2): the communicator is suspended; resume it first"
    );
    comm.poll_error().unwrap();
    assert_eq!(comm.suspend().unwrap_err().kind(), ErrorKind::InvalidUsage);
    comm.resume().unwrap();
    assert_eq!(comm.resume().unwrap_err().kind(), ErrorKind::InvalidUsage);
    sum(&comm, 4).unwrap();
    let memory = comm.memory_use().unwrap();
    assert_eq!((memory.total, memory.suspendable, memory.persistent), (103, 100, 102));
    assert!(memory.is_suspended, "any number but 0");
    assert_eq!(
        world.log(),
        [
            "suspend(1)",
            "resume()",
            SUM,
            "mem_stats(3)",
            "mem_stats(0)",
            "mem_stats(2)",
            "mem_stats(1)"
        ]
    );
    // An abort meanwhile stays one.
    comm.suspend().unwrap();
    comm.abort_handle().abort().unwrap();
    assert_eq!(comm.resume().unwrap_err().kind(), ErrorKind::Aborted);
}

#[test]
fn many_ids_go_to_the_function_for_them() {
    let world = World::enter(NEWEST);
    let library = world.library();
    let (one, two) = (library.unique_id().unwrap(), library.unique_id().unwrap());
    world.log();
    let config = JoinConfig::new(1, 2).with_more_ids([two.clone()]);
    drop(library.join(&one, config.clone()).unwrap());
    assert_eq!(world.log(), ["init_scalable(1 of 2, 2 ids)", "destroy(comm)"]);
    let error = library.join(&two, JoinConfig::new(0, 2)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidUsage, "every one of them is used up: {error}");
    let old = world.library_without(&["ncclCommInitRankScalable"]);
    let error = old.join(&one, config.clone()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "NCCL join (rank 1 of 2): this library has no join with many ids; needs version 2.23.4 or \
         newer"
    );
    let three = config.with_more_ids([one.clone(), one.clone()]);
    let error = library.join(&one, three).unwrap_err();
    assert_eq!(error.message(), "3 ids were given, want at most 2");
    assert!(world.log().is_empty());
}

#[test]
fn an_abort_frees_a_rank_that_waits_in_finalize() {
    let world = World::enter(NEWEST);
    let comm = world.comm(&world.library(), 0, 2);
    world.hang("finalize");
    let handle = comm.abort_handle();
    let owner = thread::spawn(move || Box::new(comm).finalize());
    world.wait_for("finalize");
    handle.abort().unwrap();
    assert_eq!(owner.join().unwrap().unwrap_err().kind(), ErrorKind::Aborted);
    assert_eq!(world.log(), ["finalize(comm)", "revoke(comm)", "abort(comm)"]);
    assert!(handle.is_aborted());
}

#[test]
fn members_grow_with_the_id_of_one_and_new_ranks_join_with_it() {
    let world = World::enter(NEWEST);
    let library = world.library();
    let (maker, other) = (world.comm(&library, 0, 2), world.comm(&library, 1, 2));
    let id = maker.grow_id().unwrap();
    assert_eq!(id.as_bytes()[0], 9);
    assert_eq!(maker.grow_id().unwrap_err().kind(), ErrorKind::InvalidUsage);
    let grown = maker.grow(GrowConfig::new(3).with_name("more")).unwrap();
    assert_eq!((grown.info().rank, grown.info().size), (Rank::new(0), 3));
    let grown = other.grow(GrowConfig::new(3)).unwrap();
    assert_eq!((grown.info().rank, grown.info().size), (Rank::new(1), 3));
    let new = library.join_grown(&id, JoinConfig::new(2, 3).with_device(5)).unwrap();
    assert_eq!((new.info().rank, new.info().size, new.info().device), (Rank::new(2), 3, 5));
    assert_eq!(BOUND.get(), Some(5));
    assert_eq!(
        world.log(),
        [
            "grow_id()",
            "grow(-1 of 3, id 9, blocking 1)",
            "grow(-1 of 3, no id, blocking 1)",
            "grow(2 of 3, id 9, blocking 1)",
        ]
    );
    // Used up: the next growing wants another.
    maker.grow_id().unwrap();
}

#[test]
fn a_member_alone_cannot_grow_without_an_id() {
    let world = World::enter(NEWEST);
    let comm = world.comm(&world.library(), 0, 1);
    let error = comm.grow(GrowConfig::new(2)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "NCCL grow (rank 0 of 1): no id was made for the new ranks; call grow_id first"
    );
    assert!(world.log().is_empty());
}

#[test]
fn a_growing_that_goes_on_in_the_background_is_waited_for() {
    let world = World::enter(NEWEST);
    let comm = world.comm(&world.library(), 0, 2);
    world.answer("grow", 7);
    world.set_state(7);
    let releaser = {
        let world = Arc::clone(&world);
        thread::spawn(move || {
            world.wait_for("grow(");
            world.set_state(0);
        })
    };
    let grown = comm.grow(GrowConfig::new(3)).unwrap();
    releaser.join().unwrap();
    assert_eq!(grown.info().size, 3);
    world.set_state(6);
    let error = comm.grow(GrowConfig::new(3)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Remote);
}

#[test]
fn an_abort_frees_a_rank_that_grows_in_the_background() {
    let world = World::enter(NEWEST);
    let comm = world.comm(&world.library(), 0, 2);
    world.answer("grow", 7);
    // A new rank never comes.
    world.set_state(7);
    let handle = comm.abort_handle();
    let owner = thread::spawn(move || comm.grow(GrowConfig::new(3)).map(drop));
    world.wait_for("grow(");
    handle.abort().unwrap();
    let until = Instant::now() + Duration::from_secs(30);
    while !owner.is_finished() {
        assert!(Instant::now() < until, "it waits for the new rank all the same");
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(owner.join().unwrap().unwrap_err().kind(), ErrorKind::Aborted);
    let log = world.log();
    for ended in ["abort(grown)", "abort(comm)"] {
        assert!(log.iter().any(|line| line == ended), "no {ended} in {log:?}");
    }
}

#[test]
fn freeing_memory_does_not_wait_for_ever_for_the_device() {
    let world = World::enter(NEWEST);
    let comm = world.comm(&world.library(), 4, 8);
    let memory = comm.mem_alloc(64).unwrap();
    world.hang("mem_free");
    // SAFETY: the library of these tests touches no memory.
    let error = unsafe { comm.mem_free(memory) }.unwrap_err();
    world.release("mem_free");
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(!error.poisons_communicator());
    assert_eq!(
        error.to_string(),
        "NCCL mem_free (rank 4 of 8): the library has not freed the memory in 5s; work on the device \
         may never end: abort its communicators; it goes on in the background"
    );
}
