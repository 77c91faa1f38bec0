//! The structs that carry their size, read as far as both sides know them.

use std::{
    ffi::{CStr, c_char, c_int, c_uint},
    mem::offset_of,
    ptr,
};

use collectives_nccl_abi::{
    config::{NCCL_API_MAGIC, NCCL_CONFIG_UNDEF_INT, ncclEncryptionConfig_t},
    ncclCollConfig_t, ncclConfig_t, ncclSimInfo_t,
    types::ncclEncryptionMode_t,
};

use super::{
    identity::Identity,
    refusal::{Refusal, Result},
};

/// What a communicator's configuration asks for, as far as it matters here.
#[derive(Clone, Debug)]
pub(super) struct Config {
    pub(super) blocking: bool,
    pub(super) name: Option<String>,
}

impl Config {
    pub(super) const DEFAULT: Self = Self { blocking: true, name: None };

    /// Reads a configuration; `fallback` is what a null one means, and where `blocking` is
    /// undefined.
    ///
    /// # Safety
    /// `config` is null, or as many bytes as it says itself, with texts that are C strings.
    pub(super) unsafe fn read(config: *const ncclConfig_t, fallback: &Self) -> Result<Self> {
        if config.is_null() {
            return Ok(Self { blocking: fallback.blocking, name: None });
        }
        // SAFETY: as this function's contract has it.
        let mut read = unsafe { copy_known(config, ncclConfig_t::undefined()) };
        if read.magic != NCCL_API_MAGIC {
            return Err(uninitialized("ncclConfig_t"));
        }
        forget_younger(&mut read);
        check(&read)?;
        let blocking = match read.blocking {
            NCCL_CONFIG_UNDEF_INT => fallback.blocking,
            blocking => blocking == 1,
        };
        // SAFETY: null, or a C string by this function's contract.
        let name = unsafe { text(read.commName) };
        Ok(Self { blocking, name })
    }
}

/// Refuses a configuration of one collective that was not initialised.
///
/// # Safety
/// `config` is null, or as many bytes as it says itself.
pub(super) unsafe fn check_collective(config: *const ncclCollConfig_t) -> Result<()> {
    if config.is_null() {
        return Ok(());
    }
    // SAFETY: as this function's contract has it.
    let read = unsafe { copy_known(config, ncclCollConfig_t::undefined()) };
    if read.magic != NCCL_API_MAGIC {
        return Err(uninitialized("ncclCollConfig_t"));
    }
    let positive = [read.minCTAs, read.maxCTAs, read.nvlsCTAs];
    if positive.iter().any(|&value| value != NCCL_CONFIG_UNDEF_INT && value <= 0) {
        return Err(Refusal::argument("Invalid ncclCollConfig_t: CTAs must be positive"));
    }
    Ok(())
}

/// Tells how long `calls` calls would take, in microseconds: a number made up, but one.
///
/// # Safety
/// `info` is as many bytes as it says itself.
pub(super) unsafe fn estimate(info: *mut ncclSimInfo_t, calls: usize) -> Result<()> {
    // SAFETY: as this function's contract has it.
    let read = unsafe { copy_known(info, ncclSimInfo_t::undefined()) };
    if read.magic != ncclSimInfo_t::MAGIC {
        return Err(uninitialized("ncclSimInfo_t"));
    }
    if calls > 0 && read.size >= offset_of!(ncclSimInfo_t, estimatedTime) + size_of::<f32>() {
        // SAFETY: inside the bytes that the caller says are there.
        let place = unsafe { &raw mut (*info).estimatedTime };
        // SAFETY: as above; C aligns the struct.
        unsafe { place.write(EACH * calls as f32) };
    }
    Ok(())
}

/// What a call is said to take, in microseconds.
const EACH: f32 = 10.0;

