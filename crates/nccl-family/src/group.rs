//! Groups: all or nothing.
//!
//! The library counts its groups per thread, and so does this module, per thread and library. It
//! must, since the library does not know of calls that the shape rules refused: left alone it would
//! launch the rest of the group, and the other ranks would hang. So a refusal is remembered, and
//! the outermost end makes the library drop what it has queued. There is no function for that; but
//! a call that the library refuses does it (NCCL 2.16.5 to 2.32.3: the outermost end answers the
//! refusal's code, nothing is launched, and communicators work as before). The call is an
//! all-reduce with a datatype that no release has.
//!
//! What the library would find wrong only while it launches, when a part of the group may run
//! already, is looked for before: see [`Group::unpaired`].
//!
//! An open group holds the communicators that it uses, so that none is freed while the library has
//! operations of it queued.

use std::{
    cell::{Cell, RefCell},
    ptr,
    sync::Arc,
    time::Duration,
};

use collectives_core::{Error, ErrorKind, GroupEnd, LibraryInfo, Result};
use collectives_nccl_abi::{
    self as abi, fork, ncclDataType_t, ncclRedOp_t, ncclResult_t, ncclSimInfo_t,
};

use crate::{
    error,
    met::Peers,
    state::{Hold, Lifeline, is_under_way},
};

thread_local! {
    /// Groups open on this thread, of all libraries: what the hot path asks.
    static OPEN: Cell<u32> = const { Cell::new(0) };
    /// The same in detail; one entry for each library with an open group.
    static GROUPS: RefCell<Vec<Group>> = const { RefCell::new(Vec::new()) };
}

/// An open group.
struct Group {
    library: &'static abi::Library,
    depth: u32,
    /// The first refusal, which the outermost end returns.
    refusal: Option<Error>,
    /// The communicators with operations in it.
    used: Vec<Used>,
    /// Calls that wait for the outermost end, in order: see [`defer`].
    deferred: Vec<Deferred>,
    /// Who exchanges messages by them, if it is launched: see [`Met`](crate::met::Met).
    first_messages: Vec<(Arc<Lifeline>, Peers)>,
    /// What is to be done behind them, launched or dropped.
    cleanup: Vec<Deferred>,
    /// The cluster size of its collectives, once there is one.
    cluster_size: Option<Option<u32>>,
}

/// A communicator with operations in a group.
struct Used {
    hold: Hold,
    /// Sends to the rank itself, less the receives from it.
    to_self: i64,
    /// Whether messages of it wait for the end. Then those that follow do so, too.
    waits: bool,
}

/// A call of the library that waits.
type Deferred = Box<dyn FnOnce() -> ncclResult_t>;

/// Whether any group is open on this thread.
#[inline]
pub(crate) fn any_open() -> bool {
    OPEN.get() > 0
}

/// Whether a group of `library` is open on this thread.
#[inline]
pub(crate) fn is_open(library: &'static abi::Library) -> bool {
    any_open() && with(library, |_| ()).is_some()
}

/// Whether a group that is open on this thread uses the communicator.
pub(crate) fn holds(line: &Arc<Lifeline>) -> bool {
    let uses = |group: &mut Group| group.used_by(line).is_some();
    any_open() && with(line.library(), uses).unwrap_or(false)
}

/// Opens a group, or a level of it.
pub(crate) fn start(library: &'static abi::Library, info: &LibraryInfo) -> Result<()> {
    if fork::in_forked_child() {
        return Err(error::forked("group_start", info));
    }
    // SAFETY: takes nothing.
    let result = unsafe { (library.table().group_start)() };
    if !result.is_success() {
        return Err(error::from_result(library, result)
            .with_library(info)
            .with_operation("group_start")
            .with_poison(false));
    }
    GROUPS.with_borrow_mut(|groups| match find(groups, library) {
        Some(group) => group.depth += 1,
        None => groups.push(Group::new(library)),
    });
    OPEN.set(OPEN.get() + 1);
    Ok(())
}

