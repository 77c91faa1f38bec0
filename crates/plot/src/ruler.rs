//! Axes: which values they span, where a value stands, and which ticks have room for their labels.
//!
//! A *place* is a value in the unit in which its axis is even: bytes in doublings, times in
//! decades, others as they are. Everything from here on counts in places, so zero, negative numbers
//! and NaN on a logarithmic axis are dealt with in one place: [`Scale::place`] has none for them.

use crate::Scale;

/// An axis that knows what it spans.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ruler {
    scale: Scale,
    low: f64,
    high: f64,
}

/// A place with a label.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tick {
    pub(crate) place: f64,
    pub(crate) label: String,
}

impl Scale {
    /// Where a value stands; `None` for what the axis cannot show.
    pub(crate) fn place(self, value: f64) -> Option<f64> {
        let place = match self {
            Self::Linear => value,
            Self::Log10 => value.log10(),
            Self::Log2Bytes => value.log2(),
        };
        // So that the difference of two places is finite, too.
        (place.abs() < f64::MAX / 4.0).then_some(place)
    }
}

impl Ruler {
    /// An axis with room for all of these places. None or one of them make an axis, too.
    pub(crate) fn spanning(scale: Scale, places: impl IntoIterator<Item = f64>) -> Self {
        let ends = places.into_iter().fold(None, |ends, place| match ends {
            None => Some((place, place)),
            Some((low, high)) => Some((place.min(low), place.max(high))),
        });
        let (low, high) = match scale {
            Scale::Linear => linear_ends(ends.unwrap_or((0.0, 1.0))),
            Scale::Log10 => {
                let (low, high) = ends.unwrap_or((0.0, 1.0));
                with_margin(low, high, ((high - low) * 0.06).max((1.0 - (high - low)) / 2.0))
            }
            Scale::Log2Bytes => {
                let (low, high) = ends.unwrap_or((10.0, 20.0));
                with_margin(low, high, ((high - low) * 0.03).max((2.0 - (high - low)) / 2.0))
            }
        };
        Self { scale, low, high }
    }

    /// How far along the axis a place is: 0 at its start, 1 at its end.
    pub(crate) fn share(&self, place: f64) -> f64 {
        (place - self.low) / (self.high - self.low)
    }

    /// The start of the axis.
    pub(crate) fn start(&self) -> f64 {
        self.low
    }

    /// Ticks, as many as `fit` lets through.
    pub(crate) fn ticks(&self, fit: impl Fn(&[Tick]) -> bool) -> Vec<Tick> {
        let mut candidates: Box<dyn Iterator<Item = Vec<Tick>>> = match self.scale {
            Scale::Linear => Box::new(self.linear_ticks()),
            Scale::Log10 => Box::new(self.decimal_ticks()),
            Scale::Log2Bytes => Box::new(self.byte_ticks()),
        };
        candidates.find(|ticks| ticks.len() < 2 || fit(ticks)).unwrap_or_default()
    }

    /// Multiples of 1, 2 or 5 times a power of ten, closer ones first.
    fn linear_ticks(&self) -> impl Iterator<Item = Vec<Tick>> {
        let span = self.high - self.low;
        let first = ((span / 100.0).log10().floor() as i32).clamp(-300, 300);
        let steps = (first..first + 5).flat_map(|power| [(1, power), (2, power), (5, power)]);
        steps.map(move |(digit, power)| {
            let step = scientific(f64::from(digit), power);
            let from = (self.low / step).ceil();
            let count = (self.high / step).floor() - from;
            // More than anything has room for are not worth making.
            let count = if count <= 200.0 { count as i32 } else { 200 };
            let tick = |index| {
                // Adding zero turns -0 into 0.
                let place = (from + f64::from(index)) * step + 0.0;
                Tick { place, label: number(place, power) }
            };
            (0..=count).map(tick).collect()
        })
    }

    /// 1, 2 and 5 of each decade; or each decade, or each second one, and so on.
    fn decimal_ticks(&self) -> impl Iterator<Item = Vec<Tick>> {
        let all: &[i32] = &[1, 2, 5];
        let whole: &[i32] = &[1];
        let choices = std::iter::once((1, all)).chain(STEPS.map(|step| (step, whole)));
        choices.map(|(step, digits)| {
            let powers = multiples(self.low.floor(), self.high, step);
            let ticks = powers.flat_map(|power| digits.iter().map(move |digit| (*digit, power)));
            ticks
                .map(|(digit, power)| Tick {
                    place: f64::from(power) + f64::from(digit).log10(),
                    label: number(scientific(f64::from(digit), power), power),
                })
                .filter(|tick| (self.low..=self.high).contains(&tick.place))
                .collect()
        })
    }

    /// Powers of two: each, or each second one, and so on.
    fn byte_ticks(&self) -> impl Iterator<Item = Vec<Tick>> {
        STEPS.into_iter().map(|step| {
            multiples(self.low, self.high, step)
                .map(|power| Tick { place: f64::from(power), label: bytes(power) })
                .collect()
        })
    }
}

/// From zero on where zero is near, since lengths compare to the eye only from there, and where
/// there is no other difference to show.
fn linear_ends((low, high): (f64, f64)) -> (f64, f64) {
    let is_flat = high - low <= 1e-9 * high.abs().max(low.abs());
    let (low, high) = match (low, high) {
        (0.0, 0.0) => return (0.0, 1.0),
        (low, high) if is_flat => (low.min(0.0), high.max(0.0)),
        (low, high) if low > 0.0 && low < high / 2.0 => (0.0, high),
        ends => ends,
    };
    let margin = (high - low) * 0.06;
    (if low == 0.0 { low } else { low - margin }, if high == 0.0 { high } else { high + margin })
}

