//! Arithmetic of every element type, one correctly rounded step at a time.
//!
//! The small floats are computed in `f32` and rounded back. One addition or multiplication of two
//! f16 or bf16 values in f32, rounded once more to the narrow type, is the correctly rounded narrow
//! operation, because 24 bits are at least twice 11 (or 8) plus two. The fp8 types go through f16,
//! as NCCL's kernels do on sm_90: widen, operate in f16, convert back with saturation. A minimum or
//! maximum is one of its operands, to the bit.
//!
//! Conversions are branch-free integer arithmetic rather than calls into `half` and `float8`, whose
//! per-element dispatch keeps loops from being vectorised. The tests compare them with those crates
//! on every bit pattern.

/// One element as the reductions see it: its bits, and what NCCL does with them.
pub(crate) trait Number: Copy + 'static {
    /// Sum; integers wrap.
    fn add(self, other: Self) -> Self;
    /// Product; integers wrap.
    fn mul(self, other: Self) -> Self;
    /// The smaller; a NaN loses, and −0 is below +0.
    fn min(self, other: Self) -> Self;
    /// The larger; a NaN loses, and −0 is below +0.
    fn max(self, other: Self) -> Self;
    /// Division by the number of ranks; integers truncate toward zero.
    fn divide(self, ranks: usize) -> Self;
    /// How an average over `ranks` is made.
    fn averaging(ranks: usize) -> Averaging<Self>;
    /// The value in memory order at the front of `bytes`.
    fn from_bytes(bytes: [u8; 8]) -> Self;
}

/// How an average is made.
pub(crate) enum Averaging<T> {
    /// Sum, then [`Number::divide`]: integers.
    Divide,
    /// Multiply each input by 1/ranks, rounded to the type, then sum: floats.
    Scale(T),
}

/// A float that is narrower than `f32`, and exact in it.
pub(crate) trait Narrow: Number {
    /// The same value.
    fn widen(self) -> f32;
    /// Rounds to nearest even; the fp8 types saturate.
    fn narrow(value: f32) -> Self;
}

macro_rules! integer {
    ($($ty:ident in $wide:ident),*) => {$(
        impl Number for $ty {
            #[inline(always)]
            fn add(self, other: Self) -> Self {
                self.wrapping_add(other)
            }
            #[inline(always)]
            fn mul(self, other: Self) -> Self {
                self.wrapping_mul(other)
            }
            #[inline(always)]
            fn min(self, other: Self) -> Self {
                Ord::min(self, other)
            }
            #[inline(always)]
            fn max(self, other: Self) -> Self {
                Ord::max(self, other)
            }
            #[inline(always)]
            fn divide(self, ranks: usize) -> Self {
                // In the wide type, since `ranks` need not fit the narrow one.
                ($wide::from(self) / ranks as $wide) as Self
            }
            #[inline(always)]
            fn averaging(_ranks: usize) -> Averaging<Self> {
                Averaging::Divide
            }
            #[inline(always)]
            fn from_bytes(bytes: [u8; 8]) -> Self {
                Self::from_ne_bytes(front(bytes))
            }
        }
    )*};
}

integer!(i8 in i64, u8 in u64, i32 in i64, u32 in u64, i64 in i64, u64 in u64);

macro_rules! float {
    ($($ty:ident),*) => {$(
        impl Number for $ty {
            #[inline(always)]
            fn add(self, other: Self) -> Self {
                self + other
            }
            #[inline(always)]
            fn mul(self, other: Self) -> Self {
                self * other
            }
            #[inline(always)]
            fn min(self, other: Self) -> Self {
                let less = if self < other { self } else { other };
                // Equal values differ at most in the sign of zero, which `|` decides for −0.
                let equal = Self::from_bits(self.to_bits() | other.to_bits());
                let number = if self == other { equal } else { less };
                if other.is_nan() { self } else { number }
            }
            #[inline(always)]
            fn max(self, other: Self) -> Self {
                let more = if self > other { self } else { other };
                let equal = Self::from_bits(self.to_bits() & other.to_bits());
                let number = if self == other { equal } else { more };
                if other.is_nan() { self } else { number }
            }
            #[inline(always)]
            fn divide(self, ranks: usize) -> Self {
                self / ranks as Self
            }
            #[inline(always)]
            fn averaging(ranks: usize) -> Averaging<Self> {
                Averaging::Scale(1.0 / ranks as Self)
            }
            #[inline(always)]
            fn from_bytes(bytes: [u8; 8]) -> Self {
                Self::from_ne_bytes(front(bytes))
            }
        }
    )*};
}

float!(f32, f64);

