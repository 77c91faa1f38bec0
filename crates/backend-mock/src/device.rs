//! A fake device: the [`Device`] of the mock.

use std::{
    cell::Cell,
    ffi::c_void,
    fmt,
    panic::Location,
    sync::Arc,
    time::{Duration, Instant},
};

use collectives_core::{Device, DeviceInfo, ErrorKind, RawEvent, RawGraph, RawStream, Result};

use crate::{
    alive::AliveKind,
    engine::Engine,
    error::{BACKEND, Failure, invalid, misuse},
    fork,
    graph::{Event, Recording},
    pending::PendingOp,
    runtime::CaptureFault,
    slab::Key,
    state::State,
    stream::{Entry, Mode, StreamShared},
    threads::What,
};

/// A fake device: streams, events and graphs that are asynchronous as a GPU's, on host memory.
///
/// # Memory
/// What [`alloc`](Device::alloc) gives belongs to the device: other devices' communicators, streams
/// and copies refuse it, and a range that runs past its end, with
/// [`InvalidArgument`](ErrorKind::InvalidArgument). Any other memory of the process is taken as it
/// is, like registered host memory.
#[derive(Clone)]
pub struct MockDevice {
    pub(crate) engine: Arc<Engine>,
    pub(crate) info: Arc<DeviceInfo>,
}

impl MockDevice {
    pub(crate) fn new(engine: Arc<Engine>, ordinal: usize) -> Self {
        let memory = engine.config.device_memory;
        let info = DeviceInfo::new(BACKEND, ordinal, format!("mock device {ordinal}"), memory);
        Self { engine, info: Arc::new(info) }
    }

    /// Tells the machines of a process apart: devices of two mocks may have the same ordinal.
    pub fn machine(&self) -> u64 {
        self.engine.nonce
    }

    pub(crate) fn stream(&self, stream: RawStream) -> Result<Arc<StreamShared>> {
        fork::check()?;
        self.engine.threads.note(Some(self.info.ordinal));
        self.engine.stream(stream, self.info.ordinal)
    }

    /// Enqueues copies and the like, or captures them.
    pub(crate) fn enqueue(
        &self,
        operation: &'static str,
        stream: RawStream,
        entry: Entry,
    ) -> Result<()> {
        let shared = self.stream(stream).map_err(|error| error.with_operation(operation))?;
        if shared.is_open() {
            self.engine.enqueue(&shared, entry, || true);
            return Ok(());
        }
        let entry = self.moved_in(entry);
        self.engine.with(|state| {
            let index = shared.key.index;
            match state.streams.at(index).map(|stream| stream.capture) {
                Some(Some(membership)) => {
                    state.capture_entry(membership, entry);
                    Ok(())
                }
                // The capture ended meanwhile.
                Some(None) => {
                    state.push(index, entry);
                    Ok(())
                }
                None => Err(invalid("the stream was destroyed").with_operation(operation)),
            }
        })
    }

    /// With the engine's own addresses, where the program has others. Then streams are watched, and
    /// nothing comes by another way.
    fn moved_in(&self, entry: Entry) -> Entry {
        let inner = |at: *mut u8| self.engine.memory.inner(at);
        match entry {
            Entry::Copy { from, to, bytes, site } => {
                Entry::Copy { from: inner(from.cast_mut()), to: inner(to), bytes, site }
            }
            Entry::Fill { to, value, bytes, site } => {
                Entry::Fill { to: inner(to), value, bytes, site }
            }
            other => other,
        }
    }

