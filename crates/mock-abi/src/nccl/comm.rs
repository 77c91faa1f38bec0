//! What an `ncclComm_t` points to.
//!
//! A handle is the address of a [`Comm`] that is never given back to the allocator, so that a handle
//! which was destroyed is seen and refused, where NCCL's behaviour is undefined. Its place is used
//! again after some thousands of others.
//!
//! Calls that wait (a split, a finalize) take the mock's communicator out and leave the lock, so
//! that an abort or a look at the state by another thread need not wait for them.

use std::{
    collections::{BTreeMap, VecDeque},
    ffi::{c_int, c_void},
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, TryRecvError},
    },
};

use collectives_backend_mock::{JoinState, MockComm, PendingJoin};
use collectives_core::{
    AbortHandle, Collectives, ErrorKind, PreMulSum, RawRegistration, RawWindow,
};
use collectives_nccl_abi::{ncclComm_t, ncclResult_t};

use super::{
    birth::Birth,
    config::Config,
    refusal::{Refusal, Result, code_of},
};
use crate::{gpu::stream::Stream, runtime};

/// One rank's end of a communicator.
#[repr(C)]
pub(super) struct Comm {
    /// First, as in NCCL, where it tells a communicator from other memory.
    magic: AtomicU64,
    state: Mutex<State>,
}

pub(super) struct State {
    pub(super) phase: Phase,
    pub(super) rank: usize,
    pub(super) size: usize,
    pub(super) device: usize,
    pub(super) config: Config,
    /// What ends a call that another thread is in.
    abort: Option<AbortHandle>,
    /// Whether it was aborted while a call had the communicator, which then frees it.
    pub(super) aborted: bool,
    pub(super) revoked: bool,
    pub(super) suspended: bool,
    /// Calls so far, for logs.
    pub(super) calls: u64,
    /// The stream of the last call: programs rarely change streams.
    pub(super) stream: Option<Arc<Stream>>,
    /// The live PreMulSum operators, by the numbers that the program knows.
    pub(super) operators: BTreeMap<c_int, PreMulSum>,
    pub(super) operators_made: u32,
    /// The live windows, by their handles.
    pub(super) windows: BTreeMap<usize, Window>,
    /// A communicator that is made out of this one without the program waiting.
    birth: Option<Birth>,
    /// What went wrong since, in a call that had answered before.
    failed: Option<ncclResult_t>,
}

/// How far a communicator has come.
pub(super) enum Phase {
    /// A call that waits has it: its making, a split, a finalize.
    Busy,
    /// A join that the program does not wait for.
    Joining(Box<PendingJoin>),
    Ready(Box<MockComm>),
    /// `ncclCommFinalize` was called, and goes on behind the program's back.
    Finalizing(Receiver<collectives_core::Result<()>>),
    Finalized,
    /// It never came to be, or failed while it was finalized.
    Failed(ncclResult_t),
    /// Destroyed.
    Gone,
}

/// Memory behind an `ncclWindow_t`.
pub(super) struct Window {
    pub(super) user: usize,
    pub(super) backing: Backing,
}

/// What the mock has of it.
pub(super) enum Backing {
    /// Of this rank.
    Alone(RawRegistration),
    /// Of all ranks.
    Together(RawWindow),
}

impl State {
    const EMPTY: Self = Self {
        phase: Phase::Gone,
        rank: 0,
        size: 0,
        device: 0,
        config: Config::DEFAULT,
        abort: None,
        aborted: false,
        revoked: false,
        suspended: false,
        calls: 0,
        stream: None,
        operators: BTreeMap::new(),
        operators_made: 0,
        windows: BTreeMap::new(),
        birth: None,
        failed: None,
    };

    /// The communicator, where a call may be made on it.
    ///
    /// # Errors
    /// NCCL's, in its order: revoked, in progress, failed.
    pub(super) fn live(&self, call: &str) -> Result<&MockComm> {
        if self.revoked {
            return Err(Refusal::usage(format!("{call} : the communicator was revoked")));
        }
        self.usable(call)
    }

