//! Pointers through which C functions answer.

use std::ffi::{c_char, c_int};

use super::{Code, Reply};

/// A place that the caller of a C function wants filled.
///
/// Only C callers make them, and they promise what `export!` says: null, or valid for a write.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Out<T>(*mut T);

impl<T: Copy> Out<T> {
    /// A place in memory of this library.
    pub(crate) fn to(place: &mut T) -> Self {
        Self(place)
    }

    pub(crate) fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// The same place, of another type.
    pub(crate) fn cast<U: Copy>(self) -> Out<U> {
        Out(self.0.cast())
    }

    /// Fills it.
    ///
    /// # Errors
    /// Where it is null.
    pub(crate) fn set(self, value: T) -> Reply {
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: see the type. C aligns as it likes only in structs, which these are not part of.
        unsafe { self.0.write(value) };
        Ok(())
    }

    /// Fills it where it is not null.
    pub(crate) fn set_if(self, value: T) {
        let _null_is_not_asked = self.set(value);
    }

    /// What is in it: for places that are read first.
    ///
    /// # Errors
    /// Where it is null.
    pub(crate) fn get(self) -> Reply<T> {
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: see the type; the functions that call this want a value in it.
        Ok(unsafe { self.0.read() })
    }

    /// Fills the place at `index` of an array.
    ///
    /// # Errors
    /// Where the array is null.
    pub(crate) fn set_at(self, index: usize, value: T) -> Reply {
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        Self(self.0.wrapping_add(index)).set(value)
    }

    /// What is at `index` of an array.
    ///
    /// # Errors
    /// Where the array is null.
    pub(crate) fn get_at(self, index: usize) -> Reply<T> {
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        Self(self.0.wrapping_add(index)).get()
    }
}

impl Out<c_char> {
    /// Writes a text with a NUL behind it into `length` bytes, cut to fit.
    ///
    /// # Errors
    /// Where there is no room for even the NUL.
    pub(crate) fn set_text(self, text: &str, length: c_int) -> Reply {
        let room = usize::try_from(length).map_err(|_| Code::INVALID_VALUE)?;
        let text = text.as_bytes();
        let text = &text[..text.len().min(room.checked_sub(1).ok_or(Code::INVALID_VALUE)?)];
        for (index, &byte) in text.iter().chain(&[0]).enumerate() {
            self.set_at(index, byte as c_char)?;
        }
        Ok(())
    }
}
