//! Streams: default ones, created ones, and what blocking streams owe the legacy default stream.
//!
//! The engine's streams know nothing of each other. CUDA's *blocking* streams (created without the
//! non-blocking flag, and the per-thread default streams) do not overlap with the legacy default
//! stream: work there waits for all that was enqueued on blocking streams before, and what comes on
//! those later waits for it. This is done with events when work is enqueued ([`Stream::enter`]),
//! and costs a program nothing that has no use for the legacy stream.

use std::{
    cell::RefCell,
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use collectives_backend_mock::MockDevice;
use collectives_core::{Device as _, RawEvent, RawStream};

use super::{
    Code, Reply, capture,
    context::Context,
    device::{Seat, seat},
    lock,
};

/// A stream.
pub(crate) struct Stream {
    pub(crate) raw: RawStream,
    pub(crate) context: Context,
    pub(crate) kind: Kind,
    pub(crate) priority: i32,
    is_destroyed: AtomicBool,
    /// Whether anything was enqueued on it that the legacy stream has not waited for.
    is_used: AtomicBool,
    /// How much of the legacy stream it has waited for.
    seen: AtomicU64,
}

/// How a stream gets along with the legacy default stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// It is the one.
    Legacy,
    Blocking,
    NonBlocking,
}

/// Created streams, by handle.
static STREAMS: Mutex<Option<HashMap<usize, Arc<Stream>>>> = Mutex::new(None);

/// Per-thread default streams of threads that have ended, for others.
static IDLE: Mutex<Vec<Arc<Stream>>> = Mutex::new(Vec::new());

thread_local! {
    /// What was found last: programs rarely change streams.
    static LAST: RefCell<Option<Arc<Stream>>> = const { RefCell::new(None) };
    static OWN: RefCell<Own> = const { RefCell::new(Own(Vec::new())) };
}

/// The per-thread default streams of one thread.
struct Own(Vec<Arc<Stream>>);

impl Drop for Own {
    fn drop(&mut self) {
        // Left to other threads: nothing of the engine may be called any more at this time.
        lock(&IDLE).append(&mut self.0);
    }
}

impl Stream {
    fn new(raw: RawStream, context: Context, kind: Kind, priority: i32) -> Self {
        Self {
            raw,
            context,
            kind,
            priority,
            is_destroyed: AtomicBool::new(false),
            is_used: AtomicBool::new(false),
            seen: AtomicU64::new(0),
        }
    }

    /// The legacy default stream of a device.
    pub(crate) fn legacy(device: usize) -> Self {
        Self::new(RawStream::DEFAULT, Context::primary(device), Kind::Legacy, 0)
    }

    /// Makes a stream in a context.
    pub(crate) fn create(context: Context, flags: u32, priority: i32) -> Reply<usize> {
        let kind = match flags {
            0 => Kind::Blocking,
            NON_BLOCKING => Kind::NonBlocking,
            _ => return Err(Code::INVALID_VALUE),
        };
        let (least, greatest) = PRIORITIES;
        let priority = priority.clamp(greatest, least);
        let stream = Self::make(context, kind, priority)?;
        let handle = stream.raw.bits();
        lock(&STREAMS).get_or_insert_default().insert(handle, stream);
        Ok(handle)
    }

    fn make(context: Context, kind: Kind, priority: i32) -> Reply<Arc<Self>> {
        let seat = context.seat()?;
        let raw = seat.device.stream_create();
        let raw = raw.map_err(|error| Code::from_error(&error, Code::INVALID_VALUE))?;
        let stream = Arc::new(Self::new(raw, context, kind, priority));
        if kind == Kind::Blocking {
            lock(&seat.order).blocking.push(Arc::clone(&stream));
        }
        Ok(stream)
    }

    /// The stream behind a handle, where `context` is what the default streams belong to.
    pub(crate) fn find(
        handle: usize,
        context: impl FnOnce() -> Reply<Context>,
    ) -> Reply<Arc<Self>> {
        match handle {
            NULL | LEGACY => Ok(Arc::clone(&context()?.seat()?.legacy)),
            PER_THREAD => Self::of_thread(context()?.device()),
            _ => Self::created(handle),
        }
    }

