//! What each rank says of itself before anything can hang, and what may not differ.
//!
//! The vendors' libraries notice little of this, late, or by hanging: of two releases of NCCL, those
//! before 2.23.4 notice nothing, and an algorithm that one rank alone was told to use is a hang in the
//! first operation. So ranks compare, through the store, what can be compared.

use std::{collections::BTreeMap, env, path::PathBuf, process};

use collectives_core::{Backend as _, CommConfig, Device as _, ErrorKind, Result, Version};
use collectives_rendezvous::list_ranks;
use serde::{Deserialize, Serialize};

use super::meeting::{Agreement, Refusal};
use crate::{AnyBackend, AnyDevice};

/// What a rank says of itself when ranks meet. The store has it as JSON, under `roll/rank/R`.
///
/// Only the first four are needed: a program of another language that leaves out the others is not
/// compared in them, and what it adds is not read.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[non_exhaustive]
pub struct Peer {
    /// Of this exchange; 1. Higher where a rank of the number before could not take part.
    pub protocol: u32,
    /// Its rank.
    pub rank: u32,
    /// How many ranks it believes there are.
    pub size: usize,
    /// Its process, on its host.
    pub pid: u32,
    /// Its host, for people.
    #[serde(default)]
    pub host: String,
    /// Its host, for comparison: as NCCL tells hosts apart, by `NCCL_HOSTID`, else by name and boot.
    #[serde(default)]
    pub host_id: Option<String>,
    /// Its backend: `NCCL`, `RCCL`, `mock`.
    #[serde(default)]
    pub backend: Option<String>,
    /// The release of its library.
    #[serde(default)]
    pub version: Option<Version>,
    /// The file of its library.
    #[serde(default)]
    pub library: Option<PathBuf>,
    /// The release of this crate, where it uses this crate.
    #[serde(default)]
    pub collectives: Option<String>,
    /// The number of its device, in its process.
    #[serde(default)]
    pub device: Option<usize>,
    /// The name of its device.
    #[serde(default)]
    pub device_name: Option<String>,
    /// Its device's PCI address, `0000:3b:00.0`.
    #[serde(default)]
    pub pci_bus_id: Option<String>,
    /// Whether it wants to build connections before a communicator is handed out. If one does not, none does.
    #[serde(default)]
    pub warm_up: bool,
    /// Those variables that [change what libraries do](https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html)
    /// and are set.
    #[serde(default)]
    pub variables: BTreeMap<String, String>,
    /// How it has libraries run its communicators: what is set of [`CommConfig`], by the fields' names. None
    /// where it does not say.
    #[serde(default)]
    pub config: Option<BTreeMap<String, String>>,
    /// Why it cannot take part.
    #[serde(default)]
    pub error: Option<String>,
}

impl Peer {
    /// This process. An error in place of its backend is told to the others.
    pub(super) fn this(
        rank: u32,
        size: usize,
        place: &Result<(AnyBackend, AnyDevice)>,
        config: &CommConfig,
        warm_up: bool,
    ) -> Self {
        let set = config.set_fields().map(|(name, value)| (name.to_owned(), value));
        let mut peer = Self {
            protocol: PROTOCOL,
            rank,
            size,
            pid: process::id(),
            host: host_name(),
            host_id: Some(host_id()),
            backend: None,
            version: None,
            library: None,
            collectives: Some(env!("CARGO_PKG_VERSION").to_owned()),
            device: None,
            device_name: None,
            pci_bus_id: None,
            warm_up,
            variables: set_variables(),
            config: Some(set.collect()),
            error: None,
        };
        match place {
            Ok((backend, device)) => {
                let info = backend.info();
                peer.backend = Some(info.backend.to_owned());
                peer.version = Some(info.version);
                peer.library = info.path.clone();
                peer.device = Some(device.info().ordinal);
                peer.device_name = Some(device.info().name.clone());
                peer.pci_bus_id = device.info().pci_bus_id.clone();
            }
            Err(error) => peer.error = Some(error.to_string()),
        }
        peer
    }

    /// Where it is, for people.
    pub(super) fn place(&self) -> String {
        match self.host.as_str() {
            "" => format!("pid {}", self.pid),
            host => format!("pid {} on {host}", self.pid),
        }
    }

    fn library(&self) -> Option<String> {
        let backend = self.backend.as_deref()?;
        let version = self.version?;
        Some(match &self.library {
            Some(path) => format!("{backend} {version} ({})", path.display()),
            None => format!("{backend} {version}"),
        })
    }

