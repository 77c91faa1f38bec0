//! Everything that the checks judge, gathered once: a check is a function of this and of nothing
//! else.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use collectives::{BackendName, Decision, Platform};
use collectives_nccl_abi::{
    Environment, FileInfo, Source, Vendor, inspect,
    search::{Candidate, candidates},
};

use super::{
    cuda::CudaReport,
    probe::{LibraryReport, NcclReport, Probes, SelectedReport},
    settings::Settings,
    system::{Space, System},
};

/// What is known of this machine and this process.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) platform: Platform,
    /// The backend that was decided on; an error's text where none could be.
    pub(crate) decision: Result<Decision, String>,
    pub(crate) selected: SelectedReport,
    pub(crate) nccl: NcclReport,
    /// `None` where there is no NVIDIA device, or it could not be asked.
    pub(crate) cuda: Option<CudaReport>,
    /// The questions that a child did not survive: what was asked, and how it ended.
    pub(crate) deaths: Vec<(&'static str, String)>,
    pub(crate) settings: Settings,
    pub(crate) copies: Vec<Copy>,
    pub(crate) wheels: Vec<Wheel>,
    /// The release of NVIDIA's kernel module.
    pub(crate) kernel_driver: Option<String>,
    pub(crate) gpus: Vec<PciGpu>,
    /// NVIDIA's device nodes, by name.
    pub(crate) nodes: Vec<String>,
    /// What tells that this is a container.
    pub(crate) container: Option<&'static str>,
    /// Whether this is a virtual machine.
    pub(crate) virtual_machine: bool,
    pub(crate) shm: Shm,
    pub(crate) limits: Limits,
    /// `None` where the kernel's list can't be read.
    pub(crate) interfaces: Option<Vec<Interface>>,
    /// RDMA devices, by name.
    pub(crate) infiniband: Vec<String>,
    /// Folders that the dynamic loader searches, with the variable that names each if one does.
    pub(crate) loader_folders: Vec<(PathBuf, Option<&'static str>)>,
    /// The plugins that NCCL would find, by file name.
    pub(crate) plugins: BTreeMap<String, PathBuf>,
}

impl Facts {
    /// Gathers what files and variables show, and adds what was asked of libraries.
    pub(crate) fn gather(system: &System, platform: Platform, probes: Probes) -> Self {
        let Probes { selected, nccl, cuda } = probes;
        let deaths = [
            ("the selected backend", selected.death()),
            ("NCCL", nccl.death()),
            ("the CUDA driver", cuda.as_ref().and_then(|cuda| cuda.death())),
        ];
        let deaths = deaths.into_iter().filter_map(|(what, how)| Some((what, how?.to_owned())));
        let loader_folders = loader_folders(system);
        let mut report = selected.answer().cloned().unwrap_or_default();
        if let Some(how) = selected.death() {
            report.problem = Some(format!("the process that opened the backend ended: {how}"));
        }
        Self {
            decision: platform.choose(None).map_err(|error| error.to_string()),
            platform,
            deaths: deaths.collect(),
            selected: report,
            nccl: nccl.answer().cloned().unwrap_or_default(),
            cuda: cuda.as_ref().and_then(|cuda| cuda.answer()).cloned(),
            settings: Settings::read(system),
            copies: copies(system, &loader_folders),
            wheels: wheels(system),
            kernel_driver: kernel_driver(system),
            gpus: gpus(system),
            nodes: nodes(system),
            container: container(system),
            virtual_machine: system
                .read("/proc/cpuinfo")
                .is_some_and(|text| text.split_whitespace().any(|flag| flag == "hypervisor")),
            shm: Shm {
                exists: system.exists(SHM),
                writable: system.writable(SHM),
                space: system.space(SHM),
            },
            limits: Limits::read(system),
            interfaces: interfaces(system),
            infiniband: system.names("/sys/class/infiniband").unwrap_or_default(),
            plugins: plugins(system, &loader_folders),
            loader_folders,
        }
    }

    /// The backend that was decided on.
    pub(crate) fn backend(&self) -> Option<BackendName> {
        self.decision.as_ref().ok().map(|decision| decision.backend)
    }

    /// Whether the selected backend drives GPUs, so that what GPUs need is asked of this machine.
    pub(crate) fn needs_gpus(&self) -> bool {
        self.backend() != Some(BackendName::Mock)
    }

    /// Whether NCCL is selected, so that its trouble is the selected backend's.
    pub(crate) fn needs_nccl(&self) -> bool {
        self.backend() == Some(BackendName::Nccl)
    }

    /// Whether the mock was asked for, and is no fallback.
    pub(crate) fn mock_is_meant(&self) -> bool {
        let decision = self.decision.as_ref();
        decision.is_ok_and(|made| made.backend == BackendName::Mock && !made.fallback)
    }

    /// How many ranks this machine can give a device of its own.
    pub(crate) fn visible(&self) -> usize {
        match self.backend() {
            Some(BackendName::Rccl) => self.platform.amd.visible,
            _ => self.platform.nvidia.visible,
        }
    }

    /// The NCCL that a program on this machine opens.
    pub(crate) fn library(&self) -> Option<&LibraryReport> {
        self.nccl.library.as_ref()
    }

    /// The release of that NCCL, as its code: 22809.
    pub(crate) fn version(&self) -> Option<u32> {
        self.library().map(|library| library.version.code())
    }

    /// What the file of that NCCL says of itself.
    pub(crate) fn library_file(&self) -> Option<&FileInfo> {
        let path = self.library()?.path.as_ref()?;
        let copy = self.copies.iter().find(|copy| copy.path == *path)?;
        copy.file.as_ref().ok()
    }
}

/// A file on this machine that is NCCL by its name.
#[derive(Clone, Debug)]
pub(crate) struct Copy {
    /// With links resolved.
    pub(crate) path: PathBuf,
    /// Who would find it.
    pub(crate) found_by: Vec<FoundBy>,
    /// What it says of itself, or why it can't be used.
    pub(crate) file: Result<FileInfo, String>,
}

impl Copy {
    /// Its release's code.
    pub(crate) fn version(&self) -> Option<u32> {
        u32::try_from(self.file.as_ref().ok()?.version?).ok()
    }

    /// `/usr/lib/libnccl.so.2.18.3, 2.18.3 for CUDA 12.1`.
    pub(crate) fn show(&self) -> String {
        let path = self.path.display();
        let toolkit = self.file.as_ref().ok().and_then(|file| file.toolkit);
        match (self.version(), toolkit) {
            (Some(version), Some((major, minor))) => {
                format!("{path}, {} for CUDA {major}.{minor}", version_text(version))
            }
            (Some(version), None) => format!("{path}, {}", version_text(version)),
            (None, _) => format!("{path}, of unknown release"),
        }
    }
}

/// How a copy of the library can be found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum FoundBy {
    /// The dynamic loader, in this folder; through the variable if one names the folder.
    Loader(Option<&'static str>),
    /// A Python environment.
    Python,
    /// The vendor's toolkit.
    Toolkit,
    /// This variable.
    Variable(&'static str),
}

/// A Python package that brings NCCL.
#[derive(Clone, Debug)]
pub(crate) struct Wheel {
    pub(crate) package: String,
    pub(crate) version: String,
    pub(crate) site_packages: PathBuf,
    /// The library that its list of files names, and the size that it gives.
    pub(crate) library: PathBuf,
    pub(crate) recorded: Option<u64>,
    /// The size that the file has; `None` where it is gone.
    pub(crate) size: Option<u64>,
}

/// A GPU on the PCI bus, whether a driver serves it or not.
#[derive(Clone, Debug)]
pub(crate) struct PciGpu {
    pub(crate) address: String,
    pub(crate) vendor: &'static str,
    pub(crate) driver: Option<String>,
    /// What the IOMMU does with its group: `identity` passes addresses through.
    pub(crate) iommu: Option<String>,
    /// The bridges above it that send peer traffic up to the CPU.
    pub(crate) acs: Vec<String>,
}

/// `/dev/shm`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shm {
    pub(crate) exists: bool,
    pub(crate) writable: bool,
    pub(crate) space: Option<Space>,
}

/// Limits of this process and of its container.
#[derive(Clone, Debug, Default)]
pub(crate) struct Limits {
    pub(crate) locked_memory: Option<Limit>,
    pub(crate) open_files: Option<Limit>,
    pub(crate) stack: Option<Limit>,
    pub(crate) tasks: Option<Quota>,
    pub(crate) memory: Option<Quota>,
    /// Whether this process may place memory on NUMA nodes.
    pub(crate) may_place_memory: bool,
}

/// A soft limit of `/proc/self/limits`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Limit {
    At(u64),
    Unlimited,
}

