//! Where in a program calls stand.

use std::{
    collections::BTreeMap,
    fmt,
    panic::Location,
    sync::{Mutex, PoisonError},
};

/// Where in a program a call stands: in this process, or in another one that is a rank too.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct Site(Place);

#[derive(Clone, Copy, Eq, PartialEq)]
enum Place {
    Here(&'static Location<'static>),
    /// Of another process.
    There(&'static Named),
}

/// A place that is known by what another process says of it.
#[derive(Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Named {
    file: String,
    line: u32,
    column: u32,
}

impl Site {
    /// A call in another process, of which no more is known.
    pub(crate) const UNKNOWN: Self = Self(Place::There(&UNKNOWN));

    /// A call in another process. Each place is kept once, as long as this process lives; past some
    /// thousand of them all are the same unknown one.
    pub(crate) fn elsewhere(file: String, line: u32, column: u32) -> Self {
        static KNOWN: Mutex<BTreeMap<(String, u32, u32), &'static Named>> =
            Mutex::new(BTreeMap::new());
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        let full = known.len() >= KEPT;
        let named =
            *known.entry((file, line, column)).or_insert_with_key(|(file, line, column)| {
                if full {
                    return &UNKNOWN;
                }
                Box::leak(Box::new(Named { file: file.clone(), line: *line, column: *column }))
            });
        Self(Place::There(named))
    }

    /// The source file, as the compiler knew it.
    pub fn file(&self) -> &'static str {
        match self.0 {
            Place::Here(location) => location.file(),
            Place::There(named) => &named.file,
        }
    }

    /// The line, from 1.
    pub fn line(&self) -> u32 {
        match self.0 {
            Place::Here(location) => location.line(),
            Place::There(named) => named.line,
        }
    }

    /// The column, from 1.
    pub fn column(&self) -> u32 {
        match self.0 {
            Place::Here(location) => location.column(),
            Place::There(named) => named.column,
        }
    }

    /// The place, where it is in this process.
    pub(crate) fn here(&self) -> Option<&'static Location<'static>> {
        match self.0 {
            Place::Here(location) => Some(location),
            Place::There(_) => None,
        }
    }
}

impl From<&'static Location<'static>> for Site {
    #[inline]
    fn from(location: &'static Location<'static>) -> Self {
        Self(Place::Here(location))
    }
}

/// `file:line:column`, as a [`Location`].
impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Place::There(named) if named.file.is_empty() => f.write_str("in another process"),
            _ => write!(f, "{}:{}:{}", self.file(), self.line(), self.column()),
        }
    }
}

impl fmt::Debug for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

static UNKNOWN: Named = Named { file: String::new(), line: 0, column: 0 };

/// Places of other processes that are kept.
const KEPT: usize = 4096;
