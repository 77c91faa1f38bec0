//! The command line of `launch`.

use std::{ffi::OsString, path::PathBuf, str::FromStr, time::Duration};

use crate::perf::BackendArg;

/// Start a program as N ranks of this machine, and end them together
///
/// Each rank gets torchrun's variables (RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT and the
/// others) and, for the mock, what lets its ranks be processes. Its output appears line by line, behind
/// its number. The first rank that fails ends the job: the others have one second to report what they
/// see of it, then get SIGTERM, and SIGKILL when the grace period is over. With --keep-going it ends none
/// of them.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Number of ranks
    #[arg(short = 'n', long, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=MOST_RANKS))]
    pub(super) ranks: u32,

    /// The backend of the ranks; auto leaves COLLECTIVES_BACKEND as it is
    #[arg(long, value_name = "NAME", default_value = "auto")]
    pub(super) backend: BackendArg,

    /// Show the output of these ranks only: all, none, or a list like 0,4-7
    #[arg(long, value_name = "RANKS", default_value = "all")]
    pub(super) show: Shown,

    /// Show output without the rank's number before each line
    #[arg(long)]
    pub(super) no_prefix: bool,

    /// Also write each rank's output to DIR/rank-R.stdout and DIR/rank-R.stderr
    #[arg(long, value_name = "DIR")]
    pub(super) log_dir: Option<PathBuf>,

    /// Start all ranks again when one fails, at most N times
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) max_restarts: u32,

    /// Leave the other ranks alone when one fails: for programs that go on without it
    #[arg(long, conflicts_with = "max_restarts")]
    pub(super) keep_going: bool,

    /// How long ranks may take to end [default: 5 after a failure, 30 after a signal]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(super) grace: Option<Duration>,

    /// MASTER_PORT of the ranks [default: a free one]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) master_port: Option<u16>,

    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "PROGRAM")]
    pub(super) program: Vec<OsString>,
}

const EXAMPLES: &str = "\
Examples:
  One rank for each of 8 GPUs:
    collectives launch -n 8 -- ./train --steps 100
  The same on the CPU:
    collectives launch -n 8 --backend mock -- ./train
  Rank 0 on the screen, all ranks in files:
    collectives launch -n 4 --show 0 --log-dir logs -- ./train

The exit code is 0 if all ranks end with 0, else that of the rank that failed
first: 128 + N if signal N killed it. It is 126 if the program cannot be run,
127 if it does not exist.

With several ranks OMP_NUM_THREADS is 1 unless it is set, as with torchrun.
Standard input goes to rank 0 unless it is a terminal. Signals are passed on;
a second Ctrl-C kills.";

/// As many as the mock has devices at most.
const MOST_RANKS: i64 = 4096;

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    // What is longer has no end that a clock could show.
    let most = Duration::from_secs(1 << 32);
    seconds.filter(|&seconds| seconds <= most).ok_or_else(|| "want seconds, like 5 or 0.5".into())
}

/// Ranks whose output is shown, as closed ranges.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Shown(Vec<(u32, u32)>);

impl Shown {
    pub(super) fn has(&self, rank: u32) -> bool {
        self.0.iter().any(|&(first, last)| (first..=last).contains(&rank))
    }

    /// The largest number that was named.
    pub(super) fn largest(&self) -> Option<u32> {
        self.0.iter().map(|&(_, last)| last).filter(|&last| last != u32::MAX).max()
    }
}

impl FromStr for Shown {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let range = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            (range.0 <= range.1).then_some(range)
        };
        match text {
            "all" => Ok(Self(vec![(0, u32::MAX)])),
            "none" => Ok(Self(Vec::new())),
            list => {
                let ranges: Option<_> = list.split(',').map(range).collect();
                ranges.map(Self).ok_or("want all, none, or a list of ranks like 0,4-7")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_listed_by_number_and_range() {
        let shown: Shown = "0, 4-6".parse().expect("a list");
        let ranks: Vec<_> = (0..9).filter(|&rank| shown.has(rank)).collect();
        assert_eq!((ranks, shown.largest()), (vec![0, 4, 5, 6], Some(6)));
        let all: Shown = "all".parse().expect("a list");
        assert!(all.has(0) && all.has(4095) && all.largest().is_none());
        let none: Shown = "none".parse().expect("a list");
        assert!(!none.has(0) && none.largest().is_none());
        for text in ["", "0,", "a", "3-1", "-1", "0-", "1,,2"] {
            assert!(text.parse::<Shown>().is_err(), "{text}");
        }
    }

    #[test]
    fn seconds_may_have_fractions() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for text in ["", "-1", "5s", "nan", "inf", "1e300"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
