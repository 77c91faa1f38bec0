//! A communicator that has ranks in several processes: what this process knows of the others, and how
//! its operations look to them.

use std::{
    collections::{HashMap, VecDeque},
    panic::Location,
    ptr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use collectives_core::Rank;

use crate::{
    comm_state::EndShared,
    error::Failure,
    footprint,
    op::{Factor, Kind, Op},
    process::{
        board::{Board, End, Issued, Part, Progress, Seat, Told, Track},
        peer::{Peer, Process, Token},
        segment::Segment,
    },
    schedule::OpKey,
    site::Site,
    slab::Key,
    state::{Arrival, Owner},
    sync::lock,
};

/// The part that users' threads share with the engine.
pub(crate) struct Joint {
    /// Tells it from all others, in all processes.
    pub(crate) token: Token,
    pub(crate) board: Board,
    pub(crate) process: Arc<Process>,
    /// By rank.
    pub(crate) peers: Box<[Arc<Peer>]>,
    /// By rank: whether it is one of this process's.
    here: Box<[bool]>,
    /// One of this process's ranks, in whose name it claims operations.
    own: u32,
    /// By rank: ids for growing that it has used.
    pub(crate) grown: Box<[AtomicU64]>,
    /// Shrinks so far, by rank and list.
    pub(crate) shrinks: Mutex<HashMap<(u32, Vec<Rank>), u64>>,
    /// Shrinks that nothing comes of, by the rank that waits in it, and why.
    called_off: Mutex<HashMap<u32, Failure>>,
}

/// The engine's part.
pub(crate) struct Across {
    pub(crate) joint: Arc<Joint>,
    /// Operations that wait for room on the board, in order.
    pub(crate) stalled: VecDeque<Arrival>,
    staged: HashMap<(u32, Kind, u32, u64), Staged>,
    /// Ranges that were for copies, and may be again: new ones cost more than the copies, as the system
    /// clears their pages.
    idle: Vec<(u64, usize)>,
    /// By rank: whether its process has ended.
    dead: Box<[bool]>,
}

/// Copies of an operation's buffers that other processes can reach.
struct Staged {
    /// Ranges of the segment: offset and length.
    ranges: Vec<(u64, usize)>,
    /// What is copied back: from, to, bytes.
    back: Option<(*const u8, *mut u8, usize)>,
}

// SAFETY: the pointers are into the segment, which is this process's, and to the caller's buffer,
// which is the engine's until the stream has passed the operation.
unsafe impl Send for Staged {}

impl Joint {
    pub(crate) fn new(
        token: Token,
        board: Board,
        process: Arc<Process>,
        peers: Vec<Arc<Peer>>,
    ) -> Self {
        let own = peers.iter().position(|peer| peer.is_own()).unwrap_or(0) as u32;
        let here = peers.iter().map(|peer| peer.is_own()).collect();
        let grown = peers.iter().map(|_| AtomicU64::new(0)).collect();
        let (shrinks, called_off) = (Mutex::default(), Mutex::default());
        let peers = peers.into();
        Self { token, board, process, peers, here, own, grown, shrinks, called_off }
    }

    /// Whether a rank is one of this process's.
    #[inline]
    pub(crate) fn is_here(&self, rank: usize) -> bool {
        self.here[rank]
    }

    /// The other processes.
    pub(crate) fn others(&self) -> impl Iterator<Item = &Arc<Peer>> {
        self.peers.iter().filter(|peer| !peer.is_own())
    }

    /// Has all processes look at the board, this one too.
    pub(crate) fn ring_all(&self) {
        self.peers.iter().for_each(|peer| peer.bell().ring());
    }

    /// Takes an operation that is ready.
    #[inline]
    pub(crate) fn claim(&self, track: &Track<'_>, number: u64) -> bool {
        track.claim(number, self.own)
    }

    /// The number of the track on which an operation meets its peers.
    #[inline]
    pub(crate) fn track_of(&self, op: &Op) -> usize {
        match op.kind {
            Kind::Send => self.board.messages(op.rank, op.other),
            Kind::Recv => self.board.messages(op.other, op.rank),
            _ => Board::COLLECTIVES,
        }
    }

    /// Whether a rank has published its part of what `op` meets.
    pub(crate) fn has_published(&self, rank: u32, op: &Op) -> bool {
        let track = self.board.track(self.track_of(op));
        let party = match op.kind {
            _ if !op.kind.is_point_to_point() => rank as usize,
            // A rank that sends to itself has both sides.
            Kind::Send => usize::from(rank == op.other),
            _ => usize::from(rank != op.other),
        };
        track.is_published(party, op.sequence)
    }

    /// Whether another process has published its part of what an operation of this one meets.
    pub(crate) fn is_awaited(&self, key: &OpKey) -> bool {
        let published =
            |track: usize, party: usize| self.board.track(track).is_published(party, key.sequence);
        match key.message() {
            None => (0..self.peers.len())
                .any(|rank| !self.is_here(rank) && published(Board::COLLECTIVES, rank)),
            Some((true, to)) => {
                !self.is_here(to as usize) && published(self.board.messages(key.rank, to), 1)
            }
            Some((false, from)) => {
                !self.is_here(from as usize) && published(self.board.messages(from, key.rank), 0)
            }
        }
    }

    /// Whether `rank` waits for an id for growing that somebody has to make, and all who could are
    /// there.
    pub(crate) fn lacks_grow_id(&self, rank: u32) -> bool {
        let (growth, ranks) = (self.board.growth(), 0..self.peers.len() as u32);
        let gone = |rank: u32| self.board.seat(rank).has(Seat::DEPARTED | Seat::ABORTED);
        let used = self.grown[rank as usize].load(Ordering::SeqCst);
        let all_wait = growth.waiting.load(Ordering::SeqCst) >= self.peers.len() as u64;
        growth.made.load(Ordering::SeqCst) <= used && !all_wait && !ranks.into_iter().any(gone)
    }

    /// Ranks that have not come to the shrink in which `rank` waits under a mark, as long as they
    /// still can; and those that have.
    pub(crate) fn missing_of_shrink(&self, rank: u32, mark: u64) -> Option<(Vec<u32>, Vec<u32>)> {
        let seat = |rank: u32| self.board.seat(rank);
        let waits = |rank: u32| self.board.shrinks_as(rank) != 0;
        // Also one that has left again: it has seen that all came, or somebody will.
        let came = |rank: u32| seat(rank).shrink.load(Ordering::SeqCst) == mark;
        if !(waits(rank) && came(rank)) {
            return None;
        }
        let excluded = self.board.excluded(rank);
        let stays = |rank: &u32| {
            excluded[*rank as usize / 64].load(Ordering::SeqCst) >> (rank % 64) & 1 == 0
        };
        let ranks = 0..self.peers.len() as u32;
        let (here, missing): (Vec<_>, Vec<_>) = ranks.filter(stays).partition(|&rank| came(rank));
        let gone = |&rank: &u32| seat(rank).has(Seat::DEPARTED | Seat::ABORTED);
        (!missing.is_empty() && !missing.iter().any(gone)).then_some((missing, here))
    }

    /// Ends the shrink with this mark for this process's ranks that have come to it.
    pub(crate) fn call_off(&self, mark: u64, failure: &Failure) {
        for rank in (0..self.peers.len() as u32).filter(|&rank| self.is_here(rank as usize)) {
            if self.board.seat(rank).shrink.load(Ordering::SeqCst) == mark {
                lock(&self.called_off).insert(rank, failure.clone());
            }
        }
        self.close_shrink(mark);
    }

    /// The shrink with this mark is over, for all who came to it: whoever hears of it first may begin
    /// another one, with which those who have not heard yet have no quarrel.
    pub(crate) fn close_shrink(&self, mark: u64) {
        for rank in 0..self.peers.len() as u32 {
            let seat = self.board.seat(rank);
            // In this order: who has begun another one said that first, and has another turn.
            let turn = seat.shrinks_as.load(Ordering::SeqCst);
            if seat.shrink.load(Ordering::SeqCst) == mark {
                let (order, failed) = (Ordering::SeqCst, Ordering::SeqCst);
                let _ = seat.shrinks_as.compare_exchange(turn, 0, order, failed);
            }
        }
    }

    /// Why nothing comes of the shrink in which `rank` waits, if so.
    pub(crate) fn called_off(&self, rank: u32) -> Option<Failure> {
        lock(&self.called_off).get(&rank).cloned()
    }

    /// Forgets that.
    pub(crate) fn begin_anew(&self, rank: u32) {
        lock(&self.called_off).remove(&rank);
    }

    /// Ranks that have not come to split number `round`; `None` where all have.
    pub(crate) fn missing(&self, round: u64) -> Option<Vec<u32>> {
        let came = |rank: &u32| self.board.seat(*rank).splits.load(Ordering::SeqCst) > round;
        let missing: Vec<_> = (0..self.peers.len() as u32).filter(|rank| !came(rank)).collect();
        (!missing.is_empty()).then_some(missing)
    }

    /// How many operations a rank that has left has issued, of those that `op` is one of.
    pub(crate) fn issued(&self, rank: u32, op: &Op) -> u64 {
        self.board.issued(rank, self.track_of(op), op.kind == Kind::Recv)
    }

    /// Says that a rank of this process leaves.
    pub(crate) fn depart(&self, end: &EndShared) {
        let read = |counters: &[AtomicU64]| -> Vec<u64> {
            counters.iter().map(|counter| counter.load(Ordering::Relaxed)).collect()
        };
        let (sent, received) = (read(&end.sent), read(&end.received));
        let collectives = end.sequence.load(Ordering::Relaxed);
        let issued = Issued { collectives, sent: &sent, received: &received };
        self.board.depart(end.info.rank.get(), issued);
    }

    /// Another process's part of an operation that is ready, as if it were here. `None` where it makes
    /// no sense.
    #[inline]
    pub(crate) fn arrival(
        &self,
        comm: Key,
        track: usize,
        party: usize,
        number: u64,
    ) -> Option<Arrival> {
        let part = self.board.track(track).part(party, number)?;
        let rank = self.rank_of(track, party);
        let wanted = match (track, party) {
            (Board::COLLECTIVES, _) => !part.kind.is_point_to_point(),
            (_, 0) => part.kind == Kind::Send && part.other == self.rank_of(track, 1),
            _ => part.kind == Kind::Recv && part.other == self.rank_of(track, 0),
        };
        let mut op = Op {
            comm,
            rank,
            other: part.other,
            kind: part.kind,
            dtype: part.dtype,
            reduction: part.reduction,
            count: usize::try_from(part.count).ok()?,
            send: ptr::null(),
            recv: ptr::null_mut(),
            factor: part.factor.map_or(Factor::None, Factor::Value),
            sequence: number,
            site: Site::UNKNOWN,
        };
        let (sent, received) = footprint::extents(&op, self.peers.len())?;
        let peer = &self.peers[rank as usize];
        if sent > 0 {
            op.send = peer.translate(part.send?, sent)?;
        }
        if received > 0 {
            op.recv = peer.translate(part.recv?, received)?;
        }
        wanted.then_some(Arrival { op, owner: Owner::Elsewhere })
    }

    /// The rank that is a party of a track.
    #[inline]
    pub(crate) fn rank_of(&self, track: usize, party: usize) -> u32 {
        let size = self.peers.len();
        match (track.checked_sub(1), party) {
            (None, party) => party as u32,
            (Some(pair), 0) => (pair / size) as u32,
            (Some(pair), _) => (pair % size) as u32,
        }
    }

    /// What another process says of an operation that is claimed.
    pub(crate) fn part_of(&self, op: &Op) -> Option<Part> {
        let party = match op.kind {
            Kind::Send => 0,
            Kind::Recv => 1,
            _ => op.rank as usize,
        };
        self.board.track(self.track_of(op)).part(party, op.sequence)
    }

    /// The place of a call in another process.
    pub(crate) fn site_of(&self, rank: u32, part: &Part) -> Site {
        let peer = &self.peers[rank as usize];
        let read = |offset: u64, bytes: usize| -> Option<Vec<u8>> {
            let start = peer.translate(offset, bytes)?;
            // SAFETY: in range of the peer's memory; volatile, since the peer may change it.
            let byte = |at: usize| unsafe { start.wrapping_add(at).read_volatile() };
            Some((0..bytes).map(byte).collect())
        };
        let read_all = || {
            let head = read(part.site, SITE_HEAD)?;
            let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| head[at + i]));
            let (line, column, length) = (word(0), word(4), word(8) as usize);
            if length > SITE_BYTES {
                return None;
            }
            let file = read(part.site + SITE_HEAD as u64, length)?;
            Some(Site::elsewhere(String::from_utf8_lossy(&file).into(), line, column))
        };
        read_all().unwrap_or(Site::UNKNOWN)
    }
}

