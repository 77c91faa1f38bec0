//! Random programs of the safe layer on the mock, whose guards look for races, against what the same
//! calls come to one after another: buffers of every home go from stream to stream, through groups,
//! copies and graphs, and are dropped whenever; graphs are launched by other threads, too.
//!
//! `COLLECTIVES_SAFE_PROGRAMS` says how many, from which seed on: `1000` or `1000@7`.

use std::{
    collections::BTreeMap,
    mem,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    thread,
    time::Duration,
};

use collectives::{
    Buffer, Communicator, Graph, ReduceOp, Result, Stream, Watch, group,
    mock::{Guards, MockConfig, Schedule, World},
};

#[test]
fn random_programs_come_to_what_they_say() {
    let (count, first) = asked();
    for seed in first..first + count {
        let ranks = 1 + seed as usize % 3;
        let schedule = match seed % 4 {
            0 => Schedule::Late,
            1 => Schedule::Eager,
            _ => Schedule::Random(seed),
        };
        // The program looks at memory through the library alone; one in eight is watched for that.
        let guards = Guards::ALL.with_protect(Guards::ALL.protect && seed % 8 == 3);
        let config = MockConfig::new().with_schedule(schedule).with_guards(guards);
        let world = World::new(ranks).with_config(config);
        if let Err(failure) = world.run(move |comm| Program::new(seed, comm)?.run()) {
            panic!("seed {seed}, {ranks} ranks, schedule {schedule}: {failure}");
        }
    }
}

/// Ranks abort, end, unwind and forget as they like, on whichever thread: nothing hangs or crashes, and
/// who is waited for in vain is told. (Run it under AddressSanitizer, too: the mock's memory is the
/// heap's where no guard protects it.)
#[test]
fn programs_that_end_anyhow_end() {
    let (count, first) = asked();
    for seed in first..first + count {
        let schedule = if seed % 2 == 0 { Schedule::Eager } else { Schedule::Random(seed) };
        let config = MockConfig::new().with_schedule(schedule).with_guards(Guards::NONE);
        let world = World::new(2).with_config(config).with_deadline(Duration::from_secs(60));
        // Who was first decides what it comes to, but nobody is late, or panics.
        if let Err(failure) = world.run(move |comm| recklessly(seed, comm)) {
            panic!("seed {seed}, schedule {schedule}: {failure}");
        }
    }
}

