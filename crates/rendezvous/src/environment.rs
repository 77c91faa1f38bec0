//! What a launcher told this process.
//!
//! Every launcher sets variables, each its own, and several are often set at once: torchrun inside a
//! Slurm job, or `srun` with a PMI library. So the launcher that is nearest to the process counts:
//! torchrun's variables, which any other launcher can set too, before MPI's, before Slurm's. Within
//! one launcher nothing may be missing or contradict. What is read here is never guessed: an error
//! shows every variable that was found.
//!
//! Slurm may be two launchers at once: `srun` starts its own tasks by PMI or PMIx too, and then says
//! besides where they are; and `mpiexec` in a job starts its daemons by `srun`, so that its ranks inherit
//! the numbers of a task that they are not.

use std::{env, fmt, str::FromStr};

use collectives_core::{Error, ErrorKind, Result};
use serde::Serialize;

use crate::parse_host_list;

/// Which rank this process is, of how many, started by whom, and where rank 0 can be met.
///
/// ```
/// use collectives_rendezvous::{Environment, Launcher};
///
/// let variables = [("SLURM_PROCID", "3"), ("SLURM_NTASKS", "4"), ("SLURM_LOCALID", "1"),
///     ("SLURM_JOB_NODELIST", "n[07-08]-ib"), ("SLURM_JOB_ID", "4711"), ("SLURM_STEP_ID", "0")];
/// let environment = Environment::from_variables(|name| {
///     variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string())
/// })?;
/// assert_eq!(environment.launcher(), Launcher::Slurm);
/// assert_eq!((environment.rank(), environment.size()), (3, 4));
/// assert_eq!(environment.local_rank(), Some(1));
/// assert_eq!(environment.master_address(), Some("n07-ib"));
/// # Ok::<(), collectives_core::Error>(())
/// ```
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Environment {
    launcher: Launcher,
    rank: u32,
    size: usize,
    local_rank: Option<u32>,
    local_size: Option<usize>,
    node: Option<u32>,
    hosts: Vec<String>,
    master_address: Option<String>,
    master_port: Option<u16>,
    store_is_served: bool,
    job: Option<String>,
    restart: u32,
}

/// Who started this process.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Launcher {
    /// MPICH's and its relatives' `mpiexec` (Intel MPI, MVAPICH, Cray), or `srun --mpi=pmi2`.
    Mpich,
    /// Nobody: a single process.
    None,
    /// Open MPI's `mpirun`.
    OpenMpi,
    /// A PMIx server, as behind `srun --mpi=pmix` or `prun`.
    Pmix,
    /// Slurm's `srun`.
    Slurm,
    /// `torchrun`, `collectives launch`, or whoever sets torchrun's variables.
    Torchrun,
}

impl Environment {
    /// Reads this process's variables.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] where they are incomplete, contradict, or are no numbers, with
    /// what was found.
    pub fn from_env() -> Result<Self> {
        Self::from_variables(|name| {
            env::var_os(name).map(|value| value.to_string_lossy().into_owned())
        })
    }

    /// Reads variables from `lookup`. An empty one counts as one that is not set.
    pub fn from_variables(lookup: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let lookup = |name: &str| {
            lookup(name).map(|value| value.trim().to_owned()).filter(|v| !v.is_empty())
        };
        Variables { lookup: &lookup }.environment()
    }

    /// Who started this process.
    pub fn launcher(&self) -> Launcher {
        self.launcher
    }

    /// This process's rank.
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// How many ranks there are.
    pub fn size(&self) -> usize {
        self.size
    }

    /// This process's rank among those of its host: which device is its own.
    pub fn local_rank(&self) -> Option<u32> {
        self.local_rank
    }

    /// How many ranks its host has.
    pub fn local_size(&self) -> Option<usize> {
        self.local_size
    }

    /// Which of the hosts, or of torchrun's agents, this is.
    pub fn node(&self) -> Option<u32> {
        self.node
    }

    /// The hosts of the job, where the launcher names them.
    pub fn hosts(&self) -> &[String] {
        &self.hosts
    }

    /// The host where rank 0 can be met: `MASTER_ADDR`, or the first of the hosts unless tasks were
    /// distributed by a list (`srun -m arbitrary`), or this one where all ranks are on it.
    pub fn master_address(&self) -> Option<&str> {
        self.master_address.as_deref()
    }

    /// The port there: `MASTER_PORT`, or for Slurm one that follows from the job's and the step's
    /// number, so that two jobs on a host rarely meet.
    pub fn master_port(&self) -> Option<u16> {
        self.master_port
    }

