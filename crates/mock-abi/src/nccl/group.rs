//! Groups: a thread's, nested, with an error that is kept to the end.
//!
//! Collectives go to the mock's own group, which checks them as they come and starts them together.
//! What makes communicators is kept here and done by the outermost end, after them; one thread can
//! so make several, which wait for one another.

use std::{
    cell::{Cell, RefCell},
    ffi::c_void,
    mem, thread,
    time::Duration,
};

use collectives_backend_mock::{Mock, MockComm};
use collectives_core::{Backend, GroupEnd, JoinConfig, UniqueId};
use collectives_nccl_abi::{config::ncclSimInfo_t, ncclComm_t, ncclResult_t};

use super::{
    birth::{Birth, Child, Making, Out, bus_id},
    comm::{Comm, Phase},
    log::{self, Subsystem},
    refusal::{Refusal, Result, answer},
};
use crate::runtime;

/// What the open group of a thread holds.
#[derive(Default)]
struct Group {
    /// The last error of a call in it.
    error: Option<ncclResult_t>,
    /// Whether the mock's group is open.
    collects: bool,
    /// Collectives so far, and the communicators that they are on.
    calls: usize,
    comms: Vec<&'static Comm>,
    blocking: bool,
    nonblocking: bool,
    jobs: Vec<Job>,
}

/// What the end of a group does, or a call outside of one.
pub(super) enum Job {
    Join(Join),
    Make(Make),
    Finalize(&'static Comm),
}

/// A rank that joins.
pub(super) struct Join {
    pub(super) call: &'static str,
    pub(super) comm: &'static Comm,
    pub(super) out: Out,
    pub(super) id: UniqueId,
    pub(super) config: JoinConfig,
    /// Whether it grows a communicator.
    pub(super) grows: bool,
}

/// A communicator that is made out of another one.
pub(super) struct Make {
    pub(super) parent: &'static Comm,
    pub(super) making: Making,
    pub(super) child: Child,
}

thread_local! {
    /// How many groups are open. Apart from the rest, since every call asks.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
    static GROUP: RefCell<Group> = RefCell::default();
}

fn with<R>(act: impl FnOnce(&mut Group) -> R) -> R {
    GROUP.with_borrow_mut(act)
}

/// Opens a group, or goes one deeper.
pub(super) fn start() {
    DEPTH.set(DEPTH.get() + 1);
}

/// Whether a group is open on this thread.
pub(super) fn is_open() -> bool {
    DEPTH.get() > 0
}

/// Runs a call that passes the group check: its error is also the group's.
pub(super) fn checked(body: impl FnOnce() -> Result<ncclResult_t>) -> ncclResult_t {
    let code = answer(body);
    if code != ncclResult_t::SUCCESS && code != ncclResult_t::IN_PROGRESS && is_open() {
        with(|group| group.error = Some(code));
    }
    code
}

/// Notes a collective in the open group, and sees to it that the mock collects it.
pub(super) fn collect(comm: &'static Comm, blocking: bool) -> Result<()> {
    if !is_open() {
        return Ok(());
    }
    let opens = with(|group| {
        group.calls += 1;
        if !group.comms.iter().any(|&other| std::ptr::eq(other, comm)) {
            group.comms.push(comm);
        }
        group.note_kind(blocking);
        !mem::replace(&mut group.collects, true)
    });
    if opens {
        runtime::mock()?.group_start()?;
    }
    Ok(())
}

/// Does a job, now or at the end of the open group.
pub(super) fn submit(job: Job) -> Result<ncclResult_t> {
    if is_open() {
        with(|group| {
            group.note_kind(job.is_blocking());
            group.jobs.push(job);
        });
        return Ok(ncclResult_t::SUCCESS);
    }
    run(vec![job])
}

/// Ends a group; the outermost end does what it holds. `estimate`: the end only asks how long that
/// would take, and drops it.
pub(super) fn end(estimate: Option<*mut ncclSimInfo_t>) -> ncclResult_t {
    answer(|| {
        let Some(depth) = DEPTH.get().checked_sub(1) else {
            return Err(Refusal::usage("ncclGroupEnd: not in a group call."));
        };
        DEPTH.set(depth);
        match depth {
            0 => with(mem::take).close(estimate),
            _ => Ok(ncclResult_t::SUCCESS),
        }
    })
}

impl Group {
    fn note_kind(&mut self, blocking: bool) {
        self.blocking |= blocking;
        self.nonblocking |= !blocking;
    }

