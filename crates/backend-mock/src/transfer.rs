//! Moving the data of an operation whose ranks have all arrived, in ranges that any threads may
//! share.
//!
//! Every operation is a *span* of elements (for a copy: bytes) that can be cut anywhere. A range of
//! it is done block by block: read the block of every input, write it to every output. All inputs
//! of a block are read before its first output is written, and no other block touches those bytes,
//! so the in-place forms need no care of their own.

use std::{mem::MaybeUninit, ops::Range, ptr};

use crate::{
    Accumulation,
    op::{Factor, Kind, Op},
    reduce::{BLOCK_BYTES, Inputs, Recipe},
    state::Arrival,
};

/// What to move.
pub(crate) enum Transfer {
    /// A collective: one arrival per rank, in rank order.
    Collective(Vec<Arrival>),
    /// Bytes from one place to another.
    Copy { from: *const u8, to: *mut u8, bytes: usize },
    /// A send and its receive.
    Exchange([Arrival; 2]),
    /// One byte, everywhere.
    Fill { to: *mut u8, value: u8, bytes: usize },
}

// SAFETY: the pointers are the caller's, who gave them to the engine until the stream has passed.
unsafe impl Send for Transfer {}
// SAFETY: as above; threads that share a transfer work on disjoint ranges of it.
unsafe impl Sync for Transfer {}

impl Transfer {
    /// Length of the span, and bytes of its unit.
    pub(crate) fn span(&self) -> (usize, usize) {
        match self {
            Self::Collective(arrivals) => {
                let (op, size) = (&arrivals[0].op, arrivals.len());
                let parts = match op.kind {
                    Kind::AllReduce | Kind::Broadcast | Kind::Reduce => 1,
                    Kind::AllGather | Kind::Gather | Kind::ReduceScatter | Kind::Scatter => size,
                    Kind::AllToAll => size * size,
                    Kind::Recv | Kind::Send => 1,
                    Kind::WindowRegister => 0,
                };
                (parts * op.count, op.width())
            }
            Self::Copy { bytes, .. } | Self::Fill { bytes, .. } => (*bytes, 1),
            Self::Exchange([send, _]) => (send.op.count, send.op.width()),
        }
    }

    /// Bytes read and written: what the operation costs.
    pub(crate) fn traffic(&self) -> usize {
        let (length, width) = self.span();
        let sides = match self {
            Self::Collective(arrivals) => match arrivals[0].op.kind {
                Kind::AllReduce => 2 * arrivals.len(),
                Kind::AllGather | Kind::Broadcast | Kind::Reduce | Kind::ReduceScatter => {
                    arrivals.len() + 1
                }
                _ => 2,
            },
            Self::Copy { .. } | Self::Exchange(_) => 2,
            Self::Fill { .. } => 1,
        };
        length * width * sides
    }

    /// Does `range` of the span.
    ///
    /// # Safety
    /// The buffers of all arrivals, and the places of copies and fills, are as their callers
    /// promised; no other thread works on a range that overlaps this one.
    pub(crate) unsafe fn run(&self, accumulation: Accumulation, range: Range<usize>) {
        match self {
            Self::Collective(arrivals) => {
                let streaming = self.traffic() >= STREAMING_BYTES;
                let collective = Collective { arrivals, accumulation, streaming };
                // SAFETY: promised by the caller.
                unsafe { collective.run(range) };
            }
            Self::Copy { from, to, bytes } => {
                let from = from.wrapping_add(range.start);
                let to = to.wrapping_add(range.start);
                // SAFETY: promised by the caller.
                unsafe { copy(from, to, range.len(), *bytes >= STREAMING_BYTES) };
            }
            Self::Exchange([send, recv]) => {
                let (start, width) = (range.start * send.op.width(), send.op.width());
                let from = send.op.send.wrapping_add(start);
                let to = recv.op.recv.wrapping_add(start);
                let streaming = self.traffic() >= STREAMING_BYTES;
                // SAFETY: promised by the caller.
                unsafe { copy(from, to, range.len() * width, streaming) };
            }
            Self::Fill { to, value, .. } => {
                let to = to.wrapping_add(range.start);
                // SAFETY: promised by the caller.
                unsafe { to.write_bytes(*value, range.len()) };
            }
        }
    }
}

