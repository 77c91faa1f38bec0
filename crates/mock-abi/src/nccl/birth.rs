//! Communicators that are made out of others by a thread of their own: for programs that do not
//! wait for them, and for one thread that makes several in a group.
//!
//! The mock's split, shrink and grow wait for the other ranks. A helper thread runs them; it stays
//! until the program's thread has taken over what it made, because the mock takes a rank whose
//! thread has ended for gone.

use std::{
    ffi::c_void,
    sync::mpsc::{Receiver, Sender, TryRecvError, channel},
    thread,
};

use collectives_backend_mock::MockComm;
use collectives_core::Collectives;
use collectives_nccl_abi::ncclComm_t;

use super::{
    comm::Comm,
    config::Config,
    log::{self, Subsystem},
    refusal::{Refusal, Result},
};

/// How a communicator is made out of another one; `None` where this rank has no part in it.
pub(super) type Making =
    Box<dyn FnOnce(&MockComm) -> collectives_core::Result<Option<MockComm>> + Send>;

/// Where the program wants the handle.
#[derive(Clone, Copy)]
pub(super) struct Out(usize);

impl Out {
    pub(super) fn new(place: *mut ncclComm_t) -> Self {
        Self(place.expose_provenance())
    }

    pub(super) fn set(self, handle: ncclComm_t) {
        let place = std::ptr::with_exposed_provenance_mut::<ncclComm_t>(self.0);
        // SAFETY: the caller of the function that this is an out argument of keeps it until the
        // communicator is made.
        unsafe { place.write(handle) };
    }
}

/// A helper at work, and what it does for whom.
pub(super) struct Birth {
    done: Receiver<(MockComm, collectives_core::Result<Option<MockComm>>)>,
    /// Dropped to let the helper go.
    _helper: Sender<()>,
    child: Child,
}

/// What becomes of the new communicator.
pub(super) struct Child {
    pub(super) call: &'static str,
    pub(super) out: Out,
    pub(super) config: Config,
}

impl Child {
    /// Gives the program its handle.
    pub(super) fn publish(self, made: Option<MockComm>) {
        let Some(made) = made else { return self.out.set(ncclComm_t::NULL) };
        let info = made.info().clone();
        let comm = Comm::make(info.rank.index(), info.size, info.device, self.config);
        comm.lock().settle(made);
        log::info(
            Subsystem::Init,
            format_args!(
                "{} comm {} rank {} nranks {} cudaDev {} nvmlDev {} busId {:x} - Init COMPLETE",
                self.call,
                log::Pointer(comm.handle().0.cast::<c_void>()),
                info.rank,
                info.size,
                info.device,
                info.device,
                bus_id(info.device),
            ),
        );
        self.out.set(comm.handle());
    }
}

/// The number by which logs name a device.
pub(super) const fn bus_id(device: usize) -> usize {
    (device + 1) << 12
}

impl Birth {
    /// Starts a helper with the communicator `parent`.
    pub(super) fn start(parent: MockComm, make: Making, child: Child) -> Self {
        let (tell, done) = channel();
        let (helper, stay) = channel::<()>();
        thread::spawn(move || {
            let made = make(&parent);
            // Where nobody listens any more, the communicators end here.
            if tell.send((parent, made)).is_ok() {
                // Ends when the other side is dropped.
                let _ = stay.recv();
            }
        });
        Self { done, _helper: helper, child }
    }

    /// Whether it is done: the parent, and whether the child came to be. From then on both belong to
    /// the calling thread.
    pub(super) fn poll(&mut self) -> Option<(MockComm, Result<()>)> {
        match self.done.try_recv() {
            Ok((parent, made)) => Some(self.take_over(parent, made)),
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => None,
        }
    }

    /// Waits until it is done. `None` where the helper was lost.
    pub(super) fn wait(&mut self) -> Option<(MockComm, Result<()>)> {
        let (parent, made) = self.done.recv().ok()?;
        Some(self.take_over(parent, made))
    }

    fn take_over(
        &mut self,
        parent: MockComm,
        made: collectives_core::Result<Option<MockComm>>,
    ) -> (MockComm, Result<()>) {
        // Any call makes this thread the rank's; what it reports is asked for later.
        let _ = parent.poll_error();
        let outcome = made.map_err(Refusal::from).map(|made| {
            if let Some(made) = &made {
                let _ = made.poll_error();
            }
            let Child { call, out, ref config } = self.child;
            Child { call, out, config: config.clone() }.publish(made);
        });
        (parent, outcome)
    }
}
