//! The life line of a communicator: what it shares with its abort handles and with open groups.
//!
//! `ncclCommAbort` and `ncclCommDestroy` free the communicator, and another thread may be inside a
//! call on it at that moment. So the pointer is given to the library only between *enter* and
//! *leave*, and whoever ends the communicator
//!
//! 1. changes the state, so that no call enters any more;
//! 2. waits until nobody is inside;
//! 3. frees the pointer, or leaks it if a call does not leave in time.
//!
//! Enter is two steps: say "inside", then look at the state. Both sides write first and read
//! second, with a fence between, so at least one sees the other (Dekker's argument): a call that
//! entered is waited for, or it sees the new state and turns back. An end is rare and a call is
//! not, so the end pays for both fences (see [`fence`](crate::fence)): entering and leaving are
//! plain stores, since only the thread that owns the communicator enters, where an exchange would
//! cost some 5 ns and wait for the caller's own stores. If that fence fails nobody is known to be
//! outside, and the pointer is leaked. Others (groups, handles that poll) count in a word of their
//! own, with sequentially consistent operations on both sides.
//!
//! A *revoked* communicator is a stop on that way: operations turn back at the state as after an end,
//! but the pointer lives, and what is allowed on it enters by another door
//! ([`enter_revoked`](Lifeline::enter_revoked)).
//!
//! What could hang inside the library (destroy, abort, revoke) runs on a helper thread, and is
//! waited for a bounded time. That thread makes the communicator's device current first: the
//! library restores the thread's device afterwards, and on a fresh thread that is device 0, where
//! it would create a context that costs hundreds of megabytes.

