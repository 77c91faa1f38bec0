//! What a test author gets back from a world that failed: everything, once, the root cause first.

use std::{
    any::Any,
    cell::RefCell,
    error::Error as StdError,
    fmt,
    panic::{self, Location},
    sync::Once,
    time::{Duration, Instant},
};

use collectives_core::{Error, ErrorKind, Rank};
use serde::{Deserialize, Serialize};

use crate::verdict;

/// Why [`World::run`](crate::World::run) failed: the errors and panics of all ranks, the root cause
/// first.
///
/// `Debug` is as `Display`, so that an `unwrap` in a test reads well.
#[derive(Deserialize, Serialize)]
pub struct RunFailure {
    pub(crate) ranks: usize,
    pub(crate) elapsed: Duration,
    pub(crate) late: Option<Duration>,
    /// Schedule, faults and seeds, with which the run can be had again.
    pub(crate) note: Option<String>,
    /// The process of each rank, where they are processes.
    pub(crate) pids: Vec<u32>,
    pub(crate) failures: Vec<RankFailure>,
}

/// How one rank failed.
#[derive(Debug, Deserialize, Serialize)]
#[non_exhaustive]
pub struct RankFailure {
    /// The rank; `None` where the world was not set up.
    pub rank: Option<Rank>,
    /// Why.
    pub cause: Cause,
}

/// Why a rank failed.
#[derive(Debug, Deserialize, Serialize)]
#[non_exhaustive]
pub enum Cause {
    /// Its process ended before it was done, and this way.
    Ended(String),
    /// It returned this.
    Error(Error),
    /// It had not ended when the deadline passed; this is what it was doing.
    Late(String),
    /// It panicked.
    Panic {
        /// What it said.
        message: String,
        /// Where.
        location: Option<String>,
    },
}

impl RunFailure {
    /// What each rank that failed came to, the root cause first: panics and errors of a rank's own
    /// before verdicts, and those before what merely follows from another rank's end.
    pub fn failures(&self) -> &[RankFailure] {
        &self.failures
    }

    /// Whether the deadline passed.
    pub fn is_late(&self) -> bool {
        self.late.is_some()
    }

    /// That of a world that was not set up.
    pub(crate) fn of_the_whole(ranks: usize, start: Instant, cause: Cause) -> Self {
        let failures = vec![RankFailure { rank: None, cause }];
        let (elapsed, pids) = (start.elapsed(), Vec::new());
        Self { ranks, elapsed, late: None, note: None, pids, failures }
    }
}

/// The values of all ranks, or what `failure` makes of those that failed, the root cause first.
pub(crate) fn sort_out<T>(
    outcomes: impl IntoIterator<Item = Result<T, Cause>>,
    failure: impl FnOnce(Vec<RankFailure>) -> RunFailure,
) -> Result<Vec<T>, RunFailure> {
    let (mut values, mut failures) = (Vec::new(), Vec::new());
    for (rank, outcome) in (0..).zip(outcomes) {
        match outcome {
            Ok(value) => values.push(value),
            Err(cause) => failures.push(RankFailure { rank: Some(Rank::new(rank)), cause }),
        }
    }
    if failures.is_empty() {
        return Ok(values);
    }
    failures.sort_by_key(|failure| failure.cause.weight());
    Err(failure(failures))
}

impl Cause {
    pub(crate) fn panic(payload: &(dyn Any + Send)) -> Self {
        let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
        let message = text.unwrap_or_else(|| "(no text)".into());
        Self::Panic { message, location: LAST_PANIC.take() }
    }

    /// What comes first in a report.
    fn weight(&self) -> u8 {
        match self {
            Self::Ended(_) | Self::Panic { .. } => 0,
            Self::Error(error) => match error.kind() {
                ErrorKind::Aborted | ErrorKind::Remote => 3,
                ErrorKind::Deadlock => 1,
                _ => 0,
            },
            Self::Late(_) => 2,
        }
    }

    /// Where it happened. Ranks that say the same share a line wherever they say it.
    fn operation(&self) -> Option<&'static str> {
        match self {
            Self::Error(error) => error.operation(),
            Self::Ended(_) | Self::Late(_) | Self::Panic { .. } => None,
        }
    }

    /// What happened, without the rank and the operation.
    fn text(&self) -> String {
        match self {
            Self::Ended(how) => how.clone(),
            Self::Late(doing) => format!("has not ended: {doing}"),
            Self::Panic { message, location: Some(location) } => {
                format!("panicked at {location}: {message}")
            }
            Self::Panic { message, location: None } => format!("panicked: {message}"),
            Self::Error(error) => {
                let mut text = error.message().to_owned();
                if let Some(site) = error.site() {
                    text += ", called at ";
                    text += site;
                }
                if let Some(hint) = error.hint() {
                    text += if error.message().contains('\n') { "\n" } else { "; " };
                    text += hint;
                }
                text
            }
        }
    }
}

impl fmt::Display for RunFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ranks, elapsed, late, note, pids, failures } = self;
        match late {
            Some(deadline) => write!(f, "the world is not done after {deadline:?}")?,
            None => write!(f, "{} of {ranks} ranks failed after {elapsed:.1?}", failures.len())?,
        }
        if let Some(note) = note {
            write!(f, ", {note}")?;
        }
        for (index, pid) in pids.iter().enumerate() {
            write!(f, "{}{pid}", if index == 0 { ", as processes " } else { ", " })?;
        }
        let mut lines: Vec<(String, Vec<u32>, Option<&str>)> = Vec::new();
        for RankFailure { rank, cause } in failures {
            let (text, operation) = (cause.text(), cause.operation());
            match lines.iter_mut().find(|(known, ..)| *known == text) {
                Some((_, ranks, known)) => {
                    ranks.extend(rank.map(Rank::get));
                    *known = known.filter(|known| Some(*known) == operation);
                }
                None => lines.push((text, rank.map(Rank::get).into_iter().collect(), operation)),
            }
        }
        for (text, ranks, operation) in lines {
            f.write_str("\n  ")?;
            if !ranks.is_empty() {
                write!(f, "{}: ", verdict::list("rank", &ranks))?;
            }
            if let Some(operation) = operation {
                write!(f, "{operation}: ")?;
            }
            f.write_str(&text.replace('\n', "\n    "))?;
        }
        Ok(())
    }
}

impl fmt::Debug for RunFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl StdError for RunFailure {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match &self.failures.first()?.cause {
            Cause::Error(error) => Some(error),
            Cause::Ended(_) | Cause::Late(_) | Cause::Panic { .. } => None,
        }
    }
}

thread_local! {
    /// Where this thread panicked last.
    static LAST_PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Has the place of each panic kept: what a panic leaves behind has only its message.
pub(crate) fn note_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let others = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let place = info.location().map(Location::to_string);
            // Fails where the thread is being torn down, and then nobody asks.
            let _ = LAST_PANIC.try_with(|last| last.replace(place));
            others(info);
        }));
    });
}
