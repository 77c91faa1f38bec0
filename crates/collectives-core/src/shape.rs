//! Which arguments are refused, and why: the rules of every backend, in one place.
//!
//! Every backend calls the rule of an operation before it does anything else. A refusal is an error
//! of kind [`InvalidArgument`](ErrorKind::InvalidArgument) or
//! [`Unsupported`](ErrorKind::Unsupported) that names the rank, the values and what was wanted;
//! nothing was enqueued and the communicator works as before.
//!
//! What a rule returns has been checked, and is not checked again below it.
//!
//! | rule | source |
//! |---|---|
//! | counts and in-place forms | NCCL documentation, "Collective Operations" and "In-place Operations" |
//! | root and peer in range | `ncclInvalidArgument`, NCCL 2.30 `argcheck.cc` |
//! | buffers overlap only in the in-place form | ours: NCCL leaves it undefined |
//! | null pointer only with count 0 | ours: NCCL checks it only with `NCCL_CHECK_MODE=DEBUG_LOCAL` |
//! | pointers aligned to their dtype | ours: kernels fault on it |
//! | a PreMulSum of this communicator and dtype | `ncclInvalidArgument`, NCCL 2.30 `argcheck.cc` |
//! | excluded ranks: some, not this one | `ncclInvalidArgument`, NCCL 2.30 `init.cc` |
//! | excluded ranks in range, each once, not all | ours: NCCL leaves it undefined |
//! | one cluster size for the collectives of a group | `nccl.h`, NCCL 2.31: else undefined behaviour |
//! | growing means more ranks | `ncclInvalidArgument`, NCCL 2.30 `init.cc` |

use std::ffi::c_void;

use crate::{
    CallConfig, Capabilities, CommConfig, CommInfo, DType, Error, ErrorKind, GrowConfig, Launch,
    Rank, RecvBuf, ReduceOp, Result, SendBuf, ShrinkConfig, SignalWait, SplitConfig, Support,
};

/// What every configuration of a communicator keeps: values that a library can take, and none at all
/// where there are no configurations.
///
/// # Errors
/// See [`CommConfig::check`] and the [module](self).
pub fn comm_config(config: &CommConfig, capabilities: &Capabilities) -> Result<()> {
    config.check()?;
    if *config == CommConfig::new() {
        return Ok(());
    }
    capabilities.config.require("configuration of communicators")
}

/// The rules of one communicator.
///
/// They are inlined into the backends' operations without exception: passed on by value, a buffer
/// is copied through a vector register right after its fields were written one by one, and the
/// processor waits for that longer than for all checks.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    comm: &'a CommInfo,
    capabilities: &'a Capabilities,
}

/// What a rule has checked: the count that goes with the vendor's call, and the dtype.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Shape {
    /// Elements per rank: of `send` in a gather, of `recv` in a scatter, per peer in an all-to-all.
    pub count: usize,
    /// Their type.
    pub dtype: DType,
}

/// A key of encryption that libraries take: none, or 32 bytes and more without NUL.
///
/// # Errors
/// [`InvalidArgument`](ErrorKind::InvalidArgument), which does not show the key;
/// [`Unsupported`](ErrorKind::Unsupported) by capability.
pub fn encryption_key(key: Option<&str>, capabilities: &Capabilities) -> Result<()> {
    const LEAST: usize = 32;
    capabilities.encryption.require("encryption")?;
    let Some(key) = key else { return Ok(()) };
    if key.len() < LEAST || key.contains('\0') {
        let message = format!("the key has {} bytes, want {LEAST} at least and no NUL", key.len());
        return Err(Error::new(ErrorKind::InvalidArgument, message));
    }
    Ok(())
}

/// A window starts at a multiple of so many bytes from the start of its allocation
/// (`NCCL_WIN_REQUIRED_ALIGNMENT`, 2.28.3).
pub const WINDOW_ALIGNMENT: usize = 4096;

impl<'a> Rules<'a> {
    /// The rules of the communicator described by `comm`, on a library with `capabilities`.
    #[inline]
    pub const fn new(comm: &'a CommInfo, capabilities: &'a Capabilities) -> Self {
        Self { comm, capabilities }
    }

