//! Faults of the program in memory that was taken from it: the signal handler, and what it leaves for
//! the engine.
//!
//! A handler may run in the middle of anything, also of the allocator. So what it needs is in atomics
//! that live for ever: a list of [`Spot`]s, one for each engine that watches memory at the same time.
//! Of a fault in a watched place it
//!
//! 1. notes the address and whether it was a store, in one of the spot's free notes;
//! 2. gives the page back to the program, which then makes the access for which it was stopped;
//! 3. returns.
//!
//! It does not judge. What the access hit, if anything, the engine finds out when it next looks
//! ([`Spot::take`]), and it looks before it forgets what it had taken away. An access counts as made after
//! all that was taken away before the note was written, because that is when it is made.
//!
//! Every other fault goes to whoever handled the signal before: the runtime of Rust, which tells of stack
//! overflows, a handler of the program, or the system, which ends the process.

use std::{
    ffi::{c_int, c_void},
    io,
    mem::{self, MaybeUninit},
    ops::Range,
    ptr,
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
};

use rustix::mm::{MprotectFlags, mprotect};

use crate::{fork, sync::lock};

/// A stretch of memory that is watched, or was: spots are never given back, but used again.
pub(crate) struct Spot {
    /// Its first byte.
    start: AtomicUsize,
    /// Its length; 0 while nothing is watched.
    bytes: AtomicUsize,
    /// How often memory was taken from the program.
    taken: AtomicU64,
    /// Faults so far, by which notes are put in order.
    faults: AtomicU64,
    /// Pages given back one by one since the engine looked.
    pages: AtomicU32,
    /// Whether more was given back than there are notes of.
    lost: AtomicBool,
    /// Whether there are notes.
    news: AtomicBool,
    notes: [Note; NOTES],
    next: AtomicPtr<Self>,
}

/// What the handler saw.
#[derive(Default)]
struct Note {
    state: AtomicU32,
    address: AtomicUsize,
    /// See [`Touch::stores`]: 0 for `None`, 1 for a load, 2 for a store.
    access: AtomicU32,
    taken: AtomicU64,
    fault: AtomicU64,
}

/// An access of the program to memory that had been taken from it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Touch {
    pub(crate) address: usize,
    /// Whether it was a store, where the machine tells.
    pub(crate) stores: Option<bool>,
    /// How often memory had been taken before.
    pub(crate) taken: u64,
    fault: u64,
}

