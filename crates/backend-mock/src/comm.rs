//! One rank's end of a communicator.

use std::{
    cell::{Cell, OnceCell, RefCell, RefMut},
    collections::BTreeMap,
    ffi::c_void,
    fmt,
    ops::Range,
    panic::Location,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use collectives_core::{
    AbortControl, AbortHandle, Capabilities, Collectives, CommInfo, DType, Error, ErrorKind,
    GroupEnd, GrowConfig, Launch, MemoryUse, PreMulSum, Rank, RawRegistration, RawWindow, RecvBuf,
    ReduceOp, Result, Scalar, SendBuf, ShrinkConfig, SignalWait, Split, SplitConfig, UniqueId,
    WindowFlags,
    shape::{Rules, Shape},
};

use crate::{
    alive::AliveKind,
    comm_state::EndShared,
    engine::Engine,
    error::{invalid, misuse},
    fork, group,
    op::{Factor, Kind, NOBODY, Op, Reduction},
    signal::Signals,
    stream::{Entry, StreamShared},
    threads::{self, Thread, What},
    window::Window,
};

/// One rank's end of a communicator of the mock. Made by [`Mock`](crate::Mock).
///
/// Dropping it waits at most a second for its operations, not at all where the thread panics, and no
/// longer where nobody else can bring them about; what
/// is pending then stays valid, and fails with
/// [`Remote`](collectives_core::ErrorKind::Remote) on ranks that wait for more than this rank
/// had issued.
pub struct MockComm {
    engine: Arc<Engine>,
    shared: Arc<EndShared>,
    /// The stream that was used last: programs rarely change it.
    stream: RefCell<Arc<StreamShared>>,
    /// Memory that was checked last.
    known: [Cell<Known>; 4],
    next_known: Cell<usize>,
    /// Scalars of the live PreMulSum operators.
    scalars: RefCell<BTreeMap<u32, Factor>>,
    next_scalar: Cell<u32>,
    /// Live registrations.
    registrations: RefCell<BTreeMap<usize, Range<usize>>>,
    /// Live windows.
    windows: RefCell<BTreeMap<usize, Window>>,
    /// What carries signals, from the first window on.
    signals: OnceCell<Box<Signals>>,
    next_registration: Cell<usize>,
    /// Whether it was finalized or aborted.
    ended: Cell<bool>,
    /// The number of the thread that called last.
    caller: Cell<u64>,
}

/// Memory of this device, or of nobody, as of an epoch of the memory map.
#[derive(Clone, Copy)]
struct Known {
    epoch: u64,
    start: usize,
    end: usize,
}

impl MockComm {
    /// Takes a rank's end of a communicator over; `site` is where the program made it.
    pub(crate) fn new(
        engine: Arc<Engine>,
        shared: Arc<EndShared>,
        site: &'static Location<'static>,
    ) -> Result<Self> {
        let stream = engine.stream(collectives_core::RawStream::DEFAULT, shared.info.device)?;
        engine.ledger.add_comm(&shared.info, site);
        engine.threads.note(Some(shared.info.device));
        shared.set_caller();
        let nothing = || Cell::new(Known { epoch: 0, start: 1, end: 0 });
        Ok(Self {
            engine,
            shared,
            stream: RefCell::new(stream),
            known: std::array::from_fn(|_| nothing()),
            next_known: Cell::new(0),
            scalars: RefCell::default(),
            next_scalar: Cell::new(0),
            registrations: RefCell::default(),
            windows: RefCell::default(),
            signals: OnceCell::new(),
            next_registration: Cell::new(1),
            ended: Cell::new(false),
            caller: Cell::new(threads::own_number()),
        })
    }

    /// The machine that its device belongs to: see [`MockDevice::machine`](crate::MockDevice::machine).
    pub fn machine(&self) -> u64 {
        self.engine.nonce
    }

    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    pub(crate) fn shared(&self) -> &Arc<EndShared> {
        &self.shared
    }

    pub(crate) fn not_in_group(&self, why: &str) -> Result<()> {
        match group::is_open(&self.engine) {
            true => Err(misuse(format!("{why}, so not inside a group"))),
            false => Ok(()),
        }
    }

    pub(crate) fn signals(&self) -> &OnceCell<Box<Signals>> {
        &self.signals
    }

    pub(crate) fn windows(&self) -> RefMut<'_, BTreeMap<usize, Window>> {
        self.windows.borrow_mut()
    }

    /// A number that no registration or window of this end had.
    pub(crate) fn next_registration(&self) -> usize {
        self.next_registration.replace(self.next_registration.get() + 1)
    }

    /// What users see of such a number: the end's identity above it, so that one of another
    /// communicator is seen.
    pub(crate) fn handle_bits(&self, id: usize) -> usize {
        (self.shared.info.id.get() as usize) << 32 | id
    }

    /// The number, if it is one of this end.
    pub(crate) fn own_id(&self, bits: usize) -> Option<usize> {
        let ours = bits >> 32 == self.shared.info.id.get() as usize & 0xffff_ffff;
        ours.then_some(bits & 0xffff_ffff)
    }

    /// Notes a change of the thread that calls.
    #[inline]
    fn note_caller(&self) {
        if self.caller.get() != threads::own_number() {
            self.change_caller();
        }
    }

    #[cold]
    fn change_caller(&self) {
        self.engine.threads.note(Some(self.shared.info.device));
        self.shared.set_caller();
        self.caller.set(threads::own_number());
    }

    #[inline]
    pub(crate) fn rules(&self) -> Rules<'_> {
        Rules::new(&self.shared.info, &Capabilities::FULL)
    }

    /// Runs a call; a refusal drops the group around it.
    #[inline]
    fn call(&self, operation: &'static str, body: impl FnOnce() -> Result<()>) -> Result<()> {
        self.note_caller();
        let outcome = fork::check().and_then(|()| self.shared.check_active()).and_then(|()| body());
        outcome.map_err(|error| self.refused(operation, error))
    }

    #[cold]
    fn refused(&self, operation: &'static str, error: Error) -> Error {
        let error = error.with_comm(&self.shared.info).with_operation(operation);
        if !fork::in_forked_child() {
            group::refuse(&self.engine, Some(&self.shared.info), &error);
        }
        error
    }

    /// Enqueues an operation that has been checked, or adds it to the open group.
    #[inline]
    pub(crate) fn issue(&self, asked: Asked, launch: Launch<'_>) -> Result<()> {
        let Asked { kind, shape, other, send, recv, reduction, factor } = asked;
        self.rules().call_config(kind.name(), launch)?;
        let grouped = group::is_open(&self.engine);
        if grouped && !kind.is_point_to_point() {
            let here = launch.config().and_then(|config| config.cga_cluster_size);
            let first = group::cluster_size(&self.engine, here);
            self.rules().cluster_size(kind.name(), first, here)?;
        }
        self.shared.note_site(launch.site());
        if shape.count == 0 && !kind.is_point_to_point() {
            // NCCL: succeeds after the checks, without synchronising.
            return self.with_stream(launch, |_| Ok(()));
        }
        let size = if kind.is_point_to_point() { 1 } else { self.shared.info.size };
        let width = shape.dtype.size();
        if let Some(send) = send {
            self.check_memory("send", send.ptr.cast(), send.count * width)?;
        }
        if let Some(recv) = recv {
            self.check_memory("recv", recv.ptr.cast(), recv.count * width)?;
        }
        let op = Op {
            comm: self.shared.comm,
            rank: self.shared.info.rank.get(),
            other,
            kind,
            dtype: shape.dtype,
            reduction,
            count: shape.count,
            send: send.map_or(std::ptr::null(), |send| send.ptr.cast()),
            recv: recv.map_or(std::ptr::null_mut(), |recv| recv.ptr.cast()),
            factor,
            sequence: 0,
            site: launch.site().into(),
        };
        if grouped {
            return self.with_stream(launch, |stream| {
                let (stream, end) = (Arc::clone(stream), Arc::clone(&self.shared));
                group::add(&self.engine, group::Member { op, stream, end });
                Ok(())
            });
        }
        if kind.is_point_to_point() && op.other == op.rank {
            return Err(misuse("a rank can send to itself only inside a group that also receives")
                .with_hint("put both calls into one group"));
        }
        let eager = shape.count * width * size > LAZY_BYTES;
        self.with_stream(launch, |stream| {
            if stream.is_open() {
                let sequence = self.shared.number(kind, other);
                let urgent = || {
                    let met = !kind.is_point_to_point();
                    eager || met && self.engine.is_wanted(&self.shared, sequence)
                };
                self.engine.enqueue(stream, Entry::Op(Op { sequence, ..op }), urgent);
                return Ok(());
            }
            // Being captured or watched, which is rare enough for the long way.
            let (stream, end) = (Arc::clone(stream), Arc::clone(&self.shared));
            self.engine.launch_group(vec![group::Member { op, stream, end }])
        })
    }

    #[inline]
    fn with_stream(
        &self,
        launch: Launch<'_>,
        then: impl FnOnce(&Arc<StreamShared>) -> Result<()>,
    ) -> Result<()> {
        let mut cached = self.stream.borrow_mut();
        if cached.raw != launch.stream() || cached.is_destroyed() {
            *cached = self.engine.stream(launch.stream(), self.shared.info.device)?;
        }
        then(&cached)
    }

    #[inline]
    fn check_memory(&self, name: &str, ptr: *const u8, bytes: usize) -> Result<()> {
        let (start, epoch) = (ptr.addr(), self.engine.memory.epoch());
        let fits = |known: &Cell<Known>| {
            let known = known.get();
            known.epoch == epoch && known.start <= start && start + bytes <= known.end
        };
        if bytes == 0 || self.known.iter().any(fits) {
            return Ok(());
        }
        self.look_up_memory(name, ptr, bytes, epoch)
    }

    #[cold]
    fn look_up_memory(&self, name: &str, ptr: *const u8, bytes: usize, epoch: u64) -> Result<()> {
        let device = Some(self.shared.info.device);
        let Range { start, end } = self.engine.check_memory(name, device, ptr, bytes)?;
        let next = self.next_known.get();
        self.known[next].set(Known { epoch, start, end });
        self.next_known.set((next + 1) % self.known.len());
        Ok(())
    }

    /// The scalar of an operator.
    #[inline]
    fn factor(&self, op: ReduceOp) -> Result<Factor> {
        let ReduceOp::PreMulSum(op) = op else { return Ok(Factor::None) };
        let factor = self.scalars.borrow().get(&op.id()).copied();
        factor.ok_or_else(|| invalid("the reduce op was destroyed"))
    }

    /// Waits until nothing of this rank is outstanding. The answer is whether that came.
    fn flush(&self, until: Option<Instant>, is_drop: bool) -> bool {
        self.note_caller();
        let (key, rank) = (self.shared.comm, self.shared.info.rank.index());
        let drained = self.engine.wait(
            until,
            || What::Flush { comm: key, rank: rank as u32, is_drop },
            || None,
            |state, parker| {
                if is_drop && Thread::current().is_released() {
                    return Ok(false);
                }
                let Some(comm) = state.comms.get_mut(key) else { return Ok(true) };
                let end = &mut comm.ends[rank];
                if end.outstanding == 0 {
                    state.saw_rank(key, self.shared.info.rank);
                    return Ok(true);
                }
                if !end.waiters.iter().any(|other| Arc::ptr_eq(other, parker)) {
                    end.waiters.push(Arc::clone(parker));
                }
                state.want_rank(key, self.shared.info.rank);
                Err(None)
            },
        );
        drained == Some(true)
    }

    fn depart(&self) {
        self.ended.set(true);
        self.engine.ledger.remove_comm(&self.shared.info);
        self.engine.with(|state| state.depart(self.shared.comm, self.shared.info.rank));
    }

    fn named(&self, operation: &'static str) -> impl Fn(Error) -> Error {
        move |error| error.with_comm(&self.shared.info).with_operation(operation)
    }
}

