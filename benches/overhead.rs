//! What our layers add to a call: an all-reduce through each of them, over a library of functions
//! that do nothing.
//!
//! ```console
//! $ cargo bench --bench overhead
//! $ cargo bench --bench overhead -- --json FILE     # into a file, too
//! ```
//!
//! All checks are on: shape, capability, state, fork. The rows are measured in turns in one run;
//! each figure is a median over rounds. The safe layer runs over `AnyComm::Other`, one dynamic call
//! more than over NCCL, since its buffers need a device and this needs no GPU.

use std::{
    error::Error,
    ffi::{CStr, c_char, c_int, c_void},
    hint::black_box,
    time::{Duration, Instant},
};

use collectives::{
    AnyComm, AnyDevice, Backend, Collectives, Communicator, DType, Launch, OtherComm, RawStream,
    RecvBuf, ReduceOp, SendBuf, Watch,
    mock::{Mock, MockConfig},
    nccl::Nccl,
};
use collectives_nccl_abi::{
    Table, cudaStream_t, ncclComm_t, ncclDataType_t, ncclRedOp_t, ncclResult_t, ncclUniqueId,
};
use serde_json::json;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--json").skip(1);
    let json = arguments.next();
    let quick = std::env::args().any(|argument| argument == "--test");
    let (rounds, calls) = if quick { (3, 100) } else { (301, 10_000) };

    // SAFETY: each name is filled with a function of its signature.
    let table = unsafe { Table::fill(find) }.expect("every required function is here");
    // SAFETY: the functions keep the ABI.
    let nccl = unsafe { Nccl::from_table(table) }?;
    // SAFETY: the functions take any pointer for a communicator.
    let take = || unsafe { nccl.comm_from_raw(LIVE) };
    let family = take()?;
    let any = AnyComm::Nccl(take()?);
    let device = Mock::new(MockConfig::new()).device(0)?;
    let over_other = || {
        // SAFETY: its functions touch nothing.
        let other = AnyComm::Other(unsafe { OtherComm::new(Box::new(take()?)) });
        Communicator::from_comm(other, AnyDevice::Mock(device.clone()))
    };
    let (safe, watched) = (over_other()?, over_other()?);
    watched.watch(Watch::new().with_deadline(Duration::from_secs(60)));

    let stream = safe.new_stream()?;
    let (source, mut target) = (stream.zeros::<f32>(COUNT)?, stream.zeros::<f32>(COUNT)?);
    let send = SendBuf::new(source.as_ptr().cast(), COUNT, DType::F32);
    let recv = RecvBuf::new(target.as_ptr().cast(), COUNT, DType::F32);
    let (raw_stream, raw_comm) = (RawStream::DEFAULT, nccl_comm());

    let mut raw = || {
        let call = black_box(table.all_reduce);
        let (dtype, op) = (ncclDataType_t::FLOAT32, ncclRedOp_t::SUM);
        // SAFETY: the function takes anything.
        let result =
            unsafe { call(send.ptr, recv.ptr, COUNT, dtype, op, raw_comm, raw_stream.as_ptr()) };
        assert!(black_box(result) == ncclResult_t::SUCCESS);
    };
    let mut through_family = || {
        // SAFETY: the function behind it takes anything.
        let done = unsafe { family.all_reduce(send, recv, ReduceOp::Sum, Launch::new(raw_stream)) };
        black_box(done).expect("the arguments are right");
    };
    let mut through_any = || {
        // SAFETY: the function behind it takes anything.
        let done = unsafe { any.all_reduce(send, recv, ReduceOp::Sum, Launch::new(raw_stream)) };
        black_box(done).expect("the arguments are right");
    };
    let mut through_safe = || {
        let done = safe.on(&stream).all_reduce(&source, &mut target, ReduceOp::Sum);
        black_box(done).expect("the arguments are right");
    };

    let watched_stream = watched.new_stream()?;
    let watched_source = watched_stream.zeros::<f32>(COUNT)?;
    let mut watched_target = watched_stream.zeros::<f32>(COUNT)?;
    let mut through_watched = || {
        let on = watched.on(&watched_stream);
        let done = on.all_reduce(&watched_source, &mut watched_target, ReduceOp::Sum);
        black_box(done).expect("the arguments are right");
    };

    let mut layers: [(&str, &mut dyn FnMut()); 5] = [
        ("raw function pointer", &mut raw),
        ("nccl-family", &mut through_family),
        ("AnyComm", &mut through_any),
        ("safe layer", &mut through_safe),
        ("safe layer, watched", &mut through_watched),
    ];
    let mut times = [const { Vec::new() }; 5];
    for _ in 0..rounds {
        for ((_, layer), times) in layers.iter_mut().zip(&mut times) {
            let start = Instant::now();
            (0..calls).for_each(|_| layer());
            times.push(start.elapsed().as_nanos() as f64 / f64::from(calls));
        }
    }
    let medians = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    });
    println!("| layer | ns per call | added |");
    println!("|---|---:|---:|");
    for ((name, _), median) in layers.iter().zip(medians) {
        println!("| {name} | {median:.1} | {:.1} |", median - medians[0]);
    }
    if let Some(path) = json {
        let layers = layers.iter().zip(medians);
        let layers = layers.map(|((name, _), ns)| json!({ "name": name, "ns": tenths(ns) }));
        let layers: Vec<_> = layers.collect();
        let report = json!({ "rounds": rounds, "calls": calls, "layers": layers });
        std::fs::write(&path, format!("{report:#}\n"))
            .map_err(|error| format!("--json {path}: {error}"))?;
    }
    Ok(())
}

