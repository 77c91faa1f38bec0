//! Where the operations of one communicator meet that has ranks in several processes.
//!
//! A board lies in memory that all of them map. It has a *track* for the collectives, and one for the
//! messages of each pair of ranks. A track has a ring of slots for each of its *parties*: the ranks,
//! or the sender and the receiver. For an operation of a track:
//!
//! 1. Each party *publishes* its part: writes its slot, then the slot's stamp.
//! 2. It is *ready* when all have. Where a part stands directly behind another of the same stream that
//!    is not done yet (it *follows*), also that one must be done. So a process may publish a whole
//!    series ahead, and whoever publishes last does it in one go.
//! 3. Whoever sees that it is ready *claims* it. One process gets it, moves the data, and says that it
//!    is *done*. The others see that and end their parts.
//! 4. A slot is written again one lap later, when the operation is done.
//!
//! Nothing here waits. Operations of one track may be done out of order, as far as the ring reaches:
//! a rank may issue them on several streams.
//!
//! # Nothing is left behind
//! An operation becomes ready by one of two kinds of stores: the last stamp, or the *done* of the one
//! that it follows. Who does such a store looks afterwards whether the operation is ready. Stores and
//! looks of that kind have a `SeqCst` fence between them, so of two processes that do the last stores
//! at the same time at least one sees both.
//!
//! # Failure
//! A process that learns that the communicator has failed *drops* the operations that it waits for
//! and that nobody has claimed: it claims them for nothing. What is claimed is waited for, since
//! somebody may be writing to the buffers; except where the process that claimed it is dead.
//!
//! Nothing that is read here is trusted: numbers that no process would write are an error.

use std::sync::Arc;

use collectives_core::{DType, ErrorKind, Rank};

use super::shared::{Plain, Shared};
use crate::{
    op::{Kind, Reduction},
    sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence},
};

/// One communicator's board, in this process's mapping.
pub(crate) struct Board {
    memory: Arc<Shared>,
    start: usize,
    ranks: usize,
}

/// Operations that meet by their number: all collectives, or all messages from one rank to another.
/// Tracks are numbered; see [`Board::collectives`] and [`Board::messages`].
#[derive(Clone, Copy)]
pub(crate) struct Track<'a> {
    /// A ring of slots for each party.
    slots: &'a [Slot],
    /// What has become of each operation of the ring.
    states: &'a [AtomicU64],
    /// By party and place in the ring: what [`Part::sum`] says.
    sums: &'a [AtomicU64],
}

/// One rank's part of an operation, as others see it. Places in memory are offsets in the segment of
/// its process.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Part {
    pub(crate) kind: Kind,
    pub(crate) dtype: DType,
    pub(crate) reduction: Reduction,
    /// Whether it stands directly behind the operation with the number before, on the same stream.
    pub(crate) follows: bool,
    /// Whether it is part of a launched graph.
    pub(crate) in_graph: bool,
    /// Root or peer.
    pub(crate) other: u32,
    pub(crate) count: u64,
    pub(crate) send: Option<u64>,
    pub(crate) recv: Option<u64>,
    /// The scalar of a PreMulSum.
    pub(crate) factor: Option<[u8; 8]>,
    /// Where the text lies that names the call.
    pub(crate) site: u64,
    /// The handle of its stream.
    pub(crate) stream: u64,
    /// A sum over what it sends, where its process guards that.
    pub(crate) sum: Option<u64>,
}

/// What has become of an operation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Progress {
    /// Nobody does it yet.
    Open,
    /// The process of this rank does it.
    Claimed(u32),
    /// Its data has been moved.
    Done,
    /// It will never be done.
    Dropped,
}

/// A slot, of one cache line. All words but the first are meaningful only under the right stamp.
#[repr(C, align(64))]
#[derive(Default)]
pub(crate) struct Slot {
    /// The operation's number, plus 1.
    stamp: AtomicU64,
    words: [AtomicU64; 7],
}

// SAFETY: made of atomic integers, to the last byte.
unsafe impl Plain for Slot {}

