//! nccl-tests' table, column for column, so that what reads theirs reads ours.

use std::fmt::{self, Write as _};

use collectives::{DeviceInfo, LibraryInfo};

use super::{json::Placement, json::Row};

/// What runs, for the lines above the table.
pub(super) struct Header<'a> {
    pub(super) library: &'a LibraryInfo,
    pub(super) devices: &'a [DeviceInfo],
    /// What is measured, and how: pairs of a name and its text.
    pub(super) settings: Vec<(&'static str, String)>,
}

impl fmt::Display for Header<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { library, devices, settings } = self;
        writeln!(f, "# collectives {}", env!("CARGO_PKG_VERSION"))?;
        writeln!(f, "#")?;
        let LibraryInfo { backend, path, version, found_by } = library;
        write!(f, "# {:<10} {backend} {version}, ", "backend")?;
        match path {
            Some(path) => writeln!(f, "{} ({found_by})", path.display())?,
            None => writeln!(f, "{found_by}")?,
        }
        for (name, text) in settings {
            writeln!(f, "# {name:<10} {text}")?;
        }
        for (rank, device) in devices.iter().enumerate() {
            let name = if rank == 0 { "devices" } else { "" };
            write!(f, "# {name:<10} rank {rank:>2} on device {:>2}", device.ordinal)?;
            if let Some(pci) = &device.pci_bus_id {
                write!(f, " [{pci}]")?;
            }
            writeln!(f, " {}", device.name)?;
        }
        writeln!(f, "#")?;
        let placements = format!("# {:48}{OUT:^33}{IN:^33}", "");
        writeln!(f, "{}", placements.trim_end())?;
        for (left, right) in [
            (["size", "count", "type", "redop", "root"], ["time", "algbw", "busbw", "#wrong"]),
            (["(B)", "(elements)", "", "", ""], ["(us)", "(GB/s)", "(GB/s)", ""]),
        ] {
            let [size, count, dtype, redop, root] = left;
            let [time, alg, bus, wrong] = right;
            let placement = format!("  {time:>7}  {alg:>6}  {bus:>6}  {wrong:>6}");
            let line = format!("# {size:>10}  {count:>12}  {dtype:>8}  {redop:>6}  {root:>6}");
            writeln!(f, "{}", format!("{line}{placement}{placement}").trim_end())?;
        }
        Ok(())
    }
}

const OUT: &str = "out-of-place";
const IN: &str = "in-place";

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bytes, count, dtype, redop, root, out_of_place, in_place, .. } = self;
        let root = root.map_or(-1, i64::from);
        write!(f, "{bytes:>12}  {count:>12}  {:>8}", dtype.name())?;
        write!(f, "  {:>6}  {root:>6}", redop.unwrap_or("none"))?;
        for placement in [Some(out_of_place), in_place.as_ref()] {
            let Some(Placement { time_us, algbw_gbps, busbw_gbps, wrong, .. }) = placement else {
                write!(f, "  {:>7}  {:>6}  {:>6}  {:>6}", "-", "-", "-", "N/A")?;
                continue;
            };
            write!(f, "  {:>7}", number(*time_us, 7))?;
            write!(f, "  {:>6}  {:>6}", number(*algbw_gbps, 6), number(*busbw_gbps, 6))?;
            match wrong {
                Some(wrong) => write!(f, "  {wrong:>6}")?,
                None => write!(f, "  {:>6}", "N/A")?,
            }
        }
        Ok(())
    }
}

/// The lines below the table.
pub(super) fn footer(rows: &[Row]) -> String {
    let mut text = String::new();
    let placements = || rows.iter().flat_map(Row::placements);
    let verdict = match wrong(rows) {
        None => "not checked".into(),
        Some(0) => "0 OK".into(),
        Some(wrong) => format!("{wrong} FAILED"),
    };
    let busbw: f64 = placements().map(|placement| placement.busbw_gbps).sum();
    let mean = busbw / placements().count().max(1) as f64;
    let mut line = |name: &str, value: &dyn fmt::Display| {
        writeln!(text, "# {name:<20} : {value}").expect("writing to a string does not fail");
    };
    line("Out of bounds values", &verdict);
    line("Avg bus bandwidth", &format_args!("{mean:.4} GB/s"));
    text
}

