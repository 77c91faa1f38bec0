//! The mock as a library: what makes ids, communicators and devices.

use std::{
    env,
    ffi::c_void,
    panic::Location,
    str::FromStr,
    sync::{Arc, OnceLock},
};

use collectives_core::{
    Backend, Capabilities, Error, GroupEnd, JoinAllConfig, JoinConfig, LibraryInfo, Rank, Result,
    UniqueId, Version, shape,
};

use crate::{
    Alive, FaultPlan, Guards, MockComm, MockDevice, PendingJoin, PendingOp, Schedule, Verdict,
    engine::{Engine, Seat},
    error::{BACKEND, invalid, misuse, refuse},
    fork, gather, group,
    process::peer::Token,
};

/// One machine of fake devices. Clones are the same machine; another [`new`](Self::new) is another.
#[derive(Clone, Debug)]
pub struct Mock {
    pub(crate) engine: Arc<Engine>,
}

/// How a [`Mock`] is made.
///
/// ```
/// use collectives_backend_mock::{Accumulation, MockConfig};
/// let config = MockConfig::new().with_devices(2).with_accumulation(Accumulation::F32);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct MockConfig {
    /// Number of devices; 8 unless set.
    pub devices: usize,
    /// Memory of each device in bytes; 16 GiB unless set. Host memory is taken only as it is used.
    pub device_memory: usize,
    /// How small floats are reduced.
    pub accumulation: Accumulation,
    /// When work runs that could run.
    pub schedule: Schedule,
    /// What is watched of the buffers that operations work on.
    pub guards: Guards,
    /// What shall go wrong.
    pub faults: FaultPlan,
    /// What ranks are.
    pub ranks: Ranks,
}

/// What the ranks of a [`Mock`] are. See the crate's page.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum Ranks {
    /// Ranks may be in any processes of this machine (and user) whose mocks are made like this; each
    /// process has a mock of its own, and ranks in as many threads as it likes. Linux only.
    Processes,
    /// All ranks are threads of this process, and use this mock or a clone of it.
    #[default]
    Threads,
}

/// How f16, bf16 and fp8 are reduced. See the crate's page for all numerics.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Accumulation {
    /// One rounding per step, in the element type, as in NCCL's rings and trees.
    #[default]
    Element,
    /// In f32 throughout and rounded once, as in NCCL's symmetric kernels. An average is the sum,
    /// multiplied by 1/size in f32.
    F32,
}

impl MockConfig {
    /// Eight devices of 16 GiB, with [`Accumulation::Element`], [`Schedule::Eager`], no guards and no
    /// faults.
    pub const fn new() -> Self {
        Self {
            devices: 8,
            device_memory: 16 << 30,
            accumulation: Accumulation::Element,
            schedule: Schedule::Eager,
            guards: Guards::NONE,
            faults: FaultPlan::new(),
            ranks: Ranks::Threads,
        }
    }

    /// All guards, on work that runs as soon as it can.
    pub const fn strict() -> Self {
        Self::new().with_guards(Guards::ALL)
    }

    /// All guards, on work that runs when the seed says so.
    pub const fn adversarial(seed: u64) -> Self {
        Self::strict().with_schedule(Schedule::Random(seed))
    }

