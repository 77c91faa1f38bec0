//! A library of the NCCL C ABI made of Rust functions: it moves no data, writes down what it is
//! asked, and answers what a test tells it to.
//!
//! Each test has a [`World`] of its own: that of the thread, or of the communicator in question, as
//! communicators are also called on threads of the code under test.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, HashSet},
    ffi::{CStr, CString, c_char, c_int, c_void},
    ptr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use collectives_core::{
    Backend, Device, DeviceInfo, Error, ErrorKind, F8Format, RawEvent, RawGraph, RawStream, Result,
};
use collectives_nccl_abi::{
    self as abi, Table, cudaStream_t, ncclComm_t, ncclConfig_t, ncclDataType_t, ncclRedOp_t,
    ncclResult_t, ncclScalarResidence_t, ncclUniqueId, quirks, types::ncclCommMemStat_t,
};
use collectives_nccl_family::{Comm, Library, Vendor};

/// What a test knows of its library.
#[derive(Default)]
pub(crate) struct World {
    version: c_int,
    log: Mutex<Vec<String>>,
    answers: Mutex<HashMap<&'static str, c_int>>,
    hanging: Mutex<HashSet<&'static str>>,
    /// What `ncclCommGetAsyncError` tells.
    state: Mutex<c_int>,
    /// What it tells of some ranks instead.
    states: Mutex<HashMap<c_int, c_int>>,
    last_error: Mutex<Option<&'static CStr>>,
}

impl World {
    /// A world for this thread, whose library tells this version code.
    pub(crate) fn enter(version: c_int) -> Arc<Self> {
        let world = Arc::new(Self { version, ..Self::default() });
        CURRENT.set(Some(Arc::clone(&world)));
        WORLDS.lock().unwrap().push(Arc::clone(&world));
        DEPTH.set(0);
        GROUP_ERROR.set(0);
        QUEUED.take();
        world
    }

    /// The library with every function that this module has, but those.
    pub(crate) fn library_without(&self, absent: &[&str]) -> Library<Fake> {
        // SAFETY: the functions keep the ABI.
        unsafe { Library::from_table(table_without(absent)) }.expect("it tells a version")
    }

    /// The library as if it were opened from another file: not all of its functions are the same.
    pub(crate) fn another_copy(&self) -> Library<Fake> {
        let table = Table { comm_init_rank: another_comm_init_rank, ..table_without(&[]) };
        // SAFETY: the functions keep the ABI.
        unsafe { Library::from_table(table) }.expect("it tells a version")
    }

    pub(crate) fn library(&self) -> Library<Fake> {
        self.library_without(&[])
    }

    /// A communicator that was never joined.
    pub(crate) fn comm(
        self: &Arc<Self>,
        library: &Library<Fake>,
        rank: c_int,
        size: c_int,
    ) -> Comm<Fake> {
        // SAFETY: a communicator of this library, handed over.
        unsafe { library.comm_from_raw(self.raw(rank, size).0) }.expect("it is alive")
    }

    pub(crate) fn raw(self: &Arc<Self>, rank: c_int, size: c_int) -> ncclComm_t {
        self.named(rank, size, ptr::null(), "comm")
    }

    fn named(
        self: &Arc<Self>,
        rank: c_int,
        size: c_int,
        name: *const c_char,
        kind: &'static str,
    ) -> ncclComm_t {
        let world = Arc::clone(self);
        // Never freed, so that a late use is seen in the log and not as a crash.
        let comm = Box::leak(Box::new(FakeComm { world, rank, size, name, kind }));
        ncclComm_t(ptr::from_mut(comm).cast())
    }

    /// From now on the function answers this.
    pub(crate) fn answer(&self, function: &'static str, code: c_int) {
        self.answers.lock().unwrap().insert(function, code);
    }

    /// From now on the function does not return.
    pub(crate) fn hang(&self, function: &'static str) {
        self.hanging.lock().unwrap().insert(function);
    }

    /// Calls of the function that hang return.
    pub(crate) fn release(&self, function: &'static str) {
        self.hanging.lock().unwrap().remove(function);
    }

