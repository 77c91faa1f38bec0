//! Every check on a machine made for it: a healthy one, on which no check finds anything, with one
//! thing changed. So a test fails if its check is taken away, and if another one talks of the same
//! thing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use collectives::{Platform, Version};
use collectives_nccl_abi::{Flavour, Table, quirks};
use tempfile::TempDir;

use super::{
    checks,
    cuda::{COMPAT_NOT_SUPPORTED, CudaReport, DRIVER_MISMATCH, NOT_READY, STUB_LIBRARY},
    facts::{Facts, acs_redirects},
    finding::{Finding, Severity},
    probe::{Issue, LibraryReport, NcclReport, Outcome, Probes, SelectedReport, Tried},
    report::Report,
    system::{Fake, Space, System},
};

/// A machine of small files, with what its library and driver would answer.
struct Machine {
    root: TempDir,
    variables: BTreeMap<String, String>,
    fake: Fake,
    selected: Outcome<SelectedReport>,
    nccl: Outcome<NcclReport>,
    cuda: Option<Outcome<CudaReport>>,
}

const FOLDER: &str = "/usr/lib/x86_64-linux-gnu";

impl Machine {
    /// Two H200 on driver 580, NCCL 2.30.7 where the loader finds it, and room for everything.
    fn healthy() -> Self {
        let machine = Self {
            root: tempfile::tempdir().expect("a temporary folder"),
            variables: BTreeMap::new(),
            fake: Fake::default(),
            selected: Outcome::Answered(SelectedReport::default()),
            nccl: Outcome::Answered(NcclReport::default()),
            cuda: Some(Outcome::Answered(CudaReport {
                library: Some(format!("{FOLDER}/libcuda.so.580.95.05").into()),
                version: Some((13, 0)),
                init: Some(0),
                devices: 2,
                ..CudaReport::default()
            })),
        };
        machine
            .kernel_driver("580.95.05")
            .gpu(0)
            .gpu(1)
            .file("/dev/nvidiactl", "")
            .file("/dev/nvidia-uvm", "")
            .file("/proc/cpuinfo", "flags\t\t: fpu sse2\n")
            .file("/proc/self/limits", LIMITS)
            .file("/proc/self/status", "Name:\tdoctor\nCapEff:\t0000000000000000\n")
            .interface("lo", "unknown", false)
            .interface("eth0", "up", true)
            .shm(64 << 30, 64 << 30)
            .file("/dev/shm/.keep", "")
            .copy(&format!("{FOLDER}/libnccl.so.2"), 23_007, (13, 0))
            .copy_of(&format!("{FOLDER}/libnccl.so.2"), &format!("{FOLDER}/libnccl.so"))
            .opens(&format!("{FOLDER}/libnccl.so.2"), "dynamic loader", 23_007)
    }

    /// A machine without a GPU.
    fn laptop() -> Self {
        let mut machine = Self::healthy();
        for path in ["/dev/nvidia0", "/dev/nvidia1", "/dev/nvidiactl", "/dev/nvidia-uvm"] {
            fs::remove_file(machine.path(path)).expect("a node");
        }
        for path in ["/proc/driver", "/sys/bus/pci"] {
            fs::remove_dir_all(machine.path(path)).expect("a folder");
        }
        machine.cuda = None;
        machine
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path.trim_start_matches('/'))
    }

    fn bytes(self, path: &str, bytes: &[u8]) -> Self {
        let real = self.path(path);
        fs::create_dir_all(real.parent().expect("a file has a folder")).expect("folders");
        fs::write(real, bytes).expect("a file");
        self
    }

    fn file(self, path: &str, text: &str) -> Self {
        self.bytes(path, text.as_bytes())
    }

    fn link(self, path: &str, target: &str) -> Self {
        let (real, target) = (self.path(path), self.path(target));
        fs::create_dir_all(&target).expect("folders");
        fs::create_dir_all(real.parent().expect("a link has a folder")).expect("folders");
        std::os::unix::fs::symlink(target, real).expect("a link");
        self
    }

    fn without(self, path: &str) -> Self {
        let real = self.path(path);
        if real.is_dir() { fs::remove_dir_all(real) } else { fs::remove_file(real) }
            .expect("something to remove");
        self
    }

    fn set(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.into(), value.into());
        self
    }

    /// Sets a variable to the path of a file of this machine.
    fn set_path(self, name: &str, path: &str) -> Self {
        let value = self.path(path).display().to_string();
        self.set(name, &value)
    }

    fn kernel_driver(self, release: &str) -> Self {
        let text = format!("NVRM version: NVIDIA UNIX x86_64 Kernel Module  {release}  Mon\n");
        self.file("/proc/driver/nvidia/version", &text)
    }

    fn gpu(self, minor: u32) -> Self {
        let address = format!("0000:0{minor}:00.0");
        let information = format!("Model: \t\t NVIDIA H200\nDevice Minor: \t {minor}\n");
        self.file(&format!("/proc/driver/nvidia/gpus/{address}/information"), &information)
            .file(&format!("/dev/nvidia{minor}"), "")
            .pci(&address, "0x10de", Some("nvidia"), "identity")
    }

    fn pci(self, address: &str, vendor: &str, driver: Option<&str>, iommu: &str) -> Self {
        let device = format!("/sys/devices/pci0000:00/0000:00:01.0/{address}");
        let machine = self
            .file(&format!("{device}/vendor"), &format!("{vendor}\n"))
            .file(&format!("{device}/class"), "0x030200\n")
            .file(&format!("{device}/iommu_group/type"), &format!("{iommu}\n"))
            .link(&format!("/sys/bus/pci/devices/{address}"), &device);
        match driver {
            Some(driver) => {
                machine.link(&format!("{device}/driver"), &format!("/sys/bus/pci/drivers/{driver}"))
            }
            None => machine,
        }
    }

    fn iommu(self, kind: &str) -> Self {
        ["0000:00:00.0", "0000:01:00.0"].iter().fold(self, |machine, address| {
            machine.file(&format!("/sys/bus/pci/devices/{address}/iommu_group/type"), kind)
        })
    }

    fn interface(self, name: &str, state: &str, physical: bool) -> Self {
        let machine = self.file(&format!("/sys/class/net/{name}/operstate"), state);
        if physical {
            machine.file(&format!("/sys/class/net/{name}/device/x"), "")
        } else {
            machine
        }
    }

    fn infiniband(self) -> Self {
        self.file("/sys/class/infiniband/mlx5_0/x", "")
    }

    fn shm(mut self, total: u64, available: u64) -> Self {
        self.fake.space.insert("/dev/shm".into(), Space { total, available });
        self
    }

    fn locked(mut self, path: &str) -> Self {
        self.fake.locked.push(path.into());
        self
    }

    fn limit(self, name: &str, value: &str) -> Self {
        let replace = |line: &str| match line.starts_with(name) {
            true => format!("{name}  {value}  {value}  units\n"),
            false => format!("{line}\n"),
        };
        let text: String = LIMITS.lines().map(replace).collect();
        self.file("/proc/self/limits", &text)
    }

    fn cgroup(self, file: &str, max: &str, used: &str) -> Self {
        let (max_file, used_file) = (format!("{file}.max"), format!("{file}.current"));
        self.file("/proc/self/cgroup", "0::/job\n")
            .file(&format!("/sys/fs/cgroup/job/{max_file}"), max)
            .file(&format!("/sys/fs/cgroup/job/{used_file}"), used)
    }

    /// A copy of NCCL.
    fn copy(self, path: &str, version: u32, cuda: (u32, u32)) -> Self {
        self.bytes(path, &library(Some((version, cuda)), &|_| true))
    }

    fn copy_of(self, path: &str, link: &str) -> Self {
        let (target, link) = (self.path(path), self.path(link));
        std::os::unix::fs::symlink(target, link).expect("a link");
        self
    }

    /// The library that the search opens.
    fn opens(self, path: &str, found_by: &str, version: u32) -> Self {
        let path = self.path(path).canonicalize().expect("a library of this machine");
        self.nccl(|nccl| {
            nccl.library = Some(LibraryReport {
                backend: "NCCL".into(),
                path: Some(path.clone()),
                version: Version::from_code(version),
                found_by: found_by.into(),
            });
            let code = i32::try_from(version).expect("a code");
            nccl.known_issues = quirks::known_bad(Flavour::Nccl, code).map(Issue::new).collect();
            nccl.mapped = vec![path];
        })
    }

    /// The selected backend is an RCCL of this release.
    fn selects_rccl(mut self, version: u32) -> Self {
        if let Outcome::Answered(report) = &mut self.selected {
            report.library = Some(LibraryReport {
                backend: "RCCL".into(),
                path: Some("/opt/rocm/lib/librccl.so.1".into()),
                version: Version::from_code(version),
                found_by: "dynamic loader".into(),
            });
        }
        self
    }

    /// The library is of another release; its place stays.
    fn release(self, version: u32, cuda: (u32, u32)) -> Self {
        let path = format!("{FOLDER}/libnccl.so.2");
        self.copy(&path, version, cuda).opens(&path, "dynamic loader", version)
    }

    /// A package in a virtual environment, with the size that its list of files gives.
    fn wheel(self, package: &str, version: &str, recorded: u64) -> Self {
        let folder = package.replace('-', "_");
        let record = format!("nvidia/nccl/lib/libnccl.so.2,sha256=x,{recorded}\n");
        self.file(&format!("{SITE}/{folder}-{version}.dist-info/RECORD"), &record)
            .set_path("VIRTUAL_ENV", "/venv")
    }

    fn nccl(mut self, change: impl FnOnce(&mut NcclReport)) -> Self {
        if let Outcome::Answered(report) = &mut self.nccl {
            change(report);
        }
        self
    }

    /// No library is opened; what was tried is this.
    fn refused(self, path: &str, source: &str, refused: &str, present: bool) -> Self {
        let path = self.path(path);
        self.nccl(|nccl| {
            nccl.library = None;
            nccl.known_issues.clear();
            nccl.mapped.clear();
            nccl.problem = Some("install NCCL".into());
            nccl.tried =
                vec![Tried { path, source: source.into(), refused: refused.into(), present }];
        })
        .problem("no usable library")
    }

    fn cuda(mut self, change: impl FnOnce(&mut CudaReport)) -> Self {
        if let Some(Outcome::Answered(report)) = &mut self.cuda {
            change(report);
        }
        self
    }

    fn problem(mut self, problem: &str) -> Self {
        if let Outcome::Answered(report) = &mut self.selected {
            report.problem = Some(problem.into());
        }
        self
    }

    fn facts(&self) -> Facts {
        let system = System::at(self.root.path(), self.variables.clone(), self.fake.clone());
        let platform = Platform::detect_in(&system.roots());
        let probes = Probes {
            selected: self.selected.clone(),
            nccl: self.nccl.clone(),
            cuda: self.cuda.clone(),
        };
        Facts::gather(&system, platform, probes)
    }

    fn findings(&self) -> Vec<Finding> {
        checks::findings(&self.facts())
    }
}

