//! cudarc's streams and slices in the safe layer, and raw communicators: on NCCL over the mock's C
//! ABI. `COLLECTIVES_TEST_NCCL` runs it on NCCL itself instead: `default`, or a library's path.

mod mock_abi;

use std::{
    env,
    ffi::{c_int, c_void},
    mem,
    process::ExitCode,
    ptr,
    sync::Arc,
};

use collectives::{
    AnyBackend, Backend, Buffer, Collectives, Communicator, Error, ErrorKind, JoinAllConfig,
    ReduceOp, Result, Stream, nccl::Nccl,
};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, sys};
use libtest_mimic::{Arguments, Failed, Trial};

type Case = fn(&AnyBackend) -> Result<(), Failed>;

const CASES: &[(&str, Case)] = &[
    ("a_stream_of_cudarc_carries_operations", a_stream_of_cudarc_carries_operations),
    ("a_stream_of_ours_carries_cudarc", a_stream_of_ours_carries_cudarc),
    ("a_slice_goes_in_and_out", a_slice_goes_in_and_out),
    ("a_slice_that_is_dropped_inside_is_freed", a_slice_that_is_dropped_inside_is_freed),
    ("a_buffer_is_lent_and_comes_back", a_buffer_is_lent_and_comes_back),
    ("a_captured_slice_belongs_to_the_graph", a_captured_slice_belongs_to_the_graph),
    ("what_a_graph_had_is_lent_when_it_is_gone", what_a_graph_had_is_lent_when_it_is_gone),
    ("what_was_lent_and_forgotten_is_refused", what_was_lent_and_forgotten_is_refused),
    ("a_stream_that_cudarc_captures_is_refused", a_stream_that_cudarc_captures_is_refused),
    ("another_context_is_refused", another_context_is_refused),
    ("a_raw_communicator_comes_in_and_goes_out", a_raw_communicator_comes_in_and_goes_out),
];

/// Cases that want two devices.
const FOR_TWO: &[(&str, Case)] = &[("another_device_is_refused", another_device_is_refused)];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // One of them counts the device's memory.
    arguments.test_threads = Some(1);
    let real = env::var("COLLECTIVES_TEST_NCCL").ok();
    #[cfg(target_os = "linux")]
    if real.is_none() && mock_abi::folder().is_none() {
        eprintln!("{}", mock_abi::run_again([]));
        return ExitCode::FAILURE;
    }
    let nccl = match (real, mock_abi::folder()) {
        (Some(path), _) if path == "default" => Nccl::load(),
        (Some(path), _) => Nccl::load_from(path),
        (None, Some(folder)) => Nccl::load_from(folder.join("libnccl.so.2")),
        (None, None) => {
            let trial = Trial::test("[nccl] not run: set COLLECTIVES_TEST_NCCL", || Ok(()));
            return libtest_mimic::run(&arguments, vec![trial.with_ignored_flag(true)]).exit_code();
        }
    };
    let nccl = nccl.unwrap_or_else(|error| panic!("{error}"));
    let devices = nccl.device_count().unwrap_or_else(|error| panic!("{error}"));
    let trial = |name: &str, case: Case, needs: usize| {
        let backend = AnyBackend::Nccl(nccl.clone());
        let lacks = needs > devices;
        let label = if lacks { format!("[needs {needs} devices] ") } else { String::new() };
        Trial::test(format!("{label}{name}"), move || case(&backend)).with_ignored_flag(lacks)
    };
    let mut trials: Vec<_> = CASES.iter().map(|&(name, case)| trial(name, case, 1)).collect();
    trials.extend(FOR_TWO.iter().map(|&(name, case)| trial(name, case, 2)));
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A communicator of one rank, which adds nothing: what counts here is where memory goes.
fn alone(backend: &AnyBackend) -> Result<Communicator> {
    let comm = Communicator::join_all(backend, JoinAllConfig::new([0]))?.remove(0);
    let stream = comm.new_stream()?;
    comm.on(&stream).warm_up()?;
    stream.synchronize()?;
    Ok(comm)
}

fn streams() -> Result<[Arc<CudaStream>; 2], Failed> {
    let context = CudaContext::new(0)?;
    Ok([context.new_stream()?, context.new_stream()?])
}

fn refused(what: &str, kind: ErrorKind, outcome: Result<()>) {
    let error = outcome.expect_err(what);
    assert_eq!(error.kind(), kind, "{what}: {error}");
}

