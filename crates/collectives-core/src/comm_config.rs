//! How a library is to run a communicator.

use std::{
    ffi::CString,
    ops::{BitOr, RangeInclusive},
};

use crate::{Error, ErrorKind, Result};

/// The settings that NCCL and RCCL take for one communicator. What is not set is the library's choice,
/// or its environment variables'.
///
/// Every rank gives the same. A library that is too old for a field would ignore it without a word; so
/// it is refused with the release that has it. The mock checks the values, and does as it always does.
///
/// ```
/// use collectives_core::{CommConfig, CtaPolicy, GraphUsage, JoinConfig};
///
/// let config = CommConfig::new()
///     .with_ctas(4..=16)
///     .with_cta_policy(CtaPolicy::EFFICIENCY)
///     .with_graph_usage(GraphUsage::Only);
/// let join = JoinConfig::new(0, 8).with_config(config);
/// # let _ = join;
/// ```
#[doc(alias = "ncclConfig_t")]
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct CommConfig {
    /// Thread blocks in a cluster, on GPUs that have clusters; 0 for none.
    pub cga_cluster_size: Option<u32>,
    /// Thread blocks that an operation may use, at least and at most. They are set together, since
    /// the library compares a minimum with a maximum that is not there.
    pub ctas: Option<RangeInclusive<u32>>,
    /// The network by its name: `Socket`, `IB`, or a plugin's.
    pub network: Option<String>,
    /// Whether parts that are [split](crate::Split::split) off share resources with this one. Then
    /// ends and aborts of one concern the others, and none of them can be revoked or suspended.
    pub split_share: Option<bool>,
    /// The traffic class of the network.
    pub traffic_class: Option<i32>,
    /// Whether switches may reduce (CollNet).
    pub collnet: Option<bool>,
    /// What to save thread blocks for.
    pub cta_policy: Option<CtaPolicy>,
    /// As [`split_share`](Self::split_share), for [shrinks](crate::Split::shrink).
    pub shrink_share: Option<bool>,
    /// Thread blocks for operations in NVLink switches.
    pub nvls_ctas: Option<u32>,
    /// Channels for each peer across the network.
    pub channels_per_net_peer: Option<u32>,
    /// Whether to schedule for NVLink first.
    pub nvlink_centric_schedule: Option<bool>,
    /// How graphs use the communicator.
    pub graph_usage: Option<GraphUsage>,
    /// Contexts of one-sided operations.
    pub rma_contexts: Option<u32>,
    /// Peers with which messages are exchanged at the same time, at most.
    pub max_p2p_peers: Option<u32>,
    /// Whether operations that are captured on different streams of one graph are ordered.
    pub graph_stream_ordering: Option<bool>,
    /// Whether the library orders the launches of several communicators by itself.
    pub launch_order_implicit: Option<bool>,
    /// Signals of one-sided operations.
    pub rma_signals: Option<u32>,
    /// Whether one-sided operations are set up at once, and not when they are first used.
    pub rma_eager_init: Option<bool>,
    /// Whether the host uses counted writes (CFT).
    pub host_cft: Option<HostCft>,
    /// What of NVLink SHARP the host uses.
    pub nvls_host: Option<NvlsHost>,
}

macro_rules! setters {
    ($($field:ident: $type:ty, $setter:ident;)*) => {$(
        #[doc = concat!("Sets [`", stringify!($field), "`](Self::", stringify!($field), ").")]
        #[must_use]
        pub fn $setter(mut self, value: impl Into<$type>) -> Self {
            self.$field = Some(value.into());
            self
        }
    )*};
}

impl CommConfig {
    /// Leaves everything to the library.
    pub fn new() -> Self {
        Self::default()
    }

