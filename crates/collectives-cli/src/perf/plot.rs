//! What `--plot` draws: time and bus bandwidth by size.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use collectives::{DeviceInfo, LibraryInfo};
use collectives_plot::{Axis, Figure, Panel, Point, Scale, Series};
use jiff::civil::Date;
use tempfile::NamedTempFile;

use super::{
    args::{Args, Mode, Registered},
    json::{Placement, Row},
    table,
};

/// The file that the figure replaces or becomes, all at once: whoever reads it meanwhile sees the
/// old one or the new one.
pub(super) struct Target {
    folder: PathBuf,
    file: PathBuf,
}

impl Target {
    /// Makes sure that the figure can be written there, and leaves everything as it was.
    pub(super) fn new(path: &Path) -> Result<Self, String> {
        let refused = |reason: String| format!("--plot {}: {reason}", path.display());
        // What a link leads to is replaced, and not the link.
        let file = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        if file.exists() && !file.is_file() {
            return Err(refused("not a regular file; name one to replace, or a new one".into()));
        }
        let (Some(folder), Some(name)) = (file.parent(), file.file_name()) else {
            return Err(refused("names no file".into()));
        };
        let folder = if folder == Path::new("") { Path::new(".") } else { folder };
        if !folder.is_dir() {
            return Err(refused(format!("there is no folder {}", folder.display())));
        }
        let target = Self { file: folder.join(name), folder: folder.to_owned() };
        target.beside().map_err(|error| refused(error.kind().to_string()))?;
        Ok(target)
    }

    pub(super) fn write(&self, figure: &Figure) -> Result<(), String> {
        let written = self.beside().and_then(|mut new| {
            new.write_all(figure.to_svg().as_bytes())?;
            new.persist(&self.file)?;
            Ok(())
        });
        // By its kind: the whole text names the temporary file, which nobody asked for.
        written.map_err(|error| format!("--plot {}: {}", self.file.display(), error.kind()))
    }

    /// A new file in the same folder; gone when dropped.
    fn beside(&self) -> io::Result<NamedTempFile> {
        let mut new = tempfile::Builder::new();
        new.prefix(".plot-").suffix(".svg");
        // Like any new file, and not for its owner alone, as is right for temporary ones.
        #[cfg(unix)]
        new.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        new.tempfile_in(&self.folder)
    }
}

/// What is said of a run above its lines.
pub(super) struct Conditions<'a> {
    pub(super) args: &'a Args,
    pub(super) library: &'a LibraryInfo,
    pub(super) devices: &'a [DeviceInfo],
    pub(super) date: Date,
}

pub(super) fn figure(conditions: &Conditions<'_>, rows: &[Row]) -> Figure {
    let Conditions { args, library: LibraryInfo { backend, version, .. }, .. } = conditions;
    let panel = |title: &str, label: &str, scale, series| Panel {
        title: title.into(),
        x: Axis { label: "size of the largest buffer of a rank".into(), scale: Scale::Log2Bytes },
        y: Axis { label: label.into(), scale },
        series,
        limits: Vec::new(),
    };
    let issue = line(ISSUE, rows, |row| row.out_of_place.issue_us);
    let time = placements(rows, |placement| placement.time_us).chain(issue);
    let bandwidth = placements(rows, |placement| placement.busbw_gbps);
    Figure {
        title: format!("{}, {backend} {version}", args.operation),
        subtitle: subtitle(conditions, rows),
        panels: vec![
            panel("Time of an operation", "time (µs)", Scale::Log10, time.collect()),
            panel("Bus bandwidth", "bandwidth (GB/s)", Scale::Linear, bandwidth.collect()),
        ],
    }
}

/// A line for each placement that there is.
fn placements(rows: &[Row], value: impl Fn(&Placement) -> f64) -> impl Iterator<Item = Series> {
    let out_of_place = line(OUT_OF_PLACE, rows, |row| Some(value(&row.out_of_place)));
    let in_place = line(IN_PLACE, rows, |row| row.in_place.as_ref().map(&value));
    out_of_place.into_iter().chain(in_place)
}

/// A value of each size, if it is there at all.
fn line(name: &str, rows: &[Row], value: impl Fn(&Row) -> Option<f64>) -> Option<Series> {
    let point = |row: &Row| Some(Point { x: row.bytes as f64, y: value(row)?, spread: None });
    let points: Vec<_> = rows.iter().filter_map(point).collect();
    (!points.is_empty()).then(|| Series { name: name.into(), points })
}

