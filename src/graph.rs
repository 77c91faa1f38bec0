//! Captured operations that can be launched again and again.

use std::{
    any::Any,
    cell::{Cell, RefCell},
    fmt,
    marker::PhantomData,
    panic::Location,
    sync::Arc,
    time::Duration,
};

use collectives_core::{
    CallConfig, Device, Element, Error, ErrorKind, Rank, RawGraph, RawStream, RecvBuf, Result,
};

use crate::{
    AnyDevice, Communicator, Group, Op, Recorder, Slice, SliceMut, Stream,
    buffer::Allocation,
    communicator::CommInner,
    group::{self, Refusal},
    operation::{Call, Operation, operations},
    place::{Locked, Place},
    reduce::OpKeep,
    stream::named,
};

/// Operations captured by [`Communicator::capture`], to be launched any number of times.
///
/// It owns what was captured into it: communicators, buffers, reduce ops, and what other code
/// [gave it](Scope::keep). So graphs always die before communicators. Launches and other uses of the
/// buffers are ordered one after the other.
///
/// Every rank captures and launches the same, in the same order, as with any operation.
///
/// # Threads
/// `Send`, not `Sync`. Graphs that share a communicator may be launched by different threads, on
/// different streams: launches are enqueued one at a time under the device's lock, and each run waits
/// for the last run of a graph with any of its communicators. NCCL wants both, since runs that overlap
/// mix up their operations. In which order threads launch is theirs to settle, and is the same on all
/// ranks; [`AlignedGraph`](crate::AlignedGraph) finds out where it is not. Operations on streams beside
/// a run are ordered by NCCL itself, unless `NCCL_GRAPH_MIXING_SUPPORT=0` forbids it to.
///
/// ```
/// use collectives::{Communicator, JoinAllConfig, ReduceOp, backend_named};
/// # fn main() -> collectives::Result<()> {
/// let backend = backend_named("mock")?;
/// let comm = Communicator::join_all(&backend, JoinAllConfig::new([0]))?.remove(0);
/// let stream = comm.new_stream()?;
/// comm.on(&stream).warm_up()?;
/// let mut input = stream.zeros::<f32>(2)?;
/// let mut output = stream.zeros::<f32>(2)?;
/// let graph =
///     comm.capture(|scope| scope.on(&comm).all_reduce(&input, &mut output, ReduceOp::Sum))?;
/// for step in [1.0, 2.0] {
///     input.copy_from_slice(&[step, step], &stream)?;
///     graph.launch(&stream)?;
///     assert_eq!(output.to_vec(&stream)?, [step, step]);
/// }
/// # Ok(()) }
/// ```
#[doc(alias = "cudaGraphExec_t")]
pub struct Graph {
    device: AnyDevice,
    place: Place,
    raw: RawGraph,
    kept: Kept,
    /// Where it was launched last, if values of other code have to outlive its runs.
    last: RefCell<Option<Stream>>,
    not_sync: PhantomData<Cell<()>>,
}

// SAFETY: the communicators are kept alive and asked through their handles, which any thread may
// do; nothing here calls on them.
unsafe impl Send for Graph {}

impl Graph {
    #[track_caller]
    pub(crate) fn capture(
        comm: &Communicator,
        body: impl FnOnce(&Scope) -> Result<()>,
    ) -> Result<Self> {
        refuse_in_capture("capture")?;
        // A stream that nobody else can enqueue on, so that nothing strays into the capture.
        let stream = comm.new_stream()?;
        // SAFETY: the stream is alive, and of this device.
        unsafe { comm.device().begin_capture(stream.as_raw()) }?;
        let scope = Scope {
            stream,
            open: Cell::new(true),
            kept: RefCell::default(),
            refusal: Refusal::default(),
        };
        {
            let _open = Open::enter();
            body(&scope)?;
        }
        scope.finish()
    }

