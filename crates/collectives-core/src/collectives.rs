//! The data plane: one rank's end of a communicator.

use std::{ffi::c_void, time::Duration};

use crate::{
    AbortHandle, Capabilities, CommInfo, Launch, MemoryUse, PreMulSum, Rank, RawRegistration,
    RawWindow, RecvBuf, ReduceOp, Result, Scalar, SendBuf, SignalWait, UniqueId, WindowFlags,
};

/// One rank's end of a communicator: moves data between ranks, on streams of its device.
///
/// Operations are asynchronous. A call checks its arguments, enqueues, and returns; the data has
/// moved when the stream has passed the operation. The count of a buffer is the number of its elements,
/// whatever a vendor's own `count` means.
///
/// The trait is for implementers and for code that brings its own memory; the facade's
/// `Communicator` is the safe form.
///
/// # Contract
/// A caller of the `unsafe` operations promises:
///
/// 1. Each buffer is memory that the communicator's device can access, `count` elements long.
/// 2. From the call until the stream has passed the operation, nobody frees the buffers, nobody
///    writes what is sent, and nobody reads or writes what is received.
/// 3. The stream belongs to the communicator's device and outlives the operation.
/// 4. All ranks issue the operations of one communicator in the same order, with counts, dtype,
///    reduce op and root that fit together; a send meets a receive of the same count and dtype.
///
/// Breaking 1 to 3 is undefined behaviour. Breaking 4 hangs, fails, or fills receive buffers with
/// wrong data. A backend checks what one rank can see ([`crate::shape`]) and refuses it before
/// anything is enqueued; the mock sees all ranks and checks 3 and what it can of 1.
///
/// # Refusals
/// A refused call (an error whose [`poisons_communicator`](crate::Error::poisons_communicator) is
/// `false`) had no effect, and the communicator works as before. Inside a group it drops the whole
/// group.
///
/// # Threads
/// `Send`, not `Sync`: NCCL allows one thread at a time to call on a communicator. To end one that
/// another thread is stuck in, take an [`AbortHandle`] beforehand.
///
/// # Dropping
/// Dropping a communicator flushes and destroys it, in bounded time; errors are logged. Use
/// [`finalize`](Self::finalize) to see them.
///
/// # Portability
/// Ending a communicator in any way frees device memory, and on CUDA that may wait for kernels
/// that run on the process's other devices (seen with NCCL 2.28.3 and 2.28.9). So where several
/// ranks live in one process, all of them end it before any of them starts the next collective on
/// another communicator; a barrier between threads sees to that.
pub trait Collectives: Send {
    /// What this end knows of itself: rank, size, device, library.
    fn info(&self) -> &CommInfo;

    /// What the library behind it can do.
    fn capabilities(&self) -> &Capabilities;

    /// Combines the `send` buffers of all ranks; every rank receives the result.
    ///
    /// *Shape*: `recv.count == send.count`. *In place*: `recv.ptr == send.ptr`.
    ///
    /// # Safety
    /// See [`Collectives`].
    ///
    /// # Errors
    /// See [`crate::shape::Rules::all_reduce`], and the library's own failures.
    #[doc(alias = "ncclAllReduce")]
    #[doc(alias = "MPI_Allreduce")]
    #[expect(unsafe_code, reason = "declares the contract; contains no unsafe code")]
    unsafe fn all_reduce(
        &self,
        send: SendBuf,
        recv: RecvBuf,
        op: ReduceOp,
        launch: Launch<'_>,
    ) -> Result<()>;

    /// Combines the `send` buffers of all ranks; `root` receives the result.
    ///
    /// *Shape*: on root, `recv` is given and `recv.count == send.count`; elsewhere it is ignored.
    /// *In place*: `recv.ptr == send.ptr`.
    ///
    /// # Safety
    /// See [`Collectives`].
    ///
    /// # Errors
    /// See [`crate::shape::Rules::reduce`], and the library's own failures.
    #[doc(alias = "ncclReduce")]
    #[doc(alias = "MPI_Reduce")]
    #[expect(unsafe_code, reason = "declares the contract; contains no unsafe code")]
    unsafe fn reduce(
        &self,
        send: SendBuf,
        recv: Option<RecvBuf>,
        op: ReduceOp,
        root: Rank,
        launch: Launch<'_>,
    ) -> Result<()>;

