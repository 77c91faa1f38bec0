//! What ranks tell each other before anything is registered: words, gathered from all to all.

use collectives_core::{DType, Result};

use crate::{Buffer, Communicator, Stream};

/// A way to the other ranks: a stream of its own, and memory for what goes over it.
pub(super) struct Lane {
    pub(super) stream: Stream,
    send: Buffer<u64>,
    recv: Buffer<u64>,
}

impl Lane {
    pub(super) fn new(comm: &Communicator) -> Result<Self> {
        let stream = comm.new_stream()?;
        let (send, recv) = (stream.zeros(Ask::WORDS)?, stream.zeros(Ask::WORDS * comm.size())?);
        Ok(Self { stream, send, recv })
    }

    /// Gives `words` to all ranks and answers theirs, by rank. All ranks give as many.
    #[track_caller]
    pub(super) fn gather(&mut self, comm: &Communicator, words: &[u64]) -> Result<Vec<Vec<u64>>> {
        let (count, whole) = (words.len(), words.len() * comm.size());
        if self.send.len() < count {
            (self.send, self.recv) = (self.stream.zeros(count)?, self.stream.zeros(whole)?);
        }
        self.send.slice_mut(..count).copy_from_slice(words, &self.stream)?;
        let (send, recv) = (self.send.slice(..count), self.recv.slice_mut(..whole));
        comm.on(&self.stream).all_gather(send, recv)?;
        let all = self.recv.slice(..whole).to_vec(&self.stream)?;
        Ok(all.chunks(count).map(<[u64]>::to_vec).collect())
    }

    /// Tells all ranks what came of something, and answers the first rank for which it failed, and why.
    ///
    /// # Errors
    /// A failure of this rank after which the communicator can tell nobody.
    #[track_caller]
    pub(super) fn first_failure(
        &mut self,
        comm: &Communicator,
        outcome: &Result<()>,
    ) -> Result<Option<(usize, String)>> {
        let mut words = vec![0];
        if let Err(error) = outcome {
            if error.poisons_communicator() {
                return Err(error.copy());
            }
            words[0] = 1;
            words.extend(packed(&error.to_string()));
        }
        words.resize(1 + TEXT, 0);
        let all = self.gather(comm, &words)?;
        let failed = all.iter().position(|words| words[0] != 0);
        Ok(failed.map(|rank| (rank, unpacked(&all[rank][1..]))))
    }
}

/// What a rank asks for.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Ask {
    /// How many times it has asked.
    pub(super) sequence: u64,
    /// Number of buffers.
    pub(super) count: u64,
    /// Bytes of all of them; all ones where that is no number.
    pub(super) bytes: u64,
    /// Of their types and lengths.
    pub(super) digest: u64,
    /// The first buffer.
    pub(super) first: Item,
    /// The best kind of memory that its library can make, as a number.
    pub(super) best: u64,
    /// Why no better.
    pub(super) reason: String,
    /// Number of blocks that it has given up and not told, and the first of them.
    pub(super) freed: u64,
    pub(super) freed_first: Vec<u64>,
}

/// A buffer to be: its type, as the place in the list of all, and its length.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Item {
    pub(super) dtype: u64,
    pub(super) len: u64,
}

impl Item {
    pub(super) fn new(dtype: DType, len: usize) -> Self {
        let place = DType::ALL.iter().position(|other| *other == dtype).unwrap_or_default();
        Self { dtype: place as u64, len: len as u64 }
    }

    pub(super) fn dtype(self) -> Option<DType> {
        DType::ALL.get(self.dtype as usize).copied()
    }

    /// `None` where the memory is no such size.
    pub(super) fn bytes(self) -> Option<usize> {
        usize::try_from(self.len).ok()?.checked_mul(self.dtype()?.size())
    }

    pub(super) const fn words(self) -> [u64; 2] {
        [self.dtype, self.len]
    }
}

