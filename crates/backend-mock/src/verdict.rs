//! Verdicts: why ranks cannot go on, with what each of them is doing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use collectives_core::{ErrorKind, Rank};
use serde::{Deserialize, Deserializer, Serialize};

use crate::{
    comm_state::{self, EndShared},
    engine::Engine,
    error::Failure,
    judge::{Judge, Node, Place, Sentence},
    op::Kind,
    pending::{PendingOp, PendingStatus, known},
    scene::{Ended, Meeting, Seat},
    slab::Key,
    snapshot::{self, End, Entry, For, Op, Wait},
    state::{Arrival, Owner, State},
    stream,
    threads::{Thread, What},
};

/// Why some ranks cannot go on, and what every rank is doing. See [`Mock::verdicts`].
///
/// The `Display` is the message of the errors that the ranks get: what is wrong in one line, then
/// the ranks' operations, those that differ in nothing but the rank on one line.
///
/// [`Mock::verdicts`]: crate::Mock::verdicts
#[derive(Clone, Debug, Deserialize, Serialize)]
#[non_exhaustive]
pub struct Verdict {
    /// What is wrong.
    pub kind: VerdictKind,
    /// The communicators that failed, by name or number.
    pub communicators: Vec<String>,
    /// What each rank of them is doing.
    pub ranks: Vec<RankState>,
    /// The columns in which the calls differ, where the ranks disagree.
    #[serde(deserialize_with = "columns")]
    pub fields: Vec<&'static str>,
    /// The ranks in the minority, where the ranks disagree and there is a majority.
    pub odd: Vec<Rank>,
    /// What waits for what, where that is a cycle or ends at a rank.
    pub chain: Vec<String>,
    headline: String,
}

/// What is wrong, in one word.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[non_exhaustive]
pub enum VerdictKind {
    /// Ranks wait for each other: operations in a different order, sends that meet no receive.
    Cycle,
    /// Members wait in a grow for an id that nobody makes.
    GrowIncomplete,
    /// Ranks wait in a join, or in a grow, that others never come to.
    JoinIncomplete,
    /// Ranks issue different operations where they must issue the same.
    Mismatch,
    /// One rank never issues what others wait for: its thread waits itself, or sleeps elsewhere.
    MissingRank,
    /// The thread of a rank has ended, and others wait for what it never issued.
    RankEnded,
    /// Ranks wait in a shrink that others, which are to stay, never come to.
    ShrinkIncomplete,
    /// Ranks wait in a split that others never come to.
    SplitIncomplete,
}

/// What one rank of a communicator was doing when a verdict was given.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[non_exhaustive]
pub struct RankState {
    /// The communicator's name, or a number.
    pub communicator: String,
    /// The rank.
    pub rank: Rank,
    /// Its first operation that is not done, if it has one.
    pub operation: Option<PendingOp>,
    /// That operation and how far it is, or what its thread does instead.
    pub doing: String,
}

impl Verdict {
    pub(crate) fn failure(&self) -> Failure {
        let (kind, hint) = match self.kind {
            VerdictKind::Cycle => (
                ErrorKind::Deadlock,
                "issue operations in the same order on all ranks; put sends and receives that \
                 depend on each other, or several communicators, into one group",
            ),
            VerdictKind::GrowIncomplete => {
                (ErrorKind::Deadlock, "grow on all members, one of which has called grow_id before")
            }
            VerdictKind::JoinIncomplete => {
                (ErrorKind::Deadlock, "start all ranks, or join with the number there is")
            }
            VerdictKind::Mismatch => (
                ErrorKind::InvalidUsage,
                "make all ranks issue the same operations in the same order",
            ),
            VerdictKind::MissingRank => (
                ErrorKind::Deadlock,
                "let every rank issue its operation before any of them is waited for",
            ),
            VerdictKind::RankEnded => (
                ErrorKind::Remote,
                "let the rank take part to the end, or drop its communicator when it ends early",
            ),
            VerdictKind::ShrinkIncomplete => (
                ErrorKind::Deadlock,
                "shrink on all ranks that stay, and exclude those that cannot",
            ),
            VerdictKind::SplitIncomplete => (
                ErrorKind::Deadlock,
                "split on all ranks; those that want no part pass SplitConfig::no_color()",
            ),
        };
        Failure::new(kind, self.to_string()).with_hint(hint).with_verdict(self.clone())
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.headline)?;
        if self.kind == VerdictKind::Mismatch {
            return Table::of(&self.ranks).write(f, &self.fields);
        }
        for (communicator, lines) in fold(&self.ranks) {
            write!(f, "\n  in '{communicator}':")?;
            for (doing, states) in lines {
                let ranks: Vec<_> = states.iter().map(|state| state.rank.get()).collect();
                write!(f, "\n    {}: {doing}{}", list("rank", &ranks), streams(&states, "; on "))?;
            }
        }
        if !self.chain.is_empty() {
            f.write_str("\n  in a chain:")?;
            for link in &self.chain {
                write!(f, "\n    {link}")?;
            }
        }
        Ok(())
    }
}

