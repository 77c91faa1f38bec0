//! Memory of the driver: what the cache of `nccl-family` stands on.

use collectives_core::{RawEvent, RawStream, Result};
use collectives_nccl_family::device::{Memory, RawDevice};
use cudarc::driver::sys::{self, CUresult};

use crate::{
    device::{Context, cu},
    driver::{CUDA, check, error},
    stream::RelaxedCapture,
};

impl RawDevice for Context {
    const RUNTIME: &'static str = CUDA;

    fn ordinal(&self) -> usize {
        self.info.ordinal
    }

    fn memory(&self) -> &Memory {
        &self.memory
    }

    fn memory_info(&self) -> Result<(usize, usize)> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: the device is current; both numbers outlive the call.
        check("memory_info", unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) })?;
        Ok((free, total))
    }

    fn raw_alloc(&self, bytes: usize) -> Result<Option<usize>> {
        let _relaxed = RelaxedCapture::enter()?;
        let mut block = 0;
        // SAFETY: the device is current; `block` outlives the call.
        match unsafe { sys::cuMemAlloc_v2(&mut block, bytes) } {
            CUresult::CUDA_SUCCESS => Ok(usize::try_from(block).ok()),
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => Ok(None),
            failure => Err(error("alloc", failure)),
        }
    }

    unsafe fn raw_free(&self, blocks: &[usize]) -> Result<()> {
        let _relaxed = RelaxedCapture::enter()?;
        let mut outcome = Ok(());
        for &block in blocks {
            // SAFETY: the caller's promise.
            let freed = check("free", unsafe { sys::cuMemFree_v2(block as sys::CUdeviceptr) });
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
        check("synchronize", unsafe { sys::cuStreamSynchronize(cu(stream)) })
    }
}
