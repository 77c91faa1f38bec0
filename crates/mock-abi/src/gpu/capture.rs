//! Captures: their modes, and what disturbs them.
//!
//! The engine records and replays, and refuses what a capture cannot hold. Here is what CUDA adds.
//! A capture is begun in a mode. A call that might reach beyond a capture (allocating memory,
//! waiting, asking an event) is refused, and breaks the captures it collides with, by these rules:
//!
//! | the thread's mode | is refused where |
//! |---|---|
//! | global | it began a capture not in relaxed mode, or any thread began one in global mode |
//! | thread-local | it began a capture not in relaxed mode |
//! | relaxed | never |
//!
//! A broken capture stays with its streams, where everything is refused, until its origin ends it.

use std::{
    cell::Cell,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, ThreadId},
};

use collectives_backend_mock::CaptureInfo;
use collectives_core::{Device as _, RawGraph};

use super::{
    Code, Reply, lock,
    memory::Held,
    stream::{Kind, Stream},
};

/// `CUstreamCaptureMode`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Mode {
    Global,
    ThreadLocal,
    Relaxed,
}

impl Mode {
    pub(crate) fn from_number(mode: u32) -> Reply<Self> {
        match mode {
            0 => Ok(Self::Global),
            1 => Ok(Self::ThreadLocal),
            2 => Ok(Self::Relaxed),
            _ => Err(Code::INVALID_VALUE),
        }
    }
}

/// `CUstreamCaptureStatus`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Status {
    None,
    /// With the capture's number.
    Active(u64),
    Invalidated,
}

struct Capture {
    id: u64,
    mode: Mode,
    thread: ThreadId,
    is_broken: bool,
    /// Memory that belongs to the graph to be.
    held: Held,
}

/// Captures under way, and how many.
static CAPTURES: Mutex<Vec<Capture>> = Mutex::new(Vec::new());
static COUNT: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static MODE: Cell<Mode> = const { Cell::new(Mode::Global) };
}

/// `cuThreadExchangeStreamCaptureMode`: the thread's mode before.
pub(crate) fn exchange_mode(mode: Mode) -> Mode {
    MODE.replace(mode)
}

/// Refuses a call that might reach beyond a capture, where one is in its way.
pub(crate) fn forbid_unsafe() -> Reply {
    if COUNT.load(Ordering::Acquire) == 0 || MODE.get() == Mode::Relaxed {
        return Ok(());
    }
    let thread = thread::current().id();
    let mut refused = false;
    for capture in &mut *lock(&CAPTURES) {
        let own = capture.thread == thread && capture.mode != Mode::Relaxed;
        if own || MODE.get() == Mode::Global && capture.mode == Mode::Global {
            capture.is_broken = true;
            refused = true;
        }
    }
    if refused { Err(Code::CAPTURE_UNSUPPORTED) } else { Ok(()) }
}

/// Whether a stream is captured.
///
/// # Errors
/// Where its capture is broken.
pub(crate) fn check(stream: &Stream) -> Reply<bool> {
    match status(stream)? {
        Status::None => Ok(false),
        Status::Active(_) => Ok(true),
        Status::Invalidated => Err(Code::CAPTURE_INVALIDATED),
    }
}

/// What a stream takes part in.
pub(crate) fn status(stream: &Stream) -> Reply<Status> {
    let Some(info) = info(stream)? else { return Ok(Status::None) };
    let captures = lock(&CAPTURES);
    let is_broken = captures.iter().any(|capture| capture.id == info.id && capture.is_broken);
    Ok(if is_broken { Status::Invalidated } else { Status::Active(info.id) })
}

/// As [`status`], for programs that ask: about the legacy stream there is no answer while a blocking
/// stream is captured.
pub(crate) fn ask(stream: &Stream) -> Reply<Status> {
    if stream.kind == Kind::Legacy {
        let order = lock(&stream.seat()?.order);
        check_implicit(&order.blocking, false)?;
    }
    status(stream)
}

fn info(stream: &Stream) -> Reply<Option<CaptureInfo>> {
    if COUNT.load(Ordering::Acquire) == 0 || stream.kind == Kind::Legacy {
        return Ok(None);
    }
    // SAFETY: a handle that is gone is refused.
    let info = unsafe { stream.device()?.capture_of(stream.raw) };
    info.map_err(|error| Code::from_error(&error, Code::INVALID_HANDLE))
}

/// Refuses the legacy stream where one of the `blocking` streams is captured, whose capture then
/// breaks, if it `breaks`.
pub(crate) fn check_implicit(blocking: &[Arc<Stream>], breaks: bool) -> Reply {
    if COUNT.load(Ordering::Acquire) == 0 {
        return Ok(());
    }
    let mut captured = false;
    for stream in blocking {
        if let Some(info) = info(stream)? {
            captured = true;
            if breaks {
                break_capture(info.id);
            }
        }
    }
    if captured { Err(Code::CAPTURE_IMPLICIT) } else { Ok(()) }
}