fn with_margin(low: f64, high: f64, margin: f64) -> (f64, f64) {
    (low - margin, high + margin)
}

/// The multiples of a step between two ends.
fn multiples(low: f64, high: f64, step: i32) -> impl Iterator<Item = i32> {
    let width = f64::from(step);
    ((low / width).ceil() as i32..=(high / width).floor() as i32).map(move |index| index * step)
}

/// `digit × 10^power`, rounded as the literal would be, where repeated factors of 0.1 would add up
/// their errors.
fn scientific(digit: f64, power: i32) -> f64 {
    if power < 0 { digit / 10_f64.powi(-power) } else { digit * 10_f64.powi(power) }
}

/// A number with the digits that a multiple of `10^power` has.
fn number(value: f64, power: i32) -> String {
    let is_plain = value == 0.0 || (-4..=5).contains(&(value.abs().log10().floor() as i32));
    if is_plain && power >= -6 {
        format!("{value:.*}", usize::try_from(-power).unwrap_or(0))
    } else {
        format!("{value:e}")
    }
}

/// `2^power` bytes.
fn bytes(power: i32) -> String {
    let unit = (power / 10).clamp(0, 6);
    let unit_name = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"][unit.unsigned_abs() as usize];
    format!("{} {unit_name}", 2_f64.powi(power - 10 * unit))
}

/// Doublings or decades from one tick to the next. The last one is more than the logarithm of any
/// number is.
const STEPS: [i32; 12] = [1, 2, 3, 4, 5, 6, 10, 20, 50, 100, 500, 2000];

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(scale: Scale, values: &[f64], most: usize) -> Vec<String> {
        let places = values.iter().filter_map(|&value| scale.place(value));
        let ticks = Ruler::spanning(scale, places).ticks(|ticks| ticks.len() <= most);
        ticks.into_iter().map(|tick| tick.label).collect()
    }

    #[test]
    fn bytes_have_binary_units() {
        assert_eq!(
            labels(Scale::Log2Bytes, &[8.0, 67_108_864.0], 8),
            ["8 B", "64 B", "512 B", "4 KiB", "32 KiB", "256 KiB", "2 MiB", "16 MiB"]
        );
        assert_eq!(
            labels(Scale::Log2Bytes, &[8.0, 1_073_741_824.0], 5),
            ["64 B", "4 KiB", "256 KiB", "16 MiB", "1 GiB"]
        );
        assert_eq!(labels(Scale::Log2Bytes, &[8.0, 16.0], 8), ["8 B", "16 B"]);
        assert_eq!(labels(Scale::Log2Bytes, &[1024.0], 8), ["512 B", "1 KiB", "2 KiB"]);
        assert_eq!(labels(Scale::Log2Bytes, &[0.5], 8), ["0.25 B", "0.5 B", "1 B"]);
    }

    #[test]
    fn decades_are_written_out() {
        assert_eq!(labels(Scale::Log10, &[0.1, 2000.0], 8), ["0.1", "1", "10", "100", "1000"]);
        assert_eq!(labels(Scale::Log10, &[3.0, 30.0], 8), ["5", "10", "20"]);
        assert_eq!(labels(Scale::Log10, &[0.4], 8), ["0.2", "0.5", "1"]);
        assert_eq!(labels(Scale::Log10, &[1e-9, 1e9], 4), ["1e-6", "1", "1e6"]);
    }

    #[test]
    fn even_axes_start_at_zero_where_it_is_near() {
        assert_eq!(labels(Scale::Linear, &[0.2, 9.0], 6), ["0", "2", "4", "6", "8"]);
        assert_eq!(labels(Scale::Linear, &[0.98, 1.1], 6), ["1.00", "1.05", "1.10"]);
        assert_eq!(labels(Scale::Linear, &[7.0], 6), ["0", "2", "4", "6"]);
        assert_eq!(labels(Scale::Linear, &[-7.0], 6), ["-6", "-4", "-2", "0"]);
        assert_eq!(labels(Scale::Linear, &[0.0], 3), ["0.0", "0.5", "1.0"]);
    }

    #[test]
    fn what_an_axis_cannot_show_has_no_place() {
        for scale in [Scale::Log10, Scale::Log2Bytes] {
            for value in [0.0, -0.0, -1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                assert_eq!(scale.place(value), None, "{scale:?} {value}");
            }
        }
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX] {
            assert_eq!(Scale::Linear.place(value), None, "{value}");
        }
        assert_eq!(Scale::Linear.place(-1.0), Some(-1.0));
    }

    #[test]
    fn every_axis_has_finite_ends_and_few_ticks() {
        let extremes = [f64::MIN_POSITIVE, 5e-324, 1e-30, 1.0, 1e30, 1e300, f64::MAX / 8.0];
        for scale in [Scale::Linear, Scale::Log10, Scale::Log2Bytes] {
            for one in extremes {
                for other in extremes.into_iter().chain([0.0, -1.0, f64::NAN]) {
                    let places = [one, other].into_iter().filter_map(|value| scale.place(value));
                    let ruler = Ruler::spanning(scale, places);
                    assert!(ruler.low < ruler.high, "{scale:?} {one} {other}: {ruler:?}");
                    assert!((ruler.high - ruler.low).is_finite(), "{ruler:?}");
                    let ticks = ruler.ticks(|ticks| ticks.len() <= 7);
                    assert!(ticks.len() <= 7, "{scale:?} {one} {other}: {ticks:?}");
                    for Tick { place, .. } in ticks {
                        assert!((-0.01..=1.01).contains(&ruler.share(place)), "{place} {ruler:?}");
                    }
                }
            }
        }
    }
}
