//! Operations of one communicator on one stream, as safe functions.
//!
//! That is sound for the suite's own use because of how memory is handed out: it belongs to the
//! [`Workspace`](crate::workspace::Workspace) of a case, which frees nothing before all its streams
//! have passed everything, and leaks it where they do not. Buffers that break a rule appear only in
//! calls that the backend must refuse before it touches them; a backend that does not has failed
//! the suite.

use std::ffi::c_void;

use collectives_core::{
    CallConfig, Collectives, CollectivesExt, Error, Launch, PeerOp, PreMulSum, Rank,
    RawRegistration, RawStream, RawWindow, RecvBuf, ReduceOp, Scalar, SendBuf, SignalWait,
    WindowFlags,
};

use crate::{check::Outcome, last_call::LastCall, workspace::Memory};

/// A communicator, and the stream on which to enqueue.
#[derive(Clone, Copy)]
pub(crate) struct Lane<'a> {
    pub(crate) comm: &'a dyn Collectives,
    pub(crate) stream: RawStream,
    config: Option<&'a CallConfig>,
    calls: &'a LastCall,
}

macro_rules! operations {
    ($($name:ident($($argument:ident: $ty:ty),*);)*) => {$(
        #[track_caller]
        pub(crate) fn $name(&self, $($argument: $ty),*) -> Result<(), Error> {
            self.calls.note(stringify!($name));
            let launch = Launch::new(self.stream);
            let launch = self.config.map_or(launch, |config| launch.with_config(config));
            // SAFETY: buffers and streams are the case's and live until it is settled, ranks issue
            // the same operations by construction, and what breaks a rule is refused; see the
            // module.
            unsafe { self.comm.$name($($argument,)* launch) }
        }
    )*};
}

impl<'a> Lane<'a> {
    pub(crate) fn new(comm: &'a dyn Collectives, stream: RawStream, calls: &'a LastCall) -> Self {
        Self { comm, stream, config: None, calls }
    }

    /// The same, with a configuration for each operation.
    pub(crate) fn with_config(self, config: &'a CallConfig) -> Self {
        Self { config: Some(config), ..self }
    }

    operations! {
        all_reduce(send: SendBuf, recv: RecvBuf, op: ReduceOp);
        reduce(send: SendBuf, recv: Option<RecvBuf>, op: ReduceOp, root: Rank);
        broadcast(send: Option<SendBuf>, recv: RecvBuf, root: Rank);
        all_gather(send: SendBuf, recv: RecvBuf);
        reduce_scatter(send: SendBuf, recv: RecvBuf, op: ReduceOp);
        all_to_all(send: SendBuf, recv: RecvBuf);
        gather(send: SendBuf, recv: Option<RecvBuf>, root: Rank);
        scatter(send: Option<SendBuf>, recv: RecvBuf, root: Rank);
        send(buf: SendBuf, peer: Rank);
        recv(buf: RecvBuf, peer: Rank);
        all_gather_v(send: SendBuf, recv: RecvBuf, counts: &[usize]);
        reduce_scatter_v(send: SendBuf, recv: RecvBuf, counts: &[usize], op: ReduceOp);
        all_to_all_v(send: SendBuf, sent: &[usize], recv: RecvBuf, received: &[usize]);
        gather_v(send: SendBuf, recv: Option<RecvBuf>, counts: &[usize], root: Rank);
        scatter_v(send: Option<SendBuf>, recv: RecvBuf, counts: &[usize], root: Rank);
        send_recv(send: SendBuf, to: Rank, recv: RecvBuf, from: Rank);
        batch(ops: &[PeerOp]);
        barrier(scratch: RecvBuf);
        warm_up(scratch: RecvBuf);
    }

    pub(crate) fn rank(&self) -> usize {
        self.comm.info().rank.index()
    }

    pub(crate) fn size(&self) -> usize {
        self.comm.info().size
    }

    #[track_caller]
    pub(crate) fn pre_mul_sum(&self, scalar: Scalar) -> Result<PreMulSum, Error> {
        self.calls.note("create_pre_mul_sum");
        // SAFETY: a device scalar is the case's memory, which lives until it is settled.
        unsafe { self.comm.create_pre_mul_sum(scalar) }
    }

    #[track_caller]
    pub(crate) fn register(
        &self,
        ptr: *mut c_void,
        bytes: usize,
    ) -> Result<RawRegistration, Error> {
        self.calls.note("register");
        // SAFETY: the memory is the case's, which deregisters before it frees.
        unsafe { self.comm.register(ptr, bytes) }
    }

    /// Frees memory of this communicator's `mem_alloc`.
    pub(crate) fn free(&self, memory: Memory) -> Outcome {
        // SAFETY: `adopt` was given what `mem_alloc` returned; cases free it once, deregistered,
        // after reading its last result.
        Ok(unsafe { self.comm.mem_free(memory.allocation().0) }?)
    }

    #[track_caller]
    pub(crate) fn deregister(&self, registration: RawRegistration) -> Result<(), Error> {
        self.calls.note("deregister");
        // SAFETY: cases deregister once, after their stream has passed everything.
        unsafe { self.comm.deregister(registration) }
    }

    #[track_caller]
    pub(crate) fn window_register(
        &self,
        ptr: *mut c_void,
        bytes: usize,
        flags: WindowFlags,
    ) -> Result<RawWindow, Error> {
        self.calls.note("window_register");
        // SAFETY: the memory is the case's, which frees it after all ranks have deregistered.
        unsafe { self.comm.window_register(ptr, bytes, flags) }
    }

    #[track_caller]
    pub(crate) fn window_deregister(&self, window: RawWindow) -> Result<(), Error> {
        self.calls.note("window_deregister");
        // SAFETY: cases deregister once, after all streams have passed everything.
        unsafe { self.comm.window_deregister(window) }
    }

    #[track_caller]
    pub(crate) fn put_signal(
        &self,
        send: SendBuf,
        peer: Rank,
        window: RawWindow,
        offset: usize,
    ) -> Result<(), Error> {
        self.calls.note("put_signal");
        let launch = Launch::new(self.stream);
        // SAFETY: cases put from and to their windows, whose memory lives until all ranks have passed
        // everything, and look at a target after they waited for its signal.
        unsafe { self.comm.put_signal(send, peer, window, offset, launch) }
    }

    #[track_caller]
    pub(crate) fn signal(&self, peer: Rank) -> Result<(), Error> {
        self.calls.note("signal");
        // SAFETY: the stream is the case's, and lives until it is settled.
        unsafe { self.comm.signal(peer, Launch::new(self.stream)) }
    }

    #[track_caller]
    pub(crate) fn wait_signal(&self, waits: &[SignalWait]) -> Result<(), Error> {
        self.calls.note("wait_signal");
        // SAFETY: as above.
        unsafe { self.comm.wait_signal(waits, Launch::new(self.stream)) }
    }

    #[track_caller]
    pub(crate) fn window_ptr(&self, window: RawWindow) -> Result<*mut c_void, Error> {
        self.calls.note("window_ptr");
        // SAFETY: cases ask before they deregister.
        unsafe { self.comm.window_ptr(window) }
    }
}
