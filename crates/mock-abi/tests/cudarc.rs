//! cudarc, unmodified, on the library: its driver layer and its NCCL module.
//!
//! The tests run in a second process, in which the loader finds the library as `libcuda.so.1` and
//! `libnccl.so`.

#![expect(
    clippy::multiple_unsafe_ops_per_block,
    clippy::undocumented_unsafe_blocks,
    reason = "series of calls on handles that live to the end of the test"
)]

mod common;

use std::{
    ffi::{CStr, c_void},
    ptr,
    sync::{Arc, Barrier, mpsc},
    thread,
    time::Duration,
};

use cudarc::{
    driver::{
        CudaContext, CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DriverError, result,
        sys::{self, CUresult, CUstreamCaptureMode as Mode, CUstreamCaptureStatus as Status},
    },
    nccl::{
        Comm, Id, ReduceOp, result as nccl_result,
        sys::{self as nccl, ncclDataType_t, ncclResult_t},
    },
};
use libtest_mimic::{Arguments, Trial};

fn main() {
    let mut arguments = Arguments::from_args();
    // Captures in global mode forbid what other threads do, and so other tests.
    arguments.test_threads = Some(1);
    common::run_on_the_mock();
    macro_rules! trials {
        ($($test:ident)*) => {
            vec![$(Trial::test(stringify!($test), || {
                $test();
                Ok(())
            })),*]
        };
    }
    let trials = trials! {
        devices_say_what_they_are
        copies_go_there_and_back
        pageable_memory_may_be_used_again_at_once
        pinned_and_managed_memory_is_memory
        streams_wait_for_events
        events_measure_time
        host_functions_come_in_turn
        the_legacy_stream_and_blocking_streams_take_turns
        default_streams_are_per_thread
        captures_become_graphs_in_all_modes
        a_capture_owns_what_it_allocates
        unsafe_calls_break_captures_by_mode
        captures_are_told_what_is_wrong
        memory_is_counted_pooled_and_told_apart
        contexts_are_a_stack
        codes_have_names
        functions_are_found_by_name
        what_is_not_there_says_so
        every_collective_of_the_nccl_module
        groups_and_captured_collectives
        a_graph_that_outlives_its_communicator_is_told
        one_thread_drives_all_ranks
    };
    libtest_mimic::run(&arguments, trials).exit()
}

fn stream(device: usize) -> Arc<CudaStream> {
    let context = CudaContext::new(device).expect("the mock has four devices");
    context.new_stream().expect("it has as many streams as one likes")
}

fn code(result: Result<impl Sized, DriverError>) -> CUresult {
    result.err().map_or(CUresult::CUDA_SUCCESS, |error| error.0)
}

fn devices_say_what_they_are() {
    assert_eq!(CudaContext::device_count().unwrap(), 4);
    let context = CudaContext::new(1).unwrap();
    assert_eq!(context.name().unwrap(), "mock device 1");
    assert_eq!(context.compute_capability().unwrap(), (9, 0));
    assert_eq!(context.total_mem().unwrap(), 16 << 30);
    assert_ne!(context.uuid().unwrap().bytes, CudaContext::new(0).unwrap().uuid().unwrap().bytes);
    assert_eq!(code(CudaContext::new(4)), CUresult::CUDA_ERROR_INVALID_DEVICE);
}

fn copies_go_there_and_back() {
    let stream = stream(0);
    for length in [1, 1000, 1 << 20] {
        let host: Vec<u32> = (0..length).collect();
        let sent = stream.clone_htod(&host).unwrap();
        let mut copy = stream.alloc_zeros::<u32>(length as usize).unwrap();
        assert_eq!(stream.clone_dtoh(&copy).unwrap(), vec![0; length as usize]);
        stream.memcpy_dtod(&sent, &mut copy).unwrap();
        assert_eq!(stream.clone_dtoh(&copy).unwrap(), host);
        stream.memset_zeros(&mut copy).unwrap();
        assert_eq!(stream.clone_dtoh(&copy).unwrap(), vec![0; length as usize]);
    }
    // To another device, which cudarc does with `cuMemcpyPeerAsync`.
    let other = self::stream(2);
    let sent = stream.clone_htod(&[7_u8; 100]).unwrap();
    let there = other.clone_dtod(&sent).unwrap();
    assert_eq!(other.clone_dtoh(&there).unwrap(), [7; 100]);
}

/// A function that holds up its stream until it is told to return.
struct Gate(mpsc::Receiver<()>);

