//! One rank: it joins, warms up, measures every size and checks the results.
//!
//! The time is taken as nccl-tests takes it (2.19.6, `src/common.cu`), so that figures compare:
//!
//! 1. Before the first measurement, `--warmup` operations out of place of each size, doubled from
//!    the smallest on, and one wait after each size.
//! 2. For each size and placement, one operation and a wait, then all ranks meet.
//! 3. The clock runs from there: `--iters` operations in a loop, then one wait on the stream (or,
//!    with `--sync-each`, a wait after each). The time of an operation is the mean of the ranks'
//!    clocks, divided by the iterations. The clock is also read when the last call has returned,
//!    before the wait: what issuing costs, where calls return before the result is there.
//! 4. With `--graph`, the loop is captured into one graph. The ranks meet again when it can be
//!    launched, and the clock takes in its first launch, which is its only one, and the wait. There
//!    is no launch to warm up. What issuing costs is the call that launches, divided by the
//!    iterations.
//! 5. Operations move on through buffers of the largest size, and start over at their end, so that
//!    small ones do not find their operands in a cache for no other reason than being repeated.
//! 6. The check is an operation of its own, at the start of the buffers and not timed; with
//!    `--graph`, in a graph of its own.

use std::time::{Duration, Instant};

use collectives::{
    AbortHandle, AnyBackend, Buffer, CaptureOn, Communicator, DType, Element, Error, ErrorKind,
    F8E4M3, F8E5M2, JoinConfig, MemoryKind, On, Rank, ReduceOp, Result, Stream, SymmetricPlan,
    UniqueId, bf16, f16,
};
use serde::{Deserialize, Serialize};

use super::{
    args::Registered,
    data::{Data, Value},
    operation::{Lengths, Operation},
};

/// What every rank does.
pub(super) struct Plan {
    pub(super) operation: Operation,
    pub(super) dtype: DType,
    /// Of no meaning where the operation does not reduce.
    pub(super) op: ReduceOp,
    /// Of no meaning where the operation has no root.
    pub(super) root: u32,
    pub(super) ranks: usize,
    /// What to measure, a line of the table each.
    pub(super) sizes: Vec<Repeated>,
    /// What to do before.
    pub(super) warmup: Vec<Repeated>,
    /// Elements of each buffer.
    pub(super) largest: usize,
    pub(super) registered: Registered,
    /// Ranks beyond these share them.
    pub(super) devices: usize,
    pub(super) graph: bool,
    pub(super) sync_each: bool,
    pub(super) check: bool,
}

/// A size, and how often.
pub(super) struct Repeated {
    /// Elements of one part.
    pub(super) count: usize,
    pub(super) repeats: usize,
}

/// What was found out about one size and placement.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Figures {
    pub(super) times: Times,
    /// Wrong elements; `None` where they were not checked.
    pub(super) wrong: Option<u64>,
}

/// Seconds that one operation took, on one rank or as the mean of all.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(super) struct Times {
    /// From the first call until the results are there.
    pub(super) done: f64,
    /// Until the last call returned. Where each operation is waited for, that takes in the waits.
    pub(super) issue: f64,
}

/// A rank's way to the other ranks and to what reports on them, outside of what is measured.
pub(super) trait Team {
    /// The id under which the ranks join.
    fn id(&self, backend: &AnyBackend) -> Result<UniqueId, Stop>;

    /// Waits until every rank is here.
    fn wait(&self) -> Result<(), Ended>;

    /// Names a communicator that is to end when a rank fails.
    fn ends(&self, handle: AbortHandle) -> Result<(), Ended>;

    /// Tells what this rank has measured. All tell it in the order of the plan, out of place first.
    fn tell(&self, figures: Figures) -> Result<(), Ended>;
}

/// Another rank failed, and has said why.
#[derive(Debug)]
pub(super) struct Ended;