impl Spot {
    const fn new() -> Self {
        Self {
            start: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            taken: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            pages: AtomicU32::new(0),
            lost: AtomicBool::new(false),
            news: AtomicBool::new(false),
            notes: [const { Note::new() }; NOTES],
            next: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Watches a mapping from now on.
    ///
    /// # Errors
    /// Where the system takes no handler.
    pub(crate) fn watch(start: usize, bytes: usize) -> io::Result<&'static Self> {
        static ADDING: Mutex<()> = Mutex::new(());
        install()?;
        let adding = lock(&ADDING);
        let free = all().find(|spot| spot.bytes.load(Ordering::Acquire) == 0);
        let spot = free.unwrap_or_else(|| {
            let spot = Box::leak(Box::new(Self::new()));
            spot.next.store(SPOTS.load(Ordering::Acquire), Ordering::Relaxed);
            SPOTS.store(spot, Ordering::Release);
            spot
        });
        drop(spot.take());
        spot.begin(start, bytes);
        drop(adding);
        Ok(spot)
    }

    /// Nothing is watched before.
    fn begin(&self, start: usize, bytes: usize) {
        // Release: who reads this start reads no length from before it, see `range`.
        self.start.store(start, Ordering::Release);
        self.bytes.store(bytes, Ordering::Release);
    }

    /// Ends that. The mapping is still there.
    pub(crate) fn forget(&self) {
        self.bytes.store(0, Ordering::Release);
    }

    /// Notes that memory is about to be taken from the program. The answer is how often that was so
    /// before this time.
    pub(crate) fn note_taking(&self) -> u64 {
        self.taken.fetch_add(1, Ordering::AcqRel)
    }

    /// Whether there is anything to take.
    #[inline]
    pub(crate) fn has_news(&self) -> bool {
        self.news.load(Ordering::Acquire)
    }

    /// The notes since the last time, in order, and whether the program has more memory back than they
    /// say.
    pub(crate) fn take(&self) -> (Vec<Touch>, bool) {
        if !self.news.swap(false, Ordering::AcqRel) {
            return (Vec::new(), false);
        }
        let read = |note: &Note| {
            (note.state.load(Ordering::Acquire) == WRITTEN).then(|| {
                let touch = Touch {
                    address: note.address.load(Ordering::Relaxed),
                    stores: match note.access.load(Ordering::Relaxed) {
                        LOAD => Some(false),
                        STORE => Some(true),
                        _ => None,
                    },
                    taken: note.taken.load(Ordering::Relaxed),
                    fault: note.fault.load(Ordering::Relaxed),
                };
                note.state.store(EMPTY, Ordering::Release);
                touch
            })
        };
        let mut touches: Vec<Touch> = self.notes.iter().filter_map(read).collect();
        touches.sort_unstable_by_key(|touch| touch.fault);
        self.pages.store(0, Ordering::Relaxed);
        (touches, self.lost.swap(false, Ordering::AcqRel))
    }

    /// Runs in the handler. What is watched; nothing where that changes right now, since start and
    /// length may then be those of two mappings.
    fn range(&self) -> Range<usize> {
        let bytes = self.bytes.load(Ordering::Acquire);
        let start = self.start.load(Ordering::Acquire);
        let is_one = self.bytes.load(Ordering::Relaxed) == bytes;
        start..start + if is_one { bytes } else { 0 }
    }

    /// Runs in the handler. Gives memory back to the program; the answer is whether that worked.
    fn lift(&self, address: usize, stores: Option<bool>) -> bool {
        // A function that a stream calls is in the order of the stream, and the child of a fork has
        // nobody to tell.
        if !is_in_order() && !fork::in_forked_child() {
            self.note(address, stores);
        }
        let page = PAGE.load(Ordering::Relaxed);
        let start = address - address % page;
        // Each page by itself may leave more mappings than the system allows, and none for others.
        if self.pages.fetch_add(1, Ordering::Relaxed) < MOST_PAGES && open(start..start + page) {
            return true;
        }
        self.lost.store(true, Ordering::Release);
        self.news.store(true, Ordering::Release);
        open(self.range())
    }

    fn note(&self, address: usize, stores: Option<bool>) {
        let fault = self.faults.fetch_add(1, Ordering::Relaxed);
        let free = self.notes.iter().find(|note| {
            let (success, failure) = (Ordering::Acquire, Ordering::Relaxed);
            note.state.compare_exchange(EMPTY, BEING_WRITTEN, success, failure).is_ok()
        });
        // Those that came first say what went wrong.
        let Some(note) = free else { return };
        let access = stores.map_or(0, |stores| if stores { STORE } else { LOAD });
        note.address.store(address, Ordering::Relaxed);
        note.access.store(access, Ordering::Relaxed);
        note.taken.store(self.taken.load(Ordering::Acquire), Ordering::Relaxed);
        note.fault.store(fault, Ordering::Relaxed);
        note.state.store(WRITTEN, Ordering::Release);
        self.news.store(true, Ordering::Release);
    }
}

impl Note {
    const fn new() -> Self {
        Self {
            state: AtomicU32::new(EMPTY),
            address: AtomicUsize::new(0),
            access: AtomicU32::new(0),
            taken: AtomicU64::new(0),
            fault: AtomicU64::new(0),
        }
    }
}

/// Runs a function of the program that a stream calls: whatever it touches is in the order of that
/// stream.
pub(crate) fn in_order(function: impl FnOnce()) {
    let before = IN_ORDER.swap(thread(), Ordering::Relaxed);
    function();
    IN_ORDER.store(before, Ordering::Relaxed);
}

fn is_in_order() -> bool {
    let thread_in_order = IN_ORDER.load(Ordering::Relaxed);
    thread_in_order != 0 && thread_in_order == thread()
}

/// The number of the calling thread. One system call, and nothing else: thread locals may allocate.
fn thread() -> i32 {
    rustix::thread::gettid().as_raw_nonzero().get()
}

/// Lets the program load and store. The answer is whether the system agreed.
fn open(memory: Range<usize>) -> bool {
    let start = ptr::with_exposed_provenance_mut::<c_void>(memory.start);
    // SAFETY: whole pages of a mapping that is watched, and so is there; to allow more breaks no
    // promise.
    unsafe { mprotect(start, memory.len(), MprotectFlags::READ | MprotectFlags::WRITE) }.is_ok()
}

fn all() -> impl Iterator<Item = &'static Spot> {
    let next = |spot: &AtomicPtr<Spot>| {
        // SAFETY: null, or leaked in `watch` after it was made whole.
        unsafe { spot.load(Ordering::Acquire).as_ref() }
    };
    std::iter::successors(next(&SPOTS), move |spot| next(&spot.next))
}

