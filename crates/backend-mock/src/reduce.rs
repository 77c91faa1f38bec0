//! Reductions of one block: all ranks' inputs, in rank order, into one result.
//!
//! A block is small enough to stay in the first-level cache, so the accumulator is read and written
//! there while the inputs stream past once. Loops are plain; the compiler vectorises them, once for
//! each instruction set in [`multiversion`], and the best is chosen at run time. Elements don't
//! depend on each other, so the result has the same bits on every instruction set and for any
//! division of the work.

use collectives_core::DType;
use multiversion::multiversion;

use crate::{
    Accumulation,
    numerics::{Averaging, Bf16, E4m3, E5m2, F16, Narrow, Number},
    op::{Factor, Reduction},
};

/// How inputs are combined.
#[derive(Clone, Copy)]
pub(crate) struct Recipe {
    pub(crate) dtype: DType,
    pub(crate) reduction: Reduction,
    pub(crate) accumulation: Accumulation,
}

/// What is combined: one input per rank, in rank order.
pub(crate) trait Inputs {
    /// Number of ranks, at least one.
    fn ranks(&self) -> usize;
    /// First element of the block of `rank`.
    fn input(&self, rank: usize) -> *const u8;
    /// The scalar of `rank`, for [`Reduction::PreMulSum`].
    fn factor(&self, rank: usize) -> Factor;
}

impl Recipe {
    /// Combines `count` elements of each input into `out`.
    ///
    /// # Safety
    /// Each input is `count` readable elements of the dtype, aligned; `out` is as many writable
    /// ones, apart from all inputs, and at most [`BLOCK_BYTES`] long; scalars are readable.
    pub(crate) unsafe fn combine(self, inputs: &impl Inputs, out: *mut u8, count: usize) {
        match self.dtype {
            // SAFETY: promised by the caller, here and in each arm below.
            DType::I8 => unsafe { self.combine_as::<i8>(inputs, out.cast(), count) },
            // SAFETY: as above.
            DType::U8 => unsafe { self.combine_as::<u8>(inputs, out.cast(), count) },
            // SAFETY: as above.
            DType::I32 => unsafe { self.combine_as::<i32>(inputs, out.cast(), count) },
            // SAFETY: as above.
            DType::U32 => unsafe { self.combine_as::<u32>(inputs, out.cast(), count) },
            // SAFETY: as above.
            DType::I64 => unsafe { self.combine_as::<i64>(inputs, out.cast(), count) },
            // SAFETY: as above.
            DType::U64 => unsafe { self.combine_as::<u64>(inputs, out.cast(), count) },
            // SAFETY: as above.
            DType::F32 => unsafe { self.combine_as::<f32>(inputs, out.cast(), count) },
            // SAFETY: as above.
            DType::F64 => unsafe { self.combine_as::<f64>(inputs, out.cast(), count) },
            // SAFETY: as above.
            DType::F16 => unsafe { self.combine_narrow::<F16>(inputs, out.cast(), count) },
            // SAFETY: as above.
            DType::Bf16 => unsafe { self.combine_narrow::<Bf16>(inputs, out.cast(), count) },
            // SAFETY: as above.
            DType::F8E4M3 => unsafe { self.combine_narrow::<E4m3>(inputs, out.cast(), count) },
            // SAFETY: as above.
            DType::F8E5M2 => unsafe { self.combine_narrow::<E5m2>(inputs, out.cast(), count) },
        }
    }

    /// # Safety
    /// See [`combine`](Self::combine).
    unsafe fn combine_narrow<T: Narrow>(self, inputs: &impl Inputs, out: *mut T, count: usize) {
        match self.accumulation {
            // SAFETY: promised by the caller.
            Accumulation::Element => unsafe { self.combine_as(inputs, out, count) },
            // SAFETY: promised by the caller.
            Accumulation::F32 => unsafe { self.combine_wide(inputs, out, count) },
        }
    }

