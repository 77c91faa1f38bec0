//! The control plane: a loaded library, from which communicators and devices come.

use std::{ffi::c_void, marker::PhantomData, time::Duration};

use crate::{Capabilities, Collectives, CommConfig, Device, LibraryInfo, Rank, Result, UniqueId};

/// A loaded library: makes unique ids, communicators and devices.
///
/// Cheap to clone; clones are the same library.
pub trait Backend: Clone + Send + Sync + 'static {
    /// One rank's end of a communicator.
    type Comm: Split + 'static;
    /// Memory, streams, events and graphs of one device.
    type Device: Device + Clone + 'static;

    /// What was opened, from where, and its version.
    fn info(&self) -> &LibraryInfo;

    /// What the library can do.
    fn capabilities(&self) -> &Capabilities;

    /// Number of devices that ranks of this process can use.
    ///
    /// # Errors
    /// [`Device`](crate::ErrorKind::Device) where the device runtime cannot be used.
    fn device_count(&self) -> Result<usize>;

    /// Opens device `ordinal`.
    ///
    /// # Errors
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) naming the number of devices;
    /// [`Device`](crate::ErrorKind::Device) where the device runtime cannot be used.
    fn device(&self, ordinal: usize) -> Result<Self::Device>;

    /// The library's parameters that can be asked for, by name, with the values in force: of the
    /// environment, of files, or its own. Requires [`Capabilities::parameters`].
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) by capability; what the library reports.
    #[doc(alias = "ncclParamGetAllParameterKeys")]
    #[doc(alias = "ncclParamGetParameter")]
    fn parameters(&self) -> Result<Vec<(String, String)>>;

    /// Encrypts the network over which the ranks of communicators that are made later find each other,
    /// by TLS with a key that all of them have; `None` is as before. It counts for the whole process.
    /// Data between devices is not encrypted by it. Requires [`Capabilities::encryption`].
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) by capability;
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) for a key of fewer than 32 bytes or with a
    /// NUL; what the library reports.
    #[doc(alias = "ncclSetEncryption")]
    fn set_encryption(&self, key: Option<&str>) -> Result<()>;

    /// Makes the name under which the ranks of one new communicator meet. One rank makes it and
    /// hands it to all others. It is good for one communicator.
    ///
    /// # Errors
    /// What the library reports: no usable network interface, for example.
    #[doc(alias = "ncclGetUniqueId")]
    fn unique_id(&self) -> Result<UniqueId>;

    /// Joins a communicator. Collective: returns when all `config.size` ranks have joined.
    ///
    /// # Errors
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) for a rank outside the size or a
    /// foreign id, and where another thread of this process joins by the id as the same rank, with
    /// another size, or by another library; [`InvalidUsage`](crate::ErrorKind::InvalidUsage) for an id
    /// that this process has used up; [`Timeout`](crate::ErrorKind::Timeout) when the deadline passed
    /// first, and the attempt was given up; the library's failures.
    #[doc(alias = "ncclCommInitRankConfig")]
    #[doc(alias = "ncclCommInitRank")]
    #[track_caller]
    fn join(&self, id: &UniqueId, config: JoinConfig) -> Result<Self::Comm>;

    /// Joins a communicator that is growing, as one of its new ranks: the other half of
    /// [`Split::grow`], which explains the protocol. Collective: returns when the members and all new
    /// ranks have called.
    ///
    /// Requires [`Capabilities::grow`]. `config.rank` is a place behind the members, and
    /// `config.size` the number of ranks afterwards.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) by capability;
    /// [`Timeout`](crate::ErrorKind::Timeout) when the deadline passed first;
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) for a rank outside the size, or an id
    /// that no member made; the library's failures.
    #[doc(alias = "ncclCommGrow")]
    #[track_caller]
    fn join_grown(&self, id: &UniqueId, config: JoinConfig) -> Result<Self::Comm>;

    /// Makes a whole communicator for one process: rank i on `config.devices[i]`.
    ///
    /// # Errors
    /// As [`join`](Self::join); [`InvalidArgument`](crate::ErrorKind::InvalidArgument) for an
    /// empty list or a device named twice.
    #[doc(alias = "ncclCommInitAll")]
    #[track_caller]
    fn join_all(&self, config: JoinAllConfig) -> Result<Vec<Self::Comm>>;

    /// Opens a group on this thread; see [`Collectives::group_start`]. Prefer
    /// [`BackendExt::group`], which cannot be left open.
    ///
    /// # Errors
    /// What the library reports.
    #[doc(alias = "ncclGroupStart")]
    fn group_start(&self) -> Result<()>;

    /// Ends the group of this thread; see [`Collectives::group_end`].
    ///
    /// # Errors
    /// As [`Collectives::group_end`]. [`GroupEnd::Discard`] returns an error only if discarding
    /// itself failed.
    #[doc(alias = "ncclGroupEnd")]
    fn group_end(&self, end: GroupEnd) -> Result<()>;

    /// Wraps a communicator that other code made, and takes it over: it is destroyed with the
    /// result.
    ///
    /// # Safety
    /// `raw` is a live, blocking communicator of the very library behind this backend
    /// ([`info`](Self::info) has its path), and no other code uses or destroys it from now on.
    ///
    /// # Errors
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) for null;
    /// [`Unsupported`](crate::ErrorKind::Unsupported) where there are no raw communicators.
    #[doc(alias = "ncclComm_t")]
    #[expect(unsafe_code, reason = "declares the contract; contains no unsafe code")]
    unsafe fn comm_from_raw(&self, raw: *mut c_void) -> Result<Self::Comm>;
}

