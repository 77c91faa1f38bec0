//! Joining a communicator.
//!
//! Without a deadline this is one blocking `ncclCommInitRankConfig`. A deadline needs a call that
//! can be given up, and the library has one: a *non-blocking* communicator joins in the background,
//! is polled, and can be aborted. But it stays non-blocking for ever, and then starts a thread for
//! each collective: 47 to 51 µs at 8 bytes instead of 6.5 (NCCL 2.28.9 on two H200). So the
//! non-blocking communicator is only the parent of the one that is handed out: `ncclCommSplit` with
//! one color for all makes a *blocking* child, and is itself polled and given up in the same way.
//!
//! What becomes of the parent is a [`ParentPolicy`].
//!
//! All of this runs on a helper thread, since a library may block where it promised not to. Older ones
//! have no split or no non-blocking communicators: there the helper makes the one blocking call. Either
//! way the caller is told in time. Nobody can end a blocking join from outside, so a helper that is
//! late is left to it; should it ever come back with a communicator, that is aborted.
//!
//! What other threads of the process join by the same id is looked at [before](crate::meeting).

use std::{
    ffi::{CStr, c_int, c_void},
    ptr,
    sync::{
        Arc,
        atomic::{AtomicPtr, Ordering},
    },
    time::{Duration, Instant},
};

use collectives_core::{
    Backend, Collectives, Error, ErrorKind, JoinAllConfig, JoinConfig, Rank, Result, Support,
    UniqueId,
};
use collectives_nccl_abi::{Table, ncclComm_t, ncclConfig_t, ncclResult_t, ncclUniqueId, quirks};

use crate::{
    Comm, Library, Vendor,
    comm::c_name,
    config::Settings,
    error,
    group::{self, worse},
    helper::within,
    meeting::Place,
    state::{Backoff, end_stray, is_under_way},
};

/// What becomes of the non-blocking parent of a communicator that was joined with a deadline.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ParentPolicy {
    /// It is destroyed before the join returns, and the child has resources of its own.
    Destroy,
    /// It lives as long as the child and lends it its resources (`splitShare`).
    KeepShared,
}

impl ParentPolicy {
    pub(crate) const DEFAULT: Self = Self::Destroy;
}

impl<V: Vendor> Library<V> {
    /// See [`Backend::join`].
    pub(crate) fn join_one(&self, id: &UniqueId, config: JoinConfig) -> Result<Comm<V>> {
        Join::check(self, Way::Init, id, config)?.run()
    }

    /// See [`Backend::join_grown`].
    pub(crate) fn join_grown_one(&self, id: &UniqueId, config: JoinConfig) -> Result<Comm<V>> {
        Join::check(self, Way::Grow, id, config)?.run()
    }

    /// See [`Backend::join_all`]: `ncclCommInitRankConfig` for each device, in one group.
    pub(crate) fn join_devices(&self, config: JoinAllConfig) -> Result<Vec<Comm<V>>> {
        const OPERATION: &str = "join_all";
        let JoinAllConfig { devices, name, deadline, config: settings, .. } = config;
        self.refuse_in_child(OPERATION)?;
        self.refuse_in_group(OPERATION)?;
        self.check_devices(&devices).map_err(|error| self.refuse(OPERATION, error))?;
        let size = devices.len();
        let id = self.unique_id().map_err(|error| error.with_operation(OPERATION))?;
        let joins: Vec<_> = devices
            .iter()
            .enumerate()
            .map(|(rank, device)| {
                let mut config = JoinConfig::new(Rank::new(rank as u32), size).with_device(*device);
                config.name.clone_from(&name);
                config.config.clone_from(&settings);
                Join::check(self, Way::Init, &id, config)
            })
            .collect::<Result<_>>()?;

        self.warn_of_known_bugs();
        let Some(deadline) = deadline else { return join_together(joins) };
        let library = self.clone();
        let late = || {
            let message = format!("not all {size} devices joined within {deadline:?}");
            library.refuse(OPERATION, Error::new(ErrorKind::Timeout, message))
        };
        within(deadline, move || join_together(joins), |comms| comms.into_iter().for_each(abort))
            .unwrap_or_else(|| Err(late()))
    }

    fn check_devices(&self, devices: &[usize]) -> Result<()> {
        if devices.is_empty() {
            return Err(Error::new(ErrorKind::InvalidArgument, "the list of devices is empty"));
        }
        for (rank, device) in devices.iter().enumerate() {
            if let Some(other) = devices[..rank].iter().position(|other| other == device) {
                let message = format!("device {device} is given to rank {other} and rank {rank}");
                return Err(Error::new(ErrorKind::InvalidArgument, message));
            }
        }
        Ok(())
    }

