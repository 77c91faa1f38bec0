//! Devices that are there and can't be used.

use collectives::{BackendName, HiddenBy};

use super::{Check, list};
use crate::doctor::{
    facts::Facts,
    finding::{Observation, Severity},
};

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "gpu-without-driver",
        about: "a GPU on the PCI bus has no driver or another one, or is hidden from this process",
        links: &[],
        run: without_driver,
    },
    Check {
        id: "devices-none",
        about: "NCCL is asked for, and there is no NVIDIA device",
        links: &["https://github.com/vllm-project/vllm/issues/6732"],
        run: none,
    },
    Check {
        id: "devices-hidden",
        about: "a variable hides devices",
        links: &["https://docs.nvidia.com/cuda/cuda-c-programming-guide/"],
        run: hidden,
    },
    Check {
        id: "devices-duplicate",
        about: "CUDA_VISIBLE_DEVICES names a device twice",
        links: &[
            "https://github.com/NVIDIA/nccl/issues/1241",
            "https://github.com/verl-project/verl/issues/161",
        ],
        run: duplicate,
    },
    Check {
        id: "devices-no-such",
        about: "CUDA_VISIBLE_DEVICES names a device that is not there",
        links: &["https://docs.nvidia.com/cuda/cuda-c-programming-guide/"],
        run: no_such,
    },
    Check {
        id: "devices-not-given",
        about: "the kernel shows devices whose nodes this process was not given",
        links: &[CONTAINERS],
        run: not_given,
    },
    Check {
        id: "devices-locked",
        about: "this user may not open the devices' nodes",
        links: &[],
        run: locked,
    },
    Check {
        id: "uvm-node",
        about: "CUDA's node for unified memory is missing",
        links: &[
            "https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/troubleshooting/runtime_and_mpi_issues.html",
        ],
        run: uvm,
    },
    Check {
        id: "wsl-without-cuda",
        about: "Windows offers a GPU, and NVIDIA's driver is missing",
        links: &["https://docs.nvidia.com/cuda/wsl-user-guide/index.html"],
        run: wsl,
    },
];

/// How bad trouble of devices is: where the mock was asked for, nobody needs them.
fn of_devices(facts: &Facts, severity: Severity) -> Severity {
    if facts.mock_is_meant() { Severity::Note } else { severity }
}

fn without_driver(facts: &Facts) -> Vec<Observation> {
    let served = |vendor: &str| match vendor {
        "NVIDIA" => !facts.platform.nvidia.found.is_empty(),
        _ => !facts.platform.amd.found.is_empty(),
    };
    let gpus = facts.gpus.iter().filter(|gpu| !served(gpu.vendor));
    gpus.filter_map(|gpu| {
        let (address, vendor) = (&gpu.address, gpu.vendor);
        let (own, name) =
            if vendor == "NVIDIA" { ("nvidia", "NVIDIA's") } else { ("amdgpu", "AMD's") };
        let (found, cause, remedy) = match gpu.driver.as_deref() {
            // An integrated display adapter has AMD's driver, and is no device for collectives.
            Some(driver) if driver == own && vendor == "AMD" => return None,
            Some(driver) if driver == own => (
                format!(
                    "{address} is an {vendor} GPU with {name} driver, and this process sees none"
                ),
                "a container sees the machine's bus, but only the devices that it was given",
                "start the container with the GPUs (docker run --gpus all)".to_owned(),
            ),
            Some("vfio-pci") => (
                format!("{address} is an {vendor} GPU, held by vfio-pci"),
                "it is kept for virtual machines",
                format!("give it back to {name} driver"),
            ),
            Some(driver) => (
                format!("{address} is an {vendor} GPU, driven by {driver}"),
                "collectives need the vendor's own driver",
                format!("install {name} driver"),
            ),
            None => (
                format!("{address} is an {vendor} GPU without a driver"),
                "the kernel module is not installed, not loaded, or failed to load",
                format!("install {name} driver; modprobe {own} and dmesg say why it does not load"),
            ),
        };
        Some(Observation::new(of_devices(facts, Severity::Warning), found, cause, remedy))
    })
    .collect()
}