    /// As [`live`](Self::live), also where it was revoked.
    pub(super) fn usable(&self, call: &str) -> Result<&MockComm> {
        if let Some(code) = self.failed {
            return Err(Refusal::again(code));
        }
        match &self.phase {
            Phase::Ready(comm) if self.birth.is_none() => Ok(comm),
            Phase::Ready(_) | Phase::Busy | Phase::Joining(_) | Phase::Finalizing(_) => {
                Err(Refusal::argument(format!(
                    "{call} : Attempt to use communicator before the previous operation returned \
                     ncclSuccess"
                )))
            }
            Phase::Finalized => {
                Err(Refusal::argument(format!("{call} : the communicator was finalized")))
            }
            Phase::Failed(code) => Err(Refusal::again(*code)),
            Phase::Gone => Err(corrupted(call)),
        }
    }

    /// Makes this the communicator of a call that waited for it.
    pub(super) fn settle(&mut self, comm: MockComm) {
        let info = comm.info();
        (self.rank, self.size, self.device) = (info.rank.index(), info.size, info.device);
        self.abort = Some(comm.abort_handle());
        if self.aborted {
            // The abort was answered already, and its own outcome has nobody to go to.
            let _ = Box::new(comm).abort();
            self.phase = Phase::Gone;
        } else {
            self.phase = Phase::Ready(Box::new(comm));
        }
    }

    /// Moves on what goes on behind the program's back, and tells the state as
    /// `ncclCommGetAsyncError` does.
    pub(super) fn poll(&mut self) -> ncclResult_t {
        if let Phase::Joining(join) = &mut self.phase {
            if join.poll() == JoinState::InProgress {
                return ncclResult_t::IN_PROGRESS;
            }
            if let Phase::Joining(join) = mem::replace(&mut self.phase, Phase::Busy) {
                match join.finish() {
                    Ok(comm) => self.settle(comm),
                    Err(error) => self.phase = Phase::Failed(Refusal::from(error).report()),
                }
            }
        }
        if let Phase::Finalizing(ended) = &self.phase {
            match ended.try_recv() {
                Err(TryRecvError::Empty) => return ncclResult_t::IN_PROGRESS,
                Err(TryRecvError::Disconnected) => self.finalized(&Ok(())),
                Ok(outcome) => self.finalized(&outcome),
            }
        }
        if let Some(birth) = &mut self.birth {
            match birth.poll() {
                None => return ncclResult_t::IN_PROGRESS,
                Some((parent, outcome)) => {
                    self.birth = None;
                    self.settle(parent);
                    self.failed = outcome.err().map(Refusal::report);
                }
            }
        }
        if let Some(code) = self.failed {
            return code;
        }
        match &self.phase {
            Phase::Busy if self.config.blocking => ncclResult_t::SUCCESS,
            Phase::Busy | Phase::Joining(_) | Phase::Finalizing(_) => ncclResult_t::IN_PROGRESS,
            Phase::Failed(code) => *code,
            Phase::Finalized | Phase::Gone => ncclResult_t::SUCCESS,
            Phase::Ready(comm) => match comm.poll_error() {
                Ok(()) => ncclResult_t::SUCCESS,
                // It was asked for.
                Err(_) if self.revoked => ncclResult_t::SUCCESS,
                Err(error) => Refusal::from(error).report(),
            },
        }
    }

    /// Notes how a finalize ended.
    pub(super) fn finalized(&mut self, outcome: &collectives_core::Result<()>) {
        self.phase = match outcome {
            Err(error) if error.kind() != ErrorKind::Aborted => {
                Phase::Failed(code_of(error.kind()))
            }
            _ => Phase::Finalized,
        };
    }