    /// Whether a store listens at the master's address and port already: that of torchrun's agent. Then
    /// rank 0 connects to it like the others.
    pub fn store_is_served(&self) -> bool {
        self.store_is_served
    }

    /// What distinguishes this job from others, where the launcher says: the same on all ranks, another
    /// one for each run.
    pub fn job(&self) -> Option<&str> {
        self.job.as_deref()
    }

    /// How often the job has been restarted: what is left of an earlier attempt has a lower number.
    pub fn restart(&self) -> u32 {
        self.restart
    }
}

impl fmt::Display for Launcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mpich => "MPICH or another PMI launcher",
            Self::None => "no launcher",
            Self::OpenMpi => "Open MPI",
            Self::Pmix => "PMIx",
            Self::Slurm => "Slurm",
            Self::Torchrun => "torchrun",
        })
    }
}

/// The names that one launcher uses; where there are several, any of them, and all that are set must
/// agree.
struct Names {
    launcher: Launcher,
    rank: &'static [&'static str],
    size: &'static [&'static str],
    local_rank: &'static [&'static str],
    local_size: &'static [&'static str],
    node: &'static [&'static str],
    job: &'static [&'static str],
    /// What starts a program so that all of these are set.
    remedy: &'static str,
}

/// From the nearest launcher to the farthest.
const LAUNCHERS: [Names; 5] = [
    Names {
        launcher: Launcher::Torchrun,
        rank: &["RANK"],
        size: &["WORLD_SIZE"],
        local_rank: &["LOCAL_RANK"],
        local_size: &["LOCAL_WORLD_SIZE"],
        node: &["GROUP_RANK"],
        job: &["TORCHELASTIC_RUN_ID"],
        remedy: "start with torchrun or 'collectives launch', or set RANK and WORLD_SIZE both",
    },
    Names {
        launcher: Launcher::OpenMpi,
        rank: &["OMPI_COMM_WORLD_RANK"],
        size: &["OMPI_COMM_WORLD_SIZE"],
        local_rank: &["OMPI_COMM_WORLD_LOCAL_RANK"],
        local_size: &["OMPI_COMM_WORLD_LOCAL_SIZE"],
        node: &[],
        job: &["PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"],
        remedy: "start with mpirun",
    },
    Names {
        launcher: Launcher::Mpich,
        rank: &["PMI_RANK"],
        size: &["PMI_SIZE"],
        local_rank: &["MPI_LOCALRANKID", "PMI_LOCAL_RANK"],
        local_size: &["MPI_LOCALNRANKS", "PMI_LOCAL_SIZE"],
        node: &[],
        job: &["PMI_JOBID"],
        remedy: "start with mpiexec",
    },
    // It has no variable for the size; `srun --mpi=pmix` sets Slurm's.
    Names {
        launcher: Launcher::Pmix,
        rank: &["PMIX_RANK"],
        size: &["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"],
        local_rank: &["SLURM_LOCALID"],
        local_size: &[],
        node: &["SLURM_NODEID"],
        job: &["PMIX_NAMESPACE"],
        remedy: "PMIx tells the size to MPI programs only: set RANK and WORLD_SIZE",
    },
    SLURM,
];

const SLURM: Names = Names {
    launcher: Launcher::Slurm,
    rank: &["SLURM_PROCID"],
    size: &["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS"],
    local_rank: &["SLURM_LOCALID"],
    local_size: &[],
    node: &["SLURM_NODEID"],
    job: &["SLURM_JOB_ID"],
    remedy: "start the program with srun or torchrun; for a single process set RANK=0 and WORLD_SIZE=1",
};

const JOB: [&str; 2] = ["SLURM_JOB_ID", "SLURM_JOBID"];

/// Batch scripts have none of them. The shell of `salloc` has none, or, with the cluster's
/// `use_interactive_step`, a number beyond those of steps.
const STEP: [&str; 2] = ["SLURM_STEP_ID", "SLURM_STEPID"];

/// `SLURM_MAX_NORMAL_STEP_ID` of Slurm's `slurm.h`.
const LAST_STEP: u32 = 0xFFFF_FFF0;

/// How far the ports of a job's steps are from each other, which are those of the jobs that far away.
/// The golden section of all: so the ports of few steps are far from those of any job near.
const BETWEEN_STEPS: u64 = 6_181;