impl Gate {
    /// Enqueues it, and tells how to open it.
    fn close(stream: &CudaStream) -> mpsc::Sender<()> {
        unsafe extern "C" fn wait(gate: *mut c_void) {
            let gate = unsafe { Box::from_raw(gate.cast::<Gate>()) };
            // Open, or gone with a test that failed.
            let _ = gate.0.recv();
        }
        let (open, gate) = mpsc::channel();
        let gate = Box::into_raw(Box::new(Self(gate)));
        let stream = stream.cu_stream();
        unsafe { result::stream::launch_host_function(stream, wait, gate.cast()) }.unwrap();
        open
    }
}

fn pageable_memory_may_be_used_again_at_once() {
    let stream = stream(0);
    let mut there = stream.alloc_zeros::<u8>(5).unwrap();
    let gate = Gate::close(&stream);
    let mut host = vec![1_u8; 5];
    stream.memcpy_htod(&host, &mut there).unwrap();
    host.fill(2);
    gate.send(()).unwrap();
    assert_eq!(stream.clone_dtoh(&there).unwrap(), [1; 5]);
}

fn pinned_and_managed_memory_is_memory() {
    let stream = stream(3);
    let context = stream.context();
    let mut pinned = unsafe { context.alloc_pinned::<u16>(10) }.unwrap();
    pinned.as_mut_slice().unwrap().copy_from_slice(&[3; 10]);
    let there = stream.clone_htod(&pinned).unwrap();
    assert_eq!(stream.clone_dtoh(&there).unwrap(), [3; 10]);
    let mut managed = unsafe { context.alloc_unified::<u16>(10, true) }.unwrap();
    stream.memcpy_dtod(&there, &mut managed).unwrap();
    stream.synchronize().unwrap();
    assert_eq!(managed.as_slice().unwrap(), [3; 10]);
}

fn streams_wait_for_events() {
    let (first, second) = (stream(0), stream(0));
    let gate = Gate::close(&first);
    let event = first.record_event(None).unwrap();
    second.wait(&event).unwrap();
    let done = second.record_event(None).unwrap();
    assert!(!event.is_complete() && !done.is_complete());
    assert_eq!(unsafe { sys::cuStreamQuery(second.cu_stream()) }, CUresult::CUDA_ERROR_NOT_READY);
    gate.send(()).unwrap();
    done.synchronize().unwrap();
    assert!(event.is_complete() && done.is_complete());
    second.synchronize().unwrap();
    assert_eq!(unsafe { sys::cuStreamQuery(second.cu_stream()) }, CUresult::CUDA_SUCCESS);
}

fn events_measure_time() {
    let stream = stream(0);
    let timed = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
    let start = stream.record_event(timed).unwrap();
    let gate = Gate::close(&stream);
    let end = stream.record_event(timed).unwrap();
    start.synchronize().unwrap();
    let elapsed = |start, end| {
        let mut milliseconds = 0.0;
        let code = unsafe { sys::cuEventElapsedTime_v2(&mut milliseconds, start, end) };
        (code, milliseconds)
    };
    let early = elapsed(start.cu_event(), end.cu_event()).0;
    assert_eq!(early, CUresult::CUDA_ERROR_NOT_READY);
    gate.send(()).unwrap();
    assert!(start.elapsed_ms(&end).unwrap() > 0.0);
    let (code, backwards) = elapsed(end.cu_event(), start.cu_event());
    assert!(code == CUresult::CUDA_SUCCESS && backwards < 0.0);
    let untimed = stream.record_event(None).unwrap();
    let code = elapsed(start.cu_event(), untimed.cu_event()).0;
    assert_eq!(code, CUresult::CUDA_ERROR_INVALID_HANDLE);
}

fn host_functions_come_in_turn() {
    unsafe extern "C" fn push(list: *mut c_void) {
        let list = unsafe { &mut *list.cast::<Vec<usize>>() };
        list.push(list.len());
    }
    let stream = stream(0);
    let mut list: Vec<usize> = Vec::new();
    for _ in 0..10 {
        let list = ptr::from_mut(&mut list).cast();
        unsafe { result::stream::launch_host_function(stream.cu_stream(), push, list) }.unwrap();
    }
    stream.synchronize().unwrap();
    assert_eq!(list, (0..10).collect::<Vec<_>>());
}