/// What a control group allows, and what of it is used.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Quota {
    pub(crate) file: PathBuf,
    pub(crate) max: u64,
    pub(crate) used: u64,
}

/// A network interface.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Interface {
    pub(crate) name: String,
    pub(crate) running: bool,
    /// Whether a device is behind it, and no software alone.
    pub(crate) physical: bool,
}

/// A release's code as text.
pub(crate) fn version_text(code: u32) -> String {
    collectives::Version::from_code(code).to_string()
}

const SHM: &str = "/dev/shm";

/// Where the dynamic loader looks for a bare name: the variable's folders, those of its
/// configuration, and its own.
fn loader_folders(system: &System) -> Vec<(PathBuf, Option<&'static str>)> {
    let named = system.folders(LIBRARY_PATH).into_iter();
    let mut folders: Vec<_> = named.map(|folder| (folder, Some(LIBRARY_PATH))).collect();
    let mut files = vec!["/etc/ld.so.conf".to_owned()];
    let more = system.names("/etc/ld.so.conf.d").unwrap_or_default();
    files.extend(more.iter().map(|name| format!("/etc/ld.so.conf.d/{name}")));
    for text in files.iter().filter_map(|file| system.read(file)) {
        let lines = text.lines().map(str::trim).filter(|line| line.starts_with('/'));
        folders.extend(lines.map(|line| (system.under(line), None)));
    }
    folders.extend(SYSTEM_FOLDERS.iter().map(|folder| (system.under(folder), None)));
    folders
}

