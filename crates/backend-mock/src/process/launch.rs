//! How processes ended: a launcher tells the peers of its children.
//!
//! The system tells only a parent how a process ended (and others only since Linux 6.15). So a
//! launcher has its children inherit a [`Roster`], which they hand to their peers, and in which the
//! launcher writes how each has ended.

use std::{
    env, io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Command, ExitStatus},
    sync::{Arc, OnceLock},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    io::{Errno, FdFlags, fcntl_setfd},
    process::{WaitId, WaitIdOptions, getpid, waitid},
};

use super::{
    peer::{End, Token},
    roster::{Roster, Seat},
    verdicts::Desk,
};
use crate::fork;

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
///
/// Who starts all processes of a job gives them [`ExitNotices`].
#[derive(Debug)]
#[must_use = "the peers wait for what is to be published"]
pub struct ExitNotice {
    roster: Arc<Roster>,
    seat: usize,
}

/// [`ExitNotice`]s for all processes of a job: nobody else will take part in its communicators.
///
/// That is what tells a join to which somebody is late from one that nobody will ever come to. Where
/// all processes that live wait in it, or for those that do, and the others have ended, it fails
/// within milliseconds, and the error says how those have ended. Without, a join waits for its
/// deadline: somebody may come of whom nobody knows.
///
/// ```no_run
/// use std::process::Command;
/// use collectives_backend_mock::ExitNotices;
///
/// let notices = ExitNotices::for_job(4)?;
/// for rank in 0..4 {
///     let mut command = Command::new("./rank");
///     let notice = notices.attach(rank, &mut command)?;
///     let mut child = command.env("RANK", rank.to_string()).spawn()?;
///     std::thread::spawn(move || child.wait().map(|status| notice.publish(status)));
/// }
/// # Ok::<_, std::io::Error>(())
/// ```
///
/// # What is known of a process
/// Processes are those that are started. One that has not made a mock may come at any time, and so may
/// one with several mocks whose ranks are processes, or with children: these may have been given a rank. So
/// a program that is started through another one, which waits for it, is waited for as well. Of one
/// that ends first, and leaves its rank to a child, it looks as if the rank had ended.
#[derive(Clone, Debug)]
pub struct ExitNotices {
    roster: Arc<Roster>,
    fd: Arc<OwnedFd>,
}

impl ExitNotice {
    /// Prepares a command, which is to be spawned once: the process inherits a descriptor, and its
    /// number in `COLLECTIVES_MOCK_EXIT_FD`. Processes that it starts in turn have no part in it.
    ///
    /// # Errors
    /// What the system says where it has no memory, or no descriptor, to give.
    pub fn attach(command: &mut Command) -> io::Result<Self> {
        ExitNotices::create(1, false)?.attach(0, command)
    }

    /// Tells how the process ended. To be called right after that is known: peers wait for it, but
    /// not for long.
    pub fn publish(self, status: ExitStatus) {
        if let Some(seat) = self.roster.seats().get(self.seat) {
            seat.publish(status);
        }
    }
}

impl ExitNotices {
    /// For a job of so many processes.
    ///
    /// # Errors
    /// What the system says where it has no memory, or no descriptor, to give; `InvalidInput` for more
    /// than 65536 processes.
    pub fn for_job(processes: usize) -> io::Result<Self> {
        Self::create(processes, true)
    }

    fn create(processes: usize, is_whole: bool) -> io::Result<Self> {
        let (roster, fd) = Roster::create(processes, is_whole)?;
        Ok(Self { roster: Arc::new(roster), fd: Arc::new(fd) })
    }