fn the_legacy_stream_and_blocking_streams_take_turns() {
    let context = CudaContext::new(1).unwrap();
    context.bind_to_thread().unwrap();
    let legacy = ptr::null_mut();
    let blocking = result::stream::create(result::stream::StreamKind::Default).unwrap();
    let apart = context.new_stream().unwrap();
    let mut bytes = unsafe { apart.alloc::<u8>(4) }.unwrap();
    let address = bytes.device_ptr_mut(&apart).0;
    context.synchronize().unwrap();
    unsafe extern "C" fn wait(gate: *mut c_void) {
        let _ = unsafe { Box::from_raw(gate.cast::<Gate>()) }.0.recv();
    }
    let (open, gate) = mpsc::channel();
    let gate = Box::into_raw(Box::new(Gate(gate))).cast();
    // What is on the legacy stream waits for the blocking one, and that for the legacy one.
    unsafe {
        result::stream::launch_host_function(blocking, wait, gate).unwrap();
        result::memset_d8_async(address, 1, 4, legacy).unwrap();
        result::memset_d8_async(address, 2, 2, blocking).unwrap();
    }
    let query = |stream| unsafe { sys::cuStreamQuery(stream) };
    assert_eq!(query(legacy), CUresult::CUDA_ERROR_NOT_READY);
    assert_eq!(query(apart.cu_stream()), CUresult::CUDA_SUCCESS);
    open.send(()).unwrap();
    unsafe { result::stream::synchronize(blocking) }.unwrap();
    assert_eq!(query(legacy), CUresult::CUDA_SUCCESS);
    assert_eq!(apart.clone_dtoh(&bytes).unwrap(), [2, 2, 1, 1]);
    unsafe { result::stream::destroy(blocking) }.unwrap();
}

fn default_streams_are_per_thread() {
    let context = CudaContext::new(0).unwrap();
    let own = context.per_thread_stream();
    let gate = Gate::close(&own);
    let other = Arc::clone(&context);
    let there = thread::spawn(move || {
        other.bind_to_thread().unwrap();
        other.per_thread_stream().synchronize()
    });
    there.join().unwrap().unwrap();
    let own = own.cu_stream();
    assert_eq!(unsafe { sys::cuStreamQuery(own) }, CUresult::CUDA_ERROR_NOT_READY);
    gate.send(()).unwrap();
    unsafe { result::stream::synchronize(own) }.unwrap();
    // 1 is the legacy stream, as 0 is.
    let legacy = ptr::without_provenance_mut(1);
    unsafe { result::stream::synchronize(legacy) }.unwrap();
    let wrong = ptr::without_provenance_mut(3);
    let refused = code(unsafe { result::stream::synchronize(wrong) });
    assert_eq!(refused, CUresult::CUDA_ERROR_INVALID_HANDLE);
}

const GLOBAL: Mode = Mode::CU_STREAM_CAPTURE_MODE_GLOBAL;
const THREAD_LOCAL: Mode = Mode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
const RELAXED: Mode = Mode::CU_STREAM_CAPTURE_MODE_RELAXED;

fn captures_become_graphs_in_all_modes() {
    let context = CudaContext::new(0).unwrap();
    // A capture cannot wait for what was recorded outside.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().unwrap();
    for mode in [GLOBAL, THREAD_LOCAL, RELAXED] {
        let mut values = stream.clone_htod(&[5_u32; 4]).unwrap();
        stream.synchronize().unwrap();
        assert_eq!(stream.capture_status().unwrap(), Status::CU_STREAM_CAPTURE_STATUS_NONE);
        stream.begin_capture(mode).unwrap();
        assert_eq!(stream.capture_status().unwrap(), Status::CU_STREAM_CAPTURE_STATUS_ACTIVE);
        stream.memset_zeros(&mut values).unwrap();
        let flags = sys::CUgraphInstantiate_flags(0);
        let graph = stream.end_capture(flags).unwrap().expect("something was captured");
        assert_eq!(stream.clone_dtoh(&values).unwrap(), [5; 4], "nothing ran");
        graph.upload().unwrap();
        for _ in 0..2 {
            stream.memcpy_htod(&[6; 4], &mut values).unwrap();
            graph.launch().unwrap();
            assert_eq!(stream.clone_dtoh(&values).unwrap(), [0; 4]);
        }
    }
    let both = sys::CUgraphInstantiate_flags(1 | 4);
    stream.begin_capture(THREAD_LOCAL).unwrap();
    let refused = code(stream.end_capture(both));
    assert_eq!(refused, CUresult::CUDA_ERROR_INVALID_VALUE);
}

fn a_capture_owns_what_it_allocates() {
    let context = CudaContext::new(0).unwrap();
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().unwrap();
    let before = context.mem_get_info().unwrap();
    let mut out = stream.alloc_zeros::<u32>(4).unwrap();
    stream.begin_capture(THREAD_LOCAL).unwrap();
    let inner = stream.alloc_zeros::<u32>(4).unwrap();
    stream.memcpy_dtod(&inner, &mut out).unwrap();
    drop(inner);
    let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0)).unwrap().unwrap();
    stream.memcpy_htod(&[1; 4], &mut out).unwrap();
    graph.launch().unwrap();
    assert_eq!(stream.clone_dtoh(&out).unwrap(), [0; 4]);
    drop((graph, out));
    stream.synchronize().unwrap();
    assert_eq!(context.mem_get_info().unwrap(), before);
}