/// Every file that is NCCL by its name, where programs look for it.
fn copies(system: &System, loader_folders: &[(PathBuf, Option<&'static str>)]) -> Vec<Copy> {
    let mut found: Vec<(PathBuf, FoundBy)> = Vec::new();
    for &variable in Vendor::NCCL.path_variables {
        if let Some(path) = system.variable(variable) {
            found.push((path.into(), FoundBy::Variable(variable)));
        }
    }
    for (folder, variable) in loader_folders {
        for name in [Vendor::NCCL.soname, Vendor::NCCL.dev_name] {
            found.push((folder.join(name), FoundBy::Loader(*variable)));
        }
    }
    for Candidate { source, target, .. } in installed(system) {
        let by = if source == Source::PythonPackages { FoundBy::Python } else { FoundBy::Toolkit };
        found.push((target, by));
    }
    let mut copies: Vec<Copy> = Vec::new();
    for (path, by) in found {
        let Ok(real) = path.canonicalize() else { continue };
        match copies.iter_mut().find(|copy| copy.path == real) {
            Some(copy) if copy.found_by.contains(&by) => {}
            Some(copy) => copy.found_by.push(by),
            None => {
                let file = inspect(&real).map_err(|refusal| refusal.to_string());
                copies.push(Copy { path: real, found_by: vec![by], file });
            }
        }
    }
    copies
}

/// The candidates of a search in which no variable demands a library.
fn installed(system: &System) -> Vec<Candidate> {
    let variables = system.variables().clone();
    let environment = Environment::closed(system.root(), move |name| {
        let demands = Vendor::NCCL.path_variables.contains(&name);
        variables.get(name).filter(|_| !demands).map(Into::into)
    });
    candidates(Vendor::NCCL, &environment)
}

/// The Python packages that bring NCCL, in every environment that the search looks into.
fn wheels(system: &System) -> Vec<Wheel> {
    let mut folders: Vec<PathBuf> = Vec::new();
    for Candidate { source, target, .. } in installed(system) {
        let folder = target.ancestors().find(|folder| {
            folder
                .file_name()
                .is_some_and(|name| name == "site-packages" || name == "dist-packages")
        });
        if source == Source::PythonPackages
            && let Some(folder) = folder
            && !folders.iter().any(|known| known == folder)
        {
            folders.push(folder.to_owned());
        }
    }
    folders.iter().flat_map(|folder| wheels_in(folder)).collect()
}

fn wheels_in(site_packages: &Path) -> Vec<Wheel> {
    let entries = fs::read_dir(site_packages).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut wheels: Vec<Wheel> = names
        .filter_map(|name| {
            let (package, version) = name.strip_suffix(".dist-info")?.split_once('-')?;
            if !package.starts_with("nvidia_nccl") {
                return None;
            }
            let record = fs::read_to_string(site_packages.join(&name).join("RECORD")).ok()?;
            // path,sha256=…,size
            let line = record.lines().find(|line| line.contains(Vendor::NCCL.dev_name))?;
            let mut fields = line.split(',');
            let library = site_packages.join(fields.next()?);
            Some(Wheel {
                package: package.replace('_', "-"),
                version: version.to_owned(),
                site_packages: site_packages.to_owned(),
                recorded: fields.nth(1).and_then(|size| size.trim().parse().ok()),
                size: fs::metadata(&library).ok().map(|metadata| metadata.len()),
                library,
            })
        })
        .collect();
    wheels.sort_by(|a, b| a.package.cmp(&b.package));
    wheels
}

/// `NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  …` is 580.95.05.
fn kernel_driver(system: &System) -> Option<String> {
    let text = system.read("/proc/driver/nvidia/version")?;
    let line = text.lines().find(|line| line.starts_with("NVRM version"))?;
    let is_release = |word: &&str| {
        let numbers = word.split('.').count();
        numbers >= 2 && word.split('.').all(|part| part.parse::<u32>().is_ok())
    };
    line.split_whitespace().find(is_release).map(str::to_owned)
}

/// NVIDIA's and AMD's GPUs on the PCI bus.
fn gpus(system: &System) -> Vec<PciGpu> {
    let addresses = system.names(PCI).unwrap_or_default();
    addresses
        .into_iter()
        .filter_map(|address| {
            let field = |name: &str| {
                system.read(format!("{PCI}/{address}/{name}")).map(|text| text.trim().to_owned())
            };
            let vendor = match field("vendor")?.as_str() {
                "0x10de" => "NVIDIA",
                "0x1002" => "AMD",
                _ => return None,
            };
            // Display controllers, and AMD's accelerators without a display.
            let class = field("class")?;
            if !class.starts_with("0x03") && !class.starts_with("0x12") {
                return None;
            }
            Some(PciGpu {
                vendor,
                driver: system.link_name(&format!("{PCI}/{address}/driver")),
                iommu: field("iommu_group/type"),
                acs: redirecting_bridges(system, &address),
                address,
            })
        })
        .collect()
}

/// The bridges above a device whose Access Control Services send peer traffic up to the CPU, as far
/// as this user may read their configuration.
fn redirecting_bridges(system: &System, address: &str) -> Vec<String> {
    let Ok(real) = system.under(format!("{PCI}/{address}")).canonicalize() else {
        return Vec::new();
    };
    let parents = real.ancestors().skip(1).filter_map(|folder| folder.file_name()?.to_str());
    let bridges = parents.filter(|name| name.contains(':') && name.contains('.'));
    let redirects = |bridge: &&str| {
        let config = system.read_bytes(format!("{PCI}/{bridge}/config"));
        config.is_some_and(|config| acs_redirects(&config))
    };
    bridges.filter(redirects).map(str::to_owned).collect()
}

/// Whether the configuration space of a bridge has Access Control Services that validate sources, or
/// redirect requests or completions: the extended capability 0x000d, whose control register is at offset 6 (PCI Express
/// base specification, 7.7.11). Only root can read that far.
pub(crate) fn acs_redirects(config: &[u8]) -> bool {
    let word = |at: usize| Some(u16::from_le_bytes([*config.get(at)?, *config.get(at + 1)?]));
    let mut at = 0x100;
    // A chain that never ends is cut where no more capabilities fit.
    for _ in 0..1024 {
        let (Some(id), Some(next)) = (word(at), word(at + 2)) else { return false };
        if id == 0x000d {
            const SOURCE_VALIDATION: u16 = 1;
            const REDIRECT: u16 = (1 << 2) | (1 << 3);
            return word(at + 6)
                .is_some_and(|control| control & (SOURCE_VALIDATION | REDIRECT) != 0);
        }
        at = usize::from(next >> 4);
        if at < 0x100 {
            return false;
        }
    }
    false
}

fn nodes(system: &System) -> Vec<String> {
    let mut names = system.names("/dev").unwrap_or_default();
    names.retain(|name| name.starts_with("nvidia"));
    names
}

fn container(system: &System) -> Option<&'static str> {
    let files = ["/.dockerenv", "/run/.containerenv"];
    let variables = ["KUBERNETES_SERVICE_HOST", "SINGULARITY_NAME", "APPTAINER_NAME", "container"];
    files
        .into_iter()
        .find(|file| system.exists(file))
        .or_else(|| variables.into_iter().find(|name| system.variable(name).is_some()))
}

impl Limits {
    fn read(system: &System) -> Self {
        let text = system.read("/proc/self/limits").unwrap_or_default();
        let limit = |name: &str| {
            let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
            match rest.split_whitespace().next()? {
                "unlimited" => Some(Limit::Unlimited),
                number => number.parse().ok().map(Limit::At),
            }
        };
        let group = group(system);
        let quota =
            |controller: &str, max: &str, used: &str| quota(system, &group, controller, max, used);
        Self {
            locked_memory: limit("Max locked memory"),
            open_files: limit("Max open files"),
            stack: limit("Max stack size"),
            tasks: quota("pids", "pids.max", "pids.current"),
            memory: quota("memory", "memory.max", "memory.current")
                .or_else(|| quota("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"))
                .map(|quota| without_cache(system, quota)),
            may_place_memory: may_place_memory(system),
        }
    }
}

/// The control groups of this process, by controller; the unified one has an empty name.
fn group(system: &System) -> BTreeMap<String, String> {
    let text = system.read("/proc/self/cgroup").unwrap_or_default();
    let mut groups = BTreeMap::new();
    for line in text.lines() {
        // number:controllers:path
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        for controller in controllers.split(',') {
            groups.insert(controller.to_owned(), path.to_owned());
        }
    }
    groups
}

/// The quota of this process's group or, where a container sees only its own, of the root.
fn quota(
    system: &System,
    group: &BTreeMap<String, String>,
    controller: &str,
    max: &str,
    used: &str,
) -> Option<Quota> {
    let mut folders = Vec::new();
    for (name, mount) in [("", String::new()), (controller, format!("/{controller}"))] {
        if let Some(path) = group.get(name) {
            folders.push(format!("/sys/fs/cgroup{mount}{}", path.trim_end_matches('/')));
            folders.push(format!("/sys/fs/cgroup{mount}"));
        }
    }
    let number = |path: String| system.read(path)?.trim().parse::<u64>().ok();
    folders.into_iter().find_map(|folder| {
        let file = format!("{folder}/{max}");
        // The older layout writes no limit as a number near the largest.
        let limit = number(file.clone()).filter(|&limit| limit < 1 << 60)?;
        let used = number(format!("{folder}/{used}"))?;
        Some(Quota { file: file.into(), max: limit, used })
    })
}

/// A quota of memory without the files that the kernel keeps for later and gives up when asked: after
/// a model was read, they fill whatever there is.
fn without_cache(system: &System, quota: Quota) -> Quota {
    let text = system.read(quota.file.with_file_name("memory.stat")).unwrap_or_default();
    let cached = text.lines().find_map(|line| line.strip_prefix("inactive_file "));
    let cached = cached.and_then(|bytes| bytes.trim().parse().ok()).unwrap_or(0);
    Quota { used: quota.used.saturating_sub(cached), ..quota }
}

/// Whether the process has the capability `CAP_SYS_NICE`, without which Docker's filter refuses
/// calls that place memory.
fn may_place_memory(system: &System) -> bool {
    const SYS_NICE: u64 = 1 << 23;
    let text = system.read("/proc/self/status").unwrap_or_default();
    let effective = text.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    bits.is_some_and(|bits| bits & SYS_NICE != 0)
}

fn interfaces(system: &System) -> Option<Vec<Interface>> {
    let names = system.names(NET)?;
    let interfaces = names.into_iter().filter_map(|name| {
        let state = system.read(format!("{NET}/{name}/operstate"))?;
        Some(Interface {
            // Loopback and tunnels have no state of their own.
            running: matches!(state.trim(), "up" | "unknown"),
            physical: system.exists(&format!("{NET}/{name}/device")),
            name,
        })
    });
    Some(interfaces.collect())
}

/// NCCL's plugins that the dynamic loader would find.
fn plugins(
    system: &System,
    loader_folders: &[(PathBuf, Option<&'static str>)],
) -> BTreeMap<String, PathBuf> {
    let mut plugins = BTreeMap::new();
    for (folder, _) in loader_folders {
        // The folders of the variable lie outside of the root.
        let Ok(entries) = fs::read_dir(folder) else { continue };
        for entry in entries.flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let named = system.variable("NCCL_NET_PLUGIN").unwrap_or_default();
            let wanted = named.split(',').any(|named| named == name);
            if (name.starts_with("libnccl-") && name.contains(".so")) || wanted {
                plugins.entry(name).or_insert_with(|| entry.path());
            }
        }
    }
    plugins
}

const LIBRARY_PATH: &str = "LD_LIBRARY_PATH";
const NET: &str = "/sys/class/net";
const PCI: &str = "/sys/bus/pci/devices";

/// Where the dynamic loader looks without being told.
const SYSTEM_FOLDERS: [&str; 9] = [
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib/aarch64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/local/lib",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
];