/// Writes a place down where other processes can read it. It stays as long as the segment. `None`
/// where that has no room.
pub(crate) fn write_site(process: &Process, location: &Location<'_>) -> Option<u64> {
    let file = &location.file().as_bytes()[..location.file().len().min(SITE_BYTES)];
    let words = [location.line(), location.column(), file.len() as u32];
    let mut text: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    text.extend(file);
    let offset = process.segment().alloc(text.len(), 1)?;
    let to = process.own().translate(offset, text.len())?;
    // SAFETY: the range was just handed out, and lies in the segment.
    unsafe { to.copy_from_nonoverlapping(text.as_ptr(), text.len()) };
    Some(offset)
}

/// Line, column and length of the file's name, which follows.
const SITE_HEAD: usize = 12;
const SITE_BYTES: usize = 4096;

/// How an operation stands in a stream, for others.
pub(crate) struct Stance {
    pub(crate) follows: bool,
    pub(crate) in_graph: bool,
    pub(crate) stream: u64,
    pub(crate) site: u64,
    pub(crate) sum: Option<u64>,
}

impl Across {
    pub(crate) fn new(joint: Arc<Joint>) -> Self {
        let dead = joint.peers.iter().map(|peer| peer.has_ended()).collect();
        Self { joint, stalled: VecDeque::new(), staged: HashMap::new(), idle: Vec::new(), dead }
    }

