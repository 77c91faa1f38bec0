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

use collectives_backend_mock::{Action as Fault, Mock, MockComm, Ranks, Rule};
use collectives_core::{
    Backend, Collectives, Device, Launch, Rank, RecvBuf, ReduceOp, Result, ShrinkConfig, Split,
};
use serde::{Deserialize, Serialize};

use crate::{
    lower::{Action, lower},
    mock::{Setting, Trouble, difference, nothing_left, run},
    oracle::expected,
    program::Program,
    random::Random,
    rank::Failure,
};

/// Who dies, and when.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Death {
    /// The rank.
    pub rank: usize,
    /// The point.
    pub point: Point,
}

/// When a rank dies.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub enum Point {
    /// Its process is killed so long after all have joined.
    After {
        /// Microseconds.
        micros: u64,
    },
    /// Its thread panics, or its process is killed, when it has done so many things: between calls, in a
    /// group, in a capture.
    Before {
        /// The number.
        things: usize,
    },
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
            Point::Before { things: 1 + random.below(things.max(1)) }
        };
        Self { rank, point }
    }

    /// The same for ranks that are processes, which may also be killed from outside.
    pub fn draw_for_processes(seed: u64, program: &Program) -> Self {
        let mut random = Random::new(seed, 6);
        let death = Self::draw(seed, program);
        match random.one_in(2) {
            true => Self { point: Point::After { micros: random.next() % 3000 }, ..death },
            false => death,
        }
    }

    /// The rule that kills, where one does.
    pub(crate) fn rule(self, program: &Program) -> Option<Rule> {
        let Point::Call { comm, sequence } = self.point else { return None };
        let own = program.comms[comm].iter().position(|&member| member == self.rank);
        let rule = Rule::new(Fault::Kill).on_rank(own.unwrap_or_default() as u32);
        Some(rule.on_communicator(format!("c{comm}")).at(sequence..sequence + 1))
    }
}

/// What a survivor was told.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Told {
    message: String,
    communicator: Option<String>,
    /// All of it.
    text: String,
}

impl From<Failure> for Told {
    fn from(failure: Failure) -> Self {
        Self {
            message: failure.error.message().into(),
            communicator: failure.error.communicator().map(Into::into),
            text: failure.to_string(),
        }
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
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
            Point::After { micros } => write!(f, "rank {rank} dies after {micros} µs"),
            Point::Before { things } => {
                write!(f, "rank {rank} dies when it has done {things} things")
            }
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
    let mock = setting.clone().with_death(program, death).mock(program, Ranks::Threads);
    let count = AtomicUsize::new(0);
    let about_to = move |rank: usize| {
        if rank == death.rank
            && let Point::Before { things } = death.point
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
            Err(failure) => told.push((rank, Told::from(failure))),
        }
        match end.world {
            Some(world) => worlds.push((rank, world)),
            None => return Err(Trouble::Left(format!("rank {rank} has no communicator left"))),
        }
    }
    if !died && let Some((rank, told)) = told.first() {
        return Err(Trouble::Error(format!("nobody died, and rank {rank}: {told}")));
    }
    blame(program, death.rank, None, &told)?;
    if died {
        recover_all(&mock, death.rank, worlds)?;
    } else {
        // The rule may still wait for its call.
        drop(worlds);
    }
    nothing_left(&mock)?;
    Ok(Outcome { died, told: told.len(), done })
}

/// Fails unless every error names the dead, or somebody who was told and left because of it; and one
/// the dead. Where its process has ended before it could say which rank it is, its pid names it.
pub(crate) fn blame(
    program: &Program,
    dead: usize,
    pid: Option<u32>,
    told: &[(usize, Told)],
) -> Result<(), Trouble> {
    let gone = |rank: usize| rank == dead || told.iter().any(|(other, _)| *other == rank);
    let mut names_dead = told.is_empty();
    let ended = pid.map(|pid| format!("pid {pid} ended"));
    for (rank, error) in told {
        if ended.as_ref().is_some_and(|ended| error.message.starts_with(ended)) {
            names_dead = true;
            continue;
        }
        let named = named(program, *rank, error);
        names_dead |= named.contains(&dead);
        if !named.iter().any(|&named| named != *rank && gone(named)) {
            let text = format!("rank {rank} is told of nobody who is gone: {error}");
            return Err(Trouble::Error(text));
        }
    }
    if names_dead {
        return Ok(());
    }
    let list: String =
        told.iter().map(|(rank, error)| format!("\n  rank {rank}: {error}")).collect();
    Err(Trouble::Error(format!("nobody is told of rank {dead}:{list}")))
}

/// The ranks that an error may be about. It has ranks of its communicator, which not all name.
fn named(program: &Program, rank: usize, error: &Told) -> Vec<usize> {
    let text = &error.message;
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
        error.communicator.as_ref().and_then(|name| name.strip_prefix('c')?.parse::<usize>().ok());
    let comms: Vec<&Vec<usize>> = match number.and_then(|number| program.comms.get(number)) {
        Some(comm) => vec![comm],
        None => program.comms.iter().filter(own).collect(),
    };
    let members = comms.iter().flat_map(|comm| within.iter().filter_map(|&at| comm.get(at)));
    members.copied().collect()
}

/// What a survivor does: it gives up what is lost, shrinks, and adds up the ranks that are left.
pub(crate) fn recover(mock: &Mock, rank: usize, dead: usize, world: MockComm) -> Result<u64> {
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
    Ok(value[0])
}

/// All survivors do.
fn recover_all(mock: &Mock, dead: usize, worlds: Vec<(usize, MockComm)>) -> Result<(), Trouble> {
    let want: u64 = worlds.iter().map(|(rank, _)| *rank as u64).sum();
    thread::scope(|scope| {
        let threads: Vec<_> = worlds
            .into_iter()
            .map(|(rank, world)| (rank, scope.spawn(move || recover(mock, rank, dead, world))))
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
pub(crate) const JOIN: Duration = Duration::from_secs(2);