/// One call, checked.
pub(crate) struct Asked {
    kind: Kind,
    shape: Shape,
    other: u32,
    send: Option<SendBuf>,
    recv: Option<RecvBuf>,
    reduction: Reduction,
    factor: Factor,
}

impl Asked {
    #[inline]
    pub(crate) fn new(
        kind: Kind,
        shape: Shape,
        send: Option<SendBuf>,
        recv: Option<RecvBuf>,
    ) -> Self {
        let (reduction, factor) = (Reduction::None, Factor::None);
        Self { kind, shape, other: NOBODY, send, recv, reduction, factor }
    }

    #[inline]
    fn with_other(self, other: Rank) -> Self {
        Self { other: other.get(), ..self }
    }

    #[inline]
    fn with_op(self, op: ReduceOp, factor: Factor) -> Self {
        Self { reduction: op.into(), factor, ..self }
    }
}

impl Collectives for MockComm {
    fn info(&self) -> &CommInfo {
        &self.shared.info
    }

    fn capabilities(&self) -> &Capabilities {
        &Capabilities::FULL
    }

    #[inline]
    unsafe fn all_reduce(
        &self,
        send: SendBuf,
        recv: RecvBuf,
        op: ReduceOp,
        launch: Launch<'_>,
    ) -> Result<()> {
        self.call("all_reduce", || {
            let shape = self.rules().all_reduce(send, recv, op)?;
            let factor = self.factor(op)?;
            let asked = Asked::new(Kind::AllReduce, shape, Some(send), Some(recv));
            self.issue(asked.with_op(op, factor), launch)
        })
    }