macro_rules! narrow {
    ($($(#[$doc:meta])* $name:ident($bits:ident), widen $widen:ident, from f32 $convert:ident,
       after each step $round:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy)]
        #[repr(transparent)]
        pub(crate) struct $name(pub(crate) $bits);

        impl Narrow for $name {
            #[inline(always)]
            fn widen(self) -> f32 {
                $widen(self.0)
            }
            #[inline(always)]
            fn narrow(value: f32) -> Self {
                Self($convert(value))
            }
        }

        impl Number for $name {
            #[inline(always)]
            fn add(self, other: Self) -> Self {
                Self::narrow($round(self.widen() + other.widen()))
            }
            #[inline(always)]
            fn mul(self, other: Self) -> Self {
                Self::narrow($round(self.widen() * other.widen()))
            }
            #[inline(always)]
            fn min(self, other: Self) -> Self {
                let (a, b) = (self.widen(), other.widen());
                let less = if a < b { self.0 } else { other.0 };
                let number = if a == b { self.0 | other.0 } else { less };
                Self(if b.is_nan() { self.0 } else { number })
            }
            #[inline(always)]
            fn max(self, other: Self) -> Self {
                let (a, b) = (self.widen(), other.widen());
                let more = if a > b { self.0 } else { other.0 };
                let number = if a == b { self.0 & other.0 } else { more };
                Self(if b.is_nan() { self.0 } else { number })
            }
            #[inline(always)]
            fn divide(self, ranks: usize) -> Self {
                Self::narrow($round(self.widen() / ranks as f32))
            }
            #[inline(always)]
            fn averaging(ranks: usize) -> Averaging<Self> {
                Averaging::Scale(Self::narrow(1.0 / ranks as f32))
            }
            #[inline(always)]
            fn from_bytes(bytes: [u8; 8]) -> Self {
                Self($bits::from_ne_bytes(front(bytes)))
            }
        }
    )*};
}

narrow! {
    /// IEEE 754 half precision.
    F16(u16), widen f16_to_f32, from f32 f32_to_f16, after each step |value| value;
    /// The upper half of an `f32`.
    Bf16(u16), widen bf16_to_f32, from f32 f32_to_bf16, after each step |value| value;
    /// OCP `e4m3fn`.
    E4m3(u8), widen e4m3_to_f32, from f32 f32_to_e4m3, after each step through_f16;
    /// OCP `e5m2`.
    E5m2(u8), widen e5m2_to_f32, from f32 f32_to_e5m2, after each step through_f16;
}

#[inline(always)]
fn front<const N: usize>(bytes: [u8; 8]) -> [u8; N] {
    std::array::from_fn(|i| bytes[i])
}

#[inline(always)]
fn through_f16(value: f32) -> f32 {
    f16_to_f32(f32_to_f16(value))
}

#[inline(always)]
fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

#[inline(always)]
fn f32_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    // A NaN whose payload lies in the lower half must not become an infinity: set the quiet bit.
    let chosen = if value.is_nan() { bits | 0x0040_0000 } else { rounded };
    (chosen >> 16) as u16
}

#[inline(always)]
fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    widen_small::<10>(sign, u32::from(bits & 0x7fff), 0x7c00, 15)
}

#[inline(always)]
fn e5m2_to_f32(bits: u8) -> f32 {
    f16_to_f32(u16::from(bits) << 8)
}

#[inline(always)]
fn e4m3_to_f32(bits: u8) -> f32 {
    let sign = u32::from(bits & 0x80) << 24;
    widen_small::<3>(sign, u32::from(bits & 0x7f), 0x7f, 7)
}

/// Widens a small float with `M` mantissa bits. From `special` on, `magnitude` is infinite or NaN.
/// Subnormals are made from their integer, so that flush-to-zero modes of the caller can't hit them.
#[inline(always)]
fn widen_small<const M: u32>(sign: u32, magnitude: u32, special: u32, bias: u32) -> f32 {
    let shifted = magnitude << (23 - M);
    let normal = shifted + ((127 - bias) << 23);
    let unit = f32::from_bits((127 + 1 - bias - M) << 23);
    let subnormal = (magnitude as i32 as f32 * unit).to_bits();
    let finite = if magnitude < 1 << M { subnormal } else { normal };
    let chosen = if magnitude >= special { shifted | 0x7f80_0000 } else { finite };
    f32::from_bits(sign | chosen)
}

#[inline(always)]
fn f32_to_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = ((bits >> 16) & 0x8000) as u16;
    let magnitude = bits & 0x7fff_ffff;
    let finite = narrow_small::<10>(magnitude, 15);
    // From 65520, half a step above the largest value, numbers round to infinity.
    let number = if magnitude >= 0x477f_f000 { 0x7c00 } else { finite };
    let nan = 0x7e00 | ((magnitude >> 13) & 0x3ff);
    sign | (if magnitude > 0x7f80_0000 { nan } else { number }) as u16
}

#[inline(always)]
fn f32_to_e4m3(value: f32) -> u8 {
    let bits = value.to_bits();
    let sign = ((bits >> 24) & 0x80) as u8;
    let magnitude = bits & 0x7fff_ffff;
    let number = narrow_small::<3>(Ord::min(magnitude, 448_f32.to_bits()), 7);
    sign | (if magnitude > 0x7f80_0000 { 0x7f } else { number }) as u8
}

