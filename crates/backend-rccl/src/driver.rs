//! The HIP runtime: where it is, is it whole, and what do its errors say.
//!
//! 1. `COLLECTIVES_HIP_PATH` is a demand: that file or none.
//! 2. Else the functions are taken through the handle of an RCCL that is open. `dlsym` walks what a
//!    library depends on, so this is the very runtime that RCCL uses, and no second one.
//! 3. An RCCL that depends on none (a stand-in) leaves the names of the runtime, newest first: one
//!    that is in the process already, then one that the dynamic loader finds.
//!
//! To open the runtime is harmless. Every call is not, down to the question for its version: it
//! opens `/dev/kfd`, and a child that is forked afterwards counts devices and then fails to
//! allocate. So nothing is called before somebody asks for a device.

use std::{
    ffi::{CStr, OsString, c_char, c_int, c_void},
    fmt::Write as _,
    sync::OnceLock,
};

use collectives_core::{Error, ErrorKind, Result, VendorCode, Version};
use collectives_nccl_abi::{self as abi, Vendor, fork};

use crate::hip::{MissingFunctions, Table, types::hipError_t};

/// The HIP runtime of this process, open for ever.
#[derive(Debug)]
pub(crate) struct Hip {
    pub(crate) table: Table,
}

/// The runtime; opened once. What keeps it from being opened may change, when RCCL is loaded or a
/// variable is set, so a refusal is not kept.
///
/// # Errors
/// [`Device`](ErrorKind::Device), saying what is missing and what to do;
/// [`Forked`](ErrorKind::Forked).
pub(crate) fn hip() -> Result<&'static Hip> {
    static HIP: OnceLock<Hip> = OnceLock::new();
    if fork::in_forked_child() {
        return Err(Error::new(ErrorKind::Forked, "HIP was opened before this process was forked")
            .with_backend(HIP_NAME)
            .with_hint("use HIP in the child only, or start processes instead of forking them"));
    }
    if let Some(hip) = HIP.get() {
        return Ok(hip);
    }
    let path = std::env::var_os(PATH_VARIABLE).filter(|path| !path.is_empty());
    let table = find(path)?;
    fork::arm();
    Ok(HIP.get_or_init(|| Hip { table }))
}

/// Number of devices that this process may use, which is at least one.
///
/// # Errors
/// As [`hip`]; [`Device`](ErrorKind::Device) where there is none, or the runtime does not start.
pub(crate) fn device_count() -> Result<usize> {
    hip()?.device_count()
}

/// The version of the runtime.
///
/// # Errors
/// As [`hip`]; what the runtime reports.
pub(crate) fn version() -> Result<Version> {
    let (hip, mut code) = (hip()?, 0);
    // SAFETY: `code` outlives the call.
    hip.check("version", unsafe { (hip.table.runtime_get_version)(&mut code) })?;
    let code = u32::try_from(code).unwrap_or_default();
    Ok(Version::new(code / 10_000_000, code / 100_000 % 100, code % 100_000))
}

impl Hip {
    fn device_count(&self) -> Result<usize> {
        let mut count = 0;
        // SAFETY: `count` outlives the call.
        let code = unsafe { (self.table.get_device_count)(&mut count) };
        let hint = match (code, usize::try_from(count)) {
            (hipError_t::SUCCESS, Ok(count @ 1..)) => return Ok(count),
            // Some releases answer success, and none.
            (hipError_t::SUCCESS | hipError_t::NO_DEVICE, _) => NO_DEVICE,
            _ => "see whether rocminfo works",
        };
        let code = if code.is_success() { hipError_t::NO_DEVICE } else { code };
        let message = format!("the HIP runtime does not start: {}", self.describe(code));
        self.clear();
        Err(refusal(message).with_hint(hint).with_vendor_code(VendorCode(code.0)))
    }

    /// The runtime's answer as a result.
    #[inline]
    pub(crate) fn check(&self, operation: &'static str, code: hipError_t) -> Result<()> {
        match code {
            hipError_t::SUCCESS => Ok(()),
            failure => Err(self.error(operation, failure)),
        }
    }

    /// An error for what the runtime answered, in its own words.
    #[cold]
    pub(crate) fn error(&self, operation: &'static str, code: hipError_t) -> Error {
        self.clear();
        let kind = match code {
            hipError_t::OUT_OF_MEMORY => ErrorKind::OutOfMemory,
            _ => ErrorKind::Device,
        };
        Error::new(kind, self.describe(code))
            .with_backend(HIP_NAME)
            .with_operation(operation)
            .with_vendor_code(VendorCode(code.0))
    }