    unsafe fn reduce(
        &self,
        send: SendBuf,
        recv: Option<RecvBuf>,
        op: ReduceOp,
        root: Rank,
        launch: Launch<'_>,
    ) -> Result<()> {
        self.call("reduce", || {
            let shape = self.rules().reduce(send, recv, op, root)?;
            let factor = self.factor(op)?;
            let recv = recv.filter(|_| root == self.shared.info.rank);
            let asked = Asked::new(Kind::Reduce, shape, Some(send), recv);
            self.issue(asked.with_other(root).with_op(op, factor), launch)
        })
    }

    unsafe fn broadcast(
        &self,
        send: Option<SendBuf>,
        recv: RecvBuf,
        root: Rank,
        launch: Launch<'_>,
    ) -> Result<()> {
        self.call("broadcast", || {
            let shape = self.rules().broadcast(send, recv, root)?;
            let send = send.filter(|_| root == self.shared.info.rank);
            let asked = Asked::new(Kind::Broadcast, shape, send, Some(recv));
            self.issue(asked.with_other(root), launch)
        })
    }

    unsafe fn all_gather(&self, send: SendBuf, recv: RecvBuf, launch: Launch<'_>) -> Result<()> {
        self.call("all_gather", || {
            let shape = self.rules().all_gather(send, recv)?;
            self.issue(Asked::new(Kind::AllGather, shape, Some(send), Some(recv)), launch)
        })
    }