    /// The library would queue the join in the group, and the caller would get a null communicator.
    fn refuse_in_group(&self, operation: &'static str) -> Result<()> {
        if !group::is_open(self.abi()) {
            return Ok(());
        }
        let error = Error::new(ErrorKind::InvalidUsage, "a group is open on this thread")
            .with_hint("join outside of groups; join_all makes all ranks of one process");
        Err(self.refuse(operation, error))
    }
}

/// Joins all ranks of a communicator on this thread.
fn join_together<V: Vendor>(joins: Vec<Join<V>>) -> Result<Vec<Comm<V>>> {
    // Each device once before the group is open, so that init cannot fail for want of one.
    joins.iter().try_for_each(Join::bind_device)?;
    let mut raws = vec![ncclComm_t::NULL; joins.len()];
    match init_in_group(&joins, &mut raws) {
        Ok(()) => {
            Ok(joins.into_iter().zip(raws).map(|(join, raw)| join.adopt(raw, None)).collect())
        }
        Err(error) => {
            for (join, raw) in joins.iter().zip(raws) {
                join.give_up(raw);
            }
            Err(error.with_operation("join_all"))
        }
    }
}

/// Ends a communicator for which nobody waits any more.
fn abort<V: Vendor>(comm: Comm<V>) {
    if let Err(error) = Box::new(comm).abort() {
        tracing::warn!(%error, "a communicator that came about too late did not end well");
    }
}

/// `ncclCommInitRankConfig` for every rank of this process, in one group.
fn init_in_group<V: Vendor>(joins: &[Join<V>], raws: &mut [ncclComm_t]) -> Result<()> {
    let Some(first) = joins.first() else { return Ok(()) };
    let table = first.table();
    // SAFETY: takes nothing.
    let started = unsafe { (table.group_start)() };
    if !started.is_success() {
        return Err(first.failed(started));
    }
    let mut failure = None;
    for (join, raw) in joins.iter().zip(&mut *raws) {
        let _worked_a_moment_ago = join.bind_device();
        // SAFETY: `raw` stays where it is until the group has ended, and init with it.
        let result = unsafe { join.init(raw, None) };
        if !is_under_way(result) {
            failure = Some((join.failed(result), result));
            break;
        }
    }
    // SAFETY: takes nothing; the out pointers outlive the call. A failed init dooms the group.
    let ended = unsafe { (table.group_end)() };
    if let Some((error, result)) = failure {
        first.close_leaked_group(result);
        return Err(error);
    }
    let outcome = match ended {
        ncclResult_t::IN_PROGRESS => joins
            .iter()
            .zip(&*raws)
            .filter(|(_, raw)| !raw.is_null())
            // SAFETY: the group made the communicator, which is ours.
            .map(|(join, raw)| unsafe { poll(join.table(), *raw, None) }.unwrap_or(ended))
            .fold(ncclResult_t::SUCCESS, worse),
        ended => ended,
    };
    match outcome {
        ncclResult_t::SUCCESS if raws.iter().any(|raw| raw.is_null()) => {
            Err(error::broken_promise(NO_COMMUNICATOR))
        }
        ncclResult_t::SUCCESS => Ok(()),
        result => Err(first.failed(result)),
    }
}

/// Which function of the library joins.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Way {
    /// `ncclCommGrow`, without a communicator.
    Grow,
    /// `ncclCommInitRankConfig` and its elder.
    Init,
}

impl Way {
    /// The trait method's name.
    const fn operation(self) -> &'static str {
        match self {
            Self::Grow => "join_grown",
            Self::Init => "join",
        }
    }
}

/// A join whose arguments have been checked.
struct Join<V: Vendor> {
    library: Library<V>,
    way: Way,
    /// The first of them is there.
    ids: Vec<ncclUniqueId>,
    rank: Rank,
    size: usize,
    device: usize,
    name: Option<Arc<CStr>>,
    settings: Settings,
    deadline: Option<Duration>,
    /// Why no device can be made current.
    missing_runtime: Option<Error>,
}

