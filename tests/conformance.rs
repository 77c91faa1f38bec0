//! The conformance suite on every backend: always on the mock, and on NCCL and RCCL over the mock's C
//! ABI; on the real libraries where `COLLECTIVES_TEST_NCCL` or `COLLECTIVES_TEST_RCCL` says so.
//!
//! For the vendors' backends over the mock this program runs itself again where the loader finds the
//! library of `collectives-mock-abi` in place of CUDA and HIP, so that cudarc, the loader and the
//! backends are those of a machine with GPUs. It does so once for each release that the library stands
//! for, as one process can have but one. What the variables ask for instead needs real devices.
//!
//! ```console
//! $ cargo test --test conformance                                # the mock, and what stands on it
//! $ cargo test --test conformance -- '4 ranks] group::'          # some of it
//! $ COLLECTIVES_TEST_NCCL=default cargo test --test conformance  # and NCCL, as it is found
//! $ COLLECTIVES_TEST_NCCL=/opt/a/libnccl.so.2:/opt/b/libnccl.so.2 cargo test --test conformance
//! $ COLLECTIVES_RCCL_PATH=/opt/rocm/lib/librccl.so.1 COLLECTIVES_TEST_RCCL=default \
//!     cargo test --test conformance -- rccl
//! ```
//!
//! There is one rank for each GPU, as a thread and as a process. NCCL 2.30.3 and later can be told to
//! let ranks share one. Here `COLLECTIVES_TEST_RANKS` says up to how many processes do; threads cannot,
//! because one's copy from the device holds the context that the other's kernel must be launched in:
//!
//! ```console
//! $ NCCL_MULTI_RANK_GPU_ENABLE=1 COLLECTIVES_TEST_RANKS=4 COLLECTIVES_TEST_NCCL=default \
//!     cargo test --test conformance -- nccl
//! ```
//!
//! Processes can take themselves for ranks of several hosts: `COLLECTIVES_TEST_HOSTS` says of how many,
//! in turns. Then NCCL goes through the network, and every release lets those on different hosts share a
//! GPU:
//!
//! ```console
//! $ NCCL_NET=Socket COLLECTIVES_TEST_HOSTS=2 COLLECTIVES_TEST_RANKS=2 COLLECTIVES_TEST_NCCL=default \
//!     cargo test --test conformance -- 'processes on 2 hosts'
//! ```

use std::{
    env,
    ffi::{CStr, c_void},
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
    ptr,
};

use collectives::AnyBackend;
use collectives_backend_mock::{Accumulation, Mock, MockConfig, Ranks, Schedule};
use collectives_backend_nccl::Cuda;
use collectives_backend_rccl::Rocm;
use collectives_conformance::{Harness, KnownFault, trials};
use collectives_core::{Backend, Error, ErrorKind, Result, Version};
use collectives_nccl_abi::Table;
use collectives_nccl_family::{Library, Vendor};
use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let asked = ASKED.map(|variable| env::var(variable).ok());
    #[cfg(target_os = "linux")]
    if asked.iter().all(Option::is_none) && env::var_os(MOCK_ABI).is_none() {
        return run_on_the_mock();
    }
    let all = match env::var(RELEASE) {
        Ok(release) => rccl_over_mock(&release),
        Err(_) => {
            let [nccl, rccl] = asked;
            let mut all = on_mock();
            match nccl {
                Some(libraries) => all.extend(on_real::<Cuda>(&libraries)),
                None => {
                    all.push(not_asked("nccl", "set COLLECTIVES_TEST_NCCL", "libnccl"));
                    all.extend(nccl_over_mock());
                }
            }
            match rccl {
                Some(libraries) => all.extend(on_real::<Rocm>(&libraries)),
                None => all.push(not_asked("rccl", "set COLLECTIVES_TEST_RCCL", "librccl")),
            }
            all
        }
    };
    libtest_mimic::run(&arguments, all).exit_code()
}

