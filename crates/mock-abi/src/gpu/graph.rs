//! Graphs, and what is made of them to be launched.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use collectives_core::{Device as _, Error, RawGraph};

use super::{Code, Reply, capture, device::seat, lock, memory::Held, stream::Stream};

/// A graph, or an instance of one.
struct Graph {
    device: usize,
    is_instance: bool,
    /// Memory that lives as long as the graph or one of its instances.
    held: Arc<Held>,
}

static GRAPHS: Mutex<BTreeMap<usize, Graph>> = Mutex::new(BTreeMap::new());

/// Ends a capture: the graph.
pub(crate) fn end_capture(stream: &Stream) -> Reply<usize> {
    let (graph, held) = capture::end(stream)?;
    let device = stream.device_ordinal();
    let made = Graph { device, is_instance: false, held: Arc::new(held) };
    lock(&GRAPHS).insert(graph.bits(), made);
    Ok(graph.bits())
}

/// Makes an instance.
pub(crate) fn instantiate(graph: usize, flags: u64) -> Reply<usize> {
    capture::forbid_unsafe()?;
    if flags & !FLAGS != 0 || flags & DEVICE_LAUNCH != 0 && flags & AUTO_FREE != 0 {
        return Err(Code::INVALID_VALUE);
    }
    if flags & DEVICE_LAUNCH != 0 {
        return Err(Code::NOT_SUPPORTED);
    }
    copy(graph, true)
}

/// `cuGraphClone`.
pub(crate) fn clone(graph: usize) -> Reply<usize> {
    copy(graph, false)
}

fn copy(graph: usize, is_instance: bool) -> Reply<usize> {
    let (device, held) = find(graph, false)?;
    // SAFETY: what was captured into it is what its program promises.
    let copy = unsafe { seat(device)?.device.graph_copy(RawGraph::from_bits(graph)) };
    let copy = copy.map_err(code)?.bits();
    lock(&GRAPHS).insert(copy, Graph { device, is_instance, held });
    Ok(copy)
}

/// Enqueues a run of an instance.
pub(crate) fn launch(instance: usize, stream: &Stream) -> Reply {
    let (_, held) = find(instance, true)?;
    if stream.enter()? {
        // Child graphs are not built here.
        capture::invalidate_of(stream)?;
        return Err(Code::CAPTURE_UNSUPPORTED);
    }
    // SAFETY: what was captured into it is what its program promises.
    unsafe { stream.device()?.launch(RawGraph::from_bits(instance), stream.raw) }.map_err(code)?;
    held.note_use(stream.raw);
    Ok(())
}

/// Nothing has to be brought anywhere; only the arguments are looked at.
pub(crate) fn upload(instance: usize) -> Reply {
    find(instance, true).map(drop)
}

/// Destroys a graph or an instance; runs that are enqueued still complete.
pub(crate) fn destroy(graph: usize, is_instance: bool) -> Reply {
    let (device, _held) = find(graph, is_instance)?;
    if is_instance {
        capture::forbid_unsafe()?;
    }
    lock(&GRAPHS).remove(&graph);
    // SAFETY: it was in the table, so it lives, and is found no more.
    unsafe { seat(device)?.device.graph_destroy(RawGraph::from_bits(graph)) }.map_err(code)
}

/// Number of nodes.
pub(crate) fn size(graph: usize) -> Reply<usize> {
    let (device, _) = find(graph, false)?;
    // SAFETY: it lives.
    unsafe { seat(device)?.device.graph_size(RawGraph::from_bits(graph)) }.map_err(code)
}

/// Takes memory out of the keeping of whatever graph has it, since its program frees it.
pub(crate) fn release(ptr: usize) {
    for graph in lock(&GRAPHS).values() {
        graph.held.release(ptr);
    }
}

fn find(graph: usize, is_instance: bool) -> Reply<(usize, Arc<Held>)> {
    let graphs = lock(&GRAPHS);
    let found = graphs.get(&graph).filter(|graph| graph.is_instance == is_instance);
    let found = found.ok_or(Code::INVALID_VALUE)?;
    Ok((found.device, Arc::clone(&found.held)))
}

fn code(error: Error) -> Code {
    Code::from_error(&error, Code::INVALID_VALUE)
}

/// `CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH`.
const AUTO_FREE: u64 = 1;
/// `CUDA_GRAPH_INSTANTIATE_FLAG_DEVICE_LAUNCH`.
const DEVICE_LAUNCH: u64 = 4;
/// Both, `…_UPLOAD` and `…_USE_NODE_PRIORITY`, which mean nothing here.
const FLAGS: u64 = 15;