use std::{
    ffi::CStr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use collectives_core::{AbortControl, CommInfo, Error, ErrorKind, Result};
use collectives_nccl_abi::{self as abi, Table, fork, ncclComm_t, ncclResult_t, types};

use crate::{
    error,
    fence::Fence,
    group,
    helper::{bounded, unless},
    met::Met,
};

/// See the [module](self).
pub(crate) struct Lifeline {
    state: AtomicU32,
    /// How deep the owning thread is inside calls. Written by that thread only.
    calls: AtomicU32,
    /// Open groups and polling handles.
    holds: AtomicU32,
    /// Between `calls` and `state`.
    fence: Fence,
    raw: ncclComm_t,
    ends: Ends,
    library: &'static abi::Library,
    info: CommInfo,
    met: Met,
    /// The first failure, which stays true for ever.
    failure: OnceLock<Error>,
    /// What somebody outside found wrong with it, and maybe ended it for.
    reason: OnceLock<Error>,
    /// [`REVOKED`] or [`DRAINED`] from when it became so, also after its end; else [`LIVE`].
    last_stop: AtomicU32,
}

/// What goes down with the communicator, and how.
pub(crate) struct Ends {
    /// The communicator that this one was split from and shares resources with.
    pub(crate) parent: Option<ncclComm_t>,
    /// `commName`: NCCL 2.27.3 and later keep the pointer.
    #[expect(dead_code, reason = "kept for the library, which has its address")]
    pub(crate) name: Option<Arc<CStr>>,
    /// Makes the device current on the helper thread.
    pub(crate) make_current: fn(usize) -> Result<()>,
}

// SAFETY: the handles are addresses that only the library dereferences, and the protocol of this
// module decides who gives them to it; NCCL's communicators are not bound to the thread that made
// them.
unsafe impl Send for Lifeline {}
// SAFETY: as above; `ncclCommGetAsyncError` and `ncclCommRevoke`, the only functions called beside
// a call of another thread, are made for that.
unsafe impl Sync for Lifeline {}

impl Lifeline {
    pub(crate) fn new(
        raw: ncclComm_t,
        info: CommInfo,
        library: &'static abi::Library,
        ends: Ends,
    ) -> Arc<Self> {
        Arc::new(Self {
            state: AtomicU32::new(LIVE),
            calls: AtomicU32::new(0),
            holds: AtomicU32::new(0),
            fence: Fence::of_process(),
            raw,
            ends,
            library,
            met: Met::new(info.rank, info.size),
            info,
            failure: OnceLock::new(),
            reason: OnceLock::new(),
            last_stop: AtomicU32::new(LIVE),
        })
    }

    #[inline]
    pub(crate) fn info(&self) -> &CommInfo {
        &self.info
    }

    /// Whom it has exchanged messages with.
    #[inline]
    pub(crate) fn met(&self) -> &Met {
        &self.met
    }

    pub(crate) fn library(&self) -> &'static abi::Library {
        self.library
    }

    /// The handle: to be given to the library inside a call, a hold or a thread that ends it.
    #[inline]
    pub(crate) fn raw(&self) -> ncclComm_t {
        self.raw
    }

    /// Whether its end has not begun.
    #[inline]
    pub(crate) fn is_alive(&self) -> bool {
        !has_ended(self.state.load(Ordering::SeqCst))
    }

    /// Enters a call. Only the thread that owns the communicator may do this, which its being
    /// `!Sync` sees to; calls nest.
    #[inline]
    pub(crate) fn enter(&self, operation: &'static str) -> Result<Call<'_>> {
        if fork::in_forked_child() {
            return Err(error::forked(operation, &self.info.library));
        }
        let (call, state) = self.step_inside();
        if state == LIVE {
            return Ok(call);
        }
        drop(call);
        Err(self.gone().with_operation(operation))
    }

    /// As [`enter`](Self::enter), also where the communicator is revoked.
    pub(crate) fn enter_revoked(&self, operation: &'static str) -> Result<Call<'_>> {
        if fork::in_forked_child() {
            return Err(error::forked(operation, &self.info.library));
        }
        let (call, state) = self.step_inside();
        if !has_ended(state) {
            return Ok(call);
        }
        drop(call);
        Err(self.gone().with_operation(operation))
    }

    /// Says "inside", then looks at the state.
    #[inline]
    fn step_inside(&self) -> (Call<'_>, u32) {
        let outer = self.calls.load(Ordering::Relaxed);
        self.calls.store(outer + 1, Ordering::Relaxed);
        self.fence.light();
        (Call { line: self, outer }, self.state.load(Ordering::Relaxed))
    }

    /// Keeps the pointer from being freed, from any thread, unless the end has begun.
    pub(crate) fn hold(self: &Arc<Self>) -> Option<Hold> {
        let hold = self.hold_on();
        self.is_alive().then_some(hold)
    }

    /// Keeps the pointer from being freed. To be called inside a call, which keeps it until this
    /// has begun: so it holds although the end may have begun as well.
    pub(crate) fn hold_on(self: &Arc<Self>) -> Hold {
        self.holds.fetch_add(1, Ordering::SeqCst);
        Hold(Arc::clone(self))
    }

    /// The error for what the library answered to a call on this communicator.
    #[cold]
    pub(crate) fn failed(&self, result: ncclResult_t) -> Error {
        self.note_failure(error::from_result(self.library, result))
    }

    /// The error for what the library answered in the middle of something: no refusal, whatever
    /// its code, as a part may run.
    #[cold]
    pub(crate) fn broken(&self, result: ncclResult_t) -> Error {
        self.note_failure(error::from_result(self.library, result).with_poison(true))
    }

    fn note_failure(&self, error: Error) -> Error {
        let error = error.with_comm(&self.info);
        if error.poisons_communicator() {
            let _first_stays = self.failure.set(error::copy(&error, &self.info));
        }
        error
    }

    /// Waits out `ncclInProgress`, which a communicator of ours answers only where the variable
    /// `NCCL_COMM_BLOCKING=0` or its maker made it non-blocking. To be called inside a call or hold.
    #[cold]
    pub(crate) fn settle(&self) -> ncclResult_t {
        let Some(get_async_error) = self.table().comm_get_async_error else {
            return ncclResult_t::IN_PROGRESS;
        };
        let mut pause = Backoff::new();
        loop {
            let mut state = ncclResult_t::SUCCESS;
            // SAFETY: the caller is inside a call or hold, so the communicator is not freed.
            let result = unsafe { get_async_error(self.raw, &mut state) };
            let outcome = if result.is_success() { state } else { result };
            if outcome != ncclResult_t::IN_PROGRESS || !self.is_alive() {
                return outcome;
            }
            pause.sleep();
        }
    }

    /// The error of a communicator that has come to its end.
    #[cold]
    pub(crate) fn gone(&self) -> Error {
        let state = self.state.load(Ordering::SeqCst);
        if let Some(reason) = self.reason.get().filter(|_| state == ABORTED) {
            return reason.copy();
        }
        let error = match state {
            CLOSED => Error::new(ErrorKind::InvalidUsage, "the communicator is finalized"),
            REVOKED | DRAINED => revoked(),
            SUSPENDED => Error::new(ErrorKind::InvalidUsage, "the communicator is suspended")
                .with_hint("resume it first"),
            _ => Error::new(ErrorKind::Aborted, "the communicator was aborted")
                .with_hint("join a new one"),
        };
        error.with_comm(&self.info)
    }

    /// What broke the communicator, if anything did; asks the library if need be.
    pub(crate) fn poll(self: &Arc<Self>) -> Option<Error> {
        if let Some(failure) = self.failure.get() {
            return Some(error::copy(failure, &self.info));
        }
        if self.is_revoked() {
            return Some(revoked().with_comm(&self.info));
        }
        if let Some(reason) = self.reason.get() {
            return Some(reason.copy());
        }
        let get_async_error = self.table().comm_get_async_error?;
        let _hold = self.hold()?;
        let mut state = ncclResult_t::SUCCESS;
        // SAFETY: the hold keeps the communicator; this function may be called beside another
        // thread's call.
        let result = unsafe { get_async_error(self.raw, &mut state) };
        match if result.is_success() { state } else { result } {
            ncclResult_t::SUCCESS | ncclResult_t::IN_PROGRESS => None,
            failure => Some(self.failed(failure)),
        }
    }

    /// Ends the communicator from any thread; see [`collectives_core::AbortHandle::abort`].
    pub(crate) fn abort(self: &Arc<Self>) -> Result<()> {
        if fork::in_forked_child() {
            return Err(error::forked("abort", &self.info.library));
        }
        let Some(before) = self.end(ABORTED) else { return Ok(()) };
        let Some(abort) = self.table().comm_abort else {
            self.leak("the library has no ncclCommAbort");
            return Ok(());
        };
        if group::holds(self) {
            self.leak("an open group of this thread uses it");
            return Ok(());
        }
        // The library revokes but once.
        if !self.is_idle() && before != REVOKED && !self.expel() {
            self.leak("ncclCommRevoke does not return");
            return Ok(());
        }
        if !self.is_idle_within(PATIENCE) {
            self.leak("a call of another thread does not leave the library");
            return Ok(());
        }
        let line = Arc::clone(self);
        let aborted = bounded(PATIENCE, move || {
            line.bind_device();
            // SAFETY: the end has begun and nobody is inside, so this is the last use of the
            // pointer.
            let result = unsafe { abort(line.raw) };
            line.free_parent();
            result
        });
        match aborted {
            Some(result) if is_under_way(result) => Ok(()),
            Some(result) => Err(self.failed(result).with_operation("abort")),
            None => {
                tracing::warn!("ncclCommAbort goes on in the background after {PATIENCE:?}");
                Ok(())
            }
        }
    }

    fn is_aborted(&self) -> bool {
        self.state.load(Ordering::SeqCst) == ABORTED
    }

    /// Whether it was revoked, or its operations were dropped by a shrink.
    pub(crate) fn is_revoked(&self) -> bool {
        self.last_stop.load(Ordering::SeqCst) != LIVE
    }

    /// Revokes the communicator on this thread, the one that owns it, however long that takes.
    pub(crate) fn revoke(&self) -> Result<()> {
        const OPERATION: &str = "revoke";
        let _call = self.enter_revoked(OPERATION)?;
        if group::is_open(self.library) {
            return Err(Error::new(ErrorKind::InvalidUsage, "a group is open on this thread")
                .with_comm(&self.info)
                .with_operation(OPERATION)
                .with_hint("end or drop the group first"));
        }
        let Some(revoke) = self.table().comm_revoke else {
            return Err(Error::new(ErrorKind::Unsupported, "this library has no revoke")
                .with_comm(&self.info)
                .with_operation(OPERATION));
        };
        match self.turn(REVOKED) {
            Some(REVOKED) => return Ok(()),
            Some(_) => {}
            None => return Err(self.gone().with_operation(OPERATION)),
        }
        self.bind_device();
        // SAFETY: inside a call, so the communicator is not freed. A second revoke beside this one
        // is kept away by the state.
        let mut result = unsafe { revoke(self.raw, types::NCCL_REVOKE_DEFAULT) };
        if result == ncclResult_t::IN_PROGRESS {
            result = self.settle();
        }
        match result.is_success() {
            true => Ok(()),
            false => Err(self.broken(result).with_operation(OPERATION)),
        }
    }

    /// Whether it has given its memory back.
    pub(crate) fn is_suspended(&self) -> bool {
        self.state.load(Ordering::SeqCst) == SUSPENDED
    }

    /// Has operations turned back, or not any more. An end or revoke that came first stays.
    pub(crate) fn set_suspended(&self, suspended: bool) {
        let (from, to) = if suspended { (LIVE, SUSPENDED) } else { (SUSPENDED, LIVE) };
        let _ended = self.state.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// Has operations turned back from now on, since what is in flight is about to be dropped.
    pub(crate) fn drain(&self) {
        self.turn(DRAINED);
    }

    /// Leaves the state in which operations may be called, or goes from one such state to the next;
    /// tells the state before. `None` where the end has begun.
    fn turn(&self, state: u32) -> Option<u32> {
        let turn = |now: u32| (!has_ended(now)).then_some(now.max(state));
        let before = self.state.fetch_update(Ordering::SeqCst, Ordering::SeqCst, turn).ok()?;
        self.last_stop.fetch_max(state, Ordering::SeqCst);
        Some(before)
    }

    /// Flushes and frees the communicator. Flushing waits for other ranks and for captured graphs, as
    /// long as that takes; an abort by handle ends the wait, even where the library stays inside. A
    /// revoked one has nothing to flush, and the library would refuse to (`ncclInvalidArgument`).
    pub(crate) fn finalize(self: &Arc<Self>) -> Result<()> {
        let call = self.enter_revoked("finalize")?;
        if group::is_open(self.library) {
            return Err(Error::new(ErrorKind::InvalidUsage, "a group is open on this thread")
                .with_comm(&self.info)
                .with_operation("finalize")
                .with_hint("end the group first; the communicator is closed all the same"));
        }
        self.bind_device();
        let mut flushed = ncclResult_t::SUCCESS;
        let flush = self.table().comm_finalize.filter(|_| !self.is_revoked());
        if let Some(finalize) = flush {
            let hold = self.hold_on();
            let work = move || {
                let line = hold.line();
                line.bind_device();
                // SAFETY: the hold keeps the communicator from being freed.
                match unsafe { finalize(line.raw) } {
                    ncclResult_t::IN_PROGRESS => line.settle(),
                    result => result,
                }
            };
            match unless(work, || !self.is_alive()) {
                Some(result) => flushed = result,
                None => return Err(self.gone().with_operation("finalize")),
            }
        }
        drop(call);
        let outcome = match flushed.is_success() {
            true => Ok(()),
            false => Err(self.failed(flushed).with_operation("finalize")),
        };
        if self.end(CLOSED).is_none() {
            return Err(self.gone().with_operation("finalize"));
        }
        if !self.is_idle_within(PATIENCE) {
            self.leak("a group or handle of another thread does not let go of it");
            return outcome;
        }
        let line = Arc::clone(self);
        let freed = bounded(FLUSH_PATIENCE, move || line.free());
        outcome.and_then(|()| match freed {
            Some(freed) if is_under_way(freed) => Ok(()),
            Some(freed) => Err(self.failed(freed).with_operation("finalize")),
            None => Err(self.still_held()),
        })
    }

    #[cold]
    fn still_held(&self) -> Error {
        let message =
            format!("flushed, but the library does not let go of it in {FLUSH_PATIENCE:?}");
        Error::new(ErrorKind::Timeout, message)
            .with_comm(&self.info)
            .with_operation("finalize")
            .with_hint(
                "captured graphs may hold it: destroy them first; it goes on in the background",
            )
    }

    /// Frees the communicator, in bounded time: what dropping does.
    pub(crate) fn close(self: &Arc<Self>) {
        if self.end(CLOSED).is_none() {
            return;
        }
        if fork::in_forked_child() {
            return self.leak("this process was forked after it was made");
        }
        if group::holds(self) {
            return self.leak("an open group of this thread uses it");
        }
        if !self.is_idle_within(PATIENCE) {
            return self.leak("a group or handle of another thread does not let go of it");
        }
        let line = Arc::clone(self);
        match bounded(FLUSH_PATIENCE, move || line.free()) {
            Some(result) if is_under_way(result) => {}
            Some(result) => {
                let error = self.failed(result).with_operation("drop");
                tracing::warn!(%error, "a dropped communicator did not end well");
            }
            None => {
                // Nobody is left to abort it, so what waits for its streams is told not to.
                let error = Error::new(ErrorKind::Aborted, "it was dropped with work pending");
                self.note_failure(error.with_operation("drop").with_hint("join a new one"));
                tracing::warn!(
                    rank = self.info.rank.get(),
                    size = self.info.size,
                    "a dropped communicator is still being flushed after {FLUSH_PATIENCE:?}: a \
                     rank may be gone, or work on its streams never ends; it goes on in the \
                     background"
                );
            }
        }
    }

    /// Destroys the communicator, or aborts one that has failed, as destroying would wait for ranks
    /// that may be gone; then the parent. The end has begun and nobody is inside.
    ///
    /// One that was revoked waits for nobody. After a shrink that dropped its operations the library
    /// knows nothing of that, and would flush.
    fn free(&self) -> ncclResult_t {
        self.bind_device();
        let table = self.table();
        let failed = self.failure.get().is_some()
            || self.reason.get().is_some()
            || match self.last_stop.load(Ordering::SeqCst) {
                LIVE => self.has_async_error(),
                stop => stop == DRAINED,
            };
        let end = match table.comm_abort {
            Some(abort) if failed => abort,
            _ => table.comm_destroy,
        };
        // SAFETY: the end has begun and nobody is inside, so this is the last use of the pointer.
        let result = unsafe { end(self.raw) };
        self.free_parent();
        result
    }

    /// Destroys the parent, if one was kept. The child has ended.
    fn free_parent(&self) {
        let Some(parent) = self.ends.parent else { return };
        // SAFETY: the parent belongs to this life line alone, which comes here once.
        let result = unsafe { (self.table().comm_destroy)(parent) };
        if !is_under_way(result) {
            tracing::warn!(?result, "the parent of a communicator did not end well");
        }
    }

    /// Whether the library knows of a failure. Nobody else is inside.
    fn has_async_error(&self) -> bool {
        let Some(get_async_error) = self.table().comm_get_async_error else { return false };
        let mut state = ncclResult_t::SUCCESS;
        // SAFETY: the pointer is freed only after this.
        let result = unsafe { get_async_error(self.raw, &mut state) };
        !result.is_success() || !matches!(state, ncclResult_t::SUCCESS | ncclResult_t::IN_PROGRESS)
    }

    /// Makes calls that are stuck inside the library leave: NCCL 2.28.7 and later can, without
    /// freeing the communicator. Tells whether nothing of this is left inside the library.
    fn expel(self: &Arc<Self>) -> bool {
        let Some(revoke) = self.table().comm_revoke else { return true };
        let line = Arc::clone(self);
        let revoked = bounded(PATIENCE, move || {
            line.bind_device();
            // SAFETY: whoever has begun the end frees the pointer only after this has returned, or
            // never; revoking beside a call is what the function is for.
            unsafe { revoke(line.raw, types::NCCL_REVOKE_DEFAULT) }
        });
        tracing::debug!(?revoked, "revoked a communicator with a call inside");
        revoked.is_some()
    }

    /// Begins the end; only the first to do so succeeds, and is told the state before.
    fn end(&self, state: u32) -> Option<u32> {
        let turn = |now: u32| (!has_ended(now)).then_some(state);
        self.state.fetch_update(Ordering::SeqCst, Ordering::SeqCst, turn).ok()
    }

    /// Whether nobody is inside, nor ever will be: to be asked once the end has begun.
    ///
    /// Calls first: one that is inside may hold on for a group before it leaves.
    fn is_idle(&self) -> bool {
        self.fence.heavy()
            && self.calls.load(Ordering::Acquire) == 0
            && self.holds.load(Ordering::SeqCst) == 0
    }

    fn is_idle_within(&self, limit: Duration) -> bool {
        let start = Instant::now();
        let mut pause = Backoff::new();
        while !self.is_idle() {
            if start.elapsed() >= limit {
                return false;
            }
            pause.sleep();
        }
        true
    }

    /// Gives the communicator up without freeing it; its name stays for the library's threads.
    fn leak(self: &Arc<Self>, why: &str) {
        tracing::warn!(
            rank = self.info.rank.get(),
            size = self.info.size,
            "a communicator is leaked, not freed: {why}"
        );
        std::mem::forget(Arc::clone(self));
    }

    fn bind_device(&self) {
        // Without a device runtime there is no context to spare either.
        if let Err(error) = (self.ends.make_current)(self.info.device) {
            tracing::debug!(%error, "could not make a communicator's device current");
        }
    }

    fn table(&self) -> &'static Table {
        self.library.table()
    }
}

impl AbortControl for Control {
    fn abort(&self) -> Result<()> {
        self.0.abort()
    }

    fn is_aborted(&self) -> bool {
        self.0.is_aborted()
    }

    fn failure(&self) -> Option<Error> {
        if self.0.is_aborted() {
            return Some(self.0.gone());
        }
        self.0.poll()
    }

    fn condemn(&self, reason: Error) {
        let _first_stays = self.0.reason.set(reason.with_poison(true));
    }
}

/// What abort handles share.
pub(crate) struct Control(pub(crate) Arc<Lifeline>);

/// A call of the owning thread, inside the library.
pub(crate) struct Call<'a> {
    line: &'a Lifeline,
    outer: u32,
}

impl Drop for Call<'_> {
    #[inline]
    fn drop(&mut self) {
        // Release: all that the call did happens before the pointer is freed.
        self.line.calls.store(self.outer, Ordering::Release);
    }
}

