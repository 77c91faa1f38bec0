//! What a launcher shares with the processes that it starts: who has ended, and how; and where those
//! that live can be asked.
//!
//! One memfd, which all of them inherit. It has a *seat* for each process: the launcher writes how the
//! process ended, and the process which of its engines answers for it. Where the launcher says that
//! these are all the processes of a job, there is a [`Desk`] for each, too. So processes of a job can
//! ask one another before they have met; and what neither lives nor has anybody to speak for it will
//! never come.
//!
//! # Who speaks for a process
//! The first engine that takes the seat, as long as it is the only one: several know nothing of each
//! other's threads. `engines` counts them, together with how often one has left. An engine that leaves
//! wipes its token out before it is counted out, and one that comes writes its own after it was
//! counted in. So whoever reads the same count of one before and after a token has read a whole one,
//! or zeros.

use std::{
    io,
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    process::ExitStatus,
};

use super::{
    peer::{Token, random},
    shared::{Plain, Shared},
    verdicts::{DESK_BYTES, Desk},
};
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The memory, as it is mapped here.
#[derive(Debug)]
pub(crate) struct Roster {
    memory: Shared,
    seats: usize,
}

/// One process.
#[repr(C, align(64))]
pub(crate) struct Seat {
    /// Once it is attached: [`ATTACHED`] and its id, as it knows it itself.
    pid: AtomicU64,
    /// As a wait has it, with [`PUBLISHED`].
    status: AtomicU64,
    /// How many engines the process has in the lower half, how many it had in the upper.
    engines: AtomicU64,
    token: [AtomicU64; 2],
    rest: [AtomicU64; 3],
}

#[repr(C, align(64))]
struct Header {
    magic: AtomicU64,
    seats: AtomicU32,
    /// Whether nobody else belongs to the job.
    is_whole: AtomicU32,
    job: [AtomicU64; 2],
    rest: [AtomicU64; 4],
}

// SAFETY: made of atomic integers, to the last byte.
unsafe impl Plain for Seat {}
// SAFETY: made of atomic integers, to the last byte.
unsafe impl Plain for Header {}

impl Roster {
    /// For so many processes; whether these are all that there will be.
    pub(crate) fn create(seats: usize, is_whole: bool) -> io::Result<(Self, OwnedFd)> {
        if seats > MOST_SEATS {
            let text = format!("{seats} processes, at most {MOST_SEATS}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let (memory, fd) = Shared::create("collectives-roster", bytes(seats, is_whole))?;
        let roster = Self { memory, seats };
        let header = roster.header();
        for (word, half) in header.job.iter().zip(halves(&random()?)) {
            word.store(half, Ordering::Relaxed);
        }
        header.seats.store(seats as u32, Ordering::Relaxed);
        header.is_whole.store(is_whole.into(), Ordering::Relaxed);
        header.magic.store(MAGIC, Ordering::Release);
        Ok((roster, fd))
    }

    /// # Errors
    /// `InvalidData` where it is none, or what the system says.
    pub(crate) fn map(fd: &OwnedFd) -> io::Result<Self> {
        let refuse = || io::Error::new(io::ErrorKind::InvalidData, "no roster of a launcher");
        let head = Shared::map(fd, size_of::<Header>())?;
        let header = head.at::<Header>(0).ok_or_else(refuse)?;
        let seats = header.seats.load(Ordering::Relaxed) as usize;
        if header.magic.load(Ordering::Acquire) != MAGIC || seats > MOST_SEATS {
            return Err(refuse());
        }
        let is_whole = header.is_whole.load(Ordering::Relaxed) != 0;
        Ok(Self { memory: Shared::map(fd, bytes(seats, is_whole))?, seats })
    }

    /// What tells jobs apart, where all processes of this one are on it.
    pub(crate) fn job(&self) -> Option<u128> {
        let header = self.header();
        let is_whole = header.is_whole.load(Ordering::Relaxed) != 0;
        is_whole.then(|| u128::from_le_bytes(whole(&header.job)))
    }

    /// All processes, in the order in which the launcher numbers them.
    pub(crate) fn seats(&self) -> &[Seat] {
        self.memory.slice(size_of::<Header>(), self.seats).unwrap_or_default()
    }

    /// The seat of a process that has not ended, or whose number nobody else has had since.
    pub(crate) fn seat_of(&self, pid: u32) -> Option<usize> {
        // The latest: a launcher may start one after another.
        self.seats().iter().rposition(|seat| seat.pid() == Some(pid))
    }

    /// Where a process is asked.
    pub(crate) fn desk(&self, seat: usize) -> Option<Desk<'_>> {
        Desk::at(&self.memory, desks(self.seats).checked_add(seat.checked_mul(DESK_BYTES)?)?)
    }

    fn header(&self) -> &Header {
        match self.memory.at(0) {
            Some(header) => header,
            None => unreachable!("a roster is larger than its header"),
        }
    }
}

impl Seat {
    /// The calling process takes it. Safe between fork and exec.
    pub(crate) fn attach(&self, pid: u32) {
        self.pid.store(ATTACHED | u64::from(pid), Ordering::Release);
    }

