//! The sized structs of `nccl.h`: configurations and what else carries its size and a magic number.
//!
//! The library copies `min(size, its own size)` bytes over its defaults, so the newest layout works
//! with every library: an older one ignores the tail, *silently* (a feature check must ask the
//! version, not the struct). That is why there is one declared layout, and why its constructor sets
//! every byte of it to the value that means "undefined".
//!
//! Two traps are handled here, once:
//! * NCCL 2.14 to 2.16 reject an undefined `blocking`: [`ncclConfig_t::for_version`].
//! * What was padding in one release is a field in the next. Up to 2.25 nothing lived at offset 44;
//!   2.26 reads `trafficClass` there, whatever version the caller declares. So padding is a field
//!   too, and is undefined like the others.

#![expect(non_snake_case, reason = "C names stay C names, as in nccl.h")]

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::mem::offset_of;
use std::ptr;

use crate::quirks;
use crate::types::{cudaEvent_t, ncclEncryptionMode_t, ncclHostCftMode_t, ncclNvlsHostMode_t};
use crate::vendor::Flavour;

/// `NCCL_API_MAGIC`: what every sized struct but [`ncclSimInfo_t`] carries.
pub const NCCL_API_MAGIC: c_uint = 0xcafe_beef;
/// `NCCL_CONFIG_UNDEF_INT`: an integer that the caller leaves to the library.
pub const NCCL_CONFIG_UNDEF_INT: c_int = c_int::MIN;
/// `NCCL_VERSION_CODE` of the header that these layouts were read from: 2.32.3.
pub const HEADER_VERSION: c_int = 23203;

/// How a communicator is to be made. Since 2.14.3; this is the layout of 2.32.3, 120 bytes.
///
/// [NCCL's
/// page](https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/types.html#ncclconfig-t).
/// The library copies `netName` but **keeps the pointer** `commName`: its text must outlive the
/// communicator.
///
/// ```
/// use collectives_nccl_abi::ncclConfig_t;
///
/// let mut config = ncclConfig_t::for_version(22703);
/// config.splitShare = 1;
/// ```
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ncclConfig_t {
    /// Bytes of this struct.
    pub size: usize,
    /// [`NCCL_API_MAGIC`].
    pub magic: c_uint,
    /// [`HEADER_VERSION`]: fields newer than the declared version are ignored.
    pub version: c_uint,
    /// 1: calls return when they are done (the default). 0: they may answer `ncclInProgress`.
    pub blocking: c_int,
    /// Thread-block clusters, at least 0. Since 2.17.1.
    pub cgaClusterSize: c_int,
    /// Fewest thread blocks. Since 2.17.1. Set `maxCTAs` too: the library compares the two, and an
    /// undefined maximum is below every minimum.
    pub minCTAs: c_int,
    /// Most thread blocks. Since 2.17.1.
    pub maxCTAs: c_int,
    /// The network to use, copied by the library. Since 2.17.1.
    pub netName: *const c_char,
    /// 1: a split shares the parent's resources. Since 2.18.1.
    pub splitShare: c_int,
    /// Network traffic class. Since 2.26.2; padding before, and read by 2.26 without looking at
    /// `version`.
    pub trafficClass: c_int,
    /// A name for logs; the pointer is kept by the library. Since 2.27.3.
    pub commName: *const c_char,
    /// 0 or 1. Since 2.27.3.
    pub collnetEnable: c_int,
    /// Bits of `NCCL_CTA_POLICY_*`. Since 2.27.3.
    pub CTAPolicy: c_int,
    /// 1: a shrink shares the parent's resources. Since 2.27.3.
    pub shrinkShare: c_int,
    /// Thread blocks for NVLS, at least 1. Since 2.27.3.
    pub nvlsCTAs: c_int,
    /// At least 1. Since 2.28.3.
    pub nChannelsPerNetPeer: c_int,
    /// 0 or 1. Since 2.28.3.
    pub nvlinkCentricSched: c_int,
    /// 0, 1 or 2 (the default). Since 2.29.2.
    pub graphUsageMode: c_int,
    /// Contexts for one-sided operations. Since 2.29.2.
    pub numRmaCtx: c_int,
    /// At least 1. Since 2.30.3.
    pub maxP2pPeers: c_int,
    /// 0 or 1 (the default). Since 2.30.7; padding before.
    pub graphStreamOrdering: c_int,
    /// 0 or 1. Since 2.31.2.
    pub launchOrderImplicit: c_int,
    /// Signals for one-sided operations. Since 2.31.2.
    pub numRmaSig: c_int,
    /// 0 or 1. Since 2.31.2.
    pub rmaEagerInit: c_int,
    /// Since 2.31.2.
    pub hostCftMode: ncclHostCftMode_t,
    /// Since 2.32.3.
    pub nvlsHostMode: ncclNvlsHostMode_t,
    /// Tail padding today, perhaps a field tomorrow; undefined like the others.
    pub reserved: c_int,
}