    fn check(
        &self,
        operation: &'static str,
        name: &str,
        device: Option<usize>,
        ptr: *const c_void,
        bytes: usize,
    ) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        if ptr.is_null() {
            let error = invalid(format!("{name} is null, want {bytes} bytes"));
            return Err(error.with_operation(operation));
        }
        let checked = self.engine.check_memory(name, device, ptr.cast(), bytes);
        checked.map(|_| ()).map_err(|error| error.with_operation(operation))
    }

    #[track_caller]
    pub(crate) fn make_event(&self, is_timed: bool) -> Result<RawEvent> {
        fork::check()?;
        let event = Event { device: self.info.ordinal, is_timed, latest: Recording::Never };
        let key = self.engine.with(|state| state.events.insert(event));
        let event = self.engine.event_bits(key);
        self.engine.ledger.add(AliveKind::Event, event.bits(), self.info.ordinal, None);
        Ok(event)
    }

    /// Waits until a stream has passed so many entries, or (where `None`) what is enqueued now. The
    /// answer is the failure of work on it that nobody has been told of. `None` where time is up
    /// first.
    pub(crate) fn wait_passed(
        &self,
        shared: &StreamShared,
        goal: Option<u64>,
        until: Option<Instant>,
    ) -> Option<Option<Failure>> {
        let target = Cell::new(goal);
        let known = |&target: &u64| shared.has_passed(target) && !self.engine.adversarial;
        let clean = || target.get().filter(known).map(|_| None);
        let what = || What::Stream { stream: shared.key, target: target.get().unwrap_or(u64::MAX) };
        self.engine.wait(until, what, clean, |state, parker| {
            let Some(stream) = state.streams.get_mut(shared.key) else { return Ok(None) };
            let enqueued = target.get().unwrap_or_else(|| stream.enqueued());
            target.set(Some(enqueued));
            if stream.passed >= enqueued {
                let failure = stream.failure.take();
                state.saw(shared.key.index, enqueued);
                return Ok(failure);
            }
            match stream.waiters.iter_mut().find(|(_, other)| Arc::ptr_eq(other, parker)) {
                Some((known, _)) => *known = enqueued,
                None => stream.waiters.push((enqueued, Arc::clone(parker))),
            }
            let left = enqueued - stream.passed;
            state.want(shared.key.index, enqueued);
            Err(state.lag(shared.key.index, left as usize))
        })
    }

    pub(crate) fn with_event<R>(
        &self,
        operation: &'static str,
        event: RawEvent,
        act: impl FnOnce(&mut State, &Event, Key) -> Result<R>,
    ) -> Result<R> {
        fork::check()?;
        let named = |error: collectives_core::Error| error.with_operation(operation);
        let key = self.engine.event_key(event).map_err(named)?;
        self.engine
            .with(|state| {
                state.advance();
                let Some(&event) = state.events.get(key) else {
                    return Err(invalid("the event was destroyed"));
                };
                act(state, &event, key)
            })
            .map_err(named)
    }
}

