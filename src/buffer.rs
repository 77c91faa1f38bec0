//! Device memory that knows where it was used last.

use std::{
    any::Any,
    cell::Cell,
    ffi::c_void,
    fmt,
    marker::PhantomData,
    ops::{Bound, Range, RangeBounds},
    panic::Location,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use collectives_core::{
    Device, Element, Error, ErrorKind, RawRegistration, RawStream, RecvBuf, Result, SendBuf,
};

use crate::{
    AnyDevice, MemoryKind, Stream,
    communicator::CommInner,
    place::{Locked, Place},
    symmetric::Piece,
};

/// An array of `T` in device memory.
///
/// A buffer remembers the stream of its last use. Used on another stream, it makes that stream
/// wait for the first; a program with one stream per rank pays nothing for it. Host access goes
/// through a stream too, and synchronises it. Dropping frees the memory when its last stream has
/// passed what uses it.
///
/// `Send`, not `Sync`: two threads cannot use it at once. Views ([`Slice`], [`SliceMut`]) stay on
/// their thread.
///
/// ```
/// use collectives::{ReduceOp, mock};
///
/// mock::run(2, |comm| {
///     let stream = comm.new_stream()?;
///     let mut buffer = stream.upload(&[1.0_f32, 2.0, 3.0, 4.0])?;
///     // The second half alone.
///     comm.on(&stream).all_reduce_in_place(buffer.slice_mut(2..), ReduceOp::Sum)?;
///     assert_eq!(buffer.to_vec(&stream)?, [1.0, 2.0, 6.0, 8.0]);
///     buffer.copy_from_slice(&[0.0; 4], &stream)
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Buffer<T: Element> {
    memory: Arc<Allocation>,
    len: usize,
    element: PhantomData<T>,
    not_sync: PhantomData<Cell<()>>,
}

impl<T: Element> Buffer<T> {
    /// Allocates `len` zeros on the device of `stream`.
    ///
    /// # Errors
    /// [`OutOfMemory`](ErrorKind::OutOfMemory); what the device's runtime reports.
    #[track_caller]
    pub fn zeros(stream: &Stream, len: usize) -> Result<Self> {
        let bytes = bytes_of::<T>(len)?;
        stream.not_captured("alloc")?;
        let ptr = stream.device().alloc(bytes)?;
        let buffer = Self::over(Allocation::new(stream, ptr, bytes, Home::Device), len);
        buffer.memory.clear(stream)?;
        Ok(buffer)
    }

    /// Allocates on the device of `stream` and copies `values` there.
    ///
    /// # Errors
    /// As [`zeros`](Self::zeros) and [`copy_from_slice`](Self::copy_from_slice).
    #[track_caller]
    pub fn from_slice(stream: &Stream, values: &[T]) -> Result<Self> {
        let bytes = bytes_of::<T>(values.len())?;
        stream.not_captured("alloc")?;
        let ptr = stream.device().alloc(bytes)?;
        let memory = Allocation::new(stream, ptr, bytes, Home::Device);
        let mut buffer = Self::over(memory, values.len());
        buffer.copy_from_slice(values, stream)?;
        Ok(buffer)
    }

    /// Wraps device memory that other code owns. It is not freed with the result.
    ///
    /// # Safety
    /// `ptr` is `len` elements of initialised memory of `device`, aligned for `T`, which outlive
    /// the result, its views, and every graph it is captured into. Other code does not use the
    /// memory meanwhile, except on streams that it orders itself.
    ///
    /// # Errors
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) for null with a length.
    pub unsafe fn from_raw(device: &AnyDevice, ptr: *mut T, len: usize) -> Result<Self> {
        let bytes = bytes_of::<T>(len)?;
        if ptr.is_null() && len > 0 {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("a buffer of {len} elements cannot be null"),
            ));
        }
        let memory = Allocation {
            device: device.clone(),
            place: Place::of(device),
            ptr: ptr.cast(),
            bytes,
            home: Home::Foreign,
            last_stream_id: AtomicU64::new(UNUSED),
            last_stream: Mutex::new(None),
        };
        Ok(Self::over(memory, len))
    }

    pub(crate) fn of_library(
        comm: &Arc<CommInner>,
        stream: &Stream,
        ptr: *mut c_void,
        len: usize,
        registration: Option<RawRegistration>,
    ) -> Result<Self> {
        let home = Home::Library { comm: Arc::clone(comm), registration };
        let buffer = Self::over(Allocation::new(stream, ptr, len * size_of::<T>(), home), len);
        buffer.memory.clear(stream)?;
        Ok(buffer)
    }

    /// Memory of a communicator's heap, which nobody uses yet.
    pub(crate) fn of_heap(piece: Piece, len: usize) -> Self {
        let device = piece.comm.device();
        let memory = Allocation {
            device: device.clone(),
            place: Place::of(device),
            ptr: piece.ptr,
            bytes: piece.bytes,
            home: Home::Heap(piece),
            last_stream_id: AtomicU64::new(UNUSED),
            last_stream: Mutex::new(None),
        };
        Self::over(memory, len)
    }

    pub(crate) fn memory(&self) -> &Arc<Allocation> {
        &self.memory
    }

    pub(crate) fn memory_mut(&mut self) -> &mut Arc<Allocation> {
        &mut self.memory
    }

    pub(crate) fn over(memory: Allocation, len: usize) -> Self {
        let memory = Arc::new(memory);
        Self { memory, len, element: PhantomData, not_sync: PhantomData }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The device pointer, for kernels and libraries of other code.
    ///
    /// Work that uses it is not tracked: enqueue it on the stream that the buffer is used on.
    pub fn as_ptr(&self) -> *mut T {
        self.memory.ptr.cast()
    }

    /// The device that holds it.
    pub fn device(&self) -> &AnyDevice {
        &self.memory.device
    }

    /// How the library of a communicator knows its memory: symmetric, registered, or not at all.
    pub fn memory_kind(&self) -> MemoryKind {
        match &self.memory.home {
            Home::Heap(piece) => piece.kind,
            Home::Library { registration: Some(_), .. } => MemoryKind::Registered,
            Home::Library { .. } | Home::Cudarc { .. } | Home::Device | Home::Foreign => {
                MemoryKind::Plain
            }
        }
    }

    /// Why memory of [`Communicator::alloc_symmetric`](crate::Communicator::alloc_symmetric) is not
    /// symmetric; nothing of other memory.
    pub fn memory_reason(&self) -> Option<&str> {
        match &self.memory.home {
            Home::Heap(piece) => piece.reason.as_deref(),
            Home::Library { .. } | Home::Cudarc { .. } | Home::Device | Home::Foreign => None,
        }
    }

    /// A view of the whole buffer, to be read.
    pub fn view(&self) -> Slice<'_, T> {
        Slice { memory: &self.memory, ptr: self.as_ptr(), len: self.len, element: PhantomData }
    }

    /// A view of the whole buffer, to be written.
    pub fn view_mut(&mut self) -> SliceMut<'_, T> {
        SliceMut {
            memory: &self.memory,
            ptr: self.memory.ptr.cast(),
            len: self.len,
            element: PhantomData,
        }
    }

    /// A view of some elements, to be read.
    ///
    /// # Panics
    /// If the range does not lie inside the buffer, as slices do.
    #[track_caller]
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Slice<'_, T> {
        self.view().slice(range)
    }

    /// A view of some elements, to be written.
    ///
    /// # Panics
    /// If the range does not lie inside the buffer, as slices do.
    #[track_caller]
    pub fn slice_mut(&mut self, range: impl RangeBounds<usize>) -> SliceMut<'_, T> {
        self.view_mut().slice_mut(range)
    }

    /// Two views that share no element: before `mid`, and from it on.
    ///
    /// # Panics
    /// If `mid` is larger than the length, as slices do.
    #[track_caller]
    pub fn split_at_mut(&mut self, mid: usize) -> (SliceMut<'_, T>, SliceMut<'_, T>) {
        self.view_mut().split_at_mut(mid)
    }

    /// Copies `values` to the device and waits for it.
    ///
    /// # Errors
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) for another length or device; as
    /// [`Stream::synchronize`].
    #[doc(alias = "cudaMemcpyAsync")]
    #[doc(alias = "hipMemcpyAsync")]
    #[track_caller]
    pub fn copy_from_slice(&mut self, values: &[T], stream: &Stream) -> Result<()> {
        self.view_mut().copy_from_slice(values, stream)
    }

    /// Enqueues a copy of `from`, which is as long.
    ///
    /// # Errors
    /// As [`SliceMut::copy_from`].
    #[track_caller]
    pub fn copy_from<'b>(&mut self, from: impl Into<Slice<'b, T>>, stream: &Stream) -> Result<()> {
        self.view_mut().copy_from(from, stream)
    }

    /// Copies the elements to the host.
    ///
    /// # Errors
    /// As [`Slice::to_vec`].
    #[track_caller]
    pub fn to_vec(&self, stream: &Stream) -> Result<Vec<T>> {
        self.view().to_vec(stream)
    }

    /// Copies the elements to `values`.
    ///
    /// # Errors
    /// As [`Slice::copy_to_slice`].
    #[track_caller]
    pub fn copy_to_slice(&self, values: &mut [T], stream: &Stream) -> Result<()> {
        self.view().copy_to_slice(values, stream)
    }
}

