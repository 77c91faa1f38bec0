//! What the tests of schedules, guards and faults share: ranks on streams of their own, and i32
//! buffers.

#![allow(dead_code, clippy::allow_attributes, reason = "each test binary uses a part of it")]

use std::{ffi::c_void, panic::Location, time::Duration};

use collectives_backend_mock::{Mock, MockComm, MockDevice};
use collectives_core::{
    Backend, Collectives, Device, JoinAllConfig, Launch, Rank, RawEvent, RawStream, RecvBuf,
    ReduceOp, Result, SendBuf,
};

/// One rank with a stream of its own.
pub(crate) struct End {
    pub(crate) comm: MockComm,
    pub(crate) device: MockDevice,
    pub(crate) stream: RawStream,
}

/// A buffer of a device; freed with its engine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Buf {
    pub(crate) ptr: *mut c_void,
    pub(crate) count: usize,
}

impl Buf {
    pub(crate) fn send(self) -> SendBuf {
        SendBuf::typed::<i32>(self.ptr.cast(), self.count)
    }

    pub(crate) fn recv(self) -> RecvBuf {
        RecvBuf::typed::<i32>(self.ptr.cast(), self.count)
    }

    /// Some of it.
    pub(crate) fn part(self, start: usize, count: usize) -> Self {
        Self { ptr: self.ptr.wrapping_byte_add(4 * start), count }
    }

    /// What is in it. Tests look at memory that is the engine's, from the thread that drives it.
    pub(crate) fn now(self) -> Vec<i32> {
        // SAFETY: the buffer holds as many elements, and was written when it was made.
        unsafe { std::slice::from_raw_parts(self.ptr.cast::<i32>(), self.count) }.to_vec()
    }

    /// Writes with the program's own hands.
    pub(crate) fn set(self, values: &[i32]) {
        // SAFETY: as in `now`.
        unsafe { self.ptr.cast::<i32>().copy_from(values.as_ptr(), self.count) };
    }
}

impl End {
    pub(crate) fn buf(&self, values: &[i32]) -> Buf {
        let buf = Buf { ptr: self.device.alloc(4 * values.len()).unwrap(), count: values.len() };
        buf.set(values);
        buf
    }

    #[track_caller]
    pub(crate) fn all_reduce(&self, send: Buf, recv: Buf) -> Result<()> {
        self.all_reduce_on(send, recv, self.stream)
    }

    #[track_caller]
    pub(crate) fn all_reduce_on(&self, send: Buf, recv: Buf, stream: RawStream) -> Result<()> {
        let launch = Launch::new(stream);
        // SAFETY: buffers live as long as the mock.
        unsafe { self.comm.all_reduce(send.send(), recv.recv(), ReduceOp::Sum, launch) }
    }

    #[track_caller]
    pub(crate) fn send(&self, buf: Buf, peer: u32) -> Result<()> {
        // SAFETY: as in `all_reduce_on`.
        unsafe { self.comm.send(buf.send(), Rank::new(peer), Launch::new(self.stream)) }
    }

    #[track_caller]
    pub(crate) fn recv(&self, buf: Buf, peer: u32) -> Result<()> {
        // SAFETY: as in `all_reduce_on`.
        unsafe { self.comm.recv(buf.recv(), Rank::new(peer), Launch::new(self.stream)) }
    }

    #[track_caller]
    pub(crate) fn copy(&self, from: Buf, to: Buf, stream: RawStream) {
        let bytes = 4 * from.count.min(to.count);
        // SAFETY: as in `all_reduce_on`.
        unsafe { self.device.copy_between(to.ptr, from.ptr, bytes, stream) }.unwrap();
    }

    #[track_caller]
    pub(crate) fn fill(&self, buf: Buf, byte: u8, stream: RawStream) {
        // SAFETY: as in `all_reduce_on`.
        unsafe { self.device.memset(buf.ptr, byte, 4 * buf.count, stream) }.unwrap();
    }

    /// Lets `after` wait for what is on `before` now.
    pub(crate) fn order(&self, before: RawStream, after: RawStream) {
        let event = self.record(before);
        // SAFETY: event and stream are alive.
        unsafe { self.device.wait(after, event) }.unwrap();
    }

    pub(crate) fn record(&self, stream: RawStream) -> RawEvent {
        let event = self.device.event_create().unwrap();
        // SAFETY: event and stream are alive.
        unsafe { self.device.record(event, stream) }.unwrap();
        event
    }

    pub(crate) fn query(&self, event: RawEvent) -> bool {
        // SAFETY: the event is alive.
        unsafe { self.device.query(event) }.unwrap()
    }

    pub(crate) fn wait(&self) -> Result<()> {
        self.wait_on(self.stream)
    }

    pub(crate) fn wait_on(&self, stream: RawStream) -> Result<()> {
        self.wait_for(stream, PATIENCE)
    }

    pub(crate) fn wait_for(&self, stream: RawStream, limit: Duration) -> Result<()> {
        // SAFETY: the stream is alive.
        unsafe { self.device.synchronize(stream, Some(limit)) }
    }
}

/// All ranks of one communicator, 'test', in this thread.
pub(crate) fn ends(mock: &Mock, ranks: usize) -> Vec<End> {
    named(mock, ranks, "test")
}

pub(crate) fn named(mock: &Mock, ranks: usize, name: &str) -> Vec<End> {
    let config = JoinAllConfig::new((0..ranks).collect::<Vec<_>>()).with_name(name);
    mock.join_all(config).unwrap().into_iter().map(|comm| end(mock, comm)).collect()
}

pub(crate) fn end(mock: &Mock, comm: MockComm) -> End {
    let device = mock.device(comm.info().device).unwrap();
    let stream = device.stream_create().unwrap();
    End { comm, device, stream }
}

/// The caller's line, as errors write it.
#[track_caller]
pub(crate) fn here() -> String {
    let place = Location::caller();
    format!("{}:{}:", place.file(), place.line())
}

/// What is pending, in an order of its own.
pub(crate) fn pending(mock: &Mock) -> Vec<String> {
    let mut all: Vec<_> = mock.pending().iter().map(ToString::to_string).collect();
    all.sort();
    all
}

/// No test needs this long; a hang becomes a message.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
