//! Writing to a peer's copy of a symmetric buffer, and signals.

use std::{panic::Location, sync::Arc};

use collectives_core::{
    Collectives, Element, Error, ErrorKind, Launch, Rank, RawWindow, Result, SignalWait,
};

use crate::{
    Buffer, Communicator, On, Slice, SliceMut,
    buffer::{Allocation, order_all},
    symmetric::Piece,
};

impl On<'_> {
    /// Writes `send` to `peer`'s copy of `target`, from element `at` on, and signals the peer once that
    /// is there. The peer calls nothing but [`wait_put`](Self::wait_put).
    ///
    /// Both buffers are symmetric memory of this communicator. The peer is another rank. Not in groups;
    /// a capture takes it where the library can (the mock cannot).
    ///
    /// ```
    /// use collectives::{SignalWait, mock};
    ///
    /// let received = mock::run(2, |comm| {
    ///     let stream = comm.new_stream()?;
    ///     let mut letters = comm.alloc_symmetric::<u32>(4)?;
    ///     let mut box_of_peer = comm.alloc_symmetric::<u32>(4)?;
    ///     let peer = 1 - comm.rank();
    ///     letters.copy_from_slice(&[comm.rank(); 4], &stream)?;
    ///     // SAFETY: no code touches the peer's copy before it has waited for this put.
    ///     unsafe { comm.on(&stream).put(&letters, &box_of_peer, 0, peer) }?;
    ///     comm.on(&stream).wait_put(&mut box_of_peer, &[SignalWait::new(peer)])?;
    ///     box_of_peer.to_vec(&stream)
    /// })?;
    /// assert_eq!(received, [[1; 4], [0; 4]]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Safety
    /// The peer's program knows of it, since its buffer changes without a call of its own: from here
    /// until the peer has passed a wait for this signal, it keeps its copy of `target`, and nobody but
    /// this call reads or writes the elements that are written.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) by capability, and where the memory is not symmetric;
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) for memory of another communicator, a place
    /// outside of the target, and a peer that is this rank or none;
    /// [`InvalidUsage`](ErrorKind::InvalidUsage) inside a group; the library's failures: NCCL refuses
    /// systems that cannot do it.
    #[doc(alias = "ncclPutSignal")]
    #[track_caller]
    pub unsafe fn put<'b, T: Element>(
        &self,
        send: impl Into<Slice<'b, T>>,
        target: &Buffer<T>,
        at: usize,
        peer: impl Into<Rank>,
    ) -> Result<()> {
        let (send, peer, comm) = (send.into(), peer.into(), self.comm());
        let refuse = |error: Error| error.with_comm(comm.info()).with_operation("put");
        comm.capabilities().put_signal.require("put_signal").map_err(refuse)?;
        symmetric(comm, "what is put", send.memory()).map_err(refuse)?;
        let (window, start) =
            symmetric(comm, "the target", target.view().memory()).map_err(refuse)?;
        if at.checked_add(send.len()).is_none_or(|end| end > target.len()) {
            let (count, len) = (send.len(), target.len());
            let message = format!("{count} elements at {at} do not lie in the target of {len}");
            return Err(refuse(Error::new(ErrorKind::InvalidArgument, message)));
        }
        let offset = start + at * size_of::<T>();
        let buffer = send.raw();
        self.one_sided("put_signal", Some(send.memory()), |launch| {
            // SAFETY: the buffer is of this device, in a window of this communicator, and freed only
            // after the stream has passed it; the target lies in a window; the caller promises that
            // nobody uses it meanwhile.
            unsafe { comm.as_comm().put_signal(buffer, peer, window, offset, launch) }
        })
    }

    /// Signals `peer` once the stream has passed all earlier work, and does not wait. Once a
    /// symmetric buffer was allocated on the communicator.
    ///
    /// # Errors
    /// As [`Collectives::signal`].
    #[doc(alias = "ncclSignal")]
    #[track_caller]
    pub fn signal(&self, peer: impl Into<Rank>) -> Result<()> {
        let peer = peer.into();
        self.one_sided("signal", None, |launch| {
            // SAFETY: the stream is of this device, and alive while work is enqueued on it.
            unsafe { self.comm().as_comm().signal(peer, launch) }
        })
    }

    /// Holds the stream until these signals have come; see [`Collectives::wait_signal`].
    ///
    /// # Errors
    /// As [`Collectives::wait_signal`].
    #[doc(alias = "ncclWaitSignal")]
    #[track_caller]
    pub fn wait_signal(&self, waits: &[SignalWait]) -> Result<()> {
        self.one_sided("wait_signal", None, |launch| {
            // SAFETY: the stream is of this device, and alive while work is enqueued on it.
            unsafe { self.comm().as_comm().wait_signal(waits, launch) }
        })
    }

    /// As [`wait_signal`](Self::wait_signal), for what peers [put](Self::put) into `buffer`: later uses
    /// of it, on any stream, come after the signals.
    ///
    /// # Errors
    /// As [`Collectives::wait_signal`].
    #[track_caller]
    pub fn wait_put<'b, T: Element>(
        &self,
        buffer: impl Into<SliceMut<'b, T>>,
        waits: &[SignalWait],
    ) -> Result<()> {
        let buffer = buffer.into();
        self.one_sided("wait_signal", Some(buffer.memory()), |launch| {
            // SAFETY: the stream is of this device, and alive while work is enqueued on it.
            unsafe { self.comm().as_comm().wait_signal(waits, launch) }
        })
    }

    /// Enqueues a call after the last use of its memory.
    #[track_caller]
    fn one_sided(
        &self,
        name: &'static str,
        memory: Option<&Arc<Allocation>>,
        issue: impl FnOnce(Launch<'_>) -> Result<()>,
    ) -> Result<()> {
        let (comm, stream, site) = (self.comm(), self.stream(), Location::caller());
        comm.same_place(stream)?;
        comm.not_in_raw_group()?;
        let _locked = order_all(&[memory], stream)?;
        let launch = Launch::at(stream.as_raw(), site);
        comm.inner().enqueue(stream, name, site, || issue(launch))
    }
}

/// The window that memory lies in, and where, if it is this communicator's.
fn symmetric(
    comm: &Communicator,
    what: &str,
    memory: &Arc<Allocation>,
) -> Result<(RawWindow, usize)> {
    let own = |piece: &&Piece| Arc::ptr_eq(&piece.comm, comm.inner());
    let Some(piece) = memory.piece().filter(own) else {
        let message = format!("{what} is no symmetric memory of this communicator");
        return Err(Error::new(ErrorKind::InvalidArgument, message)
            .with_hint("allocate it with its alloc_symmetric"));
    };
    let reason = || piece.reason.as_deref().unwrap_or("no reason was given");
    piece.window.map(|window| (window, piece.offset)).ok_or_else(|| {
        let message = format!("{what} is {} memory, not symmetric: {}", piece.kind, reason());
        Error::new(ErrorKind::Unsupported, message)
    })
}