    /// `recv.count == send.count`, one dtype, a usable reduce op, buffers equal or apart.
    ///
    /// # Errors
    /// See the [module](self).
    #[inline(always)]
    pub fn all_reduce(&self, send: SendBuf, recv: RecvBuf, op: ReduceOp) -> Result<Shape> {
        let call = self.call("all_reduce", self.capabilities.all_reduce)?;
        call.both(send, recv)?;
        call.count("recv", recv.count, 1, send.count)?;
        call.reduction(op, send.dtype)?;
        call.in_place_or_apart(send, recv, send.ptr, recv.ptr, "recv at send")?;
        Ok(Shape { count: send.count, dtype: send.dtype })
    }

    /// As [`all_reduce`](Self::all_reduce), with `recv` given on root.
    ///
    /// # Errors
    /// See the [module](self).
    #[inline(always)]
    pub fn reduce(
        &self,
        send: SendBuf,
        recv: Option<RecvBuf>,
        op: ReduceOp,
        root: Rank,
    ) -> Result<Shape> {
        let call = self.call("reduce", self.capabilities.reduce)?;
        call.root(root)?;
        call.send(send)?;
        call.reduction(op, send.dtype)?;
        if root == self.comm.rank {
            let recv = call.on_root(recv, "recv")?;
            call.both(send, recv)?;
            call.count("recv", recv.count, 1, send.count)?;
            call.in_place_or_apart(send, recv, send.ptr, recv.ptr, "recv at send")?;
        }
        Ok(Shape { count: send.count, dtype: send.dtype })
    }

    /// `send.count == recv.count` on root, where `send` is given.
    ///
    /// # Errors
    /// See the [module](self).
    #[inline(always)]
    pub fn broadcast(&self, send: Option<SendBuf>, recv: RecvBuf, root: Rank) -> Result<Shape> {
        let call = self.call("broadcast", self.capabilities.broadcast)?;
        call.root(root)?;
        call.recv(recv)?;
        if root == self.comm.rank {
            let send = call.on_root(send, "send")?;
            call.both(send, recv)?;
            call.count("send", send.count, 1, recv.count)?;
            call.in_place_or_apart(send, recv, send.ptr, recv.ptr, "recv at send")?;
        }
        Ok(Shape { count: recv.count, dtype: recv.dtype })
    }

    /// `recv.count == size × send.count`; in place, `send` is this rank's part of `recv`.
    ///
    /// # Errors
    /// See the [module](self).
    #[inline(always)]
    pub fn all_gather(&self, send: SendBuf, recv: RecvBuf) -> Result<Shape> {
        let call = self.call("all_gather", self.capabilities.all_gather)?;
        call.both(send, recv)?;
        call.count("recv", recv.count, self.comm.size, send.count)?;
        let own = recv.part(self.comm.rank.index() * send.count, send.count).ptr;
        call.in_place_or_apart(send, recv, send.ptr, own, "send at recv + rank × send.count")?;
        Ok(Shape { count: send.count, dtype: send.dtype })
    }

    /// `send.count == size × recv.count`; in place, `recv` is this rank's part of `send`.
    ///
    /// # Errors
    /// See the [module](self).
    #[inline(always)]
    pub fn reduce_scatter(&self, send: SendBuf, recv: RecvBuf, op: ReduceOp) -> Result<Shape> {
        let call = self.call("reduce_scatter", self.capabilities.reduce_scatter)?;
        call.both(send, recv)?;
        call.count("send", send.count, self.comm.size, recv.count)?;
        call.reduction(op, send.dtype)?;
        let own = send.part(self.comm.rank.index() * recv.count, recv.count).ptr;
        call.in_place_or_apart(send, recv, own, recv.ptr, "recv at send + rank × recv.count")?;
        Ok(Shape { count: recv.count, dtype: recv.dtype })
    }

    /// `send.count == recv.count`, a multiple of size; never in place.
    ///
    /// # Errors
    /// See the [module](self).
    #[inline(always)]
    pub fn all_to_all(&self, send: SendBuf, recv: RecvBuf) -> Result<Shape> {
        let call = self.call("all_to_all", self.capabilities.all_to_all)?;
        call.both(send, recv)?;
        call.count("recv", recv.count, 1, send.count)?;
        if !send.count.is_multiple_of(self.comm.size) {
            return Err(call.refuse(format!(
                "send holds {} elements, want a multiple of the size {}",
                send.count, self.comm.size
            )));
        }
        call.apart(send, recv)?;
        Ok(Shape { count: send.count / self.comm.size, dtype: send.dtype })
    }