    /// Takes this thread's last error back: it would be told to whoever asks next, and RCCL asks
    /// after it launched something.
    #[cold]
    pub(crate) fn clear(&self) {
        // SAFETY: takes nothing.
        let _told_already = unsafe { (self.table.get_last_error)() };
    }

    /// `hipErrorOutOfMemory: out of memory`. Our names for codes, as a runtime calls those that are
    /// younger than itself all the same.
    fn describe(&self, code: hipError_t) -> String {
        // SAFETY: the function takes every number.
        let name = unsafe { (self.table.get_error_name)(code) };
        // SAFETY: null, or static text of the runtime.
        let name = unsafe { copy(name) }.filter(|name| name != UNKNOWN);
        let name = code.name().map(str::to_owned).or(name);
        // SAFETY: the function takes every number.
        let text = unsafe { (self.table.get_error_string)(code) };
        // SAFETY: null, or static text of the runtime.
        let text = unsafe { copy(text) };
        match (name, text) {
            (Some(name), Some(text)) if name != text => format!("{name}: {text}"),
            (Some(name), _) => name,
            (None, _) => format!("unknown HIP error {}", code.0),
        }
    }
}

/// What a caller did wrong, in our words.
#[cold]
pub(crate) fn refuse(
    kind: ErrorKind,
    operation: &'static str,
    message: impl Into<String>,
) -> Error {
    Error::new(kind, message).with_backend(HIP_NAME).with_operation(operation)
}

/// No usable runtime.
#[cold]
fn refusal(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Device, message).with_backend(HIP_NAME).with_poison(false)
}

