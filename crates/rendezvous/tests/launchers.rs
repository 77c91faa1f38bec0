//! What launchers told their ranks, and what comes of it. `scripts/launchers --record` writes the files:
//! each has the variables of the ranks of one job, as they were on the hosts alpha and beta.

use std::{collections::BTreeMap, fs, path::PathBuf};

use collectives_rendezvous::{Environment, Launcher};

/// What is to be read from a file, of ranks 0 to 3.
struct Job {
    file: &'static str,
    launcher: Launcher,
    /// Their numbers on their hosts.
    local_ranks: [u32; 4],
    /// How many ranks each host has, where that is told.
    local_size: Option<usize>,
    /// The numbers of their hosts, where they are told.
    nodes: Option<[u32; 4]>,
    hosts: &'static [&'static str],
    master_address: &'static str,
    has_port: bool,
}

#[test]
fn ranks_are_where_their_launchers_put_them() {
    for job in JOBS {
        let ranks: Vec<_> = sections(job.file)
            .into_iter()
            .map(|(rank, variables)| {
                let environment = read(&variables);
                let environment = environment.unwrap_or_else(|error| panic!("{rank}: {error}"));
                assert_eq!(rank, format!("rank {}", environment.rank()), "{}", job.file);
                environment
            })
            .collect();
        assert_eq!(ranks.len(), 4, "{}", job.file);
        for (rank, environment) in ranks.iter().enumerate() {
            let file = job.file;
            assert_eq!(environment.launcher(), job.launcher, "{file}");
            assert_eq!(environment.size(), 4, "{file}");
            assert_eq!(environment.local_rank(), Some(job.local_ranks[rank]), "{file}");
            assert_eq!(environment.local_size(), job.local_size, "{file}");
            assert_eq!(environment.node(), job.nodes.map(|nodes| nodes[rank]), "{file}");
            assert_eq!(environment.hosts(), job.hosts, "{file}");
            assert_eq!(environment.master_address(), Some(job.master_address), "{file}");
            assert_eq!(environment.master_port().is_some(), job.has_port, "{file}");
            // Else they would not meet.
            assert_eq!(environment.master_port(), ranks[0].master_port(), "{file}");
            assert_eq!(environment.job(), ranks[0].job(), "{file}");
        }
    }
}

#[test]
fn a_program_that_srun_has_not_started_is_told_so() {
    for (file, what) in [
        ("a-batch-script-of-2-hosts-22.05.8", "2 hosts, as SLURM_STEP_ID is not set"),
        ("a-batch-script-of-4-tasks-22.05.8", "4 tasks, as SLURM_STEP_ID is not set"),
        ("a-command-of-salloc-22.05.8", "4 tasks, as SLURM_STEP_ID is not set"),
        ("the-interactive-shell-of-salloc-22.05.8", "4 tasks, as SLURM_STEP_ID is that of a shell"),
    ] {
        for (_, variables) in sections(file) {
            let error = read(&variables).unwrap_err().to_string();
            let words = format!(
                "this is no task of srun, but the batch script or shell of a job for {what}"
            );
            assert!(error.contains(&words), "{file}: {error}");
            assert!(error.contains("start the program with srun or torchrun"), "{file}: {error}");
        }
    }
}

/// Rank 0 is on beta, and the list begins with alpha.
#[test]
fn where_tasks_are_listed_one_by_one_the_place_to_meet_is_not_guessed() {
    let ranks = sections("srun-m-arbitrary-22.05.8");
    assert_eq!(ranks.len(), 2);
    for variables in ranks.values() {
        let environment = read(variables).unwrap();
        assert_eq!(environment.hosts(), ["alpha", "beta"]);
        assert_eq!(environment.master_address(), None);
        let told = read(&format!("{variables}\nMASTER_ADDR=beta")).unwrap();
        assert_eq!(told.master_address(), Some("beta"));
    }
}

#[test]
fn every_file_is_read_here() {
    let known: Vec<_> = JOBS.iter().map(|job| job.file).chain(OTHERS).collect();
    for entry in fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let stem = name.strip_suffix(".env").expect("a file of variables");
        assert!(known.contains(&stem), "{name} is in no test");
    }
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/launchers")
}

/// The variables in a file, by `rank 0` and so on.
fn sections(file: &str) -> BTreeMap<String, String> {
    let text = fs::read_to_string(folder().join(format!("{file}.env"))).expect(file);
    let sections = text.split("\n[").skip(1);
    sections
        .map(|section| {
            let (rank, variables) = section.split_once("]\n").expect("the head of a section");
            (rank.to_owned(), variables.to_owned())
        })
        .collect()
}

fn read(variables: &str) -> collectives_core::Result<Environment> {
    Environment::from_variables(|name| {
        let mut pairs = variables.lines().filter_map(|line| line.split_once('='));
        pairs.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
    })
}