/// Nothing beyond is the same twice.
fn tenths(ns: f64) -> f64 {
    (ns * 10.0).round() / 10.0
}

const COUNT: usize = 2;
const LIVE: *mut c_void = std::ptr::without_provenance_mut(0x1000);

fn nccl_comm() -> ncclComm_t {
    // The functions below never look at it.
    ncclComm_t(LIVE)
}

fn find(name: &CStr) -> *const c_void {
    match name.to_bytes() {
        b"ncclGetVersion" => version as *const c_void,
        b"ncclGetErrorString" => error_string as *const c_void,
        b"ncclGetUniqueId" => unique_id as *const c_void,
        b"ncclCommInitRank" => init_rank as *const c_void,
        b"ncclCommDestroy" => destroy as *const c_void,
        b"ncclCommCount" => count as *const c_void,
        b"ncclCommUserRank" | b"ncclCommCuDevice" => zero as *const c_void,
        b"ncclAllReduce" => all_reduce as *const c_void,
        b"ncclReduceScatter" => all_reduce as *const c_void,
        b"ncclAllGather" => all_gather as *const c_void,
        b"ncclBroadcast" => broadcast as *const c_void,
        b"ncclReduce" => reduce as *const c_void,
        b"ncclSend" => send as *const c_void,
        b"ncclRecv" => receive as *const c_void,
        b"ncclGroupStart" | b"ncclGroupEnd" => nothing as *const c_void,
        _ => std::ptr::null(),
    }
}

unsafe extern "C" fn version(version: *mut c_int) -> ncclResult_t {
    // SAFETY: the caller gives room for one.
    unsafe { *version = 22809 };
    ncclResult_t::SUCCESS
}

unsafe extern "C" fn error_string(_: ncclResult_t) -> *const c_char {
    c"no error".as_ptr()
}

unsafe extern "C" fn unique_id(_: *mut ncclUniqueId) -> ncclResult_t {
    ncclResult_t::SUCCESS
}

unsafe extern "C" fn init_rank(
    _: *mut ncclComm_t,
    _: c_int,
    _: ncclUniqueId,
    _: c_int,
) -> ncclResult_t {
    ncclResult_t::SUCCESS
}

unsafe extern "C" fn destroy(_: ncclComm_t) -> ncclResult_t {
    ncclResult_t::SUCCESS
}

unsafe extern "C" fn count(_: ncclComm_t, count: *mut c_int) -> ncclResult_t {
    // SAFETY: the caller gives room for one.
    unsafe { *count = 2 };
    ncclResult_t::SUCCESS
}

unsafe extern "C" fn zero(_: ncclComm_t, value: *mut c_int) -> ncclResult_t {
    // SAFETY: the caller gives room for one.
    unsafe { *value = 0 };
    ncclResult_t::SUCCESS
}

unsafe extern "C" fn all_reduce(
    _: *const c_void,
    _: *mut c_void,
    _: usize,
    _: ncclDataType_t,
    _: ncclRedOp_t,
    _: ncclComm_t,
    _: cudaStream_t,
) -> ncclResult_t {
    ncclResult_t::SUCCESS
}

unsafe extern "C" fn all_gather(
    _: *const c_void,
    _: *mut c_void,
    _: usize,
    _: ncclDataType_t,
    _: ncclComm_t,
    _: cudaStream_t,
) -> ncclResult_t {
    ncclResult_t::SUCCESS
}

unsafe extern "C" fn broadcast(
    _: *const c_void,
    _: *mut c_void,
    _: usize,
    _: ncclDataType_t,
    _: c_int,
    _: ncclComm_t,
    _: cudaStream_t,
) -> ncclResult_t {
    ncclResult_t::SUCCESS
}

unsafe extern "C" fn reduce(
    _: *const c_void,
    _: *mut c_void,
    _: usize,
    _: ncclDataType_t,
    _: ncclRedOp_t,
    _: c_int,
    _: ncclComm_t,
    _: cudaStream_t,
) -> ncclResult_t {
    ncclResult_t::SUCCESS
}

unsafe extern "C" fn send(
    _: *const c_void,
    _: usize,
    _: ncclDataType_t,
    _: c_int,
    _: ncclComm_t,
    _: cudaStream_t,
) -> ncclResult_t {
    ncclResult_t::SUCCESS
}

unsafe extern "C" fn receive(
    _: *mut c_void,
    _: usize,
    _: ncclDataType_t,
    _: c_int,
    _: ncclComm_t,
    _: cudaStream_t,
) -> ncclResult_t {
    ncclResult_t::SUCCESS
}

unsafe extern "C" fn nothing() -> ncclResult_t {
    ncclResult_t::SUCCESS
}
