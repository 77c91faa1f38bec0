//! What is said while processes meet, and the sockets on which it is said.
//!
//! Each message is one packet: magic, version, kind, then the fields, little-endian. Descriptors come
//! with it. Who listens and who connects is checked for the user that runs it; what is no message ends
//! the connection.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    thread,
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{
        self, AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
        SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
        SocketType,
    },
    process::geteuid,
};

use super::peer::{Card, Token};

/// One end of a connection between a host and a guest. Never blocks.
pub(super) struct Link(OwnedFd);

/// Everything that is said. A guest begins with [`Hello`](Self::Hello), the host with
/// [`Welcome`](Self::Welcome).
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Message {
    /// Guest: who I am and what I think this is. With the descriptors of a [`Card`].
    Hello { member: Member, seats: u32, board_bytes: u64 },
    /// Host: who I am.
    Welcome { seat: u32, pid: u32 },
    /// Host: all have come, and this is one of them. With the descriptors of a [`Card`].
    Seat(Member),
    /// Host: what all have in common. With its descriptor; comes after all seats.
    Board,
    /// Guest: all is mapped, I can go on.
    Ready,
    /// Guest: I can't, and why.
    Sorry(String),
    /// Host: all can, so the meeting is made.
    Go,
    /// Guest: I give up, if it is not too late.
    Leave,
    /// Host: then you are not here, and these seats have come so far.
    Left { came: Vec<bool> },
    /// Host: I give up, meet without me. These seats have come so far.
    Adieu { came: Vec<bool> },
    /// Host: this seat's process has ended.
    Died { seat: u32, pid: u32 },
    /// Host: it can't be, and why.
    Disagree(String),
}

/// One who takes part.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Member {
    pub(super) seat: u32,
    pub(super) pid: u32,
    pub(super) token: Token,
    pub(super) segment_bytes: u64,
    pub(super) payload: Vec<u8>,
}

/// What a look at a connection found.
pub(super) enum Heard {
    /// The other end is closed.
    End,
    Message(Message, Vec<OwnedFd>),
    /// Nothing for now.
    Nothing,
}

impl Member {
    /// With the descriptors that came along.
    pub(super) fn card(&self, fds: Vec<OwnedFd>) -> Card {
        let Self { pid, token, segment_bytes, .. } = *self;
        Card { token, pid, segment_bytes, fds }
    }
}