/// What is being done, and the ranks that do it.
type Lines<'a> = Vec<(&'a str, Vec<&'a RankState>)>;

/// By communicator, each thing that is being done once.
fn fold(states: &[RankState]) -> BTreeMap<&str, Lines<'_>> {
    let mut folded: BTreeMap<&str, Lines<'_>> = BTreeMap::new();
    for state in states {
        let lines = folded.entry(&state.communicator).or_default();
        match lines.iter_mut().find(|(known, _)| *known == state.doing) {
            Some((_, states)) => states.push(state),
            None => lines.push((&state.doing, vec![state])),
        }
    }
    folded
}

/// The streams of several ranks' operations, behind `lead`; nothing where they have none.
fn streams(states: &[&RankState], lead: &str) -> String {
    let mut names: Vec<_> = states
        .iter()
        .filter_map(|state| state.operation.as_ref().map(PendingOp::stream_name))
        .collect();
    names.sort_unstable();
    names.dedup();
    match &names[..] {
        [] => String::new(),
        [one] => format!("{lead}{one}"),
        [one, two] => format!("{lead}{one} and {two}"),
        more => format!("{lead}{} streams", more.len()),
    }
}

/// `rank 3`, or `ranks 0, 2–7`.
pub(crate) fn list(name: &str, numbers: &[u32]) -> String {
    format!("{name}{} {}", if numbers.len() == 1 { "" } else { "s" }, spans(numbers))
}

/// `0, 2–7`.
fn spans(numbers: &[u32]) -> String {
    let mut numbers = numbers.to_vec();
    numbers.sort_unstable();
    let mut spans: Vec<(u32, u32)> = Vec::new();
    for number in &numbers {
        match spans.last_mut() {
            Some((_, last)) if *last + 1 == *number => *last = *number,
            _ => spans.push((*number, *number)),
        }
    }
    let span = |&(first, last): &(u32, u32)| match last - first {
        0 => first.to_string(),
        1 => format!("{first}, {last}"),
        _ => format!("{first}–{last}"),
    };
    let spans: Vec<_> = spans.iter().map(span).collect();
    spans.join(", ")
}

/// Calls side by side.
struct Table {
    rows: Vec<Vec<String>>,
}

const COLUMNS: [&str; 9] =
    ["rank", "operation", "count", "dtype", "reduce op", "root", "peer", "stream", "call site"];

/// Where the stream stands among them.
const STREAM: usize = 7;

impl Table {
    fn of(states: &[RankState]) -> Self {
        // Each rank has streams of its own, so they don't keep ranks apart.
        let mut rows: Vec<(Vec<String>, Vec<&RankState>)> = Vec::new();
        for state in states {
            let cells = match &state.operation {
                Some(op) => cells(op),
                None => vec![state.doing.clone()],
            };
            match rows.iter_mut().find(|(known, _)| *known == cells) {
                Some((_, states)) => states.push(state),
                None => rows.push((cells, vec![state])),
            }
        }
        let row = |(cells, states): (Vec<String>, Vec<&RankState>)| {
            let ranks: Vec<_> = states.iter().map(|state| state.rank.get()).collect();
            let mut row = vec![spans(&ranks)];
            row.extend(cells);
            if let Some(stream) = row.get_mut(STREAM) {
                *stream = streams(&states, "");
            }
            row
        };
        Self { rows: rows.into_iter().map(row).collect() }
    }

    /// Writes the columns that have something in them, and marks those of `fields`.
    fn write(&self, f: &mut fmt::Formatter<'_>, fields: &[&str]) -> fmt::Result {
        let width = |column: usize| {
            let cells = self.rows.iter().filter(|row| row.len() > 2).map(|row| &row[column]);
            let widest = cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
            if widest == 0 { 0 } else { widest.max(COLUMNS[column].chars().count()) }
        };
        let widths: Vec<_> = (0..COLUMNS.len()).map(width).collect();
        let line = |cells: &[String]| {
            let mut line = String::new();
            for (cell, &width) in cells.iter().zip(&widths).filter(|(_, width)| **width > 0) {
                line += &format!("  {cell:<width$}");
            }
            line.trim_end().to_owned()
        };
        write!(f, "\n{}", line(&COLUMNS.map(str::to_owned)))?;
        for row in &self.rows {
            match &row[..] {
                [ranks, doing] => write!(f, "\n  {ranks:<0$}  {doing}", widths[0])?,
                cells => write!(f, "\n{}", line(cells))?,
            }
        }
        let mark = |(index, name): (usize, &&str)| {
            if fields.contains(name) { "^".repeat(widths[index]) } else { String::new() }
        };
        let marks: Vec<_> = COLUMNS.iter().enumerate().map(mark).collect();
        if marks.iter().any(|mark| !mark.is_empty()) {
            write!(f, "\n{}", line(&marks))?;
        }
        Ok(())
    }
}

