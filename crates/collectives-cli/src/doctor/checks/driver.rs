//! The NVIDIA driver: its library, its kernel module, and what NCCL wants of them.

use super::{Check, list};
use crate::doctor::{
    cuda::{COMPAT_NOT_SUPPORTED, CudaReport, DRIVER_MISMATCH, NOT_READY, STUB_LIBRARY},
    facts::{Facts, version_text},
    finding::{Observation, Severity},
};

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "driver-library",
        about: "there is a device, but libcuda.so.1 can't be opened",
        links: &[
            "https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/docker-specialized.html",
        ],
        run: library,
    },
    Check {
        id: "driver-stub",
        about: "the toolkit's stub is found instead of the driver's library",
        links: &["https://github.com/ai-dynamo/nixl/issues/477"],
        run: stub,
    },
    Check {
        id: "driver-mismatch",
        about: "libcuda and the kernel module are from different releases",
        links: &["https://github.com/NVIDIA/nvidia-docker/issues/1256"],
        run: mismatch,
    },
    Check {
        id: "driver-compat",
        about: "CUDA's forward-compatible library is in use",
        links: &[
            "https://docs.nvidia.com/deploy/cuda-compatibility/forward-compatibility.html",
            "https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/troubleshooting/runtime_and_mpi_issues.html",
        ],
        run: compat,
    },
    Check {
        id: "driver-fabric",
        about: "NVSwitch's fabric manager has not set the links up",
        links: &["https://docs.nvidia.com/datacenter/tesla/fabric-manager-user-guide/index.html"],
        run: fabric,
    },
    Check {
        id: "driver-too-old",
        about: "the driver is older than CUDA 11.4, which this backend needs",
        links: &["https://github.com/vllm-project/vllm/issues/5679"],
        run: too_old,
    },
    Check {
        id: "library-newer-than-driver",
        about: "NCCL was built for a newer CUDA than the driver supports",
        links: &[
            "https://github.com/vllm-project/vllm/issues/1359",
            "https://github.com/rwth-i6/returnn/issues/1802",
            "https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html",
        ],
        run: newer_library,
    },
    Check {
        id: "driver-p2p-hang",
        about: "the first all-reduce is known to hang with this driver",
        links: &["https://github.com/dmlc/xgboost/issues/11242"],
        run: p2p_hang,
    },
    Check {
        id: "peer-access",
        about: "devices cannot reach each other's memory",
        links: &["https://github.com/vllm-project/vllm/pull/36570"],
        run: peer_access,
    },
];

/// Where the CUDA driver was asked.
fn cuda(facts: &Facts) -> Option<&CudaReport> {
    facts.cuda.as_ref()
}

fn init(facts: &Facts) -> Option<i32> {
    cuda(facts)?.init
}

/// The first number of the kernel module's release: 580.
fn branch(facts: &Facts) -> Option<u32> {
    facts.kernel_driver.as_ref()?.split('.').next()?.parse().ok()
}

fn library(facts: &Facts) -> Vec<Observation> {
    let Some(problem) = cuda(facts).and_then(|cuda| cuda.problem.as_ref()) else {
        return Vec::new();
    };
    let capabilities = facts.settings.value("NVIDIA_DRIVER_CAPABILITIES");
    let left_out = capabilities
        .filter(|list| !list.split(',').any(|name| matches!(name.trim(), "all" | "compute")));
    let (cause, remedy) = match (left_out, facts.container) {
        (Some(list), _) => (
            format!(
                "NVIDIA_DRIVER_CAPABILITIES={list} leaves out compute, so the container runtime \
                 brings no libcuda in"
            ),
            "set NVIDIA_DRIVER_CAPABILITIES=compute,utility",
        ),
        (None, Some(_)) => (
            "a container has the driver's library only from the NVIDIA container runtime".into(),
            "start it with docker run --gpus all",
        ),
        (None, None) => (
            "the kernel module is there, and the driver's library is not where the loader looks"
                .into(),
            "install the driver's compute package (libcuda1, nvidia-driver-cuda), or correct \
             LD_LIBRARY_PATH",
        ),
    };
    vec![Observation::new(facts.of_nccl(Severity::Error), problem, cause, remedy)]
}

