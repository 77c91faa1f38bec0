//! From a launcher to a communicator, in one line.
//!
//! [`init`] does what every program with several ranks begins with: it reads what the launcher told
//! this process, opens a store that all ranks see, selects and loads the backend, compares with the
//! other ranks what must agree, hands on a unique id, joins, and warms up. All of it ends by a
//! deadline, with an error that is the same on all ranks and names those that it is about.

mod launcher;
mod meeting;
mod peer;
mod place;

use std::{
    collections::HashMap,
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use collectives_backend_mock::Mock;
use collectives_core::{Backend as _, CommConfig, Error, ErrorKind, JoinConfig, Result, UniqueId};
use collectives_rendezvous::{Deadline, Environment, PrefixStore, Store, unique_id};

use self::{
    meeting::Meeting,
    place::{Attendance, Place},
};
use crate::{AnyBackend, AnyDevice, BackendName, Communicator, Selection};

pub use self::peer::Peer;

/// Makes the communicator of all ranks that a launcher started (`torchrun`, `collectives launch`,
/// `mpirun`, `srun`), or of one rank if none did.
///
/// It is [`World::from_env`] and [`World::communicator`], which say what happens; [`WorldConfig`] can
/// change it. Every rank calls it, and it returns when all have joined.
///
/// ```no_run
/// use collectives::ReduceOp;
///
/// # fn main() -> collectives::Result<()> {
/// let comm = collectives::init()?;
/// let stream = comm.new_stream()?;
/// let mut buffer = stream.upload(&[1.0_f32; 4])?;
/// comm.on(&stream).all_reduce_in_place(&mut buffer, ReduceOp::Sum)?;
/// assert_eq!(buffer.to_vec(&stream)?, [comm.size() as f32; 4]);
/// # Ok(()) }
/// ```
///
/// # Errors
/// As [`World::from_env`] and [`World::communicator`].
#[doc(alias = "MPI_Init")]
#[doc(alias = "init_process_group")]
#[track_caller]
pub fn init() -> Result<Communicator> {
    World::from_env()?.communicator("world")
}

/// The ranks of a job, after they have met: what communicators are made from.
///
/// ```
/// use collectives::WorldConfig;
///
/// # fn main() -> collectives::Result<()> {
/// let config = WorldConfig::new().with_backend(collectives::backend_named("mock")?);
/// # let config = config.with_environment(collectives::rendezvous::Environment::from_variables(|_| None)?);
/// let world = config.open()?;
/// let tensors = world.communicator("tensor_parallel")?;
/// let data = world.communicator("data_parallel")?;
/// assert_eq!(tensors.size(), world.size());
/// # drop(data);
/// # Ok(()) }
/// ```
///
/// When it is dropped, this process leaves the store; rank 0, where it serves the store, waits until the
/// others have left, at most five seconds. Communicators live on.
#[doc(alias = "MPI_COMM_WORLD")]
#[doc(alias = "StatelessProcessGroup")]
pub struct World {
    rank: u32,
    size: usize,
    backend: AnyBackend,
    device: AnyDevice,
    deadline: Duration,
    config: CommConfig,
    warm_up: bool,
    ways: Ways,
}

/// How ids come to the other ranks.
enum Ways {
    /// Through a store.
    Store {
        store: Arc<dyn Store>,
        /// How many communicators of a name there were.
        names: Mutex<HashMap<String, u32>>,
        file: Option<PathBuf>,
        /// Where rank 0 keeps the store up. Dropped last.
        attendance: Option<Attendance>,
    },
    /// They have one, for one communicator.
    Id(Mutex<Option<UniqueId>>),
}

/// How a [`World`] is made, where it should not be as the environment says.
#[derive(Clone, Default)]
pub struct WorldConfig {
    environment: Option<Environment>,
    meets: Meets,
    backend: Option<AnyBackend>,
    backend_name: Option<BackendName>,
    epoch: Option<u64>,
    deadline: Option<Duration>,
    device: Option<usize>,
    bind_address: Option<IpAddr>,
    config: CommConfig,
    without_warm_up: bool,
    differing_variables: bool,
}

#[derive(Clone, Default)]
enum Meets {
    #[default]
    AsEnvironmentSays,
    In(Arc<dyn Store>),
    At(PathBuf),
    By(UniqueId),
}

impl WorldConfig {
    /// As the environment says.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets which rank this is, whatever the variables say.
    #[must_use]
    pub fn with_environment(mut self, environment: Environment) -> Self {
        self.environment = Some(environment);
        self
    }

    /// Lets ranks meet in a store of the program's own: that of PyTorch, say. Several worlds in one store
    /// need an [epoch](Self::with_epoch) each.
    #[must_use]
    pub fn with_store(mut self, store: impl Store + 'static) -> Self {
        self.meets = Meets::In(Arc::new(store));
        self
    }

    /// Lets ranks meet in a file that all of them see, with locks, instead of over TCP. Rank 0 makes it, in
    /// place of any that is there; the others wait for that of this job and epoch, so one of an earlier
    /// run is not mistaken for it. It stays.
    #[must_use]
    pub fn with_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.meets = Meets::At(path.into());
        self
    }

    /// Joins by this id, without a store, as `COLLECTIVES_UNIQUE_ID` does. Good for one communicator;
    /// nothing is compared before, and who is missing has no name.
    #[must_use]
    pub fn with_unique_id(mut self, id: UniqueId) -> Self {
        self.meets = Meets::By(id);
        self
    }

    /// Sets the backend, instead of [`backend`](crate::backend()) doing so.
    #[must_use]
    pub fn with_backend(mut self, backend: impl Into<AnyBackend>) -> Self {
        self.backend = Some(backend.into());
        self
    }

    /// Sets which backend to open, whatever `COLLECTIVES_BACKEND` says.
    #[must_use]
    pub fn with_backend_name(mut self, name: BackendName) -> Self {
        self.backend_name = Some(name);
        self
    }

    /// Sets the number of this attempt, the same on all ranks and another than before. Unless set, how
    /// often the launcher has restarted the job.
    #[must_use]
    pub fn with_epoch(mut self, epoch: u64) -> Self {
        self.epoch = Some(epoch);
        self
    }

    /// Sets how long to wait: until all ranks have come, and for each communicator until all are ready to
    /// join, and until all have joined. Five minutes, unless set.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Sets the device. Unless set, it is the one with this process's number on its host (`LOCAL_RANK`);
    /// or, where the process sees one device alone, that.
    #[must_use]
    pub fn with_device(mut self, ordinal: usize) -> Self {
        self.device = Some(ordinal);
        self
    }

    /// Sets at which of its addresses rank 0 serves the store, as `COLLECTIVES_BIND_ADDRESS` does. Unless
    /// set, at `MASTER_ADDR`. Whoever reaches it can read and write: there are no passwords.
    #[must_use]
    pub fn with_bind_address(mut self, address: IpAddr) -> Self {
        self.bind_address = Some(address);
        self
    }

    /// Sets how the library runs communicators: the same on all ranks, which is compared.
    #[must_use]
    pub fn with_comm_config(mut self, config: CommConfig) -> Self {
        self.config = config;
        self
    }

    /// Sets whether communicators build their connections before they are handed out. They do, unless one
    /// of the ranks says that it does not, or, being of another language, says nothing. Where ranks join by
    /// a given id, all must say the same.
    #[must_use]
    pub fn with_warm_up(mut self, warm_up: bool) -> Self {
        self.without_warm_up = !warm_up;
        self
    }

    /// Sets whether ranks may differ in variables that they should agree on, `NCCL_ALGO` for example. Then
    /// rank 0 warns, and goes on. They may not, unless set.
    #[must_use]
    pub fn with_differing_variables(mut self, allowed: bool) -> Self {
        self.differing_variables = allowed;
        self
    }

    /// Meets the other ranks, and compares. Collective over all ranks.
    ///
    /// # Errors
    /// As [`World::from_env`].
    pub fn open(self) -> Result<World> {
        let environment = match self.environment.clone() {
            Some(environment) => environment,
            None => Environment::from_env()?,
        };
        let (rank, size) = (environment.rank(), environment.size());
        let kept = matches!(self.meets, Meets::AsEnvironmentSays) && !environment.store_is_served();
        self.open_in(&environment).map_err(|error| named(error, rank, size, kept))
    }

    fn open_in(self, environment: &Environment) -> Result<World> {
        let allowed = self.deadline.unwrap_or(DEADLINE);
        let deadline = Deadline::after(allowed);
        let (rank, size) = (environment.rank(), environment.size());
        let epoch = self.epoch.unwrap_or_else(|| environment.restart().into());
        let run = format!("{}/{epoch}", environment.job().unwrap_or("job"));
        let world = |place: (AnyBackend, AnyDevice), ways, warm_up| World {
            rank,
            size,
            backend: place.0,
            device: place.1,
            deadline: allowed,
            config: self.config.clone(),
            warm_up,
            ways,
        };
        let (place, run) = match self.meets.clone() {
            Meets::By(id) => {
                let ways = Ways::Id(Mutex::new(Some(id)));
                return Ok(world(
                    self.backend_and_device(environment)?,
                    ways,
                    !self.without_warm_up,
                ));
            }
            Meets::In(store) => (Place::given(store), format!("{run}/0")),
            Meets::At(path) => {
                let run = format!("{run}/0");
                (Place::file(path, &run, environment, deadline)?, run)
            }
            Meets::AsEnvironmentSays => {
                if let Some(id) = unique_id::from_variable(ID_VARIABLE)? {
                    let ways = Ways::Id(Mutex::new(Some(id)));
                    return Ok(world(
                        self.backend_and_device(environment)?,
                        ways,
                        !self.without_warm_up,
                    ));
                }
                let run = format!("{run}/{}", nth(&run, rank));
                (Place::of(environment, self.bind_address, &run, deadline)?, run)
            }
        };
        let Place { store, kept_by_rank_0, file } = place;
        let store: Arc<dyn Store> = Arc::new(PrefixStore::new(format!("{PREFIX}/{run}"), store));
        let mut attendance = match kept_by_rank_0 {
            true => Some(Attendance::begin(Arc::clone(&store), rank == 0, deadline)?),
            false => None,
        };
        let place = self.backend_and_device(environment);
        let me = Peer::this(rank, size, &place, &self.config, !self.without_warm_up);
        let roll = Meeting::of_world(&store, ROLL, rank, size);
        let differing = self.differing_variables;
        let agreed = roll.call_roll(&me, deadline, |peers| peer::compare(peers, differing));
        if let (Some(attendance), Err(error)) = (&mut attendance, &agreed)
            && error.kind() != ErrorKind::Timeout
        {
            attendance.await_late(size);
        }
        let ways = Ways::Store { store, names: Mutex::default(), file, attendance };
        // Our own error says more than what the others were told of it.
        let place = place?;
        let agreed = agreed?;
        if rank == 0 {
            for warning in &agreed.warnings {
                tracing::warn!("{warning}");
            }
        }
        Ok(world(place, ways, agreed.warm_up))
    }

    fn backend_and_device(&self, environment: &Environment) -> Result<(AnyBackend, AnyDevice)> {
        let backend = match &self.backend {
            Some(backend) => backend.clone(),
            None => {
                Selection::detect(self.backend_name).open_over(|| match environment.size() {
                    1 => Mock::shared(),
                    size => Mock::shared_among_processes(environment.local_size().unwrap_or(size)),
                })?
            }
        };
        let ordinal = match self.device {
            Some(ordinal) => ordinal,
            None => device_of(environment, backend.device_count()?)?,
        };
        let device = backend.device(ordinal)?;
        Ok((backend, device))
    }
}

