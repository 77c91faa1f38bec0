//! The watchdog: nobody waits for ever for a rank that is gone.
//!
//! A collective whose peer is missing hangs on the device, and no library tells. One thread for the
//! whole process looks after the communicators that are [watched](crate::Communicator::watch):
//!
//! 1. A call notes itself in its communicator's book before it is issued, and again when it has
//!    returned. That is all that the path of an operation pays: two short locks.
//! 2. Every tick the thread records an event behind what was enqueued since, on each stream that has
//!    something, and polls the event of the tick before. It never asks a stream whether it is done,
//!    which would break a capture; events are polled in relaxed capture mode, since a capture of
//!    another thread may forbid even that. On a stream that other code captures it records nothing.
//! 3. Every tick it asks the library whether the communicator failed (`ncclCommGetAsyncError`).
//! 4. What has not passed by its deadline, and what failed, is *condemned*: waits and calls return
//!    the reason, with what was pending. Then the communicator is aborted, which lets its streams go
//!    on, unless the program wants to revoke and shrink it.
//!
//! The thread keeps no communicator and no stream alive. It reaches a stream through its gate, which
//! the stream closes when it is dropped.

use std::{
    collections::{HashMap, VecDeque},
    env,
    panic::Location,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, Once, OnceLock, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use collectives_backend_mock::only_watch;
use collectives_core::{
    AbortHandle, CommInfo, Device, Error, ErrorKind, RawEvent, RawStream, Result,
};

use crate::{AnyDevice, Stream, place::Place};

/// What the watchdog does for a communicator; see [`Communicator::watch`](crate::Communicator::watch).
///
/// ```
/// use std::time::Duration;
/// use collectives::Watch;
///
/// let watch = Watch::new().with_deadline(Duration::from_secs(30));
/// # let _ = watch;
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Watch {
    deadline: Option<Duration>,
    aborts: bool,
}

impl Watch {
    /// Notices that the communicator failed, and aborts it.
    pub const fn new() -> Self {
        Self { deadline: None, aborts: true }
    }

    /// Notices operations that are not done so long after they were called, too.
    ///
    /// The time is that of the call and of the stream: work of other code before an operation on the
    /// same stream counts, and so does what is enqueued behind it within a tick, an eighth of the
    /// deadline, at most 100 ms. Choose a deadline that the slowest step keeps easily.
    pub const fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Tells waits, but does not abort: for programs that go on with a revoke and a shrink, which an
    /// aborted communicator allows no more. What is stuck inside a call of the library stays there.
    pub const fn without_abort(mut self) -> Self {
        self.aborts = false;
        self
    }

    /// What `COLLECTIVES_WATCHDOG` asks for, read once: seconds, or `failures` for no deadline.
    pub(crate) fn from_env() -> Option<&'static Self> {
        static ANSWER: OnceLock<Option<Watch>> = OnceLock::new();
        let read = || {
            let value = env::var("COLLECTIVES_WATCHDOG").ok().filter(|value| !value.is_empty())?;
            let watch = Self::parse(&value);
            if watch.is_none() {
                tracing::warn!(%value, "COLLECTIVES_WATCHDOG wants seconds, or 'failures', or 'off'");
            }
            watch.flatten()
        };
        ANSWER.get_or_init(read).as_ref()
    }

    /// `None` for what cannot be read, `Some(None)` for none.
    fn parse(value: &str) -> Option<Option<Self>> {
        match value {
            "failures" => Some(Some(Self::new())),
            "off" => Some(None),
            seconds => {
                let seconds = seconds.parse().ok().filter(|&seconds| seconds > 0.0)?;
                let deadline = Duration::try_from_secs_f64(seconds).ok()?;
                Some(Some(Self::new().with_deadline(deadline)))
            }
        }
    }

    fn tick(&self) -> Duration {
        self.deadline.map_or(SLOWEST, |deadline| (deadline / 8).clamp(FASTEST, SLOWEST))
    }
}

impl Default for Watch {
    fn default() -> Self {
        Self::new()
    }
}