impl std::fmt::Display for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} × {}", self.len, self.dtype().map_or("unknown", DType::name))
    }
}

impl Ask {
    /// Words of a message.
    pub(super) const WORDS: usize = HEAD + INLINE + TEXT;

    pub(super) fn to_words(&self) -> Vec<u64> {
        let Self { sequence, count, bytes, digest, first, best, reason, freed, freed_first } = self;
        let [dtype, len] = first.words();
        let mut words = vec![*sequence, *count, *bytes, *digest, dtype, len, *best, *freed];
        words.extend(freed_first.iter().take(INLINE));
        words.resize(HEAD + INLINE, 0);
        words.extend(packed(reason));
        words.resize(Self::WORDS, 0);
        words
    }

    pub(super) fn from_words(words: &[u64]) -> Self {
        let freed = words[7];
        let inline = usize::try_from(freed).unwrap_or(INLINE).min(INLINE);
        Self {
            sequence: words[0],
            count: words[1],
            bytes: words[2],
            digest: words[3],
            first: Item { dtype: words[4], len: words[5] },
            best: words[6],
            freed,
            freed_first: words[HEAD..HEAD + inline].to_vec(),
            reason: unpacked(&words[HEAD + INLINE..]),
        }
    }

    /// Whether both ask for the same.
    pub(super) fn agrees(&self, other: &Self) -> bool {
        let of = |ask: &Self| (ask.sequence, ask.count, ask.bytes, ask.digest, ask.first);
        of(self) == of(other)
    }

    /// What is asked for, for people.
    pub(super) fn describe(&self) -> String {
        match self.count {
            1 => format!("{} (call {})", self.first, self.sequence),
            count => format!("{count} buffers, {} bytes (call {})", self.bytes, self.sequence),
        }
    }
}

/// A digest of types and lengths: FNV-1a, over words.
pub(super) fn digest(items: &[Item]) -> u64 {
    let mix = |hash: u64, word: u64| (hash ^ word).wrapping_mul(0x0000_0100_0000_01b3);
    items.iter().flat_map(|item| item.words()).fold(0xcbf2_9ce4_8422_2325, mix)
}

/// Text in words, cut where it is too long.
fn packed(text: &str) -> Vec<u64> {
    let bytes = &text.as_bytes()[..text.floor_char_boundary(TEXT * 8)];
    let word = |bytes: &[u8]| {
        u64::from_le_bytes(std::array::from_fn(|at| bytes.get(at).copied().unwrap_or(0)))
    };
    bytes.chunks(8).map(word).collect()
}

fn unpacked(words: &[u64]) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into()
}

/// Words of a message before the numbers of blocks.
const HEAD: usize = 8;
/// Blocks that are named in it; more take another round.
pub(super) const INLINE: usize = 8;
/// Words of text.
const TEXT: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_arrives_as_it_was() {
        let ask = Ask {
            sequence: 3,
            count: 2,
            bytes: 4096,
            digest: 77,
            first: Item::new(DType::F32, 9),
            best: 1,
            reason: "this library has no windows: ä".into(),
            freed: 2,
            freed_first: vec![5, 0],
        };
        let words = ask.to_words();
        assert_eq!(words.len(), Ask::WORDS);
        assert_eq!(Ask::from_words(&words), ask);
    }

    #[test]
    fn long_text_is_cut_between_letters() {
        let text = "ä".repeat(TEXT * 8);
        let mut words = packed(&text);
        words.resize(TEXT, 0);
        assert_eq!(unpacked(&words), "ä".repeat(TEXT * 4));
        assert_eq!(unpacked(&packed("")), "");
    }

    #[test]
    fn digests_tell_orders_apart() {
        let (one, other) = (Item::new(DType::F32, 1), Item::new(DType::U8, 4));
        assert_ne!(digest(&[one, other]), digest(&[other, one]));
        assert_eq!(one.bytes(), other.bytes());
        assert_eq!(Item { dtype: 99, len: 1 }.bytes(), None);
    }
}