/// Reads names of columns.
fn columns<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<&'static str>, D::Error> {
    let names = Vec::<String>::deserialize(from)?;
    names.iter().map(|name| known(name, COLUMNS.into_iter())).collect()
}

/// The columns behind the rank; the stream is left out.
fn cells(op: &PendingOp) -> Vec<String> {
    let other = op.other.map_or_else(String::new, |rank| rank.to_string());
    let is_message = [Kind::Send.name(), Kind::Recv.name()].contains(&op.operation);
    let (root, peer) = if is_message { (String::new(), other) } else { (other, String::new()) };
    vec![
        op.operation.to_owned(),
        op.count.to_string(),
        op.dtype.to_string(),
        op.reduce_op.unwrap_or_default().to_owned(),
        root,
        peer,
        String::new(),
        op.site.to_string(),
    ]
}

/// The columns in which operations differ that should be one.
fn differing(ops: &[&PendingOp]) -> Vec<&'static str> {
    let rows: Vec<_> = ops.iter().map(|op| cells(op)).collect();
    // Neither the stream nor the site need agree; a message's peers differ of themselves.
    let messages = ops.iter().all(|op| op.is_message());
    let compared = |name: &str| match name {
        "rank" | "stream" | "call site" => false,
        "operation" | "peer" => !messages,
        _ => true,
    };
    let differs = |(index, name): (usize, &&'static str)| {
        let differs = index > 0 && rows.iter().any(|row| row[index - 1] != rows[0][index - 1]);
        (differs && compared(name)).then_some(*name)
    };
    COLUMNS.iter().enumerate().filter_map(differs).collect()
}

impl State {
    /// Compares what the ranks asked for at one place of a communicator.
    pub(crate) fn mismatch(&self, arrivals: &[Arrival]) -> Option<Verdict> {
        let first = &arrivals[0].op;
        let agree = arrivals[1..].iter().map(|arrival| &arrival.op).all(|op| {
            let same_kind = op.kind == first.kind || op.kind.is_point_to_point();
            let same_root = op.kind.is_point_to_point() || op.other == first.other;
            let same_data = (op.count, op.dtype) == (first.count, first.dtype);
            same_kind && same_root && same_data && op.reduction == first.reduction
        });
        if agree { None } else { Some(self.tell_apart(arrivals)) }
    }

    #[cold]
    fn tell_apart(&self, arrivals: &[Arrival]) -> Verdict {
        let pending = |arrival: &Arrival| {
            let stream = match arrival.owner {
                Owner::Elsewhere => return PendingOp::elsewhere(self, &arrival.op),
                Owner::Stream(stream) => stream,
                Owner::Unit(unit) => self.unit_streams(unit).first().copied().unwrap_or(0),
            };
            PendingOp::of(self, &self.streams[stream], &arrival.op, 0, false)
        };
        let ops: Vec<_> = arrivals.iter().map(pending).collect();
        let first = &ops[0];
        let number = if first.is_message() { "message" } else { "collective" };
        let place = format!("{number} #{} in '{}'", first.sequence, first.communicator);
        disagreement(&place, ops)
    }

    /// Ends a shrink for all who came, if it is open.
    pub(crate) fn call_off_shrink(&self, comm: Key, number: u64, failure: &Failure) {
        match self.comms.get(comm).map(|comm| (&comm.across, &comm.meeting)) {
            Some((Some(across), _)) => across.joint.call_off(number, failure),
            Some((None, meeting)) => meeting.lifecycle.call_off(number, failure.clone()),
            None => {}
        }
    }

    /// Keeps a verdict that another process has found, unless it is known here.
    pub(crate) fn note_once(&mut self, verdict: &Verdict) {
        let text = verdict.to_string();
        if !self.verdicts.iter().any(|known| known.to_string() == text) {
            self.pronounce(verdict.clone());
        }
    }

    /// Logs a verdict and keeps it for [`Mock::verdicts`](crate::Mock::verdicts).
    pub(crate) fn pronounce(&mut self, verdict: Verdict) -> Failure {
        tracing::error!("{verdict}");
        let failure = match &self.adversary {
            Some(adversary) => adversary.noted(verdict.failure()),
            None => verdict.failure(),
        };
        if self.verdicts.len() == KEPT {
            self.verdicts.pop_front();
        }
        self.verdicts.push_back(verdict);
        failure
    }
}

