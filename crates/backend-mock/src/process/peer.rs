//! Processes as others see them.

use std::{
    collections::HashMap,
    fmt, io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::ExitStatusExt,
    },
    process::ExitStatus,
    sync::{Arc, Mutex, OnceLock, Weak},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    io::Errno,
    process::{PidfdFlags, getpid, pidfd_open},
    rand::{GetRandomFlags, getrandom},
};

use super::{
    bell::Bell,
    launch::{self, Exit, Seated},
    roster::Roster,
    segment::{self, Segment},
    shared::{Plain, Shared},
};
use crate::{
    fork,
    sync::{
        atomic::{AtomicU32, AtomicU64, Ordering},
        lock,
    },
};

/// 128 random bits, which nobody else has.
pub(crate) type Token = [u8; 16];

/// This process, as it shows itself to others: its block, its device memory, and a descriptor that
/// tells of its end. An operating system's process may hold several, one for each engine.
pub(crate) struct Process {
    own: Arc<Peer>,
    segment: Arc<Segment>,
    block: OwnedFd,
    peers: Arc<Peers>,
    /// Where its launcher has it, if that keeps a roster.
    seated: Option<Seated>,
}

/// A process, seen by a [`Process`] that has met it; that may be the same one. Its memory stays mapped
/// here as long as this lives, also after its end.
pub(crate) struct Peer {
    token: Token,
    pid: u32,
    is_own: bool,
    memory: Arc<Shared>,
    block: Shared,
    /// Readable once the process has ended.
    pidfd: Arc<OwnedFd>,
    /// Where its launcher says how it ended, if it has one that does, and where it may be asked.
    exit: Option<Exit>,
    end: OnceLock<End>,
    peers: Arc<Peers>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct End {
    /// Unknown where neither a launcher nor the system tells.
    pub(crate) status: Option<ExitStatus>,
}

/// What one process hands to another, so that it can be its peer.
pub(crate) struct Card {
    pub(crate) token: Token,
    /// As the process itself says.
    pub(crate) pid: u32,
    pub(crate) segment_bytes: u64,
    /// Block, segment, pidfd, and where there is one the launcher's [`Roster`].
    pub(crate) fds: Vec<OwnedFd>,
}

/// All peers of one process that are in use.
pub(crate) struct Peers {
    known: Mutex<HashMap<Token, Known>>,
    /// Readable when the list has changed, for who watches.
    changed: OwnedFd,
}

struct Known {
    peer: Weak<Peer>,
    pidfd: Arc<OwnedFd>,
    /// Whether its end has been told.
    told: bool,
}

/// One whose end is yet to come.
pub(crate) struct Living {
    pub(crate) token: Token,
    pub(crate) pidfd: Arc<OwnedFd>,
    pub(crate) peer: Weak<Peer>,
}

impl Process {
    /// With so much device memory. The error says what the system refused.
    pub(crate) fn new(device_memory: usize) -> io::Result<Self> {
        let segment = Segment::new(device_memory).map_err(at("device memory"))?;
        let (block, block_fd) =
            Shared::create("collectives-process", BLOCK_BYTES).map_err(at("process block"))?;
        let pid = getpid();
        let pidfd = pidfd_open(pid, PidfdFlags::empty())
            .map_err(|error| at("pidfd_open (Linux 5.3)")(error.into()))?;
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let changed = eventfd(0, flags).map_err(|error| at("eventfd")(error.into()))?;
        let peers = Arc::new(Peers { known: Mutex::default(), changed });
        if let Some(header) = block.at::<Header>(0) {
            header.pid.store(pid.as_raw_pid().cast_unsigned(), Ordering::Relaxed);
            header.magic.store(MAGIC, Ordering::Release);
        }
        let token = random().map_err(at("getrandom"))?;
        let seated = Seated::enter(token);
        let own = Peer {
            token,
            pid: pid.as_raw_pid().cast_unsigned(),
            is_own: true,
            memory: Arc::clone(segment.memory()),
            block,
            pidfd: Arc::new(pidfd),
            exit: seated.as_ref().map(Seated::exit),
            end: OnceLock::new(),
            peers: Arc::clone(&peers),
        };
        Ok(Self { own: Arc::new(own), segment: Arc::new(segment), block: block_fd, peers, seated })
    }

    /// All processes of the job that it was started in, where a launcher says so.
    pub(crate) fn roster(&self) -> Option<&'static Roster> {
        self.seated.as_ref()?.roster()
    }

    /// That job, where nobody could take part in it for this process but the threads of its engine.
    pub(crate) fn job(&self) -> Option<u128> {
        self.seated.as_ref()?.job()
    }

