//! Parameters: variables of the environment that programs can ask the library for.
#![expect(non_snake_case, reason = "C names stay C names, as in nccl.h")]

use std::{
    collections::BTreeMap,
    env,
    ffi::{CStr, CString, c_char, c_int, c_void},
    fmt::Write as _,
    ptr,
    sync::{LazyLock, Mutex, PoisonError},
};

use collectives_nccl_abi::{ncclResult_t, types::ncclParamHandle_t};

use super::{
    log::{self, Subsystem},
    refusal::{Refusal, Result, answer, put, tell},
};

/// The parameters that NCCL 2.32.3 has. All of them are texts.
const KEYS: [&CStr; 7] = [
    c"NCCL_DEBUG",
    c"NCCL_DEBUG_FILE",
    c"NCCL_DEBUG_SUBSYS",
    c"NCCL_DEBUG_LEVELS",
    c"NCCL_DEBUG_TIMESTAMP_FORMAT",
    c"NCCL_DEBUG_TIMESTAMP_LEVELS",
    c"NCCL_SET_THREAD_NAME",
];

/// Pointers to the keys, for C.
struct Pointers([*const c_char; KEYS.len()]);

// SAFETY: they point to static texts, which nobody writes.
unsafe impl Send for Pointers {}
// SAFETY: as above.
unsafe impl Sync for Pointers {}

static POINTERS: LazyLock<Pointers> = LazyLock::new(|| Pointers(KEYS.map(CStr::as_ptr)));

/// The value of a parameter, which lives as long as the process.
fn value(key: &'static CStr) -> &'static CStr {
    static VALUES: Mutex<BTreeMap<(&CStr, CString), &'static CStr>> = Mutex::new(BTreeMap::new());
    let value = key.to_str().ok().and_then(env::var_os);
    let value = value.and_then(|value| CString::new(value.into_encoded_bytes()).ok());
    let value = value.unwrap_or_else(|| c"<unknown>".to_owned());
    let mut values = VALUES.lock().unwrap_or_else(PoisonError::into_inner);
    values.entry((key, value.clone())).or_insert_with(|| Box::leak(value.into_boxed_c_str()))
}

/// The parameter of this name.
///
/// # Safety
/// `key` is null or a C string.
unsafe fn find(call: &str, key: *const c_char) -> Result<(usize, &'static CStr)> {
    if key.is_null() {
        return Err(Refusal::null(call, "key"));
    }
    // SAFETY: not null, so a C string.
    let key = unsafe { CStr::from_ptr(key) };
    let found = KEYS.iter().position(|known| *known == key);
    let index = found.ok_or_else(|| {
        Refusal::argument(format!("{call} : unknown parameter {}", key.to_string_lossy()))
    })?;
    Ok((index, KEYS[index]))
}

/// The parameter behind a handle: the address of its key's pointer.
fn bound(call: &str, handle: ncclParamHandle_t) -> Result<&'static CStr> {
    let found = POINTERS.0.iter().position(|key| handle.0.addr() == (&raw const *key).addr());
    let index = found.ok_or_else(|| Refusal::argument(format!("{call} : invalid handle")))?;
    Ok(KEYS[index])
}

/// What reading a text as a number comes to.
fn mistyped(call: &str, handle: ncclParamHandle_t) -> ncclResult_t {
    answer(|| {
        bound(call, handle)?;
        Err(Refusal::argument(format!("{call} : type mismatch, the parameter is a text")))
    })
}