/// Notes that a call on the communicator is queued in the open group. To be called inside it.
///
/// Also where an abort has begun in the meantime: it waits until the group has dropped the call.
pub(crate) fn note_use(line: &Arc<Lifeline>) {
    with(line.library(), |group| {
        if group.used_by(line).is_none() {
            group.used.push(Used { hold: line.hold_on(), to_self: 0, waits: false });
        }
    });
}

/// Notes a send to the rank itself (1) or a receive from it (-1) that is queued in the open group.
#[cold]
pub(crate) fn note_self(line: &Arc<Lifeline>, change: i64) {
    with(line.library(), |group| {
        if let Some(used) = group.used_by(line) {
            used.to_self += change;
        }
    });
}

/// The cluster size of the first collective of the open group, which this one becomes if there is none.
pub(crate) fn cluster_size(line: &Arc<Lifeline>, here: Option<u32>) -> Option<u32> {
    with(line.library(), |group| *group.cluster_size.get_or_insert(here)).unwrap_or(here)
}

/// Leaves a call to the outermost end of the open group. The group holds the communicator.
pub(crate) fn defer(line: &Arc<Lifeline>, call: Deferred) {
    with(line.library(), |group| group.deferred.push(call));
}

/// Whether messages of the communicator wait for the end of the open group.
pub(crate) fn has_messages_waiting(line: &Arc<Lifeline>) -> bool {
    with(line.library(), |group| group.used_by(line).is_some_and(|used| used.waits)) == Some(true)
}

/// Leaves messages to the outermost end of the open group, which holds the communicator.
pub(crate) fn defer_messages(line: &Arc<Lifeline>, peers: Peers, call: Deferred) {
    with(line.library(), |group| {
        if let Some(used) = group.used_by(line) {
            used.waits = true;
        }
        group.first_messages.push((Arc::clone(line), peers));
        group.deferred.push(call);
    });
}

/// Leaves a call to be made behind what was deferred, or gives it back where nothing was.
pub(crate) fn defer_cleanup<F>(line: &Arc<Lifeline>, call: F) -> Result<(), F>
where
    F: FnOnce() -> ncclResult_t + 'static,
{
    let waits = with(line.library(), |group| !group.deferred.is_empty()) == Some(true);
    if !waits || !holds(line) {
        return Err(call);
    }
    with(line.library(), |group| group.cleanup.push(Box::new(call)));
    Ok(())
}

/// Notes that a call in the open group was refused.
pub(crate) fn note_refusal(library: &'static abi::Library, refusal: impl FnOnce() -> Error) {
    with(library, |group| {
        group.refusal.get_or_insert_with(refusal);
    });
}

/// Ends a group, or a level of it.
pub(crate) fn end(library: &'static abi::Library, info: &LibraryInfo, how: GroupEnd) -> Result<()> {
    if fork::in_forked_child() {
        return Err(error::forked("group_end", info));
    }
    let Some(outermost) = leave(library) else {
        return Err(Error::new(ErrorKind::InvalidUsage, "no group is open on this thread")
            .with_library(info)
            .with_operation("group_end"));
    };
    if let Some(group) = outermost {
        return group.end(info, how);
    }
    if how == GroupEnd::Discard {
        note_refusal(library, || {
            Error::new(ErrorKind::InvalidUsage, "a group inside this one was discarded")
                .with_library(info)
                .with_operation("group_end")
        });
    }
    // SAFETY: takes nothing; an inner end launches nothing.
    match unsafe { (library.table().group_end)() } {
        ncclResult_t::SUCCESS => Ok(()),
        result => {
            Err(error::from_result(library, result).with_library(info).with_operation("group_end"))
        }
    }
}

/// Ends a group without launching it, and asks the library how long it would take.
pub(crate) fn simulate(
    library: &'static abi::Library,
    info: &LibraryInfo,
) -> Result<Option<Duration>> {
    const OPERATION: &str = "group_simulate";
    let misuse = |message| {
        let error = Error::new(ErrorKind::InvalidUsage, message).with_library(info);
        error.with_operation(OPERATION)
    };
    if fork::in_forked_child() {
        return Err(error::forked(OPERATION, info));
    }
    match leave(library) {
        None => Err(misuse("no group is open on this thread")),
        Some(Some(group)) => group.simulate(info).map_err(|error| error.with_operation(OPERATION)),
        Some(None) => {
            let nested = || misuse("a group is open around the one that is simulated");
            note_refusal(library, nested);
            // SAFETY: takes nothing; an inner end launches nothing.
            let _inner_ends_always_succeed = unsafe { (library.table().group_end)() };
            Err(nested())
        }
    }
}

