//! Opening a library, once and for ever.
//!
//! NCCL starts threads of its own: each `ncclGetUniqueId` leaves a listener. Closing the library
//! would unmap the code under them, so a library that was opened stays open until the process ends,
//! and a [`Library`] is handed out as `&'static`. The same file, under whatever name, is the same
//! [`Library`].
//!
//! Libraries are opened with `RTLD_LOCAL`, since NCCL and RCCL export the same names, and with
//! `RTLD_NOW`, so that a missing dependency is an error here and not the end of the process at some
//! later call.

use std::ffi::{CStr, c_int, c_void};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, Once, PoisonError};

use crate::error::{Attempt, LoadError, Refusal};
use crate::fork;
use crate::search::{Candidate, Environment, candidates};
use crate::table::Table;
use crate::types::{ncclComm_t, ncclResult_t};
use crate::vendor::{Flavour, Vendor};
use crate::version::version_text;

/// A library of this ABI, open until the process ends.
///
/// # What is trusted
///
/// A file that calls itself `libnccl.so.2` and has NCCL's functions is taken to be one: its code
/// runs in this process, as that of every shared library does. Who may set the variables of the
/// search or write to the folders that it reads may run code in this process.
#[derive(Debug)]
pub struct Library {
    table: Table,
    vendor: &'static Vendor,
    version: c_int,
    /// What `dlopen` answered; `None` for a table.
    handle: Option<usize>,
    path: Option<PathBuf>,
    source: Source,
    skipped: Vec<Attempt>,
}

impl Library {
    /// Finds and opens the vendor's library: the door for programs that take what the machine has.
    ///
    /// The order of the search is told at [`candidates`].
    ///
    /// # Errors
    ///
    /// A variable that names an unusable library, or a search that found none; see [`LoadError`].
    pub fn load(vendor: &'static Vendor) -> Result<&'static Self, LoadError> {
        Self::load_in(vendor, &Environment::process())
    }

    /// [`load`](Self::load), in an environment of the caller's making.
    ///
    /// # Errors
    ///
    /// As for [`load`](Self::load).
    pub fn load_in(
        vendor: &'static Vendor,
        environment: &Environment,
    ) -> Result<&'static Self, LoadError> {
        let mut skipped = Vec::new();
        for Candidate { source, target } in candidates(vendor, environment) {
            match open(vendor, source, &target, environment) {
                Ok(opened) => return Ok(opened.register(vendor, source, skipped)),
                Err(refusal) => {
                    let path = target.display();
                    tracing::debug!(%vendor, %source, %path, %refusal, "refused");
                    skipped.push(Attempt { source, target, refusal });
                }
            }
        }
        Err(LoadError::new(vendor, skipped))
    }