/// Puts the handler in place, once and for good.
fn install() -> io::Result<()> {
    static DONE: OnceLock<Result<(), i32>> = OnceLock::new();
    let put = || {
        PAGE.store(rustix::param::page_size(), Ordering::Relaxed);
        let failed = || io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL);
        let mut before = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: a null action asks for the present one, for which there is room.
        if unsafe { libc::sigaction(libc::SIGSEGV, ptr::null(), before.as_mut_ptr()) } != 0 {
            return Err(failed());
        }
        // Known before the handler may need it.
        // SAFETY: the call above has written it.
        BEFORE.get_or_init(|| unsafe { before.assume_init() });
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: integers and an optional pointer, for which zero is a value.
        let mut action = unsafe { action.assume_init_mut() };
        let action = &mut action;
        action.sa_sigaction = on_fault as *const () as usize;
        // On the other stack, if the thread has one, or stack overflows could not be told.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: the handler has the signature that the flags say, is there for ever, and does only
        // what a handler may.
        match unsafe { libc::sigaction(libc::SIGSEGV, *action, ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(failed()),
        }
    };
    (*DONE.get_or_init(put)).map_err(io::Error::from_raw_os_error)
}

/// The handler.
extern "C" fn on_fault(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the system gives the handler its information.
    let about = unsafe { &*info };
    let code = about.si_code;
    if code == SEGV_ACCERR {
        // SAFETY: a fault has an address.
        let address = unsafe { about.si_addr() }.addr();
        let spot = all().find(|spot| spot.range().contains(&address));
        // SAFETY: the context is that of the fault.
        if spot.is_some_and(|spot| spot.lift(address, unsafe { stores(context) })) {
            return;
        }
    }
    pass_on(signal, code, info, context);
}

/// Has others handle the signal, as if there were no handler here.
fn pass_on(signal: c_int, code: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let before = BEFORE
        .get()
        .filter(|before| ![libc::SIG_DFL, libc::SIG_IGN].contains(&before.sa_sigaction));
    let Some(before) = before else {
        reset(signal);
        if code <= 0 {
            // It was sent, and would not come again by itself.
            // SAFETY: no promise is asked for.
            unsafe { libc::raise(signal) };
        }
        return;
    };
    if before.sa_flags & libc::SA_RESETHAND != 0 {
        reset(signal);
    }
    if before.sa_flags & libc::SA_NODEFER != 0 {
        unblock(signal);
    }
    if before.sa_flags & libc::SA_SIGINFO != 0 {
        type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);
        // SAFETY: what was installed with this flag has this signature, and its address is not null.
        let handler = unsafe { mem::transmute::<usize, Handler>(before.sa_sigaction) };
        handler(signal, info, context);
    } else {
        // SAFETY: as above, without the flag.
        let handler = unsafe { mem::transmute::<usize, extern "C" fn(c_int)>(before.sa_sigaction) };
        handler(signal);
    }
}

/// Leaves the signal to the system.
fn reset(signal: c_int) {
    let action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: all zero is the system's own handling, without flags and with an empty mask.
    unsafe { libc::sigaction(signal, action.as_ptr(), ptr::null_mut()) };
}

/// Lets the signal come to this thread, also while it is handled.
fn unblock(signal: c_int) {
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: the set is there, for this and the next two.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: as above.
    unsafe { libc::sigaddset(set.as_mut_ptr(), signal) };
    // SAFETY: as above.
    unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, set.as_ptr(), ptr::null_mut()) };
}

