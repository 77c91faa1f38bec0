//! What is built on [`Collectives`] once, for all backends.
#![expect(unsafe_code, reason = "hands the caller's promise on to the operations it is made of")]

use crate::{Collectives, Error, ErrorKind, Launch, Rank, RecvBuf, ReduceOp, Result, SendBuf};

/// Operations made of other operations: variable counts, exchange, barrier, warm-up.
///
/// They are emulations on every backend, and named here as such: each is one group of operations
/// of [`Collectives`], so it is all or nothing, as any group is, and may be inside a larger one.
///
/// Counts are per rank, in elements and in rank order; parts lie one after another without gaps.
/// All ranks must agree: what rank i sends to rank j is what j receives from i.
pub trait CollectivesExt: Collectives {
    /// Gathers buffers of different lengths: rank i sends `counts[i]` elements, and every rank
    /// receives all of them in rank order. A group of broadcasts.
    ///
    /// *Shape*: `send.count == counts[rank]`, `recv.count` is the sum of `counts`. *In place*:
    /// `send` is this rank's part of `recv`.
    ///
    /// # Safety
    /// See [`Collectives`].
    ///
    /// # Errors
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) for counts that do not fit the buffers or
    /// the size; as [`Collectives::broadcast`].
    #[doc(alias = "all_gatherv")]
    #[doc(alias = "MPI_Allgatherv")]
    unsafe fn all_gather_v(
        &self,
        send: SendBuf,
        recv: RecvBuf,
        counts: &[usize],
        launch: Launch<'_>,
    ) -> Result<()> {
        let call = Call::new(self, "all_gather_v");
        let parts = call.parts("counts", counts)?;
        call.holds("send", send.count, counts[call.rank])?;
        call.holds("recv", recv.count, parts.total)?;
        call.group(|| {
            for peer in parts.occupied() {
                let send = (peer == call.rank).then_some(send);
                let (start, count) = parts.range(peer);
                // SAFETY: the caller's promise about `send` and `recv` covers their parts.
                unsafe { self.broadcast(send, recv.part(start, count), rank(peer), launch) }?;
            }
            Ok(())
        })
    }

    /// Combines the `send` buffers of all ranks; rank i receives its part, `counts[i]` elements. A
    /// group of reductions.
    ///
    /// *Shape*: `send.count` is the sum of `counts`, `recv.count == counts[rank]`. *In place*:
    /// `recv` is this rank's part of `send`.
    ///
    /// # Safety
    /// See [`Collectives`].
    ///
    /// # Errors
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) for counts that do not fit the buffers or
    /// the size; as [`Collectives::reduce`].
    #[doc(alias = "reduce_scatterv")]
    #[doc(alias = "MPI_Reduce_scatter")]
    unsafe fn reduce_scatter_v(
        &self,
        send: SendBuf,
        recv: RecvBuf,
        counts: &[usize],
        op: ReduceOp,
        launch: Launch<'_>,
    ) -> Result<()> {
        let call = Call::new(self, "reduce_scatter_v");
        let parts = call.parts("counts", counts)?;
        call.holds("send", send.count, parts.total)?;
        call.holds("recv", recv.count, counts[call.rank])?;
        call.group(|| {
            for peer in parts.occupied() {
                let recv = (peer == call.rank).then_some(recv);
                let (start, count) = parts.range(peer);
                // SAFETY: the caller's promise about `send` and `recv` covers their parts.
                unsafe { self.reduce(send.part(start, count), recv, op, rank(peer), launch) }?;
            }
            Ok(())
        })
    }

    /// Sends `send_counts[i]` elements to rank i and receives `recv_counts[i]` from it. A group of
    /// sends and receives.
    ///
    /// *Shape*: each buffer holds the sum of its counts. *In place*: not possible.
    ///
    /// # Safety
    /// See [`Collectives`].
    ///
    /// # Errors
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) for counts that do not fit the buffers or
    /// the size, or differ for this rank itself; as [`Collectives::send`].
    #[doc(alias = "ncclAllToAllv")]
    #[doc(alias = "all_to_allv")]
    #[doc(alias = "MPI_Alltoallv")]
    unsafe fn all_to_all_v(
        &self,
        send: SendBuf,
        send_counts: &[usize],
        recv: RecvBuf,
        recv_counts: &[usize],
        launch: Launch<'_>,
    ) -> Result<()> {
        let call = Call::new(self, "all_to_all_v");
        let send_parts = call.parts("send_counts", send_counts)?;
        let recv_parts = call.parts("recv_counts", recv_counts)?;
        call.holds("send", send.count, send_parts.total)?;
        call.holds("recv", recv.count, recv_parts.total)?;
        let (to_self, from_self) = (send_counts[call.rank], recv_counts[call.rank]);
        if to_self != from_self {
            return Err(call.refuse(format!(
                "this rank sends itself {to_self} elements, but receives {from_self}"
            )));
        }
        let sends = send_parts.occupied().map(|peer| {
            let (start, count) = send_parts.range(peer);
            PeerOp::Send(send.part(start, count), rank(peer))
        });
        let recvs = recv_parts.occupied().map(|peer| {
            let (start, count) = recv_parts.range(peer);
            PeerOp::Recv(recv.part(start, count), rank(peer))
        });
        // SAFETY: the caller's promise about `send` and `recv` covers their parts.
        unsafe { call.batch(sends.chain(recvs), launch) }
    }

    /// Gathers buffers of different lengths on `root`: rank i sends `counts[i]` elements. A group
    /// of sends and receives.
    ///
    /// *Shape*: `send.count == counts[rank]`; on root, `recv` is given and holds the sum of
    /// `counts`. *In place*: on root, `send` is root's part of `recv`.
    ///
    /// # Safety
    /// See [`Collectives`].
    ///
    /// # Errors
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) for counts that do not fit the buffers or
    /// the size; as [`Collectives::send`].
    #[doc(alias = "gatherv")]
    #[doc(alias = "MPI_Gatherv")]
    unsafe fn gather_v(
        &self,
        send: SendBuf,
        recv: Option<RecvBuf>,
        counts: &[usize],
        root: Rank,
        launch: Launch<'_>,
    ) -> Result<()> {
        let call = Call::new(self, "gather_v");
        let parts = call.parts("counts", counts)?;
        call.holds("send", send.count, counts[call.rank])?;
        let mut ops = Vec::new();
        let mut in_place = false;
        if root.index() == call.rank {
            let recv = call.on_root(recv, "recv")?;
            call.holds("recv", recv.count, parts.total)?;
            for peer in parts.occupied() {
                let (start, count) = parts.range(peer);
                let part = recv.part(start, count);
                if peer == call.rank && part.ptr.cast_const() == send.ptr {
                    in_place = true;
                } else {
                    ops.push(PeerOp::Recv(part, rank(peer)));
                }
            }
        }
        if send.count > 0 && !in_place {
            ops.push(PeerOp::Send(send, root));
        }
        // SAFETY: the caller's promise about `send` and `recv` covers their parts.
        unsafe { call.batch(ops, launch) }
    }

    /// Sends parts of different lengths from `root`: rank i receives `counts[i]` elements. A group
    /// of sends and receives.
    ///
    /// *Shape*: `recv.count == counts[rank]`; on root, `send` is given and holds the sum of
    /// `counts`. *In place*: on root, `recv` is root's part of `send`.
    ///
    /// # Safety
    /// See [`Collectives`].
    ///
    /// # Errors
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) for counts that do not fit the buffers or
    /// the size; as [`Collectives::send`].
    #[doc(alias = "scatterv")]
    #[doc(alias = "MPI_Scatterv")]
    unsafe fn scatter_v(
        &self,
        send: Option<SendBuf>,
        recv: RecvBuf,
        counts: &[usize],
        root: Rank,
        launch: Launch<'_>,
    ) -> Result<()> {
        let call = Call::new(self, "scatter_v");
        let parts = call.parts("counts", counts)?;
        call.holds("recv", recv.count, counts[call.rank])?;
        let mut ops = Vec::new();
        let mut in_place = false;
        if root.index() == call.rank {
            let send = call.on_root(send, "send")?;
            call.holds("send", send.count, parts.total)?;
            for peer in parts.occupied() {
                let (start, count) = parts.range(peer);
                let part = send.part(start, count);
                if peer == call.rank && part.ptr == recv.ptr.cast_const() {
                    in_place = true;
                } else {
                    ops.push(PeerOp::Send(part, rank(peer)));
                }
            }
        }
        if recv.count > 0 && !in_place {
            ops.push(PeerOp::Recv(recv, root));
        }
        // SAFETY: the caller's promise about `send` and `recv` covers their parts.
        unsafe { call.batch(ops, launch) }
    }

    /// Sends to one rank and receives from another (or the same) at once; neither waits for the
    /// other.
    ///
    /// # Safety
    /// See [`Collectives`].
    ///
    /// # Errors
    /// As [`Collectives::send`] and [`Collectives::recv`].
    #[doc(alias = "MPI_Sendrecv")]
    unsafe fn send_recv(
        &self,
        send: SendBuf,
        to: Rank,
        recv: RecvBuf,
        from: Rank,
        launch: Launch<'_>,
    ) -> Result<()> {
        let ops = [PeerOp::Send(send, to), PeerOp::Recv(recv, from)];
        // SAFETY: the caller's promise, handed on as it is.
        unsafe { Call::new(self, "send_recv").batch(ops, launch) }
    }

    /// Issues sends and receives that all progress together.
    ///
    /// # Safety
    /// See [`Collectives`].
    ///
    /// # Errors
    /// As [`Collectives::send`] and [`Collectives::recv`].
    #[doc(alias = "batch_isend_irecv")]
    unsafe fn batch(&self, ops: &[PeerOp], launch: Launch<'_>) -> Result<()> {
        // SAFETY: the caller's promise, handed on as it is.
        unsafe { Call::new(self, "batch").batch(ops.iter().copied(), launch) }
    }

    /// Holds `launch`'s stream until every rank's stream has come here: an all-reduce of the one
    /// element in `scratch`, whose value is undefined afterwards.
    ///
    /// It orders streams, not threads; to hold the thread, synchronise the stream after it.
    ///
    /// # Safety
    /// See [`Collectives`].
    ///
    /// # Errors
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) where `scratch` is not one element; as
    /// [`Collectives::all_reduce`].
    #[doc(alias = "MPI_Barrier")]
    unsafe fn barrier(&self, scratch: RecvBuf, launch: Launch<'_>) -> Result<()> {
        Call::new(self, "barrier").holds("scratch", scratch.count, 1)?;
        // SAFETY: the caller's promise; in place on memory that is the caller's for it.
        unsafe { self.all_reduce(scratch.as_send(), scratch, ReduceOp::Max, launch) }
    }

    /// Makes the library build its connections now: an all-reduce, and one element from each rank
    /// to each. Libraries connect on first use, which is slow, and inside a capture impossible.
    ///
    /// *Shape*: `scratch` holds `2 × size` elements, whose values are undefined afterwards.
    ///
    /// # Safety
    /// See [`Collectives`].
    ///
    /// # Errors
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) for the wrong count; as
    /// [`Collectives::all_reduce`] and [`Collectives::send`].
    unsafe fn warm_up(&self, scratch: RecvBuf, launch: Launch<'_>) -> Result<()> {
        let call = Call::new(self, "warm_up");
        call.holds("scratch", scratch.count, 2 * call.size)?;
        let (out, into) = (scratch.part(0, call.size), scratch.part(call.size, call.size));
        // SAFETY: the caller's promise about `scratch` covers its first half.
        unsafe { self.all_reduce(out.as_send(), out, ReduceOp::Max, launch) }?;
        let ops = (0..call.size).flat_map(|peer| {
            [
                PeerOp::Send(out.part(peer, 1).as_send(), rank(peer)),
                PeerOp::Recv(into.part(peer, 1), rank(peer)),
            ]
        });
        // Messages take no configuration.
        let launch = Launch::at(launch.stream(), launch.site());
        // SAFETY: the caller's promise about `scratch` covers its elements.
        unsafe { call.batch(ops, launch) }
    }
}

