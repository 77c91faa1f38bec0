//! The variables that NCCL will see: those of the environment, and those of its files.
//!
//! NCCL reads `NCCL_CONF_FILE`, or else `~/.nccl.conf`, then `/etc/nccl.conf`, and sets each variable
//! that is not set yet (`setEnvFile` in NCCL 2.30.7). So the environment wins, then the user's file.
//! The home is that of the user database, whatever `HOME` says (`userHomeDir`).

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use super::system::System;

/// Variables with where each was set.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    values: BTreeMap<String, Setting>,
    /// The files, in the order in which NCCL reads them.
    pub(crate) files: Vec<ConfFile>,
}

/// The value of a variable.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub(crate) value: String,
    /// `None` for the environment.
    pub(crate) file: Option<PathBuf>,
}

/// A file of settings.
#[derive(Clone, Debug)]
pub(crate) struct ConfFile {
    pub(crate) path: PathBuf,
    /// Whether `NCCL_CONF_FILE` names it, so that it should be there.
    pub(crate) demanded: bool,
    /// `None` where it can't be read.
    pub(crate) lines: Option<Vec<String>>,
}

impl Settings {
    pub(crate) fn read(system: &System) -> Self {
        let environment = system
            .variables()
            .iter()
            .map(|(name, value)| (name.clone(), Setting { value: value.clone(), file: None }));
        let mut values: BTreeMap<String, Setting> = environment.collect();
        let files = files(system);
        for file in &files {
            for (name, value) in file.lines.iter().flatten().filter_map(|line| parse(line)) {
                values.entry(name.to_owned()).or_insert_with(|| Setting {
                    value: value.to_owned(),
                    file: Some(file.path.clone()),
                });
            }
        }
        Self { values, files }
    }

    /// What a variable is set to; an empty value counts as not set, as in NCCL.
    pub(crate) fn get(&self, name: &str) -> Option<&Setting> {
        self.values.get(name).filter(|setting| !setting.value.is_empty())
    }

    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        self.get(name).map(|setting| setting.value.as_str())
    }

    /// The number that NCCL reads, as `strtoll` with base 0 does: digits until something else, and 0
    /// where there is none.
    pub(crate) fn number(&self, name: &str) -> Option<i64> {
        self.value(name).map(|value| leading_number(value).0)
    }

    /// `NCCL_DEBUG=INFO`, and the file where it doesn't come from the environment.
    pub(crate) fn show(&self, name: &str) -> String {
        match self.values.get(name) {
            Some(setting) => format!("{name}={setting}"),
            None => format!("{name} not set"),
        }
    }

    /// The variables of the environment, with their values.
    pub(crate) fn of_environment(&self) -> impl Iterator<Item = (&str, &str)> {
        let set = self.values.iter().filter(|(_, setting)| setting.file.is_none());
        set.map(|(name, setting)| (name.as_str(), setting.value.as_str()))
    }

    /// NCCL's and RCCL's variables that are set.
    pub(crate) fn of_libraries(&self) -> impl Iterator<Item = (&str, &Setting)> {
        let named = |name: &str| name.starts_with("NCCL_") || name.starts_with("RCCL_");
        let set = self.values.iter().map(|(name, setting)| (name.as_str(), setting));
        set.filter(move |(name, setting)| named(name) && !setting.value.is_empty())
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.value)?;
        match &self.file {
            Some(file) => write!(f, " ({})", file.display()),
            None => Ok(()),
        }
    }
}

fn files(system: &System) -> Vec<ConfFile> {
    let user = match system.variable("NCCL_CONF_FILE") {
        Some(file) => Some((PathBuf::from(file), true)),
        None => home(system).map(|home| (Path::new(&home).join(".nccl.conf"), false)),
    };
    user.into_iter()
        .chain([(PathBuf::from("/etc/nccl.conf"), false)])
        .map(|(path, demanded)| {
            // Not `lines`, which takes the carriage return that NCCL leaves in the value.
            let lines = system
                .read(&path)
                .map(|text| text.split_terminator('\n').map(Into::into).collect());
            ConfFile { path, demanded, lines }
        })
        .filter(|file| file.demanded || file.lines.is_some())
        .collect()
}

/// This user's folder: by `/etc/passwd`, or by `HOME` where another database has the user.
fn home(system: &System) -> Option<String> {
    let status = system.read("/proc/self/status").unwrap_or_default();
    let own = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    let own = own.and_then(|numbers| numbers.split_whitespace().next());
    let users = system.read("/etc/passwd").unwrap_or_default();
    // name:password:user:group:comment:home:shell
    let user = users.lines().map(|line| line.split(':')).find(|user| user.clone().nth(2) == own);
    match own.and(user).and_then(|mut user| user.nth(5)) {
        Some(home) => Some(home.to_owned()),
        None => system.variable("HOME").map(str::to_owned),
    }
}

/// The name and value of a line, exactly as NCCL cuts it: no spaces are removed, and a `#` begins a
/// comment only at the start of a line.
pub(crate) fn parse(line: &str) -> Option<(&str, &str)> {
    if line.starts_with('#') { None } else { line.split_once('=') }
}

/// The number at the start of a text, as `strtoll` with base 0 reads it, and whether it is all of
/// the text.
pub(crate) fn leading_number(text: &str) -> (i64, bool) {
    let text = text.trim_start();
    let (negative, rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let hex = rest.strip_prefix("0x").or_else(|| rest.strip_prefix("0X"));
    let (digits, radix) = match hex {
        Some(digits) => (digits, 16),
        None if rest.starts_with('0') => (rest, 8),
        None => (rest, 10),
    };
    let end = digits.find(|c: char| !c.is_digit(radix)).unwrap_or(digits.len());
    let number = i64::from_str_radix(&digits[..end], radix).unwrap_or(0);
    (if negative { -number } else { number }, end > 0 && end == digits.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_strtoll_reads_them() {
        for (text, want) in [
            ("1", (1, true)),
            ("0", (0, true)),
            ("-2", (-2, true)),
            ("0x10", (16, true)),
            ("010", (8, true)),
            ("1MB", (1, false)),
            ("true", (0, false)),
            ("yes", (0, false)),
            ("", (0, false)),
        ] {
            assert_eq!(leading_number(text), want, "'{text}'");
        }
    }
}
