//! The same programs with each rank in a process of its own, which makes its part from the seed and
//! compares its own memory with the oracle's.

use std::{
    fmt, fs, io,
    panic::{self, AssertUnwindSafe},
    process::{self, Command},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{self, Receiver},
    },
    thread,
    time::{Duration, Instant},
};

use collectives_backend_mock::{ExitNotice, ExitNotices, Mock, MockConfig, Ranks};
use collectives_core::{AbortHandle, Backend, UniqueId};
use collectives_crew::{Crew, Event, Member};
use rustix::process::{Pid, Signal, getpid, kill_process};
use serde::{Deserialize, Serialize};

use crate::{
    deaths::{Death, JOIN, Outcome, Point, Told, blame, recover},
    lower::lower,
    mock::{Setting, Trouble, difference, nothing_left, text_of},
    oracle::expected,
    program::Program,
    rank::{End, Keep, Post, Watch, run_rank},
};

/// Processes, one for each rank of a program, which can run one after the other.
pub struct Troupe {
    crew: Crew<Word>,
    notices: Vec<Option<ExitNotice>>,
    /// Makes ids.
    mock: Mock,
}

/// What a rank is to do.
#[derive(Debug, Deserialize, Serialize)]
enum Order {
    /// To end its communicators, and see what is left.
    Leave,
    /// To go on without one rank.
    Recover { dead: usize },
    /// To run its part of a program.
    Run { seed: u64, death: Option<Death>, ids: Vec<UniqueId> },
    /// To say what it does.
    Where,
}

/// What a rank says.
#[derive(Debug, Deserialize, Serialize)]
enum Word {
    /// It is done with its part.
    Done(Ended),
    /// It has joined all others.
    Joined,
    /// It has left, or says what is left.
    Left(Result<(), String>),
    /// The sum afterwards.
    Recovered(Result<u64, String>),
    Where(String),
}

/// How a rank ended its part.
#[derive(Debug, Deserialize, Serialize)]
enum Ended {
    /// With the memory that the oracle has.
    Right,
    /// Of an error; and whether it has a communicator to go on from.
    Told(Told, bool),
    Wrong(String),
}

impl Troupe {
    /// Starts so many processes, by a command that comes to [`serve`].
    ///
    /// # Errors
    /// What the system says.
    pub fn start(
        size: usize,
        mut command: impl FnMut() -> io::Result<Command>,
    ) -> io::Result<Self> {
        let (job, mut notices) = (ExitNotices::for_job(size)?, Vec::new());
        let crew = Crew::start(CREW, size, |rank| {
            let mut command = command()?;
            notices.push(Some(job.attach(rank, &mut command)?));
            Ok(command)
        })?;
        let mock = Mock::new(MockConfig::new().with_ranks(Ranks::Processes));
        Ok(Self { crew, notices, mock })
    }

    /// The command that starts this very program.
    ///
    /// # Errors
    /// The system does not tell where it is.
    pub fn this_program() -> io::Result<Command> {
        collectives_crew::this_program()
    }

    /// Runs the program of a seed, with at most as many ranks as there are processes.
    ///
    /// # Errors
    /// What is wrong. The processes are of no more use then.
    pub fn check(&mut self, seed: u64, deadline: Duration) -> Result<(), Trouble> {
        let program = Program::generate(seed);
        let ranks = self.run(&program, None, Instant::now() + deadline)?;
        let told = ranks.iter().enumerate().filter_map(|(rank, end)| match end {
            Some(Ended::Told(told, _)) => Some(format!("\n  rank {rank}: {told}")),
            _ => None,
        });
        let told: String = told.collect();
        match told.is_empty() {
            true => self.leave(0..program.ranks, Instant::now() + deadline),
            false => Err(Trouble::Error(told)),
        }
    }

