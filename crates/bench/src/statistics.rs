//! From the times of a few rounds to figures.
//!
//! In a round every side runs once, one right after another. What is compared is therefore the
//! ratio within each round, and the spread is that of the rounds: a machine that is slow for a while
//! slows all sides of a round. The ratio of the medians would mix fast rounds of one side with slow
//! ones of another.

use std::collections::BTreeMap;

use crate::{
    parse::{Run, Time},
    report::{Case, Figures, OURS, PROCESSES, Row, Spread},
};

/// The runs of one round, by the name of the side.
pub(crate) type Round = BTreeMap<String, Run>;

/// What `collectives` measured in a round: with ranks as threads, or else as processes.
pub(crate) fn ours(round: &Round) -> Option<&Run> {
    round.get(OURS).or_else(|| round.get(PROCESSES))
}

/// One row for each size that `collectives` measured, with what is known of each of the sides.
pub(crate) fn rows(case: Case, sides: &[String], rounds: &[Round]) -> Vec<Row> {
    let mut sizes: Vec<u64> =
        rounds.iter().filter_map(ours).flat_map(|run| run.times.keys().copied()).collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes.into_iter().map(|bytes| row(case, bytes, sides, rounds)).collect()
}

/// The middle value, or the mean of the two in the middle; `None` of nothing.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    match values.len() % 2 {
        0 => Some(f64::midpoint(values[values.len() / 2 - 1], upper)),
        _ => Some(upper),
    }
}

/// The middle of some values and their ends, to four digits; `None` of nothing.
pub(crate) fn spread(values: &[f64]) -> Option<Spread> {
    Some(Spread {
        median: four_digits(median(values)?),
        min: four_digits(values.iter().copied().fold(f64::INFINITY, f64::min)),
        max: four_digits(values.iter().copied().fold(f64::NEG_INFINITY, f64::max)),
    })
}

