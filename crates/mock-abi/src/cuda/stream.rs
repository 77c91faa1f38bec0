//! Streams and captures.

use std::ffi::{c_int, c_uint, c_ulonglong, c_void};

use super::{
    CUcontext, CUdevice, CUdeviceptr, CUevent, CUgraph, CUhostFn, CUstream, current, driver, find,
};
use crate::gpu::{
    Code, Out, Reply,
    capture::{self, Mode, Status},
    context::initialized,
    device::Face,
    event, graph,
    stream::{Kind, NON_BLOCKING, Stream},
};

/// `CUstreamCallback`.
pub type CUstreamCallback = Option<unsafe extern "C" fn(CUstream, Code, *mut c_void)>;

driver! {
    /// Makes a stream.
    fn cuStreamCreate(stream: Out<CUstream>, flags: c_uint) {
        stream.set(Stream::create(current()?, flags, 0)?)
    }

    /// Makes a stream with a priority, which is kept and means nothing here.
    fn cuStreamCreateWithPriority(stream: Out<CUstream>, flags: c_uint, priority: c_int) {
        stream.set(Stream::create(current()?, flags, priority)?)
    }

    /// Destroys a stream; what is enqueued on it still runs.
    fn cuStreamDestroy_v2(stream: CUstream) {
        initialized()?;
        Stream::destroy(stream)
    }

    /// Waits for the work of a stream.
    fn cuStreamSynchronize(stream: CUstream) {
        find(stream)?.synchronize()
    }

    /// Tells whether the work of a stream is done.
    fn cuStreamQuery(stream: CUstream) {
        ready(find(stream)?.query()?)
    }

    /// Has a stream wait for an event.
    fn cuStreamWaitEvent(stream: CUstream, event: CUevent, flags: c_uint) {
        if flags > 1 {
            return Err(Code::INVALID_VALUE);
        }
        event::wait(event, &*find(stream)?)
    }

    /// Tells whether a stream is blocking.
    fn cuStreamGetFlags(stream: CUstream, flags: Out<c_uint>) {
        flags.set(flags_of(&*find(stream)?))
    }

    /// Tells the priority of a stream.
    fn cuStreamGetPriority(stream: CUstream, priority: Out<c_int>) {
        priority.set(find(stream)?.priority)
    }

    /// Tells the context of a stream.
    fn cuStreamGetCtx(stream: CUstream, context: Out<CUcontext>) {
        context.set(find(stream)?.context.bits())
    }

    /// Tells the context of a stream, which is no green one.
    fn cuStreamGetCtx_v2(stream: CUstream, context: Out<CUcontext>, green: Out<usize>) {
        green.set_if(0);
        context.set(find(stream)?.context.bits())
    }

    /// Tells the device of a stream.
    fn cuStreamGetDevice(stream: CUstream, device: Out<CUdevice>) {
        device.set(Face::Cuda.number(find(stream)?.device_ordinal())?)
    }

    /// Tells a number that no other stream has.
    fn cuStreamGetId(stream: CUstream, id: Out<c_ulonglong>) {
        id.set(id_of(&*find(stream)?))
    }

    /// Starts capturing a stream.
    fn cuStreamBeginCapture_v2(stream: CUstream, mode: c_uint) {
        capture::begin(&*find(stream)?, Mode::from_number(mode)?)
    }

    /// Ends a capture; what was captured becomes a graph.
    fn cuStreamEndCapture(stream: CUstream, graph: Out<CUgraph>) {
        graph.set(0)?;
        graph.set(graph::end_capture(&*find(stream)?)?)
    }

    /// Tells whether a stream is captured.
    fn cuStreamIsCapturing(stream: CUstream, status: Out<c_uint>) {
        status.set(status_number(capture::ask(&*find(stream)?)?))
    }

    /// Tells the capture that a stream takes part in. Its graph and its nodes cannot be had yet.
    fn cuStreamGetCaptureInfo_v2(
        stream: CUstream,
        status: Out<c_uint>,
        id: Out<c_ulonglong>,
        graph: Out<CUgraph>,
        dependencies: Out<usize>,
        count: Out<usize>,
    ) {
        capture_info(&*find(stream)?, status, id, [graph, dependencies, count])
    }

    /// Tells the capture that a stream takes part in. Its graph and its nodes cannot be had yet.
    fn cuStreamGetCaptureInfo_v3(
        stream: CUstream,
        status: Out<c_uint>,
        id: Out<c_ulonglong>,
        graph: Out<CUgraph>,
        dependencies: Out<usize>,
        edges: Out<usize>,
        count: Out<usize>,
    ) {
        edges.set_if(0);
        capture_info(&*find(stream)?, status, id, [graph, dependencies, count])
    }

    /// Sets how captures restrict this thread, and tells how they did before.
    fn cuThreadExchangeStreamCaptureMode(mode: Out<c_uint>) {
        exchange_mode(mode)
    }

    /// Has a function called when the work before it is done. Nothing else than
    /// [`cuLaunchHostFunc`] but for the arguments, and that it cannot be captured.
    fn cuStreamAddCallback(
        stream: CUstream,
        callback: CUstreamCallback,
        data: *mut c_void,
        flags: c_uint,
    ) {
        // SAFETY: the program's promise is the one of the function.
        unsafe { add_callback(stream, &*find(stream)?, callback, data, flags) }
    }

    /// Has a function called when the work before it is done.
    fn cuLaunchHostFunc(stream: CUstream, function: CUhostFn, data: *mut c_void) {
        let function = function.ok_or(Code::INVALID_VALUE)?;
        // SAFETY: the program's promise: callable on any thread when the stream has come to it.
        unsafe { find(stream)?.call(function, data) }
    }

    /// Says who uses managed memory, which everybody can reach here.
    fn cuStreamAttachMemAsync(
        stream: CUstream,
        _memory: CUdeviceptr,
        _length: usize,
        _flags: c_uint,
    ) {
        find(stream)?.enter().map(drop)
    }
}

