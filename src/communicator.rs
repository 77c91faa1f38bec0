//! One rank's end of a communicator, without `unsafe` in the user's code.

use std::{
    cell::{Cell, OnceCell},
    ffi::c_void,
    fmt,
    marker::PhantomData,
    panic::Location,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use collectives_core::{
    AbortHandle, Backend, CallConfig, Capabilities, Collectives, CommInfo, Device, Element, Error,
    ErrorKind, GrowConfig, JoinAllConfig, JoinConfig, MemoryUse, PreMulSum, Rank, RawRegistration,
    RecvBuf, Result, Scalar, ShrinkConfig, Split, SplitConfig, UniqueId,
};

use crate::{
    AlignedGraph, AnyBackend, AnyComm, AnyDevice, Buffer, Graph, Op, PreMulSumOp, Scope, Slice,
    SliceMut, Stream, Watch,
    buffer::{Allocation, bytes_of, order_all},
    graph::refuse_in_capture,
    operation::{Call, Connections, Operation, operations},
    place::Place,
    reduce::OpKeep,
    symmetric::Heap,
    watchdog::Watched,
};

/// One rank's end of a communicator.
///
/// Operations are enqueued on a stream, `comm.on(&stream).all_reduce(…)`, collected in a
/// [`group`](crate::group()), or captured into a [`Graph`].
///
/// `Send`, not `Sync`: one thread at a time. To end it from another thread, take an
/// [`abort_handle`](Self::abort_handle) first.
///
/// # Limits
/// No rank can see what the others do. That all ranks issue the same operations in the same order,
/// with counts that fit together, is up to the program, as it is with every collective library.
/// Ranks that disagree hang or receive wrong data; where a library writes straight into a peer's
/// registered memory, one that sends more than was asked for may write past the buffer. The mock
/// reports it as an error.
///
/// ```
/// use collectives::{Communicator, JoinAllConfig, ReduceOp, backend_named};
/// # fn main() -> collectives::Result<()> {
/// let backend = backend_named("mock")?;
/// let comm = Communicator::join_all(&backend, JoinAllConfig::new([0]))?.remove(0);
/// let stream = comm.new_stream()?;
/// let send = stream.upload(&[1.0_f32, 2.0])?;
/// let mut recv = stream.zeros(2)?;
/// comm.on(&stream).all_reduce(&send, &mut recv, ReduceOp::Sum)?;
/// assert_eq!(recv.to_vec(&stream)?, [1.0, 2.0]); // one rank: the sum of one
/// # Ok(()) }
/// ```
#[doc(alias = "ncclComm_t")]
#[doc(alias = "ProcessGroup")]
#[doc(alias = "PyNcclCommunicator")]
pub struct Communicator {
    inner: Arc<CommInner>,
    scratch: OnceCell<Buffer<u8>>,
    not_sync: PhantomData<Cell<()>>,
}

// SAFETY: `inner` is shared with graphs, buffers and reduce ops, which never call on the
// communicator: they keep it alive, and leave what is to be given back in its locked list. So the
// thread that holds this value is the only one that calls on the communicator.
unsafe impl Send for Communicator {}

/// A communicator and what has to be given back to it.
pub(crate) struct CommInner {
    /// Taken out by finalize and abort.
    comm: Option<AnyComm>,
    info: CommInfo,
    device: AnyDevice,
    place: Place,
    handle: AbortHandle,
    returned: Mutex<Returned>,
    /// Only the communicator's thread uses it.
    heap: Mutex<Option<Heap>>,
    watched: OnceLock<Arc<Watched>>,
    /// For graphs, which are launched on any thread.
    suspended: AtomicBool,
    /// What the library has connected; see [`Connections`].
    connected: AtomicU32,
    /// How many aligned graphs were captured.
    aligned: AtomicU64,
    /// The stream of the last launch of a graph that has this communicator's operations.
    replayed: Mutex<Option<Stream>>,
}

/// What owners on other threads gave up, for the communicator's thread to give back.
#[derive(Default)]
struct Returned {
    memory: Vec<ReturnedMemory>,
    ops: Vec<PreMulSum>,
    /// Blocks of the heap, and the streams of their last uses.
    blocks: Vec<(u64, Option<Stream>)>,
}

struct ReturnedMemory {
    registration: Option<RawRegistration>,
    ptr: *mut c_void,
    /// The stream of the last use, after which the memory is free.
    after: Option<Stream>,
}

impl Communicator {
    /// Joins a communicator of several processes or threads; see [`Backend::join`]. Collective: returns
    /// when all ranks have joined. [`init`](crate::init) does this for ranks that a launcher started.
    ///
    /// ```
    /// use std::{thread, time::Duration};
    /// use collectives::{Backend, Communicator, JoinConfig, backend_named};
    ///
    /// # fn main() -> collectives::Result<()> {
    /// let backend = backend_named("mock")?;
    /// let id = backend.unique_id()?; // one rank makes it and passes it on
    /// let join = |rank| {
    ///     let config = JoinConfig::new(rank, 2).with_deadline(Duration::from_secs(30));
    ///     Communicator::join(&backend, &id, config)?.finalize()
    /// };
    /// thread::scope(|scope| {
    ///     let other = scope.spawn(|| join(1));
    ///     join(0)?;
    ///     other.join().expect("rank 1 does not panic")
    /// })
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Backend::join`].
    #[doc(alias = "ncclCommInitRank")]
    #[doc(alias = "ncclCommInitRankConfig")]
    #[track_caller]
    pub fn join(backend: &AnyBackend, id: &UniqueId, config: JoinConfig) -> Result<Self> {
        refuse_in_capture("join")?;
        let device = config.device;
        let comm = backend.join(id, config)?;
        Ok(Self::over(comm, backend.device(device)?))
    }

    /// Joins a communicator that is growing, as one of its new ranks; see [`Backend::join_grown`].
    ///
    /// # Errors
    /// As [`Backend::join_grown`].
    #[doc(alias = "ncclCommGrow")]
    #[track_caller]
    pub fn join_grown(backend: &AnyBackend, id: &UniqueId, config: JoinConfig) -> Result<Self> {
        refuse_in_capture("join_grown")?;
        let device = config.device;
        let comm = backend.join_grown(id, config)?;
        Ok(Self::over(comm, backend.device(device)?))
    }

    /// Makes a whole communicator for this process, rank i on `config.devices[i]`; see
    /// [`Backend::join_all`].
    ///
    /// # Errors
    /// As [`Backend::join_all`].
    #[doc(alias = "ncclCommInitAll")]
    #[track_caller]
    pub fn join_all(backend: &AnyBackend, config: JoinAllConfig) -> Result<Vec<Self>> {
        refuse_in_capture("join_all")?;
        let comms = backend.join_all(config)?;
        comms
            .into_iter()
            .map(|comm| {
                let device = backend.device(comm.info().device)?;
                Ok(Self::over(comm, device))
            })
            .collect()
    }

    /// Takes over a communicator of the raw layer. `device` is the one it is bound to.
    ///
    /// # Errors
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) where `device` is another one.
    pub fn from_comm(comm: AnyComm, device: AnyDevice) -> Result<Self> {
        let of_backend = match (&comm, &device) {
            (AnyComm::Mock(_), device) => matches!(device, AnyDevice::Mock(_)),
            (AnyComm::Nccl(_), device) => matches!(device, AnyDevice::Cuda(_)),
            (AnyComm::Rccl(_), device) => matches!(device, AnyDevice::Hip(_)),
            // Only who made it knows what memory it moves.
            (AnyComm::Other(_), _) => true,
        };
        let bound = comm.info().device;
        if !of_backend || bound != device.info().ordinal {
            let backend = comm.info().library.backend;
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!(
                    "the communicator is bound to device {bound} of {backend}, not to {}",
                    Place::of(&device)
                ),
            )
            .with_comm(comm.info()));
        }
        Ok(Self::over(comm, device))
    }

    fn over(comm: AnyComm, device: AnyDevice) -> Self {
        let info = comm.info().clone();
        let inner = CommInner {
            place: Place::of(&device),
            handle: comm.abort_handle(),
            comm: Some(comm),
            info,
            device,
            returned: Mutex::default(),
            heap: Mutex::new(None),
            watched: OnceLock::new(),
            suspended: AtomicBool::new(false),
            connected: AtomicU32::new(0),
            aligned: AtomicU64::new(0),
            replayed: Mutex::default(),
        };
        #[expect(
            clippy::arc_with_non_send_sync,
            reason = "shared with owners on other threads, which only keep it alive"
        )]
        let inner = Arc::new(inner);
        let new = Self { inner, scratch: OnceCell::new(), not_sync: PhantomData };
        if let Some(watch) = Watch::from_env() {
            new.watch(watch.clone());
        }
        new
    }

    /// A communicator that comes from this one, and is watched like it.
    fn child(&self, comm: AnyComm) -> Self {
        let child = Self::over(comm, self.device().clone());
        if let Some(watched) = self.inner.watched.get() {
            child.watch(watched.watch());
        }
        child
    }

    /// What this end knows of itself: rank, size, device, library.
    pub fn info(&self) -> &CommInfo {
        &self.inner.info
    }

    /// This rank.
    #[doc(alias = "ncclCommUserRank")]
    #[doc(alias = "MPI_Comm_rank")]
    #[doc(alias = "get_rank")]
    pub fn rank(&self) -> u32 {
        self.inner.info.rank.get()
    }

    /// Number of ranks.
    #[doc(alias = "ncclCommCount")]
    #[doc(alias = "MPI_Comm_size")]
    #[doc(alias = "world_size")]
    #[doc(alias = "get_world_size")]
    pub fn size(&self) -> usize {
        self.inner.info.size
    }

    /// The device it is bound to.
    #[doc(alias = "ncclCommCuDevice")]
    pub fn device(&self) -> &AnyDevice {
        &self.inner.device
    }

    /// What the library behind it can do.
    pub fn capabilities(&self) -> &Capabilities {
        self.raw().capabilities()
    }

    /// The raw layer: core's [`Collectives`], for code that brings its own memory.
    pub fn as_comm(&self) -> &AnyComm {
        self.raw()
    }

    /// Makes a stream on its device.
    ///
    /// # Errors
    /// What the device's runtime reports.
    #[doc(alias = "cudaStreamCreate")]
    #[doc(alias = "hipStreamCreate")]
    #[track_caller]
    pub fn new_stream(&self) -> Result<Stream> {
        Stream::new(self.device())
    }

    /// Operations of this communicator, enqueued on `stream` now.
    #[inline]
    pub fn on<'a>(&'a self, stream: &'a Stream) -> On<'a> {
        On { comm: self, stream, config: None }
    }

    /// Captures operations into a graph, which can be launched any number of times.
    ///
    /// Nothing runs meanwhile. The graph owns what is captured into it: this and other
    /// communicators of the same device, buffers, reduce ops. The buffers can still be used beside
    /// it, to write inputs and read results; launches and other uses are ordered one after the
    /// other.
    ///
    /// Call [`warm_up`](On::warm_up) before the first capture, on every rank. Libraries connect on
    /// first use, which no capture can hold. So what is captured must have run before, in a `warm_up`
    /// or by itself, and is refused otherwise. (An earlier send may have gone to another rank than the
    /// captured one, so messages, gathers and scatters need the `warm_up`.)
    ///
    /// While `body` runs, its thread cannot enqueue on other streams through this crate, launch graphs,
    /// or make communicators: what would run now, and not when the graph is launched, is refused.
    ///
    /// # Errors
    /// The error of `body`, or of a refused call in it; what the device's runtime reports. Nothing
    /// is captured then, and the communicators work as before.
    #[doc(alias = "cudaStreamBeginCapture")]
    #[doc(alias = "hipStreamBeginCapture")]
    #[doc(alias = "CUDAGraph")]
    #[track_caller]
    pub fn capture(&self, body: impl FnOnce(&Scope) -> Result<()>) -> Result<Graph> {
        Graph::capture(self, body)
    }

    /// As [`capture`](Self::capture), for a graph whose launches make sure that all ranks are at the
    /// same step, in the same graph. It costs an exchange and a wait per launch: see [`AlignedGraph`].
    ///
    /// Collective, and every rank captures its aligned graphs in the same order.
    ///
    /// # Errors
    /// As [`capture`](Self::capture).
    #[track_caller]
    pub fn capture_aligned(&self, body: impl FnOnce(&Scope) -> Result<()>) -> Result<AlignedGraph> {
        AlignedGraph::capture(self, body)
    }

    /// Declares that other code has run operations of every kind on this communicator, between all
    /// ranks: one of another library's making ([`Backend::comm_from_raw`]), or one that is used on the
    /// raw layer. [`capture`](Self::capture) then wants no [`warm_up`](On::warm_up).
    pub fn assume_warmed_up(&self) {
        self.inner.connected(Connections::ALL);
    }

    /// Makes a reduce operator that multiplies this rank's input by `scalar` and then sums.
    ///
    /// ```
    /// use collectives::mock;
    ///
    /// let sums = mock::run(2, |comm| {
    ///     let half = comm.pre_mul_sum(0.5_f32)?;
    ///     let stream = comm.new_stream()?;
    ///     let mut buffer = stream.upload(&[8.0_f32])?;
    ///     comm.on(&stream).all_reduce_in_place(&mut buffer, &half)?;
    ///     buffer.to_vec(&stream)
    /// })?;
    /// assert_eq!(sums, [[8.0], [8.0]]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`Collectives::create_pre_mul_sum`].
    #[doc(alias = "ncclRedOpCreatePreMulSum")]
    #[track_caller]
    pub fn pre_mul_sum<T: Element>(&self, scalar: T) -> Result<PreMulSumOp> {
        self.inner.collect_returned(Duration::ZERO);
        // SAFETY: a host scalar is copied.
        let handle = unsafe { self.raw().create_pre_mul_sum(Scalar::host(scalar)) }?;
        Ok(PreMulSumOp(Arc::new(OpKeep { comm: Arc::clone(&self.inner), handle })))
    }

    /// Allocates `len` zeros in the way the library likes best. It may then move data without
    /// staging, also where nothing is registered: in graphs, for example.
    ///
    /// # Errors
    /// As [`Collectives::mem_alloc`].
    #[doc(alias = "ncclMemAlloc")]
    #[track_caller]
    pub fn alloc<T: Element>(&self, len: usize, stream: &Stream) -> Result<Buffer<T>> {
        let (ptr, _) = self.library_memory::<T>(len, stream)?;
        Buffer::of_library(&self.inner, stream, ptr, len, None)
    }

    /// As [`alloc`](Self::alloc), and registers the memory with this communicator. Local; other
    /// ranks need not do the same.
    ///
    /// # Errors
    /// As [`Collectives::mem_alloc`] and [`Collectives::register`].
    #[doc(alias = "ncclCommRegister")]
    #[track_caller]
    pub fn alloc_registered<T: Element>(&self, len: usize, stream: &Stream) -> Result<Buffer<T>> {
        let (ptr, bytes) = self.library_memory::<T>(len, stream)?;
        let comm = self.raw();
        // SAFETY: the memory was just allocated, and is freed after it is deregistered.
        let registration = match unsafe { comm.register(ptr, bytes) } {
            Ok(registration) => registration,
            Err(error) => {
                // SAFETY: just allocated, and used by nobody.
                log(unsafe { comm.mem_free(ptr) }, "memory of the library could not be freed");
                return Err(error);
            }
        };
        Buffer::of_library(&self.inner, stream, ptr, len, Some(registration))
    }

    #[track_caller]
    fn library_memory<T: Element>(
        &self,
        len: usize,
        stream: &Stream,
    ) -> Result<(*mut c_void, usize)> {
        self.same_place(stream)?;
        refuse_in_capture("alloc")?;
        stream.not_captured("alloc")?;
        let bytes = bytes_of::<T>(len).map_err(|error| error.with_comm(self.info()))?;
        self.inner.collect_returned(Duration::ZERO);
        Ok((self.raw().mem_alloc(bytes)?, bytes))
    }

    /// Divides the communicator; see [`Split::split`].
    ///
    /// ```
    /// use collectives::{SplitConfig, mock};
    ///
    /// let places = mock::run(4, |comm| {
    ///     // Even ranks in one part, odd ranks in the other.
    ///     let part = comm.split(SplitConfig::new(comm.rank() % 2))?.expect("every rank has a color");
    ///     Ok((part.rank(), part.size()))
    /// })?;
    /// assert_eq!(places, [(0, 2), (0, 2), (1, 2), (1, 2)]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`Split::split`].
    #[doc(alias = "ncclCommSplit")]
    #[doc(alias = "MPI_Comm_split")]
    #[doc(alias = "new_group")]
    #[track_caller]
    pub fn split(&self, config: SplitConfig) -> Result<Option<Self>> {
        refuse_in_capture("split")?;
        let part = self.raw().split(config)?;
        Ok(part.map(|comm| self.child(comm)))
    }

    /// Makes a communicator without some ranks; see [`Split::shrink`]. The ranks that stay call, and
    /// the others need not be alive.
    ///
    /// Streams on which this communicator's operations were lost go on returning that error: make
    /// new ones beside the new communicator, or [forget](Stream::forget_failures) it there.
    ///
    /// # Errors
    /// As [`Split::shrink`].
    #[doc(alias = "ncclCommShrink")]
    #[doc(alias = "MPIX_Comm_shrink")]
    #[track_caller]
    pub fn shrink(&self, config: ShrinkConfig) -> Result<Self> {
        refuse_in_capture("shrink")?;
        Ok(self.child(self.raw().shrink(config)?))
    }

    /// Makes a larger communicator, with new ranks behind those of this one; see [`Split::grow`],
    /// which explains the protocol.
    ///
    /// # Errors
    /// As [`Split::grow`].
    #[doc(alias = "ncclCommGrow")]
    #[track_caller]
    pub fn grow(&self, config: GrowConfig) -> Result<Self> {
        refuse_in_capture("grow")?;
        Ok(self.child(self.raw().grow(config)?))
    }

    /// Makes the id with which new ranks [join](Self::join_grown) when this communicator grows.
    ///
    /// # Errors
    /// As [`Collectives::grow_id`].
    #[doc(alias = "ncclCommGetUniqueId")]
    pub fn grow_id(&self) -> Result<UniqueId> {
        self.raw().grow_id()
    }

    /// Gives the communicator up without ending it: operations in flight stop, and it is good for
    /// [`shrink`](Self::shrink) and its end only; see [`Collectives::revoke`]. Every rank that goes
    /// on calls it.
    ///
    /// Waits on streams that held its operations return [`Revoked`](ErrorKind::Revoked) from now
    /// on: the results are not there.
    ///
    /// # Errors
    /// As [`Collectives::revoke`].
    #[doc(alias = "ncclCommRevoke")]
    #[doc(alias = "MPIX_Comm_revoke")]
    pub fn revoke(&self) -> Result<()> {
        self.raw().revoke()
    }

    /// Gives device memory of the communicator back until [`resume`](Self::resume); see
    /// [`Collectives::suspend`]. Graphs that hold it cannot be launched meanwhile.
    ///
    /// # Errors
    /// As [`Collectives::suspend`].
    #[doc(alias = "ncclCommSuspend")]
    pub fn suspend(&self) -> Result<()> {
        refuse_in_capture("suspend")?;
        self.inner.suspended.store(true, Ordering::SeqCst);
        self.raw().suspend().inspect_err(|_| {
            // It may have been suspended before.
            let is_suspended = self.raw().memory_use().is_ok_and(|memory| memory.is_suspended);
            self.inner.suspended.store(is_suspended, Ordering::SeqCst);
        })
    }

    /// Takes the memory again that [`suspend`](Self::suspend) gave back; see
    /// [`Collectives::resume`].
    ///
    /// # Errors
    /// As [`Collectives::resume`].
    #[doc(alias = "ncclCommResume")]
    pub fn resume(&self) -> Result<()> {
        refuse_in_capture("resume")?;
        self.raw().resume()?;
        self.inner.suspended.store(false, Ordering::SeqCst);
        Ok(())
    }

    /// Tells how much device memory the communicator uses; see [`Collectives::memory_use`].
    ///
    /// # Errors
    /// As [`Collectives::memory_use`].
    #[doc(alias = "ncclCommMemStats")]
    pub fn memory_use(&self) -> Result<MemoryUse> {
        self.raw().memory_use()
    }

    /// Asks whether the communicator failed on its own: a rank died, a link broke.
    ///
    /// # Errors
    /// The failure, or that it was aborted.
    #[doc(alias = "ncclCommGetAsyncError")]
    pub fn poll_error(&self) -> Result<()> {
        self.raw().poll_error()
    }

    /// Has the watchdog, one thread of the process, look after this communicator, and after those
    /// that come from it by split, shrink and grow. Called again, it changes what is watched for.
    ///
    /// Where an operation is late, or the communicator failed, every wait and call returns an error
    /// that names what was pending, and the communicator is aborted, so that streams go on. The
    /// error comes within the deadline and about an eighth of it, and 200 ms.
    ///
    /// Each operation costs two short locks more. `COLLECTIVES_WATCHDOG=30` watches every
    /// communicator with a deadline of 30 s. Nobody is watched otherwise. Operations that are
    /// called on [`as_comm`](Self::as_comm) are not seen.
    ///
    /// ```
    /// use std::time::Duration;
    /// use collectives::{ErrorKind, ReduceOp, Watch, mock};
    ///
    /// let plan = r#"rule = [{ rank = 1, action = "hang" }]"#.parse()?;
    /// let config = mock::MockConfig::new().with_faults(plan);
    /// let errors = mock::World::new(2).with_config(config).run(|comm| {
    ///     comm.watch(Watch::new().with_deadline(Duration::from_millis(200)));
    ///     let stream = comm.new_stream()?;
    ///     let mut buffer = stream.zeros::<f32>(4)?;
    ///     comm.on(&stream).all_reduce_in_place(&mut buffer, ReduceOp::Sum)?;
    ///     Ok(stream.synchronize().unwrap_err().kind())
    /// })?;
    /// assert!(errors.contains(&ErrorKind::Timeout)); // the other may hear of the abort first
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "TORCH_NCCL_ASYNC_ERROR_HANDLING")]
    #[doc(alias = "timeout")]
    pub fn watch(&self, watch: Watch) {
        let inner = &*self.inner;
        match inner.watched.get() {
            Some(watched) => watched.set_watch(watch),
            None => {
                let (info, handle) = (inner.info.clone(), inner.handle.clone());
                inner.watched.get_or_init(|| Watched::begin(info, &inner.device, handle, watch));
            }
        }
    }

    /// A handle that can end this communicator from another thread.
    pub fn abort_handle(&self) -> AbortHandle {
        self.inner.handle.clone()
    }

    /// Flushes everything enqueued, then destroys the communicator. Collective: every rank calls
    /// it, from threads of their own.
    ///
    /// # Errors
    /// [`InvalidUsage`](ErrorKind::InvalidUsage) while graphs, buffers of its own memory or
    /// reduce ops still hold it: it is then destroyed with the last of them. Else what the library reports.
    #[doc(alias = "ncclCommFinalize")]
    #[doc(alias = "ncclCommDestroy")]
    #[doc(alias = "destroy_process_group")]
    pub fn finalize(self) -> Result<()> {
        self.end(Collectives::finalize)
    }

    /// Ends the communicator at once; operations in flight stop, their results are undefined.
    ///
    /// # Errors
    /// What the library reports; the communicator is gone all the same.
    #[doc(alias = "ncclCommAbort")]
    #[doc(alias = "MPI_Abort")]
    pub fn abort(self) -> Result<()> {
        self.inner.handle.abort()
    }

    fn end(self, how: impl FnOnce(Box<AnyComm>) -> Result<()>) -> Result<()> {
        let Self { inner, scratch, not_sync: _ } = self;
        drop(scratch);
        inner.collect_returned(LAST_USE);
        match Arc::try_unwrap(inner) {
            Ok(mut inner) => {
                inner.end_heap();
                inner.comm.take().map_or(Ok(()), |comm| how(Box::new(comm)))
            }
            Err(inner) => Err(Error::new(
                ErrorKind::InvalidUsage,
                "graphs, buffers of its own memory or reduce ops still hold the communicator",
            )
            .with_comm(&inner.info)
            .with_operation("finalize")
            .with_hint(
                "it ends with the last of them; other ranks may wait in finalize until then, so \
                 drop them before the next call",
            )),
        }
    }

    pub(crate) fn inner(&self) -> &Arc<CommInner> {
        &self.inner
    }

    /// Refuses a stream of another device.
    #[inline]
    pub(crate) fn same_place(&self, stream: &Stream) -> Result<()> {
        if self.inner.place == stream.place() {
            return Ok(());
        }
        Err(self.other_device("stream", stream.place()))
    }

    /// Refuses inside a group of the raw layer. What is enqueued there starts when that group ends,
    /// of which the buffers here know nothing.
    #[inline]
    pub(crate) fn not_in_raw_group(&self) -> Result<()> {
        if !self.raw().in_group() {
            return Ok(());
        }
        Err(self.in_raw_group())
    }

    #[cold]
    fn in_raw_group(&self) -> Error {
        Error::new(ErrorKind::InvalidUsage, "a group of the raw layer is open on this thread")
            .with_comm(self.info())
            .with_hint("use collectives::group, which keeps the buffers until it closes")
    }

    #[cold]
    fn other_device(&self, what: &str, place: Place) -> Error {
        let own = self.inner.place;
        Error::new(
            ErrorKind::InvalidArgument,
            format!("the {what} is on {place}, the communicator on {own}"),
        )
        .with_comm(self.info())
        .with_hint(format!("use a {what} of the communicator's device"))
    }

    /// Refuses memory of another device.
    #[inline]
    pub(crate) fn same_places(&self, operation: &Operation<'_>) -> Result<()> {
        for memory in operation.memory.iter().flatten() {
            if memory.place() != self.inner.place {
                return Err(self.other_device("buffer", memory.place()));
            }
        }
        Ok(())
    }

    /// This rank's part of a buffer that holds one part per rank. With a length that does not
    /// divide, the operation's rule refuses the counts.
    pub(crate) fn own_part(&self, whole: RecvBuf) -> RecvBuf {
        let count = whole.count / self.size();
        whole.part(self.rank() as usize * count, count)
    }

    /// Root's part of a buffer and the whole; elsewhere the whole is the part.
    pub(crate) fn rooted_parts(&self, buffer: RecvBuf, root: Rank) -> (RecvBuf, Option<RecvBuf>) {
        if root == self.info().rank {
            (self.own_part(buffer), Some(buffer))
        } else {
            (buffer, None)
        }
    }

    /// Memory for barrier and warm-up, whose contents mean nothing.
    pub(crate) fn scratch(&self) -> Result<(RecvBuf, &Arc<Allocation>)> {
        let scratch = match self.scratch.get() {
            Some(scratch) => scratch,
            None => {
                let buffer = Buffer::zeros(&self.new_stream()?, 2 * self.size())?;
                self.scratch.get_or_init(|| buffer)
            }
        };
        Ok((RecvBuf::typed(scratch.as_ptr(), scratch.len()), scratch.view().memory()))
    }

    #[inline]
    fn raw(&self) -> &AnyComm {
        self.inner.raw()
    }
}

