//! The page's figures.

use std::collections::BTreeMap;

use collectives_plot::{Axis, Figure, HorizontalLine, Panel, Point, Scale, Series as Line};

use super::{Style, operations, ranks, tables};
use crate::{
    operation::{Operation, Series},
    report::{Case, Configuration, OURS, Report, Role, Row},
};

/// All figures of a report, by their file names.
pub(super) fn of(report: &Report, style: Style) -> BTreeMap<String, Figure> {
    let mut figures = BTreeMap::new();
    for op in operations(report) {
        match style {
            Style::Mock => {
                for &series in style.series() {
                    if let Some(figure) = by_ranks(report, op, series) {
                        figures.insert(format!("mock-{op}-{series}.svg"), figure);
                    }
                }
            }
            Style::Nccl => {
                if let Some(figure) = by_series(report, op) {
                    figures.insert(format!("nccl-{op}-time.svg"), figure);
                }
                if let Some(figure) = ratios(report, op) {
                    figures.insert(format!("nccl-{op}-ratio.svg"), figure);
                }
            }
        }
    }
    if style == Style::Mock
        && let Some(figure) = over_limit(report)
    {
        figures.insert(LIMIT.into(), figure);
    }
    figures
}

/// The two that tell the most.
pub(super) fn readme(nccl: &Report, mock: &Report) -> BTreeMap<String, Figure> {
    let op = Operation::AllReduce;
    let mut figures = BTreeMap::new();
    if let Some(figure) = by_ranks(mock, op, Series::Loop) {
        figures.insert("readme-mock.svg".into(), figure);
    }
    let ranks = ranks(nccl).first().copied().unwrap_or_default();
    let eager = nccl.configuration(Case { op, ranks, series: Series::Eager });
    let panels = eager.map(|known| {
        let time = time_panel(Series::Eager.text(), times(known, ""));
        [Some(time), ratios_to_peers(known)].into_iter().flatten().collect()
    });
    let title = format!("{op} of {ranks} GPUs, calls one after another");
    if let Some(figure) = figure(nccl, title, panels.unwrap_or_default()) {
        figures.insert("readme-nccl.svg".into(), figure);
    }
    figures
}

/// Whether the figure stands in the section of an operation.
pub(super) fn is_of(name: &str, style: Style, op: Operation) -> bool {
    let rest = name.strip_prefix(style.prefix()).and_then(|rest| rest.strip_prefix('-'));
    let rest = rest.and_then(|rest| rest.strip_prefix(op.name()));
    rest.is_some_and(|rest| rest.starts_with('-'))
}

pub(super) const LIMIT: &str = "mock-limit.svg";

/// That figure on the page.
pub(super) fn limit_link() -> String {
    format!("![Time over that of the machine's limit]({}/{LIMIT})", "performance")
}

/// Times on all sides, a panel for each number of ranks.
fn by_ranks(report: &Report, op: Operation, series: Series) -> Option<Figure> {
    let panel = |ranks| {
        let known = report.configuration(Case { op, ranks, series })?;
        Some(time_panel(format!("{ranks} ranks"), times(known, "")))
    };
    let title = match series {
        Series::SyncEach => format!("{op} on a CPU, each call waited for"),
        _ => format!("{op} on a CPU, calls one after another"),
    };
    figure(report, title, ranks(report).into_iter().filter_map(panel).collect())
}

/// Times on all sides, a panel for eager calls and one for graphs; registered buffers are lines of
/// their own.
fn by_series(report: &Report, op: Operation) -> Option<Figure> {
    let ranks = ranks(report).first().copied()?;
    let known = |series| report.configuration(Case { op, ranks, series });
    let panel = |(plain, registered)| {
        let plain_lines = known(plain).map(|known| times(known, ""));
        let registered = known(registered).map(|known| times(known, ", registered"));
        let lines = [plain_lines, registered].into_iter().flatten().flatten().collect::<Vec<_>>();
        (!lines.is_empty()).then(|| time_panel(plain.text(), lines))
    };
    let pairs =
        [(Series::Eager, Series::EagerRegistered), (Series::Graph, Series::GraphRegistered)];
    let title = format!("{op} of {ranks} GPUs");
    figure(report, title, pairs.into_iter().filter_map(panel).collect())
}

/// Ratios to each of the peers, a panel for eager calls and one for graphs.
fn ratios(report: &Report, op: Operation) -> Option<Figure> {
    let ranks = ranks(report).first().copied()?;
    let known = |series| report.configuration(Case { op, ranks, series });
    let panels = [Series::Eager, Series::Graph].into_iter().filter_map(known);
    let title = format!("{op} of {ranks} GPUs: time of {OURS} over that of others");
    figure(report, title, panels.filter_map(ratios_to_peers).collect())
}

/// Ratios to each of the peers; the spread is that to the one that matters most.
fn ratios_to_peers(known: &Configuration) -> Option<Panel> {
    let of = |name: &str| {
        line(name, known, |row| {
            let ratio = row.ratio.get(name)?;
            let spread = (name == tables::REFERENCE).then_some((ratio.min, ratio.max));
            Some((ratio.median, spread))
        })
    };
    let peers = known.measured().filter(|side| side.role != Role::Ours);
    let lines = peers.map(|side| of(&side.name)).filter(|line| !line.points.is_empty());
    let lines: Vec<_> = lines.collect();
    let title = format!("{}: time of {OURS} over theirs", known.series.text());
    (!lines.is_empty()).then(|| ratio_panel(title, Scale::Linear, lines, "as fast"))
}

