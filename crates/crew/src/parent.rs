//! The side of the parent.

use std::{
    env, fmt, io,
    process::{Child, ChildStderr, Command},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    End, VARIABLE,
    socket::{self, Ear, Mouth},
};

/// Processes of one program, one per rank, that send messages of type `M`. Those that live when it is
/// dropped are killed.
pub struct Crew<M> {
    members: Vec<Process>,
    words: Receiver<(usize, Word<M>)>,
}

/// What is heard of a rank.
#[derive(Debug)]
pub enum Event<M> {
    /// It said this.
    Said(M),
    /// Its process has ended, and nothing more comes from it.
    Ended(End),
}

impl<M: DeserializeOwned + Send + 'static> Crew<M> {
    /// Starts a process for each of so many ranks by the command that is given for it. Its standard
    /// input and one variable of its environment are the crew's own.
    ///
    /// # Errors
    /// A process cannot be started; those that were are ended.
    pub fn start(
        crew: &str,
        size: usize,
        mut command: impl FnMut(usize) -> io::Result<Command>,
    ) -> io::Result<Self> {
        let (sender, words) = channel();
        let mut this = Self { members: Vec::with_capacity(size), words };
        for rank in 0..size {
            let mut command = command(rank)?;
            let (ear, mouth, theirs) = socket::pair()?;
            command.stdin(theirs).env(VARIABLE, format!("{rank}/{size} {crew}"));
            let child = spawn(rank, &mut command)?;
            // Closes the child's end here.
            drop(command);
            this.members.push(Process { child, mouth, end: None });
            let sender = sender.clone();
            let named = thread::Builder::new().name(format!("ear of rank {rank}"));
            named.spawn(move || hear_all(rank, ear, &sender))?;
        }
        Ok(this)
    }

    /// Tells a rank; one that is gone is [heard of](Self::next).
    pub fn tell(&mut self, rank: usize, message: &impl Serialize) {
        let _ = self.members[rank].mouth.tell(message);
    }

    /// Tells every rank.
    pub fn tell_all(&mut self, message: &impl Serialize) {
        for member in &mut self.members {
            let _ = member.mouth.tell(message);
        }
    }

    /// Waits for what comes next from any rank; `None` when it is late, or all processes have ended.
    pub fn next(&mut self, until: Option<Instant>) -> Option<(usize, Event<M>)> {
        let word = match until {
            Some(until) => self.words.recv_timeout(until.saturating_duration_since(Instant::now())),
            None => self.words.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        let (rank, word) = word.ok()?;
        let event = match word {
            Word::Said(message) => Event::Said(message),
            Word::Closed => Event::Ended(self.members[rank].reap(PATIENCE, "closed its socket")),
            Word::Garbled(what) => Event::Ended(self.members[rank].reap(Duration::ZERO, &what)),
        };
        Some((rank, event))
    }
}

impl<M> Crew<M> {
    /// How many ranks there are.
    pub fn size(&self) -> usize {
        self.members.len()
    }

    /// The id of a rank's process.
    pub fn pid(&self, rank: usize) -> u32 {
        self.members[rank].child.id()
    }

    /// A rank's socket, for others to speak to it.
    #[cfg(unix)]
    pub(crate) fn line(&self, rank: usize) -> io::Result<std::os::fd::OwnedFd> {
        self.members[rank].mouth.line()
    }

    /// What a rank writes to standard error, once, where its command has that piped.
    pub fn take_stderr(&mut self, rank: usize) -> Option<ChildStderr> {
        self.members[rank].child.stderr.take()
    }

    /// Kills every process that still lives. What they said before can still be heard.
    pub fn kill(&mut self) {
        for member in &mut self.members {
            member.kill();
        }
    }
}

impl<M> Drop for Crew<M> {
    fn drop(&mut self) {
        self.kill();
        for member in &mut self.members {
            member.reap(PATIENCE, "outlived its crew");
        }
    }
}

impl<M> fmt::Debug for Crew<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.members.iter().map(|member| member.child.id())).finish()
    }
}

/// The executable of this process, with no arguments: what most crews are started with.
///
/// # Errors
/// The system does not tell where it is.
pub fn this_program() -> io::Result<Command> {
    env::current_exe().map(Command::new)
}

/// Starts the process of a rank; errors name both.
pub(crate) fn spawn(rank: usize, command: &mut Command) -> io::Result<Child> {
    command.spawn().map_err(|error| {
        let program = command.get_program().to_string_lossy();
        io::Error::new(error.kind(), format!("rank {rank}: {program}: {error}"))
    })
}

struct Process {
    child: Child,
    mouth: Mouth,
    end: Option<End>,
}

impl Process {
    /// How it ended; killed where it does not within `patience`.
    fn reap(&mut self, patience: Duration, otherwise: &str) -> End {
        if let Some(end) = &self.end {
            return end.clone();
        }
        let mut until = Instant::now() + patience;
        let mut killed = None;
        let status = loop {
            match self.child.try_wait() {
                Ok(None) if Instant::now() < until => thread::sleep(Duration::from_millis(1)),
                Ok(None) if killed.is_none() => {
                    self.kill();
                    killed = Some(otherwise.to_owned());
                    until = Instant::now() + PATIENCE;
                }
                Ok(status) => break status,
                // Somebody else in this process has waited for it.
                Err(_) => break None,
            }
        };
        self.end.insert(End { pid: self.child.id(), status, killed }).clone()
    }

    fn kill(&mut self) {
        if self.end.is_none() {
            // Fails where it has ended meanwhile.
            let _ = self.child.kill();
        }
    }
}

/// What the thread that hears a rank passes on.
enum Word<M> {
    Said(M),
    Closed,
    Garbled(String),
}

fn hear_all<M: DeserializeOwned>(rank: usize, mut ear: Ear, words: &Sender<(usize, Word<M>)>) {
    loop {
        let word = match ear.hear() {
            Ok(Some(message)) => Word::Said(message),
            Ok(None) => Word::Closed,
            Err(error) => Word::Garbled(format!("said what is no message: {error}")),
        };
        let last = !matches!(word, Word::Said(_));
        if words.send((rank, word)).is_err() || last {
            return;
        }
    }
}

/// How long a process may take to end once its socket is closed, or once it was killed.
const PATIENCE: Duration = Duration::from_secs(5);
