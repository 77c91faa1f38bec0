//! What NCCL prints, and the text of its last warning.
//!
//! `NCCL_DEBUG`, `NCCL_DEBUG_SUBSYS` and `NCCL_DEBUG_FILE` mean what they mean to NCCL, and lines
//! have its form, so that programs that read them go on working.

use std::{
    env,
    ffi::{CStr, c_char, c_void},
    fmt::Arguments,
    fs::File,
    io::{self, Write},
    process,
    sync::{
        LazyLock, Mutex, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
};

use collectives_nccl_abi::version_text;

use super::identity::Identity;
use crate::runtime;

/// How much is printed; each level has those before it.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[repr(u8)]
pub(crate) enum Level {
    None = 1,
    Version,
    Warn,
    Info,
    Abort,
    Trace,
}

impl Level {
    fn parse(text: &str) -> Self {
        match text.to_ascii_uppercase().as_str() {
            "VERSION" => Self::Version,
            "WARN" => Self::Warn,
            "INFO" => Self::Info,
            "ABORT" => Self::Abort,
            "TRACE" => Self::Trace,
            _ => Self::None,
        }
    }
}

/// A part of NCCL that prints at level INFO, by its bit in `NCCL_DEBUG_SUBSYS`.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(crate) enum Subsystem {
    Init = 0x1,
    Coll = 0x2,
    Env = 0x80,
}

/// The names of `NCCL_DEBUG_SUBSYS`, in the order of their bits.
const SUBSYSTEMS: [&str; 16] = [
    "INIT",
    "COLL",
    "P2P",
    "SHM",
    "NET",
    "GRAPH",
    "TUNING",
    "ENV",
    "ALLOC",
    "CALL",
    "PROXY",
    "NVLS",
    "BOOTSTRAP",
    "REG",
    "PROFILE",
    "RAS",
];

struct Sink {
    subsystems: u32,
    file: Option<File>,
}

/// The level, where the environment was read; 0 before.
static LEVEL: AtomicU8 = AtomicU8::new(0);
static SINK: Mutex<Sink> = Mutex::new(Sink { subsystems: 0, file: None });

/// Whether `level` is printed.
pub(crate) fn is_on(level: Level) -> bool {
    let now = LEVEL.load(Ordering::Relaxed);
    (if now == 0 { read_environment() } else { now }) >= level as u8
}

/// Whether `level` is all that is printed.
fn is_exactly(level: Level) -> bool {
    is_on(level) && LEVEL.load(Ordering::Relaxed) == level as u8
}

/// Lets the next line read the environment again.
pub(crate) fn reset() {
    LEVEL.store(0, Ordering::Relaxed);
}

#[cold]
fn read_environment() -> u8 {
    let var = |name| env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    let level = var("NCCL_DEBUG").map_or(Level::None, |text| Level::parse(&text));
    let mut sink = SINK.lock().unwrap_or_else(PoisonError::into_inner);
    sink.subsystems = subsystems(var("NCCL_DEBUG_SUBSYS").as_deref());
    // NCCL opens the file only where there is more to print than the version.
    sink.file = var("NCCL_DEBUG_FILE")
        .filter(|_| level > Level::Version)
        .and_then(|pattern| File::create(expand(&pattern, &HOST, process::id())).ok());
    LEVEL.store(level as u8, Ordering::Relaxed);
    level as u8
}

/// The bits of a list; a `^` in front means all but those.
fn subsystems(list: Option<&str>) -> u32 {
    let Some(list) = list else { return bit("INIT") | bit("ENV") | bit("BOOTSTRAP") };
    let (inverted, list) = match list.strip_prefix('^') {
        Some(list) => (true, list),
        None => (false, list),
    };
    let bits = list.split(',').map(bit).fold(0, |bits, bit| bits | bit);
    if inverted { !bits } else { bits }
}

fn bit(name: &str) -> u32 {
    if name.eq_ignore_ascii_case("ALL") {
        return u32::MAX;
    }
    SUBSYSTEMS.iter().position(|known| known.eq_ignore_ascii_case(name)).map_or(0, |at| 1 << at)
}

/// A file name with `%h` for the host, `%p` for the process, `%%` for a percent sign.
fn expand(pattern: &str, host: &str, process: u32) -> String {
    let mut name = String::new();
    let mut chars = pattern.chars();
    while let Some(char) = chars.next() {
        match (char, char == '%') {
            (_, true) => match chars.next() {
                Some('h') => name.push_str(host),
                Some('p') => name.push_str(&process.to_string()),
                Some('%') | None => name.push('%'),
                Some(other) => name.extend(['%', other]),
            },
            (char, false) => name.push(char),
        }
    }
    name
}

