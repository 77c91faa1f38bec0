//! One-sided operations: a rank writes to a peer's memory, and the peer hears of it by a signal.
//!
//! * **Data** is copied as any copy in a stream: the ranks of a communicator know each other's windows,
//!   from when they registered them.
//! * **Signals** are messages without elements, on a communicator of their own that has the same ranks.
//!   A message waits for its receiver, and a signal must not hold up its stream. So signals stand in
//!   streams of their own, one for each peer, behind an event of the stream that they belong to. A wait
//!   is so many receives in the stream that waits.
//!
//! So a wait for a signal that never comes is a receive whose send never comes, for verdicts, aborts and
//! ranks that end; and what holds for messages between processes holds for signals. The signals of one
//! rank to another come in the order of their calls, whatever their streams.

use std::{ffi::c_void, ptr, sync::Arc};

use collectives_core::{
    Collectives, DType, Device, ErrorKind, Launch, Rank, RawStream, RawWindow, RecvBuf, Result,
    SendBuf, SignalWait, Split, SplitConfig, WindowFlags,
};

use crate::{
    comm::MockComm,
    device::MockDevice,
    error::{invalid, misuse, refuse},
};

/// What carries the signals of one rank's end.
pub(crate) struct Signals {
    comm: MockComm,
    device: MockDevice,
    /// By peer.
    streams: Vec<RawStream>,
}

impl Signals {
    /// Made by all ranks together.
    fn new(of: &MockComm) -> Result<Self> {
        let name = format!("{} signals", of.shared().title());
        let Some(comm) = of.split(SplitConfig::new(0).with_name(name))? else {
            return Err(refuse(ErrorKind::Internal, "a split with a colour gave no communicator"));
        };
        // It is part of the other one, which is listed.
        of.engine().ledger.remove_comm(comm.info());
        let ordinal = of.info().device;
        let stream = |_| of.engine().make_stream(ordinal);
        let streams = (0..of.info().size).map(stream).collect();
        // Whoever was aborted meanwhile has ended this one, too.
        let _ = of.shared().follower.set(Arc::clone(comm.shared()));
        Ok(Self { comm, device: MockDevice::new(Arc::clone(of.engine()), ordinal), streams })
    }

    fn send(&self, peer: Rank, launch: Launch<'_>) -> Result<()> {
        let stream = self.streams[peer.index()];
        let event = self.device.event_create()?;
        // SAFETY: the event is alive, and the caller promises the stream.
        let recorded = unsafe { self.device.record(event, launch.stream()) };
        // SAFETY: both are alive.
        let ordered = recorded.and_then(|()| unsafe { self.device.wait(stream, event) });
        // SAFETY: made here; a wait that is enqueued holds without it.
        let ended = unsafe { self.device.event_destroy(event) };
        ordered.and(ended)?;
        let nothing = SendBuf::new(ptr::null_mut::<c_void>(), 0, DType::U8);
        // SAFETY: no memory; the stream is alive.
        unsafe { self.comm.send(nothing, peer, Launch::at(stream, launch.site())) }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for &stream in &self.streams {
            // SAFETY: the stream is this value's alone; what stands in it still runs.
            if let Err(error) = unsafe { self.device.stream_destroy(stream) } {
                tracing::debug!(%error, "a stream of signals was not destroyed");
            }
        }
    }
}

impl MockComm {
    /// Tells all ranks where this one's part of a window lies, and hears the same of them; and sees to
    /// it that signals can go.
    pub(crate) fn exchange_places(
        &self,
        ptr: *mut c_void,
        bytes: usize,
        flags: WindowFlags,
    ) -> Result<Box<[Option<usize>]>> {
        if self.signals().get().is_none() {
            let made = Box::new(Signals::new(self)?);
            self.signals().get_or_init(|| made);
        }
        let own = match &self.shared().joint {
            None => ptr.expose_provenance() as u64,
            Some(joint) => {
                let segment = joint.process.segment();
                let offset = ptr.addr().checked_sub(segment.base().addr());
                let inside = |offset: &usize| offset.saturating_add(bytes) <= segment.bytes();
                offset.filter(inside).map_or(NOWHERE, |offset| offset as u64)
            }
        };
        let all = self.gather_words([own, u64::from(flags.bits())])?;
        if let Some(rank) = all.iter().position(|&[_, theirs]| theirs != u64::from(flags.bits())) {
            return Err(invalid(format!(
                "rank {rank} registers the window with flags {:#x}, this rank with {:#x}",
                all[rank][1],
                flags.bits()
            )));
        }
        let place = |(rank, [at, _]): (usize, [u64; 2])| match &self.shared().joint {
            None => Some(at as usize),
            Some(_) if rank == self.info().rank.index() => Some(ptr.expose_provenance()),
            Some(_) if at == NOWHERE => None,
            Some(joint) => joint.peers[rank].translate(at, bytes).map(<*mut u8>::expose_provenance),
        };
        Ok(all.into_iter().enumerate().map(place).collect())
    }