/// The verdict on ranks that issued different operations.
fn disagreement(place: &str, ops: Vec<PendingOp>) -> Verdict {
    let fields = differing(&ops.iter().collect::<Vec<_>>());
    // By what they ask for, whatever the place it is asked at.
    let mut camps: Vec<(String, Vec<u32>)> = Vec::new();
    for op in &ops {
        let call = op.call(false);
        match camps.iter_mut().find(|(known, _)| *known == call) {
            Some((_, ranks)) => ranks.push(op.rank.get()),
            None => camps.push((call, vec![op.rank.get()])),
        }
    }
    let most = camps.iter().map(|(_, ranks)| ranks.len()).max().unwrap_or(0);
    let majority = 2 * most > ops.len();
    let calls = |(call, ranks): &(String, Vec<u32>)| {
        let verb = if ranks.len() == 1 { "calls" } else { "call" };
        format!("{} {verb} {call}", list("rank", ranks))
    };
    let (mut odd, mut headline) = (Vec::new(), format!("ranks disagree on {place}: "));
    if majority {
        camps.sort_by_key(|(_, ranks)| ranks.len());
        odd.extend(camps[..camps.len() - 1].iter().flat_map(|(_, ranks)| ranks));
        odd.sort_unstable();
    }
    headline += &camps.iter().map(calls).collect::<Vec<_>>().join("; ");
    if let [single] = odd[..] {
        headline += &format!("; rank {single} is the odd one out");
    }
    let communicator = ops[0].communicator.clone();
    let state = |op: PendingOp| RankState {
        communicator: op.communicator.clone(),
        rank: op.rank,
        doing: doing(&op),
        operation: Some(op),
    };
    Verdict {
        kind: VerdictKind::Mismatch,
        communicators: vec![communicator],
        ranks: ops.into_iter().map(state).collect(),
        fields,
        odd: odd.into_iter().map(Rank::new).collect(),
        chain: Vec::new(),
        headline,
    }
}

/// An operation as a rank's business.
fn doing(op: &PendingOp) -> String {
    let mut text = format!("{} ({})", op.call(true), op.site);
    match &op.status {
        PendingStatus::Held(by) => text += &format!(", held by {by}"),
        PendingStatus::Queued => text += ", behind other work",
        PendingStatus::Running => {}
        PendingStatus::Waiting(ranks) => {
            let ranks: Vec<_> = ranks.iter().map(|rank| rank.get()).collect();
            text += &format!(", waiting for {}", list("rank", &ranks));
        }
    }
    text
}

/// A verdict, and what has to be done to make those see it whom it concerns.
pub(crate) struct Case {
    /// There is none where it is enough to send away who only waits to be polite.
    pub(crate) verdict: Option<Verdict>,
    /// With the process that has to do it.
    pub(crate) actions: Vec<(usize, Action)>,
}

/// What a process has to do for a verdict, in the order in which it is done: streams know the verdict
/// before what they hold fails, and shrinks before their communicator does.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub(crate) enum Action {
    /// Tell those who wait for a stream in vain.
    FailStream {
        stream: Key,
    },
    /// End a shrink. It goes on where the communicator is broken.
    CallOffShrink {
        comm: Key,
        number: u64,
    },
    FailComm {
        comm: Key,
    },
    /// End a join for all who came and will come; where ranks are processes, for those who came
    /// until then.
    CallOffJoin {
        id: u64,
        visits: u64,
    },
    /// Send a thread away that drops an end, and only waits to be polite.
    Release {
        thread: u64,
        comm: Key,
        rank: u32,
    },
}

impl Case {
    pub(crate) fn new(judge: &Judge<'_>, part: &Sentence) -> Self {
        let scene = judge.scene;
        let (mut actions, mut drops) = (BTreeSet::new(), Vec::new());
        for &index in &part.waits {
            let thread = &scene.threads[index];
            match thread.waiting.as_ref().map(|wait| wait.what) {
                Some(For::Flush { comm, rank, is_drop: true }) => {
                    let keys = scene.comms[comm as usize].keys.iter();
                    let own = keys.filter(|(process, _)| *process == thread.process);
                    drops.extend(own.map(|&(process, comm)| {
                        (process, Action::Release { thread: thread.number, comm, rank })
                    }));
                }
                Some(For::Shrink { meeting, .. }) => {
                    for &(process, place, _) in &scene.meetings[meeting as usize].places {
                        if let snapshot::Place::Shrink { comm, number } = place {
                            actions.insert((process, Action::CallOffShrink { comm, number }));
                        }
                    }
                }
                Some(For::Stream { stream, .. }) => {
                    let stream = &scene.streams[stream as usize];
                    actions.insert((stream.process, Action::FailStream { stream: stream.key }));
                }
                _ => {}
            }
        }
        if !drops.is_empty() {
            // They go on without, and what they leave behind is looked at then.
            return Self { verdict: None, actions: drops };
        }
        for &comm in &part.comms {
            let keys = scene.comms[comm as usize].keys.iter();
            actions.extend(keys.map(|&(process, comm)| (process, Action::FailComm { comm })));
        }
        for &meeting in &part.joins {
            for &(process, place, visits) in &scene.meetings[meeting as usize].places {
                if let snapshot::Place::Join { id } = place {
                    actions.insert((process, Action::CallOffJoin { id, visits }));
                }
            }
        }
        let verdict = Some(Report { judge, part }.verdict());
        Self { verdict, actions: actions.into_iter().collect() }
    }

