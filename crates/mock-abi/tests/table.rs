//! What the functions answer where a C program would be long: called through the table, in this
//! process. Ranks have no devices, so they are on those of their numbers.

use std::{
    ffi::{CStr, c_int, c_void},
    ptr,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use collectives_mock_abi::nccl::{self, TABLE};
use collectives_nccl_abi::{
    config::ncclEncryptionConfig_t,
    ncclCollConfig_t, ncclComm_t, ncclConfig_t, ncclDataType_t, ncclRedOp_t, ncclResult_t,
    ncclUniqueId, ncclWindow_t,
    types::{ncclCommMemStat_t, ncclEncryptionMode_t, ncclParamHandle_t},
};

const OK: ncclResult_t = ncclResult_t::SUCCESS;
const ARGUMENT: ncclResult_t = ncclResult_t::INVALID_ARGUMENT;
const USAGE: ncclResult_t = ncclResult_t::INVALID_USAGE;
const IN_PROGRESS: ncclResult_t = ncclResult_t::IN_PROGRESS;
const INT32: ncclDataType_t = ncclDataType_t::INT32;

/// Calls a function of the table, an optional one as if it was required.
macro_rules! call {
    ($field:ident($($arg:expr),* $(,)?)) => {{
        // SAFETY: pointers are null, or to what outlives the call and what it enqueues.
        unsafe { (TABLE.$field)($($arg),*) }
    }};
    (?$field:ident($($arg:expr),* $(,)?)) => {{
        let function = TABLE.$field.expect("the mock has every function");
        // SAFETY: as above.
        unsafe { function($($arg),*) }
    }};
}

/// A communicator that may go to another thread.
#[derive(Clone, Copy)]
struct Rank(ncclComm_t);

// SAFETY: the mock's functions may be called from any thread, by one at a time, which tests keep to.
unsafe impl Send for Rank {}

/// The last error is the process's, so whoever reads it has the process alone.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn last_error() -> String {
    let text = call!(?get_last_error(ncclComm_t::NULL));
    // SAFETY: the buffer ends with a zero, and only this thread writes it.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

fn unique_id() -> ncclUniqueId {
    let mut id = ncclUniqueId::ZERO;
    assert_eq!(call!(get_unique_id(&mut id)), OK);
    id
}

/// A world of ranks that this thread drives.
fn world<const N: usize>() -> [Rank; N] {
    let mut comms = [ncclComm_t::NULL; N];
    assert_eq!(call!(?comm_init_all(comms.as_mut_ptr(), N as c_int, ptr::null())), OK);
    comms.map(Rank)
}

fn all_reduce(rank: Rank, value: &mut i32) -> ncclResult_t {
    let memory = (&raw mut *value).cast::<c_void>();
    call!(all_reduce(memory, memory, 1, INT32, ncclRedOp_t::SUM, rank.0, ptr::null_mut()))
}

fn state(rank: Rank) -> ncclResult_t {
    let mut state = ncclResult_t::INTERNAL_ERROR;
    assert_eq!(call!(?comm_get_async_error(rank.0, &mut state)), OK);
    state
}

/// Polls until the state is no longer `IN_PROGRESS`, as programs do.
fn settled(rank: Rank) -> ncclResult_t {
    poll(|| Some(state(rank)).filter(|&state| state != IN_PROGRESS))
}

fn poll<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < until, "it never came");
        thread::sleep(Duration::from_millis(1));
    }
}

fn destroy(ranks: &[Rank]) {
    for rank in ranks {
        assert_eq!(call!(comm_destroy(rank.0)), OK);
    }
}

fn nonblocking() -> ncclConfig_t {
    ncclConfig_t { blocking: 0, ..ncclConfig_t::undefined() }
}

/// Whether an all-reduce over communicators of this thread works.
fn works(ranks: &[Rank]) {
    let mut values = vec![1_i32; ranks.len()];
    assert_eq!(call!(group_start()), OK);
    for (rank, value) in ranks.iter().zip(&mut values) {
        assert_eq!(all_reduce(*rank, value), OK);
    }
    assert_eq!(call!(group_end()), OK);
    let last = values.as_ptr();
    // SAFETY: inside the values; the engine writes them.
    poll(|| (unsafe { last.read_volatile() } == ranks.len() as i32).then_some(()));
}

