//! The shim as a backend opens it, over the CUDA runtime of `collectives-mock-abi`: real data, no GPU.

#![expect(
    clippy::multiple_unsafe_ops_per_block,
    clippy::undocumented_unsafe_blocks,
    reason = "series of calls on handles that live to the end of the test"
)]

use std::{
    collections::BTreeSet,
    env,
    ffi::{CStr, c_char, c_float, c_int, c_uint, c_ulonglong, c_void},
    fs,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::Command,
    ptr,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use libloading::Library;
use libtest_mimic::{Arguments, Trial};
use object::{Object as _, ObjectSymbol as _, elf, read::elf::ElfFile64};

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    if env::var_os(PROBE).is_some() {
        return probe();
    }
    if env::var_os(CUDART).is_none() {
        let error = Command::new(env::current_exe().expect("a test has a path"))
            .args(env::args_os().skip(1))
            .env(CUDART, beside("libcollectives_mock_abi.so"))
            .env("COLLECTIVES_MOCK_DEVICES", "4")
            .env_remove("CUDA_VISIBLE_DEVICES")
            .exec();
        panic!("the test runs itself: {error}");
    }
    let trials = [
        ("a_library_that_is_no_cuda_runtime_lacks_everything", lacks_everything as fn()),
        ("attributes_are_found_by_hips_numbers", attributes_are_found_by_hips_numbers),
        ("captures_become_graphs", captures_become_graphs),
        ("copies_and_fills", copies_and_fills),
        ("devices_and_peers", devices_and_peers),
        ("errors_have_hips_numbers_and_names", errors_have_hips_numbers_and_names),
        ("functions_are_found_by_name", functions_are_found_by_name),
        ("host_functions_run_in_order", host_functions_run_in_order),
        ("it_exports_what_it_should_and_needs_the_c_library_alone", exports_and_needs),
        ("memory_of_all_kinds", memory_of_all_kinds),
        ("pointers_are_told_in_hips_structure", pointers_are_told_in_hips_structure),
        ("properties_lie_where_hip_has_them", properties_lie_where_hip_has_them),
        ("streams_wait_for_events", streams_wait_for_events),
        ("without_a_cuda_runtime_every_call_says_so", without_a_cuda_runtime),
    ];
    let trial = |(name, test): (&str, fn())| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    };
    libtest_mimic::run(&arguments, trials.map(trial).into()).exit();
}

/// A file that is built with this test.
fn beside(name: &str) -> PathBuf {
    env::current_exe().expect("a test has a path").with_file_name(name)
}

/// The shim, as a backend opens it.
fn shim() -> &'static Library {
    static SHIM: OnceLock<Library> = OnceLock::new();
    SHIM.get_or_init(|| unsafe { Library::new(beside(SHIM_FILE)) }.expect("it is built"))
}

const SHIM_FILE: &str = "libcollectives_hip_on_cuda.so";
/// The CUDA runtime that the shim opens.
const CUDART: &str = "HIP_ON_CUDA_CUDART";
/// Makes this program print what calls answer.
const PROBE: &str = "COLLECTIVES_TEST_PROBE";

/// Defines functions that call the shim's, and the list of their names.
macro_rules! functions {
    ($($name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $answer:ty)?;)*) => {
        $(
            #[expect(non_snake_case, reason = "a name of C")]
            unsafe fn $name($($arg: $type),*) -> functions!(@ $($answer)?) {
                type Function = unsafe extern "C" fn($($type),*) -> functions!(@ $($answer)?);
                let function = unsafe { shim().get::<Function>(stringify!($name)) };
                unsafe { function.expect("it is exported")($($arg),*) }
            }
        )*
        const EXPORTS: &[&str] = &[$(stringify!($name)),*];
    };
    (@) => { c_int };
    (@ $answer:ty) => { $answer };
}

type Pointer = *mut c_void;

