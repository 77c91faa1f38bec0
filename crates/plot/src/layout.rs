//! Where everything of a figure stands.

use crate::{
    Figure, Panel, Point, Scale, Series,
    canvas::{Anchor, Canvas, Place, document},
    ruler::{Ruler, Tick},
    text::{fitted, printable, width, wrap},
    theme::Role,
};

/// Draws a figure: headings and the legend on top, below them the panels side by side.
pub(crate) fn svg(figure: &Figure) -> String {
    let panels = figure.panels.len().max(1);
    let whole = match panels {
        1 => 640.0,
        2 => 860.0,
        more => 350.0 * more as f64,
    };
    let room = whole - 2.0 * MARGIN;
    let title = wrap(&printable(&figure.title), TITLE, room);
    let subtitle = wrap(&printable(&figure.subtitle), SMALL, room);
    let names = names(&figure.panels);
    let contents: Vec<_> = figure.panels.iter().map(|panel| Content::new(panel, &names)).collect();
    let legend = legend(&contents, &names, room);

    let column = (room - (panels - 1) as f64 * GAP) / panels as f64;
    // The same for all panels, so that they look alike.
    let inset = contents.iter().map(Content::inset).fold(0.0, f64::max);
    let headings: Vec<_> =
        figure.panels.iter().map(|panel| wrap(&printable(&panel.title), HEADING, column)).collect();
    let heading_lines = headings.iter().map(Vec::len).max().unwrap_or(0) as f64;

    let after_title = MARGIN + title.len() as f64 * line(TITLE);
    let after_subtitle = after_title + subtitle.len() as f64 * line(SMALL);
    let legend_top = after_subtitle + if legend.is_empty() { 0.0 } else { 8.0 };
    let after_legend = legend_top + legend.len() as f64 * LEGEND_LINE;
    let panels_top = after_legend + 12.0;
    let plot_top = panels_top + heading_lines * line(HEADING) + line(SMALL) + HEAD;
    let height = plot_top + PLOT_HEIGHT + FOOT + 2.0 * line(SMALL) + MARGIN / 2.0;

    document((whole, height), &figure.title, |canvas| {
        for (index, text) in title.iter().enumerate() {
            let y = MARGIN + (index as f64 + 0.5) * line(TITLE);
            canvas.bold(text, (MARGIN, y), Anchor::Left, TITLE, Role::Text);
        }
        for (index, text) in subtitle.iter().enumerate() {
            let y = after_title + (index as f64 + 0.5) * line(SMALL);
            canvas.text(text, (MARGIN, y), Anchor::Left, SMALL, Role::Muted);
        }
        for (index, entries) in legend.iter().enumerate() {
            let y = legend_top + (index as f64 + 0.5) * LEGEND_LINE;
            for Entry { name, look, left } in entries {
                let left = MARGIN + left;
                canvas.line(&[(left, y), (left + SAMPLE, y)], Role::Line(*look), LINE);
                marker(canvas, (left + SAMPLE / 2.0, y), *look);
                let text_left = left + SAMPLE + SAMPLE_GAP;
                canvas.text(name, (text_left, y), Anchor::Left, SMALL, Role::Text);
            }
        }
        for (index, (content, heading)) in contents.iter().zip(&headings).enumerate() {
            let left = MARGIN + index as f64 * (column + GAP);
            for (index, text) in heading.iter().enumerate() {
                let y = panels_top + (index as f64 + 0.5) * line(HEADING);
                canvas.bold(text, (left, y), Anchor::Left, HEADING, Role::Text);
            }
            let unit = fitted(&printable(&content.panel.y.label), SMALL, column);
            let above = plot_top - HEAD - line(SMALL) / 2.0;
            canvas.text(&unit, (left, above), Anchor::Left, SMALL, Role::Muted);
            let frame = Frame {
                content,
                left: left + inset,
                right: left + column - TICK_ROOM,
                top: plot_top,
                bottom: plot_top + PLOT_HEIGHT,
            };
            frame.draw(canvas);
        }
    })
}

/// The names of all series, in the order of their first use: what they look like goes by it.
fn names(panels: &[Panel]) -> Vec<&str> {
    let mut names = Vec::new();
    for series in panels.iter().flat_map(|panel| &panel.series) {
        if !names.contains(&series.name.as_str()) {
            names.push(series.name.as_str());
        }
    }
    names
}

/// One line of the legend's text, and the sample before it.
struct Entry {
    name: String,
    /// The series' place among the names.
    look: usize,
    left: f64,
}

