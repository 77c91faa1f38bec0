//! The command line of `perf`.

use std::{path::PathBuf, str::FromStr};

use clap::ValueEnum;
use collectives::{BackendName, DType, ReduceOp};
use serde::Serialize;

use super::operation::Operation;

/// Measure a collective by message size, and print the table of nccl-tests
///
/// Each size is measured out of place and, where the operation allows it, in place. "time" is that of
/// one operation in microseconds, "algbw" the size over the time, "busbw" what that needs of each
/// rank's link, both in 10^9 bytes per second, "#wrong" the number of wrong elements.
///
/// Exits with 1 if a result is wrong or a rank fails, with 2 if the arguments do not fit.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// What to measure
    #[arg(value_name = "OPERATION")]
    pub(super) operation: Operation,

    /// The backend: which library to use
    #[arg(long, value_name = "NAME", default_value = "auto")]
    pub(super) backend: BackendArg,

    /// Number of ranks [default: every GPU, or 2 on the mock]
    #[arg(short = 'n', long, value_name = "N", value_parser = at_least_one())]
    pub(super) ranks: Option<u32>,

    /// How the ranks run
    #[arg(long, default_value = "threads")]
    pub(super) mode: Mode,

    /// Smallest size, in bytes of a rank's largest buffer: 8, 64K, 1M
    #[arg(short = 'b', long, value_name = "SIZE", default_value = "8")]
    pub(super) min_bytes: Size,

    /// Largest size [default: 1G; 64M on the mock]
    #[arg(short = 'e', long, value_name = "SIZE")]
    pub(super) max_bytes: Option<Size>,

    /// Ratio of each size to the one before
    #[arg(short = 'f', long, value_name = "N", default_value = "2",
          value_parser = clap::value_parser!(u32).range(2..))]
    pub(super) factor: u32,

    /// Element type: i8 u8 i32 u32 i64 u64 f16 bf16 f32 f64 f8e4m3 f8e5m2
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    pub(super) dtype: DType,

    /// Reduction: sum prod max min avg [default: sum]
    #[arg(long, value_name = "OP")]
    pub(super) op: Option<ReduceOp>,

    /// The rank that broadcasts, scatters, gathers or reduces [default: 0]
    #[arg(long, value_name = "RANK")]
    pub(super) root: Option<u32>,

    /// Capture all iterations into one graph, and time its launch
    #[arg(long)]
    pub(super) graph: bool,

    /// Memory of the buffers
    #[arg(long, value_name = "HOW", default_value = "none")]
    pub(super) registered: Registered,

    /// Iterations of one measurement [default: by size]
    #[arg(long, value_name = "N", value_parser = at_least_one())]
    pub(super) iters: Option<u32>,

    /// Iterations of each size before the first measurement [default: a tenth of --iters, at least 5]
    #[arg(long, value_name = "N")]
    pub(super) warmup: Option<u32>,

    /// Wait for each operation before issuing the next
    #[arg(long, conflicts_with = "graph")]
    pub(super) sync_each: bool,

    /// Do not check the results
    #[arg(long)]
    pub(super) no_check: bool,

    /// Also write the results to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,

    /// Also draw time and bandwidth by size into this file, as SVG
    #[arg(long, value_name = "FILE.svg")]
    pub(super) plot: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  All GPUs, or 2 ranks on the mock, from 8 bytes up:
    collectives perf all_reduce
  Four ranks, 1 MiB to 64 MiB:
    collectives perf all_gather -n 4 -b 1M -e 64M
  Captured into a CUDA graph, as inference engines do; with symmetric memory:
    collectives perf all_reduce --dtype bf16 --graph
    collectives perf all_reduce --graph --registered symmetric
  One process per rank, or one thread for all, as nccl-tests' -g:
    collectives perf all_reduce --mode processes
    collectives perf all_reduce --mode one-thread
  Started by a launcher, as nccl-tests under mpirun:
    mpirun -n 8 collectives perf all_reduce --mode launched
  With a report and a figure:
    collectives perf all_reduce --json all_reduce.json --plot all_reduce.svg";