/// Where the virtual environment keeps packages.
const SITE: &str = "/venv/lib/python3.12/site-packages";
/// The file that the wheels bring.
const WHEEL: &str = "/venv/lib/python3.12/site-packages/nvidia/nccl/lib/libnccl.so.2";

const LIMITS: &str = "\
Limit                     Soft Limit           Hard Limit           Units
Max stack size            8388608              unlimited            bytes
Max open files            65536                65536                files
Max locked memory         unlimited            unlimited            bytes
";

/// The smallest file that is a shared library, says that it is this NCCL, and has the functions for
/// which `has` is true.
fn library(release: Option<(u32, (u32, u32))>, has: &dyn Fn(&str) -> bool) -> Vec<u8> {
    let mut constants = VARIABLES.join("\0").into_bytes();
    if let Some((version, (major, minor))) = release {
        let version = Version::from_code(version);
        constants.extend(format!("\0NCCL version {version}+cuda{major}.{minor}\0").bytes());
    }
    let required = Table::SYMBOLS.iter().filter(|symbol| symbol.is_required());
    let names: Vec<&str> = required.map(|symbol| symbol.name()).filter(|name| has(name)).collect();
    let mut strings = vec![0];
    // Each entry: name, info (a global function), other, section, value, size.
    let mut symbols = vec![0; 24];
    for name in names {
        let at = u32::try_from(strings.len()).expect("a small table");
        strings.extend(name.bytes().chain([0]));
        symbols.extend(at.to_le_bytes());
        symbols.extend([0x12, 0]);
        symbols.extend(1_u16.to_le_bytes());
        symbols.extend([0; 16]);
    }
    let titles = b"\0.rodata\0.dynsym\0.dynstr\0.shstrtab\0";
    let parts: [&[u8]; 4] = [&constants, &symbols, &strings, titles];
    let header = 64;
    let mut file = vec![0; header];
    let mut places = Vec::new();
    for part in parts {
        places.push((file.len() as u64, part.len() as u64));
        file.extend(part);
    }
    let table = file.len() as u64;
    // Each entry: name, kind, flags, address, place, size, link, info, alignment, entry size.
    let mut section = |name: u32, kind: u32, place: (u64, u64), link: u32, entry: u64| {
        file.extend(name.to_le_bytes());
        file.extend(kind.to_le_bytes());
        for number in [0, 0, place.0, place.1] {
            file.extend(u64::to_le_bytes(number));
        }
        file.extend(link.to_le_bytes());
        file.extend(u32::from(kind == 11).to_le_bytes());
        file.extend(1_u64.to_le_bytes());
        file.extend(entry.to_le_bytes());
    };
    section(0, 0, (0, 0), 0, 0);
    section(1, 1, places[0], 0, 0);
    section(9, 11, places[1], 3, 24);
    section(17, 3, places[2], 0, 0);
    section(25, 3, places[3], 0, 0);
    let machine: u16 = if cfg!(target_arch = "aarch64") { 183 } else { 62 };
    file[..6].copy_from_slice(b"\x7fELF\x02\x01");
    file[6] = 1;
    file[16..18].copy_from_slice(&3_u16.to_le_bytes());
    file[18..20].copy_from_slice(&machine.to_le_bytes());
    file[20..24].copy_from_slice(&1_u32.to_le_bytes());
    file[40..48].copy_from_slice(&table.to_le_bytes());
    for (at, number) in [(52, 64_u16), (54, 56), (58, 64), (60, 5), (62, 4)] {
        file[at..at + 2].copy_from_slice(&number.to_le_bytes());
    }
    file
}

