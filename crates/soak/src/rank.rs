//! One rank of a program, on any backend.

use std::{
    ffi::c_void,
    fmt,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use collectives_core::{
    AbortHandle, Backend, BackendExt, Collectives, Device, Error, ErrorKind, JoinConfig, Launch,
    PreMulSum, Rank, RawEvent, RawGraph, RawStream, RecvBuf, ReduceOp, Result, Scalar, SendBuf,
    ShrinkConfig, Split, SplitConfig, UniqueId,
};

use crate::{
    element,
    lower::{Action, EVENTS, Part},
    oracle::{Memory, host_scalar, initial},
    program::{Call, HOST, Place, Program, Reduction},
};

/// Where a rank runs, and with whom.
pub(crate) struct Post<'a, B> {
    /// The library. The rank's device has the rank's number.
    pub(crate) backend: &'a B,
    /// By communicator: the id with which its ranks meet, where they join.
    pub(crate) ids: &'a [UniqueId],
    /// Which rank it is.
    pub(crate) rank: usize,
    /// For how long it waits for others who join.
    pub(crate) joins: Option<Duration>,
    /// Who looks on.
    pub(crate) watch: &'a dyn Watch,
    /// Where host memory stays that streams may use when the rank is gone.
    pub(crate) keep: &'a Keep,
}

/// Somebody who looks on as a rank runs.
pub(crate) trait Watch: Sync {
    /// The rank is about to do something. To panic here is to kill it.
    fn about_to(&self, rank: usize, what: &dyn fmt::Debug);

    /// The rank has a communicator.
    fn has(&self, rank: usize, handle: AbortHandle);
}

/// How a rank ended.
pub(crate) struct End<C> {
    /// What it has, or why it stopped.
    pub(crate) outcome: Result<Memory, Failure>,
    /// Communicator 0. Where the rank stopped it is revoked, and all others are aborted.
    pub(crate) world: Option<C>,
}

/// Why a rank stopped.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What it was told.
    pub(crate) error: Error,
    /// What it was about.
    pub(crate) doing: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (doing {})", self.error, self.doing)
    }
}

/// Runs one rank's part of a program.
pub(crate) fn run_rank<B: Backend>(
    post: &Post<'_, B>,
    program: &Program,
    actions: &[Action<'_>],
) -> End<B::Comm> {
    let failure = |error, doing: &str| Failure { error, doing: doing.into() };
    let mut seat = match Seat::new(post, program) {
        Ok(seat) => seat,
        Err(error) => {
            return End { outcome: Err(failure(error, "joining")), world: None };
        }
    };
    for action in actions {
        if let Err(error) = seat.act(action) {
            return seat.give_up(failure(error, &format!("{action:?}")));
        }
    }
    match seat.finish() {
        Ok(memory) => End { outcome: Ok(memory), world: seat.comms[0].take() },
        Err(error) => seat.give_up(failure(error, "the end")),
    }
}

/// What a rank has.
struct Seat<'a, B: Backend> {
    post: &'a Post<'a, B>,
    program: &'a Program,
    device: B::Device,
    comms: Vec<Option<B::Comm>>,
    /// The host's area, which `keep` owns, and those of the device.
    areas: Vec<Option<*mut c_void>>,
    streams: Vec<RawStream>,
    events: Vec<RawEvent>,
    graphs: Vec<Graph>,
    observed: Vec<Vec<u8>>,
    /// Operators of the capture that is under way.
    capturing: Option<Vec<(usize, PreMulSum)>>,
}

struct Graph {
    number: usize,
    raw: RawGraph,
    operators: Vec<(usize, PreMulSum)>,
}

impl<'a, B: Backend> Seat<'a, B> {
    fn new(post: &'a Post<'a, B>, program: &'a Program) -> Result<Self> {
        let device = post.backend.device(post.rank)?;
        let mut seat = Self {
            post,
            program,
            device,
            comms: program.comms.iter().map(|_| None).collect(),
            areas: Vec::new(),
            streams: vec![RawStream::DEFAULT],
            events: Vec::new(),
            graphs: Vec::new(),
            observed: Vec::new(),
            capturing: None,
        };
        for _ in 1..program.streams {
            seat.streams.push(seat.device.stream_create()?);
        }
        for _ in 0..2 * EVENTS {
            seat.events.push(seat.device.event_create()?);
        }
        for (area, bytes) in initial(program, post.rank).areas.into_iter().flatten().enumerate() {
            let source = post.keep.take(&bytes);
            if area == HOST {
                seat.areas.push(Some(source.cast()));
                continue;
            }
            let memory = seat.device.alloc(bytes.len())?;
            seat.areas.push(Some(memory));
            // SAFETY: both are as long as the area, and `keep` has the source for ever.
            unsafe { seat.device.copy_to(memory, source.cast(), bytes.len(), RawStream::DEFAULT) }?;
        }
        // SAFETY: the default stream always lives.
        unsafe { seat.device.synchronize(RawStream::DEFAULT, None) }?;
        seat.act(&Action::Join { comm: 0 })?;
        Ok(seat)
    }

