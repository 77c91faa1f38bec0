//! The function table: every function of the HIP runtime that this crate calls, found by name at
//! run time.
//!
//! One list makes the struct, its symbol data and the code that fills it, as in
//! `collectives_nccl_abi`. It is read beside `hip_runtime_api.h`; signatures are the same from HIP
//! 5.2 to 7.15. Required is what all of these have and the device layer cannot do without.

use std::{
    ffi::{CStr, c_char, c_int, c_uint, c_void},
    fmt,
    mem::transmute,
};

use super::types::{
    hipDevice_t, hipDeviceAttribute_t, hipError_t, hipEvent_t, hipGraph_t, hipGraphExec_t,
    hipGraphNode_t, hipMemcpyKind, hipPointerAttribute_t, hipStream_t, hipStreamCaptureMode,
    hipStreamCaptureStatus,
};

macro_rules! function_table {
    (
        required { $(
            $(#[doc = $required_doc:literal])*
            $required:ident = $required_name:ident:
            fn($($required_arg:ident: $required_type:ty),* $(,)?) -> $required_return:ty;
        )* }
        optional { $(
            $(#[doc = $optional_doc:literal])*
            $optional:ident = $optional_name:ident:
            fn($($optional_arg:ident: $optional_type:ty),* $(,)?) -> $optional_return:ty;
        )* }
    ) => {
        /// The functions of one HIP runtime: plain pointers, valid for the life of the process.
        ///
        /// A required function is there; an optional one is `None` where the runtime lacks it.
        #[derive(Clone, Copy, Debug)]
        pub struct Table {
            $(
                $(#[doc = $required_doc])*
                #[doc = concat!("\n\n`", stringify!($required_name), "`.")]
                pub $required:
                    unsafe extern "C" fn($($required_arg: $required_type),*) -> $required_return,
            )*
            $(
                $(#[doc = $optional_doc])*
                #[doc = concat!("\n\n`", stringify!($optional_name), "`.")]
                pub $optional: Option<
                    unsafe extern "C" fn($($optional_arg: $optional_type),*) -> $optional_return,
                >,
            )*
        }

        impl Table {
            /// The names of the functions without which a library is refused.
            pub const REQUIRED: &'static [&'static str] = &[$(stringify!($required_name)),*];

            /// The names of the functions that older releases lack.
            pub const OPTIONAL: &'static [&'static str] = &[$(stringify!($optional_name)),*];

            /// Every function with the types that the table gives it, as Rust writes them. For tests
            /// against a C header; spaces are the compiler's choice.
            pub const SIGNATURES: &'static [(&'static str, &'static str)] = &[
                $((
                    stringify!($required_name),
                    stringify!(fn($($required_type),*) -> $required_return),
                ),)*
                $((
                    stringify!($optional_name),
                    stringify!(fn($($optional_type),*) -> $optional_return),
                ),)*
            ];

            /// Fills the table from `find`, which answers null for a name that the library lacks.
            ///
            /// `find` is asked once for each name: the required ones, then the optional ones, in
            /// order.
            ///
            /// # Safety
            ///
            /// Every pointer that `find` answers is null or a function of that name's signature in
            /// `hip_runtime_api.h`, and can be called until the process ends.
            ///
            /// # Errors
            ///
            /// All required functions that are missing, in one error.
            pub unsafe fn fill(
                mut find: impl FnMut(&CStr) -> *const c_void,
            ) -> Result<Self, MissingFunctions> {
                let mut missing = Vec::new();
                $( let $required = find(c_name(concat!(stringify!($required_name), "\0"))); )*
                $( let $optional = find(c_name(concat!(stringify!($optional_name), "\0"))); )*
                $( if $required.is_null() { missing.push(stringify!($required_name)); } )*
                if !missing.is_empty() {
                    return Err(MissingFunctions(missing));
                }
                Ok(Self {
                    $(
                        // SAFETY: not null, and the caller promises a function of this signature.
                        $required: unsafe {
                            transmute::<
                                *const c_void,
                                unsafe extern "C" fn($($required_type),*) -> $required_return,
                            >($required)
                        },
                    )*
                    $(
                        $optional: (!$optional.is_null()).then(|| {
                            // SAFETY: not null, and the caller promises a function of this
                            // signature.
                            unsafe {
                                transmute::<
                                    *const c_void,
                                    unsafe extern "C" fn($($optional_type),*) -> $optional_return,
                                >($optional)
                            }
                        }),
                    )*
                })
            }
        }
    };
}

function_table! {
    required {
        // Devices.
        /// Tells the number of devices that this process may use.
        get_device_count = hipGetDeviceCount: fn(count: *mut c_int) -> hipError_t;
        /// Tells the current device of this thread.
        get_device = hipGetDevice: fn(device: *mut c_int) -> hipError_t;
        /// Makes a device the current one of this thread.
        set_device = hipSetDevice: fn(device: c_int) -> hipError_t;
        /// Tells the product name of a device.
        device_get_name = hipDeviceGetName:
            fn(name: *mut c_char, length: c_int, device: hipDevice_t) -> hipError_t;
        /// Tells one property of a device.
        device_get_attribute = hipDeviceGetAttribute:
            fn(value: *mut c_int, attribute: hipDeviceAttribute_t, device: c_int) -> hipError_t;
        /// Tells the PCI address of a device.
        device_get_pci_bus_id = hipDeviceGetPCIBusId:
            fn(address: *mut c_char, length: c_int, device: c_int) -> hipError_t;
        /// Tells whether a device can reach the memory of another.
        device_can_access_peer = hipDeviceCanAccessPeer:
            fn(can: *mut c_int, device: c_int, peer: c_int) -> hipError_t;
        /// Opens the memory of a device to the current one.
        device_enable_peer_access = hipDeviceEnablePeerAccess:
            fn(peer: c_int, flags: c_uint) -> hipError_t;
        /// Tells the version: major × 10⁷ + minor × 10⁵ + patch.
        runtime_get_version = hipRuntimeGetVersion: fn(version: *mut c_int) -> hipError_t;

        // Errors.
        /// Tells the last failure on this thread, and clears it.
        get_last_error = hipGetLastError: fn() -> hipError_t;
        /// Names a code, in static text.
        get_error_name = hipGetErrorName: fn(error: hipError_t) -> *const c_char;
        /// Describes a code, in static text.
        get_error_string = hipGetErrorString: fn(error: hipError_t) -> *const c_char;

        // Memory.
        /// Allocates memory of the current device.
        malloc = hipMalloc: fn(memory: *mut *mut c_void, bytes: usize) -> hipError_t;
        /// Frees it, once all work of the device is done.
        free = hipFree: fn(memory: *mut c_void) -> hipError_t;
        /// Tells how much memory of the current device is free, and how much there is.
        mem_get_info = hipMemGetInfo: fn(free: *mut usize, total: *mut usize) -> hipError_t;
        /// Tells what an address points into.
        pointer_get_attributes = hipPointerGetAttributes:
            fn(attributes: *mut hipPointerAttribute_t, address: *const c_void) -> hipError_t;
        /// Enqueues a copy.
        memcpy_async = hipMemcpyAsync:
            fn(
                to: *mut c_void, from: *const c_void, bytes: usize, kind: hipMemcpyKind,
                stream: hipStream_t,
            ) -> hipError_t;
        /// Enqueues filling with a byte.
        memset_async = hipMemsetAsync:
            fn(to: *mut c_void, value: c_int, bytes: usize, stream: hipStream_t) -> hipError_t;

        // Streams and events.
        /// Makes a stream of the current device.
        stream_create_with_flags = hipStreamCreateWithFlags:
            fn(stream: *mut hipStream_t, flags: c_uint) -> hipError_t;
        /// Destroys a stream.
        stream_destroy = hipStreamDestroy: fn(stream: hipStream_t) -> hipError_t;
        /// Blocks until all is done that is enqueued on a stream.
        stream_synchronize = hipStreamSynchronize: fn(stream: hipStream_t) -> hipError_t;
        /// Enqueues a wait for an event.
        stream_wait_event = hipStreamWaitEvent:
            fn(stream: hipStream_t, event: hipEvent_t, flags: c_uint) -> hipError_t;
        /// Makes an event of the current device.
        event_create_with_flags = hipEventCreateWithFlags:
            fn(event: *mut hipEvent_t, flags: c_uint) -> hipError_t;
        /// Enqueues recording an event.
        event_record = hipEventRecord: fn(event: hipEvent_t, stream: hipStream_t) -> hipError_t;
        /// Tells whether the last recording was reached.
        event_query = hipEventQuery: fn(event: hipEvent_t) -> hipError_t;
        /// Destroys an event.
        event_destroy = hipEventDestroy: fn(event: hipEvent_t) -> hipError_t;

        // Capture and graphs.
        /// Starts capturing a stream.
        stream_begin_capture = hipStreamBeginCapture:
            fn(stream: hipStream_t, mode: hipStreamCaptureMode) -> hipError_t;
        /// Ends capturing a stream.
        stream_end_capture = hipStreamEndCapture:
            fn(stream: hipStream_t, graph: *mut hipGraph_t) -> hipError_t;
        /// Tells whether a stream is being captured.
        stream_is_capturing = hipStreamIsCapturing:
            fn(stream: hipStream_t, status: *mut hipStreamCaptureStatus) -> hipError_t;
        /// Swaps this thread's capture mode.
        thread_exchange_stream_capture_mode = hipThreadExchangeStreamCaptureMode:
            fn(mode: *mut hipStreamCaptureMode) -> hipError_t;
        /// Makes an instance of a graph, with the arguments of CUDA 11.
        graph_instantiate = hipGraphInstantiate:
            fn(
                instance: *mut hipGraphExec_t, graph: hipGraph_t, error_node: *mut hipGraphNode_t,
                log: *mut c_char, log_length: usize,
            ) -> hipError_t;
        /// Enqueues one run of an instance.
        graph_launch = hipGraphLaunch:
            fn(instance: hipGraphExec_t, stream: hipStream_t) -> hipError_t;
        /// Destroys an instance.
        graph_exec_destroy = hipGraphExecDestroy: fn(instance: hipGraphExec_t) -> hipError_t;
        /// Destroys a graph.
        graph_destroy = hipGraphDestroy: fn(graph: hipGraph_t) -> hipError_t;
    }
    optional {
        /// Readies an instance for its first run. Not in HIP 5.2.
        graph_upload = hipGraphUpload:
            fn(instance: hipGraphExec_t, stream: hipStream_t) -> hipError_t;
        /// Tells the device of a stream. Not in HIP 5.2.
        stream_get_device = hipStreamGetDevice:
            fn(stream: hipStream_t, device: *mut hipDevice_t) -> hipError_t;
        /// Fills the property structure of HIP 6 and 7.
        get_device_properties_r0600 = hipGetDevicePropertiesR0600:
            fn(properties: *mut c_void, device: c_int) -> hipError_t;
        /// Fills the property structure of HIP 5, which this name still means in later releases.
        get_device_properties_r0000 = hipGetDeviceProperties:
            fn(properties: *mut c_void, device: c_int) -> hipError_t;
    }
}

/// Functions of the HIP runtime that a library lacks, all of them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MissingFunctions(pub Vec<&'static str>);

impl fmt::Display for MissingFunctions {
    /// `hipMalloc, hipGraphLaunch`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(", "))
    }
}