    fn created(handle: usize) -> Reply<Arc<Self>> {
        LAST.with_borrow_mut(|last| {
            if let Some(stream) = last.as_ref().filter(|stream| stream.is_behind(handle)) {
                return Ok(Arc::clone(stream));
            }
            let streams = lock(&STREAMS);
            let found = streams.as_ref().and_then(|streams| streams.get(&handle));
            let found = Arc::clone(found.ok_or(Code::INVALID_HANDLE)?);
            *last = Some(Arc::clone(&found));
            Ok(found)
        })
    }

    /// Whether this is what a handle means: a created stream, or the null one of its device.
    pub(crate) fn is_behind(&self, handle: usize) -> bool {
        self.raw.bits() == handle && !self.is_destroyed.load(Ordering::Acquire)
    }

    /// The calling thread's default stream of a device.
    fn of_thread(device: usize) -> Reply<Arc<Self>> {
        let of_device = |stream: &Arc<Self>| stream.device_ordinal() == device;
        let known = OWN.with_borrow(|own| own.0.iter().find(|one| of_device(one)).cloned());
        if let Some(stream) = known {
            return Ok(stream);
        }
        let mut idle = lock(&IDLE);
        let left = idle.iter().position(of_device).map(|index| idle.swap_remove(index));
        drop(idle);
        let stream = match left {
            Some(stream) => stream,
            None => Self::make(Context::primary(device), Kind::Blocking, 0)?,
        };
        OWN.with_borrow_mut(|own| own.0.push(Arc::clone(&stream)));
        Ok(stream)
    }

    /// Destroys a created stream; what is enqueued on it still runs.
    pub(crate) fn destroy(handle: usize) -> Reply {
        if handle <= PER_THREAD {
            return Err(Code::INVALID_HANDLE);
        }
        let mut streams = lock(&STREAMS);
        let stream = streams.as_mut().and_then(|streams| streams.remove(&handle));
        drop(streams);
        let stream = stream.ok_or(Code::INVALID_HANDLE)?;
        stream.is_destroyed.store(true, Ordering::Release);
        capture::forget(&stream)?;
        let seat = stream.seat()?;
        if stream.kind == Kind::Blocking {
            let mut order = lock(&seat.order);
            order.blocking.retain(|other| !Arc::ptr_eq(other, &stream));
            if stream.is_used.load(Ordering::Acquire) {
                // The legacy stream still has to wait for what is left on it.
                wait_for(seat, &mut order.event, stream.raw, RawStream::DEFAULT)?;
            }
        }
        // SAFETY: it was in the table, so it lives, and is found no more.
        let destroyed = unsafe { seat.device.stream_destroy(stream.raw) };
        destroyed.map_err(|error| Code::from_error(&error, Code::INVALID_HANDLE))
    }

    pub(crate) fn device_ordinal(&self) -> usize {
        self.context.device()
    }