    /// What the environment asks for: `COLLECTIVES_MOCK_DEVICES`, `COLLECTIVES_MOCK_RANKS`,
    /// `COLLECTIVES_MOCK_SCHEDULE`, `COLLECTIVES_MOCK_GUARDS` and `COLLECTIVES_MOCK_FAULTS`; the rest is as [`new`](Self::new) has
    /// it.
    ///
    /// | variable | value |
    /// |---|---|
    /// | `COLLECTIVES_MOCK_DEVICES` | a number from 1 to 4096 |
    /// | `COLLECTIVES_MOCK_RANKS` | `threads`, `processes` |
    /// | `COLLECTIVES_MOCK_SCHEDULE` | `eager`, `late`, `random:SEED` |
    /// | `COLLECTIVES_MOCK_GUARDS` | `all`, `none`, or a list of `poison`, `poison=BYTE`, `checksums`, `races`, `protect` |
    /// | `COLLECTIVES_MOCK_FAULTS` | a [`FaultPlan`] as TOML, or `@` and the path of a file that has one |
    ///
    /// # Errors
    /// [`InvalidArgument`](collectives_core::ErrorKind::InvalidArgument) naming the variable, its
    /// value and what is wanted; [`System`](collectives_core::ErrorKind::System) where the file of a
    /// fault plan cannot be read.
    pub fn from_env() -> Result<Self> {
        Self::from_vars(|name| env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
    }

    fn from_vars(var: impl Fn(&str) -> Option<String>) -> Result<Self> {
        /// Parses a variable that is set; errors name it.
        fn parsed<T>(
            (name, value): (&str, Option<String>),
            parse: impl FnOnce(&str) -> Result<T>,
        ) -> Result<Option<T>> {
            let Some(value) = value else { return Ok(None) };
            parse(&value)
                .map(Some)
                .map_err(|error| refuse(error.kind(), format!("{name}: {}", error.message())))
        }
        let var = |name| (name, var(name));
        let mut config = Self::new();
        if let (_, Some(value)) = var(DEVICES) {
            config.devices = parse_devices(&value)?;
        }
        config.ranks = parsed(var(RANKS), str::parse)?.unwrap_or_default();
        config.schedule = parsed(var(SCHEDULE), str::parse)?.unwrap_or_default();
        config.guards = parsed(var(GUARDS), str::parse)?.unwrap_or_default();
        config.faults = parsed(var(FAULTS), FaultPlan::load)?.unwrap_or_default();
        Ok(config)
    }

    /// Whether anything but the plain engine is asked for.
    pub(crate) fn is_adversarial(&self) -> bool {
        let faults = !self.faults.rules.is_empty();
        self.schedule != Schedule::Eager || self.guards != Guards::NONE || faults
    }

    /// Sets when work runs that could run.
    #[must_use]
    pub const fn with_schedule(mut self, schedule: Schedule) -> Self {
        self.schedule = schedule;
        self
    }

    /// Sets what ranks are.
    #[must_use]
    pub const fn with_ranks(mut self, ranks: Ranks) -> Self {
        self.ranks = ranks;
        self
    }

    /// Sets what is watched of the buffers that operations work on.
    #[must_use]
    pub const fn with_guards(mut self, guards: Guards) -> Self {
        self.guards = guards;
        self
    }

    /// Sets what shall go wrong.
    #[must_use]
    pub fn with_faults(mut self, faults: FaultPlan) -> Self {
        self.faults = faults;
        self
    }

    /// Sets the number of devices.
    #[must_use]
    pub const fn with_devices(mut self, devices: usize) -> Self {
        self.devices = devices;
        self
    }

    /// Sets the memory of each device, in bytes.
    #[must_use]
    pub const fn with_device_memory(mut self, bytes: usize) -> Self {
        self.device_memory = bytes;
        self
    }

    /// Sets how small floats are reduced.
    #[must_use]
    pub const fn with_accumulation(mut self, accumulation: Accumulation) -> Self {
        self.accumulation = accumulation;
        self
    }
}

/// As in `COLLECTIVES_MOCK_RANKS`: `threads` or `processes`.
impl FromStr for Ranks {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.trim() {
            "threads" => Ok(Self::Threads),
            "processes" => Ok(Self::Processes),
            _ => Err(invalid(format!("ranks are '{text}', want 'threads' or 'processes'"))),
        }
    }
}

impl Default for MockConfig {
    fn default() -> Self {
        Self::new()
    }
}

impl Mock {
    /// Makes a machine of its own.
    pub fn new(config: MockConfig) -> Self {
        let info = LibraryInfo {
            backend: BACKEND,
            path: None,
            version: config.faults.version().unwrap_or(VERSION),
            found_by: "built in".into(),
        };
        let engine = Engine::new(config, info);
        engine.threads.note(None);
        Self { engine }
    }

    /// The machine of this process: the same for all callers, so that parts of a program that know
    /// nothing of each other meet. It is made as the environment says: see [`MockConfig::from_env`].
    ///
    /// # Errors
    /// Those of [`MockConfig::from_env`].
    pub fn shared() -> Result<Self> {
        Self::shared_as(|config| config)
    }