    fn act(&mut self, action: &Action<'_>) -> Result<()> {
        if !matches!(action, Action::Group(_) | Action::Capture { .. }) {
            self.post.watch.about_to(self.post.rank, action);
        }
        let device = &self.device;
        match *action {
            Action::Alloc { area } => {
                let memory = device.alloc(self.program.area_bytes)?;
                self.areas.resize(self.areas.len().max(area + 1), None);
                self.areas[area] = Some(memory);
                Ok(())
            }
            Action::Await { stream, event } => {
                // SAFETY: stream and event are alive.
                unsafe { device.wait(self.streams[stream], self.events[event]) }
            }
            Action::Capture { graph, origin, ref body } => self.capture(graph, origin, body),
            Action::Copy { from, to, stream } => {
                let (dst, src) = (self.at(to), self.at(from).cast_const());
                let (bytes, stream) = (from.bytes, self.streams[stream]);
                match (from.area, to.area) {
                    (HOST, _) => {
                        // SAFETY: places lie in their areas, and the program orders what uses them.
                        unsafe { device.copy_to(dst, src, bytes, stream) }
                    }
                    (_, HOST) => {
                        // SAFETY: as above.
                        unsafe { device.copy_from(dst, src, bytes, stream) }
                    }
                    _ => {
                        // SAFETY: as above.
                        unsafe { device.copy_between(dst, src, bytes, stream) }
                    }
                }
            }
            Action::Destroy { graph } => self.destroy(graph),
            Action::Fill { to, value, stream } => {
                // SAFETY: as for a copy.
                unsafe { device.memset(self.at(to), value, to.bytes, self.streams[stream]) }
            }
            Action::Finalize { comm } => match self.comms[comm].take() {
                Some(comm) => Box::new(comm).finalize(),
                None => Ok(()),
            },
            Action::Free { area, stream } => match self.areas[area].take() {
                // SAFETY: the program orders all that used it before this.
                Some(memory) => unsafe { device.free(memory, self.streams[stream]) },
                None => Ok(()),
            },
            Action::Group(ref parts) => {
                let post = self.post;
                post.backend.group(|_| {
                    for part in parts {
                        post.watch.about_to(post.rank, action);
                        self.issue(part)?;
                    }
                    post.watch.about_to(post.rank, action);
                    Ok(())
                })
            }
            Action::Issue(ref part) => self.issue(part),
            Action::Join { comm } => {
                let members = &self.program.comms[comm];
                let own = members.iter().position(|&member| member == self.post.rank);
                let own = Rank::new(own.unwrap_or_default() as u32);
                let config = JoinConfig::new(own, members.len()).with_device(self.post.rank);
                let mut config = config.with_name(format!("c{comm}"));
                config.deadline = self.post.joins;
                let joined = self.post.backend.join(&self.post.ids[comm], config)?;
                self.take_over(comm, joined);
                Ok(())
            }
            Action::Launch { graph, stream } => {
                match self.graphs.iter().find(|known| known.number == graph) {
                    // SAFETY: what was captured lives, and the program orders what it touches.
                    Some(known) => unsafe { device.launch(known.raw, self.streams[stream]) },
                    None => Ok(()),
                }
            }
            Action::Load { to, ref bytes, stream } => {
                let source = self.post.keep.take(bytes);
                // SAFETY: as for a copy; `keep` has the source for ever.
                unsafe {
                    device.copy_to(self.at(to), source.cast(), to.bytes, self.streams[stream])
                }
            }
            Action::Nap { micros } => {
                thread::sleep(Duration::from_micros(micros));
                Ok(())
            }
            Action::Observe { from } => {
                let mut seen = vec![0; from.bytes];
                let source = self.at(from).cast::<u8>();
                // SAFETY: the place lies in the host's area, which no stream writes now.
                unsafe { source.copy_to_nonoverlapping(seen.as_mut_ptr(), from.bytes) };
                self.observed.push(seen);
                Ok(())
            }
            Action::Poll { event } => self.poll(self.events[event]),
            Action::Record { event, stream } => {
                // SAFETY: stream and event are alive.
                unsafe { device.record(self.events[event], self.streams[stream]) }
            }
            Action::Renew { stream } => {
                let new = device.stream_create()?;
                let old = std::mem::replace(&mut self.streams[stream], new);
                // SAFETY: nothing uses it any more.
                unsafe { device.stream_destroy(old) }
            }
            Action::Shrink { parent, child } => {
                let Some(comm) = &self.comms[parent] else { return Ok(()) };
                let stays = &self.program.comms[child];
                let members = self.program.comms[parent].iter().enumerate();
                let lost = members.filter(|(_, member)| !stays.contains(member));
                let lost: Vec<_> = lost.map(|(own, _)| Rank::new(own as u32)).collect();
                let config = ShrinkConfig::new(lost).with_name(format!("c{child}"));
                // One that another rank has revoked could be shrunk, by all who know.
                comm.poll_error()?;
                let shrunk = comm.shrink(config)?;
                self.take_over(child, shrunk);
                Ok(())
            }
            Action::Split { parent, part, child } => {
                let Some(comm) = &self.comms[parent] else { return Ok(()) };
                let config = match part {
                    Some((color, key)) => SplitConfig::new(color).with_key(key),
                    None => SplitConfig::no_color(),
                };
                let name = child.map_or_else(|| "none".into(), |child| format!("c{child}"));
                let split = comm.split(config.with_name(name))?;
                match (child, split) {
                    (Some(child), Some(split)) => self.take_over(child, split),
                    (None, None) => {}
                    _ => return Err(wrong("a split gave a communicator to the wrong ranks")),
                }
                Ok(())
            }
            Action::Synchronize { stream } => {
                // SAFETY: the stream is alive.
                unsafe { device.synchronize(self.streams[stream], None) }?;
                self.ask()
            }
            Action::Write { to, ref bytes } => {
                let target = self.at(to).cast::<u8>();
                // SAFETY: the place lies in the host's area, which no stream uses now.
                unsafe { target.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
                Ok(())
            }
        }
    }

    /// Takes a communicator over, after a look at what it says of itself.
    fn take_over(&mut self, number: usize, comm: B::Comm) {
        let members = &self.program.comms[number];
        let info = comm.info();
        let own = members.iter().position(|&member| member == self.post.rank);
        assert_eq!((Some(info.rank.index()), info.size), (own, members.len()), "c{number}");
        self.post.watch.has(self.post.rank, comm.abort_handle());
        self.comms[number] = Some(comm);
    }

    /// Fails where a communicator did.
    fn ask(&self) -> Result<()> {
        self.comms.iter().flatten().try_for_each(Collectives::poll_error)
    }

    fn poll(&self, event: RawEvent) -> Result<()> {
        let start = Instant::now();
        loop {
            // SAFETY: the event is alive.
            if unsafe { self.device.query(event) }? {
                return self.ask();
            }
            if start.elapsed() > PATIENCE {
                return Err(wrong("an event is never reached"));
            }
            thread::yield_now();
        }
    }

    fn at(&self, place: Place) -> *mut c_void {
        let area = self.areas.get(place.area).copied().flatten();
        area.map_or(std::ptr::null_mut(), |area| area.wrapping_byte_add(place.start))
    }

    fn issue(&mut self, part: &Part<'_>) -> Result<()> {
        let Part { op, seat, own } = *part;
        let chair = &op.seats[seat];
        let Some(comm) = &self.comms[op.comm] else { return Ok(()) };
        let dtype = op.dtype;
        let elements = |place: Place| place.bytes / dtype.size();
        let to_send = |place| SendBuf::new(self.at(place).cast_const(), elements(place), dtype);
        let to_recv = |place| RecvBuf::new(self.at(place), elements(place), dtype);
        // A part without either has no buffer that counts.
        let nowhere = Place { area: 1, start: 0, bytes: 0 };
        let (send, recv) = (chair.send.map(to_send), chair.recv.map(to_recv));
        let decoy_send = send.or_else(|| chair.decoy.map(to_send));
        let decoy_recv = recv.or_else(|| chair.decoy.map(to_recv));
        let send = send.unwrap_or_else(|| to_send(nowhere));
        let recv = recv.unwrap_or_else(|| to_recv(nowhere));
        let rank = |index: usize| Rank::new(index as u32);
        let scalar = match op.reduction() {
            Some(Reduction::PreMulDevice) => {
                let ptr = self.at(chair.scalar.unwrap_or(nowhere)).cast_const();
                Some(Scalar::Device { dtype, ptr })
            }
            Some(Reduction::PreMulHost) => {
                let bytes = element::bytes_of(dtype, host_scalar(op, own));
                Some(Scalar::Host { dtype, bytes })
            }
            _ => None,
        };
        let operator = match scalar {
            // SAFETY: a device's scalar is an element of an area that lasts, or of one that is freed
            // only behind the operation.
            Some(scalar) => Some(unsafe { comm.create_pre_mul_sum(scalar) }?),
            None => None,
        };
        let by = |reduction| match (reduction, operator) {
            (_, Some(operator)) => ReduceOp::PreMulSum(operator),
            (Reduction::Avg, _) => ReduceOp::Avg,
            (Reduction::Max, _) => ReduceOp::Max,
            (Reduction::Min, _) => ReduceOp::Min,
            (Reduction::Prod, _) => ReduceOp::Prod,
            _ => ReduceOp::Sum,
        };
        let launch = Launch::new(self.streams[chair.stream]);
        let outcome = match op.call {
            Call::AllGather => {
                // SAFETY: places lie in their areas, and the program orders what uses them.
                unsafe { comm.all_gather(send, recv, launch) }
            }
            Call::AllReduce(reduction) => {
                // SAFETY: as above.
                unsafe { comm.all_reduce(send, recv, by(reduction), launch) }
            }
            Call::AllToAll => {
                // SAFETY: as above.
                unsafe { comm.all_to_all(send, recv, launch) }
            }
            Call::Broadcast { root } => {
                // SAFETY: as above.
                unsafe { comm.broadcast(decoy_send, recv, rank(root), launch) }
            }
            Call::Gather { root } => {
                // SAFETY: as above.
                unsafe { comm.gather(send, decoy_recv, rank(root), launch) }
            }
            Call::Message { to, .. } if seat == 0 => {
                // SAFETY: as above.
                unsafe { comm.send(send, rank(to), launch) }
            }
            Call::Message { from, .. } => {
                // SAFETY: as above.
                unsafe { comm.recv(recv, rank(from), launch) }
            }
            Call::Reduce { reduction, root } => {
                // SAFETY: as above.
                unsafe { comm.reduce(send, decoy_recv, by(reduction), rank(root), launch) }
            }
            Call::ReduceScatter(reduction) => {
                // SAFETY: as above.
                unsafe { comm.reduce_scatter(send, recv, by(reduction), launch) }
            }
            Call::Scatter { root } => {
                // SAFETY: as above.
                unsafe { comm.scatter(decoy_send, recv, rank(root), launch) }
            }
        };
        match (operator, &mut self.capturing) {
            (Some(operator), Some(kept)) => kept.push((op.comm, operator)),
            (Some(operator), None) => {
                return outcome.and_then(|()| comm.destroy_pre_mul_sum(operator));
            }
            (None, _) => {}
        }
        outcome
    }

    fn capture(&mut self, graph: usize, origin: usize, body: &[Action<'_>]) -> Result<()> {
        let stream = self.streams[origin];
        // SAFETY: the stream is alive.
        unsafe { self.device.begin_capture(stream) }?;
        self.capturing = Some(Vec::new());
        body.iter().try_for_each(|action| self.act(action))?;
        // SAFETY: the stream is alive, and what was captured lives until the graph goes.
        let raw = unsafe { self.device.end_capture(stream) }?;
        let operators = self.capturing.take().unwrap_or_default();
        self.graphs.push(Graph { number: graph, raw, operators });
        Ok(())
    }

    fn destroy(&mut self, graph: usize) -> Result<()> {
        let Some(index) = self.graphs.iter().position(|known| known.number == graph) else {
            return Ok(());
        };
        let Graph { raw, operators, .. } = self.graphs.swap_remove(index);
        // SAFETY: it is alive, and not used any more.
        unsafe { self.device.graph_destroy(raw) }?;
        operators.into_iter().try_for_each(|(comm, operator)| match &self.comms[comm] {
            Some(comm) => comm.destroy_pre_mul_sum(operator),
            None => Ok(()),
        })
    }

    /// Reads all memory back, on the default stream behind all others, and ends communicators but
    /// the first.
    fn finish(&mut self) -> Result<Memory> {
        self.gather_streams()?;
        let bytes = self.program.area_bytes;
        let mut copies = Vec::new();
        for (area, memory) in self.areas.iter().enumerate() {
            let Some(memory) = *memory else {
                copies.push(None);
                continue;
            };
            if area == HOST {
                copies.push(Some(memory.cast::<u8>()));
                continue;
            }
            let target = self.post.keep.take(&vec![0; bytes]);
            // SAFETY: both are as long as the area, and `keep` has the target for ever.
            unsafe { self.device.copy_from(target.cast(), memory, bytes, RawStream::DEFAULT) }?;
            copies.push(Some(target));
        }
        // SAFETY: the default stream always lives.
        unsafe { self.device.synchronize(RawStream::DEFAULT, None) }?;
        self.ask()?;
        let read = |source: *mut u8| {
            let mut seen = vec![0; bytes];
            // SAFETY: host memory as long as an area, which no stream uses any more.
            unsafe { source.copy_to_nonoverlapping(seen.as_mut_ptr(), bytes) };
            seen
        };
        let areas = copies.into_iter().map(|copy| copy.map(read)).collect();
        while let Some(graph) = self.graphs.last() {
            self.destroy(graph.number)?;
        }
        for number in 1..self.comms.len() {
            match self.comms[number].take() {
                Some(comm) if self.program.seed.is_multiple_of(2) => Box::new(comm).finalize()?,
                _ => {}
            }
        }
        Ok(Memory { areas, observed: std::mem::take(&mut self.observed) })
    }

    /// Makes the default stream wait for all others.
    fn gather_streams(&self) -> Result<()> {
        for &stream in &self.streams[1..] {
            // SAFETY: stream and event are alive.
            unsafe { self.device.record(self.events[0], stream) }?;
            // SAFETY: as above.
            unsafe { self.device.wait(RawStream::DEFAULT, self.events[0]) }?;
        }
        Ok(())
    }

    /// What a program does that hears of a loss: it ends what others may wait in, and keeps what it
    /// can go on from.
    fn give_up(mut self, failure: Failure) -> End<B::Comm> {
        self.end_capture();
        let world = self.comms[0].take();
        for comm in self.comms.drain(..).flatten() {
            // That it failed is known.
            let _ = Box::new(comm).abort();
        }
        if let Some(world) = &world {
            let _ = world.revoke();
        }
        End { outcome: Err(failure), world }
    }

    /// Ends a capture that was broken off.
    fn end_capture(&mut self) {
        self.capturing = None;
        for &stream in &self.streams[1..] {
            // SAFETY: the stream is alive.
            if unsafe { self.device.is_capturing(stream) }.is_ok_and(|capturing| capturing) {
                // SAFETY: as above.
                if let Ok(graph) = unsafe { self.device.end_capture(stream) } {
                    // SAFETY: made above, and never launched.
                    let _ = unsafe { self.device.graph_destroy(graph) };
                }
            }
        }
    }
}

/// Gives everything back, whatever happened, and waits for nothing. Errors have nowhere to go: what
/// was not given back is found at the end.
impl<B: Backend> Drop for Seat<'_, B> {
    fn drop(&mut self) {
        self.end_capture();
        for graph in std::mem::take(&mut self.graphs) {
            // SAFETY: it is alive, and not used any more.
            let _ = unsafe { self.device.graph_destroy(graph.raw) };
        }
        self.comms.clear();
        if self.events.len() == 2 * EVENTS {
            let _ = self.gather_streams();
        }
        for memory in self.areas.iter().skip(HOST + 1).flatten() {
            // SAFETY: the default stream waits for all that used it.
            let _ = unsafe { self.device.free(*memory, RawStream::DEFAULT) };
        }
        for &event in &self.events {
            // SAFETY: it is alive, and not used any more.
            let _ = unsafe { self.device.event_destroy(event) };
        }
        for &stream in &self.streams[1..] {
            // SAFETY: as above.
            let _ = unsafe { self.device.stream_destroy(stream) };
        }
    }
}

/// Host memory that lives as long as the machine.
#[derive(Debug, Default)]
pub(crate) struct Keep(Mutex<Vec<Kept>>);

#[derive(Debug)]
struct Kept {
    start: *mut u8,
    bytes: usize,
}

// SAFETY: it owns the memory, like a box.
unsafe impl Send for Kept {}

impl Keep {
    fn take(&self, bytes: &[u8]) -> *mut u8 {
        let memory: Box<[u8]> = bytes.into();
        let start = Box::into_raw(memory).cast::<u8>();
        let kept = Kept { start, bytes: bytes.len() };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(kept);
        start
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let memory = std::ptr::slice_from_raw_parts_mut(self.start, self.bytes);
        // SAFETY: it came from a box, in `Keep::take`.
        drop(unsafe { Box::from_raw(memory) });
    }
}

fn wrong(message: &str) -> Error {
    Error::new(ErrorKind::Internal, message)
}

/// How long a thread asks for an event.
const PATIENCE: Duration = Duration::from_secs(60);
