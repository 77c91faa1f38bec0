//! What tells the mock's ranks how others have ended, where the system has such means.

use std::{io, process::Command};

use collectives_crew::End;

/// The notices of all ranks.
pub(super) struct Notices {
    #[cfg(target_os = "linux")]
    job: collectives::mock::ExitNotices,
}

/// That of one rank.
pub(super) struct Notice {
    #[cfg(target_os = "linux")]
    notice: collectives::mock::ExitNotice,
}

#[cfg(target_os = "linux")]
impl Notices {
    pub(super) fn for_job(ranks: usize) -> io::Result<Self> {
        Ok(Self { job: collectives::mock::ExitNotices::for_job(ranks)? })
    }

    pub(super) fn attach(&self, rank: usize, program: &mut Command) -> io::Result<Notice> {
        Ok(Notice { notice: self.job.attach(rank, program)? })
    }
}

#[cfg(target_os = "linux")]
impl Notice {
    pub(super) fn publish(self, end: &End) {
        if let Some(status) = end.status {
            self.notice.publish(status);
        }
    }
}

#[cfg(not(target_os = "linux"))]
impl Notices {
    pub(super) fn for_job(_: usize) -> io::Result<Self> {
        Ok(Self {})
    }

    pub(super) fn attach(&self, _: usize, _: &mut Command) -> io::Result<Notice> {
        Ok(Notice {})
    }
}

#[cfg(not(target_os = "linux"))]
impl Notice {
    pub(super) fn publish(self, _: &End) {}
}