impl<T: Element> fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} × {} on {})", self.len, T::DTYPE, self.memory.place)
    }
}

/// Elements of a [`Buffer`], to be read.
#[derive(Clone, Copy)]
pub struct Slice<'a, T: Element> {
    memory: &'a Arc<Allocation>,
    ptr: *mut T,
    len: usize,
    element: PhantomData<&'a T>,
}

impl<'a, T: Element> Slice<'a, T> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A view of some of its elements.
    ///
    /// # Panics
    /// If the range does not lie inside, as slices do.
    #[must_use]
    #[track_caller]
    pub fn slice(self, range: impl RangeBounds<usize>) -> Self {
        let range = checked(range, self.len);
        let ptr = self.ptr.wrapping_add(range.start);
        Self { memory: self.memory, ptr, len: range.len(), element: PhantomData }
    }

    /// Waits for the elements and copies them to the host.
    ///
    /// # Errors
    /// As [`copy_to_slice`](Self::copy_to_slice).
    #[track_caller]
    pub fn to_vec(self, stream: &Stream) -> Result<Vec<T>> {
        let mut values = vec![T::ZERO; self.len];
        self.copy_to_slice(&mut values, stream)?;
        Ok(values)
    }

    /// Waits for the elements and copies them to `values`.
    ///
    /// # Errors
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) for another length or device; as
    /// [`Stream::synchronize`].
    #[track_caller]
    pub fn copy_to_slice(self, values: &mut [T], stream: &Stream) -> Result<()> {
        same_len(self.len, values.len())?;
        stream.not_captured("copy")?;
        // Waited for first, since a copy to pageable host memory blocks in the driver, where no
        // failed communicator can end it.
        drop(order_all(&[Some(self.memory)], stream)?);
        stream.synchronize()?;
        let locked = order_all(&[Some(self.memory)], stream)?;
        // SAFETY: both ranges are as long as `values`, and the wait below keeps them until it is
        // done.
        let copied = unsafe {
            stream.device().copy_from(
                values.as_mut_ptr().cast(),
                self.ptr.cast_const().cast(),
                size_of_val(values),
                stream.as_raw(),
            )
        };
        drop(locked);
        finish(copied, stream)
    }

    pub(crate) fn raw(&self) -> SendBuf {
        SendBuf::typed(self.ptr, self.len)
    }

    pub(crate) fn memory(&self) -> &'a Arc<Allocation> {
        self.memory
    }
}