impl World {
    /// Meets the other ranks of this job, and compares.
    ///
    /// 1. **Environment.** [`Environment::from_env`]: which rank this is, of how many.
    /// 2. **Store.** The launcher's agent serves one, or rank 0 does, at `MASTER_ADDR:MASTER_PORT`; where the
    ///    launcher gives no port, as `mpirun`, and all ranks are on one host, it is a file. One rank alone
    ///    needs none, and opens no socket.
    /// 3. **Backend.** [`backend`](crate::backend()); if that is the mock, its ranks are processes. The device
    ///    is that of `LOCAL_RANK`.
    /// 4. **Roll.** Every rank says what it is ([`Peer`]). If that cannot become a communicator, all ranks
    ///    get the same error, which names ranks by what they said: other libraries, world sizes or
    ///    backends, two ranks on one device, variables and settings that must agree; and who cannot take
    ///    part, and why.
    ///
    /// With `COLLECTIVES_UNIQUE_ID` set, to an id in base64 that is the same on all ranks, there is neither a
    /// store nor a roll.
    ///
    /// # Errors
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) for what is incomplete or does not agree;
    /// [`Timeout`](ErrorKind::Timeout), on all ranks that came, naming those that did not;
    /// [`Remote`](ErrorKind::Remote) for what keeps another rank from taking part, and where the store
    /// cannot be reached; this rank's own errors, as [`Selection::open`] has them.
    pub fn from_env() -> Result<Self> {
        WorldConfig::new().open()
    }

    /// Makes a communicator of all ranks, under a name that is the same on all of them. Collective.
    ///
    /// Rank 0 makes a unique id, all ranks join by it, build their connections, and wait for each other. A
    /// name may be used again: its communicators are counted. For some of the ranks, make one of all and
    /// [split](Communicator::split) it.
    ///
    /// # Errors
    /// [`Timeout`](ErrorKind::Timeout) when not all have joined by the deadline, on all ranks, naming those
    /// that gave no sign; as [`Communicator::join`]; [`Remote`](ErrorKind::Remote) where another rank did not
    /// join, with its reason. No rank has a communicator then.
    #[track_caller]
    pub fn communicator(&self, name: &str) -> Result<Communicator> {
        let config = JoinConfig::new(self.rank, self.size)
            .with_device(self.device_ordinal())
            .with_name(name)
            .with_config(self.config.clone());
        let kept = matches!(&self.ways, Ways::Store { attendance: Some(_), .. });
        self.join(name, config).map_err(|error| named(error, self.rank, self.size, kept))
    }

    /// This rank.
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// Number of ranks.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The backend of its communicators.
    pub fn backend(&self) -> &AnyBackend {
        &self.backend
    }

    /// The device of its communicators.
    pub fn device(&self) -> &AnyDevice {
        &self.device
    }

    /// What all ranks said of themselves, in their order; nothing where they joined by a given id.
    ///
    /// # Errors
    /// Those of the store, which is asked.
    pub fn peers(&self) -> Result<Vec<Peer>> {
        match &self.ways {
            Ways::Store { store, .. } => self.roll(store).roll_of(0..self.size),
            Ways::Id(_) => Ok(Vec::new()),
        }
    }

    /// The store in which the ranks met, for other data that they exchange; `None` where they
    /// joined by a given id. Its keys are apart from ours. Where rank 0 serves it, it is there for as long
    /// as all ranks have their `World`.
    ///
    /// ```
    /// use std::time::Duration;
    /// use collectives::{WorldConfig, rendezvous::{Deadline, Environment, exchange}};
    ///
    /// # fn main() -> collectives::Result<()> {
    /// # let world = WorldConfig::new()
    /// #     .with_backend(collectives::backend_named("mock")?)
    /// #     .with_environment(Environment::from_variables(|_| None)?)
    /// #     .open()?;
    /// let store = world.store().expect("no id was given");
    /// let deadline = Deadline::after(Duration::from_secs(30));
    /// let seeds = exchange(&store, "seeds", world.rank(), world.size(), b"7", deadline)?;
    /// # assert_eq!(seeds, [b"7"]);
    /// # Ok(()) }
    /// ```
    pub fn store(&self) -> Option<PrefixStore<&dyn Store>> {
        match &self.ways {
            Ways::Store { store, .. } => Some(PrefixStore::new("program", &**store)),
            Ways::Id(_) => None,
        }
    }

    fn device_ordinal(&self) -> usize {
        collectives_core::Device::info(&self.device).ordinal
    }

    #[track_caller]
    fn join(&self, name: &str, config: JoinConfig) -> Result<Communicator> {
        let (store, names) = match &self.ways {
            Ways::Store { store, names, .. } => (store, names),
            Ways::Id(id) => {
                let id = id.lock().unwrap_or_else(PoisonError::into_inner).take();
                let id = id.ok_or_else(|| {
                    Error::new(
                        ErrorKind::InvalidUsage,
                        format!("no id is left for communicator '{name}'"),
                    )
                    .with_hint("a given id is good for one communicator: split it, or use a store")
                })?;
                let deadline = Deadline::after(self.deadline);
                let config = config.with_deadline(self.deadline);
                let comm = Communicator::join(&self.backend, &id, config)?;
                return self.connect(&comm, deadline).map(|()| comm);
            }
        };
        let nth = {
            let mut names = names.lock().unwrap_or_else(PoisonError::into_inner);
            let count = names.entry(name.to_owned()).or_default();
            *count += 1;
            *count - 1
        };
        let meeting = |stage: &str| {
            let keys = format!("comm/{name}/{nth}/{stage}");
            Meeting::of_world(store, &keys, self.rank, self.size).of_communicator(name)
        };
        let id =
            meeting("start").start(Deadline::after(self.deadline), || self.backend.unique_id())?;
        let deadline = Deadline::after(self.deadline);
        let left = || deadline.remaining().unwrap_or_default();
        let joined = match Communicator::join(&self.backend, &id, config.with_deadline(left())) {
            Ok(comm) => match self.connect(&comm, deadline) {
                Ok(()) => Ok(comm),
                Err(error) => Err((error, Some(comm))),
            },
            Err(error) => Err((error, None)),
        };
        let failure = joined.as_ref().err().map(|(error, _)| error);
        let agreed = meeting("end").confirm(failure, &self.roll(store), deadline);
        let (error, comm) = match (joined, agreed) {
            (Ok(comm), Ok(())) => return Ok(comm),
            (Ok(comm), Err(error)) => (error, Some(comm)),
            // Who is missing says more than that somebody is.
            (Err((own, comm)), Err(error)) if own.kind() == ErrorKind::Timeout => {
                (error.with_source(own), comm)
            }
            (Err((own, comm)), _) => (own, comm),
        };
        // Only now, since it may take its time.
        if let Some(Err(error)) = comm.map(Communicator::abort) {
            tracing::warn!(%error, "a communicator that others did not join was not ended");
        }
        Err(error)
    }

    /// Lets the library build its connections.
    #[track_caller]
    fn connect(&self, comm: &Communicator, deadline: Deadline) -> Result<()> {
        if !self.warm_up {
            return Ok(());
        }
        let stream = comm.new_stream()?;
        comm.on(&stream).warm_up()?;
        stream.synchronize_for(deadline.remaining().unwrap_or_default())
    }

    fn roll<'a>(&self, store: &'a Arc<dyn Store>) -> Meeting<'a> {
        Meeting::of_world(store, ROLL, self.rank, self.size)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Ways::Store { file: Some(file), .. } = &self.ways {
            // Others have it open by now, or never will.
            place::remove(file);
        }
    }
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World")
            .field("rank", &self.rank)
            .field("size", &self.size)
            .field("backend", &self.backend.info().backend)
            .finish_non_exhaustive()
    }
}