    fn is_mock(&self) -> bool {
        self.backend.as_deref() == Some("mock")
    }

    /// Whether its library lets several ranks use one device, and was told to.
    fn may_share(&self) -> bool {
        let told = self.variables.get(SHARED_DEVICES).is_some_and(|value| value == "1");
        let able = self.backend.as_deref() == Some("NCCL")
            && self.version.is_some_and(|version| version >= Version::new(2, 30, 3));
        told && able
    }
}

/// What keeps these ranks from one communicator; or, if nothing does, what they agree on.
///
/// It comes to the same on whichever rank it is asked.
pub(super) fn compare(peers: &[Peer], differing_variables: bool) -> Result<Agreement, Refusal> {
    let failed: Vec<_> =
        peers.iter().filter_map(|peer| Some((peer, peer.error.as_ref()?))).collect();
    if let [(peer, error), ..] = failed[..] {
        let others = match failed.len() - 1 {
            0 => String::new(),
            more => format!(" (and {more} more)"),
        };
        let message = format!("rank {} cannot take part: {error}{others}", peer.rank);
        let hint = "its own words say what to do";
        return Err(Refusal::new(ErrorKind::Remote, message).with_hint(hint));
    }
    let differ = |what: &str, groups: Option<String>, hint: &str| match groups {
        Some(groups) => {
            Err(Refusal::new(ErrorKind::InvalidArgument, format!("{what} differ: {groups}"))
                .with_hint(hint))
        }
        None => Ok(()),
    };
    differ(
        "protocols of the exchange",
        groups(peers, |peer| Some(peer.protocol.to_string())),
        "run the same release of collectives on all ranks",
    )?;
    differ("world sizes", sizes(peers), SIZES_HINT)?;
    differ(
        "backends",
        groups(peers, |peer| peer.backend.clone()),
        "set COLLECTIVES_BACKEND to the same on all ranks",
    )?;
    // Named with their paths, but compared without: hosts may differ in these.
    if groups(peers, |peer| peer.version.map(|version| version.to_string())).is_some() {
        differ(
            "libraries",
            groups(peers, Peer::library),
            "one release on all ranks: see how each finds its library with 'collectives doctor'",
        )?;
    }
    if peers.iter().all(Peer::is_mock) {
        differ(
            "releases of collectives",
            groups(peers, |peer| peer.collectives.clone()),
            "the mock's ranks need the same release",
        )?;
        let hosts = |peer: &Peer| Some(peer.host.clone()).filter(|_| peer.host_id.is_some());
        if groups(peers, |peer| peer.host_id.clone()).is_some() {
            differ("hosts", groups(peers, hosts), "the mock's ranks are processes of one host")?;
        }
    } else {
        one_device_each(peers)?;
    }
    let mut warnings = settings(peers)?;
    warnings.extend(variables(peers, differing_variables)?);
    Ok(Agreement { warm_up: peers.iter().all(|peer| peer.warm_up), warnings })
}

/// What ranks say of the number of ranks, where they do not agree.
pub(super) fn sizes(peers: &[Peer]) -> Option<String> {
    groups(peers, |peer| Some(peer.size.to_string()))
}

/// As NCCL's and RCCL's joins do it, but before them.
fn one_device_each(peers: &[Peer]) -> Result<(), Refusal> {
    let mut users: BTreeMap<(&str, String), Vec<&Peer>> = BTreeMap::new();
    for peer in peers {
        if let (Some(host), Some(device)) = (&peer.host_id, &peer.pci_bus_id) {
            users.entry((host, device.to_lowercase())).or_default().push(peer);
        }
    }
    for ((_, device), users) in users {
        if users.len() == 1 || users.iter().all(|peer| peer.may_share()) {
            continue;
        }
        let ranks: Vec<_> = users.iter().map(|peer| peer.rank as usize).collect();
        let message = format!(
            "{} are all on device {device} of {}",
            list_ranks(&ranks),
            users.first().map_or("one host", |peer| &peer.host)
        );
        let hint = "give each rank a device of its own: by LOCAL_RANK, by with_device, or by what the \
                    launcher shows to each; NCCL 2.30.3 lets them share with NCCL_MULTI_RANK_GPU_ENABLE=1";
        return Err(Refusal::new(ErrorKind::InvalidArgument, message).with_hint(hint));
    }
    Ok(())
}