/// Why a rank stopped.
pub(super) enum Stop {
    /// It failed.
    Failed(Error),
    /// Another one did.
    Ended,
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<Ended> for Stop {
    fn from(Ended: Ended) -> Self {
        Self::Ended
    }
}

/// Runs one rank to its end.
pub(super) fn rank(
    backend: &AnyBackend,
    plan: &Plan,
    rank: u32,
    team: &dyn Team,
) -> Result<(), Stop> {
    let work = match plan.dtype {
        DType::I8 => work::<i8>,
        DType::U8 => work::<u8>,
        DType::I32 => work::<i32>,
        DType::U32 => work::<u32>,
        DType::I64 => work::<i64>,
        DType::U64 => work::<u64>,
        DType::F16 => work::<f16>,
        DType::Bf16 => work::<bf16>,
        DType::F32 => work::<f32>,
        DType::F64 => work::<f64>,
        DType::F8E4M3 => work::<F8E4M3>,
        DType::F8E5M2 => work::<F8E5M2>,
    };
    work(backend, plan, rank, team)
}

fn work<T: Value>(
    backend: &AnyBackend,
    plan: &Plan,
    rank: u32,
    team: &dyn Team,
) -> Result<(), Stop> {
    let id = team.id(backend)?;
    let device = rank as usize % plan.devices;
    let config = JoinConfig::new(Rank::new(rank), plan.ranks).with_name("perf").with_device(device);
    let comm = Communicator::join(backend, &id, config)?;
    team.ends(comm.abort_handle())?;
    let mut worker = Worker::<T>::new(&comm, plan, team)?;
    worker.warm_up()?;
    for (index, size) in plan.sizes.iter().enumerate() {
        let placements = if plan.operation.has_in_place() { &[false, true][..] } else { &[false] };
        for &in_place in placements {
            let call = Call::new(plan, rank, size.count, in_place);
            let times = worker.time(&call, size.repeats)?;
            let seed = 1 + 2 * index as u64 + u64::from(in_place);
            let wrong = plan.check.then(|| worker.wrong(&call, size.count, seed)).transpose()?;
            team.tell(Figures { times, wrong })?;
        }
    }
    drop(worker);
    comm.finalize()?;
    Ok(())
}

/// Two buffers of symmetric memory. What falls back would measure something else than was asked for.
fn symmetric<T: Value>(comm: &Communicator, len: usize) -> Result<(Buffer<T>, Buffer<T>)> {
    let mut plan = SymmetricPlan::new();
    let (send, recv) = (plan.add(len), plan.add(len));
    let mut buffers = comm.alloc_symmetric_set(plan)?;
    let (send, recv) = (buffers.take(send)?, buffers.take(recv)?);
    if send.memory_kind() == MemoryKind::Symmetric {
        return Ok((send, recv));
    }
    let reason = send.memory_reason().unwrap_or("no reason was given");
    let message = format!("the buffers would be {}, not symmetric: {reason}", send.memory_kind());
    Err(Error::new(ErrorKind::Unsupported, message).with_comm(comm.info()))
}

/// What one rank works with: everything that is made once.
struct Worker<'a, T: Value> {
    comm: &'a Communicator,
    plan: &'a Plan,
    team: &'a dyn Team,
    send: Buffer<T>,
    recv: Buffer<T>,
    /// A piece of a buffer on its way to or from the device.
    host: Vec<T>,
    stream: Stream,
}

impl<'a, T: Value> Worker<'a, T> {
    fn new(comm: &'a Communicator, plan: &'a Plan, team: &'a dyn Team) -> Result<Self> {
        let stream = comm.new_stream()?;
        let buffer = || match plan.registered {
            Registered::Buffer => comm.alloc_registered(plan.largest, &stream),
            // The library's own memory, as in nccl-tests: a graph moves it without staging.
            _ if comm.capabilities().mem_alloc.is_available() => comm.alloc(plan.largest, &stream),
            _ => stream.zeros(plan.largest),
        };
        let (send, recv) = match plan.registered {
            Registered::Symmetric => symmetric(comm, plan.largest)?,
            Registered::Buffer | Registered::None => (buffer()?, buffer()?),
        };
        let host = vec![T::ZERO; plan.largest.min(HOST_BYTES / size_of::<T>())];
        let mut worker = Self { comm, plan, team, send, recv, host, stream };
        // Devices and libraries may treat zeros better than data.
        let rank = comm.rank() as usize;
        let data = worker.data(plan.largest, 0);
        fill(&mut worker.send, &mut worker.host, plan.largest, &worker.stream, |index| {
            data.input(rank, index)
        })?;
        Ok(worker)
    }