#[test]
fn ranks_that_disagree_are_told_and_that_nccl_would_not_tell() {
    let _alone = alone();
    let ranks @ [first, second] = world::<2>();
    let mut values = [1_i32; 2];
    assert_eq!(all_reduce(first, &mut values[0]), OK);
    let memory = (&raw mut values[1]).cast::<c_void>();
    // Who calls last may be told at once.
    let _ = call!(broadcast(memory, memory, 1, INT32, 0, second.0, ptr::null_mut()));
    assert_eq!(poll(|| Some(state(first)).filter(|state| *state != OK)), USAGE);
    let text = last_error();
    assert!(text.starts_with("stricter than NCCL"), "{text}");
    assert!(text.contains("all_reduce") && text.contains("broadcast"), "{text}");
    assert_eq!(all_reduce(first, &mut values[0]), USAGE);
    for rank in ranks {
        assert_eq!(call!(?comm_abort(rank.0)), OK);
    }
}

#[test]
fn a_null_communicator_is_named_by_its_call() {
    let _alone = alone();
    assert_eq!(all_reduce(Rank(ncclComm_t::NULL), &mut 0), ARGUMENT);
    assert_eq!(last_error(), "AllReduce : comm argument is NULL");
}

#[test]
fn handles_that_were_destroyed_or_never_made_are_refused() {
    let _alone = alone();
    let [rank] = world::<1>();
    destroy(&[rank]);
    assert_eq!(call!(comm_destroy(rank.0)), ARGUMENT);
    assert_eq!(all_reduce(rank, &mut 0), ARGUMENT);
    let mut other = [0_u64; 64];
    let fake = Rank(ncclComm_t(other.as_mut_ptr().cast()));
    assert_eq!(all_reduce(fake, &mut 0), ARGUMENT);
    assert_eq!(last_error(), "AllReduce : corrupted comm object detected");
}

#[test]
fn a_nonblocking_split_is_polled_on_the_parent() {
    let _alone = alone();
    let id = unique_id();
    let mut config = nonblocking();
    let mut parents = [ncclComm_t::NULL; 2];
    assert_eq!(call!(group_start()), OK);
    for (rank, parent) in parents.iter_mut().enumerate() {
        let rank = rank as c_int;
        assert_eq!(call!(?comm_init_rank_config(parent, 2, id, rank, &mut config)), OK);
        assert!(!parent.is_null(), "published before it is complete");
    }
    assert_eq!(call!(group_end()), IN_PROGRESS);
    let parents = parents.map(Rank);
    assert_eq!(parents.map(settled), [OK, OK]);

    let mut children = [ncclComm_t::NULL; 2];
    let split = |rank: usize, child: &mut ncclComm_t| call!(?comm_split(parents[rank].0, 0, 0, child, ptr::null_mut()));
    assert_eq!(split(0, &mut children[0]), OK);
    assert_eq!(state(parents[0]), IN_PROGRESS);
    assert!(children[0].is_null(), "not published before it is complete");
    assert_eq!(all_reduce(parents[0], &mut 0), ARGUMENT);
    assert_eq!(split(1, &mut children[1]), OK);
    assert_eq!(parents.map(settled), [OK, OK]);
    let children = children.map(Rank);
    // Their helpers have let go: the thread that waits here is the ranks' own.
    works(&children);
    works(&parents);
    destroy(&children);
    destroy(&parents);
}

#[test]
fn kinds_of_communicators_do_not_mix_in_a_group() {
    let _alone = alone();
    let [blocking] = world::<1>();
    let (mut config, mut other) = (nonblocking(), ncclComm_t::NULL);
    let init = call!(?comm_init_rank_config(&mut other, 1, unique_id(), 0, &mut config));
    assert!(matches!(init, OK | IN_PROGRESS), "{init:?}");
    let other = Rank(other);
    assert_eq!(settled(other), OK);
    let mut values = [1_i32; 2];
    assert_eq!(call!(group_start()), OK);
    assert_eq!(all_reduce(blocking, &mut values[0]), OK);
    assert_eq!(all_reduce(other, &mut values[1]), OK);
    assert_eq!(call!(group_end()), ARGUMENT);
    destroy(&[blocking, other]);
}

