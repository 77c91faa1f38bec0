//! `collectives perf`: time and bandwidth of one operation by size, as nccl-tests measures them.

mod args;
mod data;
mod json;
mod launched;
mod meeting;
mod one_thread;
mod operation;
mod plot;
mod processes;
mod ranks;
mod run;
mod seat;
mod table;
mod threads;

use std::{
    error::Error,
    fs::File,
    io::{self, BufWriter, Write},
    sync::Arc,
};

use collectives::{AnyBackend, Backend, DType, Device, DeviceInfo, ReduceOp, Selection, World};
use indicatif::{ProgressBar, ProgressStyle};
use jiff::{Timestamp, tz::TimeZone};

pub(crate) use self::args::Args;
#[cfg(unix)]
pub(crate) use self::args::BackendArg;
use self::{
    args::{Mode, Registered, Size},
    json::{Placement, Report, Row},
    launched::Launched,
    processes::Processes,
    ranks::Ranks,
    run::{Figures, Plan, Repeated, Times},
    table::Header,
    threads::Threads,
};
use crate::Failure;

/// Measures, prints the table as it grows, and writes the report and the figure.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    if let Some(contradiction) = args.contradiction() {
        return Err(Failure::Usage(contradiction));
    }
    if let Some(member) = processes::here()? {
        let backend = Selection::detect(args.backend.name()).open()?;
        return processes::serve(member, &plan(args, &backend, None)?.0, &backend);
    }
    let mut world = None;
    if args.mode == Mode::Launched {
        let met = launched::meet(args)?;
        if met.rank() != 0 {
            let (plan, _) = plan(args, met.backend(), Some(&met))?;
            return Ok(launched::serve(met, &plan)?);
        }
        world = Some(met);
    }
    // Before anything is made or measured, so that an unwritable place does not cost a run.
    let plot = args.plot.as_deref().map(plot::Target::new).transpose().map_err(Failure::Usage)?;
    let backend = match &world {
        Some(world) => world.backend().clone(),
        None => Selection::detect(args.backend.name()).open()?,
    };
    let (plan, devices) = plan(args, &backend, world.as_ref())?;
    let json = args.json.as_ref().map(|path| create(path)).transpose()?;

    let mut out = io::stdout();
    let header =
        Header { library: backend.info(), devices: &devices, settings: settings(args, &plan) };
    write!(out, "{header}")?;
    let rows = measure(args, plan, &backend, world, &mut out)?;
    write!(out, "{}", table::footer(&rows))?;
    let wrong = table::wrong(&rows);

    let info = backend.info();
    let report = Report {
        backend: info.backend.to_ascii_lowercase(),
        library: info.path.clone(),
        version: info.version,
        ranks: devices.len(),
        mode: args.mode,
        graph: args.graph,
        registered: args.registered,
        results: rows,
    };
    if let Some(json) = json {
        let mut json = BufWriter::new(json);
        serde_json::to_writer_pretty(&mut json, &report)?;
        writeln!(json)?;
        json.flush()?;
    }
    if let Some(plot) = plot {
        let date = Timestamp::now().to_zoned(TimeZone::UTC).date();
        let conditions = plot::Conditions { args, library: info, devices: &devices, date };
        plot.write(&plot::figure(&conditions, &report.results))?;
    }
    if wrong.is_some_and(|wrong| wrong > 0) { Err(Failure::Check) } else { Ok(()) }
}

fn create(path: &std::path::Path) -> Result<File, Box<dyn Error>> {
    File::create(path).map_err(|error| format!("--json {}: {error}", path.display()).into())
}

