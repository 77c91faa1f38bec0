//! What only a library or a driver can tell, asked in a process of its own.
//!
//! A broken library does not answer with an error: it crashes in an initialiser, waits for ever for
//! a driver, or prints to standard output in the middle of our JSON. And a library once loaded stays
//! for the life of a process. So each question is put by a child, which is this program again, with
//! a deadline; what becomes of the child is itself a finding.

use std::{
    env,
    io::{self, Read, Write},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use collectives::{
    Backend, Capabilities, Device, DeviceInfo, Explanation, LibraryInfo, Selection, Version,
    backend_named, nccl::Nccl,
};
use collectives_nccl_abi::{Attempt, Flavour, Library, Refusal, Vendor, loaded_copies, quirks};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::cuda::{self, CudaReport};
use crate::Failure;

/// A question that a child answers.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub(crate) enum Subject {
    /// The CUDA driver.
    Cuda,
    /// NCCL, whether it is selected or not.
    Nccl,
    /// The selected backend.
    Selected,
}

/// Answers a question on standard output, as JSON: what the child does.
pub(crate) fn answer(subject: Subject) -> Result<(), Failure> {
    let mut out = take_stdout()?;
    let answer = match subject {
        Subject::Cuda => serde_json::to_string(&cuda::look()),
        Subject::Nccl => serde_json::to_string(&NcclReport::new()),
        Subject::Selected => serde_json::to_string(&SelectedReport::new()),
    }?;
    Ok(out.write_all(answer.as_bytes())?)
}

/// Keeps standard output for the answer, and sends what libraries print there to standard error.
#[cfg(unix)]
fn take_stdout() -> io::Result<std::fs::File> {
    let out = rustix::io::dup(rustix::stdio::stdout())?;
    rustix::stdio::dup2_stdout(rustix::stdio::stderr())?;
    Ok(out.into())
}

/// No vendor has a library for this platform that could print.
#[cfg(not(unix))]
fn take_stdout() -> io::Result<io::Stdout> {
    Ok(io::stdout())
}

/// What became of a question.
#[derive(Clone, Debug)]
pub(crate) enum Outcome<T> {
    Answered(T),
    /// The child ended without an answer: how, and the last that it printed.
    Died(String),
}

impl<T> Outcome<T> {
    pub(crate) fn answer(&self) -> Option<&T> {
        match self {
            Self::Answered(answer) => Some(answer),
            Self::Died(_) => None,
        }
    }

    pub(crate) fn death(&self) -> Option<&str> {
        match self {
            Self::Answered(_) => None,
            Self::Died(how) => Some(how),
        }
    }
}

/// Puts a question to a child.
pub(crate) fn ask<T: DeserializeOwned>(subject: Subject) -> Outcome<T> {
    let name = match subject {
        Subject::Cuda => "cuda",
        Subject::Nccl => "nccl",
        Subject::Selected => "selected",
    };
    let child = env::current_exe().and_then(|program| {
        Command::new(program)
            .args(["doctor", "--probe", name])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
    });
    match child {
        Ok(child) => listen(child),
        Err(error) => Outcome::Died(format!("it could not be started: {error}")),
    }
}

fn listen<T: DeserializeOwned>(mut child: Child) -> Outcome<T> {
    let (out, err) = (read(child.stdout.take()), read(child.stderr.take()));
    let ended = wait(&mut child);
    let said = rest(&err);
    if env::var_os("RUST_LOG").is_some() {
        // Logs that were asked for; nothing can be done where they can't be written.
        let _best_effort = io::stderr().write_all(said.as_bytes());
    }
    // The answer comes last, so what happens after it is the library's own end.
    if let Ok(answer) = serde_json::from_str(&rest(&out)) {
        return Outcome::Answered(answer);
    }
    let how = match ended {
        Ok(Some(status)) => describe(status),
        Ok(None) => format!("no answer within {} s", DEADLINE.as_secs()),
        Err(error) => format!("it could not be waited for: {error}"),
    };
    let last: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    match &last[last.len().saturating_sub(3)..] {
        [] => Outcome::Died(how),
        lines => Outcome::Died(format!("{how}; it said: {}", lines.join(" / "))),
    }
}

/// What comes out of a pipe, as it comes: a child that nobody listens to would wait.
fn read(pipe: Option<impl Read + Send + 'static>) -> Receiver<Vec<u8>> {
    let (send, chunks) = mpsc::channel();
    thread::spawn(move || {
        let Some(mut pipe) = pipe else { return };
        let mut buffer = [0; 8192];
        loop {
            match pipe.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // What came before an error is all there is.
                Ok(0) | Err(_) => return,
                Ok(count) => {
                    if send.send(buffer[..count].to_vec()).is_err() {
                        return;
                    }
                }
            }
        }
    });
    chunks
}

