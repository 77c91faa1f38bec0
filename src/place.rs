//! Which device something belongs to, cheap to compare.

use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use collectives_core::Device;

use crate::AnyDevice;

/// The device that a stream, buffer or communicator belongs to.
#[derive(Clone, Copy, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Place {
    backend: BackendKind,
    ordinal: usize,
    /// Which of the process's mocks, each of which is a machine; 0 for real devices.
    machine: u64,
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum BackendKind {
    Mock,
    Cuda,
    Hip,
}

impl Place {
    pub(crate) fn of(device: &AnyDevice) -> Self {
        let (backend, machine) = match device {
            AnyDevice::Mock(device) => (BackendKind::Mock, device.machine()),
            AnyDevice::Cuda(_) => (BackendKind::Cuda, 0),
            AnyDevice::Hip(_) => (BackendKind::Hip, 0),
        };
        Self { backend, ordinal: device.info().ordinal, machine }
    }

    /// Its name, for people who have just read that of `other`.
    pub(crate) fn beside(self, other: Self) -> String {
        let same_name = (self.backend, self.ordinal) == (other.backend, other.ordinal);
        let of = if same_name && self != other { " of another mock" } else { "" };
        format!("{self}{of}")
    }

    /// Whether handles of one mean something to the other.
    pub(crate) fn shares_runtime_with(self, other: Self) -> bool {
        (self.backend, self.machine) == (other.backend, other.machine)
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let backend = match self.backend {
            BackendKind::Mock => "mock",
            BackendKind::Cuda => "CUDA",
            BackendKind::Hip => "HIP",
        };
        write!(f, "{backend} device {}", self.ordinal)
    }
}

/// Holds the locks of some devices.
///
/// A buffer that was captured into a graph is used by two owners, possibly on two threads: its
/// `Buffer` and the graph. Both take the device's lock from ordering themselves after the buffer's
/// last use until they have enqueued, so that the other sees their use.
pub(crate) struct Locked {
    _guards: Vec<MutexGuard<'static, ()>>,
}

impl Locked {
    pub(crate) fn new(places: impl IntoIterator<Item = Place>) -> Self {
        // Each lock once and in one order, so that two threads cannot block each other.
        let mut slots: Vec<_> =
            places.into_iter().map(|place| place.ordinal % LOCKS.len()).collect();
        slots.sort_unstable();
        slots.dedup();
        let lock = |slot: usize| LOCKS[slot].lock().unwrap_or_else(PoisonError::into_inner);
        Self { _guards: slots.into_iter().map(lock).collect() }
    }
}

static LOCKS: [Mutex<()>; 64] = [const { Mutex::new(()) }; 64];
