//! Streams and events. The device is current when a method is called.
//!
//! While an event is asked about, the thread is in relaxed capture mode, as another library's capture
//! on this very thread may forbid the question.

use collectives_core::{RawEvent, RawStream, Result};

use crate::{
    device::{Context, raw, raw_event},
    driver::Hip,
    hip::types::{
        HIP_EVENT_DISABLE_TIMING, HIP_STREAM_NON_BLOCKING, hipError_t, hipEvent_t, hipStream_t,
        hipStreamCaptureMode, hipStreamCaptureStatus,
    },
};

impl Context {
    pub(crate) fn stream_create(&self) -> Result<RawStream> {
        let (hip, mut stream) = (self.hip, hipStream_t::NULL);
        // SAFETY: the device is current; `stream` outlives the call.
        let code =
            unsafe { (hip.table.stream_create_with_flags)(&mut stream, HIP_STREAM_NON_BLOCKING) };
        hip.check("stream_create", code)?;
        Ok(RawStream::from_ptr(stream.0))
    }

    /// # Safety
    /// See `collectives_core::Device::stream_destroy`.
    pub(crate) unsafe fn stream_destroy(&self, stream: RawStream) -> Result<()> {
        // SAFETY: the caller's promise. The runtime finishes what is enqueued.
        self.hip.check("stream_destroy", unsafe { (self.hip.table.stream_destroy)(raw(stream)) })
    }

    pub(crate) fn event_create(&self) -> Result<RawEvent> {
        let (hip, mut event) = (self.hip, hipEvent_t::NULL);
        // SAFETY: the device is current; `event` outlives the call.
        let code =
            unsafe { (hip.table.event_create_with_flags)(&mut event, HIP_EVENT_DISABLE_TIMING) };
        hip.check("event_create", code)?;
        Ok(RawEvent::from_ptr(event.0))
    }

    /// # Safety
    /// See `collectives_core::Device::event_destroy`.
    pub(crate) unsafe fn event_destroy(&self, event: RawEvent) -> Result<()> {
        // SAFETY: the caller's promise.
        self.hip.check("event_destroy", unsafe { (self.hip.table.event_destroy)(raw_event(event)) })
    }

    /// # Safety
    /// See `collectives_core::Device::record`.
    pub(crate) unsafe fn record(&self, event: RawEvent, stream: RawStream) -> Result<()> {
        // SAFETY: the caller's promise.
        let code = unsafe { (self.hip.table.event_record)(raw_event(event), raw(stream)) };
        self.hip.check("record", code)
    }

    /// # Safety
    /// See `collectives_core::Device::wait`.
    pub(crate) unsafe fn wait(&self, stream: RawStream, event: RawEvent) -> Result<()> {
        // SAFETY: the caller's promise.
        let code = unsafe { (self.hip.table.stream_wait_event)(raw(stream), raw_event(event), 0) };
        self.hip.check("wait", code)
    }

    /// # Safety
    /// See `collectives_core::Device::query`.
    pub(crate) unsafe fn query(&self, event: RawEvent) -> Result<bool> {
        let _relaxed = RelaxedCapture::enter(self.hip)?;
        // SAFETY: the caller's promise.
        match unsafe { (self.hip.table.event_query)(raw_event(event)) } {
            hipError_t::SUCCESS => Ok(true),
            hipError_t::NOT_READY => {
                // No failure, but some releases keep it as the thread's last error.
                self.hip.clear();
                Ok(false)
            }
            failure => Err(self.hip.error("query", failure)),
        }
    }

    /// Whether the stream is being captured, or was and the capture broke: it must be ended.
    ///
    /// # Safety
    /// See `collectives_core::Device::is_capturing`.
    pub(crate) unsafe fn is_capturing(&self, stream: RawStream) -> Result<bool> {
        let mut status = hipStreamCaptureStatus::NONE;
        // SAFETY: the caller's promise; `status` outlives the call.
        match unsafe { (self.hip.table.stream_is_capturing)(raw(stream), &mut status) } {
            hipError_t::SUCCESS => Ok(status != hipStreamCaptureStatus::NONE),
            // The default stream, while a stream that synchronises with it is being captured.
            hipError_t::STREAM_CAPTURE_IMPLICIT => {
                self.hip.clear();
                Ok(true)
            }
            failure => Err(self.hip.error("is_capturing", failure)),
        }
    }
}

/// This thread may call what a capture in another mode forbids, without breaking the capture.
pub(crate) struct RelaxedCapture {
    hip: &'static Hip,
    before: hipStreamCaptureMode,
}

impl RelaxedCapture {
    pub(crate) fn enter(hip: &'static Hip) -> Result<Self> {
        let mut mode = hipStreamCaptureMode::RELAXED;
        // SAFETY: `mode` outlives the call; it is swapped with the thread's.
        let code = unsafe { (hip.table.thread_exchange_stream_capture_mode)(&mut mode) };
        hip.check("capture_mode", code).map(|()| Self { hip, before: mode })
    }
}

impl Drop for RelaxedCapture {
    fn drop(&mut self) {
        let exchange = self.hip.table.thread_exchange_stream_capture_mode;
        // SAFETY: as above. It worked a moment ago with the mode that it takes back.
        let _works = unsafe { exchange(&mut self.before) };
    }
}