    /// The process, once it was started.
    pub(crate) fn pid(&self) -> Option<u32> {
        let pid = self.pid.load(Ordering::Acquire);
        (pid & ATTACHED != 0).then_some(pid as u32)
    }

    /// Tells how the process has ended.
    pub(crate) fn publish(&self, status: ExitStatus) {
        let status = u64::from(status.into_raw().cast_unsigned());
        self.status.store(PUBLISHED | status, Ordering::Release);
    }

    /// How the process has ended, once that was told.
    pub(crate) fn status(&self) -> Option<ExitStatus> {
        let status = self.status.load(Ordering::Acquire);
        (status & PUBLISHED != 0).then(|| ExitStatus::from_raw((status as u32).cast_signed()))
    }

    /// Counts an engine of the process in. Whether it is the one that speaks for the process.
    pub(crate) fn enter(&self, token: &Token) -> bool {
        let is_first = self.engines.fetch_add(1, Ordering::SeqCst) & COUNT == 0;
        if is_first {
            for (word, half) in self.token.iter().zip(halves(token)) {
                word.store(half, Ordering::SeqCst);
            }
        }
        is_first
    }

    /// Counts one out. `spoke` is what [`enter`](Self::enter) has answered.
    pub(crate) fn leave(&self, spoke: bool) {
        if spoke {
            self.token.iter().for_each(|word| word.store(0, Ordering::SeqCst));
        }
        self.engines.fetch_add(LEFT - 1, Ordering::SeqCst);
    }

    /// Whether an engine speaks for the process, or would if it were alone.
    pub(crate) fn is_taken_by(&self, token: &Token) -> bool {
        whole(&self.token) == *token
    }

    /// The one engine of the process, if it has one, and that speaks for it.
    pub(crate) fn occupant(&self) -> Option<Token> {
        let before = self.engines.load(Ordering::SeqCst);
        if before & COUNT != 1 {
            return None;
        }
        let is_there = self.token.iter().all(|word| word.load(Ordering::SeqCst) != 0);
        let token = whole(&self.token);
        (is_there && self.engines.load(Ordering::SeqCst) == before).then_some(token)
    }
}

fn halves(token: &Token) -> [u64; 2] {
    [0, 8].map(|at| u64::from_le_bytes(std::array::from_fn(|index| token[at + index])))
}

fn whole(words: &[AtomicU64; 2]) -> Token {
    let mut token = Token::default();
    for (half, word) in token.chunks_mut(8).zip(words) {
        half.copy_from_slice(&word.load(Ordering::SeqCst).to_le_bytes());
    }
    token
}

/// Where the desks begin.
fn desks(seats: usize) -> usize {
    (size_of::<Header>() + seats * size_of::<Seat>()).next_multiple_of(4096)
}

fn bytes(seats: usize, is_whole: bool) -> usize {
    desks(seats) + if is_whole { seats * DESK_BYTES } else { 0 }
}

const PUBLISHED: u64 = 1 << 32;
const ATTACHED: u64 = 1 << 32;

/// The lower half of [`Seat::engines`], and one in the upper.
const COUNT: u64 = (1 << 32) - 1;
const LEFT: u64 = 1 << 32;

/// More than any machine runs.
const MOST_SEATS: usize = 1 << 16;

/// "mockrost", and a version.
const MAGIC: u64 = u64::from_be_bytes(*b"mockros\x01");

#[cfg(all(loom, test))]
mod loom_tests {
    use loom::{sync::Arc, thread};

