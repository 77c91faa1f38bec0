//! Faults that are wished for: a plan, and what of it has happened.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    ops::Range,
    time::{Duration, Instant},
};

use collectives_core::{Error, ErrorKind, Rank, Version};

use crate::{
    error::refuse,
    op::Op,
    schedule::{OpKey, mix},
    slab::Key,
};

/// What shall go wrong: rules, and the seed of their dice.
///
/// The first rule that matches an operation and whose dice say so fires, once for each operation, in
/// the order of the rules. Whether it fires depends on nothing but the seed, the rule and the
/// operation: its communicator, rank and sequence number. So a plan does the same in every run,
/// however threads are scheduled. Errors of a mock with a plan name the rules that fired.
///
/// ```
/// use std::time::Duration;
/// use collectives_backend_mock::{Action, FaultPlan, Mock, MockConfig, Rule};
/// let plan = FaultPlan::new()
///     .with_rule(Rule::new(Action::Kill).on_rank(1).on_operation("all_reduce").at(3..4))
///     .with_rule(Rule::new(Action::Delay(Duration::from_millis(2))).with_probability(0.1))
///     .with_seed(7);
/// let mock = Mock::new(MockConfig::new().with_faults(plan));
/// ```
///
/// The same as TOML, for [`parse`](str::parse) and `COLLECTIVES_MOCK_FAULTS`:
/// ```
/// use collectives_backend_mock::FaultPlan;
/// let plan: FaultPlan = r#"
///     seed = 7
///     [[rule]]
///     rank = 1
///     operation = "all_reduce"
///     sequence = 3
///     action = "kill"
///     [[rule]]
///     probability = 0.1
///     action = { delay = "2ms" }
/// "#.parse()?;
/// assert_eq!(plan.rules.len(), 2);
/// # Ok::<_, collectives_core::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct FaultPlan {
    /// The seed of all probabilities.
    pub seed: u64,
    /// In the order in which they are asked. Errors count them from 0.
    pub rules: Vec<Rule>,
}

impl FaultPlan {
    /// Nothing goes wrong.
    pub const fn new() -> Self {
        Self { seed: 0, rules: Vec::new() }
    }

    /// Adds a rule behind the others.
    #[must_use]
    pub fn with_rule(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }

    /// What the library says that its version is.
    pub(crate) fn version(&self) -> Option<Version> {
        self.rules.iter().find_map(|rule| match rule.action {
            Action::Version(version) => Some(version),
            _ => None,
        })
    }

    /// Sets the seed of all probabilities.
    #[must_use]
    pub const fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }
}

/// What goes wrong, and when. A rule without conditions always fires.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Rule {
    /// What happens.
    pub action: Action,
    /// On these ranks only; all where empty. For [`Action::OutOfMemory`] these are devices.
    pub ranks: Vec<u32>,
    /// In communicators of this name only.
    pub communicator: Option<String>,
    /// For these operations only, by the name of their method in
    /// [`Collectives`](collectives_core::Collectives); all where empty.
    pub operations: Vec<String>,
    /// For these sequence numbers only: those of collectives count a rank's collectives on the
    /// communicator from 0, those of messages count from 0 for each peer and direction.
    pub sequence: Sequence,
    /// How often it fires where it matches, from 0 to 1.
    pub probability: f64,
    /// How often it fires at most on each rank of each communicator.
    pub times: Option<u64>,
}

impl Rule {
    /// A rule that always fires.
    pub const fn new(action: Action) -> Self {
        Self {
            action,
            ranks: Vec::new(),
            communicator: None,
            operations: Vec::new(),
            sequence: Sequence::Any,
            probability: 1.0,
            times: None,
        }
    }

    /// On one more rank.
    #[must_use]
    pub fn on_rank(mut self, rank: u32) -> Self {
        self.ranks.push(rank);
        self
    }

    /// In communicators of this name.
    #[must_use]
    pub fn on_communicator(mut self, name: impl Into<String>) -> Self {
        self.communicator = Some(name.into());
        self
    }

    /// For one more operation, named as its method.
    #[must_use]
    pub fn on_operation(mut self, method: impl Into<String>) -> Self {
        self.operations.push(method.into());
        self
    }

    /// For the operations with these numbers.
    #[must_use]
    pub const fn at(mut self, sequence: Range<u64>) -> Self {
        self.sequence = Sequence::In(sequence.start, sequence.end);
        self
    }

