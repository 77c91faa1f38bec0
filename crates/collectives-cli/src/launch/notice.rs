//! What tells the mock's ranks how another has ended, where the system has such means.

use std::{io, process::Command};

use collectives_crew::End;

/// One rank's notice.
pub(super) struct Notice {
    #[cfg(target_os = "linux")]
    notice: collectives::mock::ExitNotice,
}

#[cfg(target_os = "linux")]
impl Notice {
    pub(super) fn attach(program: &mut Command) -> io::Result<Self> {
        Ok(Self { notice: collectives::mock::ExitNotice::attach(program)? })
    }

    pub(super) fn publish(self, end: &End) {
        if let Some(status) = end.status {
            self.notice.publish(status);
        }
    }
}

#[cfg(not(target_os = "linux"))]
impl Notice {
    pub(super) fn attach(_: &mut Command) -> io::Result<Self> {
        Ok(Self {})
    }

    pub(super) fn publish(self, _: &End) {}
}