    /// What `ncclCommGetAsyncError` tells from now on.
    pub(crate) fn set_state(&self, code: c_int) {
        *self.state.lock().unwrap() = code;
    }

    /// The same for one rank.
    pub(crate) fn set_state_of(&self, rank: c_int, code: c_int) {
        self.states.lock().unwrap().insert(rank, code);
    }

    pub(crate) fn set_last_error(&self, text: &str) {
        let text = CString::new(text).unwrap();
        *self.last_error.lock().unwrap() = Some(Box::leak(text.into_boxed_c_str()));
    }

    /// What the library was asked since the last look.
    pub(crate) fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.log.lock().unwrap())
    }

    /// Waits until the log has a line that starts like this.
    pub(crate) fn wait_for(&self, start: &str) {
        while !self.log.lock().unwrap().iter().any(|line| line.starts_with(start)) {
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn note(&self, function: &'static str, line: String) -> ncclResult_t {
        self.log.lock().unwrap().push(line);
        while self.hanging.lock().unwrap().contains(function) {
            thread::sleep(Duration::from_millis(1));
        }
        ncclResult_t(self.answer_of(function).unwrap_or(0))
    }

    fn answer_of(&self, function: &'static str) -> Option<c_int> {
        self.answers.lock().unwrap().get(function).copied()
    }
}

/// How deep the library has this thread inside groups.
pub(crate) fn group_depth() -> u32 {
    DEPTH.get()
}

thread_local! {
    static CURRENT: RefCell<Option<Arc<World>>> = const { RefCell::new(None) };
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    static GROUP_ERROR: Cell<c_int> = const { Cell::new(0) };
    static QUEUED: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

struct FakeComm {
    world: Arc<World>,
    rank: c_int,
    size: c_int,
    name: *const c_char,
    kind: &'static str,
}

/// Every world there was, by the number that its ids hold.
static WORLDS: Mutex<Vec<Arc<World>>> = Mutex::new(Vec::new());

/// The world whose library made an id, on any thread; which is then that of the thread.
fn world_of(id: &ncclUniqueId) -> Arc<World> {
    let [.., a, b, c, d] = id.internal;
    let number = u32::from_le_bytes([a, b, c, d]);
    let world = Arc::clone(&WORLDS.lock().unwrap()[number as usize]);
    CURRENT.set(Some(Arc::clone(&world)));
    world
}

/// An id of a world: so many times a byte, then a number of its own, and the world's.
fn id_of(world: &Arc<World>, byte: u8) -> [u8; 128] {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let mut id = [byte; 128];
    id[120..124].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_le_bytes());
    id[124..].copy_from_slice(&(number_of(world) as u32).to_le_bytes());
    id
}

fn number_of(world: &Arc<World>) -> usize {
    WORLDS.lock().unwrap().iter().position(|known| Arc::ptr_eq(known, world)).unwrap()
}

fn current() -> Arc<World> {
    CURRENT.with_borrow(|world| world.clone()).expect("the thread has a world")
}

fn of(comm: ncclComm_t) -> &'static FakeComm {
    assert!(!comm.is_null(), "a null communicator is never given to the library");
    // SAFETY: every communicator of this module is leaked.
    unsafe { &*comm.0.cast::<FakeComm>() }
}

/// An operation: refused for a wrong datatype, queued in a group, else done.
fn enqueue(
    function: &'static str,
    comm: ncclComm_t,
    dtype: ncclDataType_t,
    arguments: String,
) -> ncclResult_t {
    let comm = of(comm);
    let line = format!("{function}({arguments}) on {}", comm.rank);
    let mut result = comm.world.note(function, line.clone());
    if !(0..12).contains(&dtype.0) {
        result = ncclResult_t::INVALID_ARGUMENT;
    }
    if DEPTH.get() > 0 {
        match result.0 {
            0 => QUEUED.with_borrow_mut(|queued| queued.push(line)),
            code => GROUP_ERROR.set(code),
        }
    }
    result
}