impl ncclConfig_t {
    /// The configuration that leaves everything to the library (`NCCL_CONFIG_INITIALIZER`).
    ///
    /// Libraries from 2.14 to 2.16 reject it: use [`for_version`](Self::for_version) where the
    /// library is known.
    #[doc(alias = "NCCL_CONFIG_INITIALIZER")]
    pub const fn undefined() -> Self {
        Self {
            size: size_of::<Self>(),
            magic: NCCL_API_MAGIC,
            version: HEADER_VERSION as c_uint,
            blocking: NCCL_CONFIG_UNDEF_INT,
            cgaClusterSize: NCCL_CONFIG_UNDEF_INT,
            minCTAs: NCCL_CONFIG_UNDEF_INT,
            maxCTAs: NCCL_CONFIG_UNDEF_INT,
            netName: ptr::null(),
            splitShare: NCCL_CONFIG_UNDEF_INT,
            trafficClass: NCCL_CONFIG_UNDEF_INT,
            commName: ptr::null(),
            collnetEnable: NCCL_CONFIG_UNDEF_INT,
            CTAPolicy: NCCL_CONFIG_UNDEF_INT,
            shrinkShare: NCCL_CONFIG_UNDEF_INT,
            nvlsCTAs: NCCL_CONFIG_UNDEF_INT,
            nChannelsPerNetPeer: NCCL_CONFIG_UNDEF_INT,
            nvlinkCentricSched: NCCL_CONFIG_UNDEF_INT,
            graphUsageMode: NCCL_CONFIG_UNDEF_INT,
            numRmaCtx: NCCL_CONFIG_UNDEF_INT,
            maxP2pPeers: NCCL_CONFIG_UNDEF_INT,
            graphStreamOrdering: NCCL_CONFIG_UNDEF_INT,
            launchOrderImplicit: NCCL_CONFIG_UNDEF_INT,
            numRmaSig: NCCL_CONFIG_UNDEF_INT,
            rmaEagerInit: NCCL_CONFIG_UNDEF_INT,
            hostCftMode: ncclHostCftMode_t::DEFAULT,
            nvlsHostMode: ncclNvlsHostMode_t::DEFAULT,
            reserved: NCCL_CONFIG_UNDEF_INT,
        }
    }

    /// [`undefined`](Self::undefined), as the library with this version code accepts it: before
    /// 2.17 `blocking` is 1, which is what undefined means later.
    ///
    /// Both vendors have the same rule, as RCCL's code is that of the NCCL release it follows.
    pub const fn for_version(code: c_int) -> Self {
        let mut config = Self::undefined();
        if quirks::rejects_undefined_blocking(Flavour::Nccl, code) {
            config.blocking = 1;
        }
        config
    }
}

/// What `ncclGroupSimulateEnd` fills in. Since 2.22.3.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ncclSimInfo_t {
    /// Bytes of this struct.
    pub size: usize,
    /// [`MAGIC`](Self::MAGIC): not the one of the other structs.
    pub magic: c_uint,
    /// [`HEADER_VERSION`].
    pub version: c_uint,
    /// Microseconds that the group would take; -1 if unknown or empty.
    pub estimatedTime: f32,
}

impl ncclSimInfo_t {
    /// This struct's own magic number.
    pub const MAGIC: c_uint = 0x7468_5283;

    /// A struct for the library to fill (`NCCL_SIM_INFO_INITIALIZER`).
    #[doc(alias = "NCCL_SIM_INFO_INITIALIZER")]
    pub const fn undefined() -> Self {
        Self {
            size: size_of::<Self>(),
            magic: Self::MAGIC,
            version: HEADER_VERSION as c_uint,
            estimatedTime: -1.0,
        }
    }
}

/// The key of an extension: which vendor's, and which of its options. Since 2.31.2.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ncclConfigExtKey_t {
    /// Who defines the option.
    pub vendorId: c_int,
    /// The option.
    pub optionId: c_int,
}

/// The value of an extension. Since 2.31.2.
#[repr(C)]
#[derive(Clone, Copy)]
pub union ncclConfigExtVal_t {
    /// As an integer.
    pub i: c_int,
    /// As text.
    pub s: *const c_char,
    /// As anything else.
    pub raw: *mut c_void,
}

/// A linked list of vendor options, hung below [`ncclCollConfig_t`]. Since 2.31.2.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ncclConfigExt_t {
    /// The next option, or null.
    pub next: *mut Self,
    /// Which option.
    pub key: ncclConfigExtKey_t,
    /// Its value.
    pub val: ncclConfigExtVal_t,
}