#[test]
fn a_communicator_grows() {
    let _alone = alone();
    let members @ [first, second] = world::<2>();
    let mut id = ncclUniqueId::ZERO;
    assert_eq!(call!(?comm_get_unique_id(first.0, &mut id)), OK);
    let grow = |rank: Rank, place: c_int| {
        let mut grown = ncclComm_t::NULL;
        let id = if rank.0.is_null() { &raw const id } else { ptr::null() };
        let result = call!(?comm_grow(rank.0, 3, id, place, &mut grown, ptr::null_mut()));
        assert_eq!(result, OK, "{}", last_error());
        let mut value = 1;
        assert_eq!(all_reduce(Rank(grown), &mut value), OK);
        // SAFETY: a value of this frame; the engine writes it.
        poll(|| (unsafe { (&raw const value).read_volatile() } == 3).then_some(()));
        let mut own = -1;
        assert_eq!(call!(?comm_user_rank(grown, &mut own)), OK);
        destroy(&[Rank(grown)]);
        own
    };
    let newcomer = Rank(ncclComm_t::NULL);
    let ranks = thread::scope(|scope| {
        let ends = [(first, -1), (second, -1), (newcomer, 2)].map(|(rank, place)| {
            let grow = &grow;
            scope.spawn(move || {
                let rank = rank;
                grow(rank, place)
            })
        });
        ends.map(|end| end.join().expect("a rank that grows"))
    });
    assert_eq!(ranks, [0, 1, 2]);
    let mut none = ncclComm_t::NULL;
    assert_eq!(
        call!(?comm_grow(first.0, 2, ptr::null(), -1, &mut none, ptr::null_mut())),
        ARGUMENT
    );
    destroy(&members);
}

#[test]
fn an_abort_from_another_thread_ends_a_finalize() {
    let _alone = alone();
    let [first, second] = world::<2>();
    let mut value = 1_i32;
    // Nobody else calls, so this never ends by itself.
    assert_eq!(all_reduce(first, &mut value), OK);
    let outcome = thread::scope(|scope| {
        let waits = scope.spawn(move || {
            let rank = first;
            call!(?comm_finalize(rank.0))
        });
        thread::sleep(Duration::from_millis(100));
        assert!(!waits.is_finished(), "there is an operation to wait for");
        let rank = first;
        assert_eq!(call!(?comm_abort(rank.0)), OK);
        waits.join().expect("it comes back")
    });
    assert_ne!(outcome, OK);
    assert_eq!(call!(?comm_abort(first.0)), ARGUMENT, "it is gone");
    assert_eq!(call!(?comm_abort(second.0)), OK);
}

#[test]
fn a_nonblocking_finalize_is_polled() {
    let _alone = alone();
    let id = unique_id();
    let mut config = nonblocking();
    let mut comms = [ncclComm_t::NULL; 2];
    assert_eq!(call!(group_start()), OK);
    for (rank, comm) in comms.iter_mut().enumerate() {
        let init = call!(?comm_init_rank_config(comm, 2, id, rank as c_int, &mut config));
        assert!(matches!(init, OK | IN_PROGRESS), "{init:?}");
    }
    assert_eq!(call!(group_end()), IN_PROGRESS);
    let ranks @ [first, second] = comms.map(Rank);
    assert_eq!(ranks.map(settled), [OK, OK]);
    let mut values = [1, 2];
    let [one, other] = &mut values;
    assert_eq!(all_reduce(first, one), OK);
    assert_eq!(call!(?comm_finalize(first.0)), IN_PROGRESS);
    assert_eq!(state(first), IN_PROGRESS, "it waits for the other rank");
    assert_eq!(call!(comm_destroy(first.0)), ARGUMENT);
    assert_eq!(all_reduce(second, other), OK);
    assert_eq!(call!(?comm_finalize(second.0)), IN_PROGRESS);
    assert_eq!(ranks.map(settled), [OK, OK]);
    assert_eq!(call!(?comm_finalize(first.0)), ARGUMENT, "twice");
    destroy(&ranks);
    assert_eq!(values, [3, 3]);
}