extern "C" fn get_version(version: *mut c_int) -> ncclResult_t {
    // SAFETY: the caller's out pointer.
    unsafe { *version = current().version };
    ncclResult_t::SUCCESS
}

extern "C" fn get_error_string(result: ncclResult_t) -> *const c_char {
    let text = match result.0 {
        1 => c"unhandled cuda error",
        4 => c"invalid argument",
        5 => c"invalid usage",
        6 => c"remote process exited or there was a network error",
        8 => c"timeout",
        _ => c"unknown result code",
    };
    text.as_ptr()
}

extern "C" fn get_last_error(_: ncclComm_t) -> *const c_char {
    // Also asked on threads without a world.
    let world = CURRENT.with_borrow(|world| world.clone());
    let text = world.and_then(|world| *world.last_error.lock().unwrap());
    text.map_or(ptr::null(), CStr::as_ptr)
}

extern "C" fn get_unique_id(id: *mut ncclUniqueId) -> ncclResult_t {
    let world = current();
    let internal = id_of(&world, 7);
    // SAFETY: the caller's out pointer.
    unsafe { *id = ncclUniqueId { internal } };
    world.note("get_unique_id", "get_unique_id()".into())
}

extern "C" fn comm_init_rank(
    comm: *mut ncclComm_t,
    size: c_int,
    id: ncclUniqueId,
    rank: c_int,
) -> ncclResult_t {
    let world = world_of(&id);
    let result = world.note("init", format!("init({rank} of {size})"));
    if result.is_success() {
        // SAFETY: the caller's out pointer.
        unsafe { *comm = world.raw(rank, size) };
    }
    result
}

/// Is never called, as there is one with a configuration.
extern "C" fn another_comm_init_rank(
    _: *mut ncclComm_t,
    _: c_int,
    _: ncclUniqueId,
    _: c_int,
) -> ncclResult_t {
    ncclResult_t::INTERNAL_ERROR
}

extern "C" fn comm_init_rank_config(
    comm: *mut ncclComm_t,
    size: c_int,
    id: ncclUniqueId,
    rank: c_int,
    config: *mut ncclConfig_t,
) -> ncclResult_t {
    // SAFETY: the caller's configuration.
    let config = unsafe { *config };
    // SAFETY: the caller's out pointer.
    let before = unsafe { *comm };
    assert!(before.is_null(), "the out pointer holds null");
    let world = world_of(&id);
    let blocking = config.blocking;
    let share = config.splitShare.max(-1);
    let line = format!("init_config({rank} of {size}, blocking {blocking}, share {share})");
    let result = world.note("init", line);
    let flavour = abi::Flavour::Nccl;
    if quirks::rejects_undefined_blocking(flavour, world.version) && !matches!(blocking, 0 | 1) {
        return ncclResult_t::INVALID_ARGUMENT;
    }
    if result == ncclResult_t::UNHANDLED_CUDA_ERROR
        && quirks::leaks_group_level_on_failed_init(flavour, world.version)
    {
        DEPTH.set(DEPTH.get() + 1);
    }
    if matches!(result, ncclResult_t::SUCCESS | ncclResult_t::IN_PROGRESS) {
        let kind = if blocking == 0 { "parent" } else { "comm" };
        // SAFETY: as above.
        unsafe { *comm = world.named(rank, size, config.commName, kind) };
    }
    if world.answer_of("no communicator").is_some() {
        // SAFETY: as above.
        unsafe { *comm = ncclComm_t::NULL };
    }
    result
}

extern "C" fn comm_init_rank_scalable(
    comm: *mut ncclComm_t,
    size: c_int,
    rank: c_int,
    count: c_int,
    ids: *mut ncclUniqueId,
    config: *mut ncclConfig_t,
) -> ncclResult_t {
    // SAFETY: the caller's ids, of which there is one at least.
    let world = world_of(unsafe { &*ids });
    // SAFETY: the caller's configuration.
    let name = unsafe { (*config).commName };
    let line = format!("init_scalable({rank} of {size}, {count} ids)");
    let result = world.note("init", line);
    // SAFETY: the caller's out pointer.
    unsafe { *comm = world.named(rank, size, name, "comm") };
    result
}

