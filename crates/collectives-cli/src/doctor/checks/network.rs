//! The network: between machines, and for NCCL's own start-up.

use std::path::Path;

use super::{Check, list};
use crate::doctor::{
    facts::{Facts, Interface},
    finding::{Observation, Severity},
};

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "socket-ifname",
        about: "NCCL_SOCKET_IFNAME matches no running interface",
        links: &[
            "https://github.com/NVIDIA/nccl/issues/286",
            "https://github.com/NVIDIA/nccl-tests/issues/15",
            ENV,
        ],
        run: socket_ifname,
    },
    Check {
        id: "network-none",
        about: "no network interface is up, not even the loopback",
        links: &["https://github.com/NVIDIA/nccl/issues/286"],
        run: none,
    },
    Check {
        id: "network-local-only",
        about: "only the loopback or Docker's own interfaces are up",
        links: &["https://github.com/NVIDIA/nccl/issues/286"],
        run: local_only,
    },
    Check {
        id: "network-virtual",
        about: "NCCL may take an interface that leads nowhere",
        links: &[
            "https://github.com/NVIDIA/nccl/issues/286",
            "https://github.com/horovod/horovod/issues/310",
        ],
        run: virtual_interface,
    },
    Check {
        id: "net-forced",
        about: "NCCL_NET asks for a network that is not there",
        links: &[ENV],
        run: forced,
    },
    Check {
        id: "plugin-missing",
        about: "a variable names a plugin that is not there",
        links: &["https://github.com/gpustack/gpustack/issues/5553", ENV],
        run: plugin_missing,
    },
    Check {
        id: "plugin-found",
        about: "NCCL loads a network plugin because it is on the loader's path",
        links: &["https://github.com/gpustack/gpustack/issues/5553"],
        run: plugin_found,
    },
    Check { id: "ib-hca", about: "NCCL_IB_HCA matches no RDMA device", links: &[ENV], run: ib_hca },
    Check { id: "ib-off", about: "a variable switches RDMA off", links: &[ENV], run: ib_off },
];

/// NVIDIA's page on the variables.
const ENV: &str = "https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html";

/// Whether a name passes a filter as NCCL reads it: prefixes after commas, `=` for whole names, `^`
/// for all but these.
fn passes(filter: &str, name: &str) -> bool {
    let (not, filter) = match filter.strip_prefix('^') {
        Some(rest) => (true, rest),
        None => (false, filter),
    };
    let (exact, filter) = match filter.strip_prefix('=') {
        Some(rest) => (true, rest),
        None => (false, filter),
    };
    // A port may follow the name of an RDMA device.
    let entries = filter.split(',').filter_map(|entry| entry.split(':').next());
    let mut entries = entries.filter(|entry| !entry.is_empty()).peekable();
    let listed = entries.peek().is_none()
        || entries.any(|entry| if exact { name == entry } else { name.starts_with(entry) });
    listed != not
}

/// The interfaces that NCCL considers.
fn running(facts: &Facts) -> Option<Vec<&Interface>> {
    let interfaces = facts.interfaces.as_ref().filter(|_| facts.needs_gpus())?;
    Some(interfaces.iter().filter(|interface| interface.running).collect())
}

fn names(interfaces: &[&Interface]) -> String {
    let names: Vec<&str> = interfaces.iter().map(|interface| interface.name.as_str()).collect();
    if names.is_empty() { "none".into() } else { list(&names, 12) }
}

/// What NCCL leaves out unless it has nothing else.
fn is_last_resort(interface: &Interface) -> bool {
    ["docker", "lo", "virbr"].iter().any(|prefix| interface.name.starts_with(prefix))
}

fn socket_ifname(facts: &Facts) -> Vec<Observation> {
    let (Some(filter), Some(running)) =
        (facts.settings.value("NCCL_SOCKET_IFNAME"), running(facts))
    else {
        return Vec::new();
    };
    // NCCL reads a filter of one character as none.
    if filter.len() < 2 || running.iter().any(|interface| passes(filter, &interface.name)) {
        return Vec::new();
    }
    let stopped =
        facts.interfaces.iter().flatten().any(|interface| passes(filter, &interface.name));
    vec![Observation::new(
        facts.of_nccl(Severity::Error),
        format!(
            "{} matches none of the running interfaces: {}",
            facts.settings.show("NCCL_SOCKET_IFNAME"),
            names(&running)
        ),
        format!(
            "NCCL then has no address to start from, and joining fails with 'no socket interface \
             found'{}",
            if stopped { "; the interface is there, but down" } else { "" }
        ),
        "unset it, or name an interface of this machine; entries are prefixes, = in front makes \
         them whole names and ^ leaves them out",
    )]
}

