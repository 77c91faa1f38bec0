//! One round: ranks in processes of their own, one of which is lost.

use std::{
    collections::BTreeSet,
    os::unix::process::ExitStatusExt,
    time::{Duration, Instant},
};

use collectives::Error;
use collectives_crew::{Crew, End, Event, this_program};
use serde::Serialize;

use crate::{
    CREW,
    case::Case,
    machine,
    word::{Order, Task, Word},
};

/// How a round went.
#[derive(Debug, Serialize)]
pub(crate) struct Round {
    #[serde(flatten)]
    pub(crate) task: Task,
    /// The library that the ranks opened.
    pub(crate) library: Option<String>,
    /// What survivors were told.
    pub(crate) told: Vec<Told>,
    /// How many ranks went on together.
    pub(crate) went_on: usize,
    /// Whether they did in a communicator that was shrunk.
    pub(crate) shrunk: bool,
    /// What should not have been.
    pub(crate) problems: Vec<String>,
    pub(crate) seconds: f64,
}

/// What a rank was told, and when.
#[derive(Debug, Serialize)]
pub(crate) struct Told {
    pub(crate) rank: usize,
    /// From the call of the operation that failed.
    pub(crate) millis: u64,
    pub(crate) error: Error,
}

impl Round {
    /// Runs it to its end, and looks whether anything of it is left.
    pub(crate) fn run(task: Task, ranks: usize, backend: Option<&str>, grace: Duration) -> Self {
        let begun = Instant::now();
        let crew = Crew::start(CREW, ranks, |rank| {
            let mut program = this_program()?;
            if let Some(backend) = backend {
                program.env("COLLECTIVES_BACKEND", backend);
            }
            if task.one_gpu {
                program.env("NCCL_MULTI_RANK_GPU_ENABLE", "1");
            }
            if let Some(hosts) = task.hosts {
                program.env("NCCL_HOSTID", format!("host {}", rank % hosts));
            }
            // For the mock: ranks that are processes.
            program.env("COLLECTIVES_MOCK_RANKS", "processes");
            Ok(program)
        });
        let round = Self {
            task,
            library: None,
            told: Vec::new(),
            went_on: 0,
            shrunk: false,
            problems: Vec::new(),
            seconds: 0.0,
        };
        let mut round = match crew {
            Ok(crew) => Host::new(round, crew).host(grace),
            Err(error) => Self { problems: vec![error.to_string()], ..round },
        };
        round.seconds = begun.elapsed().as_secs_f64();
        round
    }

    /// The longest that a survivor had to wait for its error, in milliseconds.
    pub(crate) fn slowest(&self) -> Option<u64> {
        self.told.iter().map(|told| told.millis).max()
    }
}

impl Told {
    /// What is wrong with it.
    fn judge(&self, case: Case, limit: Duration) -> Option<String> {
        let Self { rank, millis, error } = self;
        if Duration::from_millis(*millis) > limit {
            return Some(format!("rank {rank} was told after {millis} ms: {error}"));
        }
        let names = |operation| case.operations().contains(&operation);
        if !error.operation().is_some_and(names) {
            let wanted = case.operations().join(" or ");
            return Some(format!("rank {rank} was told nothing of {wanted}: {error}"));
        }
        None
    }
}

/// A round that is going on.
struct Host {
    round: Round,
    crew: Crew<Word>,
    /// Whose processes have not ended.
    alive: BTreeSet<usize>,
    /// Who has come to the present meeting.
    here: BTreeSet<usize>,
    /// Who was told of an error, or was not harmed.
    heard: BTreeSet<usize>,
    /// Who went on.
    done: BTreeSet<usize>,
    /// Who may go on, once they were told to.
    members: Option<BTreeSet<usize>>,
}

impl Host {
    fn new(round: Round, crew: Crew<Word>) -> Self {
        let alive = (0..crew.size()).collect();
        let (here, heard, done) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        Self { round, crew, alive, here, heard, done, members: None }
    }

    fn host(mut self, grace: Duration) -> Round {
        let limit = 4 * self.round.task.deadline + grace + PATIENCE;
        let until = Instant::now() + limit;
        self.crew.tell_all(&Order::Begin(self.round.task.clone()));
        while !self.alive.is_empty() {
            match self.crew.next(Some(until)) {
                Some((rank, Event::Said(word))) => self.hear(rank, word),
                Some((rank, Event::Ended(end))) => self.ended(rank, &end),
                None => {
                    let who = &self.alive;
                    let text = format!("ranks {who:?} have not ended after {limit:?}");
                    self.round.problems.push(text);
                    break;
                }
            }
        }
        self.look_back(grace)
    }