fn unsafe_calls_break_captures_by_mode() {
    let context = CudaContext::new(0).unwrap();
    let stream = context.new_stream().unwrap();
    let allocate = || {
        let memory = unsafe { result::malloc_sync(8) };
        memory.map(|memory| unsafe { result::free_sync(memory) }.unwrap())
    };
    let elsewhere = |act: &(dyn Fn() -> Result<(), DriverError> + Sync)| {
        thread::scope(|scope| {
            let act = || {
                context.bind_to_thread().unwrap();
                act()
            };
            scope.spawn(act).join().unwrap()
        })
    };
    let unsupported = CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    let fine = CUresult::CUDA_SUCCESS;
    for (mode, here, there) in [
        (GLOBAL, unsupported, unsupported),
        (THREAD_LOCAL, unsupported, fine),
        (RELAXED, fine, fine),
    ] {
        for (act_here, want) in [(true, here), (false, there)] {
            stream.begin_capture(mode).unwrap();
            let got = if act_here { code(allocate()) } else { code(elsewhere(&allocate)) };
            assert_eq!(got, want, "{mode:?}, on the capturing thread: {act_here}");
            let status = stream.capture_status().unwrap();
            let ended = code(stream.end_capture(sys::CUgraphInstantiate_flags(0)));
            if want == fine {
                assert_eq!(status, Status::CU_STREAM_CAPTURE_STATUS_ACTIVE);
                assert_eq!(ended, fine);
            } else {
                assert_eq!(status, Status::CU_STREAM_CAPTURE_STATUS_INVALIDATED);
                assert_eq!(ended, CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
            }
            assert_eq!(stream.capture_status().unwrap(), Status::CU_STREAM_CAPTURE_STATUS_NONE);
        }
    }
    // A thread can change how captures restrict it.
    stream.begin_capture(GLOBAL).unwrap();
    let mut mode = RELAXED;
    assert_eq!(unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) }, fine);
    assert_eq!(mode, GLOBAL);
    assert_eq!(code(allocate()), fine);
    assert_eq!(unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) }, fine);
    // To ask a stream that captures breaks the capture.
    let asked = unsafe { sys::cuStreamQuery(stream.cu_stream()) };
    assert_eq!(asked, unsupported);
    let ended = code(stream.end_capture(sys::CUgraphInstantiate_flags(0)));
    assert_eq!(ended, CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
}

