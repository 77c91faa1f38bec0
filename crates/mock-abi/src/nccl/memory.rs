//! Memory, registrations, windows, and the one-sided operations that windows are for.
#![expect(non_snake_case, reason = "C names stay C names, as in nccl.h")]

use std::{
    alloc::{self, Layout},
    collections::BTreeMap,
    ffi::{c_int, c_uint, c_void},
    panic::Location,
    ptr,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use collectives_backend_mock::MockComm;
use collectives_core::{
    Collectives, Device, Launch, Rank, RawRegistration, SendBuf, SignalWait, WindowFlags,
};
use collectives_nccl_abi::{
    cudaStream_t, ncclComm_t, ncclDataType_t, ncclResult_t, ncclWindow_t,
    types::{
        NCCL_WIN_CFT_COUNTED, NCCL_WIN_COLL_SYMMETRIC, NCCL_WIN_GIN_ONLY,
        NCCL_WIN_REQUIRED_ALIGNMENT, NCCL_WIN_STRICT_ORDERING, ncclWaitSignalDesc_t,
    },
};

use super::{
    comm::{Backing, Comm, State, Window},
    group::{checked, is_open},
    refusal::{Refusal, Result, answer, tell},
};
use crate::{gpu, runtime};

/// Memory of `ncclMemAlloc` in a program without devices: the process's own.
fn host_blocks() -> MutexGuard<'static, BTreeMap<usize, Layout>> {
    static BLOCKS: Mutex<BTreeMap<usize, Layout>> = Mutex::new(BTreeMap::new());
    BLOCKS.lock().unwrap_or_else(PoisonError::into_inner)
}