    unsafe fn reduce_scatter(
        &self,
        send: SendBuf,
        recv: RecvBuf,
        op: ReduceOp,
        launch: Launch<'_>,
    ) -> Result<()> {
        self.call("reduce_scatter", || {
            let shape = self.rules().reduce_scatter(send, recv, op)?;
            let factor = self.factor(op)?;
            let asked = Asked::new(Kind::ReduceScatter, shape, Some(send), Some(recv));
            self.issue(asked.with_op(op, factor), launch)
        })
    }

    unsafe fn all_to_all(&self, send: SendBuf, recv: RecvBuf, launch: Launch<'_>) -> Result<()> {
        self.call("all_to_all", || {
            let shape = self.rules().all_to_all(send, recv)?;
            self.issue(Asked::new(Kind::AllToAll, shape, Some(send), Some(recv)), launch)
        })
    }

    unsafe fn gather(
        &self,
        send: SendBuf,
        recv: Option<RecvBuf>,
        root: Rank,
        launch: Launch<'_>,
    ) -> Result<()> {
        self.call("gather", || {
            let shape = self.rules().gather(send, recv, root)?;
            let recv = recv.filter(|_| root == self.shared.info.rank);
            let asked = Asked::new(Kind::Gather, shape, Some(send), recv);
            self.issue(asked.with_other(root), launch)
        })
    }

    unsafe fn scatter(
        &self,
        send: Option<SendBuf>,
        recv: RecvBuf,
        root: Rank,
        launch: Launch<'_>,
    ) -> Result<()> {
        self.call("scatter", || {
            let shape = self.rules().scatter(send, recv, root)?;
            let send = send.filter(|_| root == self.shared.info.rank);
            let asked = Asked::new(Kind::Scatter, shape, send, Some(recv));
            self.issue(asked.with_other(root), launch)
        })
    }

