//! Colours, for light and dark pages.
//!
//! The drawing library knows one fixed colour for each stroke. It is given a number in the form of
//! a colour instead, one for each [`Role`]; [`themed`] replaces those numbers in the finished
//! drawing by `currentColor` and a class, and a style sheet gives the classes their colours. Text
//! is escaped by then, so nothing that a caller writes can look like such an attribute.

use std::fmt::Write as _;

use plotters::style::RGBColor;

/// What something drawn is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Role {
    /// Titles and the legend.
    Text,
    /// Labels of the axes, and the axes.
    Muted,
    Grid,
    Limit,
    /// The line of a series, by its place in the legend; its markers and its spread are
    /// [`Role::Marker`].
    Line(usize),
    Marker(usize),
}

impl Role {
    /// The number that stands for it, as a colour.
    pub(crate) const fn sentinel(self) -> RGBColor {
        let (kind, number) = match self {
            Self::Text => (0, 0),
            Self::Muted => (0, 1),
            Self::Grid => (0, 2),
            Self::Limit => (0, 3),
            Self::Line(series) => (1, series % LINES),
            Self::Marker(series) => (2, series % SERIES.len()),
        };
        // Below 256: no table here is longer.
        RGBColor(0xC0, kind, number as u8)
    }

    fn all() -> impl Iterator<Item = Self> {
        [Self::Text, Self::Muted, Self::Grid, Self::Limit]
            .into_iter()
            .chain((0..LINES).map(Self::Line))
            .chain((0..SERIES.len()).map(Self::Marker))
    }

    fn class(self) -> String {
        match self {
            Self::Text => "text".into(),
            Self::Muted => "muted".into(),
            Self::Grid => "grid".into(),
            Self::Limit => "muted limit".into(),
            Self::Line(series) => match (series % SERIES.len(), series / SERIES.len()) {
                (colour, 0) => format!("s{colour}"),
                (colour, dashes) => format!("s{colour} d{dashes}"),
            },
            Self::Marker(series) => format!("s{series}"),
        }
    }
}

/// A drawing with the colours of its page in place of those that the roles were drawn with.
pub(crate) fn themed(drawing: &str) -> String {
    let mut svg = drawing.to_owned();
    for role in Role::all() {
        let RGBColor(red, green, blue) = role.sentinel();
        let colour = format!("\"#{red:02X}{green:02X}{blue:02X}\"");
        if !svg.contains(&colour) {
            continue;
        }
        for attribute in ["fill", "stroke"] {
            svg = svg.replace(
                &format!(" {attribute}={colour}"),
                &format!(" class=\"{}\" {attribute}=\"currentColor\"", role.class()),
            );
        }
    }
    svg
}

/// What gives the classes their colours, for a drawing with so many units in a pixel.
pub(crate) fn style_sheet(unit: f64) -> String {
    let mut css = String::from("text{font-family:system-ui,\"Segoe UI\",Helvetica,sans-serif}\n");
    for (class, dash, gap) in [("limit", 5.0, 4.0), ("d1", 7.0, 3.0), ("d2", 2.0, 3.0)] {
        write!(css, ".{class}{{stroke-dasharray:{} {}}}", dash * unit, gap * unit)
            .expect("writing to a string does not fail");
    }
    css.push('\n');
    css.push_str(&rules(|colours| colours.light));
    css.push_str("@media (prefers-color-scheme: dark){\n");
    css.push_str(&rules(|colours| colours.dark));
    css.push_str("}\n");
    css
}

fn rules(pick: impl Fn(&Colours) -> &'static str) -> String {
    let mut css = String::new();
    let named = [("text", TEXT), ("muted", MUTED), ("grid", GRID)];
    let named = named.map(|(class, colours)| (class.to_owned(), colours));
    let series = SERIES.into_iter().enumerate();
    let series = series.map(|(number, colours)| (format!("s{number}"), colours));
    for (class, colours) in named.into_iter().chain(series) {
        write!(css, ".{class}{{color:{}}}", pick(&colours))
            .expect("writing to a string does not fail");
    }
    css.push('\n');
    css
}

#[derive(Clone, Copy)]
struct Colours {
    light: &'static str,
    dark: &'static str,
}

const fn colours(light: &'static str, dark: &'static str) -> Colours {
    Colours { light, dark }
}

const TEXT: Colours = colours("#1f2328", "#e6edf3");
const MUTED: Colours = colours("#59636e", "#9da7b1");
const GRID: Colours = colours("#dfe4e9", "#2f3740");

/// After Okabe and Ito, whose colours the colour-blind tell apart; darkened for a white page and
/// lightened for a black one, so that thin lines have contrast.
const SERIES: [Colours; 6] = [
    colours("#0072b2", "#58b5f0"),
    colours("#d55e00", "#ff9248"),
    colours("#008f68", "#2cc99b"),
    colours("#a0498c", "#e08bc6"),
    colours("#a87900", "#f0c23b"),
    colours("#4d545c", "#d0d7de"),
];

/// Lines that look different: in each colour solid, dashed and dotted.
const LINES: usize = 3 * SERIES.len();

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_role_has_a_number_of_its_own() {
        let numbers: BTreeSet<_> = Role::all()
            .map(|role| {
                let RGBColor(red, green, blue) = role.sentinel();
                (red, green, blue)
            })
            .collect();
        assert_eq!(numbers.len(), Role::all().count());
    }

    #[test]
    fn numbers_become_classes_and_nothing_else_does() {
        let drawing = r##"<line stroke="#C00003"/><text fill="#C00000">fill=&quot;#C00000&quot; "##;
        assert_eq!(
            themed(drawing),
            r##"<line class="muted limit" stroke="currentColor"/>"##.to_owned()
                + r##"<text class="text" fill="currentColor">fill=&quot;#C00000&quot; "##
        );
        assert_eq!(themed(r##"<rect fill="#FFFFFF"/>"##), r##"<rect fill="#FFFFFF"/>"##);
    }

    #[test]
    fn every_class_has_a_colour_in_both_themes() {
        let css = style_sheet(10.0);
        let classes: BTreeSet<_> = Role::all().map(Role::class).collect();
        for class in classes.iter().flat_map(|classes| classes.split(' ')) {
            let rules = css.matches(&format!(".{class}{{")).count();
            let is_dash = class == "limit" || class.starts_with('d');
            assert!(if is_dash { rules >= 1 } else { rules == 2 }, "{class}: {rules}");
        }
    }
}
