//! How communicators end, and what is asked of them until then.
#![expect(non_snake_case, reason = "C names stay C names, as in nccl.h")]

use std::{
    ffi::c_int,
    sync::mpsc::channel,
    thread,
    time::{Duration, Instant},
};

use collectives_backend_mock::MockComm;
use collectives_core::{Collectives, Error, ErrorKind};
use collectives_nccl_abi::{
    ncclComm_t, ncclResult_t,
    types::{NCCL_REVOKE_DEFAULT, NCCL_SUSPEND_MEM, ncclCommMemStat_t},
};

use super::{
    collectives::is_strict,
    comm::{Comm, Phase, corrupted},
    group::{self, Job, checked},
    log,
    refusal::{Refusal, Result, answer, tell},
};

export! {
    nccl, on_panic = ncclResult_t::INTERNAL_ERROR;

    /// Flushes a communicator's operations, so that destroying it is local.
    fn ncclCommFinalize(comm: ncclComm_t) -> ncclResult_t {
        const CALL: &str = "ncclCommFinalize";
        checked(|| {
            if comm.is_null() {
                return Ok(ncclResult_t::SUCCESS);
            }
            let comm = Comm::of(CALL, comm)?;
            let state = comm.lock();
            if state.revoked {
                return Err(Refusal::argument(format!("{CALL} : the communicator was revoked")));
            }
            state.usable(CALL)?;
            drop(state);
            group::submit(Job::Finalize(comm))
        })
    }

    /// Destroys a communicator, finalizing it first if need be.
    fn ncclCommDestroy(comm: ncclComm_t) -> ncclResult_t {
        const CALL: &str = "ncclCommDestroy";
        answer(|| {
            if comm.is_null() {
                return Ok(ncclResult_t::SUCCESS);
            }
            let comm = Comm::of(CALL, comm)?;
            let mut state = comm.lock();
            match (&state.phase, state.revoked) {
                (Phase::Finalized, _) => {}
                (_, true) => {}
                _ => {
                    state.usable(CALL)?.poll_error()?;
                }
            }
            let taken = state.take();
            drop(state);
            let ended = taken.map_or(Ok(()), |mock| end(CALL, mock));
            let mut state = comm.lock();
            comm.free(&mut state);
            ended?;
            Ok(ncclResult_t::SUCCESS)
        })
    }

    /// Ends a communicator's operations and frees it.
    fn ncclCommAbort(comm: ncclComm_t) -> ncclResult_t {
        answer(|| {
            if comm.is_null() {
                return Ok(ncclResult_t::SUCCESS);
            }
            const CALL: &str = "ncclCommAbort";
            let comm = Comm::of(CALL, comm)?;
            let mut state = comm.lock();
            if let Phase::Gone = state.phase {
                // Another thread has given the handle up since.
                return Err(corrupted(CALL));
            }
            if let Phase::Ready(mock) = &state.phase
                && let graphs @ 1.. = mock.captured_in()
            {
                // Where it waits in the background, that may be what the program wants.
                log::warn(&waits(CALL, graphs));
            }
            state.abort();
            // A call that is still inside, in another thread, finds it aborted and lets it go.
            if !matches!(state.phase, Phase::Busy) {
                comm.free(&mut state);
            }
            Ok(ncclResult_t::SUCCESS)
        })
    }

    /// Ends a communicator's operations without freeing it.
    fn ncclCommRevoke(comm: ncclComm_t, revoke_flags: c_int) -> ncclResult_t {
        const CALL: &str = "ncclCommRevoke";
        answer(|| {
            if comm.is_null() {
                return Ok(ncclResult_t::SUCCESS);
            }
            let comm = Comm::of(CALL, comm)?;
            let mut state = comm.lock();
            if revoke_flags != NCCL_REVOKE_DEFAULT {
                return Err(Refusal::argument(format!(
                    "{CALL} : invalid revokeFlags {revoke_flags}"
                )));
            }
            if state.revoked {
                return Err(Refusal::argument(format!("{CALL} : it was revoked before")));
            }
            match &state.phase {
                Phase::Ready(mock) => mock.revoke()?,
                _ => state.usable(CALL).map(drop)?,
            }
            state.revoked = true;
            Ok(ncclResult_t::SUCCESS)
        })
    }

    /// Gives resources back until `ncclCommResume`.
    fn ncclCommSuspend(comm: ncclComm_t, flags: c_int) -> ncclResult_t {
        const CALL: &str = "ncclCommSuspend";
        checked(|| {
            let mut state = Comm::of(CALL, comm)?.lock();
            state.live(CALL)?;
            if flags != NCCL_SUSPEND_MEM {
                return Err(Refusal::argument(format!("{CALL} : invalid flags {flags}")));
            }
            if state.suspended {
                return Err(Refusal::usage(format!("{CALL} : it is suspended already")));
            }
            state.suspended = true;
            Ok(ncclResult_t::SUCCESS)
        })
    }

    /// Takes the resources of a suspended communicator again.
    fn ncclCommResume(comm: ncclComm_t) -> ncclResult_t {
        const CALL: &str = "ncclCommResume";
        checked(|| {
            let mut state = Comm::of(CALL, comm)?.lock();
            state.live(CALL)?;
            if !state.suspended {
                return Err(Refusal::usage(format!("{CALL} : it is not suspended")));
            }
            state.suspended = false;
            Ok(ncclResult_t::SUCCESS)
        })
    }

    /// Tells the state of a communicator: success, in progress, or what broke it.
    fn ncclCommGetAsyncError(comm: ncclComm_t, async_error: *mut ncclResult_t) -> ncclResult_t {
        const CALL: &str = "ncclCommGetAsyncError";
        answer(|| {
            let comm = Comm::of(CALL, comm)?;
            if async_error.is_null() {
                return Err(Refusal::null(CALL, "asyncError"));
            }
            tell(CALL, "asyncError", async_error, comm.poll())
        })
    }

    /// Tells the number of ranks.
    fn ncclCommCount(comm: ncclComm_t, count: *mut c_int) -> ncclResult_t {
        const CALL: &str = "CommCount";
        answer(|| tell(CALL, "count", count, ready(CALL, comm)?.size))
    }

    /// Tells the device.
    fn ncclCommCuDevice(comm: ncclComm_t, device: *mut c_int) -> ncclResult_t {
        const CALL: &str = "CommCuDevice";
        answer(|| tell(CALL, "devid", device, ready(CALL, comm)?.device))
    }

    /// Tells the rank.
    fn ncclCommUserRank(comm: ncclComm_t, rank: *mut c_int) -> ncclResult_t {
        const CALL: &str = "CommUserRank";
        answer(|| tell(CALL, "rank", rank, ready(CALL, comm)?.rank))
    }

    /// Tells how much device memory a communicator uses: none, here.
    fn ncclCommMemStats(
        comm: ncclComm_t, stat: ncclCommMemStat_t, value: *mut u64,
    ) -> ncclResult_t {
        const CALL: &str = "CommMemStats";
        answer(|| {
            ready(CALL, comm)?;
            if stat.name().is_none() {
                return Err(Refusal::argument(format!("{CALL} : invalid stat {}", stat.0)));
            }
            tell(CALL, "value", value, 0)
        })
    }
}