    unsafe fn send(&self, buf: SendBuf, peer: Rank, launch: Launch<'_>) -> Result<()> {
        self.call("send", || {
            let shape = self.rules().send(buf, peer)?;
            self.issue(Asked::new(Kind::Send, shape, Some(buf), None).with_other(peer), launch)
        })
    }

    unsafe fn recv(&self, buf: RecvBuf, peer: Rank, launch: Launch<'_>) -> Result<()> {
        self.call("recv", || {
            let shape = self.rules().recv(buf, peer)?;
            self.issue(Asked::new(Kind::Recv, shape, None, Some(buf)).with_other(peer), launch)
        })
    }

    fn group_start(&self) -> Result<()> {
        fork::check()?;
        group::start(&self.engine);
        Ok(())
    }

    fn group_end(&self) -> Result<()> {
        fork::check()?;
        group::end(&self.engine, GroupEnd::Launch)
    }

    fn group_simulate(&self) -> Result<Option<Duration>> {
        fork::check()?;
        group::simulate(&self.engine).map(|()| None)
    }

    fn in_group(&self) -> bool {
        group::is_open(&self.engine)
    }

    unsafe fn create_pre_mul_sum(&self, scalar: Scalar) -> Result<PreMulSum> {
        let named = self.named("create_pre_mul_sum");
        fork::check()?;
        self.shared.check().map_err(&named)?;
        let (dtype, factor) = match scalar {
            Scalar::Host { dtype, bytes } => (dtype, Factor::Value(bytes)),
            Scalar::Device { dtype, ptr } => {
                self.check_scalar(dtype, ptr).map_err(&named)?;
                (dtype, Factor::At(self.engine.memory.inner(ptr.cast_mut().cast())))
            }
        };
        let id = self.next_scalar.replace(self.next_scalar.get() + 1);
        self.scalars.borrow_mut().insert(id, factor);
        self.engine.ledger.add_of(AliveKind::ReduceOp, id as usize, &self.shared.info, None);
        Ok(PreMulSum::from_parts(self.shared.info.id, id, dtype))
    }

    fn destroy_pre_mul_sum(&self, op: PreMulSum) -> Result<()> {
        let named = self.named("destroy_pre_mul_sum");
        if op.comm() != self.shared.info.id {
            return Err(named(invalid("the reduce op belongs to another communicator")));
        }
        match self.scalars.borrow_mut().remove(&op.id()) {
            Some(_) => {
                let (ledger, id) = (&self.engine.ledger, op.id() as usize);
                ledger.remove_of(AliveKind::ReduceOp, id, &self.shared.info);
                Ok(())
            }
            None => Err(named(invalid("the reduce op was destroyed already"))),
        }
    }

    fn mem_alloc(&self, bytes: usize) -> Result<*mut c_void> {
        let named = self.named("mem_alloc");
        fork::check()?;
        let device = self.shared.info.device;
        self.engine.alloc(device, bytes).map_err(named)
    }

    unsafe fn mem_free(&self, ptr: *mut c_void) -> Result<()> {
        let named = self.named("mem_free");
        fork::check()?;
        if self.engine.memory.owner(ptr.addr()) != Some(self.shared.info.device) {
            return Err(named(invalid(format!(
                "{ptr:p} is not the start of an allocation of device {}",
                self.shared.info.device
            ))));
        }
        let registrations = self.registrations.borrow();
        let windows = self.windows();
        let mut ranges = registrations.values().chain(windows.values().map(|window| &window.range));
        if ranges.any(|range| range.contains(&ptr.addr())) {
            return Err(named(
                misuse(format!("the memory at {ptr:p} is still registered"))
                    .with_hint("deregister it first"),
            ));
        }
        self.engine.free(ptr.addr());
        Ok(())
    }

    unsafe fn register(&self, ptr: *mut c_void, bytes: usize) -> Result<RawRegistration> {
        let named = self.named("register");
        fork::check()?;
        self.shared.check().map_err(&named)?;
        if ptr.is_null() || bytes == 0 {
            return Err(named(invalid(format!("nothing to register: {bytes} bytes at {ptr:p}"))));
        }
        self.check_memory("the memory", ptr.cast_const().cast(), bytes).map_err(&named)?;
        let id = self.next_registration();
        self.registrations.borrow_mut().insert(id, ptr.addr()..ptr.addr() + bytes);
        self.engine.ledger.add_of(AliveKind::Registration, id, &self.shared.info, Some(bytes));
        Ok(RawRegistration::from_bits(self.handle_bits(id)))
    }

