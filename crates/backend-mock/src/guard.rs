//! Guards over buffers: what is lent to the engine is watched.

use std::{collections::HashMap, fmt, io, ops::Range, str::FromStr};

use collectives_core::{Error, ErrorKind, Result};

use crate::{
    error::{Failure, invalid},
    footprint::{Footprint, overlap},
    schedule::OpKey,
    slab::Key,
};

/// What is watched of the buffers that operations work on.
///
/// The contract of [`Collectives`](collectives_core::Collectives) lends buffers from the call until the
/// stream has passed the operation. Nothing stops a program from touching them meanwhile, and on a
/// GPU it goes unnoticed most of the time. With guards it is noticed.
///
/// * **Poison.** Bytes that an operation will overwrite, and that nothing needs before, are filled with
///   a pattern while the operation is at the head of its stream. A program that reads its results
///   before it waited reads NaN (or −1), not last step's values that look right.
/// * **Checksums.** What an operation sends is summed when it comes to the head of its stream, and
///   again when it runs. A change in between is a failure of the communicator on all ranks
///   ([`InvalidUsage`](collectives_core::ErrorKind::InvalidUsage)) that names the operation, its call
///   site and the bytes.
/// * **Races.** Two pieces of work on different streams of which one writes what the other touches,
///   with no event, stream order or wait of the host between them, are a failure of both streams and
///   their communicators that names both call sites. It does not matter which ran first.
///
/// * **Protection** (Linux). What the program itself loads from memory that an operation writes, or
///   stores to memory that it reads or writes, between the call and the moment when the program knows that
///   the operation is done: by a wait for the stream, an event or the device, or a query that says so.
///   That the operation is done is not enough, which is how the bug hides on fast machines. Such an
///   access is a failure of the stream and the communicator that names the operation, its call site and the
///   byte, at the next call that waits or polls. The access itself is made, and the program goes on.
///
/// An operation behind other work of its stream is poisoned and summed when that has passed: until then
/// that work may still use the buffers. It is protected from the call on.
///
/// # How accesses of the program are seen
/// Device memory is mapped twice: once for the engine, and once for the program, where pages are closed as
/// long as somebody has them. A handler of SIGSEGV notes what comes there, and opens the page. So
///
/// * memory that the mock did not allocate cannot be protected: host memory, whether registered, pinned,
///   managed or none of it;
/// * an access beside a protected range, on the same page, is no fault, and opens that page until the next
///   call. So does one by a function that a stream calls ([`MockDevice::call`]), which is in the stream's
///   order. A vector load that begins beside the range and runs into it counts as beside;
/// * one access is told for each range; after 1,024 pages without a call in between all memory is open;
/// * the system itself does not fault: a system call that is given closed memory fails with EFAULT;
/// * a handler that the program installs later must hand on what is not its own. One that was there
///   before gets everything else, as if this one were not there, and so does Rust's, which tells of stack
///   overflows. A thread that blocks SIGSEGV dies of an access that would be told;
/// * each process sees its own program's accesses;
/// * all allocations take whole pages, and each closed range costs the process up to two mappings. Past an
///   eighth of vm.max_map_count (8,191 unless set) more ranges stay open, and a warning says so.
///
/// Where it cannot be had, [`ALL`](Self::ALL) is without; asked for by name it makes every join and device
/// an [`Unsupported`](collectives_core::ErrorKind::Unsupported) error.
///
/// [`MockDevice::call`]: crate::MockDevice::call
///
/// ```
/// use collectives_backend_mock::{Guards, MockConfig};
/// let guards = Guards::ALL.with_poison(Some(0x7f)).with_protect(false);
/// let config = MockConfig::new().with_guards(guards);
/// assert_eq!("poison=0x7f,checksums,races".parse::<Guards>()?, config.guards);
/// # Ok::<_, collectives_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Guards {
    /// The byte that receive buffers are filled with until their operation completes.
    pub poison: Option<u8>,
    /// Whether changes of send buffers are noticed.
    pub checksums: bool,
    /// Whether unordered accesses of streams are noticed.
    pub races: bool,
    /// Whether accesses of the program to what operations have are noticed.
    pub protect: bool,
}

impl Guards {
    /// No guards, at no cost.
    pub const NONE: Self = Self { poison: None, checksums: false, races: false, protect: false };
    /// All of them that can be had. The pattern is 0xff: NaN in every float type, −1 in every signed
    /// integer type.
    pub const ALL: Self = Self {
        poison: Some(0xff),
        checksums: true,
        races: true,
        protect: cfg!(all(target_os = "linux", not(miri))),
    };

    /// Sets the byte that receive buffers are filled with; `None` leaves them alone.
    #[must_use]
    pub const fn with_poison(mut self, byte: Option<u8>) -> Self {
        self.poison = byte;
        self
    }

    /// Sets whether changes of send buffers are noticed.
    #[must_use]
    pub const fn with_checksums(mut self, on: bool) -> Self {
        self.checksums = on;
        self
    }

