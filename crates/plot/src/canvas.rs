//! What is drawn on: lines, shapes and texts, each in its role.
//!
//! Lengths are in pixels of the finished figure. The drawing library knows whole pixels only, so
//! everything is drawn [`FINE`] times as large, and the `viewBox` scales it back.

use plotters::{
    backend::{DrawingBackend, SVGBackend},
    style::{
        Color, FontDesc, FontFamily, FontStyle, ShapeStyle, TextStyle,
        text_anchor::{HPos, Pos, VPos},
    },
};

use crate::{
    text::printable,
    theme::{self, Role},
};

/// A place, from the upper left corner.
pub(crate) type Place = (f64, f64);

/// Where a text stands from its place.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Anchor {
    Left,
    Middle,
    Right,
}

pub(crate) struct Canvas<'a> {
    svg: SVGBackend<'a>,
}

/// Draws a figure of this size and answers the document.
pub(crate) fn document(
    (width, height): (f64, f64),
    title: &str,
    draw: impl FnOnce(&mut Canvas<'_>),
) -> String {
    let mut drawing = String::new();
    let mut canvas = Canvas { svg: SVGBackend::with_string(&mut drawing, (1, 1)) };
    draw(&mut canvas);
    written(canvas.svg.present());
    drop(canvas);
    // The library's own first tag has a size and nothing else.
    let shapes = drawing.split_once('>').map_or("", |(_, shapes)| shapes);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" width=\"{width}\" \
         height=\"{height}\" viewBox=\"0 0 {} {}\">\n<title>{}</title>\n<style>\n{}</style>{}",
        width * FINE,
        height * FINE,
        escaped(&printable(title)),
        theme::style_sheet(FINE),
        theme::themed(shapes)
    )
}

impl Canvas<'_> {
    /// A line through some places.
    pub(crate) fn line(&mut self, places: &[Place], role: Role, width: f64) {
        let stroke_width = (width * FINE).round() as u32;
        let color = role.sentinel().to_rgba();
        let style = ShapeStyle { color, filled: false, stroke_width };
        written(self.svg.draw_path(places.iter().copied().map(fine), &style));
    }

    /// A filled shape.
    pub(crate) fn shape(&mut self, corners: &[Place], role: Role, opacity: f64) {
        let color = role.sentinel().mix(opacity).to_backend_color();
        written(self.svg.fill_polygon(corners.iter().copied().map(fine), &color));
    }

    /// A filled circle.
    pub(crate) fn circle(&mut self, middle: Place, radius: f64, role: Role) {
        let color = role.sentinel().to_backend_color();
        written(self.svg.draw_circle(fine(middle), (radius * FINE).round() as u32, &color, true));
    }

    /// A line of text whose middle is as high as its place.
    pub(crate) fn text(&mut self, text: &str, at: Place, anchor: Anchor, size: f64, role: Role) {
        self.letters(text, at, anchor, FontStyle::Normal, size, role);
    }

    /// [`Canvas::text`] for headings.
    pub(crate) fn bold(&mut self, text: &str, at: Place, anchor: Anchor, size: f64, role: Role) {
        self.letters(text, at, anchor, FontStyle::Bold, size, role);
    }

    fn letters(
        &mut self,
        text: &str,
        at: Place,
        anchor: Anchor,
        style: FontStyle,
        size: f64,
        role: Role,
    ) {
        let anchor = match anchor {
            Anchor::Left => HPos::Left,
            Anchor::Middle => HPos::Center,
            Anchor::Right => HPos::Right,
        };
        // The library takes the height of a line, 1.24 of the size that it writes.
        let font = FontDesc::new(FontFamily::SansSerif, size * FINE * 1.24, style);
        let pos = Pos::new(anchor, VPos::Center);
        let style = TextStyle { font, color: role.sentinel().to_backend_color(), pos };
        written(self.svg.draw_text(text, &style, fine(at)));
    }
}

fn fine((x, y): Place) -> (i32, i32) {
    ((x * FINE).round() as i32, (y * FINE).round() as i32)
}

/// The library writes to a string, which takes everything.
fn written<E: std::fmt::Debug>(result: Result<(), E>) {
    result.expect("writing to a string does not fail");
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Units of the drawing in a pixel.
const FINE: f64 = 10.0;
