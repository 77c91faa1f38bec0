//! The page's tables and lists, as Markdown.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use collectives_plot::Figure;

use super::{Style, figures, operations as operations_of, ranks as ranks_of};
use crate::{
    library::{PLAIN, THROUGH},
    operation::{Operation, Series},
    overhead::{Layer, Measured},
    report::{Case, Configuration, OURS, PROCESSES, Report, Role, Row, Side, Spread},
    sizes,
    statistics::median,
};

/// `2026-11-23, a machine, a compiler`.
pub(super) fn when_and_where(date: &str, machine: &[String]) -> String {
    [&[date.to_owned()], machine].concat().join(", ")
}

/// What ran, when, where, how often; and what did not.
pub(super) fn about(report: &Report) -> String {
    let Report { date, machine, versions, notes, unmeasured, configurations, .. } = report;
    let rounds = || configurations.iter().map(|known| known.rounds);
    let rounds = match (rounds().min().unwrap_or_default(), rounds().max().unwrap_or_default()) {
        (one, other) if one == other => counted(one, "round"),
        (least, most) => format!("{least} to {most} rounds"),
    };
    let mut lines = vec![format!("{}; {rounds}", when_and_where(date, machine))];
    let ours = versions.iter().filter(|(name, _)| *name == OURS);
    let others = versions.iter().filter(|(name, _)| *name != OURS);
    lines.extend(ours.chain(others).map(|(name, version)| match version.starts_with(name) {
        true => version.clone(),
        false => format!("{name}: {version}"),
    }));
    lines.extend(notes.iter().cloned());
    lines.extend(missing(report));
    if !unmeasured.is_empty() {
        let places = places(unmeasured.iter().copied());
        lines.push(format!("not measured, for lack of time: {places}"));
    }
    lines.iter().map(|line| format!("* {line}\n")).collect()
}

/// Calls through each layer.
pub(super) fn overhead(Measured { layers, .. }: &Measured) -> String {
    let mut table = table(&["layer", "ns per call", "added"]);
    let raw = layers.first().map_or(0.0, |layer| layer.ns);
    for Layer { name, ns } in layers {
        row(&mut table, &[name.clone(), format!("{ns:.1}"), format!("{:.1}", ns - raw)]);
    }
    table
}

/// The mock through its C library, held against the mock itself.
pub(super) fn library(report: &Report) -> String {
    let mut text = String::new();
    for known in &report.configurations {
        let ratio = |row: &Row, side| row.processes_ratio.get(side).copied().map(inverse);
        let ratios = known.rows.iter().filter_map(|row| Some(ratio(row, THROUGH)?.median));
        let ratios = middle_of(&ratios.collect::<Vec<_>>(), Style::Mock.decimals());
        let ratios = ratios.unwrap_or_else(nothing);
        let rounds = counted(known.rounds, "round");
        text += &format!("**{}**, {rounds}; median of the ratios: {ratios}:\n\n", known.case());

        let mut head = vec!["size".to_owned(), format!("{PROCESSES} µs")];
        for side in [THROUGH, PLAIN] {
            head.extend([format!("`{side}` µs"), "÷ that".to_owned()]);
        }
        let mut lines = table(&head);
        for size in &known.rows {
            let time = |side| size.sides.get(side).map(|figures| digits(figures.median_us));
            let mut cells = vec![sizes::text(size.bytes), time(PROCESSES).unwrap_or_else(nothing)];
            for side in [THROUGH, PLAIN] {
                cells.push(time(side).unwrap_or_else(nothing));
                let ratio = ratio(size, side);
                let text = |ratio| with_range(ratio, Style::Mock.decimals());
                cells.push(ratio.map_or_else(nothing, text));
            }
            row(&mut lines, &cells);
        }
        text += &format!("{lines}\n");
    }
    text
}

/// Times the other way round.
fn inverse(Spread { median, min, max }: Spread) -> Spread {
    Spread { median: median.recip(), min: max.recip(), max: min.recip() }
}