    /// The same for a process that is one rank of several, on a machine of at least so many devices:
    /// what the environment does not say of ranks and devices is [`Ranks::Processes`], and that number.
    ///
    /// # Errors
    /// Those of [`MockConfig::from_env`]; [`InvalidUsage`](collectives_core::ErrorKind::InvalidUsage) where
    /// the machine was made before, for ranks that are threads.
    pub fn shared_among_processes(devices: usize) -> Result<Self> {
        let mock = Self::shared_as(|mut config| {
            if env::var_os(RANKS).is_none() {
                config.ranks = Ranks::Processes;
            }
            if env::var_os(DEVICES).is_none() {
                config.devices = config.devices.max(devices);
            }
            config
        })?;
        if env::var_os(RANKS).is_some() || mock.engine.has_processes() {
            return Ok(mock);
        }
        let error = misuse("this process has opened the mock before, with ranks that are threads");
        Err(error.with_hint(format!("open it later, or set {RANKS}=processes")))
    }

    /// The machine of this process; if it has none yet, as `adjust` changes what the environment says.
    fn shared_as(adjust: impl FnOnce(MockConfig) -> MockConfig) -> Result<Self> {
        static SHARED: OnceLock<Mock> = OnceLock::new();
        if let Some(mock) = SHARED.get() {
            return Ok(mock.clone());
        }
        let config = adjust(MockConfig::from_env()?);
        Ok(SHARED.get_or_init(|| Self::new(config)).clone())
    }

    /// The id that goes by a name: whoever asks under the same name gets the same id, in this mock and
    /// its clones, and where ranks are processes in all of this machine. So ranks need no other way to
    /// hand an id on. It is good for one communicator, as any other.
    ///
    /// # Errors
    /// As [`unique_id`](Backend::unique_id).
    pub fn unique_id_named(&self, name: &str) -> Result<UniqueId> {
        fork::check()?;
        self.engine.threads.note(None);
        Ok(match self.engine.has_processes() {
            true => Self::token_id(gather::named(name), 0),
            false => Self::id(&self.engine, self.engine.meetings.issue_named(name), 0),
        })
    }

    /// Everything that is enqueued and not done, by stream and in order: for tests, and to see why
    /// a program hangs. A wait whose deadline passes has it in its error.
    pub fn pending(&self) -> Vec<PendingOp> {
        self.engine.pending(None)
    }

    /// What was found wrong: ranks that disagree, and ranks that can never go on. The latest 64.
    ///
    /// Each is also the error of the ranks that it concerns; here it is data, for tests. Where ranks are
    /// processes, each process has those that concern its ranks, whichever found them.
    pub fn verdicts(&self) -> Vec<Verdict> {
        self.engine.with(|state| state.verdicts.iter().cloned().collect())
    }

    /// Everything that was made on this machine and not given back: communicators, buffers, streams,
    /// events, graphs, reduce ops and registrations, and where each was made.
    ///
    /// ```
    /// use collectives_backend_mock::{AliveKind, Mock, MockConfig};
    /// use collectives_core::{Backend, Device};
    ///
    /// let mock = Mock::new(MockConfig::new());
    /// let stream = mock.device(0)?.stream_create()?;
    /// let alive = mock.alive();
    /// assert_eq!(alive.count(AliveKind::Stream), 1);
    /// println!("{alive}"); // 1 thing is alive, with the line of `stream_create`
    /// assert!(mock.check_leaks().is_err());
    /// # // SAFETY: made above, and not used.
    /// # unsafe { mock.device(0)?.stream_destroy(stream) }?;
    /// # mock.check_leaks()?;
    /// # Ok::<_, collectives_core::Error>(())
    /// ```
    pub fn alive(&self) -> Alive {
        self.engine.ledger.alive()
    }

    /// Fails if anything is [alive](Self::alive): for the end of a test.
    ///
    /// # Errors
    /// [`InvalidUsage`](collectives_core::ErrorKind::InvalidUsage), listing what is and where it was
    /// made.
    pub fn check_leaks(&self) -> Result<()> {
        self.alive().check()
    }

    /// Starts to join, and does not wait for the other ranks; see [`PendingJoin`].
    ///
    /// # Errors
    /// As [`Backend::join`], but for what only waiting can show.
    #[track_caller]
    pub fn join_start(&self, id: &UniqueId, config: JoinConfig) -> Result<PendingJoin> {
        let number = self.check_join("join", id, &config)?;
        PendingJoin::start(Arc::clone(&self.engine), number, config)
    }