    /// Enqueues one run on `stream`.
    ///
    /// # Errors
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) for a stream of another device; the failure
    /// of a captured communicator, or of one that `stream` answers for; what the device's runtime
    /// reports.
    #[doc(alias = "cudaGraphLaunch")]
    #[track_caller]
    pub fn launch(&self, stream: &Stream) -> Result<()> {
        if stream.place() != self.place {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("the stream is on {}, the graph on {}", stream.place(), self.place),
            )
            .with_operation("launch"));
        }
        refuse_in_capture("launch")?;
        stream.not_captured_by_others("launch")?;
        stream.failure().map_err(|error| named(error, "launch"))?;
        if let Some(error) = self.kept.comms.iter().find_map(|comm| comm.failure()) {
            return Err(named(error, "launch"));
        }
        self.kept.comms.iter().try_for_each(|comm| comm.check_active())?;
        let _locked = Locked::new([self.place]);
        self.kept.comms.iter().try_for_each(|comm| comm.order_replay(stream))?;
        for memory in &self.kept.memory {
            memory.order(stream)?;
        }
        let site = Location::caller();
        let expect = |comm: &Arc<CommInner>| comm.expect(stream, "launch", site);
        let numbers: Vec<_> = self.kept.comms.iter().map(expect).collect();
        // SAFETY: all that was captured is kept by this graph, and the stream was ordered after
        // its last use.
        let launched = unsafe { self.device.launch(self.raw, stream.as_raw()) };
        if !self.kept.values.is_empty() {
            self.last.replace(Some(stream.clone()));
        }
        for (comm, number) in self.kept.comms.iter().zip(numbers) {
            comm.expected(stream, number, launched.is_ok());
        }
        launched
    }

    /// The runtime's handle. It stays owned by this graph.
    pub fn as_raw(&self) -> RawGraph {
        self.raw
    }
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Graph")
            .field("place", &self.place)
            .field("kept", &self.kept)
            .finish_non_exhaustive()
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        destroy(&self.device, self.raw);
        // Memory is freed in the order of streams; of values of other code nothing is known, so their
        // last run is waited for. Runs of one graph do not overlap.
        let Some(last) = self.last.take() else { return };
        // SAFETY: the stream is alive, and of this device.
        if let Err(error) = unsafe { self.device.synchronize(last.as_raw(), Some(LAST_RUN)) } {
            tracing::warn!(%error, "what a graph kept for other code is leaked");
            std::mem::forget(std::mem::take(&mut self.kept.values));
        }
    }
}

/// How long the last run of a graph may take once the graph is going.
const LAST_RUN: Duration = Duration::from_secs(5);

/// What is being captured into a [`Graph`].
///
/// Operations run one after the other when the graph is launched, so one may read what another
/// wrote.
#[derive(Debug)]
pub struct Scope {
    /// Nobody else can reach it: what is enqueued on it goes through this scope, which keeps it.
    stream: Stream,
    /// Whether the stream is still capturing.
    open: Cell<bool>,
    kept: RefCell<Kept>,
    refusal: Refusal,
}

impl Scope {
    /// Operations of `comm`, captured one by one.
    pub fn on<'a>(&'a self, comm: &'a Communicator) -> CaptureOn<'a> {
        CaptureOn { scope: self, comm, config: None }
    }