fn stub(facts: &Facts) -> Vec<Observation> {
    let loaded = init(facts) == Some(STUB_LIBRARY);
    let folder = facts.settings.value("LD_LIBRARY_PATH").and_then(|list| {
        list.split(':').find(|folder| folder.trim_end_matches('/').ends_with("/stubs"))
    });
    let (severity, found) = match (loaded, folder) {
        (true, _) => (
            facts.of_nccl(Severity::Error),
            format!("cuInit answered {STUB_LIBRARY}: the stub was loaded"),
        ),
        (false, Some(folder)) => {
            (facts.of_nccl(Severity::Warning), format!("LD_LIBRARY_PATH holds {folder}"))
        }
        (false, None) => return Vec::new(),
    };
    vec![Observation::new(
        severity,
        found,
        "the files in the toolkit's stubs folder are for linking; they have the driver's names and \
         nothing behind them",
        "take the stubs folder out of LD_LIBRARY_PATH",
    )]
}

/// The release in a name such as `libcuda.so.580.95.05`.
fn library_release(cuda: &CudaReport) -> Option<&str> {
    let name = cuda.library.as_ref()?.file_name()?.to_str()?;
    name.strip_prefix("libcuda.so.").filter(|release| release.contains('.'))
}

fn is_compat(cuda: &CudaReport) -> bool {
    let library = cuda.library.as_ref();
    library.is_some_and(|path| path.components().any(|part| part.as_os_str() == "compat"))
}

fn mismatch(facts: &Facts) -> Vec<Observation> {
    let (Some(cuda), Some(module)) = (cuda(facts), &facts.kernel_driver) else { return Vec::new() };
    let refused = cuda.init == Some(DRIVER_MISMATCH);
    let release = library_release(cuda).filter(|release| release != module && !is_compat(cuda));
    if !refused && release.is_none() {
        return Vec::new();
    }
    let library = cuda.library.as_ref().map(|path| path.display().to_string());
    vec![Observation::new(
        if refused { facts.of_nccl(Severity::Error) } else { facts.of_nccl(Severity::Warning) },
        format!(
            "the kernel module is {module}, the library {}",
            library.as_deref().unwrap_or("another release")
        ),
        "both come from one release of the driver; after an update the old module stays until it is \
         loaded again, and an image with a driver of its own brings the wrong library",
        "reboot (or unload and load the module); in a container, remove the image's own libcuda",
    )]
}

fn compat(facts: &Facts) -> Vec<Observation> {
    let Some(cuda) = cuda(facts).filter(|cuda| is_compat(cuda)) else { return Vec::new() };
    let refused = cuda.init == Some(COMPAT_NOT_SUPPORTED);
    let library = cuda.library.as_ref().map_or_else(String::new, |path| path.display().to_string());
    let (severity, cause) = if refused {
        (
            facts.of_nccl(Severity::Error),
            "CUDA's forward-compatible library serves data-centre devices only, and this is none",
        )
    } else {
        (
            Severity::Note,
            "NCCL takes the driver to be as new as this library, and may switch on host memory \
             that the real driver can't give",
        )
    };
    vec![Observation::new(
        severity,
        library,
        cause,
        "update the driver and take the compat folder out of the loader's path; where \
         initialisation fails, NCCL_CUMEM_HOST_ENABLE=0",
    )]
}

fn fabric(facts: &Facts) -> Vec<Observation> {
    if init(facts) != Some(NOT_READY) {
        return Vec::new();
    }
    vec![Observation::new(
        facts.of_nccl(Severity::Error),
        format!("cuInit answered {NOT_READY}: the system is not ready"),
        "devices behind NVSwitch start only after the fabric manager has set the links up",
        "start it (systemctl start nvidia-fabricmanager), in the driver's own release",
    )]
}

