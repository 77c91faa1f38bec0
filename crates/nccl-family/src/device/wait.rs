//! Waits for a stream.
//!
//! Asking a stream whether it is done (`cuStreamQuery`, `hipStreamQuery`) breaks a capture in
//! progress, so it is never done: waits with a deadline record an event and poll that.

use std::time::{Duration, Instant};

use collectives_core::{ErrorKind, RawEvent, RawStream, Result};

use super::{RawDevice, refuse};

/// Does what `collectives_core::Device::synchronize` promises: without a deadline by the runtime's
/// own wait; with one, by an event that is polled: a short spin, then pauses that grow from 50 µs to
/// 1 ms.
///
/// # Safety
/// See `collectives_core::Device::synchronize`.
///
/// # Errors
/// [`Timeout`](ErrorKind::Timeout); [`InvalidUsage`](ErrorKind::InvalidUsage) on a stream that is
/// being captured; what the runtime reports.
pub unsafe fn synchronize<D: RawDevice>(
    device: &D,
    stream: RawStream,
    deadline: Option<Duration>,
) -> Result<()> {
    let start = Instant::now();
    // SAFETY: the caller's promise.
    if unsafe { device.is_capturing(stream) }? {
        let message = "the stream is being captured, so nothing on it runs yet";
        return Err(refuse::<D>(ErrorKind::InvalidUsage, OPERATION, message)
            .with_hint("end the capture and launch the graph first"));
    }
    let Some(deadline) = deadline else {
        // SAFETY: the caller's promise.
        return unsafe { device.raw_synchronize(stream) };
    };
    let event = device.memory().event(device)?;
    // SAFETY: an event of this device; the stream is the caller's promise.
    let outcome = unsafe { device.record(event, stream) }
        // SAFETY: an event of this device, that nobody else records.
        .and_then(|()| unsafe { poll(device, event, start, deadline) });
    // A recording that was not reached is overwritten by the next.
    device.memory().keep_event(event);
    outcome.map_err(|error| error.with_operation(OPERATION))
}

/// # Safety
/// The event is alive.
unsafe fn poll<D: RawDevice>(
    device: &D,
    event: RawEvent,
    start: Instant,
    deadline: Duration,
) -> Result<()> {
    loop {
        // SAFETY: the caller's promise.
        if unsafe { device.query(event) }? {
            return Ok(());
        }
        let waited = start.elapsed();
        if waited >= deadline {
            let message = format!(
                "work on a stream of device {} is not done after {deadline:?}",
                device.ordinal()
            );
            return Err(refuse::<D>(ErrorKind::Timeout, OPERATION, message)
                .with_hint("a rank may be missing: abort the communicators on this stream"));
        }
        if waited < SPIN {
            std::thread::yield_now();
        } else {
            std::thread::sleep((waited / 256).min(deadline - waited).min(LONGEST_PAUSE));
        }
    }
}

/// How long to poll without a pause, yielding to other threads, as the runtimes' own waits do. From
/// then on a wait oversleeps by less than a hundredth of what it has waited.
const SPIN: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(1);

const OPERATION: &str = "synchronize";