fn variables(peers: &[Peer], allowed: bool) -> Result<Vec<String>, Refusal> {
    let value = |peer: &Peer, name: &str| Some(setting(peer, name));
    let (errors, warnings) = differences(peers, &VARIABLES, value, allowed);
    if errors.is_empty() {
        return Ok(warnings);
    }
    let message = format!("variables differ that ranks must agree on: {}", errors.join("; "));
    Err(Refusal::new(ErrorKind::InvalidArgument, message)
        .with_hint("set them alike on all ranks, or let them differ: with_differing_variables"))
}

fn settings(peers: &[Peer]) -> Result<Vec<String>, Refusal> {
    let value = |peer: &Peer, name: &str| {
        let config = peer.config.as_ref()?;
        Some(config.get(name).map_or("not set", String::as_str).to_owned())
    };
    let (errors, warnings) = differences(peers, &SETTINGS, value, false);
    if errors.is_empty() {
        return Ok(warnings);
    }
    let message =
        format!("communicator settings differ that ranks must agree on: {}", errors.join("; "));
    Err(Refusal::new(ErrorKind::InvalidArgument, message)
        .with_hint("give all ranks the same with_comm_config"))
}

/// What may not differ and does, and what differs and may.
fn differences(
    peers: &[Peer],
    names: &[(&str, Scope)],
    value: impl Fn(&Peer, &str) -> Option<String>,
    allowed: bool,
) -> (Vec<String>, Vec<String>) {
    let (mut errors, mut warnings) = (Vec::new(), Vec::new());
    let several_hosts = groups(peers, |peer| peer.host_id.clone()).is_some();
    for (name, scope) in names {
        let value = |peer: &Peer| value(peer, name);
        let Some(all) = groups(peers, value) else { continue };
        let conflict = match scope {
            Scope::Advice => None,
            Scope::Host => hosts(peers).into_values().find_map(|peers| groups(&peers, value)),
            Scope::Hosts => Some(all.clone()).filter(|_| several_hosts),
            Scope::Job => Some(all.clone()),
        };
        match conflict {
            Some(groups) if !allowed => errors.push(format!("{name} ({groups})")),
            _ => warnings.push(format!("{name} differs: {all}")),
        }
    }
    (errors, warnings)
}

/// The value as libraries read it: without regard to case and blanks.
fn setting(peer: &Peer, name: &str) -> String {
    match peer.variables.get(name).map(|value| value.trim()) {
        None | Some("") => "not set".to_owned(),
        Some(value) => value.to_uppercase(),
    }
}

fn hosts(peers: &[Peer]) -> BTreeMap<Option<&str>, Vec<Peer>> {
    let mut hosts: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for peer in peers {
        hosts.entry(peer.host_id.as_deref()).or_default().push(peer.clone());
    }
    hosts
}

/// `ranks 0 to 2: 8; rank 3: 4`, the ranks by what they say; `None` if all that say something agree.
fn groups(peers: &[Peer], value: impl Fn(&Peer) -> Option<String>) -> Option<String> {
    let mut groups: Vec<(String, Vec<usize>)> = Vec::new();
    for peer in peers {
        let Some(value) = value(peer) else { continue };
        match groups.iter_mut().find(|(known, _)| *known == value) {
            Some((_, ranks)) => ranks.push(peer.rank as usize),
            None => groups.push((value, vec![peer.rank as usize])),
        }
    }
    if groups.len() < 2 {
        return None;
    }
    let texts: Vec<_> =
        groups.iter().map(|(value, ranks)| format!("{}: {value}", list_ranks(ranks))).collect();
    Some(texts.join("; "))
}

fn set_variables() -> BTreeMap<String, String> {
    let names = VARIABLES.iter().map(|(name, _)| *name).chain([SHARED_DEVICES]);
    names
        .filter_map(|name| {
            Some((name.to_owned(), env::var_os(name)?.to_string_lossy().into_owned()))
        })
        .collect()
}

/// As NCCL makes its own (`getHostHash` in its `utils.cc`), so that both see the same hosts.
fn host_id() -> String {
    if let Some(id) = env::var_os("NCCL_HOSTID").filter(|id| !id.is_empty()) {
        return id.to_string_lossy().into_owned();
    }
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    format!("{}/{}", host_name(), boot.trim())
}