/// Ratios to what the machine could do, a panel for each number of ranks, a line for each operation.
fn over_limit(report: &Report) -> Option<Figure> {
    let panel = |ranks| {
        let of = |op| {
            let known = report.configuration(Case { op, ranks, series: Series::Loop })?;
            let limit = known.measured().find(|side| side.role == Role::Limit)?;
            let line =
                line(op.name(), known, |row| Some((row.ratio.get(&limit.name)?.median, None)));
            (!line.points.is_empty()).then_some(line)
        };
        let lines: Vec<_> = operations(report).into_iter().filter_map(of).collect();
        let title = format!("{ranks} ranks");
        (!lines.is_empty()).then(|| ratio_panel(title, Scale::Log10, lines, "the limit"))
    };
    let title = "Calls one after another: time over that of the machine's limit".to_owned();
    figure(report, title, ranks(report).into_iter().filter_map(panel).collect())
}

fn figure(report: &Report, title: String, panels: Vec<Panel>) -> Option<Figure> {
    (!panels.is_empty()).then(|| Figure { title, subtitle: about(report), panels })
}

/// When and on what.
fn about(report: &Report) -> String {
    tables::when_and_where(&report.date, &report.machine)
}

/// A line of times for each side that has any.
fn times(known: &Configuration, suffix: &str) -> Vec<Line> {
    let of = |name: &String| {
        line(&format!("{name}{suffix}"), known, |row| {
            let figures = row.sides.get(name)?;
            let spread = figures.min_us.zip(figures.max_us);
            Some((figures.median_us, spread.filter(|_| name == OURS)))
        })
    };
    let lines = known.measured().map(|side| of(&side.name));
    lines.filter(|line| !line.points.is_empty()).collect()
}

fn line(
    name: &str,
    known: &Configuration,
    value: impl Fn(&Row) -> Option<(f64, Option<(f64, f64)>)>,
) -> Line {
    let point = |row| {
        let (y, spread) = value(row)?;
        Some(Point { x: row.bytes as f64, y, spread })
    };
    Line { name: name.to_owned(), points: known.rows.iter().filter_map(point).collect() }
}

fn time_panel(title: String, series: Vec<Line>) -> Panel {
    let y = Axis { label: "time of a call (µs)".into(), scale: Scale::Log10 };
    Panel { title, x: by_size(), y, series, limits: Vec::new() }
}

fn ratio_panel(title: String, scale: Scale, series: Vec<Line>, one: &str) -> Panel {
    let y = Axis { label: "ratio of times".into(), scale };
    let limits = vec![HorizontalLine { y: 1.0, label: one.into() }];
    Panel { title, x: by_size(), y, series, limits }
}

fn by_size() -> Axis {
    Axis { label: "size of the largest buffer".into(), scale: Scale::Log2Bytes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::samples;

    #[test]
    fn figures_have_a_panel_for_each_number_of_ranks_and_a_line_for_each_side() {
        let known = |ranks| samples::configuration(Operation::Broadcast, ranks, Series::Loop);
        let figures = of(&samples::report(vec![known(2), known(4)]), Style::Mock);
        assert_eq!(figures.keys().collect::<Vec<_>>(), ["mock-broadcast-loop.svg", LIMIT]);
        let Figure { panels, .. } = &figures["mock-broadcast-loop.svg"];
        assert_eq!(panels.len(), 2);
        let names: Vec<_> = panels[0].series.iter().map(|line| &line.name).collect();
        assert_eq!(names, [OURS, "Open MPI", "MPICH", "limit"]);
        // MPICH has no figure of the second size, and no made up one.
        let lengths: Vec<_> = panels[0].series.iter().map(|line| line.points.len()).collect();
        assert_eq!(lengths, [2, 2, 1, 2]);
        let limit = &figures[LIMIT].panels[1].series[0];
        assert_eq!((limit.name.as_str(), limit.points[0].y), ("broadcast", 4.0));
    }

    #[test]
    fn gpus_have_times_and_ratios() {
        let known = |series| samples::configuration(Operation::AllReduce, 2, series);
        let nccl = samples::report(vec![known(Series::Eager), known(Series::EagerRegistered)]);
        let figures = of(&nccl, Style::Nccl);
        assert_eq!(
            figures.keys().collect::<Vec<_>>(),
            ["nccl-all_reduce-ratio.svg", "nccl-all_reduce-time.svg"]
        );
        let lines = &figures["nccl-all_reduce-time.svg"].panels[0].series;
        assert_eq!(lines.len(), 8);
        assert_eq!(lines[4].name, "collectives, registered");
        let mock = samples::report(vec![known(Series::Loop)]);
        let readme = readme(&nccl, &mock);
        assert_eq!(readme.keys().collect::<Vec<_>>(), ["readme-mock.svg", "readme-nccl.svg"]);
        assert_eq!(readme["readme-nccl.svg"].panels.len(), 2);
    }

    #[test]
    fn figures_belong_to_one_operation() {
        assert!(is_of("mock-reduce-loop.svg", Style::Mock, Operation::Reduce));
        assert!(!is_of("mock-reduce_scatter-loop.svg", Style::Mock, Operation::Reduce));
        assert!(!is_of("nccl-reduce-time.svg", Style::Mock, Operation::Reduce));
        assert!(!is_of(LIMIT, Style::Mock, Operation::Reduce));
    }

    #[test]
    fn nothing_measured_gives_no_figure() {
        let empty = samples::report(vec![]);
        assert!(of(&empty, Style::Mock).is_empty() && of(&empty, Style::Nccl).is_empty());
        assert!(readme(&empty, &empty).is_empty());
    }
}