fn at_least_one() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..)
}

impl Args {
    /// What is wrong with the arguments whatever the backend, for people.
    pub(super) fn contradiction(&self) -> Option<String> {
        let Self { operation, min_bytes, max_bytes, op, root, .. } = self;
        if let (Mode::Launched, Some(ranks)) = (self.mode, self.ranks) {
            return Some(format!(
                "-n {ranks}: with --mode launched the launcher decides how many ranks there are; leave -n out"
            ));
        }
        if let Some(op) = op
            && !operation.reduces()
        {
            return Some(format!("--op {op}: {operation} does not reduce; leave --op out"));
        }
        if let Some(root) = root
            && !operation.has_root()
        {
            return Some(format!("--root {root}: {operation} has no root; leave --root out"));
        }
        if let Some(max) = max_bytes
            && min_bytes > max
        {
            let (min, max) = (min_bytes.0, max.0);
            return Some(format!("-b is {min} bytes, more than the {max} bytes of -e"));
        }
        if (self.registered, self.mode) == (Registered::Symmetric, Mode::OneThread) {
            let why = "one thread cannot allocate for several ranks, which wait for each other";
            return Some(format!("--registered symmetric: {why}; use --mode threads or processes"));
        }
        if let Some(plot) = &self.plot
            && self.json.as_ref() == Some(plot)
        {
            return Some(format!("--json and --plot both name {}; give two files", plot.display()));
        }
        None
    }
}

/// What `--backend` takes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum BackendArg {
    /// $COLLECTIVES_BACKEND if it is set, else what fits the hardware
    Auto,
    /// NCCL on NVIDIA GPUs
    Nccl,
    /// RCCL on AMD GPUs
    Rccl,
    /// The CPU mock
    Mock,
}

impl BackendArg {
    pub(crate) const fn name(self) -> Option<BackendName> {
        match self {
            Self::Auto => None,
            Self::Nccl => Some(BackendName::Nccl),
            Self::Rccl => Some(BackendName::Rccl),
            Self::Mock => Some(BackendName::Mock),
        }
    }
}

/// How the ranks run.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Mode {
    /// One thread per rank
    Threads,
    /// One process per rank
    Processes,
    /// One thread drives all ranks
    OneThread,
    /// A launcher has started this command once per rank
    Launched,
}

/// Memory of the buffers.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(super) enum Registered {
    /// Memory of the library, not registered
    None,
    /// Memory of the library, registered with the communicator
    Buffer,
    /// Symmetric memory, registered by all ranks together
    Symmetric,
}

/// A number of bytes, with binary units as in nccl-tests: 64K is 65536.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Size(pub(super) usize);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let shift = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            _ => return Err("want a number of bytes, like 8, 64K, 1M or 2G".into()),
        };
        let number: usize =
            number.parse().map_err(|_| "want a number of bytes, like 8, 64K, 1M or 2G")?;
        let bytes = number.checked_mul(1 << shift).filter(|&bytes| bytes <= isize::MAX as usize);
        match bytes {
            None => Err("more than this machine can address".into()),
            Some(0) => Err("want at least one byte".into()),
            Some(bytes) => Ok(Self(bytes)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_units() {
        let size = |text: &str| text.parse::<Size>().map(|size| size.0);
        assert_eq!(size("8"), Ok(8));
        assert_eq!(size("64K"), Ok(65_536));
        assert_eq!(size("64kib"), Ok(65_536));
        assert_eq!(size("1M"), Ok(1 << 20));
        assert_eq!(size("2G"), Ok(2 << 30));
        assert_eq!(size("512B"), Ok(512));
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "K", "-1", "1.5M", "8 K", "8T", "64KK", "0", "0K", "99999999999G"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
