//! What all interfaces share: the one machine of the process, and the device of each thread.

use std::{
    cell::Cell,
    collections::BTreeSet,
    env,
    io::Write as _,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use collectives_backend_mock::{Mock, MockConfig, MockDevice, Ranks};
use collectives_core::{Backend, Error, ErrorKind, Result};

use crate::gpu::stream::Stream;

/// The machine of this process, made on first use as the environment says.
///
/// # Errors
/// What is wrong in the environment ([`MockConfig::from_env`]); the same for every call.
pub(crate) fn mock() -> Result<&'static Mock> {
    static MOCK: OnceLock<Result<Mock, (ErrorKind, String)>> = OnceLock::new();
    let made = MOCK.get_or_init(|| {
        let config = MockConfig::from_env().map_err(|error| (error.kind(), error.to_string()))?;
        if cfg!(any(miri, not(target_os = "linux"))) || env::var_os(RANKS).is_some() {
            return Ok(Mock::new(config));
        }
        // A program does not say where its ranks will be, and both have to work.
        let mock = Mock::new(config.clone().with_ranks(Ranks::Processes));
        match mock.unique_id() {
            Ok(_) => Ok(mock),
            Err(error) => {
                say_once(RANKS, &format!("{error}: going on with ranks as threads"));
                Ok(Mock::new(config))
            }
        }
    });
    made.as_ref().map_err(|(kind, text)| Error::new(*kind, text.clone()))
}

/// Opens a device of the machine.
///
/// # Errors
/// As [`mock`] and [`Backend::device`].
pub(crate) fn device(ordinal: usize) -> Result<MockDevice> {
    mock()?.device(ordinal)
}

/// What the ranks of the machine are: see [`MockConfig::from_env`].
const RANKS: &str = "COLLECTIVES_MOCK_RANKS";

thread_local! {
    static DEVICE: Cell<usize> = const { Cell::new(0) };
}

/// Whether any thread has chosen a device or used one. See [`is_without_devices`].
static DEVICES_USED: AtomicBool = AtomicBool::new(false);

/// The device of this thread, for CUDA, HIP and NCCL alike; 0 until it chooses another.
pub(crate) fn current_device() -> usize {
    DEVICE.get()
}

/// Chooses the device of this thread: `cudaSetDevice`, `cuCtxSetCurrent`, `hipSetDevice`.
pub(crate) fn set_current_device(ordinal: usize) {
    note_device_use();
    DEVICE.set(ordinal);
}

/// Notes that the program works with devices: every call that makes a context, memory or a stream.
pub(crate) fn note_device_use() {
    if !DEVICES_USED.load(Ordering::Relaxed) {
        DEVICES_USED.store(true, Ordering::Relaxed);
    }
}

/// Whether the program has never worked with a device, and so has only host memory. Its ranks are
/// then placed on devices by their number, since none of them can choose one.
pub(crate) fn is_without_devices() -> bool {
    !DEVICES_USED.load(Ordering::Relaxed)
}

/// The stream behind a handle (`CUstream`, `cudaStream_t`, `hipStream_t`) that is used on `device`,
/// ready for work. `last` is the one that was found before, as it may well be the same.
///
/// # Errors
/// [`InvalidArgument`](ErrorKind::InvalidArgument) for a handle that is no stream.
pub(crate) fn stream(
    handle: *mut std::ffi::c_void,
    device: usize,
    last: Option<Arc<Stream>>,
) -> Result<Arc<Stream>> {
    crate::cuda::stream(handle, device, last)
}

/// Runs the body of an exported function. A panic ends here: it becomes `on_panic`, and one line on
/// standard error for each function.
pub(crate) fn guarded<R>(
    function: &'static str,
    on_panic: impl FnOnce() -> R,
    body: impl FnOnce() -> R,
) -> R {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(value) => value,
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
            let text = text.unwrap_or_else(|| "no message".to_owned());
            say_once(function, &format!("{function} panicked, which is a bug of the mock: {text}"));
            on_panic()
        }
    }
}

/// Writes a line to standard error, once for each `key` in a process.
pub(crate) fn say_once(key: &'static str, text: &str) {
    static SAID: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    if SAID.lock().unwrap_or_else(PoisonError::into_inner).insert(key) {
        // Nobody is left to tell where standard error is closed.
        let _ = writeln!(std::io::stderr(), "collectives mock: {text}");
    }
}