extern "C" fn comm_suspend(comm: ncclComm_t, flags: c_int) -> ncclResult_t {
    of(comm).world.note("suspend", format!("suspend({flags})"))
}

extern "C" fn comm_resume(comm: ncclComm_t) -> ncclResult_t {
    of(comm).world.note("resume", "resume()".into())
}

/// Each number is 100 and its selector.
extern "C" fn comm_mem_stats(
    comm: ncclComm_t,
    stat: ncclCommMemStat_t,
    value: *mut u64,
) -> ncclResult_t {
    // SAFETY: the caller's out pointer.
    unsafe { *value = 100 + stat.0 as u64 };
    of(comm).world.note("mem_stats", format!("mem_stats({})", stat.0))
}

extern "C" fn comm_split(
    comm: ncclComm_t,
    color: c_int,
    key: c_int,
    child: *mut ncclComm_t,
    config: *mut ncclConfig_t,
) -> ncclResult_t {
    // SAFETY: the caller's configuration.
    let config = unsafe { *config };
    // SAFETY: the caller's out pointer.
    let before = unsafe { *child };
    assert!(before.is_null(), "the out pointer holds null");
    let parent = of(comm);
    let line = format!("split({color}, {key}, blocking {}) of {}", config.blocking, parent.kind);
    let result = parent.world.note("split", line);
    if color >= 0 && matches!(result, ncclResult_t::SUCCESS | ncclResult_t::IN_PROGRESS) {
        let size = parent.world.answer_of("child size").unwrap_or(parent.size);
        let made = parent.world.named(parent.rank, size, config.commName, "child");
        // SAFETY: as above.
        unsafe { *child = made };
    }
    result
}

/// Sorts the caller's list, as the library does.
extern "C" fn comm_shrink(
    comm: ncclComm_t,
    list: *mut c_int,
    count: c_int,
    child: *mut ncclComm_t,
    config: *mut ncclConfig_t,
    flags: c_int,
) -> ncclResult_t {
    let parent = of(comm);
    // SAFETY: the caller's list is as long as it says.
    let list = unsafe { std::slice::from_raw_parts_mut(list, count as usize) };
    list.sort_unstable();
    // SAFETY: the caller's configuration.
    let config = unsafe { *config };
    // SAFETY: the caller's out pointer.
    let before = unsafe { *child };
    assert!(before.is_null(), "the out pointer holds null");
    let (blocking, share) = (config.blocking, config.shrinkShare);
    let line = format!("shrink({list:?}, flags {flags}, blocking {blocking}, share {share})");
    let result = parent.world.note("shrink", line);
    if result.is_success() {
        let rank = parent.rank - list.iter().filter(|gone| **gone < parent.rank).count() as c_int;
        let made = parent.world.named(rank, parent.size - count, config.commName, "child");
        // SAFETY: as above.
        unsafe { *child = made };
    }
    result
}

extern "C" fn comm_get_unique_id(comm: ncclComm_t, id: *mut ncclUniqueId) -> ncclResult_t {
    // SAFETY: the caller's out pointer.
    unsafe { *id = ncclUniqueId { internal: id_of(&of(comm).world, 9) } };
    of(comm).world.note("grow_id", "grow_id()".into())
}

/// As a member with a communicator, as a new rank with null.
extern "C" fn comm_grow(
    comm: ncclComm_t,
    size: c_int,
    id: *const ncclUniqueId,
    rank: c_int,
    grown: *mut ncclComm_t,
    config: *mut ncclConfig_t,
) -> ncclResult_t {
    // SAFETY: the caller's configuration.
    let config = unsafe { *config };
    let (world, own) = match comm.is_null() {
        // SAFETY: a new rank gives an id.
        true => (world_of(unsafe { &*id }), rank),
        false => (Arc::clone(&of(comm).world), of(comm).rank),
    };
    let id = match id.is_null() {
        true => "no id".into(),
        // SAFETY: not null, so the caller's id.
        false => format!("id {}", unsafe { (*id).internal[0] }),
    };
    let result =
        world.note("grow", format!("grow({rank} of {size}, {id}, blocking {})", config.blocking));
    if matches!(result, ncclResult_t::SUCCESS | ncclResult_t::IN_PROGRESS) {
        // SAFETY: the caller's out pointer.
        unsafe { *grown = world.named(own, size, config.commName, "grown") };
    }
    result
}