/// Something outside the owning thread's calls that needs the pointer to stay.
pub(crate) struct Hold(Arc<Lifeline>);

impl Hold {
    pub(crate) fn line(&self) -> &Arc<Lifeline> {
        &self.0
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.holds.fetch_sub(1, Ordering::Release);
    }
}

/// Ends a communicator that has no life line, on a helper thread; tells whether the library has let
/// go of it in time. `name` is the text that the library knows, kept for as long as this takes.
pub(crate) fn end_stray(
    raw: ncclComm_t,
    end: unsafe extern "C" fn(ncclComm_t) -> ncclResult_t,
    (make_current, device): (fn(usize) -> Result<()>, usize),
    name: Option<Arc<CStr>>,
) -> bool {
    let raw = Stray(raw);
    let ended = bounded(PATIENCE, move || {
        let raw = raw.into_inner();
        let _without_runtime_there_is_none = make_current(device);
        // SAFETY: the communicator is ours, nobody uses it, and this is its end.
        let result = unsafe { end(raw) };
        drop(name);
        result
    });
    if !ended.is_some_and(is_under_way) {
        tracing::warn!(device, ?ended, "a communicator that nobody got did not end well");
    }
    ended.is_some()
}

/// A communicator on its way to the thread that ends it.
struct Stray(ncclComm_t);