    /// Tells everybody, where all are in one process.
    pub(crate) fn close(self, engine: &Engine, state: &mut State) {
        let Self { verdict, actions } = self;
        let actions = actions.into_iter().map(|(_, action)| action);
        engine.carry_out(state, verdict, actions);
    }
}

impl Engine {
    /// Does this process's part of a verdict.
    pub(crate) fn carry_out(
        &self,
        state: &mut State,
        verdict: Option<Verdict>,
        actions: impl Iterator<Item = Action>,
    ) {
        let failure = verdict.map(|verdict| state.pronounce(verdict));
        for action in actions {
            match (action, &failure) {
                (Action::CallOffJoin { id, visits }, Some(failure)) => {
                    self.meetings.call_off(id, visits, failure);
                }
                (Action::CallOffShrink { comm, number }, Some(failure)) => {
                    state.call_off_shrink(comm, number, failure);
                }
                (Action::FailComm { comm }, Some(failure)) => {
                    state.fail_comm(comm, failure, None);
                }
                (Action::FailStream { stream }, Some(failure)) => {
                    if let Some(stream) = state.streams.get_mut(stream) {
                        stream.failure.get_or_insert_with(|| failure.clone());
                    }
                }
                (Action::Release { thread, comm, rank }, _) => {
                    if let Some(thread) = self.threads.find(thread) {
                        thread.release();
                    }
                    state.wake_flushes(comm, rank);
                }
                (_, None) => {}
            }
        }
    }
}

/// How a part of what is stuck is told.
struct Report<'a> {
    judge: &'a Judge<'a>,
    part: &'a Sentence,
}