export! {
    nccl, on_panic = ncclResult_t::INTERNAL_ERROR;

    /// Allocates device memory that other ranks may map.
    fn ncclMemAlloc(place: *mut *mut c_void, size: usize) -> ncclResult_t {
        const CALL: &str = "ncclMemAlloc";
        answer(|| {
            if place.is_null() {
                // As the allocation that NCCL falls back to.
                return Err(Refusal::cuda(format!("{CALL} : Cuda failure 'invalid argument'")));
            }
            if size == 0 {
                return tell(CALL, "ptr", place, ptr::null_mut());
            }
            tell(CALL, "ptr", place, allocate(size)?)
        })
    }

    /// Frees memory of `ncclMemAlloc`, or of the device allocator.
    fn ncclMemFree(memory: *mut c_void) -> ncclResult_t {
        answer(|| {
            if memory.is_null() {
                return Ok(ncclResult_t::SUCCESS);
            }
            let host = host_blocks().remove(&memory.addr());
            if let Some(layout) = host {
                // SAFETY: allocated with this layout, and the caller uses it no more.
                unsafe { alloc::dealloc(memory.cast(), layout) };
            } else if let Err(code) = gpu::memory::free(memory.addr()) {
                let why = code.text().map_or(c"unknown error", |text| text.meaning);
                let why = why.to_string_lossy();
                return Err(Refusal::cuda(format!("ncclMemFree : Cuda failure '{why}'")));
            }
            Ok(ncclResult_t::SUCCESS)
        })
    }

    /// Registers a buffer with a communicator; local.
    fn ncclCommRegister(
        comm: ncclComm_t, buff: *mut c_void, size: usize, handle: *mut *mut c_void,
    ) -> ncclResult_t {
        const CALL: &str = "CommRegister";
        answer(|| {
            let state = Comm::of(CALL, comm)?.lock();
            let mock = state.live(CALL)?;
            if handle.is_null() {
                return Err(Refusal::null(CALL, "handle"));
            }
            // SAFETY: the caller's memory, until it is deregistered.
            let registration = unsafe { mock.register(buff, size) }?;
            tell(CALL, "handle", handle, registration.as_ptr())
        })
    }

    /// Undoes `ncclCommRegister`.
    fn ncclCommDeregister(comm: ncclComm_t, handle: *mut c_void) -> ncclResult_t {
        const CALL: &str = "CommDeregister";
        answer(|| {
            let state = Comm::of(CALL, comm)?.lock();
            let mock = state.usable(CALL)?;
            // SAFETY: the caller uses the memory no more; a foreign handle is refused.
            unsafe { mock.deregister(RawRegistration::from_ptr(handle)) }?;
            Ok(ncclResult_t::SUCCESS)
        })
    }

    /// Registers a buffer of every rank, and waits for all of them. In a group, where one thread may
    /// do so for several ranks, it is registered for this rank alone.
    fn ncclCommWindowRegister(
        comm: ncclComm_t, buff: *mut c_void, size: usize, win: *mut ncclWindow_t, win_flags: c_int,
    ) -> ncclResult_t {
        const CALL: &str = "CommWindowRegister";
        checked(|| {
            let comm = Comm::of(CALL, comm)?;
            let state = comm.lock();
            let mock = state.live(CALL)?;
            if win.is_null() {
                return Err(Refusal::null(CALL, "win"));
            }
            if buff.is_null() || size == 0 {
                return Err(Refusal::argument(format!("{CALL} : invalid buffer, {size} bytes")));
            }
            if win_flags & !WINDOW_FLAGS != 0 {
                return Err(Refusal::argument(format!("{CALL} : invalid winFlags {win_flags}")));
            }
            let backing = if is_open() {
                // SAFETY: the caller's memory, until it is deregistered.
                Backing::Alone(unsafe { mock.register(buff, size) }?)
            } else {
                drop(state);
                let flags = WindowFlags::from_bits(win_flags.cast_unsigned());
                // SAFETY: as above.
                let wait = |mock: &MockComm| unsafe { mock.window_register(buff, size, flags) };
                Backing::Together(comm.wait_in(CALL, wait)?)
            };
            let window = Window { user: buff.expose_provenance(), backing };
            let handle = NEXT_WINDOW.fetch_add(NCCL_WIN_REQUIRED_ALIGNMENT, Ordering::Relaxed);
            comm.lock().windows.insert(handle, window);
            tell(CALL, "win", win, ncclWindow_t(ptr::without_provenance_mut(handle)))
        })
    }

    /// Undoes `ncclCommWindowRegister`.
    fn ncclCommWindowDeregister(comm: ncclComm_t, win: ncclWindow_t) -> ncclResult_t {
        const CALL: &str = "CommWindowDeregister";
        answer(|| {
            let mut state = Comm::of(CALL, comm)?.lock();
            state.usable(CALL)?;
            if win.is_null() {
                // What a system without windows registers.
                return Ok(ncclResult_t::SUCCESS);
            }
            let window = state.windows.remove(&win.0.addr()).ok_or_else(|| unknown(CALL))?;
            let mock = state.usable(CALL)?;
            match window.backing {
                // SAFETY: the caller uses the window no more.
                Backing::Alone(registration) => unsafe { mock.deregister(registration) }?,
                // SAFETY: as above.
                Backing::Together(window) => unsafe { mock.window_deregister(window) }?,
            }
            Ok(ncclResult_t::SUCCESS)
        })
    }

    /// Tells the address that a window was registered with.
    fn ncclWinGetUserPtr(
        comm: ncclComm_t, win: ncclWindow_t, out_user_ptr: *mut *mut c_void,
    ) -> ncclResult_t {
        const CALL: &str = "WinGetUserPtr";
        answer(|| {
            let state = Comm::of(CALL, comm)?.lock();
            let window = state.windows.get(&win.0.addr()).ok_or_else(|| unknown(CALL))?;
            let user = ptr::with_exposed_provenance_mut(window.user);
            tell(CALL, "outUserPtr", out_user_ptr, user)
        })
    }

    /// Writes into a peer's window, then signals it.
    fn ncclPutSignal(
        localbuff: *const c_void, count: usize, datatype: ncclDataType_t, peer: c_int,
        peer_win: ncclWindow_t, peer_win_offset: usize, sig_idx: c_int, ctx: c_int,
        flags: c_uint, comm: ncclComm_t, stream: cudaStream_t,
    ) -> ncclResult_t {
        const CALL: &str = "PutSignal";
        let site = Location::caller();
        checked(|| {
            check_signal(CALL, comm, peer, sig_idx, ctx, flags)?;
            let dtype = super::collectives::dtype(CALL, datatype)?;
            let state = Comm::of(CALL, comm)?.lock();
            let window = state.windows.get(&peer_win.0.addr()).ok_or_else(|| unknown(CALL))?;
            let Backing::Together(window) = window.backing else {
                return Err(no_host_rma("ncclPutSignal"));
            };
            let (mock, peer) = another(&state, CALL, peer)?;
            let stream = runtime::stream(stream, mock.info().device, None)?;
            let send = SendBuf::new(localbuff, count, dtype);
            let launch = Launch::at(stream.raw, site);
            // SAFETY: the caller's memory, window and stream.
            unsafe { mock.put_signal(send, peer, window, peer_win_offset, launch) }?;
            Ok(ncclResult_t::SUCCESS)
        })
    }

    /// Signals a peer.
    fn ncclSignal(
        peer: c_int, sig_idx: c_int, ctx: c_int, flags: c_uint, comm: ncclComm_t,
        stream: cudaStream_t,
    ) -> ncclResult_t {
        const CALL: &str = "Signal";
        let site = Location::caller();
        checked(|| {
            check_signal(CALL, comm, peer, sig_idx, ctx, flags)?;
            let state = Comm::of(CALL, comm)?.lock();
            let (mock, peer) = another(&state, CALL, peer)?;
            let stream = runtime::stream(stream, mock.info().device, None)?;
            // SAFETY: the caller's stream.
            unsafe { mock.signal(peer, Launch::at(stream.raw, site)) }?;
            Ok(ncclResult_t::SUCCESS)
        })
    }

    /// Waits for signals of peers.
    fn ncclWaitSignal(
        n_desc: c_int, signal_descs: *mut ncclWaitSignalDesc_t, comm: ncclComm_t,
        stream: cudaStream_t,
    ) -> ncclResult_t {
        const CALL: &str = "WaitSignal";
        let site = Location::caller();
        checked(|| {
            Comm::of(CALL, comm)?.lock().live(CALL)?;
            let count = usize::try_from(n_desc).ok().filter(|&count| count > 0);
            let Some(count) = count.filter(|_| !signal_descs.is_null()) else {
                return Err(Refusal::argument(format!("{CALL} : no signals to wait for")));
            };
            // SAFETY: not null, and the caller's array has that many entries.
            let list = unsafe { std::slice::from_raw_parts(signal_descs, count) };
            let mut waits = Vec::new();
            for desc in list {
                check_signal(CALL, comm, desc.peer, desc.sigIdx, desc.ctx, 0)?;
                let count = u32::try_from(desc.opCnt).ok().filter(|&count| count > 0);
                let Some(count) = count else {
                    return Err(Refusal::argument(format!("{CALL} : invalid opCnt {}", desc.opCnt)));
                };
                waits.push(SignalWait::new(desc.peer as u32).with_count(count));
            }
            let state = Comm::of(CALL, comm)?.lock();
            let (mock, _) = another(&state, CALL, list[0].peer)?;
            let stream = runtime::stream(stream, mock.info().device, None)?;
            // SAFETY: the caller's stream.
            unsafe { mock.wait_signal(&waits, Launch::at(stream.raw, site)) }?;
            Ok(ncclResult_t::SUCCESS)
        })
    }
}