    fn close(mut self, estimate: Option<*mut ncclSimInfo_t>) -> Result<ncclResult_t> {
        let refused = self.refusal(estimate);
        if refused.is_some() || estimate.is_some() {
            self.discard();
            return refused.map_or(Ok(ncclResult_t::SUCCESS), Err);
        }
        if self.collects
            && let Err(error) = runtime::mock()?.group_end(GroupEnd::Launch)
        {
            self.collects = false;
            self.discard();
            return Err(error.into());
        }
        // Whoever has no device polls memory, and calls nothing that would move work on.
        if runtime::is_without_devices() {
            for comm in &self.comms {
                // What went wrong is what the next call on it says.
                let _ = comm.poll();
            }
        }
        run(self.jobs)
    }

    /// Why it does not start, if so.
    fn refusal(&self, estimate: Option<*mut ncclSimInfo_t>) -> Option<Refusal> {
        if let Some(code) = self.error {
            return Some(Refusal::again(code));
        }
        if self.blocking && self.nonblocking {
            return Some(Refusal::argument(
                "Blocking and nonblocking communicators are not allowed in the same group",
            ));
        }
        let info = estimate?;
        // SAFETY: the caller's struct, which is not null here, and as long as it says.
        unsafe { super::config::estimate(info, self.calls) }.err()
    }

    fn discard(self) {
        if self.collects
            && let Ok(mock) = runtime::mock()
        {
            // Dropping what was collected has nothing to report.
            let _ = mock.group_end(GroupEnd::Discard);
        }
        for job in self.jobs {
            if let Job::Join(join) = job {
                join.give_up(ncclResult_t::INTERNAL_ERROR, true);
            }
        }
    }
}

impl Job {
    fn is_blocking(&self) -> bool {
        match self {
            Self::Join(join) => join.comm.lock().config.blocking,
            Self::Make(make) => make.parent.lock().config.blocking,
            Self::Finalize(comm) => comm.lock().config.blocking,
        }
    }
}

/// Does jobs that wait for one another.
fn run(jobs: Vec<Job>) -> Result<ncclResult_t> {
    let mut outcome = Ok(ncclResult_t::SUCCESS);
    let mut note = |result: Result<ncclResult_t>| match result {
        Ok(ncclResult_t::SUCCESS) => {}
        Ok(code) if outcome.is_ok() => outcome = Ok(code),
        Ok(_) => {}
        Err(refusal) => outcome = Err(refusal),
    };
    let (mut joins, mut makes) = (Vec::new(), Vec::new());
    for job in jobs {
        match job {
            Job::Join(join) => joins.push(join),
            Job::Make(make) => makes.push(make),
            Job::Finalize(comm) => note(super::lifecycle::finalize_now(comm)),
        }
    }
    note(run_joins(joins));
    note(run_makes(makes));
    outcome
}

/// Joins of one thread: all but the last only take their places, and the last one waits.
fn run_joins(mut joins: Vec<Join>) -> Result<ncclResult_t> {
    let Some(last) = joins.pop() else { return Ok(ncclResult_t::SUCCESS) };
    if !last.comm.lock().config.blocking {
        joins.push(last);
        for join in joins {
            join.start()?;
        }
        return Ok(ncclResult_t::IN_PROGRESS);
    }
    let mut waiting = Vec::new();
    let mut outcome = Ok(ncclResult_t::SUCCESS);
    for join in joins {
        match join.start() {
            Ok(()) => waiting.push(join),
            Err(refusal) => outcome = Err(refusal),
        }
    }
    if outcome.is_ok() {
        outcome = last.wait();
    } else {
        last.give_up(ncclResult_t::INTERNAL_ERROR, true);
    }
    for join in waiting {
        let code = match outcome {
            Ok(_) => join.poll_until_done(),
            Err(_) => ncclResult_t::INTERNAL_ERROR,
        };
        if code == ncclResult_t::SUCCESS {
            join.tell_complete();
        } else {
            join.give_up(code, true);
            outcome = outcome.and_then(|_| Err(Refusal::again(code)));
        }
    }
    outcome
}

impl Join {
    /// Takes the place of the rank, and does not wait for the others.
    fn start(&self) -> Result<()> {
        let started = runtime::mock()
            .and_then(|mock| mock.join_start(&self.id, self.config.clone()))
            .map_err(Refusal::from);
        match started {
            Ok(pending) => {
                self.comm.lock().phase = Phase::Joining(Box::new(pending));
                Ok(())
            }
            Err(refusal) => {
                let keep = !self.comm.lock().config.blocking;
                self.give_up(refusal.code, !keep);
                Err(refusal)
            }
        }
    }

