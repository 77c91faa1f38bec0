//! Events, captures, and the graphs that captures become.
//!
//! A capture keeps a list of *nodes* in the order in which they were issued, each on a *branch*: the
//! stream that began the capture, and every stream that joined it by waiting for an event recorded
//! in it. A graph owns a hidden stream for each branch. A launch puts the nodes, with fresh sequence
//! numbers and fresh events, into those streams, between a begin and an end; the begin holds until
//! the launching stream has come to the run and the graph's earlier runs have ended. So a run takes
//! part in matching like any other work, and the engine needs no second set of rules.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use collectives_core::{RawStream, Result};

use crate::{
    error::misuse,
    op::Op,
    runtime::{CaptureFault, CaptureInfo},
    slab::Key,
    state::State,
    stream::{Entry, Membership, Mode, Stream, StreamShared},
};

/// An event: what was recorded into it last.
#[derive(Clone, Copy)]
pub(crate) struct Event {
    pub(crate) device: usize,
    /// Whether it notes when it is reached.
    pub(crate) is_timed: bool,
    pub(crate) latest: Recording,
}

/// A recording of an event.
#[derive(Clone, Copy)]
pub(crate) enum Recording {
    /// In a capture: nothing outside may use it.
    Captured {
        capture: Key,
        slot: usize,
    },
    Never,
    /// On a stream, which has passed so many entries when it is reached.
    Signal {
        signal: u32,
        stream: Key,
        target: u64,
    },
}

/// Something that streams wait for: one recording of an event.
pub(crate) struct Signal {
    pub(crate) reached: bool,
    pub(crate) is_timed: bool,
    /// When it was reached, where it is timed.
    pub(crate) at: Option<Instant>,
    /// Streams whose head waits for it.
    pub(crate) waiting: Vec<u32>,
    /// The event, the entry that reaches it, the entries that wait for it.
    pub(crate) references: usize,
}

impl Signal {
    fn new(references: usize) -> Self {
        Self { reached: false, is_timed: false, at: None, waiting: Vec::new(), references }
    }
}

/// A capture under way.
pub(crate) struct Capture {
    key: Key,
    branches: Vec<Branch>,
    nodes: Vec<Node>,
    /// Recordings of events: what each had behind it.
    slots: Vec<Slot>,
}

struct Branch {
    stream: u32,
    /// By branch: how many of its nodes are known to be done before this branch's next one.
    clock: Vec<usize>,
}

struct Slot {
    clock: Vec<usize>,
    waits: usize,
}

/// One captured piece of work.
#[derive(Clone)]
enum Node {
    /// An operation, copy or fill.
    Entry {
        branch: usize,
        entry: Entry,
    },
    Group {
        branches: Vec<usize>,
        ops: Vec<Op>,
    },
    Record {
        branch: usize,
        slot: usize,
    },
    Wait {
        branch: usize,
        slot: usize,
    },
}

/// A capture that ended well, ready to be launched.
pub(crate) struct Graph {
    pub(crate) device: usize,
    /// Its hidden streams.
    pub(crate) branches: Vec<u32>,
    /// Runs launched and not ended, in order.
    pub(crate) pending: VecDeque<u32>,
    pub(crate) destroyed: bool,
    nodes: Vec<Node>,
    /// Waits for each recording.
    waits: Vec<usize>,
}

/// One launch of a graph.
pub(crate) struct Run {
    pub(crate) graph: u32,
    /// The stream it was launched on.
    pub(crate) stream: u32,
    /// Whether that stream has come to it.
    pub(crate) at_head: bool,
    pub(crate) open: bool,
    pub(crate) branches_left: usize,
}

impl Capture {
    /// Notes that all of `branches` go on together with one more node each.
    fn tick(&mut self, branches: &[usize]) {
        let mut together = vec![0; self.branches.len()];
        for &branch in branches {
            merge(&mut together, &self.branches[branch].clock);
        }
        for &branch in branches {
            together[branch] += 1;
        }
        for &branch in branches {
            self.branches[branch].clock.clone_from(&together);
        }
    }

    fn join(&mut self, stream: u32) -> usize {
        self.branches.push(Branch { stream, clock: Vec::new() });
        self.branches.len() - 1
    }
}