    setters! {
        cga_cluster_size: u32, with_cga_cluster_size;
        ctas: RangeInclusive<u32>, with_ctas;
        network: String, with_network;
        split_share: bool, with_split_share;
        traffic_class: i32, with_traffic_class;
        collnet: bool, with_collnet;
        cta_policy: CtaPolicy, with_cta_policy;
        shrink_share: bool, with_shrink_share;
        nvls_ctas: u32, with_nvls_ctas;
        channels_per_net_peer: u32, with_channels_per_net_peer;
        nvlink_centric_schedule: bool, with_nvlink_centric_schedule;
        graph_usage: GraphUsage, with_graph_usage;
        rma_contexts: u32, with_rma_contexts;
        max_p2p_peers: u32, with_max_p2p_peers;
        graph_stream_ordering: bool, with_graph_stream_ordering;
        launch_order_implicit: bool, with_launch_order_implicit;
        rma_signals: u32, with_rma_signals;
        rma_eager_init: bool, with_rma_eager_init;
        host_cft: HostCft, with_host_cft;
        nvls_host: NvlsHost, with_nvls_host;
    }

    /// The fields that are set, by their names, and their values as text: for comparing ranks.
    pub fn set_fields(&self) -> impl Iterator<Item = (&'static str, String)> {
        let Self {
            cga_cluster_size,
            ctas,
            network,
            split_share,
            traffic_class,
            collnet,
            cta_policy,
            shrink_share,
            nvls_ctas,
            channels_per_net_peer,
            nvlink_centric_schedule,
            graph_usage,
            rma_contexts,
            max_p2p_peers,
            graph_stream_ordering,
            launch_order_implicit,
            rma_signals,
            rma_eager_init,
            host_cft,
            nvls_host,
        } = self;
        let count = |count: &Option<u32>| count.map(|count| count.to_string());
        let flag = |flag: &Option<bool>| flag.map(|flag| flag.to_string());
        let fields = [
            ("cga_cluster_size", count(cga_cluster_size)),
            ("ctas", ctas.as_ref().map(|ctas| format!("{ctas:?}"))),
            // Libraries compare it so.
            ("network", network.as_ref().map(|network| network.to_lowercase())),
            ("split_share", flag(split_share)),
            ("traffic_class", traffic_class.map(|class| class.to_string())),
            ("collnet", flag(collnet)),
            ("cta_policy", cta_policy.map(|policy| policy.bits().to_string())),
            ("shrink_share", flag(shrink_share)),
            ("nvls_ctas", count(nvls_ctas)),
            ("channels_per_net_peer", count(channels_per_net_peer)),
            ("nvlink_centric_schedule", flag(nvlink_centric_schedule)),
            ("graph_usage", graph_usage.map(|usage| format!("{usage:?}"))),
            ("rma_contexts", count(rma_contexts)),
            ("max_p2p_peers", count(max_p2p_peers)),
            ("graph_stream_ordering", flag(graph_stream_ordering)),
            ("launch_order_implicit", flag(launch_order_implicit)),
            ("rma_signals", count(rma_signals)),
            ("rma_eager_init", flag(rma_eager_init)),
            ("host_cft", host_cft.map(|mode| format!("{mode:?}"))),
            ("nvls_host", nvls_host.map(|mode| format!("{mode:?}"))),
        ];
        fields.into_iter().filter_map(|(name, value)| Some((name, value?)))
    }