    /// Opens this library and no other: the door for programs that ship or choose their own.
    ///
    /// A bare name without a slash is found by the dynamic loader, as for `dlopen`.
    ///
    /// # Errors
    ///
    /// What is wrong with this one library; see [`LoadError`].
    pub fn load_from(
        vendor: &'static Vendor,
        path: impl AsRef<Path>,
    ) -> Result<&'static Self, LoadError> {
        let (source, target) = (Source::Explicit, path.as_ref());
        open(vendor, source, target, &Environment::process())
            .map(|opened| opened.register(vendor, source, Vec::new()))
            .map_err(|refusal| {
                let target = target.to_owned();
                LoadError::new(vendor, vec![Attempt { source, target, refusal }])
            })
    }

    /// Takes a ready-made table and opens nothing: the door for functions that are linked in, and
    /// for tests.
    ///
    /// Each call makes a library of its own, kept for ever like the others.
    ///
    /// # Safety
    ///
    /// The functions of the table are those of their signatures in `nccl.h`, and can be called
    /// until the process ends.
    ///
    /// # Errors
    ///
    /// `ncclGetVersion` didn't answer.
    pub unsafe fn from_table(
        vendor: &'static Vendor,
        table: Table,
    ) -> Result<&'static Self, LoadError> {
        fork::arm();
        let source = Source::Table;
        // SAFETY: the caller's promise.
        let version = unsafe { version(&table) }.map_err(|refusal| {
            LoadError::new(
                vendor,
                vec![Attempt { source, target: PathBuf::from("function table"), refusal }],
            )
        })?;
        let (handle, path, skipped) = (None, None, Vec::new());
        let library = Self { table, vendor, version, handle, path, source, skipped };
        Ok(Box::leak(Box::new(library)))
    }

    /// The vendor's libraries that this crate has opened in this process, the oldest first; no tables.
    pub fn opened(vendor: &Vendor) -> Vec<&'static Self> {
        // A panic in another thread leaves the list whole: it only ever grows.
        let libraries = LIBRARIES.lock().unwrap_or_else(PoisonError::into_inner);
        let libraries = libraries.iter().map(|(_, library)| *library);
        libraries.filter(|library| library.flavour() == vendor.flavour).collect()
    }

    /// The address of a symbol in this library or in one that it depends on, as `dlsym` finds it on
    /// its handle; null where none has it, and for a table.
    ///
    /// So the device runtime that is found is the very one that the library uses, whatever other
    /// releases of it lie about.
    pub fn symbol(&self, name: &CStr) -> *const c_void {
        self.handle.map_or(std::ptr::null(), |handle| sys::find(handle, name))
    }

    /// The functions.
    pub const fn table(&self) -> &Table {
        &self.table
    }

    /// The vendor that was asked for.
    pub const fn vendor(&self) -> &'static Vendor {
        self.vendor
    }

    /// The vendor's flavour.
    pub const fn flavour(&self) -> Flavour {
        self.vendor.flavour
    }

    /// The raw version code that `ncclGetVersion` told; [`version_text`] reads it.
    pub const fn version(&self) -> c_int {
        self.version
    }

    /// The file, with links resolved; `None` for [`from_table`](Self::from_table).
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// How it was found, the first time.
    pub const fn source(&self) -> Source {
        self.source
    }

    /// What the search tried and refused before it came to this library.
    pub fn skipped(&self) -> &[Attempt] {
        &self.skipped
    }

    /// The library's text for a result, such as `invalid argument (run with NCCL_DEBUG=WARN for
    /// details)`.
    #[doc(alias = "ncclGetErrorString")]
    pub fn error_text(&self, result: ncclResult_t) -> String {
        // SAFETY: the table holds the library's own function, which takes every number.
        let text = unsafe { (self.table.get_error_string)(result) };
        // SAFETY: null or static text.
        unsafe { copy_text(text) }.unwrap_or_else(|| "unknown result code".to_owned())
    }

    /// The last warning that the library wrote, on any communicator of any thread; `None` if it
    /// never did, or is too old to tell.
    ///
    /// Nothing clears it, so it is a hint to be read right after a call that failed, and no proof.
    #[doc(alias = "ncclGetLastError")]
    pub fn last_error(&self) -> Option<String> {
        let get_last_error = self.table.get_last_error?;
        // SAFETY: the library ignores the communicator; null is what its own tests pass.
        let text = unsafe { get_last_error(ncclComm_t::NULL) };
        // SAFETY: null or the library's buffer, which is never freed and always ends in a NUL.
        unsafe { copy_text(text) }.filter(|text| !text.is_empty())
    }
}

impl fmt::Display for Library {
    /// `NCCL 2.27.3 (/usr/lib/libnccl.so.2.27.3)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.vendor, version_text(self.version))?;
        match &self.path {
            Some(path) => write!(f, " ({})", path.display()),
            None => f.write_str(" (built in)"),
        }
    }
}

/// How a library was found.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Source {
    /// The caller named it.
    Explicit,
    /// This variable named it.
    EnvVar(&'static str),
    /// It was in the process already.
    AlreadyLoaded,
    /// The dynamic loader found the versioned name.
    Soname,
    /// It lies in a Python package.
    PythonPackages,
    /// It lies in the vendor's toolkit.
    VendorRoot,
    /// The dynamic loader found the unversioned name.
    DevName,
    /// It is a table of functions, and no file.
    Table,
}

