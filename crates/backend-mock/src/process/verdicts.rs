//! How processes find out together that nothing can happen any more.
//!
//! What one process knows is not enough: others may act, and it can't see whether they do. So a
//! process in which somebody waits, and that would be stuck if no other process ever acted, asks:
//!
//! 1. It asks all that it has met, and that have a rank in one of its communicators. Each has a *clerk*,
//!    a thread that answers for it whatever its own threads do: with a [`Snapshot`], with whether its
//!    threads kept still while that was taken, and with a *mark*, a sum over all that it relies on.
//! 2. It lays the snapshots side by side and judges. Of who did not answer in time, or did not keep
//!    still, nothing is known, so it may act.
//! 3. Where something is stuck it asks once more. Who answers with the same mark has not moved
//!    since; so at some moment between the last of the first answers and the first of the second ones,
//!    all of these were as they say. It judges again with those alone.
//! 4. It publishes what each of them has to do. Each does its part if its mark is still the same.
//!
//! What is stuck stays so, unless somebody gives up. So it does no harm when several processes find
//! out at once: the first ruling changes the marks, and the others are void. To save work, a
//! process that suspects something leaves the asking to the one with the lowest token among those that
//! it has met, for a while: it may be that one can't see what this one does.
//!
//! All this goes through [`Desk`]s, one for each process, in memory that the others map. But for the
//! count of questions, only its owner writes to it. Nothing on it is trusted: a snapshot is looked at
//! only where it is sound, and rulings name only what the process itself has told about.
//!
//! # Joins
//! Somebody may come to a join who has met nobody. So there is a verdict on it only where all are known
//! that could: a launcher has a [`Roster`] of them. Then a process asks all that are on it, and calls
//! the roll: each has ended, which is for good, or is among those that answered. Who has not come as
//! far as to answer, or cannot speak for all that it may have begun, may come yet.
//!
//! A join has no place of its own in memory that its processes share: who has come is what the
//! answers have in common. Who has been told that all have come says so before any of them goes on
//! ([`Snapshot::meetings`]); so there is no moment at which one has left a meeting that was made, and
//! another seems to wait for it there.
//!
//! A deadlock over processes of which none has met all the others is seen in jobs alone.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    bell::Bell,
    peer::{BLOCK_BYTES, End, Peer, Token},
    roster::Roster,
    shared::{Plain, Shared},
};
use crate::{
    asleep::Look,
    judge::Judge,
    scene::{Ended, Job, Scene},
    snapshot::Snapshot,
    sync::atomic::{AtomicU32, AtomicU64, Ordering, fence},
    verdict::{Action, Case, Verdict},
};

/// What a process says when it is asked.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Answer {
    /// Differs where anything has moved.
    pub(crate) mark: u64,
    /// Whether its threads kept still, so that what it says holds.
    pub(crate) is_sure: bool,
    pub(crate) snapshot: Snapshot,
}

/// By process. The order is the same for everybody, and so is what is made of it.
pub(crate) type Answers = BTreeMap<Token, Answer>;

/// What one process has to do.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Ruling {
    pub(crate) process: Token,
    /// If its mark is still this one.
    pub(crate) mark: u64,
    pub(crate) parts: Vec<Part>,
}

/// One verdict, or none where it is enough to send somebody away who is only polite.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Part {
    pub(crate) verdict: Option<Verdict>,
    pub(crate) actions: Vec<Action>,
}

impl Answer {
    /// `quiet` are the threads on whose rest the snapshot relies.
    pub(crate) fn new(snapshot: Snapshot, quiet: Option<&Look>, is_sure: bool) -> Self {
        let mut sum = DefaultHasher::new();
        // Only memory could run out, which there is no answer for.
        postcard::to_allocvec(&snapshot).unwrap_or_default().hash(&mut sum);
        quiet.hash(&mut sum);
        Self { mark: sum.finish(), is_sure, snapshot }
    }
}

/// The processes of a job, at one look.
#[derive(Clone, Debug)]
pub(crate) struct Roll {
    job: u128,
    /// By the launcher's number.
    calls: Vec<Call>,
}

/// What became of one.
#[derive(Clone, Debug)]
enum Call {
    /// Nothing more comes of it.
    Ended { pid: u32, end: End },
    /// It can be asked.
    Here(Token),
    /// It may do anything.
    Silent,
}

impl Roll {
    /// `None` where others than those on the roster may belong to the job.
    pub(crate) fn call(roster: &Roster) -> Option<Self> {
        let call = |seat: &super::roster::Seat| match (seat.pid(), seat.status()) {
            (Some(pid), status @ Some(_)) => Call::Ended { pid, end: End { status } },
            _ => seat.occupant().map_or(Call::Silent, Call::Here),
        };
        Some(Self { job: roster.job()?, calls: roster.seats().iter().map(call).collect() })
    }

    /// Those that can be asked, by their seats.
    pub(crate) fn here(&self) -> impl Iterator<Item = (usize, Token)> {
        self.calls.iter().enumerate().filter_map(|(seat, call)| match call {
            Call::Here(token) => Some((seat, *token)),
            Call::Ended { .. } | Call::Silent => None,
        })
    }