    /// `recv.count == size × send.count` on root, where `recv` is given; in place, `send` is root's
    /// part of `recv`.
    ///
    /// # Errors
    /// See the [module](self).
    #[inline(always)]
    pub fn gather(&self, send: SendBuf, recv: Option<RecvBuf>, root: Rank) -> Result<Shape> {
        let call = self.call("gather", self.capabilities.gather)?;
        call.root(root)?;
        call.send(send)?;
        if root == self.comm.rank {
            let recv = call.on_root(recv, "recv")?;
            call.both(send, recv)?;
            call.count("recv", recv.count, self.comm.size, send.count)?;
            let own = recv.part(root.index() * send.count, send.count).ptr;
            call.in_place_or_apart(send, recv, send.ptr, own, "send at recv + root × send.count")?;
        }
        Ok(Shape { count: send.count, dtype: send.dtype })
    }

    /// `send.count == size × recv.count` on root, where `send` is given; in place, `recv` is root's
    /// part of `send`.
    ///
    /// # Errors
    /// See the [module](self).
    #[inline(always)]
    pub fn scatter(&self, send: Option<SendBuf>, recv: RecvBuf, root: Rank) -> Result<Shape> {
        let call = self.call("scatter", self.capabilities.scatter)?;
        call.root(root)?;
        call.recv(recv)?;
        if root == self.comm.rank {
            let send = call.on_root(send, "send")?;
            call.both(send, recv)?;
            call.count("send", send.count, self.comm.size, recv.count)?;
            let own = send.part(root.index() * recv.count, recv.count).ptr;
            call.in_place_or_apart(send, recv, own, recv.ptr, "recv at send + root × recv.count")?;
        }
        Ok(Shape { count: recv.count, dtype: recv.dtype })
    }

    /// A buffer, and a peer inside the communicator.
    ///
    /// # Errors
    /// See the [module](self).
    #[inline(always)]
    pub fn send(&self, buf: SendBuf, peer: Rank) -> Result<Shape> {
        let call = self.call("send", self.capabilities.send)?;
        call.peer(peer)?;
        call.send(buf)?;
        Ok(Shape { count: buf.count, dtype: buf.dtype })
    }

    /// A buffer, and a peer inside the communicator.
    ///
    /// # Errors
    /// See the [module](self).
    #[inline(always)]
    pub fn recv(&self, buf: RecvBuf, peer: Rank) -> Result<Shape> {
        let call = self.call("recv", self.capabilities.recv)?;
        call.peer(peer)?;
        call.recv(buf)?;
        Ok(Shape { count: buf.count, dtype: buf.dtype })
    }

    /// A colour that the library's C int can hold.
    ///
    /// # Errors
    /// See the [module](self).
    pub fn split(&self, config: &SplitConfig) -> Result<()> {
        let call = self.call("split", self.capabilities.split)?;
        self.config("split", &config.config)?;
        match config.color {
            Some(color) if color > i32::MAX as u32 => {
                Err(call.refuse(format!("color is {color}, want at most {}", i32::MAX)))
            }
            _ => Ok(()),
        }
    }

    fn config(&self, operation: &'static str, config: &CommConfig) -> Result<()> {
        let named = |error: Error| error.with_comm(self.comm).with_operation(operation);
        comm_config(config, self.capabilities).map_err(named)
    }

    /// At least one excluded rank, each of them of this communicator and named once, and not this
    /// one, which so is left.
    ///
    /// # Errors
    /// See the [module](self).
    pub fn shrink(&self, config: &ShrinkConfig) -> Result<()> {
        let call = self.call("shrink", self.capabilities.shrink)?;
        self.config("shrink", &config.config)?;
        let exclude = &config.exclude;
        if exclude.is_empty() {
            return Err(call
                .refuse("no rank is excluded, want at least one")
                .with_hint("split with one colour makes a communicator of the same ranks"));
        }
        for (index, &rank) in exclude.iter().enumerate() {
            call.in_range("an excluded rank", rank)?;
            if rank == self.comm.rank {
                return Err(call
                    .refuse(format!("rank {rank} excludes itself"))
                    .with_hint("only the ranks that stay call shrink"));
            }
            if exclude[..index].contains(&rank) {
                return Err(call.refuse(format!("rank {rank} is excluded twice")));
            }
        }
        Ok(())
    }