    /// As [`survive`](crate::survive), where the process of a rank dies. No other may be alive
    /// afterwards than those of the survivors.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn survive(
        &mut self,
        seed: u64,
        death: Death,
        deadline: Duration,
    ) -> Result<Outcome, Trouble> {
        let program = Program::generate(seed);
        let until = Instant::now() + deadline;
        let ranks = self.run(&program, Some(death), until)?;
        let died = ranks[death.rank].is_none();
        let (mut told, mut alive, mut done, mut joined) = (Vec::new(), Vec::new(), 0, true);
        for (rank, end) in ranks.into_iter().enumerate() {
            match end {
                None => continue,
                Some(Ended::Told(text, has_world)) => {
                    told.push((rank, text));
                    joined &= has_world;
                }
                Some(_) => done += 1,
            }
            alive.push(rank);
        }
        if !died && let Some((rank, told)) = told.first() {
            return Err(Trouble::Error(format!("nobody died, and rank {rank}: {told}")));
        }
        blame(&program, death.rank, Some(self.crew.pid(death.rank)), &told)?;
        // Who died before all had joined leaves nothing to go on from.
        if died && joined {
            self.recover(death.rank, &alive, until)?;
        }
        self.leave(alive.into_iter(), until)?;
        Ok(Outcome { died, told: told.len(), done })
    }

    /// By rank: how it ended; `None` for the dead.
    fn run(
        &mut self,
        program: &Program,
        death: Option<Death>,
        until: Instant,
    ) -> Result<Vec<Option<Ended>>, Trouble> {
        let ids = program.comms.iter().map(|_| self.mock.unique_id()).collect::<Result<_, _>>();
        let ids = ids.map_err(|error| Trouble::Error(error.to_string()))?;
        let order = Order::Run { seed: program.seed, death, ids };
        (0..program.ranks).for_each(|rank| self.crew.tell(rank, &order));
        let mut ends: Vec<Option<Option<Ended>>> = (0..program.ranks).map(|_| None).collect();
        // Whoever is killed from here is waited for, whatever it said before.
        let (mut joined, mut kills) = (0, false);
        while ends.iter().any(Option::is_none) || kills {
            let missing = (0..program.ranks).filter(|&rank| ends[rank].is_none());
            match self.crew.next(Some(until)) {
                None => {
                    let missing = missing.collect();
                    return Err(self.hang(missing));
                }
                Some((rank, Event::Said(Word::Done(Ended::Wrong(text))))) => {
                    return Err(Trouble::Difference(format!("rank {rank}: {text}")));
                }
                Some((rank, Event::Said(Word::Done(end)))) => ends[rank] = Some(Some(end)),
                Some((_, Event::Said(Word::Joined))) => {
                    joined += 1;
                    if let Some(Death { rank, point: Point::After { micros } }) = death
                        && joined == program.ranks
                    {
                        thread::sleep(Duration::from_micros(micros));
                        kill(self.crew.pid(rank));
                        kills = true;
                    }
                }
                Some((rank, Event::Said(word))) => return Err(out_of_turn(rank, &word)),
                Some((rank, Event::Ended(end))) => {
                    if let (Some(notice), Some(status)) = (self.notices[rank].take(), end.status) {
                        notice.publish(status);
                    }
                    if death.is_none_or(|death| death.rank != rank) {
                        return Err(Trouble::Panic(format!("rank {rank}: {end}")));
                    }
                    ends[rank] = Some(None);
                    kills = false;
                }
            }
        }
        Ok(ends.into_iter().flatten().collect())
    }

    fn recover(&mut self, dead: usize, alive: &[usize], until: Instant) -> Result<(), Trouble> {
        alive.iter().for_each(|&rank| self.crew.tell(rank, &Order::Recover { dead }));
        let want: usize = alive.iter().sum();
        self.hear(alive.to_vec(), until, |rank, word| match word {
            Word::Recovered(Ok(sum)) if sum == want as u64 => Ok(()),
            Word::Recovered(Ok(sum)) => {
                let text = format!("rank {rank} has {sum} afterwards, want {want}");
                Err(Trouble::Difference(text))
            }
            Word::Recovered(Err(text)) => {
                Err(Trouble::Error(format!("rank {rank} cannot go on: {text}")))
            }
            word => Err(out_of_turn(rank, &word)),
        })
    }

    fn leave(&mut self, ranks: impl Iterator<Item = usize>, until: Instant) -> Result<(), Trouble> {
        let ranks: Vec<_> = ranks.collect();
        ranks.iter().for_each(|&rank| self.crew.tell(rank, &Order::Leave));
        self.hear(ranks, until, |rank, word| match word {
            Word::Left(outcome) => {
                outcome.map_err(|text| Trouble::Left(format!("rank {rank}: {text}")))
            }
            word => Err(out_of_turn(rank, &word)),
        })
    }

    /// Hears one word of each rank.
    fn hear(
        &mut self,
        mut missing: Vec<usize>,
        until: Instant,
        mut take: impl FnMut(usize, Word) -> Result<(), Trouble>,
    ) -> Result<(), Trouble> {
        while !missing.is_empty() {
            match self.crew.next(Some(until)) {
                None => return Err(self.hang(missing)),
                Some((rank, Event::Said(word))) => {
                    take(rank, word)?;
                    missing.retain(|&other| other != rank);
                }
                Some((rank, Event::Ended(end))) => {
                    return Err(Trouble::Panic(format!("rank {rank}: {end}")));
                }
            }
        }
        Ok(())
    }

    /// What ranks do that are late.
    fn hang(&mut self, mut missing: Vec<usize>) -> Trouble {
        missing.iter().for_each(|&rank| self.crew.tell(rank, &Order::Where));
        let mut report = String::new();
        let until = Instant::now() + Duration::from_secs(2);
        while !missing.is_empty()
            && let Some((rank, event)) = self.crew.next(Some(until))
        {
            match event {
                Event::Said(Word::Where(text)) => report += &format!("\n  rank {rank}: {text}"),
                other => report += &format!("\n  rank {rank}: {other:?}"),
            }
            missing.retain(|&other| other != rank);
        }
        Trouble::Hang(report)
    }
}

impl fmt::Debug for Troupe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.crew.fmt(f)
    }
}

fn out_of_turn(rank: usize, word: &Word) -> Trouble {
    Trouble::Error(format!("rank {rank} says out of turn: {word:?}"))
}