    /// Operations that start together when the graph runs; see [`group`](crate::group()).
    ///
    /// # Errors
    /// The error of `body`; else the first refusal in it. Nothing of the capture is kept then.
    pub fn group<'env, R>(
        &'env self,
        body: impl FnOnce(CaptureGroup<'_, 'env>) -> Result<R>,
    ) -> Result<R> {
        let body = |group: &Group<'env>| body(CaptureGroup { group, stream: &self.stream });
        let keep = |comm: &Communicator, operation: &Operation<'_>| {
            comm.inner().check_connected(&operation.call)?;
            self.kept.borrow_mut().add(comm, operation)
        };
        self.refusal.noting(group::capture(body, keep))
    }

    /// Has other code enqueue its own work: kernels, products of cuBLAS, copies. It comes behind what
    /// was captured before, and before what follows.
    ///
    /// The memory of buffers goes in by [`reads`](Self::reads) and [`writes`](Self::writes), anything
    /// else by [`keep`](Self::keep). On CUDA the stream is a `CUstream`, on HIP a `hipStream_t`, whose
    /// device is current; a function of the host is `cuLaunchHostFunc`, and on the mock
    /// [`MockDevice::call`](crate::mock::MockDevice::call).
    ///
    /// ```
    /// use collectives::{AnyDevice, Communicator, JoinAllConfig, ReduceOp, backend_named};
    /// # use std::ffi::c_void;
    ///
    /// /// Stands for a kernel: doubles a float of the mock's memory, which is the host's.
    /// unsafe extern "C" fn double(value: *mut c_void) {
    ///     // SAFETY: it is called with a float's place, which the graph keeps.
    ///     unsafe { *value.cast::<f32>() *= 2.0 };
    /// }
    ///
    /// # fn main() -> collectives::Result<()> {
    /// let backend = backend_named("mock")?;
    /// let comm = Communicator::join_all(&backend, JoinAllConfig::new([0]))?.remove(0);
    /// let stream = comm.new_stream()?;
    /// comm.on(&stream).warm_up()?;
    /// let mut value = stream.upload(&[1.0_f32])?;
    /// let graph = comm.capture(|scope| {
    ///     let place = scope.writes(&mut value)?;
    ///     // SAFETY: it enqueues on this stream alone, and the graph keeps the value.
    ///     unsafe {
    ///         scope.launch_with(|raw| match scope.device() {
    ///             AnyDevice::Mock(device) => device.call(raw, double, place.cast()),
    ///             _ => unreachable!("the mock was asked for"),
    ///         })
    ///     }?;
    ///     scope.on(&comm).all_reduce_in_place(&mut value, ReduceOp::Sum)
    /// })?;
    /// graph.launch(&stream)?;
    /// graph.launch(&stream)?;
    /// assert_eq!(value.to_vec(&stream)?, [4.0]);
    /// # Ok(()) }
    /// ```
    ///
    /// # Safety
    /// `enqueue` enqueues on this stream alone, or on streams that it forks from it by an event and
    /// joins again before it returns; it does not end the capture. What its work uses lives as long
    /// as the graph and any run of it, and its memory is used by nothing else meanwhile, except
    /// through buffers named to `reads` (not written) and `writes`.
    ///
    /// # Errors
    /// Those of `enqueue`; [`InvalidUsage`](ErrorKind::InvalidUsage) where the stream captures no
    /// longer. Nothing of the capture is kept then.
    pub unsafe fn launch_with<R>(&self, enqueue: impl FnOnce(RawStream) -> Result<R>) -> Result<R> {
        let raw = self.stream.as_raw();
        let check = |value| {
            // SAFETY: the stream is alive, and of this device.
            if unsafe { self.device().is_capturing(raw) }? {
                return Ok(value);
            }
            Err(Error::new(ErrorKind::InvalidUsage, "other code has ended the capture")
                .with_operation("launch_with"))
        };
        self.refusal
            .noting(self.device().make_current().and_then(|()| enqueue(raw)).and_then(check))
    }

    /// Has the graph keep what `from` views, for other code to read it by the pointer. Uses of the
    /// buffer beside the graph's runs are ordered, as with operations.
    ///
    /// # Errors
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) for memory of another device.
    pub fn reads<'a, T: Element>(&self, from: impl Into<Slice<'a, T>>) -> Result<*const T> {
        let from = from.into();
        self.keep_memory(from.memory())?;
        Ok(from.raw().ptr.cast())
    }

    /// As [`reads`](Self::reads), for other code to write it.
    ///
    /// # Errors
    /// As [`reads`](Self::reads).
    pub fn writes<'a, T: Element>(&self, to: impl Into<SliceMut<'a, T>>) -> Result<*mut T> {
        let to = to.into();
        self.keep_memory(to.memory())?;
        Ok(to.raw().ptr.cast())
    }

    /// Has the graph keep a value until it is dropped, and runs of it have ended: a handle or memory
    /// that work of other code uses.
    pub fn keep<T: Send + 'static>(&self, value: T) {
        self.kept.borrow_mut().values.push(Box::new(value));
    }

    /// The device that is captured on.
    pub fn device(&self) -> &AnyDevice {
        self.stream.device()
    }

    fn keep_memory(&self, memory: &Arc<Allocation>) -> Result<()> {
        let (theirs, place) = (memory.place(), self.stream.place());
        if theirs != place {
            let text = format!("the buffer is on {theirs}, the capture on {place}");
            let error = Error::new(ErrorKind::InvalidArgument, text).with_operation("capture");
            return self.refusal.noting(Err(error));
        }
        self.refusal.noting(self.kept.borrow_mut().add_memory(memory))
    }

    #[track_caller]
    fn finish(self) -> Result<Graph> {
        self.refusal.check("capture", "captured")?;
        let (device, place) = (self.stream.device().clone(), self.stream.place());
        self.open.set(false);
        // SAFETY: this thread began the capture; what was captured lives as long as the graph.
        let raw = unsafe { device.end_capture(self.stream.as_raw()) }?;
        let (kept, last) = (self.kept.take(), RefCell::default());
        Ok(Graph { device, place, raw, kept, last, not_sync: PhantomData })
    }
}