    /// Joins, and waits for the others.
    fn wait(&self) -> Result<ncclResult_t> {
        match self.join() {
            Ok(made) => {
                self.comm.lock().settle(made);
                self.tell_complete();
                Ok(ncclResult_t::SUCCESS)
            }
            Err(error) => {
                let refusal = Refusal::from(error);
                self.give_up(refusal.code, true);
                Err(refusal)
            }
        }
    }

    fn join(&self) -> collectives_core::Result<MockComm> {
        let mock: &Mock = runtime::mock()?;
        match self.grows {
            true => mock.join_grown(&self.id, self.config.clone()),
            false => mock.join(&self.id, self.config.clone()),
        }
    }

    fn poll_until_done(&self) -> ncclResult_t {
        let mut pause = Duration::from_micros(20);
        loop {
            let code = self.comm.lock().poll();
            if code != ncclResult_t::IN_PROGRESS {
                return code;
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(2));
        }
    }

    /// The communicator does not come to be: `forget` takes its handle back as well.
    fn give_up(&self, code: ncclResult_t, forget: bool) {
        let mut state = self.comm.lock();
        state.phase = Phase::Failed(code);
        if forget {
            self.out.set(ncclComm_t::NULL);
            self.comm.free(&mut state);
        }
    }

    /// The line with which NCCL starts.
    pub(super) fn tell_start(&self) {
        self.tell("Init START");
    }

    fn tell_complete(&self) {
        self.tell("Init COMPLETE");
    }

    fn tell(&self, how_far: &str) {
        let JoinConfig { rank, size, device, .. } = self.config;
        log::info(
            Subsystem::Init,
            format_args!(
                "{} comm {} rank {rank} nranks {size} cudaDev {device} nvmlDev {device} busId {:x} \
                 commId {:#x} - {how_far}",
                self.call,
                log::Pointer(self.comm.handle().0.cast::<c_void>()),
                bus_id(device),
                hash(self.id.as_bytes()),
            ),
        );
    }
}

/// The number by which logs name an id: FNV-1a of its bytes.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Communicators made out of others by one thread: all but the last by helpers.
fn run_makes(makes: Vec<Make>) -> Result<ncclResult_t> {
    let mut births: Vec<&'static Comm> = Vec::new();
    let mut outcome = Ok(ncclResult_t::SUCCESS);
    let count = makes.len();
    for (index, make) in makes.into_iter().enumerate() {
        let mut state = make.parent.lock();
        let Some(parent) = state.take() else {
            outcome = Err(state.usable(make.child.call).err().unwrap_or_else(|| {
                Refusal::argument(format!("{} : the communicator is in use", make.child.call))
            }));
            continue;
        };
        let waits = state.config.blocking && index + 1 == count;
        if !waits {
            state.give_birth(Birth::start(parent, make.making, make.child));
            if state.config.blocking {
                births.push(make.parent);
            }
            continue;
        }
        drop(state);
        let made = (make.making)(&parent);
        make.parent.put_back(parent);
        match made {
            Ok(made) => make.child.publish(made),
            Err(error) => {
                make.child.out.set(ncclComm_t::NULL);
                outcome = Err(error.into());
            }
        }
    }
    for parent in births {
        if let Err(refusal) = parent.lock().end_birth() {
            outcome = Err(refusal);
        }
    }
    outcome
}
