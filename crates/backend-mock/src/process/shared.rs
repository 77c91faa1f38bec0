//! Memory that several processes map.

use std::{
    ffi::{CString, c_void},
    io,
    mem::{align_of, size_of},
    os::fd::OwnedFd,
    ptr::{self, NonNull},
    slice,
    sync::atomic::{AtomicI32, AtomicU8, AtomicU16, AtomicU32, AtomicU64},
};

use rustix::{
    fs::{self, MemfdFlags, SealFlags},
    io::Errno,
    mm::{self, Advice, MapFlags, ProtFlags},
    process::{Resource, getrlimit},
};

/// A memfd that is mapped here, and in other processes too. Unmapped when dropped; the memory itself
/// lives until the last process has let go of it.
///
/// What is in it may change at any time and may be anything: a peer may be broken. So it is read as
/// atomics ([`at`](Self::at)), or through [`base`](Self::base) as device memory is, and never trusted.
/// Its size never changes (it is sealed), so that nobody can take mapped pages away.
#[derive(Debug)]
pub(crate) struct Shared {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is reached only as atomics or as
// raw pointers, whose users answer for themselves.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

/// Types that any process may change at any time, and that are valid whatever bytes they hold.
///
/// # Safety
/// The type is `repr(C)` or an array, and made of atomic integers alone, so that shared access from
/// anywhere is no data race, and no bit pattern is invalid.
pub(crate) unsafe trait Plain: Sync {}

// SAFETY: an atomic integer.
unsafe impl Plain for AtomicI32 {}
// SAFETY: an atomic integer.
unsafe impl Plain for AtomicU8 {}
// SAFETY: an atomic integer.
unsafe impl Plain for AtomicU16 {}
// SAFETY: an atomic integer.
unsafe impl Plain for AtomicU32 {}
// SAFETY: an atomic integer.
unsafe impl Plain for AtomicU64 {}
// SAFETY: an array of what is plain.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

impl Shared {
    /// Makes a memfd of so many bytes, all zero, and maps it. The name is for people who look at
    /// `/proc`; it need not be unique. Pages are taken only as they are touched.
    pub(crate) fn create(name: &str, bytes: usize) -> io::Result<(Self, OwnedFd)> {
        let fd = memfd(name)?;
        let length = u64::try_from(bytes.max(1)).map_err(|_| Errno::FBIG)?;
        // Past this limit the system would not refuse but kill.
        if getrlimit(Resource::Fsize).current.is_some_and(|limit| length > limit) {
            return Err(Errno::FBIG.into());
        }
        fs::ftruncate(&fd, length)?;
        fs::fcntl_add_seals(&fd, FIXED | SealFlags::SEAL)?;
        let shared = Self::map(&fd, bytes)?;
        Ok((shared, fd))
    }

