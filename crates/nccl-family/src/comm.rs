//! One rank's end of a communicator: the data plane.

use std::{
    cell::{Cell, RefCell},
    ffi::{CStr, CString, c_int, c_void},
    ptr,
    sync::Arc,
    time::Duration,
};

use collectives_core::{
    AbortHandle, Backend, CallConfig, Capabilities, Collectives, CommInfo, DType, Error, ErrorKind,
    GroupEnd, GrowConfig, Launch, MemoryUse, PreMulSum, Rank, RawRegistration, RawWindow, RecvBuf,
    ReduceOp, Result, Scalar, SendBuf, ShrinkConfig, SignalWait, Split, SplitConfig, UniqueId,
    WindowFlags, shape,
};
use collectives_nccl_abi::{
    Table, cudaStream_t, ncclComm_t, ncclRedOp_t, ncclResult_t, ncclScalarResidence_t,
    ncclUniqueId, ncclWindow_t,
    types::{self, ncclCommMemStat_t, ncclWaitSignalDesc_t},
};

use crate::{
    Library, Vendor,
    config::OneCall,
    conv, error, group,
    helper::bounded,
    met::Peers,
    state::{Call, Control, Ends, Lifeline, PATIENCE},
};

/// One rank's end of a communicator of vendor `V`.
///
/// # Dropping
/// `ncclCommDestroy` on a helper thread, waited for at most ten seconds; a communicator that has
/// failed is aborted instead, as destroying waits for ranks that may be gone. What is not done by
/// then goes on in the background, and the abort handles tell a failure. Never
/// `ncclCommFinalize`, which waits for the other ranks of the node: one thread may drop several
/// ranks one after another, since the library frees the ranks of one process when the last of them
/// is destroyed. Dropped while a group of this thread uses it, it is leaked with a warning.
pub struct Comm<V: Vendor> {
    pub(crate) line: Arc<Lifeline>,
    /// Made once, so that all handles are the same.
    handle: AbortHandle,
    pub(crate) table: &'static Table,
    pub(crate) capabilities: Capabilities,
    /// The operators made on it, by [`PreMulSum::id`]; `None` once destroyed.
    operators: RefCell<Vec<Option<ncclRedOp_t>>>,
    /// The id that it made for growing and has not yet used.
    pub(crate) grow_id: Cell<Option<ncclUniqueId>>,
    pub(crate) library: Library<V>,
}

impl<V: Vendor> Comm<V> {
    /// Takes over a live communicator. `kept` are its parent and its name, as in [`Ends`].
    pub(crate) fn new(
        library: Library<V>,
        raw: ncclComm_t,
        (rank, size, device): (Rank, usize, usize),
        name: Option<Arc<CStr>>,
        parent: Option<ncclComm_t>,
    ) -> Self {
        let text = name.as_deref().map(|name| name.to_string_lossy().into_owned());
        let info = CommInfo::new(rank, size, device, text, library.info().clone());
        let ends = Ends { parent, name, make_current: V::make_current };
        let line = Lifeline::new(raw, info, library.abi(), ends);
        Self {
            handle: AbortHandle::new(Arc::new(Control(Arc::clone(&line)))),
            line,
            table: library.abi().table(),
            capabilities: *library.capabilities(),
            operators: RefCell::default(),
            grow_id: Cell::new(None),
            library,
        }
    }

    /// Runs a data operation: inside a call, and noted in the open group.
    #[inline(always)]
    fn issue(
        &self,
        operation: &'static str,
        body: impl FnOnce(&Issue<'_, V>) -> Result<()>,
    ) -> Result<()> {
        let outcome = self.line.enter(operation).and_then(|call| {
            let rules = shape::Rules::new(self.line.info(), &self.capabilities);
            let outcome = body(&Issue { comm: self, operation, rules });
            drop::<Call<'_>>(call);
            outcome
        });
        if outcome.is_err() && group::any_open() {
            self.note_refusal(&outcome);
        }
        outcome
    }

    #[cold]
    fn note_refusal(&self, outcome: &Result<()>) {
        if let Err(refusal) = outcome {
            let copy = || error::copy(refusal, self.line.info());
            group::note_refusal(self.line.library(), copy);
        }
    }

    /// An answer of the library to a call on this communicator, inside that call.
    #[inline]
    pub(crate) fn answer(&self, operation: &'static str, result: ncclResult_t) -> Result<()> {
        if result.is_success() {
            return Ok(());
        }
        self.no_success(operation, result)
    }

    #[cold]
    fn no_success(&self, operation: &'static str, mut result: ncclResult_t) -> Result<()> {
        if result == ncclResult_t::IN_PROGRESS {
            // In a group it is queued, and the group's end waits.
            if group::is_open(self.line.library()) {
                return Ok(());
            }
            result = self.line.settle();
        }
        match result {
            ncclResult_t::SUCCESS => Ok(()),
            _ if !self.line.is_alive() => Err(self.line.gone().with_operation(operation)),
            _ => Err(self.line.failed(result).with_operation(operation)),
        }
    }

    /// A function that this library may lack, whatever its capabilities say.
    pub(crate) fn function<F>(&self, operation: &'static str, function: Option<F>) -> Result<F> {
        function.ok_or_else(|| {
            let message = format!("this library has no function for {operation}");
            self.refuse(operation, Error::new(ErrorKind::Unsupported, message))
        })
    }

    #[cold]
    pub(crate) fn refuse(&self, operation: &'static str, error: Error) -> Error {
        error.with_comm(self.line.info()).with_operation(operation)
    }

    /// Makes the device current where there is a device runtime: the library takes it from the
    /// thread.
    pub(crate) fn bind_device(&self, operation: &'static str) -> Result<()> {
        match V::runtime() {
            Ok(()) => V::make_current(self.line.info().device)
                .map_err(|error| self.refuse(operation, error)),
            Err(missing) => {
                tracing::debug!(%missing, operation, "no device made current");
                Ok(())
            }
        }
    }
}

/// A data operation that is being issued.
struct Issue<'a, V: Vendor> {
    comm: &'a Comm<V>,
    operation: &'static str,
    rules: shape::Rules<'a>,
}