impl<T: Element> fmt::Debug for Slice<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slice({} × {} on {})", self.len, T::DTYPE, self.memory.place)
    }
}

impl<'a, T: Element> From<&'a Buffer<T>> for Slice<'a, T> {
    fn from(buffer: &'a Buffer<T>) -> Self {
        buffer.view()
    }
}

/// Roots give what others leave out.
impl<'a, T: Element> From<&'a Buffer<T>> for Option<Slice<'a, T>> {
    fn from(buffer: &'a Buffer<T>) -> Self {
        Some(buffer.view())
    }
}

impl<'a, T: Element> From<SliceMut<'a, T>> for Slice<'a, T> {
    fn from(slice: SliceMut<'a, T>) -> Self {
        let SliceMut { memory, ptr, len, element: _ } = slice;
        Self { memory, ptr, len, element: PhantomData }
    }
}

/// Elements of a [`Buffer`], to be written.
pub struct SliceMut<'a, T: Element> {
    memory: &'a Arc<Allocation>,
    ptr: *mut T,
    len: usize,
    element: PhantomData<&'a mut T>,
}

impl<'a, T: Element> SliceMut<'a, T> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The same view, for a shorter time.
    pub fn reborrow(&mut self) -> SliceMut<'_, T> {
        SliceMut { memory: self.memory, ptr: self.ptr, len: self.len, element: PhantomData }
    }

    /// A view of some of its elements.
    ///
    /// # Panics
    /// If the range does not lie inside, as slices do.
    #[must_use]
    #[track_caller]
    pub fn slice_mut(self, range: impl RangeBounds<usize>) -> Self {
        let range = checked(range, self.len);
        let ptr = self.ptr.wrapping_add(range.start);
        Self { memory: self.memory, ptr, len: range.len(), element: PhantomData }
    }

    /// Two views that share no element: before `mid`, and from it on.
    ///
    /// # Panics
    /// If `mid` is larger than the length, as slices do.
    #[must_use]
    #[track_caller]
    pub fn split_at_mut(self, mid: usize) -> (Self, Self) {
        let before = checked(..mid, self.len);
        let after = checked(mid.., self.len);
        let part = |range: Range<usize>| Self {
            memory: self.memory,
            ptr: self.ptr.wrapping_add(range.start),
            len: range.len(),
            element: PhantomData,
        };
        (part(before), part(after))
    }

    /// Copies `values` to the device and waits for it.
    ///
    /// # Errors
    /// As [`Buffer::copy_from_slice`].
    #[track_caller]
    pub fn copy_from_slice(&mut self, values: &[T], stream: &Stream) -> Result<()> {
        same_len(self.len, values.len())?;
        stream.not_captured("copy")?;
        // As in the other direction.
        drop(order_all(&[Some(self.memory)], stream)?);
        stream.synchronize()?;
        let locked = order_all(&[Some(self.memory)], stream)?;
        // SAFETY: both ranges are as long as `values`, and the wait below keeps them until it is
        // done.
        let copied = unsafe {
            stream.device().copy_to(
                self.ptr.cast(),
                values.as_ptr().cast(),
                size_of_val(values),
                stream.as_raw(),
            )
        };
        drop(locked);
        finish(copied, stream)
    }

    /// Enqueues a copy of `from`, which is as long.
    ///
    /// # Errors
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) for another length or device; what the
    /// device's runtime reports.
    #[track_caller]
    pub fn copy_from<'b>(&mut self, from: impl Into<Slice<'b, T>>, stream: &Stream) -> Result<()> {
        let from = from.into();
        same_len(self.len, from.len)?;
        stream.not_captured_by_others("copy")?;
        let _locked = order_all(&[Some(self.memory), Some(from.memory)], stream)?;
        // SAFETY: both are as long; `self` is borrowed mutably, so they do not overlap; both are
        // kept until the stream has passed them, since their memory is freed in its order.
        unsafe {
            stream.device().copy_between(
                self.ptr.cast(),
                from.ptr.cast_const().cast(),
                self.len * size_of::<T>(),
                stream.as_raw(),
            )
        }
    }

    pub(crate) fn raw(&self) -> RecvBuf {
        RecvBuf::typed(self.ptr, self.len)
    }

    pub(crate) fn memory(&self) -> &'a Arc<Allocation> {
        self.memory
    }
}

