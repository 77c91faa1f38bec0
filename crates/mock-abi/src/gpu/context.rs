//! Contexts: each device has a primary one, programs may make more, and each thread has a stack of
//! them. Only their device means anything here.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use super::{
    Code, Reply,
    device::{Face, Seat, seat},
    lock,
};
use crate::runtime;

/// A context's handle. It says which device it belongs to, so nothing has to be looked up for that.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Context(usize);

thread_local! {
    /// The last is current, where it was alive at that time.
    static STACK: RefCell<Vec<(Context, u64)>> = const { RefCell::new(Vec::new()) };
}

/// Contexts that are alive: those that programs made, and primary ones with their owners.
static MADE: Mutex<BTreeSet<Context>> = Mutex::new(BTreeSet::new());
static PRIMARY: Mutex<BTreeMap<usize, Primary>> = Mutex::new(BTreeMap::new());
/// Changes whenever a context dies.
static EPOCH: AtomicU64 = AtomicU64::new(0);
/// Whether `cuInit` was called.
static IS_INITIALIZED: AtomicBool = AtomicBool::new(false);

#[derive(Default)]
struct Primary {
    owners: usize,
    flags: u32,
    /// Whether a runtime owns it, which never lets go.
    is_kept: bool,
}

impl Context {
    fn new(serial: usize, device: usize) -> Self {
        Self(TAG | serial << 16 | device)
    }

    pub(crate) fn primary(device: usize) -> Self {
        Self::new(0, device)
    }

    /// The context behind a handle, dead or alive.
    pub(crate) fn from_bits(bits: usize) -> Reply<Self> {
        let context = Self(bits);
        if bits & TAG_MASK != TAG || seat(context.device()).is_err() {
            return Err(Code::INVALID_CONTEXT);
        }
        Ok(context)
    }

    pub(crate) fn bits(self) -> usize {
        self.0
    }

    /// The machine's number of its device.
    pub(crate) fn device(self) -> usize {
        self.0 & 0xffff
    }

    pub(crate) fn seat(self) -> Reply<&'static Seat> {
        seat(self.device())
    }

    fn is_primary(self) -> bool {
        self == Self::primary(self.device())
    }

    pub(crate) fn is_alive(self) -> bool {
        if self.is_primary() {
            let primary = lock(&PRIMARY);
            return primary.get(&self.device()).is_some_and(|primary| primary.owners > 0);
        }
        lock(&MADE).contains(&self)
    }

    fn check(self) -> Reply<Self> {
        if self.is_alive() { Ok(self) } else { Err(Code::CONTEXT_IS_DESTROYED) }
    }
}

/// `cuInit`.
pub(crate) fn initialize() -> Reply {
    Face::Cuda.count()?;
    IS_INITIALIZED.store(true, Ordering::Release);
    Ok(())
}

/// What every function of the driver checks first.
pub(crate) fn initialized() -> Reply {
    if IS_INITIALIZED.load(Ordering::Acquire) { Ok(()) } else { Err(Code::NOT_INITIALIZED) }
}

/// The thread's context, dead or alive.
pub(crate) fn current() -> Option<Context> {
    STACK.with_borrow(|stack| stack.last().map(|&(context, _)| context))
}

/// The thread's context.
///
/// # Errors
/// Where it has none, or that was destroyed.
pub(crate) fn require() -> Reply<Context> {
    let epoch = EPOCH.load(Ordering::Acquire);
    STACK.with_borrow_mut(|stack| {
        let (context, known) = stack.last_mut().ok_or(Code::INVALID_CONTEXT)?;
        if *known != epoch {
            context.check()?;
            *known = epoch;
        }
        Ok(*context)
    })
}

/// The thread's context; where it has none, the primary one of its device, as the runtimes do.
pub(crate) fn ensure(face: Face) -> Reply<Context> {
    if let Ok(context) = require() {
        return Ok(context);
    }
    let visible = face.visible()?;
    let first = *visible.first().ok_or(Code::NO_DEVICE)?;
    let chosen = runtime::current_device();
    choose(if visible.contains(&chosen) { chosen } else { first })
}