impl Device for MockDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn alloc(&self, bytes: usize) -> Result<*mut c_void> {
        fork::check()?;
        let device = self.info.ordinal;
        self.engine.alloc(device, bytes).map_err(|error| error.with_operation("alloc"))
    }

    #[track_caller]
    unsafe fn free(&self, ptr: *mut c_void, after: RawStream) -> Result<()> {
        let shared = self.stream(after).map_err(|error| error.with_operation("free"))?;
        if self.engine.memory.owner(ptr.addr()) != Some(self.info.ordinal) {
            return Err(invalid(format!(
                "{ptr:p} is not the start of an allocation of device {}",
                self.info.ordinal
            ))
            .with_operation("free"));
        }
        if shared.is_capturing() {
            return Err(misuse("memory cannot be freed after work that is only being captured")
                .with_operation("free")
                .with_hint("free it after a stream that runs")
                .with_source(CaptureFault::Unsupported));
        }
        self.engine.ledger.remove(AliveKind::Buffer, ptr.addr());
        let site = Location::caller();
        self.enqueue("free", after, Entry::Free { start: ptr.addr(), site })
    }

    #[track_caller]
    unsafe fn copy_to(
        &self,
        dst: *mut c_void,
        src: *const c_void,
        bytes: usize,
        stream: RawStream,
    ) -> Result<()> {
        let device = Some(self.info.ordinal);
        self.check("copy_to", "dst", device, dst, bytes)?;
        self.check("copy_to", "src", device, src, bytes)?;
        let site = Location::caller();
        let entry = Entry::Copy { from: src.cast(), to: dst.cast(), bytes, site };
        self.enqueue("copy_to", stream, entry)
    }

    #[track_caller]
    unsafe fn copy_from(
        &self,
        dst: *mut c_void,
        src: *const c_void,
        bytes: usize,
        stream: RawStream,
    ) -> Result<()> {
        let device = Some(self.info.ordinal);
        self.check("copy_from", "dst", device, dst, bytes)?;
        self.check("copy_from", "src", device, src, bytes)?;
        let site = Location::caller();
        let entry = Entry::Copy { from: src.cast(), to: dst.cast(), bytes, site };
        self.enqueue("copy_from", stream, entry)
    }

    #[track_caller]
    unsafe fn copy_between(
        &self,
        dst: *mut c_void,
        src: *const c_void,
        bytes: usize,
        stream: RawStream,
    ) -> Result<()> {
        self.check("copy_between", "dst", None, dst, bytes)?;
        self.check("copy_between", "src", None, src, bytes)?;
        let site = Location::caller();
        let entry = Entry::Copy { from: src.cast(), to: dst.cast(), bytes, site };
        self.enqueue("copy_between", stream, entry)
    }

    #[track_caller]
    unsafe fn memset(
        &self,
        dst: *mut c_void,
        value: u8,
        bytes: usize,
        stream: RawStream,
    ) -> Result<()> {
        self.check("memset", "dst", Some(self.info.ordinal), dst, bytes)?;
        let site = Location::caller();
        self.enqueue("memset", stream, Entry::Fill { to: dst.cast(), value, bytes, site })
    }

    fn stream_create(&self) -> Result<RawStream> {
        fork::check()?;
        let stream = self.engine.make_stream(self.info.ordinal);
        self.engine.ledger.add(AliveKind::Stream, stream.bits(), self.info.ordinal, None);
        Ok(stream)
    }

    unsafe fn stream_destroy(&self, stream: RawStream) -> Result<()> {
        let named = |error: collectives_core::Error| error.with_operation("stream_destroy");
        if stream == RawStream::DEFAULT {
            return Err(named(invalid("the default stream cannot be destroyed")));
        }
        let shared = self.stream(stream).map_err(named)?;
        self.engine.ledger.remove(AliveKind::Stream, stream.bits());
        self.engine.with(|state| {
            state.drop_capture(shared.key.index);
            // Nobody can ask for its work any more.
            state.want(shared.key.index, u64::MAX);
            shared.set_mode(Mode::Destroyed);
            // Gives the place up now where nothing is pending, else when that has been passed.
            state.look_at(shared.key.index);
        });
        Ok(())
    }

    fn event_create(&self) -> Result<RawEvent> {
        self.make_event(false)
    }

    unsafe fn event_destroy(&self, event: RawEvent) -> Result<()> {
        self.with_event("event_destroy", event, |state, _, key| {
            state.set_recording(key, Recording::Never);
            state.events.remove(key.index);
            Ok(())
        })?;
        self.engine.ledger.remove(AliveKind::Event, event.bits());
        Ok(())
    }

    unsafe fn record(&self, event: RawEvent, stream: RawStream) -> Result<()> {
        let shared = self.stream(stream).map_err(|error| error.with_operation("record"))?;
        self.with_event("record", event, |state, event, key| {
            if event.device != shared.device {
                return Err(invalid(format!(
                    "the event belongs to device {}, the stream to device {}",
                    event.device, shared.device
                )));
            }
            state.record(key, shared.key.index);
            Ok(())
        })
    }

    unsafe fn wait(&self, stream: RawStream, event: RawEvent) -> Result<()> {
        let shared = self.stream(stream).map_err(|error| error.with_operation("wait"))?;
        self.with_event("wait", event, |state, event, _| {
            state.wait_event(shared.key.index, event.latest)
        })
    }

    unsafe fn query(&self, event: RawEvent) -> Result<bool> {
        self.with_event("query", event, |state, event, _| match event.latest {
            Recording::Never => Ok(true),
            Recording::Captured { .. } => {
                Err(misuse("the event was recorded in a capture, where nothing runs")
                    .with_source(CaptureFault::CapturedEvent))
            }
            Recording::Signal { signal, stream, .. } => {
                state.want_signal(signal);
                let reached = state.signals[signal].reached;
                if reached {
                    state.saw_signal(signal);
                }
                let stream = state.streams.get(stream);
                match stream.and_then(|stream| stream.failure.as_ref()) {
                    Some(failure) if reached => Err(failure.plain().with_poison(true)),
                    _ => Ok(reached),
                }
            }
        })
    }

    unsafe fn synchronize(&self, stream: RawStream, deadline: Option<Duration>) -> Result<()> {
        let named = |error: collectives_core::Error| error.with_operation("synchronize");
        let shared = self.stream(stream).map_err(named)?;
        if shared.is_capturing() {
            return Err(named(
                misuse("the stream is being captured, so there is nothing to wait for")
                    .with_hint("end the capture and launch its graph")
                    .with_source(CaptureFault::Unsupported),
            ));
        }
        let until = deadline.and_then(|deadline| Instant::now().checked_add(deadline));
        match self.wait_passed(&shared, None, until) {
            Some(None) => Ok(()),
            Some(Some(failure)) => Err(named(failure.plain().with_poison(true))),
            None => {
                let pending = self.engine.pending(Some(shared.key.index));
                let head = self.engine.with(|state| {
                    let stream = state.streams.get(shared.key)?;
                    stream.queue.front().map(|entry| (entry.name(), stream.queue.len()))
                });
                let waited = deadline.unwrap_or_default();
                let late = named(late(&shared, head, &pending, waited).plain());
                Err(self.engine.with(|state| state.noted(late)))
            }
        }
    }

    unsafe fn begin_capture(&self, stream: RawStream) -> Result<()> {
        let named = |error: collectives_core::Error| error.with_operation("begin_capture");
        if stream == RawStream::DEFAULT {
            return Err(named(
                misuse("the default stream cannot be captured")
                    .with_hint("create a stream for it")
                    .with_source(CaptureFault::Unsupported),
            ));
        }
        let shared = self.stream(stream).map_err(named)?;
        self.engine.with(|state| {
            if state.streams[shared.key.index].capture.is_some() {
                let error = misuse("the stream is being captured already");
                return Err(named(error.with_source(CaptureFault::Capturing)));
            }
            state.begin_capture(shared.key.index);
            Ok(())
        })
    }

    unsafe fn end_capture(&self, stream: RawStream) -> Result<RawGraph> {
        let named = |error: collectives_core::Error| error.with_operation("end_capture");
        let shared = self.stream(stream).map_err(named)?;
        let key = self.engine.with(|state| {
            let graph = state.end_capture(shared.key.index).map_err(named)?;
            Ok::<_, collectives_core::Error>(state.graphs.insert(graph))
        })?;
        let graph = self.engine.graph_bits(key);
        self.engine.ledger.add(AliveKind::Graph, graph.bits(), self.info.ordinal, None);
        Ok(graph)
    }

    unsafe fn is_capturing(&self, stream: RawStream) -> Result<bool> {
        let shared = self.stream(stream).map_err(|error| error.with_operation("is_capturing"))?;
        Ok(shared.is_capturing())
    }

    unsafe fn launch(&self, graph: RawGraph, stream: RawStream) -> Result<()> {
        let named = |error: collectives_core::Error| error.with_operation("launch");
        let shared = self.stream(stream).map_err(named)?;
        let key = self.engine.graph_key(graph).map_err(named)?;
        self.engine
            .with(|state| {
                let Some(graph) = state.graphs.get(key).filter(|graph| !graph.destroyed) else {
                    return Err(invalid("the graph was destroyed"));
                };
                if graph.device != shared.device {
                    return Err(invalid(format!(
                        "the graph was captured on device {}, the stream belongs to device {}",
                        graph.device, shared.device
                    )));
                }
                if state.streams[shared.key.index].capture.is_some() {
                    return Err(misuse("a graph cannot be launched into a capture")
                        .with_source(CaptureFault::Unsupported));
                }
                state.launch(key.index, shared.key.index)
            })
            .map_err(named)
    }

    unsafe fn graph_destroy(&self, graph: RawGraph) -> Result<()> {
        fork::check()?;
        let named = |error: collectives_core::Error| error.with_operation("graph_destroy");
        let key = self.engine.graph_key(graph).map_err(named)?;
        self.engine
            .with(|state| {
                let Some(graph) = state.graphs.get_mut(key).filter(|graph| !graph.destroyed) else {
                    return Err(invalid("the graph was destroyed already"));
                };
                graph.destroyed = true;
                state.forget_graph(key.index);
                Ok(())
            })
            .map_err(named)?;
        self.engine.ledger.remove(AliveKind::Graph, graph.bits());
        Ok(())
    }
}

