//! Which threads call on an engine, and what they wait for: the ground on which verdicts stand.
//!
//! A thread is *known* to an engine once it has called on it. Its record outlives it, so that an end
//! whose last caller is gone can be told from one whose caller is slow.

use std::{
    cell::{Cell, OnceCell},
    collections::BTreeSet,
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{slab::Key, sync::lock};

/// One thread that has called on an engine of this process.
pub(crate) struct Thread {
    /// Never 0, never used again.
    number: u64,
    name: String,
    /// The operating system's number, where it has one that can be looked up.
    tid: Option<i32>,
    ended: AtomicBool,
    /// What it waits for now. A thread waits in one engine at a time.
    waiting: Mutex<Option<Waiting>>,
    waits: AtomicU64,
    /// Whether it only watches over others for now.
    aside: AtomicBool,
    /// Whether its wait, which was only to be polite, is called off.
    released: AtomicBool,
}

/// A wait that a thread has gone into.
#[derive(Clone, Copy)]
pub(crate) struct Waiting {
    /// The nonce of its engine.
    engine: u64,
    pub(crate) what: What,
    /// Tells the waits of a thread apart.
    pub(crate) number: u64,
    /// Whether it ends by itself some day.
    pub(crate) has_deadline: bool,
}

/// What a thread waits for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum What {
    /// That a fault rule lets it join. Whatever the rule, this counts as a wait that ends: such faults
    /// are there to try out the deadlines of others.
    Fault { rule: usize },
    /// That nothing of a rank is outstanding. A drop is only polite: it goes on without.
    Flush { comm: Key, rank: u32, is_drop: bool },
    /// That a member makes an id with which the communicator grows.
    GrowId { comm: Key, rank: u32 },
    /// That all ranks join; the call is `join`, `join_grown` or `grow`.
    Join { call: &'static str, id: u64, rank: u32 },
    /// That all ranks that stay come to this shrink of the communicator.
    Shrink { comm: Key, rank: u32, number: u64 },
    /// That all ranks come to this split of the communicator.
    Split { comm: Key, rank: u32, round: u64 },
    /// That a stream has passed so many entries.
    Stream { stream: Key, target: u64 },
}

/// The threads that one engine knows.
pub(crate) struct Threads {
    engine: u64,
    known: Mutex<Vec<Known>>,
    /// Threads that wait, so that it need not be asked for each.
    waiting: AtomicUsize,
}

/// A thread and the devices on which it called, by themselves or through an end of a communicator.
#[derive(Clone)]
pub(crate) struct Known {
    pub(crate) thread: Arc<Thread>,
    pub(crate) devices: BTreeSet<usize>,
}

thread_local! {
    /// [`Thread::number`], where the thread has a record, else 0.
    static NUMBER: Cell<u64> = const { Cell::new(0) };
    /// The engine that the thread called on last, and the devices among the first 64.
    static NOTED: Cell<(u64, u64)> = const { Cell::new((0, 0)) };
    static OWN: OnceCell<Own> = const { OnceCell::new() };
}

/// Tells of the thread's end.
struct Own(Arc<Thread>);

impl Drop for Own {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::Release);
        if let Some(tid) = self.0.tid {
            lock(&OURS).remove(&tid);
            lock(&WATCHERS).remove(&tid);
        }
    }
}

impl Thread {
    /// The calling thread's record.
    pub(crate) fn current() -> Arc<Self> {
        let own = OWN.try_with(|own| Arc::clone(&own.get_or_init(|| Own(Self::new())).0));
        // A thread that is being torn down has ended for all that matters here.
        own.unwrap_or_else(|_| {
            let thread = Self::new();
            thread.ended.store(true, Ordering::Release);
            thread
        })
    }