/// Listens under a name. `None` where somebody does already.
pub(super) fn listen(name: &[u8]) -> io::Result<Option<OwnedFd>> {
    let socket = socket()?;
    match net::bind(&socket, &SocketAddrUnix::new_abstract_name(name)?) {
        Ok(()) => {}
        Err(Errno::ADDRINUSE) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    // The system lowers it to what it allows; who finds the queue full tries again.
    net::listen(&socket, 4096)?;
    Ok(Some(socket))
}

/// Connects to who listens under a name. `None` where nobody does, yet or any more, or too many want
/// to at once.
pub(super) fn connect(name: &[u8]) -> io::Result<Option<Link>> {
    let socket = socket()?;
    match net::connect(&socket, &SocketAddrUnix::new_abstract_name(name)?) {
        Ok(()) => Ok(Some(Link(socket))),
        Err(Errno::CONNREFUSED | Errno::AGAIN | Errno::INTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Takes one who connects, if there is one. Whoever is of another user is turned away.
pub(super) fn accept(listener: &OwnedFd) -> io::Result<Option<Link>> {
    loop {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match net::accept_with(listener, flags) {
            Ok(socket) => {
                let link = Link(socket);
                if link.peer().is_ok_and(|peer| peer.is_own_user) {
                    return Ok(Some(link));
                }
                tracing::debug!("a stranger at a meeting of ranks, turned away");
            }
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::INTR | Errno::CONNABORTED) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Who is at the other end.
pub(super) struct OtherEnd {
    pub(super) is_own_user: bool,
    /// Not positive where it can't be seen from here.
    pub(super) pid: i32,
}

impl Link {
    /// Asks the system who is at the other end.
    pub(super) fn peer(&self) -> io::Result<OtherEnd> {
        let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
        let mut length = size_of::<libc::ucred>() as libc::socklen_t;
        // By libc, since rustix takes the pid for one that is never 0, which it is where the process
        // can't be seen from here.
        // SAFETY: both pointers are to locals of the right types, and the length is that of the first.
        let code = unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERCRED,
                (&raw mut credentials).cast(),
                &raw mut length,
            )
        };
        if code != 0 {
            return Err(io::Error::last_os_error());
        }
        let is_own_user = credentials.uid == geteuid().as_raw();
        Ok(OtherEnd { is_own_user, pid: credentials.pid })
    }

    /// Sends a message. `false` where there is no room for now.
    pub(super) fn send(&self, message: &Message, fds: &[BorrowedFd<'_>]) -> io::Result<bool> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(Errno::INVAL.into());
        }
        let bytes = message.encode();
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match net::sendmsg(&self.0, &[IoSlice::new(&bytes)], &mut control, flags) {
            Ok(_) => Ok(true),
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            // Too many descriptors are on their way; a poll would not wait for them to arrive.
            Err(Errno::TOOMANYREFS) => {
                thread::sleep(Duration::from_millis(1));
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Takes the next message.
    ///
    /// # Errors
    /// What the system says; `InvalidData` where it is no message, or where descriptors were lost,
    /// since this process may have no more of them.
    pub(super) fn receive(&self) -> io::Result<Heard> {
        let mut bytes = vec![0; MOST_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
        let received = loop {
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            let mut slices = [IoSliceMut::new(&mut bytes)];
            match net::recvmsg(&self.0, &mut slices, &mut control, flags) {
                Ok(received) => {
                    let mut fds = Vec::new();
                    for message in control.drain() {
                        if let RecvAncillaryMessage::ScmRights(rights) = message {
                            fds.extend(rights);
                        }
                    }
                    break (received.bytes, received.flags, fds);
                }
                Err(Errno::AGAIN) => return Ok(Heard::Nothing),
                // A reset is told once, before what was sent ahead of it.
                Err(Errno::INTR | Errno::CONNRESET) => {}
                Err(error) => return Err(error.into()),
            }
        };
        let (length, flags, fds) = received;
        if length == 0 {
            return Ok(Heard::End);
        }
        let refuse = |text| Err(io::Error::new(io::ErrorKind::InvalidData, text));
        if flags.contains(ReturnFlags::CTRUNC) {
            return refuse("descriptors were lost; is the process at its limit (ulimit -n)?");
        }
        match Message::decode(&bytes[..length]) {
            Some(message) if !flags.contains(ReturnFlags::TRUNC) => {
                Ok(Heard::Message(message, fds))
            }
            _ => refuse("not a message of this version of the mock"),
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Message {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(MAGIC);
        let mut kind = |kind: u8| out.push(kind);
        match self {
            Self::Hello { member, seats, board_bytes } => {
                kind(1);
                out.extend(seats.to_le_bytes());
                out.extend(board_bytes.to_le_bytes());
                member.encode(&mut out);
            }
            Self::Welcome { seat, pid } => {
                kind(2);
                out.extend(seat.to_le_bytes());
                out.extend(pid.to_le_bytes());
            }
            Self::Seat(member) => {
                kind(3);
                member.encode(&mut out);
            }
            Self::Board => kind(4),
            Self::Ready => kind(5),
            Self::Sorry(text) => {
                kind(6);
                out.extend(clipped(text).as_bytes());
            }
            Self::Go => kind(7),
            Self::Leave => kind(8),
            Self::Left { came } => {
                kind(9);
                out.extend(came.iter().map(|&came| u8::from(came)));
            }
            Self::Adieu { came } => {
                kind(10);
                out.extend(came.iter().map(|&came| u8::from(came)));
            }
            Self::Died { seat, pid } => {
                kind(11);
                out.extend(seat.to_le_bytes());
                out.extend(pid.to_le_bytes());
            }
            Self::Disagree(text) => {
                kind(12);
                out.extend(clipped(text).as_bytes());
            }
        }
        out
    }

    /// `None` where it is no message.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = Rest(bytes.strip_prefix(&MAGIC)?);
        let [kind] = rest.take()?;
        let message = match kind {
            1 => {
                let (seats, board_bytes) = (rest.u32()?, rest.u64()?);
                Self::Hello { member: Member::decode(&mut rest)?, seats, board_bytes }
            }
            2 => Self::Welcome { seat: rest.u32()?, pid: rest.u32()? },
            3 => Self::Seat(Member::decode(&mut rest)?),
            4 => Self::Board,
            5 => Self::Ready,
            6 => Self::Sorry(rest.text()),
            7 => Self::Go,
            8 => Self::Leave,
            9 => Self::Left { came: rest.flags() },
            10 => Self::Adieu { came: rest.flags() },
            11 => Self::Died { seat: rest.u32()?, pid: rest.u32()? },
            12 => Self::Disagree(rest.text()),
            _ => return None,
        };
        rest.0.is_empty().then_some(message)
    }
}

impl Member {
    fn encode(&self, out: &mut Vec<u8>) {
        let Self { seat, pid, token, segment_bytes, payload } = self;
        out.extend(seat.to_le_bytes());
        out.extend(pid.to_le_bytes());
        out.extend(token);
        out.extend(segment_bytes.to_le_bytes());
        out.extend(payload);
    }

    fn decode(rest: &mut Rest<'_>) -> Option<Self> {
        Some(Self {
            seat: rest.u32()?,
            pid: rest.u32()?,
            token: rest.take()?,
            segment_bytes: rest.u64()?,
            payload: rest.all().to_vec(),
        })
    }
}

/// What is left of a message.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn all(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    fn text(&mut self) -> String {
        String::from_utf8_lossy(self.all()).into_owned()
    }

    fn flags(&mut self) -> Vec<bool> {
        self.all().iter().map(|&flag| flag != 0).collect()
    }
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// Texts can be as long as their makers like, messages can't.
fn clipped(text: &str) -> &str {
    &text[..text.floor_char_boundary(MOST_PAYLOAD)]
}

/// "mcm", and the version of these messages and of all that is shared.
const MAGIC: [u8; 4] = *b"mcm\x01";

/// A [`Card`] has most.
const MOST_FDS: usize = 4;

/// Bytes that each member can tell the others, and seats that there can be.
pub(super) const MOST_PAYLOAD: usize = 32 << 10;

/// Of any message.
const MOST_BYTES: usize = MOST_PAYLOAD + 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_as_they_went() {
        let member = Member {
            seat: 3,
            pid: 4711,
            token: [7; 16],
            segment_bytes: 1 << 40,
            payload: b"payload".to_vec(),
        };
        let came = vec![true, false, true];
        let messages = [
            Message::Hello { member: member.clone(), seats: 4, board_bytes: 1 << 33 },
            Message::Welcome { seat: 0, pid: 1 },
            Message::Seat(Member { payload: Vec::new(), ..member }),
            Message::Board,
            Message::Ready,
            Message::Sorry("no memory".into()),
            Message::Go,
            Message::Leave,
            Message::Left { came: came.clone() },
            Message::Adieu { came },
            Message::Died { seat: 2, pid: 99 },
            Message::Disagree("4 seats, 5 seats".into()),
        ];
        for message in messages {
            let bytes = message.encode();
            assert_eq!(Message::decode(&bytes), Some(message.clone()));
            // One byte less is another message or none, and never a panic.
            assert_ne!(Message::decode(&bytes[..bytes.len() - 1]), Some(message));
        }
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let mut bytes = Message::Go.encode();
        assert_eq!(Message::decode(&[&bytes[..], b"more"].concat()), None);
        bytes[3] = 2;
        assert_eq!(Message::decode(&bytes), None, "another version");
        assert_eq!(Message::decode(&[&MAGIC[..], &[99]].concat()), None, "an unknown kind");
        assert_eq!(Message::decode(&[]), None);
        let long = Message::Disagree("ä".repeat(MOST_PAYLOAD)).encode();
        assert!(long.len() <= MOST_BYTES);
        assert!(Message::decode(&long).is_some());
    }
}
