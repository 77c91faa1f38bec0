//! Symmetric memory: one heap per communicator, whose parts lie at the same place on all ranks.
//!
//! # What holds
//! 1. A heap is a list of segments. Each is one allocation of the library (`ncclMemAlloc`) and one
//!    window (`ncclCommWindowRegister`), made by all ranks together, of the same size. Registering is
//!    slow and collective, so buffers are parts of segments.
//! 2. All ranks keep the same [book](arena) of what is in use. It changes in collective calls alone, by
//!    what all ranks have been told in that call, and what it answers depends on nothing else. So a
//!    buffer has the same segment and offset on all ranks, by construction: nothing compares addresses.
//! 3. A collective call first gathers what each rank asks for. Ranks that differ are all told who asks
//!    for what, and nothing has happened. A rank that calls something else is what the mock's verdicts
//!    are for; on a GPU the watchdog.
//! 4. Dropping a buffer is local, on any thread, and comes in any order. Its place is used again when
//!    every rank has dropped it *and* has passed the last work that used it: ranks tell the numbers of
//!    such buffers in the next collective call. Nothing waits for that; what is not passed is told
//!    later.
//! 5. What can fail on one rank alone (memory, a window, a registration) is followed by a word from each
//!    rank on how it went. If it failed on one, all undo it, and all go on with the next best kind, for
//!    the reason of the first rank that failed.
//! 6. A call returns when all ranks have cleared the new memory, so nobody writes to a peer's buffer that
//!    is then cleared.
//! 7. The end goes: buffers, windows, memory, communicator. A buffer keeps the communicator's inside
//!    alive, and a graph keeps the buffers that it captured. After an abort the windows are gone with the
//!    communicator, and the memory is freed with the last buffer.
//!
//! # How segments grow
//! A segment is as large as what is asked for, but at least half of the heap so far, rounded up to 2 MiB.
//! So a heap that grows buffer by buffer registers a number of times that is logarithmic in its size.
//! Segments are kept until the communicator ends.

mod arena;
mod exchange;
mod one_sided;

use std::{
    collections::BTreeMap,
    ffi::c_void,
    fmt,
    marker::PhantomData,
    panic::Location,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use collectives_core::{
    Collectives, Device, Element, Error, ErrorKind, RawRegistration, RawStream, RawWindow, Result,
    WindowFlags,
};

use crate::{
    AnyComm, AnyDevice, Buffer, Communicator, Stream,
    communicator::CommInner,
    symmetric::{
        arena::{Arena, Place},
        exchange::{Ask, INLINE, Item, Lane, digest},
    },
};

/// How the library knows a buffer's memory, the best first.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum MemoryKind {
    /// At the same place of a window on all ranks: NCCL may take its symmetric kernels, and peers may
    /// write to it.
    Symmetric,
    /// Registered by this rank: NCCL may move data without staging.
    Registered,
    /// As the device gives it.
    Plain,
}

impl MemoryKind {
    const fn number(self) -> u64 {
        match self {
            Self::Symmetric => 0,
            Self::Registered => 1,
            Self::Plain => 2,
        }
    }
}

impl fmt::Display for MemoryKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Symmetric => "symmetric",
            Self::Registered => "registered",
            Self::Plain => "plain",
        })
    }
}

/// What a communicator's symmetric heap is: see [`Communicator::symmetric_heap`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HeapInfo {
    /// The kind that new memory gets, the same on all ranks.
    pub kind: MemoryKind,
    /// Why it is no better.
    pub reason: Option<String>,
    /// Number of segments.
    pub segments: usize,
    /// Bytes of all segments.
    pub bytes: usize,
    /// Bytes of them that are in use.
    pub used: usize,
}

/// The buffers of a program, to be made at once: one call, at most one segment, one registration.
///
/// ```
/// use collectives::{MemoryKind, SymmetricPlan, mock};
///
/// mock::run(2, |comm| {
///     let mut plan = SymmetricPlan::new();
///     let hidden = plan.add::<f32>(4096);
///     let counts = plan.add::<u32>(16);
///     let mut buffers = comm.alloc_symmetric_set(plan)?;
///     let hidden = buffers.take(hidden)?;
///     let counts = buffers.take(counts)?;
///     assert_eq!(hidden.memory_kind(), MemoryKind::Symmetric);
///     assert_eq!((hidden.len(), counts.len()), (4096, 16));
///     Ok(())
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct SymmetricPlan {
    id: u64,
    items: Vec<Item>,
}

