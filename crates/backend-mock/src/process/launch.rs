//! How processes ended: a launcher tells the peers of its children.
//!
//! The system tells only a parent how a process ended (and others only since Linux 6.15). So a
//! launcher gives each child a cell of shared memory, which the child hands to its peers, and in which
//! the launcher writes the status afterwards.

use std::{
    env, io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::process::{CommandExt, ExitStatusExt},
    },
    process::{Command, ExitStatus},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use rustix::{
    io::{FdFlags, fcntl_setfd},
    process::getpid,
};

use super::shared::{Plain, Shared};

/// Tells the peers of a rank how its process ended: `rank 2 (pid 4711) ended by signal 9` instead of
/// only `ended`. For programs that start ranks of the mock as processes.
///
/// ```no_run
/// use std::process::Command;
/// use collectives_backend_mock::ExitNotice;
///
/// let mut command = Command::new("./rank");
/// let notice = ExitNotice::attach(&mut command)?;
/// let status = command.spawn()?.wait()?;
/// notice.publish(status);
/// # Ok::<_, std::io::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "the peers wait for what is to be published"]
pub struct ExitNotice {
    cell: Arc<Shared>,
}

impl ExitNotice {
    /// Prepares a command, which is to be spawned once: the process inherits a descriptor, and its
    /// number in `COLLECTIVES_MOCK_EXIT_FD`. Processes that it starts in turn have no part in it.
    ///
    /// # Errors
    /// What the system says where it has no memory, or no descriptor, to give.
    pub fn attach(command: &mut Command) -> io::Result<Self> {
        let (cell, fd) = Shared::create("collectives-exit", size_of::<Cell>())?;
        let cell = Arc::new(cell);
        command.env(VARIABLE, fd.as_raw_fd().to_string());
        let childs = Arc::clone(&cell);
        let inherit = move || {
            if let Some(cell) = childs.at::<Cell>(0) {
                cell.pid.store(getpid().as_raw_pid().cast_unsigned(), Ordering::Relaxed);
                cell.magic.store(MAGIC, Ordering::Release);
            }
            Ok(fcntl_setfd(&fd, FdFlags::empty())?)
        };
        // SAFETY: between fork and exec it makes two system calls and stores to memory that is
        // mapped; it takes no lock and allocates nothing.
        unsafe { command.pre_exec(inherit) };
        Ok(Self { cell })
    }

    /// Tells how the process ended. To be called right after that is known: peers wait for it, but
    /// not for long.
    pub fn publish(self, status: ExitStatus) {
        if let Some(cell) = self.cell.at::<Cell>(0) {
            let status = u64::from(status.into_raw().cast_unsigned());
            cell.status.store(PUBLISHED | status, Ordering::Release);
        }
    }
}

/// A cell in which a launcher says how a process ended.
pub(crate) struct Exit {
    cell: Shared,
}

impl Exit {
    pub(crate) fn map(fd: &OwnedFd) -> io::Result<Self> {
        let cell = Shared::map(fd, size_of::<Cell>())?;
        let magic = cell.at::<Cell>(0).map(|cell| cell.magic.load(Ordering::Acquire));
        if magic == Some(MAGIC) {
            Ok(Self { cell })
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidData, "no cell of a launcher"))
        }
    }

    /// What the launcher has said.
    pub(crate) fn status(&self) -> Option<ExitStatus> {
        let status = self.cell.at::<Cell>(0)?.status.load(Ordering::Acquire);
        let code = (status & u64::from(u32::MAX)) as u32;
        (status & PUBLISHED != 0).then(|| ExitStatus::from_raw(code.cast_signed()))
    }

    /// The process that it is about.
    fn pid(&self) -> Option<u32> {
        Some(self.cell.at::<Cell>(0)?.pid.load(Ordering::Relaxed))
    }
}

/// The descriptor that this process's launcher has given it, if it has.
pub(crate) fn inherited() -> Option<&'static OwnedFd> {
    static INHERITED: OnceLock<Option<OwnedFd>> = OnceLock::new();
    let find = || {
        let number = env::var(VARIABLE).ok()?.parse().ok()?;
        // SAFETY: the call takes any number, and refuses what is no descriptor.
        let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 0) };
        if copy < 0 {
            return None;
        }
        // SAFETY: just made, and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(copy) };
        // The variable outlives the process that it was for: a child of it may have quite another
        // file under that number, or the cell of its parent.
        let own = getpid().as_raw_pid().cast_unsigned();
        (Exit::map(&fd).ok()?.pid()? == own).then_some(fd)
    };
    INHERITED.get_or_init(find).as_ref()
}

#[repr(C)]
struct Cell {
    magic: AtomicU64,
    /// As a wait has it, with [`PUBLISHED`].
    status: AtomicU64,
    pid: AtomicU32,
    rest: AtomicU32,
}

// SAFETY: made of atomic integers, to the last byte.
unsafe impl Plain for Cell {}

const PUBLISHED: u64 = 1 << 32;

/// "mockexit", and a version.
const MAGIC: u64 = u64::from_be_bytes(*b"mockexi\x01");

const VARIABLE: &str = "COLLECTIVES_MOCK_EXIT_FD";