    /// Copies `send` of `root` to `recv` of every rank, root included.
    ///
    /// *Shape*: on root, `send` is given and `send.count == recv.count`; elsewhere it is ignored.
    /// *In place*: `recv.ptr == send.ptr`.
    ///
    /// # Safety
    /// See [`Collectives`].
    ///
    /// # Errors
    /// See [`crate::shape::Rules::broadcast`], and the library's own failures.
    #[doc(alias = "ncclBroadcast")]
    #[doc(alias = "ncclBcast")]
    #[doc(alias = "MPI_Bcast")]
    #[expect(unsafe_code, reason = "declares the contract; contains no unsafe code")]
    unsafe fn broadcast(
        &self,
        send: Option<SendBuf>,
        recv: RecvBuf,
        root: Rank,
        launch: Launch<'_>,
    ) -> Result<()>;

    /// Concatenates the `send` buffers of all ranks in rank order; every rank receives the result.
    ///
    /// *Shape*: `recv.count == size × send.count`. *In place*: `send` is the part of `recv` that
    /// this rank contributes, at element `rank × send.count`.
    ///
    /// # Safety
    /// See [`Collectives`].
    ///
    /// # Errors
    /// See [`crate::shape::Rules::all_gather`], and the library's own failures.
    #[doc(alias = "ncclAllGather")]
    #[doc(alias = "MPI_Allgather")]
    #[doc(alias = "all_gather_into_tensor")]
    #[expect(unsafe_code, reason = "declares the contract; contains no unsafe code")]
    unsafe fn all_gather(&self, send: SendBuf, recv: RecvBuf, launch: Launch<'_>) -> Result<()>;

    /// Combines the `send` buffers of all ranks; rank i receives the i-th part of the result.
    ///
    /// *Shape*: `send.count == size × recv.count`. *In place*: `recv` is the part of `send` that
    /// this rank receives, at element `rank × recv.count`.
    ///
    /// # Safety
    /// See [`Collectives`].
    ///
    /// # Errors
    /// See [`crate::shape::Rules::reduce_scatter`], and the library's own failures.
    #[doc(alias = "ncclReduceScatter")]
    #[doc(alias = "MPI_Reduce_scatter_block")]
    #[doc(alias = "reduce_scatter_tensor")]
    #[expect(unsafe_code, reason = "declares the contract; contains no unsafe code")]
    unsafe fn reduce_scatter(
        &self,
        send: SendBuf,
        recv: RecvBuf,
        op: ReduceOp,
        launch: Launch<'_>,
    ) -> Result<()>;

    /// Sends the i-th part of `send` to rank i, and receives rank i's part at the i-th place.
    ///
    /// *Shape*: `send.count == recv.count`, a multiple of size. *In place*: not possible.
    ///
    /// # Safety
    /// See [`Collectives`].
    ///
    /// # Errors
    /// See [`crate::shape::Rules::all_to_all`], and the library's own failures.
    #[doc(alias = "ncclAlltoAll")]
    #[doc(alias = "ncclAllToAll")]
    #[doc(alias = "MPI_Alltoall")]
    #[doc(alias = "all_to_all_single")]
    #[expect(unsafe_code, reason = "declares the contract; contains no unsafe code")]
    unsafe fn all_to_all(&self, send: SendBuf, recv: RecvBuf, launch: Launch<'_>) -> Result<()>;

    /// Concatenates the `send` buffers of all ranks in rank order; `root` receives the result.
    ///
    /// *Shape*: on root, `recv` is given and `recv.count == size × send.count`; elsewhere it is
    /// ignored. *In place*: on root, `send` is the part of `recv` at element `root × send.count`.
    ///
    /// # Safety
    /// See [`Collectives`].
    ///
    /// # Errors
    /// See [`crate::shape::Rules::gather`], and the library's own failures.
    #[doc(alias = "ncclGather")]
    #[doc(alias = "MPI_Gather")]
    #[expect(unsafe_code, reason = "declares the contract; contains no unsafe code")]
    unsafe fn gather(
        &self,
        send: SendBuf,
        recv: Option<RecvBuf>,
        root: Rank,
        launch: Launch<'_>,
    ) -> Result<()>;

    /// Sends the i-th part of `send` of `root` to rank i.
    ///
    /// *Shape*: on root, `send` is given and `send.count == size × recv.count`; elsewhere it is
    /// ignored. *In place*: on root, `recv` is the part of `send` at element `root × recv.count`.
    ///
    /// # Safety
    /// See [`Collectives`].
    ///
    /// # Errors
    /// See [`crate::shape::Rules::scatter`], and the library's own failures.
    #[doc(alias = "ncclScatter")]
    #[doc(alias = "MPI_Scatter")]
    #[expect(unsafe_code, reason = "declares the contract; contains no unsafe code")]
    unsafe fn scatter(
        &self,
        send: Option<SendBuf>,
        recv: RecvBuf,
        root: Rank,
        launch: Launch<'_>,
    ) -> Result<()>;

    /// Sends `buf` to `peer`, which must receive as many elements of the same dtype.
    ///
    /// Sends and receives between two ranks match in the order in which they are issued. A send
    /// may hold its stream until the peer receives: exchange inside a group
    /// ([`CollectivesExt::send_recv`](crate::CollectivesExt::send_recv)). To oneself only inside a
    /// group that holds the receive as well.
    ///
    /// # Safety
    /// See [`Collectives`].
    ///
    /// # Errors
    /// See [`crate::shape::Rules::send`], and the library's own failures.
    #[doc(alias = "ncclSend")]
    #[doc(alias = "MPI_Send")]
    #[doc(alias = "isend")]
    #[expect(unsafe_code, reason = "declares the contract; contains no unsafe code")]
    unsafe fn send(&self, buf: SendBuf, peer: Rank, launch: Launch<'_>) -> Result<()>;

    /// Receives into `buf` from `peer`. See [`send`](Self::send).
    ///
    /// # Safety
    /// See [`Collectives`].
    ///
    /// # Errors
    /// See [`crate::shape::Rules::recv`], and the library's own failures.
    #[doc(alias = "ncclRecv")]
    #[doc(alias = "MPI_Recv")]
    #[doc(alias = "irecv")]
    #[expect(unsafe_code, reason = "declares the contract; contains no unsafe code")]
    unsafe fn recv(&self, buf: RecvBuf, peer: Rank, launch: Launch<'_>) -> Result<()>;

    /// Opens a group on this thread: operations that follow, on any communicator of this backend,
    /// are collected and start together when the outermost group ends.
    ///
    /// The raw form, for code that builds on the trait. Every start needs its
    /// [`group_end`](Self::group_end) on the same thread, also after an error.
    /// [`BackendExt::group`](crate::BackendExt::group) and the facade's groups see to that.
    ///
    /// # Errors
    /// What the library reports.
    #[doc(alias = "ncclGroupStart")]
    fn group_start(&self) -> Result<()>;

    /// Ends the group of this thread; the outermost end launches what was collected.
    ///
    /// # Errors
    /// If any call inside the group was refused, nothing is launched, on any communicator, and the
    /// first refusal is returned; the communicators work as before. Without an open group:
    /// [`InvalidUsage`](crate::ErrorKind::InvalidUsage). Else the library's own failures.
    #[doc(alias = "ncclGroupEnd")]
    fn group_end(&self) -> Result<()>;

    /// Ends the group of this thread without launching anything, and estimates how long it would take, if
    /// the library can. The mock cannot. Requires [`Capabilities::group_simulate`].
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) by capability;
    /// [`InvalidUsage`](crate::ErrorKind::InvalidUsage) where no group is open, and where this is not
    /// the outermost one; the first refusal in it; the library's failures. A group that was open is
    /// ended all the same.
    #[doc(alias = "ncclGroupSimulateEnd")]
    fn group_simulate(&self) -> Result<Option<Duration>>;

    /// Whether a group of this backend is open on this thread, so that operations are collected
    /// instead of enqueued.
    fn in_group(&self) -> bool;

    /// Makes an operator that multiplies this rank's input by `scalar` and then sums. Local: other
    /// ranks choose their own scalars.
    ///
    /// A host scalar is copied now; a device scalar is read when an operation runs.
    ///
    /// # Safety
    /// A device scalar is one element that the communicator's device can read, until every
    /// operation that uses the operator has run.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) by capability, and the library's failures.
    #[doc(alias = "ncclRedOpCreatePreMulSum")]
    #[expect(unsafe_code, reason = "declares the contract; contains no unsafe code")]
    #[track_caller]
    unsafe fn create_pre_mul_sum(&self, scalar: Scalar) -> Result<PreMulSum>;

    /// Destroys an operator. Allowed as soon as the last call that was given it has returned;
    /// using it afterwards is refused.
    ///
    /// # Errors
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) for an operator of another
    /// communicator, or one that is destroyed already.
    #[doc(alias = "ncclRedOpDestroy")]
    fn destroy_pre_mul_sum(&self, op: PreMulSum) -> Result<()>;

    /// Allocates `bytes` of device memory in the way the library likes best, for
    /// [`register`](Self::register). Local; not zeroed.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) by capability;
    /// [`OutOfMemory`](crate::ErrorKind::OutOfMemory).
    #[doc(alias = "ncclMemAlloc")]
    #[track_caller]
    fn mem_alloc(&self, bytes: usize) -> Result<*mut c_void>;

    /// Frees memory of [`mem_alloc`](Self::mem_alloc).
    ///
    /// # Safety
    /// `ptr` came from `mem_alloc` of a communicator on this device, is not registered any more,
    /// and no operation that uses it is pending.
    ///
    /// # Errors
    /// What the library reports.
    #[doc(alias = "ncclMemFree")]
    #[expect(unsafe_code, reason = "declares the contract; contains no unsafe code")]
    unsafe fn mem_free(&self, ptr: *mut c_void) -> Result<()>;

    /// Registers memory with this communicator, which lets the library move data without staging.
    /// Local; other ranks need not register.
    ///
    /// # Safety
    /// `ptr` is `bytes` of memory of this device, and stays so until it is deregistered.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) by capability, and the library's failures.
    #[doc(alias = "ncclCommRegister")]
    #[expect(unsafe_code, reason = "declares the contract; contains no unsafe code")]
    #[track_caller]
    unsafe fn register(&self, ptr: *mut c_void, bytes: usize) -> Result<RawRegistration>;

    /// Undoes [`register`](Self::register).
    ///
    /// # Safety
    /// `registration` came from this communicator, was not deregistered before, and no operation
    /// that uses its memory is pending.
    ///
    /// # Errors
    /// What the library reports.
    #[doc(alias = "ncclCommDeregister")]
    #[expect(unsafe_code, reason = "declares the contract; contains no unsafe code")]
    unsafe fn deregister(&self, registration: RawRegistration) -> Result<()>;

    /// Registers memory of every rank as one window, so that ranks may reach into each other's.
    /// Collective: returns when all ranks have called, with as many bytes and the same flags; slow, so
    /// one large window is better than many small ones.
    ///
    /// The memory starts at a multiple of [`WINDOW_ALIGNMENT`](crate::shape::WINDOW_ALIGNMENT) bytes
    /// from the start of an allocation of [`mem_alloc`](Self::mem_alloc). Requires
    /// [`Capabilities::window_register`].
    ///
    /// # Safety
    /// `ptr` is `bytes` of memory of this device, and stays so until all ranks have deregistered it.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) by capability, and on all ranks where the
    /// library has windows and this system does not: NCCL then succeeds with none.
    /// [`InvalidUsage`](crate::ErrorKind::InvalidUsage) inside a group;
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) for no bytes; the library's failures.
    /// If ranks disagree, or one does something else, the mock gives all of them an error; other libraries
    /// hang, or give a window that is good for nothing.
    #[doc(alias = "ncclCommWindowRegister")]
    #[expect(unsafe_code, reason = "declares the contract; contains no unsafe code")]
    #[track_caller]
    unsafe fn window_register(
        &self,
        ptr: *mut c_void,
        bytes: usize,
        flags: WindowFlags,
    ) -> Result<RawWindow>;

    /// Undoes [`window_register`](Self::window_register). Local: no rank waits for another. A window
    /// that is left is gone with its communicator.
    ///
    /// # Safety
    /// `window` came from this communicator, was not deregistered before, and no operation of any rank
    /// that uses its memory is pending.
    ///
    /// # Errors
    /// [`Aborted`](crate::ErrorKind::Aborted) after an abort, with which it went; what the library
    /// reports.
    #[doc(alias = "ncclCommWindowDeregister")]
    #[expect(unsafe_code, reason = "declares the contract; contains no unsafe code")]
    unsafe fn window_deregister(&self, window: RawWindow) -> Result<()>;

    /// Tells the address that this rank registered a window with. Requires
    /// [`Capabilities::window_ptr`].
    ///
    /// # Safety
    /// `window` came from this communicator, and was not deregistered.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) by capability; what the library reports.
    #[doc(alias = "ncclWinGetUserPtr")]
    #[expect(unsafe_code, reason = "declares the contract; contains no unsafe code")]
    unsafe fn window_ptr(&self, window: RawWindow) -> Result<*mut c_void>;

    /// Writes `send` into `peer`'s memory of a window, `offset` bytes from its start, and signals it
    /// once that is there. The peer calls nothing but [`wait_signal`](Self::wait_signal). The call is
    /// done when `send` may be written again.
    ///
    /// Requires [`Capabilities::put_signal`], and a peer that is another rank. Not in groups; whether a
    /// capture takes it is up to the library (the mock's does not).
    ///
    /// # Safety
    /// See [`Collectives`]; and `send` lies in a window of this communicator, `window` is one, and
    /// nobody on the peer reads or writes the target from this call until a wait for the signal has
    /// passed there.
    ///
    /// # Errors
    /// See [`crate::shape::Rules::put_signal`]; [`InvalidUsage`](crate::ErrorKind::InvalidUsage)
    /// inside a group; the library's failures. NCCL refuses systems that cannot do it.
    #[doc(alias = "ncclPutSignal")]
    #[expect(unsafe_code, reason = "declares the contract; contains no unsafe code")]
    unsafe fn put_signal(
        &self,
        send: SendBuf,
        peer: Rank,
        window: RawWindow,
        offset: usize,
        launch: Launch<'_>,
    ) -> Result<()>;

    /// Signals `peer`, once the stream has passed all earlier work. It does not wait for the peer.
    ///
    /// Requires [`Capabilities::put_signal`], a peer that is another rank, and (NCCL does without) a
    /// window that was registered on this communicator. Not in groups.
    ///
    /// # Safety
    /// The stream belongs to the communicator's device and outlives the operation.
    ///
    /// # Errors
    /// As [`put_signal`](Self::put_signal).
    #[doc(alias = "ncclSignal")]
    #[expect(unsafe_code, reason = "declares the contract; contains no unsafe code")]
    unsafe fn signal(&self, peer: Rank, launch: Launch<'_>) -> Result<()>;

    /// Holds the stream until so many signals of each of these peers have come, beyond those that
    /// earlier waits took. What was put before them is there then.
    ///
    /// Requires what [`signal`](Self::signal) does. A signal that never comes is a verdict of the
    /// mock; on a GPU the stream hangs.
    ///
    /// # Safety
    /// As [`signal`](Self::signal).
    ///
    /// # Errors
    /// See [`crate::shape::Rules::wait_signal`]; else as [`put_signal`](Self::put_signal).
    #[doc(alias = "ncclWaitSignal")]
    #[expect(unsafe_code, reason = "declares the contract; contains no unsafe code")]
    unsafe fn wait_signal(&self, waits: &[SignalWait], launch: Launch<'_>) -> Result<()>;

    /// Divides the communicator, as [`Split::split`](crate::Split::split), for code that knows only
    /// this trait.
    ///
    /// # Errors
    /// See [`Split::split`](crate::Split::split).
    #[doc(alias = "ncclCommSplit")]
    #[track_caller]
    fn split_dyn(&self, config: crate::SplitConfig) -> Result<Option<Box<dyn Collectives>>>;

    /// Makes a communicator without some ranks, as [`Split::shrink`](crate::Split::shrink), for code
    /// that knows only this trait.
    ///
    /// # Errors
    /// See [`Split::shrink`](crate::Split::shrink).
    #[doc(alias = "ncclCommShrink")]
    #[track_caller]
    fn shrink_dyn(&self, config: crate::ShrinkConfig) -> Result<Box<dyn Collectives>>;

    /// Makes a larger communicator, as [`Split::grow`](crate::Split::grow), for code that knows only
    /// this trait.
    ///
    /// # Errors
    /// See [`Split::grow`](crate::Split::grow).
    #[doc(alias = "ncclCommGrow")]
    #[track_caller]
    fn grow_dyn(&self, config: crate::GrowConfig) -> Result<Box<dyn Collectives>>;

    /// Makes the id with which new ranks join when this communicator grows; see
    /// [`Split::grow`](crate::Split::grow). One member makes it, and it is for one growing.
    ///
    /// Requires [`Capabilities::grow`]. This rank passes it on by itself when it calls `grow`.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) by capability;
    /// [`InvalidUsage`](crate::ErrorKind::InvalidUsage) while an id made before is not used up;
    /// [`Revoked`](crate::ErrorKind::Revoked) after a revoke; the library's failures.
    #[doc(alias = "ncclCommGetUniqueId")]
    fn grow_id(&self) -> Result<UniqueId>;

    /// Gives the communicator up without ending it: operations in flight stop, their results are
    /// undefined, and from now on it is good for [`shrink`](crate::Split::shrink) and its end only.
    /// What to do first when a rank was lost; [`AbortHandle`] ends more, and from any thread.
    ///
    /// Requires [`Capabilities::revoke`]. Not collective, and it waits for no other rank; but every
    /// rank that goes on calls it, since a library may stop the operations of the calling rank alone
    /// (NCCL does; the mock stops those of all ranks, which get an error). Revoking again does nothing.
    ///
    /// Afterwards operations, splits and registrations fail with
    /// [`Revoked`](crate::ErrorKind::Revoked), and so does
    /// [`AbortHandle::failure`]. Shrink, finalize (which has nothing to flush), abort and drop work.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) by capability;
    /// [`InvalidUsage`](crate::ErrorKind::InvalidUsage) inside a group;
    /// [`Aborted`](crate::ErrorKind::Aborted) after an abort; what the library reports, after which
    /// the communicator is revoked all the same.
    #[doc(alias = "ncclCommRevoke")]
    fn revoke(&self) -> Result<()>;

    /// Gives device memory of the communicator back, for as long as it is not needed: between the
    /// requests of a server, while another model runs. Until [`resume`](Self::resume), operations are
    /// refused.
    ///
    /// Every rank calls it, with nothing in flight, and outside of groups. What shares resources with
    /// another communicator cannot be suspended. Requires [`Capabilities::suspend`].
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) by capability;
    /// [`InvalidUsage`](crate::ErrorKind::InvalidUsage) inside a group, where it is suspended already,
    /// and where the mock sees operations in flight; the library's failures.
    #[doc(alias = "ncclCommSuspend")]
    fn suspend(&self) -> Result<()>;

    /// Takes the memory again that [`suspend`](Self::suspend) gave back. Every rank calls it.
    ///
    /// # Errors
    /// [`InvalidUsage`](crate::ErrorKind::InvalidUsage) inside a group, and where it is not suspended;
    /// [`OutOfMemory`](crate::ErrorKind::OutOfMemory); the library's failures.
    #[doc(alias = "ncclCommResume")]
    fn resume(&self) -> Result<()>;

    /// Tells how much device memory the communicator uses, as far as the library counts it. The mock
    /// uses none. Requires [`Capabilities::memory_use`].
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) by capability; what the library reports.
    #[doc(alias = "ncclCommMemStats")]
    fn memory_use(&self) -> Result<MemoryUse>;

    /// Asks whether the communicator failed on its own: a rank died, a link broke.
    ///
    /// # Errors
    /// The failure, or that it was aborted.
    #[doc(alias = "ncclCommGetAsyncError")]
    fn poll_error(&self) -> Result<()>;

    /// A handle that can end this communicator from another thread.
    fn abort_handle(&self) -> AbortHandle;

    /// The library's own handle (`ncclComm_t`); null where there is none. It stays owned by this
    /// communicator.
    #[doc(alias = "ncclComm_t")]
    fn as_raw(&self) -> *mut c_void;

    /// Flushes everything enqueued, then destroys the communicator. Collective: every rank calls
    /// it. One thread that owns several ranks must finalize them from several threads.
    ///
    /// # Errors
    /// What the library reports; the communicator is gone all the same.
    #[doc(alias = "ncclCommFinalize")]
    #[doc(alias = "ncclCommDestroy")]
    fn finalize(self: Box<Self>) -> Result<()>;

    /// Ends the communicator at once; operations in flight stop, their results are undefined.
    ///
    /// # Errors
    /// What the library reports; the communicator is gone all the same.
    #[doc(alias = "ncclCommAbort")]
    fn abort(self: Box<Self>) -> Result<()>;
}
