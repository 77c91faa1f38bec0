//! The scalar types, handles and constants of `nccl.h`.
//!
//! C enums are open sets: a transparent integer with constants. Codes have grown between releases
//! (`ncclTimeout` came with 2.30.3), so a value that this crate doesn't know is kept, never
//! undefined behaviour. Values never changed between releases or vendors; only their presence
//! differs.

#![expect(non_camel_case_types, reason = "C names stay C names, as in nccl.h")]

use std::ffi::{c_int, c_void};
use std::fmt;

/// A CUDA stream (`hipStream_t` in RCCL), opaque here.
#[doc(alias = "hipStream_t")]
pub type cudaStream_t = *mut c_void;

/// A CUDA event (`hipEvent_t` in RCCL), opaque here.
#[doc(alias = "hipEvent_t")]
pub type cudaEvent_t = *mut c_void;

/// Declares a C enum as an open set, with the C name of each constant for `Debug`. Shared with the
/// HIP runtime's declarations in `collectives-backend-rccl`.
#[doc(hidden)]
#[macro_export]
macro_rules! open_enum {
    (
        $(#[$meta:meta])*
        $type:ident {
            $( $(#[$doc:meta])* $constant:ident = $value:expr, $c_name:literal; )*
        }
    ) => {
        $(#[$meta])*
        #[repr(transparent)]
        #[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub struct $type(pub ::std::ffi::c_int);

        impl $type {
            $(
                $(#[$doc])*
                #[doc = concat!("`", $c_name, "`.")]
                #[doc(alias = $c_name)]
                pub const $constant: Self = Self($value);
            )*

            /// Every value that has a name here, in the header's order.
            pub const NAMED: &'static [Self] = &[$(Self::$constant),*];

            /// Its name in `nccl.h`; `None` for a value that the header doesn't name.
            pub const fn name(self) -> Option<&'static str> {
                match self {
                    $( Self::$constant => Some($c_name), )*
                    _ => None,
                }
            }
        }

        impl ::std::fmt::Debug for $type {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                match self.name() {
                    Some(name) => write!(f, "{name} ({})", self.0),
                    None => write!(f, concat!(stringify!($type), "({})"), self.0),
                }
            }
        }
    };
}

open_enum! {
    /// What a call answered.
    #[must_use = "a refused call did nothing, and a failed one broke its communicator"]
    ncclResult_t {
        SUCCESS = 0, "ncclSuccess";
        UNHANDLED_CUDA_ERROR = 1, "ncclUnhandledCudaError";
        SYSTEM_ERROR = 2, "ncclSystemError";
        INTERNAL_ERROR = 3, "ncclInternalError";
        INVALID_ARGUMENT = 4, "ncclInvalidArgument";
        INVALID_USAGE = 5, "ncclInvalidUsage";
        /// Since 2.13.4:
        REMOTE_ERROR = 6, "ncclRemoteError";
        /// Since 2.14.3, and no error:
        IN_PROGRESS = 7, "ncclInProgress";
        /// Since 2.30.3; older headers used the same number for `ncclNumResults`:
        TIMEOUT = 8, "ncclTimeout";
    }
}

impl ncclResult_t {
    /// Whether the call succeeded. Neither an error nor [`IN_PROGRESS`](Self::IN_PROGRESS) is a
    /// success.
    pub const fn is_success(self) -> bool {
        matches!(self, Self::SUCCESS)
    }
}

open_enum! {
    /// The type of one element.
    ncclDataType_t {
        INT8 = 0, "ncclInt8";
        UINT8 = 1, "ncclUint8";
        INT32 = 2, "ncclInt32";
        UINT32 = 3, "ncclUint32";
        INT64 = 4, "ncclInt64";
        UINT64 = 5, "ncclUint64";
        FLOAT16 = 6, "ncclFloat16";
        FLOAT32 = 7, "ncclFloat32";
        FLOAT64 = 8, "ncclFloat64";
        /// Since 2.10.3 (RCCL 2.5.7):
        BFLOAT16 = 9, "ncclBfloat16";
        /// Since 2.24.3 (RCCL 2.20.5, where the device format is FNUZ on gfx942):
        FLOAT8_E4M3 = 10, "ncclFloat8e4m3";
        /// Since 2.24.3 (RCCL 2.20.5, where the device format is FNUZ on gfx942):
        FLOAT8_E5M2 = 11, "ncclFloat8e5m2";
    }
}

impl ncclDataType_t {
    /// Bytes of one element; `None` for a type that this crate doesn't know.
    pub const fn size(self) -> Option<usize> {
        match self {
            Self::INT8 | Self::UINT8 | Self::FLOAT8_E4M3 | Self::FLOAT8_E5M2 => Some(1),
            Self::FLOAT16 | Self::BFLOAT16 => Some(2),
            Self::INT32 | Self::UINT32 | Self::FLOAT32 => Some(4),
            Self::INT64 | Self::UINT64 | Self::FLOAT64 => Some(8),
            _ => None,
        }
    }
}

open_enum! {
    /// A reduction operator: a built-in one, or a handle from `ncclRedOpCreatePreMulSum`, which is
    /// any value from [`FIRST_DYNAMIC`](Self::FIRST_DYNAMIC) up, valid on its communicator only.
    ncclRedOp_t {
        SUM = 0, "ncclSum";
        PROD = 1, "ncclProd";
        MAX = 2, "ncclMax";
        MIN = 3, "ncclMin";
        /// Since 2.10.3:
        AVG = 4, "ncclAvg";
    }
}

impl ncclRedOp_t {
    /// The smallest value that a created operator can have.
    pub const FIRST_DYNAMIC: Self = Self(5);

    /// Whether this is a handle made by `ncclRedOpCreatePreMulSum`, to be destroyed by its owner.
    pub const fn is_dynamic(self) -> bool {
        self.0 >= Self::FIRST_DYNAMIC.0
    }
}

open_enum! {
    /// Where the scalar of `ncclRedOpCreatePreMulSum` lives. Since 2.11.4.
    ncclScalarResidence_t {
        /// The pointer is kept and read by the device:
        DEVICE = 0, "ncclScalarDevice";
        /// The scalar is copied before the call returns:
        HOST_IMMEDIATE = 1, "ncclScalarHostImmediate";
    }
}

open_enum! {
    /// A number that `ncclCommMemStats` tells, in bytes. Since 2.29.7.
    ncclCommMemStat_t {
        GPU_MEM_SUSPEND = 0, "ncclStatGpuMemSuspend";
        GPU_MEM_SUSPENDED = 1, "ncclStatGpuMemSuspended";
        GPU_MEM_PERSIST = 2, "ncclStatGpuMemPersist";
        GPU_MEM_TOTAL = 3, "ncclStatGpuMemTotal";
    }
}

open_enum! {
    /// The value of `hostCftMode` in a configuration. Since 2.31.2.
    ncclHostCftMode_t {
        DEFAULT = c_int::MIN, "ncclHostCftDefault";
        ENABLE = 1, "ncclHostCftEnable";
        DISABLE = 2, "ncclHostCftDisable";
        FALLBACK = 3, "ncclHostCftFallback";
    }
}

open_enum! {
    /// The value of `nvlsHostMode` in a configuration. Since 2.32.3.
    ncclNvlsHostMode_t {
        DEFAULT = c_int::MIN, "ncclNvlsHostModeDefault";
        ENABLE = 0, "ncclNvlsHostModeEnable";
        DISABLE_TRANSPORT = 1, "ncclNvlsHostModeDisableTransport";
        DISABLE_SYMMETRIC_MULTIMEM = 2, "ncclNvlsHostModeDisableSymmetricMultimem";
        DISABLE = c_int::MAX, "ncclNvlsHostModeDisable";
    }
}

open_enum! {
    /// How the bootstrap network is encrypted. Since 2.32.3.
    ncclEncryptionMode_t {
        NONE = 0, "NCCL_ENCRYPTION_MODE_NONE";
        PSK = 1, "NCCL_ENCRYPTION_MODE_PSK";
    }
}

/// Declares an opaque handle of a library: a nullable pointer that only the library reads. Shared as
/// [`open_enum`] is.
#[doc(hidden)]
#[macro_export]
macro_rules! handle {
    ($(#[$meta:meta])* $type:ident) => {
        $(#[$meta])*
        #[repr(transparent)]
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
        pub struct $type(pub *mut ::std::ffi::c_void);

        impl $type {
            /// The null handle: what every out argument is set to before the call.
            pub const NULL: Self = Self(::std::ptr::null_mut());

            /// Whether this is the null handle.
            pub const fn is_null(self) -> bool {
                self.0.is_null()
            }
        }
    };
}

handle! {
    /// A communicator. Not every entry point survives a null one: see [`quirks`](crate::quirks).
    ///
    /// One thread at a time may use a communicator, so the handle is neither `Send` nor `Sync`; who
    /// owns it decides.
    #[doc(alias = "NCCL_COMM_NULL")]
    ncclComm_t
}
handle! {
    /// A registered memory window. `ncclCommWindowRegister` succeeds with a null one where the
    /// system has no support. Since 2.27.3.
    ncclWindow_t
}
handle! {
    /// A parameter bound by `ncclParamBind`. Since 2.30.4.
    ncclParamHandle_t
}

/// What rank 0 makes and every rank gives to its init call: 128 opaque bytes, passed **by value**.
#[doc(alias = "NCCL_UNIQUE_ID_BYTES")]
#[repr(C)]
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct ncclUniqueId {
    /// The bytes. C declares `char`; the ABI is the same.
    pub internal: [u8; 128],
}

impl ncclUniqueId {
    /// All zeros, to be filled by `ncclGetUniqueId`.
    pub const ZERO: Self = Self { internal: [0; 128] };
}

impl fmt::Debug for ncclUniqueId {
    /// The first bytes only: they tell two identifiers apart, and the rest is an address and
    /// padding.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ncclUniqueId(")?;
        self.internal[..8].iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("…)")
    }
}

/// One peer's expected signals, for `ncclWaitSignal`. Since 2.29.2.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[expect(non_snake_case, reason = "C names stay C names, as in nccl.h")]
pub struct ncclWaitSignalDesc_t {
    /// How many signals to wait for; at least 1.
    pub opCnt: c_int,
    /// The rank that signals.
    pub peer: c_int,
    /// Index of the signal; 0 before 2.31.
    pub sigIdx: c_int,
    /// The RMA context; 0 before 2.31.
    pub ctx: c_int,
}

/// `NCCL_SPLIT_NOCOLOR`: this rank joins no part of the split, and gets a null communicator.
pub const NCCL_SPLIT_NOCOLOR: c_int = -1;

/// `NCCL_WIN_DEFAULT`. Since 2.27.3.
pub const NCCL_WIN_DEFAULT: c_int = 0;
/// `NCCL_WIN_COLL_SYMMETRIC`: every rank registers the same offset of its symmetric memory. Since
/// 2.27.3.
pub const NCCL_WIN_COLL_SYMMETRIC: c_int = 1;
/// `NCCL_WIN_STRICT_ORDERING`. Since 2.29.7.
pub const NCCL_WIN_STRICT_ORDERING: c_int = 2;
/// `NCCL_WIN_GIN_ONLY`. Since 2.32.3.
pub const NCCL_WIN_GIN_ONLY: c_int = 4;
/// `NCCL_WIN_CFT_COUNTED`. Since 2.32.3.
pub const NCCL_WIN_CFT_COUNTED: c_int = 8;
/// `NCCL_WIN_REQUIRED_ALIGNMENT`, in bytes. Since 2.28.3.
pub const NCCL_WIN_REQUIRED_ALIGNMENT: usize = 4096;

/// `NCCL_CTA_POLICY_DEFAULT`. Since 2.27.3.
pub const NCCL_CTA_POLICY_DEFAULT: c_int = 0;
/// `NCCL_CTA_POLICY_EFFICIENCY`. Since 2.27.3.
pub const NCCL_CTA_POLICY_EFFICIENCY: c_int = 1;
/// `NCCL_CTA_POLICY_ZERO`: copy engines instead of SMs where possible. Since 2.28.3.
pub const NCCL_CTA_POLICY_ZERO: c_int = 2;

/// `NCCL_SHRINK_DEFAULT`: the parent has no operation in flight. Since 2.27.3.
pub const NCCL_SHRINK_DEFAULT: c_int = 0;
/// `NCCL_SHRINK_ABORT`: abort the parent's operations first. Since 2.27.3.
pub const NCCL_SHRINK_ABORT: c_int = 1;
/// `NCCL_REVOKE_DEFAULT`. Since 2.28.7.
pub const NCCL_REVOKE_DEFAULT: c_int = 0;
/// `NCCL_SUSPEND_MEM`: give the communicator's device memory back. Since 2.29.7.
pub const NCCL_SUSPEND_MEM: c_int = 1;

const _: () = {
    assert!(size_of::<ncclResult_t>() == 4);
    assert!(size_of::<ncclDataType_t>() == 4);
    assert!(size_of::<ncclRedOp_t>() == 4);
    assert!(size_of::<ncclScalarResidence_t>() == 4);
    assert!(size_of::<ncclComm_t>() == size_of::<*const ()>());
    assert!(size_of::<ncclUniqueId>() == 128);
    assert!(align_of::<ncclUniqueId>() == 1);
    assert!(size_of::<ncclWaitSignalDesc_t>() == 16);
};