impl Report<'_> {
    fn verdict(&self) -> Verdict {
        let path = self.path();
        let kind = self.kind(&path);
        if kind == VerdictKind::Mismatch
            && let Some(&comm) = self.part.comms.first()
        {
            let ops = self.ranks(comm).filter_map(|rank| self.operation(comm, rank)).collect();
            let title = self.title(comm);
            return disagreement(&format!("what comes next in '{title}'"), ops);
        }
        let titles = self.part.comms.iter().map(|&comm| self.title(comm).to_owned());
        let (mut communicators, mut ranks): (Vec<_>, Vec<_>) = (titles.collect(), Vec::new());
        for &comm in &self.part.comms {
            ranks.extend(self.ranks(comm).map(|rank| self.rank(comm, rank)));
        }
        for &meeting in &self.part.joins {
            let (title, states) = self.meeting(meeting);
            communicators.push(title);
            ranks.extend(states);
        }
        let chain = path.windows(2).filter_map(|pair| self.link(pair[0], pair[1])).collect();
        let headline = self.headline(kind, &communicators, &path);
        let (fields, odd) = (Vec::new(), Vec::new());
        Verdict { kind, communicators, ranks, fields, odd, chain, headline }
    }

    /// From a wait along the first cause of each, to a cycle (whose first node is again the last) or
    /// to what has no cause.
    fn path(&self) -> Vec<Node> {
        // A join has no cause to show.
        let joins =
            |wait: &&usize| matches!(self.wait(**wait), Some(Wait { what: For::Join { .. }, .. }));
        let mut waits = self.part.waits.iter();
        let story = waits.clone().find(|wait| !joins(wait));
        let Some(&first) = story.or_else(|| waits.next()) else { return Vec::new() };
        let mut path = vec![Node::Wait(first)];
        while let Some(&node) = path.last()
            && let Some(&next) = self.judge.causes(node).first()
        {
            if let Some(index) = path.iter().position(|known| *known == next) {
                path.drain(..index);
                path.push(next);
                break;
            }
            path.push(next);
        }
        path
    }

    fn kind(&self, path: &[Node]) -> VerdictKind {
        if !self.part.joins.is_empty() {
            return VerdictKind::JoinIncomplete;
        }
        let meets = self.part.waits.iter().find_map(|&thread| match self.wait(thread)?.what {
            For::GrowId { .. } => Some(VerdictKind::GrowIncomplete),
            For::Shrink { .. } => Some(VerdictKind::ShrinkIncomplete),
            For::Split { .. } => Some(VerdictKind::SplitIncomplete),
            _ => None,
        });
        if let Some(kind) = meets {
            return kind;
        }
        if let Some(&Node::Absent(comm, rank)) = path.last()
            && path.first() != path.last()
        {
            let caller = self.judge.end(comm, rank).and_then(|end| self.caller(end));
            let ended = caller.is_none_or(|thread| thread.has_ended);
            return if ended { VerdictKind::RankEnded } else { VerdictKind::MissingRank };
        }
        if self.is_disagreement() {
            return VerdictKind::Mismatch;
        }
        let threads: BTreeSet<_> =
            path.iter().filter(|node| matches!(node, Node::Wait(_))).collect();
        let absent = path.iter().any(|node| matches!(node, Node::Absent(..)));
        if absent && threads.len() == 1 { VerdictKind::MissingRank } else { VerdictKind::Cycle }
    }

    /// Whether all ranks of the one communicator wait in operations that could never meet, since
    /// some are collectives and some are messages.
    fn is_disagreement(&self) -> bool {
        let Some(&comm) = self.part.comms.first().filter(|_| self.part.comms.len() == 1) else {
            return false;
        };
        let ops: Option<Vec<_>> =
            self.ranks(comm).map(|rank| self.judge.first_stuck(comm, rank)).collect();
        let Some(ops) = ops else { return false };
        let messages = ops.iter().filter(|(_, op)| op.kind.is_point_to_point()).count();
        (1..ops.len()).contains(&messages)
    }

    fn headline(&self, kind: VerdictKind, communicators: &[String], path: &[Node]) -> String {
        let names = communicators.iter().map(|name| format!("'{name}'")).collect::<Vec<_>>();
        let names = names.join(" and ");
        match kind {
            VerdictKind::GrowIncomplete => {
                format!("members of {names} wait in grow for an id that nobody makes")
            }
            VerdictKind::JoinIncomplete => {
                format!("ranks wait in the join of {names} for ranks that never come")
            }
            VerdictKind::ShrinkIncomplete => {
                format!("ranks wait in the shrink of {names} for ranks that never call it")
            }
            VerdictKind::SplitIncomplete => {
                format!("ranks wait in the split of {names} for ranks that never call it")
            }
            VerdictKind::MissingRank | VerdictKind::RankEnded => {
                let absent = path.iter().rev().find_map(|node| match node {
                    Node::Absent(comm, rank) => Some((*comm, *rank)),
                    _ => None,
                });
                let wanted = path.iter().rev().find_map(|node| match node {
                    Node::Head(place) => self.judge.ops_at(*place).first(),
                    _ => None,
                });
                let (Some((comm, rank)), Some(op)) = (absent, wanted) else {
                    return format!("ranks of {names} wait for what never comes");
                };
                let why = match kind {
                    VerdictKind::RankEnded => "has ended without issuing",
                    _ => "never issues",
                };
                let title = self.title(comm);
                format!(
                    "rank {rank} of '{title}' {why} its side of {} #{}, for which rank {} waits",
                    op.kind.name(),
                    op.sequence,
                    op.rank
                )
            }
            VerdictKind::Cycle | VerdictKind::Mismatch => {
                let ops = path.iter().filter_map(|node| match node {
                    Node::Head(place) => self.judge.ops_at(*place).first(),
                    _ => None,
                });
                let ranks: BTreeSet<u32> = ops.map(|op| op.rank).collect();
                // The same rank of several communicators.
                if ranks.len() == 1 {
                    return format!("ranks wait for each other in {names}");
                }
                let ranks = list("rank", &ranks.into_iter().collect::<Vec<_>>());
                format!("{ranks} wait for each other in {names}")
            }
        }
    }

    fn title(&self, comm: u32) -> &str {
        &self.judge.scene.comms[comm as usize].title
    }

    fn ranks(&self, comm: u32) -> impl Iterator<Item = u32> + use<> {
        0..self.judge.scene.comms[comm as usize].seats.len() as u32
    }

    fn operation(&self, comm: u32, rank: u32) -> Option<PendingOp> {
        let (place, op) = self.judge.first_stuck(comm, rank)?;
        let scene = self.judge.scene;
        let stream = &scene.streams[place.stream as usize];
        let status = if self.judge.has_arrived(place) {
            let missing = self.judge.partners(&op).filter(|&rank| self.judge.is_missing(&op, rank));
            let missing: Vec<_> = missing.map(Rank::new).collect();
            match &missing[..] {
                [] => PendingStatus::Running,
                _ => PendingStatus::Waiting(missing),
            }
        } else {
            let held = stream.held_by.clone();
            let held = held.filter(|_| place.index == 0 && !stream.is_started);
            held.map_or(PendingStatus::Queued, PendingStatus::Held)
        };
        let site = scene.sites[op.site as usize];
        Some(PendingOp::told(&scene.comms[comm as usize], stream, &op, site, status))
    }

    fn rank(&self, comm: u32, rank: u32) -> RankState {
        let operation = self.operation(comm, rank);
        let seat = &self.judge.scene.comms[comm as usize].seats[rank as usize];
        let doing = match (&operation, seat) {
            (Some(operation), _) => doing(operation),
            (None, Seat::Empty) => "has left the communicator".into(),
            (None, Seat::Hidden) => "nothing is known of it".into(),
            (None, Seat::Taken(end)) => match self.caller(end) {
                Some(thread) => format!("nothing; {}", self.thread(thread)),
                None => "nothing".into(),
            },
        };
        let communicator = self.title(comm).to_owned();
        RankState { communicator, rank: Rank::new(rank), operation, doing }
    }

    /// Who came to a join, and who did not.
    fn meeting(&self, index: u32) -> (String, Vec<RankState>) {
        let Meeting { name, size, missing, .. } = &self.judge.scene.meetings[index as usize];
        let title = name.clone().unwrap_or_else(|| "a new communicator".into());
        let state = |rank: u32| {
            let waits = self.judge.scene.threads.iter().find_map(|thread| {
                let wait = thread.waiting.as_ref().filter(|_| thread.is_live)?;
                match wait.what {
                    For::Join { meeting, rank: who } if (meeting, who) == (index, rank) => {
                        Some(format!("waits {} ({})", wait.text, **thread))
                    }
                    _ => None,
                }
            });
            let doing = match waits {
                _ if missing.contains(&rank) => self.absence(index, rank),
                Some(waits) => waits,
                None => "has come, and does not wait".into(),
            };
            let rank = Rank::new(rank);
            RankState { communicator: title.clone(), rank, operation: None, doing }
        };
        let states = (0..*size).map(state).collect();
        (title, states)
    }

    /// Why a rank will not come to a join.
    fn absence(&self, meeting: u32, rank: u32) -> String {
        let scene = self.judge.scene;
        let is_across = scene.meetings[meeting as usize].is_across();
        let Some(job) = scene.job.as_ref().filter(|_| is_across) else {
            return "has not joined, and no thread is left that could".into();
        };
        let ended: Vec<_> = job
            .ended
            .iter()
            .map(|Ended { number, pid, how }| format!("process {number} (pid {pid}) {how}"))
            .collect();
        // Ranks are numbered as processes are, as a rule.
        let own = job.ended.iter().position(|ended| ended.number == rank);
        match own {
            Some(own) => format!("has not joined, and {}", ended[own]),
            None if ended.is_empty() => "has not joined, and no thread is left that could".into(),
            None => format!("has not joined; of the job, {}", ended.join(", ")),
        }
    }

    /// The thread that called on an end last.
    fn caller(&self, end: &End) -> Option<&snapshot::Thread> {
        end.caller.map(|thread| &*self.judge.scene.threads[thread as usize])
    }

    /// What a thread does.
    fn thread(&self, thread: &snapshot::Thread) -> String {
        match &thread.waiting {
            _ if thread.has_ended => format!("its {thread} has ended"),
            Some(wait) => format!("its {thread} waits {}", wait.text),
            None => format!("its {thread} sleeps outside the library"),
        }
    }

    fn wait(&self, thread: usize) -> Option<&Wait> {
        self.judge.scene.threads[thread].waiting.as_ref()
    }

    /// How one node hangs on the next.
    fn link(&self, node: Node, next: Node) -> Option<String> {
        Some(match (node, next) {
            (Node::Wait(index), Node::Head(place)) => {
                let wait = &self.wait(index)?.text;
                format!("{} waits {wait}, which is at {}", self.name(index), self.entry(place))
            }
            (Node::Wait(index), Node::Absent(_, rank)) => {
                format!("{} waits {} for rank {rank}", self.name(index), self.wait(index)?.text)
            }
            (Node::Wait(_), _) => return None,
            (Node::Head(place), Node::Absent(_, rank)) => {
                format!(
                    "{} waits for rank {rank}, which has not issued its side",
                    self.entry(place)
                )
            }
            (Node::Head(place), Node::Head(behind)) => {
                let what = self.entry(place);
                match self.counterpart(place, behind) {
                    Some(op) => {
                        format!("{what} waits for {op}, which is behind {}", self.entry(behind))
                    }
                    None => format!("{what} waits for what is behind {}", self.entry(behind)),
                }
            }
            (Node::Head(_), _) => return None,
            (Node::Absent(comm, rank), Node::Wait(index)) => {
                format!(
                    "rank {rank} of '{}' issues nothing: its {} waits {}",
                    self.title(comm),
                    self.name(index),
                    self.wait(index)?.text
                )
            }
            (Node::Absent(..) | Node::Meeting(_), _) => return None,
        })
    }

    /// The operation for which `place` waits and that stands behind `behind`.
    fn counterpart(&self, place: Place, behind: Place) -> Option<String> {
        let ops = self.judge.ops_at(place);
        let scene = self.judge.scene;
        let others = scene.streams[behind.stream as usize].queue.iter().skip(behind.index + 1);
        let mut others = others.flat_map(|entry| scene.ops(entry));
        let other = others.find(|other| ops.iter().any(|op| is_side_of(op, other)))?;
        Some(self.op(other))
    }

    /// An entry, for people.
    fn entry(&self, place: Place) -> String {
        if let [op, ..] = self.judge.ops_at(place) {
            return self.op(op);
        }
        let stream = &*self.judge.scene.streams[place.stream as usize];
        match self.judge.entry(place) {
            Some(Entry::Wait { .. }) => format!("a wait for an event on {stream}"),
            Some(entry) => format!("a {} on {stream}", entry.name()),
            None => "its end".into(),
        }
    }

    fn op(&self, op: &Op) -> String {
        format!(
            "rank {}'s {} #{} in '{}' ({})",
            op.rank,
            op.kind.name(),
            op.sequence,
            op.comm.map_or("gone", |comm| self.title(comm)),
            self.judge.scene.sites[op.site as usize]
        )
    }

    /// A thread, for people.
    fn name(&self, thread: usize) -> &snapshot::Thread {
        &self.judge.scene.threads[thread]
    }
}

