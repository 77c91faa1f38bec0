//! Operations that start together, or not at all.

use std::{cell::RefCell, fmt, panic::Location, time::Duration};

use collectives_core::{
    CallConfig, Collectives, Device, Element, Error, ErrorKind, Rank, RecvBuf, Result,
};

use crate::{
    AnyComm, Communicator, Op, Slice, SliceMut, Stream,
    graph::refuse_in_capture,
    operation::{Call, Operation, operations},
    place::Locked,
};

/// Collects operations, of one or several communicators, and starts them together.
///
/// Nothing is enqueued before `body` returns. If it returns an error or unwinds, or any call in it
/// was refused, nothing is launched and the communicators work as before. The buffers stay borrowed
/// until the group is closed; their lengths are checked then.
///
/// One thread that drives several ranks needs a group for every collective, since each rank's call
/// would otherwise wait for the others:
///
/// ```
/// use collectives::{Communicator, JoinAllConfig, ReduceOp, backend_named, group};
/// # fn main() -> collectives::Result<()> {
/// let backend = backend_named("mock")?;
/// let comms = Communicator::join_all(&backend, JoinAllConfig::new([0, 1]))?;
/// let streams = [comms[0].new_stream()?, comms[1].new_stream()?];
/// let mut a = streams[0].upload(&[1_i32])?;
/// let mut b = streams[1].upload(&[2_i32])?;
/// group(|g| {
///     g.on(&comms[0], &streams[0]).all_reduce_in_place(&mut a, ReduceOp::Sum)?;
///     g.on(&comms[1], &streams[1]).all_reduce_in_place(&mut b, ReduceOp::Sum)
/// })?;
/// assert_eq!(a.to_vec(&streams[0])?, [3]);
/// assert_eq!(b.to_vec(&streams[1])?, [3]);
/// # Ok(()) }
/// ```
///
/// # Errors
/// The error of `body`; else the first refusal; else what the library reports.
#[doc(alias = "ncclGroupStart")]
#[doc(alias = "ncclGroupEnd")]
pub fn group<'env, R>(body: impl FnOnce(&Group<'env>) -> Result<R>) -> Result<R> {
    run(body)
}

/// Tells how long a [`group`] would take, as far as the library can say, and launches nothing: NCCL
/// 2.22.3 and later. The mock cannot say. Messages to ranks that were not met before do not count.
///
/// # Errors
/// [`Unsupported`](ErrorKind::Unsupported) by capability; as [`group`].
#[doc(alias = "ncclGroupSimulateEnd")]
pub fn simulate<'env>(body: impl FnOnce(&Group<'env>) -> Result<()>) -> Result<Option<Duration>> {
    let ((), records) = collect(body)?;
    // SAFETY: nothing is launched that could use what the records name.
    unsafe { issue(&records, |library| library.group_simulate()) }.map(Option::flatten)
}

/// An open [`group`].
#[derive(Debug)]
pub struct Group<'env> {
    records: Records<'env>,
}

impl<'env> Group<'env> {
    /// Operations of `comm`, to be enqueued on `stream` when the group closes.
    pub fn on<'scope>(
        &'scope self,
        comm: &'env Communicator,
        stream: &'env Stream,
    ) -> Recorder<'scope, 'env> {
        Recorder { records: &self.records, comm, stream, config: None }
    }
}

/// The operations of a communicator, recorded for the close of a group.
#[derive(Clone, Copy, Debug)]
pub struct Recorder<'scope, 'env> {
    records: &'scope Records<'env>,
    comm: &'env Communicator,
    stream: &'env Stream,
    config: Option<&'env CallConfig>,
}

impl<'env> Recorder<'_, 'env> {
    /// As [`On::with_config`](crate::On::with_config). The collectives of a group have one cluster
    /// size.
    #[must_use]
    pub const fn with_config(mut self, config: &'env CallConfig) -> Self {
        self.config = Some(config);
        self
    }

    operations!(self, 'env, []);

    fn comm(&self) -> &'env Communicator {
        self.comm
    }

    fn submit(&self, operation: Operation<'env>) -> Result<()> {
        let Self { records, comm, stream, .. } = *self;
        let checked = comm.same_place(stream).and_then(|()| comm.same_places(&operation));
        records.refusal.noting(checked.map_err(|error| operation.refused(error)))?;
        records.list.borrow_mut().push(Record { comm, stream, operation });
        Ok(())
    }
}

/// Operations in the order of their calls, and whether any was refused.
#[derive(Default)]
struct Records<'env> {
    list: RefCell<Vec<Record<'env>>>,
    refusal: Refusal,
}

/// The first refusal in a group or capture, which drops all of it even if the caller ignores it.
#[derive(Debug, Default)]
pub(crate) struct Refusal(RefCell<Option<String>>);

impl Refusal {
    /// Hands an outcome on, and remembers if it is the first refusal.
    pub(crate) fn noting<R>(&self, outcome: Result<R>) -> Result<R> {
        if let Err(error) = &outcome {
            self.0.borrow_mut().get_or_insert_with(|| error.to_string());
        }
        outcome
    }