impl<V: Vendor> Issue<'_, V> {
    #[inline]
    fn raw(&self) -> ncclComm_t {
        self.comm.line.raw()
    }

    /// The library's answer; in a group the communicator is from now on part of it.
    #[inline]
    fn answer(&self, result: ncclResult_t) -> Result<()> {
        if group::any_open() {
            group::note_use(&self.comm.line);
        }
        self.comm.answer(self.operation, result)
    }

    /// Runs a collective of the library, or leaves it to the end of the open group.
    #[inline]
    fn collective(
        &self,
        launch: Launch<'_>,
        call: impl FnOnce(ncclComm_t, cudaStream_t) -> ncclResult_t + 'static,
    ) -> Result<()> {
        self.collective_by(Peers::Nobody, launch, call)
    }

    /// As [`collective`](Self::collective), where the library does it by messages.
    ///
    /// A library runs a collective of one rank at once, group or not (NCCL 2.30, `taskAppend`), so
    /// it could not be dropped with its group. Such a call waits for the end.
    #[inline]
    fn collective_by(
        &self,
        peers: Peers,
        launch: Launch<'_>,
        call: impl FnOnce(ncclComm_t, cudaStream_t) -> ncclResult_t + 'static,
    ) -> Result<()> {
        if group::any_open() {
            let here = launch.config().and_then(|config| config.cga_cluster_size);
            let first = group::cluster_size(&self.comm.line, here);
            self.rules.cluster_size(self.operation, first, here)?;
            if self.comm.line.info().size == 1 && group::is_open(self.comm.line.library()) {
                let (raw, stream) = (self.raw(), launch.stream().as_ptr());
                group::note_use(&self.comm.line);
                group::defer(&self.comm.line, Box::new(move || call(raw, stream)));
                return Ok(());
            }
        }
        self.messages(peers, launch, call)
    }

    /// Runs what sends and receives, or leaves it to the end of the open group: see
    /// [`Met`](crate::met::Met).
    #[inline]
    fn messages(
        &self,
        peers: Peers,
        launch: Launch<'_>,
        call: impl FnOnce(ncclComm_t, cudaStream_t) -> ncclResult_t + 'static,
    ) -> Result<()> {
        let (line, raw, stream) = (&self.comm.line, self.raw(), launch.stream().as_ptr());
        let met = line.met().covers(peers);
        if peers == Peers::Nobody || met && !group::any_open() {
            return self.answer(call(raw, stream));
        }
        let grouped = group::is_open(line.library());
        if grouped && (!met || group::has_messages_waiting(line)) {
            group::note_use(line);
            group::defer_messages(line, peers, Box::new(move || call(raw, stream)));
            return Ok(());
        }
        self.answer(call(raw, stream))?;
        if !met {
            line.met().add(peers);
        }
        Ok(())
    }

    /// Whether there is nothing to do for a communicator of one rank. NCCL 2.19 would launch a kernel
    /// of no blocks to scale nothing.
    #[inline]
    fn is_nothing(&self, shape: shape::Shape) -> bool {
        shape.count == 0 && self.comm.line.info().size == 1
    }

    /// The library's function that takes a configuration, and the configuration, where the caller has
    /// one.
    #[inline]
    fn configured<F>(
        &self,
        launch: Launch<'_>,
        function: Option<F>,
    ) -> Result<Option<(F, OneCall)>> {
        match launch.config() {
            None => Ok(None),
            Some(config) => self.configure(launch, config, function).map(Some),
        }
    }

    #[cold]
    fn configure<F>(
        &self,
        launch: Launch<'_>,
        config: &CallConfig,
        function: Option<F>,
    ) -> Result<(F, OneCall)> {
        self.rules.call_config(self.operation, launch)?;
        let function = function.ok_or_else(|| {
            let message = "the library takes no configuration for it";
            self.comm.refuse(self.operation, Error::new(ErrorKind::Unsupported, message))
        })?;
        Ok((function, OneCall::new(config)))
    }

    /// The library's number of an operator.
    #[inline]
    fn reduce_op(&self, op: ReduceOp) -> Result<ncclRedOp_t> {
        // The average of one rank is a copy. As such it works for fp8 too, which NCCL refuses to
        // scale for one rank (2.24.3 to 2.30.7: `ncclLaunchOneRank` has no case for it).
        let alone = self.comm.line.info().size == 1;
        let op = if alone && op == ReduceOp::Avg { ReduceOp::Sum } else { op };
        match (conv::reduce_op(op), op) {
            (Some(raw), _) => Ok(raw),
            (None, ReduceOp::PreMulSum(op)) => {
                self.refuse_fp8_alone(op)?;
                self.comm.operator(self.operation, op)
            }
            // Not reached: only operators of communicators have no number of their own.
            (None, _) => Err(self.comm.refuse(self.operation, unknown_operator())),
        }
    }

    /// The other half of it: scaled by anything but one, fp8 of one rank is refused by name, where
    /// the library would only say "invalid argument".
    fn refuse_fp8_alone(&self, op: PreMulSum) -> Result<()> {
        if self.comm.line.info().size > 1 || !op.dtype().is_fp8() {
            return Ok(());
        }
        let message = "the library cannot scale fp8 on a communicator of one rank";
        let error = Error::new(ErrorKind::Unsupported, message);
        Err(self.comm.refuse(self.operation, error.with_hint("use f16, or two ranks or more")))
    }

    /// Asks the vendor about pointers and stream, if the user wants that.
    #[inline]
    fn check(
        &self,
        send: Option<*const c_void>,
        recv: Option<*mut c_void>,
        launch: Launch<'_>,
    ) -> Result<()> {
        if !self.comm.library.checks_pointers() {
            return Ok(());
        }
        self.check_pointers(send, recv.map(<*mut c_void>::cast_const), launch)
    }

    #[cold]
    fn check_pointers(
        &self,
        send: Option<*const c_void>,
        recv: Option<*const c_void>,
        launch: Launch<'_>,
    ) -> Result<()> {
        let buffers: Vec<_> = [("send", send), ("recv", recv)]
            .into_iter()
            .filter_map(|(name, ptr)| Some((name, ptr.filter(|ptr| !ptr.is_null())?)))
            .collect();
        V::check(self.comm.line.info().device, &buffers, launch.stream())
            .map_err(|error| self.comm.refuse(self.operation, error))
    }

    /// Issues sends and receives as one group, for an operation that the library lacks.
    ///
    /// # Safety
    /// See [`Collectives`], for each move.
    unsafe fn emulate(
        &self,
        shape: shape::Shape,
        moves: impl Iterator<Item = Move>,
        launch: Launch<'_>,
    ) -> Result<()> {
        if shape.count == 0 {
            return Ok(());
        }
        let (table, library) = (self.comm.table, self.comm.line.library());
        let dtype = conv::dtype(shape.dtype);
        group::start(library, self.comm.library.info())?;
        let (send, recv, count) = (table.send, table.recv, shape.count);
        let mut outcomes = moves.map(|one| match one {
            Move::Send(ptr, peer) => {
                // SAFETY: inside a call or its group, so the communicator is not freed; the caller
                // promises the memory.
                let call = move |raw, stream| unsafe {
                    send(ptr, count, dtype, number(peer), raw, stream)
                };
                self.messages(Peers::To(peer), launch, call)
            }
            Move::Recv(ptr, peer) => {
                // SAFETY: as above.
                let call = move |raw, stream| unsafe {
                    recv(ptr, count, dtype, number(peer), raw, stream)
                };
                self.messages(Peers::From(peer), launch, call)
            }
        });
        let outcome = outcomes.try_for_each(|outcome| outcome);
        if outcome.is_err() {
            self.comm.note_refusal(&outcome);
        }
        let end = group::end(library, self.comm.library.info(), GroupEnd::Launch);
        outcome.and_then(|()| end.map_err(|error| error.with_operation(self.operation)))
    }
}

