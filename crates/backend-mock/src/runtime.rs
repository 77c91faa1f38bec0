//! What a vendor's runtime has beyond [`Device`](collectives_core::Device): timed events, host
//! functions, questions about memory and captures. For those who put such a runtime's face on a mock.

use std::{error::Error as StdError, ffi::c_void, fmt, ptr, sync::Arc, time::Instant};

use collectives_core::{Error, RawEvent, RawGraph, RawStream, Result};

use crate::{
    Mock, MockComm, MockDevice,
    alive::AliveKind,
    calls::Call,
    error::{Failure, invalid, misuse},
    fork,
    graph::{Recording, number},
    slab::Key,
    state::State,
    stream::{Entry, Stream, StreamShared},
};

/// Memory of a device, as [`Device::alloc`](collectives_core::Device::alloc) gave it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Allocation {
    /// The device.
    pub device: usize,
    /// Its first byte.
    pub start: *mut c_void,
    /// Its size; 1 where none was asked for.
    pub bytes: usize,
}

/// A capture under way.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct CaptureInfo {
    /// A number that no other capture of the mock has; never 0.
    pub id: u64,
    /// The stream that began it.
    pub origin: RawStream,
}

/// Why a call was refused that has to do with captures: the
/// [source](std::error::Error::source) of such errors.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum CaptureFault {
    /// The event was recorded in a capture, and means nothing outside.
    CapturedEvent,
    /// The stream is being captured already.
    Capturing,
    /// The default stream would become part of the capture.
    Implicit,
    /// The capture would depend on work outside.
    Isolation,
    /// Two captures would become one.
    Merge,
    /// Nothing is being captured on the stream.
    NotCapturing,
    /// A stream that joined the capture was not joined to its origin again.
    Unjoined,
    /// The capture was begun on another stream.
    Unmatched,
    /// The call makes no sense on a stream that is being captured.
    Unsupported,
}

impl fmt::Display for CaptureFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CapturedEvent => "an event of a capture was used outside",
            Self::Capturing => "the stream is being captured",
            Self::Implicit => "the default stream cannot be captured",
            Self::Isolation => "a capture cannot wait for work outside",
            Self::Merge => "two captures cannot become one",
            Self::NotCapturing => "the stream is not being captured",
            Self::Unjoined => "a stream was not joined again",
            Self::Unmatched => "the capture was begun on another stream",
            Self::Unsupported => "not on a stream that is being captured",
        })
    }
}

impl StdError for CaptureFault {}

impl Mock {
    /// The allocation that holds the byte at `ptr`, if memory of a device does.
    pub fn allocation(&self, ptr: *const c_void) -> Option<Allocation> {
        let (device, range) = self.engine.memory.find(ptr.addr())?;
        let start = ptr::with_exposed_provenance_mut(range.start);
        Some(Allocation { device, start, bytes: range.len() })
    }
}

impl MockComm {
    /// Graphs that were not destroyed, and captures under way, with operations of this rank. NCCL's
    /// finalize, destroy and abort wait until there are none; the mock's do not.
    pub fn captured_in(&self) -> usize {
        let (comm, rank) = (self.shared().comm, self.shared().info.rank.get());
        self.engine().with(|state| state.graphs_with(comm, rank))
    }
}

impl MockDevice {
    /// Bytes of its memory that are free, and all there are.
    #[doc(alias = "cuMemGetInfo")]
    pub fn memory_info(&self) -> (usize, usize) {
        let (used, total) = self.engine.memory.usage(self.info.ordinal);
        (total - used.min(total), total)
    }

    /// Gives memory back at once.
    ///
    /// # Safety
    /// See [`Device::free`](collectives_core::Device::free); no work uses the memory any more.
    ///
    /// # Errors
    /// [`InvalidArgument`](collectives_core::ErrorKind::InvalidArgument) where `ptr` is not the
    /// start of an allocation of the device.
    #[doc(alias = "cuMemFree")]
    pub unsafe fn free_now(&self, ptr: *mut c_void) -> Result<()> {
        fork::check()?;
        if self.engine.memory.owner(ptr.addr()) != Some(self.info.ordinal) {
            let ordinal = self.info.ordinal;
            let what = format!("{ptr:p} is not the start of an allocation of device {ordinal}");
            return Err(invalid(what).with_operation("free_now"));
        }
        self.engine.free(ptr.addr());
        Ok(())
    }

    /// Enqueues a call of `function` with `data`: it comes after what is enqueued on the stream, and
    /// before what follows. Functions of all streams run on one thread, one after another.
    ///
    /// # Safety
    /// See [`Device`](collectives_core::Device). Until the stream has passed it (where it is
    /// captured: until its graph is destroyed), the function can be called with `data`, on any
    /// thread.
    ///
    /// # Errors
    /// Those of the stream.
    #[doc(alias = "cuLaunchHostFunc")]
    pub unsafe fn call(
        &self,
        stream: RawStream,
        function: unsafe extern "C" fn(*mut c_void),
        data: *mut c_void,
    ) -> Result<()> {
        self.enqueue("call", stream, Entry::Call(Call { function, data }))
    }