/// A buffer of a [`SymmetricPlan`].
#[derive(Debug)]
pub struct Slot<T: Element> {
    plan: u64,
    index: usize,
    element: PhantomData<fn() -> T>,
}

/// The buffers of a [`SymmetricPlan`]. Those that are not taken are dropped with it.
#[derive(Debug)]
pub struct SymmetricSet {
    plan: u64,
    pieces: Vec<Option<(Piece, usize)>>,
}

impl SymmetricPlan {
    /// No buffers.
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { id: NEXT.fetch_add(1, Ordering::Relaxed), items: Vec::new() }
    }

    /// One more buffer, of `len` elements.
    pub fn add<T: Element>(&mut self, len: usize) -> Slot<T> {
        self.items.push(Item::new(T::DTYPE, len));
        Slot { plan: self.id, index: self.items.len() - 1, element: PhantomData }
    }

    /// Number of buffers.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there are no buffers.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
}

impl Default for SymmetricPlan {
    fn default() -> Self {
        Self::new()
    }
}

impl SymmetricSet {
    /// Takes a buffer out.
    ///
    /// # Errors
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) for a slot of another plan.
    pub fn take<T: Element>(&mut self, slot: Slot<T>) -> Result<Buffer<T>> {
        let own = self.plan == slot.plan;
        let piece = self.pieces.get_mut(slot.index).filter(|_| own).and_then(Option::take);
        let (piece, len) = piece.ok_or_else(|| {
            Error::new(ErrorKind::InvalidArgument, "the slot is one of another plan")
                .with_hint("take it from the buffers that its own plan was made into")
        })?;
        Ok(Buffer::of_heap(piece, len))
    }
}

impl Communicator {
    /// Allocates `len` zeros of symmetric memory, at the same place of a window on all ranks.
    /// Collective: all ranks call it in the same order, with the same element type and length, outside
    /// of groups and captures. It waits for all of them, and takes some round trips, or a registration
    /// where the heap grows: allocate before the work begins, or all at once with
    /// [`alloc_symmetric_set`](Self::alloc_symmetric_set).
    ///
    /// Where the library or the system cannot do that, the memory is registered, or plain, the same on
    /// all ranks: [`Buffer::memory_kind`] says which, and [`Buffer::memory_reason`] why.
    ///
    /// Buffers may be dropped in any order, at any time, on each rank for itself. The communicator's
    /// inside lives as long as they do.
    ///
    /// ```
    /// use collectives::{MemoryKind, ReduceOp, mock};
    ///
    /// mock::run(2, |comm| {
    ///     let stream = comm.new_stream()?;
    ///     let mut buffer = comm.alloc_symmetric::<f32>(1024)?;
    ///     assert_eq!(buffer.memory_kind(), MemoryKind::Symmetric);
    ///     comm.on(&stream).all_reduce_in_place(&mut buffer, ReduceOp::Sum)
    /// })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) on all ranks where they ask for different memory,
    /// naming who asks for what; [`OutOfMemory`](ErrorKind::OutOfMemory) on all ranks where one has none
    /// left; the library's failures.
    #[doc(alias = "ncclCommWindowRegister")]
    #[track_caller]
    pub fn alloc_symmetric<T: Element>(&self, len: usize) -> Result<Buffer<T>> {
        let mut pieces = self.pieces(&[Item::new(T::DTYPE, len)])?;
        match pieces.pop() {
            Some(piece) => Ok(Buffer::of_heap(piece, len)),
            None => unreachable!("one piece for each item"),
        }
    }