/// What is built on [`Backend`] once, for all backends.
pub trait BackendExt: Backend {
    /// Runs `body` inside a group: what it enqueues starts together when it returns, or not at all.
    ///
    /// If `body` returns an error or unwinds, or any call in it was refused (even if `body` ignored
    /// that), nothing is launched and the communicators work as before.
    ///
    /// # Errors
    /// The error of `body`; else the first refusal; else what the library reports.
    fn group<R>(&self, body: impl FnOnce(&GroupToken) -> Result<R>) -> Result<R> {
        self.group_start()?;
        let mut open = OpenGroup { backend: self, end: GroupEnd::Discard };
        let value = body(&GroupToken(PhantomData))?;
        open.end = GroupEnd::Launch;
        open.close()?;
        Ok(value)
    }
}

impl<B: Backend> BackendExt for B {}

/// Shows that a group is open on this thread; neither `Send` nor `Sync`, as groups are a thread's.
///
/// ```compile_fail
/// fn needs_send<T: Send>() {}
/// needs_send::<collectives_core::GroupToken>();
/// ```
#[derive(Debug)]
pub struct GroupToken(PhantomData<*const ()>);

/// How a group ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum GroupEnd {
    /// Start what was collected, unless a call was refused.
    Launch,
    /// Drop what was collected.
    Discard,
}

struct OpenGroup<'a, B: Backend> {
    backend: &'a B,
    end: GroupEnd,
}

impl<B: Backend> OpenGroup<'_, B> {
    fn close(self) -> Result<()> {
        let end = self.end;
        let backend = self.backend;
        // From here on `group_end` is what closes the group.
        std::mem::forget(self);
        backend.group_end(end)
    }
}

impl<B: Backend> Drop for OpenGroup<'_, B> {
    fn drop(&mut self) {
        // Reached when the body failed or unwinds, so an error of discarding has nowhere to go: the
        // body's own is the cause.
        let _ = self.backend.group_end(GroupEnd::Discard);
    }
}

/// Making communicators from a communicator: [`split`](Self::split) and its kin are its methods, so
/// that nothing is ever downcast.
///
/// A new communicator shares no resources with the one it comes from, and lives on when that ends.
/// All of these block until every rank that takes part has called, and none may be in a group.
///
/// ```
/// # use collectives_core::{Capabilities, Collectives, Error, Rank, ShrinkConfig, Split};
/// /// Goes on without the ranks that are known to be gone.
/// fn recover<C: Split>(comm: C, gone: &[Rank]) -> Result<C, Error> {
///     // Every survivor does this. Operations that wait for the lost ranks end.
///     comm.revoke()?;
///     comm.shrink(ShrinkConfig::new(gone))
/// }
/// ```
pub trait Split: Collectives + Sized {
    /// Divides the communicator: ranks that give the same colour form a new one, ordered by key,
    /// then by their rank here. `None` where the colour is `None`.
    ///
    /// Collective over all ranks of this communicator, and it blocks until all have called.
    ///
    /// # Errors
    /// See [`Rules::split`](crate::shape::Rules::split);
    /// [`InvalidUsage`](crate::ErrorKind::InvalidUsage) inside a group;
    /// [`Revoked`](crate::ErrorKind::Revoked) after a revoke; the library's failures.
    #[doc(alias = "ncclCommSplit")]
    #[track_caller]
    fn split(&self, config: SplitConfig) -> Result<Option<Self>>;