impl Track<'_> {
    /// Number of places in the ring.
    fn laps(&self) -> u64 {
        self.states.len() as u64
    }

    fn at(&self, number: u64) -> usize {
        (number % self.laps()) as usize
    }

    fn slot(&self, party: usize, number: u64) -> &Slot {
        &self.slots[party * self.states.len() + self.at(number)]
    }

    /// Whether the operation one lap before is done, so that this one may be published.
    #[inline]
    pub(crate) fn has_room(&self, number: u64) -> bool {
        match number.checked_sub(self.laps()) {
            Some(before) => self.progress(before) == Progress::Done,
            None => true,
        }
    }

    /// Publishes one party's part. There is [room](Self::has_room), and each part is published once.
    /// Afterwards comes [`settle`], and a look whether the operation is ready.
    #[inline]
    pub(crate) fn publish(&self, party: usize, number: u64, part: &Part) {
        let slot = self.slot(party, number);
        for (word, value) in slot.words.iter().zip(part.encode()) {
            word.store(value, Ordering::Relaxed);
        }
        if let Some(sum) = part.sum {
            let at = party * self.states.len() + self.at(number);
            self.sums[at].store(sum, Ordering::Relaxed);
        }
        slot.stamp.store(number + 1, Ordering::Release);
    }

    /// Whether a party has published its part.
    #[inline]
    pub(crate) fn is_published(&self, party: usize, number: u64) -> bool {
        // A later stamp says that this operation is over.
        self.slot(party, number).stamp.load(Ordering::Acquire) > number
    }

    /// Whether the operation can be done now.
    #[inline]
    pub(crate) fn is_ready(&self, number: u64) -> bool {
        let mut follows = false;
        for party in 0..self.parties() {
            let slot = self.slot(party, number);
            if slot.stamp.load(Ordering::Acquire) != number + 1 {
                return false;
            }
            follows |= slot.words[0].load(Ordering::Relaxed) & FOLLOWS != 0;
        }
        match number.checked_sub(1).filter(|_| follows) {
            Some(before) => self.progress(before) == Progress::Done,
            None => true,
        }
    }

    /// A party's part of an operation that is ready, or of one's own. `None` where what stands there
    /// makes no sense.
    #[inline]
    pub(crate) fn part(&self, party: usize, number: u64) -> Option<Part> {
        let words = &self.slot(party, number).words;
        let mut part = Part::decode(&words.each_ref().map(|word| word.load(Ordering::Relaxed)))?;
        if let Some(sum) = &mut part.sum {
            let at = party * self.states.len() + self.at(number);
            *sum = self.sums[at].load(Ordering::Relaxed);
        }
        Some(part)
    }

    fn parties(&self) -> usize {
        self.slots.len() / self.states.len()
    }

    /// What has become of an operation of this lap or one before.
    #[inline]
    pub(crate) fn progress(&self, number: u64) -> Progress {
        let state = self.states[self.at(number)].load(Ordering::Acquire);
        match (state >> NUMBER).cmp(&(number + 1)) {
            std::cmp::Ordering::Less => Progress::Open,
            // There would be no later lap otherwise.
            std::cmp::Ordering::Greater => Progress::Done,
            std::cmp::Ordering::Equal => match state & TAG {
                CLAIMED => Progress::Claimed(((state >> CLAIMER) & RANK) as u32),
                DROPPED => Progress::Dropped,
                _ => Progress::Done,
            },
        }
    }

    /// Takes an operation that is ready; `rank` is one of the caller's. `false` where another was
    /// quicker.
    #[inline]
    pub(crate) fn claim(&self, number: u64, rank: u32) -> bool {
        self.take(number, CLAIMED | u64::from(rank) << CLAIMER)
    }

    /// The data of an operation that the caller has claimed has been moved. Afterwards comes
    /// [`settle`], and a look at the one behind it.
    #[inline]
    pub(crate) fn finish(&self, number: u64) {
        self.states[self.at(number)].store((number + 1) << NUMBER | DONE, Ordering::Release);
    }

    /// Drops an operation that nobody has claimed. The answer is what has become of it otherwise, or
    /// `Dropped`.
    pub(crate) fn drop_open(&self, number: u64) -> Progress {
        if self.take(number, DROPPED) { Progress::Dropped } else { self.progress(number) }
    }

    /// Drops an operation that the caller, or somebody who is dead, has claimed.
    pub(crate) fn drop_claimed(&self, number: u64) {
        self.states[self.at(number)].store((number + 1) << NUMBER | DROPPED, Ordering::Release);
    }

    fn take(&self, number: u64, tag: u64) -> bool {
        let state = &self.states[self.at(number)];
        let before = number.checked_sub(self.laps());
        let open = before.map_or(0, |before| (before + 1) << NUMBER | DONE);
        let taken = (number + 1) << NUMBER | tag;
        state.compare_exchange(open, taken, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

/// Stands between a store that may make an operation ready, and the look whether it is.
#[inline]
pub(crate) fn settle() {
    fence(Ordering::SeqCst);
}

impl Part {
    #[inline]
    fn encode(&self) -> [u64; 7] {
        let flag = |on: bool, flag: u64| if on { flag } else { 0 };
        let first = self.kind as u64
            | (self.dtype as u64) << 8
            | (self.reduction as u64) << 16
            | flag(self.follows, FOLLOWS)
            | flag(self.in_graph, IN_GRAPH)
            | flag(self.factor.is_some(), HAS_FACTOR)
            | flag(self.sum.is_some(), HAS_SUM)
            | u64::from(self.other) << 32;
        let factor = self.factor.map_or(0, u64::from_ne_bytes);
        let place = |place: Option<u64>| place.unwrap_or(NOWHERE);
        [first, self.count, place(self.send), place(self.recv), factor, self.site, self.stream]
    }

    #[inline]
    fn decode(words: &[u64; 7]) -> Option<Self> {
        let &[first, count, send, recv, factor, site, stream] = words;
        let byte = |at: u32| (first >> at) as u8 as usize;
        let place = |place: u64| (place != NOWHERE).then_some(place);
        Some(Self {
            kind: *Kind::ALL.get(byte(0))?,
            dtype: *DType::ALL.get(byte(8))?,
            reduction: *Reduction::ALL.get(byte(16))?,
            follows: first & FOLLOWS != 0,
            in_graph: first & IN_GRAPH != 0,
            other: (first >> 32) as u32,
            count,
            send: place(send),
            recv: place(recv),
            factor: (first & HAS_FACTOR != 0).then(|| factor.to_ne_bytes()),
            site,
            stream,
            sum: (first & HAS_SUM != 0).then_some(0),
        })
    }
}

const FOLLOWS: u64 = 1 << 24;
const IN_GRAPH: u64 = 1 << 25;
const HAS_FACTOR: u64 = 1 << 26;
const HAS_SUM: u64 = 1 << 27;

/// Stands for no place in memory.
const NOWHERE: u64 = u64::MAX;

/// Of an operation's state: a tag, who claimed it, and its number plus 1.
const TAG: u64 = 3;
const CLAIMED: u64 = 1;
const DONE: u64 = 2;
const DROPPED: u64 = 3;
const CLAIMER: u32 = 2;
const RANK: u64 = MAX_RANKS as u64 - 1;
const NUMBER: u32 = 16;

/// As many as a state has bits for.
pub(crate) const MAX_RANKS: usize = 1 << (NUMBER - CLAIMER);

/// What all ranks of a communicator share beside its operations.
#[repr(C, align(64))]
struct Common {
    /// Why it failed, and why it is revoked.
    fates: [Fate; 2],
    growth: Growth,
    /// Numbers the shrinks as they begin.
    shrinks: AtomicU64,
    /// Whether a revoke has ended the shrinks that ranks were in.
    abandoned: AtomicU64,
    rest: [AtomicU64; 6],
}

// SAFETY: made of atomic integers and of what is, to the last byte.
unsafe impl Plain for Common {}

/// An end of the communicator, written once.
#[repr(C, align(64))]
pub(crate) struct Fate {
    /// Nothing, being written, or there.
    state: AtomicU32,
    kind: AtomicU32,
    /// The rank that need not be told.
    except: AtomicU32,
    message: AtomicU32,
    hint: AtomicU32,
    data: AtomicU32,
    rest: [AtomicU32; 10],
    text: [AtomicU8; TEXT],
    bytes: [AtomicU8; DATA],
}

// SAFETY: made of atomic integers, to the last byte.
unsafe impl Plain for Fate {}

/// Which end.
#[derive(Clone, Copy)]
pub(crate) enum End {
    Failed,
    Revoked,
}

/// What a fate says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Told {
    pub(crate) kind: ErrorKind,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
    pub(crate) except: Option<Rank>,
    /// The same for programs, if there is such: a verdict. What is too long is left out.
    pub(crate) data: Vec<u8>,
}

/// How a communicator grows.
#[repr(C)]
pub(crate) struct Growth {
    /// Ids that were made.
    pub(crate) made: AtomicU64,
    /// Members that wait for an id, and how often all did so in vain.
    pub(crate) waiting: AtomicU64,
    pub(crate) stalls: AtomicU64,
    rest: [AtomicU64; 5],
}

/// What one rank says of itself.
#[repr(C, align(64))]
pub(crate) struct Seat {
    /// Bits of [`Seat::DEPARTED`] and so on.
    flags: AtomicU32,
    /// The one that it has come to of those shrinks that it waits in: its number, or 0.
    pub(crate) shrinks_as: AtomicU32,
    /// Collectives that it had issued when it left.
    issued: AtomicU64,
    /// Splits that it has come to.
    pub(crate) splits: AtomicU64,
    /// Under what it came to its last shrink.
    pub(crate) shrink: AtomicU64,
    /// Two ranks that disagree on that one, each plus 1.
    pub(crate) quarrel: AtomicU64,
    /// Whether it came to that one before it knew of a revoke, which then ends it: 0 or 1.
    pub(crate) planned: AtomicU64,
    rest: [AtomicU64; 2],
}

// SAFETY: made of atomic integers, to the last byte.
unsafe impl Plain for Seat {}

impl Seat {
    /// It has left the communicator.
    pub(crate) const DEPARTED: u32 = 1;
    /// It was aborted.
    pub(crate) const ABORTED: u32 = 2;
    /// Its process wants to hear of what others publish.
    pub(crate) const CURIOUS: u32 = 4;

    pub(crate) fn set(&self, flag: u32) {
        self.flags.fetch_or(flag, Ordering::SeqCst);
    }

    #[inline]
    pub(crate) fn has(&self, flag: u32) -> bool {
        self.flags.load(Ordering::Acquire) & flag != 0
    }
}

impl Board {
    /// Opens a board for so many ranks at an offset; zero bytes are a fresh one. `None` where the
    /// memory is too small, or there are too many ranks.
    pub(crate) fn new(memory: Arc<Shared>, start: usize, ranks: usize) -> Option<Self> {
        let bytes = Self::bytes(ranks)?;
        let fits = start.is_multiple_of(ALIGNMENT) && memory.range(start, bytes).is_some();
        fits.then_some(Self { memory, start, ranks })
    }

    /// Bytes of a board.
    pub(crate) fn bytes(ranks: usize) -> Option<usize> {
        if ranks > MAX_RANKS {
            return None;
        }
        let Layout { messages, .. } = Layout::of(ranks);
        let tracks = ring_bytes(MESSAGES, 2).checked_mul(ranks)?.checked_mul(ranks)?;
        messages.checked_add(tracks)?.checked_next_multiple_of(ALIGNMENT)
    }

    /// The number of the collectives' track.
    pub(crate) const COLLECTIVES: usize = 0;

    /// The number of the track for messages of a pair of ranks; party 0 sends, party 1 receives.
    pub(crate) fn messages(&self, source: u32, target: u32) -> usize {
        1 + source as usize * self.ranks + target as usize
    }

    /// A track, by its number.
    #[inline]
    pub(crate) fn track(&self, number: usize) -> Track<'_> {
        let layout = Layout::of(self.ranks);
        let (ring, parties, start) = match number.checked_sub(1) {
            None => (COLLECTIVES, self.ranks, layout.collectives),
            Some(pair) => (MESSAGES, 2, layout.messages + pair * ring_bytes(MESSAGES, 2)),
        };
        let slots = ring * parties;
        let states = start + slots * size_of::<Slot>();
        let sums = states + ring * size_of::<AtomicU64>();
        Track {
            slots: self.slice(start, slots),
            states: self.slice(states, ring),
            sums: self.slice(sums, slots),
        }
    }

    /// What a rank says of itself.
    #[inline]
    pub(crate) fn seat(&self, rank: u32) -> &Seat {
        &self.slice(Layout::of(self.ranks).seats, self.ranks)[rank as usize]
    }

    /// A rank leaves. `issued` are the numbers of operations that it has issued: collectives, and
    /// messages to and from each peer.
    pub(crate) fn depart(&self, rank: u32, issued: Issued<'_>) {
        let seat = self.seat(rank);
        seat.issued.store(issued.collectives, Ordering::Relaxed);
        let last = self.last_messages();
        for peer in 0..self.ranks {
            let (out, into) =
                (rank as usize * self.ranks + peer, peer * self.ranks + rank as usize);
            last[2 * out].store(issued.sent[peer], Ordering::Relaxed);
            last[2 * into + 1].store(issued.received[peer], Ordering::Relaxed);
        }
        seat.set(Seat::DEPARTED);
    }

    /// How many operations of a track a rank that has left has issued.
    pub(crate) fn issued(&self, rank: u32, track: usize, is_sender: bool) -> u64 {
        match track.checked_sub(1) {
            None => self.seat(rank).issued.load(Ordering::Relaxed),
            Some(pair) => {
                let at = 2 * pair + usize::from(!is_sender);
                self.last_messages()[at].load(Ordering::Relaxed)
            }
        }
    }

    fn last_messages(&self) -> &[AtomicU64] {
        self.slice(Layout::of(self.ranks).issued, 2 * self.ranks * self.ranks)
    }

    /// The ranks that a rank leaves out of the shrink that it has come to: a bit for each.
    pub(crate) fn excluded(&self, rank: u32) -> &[AtomicU64] {
        let words = self.ranks.div_ceil(64);
        let start = Layout::of(self.ranks).excluded + rank as usize * words * 8;
        self.slice(start, words)
    }

    pub(crate) fn growth(&self) -> &Growth {
        &self.common().growth
    }

    /// A number for a shrink that begins, from 1 on.
    pub(crate) fn begin_shrink(&self) -> u32 {
        (self.common().shrinks.fetch_add(1, Ordering::SeqCst) + 1) as u32
    }

    /// A revoke ends the shrinks that were planned before.
    pub(crate) fn abandon(&self) {
        self.common().abandoned.store(1, Ordering::SeqCst);
    }

    /// Whether a revoke has ended the shrink that a rank has come to.
    pub(crate) fn has_abandoned(&self, rank: u32) -> bool {
        self.common().abandoned.load(Ordering::SeqCst) != 0
            && self.seat(rank).planned.load(Ordering::SeqCst) != 0
    }

    /// Which one of all shrinks it is that a rank waits in, or 0: none, or one that is over.
    pub(crate) fn shrinks_as(&self, rank: u32) -> u32 {
        // In this order: who has seen the revoke begins its next one as one that is not planned.
        let is_over = self.has_abandoned(rank);
        let turn = self.seat(rank).shrinks_as.load(Ordering::SeqCst);
        if is_over { 0 } else { turn }
    }

    /// Says how the communicator ends, unless somebody has said it before. The answer is whether this
    /// call did.
    pub(crate) fn tell(&self, end: End, told: &Told) -> bool {
        let fate = self.fate(end);
        let (fresh, writing) = (NOTHING, WRITING);
        let taken =
            fate.state.compare_exchange(fresh, writing, Ordering::AcqRel, Ordering::Relaxed);
        if taken.is_err() {
            return false;
        }
        let kind = KINDS.iter().position(|kind| *kind == told.kind).unwrap_or(0);
        fate.kind.store(kind as u32, Ordering::Relaxed);
        fate.except.store(told.except.map_or(NO_RANK, Rank::get), Ordering::Relaxed);
        let hint = cut(told.hint.as_deref().unwrap_or_default(), TEXT / 4);
        let message = cut(&told.message, TEXT - hint.len());
        fate.message.store(message.len() as u32, Ordering::Relaxed);
        let has_hint = if told.hint.is_some() { hint.len() as u32 } else { NO_HINT };
        fate.hint.store(has_hint, Ordering::Relaxed);
        for (cell, byte) in fate.text.iter().zip(message.bytes().chain(hint.bytes())) {
            cell.store(byte, Ordering::Relaxed);
        }
        let data = if told.data.len() > DATA { &[][..] } else { &told.data };
        fate.data.store(data.len() as u32, Ordering::Relaxed);
        for (cell, byte) in fate.bytes.iter().zip(data) {
            cell.store(*byte, Ordering::Relaxed);
        }
        fate.state.store(WRITTEN, Ordering::SeqCst);
        true
    }

    /// How the communicator ends, if it is known.
    pub(crate) fn told(&self, end: End) -> Option<Told> {
        let fate = self.fate(end);
        if fate.state.load(Ordering::Acquire) != WRITTEN {
            return None;
        }
        let text: Vec<u8> = fate.text.iter().map(|cell| cell.load(Ordering::Relaxed)).collect();
        let length = |cell: &AtomicU32| cell.load(Ordering::Relaxed) as usize;
        let message = length(&fate.message).min(TEXT);
        let hint = (fate.hint.load(Ordering::Relaxed) != NO_HINT).then(|| length(&fate.hint));
        let piece = |range: std::ops::Range<usize>| String::from_utf8_lossy(&text[range]).into();
        let except = fate.except.load(Ordering::Relaxed);
        let data = fate.bytes.iter().take(length(&fate.data));
        Some(Told {
            kind: KINDS.get(length(&fate.kind)).copied().unwrap_or(ErrorKind::Internal),
            message: piece(0..message),
            hint: hint.map(|hint| piece(message..(message + hint).min(TEXT))),
            except: (except != NO_RANK).then(|| Rank::new(except)),
            data: data.map(|cell| cell.load(Ordering::Relaxed)).collect(),
        })
    }

    fn fate(&self, end: End) -> &Fate {
        &self.common().fates[end as usize]
    }

    fn common(&self) -> &Common {
        &self.slice::<Common>(0, 1)[0]
    }

    #[inline]
    fn slice<T: Plain>(&self, offset: usize, count: usize) -> &[T] {
        let found = self.memory.slice(self.start + offset, count);
        found.expect("the board was measured when it was opened")
    }
}