#[cfg(unix)]
fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(not(unix))]
fn host_name() -> String {
    env::var("COMPUTERNAME").unwrap_or_default()
}

/// Among which ranks a variable or a setting must be the same.
#[derive(Clone, Copy)]
enum Scope {
    /// None: ranks come to terms, or only speed differs.
    Advice,
    /// Those of one host, which reach each other by what it turns on or off.
    Host,
    /// All, if there are several hosts.
    Hosts,
    /// All: each rank decides by it for itself, and peers must have decided the same.
    Job,
}

/// Variables that change what NCCL and RCCL do, by what their sources do with them (NCCL 2.30). Not here
/// are those that name files and interfaces, which differ between hosts, and those for output.
const VARIABLES: [(&str, Scope); 33] = [
    ("NCCL_ALGO", Scope::Job),
    ("NCCL_BUFFSIZE", Scope::Job),
    ("NCCL_COLLNET_ENABLE", Scope::Job),
    ("NCCL_CUMEM_ENABLE", Scope::Advice),
    ("NCCL_CUMEM_HOST_ENABLE", Scope::Advice),
    ("NCCL_GRAPH_REGISTER", Scope::Advice),
    ("NCCL_IB_DISABLE", Scope::Hosts),
    ("NCCL_LL128_BUFFSIZE", Scope::Job),
    ("NCCL_LL128_NTHREADS", Scope::Job),
    ("NCCL_LL_BUFFSIZE", Scope::Job),
    ("NCCL_LOCAL_REGISTER", Scope::Advice),
    ("NCCL_MAX_CTAS", Scope::Job),
    ("NCCL_MAX_NCHANNELS", Scope::Job),
    ("NCCL_MAX_NRINGS", Scope::Job),
    ("NCCL_MIN_CTAS", Scope::Job),
    ("NCCL_MIN_NCHANNELS", Scope::Job),
    ("NCCL_MIN_NRINGS", Scope::Job),
    ("NCCL_MNNVL_ENABLE", Scope::Advice),
    ("NCCL_NET", Scope::Hosts),
    ("NCCL_NTHREADS", Scope::Job),
    ("NCCL_NVLS_CHUNKSIZE", Scope::Job),
    ("NCCL_NVLS_ENABLE", Scope::Advice),
    ("NCCL_P2P_DISABLE", Scope::Host),
    ("NCCL_P2P_LEVEL", Scope::Host),
    ("NCCL_P2P_NET_CHUNKSIZE", Scope::Job),
    ("NCCL_P2P_NVL_CHUNKSIZE", Scope::Job),
    ("NCCL_P2P_PCI_CHUNKSIZE", Scope::Job),
    ("NCCL_PAT_ENABLE", Scope::Job),
    ("NCCL_PROTO", Scope::Job),
    ("NCCL_PXN_DISABLE", Scope::Advice),
    ("NCCL_RUNTIME_CONNECT", Scope::Job),
    ("NCCL_SHM_DISABLE", Scope::Host),
    ("RCCL_MSCCL_ENABLE", Scope::Job),
];

/// Fields of [`CommConfig`], by what NCCL does with them (2.30.7; of the later ones, by what they are documented
/// for). Those that variables set, too, are as these.
const SETTINGS: [(&str, Scope); 20] = [
    // An attribute of this rank's launches.
    ("cga_cluster_size", Scope::Advice),
    // Channels of collectives; ranks have come to terms about them before these limits are put.
    ("ctas", Scope::Job),
    ("network", Scope::Hosts),
    // Who shares has the connections of the parent, and waits for nobody to make them.
    ("split_share", Scope::Job),
    ("traffic_class", Scope::Advice),
    ("collnet", Scope::Job),
    // Algorithms, and whether they are kernels or copies.
    ("cta_policy", Scope::Job),
    ("shrink_share", Scope::Job),
    ("nvls_ctas", Scope::Job),
    // Where it is set it is no longer fitted to the number of peers.
    ("channels_per_net_peer", Scope::Job),
    ("nvlink_centric_schedule", Scope::Advice),
    // How this rank orders its own launches.
    ("graph_usage", Scope::Advice),
    // What ranks connect, and lay out in each other's memory.
    ("rma_contexts", Scope::Job),
    // The most that a rank has said holds for all.
    ("max_p2p_peers", Scope::Advice),
    ("graph_stream_ordering", Scope::Advice),
    ("launch_order_implicit", Scope::Advice),
    ("rma_signals", Scope::Job),
    ("rma_eager_init", Scope::Job),
    ("host_cft", Scope::Job),
    // As NCCL_NVLS_ENABLE: all do without what one does without.
    ("nvls_host", Scope::Advice),
];

