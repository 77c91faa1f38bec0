//! Raw, sized views of memory: what operations take.

use std::ffi::c_void;

use crate::{DType, Element};

/// Memory that an operation reads: `count` elements of `dtype` at `ptr`.
///
/// A view, not an owner: it may point to device memory of candle, burn, cudarc or this library. The
/// count is always the number of elements *in this buffer*; what a vendor's `count` argument means
/// stays inside its backend.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SendBuf {
    /// First element. May be null when `count` is 0.
    pub ptr: *const c_void,
    /// Number of elements in this buffer.
    pub count: usize,
    /// Their type.
    pub dtype: DType,
}

impl SendBuf {
    /// Describes `count` elements of `dtype` at `ptr`.
    pub const fn new(ptr: *const c_void, count: usize, dtype: DType) -> Self {
        Self { ptr, count, dtype }
    }

    /// Describes `count` elements of type `T` at `ptr`.
    pub const fn typed<T: Element>(ptr: *const T, count: usize) -> Self {
        Self::new(ptr.cast(), count, T::DTYPE)
    }

    /// The part from element `start`, `count` elements long. Checks nothing: the result may lie
    /// outside the buffer, and an operation given it then breaks its contract.
    #[must_use]
    pub const fn part(self, start: usize, count: usize) -> Self {
        let ptr = self.ptr.wrapping_byte_add(start.wrapping_mul(self.dtype.size()));
        Self::new(ptr, count, self.dtype)
    }
}

/// Memory that an operation writes: `count` elements of `dtype` at `ptr`. See [`SendBuf`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RecvBuf {
    /// First element. May be null when `count` is 0.
    pub ptr: *mut c_void,
    /// Number of elements in this buffer.
    pub count: usize,
    /// Their type.
    pub dtype: DType,
}

impl RecvBuf {
    /// Describes `count` elements of `dtype` at `ptr`.
    pub const fn new(ptr: *mut c_void, count: usize, dtype: DType) -> Self {
        Self { ptr, count, dtype }
    }

    /// Describes `count` elements of type `T` at `ptr`.
    pub const fn typed<T: Element>(ptr: *mut T, count: usize) -> Self {
        Self::new(ptr.cast(), count, T::DTYPE)
    }

    /// The part from element `start`, `count` elements long. See [`SendBuf::part`].
    #[must_use]
    pub const fn part(self, start: usize, count: usize) -> Self {
        let ptr = self.ptr.wrapping_byte_add(start.wrapping_mul(self.dtype.size()));
        Self::new(ptr, count, self.dtype)
    }

    /// The same memory, to be read: for the in-place forms of operations.
    #[must_use]
    pub const fn as_send(self) -> SendBuf {
        SendBuf::new(self.ptr, self.count, self.dtype)
    }
}
