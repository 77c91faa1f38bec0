//! Stands for [`clerk`](crate) where ranks cannot be processes.

use std::sync::{Arc, Weak, atomic::AtomicBool};

use crate::{engine::Engine, process::peer::Process, scene::Job, watch::Found};

#[expect(dead_code, reason = "only Linux reads it")]
pub(crate) struct Clerk {
    pub(crate) engine: Weak<Engine>,
    pub(crate) process: Arc<Process>,
    pub(crate) stopped: Arc<AtomicBool>,
}

impl Clerk {
    pub(crate) fn wake(_: &Process) {}

    pub(crate) fn run(&self) {}
}

impl Engine {
    pub(crate) fn suspect(&self, _: bool) {}

    pub(crate) fn inquire(&self) -> Found {
        Found::Slow
    }

    pub(crate) fn job_if_all_can_be_asked(&self) -> Option<Job> {
        None
    }
}
