//! Inputs whose results are known, and the check of the results.
//!
//! An input is a small integer, a function of (rank, index, seed). It is chosen so that every
//! result, and whatever stands between input and result, is exact in the element type, in any order
//! of additions: then right is right to the last bit, and one lost, doubled or misplaced element
//! shows.
//!
//! * *Copies, minima, maxima*: any integer that the type holds exactly.
//! * *Sums, averages*: two ranks contribute at each index, every rank at some, the others zero; the
//!   two are at most half of what is exact.
//! * *Products*: the same two contribute one or two, the others one.
//!
//! Averages of floats are the exception: 1/size is not exact in general, so a result may be off by
//! the roundings of the scalar, of two products and of their sum.

use collectives::{Element, F8E4M3, F8E5M2, ReduceOp, bf16, f16};

use super::operation::Operation;

/// An element type with small integers.
pub(super) trait Value: Element {
    /// Integers up to this mask, and one more, are exact. All ones.
    const MASK: u32;
    /// Distance from one to the next value; zero for integers.
    const EPSILON: f64;

    /// An integer of at most [`MASK`](Self::MASK).
    fn from_small(value: u32) -> Self;

    /// The value, exact as far as inputs and right results go.
    fn number(self) -> f64;
}

macro_rules! value {
    ($($ty:ty, $bits:expr, $epsilon:expr, $from:expr, $to:expr;)*) => {$(
        impl Value for $ty {
            const MASK: u32 = (1 << $bits) - 1;
            const EPSILON: f64 = $epsilon;

            #[inline]
            fn from_small(value: u32) -> Self {
                $from(value)
            }

            #[inline]
            fn number(self) -> f64 {
                $to(self)
            }
        }
    )*};
}

// The types' own bounds: integers of so many bits are exact.
value! {
    i8, 7, 0.0, |v| v as Self, f64::from;
    u8, 7, 0.0, |v| v as Self, f64::from;
    i32, 24, 0.0, |v| v as Self, f64::from;
    u32, 24, 0.0, |v| v, f64::from;
    i64, 24, 0.0, Self::from, |v| v as f64;
    u64, 24, 0.0, Self::from, |v| v as f64;
    f16, 11, 1.0 / 1024.0, |v| Self::from_f32(v as f32), Self::to_f64;
    bf16, 8, 1.0 / 128.0, |v| Self::from_f32(v as f32), Self::to_f64;
    f32, 24, f32::EPSILON as f64, |v| v as Self, f64::from;
    f64, 24, Self::EPSILON, Self::from, |v| v;
    F8E4M3, 4, 1.0 / 8.0, |v| Self::from_f32(v as f32), |v: Self| v.to_f64();
    F8E5M2, 3, 1.0 / 4.0, |v| Self::from_f32(v as f32), |v: Self| v.to_f64();
}

/// An expression over a type, that of a [`DType`](collectives::DType).
macro_rules! with_type {
    ($dtype:expr, $name:ident => $body:expr) => {{
        macro_rules! with {
            ($ty:ty) => {{
                type $name = $ty;
                $body
            }};
        }
        match $dtype {
            ::collectives::DType::I8 => with!(i8),
            ::collectives::DType::U8 => with!(u8),
            ::collectives::DType::I32 => with!(i32),
            ::collectives::DType::U32 => with!(u32),
            ::collectives::DType::I64 => with!(i64),
            ::collectives::DType::U64 => with!(u64),
            ::collectives::DType::F16 => with!(::collectives::f16),
            ::collectives::DType::Bf16 => with!(::collectives::bf16),
            ::collectives::DType::F32 => with!(f32),
            ::collectives::DType::F64 => with!(f64),
            ::collectives::DType::F8E4M3 => with!(::collectives::F8E4M3),
            ::collectives::DType::F8E5M2 => with!(::collectives::F8E5M2),
        }
    }};
}
pub(super) use with_type;

/// What all ranks put in, and so what each gets out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Data {
    pub(super) operation: Operation,
    pub(super) op: ReduceOp,
    pub(super) ranks: usize,
    pub(super) root: usize,
    /// Elements of one part.
    pub(super) count: usize,
    /// Another one for each check, so that what an earlier one left is wrong.
    pub(super) seed: u64,
}