    unsafe fn deregister(&self, registration: RawRegistration) -> Result<()> {
        let named = self.named("deregister");
        let id = self.own_id(registration.bits());
        let known = |id: &usize| self.registrations.borrow_mut().remove(id).is_some();
        match id.filter(known) {
            Some(id) => {
                self.engine.ledger.remove_of(AliveKind::Registration, id, &self.shared.info);
                Ok(())
            }
            None => Err(named(invalid(format!(
                "registration {:#x} is not one of this communicator's",
                registration.bits()
            )))),
        }
    }

    unsafe fn window_register(
        &self,
        ptr: *mut c_void,
        bytes: usize,
        flags: WindowFlags,
    ) -> Result<RawWindow> {
        self.note_caller();
        let made = self.make_window(ptr, bytes, flags, Location::caller());
        made.map_err(|error| self.refused("window_register", error))
    }

    unsafe fn window_deregister(&self, window: RawWindow) -> Result<()> {
        self.end_window(window).map_err(self.named("window_deregister"))
    }

    unsafe fn window_ptr(&self, window: RawWindow) -> Result<*mut c_void> {
        self.start_of_window(window).map_err(self.named("window_ptr"))
    }

    unsafe fn put_signal(
        &self,
        send: SendBuf,
        peer: Rank,
        window: RawWindow,
        offset: usize,
        launch: Launch<'_>,
    ) -> Result<()> {
        self.call("put_signal", || self.put(send, peer, (window, offset), launch))
    }

    unsafe fn signal(&self, peer: Rank, launch: Launch<'_>) -> Result<()> {
        self.call("signal", || self.signal_peer(peer, launch))
    }

    unsafe fn wait_signal(&self, waits: &[SignalWait], launch: Launch<'_>) -> Result<()> {
        self.call("wait_signal", || self.wait_for_signals(waits, launch))
    }

    fn split_dyn(&self, config: SplitConfig) -> Result<Option<Box<dyn Collectives>>> {
        Ok(self.split(config)?.map(|comm| Box::new(comm) as Box<dyn Collectives>))
    }

    fn shrink_dyn(&self, config: ShrinkConfig) -> Result<Box<dyn Collectives>> {
        Ok(Box::new(self.shrink(config)?))
    }

    fn grow_dyn(&self, config: GrowConfig) -> Result<Box<dyn Collectives>> {
        Ok(Box::new(self.grow(config)?))
    }

    fn grow_id(&self) -> Result<UniqueId> {
        fork::check()?;
        self.note_caller();
        self.make_grow_id().map_err(self.named("grow_id"))
    }

    fn revoke(&self) -> Result<()> {
        fork::check()?;
        self.note_caller();
        self.revoke_all().map_err(|error| self.refused("revoke", error))
    }

    /// Gives nothing back, as it uses none, but refuses operations all the same.
    fn suspend(&self) -> Result<()> {
        let named = self.named("suspend");
        fork::check()?;
        self.note_caller();
        self.shared.check_active().map_err(&named)?;
        self.not_in_group("suspend is no operation").map_err(&named)?;
        let rank = self.shared.info.rank.index();
        let outstanding = self.engine.with(|state| {
            state.comms.get(self.shared.comm).map_or(0, |comm| comm.ends[rank].outstanding)
        });
        if outstanding > 0 {
            let error = misuse(format!("{outstanding} operations are in flight"));
            return Err(named(error.with_hint("wait for their streams first")));
        }
        self.shared.set_suspended(true);
        Ok(())
    }

    fn resume(&self) -> Result<()> {
        let named = self.named("resume");
        fork::check()?;
        self.note_caller();
        self.shared.check().map_err(&named)?;
        self.not_in_group("resume is no operation").map_err(&named)?;
        if !self.shared.is_suspended() {
            return Err(named(misuse("the communicator is not suspended")));
        }
        self.shared.set_suspended(false);
        Ok(())
    }

    fn memory_use(&self) -> Result<MemoryUse> {
        fork::check()?;
        self.shared.check().map_err(self.named("memory_use"))?;
        let mut memory = MemoryUse::default();
        memory.is_suspended = self.shared.is_suspended();
        Ok(memory)
    }