/// How one collective is to run. Since 2.31.2 (64 bytes); this is the layout of 2.32.3, 72 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ncclCollConfig_t {
    /// Bytes of this struct.
    pub size: usize,
    /// [`NCCL_API_MAGIC`]; a zeroed struct is refused before the communicator is looked at.
    pub magic: c_uint,
    /// [`HEADER_VERSION`].
    pub version: c_uint,
    /// Vendor options, or null.
    pub ext: *mut ncclConfigExt_t,
    /// Fewest thread blocks.
    pub minCTAs: c_int,
    /// Most thread blocks.
    pub maxCTAs: c_int,
    /// Thread blocks for NVLS.
    pub nvlsCTAs: c_int,
    /// Thread-block clusters.
    pub cgaClusterSize: c_int,
    /// The algorithm by name, or null.
    pub algSelection: *const c_char,
    /// 1 (the default): an algorithm that can't run is an error. 0: the library picks another.
    pub forceAlgSelection: c_int,
    /// Bits of `NCCL_CTA_POLICY_*`.
    pub CTAPolicy: c_int,
    /// A tag that profiler plugins see; 0 for none.
    pub userProfilerTag: u64,
    /// Recorded when the launch is complete, or null. Since 2.32.3.
    pub launchCompletionEvent: cudaEvent_t,
}

impl ncclCollConfig_t {
    /// The configuration that leaves everything to the library.
    pub const fn undefined() -> Self {
        Self {
            size: size_of::<Self>(),
            magic: NCCL_API_MAGIC,
            version: HEADER_VERSION as c_uint,
            ext: ptr::null_mut(),
            minCTAs: NCCL_CONFIG_UNDEF_INT,
            maxCTAs: NCCL_CONFIG_UNDEF_INT,
            nvlsCTAs: NCCL_CONFIG_UNDEF_INT,
            cgaClusterSize: NCCL_CONFIG_UNDEF_INT,
            algSelection: ptr::null(),
            forceAlgSelection: 1,
            CTAPolicy: NCCL_CONFIG_UNDEF_INT,
            userProfilerTag: 0,
            launchCompletionEvent: ptr::null_mut(),
        }
    }
}

/// How the bootstrap network is encrypted, for `ncclSetEncryption`. Since 2.32.3.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ncclEncryptionConfig_t {
    /// Bytes of this struct.
    pub size: usize,
    /// [`NCCL_API_MAGIC`].
    pub magic: c_uint,
    /// [`HEADER_VERSION`].
    pub version: c_uint,
    /// Whether and how.
    pub mode: ncclEncryptionMode_t,
    /// The shared key: NUL-terminated, at least 32 bytes.
    pub psk: *const c_char,
}

impl ncclEncryptionConfig_t {
    /// No encryption.
    pub const fn none() -> Self {
        Self {
            size: size_of::<Self>(),
            magic: NCCL_API_MAGIC,
            version: HEADER_VERSION as c_uint,
            mode: ncclEncryptionMode_t::NONE,
            psk: ptr::null(),
        }
    }
}