impl Data {
    /// What `rank` has at `index` of its input.
    #[inline]
    pub(super) fn input<T: Value>(&self, rank: usize, index: usize) -> T {
        T::from_small(self.input_integer::<T>(rank, index))
    }

    #[inline]
    fn input_integer<T: Value>(&self, rank: usize, index: usize) -> u32 {
        let noise = noise(self.seed, rank, index);
        if !self.operation.reduces() {
            return noise & T::MASK;
        }
        match self.op {
            ReduceOp::Max | ReduceOp::Min => noise & T::MASK,
            ReduceOp::Sum | ReduceOp::Avg | ReduceOp::PreMulSum(_) => {
                if self.contributes(rank, index) { noise & (T::MASK >> 1) } else { 0 }
            }
            ReduceOp::Prod => {
                if self.contributes(rank, index) {
                    1 + (noise & 1)
                } else {
                    1
                }
            }
        }
    }

    /// Whether `rank` is one of the two ranks that count at `index`.
    #[inline]
    fn contributes(&self, rank: usize, index: usize) -> bool {
        self.contributors(index).contains(&rank)
    }

    #[inline]
    fn contributors(&self, index: usize) -> [usize; 2] {
        let first = index % self.ranks;
        [first, if first + 1 == self.ranks { 0 } else { first + 1 }]
    }

    /// What `rank` must have at `index` of its result.
    #[inline]
    fn result<T: Value>(&self, rank: usize, index: usize) -> f64 {
        let Self { operation, ranks, root, count, .. } = *self;
        let input = |rank, index| f64::from(self.input_integer::<T>(rank, index));
        match operation {
            Operation::AllReduce | Operation::Reduce => self.reduced::<T>(index),
            Operation::ReduceScatter => self.reduced::<T>(rank * count + index),
            Operation::AllGather | Operation::Gather => input(index / count, index % count),
            Operation::AllToAll => input(index / count, rank * count + index % count),
            Operation::Broadcast => input(root, index),
            Operation::Scatter => input(root, rank * count + index),
            Operation::SendRecv => input((rank + ranks - 1) % ranks, index),
        }
    }

    /// What the inputs of all ranks at `index` reduce to.
    #[inline]
    fn reduced<T: Value>(&self, index: usize) -> f64 {
        let input = |rank| f64::from(self.input_integer::<T>(rank, index));
        let contributors = self.contributors(index);
        // Of a single rank there is one.
        let contributors = &contributors[..contributors.len().min(self.ranks)];
        let sum = || contributors.iter().map(|&rank| input(rank)).sum::<f64>();
        match self.op {
            ReduceOp::Sum | ReduceOp::PreMulSum(_) => sum(),
            ReduceOp::Avg if T::EPSILON == 0.0 => (sum() / self.ranks as f64).trunc(),
            ReduceOp::Avg => sum() / self.ranks as f64,
            ReduceOp::Prod => contributors.iter().map(|&rank| input(rank)).product(),
            ReduceOp::Max => (0..self.ranks).map(input).fold(0.0, f64::max),
            ReduceOp::Min => (0..self.ranks).map(input).fold(f64::INFINITY, f64::min),
        }
    }

    /// How far a right result may be off.
    #[inline]
    fn tolerance<T: Value>(&self, want: f64) -> f64 {
        if self.operation.reduces() && self.op == ReduceOp::Avg {
            // 1/size, two products, their sum: half a unit each.
            2.0 * T::EPSILON * want
        } else {
            0.0
        }
    }

    /// How many of `results`, which start at `first` of the result of `rank`, are wrong.
    pub(super) fn wrong<T: Value>(&self, rank: usize, first: usize, results: &[T]) -> u64 {
        let is_wrong = |(index, got): (usize, &T)| {
            let want = self.result::<T>(rank, first + index);
            // A NaN is within no tolerance.
            let within = (got.number() - want).abs() <= self.tolerance::<T>(want);
            u64::from(!within)
        };
        results.iter().enumerate().map(is_wrong).sum()
    }
}

