//! A rank dies at a random point: the others are told, go on, and nothing is left behind.

use std::{
    fmt, panic,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use collectives_backend_mock::{Action as Fault, Mock, MockComm, Rule};
use collectives_core::{
    Backend, Collectives, Device, Launch, Rank, RecvBuf, ReduceOp, ShrinkConfig, Split,
};

use crate::{
    lower::{Action, lower},
    mock::{Setting, Trouble, difference, nothing_left, run},
    oracle::expected,
    program::Program,
    random::Random,
    rank::Failure,
};

/// Who dies, and when.
#[derive(Clone, Copy, Debug)]
pub struct Death {
    /// The rank.
    pub rank: usize,
    /// The point.
    pub point: Point,
}

/// When a rank dies.
#[derive(Clone, Copy, Debug)]
pub enum Point {
    /// Its thread panics before it does its so-many-th thing: between calls, in a group, in a capture.
    Before(usize),
    /// A fault rule kills it in the call of a collective or message with this number.
    Call {
        /// On this communicator.
        comm: usize,
        /// Of its collectives, or of its messages with some peer.
        sequence: u64,
    },
}

/// How a run with a death ended.
#[derive(Debug)]
pub struct Outcome {
    /// Whether the point was reached.
    pub died: bool,
    /// Survivors that were told.
    pub told: usize,
    /// Survivors that had done all before it mattered.
    pub done: usize,
}

impl Death {
    /// What the seed says, for a program of two ranks or more.
    pub fn draw(seed: u64, program: &Program) -> Self {
        let mut random = Random::new(seed, 3);
        let rank = random.below(program.ranks);
        // A communicator that the rank is in.
        let own = |comm: &usize| program.comms[*comm].contains(&rank);
        let comms: Vec<_> = (0..program.comms.len()).filter(own).collect();
        let point = if random.one_in(3) {
            Point::Call { comm: random.of(&comms), sequence: random.next() % 6 }
        } else {
            let things: usize = lower(program, rank).iter().map(things).sum();
            Point::Before(1 + random.below(things.max(1)))
        };
        Self { rank, point }
    }
}

/// How often somebody is told that a rank is about to do something.
fn things(action: &Action<'_>) -> usize {
    match action {
        Action::Group(parts) => parts.len() + 1,
        Action::Capture { body, .. } => body.iter().map(things).sum(),
        _ => 1,
    }
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rank = self.rank;
        match self.point {
            Point::Before(things) => write!(f, "rank {rank} dies before its {things}th thing"),
            Point::Call { comm, sequence } => {
                write!(f, "rank {rank} dies in call #{sequence} on c{comm}")
            }
        }
    }
}

/// Runs a program in which a rank dies. Every survivor must have done all, with the right results, or
/// be told of an error that names the dead, or another who was told. Afterwards the survivors shrink
/// the communicator of all ranks, and add up.
///
/// # Errors
/// What is wrong.
pub fn survive(
    program: &Program,
    setting: &Setting,
    death: Death,
    deadline: Duration,
) -> Result<Outcome, Trouble> {
    let mut setting = setting.clone();
    if let Point::Call { comm, sequence } = death.point {
        let own = program.comms[comm].iter().position(|&member| member == death.rank);
        let rule = Rule::new(Fault::Kill).on_rank(own.unwrap_or_default() as u32);
        let rule = rule.on_communicator(format!("c{comm}")).at(sequence..sequence + 1);
        setting = setting.with_rule(rule);
    }
    let mock = setting.mock(program);
    let count = AtomicUsize::new(0);
    let about_to = move |rank: usize| {
        if rank == death.rank
            && let Point::Before(things) = death.point
            && count.fetch_add(1, Ordering::Relaxed) == things
        {
            // Without the panic hook: nobody needs a backtrace.
            panic::resume_unwind(Box::new(format!("killed: {death}")));
        }
    };
    let keep = Arc::default();
    let outcomes = run(&mock, &keep, program, deadline, Some(JOIN), Arc::new(|_, _| {}), about_to)?;
    let want = expected(program);
    let (mut told, mut done, mut died) = (Vec::new(), 0, false);
    let mut worlds = Vec::new();
    for (rank, outcome) in outcomes.into_iter().enumerate() {
        let end = match outcome {
            Ok(end) => end,
            Err(text) if rank == death.rank && text.starts_with("killed") => {
                died = true;
                continue;
            }
            Err(text) => return Err(Trouble::Panic(format!("rank {rank}: {text}"))),
        };
        match end.outcome {
            Ok(memory) => match difference(&memory, &want[rank]) {
                None => done += 1,
                Some(text) => return Err(Trouble::Difference(format!("rank {rank}: {text}"))),
            },
            Err(failure) => told.push((rank, failure)),
        }
        match end.world {
            Some(world) => worlds.push((rank, world)),
            None => return Err(Trouble::Left(format!("rank {rank} has no communicator left"))),
        }
    }
    if !died && let Some((rank, failure)) = told.first() {
        return Err(Trouble::Error(format!("nobody died, and rank {rank}: {failure}")));
    }
    blame(program, death.rank, &told)?;
    if died {
        recover(&mock, death.rank, worlds)?;
    } else {
        // The rule may still wait for its call.
        drop(worlds);
    }
    nothing_left(&mock)?;
    Ok(Outcome { died, told: told.len(), done })
}