    /// For every n-th operation: those whose number, counted from 1, n divides.
    #[must_use]
    pub const fn every(mut self, n: u64) -> Self {
        self.sequence = Sequence::Every(n);
        self
    }

    /// With this probability, from 0 to 1.
    #[must_use]
    pub const fn with_probability(mut self, probability: f64) -> Self {
        self.probability = probability;
        self
    }

    /// At most so often on each rank of each communicator.
    #[must_use]
    pub const fn at_most(mut self, times: u64) -> Self {
        self.times = Some(times);
        self
    }

    fn concerns(&self, comm: Option<&str>, rank: Rank) -> bool {
        (self.ranks.is_empty() || self.ranks.contains(&rank.get()))
            && self.communicator.as_deref().is_none_or(|wanted| comm == Some(wanted))
    }

    fn matches(&self, who: &Who<'_>, op: &Op) -> bool {
        self.concerns(who.name, who.rank)
            && (self.operations.is_empty()
                || self.operations.iter().any(|name| name == op.kind.name()))
            && self.sequence.contains(op.sequence)
    }
}

/// Some sequence numbers.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum Sequence {
    /// All.
    #[default]
    Any,
    /// Each whose count from 1 this number divides.
    Every(u64),
    /// From the first, included, to the second, excluded.
    In(u64, u64),
}

impl Sequence {
    fn contains(self, sequence: u64) -> bool {
        match self {
            Self::Any => true,
            Self::Every(n) => (sequence + 1).is_multiple_of(n.max(1)),
            Self::In(start, end) => (start..end).contains(&sequence),
        }
    }
}

/// What goes wrong.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Action {
    /// The communicator fails with an error of this kind, on all ranks: at once where `after` is 0,
    /// else when the rank polls for the `after`-th time from the operation on
    /// ([`poll_error`](collectives_core::Collectives::poll_error)). The operation itself is not
    /// kept from running.
    AsyncError {
        /// Polls.
        after: u64,
        /// What the ranks are told.
        kind: ErrorKind,
    },
    /// The operation arrives so much later where it meets its peers.
    Delay(Duration),
    /// The operation never arrives where it meets its peers, until the communicator fails: by an abort
    /// or a revoke. There is no [verdict](crate#verdicts) on it.
    Hang,
    /// Joining fails, with an error that names the rule. The other ranks wait for a rank that does
    /// not come. This and the next two are for `join`, `join_all`, `join_grown` and
    /// [`join_start`](crate::Mock::join_start), where they are seen by polling.
    JoinFails,
    /// Joining never comes to where the ranks meet: it ends with the deadline, and without one never.
    /// As for [`Hang`](Self::Hang), there is no verdict on it.
    JoinHangs,
    /// Joining begins so much later.
    JoinLate(Duration),
    /// The thread that makes the call panics, before the operation is issued (in a group: at its end,
    /// with nothing of the group issued), with a `String` that
    /// begins "killed by fault rule". All communicators of the rank's device lose this rank: what
    /// others wait for from it fails with [`Remote`](ErrorKind::Remote). Operations in launched
    /// graphs don't kill.
    Kill,
    /// The device has no memory left for this allocation, counted from 0 for each device, nor for
    /// those after it up to the rule's `times`, which is 1 unless set.
    OutOfMemory {
        /// Number of the allocation.
        allocation: u64,
    },
    /// From the operation on, all operations of the rank on the communicator arrive so much later.
    Straggle(Duration),
    /// The library says that this is its version.
    Version(Version),
}

/// As in TOML.
impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AsyncError { after, kind } => {
                write!(f, "async_error {kind:?} after {after} polls")
            }
            Self::Delay(by) => write!(f, "delay {by:?}"),
            Self::Hang => f.write_str("hang"),
            Self::JoinFails => f.write_str("join_fails"),
            Self::JoinHangs => f.write_str("join_hangs"),
            Self::JoinLate(by) => write!(f, "join_late {by:?}"),
            Self::Kill => f.write_str("kill"),
            Self::OutOfMemory { allocation } => write!(f, "out_of_memory {allocation}"),
            Self::Straggle(by) => write!(f, "straggle {by:?}"),
            Self::Version(version) => write!(f, "version {version}"),
        }
    }
}

/// Whose operation it is.
pub(crate) struct Who<'a> {
    pub(crate) name: Option<&'a str>,
    pub(crate) rank: Rank,
    /// Tells the communicator from others, the same in every run.
    pub(crate) identity: u64,
}

