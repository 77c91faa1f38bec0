//! What a check has to say.

use std::fmt;

use serde::Serialize;

/// How bad a finding is. The order is that of the report.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    /// The selected backend cannot work.
    Error,
    /// It works, and something is wrong: slow, at risk, or not what was asked for.
    Warning,
    /// Worth knowing when something goes wrong later.
    Note,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        })
    }
}

/// One thing that a check saw, why that matters, and what to do.
#[derive(Clone, Debug)]
pub(crate) struct Observation {
    severity: Severity,
    found: String,
    cause: String,
    remedy: String,
    link: Option<String>,
}

impl Observation {
    /// `found` is what this machine shows, with values and paths; `cause` is what follows from it;
    /// `remedy` is what to do. Sentences without a capital and a full stop, like errors.
    pub(crate) fn new(
        severity: Severity,
        found: impl Into<String>,
        cause: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let (found, cause, remedy) = (found.into(), cause.into(), remedy.into());
        Self { severity, found, cause, remedy, link: None }
    }

    /// Links this instead of what the check links.
    pub(crate) fn with_link(self, link: impl Into<String>) -> Self {
        Self { link: Some(link.into()), ..self }
    }

    /// The finding of a check with this id and these links.
    pub(crate) fn of(self, id: &'static str, links: &[&str]) -> Finding {
        let Self { severity, found, cause, remedy, link } = self;
        let links = match link {
            Some(link) => vec![link],
            None => links.iter().map(|&link| link.to_owned()).collect(),
        };
        Finding { id, severity, found, cause, remedy, links }
    }
}

/// An observation with the check that made it. The names are what `--json` prints.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Finding {
    pub(crate) id: &'static str,
    pub(crate) severity: Severity,
    pub(crate) found: String,
    pub(crate) cause: String,
    pub(crate) remedy: String,
    pub(crate) links: Vec<String>,
}