/// The median over the small sizes, and that over the large ones, of the ratio to one peer.
pub(super) fn summary(report: &Report, style: Style) -> String {
    let against = match style {
        Style::Mock => "the fastest peer of each size",
        Style::Nccl => REFERENCE,
    };
    let mut text = format!(
        "Time of `{OURS}` over that of {against}: median over the sizes, and its range.\n\n"
    );
    // More than a few columns are no summary.
    let (registered, plain): (Vec<_>, Vec<_>) =
        style.series().iter().partition(|series| series.is_registered());
    for series in [&plain, &registered] {
        if series.iter().any(|series| has(report, *series)) {
            text += &summary_of(report, style, series, |row| &row.ratio);
            text += "\n";
        }
    }
    let rows = || report.configurations.iter().flat_map(|known| &known.rows);
    if rows().any(|row| !row.processes_ratio.is_empty()) {
        text +=
            &format!("The same of `{PROCESSES}`, whose ranks are processes as the peers' are.\n\n");
        text += &summary_of(report, style, &plain, |row| &row.processes_ratio);
        text += "\n";
    }
    text
}

/// Which of a size's ratios are meant.
type Ratios = fn(&Row) -> &BTreeMap<String, Spread>;

fn summary_of(report: &Report, style: Style, series: &[Series], ratios: Ratios) -> String {
    let from = style.large();
    let small = |bytes: u64| bytes <= 64 << 10;
    let large = |bytes: u64| bytes >= from;
    let parts: [(&str, &dyn Fn(u64) -> bool); 2] =
        [("≤ 64 KiB", &small), (&format!("≥ {}", sizes::text(from)), &large)];
    let mut head = vec!["operation".to_owned(), "ranks".to_owned()];
    for series in series {
        head.extend(parts.iter().map(|(sizes, _)| format!("{}, {sizes}", series.text())));
    }
    let mut lines = table(&head);
    for op in operations_of(report) {
        for ranks in ranks_of(report) {
            let measured =
                |known: &&Configuration| known.rows.iter().any(|row| !ratios(row).is_empty());
            let known: Vec<_> = series
                .iter()
                .map(|&series| report.configuration(Case { op, ranks, series }).filter(measured))
                .collect();
            if known.iter().all(Option::is_none) {
                continue;
            }
            let mut cells = vec![op.to_string(), ranks.to_string()];
            for known in known {
                cells.extend(parts.iter().map(|(_, holds)| {
                    let all = known.map(|known| {
                        let rows = known.rows.iter().filter(|row| holds(row.bytes));
                        let ratio = |row| ratio_to(known, ratios(row), style);
                        rows.filter_map(ratio).collect::<Vec<_>>()
                    });
                    middle_of(&all.unwrap_or_default(), style.decimals()).unwrap_or_else(nothing)
                }));
            }
            row(&mut lines, &cells);
        }
    }
    lines
}

/// What issuing a call costs, of each side.
pub(super) fn issue(report: &Report) -> String {
    let plain = |known: &&Configuration| !known.series.is_registered();
    let cost = |known: &Configuration, name: &str| {
        let rows = known.rows.iter().filter(|row| row.bytes <= 64 << 10);
        median(&rows.filter_map(|row| row.sides.get(name)?.issue_us).collect::<Vec<_>>())
    };
    let known = || report.configurations.iter().filter(plain);
    let mut names: Vec<&str> = Vec::new();
    for side in known().flat_map(Configuration::measured) {
        if !names.contains(&side.name.as_str())
            && known().any(|known| cost(known, &side.name).is_some())
        {
            names.push(&side.name);
        }
    }
    if names.is_empty() {
        return "This report is older than that measurement, and has none.".into();
    }
    let mut lines = table(&[&["operation", "series"], &names[..]].concat());
    for known in known() {
        let costs: Vec<_> = names.iter().map(|name| cost(known, name)).collect();
        if costs.iter().any(Option::is_some) {
            let mut cells = vec![known.op.to_string(), known.series.text()];
            cells.extend(costs.into_iter().map(|cost| cost.map_or_else(nothing, digits)));
            row(&mut lines, &cells);
        }
    }
    lines
}

