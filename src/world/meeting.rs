//! Ranks that decide together, through a store, whether they go on.
//!
//! # One key, one outcome
//! Every rank waits for one key. Whoever first knows how it ends writes it there, by a compare-and-set:
//! the last rank to come, that all have come and what the comparison found; any rank, that two are the
//! same, or that sizes differ; the first whose time is up, who is missing. Whatever stands there holds
//! for all, also for those that come later. So all ranks give the same reason, and it cannot happen
//! that some go on into a join that others have given up.
//!
//! There are three such meetings: the roll, and before and after each join. As the second lets all ranks
//! go at one moment, joins run out of time together, so in the third a rank that says nothing is one that
//! has ended or hangs.

use std::{thread, time::Duration};

use collectives_core::{Error, ErrorKind, Result, UniqueId};
use collectives_rendezvous::{Deadline, PrefixStore, Store, list_ranks};
use serde::{Deserialize, Serialize};

use super::peer::{self, Peer};

/// Why ranks do not go on; in the store as JSON.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Refusal {
    #[serde(default = "Refusal::usual_kind")]
    kind: ErrorKind,
    pub(super) message: String,
    #[serde(default)]
    hint: Option<String>,
}

impl Refusal {
    pub(super) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None }
    }

    pub(super) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    fn usual_kind() -> ErrorKind {
        ErrorKind::Remote
    }

    fn into_error(self) -> Error {
        let error = Error::new(self.kind, self.message).with_poison(false);
        match self.hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }
}

/// What stands under the key that all wait for.
#[derive(Debug, Deserialize, Serialize)]
struct Outcome {
    error: Option<Refusal>,
    #[serde(flatten)]
    agreement: Agreement,
}

/// What a roll comes to if ranks can go on.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct Agreement {
    /// Whether all want to build connections before a communicator is handed out.
    pub(super) warm_up: bool,
    /// What is odd about the ranks.
    pub(super) warnings: Vec<String>,
}

/// One rank's part in the meetings of a world, or of a communicator.
pub(super) struct Meeting<'a> {
    store: PrefixStore<&'a dyn Store>,
    /// What it is about, for errors.
    subject: String,
    rank: u32,
    size: usize,
}

impl<'a> Meeting<'a> {
    /// That of a whole world. No other has used the keys of `store` that start with `name`.
    pub(super) fn of_world(store: &'a dyn Store, name: &str, rank: u32, size: usize) -> Self {
        Self { store: PrefixStore::new(name, store), subject: String::new(), rank, size }
    }

    /// That of one communicator.
    pub(super) fn of_communicator(self, name: &str) -> Self {
        Self { subject: format!("communicator '{name}': "), ..self }
    }

    /// Comes as `me`, and returns what `judge` makes of all ranks when all have come.
    ///
    /// `judge` runs on one of the ranks, for all: only that one reads what all have said.
    pub(super) fn call_roll(
        &self,
        me: &Peer,
        deadline: Deadline,
        judge: impl Fn(&[Peer]) -> Result<Agreement, Refusal>,
    ) -> Result<Agreement> {
        let text = serde_json::to_vec(me).map_err(unreadable)?;
        if self.store.add(&format!("seat/{}", self.rank), 1, deadline)? > 1 {
            return self.refuse(self.twice(me));
        }
        self.store.set(&part(self.rank as usize), &text, deadline)?;
        let size = me.size.to_string();
        let first = self.store.compare_set("size", b"", size.as_bytes(), deadline)?;
        if first != size.as_bytes() {
            return self.refuse(self.sizes_differ(me, &first));
        }
        if me.error.is_some() {
            // Nobody has to wait for the rest to hear that.
            self.decide(judge(std::slice::from_ref(me)))?;
        }
        let complete = || {
            let judged = match self.peers(&self.keys()) {
                Ok(peers) => judge(&peers),
                Err(error) => {
                    Err(Refusal::new(error.kind(), error.message()).with_hint(LAST_WORDS))
                }
            };
            self.decide(judged)
        };
        self.wait_for_all(deadline, complete)
    }

    /// What these ranks said in the roll.
    pub(super) fn roll_of(&self, ranks: impl IntoIterator<Item = usize>) -> Result<Vec<Peer>> {
        self.peers(&ranks.into_iter().map(part).collect::<Vec<_>>())
    }