/// Lets ranks of NCCL 2.30.3 share a device.
const SHARED_DEVICES: &str = "NCCL_MULTI_RANK_GPU_ENABLE";

/// The exchange's.
const PROTOCOL: u32 = 1;

/// What to do where ranks do not agree how many they are.
pub(super) const SIZES_HINT: &str =
    "start all ranks of one job with one launcher, or set WORLD_SIZE alike";

#[cfg(test)]
mod tests {
    use collectives_core::{CtaPolicy, GraphUsage, HostCft, NvlsHost};

    use super::*;

    fn peers(size: usize) -> Vec<Peer> {
        let peer = |rank| Peer {
            protocol: PROTOCOL,
            rank,
            size,
            pid: 100 + rank,
            host: "alpha".into(),
            host_id: Some("alpha/1".into()),
            backend: Some("NCCL".into()),
            version: Some(Version::new(2, 28, 9)),
            library: Some("/opt/libnccl.so.2".into()),
            collectives: None,
            device: Some(rank as usize),
            device_name: None,
            pci_bus_id: Some(format!("0000:{rank:02x}:00.0")),
            warm_up: true,
            variables: BTreeMap::new(),
            config: Some(BTreeMap::new()),
            error: None,
        };
        (0..size as u32).map(peer).collect()
    }

    fn warnings(peers: &[Peer]) -> Vec<String> {
        compare(peers, false).unwrap().warnings
    }

    fn refused(peers: &[Peer]) -> String {
        compare(peers, false).unwrap_err().message
    }

    #[test]
    fn what_agrees_is_accepted() {
        assert!(warnings(&peers(5)).is_empty());
        assert!(compare(&peers(5), false).unwrap().warm_up);
    }

    #[test]
    fn other_releases_are_named_with_their_files() {
        let mut peers = peers(5);
        peers[3].version = Some(Version::new(2, 21, 5));
        peers[3].library = Some("/venv/libnccl.so.2".into());
        assert_eq!(
            refused(&peers),
            "libraries differ: ranks 0 to 2 and 4: NCCL 2.28.9 (/opt/libnccl.so.2); rank 3: NCCL 2.21.5 \
             (/venv/libnccl.so.2)"
        );
    }

    #[test]
    fn one_release_from_two_files_is_one_release() {
        let mut peers = peers(2);
        peers[1].library = Some("/elsewhere/libnccl.so.2".into());
        assert!(warnings(&peers).is_empty());
    }

    #[test]
    fn what_is_not_said_is_not_compared() {
        let mut peers = peers(3);
        let said = r#"{"protocol": 1, "rank": 2, "size": 3, "pid": 7, "novelty": [1]}"#;
        peers[2] = serde_json::from_str(said).unwrap();
        assert!(warnings(&peers).is_empty());
        assert!(!compare(&peers, false).unwrap().warm_up);
    }

    #[test]
    fn backends_and_sizes_must_agree() {
        let mut mixed = peers(2);
        mixed[1].backend = Some("mock".into());
        assert_eq!(refused(&mixed), "backends differ: rank 0: NCCL; rank 1: mock");
        let mut sized = peers(2);
        sized[1].size = 4;
        assert_eq!(refused(&sized), "world sizes differ: rank 0: 2; rank 1: 4");
    }

    #[test]
    fn a_device_has_one_rank_unless_nccl_was_told_otherwise() {
        let mut peers = peers(3);
        peers[2].pci_bus_id = Some("0000:00:00.0".into());
        assert_eq!(refused(&peers), "ranks 0 and 2 are all on device 0000:00:00.0 of alpha");

        peers[2].host_id = Some("beta/2".into());
        assert!(warnings(&peers).is_empty());

        peers[2].host_id = Some("alpha/1".into());
        for peer in &mut peers {
            peer.variables.insert(SHARED_DEVICES.into(), "1".into());
        }
        refused(&peers);
        for peer in &mut peers {
            peer.version = Some(Version::new(2, 30, 3));
        }
        assert!(warnings(&peers).is_empty());
    }