// SAFETY: the library's communicators are not bound to the thread that made them, and this one has
// no other user.
unsafe impl Send for Stray {}

impl Stray {
    /// By value, so that a closure takes the whole and not the pointer in it.
    fn into_inner(self) -> ncclComm_t {
        self.0
    }
}

/// Whether what was asked is done or will be: a non-blocking communicator does it in the
/// background.
pub(crate) const fn is_under_way(result: ncclResult_t) -> bool {
    matches!(result, ncclResult_t::SUCCESS | ncclResult_t::IN_PROGRESS)
}

/// Pauses that grow from 20 µs to 2 ms, for polling what takes microseconds or minutes.
pub(crate) struct Backoff(Duration);

impl Backoff {
    pub(crate) const fn new() -> Self {
        Self(Duration::from_micros(20))
    }

    pub(crate) fn sleep(&mut self) {
        thread::sleep(self.0);
        self.0 = (self.0 * 2).min(Duration::from_millis(2));
    }
}

const LIVE: u32 = 0;
/// It has given its memory back for a time.
const SUSPENDED: u32 = 1;
/// Its operations were dropped by a shrink; the library may yet be asked to revoke it.
const DRAINED: u32 = 2;
/// The library was asked to revoke it.
const REVOKED: u32 = 3;
const ABORTED: u32 = 4;
const CLOSED: u32 = 5;

