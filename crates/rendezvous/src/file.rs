//! A store in a file that all ranks see.
//!
//! The file is a log. It starts with the name of the run that it belongs to; then comes one record
//! for each operation that changed something, with its length and its checksum. Every process keeps
//! the table that the log amounts to, and reads on from where it was.
//!
//! **A process may die anywhere.** Who reads or writes holds a lock on the file, which the kernel
//! takes from the dead. What a writer could not finish is a record that is shorter than it says, at
//! the end: readers stop before it, the next writer cuts it off. So an operation is in the log as a
//! whole or not at all. A record that is long enough but has another checksum was damaged by
//! something else, and nothing in or behind it is believed.
//!
//! **A file may be left over.** One rank, and only it, makes the file of a run, beside the old one,
//! and renames it over it. The others wait until they find the name of their run. A process of an
//! earlier run that is still there keeps the old file, which has no name any more: neither sees the
//! other.

use std::{
    fmt,
    fs::{self, File, TryLockError},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    process,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use collectives_core::{Error, ErrorKind, Result};

use crate::{
    Deadline, Store,
    deadline::Pauses,
    store::{keys_missing, store_error},
    table::Table,
};

/// A store in a file, for ranks that share a file system with locks: those of one machine, or of
/// several with NFS or Lustre (mounted with `flock`).
///
/// The file grows with every change, so it suits a meeting, not a queue. It stays until somebody
/// removes it.
///
/// # Errors
/// Those of [`Store`]; [`ErrorKind::System`] where the file cannot be read or written, is damaged, or
/// belongs to another run.
pub struct FileStore {
    path: PathBuf,
    log: Mutex<Log>,
}

impl FileStore {
    /// Makes the file of `run`, in place of any that is there. One rank calls this, the others
    /// [`join`](Self::join).
    ///
    /// `run` is any text that no earlier run had in this place: a job's id and its attempt, say
    /// ([`Environment::job`](crate::Environment::job)).
    pub fn create(path: impl Into<PathBuf>, run: &str) -> Result<Self> {
        let path = path.into();
        let (file, start) = make(&path, run).map_err(|error| {
            store_error(ErrorKind::System, &describe(&path), "create", &error).with_source(error)
        })?;
        Ok(Self { log: Mutex::new(Log::new(file, start)), path })
    }

    /// Waits until the file of `run` is there.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`] where it does not come; the error says whose file is there instead.
    pub fn join(path: impl Into<PathBuf>, run: &str, deadline: Deadline) -> Result<Self> {
        let path = path.into();
        let mut pauses = Pauses::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            let found = match open(&path) {
                Ok((file, start, found)) if found == run.as_bytes() => {
                    return Ok(Self { log: Mutex::new(Log::new(file, start)), path });
                }
                Ok((_, _, other)) => {
                    format!("it is of run '{}'", String::from_utf8_lossy(&other))
                }
                Err(error) => error.to_string(),
            };
            if !pauses.sleep(deadline) {
                let given = deadline.given();
                let message = format!("no file of run '{run}' within {given:?}: {found}");
                return Err(store_error(ErrorKind::Timeout, &describe(&path), "join", message)
                    .with_hint(
                        "see whether the rank that creates it runs, sees the same folder, and calls \
                         the run the same",
                    ));
            }
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads what is new, and looks at the table.
    fn read<R>(
        &self,
        operation: &'static str,
        deadline: Deadline,
        look: impl FnOnce(&Table) -> R,
    ) -> Result<R> {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let locked = log.file.try_clone().map_err(|error| self.failed(operation, error))?;
        self.lock(operation, deadline, || locked.try_lock_shared())?;
        let result = log.read_on();
        unlock(&locked);
        result.map_err(|error| self.failed(operation, error))?;
        Ok(look(&log.table))
    }

    /// Reads what is new, and writes what `change` says; it is in the table as well then.
    fn write<R>(
        &self,
        operation: &'static str,
        deadline: Deadline,
        change: impl FnOnce(&Table) -> Result<(Record, R)>,
    ) -> Result<R> {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let locked = log.file.try_clone().map_err(|error| self.failed(operation, error))?;
        self.lock(operation, deadline, || locked.try_lock())?;
        let result = log.read_on().map_err(|error| self.failed(operation, error)).and_then(|()| {
            let (record, result) = change(&log.table)?;
            log.write(&record).map_err(|error| self.failed(operation, error))?;
            Ok(result)
        });
        unlock(&locked);
        result
    }

    /// Takes the lock, which nobody holds for longer than it takes to read and write.
    fn lock(
        &self,
        operation: &'static str,
        deadline: Deadline,
        mut attempt: impl FnMut() -> Result<(), TryLockError>,
    ) -> Result<()> {
        let deadline = deadline.or_grace();
        let mut pauses = Pauses::new(Duration::from_micros(20), LONGEST_PAUSE);
        loop {
            match attempt() {
                Ok(()) => return Ok(()),
                Err(TryLockError::WouldBlock) => {
                    if !pauses.sleep(deadline) {
                        let message = "another process holds the lock";
                        return Err(self
                            .error(ErrorKind::Timeout, operation, message)
                            .with_hint("see whether a rank is stopped, as by a debugger"));
                    }
                }
                Err(TryLockError::Error(error)) => return Err(self.failed(operation, error)),
            }
        }
    }

    /// Waits for `keys`, then reads from the same state of the table.
    fn when<R>(
        &self,
        operation: &'static str,
        keys: &[&str],
        deadline: Deadline,
        read: impl Fn(&Table) -> R,
    ) -> Result<R> {
        let mut pauses = Pauses::new(FIRST_PAUSE, LONGEST_PAUSE);
        let mut awaited: Vec<usize> = (0..keys.len()).collect();
        loop {
            let done = self.read(operation, deadline, |table| {
                awaited.retain(|&at| !table.contains(keys[at].as_bytes()));
                awaited.is_empty().then(|| read(table))
            })?;
            if let Some(result) = done {
                return Ok(result);
            }
            if !pauses.sleep(deadline) {
                let error = keys_missing(&self.describe(), operation, keys, &awaited, deadline);
                return Err(if self.is_replaced() {
                    error.with_hint("another run has replaced the file since: end this one")
                } else {
                    error
                });
            }
        }
    }

    /// Whether the path leads to another file than ours by now.
    fn is_replaced(&self) -> bool {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        match (fs::metadata(&self.path), log.file.metadata()) {
            (Ok(there), Ok(ours)) => !same_file(&there, &ours),
            (Err(error), _) => error.kind() == io::ErrorKind::NotFound,
            (_, Err(_)) => false,
        }
    }

    fn failed(&self, operation: &'static str, error: io::Error) -> Error {
        self.error(ErrorKind::System, operation, &error).with_source(error)
    }

    fn error(&self, kind: ErrorKind, operation: &'static str, message: impl fmt::Display) -> Error {
        store_error(kind, &self.describe(), operation, message)
    }
}

impl Store for FileStore {
    fn set(&self, key: &str, value: &[u8], deadline: Deadline) -> Result<()> {
        self.multi_set(&[(key, value)], deadline)
    }

    fn get(&self, key: &str, deadline: Deadline) -> Result<Vec<u8>> {
        self.when("get", &[key], deadline, |table| {
            table.get(key.as_bytes()).unwrap_or_default().to_vec()
        })
    }

    fn wait(&self, keys: &[&str], deadline: Deadline) -> Result<()> {
        self.when("wait", keys, deadline, |_| ())
    }

    fn missing(&self, keys: &[&str], deadline: Deadline) -> Result<Vec<usize>> {
        self.read("missing", deadline, |table| {
            (0..keys.len()).filter(|&at| !table.contains(keys[at].as_bytes())).collect()
        })
    }

    fn check(&self, keys: &[&str], deadline: Deadline) -> Result<bool> {
        self.read("check", deadline, |table| keys.iter().all(|key| table.contains(key.as_bytes())))
    }

    fn add(&self, key: &str, delta: i64, deadline: Deadline) -> Result<i64> {
        self.write("add", deadline, |table| {
            let sum = table.sum(key.as_bytes(), delta).map_err(|refusal| {
                let message = format!("key '{key}' {refusal}");
                self.error(ErrorKind::InvalidArgument, "add", message)
            })?;
            Ok((Record::new().put(key, sum.to_string().as_bytes()), sum))
        })
    }

    fn append(&self, key: &str, value: &[u8], deadline: Deadline) -> Result<()> {
        self.write("append", deadline, |_| Ok((Record::new().append(key, value), ())))
    }

    fn compare_set(
        &self,
        key: &str,
        expected: &[u8],
        desired: &[u8],
        deadline: Deadline,
    ) -> Result<Vec<u8>> {
        self.write("compare_set", deadline, |table| {
            Ok(if table.matches(key.as_bytes(), expected) {
                (Record::new().put(key, desired), desired.to_vec())
            } else {
                (Record::new(), table.get(key.as_bytes()).unwrap_or(expected).to_vec())
            })
        })
    }

    fn delete(&self, key: &str, deadline: Deadline) -> Result<bool> {
        self.write("delete", deadline, |table| {
            Ok(match table.get(key.as_bytes()) {
                Some(_) => (Record::new().delete(key), true),
                None => (Record::new(), false),
            })
        })
    }

    fn multi_get(&self, keys: &[&str], deadline: Deadline) -> Result<Vec<Vec<u8>>> {
        self.when("multi_get", keys, deadline, |table| {
            keys.iter().map(|key| table.get(key.as_bytes()).unwrap_or_default().to_vec()).collect()
        })
    }

    fn multi_set(&self, pairs: &[(&str, &[u8])], deadline: Deadline) -> Result<()> {
        self.write("set", deadline, |_| {
            let put = |record: Record, (key, value): &(&str, &[u8])| record.put(key, value);
            Ok((pairs.iter().fold(Record::new(), put), ()))
        })
    }

    fn num_keys(&self, deadline: Deadline) -> Result<u64> {
        self.read("num_keys", deadline, |table| table.len() as u64)
    }

    fn describe(&self) -> String {
        describe(&self.path)
    }
}

impl fmt::Debug for FileStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileStore({})", self.path.display())
    }
}

