//! The CPU mock: ranks as threads, real data, no GPU. And what tests of multi-GPU code need.
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
//! [`World`] has the settings: a deadline, and the machine.

use std::time::Duration;

use collectives_core::{Backend, Result};

use crate::{AnyComm, AnyDevice, Communicator};

pub use collectives_backend_mock::*;

/// Ranks to run, each on a thread of its own, on a machine of their own.
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
    /// So many ranks, rank i on device i, with a minute for all they do. The machine is as the
    /// environment says: see [`MockConfig::from_env`].
    pub const fn new(ranks: usize) -> Self {
        Self(collectives_backend_mock::World::new(ranks))
    }

    /// Sets how long all of it may take.
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
    /// A rank that returns has left: others that wait for it are told at once. A world that is late
    /// has its communicator aborted; threads that don't end even then are left alone, with what they
    /// hold, since no thread can be ended from outside. That is why `body` may not borrow.
    ///
    /// # Errors
    /// The errors and panics of all ranks, the root cause first; or, where the deadline passes, what
    /// each rank that has not ended was doing.
    pub fn run<T: Send + 'static>(
        self,
        body: impl Fn(Communicator) -> Result<T> + Send + Sync + 'static,
    ) -> Result<Vec<T>, RunFailure> {
        self.0.run(move |mock, comm| {
            let device = mock.device(collectives_core::Collectives::info(&comm).device)?;
            body(Communicator::from_comm(AnyComm::Mock(comm), AnyDevice::Mock(device))?)
        })
    }
}

/// Runs `body` on so many ranks, with [`World`]'s defaults.
///
/// # Errors
/// As [`World::run`].
pub fn run<T: Send + 'static>(
    ranks: usize,
    body: impl Fn(Communicator) -> Result<T> + Send + Sync + 'static,
) -> Result<Vec<T>, RunFailure> {
    World::new(ranks).run(body)
}