/// Does whatever the safe layer lets it, and takes no error for an answer.
fn recklessly(seed: u64, comm: Communicator) -> Result<()> {
    // What is called, mostly the same on all ranks; and whatever else each does.
    let (mut shared, mut random) = (Random(seed), Random(seed ^ u64::from(comm.rank() + 1) << 32));
    let (stream, other) = (comm.new_stream()?, comm.new_stream()?);
    let _ = comm.on(&stream).warm_up();
    if random.below(3) == 0 {
        let watch = Watch::new().with_deadline(Duration::from_millis(20));
        comm.watch(if random.below(2) == 0 { watch } else { watch.without_abort() });
    }
    let mut buffers: Vec<Buffer<i64>> = Vec::new();
    let mut graphs: Vec<Graph> = Vec::new();
    let mut threads = Vec::new();
    let limit = Duration::from_millis(50);
    for _ in 0..shared.below(30) {
        let on = if random.below(2) == 0 { &stream } else { &other };
        let buffer = match random.below(4) {
            0 => comm.alloc(LEN, on),
            1 => comm.alloc_registered(LEN, on),
            _ => on.zeros(LEN),
        };
        buffers.extend(buffer);
        let Some(mut buffer) = buffers.pop() else { continue };
        let differs = random.below(30) == 0;
        match if differs { random.below(16) } else { shared.below(16) } {
            0..=2 => drop(comm.on(on).all_reduce_in_place(&mut buffer, ReduceOp::Sum)),
            3 => {
                let from = buffers.last();
                let _ = from.map(|from| comm.on(on).all_reduce(from, &mut buffer, ReduceOp::Max));
            }
            4 => {
                let Ok(mut into) = on.zeros(3) else { continue };
                drop(comm.on(on).send_recv(buffer.slice(..3), 0, &mut into, 1));
            }
            5 => {
                let captured = comm.capture(|scope| {
                    scope.keep(Loud);
                    scope.on(&comm).all_reduce_in_place(&mut buffer, ReduceOp::Sum)
                });
                graphs.extend(captured);
            }
            6 => {
                let unwound = catch_unwind(AssertUnwindSafe(|| {
                    comm.capture(|scope| {
                        scope.on(&comm).all_reduce_in_place(&mut buffer, ReduceOp::Sum)?;
                        resume_unwind(Box::new("out of a capture"))
                    })
                }));
                drop(unwound);
            }
            7 => {
                let unwound = catch_unwind(AssertUnwindSafe(|| {
                    group(|g| -> Result<()> {
                        g.on(&comm, on).all_reduce_in_place(&mut buffer, ReduceOp::Sum)?;
                        resume_unwind(Box::new("out of a group"))
                    })
                }));
                drop(unwound);
            }
            8 => drop(graphs.last().map(|graph| graph.launch(on))),
            9 => {
                if let Some(graph) = graphs.pop() {
                    let on = on.clone();
                    let launch = move || drop((graph.launch(&on), graph));
                    threads.push(thread::spawn(launch));
                }
            }
            10 if random.below(4) == 0 => {
                let handle = comm.abort_handle();
                threads.push(thread::spawn(move || drop(handle.abort())));
            }
            11 => mem::forget(graphs.pop()),
            12 => {
                mem::forget(buffer);
                continue;
            }
            13 => drop(on.synchronize_for(limit)),
            14 => drop(buffers.pop()),
            _ => drop(comm.on(on).barrier()),
        }
        buffers.push(buffer);
    }
    let ends: [fn(Communicator); 4] = [
        drop,
        |comm| drop(comm.abort()),
        |comm| drop(comm.finalize()),
        |comm| drop((comm.abort_handle().abort(), comm)),
    ];
    let end = ends[random.below(4) as usize];
    match random.below(3) {
        0 => {
            drop((buffers, graphs));
            end(comm);
        }
        1 => {
            end(comm);
            drop((graphs, stream, other));
            drop(buffers);
        }
        _ => {
            threads.push(thread::spawn(move || drop((graphs, buffers))));
            end(comm);
        }
    }
    threads.into_iter().for_each(|thread| thread.join().expect("nothing panics"));
    Ok(())
}

/// What code beside the library would have a graph keep.
struct Loud;

impl Drop for Loud {
    /// Whatever it is dropped by, the library can be called.
    fn drop(&mut self) {
        if let Ok(backend) = collectives::backend_named("mock") {
            let _ = collectives::Backend::device_count(&backend);
        }
    }
}

/// How many programs, and the first seed.
fn asked() -> (u64, u64) {
    let asked = std::env::var("COLLECTIVES_SAFE_PROGRAMS").unwrap_or_else(|_| "60".into());
    let (count, first) = asked.split_once('@').unwrap_or((&asked, "0"));
    (count.parse().expect("a number of programs"), first.parse().expect("the first seed"))
}

/// A rank, and what the memory of all ranks should hold.
struct Program {
    /// What all ranks draw alike.
    shared: Random,
    /// What each draws for itself: what must not change any value.
    own: Random,
    comm: Communicator,
    streams: Vec<Stream>,
    buffers: Vec<Buffer<i64>>,
    /// By rank and buffer.
    values: Vec<Vec<Vec<i64>>>,
    graphs: BTreeMap<u64, (Graph, Vec<Step>)>,
    next_graph: u64,
}