    /// Lets `birth` go on behind the program's back; it has the communicator.
    pub(super) fn give_birth(&mut self, birth: Birth) {
        self.birth = Some(birth);
    }

    /// Waits for what goes on behind the program's back.
    pub(super) fn end_birth(&mut self) -> Result<()> {
        let Some(mut birth) = self.birth.take() else { return Ok(()) };
        let Some((parent, outcome)) = birth.wait() else {
            self.phase = Phase::Failed(ncclResult_t::INTERNAL_ERROR);
            return Err(Refusal::again(ncclResult_t::INTERNAL_ERROR));
        };
        self.settle(parent);
        outcome
    }

    /// Takes the communicator out, for a call that waits.
    pub(super) fn take(&mut self) -> Option<MockComm> {
        match mem::replace(&mut self.phase, Phase::Busy) {
            Phase::Ready(comm) => Some(*comm),
            other => {
                self.phase = other;
                None
            }
        }
    }

    /// Ends the communicator at once, or sees to it that the call which has it does.
    pub(super) fn abort(&mut self) {
        self.aborted = true;
        if let Some(handle) = &self.abort {
            // Aborting has nothing to report that the caller could act on, as in NCCL.
            let _ = handle.abort();
        }
        if !matches!(self.phase, Phase::Busy) || self.birth.is_some() {
            if let Phase::Ready(comm) = mem::replace(&mut self.phase, Phase::Gone) {
                let _ = comm.abort();
            }
            self.birth = None;
        }
    }

    /// Whether a communicator that another thread looks at has failed.
    fn failure_seen_from_outside(&self) -> Option<ncclResult_t> {
        let failure = self.abort.as_ref()?.failure()?;
        Some(code_of(failure.kind()))
    }
}

impl Comm {
    const MAGIC: u64 = 0x0280_0280_0280_0280;
    /// Handles that were destroyed before a place is used again.
    const QUARANTINE: usize = 4096;

    /// A communicator to be.
    pub(super) fn make(rank: usize, size: usize, device: usize, config: Config) -> &'static Self {
        let state = State { phase: Phase::Busy, rank, size, device, config, ..State::EMPTY };
        let mut places = places();
        let comm = match places.free.len() > Self::QUARANTINE {
            true => places.free.pop_front(),
            false => None,
        };
        let comm = comm.unwrap_or_else(|| {
            let comm: &'static Self = Box::leak(Box::new(Self {
                magic: AtomicU64::new(0),
                state: Mutex::new(State::EMPTY),
            }));
            // Known from here, so that no tool takes it for lost.
            places.all.push(comm);
            comm
        });
        *comm.lock() = state;
        comm.magic.store(Self::MAGIC, Ordering::Release);
        comm
    }

    /// The communicator behind a handle.
    ///
    /// # Errors
    /// NCCL's for a null handle and for memory that is no communicator.
    pub(super) fn of(call: &str, handle: ncclComm_t) -> Result<&'static Self> {
        let pointer = handle.0.cast::<Self>();
        if pointer.is_null() {
            return Err(Refusal::null(call, "comm"));
        }
        if !pointer.is_aligned() {
            return Err(corrupted(call));
        }
        // SAFETY: the caller gives communicators of this library, which are never freed, or at
        // least memory that starts with a word.
        let magic = unsafe { &*pointer.cast::<AtomicU64>() };
        if magic.load(Ordering::Acquire) != Self::MAGIC {
            return Err(corrupted(call));
        }
        // SAFETY: it has the magic, so it is one of ours.
        Ok(unsafe { &*pointer })
    }

    pub(super) fn handle(&self) -> ncclComm_t {
        ncclComm_t((&raw const *self).cast::<c_void>().cast_mut())
    }

    /// Gives the communicator back after a call that had it, or what is left where it was aborted
    /// meanwhile.
    pub(super) fn put_back(&'static self, comm: MockComm) {
        let mut state = self.lock();
        state.settle(comm);
        if state.aborted {
            self.free(&mut state);
        }
    }

    /// Makes a call that waits for other ranks. It may be aborted meanwhile.
    pub(super) fn wait_in<R>(
        &self,
        call: &str,
        wait: impl FnOnce(&MockComm) -> collectives_core::Result<R>,
    ) -> Result<R> {
        let mock = {
            let mut state = self.lock();
            state.live(call)?;
            state.take()
        };
        let mock = mock.ok_or_else(|| corrupted(call))?;
        let outcome = wait(&mock);
        self.lock().settle(mock);
        Ok(outcome?)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the handle up.
    pub(super) fn free(&'static self, state: &mut State) {
        self.magic.store(0, Ordering::Release);
        *state = State::EMPTY;
        places().free.push_back(self);
    }

    /// The state, as `ncclCommGetAsyncError` tells it, from whatever thread.
    pub(super) fn poll(&self) -> ncclResult_t {
        let look = |state: &mut State| match state.phase {
            Phase::Busy if state.birth.is_none() => {
                let seen = state.failure_seen_from_outside();
                seen.unwrap_or_else(|| state.poll())
            }
            _ => state.poll(),
        };
        match self.state.try_lock() {
            Ok(mut state) => look(&mut state),
            // A call of it has panicked, and said so; what it left is as good as ever.
            Err(TryLockError::Poisoned(state)) => look(&mut state.into_inner()),
            // Another thread is in a call, which will tell it what there is.
            Err(TryLockError::WouldBlock) => ncclResult_t::SUCCESS,
        }
    }
}

