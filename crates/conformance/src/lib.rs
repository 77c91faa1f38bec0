//! The conformance suite that every backend runs.
//!
//! A backend implements [`Harness`] and gets every case: operations against a naive oracle, groups,
//! splits, misuse, life cycle, graphs, streams, memory. One trial per world size and case, named
//! `[mock/4 ranks] all_reduce::sum_matches_oracle`, so that filters work. In a test target with
//! `harness = false`:
//!
//! ```no_run
//! # use collectives_core::Backend;
//! use collectives_conformance::{Harness, trials};
//!
//! struct Mine<B>(B);
//!
//! impl<B: Backend> Harness for Mine<B> {
//!     type Backend = B;
//!
//!     fn name(&self) -> String {
//!         "mine".into()
//!     }
//!
//!     fn backend(&self) -> B {
//!         self.0.clone()
//!     }
//! }
//!
//! # fn main_with<B: Backend>(backend: B) {
//! let args = libtest_mimic::Arguments::from_args();
//! libtest_mimic::run(&args, trials(Mine(backend))).exit();
//! # }
//! ```
//!
//! # Rules of the suite
//! * A case is a function that runs once per rank and shares nothing with other ranks but
//!   `ctx.exchange(bytes)`; its inputs are a function of (seed, rank). A failing trial prints the
//!   seed; `COLLECTIVES_TEST_SEED` sets it.
//! * Backends cannot opt out. If a backend lacks something, a case becomes an ignored trial with the
//!   reason in its name (`[needs reduce_avg]`). If only an attempt shows that the system lacks something,
//!   the trial ends as ignored, with the reason, if [all ranks](Harness::may_lack) agree. What a backend
//!   does wrong is listed as a [`KnownFault`], which must keep failing.
//! * Results are compared bit for bit, on inputs that have one right answer in any order of
//!   evaluation. Averages of floats are the one exception, with a tolerance that is derived.
//! * Collectives fail by hanging. A rank that waits in vain fails after 20 seconds. A world that is
//!   late as a whole reports each rank's last call and is ended; if ranks are threads, the process ends
//!   with it.
//!
//! # Ranks as processes
//! A harness whose [`processes`](Harness::processes) is true has each rank in a process of its own,
//! which joins once and runs the cases that it is given. Cases and reports are the same. A process
//! that dies is a failure of its rank, with process id and status: `rank 1: its process 4711 ended:
//! signal: 9 (SIGKILL)`. When the test executable ends, its ranks do, too.

mod cases;
mod check;
mod ctx;
mod exchange;
mod inputs;
mod lane;
mod last_call;
mod number;
mod oracle;
mod plan;
mod post;
mod processes;
mod seat;
mod suite;
mod threads;
mod workspace;
mod world;

use std::{ops::RangeInclusive, time::Duration};

use collectives_core::{Backend, Version};

pub use suite::trials;

/// A backend, as the suite sees it.
pub trait Harness: Send + Sync + 'static {
    /// What is tested.
    type Backend: Backend;

    /// The name in front of every trial, with a version where there are several.
    fn name(&self) -> String;

    /// A backend for one world, or for one rank where ranks are processes; the mock makes a fresh one,
    /// a library gives its only one.
    fn backend(&self) -> Self::Backend;

    /// The world sizes.
    fn worlds(&self) -> Vec<usize> {
        vec![1, 2, 3, 4, 8]
    }

    /// The device of each rank in a world of `size`.
    fn devices(&self, size: usize) -> Vec<usize> {
        (0..size).collect()
    }

    /// Whether each rank is a process of its own. Such a process makes its own harness and backend: it
    /// runs the `main` of this executable without arguments, until that comes to [`trials`] with the
    /// harness of this one's name, which no other may have.
    fn processes(&self) -> bool {
        false
    }

    /// What the process of a rank finds in its environment beside this one's.
    fn environment(&self, _rank: usize) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// Whether only one world may run at a time: on real devices, kernels of two worlds that wait
    /// for each other's room would hang.
    fn serial(&self) -> bool {
        false
    }

    /// Whether buffers and streams of another device are refused. Vendors' libraries take them.
    fn checks_ownership(&self) -> bool {
        false
    }

    /// Whether the system may lack what the library has functions for, as windows or signals, so that a
    /// case learns by trying that there is nothing to try. It then ends as ignored, with the reason,
    /// if every rank says so. Where this is false, such a case fails.
    ///
    /// True for real libraries on whatever system there is.
    fn may_lack(&self) -> bool {
        false
    }

    /// How long one case may take before it counts as hung; then the processes of its ranks are
    /// killed, or, where ranks are threads, the process ends.
    fn deadline(&self) -> Duration {
        Duration::from_secs(120)
    }

    /// What this backend is known to do wrong.
    fn known_faults(&self) -> Vec<KnownFault> {
        Vec::new()
    }
}

/// A case that a backend is known to fail. It still runs, and passing it fails the trial, so that
/// the list stays true.
#[derive(Clone, Debug)]
pub struct KnownFault {
    /// The case, as in the trial's name: `all_reduce::nan_loses_against_a_number`.
    pub case: &'static str,
    /// The sizes of the worlds that show it.
    pub ranks: RangeInclusive<usize>,
    /// The first version of the library that has it.
    pub since: Option<Version>,
    /// The first version of the library that has it no more.
    pub fixed: Option<Version>,
    /// A part of what the failure says.
    pub message: &'static str,
    /// Where it is reported.
    pub link: &'static str,
}
