//! Figures as their readers get them: documents that parse, with nothing lost and nothing in the
//! way of anything else.

use collectives_plot::{Axis, Figure, HorizontalLine, Panel, Point, Scale, Series};
use roxmltree::{Document, Node};

fn series(name: &str, points: impl IntoIterator<Item = (f64, f64)>) -> Series {
    let point = |(x, y)| Point { x, y, spread: None };
    Series { name: name.into(), points: points.into_iter().map(point).collect() }
}

/// Times of sizes from one power of two to another.
fn times(name: &str, powers: std::ops::RangeInclusive<u32>) -> Series {
    let sizes = powers.map(|power| f64::from(power).exp2());
    series(name, sizes.map(|bytes| (bytes, 2.0 + bytes / 9e3)))
}

fn panel(title: &str, scale: Scale, series: Vec<Series>) -> Panel {
    Panel {
        title: title.into(),
        x: Axis { label: "size".into(), scale: Scale::Log2Bytes },
        y: Axis { label: "time (µs)".into(), scale },
        series,
        limits: Vec::new(),
    }
}

fn figure(panels: Vec<Panel>) -> Figure {
    Figure { title: "all_reduce".into(), subtitle: "2 ranks".into(), panels }
}

/// A text of a document, and where it stands, in tenths of a pixel.
#[derive(Debug)]
struct Text {
    text: String,
    left: f64,
    right: f64,
    y: f64,
}

fn texts(document: &Document<'_>) -> Vec<Text> {
    let nodes = document.descendants().filter(|node| node.has_tag_name("text"));
    nodes
        .map(|node| {
            let text = node.text().unwrap_or_default().trim().to_owned();
            let [x, y, size] = ["x", "y", "font-size"].map(|name| number(node, name));
            // Short for most fonts, so that what overlaps here does so for readers.
            let length = 0.52 * size * text.chars().count() as f64;
            let left = match node.attribute("text-anchor") {
                Some("middle") => x - length / 2.0,
                Some("end") => x - length,
                _ => x,
            };
            Text { text, left, right: left + length, y }
        })
        .collect()
}

fn number(node: Node<'_, '_>, name: &str) -> f64 {
    let text = node.attribute(name).unwrap_or_else(|| panic!("{node:?} has no {name}"));
    text.parse().unwrap_or_else(|_| panic!("{name} of {node:?} is no number"))
}

fn count(svg: &str, tag: &str) -> usize {
    svg.matches(&format!("<{tag} ")).count()
}

#[test]
fn what_a_caller_writes_is_text_and_never_markup() {
    let nasty = "<b>&amp; \"]]>\" 'ü' \u{1}\u{0} fill=\"#C00000\"";
    let mut one = panel(nasty, Scale::Log10, vec![times(nasty, 3..=26)]);
    one.x.label = nasty.into();
    one.y.label = nasty.into();
    one.limits = vec![HorizontalLine { y: 10.0, label: nasty.into() }];
    let figure = Figure { title: nasty.into(), subtitle: nasty.into(), panels: vec![one] };
    let svg = figure.to_svg();
    let document = Document::parse(&svg).expect("XML");
    let shown = nasty.replace(['\u{1}', '\u{0}'], "\u{FFFD}");
    let texts = texts(&document);
    let same = texts.iter().filter(|text| text.text == shown).count();
    assert_eq!(same, 7, "title, subtitle, legend, panel, two axes, limit: {texts:?}");
    let title = document.descendants().find(|node| node.has_tag_name("title"));
    assert_eq!(title.and_then(|node| node.text()), Some(&*shown));
}

#[test]
fn every_colour_follows_the_theme() {
    let names: Vec<_> = (0..30).map(|number| format!("series {number}")).collect();
    let all = names.iter().map(|name| times(name, 3..=26)).collect();
    let svg = figure(vec![panel("time", Scale::Log10, all)]).to_svg();
    let document = Document::parse(&svg).expect("XML");
    for node in document.descendants() {
        for name in ["fill", "stroke"] {
            let colour = node.attribute(name).unwrap_or("none");
            assert!(["none", "currentColor"].contains(&colour), "{colour}");
            assert!(colour == "none" || node.attribute("class").is_some(), "{node:?}");
        }
    }
    assert!(svg.contains("@media (prefers-color-scheme: dark)"));
    assert_eq!(count(&svg, "rect"), 0, "nothing fills the background");
}

#[test]
fn labels_neither_overlap_nor_leave_the_figure() {
    let ranges = [3..=26, 3..=30, 0..=40, 3..=3, 3..=4, 20..=30, 10..=13, 27..=34];
    for (panels, range) in (1..=3).flat_map(|panels| ranges.clone().map(|range| (panels, range))) {
        for scale in [Scale::Log10, Scale::Linear] {
            let one = panel("time", scale, vec![times("a", range.clone())]);
            let svg = figure(vec![one; panels]).to_svg();
            let document = Document::parse(&svg).expect("XML");
            let width = 10.0 * number(document.root_element(), "width");
            let texts = texts(&document);
            for (index, one) in texts.iter().enumerate() {
                assert!(one.left >= 0.0 && one.right <= width, "{one:?} of {range:?}");
                for other in &texts[index + 1..] {
                    let is_apart = (one.y - other.y).abs() > 130.0
                        || one.right + 20.0 < other.left
                        || other.right + 20.0 < one.left;
                    assert!(is_apart, "{one:?} and {other:?}: {range:?}, {panels} panels");
                }
            }
            let ticks = texts.iter().filter(|text| text.text.ends_with('B')).count();
            assert!((2 * panels..=10 * panels).contains(&ticks), "{ticks} for {range:?}");
        }
    }
}