impl<T: Element> fmt::Debug for SliceMut<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SliceMut({} × {} on {})", self.len, T::DTYPE, self.memory.place)
    }
}

impl<'a, T: Element> From<&'a mut Buffer<T>> for SliceMut<'a, T> {
    fn from(buffer: &'a mut Buffer<T>) -> Self {
        buffer.view_mut()
    }
}

/// Roots give what others leave out.
impl<'a, T: Element> From<&'a mut Buffer<T>> for Option<SliceMut<'a, T>> {
    fn from(buffer: &'a mut Buffer<T>) -> Self {
        Some(buffer.view_mut())
    }
}

impl<'a, T: Element> From<&'a mut SliceMut<'_, T>> for SliceMut<'a, T> {
    fn from(slice: &'a mut SliceMut<'_, T>) -> Self {
        slice.reborrow()
    }
}

/// One piece of device memory, and where it was used last. Shared by a buffer, its views, and the
/// graphs it is captured into.
pub(crate) struct Allocation {
    device: AnyDevice,
    place: Place,
    ptr: *mut c_void,
    bytes: usize,
    home: Home,
    /// Id of the stream of the last use, or one of the marks below.
    last_stream_id: AtomicU64,
    last_stream: Mutex<Option<Stream>>,
}

// SAFETY: the pointer is an address on a device, which is passed on and never dereferenced here;
// all else is `Send` and `Sync` but the communicator in `home`, which is only kept and handed back
// through its lock.
unsafe impl Send for Allocation {}
// SAFETY: as above; what changes is atomic or behind the lock.
unsafe impl Sync for Allocation {}

