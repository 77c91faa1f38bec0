//! How processes end.

use std::{fmt, process::ExitStatus};

/// How the process of a rank has ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct End {
    /// The process id it had.
    pub pid: u32,
    /// Its status; `None` where the system does not know.
    pub status: Option<ExitStatus>,
    /// Why it was killed by its parent, where it was.
    pub killed: Option<String>,
}

impl End {
    /// Whether it ended by itself, and well.
    pub fn success(&self) -> bool {
        self.killed.is_none() && self.status.is_some_and(|status| status.success())
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ended", self.pid)?;
        match (&self.killed, self.status) {
            (Some(why), _) => write!(f, ": killed, since it {why}"),
            (None, Some(status)) => write!(f, ": {status}"),
            (None, None) => Ok(()),
        }
    }
}
