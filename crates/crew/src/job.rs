//! Ranks that are processes of any program.
//!
//! Such a program does not know that it is a rank of somebody's, so there is no socket to hear it by,
//! and what it starts itself is to end with it. Who is who is told by the kernel:
//!
//! * **A session each.** A rank leads a session and a process group of its own, so one signal reaches
//!   it and all it has started, unless that moved to another group. The terminal's signals reach the
//!   parent alone, which passes on what it likes.
//! * **Ends are seen, not taken.** A thread for each rank waits for its end, and leaves the dead process
//!   where it is. So until the job is dropped its number is nobody else's, and a signal that comes late
//!   meets what the rank has left behind, or nothing.
//! * **The keeper.** When the parent is killed, the kernel kills the ranks (`PR_SET_PDEATHSIG`, on
//!   Linux), and a process beside the parent kills their groups.

use std::{
    fmt, io,
    os::{
        fd::OwnedFd,
        unix::process::{CommandExt, ExitStatusExt},
    },
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    process::{
        Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus, getpid, getppid, kill_process_group,
        setsid, waitid,
    },
};

use crate::{
    Crew, End, Member,
    parent::{spawn, this_program},
};

/// Processes of any program, one for each rank. What is left of them and of all they started is killed
/// when it is dropped.
pub struct Job {
    ranks: Vec<Child>,
    keeper: Keeper,
}

impl Job {
    /// Starts a process for each of so many ranks by the command that is given for it. How each ends is
    /// told once, on a thread of its own.
    ///
    /// On Linux the ranks are killed when the calling *thread* ends. The program has to call [`keep`]
    /// first of all.
    ///
    /// # Errors
    /// A process cannot be started; those that were are ended.
    pub fn start(
        size: usize,
        mut command: impl FnMut(usize) -> io::Result<Command>,
        told: impl Fn(usize, End) + Clone + Send + 'static,
    ) -> io::Result<Self> {
        let mut job = Self { ranks: Vec::with_capacity(size), keeper: Keeper::start()? };
        for rank in 0..size {
            let mut command = command(rank)?;
            lead(&mut command, job.keeper.line()?);
            let child = spawn(rank, &mut command)?;
            let pid = child.id();
            job.ranks.push(child);
            let told = told.clone();
            let named = thread::Builder::new().name(format!("end of rank {rank}"));
            named.spawn(move || told(rank, End { pid, status: wait(pid), killed: None }))?;
        }
        Ok(job)
    }

    /// How many ranks there are.
    pub fn size(&self) -> usize {
        self.ranks.len()
    }

    /// The id of a rank's process.
    pub fn pid(&self, rank: usize) -> u32 {
        self.ranks[rank].id()
    }

    /// How a rank has ended, if it has, whether that was told yet or not.
    pub fn status(&self, rank: usize) -> Option<ExitStatus> {
        let child = WaitId::Pid(pid(self.pid(rank))?);
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        waitid(child, options).ok().flatten().map(|status| raw_status(&status))
    }

    /// Sends a signal to every rank and to all they have started.
    pub fn signal(&self, signal: Signal) {
        for group in self.ranks.iter().filter_map(|rank| pid(rank.id())) {
            // Fails where all of them have ended.
            let _ = kill_process_group(group, signal);
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        // Before their numbers are free for others.
        self.keeper.dismiss();
        let until = Instant::now() + PATIENCE;
        for rank in &mut self.ranks {
            // One that a driver does not let go stays behind, and is the system's.
            while matches!(rank.try_wait(), Ok(None)) && Instant::now() < until {
                thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.ranks.iter().map(Child::id)).finish()
    }
}

/// Serves as the keeper of a job, if this process was started as one: to be called first of all in a
/// program that starts jobs. Answers whether it was, and so has nothing else to do.
///
/// # Errors
/// As [`Member::here`], and as [`Member::hear_out`].
pub fn keep() -> io::Result<bool> {
    let Some(member) = Member::here(KEEPER)? else { return Ok(false) };
    let mut groups = Vec::new();
    let heard = member.hear_out(|group: u32| groups.push(group));
    // A parent that is done kills this process before it reaps those: they are still its ranks.
    for group in groups.into_iter().filter_map(pid) {
        let _ = kill_process_group(group, Signal::KILL);
    }
    heard.map(|()| true)
}

/// A process of this program that outlives it if need be, and ends what it leaves behind.
struct Keeper(Option<Crew<()>>);

impl Keeper {
    fn start() -> io::Result<Self> {
        let crew = Crew::start(KEEPER, 1, |_| {
            let mut program = this_program()?;
            // Out of reach of the terminal.
            program.process_group(0).stdout(Stdio::null()).stderr(Stdio::null());
            Ok(program)
        });
        let named =
            |error| io::Error::other(format!("no process to keep watch over ranks: {error}"));
        crew.map(|crew| Self(Some(crew))).map_err(named)
    }

    /// By which ranks say who they are, themselves: they may be at work before their parent knows.
    fn line(&self) -> io::Result<OwnedFd> {
        self.0.as_ref().ok_or(io::ErrorKind::NotConnected)?.line(0)
    }

    /// Lets go of the groups.
    fn dismiss(&mut self) {
        self.0 = None;
    }
}

/// Makes the process that a command starts lead a session, tell a keeper so, and end with this thread.
fn lead(command: &mut Command, keeper: OwnedFd) {
    let parent = getpid();
    let lead = move || {
        setsid()?;
        let (digits, start) = message(getpid());
        rustix::io::write(&keeper, &digits[start..])?;
        #[cfg(target_os = "linux")]
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // It may have ended before that was asked for.
        if getppid() == Some(parent) { Ok(()) } else { Err(Errno::SRCH.into()) }
    };
    // SAFETY: between fork and exec it makes system calls and nothing else; an error of a number
    // allocates nothing.
    unsafe { command.pre_exec(lead) };
}

/// A number as a message to the keeper, JSON and its line feed, made without memory: it begins at the
/// index beside it.
fn message(pid: Pid) -> ([u8; 11], usize) {
    let mut digits = [b'\n'; 11];
    let (mut rest, mut start) = (pid.as_raw_pid().unsigned_abs(), digits.len() - 1);
    while rest > 0 {
        start -= 1;
        digits[start] = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    (digits, start)
}

/// Waits for the end of a child, which stays to be reaped.
fn wait(child: u32) -> Option<ExitStatus> {
    let child = WaitId::Pid(pid(child)?);
    loop {
        match waitid(child.clone(), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
            Ok(Some(status)) => return Some(raw_status(&status)),
            Err(Errno::INTR) => {}
            Ok(None) | Err(_) => return None,
        }
    }
}

/// As `wait` has it.
fn raw_status(status: &WaitIdStatus) -> ExitStatus {
    let core = if status.dumped() { 0x80 } else { 0 };
    let code = status.exit_status().map(|code| (code & 0xff) << 8);
    let signal = status.terminating_signal().map(|signal| signal | core);
    ExitStatus::from_raw(code.or(signal).unwrap_or_default())
}

fn pid(number: u32) -> Option<Pid> {
    i32::try_from(number).ok().and_then(Pid::from_raw)
}

const KEEPER: &str = "keeper";

/// How long killed ranks may take to end.
const PATIENCE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_the_number_as_json() {
        for number in [1, 10, 4711, i32::MAX] {
            let (digits, start) = message(Pid::from_raw(number).expect("positive"));
            assert_eq!(digits[start..], *format!("{number}\n").as_bytes());
        }
    }
}