/// Checks the arguments against the backend, and works out what each rank does, on which device. `world` has
/// the ranks where they are processes that a launcher started.
fn plan(
    args: &Args,
    backend: &AnyBackend,
    world: Option<&World>,
) -> Result<(Plan, Vec<DeviceInfo>), Failure> {
    let is_mock = matches!(backend, AnyBackend::Mock(_));
    let Args { operation, dtype, .. } = *args;
    let op = args.op.unwrap_or(ReduceOp::Sum);
    supported(args, backend, op)?;

    let available = backend.device_count()?;
    let ranks = match (world, args.ranks) {
        (Some(world), _) => world.size(),
        (None, Some(ranks)) => ranks as usize,
        (None, None) if is_mock => available.min(2),
        (None, None) => available,
    };
    if world.is_none() && ranks > available && !shares_devices(args, backend) {
        let advice = if is_mock {
            format!("set COLLECTIVES_MOCK_DEVICES={ranks} to give it more")
        } else {
            format!("use at most -n {available}, or --backend mock")
        };
        return Err(Failure::Usage(format!(
            "-n {ranks}: each rank needs a device, and {} sees {available}; {advice}",
            backend.info().backend
        )));
    }
    let root = args.root.unwrap_or(0);
    if usize::try_from(root).is_ok_and(|root| root >= ranks) {
        return Err(Failure::Usage(format!("--root {root}: the ranks are 0 to {}", ranks - 1)));
    }

    let min = args.min_bytes;
    let default_max = if is_mock { MOCK_MAX } else { GPU_MAX };
    let max = args.max_bytes.unwrap_or_else(|| default_max.max(min));
    let count = |bytes| operation.count(bytes, dtype.size(), ranks);
    let largest = operation.largest(count(max.0), ranks);
    let sized = |factor, repeats: &dyn Fn(usize) -> usize| {
        let mut counts: Vec<_> = sizes(min, max, factor).map(count).collect();
        counts.dedup();
        let sized = |count| {
            let bytes = operation.largest(count, ranks) * dtype.size();
            let chosen = iterations(bytes, ranks, is_mock, Issue::of(args));
            let iters = args.iters.map_or(chosen, |iters| iters as usize);
            Repeated { count, repeats: repeats(iters) }
        };
        counts.into_iter().map(sized).collect::<Vec<_>>()
    };

    let devices = match world {
        Some(world) => launched::devices(world)?,
        None => (0..ranks)
            .map(|rank| Ok(backend.device(rank % available)?.info().clone()))
            .collect::<collectives::Result<Vec<_>>>()?,
    };
    for DeviceInfo { ordinal, total_memory, .. } in &devices {
        // One to send from, one to receive in, for each rank that it has.
        let sharing = if world.is_some() { 1 } else { ranks.div_ceil(available) };
        let needed = largest.saturating_mul(2 * dtype.size() * sharing);
        if needed > *total_memory {
            return Err(Failure::Usage(format!(
                "-e {}: the buffers of a rank need {} MiB, and device {ordinal} has {} MiB; use a smaller -e",
                max.0,
                needed >> 20,
                total_memory >> 20
            )));
        }
    }

    let plan = Plan {
        operation,
        dtype,
        op,
        root,
        ranks,
        sizes: sized(args.factor as usize, &|iters| iters),
        warmup: sized(2, &|iters| match args.warmup {
            Some(operations) => operations as usize,
            None => (iters / 10).max(5),
        }),
        largest,
        registered: args.registered,
        devices: available.min(ranks),
        graph: args.graph,
        sync_each: args.sync_each,
        check: !args.no_check,
    };
    Ok((plan, devices))
}

/// Whether several ranks may have one device: NCCL 2.32 allows it to processes that ask for it.
fn shares_devices(args: &Args, backend: &AnyBackend) -> bool {
    let asked = || std::env::var("NCCL_MULTI_RANK_GPU_ENABLE").is_ok_and(|value| value == "1");
    matches!(backend, AnyBackend::Nccl(_)) && args.mode == Mode::Processes && asked()
}

/// Refuses what the library cannot do.
fn supported(args: &Args, backend: &AnyBackend, op: ReduceOp) -> Result<(), Failure> {
    let capabilities = backend.capabilities();
    let Args { operation, dtype, .. } = *args;
    let mut needs = vec![(operation.support(capabilities), operation.name().to_owned())];
    match dtype {
        DType::Bf16 => needs.push((capabilities.dtype_bf16, "dtype bf16".into())),
        DType::F8E4M3 => needs.push((capabilities.dtype_f8e4m3, "dtype f8e4m3".into())),
        DType::F8E5M2 => needs.push((capabilities.dtype_f8e5m2, "dtype f8e5m2".into())),
        _ => {}
    }
    if operation.reduces() && dtype.is_fp8() {
        needs.push((capabilities.reduce_f8, format!("reductions of {dtype}")));
    }
    if operation.reduces() && op == ReduceOp::Avg {
        needs.push((capabilities.reduce_avg, "reduce op avg".into()));
    }
    if args.graph {
        needs.push((capabilities.capture, "capture into a graph".into()));
    }
    match args.registered {
        Registered::None => {}
        Registered::Buffer => {
            needs.push((capabilities.mem_alloc, "memory for registered buffers".into()));
            needs.push((capabilities.register, "registration of buffers".into()));
        }
        Registered::Symmetric => {
            needs.push((capabilities.mem_alloc, "memory for symmetric buffers".into()));
            needs.push((capabilities.window_register, "windows".into()));
        }
    }
    let named = |error: collectives::Error| error.with_library(backend.info()).to_string();
    needs
        .iter()
        .try_for_each(|(support, what)| support.require(what))
        .map_err(|error| Failure::Usage(named(error)))
}

