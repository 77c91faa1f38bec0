//! The calls that an RCCL backend makes around RCCL, and their CUDA runtime twins, by symbol as such a
//! backend finds them: `hip*` through the handle of `librccl.so.1`.

#![expect(
    clippy::multiple_unsafe_ops_per_block,
    clippy::undocumented_unsafe_blocks,
    reason = "series of calls on handles that live to the end of the test"
)]

mod common;

use std::{
    env,
    ffi::{CStr, c_char, c_float, c_int, c_uint, c_void},
    process::Command,
    ptr,
    sync::Barrier,
    thread,
};

use collectives_nccl_abi::{ncclComm_t, ncclUniqueId};
use libloading::Library;
use libtest_mimic::{Arguments, Trial};

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    common::run_on_the_mock();
    if env::var_os(COUNT).is_some() {
        let mut count = -1;
        let code = unsafe { (api("hip").device_count)(&mut count) };
        println!("code {code}, {count} devices");
        return;
    }
    let mut trials = vec![
        trial("devices_are_amds", devices_are_amds),
        trial("lists_of_devices_are_hips", lists_of_devices_are_hips),
        trial("pointers_are_told_apart", pointers_are_told_apart),
        trial("properties_are_those_of_their_version", properties_are_those_of_their_version),
        trial("no_context_is_wanted", no_context_is_wanted),
    ];
    for prefix in ["hip", "cuda"] {
        let both = |name: &str, test: fn(&'static str)| {
            trial(&format!("[{prefix}] {name}"), move || test(prefix))
        };
        trials.extend([
            both("codes_are_those_of_the_vendor", codes_are_those_of_the_vendor),
            both("copies_streams_and_events", copies_streams_and_events),
            both("ranks_reduce_plainly_and_in_a_graph", ranks_reduce_plainly_and_in_a_graph),
        ]);
    }
    libtest_mimic::run(&arguments, trials).exit();
}

fn trial(name: &str, test: impl FnOnce() + Send + 'static) -> Trial {
    Trial::test(name, move || {
        test();
        Ok(())
    })
}

/// The libraries, as a backend opens them.
fn library(prefix: &str) -> &'static Library {
    static OPEN: [std::sync::OnceLock<Library>; 2] = [const { std::sync::OnceLock::new() }; 2];
    let (place, name) = match prefix {
        "hip" => (0, "librccl.so.1"),
        _ => (1, "libcudart.so.13"),
    };
    OPEN[place].get_or_init(|| unsafe { Library::new(name) }.expect("it was linked there"))
}

fn symbol<F: Copy>(prefix: &str, name: &str) -> F {
    let found = unsafe { library(prefix).get::<F>(name.as_bytes()) };
    *found.unwrap_or_else(|error| panic!("{name}: {error}"))
}

macro_rules! api {
    ($($field:ident = $name:literal | $other:literal: ($($arg:ty),*);)*) => {
        /// What both runtimes have.
        #[derive(Clone, Copy)]
        struct Api {
            $($field: unsafe extern "C" fn($($arg),*) -> c_int,)*
        }

        fn api(prefix: &str) -> Api {
            Api { $($field: {
                let name = if prefix == "hip" { $other } else { $name };
                symbol(prefix, &format!("{prefix}{name}"))
            },)* }
        }
    };
}

