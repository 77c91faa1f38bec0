//! Streams, events, captures and graphs.

use std::ffi::{c_int, c_uint, c_ulonglong, c_void};

use super::{context, find, twins};
use crate::{
    cuda::{
        CUhostFn,
        graph::get_nodes,
        stream::{
            CUstreamCallback, add_callback, capture_info, exchange_mode, flags_of, ready,
            status_number,
        },
    },
    gpu::{
        Code, Out,
        capture::{self, Mode},
        event, graph,
        stream::Stream,
    },
};

twins! {
    /// Makes a blocking stream.
    fn cudaStreamCreate | hipStreamCreate [face] (stream: Out<usize>) {
        stream.set(Stream::create(context(face)?, 0, 0)?)
    }

    /// Makes a stream.
    fn cudaStreamCreateWithFlags | hipStreamCreateWithFlags [face] (
        stream: Out<usize>,
        flags: c_uint,
    ) {
        stream.set(Stream::create(context(face)?, flags, 0)?)
    }

    /// Makes a stream with a priority, which is kept and means nothing here.
    fn cudaStreamCreateWithPriority | hipStreamCreateWithPriority [face] (
        stream: Out<usize>,
        flags: c_uint,
        priority: c_int,
    ) {
        stream.set(Stream::create(context(face)?, flags, priority)?)
    }

    /// Destroys a stream; what is enqueued on it still runs.
    fn cudaStreamDestroy | hipStreamDestroy [face] (stream: usize) {
        Stream::destroy(stream)
    }

    /// Tells whether the work of a stream is done.
    fn cudaStreamQuery | hipStreamQuery [face] (stream: usize) {
        ready(find(face, stream)?.query()?)
    }

    /// Waits for the work of a stream.
    fn cudaStreamSynchronize | hipStreamSynchronize [face] (stream: usize) {
        find(face, stream)?.synchronize()
    }

    /// Has a stream wait for an event.
    fn cudaStreamWaitEvent | hipStreamWaitEvent [face] (
        stream: usize,
        event: usize,
        flags: c_uint,
    ) {
        if flags > 1 {
            return Err(Code::INVALID_VALUE);
        }
        event::wait(event, &*find(face, stream)?)
    }

    /// Tells whether a stream is blocking.
    fn cudaStreamGetFlags | hipStreamGetFlags [face] (stream: usize, flags: Out<c_uint>) {
        flags.set(flags_of(&*find(face, stream)?))
    }

    /// Tells the priority of a stream.
    fn cudaStreamGetPriority | hipStreamGetPriority [face] (
        stream: usize,
        priority: Out<c_int>,
    ) {
        priority.set(find(face, stream)?.priority)
    }

    /// Tells the device of a stream.
    fn cudaStreamGetDevice | hipStreamGetDevice [face] (stream: usize, device: Out<c_int>) {
        device.set(face.number(find(face, stream)?.device_ordinal())?)
    }

    /// Has a function called when the work before it is done.
    fn cudaStreamAddCallback | hipStreamAddCallback [face] (
        stream: usize,
        callback: CUstreamCallback,
        data: *mut c_void,
        flags: c_uint,
    ) {
        // SAFETY: the program's promise is the one of the function.
        unsafe { add_callback(stream, &*find(face, stream)?, callback, data, flags) }
    }

    /// Has a function called when the work before it is done.
    fn cudaLaunchHostFunc | hipLaunchHostFunc [face] (
        stream: usize,
        function: CUhostFn,
        data: *mut c_void,
    ) {
        let function = function.ok_or(Code::INVALID_VALUE)?;
        // SAFETY: the program's promise: callable on any thread when the stream has come to it.
        unsafe { find(face, stream)?.call(function, data) }
    }

    /// Makes a timed event.
    fn cudaEventCreate | hipEventCreate [face] (made: Out<usize>) {
        made.set(event::create(context(face)?, 0)?)
    }

    /// Makes an event.
    fn cudaEventCreateWithFlags | hipEventCreateWithFlags [face] (
        made: Out<usize>,
        flags: c_uint,
    ) {
        // HIP's flags of how far a recording is seen mean nothing here.
        made.set(event::create(context(face)?, flags & !RELEASES)?)
    }

    /// Destroys an event; waits that are enqueued still hold.
    fn cudaEventDestroy | hipEventDestroy [face] (event: usize) {
        event::destroy(event)
    }

    /// Enqueues a recording.
    fn cudaEventRecord | hipEventRecord [face] (event: usize, stream: usize) {
        event::record(event, &*find(face, stream)?)
    }

    /// Enqueues a recording.
    fn cudaEventRecordWithFlags | hipEventRecordWithFlags [face] (
        event: usize,
        stream: usize,
        flags: c_uint,
    ) {
        if flags > 1 {
            return Err(Code::INVALID_VALUE);
        }
        event::record(event, &*find(face, stream)?)
    }

    /// Tells whether the latest recording is reached.
    fn cudaEventQuery | hipEventQuery [face] (event: usize) {
        ready(event::query(event)?)
    }

    /// Waits for the latest recording.
    fn cudaEventSynchronize | hipEventSynchronize [face] (event: usize) {
        event::synchronize(event)
    }

    /// Tells the milliseconds between two events.
    fn cudaEventElapsedTime | hipEventElapsedTime [face] (
        milliseconds: Out<f32>,
        start: usize,
        end: usize,
    ) {
        milliseconds.set(event::elapsed(start, end)?)
    }

    /// Starts capturing a stream.
    fn cudaStreamBeginCapture | hipStreamBeginCapture [face] (stream: usize, mode: c_uint) {
        capture::begin(&*find(face, stream)?, Mode::from_number(mode)?)
    }

    /// Ends a capture; what was captured becomes a graph.
    fn cudaStreamEndCapture | hipStreamEndCapture [face] (stream: usize, graph: Out<usize>) {
        graph.set(0)?;
        graph.set(graph::end_capture(&*find(face, stream)?)?)
    }

    /// Tells whether a stream is captured.
    fn cudaStreamIsCapturing | hipStreamIsCapturing [face] (
        stream: usize,
        status: Out<c_uint>,
    ) {
        status.set(status_number(capture::ask(&*find(face, stream)?)?))
    }

    /// Tells the capture that a stream takes part in. Its graph and its nodes cannot be had yet.
    fn cudaStreamGetCaptureInfo_v2 | hipStreamGetCaptureInfo_v2 [face] (
        stream: usize,
        status: Out<c_uint>,
        id: Out<c_ulonglong>,
        graph: Out<usize>,
        dependencies: Out<usize>,
        count: Out<usize>,
    ) {
        capture_info(&*find(face, stream)?, status, id, [graph, dependencies, count])
    }

    /// Sets how captures restrict this thread, and tells how they did before.
    fn cudaThreadExchangeStreamCaptureMode | hipThreadExchangeStreamCaptureMode [face] (
        mode: Out<c_uint>,
    ) {
        exchange_mode(mode)
    }

    /// Makes an instance of a graph.
    fn cudaGraphInstantiateWithFlags | hipGraphInstantiateWithFlags [face] (
        instance: Out<usize>,
        graph: usize,
        flags: c_ulonglong,
    ) {
        instance.set(graph::instantiate(graph, flags)?)
    }

    /// Enqueues a run of an instance.
    fn cudaGraphLaunch | hipGraphLaunch [face] (instance: usize, stream: usize) {
        graph::launch(instance, &*find(face, stream)?)
    }

    /// Has nothing to bring anywhere.
    fn cudaGraphUpload | hipGraphUpload [face] (instance: usize, stream: usize) {
        find(face, stream)?;
        graph::upload(instance)
    }

    /// Destroys an instance; runs that are enqueued still complete.
    fn cudaGraphExecDestroy | hipGraphExecDestroy [face] (instance: usize) {
        graph::destroy(instance, true)
    }

    /// Destroys a graph; its instances live on.
    fn cudaGraphDestroy | hipGraphDestroy [face] (graph: usize) {
        graph::destroy(graph, false)
    }

    /// Makes a copy of a graph.
    fn cudaGraphClone | hipGraphClone [face] (clone: Out<usize>, graph: usize) {
        clone.set(graph::clone(graph)?)
    }

    /// Tells the number of nodes; the nodes themselves are numbers without a meaning.
    fn cudaGraphGetNodes | hipGraphGetNodes [face] (
        graph: usize,
        nodes: Out<usize>,
        count: Out<usize>,
    ) {
        get_nodes(graph, nodes, count)
    }
}

/// `hipEventReleaseToDevice` and `hipEventReleaseToSystem`.
const RELEASES: c_uint = 0xc000_0000;