    fn new() -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        NUMBER.set(number);
        let current = thread::current();
        let name = current.name().map_or_else(|| format!("{:?}", current.id()), str::to_owned);
        Arc::new(Self {
            number,
            name,
            tid: own_tid(),
            ended: AtomicBool::new(false),
            waiting: Mutex::new(None),
            waits: AtomicU64::new(0),
            aside: AtomicBool::new(false),
            released: AtomicBool::new(false),
        })
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn tid(&self) -> Option<i32> {
        self.tid
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Promises that it will do nothing for any rank as long as the answer lives. Only its own
    /// thread calls.
    pub(crate) fn step_aside(self: &Arc<Self>) -> Aside {
        self.aside.store(true, Ordering::Release);
        Aside(Arc::clone(self))
    }

    /// Calls off the wait that it is in.
    pub(crate) fn release(&self) {
        self.released.store(true, Ordering::Release);
    }

    pub(crate) fn is_released(&self) -> bool {
        self.released.load(Ordering::Acquire)
    }

    /// What it waits for in `engine`.
    pub(crate) fn waiting_in(&self, engine: u64) -> Option<Waiting> {
        lock(&self.waiting).filter(|waiting| waiting.engine == engine)
    }
}

/// A thread only watches over others as long as this lives.
pub(crate) struct Aside(Arc<Thread>);

impl Drop for Aside {
    fn drop(&mut self) {
        self.0.aside.store(false, Ordering::Release);
    }
}

/// The name, in quotes.
impl fmt::Display for Thread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "thread '{}'", self.name)
    }
}

/// [`Thread::number`] of the calling thread, or 0 where it has no record yet.
#[inline]
pub(crate) fn own_number() -> u64 {
    NUMBER.get()
}

/// Sees to it that no engine takes the calling thread for one that may act.
pub(crate) fn enlist() {
    count_in(Thread::current().tid);
}

/// As [`enlist`], for a thread that looks after others: whether it is awake says nothing of them.
pub(crate) fn enlist_watcher() {
    let tid = Thread::current().tid;
    count_in(tid);
    lock(&WATCHERS).extend(tid);
}

/// Declares that the calling thread acts for no rank, however often it asks about streams and events:
/// a watchdog. For the rest of its life no verdict waits for it.
#[doc(hidden)]
pub fn only_watch() {
    Thread::current().aside.store(true, Ordering::Release);
    enlist_watcher();
}

/// Whether a thread only looks after others.
pub(crate) fn is_watcher(tid: i32) -> bool {
    lock(&WATCHERS).contains(&tid)
}

/// From here on a thread is no stranger. Comes last: whoever finds it here finds it with the engine
/// that it called on, too.
fn count_in(tid: Option<i32>) {
    if let Some(tid) = tid {
        lock(&OURS).insert(tid);
    }
}

/// Whether a thread of the process is one that calls on engines or works for them.
pub(crate) fn is_ours(tid: i32) -> bool {
    lock(&OURS).contains(&tid)
}

/// Live threads that are known to some engine or work for one.
static OURS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// Those of them that only look after others.
static WATCHERS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

impl Threads {
    pub(crate) const fn new(engine: u64) -> Self {
        Self { engine, known: Mutex::new(Vec::new()), waiting: AtomicUsize::new(0) }
    }

    /// Notes that the calling thread calls on a device, or (where `None`) on the engine at all.
    #[inline]
    pub(crate) fn note(&self, device: Option<usize>) {
        let (engine, devices) = NOTED.get();
        let noted = device.is_none_or(|device| device < 64 && devices >> device & 1 == 1);
        if engine != self.engine || !noted {
            self.note_anew(device);
        }
    }

    #[cold]
    fn note_anew(&self, device: Option<usize>) {
        let thread = Thread::current();
        let mut known = lock(&self.known);
        let index = known.iter().position(|known| known.thread.number == thread.number);
        let index = index.unwrap_or_else(|| {
            known.retain(|known| !known.thread.has_ended());
            known.push(Known { thread, devices: BTreeSet::new() });
            known.len() - 1
        });
        let devices = &mut known[index].devices;
        devices.extend(device);
        let mask = devices.iter().filter(|&&device| device < 64).fold(0, |mask, d| mask | 1 << d);
        NOTED.set((self.engine, mask));
        let tid = known[index].thread.tid;
        drop(known);
        count_in(tid);
    }