    /// Makes all buffers of a plan at once: see [`SymmetricPlan`] and
    /// [`alloc_symmetric`](Self::alloc_symmetric).
    ///
    /// # Errors
    /// As [`alloc_symmetric`](Self::alloc_symmetric).
    #[track_caller]
    pub fn alloc_symmetric_set(&self, plan: SymmetricPlan) -> Result<SymmetricSet> {
        let SymmetricPlan { id, items } = plan;
        let pieces = self.pieces(&items)?;
        let lens = items.iter().map(|item| item.len as usize);
        Ok(SymmetricSet { plan: id, pieces: pieces.into_iter().zip(lens).map(Some).collect() })
    }

    /// What the symmetric heap is; `None` before the first allocation.
    pub fn symmetric_heap(&self) -> Option<HeapInfo> {
        self.inner().heap().as_ref().map(Heap::info)
    }

    #[track_caller]
    fn pieces(&self, items: &[Item]) -> Result<Vec<Piece>> {
        self.not_in_raw_group()?;
        let mut heap = self.inner().heap();
        if heap.is_none() {
            *heap = Some(Heap::new(self)?);
        }
        let made = match &mut *heap {
            Some(heap) => heap.allocate(self, items),
            None => unreachable!("made above"),
        };
        made.map_err(|error| match error.operation() {
            // What a call in it did not come to.
            Some(_) => error,
            None => error.with_comm(self.info()).with_operation("alloc_symmetric"),
        })
    }
}

/// A part of a heap, in use until it is dropped.
pub(crate) struct Piece {
    pub(crate) comm: Arc<CommInner>,
    pub(crate) ptr: *mut c_void,
    pub(crate) bytes: usize,
    pub(crate) kind: MemoryKind,
    pub(crate) reason: Option<Arc<str>>,
    /// The stream of its last use.
    pub(crate) after: Option<Stream>,
    /// The segment's window, and where in it the piece starts.
    window: Option<RawWindow>,
    offset: usize,
    number: u64,
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.comm.give_back_block(self.number, self.after.take());
    }
}

impl fmt::Debug for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of {} memory", self.bytes, self.kind)
    }
}

/// One rank's part of a communicator's symmetric memory.
pub(crate) struct Heap {
    lane: Lane,
    arena: Arena,
    segments: Vec<Segment>,
    /// Collective calls so far.
    sequence: u64,
    /// What new segments are, at best.
    limit: MemoryKind,
    reason: Option<Arc<str>>,
    /// Blocks that were dropped here, by number, and the stream of their last use.
    dropped: BTreeMap<u64, Option<Stream>>,
}

struct Segment {
    memory: Memory,
    kind: MemoryKind,
    reason: Option<Arc<str>>,
    window: Option<RawWindow>,
    registration: Option<RawRegistration>,
}

/// An allocation of the library, or of the device where the library has none to give.
struct Memory {
    ptr: *mut c_void,
    bytes: usize,
    of_library: bool,
}

impl Heap {
    fn new(comm: &Communicator) -> Result<Self> {
        Ok(Self {
            lane: Lane::new(comm)?,
            arena: Arena::new(comm.size()),
            segments: Vec::new(),
            sequence: 0,
            limit: MemoryKind::Symmetric,
            reason: None,
            dropped: BTreeMap::new(),
        })
    }

    fn info(&self) -> HeapInfo {
        HeapInfo {
            kind: self.limit,
            reason: self.reason.as_deref().map(Into::into),
            segments: self.segments.len(),
            bytes: self.arena.bytes(),
            used: self.arena.used(),
        }
    }

    /// Makes room for each item, all of it in one stretch of one segment.
    #[track_caller]
    fn allocate(&mut self, comm: &Communicator, items: &[Item]) -> Result<Vec<Piece>> {
        self.sequence += 1;
        let all = self.ask(comm, items)?;
        self.agree(comm, &all, items)?;
        self.settle_limit(&all);
        let Some(total) = total_of(items) else {
            let message = format!("{} does not fit into memory", all[0].describe());
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        };
        if items.is_empty() {
            return Ok(Vec::new());
        }
        if self.arena.find(total).is_none() {
            self.grow(comm, total)?;
        }
        let Some(place) = self.arena.find(total) else {
            return Err(Error::new(ErrorKind::Internal, "a new segment has no room"));
        };
        let pieces = self.take(comm, place, items);
        let cleared = self.clear(comm, place, total);
        if let Some((rank, text)) = self.lane.first_failure(comm, &cleared)? {
            // Nobody has used them.
            pieces.iter().for_each(|piece| self.arena.reclaim(piece.number));
            let message = format!("rank {rank} could not clear new memory: {text}");
            return Err(Error::new(ErrorKind::Device, message));
        }
        Ok(pieces)
    }