    pub(crate) fn seat(&self) -> Reply<&'static Seat> {
        seat(self.device_ordinal())
    }

    pub(crate) fn device(&self) -> Reply<&'static MockDevice> {
        Ok(&self.seat()?.device)
    }

    /// What comes before any work that is enqueued: the capture it goes to is whole, and what it
    /// has to wait for by being a blocking stream, or the legacy one, comes first. The answer is
    /// whether it is captured.
    pub(crate) fn enter(&self) -> Reply<bool> {
        if capture::check(self)? {
            return Ok(true);
        }
        if self.kind != Kind::NonBlocking {
            self.order()?;
        }
        Ok(false)
    }

    fn order(&self) -> Reply {
        let seat = self.seat()?;
        if self.kind == Kind::Legacy {
            let mut order = lock(&seat.order);
            capture::check_implicit(&order.blocking, true)?;
            seat.legacy_is_used.store(true, Ordering::Release);
            let super::device::Order { event, blocking } = &mut *order;
            for stream in blocking.iter() {
                if stream.is_used.swap(false, Ordering::AcqRel) && !capture::check(stream)? {
                    wait_for(seat, event, stream.raw, RawStream::DEFAULT)?;
                }
            }
            return Ok(());
        }
        self.is_used.store(true, Ordering::Release);
        if !seat.legacy_is_used.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut order = lock(&seat.order);
        // SAFETY: the default stream always lives.
        let position = unsafe { seat.device.position(RawStream::DEFAULT) };
        let position = position.map_err(|error| Code::from_error(&error, Code::INVALID_HANDLE))?;
        let position = position - seat.legacy_records.load(Ordering::Relaxed);
        if self.seen.swap(position, Ordering::Relaxed) != position {
            seat.legacy_records.fetch_add(1, Ordering::Relaxed);
            wait_for(seat, &mut order.event, RawStream::DEFAULT, self.raw)?;
        }
        Ok(())
    }

    /// Blocks until all work is done that is enqueued now.
    pub(crate) fn synchronize(&self) -> Reply {
        self.before_asking()?;
        self.wait()
    }

    /// As [`synchronize`](Self::synchronize), on behalf of a call that captures do not forbid.
    pub(super) fn wait(&self) -> Reply {
        // SAFETY: the stream lives, or lived when it was found; a handle that is gone is refused.
        Code::of_wait(unsafe { self.device()?.synchronize(self.raw, None) })
    }

    /// Whether all work is done.
    pub(crate) fn query(&self) -> Reply<bool> {
        self.before_asking()?;
        // SAFETY: as in `wait`.
        match unsafe { self.device()?.is_idle(self.raw) } {
            Ok(is_idle) => Ok(is_idle),
            Err(error) => Code::of_wait(Err(error)).map(|()| true),
        }
    }

    /// What forbids to ask how far the stream is; and the legacy one waits for blocking ones.
    fn before_asking(&self) -> Reply {
        if self.kind == Kind::Legacy {
            self.order()?;
        }
        capture::forbid_unsafe()?;
        if capture::check(self)? {
            capture::invalidate_of(self)?;
            return Err(Code::CAPTURE_UNSUPPORTED);
        }
        Ok(())
    }

    /// Enqueues a call of a host function.
    ///
    /// # Safety
    /// See [`MockDevice::call`].
    pub(crate) unsafe fn call(
        &self,
        function: unsafe extern "C" fn(*mut std::ffi::c_void),
        data: *mut std::ffi::c_void,
    ) -> Reply {
        self.enter()?;
        // SAFETY: the caller's promise.
        let enqueued = unsafe { self.device()?.call(self.raw, function, data) };
        enqueued.map_err(|error| Code::from_error(&error, Code::INVALID_HANDLE))
    }
}

/// Has `later` wait for what is enqueued on `earlier` now.
fn wait_for(
    seat: &Seat,
    event: &mut Option<RawEvent>,
    earlier: RawStream,
    later: RawStream,
) -> Reply {
    let mut ordered = || {
        let event = match *event {
            Some(event) => event,
            None => *event.insert(seat.device.event_create()?),
        };
        // SAFETY: the event is only used here and lives for ever; both streams are alive, as they
        // are in the seat's list, or are being looked at by their owner.
        unsafe { seat.device.record(event, earlier) }?;
        // SAFETY: as above.
        unsafe { seat.device.wait(later, event) }
    };
    ordered().map_err(|error| Code::from_error(&error, Code::INVALID_HANDLE))
}

/// Blocks until all work of a device is done.
pub(crate) fn synchronize_device(seat: &Seat) -> Reply {
    capture::forbid_unsafe()?;
    capture::forbid_on(seat.ordinal())?;
    Code::of_wait(seat.device.synchronize_all())
}

/// The null stream, which is the legacy default stream.
pub(crate) const NULL: usize = 0;
/// `CU_STREAM_LEGACY`.
pub(crate) const LEGACY: usize = 1;
/// `CU_STREAM_PER_THREAD`.
pub(crate) const PER_THREAD: usize = 2;
/// `CU_STREAM_NON_BLOCKING`.
pub(crate) const NON_BLOCKING: u32 = 1;
/// The least and the greatest priority; they are kept, and mean nothing here.
pub(crate) const PRIORITIES: (i32, i32) = (0, -5);