/// What changes values. Of buffers, by number.
#[derive(Clone, Copy, Debug)]
enum Step {
    AllReduce {
        from: usize,
        to: usize,
        op: ReduceOp,
    },
    Broadcast {
        buffer: usize,
        root: u32,
    },
    Barrier,
    /// To the next rank, from the one before.
    Shift {
        from: usize,
        to: usize,
    },
}

impl Program {
    fn new(seed: u64, comm: Communicator) -> Result<Self> {
        let streams = (0..3).map(|_| comm.new_stream()).collect::<Result<Vec<_>>>()?;
        comm.on(&streams[0]).warm_up()?;
        let mut program = Self {
            shared: Random(seed),
            own: Random(seed ^ u64::from(comm.rank() + 1) << 32),
            values: vec![Vec::new(); comm.size()],
            buffers: Vec::new(),
            graphs: BTreeMap::new(),
            next_graph: 0,
            streams,
            comm,
        };
        for _ in 0..BUFFERS {
            let buffer = program.buffer()?;
            program.buffers.push(buffer);
            program.values.iter_mut().for_each(|values| values.push(vec![0; LEN]));
        }
        Ok(program)
    }

    fn run(mut self) -> Result<()> {
        for _ in 0..STEPS {
            match self.shared.below(14) {
                0..=2 => self.eager()?,
                3 => self.grouped()?,
                4 | 5 => self.write()?,
                6 | 7 => self.read()?,
                8 => self.copy()?,
                9 => self.renew()?,
                10 => self.capture()?,
                11 | 12 => self.launch()?,
                _ => self.forget(),
            }
        }
        for buffer in 0..BUFFERS {
            self.check(buffer)?;
        }
        let Self { comm, graphs, buffers, streams, .. } = self;
        if self.own.below(2) == 0 {
            drop(comm);
            drop((graphs, streams));
            drop(buffers);
            return Ok(());
        }
        drop((graphs, buffers));
        comm.finalize()
    }

    /// Memory of zeros, of any home; which one has to be the same on all ranks for one of them.
    fn buffer(&mut self) -> Result<Buffer<i64>> {
        let home = self.shared.below(4);
        let stream = self.any_stream();
        match home {
            0 => self.comm.alloc_symmetric(LEN),
            1 => self.comm.alloc_registered(LEN, &stream),
            2 => self.comm.alloc(LEN, &stream),
            _ => stream.zeros(LEN),
        }
    }

    fn any_stream(&mut self) -> Stream {
        self.streams[self.own.below(3) as usize].clone()
    }

    fn any_buffer(&mut self) -> usize {
        self.shared.below(BUFFERS as u64) as usize
    }

    fn any_two(&mut self) -> (usize, usize) {
        let from = self.any_buffer();
        (from, (from + 1 + self.shared.below(BUFFERS as u64 - 1) as usize) % BUFFERS)
    }

    fn any_step(&mut self) -> Step {
        match self.shared.below(6) {
            0 | 1 => {
                let (from, to) = self.any_two();
                Step::AllReduce { from, to, op: self.any_op() }
            }
            2 => {
                let buffer = self.any_buffer();
                Step::AllReduce { from: buffer, to: buffer, op: self.any_op() }
            }
            3 => {
                let root = self.shared.below(self.comm.size() as u64) as u32;
                Step::Broadcast { buffer: self.any_buffer(), root }
            }
            4 => Step::Barrier,
            _ => {
                let (from, to) = self.any_two();
                Step::Shift { from, to }
            }
        }
    }

    /// Keeps values from growing out of hand.
    fn any_op(&mut self) -> ReduceOp {
        [ReduceOp::Max, ReduceOp::Min][self.shared.below(2) as usize]
    }