    fn hear(&mut self, rank: usize, word: Word) {
        match word {
            Word::Id(id) => self.crew.tell_all(&Order::Id(id)),
            Word::Library(name) => self.round.library = Some(name),
            Word::Here => {
                self.here.insert(rank);
                self.go_if_all_are_here();
            }
            Word::Told { error, millis } => {
                self.round.told.push(Told { rank, millis, error });
                self.heard.insert(rank);
                self.regroup_if_all_were_told();
            }
            Word::Unharmed => {
                self.heard.insert(rank);
                self.regroup_if_all_were_told();
            }
            Word::Done { shrunk } => {
                self.round.shrunk = shrunk;
                self.done.insert(rank);
                if self.members.as_ref().is_some_and(|members| members.is_subset(&self.done)) {
                    self.crew.tell_all(&Order::Leave);
                }
            }
            Word::Failed(text) => {
                self.round.problems.push(format!("rank {rank}: {text}"));
                // The others may wait for it for ever.
                self.crew.kill();
            }
        }
    }

    fn ended(&mut self, rank: usize, end: &End) {
        self.alive.remove(&rank);
        let Task { case, victim, .. } = self.round.task;
        let by_kill =
            end.killed.is_none() && end.status.and_then(|status| status.signal()) == Some(9);
        if rank == victim && case.kills() {
            if !by_kill {
                self.round.problems.push(format!("the victim was not killed: {end}"));
            }
            self.crew.tell_all(&Order::Lost);
        } else if !end.success() && self.round.problems.is_empty() {
            self.round.problems.push(format!("rank {rank}: {end}"));
            self.crew.kill();
        }
        self.go_if_all_are_here();
        self.regroup_if_all_were_told();
    }

    /// Those who take part: alive, and not the one that stays away.
    fn takers(&self) -> BTreeSet<usize> {
        let Task { case, victim, .. } = self.round.task;
        let stays_away = |rank: &usize| *rank == victim && case == Case::NeverJoins;
        self.alive.iter().copied().filter(|rank| !stays_away(rank)).collect()
    }

    fn go_if_all_are_here(&mut self) {
        if !self.here.is_empty() && self.takers().is_subset(&self.here) {
            self.here.clear();
            self.crew.tell_all(&Order::Go);
        }
    }

    fn regroup_if_all_were_told(&mut self) {
        let members = self.takers();
        // The victim is still to die.
        let waits = self.round.task.case.kills() && self.alive.contains(&self.round.task.victim);
        if self.members.is_none() && !waits && !members.is_empty() && members.is_subset(&self.heard)
        {
            self.crew.tell_all(&Order::Regroup(members.iter().copied().collect()));
            self.members = Some(members);
        }
    }

    /// Judges what was told, and looks for what is left.
    fn look_back(self, grace: Duration) -> Round {
        let Self { mut round, crew, done, .. } = self;
        let pids: Vec<_> = (0..crew.size()).map(|rank| crew.pid(rank)).collect();
        drop(crew);
        let Task { case, victim, deadline, .. } = round.task;
        let survivors = pids.len() - usize::from(case != Case::SmallerCollective);
        round.went_on = done.len();
        if round.problems.is_empty() && done.len() != survivors {
            round.problems.push(format!("{} of {survivors} ranks went on", done.len()));
        }
        round
            .problems
            .extend(round.told.iter().filter_map(|told| told.judge(case, deadline + grace)));
        let untold = (0..pids.len())
            .filter(|rank| *rank != victim && !round.told.iter().any(|told| told.rank == *rank));
        let untold: Vec<_> = untold.collect();
        if round.problems.is_empty() && !untold.is_empty() {
            round.problems.push(format!("ranks {untold:?} were told of no error"));
        }
        for pid in pids.into_iter().filter(|pid| machine::exists(*pid)) {
            round.problems.push(format!("process {pid} is still there"));
        }
        round
    }
}

/// How long a round may take, besides its deadlines.
const PATIENCE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use collectives::ErrorKind;

    use super::*;

    fn told(millis: u64, operation: Option<&'static str>) -> Option<String> {
        let error = Error::new(ErrorKind::Timeout, "not done");
        let error = match operation {
            Some(name) => error.with_operation(name),
            None => error,
        };
        let case = Case::KilledDuringReplay;
        Told { rank: 1, millis, error }.judge(case, Duration::from_secs(5))
    }

    #[test]
    fn an_error_has_to_come_in_time_with_the_right_name() {
        assert_eq!(told(4999, Some("launch")), None);
        assert_eq!(
            told(5001, Some("launch")).as_deref(),
            Some("rank 1 was told after 5001 ms: launch: not done")
        );
        assert_eq!(
            told(10, Some("join")).as_deref(),
            Some("rank 1 was told nothing of launch: join: not done")
        );
        assert_eq!(told(10, None).as_deref(), Some("rank 1 was told nothing of launch: not done"));
    }
}