/// The places of all communicators, and those that are free, in the order in which they became so.
struct Places {
    all: Vec<&'static Comm>,
    free: VecDeque<&'static Comm>,
}

fn places() -> MutexGuard<'static, Places> {
    static PLACES: Mutex<Places> = Mutex::new(Places { all: Vec::new(), free: VecDeque::new() });
    PLACES.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn corrupted(call: &str) -> Refusal {
    Refusal::argument(format!("{call} : corrupted comm object detected"))
}

/// The device that a rank is placed on: that of the thread; or, in a program without any, the one of
/// the rank's number.
pub(super) fn place_of(rank: usize) -> Result<usize> {
    if runtime::is_without_devices() {
        let devices = collectives_core::Backend::device_count(runtime::mock()?)?;
        return Ok(rank % devices);
    }
    Ok(runtime::current_device())
}

#[cfg(test)]
mod tests {
    use std::{
        panic::{AssertUnwindSafe, catch_unwind},
        ptr, thread,
        time::Duration,
    };

    use super::*;
    use crate::nccl::lifecycle::ncclCommAbort;

    #[test]
    fn who_aborts_while_another_thread_does_frees_nothing_twice() {
        let comm = Comm::make(0, 1, 0, Config::DEFAULT);
        let mut state = comm.lock();
        let other = thread::spawn(|| {
            // SAFETY: a handle of this library.
            unsafe { ncclCommAbort(comm.handle()) }
        });
        // So that it comes as far as it can. Without, there is only less to see.
        thread::sleep(Duration::from_millis(50));
        comm.free(&mut state);
        drop(state);
        assert_eq!(other.join().unwrap(), ncclResult_t::INVALID_ARGUMENT);
        let freed = places().free.iter().filter(|free| ptr::eq(**free, comm)).count();
        assert_eq!(freed, 1, "two communicators would get this place");
    }

    #[test]
    fn a_call_that_panicked_hides_no_failure() {
        let comm = Comm::make(0, 1, 0, Config::DEFAULT);
        comm.lock().phase = Phase::Failed(ncclResult_t::SYSTEM_ERROR);
        let call = || {
            let _state = comm.lock();
            panic!("as by a fault rule");
        };
        assert!(catch_unwind(AssertUnwindSafe(call)).is_err());
        assert_eq!(comm.poll(), ncclResult_t::SYSTEM_ERROR);
    }
}
