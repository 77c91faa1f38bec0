//! [`CommConfig`] as the library's `ncclConfig_t`.
//!
//! An older library reads as much of the struct as it knows and ignores the rest without a word. So
//! each field has the release that brought it, of both vendors, as RCCL's version is that of the NCCL
//! release it follows; and one that the library would ignore is refused.

use std::{
    ffi::{CString, c_int},
    ptr,
};

use collectives_core::{
    CallConfig, Capabilities, CommConfig, GraphUsage, HostCft, NvlsHost, Result, Support, shape,
};
use collectives_nccl_abi::{
    ncclCollConfig_t, ncclConfig_t,
    types::{ncclHostCftMode_t, ncclNvlsHostMode_t},
};

use crate::capabilities::version;

/// A checked configuration, with the text that the library reads while it makes the communicator.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    config: CommConfig,
    network: Option<CString>,
}

impl Settings {
    /// Checks a configuration for a library of version `code`.
    ///
    /// # Errors
    /// [`InvalidArgument`](collectives_core::ErrorKind::InvalidArgument) and
    /// [`Unsupported`](collectives_core::ErrorKind::Unsupported), naming the field.
    pub(crate) fn new(
        config: CommConfig,
        code: c_int,
        capabilities: &Capabilities,
    ) -> Result<Self> {
        shape::comm_config(&config, capabilities)?;
        for (field, is_set, since) in fields(&config) {
            if is_set && code < since {
                let support = Support::Unsupported { since: Some(version(since)) };
                support.require(&format!("configuration of {field}"))?;
            }
        }
        // Checked to hold no NUL.
        let network = config.network.clone().and_then(|network| CString::new(network).ok());
        Ok(Self { config, network })
    }

    /// Writes what is set. The result points into `self`, and is read while a call runs.
    pub(crate) fn write(&self, raw: &mut ncclConfig_t) {
        let CommConfig {
            cga_cluster_size,
            ctas,
            network: _,
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
            ..
        } = &self.config;
        // Checked to fit.
        let count = |count: &u32| *count as c_int;
        let flag = |flag: &bool| c_int::from(*flag);
        let set = |place: &mut c_int, value: Option<c_int>| *place = value.unwrap_or(*place);
        set(&mut raw.cgaClusterSize, cga_cluster_size.as_ref().map(count));
        set(&mut raw.minCTAs, ctas.as_ref().map(|ctas| *ctas.start() as c_int));
        set(&mut raw.maxCTAs, ctas.as_ref().map(|ctas| *ctas.end() as c_int));
        raw.netName = self.network.as_ref().map_or(ptr::null(), |network| network.as_ptr());
        set(&mut raw.splitShare, split_share.as_ref().map(flag));
        set(&mut raw.trafficClass, *traffic_class);
        set(&mut raw.collnetEnable, collnet.as_ref().map(flag));
        set(&mut raw.CTAPolicy, cta_policy.map(|policy| c_int::from(policy.bits())));
        set(&mut raw.shrinkShare, shrink_share.as_ref().map(flag));
        set(&mut raw.nvlsCTAs, nvls_ctas.as_ref().map(count));
        set(&mut raw.nChannelsPerNetPeer, channels_per_net_peer.as_ref().map(count));
        set(&mut raw.nvlinkCentricSched, nvlink_centric_schedule.as_ref().map(flag));
        set(&mut raw.graphUsageMode, graph_usage.map(graph_usage_mode));
        set(&mut raw.numRmaCtx, rma_contexts.as_ref().map(count));
        set(&mut raw.maxP2pPeers, max_p2p_peers.as_ref().map(count));
        set(&mut raw.graphStreamOrdering, graph_stream_ordering.as_ref().map(flag));
        set(&mut raw.launchOrderImplicit, launch_order_implicit.as_ref().map(flag));
        set(&mut raw.numRmaSig, rma_signals.as_ref().map(count));
        set(&mut raw.rmaEagerInit, rma_eager_init.as_ref().map(flag));
        raw.hostCftMode = host_cft.map_or(raw.hostCftMode, host_cft_mode);
        raw.nvlsHostMode = nvls_host.map_or(raw.nvlsHostMode, nvls_host_mode);
    }
}

/// The configuration of one collective, with the text that the library reads.
pub(crate) struct OneCall {
    raw: ncclCollConfig_t,
    /// Where `raw` points.
    _algorithm: Option<CString>,
}