/// Which of so many devices is this process's.
fn device_of(environment: &Environment, devices: usize) -> Result<usize> {
    let local = environment.local_rank().map(|rank| rank as usize);
    match local {
        Some(local) if local < devices => Ok(local),
        // The launcher shows each rank its own: Slurm's --gpus-per-task=1, a CUDA_VISIBLE_DEVICES for
        // each. If it shows the same to several, the roll finds out.
        _ if devices == 1 => Ok(0),
        Some(local) => Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("this is process {local} of its host, and sees {devices} devices"),
        )
        .with_hint(
            "start as many ranks on a host as it has devices, show each rank its own alone, or choose by \
             with_device",
        )),
        None => Err(Error::new(
            ErrorKind::InvalidArgument,
            format!(
                "{} does not say which process of its host this is, and it sees {devices} devices",
                environment.launcher()
            ),
        )
        .with_hint("set LOCAL_RANK, or choose by with_device")),
    }
}

/// Whose error it is. `kept` says whether rank 0 serves the store.
fn named(error: Error, rank: u32, size: usize, kept: bool) -> Error {
    // A store that was not reached says what the network said. Of keys that did not come it has no more to
    // say than that.
    let unreached = match error.kind() {
        ErrorKind::Remote => true,
        ErrorKind::Timeout => std::error::Error::source(&error).is_some(),
        _ => false,
    };
    let lost = unreached && error.message().starts_with("TCP store at ");
    let error = if lost && kept && rank != 0 {
        let message = format!(
            "rank 0 of {size}, which serves the store, has ended or cannot be reached: {}",
            error.message()
        );
        Error::new(ErrorKind::Remote, message)
            .with_hint("look for the last words of rank 0")
            .with_poison(false)
            .with_source(error)
    } else {
        error
    };
    match error.rank() {
        Some(_) => error,
        None => error.with_operation("init").with_rank(rank, size),
    }
}