    /// Whether one that could be asked has ended since.
    pub(crate) fn has_left(&self, token: &Token, roster: &Roster) -> bool {
        let mut of_it = self.here().filter(|(_, here)| here == token);
        of_it.any(|(seat, _)| roster.seats().get(seat).is_some_and(|seat| seat.status().is_some()))
    }

    /// The job, where `speaks` holds for all that have not ended.
    pub(crate) fn answered(&self, speaks: impl Fn(&Token) -> bool) -> Option<Job> {
        let is_known = |call: &Call| match call {
            Call::Ended { .. } => true,
            Call::Here(token) => speaks(token),
            Call::Silent => false,
        };
        let ended = (0..).zip(&self.calls).filter_map(|(number, call)| match call {
            Call::Ended { pid, end } => Some(Ended { number, pid: *pid, how: end.to_string() }),
            Call::Here(_) | Call::Silent => None,
        });
        let job = || Job { number: self.job, ended: ended.collect() };
        self.calls.iter().all(is_known).then(job)
    }
}

/// Judges, with what is known of the job that this process belongs to. The rulings are empty where
/// everything can still happen.
pub(crate) fn rule(answers: &Answers, roll: Option<&Roll>) -> Vec<Ruling> {
    let sure: Vec<_> = answers.iter().filter(|(_, answer)| answer.is_sure).collect();
    let mut scene = Scene::new(sure.iter().map(|(_, answer)| answer.snapshot.clone()));
    scene.job = roll.and_then(|roll| {
        let in_job = |answer: &Answer| answer.is_sure && answer.snapshot.job == Some(roll.job);
        roll.answered(|token| answers.get(token).is_some_and(in_job))
    });
    let mut judge = Judge::new(&scene);
    if !judge.finds_stuck() {
        return Vec::new();
    }
    let ruling = |&(process, answer): &(&Token, &Answer)| Ruling {
        process: *process,
        mark: answer.mark,
        parts: Vec::new(),
    };
    let mut rulings: Vec<_> = sure.iter().map(ruling).collect();
    for part in judge.sentences() {
        let Case { verdict, actions } = Case::new(&judge, &part);
        for (process, ruling) in rulings.iter_mut().enumerate() {
            let own = actions.iter().filter(|(of, _)| *of == process);
            let actions: Vec<_> = own.map(|&(_, action)| action).collect();
            if !actions.is_empty() {
                ruling.parts.push(Part { verdict: verdict.clone(), actions });
            }
        }
    }
    rulings.retain(|ruling| !ruling.parts.is_empty());
    rulings
}

/// Those of the second answers that say the same as the first.
pub(crate) fn confirmed(first: &Answers, mut second: Answers) -> Answers {
    second.retain(|process, answer| {
        first.get(process).is_some_and(|first| first.is_sure && first.mark == answer.mark)
    });
    second
}

/// Where a process is asked, and answers.
pub(crate) struct Desk<'a> {
    front: &'a Front,
    answer: Paper<'a>,
    rulings: Paper<'a>,
}

/// What a desk begins with.
#[repr(C, align(64))]
struct Front {
    /// Questions so far, wrapping; anybody may ask.
    asked: AtomicU32,
    /// How many of them the answer is for.
    answered: AtomicU32,
    /// Since when somebody in the process has seemed to wait in vain: 0, or milliseconds of the
    /// system's clock.
    suspicion: AtomicU64,
    rest: [AtomicU64; 6],
    bell: Bell,
}

// SAFETY: made of atomic integers and of what is, to the last byte.
unsafe impl Plain for Front {}

impl<'a> Desk<'a> {
    /// The desk of a process: on its launcher's roster, where others can come to it that have never
    /// met it, or else in its block.
    pub(crate) fn of(peer: &'a Peer) -> Option<Self> {
        let on_roster = peer.exit().and_then(|exit| exit.desk());
        on_roster.or_else(|| Self::at(peer.block(), START))
    }

    pub(crate) fn at(block: &'a Shared, start: usize) -> Option<Self> {
        let paper = |start: usize| {
            let head = block.slice::<AtomicU32>(start, 2)?;
            let words = block.slice::<AtomicU64>(start + 64, PAPER_BYTES / 8)?;
            Some(Paper { stamp: &head[0], length: &head[1], words })
        };
        let answer = start + size_of::<Front>();
        let rulings = answer + 64 + PAPER_BYTES;
        Some(Self { front: block.at(start)?, answer: paper(answer)?, rulings: paper(rulings)? })
    }

    /// Wakes the clerk; also what the clerk sleeps on.
    pub(crate) fn bell(&self) -> &Bell {
        &self.front.bell
    }

    /// Asks. The answer to this is there when [`hear`](Self::hear) says so.
    pub(crate) fn ask(&self) -> u32 {
        let question = self.front.asked.fetch_add(1, Ordering::SeqCst).wrapping_add(1);
        self.bell().ring();
        question
    }

    /// What the process answers to a question; `None` where it has not yet. What makes no sense is
    /// no answer.
    pub(crate) fn hear(&self, question: u32) -> Option<Answer> {
        let answered = self.front.answered.load(Ordering::Acquire);
        let is_answered = answered.wrapping_sub(question) < u32::MAX / 2;
        let answer = is_answered.then(|| self.answer.read::<Answer>()).flatten();
        answer.filter(|answer| answer.snapshot.is_sound())
    }