const JOBS: [Job; 32] = [
    Job {
        file: "collectives-launch-0.1.0",
        launcher: Launcher::Torchrun,
        local_ranks: ALL,
        local_size: Some(4),
        nodes: Some([0; 4]),
        hosts: &[],
        master_address: "127.0.0.1",
        has_port: true,
    },
    Job {
        file: "intel-mpi-2021.18.1-on-two-hosts",
        launcher: Launcher::Mpich,
        local_ranks: HALVES,
        local_size: Some(2),
        nodes: None,
        hosts: &[],
        master_address: "alpha",
        has_port: true,
    },
    Job {
        file: "intel-mpi-2021.18.1",
        launcher: Launcher::Mpich,
        local_ranks: ALL,
        local_size: Some(4),
        nodes: None,
        hosts: &[],
        master_address: "127.0.0.1",
        has_port: false,
    },
    Job {
        file: "mpich-4.0.2-on-two-hosts",
        launcher: Launcher::Mpich,
        local_ranks: HALVES,
        local_size: Some(2),
        nodes: None,
        hosts: &[],
        master_address: "alpha",
        has_port: true,
    },
    Job {
        file: "mpich-4.0.2",
        launcher: Launcher::Mpich,
        local_ranks: ALL,
        local_size: Some(4),
        nodes: None,
        hosts: &[],
        master_address: "127.0.0.1",
        has_port: false,
    },
    Job {
        file: "mpich-5.0.2-on-two-hosts",
        launcher: Launcher::Mpich,
        local_ranks: HALVES,
        local_size: Some(2),
        nodes: None,
        hosts: &[],
        master_address: "alpha",
        has_port: true,
    },
    Job {
        file: "mpich-5.0.2",
        launcher: Launcher::Mpich,
        local_ranks: ALL,
        local_size: Some(4),
        nodes: None,
        hosts: &[],
        master_address: "127.0.0.1",
        has_port: false,
    },
    Job {
        file: "mpich-in-a-batch-script-22.05.8-on-two-hosts",
        launcher: Launcher::Mpich,
        local_ranks: HALVES,
        local_size: Some(2),
        nodes: None,
        hosts: &[],
        master_address: "alpha",
        has_port: true,
    },
    Job {
        file: "mpich-in-a-batch-script-22.05.8",
        launcher: Launcher::Mpich,
        local_ranks: ALL,
        local_size: Some(4),
        nodes: None,
        hosts: &[],
        master_address: "127.0.0.1",
        has_port: false,
    },
    Job {
        file: "open-mpi-4.1.4-on-two-hosts",
        launcher: Launcher::OpenMpi,
        local_ranks: HALVES,
        local_size: Some(2),
        nodes: None,
        hosts: &[],
        master_address: "alpha",
        has_port: true,
    },
    Job {
        file: "open-mpi-4.1.4",
        launcher: Launcher::OpenMpi,
        local_ranks: ALL,
        local_size: Some(4),
        nodes: None,
        hosts: &[],
        master_address: "127.0.0.1",
        has_port: false,
    },
    Job {
        file: "open-mpi-5.0.11-on-two-hosts",
        launcher: Launcher::OpenMpi,
        local_ranks: HALVES,
        local_size: Some(2),
        nodes: None,
        hosts: &[],
        master_address: "alpha",
        has_port: true,
    },
    Job {
        file: "open-mpi-5.0.11",
        launcher: Launcher::OpenMpi,
        local_ranks: [0, 2, 1, 3],
        local_size: Some(4),
        nodes: None,
        hosts: &[],
        master_address: "127.0.0.1",
        has_port: false,
    },
    Job {
        file: "open-mpi-in-a-batch-script-22.05.8",
        launcher: Launcher::OpenMpi,
        local_ranks: ALL,
        local_size: Some(4),
        nodes: None,
        hosts: &[],
        master_address: "127.0.0.1",
        has_port: false,
    },
    Job {
        file: "srun-22.05.8-on-two-hosts",
        launcher: Launcher::Slurm,
        local_ranks: HALVES,
        local_size: Some(2),
        nodes: Some(SECOND_HALF_THERE),
        hosts: &["alpha", "beta"],
        master_address: "alpha",
        has_port: true,
    },
    Job {
        file: "srun-22.05.8",
        launcher: Launcher::Slurm,
        local_ranks: ALL,
        local_size: Some(4),
        nodes: Some([0; 4]),
        hosts: &["alpha"],
        master_address: "alpha",
        has_port: true,
    },
    Job {
        file: "srun-in-a-batch-script-22.05.8-on-two-hosts",
        launcher: Launcher::Slurm,
        local_ranks: HALVES,
        local_size: Some(2),
        nodes: Some(SECOND_HALF_THERE),
        hosts: &["alpha", "beta"],
        master_address: "alpha",
        has_port: true,
    },
    Job {
        file: "srun-in-a-batch-script-22.05.8",
        launcher: Launcher::Slurm,
        local_ranks: ALL,
        local_size: Some(4),
        nodes: Some([0; 4]),
        hosts: &["alpha"],
        master_address: "alpha",
        has_port: true,
    },
    Job {
        file: "srun-mpi-pmi2-22.05.8-on-two-hosts",
        launcher: Launcher::Mpich,
        local_ranks: HALVES,
        local_size: Some(2),
        nodes: Some(SECOND_HALF_THERE),
        hosts: &["alpha", "beta"],
        master_address: "alpha",
        has_port: true,
    },
    Job {
        file: "srun-mpi-pmi2-22.05.8",
        launcher: Launcher::Mpich,
        local_ranks: ALL,
        local_size: Some(4),
        nodes: Some([0; 4]),
        hosts: &["alpha"],
        master_address: "alpha",
        has_port: true,
    },
    Job {
        file: "srun-mpi-pmix-22.05.8-on-two-hosts",
        launcher: Launcher::Pmix,
        local_ranks: HALVES,
        local_size: Some(2),
        nodes: Some(SECOND_HALF_THERE),
        hosts: &["alpha", "beta"],
        master_address: "alpha",
        has_port: true,
    },
    Job {
        file: "srun-mpi-pmix-22.05.8",
        launcher: Launcher::Pmix,
        local_ranks: ALL,
        local_size: Some(4),
        nodes: Some([0; 4]),
        hosts: &["alpha"],
        master_address: "alpha",
        has_port: true,
    },
    Job {
        file: "srun-of-salloc-22.05.8-on-two-hosts",
        launcher: Launcher::Slurm,
        local_ranks: HALVES,
        local_size: Some(2),
        nodes: Some(SECOND_HALF_THERE),
        hosts: &["alpha", "beta"],
        master_address: "alpha",
        has_port: true,
    },
    Job {
        file: "srun-of-salloc-22.05.8",
        launcher: Launcher::Slurm,
        local_ranks: ALL,
        local_size: Some(4),
        nodes: Some([0; 4]),
        hosts: &["alpha"],
        master_address: "alpha",
        has_port: true,
    },
    Job {
        file: "srun-of-two-components-22.05.8-on-two-hosts",
        launcher: Launcher::Slurm,
        local_ranks: HALVES,
        local_size: Some(2),
        nodes: Some(SECOND_HALF_THERE),
        hosts: &["alpha", "beta"],
        master_address: "alpha",
        has_port: true,
    },
    Job {
        file: "torchrun-2.11.0-on-two-hosts",
        launcher: Launcher::Torchrun,
        local_ranks: HALVES,
        local_size: Some(2),
        nodes: Some(SECOND_HALF_THERE),
        hosts: &[],
        master_address: "alpha",
        has_port: true,
    },
    Job {
        file: "torchrun-2.11.0",
        launcher: Launcher::Torchrun,
        local_ranks: ALL,
        local_size: Some(4),
        nodes: Some([0; 4]),
        hosts: &[],
        master_address: "127.0.0.1",
        has_port: true,
    },
    Job {
        file: "torchrun-by-srun-22.05.8-on-two-hosts",
        launcher: Launcher::Torchrun,
        local_ranks: HALVES,
        local_size: Some(2),
        nodes: Some(SECOND_HALF_THERE),
        hosts: &[],
        master_address: "alpha",
        has_port: true,
    },
    Job {
        file: "torchrun-by-srun-22.05.8",
        launcher: Launcher::Torchrun,
        local_ranks: ALL,
        local_size: Some(4),
        nodes: Some([0; 4]),
        hosts: &[],
        master_address: "alpha",
        has_port: true,
    },
    Job {
        file: "torchrun-c10d-rendezvous-2.11.0-on-two-hosts",
        launcher: Launcher::Torchrun,
        local_ranks: HALVES,
        local_size: Some(2),
        nodes: Some(SECOND_HALF_THERE),
        hosts: &[],
        master_address: "alpha",
        has_port: true,
    },
    Job {
        file: "variables-on-two-hosts",
        launcher: Launcher::Torchrun,
        local_ranks: HALVES,
        local_size: None,
        nodes: None,
        hosts: &[],
        master_address: "alpha",
        has_port: true,
    },
    Job {
        file: "variables",
        launcher: Launcher::Torchrun,
        local_ranks: ALL,
        local_size: None,
        nodes: None,
        hosts: &[],
        master_address: "alpha",
        has_port: true,
    },
];

/// Not of four ranks.
const OTHERS: [&str; 5] = [
    "a-batch-script-of-2-hosts-22.05.8",
    "a-batch-script-of-4-tasks-22.05.8",
    "a-command-of-salloc-22.05.8",
    "srun-m-arbitrary-22.05.8",
    "the-interactive-shell-of-salloc-22.05.8",
];

const ALL: [u32; 4] = [0, 1, 2, 3];
const HALVES: [u32; 4] = [0, 1, 0, 1];
const SECOND_HALF_THERE: [u32; 4] = [0, 0, 1, 1];