impl<V: Vendor> Join<V> {
    fn check(library: &Library<V>, way: Way, id: &UniqueId, config: JoinConfig) -> Result<Self> {
        let operation = way.operation();
        library.refuse_in_child(operation)?;
        library.refuse_in_group(operation)?;
        let JoinConfig { rank, size, device, name, deadline, config, more_ids, .. } = config;
        let refuse = |error: Error| library.refuse(operation, error.with_rank(rank.get(), size));
        let invalid = |message| refuse(Error::new(ErrorKind::InvalidArgument, message));
        if c_int::try_from(size).is_err() {
            return Err(invalid(format!("size is {size}, want at most {}", c_int::MAX)));
        }
        if rank.index() >= size {
            return Err(invalid(format!("rank is {rank}, want less than the size {size}")));
        }
        let ids = std::iter::once(id).chain(&more_ids);
        let ids =
            ids.map(|id| Ok(ncclUniqueId { internal: id.to_array()? })).collect::<Result<_>>();
        let ids: Vec<_> = ids.map_err(refuse)?;
        if ids.len() > 1 {
            let many = match way {
                Way::Init => library.capabilities().join_many_ids,
                Way::Grow => Support::Unsupported { since: None },
            };
            many.require("join with many ids").map_err(refuse)?;
        }
        if ids.len() > size {
            return Err(invalid(format!("{} ids were given, want at most {size}", ids.len())));
        }
        let name = c_name(name).map_err(refuse)?;
        let settings = Settings::new(config, library.abi().version(), library.capabilities());
        let settings = settings.map_err(refuse)?;
        if way == Way::Grow {
            library.capabilities().grow.require("grow").map_err(refuse)?;
        }
        let missing_runtime = V::runtime().err();
        if missing_runtime.is_none() {
            let devices = V::device_count().map_err(refuse)?;
            if device >= devices {
                return Err(invalid(format!("device is {device}, but there are {devices}"))
                    .with_hint("set the device in the JoinConfig; unset, it is the rank"));
            }
        }
        let library = library.clone();
        Ok(Self {
            library,
            way,
            ids,
            rank,
            size,
            device,
            name,
            settings,
            deadline,
            missing_runtime,
        })
    }

    /// Joins, at once or on a helper that is not waited for past the deadline.
    fn run(self) -> Result<Comm<V>> {
        self.library.warn_of_known_bugs();
        let (library, info) = (self.library.abi(), self.library.info());
        let place = Place::take(&self.ids, self.rank, self.size, library, info);
        let place = place.map_err(|error| self.refuse(error))?;
        let Some(deadline) = self.deadline else { return place.hold(|| self.blocking()) };
        // The communicator's device is this thread's afterwards, as without a deadline.
        self.bind_device()?;
        let late = self.late(deadline);
        let polls =
            self.way == Way::Init && self.library.capabilities().join_deadline == Support::Native;
        let join = move || match polls {
            true => self.with_deadline(deadline),
            false => self.blocking(),
        };
        within(deadline, || place.hold(join), abort).unwrap_or(Err(late))
    }

    /// `ncclCommInitRankConfig`, blocking.
    fn blocking(self) -> Result<Comm<V>> {
        self.bind_device()?;
        let mut raw = ncclComm_t::NULL;
        // SAFETY: `raw` outlives the call, which has ended when it returns.
        let mut result = unsafe { self.init(&mut raw, None) };
        if result == ncclResult_t::IN_PROGRESS {
            // NCCL_COMM_BLOCKING=0 overrides the configuration.
            // SAFETY: the call made a communicator, which is ours.
            result = unsafe { poll(self.table(), raw, None) }.unwrap_or(ncclResult_t::IN_PROGRESS);
        }
        if !result.is_success() {
            let error = self.failed(result);
            self.close_leaked_group(result);
            self.give_up(raw);
            return Err(error);
        }
        if raw.is_null() {
            return Err(self.refuse(error::broken_promise(NO_COMMUNICATOR)));
        }
        Ok(self.adopt(raw, None))
    }

    /// A non-blocking parent, then a blocking child of it.
    fn with_deadline(self, deadline: Duration) -> Result<Comm<V>> {
        let start = Instant::now();
        // A deadline past the end of time is none.
        let end = start.checked_add(deadline);
        self.bind_device()?;

        let parent = Out::new();
        // SAFETY: `Out` stays until the join has ended, or for ever.
        let begun = unsafe { self.init(parent.as_ptr(), Some(NonBlocking)) };
        // SAFETY: the communicator is ours.
        if let Err(error) = unsafe { self.wait(begun, &parent, &parent, end, deadline) } {
            self.close_leaked_group(begun);
            self.give_up(parent.get());
            parent.leave_to_the_library();
            return Err(error);
        }

        let child = Out::new();
        // SAFETY: the parent is alive and ready; `Out` stays until the split has ended, or for
        // ever.
        let begun = unsafe { self.split(parent.get(), &child) };
        // SAFETY: the communicators are ours.
        if let Err(error) = unsafe { self.wait(begun, &parent, &child, end, deadline) } {
            // Aborting the parent ends the split, after which nobody works on `child`; until then
            // the library does, so a child whose parent does not end is leaked.
            if self.give_up(parent.get()) {
                self.give_up(child.get());
            }
            parent.leave_to_the_library();
            child.leave_to_the_library();
            return Err(error);
        }
        let (parent, child) = (parent.get(), child.get());
        match self.library.parent_policy() {
            ParentPolicy::KeepShared => Ok(self.adopt(child, Some(parent))),
            ParentPolicy::Destroy => {
                // The parent has done its work.
                self.end(parent, self.table().comm_destroy);
                Ok(self.adopt(child, None))
            }
        }
    }

