//! Which GPUs this process could use, told from files alone.
//!
//! Nothing here calls a driver: `cuInit` or any `hip*` function in a process that forks later
//! leaves its children with a runtime that counts devices and then fails, so looking must not load
//! one. What the files say, in three steps per vendor:
//!
//! 1. *Found*: the kernel driver shows the device, and this process was given its node. A machine's
//!    `/sys` and `/proc` are visible in containers that were given none of its GPUs, so for AMD
//!    they are no proof alone. For NVIDIA they are: CUDA makes the nodes when it is first used.
//! 2. *Visible*: the vendor's variables leave it. All take a list, and no two of them agree on what
//!    a duplicate, a bad entry or a shortened UUID means.
//! 3. *Usable*: this user may open its nodes.
//!
//! [`Platform::choose`] turns that into one backend, or into an error that says what to set.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt, fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use collectives_core::{Error, ErrorKind, Result};
use serde::Serialize;

/// The GPUs of this machine as far as this process is concerned, each with the files that show it.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Platform {
    /// Devices that CUDA drives.
    pub nvidia: Devices,
    /// Devices that ROCm drives.
    pub amd: Devices,
    /// What `COLLECTIVES_BACKEND` is set to. Empty counts as not set; `auto` decides nothing.
    pub variable: Option<String>,
    /// The device runtimes that are in this process already: CUDA's driver and runtime, HIP's runtime.
    pub loaded: Vec<PathBuf>,
    /// The variables that choose among devices and are set, to more than nothing.
    pub lists: Vec<&'static str>,
    /// What was seen, in sentences for people: devices, and what keeps one from being used.
    pub findings: Vec<String>,
}

impl Platform {
    /// Looks at this machine and at the environment of this process.
    ///
    /// ```
    /// let platform = collectives::Platform::detect();
    /// println!("{} NVIDIA, {} AMD", platform.nvidia.visible, platform.amd.visible);
    /// ```
    pub fn detect() -> Self {
        Self::detect_in(&Roots::system())
    }

    /// Looks at `roots` instead: for tests, and to look into a container from outside.
    pub fn detect_in(roots: &Roots) -> Self {
        let mut findings = Vec::new();
        let nvidia = nvidia::devices(roots, &mut findings);
        let amd = amd::devices(roots, &mut findings);
        let set = |name: &str| roots.variable(name).filter(|value| !value.is_empty());
        let lists = [amd::LISTS, nvidia::LISTS].concat();
        Self {
            nvidia,
            amd,
            variable: set(VARIABLE),
            loaded: loaded(roots),
            lists: lists.into_iter().filter(|list| set(list).is_some()).collect(),
            findings,
        }
    }

    /// Picks the backend: `requested`, else `COLLECTIVES_BACKEND`, else the vendor whose devices
    /// this process sees, else the mock.
    ///
    /// A visible device never leads to the mock, even if its library turns out to be unusable: a
    /// job that should run on GPUs must not quietly run without them.
    ///
    /// # Errors
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) where `COLLECTIVES_BACKEND` names no
    /// backend; [`InvalidUsage`](ErrorKind::InvalidUsage) where both vendors' devices can be used,
    /// naming the variable that decides.
    pub fn choose(&self, requested: Option<BackendName>) -> Result<Decision> {
        if let Some(backend) = requested {
            return Ok(Decision::new(backend, format!("{backend} was asked for by argument")));
        }
        if let Some(value) = self.variable.as_ref().filter(|value| *value != "auto") {
            let backend = value.parse().map_err(|error: Error| {
                Error::new(error.kind(), format!("{VARIABLE}: {}", error.message()))
            })?;
            return Ok(Decision::new(backend, format!("{VARIABLE}={value}")));
        }
        match (self.nvidia.visible > 0, self.amd.visible > 0) {
            (true, false) => Ok(Decision::new(BackendName::Nccl, self.nvidia.summary("NVIDIA"))),
            (false, true) => Ok(Decision::new(BackendName::Rccl, self.amd.summary("AMD"))),
            (true, true) => self.choose_vendor(),
            (false, false) => Ok(self.fall_back()),
        }
    }

    /// Both vendors are visible. In order:
    ///
    /// 1. A device that this user may not open is no rival to one that they may: a workstation's
    ///    integrated GPU is often of the other vendor.
    /// 2. A process that has one vendor's runtime already works on that vendor's devices.
    /// 3. A variable of one vendor alone says which devices are meant. `CUDA_VISIBLE_DEVICES` is
    ///    CUDA's, though HIP heeds it too.
    fn choose_vendor(&self) -> Result<Decision> {
        let [nvidia, amd] = [self.nvidia.summary("NVIDIA"), self.amd.summary("AMD")];
        let on_nvidia =
            |why: &str| Decision::new(BackendName::Nccl, format!("{nvidia}; {amd}{why}"));
        let on_amd = |why: &str| Decision::new(BackendName::Rccl, format!("{amd}; {nvidia}{why}"));
        match (self.nvidia.usable(), self.amd.usable()) {
            (true, false) => return Ok(on_nvidia("")),
            (false, true) => return Ok(on_amd("")),
            (true, true) | (false, false) => {}
        }
        let signs = [
            (
                self.runtime(nvidia::RUNTIMES),
                self.runtime(amd::RUNTIMES),
                "in this process already",
            ),
            (
                self.list(nvidia::LISTS),
                self.list(amd::LISTS),
                "set, and none of the other vendor's",
            ),
        ];
        for (of_nvidia, of_amd, what) in signs {
            match (of_nvidia, of_amd) {
                (Some(sign), None) => return Ok(on_nvidia(&format!("; {sign} is {what}"))),
                (None, Some(sign)) => return Ok(on_amd(&format!("; {sign} is {what}"))),
                (None, None) | (Some(_), Some(_)) => {}
            }
        }
        Err(Error::new(
            ErrorKind::InvalidUsage,
            format!("two kinds of GPU, and no way to guess which is meant: {nvidia}; {amd}"),
        )
        .with_hint(format!("set {VARIABLE}=nccl or {VARIABLE}=rccl")))
    }

    /// A runtime in this process whose file starts with one of these names.
    fn runtime(&self, names: &[&str]) -> Option<String> {
        let named = |path: &&PathBuf| {
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            names.iter().any(|name| file.starts_with(name))
        };
        self.loaded.iter().find(named).map(|path| path.display().to_string())
    }

    /// One of these variables that is set.
    fn list(&self, names: &[&str]) -> Option<String> {
        self.lists.iter().find(|list| names.contains(list)).map(|list| (*list).to_owned())
    }

    fn fall_back(&self) -> Decision {
        let hidden: Vec<_> = [("NVIDIA", &self.nvidia), ("AMD", &self.amd)]
            .into_iter()
            .filter(|(_, devices)| !devices.found.is_empty())
            .map(|(vendor, devices)| devices.summary(vendor))
            .collect();
        let reason = if !hidden.is_empty() {
            format!("no visible GPU: {}", hidden.join("; "))
        } else if self.findings.is_empty() {
            "no NVIDIA or AMD GPU on this machine".into()
        } else {
            format!("no usable NVIDIA or AMD GPU: {}", self.findings.join("; "))
        };
        Decision { backend: BackendName::Mock, reason, fallback: true }
    }
}