/// A section for each operation: its figures, and its tables, folded.
pub(super) fn operations(
    report: &Report,
    style: Style,
    figures: &BTreeMap<String, Figure>,
) -> String {
    let mut text = String::new();
    for op in operations_of(report) {
        text += &format!("#### {op}\n\n");
        for (name, figure) in figures {
            if figures::is_of(name, style, op) {
                text += &format!("![{}](performance/{name})\n\n", figure.title);
            }
        }
        text += &format!("<details><summary>Tables of {op}</summary>\n\n");
        let known = report.configurations.iter().filter(|known| known.op == op);
        for known in known {
            text += &configuration(known, style);
        }
        text += "</details>\n\n";
    }
    text
}

/// One configuration: a row for each of the chosen sizes, a column for each side.
fn configuration(known: &Configuration, style: Style) -> String {
    let others: Vec<_> = known.measured().filter(|side| side.role != Role::Ours).collect();
    let bandwidth = style == Style::Nccl;
    let mut head = vec!["size".to_owned(), format!("{OURS} µs")];
    if bandwidth {
        head.push("busbw GB/s".into());
    }
    let processes = known.measured().any(|side| side.name == PROCESSES);
    if processes {
        head.push(format!("{PROCESSES} µs"));
        head.push("÷ the fastest".into());
    }
    let in_place = known.measured().any(|side| side.role == Role::Ours && side.in_place);
    head.extend(others.iter().map(|side| match side.in_place && !in_place {
        true => format!("÷ {}, in place", side.name),
        false => format!("÷ {}", side.name),
    }));
    let mut lines = table(&head);
    let ends = [known.rows.first(), known.rows.last()].map(|row| row.map(|row| row.bytes));
    let chosen = |bytes| style.sizes().contains(&bytes) || ends.contains(&Some(bytes));
    for size in known.rows.iter().filter(|row| chosen(row.bytes)) {
        let Some(ours) = size.sides.get(OURS) else { continue };
        let mut cells = vec![sizes::text(size.bytes), digits(ours.median_us)];
        if bandwidth {
            // Below, time is what counts.
            let large = size.bytes >= 1 << 20;
            cells.push(if large { digits(ours.busbw_gbps) } else { String::new() });
        }
        if processes {
            let time = size.sides.get(PROCESSES).map(|figures| digits(figures.median_us));
            cells.push(time.unwrap_or_else(nothing));
            let ratio = fastest(known, &size.processes_ratio);
            let text = |(_, ratio): (_, Spread)| ratio_text(ratio.median, style.decimals());
            cells.push(ratio.map_or_else(nothing, text));
        }
        let fastest = fastest(known, &size.ratio).map(|(name, _)| name);
        cells.extend(others.iter().map(|Side { name, .. }| match size.ratio.get(name) {
            Some(ratio) if fastest == Some(name) => in_bold(*ratio, style.decimals()),
            Some(ratio) => ratio_text(ratio.median, style.decimals()),
            None => nothing(),
        }));
        row(&mut lines, &cells);
    }
    let mut rounds = counted(known.rounds, "round");
    for Side { name, rounds: fewer, .. } in &others {
        if *fewer < known.rounds {
            rounds += &format!(", {fewer} of them with {name}");
        }
    }
    format!("**{}**, {rounds}:\n\n{lines}\n", known.case())
}

/// The peer that took the least time at a size, and the ratio to it.
fn fastest<'a>(
    known: &'a Configuration,
    ratios: &BTreeMap<String, Spread>,
) -> Option<(&'a String, Spread)> {
    let peers = known.sides.iter().filter(|side| side.role == Role::Peer);
    let ratios = peers.filter_map(|side| Some((&side.name, *ratios.get(&side.name)?)));
    ratios.max_by(|(_, one), (_, other)| one.median.total_cmp(&other.median))
}

/// The ratio that a summary is about.
fn ratio_to(known: &Configuration, ratios: &BTreeMap<String, Spread>, style: Style) -> Option<f64> {
    let spread = match style {
        Style::Mock => fastest(known, ratios)?.1,
        Style::Nccl => *ratios.get(REFERENCE)?,
    };
    Some(spread.median)
}