#[test]
fn a_name_looks_the_same_in_all_panels_and_stands_once_in_the_legend() {
    let left = panel("left", Scale::Log10, vec![times("ours", 3..=9), times("theirs", 3..=9)]);
    let right = panel("right", Scale::Linear, vec![times("theirs", 3..=9)]);
    let svg = figure(vec![left, right]).to_svg();
    let document = Document::parse(&svg).expect("XML");
    let named = |name| texts(&document).iter().filter(|text| text.text == name).count();
    assert_eq!((named("ours"), named("theirs")), (1, 1));
    // Seven points and the legend's sample: circles in one panel, squares in both.
    assert_eq!(count(&svg, "circle"), 7 + 1);
    assert_eq!(count(&svg, "polygon"), 7 + 7 + 1);
}

#[test]
fn what_an_axis_cannot_show_interrupts_the_line() {
    let whole = series("a", [(8.0, 1.0), (16.0, 2.0), (32.0, 3.0), (64.0, 4.0)]);
    // Without the legend's sample.
    let drawn = |series: &Series| {
        let svg = figure(vec![panel("", Scale::Log10, vec![series.clone()])]).to_svg();
        let lines = svg.matches("class=\"s0\" stroke=\"currentColor\"").count();
        (lines - 1, count(&svg, "circle") - 1)
    };
    assert_eq!(drawn(&whole), (1, 4));
    for hole in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let mut series = whole.clone();
        series.points[1].y = hole;
        assert_eq!(drawn(&series), (2, 3), "{hole}");
    }
}

#[test]
fn spreads_are_bands_and_strokes() {
    let mut spread = times("a", 3..=6);
    for point in &mut spread.points {
        point.spread = Some((point.y - 1.0, point.y + 1.0));
    }
    let drawn = |series: &Series| {
        let svg = figure(vec![panel("", Scale::Log10, vec![series.clone()])]).to_svg();
        (count(&svg, "polygon"), svg.matches("stroke-width=\"10\" points").count())
    };
    let (bands, strokes) = drawn(&spread);
    assert_eq!(bands, 1);
    // Below what the axis can show: the band reaches the bottom.
    spread.points[2].spread = Some((0.0, 5.0));
    assert_eq!(drawn(&spread), (1, strokes));
    for unknown in [(f64::NAN, 1.0), (1.0, f64::NAN), (2.0, 1.0)] {
        let mut series = spread.clone();
        series.points[2].spread = Some(unknown);
        // The first two are a band; the last one stands alone.
        assert_eq!(drawn(&series), (1, strokes + 1), "{unknown:?}");
    }
}

#[test]
fn little_or_strange_data_makes_a_figure_all_the_same() {
    let extremes = [0.0, -1.0, 5e-324, 1.0, 1e300, f64::MAX, f64::NAN, f64::INFINITY];
    for scale in [Scale::Linear, Scale::Log10, Scale::Log2Bytes] {
        for (x, y) in extremes.iter().flat_map(|x| extremes.iter().map(|y| (*x, *y))) {
            let mut strange = series("a", [(x, y), (8.0, 1.0), (y, x)]);
            strange.points[1].spread = Some((x, y));
            let mut panel = panel("", scale, vec![strange, series("empty", [])]);
            panel.limits = vec![HorizontalLine { y, label: "limit".into() }];
            let svg = figure(vec![panel]).to_svg();
            Document::parse(&svg).unwrap_or_else(|error| panic!("{x} {y}: {error}"));
            assert!(!svg.contains("NaN") && !svg.contains(">inf"), "{x} {y}: {svg}");
        }
        let nothing = panel("", scale, vec![series("a", []), series("b", [(f64::NAN, 1.0)])]);
        let svg = figure(vec![nothing]).to_svg();
        assert!(svg.contains("no data") && count(&svg, "circle") == 0, "{svg}");
    }
    let bare = Figure { title: String::new(), subtitle: String::new(), panels: Vec::new() };
    Document::parse(&bare.to_svg()).expect("XML");
}

#[test]
fn labels_of_limits_keep_away_from_lines() {
    let flat = |y| series("a", [(8.0, y), (64.0, y), (512.0, y)]);
    let heights = |lines: Vec<Series>| {
        let mut panel = panel("", Scale::Linear, lines);
        panel.limits = vec![HorizontalLine { y: 1.05, label: "limit".into() }];
        let svg = figure(vec![panel]).to_svg();
        let texts = texts(&Document::parse(&svg).expect("XML"));
        ["limit", "1.05"].map(|label| texts.iter().find(|text| text.text == label).map(|t| t.y))
    };
    let [label, line] = heights(vec![flat(1.0), flat(1.046)]);
    assert!(label < line && label.is_some(), "above, for a line runs close below: {label:?}");
    let [label, line] = heights(vec![flat(1.0), flat(1.0535)]);
    assert!(label > line && line.is_some(), "below, for a line runs close above: {label:?}");
}

#[test]
fn the_same_figure_gives_the_same_bytes() {
    let one = || figure(vec![panel("time", Scale::Log10, vec![times("a", 3..=26)])]);
    assert_eq!(one().to_svg(), one().to_svg());
}