    /// Calls the library's init function: the one with a configuration, if there is one.
    ///
    /// # Safety
    /// `raw` stays valid until the join has ended: with a `NonBlocking` one, after the call.
    unsafe fn init(&self, raw: *mut ncclComm_t, how: Option<NonBlocking>) -> ncclResult_t {
        let (size, rank) = (self.size as c_int, self.rank.get() as c_int);
        if let (Way::Grow, Some(grow)) = (self.way, self.table().comm_grow) {
            let mut config = self.config();
            config.blocking = 1;
            // SAFETY: as below; a new rank has no communicator to give, and null says so.
            return unsafe { grow(ncclComm_t::NULL, size, &self.ids[0], rank, raw, &mut config) };
        }
        let Some(init) = self.table().comm_init_rank_config else {
            // SAFETY: the caller's promise; `raw` holds null, as some releases read it.
            return unsafe { (self.table().comm_init_rank)(raw, size, self.ids[0], rank) };
        };
        let mut config = self.config();
        config.blocking = c_int::from(how.is_none());
        if how.is_some() {
            config.splitShare =
                c_int::from(self.library.parent_policy() == ParentPolicy::KeepShared);
        }
        if let (Some(scalable), 2..) = (self.table().comm_init_rank_scalable, self.ids.len()) {
            let mut ids = self.ids.clone();
            // Not more than the size, which is a C int.
            let (count, ids) = (ids.len() as c_int, ids.as_mut_ptr());
            // SAFETY: as below; the library copies the ids, which are as many as said.
            return unsafe { scalable(raw, size, rank, count, ids, &mut config) };
        }
        // SAFETY: as above; the library copies the configuration, and the name that it keeps
        // outlives the communicator.
        unsafe { init(raw, size, self.ids[0], rank, &mut config) }
    }

    /// Calls `ncclCommSplit` for a blocking child with all ranks, in their order.
    ///
    /// # Safety
    /// `parent` is alive and ready; `child` stays valid until the split has ended.
    unsafe fn split(&self, parent: ncclComm_t, child: &Out) -> ncclResult_t {
        let mut config = self.config();
        config.blocking = 1;
        match self.table().comm_split {
            // SAFETY: the caller's promise; the library copies the configuration, and the name that
            // it keeps outlives the child.
            Some(split) => unsafe {
                split(parent, 0, self.rank.get() as c_int, child.as_ptr(), &mut config)
            },
            // Not reached: the capability was asked for.
            None => ncclResult_t::INVALID_USAGE,
        }
    }

    fn config(&self) -> ncclConfig_t {
        let mut config = ncclConfig_t::for_version(self.library.abi().version());
        self.settings.write(&mut config);
        config.commName = self.name.as_deref().map_or(ptr::null(), |name| name.as_ptr());
        config
    }

    /// Waits until a non-blocking call that answered `begun` has ended, which `polled` tells, and
    /// has made `made`.
    ///
    /// # Safety
    /// `polled` is null or alive.
    unsafe fn wait(
        &self,
        begun: ncclResult_t,
        polled: &Out,
        made: &Out,
        end: Option<Instant>,
        deadline: Duration,
    ) -> Result<()> {
        // Success says only that it has begun.
        if !is_under_way(begun) {
            return Err(self.failed(begun));
        }
        if polled.get().is_null() {
            return Err(self.refuse(error::broken_promise(NO_COMMUNICATOR)));
        }
        // SAFETY: the caller's promise, and not null.
        match unsafe { poll(self.table(), polled.get(), end) } {
            Some(ncclResult_t::SUCCESS) if made.get().is_null() => {
                Err(self.refuse(error::broken_promise(NO_COMMUNICATOR)))
            }
            Some(ncclResult_t::SUCCESS) => Ok(()),
            Some(failure) => Err(self.failed(failure)),
            None => Err(self.late(deadline)),
        }
    }

