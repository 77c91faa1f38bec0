//! Shared memory and limits: of the process, and of its container.

use super::Check;
use crate::doctor::{
    facts::{Facts, Limit, Quota, version_text},
    finding::{Observation, Severity},
    system::Space,
};

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "shm-missing",
        about: "there is no /dev/shm",
        links: &["https://github.com/sgl-project/sglang/issues/4289", MANUAL],
        run: missing,
    },
    Check {
        id: "shm-locked",
        about: "this user may not write to /dev/shm",
        links: &["https://github.com/vllm-project/vllm/issues/10626", MANUAL],
        run: locked,
    },
    Check {
        id: "shm-small",
        about: "/dev/shm is too small or too full",
        links: &[
            "https://github.com/NVIDIA/nccl/issues/290",
            "https://github.com/NVIDIA/nccl/issues/342",
            MANUAL,
        ],
        run: small,
    },
    Check {
        id: "limit-locked-memory",
        about: "locked memory is limited, and there are RDMA devices",
        links: &[
            "https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/troubleshooting/networking_troubleshooting.html",
        ],
        run: locked_memory,
    },
    Check {
        id: "limit-open-files",
        about: "the limit on open files is low",
        links: &[MANUAL],
        run: open_files,
    },
    Check {
        id: "limit-stack",
        about: "the stack is unlimited, which makes the stacks of threads small",
        links: &[MANUAL],
        run: stack,
    },
    Check {
        id: "limit-tasks",
        about: "the container can start few more threads",
        links: &["https://docs.kernel.org/admin-guide/cgroup-v2.html"],
        run: tasks,
    },
    Check {
        id: "limit-memory",
        about: "the container has little memory left",
        links: &["https://docs.kernel.org/admin-guide/cgroup-v2.html"],
        run: memory,
    },
    Check {
        id: "cumem-host",
        about: "this release allocates host memory in a way that containers forbid",
        links: &[MANUAL],
        run: cumem_host,
    },
];

/// NVIDIA's page on memory, descriptors and limits.
const MANUAL: &str = "https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/troubleshooting/runtime_and_mpi_issues.html";

/// Whether NCCL allocates host memory through the driver and leaves `/dev/shm` alone: from 2.24 on,
/// with a driver for CUDA 12.6 or newer.
fn avoids_shm(facts: &Facts) -> bool {
    let new = facts.version().is_some_and(|version| version >= 22_400);
    let driver = facts.cuda.as_ref().and_then(|cuda| cuda.version);
    let off = facts.settings.number("NCCL_CUMEM_HOST_ENABLE") == Some(0);
    let forbidden = facts.container.is_some() && !facts.limits.may_place_memory;
    new && driver.is_some_and(|driver| driver >= (12, 6)) && !off && !forbidden
}

/// How bad trouble with `/dev/shm` is: it is the path between devices that can't reach each other.
fn severity(facts: &Facts) -> Severity {
    let used = facts.visible() > 1 && !avoids_shm(facts);
    if used { Severity::Warning } else { Severity::Note }
}

const WHY: &str = "NCCL keeps the buffers of devices that can't reach each other's memory there, and \
                   initialisation fails with 'unhandled system error' where it gets none";

fn missing(facts: &Facts) -> Vec<Observation> {
    if !facts.needs_gpus() || facts.shm.exists {
        return Vec::new();
    }
    vec![Observation::new(
        severity(facts),
        "there is no /dev/shm",
        WHY,
        "mount one: mount -t tmpfs tmpfs /dev/shm; in a container, --shm-size=1g",
    )]
}

fn locked(facts: &Facts) -> Vec<Observation> {
    if !facts.needs_gpus() || !facts.shm.exists || facts.shm.writable {
        return Vec::new();
    }
    vec![Observation::new(
        severity(facts),
        "this user may not make files in /dev/shm",
        WHY,
        "chmod 1777 /dev/shm, or mount it read-write",
    )]
}

fn small(facts: &Facts) -> Vec<Observation> {
    let Some(Space { total, available }) = facts.shm.space.filter(|_| facts.needs_gpus()) else {
        return Vec::new();
    };
    let ranks = u64::try_from(facts.visible().max(1)).unwrap_or(1);
    let need = ranks * CHANNELS * CONNECTIONS * CONNECTION;
    let full = available < need;
    if total >= ADVISED && !full {
        return Vec::new();
    }
    let where_full = if full && total >= ADVISED {
        "remove what crashed jobs left (ls /dev/shm/nccl-*), or make it larger"
    } else if facts.container.is_some() {
        "give the container --shm-size=1g or --ipc=host (Kubernetes: a memory-backed emptyDir at \
         /dev/shm)"
    } else {
        "mount -o remount,size=1g /dev/shm"
    };
    vec![Observation::new(
        if full { severity(facts) } else { Severity::Note },
        format!("/dev/shm has {}, of which {} are free", mib(total), mib(available)),
        format!(
            "{WHY}: {} for each connection and channel, so at least {} for {ranks} here; Docker \
             gives 64 MiB, NVIDIA advises 1 GiB",
            mib(CONNECTION),
            mib(need)
        ),
        where_full,
    )]
}