functions! {
    hipInit(flags: c_uint);
    hipGetDeviceCount(count: *mut c_int);
    hipSetDevice(device: c_int);
    hipGetDevice(device: *mut c_int);
    hipDeviceSynchronize();
    hipDeviceGetAttribute(value: *mut c_int, which: c_int, device: c_int);
    hipDeviceGetName(name: *mut c_char, length: c_int, device: c_int);
    hipDeviceGetPCIBusId(address: *mut c_char, length: c_int, device: c_int);
    hipDeviceGetByPCIBusId(device: *mut c_int, address: *const c_char);
    hipDeviceGetUuid(uuid: *mut [u8; 16], device: c_int);
    hipDeviceTotalMem(bytes: *mut usize, device: c_int);
    hipRuntimeGetVersion(version: *mut c_int);
    hipDriverGetVersion(version: *mut c_int);
    hipDeviceCanAccessPeer(can: *mut c_int, device: c_int, peer: c_int);
    hipDeviceEnablePeerAccess(peer: c_int, flags: c_uint);
    hipGetDeviceProperties(properties: Pointer, device: c_int);
    hipGetDevicePropertiesR0600(properties: Pointer, device: c_int);
    hipGetProcAddress(
        name: *const c_char,
        function: *mut Pointer,
        version: c_int,
        flags: u64,
        status: *mut c_uint,
    );
    hipGetLastError();
    hipPeekAtLastError();
    hipGetErrorName(code: c_int) -> *const c_char;
    hipGetErrorString(code: c_int) -> *const c_char;
    hipMalloc(memory: *mut Pointer, bytes: usize);
    hipFree(memory: Pointer);
    hipMallocAsync(memory: *mut Pointer, bytes: usize, stream: Pointer);
    hipFreeAsync(memory: Pointer, stream: Pointer);
    hipExtMallocWithFlags(memory: *mut Pointer, bytes: usize, flags: c_uint);
    hipHostMalloc(memory: *mut Pointer, bytes: usize, flags: c_uint);
    hipHostFree(memory: Pointer);
    hipMemGetInfo(free: *mut usize, total: *mut usize);
    hipPointerGetAttributes(attributes: *mut Attributes, address: *const c_void);
    hipMemcpy(to: Pointer, from: *const c_void, bytes: usize, kind: c_uint);
    hipMemcpyAsync(to: Pointer, from: *const c_void, bytes: usize, kind: c_uint, stream: Pointer);
    hipMemset(to: Pointer, value: c_int, bytes: usize);
    hipMemsetAsync(to: Pointer, value: c_int, bytes: usize, stream: Pointer);
    hipIpcGetMemHandle(handle: *mut [u64; 8], memory: Pointer);
    hipIpcOpenMemHandle(memory: *mut Pointer, handle: Handle, flags: c_uint);
    hipIpcCloseMemHandle(memory: Pointer);
    hipStreamCreate(stream: *mut Pointer);
    hipStreamCreateWithFlags(stream: *mut Pointer, flags: c_uint);
    hipStreamCreateWithPriority(stream: *mut Pointer, flags: c_uint, priority: c_int);
    hipStreamDestroy(stream: Pointer);
    hipStreamQuery(stream: Pointer);
    hipStreamSynchronize(stream: Pointer);
    hipStreamWaitEvent(stream: Pointer, event: Pointer, flags: c_uint);
    hipStreamGetDevice(stream: Pointer, device: *mut c_int);
    hipEventCreate(event: *mut Pointer);
    hipEventCreateWithFlags(event: *mut Pointer, flags: c_uint);
    hipEventRecord(event: Pointer, stream: Pointer);
    hipEventQuery(event: Pointer);
    hipEventSynchronize(event: Pointer);
    hipEventDestroy(event: Pointer);
    hipEventElapsedTime(milliseconds: *mut c_float, start: Pointer, end: Pointer);
    hipLaunchHostFunc(
        stream: Pointer,
        function: unsafe extern "C" fn(Pointer),
        data: *const AtomicU32,
    );
    hipStreamBeginCapture(stream: Pointer, mode: c_uint);
    hipStreamEndCapture(stream: Pointer, graph: *mut Pointer);
    hipStreamIsCapturing(stream: Pointer, status: *mut c_uint);
    hipStreamGetCaptureInfo(stream: Pointer, status: *mut c_uint, id: *mut c_ulonglong);
    hipThreadExchangeStreamCaptureMode(mode: *mut c_uint);
    hipGraphInstantiate(
        instance: *mut Pointer,
        graph: Pointer,
        error_node: *mut Pointer,
        log: *mut c_char,
        log_length: usize,
    );
    hipGraphInstantiateWithFlags(instance: *mut Pointer, graph: Pointer, flags: c_ulonglong);
    hipGraphLaunch(instance: Pointer, stream: Pointer);
    hipGraphExecDestroy(instance: Pointer);
    hipGraphDestroy(graph: Pointer);
    hipGraphUpload(instance: Pointer, stream: Pointer);
}