    /// Says how the communicator ends, and answers how it does: as somebody else has said before, or
    /// so.
    pub(crate) fn tell(&self, failure: Failure, except: Option<Rank>) -> (Failure, Option<Rank>) {
        let board = &self.joint.board;
        if board.tell(End::Failed, &failure.tell(except)) {
            return (failure, except);
        }
        match board.told(End::Failed) {
            Some(told) => (Failure::told(&told), told.except),
            // Being written.
            None => (failure, except),
        }
    }

    pub(crate) fn is_dead(&self, rank: u32) -> bool {
        self.dead.get(rank as usize).copied().unwrap_or(false)
    }

    pub(crate) fn dead(&self) -> &[bool] {
        &self.dead
    }

    pub(crate) fn mark_dead(&mut self, rank: usize) {
        self.dead[rank] = true;
    }

    /// A rank's part of an operation, where other processes can reach its memory as it is, and its
    /// scalar is known.
    #[inline]
    pub(crate) fn part_in_place(&self, op: &Op, stance: &Stance) -> Option<Part> {
        let (sent, received) = footprint::extents(op, self.joint.peers.len())?;
        let place = |at: usize, bytes: usize| match bytes {
            0 => Some(None),
            bytes => self.offset(at, bytes).map(Some),
        };
        let factor = match op.factor {
            Factor::None => None,
            Factor::Value(value) => Some(value),
            Factor::At(_) => return None,
        };
        let (send, recv) = (place(op.send.addr(), sent)?, place(op.recv.addr(), received)?);
        Some(part(op, stance, send, recv, factor))
    }