/// Enough for a copy to take a while.
const MANY: usize = 1 << 20;

fn a_stream_of_cudarc_carries_operations(backend: &AnyBackend) -> Result<(), Failed> {
    let comm = alone(backend)?;
    let [theirs, _] = streams()?;
    let stream = Stream::from_cudarc(&theirs)?;
    // It is kept: this was the last of cudarc's.
    drop(theirs);
    let send = stream.upload(&[3.0_f32; 5])?;
    let mut recv = stream.zeros(5)?;
    comm.on(&stream).all_reduce(&send, &mut recv, ReduceOp::Sum)?;
    assert_eq!(recv.to_vec(&stream)?, [3.0; 5]);
    Ok(())
}

fn a_stream_of_ours_carries_cudarc(backend: &AnyBackend) -> Result<(), Failed> {
    let comm = alone(backend)?;
    let stream = comm.new_stream()?;
    let context = CudaContext::new(0)?;
    // SAFETY: the slices made on it are gone before the stream.
    let theirs = unsafe { stream.to_cudarc(&context) }?;
    assert_eq!(theirs.cu_stream().cast(), stream.as_raw().as_ptr());
    let slice = theirs.clone_htod(&[7_u8; 9])?;
    let mut buffer = Buffer::from_cudarc(slice)?;
    comm.on(&stream).all_reduce_in_place(&mut buffer, ReduceOp::Max)?;
    assert_eq!(buffer.to_vec(&stream)?, [7; 9]);
    drop(buffer);
    stream.synchronize()?;
    Ok(())
}

fn a_slice_goes_in_and_out(backend: &AnyBackend) -> Result<(), Failed> {
    let comm = alone(backend)?;
    let stream = comm.new_stream()?;
    let [one, two] = streams()?;
    for turn in 1..=3 {
        let values = vec![turn as f32; MANY];
        let from = one.clone_htod(&values)?;
        let mut slice = one.alloc_zeros::<f32>(MANY)?;
        // Written on a stream that is not the slice's own: cudarc's events have to be heeded.
        two.memcpy_dtod(&from, &mut slice)?;
        let mut buffer = Buffer::from_cudarc(slice)?;
        let mut sum = stream.zeros::<f32>(MANY)?;
        comm.on(&stream).all_reduce(&buffer, &mut sum, ReduceOp::Sum)?;
        comm.on(&stream).all_reduce_in_place(&mut buffer, ReduceOp::Max)?;
        let slice: CudaSlice<f32> = buffer.into_cudarc()?;
        // And on the way out, on a third stream.
        assert_eq!(two.clone_dtoh(&slice)?, values);
        assert_eq!(sum.to_vec(&stream)?, values);
    }
    let buffer = stream.upload(&[1_i32])?;
    refused("a buffer of ours", ErrorKind::InvalidUsage, buffer.into_cudarc().map(drop));
    Ok(())
}

fn a_slice_that_is_dropped_inside_is_freed(backend: &AnyBackend) -> Result<(), Failed> {
    let comm = alone(backend)?;
    let stream = comm.new_stream()?;
    let [theirs, _] = streams()?;
    let free = || -> Result<usize, Failed> {
        theirs.context().synchronize()?;
        Ok(theirs.context().mem_get_info()?.0)
    };
    let bytes = (1 << 22) * size_of::<f32>();
    let mut before = None;
    for _ in 0..5 {
        let slice = theirs.alloc_zeros::<f32>(1 << 22)?;
        let mut buffer = Buffer::from_cudarc(slice)?;
        comm.on(&stream).all_reduce_in_place(&mut buffer, ReduceOp::Sum)?;
        drop(buffer);
        stream.synchronize()?;
        before = before.or(Some(free()?));
    }
    // Four more have come and gone. The driver may keep a pool.
    let lost = before.unwrap_or_default().saturating_sub(free()?);
    assert!(lost < 2 * bytes, "{lost} bytes are gone");
    Ok(())
}

