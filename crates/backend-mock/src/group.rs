//! Groups: operations of one thread that start together.
//!
//! An open group is the thread's. Operations are checked when they are called and kept here; nothing
//! reaches a stream before the outermost end. Each mock has groups of its own.

use std::{
    cell::{Cell, RefCell},
    sync::Arc,
};

use collectives_core::{CommInfo, Error, GroupEnd, Result};

use crate::{comm_state::EndShared, engine::Engine, error::misuse, op::Op, stream::StreamShared};

/// An operation in a group, without its sequence number.
pub(crate) struct Member {
    pub(crate) op: Op,
    pub(crate) stream: Arc<StreamShared>,
    pub(crate) end: Arc<EndShared>,
}

struct Group {
    /// [`Engine::nonce`].
    engine: u64,
    depth: usize,
    members: Vec<Member>,
    /// The cluster size of its collectives, once there is one.
    cluster_size: Option<Option<u32>>,
    /// The first call that was refused.
    refusal: Option<Error>,
}

thread_local! {
    static OPEN: Cell<usize> = const { Cell::new(0) };
    static GROUPS: RefCell<Vec<Group>> = const { RefCell::new(Vec::new()) };
}

/// Opens a group, or goes one deeper.
pub(crate) fn start(engine: &Engine) {
    let entered = with(engine, |group| group.depth += 1);
    if entered.is_none() {
        let group = Group {
            engine: engine.nonce,
            depth: 1,
            members: Vec::new(),
            cluster_size: None,
            refusal: None,
        };
        GROUPS.with_borrow_mut(|groups| groups.push(group));
        OPEN.set(OPEN.get() + 1);
    }
}

/// Ends a group; the outermost end launches it, or drops it.
pub(crate) fn end(engine: &Engine, end: GroupEnd) -> Result<()> {
    let depth = with(engine, |group| {
        group.depth -= 1;
        if end == GroupEnd::Discard {
            // A discarded part leaves a whole that was never meant.
            group.refusal.get_or_insert_with(|| misuse("a group inside this one was discarded"));
        }
        group.depth
    });
    let Some(depth) = depth else {
        return Err(misuse("no group is open on this thread")
            .with_operation("group_end")
            .with_hint("open one first, on the same thread"));
    };
    if depth > 0 {
        return Ok(());
    }
    OPEN.set(OPEN.get() - 1);
    let group = GROUPS.with_borrow_mut(|groups| {
        let index = groups.iter().position(|group| group.engine == engine.nonce)?;
        Some(groups.swap_remove(index))
    });
    match (group, end) {
        (None, _) | (Some(_), GroupEnd::Discard) => Ok(()),
        (Some(Group { refusal: Some(refusal), .. }), GroupEnd::Launch) => Err(refusal),
        (Some(group), GroupEnd::Launch) => engine.launch_group(group.members),
    }
}

/// Ends a group and drops it; the mock has no idea how long it would take.
pub(crate) fn simulate(engine: &Engine) -> Result<()> {
    let open = with(engine, |group| (group.depth, group.refusal.take()));
    let named = |error: Error| error.with_operation("group_simulate");
    let dropped = end(engine, GroupEnd::Discard);
    match open {
        None => dropped.map_err(named),
        Some((1, None)) => Ok(()),
        Some((1, Some(refusal))) => Err(refusal),
        Some(_) => Err(named(misuse("a group is open around the one that is simulated"))),
    }
}

/// Whether a group of `engine` is open on this thread.
#[inline]
pub(crate) fn is_open(engine: &Engine) -> bool {
    OPEN.get() > 0 && with(engine, |_| ()).is_some()
}

/// Adds an operation to the open group.
pub(crate) fn add(engine: &Engine, member: Member) {
    with(engine, |group| group.members.push(member));
}

/// The cluster size of the first collective of the open group, which this one becomes if there is none.
pub(crate) fn cluster_size(engine: &Engine, here: Option<u32>) -> Option<u32> {
    with(engine, |group| *group.cluster_size.get_or_insert(here)).unwrap_or(here)
}

/// Notes that a call in the open group, if there is one, was refused. `comm` is the one that it was
/// made on.
#[cold]
pub(crate) fn refuse(engine: &Engine, comm: Option<&CommInfo>, error: &Error) {
    with(engine, |group| {
        group.refusal.get_or_insert_with(|| again(comm, error));
    });
}

fn with<R>(engine: &Engine, act: impl FnOnce(&mut Group) -> R) -> Option<R> {
    GROUPS.with_borrow_mut(|groups| {
        groups.iter_mut().find(|group| group.engine == engine.nonce).map(act)
    })
}

/// The same error once more: the call returns one, the end of the group the other.
fn again(comm: Option<&CommInfo>, error: &Error) -> Error {
    let mut again = crate::error::refuse(error.kind(), error.message());
    if let Some(comm) = comm {
        again = again.with_comm(comm);
    }
    if let Some(operation) = error.operation() {
        again = again.with_operation(operation);
    }
    if let Some(hint) = error.hint() {
        again = again.with_hint(hint);
    }
    again.with_poison(error.poisons_communicator())
}