fn none(facts: &Facts) -> Vec<Observation> {
    if running(facts).is_none_or(|running| !running.is_empty()) {
        return Vec::new();
    }
    vec![Observation::new(
        facts.of_nccl(Severity::Error),
        "no network interface is up, not even lo",
        "NCCL's ranks find each other over TCP, within one machine too",
        "ip link set lo up; a container needs a network (not --network=none)",
    )]
}

fn local_only(facts: &Facts) -> Vec<Observation> {
    let Some(running) = running(facts).filter(|running| !running.is_empty()) else {
        return Vec::new();
    };
    let chosen = facts.settings.get("NCCL_SOCKET_IFNAME").is_some();
    if chosen || !running.iter().all(|interface| is_last_resort(interface)) {
        return Vec::new();
    }
    vec![Observation::new(
        Severity::Note,
        format!("the running interfaces are {}", names(&running)),
        "ranks of this machine can talk to each other, and to no other machine",
        "nothing for one machine; for several, give the container the host's network \
         (--network=host)",
    )]
}

/// Interfaces of software that lead to containers or tunnels, by the start of their names.
const VIRTUAL: [&str; 17] = [
    "br-",
    "cali",
    "cilium",
    "cni",
    "dummy",
    "flannel",
    "kube",
    "lxc",
    "podman",
    "tailscale",
    "tap",
    "tun",
    "veth",
    "vmnet",
    "weave",
    "wg",
    "zt",
];

fn virtual_interface(facts: &Facts) -> Vec<Observation> {
    let Some(running) = running(facts) else { return Vec::new() };
    let considered: Vec<&Interface> =
        running.into_iter().filter(|interface| !is_last_resort(interface)).collect();
    let is_virtual = |interface: &&&Interface| {
        !interface.physical && VIRTUAL.iter().any(|prefix| interface.name.starts_with(prefix))
    };
    let virtual_ones: Vec<&Interface> = considered.iter().filter(is_virtual).copied().collect();
    let others: Vec<&Interface> =
        considered.iter().filter(|interface| !is_virtual(interface)).copied().collect();
    let chosen = facts.settings.get("NCCL_SOCKET_IFNAME").is_some();
    // NCCL looks for InfiniBand's interfaces first, and takes no other if it finds them.
    let first = considered.iter().any(|interface| interface.name.starts_with("ib"));
    if chosen || first || virtual_ones.is_empty() {
        return Vec::new();
    }
    let name = others.first().map_or("eth0", |interface| interface.name.as_str());
    vec![Observation::new(
        Severity::Note,
        format!("NCCL considers {}", names(&considered)),
        format!(
            "it leaves out docker*, lo and virbr* only, so {} may be taken; other machines can't \
             answer there, and joining hangs",
            names(&virtual_ones)
        ),
        format!("for a job of several machines, set NCCL_SOCKET_IFNAME (for example ={name})"),
    )]
}

fn forced(facts: &Facts) -> Vec<Observation> {
    let Some(net) = facts.settings.value("NCCL_NET").filter(|_| facts.needs_gpus()) else {
        return Vec::new();
    };
    let rdma = !facts.infiniband.is_empty();
    let plugins: Vec<&str> = facts
        .plugins
        .keys()
        .map(String::as_str)
        .filter(|name| name.starts_with("libnccl-net"))
        .collect();
    let given = facts
        .settings
        .value("NCCL_NET_PLUGIN")
        .is_some_and(|list| !list.eq_ignore_ascii_case("none"));
    let (severity, cause, remedy) = match net.to_ascii_lowercase().as_str() {
        "ib" if !rdma => (
            facts.of_nccl(Severity::Error),
            "there is no RDMA device in /sys/class/infiniband, and a network that is asked for is \
             not replaced: joining fails",
            "unset NCCL_NET, or give the container the devices (--device /dev/infiniband)",
        ),
        "ib" => return Vec::new(),
        "socket" if rdma => (
            Severity::Warning,
            "data between machines goes over TCP, and the RDMA devices lie idle",
            "unset NCCL_NET",
        ),
        "socket" => return Vec::new(),
        _ if plugins.is_empty() && !given => (
            facts.of_nccl(Severity::Error),
            "NCCL itself knows IB and Socket; another name is that of a plugin, and no \
             libnccl-net*.so lies on the loader's path: joining fails",
            "put the plugin's folder on LD_LIBRARY_PATH, or unset NCCL_NET",
        ),
        _ => return Vec::new(),
    };
    vec![Observation::new(severity, facts.settings.show("NCCL_NET"), cause, remedy)]
}

