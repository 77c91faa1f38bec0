//! The arithmetic of the oracle: what an element of each type is, adds up to, and compares as.

use std::convert::identity;

use collectives_core::{DType, Element, F8E4M3, F8E5M2, bf16, f16};

/// An element that the oracle can compute with. Shares nothing with any backend's arithmetic.
///
/// Floats go through `f64` and are rounded once. The suite's inputs make every result exact, so how
/// the rounding is done never shows.
pub(crate) trait Number: Element {
    /// The bit layout of a floating-point type; `None` for integers.
    const FORMAT: Option<Format>;

    fn from_bits(bits: u64) -> Self;
    fn to_bits(self) -> u64;
    fn from_f64(value: f64) -> Self;
    /// Integers wrap.
    fn plus(self, other: Self) -> Self;
    /// Integers wrap.
    fn times(self, other: Self) -> Self;
    /// A NaN loses.
    fn larger(self, other: Self) -> Self;
    /// A NaN loses.
    fn smaller(self, other: Self) -> Self;
    /// Integers divide toward zero.
    fn over(self, divisor: usize) -> Self;
}

/// The layout of a binary floating-point type.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Format {
    /// Stored bits of the mantissa.
    pub(crate) mantissa: u32,
    /// Bits of the exponent.
    pub(crate) exponent: u32,
}

impl Format {
    pub(crate) const fn bias(self) -> i32 {
        (1 << (self.exponent - 1)) - 1
    }
}

macro_rules! integers {
    ($($int:ty)*) => {$(
        impl Number for $int {
            const FORMAT: Option<Format> = None;

            fn from_bits(bits: u64) -> Self {
                bits as Self
            }

            fn to_bits(self) -> u64 {
                self as u64
            }

            fn from_f64(value: f64) -> Self {
                value as Self
            }

            fn plus(self, other: Self) -> Self {
                self.wrapping_add(other)
            }

            fn times(self, other: Self) -> Self {
                self.wrapping_mul(other)
            }

            fn larger(self, other: Self) -> Self {
                self.max(other)
            }

            fn smaller(self, other: Self) -> Self {
                self.min(other)
            }

            fn over(self, divisor: usize) -> Self {
                self / divisor as Self
            }
        }
    )*};
}

integers!(i8 u8 i32 u32 i64 u64);

macro_rules! floats {
    ($(
        $float:ty: $mantissa:literal, $exponent:literal, $narrow:expr, $widen:expr, $bits:expr;
    )*) => {$(
        impl Number for $float {
            const FORMAT: Option<Format> =
                Some(Format { mantissa: $mantissa, exponent: $exponent });

            fn from_bits(bits: u64) -> Self {
                <$float>::from_bits(bits as _)
            }

            fn to_bits(self) -> u64 {
                u64::from($bits(self))
            }

            fn from_f64(value: f64) -> Self {
                $narrow(value)
            }

            fn plus(self, other: Self) -> Self {
                $narrow($widen(self) + $widen(other))
            }

            fn times(self, other: Self) -> Self {
                $narrow($widen(self) * $widen(other))
            }

            fn larger(self, other: Self) -> Self {
                $narrow($widen(self).max($widen(other)))
            }

            fn smaller(self, other: Self) -> Self {
                $narrow($widen(self).min($widen(other)))
            }

            fn over(self, divisor: usize) -> Self {
                $narrow($widen(self) / divisor as f64)
            }
        }
    )*};
}

floats! {
    f16: 10, 5, f16::from_f64, f16::to_f64, f16::to_bits;
    bf16: 7, 8, bf16::from_f64, bf16::to_f64, bf16::to_bits;
    f32: 23, 8, |wide: f64| wide as f32, f64::from, f32::to_bits;
    f64: 52, 11, identity::<f64>, identity::<f64>, f64::to_bits;
    F8E4M3: 3, 4, F8E4M3::from_f64, |narrow: F8E4M3| narrow.to_f64(), |f| F8E4M3::to_bits(&f);
    F8E5M2: 2, 5, F8E5M2::from_f64, |narrow: F8E5M2| narrow.to_f64(), |f| F8E5M2::to_bits(&f);
}

/// How many representable values lie between two elements: 0 where their bits are equal.
pub(crate) fn distance<T: Number>(a: T, b: T) -> u64 {
    if a.to_bits() == b.to_bits() {
        return 0;
    }
    let apart = place(a).abs_diff(place(b)).max(1);
    u64::try_from(apart).unwrap_or(u64::MAX)
}

/// The position of a value in the order of its type, for floats that are no NaN.
fn place<T: Number>(value: T) -> i128 {
    let bits = i128::from(value.to_bits());
    let sign = 1_i128 << (8 * T::DTYPE.size() - 1);
    if T::FORMAT.is_some() && bits & sign != 0 { -(bits - sign) } else { bits }
}

/// Runs code for the element type of a dtype that is known only at run time.
macro_rules! with_element {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            ::collectives_core::DType::I8 => {
                type $T = i8;
                $body
            }
            ::collectives_core::DType::U8 => {
                type $T = u8;
                $body
            }
            ::collectives_core::DType::I32 => {
                type $T = i32;
                $body
            }
            ::collectives_core::DType::U32 => {
                type $T = u32;
                $body
            }
            ::collectives_core::DType::I64 => {
                type $T = i64;
                $body
            }
            ::collectives_core::DType::U64 => {
                type $T = u64;
                $body
            }
            ::collectives_core::DType::F16 => {
                type $T = ::collectives_core::f16;
                $body
            }
            ::collectives_core::DType::F32 => {
                type $T = f32;
                $body
            }
            ::collectives_core::DType::F64 => {
                type $T = f64;
                $body
            }
            ::collectives_core::DType::Bf16 => {
                type $T = ::collectives_core::bf16;
                $body
            }
            ::collectives_core::DType::F8E4M3 => {
                type $T = ::collectives_core::F8E4M3;
                $body
            }
            ::collectives_core::DType::F8E5M2 => {
                type $T = ::collectives_core::F8E5M2;
                $body
            }
        }
    };
}
pub(crate) use with_element;

/// The types that every library of every version moves and reduces.
pub(crate) const BASIC: [DType; 9] = [
    DType::I8,
    DType::U8,
    DType::I32,
    DType::U32,
    DType::I64,
    DType::U64,
    DType::F16,
    DType::F32,
    DType::F64,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_representable_values() {
        assert_eq!(distance(1.0_f32, 1.0), 0);
        assert_eq!(distance(1.0_f32, 1.0_f32.next_up()), 1);
        assert_eq!(distance(f16::from_bits(1), f16::from_bits(0x8001)), 2);
        assert_eq!(distance(0.0_f64, -0.0), 1, "zeros of different sign are different bits");
    }

    #[test]
    fn a_nan_loses() {
        assert_eq!(f32::NAN.larger(1.0), 1.0);
        assert_eq!(bf16::from_f64(-2.0).smaller(bf16::NAN), bf16::from_f64(-2.0));
    }
}
