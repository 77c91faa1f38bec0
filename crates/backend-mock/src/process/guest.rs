//! A meeting, for who comes to another's.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open},
};

use super::{
    peer::{self, Peer},
    rendezvous::{Attempt, GRACE, Met, Missed, system},
    shared::Shared,
    wire::{Heard, Link, Member, Message},
};

/// How a host was.
pub(super) enum Attended {
    /// Gone, without a meeting.
    HostLeft,
    Met(Met),
}

/// Takes part in the meeting of who is at the other end.
pub(super) fn attend(attempt: &mut Attempt<'_>, link: &Link) -> Result<Attended, Missed> {
    let other = link.peer().map_err(system("SO_PEERCRED"))?;
    if !other.is_own_user {
        let error = io::Error::from(io::ErrorKind::PermissionDenied);
        return Err(Missed::System { what: "another user's process hosts this meeting", error });
    }
    // Its end shows here, too, in case that a child which it forked keeps the socket open.
    let pid = Pid::from_raw(other.pid.max(0));
    let pidfd = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    let seats = attempt.call.seats as usize;
    let mut guest = Guest {
        link,
        host: Host { seat: None, pid: other.pid.max(0).cast_unsigned(), pidfd },
        gathered: (0..seats).map(|_| None).collect(),
        met: None,
        leaving: None,
    };
    guest.attend(attempt)
}

struct Guest<'a> {
    link: &'a Link,
    host: Host,
    /// By seat, of whom the host has told.
    gathered: Vec<Option<(Vec<u8>, Arc<Peer>)>>,
    /// All of them; made where the host lets us go.
    met: Option<Met>,
    /// Why we give up, and when for good.
    leaving: Option<(Missed, Instant)>,
}

struct Host {
    /// Once it has said so.
    seat: Option<u32>,
    pid: u32,
    pidfd: Option<OwnedFd>,
}