impl fmt::Debug for Communicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Communicator").field(self.info()).finish()
    }
}

/// The operations of a communicator, enqueued on a stream one by one.
///
/// Each call checks its arguments, orders the stream after the buffers' last use, enqueues, and
/// returns; the results are there when the stream has passed it.
#[derive(Clone, Copy, Debug)]
pub struct On<'a> {
    comm: &'a Communicator,
    stream: &'a Stream,
    config: Option<&'a CallConfig>,
}

impl<'a> On<'a> {
    /// The same, with a configuration for each collective that is called on it.
    ///
    /// ```
    /// use collectives::{CallConfig, ReduceOp, mock};
    ///
    /// mock::run(2, |comm| {
    ///     let stream = comm.new_stream()?;
    ///     let mut buffer = stream.zeros::<f32>(1024)?;
    ///     let few = CallConfig::new().with_ctas(1..=4);
    ///     comm.on(&stream).with_config(&few).all_reduce_in_place(&mut buffer, ReduceOp::Sum)
    /// })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// See [`Launch::with_config`](collectives_core::Launch::with_config).
    #[must_use]
    pub const fn with_config(mut self, config: &'a CallConfig) -> Self {
        self.config = Some(config);
        self
    }
}

impl On<'_> {
    operations!(self, 'b, ['b]);

    pub(crate) fn comm(&self) -> &Communicator {
        self.comm
    }

    pub(crate) fn stream(&self) -> &Stream {
        self.stream
    }

    #[inline]
    fn submit(&self, operation: Operation<'_>) -> Result<()> {
        self.enqueue(&operation).map_err(|error| operation.refused(error))
    }

    #[inline]
    fn enqueue(&self, operation: &Operation<'_>) -> Result<()> {
        self.comm.same_place(self.stream)?;
        self.comm.same_places(operation)?;
        self.comm.not_in_raw_group()?;
        refuse_in_capture(operation.call.name())?;
        self.stream.not_captured_by_others(operation.call.name())?;
        let _locked = order_all(&operation.memory, self.stream)?;
        // SAFETY: the buffers are of this device and as long as they say, and are freed only
        // after the stream has passed their last use, before which every other use is ordered;
        // the stream is of this device and alive while work is enqueued on it. That the ranks
        // agree no single rank can know: `Communicator` names it as the limit of this layer.
        let issue = || unsafe { operation.issue(self.comm.raw(), self.stream) };
        let inner = &self.comm.inner;
        inner.enqueue(self.stream, operation.call.name(), operation.site, issue)?;
        inner.connected(operation.call.makes());
        Ok(())
    }
}