/// `CUDA_ERROR_NOT_READY` is an answer, not a failure.
pub(crate) fn ready(is_ready: bool) -> Reply {
    if is_ready { Ok(()) } else { Err(Code::NOT_READY) }
}

pub(crate) fn flags_of(stream: &Stream) -> c_uint {
    if stream.kind == Kind::NonBlocking { NON_BLOCKING } else { 0 }
}

/// The handle, or, for default streams, what is left of it: the device.
pub(crate) fn id_of(stream: &Stream) -> c_ulonglong {
    match stream.raw.bits() {
        0 => 1 + stream.device_ordinal() as c_ulonglong,
        handle => handle as c_ulonglong,
    }
}

pub(crate) const fn status_number(status: Status) -> c_uint {
    match status {
        Status::None => 0,
        Status::Active(_) => 1,
        Status::Invalidated => 2,
    }
}

/// Answers `cuStreamGetCaptureInfo`; `others` are the graph, its last nodes and their number.
pub(crate) fn capture_info(
    stream: &Stream,
    status: Out<c_uint>,
    id: Out<c_ulonglong>,
    others: [Out<usize>; 3],
) -> Reply {
    let found = capture::ask(stream)?;
    status.set(status_number(found))?;
    if let Status::Active(number) = found {
        id.set_if(number);
    }
    others.into_iter().for_each(|other| other.set_if(0));
    Ok(())
}

pub(crate) fn exchange_mode(mode: Out<c_uint>) -> Reply {
    let before = capture::exchange_mode(Mode::from_number(mode.get()?)?);
    mode.set(before as c_uint)
}

/// What a callback is called with.
struct Callback {
    function: unsafe extern "C" fn(usize, Code, *mut c_void),
    stream: usize,
    data: *mut c_void,
}

/// # Safety
/// The function may be called with `data` on any thread once the stream has come to it.
pub(crate) unsafe fn add_callback(
    handle: usize,
    stream: &Stream,
    function: CUstreamCallback,
    data: *mut c_void,
    flags: c_uint,
) -> Reply {
    unsafe extern "C" fn call(callback: *mut c_void) {
        // SAFETY: made below for this one call.
        let callback = unsafe { Box::from_raw(callback.cast::<Callback>()) };
        let Callback { function, stream, data } = *callback;
        // SAFETY: promised by the caller of `add_callback`.
        unsafe { function(stream, Code::SUCCESS, data) };
    }
    let function = function.filter(|_| flags == 0).ok_or(Code::INVALID_VALUE)?;
    if stream.enter()? {
        capture::invalidate_of(stream)?;
        return Err(Code::CAPTURE_UNSUPPORTED);
    }
    let callback = Box::into_raw(Box::new(Callback { function, stream: handle, data }));
    // SAFETY: called once, with what was made for it.
    let enqueued = unsafe { stream.call(call, callback.cast()) };
    if enqueued.is_err() {
        // SAFETY: it was refused, so nobody else has it.
        drop(unsafe { Box::from_raw(callback) });
    }
    enqueued
}