    /// Refuses values that no library takes. Backends call it before theirs.
    ///
    /// # Errors
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) naming the field, its value, and what is
    /// wanted.
    pub fn check(&self) -> Result<()> {
        let refuse = |message: String| Err(Error::new(ErrorKind::InvalidArgument, message));
        let counts = [
            ("cga_cluster_size", self.cga_cluster_size, 0),
            ("the least of ctas", self.ctas.as_ref().map(|ctas| *ctas.start()), 1),
            ("the most of ctas", self.ctas.as_ref().map(|ctas| *ctas.end()), 1),
            ("nvls_ctas", self.nvls_ctas, 1),
            ("channels_per_net_peer", self.channels_per_net_peer, 1),
            ("rma_contexts", self.rma_contexts, 0),
            ("max_p2p_peers", self.max_p2p_peers, 1),
            ("rma_signals", self.rma_signals, 0),
        ];
        for (name, count, least) in counts {
            if let Some(count) =
                count.filter(|&count| count < least || i32::try_from(count).is_err())
            {
                return refuse(format!("{name} is {count}, want {least} to {}", i32::MAX));
            }
        }
        if let Some(ctas) = self.ctas.as_ref().filter(|ctas| ctas.is_empty()) {
            let (least, most) = (ctas.start(), ctas.end());
            return refuse(format!("ctas is {least} at least and {most} at most, want a range"));
        }
        if self.traffic_class == Some(i32::MIN) {
            return refuse(format!("traffic_class is {}, which means none is set", i32::MIN));
        }
        if let Some(network) = self.network.as_ref().filter(|network| network.contains('\0')) {
            return refuse(format!("network is {network:?}, want no NUL byte"));
        }
        let mixed = self.graph_usage.is_none_or(|usage| usage == GraphUsage::Mixed);
        if self.graph_stream_ordering == Some(false) && mixed {
            let text = "graph_stream_ordering is off, want graph_usage to be Never or Only with it";
            return refuse(text.to_owned());
        }
        Ok(())
    }
}

/// How the library is to run one collective: see [`Launch::with_config`](crate::Launch::with_config).
/// What is not set is left to the library.
///
/// Requires [`Capabilities::call_config`](crate::Capabilities::call_config). All ranks give the same
/// for the same collective, but for the tag.
///
/// ```
/// use collectives_core::{CallConfig, CtaPolicy};
/// let config = CallConfig::new().with_ctas(1..=4).with_cta_policy(CtaPolicy::EFFICIENCY);
/// assert!(config.check().is_ok());
/// assert!(CallConfig::new().with_ctas(0..=4).check().is_err());
/// ```
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct CallConfig {
    /// Fewest and most thread blocks.
    pub ctas: Option<RangeInclusive<u32>>,
    /// Thread blocks for NVLink SHARP.
    pub nvls_ctas: Option<u32>,
    /// Thread-block clusters: the same for all collectives of a group.
    pub cga_cluster_size: Option<u32>,
    /// What thread blocks are to be saved for.
    pub cta_policy: Option<CtaPolicy>,
    /// An algorithm, as the library names it.
    pub algorithm: Option<CString>,
    /// Whether the library takes another algorithm where that one cannot run; else that is an error.
    pub or_another: bool,
    /// A tag that plugins of profilers see; 0 is none. The upper half of the numbers is NCCL's.
    pub profiler_tag: u64,
}

impl CallConfig {
    /// The others are reserved (`nccl.h`, 2.31).
    const LAST_PROFILER_TAG: u64 = u64::MAX >> 1;

    /// Leaves everything to the library.
    pub fn new() -> Self {
        Self::default()
    }

    setters! {
        ctas: RangeInclusive<u32>, with_ctas;
        nvls_ctas: u32, with_nvls_ctas;
        cga_cluster_size: u32, with_cga_cluster_size;
        cta_policy: CtaPolicy, with_cta_policy;
        algorithm: CString, with_algorithm;
    }

    /// Lets the library take another algorithm where the one that is named cannot run.
    #[must_use]
    pub const fn or_another(mut self) -> Self {
        self.or_another = true;
        self
    }

    /// Sets [`profiler_tag`](Self::profiler_tag).
    #[must_use]
    pub const fn with_profiler_tag(mut self, tag: u64) -> Self {
        self.profiler_tag = tag;
        self
    }

    /// Refuses values that no library takes. Backends call it.
    ///
    /// # Errors
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) naming the field, its value, and what is
    /// wanted.
    pub fn check(&self) -> Result<()> {
        let mut like_a_communicator = CommConfig::new();
        like_a_communicator.ctas.clone_from(&self.ctas);
        like_a_communicator.nvls_ctas = self.nvls_ctas;
        like_a_communicator.cga_cluster_size = self.cga_cluster_size;
        like_a_communicator.check()?;
        if self.profiler_tag > Self::LAST_PROFILER_TAG {
            let (tag, last) = (self.profiler_tag, Self::LAST_PROFILER_TAG);
            let message = format!("profiler_tag is {tag:#x}, want {last:#x} at most");
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        Ok(())
    }
}