/// Which world of this run and rank this is in this process: each has keys of its own.
fn nth(run: &str, rank: u32) -> u32 {
    static WORLDS: Mutex<Option<HashMap<(String, u32), u32>>> = Mutex::new(None);
    let mut worlds = WORLDS.lock().unwrap_or_else(PoisonError::into_inner);
    let count = worlds.get_or_insert_default().entry((run.to_owned(), rank)).or_default();
    *count += 1;
    *count - 1
}

/// How long to wait where nobody says. As PyTorch's store.
const DEADLINE: Duration = Duration::from_secs(300);
/// An id that all ranks have.
const ID_VARIABLE: &str = "COLLECTIVES_UNIQUE_ID";
/// The meeting of all ranks, in which they compare.
const ROLL: &str = "roll";
/// Before all keys of ours.
const PREFIX: &str = "collectives";

#[cfg(test)]
mod tests {
    use std::thread;

    use collectives_backend_mock::MockConfig;
    use collectives_core::{Collectives as _, ReduceOp};
    use collectives_rendezvous::MemoryStore;

    use super::*;

    fn environment(variables: &[(&str, usize)]) -> Environment {
        let value = |name: &str| variables.iter().find(|(key, _)| *key == name);
        Environment::from_variables(|name| value(name).map(|(_, value)| value.to_string())).unwrap()
    }