/// Does what the parent says, and does not come back, where this process is one of a troupe. What a
/// program does first that starts troupes.
///
/// # Errors
/// The environment says that this process is one, and it cannot be.
pub fn serve() -> io::Result<()> {
    let Some(member) = Member::here(CREW)? else { return Ok(()) };
    let doing = Arc::new(Doing::default());
    let (sender, orders) = mpsc::channel();
    let asked = Arc::clone(&doing);
    member.listen(move |order| match order {
        Order::Where => member.tell(&Word::Where(asked.place())),
        // The other end lives as long as the process.
        order => _ = sender.send(order),
    })?;
    let before = descriptors();
    while let Ok(order) = orders.recv() {
        if let Order::Run { seed, death, ids } = order {
            let left = play(member, &orders, &doing, seed, death, &ids);
            member.tell(&Word::Left(left.and_then(|()| has_closed(&before))));
        }
    }
    process::exit(0)
}

/// One program, to the end.
fn play(
    member: &'static Member,
    orders: &Receiver<Order>,
    doing: &Arc<Doing>,
    seed: u64,
    death: Option<Death>,
    ids: &[UniqueId],
) -> Result<(), String> {
    let program = Program::generate(seed);
    let rank = member.rank();
    let mut setting = Setting::draw(seed);
    if let Some(death) = death {
        setting = setting.with_death(&program, death);
    }
    let mock = setting.mock(&program, Ranks::Processes);
    *lock(&doing.mock) = Some(mock.clone());
    let (keep, things) = (Keep::default(), AtomicUsize::new(0));
    let looker = Looker { member, doing, death, things, joined: AtomicBool::new(false) };
    let joins = death.map(|_| JOIN);
    let post = Post { backend: &mock, ids, rank, joins, watch: &looker, keep: &keep };
    let outcome =
        panic::catch_unwind(AssertUnwindSafe(|| run_rank(&post, &program, &lower(&program, rank))));
    let mut world = match outcome {
        Ok(End { outcome, world }) => {
            member.tell(&Word::Done(match outcome {
                Err(failure) => Ended::Told(failure.into(), world.is_some()),
                Ok(memory) => match difference(&memory, &expected(&program)[rank]) {
                    None => Ended::Right,
                    Some(text) => Ended::Wrong(text),
                },
            }));
            world
        }
        Err(payload) => {
            let text = text_of(&*payload);
            if !text.starts_with("killed") {
                eprintln!("rank {rank}, seed {seed}: {text}");
            }
            process::exit(1)
        }
    };
    loop {
        match (orders.recv(), world.take()) {
            (Ok(Order::Recover { dead }), Some(world)) => {
                let sum = recover(&mock, rank, dead, world).map_err(|error| error.to_string());
                member.tell(&Word::Recovered(sum));
            }
            (Ok(Order::Leave), world) => {
                drop(world);
                *lock(&doing.mock) = None;
                return nothing_left(&mock).map_err(|trouble| trouble.to_string());
            }
            (order, _) => return Err(format!("cannot do {order:?}")),
        }
    }
}

/// What this process does, for whoever asks.
#[derive(Default)]
struct Doing {
    what: Mutex<String>,
    mock: Mutex<Option<Mock>>,
}

impl Doing {
    fn place(&self) -> String {
        let mut text = lock(&self.what).clone();
        if let Some(mock) = &*lock(&self.mock) {
            for op in mock.pending() {
                text += &format!("\n    pending: {op}");
            }
            for verdict in mock.verdicts() {
                text += &format!("\n    verdict: {verdict}");
            }
        }
        text
    }
}

struct Looker<'a> {
    member: &'a Member,
    joined: AtomicBool,
    doing: &'a Doing,
    death: Option<Death>,
    things: AtomicUsize,
}

impl Watch for Looker<'_> {
    fn about_to(&self, rank: usize, what: &dyn fmt::Debug) {
        *lock(&self.doing.what) = format!("{what:?}").chars().take(300).collect();
        let before = self.things.fetch_add(1, Ordering::Relaxed);
        if self.death.is_some_and(|death| {
            death.rank == rank
                && matches!(death.point, Point::Before { things } if things == before)
        }) {
            kill(getpid().as_raw_pid().cast_unsigned());
        }
    }

    fn has(&self, _rank: usize, _handle: AbortHandle) {
        if !self.joined.swap(true, Ordering::Relaxed) {
            self.member.tell(&Word::Joined);
        }
    }
}

/// Ends a process as the system does that is out of memory.
fn kill(pid: u32) {
    if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
        // One that has ended needs no killing.
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// What is open, but for what a process gets from its launcher, and copies once.
fn descriptors() -> Vec<String> {
    let open = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let mut open: Vec<_> = open
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .map(|link| link.to_string_lossy().into_owned())
        .filter(|name| !name.contains("collectives-roster"))
        .collect();
    open.sort();
    open
}

/// Whether all descriptors are closed that a mock had. Its threads end a little later.
fn has_closed(before: &[String]) -> Result<(), String> {
    let until = Instant::now() + Duration::from_secs(2);
    while descriptors().len() > before.len() {
        if Instant::now() > until {
            return Err(format!("open were {before:?}, now {:?}", descriptors()));
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const CREW: &str = "soak";