    /// One rounding per step, in the element type.
    ///
    /// # Safety
    /// See [`combine`](Self::combine).
    unsafe fn combine_as<T: Number>(self, inputs: &impl Inputs, out: *mut T, count: usize) {
        match self.reduction {
            // SAFETY: promised by the caller, here and in each arm below.
            Reduction::Max => unsafe { fold::<T, Max>(inputs, out, count) },
            // SAFETY: as above.
            Reduction::Min => unsafe { fold::<T, Min>(inputs, out, count) },
            // SAFETY: as above.
            Reduction::Prod => unsafe { fold::<T, Prod>(inputs, out, count) },
            // SAFETY: as above.
            Reduction::Sum | Reduction::None => unsafe { fold::<T, Sum>(inputs, out, count) },
            Reduction::Avg => match T::averaging(inputs.ranks()) {
                Averaging::Divide => {
                    // SAFETY: as above.
                    unsafe { fold::<T, Sum>(inputs, out, count) };
                    // SAFETY: as above, and `fold` has written every element.
                    unsafe { divide(out, inputs.ranks(), count) };
                }
                // SAFETY: as above.
                Averaging::Scale(by) => unsafe { weigh(inputs, |_| by, out, count) },
            },
            Reduction::PreMulSum => {
                let by = |rank| {
                    // SAFETY: as above.
                    T::from_bytes(unsafe { inputs.factor(rank).read(self.dtype) })
                };
                // SAFETY: as above.
                unsafe { weigh(inputs, by, out, count) };
            }
        }
    }

    /// In f32 throughout, with one rounding at the end.
    ///
    /// # Safety
    /// See [`combine`](Self::combine).
    unsafe fn combine_wide<T: Narrow>(self, inputs: &impl Inputs, out: *mut T, count: usize) {
        let mut wide = [0_f32; BLOCK_BYTES];
        let wide = &mut wide[..count];
        for rank in 0..inputs.ranks() {
            let input = inputs.input(rank).cast::<T>();
            let by = match self.reduction {
                Reduction::PreMulSum => {
                    // SAFETY: promised by the caller.
                    T::from_bytes(unsafe { inputs.factor(rank).read(self.dtype) }).widen()
                }
                _ => 1.0,
            };
            if rank == 0 {
                // SAFETY: promised by the caller.
                unsafe { widen_all(wide, input, by) };
                continue;
            }
            match self.reduction {
                // SAFETY: promised by the caller, here and in each arm below.
                Reduction::Max => unsafe { accumulate_wide::<T, Max>(wide, input, by) },
                // SAFETY: as above.
                Reduction::Min => unsafe { accumulate_wide::<T, Min>(wide, input, by) },
                // SAFETY: as above.
                Reduction::Prod => unsafe { accumulate_wide::<T, Prod>(wide, input, by) },
                Reduction::Avg | Reduction::PreMulSum | Reduction::Sum | Reduction::None => {
                    // SAFETY: as above.
                    unsafe { accumulate_wide::<T, Sum>(wide, input, by) }
                }
            }
        }
        let by = match self.reduction {
            Reduction::Avg => 1.0 / inputs.ranks() as f32,
            _ => 1.0,
        };
        // SAFETY: promised by the caller.
        unsafe { narrow_all(out, wide, by) };
    }
}

/// # Safety
/// See [`Recipe::combine`].
unsafe fn fold<T: Number, C: Combine>(inputs: &impl Inputs, out: *mut T, count: usize) {
    let first = inputs.input(0).cast::<T>();
    if inputs.ranks() == 1 {
        // SAFETY: promised by the caller.
        unsafe { out.copy_from_nonoverlapping(first, count) };
        return;
    }
    // SAFETY: promised by the caller.
    unsafe { pair::<T, C>(out, first, inputs.input(1).cast(), count) };
    for rank in 2..inputs.ranks() {
        // SAFETY: promised by the caller; `out` has been written by `pair`.
        unsafe { accumulate::<T, C>(out, inputs.input(rank).cast(), count) };
    }
}

/// # Safety
/// See [`Recipe::combine`].
unsafe fn weigh<T: Number>(
    inputs: &impl Inputs,
    by: impl Fn(usize) -> T,
    out: *mut T,
    count: usize,
) {
    // SAFETY: promised by the caller.
    unsafe { scale(out, inputs.input(0).cast(), by(0), count) };
    for rank in 1..inputs.ranks() {
        // SAFETY: promised by the caller; `out` has been written by `scale`.
        unsafe { accumulate_scaled(out, inputs.input(rank).cast(), by(rank), count) };
    }
}

/// Two elements into one.
trait Combine {
    fn combine<T: Number>(a: T, b: T) -> T;
}

macro_rules! combine {
    ($($name:ident $method:ident),*) => {$(
        struct $name;
        impl Combine for $name {
            #[inline(always)]
            fn combine<T: Number>(a: T, b: T) -> T {
                a.$method(b)
            }
        }
    )*};
}