impl fmt::Debug for MockDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MockDevice").field("info", &self.info).finish_non_exhaustive()
    }
}

/// A wait whose deadline passed: what is pending on the stream first, then what its operations wait
/// for.
fn late(
    shared: &StreamShared,
    head: Option<(&str, usize)>,
    pending: &[PendingOp],
    waited: Duration,
) -> Failure {
    let (own, others): (Vec<_>, Vec<_>) = pending.iter().partition(|op| op.is_on(shared));
    let mut message = format!("the stream has not passed its work in {waited:?}");
    if let Some((name, length)) = head {
        message += &format!("; {length} entries are left, the first is a {name}");
    }
    let own_comms = |op: &&PendingOp| own.iter().any(|own| own.is_of_same_communicator(op));
    for (heading, ops) in [
        ("pending on it", own.clone()),
        ("pending elsewhere", others.into_iter().filter(own_comms).collect()),
    ] {
        for (index, op) in ops.iter().take(LISTED).enumerate() {
            let heading = if index == 0 { format!("; {heading}: ") } else { ", then ".into() };
            message += &format!("{heading}{op}");
        }
        if ops.len() > LISTED {
            message += &format!(", and {} more", ops.len() - LISTED);
        }
    }
    Failure::new(ErrorKind::Timeout, message)
}

/// Pending operations that a timeout lists of each kind.
const LISTED: usize = 8;