fn captures_are_told_what_is_wrong() {
    let context = CudaContext::new(0).unwrap();
    let [origin, other] = [(); 2].map(|()| context.new_stream().unwrap());
    let end = |stream: &Arc<CudaStream>| code(stream.end_capture(sys::CUgraphInstantiate_flags(0)));
    assert_eq!(end(&origin), CUresult::CUDA_ERROR_ILLEGAL_STATE);
    let legacy = code(context.default_stream().begin_capture(RELAXED));
    assert_eq!(legacy, CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);

    let outside = other.record_event(None).unwrap();
    origin.begin_capture(RELAXED).unwrap();
    assert_eq!(code(origin.begin_capture(RELAXED)), CUresult::CUDA_ERROR_ILLEGAL_STATE);
    assert_eq!(code(origin.wait(&outside)), CUresult::CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
    assert_eq!(end(&origin), CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);

    origin.begin_capture(RELAXED).unwrap();
    let inside = origin.record_event(None).unwrap();
    assert_eq!(code(inside.synchronize()), CUresult::CUDA_ERROR_CAPTURED_EVENT);
    assert_eq!(end(&origin), CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);

    origin.begin_capture(RELAXED).unwrap();
    let inside = origin.record_event(None).unwrap();
    other.wait(&inside).unwrap();
    assert_eq!(other.capture_status().unwrap(), Status::CU_STREAM_CAPTURE_STATUS_ACTIVE);
    assert_eq!(end(&other), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNMATCHED);
    assert_eq!(end(&origin), CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);

    origin.begin_capture(THREAD_LOCAL).unwrap();
    let wrong = thread::scope(|scope| {
        let end = || {
            context.bind_to_thread().unwrap();
            end(&origin)
        };
        scope.spawn(end).join().unwrap()
    });
    assert_eq!(wrong, CUresult::CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
    assert_eq!(end(&origin), CUresult::CUDA_ERROR_ILLEGAL_STATE, "it has ended");

    // While a blocking stream captures, nothing may go to the legacy one.
    let blocking = result::stream::create(result::stream::StreamKind::Default).unwrap();
    let refused = unsafe {
        result::stream::begin_capture(blocking, RELAXED).unwrap();
        code(result::event::record(outside.cu_event(), ptr::null_mut()))
    };
    assert_eq!(refused, CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
    let ended = code(unsafe { result::stream::end_capture(blocking) });
    assert_eq!(ended, CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    unsafe { result::stream::destroy(blocking) }.unwrap();
}

fn memory_is_counted_pooled_and_told_apart() {
    let context = CudaContext::new(2).unwrap();
    context.bind_to_thread().unwrap();
    let attribute = |which, address| {
        let mut value = [0_u8; 8];
        let asked =
            unsafe { sys::cuPointerGetAttribute(value.as_mut_ptr().cast(), which, address) };
        (asked == CUresult::CUDA_SUCCESS).then(|| u64::from_ne_bytes(value))
    };
    use sys::CUpointer_attribute as Attribute;
    let memory = unsafe { result::malloc_sync(1000) }.unwrap();
    let inner = memory + 999;
    assert_eq!(attribute(Attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, inner), Some(2));
    assert_eq!(attribute(Attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE, inner), Some(2));
    assert_eq!(attribute(Attribute::CU_POINTER_ATTRIBUTE_RANGE_START_ADDR, inner), Some(memory));
    let pageable = ptr::from_ref(&memory).addr() as u64;
    assert_eq!(attribute(Attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE, pageable), None);
    let refused = unsafe { sys::cuMemcpyDtoD_v2(memory, pageable, 8) };
    assert_eq!(refused, CUresult::CUDA_ERROR_INVALID_VALUE);
    let refused = unsafe { sys::cuMemcpyDtoD_v2(memory + 996, memory, 8) };
    assert_eq!(refused, CUresult::CUDA_ERROR_INVALID_VALUE, "past the end");
    unsafe { result::free_sync(memory) }.unwrap();
    assert_eq!(code(unsafe { result::free_sync(memory) }), CUresult::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(code(unsafe { result::malloc_sync(0) }), CUresult::CUDA_ERROR_INVALID_VALUE);
    let refused = code(unsafe { result::malloc_sync(1 << 50) });
    assert_eq!(refused, CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    let mut pool = ptr::null_mut();
    assert_eq!(unsafe { sys::cuDeviceGetDefaultMemPool(&mut pool, 2) }, CUresult::CUDA_SUCCESS);
    let mut memory = 0;
    let stream = context.new_stream().unwrap();
    let allocated =
        unsafe { sys::cuMemAllocFromPoolAsync(&mut memory, 64, pool, stream.cu_stream()) };
    assert_eq!(allocated, CUresult::CUDA_SUCCESS);
    unsafe { result::free_async(memory, stream.cu_stream()) }.unwrap();
}

fn contexts_are_a_stack() {
    let there = thread::spawn(|| {
        assert_eq!(result::ctx::get_current().unwrap(), None);
        assert_eq!(code(unsafe { result::malloc_sync(8) }), CUresult::CUDA_ERROR_INVALID_CONTEXT);
        let mut made = ptr::null_mut();
        let device = |want| {
            let mut device = -1;
            assert_eq!(unsafe { sys::cuCtxGetDevice(&mut device) }, CUresult::CUDA_SUCCESS);
            assert_eq!(device, want);
        };
        unsafe {
            let primary = result::primary_ctx::retain(1).unwrap();
            result::ctx::set_current(primary).unwrap();
            device(1);
            let parameters = ptr::null_mut();
            assert_eq!(sys::cuCtxCreate_v4(&mut made, parameters, 0, 3), CUresult::CUDA_SUCCESS);
            device(3);
            assert_eq!(sys::cuCtxPopCurrent_v2(&mut made), CUresult::CUDA_SUCCESS);
            device(1);
            result::ctx::set_current(made).unwrap();
            assert_eq!(sys::cuCtxDestroy_v2(made), CUresult::CUDA_SUCCESS);
            assert_eq!(result::ctx::get_current().unwrap(), None);
            assert_eq!(
                code(result::ctx::set_current(made)),
                CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED
            );
            result::primary_ctx::release(1).unwrap();
        }
    });
    there.join().unwrap();
}

fn codes_have_names() {
    let error = DriverError(CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
    assert_eq!(error.error_name().unwrap().to_str().unwrap(), "CUDA_ERROR_STREAM_CAPTURE_UNJOINED");
    let text = error.error_string().unwrap();
    assert_eq!(text.to_str().unwrap(), "capturing stream has unjoined work");
}

fn functions_are_found_by_name() {
    result::init().unwrap();
    for (name, found) in [
        (c"cuMemAlloc", true),
        (c"cuStreamGetCaptureInfo", true),
        (c"cuInit", true),
        (c"cuNothing", false),
    ] {
        let mut function = ptr::null_mut();
        let status = &mut sys::CUdriverProcAddressQueryResult::CU_GET_PROC_ADDRESS_SUCCESS;
        let asked =
            unsafe { sys::cuGetProcAddress_v2(name.as_ptr(), &mut function, 13000, 0, status) };
        assert_eq!((asked, !function.is_null()), (CUresult::CUDA_SUCCESS, found), "{name:?}");
    }
}

fn what_is_not_there_says_so() {
    let context = CudaContext::new(0).unwrap();
    context.bind_to_thread().unwrap();
    let mut module = ptr::null_mut();
    let refused = unsafe { sys::cuModuleLoad(&mut module, c"kernels.cubin".as_ptr()) };
    assert_eq!(refused, CUresult::CUDA_ERROR_NOT_SUPPORTED);
}

/// Runs ranks as threads.
fn ranks(size: usize, body: impl Fn(Comm, &Arc<CudaStream>) + Sync) {
    let id = Id::new().unwrap();
    let ready = Barrier::new(size);
    thread::scope(|scope| {
        for rank in 0..size {
            let (body, ready) = (&body, &ready);
            scope.spawn(move || {
                let stream = stream(rank);
                let comm = Comm::from_rank(Arc::clone(&stream), rank, size, id).unwrap();
                assert_eq!((comm.rank(), comm.world_size(), comm.ordinal()), (rank, size, rank));
                body(comm, &stream);
                // Memory is given back when all are done with it.
                ready.wait();
            });
        }
    });
}

/// As many numbers as given, different for each rank.
fn numbers(rank: usize, count: usize) -> Vec<i32> {
    (0..count).map(|index| (rank * 1000 + index) as i32).collect()
}

fn every_collective_of_the_nccl_module() {
    const SIZE: usize = 4;
    const COUNT: usize = 1000;
    ranks(SIZE, |comm, stream| {
        let rank = comm.rank();
        let own = numbers(rank, COUNT);
        let sum: Vec<i32> =
            (0..COUNT).map(|at| (0..SIZE).map(|rank| numbers(rank, COUNT)[at]).sum()).collect();
        let all: Vec<i32> = (0..SIZE).flat_map(|rank| numbers(rank, COUNT)).collect();
        let send = stream.clone_htod(&own).unwrap();
        let zeros = |count| stream.alloc_zeros::<i32>(count).unwrap();
        let read = |slice: &CudaSlice<i32>| stream.clone_dtoh(slice).unwrap();

        let mut recv = zeros(COUNT);
        for (op, want) in [
            (ReduceOp::Sum, sum.clone()),
            (ReduceOp::Max, numbers(SIZE - 1, COUNT)),
            (ReduceOp::Min, numbers(0, COUNT)),
            (ReduceOp::Avg, sum.iter().map(|sum| sum / SIZE as i32).collect()),
        ] {
            comm.all_reduce(&send, &mut recv, &op).unwrap();
            assert_eq!(read(&recv), want);
        }
        let mut both = stream.clone_htod(&own).unwrap();
        comm.all_reduce_in_place(&mut both, &ReduceOp::Sum).unwrap();
        assert_eq!(read(&both), sum);

        let mut recv = zeros(COUNT);
        comm.reduce(&send, (rank == 1).then_some(&mut recv), &ReduceOp::Sum, 1).unwrap();
        assert_eq!(read(&recv), if rank == 1 { sum.clone() } else { vec![0; COUNT] });
        let mut both = stream.clone_htod(&own).unwrap();
        comm.reduce_in_place(&mut both, &ReduceOp::Sum, 2).unwrap();
        if rank == 2 {
            assert_eq!(read(&both), sum);
        }

        let mut recv = zeros(COUNT);
        comm.broadcast((rank == 3).then_some(&send), &mut recv, 3).unwrap();
        assert_eq!(read(&recv), numbers(3, COUNT));
        let mut both = stream.clone_htod(&own).unwrap();
        comm.broadcast_in_place(&mut both, 1).unwrap();
        assert_eq!(read(&both), numbers(1, COUNT));

        let mut recv = zeros(SIZE * COUNT);
        comm.all_gather(&send, &mut recv).unwrap();
        assert_eq!(read(&recv), all);

        let mut recv = zeros(COUNT / SIZE);
        comm.reduce_scatter(&send, &mut recv, &ReduceOp::Sum).unwrap();
        assert_eq!(read(&recv), sum[rank * COUNT / SIZE..][..COUNT / SIZE]);

        // Of two neighbours, one sends first.
        let (peer, mut recv) = ((rank ^ 1) as i32, zeros(COUNT));
        if rank % 2 == 0 {
            comm.send(&send, peer).unwrap();
            comm.recv(&mut recv, peer).unwrap();
        } else {
            comm.recv(&mut recv, peer).unwrap();
            comm.send(&send, peer).unwrap();
        }
        assert_eq!(read(&recv), numbers(rank ^ 1, COUNT));
        raw_collectives(rank, stream);
    });
}

/// What cudarc declares and has no safe form of.
fn raw_collectives(rank: usize, stream: &Arc<CudaStream>) {
    static ID: std::sync::OnceLock<nccl::ncclUniqueId> = std::sync::OnceLock::new();
    const SIZE: usize = 4;
    let id = *ID.get_or_init(|| nccl_result::get_uniqueid().unwrap());
    let mut comm = ptr::null_mut();
    unsafe { nccl_result::comm_init_rank(&mut comm, SIZE as i32, id, rank as i32) }.unwrap();
    let own = numbers(rank, SIZE);
    let send = stream.clone_htod(&own).unwrap();
    let mut recv = stream.alloc_zeros::<i32>(SIZE * SIZE).unwrap();
    let from = send.device_ptr(stream).0 as *const c_void;
    let to = recv.device_ptr_mut(stream).0 as *mut c_void;
    let (int, handle) = (ncclDataType_t::ncclInt32, stream.cu_stream().cast());
    let good = |result| assert_eq!(result, ncclResult_t::ncclSuccess);
    let read = |count: usize| {
        let mut host = vec![0_i32; count];
        unsafe { result::memcpy_dtoh_async(&mut host, to as u64, stream.cu_stream()) }.unwrap();
        host
    };
    good(unsafe { nccl::ncclAlltoAll(from, to, 1, int, comm, handle) });
    assert_eq!(read(SIZE), (0..SIZE).map(|from| numbers(from, SIZE)[rank]).collect::<Vec<_>>());
    good(unsafe { nccl::ncclGather(from, to, SIZE, int, 2, comm, handle) });
    if rank == 2 {
        let want: Vec<i32> = (0..SIZE).flat_map(|rank| numbers(rank, SIZE)).collect();
        assert_eq!(read(SIZE * SIZE), want);
    }
    good(unsafe { nccl::ncclScatter(from, to, 1, int, 3, comm, handle) });
    assert_eq!(read(1), [numbers(3, SIZE)[rank]]);
    assert_eq!(unsafe { nccl_result::comm_count(comm) }.unwrap(), SIZE as i32);
    assert_eq!(unsafe { nccl_result::comm_cu_device(comm) }.unwrap(), rank as i32);
    let mut half = ptr::null_mut();
    let color = (rank % 2) as i32;
    good(unsafe { nccl::ncclCommSplit(comm, color, rank as i32, &mut half, ptr::null_mut()) });
    assert_eq!(unsafe { nccl_result::comm_count(half) }.unwrap(), 2);
    stream.synchronize().unwrap();
    for comm in [half, comm] {
        unsafe { nccl_result::comm_destroy(comm) }.unwrap();
    }
}

fn groups_and_captured_collectives() {
    const SIZE: usize = 3;
    ranks(SIZE, |comm, stream| {
        let rank = comm.rank();
        let send = stream.clone_htod(&numbers(rank, 10)).unwrap();
        let mut recv = stream.alloc_zeros::<i32>(10).unwrap();
        let (next, last) = ((rank + 1) % SIZE, (rank + SIZE - 1) % SIZE);
        let mut group = comm.group();
        group.send(send.as_view(), next as i32).unwrap();
        group.recv(recv.as_view_mut(), last as i32).unwrap();
        drop(group);
        assert_eq!(stream.clone_dtoh(&recv).unwrap(), numbers(last, 10));

        // Handles only: cudarc's own events would come from outside the capture.
        let from = send.device_ptr(stream).0 as *const c_void;
        let to = recv.device_ptr_mut(stream).0;
        stream.synchronize().unwrap();
        let handle = stream.cu_stream();
        let raw = raw_comm(rank, SIZE);
        stream.begin_capture(THREAD_LOCAL).unwrap();
        let int = ncclDataType_t::ncclInt32;
        let sum = nccl::ncclRedOp_t::ncclSum;
        let captured = unsafe {
            nccl::ncclAllReduce(from, to as *mut c_void, 10, int, sum, raw, handle.cast())
        };
        assert_eq!(captured, ncclResult_t::ncclSuccess);
        let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0)).unwrap().unwrap();
        for _ in 0..3 {
            unsafe { result::memset_d8_async(to, 0, 40, handle) }.unwrap();
            graph.launch().unwrap();
        }
        let want: Vec<i32> =
            (0..10).map(|at| (0..SIZE).map(|rank| numbers(rank, 10)[at]).sum()).collect();
        let mut host = vec![0_i32; 10];
        unsafe { result::memcpy_dtoh_async(&mut host, to, handle) }.unwrap();
        assert_eq!(host, want);
        drop(graph);
        unsafe { nccl_result::comm_destroy(raw) }.unwrap();
    });
}

/// NCCL would wait for ever.
fn a_graph_that_outlives_its_communicator_is_told() {
    let stream = stream(0);
    let memory = stream.clone_htod(&numbers(0, 10)).unwrap();
    let at = memory.device_ptr(&stream).0;
    stream.synchronize().unwrap();
    let capture = |comm: nccl::ncclComm_t| {
        let (from, to, handle) = (at as *const c_void, at as *mut c_void, stream.cu_stream());
        let (int, sum) = (ncclDataType_t::ncclInt32, nccl::ncclRedOp_t::ncclSum);
        stream.begin_capture(THREAD_LOCAL).unwrap();
        let captured = unsafe { nccl::ncclAllReduce(from, to, 10, int, sum, comm, handle.cast()) };
        assert_eq!(captured, ncclResult_t::ncclSuccess);
        stream.end_capture(sys::CUgraphInstantiate_flags(0)).unwrap().unwrap()
    };
    type End = unsafe fn(nccl::ncclComm_t) -> ncclResult_t;
    let ends: [(&str, End); 2] =
        [("ncclCommDestroy", nccl::ncclCommDestroy), ("ncclCommFinalize", nccl::ncclCommFinalize)];
    for (name, end) in ends {
        let comm = lone_comm();
        let graph = capture(comm);
        assert_eq!(unsafe { end(comm) }, ncclResult_t::ncclInvalidUsage, "{name}");
        let text = unsafe { CStr::from_ptr(nccl::ncclGetLastError(ptr::null_mut())) };
        let text = text.to_str().unwrap();
        let want = format!("{name} : 2 captured graphs hold the communicator");
        assert!(text.contains(&want) && text.contains("stricter than NCCL"), "{text}");
        drop(graph);
        if name == "ncclCommFinalize" {
            unsafe { nccl_result::comm_abort(comm) }.unwrap();
        }
    }

    // Told, and no error: programs abort to get out.
    let comm = lone_comm();
    let graph = capture(comm);
    unsafe { nccl_result::comm_abort(comm) }.unwrap();
    let text = unsafe { CStr::from_ptr(nccl::ncclGetLastError(ptr::null_mut())) };
    assert!(text.to_str().unwrap().starts_with("ncclCommAbort : 2 captured graphs"), "{text:?}");
    drop(graph);

    // Another thread destroys it in time.
    struct Elsewhere<T>(T);
    unsafe impl<T> Send for Elsewhere<T> {}
    let comm = lone_comm();
    let graph = Elsewhere(capture(comm));
    thread::scope(|scope| {
        scope.spawn(|| {
            let graph = graph;
            thread::sleep(Duration::from_millis(50));
            drop(graph);
        });
        unsafe { nccl_result::comm_destroy(comm) }.unwrap();
    });
}

/// A communicator of one rank.
fn lone_comm() -> nccl::ncclComm_t {
    let id = nccl_result::get_uniqueid().unwrap();
    let mut comm = ptr::null_mut();
    unsafe { nccl_result::comm_init_rank(&mut comm, 1, id, 0) }.unwrap();
    comm
}

fn raw_comm(rank: usize, size: usize) -> nccl::ncclComm_t {
    static ID: std::sync::OnceLock<nccl::ncclUniqueId> = std::sync::OnceLock::new();
    let id = *ID.get_or_init(|| nccl_result::get_uniqueid().unwrap());
    let mut comm = ptr::null_mut();
    unsafe { nccl_result::comm_init_rank(&mut comm, size as i32, id, rank as i32) }.unwrap();
    comm
}

fn one_thread_drives_all_ranks() {
    let streams: Vec<_> = (0..4).map(stream).collect();
    let comms = Comm::from_devices(streams.clone()).unwrap();
    let send: Vec<_> =
        streams.iter().map(|stream| stream.clone_htod(&[1_i32; 8]).unwrap()).collect();
    let mut recv: Vec<_> =
        streams.iter().map(|stream| stream.alloc_zeros::<i32>(8).unwrap()).collect();
    nccl_result::group_start().unwrap();
    for (comm, (send, recv)) in comms.iter().zip(send.iter().zip(&mut recv)) {
        comm.all_reduce(send, recv, &ReduceOp::Sum).unwrap();
    }
    nccl_result::group_end().unwrap();
    for (stream, recv) in streams.iter().zip(&recv) {
        assert_eq!(stream.clone_dtoh(recv).unwrap(), [4; 8]);
    }
}