    fn eager(&mut self) -> Result<()> {
        let (step, stream) = (self.any_step(), self.any_stream());
        let on = self.comm.on(&stream);
        let size = self.comm.size() as u32;
        let (next, last) = (self.comm.rank() + 1, self.comm.rank() + size - 1);
        match step {
            Step::AllReduce { from, to, op } if from == to => {
                on.all_reduce_in_place(&mut self.buffers[to], op)?;
            }
            Step::AllReduce { from, to, op } => {
                let (from, to) = two(&mut self.buffers, from, to);
                on.all_reduce(&*from, to, op)?;
            }
            Step::Broadcast { buffer, root } => {
                on.broadcast_in_place(&mut self.buffers[buffer], root)?;
            }
            Step::Barrier => on.barrier()?,
            Step::Shift { from, to } => {
                let (from, to) = two(&mut self.buffers, from, to);
                on.send_recv(&*from, next % size, to, last % size)?;
            }
        }
        self.apply(step);
        Ok(())
    }

    /// Two reductions of different buffers, on any streams.
    fn grouped(&mut self) -> Result<()> {
        let (one, other) = self.any_two();
        let (a, b) = (self.any_stream(), self.any_stream());
        let (comm, op) = (&self.comm, ReduceOp::Max);
        let (first, second) = two(&mut self.buffers, one, other);
        group(|g| {
            g.on(comm, &a).all_reduce_in_place(&mut *first, op)?;
            g.on(comm, &b).all_reduce_in_place(&mut *second, op)
        })?;
        self.apply(Step::AllReduce { from: one, to: one, op });
        self.apply(Step::AllReduce { from: other, to: other, op });
        Ok(())
    }

    fn write(&mut self) -> Result<()> {
        let (buffer, base) = (self.any_buffer(), self.shared.below(1000) as i64);
        for (rank, values) in self.values.iter_mut().enumerate() {
            values[buffer] = (0..LEN).map(|at| base + (at * (rank + 1)) as i64).collect();
        }
        let stream = self.any_stream();
        let own = &self.values[self.comm.rank() as usize][buffer];
        self.buffers[buffer].copy_from_slice(own, &stream)
    }

    /// On some ranks only: others go on.
    fn read(&mut self) -> Result<()> {
        let buffer = self.any_buffer();
        if self.own.below(2) == 0 { Ok(()) } else { self.check(buffer) }
    }

    fn check(&mut self, buffer: usize) -> Result<()> {
        let stream = self.any_stream();
        let want = &self.values[self.comm.rank() as usize][buffer];
        assert_eq!(&self.buffers[buffer].to_vec(&stream)?, want, "buffer {buffer}");
        Ok(())
    }

    fn copy(&mut self) -> Result<()> {
        let ((from, to), stream) = (self.any_two(), self.any_stream());
        self.values.iter_mut().for_each(|values| values[to] = values[from].clone());
        let (from, to) = two(&mut self.buffers, from, to);
        to.copy_from(&*from, &stream)
    }

    /// A buffer is dropped, whatever uses it, and there is a new one in its place. Graphs that hold the
    /// old one change values that nobody sees any more, so they go as well.
    fn renew(&mut self) -> Result<()> {
        let at = self.any_buffer();
        let new = self.buffer()?;
        self.buffers[at] = new;
        self.values.iter_mut().for_each(|values| values[at] = vec![0; LEN]);
        self.graphs.retain(|_, (_, steps)| !steps.iter().any(|step| step.uses(at)));
        Ok(())
    }