    fn rank(rank: usize, size: usize) -> Environment {
        environment(&[("RANK", rank), ("WORLD_SIZE", size), ("LOCAL_RANK", rank)])
    }

    fn config(mock: &Mock, store: &MemoryStore, number: usize, size: usize) -> WorldConfig {
        WorldConfig::new()
            .with_backend(mock.clone())
            .with_store(store.clone())
            .with_environment(rank(number, size))
            .with_deadline(Duration::from_secs(30))
    }

    fn sum(comm: &Communicator) -> Result<f32> {
        let stream = comm.new_stream()?;
        let mut buffer = stream.upload(&[comm.rank() as f32 + 1.0])?;
        comm.on(&stream).all_reduce_in_place(&mut buffer, ReduceOp::Sum)?;
        Ok(buffer.to_vec(&stream)?[0])
    }

    #[test]
    fn ranks_may_be_threads_over_a_store_of_the_program() {
        let (mock, store) = (Mock::new(MockConfig::new()), MemoryStore::new());
        let sums = thread::scope(|scope| {
            let run = |number| {
                let config = config(&mock, &store, number, 3);
                scope.spawn(move || {
                    let world = config.open()?;
                    assert_eq!(world.peers()?[2].device, Some(2));
                    sum(&world.communicator("all")?)
                })
            };
            let ranks = [run(0), run(1), run(2)];
            ranks.map(|rank| rank.join().unwrap().unwrap())
        });
        assert_eq!(sums, [6.0; 3]);
    }