    /// Answers all questions so far, if there are new ones. Only the owner's clerk calls.
    pub(crate) fn serve(&self, answer: impl FnOnce() -> Answer) {
        let asked = self.front.asked.load(Ordering::SeqCst);
        if asked != self.front.answered.load(Ordering::Relaxed) {
            self.answer.write(&answer());
            self.front.answered.store(asked, Ordering::Release);
        }
    }

    /// Publishes rulings. Only the owner calls, one thread at a time.
    pub(crate) fn publish(&self, rulings: &[Ruling]) {
        self.rulings.write(&rulings);
    }

    /// Changes when rulings are published.
    pub(crate) fn edition(&self) -> u32 {
        self.rulings.stamp.load(Ordering::Acquire)
    }

    /// The latest rulings for a process.
    pub(crate) fn ruling(&self, process: &Token) -> Option<Ruling> {
        let rulings = self.rulings.read::<Vec<Ruling>>()?;
        rulings.into_iter().find(|ruling| ruling.process == *process)
    }

    /// Says whether somebody here seems to wait in vain. Only the owner calls.
    pub(crate) fn suspect(&self, suspicious: bool) {
        let since = if suspicious { now() } else { 0 };
        if !suspicious || self.front.suspicion.load(Ordering::Relaxed) == 0 {
            self.front.suspicion.store(since, Ordering::Release);
        }
    }

    /// For how long somebody in the process has seemed to wait in vain.
    pub(crate) fn suspicion(&self) -> Option<Duration> {
        let since = self.front.suspicion.load(Ordering::Acquire);
        (since != 0).then(|| Duration::from_millis(now().saturating_sub(since)))
    }
}

/// Something that one process writes and others read, which may come upon each other.
struct Paper<'a> {
    /// Odd while it is written.
    stamp: &'a AtomicU32,
    /// In bytes.
    length: &'a AtomicU32,
    words: &'a [AtomicU64],
}

impl Paper<'_> {
    /// What does not fit is left out, and then there is nothing on it.
    fn write(&self, content: &impl Serialize) {
        let bytes = postcard::to_allocvec(content).unwrap_or_default();
        let bytes = if bytes.len() > 8 * self.words.len() { Vec::new() } else { bytes };
        let stamp = self.stamp.load(Ordering::Relaxed) | 1;
        self.stamp.store(stamp, Ordering::Relaxed);
        // Who reads a word of the new content sees the odd stamp afterwards.
        fence(Ordering::Release);
        self.length.store(bytes.len() as u32, Ordering::Relaxed);
        for (word, chunk) in self.words.iter().zip(bytes.chunks(8)) {
            let mut full = [0; 8];
            full[..chunk.len()].copy_from_slice(chunk);
            word.store(u64::from_ne_bytes(full), Ordering::Relaxed);
        }
        self.stamp.store(stamp.wrapping_add(1), Ordering::Release);
    }

    /// `None` where it is being written, or is not what it should be.
    fn read<T: DeserializeOwned>(&self) -> Option<T> {
        let stamp = self.stamp.load(Ordering::Acquire);
        let length = self.length.load(Ordering::Relaxed) as usize;
        let words = self.words.get(..length.div_ceil(8))?;
        let words = words.iter().flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes());
        let bytes: Vec<u8> = words.take(length).collect();
        fence(Ordering::Acquire);
        let is_whole = stamp.is_multiple_of(2) && self.stamp.load(Ordering::Relaxed) == stamp;
        postcard::from_bytes(&bytes).ok().filter(|_| is_whole)
    }
}

/// Asks processes, and takes the answers that come in time. Who has ended meanwhile is not waited for.
pub(crate) fn ask_all(
    desks: &BTreeMap<Token, Desk<'_>>,
    has_ended: impl Fn(&Token) -> bool,
) -> Answers {
    let ask = |(token, desk): (&Token, &Desk<'_>)| (*token, desk.ask());
    let mut open: Vec<_> = desks.iter().map(ask).collect();
    let (mut answers, until) = (Answers::new(), Instant::now() + PATIENCE);
    loop {
        open.retain(|(token, question)| {
            // Before the look at the desk: it may have answered last of all.
            let is_over = has_ended(token);
            let answer = desks.get(token).and_then(|desk| desk.hear(*question));
            let is_open = answer.is_none() && !is_over;
            answers.extend(answer.map(|answer| (*token, answer)));
            is_open
        });
        if open.is_empty() || Instant::now() >= until {
            return answers;
        }
        thread::sleep(PAUSE);
    }
}

/// Whether this process is to ask: one that is suspicious, too, and has a lower token, gets a while to
/// find out for both.
pub(crate) fn is_ours_to_ask(own: &Peer, others: &BTreeMap<Token, Desk<'_>>) -> bool {
    let suspicion = Desk::of(own).and_then(|desk| desk.suspicion());
    let patient = suspicion.is_none_or(|since| since < DEFERENCE);
    let mut before = others.range(..own.token());
    !(patient && before.any(|(_, desk)| desk.suspicion().is_some()))
}

/// Milliseconds of a clock that all processes share. Never 0.
fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    (now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000).max(1)
}

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_millis(50);
/// Between looks for answers.
const PAUSE: Duration = Duration::from_micros(200);
/// How long a process leaves it to another to ask.
const DEFERENCE: Duration = Duration::from_millis(150);