    /// Whether the stream has passed all that is enqueued on it.
    ///
    /// # Safety
    /// See [`Device`](collectives_core::Device).
    ///
    /// # Errors
    /// Those of the stream, and failures of earlier work.
    #[doc(alias = "cuStreamQuery")]
    pub unsafe fn is_idle(&self, stream: RawStream) -> Result<bool> {
        let named = |error: Error| error.with_operation("is_idle");
        let shared = self.stream(stream).map_err(named)?;
        if shared.is_capturing() {
            return Err(named(
                misuse("the stream is being captured, so nothing runs")
                    .with_source(CaptureFault::Unsupported),
            ));
        }
        let (is_idle, failure) = self.engine.with(|state| {
            state.advance();
            let Some(stream) = state.streams.get_mut(shared.key) else { return (true, None) };
            let enqueued = stream.enqueued();
            if !stream.queue.is_empty() {
                state.want(shared.key.index, enqueued);
                return (false, None);
            }
            let failure = stream.failure.take();
            state.saw(shared.key.index, enqueued);
            (true, failure)
        });
        outcome(failure).map_err(named).map(|()| is_idle)
    }

    /// Number of pieces of work that were ever enqueued on the stream.
    ///
    /// # Safety
    /// See [`Device`](collectives_core::Device).
    ///
    /// # Errors
    /// Those of the stream.
    pub unsafe fn position(&self, stream: RawStream) -> Result<u64> {
        let shared = self.stream(stream).map_err(|error| error.with_operation("position"))?;
        let position =
            |state: &mut State| state.streams.get(shared.key).map_or(0, Stream::enqueued);
        Ok(self.engine.with(position))
    }

    /// Blocks until all streams of the device have passed what is enqueued on them now.
    ///
    /// # Errors
    /// The first failure of earlier work.
    #[doc(alias = "cuCtxSynchronize")]
    pub fn synchronize_all(&self) -> Result<()> {
        let failures = self.wait_all()?.into_iter();
        let first = failures.map(|(_, failure)| failure).next();
        outcome(first).map_err(|error| error.with_operation("synchronize_all"))
    }

    /// As [`synchronize_all`](Self::synchronize_all), but failures of earlier work are left for the
    /// next wait to tell.
    ///
    /// # Errors
    /// [`Forked`](collectives_core::ErrorKind::Forked).
    pub fn settle_all(&self) -> Result<()> {
        let failures = self.wait_all()?;
        self.engine.with(|state| {
            for (stream, failure) in failures {
                if let Some(stream) = state.streams.get_mut(stream) {
                    stream.failure.get_or_insert(failure);
                }
            }
        });
        Ok(())
    }

    /// Waits for all streams of the device. The answer is what failed on each.
    fn wait_all(&self) -> Result<Vec<(Key, Failure)>> {
        fork::check()?;
        self.engine.threads.note(Some(self.info.ordinal));
        let goals: Vec<_> = self.engine.with(|state| {
            let own = |stream: &&Stream| {
                let of_device = stream.shared.device == self.info.ordinal;
                of_device && !stream.is_branch && stream.capture.is_none()
            };
            let streams = state.streams.iter().map(|(_, stream)| stream).filter(own);
            streams.map(|stream| (Arc::clone(&stream.shared), stream.enqueued())).collect()
        });
        let wait = |(shared, goal): (Arc<StreamShared>, u64)| {
            let failure = self.wait_passed(&shared, Some(goal), None).flatten();
            failure.map(|failure| (shared.key, failure))
        };
        Ok(goals.into_iter().filter_map(wait).collect())
    }

    /// Makes an event that notes when it is reached.
    ///
    /// # Errors
    /// As [`event_create`](collectives_core::Device::event_create).
    #[doc(alias = "cuEventCreate")]
    #[track_caller]
    pub fn timed_event_create(&self) -> Result<RawEvent> {
        self.make_event(true)
    }

    /// Blocks until the latest recording of `event` is reached; returns at once where it has none.
    ///
    /// # Safety
    /// See [`Device`](collectives_core::Device).
    ///
    /// # Errors
    /// As [`query`](collectives_core::Device::query).
    #[doc(alias = "cuEventSynchronize")]
    pub unsafe fn synchronize_event(&self, event: RawEvent) -> Result<()> {
        let named = |error: Error| error.with_operation("synchronize_event");
        let goal = self.with_event("synchronize_event", event, |state, event, _| {
            let Recording::Signal { signal, stream, target } = event.latest else {
                return captured(event.latest).map_or(Ok(None), Err);
            };
            state.want_signal(signal);
            let stream = state.streams.get(stream);
            Ok(stream.map(|stream| (Arc::clone(&stream.shared), target)))
        })?;
        let Some((shared, target)) = goal else { return Ok(()) };
        self.engine.threads.note(Some(shared.device));
        outcome(self.wait_passed(&shared, Some(target), None).flatten()).map_err(named)
    }

