//! The side of a rank.

use std::{
    env,
    io::{self, Write},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
};

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    VARIABLE,
    socket::{self, Ear, Mouth},
};

/// This process, as a rank of a crew.
pub struct Member {
    crew: String,
    rank: usize,
    size: usize,
    ear: Mutex<Option<Ear>>,
    mouth: Mutex<Mouth>,
}

impl Member {
    /// What this process is in the crew of that name; `None` where it is no member of it.
    ///
    /// The first call in a member takes the socket off standard input, which reads as empty from then
    /// on. Processes that a member starts are no members.
    ///
    /// # Errors
    /// The environment says that this process is a member, and it is not as a crew starts one.
    pub fn here(crew: &str) -> io::Result<Option<&'static Self>> {
        static HERE: OnceLock<Result<Option<Member>, String>> = OnceLock::new();
        match HERE.get_or_init(|| Self::inherited().map_err(|error| error.to_string())) {
            Ok(member) => Ok(member.as_ref().filter(|member| member.crew == crew)),
            Err(text) => Err(io::Error::other(text.as_str())),
        }
    }

    fn inherited() -> io::Result<Option<Self>> {
        let Ok(value) = env::var(VARIABLE) else { return Ok(None) };
        let Some((ear, mouth)) = socket::inherited()? else { return Ok(None) };
        let (crew, rank, size) = parse(&value).ok_or_else(|| {
            io::Error::other(format!("{VARIABLE} is '{value}', want 'RANK/SIZE CREW'"))
        })?;
        let (ear, mouth) = (Mutex::new(Some(ear)), Mutex::new(mouth));
        Ok(Some(Self { crew, rank, size, ear, mouth }))
    }

    /// The number of this process in its crew.
    pub const fn rank(&self) -> usize {
        self.rank
    }

    /// How many processes the crew has.
    pub const fn size(&self) -> usize {
        self.size
    }

    /// Tells the parent, if it still lives.
    pub fn tell(&self, message: &impl Serialize) {
        // Whoever listens hears that the parent is gone, and ends this process.
        let _ = lock(&self.mouth).tell(message);
    }

    /// Has standard output go where standard error goes from now on.
    ///
    /// # Errors
    /// The system refuses it.
    pub fn join_outputs(&self) -> io::Result<()> {
        // What was written until now goes where it was to go.
        io::stdout().flush()?;
        socket::join_outputs()
    }

    /// Hears the parent from now on, on a thread of its own, so also while this process is stuck; when
    /// the parent is gone, the process is ended.
    ///
    /// # Errors
    /// There is no thread, or somebody listens already.
    pub fn listen<M: DeserializeOwned>(
        &self,
        mut hear: impl FnMut(M) + Send + 'static,
    ) -> io::Result<()> {
        let mut ear = self.take_ear()?;
        let listener = thread::Builder::new().name("crew".into());
        listener.spawn(move || {
            loop {
                match ear.hear() {
                    Ok(Some(message)) => hear(message),
                    Ok(None) => end_process(),
                    Err(error) => {
                        eprintln!("collectives: rank process cannot hear its parent: {error}");
                        end_process();
                    }
                }
            }
        })?;
        Ok(())
    }

    /// Hears the parent on this thread, until it is gone: for a process that has something left to do
    /// then. Nothing ends the process.
    ///
    /// # Errors
    /// Somebody listens already, or what the parent says is no message.
    pub fn hear_out<M: DeserializeOwned>(&self, mut hear: impl FnMut(M)) -> io::Result<()> {
        let mut ear = self.take_ear()?;
        while let Some(message) = ear.hear()? {
            hear(message);
        }
        Ok(())
    }

    fn take_ear(&self) -> io::Result<Ear> {
        lock(&self.ear)
            .take()
            .ok_or_else(|| io::Error::other("this process listens to its parent already"))
    }
}

/// `2/4 a name` is rank 2 of 4 in the crew 'a name'.
fn parse(value: &str) -> Option<(String, usize, usize)> {
    let (seat, crew) = value.split_once(' ')?;
    let (rank, size) = seat.split_once('/')?;
    let (rank, size) = (rank.parse().ok()?, size.parse().ok()?);
    (rank < size).then(|| (crew.to_owned(), rank, size))
}

/// Not `exit`: a library's exit handlers may wait for the very work that is stuck.
fn end_process() -> ! {
    #[cfg(unix)]
    {
        use rustix::process::{Signal, getpid, kill_process};
        // It cannot fail for this process itself.
        let _ = kill_process(getpid(), Signal::KILL);
    }
    std::process::abort()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seat_is_parsed_and_nothing_else_is() {
        assert_eq!(parse("2/4 a name"), Some(("a name".into(), 2, 4)));
        for text in ["", "2/4", "4/4 x", "x/4 x", "2 x", "-1/4 x"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn this_process_is_no_member() {
        assert!(Member::here("any").is_ok_and(|member| member.is_none()));
    }
}