/// `hipPointerAttribute_t`, and what lies behind it.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Attributes {
    kind: c_int,
    device: c_int,
    device_pointer: usize,
    host_pointer: usize,
    is_managed: c_int,
    flags: c_uint,
    behind: [u64; 8],
}

/// `hipIpcMemHandle_t`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Handle([u64; 8]);

#[track_caller]
fn good(code: c_int) {
    assert_eq!(code, 0);
}

fn name(code: c_int) -> &'static str {
    let name = unsafe { CStr::from_ptr(hipGetErrorName(code)) };
    name.to_str().expect("names are ASCII")
}

fn words(code: c_int) -> &'static str {
    let words = unsafe { CStr::from_ptr(hipGetErrorString(code)) };
    words.to_str().expect("texts are ASCII")
}

fn attribute(which: c_int, device: c_int) -> c_int {
    let mut value = -1;
    good(unsafe { hipDeviceGetAttribute(&mut value, which, device) });
    value
}

fn devices_and_peers() {
    let (mut count, mut device, mut version, mut can) = (-1, -1, -1, -1);
    let mut text = [0x7f; 64];
    unsafe {
        good(hipInit(0));
        assert_eq!(hipInit(1), 1);
        good(hipGetDeviceCount(&mut count));
        assert_eq!(count, 4);
        good(hipSetDevice(2));
        good(hipGetDevice(&mut device));
        assert_eq!(device, 2);
        assert_eq!(hipSetDevice(99), 101);
        assert_eq!(hipGetLastError(), 101);
        for get in [hipRuntimeGetVersion, hipDriverGetVersion] {
            good(get(&mut version));
            assert_eq!(version, 70_253_211);
            assert_eq!(get(ptr::null_mut()), 1);
        }
        good(hipDeviceGetName(text.as_mut_ptr(), 64, 3));
        assert_eq!(CStr::from_ptr(text.as_ptr()), c"mock device 3");
        good(hipDeviceGetName(text.as_mut_ptr(), 5, 3));
        assert_eq!(CStr::from_ptr(text.as_ptr()), c"mock");
        assert_eq!(text[5], b'd' as c_char, "behind the end");
        assert_eq!(hipDeviceGetName(text.as_mut_ptr(), 0, 3), 1);
        assert_eq!(hipDeviceGetName(text.as_mut_ptr(), 64, 9), 101);
        good(hipDeviceGetPCIBusId(text.as_mut_ptr(), 64, 1));
        good(hipDeviceGetByPCIBusId(&mut device, text.as_ptr()));
        assert_eq!(device, 1);
        let (mut first, mut second) = ([0; 16], [0; 16]);
        good(hipDeviceGetUuid(&mut first, 0));
        good(hipDeviceGetUuid(&mut second, 1));
        assert_ne!(first, second);
        let (mut free, mut total, mut all) = (0, 0, 0);
        good(hipMemGetInfo(&mut free, &mut total));
        good(hipDeviceTotalMem(&mut all, 2));
        assert_eq!(all, total);
        good(hipDeviceCanAccessPeer(&mut can, 0, 1));
        assert_eq!(can, 1);
        good(hipDeviceEnablePeerAccess(3, 0));
        assert_eq!(hipDeviceEnablePeerAccess(3, 0), 704);
        assert_eq!(hipDeviceEnablePeerAccess(2, 0), 101, "the device itself");
        good(hipDeviceSynchronize());
        hipGetLastError();
    }
}

fn attributes_are_found_by_hips_numbers() {
    let mut text = [0; 64];
    good(unsafe { hipDeviceGetPCIBusId(text.as_mut_ptr(), 64, 1) });
    let text = unsafe { CStr::from_ptr(text.as_ptr()) }.to_str().unwrap();
    let [domain, bus, device] = [69, 67, 68].map(|which| attribute(which, 1));
    assert_eq!(text, format!("{domain:04x}:{bus:02x}:{device:02x}.0"));
    // Warp, threads of a block, compute capability.
    assert_eq!([87, 56].map(|which| attribute(which, 0)), [32, 1024]);
    assert_eq!([23, 61].map(|which| attribute(which, 0)), [9, 0]);
    let mut value = -1;
    assert_eq!(unsafe { hipDeviceGetAttribute(&mut value, 10_000, 0) }, 1);
    assert_eq!(unsafe { hipGetLastError() }, 1, "CUDA itself refused");
}