/// A communicator that is watched.
pub(crate) struct Watched {
    info: CommInfo,
    place: Place,
    handle: AbortHandle,
    watch: Mutex<Watch>,
    book: Mutex<Book>,
    /// By stream. `None` once nobody is to look any more: it has ended, or was condemned.
    marks: Mutex<Option<HashMap<u64, Mark>>>,
    /// Why it was condemned.
    reason: OnceLock<Error>,
}

impl Watched {
    /// Has the communicator watched.
    pub(crate) fn begin(
        info: CommInfo,
        device: &AnyDevice,
        handle: AbortHandle,
        watch: Watch,
    ) -> Arc<Self> {
        let watched = Arc::new(Self {
            info,
            place: Place::of(device),
            handle,
            watch: Mutex::new(watch),
            book: Mutex::default(),
            marks: Mutex::new(Some(HashMap::new())),
            reason: OnceLock::new(),
        });
        Dog::add(&watched);
        watched
    }

    pub(crate) fn watch(&self) -> Watch {
        lock(&self.watch).clone()
    }

    pub(crate) fn set_watch(&self, watch: Watch) {
        *lock(&self.watch) = watch;
        // It may want to be looked at sooner.
        Dog::get().called.notify_one();
    }

    /// Notes a call that is about to be issued; the answer is for [`issued`](Self::issued).
    pub(crate) fn calls(
        &self,
        stream: &Stream,
        name: &'static str,
        site: &'static Location<'static>,
    ) -> u64 {
        let mut book = lock(&self.book);
        let number = book.next;
        book.next += 1;
        let entry = Entry { number, name, site, since: now(), enqueued: false };
        let lane = book.lane(stream);
        // What is in the middle of a long queue nobody will ask about.
        if lane.len() == LONGEST {
            lane.pop_back();
        }
        lane.push_back(entry);
        number
    }

    /// Notes that a call has returned; one that was refused is forgotten.
    pub(crate) fn issued(&self, stream: &Stream, number: u64, done: bool) {
        let mut book = lock(&self.book);
        let lane = book.lane(stream);
        if let Some(index) = lane.iter().rposition(|entry| entry.number == number) {
            match done {
                true => lane[index].enqueued = true,
                false => drop(lane.remove(index)),
            }
        }
    }

    /// The stream has passed everything, as somebody who waited for it knows.
    pub(crate) fn drained(&self, stream: &Stream) {
        lock(&self.book).passed(stream.id(), u64::MAX);
    }

    /// A failure of the communicator, for whoever waits or calls: with what was pending, also where
    /// the library was asked before the watchdog came by.
    pub(crate) fn explain(&self, failure: Error) -> Error {
        match self.reason.get() {
            Some(reason) => reason.copy(),
            // The program gave it up itself.
            None if matches!(failure.kind(), ErrorKind::Aborted | ErrorKind::Revoked) => failure,
            None => self.with_pending(&failure).with_poison(true),
        }
    }

    /// Nobody looks any more: the communicator ends.
    pub(crate) fn end(&self) {
        *lock(&self.marks) = None;
    }

    /// One tick.
    fn look(&self) {
        let mut over = lock(&self.marks);
        let Some(marks) = &mut *over else { return };
        match self.find(marks) {
            Found::Nothing => return,
            // It was given up, and what was pending has stopped.
            Found::GivenUp => {}
            Found::Wrong(reason) => self.condemn(reason),
        }
        *over = None;
    }

    fn find(&self, marks: &mut HashMap<u64, Mark>) -> Found {
        if let Some(failure) = self.handle.failure() {
            let given_up = failure.kind() == ErrorKind::Revoked || self.handle.is_aborted();
            return if given_up {
                Found::GivenUp
            } else {
                Found::Wrong(self.with_pending(&failure))
            };
        }
        let lanes: Vec<_> = lock(&self.book).lanes.iter().map(Lane::state).collect();
        marks.retain(|stream, _| lanes.iter().any(|lane| lane.stream == *stream));
        for lane in lanes {
            match lane.follow(marks) {
                Ok(Some(passed)) => lock(&self.book).passed(lane.stream, passed),
                Ok(None) => {}
                // What broke the device broke what runs on it.
                Err(failure) => return Found::Wrong(self.with_pending(&failure)),
            }
        }
        let mut book = lock(&self.book);
        book.forget_closed();
        match self.watch().deadline.and_then(|deadline| book.late(deadline)) {
            Some((late, deadline)) => Found::Wrong(self.late(&book, late, deadline)),
            None => Found::Nothing,
        }
    }