/// Where in a block the desk stands.
const START: usize = BLOCK_BYTES / 2;
/// Bytes of an answer, or of rulings.
const PAPER_BYTES: usize = 192 << 10;

/// Bytes of a desk.
pub(crate) const DESK_BYTES: usize =
    (size_of::<Front>() + 2 * (64 + PAPER_BYTES)).next_multiple_of(4096);

const _: () = assert!(START + DESK_BYTES <= BLOCK_BYTES);

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use collectives_core::{DType, ErrorKind};
    use proptest::prelude::*;

    use super::*;
    use crate::{
        Site, VerdictKind,
        asleep::Rest,
        op::{Kind, Reduction},
        slab::Key,
        snapshot::{Comm, End, Entry, For, Meeting, Op, Outside, Place, Stream, Thread, Wait},
    };

    const WORLD: u128 = 0xc0de;
    const JOB: u128 = 0x10b;

    /// A process with one thread, and one rank of a communicator of its rank's number and size.
    struct Made(Snapshot);

    impl Made {
        /// Its thread sleeps outside the library, and nobody else is there.
        fn new(rank: u32, size: u32) -> Self {
            let thread = Thread {
                number: 1,
                name: format!("main {rank}"),
                tid: Some(1),
                is_live: true,
                has_ended: false,
                devices: [0].into(),
                waiting: None,
                rest: Rest::Asleep,
            };
            let outside = Outside { acts: false, sleeps: true, is_unseen: false };
            let sites = vec![Site::from(std::panic::Location::caller())];
            let threads = vec![thread];
            let made = Self(Snapshot { outside, threads, sites, ..Snapshot::default() });
            made.member(WORLD, "world", rank, size)
        }

        /// It has a rank in one more communicator.
        fn member(mut self, token: u128, title: &str, rank: u32, size: u32) -> Self {
            let end = End {
                rank,
                device: 0,
                caller: Some(0),
                collectives: 0,
                sent: Vec::new(),
                received: Vec::new(),
            };
            let index = self.0.comms.len() as u32;
            self.0.comms.push(Comm {
                // Not the same as elsewhere.
                key: Key { index, generation: rank + 1 },
                token: Some(token),
                title: title.into(),
                size,
                is_broken: false,
                departed: Vec::new(),
                ends: vec![end],
            });
            self
        }

        /// It has issued an operation in communicator `comm`, on its one stream, and waits for all.
        fn issues(mut self, comm: u32, kind: Kind, peer: Option<u32>) -> Self {
            let end = &mut self.0.comms[comm as usize].ends[0];
            let (rank, sequence) = (end.rank, end.collectives);
            match (kind, peer) {
                (Kind::Send, Some(peer)) => end.sent.push((peer, 1)),
                (Kind::Recv, Some(peer)) => end.received.push((peer, 1)),
                _ => end.collectives += 1,
            }
            let op = Op {
                comm: Some(comm),
                rank,
                other: peer,
                kind,
                dtype: DType::F32,
                reduction: Reduction::None,
                count: 4,
                sequence: if kind.is_point_to_point() { 0 } else { sequence },
                site: 0,
            };
            if self.0.streams.is_empty() {
                self.0.streams.push(Stream {
                    key: Key { index: 0, generation: 1 },
                    device: 0,
                    handle: 0,
                    is_branch: false,
                    passed: 0,
                    is_started: true,
                    held_by: None,
                    queue: Vec::new(),
                });
            }
            self.0.streams[0].queue.push(Entry::Op(op));
            let entries = self.0.streams[0].queue.len();
            self.waits(For::Stream { stream: 0, entries }, "for the default stream of device 0")
        }

        fn waits(mut self, what: For, text: &str) -> Self {
            self.0.threads[0].waiting = Some(Wait {
                number: 1,
                what,
                text: text.into(),
                has_deadline: false,
                polls: false,
            });
            self
        }

        /// It waits in a split of communicator 0.
        fn splits(mut self, missing: &[u32]) -> Self {
            let Comm { key, size, ref title, .. } = self.0.comms[0];
            let text = format!("in split of '{title}'");
            self.0.meetings.push(Meeting {
                place: Place::Split { comm: key, round: 0 },
                visits: 0,
                token: None,
                name: None,
                size,
                missing: missing.to_vec(),
                came: Vec::new(),
            });
            self.waits(For::Split { comm: 0, meeting: 0 }, &text)
        }

        /// It waits in a shrink of communicator 0, to which these have come.
        fn shrinks(mut self, came: &[u32], missing: &[u32]) -> Self {
            let Comm { key, size, .. } = self.0.comms[0];
            self.0.meetings.push(Meeting {
                place: Place::Shrink { comm: key, number: 1 },
                visits: 0,
                token: None,
                name: None,
                size,
                missing: missing.to_vec(),
                came: came.to_vec(),
            });
            self.waits(For::Shrink { comm: 0, meeting: 0 }, "in shrink of 'world'")
        }

        /// It waits in a join, in a job.
        fn joins(mut self, rank: u32, size: u32) -> Self {
            self.0.job = Some(JOB);
            self.0.meetings.push(Meeting {
                place: Place::Join { id: rank.into() },
                visits: 1,
                token: Some(0x101),
                name: Some("trio".into()),
                size,
                missing: (0..size).filter(|&other| other != rank).collect(),
                came: Vec::new(),
            });
            self.waits(For::Join { meeting: 0, rank }, "in join")
        }

        fn answer(self) -> Answer {
            assert!(self.0.is_sound());
            Answer::new(self.0, None, true)
        }
    }

    fn answers(made: impl IntoIterator<Item = Made>) -> Answers {
        (0..).zip(made).map(|(process, made)| ([process; 16], made.answer())).collect()
    }

    /// The one verdict, which each of the processes is told.
    fn verdict(answers: &Answers) -> Verdict {
        verdict_in(answers, None)
    }

    /// As [`verdict`], in a job.
    fn verdict_in(answers: &Answers, roll: Option<&Roll>) -> Verdict {
        let rulings = rule(answers, roll);
        assert_eq!(rulings.len(), answers.len(), "{rulings:#?}");
        let verdicts: Vec<_> = rulings
            .iter()
            .map(|ruling| {
                assert_eq!(ruling.mark, answers[&ruling.process].mark);
                assert_eq!(ruling.parts.len(), 1);
                ruling.parts[0].verdict.clone().unwrap()
            })
            .collect();
        let texts: Vec<_> = verdicts.iter().map(ToString::to_string).collect();
        assert!(texts.windows(2).all(|pair| pair[0] == pair[1]));
        println!("{}", texts[0]);
        verdicts[0].clone()
    }

    fn crossed() -> Vec<Made> {
        let send_and_receive = |rank: u32| {
            let peer = Some(1 - rank);
            Made::new(rank, 2).issues(0, Kind::Send, peer).issues(0, Kind::Recv, peer)
        };
        vec![send_and_receive(0), send_and_receive(1)]
    }

    #[test]
    fn sends_that_cross() {
        let answers = answers(crossed());
        let verdict = verdict(&answers);
        assert_eq!(verdict.kind, VerdictKind::Cycle);
        assert!(verdict.to_string().contains("ranks 0, 1 wait for each other in 'world'"));
        assert_eq!(verdict.ranks.len(), 2);
        for ruling in rule(&answers, None) {
            // What each has to do is named as it is named there.
            let snapshot = &answers[&ruling.process].snapshot;
            let (stream, comm) = (snapshot.streams[0].key, snapshot.comms[0].key);
            let actions = [Action::FailStream { stream }, Action::FailComm { comm }];
            assert_eq!(ruling.parts[0].actions, actions);
        }
    }

    #[test]
    fn a_circle_of_three_processes() {
        // Process n waits for n + 1 in their communicator, which that one comes to only later.
        let pair = |one: u128, other: u128| 1 << one | 1 << other;
        let made = [0, 1, 2].map(|own: u128| {
            let (next, before) = ((own + 1) % 3, (own + 2) % 3);
            let made = Made::new(own as u32, 3)
                .member(pair(own, next), &format!("{own} and {next}"), 0, 2)
                .member(pair(before, own), &format!("{before} and {own}"), 1, 2);
            made.issues(1, Kind::AllReduce, None).issues(2, Kind::AllReduce, None)
        });
        let verdict = verdict(&answers(made));
        assert_eq!(verdict.kind, VerdictKind::Cycle);
        assert_eq!(verdict.communicators, ["0 and 1", "2 and 0", "1 and 2"]);
    }

    #[test]
    fn a_rank_that_never_comes_and_one_that_is_only_slow() {
        let world = |act: &dyn Fn(&mut Snapshot)| {
            let mut absent = Made::new(2, 3);
            act(&mut absent.0);
            let waits = |rank| Made::new(rank, 3).issues(0, Kind::AllReduce, None);
            answers([waits(0), waits(1), absent])
        };
        let stuck = world(&|_| ());
        let missing = verdict(&stuck);
        assert_eq!(missing.kind, VerdictKind::MissingRank);
        assert!(missing.ranks[2].doing.contains("thread 'main 2' sleeps outside the library"));
        let waiting = missing.ranks[0].operation.as_ref().unwrap();
        assert!(waiting.to_string().ends_with("waiting for rank 2"), "{waiting}");
        let ended = verdict(&world(&|absent| {
            absent.threads[0].is_live = false;
            absent.threads[0].has_ended = true;
        }));
        assert_eq!(ended.kind, VerdictKind::RankEnded);
        // Whatever speaks for it that it may come.
        assert!(rule(&world(&|slow| slow.threads[0].rest = Rest::Awake), None).is_empty());
        assert!(rule(&world(&|slow| slow.outside.acts = true), None).is_empty());
        assert!(rule(&world(&|slow| slow.outside.sleeps = false), None).is_empty());
        let unsure = |process: u8| {
            let mut answers = stuck.clone();
            answers.get_mut(&[process; 16]).unwrap().is_sure = false;
            rule(&answers, None)
        };
        assert!(unsure(2).is_empty(), "it did not keep still");
        // Of the others it is enough that they wait: what keeps one of them does not keep the rest.
        assert_eq!(unsure(1).len(), 2);
    }

    #[test]
    fn what_does_not_answer_may_act() {
        let mut one = answers(crossed());
        assert!(!rule(&one, None).is_empty());
        // Dead, too slow, or never asked.
        one.remove(&[1; 16]);
        assert!(rule(&one, None).is_empty());
        let is_suspicious = |snapshot| Judge::suspicious(&Scene::new([snapshot])).finds_stuck();
        assert!(is_suspicious(one.remove(&[0; 16]).unwrap().snapshot));
        assert!(!is_suspicious(Made::new(0, 2).0));
    }

    #[test]
    fn a_split_that_one_process_never_calls() {
        let splits = |rank| Made::new(rank, 3).splits(&[2]);
        let waits = Made::new(2, 3).issues(0, Kind::Recv, Some(0));
        let verdict = verdict(&answers([splits(0), splits(1), waits]));
        assert_eq!(verdict.kind, VerdictKind::SplitIncomplete);
        assert!(verdict.ranks[0].doing.contains("'main 0' waits in split of 'world'"));
        // All have come, and are about to see it.
        let came = [Made::new(0, 2).splits(&[]), Made::new(1, 2).splits(&[])];
        assert!(rule(&answers(came), None).is_empty());
    }

    /// A job: of the first processes by their answers, and of one that has ended.
    fn roll(living: u8, ended: Option<i32>) -> Roll {
        let here = (0..living).map(|process| Call::Here([process; 16]));
        let ended = ended.map(|status| {
            let status = Some(ExitStatusExt::from_raw(status));
            Call::Ended { pid: 4711, end: super::End { status } }
        });
        Roll { job: JOB, calls: here.chain(ended).collect() }
    }

    /// Two of three ranks wait in a join.
    fn two_join() -> Vec<Made> {
        vec![Made::new(0, 2).joins(0, 3), Made::new(1, 2).joins(1, 3)]
    }

    #[test]
    fn a_join_to_which_one_never_comes_that_has_ended() {
        let all = answers(two_join());
        let verdict = verdict_in(&all, Some(&roll(2, Some(9))));
        assert_eq!(verdict.kind, VerdictKind::JoinIncomplete);
        assert_eq!((&verdict.communicators[..], verdict.ranks.len()), (&["trio".into()][..], 3));
        assert_eq!(verdict.ranks[0].doing, "waits in join (thread 'main 0')");
        let absent = "has not joined, and process 2 (pid 4711) ended by signal 9";
        assert_eq!(verdict.ranks[2].doing, absent);
        for ruling in rule(&all, Some(&roll(2, Some(0)))) {
            // Under the number that the join has there.
            let id = u64::from(ruling.process[0]);
            assert_eq!(ruling.parts[0].actions, [Action::CallOffJoin { id, visits: 1 }]);
        }
    }

    #[test]
    fn somebody_may_come_to_a_join_unless_all_are_known() {
        let stuck = |made: Vec<Made>, roll: Option<&Roll>| !rule(&answers(made), roll).is_empty();
        assert!(stuck(two_join(), Some(&roll(2, Some(0)))));
        assert!(!stuck(two_join(), None), "no launcher tells");
        let mut silent = roll(2, Some(0));
        silent.calls.push(Call::Silent);
        assert!(!stuck(two_join(), Some(&silent)), "one has not come as far as to be asked");
        assert!(!stuck(two_join(), Some(&roll(3, Some(0)))), "one does not answer");
        let with = |act: &dyn Fn(&mut Snapshot)| {
            let mut made = two_join();
            act(&mut made[1].0);
            stuck(made, Some(&roll(2, Some(0))))
        };
        assert!(!with(&|it| it.job = None), "one cannot speak for all that it may have begun");
        assert!(!with(&|it| it.job = Some(1)), "one is of another job");
        assert!(!with(&|it| it.outside.acts = true));
        assert!(!with(&|it| it.threads[0].waiting =
            Some(Wait { what: For::Nothing, ..it.threads[0].waiting.clone().unwrap() })));
        assert!(!with(&|it| it.meetings[0].missing = vec![0]), "all have come");
        let unsure = {
            let mut all = answers(two_join());
            all.get_mut(&[1; 16]).unwrap().is_sure = false;
            rule(&all, Some(&roll(2, Some(0))))
        };
        assert!(unsure.is_empty(), "one did not keep still");
    }

    #[test]
    fn a_process_that_does_not_wait_comes_to_a_join_unless_it_sleeps_for_ever() {
        let third = |act: &dyn Fn(&mut Snapshot)| {
            let mut made = two_join();
            let mut idle = Made::new(0, 1).0;
            idle.job = Some(JOB);
            act(&mut idle);
            made.push(Made(idle));
            !rule(&answers(made), Some(&roll(3, None))).is_empty()
        };
        assert!(third(&|_| ()));
        assert!(!third(&|it| it.threads[0].rest = Rest::Awake));
        assert!(!third(&|it| it.threads[0].rest = Rest::Listening));
        assert!(!third(&|it| it.outside.sleeps = false), "somebody there waits for input");
        assert!(
            third(&|it| (it.comms, it.threads) = Default::default()),
            "nobody has called, nor can"
        );
    }

    #[test]
    fn a_join_and_an_operation_that_wait_for_each_other() {
        let joins = Made::new(0, 2).joins(0, 3);
        let mut waits = Made::new(1, 2).issues(0, Kind::AllReduce, None);
        waits.0.job = Some(JOB);
        let all = answers([joins, waits]);
        let verdict = verdict_in(&all, Some(&roll(2, Some(0))));
        assert_eq!(verdict.kind, VerdictKind::JoinIncomplete);
        assert_eq!(verdict.communicators, ["world", "trio"]);
        let waiting = &verdict.ranks[1].operation;
        assert!(waiting.as_ref().is_some_and(|op| op.operation == "all_reduce"), "{verdict}");
        assert!(verdict.chain.iter().any(|link| link.contains("waits in join")), "{verdict}");
        assert!(rule(&all, None).is_empty());
    }

    #[test]
    fn a_shrink_is_ended_for_all_who_came_or_for_nobody() {
        let shrinks = |rank| Made::new(rank, 4).shrinks(&[0, 1], &[2]);
        let mut all = answers([shrinks(0), shrinks(1), Made::new(2, 4)]);
        let rulings = rule(&all, None);
        let ends = |ruling: &Ruling| {
            let is_it = |action: &Action| matches!(action, Action::CallOffShrink { .. });
            ruling.parts[0].actions.iter().any(is_it)
        };
        assert_eq!(rulings.iter().map(ends).collect::<Vec<_>>(), [true, true, false]);
        // Rank 3, which is left out, is not asked; one that came would not hear of it.
        all.get_mut(&[0; 16]).unwrap().is_sure = false;
        assert!(rule(&all, None).is_empty());
    }

    #[test]
    fn who_has_moved_between_the_answers_is_not_relied_on() {
        let first = answers(crossed());
        assert_eq!(rule(&confirmed(&first, first.clone()), None).len(), 2);
        let mut second = first.clone();
        let moved = second.get_mut(&[1; 16]).unwrap();
        moved.snapshot.threads[0].waiting.as_mut().unwrap().number = 2;
        *moved = Answer::new(moved.snapshot.clone(), None, true);
        assert!(rule(&confirmed(&first, second), None).is_empty());
        let mut unsure = first.clone();
        unsure.get_mut(&[1; 16]).unwrap().is_sure = false;
        assert!(rule(&confirmed(&unsure, first), None).is_empty());
    }

    #[test]
    fn a_ruling_survives_the_way() {
        let ruling = rule(&answers(crossed()), None).remove(0);
        let bytes = postcard::to_allocvec(&ruling).unwrap();
        let there: Ruling = postcard::from_bytes(&bytes).unwrap();
        assert_eq!(format!("{there:?}"), format!("{ruling:?}"));
        // A name that nobody knows is refused.
        let name = bytes.windows(4).position(|name| name == b"send").unwrap();
        let mut other = bytes.clone();
        other[name..name + 4].copy_from_slice(b"lend");
        assert!(postcard::from_bytes::<Ruling>(&other).is_err());
        let failure = there.parts[0].verdict.as_ref().unwrap().failure();
        assert_eq!(failure.plain().kind(), ErrorKind::Deadlock);
    }

    #[test]
    fn what_refers_to_nothing_is_not_sound() {
        let broken = |act: &dyn Fn(&mut Snapshot)| {
            let mut made = Made::new(0, 2).issues(0, Kind::AllReduce, None);
            act(&mut made.0);
            made.0.is_sound()
        };
        assert!(broken(&|_| ()));
        assert!(!broken(&|it| it.comms.clear()));
        assert!(!broken(&|it| it.sites.clear()));
        assert!(!broken(&|it| it.streams.clear()));
        assert!(!broken(&|it| it.threads.clear()));
        assert!(!broken(&|it| it.comms[0].ends[0].rank = 2));
        assert!(!broken(&|it| it.comms[0].size = u32::MAX));
        assert!(!broken(&|it| it.streams[0].queue.push(Entry::Unit { unit: 0 })));
        assert!(!broken(&|it| it.streams[0].queue.push(Entry::GraphRun { run: 0 })));
        assert!(!broken(&|it| it.streams[0].queue.push(Entry::Record { signal: 0 })));
        assert!(!broken(&|it| it.signals = u32::MAX));
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_judge_panic(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        ) {
            let mut all = answers(crossed());
            let mut bytes = postcard::to_allocvec(&all[&[1; 16]]).unwrap();
            for (place, value) in changes {
                *place.get_mut(&mut bytes) = value;
            }
            if let Ok(answer) = postcard::from_bytes::<Answer>(&bytes)
                && answer.snapshot.is_sound()
            {
                all.insert([1; 16], answer);
                rule(&all, None);
            }
        }
    }
}

