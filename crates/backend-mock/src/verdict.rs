//! Verdicts: why ranks cannot go on, with what each of them is doing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use collectives_core::{ErrorKind, Rank};

use crate::{
    comm_state::{Comm, EndShared},
    engine::Engine,
    error::Failure,
    judge::{Judge, Node, Place, Sentence},
    op::{Kind, Op},
    pending::{PendingOp, PendingStatus},
    slab::Key,
    state::{Arrival, Owner, State},
    stream::{Entry, Stream},
    threads::{Thread, What},
};

/// Why some ranks cannot go on, and what every rank is doing. See [`Mock::verdicts`].
///
/// The `Display` is the message of the errors that the ranks get: what is wrong in one line, then
/// the ranks' operations, those that differ in nothing but the rank on one line.
///
/// [`Mock::verdicts`]: crate::Mock::verdicts
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Verdict {
    /// What is wrong.
    pub kind: VerdictKind,
    /// The communicators that failed, by name or number.
    pub communicators: Vec<String>,
    /// What each rank of them is doing.
    pub ranks: Vec<RankState>,
    /// The columns in which the calls differ, where the ranks disagree.
    pub fields: Vec<&'static str>,
    /// The ranks in the minority, where the ranks disagree and there is a majority.
    pub odd: Vec<Rank>,
    /// What waits for what, where that is a cycle or ends at a rank.
    pub chain: Vec<String>,
    headline: String,
}