impl Guest<'_> {
    fn attend(&mut self, attempt: &mut Attempt<'_>) -> Result<Attended, Missed> {
        let Some(()) = self.hello(attempt)? else { return Ok(Attended::HostLeft) };
        loop {
            // In this order, so that what it said before its end is heard.
            let host_ended = self.host.pidfd.as_ref().is_some_and(peer::has_ended);
            loop {
                match self.link.receive() {
                    Ok(Heard::Message(message, fds)) => {
                        if let Some(attended) = self.hear(attempt, message, fds)? {
                            return Ok(attended);
                        }
                    }
                    Ok(Heard::Nothing) if host_ended => return Err(self.host.died()),
                    Ok(Heard::Nothing) => break,
                    Ok(Heard::End) => return self.host_left(),
                    Err(error) => return Err(self.give_up_for(system("the host's message")(error))),
                }
            }
            match &self.leaving {
                None => {
                    if let Some(missed) = attempt.given_up() {
                        self.leaving = Some((missed, Instant::now() + GRACE));
                        self.tell(&Message::Leave);
                    }
                }
                Some((_, until)) if *until <= Instant::now() => return self.host_left(),
                Some(_) => {}
            }
            self.wait(attempt);
        }
    }

    /// Takes the seat. `None` where the host is gone.
    fn hello(&self, attempt: &Attempt<'_>) -> Result<Option<()>, Missed> {
        let hello = Message::Hello {
            member: attempt.member(),
            seats: attempt.call.seats,
            board_bytes: attempt.call.board_bytes as u64,
        };
        let card = attempt.process.card().map_err(system("descriptors for the others"))?;
        let fds: Vec<_> = card.fds.iter().map(AsFd::as_fd).collect();
        loop {
            match self.link.send(&hello, &fds) {
                Ok(true) => return Ok(Some(())),
                Ok(false) => {}
                Err(error) if is_gone(&error) => return Ok(None),
                Err(error) => return Err(system("hello to the host")(error)),
            }
            if let Some(missed) = attempt.given_up() {
                return Err(missed);
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn hear(
        &mut self,
        attempt: &mut Attempt<'_>,
        message: Message,
        fds: Vec<OwnedFd>,
    ) -> Result<Option<Attended>, Missed> {
        match message {
            Message::Welcome { seat, pid } => {
                self.host.seat = Some(seat);
                self.host.pid = pid;
            }
            Message::Seat(member) => self.seat(attempt, member, fds)?,
            Message::Board => self.board(attempt, fds)?,
            Message::Go => {
                return match self.met.take() {
                    Some(met) => Ok(Some(Attended::Met(met))),
                    None => Err(broken("go before all was told")),
                };
            }
            Message::Left { came } | Message::Adieu { came } => {
                attempt.note(&came);
                return match self.leaving.take() {
                    Some((Missed::Late { .. }, _)) => {
                        Err(Missed::Late { came: attempt.came.clone() })
                    }
                    Some((missed, _)) => Err(missed),
                    None => Ok(Some(Attended::HostLeft)),
                };
            }
            Message::Died { seat, pid } => return Err(Missed::Died { seat: Some(seat), pid }),
            Message::Disagree(text) => return Err(Missed::Disagree(text)),
            Message::Hello { .. } | Message::Leave | Message::Ready | Message::Sorry(_) => {
                return Err(broken("a guest's message"));
            }
        }
        Ok(None)
    }

    /// One of those who have come.
    fn seat(
        &mut self,
        attempt: &Attempt<'_>,
        member: Member,
        fds: Vec<OwnedFd>,
    ) -> Result<(), Missed> {
        let card = member.card(fds);
        let Member { seat, payload, .. } = member;
        let Some(place @ None) = self.gathered.get_mut(seat as usize) else {
            return Err(broken("a seat twice, or one that there is not"));
        };
        match attempt.process.adopt(card) {
            Ok(peer) => *place = Some((payload, peer)),
            Err(error) => return Err(self.give_up_for(system("memory of another process")(error))),
        }
        Ok(())
    }

    /// The last that is told.
    fn board(&mut self, attempt: &Attempt<'_>, fds: Vec<OwnedFd>) -> Result<(), Missed> {
        let [fd] = fds.as_slice() else { return Err(broken("a board without a descriptor")) };
        let board = Shared::map(fd, attempt.call.board_bytes);
        let board = board.map_err(|error| self.give_up_for(system("the board")(error)))?;
        let gathered: Option<Vec<_>> = self.gathered.drain(..).collect();
        let Some(gathered) = gathered else { return Err(broken("a board before all seats")) };
        let (payloads, peers) = gathered.into_iter().unzip();
        self.met = Some(Met { board: Arc::new(board), payloads, peers });
        (attempt.call.complete)();
        self.tell(&Message::Ready);
        Ok(())
    }

    /// What it means that the host says no more.
    fn host_left(&mut self) -> Result<Attended, Missed> {
        if self.host.has_just_ended() {
            return Err(self.host.died());
        }
        match self.leaving.take() {
            Some((missed, _)) => Err(missed),
            None => Ok(Attended::HostLeft),
        }
    }

    /// Lets the others know that we can't.
    fn give_up_for(&self, missed: Missed) -> Missed {
        self.tell(&Message::Sorry(missed.to_string()));
        missed
    }

    /// Small messages, few of them: where they find no room the host is gone or stopped, and what
    /// comes next tells.
    fn tell(&self, message: &Message) {
        let _ = self.link.send(message, &[]);
    }

    fn wait(&self, attempt: &Attempt<'_>) {
        let mut fds = vec![PollFd::new(self.link, PollFlags::IN)];
        fds.extend(self.host.pidfd.as_ref().map(|pidfd| PollFd::new(pidfd, PollFlags::IN)));
        let pause = Timespec::try_from(attempt.pause()).unwrap_or_default();
        // Whatever comes of it, what follows looks for itself.
        let _ = poll(&mut fds, Some(&pause));
    }
}

impl Host {
    fn died(&self) -> Missed {
        Missed::Died { seat: self.seat, pid: self.pid }
    }

    /// Whether it has ended, where its socket is closed. A process's files are closed before its end
    /// can be seen.
    fn has_just_ended(&self) -> bool {
        let Some(pidfd) = &self.pidfd else { return false };
        let until = Instant::now() + CLOSING;
        while !peer::has_ended(pidfd) {
            if Instant::now() >= until {
                return false;
            }
            thread::sleep(Duration::from_millis(1));
        }
        true
    }
}

/// Whether an error says that the other end is closed.
pub(super) fn is_gone(error: &io::Error) -> bool {
    let gone = [Errno::PIPE, Errno::CONNRESET, Errno::NOTCONN].map(Errno::raw_os_error);
    gone.iter().any(|&code| error.raw_os_error() == Some(code))
}

/// A host that doesn't keep to what was agreed.
fn broken(text: &'static str) -> Missed {
    let error = io::Error::new(io::ErrorKind::InvalidData, text);
    Missed::System { what: "the host's message", error }
}

/// Time between the end of a process's files and its own.
pub(super) const CLOSING: Duration = Duration::from_millis(100);
