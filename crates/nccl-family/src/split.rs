//! Communicators that start from a communicator: split, shrink and grow.
//!
//! All are blocking and share no resources with the one that they come from, so that aborting one
//! leaves the others alone. The library is given an out pointer that outlives the call even if the
//! call is given up, since a non-blocking parent (`NCCL_COMM_BLOCKING=0`, or one that other code
//! made) has a thread of its own write to it.

use std::{
    ffi::{CStr, c_int},
    ptr,
    sync::Arc,
    time::{Duration, Instant},
};

use collectives_core::{
    CommConfig, Error, ErrorKind, GrowConfig, Rank, Result, ShrinkConfig, Split, SplitConfig,
    UniqueId, shape,
};
use collectives_nccl_abi::{ncclComm_t, ncclConfig_t, ncclResult_t, ncclUniqueId, types};

use crate::{
    Comm, Vendor,
    comm::c_name,
    config::Settings,
    error, group,
    join::{Out, poll},
    state::{Call, end_stray},
};

impl<V: Vendor> Split for Comm<V> {
    /// `ncclCommSplit` (2.18.1).
    fn split(&self, config: SplitConfig) -> Result<Option<Self>> {
        const OPERATION: &str = "split";
        self.rules().split(&config)?;
        let call = self.line.enter(OPERATION)?;
        let split = self.function(OPERATION, self.table.comm_split)?;
        let color = match config.color {
            None => types::NCCL_SPLIT_NOCOLOR,
            // Checked to fit.
            Some(color) => color as c_int,
        };
        let making = Making::begin(self, OPERATION, call, config.name, config.config)?;
        let mut raw_config = making.config();
        let (raw, child) = (self.line.raw(), making.out.as_ptr());
        // SAFETY: inside a call, so the communicator is not freed; out pointer and configuration
        // outlive the call, and the name outlives the new communicator, which keeps it.
        let result = unsafe { split(raw, color, config.key, child, &mut raw_config) };
        if color == types::NCCL_SPLIT_NOCOLOR && making.out.get().is_null() {
            return self.answer(OPERATION, result).map(|()| None);
        }
        making.end(self.answer(OPERATION, result)).map(Some)
    }

    /// `ncclCommShrink` (2.27.3), which sorts the list that it is given: a copy.
    fn shrink(&self, config: ShrinkConfig) -> Result<Self> {
        const OPERATION: &str = "shrink";
        self.rules().shrink(&config)?;
        let call = self.line.enter_revoked(OPERATION)?;
        let shrink = self.function(OPERATION, self.table.comm_shrink)?;
        if !config.abort
            && !self.line.is_revoked()
            && let Some(failure) = self.line.poll()
        {
            let failure = failure.with_operation(OPERATION);
            return Err(failure.with_hint("revoke the communicator first, or shrink with abort"));
        }
        let making = Making::begin(self, OPERATION, call, config.name, config.config)?;
        let mut excluded: Vec<c_int> =
            config.exclude.iter().map(|rank| rank.get() as c_int).collect();
        let flags = match config.abort {
            true => types::NCCL_SHRINK_ABORT,
            false => types::NCCL_SHRINK_DEFAULT,
        };
        if config.abort {
            self.line.drain();
        }
        let mut raw_config = making.config();
        let (raw, child) = (self.line.raw(), making.out.as_ptr());
        let (list, count) = (excluded.as_mut_ptr(), excluded.len() as c_int);
        // SAFETY: inside a call, so the communicator is not freed, nor is it null; the list is as
        // long as said, and the library copies it; the rest as in `split`.
        let result = unsafe { shrink(raw, list, count, child, &mut raw_config, flags) };
        making.end(self.answer(OPERATION, result)).map_err(|error| match error.kind() {
            // Of the parent (`ncclCommEnsureReady`), which neither an abort nor a revoke wipes out.
            ErrorKind::Remote => error.with_hint(
                "the network has noticed the loss, and the library shrinks nothing after that: abort \
                 the communicator, and join a new one without the lost ranks",
            ),
            _ => error,
        })
    }

    /// `ncclCommGrow` (2.29.2), as a member: with rank −1, and the id if this rank made it.
    fn grow(&self, config: GrowConfig) -> Result<Self> {
        const OPERATION: &str = "grow";
        self.rules().grow(&config)?;
        let call = self.line.enter(OPERATION)?;
        let grow = self.function(OPERATION, self.table.comm_grow)?;
        let making = Making::begin(self, OPERATION, call, config.name, config.config)?;
        let id = self.grow_id.take();
        if id.is_none() && self.line.info().size == 1 {
            let error = Error::new(ErrorKind::InvalidUsage, "no id was made for the new ranks");
            return Err(self.refuse(OPERATION, error.with_hint("call grow_id first")));
        }
        let id = id.as_ref().map_or(ptr::null(), ptr::from_ref);
        let mut raw_config = making.config();
        let (raw, child) = (self.line.raw(), making.out.as_ptr());
        let size = config.size as c_int;
        // SAFETY: inside a call, so the communicator is not freed; the id is null or outlives the
        // call; the rest as in `split`.
        let mut result = unsafe { grow(raw, size, id, -1, child, &mut raw_config) };
        if result == ncclResult_t::IN_PROGRESS && !making.out.get().is_null() {
            // Unlike a split, growing is polled on the new communicator, which is there at once.
            result = making.wait();
        }
        making.end(self.answer(OPERATION, result))
    }
}

