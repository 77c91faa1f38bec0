//! `collectives doctor`: what this machine has, which backend follows from it, and why.
//!
//! The text is for people; `--json` is the same for programs.

use std::{
    collections::BTreeMap,
    env,
    fmt::{self, Write as _},
    io::{self, Write as _},
    path::PathBuf,
};

use collectives::{
    Backend, BackendName, Capabilities, Device, DeviceInfo, Devices, Explanation, LibraryInfo,
    Selection, Version, backend_named, nccl::Nccl,
};
use collectives_nccl_abi::{Attempt, Flavour, Library, Vendor, quirks};
use serde::Serialize;

use crate::{Failure, text::wrapped};

/// Say what this machine has, which backend follows from it, and why
#[derive(clap::Args, Debug)]
#[command(after_help = "Exits with 1 where the selected backend cannot work.")]
pub(crate) struct Args {
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

/// Looks at everything, prints it, and fails where the selected backend cannot work.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let report = Report::new();
    let mut out = io::stdout();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        write!(out, "{report}")?;
    }
    if report.selected.problem.is_some() { Err(Failure::Check) } else { Ok(()) }
}

/// All there is to say. The names are what `--json` prints.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    selected: Explanation,
    /// The devices of the selected backend.
    device_list: Vec<DeviceInfo>,
    /// NCCL, whether it is selected or not.
    nccl: NcclReport,
    /// The variables that are set and matter.
    environment: BTreeMap<String, String>,
}

/// What the search for NCCL found.
#[derive(Serialize)]
struct NcclReport {
    library: Option<LibraryInfo>,
    /// What was tried before, or in vain.
    tried: Vec<Tried>,
    /// What can be done about it where no library was found.
    problem: Option<String>,
    /// Functions that newer releases have, and the first that does.
    missing: Vec<Missing>,
    known_issues: Vec<Issue>,
    capabilities: Option<Capabilities>,
}

#[derive(Serialize)]
struct Tried {
    path: PathBuf,
    source: String,
    refused: String,
}

#[derive(Serialize)]
struct Missing {
    function: &'static str,
    since: Version,
}

#[derive(Serialize)]
struct Issue {
    condition: &'static str,
    effect: &'static str,
    remedy: &'static str,
    link: &'static str,
}

impl Report {
    fn new() -> Self {
        let selected = Selection::detect(None).explain();
        let environment = env::vars_os()
            .map(|(name, value)| (name.to_string_lossy().into(), value.to_string_lossy().into()))
            .filter(|(name, _): &(String, String)| matters(name))
            .collect();
        Self { device_list: devices(&selected), selected, nccl: NcclReport::new(), environment }
    }
}

impl NcclReport {
    fn new() -> Self {
        let none = Self {
            library: None,
            tried: Vec::new(),
            problem: None,
            missing: Vec::new(),
            known_issues: Vec::new(),
            capabilities: None,
        };
        let library = match Library::load(Vendor::NCCL) {
            Ok(library) => library,
            Err(error) => {
                let tried = error.attempts().iter().map(Tried::new).collect();
                return Self { tried, problem: Some(error.vendor().advice.into()), ..none };
            }
        };
        let missing = library.table().missing_optional().into_iter().filter_map(|symbol| {
            let since = u32::try_from(symbol.since(Flavour::Nccl)?).ok()?;
            Some(Missing { function: symbol.name(), since: Version::from_code(since) })
        });
        let known_issues = quirks::known_bad(library.flavour(), library.version()).map(|issue| {
            let quirks::KnownIssue { condition, effect, remedy, link, .. } = *issue;
            Issue { condition, effect, remedy, link }
        });
        let mut missing: Vec<_> = missing.collect();
        missing.sort_by_key(|missing| missing.since);
        let found = Self {
            tried: library.skipped().iter().map(Tried::new).collect(),
            missing,
            known_issues: known_issues.collect(),
            ..none
        };
        match Nccl::load() {
            Ok(nccl) => Self {
                library: Some(nccl.info().clone()),
                capabilities: Some(*nccl.capabilities()),
                ..found
            },
            Err(error) => Self { problem: Some(error.to_string()), ..found },
        }
    }
}