/// The file, and what it amounts to up to `read`.
struct Log {
    file: File,
    read: u64,
    table: Table,
}

impl Log {
    fn new(file: File, start: u64) -> Self {
        Self { file, read: start, table: Table::default() }
    }

    /// Takes in the records that others wrote; needs the lock.
    fn read_on(&mut self) -> io::Result<()> {
        let size = self.file.metadata()?.len();
        if size < self.read {
            return Err(damaged(size, "it was cut off"));
        }
        let mut new = Vec::new();
        self.file.seek(SeekFrom::Start(self.read))?;
        (&self.file).take(size - self.read).read_to_end(&mut new)?;
        let mut rest = new.as_slice();
        while let Some((record, after)) = split_record(rest, self.read)? {
            apply(record, &mut self.table).ok_or_else(|| damaged(self.read, "it has no sense"))?;
            self.read += (rest.len() - after.len()) as u64;
            rest = after;
        }
        Ok(())
    }

    /// Adds a record behind those that were read, and takes it in; needs the exclusive lock.
    fn write(&mut self, record: &Record) -> io::Result<()> {
        if record.0.is_empty() {
            return Ok(());
        }
        if record.0.len() > LARGEST {
            let message = format!("{} bytes at once; {LARGEST} is the limit", record.0.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let bytes = framed(&record.0);
        // What a dead writer left is not only overwritten: the rest of it could look like a record.
        self.file.set_len(self.read)?;
        self.file.seek(SeekFrom::Start(self.read))?;
        if let Err(error) = self.file.write_all(&bytes) {
            // The disk is full, say. What is there now, the next writer cuts off if we cannot.
            let _ = self.file.set_len(self.read);
            return Err(error);
        }
        apply(&record.0, &mut self.table).ok_or_else(|| damaged(self.read, "it has no sense"))?;
        self.read += bytes.len() as u64;
        Ok(())
    }
}

/// Changes that are made together: for each a kind, a key and, except for deletions, a value.
struct Record(Vec<u8>);

impl Record {
    fn new() -> Self {
        Self(Vec::new())
    }

    fn put(mut self, key: &str, value: &[u8]) -> Self {
        self.0.push(PUT);
        self.bytes(key.as_bytes()).bytes(value)
    }

    fn append(mut self, key: &str, value: &[u8]) -> Self {
        self.0.push(APPEND);
        self.bytes(key.as_bytes()).bytes(value)
    }

    fn delete(mut self, key: &str) -> Self {
        self.0.push(DELETE);
        self.bytes(key.as_bytes())
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        self.0.extend_from_slice(bytes);
        self
    }
}

/// Does what a record says; `None` where it says nothing that we know.
fn apply(mut record: &[u8], table: &mut Table) -> Option<()> {
    while let Some((kind, rest)) = record.split_first() {
        let (key, rest) = split_bytes(rest)?;
        record = match *kind {
            DELETE => {
                table.delete(key);
                rest
            }
            PUT | APPEND => {
                let (value, rest) = split_bytes(rest)?;
                if *kind == PUT {
                    table.set(key, value)
                } else {
                    table.append(key, value)
                }
                rest
            }
            _ => return None,
        };
    }
    Some(())
}

fn split_bytes(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (size, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(usize::try_from(u64::from_le_bytes(*size)).ok()?)
}

/// A record as it stands in the file: its length, its checksum, and what it says.
fn framed(content: &[u8]) -> Vec<u8> {
    let size = content.len() as u32;
    let mut bytes = Vec::with_capacity(FRAME + content.len());
    bytes.extend_from_slice(&size.to_le_bytes());
    bytes.extend_from_slice(&checksum(size, content).to_le_bytes());
    bytes.extend_from_slice(content);
    bytes
}

/// The first record of `bytes`, which stand at `place`, and what is behind it; `None` where it is not
/// all there.
fn split_record(bytes: &[u8], place: u64) -> io::Result<Option<(&[u8], &[u8])>> {
    let Some((size, rest)) = bytes.split_first_chunk() else { return Ok(None) };
    let Some((sum, rest)) = rest.split_first_chunk() else { return Ok(None) };
    let size = u32::from_le_bytes(*size);
    if size as usize > LARGEST {
        return Err(damaged(place, "its length is absurd"));
    }
    let Some((content, rest)) = rest.split_at_checked(size as usize) else { return Ok(None) };
    if u32::from_le_bytes(*sum) != checksum(size, content) {
        return Err(damaged(place, "its checksum is wrong"));
    }
    Ok(Some((content, rest)))
}

/// Over the length too: zeros are no record.
fn checksum(size: u32, content: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&size.to_le_bytes());
    hasher.update(content);
    hasher.finalize()
}

fn damaged(place: u64, how: &str) -> io::Error {
    let message = format!("the record at byte {place} is damaged, {how}; remove the file");
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// Makes a file with nothing but the run's name; returns it and where its records start.
fn make(path: &Path, run: &str) -> io::Result<(File, u64)> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut partial = name.to_owned();
    partial.push(format!(".{}", process::id()));
    let partial = path.with_file_name(partial);
    let mut start = MAGIC.to_vec();
    start.extend(framed(run.as_bytes()));
    let mut file =
        File::options().read(true).write(true).create(true).truncate(true).open(&partial)?;
    let made = file.write_all(&start).and_then(|()| fs::rename(&partial, path));
    if let Err(error) = made {
        // Nothing but that we could not clean up is lost if this fails, too.
        let _ = fs::remove_file(&partial);
        return Err(error);
    }
    Ok((file, start.len() as u64))
}

/// Opens a file; returns it, where its records start, and the name of its run.
fn open(path: &Path) -> io::Result<(File, u64, Vec<u8>)> {
    let other = || io::Error::new(io::ErrorKind::InvalidData, "it is no store of this library");
    let mut file = File::options().read(true).write(true).open(path)?;
    let mut start = [0; MAGIC.len() + FRAME];
    file.read_exact(&mut start).map_err(|_| other())?;
    let frame = start.strip_prefix(MAGIC).ok_or_else(other)?;
    let size = frame.first_chunk().copied().map_or(0, u32::from_le_bytes);
    if size as usize > LARGEST {
        return Err(other());
    }
    let mut record = frame.to_vec();
    (&file).take(size.into()).read_to_end(&mut record)?;
    let (run, _) = split_record(&record, MAGIC.len() as u64)?.ok_or_else(other)?;
    Ok((file, (MAGIC.len() + record.len()) as u64, run.to_vec()))
}

/// A lock that cannot be given back is given back by closing the file, at the latest.
fn unlock(file: &File) {
    if let Err(error) = file.unlock() {
        tracing::warn!(%error, "the lock of a file store cannot be given back");
    }
}

#[cfg(unix)]
fn same_file(one: &fs::Metadata, other: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// Elsewhere an open file cannot be replaced.
#[cfg(not(unix))]
fn same_file(_: &fs::Metadata, _: &fs::Metadata) -> bool {
    true
}

fn describe(path: &Path) -> String {
    format!("store in file {}", path.display())
}

/// What every file starts with.
const MAGIC: &[u8] = b"collectives file store 1\n";

/// Bytes before a record's content.
const FRAME: usize = 8;

/// Bytes of a record.
const LARGEST: usize = 64 << 20;

const PUT: u8 = 1;
const APPEND: u8 = 2;
const DELETE: u8 = 3;

/// Between looks at the file. A network's file system does not say when it changes.
const FIRST_PAUSE: Duration = Duration::from_micros(200);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);