/// What is wrong, in one word.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
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
#[derive(Clone, Debug)]
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
    fn failure(&self) -> Failure {
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
        Failure::new(kind, self.to_string()).with_hint(hint)
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

/// A verdict and those whom it concerns.
pub(crate) struct Case {
    verdict: Verdict,
    comms: BTreeSet<Key>,
    joins: BTreeSet<u64>,
    /// Shrinks, by communicator and number. They go on where the communicator is broken.
    shrinks: BTreeSet<(Key, u64)>,
    /// Streams that are waited for in vain.
    streams: Vec<Key>,
    /// Threads that drop an end, and only wait to be polite.
    drops: Vec<(Arc<Thread>, Key, u32)>,
}

impl Case {
    pub(crate) fn new(judge: &Judge<'_>, part: &Sentence) -> Self {
        let (mut shrinks, mut streams, mut drops) = (BTreeSet::new(), Vec::new(), Vec::new());
        for &index in &part.waits {
            let caller = &judge.callers[index];
            match caller.waiting.map(|waiting| waiting.what) {
                Some(What::Stream { stream, .. }) => streams.push(stream),
                Some(What::Shrink { comm, number, .. }) => {
                    shrinks.insert((comm, number));
                }
                Some(What::Flush { comm, rank, is_drop: true }) => {
                    drops.push((Arc::clone(&caller.thread), comm, rank));
                }
                _ => {}
            }
        }
        let verdict = Report { judge, part }.verdict();
        let Sentence { comms, joins, .. } = part.clone();
        Self { verdict, comms, joins, shrinks, streams, drops }
    }

    /// Tells everybody.
    pub(crate) fn close(self, engine: &Engine, state: &mut State) {
        let Self { verdict, comms, joins, shrinks, streams, drops } = self;
        if !drops.is_empty() {
            // They go on without, and what they leave behind is looked at then.
            for (thread, comm, rank) in drops {
                thread.release();
                state.wake_flushes(comm, rank);
            }
            return;
        }
        let failure = state.pronounce(verdict);
        for stream in streams {
            if let Some(stream) = state.streams.get_mut(stream) {
                stream.failure.get_or_insert_with(|| failure.clone());
            }
        }
        for (comm, number) in shrinks {
            if let Some(comm) = state.comms.get(comm) {
                comm.meeting.lifecycle.call_off(number, failure.clone());
            }
        }
        for comm in comms {
            state.fail_comm(comm, &failure, None);
        }
        for id in joins {
            engine.meetings.call_off(id, failure.clone());
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
        let comms = || self.part.comms.iter().filter_map(|&key| self.comm(key));
        if kind == VerdictKind::Mismatch
            && let Some(&key) = self.part.comms.first()
        {
            let ops = self.ranks(key).filter_map(|rank| self.operation(key, rank)).collect();
            let title = self.title(key);
            return disagreement(&format!("what comes next in '{title}'"), ops);
        }
        let mut communicators: Vec<_> = comms().map(Comm::title).collect();
        let mut ranks = Vec::new();
        for &key in &self.part.comms {
            ranks.extend(self.ranks(key).map(|rank| self.rank(key, rank)));
        }
        for &id in &self.part.joins {
            let (title, states) = self.meeting(id);
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
        let Some(&first) = self.part.waits.first() else { return Vec::new() };
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
        let waits =
            || self.part.waits.iter().filter_map(|&index| self.judge.callers[index].waiting);
        if !self.part.joins.is_empty() {
            return VerdictKind::JoinIncomplete;
        }
        let meets = waits().find_map(|waiting| match waiting.what {
            What::GrowId { .. } => Some(VerdictKind::GrowIncomplete),
            What::Shrink { .. } => Some(VerdictKind::ShrinkIncomplete),
            What::Split { .. } => Some(VerdictKind::SplitIncomplete),
            _ => None,
        });
        if let Some(kind) = meets {
            return kind;
        }
        if let Some(&Node::Absent(comm, rank)) = path.last()
            && path.first() != path.last()
        {
            let caller = self.judge.end(comm, rank).and_then(EndShared::caller);
            let ended = caller.is_none_or(|thread| thread.has_ended());
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
        let Some(&key) = self.part.comms.first().filter(|_| self.part.comms.len() == 1) else {
            return false;
        };
        let ops: Option<Vec<_>> =
            self.ranks(key).map(|rank| self.judge.first_stuck(key, rank)).collect();
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
                let ranks = list("rank", &ranks.into_iter().collect::<Vec<_>>());
                format!("{ranks} wait for each other in {names}")
            }
        }
    }

    fn comm(&self, key: Key) -> Option<&Comm> {
        self.judge.state.comms.get(key)
    }

    fn title(&self, key: Key) -> String {
        self.comm(key).map_or_else(|| "gone".into(), Comm::title)
    }

    fn ranks(&self, key: Key) -> impl Iterator<Item = u32> + use<> {
        0..self.comm(key).map_or(0, |comm| comm.ends.len() as u32)
    }

    fn operation(&self, key: Key, rank: u32) -> Option<PendingOp> {
        let (Place { stream, index }, op) = self.judge.first_stuck(key, rank)?;
        let stream = self.judge.state.streams.at(stream)?;
        let entry = stream.queue.get(index)?;
        let arrived = index == 0 && stream.started && self.judge.state.has_arrived(entry);
        Some(PendingOp::of(self.judge.state, stream, &op, index, arrived))
    }

    fn rank(&self, key: Key, rank: u32) -> RankState {
        let operation = self.operation(key, rank);
        let doing = match (&operation, self.judge.end(key, rank)) {
            (Some(operation), _) => doing(operation),
            (None, None) => "has left the communicator".into(),
            (None, Some(end)) => match end.caller() {
                Some(thread) => format!("nothing; {}", self.thread(&thread)),
                None => "nothing".into(),
            },
        };
        RankState { communicator: self.title(key), rank: Rank::new(rank), operation, doing }
    }

    /// Who came to a join, and who did not.
    fn meeting(&self, id: u64) -> (String, Vec<RankState>) {
        let gathered = self.judge.engine.meetings.gathered(id);
        let (name, came) =
            gathered.map_or((None, Vec::new()), |meeting| (meeting.name, meeting.came));
        let title = name.unwrap_or_else(|| "a new communicator".into());
        let state = |(rank, came): (usize, bool)| {
            let waits = self.judge.callers.iter().find_map(|caller| match caller.waiting?.what {
                What::Join { call, id: other, rank: who } if (other, who) == (id, rank as u32) => {
                    Some(format!("waits in {call} ({})", caller.thread))
                }
                _ => None,
            });
            let doing = match waits {
                Some(waits) if came => waits,
                _ if came => "has come, and does not wait".into(),
                _ => "has not joined, and no thread is left that could".into(),
            };
            let rank = Rank::new(rank as u32);
            RankState { communicator: title.clone(), rank, operation: None, doing }
        };
        let states = came.into_iter().enumerate().map(state).collect();
        (title, states)
    }

    /// What a thread does.
    fn thread(&self, thread: &Arc<Thread>) -> String {
        if thread.has_ended() {
            return format!("its {thread} has ended");
        }
        let waiting = thread.waiting_in(self.judge.engine.nonce);
        match waiting {
            Some(waiting) => format!("its {thread} waits {}", self.wait(waiting.what)),
            None => format!("its {thread} sleeps outside the library"),
        }
    }

    fn wait(&self, what: What) -> String {
        wait_of(self.judge.state, what)
    }

    /// How one node hangs on the next.
    fn link(&self, node: Node, next: Node) -> Option<String> {
        Some(match (node, next) {
            (Node::Wait(index), Node::Head(place)) => {
                let caller = &self.judge.callers[index];
                let wait = caller.waiting.map(|waiting| self.wait(waiting.what))?;
                format!("{} waits {wait}, which is at {}", caller.thread, self.entry(place))
            }
            (Node::Wait(index), Node::Absent(_, rank)) => {
                let caller = &self.judge.callers[index];
                let wait = caller.waiting.map(|waiting| self.wait(waiting.what))?;
                format!("{} waits {wait} for rank {rank}", caller.thread)
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
                let caller = &self.judge.callers[index];
                let wait = caller.waiting.map(|waiting| self.wait(waiting.what))?;
                format!(
                    "rank {rank} of '{}' issues nothing: its {} waits {wait}",
                    self.title(comm),
                    caller.thread
                )
            }
            (Node::Absent(..) | Node::Meeting(_), _) => return None,
        })
    }

    /// The operation for which `place` waits and that stands behind `behind`.
    fn counterpart(&self, place: Place, behind: Place) -> Option<String> {
        let ops = self.judge.ops_at(place);
        let queue = &self.judge.state.streams.at(behind.stream)?.queue;
        let others = queue.iter().skip(behind.index + 1);
        let mut others = others.flat_map(|entry| self.judge.state.ops(entry));
        let other = others.find(|other| ops.iter().any(|op| is_side_of(op, other)))?;
        Some(self.op(other))
    }

    /// An entry, for people.
    fn entry(&self, place: Place) -> String {
        if let [op, ..] = self.judge.ops_at(place) {
            return self.op(op);
        }
        let stream = self.judge.state.streams.at(place.stream);
        let entry = stream.and_then(|stream| stream.queue.get(place.index));
        match (entry, stream) {
            (Some(Entry::Wait { .. }), Some(stream)) => {
                format!("a wait for an event on {}", stream_of(stream))
            }
            (Some(entry), Some(stream)) => format!("a {} on {}", entry.name(), stream_of(stream)),
            _ => "its end".into(),
        }
    }

    fn op(&self, op: &Op) -> String {
        let name = op.kind.name();
        format!(
            "rank {}'s {name} #{} in '{}' ({})",
            op.rank,
            op.sequence,
            self.title(op.comm),
            op.site
        )
    }
}

/// Whether two operations are two ranks' sides of one.
fn is_side_of(op: &Op, other: &Op) -> bool {
    let same = (op.comm, op.sequence) == (other.comm, other.sequence);
    let pair = match (op.kind, other.kind) {
        (Kind::Send, Kind::Recv) | (Kind::Recv, Kind::Send) => {
            (op.rank, op.other) == (other.other, other.rank)
        }
        (one, two) => !one.is_point_to_point() && !two.is_point_to_point() && op.rank != other.rank,
    };
    same && pair
}

fn stream_of(stream: &Stream) -> String {
    let name = crate::pending::stream_name(stream.shared.raw, stream.is_branch);
    format!("{name} of device {}", stream.shared.device)
}

/// A wait, for people: what comes behind "waits".
fn wait_of(state: &State, what: What) -> String {
    let title = |comm: Key| state.comms.get(comm).map_or_else(|| "gone".into(), Comm::title);
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
