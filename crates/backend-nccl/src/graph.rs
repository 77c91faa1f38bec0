//! Graphs: capture, instantiate, launch.

use std::ptr;

use collectives_core::{ErrorKind, RawGraph, RawStream, Result};
use cudarc::driver::sys::{self, CUgraph, CUgraphExec, CUstreamCaptureMode};

use crate::{
    device::{Context, cu},
    driver::{check, refuse},
};

impl Context {
    /// # Safety
    /// See `collectives_core::Device::begin_capture`.
    pub(crate) unsafe fn begin_capture(&self, stream: RawStream) -> Result<()> {
        const OPERATION: &str = "begin_capture";
        let _current = self.bind()?;
        if stream.bits() <= LAST_DEFAULT_STREAM {
            let message = "the default stream cannot be captured";
            return Err(refuse(ErrorKind::InvalidUsage, OPERATION, message)
                .with_hint("capture a stream that stream_create made"));
        }
        // SAFETY: the caller's promise.
        if unsafe { self.is_capturing(stream) }? {
            let message = "the stream is being captured already";
            return Err(refuse(ErrorKind::InvalidUsage, OPERATION, message)
                .with_hint("end that capture first"));
        }
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the caller's promise.
        check(OPERATION, unsafe { sys::cuStreamBeginCapture_v2(cu(stream), mode) })
    }

    /// # Safety
    /// See `collectives_core::Device::end_capture`.
    pub(crate) unsafe fn end_capture(&self, stream: RawStream) -> Result<RawGraph> {
        const OPERATION: &str = "end_capture";
        let _current = self.bind()?;
        // SAFETY: the caller's promise.
        if !unsafe { self.is_capturing(stream) }? {
            let message = "the stream is not being captured";
            return Err(refuse(ErrorKind::InvalidUsage, OPERATION, message)
                .with_hint("begin_capture on this stream first"));
        }
        let mut graph = ptr::null_mut();
        // SAFETY: the caller's promise; `graph` outlives the call.
        check(OPERATION, unsafe { sys::cuStreamEndCapture(cu(stream), &mut graph) })?;
        let template = Template(graph);
        let mut exec = ptr::null_mut();
        // SAFETY: a graph that was just captured; `exec` outlives the call.
        let made = unsafe { sys::cuGraphInstantiateWithFlags(&mut exec, template.0, 0) };
        check(OPERATION, made)?;
        let graph = RawGraph::from_ptr(exec.cast());
        // The first launch then costs what all others do.
        // SAFETY: a graph of this device; the stream captures no longer.
        let uploaded = check(OPERATION, unsafe { sys::cuGraphUpload(exec, cu(stream)) });
        if let Err(error) = uploaded {
            // SAFETY: nobody else knows the graph.
            unsafe { self.graph_destroy(graph) }?;
            return Err(error);
        }
        Ok(graph)
    }

    /// # Safety
    /// See `collectives_core::Device::launch`.
    pub(crate) unsafe fn launch(&self, graph: RawGraph, stream: RawStream) -> Result<()> {
        let _current = self.bind()?;
        // SAFETY: the caller's promise.
        check("launch", unsafe { sys::cuGraphLaunch(exec(graph), cu(stream)) })
    }

    /// # Safety
    /// See `collectives_core::Device::graph_destroy`.
    pub(crate) unsafe fn graph_destroy(&self, graph: RawGraph) -> Result<()> {
        let _current = self.bind()?;
        // SAFETY: the caller's promise. The driver finishes the runs that are enqueued.
        check("graph_destroy", unsafe { sys::cuGraphExecDestroy(exec(graph)) })
    }
}

/// A captured graph, of which only what was made from it is kept.
struct Template(CUgraph);

impl Drop for Template {
    fn drop(&mut self) {
        // SAFETY: a graph that nobody else knows; the instance does not need it.
        let _nothing_to_do = unsafe { sys::cuGraphDestroy(self.0) };
    }
}

fn exec(graph: RawGraph) -> CUgraphExec {
    graph.as_ptr().cast()
}

/// The handles 0 (null), 1 (`CU_STREAM_LEGACY`) and 2 (`CU_STREAM_PER_THREAD`).
pub(crate) const LAST_DEFAULT_STREAM: usize = 2;