/// Ends a communicator. NCCL's waits until the graphs that captured it are destroyed, which on one
/// thread is for ever; here another thread has a while to do so.
///
/// # Errors
/// What the communicator says; that graphs hold it all the same, after which it has ended, too.
fn end(call: &str, mock: MockComm) -> collectives_core::Result<()> {
    let until = Instant::now() + PATIENCE;
    let held = loop {
        match mock.captured_in() {
            0 => break Ok(()),
            graphs if Instant::now() >= until => {
                let text = waits(call, graphs);
                if is_strict() {
                    break Err(Error::new(ErrorKind::InvalidUsage, text).with_poison(true));
                }
                log::warn(&text);
                break Ok(());
            }
            _ => thread::sleep(PAUSE),
        }
    };
    Box::new(mock).finalize().and(held)
}

/// What a program is told whose graphs live longer than their communicator.
fn waits(call: &str, graphs: usize) -> String {
    let hold = if graphs == 1 { "captured graph holds" } else { "captured graphs hold" };
    format!(
        "{call} : {graphs} {hold} the communicator, and NCCL waits until they are destroyed; destroy \
         graphs and their instances first (cudaGraphExecDestroy, cudaGraphDestroy)"
    )
}

/// How long another thread has to destroy its graphs.
const PATIENCE: Duration = Duration::from_millis(500);
/// Between looks whether it has.
const PAUSE: Duration = Duration::from_millis(1);

/// What a communicator tells of itself.
struct Facts {
    rank: c_int,
    size: c_int,
    device: c_int,
}

/// # Errors
/// NCCL's where the communicator is in progress or has failed.
fn ready(call: &str, comm: ncclComm_t) -> Result<Facts> {
    let state = Comm::of(call, comm)?.lock();
    if !state.revoked && !matches!(state.phase, Phase::Finalized | Phase::Finalizing(_)) {
        state.usable(call)?;
    }
    let int = |value: usize| c_int::try_from(value).unwrap_or(c_int::MAX);
    let device = crate::cuda::number(state.device).unwrap_or_else(|| int(state.device));
    Ok(Facts { rank: int(state.rank), size: int(state.size), device })
}

/// Waits for what a communicator has in flight; a thread of its own does, where the communicator is
/// non-blocking.
pub(super) fn finalize_now(comm: &'static Comm) -> Result<ncclResult_t> {
    const CALL: &str = "ncclCommFinalize";
    let mut state = comm.lock();
    let Some(mock) = state.take() else {
        return Err(Refusal::argument(format!("{CALL} : the communicator is in use")));
    };
    if !state.config.blocking {
        let (tell, ended) = channel();
        state.phase = Phase::Finalizing(ended);
        let finalize = move || {
            let ended = end(CALL, mock).inspect_err(|error| log::warn(&error.to_string()));
            // Where the communicator is aborted meanwhile, nobody asks for the outcome.
            tell.send(ended).unwrap_or_default();
        };
        thread::spawn(finalize);
        return Ok(ncclResult_t::IN_PROGRESS);
    }
    drop(state);
    let ended = end(CALL, mock);
    let mut state = comm.lock();
    state.finalized(&ended);
    if state.aborted {
        comm.free(&mut state);
    }
    drop(state);
    ended?;
    Ok(ncclResult_t::SUCCESS)
}