/// The trials of the mock itself.
fn on_mock() -> Vec<Trial> {
    let wide = MockConfig::new().with_accumulation(Accumulation::F32);
    let mut all = trials(OnMock::new("mock", MockConfig::new(), &[1, 2, 3, 4, 8]));
    all.extend(trials(OnMock::new("mock f32", wide, &[1, 3])));
    // Correct programs have the same results whatever the schedule, and set off no guard.
    for (name, config) in [
        ("mock late", MockConfig::new().with_schedule(Schedule::Late)),
        ("mock random(1)", MockConfig::new().with_schedule(Schedule::Random(1))),
        ("mock strict", MockConfig::strict()),
        ("mock strict late", MockConfig::strict().with_schedule(Schedule::Late)),
        ("mock adversarial(2)", MockConfig::adversarial(2)),
    ] {
        all.extend(trials(OnMock::new(name, config, &[2, 3])));
    }
    // The same, with each rank in a process of its own.
    #[cfg(target_os = "linux")]
    for (name, config, worlds) in [
        ("mock processes", MockConfig::new(), &[1, 2, 3, 4][..]),
        ("mock processes late", MockConfig::new().with_schedule(Schedule::Late), &[2]),
        ("mock processes strict", MockConfig::strict(), &[2]),
    ] {
        let config = config.with_ranks(Ranks::Processes);
        all.extend(trials(OnMock::new(name, config, worlds).processes()));
    }
    all.extend(trials(OnAny {
        name: "any(mock)",
        backend: || AnyBackend::Mock(Mock::new(MockConfig::new())),
        checks_ownership: true,
    }));
    all
}

/// A fresh mock for every world.
struct OnMock {
    name: &'static str,
    config: MockConfig,
    worlds: &'static [usize],
    processes: bool,
}

impl OnMock {
    const fn new(name: &'static str, config: MockConfig, worlds: &'static [usize]) -> Self {
        Self { name, config, worlds, processes: false }
    }

    /// With each rank in a process of its own.
    fn processes(self) -> Self {
        Self { processes: true, ..self }
    }
}

impl Harness for OnMock {
    type Backend = Mock;

    fn name(&self) -> String {
        self.name.into()
    }

    fn backend(&self) -> Mock {
        Mock::new(self.config.clone())
    }

    fn worlds(&self) -> Vec<usize> {
        self.worlds.to_vec()
    }

    fn processes(&self) -> bool {
        self.processes
    }

    fn checks_ownership(&self) -> bool {
        true
    }
}

/// A backend behind the facade's dispatch, in one world: that nothing is lost on the way.
struct OnAny<F> {
    name: &'static str,
    backend: F,
    checks_ownership: bool,
}

impl<F: Fn() -> AnyBackend + Send + Sync + 'static> Harness for OnAny<F> {
    type Backend = AnyBackend;

    fn name(&self) -> String {
        self.name.into()
    }

    fn backend(&self) -> AnyBackend {
        (self.backend)()
    }

    fn worlds(&self) -> Vec<usize> {
        vec![2]
    }

    fn checks_ownership(&self) -> bool {
        self.checks_ownership
    }
}

/// One vendor's library, on the devices that are there.
struct OnLibrary<V: Vendor> {
    name: String,
    library: Library<V>,
    worlds: Vec<usize>,
    /// Ranks beyond these share them.
    devices: usize,
    /// Of how many hosts the ranks take themselves to be, if not of this one.
    hosts: Option<usize>,
    processes: bool,
    /// Whether it is the vendor's, not the mock's in its place.
    real: bool,
}

impl<V: Vendor> Harness for OnLibrary<V> {
    type Backend = Library<V>;

    fn name(&self) -> String {
        self.name.clone()
    }

    fn backend(&self) -> Library<V> {
        self.library.clone()
    }

    fn worlds(&self) -> Vec<usize> {
        self.worlds.clone()
    }

    fn devices(&self, size: usize) -> Vec<usize> {
        (0..size).map(|rank| rank % self.devices).collect()
    }

    fn processes(&self) -> bool {
        self.processes
    }

    fn environment(&self, rank: usize) -> Vec<(&'static str, String)> {
        let host = self.hosts.map(|hosts| format!("host {}", rank % hosts));
        host.map(|host| ("NCCL_HOSTID", host)).into_iter().collect()
    }

