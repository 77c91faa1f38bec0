//! Streams that remember whose work they carry.

use std::{
    any::Any,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use collectives_core::{
    AbortHandle, CommId, Device, Element, Error, ErrorKind, RawEvent, RawStream, Result,
};

use crate::{
    AnyDevice, Buffer,
    place::Place,
    watchdog::{Gate, Watched},
};

/// A queue of work on one device, in order.
///
/// Clones are the same stream. Dropping the last clone lets what is enqueued run.
///
/// A stream remembers the communicators that enqueued on it since its last good wait. If one of
/// them was aborted or revoked, or failed, every wait on the stream returns that error: the device lets the
/// stream go on after an abort, but the results are not there. Such a stream stays so; make a new
/// one with the new communicator.
///
/// ```
/// use std::time::Duration;
/// use collectives::mock;
///
/// mock::run(1, |comm| {
///     let stream = comm.new_stream()?;
///     let buffer = stream.zeros::<f32>(1024)?; // enqueued
///     stream.synchronize_for(Duration::from_secs(10))?; // done
///     assert_eq!(buffer.len(), 1024);
///     Ok(())
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "cudaStream_t")]
#[doc(alias = "hipStream_t")]
#[derive(Clone)]
pub struct Stream(Arc<StreamInner>);

struct StreamInner {
    device: AnyDevice,
    place: Place,
    raw: RawStream,
    owned: bool,
    id: u64,
    /// Operations enqueued by communicators, so that a wait can tell whether any came during it.
    enqueued: AtomicU64,
    /// The communicator noted last, or 0; spares the common case the lock.
    last_user: AtomicU64,
    users: Mutex<Vec<User>>,
    /// Whose stream it is, where that can be kept alive.
    _owner: Option<Arc<dyn Any + Send + Sync>>,
    /// For the watchdog, where a communicator that uses the stream is watched.
    gate: OnceLock<Arc<Gate>>,
}

#[derive(Clone)]
struct User {
    id: CommId,
    handle: AbortHandle,
    watched: Option<Arc<Watched>>,
}

impl User {
    /// Why its results must not be trusted, with what was pending, where that is known.
    fn failure(&self) -> Option<Error> {
        let failure = self.handle.failure()?;
        Some(match &self.watched {
            Some(watched) => watched.explain(failure),
            None => failure,
        })
    }
}

impl Stream {
    /// Makes a stream on `device`.
    ///
    /// # Errors
    /// What the device's runtime reports.
    #[track_caller]
    pub fn new(device: &AnyDevice) -> Result<Self> {
        let raw = device.stream_create()?;
        Ok(Self::wrap(device.clone(), raw, true))
    }

    /// Wraps a stream that other code owns. It is not destroyed with the result.
    ///
    /// # Safety
    /// `raw` is a stream of `device`, which outlives the result and all its clones: buffers keep one
    /// of their last stream, and communicators that of the last [`Graph`](crate::Graph) they launched.
    /// It is not captured by other code while they enqueue on it: that is looked for, but another
    /// thread may begin a capture right then. Other code that uses memory of a
    /// [`Buffer`](crate::Buffer) on it orders itself after what was enqueued through this crate.
    pub unsafe fn from_raw(device: &AnyDevice, raw: RawStream) -> Self {
        Self::wrap(device.clone(), raw, false)
    }

    /// A stream of other code that lives as long as `owner`.
    pub(crate) fn kept_by(
        device: AnyDevice,
        raw: RawStream,
        owner: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        Self::over(device, raw, false, Some(owner))
    }

    fn wrap(device: AnyDevice, raw: RawStream, owned: bool) -> Self {
        Self::over(device, raw, owned, None)
    }