    /// Gives two words to all ranks, and waits for theirs.
    fn gather_words(&self, own: [u64; 2]) -> Result<Vec<[u64; 2]>> {
        let signals = self.carrier()?;
        let mut all = vec![[0_u64; 2]; self.info().size];
        let send = SendBuf::new(own.as_ptr().cast_mut().cast::<c_void>(), 2, DType::U64);
        let recv = RecvBuf::new(all.as_mut_ptr().cast::<c_void>(), 2 * all.len(), DType::U64);
        let stream = signals.streams[self.info().rank.index()];
        // SAFETY: both are as long, and live until the stream has passed, which is waited for.
        unsafe { signals.comm.all_gather(send, recv, Launch::new(stream)) }?;
        // SAFETY: the stream is alive.
        unsafe { signals.device.synchronize(stream, None) }?;
        signals.comm.shared().check()?;
        Ok(all)
    }

    fn carrier(&self) -> Result<&Signals> {
        self.signals().get().map(|signals| &**signals).ok_or_else(|| {
            misuse("signals need a window on the communicator").with_hint("register one first")
        })
    }

    fn not_captured(&self, launch: Launch<'_>) -> Result<()> {
        self.not_in_group("one-sided operations start at once")?;
        let stream = self.engine().stream(launch.stream(), self.info().device)?;
        match stream.is_capturing() {
            true => Err(misuse("one-sided operations cannot be captured")),
            false => Ok(()),
        }
    }

    /// See [`Collectives::put_signal`].
    pub(crate) fn put(
        &self,
        send: SendBuf,
        peer: Rank,
        (window, offset): (RawWindow, usize),
        launch: Launch<'_>,
    ) -> Result<()> {
        let shape = self.rules().put_signal(send, peer)?;
        self.not_captured(launch)?;
        let bytes = shape.count * shape.dtype.size();
        let id = self.window_id(window)?;
        let to = {
            let windows = self.windows();
            let window = &windows[&id];
            let size = window.range.len();
            if offset.checked_add(bytes).is_none_or(|end| end > size) {
                return Err(invalid(format!(
                    "{bytes} bytes at offset {offset} do not lie in the window of {size}"
                )));
            }
            let inside = |window: &crate::window::Window| {
                let start = send.ptr.addr();
                window.range.start <= start && start + bytes <= window.range.end
            };
            if bytes > 0 && !windows.values().any(inside) {
                return Err(invalid("what is put lies in no window of this communicator")
                    .with_hint("put from symmetric memory, as NCCL wants it"));
            }
            window.peers[peer.index()].ok_or_else(|| {
                let message = format!("rank {peer} registered memory that no process reaches");
                refuse(ErrorKind::Unsupported, message)
            })?
        };
        let signals = self.carrier()?;
        if bytes > 0 {
            let to = ptr::with_exposed_provenance_mut(to + offset);
            let from = send.ptr;
            // SAFETY: the range lies in the peer's window, which it keeps; the rest is promised by the
            // caller.
            unsafe { signals.device.copy_between(to, from, bytes, launch.stream()) }?;
        }
        signals.send(peer, launch)
    }

    /// See [`Collectives::signal`].
    pub(crate) fn signal_peer(&self, peer: Rank, launch: Launch<'_>) -> Result<()> {
        self.rules().signal(peer)?;
        self.not_captured(launch)?;
        self.carrier()?.send(peer, launch)
    }

    /// See [`Collectives::wait_signal`].
    pub(crate) fn wait_for_signals(&self, waits: &[SignalWait], launch: Launch<'_>) -> Result<()> {
        self.rules().wait_signal(waits)?;
        self.not_captured(launch)?;
        let signals = self.carrier()?;
        for wait in waits {
            for _ in 0..wait.count {
                let nothing = RecvBuf::new(ptr::null_mut::<c_void>(), 0, DType::U8);
                // SAFETY: no memory; the caller promises the stream.
                unsafe { signals.comm.recv(nothing, wait.peer, launch) }?;
            }
        }
        Ok(())
    }
}

/// Stands for memory that other processes cannot reach.
const NOWHERE: u64 = u64::MAX;
