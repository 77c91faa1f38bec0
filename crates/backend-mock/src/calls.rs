//! Functions of the user that streams call.
//!
//! They run without the engine's lock, on one thread of their own for the whole process, one after
//! another: a function may take as long as it likes, and may wait for what other threads do. So it
//! must run neither on a thread that only came by nor on one that moves data. The engine does not
//! count that thread among its own, so a verdict waits as long as a function may still do something.

use std::{
    ffi::c_void,
    sync::{
        Arc, Mutex,
        mpsc::{self, Receiver, Sender},
    },
    thread,
};

use crate::{engine::Engine, mirror, sync::lock};

/// A C function and what it is called with.
#[derive(Clone, Copy)]
pub(crate) struct Call {
    pub(crate) function: unsafe extern "C" fn(*mut c_void),
    pub(crate) data: *mut c_void,
}

// SAFETY: who enqueued it promised that it may be called on any thread.
unsafe impl Send for Call {}

/// A call, and the stream that it holds up.
struct Due {
    engine: Arc<Engine>,
    stream: u32,
    call: Call,
}

impl Due {
    fn make(self) {
        let Call { function, data } = self.call;
        // SAFETY: promised by who enqueued it; the stream has come to it.
        let call = || unsafe { function(data) };
        if self.engine.config.guards.protect {
            mirror::in_order(call)
        } else {
            call()
        }
        self.engine.with(|state| state.returned(self.stream));
    }
}

impl Engine {
    /// Has functions called that streams have come to.
    pub(crate) fn make_calls(&self, calls: Vec<(u32, Call)>) {
        // Upgrading can't fail, since `self` is borrowed from a live engine.
        if calls.is_empty() {
            return;
        }
        let Some(engine) = self.me.upgrade() else { return };
        let mut refused = Vec::new();
        let mut caller = lock(&CALLER);
        for (stream, call) in calls {
            let due = Due { engine: Arc::clone(&engine), stream, call };
            if caller.is_none() {
                *caller = start();
            }
            match &*caller {
                Some(sender) => refused.extend(sender.send(due).err().map(|refused| refused.0)),
                None => refused.push(due),
            }
        }
        drop(caller);
        // Better here than never.
        refused.into_iter().for_each(Due::make);
    }
}

/// Where the thread that calls takes its work from, once it runs.
static CALLER: Mutex<Option<Sender<Due>>> = Mutex::new(None);

fn start() -> Option<Sender<Due>> {
    let (sender, receiver): (_, Receiver<Due>) = mpsc::channel();
    let thread = thread::Builder::new().name("collectives-mock-calls".into());
    match thread.spawn(move || receiver.into_iter().for_each(Due::make)) {
        Ok(_) => Some(sender),
        Err(error) => {
            tracing::warn!(%error, "no thread for host functions; streams call them in place");
            None
        }
    }
}