/// One vendor's devices.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Devices {
    /// Devices that this process was given, in the order of their numbers.
    pub found: Vec<FoundDevice>,
    /// How many of them the vendor's variables leave. Under WSL, where files do not tell how many
    /// devices there are, the number that the variable names.
    pub visible: usize,
    /// The variables that hide devices, in the order in which the vendor's runtime reads them.
    pub hidden_by: Vec<HiddenBy>,
}

impl Devices {
    /// How many devices the vendor's variables hide.
    pub fn hidden(&self) -> usize {
        self.hidden_by.iter().map(|hidden| hidden.devices).sum()
    }

    /// Whether a device is visible, and this user may open at least one.
    pub fn usable(&self) -> bool {
        self.visible > 0 && self.found.iter().any(|device| device.accessible)
    }

    /// `2 NVIDIA devices (NVIDIA H200)`, and what hides or locks them.
    fn summary(&self, vendor: &str) -> String {
        let mut names: BTreeMap<&str, usize> = BTreeMap::new();
        for name in self.found.iter().filter_map(|device| device.name.as_deref()) {
            *names.entry(name).or_default() += 1;
        }
        let names: Vec<_> = names.into_keys().collect();
        let count = self.found.len();
        let mut text = format!("{count} {vendor} device{}", if count == 1 { "" } else { "s" });
        if !names.is_empty() {
            text += &format!(" ({})", names.join(", "));
        }
        for HiddenBy { variable, value, devices } in &self.hidden_by {
            text += &format!(", {devices} hidden by {variable}='{value}'");
        }
        if self.visible > 0 && !self.usable() {
            text += ", which this user may not open";
        }
        text
    }
}

/// A device that this process was given.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct FoundDevice {
    /// The model (`NVIDIA H200`) or the architecture (`gfx942`), where a file tells it.
    pub name: Option<String>,
    /// The name that the vendor's variables accept for it, where a file tells it.
    pub uuid: Option<String>,
    /// Whether this user may open its nodes.
    pub accessible: bool,
    /// The files that show it.
    pub evidence: Vec<PathBuf>,
}

/// A variable, and how many devices it hides.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct HiddenBy {
    /// Its name.
    pub variable: &'static str,
    /// Its value.
    pub value: String,
    /// How many devices it takes away.
    pub devices: usize,
}

/// A backend, as `COLLECTIVES_BACKEND` and the command line name it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize)]
#[non_exhaustive]
#[serde(rename_all = "lowercase")]
pub enum BackendName {
    /// The CPU backend.
    Mock,
    /// NCCL on CUDA.
    Nccl,
    /// RCCL on ROCm.
    Rccl,
}

impl fmt::Display for BackendName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mock => "mock",
            Self::Nccl => "nccl",
            Self::Rccl => "rccl",
        })
    }
}

impl FromStr for BackendName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "mock" => Ok(Self::Mock),
            "nccl" => Ok(Self::Nccl),
            "rccl" => Ok(Self::Rccl),
            other => Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("no backend is called '{other}', want nccl, rccl or mock"),
            )),
        }
    }
}

/// The backend to use, and why.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Decision {
    /// The backend.
    pub backend: BackendName,
    /// What decided it, for people.
    pub reason: String,
    /// Whether it is the mock because there was nothing else, which is worth a warning.
    pub fallback: bool,
}

impl Decision {
    fn new(backend: BackendName, reason: String) -> Self {
        Self { backend, reason, fallback: false }
    }
}

/// Where to look: a file system, an environment, and what may be opened.
pub struct Roots {
    root: PathBuf,
    variables: Box<Variables>,
    accessible: Box<dyn Fn(&Path) -> bool>,
}

/// A process's environment.
type Variables = dyn Fn(&str) -> Option<OsString>;

impl Roots {
    /// This machine, as this process sees it.
    pub fn system() -> Self {
        Self {
            root: "/".into(),
            variables: Box::new(|name| std::env::var_os(name)),
            accessible: Box::new(may_open),
        }
    }

    /// The machine whose `/dev`, `/etc`, `/proc`, `/sys` and `/usr` lie in the directory `root`,
    /// with an empty environment.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), variables: Box::new(|_| None), accessible: Box::new(may_open) }
    }

    /// Asks `variables` for the value of an environment variable.
    #[must_use]
    pub fn with_variables(
        mut self,
        variables: impl Fn(&str) -> Option<OsString> + 'static,
    ) -> Self {
        self.variables = Box::new(variables);
        self
    }

    /// Asks `accessible` whether this user may read and write a file, given by its path below the
    /// root, as in `/dev/kfd`.
    #[must_use]
    pub fn with_access(mut self, accessible: impl Fn(&Path) -> bool + 'static) -> Self {
        self.accessible = Box::new(move |path| accessible(path));
        self
    }

    /// A value that is not UTF-8 names no device and no backend, so it may lose its odd bytes.
    fn variable(&self, name: &str) -> Option<String> {
        (self.variables)(name).map(|value| value.to_string_lossy().into_owned())
    }

    fn under(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.under(path).exists()
    }

    fn read(&self, path: impl AsRef<Path>) -> Option<String> {
        fs::read_to_string(self.under(path)).ok()
    }

    fn may_open(&self, path: impl AsRef<Path>) -> bool {
        (self.accessible)(path.as_ref())
    }

    /// The names in a directory; none where it can't be read.
    fn names(&self, directory: &str) -> Vec<String> {
        let entries = fs::read_dir(self.under(directory)).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    /// The numbers N for which `directory` holds `prefix`N, in order.
    fn numbers(&self, directory: &str, prefix: &str) -> Vec<u32> {
        let mut numbers: Vec<u32> = self
            .names(directory)
            .iter()
            .filter_map(|name| decimal(name.strip_prefix(prefix)?))
            .collect();
        numbers.sort_unstable();
        numbers
    }
}

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Roots").field("root", &self.root).finish_non_exhaustive()
    }
}

/// `access(2)`, because to open a device is to use it.
#[cfg(unix)]
fn may_open(path: &Path) -> bool {
    use rustix::fs::{Access, access};
    access(path, Access::READ_OK | Access::WRITE_OK).is_ok()
}

#[cfg(not(unix))]
fn may_open(path: &Path) -> bool {
    path.exists()
}