fn properties_lie_where_hip_has_them() {
    let (mut old, mut new) = ([0xff_u8; 800], [0xff_u8; 1480]);
    let (mut total, mut uuid) = (0, [0; 16]);
    unsafe {
        good(hipGetDeviceProperties(old.as_mut_ptr().cast(), 1));
        good(hipGetDevicePropertiesR0600(new.as_mut_ptr().cast(), 1));
        good(hipDeviceTotalMem(&mut total, 1));
        good(hipDeviceGetUuid(&mut uuid, 1));
        assert_eq!(hipGetDevicePropertiesR0600(new.as_mut_ptr().cast(), 9), 101);
        assert_eq!(hipGetDevicePropertiesR0600(ptr::null_mut(), 1), 1);
        hipGetLastError();
    }
    // Capability, multiprocessors, bus; and nothing written behind the structures.
    for (bytes, size, places) in
        [(&old[..], 792, [328, 336, 368]), (&new[..], 1472, [360, 388, 584])]
    {
        assert_eq!(&bytes[..14], b"mock device 1\0");
        for (at, which) in places.into_iter().zip([23, 63, 67]) {
            assert_eq!(bytes[at..at + 4], attribute(which, 1).to_ne_bytes(), "{size}: {at}");
        }
        assert!(bytes[size..].iter().all(|byte| *byte == 0xff));
    }
    assert_eq!(&old[396..402], b"sm_90\0");
    assert_eq!(&new[1160..1166], b"sm_90\0");
    assert_eq!(old[256..264], total.to_ne_bytes());
    assert_eq!(new[288..296], total.to_ne_bytes());
    assert_eq!(new[256..272], uuid);
}

fn memory_of_all_kinds() {
    let mut memory = ptr::null_mut();
    unsafe {
        assert_eq!(hipMalloc(&mut memory, 1 << 50), 2);
        assert_eq!(hipGetLastError(), 2);
        for flags in [0, 1, 3] {
            good(hipExtMallocWithFlags(&mut memory, 64, flags));
            good(hipFree(memory));
        }
        // What CUDA was asked for.
        let cuda = Library::new(env::var_os(CUDART).unwrap()).unwrap();
        type GetFlags = unsafe extern "C" fn(*mut c_uint, Pointer) -> c_int;
        let get_flags = cuda.get::<GetFlags>("cudaHostGetFlags").unwrap();
        for (flags, want) in [(0, 0), (7, 7), (0x2000_0000, 0), (0x4000_0001, 1), (0x8000_0002, 2)]
        {
            let mut given = 9;
            good(hipHostMalloc(&mut memory, 64, flags));
            good(get_flags(&mut given, memory));
            assert_eq!(given, want);
            good(hipHostFree(memory));
        }
        let mut stream = ptr::null_mut();
        good(hipStreamCreateWithPriority(&mut stream, 1, 0));
        good(hipMallocAsync(&mut memory, 64, stream));
        good(hipMemsetAsync(memory, 1, 64, stream));
        good(hipFreeAsync(memory, stream));
        good(hipStreamSynchronize(stream));
        good(hipStreamDestroy(stream));
        assert_eq!(hipFree(ptr::without_provenance_mut(64)), 1);
        // The mock shares no memory between processes.
        let mut handle = [0; 8];
        good(hipMalloc(&mut memory, 64));
        assert_eq!(hipIpcGetMemHandle(&mut handle, memory), 801);
        assert_eq!(hipIpcOpenMemHandle(&mut memory.clone(), Handle(handle), 1), 801);
        assert_eq!(hipIpcCloseMemHandle(memory), 801);
        good(hipFree(memory));
        hipGetLastError();
    }
}