/// Leaves a level: `None` if there is none, the group if it was the outermost.
fn leave(library: &'static abi::Library) -> Option<Option<Group>> {
    GROUPS.with_borrow_mut(|groups| {
        let index = groups.iter().position(|group| ptr::eq(group.library, library))?;
        OPEN.set(OPEN.get() - 1);
        groups[index].depth -= 1;
        Some((groups[index].depth == 0).then(|| groups.swap_remove(index)))
    })
}

impl Group {
    fn new(library: &'static abi::Library) -> Self {
        Self {
            library,
            depth: 1,
            refusal: None,
            used: Vec::new(),
            deferred: Vec::new(),
            first_messages: Vec::new(),
            cleanup: Vec::new(),
            cluster_size: None,
        }
    }

    /// The outermost end.
    fn end(mut self, info: &LibraryInfo, how: GroupEnd) -> Result<()> {
        let outcome = self.end_launches(info, how);
        self.clean_up();
        outcome
    }

    fn simulate(mut self, info: &LibraryInfo) -> Result<Option<Duration>> {
        let outcome = self.estimate(info);
        self.clean_up();
        outcome
    }

    fn clean_up(&mut self) {
        for call in std::mem::take(&mut self.cleanup) {
            let result = call();
            if !result.is_success() {
                tracing::debug!(?result, "a reduce op was not destroyed behind its group");
            }
        }
    }

    fn estimate(&mut self, info: &LibraryInfo) -> Result<Option<Duration>> {
        let refusal = self.refusal.take().or_else(|| self.aborted()).or_else(|| self.unpaired());
        // What the library must not hear of: copies of one rank, and first messages.
        self.deferred.clear();
        if let Some(refusal) = refusal {
            return self.discard(info).and(Err(refusal));
        }
        let Some(simulate) = self.library.table().group_simulate_end else {
            let message = "this library has no function for group_simulate";
            let error = Error::new(ErrorKind::Unsupported, message).with_library(info);
            return self.discard(info).and(Err(error));
        };
        let mut answer = ncclSimInfo_t::undefined();
        // SAFETY: `answer` outlives the call, and nothing is launched.
        let result = unsafe { simulate(&mut answer) };
        if !result.is_success() {
            let error = error::from_result(self.library, result).with_poison(false);
            return Err(error.with_library(info));
        }
        // Microseconds; -1 where it cannot say.
        Ok(Duration::try_from_secs_f64(f64::from(answer.estimatedTime) * 1e-6).ok())
    }

    fn end_launches(&mut self, info: &LibraryInfo, how: GroupEnd) -> Result<()> {
        let refusal = self.refusal.take().or_else(|| self.aborted()).or_else(|| self.unpaired());
        match (how, refusal) {
            (GroupEnd::Launch, None) => self.launch(info),
            (GroupEnd::Launch, Some(refusal)) => self.discard(info).and(Err(refusal)),
            (GroupEnd::Discard, _) => self.discard(info),
        }
    }

    fn used_by(&mut self, line: &Arc<Lifeline>) -> Option<&mut Used> {
        self.used.iter_mut().find(|used| Arc::ptr_eq(used.hold.line(), line))
    }

    fn lines(&self) -> impl Iterator<Item = &Arc<Lifeline>> {
        self.used.iter().map(|used| used.hold.line())
    }

    /// Why it cannot be launched: one of its communicators has come to its end.
    fn aborted(&self) -> Option<Error> {
        let line = self.lines().find(|line| !line.is_alive())?;
        Some(line.gone().with_operation("group_end"))
    }