/// A part of an emulated operation: the address, and the rank it goes to or comes from.
enum Move {
    Recv(*mut c_void, Rank),
    Send(*const c_void, Rank),
}

// The operations are inlined into whoever dispatches to them: each level that passes buffers on by
// value copies them, which costs more than it does anything.
impl<V: Vendor> Collectives for Comm<V> {
    fn info(&self) -> &CommInfo {
        self.line.info()
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// `ncclAllReduce`.
    #[inline(always)]
    unsafe fn all_reduce(
        &self,
        send: SendBuf,
        recv: RecvBuf,
        op: ReduceOp,
        launch: Launch<'_>,
    ) -> Result<()> {
        let all_reduce = self.table.all_reduce;
        self.issue("all_reduce", |issue| {
            let shape = issue.rules.all_reduce(send, recv, op)?;
            let op = issue.reduce_op(op)?;
            issue.check(Some(send.ptr), Some(recv.ptr), launch)?;
            if issue.is_nothing(shape) {
                return Ok(());
            }
            if let Some((call, config)) = issue.configured(launch, self.table.all_reduce_config)? {
                // SAFETY: inside a call, so the communicator is not freed; the caller promises the
                // memory and the stream; the configuration is the closure's.
                return issue.collective(launch, move |raw, stream| unsafe {
                    call(
                        send.ptr,
                        recv.ptr,
                        shape.count,
                        conv::dtype(shape.dtype),
                        op,
                        raw,
                        stream,
                        config.raw(),
                    )
                });
            }
            // SAFETY: inside a call, so the communicator is not freed; the caller promises the
            // memory and the stream.
            issue.collective(launch, move |raw, stream| unsafe {
                all_reduce(
                    send.ptr,
                    recv.ptr,
                    shape.count,
                    conv::dtype(shape.dtype),
                    op,
                    raw,
                    stream,
                )
            })
        })
    }

    /// `ncclReduce`; off root, the library gets a null receive buffer.
    #[inline(always)]
    unsafe fn reduce(
        &self,
        send: SendBuf,
        recv: Option<RecvBuf>,
        op: ReduceOp,
        root: Rank,
        launch: Launch<'_>,
    ) -> Result<()> {
        let reduce = self.table.reduce;
        self.issue("reduce", |issue| {
            let shape = issue.rules.reduce(send, recv, op, root)?;
            let op = issue.reduce_op(op)?;
            // Only root's buffer is looked at.
            let recv = recv.filter(|_| root == self.line.info().rank).map(|recv| recv.ptr);
            issue.check(Some(send.ptr), recv, launch)?;
            if issue.is_nothing(shape) {
                return Ok(());
            }
            if let Some((call, config)) = issue.configured(launch, self.table.reduce_config)? {
                // SAFETY: inside a call, so the communicator is not freed; the caller promises the
                // memory and the stream; the configuration is the closure's.
                return issue.collective(launch, move |raw, stream| unsafe {
                    call(
                        send.ptr,
                        recv.unwrap_or(ptr::null_mut()),
                        shape.count,
                        conv::dtype(shape.dtype),
                        op,
                        number(root),
                        raw,
                        stream,
                        config.raw(),
                    )
                });
            }
            // SAFETY: inside a call, so the communicator is not freed; the caller promises the
            // memory and the stream; null stands where the library does not look.
            issue.collective(launch, move |raw, stream| unsafe {
                reduce(
                    send.ptr,
                    recv.unwrap_or(ptr::null_mut()),
                    shape.count,
                    conv::dtype(shape.dtype),
                    op,
                    number(root),
                    raw,
                    stream,
                )
            })
        })
    }

    /// `ncclBroadcast`; off root, in place.
    #[inline(always)]
    unsafe fn broadcast(
        &self,
        send: Option<SendBuf>,
        recv: RecvBuf,
        root: Rank,
        launch: Launch<'_>,
    ) -> Result<()> {
        let broadcast = self.table.broadcast;
        self.issue("broadcast", |issue| {
            let shape = issue.rules.broadcast(send, recv, root)?;
            // Only root's buffer is looked at; elsewhere the call is as if in place.
            let send = send.filter(|_| root == self.line.info().rank).map(|send| send.ptr);
            issue.check(send, Some(recv.ptr), launch)?;
            if let Some((call, config)) = issue.configured(launch, self.table.broadcast_config)? {
                // SAFETY: inside a call, so the communicator is not freed; the caller promises the
                // memory and the stream; the configuration is the closure's.
                return issue.collective(launch, move |raw, stream| unsafe {
                    call(
                        send.unwrap_or(recv.ptr),
                        recv.ptr,
                        shape.count,
                        conv::dtype(shape.dtype),
                        number(root),
                        raw,
                        stream,
                        config.raw(),
                    )
                });
            }
            // SAFETY: inside a call, so the communicator is not freed; the caller promises the
            // memory and the stream.
            issue.collective(launch, move |raw, stream| unsafe {
                broadcast(
                    send.unwrap_or(recv.ptr),
                    recv.ptr,
                    shape.count,
                    conv::dtype(shape.dtype),
                    number(root),
                    raw,
                    stream,
                )
            })
        })
    }

    /// `ncclAllGather`.
    #[inline(always)]
    unsafe fn all_gather(&self, send: SendBuf, recv: RecvBuf, launch: Launch<'_>) -> Result<()> {
        let all_gather = self.table.all_gather;
        self.issue("all_gather", |issue| {
            let shape = issue.rules.all_gather(send, recv)?;
            issue.check(Some(send.ptr), Some(recv.ptr), launch)?;
            if let Some((call, config)) = issue.configured(launch, self.table.all_gather_config)? {
                // SAFETY: inside a call, so the communicator is not freed; the caller promises the
                // memory and the stream; the configuration is the closure's.
                return issue.collective(launch, move |raw, stream| unsafe {
                    call(
                        send.ptr,
                        recv.ptr,
                        shape.count,
                        conv::dtype(shape.dtype),
                        raw,
                        stream,
                        config.raw(),
                    )
                });
            }
            // SAFETY: inside a call, so the communicator is not freed; the caller promises the
            // memory and the stream.
            issue.collective(launch, move |raw, stream| unsafe {
                all_gather(send.ptr, recv.ptr, shape.count, conv::dtype(shape.dtype), raw, stream)
            })
        })
    }

    /// `ncclReduceScatter`.
    #[inline(always)]
    unsafe fn reduce_scatter(
        &self,
        send: SendBuf,
        recv: RecvBuf,
        op: ReduceOp,
        launch: Launch<'_>,
    ) -> Result<()> {
        let reduce_scatter = self.table.reduce_scatter;
        self.issue("reduce_scatter", |issue| {
            let shape = issue.rules.reduce_scatter(send, recv, op)?;
            let op = issue.reduce_op(op)?;
            issue.check(Some(send.ptr), Some(recv.ptr), launch)?;
            if issue.is_nothing(shape) {
                return Ok(());
            }
            if let Some((call, config)) =
                issue.configured(launch, self.table.reduce_scatter_config)?
            {
                // SAFETY: inside a call, so the communicator is not freed; the caller promises the
                // memory and the stream; the configuration is the closure's.
                return issue.collective(launch, move |raw, stream| unsafe {
                    call(
                        send.ptr,
                        recv.ptr,
                        shape.count,
                        conv::dtype(shape.dtype),
                        op,
                        raw,
                        stream,
                        config.raw(),
                    )
                });
            }
            // SAFETY: inside a call, so the communicator is not freed; the caller promises the
            // memory and the stream.
            issue.collective(launch, move |raw, stream| unsafe {
                reduce_scatter(
                    send.ptr,
                    recv.ptr,
                    shape.count,
                    conv::dtype(shape.dtype),
                    op,
                    raw,
                    stream,
                )
            })
        })
    }

    /// `ncclAlltoAll` (NCCL 2.28.3, RCCL 2.7.6), else a group of `ncclSend` and `ncclRecv`.
    #[inline(always)]
    unsafe fn all_to_all(&self, send: SendBuf, recv: RecvBuf, launch: Launch<'_>) -> Result<()> {
        self.issue("all_to_all", |issue| {
            let shape = issue.rules.all_to_all(send, recv)?;
            issue.check(Some(send.ptr), Some(recv.ptr), launch)?;
            if let Some((call, config)) = issue.configured(launch, self.table.all_to_all_config)? {
                // SAFETY: inside a call, so the communicator is not freed; the caller promises the
                // memory and the stream; the configuration is the closure's.
                return issue.collective_by(Peers::All, launch, move |raw, stream| unsafe {
                    call(
                        send.ptr,
                        recv.ptr,
                        shape.count,
                        conv::dtype(shape.dtype),
                        raw,
                        stream,
                        config.raw(),
                    )
                });
            }
            let Some(all_to_all) = self.table.all_to_all else {
                let moves = (0..self.line.info().size).flat_map(|peer| {
                    let start = peer * shape.count;
                    [
                        Move::Send(send.part(start, shape.count).ptr, Rank::new(peer as u32)),
                        Move::Recv(recv.part(start, shape.count).ptr, Rank::new(peer as u32)),
                    ]
                });
                // SAFETY: the caller's promise covers the parts.
                return unsafe { issue.emulate(shape, moves, launch) };
            };
            // SAFETY: inside a call, so the communicator is not freed; the caller promises the
            // memory and the stream.
            issue.collective_by(Peers::All, launch, move |raw, stream| unsafe {
                all_to_all(send.ptr, recv.ptr, shape.count, conv::dtype(shape.dtype), raw, stream)
            })
        })
    }

    /// `ncclGather` (NCCL 2.28.3, RCCL 2.7.6), else a group of `ncclSend` and `ncclRecv`.
    #[inline(always)]
    unsafe fn gather(
        &self,
        send: SendBuf,
        recv: Option<RecvBuf>,
        root: Rank,
        launch: Launch<'_>,
    ) -> Result<()> {
        self.issue("gather", |issue| {
            let shape = issue.rules.gather(send, recv, root)?;
            let info = self.line.info();
            let recv = recv.filter(|_| root == info.rank);
            let peers = if root == info.rank { Peers::FromAll } else { Peers::To(root) };
            issue.check(Some(send.ptr), recv.map(|recv| recv.ptr), launch)?;
            if let Some((call, config)) = issue.configured(launch, self.table.gather_config)? {
                // SAFETY: inside a call, so the communicator is not freed; the caller promises the
                // memory and the stream; the configuration is the closure's.
                return issue.collective_by(peers, launch, move |raw, stream| unsafe {
                    call(
                        send.ptr,
                        recv.map_or(ptr::null_mut(), |recv| recv.ptr),
                        shape.count,
                        conv::dtype(shape.dtype),
                        number(root),
                        raw,
                        stream,
                        config.raw(),
                    )
                });
            }
            let Some(gather) = self.table.gather else {
                let own = recv.map(|recv| recv.part(root.index() * shape.count, 0).ptr);
                let in_place = own.is_some_and(|own| own.cast_const() == send.ptr);
                let parts = recv.into_iter().flat_map(|recv| {
                    (0..info.size).map(move |peer| (peer, recv.part(peer * shape.count, 0).ptr))
                });
                let moves = parts
                    .filter(|(peer, _)| !(in_place && *peer == root.index()))
                    .map(|(peer, part)| Move::Recv(part, Rank::new(peer as u32)))
                    .chain((!in_place).then_some(Move::Send(send.ptr, root)));
                // SAFETY: the caller's promise covers the parts.
                return unsafe { issue.emulate(shape, moves, launch) };
            };
            // SAFETY: inside a call, so the communicator is not freed; the caller promises the
            // memory and the stream; null stands where the library does not look.
            issue.collective_by(peers, launch, move |raw, stream| unsafe {
                gather(
                    send.ptr,
                    recv.map_or(ptr::null_mut(), |recv| recv.ptr),
                    shape.count,
                    conv::dtype(shape.dtype),
                    number(root),
                    raw,
                    stream,
                )
            })
        })
    }

    /// `ncclScatter` (NCCL 2.28.3, RCCL 2.7.6), else a group of `ncclSend` and `ncclRecv`.
    #[inline(always)]
    unsafe fn scatter(
        &self,
        send: Option<SendBuf>,
        recv: RecvBuf,
        root: Rank,
        launch: Launch<'_>,
    ) -> Result<()> {
        self.issue("scatter", |issue| {
            let shape = issue.rules.scatter(send, recv, root)?;
            let info = self.line.info();
            let send = send.filter(|_| root == info.rank);
            let peers = if root == info.rank { Peers::ToAll } else { Peers::From(root) };
            issue.check(send.map(|send| send.ptr), Some(recv.ptr), launch)?;
            if let Some((call, config)) = issue.configured(launch, self.table.scatter_config)? {
                // SAFETY: inside a call, so the communicator is not freed; the caller promises the
                // memory and the stream; the configuration is the closure's.
                return issue.collective_by(peers, launch, move |raw, stream| unsafe {
                    call(
                        send.map_or(ptr::null(), |send| send.ptr),
                        recv.ptr,
                        shape.count,
                        conv::dtype(shape.dtype),
                        number(root),
                        raw,
                        stream,
                        config.raw(),
                    )
                });
            }
            let Some(scatter) = self.table.scatter else {
                let own = send.map(|send| send.part(root.index() * shape.count, 0).ptr);
                let in_place = own.is_some_and(|own| own == recv.ptr.cast_const());
                let parts = send.into_iter().flat_map(|send| {
                    (0..info.size).map(move |peer| (peer, send.part(peer * shape.count, 0).ptr))
                });
                let moves = parts
                    .filter(|(peer, _)| !(in_place && *peer == root.index()))
                    .map(|(peer, part)| Move::Send(part, Rank::new(peer as u32)))
                    .chain((!in_place).then_some(Move::Recv(recv.ptr, root)));
                // SAFETY: the caller's promise covers the parts.
                return unsafe { issue.emulate(shape, moves, launch) };
            };
            // SAFETY: inside a call, so the communicator is not freed; the caller promises the
            // memory and the stream; null stands where the library does not look.
            issue.collective_by(peers, launch, move |raw, stream| unsafe {
                scatter(
                    send.map_or(ptr::null(), |send| send.ptr),
                    recv.ptr,
                    shape.count,
                    conv::dtype(shape.dtype),
                    number(root),
                    raw,
                    stream,
                )
            })
        })
    }

    /// `ncclSend` (2.7.3).
    #[inline(always)]
    unsafe fn send(&self, buf: SendBuf, peer: Rank, launch: Launch<'_>) -> Result<()> {
        self.issue("send", |issue| {
            let shape = issue.rules.send(buf, peer)?;
            self.refuse_lone_send_to_self(peer)?;
            issue.rules.call_config("send", launch)?;
            issue.check(Some(buf.ptr), None, launch)?;
            let send = self.table.send;
            // SAFETY: inside a call or its group, so the communicator is not freed; the caller
            // promises the memory and the stream.
            issue.messages(Peers::To(peer), launch, move |raw, stream| unsafe {
                send(buf.ptr, shape.count, conv::dtype(shape.dtype), number(peer), raw, stream)
            })?;
            if peer == self.line.info().rank {
                group::note_self(&self.line, 1);
            }
            Ok(())
        })
    }

    /// `ncclRecv` (2.7.3).
    #[inline(always)]
    unsafe fn recv(&self, buf: RecvBuf, peer: Rank, launch: Launch<'_>) -> Result<()> {
        self.issue("recv", |issue| {
            let shape = issue.rules.recv(buf, peer)?;
            self.refuse_lone_recv_from_self(peer)?;
            issue.rules.call_config("recv", launch)?;
            issue.check(None, Some(buf.ptr), launch)?;
            let recv = self.table.recv;
            // SAFETY: inside a call or its group, so the communicator is not freed; the caller
            // promises the memory and the stream.
            issue.messages(Peers::From(peer), launch, move |raw, stream| unsafe {
                recv(buf.ptr, shape.count, conv::dtype(shape.dtype), number(peer), raw, stream)
            })?;
            if peer == self.line.info().rank {
                group::note_self(&self.line, -1);
            }
            Ok(())
        })
    }

    /// `ncclGroupStart`.
    fn group_start(&self) -> Result<()> {
        group::start(self.line.library(), self.library.info())
    }

    /// `ncclGroupEnd`, of a group that holds no refused call.
    fn group_end(&self) -> Result<()> {
        group::end(self.line.library(), self.library.info(), GroupEnd::Launch)
    }

    /// `ncclGroupSimulateEnd` (2.22.3).
    fn group_simulate(&self) -> Result<Option<Duration>> {
        let outcome = group::simulate(self.line.library(), self.library.info());
        outcome.map_err(|error| match self.capabilities.group_simulate.require("group_simulate") {
            Err(missing) => self.refuse("group_simulate", missing),
            Ok(()) => error,
        })
    }

    #[inline]
    fn in_group(&self) -> bool {
        group::is_open(self.line.library())
    }

    /// `ncclRedOpCreatePreMulSum` (2.11.4).
    unsafe fn create_pre_mul_sum(&self, scalar: Scalar) -> Result<PreMulSum> {
        const OPERATION: &str = "create_pre_mul_sum";
        self.require(OPERATION, self.capabilities.reduce_pre_mul_sum, "reduce op premulsum")?;
        let dtype = scalar.dtype();
        self.require_dtype(OPERATION, dtype)?;
        let _call = self.line.enter(OPERATION)?;
        let create = self.function(OPERATION, self.table.red_op_create_pre_mul_sum)?;
        let mut raw = ncclRedOp_t::SUM;
        // Aligned for every dtype; the library copies it before it returns.
        let mut value = match scalar {
            Scalar::Host { bytes, .. } => u64::from_ne_bytes(bytes),
            Scalar::Device { .. } => 0,
        };
        let (scalar, residence) = match scalar {
            Scalar::Host { .. } => ((&raw mut value).cast(), ncclScalarResidence_t::HOST_IMMEDIATE),
            Scalar::Device { ptr, .. } => (ptr.cast_mut(), ncclScalarResidence_t::DEVICE),
        };
        // SAFETY: inside a call, so the communicator is not freed; `raw` and `value` outlive the
        // call; a device scalar is the caller's promise.
        let result =
            unsafe { create(&mut raw, scalar, conv::dtype(dtype), residence, self.line.raw()) };
        self.answer(OPERATION, result)?;
        let mut operators = self.operators.borrow_mut();
        operators.push(Some(raw));
        Ok(PreMulSum::from_parts(self.line.info().id, operators.len() as u32 - 1, dtype))
    }

    /// `ncclRedOpDestroy` (2.11.4).
    fn destroy_pre_mul_sum(&self, op: PreMulSum) -> Result<()> {
        const OPERATION: &str = "destroy_pre_mul_sum";
        let _call = self.line.enter_revoked(OPERATION)?;
        if op.comm() != self.line.info().id {
            let message = "the reduce op belongs to another communicator";
            return Err(self.refuse(OPERATION, Error::new(ErrorKind::InvalidArgument, message)));
        }
        let destroy = self.function(OPERATION, self.table.red_op_destroy)?;
        let raw = self.operator(OPERATION, op)?;
        let line = Arc::clone(&self.line);
        // SAFETY: inside a call, or while the group holds the communicator, so it is not freed; the
        // operator is alive on it.
        let destroy = move || unsafe { destroy(raw, line.raw()) };
        // A call that waits for the end of the open group may use it.
        if let Err(destroy) = group::defer_cleanup(&self.line, destroy) {
            self.answer(OPERATION, destroy())?;
        }
        if let Some(slot) = self.operators.borrow_mut().get_mut(op.id() as usize) {
            *slot = None;
        }
        Ok(())
    }

    /// `ncclMemAlloc` (2.19.1, RCCL 2.20.5), on the communicator's device, which becomes current.
    fn mem_alloc(&self, bytes: usize) -> Result<*mut c_void> {
        const OPERATION: &str = "mem_alloc";
        self.require(OPERATION, self.capabilities.mem_alloc, OPERATION)?;
        let _call = self.line.enter(OPERATION)?;
        let alloc = self.function(OPERATION, self.table.mem_alloc)?;
        self.bind_device(OPERATION)?;
        let mut memory = ptr::null_mut();
        // SAFETY: `memory` outlives the call.
        let result = unsafe { alloc(&mut memory, bytes) };
        if result.is_success() {
            return Ok(memory);
        }
        // The communicator had no part in it.
        let error = error::from_result(self.line.library(), result).with_poison(false);
        Err(self.refuse(OPERATION, error).with_hint(format!("{bytes} bytes were asked for")))
    }

    /// `ncclMemFree` (2.19.1, RCCL 2.20.5), which takes no communicator: also after an abort.
    ///
    /// On a helper thread, in bounded time. Where the library frees by `cudaFree` or `hipFree`, it waits
    /// for all work of the device, which may be a collective of another communicator that never ends.
    unsafe fn mem_free(&self, ptr: *mut c_void) -> Result<()> {
        const OPERATION: &str = "mem_free";
        self.library.refuse_in_child(OPERATION)?;
        let free = self.function(OPERATION, self.table.mem_free)?;
        self.bind_device(OPERATION)?;
        let (device, address) = (self.line.info().device, ptr.expose_provenance());
        let freed = bounded(PATIENCE, move || {
            let _worked_a_moment_ago = V::make_current(device);
            // SAFETY: the caller promises memory of `mem_alloc` that nothing uses.
            unsafe { free(ptr::with_exposed_provenance_mut(address)) }
        });
        match freed {
            Some(ncclResult_t::SUCCESS) => Ok(()),
            Some(result) => {
                let error = error::from_result(self.line.library(), result).with_poison(false);
                Err(self.refuse(OPERATION, error))
            }
            None => {
                let message = format!("the library has not freed the memory in {PATIENCE:?}");
                let error = Error::new(ErrorKind::Timeout, message).with_poison(false);
                Err(self.refuse(OPERATION, error).with_hint(
                    "work on the device may never end: abort its communicators; it goes on in the \
                     background",
                ))
            }
        }
    }

    /// `ncclCommRegister` (2.19.1, RCCL 2.20.5).
    unsafe fn register(&self, ptr: *mut c_void, bytes: usize) -> Result<RawRegistration> {
        const OPERATION: &str = "register";
        self.require(OPERATION, self.capabilities.register, OPERATION)?;
        let _call = self.line.enter(OPERATION)?;
        let register = self.function(OPERATION, self.table.comm_register)?;
        let mut handle = ptr::null_mut();
        // SAFETY: inside a call, so the communicator is not freed; the caller promises the memory;
        // `handle` outlives the call.
        let result = unsafe { register(self.line.raw(), ptr, bytes, &mut handle) };
        self.answer(OPERATION, result)?;
        // Null where registration is switched off: operations work without.
        Ok(RawRegistration::from_ptr(handle))
    }

    /// `ncclCommDeregister` (2.19.1, RCCL 2.20.5).
    unsafe fn deregister(&self, registration: RawRegistration) -> Result<()> {
        const OPERATION: &str = "deregister";
        let _call = self.line.enter_revoked(OPERATION)?;
        let deregister = self.function(OPERATION, self.table.comm_deregister)?;
        if registration.as_ptr().is_null() {
            return Ok(());
        }
        // SAFETY: inside a call, so the communicator is not freed; the caller promises a
        // registration of it.
        let result = unsafe { deregister(self.line.raw(), registration.as_ptr()) };
        self.answer(OPERATION, result)
    }

    /// `ncclCommWindowRegister` (2.27.3).
    unsafe fn window_register(
        &self,
        ptr: *mut c_void,
        bytes: usize,
        flags: WindowFlags,
    ) -> Result<RawWindow> {
        const OPERATION: &str = "window_register";
        let rules = shape::Rules::new(self.line.info(), &self.capabilities);
        rules.window_register(ptr, bytes)?;
        let _call = self.line.enter(OPERATION)?;
        let register = self.function(OPERATION, self.table.comm_window_register)?;
        self.refuse_in_group(OPERATION)?;
        self.bind_device(OPERATION)?;
        let (raw, flags) = (self.line.raw(), flags.bits().cast_signed());
        let mut window = ncclWindow_t::NULL;
        // SAFETY: inside a call, so the communicator is not freed; the caller promises the memory;
        // `window` outlives the call.
        let result = unsafe { register(raw, ptr, bytes, &mut window, flags) };
        self.answer(OPERATION, result)?;
        if window.is_null() {
            let message = "the library has windows, but cannot use them between these devices";
            let error = Error::new(ErrorKind::Unsupported, message);
            let hint = "it wants peers that reach each other's memory: NCCL_DEBUG=INFO says more";
            return Err(self.refuse(OPERATION, error.with_hint(hint)));
        }
        Ok(RawWindow::from_ptr(window.0))
    }

    /// `ncclCommWindowDeregister` (2.27.3).
    unsafe fn window_deregister(&self, window: RawWindow) -> Result<()> {
        const OPERATION: &str = "window_deregister";
        self.require(OPERATION, self.capabilities.window_register, "window_register")?;
        let _call = self.line.enter_revoked(OPERATION)?;
        let deregister = self.function(OPERATION, self.table.comm_window_deregister)?;
        self.bind_device(OPERATION)?;
        // SAFETY: inside a call, so the communicator is not freed; the caller promises a window of it.
        let result = unsafe { deregister(self.line.raw(), ncclWindow_t(window.as_ptr())) };
        self.answer(OPERATION, result)
    }

    /// `ncclWinGetUserPtr` (2.29.2).
    unsafe fn window_ptr(&self, window: RawWindow) -> Result<*mut c_void> {
        const OPERATION: &str = "window_ptr";
        self.require(OPERATION, self.capabilities.window_ptr, OPERATION)?;
        let _call = self.line.enter_revoked(OPERATION)?;
        let ask = self.function(OPERATION, self.table.win_get_user_ptr)?;
        let mut start = ptr::null_mut();
        // SAFETY: inside a call, so the communicator is not freed; the caller promises a window of it;
        // `start` outlives the call.
        let result = unsafe { ask(self.line.raw(), ncclWindow_t(window.as_ptr()), &mut start) };
        self.answer(OPERATION, result)?;
        Ok(start)
    }

    /// `ncclPutSignal` (2.29.2), with signal 0 of context 0, which is all that 2.29 and 2.30 have.
    unsafe fn put_signal(
        &self,
        send: SendBuf,
        peer: Rank,
        window: RawWindow,
        offset: usize,
        launch: Launch<'_>,
    ) -> Result<()> {
        const OPERATION: &str = "put_signal";
        let rules = shape::Rules::new(self.line.info(), &self.capabilities);
        let shape = rules.put_signal(send, peer)?;
        let _call = self.line.enter(OPERATION)?;
        let put = self.function(OPERATION, self.table.put_signal)?;
        self.refuse_in_group(OPERATION)?;
        let (raw, stream) = (self.line.raw(), launch.stream().as_ptr());
        let (dtype, window) = (conv::dtype(shape.dtype), ncclWindow_t(window.as_ptr()));
        let (to, count) = (number(peer), shape.count);
        // SAFETY: inside a call, so the communicator is not freed; the caller promises memory, window
        // and stream, and that nobody uses the target meanwhile.
        let result = unsafe {
            put(send.ptr, count, dtype, to, window, offset, SIGNAL, CONTEXT, 0, raw, stream)
        };
        self.answer(OPERATION, result)
    }

    /// `ncclSignal` (2.29.2).
    unsafe fn signal(&self, peer: Rank, launch: Launch<'_>) -> Result<()> {
        const OPERATION: &str = "signal";
        shape::Rules::new(self.line.info(), &self.capabilities).signal(peer)?;
        let _call = self.line.enter(OPERATION)?;
        let signal = self.function(OPERATION, self.table.signal)?;
        self.refuse_in_group(OPERATION)?;
        let (raw, stream) = (self.line.raw(), launch.stream().as_ptr());
        // SAFETY: inside a call, so the communicator is not freed; the caller promises the stream.
        let result = unsafe { signal(number(peer), SIGNAL, CONTEXT, 0, raw, stream) };
        self.answer(OPERATION, result)
    }

    /// `ncclWaitSignal` (2.29.2).
    unsafe fn wait_signal(&self, waits: &[SignalWait], launch: Launch<'_>) -> Result<()> {
        const OPERATION: &str = "wait_signal";
        shape::Rules::new(self.line.info(), &self.capabilities).wait_signal(waits)?;
        let _call = self.line.enter(OPERATION)?;
        let wait = self.function(OPERATION, self.table.wait_signal)?;
        self.refuse_in_group(OPERATION)?;
        let descriptor = |wait: &SignalWait| ncclWaitSignalDesc_t {
            // Checked to fit.
            opCnt: wait.count as c_int,
            peer: number(wait.peer),
            sigIdx: SIGNAL,
            ctx: CONTEXT,
        };
        let mut descriptors: Vec<_> = waits.iter().map(descriptor).collect();
        let count = descriptors.len() as c_int;
        let (raw, stream) = (self.line.raw(), launch.stream().as_ptr());
        // SAFETY: inside a call, so the communicator is not freed; the list is as long as said, and the
        // library copies it; the caller promises the stream.
        let result = unsafe { wait(count, descriptors.as_mut_ptr(), raw, stream) };
        self.answer(OPERATION, result)
    }

    fn split_dyn(&self, config: SplitConfig) -> Result<Option<Box<dyn Collectives>>> {
        Ok(self.split(config)?.map(|part| Box::new(part) as Box<dyn Collectives>))
    }

    fn shrink_dyn(&self, config: ShrinkConfig) -> Result<Box<dyn Collectives>> {
        Ok(Box::new(self.shrink(config)?))
    }

    fn grow_dyn(&self, config: GrowConfig) -> Result<Box<dyn Collectives>> {
        Ok(Box::new(self.grow(config)?))
    }

    /// `ncclCommGetUniqueId` (2.29.2).
    fn grow_id(&self) -> Result<UniqueId> {
        self.make_grow_id()
    }

    /// `ncclCommRevoke` (2.28.7), on this thread. It stops this rank's operations alone.
    fn revoke(&self) -> Result<()> {
        const OPERATION: &str = "revoke";
        self.require(OPERATION, self.capabilities.revoke, OPERATION)?;
        self.line.revoke()
    }

    /// `ncclCommSuspend` (2.29.7).
    fn suspend(&self) -> Result<()> {
        const OPERATION: &str = "suspend";
        self.require(OPERATION, self.capabilities.suspend, OPERATION)?;
        let _call = self.line.enter(OPERATION)?;
        let suspend = self.function(OPERATION, self.table.comm_suspend)?;
        self.refuse_in_group(OPERATION)?;
        self.bind_device(OPERATION)?;
        // SAFETY: inside a call, so the communicator is not freed.
        let result = unsafe { suspend(self.line.raw(), types::NCCL_SUSPEND_MEM) };
        self.answer(OPERATION, result)?;
        self.line.set_suspended(true);
        Ok(())
    }

    /// `ncclCommResume` (2.29.7).
    fn resume(&self) -> Result<()> {
        const OPERATION: &str = "resume";
        self.require(OPERATION, self.capabilities.suspend, "suspend")?;
        let _call = self.line.enter_revoked(OPERATION)?;
        let resume = self.function(OPERATION, self.table.comm_resume)?;
        self.refuse_in_group(OPERATION)?;
        if !self.line.is_suspended() {
            let error = Error::new(ErrorKind::InvalidUsage, "the communicator is not suspended");
            return Err(self.refuse(OPERATION, error));
        }
        self.bind_device(OPERATION)?;
        // SAFETY: inside a call, so the communicator is not freed.
        let result = unsafe { resume(self.line.raw()) };
        self.answer(OPERATION, result)?;
        self.line.set_suspended(false);
        Ok(())
    }

    /// `ncclCommMemStats` (2.29.7), once for each number.
    fn memory_use(&self) -> Result<MemoryUse> {
        const OPERATION: &str = "memory_use";
        self.require(OPERATION, self.capabilities.memory_use, OPERATION)?;
        let _call = self.line.enter_revoked(OPERATION)?;
        let ask = self.function(OPERATION, self.table.comm_mem_stats)?;
        let number = |which| {
            let mut value = 0;
            // SAFETY: inside a call, so the communicator is not freed; `value` outlives the call.
            let result = unsafe { ask(self.line.raw(), which, &mut value) };
            self.answer(OPERATION, result).map(|()| value)
        };
        let mut memory = MemoryUse::default();
        memory.total = number(ncclCommMemStat_t::GPU_MEM_TOTAL)?;
        memory.suspendable = number(ncclCommMemStat_t::GPU_MEM_SUSPEND)?;
        memory.persistent = number(ncclCommMemStat_t::GPU_MEM_PERSIST)?;
        memory.is_suspended = number(ncclCommMemStat_t::GPU_MEM_SUSPENDED)? != 0;
        Ok(memory)
    }

    /// `ncclCommGetAsyncError` (2.4.2); a failure that a call has met stays one.
    fn poll_error(&self) -> Result<()> {
        const OPERATION: &str = "poll_error";
        drop(match self.line.is_suspended() {
            true => self.line.enter_revoked(OPERATION)?,
            false => self.line.enter(OPERATION)?,
        });
        match self.line.poll() {
            Some(failure) if failure.operation().is_none() => {
                Err(failure.with_operation(OPERATION))
            }
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }

    fn abort_handle(&self) -> AbortHandle {
        self.handle.clone()
    }

    /// Null once the communicator was aborted, which frees it.
    fn as_raw(&self) -> *mut c_void {
        if self.line.is_alive() { self.line.raw().0 } else { ptr::null_mut() }
    }

    /// `ncclCommFinalize` (2.14.3) where there is one, then `ncclCommDestroy`, on a helper thread. The
    /// first lasts as long as it does, unless the communicator is aborted; the second ten seconds.
    fn finalize(self: Box<Self>) -> Result<()> {
        self.line.finalize()
    }

    /// `ncclCommAbort` (2.4.2), on a helper thread and in bounded time; nothing after an abort by
    /// handle.
    fn abort(self: Box<Self>) -> Result<()> {
        self.line.abort()
    }
}

impl<V: Vendor> Comm<V> {
    /// What blocks, or changes the communicator, has no place among collected calls.
    fn refuse_in_group(&self, operation: &'static str) -> Result<()> {
        if !group::is_open(self.line.library()) {
            return Ok(());
        }
        let error = Error::new(ErrorKind::InvalidUsage, "a group is open on this thread");
        Err(self.refuse(operation, error.with_hint("end or drop the group first")))
    }

    /// The library's number of an operator that was made on this communicator.
    fn operator(&self, operation: &'static str, op: PreMulSum) -> Result<ncclRedOp_t> {
        let slot = self.operators.borrow().get(op.id() as usize).copied().flatten();
        slot.ok_or_else(|| self.refuse(operation, unknown_operator()))
    }

    /// NCCL answers a lone send to self with `ncclInvalidUsage`, and from inside the launch.
    fn refuse_lone_send_to_self(&self, peer: Rank) -> Result<()> {
        self.refuse_alone(peer, "send", "a send to this rank itself is alone", "receive")
    }

    /// A lone receive from self waits for a send that can't come.
    fn refuse_lone_recv_from_self(&self, peer: Rank) -> Result<()> {
        self.refuse_alone(peer, "recv", "a receive from this rank itself is alone", "send")
    }

    #[inline]
    fn refuse_alone(
        &self,
        peer: Rank,
        operation: &'static str,
        message: &str,
        partner: &str,
    ) -> Result<()> {
        if peer != self.line.info().rank || group::is_open(self.line.library()) {
            return Ok(());
        }
        let error = Error::new(ErrorKind::InvalidUsage, message)
            .with_hint(format!("put it into a group with its {partner}"));
        Err(self.refuse(operation, error))
    }

    fn require(
        &self,
        operation: &'static str,
        support: collectives_core::Support,
        what: &str,
    ) -> Result<()> {
        support.require(what).map_err(|error| self.refuse(operation, error))
    }

    fn require_dtype(&self, operation: &'static str, dtype: DType) -> Result<()> {
        let support = match dtype {
            DType::Bf16 => self.capabilities.dtype_bf16,
            DType::F8E4M3 => self.capabilities.dtype_f8e4m3,
            DType::F8E5M2 => self.capabilities.dtype_f8e5m2,
            DType::I8
            | DType::U8
            | DType::I32
            | DType::U32
            | DType::I64
            | DType::U64
            | DType::F16
            | DType::F32
            | DType::F64 => collectives_core::Support::Native,
        };
        self.require(operation, support, dtype.name())
    }
}

impl<V: Vendor> Drop for Comm<V> {
    fn drop(&mut self) {
        self.line.close();
    }
}

impl<V: Vendor> std::fmt::Debug for Comm<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Comm").field(self.line.info()).finish()
    }
}

/// A name for the library.
pub(crate) fn c_name(name: Option<String>) -> Result<Option<Arc<CStr>>> {
    let name = name.map(CString::new).transpose().map_err(|error| {
        Error::new(ErrorKind::InvalidArgument, "the communicator's name holds a NUL byte")
            .with_source(error)
    })?;
    Ok(name.map(Arc::from))
}

/// The signal and the context that every release has.
const SIGNAL: c_int = 0;
const CONTEXT: c_int = 0;

/// A rank as the library's number. It is inside a communicator, whose size is a C int.
#[inline]
fn number(rank: Rank) -> c_int {
    rank.get() as c_int
}

#[cold]
fn unknown_operator() -> Error {
    Error::new(ErrorKind::InvalidArgument, "the reduce op does not exist, or was destroyed")
}