impl<C: Collectives + ?Sized> CollectivesExt for C {}

/// One send or receive of a [batch](CollectivesExt::batch).
#[doc(alias = "P2POp")]
#[derive(Clone, Copy, Debug)]
pub enum PeerOp {
    /// Receives from a rank.
    Recv(RecvBuf, Rank),
    /// Sends to a rank.
    Send(SendBuf, Rank),
}

/// One composite call, which knows its name for errors.
struct Call<'a, C: Collectives + ?Sized> {
    comm: &'a C,
    operation: &'static str,
    rank: usize,
    size: usize,
}

impl<'a, C: Collectives + ?Sized> Call<'a, C> {
    fn new(comm: &'a C, operation: &'static str) -> Self {
        let info = comm.info();
        Self { comm, operation, rank: info.rank.index(), size: info.size }
    }

    /// Runs `body` in a group, which a refusal in it drops whole.
    fn group(&self, body: impl FnOnce() -> Result<()>) -> Result<()> {
        self.comm.group_start()?;
        let outcome = body();
        let end = self.comm.group_end();
        outcome.and(end)
    }

    /// # Safety
    /// See [`Collectives`], for every buffer in `ops`.
    unsafe fn batch(
        &self,
        ops: impl IntoIterator<Item = PeerOp>,
        launch: Launch<'_>,
    ) -> Result<()> {
        self.group(|| {
            ops.into_iter().try_for_each(|op| match op {
                // SAFETY: promised by the caller of this function.
                PeerOp::Send(buf, peer) => unsafe { self.comm.send(buf, peer, launch) },
                // SAFETY: promised by the caller of this function.
                PeerOp::Recv(buf, peer) => unsafe { self.comm.recv(buf, peer, launch) },
            })
        })
    }