impl Tried {
    fn new(attempt: &Attempt) -> Self {
        Self {
            path: attempt.target().to_owned(),
            source: attempt.source().to_string(),
            refused: attempt.refusal().to_string(),
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

/// Whether a variable changes what backends do, or where they are found.
fn matters(name: &str) -> bool {
    const PREFIXES: [&str; 3] = ["COLLECTIVES_", "NCCL_", "RCCL_"];
    PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        || name.ends_with("_VISIBLE_DEVICES")
        || Vendor::NCCL.path_variables.contains(&name)
        || Vendor::NCCL.root_variables.contains(&name)
        || matches!(name, "LD_LIBRARY_PATH" | "LD_PRELOAD" | "VIRTUAL_ENV" | "CONDA_PREFIX")
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { selected, device_list, nccl, environment } = self;
        writeln!(f, "collectives {}\n", env!("CARGO_PKG_VERSION"))?;
        selection(f, selected)?;

        heading(f, "Devices")?;
        if device_list.is_empty() {
            writeln!(f, "  none that the backend can use")?;
        }
        for group in device_list.chunk_by(same_model) {
            device_line(f, group)?;
        }

        heading(f, "Hardware")?;
        for (vendor, devices) in
            [("NVIDIA", &selected.platform.nvidia), ("AMD", &selected.platform.amd)]
        {
            hardware(f, vendor, devices)?;
        }
        for finding in &selected.platform.findings {
            item(f, "", finding)?;
        }

        nccl_section(f, nccl)?;
        capabilities_section(f, selected, nccl)?;

        heading(f, "Environment")?;
        if environment.is_empty() {
            writeln!(f, "  no variable that matters is set")?;
        }
        for (name, value) in environment {
            writeln!(f, "  {name}={value}")?;
        }
        Ok(())
    }
}

fn selection(f: &mut fmt::Formatter<'_>, selected: &Explanation) -> fmt::Result {
    let Explanation { backend, reason, library, problem, .. } = selected;
    let name = match (library, backend) {
        (Some(library), _) => library_text(library),
        (None, Some(backend)) => backend.to_string(),
        (None, None) => "none".into(),
    };
    field(f, "Backend", &name)?;
    field(f, "Why", reason)?;
    if *backend == Some(BackendName::Mock) {
        field(f, "Note", "the mock runs on the CPU, for tests; it is no replacement for a GPU")?;
    }
    match problem {
        Some(problem) => field(f, "Problem", problem),
        None => field(f, "State", "works"),
    }
}

fn same_model(a: &DeviceInfo, b: &DeviceInfo) -> bool {
    // Devices with an address are told apart by it, so each has its line.
    let plain = |device: &DeviceInfo| device.pci_bus_id.is_none();
    plain(a) && plain(b) && model(a) == model(b) && a.total_memory == b.total_memory
}

/// The name, but for a number at its end.
fn model(device: &DeviceInfo) -> &str {
    device.name.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end()
}

/// One line for devices that differ in nothing but their numbers.
fn device_line(f: &mut fmt::Formatter<'_>, group: &[DeviceInfo]) -> fmt::Result {
    let [first, rest @ ..] = group else { return Ok(()) };
    let DeviceInfo { ordinal, name, pci_bus_id, compute_capability, total_memory, .. } = first;
    let (numbers, name) = match rest.last() {
        Some(last) => (format!("{ordinal}–{}", last.ordinal), model(first)),
        None => (ordinal.to_string(), name.as_str()),
    };
    write!(f, "  {numbers:<7} {name}, {:.0} GiB", *total_memory as f64 / f64::from(1 << 30))?;
    if !rest.is_empty() {
        f.write_str(" each")?;
    }
    if let Some((major, minor)) = compute_capability {
        write!(f, ", compute capability {major}.{minor}")?;
    }
    if let Some(pci) = pci_bus_id {
        write!(f, ", {pci}")?;
    }
    writeln!(f)
}

fn hardware(f: &mut fmt::Formatter<'_>, vendor: &str, devices: &Devices) -> fmt::Result {
    let Devices { found, visible, hidden_by, .. } = devices;
    let mut text = match found.len() {
        0 => "no device".to_owned(),
        1 => "1 device".to_owned(),
        count => format!("{count} devices"),
    };
    if !found.is_empty() {
        text += &format!(", {visible} visible");
    }
    for hidden in hidden_by {
        text += &format!("; {}={} hides {}", hidden.variable, hidden.value, hidden.devices);
    }
    if *visible > 0 && !devices.usable() {
        text += "; this user may not open them";
    }
    item(f, vendor, &text)
}

fn nccl_section(f: &mut fmt::Formatter<'_>, nccl: &NcclReport) -> fmt::Result {
    let NcclReport { library, tried, problem, missing, known_issues, capabilities: _ } = nccl;
    heading(f, "NCCL")?;
    match library {
        Some(library) => item(f, "library", &library_text(library))?,
        None => item(f, "library", "none found")?,
    }
    for (index, Tried { path, source, refused }) in tried.iter().enumerate() {
        let name = if index == 0 { "tried" } else { "" };
        item(f, name, &format!("{} ({source}): {refused}", path.display()))?;
    }
    if let Some(problem) = problem {
        item(f, "advice", problem)?;
    }
    // One line for each release that brought functions.
    for (index, group) in missing.chunk_by(|a, b| a.since == b.since).enumerate() {
        let names: Vec<_> = group.iter().map(|missing| missing.function).collect();
        let text = format!("{} (needs {})", names.join(", "), group[0].since);
        item(f, if index == 0 { "lacks" } else { "" }, &text)?;
    }
    for (index, Issue { condition, effect, remedy, link }) in known_issues.iter().enumerate() {
        let mut text = format!("{condition}: {effect}");
        if !remedy.is_empty() {
            text += &format!("; {remedy}");
        }
        item(f, if index == 0 { "issues" } else { "" }, &format!("{text} ({link})"))?;
    }
    if library.is_some() && known_issues.is_empty() {
        item(f, "issues", "none known with this version")?;
    }
    Ok(())
}

/// A column for each library: the selected one, and NCCL.
fn capabilities_section(
    f: &mut fmt::Formatter<'_>,
    selected: &Explanation,
    nccl: &NcclReport,
) -> fmt::Result {
    let of = |library: &Option<LibraryInfo>, capabilities: &Option<Capabilities>| {
        let library = library.as_ref()?;
        Some((format!("{} {}", library.backend, library.version), (*capabilities)?))
    };
    let mut columns: Vec<_> = of(&selected.library, &selected.capabilities).into_iter().collect();
    if selected.backend != Some(BackendName::Nccl) {
        columns.extend(of(&nccl.library, &nccl.capabilities));
    }
    if columns.is_empty() {
        return Ok(());
    }
    let mut title = format!("{:<22}", "Capabilities");
    for (name, _) in &columns {
        write!(title, "{name:<16}")?;
    }
    heading(f, title.trim_end())?;
    for (row, (name, _)) in Capabilities::FULL.entries().iter().enumerate() {
        let mut line = format!("  {name:<20}");
        for (_, capabilities) in &columns {
            write!(line, "{:<16}", capabilities.entries()[row].1.to_string())?;
        }
        writeln!(f, "{}", line.trim_end())?;
    }
    Ok(())
}

/// `NCCL 2.28.9, /lib/libnccl.so.2 (dynamic loader)`.
fn library_text(library: &LibraryInfo) -> String {
    let LibraryInfo { backend, path, version, found_by } = library;
    match path {
        Some(path) => format!("{backend} {version}, {} ({found_by})", path.display()),
        None => format!("{backend} {version}, {found_by}"),
    }
}

fn heading(f: &mut fmt::Formatter<'_>, title: &str) -> fmt::Result {
    writeln!(f, "\n{title}")
}

fn field(f: &mut fmt::Formatter<'_>, name: &str, text: &str) -> fmt::Result {
    wrapped(f, &format!("{name:<10}"), text)
}

fn item(f: &mut fmt::Formatter<'_>, name: &str, text: &str) -> fmt::Result {
    wrapped(f, &format!("  {name:<8}"), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_that_matter_are_told_from_others() {
        for name in ["COLLECTIVES_BACKEND", "NCCL_DEBUG", "HIP_VISIBLE_DEVICES", "CUDA_HOME"] {
            assert!(matters(name), "{name}");
        }
        for name in ["HOME", "PATH", "MY_NCCL_DEBUG", "OMPI_COMM_WORLD_RANK"] {
            assert!(!matters(name), "{name}");
        }
    }
}