    /// Waits until all ranks are ready to join, and hands them the id that rank 0 makes by `make`.
    ///
    /// They leave it at one moment, so that what they wait for next runs out of time together.
    pub(super) fn start(
        &self,
        deadline: Deadline,
        make: impl FnOnce() -> Result<UniqueId>,
    ) -> Result<UniqueId> {
        if self.rank == 0 {
            match make() {
                Ok(id) => self.store.set(ID, id.to_base64().as_bytes(), deadline)?,
                Err(error) => {
                    let message =
                        format!("{}rank 0 cannot make a unique id: {error}", self.subject);
                    let refusal = Refusal::new(ErrorKind::Remote, message).with_hint(LAST_WORDS);
                    // The others get it; here the error itself says more.
                    let _ = self.decide(Err(refusal));
                    return Err(error);
                }
            }
        }
        self.store.set(&part(self.rank as usize), b"ready", deadline)?;
        self.wait_for_all(deadline, || self.decide(ALL_IS_WELL))?;
        let id = self.store.get(ID, grace())?;
        String::from_utf8_lossy(&id).parse().map_err(unreadable)
    }

    /// Says how a join went, and learns whether all ranks have joined.
    ///
    /// The error of a join that ran out of time has its reason here: who is missing.
    pub(super) fn confirm(
        &self,
        failure: Option<&Error>,
        roll: &Meeting<'_>,
        deadline: Deadline,
    ) -> Result<()> {
        let said = failure.map_or_else(|| "joined".to_owned(), Error::to_string);
        self.store.set(&part(self.rank as usize), said.as_bytes(), grace())?;
        match failure {
            None => self.all_joined(roll, deadline),
            Some(error) if error.kind() == ErrorKind::Timeout => {
                // Those who live run out of time, too; who does not say so is blamed.
                match self.store.wait(&borrowed(&self.keys()), Deadline::after(SETTLING)) {
                    Err(error) if error.kind() != ErrorKind::Timeout => Err(error),
                    Ok(()) | Err(_) => self.blame(roll, deadline),
                }
            }
            Some(error) => {
                let message = format!("{}rank {} did not join: {error}", self.subject, self.rank);
                let refusal = Refusal::new(ErrorKind::Remote, message).with_hint(LAST_WORDS);
                self.decide(Err(refusal)).map(drop)
            }
        }
    }

    /// Comes, and waits for the outcome. The last to come calls `complete`, which decides; where time runs
    /// out first, who is missing is the outcome.
    fn wait_for_all(
        &self,
        deadline: Deadline,
        complete: impl Fn() -> Result<Agreement>,
    ) -> Result<Agreement> {
        if self.store.add("come", 1, deadline)? == self.size as i64 {
            return complete();
        }
        let late = match self.store.get(OUTCOME, deadline) {
            Ok(text) => return self.read(&text),
            Err(error) if error.kind() == ErrorKind::Timeout => error,
            Err(error) => return Err(error),
        };
        // Where the store does not answer any more, how long it was waited for says more than that.
        let absent = self.absent(&self.keys()).map_err(|_| late)?;
        if absent.is_empty() {
            // The last rank came, and ended before it could say so.
            return complete();
        }
        let message = format!(
            "{}{} of {} did not come within {:?}, says rank {}",
            self.subject,
            list_ranks(&absent),
            self.size,
            deadline.given(),
            self.rank
        );
        self.decide(Err(Refusal::new(ErrorKind::Timeout, message).with_hint(LAST_WORDS)))
    }

    /// Waits until all others have joined, too.
    fn all_joined(&self, roll: &Meeting<'_>, deadline: Deadline) -> Result<()> {
        if self.store.add("come", 1, grace())? == self.size as i64 {
            return self.decide(ALL_IS_WELL).map(drop);
        }
        // Those whose join runs out of time say so a little later than we would.
        let patience = deadline.remaining().unwrap_or_default() + LATE;
        match self.store.get(OUTCOME, Deadline::after(patience)) {
            Ok(text) => self.read(&text).map(drop),
            Err(error) if error.kind() == ErrorKind::Timeout => self.blame(roll, deadline),
            Err(error) => Err(error),
        }
    }

    /// Says who has given no sign since all were ready, or whose time was up.
    fn blame(&self, roll: &Meeting<'_>, deadline: Deadline) -> Result<()> {
        let silent = self.absent(&self.keys())?;
        let refusal = if silent.is_empty() {
            let message =
                format!("{}not all ranks joined within {:?}", self.subject, deadline.given());
            Refusal::new(ErrorKind::Timeout, message).with_hint(
                "all ranks live: look at what their library logs (NCCL_DEBUG=INFO), or allow more time",
            )
        } else {
            let peers = roll.roll_of(silent.iter().copied())?;
            let places: Vec<_> = peers.iter().map(Peer::place).collect();
            let message = format!(
                "{}{} of {} came, but gave no sign within {:?} of joining: {}",
                self.subject,
                list_ranks(&silent),
                self.size,
                deadline.given(),
                places.join(", ")
            );
            Refusal::new(ErrorKind::Timeout, message).with_hint(LAST_WORDS)
        };
        self.decide(Err(refusal)).map(drop)
    }