/// An end: what it is called on, by which name the library knows it at that moment.
fn end(function: &'static str, comm: ncclComm_t) -> ncclResult_t {
    let comm = of(comm);
    let name = match comm.name.is_null() {
        true => String::new(),
        // SAFETY: the library keeps the pointer that its maker gave it, so it is alive.
        false => format!(" '{}'", unsafe { CStr::from_ptr(comm.name) }.to_string_lossy()),
    };
    comm.world.note(function, format!("{function}({}{name})", comm.kind))
}

extern "C" fn comm_finalize(comm: ncclComm_t) -> ncclResult_t {
    end("finalize", comm)
}

extern "C" fn comm_destroy(comm: ncclComm_t) -> ncclResult_t {
    end("destroy", comm)
}

extern "C" fn comm_abort(comm: ncclComm_t) -> ncclResult_t {
    end("abort", comm)
}

/// Makes calls that hang leave.
extern "C" fn comm_revoke(comm: ncclComm_t, flags: c_int) -> ncclResult_t {
    assert_eq!(flags, 0);
    let result = end("revoke", comm);
    for function in ["all_reduce", "finalize", "shrink"] {
        of(comm).world.release(function);
    }
    result
}

extern "C" fn comm_get_async_error(comm: ncclComm_t, state: *mut ncclResult_t) -> ncclResult_t {
    let comm = of(comm);
    let own = comm.world.states.lock().unwrap().get(&comm.rank).copied();
    let code = own.unwrap_or_else(|| *comm.world.state.lock().unwrap());
    // SAFETY: the caller's out pointer.
    unsafe { *state = ncclResult_t(code) };
    ncclResult_t::SUCCESS
}

extern "C" fn comm_count(comm: ncclComm_t, count: *mut c_int) -> ncclResult_t {
    // SAFETY: the caller's out pointer.
    unsafe { *count = of(comm).size };
    ncclResult_t::SUCCESS
}

extern "C" fn comm_cu_device(comm: ncclComm_t, device: *mut c_int) -> ncclResult_t {
    // SAFETY: the caller's out pointer.
    unsafe { *device = of(comm).rank };
    ncclResult_t::SUCCESS
}

extern "C" fn comm_user_rank(comm: ncclComm_t, rank: *mut c_int) -> ncclResult_t {
    // SAFETY: the caller's out pointer.
    unsafe { *rank = of(comm).rank };
    ncclResult_t::SUCCESS
}

extern "C" fn all_reduce(
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    dtype: ncclDataType_t,
    op: ncclRedOp_t,
    comm: ncclComm_t,
    stream: cudaStream_t,
) -> ncclResult_t {
    let arguments = match dtype.0 {
        0..12 => format!("{send:p}, {recv:p}, {count}, {}, {}, {stream:p}", dtype.0, op.0),
        _ => "poison".to_owned(),
    };
    enqueue("all_reduce", comm, dtype, arguments)
}

extern "C" fn reduce(
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    dtype: ncclDataType_t,
    op: ncclRedOp_t,
    root: c_int,
    comm: ncclComm_t,
    _: cudaStream_t,
) -> ncclResult_t {
    let arguments = format!("{send:p}, {recv:p}, {count}, {}, {}, root {root}", dtype.0, op.0);
    enqueue("reduce", comm, dtype, arguments)
}

extern "C" fn broadcast(
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    dtype: ncclDataType_t,
    root: c_int,
    comm: ncclComm_t,
    _: cudaStream_t,
) -> ncclResult_t {
    let arguments = format!("{send:p}, {recv:p}, {count}, {}, root {root}", dtype.0);
    enqueue("broadcast", comm, dtype, arguments)
}