/// All that came out of a pipe whose child has ended. What a library started may outlive the child
/// and keep the pipe open, so its end is not waited for long.
fn rest(chunks: &Receiver<Vec<u8>>) -> String {
    let until = Instant::now() + LAST_WORDS;
    let mut bytes = Vec::new();
    while let Ok(chunk) = chunks.recv_timeout(until.saturating_duration_since(Instant::now())) {
        bytes.extend(chunk);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The child's end; `None` if it had to be killed at the deadline.
fn wait(child: &mut Child) -> io::Result<Option<ExitStatus>> {
    let start = Instant::now();
    while start.elapsed() < DEADLINE {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        thread::sleep(POLL);
    }
    child.kill()?;
    child.wait()?;
    Ok(None)
}

#[cfg(unix)]
fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match status.signal() {
        Some(signal) => format!("killed by signal {signal}{}", signal_name(signal)),
        None => status.to_string(),
    }
}

#[cfg(not(unix))]
fn describe(status: ExitStatus) -> String {
    status.to_string()
}

/// The signals by which broken libraries end a process.
#[cfg(unix)]
fn signal_name(signal: i32) -> &'static str {
    match signal {
        4 => " (illegal instruction: built for another CPU)",
        6 => " (abort)",
        7 => " (bus error: a file that is shorter than its headers say)",
        9 => " (killed: often for want of memory)",
        11 => " (segmentation fault)",
        _ => "",
    }
}

/// Far more than a driver takes to start on a machine with many GPUs.
const DEADLINE: Duration = Duration::from_secs(60);
/// How often the child is asked whether it has ended.
const POLL: Duration = Duration::from_millis(5);
/// How long what a child wrote may take to arrive once it has ended.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The selected backend, opened.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct SelectedReport {
    pub(crate) library: Option<LibraryReport>,
    /// As `--json` prints it.
    pub(crate) capabilities: Value,
    /// For people.
    pub(crate) capability_list: Vec<(String, String)>,
    pub(crate) devices: Option<usize>,
    pub(crate) device_list: Vec<DeviceReport>,
    pub(crate) problem: Option<String>,
}

impl SelectedReport {
    fn new() -> Self {
        let selected = Selection::detect(None).explain();
        let device_list = devices(&selected).iter().map(DeviceReport::new).collect();
        let Explanation { library, capabilities, devices, problem, .. } = selected;
        let (capabilities, capability_list) = capability_report(capabilities);
        Self {
            library: library.as_ref().map(LibraryReport::new),
            capabilities,
            capability_list,
            devices,
            device_list,
            problem,
        }
    }
}

/// The devices of the backend that was selected, as far as it works.
fn devices(selected: &Explanation) -> Vec<DeviceInfo> {
    let open = || {
        let backend = backend_named(&selected.backend?.to_string()).ok()?;
        let device = |ordinal| Some(backend.device(ordinal).ok()?.info().clone());
        Some((0..selected.devices?).filter_map(device).collect())
    };
    open().unwrap_or_default()
}

fn capability_report(capabilities: Option<Capabilities>) -> (Value, Vec<(String, String)>) {
    let list = capabilities.map(|capabilities| {
        let entries = capabilities.entries().into_iter();
        let entries = entries.map(|(name, support)| (name.to_owned(), support.to_string()));
        entries.chain([(F8_FORMAT.to_owned(), capabilities.f8_format.to_string())]).collect()
    });
    let value = capabilities.and_then(|capabilities| serde_json::to_value(capabilities).ok());
    (value.unwrap_or(Value::Null), list.unwrap_or_default())
}

/// The capability that is no question of having it.
pub(crate) const F8_FORMAT: &str = "f8_format";

/// [`LibraryInfo`], as it comes back from the child.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct LibraryReport {
    pub(crate) backend: String,
    pub(crate) path: Option<PathBuf>,
    pub(crate) version: Version,
    pub(crate) found_by: String,
}

impl LibraryReport {
    fn new(info: &LibraryInfo) -> Self {
        let LibraryInfo { backend, path, version, found_by } = info.clone();
        Self { backend: backend.to_owned(), path, version, found_by }
    }
}

/// [`DeviceInfo`], as it comes back from the child.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct DeviceReport {
    pub(crate) backend: String,
    pub(crate) ordinal: usize,
    pub(crate) name: String,
    pub(crate) pci_bus_id: Option<String>,
    pub(crate) compute_capability: Option<(u32, u32)>,
    pub(crate) total_memory: usize,
}

impl DeviceReport {
    fn new(info: &DeviceInfo) -> Self {
        Self {
            backend: info.backend.to_owned(),
            ordinal: info.ordinal,
            name: info.name.clone(),
            pci_bus_id: info.pci_bus_id.clone(),
            compute_capability: info.compute_capability,
            total_memory: info.total_memory,
        }
    }
}