impl OneCall {
    /// Takes over a configuration that was checked.
    pub(crate) fn new(config: &CallConfig) -> Self {
        let CallConfig {
            ctas,
            nvls_ctas,
            cga_cluster_size,
            cta_policy,
            algorithm,
            or_another,
            profiler_tag,
            ..
        } = config.clone();
        let mut raw = ncclCollConfig_t::undefined();
        // Checked to fit.
        let set = |place: &mut c_int, value: Option<u32>| {
            *place = value.map_or(*place, |value| value as c_int);
        };
        set(&mut raw.minCTAs, ctas.as_ref().map(|ctas| *ctas.start()));
        set(&mut raw.maxCTAs, ctas.as_ref().map(|ctas| *ctas.end()));
        set(&mut raw.nvlsCTAs, nvls_ctas);
        set(&mut raw.cgaClusterSize, cga_cluster_size);
        set(&mut raw.CTAPolicy, cta_policy.map(|policy| u32::from(policy.bits())));
        raw.algSelection = algorithm.as_ref().map_or(ptr::null(), |name| name.as_ptr());
        raw.forceAlgSelection = c_int::from(!or_another);
        raw.userProfilerTag = profiler_tag;
        Self { raw, _algorithm: algorithm }
    }

    pub(crate) const fn raw(&self) -> *const ncclCollConfig_t {
        &raw const self.raw
    }
}