    fn late(&self, deadline: Duration) -> Error {
        let message = format!("not all {} ranks joined within {deadline:?}", self.size);
        let error = Error::new(ErrorKind::Timeout, message)
            .with_hint("see whether every rank runs and was given this unique id");
        self.refuse(error)
    }

    /// Ends a communicator that did not come about; null is none. Tells whether it has ended.
    fn give_up(&self, raw: ncclComm_t) -> bool {
        match self.table().comm_abort {
            _ if raw.is_null() => true,
            Some(abort) => self.end(raw, abort),
            None => false,
        }
    }

    /// Ends a communicator that nobody else uses, in bounded time; tells whether it has ended.
    fn end(&self, raw: ncclComm_t, end: unsafe extern "C" fn(ncclComm_t) -> ncclResult_t) -> bool {
        end_stray(raw, end, (V::make_current, self.device), self.name.clone())
    }

    /// NCCL 2.23.4 and later leave the thread inside a group if init fails at `cudaGetDevice`.
    ///
    /// No group of this thread is open, so one end too many is refused and does no harm.
    fn close_leaked_group(&self, result: ncclResult_t) {
        let library = self.library.abi();
        let leaks = quirks::leaks_group_level_on_failed_init(library.flavour(), library.version());
        if result == ncclResult_t::UNHANDLED_CUDA_ERROR && leaks {
            // SAFETY: takes nothing, and there is nothing to launch.
            let ended = unsafe { (library.table().group_end)() };
            tracing::debug!(?ended, "closed the group that a failed init left open");
        }
    }

    /// Makes the device current, so that the library finds it; where there is no runtime, the
    /// library is asked all the same, as its words are the better error.
    fn bind_device(&self) -> Result<()> {
        if self.missing_runtime.is_some() {
            return Ok(());
        }
        V::make_current(self.device).map_err(|error| self.refuse(error))
    }

    /// Makes the communicator the caller's.
    fn adopt(self, raw: ncclComm_t, parent: Option<ncclComm_t>) -> Comm<V> {
        let place = (self.rank, self.size, self.device);
        Comm::new(self.library.clone(), raw, place, self.name, parent)
    }

    fn failed(&self, result: ncclResult_t) -> Error {
        let error = error::from_result(self.library.abi(), result).with_poison(false);
        self.with_missing_runtime(self.refuse(error))
    }

    /// Our explanation, beside the library's.
    fn with_missing_runtime(&self, error: Error) -> Error {
        match &self.missing_runtime {
            Some(missing) => error.with_hint(missing.to_string()),
            None => error,
        }
    }

    fn refuse(&self, error: Error) -> Error {
        self.library.refuse(self.way.operation(), error.with_rank(self.rank.get(), self.size))
    }

    fn table(&self) -> &'static Table {
        self.library.abi().table()
    }
}

/// Polls until a communicator is ready or has failed; `None` if the deadline passes.
///
/// # Safety
/// `comm` is alive.
pub(crate) unsafe fn poll(
    table: &Table,
    comm: ncclComm_t,
    end: Option<Instant>,
) -> Option<ncclResult_t> {
    let Some(get_async_error) = table.comm_get_async_error else {
        return Some(ncclResult_t::IN_PROGRESS);
    };
    let mut pause = Backoff::new();
    loop {
        let mut state = ncclResult_t::IN_PROGRESS;
        // SAFETY: the caller's promise; `state` outlives the call.
        let result = unsafe { get_async_error(comm, &mut state) };
        match if result.is_success() { state } else { result } {
            ncclResult_t::IN_PROGRESS => {}
            outcome => return Some(outcome),
        }
        if end.is_some_and(|end| Instant::now() >= end) {
            return None;
        }
        pause.sleep();
    }
}

/// That the communicator is to be non-blocking.
struct NonBlocking;

/// An out pointer that the library may write to from a thread of its own.
pub(crate) struct Out(Box<AtomicPtr<c_void>>);

impl Out {
    /// Holds null, as some releases read it.
    pub(crate) fn new() -> Self {
        Self(Box::new(AtomicPtr::new(ptr::null_mut())))
    }

    pub(crate) fn as_ptr(&self) -> *mut ncclComm_t {
        // A transparent pointer, written whole and with release order.
        self.0.as_ptr().cast()
    }

    pub(crate) fn get(&self) -> ncclComm_t {
        ncclComm_t(self.0.load(Ordering::Acquire))
    }

    /// After a failure: a thread that did not end in time may write to it yet.
    pub(crate) fn leave_to_the_library(self) {
        Box::leak(self.0);
    }
}

const NO_COMMUNICATOR: &str = "it answered success and no communicator";