    fn late(&self, book: &Book, late: Entry, deadline: Duration) -> Error {
        let Entry { number, name, site, enqueued, .. } = late;
        let behind = match book.last().filter(|last| last.number != number) {
            None => String::new(),
            Some(last) => format!(
                ", or one of the {} behind it, up to {} at {}",
                book.pending() - 1,
                last.name,
                last.site
            ),
        };
        let place = match enqueued {
            true => format!("on a stream of {}", self.place),
            false => "inside the library".to_owned(),
        };
        let message = format!(
            "not done after {deadline:?}: operation {number} of this communicator, called at \
             {site}, {place}{behind}"
        );
        let error = Error::new(ErrorKind::Timeout, message).with_comm(&self.info);
        error
            .with_operation(name)
            .with_hint(self.hint("a rank may be gone, or in another operation"))
    }

    /// A failure, with what was pending when it was noticed.
    fn with_pending(&self, failure: &Error) -> Error {
        let book = lock(&self.book);
        let Some(first) = book.first() else { return failure.copy() };
        let pending = match book.pending() - 1 {
            0 => format!("{} at {}", first.name, first.site),
            more => format!("{} at {}, and {more} more", first.name, first.site),
        };
        let text = failure.message();
        // What several ranks are reported on in is a table, which has the call sites.
        let text = match text.contains('\n') {
            true => text.to_owned(),
            false => format!("{text}; pending: {pending}"),
        };
        let mut error = Error::new(failure.kind(), text)
            .with_comm(&self.info)
            .with_operation(first.name)
            .with_last_error(failure.last_error().unwrap_or_default())
            .with_hint(self.hint(failure.hint().unwrap_or("a rank may be gone")));
        if let Some(code) = failure.vendor_code() {
            error = error.with_vendor_code(code);
        }
        error
    }

    fn hint(&self, cause: &str) -> String {
        let next = match self.watch().aborts {
            true => "the watchdog aborted the communicator: join a new one",
            false => "revoke and shrink the communicator, or abort it",
        };
        format!("{cause}; {next}")
    }

    fn condemn(&self, reason: Error) {
        tracing::error!(%reason, "the watchdog found a communicator that cannot go on");
        let reason = reason.with_poison(true);
        // One that has failed keeps its own words, which say nothing of what was pending.
        let _first = self.reason.set(reason.copy());
        self.handle.condemn(reason);
        if !self.watch().aborts {
            return;
        }
        // May take seconds, in which the others are to be looked after.
        let handle = self.handle.clone();
        let abort = move || {
            if let Err(error) = handle.abort() {
                tracing::warn!(%error, "an abort of the watchdog did not end well");
            }
        };
        if let Err(error) = thread::Builder::new().name("collectives-abort".into()).spawn(abort) {
            tracing::warn!(%error, "no thread to abort a communicator on");
        }
    }
}

/// What a look at a communicator found.
enum Found {
    Nothing,
    GivenUp,
    Wrong(Error),
}

/// Calls that are not known to be done, by stream.
#[derive(Default)]
struct Book {
    /// The number of the next call.
    next: u64,
    lanes: Vec<Lane>,
}

struct Lane {
    stream: u64,
    gate: Arc<Gate>,
    entries: VecDeque<Entry>,
}

#[derive(Clone, Copy)]
struct Entry {
    number: u64,
    name: &'static str,
    site: &'static Location<'static>,
    /// In milliseconds of [`now`].
    since: u64,
    /// Whether the call has returned, so that the operation is on its stream.
    enqueued: bool,
}