    fn over(
        device: AnyDevice,
        raw: RawStream,
        owned: bool,
        owner: Option<Arc<dyn Any + Send + Sync>>,
    ) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(Arc::new(StreamInner {
            place: Place::of(&device),
            device,
            raw,
            owned,
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            enqueued: AtomicU64::new(0),
            last_user: AtomicU64::new(0),
            users: Mutex::new(Vec::new()),
            _owner: owner,
            gate: OnceLock::new(),
        }))
    }

    /// Allocates `len` zeros on the stream's device. Short for [`Buffer::zeros`].
    ///
    /// # Errors
    /// As [`Buffer::zeros`].
    #[doc(alias = "cudaMalloc")]
    #[doc(alias = "hipMalloc")]
    #[track_caller]
    pub fn zeros<T: Element>(&self, len: usize) -> Result<Buffer<T>> {
        Buffer::zeros(self, len)
    }

    /// Allocates on the stream's device and copies `values` there. Short for
    /// [`Buffer::from_slice`].
    ///
    /// # Errors
    /// As [`Buffer::from_slice`].
    #[track_caller]
    pub fn upload<T: Element>(&self, values: &[T]) -> Result<Buffer<T>> {
        Buffer::from_slice(self, values)
    }

    /// The runtime's handle, for kernels and libraries of other code. It stays owned by this
    /// stream.
    pub fn as_raw(&self) -> RawStream {
        self.0.raw
    }

    /// The device that the stream belongs to.
    pub fn device(&self) -> &AnyDevice {
        &self.0.device
    }

    /// Blocks until everything enqueued so far has run.
    ///
    /// # Errors
    /// The failure of any communicator that enqueued on the stream since its last good wait, and
    /// failures of the device.
    #[doc(alias = "cudaStreamSynchronize")]
    #[doc(alias = "hipStreamSynchronize")]
    pub fn synchronize(&self) -> Result<()> {
        self.wait(None)
    }

    /// Blocks until everything enqueued so far has run, at most `deadline`.
    ///
    /// # Errors
    /// [`Timeout`](ErrorKind::Timeout), after which the work is still pending; else as
    /// [`synchronize`](Self::synchronize).
    pub fn synchronize_for(&self, deadline: Duration) -> Result<()> {
        self.wait(Some(deadline))
    }

    /// Waits for the device, and forgets communicators that failed: what they left in buffers is
    /// undefined from now on, and it is for the caller to know which those are.
    ///
    /// For reading back, after an abort, what was on the same stream but not in a collective.
    ///
    /// # Errors
    /// Failures of the device.
    pub fn forget_failures(&self) -> Result<()> {
        // SAFETY: the stream is alive, and of this device.
        unsafe { self.0.device.synchronize(self.0.raw, None) }?;
        let mut users = self.users();
        users.retain(|user| user.handle.failure().is_none());
        self.0.last_user.store(0, Ordering::SeqCst);
        Ok(())
    }

    fn wait(&self, deadline: Option<Duration>) -> Result<()> {
        let inner = &*self.0;
        let enqueued = inner.enqueued.load(Ordering::SeqCst);
        if self.users().is_empty() {
            // SAFETY: the stream is alive, and of this device.
            return unsafe { inner.device.synchronize(inner.raw, deadline) };
        }
        // A deadline past the end of time is none.
        let until = deadline.and_then(|deadline| Instant::now().checked_add(deadline));
        // The mock's streams go on when a communicator fails, and the mock is to know how long the
        // wait really lasts. A watchdog's word it knows nothing of.
        let watched = self.users().iter().any(|user| user.watched.is_some());
        let lasting = matches!(inner.device, AnyDevice::Mock(_)) && !watched;
        let first = match (lasting, deadline) {
            (true, deadline) => deadline,
            (false, deadline) => Some(deadline.unwrap_or(FAILURE_POLL).min(FAILURE_POLL)),
        };
        // SAFETY: the stream is alive, and of this device.
        let outcome = unsafe { inner.device.synchronize(inner.raw, first) };
        self.failure().map_err(|error| named(error, "synchronize"))?;
        match outcome {
            Err(error) if error.kind() == ErrorKind::Timeout => {
                if first == deadline {
                    return Err(timed_out(deadline, error));
                }
                self.wait_long(until, deadline, error)?;
            }
            outcome => outcome.map_err(|error| self.broken(error))?,
        }
        let mut users = self.users();
        // Written before the count is read, as `note` writes the count before it reads this: so
        // either the count has changed here, or `note` sees the zero there and comes back.
        inner.last_user.store(0, Ordering::SeqCst);
        if inner.enqueued.load(Ordering::SeqCst) == enqueued {
            for watched in users.drain(..).filter_map(|user| user.watched) {
                watched.drained(self);
            }
        }
        Ok(())
    }

    /// Waits for what is enqueued now and was not done within [`FAILURE_POLL`]. Its communicators
    /// are asked again and again: the work of one that fails meanwhile may never end by itself.
    #[cold]
    fn wait_long(
        &self,
        until: Option<Instant>,
        deadline: Option<Duration>,
        first: Error,
    ) -> Result<()> {
        let (device, raw) = (&self.0.device, self.0.raw);
        if matches!(device, AnyDevice::Mock(_)) {
            return self.wait_in_slices(until, deadline);
        }
        let event = Event::new(device)?;
        // SAFETY: event and stream are alive, and of this device.
        unsafe { device.record(event.raw, raw) }?;
        let mut asked = Instant::now();
        loop {
            // SAFETY: the event is alive.
            if unsafe { device.query(event.raw) }.map_err(|error| self.broken(error))? {
                return self.failure();
            }
            let now = Instant::now();
            if now.duration_since(asked) >= FAILURE_POLL {
                self.failure()?;
                asked = now;
            }
            if until.is_some_and(|until| now >= until) {
                self.failure()?;
                return Err(timed_out(deadline, first));
            }
            thread::sleep(LONG_PAUSE);
        }
    }

    /// The same on the mock, which gives verdicts on those who wait in it.
    fn wait_in_slices(&self, until: Option<Instant>, deadline: Option<Duration>) -> Result<()> {
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let slice = left.unwrap_or(FAILURE_POLL).min(FAILURE_POLL);
            // SAFETY: the stream is alive, and of this device.
            let outcome = unsafe { self.0.device.synchronize(self.0.raw, Some(slice)) };
            self.failure()?;
            match outcome {
                Err(error) if error.kind() == ErrorKind::Timeout => {
                    if left.is_some_and(|left| left <= slice) {
                        return Err(timed_out(deadline, error));
                    }
                }
                outcome => return outcome,
            }
        }
    }

    fn users(&self) -> MutexGuard<'_, Vec<User>> {
        self.0.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers that a communicator has enqueued. Called behind the enqueuing, since a wait that
    /// comes between the two would forget it.
    #[inline]
    pub(crate) fn note(&self, id: CommId, handle: &AbortHandle, watched: Option<&Arc<Watched>>) {
        self.0.enqueued.fetch_add(1, Ordering::SeqCst);
        if self.0.last_user.load(Ordering::SeqCst) != id.get() {
            self.remember([User { id, handle: handle.clone(), watched: watched.cloned() }]);
        }
    }

    #[cold]
    fn remember(&self, new: impl IntoIterator<Item = User>) {
        let mut users = self.users();
        for user in new {
            if !users.iter().any(|known| known.id == user.id) {
                self.0.last_user.store(user.id.get(), Ordering::SeqCst);
                users.push(user);
            }
        }
    }

    /// Orders this stream after all that is enqueued on `other` now, and makes it answer for the
    /// communicators that `other` answers for.
    #[cold]
    pub(crate) fn follow(&self, other: &Self) -> Result<()> {
        let (device, raw) = (&other.0.device, other.0.raw);
        // SAFETY: the stream is alive, and of this device.
        if unsafe { device.is_capturing(raw) }? {
            return Err(Error::new(
                ErrorKind::InvalidUsage,
                "the buffer was last used on a stream that is being captured",
            )
            .with_hint("end the capture before using the buffer on another stream"));
        }
        let event = Event::new(device)?;
        // SAFETY: event and stream are alive, and of this device.
        unsafe { device.record(event.raw, raw) }?;
        // SAFETY: stream and event are alive; a wait enqueued holds after the event is destroyed.
        unsafe { self.0.device.wait(self.0.raw, event.raw) }?;
        self.0.enqueued.fetch_add(1, Ordering::SeqCst);
        let theirs = other.users().clone();
        self.remember(theirs);
        Ok(())
    }

    /// Refuses a stream that is being captured, for what would not be in the graph or has to wait.
    pub(crate) fn not_captured(&self, operation: &'static str) -> Result<()> {
        // SAFETY: the stream is alive, and of this device.
        if !unsafe { self.0.device.is_capturing(self.0.raw) }? {
            return Ok(());
        }
        Err(Error::new(ErrorKind::InvalidUsage, "the stream is being captured")
            .with_operation(operation)
            .with_hint(
                "use another stream, or end the capture first; Communicator::capture captures \
                 operations, and Collectives enqueues on streams that other code captures",
            ))
    }

    /// As [`not_captured`](Self::not_captured), for the path of every operation: streams of our own
    /// are captured by nobody else.
    #[inline]
    pub(crate) fn not_captured_by_others(&self, operation: &'static str) -> Result<()> {
        match self.0.owned {
            true => Ok(()),
            false => self.not_captured(operation),
        }
    }

    /// A failure of the device, with what was pending. It may be that of a communicator that failed
    /// after it was asked.
    #[cold]
    fn broken(&self, error: Error) -> Error {
        if error.kind() != ErrorKind::Device {
            return error;
        }
        if let Err(failure) = self.failure() {
            return failure;
        }
        match self.users().iter().find_map(|user| user.watched.as_ref()) {
            Some(watched) => watched.explain(error),
            None => error,
        }
    }

    /// The failure of a communicator that this stream answers for.
    pub(crate) fn failure(&self) -> Result<()> {
        self.users().iter().find_map(User::failure).map_or(Ok(()), Err)
    }

    pub(crate) fn place(&self) -> Place {
        self.0.place
    }

    /// The watchdog's way to it.
    pub(crate) fn gate(&self) -> &Arc<Gate> {
        let inner = &*self.0;
        inner.gate.get_or_init(|| Gate::new(inner.device.clone(), inner.raw))
    }

    /// A number that no other stream of this process has; never 0.
    #[inline]
    pub(crate) fn id(&self) -> u64 {
        self.0.id
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("id", &self.0.id)
            .field("place", &self.0.place)
            .finish_non_exhaustive()
    }
}