/// The lines of the legend, of all series that have something to show.
fn legend(contents: &[Content<'_>], names: &[&str], room: f64) -> Vec<Vec<Entry>> {
    let is_shown =
        |look| contents.iter().flat_map(|content| &content.lines).any(|(shown, _)| *shown == look);
    let mut lines: Vec<Vec<Entry>> = Vec::new();
    let mut right = f64::INFINITY;
    for (look, name) in names.iter().enumerate() {
        if name.is_empty() || !is_shown(look) {
            continue;
        }
        let name = fitted(&printable(name), SMALL, room - SAMPLE - SAMPLE_GAP);
        let entry_width = SAMPLE + SAMPLE_GAP + width(&name, SMALL);
        if right + entry_width > room {
            lines.push(Vec::new());
            right = 0.0;
        }
        if let Some(line) = lines.last_mut() {
            line.push(Entry { name, look, left: right });
        }
        right += entry_width + ENTRY_GAP;
    }
    lines
}

/// A point as the axes see it.
struct Placed {
    x: f64,
    y: f64,
    /// Both ends; the lower one is `None` where it is below all that the axis can show.
    spread: Option<(Option<f64>, f64)>,
}

/// The points of a line that the axes can show; it is interrupted where one cannot be shown.
fn runs(panel: &Panel, series: &Series) -> Vec<Vec<Placed>> {
    let placed = |point: &Point| {
        let y = panel.y.scale;
        let spread = point.spread.filter(|(low, high)| low <= high);
        Some(Placed {
            x: panel.x.scale.place(point.x)?,
            y: y.place(point.y)?,
            spread: spread.and_then(|(low, high)| Some((y.place(low), y.place(high)?))),
        })
    };
    let mut runs = vec![Vec::new()];
    for point in series.points.iter().map(placed) {
        match (point, runs.last_mut()) {
            (Some(point), Some(run)) => run.push(point),
            (_, _) => runs.push(Vec::new()),
        }
    }
    runs.retain(|run| !run.is_empty());
    runs
}

/// What a panel shows, as places on its axes.
struct Content<'a> {
    panel: &'a Panel,
    /// With what each looks like.
    lines: Vec<(usize, Vec<Placed>)>,
    x: Ruler,
    y: Ruler,
    y_ticks: Vec<Tick>,
}

impl<'a> Content<'a> {
    fn new(panel: &'a Panel, names: &[&str]) -> Self {
        let lines: Vec<_> = panel
            .series
            .iter()
            .flat_map(|series| {
                let look = names.iter().position(|name| *name == series.name).unwrap_or(0);
                runs(panel, series).into_iter().map(move |run| (look, run))
            })
            .collect();
        let points = || lines.iter().flat_map(|(_, run)| run);
        let x = Ruler::spanning(panel.x.scale, points().map(|point| point.x));
        let ends = points().filter_map(|point| point.spread);
        let ends = ends.flat_map(|(low, high)| low.into_iter().chain([high]));
        let limits = panel.limits.iter().filter_map(|limit| panel.y.scale.place(limit.y));
        // Of a single size there is no course to follow, only lengths to compare.
        let is_course = points().zip(points().skip(1)).any(|(one, next)| one.x != next.x);
        let zero = (panel.y.scale == Scale::Linear && !is_course).then_some(0.0);
        let y = points().map(|point| point.y).chain(ends).chain(limits).chain(zero);
        let y = Ruler::spanning(panel.y.scale, y);
        let y_ticks = y.ticks(|ticks| {
            let steps = ticks.windows(2).map(|two| y.share(two[1].place) - y.share(two[0].place));
            steps.fold(f64::INFINITY, f64::min) * PLOT_HEIGHT >= TICK_DISTANCE
        });
        Self { panel, lines, x, y, y_ticks }
    }

    /// The room that the labels of the vertical axis need.
    fn inset(&self) -> f64 {
        let labels = self.y_ticks.iter().map(|tick| width(&tick.label, SMALL));
        labels.fold(TICK_ROOM, f64::max) + TICK_GAP
    }
}

/// A panel's content, and where its axes stand.
struct Frame<'a> {
    content: &'a Content<'a>,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