/// Fails unless every error names the dead, or somebody who was told and left because of it; and one
/// the dead.
fn blame(program: &Program, dead: usize, told: &[(usize, Failure)]) -> Result<(), Trouble> {
    let gone = |rank: usize| rank == dead || told.iter().any(|(other, _)| *other == rank);
    let mut names_dead = told.is_empty();
    for (rank, failure) in told {
        let named = named(program, *rank, failure);
        names_dead |= named.contains(&dead);
        if !named.iter().any(|&named| named != *rank && gone(named)) {
            let text = format!("rank {rank} is told of nobody who is gone: {failure}");
            return Err(Trouble::Error(text));
        }
    }
    if names_dead {
        return Ok(());
    }
    let list: String =
        told.iter().map(|(rank, failure)| format!("\n  rank {rank}: {failure}")).collect();
    Err(Trouble::Error(format!("nobody is told of rank {dead}:{list}")))
}

/// The ranks that an error may be about. It has ranks of its communicator, which not all name.
fn named(program: &Program, rank: usize, failure: &Failure) -> Vec<usize> {
    let error = &failure.error;
    let text = error.message();
    let numbers = |text: &str| -> Vec<usize> {
        let words = text.split(|letter: char| !letter.is_ascii_digit());
        words.filter_map(|word| word.parse().ok()).collect()
    };
    // "rank 1 left …", "came 0, 2; missing 1, 3; …"
    let within = match text.split_once("missing ") {
        Some((_, missing)) => numbers(missing.split(';').next().unwrap_or_default()),
        None => {
            let mut places = text.split("rank ").skip(1);
            places.next().map_or_else(Vec::new, |text| numbers(text).into_iter().take(1).collect())
        }
    };
    let own = |comm: &&Vec<usize>| comm.contains(&rank);
    let number =
        error.communicator().and_then(|name| name.strip_prefix('c')?.parse::<usize>().ok());
    let comms: Vec<&Vec<usize>> = match number.and_then(|number| program.comms.get(number)) {
        Some(comm) => vec![comm],
        None => program.comms.iter().filter(own).collect(),
    };
    let members = comms.iter().flat_map(|comm| within.iter().filter_map(|&at| comm.get(at)));
    members.copied().collect()
}

/// What survivors do: give up what is lost, shrink, and add up their ranks.
fn recover(mock: &Mock, dead: usize, worlds: Vec<(usize, MockComm)>) -> Result<(), Trouble> {
    let want: u64 = worlds.iter().map(|(rank, _)| *rank as u64).sum();
    let recover = |rank: usize, world: MockComm| {
        world.revoke()?;
        let lost = [Rank::new(dead as u32)];
        let comm = world.shrink(ShrinkConfig::new(lost).with_name("survivors"))?;
        drop(world);
        let device = mock.device(rank)?;
        let stream = device.stream_create()?;
        let mut value = [rank as u64];
        let both = RecvBuf::typed(value.as_mut_ptr(), 1);
        // SAFETY: nothing else uses `value` until the stream has passed, below.
        unsafe { comm.all_reduce(both.as_send(), both, ReduceOp::Sum, Launch::new(stream)) }?;
        // SAFETY: the stream is alive.
        unsafe { device.synchronize(stream, None) }?;
        // SAFETY: it has passed everything, and is not used any more.
        unsafe { device.stream_destroy(stream) }?;
        Box::new(comm).finalize()?;
        Ok::<_, collectives_core::Error>(value[0])
    };
    let recover = &recover;
    thread::scope(|scope| {
        let threads: Vec<_> = worlds
            .into_iter()
            .map(|(rank, world)| (rank, scope.spawn(move || recover(rank, world))))
            .collect();
        for (rank, thread) in threads {
            match thread.join() {
                Ok(Ok(sum)) if sum == want => {}
                Ok(Ok(sum)) => {
                    let text = format!("rank {rank} has {sum} afterwards, want {want}");
                    return Err(Trouble::Difference(text));
                }
                Ok(Err(error)) => {
                    return Err(Trouble::Error(format!("rank {rank} cannot go on: {error}")));
                }
                Err(_) => return Err(Trouble::Panic(format!("rank {rank}, going on"))),
            }
        }
        Ok(())
    })
}

/// For how long a rank that joins waits for one that died before.
const JOIN: Duration = Duration::from_secs(2);