impl Book {
    fn lane(&mut self, stream: &Stream) -> &mut VecDeque<Entry> {
        let id = stream.id();
        let index = self.lanes.iter().position(|lane| lane.stream == id).unwrap_or_else(|| {
            self.lanes.push(Lane {
                stream: id,
                gate: Arc::clone(stream.gate()),
                entries: VecDeque::new(),
            });
            self.lanes.len() - 1
        });
        &mut self.lanes[index].entries
    }

    /// The stream has passed everything up to this number.
    fn passed(&mut self, stream: u64, number: u64) {
        for lane in self.lanes.iter_mut().filter(|lane| lane.stream == stream) {
            lane.entries.retain(|entry| entry.number > number || !entry.enqueued);
        }
    }

    /// Streams that are gone: nothing tells any more what became of their work.
    fn forget_closed(&mut self) {
        self.lanes.retain(|lane| *lock(&lane.gate.open));
    }

    fn pending(&self) -> usize {
        self.lanes.iter().map(|lane| lane.entries.len()).sum()
    }

    fn last(&self) -> Option<Entry> {
        let tails = self.lanes.iter().filter_map(|lane| lane.entries.back());
        tails.max_by_key(|entry| entry.number).copied()
    }

    fn first(&self) -> Option<Entry> {
        let heads = self.lanes.iter().filter_map(|lane| lane.entries.front());
        heads.min_by_key(|entry| entry.number).copied()
    }

    /// The first call, if it is older than the deadline.
    fn late(&self, deadline: Duration) -> Option<(Entry, Duration)> {
        let first = self.first()?;
        let age = now().saturating_sub(first.since);
        // The clock stands still between ticks, so a call may be younger than it looks.
        (u128::from(age) > (deadline + SLOWEST.min(deadline)).as_millis())
            .then_some((first, deadline))
    }
}

impl Lane {
    fn state(&self) -> LaneState {
        let mut enqueued = self.entries.iter().rev().filter(|entry| entry.enqueued);
        LaneState {
            stream: self.stream,
            gate: Arc::clone(&self.gate),
            last: enqueued.next().map(|entry| entry.number),
        }
    }
}

/// A lane as it was when the look began: the device is asked without the lock that calls take.
struct LaneState {
    stream: u64,
    gate: Arc<Gate>,
    /// The last call that is on the stream.
    last: Option<u64>,
}

impl LaneState {
    /// Polls the mark of this stream, and sets the next; the number up to which all is done.
    fn follow(&self, marks: &mut HashMap<u64, Mark>) -> Result<Option<u64>> {
        let Some(last) = self.last else { return Ok(None) };
        let mark = match marks.entry(self.stream) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(new) => {
                new.insert(Mark::new(&self.gate.device)?)
            }
        };
        if let Some(covers) = mark.covers {
            // SAFETY: the event is alive.
            if !unsafe { mark.device.query(mark.event) }? {
                return Ok(None);
            }
            mark.covers = None;
            if covers == last {
                return Ok(Some(covers));
            }
            mark.record(&self.gate, last)?;
            return Ok(Some(covers));
        }
        mark.record(&self.gate, last)?;
        Ok(None)
    }
}

/// An event behind the calls of one stream.
struct Mark {
    device: AnyDevice,
    event: RawEvent,
    /// The last call that it is behind; `None` while it is not recorded.
    covers: Option<u64>,
}

impl Mark {
    fn new(device: &AnyDevice) -> Result<Self> {
        Ok(Self { event: device.event_create()?, device: device.clone(), covers: None })
    }

    /// Records it, unless the stream is gone or other code captures it.
    fn record(&mut self, gate: &Gate, last: u64) -> Result<()> {
        let open = lock(&gate.open);
        // SAFETY: the gate is open, so the stream is alive.
        if !*open || unsafe { self.device.is_capturing(gate.raw) }? {
            return Ok(());
        }
        // SAFETY: as above; the event is of the same device.
        unsafe { self.device.record(self.event, gate.raw) }?;
        // An event that a capture got hold of in between must not be asked about.
        // SAFETY: as above.
        if unsafe { self.device.is_capturing(gate.raw) }? {
            *self = Self::new(&gate.device)?;
            return Ok(());
        }
        self.covers = Some(last);
        Ok(())
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        // SAFETY: this is the only holder of the handle.
        if let Err(error) = unsafe { self.device.event_destroy(self.event) } {
            tracing::warn!(%error, "an event could not be destroyed");
        }
    }
}

