//! Rust types that can be elements of a buffer.

use float8::{F8E4M3, F8E5M2};
use half::{bf16, f16};

use crate::DType;

/// A Rust type with a [`DType`]: integers, floats, and the small floats of `half` and `float8`.
///
/// Sealed: every implementor is plain data of `DTYPE.size()` bytes, without padding, for which
/// every bit pattern is valid. The safe layer relies on that to copy values to and from devices.
pub trait Element:
    sealed::Sealed + Copy + PartialEq + Send + Sync + std::fmt::Debug + 'static
{
    /// The type's name in collectives.
    const DTYPE: DType;

    /// The value with all bits zero, which is zero in every type.
    const ZERO: Self;

    /// The value's bytes in memory order, followed by zeros.
    fn to_bytes(self) -> [u8; 8];
}

macro_rules! element {
    ($($ty:ty => $dtype:ident, $zero:expr, $bytes:expr;)*) => {$(
        impl sealed::Sealed for $ty {}
        impl Element for $ty {
            const DTYPE: DType = DType::$dtype;
            const ZERO: Self = $zero;

            fn to_bytes(self) -> [u8; 8] {
                let mut all = [0; 8];
                let own = $bytes(self);
                all[..own.len()].copy_from_slice(&own);
                all
            }
        }
        const _: () = assert!(size_of::<$ty>() == DType::$dtype.size());
    )*};
}

element! {
    i8 => I8, 0, i8::to_ne_bytes;
    u8 => U8, 0, u8::to_ne_bytes;
    i32 => I32, 0, i32::to_ne_bytes;
    u32 => U32, 0, u32::to_ne_bytes;
    i64 => I64, 0, i64::to_ne_bytes;
    u64 => U64, 0, u64::to_ne_bytes;
    f16 => F16, Self::ZERO, f16::to_ne_bytes;
    f32 => F32, 0.0, f32::to_ne_bytes;
    f64 => F64, 0.0, f64::to_ne_bytes;
    bf16 => Bf16, Self::ZERO, bf16::to_ne_bytes;
    F8E4M3 => F8E4M3, Self::from_bits(0), |value: F8E4M3| [value.to_bits()];
    F8E5M2 => F8E5M2, Self::from_bits(0), |value: F8E5M2| [value.to_bits()];
}

mod sealed {
    #[expect(unnameable_types, reason = "cannot be named, so cannot be implemented elsewhere")]
    pub trait Sealed {}
}