    fn poll_error(&self) -> Result<()> {
        fork::check()?;
        self.note_caller();
        // What is enqueued may be what fails.
        self.engine.press();
        if self.engine.adversarial {
            self.engine.with(|state| state.poll(&self.shared));
        }
        self.shared.check()
    }

    fn abort_handle(&self) -> AbortHandle {
        AbortHandle::new(Arc::clone(&self.shared) as Arc<dyn AbortControl>)
    }

    fn as_raw(&self) -> *mut c_void {
        std::ptr::null_mut()
    }

    fn finalize(self: Box<Self>) -> Result<()> {
        fork::check()?;
        self.flush(None, false);
        let revoked = self.shared.meeting.lifecycle.revoked().is_some();
        let outcome = match self.shared.check() {
            // It comes to its end as it should.
            Err(error) if revoked && error.kind() == ErrorKind::Revoked => Ok(()),
            outcome => outcome,
        };
        self.depart();
        outcome.map_err(|error| error.with_operation("finalize"))
    }

    fn abort(self: Box<Self>) -> Result<()> {
        self.shared.abort()?;
        self.depart();
        Ok(())
    }
}

impl MockComm {
    fn check_scalar(&self, dtype: DType, ptr: *const c_void) -> Result<()> {
        if ptr.is_null() || !ptr.addr().is_multiple_of(dtype.size()) {
            return Err(invalid(format!(
                "the scalar at {ptr:p} is null, or not aligned for {dtype}"
            )));
        }
        self.check_memory("the scalar", ptr.cast(), dtype.size())
    }
}

impl Split for MockComm {
    fn split(&self, config: SplitConfig) -> Result<Option<Self>> {
        fork::check()?;
        self.note_caller();
        self.shared.check_active().map_err(self.named("split"))?;
        let refuse = |error| Err(self.refused("split", error));
        if group::is_open(&self.engine) {
            return refuse(misuse(
                "split blocks until all ranks have called, so not inside a group",
            ));
        }
        if let Err(error) = self.rules().split(&config) {
            return refuse(error);
        }
        let site = Location::caller();
        let end = match &self.shared.joint {
            Some(joint) => self.engine.split_across(&self.shared, joint, config)?,
            None => self.shared.meeting.split(&self.engine, &self.shared, config)?,
        };
        end.map(|end| Self::new(Arc::clone(&self.engine), end, site)).transpose()
    }

    fn shrink(&self, config: ShrinkConfig) -> Result<Self> {
        fork::check()?;
        self.note_caller();
        let end = self.shrunk(config).map_err(|error| self.refused("shrink", error))?;
        Self::new(Arc::clone(&self.engine), end, Location::caller())
    }

    fn grow(&self, config: GrowConfig) -> Result<Self> {
        fork::check()?;
        self.note_caller();
        let end = self.grown(config).map_err(|error| self.refused("grow", error))?;
        Self::new(Arc::clone(&self.engine), end, Location::caller())
    }
}

impl Drop for MockComm {
    fn drop(&mut self) {
        if self.ended.get() || fork::in_forked_child() {
            return;
        }
        if !thread::panicking() {
            let until = Instant::now() + PATIENCE;
            if !self.flush(Some(until), true) {
                let comm = self.shared.title();
                let rank = self.shared.info.rank;
                tracing::warn!(%comm, %rank, "dropped with operations pending");
            }
        }
        self.depart();
    }
}

impl fmt::Debug for MockComm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MockComm").field("info", &self.shared.info).finish_non_exhaustive()
    }
}

/// How long a drop waits for operations.
const PATIENCE: Duration = Duration::from_secs(1);

/// Operations up to this size may lie in an inbox for a while.
const LAZY_BYTES: usize = 8 * 1024;

#[cfg(test)]
mod tests {
    use static_assertions::{assert_impl_all, assert_not_impl_any};

    use super::MockComm;
    use crate::{Mock, MockDevice};

    // One thread at a time per communicator, as NCCL wants; libraries and devices are shared.
    assert_impl_all!(MockComm: Send);
    assert_not_impl_any!(MockComm: Sync);
    assert_impl_all!(Mock: Send, Sync);
    assert_impl_all!(MockDevice: Send, Sync);
}