    /// A size above that of this communicator.
    ///
    /// # Errors
    /// See the [module](self).
    pub fn grow(&self, config: &GrowConfig) -> Result<()> {
        let call = self.call("grow", self.capabilities.grow)?;
        self.config("grow", &config.config)?;
        let (size, members) = (config.size, self.comm.size);
        if size <= members {
            return Err(
                call.refuse(format!("size is {size}, want more than the {members} members"))
            );
        }
        if i32::try_from(size).is_err() {
            return Err(call.refuse(format!("size is {size}, want at most {}", i32::MAX)));
        }
        Ok(())
    }

    /// Some bytes, not at null.
    ///
    /// # Errors
    /// See the [module](self).
    pub fn window_register(&self, ptr: *mut c_void, bytes: usize) -> Result<()> {
        let call = self.call("window_register", self.capabilities.window_register)?;
        if ptr.is_null() || bytes == 0 {
            return Err(call.refuse(format!("nothing to register: {bytes} bytes at {ptr:p}")));
        }
        Ok(())
    }

    /// A configuration of its own that a collective can have, or none; messages have none.
    ///
    /// # Errors
    /// See the [module](self); [`Unsupported`](ErrorKind::Unsupported) for a message.
    #[inline]
    pub fn call_config(&self, operation: &'static str, launch: Launch<'_>) -> Result<()> {
        match launch.config() {
            None => Ok(()),
            Some(config) => self.check_config(operation, config),
        }
    }

    #[cold]
    fn check_config(&self, operation: &'static str, config: &CallConfig) -> Result<()> {
        let call = self.call(operation, self.capabilities.call_config)?;
        if matches!(operation, "send" | "recv") {
            let message = "messages take no configuration of their own";
            return Err(Error::new(ErrorKind::Unsupported, message)
                .with_comm(self.comm)
                .with_operation(operation));
        }
        config.check().map_err(|error| call.refuse(error.message()))
    }

    /// The cluster size that the first collective of the open group has, if this is not the first.
    ///
    /// # Errors
    /// See the [module](self).
    pub fn cluster_size(
        &self,
        operation: &'static str,
        first: Option<u32>,
        here: Option<u32>,
    ) -> Result<()> {
        if first == here {
            return Ok(());
        }
        let named = |size: Option<u32>| size.map_or_else(|| "not set".into(), |n| n.to_string());
        let message = format!(
            "cga_cluster_size is {}, and {} for the first collective of the group, want the same",
            named(here),
            named(first)
        );
        Err(Error::new(ErrorKind::InvalidArgument, message)
            .with_comm(self.comm)
            .with_operation(operation)
            .with_hint("give the collectives of a group one configuration, or use several groups"))
    }

    /// Usable memory, and another rank.
    ///
    /// # Errors
    /// See the [module](self).
    pub fn put_signal(&self, send: SendBuf, peer: Rank) -> Result<Shape> {
        let call = self.call("put_signal", self.capabilities.put_signal)?;
        call.send(send)?;
        call.another(peer)?;
        Ok(Shape { count: send.count, dtype: send.dtype })
    }

    /// Another rank.
    ///
    /// # Errors
    /// See the [module](self).
    pub fn signal(&self, peer: Rank) -> Result<()> {
        self.call("signal", self.capabilities.put_signal)?.another(peer)
    }