    /// Tells what this rank asks for, and has given up, and hears the same of all.
    #[track_caller]
    fn ask(&mut self, comm: &Communicator, items: &[Item]) -> Result<Vec<Ask>> {
        let freed = self.passed(comm);
        let (best, reason) = best_of(comm);
        let bytes = items.iter().try_fold(0_usize, |sum, item| sum.checked_add(item.bytes()?));
        let own = Ask {
            sequence: self.sequence,
            count: items.len() as u64,
            bytes: bytes.map_or(u64::MAX, |bytes| bytes as u64),
            digest: digest(items),
            first: items.first().copied().unwrap_or_default(),
            best: best.number(),
            reason: reason.unwrap_or_default(),
            freed: freed.len() as u64,
            freed_first: freed.iter().take(INLINE).copied().collect(),
        };
        let all = self.lane.gather(comm, &own.to_words())?;
        let all: Vec<_> = all.iter().map(|words| Ask::from_words(words)).collect();
        let most = all.iter().map(|ask| ask.freed).max().unwrap_or(0) as usize;
        let lists = if most > INLINE {
            let mut words = freed.clone();
            words.resize(most, u64::MAX);
            self.lane.gather(comm, &words)?
        } else {
            all.iter().map(|ask| ask.freed_first.clone()).collect()
        };
        for (rank, list) in lists.into_iter().enumerate() {
            list.into_iter().for_each(|number| self.arena.give_up(rank, number));
        }
        freed.iter().for_each(|number| drop(self.dropped.remove(number)));
        Ok(all)
    }

    /// The blocks that were dropped here and whose last use has passed.
    fn passed(&mut self, comm: &Communicator) -> Vec<u64> {
        self.dropped.extend(comm.inner().take_blocks());
        let mut known: BTreeMap<u64, bool> = BTreeMap::new();
        let mut passed = |stream: &Stream| {
            *known.entry(stream.id()).or_insert_with(|| {
                // SAFETY: the stream is alive, and of this device.
                unsafe { comm.device().synchronize(stream.as_raw(), Some(Duration::ZERO)) }.is_ok()
            })
        };
        let is_free = |after: &Option<Stream>| after.as_ref().is_none_or(&mut passed);
        let mut is_free = is_free;
        self.dropped
            .iter()
            .filter_map(|(&number, after)| is_free(after).then_some(number))
            .collect()
    }

    /// Refuses where ranks ask for different memory.
    #[track_caller]
    fn agree(&mut self, comm: &Communicator, all: &[Ask], items: &[Item]) -> Result<()> {
        if all.iter().all(|ask| ask.agrees(&all[0])) {
            return Ok(());
        }
        let mut asked: Vec<String> = all.iter().map(Ask::describe).collect();
        let mut what = "symmetric memory".to_owned();
        let count = all[0].count;
        if count > 1 && all.iter().all(|ask| ask.count == count) {
            // All see that, so all look which one it is.
            let words: Vec<u64> = items.iter().flat_map(|item| item.words()).collect();
            let lists = self.lane.gather(comm, &words)?;
            let item =
                |list: &Vec<u64>, at: usize| Item { dtype: list[2 * at], len: list[2 * at + 1] };
            let differs =
                |at: &usize| lists.iter().any(|list| item(list, *at) != item(&lists[0], *at));
            if let Some(at) = (0..items.len()).find(differs) {
                what = format!("buffer {at} of {count} of a plan");
                asked = lists.iter().map(|list| item(list, at).to_string()).collect();
            }
        }
        let message = format!("ranks ask for different memory: {what} is {}", grouped(&asked));
        Err(Error::new(ErrorKind::InvalidArgument, message)
            .with_hint("all ranks allocate the same symmetric buffers, in the same order"))
    }