/// Makes the primary context of a device the thread's: `cudaSetDevice`.
pub(crate) fn choose(device: usize) -> Reply<Context> {
    let context = Context::primary(device);
    context.seat()?;
    let mut primary = lock(&PRIMARY);
    let primary = primary.entry(device).or_default();
    if !std::mem::replace(&mut primary.is_kept, true) {
        primary.owners += 1;
    }
    replace(Some(context));
    Ok(context)
}

/// `cuCtxSetCurrent`; nothing pops.
pub(crate) fn set_current(context: Option<Context>) -> Reply {
    if let Some(context) = context {
        context.check()?;
    }
    replace(context);
    Ok(())
}

pub(crate) fn push(context: Context) -> Reply {
    context.check()?;
    STACK.with_borrow_mut(|stack| stack.push((context, EPOCH.load(Ordering::Acquire))));
    runtime::set_current_device(context.device());
    Ok(())
}

pub(crate) fn pop() -> Reply<Context> {
    let popped = STACK.with_borrow_mut(Vec::pop).ok_or(Code::INVALID_CONTEXT)?.0;
    if let Some(context) = current() {
        runtime::set_current_device(context.device());
    }
    Ok(popped)
}

fn replace(context: Option<Context>) {
    let epoch = EPOCH.load(Ordering::Acquire);
    STACK.with_borrow_mut(|stack| {
        stack.pop();
        stack.extend(context.map(|context| (context, epoch)));
    });
    if let Some(context) = current() {
        runtime::set_current_device(context.device());
    }
}

/// `cuDevicePrimaryCtxRetain`.
pub(crate) fn retain_primary(device: usize) -> Reply<Context> {
    let context = Context::primary(device);
    context.seat()?;
    lock(&PRIMARY).entry(device).or_default().owners += 1;
    runtime::note_device_use();
    Ok(context)
}

/// `cuDevicePrimaryCtxRelease`. What was made in the context lives on, other than with the driver:
/// who wants it gone gives it back.
pub(crate) fn release_primary(device: usize) -> Reply {
    let mut primary = lock(&PRIMARY);
    let owners = primary.get_mut(&device).map(|primary| &mut primary.owners);
    let owners = owners.filter(|owners| **owners > 0).ok_or(Code::INVALID_CONTEXT)?;
    *owners -= 1;
    if *owners == 0 {
        EPOCH.fetch_add(1, Ordering::AcqRel);
    }
    Ok(())
}

/// Flags of a device's primary context, and whether anybody owns it.
pub(crate) fn primary_state(device: usize) -> (u32, bool) {
    let primary = lock(&PRIMARY);
    primary.get(&device).map_or((0, false), |primary| (primary.flags, primary.owners > 0))
}

pub(crate) fn set_primary_flags(device: usize, flags: u32) {
    lock(&PRIMARY).entry(device).or_default().flags = flags;
}

/// `cuCtxCreate`: the new one is current.
pub(crate) fn create(device: usize) -> Reply<Context> {
    static SERIAL: AtomicUsize = AtomicUsize::new(1);
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let context = Context::new(serial & SERIAL_MASK, device);
    context.seat()?;
    lock(&MADE).insert(context);
    push(context)?;
    Ok(context)
}

/// `cuCtxDestroy`: pops it where it is current.
pub(crate) fn destroy(context: Context) -> Reply {
    if !lock(&MADE).remove(&context) {
        return Err(Code::INVALID_CONTEXT);
    }
    EPOCH.fetch_add(1, Ordering::AcqRel);
    if current() == Some(context) {
        pop()?;
    }
    Ok(())
}

/// Tells contexts from other numbers.
const TAG: usize = 0x0c7c << 48;
const TAG_MASK: usize = 0xffff << 48;
const SERIAL_MASK: usize = 0xffff_ffff;
