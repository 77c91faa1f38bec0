//! What the doctor may look at: a file system below a root, an environment, and what may be opened.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
};

use collectives::Roots;

/// A machine to look at. A test gives its own, made of small files.
pub(crate) struct System {
    root: PathBuf,
    variables: BTreeMap<String, String>,
    fake: Option<Fake>,
}

/// What a directory of small files can't show: the room in a file system, and what this user may
/// not open.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fake {
    pub(crate) space: BTreeMap<PathBuf, Space>,
    pub(crate) locked: Vec<PathBuf>,
}

/// Room in a file system.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Space {
    pub(crate) total: u64,
    pub(crate) available: u64,
}

impl System {
    /// This machine, as this process sees it.
    pub(crate) fn this() -> Self {
        Self {
            root: "/".into(),
            variables: env::vars_os()
                .map(|(name, value)| {
                    (name.to_string_lossy().into(), value.to_string_lossy().into())
                })
                .collect(),
            fake: None,
        }
    }

    /// The machine whose files lie below `root`, with these variables.
    #[cfg(all(test, unix))]
    pub(crate) fn at(
        root: impl Into<PathBuf>,
        variables: BTreeMap<String, String>,
        fake: Fake,
    ) -> Self {
        Self { root: root.into(), variables, fake: Some(fake) }
    }

    /// The same machine for [`collectives::Platform`].
    pub(crate) fn roots(&self) -> Roots {
        let Some(Fake { locked, .. }) = self.fake.clone() else { return Roots::system() };
        let variables = self.variables.clone();
        Roots::at(&self.root)
            .with_variables(move |name| variables.get(name).map(Into::into))
            .with_access(move |path| !locked.iter().any(|lock| lock == path))
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn variables(&self) -> &BTreeMap<String, String> {
        &self.variables
    }

    /// The value of a variable; an empty one counts as not set.
    pub(crate) fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The folders of a list like `PATH`.
    pub(crate) fn folders(&self, name: &str) -> Vec<PathBuf> {
        let list = self.variable(name).unwrap_or_default();
        env::split_paths(list).filter(|folder| !folder.as_os_str().is_empty()).collect()
    }

    /// Where a file of this machine lies for us. Relative paths, which only variables have, are those
    /// of this process, as they are for libraries.
    pub(crate) fn under(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        path.strip_prefix("/").map_or_else(|_| path.to_owned(), |inside| self.root.join(inside))
    }

    pub(crate) fn exists(&self, path: &str) -> bool {
        self.under(path).exists()
    }

    pub(crate) fn read(&self, path: impl AsRef<Path>) -> Option<String> {
        fs::read_to_string(self.under(path)).ok()
    }

    pub(crate) fn read_bytes(&self, path: impl AsRef<Path>) -> Option<Vec<u8>> {
        fs::read(self.under(path)).ok()
    }

    /// The names in a directory, sorted; `None` where it can't be read.
    pub(crate) fn names(&self, directory: impl AsRef<Path>) -> Option<Vec<String>> {
        let entries = fs::read_dir(self.under(directory)).ok()?;
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<String> = names.collect();
        names.sort_unstable();
        Some(names)
    }

    /// The last part of what a link points to.
    pub(crate) fn link_name(&self, path: &str) -> Option<String> {
        let target = fs::read_link(self.under(path)).ok()?;
        Some(target.file_name()?.to_string_lossy().into_owned())
    }

    pub(crate) fn space(&self, path: &str) -> Option<Space> {
        match &self.fake {
            Some(fake) => fake.space.get(Path::new(path)).copied(),
            None => space(&self.under(path)),
        }
    }

    /// Whether this user may make files in a directory.
    pub(crate) fn writable(&self, path: &str) -> bool {
        match &self.fake {
            Some(fake) => {
                self.exists(path) && !fake.locked.iter().any(|lock| lock == Path::new(path))
            }
            None => writable(&self.under(path)),
        }
    }
}

#[cfg(unix)]
fn space(path: &Path) -> Option<Space> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(Space { total: stat.f_blocks * stat.f_frsize, available: stat.f_bavail * stat.f_frsize })
}

#[cfg(not(unix))]
fn space(_: &Path) -> Option<Space> {
    None
}

#[cfg(unix)]
fn writable(path: &Path) -> bool {
    use rustix::fs::{Access, access};
    access(path, Access::WRITE_OK | Access::EXEC_OK).is_ok()
}

#[cfg(not(unix))]
fn writable(path: &Path) -> bool {
    path.exists()
}