    /// Lowers the limit to what the least of the ranks' libraries can.
    fn settle_limit(&mut self, all: &[Ask]) {
        let Some((rank, least)) = all.iter().enumerate().rev().max_by_key(|(_, ask)| ask.best)
        else {
            return;
        };
        let kind = [MemoryKind::Symmetric, MemoryKind::Registered, MemoryKind::Plain]
            .into_iter()
            .find(|kind| kind.number() == least.best)
            .unwrap_or(MemoryKind::Plain);
        if kind > self.limit {
            self.lower(kind, rank, &least.reason, all.len());
        }
    }

    fn lower(&mut self, kind: MemoryKind, rank: usize, reason: &str, ranks: usize) {
        let was = std::mem::replace(&mut self.limit, kind);
        let text = if ranks > 1 { format!("rank {rank}: {reason}") } else { reason.to_owned() };
        tracing::info!(%was, now = %kind, reason = %text, "symmetric memory falls back");
        self.reason = Some(text.into());
    }

    /// A new segment, on all ranks, as good as all can make it.
    #[track_caller]
    fn grow(&mut self, comm: &Communicator, total: usize) -> Result<()> {
        let Some(bytes) = self.arena.growth(total) else {
            let message = format!("{total} bytes do not fit into memory");
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        };
        let memory = Memory::new(comm, bytes);
        let outcome = memory.as_ref().map(|_| ()).map_err(Error::copy);
        let failed = self.lane.first_failure(comm, &outcome);
        let memory = match (memory, failed) {
            (Ok(memory), Ok(None)) => memory,
            (memory, failed) => {
                if let Ok(memory) = memory {
                    memory.free(comm.as_comm(), comm.device());
                }
                return Err(match failed? {
                    Some((rank, text)) => no_memory(rank, bytes, &text),
                    None => no_memory(comm.rank() as usize, bytes, "nothing was told"),
                });
            }
        };
        let mut segment = Segment {
            memory,
            kind: MemoryKind::Plain,
            reason: None,
            window: None,
            registration: None,
        };
        match self.back(comm, &mut segment) {
            Ok(()) => {
                segment.reason.clone_from(&self.reason);
                self.arena.add_space(bytes);
                self.segments.push(segment);
                Ok(())
            }
            Err(error) => {
                segment.free(comm.as_comm(), comm.device());
                Err(error)
            }
        }
    }

    /// Makes a window of a segment, or registers it, or leaves it: as all ranks can.
    #[track_caller]
    fn back(&mut self, comm: &Communicator, segment: &mut Segment) -> Result<()> {
        let (ptr, bytes) = (segment.memory.ptr, segment.memory.bytes);
        if self.limit == MemoryKind::Symmetric {
            let register = || {
                // SAFETY: the memory is the segment's, which deregisters before it frees.
                unsafe { comm.as_comm().window_register(ptr, bytes, WindowFlags::SYMMETRIC) }
            };
            let made = self.watched(comm, "window_register", register);
            segment.window = made.as_ref().ok().copied();
            match self.lane.first_failure(comm, &made.map(|_| ()))? {
                None => segment.kind = MemoryKind::Symmetric,
                Some((rank, text)) => {
                    segment.release(comm.as_comm());
                    self.lower(MemoryKind::Registered, rank, &text, comm.size());
                }
            }
        }
        if self.limit == MemoryKind::Registered {
            let made = if segment.memory.of_library && comm.capabilities().register.is_available() {
                // SAFETY: as above.
                unsafe { comm.as_comm().register(ptr, bytes) }.and_then(switched_on)
            } else {
                comm.capabilities()
                    .register
                    .require("register")
                    .map(|()| RawRegistration::from_bits(0))
            };
            segment.registration = made.as_ref().ok().copied();
            match self.lane.first_failure(comm, &made.map(|_| ()))? {
                None => segment.kind = MemoryKind::Registered,
                Some((rank, text)) => {
                    segment.release(comm.as_comm());
                    self.lower(MemoryKind::Plain, rank, &text, comm.size());
                }
            }
        }
        Ok(())
    }