/// What else an error shows.
const OTHERS: [&str; 13] = [
    "MASTER_ADDR",
    "MASTER_PORT",
    "PMIX_NAMESPACE",
    "SLURM_DISTRIBUTION",
    "SLURM_JOB_ID",
    "SLURM_JOB_NUM_NODES",
    "SLURM_JOB_NODELIST",
    "SLURM_STEP_NODELIST",
    "SLURM_TASKS_PER_NODE",
    "SLURM_STEP_TASKS_PER_NODE",
    "SLURM_STEP_ID",
    "TORCHELASTIC_RESTART_COUNT",
    "TORCHELASTIC_USE_AGENT_STORE",
];

struct Variables<'a> {
    lookup: &'a dyn Fn(&str) -> Option<String>,
}

impl Variables<'_> {
    fn environment(&self) -> Result<Environment> {
        // The first that has both; else the first that has a part, which is an error.
        let whole = LAUNCHERS.iter().find(|names| {
            // It has no variable for the size, and what Slurm says may be said of other tasks.
            let sized = self.any(names.size) || names.launcher == Launcher::Pmix;
            self.any(names.rank) && sized
        });
        let begun = || LAUNCHERS.iter().find(|names| self.is_begun(names));
        let names = match whole.or_else(begun) {
            Some(names) if names.launcher == Launcher::Slurm => {
                if !self.is_step() && (whole.is_some() || self.any(&JOB)) {
                    return self.shell_of_job(names);
                }
                names
            }
            Some(names) => names,
            None if self.any(&JOB) && !self.is_step() => return self.shell_of_job(&SLURM),
            None => return Ok(Self::single()),
        };
        let rank: u32 = self.required(names.rank, names)?;
        let by_srun = self.is_task_of_srun(names, rank);
        if names.launcher == Launcher::Pmix && !by_srun {
            let problem = "there is no variable for the number of ranks".to_owned();
            return Err(self.contradiction(names, problem));
        }
        let size: usize = self.required(names.size, names)?;
        if size == 0 || rank as usize >= size {
            return Err(
                self.contradiction(names, format!("rank {rank} is not within {size} ranks"))
            );
        }
        // `srun --mpi=pmi2` leaves to Slurm's own variables what it does not say itself.
        let places = if by_srun { &SLURM } else { names };
        let local_rank: Option<u32> = self.number(places.local_rank, names)?;
        let (local_size, hosts) = match by_srun {
            true => self.slurm_places(names)?,
            false => (self.number(names.local_size, names)?, Vec::new()),
        };
        self.check_places(names, size, local_rank, local_size)?;
        let job = names.job.iter().find_map(|name| (self.lookup)(name));
        let mut environment = Environment {
            launcher: names.launcher,
            rank,
            size,
            local_rank,
            local_size,
            node: self.number(places.node, names)?,
            hosts,
            master_address: (self.lookup)("MASTER_ADDR"),
            master_port: self.number(&["MASTER_PORT"], names)?,
            store_is_served: names.launcher == Launcher::Torchrun
                && (self.lookup)("TORCHELASTIC_USE_AGENT_STORE")
                    .is_some_and(|value| value.eq_ignore_ascii_case("true") || value == "1"),
            job,
            restart: self.number(&["TORCHELASTIC_RESTART_COUNT"], names)?.unwrap_or(0),
        };
        if by_srun {
            self.complete_slurm(names, &mut environment)?;
        }
        if environment.master_address.is_none() {
            environment.master_address = match environment.hosts.first() {
                // The list is in Slurm's order, and rank 0 is wherever the user wanted it.
                Some(_) if environment.hosts.len() > 1 && self.is_arbitrary() => None,
                Some(host) => Some(host.clone()),
                None if environment.local_size == Some(environment.size) => {
                    Some("127.0.0.1".to_owned())
                }
                None => None,
            };
        }
        Ok(environment)
    }

    /// Nobody started us: one rank, on one host.
    fn single() -> Environment {
        Environment {
            launcher: Launcher::None,
            rank: 0,
            size: 1,
            local_rank: Some(0),
            local_size: Some(1),
            node: Some(0),
            hosts: Vec::new(),
            master_address: Some("127.0.0.1".to_owned()),
            master_port: None,
            store_is_served: false,
            job: None,
            restart: 0,
        }
    }

    /// Whether a launcher's variables are there in part. A size of one alone misses nothing. Slurm's
    /// batch script is task 0, of no number where none was asked for.
    fn is_begun(&self, names: &Names) -> bool {
        let sized =
            names.size.iter().filter_map(|name| (self.lookup)(name)).any(|size| size != "1");
        match names.launcher {
            // Its rank is all that it has.
            Launcher::Pmix => false,
            Launcher::Slurm => {
                sized
                    || names
                        .rank
                        .iter()
                        .filter_map(|name| (self.lookup)(name))
                        .any(|rank| rank != "0")
            }
            Launcher::Mpich | Launcher::None | Launcher::OpenMpi | Launcher::Torchrun => {
                sized
                    || [names.rank, names.local_rank, names.local_size]
                        .into_iter()
                        .any(|names| self.any(names))
            }
        }
    }

    /// That all ranks are on this host does not make their numbers there the same: Open MPI 5 counts them
    /// by the parts of the machine to which it maps them, so that rank 1 of 4 may be number 2.
    fn check_places(
        &self,
        names: &Names,
        size: usize,
        local_rank: Option<u32>,
        local_size: Option<usize>,
    ) -> Result<()> {
        let problem = match (local_rank, local_size) {
            (_, Some(local)) if local == 0 || local > size => {
                format!("{local} ranks of this host are not within {size} of all hosts")
            }
            (Some(local), Some(of)) if local as usize >= of => {
                format!("rank {local} of this host is not within its {of} ranks")
            }
            (Some(local), None) if local as usize >= size => {
                format!("rank {local} of this host is not within {size} ranks")
            }
            _ => return Ok(()),
        };
        Err(self.contradiction(names, problem))
    }

    /// How many ranks this host has, and all hosts.
    fn slurm_places(&self, names: &Names) -> Result<(Option<usize>, Vec<String>)> {
        let list = ["SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"]
            .into_iter()
            .find_map(|name| (self.lookup)(name).map(|list| (name, list)));
        let hosts = match list {
            None => Vec::new(),
            Some((name, list)) => parse_host_list(&list).map_err(|error| {
                self.contradiction(names, format!("{name}: {}", error.message()))
            })?,
        };
        let tasks = ["SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"]
            .into_iter()
            .find_map(|name| (self.lookup)(name).map(|tasks| (name, tasks)));
        let Some((name, text)) = tasks else { return Ok((None, hosts)) };
        let node: Option<usize> = self.number(SLURM.node, names)?;
        // Of one host the number of the host is clear.
        let node = node.or_else(|| (hosts.len() == 1).then_some(0));
        let counts = tasks_per_node(&text).ok_or_else(|| {
            self.contradiction(names, format!("{name} is no list such as '4(x2),1'"))
        })?;
        Ok((node.and_then(|node| counts.get(node).copied()), hosts))
    }

    /// A batch script and the shell that `salloc` opens have variables of a job, some of them those of its
    /// task 0, but Slurm starts tasks only by `srun`: rank 0 would wait for the others in vain. Of a job
    /// for one task this is that task.
    fn shell_of_job(&self, names: &Names) -> Result<Environment> {
        let tasks: Option<usize> = self.number(&["SLURM_NTASKS", "SLURM_NPROCS"], names)?;
        let hosts: Option<usize> = self.number(&["SLURM_JOB_NUM_NODES"], names)?;
        let what = match (tasks, hosts) {
            (Some(tasks), _) if tasks > 1 => format!("{tasks} tasks"),
            (_, Some(hosts)) if hosts > 1 => format!("{hosts} hosts"),
            _ => {
                return Ok(Environment {
                    launcher: Launcher::Slurm,
                    job: JOB.iter().find_map(|name| (self.lookup)(name)),
                    restart: self.number(&["SLURM_RESTART_COUNT"], names)?.unwrap_or(0),
                    ..Self::single()
                });
            }
        };
        let problem = format!(
            "this is no task of srun, but the batch script or shell of a job for {what}, as \
             SLURM_STEP_ID is {}",
            (self.lookup)("SLURM_STEP_ID").map_or("not set", |_| "that of a shell")
        );
        Err(self.contradiction(names, problem))
    }

    /// Whether a task of `srun` has these variables, or what one has started.
    fn is_step(&self) -> bool {
        match STEP.iter().find_map(|name| (self.lookup)(name)) {
            Some(id) => !id.parse().is_ok_and(|id: u32| id > LAST_STEP),
            None => (self.lookup)("SLURM_STEP_NUM_TASKS").is_some(),
        }
    }

    /// Whether `srun` started this very rank, so that what Slurm's variables say is said of it.
    fn is_task_of_srun(&self, names: &Names, rank: u32) -> bool {
        let is = |name: &str, value: &str| (self.lookup)(name).is_some_and(|found| found == value);
        match names.launcher {
            Launcher::Slurm => true,
            // Slurm's plugin calls its namespaces so; those of `prun` and `mpirun` have other names.
            Launcher::Pmix => (self.lookup)("PMIX_NAMESPACE")
                .is_some_and(|namespace| namespace.starts_with("slurm.")),
            // `mpiexec` sets the rest of the launcher's own variables, `srun` does not.
            Launcher::Mpich => {
                let size = names.size.iter().find_map(|name| (self.lookup)(name));
                !self.any(&["MPI_LOCALRANKID"])
                    && is("SLURM_PROCID", &rank.to_string())
                    && size.is_some_and(|size| is("SLURM_STEP_NUM_TASKS", &size))
            }
            Launcher::None | Launcher::OpenMpi | Launcher::Torchrun => false,
        }
    }

    /// Whether the user listed the host of each task: `srun -m arbitrary`, or `SLURM_HOSTFILE`.
    fn is_arbitrary(&self) -> bool {
        (self.lookup)("SLURM_DISTRIBUTION").is_some_and(|way| way.starts_with("arbitrary"))
    }

    /// A job's number is not enough to tell its runs apart: each `srun` is a step of its own.
    fn complete_slurm(&self, names: &Names, environment: &mut Environment) -> Result<()> {
        let job: Option<u32> = self.number(&JOB, names)?;
        let step: Option<u32> = self.number(&STEP, names)?;
        if let (Some(job), Some(step)) = (job, step) {
            environment.job = Some(format!("{job}.{step}"));
        }
        if let (None, Some(job)) = (environment.master_port, job) {
            // Below those that the kernel gives to clients.
            let offset = u64::from(job) + u64::from(step.unwrap_or(0)) * BETWEEN_STEPS;
            environment.master_port = Some(20_000 + (offset % 10_000) as u16);
        }
        if let Some(restart) = self.number(&["SLURM_RESTART_COUNT"], names)? {
            environment.restart = restart;
        }
        Ok(())
    }

    fn any(&self, names: &[&str]) -> bool {
        names.iter().any(|name| (self.lookup)(name).is_some())
    }

    fn required<T: FromStr + PartialEq>(&self, options: &[&str], names: &Names) -> Result<T> {
        self.number(options, names)?.ok_or_else(|| self.incomplete(names))
    }

    /// The number in those of `options` that are set, which must be the same.
    fn number<T: FromStr + PartialEq>(&self, options: &[&str], names: &Names) -> Result<Option<T>> {
        let mut found: Option<(&str, T)> = None;
        for name in options {
            let Some(text) = (self.lookup)(name) else { continue };
            let number: T = text
                .parse()
                .map_err(|_| self.contradiction(names, format!("{name} is no such number")))?;
            match &found {
                None => found = Some((name, number)),
                Some((_, other)) if *other == number => {}
                Some((other, _)) => {
                    return Err(self.contradiction(names, format!("{other} and {name} differ")));
                }
            }
        }
        Ok(found.map(|(_, number)| number))
    }

    fn incomplete(&self, names: &Names) -> Error {
        let missing: Vec<_> = [names.rank, names.size]
            .into_iter()
            .filter(|options| options.iter().all(|name| (self.lookup)(name).is_none()))
            .filter_map(|options| options.first().copied())
            .collect();
        self.error(names, format!("{} set", lack(&missing)))
    }

    fn contradiction(&self, names: &Names, problem: String) -> Error {
        self.error(names, problem)
    }

    fn error(&self, names: &Names, problem: String) -> Error {
        let mut known: Vec<_> = LAUNCHERS
            .iter()
            .flat_map(|names| {
                [names.rank, names.size, names.local_rank, names.local_size, names.node].concat()
            })
            .chain(OTHERS)
            .collect();
        known.sort_unstable();
        known.dedup();
        let found: Vec<_> = known
            .iter()
            .filter_map(|name| (self.lookup)(name).map(|value| format!("{name}={value}")))
            .collect();
        let message = format!(
            "environment of {}: {problem}; found {}",
            names.launcher,
            if found.is_empty() { "nothing else".to_owned() } else { found.join(", ") }
        );
        Error::new(ErrorKind::InvalidArgument, message).with_hint(names.remedy)
    }
}