struct Collective<'a> {
    arrivals: &'a [Arrival],
    accumulation: Accumulation,
    streaming: bool,
}

impl Collective<'_> {
    /// # Safety
    /// See [`Transfer::run`].
    unsafe fn run(&self, range: Range<usize>) {
        let op = &self.arrivals[0].op;
        let longest = BLOCK_BYTES / op.width();
        let mut at = range.start;
        while at < range.end {
            let (part, offset) = (at / op.count, at % op.count);
            let count = (range.end - at).min(op.count - offset).min(longest);
            // SAFETY: promised by the caller; the block lies in the range.
            unsafe { self.block(op.kind, part, offset, count) };
            at += count;
        }
    }

    /// Does `count` elements from `offset` of one part.
    ///
    /// # Safety
    /// See [`Transfer::run`].
    unsafe fn block(&self, kind: Kind, part: usize, offset: usize, count: usize) {
        let first = &self.arrivals[0].op;
        let each = first.count;
        let size = self.arrivals.len();
        let placed = part * each + offset;
        match kind {
            Kind::AllReduce => {
                // SAFETY: promised by the caller, here and in each arm below.
                unsafe { self.reduce(placed, count, self.ops(), offset) };
            }
            Kind::Reduce => {
                let root = self.arrivals.iter().skip(first.other as usize).take(1);
                // SAFETY: as above.
                unsafe { self.reduce(placed, count, root.map(|root| &root.op), offset) };
            }
            Kind::ReduceScatter => {
                let owner = self.arrivals.iter().skip(part).take(1);
                // SAFETY: as above.
                unsafe { self.reduce(placed, count, owner.map(|owner| &owner.op), offset) };
            }
            Kind::Broadcast => {
                let root = &self.arrivals[first.other as usize].op;
                for op in self.ops() {
                    // SAFETY: as above.
                    unsafe { self.copy(root, offset, op, offset, count) };
                }
            }
            Kind::AllGather => {
                let from = &self.arrivals[part].op;
                for op in self.ops() {
                    // SAFETY: as above.
                    unsafe { self.copy(from, offset, op, placed, count) };
                }
            }
            Kind::Gather => {
                let root = &self.arrivals[first.other as usize].op;
                // SAFETY: as above.
                unsafe { self.copy(&self.arrivals[part].op, offset, root, placed, count) };
            }
            Kind::Scatter => {
                let root = &self.arrivals[first.other as usize].op;
                // SAFETY: as above.
                unsafe { self.copy(root, placed, &self.arrivals[part].op, offset, count) };
            }
            Kind::AllToAll => {
                let (source, target) = (part / size, part % size);
                let (from, to) = (&self.arrivals[source].op, &self.arrivals[target].op);
                let (out, into) = (target * each + offset, source * each + offset);
                // SAFETY: as above.
                unsafe { self.copy(from, out, to, into, count) };
            }
            // Matched in pairs, never here.
            Kind::Recv | Kind::Send | Kind::WindowRegister => {}
        }
    }

    fn ops(&self) -> impl Iterator<Item = &Op> {
        self.arrivals.iter().map(|arrival| &arrival.op)
    }

    /// Combines all ranks' elements from `from` on, and writes the result to each of `outputs` at
    /// `to`.
    ///
    /// # Safety
    /// See [`Transfer::run`].
    unsafe fn reduce<'o>(
        &self,
        from: usize,
        count: usize,
        outputs: impl Iterator<Item = &'o Op>,
        to: usize,
    ) {
        let op = &self.arrivals[0].op;
        let (dtype, reduction) = (op.dtype, op.reduction);
        let recipe = Recipe { dtype, reduction, accumulation: self.accumulation };
        let inputs = At { arrivals: self.arrivals, start: from * op.width() };
        let mut block = Block([const { MaybeUninit::uninit() }; BLOCK_BYTES]);
        let result = block.0.as_mut_ptr().cast::<u8>();
        // SAFETY: the inputs are promised by the caller; the block is ours and long enough.
        unsafe { recipe.combine(&inputs, result, count) };
        let bytes = count * op.width();
        for output in outputs {
            let recv = output.recv.wrapping_add(to * op.width());
            // In place the line was just read, and is better written where it is.
            let streaming = self.streaming && !ptr::addr_eq(output.send, output.recv);
            // SAFETY: `combine` wrote the block; the output is promised by the caller.
            unsafe { copy(result, recv, bytes, streaming) };
        }
    }

    /// Copies `count` elements of one rank's send buffer into another's receive buffer.
    ///
    /// # Safety
    /// See [`Transfer::run`].
    unsafe fn copy(&self, from: &Op, out: usize, to: &Op, into: usize, count: usize) {
        let width = from.width();
        let source = from.send.wrapping_add(out * width);
        let target = to.recv.wrapping_add(into * width);
        // SAFETY: promised by the caller.
        unsafe { copy(source, target, count * width, self.streaming) };
    }
}