    /// Runs a call that waits for other ranks where the watchdog sees it.
    #[track_caller]
    fn watched<R>(
        &self,
        comm: &Communicator,
        name: &'static str,
        call: impl FnOnce() -> Result<R>,
    ) -> Result<R> {
        let site = Location::caller();
        let mut made = None;
        comm.inner().enqueue(&self.lane.stream, name, site, || {
            made = Some(call()?);
            Ok(())
        })?;
        match made {
            Some(made) => Ok(made),
            None => unreachable!("the call has succeeded"),
        }
    }

    fn take(&mut self, comm: &Communicator, place: Place, items: &[Item]) -> Vec<Piece> {
        let segment = &self.segments[place.segment];
        let mut offset = place.offset;
        let take = |item: &Item| {
            // The total was checked.
            let bytes = item.bytes().unwrap_or(0);
            let rounded = Arena::rounded(bytes).unwrap_or(0);
            let number = self.arena.take(Place { offset, ..place }, rounded);
            let piece = Piece {
                comm: Arc::clone(comm.inner()),
                ptr: segment.memory.ptr.wrapping_byte_add(offset),
                bytes,
                kind: segment.kind,
                reason: segment.reason.clone(),
                after: None,
                window: segment.window,
                offset,
                number,
            };
            offset += rounded;
            piece
        };
        items.iter().map(take).collect()
    }

    /// Zeroes a stretch of a segment, and waits for it.
    fn clear(&self, comm: &Communicator, place: Place, bytes: usize) -> Result<()> {
        let start = self.segments[place.segment].memory.ptr.wrapping_byte_add(place.offset);
        let stream = &self.lane.stream;
        // SAFETY: the stretch lies in the segment; all ranks have given up what was there, and nobody
        // was told of what will be.
        unsafe { comm.device().memset(start, 0, bytes, stream.as_raw()) }?;
        stream.synchronize()
    }

    /// Frees everything, where no buffer is left. What is still in use after `limit` is leaked.
    pub(crate) fn end(
        self,
        comm: &AnyComm,
        device: &AnyDevice,
        blocks: Vec<(u64, Option<Stream>)>,
        limit: Duration,
    ) {
        let Self { lane, segments, mut dropped, .. } = self;
        drop(lane);
        dropped.extend(blocks);
        let streams: BTreeMap<u64, &Stream> =
            dropped.values().flatten().map(|stream| (stream.id(), stream)).collect();
        let until = Instant::now() + limit;
        for stream in streams.values() {
            let left = until.saturating_duration_since(Instant::now());
            // SAFETY: the stream is alive, and of this device.
            let waited = unsafe { device.synchronize(stream.as_raw(), Some(left)) };
            // What else a stream tells is of communicators.
            let in_use =
                |error: &Error| matches!(error.kind(), ErrorKind::Device | ErrorKind::Timeout);
            if let Some(error) = waited.err().filter(in_use) {
                tracing::warn!(%error, "symmetric memory is in use, and leaked");
                return;
            }
        }
        segments.into_iter().for_each(|segment| segment.free(comm, device));
    }
}

impl Segment {
    /// Undoes what makes it more than plain memory.
    fn release(&mut self, comm: &AnyComm) {
        let outcomes = [
            self.window.take().map(|window| {
                // SAFETY: the window is this communicator's, and no buffer in it is in use.
                unsafe { comm.window_deregister(window) }
            }),
            self.registration.take().filter(|registration| registration.bits() != 0).map(
                |registration| {
                    // SAFETY: as above.
                    unsafe { comm.deregister(registration) }
                },
            ),
        ];
        for error in outcomes.into_iter().flatten().filter_map(Result::err) {
            // With the communicator went its windows and registrations.
            if error.kind() != ErrorKind::Aborted {
                tracing::warn!(%error, "symmetric memory could not be deregistered");
            }
        }
    }

    fn free(mut self, comm: &AnyComm, device: &AnyDevice) {
        self.release(comm);
        self.memory.free(comm, device);
    }
}