extern "C" fn all_gather(
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    dtype: ncclDataType_t,
    comm: ncclComm_t,
    _: cudaStream_t,
) -> ncclResult_t {
    enqueue("all_gather", comm, dtype, format!("{send:p}, {recv:p}, {count}, {}", dtype.0))
}

extern "C" fn reduce_scatter(
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    dtype: ncclDataType_t,
    op: ncclRedOp_t,
    comm: ncclComm_t,
    _: cudaStream_t,
) -> ncclResult_t {
    let arguments = format!("{send:p}, {recv:p}, {count}, {}, {}", dtype.0, op.0);
    enqueue("reduce_scatter", comm, dtype, arguments)
}

extern "C" fn all_to_all(
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    dtype: ncclDataType_t,
    comm: ncclComm_t,
    _: cudaStream_t,
) -> ncclResult_t {
    enqueue("all_to_all", comm, dtype, format!("{send:p}, {recv:p}, {count}, {}", dtype.0))
}

extern "C" fn gather(
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    dtype: ncclDataType_t,
    root: c_int,
    comm: ncclComm_t,
    _: cudaStream_t,
) -> ncclResult_t {
    let arguments = format!("{send:p}, {recv:p}, {count}, {}, root {root}", dtype.0);
    enqueue("gather", comm, dtype, arguments)
}

extern "C" fn scatter(
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    dtype: ncclDataType_t,
    root: c_int,
    comm: ncclComm_t,
    _: cudaStream_t,
) -> ncclResult_t {
    let arguments = format!("{send:p}, {recv:p}, {count}, {}, root {root}", dtype.0);
    enqueue("scatter", comm, dtype, arguments)
}

extern "C" fn send(
    send: *const c_void,
    count: usize,
    dtype: ncclDataType_t,
    peer: c_int,
    comm: ncclComm_t,
    _: cudaStream_t,
) -> ncclResult_t {
    enqueue("send", comm, dtype, format!("{send:p}, {count}, to {peer}"))
}

extern "C" fn recv(
    recv: *mut c_void,
    count: usize,
    dtype: ncclDataType_t,
    peer: c_int,
    comm: ncclComm_t,
    _: cudaStream_t,
) -> ncclResult_t {
    enqueue("recv", comm, dtype, format!("{recv:p}, {count}, from {peer}"))
}

extern "C" fn group_start() -> ncclResult_t {
    DEPTH.set(DEPTH.get() + 1);
    ncclResult_t::SUCCESS
}

extern "C" fn group_end() -> ncclResult_t {
    if DEPTH.get() == 0 {
        return current().note("unmatched", "group_end without a group".into());
    }
    DEPTH.set(DEPTH.get() - 1);
    if DEPTH.get() > 0 {
        return ncclResult_t::SUCCESS;
    }
    let (error, queued) = (GROUP_ERROR.replace(0), QUEUED.take());
    if error != 0 {
        let _ = current().note("dropped", format!("dropped {}", queued.len()));
        return ncclResult_t(error);
    }
    if queued.is_empty() {
        return ncclResult_t(current().answer_of("end of joins").unwrap_or(0));
    }
    current().note("launch", format!("launched {}", queued.len()))
}

extern "C" fn red_op_create_pre_mul_sum(
    op: *mut ncclRedOp_t,
    scalar: *mut c_void,
    dtype: ncclDataType_t,
    residence: ncclScalarResidence_t,
    comm: ncclComm_t,
) -> ncclResult_t {
    let scalar = match residence {
        // SAFETY: the tests give float scalars, aligned by contract.
        ncclScalarResidence_t::HOST_IMMEDIATE => unsafe { *scalar.cast::<f32>() }.to_string(),
        _ => format!("at {scalar:p}"),
    };
    // SAFETY: the caller's out pointer.
    unsafe { *op = ncclRedOp_t(77) };
    of(comm).world.note("create", format!("create({scalar}, {})", dtype.0))
}

extern "C" fn red_op_destroy(op: ncclRedOp_t, comm: ncclComm_t) -> ncclResult_t {
    of(comm).world.note("destroy_op", format!("destroy_op({})", op.0))
}