    /// Why it cannot be launched: a rank sends to itself what it does not receive, or the other
    /// way round. The library finds that while it launches (NCCL: `ncclInvalidUsage` from
    /// `ncclGroupEnd`), when other communicators of the group may run already.
    fn unpaired(&self) -> Option<Error> {
        let used = self.used.iter().find(|used| used.to_self != 0)?;
        let (more, less) = match used.to_self {
            1.. => ("sends to this rank itself", "receives from it"),
            _ => ("receives from this rank itself", "sends to it"),
        };
        let message = format!("the group holds {} more {more} than {less}", used.to_self.abs());
        let error = Error::new(ErrorKind::InvalidUsage, message).with_operation("group_end");
        Some(error.with_comm(used.hold.line().info()))
    }

    fn launch(&mut self, info: &LibraryInfo) -> Result<()> {
        // A failure dooms the library's group, whose end returns it.
        let doomed =
            std::mem::take(&mut self.deferred).into_iter().any(|call| !is_under_way(call()));
        // SAFETY: takes nothing; what is queued was promised by the callers who queued it, and the
        // communicators are held.
        let mut result = unsafe { (self.library.table().group_end)() };
        if result == ncclResult_t::IN_PROGRESS {
            let settled = self.lines().map(|line| line.settle());
            result = settled.fold(ncclResult_t::SUCCESS, worse);
        }
        if result.is_success() {
            self.first_messages.iter().for_each(|(line, peers)| line.met().add(*peers));
            return Ok(());
        }
        // The library does not say on which communicator it failed, so it is all of theirs. A
        // refusal too: the others may run by now, unless it came before the launch.
        let failed = if doomed { Lifeline::failed } else { Lifeline::broken };
        let mut errors: Vec<_> = self.lines().map(|line| failed(line, result)).collect();
        let error = match (errors.pop(), errors.is_empty()) {
            (Some(only), true) => only,
            _ => {
                let error = error::from_result(self.library, result).with_library(info);
                if doomed { error } else { error.with_poison(true) }
            }
        };
        Err(error.with_operation("group_end"))
    }

    /// Makes the library drop what it has queued, then ends its group.
    fn discard(&self, info: &LibraryInfo) -> Result<()> {
        let live = self.used.iter().find(|used| used.hold.line().is_alive());
        let poisoned = live.or_else(|| self.used.first()).map(|used| poison(&used.hold));
        // SAFETY: takes nothing, and launches nothing as its group is refused or empty.
        let result = unsafe { (self.library.table().group_end)() };
        if poisoned.is_some() && result.is_success() {
            return Err(error::broken_promise("it launched a group that holds a refused call")
                .with_library(info)
                .with_operation("group_end")
                .with_hint("ranks may hang: abort their communicators"));
        }
        Ok(())
    }
}

/// Has a call refused by the library, which dooms its group.
fn poison(hold: &Hold) -> ncclResult_t {
    let line = hold.line();
    // SAFETY: the communicator is held. The datatype is checked before anything else is done with
    // the arguments, and the null pointers are never read.
    unsafe {
        (line.library().table().all_reduce)(
            ptr::null(),
            ptr::null_mut(),
            1,
            NO_DATATYPE,
            ncclRedOp_t::SUM,
            line.raw(),
            ptr::null_mut(),
        )
    }
}

/// The outcome of both: as in the library, the last failure is the group's.
pub(crate) fn worse(so_far: ncclResult_t, one: ncclResult_t) -> ncclResult_t {
    if one.is_success() { so_far } else { one }
}

/// Runs `body` on the open group of `library`, if there is one.
fn with<R>(library: &'static abi::Library, body: impl FnOnce(&mut Group) -> R) -> Option<R> {
    // Where the thread is ending and its groups are gone already, none is open.
    let answer = GROUPS.try_with(|groups| find(&mut groups.borrow_mut(), library).map(body));
    answer.ok().flatten()
}

fn find<'a>(groups: &'a mut [Group], library: &'static abi::Library) -> Option<&'a mut Group> {
    groups.iter_mut().find(|group| ptr::eq(group.library, library))
}

/// Far above every datatype there is (12 in NCCL 2.32) or may be.
const NO_DATATYPE: ncclDataType_t = ncclDataType_t(0x7f);
