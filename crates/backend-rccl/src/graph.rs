//! Graphs: capture, instantiate, launch. The device is current when a method is called.

use std::ptr;

use collectives_core::{ErrorKind, RawGraph, RawStream, Result};

use crate::{
    device::{Context, raw},
    driver::{Hip, refuse},
    hip::types::{hipError_t, hipGraph_t, hipGraphExec_t, hipStreamCaptureMode},
};

impl Context {
    /// # Safety
    /// See `collectives_core::Device::begin_capture`.
    pub(crate) unsafe fn begin_capture(&self, stream: RawStream) -> Result<()> {
        const OPERATION: &str = "begin_capture";
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
        let begin = self.hip.table.stream_begin_capture;
        // SAFETY: the caller's promise.
        self.hip.check(OPERATION, unsafe { begin(raw(stream), hipStreamCaptureMode::RELAXED) })
    }

    /// # Safety
    /// See `collectives_core::Device::end_capture`.
    pub(crate) unsafe fn end_capture(&self, stream: RawStream) -> Result<RawGraph> {
        const OPERATION: &str = "end_capture";
        let hip = self.hip;
        // SAFETY: the caller's promise.
        if !unsafe { self.is_capturing(stream) }? {
            let message = "the stream is not being captured";
            return Err(refuse(ErrorKind::InvalidUsage, OPERATION, message)
                .with_hint("begin_capture on this stream first"));
        }
        let mut graph = hipGraph_t::NULL;
        // SAFETY: the caller's promise; `graph` outlives the call.
        hip.check(OPERATION, unsafe { (hip.table.stream_end_capture)(raw(stream), &mut graph) })?;
        let template = Template { hip, graph };
        let mut instance = hipGraphExec_t::NULL;
        let instantiate = hip.table.graph_instantiate;
        let (node, log) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: a graph that was just captured; `instance` outlives the call; nobody wants to hear
        // of nodes, and the log has no room.
        let made = unsafe { instantiate(&mut instance, template.graph, node, log, 0) };
        hip.check(OPERATION, made)?;
        let graph = RawGraph::from_ptr(instance.0);
        let Some(upload) = hip.table.graph_upload else { return Ok(graph) };
        // The first launch then costs what all others do.
        // SAFETY: a graph of this device; the stream captures no longer.
        match unsafe { upload(instance, raw(stream)) } {
            hipError_t::SUCCESS => Ok(graph),
            // Some releases have the name only.
            hipError_t::NOT_SUPPORTED => {
                hip.clear();
                Ok(graph)
            }
            failure => {
                let error = hip.error(OPERATION, failure);
                // SAFETY: nobody else knows the graph.
                unsafe { self.graph_destroy(graph) }?;
                Err(error)
            }
        }
    }

    /// # Safety
    /// See `collectives_core::Device::launch`.
    pub(crate) unsafe fn launch(&self, graph: RawGraph, stream: RawStream) -> Result<()> {
        // SAFETY: the caller's promise.
        let code = unsafe { (self.hip.table.graph_launch)(instance(graph), raw(stream)) };
        self.hip.check("launch", code)
    }

    /// # Safety
    /// See `collectives_core::Device::graph_destroy`.
    pub(crate) unsafe fn graph_destroy(&self, graph: RawGraph) -> Result<()> {
        // SAFETY: the caller's promise. The runtime finishes the runs that are enqueued.
        let code = unsafe { (self.hip.table.graph_exec_destroy)(instance(graph)) };
        self.hip.check("graph_destroy", code)
    }
}

/// A captured graph, of which only what was made from it is kept.
struct Template {
    hip: &'static Hip,
    graph: hipGraph_t,
}

impl Drop for Template {
    fn drop(&mut self) {
        // SAFETY: a graph that nobody else knows; the instance does not need it.
        let _nothing_to_do = unsafe { (self.hip.table.graph_destroy)(self.graph) };
    }
}

fn instance(graph: RawGraph) -> hipGraphExec_t {
    hipGraphExec_t(graph.as_ptr())
}

/// The handles 0 (null), 1 (`hipStreamLegacy`) and 2 (`hipStreamPerThread`).
pub(crate) const LAST_DEFAULT_STREAM: usize = 2;