    #[inline]
    fn offset(&self, at: usize, bytes: usize) -> Option<u64> {
        let segment = self.joint.process.segment();
        let offset = at.checked_sub(segment.base().addr())?;
        let end = offset.checked_add(bytes)?;
        (end <= segment.bytes()).then_some(offset as u64)
    }

    /// Writes a rank's part of an operation to the board, if there is room.
    ///
    /// # Errors
    /// Where memory that others cannot reach is to be copied, and the segment is full.
    #[inline]
    pub(crate) fn publish(&mut self, op: &Op, stance: &Stance) -> Result<bool, Failure> {
        let joint = Arc::clone(&self.joint);
        let track = joint.board.track(joint.track_of(op));
        if !track.has_room(op.sequence) {
            return Ok(false);
        }
        let part = match self.part_in_place(op, stance) {
            Some(part) => part,
            None => self.part_of_copies(op, stance)?,
        };
        let party = match op.kind {
            Kind::Send => 0,
            Kind::Recv => 1,
            _ => op.rank as usize,
        };
        track.publish(party, op.sequence, &part);
        Ok(true)
    }

    /// As [`part_in_place`](Self::part_in_place), with copies of what others cannot reach.
    #[cold]
    fn part_of_copies(&mut self, op: &Op, stance: &Stance) -> Result<Part, Failure> {
        let extents = footprint::extents(op, self.joint.peers.len());
        let (sent, received) = extents.unwrap_or((0, 0));
        let place = |at: usize, bytes: usize| self.offset(at, bytes).filter(|_| bytes > 0);
        let (mut send, mut recv) = (place(op.send.addr(), sent), place(op.recv.addr(), received));
        if send.is_none() && sent > 0 || recv.is_none() && received > 0 {
            (send, recv) = self.stage(op, (send, sent), (recv, received))?;
        }
        let factor = match op.factor {
            Factor::None => None,
            // SAFETY: the operation is at the head of its stream, so the scalar can be read (the
            // contract of `create_pre_mul_sum`).
            factor => Some(unsafe { factor.read(op.dtype) }),
        };
        Ok(part(op, stance, send, recv, factor))
    }