const _: () = {
    assert!(size_of::<ncclConfig_t>() == 120);
    assert!(align_of::<ncclConfig_t>() == 8);
    assert!(offset_of!(ncclConfig_t, magic) == 8);
    assert!(offset_of!(ncclConfig_t, version) == 12);
    assert!(offset_of!(ncclConfig_t, blocking) == 16);
    assert!(offset_of!(ncclConfig_t, cgaClusterSize) == 20);
    assert!(offset_of!(ncclConfig_t, minCTAs) == 24);
    assert!(offset_of!(ncclConfig_t, maxCTAs) == 28);
    assert!(offset_of!(ncclConfig_t, netName) == 32);
    assert!(offset_of!(ncclConfig_t, splitShare) == 40);
    assert!(offset_of!(ncclConfig_t, trafficClass) == 44);
    assert!(offset_of!(ncclConfig_t, commName) == 48);
    assert!(offset_of!(ncclConfig_t, collnetEnable) == 56);
    assert!(offset_of!(ncclConfig_t, CTAPolicy) == 60);
    assert!(offset_of!(ncclConfig_t, shrinkShare) == 64);
    assert!(offset_of!(ncclConfig_t, nvlsCTAs) == 68);
    assert!(offset_of!(ncclConfig_t, nChannelsPerNetPeer) == 72);
    assert!(offset_of!(ncclConfig_t, nvlinkCentricSched) == 76);
    assert!(offset_of!(ncclConfig_t, graphUsageMode) == 80);
    assert!(offset_of!(ncclConfig_t, numRmaCtx) == 84);
    assert!(offset_of!(ncclConfig_t, maxP2pPeers) == 88);
    assert!(offset_of!(ncclConfig_t, graphStreamOrdering) == 92);
    assert!(offset_of!(ncclConfig_t, launchOrderImplicit) == 96);
    assert!(offset_of!(ncclConfig_t, numRmaSig) == 100);
    assert!(offset_of!(ncclConfig_t, rmaEagerInit) == 104);
    assert!(offset_of!(ncclConfig_t, hostCftMode) == 108);
    assert!(offset_of!(ncclConfig_t, nvlsHostMode) == 112);
    assert!(offset_of!(ncclConfig_t, reserved) == 116);

    assert!(size_of::<ncclSimInfo_t>() == 24);
    assert!(offset_of!(ncclSimInfo_t, estimatedTime) == 16);

    assert!(size_of::<ncclConfigExt_t>() == 24);
    assert!(offset_of!(ncclConfigExt_t, key) == 8);
    assert!(offset_of!(ncclConfigExt_t, val) == 16);

    assert!(size_of::<ncclCollConfig_t>() == 72);
    assert!(offset_of!(ncclCollConfig_t, ext) == 16);
    assert!(offset_of!(ncclCollConfig_t, minCTAs) == 24);
    assert!(offset_of!(ncclCollConfig_t, cgaClusterSize) == 36);
    assert!(offset_of!(ncclCollConfig_t, algSelection) == 40);
    assert!(offset_of!(ncclCollConfig_t, forceAlgSelection) == 48);
    assert!(offset_of!(ncclCollConfig_t, CTAPolicy) == 52);
    assert!(offset_of!(ncclCollConfig_t, userProfilerTag) == 56);
    assert!(offset_of!(ncclCollConfig_t, launchCompletionEvent) == 64);

    assert!(size_of::<ncclEncryptionConfig_t>() == 32);
    assert!(offset_of!(ncclEncryptionConfig_t, mode) == 16);
    assert!(offset_of!(ncclEncryptionConfig_t, psk) == 24);
};

#[cfg(test)]
mod tests {
    use super::*;

    /// The struct as 32-bit words, as the library sees it.
    fn words(config: &ncclConfig_t) -> [u32; 30] {
        // SAFETY: the struct is 120 bytes without padding (asserted above), all of them
        // initialised.
        unsafe { std::mem::transmute_copy(config) }
    }

    #[test]
    fn header_says_what_the_library_checks() {
        let words = words(&ncclConfig_t::undefined());
        assert_eq!(words[..4], [120, 0, 0xcafe_beef, 23203], "size (64 bits), magic, version");
    }

    #[test]
    fn every_word_after_the_header_is_undefined() {
        let words = words(&ncclConfig_t::undefined());
        for (index, word) in words.iter().enumerate().skip(4) {
            let pointer = matches!(index * 4, 32 | 36 | 48 | 52);
            let undefined = if pointer { 0 } else { c_int::MIN as u32 };
            assert_eq!(*word, undefined, "offset {}", index * 4);
        }
    }

    #[test]
    fn former_padding_at_44_is_undefined() {
        // NCCL 2.26 reads offset 44 as trafficClass without looking at the declared version.
        assert_eq!(words(&ncclConfig_t::undefined())[11], c_int::MIN as u32);
    }

    #[test]
    fn blocking_is_explicit_below_2_17_only() {
        for (code, blocking) in [
            (21403, 1),
            (21605, 1),
            (21699, 1),
            (21700, c_int::MIN),
            (21803, c_int::MIN),
            (23203, c_int::MIN),
        ] {
            assert_eq!(ncclConfig_t::for_version(code).blocking, blocking, "version code {code}");
        }
    }

    #[test]
    fn for_version_changes_blocking_and_nothing_else() {
        let mut old = ncclConfig_t::for_version(21605);
        old.blocking = NCCL_CONFIG_UNDEF_INT;
        assert_eq!(words(&old), words(&ncclConfig_t::undefined()));
    }

    #[test]
    fn simulation_has_a_magic_of_its_own() {
        let info = ncclSimInfo_t::undefined();
        assert_eq!((info.size, info.magic, info.estimatedTime), (24, 0x7468_5283, -1.0));
    }

    #[test]
    fn collective_config_is_undefined_but_for_the_forced_algorithm() {
        let config = ncclCollConfig_t::undefined();
        assert_eq!((config.size, config.magic, config.version), (72, 0xcafe_beef, 23203));
        assert_eq!(config.forceAlgSelection, 1);
        assert_eq!(config.userProfilerTag, 0);
        assert!(config.ext.is_null() && config.algSelection.is_null());
        assert!(config.launchCompletionEvent.is_null());
        for field in [
            config.minCTAs,
            config.maxCTAs,
            config.nvlsCTAs,
            config.cgaClusterSize,
            config.CTAPolicy,
        ] {
            assert_eq!(field, c_int::MIN);
        }
    }
}