impl Frame<'_> {
    fn across(&self, x: f64) -> f64 {
        self.left + self.content.x.share(x) * (self.right - self.left)
    }

    fn up(&self, y: f64) -> f64 {
        self.bottom - self.content.y.share(y) * (self.bottom - self.top)
    }

    fn draw(&self, canvas: &mut Canvas<'_>) {
        self.draw_axes(canvas);
        let Content { panel, lines, .. } = self.content;
        if lines.is_empty() {
            let middle = ((self.left + self.right) / 2.0, (self.top + self.bottom) / 2.0);
            canvas.text("no data", middle, Anchor::Middle, SMALL, Role::Muted);
        }
        for (look, run) in lines {
            self.draw_spread(canvas, run, *look);
        }
        let place = |point: &Placed| (self.across(point.x), self.up(point.y));
        let paths: Vec<(usize, Vec<Place>)> =
            lines.iter().map(|(look, run)| (*look, run.iter().map(place).collect())).collect();
        let mut taken: Vec<Vec<Place>> = paths.iter().map(|(_, path)| path.clone()).collect();
        for limit in &panel.limits {
            let Some(y) = panel.y.scale.place(limit.y) else { continue };
            let y = self.up(y);
            let path = vec![(self.left, y), (self.right, y)];
            canvas.line(&path, Role::Limit, 1.2);
            let label = fitted(&printable(&limit.label), SMALL, self.right - self.left);
            let room = self.room_beside(y, width(&label, SMALL), &taken);
            canvas.text(&label, room.middle(), Anchor::Middle, SMALL, Role::Muted);
            // The next label keeps away from this one and its line.
            taken.extend([path, vec![room.low, room.high]]);
        }
        for (look, path) in &paths {
            canvas.line(path, Role::Line(*look), LINE);
        }
        for (look, path) in &paths {
            path.iter().for_each(|place| marker(canvas, *place, *look));
        }
    }

    fn draw_axes(&self, canvas: &mut Canvas<'_>) {
        let Content { panel, x, y_ticks, .. } = self.content;
        let x_ticks = x.ticks(|ticks| {
            let mut free = f64::NEG_INFINITY;
            ticks.iter().all(|tick| {
                let (middle, half) = (self.across(tick.place), width(&tick.label, SMALL) / 2.0);
                let fits = middle - half >= free;
                free = middle + half + LABEL_DISTANCE;
                fits
            })
        });
        for Tick { place, label } in &x_ticks {
            let x = self.across(*place);
            canvas.line(&[(x, self.top), (x, self.bottom)], Role::Grid, 1.0);
            let y = self.bottom + FOOT + line(SMALL) / 2.0;
            canvas.text(label, (x, y), Anchor::Middle, SMALL, Role::Muted);
        }
        for Tick { place, label } in y_ticks {
            let y = self.up(*place);
            canvas.line(&[(self.left, y), (self.right, y)], Role::Grid, 1.0);
            canvas.text(label, (self.left - TICK_GAP, y), Anchor::Right, SMALL, Role::Muted);
        }
        let corner = (self.left, self.bottom);
        canvas.line(&[(self.left, self.top), corner, (self.right, self.bottom)], Role::Muted, 1.0);
        let middle = (self.left + self.right) / 2.0;
        let y = self.bottom + FOOT + 1.5 * line(SMALL);
        let label = fitted(&printable(&panel.x.label), SMALL, self.right - self.left);
        canvas.text(&label, (middle, y), Anchor::Middle, SMALL, Role::Muted);
    }

    /// A band, or for a point without neighbours a stroke.
    fn draw_spread(&self, canvas: &mut Canvas<'_>, run: &[Placed], look: usize) {
        let floor = self.content.y.start();
        for run in run.split(|point| point.spread.is_none()) {
            let ends = run.iter().filter_map(|point| {
                let (low, high) = point.spread?;
                let x = self.across(point.x);
                Some(((x, self.up(low.unwrap_or(floor))), (x, self.up(high))))
            });
            let (lower, upper): (Vec<_>, Vec<_>) = ends.unzip();
            if let ([low], [high]) = (&lower[..], &upper[..]) {
                canvas.line(&[*low, *high], Role::Marker(look), 1.0);
            } else if !lower.is_empty() {
                let corners: Vec<_> = lower.into_iter().chain(upper.into_iter().rev()).collect();
                canvas.shape(&corners, Role::Marker(look), 0.2);
            }
        }
    }

    /// Room for a label on one side of a horizontal line, where the fewest other lines are.
    fn room_beside(&self, y: f64, label: f64, drawn: &[Vec<Place>]) -> Room {
        let free = (self.right - self.left - label - 8.0).max(0.0);
        let candidates = [-1.0, 1.0].into_iter().flat_map(|side| {
            [1.0, 0.0, 0.5, 0.25, 0.75].map(|share| {
                let left = self.left + 4.0 + free * share;
                let middle = y + side * (line(SMALL) / 2.0 + 1.0);
                let half = line(SMALL) / 2.0 - 2.0;
                Room { low: (left, middle - half), high: (left + label, middle + half) }
            })
        });
        let crossings = |room: &Room| {
            let is_inside = room.low.1 >= self.top - HEAD && room.high.1 <= self.bottom;
            drawn.iter().map(|line| room.crossings(line)).sum::<usize>()
                + if is_inside { 0 } else { usize::MAX / 2 }
        };
        let first = Room { low: (self.left, y), high: (self.left + label, y) };
        candidates.min_by_key(crossings).unwrap_or(first)
    }
}