/// What is not there, and why; each reason once, with where it holds unless that is everywhere.
fn missing(report: &Report) -> Vec<String> {
    let mut reasons: BTreeMap<(&str, &str, &str), BTreeSet<Case>> = BTreeMap::new();
    let mut tried: BTreeMap<&str, usize> = BTreeMap::new();
    for known in &report.configurations {
        for Side { name, absent, failed, .. } in &known.sides {
            *tried.entry(name).or_default() += 1;
            let why = [("not measured", absent), ("fewer rounds", failed)];
            for (what, reason) in why {
                if let Some(reason) = reason {
                    reasons.entry((name, what, reason)).or_default().insert(known.case());
                }
            }
        }
    }
    let line = |((name, what, reason), cases): ((&str, &str, &str), BTreeSet<Case>)| {
        if tried.get(name) == Some(&cases.len()) {
            return format!("{name}: {what}: {reason}");
        }
        format!("{name}: {what} ({}): {reason}", places(cases))
    };
    reasons.into_iter().map(line).collect()
}

/// Where something holds, with operations that have the same cases in one list.
fn places(cases: impl IntoIterator<Item = Case>) -> String {
    let mut of_operation: BTreeMap<Operation, Vec<String>> = BTreeMap::new();
    for Case { op, ranks, series } in cases {
        let place = format!("{ranks} ranks, {}", series.text());
        of_operation.entry(op).or_default().push(place);
    }
    let mut groups: Vec<(Vec<&str>, Vec<String>)> = Vec::new();
    for (op, places) in of_operation {
        match groups.iter_mut().find(|(_, known)| *known == places) {
            Some((names, _)) => names.push(op.name()),
            None => groups.push((vec![op.name()], places)),
        }
    }
    let text = groups.iter().map(|(names, places)| {
        let colon = if places.len() == 1 { "," } else { ":" };
        format!("{}{colon} {}", names.join(", "), places.join("; "))
    });
    text.collect::<Vec<_>>().join("; ")
}

fn has(report: &Report, series: Series) -> bool {
    report.configurations.iter().any(|known| known.series == series)
}

/// The head of a table, whose first column is text and whose others are numbers.
fn table(head: &[impl AsRef<str>]) -> String {
    let mut lines = String::new();
    row(&mut lines, head);
    lines += "|---";
    for _ in 1..head.len() {
        lines += "|---:";
    }
    lines + "|\n"
}

fn row(lines: &mut String, cells: &[impl AsRef<str>]) {
    for cell in cells {
        // A bar would end the cell.
        let cell = cell.as_ref().replace('|', "\\|");
        write!(lines, "| {cell} ").expect("writing to a string does not fail");
    }
    lines.push_str("|\n");
}

fn in_bold(Spread { median, min, max }: Spread, decimals: usize) -> String {
    let text = |ratio| ratio_text(ratio, decimals);
    format!("**{}** ({}–{})", text(median), text(min), text(max))
}

fn middle_of(ratios: &[f64], decimals: usize) -> Option<String> {
    crate::statistics::spread(ratios).map(|spread| with_range(spread, decimals))
}

fn with_range(Spread { median, min, max }: Spread, decimals: usize) -> String {
    let text = |ratio| ratio_text(ratio, decimals);
    format!("{} ({}–{})", text(median), text(min), text(max))
}

/// So many decimals around 1; what is far from it has about as many digits.
fn ratio_text(ratio: f64, decimals: usize) -> String {
    let decimals = match ratio {
        _ if ratio < 0.01 => decimals + 2,
        _ if ratio < 0.1 => decimals + 1,
        _ if ratio < 10.0 => decimals,
        _ if ratio < 100.0 => decimals.saturating_sub(1),
        _ => 0,
    };
    format!("{ratio:.decimals$}")
}

/// Three significant digits, as far as they lie behind the point.
fn digits(value: f64) -> String {
    let behind = match value {
        _ if value < 10.0 => 2,
        _ if value < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.behind$}")
}

