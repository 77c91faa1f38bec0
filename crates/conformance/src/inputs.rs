//! Inputs whose reduction has one right answer, bit for bit, in any order of evaluation.
//!
//! A library may add up ranks in any order and in a wider accumulator, so ordinary random floats
//! have many right sums. These have one. Every rank can compute every rank's input from (seed,
//! rank, index), so nothing is exchanged to know what to expect. The idea is nccl-tests'; the
//! construction is ours.
//!
//! * **Integers** wrap, so any bits do. A factor is odd, or products would soon all be zero.
//! * **Float sum**: all ranks share one exponent. They fall into two camps of opposite sign, and
//!   the whole-numbered mantissas of a camp add up to a total that fits the mantissa. Each partial
//!   sum lies between minus one total and the other, so it is exact. The totals differ, so the sum
//!   is never a zero, whose sign would depend on the order.
//! * **Float product**: one rank has a full mantissa, the others are powers of two, few enough that
//!   no partial product leaves the normal range.
//! * **Float min, max**: normal numbers of both signs. One of them is the answer.
//! * **Float average**: two ranks hold small whole numbers, the others zero; see
//!   [`tolerance`] for what a size that is no power of two costs.
//! * **PreMulSum**: the scalars are small powers of two, and the inputs are those of the sum,
//!   divided by them.
//!
//! A total is cut into shares at places proportional to random weights ([`share`]). Weights are at
//! least one, so the cut exists also where the total is smaller than the number of shares; some
//! shares are then zero.

use crate::number::{Format, Number};

/// What is done with the inputs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Reduction {
    Sum,
    Prod,
    Max,
    Min,
    Avg,
    /// PreMulSum, with its scalar copied from the host.
    PreMulHost,
    /// PreMulSum, with its scalar in device memory.
    PreMulDevice,
}

impl Reduction {
    pub(crate) const ALL: [Self; 7] = [
        Self::Sum,
        Self::Prod,
        Self::Max,
        Self::Min,
        Self::Avg,
        Self::PreMulHost,
        Self::PreMulDevice,
    ];
}

/// The scalar with which `rank` multiplies in a PreMulSum: 2, 4 or 1, so that one rank alone
/// multiplies too.
pub(crate) fn scalar<T: Number>(rank: usize) -> T {
    T::from_f64(f64::from(1_u32 << scalar_exponent(rank)))
}

/// What `rank` of `size` gives: `count` elements for `reduction`, or any bits where nothing is
/// reduced. A long buffer repeats the first [`PERIOD`] elements.
pub(crate) fn inputs<T: Number>(
    reduction: Option<Reduction>,
    seed: u64,
    rank: usize,
    size: usize,
    count: usize,
) -> Vec<T> {
    let period: Vec<T> = (0..count.min(PERIOD))
        .map(|index| Draw { seed, rank, size, index }.element(reduction))
        .collect();
    repeat(&period, count)
}

/// `count` elements: `period` over and over.
pub(crate) fn repeat<T: Number>(period: &[T], count: usize) -> Vec<T> {
    let mut all = Vec::with_capacity(count);
    while all.len() < count {
        all.extend_from_slice(&period[..period.len().min(count - all.len())]);
    }
    all
}

/// How many representable values a result may lie from the oracle's.
///
/// Zero for everything but the average of floats over a size that is no power of two. There, an
/// input is multiplied by 1/size rounded to the type: rounding 1/size moves the result by at most
/// one representable value, rounding the two products by half a value each, the sum by half and
/// the oracle's own quotient by half, three in all.
pub(crate) fn tolerance<T: Number>(reduction: Option<Reduction>, size: usize) -> u64 {
    let inexact =
        reduction == Some(Reduction::Avg) && T::FORMAT.is_some() && !size.is_power_of_two();
    if inexact { 3 } else { 0 }
}