    /// Notes that the calling thread goes into a wait; the answer ends it. `None` where the wait
    /// ends by itself so soon that the thread is as good as running.
    pub(crate) fn wait(&self, what: What, until: Option<Instant>) -> Option<Wait<'_>> {
        if until.is_some_and(|until| until.saturating_duration_since(Instant::now()) < POLL) {
            return None;
        }
        self.note(None);
        let thread = Thread::current();
        let number = thread.waits.fetch_add(1, Ordering::Relaxed);
        thread.released.store(false, Ordering::Relaxed);
        *lock(&thread.waiting) =
            Some(Waiting { engine: self.engine, what, number, has_deadline: until.is_some() });
        self.waiting.fetch_add(1, Ordering::SeqCst);
        Some(Wait { threads: self, thread })
    }

    /// Whether anybody waits.
    pub(crate) fn anybody_waits(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// The threads that have not ended, and do not only watch over others.
    pub(crate) fn live(&self) -> Vec<Known> {
        let aside = |thread: &Thread| thread.aside.load(Ordering::Acquire);
        let acts = |known: &&Known| !known.thread.has_ended() && !aside(&known.thread);
        lock(&self.known).iter().filter(acts).cloned().collect()
    }

    /// The thread of this number, if it has called.
    pub(crate) fn find(&self, number: u64) -> Option<Arc<Thread>> {
        let known = lock(&self.known);
        let found = known.iter().find(|known| known.thread.number == number)?;
        Some(Arc::clone(&found.thread))
    }

    pub(crate) fn engine(&self) -> u64 {
        self.engine
    }
}

/// The calling thread waits as long as this lives.
pub(crate) struct Wait<'a> {
    threads: &'a Threads,
    thread: Arc<Thread>,
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        *lock(&self.thread.waiting) = None;
        self.threads.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(target_os = "linux")]
fn own_tid() -> Option<i32> {
    // SAFETY: takes nothing and cannot fail.
    Some(unsafe { libc::gettid() })
}

#[cfg(not(target_os = "linux"))]
fn own_tid() -> Option<i32> {
    None
}

/// A deadline nearer than this tells the caller as soon as a verdict would.
const POLL: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    const WHAT: What = What::Join { call: "join", id: 0, rank: 0 };

    #[test]
    fn a_thread_is_known_from_its_first_call_to_its_end() {
        let threads = Threads::new(7);
        thread::scope(|scope| {
            let named = thread::Builder::new().name("caller".into());
            let caller = named.spawn_scoped(scope, || {
                threads.note(Some(3));
                threads.note(Some(70));
                let known = threads.live().remove(0);
                assert_eq!(known.devices, [3, 70].into());
                assert_eq!(known.thread.to_string(), "thread 'caller'");
                assert_eq!(known.thread.number(), own_number());
                known.thread
            });
            let thread = caller.unwrap().join().unwrap();
            assert!(thread.has_ended() && threads.live().is_empty());
        });
    }

    #[test]
    fn a_wait_is_seen_in_its_engine_alone_and_a_short_one_not_at_all() {
        let threads = Threads::new(8);
        assert!(threads.wait(WHAT, Some(Instant::now() + POLL / 2)).is_none());
        let wait = threads.wait(WHAT, None).unwrap();
        let own = Thread::current();
        assert!(threads.anybody_waits() && own.waiting_in(9).is_none());
        assert!(own.waiting_in(8).is_some_and(|waiting| waiting.what == WHAT));
        drop(wait);
        assert!(!threads.anybody_waits() && own.waiting_in(8).is_none());
    }
}