fn too_old(facts: &Facts) -> Vec<Observation> {
    let cuda = cuda(facts).and_then(|cuda| cuda.version);
    let old = match (cuda, branch(facts)) {
        (Some(cuda), _) => cuda < (11, 4),
        (None, Some(branch)) => branch < 470,
        (None, None) => false,
    };
    if !old {
        return Vec::new();
    }
    let serves = cuda.map_or_else(String::new, |(major, minor)| format!(", CUDA {major}.{minor}"));
    vec![Observation::new(
        facts.of_nccl(Severity::Error),
        format!(
            "driver {}{serves}",
            facts.kernel_driver.as_deref().unwrap_or("of unknown release")
        ),
        "capture, and the functions that this backend calls, came with CUDA 11.4",
        "install driver 470 or newer",
    )]
}

/// The first release of the driver that serves a major version of CUDA, by NVIDIA's table of
/// minor-version compatibility.
const fn first_driver(cuda_major: u32) -> Option<u32> {
    match cuda_major {
        11 => Some(450),
        12 => Some(525),
        13 => Some(580),
        _ => None,
    }
}

fn newer_library(facts: &Facts) -> Vec<Observation> {
    let Some((major, minor)) = facts.library_file().and_then(|file| file.toolkit) else {
        return Vec::new();
    };
    let wanted = first_driver(major);
    let serves = cuda(facts).and_then(|cuda| cuda.version);
    let newer = match (serves, branch(facts), wanted) {
        (Some((driver, _)), _, _) => major > driver,
        (None, Some(branch), Some(wanted)) => branch < wanted,
        _ => false,
    };
    let Some(library) = facts.library().filter(|_| newer) else { return Vec::new() };
    let driver = match (serves, &facts.kernel_driver) {
        (Some((major, minor)), Some(release)) => {
            format!("driver {release} serves CUDA {major}.{minor}")
        }
        (Some((major, minor)), None) => format!("the driver serves CUDA {major}.{minor}"),
        (None, release) => format!("the driver is {}", release.as_deref().unwrap_or("unknown")),
    };
    let path =
        library.path.as_ref().map_or_else(String::new, |path| format!(" ({})", path.display()));
    vec![Observation::new(
        facts.of_nccl(Severity::Error),
        format!("NCCL {}{path} was built with CUDA {major}.{minor}; {driver}", library.version),
        "a library runs on drivers of its own major version of CUDA and later ones; on an older one \
         every call fails with 'CUDA driver version is insufficient for CUDA runtime version'",
        match wanted {
            Some(wanted) => {
                format!("install driver {wanted} or newer, or an NCCL for the driver's CUDA")
            }
            None => "install a newer driver, or an NCCL for the driver's CUDA".into(),
        },
    )]
}

fn p2p_hang(facts: &Facts) -> Vec<Observation> {
    let Some(branch) = branch(facts) else { return Vec::new() };
    let off = facts.settings.number("NCCL_P2P_DISABLE") == Some(1);
    if !(560..570).contains(&branch) || facts.visible() < 2 || off || !facts.needs_nccl() {
        return Vec::new();
    }
    vec![Observation::new(
        Severity::Note,
        format!("driver {}", facts.kernel_driver.as_deref().unwrap_or_default()),
        "initialisation succeeds and the first operation spins, on some machines with peer access; \
         570 fixes it",
        "install driver 570 or newer; NCCL_P2P_DISABLE=1 avoids it at the cost of speed",
    )]
}

fn peer_access(facts: &Facts) -> Vec<Observation> {
    let Some(cuda) = cuda(facts).filter(|cuda| !cuda.out_of_reach.is_empty()) else {
        return Vec::new();
    };
    let pairs: Vec<String> =
        cuda.out_of_reach.iter().map(|(from, to)| format!("{from} to {to}")).collect();
    let shared = match facts.version() {
        Some(version) => format!("NCCL {}", version_text(version)),
        None => "NCCL".into(),
    };
    vec![Observation::new(
        facts.of_nccl(Severity::Warning),
        format!("no access from device {}", list(&pairs, 6)),
        format!(
            "the driver does not let these devices reach each other's memory: the model, the slots, or \
             the virtual machine forbid it. {shared} then sends through host memory, several times \
             slower"
        ),
        "see nvidia-smi topo -p2p r; put devices that work together under one switch, or take others; \
         give /dev/shm room",
    )]
}