fn subtitle(Conditions { args, devices, date, .. }: &Conditions<'_>, rows: &[Row]) -> String {
    let ranks = match (devices.len(), args.mode) {
        (1, _) => "1 rank".into(),
        (ranks, Mode::Threads) => format!("{ranks} ranks (threads)"),
        (ranks, Mode::Processes) => format!("{ranks} ranks (processes)"),
        (ranks, Mode::OneThread) => format!("{ranks} ranks (one thread)"),
        (ranks, Mode::Launched) => format!("{ranks} ranks (launched)"),
    };
    let mut parts = vec![ranks, args.dtype.to_string()];
    if let Some(Row { redop, root, .. }) = rows.first() {
        parts.extend(redop.map(Into::into));
        parts.extend(root.map(|root| format!("root {root}")));
    }
    let issued = match (args.graph, args.sync_each) {
        (true, _) => "captured in a graph",
        (false, true) => "eager, each waited for",
        (false, false) => "eager",
    };
    let registered = match args.registered {
        Registered::None => "buffers not registered",
        Registered::Buffer => "registered buffers",
        Registered::Symmetric => "symmetric buffers",
    };
    parts.extend([issued.into(), registered.into(), names(devices), date.to_string()]);
    let wrong = table::wrong(rows).filter(|wrong| *wrong > 0);
    parts.extend(wrong.map(|wrong| format!("RESULTS WRONG: {wrong} elements")));
    parts.join(" · ")
}

/// What the devices are, each name once.
fn names(devices: &[DeviceInfo]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for DeviceInfo { name, .. } in devices {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    match &names[..] {
        [first, _, others @ ..] if !others.is_empty() => {
            format!("{first} and {} others", others.len() + 1)
        }
        names => names.join(", "),
    }
}

const OUT_OF_PLACE: &str = "out-of-place";
const IN_PLACE: &str = "in-place";
const ISSUE: &str = "issue only, out-of-place";

#[cfg(test)]
mod tests {
    use clap::{Args as _, Command, FromArgMatches};
    use collectives::{DType, Version};

    use super::*;
    use crate::perf::operation::Operation;

    fn row(wrong: u64) -> Row {
        let placement = Placement {
            time_us: 10.0,
            algbw_gbps: 2.0,
            busbw_gbps: 3.0,
            issue_us: None,
            wrong: Some(wrong),
        };
        Row {
            op: Operation::AllReduce,
            bytes: 1024,
            count: 256,
            dtype: DType::F32,
            redop: Some("sum"),
            root: None,
            out_of_place: placement,
            in_place: None,
        }
    }

    fn drawn(devices: &[&str], rows: &[Row]) -> Figure {
        let command = Args::augment_args(Command::new("perf"));
        let matches = command.try_get_matches_from(["perf", "all_reduce"]).expect("arguments");
        let devices = (0..).zip(devices).map(|(at, name)| DeviceInfo::new("NCCL", at, *name, 0));
        let conditions = Conditions {
            args: &Args::from_arg_matches(&matches).expect("arguments"),
            library: &LibraryInfo {
                backend: "NCCL",
                path: None,
                version: Version::new(2, 28, 9),
                found_by: "a test".into(),
            },
            devices: &devices.collect::<Vec<_>>(),
            date: Date::constant(2026, 8, 25),
        };
        figure(&conditions, rows)
    }

    #[test]
    fn a_figure_names_the_library_the_devices_and_the_day() {
        let Figure { title, subtitle, panels } = drawn(&["NVIDIA H200"; 8], &[row(0)]);
        assert_eq!(title, "all_reduce, NCCL 2.28.9");
        assert_eq!(
            subtitle,
            "8 ranks (threads) · f32 · sum · eager · buffers not registered · NVIDIA H200 · \
             2026-08-25"
        );
        let shown = panels.iter().map(|panel| {
            let [Series { name, points }] = &panel.series[..] else { panic!("{panel:?}") };
            (name.as_str(), points.iter().map(|point| (point.x, point.y)).collect::<Vec<_>>())
        });
        let shown: Vec<_> = shown.collect();
        assert_eq!(
            shown,
            [(OUT_OF_PLACE, vec![(1024.0, 10.0)]), (OUT_OF_PLACE, vec![(1024.0, 3.0)])]
        );
    }

    #[test]
    fn different_devices_are_all_named_where_there_is_room() {
        let subtitle = |devices: &[&str]| drawn(devices, &[row(0)]).subtitle;
        assert!(subtitle(&["A", "B"]).contains("· A, B ·"));
        assert!(subtitle(&["A", "B", "A"]).contains("· A, B ·"));
        assert!(subtitle(&["A", "B", "C"]).contains("· A and 2 others ·"));
    }

    #[test]
    fn wrong_results_are_said_in_the_figure() {
        let wrong = drawn(&["A"], &[row(0), row(7)]).subtitle;
        assert!(wrong.ends_with(" · RESULTS WRONG: 7 elements"), "{wrong}");
    }
}