    /// This process as its own peer.
    pub(crate) fn own(&self) -> &Arc<Peer> {
        &self.own
    }

    pub(crate) fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    pub(crate) fn peers(&self) -> &Arc<Peers> {
        &self.peers
    }

    /// What others need to know it.
    pub(crate) fn card(&self) -> io::Result<Card> {
        let mut fds = vec![
            self.block.try_clone()?,
            self.segment.fd().try_clone()?,
            self.own.pidfd.try_clone()?,
        ];
        if let Some(inherited) = launch::inherited() {
            fds.push(inherited.fd().try_clone()?);
        }
        let segment_bytes = self.segment.bytes() as u64;
        Ok(Card { token: self.own.token, pid: self.own.pid, segment_bytes, fds })
    }

    /// Makes a peer of whom a card is from, or finds it.
    ///
    /// # Errors
    /// What the system says where it can't be mapped, or `InvalidData` where a descriptor is not what
    /// it should be.
    pub(crate) fn adopt(&self, card: Card) -> io::Result<Arc<Peer>> {
        if card.token == self.own.token {
            return Ok(Arc::clone(&self.own));
        }
        // Held while mapping, so that two threads which meet the same process map it once.
        let mut known = lock(&self.peers.known);
        if let Some(peer) = known.get(&card.token).and_then(|known| known.peer.upgrade()) {
            return Ok(peer);
        }
        let peer = Arc::new(Peer::new(card, &self.peers)?);
        let (pidfd, token) = (Arc::clone(&peer.pidfd), peer.token);
        known.insert(token, Known { peer: Arc::downgrade(&peer), pidfd, told: false });
        drop(known);
        self.peers.note_change();
        Ok(peer)
    }
}

impl Peer {
    fn new(card: Card, peers: &Arc<Peers>) -> io::Result<Self> {
        let refuse = |text: String| Err(io::Error::new(io::ErrorKind::InvalidData, text));
        let Card { token, pid, segment_bytes, fds } = card;
        let count = fds.len();
        let mut fds = fds.into_iter();
        let (Some(block), Some(segment), Some(pidfd), exit, None) =
            (fds.next(), fds.next(), fds.next(), fds.next(), fds.next())
        else {
            return refuse(format!("process {pid} sent {count} descriptors, 3 or 4 expected"));
        };
        let block = Shared::map(&block, BLOCK_BYTES).map_err(at("a peer's block"))?;
        let magic = block.at::<Header>(0).map(|header| header.magic.load(Ordering::Acquire));
        if magic != Some(MAGIC) {
            return refuse(format!("what process {pid} sent is no process block"));
        }
        let bytes = usize::try_from(segment_bytes).map_err(|_| Errno::NOMEM)?;
        let memory = Shared::map(&segment, bytes).map_err(at("a peer's device memory"))?;
        segment::prepare(&memory);
        Ok(Self {
            token,
            pid,
            is_own: false,
            memory: Arc::new(memory),
            block,
            pidfd: Arc::new(pidfd),
            // Without it there is only less to tell of its end.
            exit: exit.and_then(|roster| Exit::of(&roster, pid, &token).ok()),
            end: OnceLock::new(),
            peers: Arc::clone(peers),
        })
    }