combine!(Max max, Min min, Prod mul, Sum add);

/// Defines a kernel: a loop over elements, compiled for several instruction sets.
macro_rules! kernel {
    ($(#[$doc:meta])* fn $name:ident<$($generic:ident: $bound:ident),+>(
        $($arg:ident: $ty:ty),*; $count:expr
    ) |$i:ident| $body:expr) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// Every pointer has `count` elements, readable or (`out`, `acc`) writable and apart from
        /// the others; `acc` is initialised.
        #[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
        unsafe fn $name<$($generic: $bound),+>($($arg: $ty),*) {
            for $i in 0..$count {
                $body
            }
        }
    };
}

/// Reads element `$i` of `$ptr`.
macro_rules! at {
    ($ptr:ident[$i:ident]) => {{
        // SAFETY: `$i` is below the number of elements, by the kernel's contract.
        let place = unsafe { $ptr.add($i) };
        // SAFETY: as above; the element is readable and aligned.
        unsafe { place.read() }
    }};
    ($ptr:ident[$i:ident] = $value:expr) => {{
        // SAFETY: `$i` is below the number of elements, by the kernel's contract.
        let place = unsafe { $ptr.add($i) };
        let value = $value;
        // SAFETY: as above; the element is writable and aligned.
        unsafe { place.write(value) }
    }};
}

kernel! {
    /// `out = a ∘ b`.
    fn pair<T: Number, C: Combine>(out: *mut T, a: *const T, b: *const T, count: usize; count)
    |i| at!(out[i] = C::combine(at!(a[i]), at!(b[i])))
}
kernel! {
    /// `acc = acc ∘ input`.
    fn accumulate<T: Number, C: Combine>(acc: *mut T, input: *const T, count: usize; count)
    |i| at!(acc[i] = C::combine(at!(acc[i]), at!(input[i])))
}
kernel! {
    /// `out = input × by`.
    fn scale<T: Number>(out: *mut T, input: *const T, by: T, count: usize; count)
    |i| at!(out[i] = at!(input[i]).mul(by))
}
kernel! {
    /// `acc = acc + input × by`, each rounded.
    fn accumulate_scaled<T: Number>(acc: *mut T, input: *const T, by: T, count: usize; count)
    |i| at!(acc[i] = at!(acc[i]).add(at!(input[i]).mul(by)))
}
kernel! {
    /// `acc = acc ÷ ranks`.
    fn divide<T: Number>(acc: *mut T, ranks: usize, count: usize; count)
    |i| at!(acc[i] = at!(acc[i]).divide(ranks))
}
kernel! {
    /// `wide = input × by`.
    fn widen_all<T: Narrow>(wide: &mut [f32], input: *const T, by: f32; wide.len())
    |i| wide[i] = at!(input[i]).widen() * by
}
kernel! {
    /// `wide = wide ∘ (input × by)`.
    fn accumulate_wide<T: Narrow, C: Combine>(
        wide: &mut [f32], input: *const T, by: f32; wide.len()
    )
    |i| wide[i] = C::combine(wide[i], at!(input[i]).widen() * by)
}
kernel! {
    /// `out = wide × by`, rounded.
    fn narrow_all<T: Narrow>(out: *mut T, wide: &[f32], by: f32; wide.len())
    |i| at!(out[i] = T::narrow(wide[i] * by))
}

