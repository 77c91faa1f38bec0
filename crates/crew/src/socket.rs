//! The two ends of a member's socket, and lines of JSON on them.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    process::Stdio,
};

use serde::{Serialize, de::DeserializeOwned};

/// The half that hears.
pub(crate) struct Ear(BufReader<Box<dyn Read + Send>>);

/// The half that tells.
pub(crate) struct Mouth(Socket);

#[cfg(unix)]
type Socket = std::os::unix::net::UnixStream;
#[cfg(not(unix))]
type Socket = io::Empty;

impl Ear {
    /// The next message; `None` when the other side is gone.
    pub(crate) fn hear<M: DeserializeOwned>(&mut self) -> io::Result<Option<M>> {
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some(serde_json::from_str(&line)?)),
            // It was gone before it had heard everything.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Mouth {
    pub(crate) fn tell(&mut self, message: &impl Serialize) -> io::Result<()> {
        // In one call, so that no other line can come between.
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        self.0.write_all(&line)
    }

    /// The same socket, for another process.
    #[cfg(unix)]
    pub(crate) fn line(&self) -> io::Result<std::os::fd::OwnedFd> {
        Ok(self.0.try_clone()?.into())
    }
}

/// The parent's end, and the child's as its standard input.
#[cfg(unix)]
pub(crate) fn pair() -> io::Result<(Ear, Mouth, Stdio)> {
    use std::os::{fd::OwnedFd, unix::net::UnixStream};

    let (ours, theirs) = UnixStream::pair()?;
    let (ear, mouth) = ends(ours)?;
    Ok((ear, mouth, OwnedFd::from(theirs).into()))
}

/// The child's end, taken off standard input, which reads as empty from then on. `None` where that
/// is no socket: this process was started by a member, and has inherited its environment.
#[cfg(unix)]
pub(crate) fn inherited() -> io::Result<Option<(Ear, Mouth)>> {
    use std::{
        fs::File,
        os::{fd::AsFd, unix::net::UnixStream},
    };

    use rustix::fs::FileType;

    let input = io::stdin();
    if FileType::from_raw_mode(rustix::fs::fstat(&input)?.st_mode) != FileType::Socket {
        return Ok(None);
    }
    let socket = UnixStream::from(input.as_fd().try_clone_to_owned()?);
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    ends(socket).map(Some)
}

/// Has standard output go where standard error goes.
#[cfg(unix)]
pub(crate) fn join_outputs() -> io::Result<()> {
    Ok(rustix::stdio::dup2_stdout(io::stderr())?)
}

#[cfg(unix)]
fn ends(socket: std::os::unix::net::UnixStream) -> io::Result<(Ear, Mouth)> {
    let mouth = socket.try_clone()?;
    // A process that was stopped must not stop the one that talks to it.
    mouth.set_write_timeout(Some(std::time::Duration::from_secs(10)))?;
    Ok((Ear(BufReader::new(Box::new(socket))), Mouth(mouth)))
}

#[cfg(not(unix))]
pub(crate) fn pair() -> io::Result<(Ear, Mouth, Stdio)> {
    let text = "ranks as processes need Unix sockets, which this system does not have";
    Err(io::Error::new(io::ErrorKind::Unsupported, text))
}

#[cfg(not(unix))]
pub(crate) fn inherited() -> io::Result<Option<(Ear, Mouth)>> {
    Ok(None)
}

#[cfg(not(unix))]
pub(crate) fn join_outputs() -> io::Result<()> {
    Ok(())
}