    /// When the latest recording of a timed event was reached; `None` where it was not yet.
    ///
    /// # Safety
    /// See [`Device`](collectives_core::Device).
    ///
    /// # Errors
    /// As [`query`](collectives_core::Device::query), and
    /// [`InvalidArgument`](collectives_core::ErrorKind::InvalidArgument) where the event is not
    /// timed or was never recorded.
    #[doc(alias = "cuEventElapsedTime")]
    pub unsafe fn reached_at(&self, event: RawEvent) -> Result<Option<Instant>> {
        self.with_event("reached_at", event, |state, event, _| match event.latest {
            Recording::Signal { signal, .. } if event.is_timed => {
                state.want_signal(signal);
                let at = state.signals[signal].at;
                if at.is_some() {
                    state.saw_signal(signal);
                }
                Ok(at)
            }
            Recording::Signal { .. } => Err(invalid("the event was made without timing")),
            latest => {
                Err(captured(latest).unwrap_or_else(|| invalid("the event was never recorded")))
            }
        })
    }

    /// The capture that a stream takes part in.
    ///
    /// # Safety
    /// See [`Device`](collectives_core::Device).
    ///
    /// # Errors
    /// Those of the stream.
    #[doc(alias = "cuStreamGetCaptureInfo")]
    pub unsafe fn capture_of(&self, stream: RawStream) -> Result<Option<CaptureInfo>> {
        let shared = self.stream(stream).map_err(|error| error.with_operation("capture_of"))?;
        if !shared.is_capturing() {
            return Ok(None);
        }
        Ok(self.engine.with(|state| state.capture_of(shared.key.index)))
    }

    /// The number of the capture, ended or not, that an event was last recorded in.
    ///
    /// # Safety
    /// See [`Device`](collectives_core::Device).
    ///
    /// # Errors
    /// [`InvalidArgument`](collectives_core::ErrorKind::InvalidArgument) where there is no such event.
    pub unsafe fn capture_of_event(&self, event: RawEvent) -> Result<Option<u64>> {
        self.with_event("capture_of_event", event, |_, event, _| {
            Ok(match event.latest {
                Recording::Captured { capture, .. } => Some(number(capture)),
                Recording::Never | Recording::Signal { .. } => None,
            })
        })
    }

    /// Makes another graph of the same work.
    ///
    /// # Safety
    /// See [`Device`](collectives_core::Device), for all that was captured into the graph.
    ///
    /// # Errors
    /// [`InvalidArgument`](collectives_core::ErrorKind::InvalidArgument) where there is no such graph.
    #[doc(alias = "cuGraphInstantiate")]
    #[track_caller]
    pub unsafe fn graph_copy(&self, graph: RawGraph) -> Result<RawGraph> {
        let key = self.live_graph("graph_copy", graph)?;
        let copy = self.engine.with(|state| {
            let copy = state.copy_graph(key.index);
            state.graphs.insert(copy)
        });
        let copy = self.engine.graph_bits(copy);
        self.engine.ledger.add(AliveKind::Graph, copy.bits(), self.info.ordinal, None);
        Ok(copy)
    }

    /// Pieces of work in a graph: operations, groups, copies, fills and host functions.
    ///
    /// # Safety
    /// See [`Device`](collectives_core::Device).
    ///
    /// # Errors
    /// [`InvalidArgument`](collectives_core::ErrorKind::InvalidArgument) where there is no such graph.
    #[doc(alias = "cuGraphGetNodes")]
    pub unsafe fn graph_size(&self, graph: RawGraph) -> Result<usize> {
        let key = self.live_graph("graph_size", graph)?;
        Ok(self.engine.with(|state| state.graphs[key.index].size()))
    }

    fn live_graph(&self, operation: &'static str, graph: RawGraph) -> Result<Key> {
        fork::check()?;
        let named = |error: Error| error.with_operation(operation);
        let key = self.engine.graph_key(graph).map_err(named)?;
        let lives =
            self.engine.with(|state| state.graphs.get(key).is_some_and(|graph| !graph.destroyed));
        if lives { Ok(key) } else { Err(named(invalid("the graph was destroyed"))) }
    }
}

/// Work of a stream failed, or did not.
fn outcome(failure: Option<Failure>) -> Result<()> {
    failure.map_or(Ok(()), |failure| Err(failure.plain().with_poison(true)))
}

/// What is wrong with asking after a recording, where it is in a capture.
fn captured(latest: Recording) -> Option<Error> {
    matches!(latest, Recording::Captured { .. }).then(|| {
        misuse("the event was recorded in a capture, where nothing runs")
            .with_source(CaptureFault::CapturedEvent)
    })
}