    /// Meets the other ranks, by one of the calls that do.
    fn join_as(
        &self,
        call: &'static str,
        id: &UniqueId,
        mut config: JoinConfig,
        site: &'static Location<'static>,
    ) -> Result<MockComm> {
        let number = self.check_join(call, id, &config)?;
        let (rank, size) = (config.rank, config.size);
        let refused = |error: Error| error.with_operation(call).with_rank(rank.get(), size);
        let held = self.engine.join_fault(config.name.as_deref(), rank, number).map_err(refused)?;
        if let Some(held) = held {
            let left = self.engine.sit_out(held, rank, config.deadline);
            config.deadline = left.map_err(refused)?;
        }
        let noted = |error| self.engine.with(|state| state.noted(error));
        let end = self.engine.meetings.join(call, &self.engine, number, config).map_err(noted)?;
        MockComm::new(Arc::clone(&self.engine), end, site)
    }

    /// What is wrong with a join; else the number of its id.
    fn check_join(
        &self,
        operation: &'static str,
        id: &UniqueId,
        config: &JoinConfig,
    ) -> Result<u64> {
        fork::check()?;
        let (rank, size) = (config.rank, config.size);
        let refuse = |error: Error| {
            let error = error.with_operation(operation).with_rank(rank.get(), size);
            group::refuse(&self.engine, None, &error);
            error
        };
        if group::is_open(&self.engine) {
            let error = misuse(format!(
                "{operation} blocks until all ranks have come, so not inside a group"
            ));
            return Err(refuse(error.with_hint("join from several threads, or use join_all")));
        }
        self.engine.check_able().map_err(refuse)?;
        let Id { number, members } = self.parse_id(id).map_err(refuse)?;
        if rank.index() >= size {
            let error = invalid(format!("rank is {rank}, want less than the size {size}"));
            return Err(refuse(error));
        }
        match (operation, members) {
            ("join_grown", 0) => {
                let error = invalid("the unique id was not made by grow_id of a communicator");
                return Err(refuse(error.with_hint("a member makes it, and join takes this one")));
            }
            ("join_grown", members) if rank.index() < members => {
                let want = format!("want {members} or more: the members keep theirs");
                return Err(refuse(invalid(format!("rank is {rank}, {want}"))));
            }
            ("join_grown", _) | (_, 0) => {}
            _ => {
                let error = invalid("the unique id was made by grow_id, to grow a communicator");
                return Err(refuse(error.with_hint("join_grown takes it")));
            }
        }
        for id in &config.more_ids {
            self.parse_id(id).map_err(refuse)?;
        }
        if config.more_ids.len() >= size {
            let ids = config.more_ids.len() + 1;
            return Err(refuse(invalid(format!("{ids} ids were given, want at most {size}"))));
        }
        shape::comm_config(&config.config, &Capabilities::FULL).map_err(refuse)?;
        self.check_device(config.device).map_err(refuse)?;
        self.engine.threads.note(Some(config.device));
        Ok(number)
    }

    fn check_device(&self, ordinal: usize) -> Result<()> {
        let devices = self.engine.config.devices;
        if ordinal < devices {
            return Ok(());
        }
        Err(invalid(format!("device is {ordinal}, want 0 to {}", devices.saturating_sub(1)))
            .with_hint(format!("this mock has {devices} devices; make one with more")))
    }
}

impl Backend for Mock {
    type Comm = MockComm;
    type Device = MockDevice;

    fn info(&self) -> &LibraryInfo {
        &self.engine.info
    }

    fn capabilities(&self) -> &Capabilities {
        &Capabilities::FULL
    }

    fn device_count(&self) -> Result<usize> {
        Ok(self.engine.config.devices)
    }

    fn device(&self, ordinal: usize) -> Result<MockDevice> {
        fork::check()?;
        self.check_device(ordinal).map_err(|error| error.with_operation("device"))?;
        self.engine.check_able().map_err(|error| error.with_operation("device"))?;
        self.engine.threads.note(Some(ordinal));
        Ok(MockDevice::new(Arc::clone(&self.engine), ordinal))
    }

    /// Its settings, by the names of [`MockConfig`]'s fields.
    fn parameters(&self) -> Result<Vec<(String, String)>> {
        let MockConfig { devices, device_memory, accumulation, schedule, guards, faults: _, ranks } =
            &self.engine.config;
        let settings = [
            ("devices", devices.to_string()),
            ("device_memory", device_memory.to_string()),
            ("accumulation", format!("{accumulation:?}")),
            ("schedule", format!("{schedule:?}")),
            ("guards", format!("{guards:?}")),
            ("ranks", format!("{ranks:?}")),
        ];
        Ok(settings.map(|(name, value)| (name.to_owned(), value)).into())
    }

