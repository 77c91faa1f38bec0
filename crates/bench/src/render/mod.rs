//! `collectives-bench render`: `docs/performance.md` and its figures, whole, from the reports in
//! `docs/performance`.
//!
//! The page is a template with places for what is measured. Whatever states a figure takes it from
//! a report, so the page cannot say what was not measured. `--check` writes nothing, and fails where
//! a file is not what would be written.

mod figures;
mod tables;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    gpu, library,
    operation::Series,
    overhead::{self, Overhead},
    peers,
    report::Report,
};

/// Write docs/performance.md and its figures from docs/performance/*.json
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Write nothing; fail where a file is not what would be written
    #[arg(long)]
    check: bool,

    /// Folder with performance.md and the folder performance
    #[arg(long, value_name = "FOLDER", default_value = "docs")]
    docs: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let Args { check, docs } = args;
    let folder = docs.join("performance");
    let sources = Sources {
        overhead: Overhead::read(&folder.join(overhead::FILE))?,
        nccl: Report::read(&folder.join(gpu::FILE))?,
        mock: Report::read(&folder.join(peers::FILE))?,
        library: Report::read(&folder.join(library::FILE))?,
    };
    let files = sources.files()?;
    let strangers = figures_beside(&folder, &files)?;
    if *check {
        return compare(docs, &files, &strangers);
    }
    for (name, text) in &files {
        let path = docs.join(name);
        fs::write(&path, text).with_context(|| path.display().to_string())?;
    }
    for path in strangers {
        fs::remove_file(&path).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// What the page is made of.
struct Sources {
    overhead: Overhead,
    nccl: Report,
    mock: Report,
    library: Report,
}

impl Sources {
    /// All files, by their path below `docs`.
    fn files(&self) -> Result<BTreeMap<String, String>> {
        let Self { overhead, nccl, mock, library } = self;
        let mut figures = figures::of(nccl, Style::Nccl);
        figures.extend(figures::of(mock, Style::Mock));
        figures.extend(figures::readme(nccl, mock));

        let (layers, limit) = (&overhead.measured, figures.contains_key(figures::LIMIT));
        let values = BTreeMap::from([
            ("overhead-rounds", layers.rounds.to_string()),
            ("overhead-calls", tables::thousands(layers.calls)),
            ("overhead-about", tables::when_and_where(&overhead.date, &overhead.machine)),
            ("overhead-table", tables::overhead(layers)),
            ("nccl-about", tables::about(nccl)),
            ("nccl-summary", tables::summary(nccl, Style::Nccl)),
            ("nccl-issue", tables::issue(nccl)),
            ("nccl-operations", tables::operations(nccl, Style::Nccl, &figures)),
            ("mock-about", tables::about(mock)),
            ("mock-summary", tables::summary(mock, Style::Mock)),
            ("mock-limit", if limit { figures::limit_link() } else { String::new() }),
            ("mock-operations", tables::operations(mock, Style::Mock, &figures)),
            ("library-about", tables::about(library)),
            ("library-tables", tables::library(library)),
        ]);
        let mut files: BTreeMap<_, _> = figures
            .into_iter()
            .map(|(name, figure)| (format!("performance/{name}"), figure.to_svg()))
            .collect();
        files.insert("performance.md".into(), fill(PAGE, &values)?);
        Ok(files)
    }
}

/// Which of the two halves of the page is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Style {
    Mock,
    Nccl,
}

impl Style {
    /// Of the files of figures.
    const fn prefix(self) -> &'static str {
        match self {
            Self::Mock => "mock",
            Self::Nccl => "nccl",
        }
    }

    /// Digits of a ratio behind the point: more than are not noise.
    const fn decimals(self) -> usize {
        match self {
            Self::Mock => 2,
            Self::Nccl => 3,
        }
    }

    /// The series of the figures, each a figure or panel.
    const fn series(self) -> &'static [Series] {
        match self {
            Self::Mock => &[Series::Loop, Series::SyncEach],
            Self::Nccl => {
                &[Series::Eager, Series::Graph, Series::EagerRegistered, Series::GraphRegistered]
            }
        }
    }

    /// The first size that counts as large: bandwidth matters there, not latency.
    const fn large(self) -> u64 {
        match self {
            Self::Mock => 128 << 10,
            Self::Nccl => 16 << 20,
        }
    }

    /// Sizes that stand in tables, where they were measured.
    const fn sizes(self) -> &'static [u64] {
        const MOCK: &[u64] = &[8, 256, 4 << 10, 64 << 10, 1 << 20, 16 << 20, 64 << 20];
        const NCCL: &[u64] =
            &[8, 256, 4 << 10, 64 << 10, 1 << 20, 16 << 20, 128 << 20, 512 << 20, 2 << 30];
        match self {
            Self::Mock => MOCK,
            Self::Nccl => NCCL,
        }
    }
}

/// The numbers of ranks of a report's configurations, from few to many.
fn ranks(report: &Report) -> Vec<u32> {
    let mut ranks: Vec<_> = report.configurations.iter().map(|known| known.ranks).collect();
    ranks.sort_unstable();
    ranks.dedup();
    ranks
}

/// The operations of a report, in their order.
fn operations(report: &Report) -> Vec<crate::operation::Operation> {
    let mut operations: Vec<_> = report.configurations.iter().map(|known| known.op).collect();
    operations.sort_unstable();
    operations.dedup();
    operations
}