/// A value to four significant digits: more would be noise.
pub(crate) fn four_digits(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

fn row(case: Case, bytes: u64, sides: &[String], rounds: &[Round]) -> Row {
    let time = |round: &Round, side: &str| round.get(side)?.times.get(&bytes).copied();
    let mut row = Row {
        bytes,
        sides: BTreeMap::new(),
        ratio: BTreeMap::new(),
        processes_ratio: BTreeMap::new(),
    };
    for side in sides {
        let times: Vec<_> = rounds.iter().filter_map(|round| time(round, side)).collect();
        if let Some(mut figures) = figures(case, bytes, &times) {
            let in_place = |round: &Round| Some(round.get(side)?.in_place.get(&bytes)?.us);
            let in_place: Vec<_> = rounds.iter().filter_map(in_place).collect();
            figures.in_place_us = median(&in_place).map(four_digits);
            row.sides.insert(side.clone(), figures);
        }
        for (ours, ratio) in [(OURS, &mut row.ratio), (PROCESSES, &mut row.processes_ratio)] {
            // Each is held against its like.
            let own = |round: &Round| {
                let placed = round.get(side)?.placed;
                round.get(ours)?.times_of(placed).get(&bytes).copied()
            };
            let of = |round| Some(own(round)?.us / time(round, side)?.us);
            let ratios: Vec<_> = rounds.iter().filter_map(of).collect();
            if side != ours
                && let Some(spread) = spread(&ratios)
            {
                ratio.insert(side.clone(), spread);
            }
        }
    }
    row
}

fn figures(case: Case, bytes: u64, times: &[Time]) -> Option<Figures> {
    let us: Vec<_> = times.iter().map(|time| time.us).collect();
    let issue: Vec<_> = times.iter().filter_map(|time| time.issue_us).collect();
    let Spread { median: median_us, min, max } = spread(&us)?;
    // bytes / µs / 1000 = GB/s
    let busbw_gbps = bytes as f64 / median_us / 1e3 * case.op.bus_factor(case.ranks);
    Some(Figures {
        median_us,
        min_us: Some(min),
        max_us: Some(max),
        issue_us: median(&issue).map(four_digits),
        in_place_us: None,
        busbw_gbps: four_digits(busbw_gbps),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        operation::{Operation, Series},
        parse::Placed,
    };

    const CASE: Case = Case { op: Operation::AllReduce, ranks: 4, series: Series::Loop };

    fn run(times: &[(u64, f64)]) -> Run {
        let times = times.iter().map(|&(bytes, us)| (bytes, Time { us, issue_us: None }));
        Run { times: times.collect(), ..Run::default() }
    }

    fn round(sides: &[(&str, &[(u64, f64)])]) -> Round {
        sides.iter().map(|&(name, times)| (name.to_owned(), run(times))).collect()
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn the_ratio_is_the_median_of_the_rounds_not_the_ratio_of_medians() {
        let rounds = [(1.0, 1.0), (2.0, 4.0), (9.0, 3.0)]
            .map(|(ours, theirs)| round(&[(OURS, &[(8, ours)]), ("X", &[(8, theirs)])]));
        let rows = rows(CASE, &names(&[OURS, "X"]), &rounds);
        assert_eq!(rows.len(), 1);
        // Medians 2 and 3; ratios 1, 0.5 and 3.
        let Row { bytes, sides, ratio, .. } = &rows[0];
        assert_eq!((*bytes, sides[OURS].median_us, sides["X"].median_us), (8, 2.0, 3.0));
        assert_eq!((sides[OURS].min_us, sides[OURS].max_us), (Some(1.0), Some(9.0)));
        assert_eq!(ratio["X"], Spread { median: 1.0, min: 0.5, max: 3.0 });
        assert!(!ratio.contains_key(OURS));
    }

    #[test]
    fn bus_bandwidth_is_that_of_the_median_time() {
        let rounds = [round(&[(OURS, &[(1 << 20, 100.0)])])];
        let rows = rows(CASE, &names(&[OURS]), &rounds);
        // 1 MiB in 100 µs is 10.48576 GB/s; 2 · 3 / 4 of it crosses each rank's link.
        assert_eq!(rows[0].sides[OURS].busbw_gbps, 15.73);
    }

    #[test]
    fn ranks_as_processes_have_ratios_of_their_own() {
        let rounds =
            [(1.0, 2.0, 4.0), (1.0, 3.0, 4.0), (2.0, 8.0, 4.0)].map(|(ours, own, theirs)| {
                round(&[(OURS, &[(8, ours)]), (PROCESSES, &[(8, own)]), ("X", &[(8, theirs)])])
            });
        let rows = rows(CASE, &names(&[OURS, PROCESSES, "X"]), &rounds);
        let Row { ratio, processes_ratio, .. } = &rows[0];
        assert_eq!((ratio["X"].median, ratio[PROCESSES].median), (0.25, 0.3333));
        assert_eq!((processes_ratio["X"].median, processes_ratio[OURS].median), (0.75, 3.0));
        assert!(!ratio.contains_key(OURS) && !processes_ratio.contains_key(PROCESSES));
    }

    #[test]
    fn a_side_that_missed_a_round_or_size_is_compared_where_it_was() {
        let rounds = [
            round(&[(OURS, &[(8, 2.0), (16, 3.0)]), ("X", &[(16, 6.0)]), ("Y", &[(8, 1.0)])]),
            round(&[(OURS, &[(8, 4.0), (16, 5.0)]), ("X", &[(16, 5.0)])]),
            round(&[("X", &[(16, 1.0)])]),
        ];
        let rows = rows(CASE, &names(&[OURS, "X", "Y", "Z"]), &rounds);
        assert_eq!(rows[0].ratio.keys().collect::<Vec<_>>(), ["Y"]);
        assert_eq!(rows[0].ratio["Y"], Spread { median: 2.0, min: 2.0, max: 2.0 });
        assert_eq!(rows[1].ratio["X"], Spread { median: 0.75, min: 0.5, max: 1.0 });
        assert_eq!(rows[1].sides["X"].median_us, 5.0);
        assert!(!rows[1].sides.contains_key("Z"));
    }

    #[test]
    fn what_works_in_place_is_held_against_in_place() {
        let time = |us| BTreeMap::from([(8, Time { us, issue_us: None })]);
        let ours = Run { times: time(6.0), in_place: time(2.0), ..Run::default() };
        let theirs = Run { times: time(4.0), placed: Placed::InPlace, ..Run::default() };
        let round = Round::from([(OURS.to_owned(), ours), ("X".to_owned(), theirs)]);
        let rows = rows(CASE, &names(&[OURS, "X"]), &[round]);
        assert_eq!(rows[0].ratio["X"].median, 0.5);
        let figures = rows[0].sides[OURS];
        assert_eq!((figures.median_us, figures.in_place_us), (6.0, Some(2.0)));
    }

    #[test]
    fn issue_times_are_those_of_the_rounds_that_have_them() {
        let timed = |us, issue_us| {
            let times = BTreeMap::from([(8, Time { us, issue_us })]);
            Round::from([(OURS.to_owned(), Run { times, ..Run::default() })])
        };
        let sides = names(&[OURS]);
        let rows_of = |rounds: &[Round]| rows(CASE, &sides, rounds)[0].sides[OURS].issue_us;
        assert_eq!(rows_of(&[timed(2.0, Some(0.5)), timed(2.0, None)]), Some(0.5));
        assert_eq!(rows_of(&[timed(2.0, None)]), None);
    }

    #[test]
    fn values_keep_four_digits() {
        assert_eq!(four_digits(1234.56), 1235.0);
        assert_eq!(four_digits(0.001_234_56), 0.001_235);
    }
}