impl Source {
    /// Whether somebody asked for this very library, so that no other may stand in.
    pub const fn is_demand(self) -> bool {
        matches!(self, Self::Explicit | Self::EnvVar(_) | Self::Table)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Explicit => "explicit path",
            Self::EnvVar(variable) => variable,
            Self::AlreadyLoaded => "already in the process",
            Self::Soname => "dynamic loader",
            Self::PythonPackages => "Python packages",
            Self::VendorRoot => "vendor toolkit",
            Self::DevName => "dynamic loader, development name",
            Self::Table => "function table",
        })
    }
}

/// The files of this vendor's library that are mapped into the process: more than one is trouble,
/// as each has groups and communicators of its own.
///
/// Read from `/proc/self/maps`; empty where that can't be read.
pub fn loaded_copies(vendor: &Vendor) -> Vec<PathBuf> {
    copies_in(&std::fs::read_to_string("/proc/self/maps").unwrap_or_default(), vendor)
}

/// The distinct files (by device and inode) of a process map that are named like the vendor's
/// library.
fn copies_in(maps: &str, vendor: &Vendor) -> Vec<PathBuf> {
    let mut seen = Vec::new();
    let mut copies = Vec::new();
    for line in maps.lines() {
        // address, permissions, offset, device, inode, path (which may hold spaces)
        let mut fields = line.splitn(6, ' ');
        let (Some(device), Some(inode), Some(path)) =
            (fields.nth(3), fields.next(), fields.next().map(str::trim_start))
        else {
            continue;
        };
        let path = path.trim_end_matches(" (deleted)");
        let name = path.rsplit('/').next().unwrap_or_default();
        if name.starts_with(vendor.dev_name) && !seen.contains(&(device, inode)) {
            seen.push((device, inode));
            copies.push(PathBuf::from(path));
        }
    }
    copies
}

/// A library that was opened and answers, but isn't registered yet.
struct Opened {
    /// What `dlopen` answered: the same for the same file.
    handle: usize,
    table: Table,
    version: c_int,
    path: Option<PathBuf>,
}

impl Opened {
    /// The one [`Library`] for this file, made now or earlier.
    fn register(
        self,
        vendor: &'static Vendor,
        source: Source,
        skipped: Vec<Attempt>,
    ) -> &'static Library {
        let Self { handle, table, version, path } = self;
        // A panic in another thread leaves the list whole: it only ever grows.
        let mut libraries = LIBRARIES.lock().unwrap_or_else(PoisonError::into_inner);
        let known = libraries
            .iter()
            .find(|(known, library)| *known == handle && library.flavour() == vendor.flavour);
        if let Some((_, library)) = known {
            return library;
        }
        let library: &'static Library = Box::leak(Box::new(Library {
            table,
            vendor,
            version,
            handle: Some(handle),
            path,
            source,
            skipped,
        }));
        libraries.push((handle, library));
        drop(libraries);
        tracing::debug!(%library, %source, "opened");
        warn_of_copies(vendor);
        library
    }
}

