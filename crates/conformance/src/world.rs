//! Ranks that live as long as their communicator and run one case after another.
//!
//! Joining costs a third of a second on a real library, so a world is kept and used again by the
//! next case of its size; one in which a case failed is not. When a rank fails, the others'
//! communicators are aborted after a moment. When that does not help until the deadline, every
//! rank's last call is told, and stuck ranks are ended: those that are processes are killed; those
//! that are threads cannot be ended, and so the process ends.

use std::time::{Duration, Instant};

use crate::{
    check::{End, Failure, Outcome},
    exchange::{Exchange, Orders},
    post::{Order, Report},
};

/// What carries the ranks of a world.
pub(crate) trait Hands: Send {
    /// Tells a rank. One that is gone was or will be heard of.
    fn order(&mut self, rank: usize, order: Order);

    /// The next report of any rank; `None` if there is none in time.
    fn hear(&mut self, until: Instant) -> Option<(usize, Report)>;

    /// Aborts whatever the ranks may wait for.
    fn abort_all(&mut self);

    /// What a rank did last: `called send at …`.
    fn describe(&mut self, rank: usize) -> String;

    /// Ends ranks that are stuck, and gives the report back, if the caller survives.
    fn end(&mut self, report: String) -> String;
}

/// Joined ranks.
pub(crate) struct World {
    name: String,
    hands: Box<dyn Hands>,
    /// Which ranks have ended for good.
    gone: Vec<bool>,
    deadline: Duration,
}

impl World {
    /// Waits until the ranks have joined.
    pub(crate) fn open(
        name: String,
        hands: impl Hands + 'static,
        size: usize,
        deadline: Duration,
    ) -> Result<Self, String> {
        let mut world = Self { name, hands: Box::new(hands), gone: vec![false; size], deadline };
        world.collect("joining").map_err(|text| format!("the world was not set up\n{text}"))?;
        Ok(world)
    }

    /// Runs the case of this name on every rank. After an error the world is of no more use.
    pub(crate) fn run(&mut self, case: &str, seed: u64) -> Result<End, String> {
        self.order_all(&Order::Run { case: case.into(), seed });
        // After a failure, closing must not wait for work whose peer never comes.
        self.collect(case).inspect_err(|_| self.hands.abort_all())
    }

    fn order_all(&mut self, order: &Order) {
        (0..self.gone.len()).for_each(|rank| self.hands.order(rank, order.clone()));
    }

    /// Waits until every rank has done what it was told to.
    fn collect(&mut self, what: &str) -> Result<End, String> {
        let end = Instant::now() + self.deadline;
        let mut rescue = None;
        let mut exchange = Exchange::new(self.gone.len());
        // Who is gone has been reported.
        let mut outcomes: Vec<Option<Outcome<End>>> =
            self.gone.iter().map(|gone| gone.then_some(Ok(End::Complete))).collect();
        while outcomes.iter().any(Option::is_none) {
            let (rank, outcome) = match self.hands.hear(rescue.unwrap_or(end)) {
                Some((rank, Report::Offer(bytes))) => {
                    let orders = exchange.offer(rank, bytes);
                    self.relay(orders);
                    continue;
                }
                Some((rank, Report::Done(outcome))) => (rank, outcome),
                Some((rank, Report::Gone(how))) => {
                    self.gone[rank] = true;
                    (rank, Err(Failure::end(how)))
                }
                None if rescue.is_some_and(|at| at < end) => {
                    self.hands.abort_all();
                    rescue = Some(end);
                    continue;
                }
                None => return Err(self.give_up(what, &outcomes)),
            };
            if outcome.is_err() && rescue.is_none() {
                rescue = Some(Instant::now() + GRACE);
            }
            let orders = exchange.leave(rank, outcome.is_err());
            self.relay(orders);
            outcomes[rank] = Some(outcome);
        }
        report(outcomes.into_iter().flatten())
    }

    fn relay(&mut self, orders: Orders) {
        orders.into_iter().for_each(|(rank, order)| self.hands.order(rank, order));
    }

    /// Says what every rank did, and ends those that are stuck.
    fn give_up(&mut self, what: &str, outcomes: &[Option<Outcome<End>>]) -> String {
        let Self { name, hands, deadline, gone } = self;
        let mut text = format!("[{name}] {what} did not end within {deadline:?}:");
        for (rank, outcome) in outcomes.iter().enumerate() {
            let line = match outcome {
                None => format!("is stuck; it {}", hands.describe(rank)),
                Some(Ok(_)) => format!("is done; it {}", hands.describe(rank)),
                Some(Err(failure)) => format!("failed: {failure}"),
            };
            text += &format!("\n  rank {rank} {line}");
        }
        gone.fill(true);
        hands.end(text)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.order_all(&Order::Close);
        // Each seat reports once more when its communicator is gone.
        let _ = self.collect("closing");
    }
}