    /// Sets whether unordered accesses of streams are noticed.
    #[must_use]
    pub const fn with_races(mut self, on: bool) -> Self {
        self.races = on;
        self
    }

    /// Sets whether accesses of the program to what operations have are noticed. Linux only.
    #[must_use]
    pub const fn with_protect(mut self, on: bool) -> Self {
        self.protect = on;
        self
    }
}

impl Default for Guards {
    fn default() -> Self {
        Self::NONE
    }
}

impl fmt::Display for Guards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names = Vec::new();
        if let Some(byte) = self.poison {
            names.push(format!("poison={byte:#04x}"));
        }
        names.extend(self.checksums.then(|| "checksums".into()));
        names.extend(self.races.then(|| "races".into()));
        names.extend(self.protect.then(|| "protect".into()));
        f.write_str(&if names.is_empty() { "none".into() } else { names.join(",") })
    }
}

/// As in `COLLECTIVES_MOCK_GUARDS`: `all`, `none`, or a list of `poison`, `poison=BYTE`, `checksums`,
/// `races` and `protect` with commas between.
impl FromStr for Guards {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |part: &str| {
            let what = if part == text { String::new() } else { format!(": '{part}'") };
            invalid(format!(
                "guards are '{text}'{what}, want 'all', 'none', or some of 'poison', 'poison=BYTE', \
                 'checksums', 'races' and 'protect' with commas between"
            ))
        };
        let mut guards = Self::NONE;
        match text.trim() {
            "all" => return Ok(Self::ALL),
            "none" => return Ok(guards),
            _ => {}
        }
        for part in text.split(',').map(str::trim) {
            match part.split_once('=') {
                None if part == "poison" => guards.poison = Self::ALL.poison,
                None if part == "checksums" => guards.checksums = true,
                None if part == "races" => guards.races = true,
                None if part == "protect" => guards.protect = true,
                Some(("poison", byte)) => {
                    let parsed = match byte.strip_prefix("0x") {
                        Some(digits) => u8::from_str_radix(digits, 16),
                        None => byte.parse(),
                    };
                    guards.poison = Some(parsed.map_err(|_| wrong(part))?);
                }
                _ => return Err(wrong(part)),
            }
        }
        Ok(guards)
    }
}

/// Why memory cannot be protected.
pub(crate) fn unable(error: &io::Error) -> Failure {
    let kind = match error.kind() {
        io::ErrorKind::Unsupported => ErrorKind::Unsupported,
        _ => ErrorKind::System,
    };
    Failure::new(kind, format!("the guard 'protect' cannot be had here: {error}"))
        .with_hint("it takes Linux; leave it out, as in 'poison,checksums,races'")
}

/// The sums of what pending operations send.
#[derive(Default)]
pub(crate) struct Seals(HashMap<OpKey, Vec<Seal>>);

/// One stretch of memory, as it was.
struct Seal {
    range: Range<usize>,
    sums: Vec<u64>,
    /// What else the engine did to it since.
    written_by: Option<String>,
}

/// A send buffer that changed.
pub(crate) struct Broken {
    pub(crate) buffer: Range<usize>,
    /// The part in which the change lies.
    pub(crate) changed: Range<usize>,
    pub(crate) written_by: Option<String>,
}

impl Seals {
    /// Sums what an operation reads.
    ///
    /// # Safety
    /// The ranges are readable.
    pub(crate) unsafe fn seal(&mut self, key: OpKey, reads: &[Range<usize>]) {
        let seal = |range: &Range<usize>| Seal {
            range: range.clone(),
            // SAFETY: promised by the caller.
            sums: unsafe { sums(range) },
            written_by: None,
        };
        self.0.insert(key, reads.iter().map(seal).collect());
    }

    /// Notes that `what` writes, other than the operations `by`.
    pub(crate) fn note_writes(&mut self, by: &[OpKey], writes: &[Range<usize>], what: &str) {
        let others = self.0.iter_mut().filter(|(key, _)| !by.contains(key));
        for seal in others.flat_map(|(_, seals)| seals) {
            if writes.iter().any(|range| overlap(range, &seal.range)) {
                seal.written_by.get_or_insert_with(|| what.into());
            }
        }
    }

    /// Looks whether what an operation reads is still as it was, and forgets it.
    ///
    /// # Safety
    /// The ranges that were given to [`seal`](Self::seal) are still readable.
    pub(crate) unsafe fn open(&mut self, key: &OpKey) -> Option<Broken> {
        self.0.remove(key)?.into_iter().find_map(|seal| {
            let Seal { range, sums: before, written_by } = seal;
            // SAFETY: promised by the caller.
            let now = unsafe { sums(&range) };
            let differs = |&block: &usize| now[block] != before[block];
            let first = (0..now.len()).find(differs)?;
            let last = (0..now.len()).rfind(differs).unwrap_or(first);
            let end = ((last + 1) * BLOCK).min(range.len());
            Some(Broken { changed: first * BLOCK..end, buffer: range, written_by })
        })
    }

