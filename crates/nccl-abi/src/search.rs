//! Where a vendor's library may be, as a list of candidates in the order in which they are tried.
//!
//! 1. The vendor's variables (`COLLECTIVES_NCCL_PATH`, …). The first that is set is a demand: it is
//!    the only candidate, and if it fails, so does the search. Anything else would run with a
//!    library that the user chose not to have.
//! 2. A copy that is already in the process. Two copies don't know of each other's groups.
//! 3. The versioned name, for the dynamic loader to find.
//! 4. The Python packages of the active environment, which is where most installations have it.
//! 5. The vendor's toolkit.
//! 6. The unversioned name of development packages.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::loader::Source;
use crate::vendor::Vendor;

/// What a search sees of the system: variables, the file system's root, and the dynamic loader.
///
/// A test gives its own, and so changes no variable of its process.
pub struct Environment {
    variable: Box<Variable>,
    root: PathBuf,
    by_name: bool,
}

/// Looks a variable up.
type Variable = dyn Fn(&str) -> Option<OsString>;

impl Environment {
    /// This process's environment.
    pub fn process() -> Self {
        Self {
            variable: Box::new(|name| std::env::var_os(name)),
            root: PathBuf::from("/"),
            by_name: true,
        }
    }

    /// An environment of these variables and the file system below `root`.
    ///
    /// Nothing is looked for by its bare name, since that would find what the machine happens to
    /// have; [`with_bare_names`](Self::with_bare_names) changes that.
    pub fn closed(
        root: impl Into<PathBuf>,
        variable: impl Fn(&str) -> Option<OsString> + 'static,
    ) -> Self {
        Self { variable: Box::new(variable), root: root.into(), by_name: false }
    }

    /// Looks for bare names too: in the process, then through the dynamic loader.
    #[must_use]
    pub fn with_bare_names(self) -> Self {
        Self { by_name: true, ..self }
    }

    /// The value of a variable; an empty one counts as unset.
    pub(crate) fn variable(&self, name: &str) -> Option<OsString> {
        (self.variable)(name).filter(|value| !value.is_empty())
    }

    /// The folders of a list like `PATH`.
    pub(crate) fn folders(&self, name: &str) -> Vec<PathBuf> {
        let list = self.variable(name).unwrap_or_default();
        std::env::split_paths(&list).filter(|folder| !folder.as_os_str().is_empty()).collect()
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment")
            .field("root", &self.root)
            .field("by_name", &self.by_name)
            .finish_non_exhaustive()
    }
}

/// A library to try.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Candidate {
    /// Where the idea came from.
    pub source: Source,
    /// A path, or a bare name for the dynamic loader to find.
    pub target: PathBuf,
}

impl Candidate {
    pub(crate) fn new(source: Source, target: impl Into<PathBuf>) -> Self {
        Self { source, target: target.into() }
    }

    /// Whether the dynamic loader looks for it: a name without a slash, as for `dlopen`.
    pub fn is_bare_name(&self) -> bool {
        !self.target.as_os_str().as_encoded_bytes().contains(&b'/')
    }
}

/// The candidates of a search, in order. Files need not exist; folders that don't are left out.
pub fn candidates(vendor: &Vendor, environment: &Environment) -> Vec<Candidate> {
    for variable in vendor.path_variables {
        if let Some(path) = environment.variable(variable) {
            return vec![Candidate::new(Source::EnvVar(variable), path)];
        }
    }
    let mut list = Vec::new();
    if environment.by_name {
        list.push(Candidate::new(Source::AlreadyLoaded, vendor.soname));
        list.push(Candidate::new(Source::Soname, vendor.soname));
    }
    let in_folders = |source, folders: Vec<PathBuf>| {
        folders.into_iter().map(move |folder| Candidate::new(source, folder.join(vendor.soname)))
    };
    list.extend(in_folders(Source::PythonPackages, package_folders(vendor, environment)));
    list.extend(in_folders(Source::VendorRoot, root_folders(vendor, environment)));
    if environment.by_name {
        list.push(Candidate::new(Source::DevName, vendor.dev_name));
    }
    let mut seen = HashSet::new();
    list.retain(|candidate| candidate.is_bare_name() || seen.insert(candidate.target.clone()));
    list
}

