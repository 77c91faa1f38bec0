//! Memory of the runtime: what the cache of `nccl-family` stands on.

use std::{ffi::c_void, ptr};

use collectives_core::{RawEvent, RawStream, Result};
use collectives_nccl_family::device::{Memory, RawDevice};

use crate::{
    device::{Context, raw},
    driver::HIP_NAME,
    hip::types::hipError_t,
    stream::RelaxedCapture,
};

impl RawDevice for Context {
    const RUNTIME: &'static str = HIP_NAME;

    fn ordinal(&self) -> usize {
        self.info.ordinal
    }

    fn memory(&self) -> &Memory {
        &self.memory
    }

    fn memory_info(&self) -> Result<(usize, usize)> {
        let (hip, mut free, mut total) = (self.hip, 0, 0);
        // SAFETY: the device is current; both numbers outlive the call.
        hip.check("memory_info", unsafe { (hip.table.mem_get_info)(&mut free, &mut total) })?;
        Ok((free, total))
    }

    fn raw_alloc(&self, bytes: usize) -> Result<Option<usize>> {
        let _relaxed = RelaxedCapture::enter(self.hip)?;
        let mut block: *mut c_void = ptr::null_mut();
        // SAFETY: the device is current; `block` outlives the call.
        match unsafe { (self.hip.table.malloc)(&mut block, bytes) } {
            hipError_t::SUCCESS => Ok(Some(block.expose_provenance())),
            hipError_t::OUT_OF_MEMORY => {
                self.hip.clear();
                Ok(None)
            }
            failure => Err(self.hip.error("alloc", failure)),
        }
    }

    unsafe fn raw_free(&self, blocks: &[usize]) -> Result<()> {
        let _relaxed = RelaxedCapture::enter(self.hip)?;
        let mut outcome = Ok(());
        for &block in blocks {
            let block = ptr::with_exposed_provenance_mut(block);
            // SAFETY: the caller's promise.
            let freed = self.hip.check("free", unsafe { (self.hip.table.free)(block) });
            outcome = outcome.and(freed);
        }
        outcome
    }

    fn event_create(&self) -> Result<RawEvent> {
        self.event_create()
    }

    unsafe fn record(&self, event: RawEvent, stream: RawStream) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.record(event, stream) }
    }

    unsafe fn query(&self, event: RawEvent) -> Result<bool> {
        // SAFETY: the caller's promise.
        unsafe { self.query(event) }
    }

    unsafe fn is_capturing(&self, stream: RawStream) -> Result<bool> {
        // SAFETY: the caller's promise.
        unsafe { self.is_capturing(stream) }
    }

    unsafe fn raw_synchronize(&self, stream: RawStream) -> Result<()> {
        // SAFETY: the caller's promise.
        let code = unsafe { (self.hip.table.stream_synchronize)(raw(stream)) };
        self.hip.check("synchronize", code)
    }
}