export! {
    nccl, on_panic = ncclResult_t::INTERNAL_ERROR;

    /// Finds a parameter by its key.
    fn ncclParamBind(out: *mut ncclParamHandle_t, key: *const c_char) -> ncclResult_t {
        const CALL: &str = "ncclParamBind";
        answer(|| {
            // SAFETY: null, or the caller's text.
            let (index, _) = unsafe { find(CALL, key) }?;
            let place = (&raw const POINTERS.0[index]).cast_mut().cast::<c_void>();
            tell(CALL, "out", out, ncclParamHandle_t(place))
        })
    }

    /// Reads an `int8_t` parameter: there is none.
    fn ncclParamGetI8(h: ncclParamHandle_t, _out: *mut i8) -> ncclResult_t {
        mistyped("ncclParamGetI8", h)
    }

    /// Reads an `int16_t` parameter: there is none.
    fn ncclParamGetI16(h: ncclParamHandle_t, _out: *mut i16) -> ncclResult_t {
        mistyped("ncclParamGetI16", h)
    }

    /// Reads an `int32_t` parameter: there is none.
    fn ncclParamGetI32(h: ncclParamHandle_t, _out: *mut i32) -> ncclResult_t {
        mistyped("ncclParamGetI32", h)
    }

    /// Reads an `int64_t` parameter: there is none.
    fn ncclParamGetI64(h: ncclParamHandle_t, _out: *mut i64) -> ncclResult_t {
        mistyped("ncclParamGetI64", h)
    }

    /// Reads a `uint8_t` parameter: there is none.
    fn ncclParamGetU8(h: ncclParamHandle_t, _out: *mut u8) -> ncclResult_t {
        mistyped("ncclParamGetU8", h)
    }

    /// Reads a `uint16_t` parameter: there is none.
    fn ncclParamGetU16(h: ncclParamHandle_t, _out: *mut u16) -> ncclResult_t {
        mistyped("ncclParamGetU16", h)
    }

    /// Reads a `uint32_t` parameter: there is none.
    fn ncclParamGetU32(h: ncclParamHandle_t, _out: *mut u32) -> ncclResult_t {
        mistyped("ncclParamGetU32", h)
    }

    /// Reads a `uint64_t` parameter: there is none.
    fn ncclParamGetU64(h: ncclParamHandle_t, _out: *mut u64) -> ncclResult_t {
        mistyped("ncclParamGetU64", h)
    }

    /// Reads a text parameter.
    fn ncclParamGetStr(h: ncclParamHandle_t, out: *mut *const c_char) -> ncclResult_t {
        const CALL: &str = "ncclParamGetStr";
        answer(|| tell(CALL, "out", out, value(bound(CALL, h)?).as_ptr()))
    }

    /// Reads a parameter of any type into `max_len` bytes.
    fn ncclParamGet(
        h: ncclParamHandle_t, out: *mut c_void, max_len: c_int, len: *mut c_int,
    ) -> ncclResult_t {
        const CALL: &str = "ncclParamGet";
        answer(|| {
            let bytes = value(bound(CALL, h)?).to_bytes_with_nul();
            if out.is_null() {
                return Err(Refusal::null(CALL, "out"));
            }
            if usize::try_from(max_len).is_ok_and(|room| room < bytes.len()) || max_len < 0 {
                return Err(Refusal::argument(format!(
                    "{CALL} : {max_len} bytes do not hold {}", bytes.len()
                )));
            }
            // SAFETY: the caller's place has as many bytes as it says, which is enough.
            unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), out.cast(), bytes.len()) };
            tell(CALL, "len", len, bytes.len() as c_int)
        })
    }

    /// Reads a parameter as text, by its key.
    fn ncclParamGetParameter(
        key: *const c_char, place: *mut *const c_char, value_len: *mut c_int,
    ) -> ncclResult_t {
        const CALL: &str = "ncclParamGetParameter";
        answer(|| {
            // SAFETY: null, or the caller's text.
            let (_, key) = unsafe { find(CALL, key) }?;
            let value = value(key);
            put(CALL, "value", place, value.as_ptr())?;
            tell(CALL, "valueLen", value_len, value.count_bytes() as c_int)
        })
    }

    /// Lists the keys of all parameters.
    fn ncclParamGetAllParameterKeys(
        table: *mut *mut *const c_char, table_len: *mut c_int,
    ) -> ncclResult_t {
        const CALL: &str = "ncclParamGetAllParameterKeys";
        answer(|| {
            put(CALL, "table", table, POINTERS.0.as_ptr().cast_mut())?;
            tell(CALL, "tableLen", table_len, KEYS.len() as c_int)
        })
    }
}

export! {
    nccl, on_panic = ();

    /// Logs all parameters.
    fn ncclParamDumpAll() {
        let mut text = String::new();
        for key in KEYS {
            // Writing to a string does not fail.
            let _ = write!(
                text, " {}={}", key.to_string_lossy(), value(key).to_string_lossy()
            );
        }
        log::info(Subsystem::Init, format_args!("parameters:{text}"));
    }
}