    use super::*;
    use crate::sync::model;

    fn seat() -> Seat {
        let word = || AtomicU64::new(0);
        Seat {
            pid: word(),
            status: word(),
            engines: word(),
            token: std::array::from_fn(|_| word()),
            rest: std::array::from_fn(|_| word()),
        }
    }

    #[test]
    fn who_is_found_to_speak_for_a_process_is_whole_and_was_alone() {
        model(|| {
            let seat = Arc::new(seat());
            let one = thread::spawn({
                let seat = Arc::clone(&seat);
                move || {
                    let spoke = seat.enter(&[1; 16]);
                    seat.leave(spoke);
                }
            });
            let other = thread::spawn({
                let seat = Arc::clone(&seat);
                move || seat.enter(&[2; 16])
            });
            assert!([None, Some([1; 16]), Some([2; 16])].contains(&seat.occupant()));
            one.join().unwrap();
            let speaks = other.join().unwrap();
            assert_eq!(seat.occupant(), speaks.then_some([2; 16]));
        });
    }
}

#[cfg(all(test, not(any(loom, miri))))] // Miri has no memfd
mod tests {
    use super::*;

    #[test]
    fn all_who_map_it_see_the_same() {
        let (ours, fd) = Roster::create(3, true).unwrap();
        let theirs = Roster::map(&fd).unwrap();
        assert!(ours.job().is_some_and(|job| theirs.job() == Some(job)));
        assert_eq!(theirs.seats().len(), 3);
        ours.seats()[1].attach(4711);
        assert_eq!((theirs.seat_of(4711), theirs.seat_of(0)), (Some(1), None));
        assert_eq!(theirs.seats()[1].status(), None);
        ours.seats()[1].publish(ExitStatus::from_raw(3 << 8));
        assert_eq!(theirs.seats()[1].status().and_then(|status| status.code()), Some(3));
        assert!((0..3).all(|seat| theirs.desk(seat).is_some()) && theirs.desk(3).is_none());
    }

    #[test]
    fn one_that_names_only_some_has_no_desks() {
        let (roster, fd) = Roster::create(2, false).unwrap();
        assert_eq!((roster.job(), roster.desk(0).is_none()), (None, true));
        assert_eq!(Roster::map(&fd).unwrap().seats().len(), 2);
        let (_block, other) = Shared::create("collectives-test", 4096).unwrap();
        assert!(Roster::map(&other).is_err(), "no roster");
        assert!(Roster::create(MOST_SEATS + 1, true).is_err());
    }

    #[test]
    fn a_process_with_two_engines_has_nobody_to_speak_for_it() {
        let (roster, _fd) = Roster::create(1, true).unwrap();
        let [seat] = roster.seats() else { unreachable!("there is one") };
        assert_eq!(seat.occupant(), None);
        assert!(seat.enter(&[1; 16]));
        assert_eq!(seat.occupant(), Some([1; 16]));
        assert!(!seat.enter(&[2; 16]));
        assert_eq!(seat.occupant(), None);
        seat.leave(false);
        assert_eq!(seat.occupant(), Some([1; 16]));
        seat.leave(true);
        assert_eq!(seat.occupant(), None);
        assert!(seat.enter(&[3; 16]));
        assert_eq!(seat.occupant(), Some([3; 16]));
    }
}
