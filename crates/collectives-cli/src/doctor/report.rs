//! The report: as text, and as JSON.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
};

use collectives::{BackendName, Capabilities, Devices, HiddenBy, Platform};
use collectives_nccl_abi::Vendor;
use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::Value;

use super::{
    checks,
    cuda::CudaReport,
    facts::Facts,
    finding::{Finding, Severity},
    probe::{DeviceReport, F8_FORMAT, LibraryReport, NcclReport, SelectedReport, Tried},
};
use crate::text::wrapped_to;

/// All there is to say. The names are what `--json` prints.
#[derive(Serialize)]
pub(crate) struct Report {
    platform: Platform,
    /// The backend that was decided on; `None` where none could be.
    backend: Option<BackendName>,
    /// Why.
    reason: String,
    library: Option<LibraryReport>,
    capabilities: Value,
    devices: Option<usize>,
    /// What keeps the backend from working.
    problem: Option<String>,
    /// The devices of the selected backend.
    device_list: Vec<DeviceReport>,
    /// NCCL, whether it is selected or not.
    #[serde(serialize_with = "without_lists")]
    nccl: NcclReport,
    cuda: Option<CudaReport>,
    /// The variables that are set and matter.
    environment: BTreeMap<String, String>,
    /// Whether the selected backend works: no finding is an error.
    works: bool,
    findings: Vec<Finding>,
    /// Every check by its id, with its worst finding; `ok` where it found nothing.
    #[serde(serialize_with = "statuses")]
    checks: BTreeMap<&'static str, Option<Severity>>,
    #[serde(skip)]
    capability_list: Vec<(String, String)>,
}

impl Report {
    pub(crate) fn new(facts: Facts, findings: Vec<Finding>) -> Self {
        let Facts { platform, decision, selected, nccl, cuda, settings, .. } = facts;
        let (backend, reason) = match decision {
            Ok(decision) => (Some(decision.backend), decision.reason),
            Err(reason) => (None, reason),
        };
        let SelectedReport {
            library,
            capabilities,
            capability_list,
            devices,
            device_list,
            problem,
        } = selected;
        let worst = |id: &str| {
            let own = findings.iter().filter(|finding| finding.id == id);
            own.map(|finding| finding.severity).min()
        };
        Self {
            platform,
            backend,
            reason,
            library,
            capabilities,
            devices,
            problem,
            device_list,
            nccl,
            cuda,
            environment: settings
                .of_environment()
                .filter(|(name, _)| matters(name))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            works: findings.iter().all(|finding| finding.severity != Severity::Error),
            checks: checks::all().map(|check| (check.id, worst(check.id))).collect(),
            findings,
            capability_list,
        }
    }

    /// The report for people, in lines of `width` columns.
    pub(crate) fn text(&self, width: usize) -> Result<String, fmt::Error> {
        let mut text = Text { out: String::new(), width };
        text.report(self)?;
        Ok(text.out)
    }
}

/// What people read of NCCL is also in its capabilities.
fn without_lists<S: Serializer>(nccl: &NcclReport, serializer: S) -> Result<S::Ok, S::Error> {
    let NcclReport { library, tried, problem, missing, known_issues, capabilities, mapped, .. } =
        nccl;
    let mut map = serializer.serialize_map(None)?;
    map.serialize_entry("library", library)?;
    map.serialize_entry("tried", tried)?;
    map.serialize_entry("problem", problem)?;
    map.serialize_entry("missing", missing)?;
    map.serialize_entry("known_issues", known_issues)?;
    map.serialize_entry("capabilities", capabilities)?;
    map.serialize_entry("mapped", mapped)?;
    map.end()
}

fn statuses<S: Serializer>(
    checks: &BTreeMap<&'static str, Option<Severity>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let status = |severity: &Option<Severity>| {
        severity.map_or_else(|| "ok".to_owned(), |severity| severity.to_string())
    };
    serializer.collect_map(checks.iter().map(|(id, severity)| (id, status(severity))))
}

/// Whether a variable changes what backends do, or where they are found.
fn matters(name: &str) -> bool {
    const PREFIXES: [&str; 4] = ["COLLECTIVES_", "NCCL_", "RCCL_", "TORCH_NCCL_"];
    PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        || name.ends_with("_VISIBLE_DEVICES")
        || [Vendor::NCCL, Vendor::RCCL].iter().any(|vendor| {
            vendor.path_variables.contains(&name) || vendor.root_variables.contains(&name)
        })
        || matches!(
            name,
            "LD_LIBRARY_PATH"
                | "LD_PRELOAD"
                | "VIRTUAL_ENV"
                | "CONDA_PREFIX"
                | "NVIDIA_DRIVER_CAPABILITIES"
        )
}