/// Digits and nothing else: `str::parse` would take a sign.
fn decimal(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// The device runtimes that are mapped into this process, each file once.
fn loaded(roots: &Roots) -> Vec<PathBuf> {
    let maps = roots.read("/proc/self/maps").unwrap_or_default();
    let mut files = Vec::new();
    for path in maps.lines().filter_map(|line| line.find('/').map(|start| &line[start..])) {
        let path = path.trim_end_matches(" (deleted)");
        let name = path.rsplit('/').next().unwrap_or_default();
        let mut runtimes = nvidia::RUNTIMES.iter().chain(amd::RUNTIMES);
        if runtimes.any(|prefix| name.starts_with(prefix)) && !files.iter().any(|f| f == path) {
            files.push(path.to_owned());
        }
    }
    files.into_iter().map(PathBuf::from).collect()
}

mod nvidia {
    use std::path::PathBuf;

    use super::{Devices, FoundDevice, HiddenBy, Roots};

    pub(super) fn devices(roots: &Roots, findings: &mut Vec<String>) -> Devices {
        let mut found = found(roots, findings);
        // Orin's display driver has /dev/nvidia0 for the very GPU that nvgpu serves: count it once.
        if found.is_empty() {
            found.extend(tegra(roots, findings));
        }
        let mut countable = true;
        if found.is_empty()
            && let Some(device) = wsl(roots, findings)
        {
            found.push(device);
            countable = false;
        }

        let mut devices = Devices { visible: found.len(), found, hidden_by: Vec::new() };
        if devices.found.is_empty() {
            return devices;
        }
        if let Some(value) = roots.variable(VISIBLE) {
            let uuids: Vec<_> = devices.found.iter().map(|found| found.uuid.as_deref()).collect();
            devices.visible = visible(&value, countable.then_some(&uuids));
            let hidden = devices.found.len().saturating_sub(devices.visible);
            if hidden > 0 {
                devices.hidden_by.push(HiddenBy { variable: VISIBLE, value, devices: hidden });
            }
        }
        findings.push(devices.summary("NVIDIA"));
        devices
    }

    /// Devices of the desktop and data-centre driver.
    fn found(roots: &Roots, findings: &mut Vec<String>) -> Vec<FoundDevice> {
        let driver = driver_entries(roots);
        let nodes = roots.numbers("/dev", "nvidia");
        if !nodes.is_empty() && roots.exists(CONTROL) {
            for entry in driver.iter().filter(|entry| !nodes.contains(&entry.minor)) {
                findings.push(format!(
                    "{} has no /dev/nvidia{}: this process was not given that device",
                    entry.path.display(),
                    entry.minor
                ));
            }
            return nodes
                .into_iter()
                .map(|minor| {
                    let node = PathBuf::from(format!("/dev/nvidia{minor}"));
                    let accessible = roots.may_open(&node) && roots.may_open(CONTROL);
                    let entry = driver.iter().find(|entry| entry.minor == minor);
                    FoundDevice {
                        name: entry.and_then(|entry| entry.name.clone()),
                        uuid: entry.and_then(|entry| entry.uuid.clone()),
                        accessible,
                        evidence: [node]
                            .into_iter()
                            .chain(entry.map(|entry| entry.path.clone()))
                            .collect(),
                    }
                })
                .collect();
        }
        if let Some(first) = driver.first() {
            findings.push(format!(
                "{} has no node in /dev: CUDA makes it when first used, but a container must be \
                 given it",
                first.path.display()
            ));
        } else if let Some(minor) = nodes.first() {
            findings.push(format!("/dev/nvidia{minor} without {CONTROL}: no driver behind it"));
        }
        driver
            .into_iter()
            .map(|entry| FoundDevice {
                name: entry.name,
                uuid: entry.uuid,
                accessible: true,
                evidence: vec![entry.path],
            })
            .collect()
    }

    /// What the kernel driver says about one device.
    struct DriverEntry {
        path: PathBuf,
        minor: u32,
        name: Option<String>,
        uuid: Option<String>,
    }

    fn driver_entries(roots: &Roots) -> Vec<DriverEntry> {
        let mut addresses = roots.names(DRIVER);
        addresses.sort_unstable();
        let entries = addresses.iter().enumerate().filter_map(|(index, address)| {
            let path = PathBuf::from(format!("{DRIVER}/{address}/information"));
            let text = roots.read(&path)?;
            let field = |name: &str| {
                let (_, value) = text
                    .lines()
                    .find_map(|line| line.split_once(':').filter(|(key, _)| key.trim() == name))?;
                Some(value.trim().to_owned())
            };
            Some(DriverEntry {
                minor: field("Device Minor")
                    .and_then(|minor| minor.parse().ok())
                    .or_else(|| u32::try_from(index).ok())?,
                name: field("Model"),
                // Before the device is first used, the driver writes question marks.
                uuid: field("GPU UUID").filter(|uuid| !uuid.contains('?')),
                path,
            })
        });
        let mut entries: Vec<_> = entries.collect();
        entries.sort_by_key(|entry| entry.minor);
        entries
    }

    /// The integrated GPU of a Jetson, which has a driver of its own.
    fn tegra(roots: &Roots, findings: &mut Vec<String>) -> Option<FoundDevice> {
        let nodes: Vec<_> = TEGRA_NODES.into_iter().filter(|path| roots.exists(path)).collect();
        let marks: Vec<_> = TEGRA_MARKS.into_iter().filter(|path| roots.exists(path)).collect();
        if nodes.is_empty() {
            if let Some(mark) = marks.first() {
                findings.push(format!(
                    "{mark} tells of a Jetson, but {} are missing: its GPU was not given to this \
                     process",
                    TEGRA_NODES.join(", ")
                ));
            }
            return None;
        }
        Some(FoundDevice {
            name: Some("Jetson".into()),
            uuid: None,
            accessible: nodes.iter().any(|node| roots.may_open(node)),
            evidence: nodes.into_iter().chain(marks).map(PathBuf::from).collect(),
        })
    }

    /// WSL lends every Windows GPU through one node, whoever made it. CUDA comes with a library
    /// that only NVIDIA's Windows driver installs.
    fn wsl(roots: &Roots, findings: &mut Vec<String>) -> Option<FoundDevice> {
        if !roots.exists(WSL_NODE) {
            return None;
        }
        if !roots.exists(WSL_LIBRARY) {
            findings.push(format!(
                "{WSL_NODE} without {WSL_LIBRARY}: Windows has no NVIDIA driver to lend"
            ));
            return None;
        }
        Some(FoundDevice {
            name: Some("WSL".into()),
            uuid: None,
            accessible: roots.may_open(WSL_NODE),
            evidence: vec![WSL_NODE.into(), WSL_LIBRARY.into()],
        })
    }

    /// How many devices `list` leaves, given the UUIDs of the devices as far as they are known, or
    /// nothing where not even their number is.
    ///
    /// CUDA's rules: the first entry that is no device ends the list, a duplicate empties it, a
    /// UUID may be shortened while it stays unique, and numbers are read as `strtoul` does. A list
    /// starts with numbers or with UUIDs and stays with them. Of MIG instances a process gets one.
    pub(super) fn visible(list: &str, uuids: Option<&Vec<Option<&str>>>) -> usize {
        let entries = || list.split(',').map(str::trim);
        if list.trim().starts_with("MIG-") {
            return 1;
        }
        let devices: Vec<Entry<'_>> = if list.trim().starts_with("GPU-") {
            entries().map_while(|entry| by_uuid(entry, uuids)).collect()
        } else {
            entries().map_while(number).map(Entry::Number).collect()
        };
        let repeated = (1..devices.len()).any(|index| devices[..index].contains(&devices[index]));
        if repeated {
            return 0;
        }
        let exists = |device: &Entry<'_>| match (device, uuids) {
            (Entry::Number(number), Some(uuids)) => *number < uuids.len(),
            (Entry::Number(_), None) | (Entry::Unknown(_), _) => true,
        };
        let named = devices.iter().take_while(|device| exists(device)).count();
        uuids.map_or(named, |uuids| named.min(uuids.len()))
    }

    #[derive(PartialEq)]
    enum Entry<'a> {
        Number(usize),
        /// A UUID that no file confirms or denies; the driver will.
        Unknown(&'a str),
    }

    fn by_uuid<'a>(entry: &'a str, uuids: Option<&Vec<Option<&str>>>) -> Option<Entry<'a>> {
        if !entry.starts_with("GPU-") {
            return None;
        }
        let Some(uuids) = uuids else {
            return Some(Entry::Unknown(entry));
        };
        let mut matches = (0..uuids.len())
            .filter(|&index| uuids[index].is_some_and(|uuid| uuid.starts_with(entry)));
        match (matches.next(), matches.next()) {
            (Some(index), None) => Some(Entry::Number(index)),
            (Some(_), Some(_)) => None,
            (None, _) => uuids.contains(&None).then_some(Entry::Unknown(entry)),
        }
    }

    /// The number that `entry` starts with, as `strtoul` reads it: `1gpu` is 1.
    fn number(entry: &str) -> Option<usize> {
        let text = entry.strip_prefix('+').unwrap_or(entry);
        let end = text.bytes().take_while(u8::is_ascii_digit).count();
        text[..end].parse().ok()
    }

    const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";
    /// The variables that choose among devices.
    pub(super) const LISTS: &[&str] = &[VISIBLE];
    /// The files of the driver's library and of the runtime, up to their versions.
    pub(super) const RUNTIMES: &[&str] = &["libcuda.so", "libcudart.so"];
    const CONTROL: &str = "/dev/nvidiactl";
    const DRIVER: &str = "/proc/driver/nvidia/gpus";
    const TEGRA_NODES: [&str; 3] = ["/dev/nvhost-ctrl-gpu", "/dev/nvhost-gpu", "/dev/nvgpu"];
    const TEGRA_MARKS: [&str; 2] = ["/etc/nv_tegra_release", "/sys/class/tegra-firmware"];
    const WSL_NODE: &str = "/dev/dxg";
    const WSL_LIBRARY: &str = "/usr/lib/wsl/lib/libcuda.so.1";
}

