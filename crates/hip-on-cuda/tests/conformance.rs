//! The conformance suite on the RCCL backend over the shim, laid out as `scripts/hip-on-cuda` does it.
//!
//! On GPUs, `COLLECTIVES_TEST_RCCL` names the `librccl.so.1` that the script made of NVIDIA's NCCL.
//! Without it a library of the mock stands for that: the same names in it as in NCCL 2.28.9, and
//! none of HIP, which the backend then has to find by the name `libamdhip64.so.7`.

use std::{
    collections::BTreeSet,
    env, fs, io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode, id},
};

use collectives_backend_rccl::Rccl;
use collectives_conformance::{Harness, KnownFault, trials};
use collectives_core::{Backend as _, Error, ErrorKind, Version};
use libtest_mimic::{Arguments, Failed, Trial};
use object::{Object as _, ObjectSection as _};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let Some(path) = env::var_os(LIBRARY) else {
        eprintln!("{}", run_on_the_mock());
        return ExitCode::FAILURE;
    };
    let instances = OnRccl::both(Path::new(&path)).map_or_else(
        |error| vec![Trial::test("the library can be used", || Err(Failed::from(error)))],
        |instances| instances.into_iter().flat_map(trials).chain([the_shim_was_used()]).collect(),
    );
    libtest_mimic::run(&arguments, instances).exit_code()
}

/// That HIP's functions were not found in the library itself, or elsewhere.
fn the_shim_was_used() -> Trial {
    Trial::test("HIP is the shim beside the library", || {
        let library = env::var_os(LIBRARY).ok_or("it is set")?;
        let shim = Path::new(&library).with_file_name("libamdhip64.so.7").canonicalize()?;
        let shim = shim.to_string_lossy();
        let used =
            fs::read_to_string("/proc/self/maps")?.lines().any(|line| line.ends_with(&*shim));
        if used { Ok(()) } else { Err(format!("{shim} is not open").into()) }
    })
}

/// The `librccl.so.1` to test.
const LIBRARY: &str = "COLLECTIVES_TEST_RCCL";

/// Up to how many ranks there are as processes, some of which share a device; without it, one for
/// each device. Needs NCCL 2.30.3 and `NCCL_MULTI_RANK_GPU_ENABLE=1`.
const RANKS: &str = "COLLECTIVES_TEST_RANKS";

/// The release of NCCL that the mock stands for, where it stands for one.
const MOCK: &str = "COLLECTIVES_MOCK_VERSION";

/// NCCL as RCCL, with ranks as threads or as processes.
struct OnRccl {
    name: String,
    rccl: Rccl,
    worlds: Vec<usize>,
    devices: usize,
    processes: bool,
}

impl OnRccl {
    /// One of each kind. A process that is a rank comes to its own harness first, and so opens no
    /// other device.
    fn both(path: &Path) -> Result<[Self; 2], Error> {
        let rccl = Rccl::load_from(path)?;
        let devices = rccl.device_count()?;
        let ranks = match env::var(RANKS) {
            Ok(ranks) => ranks.parse().map_err(|_| {
                Error::new(ErrorKind::InvalidArgument, format!("{RANKS} is '{ranks}', no number"))
            })?,
            Err(_) => devices,
        };
        let instance = |kind, ranks, processes| Self {
            name: format!("rccl over hip-on-cuda, {kind}"),
            rccl: rccl.clone(),
            worlds: [1, 2, 3, 4, 8].into_iter().filter(|&size| size <= ranks).collect(),
            devices,
            processes,
        };
        Ok([instance("processes", ranks, true), instance("threads", devices, false)])
    }
}

impl Harness for OnRccl {
    type Backend = Rccl;

    fn name(&self) -> String {
        self.name.clone()
    }

    fn backend(&self) -> Rccl {
        self.rccl.clone()
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
        env::var("COLLECTIVES_CHECK").is_ok_and(|check| check == "pointers")
    }

    fn may_lack(&self) -> bool {
        env::var_os(MOCK).is_none()
    }
}

/// Runs this program again on a library of the mock. Comes back only with what was wrong.
fn run_on_the_mock() -> io::Error {
    let run = || {
        let folder = install()?;
        let library = folder.join("librccl.so.1");
        let mut again = Command::new(env::current_exe()?);
        again.args(env::args_os().skip(1)).env("LD_LIBRARY_PATH", folder);
        // One file, so that NCCL and the CUDA runtime are one library with one state.
        again.env(LIBRARY, &library).env("HIP_ON_CUDA_CUDART", library);
        again.env(MOCK, "2.28.9").env("COLLECTIVES_MOCK_DEVICES", "2");
        for hidden in ["COLLECTIVES_HIP_PATH", "CUDA_VISIBLE_DEVICES", RANKS] {
            again.env_remove(hidden);
        }
        Err(again.exec())
    };
    run().map_or_else(|error| error, |never: std::convert::Infallible| match never {})
}

/// Lays out what `scripts/hip-on-cuda` does.
fn install() -> io::Result<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("hip-on-cuda");
    fs::create_dir_all(&folder)?;
    let beside = |name| Ok::<_, io::Error>(env::current_exe()?.with_file_name(name));
    let mut library = fs::read(beside("libcollectives_mock_abi.so")?)?;
    hide_what_nccl_lacks(&mut library).map_err(io::Error::other)?;
    let place = |name, contents| {
        // Moved there: another run may have the old one open.
        let moved = folder.join(format!("{name}.{}", id()));
        fs::write(&moved, contents)?;
        fs::rename(moved, folder.join(name))
    };
    place("librccl.so.1", library)?;
    place("libamdhip64.so.7", fs::read(beside("libcollectives_hip_on_cuda.so")?)?)?;
    Ok(folder)
}

/// Renames what the mock's library exports and NCCL 2.28.9 has not: HIP, RCCL's own functions, and
/// NCCL's younger ones. The table of hashes keeps their names, so nobody finds the new ones either.
fn hide_what_nccl_lacks(library: &mut [u8]) -> Result<(), object::Error> {
    let nccl: BTreeSet<&str> = NCCL.lines().collect();
    let file = object::File::parse(&*library)?;
    let names = file.section_by_name(".dynstr").and_then(|section| section.file_range());
    let (start, length) = names.unwrap_or_default();
    let (mut at, end) = (start as usize, (start + length) as usize);
    while at < end {
        let length = library[at..end].iter().take_while(|byte| **byte != 0).count();
        let name = String::from_utf8_lossy(&library[at..at + length]).into_owned();
        let name = name.strip_prefix('p').filter(|rest| rest.starts_with("nccl")).unwrap_or(&name);
        let of_nccl = ["nccl", "rccl", "msccl"].iter().any(|prefix| name.starts_with(prefix));
        if name.starts_with("hip") || of_nccl && !nccl.contains(name) {
            library[at..at + length].fill(b'_');
        }
        at += length + 1;
    }
    Ok(())
}

const NCCL: &str = include_str!("../../nccl-abi/tests/symbols/nccl-2.28.9.txt");