/// One end, or one readable text, for what all ranks said; ranks that say the same share a line.
fn report(outcomes: impl Iterator<Item = Outcome<End>>) -> Result<End, String> {
    let mut ends = Vec::new();
    let mut failures: Vec<(String, Vec<usize>)> = Vec::new();
    let mut echoes = Vec::new();
    for (rank, outcome) in outcomes.enumerate() {
        let failure = match outcome {
            Ok(end) => {
                ends.push(end);
                continue;
            }
            Err(failure) => failure,
        };
        if failure.is_echo() {
            echoes.push(rank);
            continue;
        }
        let text = failure.to_string();
        match failures.iter_mut().find(|(known, _)| *known == text) {
            Some((_, ranks)) => ranks.push(rank),
            None => failures.push((text, vec![rank])),
        }
    }
    if failures.is_empty() && echoes.is_empty() {
        return agree(&ends);
    }
    let mut lines: Vec<String> =
        failures.iter().map(|(text, ranks)| format!("  {}: {text}", name(ranks))).collect();
    if !echoes.is_empty() {
        lines.push(format!("  {}: gave up, since another rank failed", name(&echoes)));
    }
    Err(lines.join("\n"))
}

/// A case is skipped by every rank, and for one reason, or by none: otherwise ranks would wait in vain
/// for those that believe there is nothing to do.
fn agree(ends: &[End]) -> Result<End, String> {
    if ends.iter().all(|end| *end == ends[0]) {
        return Ok(ends.first().cloned().unwrap_or(End::Complete));
    }
    let lines = ends.iter().enumerate().map(|(rank, end)| match end {
        End::Complete => format!("  rank {rank}: ran the case, which others skipped"),
        End::Skipped(reason) => format!("  rank {rank}: skipped the case: {reason}"),
    });
    Err(lines.collect::<Vec<_>>().join("\n"))
}

fn name(ranks: &[usize]) -> String {
    let numbers: Vec<String> = ranks.iter().map(ToString::to_string).collect();
    format!("rank {}", numbers.join(", "))
}