/// The name of this machine, up to its first dot.
static HOST: LazyLock<String> = LazyLock::new(|| {
    let mut name = [0_u8; 256];
    // SAFETY: the buffer is as long as is said, less the byte that ends it in any case.
    let failed = unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len() - 1) } != 0;
    let name = CStr::from_bytes_until_nul(&name).map(CStr::to_string_lossy).unwrap_or_default();
    match name.split('.').next() {
        Some(name) if !failed && !name.is_empty() => name.to_owned(),
        _ => "unknown".to_owned(),
    }
});

/// Prints a line at level INFO.
pub(crate) fn info(subsystem: Subsystem, text: Arguments<'_>) {
    if is_on(Level::Info) {
        let mut sink = SINK.lock().unwrap_or_else(PoisonError::into_inner);
        if sink.subsystems & subsystem as u32 != 0 {
            write(&mut sink, "INFO", text);
        }
    }
}

/// Keeps a warning for [`last_error`], and prints it where warnings are wanted.
pub(crate) fn warn(text: &str) {
    keep(text);
    if is_on(Level::Warn) {
        let mut sink = SINK.lock().unwrap_or_else(PoisonError::into_inner);
        write(&mut sink, "WARN", format_args!("{text}"));
    }
}

/// Prints the version, once, as the first rank that is made does.
pub(crate) fn version(rank: usize) {
    static SAID: AtomicU8 = AtomicU8::new(0);
    let wanted = is_exactly(Level::Version) || is_on(Level::Warn) && rank == 0;
    if wanted && SAID.swap(1, Ordering::Relaxed) == 0 {
        let identity = Identity::get();
        let mut sink = SINK.lock().unwrap_or_else(PoisonError::into_inner);
        let text = format!("{} version {}+mock\n", identity.name(), version_text(identity.code));
        put(&mut sink, &text);
    }
}

fn write(sink: &mut Sink, level: &str, text: Arguments<'_>) {
    let (host, process, thread) = (&*HOST, process::id(), thread_id());
    let device = runtime::current_device();
    let name = Identity::get().name();
    put(sink, &format!("{host}:{process}:{thread} [{device}] {name} {level} {text}\n"));
}

fn put(sink: &mut Sink, line: &str) {
    // A log that cannot be written has nobody to tell.
    let _ = match &mut sink.file {
        Some(file) => file.write_all(line.as_bytes()),
        None => io::stdout().write_all(line.as_bytes()).and_then(|()| io::stdout().flush()),
    };
}

fn thread_id() -> i64 {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: has no arguments and always succeeds.
        i64::from(unsafe { libc::gettid() })
    }
    #[cfg(not(target_os = "linux"))]
    {
        i64::from(process::id())
    }
}

/// A pointer as C prints it.
pub(crate) struct Pointer<T>(pub(crate) *const T);

impl<T> std::fmt::Display for Pointer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.is_null() {
            true => f.write_str("(nil)"),
            false => write!(f, "{:p}", self.0.cast::<c_void>()),
        }
    }
}

/// The last warning of the process: as in NCCL one buffer for all, never cleared.
static LAST: [AtomicU8; 1024] = [const { AtomicU8::new(0) }; 1024];

fn keep(text: &str) {
    let bytes = text.bytes().take(LAST.len() - 1).chain([0]);
    for (place, byte) in LAST.iter().zip(bytes) {
        place.store(byte, Ordering::Relaxed);
    }
}

/// The last warning, which a later one overwrites in place.
pub(crate) fn last_error() -> *const c_char {
    LAST.as_ptr().cast()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subsystems_are_a_list_or_all_but_a_list() {
        assert_eq!(subsystems(None), 0x1081);
        assert_eq!(subsystems(Some("INIT,coll")), 0x3);
        assert_eq!(subsystems(Some("^COLL")), !0x2);
        assert_eq!(subsystems(Some("ALL")), u32::MAX);
        assert_eq!(subsystems(Some("nothing")), 0);
    }

    #[test]
    fn files_are_named_by_host_and_process() {
        assert_eq!(expand("/t/%h.%p.%%.%x.log", "node", 7), "/t/node.7.%.%x.log");
        assert_eq!(expand("plain%", "node", 7), "plain%");
    }

    #[test]
    fn levels_have_names() {
        assert!(Level::parse("info") > Level::parse("WARN"));
        assert_eq!(Level::parse("loud"), Level::None);
    }

    #[test]
    fn a_long_warning_is_cut_and_ended() {
        keep(&"x".repeat(5000));
        // SAFETY: the buffer ends with a zero, and lives as long as the process.
        let text = unsafe { CStr::from_ptr(last_error()) };
        assert_eq!(text.to_bytes().len(), 1023);
    }
}