/// Operations that a rank has issued.
pub(crate) struct Issued<'a> {
    pub(crate) collectives: u64,
    /// By peer.
    pub(crate) sent: &'a [u64],
    pub(crate) received: &'a [u64],
}

/// Where the parts of a board begin.
struct Layout {
    seats: usize,
    /// Two words for each pair of ranks.
    issued: usize,
    /// A bit for each pair of ranks.
    excluded: usize,
    collectives: usize,
    messages: usize,
}

impl Layout {
    #[inline]
    const fn of(ranks: usize) -> Self {
        let seats = size_of::<Common>();
        let issued = seats + ranks * size_of::<Seat>();
        let excluded = issued + 16 * ranks * ranks;
        let collectives = (excluded + 8 * ranks * ranks.div_ceil(64)).next_multiple_of(LINE);
        let messages = collectives + ring_bytes(COLLECTIVES, ranks);
        Self { seats, issued, excluded, collectives, messages }
    }
}

/// Places in the rings of collectives: twice what a rank issues before anybody looks, and more, so
/// that one rank writes while another reads.
const COLLECTIVES: usize = 512;
/// And of messages, of which there is a ring for each pair.
const MESSAGES: usize = 16;

/// Bytes of a track.
const fn ring_bytes(ring: usize, parties: usize) -> usize {
    let bytes = ring * parties * (size_of::<Slot>() + 8) + ring * 8;
    bytes.next_multiple_of(LINE)
}