    fn warm_up(&mut self) -> Result<()> {
        for &Repeated { count, repeats } in &self.plan.warmup {
            let call = Call::new(self.plan, self.comm.rank(), count, false);
            for at in call.places(self.plan, repeats) {
                let on = self.comm.on(&self.stream);
                call.enqueue(on, &self.send, &mut self.recv, at)?;
            }
            self.stream.synchronize()?;
        }
        Ok(())
    }

    /// What one operation took on this rank.
    fn time(&mut self, call: &Call, iters: usize) -> Result<Times, Stop> {
        let Self { comm, plan, team, send, recv, stream, .. } = self;
        call.enqueue(comm.on(stream), send, recv, 0)?;
        stream.synchronize()?;
        team.wait()?;
        let places = call.places(plan, iters);
        let (issued, elapsed) = if plan.graph {
            let graph = comm.capture(|scope| {
                let mut places = places;
                places.try_for_each(|at| call.capture(scope.on(comm), send, recv, at))
            })?;
            team.wait()?;
            let start = Instant::now();
            graph.launch(stream)?;
            let issued = start.elapsed();
            stream.synchronize()?;
            (issued, start.elapsed())
        } else {
            let on = comm.on(stream);
            let start = Instant::now();
            for at in places {
                call.enqueue(on, send, recv, at)?;
                if plan.sync_each {
                    stream.synchronize()?;
                }
            }
            let issued = start.elapsed();
            stream.synchronize()?;
            (issued, start.elapsed())
        };
        // What comes next takes no time from ranks that still measure.
        team.wait()?;
        let each = |time: Duration| time.as_secs_f64() / iters as f64;
        Ok(Times { done: each(elapsed), issue: each(issued) })
    }

    /// Runs the operation once more on known inputs; answers how many elements are wrong on this
    /// rank.
    fn wrong(&mut self, call: &Call, count: usize, seed: u64) -> Result<u64> {
        let data = self.data(count, seed);
        let Self { comm, plan, send, recv, host, stream, .. } = self;
        let rank = comm.rank() as usize;
        let Lengths { send: send_len, recv: recv_len, in_place } = call.lengths;
        let own_part = rank * count;
        // Where the input stands in the receive buffer, and the result; the rest is cleared.
        let (input, result) = match (plan.operation, call.is_root) {
            _ if !call.in_place => (0..0, 0..recv_len),
            (Operation::AllGather, _) | (Operation::Gather, true) => {
                (own_part..own_part + count, 0..in_place)
            }
            (Operation::ReduceScatter, _) | (Operation::Scatter, true) => {
                (0..in_place, own_part..own_part + count)
            }
            (Operation::Broadcast | Operation::Scatter, false) => (0..0, 0..in_place),
            (Operation::AllReduce | Operation::Reduce | Operation::Gather, _)
            | (Operation::Broadcast, true)
            | (Operation::AllToAll | Operation::SendRecv, _) => (0..in_place, 0..in_place),
        };
        if call.in_place {
            fill(recv, host, in_place, stream, |index| match index.checked_sub(input.start) {
                Some(own) if input.contains(&index) => data.input(rank, own),
                _ => T::ZERO,
            })?;
        } else {
            fill(send, host, send_len, stream, |index| data.input(rank, index))?;
            fill(recv, host, recv_len, stream, |_| T::ZERO)?;
        }
        if plan.graph {
            let graph = comm.capture(|scope| call.capture(scope.on(comm), send, recv, 0))?;
            graph.launch(stream)?;
            stream.synchronize()?;
        } else {
            call.enqueue(comm.on(stream), send, recv, 0)?;
            stream.synchronize()?;
        }
        let only_root = matches!(plan.operation, Operation::Reduce | Operation::Gather);
        if only_root && !call.is_root {
            return Ok(0);
        }
        let mut wrong = 0;
        for first in result.clone().step_by(host.len()) {
            let piece = &mut host[..(result.end - first).min(HOST_BYTES / size_of::<T>())];
            recv.slice(first..first + piece.len()).copy_to_slice(piece, stream)?;
            wrong += data.wrong(rank, first - result.start, piece);
        }
        Ok(wrong)
    }

    fn data(&self, count: usize, seed: u64) -> Data {
        let Plan { operation, op, ranks, root, .. } = *self.plan;
        Data { operation, op, ranks, root: root as usize, count, seed }
    }
}

