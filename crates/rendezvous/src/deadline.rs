//! When to give up.

use std::{
    thread,
    time::{Duration, Instant},
};

/// The moment at which a call gives up, and how long that was when it was set.
///
/// One deadline can stand over several calls. A call that runs out of time may take up to a second
/// more, to find out who is missing.
///
/// ```
/// use std::time::Duration;
///
/// use collectives_rendezvous::Deadline;
///
/// let deadline = Deadline::after(Duration::from_secs(30));
/// assert!(deadline.remaining().is_some());
/// assert!(Deadline::after(Duration::ZERO).remaining().is_none());
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    at: Instant,
    given: Duration,
}

impl Deadline {
    /// From now on, `time` is left. What is longer than ten years is taken as ten years.
    pub fn after(time: Duration) -> Self {
        let given = time.min(LONGEST);
        Self { at: Instant::now() + given, given }
    }

    /// The time that is left; `None` where there is none.
    pub fn remaining(&self) -> Option<Duration> {
        self.at.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }

    /// How long it was when it was set.
    pub fn given(&self) -> Duration {
        self.given
    }

    /// For what must still be done when all have come at the last moment.
    pub(crate) fn or_grace(self) -> Self {
        let grace = Self::grace();
        if self.at > grace.at { self } else { grace }
    }

    /// For what asks who is missing, after a deadline has passed.
    pub(crate) fn grace() -> Self {
        Self::after(Duration::from_secs(1))
    }
}

impl From<Duration> for Deadline {
    fn from(time: Duration) -> Self {
        Self::after(time)
    }
}

/// Pauses between looks at something that others change: short at first, then longer.
pub(crate) struct Pauses {
    next: Duration,
    longest: Duration,
}

impl Pauses {
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        Self { next: first, longest }
    }

    /// Sleeps, at most until the deadline; `false` where that has passed.
    pub(crate) fn sleep(&mut self, deadline: Deadline) -> bool {
        let Some(left) = deadline.remaining() else { return false };
        thread::sleep(self.next.min(left));
        self.next = (self.next * 2).min(self.longest);
        true
    }
}

/// An `Instant` cannot be arbitrarily far away.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
