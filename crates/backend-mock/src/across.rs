//! Operations whose ranks are in other processes: how they are published, done and ended.
//!
//! The rules of [`crate::state`] hold here too; only the place where operations meet is another: a
//! board that all processes see ([`crate::process::board`]). An operation of such a communicator
//!
//! 1. arrives as any other, is noted in its communicator, and published on the board;
//! 2. takes with it those that stand directly behind it in its stream, which are published ahead;
//! 3. is done by the process that published the last part of it, with what the others published in
//!    place of what arrived here ([`State::do_ready`]);
//! 4. is ended here when this process has done it, or looks at the board after another has
//!    ([`State::look_across`]).
//!
//! A process looks when its bell was rung. Bells of others are rung when the lock is released.

use std::{
    collections::{BTreeMap, HashMap},
    panic::Location,
    sync::Arc,
};

use collectives_core::{ErrorKind, Rank};

use crate::{
    comm_state::Run,
    error::Failure,
    joint::{Joint, Stance, write_site},
    op::{Kind, Op},
    process::{
        board::{self, Board, End, Progress, Seat, Track},
        peer::{Peer, Process, Token},
    },
    slab::Key,
    state::{AT_ONCE_BYTES, Arrival, Job, Owner, State},
    stream::Entry,
    transfer::Transfer,
    verdict::list,
};

/// What an engine has whose communicators reach into other processes.
pub(crate) struct Reach {
    pub(crate) process: Arc<Process>,
    /// The bell's state at the last look.
    seen: u32,
    /// Whether there is more to look at than the bell tells.
    again: bool,
    comms: Vec<Key>,
    /// Communicators by their token.
    pub(crate) known: HashMap<Token, Key>,
    /// Who has to look at a board.
    pub(crate) rings: Vec<Arc<Peer>>,
    /// Where places of calls are written down.
    sites: HashMap<*const Location<'static>, u64>,
    last_site: (*const Location<'static>, u64),
}

// SAFETY: the pointers are to places that live as long as the process, and are only compared.
unsafe impl Send for Reach {}

impl Reach {
    pub(crate) fn new(process: Arc<Process>) -> Self {
        let seen = process.own().bell().state();
        Self {
            process,
            seen,
            again: false,
            comms: Vec::new(),
            known: HashMap::new(),
            rings: Vec::new(),
            sites: HashMap::new(),
            last_site: (std::ptr::null(), 0),
        }
    }

    /// Where other processes can read a place.
    #[inline]
    fn site(&mut self, op: &Op) -> u64 {
        let Some(location) = op.site.here() else { return u64::MAX };
        let place = std::ptr::from_ref(location);
        if self.last_site.0 == place {
            return self.last_site.1;
        }
        let process = &self.process;
        let written = || write_site(process, location).unwrap_or(u64::MAX);
        let at = *self.sites.entry(place).or_insert_with(written);
        self.last_site = (place, at);
        at
    }

    /// Has those look who want to know what is published.
    fn ring_curious(&mut self, joint: &Joint) {
        for (rank, peer) in joint.peers.iter().enumerate() {
            if !joint.is_here(rank) && joint.board.seat(rank as u32).has(Seat::CURIOUS) {
                self.ring(peer);
            }
        }
    }

