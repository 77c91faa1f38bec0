//! Windows: memory of every rank that is registered as one.
//!
//! Registering is an operation like any other, that moves nothing, on a stream of its own, and the call
//! waits for it. So ranks that disagree on the size, or of whom one does something else, are told as
//! with any operation.

use std::{ffi::c_void, ops::Range, panic::Location};

use collectives_core::{
    Collectives, DType, Device, Error, Launch, RawStream, RawWindow, Result, WindowFlags, shape,
    shape::Shape,
};

use crate::{
    alive::AliveKind,
    comm::{Asked, MockComm},
    device::MockDevice,
    error::invalid,
    fork,
    op::Kind,
};

/// Memory that this rank registered together with the others.
pub(crate) struct Window {
    pub(crate) range: Range<usize>,
    /// By rank: the address where this process reaches its memory, if it does. It is exposed.
    pub(crate) peers: Box<[Option<usize>]>,
}

impl MockComm {
    /// See [`Collectives::window_register`].
    pub(crate) fn make_window(
        &self,
        ptr: *mut c_void,
        bytes: usize,
        flags: WindowFlags,
        site: &'static Location<'static>,
    ) -> Result<RawWindow> {
        fork::check()?;
        self.shared().check_active()?;
        self.rules().window_register(ptr, bytes)?;
        check_flags(flags)?;
        self.not_in_group("registering a window waits for all ranks")?;
        self.check_window(ptr, bytes)?;
        self.meet(bytes, site)?;
        let peers = self.exchange_places(ptr, bytes, flags)?;
        let id = self.next_registration();
        self.windows().insert(id, Window { range: ptr.addr()..ptr.addr() + bytes, peers });
        self.engine().ledger.add_of(AliveKind::Window, id, &self.shared().info, Some(bytes));
        Ok(RawWindow::from_bits(self.handle_bits(id)))
    }

    /// See [`Collectives::window_deregister`].
    pub(crate) fn end_window(&self, window: RawWindow) -> Result<()> {
        fork::check()?;
        let id = self.window_id(window)?;
        self.windows().remove(&id);
        self.engine().ledger.remove_of(AliveKind::Window, id, &self.shared().info);
        Ok(())
    }

    /// See [`Collectives::window_ptr`].
    pub(crate) fn start_of_window(&self, window: RawWindow) -> Result<*mut c_void> {
        fork::check()?;
        let id = self.window_id(window)?;
        let start = self.windows().get(&id).map(|window| window.range.start);
        Ok(std::ptr::with_exposed_provenance_mut(start.unwrap_or(0)))
    }

    pub(crate) fn window_id(&self, window: RawWindow) -> Result<usize> {
        let id = self.own_id(window.bits()).filter(|id| self.windows().contains_key(id));
        id.ok_or_else(|| {
            invalid(format!("window {:#x} is not one of this communicator's", window.bits()))
        })
    }

    /// Memory of this device, that starts where NCCL would let a window start. Of memory that the mock
    /// does not know nobody knows where its allocation starts.
    fn check_window(&self, ptr: *mut c_void, bytes: usize) -> Result<()> {
        let device = Some(self.shared().info.device);
        self.engine().check_memory("the window", device, ptr.cast_const().cast(), bytes)?;
        let Some((_, allocation)) = self.engine().memory.find(ptr.addr()) else { return Ok(()) };
        let offset = ptr.addr() - allocation.start;
        if offset.is_multiple_of(shape::WINDOW_ALIGNMENT) {
            return Ok(());
        }
        Err(invalid(format!(
            "the window starts {offset} bytes into its allocation, want a multiple of {}",
            shape::WINDOW_ALIGNMENT
        )))
    }

    /// Waits until all ranks have come, with as many bytes.
    fn meet(&self, bytes: usize, site: &'static Location<'static>) -> Result<()> {
        let lane = OwnStream::new(self)?;
        let shape = Shape { count: bytes, dtype: DType::U8 };
        let asked = Asked::new(Kind::WindowRegister, shape, None, None);
        self.issue(asked, Launch::at(lane.stream, site))?;
        lane.wait()?;
        // Who was aborted is not told by its stream.
        self.shared().check()
    }
}

/// A stream for an operation that its call waits for.
struct OwnStream {
    device: MockDevice,
    stream: RawStream,
}

impl OwnStream {
    fn new(comm: &MockComm) -> Result<Self> {
        let (engine, ordinal) = (comm.engine(), comm.info().device);
        let device = MockDevice::new(engine.clone(), ordinal);
        Ok(Self { stream: engine.make_stream(ordinal), device })
    }

    fn wait(&self) -> Result<()> {
        // SAFETY: the stream is alive until this is dropped.
        unsafe { self.device.synchronize(self.stream, None) }
            .map_err(|error: Error| error.with_operation(Kind::WindowRegister.name()))
    }
}

impl Drop for OwnStream {
    fn drop(&mut self) {
        // SAFETY: the stream is this value's alone.
        if let Err(error) = unsafe { self.device.stream_destroy(self.stream) } {
            tracing::warn!(%error, "a stream of the mock's own could not be destroyed");
        }
    }
}

/// Refuses flags that no release of NCCL has.
fn check_flags(flags: WindowFlags) -> Result<()> {
    if KNOWN.contains(flags) {
        return Ok(());
    }
    Err(invalid(format!("unknown flags of a window: {:#x}", flags.bits() & !KNOWN.bits())))
}

/// Those of NCCL 2.32.
const KNOWN: WindowFlags = WindowFlags::from_bits(0b1111);