    fn serial(&self) -> bool {
        true
    }

    /// NCCL's kernel for one rank has no fp8; `nccl-family` refuses it by name, also to RCCL.
    fn known_faults(&self) -> Vec<KnownFault> {
        let cases = [
            "all_reduce::fp8_can_be_scaled",
            "reduce::fp8_can_be_scaled",
            "reduce_scatter::fp8_can_be_scaled",
        ];
        let fault = |case| KnownFault {
            case,
            ranks: 1..=1,
            since: Some(Version::new(2, 24, 3)),
            fixed: None,
            message: "one rank",
            link: "https://github.com/NVIDIA/nccl/blob/master/src/device/onerank.cu",
        };
        let alone = cases.map(fault);
        // Through the network, collectives and messages do not go together in these releases.
        let mixed = self.hosts.into_iter().flat_map(|_| MIXED_GROUPS).map(|case| KnownFault {
            case,
            ranks: 2..=8,
            since: Some(Version::new(2, 17, 1)),
            fixed: Some(Version::new(2, 23, 4)),
            message: "CUDA_ERROR_",
            link: "https://github.com/NVIDIA/nccl",
        });
        alone.into_iter().chain(mixed).collect()
    }

    fn checks_ownership(&self) -> bool {
        checks_pointers()
    }

    fn may_lack(&self) -> bool {
        self.real
    }
}

/// Whether the vendors' backends were told to check every pointer.
fn checks_pointers() -> bool {
    env::var("COLLECTIVES_CHECK").is_ok_and(|check| check == "pointers")
}

/// The trials of the real libraries that were asked for, one that fails where a library cannot be
/// used.
fn on_real<V: Vendor>(libraries: &str) -> Vec<Trial> {
    let paths = libraries.split(':').filter(|path| !path.is_empty());
    paths
        .flat_map(|path| match instances::<V>(path) {
            Ok(instances) => instances.into_iter().flat_map(trials).collect(),
            Err(error) => unusable::<V>(path, error),
        })
        .collect()
}

/// A real library with its ranks as processes, as many as `COLLECTIVES_TEST_RANKS` says, and as
/// threads, one for each device. In this order, as a process that is a rank comes to its own harness
/// before another has opened a device.
fn instances<V: Vendor>(path: &str) -> Result<[OnLibrary<V>; 2]> {
    let library = if path == "default" { Library::load() } else { Library::load_from(path) }?;
    let devices = library.device_count()?;
    let (ranks, hosts) = (number(RANKS)?.unwrap_or(devices), number(HOSTS)?);
    let name = format!("{} {}", kind::<V>(), library.info().version);
    let on_hosts = hosts.map_or_else(String::new, |hosts| format!(" on {hosts} hosts"));
    let instance = |name: String, most: usize, processes| OnLibrary {
        name,
        library: library.clone(),
        worlds: [1, 2, 3, 4, 8].into_iter().filter(|&size| size <= most).collect(),
        devices,
        hosts: hosts.filter(|_| processes),
        processes,
        real: true,
    };
    Ok([
        instance(format!("{name}, processes{on_hosts}"), ranks, true),
        instance(name.clone(), devices, false),
    ])
}

/// A variable that is a number, if it is set.
fn number(variable: &str) -> Result<Option<usize>> {
    let Ok(text) = env::var(variable) else { return Ok(None) };
    let number = text.parse().ok().filter(|&number| number > 0);
    let wrong = format!("{variable} is '{text}', want a number from 1 on");
    number.map(Some).ok_or_else(|| Error::new(ErrorKind::InvalidArgument, wrong))
}

/// The trials of the NCCL backend and cudarc over the library that stands for NCCL and CUDA.
fn nccl_over_mock() -> Vec<Trial> {
    let Some(folder) = env::var_os(MOCK_ABI) else { return Vec::new() };
    let library = Library::<Cuda>::load_from(Path::new(&folder).join("libnccl.so.2"));
    over_mock("nccl over mock-abi", library, &[1, 2, 3, 4, 8], &[2, 4])
}