#[inline(always)]
fn f32_to_e5m2(value: f32) -> u8 {
    let bits = value.to_bits();
    let sign = ((bits >> 24) & 0x80) as u8;
    let magnitude = bits & 0x7fff_ffff;
    let number = narrow_small::<2>(Ord::min(magnitude, 57344_f32.to_bits()), 15);
    let nan = 0x7e | ((magnitude >> 21) & 3);
    sign | (if magnitude > 0x7f80_0000 { nan } else { number }) as u8
}

/// Rounds the bits of a finite, non-negative f32 to `M` mantissa bits, to nearest even.
#[inline(always)]
fn narrow_small<const M: u32>(magnitude: u32, bias: u32) -> u32 {
    let drop = 23 - M;
    let even = (magnitude >> drop) & 1;
    let normal = (magnitude.wrapping_add((1 << (drop - 1)) - 1 + even) >> drop)
        .wrapping_sub((127 - bias) << M);
    // Added to a number whose last bit is worth one subnormal unit, the hardware does the rounding.
    let magic = f32::from_bits((127 + 1 - bias - M + 23) << 23);
    let subnormal = (f32::from_bits(magnitude) + magic).to_bits().wrapping_sub(magic.to_bits());
    if magnitude < (127 + 1 - bias) << 23 { subnormal } else { normal }
}

#[cfg(test)]
mod tests {
    use collectives_core::{F8E4M3, F8E5M2, bf16, f16};
    use proptest::prelude::{any, proptest};

    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "tens of thousands of conversions take minutes")]
    fn widening_agrees_with_half_and_float8_on_every_bit_pattern() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (f16_to_f32(bits), f16::from_bits(bits).to_f32());
            assert!(same(ours, theirs), "f16 {bits:#x}: {ours} {theirs}");
            let (ours, theirs) = (bf16_to_f32(bits), bf16::from_bits(bits).to_f32());
            assert!(same(ours, theirs), "bf16 {bits:#x}: {ours} {theirs}");
        }
        for bits in 0..=u8::MAX {
            let (ours, theirs) = (e4m3_to_f32(bits), F8E4M3::from_bits(bits).to_f32());
            assert!(same(ours, theirs), "e4m3 {bits:#x}: {ours} {theirs}");
            let (ours, theirs) = (e5m2_to_f32(bits), F8E5M2::from_bits(bits).to_f32());
            assert!(same(ours, theirs), "e5m2 {bits:#x}: {ours} {theirs}");
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "tens of thousands of conversions take minutes")]
    fn fp8_rounds_as_float8_on_every_f16() {
        for bits in 0..=u16::MAX {
            let value = f16_to_f32(bits);
            let ours = f32_to_e4m3(value);
            let theirs = F8E4M3::from_f32(value);
            assert!(
                same(e4m3_to_f32(ours), theirs.to_f32()),
                "e4m3 of {value}: {ours:#x} {theirs:?}"
            );
            let ours = f32_to_e5m2(value);
            let theirs = F8E5M2::from_f32(value);
            assert!(
                same(e5m2_to_f32(ours), theirs.to_f32()),
                "e5m2 of {value}: {ours:#x} {theirs:?}"
            );
        }
    }

    proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(20_000))]
        #[test]
        fn narrowing_agrees_with_half(bits in any::<u32>(), small in 0x3200_0000_u32..0x4780_0000) {
            for bits in [bits, small, small | 0x8000_0000] {
                let value = f32::from_bits(bits);
                let (ours, theirs) = (f32_to_f16(value), f16::from_f32_const(value));
                assert!(same(f16_to_f32(ours), theirs.to_f32()), "f16 of {value}: {ours:#x} {theirs}");
                let (ours, theirs) = (f32_to_bf16(value), bf16::from_f32_const(value));
                assert!(same(bf16_to_f32(ours), theirs.to_f32()), "bf16 of {value}: {ours:#x} {theirs}");
            }
        }
    }

    #[test]
    fn a_nan_loses_and_negative_zero_is_the_smaller() {
        let nan = f32::NAN;
        assert_eq!(Number::min(nan, 1.0_f32), 1.0);
        assert_eq!(Number::max(1.0_f32, nan), 1.0);
        assert!(Number::max(nan, nan).is_nan());
        for (a, b) in [(0.0_f32, -0.0), (-0.0, 0.0)] {
            assert!(Number::min(a, b).is_sign_negative());
            assert!(Number::max(a, b).is_sign_positive());
        }
    }

    #[test]
    fn integer_averages_truncate_also_beyond_the_narrow_type() {
        assert_eq!((-7_i8).divide(2), -3);
        assert_eq!(200_u8.divide(300), 0);
        assert_eq!((-100_i8).divide(200), 0);
    }

    fn same(a: f32, b: f32) -> bool {
        a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
    }
}