    fn parts<'c>(&self, name: &str, counts: &'c [usize]) -> Result<Parts<'c>> {
        if counts.len() != self.size {
            return Err(self.refuse(format!(
                "{name} has {} entries, want one for each of {} ranks",
                counts.len(),
                self.size
            )));
        }
        let total = counts.iter().try_fold(0_usize, |sum, &count| sum.checked_add(count));
        match total {
            Some(total) => Ok(Parts { counts, total }),
            None => Err(self.refuse(format!("{name} add up to more than fits into memory"))),
        }
    }

    fn holds(&self, name: &str, holds: usize, want: usize) -> Result<()> {
        if holds == want {
            return Ok(());
        }
        Err(self.refuse(format!("{name} holds {holds} elements, want {want}")))
    }

    fn on_root<T>(&self, buffer: Option<T>, name: &str) -> Result<T> {
        buffer.ok_or_else(|| self.refuse(format!("this rank is root and gave no {name} buffer")))
    }

    fn refuse(&self, message: String) -> Error {
        Error::new(ErrorKind::InvalidArgument, message)
            .with_comm(self.comm.info())
            .with_operation(self.operation)
    }
}

/// How a buffer falls into one part per rank.
struct Parts<'a> {
    counts: &'a [usize],
    total: usize,
}

impl Parts<'_> {
    /// Ranks with a part that is not empty.
    fn occupied(&self) -> impl Iterator<Item = usize> {
        (0..self.counts.len()).filter(|&peer| self.counts[peer] > 0)
    }

    /// Where a rank's part starts, and its length.
    fn range(&self, peer: usize) -> (usize, usize) {
        (self.counts[..peer].iter().sum(), self.counts[peer])
    }
}

fn rank(index: usize) -> Rank {
    // A communicator's size fits, since each of its ranks is a `Rank`.
    Rank::new(index as u32)
}