    fn capture(&mut self) -> Result<()> {
        let steps: Vec<_> = (0..1 + self.shared.below(3)).map(|_| self.any_step()).collect();
        let (comm, buffers) = (&self.comm, &mut self.buffers);
        let size = comm.size() as u32;
        let (next, last) = (comm.rank() + 1, comm.rank() + size - 1);
        let graph = comm.capture(|scope| {
            let on = scope.on(comm);
            steps.iter().try_for_each(|step| match *step {
                Step::AllReduce { from, to, op } if from == to => {
                    on.all_reduce_in_place(&mut buffers[to], op)
                }
                Step::AllReduce { from, to, op } => {
                    let (from, to) = two(buffers, from, to);
                    on.all_reduce(&*from, to, op)
                }
                Step::Broadcast { buffer, root } => {
                    on.broadcast_in_place(&mut buffers[buffer], root)
                }
                Step::Barrier => on.barrier(),
                Step::Shift { from, to } => {
                    let (from, to) = two(buffers, from, to);
                    on.send_recv(&*from, next % size, to, last % size)
                }
            })
        })?;
        self.graphs.insert(self.next_graph, (graph, steps));
        self.next_graph += 1;
        Ok(())
    }

    /// One or two runs, on this thread or another, which may be on different streams.
    fn launch(&mut self) -> Result<()> {
        let known: Vec<_> = self.graphs.keys().copied().collect();
        if known.is_empty() {
            return Ok(());
        }
        let number = known[self.shared.below(known.len() as u64) as usize];
        let Some((graph, steps)) = self.graphs.remove(&number) else { return Ok(()) };
        let runs = 1 + self.shared.below(2);
        let streams: Vec<_> = (0..runs).map(|_| self.any_stream()).collect();
        let launch = move |graph: Graph| {
            streams.iter().try_for_each(|stream| graph.launch(stream)).map(|()| graph)
        };
        let graph = match self.own.below(3) {
            0 => thread::spawn(move || launch(graph)).join().expect("launches do not panic"),
            _ => launch(graph),
        }?;
        for _ in 0..runs {
            steps.iter().for_each(|step| self.apply(*step));
        }
        // Some are dropped while they run, wherever.
        match self.shared.below(4) {
            0 if self.own.below(2) == 0 => drop(thread::spawn(move || drop(graph)).join()),
            0 => drop(graph),
            _ => drop(self.graphs.insert(number, (graph, steps))),
        }
        Ok(())
    }

    fn forget(&mut self) {
        let known: Vec<_> = self.graphs.keys().copied().collect();
        if let Some(number) = known.first() {
            self.graphs.remove(number);
        }
    }

    /// What a step does to the values of all ranks.
    fn apply(&mut self, step: Step) {
        let size = self.values.len();
        match step {
            Step::AllReduce { from, to, op } => {
                let pick = |a: i64, b: i64| if op == ReduceOp::Max { a.max(b) } else { a.min(b) };
                let column = |at: usize| self.values.iter().map(move |values| values[from][at]);
                let all: Vec<_> =
                    (0..LEN).map(|at| column(at).reduce(pick).expect("there are ranks")).collect();
                self.values.iter_mut().for_each(|values| values[to].clone_from(&all));
            }
            Step::Broadcast { buffer, root } => {
                let all = self.values[root as usize][buffer].clone();
                self.values.iter_mut().for_each(|values| values[buffer].clone_from(&all));
            }
            Step::Barrier => {}
            Step::Shift { from, to } => {
                let sent: Vec<_> = self.values.iter().map(|values| values[from].clone()).collect();
                for (rank, values) in self.values.iter_mut().enumerate() {
                    values[to].clone_from(&sent[(rank + size - 1) % size]);
                }
            }
        }
    }
}

impl Step {
    fn uses(self, at: usize) -> bool {
        match self {
            Self::AllReduce { from, to, .. } | Self::Shift { from, to } => at == from || at == to,
            Self::Broadcast { buffer, .. } => at == buffer,
            Self::Barrier => false,
        }
    }
}

/// One to read and another to write.
fn two(
    buffers: &mut [Buffer<i64>],
    one: usize,
    other: usize,
) -> (&mut Buffer<i64>, &mut Buffer<i64>) {
    let [one, other] = buffers.get_disjoint_mut([one, other]).expect("two of them");
    (one, other)
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

const BUFFERS: usize = 5;
const LEN: usize = 17;
const STEPS: usize = 60;