/// The kinds of plugin: the variable, and what stands in the file's name.
const PLUGINS: [(&str, &str); 4] = [
    ("NCCL_ENV_PLUGIN", "env"),
    ("NCCL_NET_PLUGIN", "net"),
    ("NCCL_PROFILER_PLUGIN", "profiler"),
    ("NCCL_TUNER_PLUGIN", "tuner"),
];

fn plugin_missing(facts: &Facts) -> Vec<Observation> {
    let mut observations = Vec::new();
    for (variable, kind) in PLUGINS {
        let Some(list) = facts.settings.value(variable).filter(|_| facts.needs_gpus()) else {
            continue;
        };
        for name in list.split(',').filter(|name| !name.is_empty()) {
            if let Some(looked_for) = plugin_looked_for(facts, kind, name) {
                observations.push(Observation::new(
                    facts.of_nccl(Severity::Warning),
                    format!("{}: there is no {looked_for}", facts.settings.show(variable)),
                    "NCCL goes on without the plugin, and says so only with NCCL_DEBUG=INFO",
                    format!(
                        "correct {variable}, put the plugin's folder on LD_LIBRARY_PATH, or set it \
                         to none"
                    ),
                ));
            }
        }
    }
    observations
}

/// The files that NCCL looks for, where none of them is there.
fn plugin_looked_for(facts: &Facts, kind: &str, name: &str) -> Option<String> {
    if name.eq_ignore_ascii_case("none") || name == "STATIC_PLUGIN" {
        return None;
    }
    if name.contains('/') {
        return (!Path::new(name).exists()).then(|| name.to_owned());
    }
    let file = format!("libnccl-{kind}-{name}.so");
    let there = facts.plugins.contains_key(name) || facts.plugins.contains_key(&file);
    (!there).then(|| format!("{name} or {file}"))
}

fn plugin_found(facts: &Facts) -> Vec<Observation> {
    let set = facts.settings.get("NCCL_NET_PLUGIN").is_some();
    let Some(path) = facts.plugins.get("libnccl-net.so").filter(|_| !set && facts.needs_gpus())
    else {
        return Vec::new();
    };
    vec![Observation::new(
        Severity::Note,
        path.display().to_string(),
        "NCCL loads it without being asked; images for a cloud bring one, and on other machines it \
         may fail and take joining with it",
        "nothing where this is the plugin's cloud; elsewhere NCCL_NET_PLUGIN=none",
    )]
}

fn ib_hca(facts: &Facts) -> Vec<Observation> {
    let Some(filter) = facts.settings.value("NCCL_IB_HCA") else { return Vec::new() };
    let devices = &facts.infiniband;
    let matched = devices.iter().any(|name| passes(filter, name));
    if devices.is_empty() || matched || !facts.needs_gpus() {
        return Vec::new();
    }
    vec![Observation::new(
        Severity::Warning,
        format!("{} matches none of {}", facts.settings.show("NCCL_IB_HCA"), list(devices, 12)),
        "NCCL then has no RDMA device and falls back to TCP, without an error",
        "unset it, or name devices of this machine; = in front makes entries whole names",
    )]
}

fn ib_off(facts: &Facts) -> Vec<Observation> {
    let off = facts.settings.number("NCCL_IB_DISABLE") == Some(1);
    if !off || facts.infiniband.is_empty() || !facts.needs_gpus() {
        return Vec::new();
    }
    vec![Observation::new(
        Severity::Warning,
        format!(
            "{}, with RDMA devices {}",
            facts.settings.show("NCCL_IB_DISABLE"),
            list(&facts.infiniband, 12)
        ),
        "data between machines goes over TCP",
        "unset it, unless it works around a fault of the network",
    )]
}

#[cfg(test)]
mod tests {
    use super::passes;

    #[test]
    fn filters_are_read_as_nccl_reads_them() {
        for (filter, name, want) in [
            ("eth", "eth0", true),
            ("eth0", "eth01", true),
            ("=eth0", "eth01", false),
            ("=eth0,eth1", "eth1", true),
            ("^docker", "docker0", false),
            ("^docker,lo", "eth0", true),
            ("^=docker0", "docker01", true),
            ("=mlx5_0:1", "mlx5_0", true),
            ("ib", "eth0", false),
            ("", "eth0", true),
        ] {
            assert_eq!(passes(filter, name), want, "'{filter}' {name}");
        }
    }
}
