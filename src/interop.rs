//! cudarc's streams and slices in the safe layer, and the other way round.
//!
//! ```no_run
//! use collectives::{Buffer, Communicator, JoinAllConfig, ReduceOp, Stream, backend_named};
//! use cudarc::driver::CudaContext;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let context = CudaContext::new(0)?;
//! let theirs = context.new_stream()?;
//! let slice = theirs.clone_htod(&[1.0_f32, 2.0])?;
//!
//! let backend = backend_named("nccl")?;
//! let comm = Communicator::join_all(&backend, JoinAllConfig::new([0]))?.remove(0);
//! let stream = Stream::from_cudarc(&theirs)?;
//! let mut buffer = Buffer::from_cudarc(slice)?;
//! comm.on(&stream).all_reduce_in_place(&mut buffer, ReduceOp::Sum)?;
//! let slice = buffer.into_cudarc()?;
//! assert_eq!(theirs.clone_dtoh(&slice)?, [1.0, 2.0]);
//! # Ok(()) }
//! ```
//!
//! # What keeps it sound
//! * **Contexts.** Only streams and memory of a device's *primary* context are taken: communicators are
//!   made in it, and `CudaContext::new` retains it. So a handle of one side is good on the other.
//! * **Lifetimes.** A [`Stream`] over a `CudaStream` holds its `Arc`. A [`Buffer`] over a `CudaSlice` owns
//!   the slice, and graphs that capture the buffer own it with it. So cudarc frees nothing that is in use
//!   here. A stream of ours for cudarc is `unsafe`: slices made on it keep it, and nothing keeps us.
//! * **Order.** cudarc records an event behind each read and each write of a slice, and has other streams
//!   wait for them. On its way in, the slice's own stream waits for both, and the first use here follows
//!   that stream. On its way out, or when it is dropped, the slice's stream follows the last use here, and
//!   the slice's events are recorded anew. That is what cudarc waits for, on whichever stream. Where its
//!   tracking is off, it is off by `disable_event_tracking`, which is `unsafe`; before a second stream is
//!   made there are no events, and making one waits for the device.
//! * **Captures.** Safe code may capture one of cudarc's streams. The safe layer looks, and refuses to
//!   enqueue on it. Where another thread begins right between, what is captured does not own its memory:
//!   as any graph of cudarc's.

use std::{fmt, ptr, sync::Arc};

use collectives_core::{Backend, Element, Error, ErrorKind, RawStream, Result};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, CudaView, CudaViewMut, DevicePtrMut};

use crate::{
    AnyBackend, AnyDevice, Buffer, Communicator, Stream,
    buffer::Allocation,
    nccl::{CudaDevice, interop::CudarcHandle},
    place::Place,
};

impl Stream {
    /// Uses a stream of cudarc's, which it keeps alive.
    ///
    /// # Errors
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) for a stream of a context that is not the
    /// primary one of its device; what the driver reports.
    pub fn from_cudarc(stream: &Arc<CudaStream>) -> Result<Self> {
        let device = AnyDevice::Cuda(CudaDevice::of_cudarc(stream.context())?);
        let raw = RawStream::from_cudarc(stream.cu_stream());
        Ok(Self::kept_by(device, raw, stream.clone()))
    }

    /// Lends this stream to cudarc.
    ///
    /// # Safety
    /// The stream, or a clone of it, outlives the result, its clones, and all slices that were made on
    /// them.
    ///
    /// # Errors
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) where `context` is not the primary one of this
    /// stream's device.
    pub unsafe fn to_cudarc(&self, context: &Arc<CudaContext>) -> Result<Arc<CudaStream>> {
        same_device(self.place(), context)?;
        // SAFETY: a stream of that context; the caller's promise.
        Ok(unsafe { context.wrap_borrowed_stream(self.as_raw().to_cudarc()) })
    }
}

