//! What is alive, and where it was made: a list beside the engine, for whoever looks for leaks.

use std::{collections::BTreeMap, fmt, panic::Location, sync::Mutex};

use collectives_core::{CommInfo, Result};

use crate::{error::misuse, sync::lock};

/// Everything that the users of a [`Mock`](crate::Mock) have made and not given back, in the order
/// in which it was made. See [`Mock::alive`](crate::Mock::alive).
///
/// `Display` is the report, a line for each.
#[derive(Clone, Debug)]
pub struct Alive(Vec<AliveThing>);

/// One thing that is alive.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AliveThing {
    /// What it is.
    pub kind: AliveKind,
    /// The rank's end of a communicator that it is, or belongs to.
    pub communicator: Option<String>,
    /// The device that it belongs to.
    pub device: usize,
    /// The size of memory.
    pub bytes: Option<usize>,
    /// Where in the program the call stands that made it. Through `dyn Collectives`, where the
    /// caller cannot be seen, a place in this crate.
    pub site: &'static Location<'static>,
}

/// What can be leaked.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum AliveKind {
    /// Memory of a device, or of a communicator.
    Buffer,
    /// One rank's end of a communicator.
    Communicator,
    /// An event.
    Event,
    /// A graph.
    Graph,
    /// A PreMulSum operator; gone with its communicator.
    ReduceOp,
    /// Registered memory; gone with its communicator.
    Registration,
    /// A stream.
    Stream,
    /// A window; gone with its communicator.
    Window,
}

impl Alive {
    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Everything, in the order in which it was made.
    pub fn things(&self) -> &[AliveThing] {
        &self.0
    }

    /// Number of things of this kind.
    pub fn count(&self, kind: AliveKind) -> usize {
        self.0.iter().filter(|thing| thing.kind == kind).count()
    }

    /// Fails unless nothing is alive.
    pub(crate) fn check(&self) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let mut lines: Vec<_> = self.0.iter().take(LISTED).map(ToString::to_string).collect();
        if self.0.len() > LISTED {
            lines.push(format!("and {} more", self.0.len() - LISTED));
        }
        Err(misuse(format!("{}: {}", self.heading(), lines.join("; ")))
            .with_operation("check_leaks")
            .with_hint("drop or destroy what was made before the mock is looked at"))
    }

    fn heading(&self) -> String {
        match self.0.len() {
            0 => "nothing is alive".into(),
            1 => "1 thing is alive".into(),
            many => format!("{many} things are alive"),
        }
    }
}

impl fmt::Display for Alive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.heading())?;
        self.0.iter().try_for_each(|thing| write!(f, "\n  {thing}"))
    }
}

impl fmt::Display for AliveThing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(f)?;
        if let Some(bytes) = self.bytes {
            write!(f, " of {bytes} bytes")?;
        }
        match (&self.communicator, self.kind) {
            (Some(name), AliveKind::Communicator) => write!(f, " {name}")?,
            (Some(name), _) => write!(f, " of communicator {name}")?,
            (None, _) => {}
        }
        write!(f, " on device {}, made at {}", self.device, self.site)
    }
}

impl fmt::Display for AliveKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Buffer => "buffer",
            Self::Communicator => "communicator",
            Self::Event => "event",
            Self::Graph => "graph",
            Self::ReduceOp => "reduce op",
            Self::Registration => "registration",
            Self::Stream => "stream",
            Self::Window => "window",
        })
    }
}

/// The list of one engine.
#[derive(Default)]
pub(crate) struct Ledger(Mutex<Entries>);

#[derive(Default)]
struct Entries {
    /// By kind, the communicator's end that it belongs to (or 0), and its handle.
    things: BTreeMap<(AliveKind, u64, usize), (u64, AliveThing)>,
    made: u64,
}

impl Ledger {
    /// Something of a device, known by its handle.
    #[track_caller]
    pub(crate) fn add(&self, kind: AliveKind, handle: usize, device: usize, bytes: Option<usize>) {
        let site = Location::caller();
        let thing = AliveThing { kind, communicator: None, device, bytes, site };
        self.insert((kind, 0, handle), thing);
    }

    /// Something of a communicator's end.
    #[track_caller]
    pub(crate) fn add_of(
        &self,
        kind: AliveKind,
        handle: usize,
        of: &CommInfo,
        bytes: Option<usize>,
    ) {
        self.add_at(kind, handle, of, bytes, Location::caller());
    }

    /// A communicator's end, made elsewhere.
    pub(crate) fn add_comm(&self, of: &CommInfo, site: &'static Location<'static>) {
        self.add_at(AliveKind::Communicator, 0, of, None, site);
    }

    fn add_at(
        &self,
        kind: AliveKind,
        handle: usize,
        of: &CommInfo,
        bytes: Option<usize>,
        site: &'static Location<'static>,
    ) {
        let place = format!("(rank {} of {})", of.rank, of.size);
        let communicator = Some(match &of.name {
            Some(name) => format!("'{name}' {place}"),
            None => place,
        });
        let thing = AliveThing { kind, communicator, device: of.device, bytes, site };
        self.insert((kind, of.id.get(), handle), thing);
    }

    fn insert(&self, key: (AliveKind, u64, usize), thing: AliveThing) {
        let mut entries = lock(&self.0);
        entries.made += 1;
        let number = entries.made;
        entries.things.insert(key, (number, thing));
    }

    /// Something of a device is gone.
    pub(crate) fn remove(&self, kind: AliveKind, handle: usize) {
        lock(&self.0).things.remove(&(kind, 0, handle));
    }

    /// Something of a communicator's end is gone.
    pub(crate) fn remove_of(&self, kind: AliveKind, handle: usize, of: &CommInfo) {
        lock(&self.0).things.remove(&(kind, of.id.get(), handle));
    }

    /// A communicator's end is gone, and with it what belongs to it alone.
    pub(crate) fn remove_comm(&self, of: &CommInfo) {
        let of = of.id.get();
        lock(&self.0).things.retain(|&(_, owner, _), _| owner != of);
    }

    pub(crate) fn alive(&self) -> Alive {
        let mut things: Vec<_> = lock(&self.0).things.values().cloned().collect();
        things.sort_unstable_by_key(|(number, _)| *number);
        Alive(things.into_iter().map(|(_, thing)| thing).collect())
    }
}

/// Things that the error of a check lists.
const LISTED: usize = 16;