/// The way to a stream that may go at any time.
pub(crate) struct Gate {
    device: AnyDevice,
    raw: RawStream,
    open: Mutex<bool>,
}

impl Gate {
    pub(crate) fn new(device: AnyDevice, raw: RawStream) -> Arc<Self> {
        Arc::new(Self { device, raw, open: Mutex::new(true) })
    }

    /// Waits until nobody is inside, and lets nobody in any more.
    pub(crate) fn close(&self) {
        *lock(&self.open) = false;
    }
}

/// The thread and its list.
struct Dog {
    pack: Mutex<Vec<Weak<Watched>>>,
    /// That there is somebody new, or something to be looked at sooner.
    called: Condvar,
}

impl Dog {
    fn get() -> &'static Self {
        static DOG: Dog = Dog { pack: Mutex::new(Vec::new()), called: Condvar::new() };
        &DOG
    }

    fn add(watched: &Arc<Watched>) {
        static STARTED: Once = Once::new();
        let dog = Self::get();
        tell_time();
        lock(&dog.pack).push(Arc::downgrade(watched));
        dog.called.notify_one();
        STARTED.call_once(|| {
            let thread = thread::Builder::new().name("collectives-dog".into());
            if let Err(error) = thread.spawn(|| dog.run()) {
                tracing::warn!(%error, "no thread for the watchdog: communicators are not watched");
            }
        });
    }

    fn run(&self) {
        // So that the mock waits for no deed of this thread before it says that nobody can go on.
        only_watch();
        let mut pack = lock(&self.pack);
        loop {
            pack.retain(|watched| watched.strong_count() > 0);
            let watched: Vec<_> = pack.iter().filter_map(Weak::upgrade).collect();
            let pause = watched.iter().map(|watched| watched.watch().tick()).min();
            drop(pack);
            tell_time();
            watched.iter().for_each(|watched| watched.look());
            drop(watched);
            pack = lock(&self.pack);
            pack = match pause {
                Some(pause) => {
                    let woken = self.called.wait_timeout(pack, pause);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
                None if pack.is_empty() => {
                    self.called.wait(pack).unwrap_or_else(PoisonError::into_inner)
                }
                None => pack,
            };
        }
    }
}

/// A clock that is cheap to read: the watchdog sets it.
static CLOCK: AtomicU64 = AtomicU64::new(0);

fn now() -> u64 {
    CLOCK.load(Ordering::Relaxed)
}

fn tell_time() {
    static START: OnceLock<Instant> = OnceLock::new();
    let elapsed = START.get_or_init(Instant::now).elapsed().as_millis();
    CLOCK.fetch_max(u64::try_from(elapsed).unwrap_or(u64::MAX), Ordering::Relaxed);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Between two looks, whatever the deadlines.
const FASTEST: Duration = Duration::from_millis(5);
const SLOWEST: Duration = Duration::from_millis(100);
/// Calls of one stream that are remembered.
const LONGEST: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_is_seconds_or_a_word() {
        let deadline = |value| Watch::parse(value).map(|watch| watch.map(|watch| watch.deadline));
        assert_eq!(deadline("2.5"), Some(Some(Some(Duration::from_millis(2500)))));
        assert_eq!(deadline("failures"), Some(Some(None)));
        assert_eq!(deadline("off"), Some(None));
        for wrong in ["3s", "-1", "0", "NaN", "inf", "soon"] {
            assert_eq!(deadline(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn ticks_follow_the_deadline_within_bounds() {
        let tick = |millis| Watch::new().with_deadline(Duration::from_millis(millis)).tick();
        assert_eq!(tick(1), FASTEST);
        assert_eq!(tick(400), Duration::from_millis(50));
        assert_eq!(tick(60_000), SLOWEST);
        assert_eq!(Watch::new().tick(), SLOWEST);
    }
}