    /// As [`ExitNotice::attach`], for process `number` of the job, counted from 0.
    ///
    /// # Errors
    /// `InvalidInput` where the job has no process of that number.
    pub fn attach(&self, number: usize, command: &mut Command) -> io::Result<ExitNotice> {
        let seats = self.roster.seats().len();
        if number >= seats {
            let text = format!("there is no process {number} in a job of {seats}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        command.env(VARIABLE, self.fd.as_raw_fd().to_string());
        let (roster, fd) = (Arc::clone(&self.roster), Arc::clone(&self.fd));
        let inherit = move || {
            if let Some(seat) = roster.seats().get(number) {
                seat.attach(own_pid());
            }
            Ok(fcntl_setfd(&*fd, FdFlags::empty())?)
        };
        // SAFETY: between fork and exec it makes two system calls and stores to memory that is
        // mapped; it takes no lock and allocates nothing.
        unsafe { command.pre_exec(inherit) };
        Ok(ExitNotice { roster: Arc::clone(&self.roster), seat: number })
    }
}

/// A process on the roster of its launcher.
pub(crate) struct Exit {
    roster: Arc<Roster>,
    seat: usize,
    /// Whether its desk is there.
    has_desk: bool,
}

impl Exit {
    /// That of a peer, by the roster that it has sent.
    pub(crate) fn of(fd: &OwnedFd, pid: u32, token: &Token) -> io::Result<Self> {
        let mut roster = Arc::new(Roster::map(fd)?);
        if let Some(own) = inherited().filter(|own| own.roster.job() == roster.job())
            && roster.job().is_some()
        {
            roster = Arc::clone(&own.roster);
        }
        let none = || io::Error::new(io::ErrorKind::InvalidData, "it is not on its roster");
        let seat = roster.seat_of(pid).ok_or_else(none)?;
        let has_desk = roster.job().is_some() && roster.seats()[seat].is_taken_by(token);
        Ok(Self { roster, seat, has_desk })
    }

    /// What the launcher has said.
    pub(crate) fn status(&self) -> Option<ExitStatus> {
        self.roster.seats().get(self.seat)?.status()
    }

    /// Whether the process is asked on this roster.
    pub(crate) fn has_desk_on(&self, roster: &Roster) -> bool {
        self.has_desk && std::ptr::eq(&*self.roster, roster)
    }

    /// Where the process is asked, if that is on the roster.
    pub(crate) fn desk(&self) -> Option<Desk<'_>> {
        self.roster.desk(self.seat).filter(|_| self.has_desk)
    }
}

/// This process on the roster of its launcher, for one of its engines.
pub(crate) struct Seated {
    own: &'static Inherited,
    token: Token,
    speaks: bool,
}

impl Seated {
    /// `None` where no launcher has a roster.
    pub(crate) fn enter(token: Token) -> Option<Self> {
        let own = inherited()?;
        let speaks = own.seat().enter(&token);
        Some(Self { own, token, speaks })
    }

    /// As others see it.
    pub(crate) fn exit(&self) -> Exit {
        let roster = Arc::clone(&self.own.roster);
        let has_desk = self.speaks && roster.job().is_some();
        Exit { roster, seat: self.own.seat, has_desk }
    }

    /// All processes of the job, where they are known.
    pub(crate) fn roster(&self) -> Option<&'static Roster> {
        self.own.roster.job().map(|_| &*self.own.roster)
    }

    /// The job, where nobody could take part in it for this process but the threads of this engine.
    pub(crate) fn job(&self) -> Option<u128> {
        let is_alone = || self.own.seat().occupant() == Some(self.token) && !has_children();
        self.own.roster.job().filter(|_| is_alone())
    }
}

impl Drop for Seated {
    fn drop(&mut self) {
        // A forked child was never counted.
        if !fork::in_forked_child() {
            self.own.seat().leave(self.speaks);
        }
    }
}

/// What this process's launcher has given it.
pub(crate) struct Inherited {
    fd: OwnedFd,
    roster: Arc<Roster>,
    seat: usize,
}

impl Inherited {
    /// For peers.
    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    fn seat(&self) -> &Seat {
        &self.roster.seats()[self.seat]
    }
}

/// The roster that this process is on, if its launcher has one.
pub(crate) fn inherited() -> Option<&'static Inherited> {
    static INHERITED: OnceLock<Option<Inherited>> = OnceLock::new();
    let find = || {
        let number = env::var(VARIABLE).ok()?.parse().ok()?;
        // SAFETY: the call takes any number, and refuses what is no descriptor.
        let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 0) };
        if copy < 0 {
            return None;
        }
        // SAFETY: just made, and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(copy) };
        let roster = Roster::map(&fd).ok()?;
        // The variable outlives the process that it was for: a child of it may have quite another
        // file under that number, or the roster of its parent.
        let seat = roster.seat_of(own_pid())?;
        Some(Inherited { fd, roster: Arc::new(roster), seat })
    };
    INHERITED.get_or_init(find).as_ref()
}

/// How a process of this one's job has ended. Waits a little for the launcher to say so.
pub(crate) fn end_of(pid: u32) -> Option<End> {
    let own = inherited()?;
    let seat = &own.roster.seats()[own.roster.seat_of(pid)?];
    let until = Instant::now() + PATIENCE;
    while seat.status().is_none() && Instant::now() < until {
        thread::sleep(Duration::from_millis(1));
    }
    Some(End { status: seat.status() })
}

/// Whether this process has started others that are not known to have ended.
fn has_children() -> bool {
    let looks = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    // One that has ended and was not waited for hides whether there are more.
    !matches!(waitid(WaitId::All, looks), Err(Errno::CHILD))
}

fn own_pid() -> u32 {
    getpid().as_raw_pid().cast_unsigned()
}

/// How long a launcher may take to tell of an end: on a busy machine it has to get its turn first.
pub(crate) const PATIENCE: Duration = Duration::from_millis(500);

const VARIABLE: &str = "COLLECTIVES_MOCK_EXIT_FD";
