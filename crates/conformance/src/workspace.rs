//! A device, a stream, and what a case makes on them. See [`crate::lane`] for why its functions
//! are safe.

use std::{cell::RefCell, ffi::c_void, time::Duration};

use collectives_core::{
    DType, Device, Element, Error, RawEvent, RawGraph, RawStream, RecvBuf, SendBuf,
};

use crate::{
    check::{Failure, Outcome},
    last_call::LastCall,
};

/// A device with a stream, and the memory, streams and events that a case made on it.
pub(crate) struct Workspace<'w, D: Device> {
    pub(crate) device: D,
    pub(crate) stream: RawStream,
    pub(crate) calls: &'w LastCall,
    owned: RefCell<Owned>,
}

#[derive(Default)]
struct Owned {
    memory: Vec<*mut c_void>,
    /// Host memory that enqueued copies read or write.
    staging: Vec<Box<[u8]>>,
    streams: Vec<RawStream>,
    events: Vec<RawEvent>,
}

impl<'w, D: Device> Workspace<'w, D> {
    pub(crate) fn new(device: D, stream: RawStream, calls: &'w LastCall) -> Self {
        Self { device, stream, calls, owned: RefCell::default() }
    }

    /// Destroys its stream when it is settled.
    pub(crate) fn owning_stream(device: D, stream: RawStream, calls: &'w LastCall) -> Self {
        let this = Self::new(device, stream, calls);
        this.owned.borrow_mut().streams.push(stream);
        this
    }

    /// Memory for `count` elements, filled with [`UNTOUCHED`], between two guards.
    #[track_caller]
    pub(crate) fn alloc(&self, dtype: DType, count: usize) -> Outcome<Memory> {
        self.calls.note("alloc");
        let base = self.device.alloc(Memory::bytes_for(dtype, count))?;
        self.owned.borrow_mut().memory.push(base);
        self.adopt(base, dtype, count)
    }

    /// Memory that holds `values`.
    #[track_caller]
    pub(crate) fn upload<T: Element>(&self, values: &[T]) -> Outcome<Memory> {
        let memory = self.alloc(T::DTYPE, values.len())?;
        self.write(memory, values)?;
        Ok(memory)
    }

    #[track_caller]
    pub(crate) fn write<T: Element>(&self, memory: Memory, values: &[T]) -> Outcome {
        self.write_on(self.stream, memory, values)
    }

    #[track_caller]
    pub(crate) fn write_on<T: Element>(
        &self,
        stream: RawStream,
        memory: Memory,
        values: &[T],
    ) -> Outcome {
        assert!(memory.dtype == T::DTYPE && values.len() <= memory.count, "the case's own bug");
        self.calls.note("copy_to");
        let staged = self.stage(bytes_of(values).into());
        let bytes = size_of_val(values);
        // SAFETY: both ranges are as long as said; the host's lives until this is settled.
        unsafe { self.device.copy_to(memory.ptr(), staged.cast(), bytes, stream) }?;
        Ok(())
    }

    /// What `memory` holds once this stream has passed everything. Fails where a guard was
    /// overwritten.
    #[track_caller]
    pub(crate) fn read<T: Element>(&self, memory: Memory) -> Outcome<Vec<T>> {
        self.start_reading(memory)?.finish()
    }

    /// Enqueues copying `memory` to the host. Its result is read after this stream has passed it.
    #[track_caller]
    pub(crate) fn start_reading(&self, memory: Memory) -> Outcome<Reading<'_, 'w, D>> {
        self.calls.note("copy_from");
        let target = self.stage(vec![0; memory.bytes].into());
        // SAFETY: both ranges are as long as said; the host's lives until this is settled.
        unsafe { self.device.copy_from(target.cast(), memory.base, memory.bytes, self.stream) }?;
        Ok(Reading { from: self, memory, target })
    }

    /// Keeps host memory for a copy, and answers where it is. The pointer is taken when the memory has
    /// come to its place: whoever moves a box claims it for himself alone.
    fn stage(&self, memory: Box<[u8]>) -> *mut u8 {
        let staging = &mut self.owned.borrow_mut().staging;
        let place = staging.len();
        staging.push(memory);
        staging[place].as_mut_ptr()
    }

    /// Fails where anything was written to `memory` since it was allocated.
    #[track_caller]
    pub(crate) fn check_untouched(&self, memory: Memory) -> Outcome {
        let raw = Memory { count: memory.count * memory.dtype.size(), dtype: DType::U8, ..memory };
        let bytes = self.read::<u8>(raw)?;
        match bytes.iter().position(|&byte| byte != UNTOUCHED) {
            None => Ok(()),
            Some(at) => Err(Failure::new(format!(
                "receive buffer was written to: byte {at} of {} is {:#04x}, want {UNTOUCHED:#04x}",
                bytes.len(),
                bytes[at]
            ))),
        }
    }

    /// Waits for this stream.
    #[track_caller]
    pub(crate) fn synchronize(&self) -> Result<(), Error> {
        self.synchronize_stream(self.stream, PATIENCE)
    }