/// Wrong elements of all rows; `None` where they were not checked.
pub(super) fn wrong(rows: &[Row]) -> Option<u64> {
    rows.iter().flat_map(Row::placements).map(|placement| placement.wrong).sum()
}

/// A number with as many digits behind the point, at most two, as the width has room for.
fn number(value: f64, width: usize) -> String {
    let fits = [2, 1, 0].into_iter().map(|digits| format!("{value:.digits$}"));
    fits.into_iter()
        .find(|text| text.len() <= width)
        .unwrap_or_else(|| format!("{value:.*e}", usize::from(width >= 7)))
}

#[cfg(test)]
mod tests {
    use collectives::{DType, Version};

    use super::*;
    use crate::perf::operation::Operation;

    fn placement(wrong: Option<u64>) -> Placement {
        Placement { time_us: 12.345, algbw_gbps: 84.94, busbw_gbps: 84.94, issue_us: None, wrong }
    }

    fn row(wrong: Option<u64>) -> Row {
        Row {
            op: Operation::AllReduce,
            bytes: 1 << 20,
            count: 1 << 18,
            dtype: DType::F32,
            redop: Some("sum"),
            root: None,
            out_of_place: placement(wrong),
            in_place: Some(placement(wrong)),
        }
    }

    #[test]
    fn a_row_has_the_columns_of_nccl_tests() {
        assert_eq!(
            row(Some(0)).to_string(),
            "     1048576        262144       f32     sum      -1    12.35   84.94   84.94       0\
             \x20   12.35   84.94   84.94       0"
        );
        let row = Row { in_place: None, redop: None, root: Some(3), ..row(None) };
        assert_eq!(
            row.to_string(),
            "     1048576        262144       f32    none       3    12.35   84.94   84.94     N/A\
             \x20       -       -       -     N/A"
        );
        assert_eq!(row.to_string().split_whitespace().count(), 13);
    }

    #[test]
    fn headings_stand_above_their_columns() {
        let library = LibraryInfo {
            backend: "NCCL",
            path: Some("/lib/libnccl.so.2".into()),
            version: Version::new(2, 28, 9),
            found_by: "dynamic loader".into(),
        };
        let device = DeviceInfo::new("NCCL", 0, "NVIDIA H200", 1 << 30);
        let header =
            Header { library: &library, devices: &[device], settings: vec![("mode", "x".into())] };
        let text = header.to_string();
        assert!(text.contains("# backend    NCCL 2.28.9, /lib/libnccl.so.2 (dynamic loader)\n"));
        assert!(text.contains("# mode       x\n"), "{text}");
        assert!(text.contains("rank  0 on device  0 NVIDIA H200\n"), "{text}");
        assert!(text.lines().all(|line| line.starts_with('#')), "{text}");
        let heading = text.lines().find(|line| line.contains("size")).expect("there is one");
        let row = row(Some(0)).to_string();
        assert_eq!(heading.len(), row.len());
        for (name, value) in [("size", "1048576"), ("count", "262144"), ("redop", "sum")] {
            let end = |line: &str, word: &str| line.find(word).map(|at| at + word.len());
            assert_eq!(end(heading, name), end(&row, value), "{name}");
        }
    }

    #[test]
    fn numbers_fit_their_columns() {
        assert_eq!(number(0.456, 7), "0.46");
        assert_eq!(number(99_999.4, 7), "99999.4");
        assert_eq!(number(1_234_567.0, 7), "1234567");
        assert_eq!(number(12_345_678.0, 7), "1.2e7");
        assert_eq!(number(12_345_678.0, 6), "1e7");
    }

    #[test]
    fn the_footer_says_what_was_wrong() {
        assert!(footer(&[row(Some(0))]).contains("# Out of bounds values : 0 OK\n"));
        assert!(footer(&[row(Some(0)), row(Some(2))]).contains(": 4 FAILED\n"));
        assert!(footer(&[row(None)]).contains(": not checked\n"));
        assert!(footer(&[row(None)]).contains("# Avg bus bandwidth    : 84.9400 GB/s\n"));
    }
}