/// Where memory came from, and so how it goes back.
enum Home {
    /// A slice of cudarc's, until it is given back, and the stream that it is freed on.
    Cudarc {
        slice: Option<Box<dyn Any + Send>>,
        stream: Stream,
    },
    Device,
    Foreign,
    Library {
        comm: Arc<CommInner>,
        registration: Option<RawRegistration>,
    },
    Heap(Piece),
}

/// Not used on any stream yet.
const UNUSED: u64 = 0;
/// Captured into a graph: its uses are ordered under the device's lock.
const SHARED: u64 = u64::MAX;
/// Other code uses it, on streams that only that code knows.
const LENT: u64 = u64::MAX - 1;

impl Allocation {
    fn new(stream: &Stream, ptr: *mut c_void, bytes: usize, home: Home) -> Self {
        Self {
            device: stream.device().clone(),
            place: stream.place(),
            ptr,
            bytes,
            home,
            last_stream_id: AtomicU64::new(stream.id()),
            last_stream: Mutex::new(Some(stream.clone())),
        }
    }

    /// Memory of a slice of cudarc's, whose own stream has all of its uses behind it.
    pub(crate) fn of_cudarc(
        stream: Stream,
        ptr: *mut c_void,
        bytes: usize,
        slice: Box<dyn Any + Send>,
    ) -> Self {
        let home = Home::Cudarc { slice: Some(slice), stream: stream.clone() };
        Self::new(&stream, ptr, bytes, home)
    }

    /// Takes the slice of cudarc's out, whose stream comes after the last use. `None` where there is
    /// none.
    pub(crate) fn take_cudarc(&mut self) -> Result<Option<Box<dyn Any + Send>>> {
        let last = self.last_stream.get_mut().unwrap_or_else(PoisonError::into_inner);
        let Home::Cudarc { slice, stream } = &mut self.home else { return Ok(None) };
        if let Some(last) = last.as_ref().filter(|last| last.id() != stream.id()) {
            stream.follow(last)?;
        }
        Ok(slice.take())
    }

    /// Orders `stream` after the last use, and leaves the memory to other code until it is
    /// [taken back](Self::take_back).
    pub(crate) fn lend(&self, stream: &Stream) -> Result<()> {
        if self.is_shared() {
            return Err(Error::new(
                ErrorKind::InvalidUsage,
                "a graph uses the buffer too, and may be launched meanwhile",
            )
            .with_operation("lend")
            .with_hint("put the work into the graph: Scope::launch_with"));
        }
        self.order(stream)?;
        self.last_stream_id.store(LENT, Ordering::Release);
        Ok(())
    }

    /// The memory is in use on `stream` alone again.
    pub(crate) fn take_back(&self, stream: &Stream) {
        self.last_stream_id.store(stream.id(), Ordering::Release);
    }

    /// Refuses what was lent and never taken back.
    pub(crate) fn not_lent(&self) -> Result<()> {
        if self.last_stream_id.load(Ordering::Acquire) != LENT {
            return Ok(());
        }
        Err(Error::new(ErrorKind::InvalidUsage, "the buffer was lent, and never taken back"))
    }

    fn clear(&self, stream: &Stream) -> Result<()> {
        // SAFETY: the memory was just allocated, `bytes` long, and is freed in stream order.
        unsafe { self.device.memset(self.ptr, 0, self.bytes, stream.as_raw()) }
    }

    pub(crate) fn place(&self) -> Place {
        self.place
    }

    /// The part of a symmetric heap that it is, if it is one.
    pub(crate) fn piece(&self) -> Option<&Piece> {
        match &self.home {
            Home::Heap(piece) => Some(piece),
            Home::Library { .. } | Home::Cudarc { .. } | Home::Device | Home::Foreign => None,
        }
    }

    #[inline]
    pub(crate) fn is_shared(&self) -> bool {
        self.last_stream_id.load(Ordering::Acquire) == SHARED
    }

    /// From now on a graph uses the memory too. Called while its buffer is borrowed.
    pub(crate) fn share(&self) {
        self.last_stream_id.store(SHARED, Ordering::Release);
    }

    /// Orders `stream` after the last use, and makes it the last. If the memory is shared, the
    /// caller holds the device's lock until it has enqueued.
    #[inline]
    pub(crate) fn order(&self, stream: &Stream) -> Result<()> {
        if self.last_stream_id.load(Ordering::Acquire) == stream.id() {
            return Ok(());
        }
        self.order_slow(stream)
    }