/// From the smallest size to the largest, each `factor` times the one before.
fn sizes(min: Size, max: Size, factor: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(min.0), move |size| size.checked_mul(factor))
        .take_while(move |&size| size <= max.0)
}

/// About as many bytes for each size, so that every size takes a comparable time, within bounds
/// that keep the mean of small sizes steady and large sizes short.
fn iterations(bytes: usize, ranks: usize, is_mock: bool, issue: Issue) -> usize {
    let (budget, most) = match (is_mock, issue) {
        // Cores are shared: an operation of more ranks takes longer. A loop lasts long enough that
        // it doesn't matter if a rank's thread starts a millisecond late.
        (true, Issue::Loop) => (512 << 20, 400_000),
        (true, Issue::SyncEach) => (512 << 20, 40_000),
        (true, Issue::Graph) => (512 << 20, 4_000),
        (false, _) => (20 << 30, 200),
    };
    let (budget, most) = if is_mock { (budget / ranks, most / ranks) } else { (budget, most) };
    (budget / bytes).clamp(if is_mock { 10 } else { 20 }, most.max(20))
}

/// How the operations of a measurement are issued.
#[derive(Clone, Copy)]
enum Issue {
    Loop,
    SyncEach,
    Graph,
}

impl Issue {
    const fn of(args: &Args) -> Self {
        match (args.graph, args.sync_each) {
            (true, _) => Self::Graph,
            (false, true) => Self::SyncEach,
            (false, false) => Self::Loop,
        }
    }
}

/// What the lines above the table say of the run.
fn settings(args: &Args, plan: &Plan) -> Vec<(&'static str, String)> {
    let Args { operation, dtype, .. } = *args;
    let mut measures = format!("{operation} of {dtype}");
    if operation.reduces() {
        measures += &format!(", {}", plan.op);
    }
    if operation.has_root() {
        measures += &format!(", root {}", plan.root);
    }
    let loops = if plan.graph {
        "all iterations in one graph, one launch, one wait"
    } else if plan.sync_each {
        "a wait after each operation"
    } else {
        "operations one after another, one wait at the end"
    };
    let checked = if plan.check { "checked after each measurement" } else { "not checked" };
    let mut settings = vec![
        ("measures", measures),
        (
            "ranks",
            match args.mode {
                Mode::Threads => format!("{}, threads of one process", plan.ranks),
                Mode::Processes => format!("{}, one process each", plan.ranks),
                Mode::OneThread => format!("{}, driven by one thread", plan.ranks),
                Mode::Launched => format!("{}, processes started by a launcher", plan.ranks),
            },
        ),
        ("timing", loops.into()),
        (
            "iterations",
            format!("{}, after {} as warm-up", repeats(&plan.sizes), repeats(&plan.warmup)),
        ),
        ("results", checked.into()),
    ];
    match plan.registered {
        Registered::None => {}
        Registered::Buffer => settings.push(("buffers", "registered with the communicator".into())),
        Registered::Symmetric => settings.push(("buffers", "symmetric, one window".into())),
    }
    settings
}

/// How often, for people: `20`, `20000 to 10`.
fn repeats(sizes: &[Repeated]) -> String {
    let repeats = || sizes.iter().map(|size| size.repeats);
    match (repeats().max().unwrap_or_default(), repeats().min().unwrap_or_default()) {
        (most, least) if most == least => most.to_string(),
        (most, least) => format!("{most} to {least}"),
    }
}