impl State {
    /// Starts capturing a stream.
    pub(crate) fn begin_capture(&mut self, stream: u32) {
        let key = self.captures.insert_with(|key| Capture {
            key,
            branches: vec![Branch { stream, clock: Vec::new() }],
            nodes: Vec::new(),
            slots: Vec::new(),
        });
        self.enter_capture(stream, Membership { capture: key.index, branch: 0 });
    }

    fn enter_capture(&mut self, stream: u32, membership: Membership) {
        let stream = &mut self.streams[stream];
        stream.capture = Some(membership);
        stream.shared.set_mode(Mode::Capturing);
    }

    /// Records a copy, a fill or one operation.
    pub(crate) fn capture_entry(&mut self, membership: Membership, entry: Entry) {
        let capture = &mut self.captures[membership.capture];
        let branch = membership.branch;
        capture.tick(&[branch]);
        capture.nodes.push(Node::Entry { branch, entry });
    }

    /// Records operations that are one.
    pub(crate) fn capture_group(&mut self, capture: u32, branches: Vec<usize>, ops: Vec<Op>) {
        let capture = &mut self.captures[capture];
        capture.tick(&branches);
        capture.nodes.push(Node::Group { branches, ops });
    }

    /// Records an event, in a capture or not. The event is alive.
    pub(crate) fn record(&mut self, event: Key, stream: u32) {
        let latest = match self.streams[stream].capture {
            Some(membership) => {
                let capture = &mut self.captures[membership.capture];
                let branch = membership.branch;
                let slot = capture.slots.len();
                let clock = capture.branches[branch].clock.clone();
                capture.slots.push(Slot { clock, waits: 0 });
                capture.nodes.push(Node::Record { branch, slot });
                Recording::Captured { capture: capture.key, slot }
            }
            None => {
                let is_timed = self.events.get(event).is_some_and(|event| event.is_timed);
                let signal = self.signals.insert(Signal { is_timed, ..Signal::new(2) }).index;
                self.push(stream, Entry::Record { signal });
                let stream = &self.streams[stream];
                let target = stream.enqueued();
                Recording::Signal { signal, stream: stream.shared.key, target }
            }
        };
        self.set_recording(event, latest);
    }

    /// Replaces what was recorded into an event.
    pub(crate) fn set_recording(&mut self, event: Key, latest: Recording) {
        let Some(event) = self.events.get_mut(event) else { return };
        if let Recording::Signal { signal, .. } = std::mem::replace(&mut event.latest, latest) {
            self.release(signal);
        }
    }

    /// Makes a stream wait for the latest recording of an event.
    pub(crate) fn wait_event(&mut self, stream: u32, latest: Recording) -> Result<()> {
        let membership = self.streams[stream].capture;
        match (latest, membership) {
            (Recording::Never, _) => {
                if !std::mem::replace(&mut self.warned_of_event, true) {
                    tracing::warn!(
                        "a stream waits for an event that was never recorded, which holds up \
                         nothing: record it first"
                    );
                }
                Ok(())
            }
            (Recording::Signal { .. }, Some(_)) => Err(misuse(
                "a stream that is being captured cannot wait for an event recorded outside the \
                 capture",
            )
            .with_hint("let the stream wait before the capture begins")
            .with_source(CaptureFault::Isolation)),
            (Recording::Signal { signal, .. }, None) => {
                self.signals[signal].references += 1;
                self.push(stream, Entry::Wait { signal });
                Ok(())
            }
            (Recording::Captured { capture: key, slot }, membership) => {
                if self.captures.get(key).is_none() {
                    return Err(misuse("the event was recorded in a capture that has ended")
                        .with_hint("record it again")
                        .with_source(CaptureFault::CapturedEvent));
                }
                let membership = match membership {
                    Some(membership) if membership.capture == key.index => membership,
                    Some(_) => {
                        return Err(misuse(
                            "the event was recorded in the capture of another graph",
                        )
                        .with_source(CaptureFault::Merge));
                    }
                    None => self.join_capture(stream, key.index)?,
                };
                let capture = &mut self.captures[key.index];
                let branch = membership.branch;
                capture.slots[slot].waits += 1;
                let clock = capture.slots[slot].clock.clone();
                merge(&mut capture.branches[branch].clock, &clock);
                capture.nodes.push(Node::Wait { branch, slot });
                Ok(())
            }
        }
    }