impl CommInner {
    #[inline]
    pub(crate) fn raw(&self) -> &AnyComm {
        match &self.comm {
            Some(comm) => comm,
            None => unreachable!("the communicator is taken out only together with its owner"),
        }
    }

    /// Runs what enqueues an operation on `stream`, and notes that it did.
    #[inline]
    pub(crate) fn enqueue(
        &self,
        stream: &Stream,
        name: &'static str,
        site: &'static Location<'static>,
        issue: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let number = self.expect(stream, name, site);
        let issued = issue();
        self.expected(stream, number, issued.is_ok());
        issued
    }

    /// Tells the watchdog, if there is one, of an operation that is about to be enqueued.
    #[inline]
    pub(crate) fn expect(
        &self,
        stream: &Stream,
        name: &'static str,
        site: &'static Location<'static>,
    ) -> Option<u64> {
        self.watched.get().map(|watched| watched.calls(stream, name, site))
    }

    /// Notes on the stream that an operation may have been enqueued, and tells the watchdog whether
    /// it was.
    #[inline]
    pub(crate) fn expected(&self, stream: &Stream, number: Option<u64>, done: bool) {
        stream.note(self.info.id, &self.handle, self.watched.get());
        if let (Some(watched), Some(number)) = (self.watched.get(), number) {
            watched.issued(stream, number, done);
        }
    }

