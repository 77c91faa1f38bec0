//! The decode step of a multilayer perceptron, tensor-parallel: each rank holds a share of the hidden
//! units, and one all-reduce per layer adds up what they contribute. The whole step is one graph, with
//! the matrix products between the collectives, and is checked against one rank that computes the whole.
//!
//! ```console
//! $ cargo run --release --example tensor_parallel_mlp -- --backend nccl -n 2   # a GPU for each rank
//! $ cargo run --release --example tensor_parallel_mlp -- --backend mock -n 4
//! $ collectives launch -n 2 -- target/release/examples/tensor_parallel_mlp      # ranks as processes
//! ```
//!
//! On CUDA the products are cuBLAS's, opened at run time; on the mock they are functions of the host in
//! the stream. `--skip-all-reduce` shows that the check would notice.

use std::{
    cell::RefCell,
    ffi::{c_int, c_void},
    fmt,
    ops::Range,
    process::ExitCode,
    ptr,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use clap::Parser;
use collectives::{
    AnyDevice, Buffer, Communicator, Error, ErrorKind, JoinAllConfig, RawStream, ReduceOp, Result,
    Scope, Stream, WorldConfig, mock::MockDevice, nccl::CudaDevice,
};
use cudarc::cublas::sys::{
    self as cublas, cublasHandle_t, cublasOperation_t, cublasSideMode_t, cublasStatus_t,
};

/// A tensor-parallel multilayer perceptron, eagerly and in a graph
#[derive(Clone, Debug, Parser)]
pub(crate) struct Options {
    /// Backend: nccl, mock or auto
    #[arg(long, default_value = "auto")]
    pub(crate) backend: String,

    /// Number of ranks, as threads [default: the ranks of a launcher, else one]
    #[arg(short = 'n', long)]
    pub(crate) ranks: Option<usize>,

    /// Length of a layer's input and output
    #[arg(long, default_value = "512")]
    pub(crate) model: usize,

    /// Hidden units of a layer, over which ranks share
    #[arg(long, default_value = "2048")]
    pub(crate) hidden: usize,

    /// Number of layers
    #[arg(long, default_value = "4")]
    pub(crate) layers: usize,

    /// Number of steps that are timed
    #[arg(long, default_value = "100")]
    pub(crate) steps: u32,

    /// Leaves the all-reduces out, to see the check fail
    #[arg(long)]
    pub(crate) skip_all_reduce: bool,
}

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    match run(&Options::parse()) {
        Ok(report) => {
            if report.rank == 0 {
                println!("{report}");
            }
            ExitCode::from(u8::from(!report.is_right()))
        }
        Err(error) => {
            eprintln!("tensor_parallel_mlp: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs all ranks on threads; or this one, where a launcher has started the others.
pub(crate) fn run(options: &Options) -> Result<Report> {
    let backend = collectives::backend_named(&options.backend)?;
    let Some(ranks) = options.ranks else {
        let world = WorldConfig::new().with_backend(backend).open()?;
        return rank(&world.communicator("mlp")?, options);
    };
    let devices: Vec<_> = (0..ranks).collect();
    let comms = Communicator::join_all(&backend, JoinAllConfig::new(devices))?;
    thread::scope(|scope| {
        let run = |comm| scope.spawn(move || rank(&comm, options));
        let threads: Vec<_> = comms.into_iter().map(run).collect();
        let reports = threads.into_iter().map(|thread| thread.join().expect("a rank panicked"));
        let reports: Result<Vec<_>> = reports.collect();
        Ok(reports?.swap_remove(0))
    })
}

/// What each rank does.
fn rank(comm: &Communicator, options: &Options) -> Result<Report> {
    let stream = comm.new_stream()?;
    comm.on(&stream).warm_up()?;
    let products = Products::new(comm.device())?;
    let (rank, size) = (comm.rank() as usize, comm.size());
    if options.hidden < size {
        let text = format!("{} hidden units are too few for {size} ranks", options.hidden);
        return Err(Error::new(ErrorKind::InvalidArgument, text));
    }
    let share = options.hidden * rank / size..options.hidden * (rank + 1) / size;
    let mut part = Mlp::new(&stream, options, share)?;
    let mut whole = Mlp::new(&stream, options, 0..options.hidden)?;
    let summing = (!options.skip_all_reduce).then_some(comm);

    let graph = comm.capture_aligned(|scope| {
        part.forward(&products, &Lane::Captured { scope, comm: summing })
    })?;
    let eager = Lane::Eager { stream: &stream, comm: summing };
    let alone = Lane::Eager { stream: &stream, comm: None };

    let mut errors = [0.0_f32; 2];
    for step in 0..CHECKED {
        let input = values(options.model, |index| noise([3, u64::from(step), index as u64, 0]));
        whole.input.copy_from_slice(&input, &stream)?;
        part.input.copy_from_slice(&input, &stream)?;
        whole.forward(&products, &alone)?;
        let want = whole.output().to_vec(&stream)?;
        part.forward(&products, &eager)?;
        errors[0] = errors[0].max(difference(&part.output().to_vec(&stream)?, &want));
        part.forget_output(&stream)?;
        graph.launch_step(u64::from(step), &stream)?;
        errors[1] = errors[1].max(difference(&part.output().to_vec(&stream)?, &want));
        products.clear();
    }
    // The worst of all ranks.
    let mut worst = stream.upload(&errors)?;
    comm.on(&stream).all_reduce_in_place(&mut worst, ReduceOp::Max)?;
    let errors = worst.to_vec(&stream)?;

    let times = [
        time(comm, &stream, options.steps, || part.forward(&products, &eager))?,
        time(comm, &stream, options.steps, || graph.launch(&stream))?,
    ];
    let library = &comm.info().library;
    let title = format!(
        "{} {}, {size} rank{}, {} layers of {} × {}",
        library.backend,
        library.version,
        if size == 1 { "" } else { "s" },
        options.layers,
        options.model,
        options.hidden
    );
    Ok(Report { rank: comm.rank(), title, errors: [errors[0], errors[1]], times })
}

/// The time of one of so many steps.
fn time(
    comm: &Communicator,
    stream: &Stream,
    steps: u32,
    mut step: impl FnMut() -> Result<()>,
) -> Result<Duration> {
    step()?;
    comm.on(stream).barrier()?;
    stream.synchronize()?;
    let begun = Instant::now();
    (0..steps).try_for_each(|_| step())?;
    stream.synchronize()?;
    Ok(begun.elapsed() / steps.max(1))
}

/// One rank's share of the layers, and what flows through them.
struct Mlp {
    input: Buffer<f32>,
    layers: Vec<Layer>,
}

/// `output = down · (up · input)²`, of which this rank has some hidden units: rows of `up`, columns of
/// `down`. The sum over all ranks is the layer's output.
struct Layer {
    up: Buffer<f32>,
    down: Buffer<f32>,
    hidden: Buffer<f32>,
    active: Buffer<f32>,
    output: Buffer<f32>,
}

impl Mlp {
    fn new(stream: &Stream, options: &Options, share: Range<usize>) -> Result<Self> {
        let (model, hidden) = (options.model, share.len());
        // So scaled that what flows keeps its size from layer to layer.
        let (wide, deep) = ((model as f32).sqrt(), (options.hidden as f32).sqrt());
        let layer = |layer: usize| {
            let weight = |kind, row: usize, column: usize| {
                noise([kind, layer as u64, row as u64, column as u64])
            };
            let up = values(hidden * model, |at| {
                3.0 / wide * weight(1, share.start + at / model, at % model)
            });
            let down = values(model * hidden, |at| {
                0.577 / deep * weight(2, at / hidden, share.start + at % hidden)
            });
            Ok(Layer {
                up: stream.upload(&up)?,
                down: stream.upload(&down)?,
                hidden: stream.zeros(hidden)?,
                active: stream.zeros(hidden)?,
                output: stream.zeros(model)?,
            })
        };
        let layers = (0..options.layers).map(layer).collect::<Result<_>>()?;
        Ok(Self { input: stream.zeros(model)?, layers })
    }

    /// Enqueues one step, or captures it.
    fn forward(&mut self, products: &Products, lane: &Lane<'_>) -> Result<()> {
        let mut input = &self.input;
        for layer in &mut self.layers {
            products.product(lane, &layer.up, input, &mut layer.hidden)?;
            products.square(lane, &layer.hidden, &mut layer.active)?;
            products.product(lane, &layer.down, &layer.active, &mut layer.output)?;
            lane.sum(&mut layer.output)?;
            input = &layer.output;
        }
        Ok(())
    }

    fn output(&self) -> &Buffer<f32> {
        self.layers.last().map_or(&self.input, |layer| &layer.output)
    }

    /// So that nobody takes an earlier result for a new one.
    fn forget_output(&mut self, stream: &Stream) -> Result<()> {
        let Some(layer) = self.layers.last_mut() else { return Ok(()) };
        let nothing = vec![f32::NAN; layer.output.len()];
        layer.output.copy_from_slice(&nothing, stream)
    }
}

/// Where a step goes: to a stream, or into a graph. Without a communicator nothing is summed.
enum Lane<'a> {
    Captured { scope: &'a Scope, comm: Option<&'a Communicator> },
    Eager { stream: &'a Stream, comm: Option<&'a Communicator> },
}

impl Lane<'_> {
    fn sum(&self, buffer: &mut Buffer<f32>) -> Result<()> {
        match *self {
            Self::Captured { scope, comm: Some(comm) } => {
                scope.on(comm).all_reduce_in_place(buffer, ReduceOp::Sum)
            }
            Self::Eager { stream, comm: Some(comm) } => {
                comm.on(stream).all_reduce_in_place(buffer, ReduceOp::Sum)
            }
            Self::Captured { comm: None, .. } | Self::Eager { comm: None, .. } => Ok(()),
        }
    }

    /// A buffer for work of this program's own. All of them are used on one stream.
    fn reads(&self, buffer: &Buffer<f32>) -> Result<*const f32> {
        match self {
            Self::Captured { scope, .. } => scope.reads(buffer),
            Self::Eager { .. } => Ok(buffer.as_ptr().cast_const()),
        }
    }

    fn writes(&self, buffer: &mut Buffer<f32>) -> Result<*mut f32> {
        match self {
            Self::Captured { scope, .. } => scope.writes(buffer),
            Self::Eager { .. } => Ok(buffer.as_ptr()),
        }
    }

    /// # Safety
    /// As [`Scope::launch_with`].
    unsafe fn launch_with(&self, enqueue: impl FnOnce(RawStream) -> Result<()>) -> Result<()> {
        match self {
            // SAFETY: the caller's promise.
            Self::Captured { scope, .. } => unsafe { scope.launch_with(enqueue) },
            Self::Eager { stream, .. } => enqueue(stream.as_raw()),
        }
    }
}

/// What computes.
enum Products {
    Cublas {
        handle: cublasHandle_t,
    },
    /// With what is enqueued, and not yet known to have run.
    Host {
        device: MockDevice,
        enqueued: RefCell<Vec<Arc<Job>>>,
    },
}

impl Products {
    fn new(device: &AnyDevice) -> Result<Self> {
        match device {
            AnyDevice::Mock(device) => {
                Ok(Self::Host { device: device.clone(), enqueued: RefCell::default() })
            }
            AnyDevice::Cuda(device) => Self::cublas(device),
            AnyDevice::Hip(_) => {
                Err(Error::new(ErrorKind::Unsupported, "this example has no products for HIP"))
            }
        }
    }

    fn cublas(device: &CudaDevice) -> Result<Self> {
        // SAFETY: it opens cuBLAS, whose initialisers are trusted as those of NCCL are.
        if !unsafe { cublas::is_culib_present() } {
            return Err(Error::new(ErrorKind::Library, "there is no libcublas.so")
                .with_hint("add its folder to LD_LIBRARY_PATH"));
        }
        device.make_current()?;
        let mut handle = ptr::null_mut();
        // SAFETY: `handle` outlives the call.
        blas("cublasCreate", unsafe { cublas::cublasCreate_v2(&mut handle) })?;
        Ok(Self::Cublas { handle })
    }

    /// `out = matrix · vector`; the matrix is stored row by row.
    fn product(
        &self,
        lane: &Lane<'_>,
        matrix: &Buffer<f32>,
        vector: &Buffer<f32>,
        out: &mut Buffer<f32>,
    ) -> Result<()> {
        let (rows, columns) = (out.len(), vector.len());
        assert_eq!(matrix.len(), rows * columns, "this example's own bug");
        if rows == 0 {
            return Ok(());
        }
        let (matrix, vector) = (lane.reads(matrix)?, lane.reads(vector)?);
        let out = lane.writes(out)?;
        match self {
            Self::Cublas { handle } => {
                let enqueue = |raw: RawStream| {
                    // SAFETY: handle and stream are alive.
                    let set = unsafe { cublas::cublasSetStream_v2(*handle, raw.as_ptr().cast()) };
                    blas("cublasSetStream", set)?;
                    let (rows, columns) = (rows as c_int, columns as c_int);
                    // cuBLAS counts along columns: to it, the matrix is its own transpose.
                    let transposed = cublasOperation_t::CUBLAS_OP_T;
                    let (one, zero) = (1.0, 0.0);
                    // SAFETY: all three are as long as said, and kept by the lane.
                    let done = unsafe {
                        cublas::cublasSgemv_v2(
                            *handle,
                            transposed,
                            columns,
                            rows,
                            &one,
                            matrix,
                            columns.max(1),
                            vector,
                            1,
                            &zero,
                            out,
                            1,
                        )
                    };
                    blas("cublasSgemv", done)
                };
                // SAFETY: it enqueues on that stream alone, on memory that the lane keeps.
                unsafe { lane.launch_with(enqueue) }
            }
            Self::Host { device, enqueued } => {
                let job = Job::Product { matrix, vector, out, rows, columns };
                host(lane, device, enqueued, job)
            }
        }
    }

    /// `out = from²`, element by element: the activation.
    fn square(&self, lane: &Lane<'_>, from: &Buffer<f32>, out: &mut Buffer<f32>) -> Result<()> {
        let count = from.len();
        if count == 0 {
            return Ok(());
        }
        let (from, out) = (lane.reads(from)?, lane.writes(out)?);
        match self {
            Self::Cublas { handle } => {
                let enqueue = |raw: RawStream| {
                    // SAFETY: handle and stream are alive.
                    let set = unsafe { cublas::cublasSetStream_v2(*handle, raw.as_ptr().cast()) };
                    blas("cublasSetStream", set)?;
                    let (mode, count) = (cublasSideMode_t::CUBLAS_SIDE_LEFT, count as c_int);
                    // A column, times a diagonal matrix of the same numbers.
                    // SAFETY: both are as long as said, and kept by the lane.
                    let done = unsafe {
                        cublas::cublasSdgmm(
                            *handle, mode, count, 1, from, count, from, 1, out, count,
                        )
                    };
                    blas("cublasSdgmm", done)
                };
                // SAFETY: it enqueues on that stream alone, on memory that the lane keeps.
                unsafe { lane.launch_with(enqueue) }
            }
            Self::Host { device, enqueued } => {
                host(lane, device, enqueued, Job::Square { from, out, count })
            }
        }
    }

    /// All that was enqueued has run.
    fn clear(&self) {
        if let Self::Host { enqueued, .. } = self {
            enqueued.borrow_mut().clear();
        }
    }
}

impl Drop for Products {
    fn drop(&mut self) {
        if let Self::Cublas { handle } = self {
            // SAFETY: nobody else has the handle. It waits for the device.
            let _ended = unsafe { cublas::cublasDestroy_v2(*handle) };
        }
    }
}

fn blas(what: &str, status: cublasStatus_t) -> Result<()> {
    match status {
        cublasStatus_t::CUBLAS_STATUS_SUCCESS => Ok(()),
        failure => Err(Error::new(ErrorKind::Device, format!("{what}: {failure:?}"))),
    }
}

/// Work of the host in a stream of the mock, whose memory is the host's.
enum Job {
    Product { matrix: *const f32, vector: *const f32, out: *mut f32, rows: usize, columns: usize },
    Square { from: *const f32, out: *mut f32, count: usize },
}

// SAFETY: the memory is that of buffers, which any thread may use in the order of their streams.
unsafe impl Send for Job {}
// SAFETY: as above; a job itself is never written.
unsafe impl Sync for Job {}

impl Job {
    /// # Safety
    /// All memory is as long as said, and used by nothing else meanwhile.
    unsafe fn run(&self) {
        match *self {
            Self::Product { matrix, vector, out, rows, columns } => {
                // SAFETY: the caller's promise.
                let matrix = unsafe { std::slice::from_raw_parts(matrix, rows * columns) };
                // SAFETY: as above.
                let vector = unsafe { std::slice::from_raw_parts(vector, columns) };
                // SAFETY: as above.
                let out = unsafe { std::slice::from_raw_parts_mut(out, rows) };
                for (row, out) in out.iter_mut().enumerate() {
                    let weights = &matrix[row * columns..(row + 1) * columns];
                    *out = weights.iter().zip(vector).map(|(weight, value)| weight * value).sum();
                }
            }
            Self::Square { from, out, count } => {
                // SAFETY: the caller's promise.
                let from = unsafe { std::slice::from_raw_parts(from, count) };
                // SAFETY: as above.
                let out = unsafe { std::slice::from_raw_parts_mut(out, count) };
                for (from, out) in from.iter().zip(out) {
                    *out = from * from;
                }
            }
        }
    }
}

/// Enqueues a job; its stream, or its graph, keeps it.
fn host(
    lane: &Lane<'_>,
    device: &MockDevice,
    enqueued: &RefCell<Vec<Arc<Job>>>,
    job: Job,
) -> Result<()> {
    unsafe extern "C" fn run(job: *mut c_void) {
        // SAFETY: a job that is kept, on buffers that are kept, in the order of their stream.
        let job = unsafe { &*job.cast_const().cast::<Job>() };
        // SAFETY: as above.
        unsafe { job.run() };
    }
    let job = Arc::new(job);
    let data = Arc::as_ptr(&job).cast_mut().cast();
    match lane {
        Lane::Captured { scope, .. } => scope.keep(job),
        Lane::Eager { .. } => enqueued.borrow_mut().push(job),
    }
    let enqueue = |raw| {
        // SAFETY: the stream is alive, and the job was kept above.
        unsafe { device.call(raw, run, data) }
    };
    // SAFETY: it enqueues on that stream alone, on memory that the lane keeps.
    unsafe { lane.launch_with(enqueue) }
}

/// What came out.
#[derive(Debug)]
pub(crate) struct Report {
    rank: u32,
    title: String,
    /// The largest difference, eagerly and in the graph, over the largest value.
    pub(crate) errors: [f32; 2],
    times: [Duration; 2],
}

impl Report {
    /// Whether the ranks together compute what one computes, up to the order of the sums.
    pub(crate) fn is_right(&self) -> bool {
        self.errors.iter().all(|&error| error <= TOLERANCE)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.title)?;
        writeln!(f, "        max error   time per step")?;
        for ((name, error), time) in ["eager", "graph"].iter().zip(self.errors).zip(self.times) {
            let micros = time.as_secs_f64() * 1e6;
            writeln!(f, "{name:5}   {error:9.1e}   {micros:10.1} µs")?;
        }
        let verdict = if self.is_right() { "as one rank computes it" } else { "WRONG" };
        write!(f, "{verdict}")
    }
}

/// The largest difference over the largest value; infinite where a value is none.
fn difference(got: &[f32], want: &[f32]) -> f32 {
    let largest = want.iter().fold(f32::MIN_POSITIVE, |most, value| most.max(value.abs()));
    let distance = |(got, want): (&f32, &f32)| match (got - want).abs() / largest {
        distance if distance.is_nan() => f32::INFINITY,
        distance => distance,
    };
    got.iter().zip(want).map(distance).fold(0.0, f32::max)
}

fn values(count: usize, value: impl Fn(usize) -> f32) -> Vec<f32> {
    (0..count).map(value).collect()
}

/// A number from -1 to 1 that depends on all words, the same on every rank.
fn noise(words: [u64; 4]) -> f32 {
    let mix = |state: u64, word: u64| {
        let state = (state ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
        let state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        state ^ (state >> 31)
    };
    let bits = words.into_iter().fold(0, mix) >> 40;
    bits as f32 / (1_u64 << 23) as f32 - 1.0
}

/// Steps whose results are compared.
const CHECKED: u32 = 8;
/// Sums of a few thousand products, in another order, through a few layers of squares.
const TOLERANCE: f32 = 1e-4;