api! {
    device_count = "GetDeviceCount" | "GetDeviceCount": (*mut c_int);
    set_device = "SetDevice" | "SetDevice": (c_int);
    get_device = "GetDevice" | "GetDevice": (*mut c_int);
    device_synchronize = "DeviceSynchronize" | "DeviceSynchronize": ();
    pci = "DeviceGetPCIBusId" | "DeviceGetPCIBusId": (*mut c_char, c_int, c_int);
    by_pci = "DeviceGetByPCIBusId" | "DeviceGetByPCIBusId": (*mut c_int, *const c_char);
    last_error = "GetLastError" | "GetLastError": ();
    peek_error = "PeekAtLastError" | "PeekAtLastError": ();
    malloc = "Malloc" | "Malloc": (*mut *mut c_void, usize);
    free = "Free" | "Free": (*mut c_void);
    host_malloc = "HostAlloc" | "HostMalloc": (*mut *mut c_void, usize, c_uint);
    host_free = "FreeHost" | "HostFree": (*mut c_void);
    mem_info = "MemGetInfo" | "MemGetInfo": (*mut usize, *mut usize);
    memcpy = "Memcpy" | "Memcpy": (*mut c_void, *const c_void, usize, c_uint);
    memcpy_async =
        "MemcpyAsync" | "MemcpyAsync": (*mut c_void, *const c_void, usize, c_uint, *mut c_void);
    memset_async = "MemsetAsync" | "MemsetAsync": (*mut c_void, c_int, usize, *mut c_void);
    stream_create = "StreamCreateWithFlags" | "StreamCreateWithFlags": (*mut *mut c_void, c_uint);
    stream_destroy = "StreamDestroy" | "StreamDestroy": (*mut c_void);
    stream_synchronize = "StreamSynchronize" | "StreamSynchronize": (*mut c_void);
    stream_wait = "StreamWaitEvent" | "StreamWaitEvent": (*mut c_void, *mut c_void, c_uint);
    stream_device = "StreamGetDevice" | "StreamGetDevice": (*mut c_void, *mut c_int);
    event_create = "EventCreateWithFlags" | "EventCreateWithFlags": (*mut *mut c_void, c_uint);
    event_record = "EventRecord" | "EventRecord": (*mut c_void, *mut c_void);
    event_query = "EventQuery" | "EventQuery": (*mut c_void);
    event_synchronize = "EventSynchronize" | "EventSynchronize": (*mut c_void);
    event_elapsed = "EventElapsedTime" | "EventElapsedTime": (*mut c_float, *mut c_void, *mut c_void);
    event_destroy = "EventDestroy" | "EventDestroy": (*mut c_void);
    begin_capture = "StreamBeginCapture" | "StreamBeginCapture": (*mut c_void, c_uint);
    end_capture = "StreamEndCapture" | "StreamEndCapture": (*mut c_void, *mut *mut c_void);
    is_capturing = "StreamIsCapturing" | "StreamIsCapturing": (*mut c_void, *mut c_uint);
    exchange_mode =
        "ThreadExchangeStreamCaptureMode" | "ThreadExchangeStreamCaptureMode": (*mut c_uint);
    instantiate =
        "GraphInstantiateWithFlags" | "GraphInstantiateWithFlags":
        (*mut *mut c_void, *mut c_void, u64);
    launch = "GraphLaunch" | "GraphLaunch": (*mut c_void, *mut c_void);
    exec_destroy = "GraphExecDestroy" | "GraphExecDestroy": (*mut c_void);
    graph_destroy = "GraphDestroy" | "GraphDestroy": (*mut c_void);
}

#[track_caller]
fn good(code: c_int) {
    assert_eq!(code, 0);
}

fn devices_are_amds() {
    let api = api("hip");
    let get: unsafe extern "C" fn(*mut c_int, c_uint, c_int) -> c_int =
        symbol("hip", "hipDeviceGetAttribute");
    let attribute = |which| {
        let mut value = -1;
        good(unsafe { get(&mut value, which, 1) });
        value
    };
    // Wave, capability, bus; not CUDA's numbers.
    assert_eq!([87, 23, 61, 67].map(attribute), [64, 9, 5, 17]);
    let mut version = 0;
    let get_version: unsafe extern "C" fn(*mut c_int) -> c_int =
        symbol("hip", "hipRuntimeGetVersion");
    good(unsafe { get_version(&mut version) });
    assert_eq!(version / 10_000_000, 7);
    let mut name = [0 as c_char; 64];
    let get_name: unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int =
        symbol("hip", "hipDeviceGetName");
    good(unsafe { get_name(name.as_mut_ptr(), 64, 3) });
    assert_eq!(unsafe { CStr::from_ptr(name.as_ptr()) }, c"mock device 3");
    good(unsafe { (api.pci)(name.as_mut_ptr(), 64, 2) });
    let mut found = -1;
    good(unsafe { (api.by_pci)(&mut found, name.as_ptr()) });
    assert_eq!(found, 2);
    // The layout that goes with the name, and nothing behind it.
    let mut properties = [0xff_u8; 1480];
    let fill: unsafe extern "C" fn(*mut c_void, c_int) -> c_int =
        symbol("hip", "hipGetDevicePropertiesR0600");
    good(unsafe { fill(properties.as_mut_ptr().cast(), 1) });
    assert_eq!(properties[584..588], 17_i32.to_ne_bytes());
    assert_eq!(&properties[1160..1167], b"gfx950\0");
    assert_eq!(properties[1472..], [0xff; 8]);
}