impl Memory {
    fn new(comm: &Communicator, bytes: usize) -> Result<Self> {
        let of_library = comm.capabilities().mem_alloc.is_available();
        let ptr = match of_library {
            true => comm.as_comm().mem_alloc(bytes)?,
            false => comm.device().alloc(bytes)?,
        };
        Ok(Self { ptr, bytes, of_library })
    }

    fn free(self, comm: &AnyComm, device: &AnyDevice) {
        let freed = match self.of_library {
            // SAFETY: from `mem_alloc` of this communicator, deregistered, and not in use.
            true => unsafe { comm.mem_free(self.ptr) },
            // SAFETY: from this device, and not in use.
            false => unsafe { device.free(self.ptr, RawStream::DEFAULT) },
        };
        if let Err(error) = freed {
            tracing::warn!(%error, "symmetric memory could not be freed");
        }
    }
}

/// What the library of a communicator can make, and why no better.
fn best_of(comm: &Communicator) -> (MemoryKind, Option<String>) {
    let has = comm.capabilities();
    let memory = has.mem_alloc.require("mem_alloc");
    let kinds = [
        (MemoryKind::Symmetric, has.window_register.require("window_register")),
        (MemoryKind::Registered, has.register.require("register")),
    ];
    let library = &comm.info().library;
    let mut reason = None;
    for (kind, has) in kinds {
        match memory.as_ref().map_err(Error::copy).and(has) {
            Ok(()) => return (kind, reason),
            Err(error) => {
                let text = format!("{error} ({} {})", library.backend, library.version);
                reason.get_or_insert(text);
            }
        }
    }
    (MemoryKind::Plain, reason)
}

/// What the blocks of some items take.
fn total_of(items: &[Item]) -> Option<usize> {
    let rounded = |item: &Item| Arena::rounded(item.bytes()?);
    let total = items.iter().try_fold(0_usize, |sum, item| sum.checked_add(rounded(item)?));
    total.filter(|&total| total <= isize::MAX as usize)
}

/// A registration that is one: the library may take it and do nothing.
fn switched_on(registration: RawRegistration) -> Result<RawRegistration> {
    if registration.bits() != 0 {
        return Ok(registration);
    }
    Err(Error::new(ErrorKind::Unsupported, "registration is switched off (NCCL_LOCAL_REGISTER)"))
}

fn no_memory(rank: usize, bytes: usize, text: &str) -> Error {
    let message = format!("rank {rank} could not allocate a segment of {bytes} bytes: {text}");
    Error::new(ErrorKind::OutOfMemory, message)
}

/// What each rank said, the fewest first: `8 × f32 on rank 2; 4 × f32 on ranks 0, 1`.
fn grouped(said: &[String]) -> String {
    let mut groups: Vec<(&str, Vec<usize>)> = Vec::new();
    for (rank, text) in said.iter().enumerate() {
        match groups.iter_mut().find(|(known, _)| known == text) {
            Some((_, ranks)) => ranks.push(rank),
            None => groups.push((text, vec![rank])),
        }
    }
    groups.sort_by_key(|(_, ranks)| ranks.len());
    let on = |(text, ranks): &(&str, Vec<usize>)| {
        let noun = if ranks.len() == 1 { "rank" } else { "ranks" };
        let ranks: Vec<_> = ranks.iter().map(ToString::to_string).collect();
        format!("{text} on {noun} {}", ranks.join(", "))
    };
    groups.iter().map(on).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_odd_one_is_named_first() {
        let said = ["4 × f32", "4 × f32", "8 × f32"].map(String::from);
        assert_eq!(grouped(&said), "8 × f32 on rank 2; 4 × f32 on ranks 0, 1");
    }

    #[test]
    fn totals_are_those_of_blocks() {
        let items = [Item::new(<f32 as Element>::DTYPE, 1), Item::new(<u8 as Element>::DTYPE, 257)];
        assert_eq!(total_of(&items), Some(256 + 512));
        let huge = Item::new(<f64 as Element>::DTYPE, usize::MAX);
        assert_eq!(total_of(&[huge]), None);
    }
}