mod amd {
    use std::path::PathBuf;

    use super::{Devices, FoundDevice, HiddenBy, Roots, decimal};

    pub(super) fn devices(roots: &Roots, findings: &mut Vec<String>) -> Devices {
        let found = found(roots, findings);
        if found.is_empty() {
            return Devices::default();
        }
        let uuids: Vec<_> = found.iter().map(|device| device.uuid.as_deref()).collect();
        let mut left: Vec<usize> = (0..found.len()).collect();
        let mut hidden_by = Vec::new();
        // ROCr reads its variable first and renumbers what is left for HIP. HIP reads CUDA's
        // variable only where its own is not set.
        let hip = if roots.variable(HIP).is_some() { HIP } else { CUDA };
        for (variable, rules) in [(ROCR, Rules::Rocr), (hip, Rules::Hip)] {
            let Some(value) = roots.variable(variable) else { continue };
            let offered: Vec<_> = left.iter().map(|&index| uuids[index]).collect();
            let kept = visible(&value, &offered, rules);
            let hidden = left.len() - kept.len();
            left = kept.into_iter().map(|index| left[index]).collect();
            if hidden > 0 {
                hidden_by.push(HiddenBy { variable, value, devices: hidden });
            }
        }
        let devices = Devices { visible: left.len(), found, hidden_by };
        findings.push(devices.summary("AMD"));
        devices
    }

    /// The nodes of the kernel's topology that are GPUs, as ROCr itself counts them.
    fn found(roots: &Roots, findings: &mut Vec<String>) -> Vec<FoundDevice> {
        let mut devices = Vec::new();
        for node in roots.numbers(NODES, "") {
            let properties = PathBuf::from(format!("{NODES}/{node}/properties"));
            let Some(text) = roots.read(&properties) else { continue };
            let property = |name: &str| -> Option<u64> {
                let (_, value) = text
                    .lines()
                    .find_map(|line| line.split_once(' ').filter(|(key, _)| *key == name))?;
                value.trim().parse().ok()
            };
            if property("simd_count").unwrap_or(0) == 0 {
                continue; // a CPU
            }
            let id = PathBuf::from(format!("{NODES}/{node}/gpu_id"));
            let Some(gpu_id) = roots.read(&id) else {
                findings.push(format!(
                    "{} cannot be read: the device cgroup hides that GPU from this process",
                    id.display()
                ));
                continue;
            };
            if gpu_id.trim().parse().unwrap_or(0_u64) == 0 {
                continue; // no compute on it
            }
            if !roots.exists(CONTROL) {
                findings.push(format!(
                    "{} shows an AMD GPU, but there is no {CONTROL}: this process was not given it",
                    properties.display()
                ));
                continue;
            }
            let minor = property("drm_render_minor").filter(|&minor| minor > 0);
            let render = minor.map(|minor| PathBuf::from(format!("/dev/dri/renderD{minor}")));
            if let Some(render) = render.as_ref().filter(|render| !roots.exists(render)) {
                findings.push(format!(
                    "{} shows an AMD GPU, but there is no {}: this process was not given it",
                    properties.display(),
                    render.display()
                ));
                continue;
            }
            let nodes: Vec<_> = [CONTROL.into()].into_iter().chain(render).collect();
            let locked = nodes.iter().find(|node| !roots.may_open(node));
            if let Some(locked) = locked {
                findings.push(format!(
                    "this user may not open {}; it belongs to the group render or video",
                    locked.display()
                ));
            }
            devices.push(FoundDevice {
                name: property("gfx_target_version").filter(|&version| version > 0).map(gfx),
                uuid: property("unique_id").filter(|&id| id > 0).map(|id| format!("GPU-{id:016x}")),
                accessible: locked.is_none(),
                evidence: [properties, id].into_iter().chain(nodes).collect(),
            });
        }
        devices
    }

    /// 90402 is gfx942, 90010 is gfx90a: the last two digits of the name are hexadecimal.
    fn gfx(version: u64) -> String {
        format!("gfx{}{:x}{:x}", version / 10_000, version / 100 % 100, version % 100)
    }

    /// Where the two runtimes differ.
    #[derive(Clone, Copy, Eq, PartialEq)]
    pub(super) enum Rules {
        /// Skips duplicates; wants whole UUIDs.
        Hip,
        /// A duplicate ends the list; a UUID may be shortened while it stays unique.
        Rocr,
    }

