//! The paths between the devices of one machine.

use super::{Check, list};
use crate::doctor::{
    facts::{Facts, PciGpu},
    finding::{Observation, Severity},
};

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "p2p-off",
        about: "a variable switches direct access between devices off",
        links: &[
            "https://github.com/dmlc/xgboost/issues/11242",
            "https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html",
        ],
        run: p2p_off,
    },
    Check {
        id: "shm-off",
        about: "a variable switches shared memory off",
        links: &["https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html"],
        run: shm_off,
    },
    Check {
        id: "iommu-translates",
        about: "the IOMMU translates the addresses of devices that write to each other",
        links: &[
            "https://github.com/NVIDIA/nccl/issues/257",
            "https://github.com/vllm-project/vllm/issues/33041",
            GPU_MANUAL,
        ],
        run: iommu,
    },
    Check {
        id: "acs-redirects",
        about: "a PCI bridge sends traffic between devices up to the CPU",
        links: &["https://github.com/vllm-project/vllm/issues/51513", GPU_MANUAL],
        run: acs,
    },
];

/// NVIDIA's page on peer access, ACS and topology.
const GPU_MANUAL: &str = "https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/troubleshooting/gpu_troubleshooting.html";

/// The setting that keeps NCCL from direct access, where one does.
fn off(facts: &Facts) -> Option<&'static str> {
    let settings = &facts.settings;
    if settings.number("NCCL_P2P_DISABLE") == Some(1) {
        return Some("NCCL_P2P_DISABLE");
    }
    let level = settings.value("NCCL_P2P_LEVEL");
    level.filter(|level| matches!(*level, "LOC" | "0")).map(|_| "NCCL_P2P_LEVEL")
}

fn p2p_off(facts: &Facts) -> Vec<Observation> {
    let Some(name) = off(facts).filter(|_| facts.needs_gpus()) else { return Vec::new() };
    let severity = if facts.visible() > 1 { Severity::Warning } else { Severity::Note };
    vec![Observation::new(
        severity,
        facts.settings.show(name),
        "devices don't read each other's memory: NVLink and PCI peer traffic lie idle, and data goes \
         through host memory, several times slower",
        format!(
            "unset {name}, unless it works around a hang; then see iommu-translates and \
                 acs-redirects for the cause"
        ),
    )]
}

fn shm_off(facts: &Facts) -> Vec<Observation> {
    if facts.settings.number("NCCL_SHM_DISABLE") != Some(1) || !facts.needs_gpus() {
        return Vec::new();
    }
    let both = off(facts).is_some();
    vec![Observation::new(
        if facts.visible() > 1 { Severity::Warning } else { Severity::Note },
        facts.settings.show("NCCL_SHM_DISABLE"),
        if both {
            "with direct access switched off too, devices of one machine talk over the network"
        } else {
            "devices that can't reach each other's memory talk over the network, within one machine"
        },
        "unset it, and give /dev/shm room instead",
    )]
}

/// Whether at least two devices are there whose traffic may cross PCI.
fn may_cross_pci(facts: &Facts) -> bool {
    facts.needs_gpus() && facts.visible() > 1 && off(facts).is_none()
}

fn shown(gpus: &[&PciGpu]) -> String {
    let addresses: Vec<&str> = gpus.iter().map(|gpu| gpu.address.as_str()).collect();
    list(&addresses, 8)
}

fn iommu(facts: &Facts) -> Vec<Observation> {
    let translated: Vec<&PciGpu> = facts
        .gpus
        .iter()
        .filter(|gpu| gpu.iommu.as_ref().is_some_and(|kind| kind.starts_with("DMA")))
        .collect();
    if translated.len() < 2 || !may_cross_pci(facts) {
        return Vec::new();
    }
    vec![Observation::new(
        Severity::Warning,
        format!("the IOMMU translates for {} devices: {}", translated.len(), shown(&translated)),
        "traffic between devices over PCI goes up to the CPU and back, which is slow, and on some \
         boards never arrives: initialisation or the first operation hangs. Devices on NVLink \
         don't mind",
        "boot with iommu=pt (or intel_iommu=off, amd_iommu=off), or switch it off in the BIOS; \
         NCCL_P2P_DISABLE=1 avoids the hang in the meantime",
    )]
}

fn acs(facts: &Facts) -> Vec<Observation> {
    let mut bridges: Vec<&str> =
        facts.gpus.iter().flat_map(|gpu| &gpu.acs).map(String::as_str).collect();
    bridges.sort_unstable();
    bridges.dedup();
    if bridges.is_empty() || !may_cross_pci(facts) {
        return Vec::new();
    }
    vec![Observation::new(
        Severity::Warning,
        format!("Access Control Services are on in the bridges {}", list(&bridges, 8)),
        "they send traffic between the devices below up to the CPU, for a check: slow, or a hang",
        if facts.virtual_machine {
            "a virtual machine needs them; enable ATS in the network adapters instead"
        } else {
            "switch them off in the BIOS, or with setpci -s BRIDGE ECAP_ACS+0x6.w=0000 after each boot"
        },
    )]
}