/// A rectangle.
#[derive(Clone, Copy)]
struct Room {
    low: Place,
    high: Place,
}

impl Room {
    fn middle(&self) -> Place {
        ((self.low.0 + self.high.0) / 2.0, (self.low.1 + self.high.1) / 2.0)
    }

    /// How much of a line is inside, in samples.
    fn crossings(&self, line: &[Place]) -> usize {
        const KEPT: f64 = 5.0;
        let is_inside = |(x, y): Place| {
            (self.low.0 - KEPT..=self.high.0 + KEPT).contains(&x)
                && (self.low.1 - KEPT..=self.high.1 + KEPT).contains(&y)
        };
        let samples = line.windows(2).flat_map(|ends| {
            let ((x0, y0), (x1, y1)) = (ends[0], ends[1]);
            (0..SAMPLES).map(move |step| {
                let share = f64::from(step) / f64::from(SAMPLES);
                (x0 + (x1 - x0) * share, y0 + (y1 - y0) * share)
            })
        });
        samples.chain(line.last().copied()).filter(|place| is_inside(*place)).count()
    }
}

/// A marker of the shape that belongs to a series.
fn marker(canvas: &mut Canvas<'_>, (x, y): Place, look: usize) {
    match MARKERS[look % MARKERS.len()] {
        [] => canvas.circle((x, y), MARKER, Role::Marker(look)),
        corners => {
            let corner = |(right, down): &Place| (x + right * MARKER, y + down * MARKER);
            let corners: Vec<_> = corners.iter().map(corner).collect();
            canvas.shape(&corners, Role::Marker(look), 1.0);
        }
    }
}

/// The height of a line of text of this size.
fn line(size: f64) -> f64 {
    (size * 1.4).round()
}

/// Corners around the middle, in radii; none for a circle. One more than there are colours, so that
/// colour and shape do not repeat together.
const MARKERS: [&[Place]; 7] = [
    &[],
    &[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
    &[(0.0, -1.25), (1.15, 0.85), (-1.15, 0.85)],
    &[(0.0, -1.35), (1.35, 0.0), (0.0, 1.35), (-1.35, 0.0)],
    &[(0.0, 1.25), (1.15, -0.85), (-1.15, -0.85)],
    &[
        (-0.4, -1.3),
        (0.4, -1.3),
        (0.4, -0.4),
        (1.3, -0.4),
        (1.3, 0.4),
        (0.4, 0.4),
        (0.4, 1.3),
        (-0.4, 1.3),
        (-0.4, 0.4),
        (-1.3, 0.4),
        (-1.3, -0.4),
        (-0.4, -0.4),
    ],
    &[
        (0.0, -0.5),
        (0.8, -1.3),
        (1.3, -0.8),
        (0.5, 0.0),
        (1.3, 0.8),
        (0.8, 1.3),
        (0.0, 0.5),
        (-0.8, 1.3),
        (-1.3, 0.8),
        (-0.5, 0.0),
        (-1.3, -0.8),
        (-0.8, -1.3),
    ],
];

// Text sizes.
const TITLE: f64 = 17.0;
const HEADING: f64 = 14.0;
const SMALL: f64 = 13.0;

// Lengths.
const MARGIN: f64 = 14.0;
const GAP: f64 = 14.0;
const PLOT_HEIGHT: f64 = 250.0;
/// Above and below the plot, before the next text.
const HEAD: f64 = 8.0;
const FOOT: f64 = 6.0;
const LINE: f64 = 1.8;
const MARKER: f64 = 3.2;
const SAMPLE: f64 = 26.0;
const SAMPLE_GAP: f64 = 6.0;
const ENTRY_GAP: f64 = 18.0;
const LEGEND_LINE: f64 = 21.0;
/// Between two labels of the horizontal axis.
const LABEL_DISTANCE: f64 = 12.0;
/// Between two ticks of the vertical axis.
const TICK_DISTANCE: f64 = 34.0;
/// Between the vertical axis and its labels.
const TICK_GAP: f64 = 6.0;
/// For the half of the first and the last label that may stand beyond the end of the axis.
const TICK_ROOM: f64 = 24.0;
/// Places of a stretch of line that are looked at.
const SAMPLES: i32 = 16;