/// Text that grows.
struct Text {
    out: String,
    width: usize,
}

impl Text {
    fn report(&mut self, report: &Report) -> fmt::Result {
        writeln!(self.out, "collectives {}\n", env!("CARGO_PKG_VERSION"))?;
        self.selection(report)?;
        self.findings(&report.findings)?;

        self.heading("Devices")?;
        if report.device_list.is_empty() {
            writeln!(self.out, "  none that the backend can use")?;
        }
        for group in report.device_list.chunk_by(same_model) {
            self.devices(group)?;
        }

        self.heading("Hardware")?;
        let Platform { nvidia, amd, findings, .. } = &report.platform;
        for (vendor, devices) in [("NVIDIA", nvidia), ("AMD", amd)] {
            self.hardware(vendor, devices)?;
        }
        if let Some(CudaReport { version: Some((major, minor)), library, .. }) = &report.cuda {
            let path =
                library.as_ref().map_or_else(String::new, |path| format!(", {}", path.display()));
            self.item("driver", &format!("serves CUDA {major}.{minor}{path}"))?;
        }
        for finding in findings {
            self.item("", finding)?;
        }

        self.nccl(&report.nccl)?;
        self.capabilities(report)?;

        self.heading("Environment")?;
        if report.environment.is_empty() {
            writeln!(self.out, "  no variable that matters is set")?;
        }
        for (name, value) in &report.environment {
            writeln!(self.out, "  {name}={value}")?;
        }
        writeln!(self.out, "\n{}", summary(&report.findings))
    }

    fn selection(&mut self, report: &Report) -> fmt::Result {
        let name = match (&report.library, report.backend) {
            (Some(library), _) => library_text(library),
            (None, Some(backend)) => backend.to_string(),
            (None, None) => "none".into(),
        };
        self.field("Backend", &name)?;
        self.field("Why", &report.reason)?;
        if report.backend == Some(BackendName::Mock) {
            self.field("Note", "the mock runs on the CPU; it is for tests, not for production")?;
        }
        match (&report.problem, report.works) {
            (Some(problem), _) => self.field("Problem", problem),
            (None, false) => self.field("State", "opens, but cannot work: see the errors below"),
            (None, true) => self.field("State", "works"),
        }
    }

    fn findings(&mut self, findings: &[Finding]) -> fmt::Result {
        self.heading("Findings")?;
        if findings.is_empty() {
            writeln!(self.out, "  none; {} checks", checks::all().count())?;
        }
        for (index, finding) in findings.iter().enumerate() {
            let Finding { id, severity, found, cause, remedy, links } = finding;
            let space = if index == 0 { "" } else { "\n" };
            writeln!(self.out, "{space}  {severity}: {id}")?;
            self.detail("what", found)?;
            self.detail("why", cause)?;
            self.detail("do", remedy)?;
            for (index, link) in links.iter().enumerate() {
                self.detail(if index == 0 { "see" } else { "" }, link)?;
            }
        }
        Ok(())
    }

    /// One line for devices that differ in nothing but their numbers.
    fn devices(&mut self, group: &[DeviceReport]) -> fmt::Result {
        let [first, rest @ ..] = group else { return Ok(()) };
        let DeviceReport { ordinal, name, pci_bus_id, compute_capability, total_memory, .. } =
            first;
        let (numbers, name) = match rest.last() {
            Some(last) => (format!("{ordinal}–{}", last.ordinal), model(first)),
            None => (ordinal.to_string(), name.as_str()),
        };
        let memory = *total_memory as f64 / f64::from(1 << 30);
        write!(self.out, "  {numbers:<7} {name}, {memory:.0} GiB")?;
        if !rest.is_empty() {
            self.out.write_str(" each")?;
        }
        if let Some((major, minor)) = compute_capability {
            write!(self.out, ", compute capability {major}.{minor}")?;
        }
        if let Some(pci) = pci_bus_id {
            write!(self.out, ", {pci}")?;
        }
        writeln!(self.out)
    }

    fn hardware(&mut self, vendor: &str, devices: &Devices) -> fmt::Result {
        let Devices { found, visible, hidden_by, .. } = devices;
        let mut text = match found.len() {
            0 => "no device".to_owned(),
            1 => "1 device".to_owned(),
            count => format!("{count} devices"),
        };
        if !found.is_empty() {
            text += &format!(", {visible} visible");
        }
        for HiddenBy { variable, value, devices, .. } in hidden_by {
            text += &format!("; {variable}={value} hides {devices}");
        }
        if *visible > 0 && !devices.usable() {
            text += "; this user may not open them";
        }
        self.item(vendor, &text)
    }