/// Breaks a capture. The answer is whether it is under way.
pub(crate) fn break_capture(id: u64) -> bool {
    let mut captures = lock(&CAPTURES);
    let capture = captures.iter_mut().find(|capture| capture.id == id);
    capture.map(|capture| capture.is_broken = true).is_some()
}

/// Refuses to wait for a whole device while it captures, whatever the modes; those captures break.
pub(crate) fn forbid_on(device: usize) -> Reply {
    if COUNT.load(Ordering::Acquire) == 0 {
        return Ok(());
    }
    let mut refused = false;
    for capture in &mut *lock(&CAPTURES) {
        if capture.held.device() == device {
            capture.is_broken = true;
            refused = true;
        }
    }
    if refused { Err(Code::CAPTURE_UNSUPPORTED) } else { Ok(()) }
}

/// Breaks the capture that a stream takes part in.
pub(crate) fn invalidate_of(stream: &Stream) -> Reply {
    if let Some(info) = info(stream)? {
        break_capture(info.id);
    }
    Ok(())
}

/// Starts capturing a stream.
pub(crate) fn begin(stream: &Stream, mode: Mode) -> Reply {
    if stream.kind == Kind::Legacy {
        return Err(Code::CAPTURE_UNSUPPORTED);
    }
    if status(stream)? != Status::None {
        return Err(Code::ILLEGAL_STATE);
    }
    stream.enter()?;
    let code = |error: collectives_core::Error| Code::from_error(&error, Code::INVALID_HANDLE);
    let device = stream.device()?;
    // Before the first capture others look at none.
    COUNT.fetch_add(1, Ordering::AcqRel);
    let begun = || {
        // SAFETY: a handle that is gone is refused.
        unsafe { device.begin_capture(stream.raw) }.map_err(code)?;
        // SAFETY: as above.
        let info = unsafe { device.capture_of(stream.raw) }.map_err(code)?;
        info.map(|info| info.id).ok_or(Code::ILLEGAL_STATE)
    };
    match begun() {
        Ok(id) => {
            let thread = thread::current().id();
            let held = Held::new(stream.device_ordinal());
            lock(&CAPTURES).push(Capture { id, mode, thread, is_broken: false, held });
            Ok(())
        }
        Err(code) => {
            COUNT.fetch_sub(1, Ordering::AcqRel);
            Err(code)
        }
    }
}

/// Ends the capture that a stream began: the graph, and the memory that belongs to it.
pub(crate) fn end(stream: &Stream) -> Reply<(RawGraph, Held)> {
    let info = info(stream)?.ok_or(Code::ILLEGAL_STATE)?;
    if info.origin != stream.raw {
        break_capture(info.id);
        return Err(Code::CAPTURE_UNMATCHED);
    }
    let capture = take(info.id).ok_or(Code::ILLEGAL_STATE)?;
    let device = stream.device()?;
    // SAFETY: the stream captures; what is captured is what its program promises.
    let graph = unsafe { device.end_capture(stream.raw) };
    let graph = graph.map_err(|error| Code::from_error(&error, Code::INVALID_HANDLE));
    let is_wrong_thread = capture.mode != Mode::Relaxed && capture.thread != thread::current().id();
    if capture.is_broken || is_wrong_thread {
        if let Ok(graph) = graph {
            // SAFETY: nobody else knows it.
            let _nobody_asks = unsafe { device.graph_destroy(graph) };
        }
        // Either way it has ended.
        return Err(match is_wrong_thread {
            true => Code::CAPTURE_WRONG_THREAD,
            false => Code::CAPTURE_INVALIDATED,
        });
    }
    Ok((graph?, capture.held))
}

/// Has the capture that a stream takes part in keep memory for its graph. The answer is whether it
/// takes part in one.
pub(crate) fn hold(stream: &Stream, ptr: usize) -> Reply<bool> {
    let Some(info) = info(stream)? else { return Ok(false) };
    let mut captures = lock(&CAPTURES);
    let capture = captures.iter_mut().find(|capture| capture.id == info.id);
    capture.ok_or(Code::ILLEGAL_STATE)?.held.add(ptr);
    Ok(true)
}

/// Whether memory is kept by the capture that a stream takes part in.
pub(crate) fn holds(stream: &Stream, ptr: usize) -> Reply<bool> {
    let Some(info) = info(stream)? else { return Ok(false) };
    let captures = lock(&CAPTURES);
    Ok(captures.iter().any(|capture| capture.id == info.id && capture.held.has(ptr)))
}

/// A stream is going to be destroyed, and with it the capture that it began.
pub(crate) fn forget(stream: &Stream) -> Reply {
    if let Some(info) = info(stream)? {
        if info.origin == stream.raw {
            drop(take(info.id));
        } else {
            break_capture(info.id);
        }
    }
    Ok(())
}

fn take(id: u64) -> Option<Capture> {
    let mut captures = lock(&CAPTURES);
    let index = captures.iter().position(|capture| capture.id == id)?;
    COUNT.fetch_sub(1, Ordering::AcqRel);
    Some(captures.swap_remove(index))
}
