//! What HIP lays out in its own way: the properties of devices and of pointers.
//!
//! CUDA's `cudaDeviceProp` changes with each major release, so only its head is read; the rest comes
//! from attributes.

use std::{
    ffi::{c_char, c_int, c_uint, c_void},
    mem::{offset_of, zeroed},
};

use crate::{
    conv::{Attribute, CudaError, HipError, Reply},
    cudart::Function,
};

/// The start of `cudaDeviceProp`, which is the same in CUDA 11, 12 and 13, and room for the rest:
/// 1032 bytes at most.
#[repr(C)]
pub(crate) struct Head {
    name: [u8; 256],
    pub(crate) uuid: [u8; 16],
    luid: [c_char; 8],
    luid_mask: c_uint,
    pub(crate) total_memory: usize,
    rest: [u64; 475],
}

const _: () = assert!(offset_of!(Head, total_memory) == 288 && size_of::<Head>() == 4096);

impl Head {
    /// Asks for that of a device.
    pub(crate) fn of(device: c_int) -> Reply<Self> {
        type GetProperties = unsafe extern "C" fn(*mut Head, c_int) -> CudaError;
        // CUDA 12's, whose unsuffixed name means the structure of CUDA 11.
        // SAFETY: as in `driver_types.h` and `cuda_runtime_api.h`; the structure has room enough.
        static OF_12: Function<GetProperties> =
            unsafe { Function::new("cudaGetDeviceProperties_v2") };
        // SAFETY: as above.
        static OF_13: Function<GetProperties> = unsafe { Function::new("cudaGetDeviceProperties") };
        let get = OF_12.get().map_or_else(|| OF_13.find(), Ok)?;
        // SAFETY: numbers and bytes, which may all be zero.
        let mut head = unsafe { zeroed::<Self>() };
        // SAFETY: the structure outlives the call, and is larger than CUDA's.
        unsafe { get(&mut head, device) }.ok()?;
        Ok(head)
    }

    /// The name of the device, without a zero.
    pub(crate) fn name(&self) -> &[u8] {
        self.name.split(|byte| *byte == 0).next().unwrap_or_default()
    }
}

/// Asks for an attribute of a device.
fn attribute(which: Attribute, device: c_int) -> Reply<c_int> {
    type GetAttribute = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> CudaError;
    // SAFETY: as in `cuda_runtime_api.h`.
    static GET: Function<GetAttribute> = unsafe { Function::new("cudaDeviceGetAttribute") };
    let (get, mut value) = (GET.find()?, 0);
    // SAFETY: the value outlives the call.
    unsafe { get(&mut value, which.cuda, device) }.ok()?;
    Ok(value)
}

/// Where a `hipDeviceProp_t` has what. Fields that are not listed stay zero.
pub(crate) struct Layout {
    uuid: Option<usize>,
    total_memory: usize,
    architecture: usize,
    numbers: [(usize, Attribute); 7],
}

impl Layout {
    /// Up to HIP 5: 792 bytes.
    pub(crate) const R0000: Self = Self {
        uuid: None,
        total_memory: 256,
        architecture: 396,
        numbers: [
            (276, Attribute::WARP_SIZE),
            (328, Attribute::COMPUTE_CAPABILITY_MAJOR),
            (332, Attribute::COMPUTE_CAPABILITY_MINOR),
            (336, Attribute::MULTIPROCESSOR_COUNT),
            (364, Attribute::PCI_DOMAIN_ID),
            (368, Attribute::PCI_BUS_ID),
            (372, Attribute::PCI_DEVICE_ID),
        ],
    };

    /// Since HIP 6.0: 1472 bytes.
    pub(crate) const R0600: Self = Self {
        uuid: Some(256),
        total_memory: 288,
        architecture: 1160,
        numbers: [
            (308, Attribute::WARP_SIZE),
            (360, Attribute::COMPUTE_CAPABILITY_MAJOR),
            (364, Attribute::COMPUTE_CAPABILITY_MINOR),
            (388, Attribute::MULTIPROCESSOR_COUNT),
            (584, Attribute::PCI_BUS_ID),
            (588, Attribute::PCI_DEVICE_ID),
            (592, Attribute::PCI_DOMAIN_ID),
        ],
    };

    /// The structure of a device. Its architecture (`gfx942` on AMD) is told as `sm_90`.
    pub(crate) fn fill<const SIZE: usize>(&self, device: c_int) -> Reply<[u8; SIZE]> {
        let mut bytes = [0; SIZE];
        let mut put = |at: usize, value: &[u8]| {
            if let Some(place) = bytes.get_mut(at..at + value.len()) {
                place.copy_from_slice(value);
            }
        };
        let head = Head::of(device)?;
        put(0, head.name());
        if let Some(at) = self.uuid {
            put(at, &head.uuid);
        }
        put(self.total_memory, &head.total_memory.to_ne_bytes());
        for (at, which) in self.numbers {
            put(at, &attribute(which, device)?.to_ne_bytes());
        }
        let major = attribute(Attribute::COMPUTE_CAPABILITY_MAJOR, device)?;
        let minor = attribute(Attribute::COMPUTE_CAPABILITY_MINOR, device)?;
        put(self.architecture, format!("sm_{major}{minor}").as_bytes());
        Ok(bytes)
    }
}

/// `hipPointerAttribute_t`: 32 bytes.
#[repr(C)]
pub(crate) struct PointerAttributes {
    head: PointerHead,
    is_managed: c_int,
    flags: c_uint,
}

/// What both have in common: all of CUDA 12's `cudaPointerAttributes`.
#[derive(Clone, Copy)]
#[repr(C)]
struct PointerHead {
    kind: c_int,
    device: c_int,
    device_pointer: *mut c_void,
    host_pointer: *mut c_void,
}

/// CUDA's structure as CUDA 13 has it, and more room: handed HIP's, CUDA 13 would write behind it.
#[repr(C)]
struct CudaPointerAttributes {
    head: PointerHead,
    rest: [u64; 29],
}

const _: () = assert!(size_of::<PointerHead>() == 24 && size_of::<PointerAttributes>() == 32);
const _: () = assert!(size_of::<CudaPointerAttributes>() == 256);

impl PointerAttributes {
    /// Asks what an address points into.
    pub(crate) fn of(address: *const c_void) -> Reply<Self> {
        type Get = unsafe extern "C" fn(*mut CudaPointerAttributes, *const c_void) -> CudaError;
        // SAFETY: as in `driver_types.h` and `cuda_runtime_api.h`; the structure has room enough.
        static GET: Function<Get> = unsafe { Function::new("cudaPointerGetAttributes") };
        let get = GET.find()?;
        // SAFETY: numbers and pointers, which may all be zero.
        let mut answer = unsafe { zeroed::<CudaPointerAttributes>() };
        // SAFETY: the structure outlives the call, and any address may be asked for.
        unsafe { get(&mut answer, address) }.ok()?;
        let head = answer.head;
        Ok(Self { head, is_managed: (head.kind == MANAGED).into(), flags: 0 })
    }
}

/// `cudaMemoryTypeManaged`, and HIP's since 6.0.
const MANAGED: c_int = 3;

/// Writes an answer where the caller wants it.
///
/// # Safety
/// `out` is null or may be written to.
///
/// # Errors
/// [`HipError::INVALID_VALUE`] where it is null.
pub(crate) unsafe fn put<T>(out: *mut T, value: T) -> Reply {
    if out.is_null() {
        return Err(HipError::INVALID_VALUE);
    }
    // SAFETY: not null, and so the caller promises that it may be written to.
    unsafe { out.write(value) };
    Ok(())
}