/// The next window's handle: never null, and no memory of the program, which starts above.
static NEXT_WINDOW: AtomicUsize = AtomicUsize::new(NCCL_WIN_REQUIRED_ALIGNMENT);

const WINDOW_FLAGS: c_int =
    NCCL_WIN_COLL_SYMMETRIC | NCCL_WIN_STRICT_ORDERING | NCCL_WIN_GIN_ONLY | NCCL_WIN_CFT_COUNTED;

/// Memory of this thread's device; of the process, where the program has no devices.
fn allocate(size: usize) -> Result<*mut c_void> {
    if !runtime::is_without_devices() {
        return Ok(runtime::device(runtime::current_device())?.alloc(size)?);
    }
    let layout = Layout::from_size_align(size, NCCL_WIN_REQUIRED_ALIGNMENT);
    let out_of_memory = || Refusal::cuda("ncclMemAlloc : Cuda failure 'out of memory'");
    let layout = layout.map_err(|_| out_of_memory())?;
    // SAFETY: the size is not zero.
    let memory = unsafe { alloc::alloc(layout) };
    if memory.is_null() {
        return Err(out_of_memory());
    }
    host_blocks().insert(memory.addr(), layout);
    Ok(memory.cast())
}

fn unknown(call: &str) -> Refusal {
    Refusal::argument(format!("{call} : the window is unknown to this communicator"))
}

fn check_signal(
    call: &str,
    comm: ncclComm_t,
    peer: c_int,
    sig_idx: c_int,
    ctx: c_int,
    flags: c_uint,
) -> Result<()> {
    let state = Comm::of(call, comm)?.lock();
    let size = state.live(call)?.info().size;
    if usize::try_from(peer).is_ok_and(|peer| peer < size) && sig_idx == 0 && ctx == 0 && flags == 0
    {
        return Ok(());
    }
    Err(Refusal::argument(format!(
        "{call} : invalid peer {peer}, sigIdx {sig_idx}, ctx {ctx} or flags {flags}"
    )))
}

/// The communicator, and a peer that was checked. The mock has no signals of a rank to itself.
fn another<'a>(state: &'a State, call: &'static str, peer: c_int) -> Result<(&'a MockComm, Rank)> {
    let mock = state.live(call)?;
    let peer = Rank::new(peer.cast_unsigned());
    if peer == mock.info().rank {
        return Err(no_host_rma(call));
    }
    Ok((mock, peer))
}

fn no_host_rma(function: &'static str) -> Refusal {
    crate::runtime::say_once(function, &format!("{function}: there is no host RMA"));
    Refusal::argument(format!("{function} : host RMA is not supported on this communicator"))
}