/// The inputs of one block.
struct At<'a> {
    arrivals: &'a [Arrival],
    start: usize,
}

impl Inputs for At<'_> {
    fn ranks(&self) -> usize {
        self.arrivals.len()
    }

    fn input(&self, rank: usize) -> *const u8 {
        self.arrivals[rank].op.send.wrapping_add(self.start)
    }

    fn factor(&self, rank: usize) -> Factor {
        self.arrivals[rank].op.factor
    }
}

#[repr(align(64))]
struct Block([MaybeUninit<u8>; BLOCK_BYTES]);

/// Copies, past the cache where `streaming`. Nothing where source and target are the same: that is
/// how in-place forms look from here. Buffers of different ranks that overlap against the contract
/// give wrong data, but nothing worse.
///
/// # Safety
/// `from` is readable and `to` writable for `bytes`.
unsafe fn copy(from: *const u8, to: *mut u8, bytes: usize, streaming: bool) {
    if ptr::addr_eq(from, to) {
        return;
    }
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if streaming && bytes >= 256 && std::arch::is_x86_feature_detected!("avx") {
        // SAFETY: promised by the caller; the instruction set was detected.
        unsafe { copy_past_cache(from, to, bytes) };
        return;
    }
    let _ = streaming;
    if bytes == size_of::<u64>() {
        // The smallest operations cost about as much as a call of `memmove`.
        // SAFETY: promised by the caller.
        let value = unsafe { from.cast::<u64>().read_unaligned() };
        // SAFETY: as above.
        unsafe { to.cast::<u64>().write_unaligned(value) };
        return;
    }
    // SAFETY: promised by the caller.
    unsafe { ptr::copy(from, to, bytes) };
}

/// Copies with stores that bypass the cache: a line that is not in it need not be fetched only to
/// be overwritten, which saves a third of the memory traffic of a large out-of-place operation.
///
/// # Safety
/// `from` is readable and `to` writable for `bytes`, at least 32; the CPU has AVX.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[target_feature(enable = "avx")]
unsafe fn copy_past_cache(from: *const u8, to: *mut u8, bytes: usize) {
    use std::arch::x86_64::{__m256i, _mm_sfence, _mm256_loadu_si256, _mm256_stream_si256};

    const LINE: usize = size_of::<__m256i>();
    let head = to.align_offset(LINE).min(bytes);
    // SAFETY: promised by the caller; `head` is at most `bytes`.
    unsafe { ptr::copy(from, to, head) };
    let lines = (bytes - head) / LINE;
    for line in 0..lines {
        let at = head + line * LINE;
        // SAFETY: promised by the caller; `at + LINE` is at most `bytes`.
        let value = unsafe { _mm256_loadu_si256(from.wrapping_add(at).cast()) };
        // SAFETY: as above; `head` made the target aligned.
        unsafe { _mm256_stream_si256(to.wrapping_add(at).cast(), value) };
    }
    let tail = head + lines * LINE;
    // SAFETY: promised by the caller; what is left of `bytes`.
    unsafe { ptr::copy(from.wrapping_add(tail), to.wrapping_add(tail), bytes - tail) };
    // Streamed stores are not ordered with the store that tells others we are done.
    _mm_sfence();
}

/// Traffic from which on outputs are written past the cache: about half a last-level cache.
const STREAMING_BYTES: usize = 16 << 20;