/// Refuses an encryption without a usable key.
///
/// # Safety
/// `config` is null, or as many bytes as it says itself, with a key that is a C string.
pub(super) unsafe fn check_encryption(config: *const ncclEncryptionConfig_t) -> Result<()> {
    if config.is_null() {
        return Ok(());
    }
    // SAFETY: as this function's contract has it.
    let read = unsafe { copy_known(config, ncclEncryptionConfig_t::none()) };
    if read.magic != NCCL_API_MAGIC {
        return Err(uninitialized("ncclEncryptionConfig_t"));
    }
    match read.mode {
        ncclEncryptionMode_t::NONE => Ok(()),
        ncclEncryptionMode_t::PSK => {
            // SAFETY: null, or a C string by this function's contract.
            match unsafe { text(read.psk) } {
                Some(key) if key.len() >= SHORTEST_KEY => Ok(()),
                _ => Err(Refusal::argument(format!(
                    "ncclSetEncryption : the key needs at least {SHORTEST_KEY} bytes"
                ))),
            }
        }
        mode => Err(Refusal::argument(format!("ncclSetEncryption : invalid mode {}", mode.0))),
    }
}

const SHORTEST_KEY: usize = 32;

fn uninitialized(what: &str) -> Refusal {
    Refusal::argument(format!("{what} argument not initialized via its initializer macro"))
}

/// `base`, with as many bytes of a struct that starts with its size as both have; its header in any
/// case, so that one of zeros is seen.
///
/// # Safety
/// `from` is a header, or as many bytes as that says, and any bytes make a `T`.
unsafe fn copy_known<T>(from: *const T, base: T) -> T {
    // SAFETY: the structs start with their size.
    let size = unsafe { from.cast::<usize>().read_unaligned() };
    let mut known = base;
    // SAFETY: both have that many bytes.
    unsafe {
        ptr::copy_nonoverlapping(
            from.cast::<u8>(),
            (&raw mut known).cast::<u8>(),
            size.clamp(HEADER, size_of::<T>()),
        );
    }
    known
}

/// Bytes of size, magic and version, which all of these structs start with.
const HEADER: usize = 16;

/// The text behind a pointer.
///
/// # Safety
/// It is null or a C string.
pub(super) unsafe fn text(text: *const c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: not null, so a C string.
    let text = unsafe { CStr::from_ptr(text) };
    Some(text.to_string_lossy().into_owned())
}

/// Resets fields that are younger than the version that the struct declares: there they are
/// padding, or whatever stood in memory.
fn forget_younger(config: &mut ncclConfig_t) {
    const UNDEFINED: c_int = NCCL_CONFIG_UNDEF_INT;
    let declares = |code: c_uint| config.version >= code;
    if !declares(21700) {
        config.cgaClusterSize = UNDEFINED;
        config.minCTAs = UNDEFINED;
        config.maxCTAs = UNDEFINED;
        config.netName = ptr::null();
    }
    if !declares(22500) {
        config.trafficClass = UNDEFINED;
    }
    if !declares(22700) {
        config.commName = ptr::null();
        config.collnetEnable = UNDEFINED;
        config.CTAPolicy = UNDEFINED;
        config.shrinkShare = UNDEFINED;
        config.nvlsCTAs = UNDEFINED;
    }
    if !declares(22800) {
        config.nChannelsPerNetPeer = UNDEFINED;
        config.nvlinkCentricSched = UNDEFINED;
    }
    if !declares(22900) {
        config.graphUsageMode = UNDEFINED;
        config.numRmaCtx = UNDEFINED;
    }
    if !declares(23000) {
        config.maxP2pPeers = UNDEFINED;
    }
    if !declares(23005) {
        config.graphStreamOrdering = UNDEFINED;
    }
    if !declares(23100) {
        config.launchOrderImplicit = UNDEFINED;
        config.numRmaSig = UNDEFINED;
        config.rmaEagerInit = UNDEFINED;
    }
}

