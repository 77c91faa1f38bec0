//! Events.

use std::ffi::c_uint;

use super::{CUevent, CUstream, current, driver, find, stream::ready};
use crate::gpu::{Code, Out, context::initialized, event};

driver! {
    /// Makes an event.
    fn cuEventCreate(made: Out<CUevent>, flags: c_uint) {
        made.set(event::create(current()?, flags)?)
    }

    /// Destroys an event; waits that are enqueued still hold.
    fn cuEventDestroy_v2(event: CUevent) {
        initialized()?;
        event::destroy(event)
    }

    /// Enqueues a recording.
    fn cuEventRecord(event: CUevent, stream: CUstream) {
        event::record(event, &*find(stream)?)
    }

    /// Enqueues a recording.
    fn cuEventRecordWithFlags(event: CUevent, stream: CUstream, flags: c_uint) {
        if flags > 1 {
            return Err(Code::INVALID_VALUE);
        }
        event::record(event, &*find(stream)?)
    }

    /// Tells whether the latest recording is reached.
    fn cuEventQuery(event: CUevent) {
        initialized()?;
        ready(event::query(event)?)
    }

    /// Waits for the latest recording.
    fn cuEventSynchronize(event: CUevent) {
        initialized()?;
        event::synchronize(event)
    }

    /// Tells the milliseconds between two events.
    fn cuEventElapsedTime(milliseconds: Out<f32>, start: CUevent, end: CUevent) {
        initialized()?;
        milliseconds.set(event::elapsed(start, end)?)
    }

    /// Tells the milliseconds between two events.
    fn cuEventElapsedTime_v2(milliseconds: Out<f32>, start: CUevent, end: CUevent) {
        initialized()?;
        milliseconds.set(event::elapsed(start, end)?)
    }
}