/// Every field, whether it is set, and the first release that reads it.
fn fields(config: &CommConfig) -> [(&'static str, bool, c_int); 20] {
    [
        ("cga_cluster_size", config.cga_cluster_size.is_some(), 21_701),
        ("ctas", config.ctas.is_some(), 21_701),
        ("network", config.network.is_some(), 21_701),
        ("split_share", config.split_share.is_some(), 21_801),
        ("traffic_class", config.traffic_class.is_some(), 22_602),
        ("collnet", config.collnet.is_some(), 22_703),
        ("cta_policy", config.cta_policy.is_some(), 22_703),
        ("shrink_share", config.shrink_share.is_some(), 22_703),
        ("nvls_ctas", config.nvls_ctas.is_some(), 22_703),
        ("channels_per_net_peer", config.channels_per_net_peer.is_some(), 22_803),
        ("nvlink_centric_schedule", config.nvlink_centric_schedule.is_some(), 22_803),
        ("graph_usage", config.graph_usage.is_some(), 22_902),
        ("rma_contexts", config.rma_contexts.is_some(), 22_902),
        ("max_p2p_peers", config.max_p2p_peers.is_some(), 23_003),
        ("graph_stream_ordering", config.graph_stream_ordering.is_some(), 23_007),
        ("launch_order_implicit", config.launch_order_implicit.is_some(), 23_102),
        ("rma_signals", config.rma_signals.is_some(), 23_102),
        ("rma_eager_init", config.rma_eager_init.is_some(), 23_102),
        ("host_cft", config.host_cft.is_some(), 23_102),
        ("nvls_host", config.nvls_host.is_some(), 23_203),
    ]
}

const fn graph_usage_mode(usage: GraphUsage) -> c_int {
    match usage {
        GraphUsage::Never => 0,
        GraphUsage::Only => 1,
        GraphUsage::Mixed => 2,
    }
}

const fn host_cft_mode(mode: HostCft) -> ncclHostCftMode_t {
    match mode {
        HostCft::Enable => ncclHostCftMode_t::ENABLE,
        HostCft::Disable => ncclHostCftMode_t::DISABLE,
        HostCft::Fallback => ncclHostCftMode_t::FALLBACK,
    }
}

const fn nvls_host_mode(mode: NvlsHost) -> ncclNvlsHostMode_t {
    match mode {
        NvlsHost::Enable => ncclNvlsHostMode_t::ENABLE,
        NvlsHost::WithoutTransport => ncclNvlsHostMode_t::DISABLE_TRANSPORT,
        NvlsHost::WithoutSymmetricMulticast => ncclNvlsHostMode_t::DISABLE_SYMMETRIC_MULTIMEM,
        NvlsHost::Disable => ncclNvlsHostMode_t::DISABLE,
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use collectives_core::{CtaPolicy, ErrorKind};

    use super::*;

    #[test]
    fn one_call_is_written_as_it_is_set() {
        let call = OneCall::new(&CallConfig::new());
        // SAFETY: the struct is the call's.
        let raw = unsafe { &*call.raw() };
        let undefined = ncclCollConfig_t::undefined();
        assert_eq!((raw.minCTAs, raw.CTAPolicy), (undefined.minCTAs, undefined.CTAPolicy));
        assert!(raw.algSelection.is_null());
        assert_eq!((raw.forceAlgSelection, raw.userProfilerTag), (1, 0));

        let config = CallConfig::new()
            .with_ctas(2..=3)
            .with_nvls_ctas(4_u32)
            .with_cga_cluster_size(1_u32)
            .with_cta_policy(CtaPolicy::ZERO)
            .with_algorithm(c"ring")
            .or_another()
            .with_profiler_tag(9);
        let call = OneCall::new(&config);
        // Also where it goes.
        let call = Box::new(call);
        // SAFETY: as above.
        let raw = unsafe { &*call.raw() };
        assert_eq!((raw.minCTAs, raw.maxCTAs, raw.nvlsCTAs, raw.cgaClusterSize), (2, 3, 4, 1));
        assert_eq!((raw.CTAPolicy, raw.forceAlgSelection, raw.userProfilerTag), (2, 0, 9));
        // SAFETY: the text is the call's, too.
        assert_eq!(unsafe { CStr::from_ptr(raw.algSelection) }, c"ring");
    }

    fn everything() -> CommConfig {
        CommConfig::new()
            .with_cga_cluster_size(1_u32)
            .with_ctas(2..=3)
            .with_network("Socket")
            .with_split_share(true)
            .with_traffic_class(4)
            .with_collnet(false)
            .with_cta_policy(CtaPolicy::ZERO)
            .with_shrink_share(true)
            .with_nvls_ctas(5_u32)
            .with_channels_per_net_peer(6_u32)
            .with_nvlink_centric_schedule(true)
            .with_graph_usage(GraphUsage::Only)
            .with_rma_contexts(7_u32)
            .with_max_p2p_peers(8_u32)
            .with_graph_stream_ordering(false)
            .with_launch_order_implicit(true)
            .with_rma_signals(9_u32)
            .with_rma_eager_init(true)
            .with_host_cft(HostCft::Fallback)
            .with_nvls_host(NvlsHost::Disable)
    }

    #[test]
    fn every_field_reaches_the_struct() {
        let settings = Settings::new(everything(), 23_203, &Capabilities::FULL).unwrap();
        let mut raw = ncclConfig_t::for_version(23_203);
        settings.write(&mut raw);
        let numbers = [
            raw.cgaClusterSize,
            raw.minCTAs,
            raw.maxCTAs,
            raw.splitShare,
            raw.trafficClass,
            raw.collnetEnable,
            raw.CTAPolicy,
            raw.shrinkShare,
            raw.nvlsCTAs,
            raw.nChannelsPerNetPeer,
            raw.nvlinkCentricSched,
            raw.graphUsageMode,
            raw.numRmaCtx,
            raw.maxP2pPeers,
            raw.graphStreamOrdering,
            raw.launchOrderImplicit,
            raw.numRmaSig,
            raw.rmaEagerInit,
            raw.hostCftMode.0,
            raw.nvlsHostMode.0,
        ];
        let want = [1, 2, 3, 1, 4, 0, 2, 1, 5, 6, 1, 1, 7, 8, 0, 1, 9, 1, 3, c_int::MAX];
        assert_eq!(numbers, want);
        // SAFETY: the settings live, and the text with them.
        assert_eq!(unsafe { CStr::from_ptr(raw.netName) }, c"Socket");
        assert_eq!(raw.blocking, c_int::MIN, "no business of the user's");
    }

    #[test]
    fn nothing_set_changes_nothing() {
        let mut raw = ncclConfig_t::for_version(23_203);
        Settings::default().write(&mut raw);
        assert_eq!(format!("{raw:?}"), format!("{:?}", ncclConfig_t::for_version(23_203)));
    }

    #[test]
    fn what_a_release_would_ignore_is_refused_with_the_one_that_reads_it() {
        for (code, known) in [(21_605, 0), (21_803, 4), (22_707, 9), (22_809, 11), (23_203, 20)] {
            let read = fields(&everything()).iter().filter(|(_, _, since)| code >= *since).count();
            assert_eq!(read, known, "{code}");
        }
        let config = CommConfig::new().with_graph_usage(GraphUsage::Only);
        let error = Settings::new(config, 22_809, &Capabilities::FULL).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(
            error.to_string(),
            "this library has no configuration of graph_usage; needs version 2.29.2 or newer"
        );
    }
}