/// `text`, cut to so many bytes.
fn cut(text: &str, bytes: usize) -> &str {
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

const LINE: usize = 64;
/// Boards that share memory begin on pages of their own.
const ALIGNMENT: usize = 4096;

/// Bytes of a failure's text.
const TEXT: usize = 16 * 1024;
/// And of data.
const DATA: usize = 48 * 1024;
const NOTHING: u32 = 0;
const WRITING: u32 = 1;
const WRITTEN: u32 = 2;
const NO_HINT: u32 = u32::MAX;
const NO_RANK: u32 = u32::MAX;

/// Kinds of errors, as a fate numbers them.
const KINDS: [ErrorKind; 15] = [
    ErrorKind::Internal,
    ErrorKind::Aborted,
    ErrorKind::Deadlock,
    ErrorKind::Device,
    ErrorKind::Forked,
    ErrorKind::InvalidArgument,
    ErrorKind::InvalidUsage,
    ErrorKind::Library,
    ErrorKind::OutOfMemory,
    ErrorKind::Remote,
    ErrorKind::Revoked,
    ErrorKind::System,
    ErrorKind::Timeout,
    ErrorKind::Unsupported,
    ErrorKind::Vendor,
];

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{
        sync::atomic::AtomicUsize,
        thread,
        time::{Duration, Instant},
    };

    use proptest::{prop_assert_eq, proptest};

    use super::*;

    /// A track in this process's memory.
    struct Heap {
        slots: Vec<Slot>,
        states: Vec<AtomicU64>,
        sums: Vec<AtomicU64>,
    }

    impl Heap {
        fn new(ring: usize, parties: usize) -> Self {
            let words = |count: usize| (0..count).map(|_| AtomicU64::new(0)).collect();
            let slots = (0..ring * parties).map(|_| Slot::default()).collect();
            Self { slots, states: words(ring), sums: words(ring * parties) }
        }

        fn track(&self) -> Track<'_> {
            Track { slots: &self.slots, states: &self.states, sums: &self.sums }
        }
    }

    fn part(party: usize, number: u64, follows: bool) -> Part {
        Part {
            kind: Kind::AllReduce,
            dtype: DType::F32,
            reduction: Reduction::Sum,
            follows,
            in_graph: false,
            other: party as u32,
            count: number,
            send: Some(number),
            recv: None,
            factor: None,
            site: 0,
            stream: 0,
            sum: Some(number ^ party as u64),
        }
    }

    proptest! {
        #[test]
        fn parts_are_read_as_they_are_written(
            kinds in (0..Kind::ALL.len(), 0..DType::ALL.len(), 0..Reduction::ALL.len()),
            flags: (bool, bool),
            other: u32,
            count: u64,
            places: (Option<u32>, Option<u32>),
            factor: Option<[u8; 8]>,
            words: (u64, u64),
        ) {
            let part = Part {
                kind: Kind::ALL[kinds.0],
                dtype: DType::ALL[kinds.1],
                reduction: Reduction::ALL[kinds.2],
                follows: flags.0,
                in_graph: flags.1,
                other,
                count,
                send: places.0.map(u64::from),
                recv: places.1.map(u64::from),
                factor,
                site: words.0,
                stream: words.1,
                sum: None,
            };
            prop_assert_eq!(Part::decode(&part.encode()), Some(part));
        }

        #[test]
        fn whatever_stands_there_is_a_part_or_refused(words: [u64; 7]) {
            if let Some(part) = Part::decode(&words) {
                prop_assert_eq!(Part::decode(&part.encode()), Some(part));
            }
        }
    }

    /// Parties that publish as they like: what is ready is done once, in order, by somebody, though
    /// nobody ever looks but after a store of its own.
    fn run(parties: usize, ring: usize, numbers: u64, seed: u64, ahead: bool) {
        let heap = Heap::new(ring, parties);
        let done = AtomicU64::new(0);
        let until = Instant::now() + Duration::from_secs(60);
        let look = |party: usize, mut number: u64| {
            let track = heap.track();
            loop {
                match track.progress(number) {
                    Progress::Done => number += 1,
                    Progress::Open if track.is_ready(number) => {
                        if !track.claim(number, party as u32) {
                            continue;
                        }
                        for party in 0..parties {
                            let read = track.part(party, number).unwrap();
                            assert_eq!(read, part(party, number, read.follows));
                        }
                        // Nobody else is at it, and those before are done.
                        assert_eq!(done.swap(number + 1, Ordering::Relaxed), number);
                        track.finish(number);
                        number += 1;
                        settle();
                    }
                    _ => return,
                }
            }
        };
        thread::scope(|scope| {
            for party in 0..parties {
                let (heap, look) = (&heap, &look);
                scope.spawn(move || {
                    let track = heap.track();
                    let mut random = seed.wrapping_add(party as u64);
                    let mut number = 0;
                    while number < numbers {
                        random = crate::schedule::mix(&[random]);
                        let series = if ahead { 1 + random % 5 } else { 1 };
                        let first = number;
                        while number < numbers && number < first + series && track.has_room(number)
                        {
                            // Its own order is kept, though the operations before may not be done.
                            track.publish(party, number, &part(party, number, number > 0));
                            number += 1;
                        }
                        if number > first {
                            settle();
                            look(party, first);
                        } else {
                            assert!(Instant::now() < until, "{number} of {numbers}: it never came");
                            thread::yield_now();
                        }
                        if random & 0x300 == 0 {
                            thread::yield_now();
                        }
                    }
                });
            }
        });
        assert_eq!(done.load(Ordering::Relaxed), numbers);
    }

    #[test]
    fn everything_is_done_once_and_in_order() {
        let numbers = if cfg!(miri) { 50 } else { 20_000 };
        for parties in [1, 2, 3] {
            for (ring, ahead) in [(1, false), (2, true), (8, true), (64, true)] {
                run(parties, ring, numbers, 7 * ring as u64, ahead);
            }
        }
    }

    #[test]
    fn what_is_dropped_is_not_done_and_the_other_way_round() {
        let numbers: u64 = if cfg!(miri) { 20 } else { 2000 };
        let heap = Heap::new(numbers as usize, 1);
        let (claimed, dropped) = (AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            scope.spawn(|| {
                for number in 0..numbers {
                    if heap.track().claim(number, 3) {
                        claimed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
            for number in 0..numbers {
                match heap.track().drop_open(number) {
                    Progress::Dropped => drop(dropped.fetch_add(1, Ordering::Relaxed)),
                    other => assert_eq!(other, Progress::Claimed(3)),
                }
            }
        });
        let all = claimed.into_inner() + dropped.into_inner();
        assert_eq!(all as u64, numbers);
        heap.track().drop_claimed(0);
        assert_eq!(heap.track().progress(0), Progress::Dropped);
    }

    #[test]
    fn a_lap_later_what_was_is_over() {
        let heap = Heap::new(2, 1);
        let track = heap.track();
        for number in 0..5 {
            assert!(track.has_room(number));
            assert_eq!(track.progress(number), Progress::Open);
            track.publish(0, number, &part(0, number, false));
            assert!(track.is_ready(number) && track.is_published(0, number));
            assert!(!track.has_room(number + 2));
            assert!(track.claim(number, 0) && !track.claim(number, 1));
            assert_eq!(track.progress(number), Progress::Claimed(0));
            track.finish(number);
        }
        assert_eq!((track.progress(0), track.progress(4)), (Progress::Done, Progress::Done));
        assert!(track.is_published(0, 0) && !track.is_published(0, 5));
    }

    #[cfg(not(miri))] // Miri has no memfd
    mod shared {
        use super::*;

        fn board(ranks: usize) -> Board {
            let bytes = Board::bytes(ranks).unwrap();
            let (memory, _) = Shared::create("collectives-test", bytes).unwrap();
            Board::new(Arc::new(memory), 0, ranks).unwrap()
        }

        #[test]
        fn tracks_lie_apart() {
            let board = board(3);
            let tracks = 1 + 9;
            for number in 0..tracks {
                let track = board.track(number);
                let last = track.laps() - 1;
                for party in 0..track.parties() {
                    track.publish(party, last, &part(party, number as u64, false));
                }
            }
            for number in 0..tracks {
                let track = board.track(number);
                for party in 0..track.parties() {
                    let read = track.part(party, track.laps() - 1).unwrap();
                    assert_eq!(read, part(party, number as u64, false));
                }
            }
            assert!(board.seat(2).flags.load(Ordering::Relaxed) == 0);
            assert!(Board::bytes(MAX_RANKS + 1).is_none());
        }

        #[test]
        fn who_says_it_first_is_heard() {
            let board = board(2);
            let told = |message: &str| Told {
                kind: ErrorKind::Remote,
                message: message.into(),
                hint: Some("do better".into()),
                except: Some(Rank::new(1)),
                data: b"data".into(),
            };
            assert_eq!(board.told(End::Failed), None);
            assert!(board.tell(End::Failed, &told("first")));
            assert!(!board.tell(End::Failed, &told("second")));
            assert_eq!(board.told(End::Failed), Some(told("first")));
            assert_eq!(board.told(End::Revoked), None);
            let long = Told { hint: None, data: vec![7; DATA + 1], ..told(&"é".repeat(TEXT)) };
            assert!(board.tell(End::Revoked, &long));
            let read = board.told(End::Revoked).unwrap();
            assert_eq!(read.message.len(), TEXT);
            assert!(long.message.starts_with(&read.message) && read.hint.is_none());
            assert!(read.data.is_empty());
        }

        #[test]
        fn what_a_rank_had_issued_is_known_after_it_left() {
            let board = board(2);
            board.depart(1, Issued { collectives: 5, sent: &[6, 7], received: &[8, 9] });
            assert!(board.seat(1).has(Seat::DEPARTED) && !board.seat(0).has(Seat::DEPARTED));
            assert_eq!(board.issued(1, Board::COLLECTIVES, true), 5);
            assert_eq!(board.issued(1, board.messages(1, 0), true), 6);
            assert_eq!(board.issued(1, board.messages(0, 1), false), 8);
            let own = board.messages(1, 1);
            assert_eq!((board.issued(1, own, true), board.issued(1, own, false)), (7, 9));
        }
    }
}

#[cfg(all(loom, test))]
mod loom_tests {
    use loom::thread;

    use super::*;
    use crate::sync::model;

    /// A track of two parties, with as many operations as its ring has places.
    struct Ring {
        slots: Vec<Slot>,
        states: Vec<AtomicU64>,
        sums: Vec<AtomicU64>,
        /// By operation: how often its data was moved.
        moved: Vec<AtomicU32>,
    }

    impl Ring {
        fn new(operations: usize) -> loom::sync::Arc<Self> {
            fn some<T: Default>(count: usize) -> Vec<T> {
                (0..count).map(|_| T::default()).collect()
            }
            loom::sync::Arc::new(Self {
                slots: some(2 * operations),
                states: some(operations),
                sums: some(2 * operations),
                moved: some(operations),
            })
        }

        fn track(&self) -> Track<'_> {
            Track { slots: &self.slots, states: &self.states, sums: &self.sums }
        }

        fn part(party: usize, number: u64) -> Part {
            Part {
                kind: Kind::AllReduce,
                dtype: DType::F32,
                reduction: Reduction::Sum,
                follows: number > 0,
                in_graph: false,
                other: u32::MAX,
                count: 100 * party as u64 + number,
                send: None,
                recv: Some(number),
                factor: None,
                site: 0,
                stream: 0,
                sum: Some(party as u64),
            }
        }

        /// Publishes all parts of a party, and does what becomes ready by it.
        fn issue_all(&self, party: usize) {
            for number in 0..self.states.len() as u64 {
                assert!(self.track().has_room(number));
                self.track().publish(party, number, &Self::part(party, number));
                settle();
                self.execute_from(party, number);
            }
        }

        fn execute_from(&self, party: usize, mut number: u64) {
            let track = self.track();
            let is_there = |number| number < self.states.len() as u64;
            while is_there(number) && track.is_ready(number) && track.claim(number, party as u32) {
                for party in 0..2 {
                    // What was published is seen whole.
                    assert_eq!(track.part(party, number), Some(Self::part(party, number)));
                }
                self.moved[number as usize].fetch_add(1, Ordering::Relaxed);
                track.finish(number);
                settle();
                number += 1;
            }
        }

        fn check(&self) {
            for (number, moved) in (0..).zip(&self.moved) {
                assert_eq!(self.track().progress(number), Progress::Done, "#{number}");
                assert_eq!(moved.load(Ordering::Relaxed), 1, "#{number}");
            }
        }
    }

    #[test]
    fn what_both_have_published_is_done_once() {
        for operations in 1..=2 {
            model(move || {
                let ring = Ring::new(operations);
                let other = loom::sync::Arc::clone(&ring);
                let process = thread::spawn(move || other.issue_all(1));
                ring.issue_all(0);
                process.join().unwrap();
                ring.check();
            });
        }
    }

    #[test]
    fn who_drops_and_who_claims_agree() {
        model(|| {
            let ring = Ring::new(1);
            ring.track().publish(0, 0, &Ring::part(0, 0));
            let other = loom::sync::Arc::clone(&ring);
            let process = thread::spawn(move || other.issue_all(1));
            let dropped = ring.track().drop_open(0) == Progress::Dropped;
            process.join().unwrap();
            let moved = ring.moved[0].load(Ordering::Relaxed);
            assert_eq!(moved, u32::from(!dropped));
            let end = if dropped { Progress::Dropped } else { Progress::Done };
            assert_eq!(ring.track().progress(0), end);
        });
    }
}