    /// Copies what others cannot reach to where they can.
    #[cold]
    fn stage(
        &mut self,
        op: &Op,
        (mut send, sent): (Option<u64>, usize),
        (mut recv, received): (Option<u64>, usize),
    ) -> Result<(Option<u64>, Option<u64>), Failure> {
        let process = Arc::clone(&self.joint.process);
        let mut staged = Staged { ranges: Vec::new(), back: None };
        let mut range = |bytes: usize| {
            let (at, length) = range(process.segment(), &mut self.idle, bytes)
                .ok_or_else(|| no_room(op, bytes))?;
            staged.ranges.push((at, length));
            let start = process.own().translate(at, bytes).ok_or_else(|| no_room(op, bytes))?;
            Ok((at, start))
        };
        let mut place = || {
            if send.is_none() && sent > 0 {
                let (at, to) = range(sent)?;
                // SAFETY: the caller's buffer is the engine's, and the range was just handed out.
                unsafe { to.copy_from_nonoverlapping(op.send, sent) };
                send = Some(at);
            }
            if recv.is_none() && received > 0 {
                let (at, from) = range(received)?;
                recv = Some(at);
                return Ok(Some((from.cast_const(), op.recv, received)));
            }
            Ok(None)
        };
        let back = place();
        match back {
            Ok(back) => staged.back = back,
            Err(failure) => {
                self.free(staged);
                return Err(failure);
            }
        }
        self.staged.insert(name(op), staged);
        Ok((send, recv))
    }

    /// Another process has done an operation: what it received comes to where it belongs.
    #[inline]
    pub(crate) fn bring_back(&self, op: &Op) {
        if self.staged.is_empty() {
            return;
        }
        if let Some(Staged { back: Some((from, to, bytes)), .. }) = self.staged.get(&name(op)) {
            // SAFETY: the range is the operation's until it is unstaged, and the caller's buffer the
            // engine's until the stream has passed.
            unsafe { to.copy_from_nonoverlapping(*from, *bytes) };
        }
    }

    /// An operation is over, and nobody else uses its copies.
    #[inline]
    pub(crate) fn unstage(&mut self, op: &Op) {
        if !self.staged.is_empty()
            && let Some(staged) = self.staged.remove(&name(op))
        {
            self.free(staged);
        }
    }

    /// Keeps ranges for the next copies, up to a bound.
    fn free(&mut self, staged: Staged) {
        let segment = self.joint.process.segment();
        let most = MOST_IDLE.min(segment.bytes() / 8);
        for (at, bytes) in staged.ranges {
            let idle: usize = self.idle.iter().map(|&(_, bytes)| bytes).sum();
            if bytes <= most - idle {
                self.idle.push((at, bytes));
            } else {
                segment.free(at, bytes);
            }
        }
    }

    /// Whether a rank of another process has not issued its side of `op`, or will not any more.
    pub(crate) fn lacks(&self, rank: u32, op: &Op, has_left: bool) -> bool {
        if self.is_dead(rank) {
            return !self.joint.has_published(rank, op);
        }
        !has_left || self.joint.issued(rank, op) <= op.sequence
    }

    /// Drops an operation that nobody has claimed who lives. The answer is what has become of it.
    pub(crate) fn drop(&self, op: &Op) -> Progress {
        let track = self.joint.board.track(self.joint.track_of(op));
        match track.drop_open(op.sequence) {
            Progress::Claimed(by) if self.is_dead(by) => {
                track.drop_claimed(op.sequence);
                Progress::Dropped
            }
            other => other,
        }
    }

    /// What has become of an operation that a rank of this process has published.
    #[inline]
    pub(crate) fn progress(&self, op: &Op) -> Progress {
        self.joint.board.track(self.joint.track_of(op)).progress(op.sequence)
    }
}

impl Drop for Across {
    fn drop(&mut self) {
        let staged = self.staged.values().flat_map(|staged| &staged.ranges);
        for &(at, bytes) in staged.chain(&self.idle) {
            self.joint.process.segment().free(at, bytes);
        }
    }
}