    #[test]
    fn variables_are_compared_where_they_matter() {
        let with = |name: &str, rank: usize, value: &str| {
            let mut peers = peers(3);
            peers[2].host_id = Some("beta/2".into());
            peers[rank].variables.insert(name.into(), value.into());
            peers
        };
        let ring = with("NCCL_ALGO", 1, "Ring");
        assert_eq!(
            refused(&ring),
            "variables differ that ranks must agree on: NCCL_ALGO (ranks 0 and 2: not set; rank 1: RING)"
        );
        assert_eq!(compare(&ring, true).unwrap().warnings.len(), 1);
        // Rank 2 is alone on its host.
        assert_eq!(
            warnings(&with("NCCL_P2P_DISABLE", 2, "1")),
            ["NCCL_P2P_DISABLE differs: ranks 0 and 1: NOT SET; rank 2: 1"
                .replace("NOT SET", "not set")]
        );
        refused(&with("NCCL_P2P_DISABLE", 1, "1"));
        refused(&with("NCCL_NET", 1, "Socket"));
        assert_eq!(warnings(&with("NCCL_CUMEM_ENABLE", 1, "0")).len(), 1);
    }

    #[test]
    fn settings_are_compared_where_they_are_said_and_matter() {
        let with = |rank: usize, config: CommConfig| {
            let mut peers = peers(3);
            let set = config.set_fields().map(|(name, value)| (name.to_owned(), value));
            peers[rank].config = Some(set.collect());
            peers
        };
        let mut peers =
            with(1, CommConfig::new().with_ctas(1..=4).with_graph_usage(GraphUsage::Only));
        assert_eq!(
            refused(&peers),
            "communicator settings differ that ranks must agree on: ctas (ranks 0 and 2: not set; \
             rank 1: 1..=4)"
        );
        refused(&with(2, CommConfig::new().with_cta_policy(CtaPolicy::ZERO)));
        // A rank of another language does not say.
        peers[0].config = None;
        peers[2].config = None;
        assert!(warnings(&peers).is_empty());
        assert_eq!(
            warnings(&with(0, CommConfig::new().with_graph_usage(GraphUsage::Never))),
            ["graph_usage differs: rank 0: Never; ranks 1 and 2: not set"]
        );
        // One host needs no network.
        let mut network = with(0, CommConfig::new().with_network("Socket"));
        assert_eq!(warnings(&network).len(), 1);
        network[2].host_id = Some("beta/2".into());
        refused(&network);
    }

    #[test]
    fn every_setting_is_compared() {
        let all = CommConfig::new()
            .with_cga_cluster_size(1_u32)
            .with_ctas(1..=2)
            .with_network("Socket")
            .with_split_share(true)
            .with_traffic_class(1)
            .with_collnet(true)
            .with_cta_policy(CtaPolicy::ZERO)
            .with_shrink_share(true)
            .with_nvls_ctas(1_u32)
            .with_channels_per_net_peer(1_u32)
            .with_nvlink_centric_schedule(true)
            .with_graph_usage(GraphUsage::Only)
            .with_rma_contexts(1_u32)
            .with_max_p2p_peers(1_u32)
            .with_graph_stream_ordering(true)
            .with_launch_order_implicit(true)
            .with_rma_signals(1_u32)
            .with_rma_eager_init(true)
            .with_host_cft(HostCft::Disable)
            .with_nvls_host(NvlsHost::Disable);
        let fields: Vec<_> = all.set_fields().map(|(name, _)| name).collect();
        assert_eq!(fields, SETTINGS.map(|(name, _)| name));
    }

    #[test]
    fn the_mock_needs_one_host_and_one_release_but_no_devices() {
        let mut peers = peers(2);
        for peer in &mut peers {
            peer.backend = Some("mock".into());
            peer.pci_bus_id = None;
        }
        assert!(warnings(&peers).is_empty());
        peers[1].host_id = Some("beta/2".into());
        peers[1].host = "beta".into();
        assert_eq!(refused(&peers), "hosts differ: rank 0: alpha; rank 1: beta");
    }

    #[test]
    fn who_cannot_take_part_is_named_first() {
        let mut peers = peers(3);
        peers[1] = serde_json::from_str(
            r#"{"protocol": 1, "rank": 1, "size": 3, "pid": 7, "error": "no library"}"#,
        )
        .unwrap();
        assert_eq!(refused(&peers), "rank 1 cannot take part: no library");
    }
}
