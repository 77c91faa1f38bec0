//! Captured operations that can be launched again and again.

use std::{
    cell::{Cell, RefCell},
    fmt,
    marker::PhantomData,
    panic::Location,
    sync::Arc,
};

use collectives_core::{Device, Element, Error, ErrorKind, Rank, RawGraph, RecvBuf, Result};

use crate::{
    AnyDevice, Communicator, Group, Op, Recorder, Slice, SliceMut, Stream,
    buffer::Allocation,
    communicator::CommInner,
    group::{self, Refusal},
    operation::{Call, Operation, operations},
    place::{Locked, Place},
    reduce::OpKeep,
};

/// Operations captured by [`Communicator::capture`], to be launched any number of times.
///
/// It owns what was captured into it: communicators, buffers, reduce ops. So graphs always die
/// before communicators. Launches and other uses of the buffers are ordered one after the other.
///
/// Every rank captures and launches alike, in the same order, like any operation.
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
        body(&scope)?;
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
        let unnamed = |error: Error| match error.operation() {
            None => error.with_operation("launch"),
            Some(_) => error,
        };
        stream.failure().map_err(unnamed)?;
        if let Some(error) = self.kept.comms.iter().find_map(|comm| comm.failure()) {
            return Err(unnamed(error));
        }
        self.kept.comms.iter().try_for_each(|comm| comm.check_active())?;
        let _locked = Locked::new([self.place]);
        for memory in &self.kept.memory {
            memory.order(stream)?;
        }
        let site = Location::caller();
        let expect = |comm: &Arc<CommInner>| comm.expect(stream, "launch", site);
        let numbers: Vec<_> = self.kept.comms.iter().map(expect).collect();
        // SAFETY: all that was captured is kept by this graph, and the stream was ordered after
        // its last use.
        let launched = unsafe { self.device.launch(self.raw, stream.as_raw()) };
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
    }
}

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
        CaptureOn { scope: self, comm }
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
            self.kept.borrow_mut().add(comm, operation);
        };
        self.refusal.noting(group::capture(body, keep))
    }

    #[track_caller]
    fn finish(self) -> Result<Graph> {
        self.refusal.check("capture", "captured")?;
        let (device, place) = (self.stream.device().clone(), self.stream.place());
        self.open.set(false);
        // SAFETY: this thread began the capture; what was captured lives as long as the graph.
        let raw = unsafe { device.end_capture(self.stream.as_raw()) }?;
        Ok(Graph { device, place, raw, kept: self.kept.take(), not_sync: PhantomData })
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
}

impl CaptureOn<'_> {
    operations!(self, 'b, ['b]);

    fn comm(&self) -> &Communicator {
        self.comm
    }

    fn submit(&self, operation: Operation<'_>) -> Result<()> {
        let Self { scope, comm } = *self;
        let issue = || {
            comm.same_place(&scope.stream)?;
            comm.same_places(&operation)?;
            comm.not_in_raw_group()?;
            scope.kept.borrow_mut().add(comm, &operation);
            // SAFETY: all that the operation uses is kept by the graph, whose launches are ordered
            // after every other use.
            unsafe { operation.issue(comm.as_comm(), &scope.stream, None) }
        };
        scope.refusal.noting(issue())
    }
}

/// What a graph keeps alive.
#[derive(Default)]
struct Kept {
    memory: Vec<Arc<Allocation>>,
    ops: Vec<Arc<OpKeep>>,
    comms: Vec<Arc<CommInner>>,
}

impl Kept {
    fn add(&mut self, comm: &Communicator, operation: &Operation<'_>) {
        keep(&mut self.comms, comm.inner());
        for &memory in operation.memory.iter().flatten() {
            // While it is borrowed, so that no use of its buffer is under way.
            memory.share();
            keep(&mut self.memory, memory);
        }
        if let Some(op) = &operation.op {
            keep(&mut self.ops, op);
        }
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept")
            .field("buffers", &self.memory.len())
            .field("ops", &self.ops.len())
            .field("communicators", &self.comms.len())
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