    /// At least one peer, each another rank, and of each at least one signal.
    ///
    /// # Errors
    /// See the [module](self).
    pub fn wait_signal(&self, waits: &[SignalWait]) -> Result<()> {
        let call = self.call("wait_signal", self.capabilities.put_signal)?;
        if waits.is_empty() {
            return Err(call.refuse("no signal is waited for, want at least one"));
        }
        for &SignalWait { peer, count } in waits {
            call.another(peer)?;
            if count == 0 || i32::try_from(count).is_err() {
                return Err(call.refuse(format!(
                    "{count} signals of rank {peer} are waited for, want 1 to {}",
                    i32::MAX
                )));
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn call(&self, operation: &'static str, support: Support) -> Result<Call<'a>> {
        let call = Call { rules: *self, operation };
        call.require(support, operation)?;
        Ok(call)
    }
}

/// One call under the rules, which knows its name for errors.
struct Call<'a> {
    rules: Rules<'a>,
    operation: &'static str,
}

impl Call<'_> {
    #[inline(always)]
    fn send(&self, buf: SendBuf) -> Result<()> {
        self.dtype(buf.dtype)?;
        self.memory("send", buf.ptr, buf.count, buf.dtype)
    }

    #[inline(always)]
    fn recv(&self, buf: RecvBuf) -> Result<()> {
        self.dtype(buf.dtype)?;
        self.memory("recv", buf.ptr, buf.count, buf.dtype)
    }

    /// Two buffers of one dtype.
    #[inline(always)]
    fn both(&self, send: SendBuf, recv: RecvBuf) -> Result<()> {
        if send.dtype != recv.dtype {
            return Err(
                self.refuse(format!("send holds {}, recv holds {}", send.dtype, recv.dtype))
            );
        }
        self.dtype(send.dtype)?;
        self.memory("send", send.ptr, send.count, send.dtype)?;
        self.memory("recv", recv.ptr, recv.count, recv.dtype)
    }

    #[inline(always)]
    fn dtype(&self, dtype: DType) -> Result<()> {
        let capabilities = self.rules.capabilities;
        match dtype {
            DType::Bf16 => self.require(capabilities.dtype_bf16, "bf16"),
            DType::F8E4M3 => self.require(capabilities.dtype_f8e4m3, "f8e4m3"),
            DType::F8E5M2 => self.require(capabilities.dtype_f8e5m2, "f8e5m2"),
            DType::I8
            | DType::U8
            | DType::I32
            | DType::U32
            | DType::I64
            | DType::U64
            | DType::F16
            | DType::F32
            | DType::F64 => Ok(()),
        }
    }

    /// Not null, aligned, inside the address space; anything without elements.
    #[inline(always)]
    fn memory(&self, name: &str, ptr: *const c_void, count: usize, dtype: DType) -> Result<()> {
        let aligned = is_aligned(ptr, dtype);
        if count == 0 || !ptr.is_null() && aligned && fits(ptr, count, dtype) {
            return Ok(());
        }
        Err(self.bad_memory(name, ptr, count, dtype))
    }

    #[cold]
    fn bad_memory(&self, name: &str, ptr: *const c_void, count: usize, dtype: DType) -> Error {
        self.refuse(if ptr.is_null() {
            format!("{name} is null, but holds {count} elements")
        } else if !is_aligned(ptr, dtype) {
            format!("{name} at {ptr:p} is not aligned to the {} bytes of {dtype}", dtype.size())
        } else {
            format!("{name} holds {count} elements of {dtype}, past the end of memory")
        })
    }

    /// A rank of the communicator that is not this one.
    fn another(&self, peer: Rank) -> Result<()> {
        self.in_range("peer", peer)?;
        if peer != self.rules.comm.rank {
            return Ok(());
        }
        Err(self.refuse(format!("peer is {peer}, this rank itself")))
    }

    /// `holds` elements must be `factor × each`.
    #[inline(always)]
    fn count(&self, name: &str, holds: usize, factor: usize, each: usize) -> Result<()> {
        match factor.checked_mul(each) {
            Some(want) if want == holds => Ok(()),
            want => Err(self.wrong_count(name, holds, factor, each, want)),
        }
    }

    #[cold]
    fn wrong_count(
        &self,
        name: &str,
        holds: usize,
        factor: usize,
        each: usize,
        want: Option<usize>,
    ) -> Error {
        let want = match want {
            Some(want) if factor == 1 => want.to_string(),
            Some(want) => format!("{factor} × {each} = {want}"),
            None => format!("{factor} × {each}"),
        };
        self.refuse(format!("{name} holds {holds} elements, want {want}"))
    }

    #[inline(always)]
    fn reduction(&self, op: ReduceOp, dtype: DType) -> Result<()> {
        let capabilities = self.rules.capabilities;
        if dtype.is_fp8() {
            self.require(capabilities.reduce_f8, "reduction of fp8")?;
        }
        match op {
            ReduceOp::Sum | ReduceOp::Prod | ReduceOp::Max | ReduceOp::Min => Ok(()),
            ReduceOp::Avg => self.require(capabilities.reduce_avg, "reduce op avg"),
            ReduceOp::PreMulSum(op) => {
                self.require(capabilities.reduce_pre_mul_sum, "reduce op premulsum")?;
                if op.comm() != self.rules.comm.id {
                    let text = "the reduce op belongs to another communicator";
                    return Err(self.refuse(text).with_hint("make one on this communicator"));
                }
                if op.dtype() != dtype {
                    return Err(self.refuse(format!(
                        "the reduce op's scalar is {}, the buffers hold {dtype}",
                        op.dtype()
                    )));
                }
                Ok(())
            }
        }
    }

    #[inline(always)]
    fn root(&self, root: Rank) -> Result<()> {
        self.in_range("root", root)
    }

    #[inline(always)]
    fn peer(&self, peer: Rank) -> Result<()> {
        self.in_range("peer", peer)
    }

    #[inline(always)]
    fn in_range(&self, name: &str, rank: Rank) -> Result<()> {
        if rank.index() < self.rules.comm.size {
            return Ok(());
        }
        Err(self.refuse(format!("{name} is {rank}, want 0 to {}", self.rules.comm.size - 1)))
    }

    #[inline]
    fn on_root<T>(&self, buffer: Option<T>, name: &str) -> Result<T> {
        buffer.ok_or_else(|| self.refuse(format!("this rank is root and gave no {name} buffer")))
    }

    /// Either `a == b`, the operation's in-place form, or no byte in common.
    #[inline(always)]
    fn in_place_or_apart(
        &self,
        send: SendBuf,
        recv: RecvBuf,
        a: *const c_void,
        b: *const c_void,
        form: &str,
    ) -> Result<()> {
        if std::ptr::addr_eq(a, b) || !overlap(send, recv) {
            return Ok(());
        }
        Err(self.overlapping(send, recv, &format!("apart, or {form}")))
    }

    #[inline(always)]
    fn apart(&self, send: SendBuf, recv: RecvBuf) -> Result<()> {
        if !overlap(send, recv) {
            return Ok(());
        }
        Err(self.overlapping(send, recv, "apart: this operation has no in-place form"))
    }

    #[cold]
    fn overlapping(&self, send: SendBuf, recv: RecvBuf, want: &str) -> Error {
        self.refuse(format!(
            "send ({} × {} at {:p}) and recv ({} × {} at {:p}) overlap, want them {want}",
            send.count, send.dtype, send.ptr, recv.count, recv.dtype, recv.ptr
        ))
    }

    #[inline(always)]
    fn require(&self, support: Support, what: &str) -> Result<()> {
        if support.is_available() {
            return Ok(());
        }
        support
            .require(what)
            .map_err(|error| error.with_comm(self.rules.comm).with_operation(self.operation))
    }

    #[cold]
    fn refuse(&self, message: impl Into<String>) -> Error {
        Error::new(ErrorKind::InvalidArgument, message)
            .with_comm(self.rules.comm)
            .with_operation(self.operation)
    }
}

/// Sizes are powers of two, and a division would cost as much as several other checks.
#[inline(always)]
fn is_aligned(ptr: *const c_void, dtype: DType) -> bool {
    ptr.addr() & (dtype.size() - 1) == 0
}

#[inline(always)]
fn fits(ptr: *const c_void, count: usize, dtype: DType) -> bool {
    let bytes = count.checked_mul(dtype.size()).filter(|&bytes| bytes <= isize::MAX as usize);
    bytes.is_some_and(|bytes| ptr.addr().checked_add(bytes).is_some())
}

/// Whether two non-empty ranges, already known to fit into memory, have a byte in common.
#[inline]
fn overlap(send: SendBuf, recv: RecvBuf) -> bool {
    let send_end = send.ptr.addr() + send.count * send.dtype.size();
    let recv_end = recv.ptr.addr() + recv.count * recv.dtype.size();
    send.count > 0 && recv.count > 0 && send.ptr.addr() < recv_end && recv.ptr.addr() < send_end
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LibraryInfo, PreMulSum, Version};

    fn comm(rank: u32, size: usize) -> CommInfo {
        let library = LibraryInfo {
            backend: "mock",
            path: None,
            version: Version::new(2, 32, 3),
            found_by: "built in".into(),
        };
        CommInfo::new(Rank::new(rank), size, rank as usize, None, library)
    }

    fn send(at: usize, count: usize) -> SendBuf {
        SendBuf::new(std::ptr::without_provenance(at), count, DType::F32)
    }

    fn recv(at: usize, count: usize) -> RecvBuf {
        RecvBuf::new(std::ptr::without_provenance_mut(at), count, DType::F32)
    }

    #[track_caller]
    fn refused(result: Result<Shape>, text: &str) {
        let error = result.expect_err("the rule must refuse");
        assert!(error.is_caller_bug(), "{error:?}");
        assert!(!error.poisons_communicator(), "{error:?}");
        assert_eq!(error.to_string(), text);
    }

    #[test]
    fn counts_must_fit_the_operation() {
        let comm = comm(2, 8);
        let rules = Rules::new(&comm, &Capabilities::FULL);
        refused(
            rules.all_gather(send(0x1000, 256), recv(0x9000, 1024)),
            "mock all_gather (rank 2 of 8): recv holds 1024 elements, want 8 × 256 = 2048",
        );
        refused(
            rules.all_reduce(send(0x1000, 4), recv(0x9000, 5), ReduceOp::Sum),
            "mock all_reduce (rank 2 of 8): recv holds 5 elements, want 4",
        );
        refused(
            rules.reduce_scatter(send(0x1000, 9), recv(0x9000, 1), ReduceOp::Sum),
            "mock reduce_scatter (rank 2 of 8): send holds 9 elements, want 8 × 1 = 8",
        );
        refused(
            rules.all_to_all(send(0x1000, 9), recv(0x9000, 9)),
            "mock all_to_all (rank 2 of 8): send holds 9 elements, want a multiple of the size 8",
        );
        refused(
            rules.all_reduce(send(0x1000, usize::MAX / 2), recv(0x9000, 1), ReduceOp::Sum),
            "mock all_reduce (rank 2 of 8): send holds 9223372036854775807 elements of f32, past \
             the end of memory",
        );
        let shape = rules.all_gather(send(0x1000, 2), recv(0x9000, 16)).unwrap();
        assert_eq!(shape, Shape { count: 2, dtype: DType::F32 });
    }

    #[test]
    fn colours_exclusions_and_sizes_are_checked() {
        #[track_caller]
        fn refused(result: Result<()>, text: &str) {
            let error = result.expect_err("the rule must refuse");
            assert!(error.is_caller_bug() && !error.poisons_communicator(), "{error:?}");
            assert_eq!(error.to_string(), text);
        }
        let comm = comm(1, 4);
        let rules = Rules::new(&comm, &Capabilities::FULL);
        let shrink = |ranks: &[u32]| {
            let exclude: Vec<Rank> = ranks.iter().copied().map(Rank::new).collect();
            rules.shrink(&ShrinkConfig::new(exclude))
        };
        refused(
            rules.split(&SplitConfig::new(1 << 31)),
            "mock split (rank 1 of 4): color is 2147483648, want at most 2147483647",
        );
        refused(
            shrink(&[]),
            "mock shrink (rank 1 of 4): no rank is excluded, want at least one; split with one \
             colour makes a communicator of the same ranks",
        );
        refused(shrink(&[0, 4]), "mock shrink (rank 1 of 4): an excluded rank is 4, want 0 to 3");
        refused(
            shrink(&[3, 1]),
            "mock shrink (rank 1 of 4): rank 1 excludes itself; only the ranks that stay call \
             shrink",
        );
        refused(shrink(&[3, 0, 3]), "mock shrink (rank 1 of 4): rank 3 is excluded twice");
        shrink(&[3, 0, 2]).unwrap();
        for size in [0, 3, 4] {
            refused(
                rules.grow(&GrowConfig::new(size)),
                &format!("mock grow (rank 1 of 4): size is {size}, want more than the 4 members"),
            );
        }
        rules.grow(&GrowConfig::new(5)).unwrap();
        rules.split(&SplitConfig::no_color()).unwrap();

        let none = Support::Unsupported { since: Some(Version::new(2, 29, 2)) };
        let old = Capabilities { grow: none, ..Capabilities::FULL };
        let error = Rules::new(&comm, &old).grow(&GrowConfig::new(5)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "mock grow (rank 1 of 4): this library has no grow; needs version 2.29.2 or newer"
        );
    }

    #[test]
    fn root_and_peer_must_be_in_the_communicator() {
        let comm = comm(0, 2);
        let rules = Rules::new(&comm, &Capabilities::FULL);
        refused(
            rules.broadcast(None, recv(0x1000, 1), Rank::new(2)),
            "mock broadcast (rank 0 of 2): root is 2, want 0 to 1",
        );
        refused(
            rules.send(send(0x1000, 1), Rank::new(7)),
            "mock send (rank 0 of 2): peer is 7, want 0 to 1",
        );
        refused(
            rules.broadcast(None, recv(0x1000, 1), Rank::new(0)),
            "mock broadcast (rank 0 of 2): this rank is root and gave no send buffer",
        );
        assert!(rules.broadcast(None, recv(0x1000, 1), Rank::new(1)).is_ok());
    }

    #[test]
    fn buffers_overlap_only_in_place() {
        let comm = comm(1, 2);
        let rules = Rules::new(&comm, &Capabilities::FULL);
        assert!(rules.all_reduce(send(0x1000, 8), recv(0x1000, 8), ReduceOp::Sum).is_ok());
        assert!(rules.all_reduce(send(0x1000, 8), recv(0x1020, 8), ReduceOp::Sum).is_ok());
        refused(
            rules.all_reduce(send(0x1000, 8), recv(0x1010, 8), ReduceOp::Sum),
            "mock all_reduce (rank 1 of 2): send (8 × f32 at 0x1000) and recv (8 × f32 at 0x1010) \
             overlap, want them apart, or recv at send",
        );
        assert!(rules.all_gather(send(0x1020, 8), recv(0x1000, 16)).is_ok());
        assert!(rules.all_gather(send(0x1000, 8), recv(0x1000, 16)).is_err());
        assert!(rules.reduce_scatter(send(0x1000, 16), recv(0x1020, 8), ReduceOp::Sum).is_ok());
        assert!(rules.reduce_scatter(send(0x1000, 16), recv(0x1000, 8), ReduceOp::Sum).is_err());
        assert!(rules.all_to_all(send(0x1000, 8), recv(0x1000, 8)).is_err());
    }

    #[test]
    fn null_and_misaligned_pointers_are_refused() {
        let comm = comm(0, 1);
        let rules = Rules::new(&comm, &Capabilities::FULL);
        refused(
            rules.all_reduce(send(0, 1), recv(0x1000, 1), ReduceOp::Sum),
            "mock all_reduce (rank 0 of 1): send is null, but holds 1 elements",
        );
        refused(
            rules.recv(recv(0x1002, 1), Rank::new(0)),
            "mock recv (rank 0 of 1): recv at 0x1002 is not aligned to the 4 bytes of f32",
        );
        assert!(rules.all_reduce(send(0, 0), recv(0, 0), ReduceOp::Sum).is_ok());
    }

    #[test]
    fn dtypes_must_agree() {
        let comm = comm(0, 2);
        let rules = Rules::new(&comm, &Capabilities::FULL);
        let half = RecvBuf::new(std::ptr::without_provenance_mut(0x9000), 4, DType::F16);
        refused(
            rules.all_reduce(send(0x1000, 4), half, ReduceOp::Sum),
            "mock all_reduce (rank 0 of 2): send holds f32, recv holds f16",
        );
    }

    #[test]
    fn a_pre_mul_sum_belongs_to_one_communicator_and_dtype() {
        let (ours, theirs) = (comm(0, 2), comm(0, 2));
        let rules = Rules::new(&ours, &Capabilities::FULL);
        let foreign = ReduceOp::PreMulSum(PreMulSum::from_parts(theirs.id, 0, DType::F32));
        refused(
            rules.all_reduce(send(0x1000, 4), recv(0x1000, 4), foreign),
            "mock all_reduce (rank 0 of 2): the reduce op belongs to another communicator; make one on \
             this communicator",
        );
        let other = ReduceOp::PreMulSum(PreMulSum::from_parts(ours.id, 0, DType::F16));
        refused(
            rules.all_reduce(send(0x1000, 4), recv(0x1000, 4), other),
            "mock all_reduce (rank 0 of 2): the reduce op's scalar is f16, the buffers hold f32",
        );
    }

    #[test]
    fn what_a_library_lacks_is_refused_with_the_version_that_has_it() {
        let comm = comm(0, 2);
        let capabilities = Capabilities {
            reduce_avg: Support::Unsupported { since: Some(Version::new(2, 10, 3)) },
            ..Capabilities::FULL
        };
        let rules = Rules::new(&comm, &capabilities);
        let error = rules.all_reduce(send(0x1000, 4), recv(0x1000, 4), ReduceOp::Avg).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(
            error.to_string(),
            "mock all_reduce (rank 0 of 2): this library has no reduce op avg; needs version \
             2.10.3 or newer"
        );
        assert!(rules.all_reduce(send(0x1000, 4), recv(0x1000, 4), ReduceOp::Sum).is_ok());
    }
}