    #[track_caller]
    pub(crate) fn synchronize_stream(
        &self,
        stream: RawStream,
        deadline: Duration,
    ) -> Result<(), Error> {
        self.calls.note("synchronize");
        // SAFETY: the stream is this case's, and lives until it is settled.
        unsafe { self.device.synchronize(stream, Some(deadline)) }
    }

    /// Another stream of this device.
    pub(crate) fn new_stream(&self) -> Outcome<RawStream> {
        let stream = self.device.stream_create()?;
        self.owned.borrow_mut().streams.push(stream);
        Ok(stream)
    }

    pub(crate) fn new_event(&self) -> Outcome<RawEvent> {
        let event = self.device.event_create()?;
        self.owned.borrow_mut().events.push(event);
        Ok(event)
    }

    pub(crate) fn record(&self, event: RawEvent, stream: RawStream) -> Outcome {
        // SAFETY: both are this case's, and live until it is settled.
        Ok(unsafe { self.device.record(event, stream) }?)
    }

    pub(crate) fn wait(&self, stream: RawStream, event: RawEvent) -> Outcome {
        // SAFETY: both are this case's, and live until it is settled.
        Ok(unsafe { self.device.wait(stream, event) }?)
    }

    pub(crate) fn query(&self, event: RawEvent) -> Outcome<bool> {
        // SAFETY: the event is this case's, and lives until it is settled.
        Ok(unsafe { self.device.query(event) }?)
    }

    /// Makes work enqueued on `after` from now on wait for what is enqueued on `before`.
    pub(crate) fn order(&self, before: RawStream, after: RawStream) -> Outcome {
        let event = self.new_event()?;
        self.record(event, before)?;
        self.wait(after, event)
    }

    /// Frees `memory` once this stream has passed what is enqueued now, as a program would.
    pub(crate) fn free(&self, memory: Memory) -> Outcome {
        self.owned.borrow_mut().memory.retain(|&base| base != memory.base);
        // SAFETY: it came from `alloc`, was taken off the list, and the case uses it no more except
        // by what this stream waits for.
        Ok(unsafe { self.device.free(memory.base, self.stream) }?)
    }

    #[track_caller]
    pub(crate) fn begin_capture(&self, stream: RawStream) -> Outcome {
        self.calls.note("begin_capture");
        // SAFETY: the stream is this case's, and lives until it is settled.
        Ok(unsafe { self.device.begin_capture(stream) }?)
    }

    #[track_caller]
    pub(crate) fn end_capture(&self, stream: RawStream) -> Outcome<Graph<'_, D>> {
        self.calls.note("end_capture");
        // SAFETY: a case ends its captures on the thread that began them, and keeps what it
        // captured until the graph, a local of it, is gone.
        let raw = unsafe { self.device.end_capture(stream) }?;
        Ok(Graph { device: &self.device, raw, calls: self.calls })
    }

    pub(crate) fn is_capturing(&self, stream: RawStream) -> Outcome<bool> {
        // SAFETY: the stream is this case's, and lives until it is settled.
        Ok(unsafe { self.device.is_capturing(stream) }?)
    }

    /// Enqueues a copy between two memories of the same length, the target's on any device.
    #[track_caller]
    pub(crate) fn copy(&self, target: Memory, source: Memory, stream: RawStream) -> Outcome {
        assert_eq!(target.len_bytes(), source.len_bytes(), "the case's own bug");
        self.calls.note("copy_between");
        let (dst, src, bytes) = (target.ptr(), source.ptr(), source.len_bytes());
        // SAFETY: both are this long, distinct, and live until their workspaces are settled.
        Ok(unsafe { self.device.copy_between(dst, src, bytes, stream) }?)
    }

    /// Enqueues filling `memory` with `value`.
    #[track_caller]
    pub(crate) fn fill(&self, memory: Memory, value: u8) -> Outcome {
        self.calls.note("memset");
        let (dst, bytes) = (memory.ptr(), memory.len_bytes());
        // SAFETY: the memory is this long, and lives until this is settled.
        Ok(unsafe { self.device.memset(dst, value, bytes, self.stream) }?)
    }

    /// Treats [`Memory::bytes_for`] bytes that somebody else allocated and frees as `alloc` does
    /// its own.
    #[track_caller]
    pub(crate) fn adopt(&self, base: *mut c_void, dtype: DType, count: usize) -> Outcome<Memory> {
        let bytes = Memory::bytes_for(dtype, count);
        // SAFETY: the memory is this long, and its owner keeps it for the length of the case.
        unsafe { self.device.memset(base, UNTOUCHED, bytes, self.stream) }?;
        Ok(Memory { base, bytes, start: GUARD, count, dtype })
    }

    /// Destroys a stream that may still have work, as a program would.
    pub(crate) fn destroy_stream(&self, stream: RawStream) -> Outcome {
        self.owned.borrow_mut().streams.retain(|&other| other != stream);
        // SAFETY: made by `new_stream`, taken off the list, and used no more.
        Ok(unsafe { self.device.stream_destroy(stream) }?)
    }

    /// Waits for every stream and frees everything. Where a stream does not pass its work, all is
    /// leaked: something may still write to it.
    #[track_caller]
    pub(crate) fn settle(&self) -> Outcome {
        let streams = self.owned.borrow().streams.clone();
        for &stream in streams.iter().chain([&self.stream]) {
            self.synchronize_stream(stream, PATIENCE)?;
        }
        let owned = self.owned.take();
        for &base in &owned.memory {
            // SAFETY: it came from `alloc`, and every stream has passed what used it.
            unsafe { self.device.free(base, self.stream) }?;
        }
        for &event in &owned.events {
            // SAFETY: made here, and used no more.
            unsafe { self.device.event_destroy(event) }?;
        }
        self.synchronize()?;
        for &stream in &owned.streams {
            // SAFETY: made here, drained, and used no more.
            unsafe { self.device.stream_destroy(stream) }?;
        }
        Ok(())
    }
}