/// Writes `len` elements of a buffer, piece by piece.
fn fill<T: Element>(
    buffer: &mut Buffer<T>,
    host: &mut [T],
    len: usize,
    stream: &Stream,
    value: impl Fn(usize) -> T,
) -> Result<()> {
    for first in (0..len).step_by(host.len()) {
        let size = (len - first).min(host.len());
        let piece = &mut host[..size];
        for (index, element) in piece.iter_mut().enumerate() {
            *element = value(first + index);
        }
        buffer.slice_mut(first..first + size).copy_from_slice(piece, stream)?;
    }
    Ok(())
}

/// The operation with its arguments, but for the place in the buffers.
struct Call {
    operation: Operation,
    op: ReduceOp,
    root: u32,
    is_root: bool,
    /// The rank to send to, and the one to receive from.
    peers: (u32, u32),
    lengths: Lengths,
    in_place: bool,
    /// Elements from one place to the next.
    stride: usize,
}

/// Writes the call once for enqueuing and once for capturing: the facade's two receivers have the
/// same methods, and no trait.
macro_rules! call_on {
    ($(#[$doc:meta])* $name:ident, $on:ty) => {
        $(#[$doc])*
        #[inline]
        fn $name<T: Element>(
            &self,
            on: $on,
            send: &Buffer<T>,
            recv: &mut Buffer<T>,
            at: usize,
        ) -> Result<()> {
            let Self { operation, op, root, is_root, peers: (to, from), lengths, .. } = *self;
            if self.in_place {
                let buffer = recv.slice_mut(at..at + lengths.in_place);
                return match operation {
                    Operation::AllReduce => on.all_reduce_in_place(buffer, op),
                    Operation::AllGather => on.all_gather_in_place(buffer),
                    Operation::ReduceScatter => on.reduce_scatter_in_place(buffer, op),
                    Operation::Broadcast => on.broadcast_in_place(buffer, root),
                    Operation::Reduce => on.reduce_in_place(buffer, op, root),
                    Operation::Gather => on.gather_in_place(buffer, root),
                    Operation::Scatter => on.scatter_in_place(buffer, root),
                    Operation::AllToAll | Operation::SendRecv => {
                        unreachable!("the plan has no in-place form of {operation}")
                    }
                };
            }
            let send = send.slice(at..at + lengths.send);
            let recv = recv.slice_mut(at..at + lengths.recv);
            match operation {
                Operation::AllReduce => on.all_reduce(send, recv, op),
                Operation::AllGather => on.all_gather(send, recv),
                Operation::ReduceScatter => on.reduce_scatter(send, recv, op),
                Operation::Broadcast => on.broadcast(is_root.then_some(send), recv, root),
                Operation::Reduce => on.reduce(send, is_root.then_some(recv), op, root),
                Operation::AllToAll => on.all_to_all(send, recv),
                Operation::Gather => on.gather(send, is_root.then_some(recv), root),
                Operation::Scatter => on.scatter(is_root.then_some(send), recv, root),
                Operation::SendRecv => on.send_recv(send, to, recv, from),
            }
        }
    };
}

impl Call {
    fn new(plan: &Plan, rank: u32, count: usize, in_place: bool) -> Self {
        let Plan { operation, op, root, ranks, .. } = *plan;
        let is_root = rank == root;
        let size = u32::try_from(ranks).unwrap_or(u32::MAX);
        Self {
            operation,
            op,
            root,
            is_root,
            peers: ((rank + 1) % size, (rank + size - 1) % size),
            lengths: operation.lengths(count, ranks, is_root),
            in_place,
            stride: operation.largest(count, ranks),
        }
    }

    /// Where in the buffers each of so many operations works.
    fn places(&self, plan: &Plan, iters: usize) -> impl Iterator<Item = usize> + use<> {
        let stride = self.stride;
        (0..plan.largest / stride).cycle().take(iters).map(move |step| step * stride)
    }

    call_on! {
        /// Enqueues the operation.
        enqueue, On<'_>
    }

    call_on! {
        /// Captures the operation.
        capture, CaptureOn<'_>
    }
}

/// Bytes that pass through the host at once.
const HOST_BYTES: usize = 4 << 20;