fn copies_and_fills() {
    let (host, mut back) = ([1_u8, 2, 3, 4, 5, 6, 7, 8], [0_u8; 8]);
    let [mut first, mut second, mut stream] = [ptr::null_mut(); 3];
    unsafe {
        good(hipStreamCreate(&mut stream));
        good(hipMalloc(&mut first, 8));
        good(hipMalloc(&mut second, 8));
        good(hipMemcpy(first, host.as_ptr().cast(), 8, 1));
        good(hipMemset(first, 9, 2));
        // Without compute units.
        good(hipMemcpy(second, first, 8, 1024));
        good(hipMemcpy(back.as_mut_ptr().cast(), second, 8, 4));
        assert_eq!(back, [9, 9, 3, 4, 5, 6, 7, 8]);
        good(hipMemcpyAsync(first, host.as_ptr().cast(), 8, 1, stream));
        good(hipMemsetAsync(first, 7, 1, stream));
        good(hipMemcpyAsync(second, first, 8, 1024, stream));
        good(hipMemcpyAsync(back.as_mut_ptr().cast(), second, 8, 2, stream));
        good(hipStreamSynchronize(stream));
        assert_eq!(back, [7, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(hipMemcpy(back.as_mut_ptr().cast(), first, 8, 7), 21);
        assert_eq!(hipMemcpyAsync(second, first, 8, 1025, stream), 21);
        hipGetLastError();
        good(hipFree(first));
        good(hipFree(second));
        good(hipStreamDestroy(stream));
    }
}

fn pointers_are_told_in_hips_structure() {
    let ask = |address: *const c_void| {
        let mut attributes = Attributes { behind: [u64::MAX; 8], ..Attributes::default() };
        good(unsafe { hipPointerGetAttributes(&mut attributes, address) });
        assert_eq!(attributes.behind, [u64::MAX; 8]);
        attributes
    };
    let (mut there, mut pinned) = (ptr::null_mut(), ptr::null_mut());
    unsafe {
        good(hipSetDevice(1));
        good(hipMalloc(&mut there, 100));
        good(hipHostMalloc(&mut pinned, 100, 0));
    }
    let inside = there.wrapping_byte_add(50);
    let found = ask(inside);
    assert_eq!((found.kind, found.device, found.is_managed), (2, 1, 0));
    assert_eq!((found.device_pointer, found.host_pointer), (inside.addr(), 0));
    let found = ask(pinned);
    assert_eq!((found.kind, found.host_pointer, found.flags), (1, pinned.addr(), 0));
    assert_eq!(ask((&raw const found).cast()).kind, 0);
    unsafe {
        assert_eq!(hipPointerGetAttributes(ptr::null_mut(), there), 1);
        good(hipFree(there));
        good(hipHostFree(pinned));
    }
}

fn streams_wait_for_events() {
    let [mut first, mut second, mut start, mut end, mut there] = [ptr::null_mut(); 5];
    let (mut device, mut milliseconds, mut back) = (-1, -1.0, [0_u8; 4]);
    unsafe {
        good(hipSetDevice(2));
        good(hipStreamCreateWithFlags(&mut first, 1));
        good(hipStreamCreateWithFlags(&mut second, 1));
        good(hipStreamGetDevice(first, &mut device));
        assert_eq!(device, 2);
        // Seen by the whole system; without a fence.
        good(hipEventCreateWithFlags(&mut start, 0x8000_0000));
        good(hipEventCreateWithFlags(&mut end, 0x2000_0000));
        good(hipMalloc(&mut there, 4));
        good(hipEventRecord(start, first));
        good(hipMemsetAsync(there, 5, 4, first));
        good(hipEventRecord(end, first));
        good(hipStreamWaitEvent(second, end, 0));
        good(hipMemcpyAsync(back.as_mut_ptr().cast(), there, 4, 2, second));
        good(hipStreamSynchronize(second));
        assert_eq!(back, [5; 4]);
        good(hipEventSynchronize(end));
        good(hipEventQuery(start));
        good(hipEventElapsedTime(&mut milliseconds, start, end));
        assert!(milliseconds >= 0.0);
        good(hipEventDestroy(start));
        good(hipEventDestroy(end));
        good(hipEventCreate(&mut start));
        good(hipEventDestroy(start));
        good(hipFree(there));
        good(hipStreamDestroy(first));
        good(hipStreamDestroy(second));
    }
}

/// Waits until the number is 1, and makes it 2.
unsafe extern "C" fn wait_for_one(number: Pointer) {
    let number = unsafe { &*number.cast::<AtomicU32>() };
    while number.load(Ordering::Acquire) != 1 {
        thread::sleep(Duration::from_millis(1));
    }
    number.store(2, Ordering::Release);
}

unsafe extern "C" fn add_one(number: Pointer) {
    unsafe { &*number.cast::<AtomicU32>() }.fetch_add(1, Ordering::AcqRel);
}

fn host_functions_run_in_order() {
    let number = AtomicU32::new(0);
    let (mut stream, mut event) = (ptr::null_mut(), ptr::null_mut());
    unsafe {
        good(hipStreamCreateWithFlags(&mut stream, 1));
        good(hipEventCreateWithFlags(&mut event, 2));
        good(hipLaunchHostFunc(stream, wait_for_one, &number));
        good(hipLaunchHostFunc(stream, add_one, &number));
        good(hipEventRecord(event, stream));
        assert_eq!((hipStreamQuery(stream), hipEventQuery(event)), (600, 600));
        assert_eq!(number.swap(1, Ordering::AcqRel), 0);
        good(hipStreamSynchronize(stream));
        assert_eq!((hipStreamQuery(stream), hipEventQuery(event)), (0, 0));
        assert_eq!(number.load(Ordering::Acquire), 3);
        good(hipEventDestroy(event));
        good(hipStreamDestroy(stream));
        hipGetLastError();
    }
}

fn captures_become_graphs() {
    let number = AtomicU32::new(0);
    let [mut stream, mut graph, mut instance, mut plain] = [ptr::null_mut(); 4];
    let mut node = ptr::without_provenance_mut(1);
    let (mut status, mut id, mut mode) = (9, 0, 2);
    unsafe {
        good(hipStreamCreateWithFlags(&mut stream, 1));
        good(hipStreamIsCapturing(stream, &mut status));
        assert_eq!(status, 0);
        good(hipStreamBeginCapture(stream, 1));
        good(hipLaunchHostFunc(stream, add_one, &number));
        good(hipStreamIsCapturing(stream, &mut status));
        assert_eq!(status, 1);
        status = 9;
        good(hipStreamGetCaptureInfo(stream, &mut status, &mut id));
        assert_eq!(status, 1);
        assert_ne!(id, 0);
        assert_eq!(hipStreamSynchronize(stream), 900, "it is captured");
        assert_eq!(hipStreamEndCapture(stream, &mut graph), 901, "by that");
        good(hipStreamBeginCapture(stream, 1));
        good(hipLaunchHostFunc(stream, add_one, &number));
        good(hipStreamEndCapture(stream, &mut graph));
        good(hipGraphInstantiate(&mut instance, graph, &mut node, ptr::null_mut(), 0));
        assert!(node.is_null());
        good(hipGraphInstantiateWithFlags(&mut plain, graph, 0));
        good(hipGraphDestroy(graph));
        good(hipGraphUpload(instance, stream));
        assert_eq!(number.load(Ordering::Acquire), 0);
        for instance in [instance, instance, plain] {
            good(hipGraphLaunch(instance, stream));
        }
        good(hipStreamSynchronize(stream));
        assert_eq!(number.load(Ordering::Acquire), 3);
        good(hipThreadExchangeStreamCaptureMode(&mut mode));
        assert_eq!(mode, 0);
        good(hipThreadExchangeStreamCaptureMode(&mut mode));
        assert_eq!(mode, 2);
        good(hipGraphExecDestroy(instance));
        good(hipGraphExecDestroy(plain));
        good(hipStreamDestroy(stream));
        hipGetLastError();
    }
}

fn errors_have_hips_numbers_and_names() {
    unsafe {
        assert_eq!(hipStreamSynchronize(ptr::without_provenance_mut(64)), 400);
        assert_eq!(hipPeekAtLastError(), 400);
        assert_eq!(hipGetLastError(), 400);
        assert_eq!(hipGetLastError(), 0);
    }
    assert_eq!((name(400), words(400)), ("hipErrorInvalidHandle", "invalid resource handle"));
    assert_eq!((name(0), words(0)), ("hipSuccess", "no error"));
    // What means something else in CUDA, and what none of the two has.
    assert_eq!((name(912), words(912)), ("hipErrorInvalidTexture", "hipErrorInvalidTexture"));
    assert_eq!((name(777), words(777)), ("hipErrorUnknown", "hipErrorUnknown"));
}

fn functions_are_found_by_name() {
    let find = |name: &CStr| {
        let (mut found, mut status) = (ptr::null_mut(), 9);
        let code = unsafe { hipGetProcAddress(name.as_ptr(), &mut found, 702, 0, &mut status) };
        (code, found.addr(), status)
    };
    let address = |name: &str| unsafe { shim().get::<*const c_void>(name) }.unwrap().addr();
    assert_eq!(find(c"hipMalloc"), (0, address("hipMalloc"), 0));
    assert_eq!(find(c"hipGetProcAddress"), (0, address("hipGetProcAddress"), 0));
    assert_eq!(find(c"hipMallo"), (1, 0, 1));
}

/// Prints what calls answer here.
fn probe() {
    let (mut count, mut value, mut memory) = (-7, -7, ptr::null_mut());
    let mut attributes = Attributes::default();
    let codes = unsafe {
        [
            hipInit(0),
            hipGetDeviceCount(&mut count),
            hipSetDevice(0),
            hipMalloc(&mut memory, 8),
            hipDeviceGetAttribute(&mut value, 87, 0),
            hipPointerGetAttributes(&mut attributes, memory),
            hipGetDevicePropertiesR0600([0_u8; 1472].as_mut_ptr().cast(), 0),
            hipStreamGetCaptureInfo(memory, ptr::null_mut(), ptr::null_mut()),
            hipGetDeviceCount(&mut count),
        ]
    };
    println!("{codes:?} {count} {value} {} {}", name(codes[0]), words(codes[0]));
}

/// Runs [`probe`] with this CUDA runtime; its output, and what it wrote to standard error.
fn probed(cudart: &str) -> (String, String) {
    let mut child = Command::new(env::current_exe().unwrap());
    let output = child.env(PROBE, "1").env(CUDART, cudart).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
}

fn without_a_cuda_runtime() {
    let (answers, said) = probed("/nowhere/libcudart.so.13");
    let name = "hipErrorInsufficientDriver";
    assert_eq!(answers, format!("{:?} -7 -7 {name} {name}\n", [35; 9]));
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("/nowhere/libcudart.so.13") && said.contains(CUDART), "{said}");
}

fn lacks_everything() {
    let (answers, said) = probed("libm.so.6");
    assert_eq!(answers, format!("{:?} -7 -7 {1} {1}\n", [801; 9], "hipErrorNotSupported"));
    assert_eq!(said.lines().count(), 7, "once for each function: {said}");
    assert!(said.contains("lacks cudaGetDeviceCount: not supported (code 801)"), "{said}");
}

fn exports_and_needs() {
    let file = fs::read(beside(SHIM_FILE)).unwrap();
    let file = ElfFile64::<object::Endianness>::parse(&*file).unwrap();
    let defined = file.dynamic_symbols().filter(|symbol| symbol.is_definition());
    let defined: BTreeSet<_> = defined.map(|symbol| symbol.name().unwrap()).collect();
    assert_eq!(defined, EXPORTS.iter().copied().collect());
    let (endian, data) = (file.endian(), file.data());
    let sections = file.elf_section_table();
    let (dynamic, link) = sections.dynamic(endian, data).unwrap().expect("it is a library");
    let strings = sections.strings(endian, data, link).unwrap();
    let texts = |tag: elf::DynamicTag| {
        let entries = dynamic.iter().filter(move |entry| entry.d_tag.get(endian) == tag);
        let text = |offset: u64| str::from_utf8(strings.get(offset as u32).unwrap()).unwrap();
        entries.map(|entry| text(entry.d_val.get(endian))).collect::<Vec<_>>()
    };
    assert_eq!(texts(elf::DT_SONAME), ["libamdhip64.so.7"]);
    // The second is GCC's, for unwinding; every system with a C++ library has it.
    let allowed = ["libc.so.6", "libgcc_s.so.1", "libdl.so.2", "ld-linux-x86-64.so.2"];
    for needed in texts(elf::DT_NEEDED) {
        assert!(allowed.contains(&needed), "{needed}");
    }
}