/// The template with each `{{name}}` replaced by its value.
///
/// # Errors
/// A name without value, and a value without place.
fn fill(template: &str, values: &BTreeMap<&str, String>) -> Result<String> {
    let mut page = String::new();
    let mut used = Vec::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        let (name, after) = after.split_once("}}").context("a {{ without its }}")?;
        let value =
            values.get(name).with_context(|| format!("nothing is called {{{{{name}}}}}"))?;
        used.push(name);
        page.push_str(before);
        page.push_str(value.trim_end());
        rest = after;
    }
    page.push_str(rest);
    for name in values.keys() {
        ensure!(used.contains(name), "the page has no place for {{{{{name}}}}}");
    }
    // What has no value leaves no hole.
    while page.contains("\n\n\n") {
        page = page.replace("\n\n\n", "\n\n");
    }
    Ok(page)
}

/// Figures in the folder that no report has.
fn figures_beside(folder: &Path, files: &BTreeMap<String, String>) -> Result<Vec<PathBuf>> {
    let mut strangers = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if name.ends_with(".svg") && !files.contains_key(&format!("performance/{name}")) {
            strangers.push(path);
        }
    }
    strangers.sort_unstable();
    Ok(strangers)
}

/// Fails where a file is not what would be written.
fn compare(docs: &Path, files: &BTreeMap<String, String>, strangers: &[PathBuf]) -> Result<()> {
    let differs = |(name, text): (&String, &String)| {
        let path = docs.join(name);
        match fs::read_to_string(&path) {
            Ok(known) if known == *text => None,
            Ok(known) => {
                let same = known.lines().zip(text.lines()).take_while(|(a, b)| a == b).count();
                Some(format!("{}: differs from line {} on", path.display(), same + 1))
            }
            Err(error) => Some(format!("{}: {error}", path.display())),
        }
    };
    let mut complaints: Vec<_> = files.iter().filter_map(differs).collect();
    let belongs = |path: &PathBuf| format!("{}: in no report", path.display());
    complaints.extend(strangers.iter().map(belongs));
    if !complaints.is_empty() {
        bail!("run `just perf-docs`:\n{}", complaints.join("\n"));
    }
    Ok(())
}

const PAGE: &str = include_str!("page.md");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        operation::Operation,
        overhead::{Layer, Measured},
        report::samples,
    };

    fn sources() -> Sources {
        let layers =
            vec![Layer { name: "raw".into(), ns: 2.5 }, Layer { name: "safe".into(), ns: 22.5 }];
        let measured = Measured { rounds: 301, calls: 10_000, layers };
        let nccl = [Series::Eager, Series::Graph]
            .map(|series| samples::configuration(Operation::AllReduce, 2, series));
        let mock = [Series::Loop, Series::SyncEach]
            .map(|series| samples::configuration(Operation::AllReduce, 2, series));
        Sources {
            overhead: Overhead {
                date: "2026-11-23".into(),
                machine: vec!["a machine".into()],
                measured,
            },
            nccl: samples::report(nccl.into()),
            mock: samples::report(mock.into()),
            library: samples::report(vec![]),
        }
    }

    #[test]
    fn the_page_has_a_place_for_everything() {
        let files = sources().files().expect("the template fits");
        let page = &files["performance.md"];
        assert!(!page.contains("{{") && !page.contains("}}"), "{page}");
        assert!(!page.contains("\n\n\n"), "{page}");
        assert!(page.contains("301 rounds of 10,000 calls"), "{page}");
        assert!(page.contains("| safe | 22.5 | 20.0 |"), "{page}");
    }

    #[test]
    fn every_figure_on_the_page_is_written_and_every_figure_is_on_it() {
        let files = sources().files().expect("the template fits");
        let page = &files["performance.md"];
        let shown: Vec<_> = page
            .split("](performance/")
            .skip(1)
            .filter_map(|rest| rest.split_once(')').map(|(name, _)| format!("performance/{name}")))
            .collect();
        for name in &shown {
            assert!(files.contains_key(name), "{name}");
        }
        for name in files.keys().filter(|name| name.ends_with(".svg")) {
            assert!(shown.contains(name), "{name}");
        }
        assert!(shown.len() >= 5, "{shown:?}");
    }

    #[test]
    fn names_and_values_must_fit() {
        let values = BTreeMap::from([("a", "1\n".to_owned())]);
        assert_eq!(fill("x {{a}} y", &values).expect("fits"), "x 1 y");
        let error = |template| fill(template, &values).expect_err("refused").to_string();
        assert_eq!(error("{{a}} {{b}}"), "nothing is called {{b}}");
        assert_eq!(error("nothing"), "the page has no place for {{a}}");
        assert_eq!(error("{{a}} {{"), "a {{ without its }}");
    }

    #[test]
    fn checking_finds_every_difference() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let docs = folder.path();
        fs::create_dir(docs.join("performance")).expect("room");
        let files = sources().files().expect("the template fits");
        for (name, text) in &files {
            fs::write(docs.join(name), text).expect("room");
        }
        let check = || {
            let strangers = figures_beside(&docs.join("performance"), &files)?;
            compare(docs, &files, &strangers)
        };
        check().expect("nothing differs");
        let page = docs.join("performance.md");
        let changed = files["performance.md"].replace("# Performance", "# Speed");
        fs::write(&page, changed).expect("room");
        let error = check().expect_err("differs").to_string();
        assert!(error.ends_with("performance.md: differs from line 2 on"), "{error}");
        fs::write(&page, &files["performance.md"]).expect("room");
        fs::write(docs.join("performance/old.svg"), "").expect("room");
        let error = check().expect_err("differs").to_string();
        assert!(error.ends_with("old.svg: in no report"), "{error}");
        fs::remove_file(docs.join("performance/readme-mock.svg")).expect("it was written");
        let error = check().expect_err("differs").to_string();
        assert!(error.contains("readme-mock.svg: No such file"), "{error}");
    }
}