extern "C" fn mem_alloc(memory: *mut *mut c_void, bytes: usize) -> ncclResult_t {
    let world = current();
    let result = world.note("mem_alloc", format!("mem_alloc({bytes})"));
    // SAFETY: the caller's out pointer.
    unsafe { *memory = ptr::without_provenance_mut(number_of(&world) << 16 | 0xa000) };
    result
}

/// On any thread.
extern "C" fn mem_free(memory: *mut c_void) -> ncclResult_t {
    let world = Arc::clone(&WORLDS.lock().unwrap()[memory.addr() >> 16]);
    world.note("mem_free", format!("mem_free({})", place(memory)))
}

/// Memory without the number of its world.
fn place(memory: *mut c_void) -> String {
    format!("{:#x}", memory.addr() & 0xffff)
}

extern "C" fn comm_register(
    comm: ncclComm_t,
    memory: *mut c_void,
    bytes: usize,
    handle: *mut *mut c_void,
) -> ncclResult_t {
    // SAFETY: the caller's out pointer.
    unsafe { *handle = ptr::without_provenance_mut(0x99) };
    of(comm).world.note("register", format!("register({}, {bytes})", place(memory)))
}

extern "C" fn comm_deregister(comm: ncclComm_t, handle: *mut c_void) -> ncclResult_t {
    of(comm).world.note("deregister", format!("deregister({handle:p})"))
}

/// The functions, by the library's names.
fn table_without(absent: &[&str]) -> Table {
    // SAFETY: each name is filled with the function of its signature.
    unsafe { Table::fill(|name| find(name, absent)) }.expect("the required ones")
}

fn find(name: &CStr, absent: &[&str]) -> *const c_void {
    let name = name.to_str().unwrap();
    if absent.contains(&name) {
        return ptr::null();
    }
    match name {
        "ncclGetVersion" => get_version as *const c_void,
        "ncclGetErrorString" => get_error_string as *const c_void,
        "ncclGetLastError" => get_last_error as *const c_void,
        "ncclGetUniqueId" => get_unique_id as *const c_void,
        "ncclCommInitRank" => comm_init_rank as *const c_void,
        "ncclCommInitRankConfig" => comm_init_rank_config as *const c_void,
        "ncclCommSplit" => comm_split as *const c_void,
        "ncclCommShrink" => comm_shrink as *const c_void,
        "ncclCommGetUniqueId" => comm_get_unique_id as *const c_void,
        "ncclCommInitRankScalable" => comm_init_rank_scalable as *const c_void,
        "ncclCommSuspend" => comm_suspend as *const c_void,
        "ncclCommResume" => comm_resume as *const c_void,
        "ncclCommMemStats" => comm_mem_stats as *const c_void,
        "ncclCommGrow" => comm_grow as *const c_void,
        "ncclCommFinalize" => comm_finalize as *const c_void,
        "ncclCommDestroy" => comm_destroy as *const c_void,
        "ncclCommAbort" => comm_abort as *const c_void,
        "ncclCommRevoke" => comm_revoke as *const c_void,
        "ncclCommGetAsyncError" => comm_get_async_error as *const c_void,
        "ncclCommCount" => comm_count as *const c_void,
        "ncclCommCuDevice" => comm_cu_device as *const c_void,
        "ncclCommUserRank" => comm_user_rank as *const c_void,
        "ncclAllReduce" => all_reduce as *const c_void,
        "ncclReduce" => reduce as *const c_void,
        "ncclBroadcast" => broadcast as *const c_void,
        "ncclAllGather" => all_gather as *const c_void,
        "ncclReduceScatter" => reduce_scatter as *const c_void,
        "ncclAlltoAll" => all_to_all as *const c_void,
        "ncclGather" => gather as *const c_void,
        "ncclScatter" => scatter as *const c_void,
        "ncclSend" => send as *const c_void,
        "ncclRecv" => recv as *const c_void,
        "ncclGroupStart" => group_start as *const c_void,
        "ncclGroupEnd" => group_end as *const c_void,
        "ncclRedOpCreatePreMulSum" => red_op_create_pre_mul_sum as *const c_void,
        "ncclRedOpDestroy" => red_op_destroy as *const c_void,
        "ncclMemAlloc" => mem_alloc as *const c_void,
        "ncclMemFree" => mem_free as *const c_void,
        "ncclCommRegister" => comm_register as *const c_void,
        "ncclCommDeregister" => comm_deregister as *const c_void,
        _ => ptr::null(),
    }
}