/// Runs the ranks, and prints each row when it is complete.
fn measure(
    args: &Args,
    plan: Plan,
    backend: &AnyBackend,
    world: Option<World>,
    out: &mut impl Write,
) -> Result<Vec<Row>, Failure> {
    let placements = if args.operation.has_in_place() { 2 } else { 1 };
    let plan = Arc::new(plan);
    let mut ranks: Box<dyn Ranks + '_> = match (world, args.mode) {
        (Some(world), _) => Box::new(Launched::start(&plan, world)?),
        // Ranks that a launcher started have a world.
        (None, Mode::Threads | Mode::Launched) => Box::new(Threads::start(&plan, backend)?),
        (None, Mode::Processes) => Box::new(Processes::start(&plan, backend)?),
        (None, Mode::OneThread) => one_thread::start(&plan, backend)?,
    };
    let bar = progress_bar(plan.sizes.len() * placements);
    let mut rows = Vec::new();
    for &Repeated { count, .. } in &plan.sizes {
        let elements = args.operation.largest(count, plan.ranks);
        let bytes = elements * args.dtype.size();
        let mut figures = || {
            bar.set_message(format!("{} {}", args.operation, bytes_text(bytes)));
            let figures = ranks.next().inspect_err(|_| bar.finish_and_clear())?;
            bar.inc(1);
            Ok::<_, Failure>(placement(args, bytes, plan.ranks, figures))
        };
        let row = Row {
            op: args.operation,
            bytes,
            count,
            dtype: args.dtype,
            redop: args.operation.reduces().then(|| plan.op.name()),
            root: args.operation.has_root().then_some(plan.root),
            out_of_place: figures()?,
            in_place: args.operation.has_in_place().then(figures).transpose()?,
        };
        bar.suspend(|| writeln!(out, "{row}"))?;
        rows.push(row);
    }
    bar.finish_and_clear();
    ranks.ended()?;
    Ok(rows)
}

/// Bandwidths as nccl-tests defines them, in units of 10⁹ bytes.
fn placement(args: &Args, bytes: usize, ranks: usize, figures: Figures) -> Placement {
    let Times { done, issue } = figures.times;
    let algbw_gbps = bytes as f64 / done / 1e9;
    Placement {
        time_us: done * 1e6,
        algbw_gbps,
        busbw_gbps: algbw_gbps * args.operation.bus_factor(ranks),
        issue_us: (!args.sync_each).then_some(issue * 1e6),
        wrong: figures.wrong,
    }
}

/// Hidden where standard error is no terminal. Drawn only between measurements, by the main thread:
/// a thread that draws would take its time from the ranks.
fn progress_bar(steps: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40.cyan/dim} {pos:>3}/{len}  {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━╸─");
    ProgressBar::new(steps as u64).with_style(style)
}

/// `8 B`, `64 KiB`.
fn bytes_text(bytes: usize) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.into_iter().find(|(shift, _)| bytes > 0 && bytes.trailing_zeros() >= *shift) {
        Some((shift, unit)) => format!("{} {unit}", bytes >> shift),
        None => format!("{bytes} B"),
    }
}

const MOCK_MAX: Size = Size(64 << 20);
const GPU_MAX: Size = Size(1 << 30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_grow_by_the_factor() {
        let all = |min, max, factor| sizes(Size(min), Size(max), factor).collect::<Vec<_>>();
        assert_eq!(all(8, 64, 2), [8, 16, 32, 64]);
        assert_eq!(all(8, 100, 4), [8, 32]);
        assert_eq!(all(8, 8, 2), [8]);
        assert_eq!(all(usize::MAX / 2, usize::MAX, 3), [usize::MAX / 2]);
    }

    #[test]
    fn iterations_are_many_for_small_sizes_and_few_for_large() {
        assert_eq!(iterations(8, 2, true, Issue::Loop), 200_000);
        assert_eq!(iterations(8, 2, true, Issue::SyncEach), 20_000);
        assert_eq!(iterations(64 << 20, 2, true, Issue::Loop), 10);
        assert_eq!(iterations(8, 64, true, Issue::SyncEach), 625);
        assert_eq!(iterations(8, 2, false, Issue::Graph), 200);
        assert_eq!(iterations(1 << 30, 8, false, Issue::Loop), 20);
    }

    #[test]
    fn sizes_are_written_for_people() {
        assert_eq!(bytes_text(8), "8 B");
        assert_eq!(bytes_text(65_536), "64 KiB");
        assert_eq!(bytes_text(3 << 30), "3 GiB");
        assert_eq!(bytes_text(1000), "1000 B");
    }
}