    /// Makes a communicator without some ranks: those that are gone, or that are not wanted any
    /// more. The others keep their order and close the gaps.
    ///
    /// Collective over the ranks that stay, who all give the same list; the excluded ones do not
    /// call, and need not be alive. Requires [`Capabilities::shrink`].
    ///
    /// On a healthy communicator, `abort` off wants that none of its operations is in flight; it
    /// can be used on. One that failed, or that has operations which wait for an excluded rank, is
    /// [revoked](Collectives::revoke) first (NCCL 2.28.7), or shrunk with `abort` (NCCL 2.27.3);
    /// afterwards it is good for nothing but another shrink and its end.
    ///
    /// # Errors
    /// See [`Rules::shrink`](crate::shape::Rules::shrink);
    /// [`InvalidUsage`](crate::ErrorKind::InvalidUsage) inside a group;
    /// [`Remote`](crate::ErrorKind::Remote) where the mock sees that a rank of those that stay is
    /// gone (others wait for it); the communicator's failure, where it has one and was neither
    /// revoked nor is shrunk with `abort`; [`Revoked`](crate::ErrorKind::Revoked) where the mock sees
    /// another rank revoke it while this one waits in a shrink that it began before; the library's
    /// failures.
    #[doc(alias = "ncclCommShrink")]
    #[track_caller]
    fn shrink(&self, config: ShrinkConfig) -> Result<Self>;

    /// Makes a larger communicator: the ranks of this one keep their places, and new ranks take the
    /// places behind them.
    ///
    /// Collective over the ranks of this communicator (the members) and the new ranks. Requires
    /// [`Capabilities::grow`].
    ///
    /// # Protocol
    /// 1. One member, whichever, calls [`Collectives::grow_id`], and the program brings the id to
    ///    every new rank.
    /// 2. Every member calls `grow` with the size afterwards, and
    /// 3. every new rank calls [`Backend::join_grown`] with the id, a rank from the number of
    ///    members up, and the same size.
    ///
    /// An id is used up by the growing it was made for. A new rank that does not come leaves all
    /// others waiting: NCCL has no deadline here. This communicator can be used on; NCCL advises to
    /// end it.
    ///
    /// # Errors
    /// See [`Rules::grow`](crate::shape::Rules::grow);
    /// [`InvalidUsage`](crate::ErrorKind::InvalidUsage) inside a group, and without an id where
    /// that can be seen; [`Revoked`](crate::ErrorKind::Revoked) after a revoke; the library's
    /// failures.
    #[doc(alias = "ncclCommGrow")]
    #[track_caller]
    fn grow(&self, config: GrowConfig) -> Result<Self>;
}

/// How a rank joins a communicator.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct JoinConfig {
    /// This rank.
    pub rank: Rank,
    /// Number of ranks.
    pub size: usize,
    /// Ordinal of the device to bind to. The rank itself, unless set: one process that holds one
    /// rank for each of its devices. A process with one rank names its device.
    pub device: usize,
    /// A name for errors and logs.
    pub name: Option<String>,
    /// How long to wait for the other ranks; forever, unless set.
    pub deadline: Option<Duration>,
    /// How the library is to run it.
    pub config: CommConfig,
    /// Further ids, for very large worlds.
    pub more_ids: Vec<UniqueId>,
}

impl JoinConfig {
    /// Joins as `rank` of `size`, on the device of the same number.
    pub fn new(rank: impl Into<Rank>, size: usize) -> Self {
        let rank = rank.into();
        Self {
            rank,
            size,
            device: rank.index(),
            name: None,
            deadline: None,
            config: CommConfig::new(),
            more_ids: Vec::new(),
        }
    }

    /// Binds to device `ordinal`.
    #[must_use]
    pub fn with_device(mut self, ordinal: usize) -> Self {
        self.device = ordinal;
        self
    }

    /// Names the communicator, for errors and logs.
    #[must_use]
    pub fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Gives further ids, each made by another rank: their makers share the work of bringing the ranks
    /// together, which one cannot do fast for thousands. The same on all ranks, in the same order; not
    /// more, with the first, than there are ranks. Requires [`Capabilities::join_many_ids`].
    #[doc(alias = "ncclCommInitRankScalable")]
    #[must_use]
    pub fn with_more_ids(mut self, ids: impl Into<Vec<UniqueId>>) -> Self {
        self.more_ids = ids.into();
        self
    }