impl Drop for StreamInner {
    fn drop(&mut self) {
        if let Some(gate) = self.gate.get() {
            gate.close();
        }
        if !self.owned {
            return;
        }
        // SAFETY: this was the last holder of the handle.
        if let Err(error) = unsafe { self.device.stream_destroy(self.raw) } {
            tracing::warn!(%error, "a stream could not be destroyed");
        }
    }
}

/// The device knows of the first part of the wait only.
#[cold]
fn timed_out(deadline: Option<Duration>, error: Error) -> Error {
    let deadline = deadline.unwrap_or_default();
    let text = format!("the stream is not done after {deadline:?}: {}", error.message());
    let hint = error.hint().unwrap_or("a rank may be missing: abort the communicators").to_owned();
    Error::new(ErrorKind::Timeout, text)
        .with_operation("synchronize")
        .with_hint(hint)
        .with_source(error)
}

/// Names the operation that met a failure, where that names none.
pub(crate) fn named(error: Error, operation: &'static str) -> Error {
    match error.operation() {
        None => error.with_operation(operation),
        Some(_) => error,
    }
}

/// An event that is destroyed with its holder.
struct Event<'a> {
    device: &'a AnyDevice,
    raw: RawEvent,
}

impl<'a> Event<'a> {
    fn new(device: &'a AnyDevice) -> Result<Self> {
        Ok(Self { device, raw: device.event_create()? })
    }
}

impl Drop for Event<'_> {
    fn drop(&mut self) {
        // SAFETY: this is the only holder of the handle.
        if let Err(error) = unsafe { self.device.event_destroy(self.raw) } {
            tracing::warn!(%error, "an event could not be destroyed");
        }
    }
}

/// How often a wait asks its communicators whether they failed.
const FAILURE_POLL: Duration = Duration::from_millis(100);
/// Between two looks of a wait that has lasted longer than that.
const LONG_PAUSE: Duration = Duration::from_millis(1);