/// How long the other ranks have to end by themselves once one has failed.
const GRACE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use std::{
        collections::VecDeque,
        sync::{Arc, Mutex},
    };

    use super::*;

    /// What happened to the ranks of [`Fake`], in order.
    #[derive(Debug, Eq, PartialEq)]
    enum Did {
        Aborted,
        Ended,
        Told(usize, Order),
    }

    type Log = Arc<Mutex<Vec<Did>>>;

    /// Ranks that say what was written for them. `None` stands for silence, until it is asked for
    /// again.
    struct Fake {
        script: VecDeque<Option<(usize, Report)>>,
        log: Log,
    }

    impl Hands for Fake {
        fn order(&mut self, rank: usize, order: Order) {
            self.note(Did::Told(rank, order));
        }

        fn hear(&mut self, _: Instant) -> Option<(usize, Report)> {
            self.script.pop_front().flatten()
        }

        fn abort_all(&mut self) {
            self.note(Did::Aborted);
        }

        fn describe(&mut self, rank: usize) -> String {
            format!("called something of rank {rank}")
        }

        fn end(&mut self, report: String) -> String {
            self.note(Did::Ended);
            report
        }
    }

    impl Fake {
        fn note(&self, did: Did) {
            self.log.lock().unwrap().push(did);
        }
    }

    fn done(rank: usize) -> Option<(usize, Report)> {
        Some((rank, Report::Done(Ok(End::Complete))))
    }

    /// What a case comes to on three ranks that say this, and what is done about it until then.
    fn run(script: Vec<Option<(usize, Report)>>) -> (Result<End, String>, Vec<Did>) {
        let log = Log::default();
        let joined = [done(0), done(1), done(2)];
        let fake = Fake { script: joined.into_iter().chain(script).collect(), log: log.clone() };
        let mut world = World::open("fake".into(), fake, 3, Duration::from_secs(9)).unwrap();
        let outcome = world.run("a::case", 7);
        let did = std::mem::take(&mut *log.lock().unwrap());
        let told = Order::Run { case: "a::case".into(), seed: 7 };
        let (first, later) = did.split_at_checked(3).unwrap();
        assert_eq!(first, [0, 1, 2].map(|rank| Did::Told(rank, told.clone())));
        (outcome, later.iter().map(|did| did.copied()).collect())
    }

    impl Did {
        fn copied(&self) -> Self {
            match self {
                Self::Aborted => Self::Aborted,
                Self::Ended => Self::Ended,
                Self::Told(rank, order) => Self::Told(*rank, order.clone()),
            }
        }
    }

    #[test]
    fn a_case_is_over_when_every_rank_is() {
        let (outcome, did) = run(vec![done(2), done(0), done(1)]);
        assert_eq!((outcome, did), (Ok(End::Complete), vec![]));
    }

    #[test]
    fn exchanges_are_relayed() {
        let offer = |rank: usize| Some((rank, Report::Offer(vec![rank as u8])));
        let script = vec![offer(1), offer(0), offer(2), done(0), done(1), done(2)];
        let (outcome, did) = run(script);
        let all = Order::Gathered(vec![vec![0], vec![1], vec![2]]);
        assert_eq!(outcome, Ok(End::Complete));
        assert_eq!(did, [0, 1, 2].map(|rank| Did::Told(rank, all.clone())));
    }

    #[test]
    fn a_failure_ends_the_others() {
        let failed = Some((1, Report::Done(Err(Failure::panic(&"boom")))));
        let offer = Some((0, Report::Offer(vec![])));
        let echo = Some((0, Report::Done(Err(Failure::echo("rank 1 failed meanwhile")))));
        // Rank 2 does not end before it is aborted.
        let (outcome, did) = run(vec![offer, failed, echo, None, done(2)]);
        assert_eq!(
            outcome.unwrap_err(),
            "  rank 1: panicked: boom\n  rank 0: gave up, since another rank failed"
        );
        let alone = Order::Alone { rank: 1, failed: true };
        assert_eq!(did, [Did::Told(0, alone), Did::Aborted, Did::Aborted]);
    }

    #[test]
    fn a_late_world_says_what_each_rank_did_and_is_ended() {
        let failed = Some((1, Report::Done(Err(Failure::panic(&"boom")))));
        let (outcome, did) = run(vec![done(0), failed, None, None]);
        assert_eq!(
            outcome.unwrap_err(),
            "[fake] a::case did not end within 9s:\n  rank 0 is done; it called something of rank \
             0\n  rank 1 failed: panicked: boom\n  rank 2 is stuck; it called something of rank 2"
        );
        assert_eq!(did, [Did::Aborted, Did::Ended, Did::Aborted]);
    }

    #[test]
    fn a_rank_that_is_gone_has_failed() {
        let gone = Some((1, Report::Gone("its process 4711 ended: signal: 9 (SIGKILL)".into())));
        let (outcome, _) = run(vec![gone, done(0), done(2)]);
        assert_eq!(outcome.unwrap_err(), "  rank 1: its process 4711 ended: signal: 9 (SIGKILL)");
    }

    #[test]
    fn a_case_is_skipped_by_all_ranks_for_one_reason_or_fails() {
        let skipped =
            |rank, reason: &str| Some((rank, Report::Done(Ok(End::Skipped(reason.into())))));
        let (outcome, did) = run([2, 0, 1].map(|rank| skipped(rank, "no windows")).into());
        assert_eq!((outcome, did), (Ok(End::Skipped("no windows".into())), vec![]));

        let (outcome, did) = run(vec![skipped(0, "no windows"), done(1), skipped(2, "no signals")]);
        assert_eq!(
            outcome.unwrap_err(),
            "  rank 0: skipped the case: no windows\n  rank 1: ran the case, which others skipped\n  \
             rank 2: skipped the case: no signals"
        );
        assert_eq!(did, [Did::Aborted]);
        // Also where nobody ran it.
        let (outcome, _) =
            run([(0, "a"), (1, "a"), (2, "b")].map(|(r, why)| skipped(r, why)).into());
        assert!(outcome.unwrap_err().ends_with("rank 2: skipped the case: b"));
        // A failure says more than a skip.
        let failed = Some((1, Report::Done(Err(Failure::panic(&"boom")))));
        let (outcome, _) = run(vec![skipped(0, "a"), failed, skipped(2, "a")]);
        assert_eq!(outcome.unwrap_err(), "  rank 1: panicked: boom");
    }

    #[test]
    fn a_report_says_each_thing_once() {
        let same = || Failure::panic(&"boom");
        let outcomes =
            [Err(same()), Ok(End::Complete), Err(same()), Err(Failure::echo("rank 0 failed"))];
        let text = report(outcomes.into_iter()).unwrap_err();
        assert_eq!(
            text,
            "  rank 0, 2: panicked: boom\n  rank 3: gave up, since another rank failed"
        );
        assert!(report([Ok(End::Complete), Ok(End::Complete)].into_iter()).is_ok());
    }
}