    pub(crate) fn token(&self) -> Token {
        self.token
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether this is the process that asks.
    pub(crate) fn is_own(&self) -> bool {
        self.is_own
    }

    /// Where `bytes` bytes at an offset of its device memory are mapped here. `None` where it has no
    /// such range.
    #[inline]
    pub(crate) fn translate(&self, offset: u64, bytes: usize) -> Option<*mut u8> {
        self.memory.range(usize::try_from(offset).ok()?, bytes)
    }

    /// Wakes it.
    pub(crate) fn bell(&self) -> &Bell {
        match self.block.at::<Header>(0) {
            Some(header) => &header.bell,
            None => unreachable!("a block is larger than its header"),
        }
    }

    /// Where its launcher has it.
    pub(crate) fn exit(&self) -> Option<&Exit> {
        self.exit.as_ref()
    }

    /// What it shows of itself: what is from [`SPARE`] on is for whoever builds on this.
    pub(crate) fn block(&self) -> &Shared {
        &self.block
    }

    /// Whether it has ended. Never for the process itself.
    pub(crate) fn has_ended(&self) -> bool {
        !self.is_own && (self.end.get().is_some() || has_ended(&self.pidfd))
    }

    /// How it ended, if it has. Waits for somebody to tell how, where it can be told: half a second for
    /// a launcher, 30 ms for the system, which tells once the parent has looked (Linux 6.15).
    pub(crate) fn end(&self) -> Option<End> {
        self.has_ended().then(|| *self.end.get_or_init(|| End { status: self.status_soon() }))
    }

    fn status_soon(&self) -> Option<ExitStatus> {
        let patience = if self.exit.is_some() { launch::PATIENCE } else { PATIENCE };
        let until = Instant::now() + patience;
        loop {
            if let Some(status) = self.exit.as_ref().and_then(Exit::status) {
                return Some(status);
            }
            let asked = pidfd_status(&self.pidfd);
            let may_come = self.exit.is_some() || matches!(asked, Ok(None));
            match asked {
                Ok(Some(status)) => return Some(status),
                _ if may_come && Instant::now() < until => thread::sleep(PATIENCE / 60),
                _ => return None,
            }
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // A forked child has a copy of the list, whose lock may be held for ever.
        if !self.is_own && !fork::in_forked_child() {
            self.peers.forget(&self.token);
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(status) = self.status else { return f.write_str("ended") };
        match (status.code(), status.signal()) {
            (Some(code), _) => write!(f, "ended with exit code {code}"),
            (None, Some(signal)) => write!(f, "ended by signal {signal}"),
            (None, None) => write!(f, "ended with status {:#x}", status.into_raw()),
        }
    }
}

impl Peers {
    /// All whose end is not told yet.
    pub(crate) fn living(&self) -> Vec<Living> {
        let living = |(&token, known): (&Token, &Known)| Living {
            token,
            pidfd: Arc::clone(&known.pidfd),
            peer: Weak::clone(&known.peer),
        };
        lock(&self.known).iter().filter(|(_, known)| !known.told).map(living).collect()
    }

    pub(crate) fn mark_told(&self, token: &Token) {
        if let Some(known) = lock(&self.known).get_mut(token) {
            known.told = true;
        }
    }

    pub(crate) fn changed(&self) -> BorrowedFd<'_> {
        self.changed.as_fd()
    }

    pub(crate) fn note_change(&self) {
        // Refused only where the counter is full, and then it is readable, too.
        let _ = rustix::io::write(&self.changed, &1_u64.to_ne_bytes());
    }

    /// Resets what [`note_change`](Self::note_change) did.
    pub(crate) fn take_change(&self) {
        // Refused only where there was none.
        let _ = rustix::io::read(&self.changed, &mut [0; 8]);
    }

    /// Drops a peer that nobody uses from the list, unless it has been met anew since.
    fn forget(&self, token: &Token) {
        let mut known = lock(&self.known);
        if known.get(token).is_some_and(|known| known.peer.strong_count() == 0) {
            known.remove(token);
        }
        drop(known);
        self.note_change();
    }
}

/// What begins a process's block.
#[repr(C)]
struct Header {
    magic: AtomicU64,
    pid: AtomicU32,
    rest: [AtomicU32; 13],
    bell: Bell,
}

// SAFETY: made of atomic integers and of what is, to the last byte.
unsafe impl Plain for Header {}

/// New random bits.
pub(crate) fn random() -> io::Result<Token> {
    let mut token = Token::default();
    // So few bytes come all at once.
    getrandom(&mut token, GetRandomFlags::empty())?;
    Ok(token)
}

/// Whether the process of a pidfd has ended.
pub(crate) fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready != 0)
}

/// What the system knows of how a process ended: nothing until its parent has looked.
///
/// # Errors
/// The system is too old to tell (Linux before 6.15).
fn pidfd_status(pidfd: &OwnedFd) -> Result<Option<ExitStatus>, Errno> {
    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: the number is that of the request, and the struct its first version, which the system
    // is told by the size that is part of the number.
    let request = unsafe { rustix::ioctl::Updater::<PIDFD_GET_INFO, _>::new(&mut info) };
    // SAFETY: the request writes to `info` alone.
    unsafe { rustix::ioctl::ioctl(pidfd, request) }?;
    Ok((info.mask & PIDFD_INFO_EXIT != 0).then(|| ExitStatus::from_raw(info.exit_code)))
}

/// Linux' `struct pidfd_info`, first version.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup: u64,
    pids: [u32; 3],
    ids: [u32; 8],
    exit_code: i32,
}

const PIDFD_GET_INFO: rustix::ioctl::Opcode =
    rustix::ioctl::opcode::read_write::<PidfdInfo>(0xff, 11);
const PIDFD_INFO_EXIT: u64 = 1 << 3;
const _: () = assert!(size_of::<PidfdInfo>() == 64);