/// Refuses values that NCCL refuses.
fn check(config: &ncclConfig_t) -> Result<()> {
    const MAX_CHANNELS: c_int = 64;
    let undefined_is_legal = Identity::get().is_at_least(21700);
    let field = |name: &str, value: c_int, accepted: bool| {
        if value == NCCL_CONFIG_UNDEF_INT || accepted {
            return Ok(());
        }
        Err(Refusal::argument(format!("Invalid config {name} attribute value {value}")))
    };
    let flag = |name, value: c_int| field(name, value, matches!(value, 0 | 1));
    if config.blocking == NCCL_CONFIG_UNDEF_INT && !undefined_is_legal {
        return Err(Refusal::argument(format!(
            "Invalid config blocking attribute value {}",
            config.blocking
        )));
    }
    flag("blocking", config.blocking)?;
    field("cgaClusterSize", config.cgaClusterSize, config.cgaClusterSize >= 0)?;
    // The raw maximum: an undefined one is below every minimum.
    let ordered = config.minCTAs > 0 && config.minCTAs <= config.maxCTAs;
    field("minCTAs", config.minCTAs, ordered)?;
    field("maxCTAs", config.maxCTAs, config.maxCTAs > 0)?;
    flag("splitShare", config.splitShare)?;
    flag("collnetEnable", config.collnetEnable)?;
    field("CTAPolicy", config.CTAPolicy, (0..=3).contains(&config.CTAPolicy))?;
    flag("shrinkShare", config.shrinkShare)?;
    field("nvlsCTAs", config.nvlsCTAs, config.nvlsCTAs > 0)?;
    let channels = config.nChannelsPerNetPeer;
    field("nChannelsPerNetPeer", channels, (1..=MAX_CHANNELS).contains(&channels))?;
    flag("nvlinkCentricSched", config.nvlinkCentricSched)?;
    field("graphUsageMode", config.graphUsageMode, (0..=2).contains(&config.graphUsageMode))?;
    field("numRmaCtx", config.numRmaCtx, config.numRmaCtx >= 0)?;
    field("maxP2pPeers", config.maxP2pPeers, config.maxP2pPeers > 0)?;
    flag("graphStreamOrdering", config.graphStreamOrdering)?;
    flag("launchOrderImplicit", config.launchOrderImplicit)?;
    flag("rmaEagerInit", config.rmaEagerInit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(config: &ncclConfig_t) -> Result<Config> {
        // SAFETY: as long as it says, and without texts.
        unsafe { Config::read(config, &Config::DEFAULT) }
    }

    #[test]
    fn a_null_configuration_is_the_fallback() {
        // SAFETY: null is allowed.
        let config = unsafe { Config::read(ptr::null(), &Config { blocking: false, name: None }) };
        assert!(!config.unwrap().blocking);
    }

    #[test]
    fn only_what_both_know_is_read() {
        // A struct of 2.14: 24 bytes, so the poison behind `blocking` is not its own.
        let old = ncclConfig_t {
            size: 24,
            version: 21403,
            blocking: 0,
            minCTAs: -7,
            collnetEnable: 99,
            ..ncclConfig_t::undefined()
        };
        assert!(!read(&old).unwrap().blocking);
        let newer = ncclConfig_t { size: 4096, ..ncclConfig_t::undefined() };
        assert!(read(&newer).unwrap().blocking);
    }

    #[test]
    fn fields_younger_than_the_declared_version_do_not_count() {
        let config = ncclConfig_t { version: 21803, CTAPolicy: 77, ..ncclConfig_t::undefined() };
        assert!(read(&config).is_ok());
        let config = ncclConfig_t { version: 22703, CTAPolicy: 77, ..ncclConfig_t::undefined() };
        assert!(read(&config).is_err());
    }

    #[test]
    fn what_nccl_refuses_is_refused() {
        let base = ncclConfig_t::undefined;
        for bad in [
            ncclConfig_t { magic: 1, ..base() },
            ncclConfig_t { blocking: 7, ..base() },
            ncclConfig_t { minCTAs: 4, ..base() },
            ncclConfig_t { minCTAs: 4, maxCTAs: 2, ..base() },
            ncclConfig_t { splitShare: 2, ..base() },
            ncclConfig_t { graphUsageMode: 3, ..base() },
        ] {
            let refusal = read(&bad).unwrap_err();
            assert_eq!(refusal.code, collectives_nccl_abi::ncclResult_t::INVALID_ARGUMENT);
        }
        assert!(read(&ncclConfig_t { minCTAs: 2, maxCTAs: 4, ..base() }).is_ok());
    }
}
