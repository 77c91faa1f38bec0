//! `collectives-bench overhead`: what each layer adds to a call, from `cargo bench --bench
//! overhead`.

use std::{fs, path::Path, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::machine;

/// Measure what each layer adds to a call
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Read what the bench wrote with --json, and do not run it
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,

    /// Folder that gets overhead.json
    #[arg(long, value_name = "FOLDER", default_value = "target/bench")]
    out: PathBuf,
}

/// The schema of `docs/performance/overhead.json`.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Overhead {
    pub(crate) date: String,
    pub(crate) machine: Vec<String>,
    #[serde(flatten)]
    pub(crate) measured: Measured,
}

/// What the bench writes.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Measured {
    pub(crate) rounds: u32,
    /// In each round.
    pub(crate) calls: u32,
    /// From the outside in.
    pub(crate) layers: Vec<Layer>,
}

/// A call through one layer, and those below.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Layer {
    pub(crate) name: String,
    /// Of one call, the median of the rounds.
    pub(crate) ns: f64,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let measured = match &args.from {
        Some(file) => read_measured(file)?,
        None => {
            let folder = tempfile::tempdir().context("a folder for the bench's figures")?;
            let file = folder.path().join("overhead.json");
            let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
            let mut bench = Command::new(cargo);
            bench.args(["bench", "--bench", "overhead", "--", "--json"]).arg(&file);
            let status =
                bench.status().context("cargo; --from takes what was measured elsewhere")?;
            ensure!(status.success(), "cargo bench ended with {status}");
            read_measured(&file)?
        }
    };
    let machine = [Some(machine::cpu()), machine::rustc()].into_iter().flatten().collect();
    let overhead = Overhead { date: machine::today(), machine, measured };
    let path = args.out.join(FILE);
    let text = serde_json::to_string_pretty(&overhead)? + "\n";
    fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    fs::write(&path, text).with_context(|| path.display().to_string())?;
    eprintln!("{}", path.display());
    Ok(())
}

/// The name of the file in its folder.
pub(crate) const FILE: &str = "overhead.json";

impl Overhead {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let overhead: Self =
            serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        overhead.measured.check().with_context(|| path.display().to_string())?;
        Ok(overhead)
    }
}

impl Measured {
    fn check(&self) -> Result<()> {
        ensure!(!self.layers.is_empty(), "no layers");
        for Layer { name, ns } in &self.layers {
            ensure!(ns.is_finite() && *ns > 0.0, "{name}: {ns} ns is no time");
        }
        Ok(())
    }
}

fn read_measured(file: &Path) -> Result<Measured> {
    let read = || -> Result<Measured> {
        let measured: Measured = serde_json::from_str(&fs::read_to_string(file)?)?;
        measured.check()?;
        Ok(measured)
    };
    read().with_context(|| file.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_the_bench_are_kept_with_their_date() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let bench = folder.path().join("bench.json");
        let text = r#"{"rounds": 301, "calls": 10000,
            "layers": [{"name": "raw function pointer", "ns": 2.6}]}"#;
        fs::write(&bench, text).expect("room");
        let out = folder.path().join("new");
        run(&Args { from: Some(bench.clone()), out: out.clone() }).expect("good figures");
        let overhead = Overhead::read(&out.join(FILE)).expect("written");
        assert_eq!(overhead.measured.calls, 10_000);
        assert_eq!(overhead.measured.layers[0].ns, 2.6);
        assert!(overhead.date.starts_with("20"), "{}", overhead.date);

        fs::write(&bench, text.replace("2.6", "0.0")).expect("room");
        let error = run(&Args { from: Some(bench), out }).expect_err("refused");
        assert!(
            format!("{error:#}").contains("raw function pointer: 0 ns is no time"),
            "{error:#}"
        );
    }
}