/// Whether two operations are two ranks' sides of one.
fn is_side_of(op: &Op, other: &Op) -> bool {
    let same = (op.comm, op.sequence) == (other.comm, other.sequence);
    let pair = match (op.kind, other.kind) {
        (Kind::Send, Kind::Recv) | (Kind::Recv, Kind::Send) => {
            (Some(op.rank), op.other) == (other.other, Some(other.rank))
        }
        (one, two) => !one.is_point_to_point() && !two.is_point_to_point() && op.rank != other.rank,
    };
    same && pair
}

fn stream_of(stream: &stream::Stream) -> String {
    let name = crate::pending::stream_name(stream.shared.raw, stream.is_branch);
    format!("{name} of device {}", stream.shared.device)
}

/// A wait, for people: what comes behind "waits".
pub(crate) fn wait_of(state: &State, what: What) -> String {
    let title =
        |comm: Key| state.comms.get(comm).map_or_else(|| "gone".into(), comm_state::Comm::title);
    match what {
        What::Flush { comm, is_drop, .. } => {
            let call = if is_drop { "drop" } else { "finalize" };
            format!("in {call} for its operations in '{}'", title(comm))
        }
        What::Fault { rule } => format!("in a join, held by fault rule {rule}"),
        What::GrowId { comm, .. } => format!("in grow of '{}'", title(comm)),
        What::Join { call, .. } => format!("in {call}"),
        What::Shrink { comm, .. } => format!("in shrink of '{}'", title(comm)),
        What::Split { comm, .. } => format!("in split of '{}'", title(comm)),
        What::Stream { stream, .. } => match state.streams.get(stream) {
            Some(stream) => format!("for {}", stream_of(stream)),
            None => "for a stream".into(),
        },
    }
}