/// `1 round`, `3 rounds`.
fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// `10,000`.
pub(super) fn thousands(number: u32) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn nothing() -> String {
    "–".into()
}

/// The peer of NCCL's summary: it does nothing but measure the same library.
pub(super) const REFERENCE: &str = "nccl-tests";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::samples;

    fn loop_of(ranks: u32) -> Configuration {
        samples::configuration(Operation::AllReduce, ranks, Series::Loop)
    }

    #[test]
    fn a_table_has_a_column_for_each_side_and_the_fastest_peer_in_bold() {
        let text = configuration(&loop_of(2), Style::Mock);
        assert_eq!(
            text,
            "\
**all_reduce, 2 ranks, loop**, 3 rounds:

| size | collectives µs | ÷ Open MPI | ÷ MPICH | ÷ limit |
|---|---:|---:|---:|---:|
| 8 B | 1.00 | 0.50 | **2.00** (1.60–2.40) | 4.00 |
| 1 MiB | 100 | **0.50** (0.40–0.60) | – | 2.00 |

"
        );
    }

    #[test]
    fn ranks_as_processes_have_columns_and_a_summary_of_their_own() {
        let known = samples::with_processes(loop_of(2), 1.5);
        let text = configuration(&known, Style::Mock);
        let head =
            "| size | collectives µs | collectives, processes µs | ÷ the fastest | ÷ Open MPI |";
        assert!(text.contains(head), "{text}");
        assert!(
            text.contains("| 8 B | 1.00 | 1.50 | 3.00 | 0.50 | **2.00** (1.60–2.40) |"),
            "{text}"
        );
        let text = summary(&samples::report(vec![known]), Style::Mock);
        assert!(text.contains("The same of `collectives, processes`"), "{text}");
        assert!(
            text.contains("| all_reduce | 2 | 3.00 (3.00–3.00) | 0.75 (0.75–0.75) |"),
            "{text}"
        );
        // A report of before has none.
        let text = summary(&samples::report(vec![loop_of(2)]), Style::Mock);
        assert!(!text.contains("processes"), "{text}");
    }

    #[test]
    fn the_library_is_held_against_ranks_as_processes() {
        let mut known = loop_of(2);
        for row in &mut known.rows {
            let figures = row.sides[OURS];
            row.sides.insert(PROCESSES.into(), figures);
            row.sides.insert(THROUGH.into(), figures);
            let spread = Spread { median: 0.5, min: 0.4, max: 0.8 };
            row.processes_ratio.insert(THROUGH.into(), spread);
        }
        let text = library(&samples::report(vec![known]));
        let head =
            "**all_reduce, 2 ranks, loop**, 3 rounds; median of the ratios: 2.00 (2.00–2.00)";
        assert!(text.contains(head), "{text}");
        assert!(text.contains("| 8 B | 1.00 | 1.00 | 2.00 (1.25–2.50) | – | – |"), "{text}");
    }

    #[test]
    fn tables_of_gpus_have_bandwidths() {
        let known = samples::configuration(Operation::AllReduce, 2, Series::Graph);
        let text = configuration(&known, Style::Nccl);
        assert!(text.contains("| 1 MiB | 100 | 10.5 | **0.500** (0.400–0.600) |"), "{text}");
    }

    #[test]
    fn only_chosen_sizes_and_the_ends_stand_in_tables() {
        let mut known = loop_of(2);
        known.rows = [4, 8, 16, 32].map(|bytes| samples::row(bytes, 1.0, &[])).into();
        let text = configuration(&known, Style::Mock);
        let sizes: Vec<_> = text.lines().filter(|line| line.contains(" B |")).collect();
        assert_eq!(sizes.len(), 3, "{text}");
        assert!(!text.contains("| 16 B |"), "{text}");
    }

    #[test]
    fn a_summary_is_about_the_fastest_peer_of_each_size() {
        let report = samples::report(vec![loop_of(2), loop_of(4)]);
        let text = summary(&report, Style::Mock);
        let row = "| all_reduce | 2 | 2.00 (2.00–2.00) | 0.50 (0.50–0.50) |";
        assert!(text.contains(row), "{text}");
        assert!(
            text.contains("| operation | ranks | loop, ≤ 64 KiB | loop, ≥ 128 KiB |"),
            "{text}"
        );
        // Of NCCL, it is about nccl-tests, which took no part here.
        let report = samples::report(vec![samples::configuration(
            Operation::Reduce,
            2,
            Series::EagerRegistered,
        )]);
        let text = summary(&report, Style::Nccl);
        assert!(text.contains("| eager, registered buffers, ≥ 16 MiB |"), "{text}");
        assert!(text.contains("| reduce | 2 | – | – |"), "{text}");
    }

    #[test]
    fn absences_are_named_once_with_where_they_hold() {
        let mut other = loop_of(4);
        other.sides[3].absent = Some("timed out".into());
        other.sides[1].failed = Some("ended early".into());
        let lines = missing(&samples::report(vec![loop_of(2), other]));
        assert_eq!(
            lines,
            [
                "Gloo: not measured (all_reduce, 2 ranks, loop): no compiler",
                "Gloo: not measured (all_reduce, 4 ranks, loop): timed out",
                "Open MPI: fewer rounds (all_reduce, 4 ranks, loop): ended early",
            ]
        );
        let lines = missing(&samples::report(vec![loop_of(2), loop_of(4)]));
        assert_eq!(lines, ["Gloo: not measured: no compiler"]);
    }

    #[test]
    fn operations_with_the_same_cases_are_one_list() {
        let case = |op, ranks| Case { op, ranks, series: Series::Eager };
        let cases = [
            case(Operation::AllReduce, 2),
            case(Operation::AllReduce, 4),
            case(Operation::Reduce, 2),
            case(Operation::Reduce, 4),
            case(Operation::Gather, 8),
        ];
        assert_eq!(
            places(cases),
            "all_reduce, reduce: 2 ranks, eager; 4 ranks, eager; gather, 8 ranks, eager"
        );
    }

    #[test]
    fn a_list_says_what_ran_where_and_when() {
        let mut twice = loop_of(4);
        twice.rounds = 2;
        let mut report = samples::report(vec![loop_of(2), twice]);
        report.unmeasured = vec![loop_of(8).case()];
        let text = about(&report);
        assert_eq!(
            text,
            "\
* 2026-11-23, a machine; 2 to 3 rounds
* collectives: mock 0.1.0
* Open MPI 4.1.4
* float32
* Gloo: not measured: no compiler
* not measured, for lack of time: all_reduce, 8 ranks, loop
"
        );
    }

    #[test]
    fn the_cost_of_a_call_is_that_of_small_sizes() {
        let eager = samples::configuration(Operation::AllReduce, 2, Series::Eager);
        let text = issue(&samples::report(vec![eager.clone()]));
        assert!(
            text.contains("| operation | series | collectives | Open MPI | MPICH | limit |"),
            "{text}"
        );
        assert!(text.contains("| all_reduce | eager | 0.50 | 1.00 | 0.25 |"), "{text}");
        let mut without = eager;
        for figures in without.rows.iter_mut().flat_map(|row| row.sides.values_mut()) {
            figures.issue_us = None;
        }
        let text = issue(&samples::report(vec![without]));
        assert_eq!(text, "This report is older than that measurement, and has none.");
    }

    #[test]
    fn numbers_are_for_people() {
        assert_eq!([0.456, 12.34, 123.4, 12_345.6].map(digits), ["0.46", "12.3", "123", "12346"]);
        assert_eq!([1, 999, 1000, 1_234_567].map(thousands), ["1", "999", "1,000", "1,234,567"]);
        assert_eq!(counted(1, "round"), "1 round");
        let ratios = [0.001_23, 0.0123, 1.234, 12.34, 123.4].map(|ratio| ratio_text(ratio, 2));
        assert_eq!(ratios, ["0.0012", "0.012", "1.23", "12.3", "123"]);
        let mut lines = String::new();
        row(&mut lines, &["a|b"]);
        assert_eq!(lines, "| a\\|b |\n");
    }
}
