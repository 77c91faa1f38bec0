//! Handles that cross to a device runtime, and what a call carries besides its buffers.

use std::{ffi::c_void, ops::BitOr, panic::Location};

use crate::{CallConfig, Rank};

macro_rules! raw_handle {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        ///
        /// An opaque value: it is handed back to the runtime that made it, and never dereferenced
        /// here. It owns nothing.
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
        #[repr(transparent)]
        pub struct $name(usize);

        impl $name {
            /// Wraps a runtime's handle.
            pub fn from_ptr(ptr: *mut c_void) -> Self {
                Self(ptr.expose_provenance())
            }

            /// Wraps a handle that is a number to its runtime.
            pub const fn from_bits(bits: usize) -> Self {
                Self(bits)
            }

            /// The runtime's handle.
            pub fn as_ptr(self) -> *mut c_void {
                std::ptr::with_exposed_provenance_mut(self.0)
            }

            /// The handle as a number.
            pub const fn bits(self) -> usize {
                self.0
            }
        }
    };
}

raw_handle! {
    /// A stream of a device: `cudaStream_t`, `hipStream_t`, or a stream of the mock.
    RawStream
}
raw_handle! {
    /// An event of a device: `cudaEvent_t`, `hipEvent_t`, or an event of the mock.
    RawEvent
}
raw_handle! {
    /// A graph that can be launched: `cudaGraphExec_t`, `hipGraphExec_t`, or a graph of the mock.
    RawGraph
}
raw_handle! {
    /// Memory registered with a communicator: what `ncclCommRegister` returned.
    RawRegistration
}
raw_handle! {
    /// Memory of every rank that is registered as one: `ncclWindow_t`, or a window of the mock.
    RawWindow
}

/// What a window is for.
///
/// ```
/// use collectives_core::WindowFlags;
/// let flags = WindowFlags::SYMMETRIC | WindowFlags::STRICT_ORDERING;
/// assert!(flags.contains(WindowFlags::SYMMETRIC));
/// assert_eq!(flags.bits(), 3);
/// ```
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct WindowFlags(u32);

impl WindowFlags {
    /// Calls may use any part of it, a different one on each rank (`NCCL_WIN_DEFAULT`).
    pub const NONE: Self = Self(0);
    /// Collectives use the same part of it on all ranks, which is what lets NCCL take its symmetric
    /// kernels (`NCCL_WIN_COLL_SYMMETRIC`, 2.27.3).
    pub const SYMMETRIC: Self = Self(1);
    /// What kernels write to it over a network arrives in order (`NCCL_WIN_STRICT_ORDERING`, 2.29.7).
    pub const STRICT_ORDERING: Self = Self(2);
    /// Only kernels use it, over a network (`NCCL_WIN_GIN_ONLY`, 2.32.3).
    pub const KERNELS_ONLY: Self = Self(4);
    /// It takes counted writes (`NCCL_WIN_CFT_COUNTED`, 2.32.3).
    pub const COUNTED: Self = Self(8);

    /// The flags as NCCL numbers them.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The flags of a number of NCCL's; what is unknown is kept.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// Whether it has all flags of `other`.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for WindowFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl RawStream {
    /// The device's default stream.
    pub const DEFAULT: Self = Self(0);
}

/// Signals of one peer to wait for: see
/// [`Collectives::wait_signal`](crate::Collectives::wait_signal).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub struct SignalWait {
    /// Who signals.
    pub peer: Rank,
    /// How many signals, at least one.
    pub count: u32,
}

impl SignalWait {
    /// Waits for one signal of `peer`.
    pub fn new(peer: impl Into<Rank>) -> Self {
        Self { peer: peer.into(), count: 1 }
    }

    /// Waits for so many.
    #[must_use]
    pub const fn with_count(mut self, count: u32) -> Self {
        self.count = count;
        self
    }
}

/// What every operation takes besides its buffers: the stream to enqueue on, and the place of the call
/// in the program.
///
/// ```
/// use collectives_core::{Launch, RawStream};
/// let launch = Launch::new(RawStream::DEFAULT);
/// assert!(launch.site().file().ends_with(".rs"));
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Launch<'a> {
    stream: RawStream,
    site: &'static Location<'static>,
    config: Option<&'a CallConfig>,
}

impl<'a> Launch<'a> {
    /// Enqueues on `stream`; the caller's place in the source becomes the call site.
    #[track_caller]
    #[inline]
    pub fn new(stream: RawStream) -> Self {
        Self::at(stream, Location::caller())
    }

    /// Enqueues on `stream`, with a call site that was taken earlier.
    #[inline]
    pub const fn at(stream: RawStream, site: &'static Location<'static>) -> Self {
        Self { stream, site, config: None }
    }

    /// Tells the library how to run this collective. Sends, receives and one-sided operations take no
    /// configuration, nor does what the library itself lacks. Requires
    /// [`Capabilities::call_config`](crate::Capabilities::call_config).
    #[doc(alias = "ncclCollConfig_t")]
    #[must_use]
    #[inline]
    pub const fn with_config(mut self, config: &'a CallConfig) -> Self {
        self.config = Some(config);
        self
    }

    /// How the library is to run it, where the caller has said so.
    #[inline]
    pub const fn config(&self) -> Option<&'a CallConfig> {
        self.config
    }

    /// The stream to enqueue on.
    #[inline]
    pub const fn stream(&self) -> RawStream {
        self.stream
    }

    /// The place of the call in the program.
    #[inline]
    pub const fn site(&self) -> &'static Location<'static> {
        self.site
    }
}