impl<V: Vendor> Comm<V> {
    /// See [`Collectives::grow_id`](collectives_core::Collectives::grow_id): `ncclCommGetUniqueId` (2.29.2), kept for the call to grow.
    pub(crate) fn make_grow_id(&self) -> Result<UniqueId> {
        const OPERATION: &str = "grow_id";
        let support = self.capabilities.grow.require("grow");
        support.map_err(|error| self.refuse(OPERATION, error))?;
        let _call = self.line.enter(OPERATION)?;
        let get_unique_id = self.function(OPERATION, self.table.comm_get_unique_id)?;
        if self.grow_id.get().is_some() {
            let message = "the id that this rank made before is not used up";
            let error = Error::new(ErrorKind::InvalidUsage, message);
            return Err(self.refuse(OPERATION, error.with_hint("grow with it first")));
        }
        let mut id = ncclUniqueId::ZERO;
        // SAFETY: inside a call, so the communicator is not freed; `id` outlives the call.
        let result = unsafe { get_unique_id(self.line.raw(), &mut id) };
        self.answer(OPERATION, result)?;
        self.grow_id.set(Some(id));
        Ok(UniqueId::from(id.internal))
    }

    fn rules(&self) -> shape::Rules<'_> {
        shape::Rules::new(self.line.info(), &self.capabilities)
    }

    /// Rank and size of a communicator that was just made.
    ///
    /// # Safety
    /// It is alive.
    unsafe fn place_of(&self, operation: &'static str, raw: ncclComm_t) -> Result<(Rank, usize)> {
        let mut answers = [0; 2];
        let questions = [self.table.comm_user_rank, self.table.comm_count];
        for (answer, question) in answers.iter_mut().zip(questions) {
            let question = self.function(operation, question)?;
            // SAFETY: the caller promises a live communicator; `answer` outlives the call.
            let result = unsafe { question(raw, answer) };
            if !result.is_success() {
                // This communicator had no part in it.
                let error = error::from_result(self.line.library(), result).with_poison(false);
                return Err(self.refuse(operation, error));
            }
        }
        match answers.map(u32::try_from) {
            [Ok(rank), Ok(size)] if rank < size => Ok((Rank::new(rank), size as usize)),
            _ => {
                let [rank, size] = answers;
                let message = format!("the new communicator calls itself rank {rank} of {size}");
                Err(self.refuse(operation, error::broken_promise(message)))
            }
        }
    }
}

/// A communicator that is being made.
struct Making<'a, V: Vendor> {
    parent: &'a Comm<V>,
    operation: &'static str,
    name: Option<Arc<CStr>>,
    settings: Settings,
    out: Out,
    _call: Call<'a>,
}

impl<'a, V: Vendor> Making<'a, V> {
    /// Checks what all ways of making one want, and makes the device current.
    fn begin(
        parent: &'a Comm<V>,
        operation: &'static str,
        call: Call<'a>,
        name: Option<String>,
        config: CommConfig,
    ) -> Result<Self> {
        if group::is_open(parent.line.library()) {
            let error = Error::new(ErrorKind::InvalidUsage, "a group is open on this thread")
                .with_hint(format!("{operation} outside of groups"));
            return Err(parent.refuse(operation, error));
        }
        let name = c_name(name).map_err(|error| parent.refuse(operation, error))?;
        let code = parent.line.library().version();
        let settings = Settings::new(config, code, &parent.capabilities);
        let settings = settings.map_err(|error| parent.refuse(operation, error))?;
        parent.bind_device(operation)?;
        Ok(Self { parent, operation, name, settings, out: Out::new(), _call: call })
    }

    fn config(&self) -> ncclConfig_t {
        let mut config = ncclConfig_t::for_version(self.parent.line.library().version());
        config.blocking = 1;
        config.splitShare = 0;
        config.shrinkShare = 0;
        self.settings.write(&mut config);
        config.commName = self.name.as_deref().map_or(ptr::null(), |name| name.as_ptr());
        config
    }

    /// Waits for the new communicator itself, unless the one that it comes from is aborted: then it is
    /// ended, and in progress for ever.
    fn wait(&self) -> ncclResult_t {
        let Self { parent, name, out, .. } = self;
        loop {
            // SAFETY: the communicator is ours.
            let outcome = unsafe { poll(parent.table, out.get(), Some(Instant::now() + LOOK)) };
            match outcome {
                Some(outcome) => return outcome,
                None if parent.line.is_alive() => {}
                None => break,
            }
        }
        if let Some(abort) = parent.table.comm_abort {
            end_stray(out.get(), abort, (V::make_current, parent.line.info().device), name.clone());
        }
        ncclResult_t::IN_PROGRESS
    }

    /// Takes the new communicator over, or ends it where the call failed.
    fn end(self, outcome: Result<()>) -> Result<Comm<V>> {
        let Self { parent, operation, name, settings: _, out, _call } = self;
        let raw = out.get();
        let outcome = match outcome {
            Err(error) if !parent.line.is_alive() => {
                // Given up in the midst of it: the library may work on it yet.
                out.leave_to_the_library();
                return Err(error);
            }
            outcome => outcome,
        };
        if raw.is_null() {
            outcome?;
            let error = error::broken_promise("it answered success and no communicator");
            return Err(parent.refuse(operation, error));
        }
        let device = parent.line.info().device;
        // SAFETY: a live communicator that nobody else knows.
        match outcome.and_then(|()| unsafe { parent.place_of(operation, raw) }) {
            Ok((rank, size)) => {
                let place = (rank, size, device);
                Ok(Comm::new(parent.library.clone(), raw, place, name, None))
            }
            Err(error) => {
                if let Some(abort) = parent.table.comm_abort {
                    end_stray(raw, abort, (V::make_current, device), name);
                }
                Err(error)
            }
        }
    }
}

/// How often somebody who waits for a new communicator looks whether that is still wanted.
const LOOK: Duration = Duration::from_millis(20);