    /// The devices that `list` leaves, as positions in `uuids`. The first entry that is no device
    /// ends the list. An empty list leaves none: HIP before 6.4 read it as not set, and asking
    /// for no device is what it says.
    pub(super) fn visible(list: &str, uuids: &[Option<&str>], rules: Rules) -> Vec<usize> {
        let mut kept = Vec::new();
        for entry in list.split(',').map(str::trim) {
            let Some(index) = position(entry, uuids, rules) else { break };
            if !kept.contains(&index) {
                kept.push(index);
            } else if rules == Rules::Rocr {
                break;
            }
        }
        kept
    }

    fn position(entry: &str, uuids: &[Option<&str>], rules: Rules) -> Option<usize> {
        if let Some(number) = decimal(entry) {
            return usize::try_from(number).ok().filter(|&number| number < uuids.len());
        }
        if !entry.starts_with("GPU-") {
            return None;
        }
        let entry = format!("GPU-{}", entry["GPU-".len()..].to_ascii_lowercase());
        let named = |uuid: &str| match rules {
            Rules::Hip => uuid == entry,
            Rules::Rocr => uuid.starts_with(&entry),
        };
        let mut matches = (0..uuids.len()).filter(|&index| uuids[index].is_some_and(named));
        matches.next().filter(|_| matches.next().is_none())
    }

    const CUDA: &str = "CUDA_VISIBLE_DEVICES";
    const HIP: &str = "HIP_VISIBLE_DEVICES";
    const ROCR: &str = "ROCR_VISIBLE_DEVICES";
    /// The variables that choose among devices, but for CUDA's.
    pub(super) const LISTS: &[&str] = &[HIP, ROCR];
    /// The file of the runtime, up to its version.
    pub(super) const RUNTIMES: &[&str] = &["libamdhip64.so"];
    const CONTROL: &str = "/dev/kfd";
    const NODES: &str = "/sys/class/kfd/kfd/topology/nodes";
}

