//! The CPU mock: ranks as threads or processes, real data, no GPU; and tools for tests of multi-GPU code.
//!
//! [`run`] starts the ranks, gives each a [`Communicator`], and collects what they return. What goes
//! wrong comes back as one readable failure, within milliseconds: operations that differ between
//! ranks, ranks that wait for each other or for one that has ended, panics.
//!
//! ```
//! use collectives::{ReduceOp, mock};
//!
//! let sums = mock::run(4, |comm| {
//!     let stream = comm.new_stream()?;
//!     let mut buffer = stream.upload(&[comm.rank() as f32])?;
//!     comm.on(&stream).all_reduce_in_place(&mut buffer, ReduceOp::Sum)?;
//!     buffer.to_vec(&stream)
//! })
//! .unwrap();
//! assert_eq!(sums, vec![[6.0]; 4]);
//! ```
//!
//! [`run_processes`] does the same with each rank in a process of its own. [`World`] has the settings:
//! a deadline, and the machine.

use std::time::Duration;

use collectives_core::{Backend, Result};
use serde::{Serialize, de::DeserializeOwned};

use crate::{AnyComm, AnyDevice, Communicator};

pub use collectives_backend_mock::*;

/// Ranks to run, on a machine of their own: each on a thread, or in a process of its own.
///
/// ```
/// use std::time::Duration;
/// use collectives::mock::{MockConfig, World};
///
/// let world = World::new(2).with_deadline(Duration::from_secs(10));
/// let config = MockConfig::new().with_device_memory(1 << 20);
/// let ranks = world.with_config(config).run(|comm| Ok(comm.rank())).unwrap();
/// assert_eq!(ranks, [0, 1]);
/// ```
#[derive(Clone, Debug)]
pub struct World(collectives_backend_mock::World);

impl World {
    /// A world of `ranks` ranks, rank i on device i, with a deadline of one minute for all they do. The
    /// machine is as the environment says: see [`MockConfig::from_env`].
    pub const fn new(ranks: usize) -> Self {
        Self(collectives_backend_mock::World::new(ranks))
    }

    /// Sets how long the whole run may take.
    #[must_use]
    pub fn with_deadline(self, deadline: Duration) -> Self {
        Self(self.0.with_deadline(deadline))
    }

    /// Sets the machine, whatever the environment says. It gets as many devices as there are ranks, if
    /// it has fewer.
    #[must_use]
    pub fn with_config(self, config: MockConfig) -> Self {
        Self(self.0.with_config(config))
    }

    /// Joins the ranks as the communicator `world`, runs `body` on each, and collects what they
    /// return, in rank order.
    ///
    /// A rank that returns has left: others that wait for it get an error at once. If the deadline passes,
    /// the communicator is aborted; threads that do not end even then are left behind, with what they
    /// hold, since no thread can be ended from outside. That is why `body` may not borrow.
    ///
    /// # Errors
    /// The errors and panics of all ranks, the root cause first; or, where the deadline passes, what
    /// each rank that has not ended was doing.
    pub fn run<T: Send + 'static>(
        self,
        body: impl Fn(Communicator) -> Result<T> + Send + Sync + 'static,
    ) -> Result<Vec<T>, RunFailure> {
        self.0.run(move |mock, comm| body(safe(mock, comm)?))
    }

    /// Names the test for [`run_processes`](Self::run_processes), as the test harness prints it:
    /// `module::test`.
    #[must_use]
    pub fn with_test(self, name: impl Into<String>) -> Self {
        Self(self.0.with_test(name))
    }

    /// As [`run`](Self::run), with each rank in a process of its own: this test, started again.
    ///
    /// ```no_run
    /// # // A documentation test has no name by which it could be started again.
    /// use collectives::mock::World;
    ///
    /// let pids = World::new(2).run_processes(|_comm| Ok(std::process::id())).unwrap();
    /// assert_ne!(pids[0], pids[1]);
    /// ```
    ///
    /// Code before the call runs in every rank's process, too, and must come to the same call there; the
    /// ranks end with it. So put what counts, writes, or prints after it. `body` may borrow. What it
    /// returns travels as JSON, which has no NaN.
    ///
    /// * **The test has a name.** It is the calling thread's, as the standard harness has it. Where
    ///   that runs tests on its main thread (with `--test-threads=1`, or on one core), and in other
    ///   threads, [`with_test`](Self::with_test) says it. A harness of one's own needs the standard's
    ///   options `--exact NAME --nocapture --include-ignored`.
    /// * **Several calls in one test** may follow one another. In the ranks of a later call, the
    ///   earlier ones return what they returned in the parent.
    /// * **Output** of the ranks becomes that of the test, line by line, behind `rank 1| `.
    /// * **Deaths** are failures with process id and status. What is late is killed, and so is
    ///   everything when the parent ends.
    ///
    /// # Errors
    /// As [`run`](Self::run); also where the test has no name, or cannot be started again.
    pub fn run_processes<T: DeserializeOwned + Serialize>(
        self,
        body: impl FnOnce(Communicator) -> Result<T>,
    ) -> Result<Vec<T>, RunFailure> {
        self.0.run_processes(|mock, comm| body(safe(mock, comm)?))
    }
}

fn safe(mock: &Mock, comm: MockComm) -> Result<Communicator> {
    let device = mock.device(collectives_core::Collectives::info(&comm).device)?;
    Communicator::from_comm(AnyComm::Mock(comm), AnyDevice::Mock(device))
}

/// Runs `body` on `ranks` ranks, each on a thread, with [`World`]'s defaults.
///
/// # Errors
/// As [`World::run`].
pub fn run<T: Send + 'static>(
    ranks: usize,
    body: impl Fn(Communicator) -> Result<T> + Send + Sync + 'static,
) -> Result<Vec<T>, RunFailure> {
    World::new(ranks).run(body)
}

/// Runs `body` on `ranks` ranks, each in a process of its own, with [`World`]'s defaults. See
/// [`World::run_processes`] for what that means for a test.
///
/// # Errors
/// As [`World::run_processes`].
pub fn run_processes<T: DeserializeOwned + Serialize>(
    ranks: usize,
    body: impl FnOnce(Communicator) -> Result<T>,
) -> Result<Vec<T>, RunFailure> {
    World::new(ranks).run_processes(body)
}