/// The trials of the RCCL backend over the library that stands for one release of RCCL, and for HIP.
///
/// It has every function of the newest release, so those that this one lacks are hidden. Once more it
/// is opened as users open it, with all functions, behind the facade.
fn rccl_over_mock(release: &str) -> Vec<Trial> {
    let Some(folder) = env::var_os(MOCK_ABI) else { return Vec::new() };
    let path = Path::new(&folder).join("librccl.so.1");
    let exports = EXPORTS.iter().find(|(name, _)| *name == release).map(|(_, list)| *list);
    let hidden = exports.ok_or_else(|| Error::new(ErrorKind::InvalidArgument, release.to_owned()));
    let hidden = hidden.and_then(|exports| with_exports(&path, exports));
    let name = release.replace("rccl-", "rccl ") + " over mock-abi";
    let mut all = over_mock::<Rocm>(&name, hidden, &[1, 2, 3, 4], &[1, 2, 4]);
    if release == NEWEST {
        match Library::<Rocm>::load_from(&path) {
            Ok(rccl) => all.extend(trials(OnAny {
                name: "any(rccl) over mock-abi",
                backend: move || AnyBackend::Rccl(rccl.clone()),
                checks_ownership: checks_pointers(),
            })),
            Err(error) => all.extend(unusable::<Rocm>("mock-abi", error)),
        }
    }
    all
}

/// The library at `path` as far as it exports these names.
fn with_exports<V: Vendor>(path: &Path, exports: &str) -> Result<Library<V>> {
    // SAFETY: the mock's library, which runs nothing when it is opened.
    let library = unsafe { libloading::Library::new(path) }
        .map_err(|error| Error::new(ErrorKind::Library, error.to_string()))?;
    // Open until the process ends, like every library behind a table.
    let library: &'static libloading::Library = Box::leak(Box::new(library));
    let find = |name: &CStr| -> *const c_void {
        if !exports.lines().any(|export| export.as_bytes() == name.to_bytes()) {
            return ptr::null();
        }
        // SAFETY: only looked for here; the table has the types of `nccl.h`.
        let found = unsafe { library.get::<*const c_void>(name.to_bytes_with_nul()) };
        found.map_or(ptr::null(), |symbol| *symbol)
    };
    // SAFETY: what is found are the functions of these names, which the library has with the types of
    // `nccl.h`: its own compiler checked that.
    let table = unsafe { Table::fill(find) }
        .map_err(|missing| Error::new(ErrorKind::Library, missing.to_string()))?;
    // SAFETY: as above.
    unsafe { Library::from_table(table) }
}

/// The trials of a library of the mock, with ranks as threads and as processes.
fn over_mock<V: Vendor>(
    name: &str,
    library: Result<Library<V>>,
    threads: &[usize],
    processes: &[usize],
) -> Vec<Trial> {
    let library = match library {
        Ok(library) => library,
        Err(error) => return unusable::<V>("mock-abi", error),
    };
    let instance = |name: String, worlds: &[usize], processes| {
        let (library, worlds) = (library.clone(), worlds.into());
        trials(OnLibrary { name, library, worlds, devices: 8, hosts: None, processes, real: false })
    };
    let mut all = instance(name.to_owned(), threads, false);
    all.extend(instance(format!("{name}, processes"), processes, true));
    all
}

/// One trial, which is not run and says what would make it.
fn not_asked(kind: &str, what: &str, library: &str) -> Trial {
    let text = format!("not run: {what} to 'default' or to paths of {library}");
    let reason = text.clone();
    let skipped = Trial::test(text, move || Err(Failed::from(reason)));
    skipped.with_kind(kind).with_ignored_flag(true)
}

/// One trial, which fails: the library was asked for.
fn unusable<V: Vendor>(path: &str, error: Error) -> Vec<Trial> {
    let name = format!("{path} can be used");
    vec![Trial::test(name, move || Err(Failed::from(error))).with_kind(kind::<V>())]
}

/// `nccl` or `rccl`.
fn kind<V: Vendor>() -> String {
    V::ABI.flavour.to_string().to_lowercase()
}