#[cfg(all(test, not(any(loom, miri))))] // Miri has no memfd
mod desk_tests {
    use std::{cell::Cell, sync::atomic::AtomicBool};

    use super::{super::peer::Process, *};

    fn desk(peer: &Peer) -> Desk<'_> {
        Desk::of(peer).unwrap()
    }

    fn answer(mark: u64) -> Answer {
        Answer { mark, is_sure: true, snapshot: Snapshot::default() }
    }

    #[test]
    fn questions_are_answered_by_who_is_there() {
        let asker = Process::new(4 << 20).unwrap();
        let others = [(); 2].map(|()| Process::new(4 << 20).unwrap());
        let peers = others.each_ref().map(|other| asker.adopt(other.card().unwrap()).unwrap());
        let desks = peers.iter().map(|peer| (peer.token(), desk(peer))).collect();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let desk = desk(others[0].own());
                let mut mark = 0;
                while !stop.load(Ordering::Relaxed) {
                    let seen = desk.bell().state();
                    desk.serve(|| {
                        mark += 1;
                        answer(mark)
                    });
                    desk.bell().sleep(seen, None);
                }
            });
            for round in 1..=3 {
                // The second one has no clerk.
                let answers = ask_all(&desks, |_| false);
                assert_eq!(answers.len(), 1);
                assert_eq!(answers[&others[0].own().token()].mark, round, "a fresh one each time");
            }
            stop.store(true, Ordering::Relaxed);
            desk(&peers[0]).bell().ring();
        });
    }

    #[test]
    fn who_has_ended_is_not_waited_for() {
        let asker = Process::new(4 << 20).unwrap();
        let others = [(); 2].map(|()| Process::new(4 << 20).unwrap());
        let peers = others.each_ref().map(|other| asker.adopt(other.card().unwrap()).unwrap());
        let desks = peers.iter().map(|peer| (peer.token(), desk(peer))).collect();
        let looks = Cell::new(0);
        let answers = ask_all(&desks, |token| {
            looks.set(looks.get() + 1);
            // It answers as the last thing that it does.
            if *token == others[0].own().token() {
                desk(others[0].own()).serve(|| answer(1));
            }
            true
        });
        assert_eq!(answers.into_keys().collect::<Vec<_>>(), [others[0].own().token()]);
        assert_eq!(looks.get(), 2, "one look at each");
    }

    #[test]
    fn rulings_are_found_by_those_they_are_for() {
        let (judge, other) = (Process::new(4 << 20).unwrap(), Process::new(4 << 20).unwrap());
        let seen_there = other.adopt(judge.card().unwrap()).unwrap();
        let edition = desk(&seen_there).edition();
        assert!(desk(&seen_there).ruling(&other.own().token()).is_none());
        let process = other.own().token();
        desk(judge.own()).publish(&[Ruling { process, mark: 7, parts: Vec::new() }]);
        assert_ne!(desk(&seen_there).edition(), edition);
        assert_eq!(desk(&seen_there).ruling(&process).unwrap().mark, 7);
        assert!(desk(&seen_there).ruling(&judge.own().token()).is_none());
    }

    #[test]
    fn what_does_not_fit_is_no_answer() {
        let process = Process::new(4 << 20).unwrap();
        let desk = desk(process.own());
        let mut large = answer(1);
        large.snapshot.comms.resize_with(1, || crate::snapshot::Comm {
            key: crate::slab::Key { index: 0, generation: 1 },
            token: None,
            title: "x".repeat(PAPER_BYTES),
            size: 1,
            is_broken: false,
            departed: Vec::new(),
            ends: Vec::new(),
        });
        let question = desk.ask();
        desk.serve(|| large);
        assert!(desk.hear(question).is_none());
        let question = desk.ask();
        assert!(desk.hear(question).is_none());
        desk.serve(|| answer(2));
        assert_eq!(desk.hear(question).unwrap().mark, 2);
        desk.serve(|| unreachable!("nobody has asked"));
    }

    #[test]
    fn of_two_that_suspect_something_the_lower_token_asks() {
        let (one, other) = (Process::new(4 << 20).unwrap(), Process::new(4 << 20).unwrap());
        let (low, high) = match one.own().token() < other.own().token() {
            true => (one, other),
            false => (other, one),
        };
        let seen_low = high.adopt(low.card().unwrap()).unwrap();
        let seen_high = low.adopt(high.card().unwrap()).unwrap();
        let low_asks =
            || is_ours_to_ask(low.own(), &[(seen_high.token(), desk(&seen_high))].into());
        let high_asks =
            || is_ours_to_ask(high.own(), &[(seen_low.token(), desk(&seen_low))].into());
        desk(high.own()).suspect(true);
        assert!(high_asks(), "the other one suspects nothing");
        desk(low.own()).suspect(true);
        assert!(low_asks() && !high_asks());
        let start = Instant::now();
        while !high_asks() {
            assert!(start.elapsed() < Duration::from_secs(10), "it does not wait for ever");
            thread::sleep(Duration::from_millis(5));
        }
        desk(low.own()).suspect(false);
        assert!(high_asks());
    }
}

#[cfg(all(loom, test))]
mod loom_tests {
    use loom::{sync::Arc, thread};

    use super::*;
    use crate::sync::model;

    #[test]
    fn a_paper_is_read_as_it_was_written_or_not_at_all() {
        model(|| {
            let word = || AtomicU32::new(0);
            let words: Vec<_> = (0..2).map(|_| AtomicU64::new(0)).collect();
            let shared = Arc::new((word(), word(), words));
            let other = Arc::clone(&shared);
            fn paper<'a>(
                (stamp, length, words): &'a (AtomicU32, AtomicU32, Vec<AtomicU64>),
            ) -> Paper<'a> {
                Paper { stamp, length, words }
            }
            let writer = thread::spawn(move || {
                for version in [[1_u8; 9], [2; 9]] {
                    paper(&other).write(&version);
                }
            });
            if let Some(read) = paper(&shared).read::<[u8; 9]>() {
                assert!(read == [1; 9] || read == [2; 9], "{read:?}");
            }
            writer.join().unwrap();
            assert_eq!(paper(&shared).read(), Some([2_u8; 9]));
        });
    }
}