    /// Refuses the whole; `undone` says what therefore was not done.
    pub(crate) fn check(&self, operation: &'static str, undone: &str) -> Result<()> {
        self.0.take().map_or(Ok(()), |refusal| {
            let text = format!("a call was refused, so nothing was {undone}: {refusal}");
            Err(Error::new(ErrorKind::InvalidUsage, text).with_operation(operation))
        })
    }
}

impl fmt::Debug for Records<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} operations", self.list.borrow().len())
    }
}

/// An operation to be issued when its group closes.
struct Record<'env> {
    comm: &'env Communicator,
    stream: &'env Stream,
    operation: Operation<'env>,
}

/// Collects what `body` calls, and refuses it all if one call was refused.
fn collect<'env, R>(
    body: impl FnOnce(&Group<'env>) -> Result<R>,
) -> Result<(R, Vec<Record<'env>>)> {
    let group = Group { records: Records::default() };
    let value = body(&group)?;
    group.records.refusal.check("group", "launched")?;
    Ok((value, group.records.list.take()))
}

/// Collects a group and enqueues it.
fn run<'env, R>(body: impl FnOnce(&Group<'env>) -> Result<R>) -> Result<R> {
    refuse_in_capture("group")?;
    let (value, records) = collect(body)?;
    records.iter().try_for_each(|record| record.stream.not_captured_by_others("group"))?;
    let order = || {
        records.iter().try_for_each(|Record { operation, stream, .. }| {
            operation.memory.iter().flatten().try_for_each(|memory| memory.order(stream))
        })
    };
    let shared = records.iter().filter_map(|Record { operation, stream, .. }| {
        let shared = operation.memory.iter().flatten().any(|memory| memory.is_shared());
        shared.then(|| stream.place())
    });
    let _locked = Locked::new(shared);
    order()?;
    let expect = |Record { comm, stream, operation }: &Record<'_>| {
        comm.inner().expect(stream, operation.call.name(), operation.site)
    };
    let numbers: Vec<_> = records.iter().map(expect).collect();
    // SAFETY: as for an operation enqueued alone; the order above holds for each stream, and the
    // borrows of 'env kept every argument until here.
    let issued = unsafe { issue(&records, |library| library.group_end()) };
    for (Record { comm, stream, .. }, number) in records.iter().zip(numbers) {
        comm.inner().expected(stream, number, issued.is_ok());
    }
    // A buffer that the group read on two streams was last used on both: once more, so that its
    // last stream follows all the others.
    if let Err(error) = order() {
        // Unordered, it must not be used or freed before all of them are done.
        for Record { stream, .. } in &records {
            // SAFETY: the stream is alive, and of this device.
            drop(unsafe { stream.device().synchronize(stream.as_raw(), None) });
        }
        return Err(error);
    }
    issued?;
    for Record { comm, operation, .. } in &records {
        comm.inner().connected(operation.call.makes());
    }
    Ok(value)
}

/// Collects a group and captures it, on the stream that is being captured. What it used is handed
/// to `keep`.
pub(crate) fn capture<'env, R>(
    body: impl FnOnce(&Group<'env>) -> Result<R>,
    mut keep: impl FnMut(&Communicator, &Operation<'_>) -> Result<()>,
) -> Result<R> {
    let (value, records) = collect(body)?;
    records.iter().try_for_each(|Record { comm, operation, .. }| keep(comm, operation))?;
    // SAFETY: all that the records use is kept by the graph, whose launches are ordered.
    unsafe { issue(&records, |library| library.group_end()) }?;
    Ok(value)
}

/// A group of one library collects nothing for another, nor one copy of it for another copy.
#[cold]
fn another_library(first: &Communicator, stranger: &Communicator) -> Error {
    let opened = &first.info().library;
    let path =
        opened.path.as_deref().map_or_else(String::new, |path| format!(" {}", path.display()));
    Error::new(
        ErrorKind::InvalidUsage,
        format!("the group is one of {}{path}, this communicator is of another", opened.backend),
    )
    .with_comm(stranger.info())
    .with_operation("group")
    .with_hint("use one group for each library")
}

/// Issues records inside a group of the library, which `end` ends. `None` where there are none.
///
/// # Safety
/// As [`Operation::issue`], for each record, if `end` launches them.
unsafe fn issue<R>(
    records: &[Record<'_>],
    end: impl FnOnce(&AnyComm) -> Result<R>,
) -> Result<Option<R>> {
    let Some(first) = records.first() else { return Ok(None) };
    // Of every library: one whose group is open would take the calls of its communicators, and start
    // them when that ends, which is when the buffers may be gone.
    records.iter().try_for_each(|record| record.comm.not_in_raw_group())?;
    let library = first.comm.as_comm();
    library.group_start()?;
    if let Some(stranger) = records.iter().find(|record| !record.comm.as_comm().in_group()) {
        library.group_end()?;
        return Err(another_library(first.comm, stranger.comm));
    }
    let issued = records.iter().try_for_each(|Record { comm, stream, operation }| {
        // SAFETY: the caller's promise, handed on as it is.
        unsafe { operation.issue(comm.as_comm(), stream) }.map_err(|error| operation.refused(error))
    });
    // After a refusal this drops what was collected.
    let ended = end(library);
    issued.and(ended).map(Some)
}