#[test]
fn unequal_counts_are_exchanged() {
    let _alone = alone();
    let ranks = world::<2>();
    // Rank r sends r + 1 elements to rank 0 and nothing to rank 1, but itself three.
    let sends = [[10, 11, 12, 13], [20, 21, 22, 23]];
    let counts: [[usize; 2]; 2] = [[1, 0], [2, 2]];
    let from: [[usize; 2]; 2] = [[1, 2], [2, 2]];
    let (mut recvs, into) = ([[0_i32; 4]; 2], [[0, 1], [0, 0]]);
    assert_eq!(call!(group_start()), OK);
    for (index, rank) in ranks.iter().enumerate() {
        let (send, recv) = ((&raw const sends[index]).cast(), (&raw mut recvs[index]).cast());
        let expected = [counts[0][index], counts[1][index]];
        let result = call!(?all_to_all_v(
            send, counts[index].as_ptr(), into[index].as_ptr(), recv, expected.as_ptr(),
            from[index].as_ptr(), INT32, rank.0, ptr::null_mut(),
        ));
        assert_eq!(result, OK);
    }
    assert_eq!(call!(group_end()), OK);
    works(&ranks);
    assert_eq!(recvs, [[0, 10, 20, 21], [0, 0, 20, 21]]);
    destroy(&ranks);
}

#[test]
fn a_configuration_of_an_old_header_is_read_as_far_as_it_goes() {
    let _alone = alone();
    let mut old = ncclConfig_t {
        size: 24,
        version: 21403,
        blocking: 1,
        CTAPolicy: 1234,
        ..ncclConfig_t::undefined()
    };
    let mut comm = ncclComm_t::NULL;
    assert_eq!(call!(?comm_init_rank_config(&mut comm, 1, unique_id(), 0, &mut old)), OK);
    destroy(&[Rank(comm)]);
    old.size = 120;
    old.version = 23203;
    assert_eq!(call!(?comm_init_rank_config(&mut comm, 1, unique_id(), 0, &mut old)), ARGUMENT);
    let many =
        call!(?comm_init_rank_scalable(&mut comm, 1, 0, 2, &mut unique_id(), ptr::null_mut()));
    assert_eq!(many, ARGUMENT, "more ids than ranks");
}

#[test]
fn a_zeroed_configuration_is_refused_before_the_communicator_is_looked_at() {
    let _alone = alone();
    let zeroed = ncclCollConfig_t { size: 0, magic: 0, ..ncclCollConfig_t::undefined() };
    let reduce = |config: &ncclCollConfig_t| {
        let (memory, comm, stream) = (ptr::null_mut(), ncclComm_t::NULL, ptr::null_mut());
        let op = ncclRedOp_t::SUM;
        call!(?all_reduce_config(memory, memory, 0, INT32, op, comm, stream, config))
    };
    assert_eq!(reduce(&zeroed), ARGUMENT);
    assert!(last_error().contains("not initialized"), "{}", last_error());
    assert_eq!(reduce(&ncclCollConfig_t::undefined()), ARGUMENT);
    assert!(last_error().contains("comm argument is NULL"), "{}", last_error());
}

#[test]
fn windows_know_their_memory_and_one_sided_operations_are_refused() {
    let _alone = alone();
    let [rank] = world::<1>();
    let mut memory = [0_u8; 4096];
    let (start, mut window, mut told) =
        (memory.as_mut_ptr().cast::<c_void>(), ncclWindow_t::NULL, ptr::null_mut());
    assert_eq!(call!(?comm_window_register(rank.0, start, 4096, &mut window, 1)), OK);
    assert_eq!(call!(?win_get_user_ptr(rank.0, window, &mut told)), OK);
    assert_eq!(told, start);
    let stream = ptr::null_mut();
    let put = call!(?put_signal(start, 1, INT32, 0, window, 0, 0, 0, 0, rank.0, stream));
    assert_eq!(put, ARGUMENT);
    assert!(last_error().contains("host RMA is not supported"), "{}", last_error());
    assert_eq!(call!(?signal(7, 0, 0, 0, rank.0, stream)), ARGUMENT);
    assert_eq!(call!(?comm_window_deregister(rank.0, window)), OK);
    assert_eq!(call!(?comm_window_deregister(rank.0, window)), ARGUMENT);
    assert_eq!(call!(?comm_window_register(rank.0, start, 0, &mut window, 0)), ARGUMENT);
    assert_eq!(call!(?comm_window_register(rank.0, start, 8, &mut window, 512)), ARGUMENT);
    destroy(&[rank]);
}