    /// A stream that waits for captured work becomes part of the capture.
    fn join_capture(&mut self, stream: u32, capture: u32) -> Result<Membership> {
        if self.streams[stream].shared.raw.bits() == 0 {
            return Err(misuse("the default stream cannot be captured")
                .with_hint("use another")
                .with_source(CaptureFault::Implicit));
        }
        let branch = self.captures[capture].join(stream);
        let membership = Membership { capture, branch };
        self.enter_capture(stream, membership);
        Ok(membership)
    }

    /// Ends the capture that `stream` takes part in, and makes its graph.
    pub(crate) fn end_capture(&mut self, stream: u32) -> Result<Graph> {
        let none = || {
            misuse("nothing is being captured on this stream")
                .with_source(CaptureFault::NotCapturing)
        };
        let membership = self.streams[stream].capture.ok_or_else(none)?;
        let capture = self.captures.remove(membership.capture).ok_or_else(none)?;
        for branch in &capture.branches {
            self.leave_capture(branch.stream);
        }
        if membership.branch != 0 {
            return Err(misuse("the capture was begun on another stream")
                .with_hint("end it on the stream that began it")
                .with_source(CaptureFault::Unmatched));
        }
        let origin = &capture.branches[0].clock;
        for (index, branch) in capture.branches.iter().enumerate().skip(1) {
            let (done, joined) = (at(&branch.clock, index), at(origin, index));
            if joined < done {
                return Err(misuse(format!(
                    "{} of {done} operations on a forked stream were never joined to the stream \
                     that began the capture",
                    done - joined
                ))
                .with_hint("record an event on the forked stream and wait for it")
                .with_source(CaptureFault::Unjoined));
            }
        }
        let device = self.streams[stream].shared.device;
        Ok(Graph {
            device,
            branches: capture.branches.iter().map(|_| self.make_branch(device)).collect(),
            pending: VecDeque::new(),
            destroyed: false,
            waits: capture.slots.iter().map(|slot| slot.waits).collect(),
            nodes: capture.nodes,
        })
    }

    /// Graphs that were not destroyed, and captures under way, with operations of a rank's end.
    pub(crate) fn graphs_with(&self, comm: Key, rank: u32) -> usize {
        let holds = |nodes: &[Node]| {
            nodes.iter().flat_map(Node::ops).any(|op| (op.comm, op.rank) == (comm, rank))
        };
        let graphs =
            self.graphs.iter().filter(|(_, graph)| !graph.destroyed && holds(&graph.nodes));
        let captures = self.captures.iter().filter(|(_, capture)| holds(&capture.nodes));
        graphs.count() + captures.count()
    }

    /// What a stream takes part in.
    pub(crate) fn capture_of(&self, stream: u32) -> Option<CaptureInfo> {
        let capture = &self.captures[self.streams.at(stream)?.capture?.capture];
        let origin = self.streams[capture.branches[0].stream].shared.raw;
        Some(CaptureInfo { id: number(capture.key), origin })
    }

    /// Another graph of the same work.
    pub(crate) fn copy_graph(&mut self, graph: u32) -> Graph {
        let Graph { device, branches, nodes, waits, .. } = &self.graphs[graph];
        let (device, count) = (*device, branches.len());
        let (nodes, waits) = (nodes.clone(), waits.clone());
        let branches = (0..count).map(|_| self.make_branch(device)).collect();
        Graph { device, branches, pending: VecDeque::new(), destroyed: false, nodes, waits }
    }

    /// Makes a hidden stream.
    fn make_branch(&mut self, device: usize) -> u32 {
        let watched = self.adversary.is_some();
        let make = |key| {
            let shared = StreamShared::new(key, RawStream::DEFAULT, device, watched);
            Stream::new(Arc::new(shared), true)
        };
        self.streams.insert_with(make).index
    }

    /// Makes a stream run its work again.
    fn leave_capture(&mut self, stream: u32) {
        if let Some(stream) = self.streams.at_mut(stream) {
            stream.capture = None;
            if !stream.shared.is_destroyed() {
                stream.shared.reopen();
            }
        }
    }