    /// The keys that all ranks write, each its own.
    fn keys(&self) -> Vec<String> {
        (0..self.size).map(part).collect()
    }

    fn absent(&self, keys: &[String]) -> Result<Vec<usize>> {
        self.store.missing(&borrowed(keys), grace())
    }

    fn peers(&self, keys: &[String]) -> Result<Vec<Peer>> {
        let texts = self.store.multi_get(&borrowed(keys), grace())?;
        let parse = |(key, text): (&String, &Vec<u8>)| {
            serde_json::from_slice(text).map_err(|error| unreadable(format!("'{key}': {error}")))
        };
        keys.iter().zip(&texts).map(parse).collect()
    }

    /// For what holds for this rank, also if the others have found that all is well.
    fn refuse<T>(&self, refusal: Refusal) -> Result<T> {
        self.decide(Err(refusal.clone()))?;
        Err(refusal.into_error())
    }

    /// Writes the outcome, unless it is there; then what is there holds.
    fn decide(&self, outcome: Result<Agreement, Refusal>) -> Result<Agreement> {
        let outcome = match outcome {
            Ok(agreement) => Outcome { error: None, agreement },
            Err(refusal) => Outcome { error: Some(refusal), agreement: Agreement::default() },
        };
        let text = serde_json::to_vec(&outcome).map_err(unreadable)?;
        let outcome = self.store.compare_set(OUTCOME, b"", &text, grace())?;
        self.read(&outcome)
    }

    fn read(&self, outcome: &[u8]) -> Result<Agreement> {
        let outcome: Outcome = serde_json::from_slice(outcome).map_err(unreadable)?;
        match outcome.error {
            None => Ok(outcome.agreement),
            Some(refusal) => Err(refusal.into_error()),
        }
    }

    /// Somebody else is this rank already.
    fn twice(&self, me: &Peer) -> Refusal {
        let key = part(self.rank as usize);
        // It may be about to say who it is.
        let first = self.store.get(&key, grace()).ok();
        let first: Option<Peer> = first.and_then(|text| serde_json::from_slice(&text).ok());
        let first = first.map_or_else(|| "another process".to_owned(), |peer| peer.place());
        let message = format!("two processes are rank {}: {first}, and {}", self.rank, me.place());
        Refusal::new(ErrorKind::InvalidArgument, message).with_hint(
            "give each process a rank of its own; and each world over one store, an epoch of its own",
        )
    }

    /// Somebody who came before counts other ranks. Says what is known by now, a moment later.
    fn sizes_differ(&self, me: &Peer, first: &[u8]) -> Refusal {
        let theirs = String::from_utf8_lossy(first).parse().unwrap_or(0);
        thread::sleep(Duration::from_millis(100));
        let mut keys: Vec<_> = (0..theirs.min(MOST_RANKS).max(self.size)).map(part).collect();
        let come = self.absent(&keys).and_then(|absent| {
            for rank in absent.into_iter().rev() {
                keys.remove(rank);
            }
            self.peers(&keys)
        });
        let said = come.ok().and_then(|peers| peer::sizes(&peers));
        let said =
            said.unwrap_or_else(|| format!("rank {}: {}; another: {theirs}", me.rank, me.size));
        let message = format!("world sizes differ: {said}");
        Refusal::new(ErrorKind::InvalidArgument, message).with_hint(peer::SIZES_HINT)
    }
}

fn part(rank: usize) -> String {
    format!("rank/{rank}")
}

fn borrowed(keys: &[String]) -> Vec<&str> {
    keys.iter().map(String::as_str).collect()
}

fn unreadable(error: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Remote, format!("what other ranks wrote into the store: {error}"))
        .with_hint("see whether all ranks run the same release of collectives")
        .with_poison(false)
}

/// For what must be said when time is up.
fn grace() -> Deadline {
    Deadline::after(Duration::from_secs(2))
}

/// Under which all wait.
const OUTCOME: &str = "outcome";
/// Where rank 0's unique id is.
const ID: &str = "id";
/// Where there is nothing to agree on but that all have come.
const ALL_IS_WELL: Result<Agreement, Refusal> =
    Ok(Agreement { warm_up: false, warnings: Vec::new() });
/// How far apart ranks are whose joins run out of time, as they began at one moment: a join ends half a
/// second after its deadline at the latest.
const SETTLING: Duration = Duration::from_secs(2);
/// By how much later a rank that waits for them knows.
const LATE: Duration = Duration::from_secs(6);
/// What to do about ranks that are missing.
const LAST_WORDS: &str = "look for the last words of the ranks that are named, or allow more time";
/// More than any job has.
const MOST_RANKS: usize = 1 << 16;