    /// One sum over what an operation sends, as it was. A scalar, which comes behind it, is none of
    /// that: others get a copy.
    pub(crate) fn sum(&self, key: &OpKey) -> Option<u64> {
        self.0.get(key).map(|seals| fold(seals.iter().take(1).flat_map(|seal| &seal.sums)))
    }

    pub(crate) fn forget(&mut self, key: &OpKey) {
        self.0.remove(key);
    }

    pub(crate) fn forget_comm(&mut self, comm: Key) {
        self.0.retain(|key, _| key.comm != comm);
    }
}

/// Fills what an operation will overwrite.
///
/// # Safety
/// The buffers are the engine's, and nothing else uses them now.
pub(crate) unsafe fn poison(footprint: &Footprint, byte: u8) {
    for range in footprint.overwritten() {
        let start = std::ptr::with_exposed_provenance_mut::<u8>(range.start);
        // SAFETY: promised by the caller.
        unsafe { start.write_bytes(byte, range.len()) };
    }
}

/// One sum over all of these.
///
/// # Safety
/// The ranges are readable.
pub(crate) unsafe fn sum(ranges: &[Range<usize>]) -> u64 {
    // SAFETY: promised by the caller.
    let sums = ranges.iter().map(|range| unsafe { sums(range) });
    fold(sums.collect::<Vec<_>>().iter().flatten())
}

fn fold<'a>(sums: impl Iterator<Item = &'a u64>) -> u64 {
    sums.fold(SEED, |sum, block| (sum ^ block).wrapping_mul(FACTOR).rotate_left(29))
}

/// One sum for each block. Reads are volatile, since another thread may write meanwhile, against the
/// contract: which is what this is here to find.
///
/// # Safety
/// The range is readable.
unsafe fn sums(range: &Range<usize>) -> Vec<u64> {
    let start = std::ptr::with_exposed_provenance::<u8>(range.start);
    let mut sums = Vec::with_capacity(range.len().div_ceil(BLOCK));
    for at in (0..range.len()).step_by(BLOCK) {
        let mut sum = SEED;
        let end = (at + BLOCK).min(range.len());
        let mut next = at;
        while next < end {
            let mut word = [0; 8];
            let length = (end - next).min(word.len());
            if length == word.len() {
                // SAFETY: promised by the caller.
                word = unsafe { start.wrapping_add(next).cast::<[u8; 8]>().read_volatile() };
            } else {
                for (index, byte) in word[..length].iter_mut().enumerate() {
                    // SAFETY: promised by the caller.
                    *byte = unsafe { start.wrapping_add(next + index).read_volatile() };
                }
            }
            // Every step can be undone, so one changed word cannot go unseen.
            sum = (sum ^ u64::from_le_bytes(word)).wrapping_mul(FACTOR).rotate_left(29);
            next += length;
        }
        sums.push(sum);
    }
    sums
}

/// Bytes under one sum.
const BLOCK: usize = 64;
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;
/// Odd.
const FACTOR: u64 = 0xd6e8_feb8_6659_fd93;

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "lists of ranges is what these are")]
mod tests {
    use super::*;

    #[test]
    fn guards_are_read_as_they_are_written() {
        for guards in [Guards::NONE, Guards::ALL, Guards::ALL.with_poison(Some(7))] {
            assert_eq!(guards.to_string().parse::<Guards>().unwrap(), guards);
        }
        assert_eq!("all".parse::<Guards>().unwrap(), Guards::ALL);
        assert_eq!(
            " races , poison ".parse::<Guards>().unwrap(),
            Guards::ALL.with_checksums(false).with_protect(false)
        );
        assert_eq!("protect".parse::<Guards>().unwrap(), Guards::NONE.with_protect(true));
        for text in ["", "yes", "all,races", "poison=", "poison=0x100", "poison=-1", "races=1"] {
            let error = text.parse::<Guards>().unwrap_err().to_string();
            assert!(error.contains(&format!("'{text}'")) && error.contains("want"), "{error}");
        }
        let error = "races,poisson".parse::<Guards>().unwrap_err().to_string();
        assert!(error.contains("'races,poisson': 'poisson'"), "{error}");
    }

    #[test]
    fn a_changed_byte_is_found_wherever_it_is() {
        let op = |sequence| OpKey::collective(Key { index: 0, generation: 1 }, 0, sequence);
        let mut bytes = vec![5_u8; 203];
        for at in [0, 63, 64, 150, 202] {
            let mut seals = Seals::default();
            let start = bytes.as_mut_ptr().expose_provenance();
            // SAFETY: the bytes live, here and below.
            unsafe { seals.seal(op(0), &[start..start + 203]) };
            // SAFETY: as above.
            unsafe { seals.seal(op(1), &[start..start + 203]) };
            // SAFETY: as above.
            assert!(unsafe { seals.open(&op(1)) }.is_none());
            bytes[at] ^= 0x80;
            // SAFETY: as above.
            let broken = unsafe { seals.open(&op(0)) }.expect("a change");
            assert!(broken.changed.contains(&at), "{at} is not in {:?}", broken.changed);
            assert!(broken.changed.len() <= BLOCK);
        }
    }
}
