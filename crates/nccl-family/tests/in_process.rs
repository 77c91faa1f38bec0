//! The conformance suite on this crate over the mock's C functions, as a table: no library is opened,
//! so that Miri can run it.
//!
//! ```console
//! $ cargo test --package collectives-nccl-family --test in_process
//! $ cargo +nightly miri test --package collectives-nccl-family --test in_process
//! ```
//!
//! Ranks are threads. The device layer is the mock's CUDA driver, called by its C names. Under Miri
//! the suite is the list [`UNDER_MIRI`], as Miri is some hundred times slower; otherwise it is all but
//! what is [`ELSEWHERE`].

use std::{
    env,
    ffi::{c_int, c_uint, c_ulonglong, c_void},
    process::ExitCode,
    ptr, thread,
    time::{Duration, Instant},
};

use collectives_conformance::{Harness, trials};
use collectives_core::{
    Device, DeviceInfo, Error, ErrorKind, F8Format, RawEvent, RawGraph, RawStream, Result,
};
use collectives_mock_abi::nccl;
use collectives_nccl_abi as abi;
use collectives_nccl_family::{Library, Vendor};
use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // SAFETY: no other thread runs yet.
    unsafe { env::set_var("COLLECTIVES_MOCK_RANKS", "threads") };
    // SAFETY: the functions are those of their signatures, and part of this program.
    let library = unsafe { Library::<Driver>::from_table(nccl::TABLE) };
    let library = match library {
        Ok(library) => library,
        Err(error) => {
            eprintln!("the table is refused: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut all = trials(InProcess { library });
    if cfg!(miri) {
        all.retain(|trial| UNDER_MIRI.contains(&trial.name()) || LONG.contains(&trial.name()));
        assert_eq!(all.len(), UNDER_MIRI.len() + LONG.len(), "the lists name what there is");
        let marked = |trial: Trial| {
            let is_long = LONG.contains(&trial.name());
            trial.with_ignored_flag(is_long)
        };
        all = all.into_iter().map(marked).collect();
        // Worlds side by side would only take turns.
        arguments.test_threads = Some(1);
    } else {
        let is_elsewhere = |trial: &Trial| ELSEWHERE.iter().any(|of| trial.name().contains(of));
        all.retain(|trial| !is_elsewhere(trial));
    }
    // Ends here, and not with `main`: the mock's own threads last as long as the process.
    libtest_mimic::run(&arguments, all).exit()
}

/// What runs under Miri, in about two minutes.
const UNDER_MIRI: [&str; 13] = [
    "all_reduce::nan_loses_against_a_number",
    "reduce::nan_loses_against_a_number",
    "reduce_scatter::nan_loses_against_a_number",
    "peers::messages_without_elements_match_too",
    "peers::every_pair_exchanges_in_one_group",
    "peers::a_message_to_oneself_arrives",
    "ext::send_recv_turns_a_ring",
    "ext::a_barrier_holds_every_stream",
    "ext::no_elements_at_all_are_fine",
    "group::nested_groups_start_at_the_outermost_end",
    "group::a_failing_closure_launches_nothing",
    "data::buffers_given_off_root_are_ignored",
    "data::null_pointers_are_fine_for_no_elements",
];

/// What runs there with `--include-ignored`, too: another quarter of an hour.
const LONG: [&str; 9] = [
    "group::an_ignored_refusal_launches_nothing",
    "group::two_communicators_share_a_group",
    "one_thread::drives_all_ranks",
    "split::keys_reverse_the_order",
    "split::children_outlive_their_parent",
    "shrink::the_ranks_that_stay_close_the_gaps",
    "grow::by_one_rank",
    "revoke::pending_operations_end",
    "revoke::a_revoked_communicator_can_be_shrunk",
];

/// What is about devices and their refusals, for which the real device layers are tested, and what
/// takes long: it runs where the same library is opened as a file.
const ELSEWHERE: [&str; 2] = ["device::", "::large_"];

/// The library of this process.
struct InProcess {
    library: Library<Driver>,
}

impl Harness for InProcess {
    type Backend = Library<Driver>;

    fn name(&self) -> String {
        "nccl in process".into()
    }

    fn backend(&self) -> Library<Driver> {
        self.library.clone()
    }

    fn worlds(&self) -> Vec<usize> {
        if cfg!(miri) { vec![2] } else { vec![2, 3] }
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(if cfg!(miri) { 900 } else { 120 })
    }
}

/// NCCL, with the mock's CUDA driver.
struct Driver;

impl Vendor for Driver {
    const ABI: &'static abi::Vendor = abi::Vendor::NCCL;

    type Device = Gpu;

    fn runtime() -> Result<()> {
        // SAFETY: takes a number.
        check("cuInit", unsafe { cuInit(0) })
    }

    fn device_count() -> Result<usize> {
        Self::runtime()?;
        let mut count = 0;
        // SAFETY: `count` outlives the call.
        check("cuDeviceGetCount", unsafe { cuDeviceGetCount(&mut count) })?;
        Ok(count as usize)
    }

    fn device(ordinal: usize) -> Result<Gpu> {
        let count = Self::device_count()?;
        if ordinal >= count {
            let message = format!("device {ordinal} does not exist, there are {count}");
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        let mut context = 0;
        // SAFETY: `context` outlives the call.
        check("cuDevicePrimaryCtxRetain", unsafe {
            cuDevicePrimaryCtxRetain(&mut context, ordinal as c_int)
        })?;
        let name = format!("mock device {ordinal}");
        Ok(Gpu { context, info: DeviceInfo::new("NCCL", ordinal, name, 1 << 30) })
    }

    fn make_current(ordinal: usize) -> Result<()> {
        Self::device(ordinal)?.bind()
    }

    fn f8_format() -> F8Format {
        F8Format::Ocp
    }

    fn check(_: usize, _: &[(&'static str, *const c_void)], _: RawStream) -> Result<()> {
        Ok(())
    }
}

/// A device of the mock, as its CUDA driver shows it.
#[derive(Clone)]
struct Gpu {
    context: usize,
    info: DeviceInfo,
}

impl Gpu {
    /// Makes it the current device of this thread.
    fn bind(&self) -> Result<()> {
        // SAFETY: a context that is kept.
        check("cuCtxSetCurrent", unsafe { cuCtxSetCurrent(self.context) })
    }
}

impl Device for Gpu {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn alloc(&self, bytes: usize) -> Result<*mut c_void> {
        self.bind()?;
        let mut address = 0;
        // CUDA has no memory of no bytes.
        // SAFETY: `address` outlives the call.
        check("cuMemAlloc", unsafe { cuMemAlloc_v2(&mut address, bytes.max(1)) })?;
        Ok(ptr::with_exposed_provenance_mut(address))
    }

    unsafe fn free(&self, ptr: *mut c_void, after: RawStream) -> Result<()> {
        // SAFETY: the caller's promise.
        if unsafe { self.is_capturing(after) }? {
            return Err(Error::new(ErrorKind::InvalidUsage, "the stream is being captured"));
        }
        // SAFETY: the caller's promise.
        check("cuMemFreeAsync", unsafe { cuMemFreeAsync(ptr.expose_provenance(), after.bits()) })
    }

    unsafe fn copy_to(
        &self,
        dst: *mut c_void,
        src: *const c_void,
        bytes: usize,
        stream: RawStream,
    ) -> Result<()> {
        self.bind()?;
        let (to, from) = (dst.expose_provenance(), src.expose_provenance());
        // SAFETY: the caller's promise.
        check("copy_to", unsafe { cuMemcpyHtoDAsync_v2(to, from, bytes, stream.bits()) })
    }

    unsafe fn copy_from(
        &self,
        dst: *mut c_void,
        src: *const c_void,
        bytes: usize,
        stream: RawStream,
    ) -> Result<()> {
        self.bind()?;
        let (to, from) = (dst.expose_provenance(), src.expose_provenance());
        // SAFETY: the caller's promise.
        check("copy_from", unsafe { cuMemcpyDtoHAsync_v2(to, from, bytes, stream.bits()) })
    }

    unsafe fn copy_between(
        &self,
        dst: *mut c_void,
        src: *const c_void,
        bytes: usize,
        stream: RawStream,
    ) -> Result<()> {
        self.bind()?;
        let (to, from) = (dst.expose_provenance(), src.expose_provenance());
        // SAFETY: the caller's promise.
        check("copy_between", unsafe { cuMemcpyDtoDAsync_v2(to, from, bytes, stream.bits()) })
    }

    unsafe fn memset(
        &self,
        dst: *mut c_void,
        value: u8,
        bytes: usize,
        stream: RawStream,
    ) -> Result<()> {
        self.bind()?;
        let to = dst.expose_provenance();
        // SAFETY: the caller's promise.
        check("memset", unsafe { cuMemsetD8Async(to, value, bytes, stream.bits()) })
    }

    fn stream_create(&self) -> Result<RawStream> {
        self.bind()?;
        let mut stream = 0;
        // SAFETY: `stream` outlives the call.
        check("stream_create", unsafe { cuStreamCreate(&mut stream, NON_BLOCKING) })?;
        Ok(RawStream::from_bits(stream))
    }

    unsafe fn stream_destroy(&self, stream: RawStream) -> Result<()> {
        self.bind()?;
        // SAFETY: the caller's promise.
        check("stream_destroy", unsafe { cuStreamDestroy_v2(stream.bits()) })
    }

    fn event_create(&self) -> Result<RawEvent> {
        self.bind()?;
        let mut event = 0;
        // SAFETY: `event` outlives the call.
        check("event_create", unsafe { cuEventCreate(&mut event, DISABLE_TIMING) })?;
        Ok(RawEvent::from_bits(event))
    }

    unsafe fn event_destroy(&self, event: RawEvent) -> Result<()> {
        self.bind()?;
        // SAFETY: the caller's promise.
        check("event_destroy", unsafe { cuEventDestroy_v2(event.bits()) })
    }

    unsafe fn record(&self, event: RawEvent, stream: RawStream) -> Result<()> {
        self.bind()?;
        // SAFETY: the caller's promise.
        check("record", unsafe { cuEventRecord(event.bits(), stream.bits()) })
    }

    unsafe fn wait(&self, stream: RawStream, event: RawEvent) -> Result<()> {
        self.bind()?;
        // SAFETY: the caller's promise.
        check("wait", unsafe { cuStreamWaitEvent(stream.bits(), event.bits(), 0) })
    }

    unsafe fn query(&self, event: RawEvent) -> Result<bool> {
        self.bind()?;
        // SAFETY: the caller's promise.
        match unsafe { cuEventQuery(event.bits()) } {
            NOT_READY => Ok(false),
            code => check("query", code).map(|()| true),
        }
    }

    unsafe fn synchronize(&self, stream: RawStream, deadline: Option<Duration>) -> Result<()> {
        // SAFETY: the caller's promise.
        if unsafe { self.is_capturing(stream) }? {
            return Err(Error::new(ErrorKind::InvalidUsage, "the stream is being captured"));
        }
        let Some(deadline) = deadline else {
            // SAFETY: the caller's promise.
            return check("synchronize", unsafe { cuStreamSynchronize(stream.bits()) });
        };
        let until = Instant::now() + deadline;
        let event = self.event_create()?;
        let reached = || {
            // SAFETY: an event of this device; the stream is the caller's promise.
            unsafe { self.record(event, stream) }?;
            loop {
                // SAFETY: an event that lives.
                if unsafe { self.query(event) }? {
                    return Ok(());
                }
                if Instant::now() >= until {
                    let message = format!("the stream is not done after {deadline:?}");
                    return Err(Error::new(ErrorKind::Timeout, message));
                }
                thread::sleep(Duration::from_millis(1));
            }
        };
        let reached = reached();
        // SAFETY: nobody else knows it.
        unsafe { self.event_destroy(event) }?;
        reached
    }

    unsafe fn begin_capture(&self, stream: RawStream) -> Result<()> {
        self.bind()?;
        // SAFETY: the caller's promise.
        check("begin_capture", unsafe { cuStreamBeginCapture_v2(stream.bits(), RELAXED) })
    }

    unsafe fn end_capture(&self, stream: RawStream) -> Result<RawGraph> {
        self.bind()?;
        let (mut graph, mut instance) = (0, 0);
        // SAFETY: the caller's promise; `graph` outlives the call.
        check("end_capture", unsafe { cuStreamEndCapture(stream.bits(), &mut graph) })?;
        // SAFETY: a graph that was just captured; `instance` outlives the call.
        let made = unsafe { cuGraphInstantiateWithFlags(&mut instance, graph, 0) };
        // SAFETY: nobody else knows it, and the instance does not need it.
        check("end_capture", unsafe { cuGraphDestroy(graph) })?;
        check("end_capture", made)?;
        Ok(RawGraph::from_bits(instance))
    }

    unsafe fn is_capturing(&self, stream: RawStream) -> Result<bool> {
        self.bind()?;
        let mut status = 0;
        // SAFETY: the caller's promise; `status` outlives the call.
        check("is_capturing", unsafe { cuStreamIsCapturing(stream.bits(), &mut status) })?;
        Ok(status != 0)
    }

    unsafe fn launch(&self, graph: RawGraph, stream: RawStream) -> Result<()> {
        self.bind()?;
        // SAFETY: the caller's promise.
        check("launch", unsafe { cuGraphLaunch(graph.bits(), stream.bits()) })
    }

    unsafe fn graph_destroy(&self, graph: RawGraph) -> Result<()> {
        self.bind()?;
        // SAFETY: the caller's promise.
        check("graph_destroy", unsafe { cuGraphExecDestroy(graph.bits()) })
    }
}

fn check(operation: &'static str, code: c_int) -> Result<()> {
    let kind = match code {
        0 => return Ok(()),
        1 => ErrorKind::InvalidArgument,
        2 => ErrorKind::OutOfMemory,
        // An end of a capture that was not begun, and whatever a capture forbids.
        401 | 900..=908 => ErrorKind::InvalidUsage,
        _ => ErrorKind::Device,
    };
    Err(Error::new(kind, format!("the driver answered {code}")).with_operation(operation))
}

// Of cuda.h; handles and addresses are numbers.
unsafe extern "C" {
    fn cuInit(flags: c_uint) -> c_int;
    fn cuDeviceGetCount(count: *mut c_int) -> c_int;
    fn cuDevicePrimaryCtxRetain(context: *mut usize, device: c_int) -> c_int;
    fn cuCtxSetCurrent(context: usize) -> c_int;
    fn cuMemAlloc_v2(memory: *mut usize, bytes: usize) -> c_int;
    fn cuMemFreeAsync(memory: usize, stream: usize) -> c_int;
    fn cuMemcpyHtoDAsync_v2(to: usize, from: usize, bytes: usize, stream: usize) -> c_int;
    fn cuMemcpyDtoHAsync_v2(to: usize, from: usize, bytes: usize, stream: usize) -> c_int;
    fn cuMemcpyDtoDAsync_v2(to: usize, from: usize, bytes: usize, stream: usize) -> c_int;
    fn cuMemsetD8Async(to: usize, value: u8, count: usize, stream: usize) -> c_int;
    fn cuStreamCreate(stream: *mut usize, flags: c_uint) -> c_int;
    fn cuStreamDestroy_v2(stream: usize) -> c_int;
    fn cuStreamSynchronize(stream: usize) -> c_int;
    fn cuStreamWaitEvent(stream: usize, event: usize, flags: c_uint) -> c_int;
    fn cuStreamBeginCapture_v2(stream: usize, mode: c_uint) -> c_int;
    fn cuStreamEndCapture(stream: usize, graph: *mut usize) -> c_int;
    fn cuStreamIsCapturing(stream: usize, status: *mut c_uint) -> c_int;
    fn cuEventCreate(event: *mut usize, flags: c_uint) -> c_int;
    fn cuEventDestroy_v2(event: usize) -> c_int;
    fn cuEventRecord(event: usize, stream: usize) -> c_int;
    fn cuEventQuery(event: usize) -> c_int;
    fn cuGraphInstantiateWithFlags(instance: *mut usize, graph: usize, flags: c_ulonglong)
    -> c_int;
    fn cuGraphLaunch(instance: usize, stream: usize) -> c_int;
    fn cuGraphExecDestroy(instance: usize) -> c_int;
    fn cuGraphDestroy(graph: usize) -> c_int;
}

const NOT_READY: c_int = 600;
/// `CU_STREAM_NON_BLOCKING`.
const NON_BLOCKING: c_uint = 1;
/// `CU_EVENT_DISABLE_TIMING`.
const DISABLE_TIMING: c_uint = 2;
/// `CU_STREAM_CAPTURE_MODE_RELAXED`.
const RELAXED: c_uint = 2;