fn lack(missing: &[&str]) -> String {
    match missing {
        [one] => format!("{one} is not"),
        _ => format!("{} are not", missing.join(" and ")),
    }
}

/// Slurm's `2(x3),1`: two on each of three hosts, one on the next.
fn tasks_per_node(text: &str) -> Option<Vec<usize>> {
    let mut counts = Vec::new();
    for part in text.split(',') {
        let (count, times) = match part.split_once("(x") {
            Some((count, times)) => (count, times.strip_suffix(')')?.parse().ok()?),
            None => (part, 1_usize),
        };
        if counts.len().checked_add(times)? > 65_536 {
            return None;
        }
        counts.extend(std::iter::repeat_n(count.parse::<usize>().ok()?, times));
    }
    Some(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &str) -> Result<Environment> {
        Environment::from_variables(|name| {
            variables
                .split_whitespace()
                .filter_map(|pair| pair.split_once('='))
                .find(|(key, _)| *key == name)
                .map(|(_, value)| value.to_owned())
        })
    }

    fn refused(variables: &str) -> String {
        let error = read(variables).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        error.to_string()
    }

    #[test]
    fn torchrun() {
        let environment = read(
            "RANK=5 WORLD_SIZE=8 LOCAL_RANK=1 LOCAL_WORLD_SIZE=4 GROUP_RANK=1 MASTER_ADDR=alpha \
             MASTER_PORT=29500 TORCHELASTIC_RESTART_COUNT=2 TORCHELASTIC_RUN_ID=run7 \
             TORCHELASTIC_USE_AGENT_STORE=True",
        )
        .unwrap();
        let expected = Environment {
            launcher: Launcher::Torchrun,
            rank: 5,
            size: 8,
            local_rank: Some(1),
            local_size: Some(4),
            node: Some(1),
            hosts: vec![],
            master_address: Some("alpha".into()),
            master_port: Some(29500),
            store_is_served: true,
            job: Some("run7".into()),
            restart: 2,
        };
        assert_eq!(environment, expected);
    }

    #[test]
    fn torchruns_variables_set_by_hand() {
        let environment = read("RANK=1 WORLD_SIZE=2").unwrap();
        assert_eq!(environment.launcher(), Launcher::Torchrun);
        assert_eq!((environment.rank(), environment.size()), (1, 2));
        assert_eq!((environment.local_rank(), environment.master_address()), (None, None));
    }

    #[test]
    fn slurm() {
        let environment = read(
            "SLURM_PROCID=5 SLURM_NTASKS=7 SLURM_LOCALID=1 SLURM_NODEID=2 SLURM_JOB_ID=123456 \
             SLURM_STEP_ID=3 SLURM_STEP_NUM_TASKS=7 SLURM_TASKS_PER_NODE=2(x3),1 \
             SLURM_JOB_NODELIST=n[01-03,7]-ib SLURM_RESTART_COUNT=1",
        )
        .unwrap();
        let hosts = ["n01-ib", "n02-ib", "n03-ib", "n7-ib"].map(String::from).to_vec();
        let expected = Environment {
            launcher: Launcher::Slurm,
            rank: 5,
            size: 7,
            local_rank: Some(1),
            local_size: Some(2),
            node: Some(2),
            hosts,
            master_address: Some("n01-ib".into()),
            // 123,456 and 3 times 6,181.
            master_port: Some(20_000 + 1_999),
            store_is_served: false,
            job: Some("123456.3".into()),
            restart: 1,
        };
        assert_eq!(environment, expected);
        // What a user sets counts more than what follows from the job.
        let environment = read(
            "SLURM_PROCID=0 SLURM_NTASKS=2 SLURM_JOB_ID=1 SLURM_STEP_ID=0 MASTER_ADDR=beta \
                 MASTER_PORT=7",
        )
        .unwrap();
        assert_eq!(environment.master_address(), Some("beta"));
        assert_eq!(environment.master_port(), Some(7));
    }

    #[test]
    fn a_batch_script_is_no_rank() {
        // What Slurm sets there; a task of srun has SLURM_STEP_ID besides.
        let batch = "SLURM_JOB_ID=7 SLURM_JOB_NODELIST=n[1-2] SLURM_NODEID=0 SLURM_PROCID=0 \
                     SLURM_LOCALID=0 SLURM_NTASKS=8 SLURM_NPROCS=8 SLURM_TASKS_PER_NODE=4(x2)";
        let error = refused(batch);
        assert!(error.contains("this is no task of srun, but the batch script"), "{error}");
        assert!(error.contains("a job for 8 tasks"), "{error}");
        assert!(error.contains("start the program with srun"), "{error}");
        for step in ["SLURM_STEP_ID=0", "SLURM_STEPID=0", "SLURM_STEP_NUM_TASKS=8"] {
            let environment = read(&format!("{batch} {step}")).unwrap();
            assert_eq!((environment.rank(), environment.size()), (0, 8), "{step}");
        }
        // What torchrun or mpirun start in it has their variables; and who is alone, is right.
        assert_eq!(read(&format!("{batch} RANK=3 WORLD_SIZE=4")).unwrap().rank(), 3);
        assert_eq!(read(&format!("{batch} RANK=0 WORLD_SIZE=1")).unwrap().size(), 1);
        let alone = read("SLURM_JOB_ID=7 SLURM_PROCID=0 SLURM_NTASKS=1").unwrap();
        assert_eq!((alone.launcher(), alone.size()), (Launcher::Slurm, 1));
        assert_eq!(alone.job(), Some("7"));
    }

    #[test]
    fn steps_of_jobs_that_follow_each_other_have_ports_of_their_own() {
        let port = |job: u32, step: u32| {
            let ids = format!("SLURM_JOB_ID={job} SLURM_STEP_ID={step}");
            let environment = read(&format!("SLURM_PROCID=0 SLURM_NTASKS=2 {ids}")).unwrap();
            environment.master_port().unwrap()
        };
        let mut ports: Vec<_> =
            (0..100).flat_map(|job| (0..20).map(move |step| (9_950 + job, step))).collect();
        let steps = ports.len();
        let ports: std::collections::HashSet<_> =
            ports.drain(..).map(|(job, step)| port(job, step)).collect();
        assert_eq!(ports.len(), steps);
        assert!(ports.iter().all(|port| (20_000..30_000).contains(port)));
    }

    #[test]
    fn open_mpi() {
        let environment = read(
            "OMPI_COMM_WORLD_RANK=3 OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_LOCAL_RANK=3 \
             OMPI_COMM_WORLD_LOCAL_SIZE=4 PMIX_RANK=3 PMIX_NAMESPACE=prterun-alpha-1@1",
        )
        .unwrap();
        assert_eq!(environment.launcher(), Launcher::OpenMpi);
        assert_eq!((environment.rank(), environment.size()), (3, 4));
        assert_eq!((environment.local_rank(), environment.local_size()), (Some(3), Some(4)));
        assert_eq!(environment.job(), Some("prterun-alpha-1@1"));
        // All ranks are here.
        assert_eq!(environment.master_address(), Some("127.0.0.1"));
    }

    #[test]
    fn mpich_and_its_relatives() {
        let environment =
            read("PMI_RANK=1 PMI_SIZE=4 MPI_LOCALRANKID=1 MPI_LOCALNRANKS=2").unwrap();
        assert_eq!(environment.launcher(), Launcher::Mpich);
        assert_eq!((environment.rank(), environment.size()), (1, 4));
        assert_eq!((environment.local_rank(), environment.local_size()), (Some(1), Some(2)));
        assert_eq!(environment.master_address(), None);
        let cray = read("PMI_RANK=1 PMI_SIZE=4 PMI_LOCAL_RANK=0 PMI_LOCAL_SIZE=1").unwrap();
        assert_eq!((cray.local_rank(), cray.local_size()), (Some(0), Some(1)));
    }

    #[test]
    fn pmix_takes_the_size_from_slurm() {
        let environment =
            read("PMIX_RANK=1 PMIX_NAMESPACE=slurm.pmix.7.0 SLURM_PROCID=1 SLURM_NTASKS=2")
                .unwrap();
        assert_eq!(environment.launcher(), Launcher::Pmix);
        assert_eq!((environment.rank(), environment.size()), (1, 2));
        assert_eq!(environment.master_port(), None);
        let within = "PMIX_RANK=1 SLURM_NTASKS=2 SLURM_JOB_ID=7 SLURM_STEP_ID=0";
        let task = read(&format!("{within} PMIX_NAMESPACE=slurm.pmix.7.0")).unwrap();
        assert_eq!(task.master_port(), Some(20_007));
        // The ranks of prun in a job of Slurm are others than its tasks.
        for other in ["PMIX_RANK=1".to_owned(), format!("{within} PMIX_NAMESPACE=prun-n7-4711@1")] {
            let error = refused(&other);
            assert!(error.contains("there is no variable for the number of ranks"), "{error}");
            assert!(error.contains("PMIx tells the size to MPI programs only"), "{error}");
        }
    }

    #[test]
    fn a_single_process() {
        for variables in
            ["", "RANK= WORLD_SIZE=", "MASTER_ADDR=alpha", "SLURM_NTASKS=1", "WORLD_SIZE=1"]
        {
            let environment = read(variables).unwrap();
            assert_eq!(environment.launcher(), Launcher::None, "{variables}");
            assert_eq!((environment.rank(), environment.size()), (0, 1), "{variables}");
        }
    }

    #[test]
    fn the_nearest_launcher_counts() {
        let slurm = "SLURM_PROCID=1 SLURM_NTASKS=2 SLURM_LOCALID=0 SLURM_STEP_ID=0";
        let mpi = "OMPI_COMM_WORLD_RANK=2 OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_LOCAL_RANK=0";
        let torchrun = "RANK=6 WORLD_SIZE=16 LOCAL_RANK=6 LOCAL_WORLD_SIZE=8";
        assert_eq!(read(slurm).unwrap().rank(), 1);
        assert_eq!(read(&format!("{slurm} {mpi}")).unwrap().rank(), 2);
        assert_eq!(read(&format!("{slurm} {mpi} {torchrun}")).unwrap().rank(), 6);
    }

    #[test]
    fn what_is_incomplete_is_said() {
        assert_eq!(
            refused("RANK=3 MASTER_ADDR=alpha"),
            "environment of torchrun: WORLD_SIZE is not set; found MASTER_ADDR=alpha, RANK=3; \
             start with torchrun or 'collectives launch', or set RANK and WORLD_SIZE both"
        );
        assert!(refused("LOCAL_RANK=1").contains("torchrun: RANK and WORLD_SIZE are not set"));
        assert!(refused("WORLD_SIZE=4").contains("torchrun: RANK is not set"));
        let error = refused("SLURM_NTASKS=8 SLURM_JOB_NODELIST=n[1-2]");
        assert!(error.contains("Slurm: SLURM_PROCID is not set"), "{error}");
        assert!(error.contains("start the program with srun"), "{error}");
        assert!(refused("OMPI_COMM_WORLD_SIZE=4").contains("OMPI_COMM_WORLD_RANK is not set"));
        assert!(refused("SLURM_PROCID=2").contains("SLURM_STEP_NUM_TASKS is not set"));
        assert!(refused("PMI_RANK=4").contains("PMI_SIZE is not set"));
    }

    #[test]
    fn what_contradicts_is_said() {
        for (variables, problem) in [
            ("RANK=8 WORLD_SIZE=8", "rank 8 is not within 8 ranks"),
            ("RANK=0 WORLD_SIZE=0", "rank 0 is not within 0 ranks"),
            ("RANK=-1 WORLD_SIZE=2", "RANK is no such number"),
            ("RANK=x WORLD_SIZE=2", "RANK is no such number"),
            ("RANK=1 WORLD_SIZE=2 MASTER_PORT=70000", "MASTER_PORT is no such number"),
            (
                "RANK=1 WORLD_SIZE=4 LOCAL_RANK=2 LOCAL_WORLD_SIZE=2",
                "rank 2 of this host is not within its 2 ranks",
            ),
            ("RANK=1 WORLD_SIZE=2 LOCAL_RANK=2", "rank 2 of this host is not within 2 ranks"),
            (
                "RANK=1 WORLD_SIZE=2 LOCAL_WORLD_SIZE=4",
                "4 ranks of this host are not within 2 of all hosts",
            ),
            (
                "SLURM_PROCID=1 SLURM_NTASKS=4 SLURM_STEP_NUM_TASKS=2",
                "SLURM_STEP_NUM_TASKS and SLURM_NTASKS differ",
            ),
            (
                "SLURM_PROCID=1 SLURM_STEP_ID=0 SLURM_NTASKS=4 SLURM_JOB_NODELIST=n[1-",
                "SLURM_JOB_NODELIST: host list 'n[1-': a bracket is not closed",
            ),
            (
                "SLURM_PROCID=1 SLURM_STEP_ID=0 SLURM_NTASKS=4 SLURM_TASKS_PER_NODE=2(x",
                "SLURM_TASKS_PER_NODE is no list such as '4(x2),1'",
            ),
            (
                "PMI_RANK=1 PMI_SIZE=4 MPI_LOCALRANKID=1 PMI_LOCAL_RANK=0",
                "MPI_LOCALRANKID and PMI_LOCAL_RANK differ",
            ),
        ] {
            let error = refused(variables);
            assert!(error.contains(problem), "{variables}: {error}");
            // Each of them is shown.
            for pair in variables.split_whitespace() {
                assert!(error.contains(pair), "{pair} in {error}");
            }
        }
    }

    #[test]
    fn tasks_of_hosts() {
        assert_eq!(tasks_per_node("4"), Some(vec![4]));
        assert_eq!(tasks_per_node("2(x3),1"), Some(vec![2, 2, 2, 1]));
        assert_eq!(tasks_per_node("2(x3"), None);
        assert_eq!(tasks_per_node("2(x99999999999)"), None);
        assert_eq!(tasks_per_node(""), None);
    }
}
