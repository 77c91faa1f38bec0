//! The conformance suite on every backend: always on the mock and on NCCL over the mock's C ABI, and
//! on NCCL itself where `COLLECTIVES_TEST_NCCL` says so.
//!
//! For NCCL over the mock this program runs itself again where the loader finds the library of
//! `collectives-mock-abi` in place of CUDA, so that cudarc, the loader and the NCCL backend are those
//! of a machine with GPUs. What `COLLECTIVES_TEST_NCCL` asks for instead needs the real CUDA.
//!
//! ```console
//! $ cargo test --test conformance                                # the mock
//! $ cargo test --test conformance -- '4 ranks] group::'          # some of it
//! $ COLLECTIVES_TEST_NCCL=default cargo test --test conformance  # and NCCL, as it is found
//! $ COLLECTIVES_TEST_NCCL=/opt/a/libnccl.so.2:/opt/b/libnccl.so.2 cargo test --test conformance
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

mod mock_abi;

use std::{env, process::ExitCode};

use collectives::AnyBackend;
use collectives_backend_mock::{Accumulation, Mock, MockConfig, Ranks, Schedule};
use collectives_backend_nccl::Nccl;
use collectives_conformance::{Harness, KnownFault, trials};
use collectives_core::{Backend, Error, ErrorKind, Version};
use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    #[cfg(target_os = "linux")]
    if env::var_os(ASKED).is_none() && mock_abi::folder().is_none() {
        let error = mock_abi::run_again([]);
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
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
    all.extend(trials(OnAny));
    match env::var(ASKED) {
        Ok(libraries) => {
            all.extend(libraries.split(':').filter(|path| !path.is_empty()).flat_map(nccl));
        }
        Err(_) => {
            let text = "not run: set COLLECTIVES_TEST_NCCL to 'default' or to paths of libnccl";
            let skipped = Trial::test(text, move || Err(Failed::from(text)));
            all.push(skipped.with_kind("nccl").with_ignored_flag(true));
            all.extend(nccl_over_mock());
        }
    }
    libtest_mimic::run(&arguments, all).exit_code()
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

/// The mock behind the facade's dispatch, in one world: that nothing is lost on the way.
struct OnAny;

impl Harness for OnAny {
    type Backend = AnyBackend;

    fn name(&self) -> String {
        "any(mock)".into()
    }

    fn backend(&self) -> AnyBackend {
        AnyBackend::Mock(Mock::new(MockConfig::new()))
    }

    fn worlds(&self) -> Vec<usize> {
        vec![2]
    }

    fn checks_ownership(&self) -> bool {
        true
    }
}

/// One NCCL library, on the devices that are there.
struct OnNccl {
    name: String,
    nccl: Nccl,
    worlds: Vec<usize>,
    /// Ranks beyond these share them.
    devices: usize,
    processes: bool,
}

impl OnNccl {
    /// A library, with a rank for each device.
    fn new(nccl: Nccl) -> Result<Self, Error> {
        let devices = nccl.device_count()?;
        let name = format!("nccl {}", nccl.info().version);
        Ok(Self { name, nccl, worlds: worlds(devices), devices, processes: false })
    }

    /// The same, with each rank in a process of its own, and as many as `COLLECTIVES_TEST_RANKS` says.
    fn in_processes(&self) -> Result<Self, Error> {
        let ranks = match env::var(RANKS) {
            Ok(ranks) => ranks.parse().map_err(|_| {
                Error::new(ErrorKind::InvalidArgument, format!("{RANKS} is '{ranks}', no number"))
            })?,
            Err(_) => self.devices,
        };
        let (name, nccl) = (format!("{}, processes", self.name), self.nccl.clone());
        Ok(Self { name, nccl, worlds: worlds(ranks), devices: self.devices, processes: true })
    }
}

/// The worlds of at most so many ranks.
fn worlds(most: usize) -> Vec<usize> {
    [1, 2, 3, 4, 8].into_iter().filter(|&size| size <= most).collect()
}

impl Harness for OnNccl {
    type Backend = Nccl;

    fn name(&self) -> String {
        self.name.clone()
    }

    fn backend(&self) -> Nccl {
        self.nccl.clone()
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

    fn serial(&self) -> bool {
        true
    }

    /// NCCL's kernel for one rank has no fp8; `nccl-family` refuses it by name.
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
        cases.map(fault).into()
    }

    fn checks_ownership(&self) -> bool {
        std::env::var("COLLECTIVES_CHECK").is_ok_and(|check| check == "pointers")
    }
}

/// The trials of one library; one that fails where it was asked for and cannot be used.
fn nccl(path: &str) -> Vec<Trial> {
    let loaded = if path == "default" { Nccl::load() } else { Nccl::load_from(path) };
    let instances = loaded.and_then(OnNccl::new).and_then(|threads| {
        let processes = threads.in_processes()?;
        Ok([threads, processes])
    });
    instances.map_or_else(
        |error| unusable(path, error),
        |instances| instances.into_iter().flat_map(trials).collect(),
    )
}

/// The trials of the NCCL backend and cudarc over the library that stands for NCCL and CUDA.
fn nccl_over_mock() -> Vec<Trial> {
    let Some(folder) = mock_abi::folder() else { return Vec::new() };
    let path = folder.join("libnccl.so.2");
    let instance = |name: &str, worlds: &[usize], processes| {
        let nccl = Nccl::load_from(&path)?;
        Ok(OnNccl { name: name.into(), nccl, worlds: worlds.into(), devices: 8, processes })
    };
    let instances: [Result<OnNccl, Error>; 2] = [
        instance("nccl over mock-abi", &[1, 2, 3], false),
        instance("nccl over mock-abi, processes", &[2], true),
    ];
    let trials = |instance: Result<_, Error>| {
        instance.map_or_else(|error| unusable("mock-abi", error), trials)
    };
    instances.into_iter().flat_map(trials).collect()
}

/// One trial, which fails: the library was asked for.
fn unusable(path: &str, error: Error) -> Vec<Trial> {
    let name = format!("{path} can be used");
    vec![Trial::test(name, move || Err(Failed::from(error))).with_kind("nccl")]
}

/// Which real libraries are asked for.
const ASKED: &str = "COLLECTIVES_TEST_NCCL";
/// Up to how many ranks real libraries have in processes; without it, one for each device.
const RANKS: &str = "COLLECTIVES_TEST_RANKS";
