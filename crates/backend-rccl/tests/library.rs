//! What RCCL alone does, and how it is told: tables of functions that answer as a release does on a
//! machine without a GPU.

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    ptr,
};

use collectives_backend_rccl::Rccl;
use collectives_core::{Backend as _, ErrorKind, Support, Version};
use collectives_nccl_abi::{Table, ncclComm_t, ncclResult_t, ncclUniqueId};

/// A release that has the functions of this list, of which only those that `change` sets may be
/// called.
fn release(exports: &str, change: impl FnOnce(&mut Table)) -> Rccl {
    let find = |name: &CStr| match exports.lines().any(|line| line.as_bytes() == name.to_bytes()) {
        true => never as extern "C" fn() as *const c_void,
        false => ptr::null(),
    };
    // SAFETY: the functions have other types; those that a test calls are replaced below.
    let mut table = unsafe { Table::fill(find) }.expect("a release has the required functions");
    table.get_error_string = error_string;
    table.get_last_error = Some(stale_words);
    change(&mut table);
    // SAFETY: the functions that are called are those of this file, with the types of the table.
    unsafe { Rccl::from_table(table) }.expect("it tells its version")
}

fn rccl_2_27_7() -> Rccl {
    release(include_str!("../../nccl-abi/tests/symbols/rccl-2.27.7.txt"), |table| {
        table.get_version = version::<22_707>;
        table.get_unique_id = no_unique_id;
    })
}

fn rccl_2_13_4() -> Rccl {
    release(include_str!("../../nccl-abi/tests/symbols/rccl-2.13.4.txt"), |table| {
        table.get_version = version::<21_304>;
        table.get_unique_id = code_8;
    })
}

extern "C" fn never() {}

unsafe extern "C" fn version<const CODE: c_int>(version: *mut c_int) -> ncclResult_t {
    // SAFETY: the loader's own variable.
    unsafe { version.write(CODE) };
    ncclResult_t::SUCCESS
}

unsafe extern "C" fn no_unique_id(_: *mut ncclUniqueId) -> ncclResult_t {
    ncclResult_t::UNHANDLED_CUDA_ERROR
}

unsafe extern "C" fn code_8(_: *mut ncclUniqueId) -> ncclResult_t {
    ncclResult_t::TIMEOUT
}

unsafe extern "C" fn error_string(_: ncclResult_t) -> *const c_char {
    c"unhandled cuda error (run with NCCL_DEBUG=INFO for details)".as_ptr()
}

/// Like what 2.27.7 has there whatever failed; that it speaks of memory must not be believed.
unsafe extern "C" fn stale_words(_: ncclComm_t) -> *const c_char {
    c"Missing \"iommu=pt\" from kernel command line, which may run out of memory".as_ptr()
}

#[test]
fn a_unique_id_without_a_device_says_what_is_missing() {
    let error = rccl_2_27_7().unique_id().expect_err("there is no device");
    assert_eq!(error.kind(), ErrorKind::Device, "{error}");
    assert_eq!(error.vendor_code().map(|code| code.0), Some(1));
    assert_eq!(error.operation(), Some("unique_id"));
    let hint = error.hint().expect("our own words");
    assert!(hint.starts_with("HIP: "), "{hint}");
    assert!(!error.poisons_communicator());
}

#[test]
fn the_last_error_is_told_as_what_it_is() {
    let error = rccl_2_27_7().unique_id().expect_err("there is no device");
    let words = error.last_error().expect("the library has some");
    assert!(words.starts_with("perhaps of another call: Missing"), "{words}");
}

#[test]
fn code_8_is_no_timeout_before_2_30() {
    let error = rccl_2_13_4().unique_id().expect_err("it answers 8");
    assert_eq!(error.kind(), ErrorKind::Vendor);
    assert_eq!(error.message(), "unknown code 8");
    assert_eq!(error.vendor_code().map(|code| code.0), Some(8));
    // This release makes identifiers without a device, so its failures are not explained so.
    assert_eq!(error.hint(), None);
}

#[test]
fn the_oldest_release_does_every_operation() {
    let rccl = rccl_2_13_4();
    assert_eq!(rccl.info().backend, "RCCL");
    assert_eq!(rccl.info().version, Version::new(2, 13, 4));
    let has = rccl.capabilities();
    assert_eq!(has.all_to_all, Support::Native, "under RCCL's spelling");
    let operations = [
        has.all_gather,
        has.all_reduce,
        has.broadcast,
        has.gather,
        has.recv,
        has.reduce,
        has.reduce_scatter,
        has.scatter,
        has.send,
        has.reduce_avg,
        has.reduce_pre_mul_sum,
    ];
    assert_eq!(operations, [Support::Native; 11]);
    for lacking in [has.split, has.finalize, has.mem_alloc, has.register] {
        assert!(matches!(lacking, Support::Unsupported { since: Some(_) }));
    }
}
