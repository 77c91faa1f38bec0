//! `collectives perf`: the side that all others are compared with, and the same with ranks as
//! processes.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use crate::{
    operation::{Operation, Series},
    parse::{self, Placed, Run},
    process::{self, Failure},
    report::{Case, OURS, PROCESSES, Role},
    rounds::Contender,
    sizes::Sizes,
};

/// How `collectives perf` is run.
pub(crate) struct Ours {
    pub(crate) binary: PathBuf,
    pub(crate) sizes: Sizes,
    /// Operations timed at each size; `None` where `perf` chooses.
    pub(crate) iters: Option<u32>,
    pub(crate) backend: Backend,
}

/// What it runs on.
pub(crate) enum Backend {
    /// The mock, with as many devices as there are ranks, which are threads.
    Mock,
    /// The same, and the ranks are processes.
    MockProcesses,
    /// NCCL, from this file.
    Nccl {
        library: PathBuf,
        /// Whether results are checked.
        check: bool,
    },
}

impl Contender for Ours {
    fn name(&self) -> &str {
        match self.backend {
            Backend::Mock | Backend::Nccl { .. } => OURS,
            Backend::MockProcesses => PROCESSES,
        }
    }

    fn role(&self) -> Role {
        Role::Ours
    }

    fn absent(&self, _: Case) -> Option<String> {
        None
    }

    fn run(&self, case: Case, _: usize, limit: Duration) -> Result<Run, Failure> {
        let cannot = |error: std::io::Error| Failure::Ended(error.to_string());
        let folder = tempfile::tempdir().map_err(cannot)?;
        let report = folder.path().join("perf.json");
        let Case { op, ranks, series } = case;
        let mut command = Command::new(&self.binary);
        command.args(["perf", op.name(), "--ranks", &ranks.to_string(), "--json"]).arg(&report);
        command.args(self.sizes.arguments());
        match &self.backend {
            Backend::Mock | Backend::MockProcesses => {
                if matches!(self.backend, Backend::MockProcesses) {
                    command.args(["--mode", "processes"]);
                }
                command.args(["--backend", "mock"]);
                command.env("COLLECTIVES_MOCK_DEVICES", ranks.to_string());
            }
            Backend::Nccl { library, check } => {
                command.args(["--backend", "nccl", "--warmup", WARMUP]);
                command.args((!check).then_some("--no-check"));
                command.env("COLLECTIVES_NCCL_PATH", library);
            }
        }
        if let Some(iters) = self.iters {
            command.args(["--iters", &iters.to_string()]);
        }
        command.args(options(series));
        process::run(&mut command, limit)?;
        parse::perf(&fs::read_to_string(&report).map_err(cannot)?, placed(case))
    }
}

/// Operations of each size before the first measurement on GPUs; all sides are told the same.
pub(crate) const WARMUP: &str = "5";

/// What a series means to `perf`.
fn options(series: Series) -> &'static [&'static str] {
    match series {
        Series::Loop | Series::Eager => &[],
        Series::SyncEach => &["--sync-each"],
        Series::Graph => &["--graph"],
        Series::EagerRegistered => &["--registered", "buffer"],
        Series::GraphRegistered => &["--graph", "--registered", "buffer"],
    }
}

/// Which form of the operation is compared.
///
/// CPU libraries broadcast in place: the root sends from its input and has no other result. Out of
/// place, it would copy besides.
fn placed(case: Case) -> Placed {
    match (case.op, case.series) {
        (Operation::Broadcast, Series::Loop | Series::SyncEach) => Placed::InPlace,
        _ => Placed::OutOfPlace,
    }
}