fn none(facts: &Facts) -> Vec<Observation> {
    let Ok(decision) = &facts.decision else { return Vec::new() };
    if !facts.needs_nccl() || !facts.platform.nvidia.found.is_empty() {
        return Vec::new();
    }
    vec![Observation::new(
        Severity::Error,
        format!("NCCL is selected ({}), and no file shows an NVIDIA device", decision.reason),
        "NCCL opens without a device, and every call that needs one fails",
        "run on a machine with NVIDIA GPUs and their driver; COLLECTIVES_BACKEND=mock runs on the CPU",
    )]
}

fn hidden(facts: &Facts) -> Vec<Observation> {
    let vendors = [
        (&facts.platform.nvidia, BackendName::Nccl, "NVIDIA"),
        (&facts.platform.amd, BackendName::Rccl, "AMD"),
    ];
    let mut observations = Vec::new();
    for (devices, backend, vendor) in vendors {
        // A list that hides by mistake has a check of its own.
        let mistaken = backend == BackendName::Nccl
            && (!duplicate(facts).is_empty() || !no_such(facts).is_empty());
        let none_left = devices.visible == 0;
        let severity = match (none_left, facts.backend() == Some(backend)) {
            (true, true) => Severity::Error,
            (true, false) => Severity::Warning,
            (false, _) => Severity::Note,
        };
        for HiddenBy { variable, value, devices: hidden, .. } in &devices.hidden_by {
            if mistaken {
                continue;
            }
            let left =
                if none_left { "none is left".into() } else { format!("{} left", devices.visible) };
            observations.push(Observation::new(
                of_devices(facts, severity),
                format!(
                    "{variable}='{value}' hides {hidden} of {} {vendor} devices",
                    devices.found.len()
                ),
                format!("this process and its children have only what the list leaves: {left}"),
                format!("unset {variable}, or list the devices that are meant (0,1,…)"),
            ));
        }
    }
    observations
}

/// The list, where there are devices that it may hide.
fn visible_list(facts: &Facts) -> Option<&str> {
    let value = facts.settings.value("CUDA_VISIBLE_DEVICES")?;
    (!facts.platform.nvidia.found.is_empty()).then_some(value)
}

/// Whether a mistake in the list leaves NCCL nothing to run on.
fn severity_of_list(facts: &Facts) -> Severity {
    let fatal = facts.needs_nccl() && facts.platform.nvidia.visible == 0;
    if fatal { Severity::Error } else { of_devices(facts, Severity::Warning) }
}

fn duplicate(facts: &Facts) -> Vec<Observation> {
    let Some(value) = visible_list(facts) else { return Vec::new() };
    let entries: Vec<&str> = value.split(',').map(str::trim).collect();
    let twice = entries.iter().enumerate().find(|(at, entry)| {
        !entry.is_empty() && !entry.starts_with('-') && entries[..*at].contains(entry)
    });
    let Some((_, entry)) = twice else { return Vec::new() };
    vec![Observation::new(
        severity_of_list(facts),
        format!("CUDA_VISIBLE_DEVICES={value} names {entry} twice"),
        "CUDA reads a list with a duplicate as empty, so no device is visible; and NCCL refuses two \
         ranks on one device",
        "name each device once, and give each rank a device of its own",
    )]
}

fn no_such(facts: &Facts) -> Vec<Observation> {
    let Some(value) = visible_list(facts) else { return Vec::new() };
    if !duplicate(facts).is_empty() || value.trim_start().starts_with("MIG-") {
        return Vec::new();
    }
    let devices = &facts.platform.nvidia;
    let entries: Vec<&str> = value.split(',').map(str::trim).collect();
    // The list counts up to the first entry that is no device.
    let Some(entry) = entries.get(devices.visible) else { return Vec::new() };
    let meant = ["", "-1", "none", "NoDevFiles"].contains(entry);
    if meant {
        return Vec::new();
    }
    let count = devices.found.len();
    vec![Observation::new(
        severity_of_list(facts),
        format!("CUDA_VISIBLE_DEVICES={value}: there is no device '{entry}'"),
        format!(
            "CUDA ends the list at the first entry that is no device, without a word: {} of {count} \
             devices are visible",
            devices.visible
        ),
        format!("name devices from 0 to {}, or their UUIDs", count.saturating_sub(1)),
    )]
}