/// The vendor of this library: eight devices that hold nothing.
#[derive(Debug)]
pub(crate) enum Fake {}

impl Vendor for Fake {
    const ABI: &'static abi::Vendor = abi::Vendor::NCCL;

    type Device = NoDevice;

    fn runtime() -> Result<()> {
        match RUNTIME.get() {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::Device, "no driver in this test")),
        }
    }

    fn device_count() -> Result<usize> {
        Self::runtime().map(|()| 8)
    }

    fn device(_: usize) -> Result<NoDevice> {
        Err(Error::new(ErrorKind::Device, "the devices of this test hold nothing"))
    }

    fn make_current(ordinal: usize) -> Result<()> {
        BOUND.set(Some(ordinal));
        Ok(())
    }

    fn check(
        ordinal: usize,
        buffers: &[(&'static str, *const c_void)],
        _: RawStream,
    ) -> Result<()> {
        match buffers.iter().find(|(_, ptr)| ptr.addr() == FOREIGN) {
            Some((name, _)) => Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("{name} is memory of device 1, the communicator is on device {ordinal}"),
            )),
            None => Ok(()),
        }
    }

    fn f8_format() -> F8Format {
        F8Format::Ocp
    }
}

thread_local! {
    /// Whether this thread finds a device runtime.
    pub(crate) static RUNTIME: Cell<bool> = const { Cell::new(true) };
    /// The device that was last made current on this thread.
    pub(crate) static BOUND: Cell<Option<usize>> = const { Cell::new(None) };
}

/// An address that `Fake::check` takes for another device's.
pub(crate) const FOREIGN: usize = 0xf000;

/// No device at all.
#[derive(Clone, Debug)]
pub(crate) enum NoDevice {}

macro_rules! nothing {
    ($($function:ident($($argument:ident: $type:ty),*) -> $result:ty;)*) => {
        $(unsafe fn $function(&self, $($argument: $type),*) -> Result<$result> {
            match *self {}
        })*
    };
}

#[expect(unused_variables, reason = "there is no device to use them on")]
impl Device for NoDevice {
    fn info(&self) -> &DeviceInfo {
        match *self {}
    }

    fn alloc(&self, bytes: usize) -> Result<*mut c_void> {
        match *self {}
    }

    fn stream_create(&self) -> Result<RawStream> {
        match *self {}
    }

    fn event_create(&self) -> Result<RawEvent> {
        match *self {}
    }

    nothing! {
        free(ptr: *mut c_void, after: RawStream) -> ();
        copy_to(dst: *mut c_void, src: *const c_void, bytes: usize, stream: RawStream) -> ();
        copy_from(dst: *mut c_void, src: *const c_void, bytes: usize, stream: RawStream) -> ();
        copy_between(dst: *mut c_void, src: *const c_void, bytes: usize, stream: RawStream) -> ();
        memset(dst: *mut c_void, value: u8, bytes: usize, stream: RawStream) -> ();
        stream_destroy(stream: RawStream) -> ();
        event_destroy(event: RawEvent) -> ();
        record(event: RawEvent, stream: RawStream) -> ();
        wait(stream: RawStream, event: RawEvent) -> ();
        query(event: RawEvent) -> bool;
        synchronize(stream: RawStream, deadline: Option<Duration>) -> ();
        begin_capture(stream: RawStream) -> ();
        end_capture(stream: RawStream) -> RawGraph;
        is_capturing(stream: RawStream) -> bool;
        launch(graph: RawGraph, stream: RawStream) -> ();
        graph_destroy(graph: RawGraph) -> ();
    }
}