/// The buffers of one connection of one channel: 4 MiB for Simple, 4.7 for LL128, 0.5 for LL, and
/// a page of bookkeeping (`DEFAULT_BUFFSIZE` and its kin in NCCL 2.30.7; "size 9637888" in
/// nccl#342).
const CONNECTION: u64 = 9_637_888;
/// A ring and a tree: at least two that receive.
const CONNECTIONS: u64 = 2;
/// NCCL takes at least two channels between devices that share memory.
const CHANNELS: u64 = 2;
/// What NVIDIA's manual gives a container.
const ADVISED: u64 = 1 << 30;

fn mib(bytes: u64) -> String {
    format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20))
}

fn locked_memory(facts: &Facts) -> Vec<Observation> {
    let Some(Limit::At(limit)) = facts.limits.locked_memory else { return Vec::new() };
    if facts.infiniband.is_empty() || !facts.needs_gpus() {
        return Vec::new();
    }
    vec![Observation::new(
        Severity::Warning,
        format!("ulimit -l is {}, with RDMA devices {}", mib(limit), facts.infiniband.join(", ")),
        "RDMA locks the memory that it sends from; past the limit ibv_reg_mr or ibv_create_qp fails",
        "set memlock to unlimited in /etc/security/limits.conf; in a container, --ulimit memlock=-1",
    )]
}

fn open_files(facts: &Facts) -> Vec<Observation> {
    let Some(Limit::At(limit)) = facts.limits.open_files else { return Vec::new() };
    if limit >= FILES || !facts.needs_gpus() {
        return Vec::new();
    }
    vec![Observation::new(
        Severity::Warning,
        format!("ulimit -n is {limit}"),
        "each peer costs sockets and files: a job of 144 ranks may want 32 thousand in one process",
        "raise it (ulimit -n 65536, nofile in /etc/security/limits.d, --ulimit nofile=65536)",
    )]
}

/// The soft limit that systems give.
const FILES: u64 = 1024;

fn stack(facts: &Facts) -> Vec<Observation> {
    let unlimited = facts.limits.stack == Some(Limit::Unlimited);
    let Some(version) = facts.version().filter(|&version| unlimited && version < 22_800) else {
        return Vec::new();
    };
    if !facts.needs_gpus() {
        return Vec::new();
    }
    vec![Observation::new(
        Severity::Warning,
        format!("ulimit -s is unlimited, with NCCL {}", version_text(version)),
        "the C library then gives threads 2 MiB, and NCCL's search for a topology may want more: it \
         crashes while communicators are made; 2.28 sets the size itself",
        "ulimit -s 8192",
    )]
}

fn left(quota: &Quota) -> u64 {
    quota.max.saturating_sub(quota.used)
}

fn tasks(facts: &Facts) -> Vec<Observation> {
    let Some(quota) = facts.limits.tasks.as_ref().filter(|_| facts.needs_gpus()) else {
        return Vec::new();
    };
    let ranks = u64::try_from(facts.visible().max(1)).unwrap_or(1);
    let want = ranks * THREADS;
    if left(quota) >= want {
        return Vec::new();
    }
    vec![Observation::new(
        Severity::Warning,
        format!("{} allows {} threads, {} are taken", quota.file.display(), quota.max, quota.used),
        format!(
            "CUDA and NCCL start dozens of threads in each rank ({want} for {ranks} is careful); past \
             the limit pthread_create fails, and with it initialisation"
        ),
        "docker run --pids-limit=-1; Kubernetes: the kubelet's podPidsLimit; Slurm or systemd: \
         TasksMax",
    )]
}

/// Threads of one rank, with those of CUDA.
const THREADS: u64 = 64;

fn memory(facts: &Facts) -> Vec<Observation> {
    let Some(quota) = facts.limits.memory.as_ref().filter(|_| facts.needs_gpus()) else {
        return Vec::new();
    };
    let ranks = u64::try_from(facts.visible().max(1)).unwrap_or(1);
    let want = ranks * HOST_MEMORY;
    if left(quota) >= want {
        return Vec::new();
    }
    vec![Observation::new(
        Severity::Warning,
        format!(
            "{} allows {}, {} are taken",
            quota.file.display(),
            mib(quota.max),
            mib(quota.used)
        ),
        format!(
            "each rank's CUDA context and NCCL's buffers take host memory ({} for {ranks} is \
             careful), and what lies in /dev/shm counts too; past the limit the kernel kills a rank \
             and the others wait",
            mib(want)
        ),
        "raise the container's memory limit (docker run --memory, Kubernetes limits.memory)",
    )]
}

/// Host memory of one rank before the program has any.
const HOST_MEMORY: u64 = 1 << 30;

fn cumem_host(facts: &Facts) -> Vec<Observation> {
    let affected = facts.version().filter(|version| (22_400..22_605).contains(version));
    let driver = facts.cuda.as_ref().and_then(|cuda| cuda.version);
    let set = facts.settings.get("NCCL_CUMEM_HOST_ENABLE").is_some();
    let (Some(version), Some(place)) = (affected, facts.container) else { return Vec::new() };
    let new = driver.is_some_and(|driver| driver >= (12, 6));
    if !new || set || facts.limits.may_place_memory || !facts.needs_nccl() {
        return Vec::new();
    }
    vec![Observation::new(
        Severity::Warning,
        format!("NCCL {} in a container ({place}) without SYS_NICE", version_text(version)),
        "NCCL 2.24 to 2.26.2 allocate host memory on a NUMA node, which Docker's filter refuses; \
         2.26.5 falls back by itself",
        "set NCCL_CUMEM_HOST_ENABLE=0, or start the container with --cap-add SYS_NICE",
    )]
}