/// Every library that was opened, by handle. One file may be here under both flavours: a stand-in
/// that speaks for both vendors is one file with two names.
static LIBRARIES: Mutex<Vec<(usize, &'static Library)>> = Mutex::new(Vec::new());

/// Warns, once per process, if there are two copies of the vendor's library.
fn warn_of_copies(vendor: &Vendor) {
    static WARNED: Once = Once::new();
    let copies = loaded_copies(vendor);
    if copies.len() > 1 {
        WARNED.call_once(|| {
            tracing::warn!(
                ?copies,
                "more than one {vendor} in this process: each has groups of its own"
            );
        });
    }
}

/// Opens a candidate and asks its version.
fn open(
    vendor: &Vendor,
    source: Source,
    target: &Path,
    environment: &Environment,
) -> Result<Opened, Refusal> {
    fork::arm();
    refuse_other_vendor(vendor, target)?;
    let handle = sys::open(source, target, environment)?.id();
    // SAFETY: the library has the names of this ABI; that it also keeps its signatures is the trust
    // that `Library` speaks of. It stays open for ever.
    let table = unsafe { Table::fill(|name| sys::find(handle, name)) }?;
    // SAFETY: as above.
    let version = unsafe { version(&table) }?;
    let path = sys::path_of(table.get_version as usize);
    Ok(Opened { handle, table, version, path })
}

/// Refuses a file that carries the other vendor's name, which is an easy slip in a variable. The
/// stream handles of one vendor would be given to the other.
fn refuse_other_vendor(vendor: &Vendor, target: &Path) -> Result<(), Refusal> {
    let name = target.file_name().unwrap_or_default().as_encoded_bytes();
    let other = match vendor.flavour {
        Flavour::Nccl => Flavour::Rccl,
        Flavour::Rccl => Flavour::Nccl,
    };
    if name.starts_with(Vendor::of(other).dev_name.as_bytes()) {
        return Err(Refusal::OtherVendor(other));
    }
    Ok(())
}

/// Asks `ncclGetVersion`.
///
/// # Safety
///
/// The table's function is that of `nccl.h`.
unsafe fn version(table: &Table) -> Result<c_int, Refusal> {
    let mut code = 0;
    // SAFETY: `code` outlives the call; the rest is the caller's promise.
    let result = unsafe { (table.get_version)(&mut code) };
    if result.is_success() { Ok(code) } else { Err(Refusal::Version(result)) }
}

/// Copies a C string; `None` for null.
///
/// # Safety
///
/// `text` is null, or ends in a NUL and stays until this function returns.
unsafe fn copy_text(text: *const std::ffi::c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: not null; the rest is the caller's promise.
    let text = unsafe { CStr::from_ptr(text) };
    Some(text.to_string_lossy().into_owned())
}

/// The dynamic loader.
#[cfg(target_os = "linux")]
mod sys {
    use std::ffi::{CStr, OsStr, c_void};
    use std::mem::MaybeUninit;
    use std::os::unix::ffi::OsStrExt;
    use std::path::{Path, PathBuf};
    use std::ptr;

    use libloading::os::unix;

    use super::{Environment, Source};
    use crate::elf;
    use crate::error::Refusal;

    /// An open library. Dropping it closes nothing.
    pub(super) struct Handle(*mut c_void);

    impl Handle {
        /// The same number for the same file.
        pub(super) fn id(&self) -> usize {
            self.0.expose_provenance()
        }
    }

    /// The address of a symbol in the library of this [`id`](Handle::id); null if there is none.
    pub(super) fn find(id: usize, name: &CStr) -> *const c_void {
        // SAFETY: the handle is from `dlopen` and never closed; the name ends in a NUL.
        unsafe { libc::dlsym(ptr::with_exposed_provenance_mut(id), name.as_ptr()) }
    }

    /// Opens a path after a look at the file, or a name that the dynamic loader finds.
    pub(super) fn open(
        source: Source,
        target: &Path,
        environment: &Environment,
    ) -> Result<Handle, Refusal> {
        let is_path = target.as_os_str().as_bytes().contains(&b'/');
        if is_path {
            elf::check(target)?;
        } else if source != Source::AlreadyLoaded {
            refuse_truncated(target, environment)?;
        }
        let mut flags = libc::RTLD_NOW | libc::RTLD_LOCAL;
        if source == Source::AlreadyLoaded {
            flags |= libc::RTLD_NOLOAD;
        }
        // SAFETY: the library's initialisers run; see "What is trusted" at `Library`.
        let opened = unsafe { unix::Library::open(Some(target), flags) };
        match opened {
            // Never closed, usable or not: it may have started threads already.
            Ok(library) => Ok(Handle(library.into_raw())),
            Err(_) if source == Source::AlreadyLoaded => Err(Refusal::NotLoaded),
            Err(libloading::Error::DlOpen { source }) => {
                // The loader's text begins with the name that every report of ours begins with.
                let text = source.to_string();
                let rest = text.strip_prefix(&format!("{}: ", target.display())).unwrap_or(&text);
                Err(Refusal::Loader(rest.to_owned()))
            }
            Err(other) => Err(Refusal::Loader(other.to_string())),
        }
    }

    /// Refuses a name that the dynamic loader would find in a truncated file of `LD_LIBRARY_PATH`:
    /// mapping it would kill the process. What else is wrong with a file there the loader says or
    /// skips itself.
    fn refuse_truncated(name: &Path, environment: &Environment) -> Result<(), Refusal> {
        for folder in environment.folders("LD_LIBRARY_PATH") {
            match elf::check(&folder.join(name)) {
                Ok(()) => return Ok(()),
                Err(refusal @ Refusal::Truncated { .. }) => return Err(refusal),
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// The file that holds the code at this address, with links resolved.
    pub(super) fn path_of(address: usize) -> Option<PathBuf> {
        let mut info = MaybeUninit::<libc::Dl_info>::zeroed();
        // SAFETY: `info` outlives the call; any address may be asked about.
        let found = unsafe { libc::dladdr(ptr::without_provenance(address), info.as_mut_ptr()) };
        if found == 0 {
            return None;
        }
        // SAFETY: zeroes are a valid `Dl_info`, and the call has filled it.
        let info = unsafe { info.assume_init() };
        if info.dli_fname.is_null() {
            return None;
        }
        // SAFETY: the name of an open object, which is never closed.
        let name = unsafe { CStr::from_ptr(info.dli_fname) };
        let path = PathBuf::from(OsStr::from_bytes(name.to_bytes()));
        Some(path.canonicalize().unwrap_or(path))
    }
}

/// No vendor has a library for this platform.
#[cfg(not(target_os = "linux"))]
mod sys {
    use std::ffi::{CStr, c_void};
    use std::path::{Path, PathBuf};

    use super::{Environment, Source};
    use crate::error::Refusal;

    /// An open library, of which there are none.
    pub(super) enum Handle {}

    impl Handle {
        pub(super) fn id(&self) -> usize {
            match *self {}
        }
    }

    pub(super) fn find(_: usize, _: &CStr) -> *const c_void {
        std::ptr::null()
    }

    pub(super) fn open(_: Source, _: &Path, _: &Environment) -> Result<Handle, Refusal> {
        Err(Refusal::Platform)
    }

    pub(super) fn path_of(_: usize) -> Option<PathBuf> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_told_apart_by_inode_and_plugins_are_none() {
        let maps = "\
7f00-7f01 r--p 00000000 fe:00 11                         /a/nvidia/nccl/lib/libnccl.so.2
7f01-7f02 r-xp 00001000 fe:00 11                         /a/nvidia/nccl/lib/libnccl.so.2
7f03-7f04 r-xp 00000000 fe:00 12                         /usr/my lib/libnccl.so.2.27.3 (deleted)
7f05-7f06 r-xp 00000000 fe:00 13                         /usr/lib/libnccl-net.so
7f06-7f07 r-xp 00000000 fe:00 14                         /opt/rocm/lib/librccl.so.1.0
7f07-7f08 rw-p 00000000 00:00 0 
7f08-7f09 rw-p 00000000 00:00 0                          [stack]
";
        assert_eq!(
            copies_in(maps, Vendor::NCCL),
            [
                PathBuf::from("/a/nvidia/nccl/lib/libnccl.so.2"),
                PathBuf::from("/usr/my lib/libnccl.so.2.27.3")
            ]
        );
        assert_eq!(copies_in(maps, Vendor::RCCL), [PathBuf::from("/opt/rocm/lib/librccl.so.1.0")]);
    }

    #[test]
    fn the_other_vendors_file_is_refused_by_its_name() {
        for (vendor, path, refused) in [
            (Vendor::NCCL, "/x/librccl.so.1", true),
            (Vendor::RCCL, "/x/libnccl.so.2", true),
            (Vendor::NCCL, "/x/libnccl.so.2", false),
            (Vendor::NCCL, "/x/librccl-wrapper/libmine.so", false),
        ] {
            let answer = refuse_other_vendor(vendor, Path::new(path));
            assert_eq!(answer.is_err(), refused, "{vendor} {path}");
        }
    }
}