/// Whether the access that faulted was a store. `None` where the machine does not tell.
///
/// # Safety
/// `context` is what the system gave to a handler of a fault.
#[cfg(target_arch = "x86_64")]
unsafe fn stores(context: *const c_void) -> Option<bool> {
    /// The page fault's error code, of which bit 1 says that it was a write.
    const WRITE: i64 = 1 << 1;
    // SAFETY: promised by the caller.
    let context = unsafe { &*context.cast::<libc::ucontext_t>() };
    Some(context.uc_mcontext.gregs[libc::REG_ERR as usize] & WRITE != 0)
}

/// Whether the access that faulted was a store. `None` where the machine does not tell.
///
/// # Safety
/// `context` is what the system gave to a handler of a fault.
#[cfg(target_arch = "aarch64")]
unsafe fn stores(context: *const c_void) -> Option<bool> {
    /// Records of the kernel's `struct _aarch64_ctx`: magic number, length, contents.
    const RECORDS: usize = 4096;
    const ESR_MAGIC: u32 = 0x4553_5201;
    /// A data abort from user space, by the syndrome's exception class.
    const DATA_ABORT: u64 = 0b10_0100;
    /// Write, not read.
    const WRITE: u64 = 1 << 6;
    // SAFETY: promised by the caller.
    let context = unsafe { &*context.cast::<libc::ucontext_t>() };
    let machine = ptr::from_ref(&context.uc_mcontext);
    // The records are its last field.
    let records = machine.cast::<u8>().wrapping_add(size_of_val(&context.uc_mcontext) - RECORDS);
    let mut at = 0;
    while at + 16 <= RECORDS {
        let record = records.wrapping_add(at);
        // SAFETY: within the records, which are aligned to 16 bytes, as their lengths are.
        let [magic, length] = unsafe { record.cast::<[u32; 2]>().read() };
        if magic == ESR_MAGIC {
            // SAFETY: as above; the record holds the syndrome behind its head.
            let syndrome = unsafe { record.wrapping_add(8).cast::<u64>().read() };
            return (syndrome >> 26 == DATA_ABORT).then_some(syndrome & WRITE != 0);
        }
        if magic == 0 || length < 16 || !length.is_multiple_of(16) {
            return None;
        }
        at += length as usize;
    }
    None
}

/// Whether the access that faulted was a store: this machine does not tell.
///
/// # Safety
/// None.
#[cfg(not(any(target_arch = "aarch64", target_arch = "x86_64")))]
unsafe fn stores(_: *const c_void) -> Option<bool> {
    None
}

static SPOTS: AtomicPtr<Spot> = AtomicPtr::new(ptr::null_mut());
/// How the signal was handled before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();
/// Bytes of a page, as the handler has to know.
static PAGE: AtomicUsize = AtomicUsize::new(4096);
/// The thread that runs a function which a stream calls; 0 for none.
static IN_ORDER: std::sync::atomic::AtomicI32 = std::sync::atomic::AtomicI32::new(0);

/// Accesses that are remembered between two looks of the engine: the first ones.
const NOTES: usize = 64;
/// Pages that are given back one by one between two looks; then it is all of them.
const MOST_PAGES: u32 = 1024;

/// States of a note.
const EMPTY: u32 = 0;
const BEING_WRITTEN: u32 = 1;
const WRITTEN: u32 = 2;
const LOAD: u32 = 1;
const STORE: u32 = 2;

/// The page is there, and the access is not allowed.
const SEGV_ACCERR: c_int = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spot_that_is_used_again_never_watches_what_neither_mapping_has() {
        let (long, short) = (0x1000_0000..0x1010_0000, 0x2000_0000..0x2000_1000_usize);
        // Behind the short one, where it would end with the length of the long one.
        let beyond = short.end + 0x1000;
        let (spot, is_over) = (Spot::new(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..if cfg!(miri) { 100 } else { 200_000 } {
                    for range in [&long, &short] {
                        spot.begin(range.start, range.len());
                        spot.forget();
                    }
                }
                is_over.store(true, Ordering::Relaxed);
            });
            while !is_over.load(Ordering::Relaxed) {
                let range = spot.range();
                assert!(!range.contains(&beyond), "{range:x?}");
            }
        });
    }
}