    /// Checks the key: its ranks meet over nothing that could be listened to.
    fn set_encryption(&self, key: Option<&str>) -> Result<()> {
        fork::check()?;
        let checked = shape::encryption_key(key, &Capabilities::FULL);
        checked.map_err(|error| error.with_backend(BACKEND).with_operation("set_encryption"))
    }

    fn unique_id(&self) -> Result<UniqueId> {
        fork::check()?;
        self.engine.threads.note(None);
        if self.engine.has_processes() {
            let token = self.engine.random_token();
            return Ok(Self::token_id(token.map_err(|e| e.with_operation("unique_id"))?, 0));
        }
        Ok(Self::id(&self.engine, self.engine.meetings.issue(), 0))
    }

    fn join(&self, id: &UniqueId, config: JoinConfig) -> Result<MockComm> {
        self.join_as("join", id, config, Location::caller())
    }

    fn join_grown(&self, id: &UniqueId, config: JoinConfig) -> Result<MockComm> {
        self.join_as("join_grown", id, config, Location::caller())
    }

    fn join_all(&self, config: JoinAllConfig) -> Result<Vec<MockComm>> {
        fork::check()?;
        let site = Location::caller();
        let JoinAllConfig { devices, name, config, .. } = config;
        let named = |error: Error| error.with_operation("join_all");
        self.engine.check_able().map_err(named)?;
        shape::comm_config(&config, &Capabilities::FULL).map_err(named)?;
        if devices.is_empty() {
            return Err(named(invalid("no devices were given, want at least one")));
        }
        for (rank, &device) in devices.iter().enumerate() {
            self.check_device(device).map_err(named)?;
            if let Some(other) = devices[..rank].iter().position(|&other| other == device) {
                return Err(named(invalid(format!(
                    "ranks {other} and {rank} are both on device {device}"
                ))));
            }
        }
        for rank in (0..devices.len() as u32).map(Rank::new) {
            if let Some(held) = self.engine.join_fault(name.as_deref(), rank, 0).map_err(named)? {
                self.engine.sit_out(held, rank, None).map_err(named)?;
            }
        }
        let seats = devices.iter().map(|&device| Seat { device, name: name.clone() }).collect();
        let ends = match self.engine.has_processes() {
            true => self.engine.make_alone(seats).map_err(named)?,
            false => self.engine.make_comm(seats),
        };
        let ends = ends.into_iter();
        ends.map(|end| MockComm::new(Arc::clone(&self.engine), end, site)).collect()
    }

    fn group_start(&self) -> Result<()> {
        fork::check()?;
        group::start(&self.engine);
        Ok(())
    }

    fn group_end(&self, end: GroupEnd) -> Result<()> {
        fork::check()?;
        group::end(&self.engine, end)
    }

    unsafe fn comm_from_raw(&self, raw: *mut c_void) -> Result<MockComm> {
        let error = if raw.is_null() {
            invalid("the communicator is null")
        } else {
            refuse(collectives_core::ErrorKind::Unsupported, "the mock has no raw communicators")
        };
        Err(error.with_operation("comm_from_raw"))
    }
}

/// What an id of this machine says.
struct Id {
    number: u64,
    /// Ranks of the communicator that grows with it; 0 where it is for a new one.
    members: usize,
}