    /// Notes what the library has connected.
    #[inline]
    pub(crate) fn connected(&self, made: Connections) {
        if !made.are_in(self.connected.load(Ordering::Relaxed)) {
            self.connected.fetch_or(made.bits(), Ordering::Relaxed);
        }
    }

    /// Refuses to capture what the library would have to connect for.
    pub(crate) fn check_connected(&self, call: &Call<'_>) -> Result<()> {
        if call.uses().are_in(self.connected.load(Ordering::Relaxed)) {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::InvalidUsage,
            "captured before the communicator has run it: libraries connect on first use, which no \
             capture can hold",
        )
        .with_comm(&self.info)
        .with_operation(call.name())
        .with_hint("call warm_up on a stream before the capture, on every rank"))
    }

    /// The number of the next aligned graph.
    pub(crate) fn next_aligned(&self) -> u64 {
        self.aligned.fetch_add(1, Ordering::Relaxed)
    }

    /// Orders `stream` after the last launch of a graph with operations of this communicator, and
    /// makes it the last. The caller holds the device's lock until it has launched: so launches of
    /// such graphs never overlap, on whichever streams and threads.
    pub(crate) fn order_replay(&self, stream: &Stream) -> Result<()> {
        let mut last = self.replayed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = &*last
            && last.id() != stream.id()
        {
            stream.follow(last)?;
        }
        *last = Some(stream.clone());
        Ok(())
    }

    /// Refuses where the communicator has given its memory back.
    pub(crate) fn check_active(&self) -> Result<()> {
        if !self.suspended.load(Ordering::SeqCst) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::InvalidUsage, "the communicator is suspended")
            .with_comm(&self.info)
            .with_hint("resume it first"))
    }

    /// Why its results must not be trusted, with what was pending, where that is known.
    pub(crate) fn failure(&self) -> Option<Error> {
        let failure = self.handle.failure()?;
        Some(match self.watched.get() {
            Some(watched) => watched.explain(failure),
            None => failure,
        })
    }

    /// Takes the library's memory back, from any thread.
    pub(crate) fn give_back(
        &self,
        registration: Option<RawRegistration>,
        ptr: *mut c_void,
        after: Option<Stream>,
    ) {
        self.returned().memory.push(ReturnedMemory { registration, ptr, after });
    }

    /// Takes a reduce op back, from any thread.
    pub(crate) fn give_back_op(&self, op: PreMulSum) {
        self.returned().ops.push(op);
    }

    /// Takes a block of the heap back, from any thread.
    pub(crate) fn give_back_block(&self, number: u64, after: Option<Stream>) {
        self.returned().blocks.push((number, after));
    }

    /// The blocks that were given back since the last time.
    pub(crate) fn take_blocks(&self) -> Vec<(u64, Option<Stream>)> {
        std::mem::take(&mut self.returned().blocks)
    }

    /// The symmetric heap, for the thread that may call on the communicator.
    pub(crate) fn heap(&self) -> MutexGuard<'_, Option<Heap>> {
        self.heap.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn device(&self) -> &AnyDevice {
        &self.device
    }

    /// Frees the symmetric heap, of which no buffer is left.
    fn end_heap(&mut self) {
        let blocks = self.take_blocks();
        let heap = self.heap.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let (Some(heap), Some(comm)) = (heap, &self.comm) {
            heap.end(comm, &self.device, blocks, LAST_USE);
        }
    }

    fn returned(&self) -> MutexGuard<'_, Returned> {
        self.returned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives back to the library what was given up and is not in use any more, waiting at most
    /// `limit` for all of it. Called by the thread that may call on the communicator.
    fn collect_returned(&self, limit: Duration) {
        let Some(comm) = &self.comm else { return };
        let (memory, ops) = {
            let mut returned = self.returned();
            (std::mem::take(&mut returned.memory), std::mem::take(&mut returned.ops))
        };
        for op in ops {
            log(comm.destroy_pre_mul_sum(op), "a reduce op could not be destroyed");
        }
        let until = Instant::now() + limit;
        for memory in memory {
            let left = until.saturating_duration_since(Instant::now());
            // Neither deregistering nor freeing waits for streams. The device is asked alone: that
            // the communicator was aborted is no reason to keep its memory.
            let drained = memory.after.as_ref().map_or(Ok(()), |stream| {
                // SAFETY: the stream is alive, and of this device.
                unsafe { self.device.synchronize(stream.as_raw(), Some(left)) }
            });
            match drained {
                Ok(()) => memory.free(comm),
                Err(error) if error.kind() == ErrorKind::Timeout => {
                    // For the next time. If there is none, it is in use for ever, and leaked.
                    self.returned().memory.push(memory);
                }
                Err(error) => tracing::warn!(%error, "memory of a broken device is leaked"),
            }
        }
    }
}

impl ReturnedMemory {
    fn free(self, comm: &AnyComm) {
        if let Some(registration) = self.registration {
            // SAFETY: the registration is this communicator's, and the buffer that held it is gone.
            match unsafe { comm.deregister(registration) } {
                // With the communicator went its registrations.
                Err(error) if error.kind() == ErrorKind::Aborted => {}
                outcome => log(outcome, "memory could not be deregistered"),
            }
        }
        // SAFETY: from `mem_alloc` of this communicator, deregistered, and not in use.
        log(unsafe { comm.mem_free(self.ptr) }, "memory of the library could not be freed");
    }
}

impl Drop for CommInner {
    fn drop(&mut self) {
        if let Some(watched) = self.watched.get() {
            watched.end();
        }
        self.collect_returned(LAST_USE);
        self.end_heap();
    }
}

fn log(outcome: Result<()>, what: &str) {
    if let Err(error) = outcome {
        tracing::warn!(%error, "{what}");
    }
}

/// How long the last uses of the library's memory may take once the communicator is going.
const LAST_USE: Duration = Duration::from_secs(5);