/// How graphs use a communicator.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum GraphUsage {
    /// It is never captured.
    Never,
    /// It is only used inside graphs, after a warm-up. Spares each captured operation its ordering
    /// against calls outside.
    Only,
    /// Both, in any order: what libraries do unless told otherwise.
    Mixed,
}

/// What thread blocks are to be saved for. Policies can be combined with `|`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CtaPolicy(u8);

impl CtaPolicy {
    /// As fast as possible.
    pub const DEFAULT: Self = Self(0);
    /// As few as the bandwidth allows. NCCL 2.27.3.
    pub const EFFICIENCY: Self = Self(1);
    /// None, where copy engines can do it. NCCL 2.28.3.
    pub const ZERO: Self = Self(2);

    /// The bits, as the libraries have them.
    pub const fn bits(self) -> u8 {
        self.0
    }
}

impl BitOr for CtaPolicy {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Whether the host uses counted writes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum HostCft {
    /// It does, or the join fails.
    Enable,
    /// It does not.
    Disable,
    /// It does where that is possible.
    Fallback,
}

/// What of NVLink SHARP the host uses.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NvlsHost {
    /// All of it.
    Enable,
    /// Not the transport.
    WithoutTransport,
    /// Not the multicast of symmetric memory.
    WithoutSymmetricMulticast,
    /// Nothing.
    Disable,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_values_are_named() {
        let new = CommConfig::new;
        #[expect(clippy::reversed_empty_ranges, reason = "it is what is refused")]
        let reversed = new().with_ctas(4..=2);
        for (config, message) in [
            (new().with_ctas(0..=4), "the least of ctas is 0, want 1 to 2147483647"),
            (reversed, "ctas is 4 at least and 2 at most, want a range"),
            (new().with_nvls_ctas(0_u32), "nvls_ctas is 0, want 1 to 2147483647"),
            (
                new().with_rma_contexts(1_u32 << 31),
                "rma_contexts is 2147483648, want 0 to 2147483647",
            ),
            (new().with_network("a\0b"), "network is \"a\\0b\", want no NUL byte"),
            (
                new().with_graph_stream_ordering(false),
                "graph_stream_ordering is off, want graph_usage to be Never or Only with it",
            ),
        ] {
            let error = config.check().unwrap_err();
            assert_eq!((error.kind(), error.message()), (ErrorKind::InvalidArgument, message));
        }
        let ordered = new().with_graph_stream_ordering(false).with_graph_usage(GraphUsage::Only);
        for config in [new(), ordered, new().with_ctas(1..=1).with_cga_cluster_size(0_u32)] {
            config.check().unwrap();
        }
    }

    #[test]
    fn what_is_set_has_a_name_and_a_text() {
        let config = CommConfig::new()
            .with_ctas(4..=16)
            .with_network("Socket")
            .with_collnet(false)
            .with_cta_policy(CtaPolicy::EFFICIENCY)
            .with_graph_usage(GraphUsage::Only);
        let fields: Vec<_> = config.set_fields().collect();
        let want = [
            ("ctas", "4..=16"),
            ("network", "socket"),
            ("collnet", "false"),
            ("cta_policy", "1"),
            ("graph_usage", "Only"),
        ];
        assert_eq!(fields, want.map(|(name, value)| (name, value.to_owned())));
        assert_eq!(CommConfig::new().set_fields().count(), 0);
    }

    #[test]
    fn half_of_the_profiler_tags_are_reserved() {
        let tagged = |tag| CallConfig::new().with_profiler_tag(tag).check();
        tagged(u64::MAX >> 1).unwrap();
        assert_eq!(
            tagged(1 << 63).unwrap_err().message(),
            "profiler_tag is 0x8000000000000000, want 0x7fffffffffffffff at most"
        );
    }

    #[test]
    fn policies_combine() {
        assert_eq!((CtaPolicy::EFFICIENCY | CtaPolicy::ZERO).bits(), 3);
    }
}