    fn nccl(&mut self, nccl: &NcclReport) -> fmt::Result {
        let NcclReport { library, tried, problem, missing, .. } = nccl;
        self.heading("NCCL")?;
        match library {
            Some(library) => self.item("library", &library_text(library))?,
            None => self.item("library", "none found")?,
        }
        for (index, Tried { path, source, refused, .. }) in tried.iter().enumerate() {
            let name = if index == 0 { "tried" } else { "" };
            self.item(name, &format!("{} ({source}): {refused}", path.display()))?;
        }
        if let Some(problem) = problem {
            self.item("advice", problem)?;
        }
        // One line for each release that brought functions.
        for (index, group) in missing.chunk_by(|a, b| a.since == b.since).enumerate() {
            let names: Vec<_> = group.iter().map(|missing| missing.function.as_str()).collect();
            let text = format!("{} (needs {})", names.join(", "), group[0].since);
            self.item(if index == 0 { "lacks" } else { "" }, &text)?;
        }
        Ok(())
    }

    /// A column for each library: the selected one, and NCCL.
    fn capabilities(&mut self, report: &Report) -> fmt::Result {
        let mut columns: Vec<(String, &[(String, String)])> = Vec::new();
        let title = |library: &LibraryReport| format!("{} {}", library.backend, library.version);
        if let Some(library) = &report.library {
            columns.push((title(library), &report.capability_list));
        }
        if let Some(library) = &report.nccl.library
            && report.backend != Some(BackendName::Nccl)
        {
            columns.push((title(library), &report.nccl.capability_list));
        }
        if columns.is_empty() {
            return Ok(());
        }
        let mut title = format!("{:<22}", "Capabilities");
        for (name, _) in &columns {
            write!(title, "{name:<16}")?;
        }
        self.heading(title.trim_end())?;
        let names = Capabilities::FULL.entries().map(|(name, _)| name);
        for name in names.into_iter().chain([F8_FORMAT]) {
            let mut line = format!("  {name:<20}");
            for (_, entries) in &columns {
                let support = entries.iter().find(|(entry, _)| entry == name);
                write!(line, "{:<16}", support.map_or("", |(_, support)| support.as_str()))?;
            }
            writeln!(self.out, "{}", line.trim_end())?;
        }
        Ok(())
    }

    fn heading(&mut self, title: &str) -> fmt::Result {
        writeln!(self.out, "\n{title}")
    }

    fn field(&mut self, name: &str, text: &str) -> fmt::Result {
        wrapped_to(self.width, &mut self.out, &format!("{name:<10}"), text)
    }

    fn detail(&mut self, name: &str, text: &str) -> fmt::Result {
        wrapped_to(self.width, &mut self.out, &format!("    {name:<6}"), text)
    }

    fn item(&mut self, name: &str, text: &str) -> fmt::Result {
        wrapped_to(self.width, &mut self.out, &format!("  {name:<8}"), text)
    }
}

/// `74 checks: 1 error, 2 warnings; see Findings above`.
fn summary(findings: &[Finding]) -> String {
    let count = |severity: Severity| {
        let count = findings.iter().filter(|finding| finding.severity == severity).count();
        let plural = if count == 1 { "" } else { "s" };
        (count > 0).then(|| format!("{count} {severity}{plural}"))
    };
    let counts = [Severity::Error, Severity::Warning, Severity::Note].into_iter().filter_map(count);
    let counts: Vec<String> = counts.collect();
    let checks = checks::all().count();
    if counts.is_empty() {
        return format!("{checks} checks found nothing");
    }
    format!("{checks} checks: {}; see Findings above", counts.join(", "))
}

fn same_model(a: &DeviceReport, b: &DeviceReport) -> bool {
    // Devices with an address are told apart by it, so each has its line.
    let plain = |device: &DeviceReport| device.pci_bus_id.is_none();
    plain(a) && plain(b) && model(a) == model(b) && a.total_memory == b.total_memory
}

/// The name, but for a number at its end.
fn model(device: &DeviceReport) -> &str {
    device.name.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end()
}

/// `NCCL 2.28.9, /lib/libnccl.so.2 (dynamic loader)`.
fn library_text(library: &LibraryReport) -> String {
    let LibraryReport { backend, path, version, found_by } = library;
    match path {
        Some(path) => format!("{backend} {version}, {} ({found_by})", path.display()),
        None => format!("{backend} {version}, {found_by}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_that_matter_are_told_from_others() {
        for name in ["COLLECTIVES_BACKEND", "NCCL_DEBUG", "HIP_VISIBLE_DEVICES", "ROCM_PATH"] {
            assert!(matters(name), "{name}");
        }
        for name in ["HOME", "PATH", "MY_NCCL_DEBUG", "OMPI_COMM_WORLD_RANK"] {
            assert!(!matters(name), "{name}");
        }
    }
}
