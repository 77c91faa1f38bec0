//! What `--json` writes. Scripts depend on the names; fields are added, and never changed.

use std::path::PathBuf;

use collectives::{DType, Version};
use serde::Serialize;

use super::{
    args::{Mode, Registered},
    operation::Operation,
};

/// A whole run.
#[derive(Serialize)]
pub(super) struct Report {
    /// `mock`, `nccl`.
    pub(super) backend: String,
    /// The library's file; null for the mock, which has none.
    pub(super) library: Option<PathBuf>,
    #[serde(serialize_with = "as_text")]
    pub(super) version: Version,
    pub(super) ranks: usize,
    pub(super) mode: Mode,
    pub(super) graph: bool,
    pub(super) registered: Registered,
    pub(super) results: Vec<Row>,
}

/// One size.
#[derive(Clone, Serialize)]
pub(super) struct Row {
    pub(super) op: Operation,
    /// Of the largest buffer of a rank.
    pub(super) bytes: usize,
    /// Elements of one part.
    pub(super) count: usize,
    pub(super) dtype: DType,
    /// Null where the operation does not reduce.
    pub(super) redop: Option<&'static str>,
    /// Null where the operation has none.
    pub(super) root: Option<u32>,
    pub(super) out_of_place: Placement,
    /// Null where the operation has no such form.
    pub(super) in_place: Option<Placement>,
}

/// The figures of one placement.
#[derive(Clone, Copy, Serialize)]
pub(super) struct Placement {
    pub(super) time_us: f64,
    pub(super) algbw_gbps: f64,
    pub(super) busbw_gbps: f64,
    /// Until the last call of the loop (or the one that launches the graph) returned, divided by
    /// the iterations. Null where each operation was waited for: that cannot be told apart there.
    pub(super) issue_us: Option<f64>,
    /// Null where results were not checked.
    pub(super) wrong: Option<u64>,
}

impl Row {
    pub(super) fn placements(&self) -> impl Iterator<Item = &Placement> {
        std::iter::once(&self.out_of_place).chain(&self.in_place)
    }
}

fn as_text<S: serde::Serializer>(version: &Version, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(version)
}