/// The folders in which Python packages of the active environment keep the library.
///
/// No interpreter is started: its packages lie at places that follow from where it lies itself.
fn package_folders(vendor: &Vendor, environment: &Environment) -> Vec<PathBuf> {
    let variable = |name| environment.variable(name).map(PathBuf::from);
    // The interpreter that `python3` would start, left unresolved: in a virtual environment it is a
    // link, and the packages lie beside the link.
    let interpreter = environment
        .folders("PATH")
        .into_iter()
        .find(|folder| folder.join("python3").is_file())
        .and_then(|folder| folder.parent().map(Path::to_owned));
    let prefixes = [
        variable("VIRTUAL_ENV"),
        variable("CONDA_PREFIX"),
        interpreter,
        variable("HOME").map(|home| home.join(".local")),
    ];
    let mut folders = Vec::new();
    for prefix in prefixes.into_iter().flatten() {
        for packages in PACKAGES.iter().flat_map(|pattern| expand(&prefix, pattern)) {
            folders.extend(vendor.package_dirs.iter().flat_map(|dir| expand(&packages, dir)));
        }
    }
    // Conda's own packages put libraries where a system would.
    folders.extend(variable("CONDA_PREFIX").map(|prefix| prefix.join("lib")));
    folders
}

/// The library folders of the vendor's toolkit.
fn root_folders(vendor: &Vendor, environment: &Environment) -> Vec<PathBuf> {
    let named = vendor.root_variables.iter().filter_map(|name| environment.variable(name));
    let usual = vendor.roots.iter().flat_map(|pattern| expand(&environment.root, pattern));
    named
        .map(PathBuf::from)
        .chain(usual)
        .flat_map(|root| vendor.root_dirs.iter().flat_map(move |dir| expand(&root, dir)))
        .collect()
}

/// The folders that match `pattern` below `base`; of several matches the highest version comes
/// first.
fn expand(base: &Path, pattern: &str) -> Vec<PathBuf> {
    pattern.split('/').fold(vec![base.to_owned()], |folders, component| {
        folders.iter().flat_map(|folder| matches(folder, component)).collect()
    })
}

/// The folders in `folder` whose names match a pattern with at most one `*`.
fn matches(folder: &Path, pattern: &str) -> Vec<PathBuf> {
    let Some((start, end)) = pattern.split_once('*') else {
        let path = folder.join(pattern);
        return if path.is_dir() { vec![path] } else { Vec::new() };
    };
    // A folder that can't be read holds nothing for us.
    let mut found: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.as_encoded_bytes();
            name.len() >= start.len() + end.len()
                && name.starts_with(start.as_bytes())
                && name.ends_with(end.as_bytes())
        })
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect();
    found.sort_by_cached_key(|path| {
        std::cmp::Reverse(numbers(path.file_name().unwrap_or_default()))
    });
    found
}

/// The numbers in a name, so that `rocm-10.0` comes after `rocm-7.2`; then the name itself.
fn numbers(name: &OsStr) -> (Vec<u64>, OsString) {
    let text = name.to_string_lossy();
    let runs = text.split(|c: char| !c.is_ascii_digit());
    (runs.filter_map(|run| run.parse().ok()).collect(), name.to_owned())
}

/// Where an installation of Python keeps packages: upstream's folder, then Debian's.
const PACKAGES: [&str; 4] = [
    "lib/python3*/site-packages",
    "local/lib/python3*/dist-packages",
    "lib/python3*/dist-packages",
    "lib/python3/dist-packages",
];