    /// Maps the first `bytes` of a memfd that another process made with [`create`](Self::create).
    ///
    /// # Errors
    /// `InvalidData` where it is no such memfd: too small, or not sealed, so that its maker could
    /// take pages away from under us. Else what the system says.
    pub(crate) fn map(fd: &OwnedFd, bytes: usize) -> io::Result<Self> {
        let bytes = bytes.max(1);
        let refuse = |text: String| Err(io::Error::new(io::ErrorKind::InvalidData, text));
        // Anything but a memfd refuses the question.
        if !fs::fcntl_get_seals(fd).is_ok_and(|seals| seals.contains(FIXED)) {
            return refuse("not a memfd whose size is sealed".into());
        }
        let size = fs::fstat(fd)?.st_size;
        if usize::try_from(size).is_ok_and(|size| size < bytes) {
            return refuse(format!("a memfd of {size} bytes, should have {bytes}"));
        }
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        let place = if bytes >= HUGE_PAGE { place(bytes)? } else { ptr::null_mut() };
        // SAFETY: a new mapping, where the system has room, touches no other memory.
        let base =
            unsafe { mm::mmap(place, bytes, ProtFlags::READ | ProtFlags::WRITE, flags, fd, 0) }?;
        let base = NonNull::new(base.cast()).ok_or(Errno::NOMEM)?;
        Ok(Self { base, bytes })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where it is mapped here.
    pub(crate) fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// What is at an offset. `None` where it would run past the end, or is not aligned.
    pub(crate) fn at<T: Plain>(&self, offset: usize) -> Option<&T> {
        self.slice(offset, 1)?.first()
    }

    /// `count` of what is at an offset. `None` where they would run past the end, or are not
    /// aligned.
    pub(crate) fn slice<T: Plain>(&self, offset: usize, count: usize) -> Option<&[T]> {
        let bytes = size_of::<T>().checked_mul(count)?;
        let first = self.range(offset, bytes)?.cast::<T>();
        if first.addr() % align_of::<T>() != 0 {
            return None;
        }
        // SAFETY: in range and aligned (checked above), mapped as long as `self` lives, and `Plain`
        // says that any bytes are valid and that others may change them.
        Some(unsafe { slice::from_raw_parts(first, count) })
    }

    /// The address of `bytes` bytes at an offset; `None` where they would run past the end.
    pub(crate) fn range(&self, offset: usize, bytes: usize) -> Option<*mut u8> {
        let end = offset.checked_add(bytes)?;
        if end > self.bytes {
            return None;
        }
        // SAFETY: the offset is within the mapping, checked above.
        Some(unsafe { self.base().add(offset) })
    }

    /// Tells the system what to expect of the whole. Best effort.
    pub(crate) fn advise(&self, advice: Advice) {
        debug_assert!(matches!(advice, Advice::LinuxHugepage | Advice::LinuxDontDump));
        // SAFETY: the mapping is ours, and such advice changes nothing that it holds.
        let told = unsafe { mm::madvise(self.base().cast(), self.bytes, advice) };
        if let Err(error) = told {
            tracing::debug!(?advice, %error, "no such advice");
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this length, and references into it have ended: they borrow
        // `self`; who kept a raw pointer answers for it.
        let unmapped = unsafe { mm::munmap(self.base().cast(), self.bytes) };
        if let Err(error) = unmapped {
            tracing::warn!(%error, bytes = self.bytes, "shared memory stays mapped");
        }
    }
}

/// An empty memfd that can be sealed.
fn memfd(name: &str) -> io::Result<OwnedFd> {
    let name = CString::new(name)?;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match fs::memfd_create(&name, flags | MemfdFlags::NOEXEC_SEAL) {
        // Linux before 6.3 has no such flag; later ones may log its absence.
        Err(Errno::INVAL) => Ok(fs::memfd_create(&name, flags)?),
        made => Ok(made?),
    }
}

/// An address at which so many bytes could be mapped from a huge page's start on. A hint: another
/// thread may take the place.
fn place(bytes: usize) -> io::Result<*mut c_void> {
    let room = bytes.checked_add(HUGE_PAGE).ok_or(Errno::NOMEM)?;
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a new mapping, where the system has room, touches no other memory.
    let start = unsafe { mm::mmap_anonymous(ptr::null_mut(), room, ProtFlags::empty(), flags) }?;
    // SAFETY: mapped just now, and not used.
    unsafe { mm::munmap(start, room) }?;
    Ok(start.map_addr(|start| start.next_multiple_of(HUGE_PAGE)))
}

/// Large mappings start at a huge page, where the system has them.
pub(crate) const HUGE_PAGE: usize = 2 << 20;

const FIXED: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);

#[cfg(all(test, not(miri)))] // Miri has no memfd
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn two_mappings_are_one_memory() {
        let (one, fd) = Shared::create("collectives-test", 4096).unwrap();
        let other = Shared::map(&fd, 4096).unwrap();
        one.at::<AtomicU64>(128).unwrap().store(7, Ordering::Relaxed);
        assert_ne!(one.base(), other.base());
        assert_eq!(other.at::<AtomicU64>(128).unwrap().load(Ordering::Relaxed), 7);
        let words = other.slice::<AtomicU64>(120, 3).unwrap();
        assert_eq!(words[1].load(Ordering::Relaxed), 7);
    }

    #[test]
    fn what_is_not_inside_is_refused() {
        let (shared, _fd) = Shared::create("collectives-test", 100).unwrap();
        assert_eq!(shared.bytes(), 100);
        assert!(shared.at::<AtomicU32>(96).is_some());
        assert!(shared.at::<AtomicU32>(100).is_none());
        assert!(shared.at::<AtomicU32>(2).is_none(), "not aligned");
        assert!(shared.at::<AtomicU8>(usize::MAX).is_none());
        assert!(shared.slice::<AtomicU64>(0, usize::MAX / 4).is_none());
        assert!(shared.range(100, 0).is_some());
        assert!(shared.range(60, 41).is_none());
    }

    #[test]
    fn memory_that_could_be_taken_away_is_not_mapped() {
        let plain = fs::memfd_create(c"collectives-test", MemfdFlags::CLOEXEC).unwrap();
        fs::ftruncate(&plain, 4096).unwrap();
        let kind = |mapped: io::Result<Shared>| mapped.err().map(|error| error.kind());
        assert_eq!(kind(Shared::map(&plain, 4096)), Some(io::ErrorKind::InvalidData));
        let (_shared, fd) = Shared::create("collectives-test", 4096).unwrap();
        assert_eq!(kind(Shared::map(&fd, 4097)), Some(io::ErrorKind::InvalidData));
        assert_eq!(fs::ftruncate(&fd, 0), Err(Errno::PERM));
        let (pipe, _) = io::pipe().unwrap();
        assert_eq!(kind(Shared::map(&pipe.into(), 1)), Some(io::ErrorKind::InvalidData));
    }
}