/// A number that depends on all of `words`.
pub(crate) fn hash<const N: usize>(words: [u64; N]) -> u64 {
    words.into_iter().fold(0, |state: u64, word| {
        // The finalizer of SplitMix64.
        let mut z = (state ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

/// After how many elements inputs repeat. A prime, so that a part that lands in the wrong place
/// shows.
pub(crate) const PERIOD: usize = 4099;

/// One element of one rank.
#[derive(Clone, Copy)]
struct Draw {
    seed: u64,
    rank: usize,
    size: usize,
    index: usize,
}

impl Draw {
    fn element<T: Number>(self, reduction: Option<Reduction>) -> T {
        match (T::FORMAT, reduction) {
            (_, None) => T::from_bits(self.own(0)),
            (None, Some(Reduction::Prod)) => T::from_bits(self.own(0) | 1),
            (None, Some(_)) => T::from_bits(self.own(0)),
            (Some(format), Some(reduction)) => T::from_f64(match reduction {
                Reduction::Sum => self.summand(format),
                Reduction::Prod => self.factor(format),
                Reduction::Max | Reduction::Min => self.normal(format),
                Reduction::Avg => self.whole(format),
                Reduction::PreMulHost | Reduction::PreMulDevice => {
                    self.summand(format) / f64::from(1_u32 << scalar_exponent(self.rank))
                }
            }),
        }
    }

    /// Random bits of this rank.
    fn own(self, salt: u64) -> u64 {
        hash([self.seed, self.index as u64, salt, 1 + self.rank as u64])
    }

    /// Random bits that all ranks share.
    fn shared(self, salt: u64) -> u64 {
        hash([self.seed, self.index as u64, salt, 0])
    }

    /// This rank's place in an order of the ranks that changes from element to element.
    fn position(self) -> usize {
        (self.rank + (self.shared(0) % self.size as u64) as usize) % self.size
    }

    fn summand(self, format: Format) -> f64 {
        let half = 1_u64 << format.mantissa;
        let plus = self.shared(1) % half;
        let minus = (plus + 1 + self.shared(2) % (half - 1)) % half;
        // Low exponents are left out, so that dividing by a scalar stays exact.
        let lowest = u64::from(format.mantissa) + 3;
        let highest = (1_u64 << format.exponent) - 2;
        let exponent = lowest + self.shared(3) % (highest - lowest + 1);
        let camp = self.position() % 2;
        let (total, sign) = if camp == 0 { (half + plus, 1.0) } else { (half + minus, -1.0) };
        let members = (self.size - camp).div_ceil(2);
        let share = share(total, members, self.position() / 2, self.shared(4 + camp as u64));
        sign * share as f64 * unit(format, exponent)
    }

    fn factor(self, format: Format) -> f64 {
        let sign = if self.own(1) & 1 == 0 { 1.0 } else { -1.0 };
        let half = 1_u64 << format.mantissa;
        sign * match self.position() {
            0 => (half + self.own(2) % half) as f64 / half as f64,
            position @ 1..=8 if position % 2 == 1 => 2.0,
            1..=8 => 0.5,
            _ => 1.0,
        }
    }

    fn normal(self, format: Format) -> f64 {
        let sign = if self.own(1) & 1 == 0 { 1.0 } else { -1.0 };
        let half = 1_u64 << format.mantissa;
        let exponents = 1_u64 << format.exponent;
        let exponent = exponents / 4 + self.own(2) % (exponents / 2);
        sign * (half + self.own(3) % half) as f64 * unit(format, exponent)
    }

    fn whole(self, format: Format) -> f64 {
        if self.position() > 1 {
            return 0.0;
        }
        (1 + self.own(1) % (1_u64 << format.mantissa)) as f64
    }
}

fn scalar_exponent(rank: usize) -> u32 {
    (rank as u32 + 1) % 3
}

/// The value of the last mantissa bit at a biased exponent, exact: two to the power of
/// `exponent - bias - mantissa`.
fn unit(format: Format, exponent: u64) -> f64 {
    let power = exponent as i32 - format.bias() - format.mantissa as i32;
    f64::from_bits(((power + 1023) as u64) << 52)
}

/// The share of member `place` when `total` is divided among `members`; the shares add up to it.
fn share(total: u64, members: usize, place: usize, seed: u64) -> u64 {
    let weight = |member: usize| u128::from(1 + hash([seed, member as u64]) % 7);
    let all: u128 = (0..members).map(weight).sum();
    let before: u128 = (0..place).map(weight).sum();
    let cut = |weights: u128| u128::from(total) * weights / all;
    (cut(before + weight(place)) - cut(before)) as u64
}

#[cfg(test)]
mod tests {
    use collectives_core::{DType, F8E4M3, F8E5M2, bf16, f16};

    use super::*;
    use crate::{number::with_element, oracle};

    /// Ranks for which the construction is tried: few, odd, many.
    const SIZES: [usize; 8] = [1, 2, 3, 4, 5, 8, 17, 66];

    #[test]
    fn shares_add_up_to_the_total_also_when_members_outnumber_it() {
        for (total, members) in [(0, 3), (1, 1), (3, 9), (255, 130), (u64::MAX >> 11, 66)] {
            let sum: u64 = (0..members).map(|place| share(total, members, place, 7)).sum();
            assert_eq!(sum, total, "{members} members");
        }
    }

    #[test]
    fn every_order_and_accumulator_gives_the_same_bits() {
        fn check<T: Number>(reduction: Reduction, size: usize) {
            let of = |rank| inputs::<T>(Some(reduction), 42, rank, size, 64);
            let inputs: Vec<Vec<T>> = (0..size).map(of).collect();
            if tolerance::<T>(Some(reduction), size) > 0 {
                return;
            }
            let want = oracle::reduce(&inputs, reduction);
            // The oracle adds in T, rank by rank; rotated and reversed orders must agree.
            for turn in [1, size / 2] {
                let mut turned = inputs.clone();
                turned.rotate_left(turn % size);
                // A scalar belongs to its rank.
                if !matches!(reduction, Reduction::PreMulHost | Reduction::PreMulDevice) {
                    assert_eq!(oracle::reduce(&turned, reduction), want, "{reduction:?} {size}");
                    turned.reverse();
                    assert_eq!(oracle::reduce(&turned, reduction), want, "{reduction:?} {size}");
                }
            }
        }
        for dtype in DType::ALL {
            for size in SIZES {
                for reduction in Reduction::ALL {
                    with_element!(dtype, T => check::<T>(reduction, size));
                }
            }
        }
    }

    #[test]
    fn float_sums_equal_the_sum_in_f64_and_are_never_zero() {
        fn check<T: Number>(widen: impl Fn(T) -> f64) {
            for size in SIZES {
                let of = |rank| inputs::<T>(Some(Reduction::Sum), 5, rank, size, 256);
                let inputs: Vec<Vec<T>> = (0..size).map(of).collect();
                let got = oracle::reduce(&inputs, Reduction::Sum);
                for (index, &got) in got.iter().enumerate() {
                    let wide: f64 = inputs.iter().map(|input| widen(input[index])).sum();
                    assert_eq!(widen(got), wide, "{} of {size} ranks", T::DTYPE);
                    assert_ne!(wide, 0.0);
                }
            }
        }
        check::<f16>(f16::to_f64);
        check::<bf16>(bf16::to_f64);
        check::<f32>(f64::from);
        check::<F8E4M3>(|value| value.to_f64());
        check::<F8E5M2>(|value| value.to_f64());
    }
}