#[inline]
fn part(
    op: &Op,
    stance: &Stance,
    send: Option<u64>,
    recv: Option<u64>,
    factor: Option<[u8; 8]>,
) -> Part {
    Part {
        kind: op.kind,
        dtype: op.dtype,
        reduction: op.reduction,
        follows: stance.follows,
        in_graph: stance.in_graph,
        other: op.other,
        count: op.count as u64,
        send,
        recv,
        factor,
        site: stance.site,
        stream: stance.stream,
        sum: stance.sum,
    }
}

fn name(op: &Op) -> (u32, Kind, u32, u64) {
    (op.rank, op.kind, op.other, op.sequence)
}

/// A range of at least so many bytes, with its length: an idle one that is not much larger, or a new
/// one. `None` where there is no room, even without the idle ones.
fn range(segment: &Segment, idle: &mut Vec<(u64, usize)>, bytes: usize) -> Option<(u64, usize)> {
    if let Some(index) = idle.iter().position(|&(_, has)| has >= bytes && has / 2 <= bytes) {
        return Some(idle.swap_remove(index));
    }
    let new = segment.alloc(bytes, 1).or_else(|| {
        idle.drain(..).for_each(|(at, bytes)| segment.free(at, bytes));
        segment.alloc(bytes, 1)
    });
    new.map(|at| (at, bytes))
}

/// Bytes of ranges that a communicator keeps for copies.
const MOST_IDLE: usize = 512 << 20;

#[cold]
fn no_room(op: &Op, bytes: usize) -> Failure {
    let message = format!(
        "rank {}'s {} #{} ({}) uses host memory, and the device memory has no {bytes} bytes for a \
         copy that other processes can reach",
        op.rank,
        op.kind.name(),
        op.sequence,
        op.site
    );
    Failure::new(collectives_core::ErrorKind::OutOfMemory, message)
        .with_hint("give the mock more device memory, or use memory of the device")
}

impl Failure {
    /// As other processes are told.
    pub(crate) fn tell(&self, except: Option<Rank>) -> Told {
        let (message, hint) = (self.message().into(), self.hint().map(Into::into));
        // Only memory could run out, which there is no answer for.
        let data = self.verdict().map(|verdict| serde_json::to_vec(verdict).unwrap_or_default());
        Told { kind: self.kind(), message, hint, except, data: data.unwrap_or_default() }
    }

    /// As another process has told.
    pub(crate) fn told(told: &Told) -> Self {
        let mut failure = Self::new(told.kind, &*told.message);
        if let Some(hint) = &told.hint {
            failure = failure.with_hint(&**hint);
        }
        match serde_json::from_slice(&told.data) {
            Ok(verdict) => failure.with_verdict(verdict),
            Err(_) => failure,
        }
    }
}

#[cfg(all(test, not(any(loom, miri))))] // Miri has no memfd
mod tests {
    use collectives_core::DType;

    use super::*;
    use crate::{op::Reduction, process::shared::Shared};

    /// Rank 0 is this process, rank 1 another.
    fn joint() -> Joint {
        let (process, other) = (Process::new(4 << 20).unwrap(), Process::new(4 << 20).unwrap());
        let peer = process.adopt(other.card().unwrap()).unwrap();
        let (memory, _) = Shared::create("collectives-test", Board::bytes(2).unwrap()).unwrap();
        let board = Board::new(Arc::new(memory), 0, 2).unwrap();
        let peers = vec![Arc::clone(process.own()), peer];
        Joint::new([7; 16], board, Arc::new(process), peers)
    }

    #[test]
    fn a_message_that_names_another_rank_makes_no_sense() {
        let joint = joint();
        let track = joint.board.messages(1, 0);
        let send = |other| Part {
            kind: Kind::Send,
            dtype: DType::U8,
            reduction: Reduction::None,
            follows: false,
            in_graph: false,
            other,
            count: 8,
            send: Some(256),
            recv: None,
            factor: None,
            site: 0,
            stream: 0,
            sum: None,
        };
        for (number, (other, makes_sense)) in
            [(0, true), (1, false), (9, false)].into_iter().enumerate()
        {
            let number = number as u64;
            joint.board.track(track).publish(0, number, &send(other));
            let arrival = joint.arrival(Key { index: 0, generation: 1 }, track, 0, number);
            assert_eq!(arrival.is_some(), makes_sense, "to rank {other}");
        }
    }
}