/// What keeps an operation from arriving.
#[derive(Clone, Debug)]
pub(crate) enum Fate {
    /// `until` is known when the operation could arrive otherwise.
    Delay {
        rule: usize,
        by: Duration,
        until: Option<Instant>,
    },
    Hang {
        rule: usize,
    },
}

/// What keeps a rank from joining.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    pub(crate) rule: usize,
    /// For so long; for ever where `None`.
    pub(crate) by: Option<Duration>,
}

impl Held {
    /// Its deadline has passed.
    pub(crate) fn late(self, rank: Rank) -> Error {
        let message = format!("rank {rank} was kept from joining until the deadline");
        refuse(ErrorKind::Timeout, message).with_hint(format!("by fault rule {}", self.rule))
    }
}

/// What an operation sets off at once.
pub(crate) struct AsyncError {
    pub(crate) rule: usize,
    pub(crate) kind: ErrorKind,
}

/// A plan, and what of it has happened.
#[derive(Default)]
pub(crate) struct Faults {
    plan: FaultPlan,
    /// Rules that have fired.
    fired: BTreeSet<usize>,
    /// How often, by rule, communicator and rank.
    times: HashMap<(usize, Key, u32), u64>,
    /// The same for joins, by rule and rank.
    joins: HashMap<(usize, Rank), u64>,
    fates: HashMap<OpKey, Fate>,
    /// Ranks that are slow from now on.
    slow: HashMap<(Key, u32), (usize, Duration)>,
    /// Errors that come after some more polls.
    armed: HashMap<(Key, u32), Vec<(u64, AsyncError)>>,
    /// Allocations by device.
    allocations: HashMap<usize, u64>,
}

impl Faults {
    pub(crate) fn new(plan: FaultPlan) -> Self {
        Self { plan, ..Self::default() }
    }

    /// The rules that have fired, for messages.
    pub(crate) fn note(&self) -> String {
        let rule = |&rule: &usize| format!("fault rule {rule} ({})", self.plan.rules[rule].action);
        let rules: Vec<_> = self.fired.iter().map(rule).collect();
        let mut note = match &*rules {
            [] => "a fault plan of which no rule has fired".into(),
            rules => rules.join(", "),
        };
        if self.plan.rules.iter().any(|rule| rule.probability < 1.0) {
            note += &format!(" with seed {}", self.plan.seed);
        }
        note
    }

    /// Whether a rule kills the caller for its operation. It has the number that
    /// it would have.
    pub(crate) fn kills(&mut self, who: &Who<'_>, op: &Op) -> Option<usize> {
        self.pick(who, op, |action| matches!(action, Action::Kill))
    }

    /// An operation was issued: what becomes of it is decided now.
    pub(crate) fn meet(&mut self, who: &Who<'_>, op: &Op) -> Option<AsyncError> {
        let end = (op.comm, op.rank);
        let acts = |action: &Action| {
            matches!(
                action,
                Action::AsyncError { .. } | Action::Delay(_) | Action::Hang | Action::Straggle(_)
            )
        };
        let mut fate = None;
        let mut error = None;
        if let Some(rule) = self.pick(who, op, acts) {
            match self.plan.rules[rule].action {
                Action::AsyncError { after: 0, kind } => error = Some(AsyncError { rule, kind }),
                Action::AsyncError { after, kind } => {
                    self.armed.entry(end).or_default().push((after, AsyncError { rule, kind }));
                }
                Action::Delay(by) => fate = Some(Fate::Delay { rule, by, until: None }),
                Action::Hang => fate = Some(Fate::Hang { rule }),
                Action::Straggle(by) => {
                    self.slow.insert(end, (rule, by));
                }
                _ => {}
            }
        }
        if fate.is_none()
            && let Some(&(rule, by)) = self.slow.get(&end)
        {
            fate = Some(Fate::Delay { rule, by, until: None });
        }
        if let Some(fate) = fate {
            self.fates.insert(OpKey::new(op), fate);
        }
        error
    }

    /// A rank polls for errors.
    pub(crate) fn poll(&mut self, comm: Key, rank: u32) -> Option<AsyncError> {
        let armed = self.armed.get_mut(&(comm, rank))?;
        for (left, _) in armed.iter_mut() {
            *left -= 1;
        }
        let due = armed.iter().position(|(left, _)| *left == 0)?;
        Some(armed.swap_remove(due).1)
    }