/// What a rank does that does not come to an end.
pub(crate) fn whereabouts(
    engine: &Engine,
    thread: Option<&Arc<Thread>>,
    end: Option<&Arc<EndShared>>,
) -> String {
    let Some(thread) = thread else { return "its thread has not begun".into() };
    let waiting = thread.waiting_in(engine.nonce);
    let mut text = match waiting {
        _ if thread.has_ended() => "its thread has ended".into(),
        Some(waiting) => {
            engine.with(|state| format!("its thread waits {}", wait_of(state, waiting.what)))
        }
        None => "its thread runs, or waits outside the library".to_owned(),
    };
    match end.map(|end| end.site()) {
        None => text += "; it has not joined",
        Some(None) => text += "; it has issued nothing",
        Some(Some(site)) => text += &format!("; its last operation was called at {site}"),
    }
    let pending = engine.pending(None);
    let own = |op: &&PendingOp| end.is_some_and(|end| end.info.device == op.device);
    for (index, op) in pending.iter().filter(own).take(LISTED).enumerate() {
        text += if index == 0 { "; pending: " } else { ", then " };
        text += &format!("{} in '{}'", doing(op), op.communicator);
    }
    text
}

/// Pending operations that are listed of a late rank.
const LISTED: usize = 4;

/// Verdicts that are kept.
const KEPT: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_listed_in_spans() {
        assert_eq!(list("rank", &[3]), "rank 3");
        assert_eq!(list("rank", &[7, 0, 2, 3, 4]), "ranks 0, 2–4, 7");
        assert_eq!(list("rank", &[0, 1]), "ranks 0, 1");
    }
}
