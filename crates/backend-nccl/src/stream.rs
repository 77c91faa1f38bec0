//! Streams and events.
//!
//! Asking a stream whether it is done (`cuStreamQuery`) breaks a capture in progress, so it is
//! never done: waits with a deadline record an event and poll that. While polling, the thread is in
//! relaxed capture mode, as another library's capture on this very thread may forbid the question.

use std::{
    ptr,
    time::{Duration, Instant},
};

use collectives_core::{ErrorKind, RawEvent, RawStream, Result};
use cudarc::driver::sys::{self, CUresult, CUstreamCaptureMode, CUstreamCaptureStatus};

use crate::{
    device::{Context, cu, cu_event},
    driver::{check, error, refuse},
};

impl Context {
    pub(crate) fn stream_create(&self) -> Result<RawStream> {
        let _current = self.bind()?;
        let mut stream = ptr::null_mut();
        // SAFETY: the device is current; `stream` outlives the call.
        check("stream_create", unsafe { sys::cuStreamCreate(&mut stream, NON_BLOCKING) })?;
        Ok(RawStream::from_ptr(stream.cast()))
    }

    /// # Safety
    /// See `collectives_core::Device::stream_destroy`.
    pub(crate) unsafe fn stream_destroy(&self, stream: RawStream) -> Result<()> {
        let _current = self.bind()?;
        // SAFETY: the caller's promise. The driver finishes what is enqueued.
        check("stream_destroy", unsafe { sys::cuStreamDestroy_v2(cu(stream)) })
    }

    /// The device is current.
    pub(crate) fn event_create(&self) -> Result<RawEvent> {
        let mut event = ptr::null_mut();
        // SAFETY: the device is current; `event` outlives the call.
        check("event_create", unsafe { sys::cuEventCreate(&mut event, DISABLE_TIMING) })?;
        Ok(RawEvent::from_ptr(event.cast()))
    }

    /// # Safety
    /// See `collectives_core::Device::event_destroy`.
    pub(crate) unsafe fn event_destroy(&self, event: RawEvent) -> Result<()> {
        // SAFETY: the caller's promise.
        check("event_destroy", unsafe { sys::cuEventDestroy_v2(cu_event(event)) })
    }

    /// # Safety
    /// See `collectives_core::Device::record`.
    pub(crate) unsafe fn record(&self, event: RawEvent, stream: RawStream) -> Result<()> {
        // SAFETY: the caller's promise.
        check("record", unsafe { sys::cuEventRecord(cu_event(event), cu(stream)) })
    }

    /// # Safety
    /// See `collectives_core::Device::wait`.
    pub(crate) unsafe fn wait(&self, stream: RawStream, event: RawEvent) -> Result<()> {
        let _current = self.bind()?;
        // SAFETY: the caller's promise.
        check("wait", unsafe { sys::cuStreamWaitEvent(cu(stream), cu_event(event), 0) })
    }

    /// # Safety
    /// See `collectives_core::Device::query`.
    pub(crate) unsafe fn query(&self, event: RawEvent) -> Result<bool> {
        let _relaxed = RelaxedCapture::enter()?;
        // SAFETY: the caller's promise.
        match unsafe { sys::cuEventQuery(cu_event(event)) } {
            CUresult::CUDA_SUCCESS => Ok(true),
            CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            failure => Err(error("query", failure)),
        }
    }

    /// Whether the stream is being captured, or was and the capture broke: it must be ended.
    ///
    /// # Safety
    /// See `collectives_core::Device::is_capturing`.
    pub(crate) unsafe fn is_capturing(&self, stream: RawStream) -> Result<bool> {
        let mut status = CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        // SAFETY: the caller's promise; `status` outlives the call.
        match unsafe { sys::cuStreamIsCapturing(cu(stream), &mut status) } {
            CUresult::CUDA_SUCCESS => match status {
                CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE => Ok(false),
                CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE
                | CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_INVALIDATED => Ok(true),
            },
            // The default stream, while a stream that synchronises with it is being captured.
            CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT => Ok(true),
            failure => Err(error("is_capturing", failure)),
        }
    }

    /// # Safety
    /// See `collectives_core::Device::synchronize`.
    pub(crate) unsafe fn synchronize(
        &self,
        stream: RawStream,
        deadline: Option<Duration>,
    ) -> Result<()> {
        const OPERATION: &str = "synchronize";
        let start = Instant::now();
        let _current = self.bind()?;
        // SAFETY: the caller's promise.
        if unsafe { self.is_capturing(stream) }? {
            return Err(refuse(
                ErrorKind::InvalidUsage,
                OPERATION,
                "the stream is being captured, so nothing on it runs yet",
            )
            .with_hint("end the capture and launch the graph first"));
        }
        let Some(deadline) = deadline else {
            // SAFETY: the caller's promise.
            return check(OPERATION, unsafe { sys::cuStreamSynchronize(cu(stream)) });
        };
        let event = self.memory.event(self)?;
        // SAFETY: an event of this device; the stream is the caller's promise.
        let outcome = unsafe { self.record(event, stream) }
            // SAFETY: an event of this device, that nobody else records.
            .and_then(|()| unsafe { self.poll(event, start, deadline) });
        // A recording that was not reached is overwritten by the next.
        self.memory.keep_event(event);
        outcome.map_err(|error| error.with_operation(OPERATION))
    }

    /// # Safety
    /// The event is alive.
    unsafe fn poll(&self, event: RawEvent, start: Instant, deadline: Duration) -> Result<()> {
        loop {
            // SAFETY: the caller's promise.
            if unsafe { self.query(event) }? {
                return Ok(());
            }
            let waited = start.elapsed();
            if waited >= deadline {
                let message = format!(
                    "work on a stream of device {} is not done after {deadline:?}",
                    self.ordinal()
                );
                return Err(refuse(ErrorKind::Timeout, "synchronize", message)
                    .with_hint("a rank may be missing: abort the communicators on this stream"));
            }
            if waited < SPIN {
                std::thread::yield_now();
            } else {
                std::thread::sleep((waited / 256).min(deadline - waited).min(LONGEST_PAUSE));
            }
        }
    }
}

/// This thread may call what a capture in another mode forbids, without breaking the capture.
pub(crate) struct RelaxedCapture(CUstreamCaptureMode);

impl RelaxedCapture {
    pub(crate) fn enter() -> Result<Self> {
        let mut mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: `mode` outlives the call; it is swapped with the thread's.
        let result = unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) };
        check("capture_mode", result).map(|()| Self(mode))
    }
}

impl Drop for RelaxedCapture {
    fn drop(&mut self) {
        // SAFETY: as above. It worked a moment ago with the mode that it takes back.
        let _works = unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut self.0) };
    }
}

/// `CU_STREAM_NON_BLOCKING`: does not synchronise with the default stream.
const NON_BLOCKING: u32 = 1;
/// `CU_EVENT_DISABLE_TIMING`.
const DISABLE_TIMING: u32 = 2;

/// How long to poll without a pause, yielding to other threads, as the driver's own wait does. From
/// then on a wait oversleeps by less than a hundredth of what it has waited.
const SPIN: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(1);