    /// By the keys of docs/rendezvous.md, and nothing else of this crate.
    #[test]
    fn a_rank_needs_nothing_but_the_store() {
        let (mock, store) = (Mock::new(MockConfig::new()), MemoryStore::new());
        thread::scope(|scope| {
            let config = config(&mock, &store, 0, 2);
            let ours = scope.spawn(move || {
                let world = config.open()?;
                assert_eq!(world.peers()?[1].backend, None);
                world.communicator("train").map(|comm| comm.size())
            });

            let deadline = Deadline::after(Duration::from_secs(30));
            let keys = PrefixStore::new("collectives/job/0/0", &store);
            let come = |stage: &str, said: &[u8]| {
                keys.set(&format!("{stage}/rank/1"), said, deadline).unwrap();
                if keys.add(&format!("{stage}/come"), 1, deadline).unwrap() == 2 {
                    let outcome = br#"{"error": null}"#;
                    keys.compare_set(&format!("{stage}/outcome"), b"", outcome, deadline).unwrap();
                }
                let outcome = keys.get(&format!("{stage}/outcome"), deadline).unwrap();
                let outcome: serde_json::Value = serde_json::from_slice(&outcome).unwrap();
                assert!(outcome["error"].is_null(), "{outcome}");
            };
            assert_eq!(keys.add("roll/seat/1", 1, deadline).unwrap(), 1);
            assert_eq!(keys.compare_set("roll/size", b"", b"2", deadline).unwrap(), b"2");
            come("roll", br#"{"protocol": 1, "rank": 1, "size": 2, "pid": 7}"#);
            come("comm/train/0/start", b"ready");
            let id = keys.get("comm/train/0/start/id", deadline).unwrap();
            let id = std::str::from_utf8(&id).unwrap().parse().unwrap();
            let comm = mock.join(&id, JoinConfig::new(1, 2)).unwrap();
            come("comm/train/0/end", b"joined");

            assert_eq!(ours.join().unwrap().unwrap(), comm.info().size);
        });
    }

    #[test]
    fn a_store_has_one_world_of_an_epoch() {
        let (mock, store) = (Mock::new(MockConfig::new()), MemoryStore::new());
        let open = |epoch| config(&mock, &store, 0, 1).with_epoch(epoch).open();
        open(1).unwrap();
        let error = open(1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains("an epoch of its own"), "{error}");
        open(2).unwrap();
    }

    #[test]
    fn a_given_id_is_good_for_one_communicator() {
        let mock = Mock::new(MockConfig::new());
        let world = WorldConfig::new()
            .with_unique_id(mock.unique_id().unwrap())
            .with_backend(mock)
            .with_environment(rank(0, 1))
            .open()
            .unwrap();
        assert_eq!(sum(&world.communicator("first").unwrap()).unwrap(), 1.0);
        let error = world.communicator("second").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidUsage);
        assert!(error.to_string().contains("no id is left for communicator 'second'"), "{error}");
    }

    #[test]
    fn a_process_has_the_device_of_its_number_or_the_only_one() {
        assert_eq!(device_of(&rank(3, 8), 8).unwrap(), 3);
        assert_eq!(device_of(&rank(3, 8), 1).unwrap(), 0);
        let error = device_of(&rank(3, 8), 2).unwrap_err();
        assert!(error.to_string().starts_with("this is process 3 of its host, and sees 2 devices"));
        let unplaced = environment(&[("RANK", 1), ("WORLD_SIZE", 2)]);
        assert_eq!(device_of(&unplaced, 1).unwrap(), 0);
        let error = device_of(&unplaced, 2).unwrap_err();
        assert!(error.to_string().contains("set LOCAL_RANK"), "{error}");
    }
}
