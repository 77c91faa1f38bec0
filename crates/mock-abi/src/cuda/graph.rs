//! Graphs. They come from captures; building them node by node is not supported.

use std::ffi::{c_uint, c_ulonglong};

use super::{CUgraph, CUgraphExec, CUstream, driver, find};
use crate::gpu::{Out, Reply, context::initialized, graph};

/// The start of `CUDA_GRAPH_INSTANTIATE_PARAMS`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct InstantiateParams {
    flags: c_ulonglong,
    upload_stream: CUstream,
    error_node: usize,
    result: c_uint,
}

driver! {
    /// Makes an instance of a graph.
    fn cuGraphInstantiateWithFlags(
        instance: Out<CUgraphExec>,
        graph: CUgraph,
        flags: c_ulonglong,
    ) {
        initialized()?;
        instance.set(graph::instantiate(graph, flags)?)
    }

    /// Makes an instance of a graph.
    fn cuGraphInstantiateWithParams(
        instance: Out<CUgraphExec>,
        graph: CUgraph,
        params: Out<InstantiateParams>,
    ) {
        initialized()?;
        let asked = params.get()?;
        instance.set(graph::instantiate(graph, asked.flags)?)?;
        params.set(InstantiateParams { error_node: 0, result: 0, ..asked })
    }

    /// Enqueues a run of an instance.
    fn cuGraphLaunch(instance: CUgraphExec, stream: CUstream) {
        graph::launch(instance, &*find(stream)?)
    }

    /// Has nothing to bring anywhere.
    fn cuGraphUpload(instance: CUgraphExec, stream: CUstream) {
        find(stream)?;
        graph::upload(instance)
    }

    /// Destroys an instance; runs that are enqueued still complete.
    fn cuGraphExecDestroy(instance: CUgraphExec) {
        initialized()?;
        graph::destroy(instance, true)
    }

    /// Destroys a graph; its instances live on.
    fn cuGraphDestroy(graph: CUgraph) {
        initialized()?;
        graph::destroy(graph, false)
    }

    /// Makes a copy of a graph.
    fn cuGraphClone(clone: Out<CUgraph>, graph: CUgraph) {
        initialized()?;
        clone.set(graph::clone(graph)?)
    }

    /// Tells the number of nodes; the nodes themselves are numbers without a meaning.
    fn cuGraphGetNodes(graph: CUgraph, nodes: Out<usize>, count: Out<usize>) {
        initialized()?;
        get_nodes(graph, nodes, count)
    }
}

/// Where there is no room given, only the number is asked for.
pub(crate) fn get_nodes(graph: usize, nodes: Out<usize>, count: Out<usize>) -> Reply {
    let size = graph::size(graph)?;
    if nodes.is_null() {
        return count.set(size);
    }
    let room = count.get()?;
    for index in 0..room {
        nodes.set_at(index, if index < size { index + 1 } else { 0 })?;
    }
    count.set(size.min(room))
}