    /// Has another process look at its boards.
    fn ring(&mut self, peer: &Arc<Peer>) {
        if !self.rings.iter().any(|known| Arc::ptr_eq(known, peer)) {
            self.rings.push(Arc::clone(peer));
        }
    }
}

impl State {
    /// The processes that have ranks in this one's communicators.
    #[cfg_attr(
        not(target_os = "linux"),
        expect(dead_code, reason = "processes ask each other on Linux alone")
    )]
    pub(crate) fn others(&self) -> Vec<Arc<Peer>> {
        let keys = self.reach.iter().flat_map(|reach| &reach.comms);
        let comms = keys.filter_map(|&key| self.comms.get(key)?.across.as_ref());
        let peers = comms.flat_map(|across| across.joint.others());
        let known: BTreeMap<_, _> = peers.map(|peer| (peer.token(), peer)).collect();
        known.into_values().map(Arc::clone).collect()
    }

    /// A communicator was made whose ranks are in several processes.
    pub(crate) fn reach_out(&mut self, key: Key, joint: &Joint) {
        if let Some(reach) = &mut self.reach {
            reach.comms.push(key);
            reach.known.insert(joint.token, key);
        }
    }

    /// A communicator is no more.
    pub(crate) fn let_go_of(&mut self, key: Key) {
        if let Some(reach) = &mut self.reach {
            reach.comms.retain(|comm| *comm != key);
            reach.known.retain(|_, comm| *comm != key);
        }
    }

    /// Has the other processes of a communicator look at it.
    pub(crate) fn ring_all(&mut self, key: Key) {
        let (Some(reach), Some(comm)) = (&mut self.reach, self.comms.get(key)) else { return };
        for peer in comm.across.iter().flat_map(|across| across.joint.others()) {
            reach.ring(peer);
        }
    }

    /// One rank's operation heads its stream, and is to meet those of its peers on the board.
    pub(crate) fn arrive_across(&mut self, arrival: Arrival) {
        let op = arrival.op;
        if !self.comms[op.comm.index].await_across(arrival) {
            let failure = Failure::new(ErrorKind::InvalidUsage, "two threads use one communicator");
            self.fail_comm(op.comm, &failure, None);
            self.finish_failed(arrival);
            return;
        }
        if self.publish(&arrival, false) {
            self.follow_up(&arrival);
        }
        let comm = self.comms.get(op.comm).filter(|comm| !comm.broken && comm.departed > 0);
        if let Some(missing) =
            comm.filter(|comm| comm.waits(&op)).and_then(|c| c.departed_before(&op))
        {
            self.fail_departed(op.comm, missing, &op);
        }
    }

    /// An operation is on the board: others may come after it, and it may be ready.
    fn follow_up(&mut self, arrival: &Arrival) {
        let op = &arrival.op;
        if let Owner::Stream(stream) = arrival.owner {
            self.streams[stream].ahead = 1;
            self.publish_behind(stream);
        }
        board::settle();
        let across = self.comms.get(op.comm).and_then(|comm| comm.across.as_ref());
        if let Some(track) = across.map(|across| across.joint.track_of(op)) {
            self.do_ready(op.comm, track, op.sequence);
        }
    }

    /// Writes an operation to the board. `false` where that has to wait, or has failed.
    fn publish(&mut self, arrival: &Arrival, follows: bool) -> bool {
        let op = &arrival.op;
        let sum = self.sum_across(op);
        let Self { reach: Some(reach), comms, streams, units, .. } = self else { return false };
        let Some(across) = &mut comms[op.comm.index].across else { return false };
        let stream = match arrival.owner {
            Owner::Elsewhere => return false,
            Owner::Stream(stream) => stream,
            Owner::Unit(unit) => units[unit].streams[0],
        };
        let stream = &streams[stream];
        let (in_graph, handle) = (stream.is_branch, stream.shared.raw.bits() as u64);
        let stance = Stance { follows, in_graph, stream: handle, site: reach.site(op), sum };
        match across.publish(op, &stance) {
            Ok(true) => {
                reach.ring_curious(&across.joint);
                true
            }
            Ok(false) => {
                across.stalled.push_back(*arrival);
                false
            }
            Err(failure) => {
                self.fail_comm(op.comm, &failure, None);
                false
            }
        }
    }

    /// Publishes collectives that have come behind others that are published.
    pub(crate) fn run_ahead(&mut self, stream: u32) {
        if let Some(first) = self.publish_behind(stream) {
            board::settle();
            self.do_ready(first.comm, Board::COLLECTIVES, first.sequence);
        }
    }

    /// Publishes collectives that stand directly behind others that are published. The answer is the
    /// first of them.
    fn publish_behind(&mut self, stream: u32) -> Option<Op> {
        // With an adversary, each of them becomes the head first.
        if self.adversary.is_some() {
            return None;
        }
        let Self { reach: Some(reach), comms, streams, .. } = self else { return None };
        let state = &mut streams[stream];
        let first = state.ahead;
        let Some(Entry::Op(last)) = state.queue.get(first.checked_sub(1)?) else { return None };
        let mut last = *last;
        let comm = comms.get_mut(last.comm).filter(|comm| !comm.broken)?;
        let (across, run) = (comm.across.as_ref()?, &mut comm.ends[last.rank as usize].run);
        if last.kind.is_point_to_point() || !run.is_empty() && run.stream != stream {
            return None;
        }
        let track = across.joint.board.track(Board::COLLECTIVES);
        let (in_graph, handle) = (state.is_branch, state.shared.raw.bits() as u64);
        for entry in state.queue.range(first..) {
            let Entry::Op(op) = entry else { break };
            let is_next = op.comm == last.comm
                && op.rank == last.rank
                && op.sequence == last.sequence + 1
                && !op.kind.is_point_to_point();
            if !is_next || !track.has_room(op.sequence) {
                break;
            }
            let site = reach.site(op);
            let stance = Stance { follows: true, in_graph, stream: handle, site, sum: None };
            let Some(part) = across.part_in_place(op, &stance) else { break };
            track.publish(op.rank as usize, op.sequence, &part);
            if run.is_empty() {
                *run = Run { stream, next: op.sequence, end: op.sequence };
            }
            run.end += 1;
            state.ahead += 1;
            last = *op;
        }
        let Some(Entry::Op(op)) = state.queue.get(first).filter(|_| state.ahead > first) else {
            return None;
        };
        let op = *op;
        reach.ring_curious(&across.joint);
        Some(op)
    }

    /// Does the operation with this number, if it is ready and nobody else does it, and those behind
    /// it.
    pub(crate) fn do_ready(&mut self, key: Key, track: usize, number: u64) {
        let Some(comm) = self.comms.get(key) else { return };
        let Some(across) = &comm.across else { return };
        let joint = Arc::clone(&across.joint);
        let mut number = number;
        let mut settled = true;
        let mut has_done = false;
        loop {
            let slots = joint.board.track(track);
            let Some(comm) = self.comms.get_mut(key).filter(|comm| !comm.broken) else { break };
            match slots.progress(number) {
                Progress::Open => {}
                // Who did it may not have seen the next one, which came later.
                Progress::Done => {
                    number += 1;
                    continue;
                }
                // Who does it looks at the next one afterwards.
                Progress::Claimed(_) | Progress::Dropped => break,
            }
            if !slots.is_ready(number) {
                if settled {
                    break;
                }
                board::settle();
                settled = true;
                continue;
            }
            if track == Board::COLLECTIVES && comm.is_behind(number, &self.streams) {
                // What it follows was done by another process just now, and has not ended here.
                self.end_done(key);
                match self.comms.get(key) {
                    Some(comm) if !comm.is_behind(number, &self.streams) => continue,
                    _ => break,
                }
            }
            if !joint.claim(&slots, number) {
                continue;
            }
            let mut arrivals = comm.take_across(&joint, track, number);
            let parties = if track == Board::COLLECTIVES { joint.peers.len() } else { 2 };
            let mut broken = None;
            for party in 0..parties {
                let rank = joint.rank_of(track, party);
                if joint.is_here(rank as usize) {
                    let run = &mut comm.ends[rank as usize].run;
                    if track == Board::COLLECTIVES
                        && !run.is_empty()
                        && run.next == number
                        && let Some(&Entry::Op(op)) = self.streams[run.stream].queue.front()
                    {
                        run.next += 1;
                        arrivals.push(Arrival { op, owner: Owner::Stream(run.stream) });
                    }
                    continue;
                }
                match joint.arrival(key, track, party, number) {
                    Some(arrival) => arrivals.push(arrival),
                    None => broken = Some(rank),
                }
            }
            debug_assert!(broken.is_some() || arrivals.len() == parties, "an own part is missing");
            if let Some(rank) = broken {
                self.refuse_nonsense(key, &joint, rank);
            } else {
                let place = |arrival: &Arrival| match arrival.op.kind {
                    Kind::Send => 0,
                    Kind::Recv => 1,
                    _ => arrival.op.rank,
                };
                if !arrivals.is_sorted_by_key(place) {
                    arrivals.sort_unstable_by_key(place);
                }
                if let Some(verdict) = self.mismatch(&arrivals) {
                    let failure = self.pronounce(verdict);
                    self.fail_comm(key, &failure, None);
                } else if self.adversary.is_some() {
                    self.admit_across(&arrivals);
                }
            }
            if self.comms.get(key).is_none_or(|comm| comm.broken) {
                slots.drop_claimed(number);
                arrivals.into_iter().for_each(|arrival| self.finish_failed(arrival));
                self.ring_all(key);
                return;
            }
            let transfer = match <[Arrival; 2]>::try_from(&*arrivals) {
                Ok(pair) if track != Board::COLLECTIVES => Transfer::Exchange(pair),
                _ => Transfer::Collective(arrivals),
            };
            if transfer.traffic() > AT_ONCE_BYTES {
                self.jobs.push_back(Job { transfer, stream: None });
                break;
            }
            let (length, _) = transfer.span();
            // SAFETY: the callers' buffers are the engine's until the streams have passed, here and in
            // the processes that published them; and this thread, which claimed the operation, does
            // the whole span.
            unsafe { transfer.run(self.accumulation, 0..length) };
            slots.finish(number);
            has_done = true;
            match transfer {
                Transfer::Collective(mut done) => {
                    for arrival in done.drain(..) {
                        let Owner::Stream(stream) = arrival.owner else {
                            self.end_across(arrival);
                            continue;
                        };
                        // As `end_across`, but the stream is looked at once for the whole series.
                        if let Some(across) =
                            self.comms.get_mut(key).and_then(|c| c.across.as_mut())
                        {
                            across.unstage(&arrival.op);
                        }
                        self.discount(&arrival.op);
                        self.step(stream);
                        if self.worklist.last() != Some(&stream) {
                            self.worklist.push(stream);
                        }
                    }
                    if let Some(comm) = self.comms.get_mut(key) {
                        comm.keep_spare(done);
                    }
                }
                Transfer::Exchange(pair) => {
                    pair.into_iter().for_each(|arrival| self.end_across(arrival));
                }
                Transfer::Copy { .. } | Transfer::Fill { .. } => {}
            }
            number += 1;
            settled = false;
        }
        if has_done {
            self.ring_all(key);
            self.make_room(key);
        }
    }

    /// An operation is done, here or elsewhere: it ends in its stream.
    #[inline]
    fn end_across(&mut self, arrival: Arrival) {
        if let Owner::Elsewhere = arrival.owner {
            return;
        }
        if let Some(across) = self.comms.get_mut(arrival.op.comm).and_then(|c| c.across.as_mut()) {
            across.unstage(&arrival.op);
        }
        self.finish(arrival);
    }

    /// The data of an operation that was done without the lock has been moved.
    pub(crate) fn complete_across(&mut self, done: &[Arrival]) {
        let Some(Arrival { op, .. }) = done.first() else { return };
        let across = self.comms.get(op.comm).and_then(|comm| comm.across.as_ref());
        let Some(joint) = across.map(|across| Arc::clone(&across.joint)) else { return };
        let track = joint.track_of(op);
        joint.board.track(track).finish(op.sequence);
        self.ring_all(op.comm);
        done.iter().for_each(|&arrival| self.end_across(arrival));
        self.make_room(op.comm);
        board::settle();
        self.do_ready(op.comm, track, op.sequence + 1);
    }

    /// What a rank's process has published is not what any process of this library would.
    #[cold]
    fn refuse_nonsense(&mut self, key: Key, joint: &Joint, rank: u32) {
        let pid = joint.peers[rank as usize].pid();
        let message =
            format!("rank {rank} (pid {pid}) has published an operation that makes no sense");
        let hint = "do all processes run the same version of this library?";
        self.fail_comm(key, &Failure::new(ErrorKind::Internal, message).with_hint(hint), None);
    }

    /// Whether to look at the boards once more.
    #[inline]
    pub(crate) fn looks_again(&self) -> bool {
        self.reach.as_ref().is_some_and(|reach| reach.again)
    }

    /// Something is done here: where operations wait for room, they look for it.
    fn make_room(&mut self, key: Key) {
        let across = self.comms.get(key).and_then(|comm| comm.across.as_ref());
        if across.is_some_and(|across| !across.stalled.is_empty())
            && let Some(reach) = &mut self.reach
        {
            reach.again = true;
        }
    }

    /// Looks at the boards, if the bell was rung since the last time.
    #[inline]
    pub(crate) fn look_across(&mut self) {
        let Some(reach) = &mut self.reach else { return };
        let state = reach.process.own().bell().state();
        let rung = std::mem::replace(&mut reach.seen, state) != state;
        if !std::mem::take(&mut reach.again) && !rung {
            return;
        }
        for index in 0.. {
            let key = self.reach.as_ref().and_then(|reach| reach.comms.get(index).copied());
            let Some(key) = key else { break };
            self.look_at_board(key);
        }
    }

    pub(crate) fn look_at_board(&mut self, key: Key) {
        self.end_done(key);
        let Some(across) = self.comms.get(key).and_then(|comm| comm.across.as_ref()) else {
            return;
        };
        let joint = Arc::clone(&across.joint);
        self.learn_fate(key, &joint);
        for rank in 0..joint.peers.len() {
            let left = joint.board.seat(rank as u32).has(Seat::DEPARTED);
            if left && !joint.is_here(rank) {
                self.note_departure(key, Rank::new(rank as u32));
            }
        }
        if self.comms.get(key).is_some_and(|comm| comm.broken) {
            self.drop_waiting(key);
        } else {
            self.retry_stalled(key);
            self.want_published(key);
        }
    }

    /// Ends what other processes have done.
    fn end_done(&mut self, key: Key) {
        let mut done = std::mem::take(&mut self.done);
        if let Some(comm) = self.comms.get_mut(key) {
            comm.take_done(&mut done);
        }
        done.drain(..).for_each(|arrival| self.end_noted(arrival, true));
        self.done = done;
        let ranks = self.comms.get(key).map_or(0, |comm| comm.ends.len());
        for rank in 0..ranks {
            self.end_run(key, rank, |track, number| match track.progress(number) {
                Progress::Done => Some(true),
                _ => None,
            });
        }
    }

    /// Ends an operation that another process has done, or that nobody does any more.
    fn end_noted(&mut self, arrival: Arrival, is_done: bool) {
        let op = &arrival.op;
        let across = self.comms.get_mut(op.comm).and_then(|comm| comm.across.as_mut());
        if is_done {
            if let Some(across) = across {
                across.bring_back(op);
            }
            if self.adversary.is_some() {
                self.note_done_elsewhere(&arrival);
            }
            self.end_across(arrival);
        } else {
            if let Some(across) = across {
                across.unstage(op);
            }
            self.finish_failed(arrival);
        }
    }

    /// Ends collectives that were published ahead, in order, as long as `over` says that they are, and
    /// whether they were done.
    fn end_run(&mut self, key: Key, rank: usize, over: impl Fn(&Track<'_>, u64) -> Option<bool>) {
        let Some(comm) = self.comms.get(key) else { return };
        let Some(across) = comm.across.as_ref() else { return };
        let Run { stream, next, end } = comm.ends[rank].run;
        if next == end {
            return;
        }
        let joint = Arc::clone(&across.joint);
        let track = joint.board.track(Board::COLLECTIVES);
        for number in next..end {
            let head = self.streams[stream].queue.front();
            let Some(&Entry::Op(op)) = head.filter(
                |entry| matches!(entry, Entry::Op(op) if (op.comm, op.sequence) == (key, number)),
            ) else {
                // What stands before it is not over.
                break;
            };
            let Some(is_done) = over(&track, number) else { break };
            let mut others = Vec::new();
            if let Some(comm) = self.comms.get_mut(key) {
                comm.ends[rank].run.next += 1;
                // Other ranks of this process, where it was done just now.
                others = comm.pass_over(number);
            }
            others.drain(..).for_each(|arrival| self.end_noted(arrival, is_done));
            if let Some(comm) = self.comms.get_mut(key) {
                comm.keep_spare(others);
            }
            let arrival = Arrival { op, owner: Owner::Stream(stream) };
            if is_done {
                self.discount(&op);
                self.step(stream);
            } else {
                self.finish_failed(arrival);
            }
        }
        self.look_at(stream);
    }

    /// Ends what waits on the board of a communicator that is broken, but for what somebody has
    /// claimed, who may be writing to its buffers.
    pub(crate) fn drop_waiting(&mut self, key: Key) {
        let Some(comm) = self.comms.get_mut(key) else { return };
        let mut dropped = Vec::new();
        comm.take_dropped(&mut dropped);
        dropped.into_iter().for_each(|(arrival, is_done)| self.end_noted(arrival, is_done));
        let ranks = self.comms.get(key).map_or(0, |comm| comm.ends.len());
        for rank in 0..ranks {
            let across = self.comms.get(key).and_then(|comm| comm.across.as_ref());
            let Some(dead) = across.map(|across| across.dead().to_vec()) else { return };
            self.end_run(key, rank, |track, number| match track.drop_open(number) {
                Progress::Done => Some(true),
                Progress::Claimed(by) if !dead.get(by as usize).copied().unwrap_or(false) => None,
                Progress::Claimed(_) => {
                    track.drop_claimed(number);
                    Some(false)
                }
                Progress::Open | Progress::Dropped => Some(false),
            });
        }
    }

    /// Takes over what other processes say of the communicator's end.
    fn learn_fate(&mut self, key: Key, joint: &Joint) {
        let Some(comm) = self.comms.get(key) else { return };
        let (meeting, broken) = (Arc::clone(&comm.meeting), comm.broken);
        if meeting.lifecycle.revoked().is_none()
            && let Some(told) = joint.board.told(End::Revoked)
        {
            let failure = Failure::told(&told);
            meeting.lifecycle.set_revoked(failure.clone());
            self.break_comm(key, &failure, told.except);
        }
        if !broken && let Some(told) = joint.board.told(End::Failed) {
            let failure = Failure::told(&told);
            if let Some(verdict) = failure.verdict() {
                self.note_once(verdict);
            }
            self.break_comm(key, &failure, told.except);
        }
    }

    /// A rank of another process has left: what others wait for from it will never come.
    fn note_departure(&mut self, key: Key, rank: Rank) {
        let Some(comm) = self.comms.get_mut(key) else { return };
        if std::mem::replace(&mut comm.ends[rank.index()].departed, true) {
            return;
        }
        comm.departed += 1;
        if !comm.broken
            && let Some(op) = comm.waiting_for(rank)
        {
            self.fail_departed(key, rank, &op);
        }
        self.look_at_runs(key);
    }

    /// Has heads looked at that were published ahead, and may now wait in vain.
    fn look_at_runs(&mut self, key: Key) {
        let Some(comm) = self.comms.get(key) else { return };
        let streams = comm.ends.iter().filter(|end| !end.run.is_empty()).map(|end| end.run.stream);
        self.worklist.extend(streams);
    }

    /// The head of a stream, which was published ahead, has become one.
    #[inline]
    pub(crate) fn head_ahead(&mut self, stream: u32) {
        if let Some(&Entry::Op(op)) = self.streams[stream].queue.front()
            && let Some(comm) = self.comms.get(op.comm)
            && comm.departed > 0
            && !comm.broken
            && let Some(missing) = comm.departed_before(&op)
        {
            self.fail_departed(op.comm, missing, &op);
            return;
        }
        self.run_ahead(stream);
    }

    /// Publishes what found no room before.
    fn retry_stalled(&mut self, key: Key) {
        let across = self.comms.get_mut(key).and_then(|comm| comm.across.as_mut());
        let stalled = across.map(|across| std::mem::take(&mut across.stalled));
        for arrival in stalled.into_iter().flatten() {
            if self.publish(&arrival, false) {
                self.follow_up(&arrival);
            }
        }
    }

    /// A process has ended: communicators fail in which it still has a rank, and those that wait for
    /// what its ranks never issued.
    pub(crate) fn lose(&mut self, peer: &Peer, how: &str) {
        let comms = self.reach.as_ref().map_or_else(Vec::new, |reach| reach.comms.clone());
        for key in comms {
            // What it did last counts.
            self.look_at_board(key);
            let Some(comm) = self.comms.get_mut(key) else { continue };
            let Some(across) = &mut comm.across else { continue };
            let joint = Arc::clone(&across.joint);
            let own = |rank: &usize| joint.peers[*rank].token() == peer.token();
            let lost: Vec<usize> = (0..joint.peers.len()).filter(own).collect();
            if lost.is_empty() {
                continue;
            }
            lost.iter().for_each(|&rank| across.mark_dead(rank));
            let mut missed: Vec<u32> = Vec::new();
            for &rank in &lost {
                let rank = Rank::new(rank as u32);
                if !std::mem::replace(&mut comm.ends[rank.index()].departed, true) {
                    comm.departed += 1;
                    missed.push(rank.get());
                } else if comm.waiting_for(rank).is_some() {
                    missed.push(rank.get());
                }
            }
            // It may have died at work.
            missed.extend(comm.held_by_dead().filter(|rank| !missed.contains(rank)));
            comm.meeting.wake();
            self.look_at_runs(key);
            if missed.is_empty() {
                continue;
            }
            let verb = if missed.len() == 1 { "" } else { ", of one process," };
            let message = format!("{} (pid {}){verb} {how}", list("rank", &missed), peer.pid());
            let failure = Failure::new(ErrorKind::Remote, message)
                .with_hint("revoke the communicator and shrink it without the rank, or start anew");
            self.fail_comm(key, &failure, None);
        }
    }
}