/// Whether a state is one after the end has begun.
const fn has_ended(state: u32) -> bool {
    state >= ABORTED
}

fn revoked() -> Error {
    Error::new(ErrorKind::Revoked, "the communicator was revoked")
        .with_hint("shrink it, or end it and join a new one")
}

/// How long an end waits for others to leave, and for the library's abort.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// How long dropping waits for the library to flush what is enqueued, and finalizing for it to free.
const FLUSH_PATIENCE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use std::{
        ffi::{c_int, c_void},
        hint, ptr,
        sync::atomic::AtomicBool,
    };

    use collectives_core::{LibraryInfo, Rank, Version};

    use super::*;

    /// What a kernel or a filter that refuses `membarrier` leaves.
    #[test]
    fn no_call_is_inside_an_idle_communicator_without_membarrier() {
        ends_beside_calls(Fence::Symmetric);
    }

    /// Where `membarrier` is refused this runs over the fallback, as communicators do.
    #[test]
    fn no_call_is_inside_an_idle_communicator_with_the_fence_of_the_process() {
        ends_beside_calls(Fence::of_process());
    }

    #[test]
    fn nobody_is_known_to_be_outside_if_the_fence_fails() {
        let line = line(Fence::Broken);
        assert!(line.end(ABORTED).is_some());
        assert!(!line.is_idle());
    }

    /// One thread enters until it is refused, another ends the life line, waits until it is idle,
    /// and then "frees" it: no call may see that.
    fn ends_beside_calls(fence: Fence) {
        const ROUNDS: u32 = 100_000;
        let line = &line(fence);
        let [begun, refused] = &[const { AtomicU32::new(0) }; 2];
        let [freed, seen] = &[const { AtomicBool::new(false) }; 2];
        thread::scope(|scope| {
            scope.spawn(move || {
                for round in 1..=ROUNDS {
                    wait_until(|| begun.load(Ordering::Acquire) == round);
                    while let Ok(_call) = line.enter("test") {
                        // Long enough for the free of somebody who overlooked this call.
                        // Plain loads, as a read-modify-write would be a fence.
                        if (0..64).any(|_| freed.load(Ordering::Relaxed)) {
                            seen.store(true, Ordering::Relaxed);
                        }
                    }
                    refused.store(round, Ordering::Release);
                }
            });
            for round in 1..=ROUNDS {
                freed.store(false, Ordering::Relaxed);
                line.state.store(LIVE, Ordering::SeqCst);
                begun.store(round, Ordering::Release);
                // Ends at different points of the other thread's calls.
                (0..round % 512).for_each(|_| hint::spin_loop());
                assert!(line.end(ABORTED).is_some());
                wait_until(|| line.is_idle());
                freed.store(true, Ordering::Relaxed);
                wait_until(|| refused.load(Ordering::Acquire) == round);
            }
        });
        assert!(!seen.load(Ordering::Relaxed), "a call was inside while nobody seemed to be");
    }

    fn wait_until(mut done: impl FnMut() -> bool) {
        for tries in 1_u32.. {
            if done() {
                return;
            }
            match tries % 64 {
                0 => thread::yield_now(),
                _ => hint::spin_loop(),
            }
        }
    }

    /// A life line over functions that nobody calls.
    fn line(fence: Fence) -> Lifeline {
        // SAFETY: `ncclGetVersion` has its signature, and nothing else is called.
        let table = unsafe { Table::fill(find) }.expect("everything is there");
        // SAFETY: as above.
        let library = unsafe { abi::Library::from_table(abi::Vendor::NCCL, table) };
        let described = LibraryInfo {
            backend: "test",
            path: None,
            version: Version::new(2, 28, 9),
            found_by: "a test".into(),
        };
        Lifeline {
            state: AtomicU32::new(LIVE),
            calls: AtomicU32::new(0),
            holds: AtomicU32::new(0),
            fence,
            raw: ncclComm_t(ptr::null_mut()),
            ends: Ends { parent: None, name: None, make_current: |_| Ok(()) },
            library: library.expect("it tells a version"),
            info: CommInfo::new(Rank::new(0), 1, 0, None, described),
            met: Met::new(Rank::new(0), 1),
            failure: OnceLock::new(),
            reason: OnceLock::new(),
            last_stop: AtomicU32::new(LIVE),
        }
    }

    fn find(name: &CStr) -> *const c_void {
        match name.to_bytes() {
            b"ncclGetVersion" => version as *const c_void,
            _ => stub as *const c_void,
        }
    }

    unsafe extern "C" fn version(version: *mut c_int) -> ncclResult_t {
        // SAFETY: the caller gives room for one.
        unsafe { *version = 22809 };
        ncclResult_t::SUCCESS
    }

    /// Stands for any function.
    extern "C" fn stub() {}
}
