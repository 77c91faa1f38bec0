//! Texts of codes, and functions by name.

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    ptr,
    sync::OnceLock,
};

use super::driver;
use crate::gpu::{Code, Out, Reply};

driver! {
    /// Tells the name of a code; null for one that has none.
    fn cuGetErrorName(code: Code, name: Out<*const c_char>) {
        let text = code.text().filter(|text| !text.driver.is_empty());
        name.set(text.map_or(ptr::null(), |text| text.driver.as_ptr()))?;
        text.map(drop).ok_or(Code::INVALID_VALUE)
    }

    /// Tells what a code means; null for one that has none.
    fn cuGetErrorString(code: Code, meaning: Out<*const c_char>) {
        let text = code.text().filter(|text| !text.driver.is_empty());
        meaning.set(text.map_or(ptr::null(), |text| text.meaning.as_ptr()))?;
        text.map(drop).ok_or(Code::INVALID_VALUE)
    }

    /// Finds a function by its name.
    fn cuGetProcAddress(
        name: *const c_char,
        function: Out<*mut c_void>,
        version: c_int,
        _flags: u64,
    ) {
        let found = find(name, version)?;
        function.set(found)?;
        if found.is_null() { Err(Code::NOT_FOUND) } else { Ok(()) }
    }

    /// Finds a function by its name. An unknown one is null, and said in the status.
    fn cuGetProcAddress_v2(
        name: *const c_char,
        function: Out<*mut c_void>,
        version: c_int,
        _flags: u64,
        status: Out<c_int>,
    ) {
        let found = find(name, version)?;
        function.set(found)?;
        status.set_if(if found.is_null() { SYMBOL_NOT_FOUND } else { 0 });
        if found.is_null() && status.is_null() { Err(Code::NOT_FOUND) } else { Ok(()) }
    }

    /// Has no start-up cost to tell of.
    fn cuProfilerStart() {
        Ok(())
    }

    /// As [`cuProfilerStart`].
    fn cuProfilerStop() {
        Ok(())
    }
}

/// The function that a name means in a version of CUDA; null where there is none.
pub(crate) fn find(name: *const c_char, version: c_int) -> Reply<*mut c_void> {
    if name.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    // SAFETY: a text that the caller of a C function passes.
    let name = unsafe { CStr::from_ptr(name) };
    let Ok(text) = name.to_str() else { return Ok(ptr::null_mut()) };
    let late = LATE.iter().filter(|(name, since, _)| *name == text && version >= *since);
    if let Some((_, _, exported)) = late.max_by_key(|(_, since, _)| since) {
        return Ok(exported_as(exported));
    }
    if LATE.iter().all(|(name, ..)| *name != text) {
        // What has a second version has had it since before anybody asked by name.
        let second = exported_as(&format!("{text}_v2"));
        if !second.is_null() {
            return Ok(second);
        }
    }
    Ok(exported_as(text))
}

/// Looks a symbol up in this very library.
fn exported_as(name: &str) -> *mut c_void {
    let Ok(name) = CString::new(name) else { return ptr::null_mut() };
    let Some(&library) = library() else { return ptr::null_mut() };
    // SAFETY: a library that stays open, and a text.
    unsafe { libc::dlsym(ptr::with_exposed_provenance_mut(library), name.as_ptr()) }
}

/// The handle of this library, as a number; `None` where it is part of a program.
fn library() -> Option<&'static usize> {
    static LIBRARY: OnceLock<Option<usize>> = OnceLock::new();
    let find = || {
        let mut info: libc::Dl_info = libc::Dl_info {
            dli_fname: ptr::null(),
            dli_fbase: ptr::null_mut(),
            dli_sname: ptr::null(),
            dli_saddr: ptr::null_mut(),
        };
        let own = library as *const c_void;
        // SAFETY: an address of this library, and a place for the answer.
        let found = unsafe { libc::dladdr(own, &mut info) };
        if found == 0 || info.dli_fname.is_null() {
            return None;
        }
        // SAFETY: the file's name, as the loader knows it; it is open already.
        let library = unsafe { libc::dlopen(info.dli_fname, libc::RTLD_NOW | libc::RTLD_NOLOAD) };
        (!library.is_null()).then(|| library.expose_provenance())
    };
    LIBRARY.get_or_init(find).as_ref()
}

/// Names whose meaning changed after CUDA 10: from which version on, and what they mean then.
const LATE: &[(&str, c_int, &str)] = &[
    ("cuCtxCreate", 0, "cuCtxCreate_v2"),
    ("cuCtxCreate", 13000, "cuCtxCreate_v4"),
    ("cuCtxGetDevice", 0, "cuCtxGetDevice"),
    ("cuCtxGetDevice", 13000, "cuCtxGetDevice_v2"),
    ("cuCtxSynchronize", 0, "cuCtxSynchronize"),
    ("cuCtxSynchronize", 13000, "cuCtxSynchronize_v2"),
    ("cuDeviceGetUuid", 0, "cuDeviceGetUuid"),
    ("cuDeviceGetUuid", 11040, "cuDeviceGetUuid_v2"),
    ("cuEventElapsedTime", 0, "cuEventElapsedTime"),
    ("cuEventElapsedTime", 12080, "cuEventElapsedTime_v2"),
    ("cuGetProcAddress", 0, "cuGetProcAddress"),
    ("cuGetProcAddress", 12000, "cuGetProcAddress_v2"),
    ("cuGraphInstantiate", 0, "cuGraphInstantiate_v2"),
    ("cuGraphInstantiate", 12000, "cuGraphInstantiateWithFlags"),
    ("cuMemAdvise", 0, "cuMemAdvise"),
    ("cuMemAdvise", 12020, "cuMemAdvise_v2"),
    ("cuMemPrefetchAsync", 0, "cuMemPrefetchAsync"),
    ("cuMemPrefetchAsync", 12020, "cuMemPrefetchAsync_v2"),
    ("cuStreamGetCaptureInfo", 0, "cuStreamGetCaptureInfo"),
    ("cuStreamGetCaptureInfo", 11030, "cuStreamGetCaptureInfo_v2"),
    ("cuStreamGetCaptureInfo", 12030, "cuStreamGetCaptureInfo_v3"),
    ("cuStreamGetCtx", 0, "cuStreamGetCtx"),
    ("cuStreamGetCtx", 12050, "cuStreamGetCtx_v2"),
];

/// `CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND`.
const SYMBOL_NOT_FOUND: c_int = 1;