fn a_buffer_is_lent_and_comes_back(backend: &AnyBackend) -> Result<(), Failed> {
    let comm = alone(backend)?;
    let stream = comm.new_stream()?;
    let [one, two] = streams()?;
    let mut buffer = stream.upload(&vec![1.0_f32; MANY])?;
    for turn in 1..=3 {
        let values = vec![10.0 * turn as f32; MANY];
        let from = one.clone_htod(&values)?;
        comm.on(&stream).all_reduce_in_place(&mut buffer, ReduceOp::Sum)?;
        {
            let mut lent = buffer.lend_to_cudarc(&one)?;
            // On another stream than it was lent on: cudarc's own events order it.
            two.memcpy_dtod(&from, &mut lent.view_mut())?;
            let seen = one.clone_dtoh(&lent.view())?;
            assert_eq!(seen, values);
        }
        comm.on(&stream).all_reduce_in_place(&mut buffer, ReduceOp::Max)?;
        assert_eq!(buffer.to_vec(&stream)?, values);
    }
    Ok(())
}

fn a_captured_slice_belongs_to_the_graph(backend: &AnyBackend) -> Result<(), Failed> {
    let comm = alone(backend)?;
    let stream = comm.new_stream()?;
    let [theirs, _] = streams()?;
    let from = Buffer::from_cudarc(theirs.clone_htod(&[5.0_f32; 8])?)?;
    let mut to = stream.zeros::<f32>(8)?;
    let graph = comm.capture(|scope| scope.on(&comm).all_reduce(&from, &mut to, ReduceOp::Sum))?;
    let lent = to.lend_to_cudarc(&theirs);
    refused("lending what a graph uses", ErrorKind::InvalidUsage, lent.map(drop));
    refused("a slice of the graph's", ErrorKind::InvalidUsage, from.into_cudarc().map(drop));
    // May get the memory, if the graph did not own it.
    let _others = [theirs.clone_htod(&[-9.0_f32; 8])?, theirs.clone_htod(&[-9.0_f32; 8])?];
    graph.launch(&stream)?;
    assert_eq!(to.to_vec(&stream)?, [5.0; 8]);
    Ok(())
}

fn what_a_graph_had_is_lent_when_it_is_gone(backend: &AnyBackend) -> Result<(), Failed> {
    let comm = alone(backend)?;
    let stream = comm.new_stream()?;
    let [theirs, _] = streams()?;
    let mut buffer = stream.upload(&[1.0_f32; 5])?;
    let graph =
        comm.capture(|scope| scope.on(&comm).all_reduce_in_place(&mut buffer, ReduceOp::Sum))?;
    graph.launch(&stream)?;
    let lent = buffer.lend_to_cudarc(&theirs).map(drop);
    refused("a graph may be launched meanwhile", ErrorKind::InvalidUsage, lent);
    drop(graph);
    drop(buffer.lend_to_cudarc(&theirs)?);
    // And one that never came about.
    let failed = comm.capture(|scope| {
        scope.on(&comm).all_reduce_in_place(&mut buffer, ReduceOp::Sum)?;
        Err(Error::new(ErrorKind::Device, "no"))
    });
    refused("it failed", ErrorKind::Device, failed.map(drop));
    drop(buffer.lend_to_cudarc(&theirs)?);
    assert_eq!(buffer.to_vec(&stream)?, [1.0; 5]);
    Ok(())
}

fn what_was_lent_and_forgotten_is_refused(backend: &AnyBackend) -> Result<(), Failed> {
    let comm = alone(backend)?;
    let stream = comm.new_stream()?;
    let [theirs, _] = streams()?;
    let mut buffer = stream.upload(&[1.0_f32; 4])?;
    mem::forget(buffer.lend_to_cudarc(&theirs)?);
    let refused = |what, outcome| refused(what, ErrorKind::InvalidUsage, outcome);
    refused("a copy", buffer.to_vec(&stream).map(drop));
    refused("an operation", comm.on(&stream).all_reduce_in_place(&mut buffer, ReduceOp::Sum));
    let captured =
        comm.capture(|scope| scope.on(&comm).all_reduce_in_place(&mut buffer, ReduceOp::Sum));
    refused("a capture", captured.map(drop));
    Ok(())
}

fn a_stream_that_cudarc_captures_is_refused(backend: &AnyBackend) -> Result<(), Failed> {
    let comm = alone(backend)?;
    let [theirs, _] = streams()?;
    let stream = Stream::from_cudarc(&theirs)?;
    let mut buffer = stream.upload(&[1.0_f32])?;
    stream.synchronize()?;
    theirs.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED)?;
    let outcome = comm.on(&stream).all_reduce_in_place(&mut buffer, ReduceOp::Sum);
    refused("an operation", ErrorKind::InvalidUsage, outcome);
    refused("a wait", ErrorKind::InvalidUsage, stream.synchronize());
    let status = theirs.capture_status()?;
    assert_eq!(status, sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE);
    let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    theirs.end_capture(flags)?;
    comm.on(&stream).all_reduce_in_place(&mut buffer, ReduceOp::Sum)?;
    assert_eq!(buffer.to_vec(&stream)?, [1.0]);
    Ok(())
}