/// What the search for NCCL found.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct NcclReport {
    pub(crate) library: Option<LibraryReport>,
    /// What was tried before, or in vain.
    pub(crate) tried: Vec<Tried>,
    /// What can be done about it where no library was found.
    pub(crate) problem: Option<String>,
    /// Functions that newer releases have, and the first that does.
    pub(crate) missing: Vec<Missing>,
    pub(crate) known_issues: Vec<Issue>,
    /// As `--json` prints it.
    pub(crate) capabilities: Value,
    /// For people.
    #[serde(default)]
    pub(crate) capability_list: Vec<(String, String)>,
    /// The copies of NCCL in a process that opened it, by device and inode.
    pub(crate) mapped: Vec<PathBuf>,
}

/// A library that the search refused.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Tried {
    pub(crate) path: PathBuf,
    pub(crate) source: String,
    pub(crate) refused: String,
    /// Whether there is a file behind it at all.
    pub(crate) present: bool,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Missing {
    pub(crate) function: String,
    pub(crate) since: Version,
}

/// What is known against the version.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Issue {
    pub(crate) condition: String,
    pub(crate) effect: String,
    pub(crate) remedy: String,
    pub(crate) link: String,
    /// Whether our own calls avoid it.
    pub(crate) guarded: bool,
}

impl NcclReport {
    fn new() -> Self {
        let library = match Library::load(Vendor::NCCL) {
            Ok(library) => library,
            Err(error) => {
                let tried = error.attempts().iter().map(Tried::new).collect();
                let problem = Some(error.vendor().advice.into());
                return Self { tried, problem, ..Self::default() };
            }
        };
        let missing = library.table().missing_optional().into_iter().filter_map(|symbol| {
            let since = u32::try_from(symbol.since(Flavour::Nccl)?).ok()?;
            Some(Missing { function: symbol.name().into(), since: Version::from_code(since) })
        });
        let mut missing: Vec<_> = missing.collect();
        missing.sort_by_key(|missing| missing.since);
        let found = Self {
            tried: library.skipped().iter().map(Tried::new).collect(),
            missing,
            known_issues: quirks::known_bad(library.flavour(), library.version())
                .map(Issue::new)
                .collect(),
            mapped: loaded_copies(Vendor::NCCL),
            ..Self::default()
        };
        match Nccl::load() {
            Ok(nccl) => {
                let (capabilities, capability_list) = capability_report(Some(*nccl.capabilities()));
                let library = Some(LibraryReport::new(nccl.info()));
                Self { library, capabilities, capability_list, ..found }
            }
            Err(error) => Self { problem: Some(error.to_string()), ..found },
        }
    }
}

impl Tried {
    pub(crate) fn new(attempt: &Attempt) -> Self {
        let refusal = attempt.refusal();
        let absent = matches!(refusal, Refusal::Missing | Refusal::NotLoaded)
            // The loader says so of a name that it can't find; of a file it says what is wrong.
            || matches!(refusal, Refusal::Loader(text) if text.starts_with("cannot open shared"));
        Self {
            path: attempt.target().to_owned(),
            source: attempt.source().to_string(),
            refused: refusal.to_string(),
            present: !absent,
        }
    }
}

impl Issue {
    pub(crate) fn new(issue: &quirks::KnownIssue) -> Self {
        let quirks::KnownIssue { condition, effect, remedy, link, guarded, .. } = *issue;
        Self {
            condition: condition.into(),
            effect: effect.into(),
            remedy: remedy.into(),
            link: link.into(),
            guarded,
        }
    }
}

/// The answers to all questions.
#[derive(Clone, Debug)]
pub(crate) struct Probes {
    pub(crate) selected: Outcome<SelectedReport>,
    pub(crate) nccl: Outcome<NcclReport>,
    /// Asked only where there is an NVIDIA device.
    pub(crate) cuda: Option<Outcome<CudaReport>>,
}

impl Probes {
    /// Asks all at once: on a machine with many GPUs the driver takes seconds to start.
    pub(crate) fn ask(with_cuda: bool) -> Self {
        thread::scope(|scope| {
            let nccl = scope.spawn(|| ask(Subject::Nccl));
            let cuda = with_cuda.then(|| scope.spawn(|| ask(Subject::Cuda)));
            let selected = ask(Subject::Selected);
            let panicked = || "the thread that waited for it panicked".to_owned();
            Self {
                selected,
                nccl: nccl.join().unwrap_or_else(|_| Outcome::Died(panicked())),
                cuda: cuda.map(|cuda| cuda.join().unwrap_or_else(|_| Outcome::Died(panicked()))),
            }
        })
    }
}
