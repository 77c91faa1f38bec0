//! A rank's communicator, stream and buffers, and the calls that it makes with them.

use std::ops::Range;

use collectives::{
    Buffer, CaptureOn, Communicator, Element, Error, ErrorKind, Graph, Group, MemoryKind, On,
    Recorder, ReduceOp, Result, Stream, SymmetricPlan,
};

use super::{
    args::Registered,
    data::{Data, Value},
    operation::{Lengths, Operation},
    run::Plan,
};

/// What one rank works with: everything that is made once.
pub(super) struct Seat<'a, T: Value> {
    plan: &'a Plan,
    send: Buffer<T>,
    recv: Buffer<T>,
    /// A piece of a buffer on its way to or from the device.
    host: Vec<T>,
    stream: Stream,
    comm: Communicator,
}

impl<'a, T: Value> Seat<'a, T> {
    pub(super) fn new(comm: Communicator, plan: &'a Plan) -> Result<Self> {
        let stream = comm.new_stream()?;
        let buffer = || match plan.registered {
            Registered::Buffer => comm.alloc_registered(plan.largest, &stream),
            // The library's own memory, as in nccl-tests: a graph moves it without staging.
            _ if comm.capabilities().mem_alloc.is_available() => comm.alloc(plan.largest, &stream),
            _ => stream.zeros(plan.largest),
        };
        let (send, recv) = match plan.registered {
            Registered::Symmetric => symmetric(&comm, plan.largest)?,
            Registered::Buffer | Registered::None => (buffer()?, buffer()?),
        };
        let host = vec![T::ZERO; plan.largest.min(HOST_BYTES / size_of::<T>())];
        let mut seat = Self { plan, send, recv, host, stream, comm };
        // Devices and libraries may treat zeros better than data.
        let rank = seat.rank() as usize;
        let data = seat.data(plan.largest, 0);
        fill(&mut seat.send, &mut seat.host, plan.largest, &seat.stream, |index| {
            data.input(rank, index)
        })?;
        Ok(seat)
    }

    pub(super) fn rank(&self) -> u32 {
        self.comm.rank()
    }

    /// Enqueues an operation at a place in the buffers.
    #[inline]
    pub(super) fn enqueue(&mut self, call: &Call, at: usize) -> Result<()> {
        let Self { comm, stream, send, recv, .. } = self;
        call.enqueue(comm.on(stream), send, recv, at)
    }

    /// Adds an operation to a group.
    #[inline]
    pub(super) fn record<'env>(
        &'env mut self,
        call: &Call,
        group: &Group<'env>,
        at: usize,
    ) -> Result<()> {
        let Self { comm, stream, send, recv, .. } = self;
        call.record(group.on(comm, stream), send, recv, at)
    }

    /// Has the library connect all ranks, in a group: what is captured wants that.
    pub(super) fn warm_up<'env>(&'env self, group: &Group<'env>) -> Result<()> {
        group.on(&self.comm, &self.stream).warm_up()
    }

    /// Captures an operation at each of these places, one after the other.
    pub(super) fn capture(
        &mut self,
        call: &Call,
        mut places: impl Iterator<Item = usize>,
    ) -> Result<Graph> {
        let Self { comm, send, recv, .. } = self;
        comm.capture(|scope| places.try_for_each(|at| call.capture(scope.on(comm), send, recv, at)))
    }

    pub(super) fn launch(&self, graph: &Graph) -> Result<()> {
        graph.launch(&self.stream)
    }

    pub(super) fn synchronize(&self) -> Result<()> {
        self.stream.synchronize()
    }

    /// The communicator, once nothing uses it any more.
    pub(super) fn leave(self) -> Communicator {
        self.comm
    }

    /// Writes the inputs of a check, and clears what will be the result.
    pub(super) fn set_inputs(&mut self, call: &Call, count: usize, seed: u64) -> Result<()> {
        let data = self.data(count, seed);
        let rank = self.rank() as usize;
        let input = call.input_in_place(rank, count);
        let Self { send, recv, host, stream, .. } = self;
        let Lengths { send: send_len, recv: recv_len, in_place } = call.lengths;
        if call.in_place {
            return fill(recv, host, in_place, stream, |index| {
                match index.checked_sub(input.start) {
                    Some(own) if input.contains(&index) => data.input(rank, own),
                    _ => T::ZERO,
                }
            });
        }
        fill(send, host, send_len, stream, |index| data.input(rank, index))?;
        fill(recv, host, recv_len, stream, |_| T::ZERO)
    }

    /// How many elements of the result are not what they must be.
    pub(super) fn wrong(&mut self, call: &Call, count: usize, seed: u64) -> Result<u64> {
        let only_root = matches!(self.plan.operation, Operation::Reduce | Operation::Gather);
        if only_root && !call.is_root {
            return Ok(0);
        }
        let data = self.data(count, seed);
        let rank = self.rank() as usize;
        let result = call.result(rank, count);
        let Self { recv, host, stream, .. } = self;
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
pub(super) struct Call {
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

/// Writes the call once for enqueuing, once for a group and once for capturing: the facade's receivers
/// have the same methods, and no trait.
macro_rules! call_on {
    ($(#[$doc:meta])* $name:ident, $on:ty) => {
        $(#[$doc])*
        #[inline]
        fn $name<'env, T: Element>(
            &self,
            on: $on,
            send: &'env Buffer<T>,
            recv: &'env mut Buffer<T>,
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
    pub(super) fn new(plan: &Plan, rank: u32, count: usize, in_place: bool) -> Self {
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
    pub(super) fn places(
        &self,
        plan: &Plan,
        iters: usize,
    ) -> impl Iterator<Item = usize> + Clone + use<> {
        let stride = self.stride;
        (0..plan.largest / stride).cycle().take(iters).map(move |step| step * stride)
    }

    /// Where the input stands in the receive buffer.
    fn input_in_place(&self, rank: usize, count: usize) -> Range<usize> {
        match (self.operation, self.is_root) {
            (Operation::AllGather, _) | (Operation::Gather, true) => {
                rank * count..(rank + 1) * count
            }
            // They have none.
            (Operation::Broadcast | Operation::Scatter, false) => 0..0,
            _ => 0..self.lengths.in_place,
        }
    }

    /// Where the result stands in the receive buffer.
    fn result(&self, rank: usize, count: usize) -> Range<usize> {
        match (self.operation, self.is_root) {
            _ if !self.in_place => 0..self.lengths.recv,
            (Operation::ReduceScatter, _) | (Operation::Scatter, true) => {
                rank * count..(rank + 1) * count
            }
            _ => 0..self.lengths.in_place,
        }
    }

    call_on! {
        /// Enqueues the operation.
        enqueue, On<'_>
    }

    call_on! {
        /// Adds the operation to a group.
        record, Recorder<'_, 'env>
    }

    call_on! {
        /// Captures the operation.
        capture, CaptureOn<'_>
    }
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

/// Bytes that pass through the host at once.
const HOST_BYTES: usize = 4 << 20;