fn another_context_is_refused(_: &AnyBackend) -> Result<(), Failed> {
    let primary = CudaContext::new(0)?;
    let mut raw = ptr::null_mut();
    // SAFETY: the driver that cudarc has opened; its handle stays.
    let driver = unsafe { libloading::Library::new("libcuda.so.1") }?;
    type Create = unsafe extern "C" fn(*mut sys::CUcontext, u32, sys::CUdevice) -> c_int;
    // SAFETY: the function has this type.
    let create = unsafe { driver.get::<Create>(b"cuCtxCreate_v2\0") }?;
    // SAFETY: `raw` outlives the call.
    let code = unsafe { create(&mut raw, 0, primary.cu_device()) };
    assert_eq!(code, 0);
    // SAFETY: a context that was just created, handed over.
    let context = unsafe { CudaContext::from_raw_context(0, primary.cu_device(), raw) }?;
    let stream = context.new_stream()?;
    refused("its stream", ErrorKind::InvalidArgument, Stream::from_cudarc(&stream).map(drop));
    let slice = stream.alloc_zeros::<f32>(4)?;
    refused("its slice", ErrorKind::InvalidArgument, Buffer::from_cudarc(slice).map(drop));
    Ok(())
}

fn another_device_is_refused(backend: &AnyBackend) -> Result<(), Failed> {
    let comm = alone(backend)?;
    let stream = comm.new_stream()?;
    let mut buffer = stream.zeros::<f32>(4)?;
    let other = CudaContext::new(1)?;
    let theirs = other.new_stream()?;
    let lent = buffer.lend_to_cudarc(&theirs);
    refused("a stream of another device", ErrorKind::InvalidArgument, lent.map(drop));
    // SAFETY: refused.
    let lent = unsafe { stream.to_cudarc(&other) };
    refused("a context of another device", ErrorKind::InvalidArgument, lent.map(drop));
    let there = Stream::from_cudarc(&theirs)?;
    let outcome = comm.on(&there).all_reduce_in_place(&mut buffer, ReduceOp::Sum);
    refused("an operation there", ErrorKind::InvalidArgument, outcome);
    Ok(())
}

fn a_raw_communicator_comes_in_and_goes_out(backend: &AnyBackend) -> Result<(), Failed> {
    let path = backend.info().path.clone().expect("NCCL is a file");
    // SAFETY: the library that is open already; its handle stays.
    let library = unsafe { libloading::Library::new(path) }?;
    type InitAll = unsafe extern "C" fn(*mut *mut c_void, c_int, *const c_int) -> c_int;
    type Count = unsafe extern "C" fn(*mut c_void, *mut c_int) -> c_int;
    // SAFETY: the function has this type.
    let init = unsafe { library.get::<InitAll>(b"ncclCommInitAll\0") }?;
    // SAFETY: as above.
    let count = unsafe { library.get::<Count>(b"ncclCommCount\0") }?;
    let mut raw = ptr::null_mut();
    // SAFETY: room for one communicator, and a list of one device.
    let code = unsafe { init(&mut raw, 1, [0].as_ptr()) };
    assert_eq!(code, 0);

    // SAFETY: a live, blocking communicator of this library, handed over.
    let comm = unsafe { Communicator::from_raw(backend, raw) }?;
    assert_eq!((comm.rank(), comm.size(), comm.info().device), (0, 1, 0));
    let stream = comm.new_stream()?;
    let mut buffer = stream.upload(&[4.0_f32])?;
    comm.on(&stream).all_reduce_in_place(&mut buffer, ReduceOp::Sum)?;
    assert_eq!(buffer.to_vec(&stream)?, [4.0]);

    assert_eq!(comm.as_comm().as_raw(), raw);
    let mut ranks = 0;
    // SAFETY: the communicator is alive; `ranks` outlives the call.
    let code = unsafe { count(comm.as_comm().as_raw(), &mut ranks) };
    assert_eq!((code, ranks), (0, 1));
    comm.finalize()?;
    Ok(())
}