/// Says what an error of the system is about.
pub(crate) fn at(what: &'static str) -> impl FnOnce(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// How long the status of a process that has ended may take.
const PATIENCE: Duration = Duration::from_millis(30);

/// Bytes of a process's block; few of them are ever touched.
pub(crate) const BLOCK_BYTES: usize = 1 << 20;

/// From this offset on a block is free for others' use.
pub(crate) const SPARE: usize = 4096;

/// "mockproc", and the version of all that is shared.
const MAGIC: u64 = u64::from_be_bytes(*b"mockpro\x01");

const _: () = assert!(size_of::<Header>() <= SPARE);

#[cfg(all(test, not(any(loom, miri))))] // Miri has no memfd
mod tests {
    use super::*;

    #[test]
    fn a_process_is_mapped_once_and_while_it_is_used() {
        let (one, other) = (Process::new(4 << 20).unwrap(), Process::new(4 << 20).unwrap());
        let peer = one.adopt(other.card().unwrap()).unwrap();
        assert!(!peer.is_own());
        assert!(Arc::ptr_eq(&peer, &one.adopt(other.card().unwrap()).unwrap()));
        assert!(Arc::ptr_eq(one.own(), &one.adopt(one.card().unwrap()).unwrap()));
        assert_eq!(one.peers().living().len(), 1);
        drop(peer);
        assert_eq!(one.peers().living().len(), 0);
    }

    #[test]
    fn memory_of_a_peer_is_seen_and_its_end_is_known() {
        let (one, other) = (Process::new(4 << 20).unwrap(), Process::new(4 << 20).unwrap());
        let peer = one.adopt(other.card().unwrap()).unwrap();
        let offset = other.segment().alloc(8, 8).unwrap();
        let theirs = other.own().translate(offset, 8).unwrap();
        // SAFETY: eight bytes that were handed out, in use by this test alone.
        unsafe { theirs.cast::<u64>().write(4711) };
        let here = peer.translate(offset, 8).unwrap();
        assert_ne!(here, theirs);
        // SAFETY: as above, through the other mapping.
        assert_eq!(unsafe { here.cast::<u64>().read() }, 4711);
        assert!(peer.translate(0, 4 << 20).is_some());
        assert!(peer.translate(1, 4 << 20).is_none());
        assert!(peer.translate(u64::MAX, 1).is_none());
        assert_eq!((peer.end(), peer.has_ended(), one.own().has_ended()), (None, false, false));
        assert_eq!((peer.pid(), peer.token()), (other.own().pid(), other.own().token()));
        assert_eq!(peer.block().bytes(), BLOCK_BYTES);
    }

    #[test]
    fn what_is_no_card_is_refused() {
        let (one, other) = (Process::new(4 << 20).unwrap(), Process::new(4 << 20).unwrap());
        let refused = |change: &dyn Fn(&mut Card)| {
            let mut card = other.card().unwrap();
            change(&mut card);
            one.adopt(card).err().map(|error| error.kind())
        };
        let invalid = Some(io::ErrorKind::InvalidData);
        assert_eq!(refused(&|card| card.fds.swap(0, 1)), invalid, "no block");
        assert_eq!(refused(&|card| card.segment_bytes += 1), invalid);
        assert_eq!(refused(&|card| card.fds.truncate(2)), invalid);
        assert_eq!(refused(&|_| ()), None);
    }

    #[test]
    fn a_forked_child_drops_a_peer_without_its_parents_lock() {
        fork::arm();
        let (one, other) = (Process::new(4 << 20).unwrap(), Process::new(4 << 20).unwrap());
        let peer = one.adopt(other.card().unwrap()).unwrap();
        // As if another thread held it at the moment of the fork.
        let held = lock(&one.peers.known);
        // SAFETY: the child makes no call that needs another thread, and ends.
        let child = unsafe { libc::fork() };
        assert!(child >= 0, "fork: {}", io::Error::last_os_error());
        if child == 0 {
            // SAFETY: ends the child, should it wait for the lock.
            unsafe { libc::alarm(10) };
            drop(peer);
            // SAFETY: ends the child at once, running no destructor of the parent's.
            unsafe { libc::_exit(7) };
        }
        drop(held);
        let mut status = 0;
        // SAFETY: `status` outlives the call.
        let waited = unsafe { libc::waitpid(child, &mut status, 0) };
        assert_eq!((waited, libc::WIFEXITED(status)), (child, true), "status {status:#x}");
        assert_eq!(libc::WEXITSTATUS(status), 7);
        assert_eq!(one.peers().living().len(), 1);
        assert!(peer.translate(0, 8).is_some());
    }
}
