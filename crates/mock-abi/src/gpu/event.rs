//! Events.

use collectives_backend_mock::MockDevice;
use collectives_core::{Device as _, Error, RawEvent};

use super::{Code, Reply, capture, context::Context, device::machine, stream::Stream};

/// Makes an event in a context.
pub(crate) fn create(context: Context, flags: u32) -> Reply<usize> {
    if flags & !FLAGS != 0 || flags & (INTERPROCESS | DISABLE_TIMING) == INTERPROCESS {
        return Err(Code::INVALID_VALUE);
    }
    let device = &context.seat()?.device;
    let event = if flags & DISABLE_TIMING == 0 {
        device.timed_event_create()
    } else {
        device.event_create()
    };
    Ok(event.map_err(code)?.bits())
}

pub(crate) fn destroy(event: usize) -> Reply {
    // SAFETY: a handle that is none, or gone, is refused.
    unsafe { device()?.event_destroy(raw(event)) }.map_err(code)
}

/// Enqueues a recording.
pub(crate) fn record(event: usize, stream: &Stream) -> Reply {
    stream.enter()?;
    // SAFETY: as in `destroy`.
    unsafe { stream.device()?.record(raw(event), stream.raw) }.map_err(code)
}

/// Enqueues a wait.
pub(crate) fn wait(event: usize, stream: &Stream) -> Reply {
    stream.enter()?;
    // SAFETY: as in `destroy`.
    let enqueued = unsafe { stream.device()?.wait(stream.raw, raw(event)) }.map_err(code);
    if enqueued == Err(Code::CAPTURED_EVENT) {
        // Its capture has ended.
        return Err(Code::INVALID_VALUE);
    }
    if let Err(Code::CAPTURE_ISOLATION | Code::CAPTURE_MERGE | Code::CAPTURE_IMPLICIT) = enqueued {
        capture::invalidate_of(stream)?;
        // SAFETY: as in `destroy`.
        if let Some(id) = unsafe { device()?.capture_of_event(raw(event)) }.map_err(code)? {
            let _ends_later = capture::break_capture(id);
        }
    }
    enqueued
}

/// Whether the latest recording is reached, or there is none.
pub(crate) fn query(event: usize) -> Reply<bool> {
    refuse_captured(event)?;
    capture::forbid_unsafe()?;
    // SAFETY: as in `destroy`.
    match unsafe { device()?.query(raw(event)) } {
        Ok(is_reached) => Ok(is_reached),
        Err(error) => Code::of_wait(Err(error)).map(|()| true),
    }
}

/// Blocks until the latest recording is reached.
pub(crate) fn synchronize(event: usize) -> Reply {
    refuse_captured(event)?;
    capture::forbid_unsafe()?;
    // SAFETY: as in `destroy`.
    Code::of_wait(unsafe { device()?.synchronize_event(raw(event)) })
}

/// Milliseconds between two events.
pub(crate) fn elapsed(start: usize, end: usize) -> Reply<f32> {
    let mut reached = [None; 2];
    for (event, reached) in [start, end].into_iter().zip(&mut reached) {
        // SAFETY: as in `destroy`.
        *reached = unsafe { device()?.reached_at(raw(event)) }.map_err(code)?;
    }
    let [Some(start), Some(end)] = reached else { return Err(Code::NOT_READY) };
    let milliseconds = |time: std::time::Duration| time.as_secs_f32() * 1e3;
    Ok(match end.checked_duration_since(start) {
        Some(time) => milliseconds(time),
        None => -milliseconds(start.duration_since(end)),
    })
}

/// Refuses an event that was last recorded in a capture, and breaks that capture, if it has not
/// ended.
fn refuse_captured(event: usize) -> Reply {
    // SAFETY: as in `destroy`.
    let Some(id) = unsafe { device()?.capture_of_event(raw(event)) }.map_err(code)? else {
        return Ok(());
    };
    let is_under_way = capture::break_capture(id);
    Err(if is_under_way { Code::CAPTURED_EVENT } else { Code::INVALID_VALUE })
}

/// Any device: events are the engine's.
fn device() -> Reply<&'static MockDevice> {
    machine()?;
    Ok(&super::device::seat(0)?.device)
}

fn raw(event: usize) -> RawEvent {
    RawEvent::from_bits(event)
}

fn code(error: Error) -> Code {
    Code::from_error(&error, Code::INVALID_HANDLE)
}

/// `CU_EVENT_DISABLE_TIMING`.
pub(crate) const DISABLE_TIMING: u32 = 2;
/// `CU_EVENT_INTERPROCESS`, which needs the other.
const INTERPROCESS: u32 = 4;
/// Both, and `CU_EVENT_BLOCKING_SYNC`, which every wait here is.
const FLAGS: u32 = 7;