/// The variables that the library reads.
const VARIABLES: [&str; 31] = [
    "NCCL_ALGO",
    "NCCL_BUFFSIZE",
    "NCCL_COMM_BLOCKING",
    "NCCL_COMM_ID",
    "NCCL_CONF_FILE",
    "NCCL_CUMEM_HOST_ENABLE",
    "NCCL_DEBUG",
    "NCCL_ENV_PLUGIN",
    "NCCL_GRAPH_MIXING_SUPPORT",
    "NCCL_GRAPH_STREAM_ORDERING",
    "NCCL_IB_DISABLE",
    "NCCL_IB_GID_INDEX",
    "NCCL_IB_HCA",
    "NCCL_IB_TIMEOUT",
    "NCCL_LEGACY_CUDA_REGISTER",
    "NCCL_MULTI_RANK_GPU_ENABLE",
    "NCCL_NET",
    "NCCL_NET_GDR_LEVEL",
    "NCCL_NET_PLUGIN",
    "NCCL_NTHREADS",
    "NCCL_NVLS_ENABLE",
    "NCCL_P2P_DISABLE",
    "NCCL_P2P_LEVEL",
    "NCCL_PROFILER_PLUGIN",
    "NCCL_PROTO",
    "NCCL_RAS_ENABLE",
    "NCCL_SHM_DISABLE",
    "NCCL_SOCKET_FAMILY",
    "NCCL_SOCKET_IFNAME",
    "NCCL_SOCKET_NTHREADS",
    "NCCL_TUNER_PLUGIN",
];

/// A machine on which a check finds something.
struct Case {
    id: &'static str,
    severity: Severity,
    machine: Machine,
    /// What the finding says it saw.
    found: &'static str,
    /// What it says to do.
    remedy: &'static str,
    /// Checks that rightly speak up, too.
    also: &'static [&'static str],
}

fn case(
    id: &'static str,
    severity: Severity,
    machine: Machine,
    found: &'static str,
    remedy: &'static str,
) -> Case {
    Case { id, severity, machine, found, remedy, also: &[] }
}

impl Case {
    fn also(self, also: &'static [&'static str]) -> Self {
        Self { also, ..self }
    }

    /// The finding, where it and no other is there.
    fn check(&self) -> Result<(), String> {
        let Self { id, severity, machine, found, remedy, also } = self;
        let findings = machine.findings();
        let ids: BTreeSet<&str> = findings.iter().map(|finding| finding.id).collect();
        let want: BTreeSet<&str> = also.iter().copied().chain([*id]).collect();
        if ids != want {
            return Err(format!("{id} ('{found}'): found by {ids:?}, want {want:?}"));
        }
        let own: Vec<&Finding> = findings.iter().filter(|finding| finding.id == *id).collect();
        let right = own.iter().any(|finding| {
            finding.severity == *severity
                && finding.found.contains(found)
                && finding.remedy.contains(remedy)
        });
        if right {
            Ok(())
        } else {
            Err(format!("{id}: want {severity}, '{found}', '{remedy}': {own:#?}"))
        }
    }
}

use Severity::{Error, Note, Warning};