fn not_given(facts: &Facts) -> Vec<Observation> {
    const WORDS: [&str; 4] =
        ["not given", "must be given", "hides that GPU", "no driver behind it"];
    let sentences: Vec<&str> = facts
        .platform
        .findings
        .iter()
        .map(String::as_str)
        .filter(|sentence| WORDS.iter().any(|words| sentence.contains(words)))
        .collect();
    if sentences.is_empty() {
        return Vec::new();
    }
    let none_left = facts.platform.nvidia.found.is_empty() && facts.platform.amd.found.is_empty();
    let asked = facts.settings.show("NVIDIA_VISIBLE_DEVICES");
    let set = facts.settings.get("NVIDIA_VISIBLE_DEVICES").is_some();
    vec![Observation::new(
        of_devices(facts, if none_left { Severity::Warning } else { Severity::Note }),
        format!(
            "{}{}",
            list(&sentences, 2),
            if set { format!(" ({asked})") } else { String::new() }
        ),
        "/proc and /sys are the machine's, but a container opens only the nodes that it was given",
        "start the container with the devices: docker run --gpus all for NVIDIA, --device /dev/kfd \
         --device /dev/dri for AMD",
    )]
}

fn locked(facts: &Facts) -> Vec<Observation> {
    let vendors = [
        (
            &facts.platform.nvidia,
            BackendName::Nccl,
            "NVIDIA",
            "the group that owns them (see ls -l)",
        ),
        (&facts.platform.amd, BackendName::Rccl, "AMD", "the groups render and video"),
    ];
    vendors
        .into_iter()
        .filter_map(|(devices, backend, vendor, group)| {
            let locked: Vec<&_> = devices.found.iter().filter(|found| !found.accessible).collect();
            let first = locked.first()?;
            let nodes = first.evidence.iter().filter(|path| path.starts_with("/dev"));
            let nodes: Vec<String> = nodes.map(|path| path.display().to_string()).collect();
            let fatal = !devices.usable() && facts.backend() == Some(backend);
            Some(Observation::new(
                of_devices(facts, if fatal { Severity::Error } else { Severity::Warning }),
                format!(
                    "this user may not open {} of {} {vendor} devices: {}",
                    locked.len(),
                    devices.found.len(),
                    nodes.join(", ")
                ),
                "the driver's nodes want read and write access",
                format!("add the user to {group}, then log in again"),
            ))
        })
        .collect()
}

fn uvm(facts: &Facts) -> Vec<Observation> {
    let given = facts.nodes.iter().any(|node| node == "nvidiactl")
        && facts.nodes.iter().any(|node| node.trim_start_matches("nvidia").parse::<u32>().is_ok());
    let there = facts.nodes.iter().any(|node| node == "nvidia-uvm");
    let started = facts.cuda.as_ref().is_some_and(|cuda| cuda.init == Some(0));
    if !given || there || started {
        return Vec::new();
    }
    vec![Observation::new(
        facts.of_nccl(Severity::Warning),
        "there is no /dev/nvidia-uvm",
        "CUDA needs the module nvidia_uvm for memory that it maps for host and devices; it can load \
         it itself on a machine, but not in a container",
        "run nvidia-modprobe -u on the machine; give the node to the container",
    )]
}

/// NVIDIA's page on the variables of its container runtime.
const CONTAINERS: &str = "https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/docker-specialized.html";

fn wsl(facts: &Facts) -> Vec<Observation> {
    let sentence = facts.platform.findings.iter().find(|text| text.starts_with("/dev/dxg without"));
    sentence
        .map(|sentence| {
            Observation::new(
                of_devices(facts, Severity::Warning),
                sentence,
                "the node lends every Windows GPU, whoever made it; CUDA comes with NVIDIA's driver \
                 for Windows",
                "install NVIDIA's driver on Windows, and none inside of WSL",
            )
        })
        .into_iter()
        .collect()
}