/// # Safety
/// `text` is null, or ends in a NUL and stays.
unsafe fn copy(text: *const c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: the caller's promise.
    Some(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

/// Finds a runtime in the order that stands at the head of this file; `demanded` is what the
/// variable names.
fn find(demanded: Option<OsString>) -> Result<Table> {
    if let Some(path) = demanded {
        let what = format!("{PATH_VARIABLE}={}", path.display());
        return match sys::open(&path, false) {
            Ok(library) => fill(&what, |name| sys::symbol(library, name)),
            Err(text) => Err(refusal(format!("{what}: {text}"))
                .with_hint("correct the variable, or unset it to search")),
        };
    }
    let through_rccl = abi::Library::opened(Vendor::RCCL)
        .into_iter()
        .find(|library| !library.symbol(FIRST).is_null());
    if let Some(library) = through_rccl {
        return fill(&library.to_string(), |name| library.symbol(name));
    }
    let loaded = NAMES.iter().find_map(|name| Some((name, sys::open(name.as_ref(), true).ok()?)));
    if let Some((name, library)) = loaded {
        return fill(name, |name| sys::symbol(library, name));
    }
    let mut tried = String::new();
    for name in NAMES {
        match sys::open(name.as_ref(), false) {
            Ok(library) => return fill(name, |name| sys::symbol(library, name)),
            Err(text) => {
                let comma = if tried.is_empty() { "" } else { ", " };
                let _infallible = write!(tried, "{comma}{name} ({text})");
            }
        }
    }
    Err(refusal(format!("no HIP runtime: tried {tried}")).with_hint(format!(
        "install ROCm's HIP runtime (libamdhip64), or set {PATH_VARIABLE} to the file"
    )))
}

/// The table of a library that calls itself the runtime.
fn fill(what: &str, find: impl FnMut(&CStr) -> *const c_void) -> Result<Table> {
    // SAFETY: the library has the names of the HIP runtime; that it also keeps its signatures is the
    // trust that `collectives_nccl_abi::Library` speaks of. It stays open for ever.
    unsafe { Table::fill(find) }.map_err(|MissingFunctions(missing)| {
        refusal(format!("the HIP runtime {what} lacks {}", missing.join(", ")))
            .with_hint("install ROCm 5.2 or newer")
    })
}

/// The dynamic loader.
#[cfg(target_os = "linux")]
mod sys {
    use std::{
        ffi::{CStr, OsStr, c_void},
        ptr,
    };

    use libloading::os::unix::Library;

    /// Opens a library for ever, or finds it in the process if it has to be `loaded`; the loader's
    /// words where that fails.
    pub(super) fn open(name: &OsStr, loaded: bool) -> Result<usize, String> {
        let flags = libc::RTLD_NOW | libc::RTLD_LOCAL | if loaded { libc::RTLD_NOLOAD } else { 0 };
        // SAFETY: the runtime's own initialisers, which every HIP program runs.
        let opened = unsafe { Library::open(Some(name), flags) };
        opened.map(|library| library.into_raw().expose_provenance()).map_err(|error| {
            let text = match error {
                libloading::Error::DlOpen { source } => source.to_string(),
                other => other.to_string(),
            };
            // The loader's text begins with the name that every report of ours begins with.
            let start = format!("{}: ", name.display());
            text.strip_prefix(&start).map(str::to_owned).unwrap_or(text)
        })
    }

    /// The address of a symbol; null if there is none.
    pub(super) fn symbol(library: usize, name: &CStr) -> *const c_void {
        // SAFETY: the handle is from `dlopen` and never closed; the name ends in a NUL.
        unsafe { libc::dlsym(ptr::with_exposed_provenance_mut(library), name.as_ptr()) }
    }
}

/// ROCm is for Linux.
#[cfg(not(target_os = "linux"))]
mod sys {
    use std::ffi::{CStr, OsStr, c_void};

    pub(super) fn open(_: &OsStr, _: bool) -> Result<usize, String> {
        Err("the HIP runtime is opened on Linux only".to_owned())
    }

    pub(super) fn symbol(_: usize, _: &CStr) -> *const c_void {
        std::ptr::null()
    }
}

/// The number of a device, as C has it; no device has a number that C has not.
pub(crate) fn c(ordinal: usize) -> c_int {
    c_int::try_from(ordinal).unwrap_or(c_int::MAX)
}

/// The runtime's name is that of HIP's major version, which ROCm's may be ahead of.
const NAMES: [&str; 4] =
    ["libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so.5", "libamdhip64.so"];

/// Whose presence shows that a handle leads to a runtime.
const FIRST: &CStr = c"hipGetDeviceCount";

/// The variable that names the runtime's file.
const PATH_VARIABLE: &str = "COLLECTIVES_HIP_PATH";

/// What the runtime calls a code that it does not know.
const UNKNOWN: &str = "hipErrorUnknown";

const NO_DEVICE: &str = "no AMD GPU is visible: see rocminfo, whether this user may open /dev/kfd \
                         and /dev/dri/renderD*, and whether ROCR_VISIBLE_DEVICES, \
                         HIP_VISIBLE_DEVICES or CUDA_VISIBLE_DEVICES hides them all";

pub(crate) const HIP_NAME: &str = "HIP";

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        /// How often this thread's last error was taken.
        static CLEARED: Cell<usize> = const { Cell::new(0) };
    }

    /// A runtime that can only speak of errors: it knows 2, and calls all others unknown.
    fn hip() -> Hip {
        extern "C" fn never() {}
        unsafe extern "C" fn last_error() -> hipError_t {
            CLEARED.set(CLEARED.get() + 1);
            hipError_t::INVALID_VALUE
        }
        unsafe extern "C" fn name(code: hipError_t) -> *const c_char {
            match code {
                hipError_t::OUT_OF_MEMORY => c"hipErrorOutOfMemory".as_ptr(),
                _ => c"hipErrorUnknown".as_ptr(),
            }
        }
        unsafe extern "C" fn text(code: hipError_t) -> *const c_char {
            match code {
                hipError_t::OUT_OF_MEMORY => c"out of memory".as_ptr(),
                // As HIP 5.2 does.
                hipError_t::NO_DEVICE => c"hipErrorNoDevice".as_ptr(),
                _ => std::ptr::null(),
            }
        }
        // SAFETY: the pointers have other signatures; those that are called are replaced below.
        let table = unsafe { Table::fill(|_| never as extern "C" fn() as *const c_void) };
        let mut table = table.expect("nothing is missing");
        table.get_last_error = last_error;
        table.get_error_name = name;
        table.get_error_string = text;
        Hip { table }
    }

    #[test]
    fn failures_keep_their_code_and_leave_nothing_behind() {
        let hip = hip();
        for (code, kind, text) in [
            (2, ErrorKind::OutOfMemory, "HIP alloc: hipErrorOutOfMemory: out of memory"),
            (100, ErrorKind::Device, "HIP alloc: hipErrorNoDevice"),
            // Younger than the runtime, and known to us.
            (916, ErrorKind::Device, "HIP alloc: hipErrorStreamDetached"),
            // Known to nobody.
            (4711, ErrorKind::Device, "HIP alloc: unknown HIP error 4711"),
            (-1, ErrorKind::Device, "HIP alloc: unknown HIP error -1"),
        ] {
            CLEARED.set(0);
            let error = hip.check("alloc", hipError_t(code)).expect_err("a failure");
            assert_eq!(error.kind(), kind, "{code}");
            assert_eq!(error.vendor_code(), Some(VendorCode(code)));
            assert!(error.to_string().starts_with(text), "{error}");
            assert_eq!(CLEARED.get(), 1, "{code}");
        }
        assert!(hip.check("alloc", hipError_t::SUCCESS).is_ok());
        assert_eq!(CLEARED.get(), 1, "success leaves the last error alone");
    }
}