/// The longest block, in bytes of one input: two of them fit a first-level cache.
pub(crate) const BLOCK_BYTES: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use collectives_core::{Element, F8E4M3, F8E5M2, bf16, f16};
    use proptest::prelude::{ProptestConfig, Strategy, any, prop, proptest};

    use super::*;

    struct Rows<'a, T>(&'a [Vec<T>], &'a [Factor]);

    impl<T> Inputs for Rows<'_, T> {
        fn ranks(&self) -> usize {
            self.0.len()
        }
        fn input(&self, rank: usize) -> *const u8 {
            self.0[rank].as_ptr().cast()
        }
        fn factor(&self, rank: usize) -> Factor {
            self.1[rank]
        }
    }

    /// What the engine computes.
    fn combined<T: Element>(
        rows: &[Vec<T>],
        reduction: Reduction,
        factors: &[T],
        accumulation: Accumulation,
    ) -> Vec<T> {
        let factors: Vec<_> = factors.iter().map(|by| Factor::Value(by.to_bytes())).collect();
        let recipe = Recipe { dtype: T::DTYPE, reduction, accumulation };
        let mut out = vec![T::ZERO; rows[0].len()];
        let inputs = Rows(rows, &factors);
        // SAFETY: all rows and the output have as many elements.
        unsafe { recipe.combine(&inputs, out.as_mut_ptr().cast(), out.len()) };
        out
    }

    /// One type's arithmetic, as plainly as it can be said.
    trait Plain: Element {
        fn from_bits(bits: u64) -> Self;
        fn sum(a: Self, b: Self) -> Self;
        fn product(a: Self, b: Self) -> Self;
        fn value(self) -> f64;
        fn average(column: &[Self]) -> Self;
    }

    macro_rules! plain_integers {
        ($($ty:ident),*) => {$(
            impl Plain for $ty {
                fn from_bits(bits: u64) -> Self { bits as Self }
                fn sum(a: Self, b: Self) -> Self { a.wrapping_add(b) }
                fn product(a: Self, b: Self) -> Self { a.wrapping_mul(b) }
                // Exact enough to compare: the inputs of the 64-bit types stay below 2⁵³.
                fn value(self) -> f64 { self as f64 }
                fn average(column: &[Self]) -> Self {
                    let sum = column.iter().fold(0, |sum, &x| Self::sum(sum, x));
                    (i128::from(sum) / column.len() as i128) as Self
                }
            }
        )*};
    }
    plain_integers!(i8, u8, i32, u32);

    macro_rules! plain_floats {
        ($($ty:ident, $bits:ident, $value:expr, $round:expr;)*) => {$(
            impl Plain for $ty {
                fn from_bits(bits: u64) -> Self { $ty::from_bits(bits as $bits) }
                fn sum(a: Self, b: Self) -> Self { $round($value(a) + $value(b)) }
                fn product(a: Self, b: Self) -> Self { $round($value(a) * $value(b)) }
                fn value(self) -> f64 { f64::from($value(self)) }
                fn average(column: &[Self]) -> Self {
                    // Not through `$round`: the scalar of the fp8 types does not pass f16.
                    let by = $ty::from(1.0 / column.len() as f32);
                    let scaled = column.iter().map(|&x| Self::product(x, by));
                    scaled.reduce(Self::sum).unwrap()
                }
            }
        )*};
    }
    fn f16_of(value: f32) -> f32 {
        f16::from_f32(value).to_f32()
    }
    plain_floats! {
        f32, u32, |x: f32| x, |x: f32| x;
        F8E4M3, u8, |x: F8E4M3| x.to_f32(), |x| F8E4M3::from_f32(f16_of(x));
        F8E5M2, u8, |x: F8E5M2| x.to_f32(), |x| F8E5M2::from_f32(f16_of(x));
    }
    macro_rules! plain_halves {
        ($($ty:ident),*) => {$(
            impl Plain for $ty {
                fn from_bits(bits: u64) -> Self { $ty::from_bits(bits as u16) }
                fn sum(a: Self, b: Self) -> Self { $ty::from_f32(a.to_f32() + b.to_f32()) }
                fn product(a: Self, b: Self) -> Self { $ty::from_f32(a.to_f32() * b.to_f32()) }
                fn value(self) -> f64 { self.to_f64() }
                fn average(column: &[Self]) -> Self {
                    let by = $ty::from_f32(1.0 / column.len() as f32);
                    let scaled = column.iter().map(|&x| Self::product(x, by));
                    scaled.reduce(Self::sum).unwrap()
                }
            }
        )*};
    }
    plain_halves!(f16, bf16);

    fn check<T: Plain>(bits: &[Vec<u64>]) {
        let rows: Vec<Vec<T>> =
            bits.iter().map(|row| row.iter().map(|&bits| T::from_bits(bits)).collect()).collect();
        let factors: Vec<T> = bits.iter().map(|row| T::from_bits(row[0].rotate_left(17))).collect();
        let columns = (0..rows[0].len()).map(|i| rows.iter().map(|row| row[i]).collect::<Vec<_>>());
        for (i, column) in columns.enumerate() {
            let weighed = column.iter().zip(&factors).map(|(&x, &by)| T::product(x, by));
            let pick = |better: fn(f64, f64) -> bool| {
                let numbers = column.iter().copied().filter(|x| !x.value().is_nan());
                numbers.reduce(|a, b| if better(b.value(), a.value()) { b } else { a })
            };
            let fold = |f: fn(T, T) -> T| column.iter().copied().reduce(f);
            for (reduction, want) in [
                (Reduction::Sum, fold(T::sum)),
                (Reduction::Prod, fold(T::product)),
                (Reduction::Min, pick(|new, old| new < old)),
                (Reduction::Max, pick(|new, old| new > old)),
                (Reduction::Avg, Some(T::average(&column))),
                (Reduction::PreMulSum, weighed.reduce(T::sum)),
            ] {
                let got = combined(&rows, reduction, &factors, Accumulation::Element)[i];
                let same = match want {
                    Some(want) => {
                        want.value() == got.value() || want.value().is_nan() && got.value().is_nan()
                    }
                    // All are NaN.
                    None => got.value().is_nan(),
                };
                assert!(same, "{} {reduction:?} of {column:?}: {got:?}, want {want:?}", T::DTYPE);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        #[cfg_attr(miri, ignore = "all of 12 types times 6 operators take minutes")]
        fn every_type_and_operator_agrees_with_plain_code(
            bits in rows(),
        ) {
            check::<i8>(&bits);
            check::<u8>(&bits);
            check::<i32>(&bits);
            check::<u32>(&bits);
            check::<f16>(&bits);
            check::<bf16>(&bits);
            check::<f32>(&bits);
            check::<F8E4M3>(&bits);
            check::<F8E5M2>(&bits);
        }
    }

    /// One row of bits for each of a few ranks. Odd lengths reach the tails of vectorised loops.
    fn rows() -> impl Strategy<Value = Vec<Vec<u64>>> {
        (1_usize..5, 1_usize..70).prop_flat_map(|(ranks, count)| {
            prop::collection::vec(prop::collection::vec(any::<u64>(), count), ranks)
        })
    }

    #[test]
    fn the_wide_types_are_exact() {
        let rows = [vec![i64::MAX, 7], vec![1, -8]];
        let run = |reduction| combined(&rows, reduction, &[2, 3], Accumulation::Element);
        assert_eq!(run(Reduction::Sum), [i64::MIN, -1]);
        assert_eq!(run(Reduction::Avg), [i64::MIN / 2, 0]);
        assert_eq!(run(Reduction::PreMulSum), [1, -10]);
        let rows = [vec![u64::MAX, 9], vec![3, 8]];
        let run = |reduction| combined(&rows, reduction, &[1, 1], Accumulation::Element);
        assert_eq!(run(Reduction::Max), [u64::MAX, 9]);
        assert_eq!(run(Reduction::Avg), [1, 8]);
        let rows = [vec![1.0, f64::NAN], vec![1e-16, 2.0], vec![1e-16, 3.0]];
        let run = |reduction| combined(&rows, reduction, &[1.0; 3], Accumulation::Element);
        assert_eq!(run(Reduction::Sum)[0], (1.0 + 1e-16) + 1e-16);
        assert_eq!(run(Reduction::Min), [1e-16, 2.0]);
        assert_eq!(run(Reduction::Avg)[0], (1.0 / 3.0 + 1e-16 / 3.0) + 1e-16 / 3.0);
    }

    #[test]
    fn f32_accumulation_rounds_once() {
        let rows: Vec<_> = [2048.0, 1.0, 1.0, 1.0].map(|x| vec![f16::from_f32(x)]).into();
        let sum = |accumulation| combined(&rows, Reduction::Sum, &[f16::ZERO; 4], accumulation)[0];
        // 2048 + 1 rounds to 2048 in f16, every time; 2051 rounds to 2052.
        assert_eq!(sum(Accumulation::Element).to_f32(), 2048.0);
        assert_eq!(sum(Accumulation::F32).to_f32(), 2052.0);
        let avg = combined(&rows, Reduction::Avg, &[f16::ZERO; 4], Accumulation::F32)[0];
        assert_eq!(avg.to_f32(), f16::from_f32(2051.0 / 4.0).to_f32());
        let factors = [0.5, 2.0, 2.0, 2.0].map(f16::from_f32);
        let weighed = combined(&rows, Reduction::PreMulSum, &factors, Accumulation::F32)[0];
        assert_eq!(weighed.to_f32(), 1030.0);
    }
}