    /// What keeps an operation from arriving.
    pub(crate) fn fate(&mut self, key: &OpKey) -> Option<&mut Fate> {
        self.fates.get_mut(key)
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.fates.is_empty()
    }

    /// An operation arrives after all.
    pub(crate) fn forget(&mut self, key: &OpKey) {
        self.fates.remove(key);
    }

    pub(crate) fn forget_comm(&mut self, comm: Key) {
        self.times.retain(|(_, key, _), _| *key != comm);
        self.slow.retain(|(key, _), _| *key != comm);
        self.armed.retain(|(key, _), _| *key != comm);
        self.fates.retain(|key, _| key.comm != comm);
    }

    /// The rule by which a device has no memory for its next allocation.
    pub(crate) fn exhausted(&mut self, device: usize) -> Option<usize> {
        let count = self.allocations.entry(device).or_default();
        let number = *count;
        *count += 1;
        let rule = self.plan.rules.iter().position(|rule| match rule.action {
            Action::OutOfMemory { allocation } => {
                let end = allocation.saturating_add(rule.times.unwrap_or(1));
                let here = rule.ranks.is_empty() || rule.ranks.contains(&(device as u32));
                here && (allocation..end).contains(&number)
            }
            _ => false,
        })?;
        self.fire(rule);
        Some(rule)
    }

    /// What happens to a rank that joins. `identity` tells the join from others.
    pub(crate) fn join(&mut self, who: &Who<'_>) -> Option<(usize, Action)> {
        let rules = self.plan.rules.iter().enumerate();
        let (rule, action) = rules.filter(|(_, rule)| rule.concerns(who.name, who.rank)).find_map(
            |(index, rule)| match rule.action {
                Action::JoinFails | Action::JoinHangs | Action::JoinLate(_) => {
                    let fired = self.joins.get(&(index, who.rank)).copied().unwrap_or(0);
                    let left = rule.times.is_none_or(|times| fired < times);
                    let words = [who.identity, u64::from(who.rank.get())];
                    (left && self.dice(index, &words)).then(|| (index, rule.action.clone()))
                }
                _ => None,
            },
        )?;
        *self.joins.entry((rule, who.rank)).or_default() += 1;
        self.fire(rule);
        Some((rule, action))
    }

    fn pick(&mut self, who: &Who<'_>, op: &Op, wanted: impl Fn(&Action) -> bool) -> Option<usize> {
        let rules = self.plan.rules.iter().enumerate();
        let rule = rules.filter(|(_, rule)| wanted(&rule.action)).find(|(index, rule)| {
            let fired = self.times.get(&(*index, op.comm, op.rank)).copied().unwrap_or(0);
            let [rank, class, other, sequence] = OpKey::new(op).words();
            rule.matches(who, op)
                && rule.times.is_none_or(|times| fired < times)
                && self.dice(*index, &[who.identity, rank, class, other, sequence])
        });
        let (rule, _) = rule?;
        *self.times.entry((rule, op.comm, op.rank)).or_default() += 1;
        self.fire(rule);
        Some(rule)
    }

    fn fire(&mut self, rule: usize) {
        self.fired.insert(rule);
    }

    /// Whether a rule fires at what `words` name.
    fn dice(&self, rule: usize, words: &[u64]) -> bool {
        let probability = self.plan.rules[rule].probability;
        let draw = mix(&[self.plan.seed, rule as u64, mix(words)]);
        // 53 bits, as many as a double holds.
        ((draw >> 11) as f64) < probability * (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_contain_what_they_say() {
        let numbers = |sequence: Sequence| -> Vec<u64> {
            (0..8).filter(|&number| sequence.contains(number)).collect()
        };
        assert_eq!(numbers(Sequence::Any).len(), 8);
        assert_eq!(numbers(Sequence::Every(3)), [2, 5]);
        assert_eq!(numbers(Sequence::In(2, 5)), [2, 3, 4]);
    }

    #[test]
    fn dice_are_fair_enough_and_their_own() {
        let rule = || Rule::new(Action::Hang).with_probability(0.25);
        let faults = Faults::new(FaultPlan::new().with_rule(rule()).with_rule(rule()));
        let throw = |rule| (0..4000_u64).map(|word| faults.dice(rule, &[word])).collect::<Vec<_>>();
        let hits = throw(0).into_iter().filter(|&hit| hit).count();
        assert!((900..1100).contains(&hits), "{hits}");
        assert_ne!(throw(0), throw(1));
        assert_eq!(throw(1), throw(1));
    }
}