impl<T: Element> Buffer<T> {
    /// Takes a slice of cudarc's over, which is freed with the buffer, or given back by
    /// [`into_cudarc`](Self::into_cudarc).
    ///
    /// # Errors
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) for a slice of a context that is not the primary
    /// one of its device; what the driver reports. The slice is freed then.
    pub fn from_cudarc(mut slice: CudaSlice<T>) -> Result<Self> {
        let stream = Stream::from_cudarc(slice.stream())?;
        let (address, len) = (settle(&mut slice), slice.len());
        let memory = Allocation::of_cudarc(stream, address, slice.num_bytes(), Box::new(slice));
        Ok(Self::over(memory, len))
    }

    /// Gives the slice back that the buffer was made [from](Self::from_cudarc).
    ///
    /// # Errors
    /// [`InvalidUsage`](ErrorKind::InvalidUsage) for another buffer, and for one that a graph holds. The
    /// memory is freed then, as by dropping the buffer.
    pub fn into_cudarc(mut self) -> Result<CudaSlice<T>> {
        let refuse = |text| {
            let error = Error::new(ErrorKind::InvalidUsage, text);
            Err(error.with_operation("into_cudarc"))
        };
        let Some(memory) = Arc::get_mut(self.memory_mut()) else {
            return refuse("a graph holds the buffer");
        };
        let Some(slice) = memory.take_cudarc()? else {
            return refuse("the buffer was not made from a slice of cudarc's");
        };
        let Ok(mut slice) = slice.downcast::<CudaSlice<T>>() else {
            return refuse("the buffer was made from a slice of another type");
        };
        settle(&mut slice);
        Ok(*slice)
    }

    /// Lends the buffer to cudarc, for kernels and products on `stream`. Until the result is dropped the
    /// buffer is used by nobody else.
    ///
    /// # Errors
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) where `stream` is not of the primary context of
    /// the buffer's device; [`InvalidUsage`](ErrorKind::InvalidUsage) for a buffer that a graph holds,
    /// which may be launched meanwhile: [`Scope::launch_with`](crate::Scope::launch_with) puts
    /// work into the graph; what the driver reports.
    pub fn lend_to_cudarc(&mut self, stream: &Arc<CudaStream>) -> Result<Lent<'_, T>> {
        same_device(self.memory().place(), stream.context())?;
        let own = Stream::from_cudarc(stream)?;
        // What cudarc makes below it makes without an answer; so it is tried here.
        stream.context().new_event(None).map_err(driver_error)?;
        if let Some(memory) = Arc::get_mut(self.memory_mut()) {
            memory.unshare();
        }
        let (address, len) = (self.as_ptr().expose_provenance(), self.len());
        let memory = self.memory();
        memory.lend(&own)?;
        // SAFETY: the memory is `len` elements, initialised, of that context, and lent; the slice is
        // leaked before it could free it.
        let mut slice = unsafe { stream.upgrade_device_ptr::<T>(address as u64, len) };
        settle(&mut slice);
        Ok(Lent { slice: Some(slice), memory, stream: own })
    }
}

impl Communicator {
    /// Takes a communicator over that other code made, as an `ncclComm_t`. It is destroyed with the
    /// result. The other way round, [`as_raw`](collectives_core::Collectives::as_raw) of
    /// [`as_comm`](Self::as_comm) lends it out.
    ///
    /// # Safety
    /// As [`Backend::comm_from_raw`].
    ///
    /// # Errors
    /// As [`Backend::comm_from_raw`].
    #[doc(alias = "ncclComm_t")]
    pub unsafe fn from_raw(backend: &AnyBackend, raw: *mut std::ffi::c_void) -> Result<Self> {
        // SAFETY: the caller's promise, handed on as it is.
        let comm = unsafe { backend.comm_from_raw(raw) }?;
        let device = backend.device(collectives_core::Collectives::info(&comm).device)?;
        Self::from_comm(comm, device)
    }
}

/// A [`Buffer`] that is [lent](Buffer::lend_to_cudarc) to cudarc.
///
/// What cudarc enqueues with its views, on any stream, comes behind what was enqueued here, and before
/// what follows once this is dropped.
pub struct Lent<'a, T: Element> {
    /// `None` only while it is dropped.
    slice: Option<CudaSlice<T>>,
    memory: &'a Arc<Allocation>,
    stream: Stream,
}

impl<T: Element> Lent<'_, T> {
    /// The elements, to be read.
    pub fn view(&self) -> CudaView<'_, T> {
        self.slice().as_view()
    }

    /// The elements, to be written.
    pub fn view_mut(&mut self) -> CudaViewMut<'_, T> {
        match &mut self.slice {
            Some(slice) => slice.as_view_mut(),
            None => unreachable!("it is there until this is dropped"),
        }
    }

    fn slice(&self) -> &CudaSlice<T> {
        match &self.slice {
            Some(slice) => slice,
            None => unreachable!("it is there until this is dropped"),
        }
    }
}

impl<T: Element> fmt::Debug for Lent<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lent({} × {})", self.slice().len(), T::DTYPE)
    }
}

impl<T: Element> Drop for Lent<'_, T> {
    fn drop(&mut self) {
        if let Some(mut slice) = self.slice.take() {
            settle(&mut slice);
            // Not freed: the memory is the buffer's.
            let _address = slice.leak();
        }
        self.memory.take_back(&self.stream);
    }
}

/// Orders the slice's own stream behind all that cudarc has done with it, and has cudarc wait for what
/// is on that stream now. Answers where the memory is.
fn settle<T>(slice: &mut CudaSlice<T>) -> *mut std::ffi::c_void {
    let stream = Arc::clone(slice.stream());
    let (address, recorded) = slice.device_ptr_mut(&stream);
    drop(recorded);
    ptr::with_exposed_provenance_mut(address as usize)
}

fn same_device(place: Place, context: &CudaContext) -> Result<()> {
    let theirs = Place::of(&AnyDevice::Cuda(CudaDevice::of_cudarc(context)?));
    if theirs == place {
        return Ok(());
    }
    let text = format!("cudarc's context is of {theirs}, this is on {place}");
    Err(Error::new(ErrorKind::InvalidArgument, text))
}

fn driver_error(error: cudarc::driver::DriverError) -> Error {
    Error::new(ErrorKind::Device, error.to_string()).with_backend("CUDA")
}