/// What the vendor's own runtime answers, seen on emulated devices.
fn lists_of_devices_are_hips() {
    for (variables, want) in [
        (&[("HIP_VISIBLE_DEVICES", "")][..], "code 100, 0 devices"),
        (&[("CUDA_VISIBLE_DEVICES", "")], "code 100, 0 devices"),
        (&[("ROCR_VISIBLE_DEVICES", "")], "code 100, 0 devices"),
        (&[("HIP_VISIBLE_DEVICES", "-1")], "code 100, 0 devices"),
        (&[("HIP_VISIBLE_DEVICES", "0,0")], "code 0, 1 devices"),
        (&[("HIP_VISIBLE_DEVICES", "1,7,0")], "code 0, 1 devices"),
        (&[("HIP_VISIBLE_DEVICES", "0"), ("CUDA_VISIBLE_DEVICES", "0,1")], "code 0, 1 devices"),
        (&[("ROCR_VISIBLE_DEVICES", "1,2"), ("HIP_VISIBLE_DEVICES", "0,1,2")], "code 0, 2 devices"),
    ] {
        let mut child = Command::new(env::current_exe().unwrap());
        let output = child.env(COUNT, "1").envs(variables.iter().copied()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(text.trim(), want, "{variables:?}");
    }
}

/// Tells this program to count devices.
const COUNT: &str = "COLLECTIVES_TEST_COUNT_DEVICES";

/// `hipPointerAttribute_t`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
struct Attributes {
    kind: c_int,
    device: c_int,
    device_pointer: usize,
    host_pointer: usize,
    is_managed: c_int,
    flags: c_uint,
}

fn pointers_are_told_apart() {
    let api = api("hip");
    let get: unsafe extern "C" fn(*mut Attributes, *const c_void) -> c_int =
        symbol("hip", "hipPointerGetAttributes");
    let ask = |ptr: *const c_void| {
        let mut attributes = Attributes::default();
        good(unsafe { get(&mut attributes, ptr) });
        attributes
    };
    let (mut there, mut pinned) = (ptr::null_mut(), ptr::null_mut());
    good(unsafe { (api.set_device)(1) });
    good(unsafe { (api.malloc)(&mut there, 100) });
    good(unsafe { (api.host_malloc)(&mut pinned, 100, 2) });
    let found = ask(there.wrapping_byte_add(50));
    assert_eq!((found.kind, found.device, found.host_pointer), (2, 1, 0));
    let found = ask(pinned);
    assert_eq!((found.kind, found.host_pointer, found.flags), (1, pinned.addr(), 2));
    assert_eq!(ask((&raw const found).cast()).kind, 0);
    good(unsafe { (api.free)(there) });
    good(unsafe { (api.host_free)(pinned) });
}

/// Bus and number of multiprocessors, by the offsets of CUDA 12's and 13's headers.
fn properties_are_those_of_their_version() {
    for (name, size, bus, processors) in [
        ("cudaGetDeviceProperties_v2", 1032, 584, 388),
        ("cudaGetDeviceProperties", 1008, 568, 384),
    ] {
        let fill: unsafe extern "C" fn(*mut c_void, c_int) -> c_int = symbol("cuda", name);
        let mut properties = [0xff_u8; 1040];
        good(unsafe { fill(properties.as_mut_ptr().cast(), 1) });
        assert_eq!(&properties[..14], b"mock device 1\0");
        assert_eq!(properties[bus..][..4], 17_i32.to_ne_bytes());
        assert_eq!(properties[processors..][..4], 132_i32.to_ne_bytes());
        assert!(properties[size..].iter().all(|&byte| byte == 0xff));
    }
}

fn no_context_is_wanted() {
    let there = thread::spawn(|| {
        let api = api("cuda");
        let (mut device, mut memory) = (-1, ptr::null_mut());
        good(unsafe { (api.get_device)(&mut device) });
        assert_eq!(device, 0);
        good(unsafe { (api.malloc)(&mut memory, 8) });
        good(unsafe { (api.free)(memory) });
        good(unsafe { (api.malloc)(&mut memory, 0) });
        assert!(memory.is_null());
        // The driver sees the context that the runtime made.
        let current: unsafe extern "C" fn(*mut usize) -> c_int = symbol("cuda", "cuCtxGetCurrent");
        let init: unsafe extern "C" fn(c_uint) -> c_int = symbol("cuda", "cuInit");
        let mut context = 0;
        good(unsafe { init(0) });
        good(unsafe { current(&mut context) });
        assert_ne!(context, 0);
    });
    there.join().unwrap();
}

fn codes_are_those_of_the_vendor(prefix: &'static str) {
    let api = api(prefix);
    let mut memory = ptr::null_mut();
    assert_eq!(unsafe { (api.set_device)(99) }, 101);
    assert_eq!(unsafe { (api.peek_error)() }, 101);
    assert_eq!(unsafe { (api.malloc)(&mut memory, 1 << 50) }, 2);
    assert_eq!(unsafe { (api.last_error)() }, 2);
    assert_eq!(unsafe { (api.last_error)() }, 0);
    assert_eq!(unsafe { (api.free)(ptr::without_provenance_mut(64)) }, 1);
    assert_eq!(unsafe { (api.stream_synchronize)(ptr::without_provenance_mut(64)) }, 400);
    let name: unsafe extern "C" fn(c_int) -> *const c_char =
        symbol(prefix, &format!("{prefix}GetErrorName"));
    let want = match prefix {
        "hip" => c"hipErrorInvalidHandle",
        _ => c"cudaErrorInvalidResourceHandle",
    };
    assert_eq!(unsafe { CStr::from_ptr(name(400)) }, want);
    unsafe { (api.last_error)() };
}

fn copies_streams_and_events(prefix: &'static str) {
    let api = api(prefix);
    let [mut first, mut second, mut start, mut end] = [ptr::null_mut(); 4];
    let (mut there, mut device) = (ptr::null_mut(), -1);
    good(unsafe { (api.set_device)(2) });
    unsafe {
        good((api.stream_create)(&mut first, 1));
        good((api.stream_create)(&mut second, 0));
        good((api.stream_device)(first, &mut device));
        assert_eq!(device, 2);
        good((api.event_create)(&mut start, 0));
        good((api.event_create)(&mut end, 0));
        good((api.malloc)(&mut there, 8));
        let (host, mut back) = ([1_u8, 2, 3, 4, 5, 6, 7, 8], [0_u8; 8]);
        good((api.event_record)(start, first));
        good((api.memcpy_async)(there, host.as_ptr().cast(), 8, 1, first));
        good((api.memset_async)(there, 9, 4, first));
        good((api.event_record)(end, first));
        good((api.stream_wait)(second, end, 0));
        good((api.memcpy_async)(back.as_mut_ptr().cast(), there, 8, 2, second));
        good((api.stream_synchronize)(second));
        assert_eq!(back, [9, 9, 9, 9, 5, 6, 7, 8]);
        good((api.event_synchronize)(end));
        good((api.event_query)(start));
        let mut milliseconds = -1.0;
        good((api.event_elapsed)(&mut milliseconds, start, end));
        assert!(milliseconds >= 0.0);
        good((api.memcpy)(there, host.as_ptr().cast(), 8, 1));
        good((api.memcpy)(back.as_mut_ptr().cast(), there, 8, 4));
        assert_eq!(back, host);
        assert_eq!((api.memcpy)(back.as_mut_ptr().cast(), there, 8, 7), 21);
        let (mut free, mut total) = (0, 0);
        good((api.mem_info)(&mut free, &mut total));
        assert!(free < total);
        good((api.device_synchronize)());
        good((api.free)(there));
        for event in [start, end] {
            good((api.event_destroy)(event));
        }
        for stream in [first, second] {
            good((api.stream_destroy)(stream));
        }
        (api.last_error)();
    }
}

type AllReduce = unsafe extern "C" fn(
    *const c_void,
    *mut c_void,
    usize,
    c_int,
    c_int,
    ncclComm_t,
    *mut c_void,
) -> c_int;

fn ranks_reduce_plainly_and_in_a_graph(prefix: &'static str) {
    const COUNT: usize = 1000;
    const BYTES: usize = COUNT * 4;
    let mut id = ncclUniqueId::ZERO;
    let make_id: unsafe extern "C" fn(*mut ncclUniqueId) -> c_int =
        symbol(prefix, "ncclGetUniqueId");
    good(unsafe { make_id(&mut id) });
    let done = Barrier::new(2);
    let rank = |rank: c_int| {
        let api = api(prefix);
        let join: unsafe extern "C" fn(*mut ncclComm_t, c_int, ncclUniqueId, c_int) -> c_int =
            symbol(prefix, "ncclCommInitRank");
        let all_reduce: AllReduce = symbol(prefix, "ncclAllReduce");
        let leave: unsafe extern "C" fn(ncclComm_t) -> c_int = symbol(prefix, "ncclCommDestroy");
        let mut comm = ncclComm_t::NULL;
        let [mut stream, mut send, mut recv, mut graph, mut exec] = [ptr::null_mut(); 5];
        let own: Vec<i32> = (0..COUNT as i32).map(|at| at * (rank + 1)).collect();
        let want: Vec<i32> = (0..COUNT as i32).map(|at| at * 3).collect();
        unsafe {
            good((api.set_device)(rank));
            good(join(&mut comm, 2, id, rank));
            good((api.stream_create)(&mut stream, 1));
            good((api.malloc)(&mut send, BYTES));
            good((api.malloc)(&mut recv, BYTES));
            good((api.memcpy)(send, own.as_ptr().cast(), BYTES, 1));
            // int32, sum.
            good(all_reduce(send, recv, COUNT, 2, 0, comm, stream));
            let read = || {
                let mut back = vec![0_i32; COUNT];
                good((api.memcpy_async)(back.as_mut_ptr().cast(), recv, BYTES, 2, stream));
                good((api.stream_synchronize)(stream));
                back
            };
            assert_eq!(read(), want);
            good((api.begin_capture)(stream, 1));
            good(all_reduce(send, recv, COUNT, 2, 0, comm, stream));
            let mut status = 9;
            good((api.is_capturing)(stream, &mut status));
            assert_eq!(status, 1);
            good((api.end_capture)(stream, &mut graph));
            good((api.instantiate)(&mut exec, graph, 0));
            good((api.graph_destroy)(graph));
            for _ in 0..3 {
                good((api.memset_async)(recv, 0, BYTES, stream));
                good((api.launch)(exec, stream));
                assert_eq!(read(), want);
            }
            let mut mode = 2;
            good((api.exchange_mode)(&mut mode));
            assert_eq!(mode, 0);
            good((api.exec_destroy)(exec));
            done.wait();
            good(leave(comm));
            good((api.free)(send));
            good((api.free)(recv));
            good((api.stream_destroy)(stream));
        }
    };
    let rank = &rank;
    thread::scope(|scope| {
        for number in 0..2 {
            scope.spawn(move || rank(number));
        }
    });
}