impl std::error::Error for MissingFunctions {}

/// A C name from an identifier of the list.
const fn c_name(name: &'static str) -> &'static CStr {
    match CStr::from_bytes_with_nul(name.as_bytes()) {
        Ok(name) => name,
        Err(_) => panic!("an identifier holds no NUL byte"),
    }
}

const _: () = {
    const fn all_threads<T: Copy + Send + Sync + 'static>() {}
    all_threads::<Table>();
};

#[cfg(test)]
mod tests {
    use std::ptr;

    use super::*;

    fn fill(has: impl Fn(&str) -> bool) -> Result<(Table, Vec<String>), MissingFunctions> {
        // Each name gets a pointer of its own, so that a slip in the order of the list is seen.
        let mut asked = Vec::new();
        let find = |name: &CStr| {
            let name = name.to_str().expect("names are ASCII");
            asked.push(name.to_owned());
            if has(name) { ptr::without_provenance(asked.len()) } else { ptr::null() }
        };
        // SAFETY: the pointers are never called.
        let table = unsafe { Table::fill(find) }?;
        Ok((table, asked))
    }

    #[test]
    fn each_slot_is_filled_with_its_own_function() {
        let (table, asked) = fill(|_| true).expect("nothing is missing");
        let names: Vec<&str> = [Table::REQUIRED, Table::OPTIONAL].concat();
        assert_eq!(asked, names);
        let named = |function: usize| asked[function - 1].as_str();
        assert_eq!(named(table.get_device_count as usize), "hipGetDeviceCount");
        assert_eq!(named(table.graph_destroy as usize), "hipGraphDestroy");
        let old = table.get_device_properties_r0000.map(|function| function as usize);
        assert_eq!(old.map(named), Some("hipGetDeviceProperties"));
    }

    #[test]
    fn all_missing_functions_come_in_one_error() {
        let error = fill(|name| !matches!(name, "hipMalloc" | "hipGraphLaunch" | "hipGraphUpload"))
            .expect_err("two required ones are missing");
        assert_eq!(error.to_string(), "hipMalloc, hipGraphLaunch");
    }

    #[test]
    fn older_releases_are_taken() {
        let (table, _) = fill(|name| Table::REQUIRED.contains(&name)).expect("all that it needs");
        assert!(table.graph_upload.is_none() && table.stream_get_device.is_none());
        assert!(table.get_device_properties_r0600.is_none());
    }
}
