//! Figures over message size, as SVG.
//!
//! A [`Figure`] is data; [`Figure::to_svg`] draws it: a title, what it was measured under, one
//! legend, and one to three panels side by side.
//!
//! ```
//! use collectives_plot::{Axis, Figure, HorizontalLine, Panel, Point, Scale, Series};
//!
//! let time = |name: &str, fixed: f64| Series {
//!     name: name.into(),
//!     points: (3..=26)
//!         .map(|power| f64::from(1 << power))
//!         .map(|bytes| Point { x: bytes, y: fixed + bytes / 9e3, spread: None })
//!         .collect(),
//! };
//! let figure = Figure {
//!     title: "all_reduce, mock".into(),
//!     subtitle: "2 ranks, f32, sum".into(),
//!     panels: vec![Panel {
//!         title: "Time of an operation".into(),
//!         x: Axis { label: "size of the largest buffer".into(), scale: Scale::Log2Bytes },
//!         y: Axis { label: "time (µs)".into(), scale: Scale::Log10 },
//!         series: vec![time("out-of-place", 2.0), time("in-place", 1.8)],
//!         limits: vec![HorizontalLine { y: 1000.0, label: "a millisecond".into() }],
//!     }],
//! };
//! assert!(figure.to_svg().starts_with("<svg "));
//! ```
//!
//! # What it looks like
//!
//! - The background is transparent, and colours come from a style sheet inside the document that
//!   follows the reader's light or dark theme. A viewer that knows no themes shows the light one.
//! - Series differ in colour, in the shape of their markers and, beyond the sixth, in dashes. One
//!   name looks the same in all panels, so there is one legend, which nothing overlaps.
//! - Axes span what there is to show, and have as many ticks as have room. Fonts are the viewer's,
//!   so room for text is estimated, generously; a text that is too long is wrapped or cut.
//!
//! # What is never drawn
//!
//! A point that an axis cannot show, as zero, negative numbers and NaN on a logarithmic one,
//! interrupts its line. A panel with no point at all says so. No input makes this crate panic.
//!
//! The same figure gives the same bytes.

mod canvas;
mod layout;
mod ruler;
mod text;
mod theme;

/// A figure: a title and panels side by side.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// What is shown.
    pub title: String,
    /// Under which conditions it was measured; empty for none.
    pub subtitle: String,
    /// From left to right; one to three of them are readable.
    pub panels: Vec<Panel>,
}

/// One diagram of a figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Panel {
    /// What the lines are; empty for none.
    pub title: String,
    /// The horizontal axis.
    pub x: Axis,
    /// The vertical axis.
    pub y: Axis,
    /// The lines.
    pub series: Vec<Series>,
    /// What the lines should stay below, or above.
    pub limits: Vec<HorizontalLine>,
}

/// An axis. It spans what is to be shown; there is nothing to set.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// What is measured along it, with the unit: `time (µs)`.
    pub label: String,
    /// How values become places.
    pub scale: Scale,
}

/// How values become places on an axis.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Scale {
    /// In equal steps, from zero on unless all values are far from it.
    Linear,
    /// Each decade takes the same room: times.
    Log10,
    /// Each doubling takes the same room, and values are bytes: `8 B`, `64 KiB`.
    Log2Bytes,
}

/// A line with markers. Series of one name look the same in all panels of a figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// As the legend says it.
    pub name: String,
    /// In the order in which the line joins them.
    pub points: Vec<Point>,
}

/// A point of a line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Its place on the horizontal axis.
    pub x: f64,
    /// Its place on the vertical axis.
    pub y: f64,
    /// The smallest and the largest of what `y` is the middle of.
    pub spread: Option<(f64, f64)>,
}

/// A line from the left edge to the right.
#[derive(Clone, Debug, PartialEq)]
pub struct HorizontalLine {
    /// Its height.
    pub y: f64,
    /// What it means: `limit 1.05`.
    pub label: String,
}

impl Figure {
    /// The figure as a complete SVG document.
    #[must_use]
    pub fn to_svg(&self) -> String {
        layout::svg(self)
    }
}