/// Bits without a pattern, the same on every rank: the finalizer of SplitMix64.
#[inline]
fn noise(seed: u64, rank: usize, index: usize) -> u32 {
    let mut x = (index as u64)
        .wrapping_add((rank as u64) << 40)
        .wrapping_add(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x >> 32) as u32
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    /// The result of every rank, worked out the long way.
    fn results<T: Value>(data: &Data, combine: impl Fn(f64, f64) -> f64) -> Vec<f64> {
        (0..data.count)
            .map(|index| {
                (0..data.ranks)
                    .map(|rank| data.input::<T>(rank, index).number())
                    .reduce(&combine)
                    .expect("there are ranks")
            })
            .collect()
    }

    fn data(operation: Operation, op: ReduceOp, ranks: usize) -> Data {
        Data { operation, op, ranks, root: 1 % ranks, count: 97, seed: 3 }
    }

    fn exact_in<T: Value>() {
        for ranks in [1, 2, 3, 8] {
            type Combine = fn(f64, f64) -> f64;
            let ops: [(ReduceOp, Combine); 4] = [
                (ReduceOp::Sum, |a, b| a + b),
                (ReduceOp::Prod, |a, b| a * b),
                (ReduceOp::Max, f64::max),
                (ReduceOp::Min, f64::min),
            ];
            for (op, combine) in ops {
                let data = data(Operation::AllReduce, op, ranks);
                let want = results::<T>(&data, combine);
                let exact: Vec<_> = want.iter().map(|&v| T::from_small(v as u32)).collect();
                // The result is an integer that the type holds, and is what is wanted.
                let back: Vec<_> = exact.iter().map(|v| v.number()).collect();
                assert_eq!(back, want, "{} {op}", T::DTYPE);
                assert_eq!(data.wrong(0, 0, &exact), 0, "{} {op} of {ranks}", T::DTYPE);
            }
        }
    }

    #[test]
    fn results_are_exact_in_every_type() {
        exact_in::<i8>();
        exact_in::<u8>();
        exact_in::<i32>();
        exact_in::<u32>();
        exact_in::<i64>();
        exact_in::<u64>();
        exact_in::<f16>();
        exact_in::<bf16>();
        exact_in::<f32>();
        exact_in::<f64>();
        exact_in::<F8E4M3>();
        exact_in::<F8E5M2>();
    }

    #[test]
    fn a_wrong_element_is_counted() {
        for &operation in Operation::value_variants() {
            let data = data(operation, ReduceOp::Sum, 3);
            let len = operation.lengths(data.count, 3, true).recv;
            let mut right: Vec<f32> =
                (0..len).map(|index| data.result::<f32>(1, index) as f32).collect();
            assert_eq!(data.wrong(1, 0, &right), 0, "{operation}");
            assert_eq!(data.wrong(1, 5, &right[5..]), 0, "{operation}, from the fifth on");
            right[7] += 1.0;
            right[11] = f32::NAN;
            assert_eq!(data.wrong(1, 0, &right), 2, "{operation}");
        }
    }

    #[test]
    fn results_of_another_seed_or_rank_are_wrong() {
        let data = data(Operation::Scatter, ReduceOp::Sum, 3);
        let right: Vec<i32> = (0..97).map(|index| data.result::<i32>(0, index) as i32).collect();
        assert!(data.wrong(1, 0, &right) > 90);
        assert!(Data { seed: 4, ..data }.wrong(0, 0, &right) > 90);
    }

    #[test]
    fn averages_of_floats_may_round_and_no_more() {
        let data = data(Operation::AllReduce, ReduceOp::Avg, 3);
        let scalar = 1.0_f32 / 3.0;
        let mean = |index| (0..3).map(|rank| data.input::<f32>(rank, index) * scalar).sum();
        let rounded: Vec<f32> = (0..97).map(mean).collect();
        assert_eq!(data.wrong(0, 0, &rounded), 0);
        let off: Vec<f32> = rounded.iter().map(|v| v * 1.000_001).collect();
        assert!(data.wrong(0, 0, &off) > 80);
    }

    #[test]
    fn averages_of_integers_are_cut() {
        let data = data(Operation::AllReduce, ReduceOp::Avg, 2);
        let input = |rank, index| data.input::<i8>(rank, index);
        let cut: Vec<i8> = (0..97).map(|i| (input(0, i) + input(1, i)) / 2).collect();
        assert_eq!(data.wrong(0, 0, &cut), 0);
    }
}