fn cases() -> Vec<Case> {
    [
        backend_cases(),
        device_cases(),
        driver_cases(),
        library_cases(),
        wheel_cases(),
        limit_cases(),
        topology_cases(),
        network_cases(),
        variable_cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn backend_cases() -> Vec<Case> {
    let asked = |backend| Machine::healthy().set("COLLECTIVES_BACKEND", backend);
    let amd = || {
        Machine::healthy()
            .file("/dev/kfd", "")
            .file("/dev/dri/renderD128", "")
            .file("/sys/class/kfd/kfd/topology/nodes/1/gpu_id", "1\n")
            .file(
                "/sys/class/kfd/kfd/topology/nodes/1/properties",
                "simd_count 8\ndrm_render_minor 128\n",
            )
    };
    let mut crash = Machine::healthy();
    crash.selected = Outcome::Died("killed by signal 11 (segmentation fault)".into());
    crash.nccl = Outcome::Died("killed by signal 11 (segmentation fault)".into());
    let mut hang = Machine::healthy();
    hang.cuda = Some(Outcome::Died("no answer within 60 s".into()));
    vec![
        case(
            "backend-name",
            Error,
            asked("cuda").problem("no"),
            "COLLECTIVES_BACKEND=cuda",
            "nccl, rccl or mock",
        ),
        case(
            "backend-two-vendors",
            Error,
            amd().problem("two"),
            "two kinds of GPU",
            "COLLECTIVES_BACKEND=nccl",
        ),
        case("backend-rccl", Note, asked("rccl"), "RCCL is selected", "COLLECTIVES_BACKEND=mock"),
        case(
            "rccl-known-issue",
            Warning,
            asked("rccl").selects_rccl(21_505),
            "RCCL 2.15.5: non-blocking init while a rank is missing: blocks",
            "releases from August 2026",
        )
        .also(&["backend-rccl"]),
        case(
            "backend-mock",
            Note,
            Machine::laptop(),
            "no NVIDIA or AMD GPU",
            "COLLECTIVES_BACKEND=mock",
        ),
        case(
            "probe-died",
            Error,
            crash,
            "the selected backend ended without an answer: killed by signal 11",
            "nvidia-smi",
        ),
        case(
            "probe-died",
            Warning,
            hang,
            "the CUDA driver ended without an answer: no answer within 60 s",
            "nvidia-smi",
        ),
        case(
            "backend-unusable",
            Error,
            Machine::healthy().problem("CUDA: a new kind of trouble"),
            "a new kind of trouble",
            "act on the message",
        ),
    ]
}

fn device_cases() -> Vec<Case> {
    let hidden = |list| Machine::healthy().set("CUDA_VISIBLE_DEVICES", list);
    let laptop_with = |driver| Machine::laptop().pci("0000:09:00.0", "0x10de", driver, "identity");
    let mock = ["backend-mock"].as_slice();
    vec![
        case(
            "gpu-without-driver",
            Warning,
            laptop_with(None),
            "0000:09:00.0 is an NVIDIA GPU without a driver",
            "modprobe nvidia",
        )
        .also(mock),
        case(
            "gpu-without-driver",
            Warning,
            laptop_with(Some("nouveau")),
            "driven by nouveau",
            "install NVIDIA's driver",
        )
        .also(mock),
        case(
            "gpu-without-driver",
            Warning,
            laptop_with(Some("vfio-pci")),
            "held by vfio-pci",
            "give it back",
        )
        .also(mock),
        case(
            "gpu-without-driver",
            Warning,
            laptop_with(Some("nvidia")),
            "this process sees none",
            "docker run --gpus all",
        )
        .also(mock),
        case(
            "devices-none",
            Error,
            Machine::laptop().set("COLLECTIVES_BACKEND", "nccl"),
            "no file shows an NVIDIA device",
            "COLLECTIVES_BACKEND=mock",
        ),
        case(
            "devices-hidden",
            Warning,
            hidden("-1"),
            "hides 2 of 2 NVIDIA devices",
            "unset CUDA_VISIBLE_DEVICES",
        )
        .also(mock),
        case(
            "devices-hidden",
            Note,
            hidden("1"),
            "hides 1 of 2 NVIDIA devices",
            "unset CUDA_VISIBLE_DEVICES",
        ),
        case(
            "devices-hidden",
            Error,
            hidden("-1").set("COLLECTIVES_BACKEND", "nccl"),
            "CUDA_VISIBLE_DEVICES='-1'",
            "unset CUDA_VISIBLE_DEVICES",
        ),
        case("devices-duplicate", Warning, hidden("0,0"), "names 0 twice", "name each device once")
            .also(mock),
        case("devices-no-such", Warning, hidden("0,7"), "no device '7'", "from 0 to 1"),
        case(
            "devices-not-given",
            Note,
            Machine::healthy().without("/dev/nvidia1"),
            "has no /dev/nvidia1",
            "--gpus all",
        ),
        case(
            "devices-not-given",
            Warning,
            Machine::laptop()
                .file("/sys/class/kfd/kfd/topology/nodes/1/gpu_id", "1\n")
                .file("/sys/class/kfd/kfd/topology/nodes/1/properties", "simd_count 8\n"),
            "there is no /dev/kfd",
            "--device /dev/kfd",
        )
        .also(mock),
        case(
            "devices-locked",
            Error,
            Machine::healthy().locked("/dev/nvidiactl"),
            "may not open 2 of 2 NVIDIA devices",
            "add the user",
        ),
        case(
            "devices-locked",
            Warning,
            Machine::healthy().locked("/dev/nvidia1"),
            "may not open 1 of 2 NVIDIA devices",
            "add the user",
        ),
        case(
            "uvm-node",
            Warning,
            Machine::healthy().without("/dev/nvidia-uvm").cuda(|cuda| cuda.init = Some(999)),
            "no /dev/nvidia-uvm",
            "nvidia-modprobe",
        ),
        case(
            "wsl-without-cuda",
            Warning,
            Machine::laptop().file("/dev/dxg", ""),
            "/dev/dxg without",
            "driver on Windows",
        )
        .also(mock),
    ]
}

fn driver_cases() -> Vec<Case> {
    let init = |code| Machine::healthy().cuda(|cuda| cuda.init = Some(code));
    let absent = || {
        Machine::healthy().cuda(|cuda| {
            *cuda = CudaReport {
                problem: Some("libcuda.so.1: cannot open shared object file".into()),
                ..CudaReport::default()
            };
        })
    };
    let library =
        |path: &'static str| Machine::healthy().cuda(|cuda| cuda.library = Some(path.into()));
    let old = |release| {
        let machine = Machine::healthy().kernel_driver(release);
        machine.cuda(|cuda| {
            cuda.version = Some((12, 6));
            cuda.library = Some(format!("{FOLDER}/libcuda.so.{release}").into());
        })
    };
    vec![
        case("driver-library", Error, absent(), "libcuda.so.1: cannot open", "libcuda1"),
        case(
            "driver-library",
            Error,
            absent().file("/.dockerenv", ""),
            "libcuda.so.1",
            "docker run --gpus all",
        ),
        case(
            "driver-library",
            Error,
            absent().set("NVIDIA_DRIVER_CAPABILITIES", "utility,video"),
            "libcuda.so.1",
            "NVIDIA_DRIVER_CAPABILITIES=compute,utility",
        ),
        case("driver-stub", Error, init(STUB_LIBRARY), "the stub was loaded", "stubs folder out"),
        case(
            "driver-stub",
            Warning,
            Machine::healthy().set("LD_LIBRARY_PATH", "/cuda/lib64/stubs"),
            "/cuda/lib64/stubs",
            "stubs folder out",
        ),
        case(
            "driver-mismatch",
            Error,
            init(DRIVER_MISMATCH),
            "the kernel module is 580.95.05",
            "reboot",
        ),
        case(
            "driver-mismatch",
            Warning,
            library("/lib/libcuda.so.575.57.08"),
            "libcuda.so.575.57.08",
            "remove the image's own libcuda",
        ),
        case(
            "driver-compat",
            Note,
            library("/usr/local/cuda/compat/libcuda.so.590.1.1"),
            "/compat/",
            "NCCL_CUMEM_HOST_ENABLE=0",
        ),
        case(
            "driver-compat",
            Error,
            library("/usr/local/cuda/compat/libcuda.so.590.1.1")
                .cuda(|cuda| cuda.init = Some(COMPAT_NOT_SUPPORTED)),
            "/compat/",
            "update the driver",
        ),
        case(
            "driver-fabric",
            Error,
            init(NOT_READY),
            "cuInit answered 802",
            "nvidia-fabricmanager",
        ),
        case(
            "driver-too-old",
            Error,
            Machine::healthy().release(21_605, (11, 0)).kernel_driver("450.80.02").cuda(|cuda| {
                cuda.version = Some((11, 0));
                cuda.library = None;
            }),
            "driver 450.80.02, CUDA 11.0",
            "470 or newer",
        )
        .also(&["library-no-capture"]),
        case(
            "library-newer-than-driver",
            Error,
            old("575.57.08"),
            "built with CUDA 13.0; driver 575.57.08 serves CUDA 12.6",
            "driver 580 or newer",
        ),
        case(
            "library-newer-than-driver",
            Error,
            // The driver could not be asked; the table of releases tells.
            {
                let mut machine = Machine::healthy().kernel_driver("575.57.08");
                machine.cuda = None;
                machine
            },
            "the driver is 575.57.08",
            "driver 580 or newer",
        ),
        case(
            "driver-p2p-hang",
            Note,
            old("560.35.03").release(23_007, (12, 6)),
            "driver 560.35.03",
            "570 or newer",
        ),
        case(
            "peer-access",
            Warning,
            Machine::healthy().cuda(|cuda| cuda.out_of_reach = vec![(0, 1), (1, 0)]),
            "device 0 to 1, 1 to 0",
            "nvidia-smi topo",
        ),
    ]
}

fn library_cases() -> Vec<Case> {
    let system = format!("{FOLDER}/libnccl.so.2");
    let gone = || {
        Machine::healthy()
            .without(&format!("{FOLDER}/libnccl.so.2"))
            .without(&format!("{FOLDER}/libnccl.so"))
    };
    let variable =
        |refused| gone().refused("/x/libnccl.so.2", "COLLECTIVES_NCCL_PATH", refused, true);
    let python =
        |version| Machine::healthy().copy(WHEEL, version, (13, 0)).set_path("VIRTUAL_ENV", "/venv");
    let known = |version| Machine::healthy().release(version, (12, 4));
    let alone = |found_by: &str, folder_variable: bool| {
        let machine = gone().copy("/opt/libnccl.so.2", 23_007, (13, 0)).opens(
            "/opt/libnccl.so.2",
            found_by,
            23_007,
        );
        let machine = machine.file("/opt/libnccl.so", "");
        if folder_variable {
            machine.set_path("LD_LIBRARY_PATH", "/opt")
        } else {
            machine.set_path("COLLECTIVES_NCCL_PATH", "/opt/libnccl.so.2")
        }
    };
    vec![
        case(
            "library-not-found",
            Error,
            gone().refused(
                "/libnccl.so.2",
                "dynamic loader",
                "cannot open shared object file",
                false,
            ),
            "dynamic loader: cannot open",
            "install NCCL",
        ),
        case(
            "library-not-found",
            Note,
            gone()
                .refused("/libnccl.so.2", "dynamic loader", "cannot open", false)
                .set("COLLECTIVES_BACKEND", "mock")
                .problem_solved(),
            "dynamic loader",
            "install NCCL",
        ),
        case(
            "library-variable",
            Error,
            variable("no such file"),
            "COLLECTIVES_NCCL_PATH=",
            "unset it so that the library is searched for",
        ),
        case(
            "library-variable",
            Error,
            variable("truncated: 9 bytes, but its headers want 64"),
            "truncated",
            "correct COLLECTIVES_NCCL_PATH",
        ),
        case(
            "library-variable",
            Error,
            variable("built for aarch64, but this process is x86_64"),
            "built for aarch64",
            "correct",
        ),
        case(
            "library-unloadable",
            Error,
            gone().refused(
                "/x/libnccl.so.2",
                "Python packages",
                "version `GLIBC_2.27' not found",
                true,
            ),
            "GLIBC_2.27",
            "install that NCCL again",
        ),
        case(
            "library-unloadable",
            Warning,
            Machine::healthy().nccl(|nccl| {
                nccl.tried = vec![Tried {
                    path: "/x/libnccl.so.2".into(),
                    source: "dynamic loader".into(),
                    refused: "undefined symbol: x".into(),
                    present: true,
                }];
            }),
            "undefined symbol",
            "remove it",
        ),
        case(
            "library-variables-disagree",
            Warning,
            Machine::healthy().set("SGLANG_NCCL_SO_PATH", "/a").set("VLLM_NCCL_SO_PATH", "/b"),
            "SGLANG_NCCL_SO_PATH=/a, VLLM_NCCL_SO_PATH=/b",
            "one file",
        ),
        case("library-shadowed", Warning, python(23_102), "NCCL 2.30.7", "COLLECTIVES_NCCL_PATH="),
        case(
            "library-several",
            Note,
            python(22_809),
            "2 files of 2 releases",
            "set COLLECTIVES_NCCL_PATH on every rank",
        ),
        case(
            "library-mapped-twice",
            Warning,
            Machine::healthy().nccl(|nccl| nccl.mapped.push("/other/libnccl.so.2".into())),
            "/other/libnccl.so.2",
            "have one copy",
        ),
        case(
            "library-preloaded",
            Note,
            Machine::healthy().set("LD_PRELOAD", "/x/libnccl.so.2"),
            "LD_PRELOAD=/x/libnccl.so.2",
            "unset LD_PRELOAD",
        ),
        case(
            "library-preloaded",
            Note,
            Machine::healthy().opens(&system, "already in the process", 23_007),
            "libnccl.so.2",
            "unset LD_PRELOAD",
        ),
        case(
            "library-lacks-functions",
            Warning,
            Machine::healthy().bytes("/usr/local/lib/libnccl.so.2", &library_without("ncclSend")),
            "lacks ncclSend",
            "remove it",
        ),
        case(
            "library-lacks-features",
            Note,
            Machine::healthy().nccl(|nccl| {
                nccl.capability_list =
                    vec![("split".into(), "needs 2.18.1".into()), ("send".into(), "native".into())]
            }),
            "split needs 2.18.1",
            "newer NCCL",
        ),
        case(
            "library-known-issue",
            Warning,
            known(22_105),
            "2.21.5: tensor-parallel serving: deadlock",
            "2.22.3 fixes it",
        ),
        case(
            "library-known-issue",
            Note,
            known(22_809),
            "graph replay across nodes",
            "2.30.4 fixes it",
        ),
        case("library-known-issue", Warning, known(22_707), "RAS thread", "NCCL_RAS_ENABLE=0"),
        case("library-no-capture", Warning, known(20_803), "NCCL 2.8.3", "newer NCCL"),
        case(
            "library-no-capture",
            Warning,
            Machine::healthy().release(23_007, (11, 1)),
            "built with CUDA 11.1",
            "newer NCCL",
        ),
        case(
            "library-needs-variable",
            Note,
            alone("COLLECTIVES_NCCL_PATH", false),
            "COLLECTIVES_NCCL_PATH=",
            "mpirun -x",
        ),
        case(
            "library-needs-variable",
            Note,
            alone("dynamic loader", true),
            "LD_LIBRARY_PATH=",
            "hand LD_LIBRARY_PATH on",
        ),
        case(
            "library-needs-variable",
            Warning,
            alone("COLLECTIVES_NCCL_PATH", false).copy(&system, 22_307, (12, 4)),
            "NCCL 2.30.7 is found through COLLECTIVES_NCCL_PATH=",
            "install the library where the loader looks",
        )
        .also(&["library-several"]),
        case(
            "library-soname-only",
            Note,
            Machine::healthy().without(&format!("{FOLDER}/libnccl.so")),
            "has no libnccl.so beside it",
            "nothing for this program",
        ),
        case(
            "nccl-version-variable",
            Note,
            Machine::healthy().set("NCCL_VERSION", "2.28.3-1"),
            "NCCL_VERSION=2.28.3-1",
            "believe the library",
        ),
    ]
}

fn wheel_cases() -> Vec<Case> {
    // The wheel is the library that is opened.
    let opened = || {
        let machine = Machine::healthy()
            .without(&format!("{FOLDER}/libnccl.so.2"))
            .without(&format!("{FOLDER}/libnccl.so"))
            .copy(WHEEL, 23_007, (13, 0))
            .file(&WHEEL.replace(".so.2", ".so"), "");
        machine.opens(WHEEL, "Python packages", 23_007)
    };
    let size = fs::metadata(opened().path(WHEEL)).expect("a library").len();
    vec![
        case(
            "wheels-overwrite",
            Warning,
            opened().wheel("nvidia-nccl-cu12", "2.30.7", 7).wheel(
                "nvidia-nccl-cu13",
                "2.30.7",
                size,
            ),
            "nvidia-nccl-cu12 2.30.7 and nvidia-nccl-cu13 2.30.7 both write",
            "uninstall all of them",
        ),
        case(
            "wheel-changed",
            Warning,
            opened().wheel("nvidia-nccl-cu13", "2.30.7", size + 1),
            "bytes, and the package brought",
            "--force-reinstall nvidia-nccl-cu13==2.30.7",
        ),
        case(
            "wheel-changed",
            Warning,
            opened().wheel("nvidia-nccl-cu13", "2.28.9", size),
            "is NCCL 2.30.7",
            "--force-reinstall",
        ),
    ]
}

fn limit_cases() -> Vec<Case> {
    // A driver before CUDA 12.6, with which NCCL uses /dev/shm.
    let older =
        || Machine::healthy().release(23_007, (12, 4)).cuda(|cuda| cuda.version = Some((12, 4)));
    let container = |version| Machine::healthy().file("/.dockerenv", "").release(version, (12, 4));
    vec![
        case("shm-missing", Warning, older().without("/dev/shm"), "no /dev/shm", "--shm-size=1g"),
        case(
            "shm-missing",
            Note,
            Machine::healthy().without("/dev/shm"),
            "no /dev/shm",
            "--shm-size=1g",
        ),
        case("shm-locked", Warning, older().locked("/dev/shm"), "may not make files", "chmod 1777"),
        case(
            "shm-small",
            Warning,
            older().shm(64 << 20, 64 << 20).file("/.dockerenv", ""),
            "64 MiB",
            "--shm-size=1g",
        ),
        case(
            "shm-small",
            Warning,
            older().shm(64 << 30, 10 << 20),
            "10 MiB are free",
            "ls /dev/shm/nccl-*",
        ),
        case("shm-small", Note, older().shm(512 << 20, 512 << 20), "512 MiB", "remount,size=1g"),
        case(
            "limit-locked-memory",
            Warning,
            Machine::healthy().infiniband().limit("Max locked memory", "65536"),
            "mlx5_0",
            "memlock",
        ),
        case(
            "limit-open-files",
            Warning,
            Machine::healthy().limit("Max open files", "256"),
            "ulimit -n is 256",
            "nofile",
        ),
        case(
            "limit-stack",
            Warning,
            Machine::healthy().release(22_304, (12, 4)).limit("Max stack size", "unlimited"),
            "NCCL 2.23.4",
            "ulimit -s 8192",
        ),
        case(
            "limit-tasks",
            Warning,
            Machine::healthy().cgroup("pids", "100", "60"),
            "allows 100 threads, 60 are taken",
            "--pids-limit",
        ),
        case(
            "limit-memory",
            Warning,
            Machine::healthy().cgroup("memory", "1073741824", "536870912"),
            "allows 1024 MiB, 512 MiB are taken",
            "memory limit",
        ),
        // What the kernel gives up when asked is not taken.
        case(
            "limit-memory",
            Warning,
            Machine::healthy()
                .cgroup("memory", "1073741824", "1073741824")
                .file("/sys/fs/cgroup/job/memory.stat", "file 9\ninactive_file 805306368\n"),
            "256 MiB are taken",
            "memory limit",
        ),
        case(
            "cumem-host",
            Warning,
            container(22_602).set("NCCL_RAS_ENABLE", "0"),
            "NCCL 2.26.2 in a container",
            "NCCL_CUMEM_HOST_ENABLE=0",
        ),
    ]
}

fn topology_cases() -> Vec<Case> {
    let bridge = "/sys/devices/pci0000:00/0000:00:01.0";
    vec![
        case(
            "p2p-off",
            Warning,
            Machine::healthy().set("NCCL_P2P_DISABLE", "1"),
            "NCCL_P2P_DISABLE=1",
            "unset NCCL_P2P_DISABLE",
        ),
        case(
            "p2p-off",
            Warning,
            Machine::healthy().set("NCCL_P2P_LEVEL", "LOC"),
            "NCCL_P2P_LEVEL=LOC",
            "unset NCCL_P2P_LEVEL",
        ),
        case(
            "shm-off",
            Warning,
            Machine::healthy().set("NCCL_SHM_DISABLE", "1"),
            "NCCL_SHM_DISABLE=1",
            "unset it",
        ),
        case(
            "iommu-translates",
            Warning,
            Machine::healthy().iommu("DMA-FQ"),
            "2 devices: 0000:00:00.0, 0000:01:00.0",
            "iommu=pt",
        ),
        case(
            "acs-redirects",
            Warning,
            Machine::healthy()
                .bytes(&format!("{bridge}/config"), &acs_config(0x1d))
                .link("/sys/bus/pci/devices/0000:00:01.0", bridge),
            "0000:00:01.0",
            "setpci",
        ),
        case(
            "acs-redirects",
            Warning,
            Machine::healthy()
                .file("/proc/cpuinfo", "flags\t\t: fpu hypervisor\n")
                .bytes(&format!("{bridge}/config"), &acs_config(0x1d))
                .link("/sys/bus/pci/devices/0000:00:01.0", bridge),
            "0000:00:01.0",
            "ATS",
        ),
    ]
}

fn network_cases() -> Vec<Case> {
    let set = |name, value| Machine::healthy().set(name, value);
    vec![
        case(
            "socket-ifname",
            Error,
            set("NCCL_SOCKET_IFNAME", "eth9"),
            "none of the running interfaces: eth0, lo",
            "unset it",
        ),
        case(
            "socket-ifname",
            Error,
            set("NCCL_SOCKET_IFNAME", "=eth1").interface("eth1", "down", true),
            "NCCL_SOCKET_IFNAME==eth1",
            "name an interface",
        ),
        case(
            "network-none",
            Error,
            Machine::healthy().interface("eth0", "down", true).interface("lo", "down", false),
            "no network interface is up",
            "ip link set lo up",
        ),
        case(
            "network-local-only",
            Note,
            Machine::healthy().interface("eth0", "down", true).interface("docker0", "up", false),
            "docker0, lo",
            "--network=host",
        ),
        case(
            "network-virtual",
            Note,
            Machine::healthy().interface("tailscale0", "unknown", false),
            "eth0, tailscale0",
            "=eth0",
        ),
        case("net-forced", Error, set("NCCL_NET", "IB"), "NCCL_NET=IB", "--device /dev/infiniband"),
        case(
            "net-forced",
            Warning,
            set("NCCL_NET", "Socket").infiniband(),
            "NCCL_NET=Socket",
            "unset NCCL_NET",
        ),
        case(
            "net-forced",
            Error,
            set("NCCL_NET", "AWS Libfabric"),
            "AWS Libfabric",
            "unset NCCL_NET",
        ),
        case(
            "plugin-missing",
            Warning,
            set("NCCL_NET_PLUGIN", "ofi"),
            "libnccl-net-ofi.so",
            "none",
        ),
        case(
            "plugin-missing",
            Warning,
            set("NCCL_PROFILER_PLUGIN", "/x/libprofiler.so"),
            "/x/libprofiler.so",
            "NCCL_PROFILER_PLUGIN",
        ),
        case(
            "plugin-found",
            Note,
            Machine::healthy().file("/usr/local/lib/libnccl-net.so", ""),
            "libnccl-net.so",
            "NCCL_NET_PLUGIN=none",
        ),
        case(
            "ib-hca",
            Warning,
            set("NCCL_IB_HCA", "=mlx5_9").infiniband(),
            "none of mlx5_0",
            "unset it",
        ),
        case("ib-off", Warning, set("NCCL_IB_DISABLE", "1").infiniband(), "mlx5_0", "unset it"),
    ]
}

fn variable_cases() -> Vec<Case> {
    let set = |name, value| Machine::healthy().set(name, value);
    let conf = |text| Machine::healthy().file("/etc/nccl.conf", text);
    let results = ["variable-changes-results"].as_slice();
    let mut cases = vec![
        case(
            "variable-algorithm",
            Error,
            set("NCCL_ALGO", "^tree;allreduce:rings"),
            "NCCL knows no rings",
            "unset NCCL_ALGO",
        )
        .also(results),
        case(
            "variable-algorithm",
            Warning,
            set("NCCL_PROTO", "Simpel").release(22_307, (12, 4)),
            "Simpel",
            "ll, ll128, simple",
        )
        .also(results),
        case(
            "variable-value",
            Warning,
            set("NCCL_IB_DISABLE", "true"),
            "NCCL_IB_DISABLE=true",
            "plain number",
        ),
        case(
            "variable-value",
            Warning,
            set("NCCL_BUFFSIZE", "8M"),
            "NCCL_BUFFSIZE=8M",
            "plain number",
        )
        .also(results),
        case(
            "variable-value",
            Warning,
            set("NCCL_DEBUG", "VERBOSE"),
            "NCCL_DEBUG=VERBOSE",
            "VERSION, WARN, INFO",
        ),
        case("variable-value", Warning, set("NCCL_P2P_LEVEL", "nvl"), "NCCL_P2P_LEVEL=nvl", "NVL"),
        case(
            "variable-changes-results",
            Note,
            set("NCCL_NVLS_ENABLE", "0"),
            "NCCL_NVLS_ENABLE=0",
            "alike on every rank",
        ),
        case(
            "variable-unknown",
            Warning,
            set("NCCL_SOCKET_IFNMAE", "eth0"),
            "NCCL_SOCKET_IFNMAE=eth0",
            "NCCL_SOCKET_IFNAME?",
        ),
        case(
            "variable-unknown",
            Note,
            set("NCCL_FASTRAK_ENABLE", "1"),
            "NCCL_FASTRAK_ENABLE=1",
            "unset what nothing reads",
        ),
        case(
            "variable-retired",
            Note,
            set("NCCL_TREE_THRESHOLD", "0"),
            "NCCL_TREE_THRESHOLD=0",
            "NCCL_ALGO",
        ),
        case(
            "variable-pytorch",
            Note,
            set("NCCL_BLOCKING_WAIT", "1"),
            "NCCL_BLOCKING_WAIT=1",
            "deadlines",
        ),
        case(
            "conf-file",
            Note,
            conf("# site\nNCCL_DEBUG=WARN\n"),
            "/etc/nccl.conf sets NCCL_DEBUG=WARN",
            "same file on every machine",
        ),
        case(
            "conf-file",
            Note,
            conf("NCCL_DEBUG=WARN\n").set("NCCL_DEBUG", "INFO"),
            "NCCL_DEBUG=WARN (overruled)",
            "overrules",
        ),
        case(
            "conf-file",
            Note,
            Machine::healthy()
                .file("/home/a/.nccl.conf", "NCCL_DEBUG=WARN\n")
                .set("HOME", "/home/a"),
            ".nccl.conf sets NCCL_DEBUG=WARN",
            "same file",
        ),
        case(
            "conf-file",
            Note,
            Machine::healthy()
                .file("/proc/self/status", "Uid:\t7\t7\t7\t7\n")
                .file("/etc/passwd", "a:x:0:0::/home/a:/bin/sh\nb:x:7:7:B:/home/b:/bin/sh\n")
                .file("/home/a/.nccl.conf", "NCCL_DEBUG=INFO\n")
                .file("/home/b/.nccl.conf", "NCCL_DEBUG=WARN\n")
                .set("HOME", "/home/a"),
            "/home/b/.nccl.conf sets NCCL_DEBUG=WARN",
            "same file",
        ),
        case(
            "conf-file-missing",
            Warning,
            set("NCCL_CONF_FILE", "~/nccl.conf"),
            "NCCL_CONF_FILE=~/nccl.conf",
            "whole path",
        ),
        case(
            "conf-file-line",
            Warning,
            conf("NCCL_DEBUG = WARN\n"),
            "NCCL_DEBUG = WARN",
            "NAME=value",
        )
        .also(&["conf-file"]),
        case(
            "conf-file-line",
            Warning,
            conf("NCCL_SOCKET_IFNAME=eth0 # one\n"),
            "# one",
            "NAME=value",
        )
        .also(&["conf-file", "socket-ifname"]),
        case("conf-file-line", Warning, conf("NCCL_DEBUG WARN\n"), "NCCL_DEBUG WARN", "NAME=value"),
        case(
            "conf-file-line",
            Warning,
            conf("NCCL_SHM_DISABLE=0\r\n"),
            "NCCL_SHM_DISABLE=0",
            "NAME=value",
        )
        .also(&["conf-file", "variable-value"]),
        // What a file sets is judged like the environment.
        case(
            "p2p-off",
            Warning,
            conf("NCCL_P2P_DISABLE=1\n"),
            "NCCL_P2P_DISABLE=1 (/etc/nccl.conf)",
            "unset",
        )
        .also(&["conf-file"]),
    ];
    for (name, value) in [
        ("NCCL_COMM_BLOCKING", "0"),
        ("NCCL_COMM_ID", "10.0.0.1:4444"),
        ("NCCL_GRAPH_MIXING_SUPPORT", "0"),
        ("NCCL_GRAPH_STREAM_ORDERING", "0"),
        ("NCCL_IB_GID_INDEX", "3"),
        ("NCCL_IB_TIMEOUT", "0"),
        ("NCCL_LEGACY_CUDA_REGISTER", "1"),
        ("NCCL_MULTI_RANK_GPU_ENABLE", "1"),
    ] {
        cases.push(case("variable-risky", Warning, set(name, value), name, "unset it"));
    }
    cases.push(
        case("variable-risky", Warning, set("NCCL_PROTO", "LL128"), "NCCL_PROTO=LL128", "unset it")
            .also(results),
    );
    cases
}

impl Machine {
    fn problem_solved(mut self) -> Self {
        self.selected = Outcome::Answered(SelectedReport::default());
        self
    }
}

fn library_without(name: &'static str) -> Vec<u8> {
    library(None, &move |symbol| symbol != name)
}

/// The configuration space of a bridge with Access Control Services behind another capability.
fn acs_config(control: u16) -> Vec<u8> {
    let mut config = vec![0; 0x1000];
    let word = |config: &mut Vec<u8>, at: usize, value: u16| {
        config[at..at + 2].copy_from_slice(&value.to_le_bytes());
    };
    word(&mut config, 0x100, 0x0001);
    word(&mut config, 0x102, (0x148 << 4) | 1);
    word(&mut config, 0x148, 0x000d);
    word(&mut config, 0x14a, 1);
    word(&mut config, 0x14e, control);
    config
}

#[test]
fn a_healthy_machine_yields_no_finding() {
    let findings = Machine::healthy().findings();
    assert!(findings.is_empty(), "{findings:#?}");
    // The mock, asked for, needs nothing of what GPUs need.
    let mock = Machine::laptop()
        .set("COLLECTIVES_BACKEND", "mock")
        .shm(64 << 20, 0)
        .set("NCCL_P2P_DISABLE", "1")
        .set("NCCL_SOCKET_IFNAME", "eth9");
    assert!(mock.findings().is_empty(), "{:#?}", mock.findings());
}

#[test]
fn each_check_finds_what_it_looks_for_and_no_other_does() {
    let wrong: Vec<String> = cases().iter().filter_map(|case| case.check().err()).collect();
    assert!(wrong.is_empty(), "{} cases:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn each_check_has_a_case_a_page_and_links_that_are_links() {
    let page = include_str!("../../../../docs/doctor.md");
    let tried: BTreeSet<&str> = cases().iter().map(|case| case.id).collect();
    let mut ids = BTreeSet::new();
    for check in checks::all() {
        assert!(ids.insert(check.id), "{} is there twice", check.id);
        assert!(tried.contains(check.id), "{} has no case", check.id);
        assert!(page.contains(&format!("`{}`", check.id)), "docs/doctor.md has no {}", check.id);
        assert!(!check.about.is_empty() && !check.about.ends_with('.'), "{}", check.id);
        assert!(check.links.iter().all(|link| link.starts_with("https://")), "{}", check.id);
    }
    let unknown: Vec<&&str> = tried.difference(&ids).collect();
    assert!(unknown.is_empty(), "{unknown:?} are no checks");
}

#[test]
fn trouble_of_nccl_is_a_note_where_nccl_is_not_selected() {
    let machine = Machine::healthy()
        .set("COLLECTIVES_BACKEND", "mock")
        .kernel_driver("575.57.08")
        .cuda(|cuda| {
            cuda.version = Some((12, 9));
            cuda.library = Some(Path::new(FOLDER).join("libcuda.so.575.57.08"));
        });
    let findings = machine.findings();
    let severities: Vec<_> =
        findings.iter().map(|finding| (finding.id, finding.severity)).collect();
    assert_eq!(severities, [("library-newer-than-driver", Note)]);
}

#[test]
fn trouble_of_devices_is_a_note_where_the_mock_was_asked_for() {
    for (name, value) in [("CUDA_VISIBLE_DEVICES", "0,0"), ("CUDA_VISIBLE_DEVICES", "-1")] {
        let machine = Machine::healthy().set("COLLECTIVES_BACKEND", "mock").set(name, value);
        let findings = machine.findings();
        assert_eq!(findings.len(), 1, "{findings:#?}");
        assert_eq!(findings[0].severity, Note, "{findings:#?}");
    }
}

#[test]
fn the_worst_comes_first_and_the_summary_counts() {
    let machine = Machine::healthy()
        .set("NCCL_NVLS_ENABLE", "0")
        .set("NCCL_P2P_DISABLE", "1")
        .set("NCCL_SOCKET_IFNAME", "eth9");
    let findings = machine.findings();
    let severities: Vec<_> = findings.iter().map(|finding| finding.severity).collect();
    assert_eq!(severities, [Error, Warning, Note]);

    let report = Report::new(machine.facts(), findings);
    let text = report.text(80).expect("text");
    assert!(
        text.lines().all(|line| line.chars().count() <= 80 || line.contains("https://")),
        "{text}"
    );
    let places: Vec<usize> =
        ["error: socket-ifname", "warning: p2p-off", "note: variable-changes-results"]
            .iter()
            .map(|words| text.find(words).unwrap_or_else(|| panic!("no {words} in {text}")))
            .collect();
    assert!(places.is_sorted(), "{text}");
    assert!(text.ends_with("checks: 1 error, 1 warning, 1 note; see Findings above\n"), "{text}");
    assert!(text.contains("cannot work"), "{text}");
}

#[test]
fn programs_read_the_same_findings_and_the_state_of_each_check() {
    let machine = Machine::healthy().set("NCCL_P2P_DISABLE", "1");
    let report = Report::new(machine.facts(), machine.findings());
    let json = serde_json::to_value(&report).expect("a report is data");
    assert_eq!(json["works"], true);
    assert_eq!(json["findings"][0]["id"], "p2p-off");
    assert_eq!(json["findings"][0]["severity"], "warning");
    for field in ["found", "cause", "remedy", "links"] {
        assert!(!json["findings"][0][field].is_null(), "{field}: {json}");
    }
    assert_eq!(json["checks"]["p2p-off"], "warning");
    assert_eq!(json["checks"]["shm-off"], "ok");
    assert!(json["nccl"].get("capability_list").is_none());
}

#[test]
fn a_known_issue_links_its_own_thread_and_those_that_are_avoided_stay_out() {
    let machine = Machine::healthy().release(22_105, (12, 4));
    let links: Vec<_> = machine.findings().into_iter().map(|finding| finding.links).collect();
    assert_eq!(
        links,
        [["https://github.com/NVIDIA/nccl"], ["https://github.com/sgl-project/sglang/issues/7602"]]
    );
    // The leak of a group level is in every release since 2.23.4; our joins ask the driver first.
    let guarded = Machine::healthy().release(22_703, (12, 4)).set("NCCL_RAS_ENABLE", "0");
    assert!(guarded.findings().is_empty(), "{:#?}", guarded.findings());
}

#[test]
fn a_model_is_held_against_its_owners_only() {
    let issue = |name: &str| {
        let machine = Machine::healthy().release(22_602, (12, 4)).set("NCCL_RAS_ENABLE", "0");
        let information = format!("Model: \t\t {name}\nDevice Minor: \t 0\n");
        let path = "/proc/driver/nvidia/gpus/0000:00:00.0/information";
        machine
            .file(path, &information)
            .findings()
            .iter()
            .any(|finding| finding.id == "library-known-issue")
    };
    assert!(issue("NVIDIA RTX PRO 6000 Blackwell"));
    assert!(!issue("NVIDIA H200"));
}

#[test]
fn access_control_is_found_behind_other_capabilities_and_chains_end() {
    assert!(acs_redirects(&acs_config(0x1d)));
    assert!(!acs_redirects(&acs_config(0)));
    // What users who are not root may read ends before the extended capabilities.
    assert!(!acs_redirects(&acs_config(0x1d)[..64]));
    let mut endless = acs_config(0x1d);
    endless[0x102..0x104].copy_from_slice(&(0x100_u16 << 4).to_le_bytes());
    assert!(!acs_redirects(&endless));
}
