//! Streams: queues of work, and the inboxes through which it comes in.

use std::{
    collections::VecDeque,
    panic::Location,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
};

use collectives_core::RawStream;

use crate::{calls::Call, error::Failure, op::Op, slab::Key, sync::Parker};

/// The part of a stream that callers share with the engine without its lock.
pub(crate) struct StreamShared {
    pub(crate) key: Key,
    /// The handle; 0 for a default stream and for the branches of graphs.
    pub(crate) raw: RawStream,
    pub(crate) device: usize,
    mode: AtomicU8,
    /// Whether the engine has to see each piece of work as it comes.
    watched: bool,
    /// Entries that were passed while there was no failure to report.
    passed: AtomicU64,
    /// Work that the engine has not seen yet, in order.
    pub(crate) inbox: Mutex<VecDeque<Entry>>,
}

impl StreamShared {
    pub(crate) fn new(key: Key, raw: RawStream, device: usize, watched: bool) -> Self {
        let mode = if watched { Mode::Watched } else { Mode::Open };
        let mode = AtomicU8::new(mode as u8);
        let (passed, inbox) = (AtomicU64::new(0), Mutex::new(VecDeque::new()));
        Self { key, raw, device, mode, watched, passed, inbox }
    }

    /// Whether work can go straight to the inbox.
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        self.mode.load(Ordering::Acquire) == Mode::Open as u8
    }

    /// Whether work is recorded.
    pub(crate) fn is_capturing(&self) -> bool {
        self.mode.load(Ordering::Acquire) == Mode::Capturing as u8
    }

    /// Ends a capture.
    pub(crate) fn reopen(&self) {
        self.set_mode(if self.watched { Mode::Watched } else { Mode::Open });
    }

    /// Whether the handle was destroyed.
    pub(crate) fn is_destroyed(&self) -> bool {
        self.mode.load(Ordering::Acquire) == Mode::Destroyed as u8
    }

    /// Whether as many entries as `target` are known to have passed without a failure.
    pub(crate) fn has_passed(&self, target: u64) -> bool {
        self.passed.load(Ordering::Acquire) >= target
    }

    pub(crate) fn set_mode(&self, mode: Mode) {
        self.mode.store(mode as u8, Ordering::Release);
    }
}

/// What happens to work that is enqueued.
#[derive(Clone, Copy)]
#[repr(u8)]
pub(crate) enum Mode {
    /// It is run.
    Open,
    /// It is recorded.
    Capturing,
    /// It is refused.
    Destroyed,
    /// It is run, and goes to the engine at once.
    Watched,
}

/// The engine's part of a stream.
pub(crate) struct Stream {
    pub(crate) shared: Arc<StreamShared>,
    /// What has not been passed, the head first.
    pub(crate) queue: VecDeque<Entry>,
    /// Whether the head has been started: it waits for others, or is running.
    pub(crate) started: bool,
    /// How many entries at the head are published where other processes see them.
    pub(crate) ahead: usize,
    /// Number of entries passed.
    pub(crate) passed: u64,
    /// Who waits until how many entries are passed.
    pub(crate) waiters: Vec<(u64, Arc<Parker>)>,
    /// The first failure of work on it that nobody has been told of.
    pub(crate) failure: Option<Failure>,
    /// The capture it takes part in.
    pub(crate) capture: Option<Membership>,
    /// Whether it is the branch of a graph, not a stream of the user.
    pub(crate) is_branch: bool,
}

/// A stream's part in a capture.
#[derive(Clone, Copy)]
pub(crate) struct Membership {
    pub(crate) capture: u32,
    pub(crate) branch: usize,
}

impl Stream {
    pub(crate) fn new(shared: Arc<StreamShared>, is_branch: bool) -> Self {
        Self {
            shared,
            queue: VecDeque::new(),
            started: false,
            ahead: 0,
            passed: 0,
            waiters: Vec::new(),
            failure: None,
            capture: None,
            is_branch,
        }
    }

    /// The head is done.
    pub(crate) fn pass(&mut self) {
        self.queue.pop_front();
        self.started = false;
        self.ahead = self.ahead.saturating_sub(1);
        self.passed += 1;
        if self.failure.is_none() {
            self.shared.passed.store(self.passed, Ordering::Release);
        }
    }

    /// Number of entries ever enqueued.
    pub(crate) fn enqueued(&self) -> u64 {
        self.passed + self.queue.len() as u64
    }
}

/// One piece of work in a stream.
#[derive(Clone, Copy)]
pub(crate) enum Entry {
    /// A function of the user to call.
    Call(Call),
    /// Bytes to copy.
    Copy { from: *const u8, to: *mut u8, bytes: usize, site: &'static Location<'static> },
    /// Bytes to fill.
    Fill { to: *mut u8, value: u8, bytes: usize, site: &'static Location<'static> },
    /// Memory to give back.
    Free { start: usize, site: &'static Location<'static> },
    /// The start of a run, in a branch of its graph.
    GraphBegin { run: u32 },
    /// The end of a run, in a branch of its graph.
    GraphEnd { run: u32 },
    /// A run, in the stream it was launched on.
    GraphRun { run: u32 },
    /// One operation.
    Op(Op),
    /// An event to reach.
    Record { signal: u32 },
    /// Several operations that are one; the same entry stands in every stream they use.
    Unit { unit: u32 },
    /// An event to wait for.
    Wait { signal: u32 },
}

// SAFETY: the pointers are the caller's, who gave them to the engine until the stream has passed.
unsafe impl Send for Entry {}

impl Entry {
    /// What it is, for people.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Call(_) => "host function",
            Self::Copy { .. } => "copy",
            Self::Fill { .. } => "memset",
            Self::Free { .. } => "free",
            Self::GraphBegin { .. } | Self::GraphEnd { .. } | Self::GraphRun { .. } => "graph",
            Self::Op(op) => op.kind.name(),
            Self::Record { .. } => "record",
            Self::Unit { .. } => "group",
            Self::Wait { .. } => "wait",
        }
    }
}
