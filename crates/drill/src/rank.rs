//! One rank of a round, in a process of its own.

use std::{
    cell::{Cell, RefCell},
    error::Error as StdError,
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use collectives::{
    AnyBackend, Backend, Buffer, Communicator, Error, Graph, JoinConfig, Rank, ReduceOp,
    ShrinkConfig, Stream, UniqueId, Watch,
};
use collectives_crew::Member;
use rustix::process::{Signal, getpid, kill_process};

use crate::{
    case::Case,
    word::{Order, Task, Word},
};

type Outcome<T = ()> = Result<T, Box<dyn StdError>>;

/// Serves as a rank until the round is over. What goes wrong is told to the parent.
pub(crate) fn serve(member: &'static Member) -> Outcome {
    let (sender, orders) = mpsc::channel();
    // A rank that is done takes no more orders.
    member.listen(move |order: Order| drop(sender.send(order)))?;
    let Order::Begin(task) = orders.recv()? else {
        return Err("the round begins with a task".into());
    };
    let seat =
        Seat { member, orders, task, is_lost: Cell::new(false), members: RefCell::default() };
    if let Err(error) = seat.run() {
        member.tell(&Word::Failed(error.to_string()));
    }
    Ok(())
}

struct Seat {
    member: &'static Member,
    orders: Receiver<Order>,
    task: Task,
    /// Whether the victim's process has ended.
    is_lost: Cell<bool>,
    /// Who goes on, once that was told.
    members: RefCell<Option<Vec<usize>>>,
}

impl Seat {
    fn run(&self) -> Outcome {
        let backend = collectives::backend()?;
        let info = backend.info();
        self.member.tell(&Word::Library(format!("{} {}", info.backend, info.version)));
        // Now, so that no join has to wait for a slow driver.
        backend.device(self.device())?;
        if self.is_victim() && self.task.case == Case::NeverJoins {
            return self.hear(|order| matches!(order, Order::Leave).then_some(()));
        }
        let failed = self.fail(&backend)?;
        let members = self.regrouped()?;
        let shrinks = failed.as_ref().is_some_and(|comm| self.shrinks(comm));
        let comm = self.recover(&backend, failed, &members)?;
        go_on(&comm)?;
        comm.finalize()?;
        self.member.tell(&Word::Done { shrunk: shrinks });
        Ok(())
    }

    /// Comes to where the case has its error, and tells it. The communicator that failed comes back,
    /// where there is one.
    fn fail(&self, backend: &AnyBackend) -> Outcome<Option<Communicator>> {
        let task = &self.task;
        let id = self.id(backend, task.maker)?;
        self.meet()?;
        if self.is_victim() {
            match task.case {
                Case::KilledBeforeJoin => die(),
                Case::KilledDuringJoin => die_after(task.moment),
                _ => {}
            }
        } else if task.late && self.member.rank() == self.last_survivor() {
            while !self.is_lost.get() {
                self.hear(|_| Some(()))?;
            }
        }
        let config = JoinConfig::new(self.member.rank() as u32, self.member.size());
        // A driver that has just been loaded may be slow, which is not what other cases are about.
        let deadline = if task.case.is_about_joins() { task.deadline } else { PATIENCE };
        let begun = Instant::now();
        let comm = match self.join(backend, &id, config, deadline) {
            Ok(comm) => comm,
            Err(error) if task.case.is_about_joins() => {
                self.told(error, begun);
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        if task.case != Case::KilledDuringJoin {
            let stream = comm.new_stream()?;
            comm.on(&stream).warm_up()?;
            stream.synchronize()?;
            self.meet()?;
        }
        self.watch(&comm);
        self.lose(&comm)?;
        Ok(Some(comm))
    }

    /// Loses an operation on a communicator of all ranks.
    fn lose(&self, comm: &Communicator) -> Outcome {
        let (case, moment) = (self.task.case, self.task.moment);
        match case {
            Case::KilledBeforeJoin | Case::NeverJoins => {
                Err("all ranks joined, though one cannot have".into())
            }
            Case::KilledBeforeCollective => {
                let begun = Instant::now();
                if self.is_victim() {
                    self.meet()?;
                    die();
                }
                let mut pair = Pair::new(comm, MANY)?;
                let issued = pair.issue(comm);
                self.meet()?;
                let Err(error) = issued.and_then(|()| pair.check(comm)) else {
                    return Err("a collective is complete without a rank".into());
                };
                self.told(error, begun);
                Ok(())
            }
            Case::SmallerCollective => {
                let count = if self.is_victim() { FEW } else { MANY };
                let mut pair = Pair::new(comm, count)?;
                let begun = Instant::now();
                match pair.issue(comm).and_then(|()| pair.stream.synchronize()) {
                    Ok(()) if self.is_victim() => self.member.tell(&Word::Unharmed),
                    Ok(()) => return Err("a smaller collective went unnoticed".into()),
                    Err(error) => self.told(error, begun),
                }
                Ok(())
            }
            // The kill is under way.
            Case::KilledDuringJoin => {
                let mut pair = Pair::new(comm, MANY)?;
                self.until_it_fails(|| pair.step(comm))
            }
            Case::KilledDuringCollective => {
                let mut pair = Pair::new(comm, MANY)?;
                if self.is_victim() {
                    die_after(moment);
                }
                self.until_it_fails(|| pair.step(comm))
            }
            Case::KilledAfterCollective => {
                let mut pair = Pair::new(comm, MANY)?;
                if self.is_victim() {
                    pair.step(comm)?;
                    die();
                }
                // The others may still wait for the same one when it is gone.
                self.until_it_fails(|| pair.step(comm))
            }
            Case::KilledDuringCapture => {
                let mut pair = Pair::new(comm, MANY)?;
                let begun = Instant::now();
                let captured = pair.capture(comm, || {
                    if self.is_victim() {
                        die();
                    }
                });
                match captured {
                    Ok(graph) => self.until_it_fails(|| pair.replay(&graph)),
                    // The library has heard of the loss before the capture was over.
                    Err(error) => {
                        self.told(error, begun);
                        Ok(())
                    }
                }
            }
            Case::KilledDuringReplay => {
                let mut pair = Pair::new(comm, MANY)?;
                let graph = pair.capture(comm, || {})?;
                self.meet()?;
                if self.is_victim() {
                    die_after(moment);
                }
                self.until_it_fails(|| pair.replay(&graph))
            }
        }
    }

    /// Steps until one fails, and tells how.
    fn until_it_fails(&self, mut step: impl FnMut() -> collectives::Result<()>) -> Outcome {
        let until = Instant::now() + LONGEST;
        while Instant::now() < until {
            let begun = Instant::now();
            if let Err(error) = step() {
                self.told(error, begun);
                return Ok(());
            }
        }
        Err(format!("no step failed within {LONGEST:?}").into())
    }

    /// A communicator of those who go on.
    fn recover(
        &self,
        backend: &AnyBackend,
        failed: Option<Communicator>,
        members: &[usize],
    ) -> Outcome<Communicator> {
        if let Some(comm) = failed {
            if self.shrinks(&comm) {
                let lost = Rank::new(self.task.victim as u32);
                let rest = if comm.capabilities().revoke.is_available() {
                    comm.revoke()?;
                    comm.shrink(ShrinkConfig::new([lost]))?
                } else {
                    comm.shrink(ShrinkConfig::new([lost]).with_abort())?
                };
                drop(comm);
                return Ok(rest);
            }
            comm.abort()?;
        }
        let place = members.iter().position(|&member| member == self.member.rank());
        let place = place.ok_or("those who go on are without this rank")?;
        let id = self.id(backend, members[0])?;
        let config = JoinConfig::new(place as u32, members.len());
        Ok(self.join(backend, &id, config, PATIENCE)?)
    }

    fn join(
        &self,
        backend: &AnyBackend,
        id: &UniqueId,
        config: JoinConfig,
        deadline: Duration,
    ) -> collectives::Result<Communicator> {
        let config = config.with_device(self.device()).with_name("drill").with_deadline(deadline);
        Communicator::join(backend, id, config)
    }

    /// Whether survivors shrink: where they are to, and the library can.
    fn shrinks(&self, comm: &Communicator) -> bool {
        self.task.shrinks && comm.capabilities().shrink.is_available()
    }

    fn watch(&self, comm: &Communicator) {
        let watch = Watch::new().with_deadline(self.task.deadline);
        // An aborted communicator cannot be shrunk.
        comm.watch(if self.shrinks(comm) { watch.without_abort() } else { watch });
    }

    fn told(&self, error: Error, begun: Instant) {
        let millis = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.member.tell(&Word::Told { error, millis });
    }

    fn is_victim(&self) -> bool {
        self.member.rank() == self.task.victim
    }

    fn last_survivor(&self) -> usize {
        let last = self.member.size() - 1;
        if last == self.task.victim { last - 1 } else { last }
    }

    fn device(&self) -> usize {
        if self.task.one_gpu { 0 } else { self.member.rank() }
    }

    /// The id that `maker` makes, and everybody gets.
    fn id(&self, backend: &AnyBackend, maker: usize) -> Outcome<UniqueId> {
        if self.member.rank() == maker {
            self.member.tell(&Word::Id(backend.unique_id()?.to_base64()));
        }
        let text =
            self.hear(|order| if let Order::Id(text) = order { Some(text) } else { None })?;
        Ok(text.parse()?)
    }

    /// Waits until all ranks that live are here.
    fn meet(&self) -> Outcome {
        self.member.tell(&Word::Here);
        self.hear(|order| matches!(order, Order::Go).then_some(()))
    }

    /// Waits until everybody was told, and hears who goes on.
    fn regrouped(&self) -> Outcome<Vec<usize>> {
        while self.members.borrow().is_none() {
            self.hear(|_| Some(()))?;
        }
        Ok(self.members.take().unwrap_or_default())
    }

    /// Waits for an order that `wanted` knows. What says how things stand is kept.
    fn hear<T>(&self, wanted: impl Fn(Order) -> Option<T>) -> Outcome<T> {
        loop {
            let order = match self.orders.recv()? {
                Order::Lost => {
                    self.is_lost.set(true);
                    Order::Lost
                }
                Order::Regroup(members) => {
                    *self.members.borrow_mut() = Some(members.clone());
                    Order::Regroup(members)
                }
                order => order,
            };
            if let Some(found) = wanted(order) {
                return Ok(found);
            }
        }
    }
}

/// What a sum is made from, and where it goes.
struct Pair {
    stream: Stream,
    send: Buffer<f32>,
    recv: Buffer<f32>,
}

impl Pair {
    /// Each rank gives its number and one.
    fn new(comm: &Communicator, count: usize) -> collectives::Result<Self> {
        let stream = comm.new_stream()?;
        let send = stream.upload(&vec![(comm.rank() + 1) as f32; count])?;
        let recv = stream.zeros(count)?;
        Ok(Self { stream, send, recv })
    }

    fn issue(&mut self, comm: &Communicator) -> collectives::Result<()> {
        comm.on(&self.stream).all_reduce(&self.send, &mut self.recv, ReduceOp::Sum)
    }

    /// Waits, and looks at both ends of the result.
    fn check(&self, comm: &Communicator) -> collectives::Result<()> {
        let want = (comm.size() * (comm.size() + 1) / 2) as f32;
        let last = self.recv.len() - 1;
        for range in [0..1, last..last + 1] {
            let found = self.recv.slice(range).to_vec(&self.stream)?;
            assert_eq!(found, [want], "rank {} has a wrong sum", comm.rank());
        }
        Ok(())
    }

    fn step(&mut self, comm: &Communicator) -> collectives::Result<()> {
        self.issue(comm)?;
        self.check(comm)
    }

    /// Captures the sum, twice, with `between` in the midst.
    fn capture(
        &mut self,
        comm: &Communicator,
        between: impl FnOnce(),
    ) -> collectives::Result<Graph> {
        comm.capture(|scope| {
            scope.on(comm).all_reduce(&self.send, &mut self.recv, ReduceOp::Sum)?;
            between();
            scope.on(comm).all_reduce(&self.send, &mut self.recv, ReduceOp::Sum)
        })
    }

    fn replay(&self, graph: &Graph) -> collectives::Result<()> {
        graph.launch(&self.stream)?;
        self.stream.synchronize()
    }
}

/// Shows that the new communicator is good for all that the old one was.
fn go_on(comm: &Communicator) -> Outcome {
    let mut pair = Pair::new(comm, MANY)?;
    comm.on(&pair.stream).warm_up()?;
    for _ in 0..3 {
        pair.step(comm)?;
    }
    let graph = pair.capture(comm, || {})?;
    for _ in 0..3 {
        graph.launch(&pair.stream)?;
        pair.check(comm)?;
    }
    Ok(())
}

fn die_after(moment: Duration) {
    thread::spawn(move || {
        thread::sleep(moment);
        die()
    });
}

/// As the kernel does it to a process that is out of memory: nothing of it runs any more.
fn die() -> ! {
    // It cannot fail for this process itself.
    let _ = kill_process(getpid(), Signal::KILL);
    std::process::abort()
}

/// Elements of a sum that no library sends in one piece: 4 MiB.
const MANY: usize = 1 << 20;
/// Elements of one that is smaller than that.
const FEW: usize = 1 << 10;
/// How long a rank makes steps until one fails: the victim is killed within a second.
const LONGEST: Duration = Duration::from_secs(30);
/// For the join of those who go on.
const PATIENCE: Duration = Duration::from_secs(30);