#[test]
fn parameters_are_seven_texts() {
    let _alone = alone();
    let (mut keys, mut count) = (ptr::null_mut(), 0);
    assert_eq!(call!(?param_get_all_parameter_keys(&mut keys, &mut count)), OK);
    assert_eq!(count, 7);
    // SAFETY: the first of seven static texts.
    let first = unsafe { *keys };
    // SAFETY: as above.
    assert_eq!(unsafe { CStr::from_ptr(first) }, c"NCCL_DEBUG");
    let mut handle = ncclParamHandle_t::NULL;
    assert_eq!(call!(?param_bind(&mut handle, c"NCCL_DEBUG".as_ptr())), OK);
    assert_eq!(call!(?param_get_i64(handle, &mut 0)), ARGUMENT);
    let (mut text, mut length) = (ptr::null(), 0);
    assert_eq!(call!(?param_get_str(handle, &mut text)), OK);
    let mut room = [0_u8; 64];
    let place = room.as_mut_ptr().cast();
    assert_eq!(call!(?param_get(handle, place, 64, &mut length)), OK);
    assert_eq!(call!(?param_get(handle, place, 1, &mut length)), ARGUMENT);
    let known = c"NCCL_SET_THREAD_NAME".as_ptr();
    assert_eq!(call!(?param_get_parameter(known, &mut text, &mut length)), OK);
    assert_eq!(call!(?param_bind(&mut handle, c"NCCL_ALGO".as_ptr())), ARGUMENT);
    assert_eq!(call!(?param_bind(&mut handle, ptr::null())), ARGUMENT);
    assert_eq!(call!(?param_get_str(ncclParamHandle_t::NULL, &mut text)), ARGUMENT);
}

#[test]
fn encryption_wants_a_long_key() {
    let _alone = alone();
    let set = |mode, key: &CStr| {
        let config = ncclEncryptionConfig_t {
            mode: ncclEncryptionMode_t(mode),
            psk: key.as_ptr(),
            ..ncclEncryptionConfig_t::none()
        };
        call!(?set_encryption(&config))
    };
    assert_eq!(call!(?set_encryption(ptr::null())), OK);
    assert_eq!([set(0, c""), set(1, c"short"), set(9, c"")], [OK, ARGUMENT, ARGUMENT]);
    assert_eq!(set(1, c"0123456789abcdef0123456789abcdef"), OK);
}

#[test]
fn a_suspended_communicator_waits_for_its_resumption() {
    let _alone = alone();
    let [rank] = world::<1>();
    assert_eq!(call!(?comm_suspend(rank.0, 1)), OK);
    assert_eq!(all_reduce(rank, &mut 0), USAGE);
    assert_eq!(call!(?comm_resume(rank.0)), OK);
    let mut bytes = 1;
    assert_eq!(call!(?comm_mem_stats(rank.0, ncclCommMemStat_t::GPU_MEM_TOTAL, &mut bytes)), OK);
    assert_eq!(bytes, 0);
    assert_eq!(call!(?comm_mem_stats(rank.0, ncclCommMemStat_t(9), &mut bytes)), ARGUMENT);
    works(&[rank]);
    destroy(&[rank]);
}

#[test]
fn what_serves_kernels_is_refused_but_teams_are_known() {
    let _alone = alone();
    let ranks @ [_, second] = world::<2>();
    // SAFETY: a live communicator.
    let team = unsafe { nccl::ncclTeamWorld(second.0) };
    assert_eq!((team.nRanks, team.rank, team.stride), (2, 1, 1));
    // SAFETY: a live communicator.
    assert_eq!(unsafe { nccl::ncclTeamRankToWorld(second.0, team, 0) }, 0);
    // SAFETY: it reads nothing.
    assert_eq!(unsafe { nccl::ncclDevCommCreate() }, USAGE);
    destroy(&ranks);
}