impl Drop for Scope {
    /// Where the body failed or unwinds, nothing is kept.
    fn drop(&mut self) {
        if !self.open.get() {
            return;
        }
        let device = self.stream.device();
        // SAFETY: this thread began the capture, and the graph is destroyed before what it uses.
        if let Ok(raw) = unsafe { device.end_capture(self.stream.as_raw()) } {
            destroy(device, raw);
        }
    }
}

/// An open group inside a capture.
#[derive(Debug)]
pub struct CaptureGroup<'group, 'env> {
    group: &'group Group<'env>,
    stream: &'env Stream,
}

impl<'group, 'env> CaptureGroup<'group, 'env> {
    /// Operations of `comm`, to start together with the others of the group.
    pub fn on(&self, comm: &'env Communicator) -> Recorder<'group, 'env> {
        self.group.on(comm, self.stream)
    }
}

/// The operations of a communicator, captured one by one.
#[derive(Clone, Copy, Debug)]
pub struct CaptureOn<'a> {
    scope: &'a Scope,
    comm: &'a Communicator,
    config: Option<&'a CallConfig>,
}

impl<'a> CaptureOn<'a> {
    /// As [`On::with_config`](crate::On::with_config).
    #[must_use]
    pub const fn with_config(mut self, config: &'a CallConfig) -> Self {
        self.config = Some(config);
        self
    }
}

impl CaptureOn<'_> {
    operations!(self, 'b, ['b]);

    fn comm(&self) -> &Communicator {
        self.comm
    }

    fn submit(&self, operation: Operation<'_>) -> Result<()> {
        let Self { scope, comm, .. } = *self;
        let issue = || {
            comm.same_place(&scope.stream)?;
            comm.same_places(&operation)?;
            comm.not_in_raw_group()?;
            comm.inner().check_connected(&operation.call)?;
            scope.kept.borrow_mut().add(comm, &operation)?;
            // SAFETY: all that the operation uses is kept by the graph, whose launches are ordered
            // after every other use.
            unsafe { operation.issue(comm.as_comm(), &scope.stream) }
        };
        scope.refusal.noting(issue().map_err(|error| operation.refused(error)))
    }
}

/// What a graph keeps alive.
#[derive(Default)]
struct Kept {
    memory: Vec<Arc<Allocation>>,
    ops: Vec<Arc<OpKeep>>,
    comms: Vec<Arc<CommInner>>,
    /// Of other code.
    values: Vec<Box<dyn Any + Send>>,
}

impl Kept {
    fn add(&mut self, comm: &Communicator, operation: &Operation<'_>) -> Result<()> {
        keep(&mut self.comms, comm.inner());
        for memory in operation.memory.iter().flatten() {
            self.add_memory(memory)?;
        }
        if let Some(op) = &operation.op {
            keep(&mut self.ops, op);
        }
        Ok(())
    }

    /// While it is borrowed, so that no use of its buffer is under way.
    fn add_memory(&mut self, memory: &Arc<Allocation>) -> Result<()> {
        memory.not_lent()?;
        memory.share();
        keep(&mut self.memory, memory);
        Ok(())
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept")
            .field("buffers", &self.memory.len())
            .field("ops", &self.ops.len())
            .field("communicators", &self.comms.len())
            .field("values", &self.values.len())
            .finish()
    }
}

fn destroy(device: &AnyDevice, raw: RawGraph) {
    // SAFETY: the only holder gives the handle up; runs already enqueued still complete.
    if let Err(error) = unsafe { device.graph_destroy(raw) } {
        tracing::warn!(%error, "a graph could not be destroyed");
    }
}

fn keep<T>(list: &mut Vec<Arc<T>>, item: &Arc<T>) {
    if !list.iter().any(|known| Arc::ptr_eq(known, item)) {
        list.push(Arc::clone(item));
    }
}

/// While it lives, this thread captures.
struct Open;

impl Open {
    fn enter() -> Self {
        CAPTURES.set(true);
        Self
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        CAPTURES.set(false);
    }
}

/// Refuses what would not be captured but run now, or cannot be done, while this thread captures.
#[inline]
pub(crate) fn refuse_in_capture(operation: &'static str) -> Result<()> {
    if !CAPTURES.get() {
        return Ok(());
    }
    Err(in_capture(operation))
}

#[cold]
fn in_capture(operation: &'static str) -> Error {
    Error::new(ErrorKind::InvalidUsage, "this thread is capturing, and this would not be captured")
        .with_operation(operation)
        .with_hint("operations of the graph go through the scope: scope.on(&comm); others wait")
}

thread_local! {
    static CAPTURES: Cell<bool> = const { Cell::new(false) };
}