impl<D: Device> Drop for Workspace<'_, D> {
    fn drop(&mut self) {
        // Reached with content only when the case failed: copies may still be under way.
        std::mem::forget(self.owned.take().staging);
    }
}

/// A copy to the host that is under way.
pub(crate) struct Reading<'a, 'w, D: Device> {
    from: &'a Workspace<'w, D>,
    memory: Memory,
    target: *mut u8,
}

impl<D: Device> Reading<'_, '_, D> {
    /// Waits for the stream and gives the elements.
    #[track_caller]
    pub(crate) fn finish<T: Element>(self) -> Outcome<Vec<T>> {
        let Self { from, memory, target } = self;
        assert_eq!(memory.dtype, T::DTYPE, "the case's own bug");
        from.synchronize()?;
        // SAFETY: the staging memory is this long, still owned by the workspace, and the copy into
        // it is complete.
        let bytes = unsafe { std::slice::from_raw_parts(target, memory.bytes) };
        let (front, back) = (&bytes[..GUARD], &bytes[memory.bytes - GUARD..]);
        if front.iter().chain(back).any(|&byte| byte != UNTOUCHED) {
            return Err(Failure::new("memory next to a buffer was overwritten"));
        }
        let data = &bytes[memory.start..][..memory.count * size_of::<T>()];
        let mut values = vec![T::ZERO; memory.count];
        // SAFETY: an `Element` is plain data for which every bit pattern is valid; the vector holds
        // as many bytes as `data`.
        unsafe {
            std::ptr::copy_nonoverlapping(data.as_ptr(), values.as_mut_ptr().cast(), data.len());
        }
        Ok(values)
    }
}

/// Device memory of a [`Workspace`], or a part of it.
#[derive(Clone, Copy)]
pub(crate) struct Memory {
    base: *mut c_void,
    bytes: usize,
    start: usize,
    pub(crate) count: usize,
    pub(crate) dtype: DType,
}

impl Memory {
    /// What to allocate for `count` elements and their guards.
    pub(crate) const fn bytes_for(dtype: DType, count: usize) -> usize {
        count * dtype.size() + 2 * GUARD
    }

    /// The whole allocation behind it.
    pub(crate) fn allocation(self) -> (*mut c_void, usize) {
        (self.base, self.bytes)
    }

    fn len_bytes(self) -> usize {
        self.count * self.dtype.size()
    }

    pub(crate) fn ptr(self) -> *mut c_void {
        self.base.wrapping_byte_add(self.start)
    }

    pub(crate) fn send(self) -> SendBuf {
        SendBuf::new(self.ptr(), self.count, self.dtype)
    }

    pub(crate) fn recv(self) -> RecvBuf {
        RecvBuf::new(self.ptr(), self.count, self.dtype)
    }

    pub(crate) fn part(self, start: usize, count: usize) -> Self {
        assert!(start + count <= self.count, "the case's own bug");
        Self { start: self.start + start * self.dtype.size(), count, ..self }
    }
}

/// A captured graph; destroyed when dropped, so before the communicators captured into it.
pub(crate) struct Graph<'a, D: Device> {
    device: &'a D,
    raw: RawGraph,
    calls: &'a LastCall,
}

impl<D: Device> Graph<'_, D> {
    #[track_caller]
    pub(crate) fn launch(&self, stream: RawStream) -> Outcome {
        self.calls.note("graph launch");
        // SAFETY: the graph is alive, and so is what the case captured into it.
        Ok(unsafe { self.device.launch(self.raw, stream) }?)
    }
}

impl<D: Device> Drop for Graph<'_, D> {
    fn drop(&mut self) {
        // SAFETY: the handle is used no more; runs under way still complete.
        let destroyed = unsafe { self.device.graph_destroy(self.raw) };
        if let Err(error) = destroyed {
            eprintln!("conformance: graph_destroy: {error}");
        }
    }
}

/// How long a wait for a stream may take before it counts as hung.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The byte that fills memory before a case writes to it.
pub(crate) const UNTOUCHED: u8 = 0xa5;

/// Bytes on either side of a buffer. Keeps the alignment of an allocation.
const GUARD: usize = 256;

fn bytes_of<T: Element>(values: &[T]) -> &[u8] {
    // SAFETY: an `Element` is plain data without padding, so all its bytes are initialised.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}