    #[cold]
    fn order_slow(&self, stream: &Stream) -> Result<()> {
        self.not_lent()?;
        let mut last = self.last_stream.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = &*last
            && last.id() != stream.id()
        {
            stream.follow(last)?;
        }
        *last = Some(stream.clone());
        if !self.is_shared() {
            self.last_stream_id.store(stream.id(), Ordering::Release);
        }
        Ok(())
    }
}

/// Orders `stream` after the last use of each memory; see [`Allocation::order`]. What is returned
/// is to be kept until the caller has enqueued.
#[inline]
pub(crate) fn order_all(
    memory: &[Option<&Arc<Allocation>>],
    stream: &Stream,
) -> Result<Option<Locked>> {
    let memory = || memory.iter().filter_map(|memory| *memory);
    for memory in memory() {
        if memory.place != stream.place() {
            return Err(other_device(memory.place, stream.place()));
        }
    }
    let shared = memory().any(|memory| memory.is_shared());
    let locked = shared.then(|| Locked::new([stream.place()]));
    for memory in memory() {
        memory.order(stream)?;
    }
    Ok(locked)
}

/// Waits for a copy from or to memory of the host, which is borrowed no longer than the call.
fn finish(copied: Result<()>, stream: &Stream) -> Result<()> {
    copied?;
    let waited = stream.synchronize();
    if waited.is_err() {
        // Another thread enqueued behind the wait before the copy, and failed. The copy is still in
        // the stream, with the caller's memory in it, so it is waited for all the same.
        // SAFETY: the stream is alive, and of this device.
        drop(unsafe { stream.device().synchronize(stream.as_raw(), None) });
    }
    waited
}

#[cold]
fn other_device(buffer: Place, stream: Place) -> Error {
    Error::new(
        ErrorKind::InvalidArgument,
        format!("the buffer is on {buffer}, the stream on {stream}"),
    )
    .with_hint("use a stream of the buffer's device")
}

impl Drop for Allocation {
    fn drop(&mut self) {
        let is_lent = self.not_lent().is_err();
        let last = self.last_stream.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if is_lent {
            tracing::warn!("memory that was lent and never taken back is leaked");
            if let Home::Cudarc { .. } | Home::Heap(_) = self.home {
                std::mem::forget(std::mem::replace(&mut self.home, Home::Foreign));
            }
            return;
        }
        let after = last.as_ref().map_or(RawStream::DEFAULT, Stream::as_raw);
        match &mut self.home {
            Home::Cudarc { slice, stream } => {
                let Some(slice) = slice.take() else { return };
                let last = last.filter(|last| last.id() != stream.id());
                match last.map_or(Ok(()), |last| stream.follow(&last)) {
                    // On its own stream, as cudarc frees it.
                    Ok(()) => drop(slice),
                    Err(error) => {
                        tracing::warn!(%error, "a slice of cudarc's is leaked");
                        std::mem::forget(slice);
                    }
                }
            }
            Home::Foreign => {}
            Home::Device => {
                // SAFETY: allocated from this device, and nothing refers to it any more but work
                // that `after` waits for: each use on another stream was waited for by the next.
                if let Err(error) = unsafe { self.device.free(self.ptr, after) } {
                    tracing::warn!(%error, "device memory could not be freed");
                }
            }
            Home::Library { comm, registration } => {
                comm.give_back(*registration, self.ptr, last);
            }
            Home::Heap(piece) => piece.after = last,
        }
    }
}

pub(crate) fn bytes_of<T: Element>(len: usize) -> Result<usize> {
    len.checked_mul(size_of::<T>()).filter(|&bytes| bytes <= isize::MAX as usize).ok_or_else(|| {
        Error::new(
            ErrorKind::InvalidArgument,
            format!("{len} elements of {} do not fit into memory", T::DTYPE),
        )
    })
}

#[track_caller]
fn same_len(device: usize, host: usize) -> Result<()> {
    if device == host {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidArgument,
        format!("the buffer holds {device} elements, the other side {host}"),
    )
    .with_operation("copy")
    .with_site(Location::caller()))
}

#[track_caller]
fn checked(range: impl RangeBounds<usize>, len: usize) -> Range<usize> {
    let start = match range.start_bound() {
        Bound::Included(&start) => start,
        Bound::Excluded(&start) => start + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&end) => end + 1,
        Bound::Excluded(&end) => end,
        Bound::Unbounded => len,
    };
    assert!(
        start <= end && end <= len,
        "range {start}..{end} out of range for a buffer of {len} elements"
    );
    start..end
}