    /// Drops the capture that a destroyed stream took part in.
    pub(crate) fn drop_capture(&mut self, stream: u32) {
        if self.streams[stream].capture.is_some() {
            let _ = self.end_capture(stream);
        }
    }

    /// Enqueues one run of a graph. The graph is alive and `stream` is not being captured.
    pub(crate) fn launch(&mut self, graph: u32, stream: u32) -> Result<()> {
        // Taken out for the while, since the nodes are read as the rest of the state changes.
        let nodes = std::mem::take(&mut self.graphs[graph].nodes);
        let outcome = self.launch_nodes(graph, &nodes, stream);
        self.graphs[graph].nodes = nodes;
        outcome
    }

    fn launch_nodes(&mut self, graph: u32, nodes: &[Node], stream: u32) -> Result<()> {
        for op in nodes.iter().flat_map(Node::ops) {
            let alive = self.comms.get(op.comm);
            if alive.is_none_or(|comm| comm.ends[op.rank as usize].departed) {
                return Err(misuse(format!(
                    "the graph holds {} of rank {} ({}), whose communicator is gone",
                    op.kind.name(),
                    op.rank,
                    op.site
                ))
                .with_hint("keep communicators until the graphs that use them are destroyed"));
            }
        }
        let Graph { branches, waits, .. } = &self.graphs[graph];
        let (branches, waits) = (branches.clone(), waits.clone());
        let signals: Vec<u32> =
            waits.iter().map(|waits| self.signals.insert(Signal::new(1 + waits)).index).collect();
        let branches_left = branches.len();
        let run = Run { graph, stream, at_head: false, open: false, branches_left };
        let run = self.runs.insert(run).index;
        self.graphs[graph].pending.push_back(run);
        for &branch in &branches {
            self.push(branch, Entry::GraphBegin { run });
        }
        for node in nodes {
            match node {
                Node::Entry { branch, entry: Entry::Op(op) } => {
                    let op = self.numbered(*op);
                    self.push(branches[*branch], Entry::Op(op));
                }
                Node::Entry { branch, entry } => self.push(branches[*branch], *entry),
                Node::Group { branches: used, ops } => {
                    let ops = ops.iter().map(|&op| self.numbered(op)).collect();
                    self.push_unit(ops, used.iter().map(|&branch| branches[branch]).collect());
                }
                Node::Record { branch, slot } => {
                    self.push(branches[*branch], Entry::Record { signal: signals[*slot] });
                }
                Node::Wait { branch, slot } => {
                    self.push(branches[*branch], Entry::Wait { signal: signals[*slot] });
                }
            }
        }
        for &branch in &branches {
            self.push(branch, Entry::GraphEnd { run });
        }
        self.push(stream, Entry::GraphRun { run });
        Ok(())
    }

    /// The operation with its place in the order of its communicator.
    pub(crate) fn numbered(&self, mut op: Op) -> Op {
        if let Some(comm) = self.comms.get(op.comm) {
            op.sequence = comm.ends[op.rank as usize].shared.number(op.kind, op.other);
        }
        op
    }
}

impl Graph {
    /// Pieces of work in it: operations, groups, copies, fills and host functions.
    pub(crate) fn size(&self) -> usize {
        let work = |node: &&Node| matches!(node, Node::Entry { .. } | Node::Group { .. });
        self.nodes.iter().filter(work).count()
    }
}

impl Node {
    fn ops(&self) -> &[Op] {
        match self {
            Self::Entry { entry: Entry::Op(op), .. } => std::slice::from_ref(op),
            Self::Group { ops, .. } => ops,
            Self::Entry { .. } | Self::Record { .. } | Self::Wait { .. } => &[],
        }
    }
}

/// A number that no other capture of the engine has, and that is not 0.
pub(crate) fn number(key: Key) -> u64 {
    (u64::from(key.generation) << 32 | u64::from(key.index)) + 1
}

/// Raises each part of `clock` to that of `other`.
fn merge(clock: &mut Vec<usize>, other: &[usize]) {
    if clock.len() < other.len() {
        clock.resize(other.len(), 0);
    }
    for (mine, theirs) in clock.iter_mut().zip(other) {
        *mine = (*mine).max(*theirs);
    }
}

fn at(clock: &[usize], branch: usize) -> usize {
    clock.get(branch).copied().unwrap_or(0)
}
