//! Streams and events.
//!
//! While an event is asked about, the thread is in relaxed capture mode, as another library's capture
//! on this very thread may forbid the question.

use std::ptr;

use collectives_core::{RawEvent, RawStream, Result};
use cudarc::driver::sys::{self, CUresult, CUstreamCaptureMode, CUstreamCaptureStatus};

use crate::{
    device::{Context, cu, cu_event},
    driver::{check, error},
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