/// The variable that decides where no argument does.
const VARIABLE: &str = "COLLECTIVES_BACKEND";

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine of empty and small files, with an environment.
    struct Machine {
        root: tempfile::TempDir,
        variables: Vec<(&'static str, &'static str)>,
        locked: &'static [&'static str],
    }

    impl Machine {
        fn new() -> Self {
            let root = tempfile::tempdir().expect("a temporary directory");
            Self { root, variables: Vec::new(), locked: &[] }
        }

        fn file(self, path: &str, text: &str) -> Self {
            let path = self.root.path().join(path.trim_start_matches('/'));
            fs::create_dir_all(path.parent().expect("a file has a parent")).expect("directories");
            fs::write(path, text).expect("a file");
            self
        }

        fn directory(self, path: &str) -> Self {
            fs::create_dir_all(self.root.path().join(path.trim_start_matches('/'))).expect("a dir");
            self
        }

        fn set(mut self, name: &'static str, value: &'static str) -> Self {
            self.variables.push((name, value));
            self
        }

        fn locked(mut self, paths: &'static [&'static str]) -> Self {
            self.locked = paths;
            self
        }

        fn nvidia_node(self, minor: u32) -> Self {
            self.file("/dev/nvidiactl", "").file(&format!("/dev/nvidia{minor}"), "")
        }

        fn nvidia_driver(self, minor: u32) -> Self {
            let path = format!("/proc/driver/nvidia/gpus/0000:0{minor}:00.0/information");
            let text = format!(
                "Model: \t\t NVIDIA H200\nIRQ:   \t\t 18\n\
                 GPU UUID: \t GPU-{minor}aaa0000-1111-2222-3333-444444444444\n\
                 Bus Location: \t 0000:0{minor}:00.0\nDevice Minor: \t {minor}\n"
            );
            self.file(&path, &text)
        }

        fn nvidia(self, count: u32) -> Self {
            (0..count).fold(self, |machine, minor| machine.nvidia_node(minor).nvidia_driver(minor))
        }

        fn kfd_node(self, node: u32, gpu_id: &str, properties: &str) -> Self {
            let path = format!("/sys/class/kfd/kfd/topology/nodes/{node}");
            self.file(&format!("{path}/gpu_id"), gpu_id)
                .file(&format!("{path}/properties"), properties)
        }

        fn kfd_cpu(self, node: u32) -> Self {
            self.kfd_node(node, "0\n", "cpu_cores_count 64\nsimd_count 0\ndrm_render_minor 0\n")
        }

        /// Node 0 is the CPU, the GPUs follow it.
        fn amd(self, count: u32) -> Self {
            (1..=count).fold(self.file("/dev/kfd", "").kfd_cpu(0), |machine, node| {
                let minor = 127 + node;
                let properties = format!(
                    "cpu_cores_count 0\nsimd_count 1216\ngfx_target_version 90402\n\
                     drm_render_minor {minor}\nunique_id {}\n",
                    0xabc0_0000_0000_0000_u64 + u64::from(node)
                );
                machine
                    .kfd_node(node, "28851\n", &properties)
                    .file(&format!("/dev/dri/renderD{minor}"), "")
            })
        }

        fn look(&self) -> Platform {
            let variables = self.variables.clone();
            let locked = self.locked;
            Platform::detect_in(
                &Roots::at(self.root.path())
                    .with_variables(move |name| {
                        let (_, value) = variables.iter().find(|(key, _)| *key == name)?;
                        Some(value.into())
                    })
                    .with_access(move |path| !locked.iter().any(|lock| Path::new(lock) == path)),
            )
        }

        fn choose(&self) -> Decision {
            self.look().choose(None).expect("a decision")
        }

        fn refusal(&self) -> Error {
            self.look().choose(None).expect_err("a refusal")
        }
    }

    fn decided(machine: &Machine) -> (BackendName, bool) {
        let decision = machine.choose();
        (decision.backend, decision.fallback)
    }

    const NCCL: (BackendName, bool) = (BackendName::Nccl, false);
    const RCCL: (BackendName, bool) = (BackendName::Rccl, false);
    const FALLBACK: (BackendName, bool) = (BackendName::Mock, true);

    #[test]
    fn a_machine_without_gpus_falls_back_to_the_mock_and_says_so() {
        let machine = Machine::new().file("/dev/null", "").directory("/sys/class/kfd");
        assert_eq!(decided(&machine), FALLBACK);
        assert_eq!(machine.choose().reason, "no NVIDIA or AMD GPU on this machine");
        assert!(machine.look().findings.is_empty());
    }

    #[test]
    fn this_machine_can_be_looked_at() {
        let platform = Platform::detect();
        let text = serde_json::to_string(&platform).expect("a platform is data");
        assert!(text.contains("\"nvidia\":{\"found\":["));
    }

    #[test]
    fn nvidia_devices_come_with_name_uuid_and_evidence() {
        let machine = Machine::new().nvidia(2).file("/dev/nvidia-uvm", "");
        let nvidia = machine.look().nvidia;
        assert_eq!((nvidia.found.len(), nvidia.visible, nvidia.hidden()), (2, 2, 0));
        assert!(nvidia.usable());
        assert_eq!(nvidia.found[1].name.as_deref(), Some("NVIDIA H200"));
        assert_eq!(
            nvidia.found[1].uuid.as_deref(),
            Some("GPU-1aaa0000-1111-2222-3333-444444444444")
        );
        assert_eq!(
            nvidia.found[1].evidence,
            [
                Path::new("/dev/nvidia1"),
                Path::new("/proc/driver/nvidia/gpus/0000:01:00.0/information")
            ]
        );
        assert_eq!(decided(&machine), NCCL);
        assert_eq!(machine.choose().reason, "2 NVIDIA devices (NVIDIA H200)");
    }

    #[test]
    fn nodes_without_the_driver_files_are_devices_if_the_control_node_is_there() {
        assert_eq!(decided(&Machine::new().nvidia_node(0)), NCCL);
        let stale = Machine::new().file("/dev/nvidia0", "");
        assert_eq!(decided(&stale), FALLBACK);
        assert!(stale.choose().reason.contains("/dev/nvidia0 without /dev/nvidiactl"));
    }

    #[test]
    fn driver_files_without_nodes_are_devices() {
        let machine = Machine::new().nvidia_driver(0);
        assert_eq!(decided(&machine), NCCL);
        assert!(machine.look().findings[0].contains("no node in /dev"));
    }

    #[test]
    fn a_container_has_only_the_devices_whose_nodes_it_was_given() {
        let machine = Machine::new().nvidia_driver(0).nvidia_driver(1).nvidia_node(1);
        let platform = machine.look();
        assert_eq!(platform.nvidia.found.len(), 1);
        assert_eq!(platform.nvidia.found[0].evidence.len(), 2);
        assert!(platform.findings[0].contains("has no /dev/nvidia0"), "{:?}", platform.findings);
    }

    #[test]
    fn cuda_visible_devices_hides_by_number() {
        for (value, visible) in [
            ("", 0),
            (" ", 0),
            ("-1", 0),
            ("none", 0),
            ("0", 1),
            ("0,2", 2),
            (" 2 , 0 ", 2),
            ("0,-1,2", 1),
            ("0,7,2", 1),
            ("0,x,2", 1),
            ("1gpu,2", 2),
            ("+1", 1),
            ("0,0", 0),
            ("0,1,2", 3),
            ("0,GPU-1aaa", 1),
            ("99999999999999999999999", 0),
        ] {
            let machine = Machine::new().nvidia(3).set("CUDA_VISIBLE_DEVICES", value);
            let nvidia = machine.look().nvidia;
            assert_eq!((nvidia.visible, nvidia.hidden()), (visible, 3 - visible), "'{value}'");
            assert_eq!(nvidia.usable(), visible > 0, "'{value}'");
            assert_eq!(decided(&machine), if visible > 0 { NCCL } else { FALLBACK }, "'{value}'");
        }
    }

    #[test]
    fn cuda_visible_devices_hides_by_uuid() {
        for (value, visible) in [
            ("GPU-1aaa0000-1111-2222-3333-444444444444", 1),
            ("GPU-1aaa", 1),
            ("GPU-0aaa,GPU-1aaa", 2),
            ("GPU-0aaa,GPU-0aaa0000", 0), // the same device twice
            ("GPU-", 0),                  // more than one
            ("GPU-ffff", 0),              // none
            ("GPU-0aaa,1", 1),
            ("MIG-0aaa0000-1111-2222-3333-444444444444", 1),
            ("MIG-GPU-0aaa0000-1111-2222-3333-444444444444/1/0,MIG-GPU-1aaa/1/0", 1),
        ] {
            let machine = Machine::new().nvidia(2).set("CUDA_VISIBLE_DEVICES", value);
            assert_eq!(machine.look().nvidia.visible, visible, "'{value}'");
        }
    }

    #[test]
    fn a_uuid_that_no_file_knows_is_left_to_the_driver() {
        let machine = Machine::new().nvidia_node(0).set("CUDA_VISIBLE_DEVICES", "GPU-1234,GPU-5");
        assert_eq!(machine.look().nvidia.visible, 1);
        let unused = Machine::new()
            .file(
                "/proc/driver/nvidia/gpus/0000:00:00.0/information",
                "GPU UUID: \t GPU-????????-????-????-????-????????????\nDevice Minor: \t 0\n",
            )
            .nvidia_node(0)
            .set("CUDA_VISIBLE_DEVICES", "GPU-1234");
        assert_eq!(unused.look().nvidia.found[0].uuid, None);
        assert_eq!(unused.look().nvidia.visible, 1);
    }

    #[test]
    fn the_reason_names_the_variable_that_hides() {
        let machine = Machine::new().nvidia(2).set("CUDA_VISIBLE_DEVICES", "-1");
        assert_eq!(
            machine.choose().reason,
            "no visible GPU: 2 NVIDIA devices (NVIDIA H200), 2 hidden by CUDA_VISIBLE_DEVICES='-1'"
        );
        let hidden = HiddenBy { variable: "CUDA_VISIBLE_DEVICES", value: "-1".into(), devices: 2 };
        assert_eq!(machine.look().nvidia.hidden_by, [hidden]);
    }

    #[test]
    fn a_jetson_is_one_device_by_its_own_nodes() {
        for node in ["/dev/nvhost-ctrl-gpu", "/dev/nvhost-gpu", "/dev/nvgpu/igpu0"] {
            let machine = Machine::new().file(node, "").file("/etc/nv_tegra_release", "# R36");
            assert_eq!(decided(&machine), NCCL, "{node}");
            assert!(
                machine.look().nvidia.found[0]
                    .evidence
                    .contains(&PathBuf::from("/etc/nv_tegra_release"))
            );
        }
        let orin = Machine::new().nvidia_node(0).file("/dev/nvhost-gpu", "");
        assert_eq!(orin.look().nvidia.found.len(), 1);
        let hidden = Machine::new().file("/dev/nvgpu", "").set("CUDA_VISIBLE_DEVICES", "");
        assert_eq!(decided(&hidden), FALLBACK);
    }

    #[test]
    fn a_jetson_without_its_nodes_is_no_device() {
        let machine = Machine::new().file("/etc/nv_tegra_release", "# R36");
        assert_eq!(decided(&machine), FALLBACK);
        assert!(machine.choose().reason.contains("tells of a Jetson"));
    }

    #[test]
    fn dxg_counts_only_with_the_library_of_nvidias_windows_driver() {
        let bare = Machine::new().file("/dev/dxg", "");
        assert_eq!(decided(&bare), FALLBACK);
        assert!(bare.choose().reason.contains("/dev/dxg without /usr/lib/wsl/lib/libcuda.so.1"));
        let wsl = || Machine::new().file("/dev/dxg", "").file("/usr/lib/wsl/lib/libcuda.so.1", "");
        assert_eq!(decided(&wsl()), NCCL);
        // Files do not tell how many GPUs Windows lends, so no number is out of range.
        assert_eq!(wsl().set("CUDA_VISIBLE_DEVICES", "1").look().nvidia.visible, 1);
        assert_eq!(wsl().set("CUDA_VISIBLE_DEVICES", "0,3").look().nvidia.visible, 2);
        assert_eq!(wsl().set("CUDA_VISIBLE_DEVICES", "GPU-1234").look().nvidia.visible, 1);
        assert_eq!(decided(&wsl().set("CUDA_VISIBLE_DEVICES", "-1")), FALLBACK);
    }

    #[test]
    fn amd_devices_come_with_architecture_uuid_and_evidence() {
        let machine = Machine::new().amd(2);
        let amd = machine.look().amd;
        assert_eq!((amd.found.len(), amd.visible, amd.hidden()), (2, 2, 0));
        assert_eq!(amd.found[0].name.as_deref(), Some("gfx942"));
        assert_eq!(amd.found[0].uuid.as_deref(), Some("GPU-abc0000000000001"));
        assert_eq!(
            amd.found[0].evidence,
            [
                Path::new("/sys/class/kfd/kfd/topology/nodes/1/properties"),
                Path::new("/sys/class/kfd/kfd/topology/nodes/1/gpu_id"),
                Path::new("/dev/kfd"),
                Path::new("/dev/dri/renderD128"),
            ]
        );
        assert_eq!(decided(&machine), RCCL);
        assert_eq!(machine.choose().reason, "2 AMD devices (gfx942)");
    }

    #[test]
    fn cpu_nodes_and_gpus_without_compute_are_no_devices() {
        assert_eq!(decided(&Machine::new().file("/dev/kfd", "").kfd_cpu(0).kfd_cpu(1)), FALLBACK);
        let no_compute = Machine::new().file("/dev/kfd", "").kfd_node(1, "0\n", "simd_count 8\n");
        assert_eq!(decided(&no_compute), FALLBACK);
        let odd = Machine::new().file("/dev/kfd", "").kfd_node(1, "?", "simd_count many\n");
        assert_eq!(decided(&odd), FALLBACK);
    }

    #[test]
    fn amd_devices_that_the_process_was_not_given_are_named() {
        let node = "/sys/class/kfd/kfd/topology/nodes/1";
        // A directory can't be read as a file, not even by root.
        let cgroup = Machine::new()
            .file("/dev/kfd", "")
            .directory(&format!("{node}/gpu_id"))
            .file(&format!("{node}/properties"), "simd_count 1216\n");
        assert!(cgroup.choose().reason.contains("device cgroup"), "{:?}", cgroup.choose());

        let no_kfd = Machine::new().kfd_node(1, "28851\n", "simd_count 1216\n");
        assert!(no_kfd.choose().reason.contains("there is no /dev/kfd"));

        let no_render = Machine::new().file("/dev/kfd", "").kfd_node(
            1,
            "28851\n",
            "simd_count 1216\ndrm_render_minor 130\n",
        );
        assert!(no_render.choose().reason.contains("there is no /dev/dri/renderD130"));
        for machine in [cgroup, no_kfd, no_render] {
            assert_eq!(decided(&machine), FALLBACK);
        }
    }

    #[test]
    fn amd_variables_have_rules_of_their_own() {
        // Two devices; what HIP 7.2.4 does, and for ROCR what ROCr does.
        for (variables, visible) in [
            (&[("HIP_VISIBLE_DEVICES", "")][..], 0),
            (&[("CUDA_VISIBLE_DEVICES", "")], 0),
            (&[("ROCR_VISIBLE_DEVICES", "")], 0),
            (&[("HIP_VISIBLE_DEVICES", "-1")], 0),
            (&[("HIP_VISIBLE_DEVICES", "0,0")], 1),
            (&[("HIP_VISIBLE_DEVICES", "0,0,1")], 2), // skipped
            (&[("ROCR_VISIBLE_DEVICES", "0,0,1")], 1), // ends the list
            (&[("HIP_VISIBLE_DEVICES", "1,7,0")], 1),
            (&[("ROCR_VISIBLE_DEVICES", "1,7,0")], 1),
            (&[("CUDA_VISIBLE_DEVICES", "1")], 1),
            (&[("HIP_VISIBLE_DEVICES", "0"), ("CUDA_VISIBLE_DEVICES", "0,1")], 1),
            (&[("HIP_VISIBLE_DEVICES", "0,1"), ("CUDA_VISIBLE_DEVICES", "")], 2),
            (&[("ROCR_VISIBLE_DEVICES", "1")], 1),
            (&[("ROCR_VISIBLE_DEVICES", "1"), ("HIP_VISIBLE_DEVICES", "0")], 1),
            (&[("ROCR_VISIBLE_DEVICES", "1"), ("HIP_VISIBLE_DEVICES", "1")], 0), // renumbered
            (&[("ROCR_VISIBLE_DEVICES", "GPU-abc0000000000002")], 1),
            (&[("ROCR_VISIBLE_DEVICES", "GPU-ABC0000000000002")], 1),
            (&[("ROCR_VISIBLE_DEVICES", "GPU-abc")], 0), // both
            (&[("HIP_VISIBLE_DEVICES", "GPU-abc0000000000002,0")], 2),
            (&[("HIP_VISIBLE_DEVICES", "GPU-abc000000000000")], 0), // cut short
            (&[("HIP_VISIBLE_DEVICES", "1gpu")], 0),
        ] {
            let machine = variables
                .iter()
                .fold(Machine::new().amd(2), |machine, &(name, value)| machine.set(name, value));
            let amd = machine.look().amd;
            assert_eq!((amd.visible, amd.hidden()), (visible, 2 - visible), "{variables:?}");
            assert_eq!(decided(&machine), if visible > 0 { RCCL } else { FALLBACK });
        }
    }

    #[test]
    fn a_shortened_rocr_uuid_is_enough_while_it_is_unique() {
        let properties = |id: u64| format!("simd_count 8\nunique_id {id}\n");
        let machine = Machine::new()
            .file("/dev/kfd", "")
            .kfd_node(1, "1\n", &properties(0xaaaa_0000_0000_0000))
            .kfd_node(2, "2\n", &properties(0xbbbb_0000_0000_0000))
            .set("ROCR_VISIBLE_DEVICES", "GPU-bb");
        assert_eq!(machine.look().amd.visible, 1);
    }

    #[test]
    fn each_variable_answers_for_what_it_hides() {
        let machine =
            Machine::new().amd(3).set("ROCR_VISIBLE_DEVICES", "0,1").set("HIP_VISIBLE_DEVICES", "");
        let amd = machine.look().amd;
        let hidden: Vec<_> = amd.hidden_by.iter().map(|by| (by.variable, by.devices)).collect();
        assert_eq!(hidden, [("ROCR_VISIBLE_DEVICES", 1), ("HIP_VISIBLE_DEVICES", 2)]);
    }

    #[test]
    fn both_vendors_are_refused_with_the_variable_to_set() {
        let machine = Machine::new().nvidia(1).amd(1);
        let error = machine.refusal();
        assert_eq!(error.kind(), ErrorKind::InvalidUsage);
        assert_eq!(
            error.to_string(),
            "two kinds of GPU, and no way to guess which is meant: 1 NVIDIA device (NVIDIA H200); \
             1 AMD device (gfx942); set COLLECTIVES_BACKEND=nccl or COLLECTIVES_BACKEND=rccl"
        );
    }

    #[test]
    fn a_runtime_in_the_process_decides_between_vendors() {
        let maps = |names: &[&str]| {
            let line = |name| format!("7f00-7f01 r-xp 00000000 fe:00 11   /opt/it's here/{name}\n");
            let text: String = names.iter().flat_map(|&name| [line(name), line(name)]).collect();
            Machine::new().nvidia(1).amd(1).file("/proc/self/maps", &text)
        };
        for (names, backend) in [
            (&["libc.so.6", "libamdhip64.so.7.2.70204"][..], RCCL),
            (&["libamdhip64.so.6 (deleted)"], RCCL),
            (&["libcuda.so.580.95.05", "libnccl.so.2"], NCCL),
            (&["libcudart.so.12"], NCCL),
        ] {
            let machine = maps(names);
            assert_eq!(decided(&machine), backend, "{names:?}");
            assert_eq!(machine.look().loaded.len(), 1, "{names:?}");
            let reason = machine.choose().reason;
            assert!(reason.ends_with("is in this process already"), "{reason}");
        }
        for names in [&["libamdhip64.so.7", "libcuda.so.1"][..], &["libcudart_static.a"]] {
            assert!(maps(names).refusal().message().starts_with("two kinds of GPU"), "{names:?}");
        }
        // It says nothing about a machine of one vendor, and outranks lists of devices.
        let one = Machine::new().nvidia(1).file("/proc/self/maps", "1-2 r /lib/libamdhip64.so.7");
        assert_eq!(decided(&one), NCCL);
        let both = maps(&["libamdhip64.so.7"]).set("CUDA_VISIBLE_DEVICES", "0");
        assert_eq!(decided(&both), RCCL);
    }

    #[test]
    fn a_list_of_one_vendor_alone_decides_between_vendors() {
        let both = || Machine::new().nvidia(1).amd(1);
        assert_eq!(decided(&both().set("HIP_VISIBLE_DEVICES", "0")), RCCL);
        assert_eq!(decided(&both().set("ROCR_VISIBLE_DEVICES", "0")), RCCL);
        assert_eq!(decided(&both().set("CUDA_VISIBLE_DEVICES", "0")), NCCL);
        let reason = both().set("HIP_VISIBLE_DEVICES", "0").choose().reason;
        assert!(reason.contains("HIP_VISIBLE_DEVICES is set"), "{reason}");
        let undecided = both().set("HIP_VISIBLE_DEVICES", "0").set("CUDA_VISIBLE_DEVICES", "0");
        assert!(undecided.refusal().message().starts_with("two kinds of GPU"));
    }

    #[test]
    fn hiding_or_locking_one_vendor_leaves_the_other() {
        let both = || Machine::new().nvidia(1).amd(1);
        assert_eq!(decided(&both().set("HIP_VISIBLE_DEVICES", "")), NCCL);
        assert_eq!(decided(&both().set("ROCR_VISIBLE_DEVICES", "-1")), NCCL);
        // HIP reads CUDA's variable too, so that one alone hides both vendors.
        assert_eq!(decided(&both().set("CUDA_VISIBLE_DEVICES", "")), FALLBACK);
        let hip = both().set("CUDA_VISIBLE_DEVICES", "").set("HIP_VISIBLE_DEVICES", "0");
        assert_eq!(decided(&hip), RCCL);
        assert_eq!(decided(&both().locked(&["/dev/kfd"])), NCCL);
        assert_eq!(decided(&both().locked(&["/dev/dri/renderD128"])), NCCL);
        assert_eq!(decided(&both().locked(&["/dev/nvidia0"])), RCCL);
        let error = both().locked(&["/dev/nvidia0", "/dev/kfd"]).refusal();
        assert!(error.message().contains("which this user may not open"));
    }

    #[test]
    fn a_locked_device_is_hardware_and_never_leads_to_the_mock() {
        let amd = Machine::new().amd(1).locked(&["/dev/kfd"]);
        assert_eq!(decided(&amd), RCCL);
        assert!(!amd.look().amd.usable());
        assert!(amd.look().findings[0].contains("may not open /dev/kfd"));
        let nvidia = Machine::new().nvidia(1).locked(&["/dev/nvidiactl"]);
        assert_eq!(decided(&nvidia), NCCL);
        assert!(nvidia.choose().reason.contains("which this user may not open"));
    }

    #[test]
    fn argument_beats_variable_beats_detection() {
        let machine = Machine::new().nvidia(1).set("COLLECTIVES_BACKEND", "mock");
        let by_variable = machine.choose();
        assert_eq!((by_variable.backend, by_variable.fallback), (BackendName::Mock, false));
        assert_eq!(by_variable.reason, "COLLECTIVES_BACKEND=mock");
        let by_argument = machine.look().choose(Some(BackendName::Rccl)).expect("a decision");
        assert_eq!(by_argument.backend, BackendName::Rccl);
        assert_eq!(by_argument.reason, "rccl was asked for by argument");
        // An argument is not held up by a bad variable that it overrules.
        let bad = Machine::new().set("COLLECTIVES_BACKEND", "gloo").look();
        assert!(bad.choose(Some(BackendName::Mock)).is_ok());
        // No device at all does not stop who asks for one.
        let asked = Machine::new().set("COLLECTIVES_BACKEND", "nccl");
        assert_eq!(decided(&asked), NCCL);
        let conflict = Machine::new().nvidia(1).amd(1).set("COLLECTIVES_BACKEND", "rccl");
        assert_eq!(decided(&conflict), RCCL);
        for undecided in ["", "auto"] {
            let machine = Machine::new().nvidia(1).set("COLLECTIVES_BACKEND", undecided);
            assert_eq!(decided(&machine), NCCL);
        }
    }

    #[test]
    fn a_bad_variable_is_refused_with_the_three_names() {
        for value in ["cuda", "NCCL", "nccl "] {
            let error = Machine::new().set("COLLECTIVES_BACKEND", value).refusal();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            assert_eq!(
                error.to_string(),
                format!(
                    "COLLECTIVES_BACKEND: no backend is called '{value}', want nccl, rccl or mock"
                )
            );
        }
    }

    #[test]
    fn names_survive_printing_and_parsing() {
        for name in [BackendName::Mock, BackendName::Nccl, BackendName::Rccl] {
            assert_eq!(name.to_string().parse::<BackendName>().ok(), Some(name));
            let json = serde_json::to_string(&name).expect("a name is data");
            assert_eq!(json, format!("\"{name}\""));
        }
    }
}