impl Mock {
    /// An id, for a new communicator or to grow one of so many `members`.
    pub(crate) fn id(engine: &Engine, number: u64, members: usize) -> UniqueId {
        let mut bytes = [0; ID_BYTES];
        bytes[..16].copy_from_slice(MAGIC);
        for (at, word) in [(16, engine.nonce), (24, number), (32, members as u64)] {
            bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        UniqueId::from(bytes)
    }

    /// An id that any process can join with: for a new communicator or to grow one of so many
    /// `members`.
    pub(crate) fn token_id(token: Token, members: usize) -> UniqueId {
        let mut bytes = [0; ID_BYTES];
        bytes[..16].copy_from_slice(SHARED_MAGIC);
        bytes[16..32].copy_from_slice(&token);
        bytes[32..40].copy_from_slice(&(members as u64).to_le_bytes());
        UniqueId::from(bytes)
    }

    /// What is in an id that this machine made.
    fn parse_id(&self, id: &UniqueId) -> Result<Id> {
        let foreign = |what: &str| {
            Err(invalid(format!("the unique id {what}"))
                .with_hint("pass the id that rank 0 made with unique_id of the same mock"))
        };
        let bytes = id.to_array()?;
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        if self.engine.has_processes() {
            if bytes[..16] != *SHARED_MAGIC || bytes[40..].iter().any(|&byte| byte != 0) {
                return foreign("was not made by a mock whose ranks are processes");
            }
            let token = std::array::from_fn(|at| bytes[16 + at]);
            let number = self.engine.meetings.across.number(token);
            return Ok(Id { number, members: word(32) as usize });
        }
        if bytes[..16] != *MAGIC || bytes[40..].iter().any(|&byte| byte != 0) {
            return foreign("was not made by a mock");
        }
        if word(16) != self.engine.nonce {
            return foreign("was made by another mock");
        }
        Ok(Id { number: word(24), members: word(32) as usize })
    }
}

fn parse_devices(text: &str) -> Result<usize> {
    match text.trim().parse() {
        Ok(devices) if (1..=4096).contains(&devices) => Ok(devices),
        _ => Err(invalid(format!("{DEVICES} is '{text}', want a number from 1 to 4096"))),
    }
}

/// The number of devices of the shared machine.
const DEVICES: &str = "COLLECTIVES_MOCK_DEVICES";
/// And what else it is asked for.
const RANKS: &str = "COLLECTIVES_MOCK_RANKS";
const SCHEDULE: &str = "COLLECTIVES_MOCK_SCHEDULE";
const GUARDS: &str = "COLLECTIVES_MOCK_GUARDS";
const FAULTS: &str = "COLLECTIVES_MOCK_FAULTS";
/// The NCCL whose semantics these are.
const VERSION: Version = Version::new(2, 32, 3);
/// As long as NCCL's.
const ID_BYTES: usize = 128;
const MAGIC: &[u8; 16] = b"collectives mock";
/// Where ranks are processes.
const SHARED_MAGIC: &[u8; 16] = b"collectives proc";

#[cfg(test)]
mod tests {
    use collectives_core::Collectives as _;

    use super::*;

    #[test]
    fn the_number_of_devices_is_checked() {
        assert_eq!(parse_devices(" 3 ").unwrap(), 3);
        for text in ["", "0", "-1", "4097", "two"] {
            let error = parse_devices(text).unwrap_err();
            assert!(error.to_string().contains(&format!("'{text}'")), "{error}");
        }
    }

    #[test]
    fn an_id_goes_by_its_name() {
        for ranks in [Ranks::Threads, Ranks::Processes] {
            if ranks == Ranks::Processes && cfg!(any(miri, not(target_os = "linux"))) {
                continue; // there are none
            }
            let mock = Mock::new(MockConfig::new().with_ranks(ranks));
            let id = |name| mock.unique_id_named(name).unwrap();
            assert_eq!(id("one"), id("one"));
            assert_ne!(id("one"), id("other"));
            let join = || mock.join(&id("one"), JoinConfig::new(Rank::new(0), 1));
            assert_eq!(join().unwrap().info().size, 1);
            assert!(join().unwrap_err().to_string().contains("used up"));
        }
    }

    #[test]
    fn the_environment_is_read_and_what_is_wrong_in_it_is_named() {
        let read = |name: &'static str, value: &'static str| {
            MockConfig::from_vars(|asked| (asked == name).then(|| value.into()))
        };
        assert!(!MockConfig::from_vars(|_| None).unwrap().is_adversarial());
        assert_eq!(read(DEVICES, "3").unwrap().devices, 3);
        assert_eq!(read(RANKS, "processes").unwrap().ranks, Ranks::Processes);
        assert_eq!(read(SCHEDULE, "random:5").unwrap().schedule, Schedule::Random(5));
        assert_eq!(read(GUARDS, "all").unwrap().guards, Guards::ALL);
        assert_eq!(read(FAULTS, "[[rule]]\naction = 'kill'").unwrap().faults.rules.len(), 1);
        for (name, value, wanted) in [
            (DEVICES, "none", "a number from 1"),
            (RANKS, "fibers", "'threads' or 'processes'"),
            (SCHEDULE, "lazy", "'random:SEED'"),
            (GUARDS, "some", "'checksums'"),
            (FAULTS, "rule = 5", "invalid type"),
            (FAULTS, "@/nowhere", "cannot read"),
        ] {
            let error = read(name, value).unwrap_err().to_string();
            for part in [name, value.trim_start_matches('@'), wanted] {
                assert!(error.contains(part), "'{part}' is not in: {error}");
            }
        }
    }
}