    /// Gives up with [`Timeout`](crate::ErrorKind::Timeout) when the other ranks have not joined
    /// in time. Where [`Capabilities::join_deadline`] is emulated, the attempt itself cannot be given
    /// up: a thread waits on, and ends what it gets.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Sets how the library is to run it. Requires [`Capabilities::config`].
    #[must_use]
    pub fn with_config(mut self, config: CommConfig) -> Self {
        self.config = config;
        self
    }
}

/// How one process makes a whole communicator.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct JoinAllConfig {
    /// Ordinals of the devices, in rank order.
    pub devices: Vec<usize>,
    /// A name for errors and logs.
    pub name: Option<String>,
    /// How long it may take; as long as it does, unless set.
    pub deadline: Option<Duration>,
    /// How the library is to run it.
    pub config: CommConfig,
}

impl JoinAllConfig {
    /// Rank i on `devices[i]`.
    pub fn new(devices: impl Into<Vec<usize>>) -> Self {
        Self { devices: devices.into(), name: None, deadline: None, config: CommConfig::new() }
    }

    /// Gives up with [`Timeout`](crate::ErrorKind::Timeout) when not all devices have joined in time.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Names the communicator, for errors and logs.
    #[must_use]
    pub fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets how the library is to run it. Requires [`Capabilities::config`].
    #[must_use]
    pub fn with_config(mut self, config: CommConfig) -> Self {
        self.config = config;
        self
    }
}

/// How a rank takes part in [`Split::split`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SplitConfig {
    /// Ranks of the same colour form a communicator; `None` takes part in none
    /// (`NCCL_SPLIT_NOCOLOR`). At most `i32::MAX`.
    pub color: Option<u32>,
    /// Ranks are ordered by key, then by their old rank.
    pub key: i32,
    /// A name for errors and logs.
    pub name: Option<String>,
    /// How the library is to run it.
    pub config: CommConfig,
}

impl SplitConfig {
    /// Joins the part of `color`, in the order of the old ranks.
    pub fn new(color: u32) -> Self {
        Self { color: Some(color), key: 0, name: None, config: CommConfig::new() }
    }

    /// Takes part in the call, but in no new communicator.
    pub fn no_color() -> Self {
        Self { color: None, key: 0, name: None, config: CommConfig::new() }
    }

    /// Orders ranks by `key` first.
    #[must_use]
    pub fn with_key(mut self, key: i32) -> Self {
        self.key = key;
        self
    }

    /// Names the new communicator, for errors and logs.
    #[must_use]
    pub fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets how the library is to run the new communicator. Requires [`Capabilities::config`].
    #[must_use]
    pub fn with_config(mut self, config: CommConfig) -> Self {
        self.config = config;
        self
    }
}

/// How a rank takes part in [`Split::shrink`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ShrinkConfig {
    /// The ranks that are left out, in any order: the same on every rank that stays.
    pub exclude: Vec<Rank>,
    /// Whether operations in flight on the old communicator are dropped first
    /// (`NCCL_SHRINK_ABORT`). Their results are undefined, and the old communicator counts as
    /// revoked from then on.
    pub abort: bool,
    /// A name for errors and logs.
    pub name: Option<String>,
    /// How the library is to run it.
    pub config: CommConfig,
}

impl ShrinkConfig {
    /// Leaves out `exclude`, of a communicator that has no operation in flight.
    pub fn new(exclude: impl IntoIterator<Item = impl Into<Rank>>) -> Self {
        let exclude = exclude.into_iter().map(Into::into).collect();
        Self { exclude, abort: false, name: None, config: CommConfig::new() }
    }

    /// Drops the operations in flight first.
    #[must_use]
    pub fn with_abort(mut self) -> Self {
        self.abort = true;
        self
    }

    /// Names the new communicator, for errors and logs.
    #[must_use]
    pub fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets how the library is to run the new communicator. Requires [`Capabilities::config`].
    #[must_use]
    pub fn with_config(mut self, config: CommConfig) -> Self {
        self.config = config;
        self
    }
}

/// How a member takes part in [`Split::grow`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GrowConfig {
    /// Number of ranks afterwards.
    pub size: usize,
    /// A name for errors and logs.
    pub name: Option<String>,
    /// How the library is to run it.
    pub config: CommConfig,
}

impl GrowConfig {
    /// Grows to `size` ranks.
    pub fn new(size: usize) -> Self {
        Self { size, name: None, config: CommConfig::new() }
    }

    /// Names the new communicator, for errors and logs.
    #[must_use]
    pub fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets how the library is to run the new communicator. Requires [`Capabilities::config`].
    #[must_use]
    pub fn with_config(mut self, config: CommConfig) -> Self {
        self.config = config;
        self
    }
}