/// Runs this program again, once for each release that it stands for, with the library of
/// `collectives-mock-abi`, which lies beside it, in place of CUDA and HIP.
#[cfg(target_os = "linux")]
fn run_on_the_mock() -> ExitCode {
    let run = |release: Option<&str>| {
        let folder = install()?;
        let mut again = std::process::Command::new(env::current_exe()?);
        again.args(env::args_os().skip(1)).env(MOCK_ABI, &folder).env("LD_LIBRARY_PATH", &folder);
        for own in HIDDEN {
            again.env_remove(own);
        }
        if let Some(release) = release {
            again.env(RELEASE, release).env("COLLECTIVES_MOCK_VERSION", release);
        }
        if release == Some(NEWEST) {
            again.env("COLLECTIVES_CHECK", "pointers");
        }
        again.status()
    };
    let releases = EXPORTS.iter().map(|(release, _)| Some(*release));
    let mut code = ExitCode::SUCCESS;
    for release in [None].into_iter().chain(releases) {
        match run(release) {
            Ok(status) if status.success() => {}
            Ok(status) => {
                eprintln!("{}: {status}", release.unwrap_or("the mock, and NCCL over it"));
                code = ExitCode::FAILURE;
            }
            Err(error) => {
                eprintln!("this program cannot be started again: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    code
}

/// Links the library under the names by which it is looked for.
#[cfg(target_os = "linux")]
fn install() -> io::Result<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mock-abi");
    fs::create_dir_all(&folder)?;
    let library = env::current_exe()?.with_file_name("libcollectives_mock_abi.so");
    for name in ["libamdhip64.so.7", "libcuda.so.1", "libnccl.so.2", "librccl.so.1"] {
        // An earlier run may have left it.
        match std::os::unix::fs::symlink(&library, folder.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(folder)
}

/// The releases of RCCL that the mock stands for, as it calls them, and what theirs exports.
const EXPORTS: [(&str, &str); 2] = [
    (NEWEST, include_str!("../crates/nccl-abi/tests/symbols/rccl-2.27.7.txt")),
    ("rccl-2.13.4", include_str!("../crates/nccl-abi/tests/symbols/rccl-2.13.4.txt")),
];
/// The one that checks pointers, too, and runs behind the facade.
const NEWEST: &str = "rccl-2.27.7";

/// Cases with groups of collectives and messages.
const MIXED_GROUPS: &[&str] = &[
    "group::a_dropped_group_of_two_communicators_launches_nothing",
    "group::a_failing_closure_launches_nothing",
    "group::a_refusal_in_an_inner_group_drops_the_outer",
    "group::a_simulated_group_launches_nothing",
    "group::an_empty_group_does_nothing",
    "group::an_end_without_a_start_is_refused",
    "group::an_ignored_refusal_launches_nothing",
    "group::an_unwinding_closure_launches_nothing",
    "group::composites_of_a_dropped_group_launch_nothing",
    "group::different_operations_start_together",
    "group::nested_groups_start_at_the_outermost_end",
    "group::raw_calls_make_a_group",
    "group::the_first_refusal_is_returned",
    "group::two_communicators_share_a_group",
];

/// Which real libraries are asked for.
const ASKED: [&str; 2] = ["COLLECTIVES_TEST_NCCL", "COLLECTIVES_TEST_RCCL"];
/// Up to how many ranks real libraries have in processes; without it, one for each device.
const RANKS: &str = "COLLECTIVES_TEST_RANKS";
/// Of how many hosts those processes take themselves to be; without it, of the one they are on.
const HOSTS: &str = "COLLECTIVES_TEST_HOSTS";
/// Where the library lies that stands for NCCL and CUDA, RCCL and HIP.
const MOCK_ABI: &str = "COLLECTIVES_TEST_MOCK_ABI";
/// Which release of RCCL it stands for in this process, if any.
const RELEASE: &str = "COLLECTIVES_TEST_RCCL_RELEASE";
/// What users set, and the mock would heed.
const HIDDEN: [&str; 6] = [
    "CUDA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "COLLECTIVES_HIP_PATH",
    "COLLECTIVES_MOCK_DEVICES",
    "COLLECTIVES_MOCK_VERSION",
];
