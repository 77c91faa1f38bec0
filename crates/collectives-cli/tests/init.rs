//! `collectives::init()`, as programs see it that a launcher has started: this very program, in a role.

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    linux::main()
}

/// The mock's ranks are processes on Linux.
#[cfg(not(target_os = "linux"))]
fn main() {}

#[cfg(target_os = "linux")]
mod linux {
    use std::{
        env, fs,
        net::TcpListener,
        os::unix::fs::symlink,
        path::{Path, PathBuf},
        process::{Command, ExitCode, Output, Stdio, exit},
        thread,
        time::Duration,
    };

    use collectives::{
        Backend, CommConfig, Communicator, ReduceOp, Result, World, WorldConfig,
        mock::{Mock, MockConfig, Ranks},
        rendezvous::{Environment, TcpStoreServer},
    };
    use libtest_mimic::{Arguments, Failed, Trial};
    use rustix::process::{Signal, getpid, kill_process};

    type Outcome = Result<(), Failed>;
    type Test = fn() -> Outcome;

    pub(super) fn main() -> ExitCode {
        let mut arguments = env::args().skip(1);
        if arguments.next().as_deref() == Some(ROLE) {
            let name = arguments.next();
            let role = ROLES.iter().find(|(role, _)| Some(*role) == name.as_deref());
            let (_, role) = role.expect("a role of this program");
            return match role() {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("{error}");
                    ExitCode::FAILURE
                }
            };
        }
        let tests: [(&str, Test); 27] = [
            ("eight_ranks_by_collectives_launch", eight_ranks_by_collectives_launch),
            ("eight_ranks_by_variables_of_slurm", eight_ranks_by_variables_of_slurm),
            ("eight_ranks_by_variables_of_mpich", eight_ranks_by_variables_of_mpich),
            ("ranks_of_one_host_need_no_port", ranks_of_one_host_need_no_port),
            ("a_single_process_needs_nothing", a_single_process_needs_nothing),
            ("worlds_may_follow_each_other", worlds_may_follow_each_other),
            ("perf_takes_part_as_a_rank", perf_takes_part_as_a_rank),
            ("nccl_joins_in_one_line", nccl_joins_in_one_line),
            ("an_id_in_a_variable_needs_no_store", an_id_in_a_variable_needs_no_store),
            ("a_file_of_an_earlier_attempt_is_not_believed", a_file_of_an_earlier_attempt),
            ("a_restart_does_not_meet_the_attempt_before", a_restart_does_not_meet_the_attempt),
            (
                "a_store_of_the_launcher_outlives_attempts",
                a_store_of_the_launcher_outlives_attempts,
            ),
            ("who_does_not_come_is_named_by_all", who_does_not_come_is_named_by_all),
            ("rank_0_is_named_where_it_does_not_come", rank_0_is_named),
            ("two_of_one_rank_are_told", two_of_one_rank_are_told),
            ("other_world_sizes_are_told", other_world_sizes_are_told),
            ("other_versions_are_told_by_rank", other_versions_are_told_by_rank),
            ("other_algorithms_are_told_by_rank", other_algorithms_are_told_by_rank),
            ("other_settings_are_told_by_rank", other_settings_are_told_by_rank),
            ("who_has_no_library_tells_the_others", who_has_no_library_tells_the_others),
            ("two_ranks_on_one_device_are_told", two_ranks_on_one_device_are_told),
            ("who_ends_before_a_join_is_named", who_ends_before_a_join_is_named),
            (
                "rank_0_is_named_where_it_takes_the_store_along",
                rank_0_is_named_where_it_takes_the_store_along,
            ),
            ("who_ends_within_a_join_of_nccl_is_named", who_ends_within_a_join_of_nccl_is_named),
            ("who_ends_within_a_join_is_named", who_ends_within_a_join_is_named),
            ("half_an_environment_is_refused", half_an_environment_is_refused),
            ("more_ranks_than_devices_are_refused", more_ranks_than_devices_are_refused),
        ];
        thread::spawn(|| {
            thread::sleep(DEADLINE);
            eprintln!("late: the tests above that have no result hang");
            exit(1);
        });
        let mut trials: Vec<_> =
            tests.map(|(name, test)| Trial::test(name, test)).into_iter().collect();
        let by_mpirun: [(&str, Test); 2] = [
            ("eight_ranks_by_mpirun", eight_ranks_by_mpirun),
            ("two_jobs_of_mpirun_at_once", two_jobs_of_mpirun_at_once),
        ];
        let there = mpirun(1).arg("--version").output().is_ok();
        for (name, test) in by_mpirun {
            let name = match there {
                true => name.to_owned(),
                false => format!("[needs Open MPI's mpirun] {name}"),
            };
            trials.push(Trial::test(name, test).with_ignored_flag(!there));
        }
        libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
    }

    type Role = fn() -> Result<()>;

    /// What this program does as a rank.
    const ROLES: [(&str, Role); 7] = [
        ("sum", sum),
        ("configured", configured),
        ("twice", twice),
        ("restarted", restarted),
        ("ends_before_join", ends_before_join),
        ("ends_within_join", ends_within_join),
        ("meets_in_file", meets_in_file),
    ];

    /// The one line.
    fn sum() -> Result<()> {
        say_sum(&collectives::init()?)
    }

    fn say_sum(comm: &Communicator) -> Result<()> {
        let stream = comm.new_stream()?;
        let mut buffer = stream.upload(&[comm.rank() as f32 + 1.0])?;
        comm.on(&stream).all_reduce_in_place(&mut buffer, ReduceOp::Sum)?;
        let sum = buffer.to_vec(&stream)?;
        println!("{} {sum:?}", comm.info().library.backend);
        Ok(())
    }

    /// With the deadline, the device and the settings that the test wants.
    fn config() -> WorldConfig {
        let number = |name| env::var(name).ok().map(|text| text.parse().expect("a number"));
        let mut config = WorldConfig::new();
        if let Some(deadline) = number("TEST_DEADLINE_MS") {
            config = config.with_deadline(Duration::from_millis(deadline));
        }
        if let Some(most) = number("TEST_CTAS") {
            config = config.with_comm_config(CommConfig::new().with_ctas(1..=most as u32));
        }
        match number("TEST_DEVICE") {
            Some(device) => config.with_device(device as usize),
            None => config,
        }
    }

    fn configured() -> Result<()> {
        say_sum(&config().open()?.communicator("world")?)
    }

    /// Two worlds one after the other, and two communicators of one.
    fn twice() -> Result<()> {
        say_sum(&collectives::init()?)?;
        let world = World::from_env()?;
        let first = world.communicator("tensor_parallel")?;
        let second = world.communicator("tensor_parallel")?;
        say_sum(&first)?;
        say_sum(&second)
    }

    /// Fails in its first attempt, in rank 1 and after all have joined.
    fn restarted() -> Result<()> {
        let environment = Environment::from_env()?;
        let comm = collectives::init()?;
        if environment.restart() == 0 && environment.rank() == 1 {
            exit(3);
        }
        say_sum(&comm)
    }

    fn ends_before_join() -> Result<()> {
        let world = config().open()?;
        if env::var("TEST_KILLED") == Ok(world.rank().to_string()) {
            kill_process(getpid(), Signal::KILL).expect("it is this process");
        }
        say_sum(&world.communicator("train")?)
    }

    /// Rank 2 is late in its join, by a fault, and killed meanwhile.
    fn ends_within_join() -> Result<()> {
        let world = config().open()?;
        if world.rank() == 2 {
            thread::spawn(|| {
                thread::sleep(Duration::from_millis(300));
                kill_process(getpid(), Signal::KILL)
            });
        }
        say_sum(&world.communicator("train")?)
    }

    fn meets_in_file() -> Result<()> {
        let path = env::var_os("TEST_FILE").expect("set by the test");
        let epoch = env::var("TEST_EPOCH").expect("set by the test").parse().expect("a number");
        let world = config().with_file(path).with_epoch(epoch).open()?;
        say_sum(&world.communicator("world")?)
    }

    fn eight_ranks_by_collectives_launch() -> Outcome {
        let output = launch(&["-n", "8", "--no-prefix", "--backend", "mock"], "sum").output()?;
        eight_sums(&output)
    }

    fn eight_ranks_by_mpirun() -> Outcome {
        eight_sums(&rank_of(&mut mpirun(8), "sum").output()?)
    }

    /// As nccl-tests is run.
    fn perf_takes_part_as_a_rank() -> Outcome {
        let perf = env!("CARGO_BIN_EXE_collectives");
        let mut command = Command::new(perf);
        clean(&mut command).args([
            "launch",
            "-n",
            "4",
            "--no-prefix",
            "--backend",
            "mock",
            "--",
            perf,
        ]);
        command.args([
            "perf",
            "all_reduce",
            "--mode",
            "launched",
            "-b",
            "8",
            "-e",
            "1K",
            "-f",
            "8",
        ]);
        let output = command.args(["--iters", "5", "--warmup", "1"]).output()?;
        let out = text(&output.stdout);
        let rows =
            out.lines().filter(|line| line.contains(" f32 ") || line.contains("float")).count();
        let once = out.matches("# backend ").count() == 1;
        let all = out.contains("rank  3 on device  3")
            && out.contains("4, processes started by a launcher");
        check(output.status.success() && rows == 3 && once && all, &output)
    }

    fn two_jobs_of_mpirun_at_once() -> Outcome {
        let jobs = [8, 8].map(|ranks| {
            let mut command = mpirun(ranks);
            rank_of(&mut command, "sum").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
        });
        for job in jobs {
            eight_sums(&job?.wait_with_output()?)?;
        }
        Ok(())
    }

    fn eight_ranks_by_variables_of_slurm() -> Outcome {
        // Its last digits become the port.
        let job = (20_000 + (free_port()? % 10_000)).to_string();
        let outputs = ranks(0..8, "sum", |rank, command| {
            command.envs([
                ("SLURM_PROCID", rank.to_string().as_str()),
                ("SLURM_LOCALID", rank.to_string().as_str()),
                ("SLURM_NTASKS", "8"),
                ("SLURM_NODEID", "0"),
                ("SLURM_TASKS_PER_NODE", "8"),
                ("SLURM_JOB_NODELIST", "localhost"),
                ("SLURM_JOB_ID", job.as_str()),
                ("SLURM_STEP_ID", "0"),
            ]);
        })?;
        all_say(&outputs, "mock [36.0]\n")
    }

    fn eight_ranks_by_variables_of_mpich() -> Outcome {
        let outputs = ranks(0..8, "sum", |rank, command| {
            let rank = rank.to_string();
            command.envs([("PMI_RANK", rank.as_str()), ("MPI_LOCALRANKID", &rank)]);
            command.envs([("PMI_SIZE", "8"), ("MPI_LOCALNRANKS", "8")]);
        })?;
        all_say(&outputs, "mock [36.0]\n")
    }

    /// Even with shells between them and what started them.
    fn ranks_of_one_host_need_no_port() -> Outcome {
        let program = env::current_exe()?;
        let script = format!(
            "for rank in 0 1 2; do export RANK=$rank LOCAL_RANK=$rank; \
             sh -c '\"$1\" {ROLE} sum; true' sh \"{}\" & done; wait",
            program.display()
        );
        // The script itself must not be taken for a rank.
        let mut command = Command::new("sh");
        clean(&mut command).arg("-c").arg(script);
        command.env("WORLD_SIZE", "3").env("LOCAL_WORLD_SIZE", "3");
        let output = command.output()?;
        check(text(&output.stdout) == "mock [6.0]\n".repeat(3), &output)
    }

    fn a_single_process_needs_nothing() -> Outcome {
        let outputs = ranks(0..1, "sum", |_, _| {})?;
        all_say(&outputs, "mock [1.0]\n")
    }

    fn worlds_may_follow_each_other() -> Outcome {
        let output = launch(&["-n", "4", "--no-prefix", "--backend", "mock"], "twice").output()?;
        check(
            output.status.success() && text(&output.stdout) == "mock [10.0]\n".repeat(12),
            &output,
        )
    }

    /// NCCL's backend over the mock's library.
    fn nccl_joins_in_one_line() -> Outcome {
        let mut command = launch(&["-n", "4", "--no-prefix", "--backend", "nccl"], "sum");
        let output = over_mock_abi(&mut command)?.output()?;
        check(output.status.success() && text(&output.stdout) == "NCCL [10.0]\n".repeat(4), &output)
    }

    fn an_id_in_a_variable_needs_no_store() -> Outcome {
        let mock = Mock::new(MockConfig::new().with_ranks(Ranks::Processes));
        let id = mock.unique_id()?.to_base64();
        let outputs = ranks(0..3, "sum", |rank, command| {
            torchrun(command, rank, 3, 1).env("COLLECTIVES_UNIQUE_ID", &id);
        })?;
        all_say(&outputs, "mock [6.0]\n")
    }

    fn a_file_of_an_earlier_attempt() -> Outcome {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("meeting");
        for epoch in ["1", "2"] {
            let outputs = ranks(0..3, "meets_in_file", |rank, command| {
                torchrun(command, rank, 3, 1).env("TEST_FILE", &path).env("TEST_EPOCH", epoch);
            })?;
            all_say(&outputs, "mock [6.0]\n")?;
        }
        // The file is there, and its rank 0 is not.
        let outputs = ranks(1..2, "meets_in_file", |rank, command| {
            torchrun(command, rank, 3, 1).env("TEST_FILE", &path).env("TEST_EPOCH", "3");
            command.env("TEST_DEADLINE_MS", "300");
        })?;
        all_fail(&outputs, ": rank 0 of 3, which makes the file to meet in, was not reached: ")?;
        all_fail(&outputs, "no file of run 'job/3/0' within 300ms: it is of run 'job/2/0'")
    }

    fn a_restart_does_not_meet_the_attempt() -> Outcome {
        let options = ["-n", "4", "--no-prefix", "--backend", "mock", "--max-restarts", "1"];
        let output = launch(&options, "restarted").output()?;
        check(output.status.success() && text(&output.stdout).ends_with("mock [10.0]\n"), &output)
    }

    /// As torchrun's does, for all attempts of a job.
    fn a_store_of_the_launcher_outlives_attempts() -> Outcome {
        let server = TcpStoreServer::bind("127.0.0.1:0")?;
        let port = server.address().port();
        let attempt = |restart: &'static str| {
            move |rank: u32, command: &mut Command| {
                torchrun(command, rank, 4, port).env("TORCHELASTIC_USE_AGENT_STORE", "True");
                command.env("TORCHELASTIC_RUN_ID", "run").env("TEST_DEADLINE_MS", "5000");
                command.env("TORCHELASTIC_RESTART_COUNT", restart);
            }
        };
        // In the first, somebody is missing.
        let outputs = ranks(0..3, "configured", attempt("0"))?;
        all_say_alike(&outputs, ": rank 3 of 4 did not come within 5s, says rank ")?;
        // It is too late for the fourth, and it hears so at once.
        let late = ranks(3..4, "configured", attempt("0"))?;
        all_say_alike(&late, ": rank 3 of 4 did not come within 5s, says rank ")?;
        all_say(&ranks(0..4, "configured", attempt("1"))?, "mock [10.0]\n")
    }

    fn who_does_not_come_is_named_by_all() -> Outcome {
        let port = free_port()?;
        let outputs = ranks([0, 1, 3], "configured", |rank, command| {
            torchrun(command, rank, 4, port).env("TEST_DEADLINE_MS", "5000");
        })?;
        all_say_alike(&outputs, ": rank 2 of 4 did not come within 5s, says rank ")
    }

    fn rank_0_is_named() -> Outcome {
        let port = free_port()?;
        let outputs = ranks(1..3, "configured", |rank, command| {
            torchrun(command, rank, 3, port).env("TEST_DEADLINE_MS", "500");
        })?;
        all_fail(&outputs, ": rank 0 of 3, which serves the store, was not reached: ")
    }

    fn two_of_one_rank_are_told() -> Outcome {
        let port = free_port()?;
        let outputs = ranks([0, 1, 1], "configured", |rank, command| {
            torchrun(command, rank, 3, port);
        })?;
        all_say_alike(&outputs, ": two processes are rank 1: pid ")
    }

    fn other_world_sizes_are_told() -> Outcome {
        let port = free_port()?;
        let outputs = ranks(0..3, "configured", |rank, command| {
            torchrun(command, rank, if rank == 1 { 4 } else { 3 }, port);
        })?;
        all_fail(&outputs, ": world sizes differ: ")?;
        all_say_alike(&outputs, "rank 1: 4")
    }

    fn other_versions_are_told_by_rank() -> Outcome {
        let port = free_port()?;
        let outputs = ranks(0..4, "configured", |rank, command| {
            torchrun(command, rank, 4, port);
            if rank == 2 {
                let plan = "[[rule]]\naction = { version = \"2.18.3\" }";
                command.env("COLLECTIVES_MOCK_FAULTS", plan);
            }
        })?;
        all_say_alike(
            &outputs,
            ": libraries differ: ranks 0, 1 and 3: mock 2.32.3; rank 2: mock 2.18.3; one release on all ranks",
        )
    }

    fn other_algorithms_are_told_by_rank() -> Outcome {
        let port = free_port()?;
        let outputs = ranks(0..3, "configured", |rank, command| {
            torchrun(command, rank, 3, port);
            if rank == 1 {
                command.env("NCCL_ALGO", "Ring").env("NCCL_DEBUG", "WARN");
            }
        })?;
        all_say_alike(
            &outputs,
            "variables differ that ranks must agree on: NCCL_ALGO (ranks 0 and 2: not set; rank 1: RING)",
        )
    }

    fn other_settings_are_told_by_rank() -> Outcome {
        let port = free_port()?;
        let outputs = ranks(0..3, "configured", |rank, command| {
            torchrun(command, rank, 3, port);
            if rank == 1 {
                command.env("TEST_CTAS", "4");
            }
        })?;
        all_say_alike(
            &outputs,
            "communicator settings differ that ranks must agree on: ctas (ranks 0 and 2: not set; rank 1: 1..=4)",
        )
    }

    fn who_has_no_library_tells_the_others() -> Outcome {
        let port = free_port()?;
        // They need not wait for rank 3, which does not come.
        let outputs = ranks(0..3, "configured", |rank, command| {
            torchrun(command, rank, 4, port);
            if rank == 2 {
                command.env("COLLECTIVES_BACKEND", "nccl");
                command.env("COLLECTIVES_NCCL_PATH", "/nowhere/libnccl.so.2");
            }
        })?;
        all_fail(&outputs, "/nowhere/libnccl.so.2")?;
        all_fail(&outputs[..2], ": rank 2 cannot take part: ")
    }

    fn two_ranks_on_one_device_are_told() -> Outcome {
        let port = free_port()?;
        let outputs = ranks(0..3, "configured", |rank, command| {
            torchrun(command, rank, 3, port).env("COLLECTIVES_BACKEND", "nccl");
            over_mock_abi(command).expect("the library can be laid out");
            command.env("TEST_DEVICE", if rank == 1 { "1" } else { "0" });
        })?;
        all_say_alike(&outputs, ": ranks 0 and 2 are all on device 0000:")
    }

    fn who_ends_before_a_join_is_named() -> Outcome {
        let port = free_port()?;
        let outputs = ranks(0..4, "ends_before_join", |rank, command| {
            torchrun(command, rank, 4, port)
                .env("TEST_DEADLINE_MS", "5000")
                .env("TEST_KILLED", "2");
        })?;
        survivors_say(
            &outputs,
            2,
            ": communicator 'train': rank 2 of 4 did not come within 5s, says rank ",
        )
    }

    fn rank_0_is_named_where_it_takes_the_store_along() -> Outcome {
        let port = free_port()?;
        let outputs = ranks(0..3, "ends_before_join", |rank, command| {
            torchrun(command, rank, 3, port).env("TEST_KILLED", "0");
        })?;
        survivors_say(
            &outputs,
            0,
            ": rank 0 of 3, which serves the store, has ended or cannot be reached: ",
        )
    }

    fn who_ends_within_a_join_is_named() -> Outcome {
        ends_within_a_join(|command| Ok(command))
    }

    fn who_ends_within_a_join_of_nccl_is_named() -> Outcome {
        ends_within_a_join(|command| over_mock_abi(command.env("COLLECTIVES_BACKEND", "nccl")))
    }

    fn ends_within_a_join(equip: fn(&mut Command) -> Result<&mut Command, Failed>) -> Outcome {
        let port = free_port()?;
        let late = "[[rule]]\nrank = 2\naction = { join_late = \"60s\" }";
        let outputs = ranks(0..4, "ends_within_join", |rank, command| {
            torchrun(command, rank, 4, port).env("TEST_DEADLINE_MS", "5000");
            equip(command.env("COLLECTIVES_MOCK_FAULTS", late)).expect("what a rank needs");
        })?;
        survivors_say(
            &outputs,
            2,
            ": communicator 'train': rank 2 of 4 came, but gave no sign within 5s of joining: pid ",
        )
    }

    fn half_an_environment_is_refused() -> Outcome {
        let outputs = ranks(3..4, "sum", |rank, command| {
            command.env("RANK", rank.to_string()).env("MASTER_ADDR", "alpha");
        })?;
        all_fail(&outputs, "WORLD_SIZE is not set; found MASTER_ADDR=alpha, RANK=3")
    }

    fn more_ranks_than_devices_are_refused() -> Outcome {
        let port = free_port()?;
        let outputs = ranks(0..3, "configured", |rank, command| {
            torchrun(command, rank, 3, port).env("COLLECTIVES_MOCK_DEVICES", "2");
        })?;
        all_fail(&outputs, "this is process 2 of its host, and sees 2 devices")
    }

    /// Starts these ranks, and waits for all.
    fn ranks(
        ranks: impl IntoIterator<Item = u32>,
        role: &str,
        equip: impl Fn(u32, &mut Command),
    ) -> Result<Vec<Output>, Failed> {
        let mut running = Vec::new();
        for rank in ranks {
            let mut command = Command::new(env::current_exe()?);
            clean(&mut command).args([ROLE, role]).env("COLLECTIVES_BACKEND", "mock");
            equip(rank, &mut command);
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            running.push(command.spawn()?);
        }
        running.into_iter().map(|rank| Ok(rank.wait_with_output()?)).collect()
    }

    /// Torchrun's variables, for ranks of this host.
    fn torchrun(command: &mut Command, rank: u32, size: usize, port: u16) -> &mut Command {
        command.env("RANK", rank.to_string()).env("LOCAL_RANK", rank.to_string());
        command.env("WORLD_SIZE", size.to_string());
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string())
    }

    fn launch(options: &[&str], role: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_collectives"));
        clean(&mut command).arg("launch").args(options).arg("--");
        command.arg(env::current_exe().expect("this program")).args([ROLE, role]);
        command
    }

    fn mpirun(ranks: usize) -> Command {
        let mut command = Command::new("mpirun");
        clean(&mut command).args(["--oversubscribe", "-n", &ranks.to_string()]);
        // Containers have no other user.
        command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        command.env("PRTE_ALLOW_RUN_AS_ROOT", "1").env("PRTE_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        command.env("COLLECTIVES_BACKEND", "mock");
        command
    }

    fn rank_of<'a>(command: &'a mut Command, role: &str) -> &'a mut Command {
        command.arg(env::current_exe().expect("this program")).args([ROLE, role])
    }

    /// Without what another launcher may have told this program.
    fn clean(command: &mut Command) -> &mut Command {
        const PREFIXES: [&str; 11] = [
            "COLLECTIVES_",
            "GROUP_",
            "LOCAL_",
            "MASTER_",
            "MPI_",
            "NCCL_",
            "OMPI_",
            "PMI",
            "RANK",
            "SLURM_",
            "WORLD_",
        ];
        for (name, _) in env::vars_os() {
            let text = name.to_string_lossy();
            if PREFIXES.iter().any(|prefix| text.starts_with(prefix)) {
                command.env_remove(&name);
            }
        }
        command.env_remove("TORCHELASTIC_USE_AGENT_STORE").env_remove("TORCHELASTIC_RUN_ID")
    }

    /// Lets a rank find the mock's library in place of NCCL and CUDA.
    fn over_mock_abi(command: &mut Command) -> Result<&mut Command, Failed> {
        let folder = mock_abi()?;
        command.env("LD_LIBRARY_PATH", &folder).env_remove("CUDA_VISIBLE_DEVICES");
        Ok(command.env("COLLECTIVES_NCCL_PATH", folder.join("libnccl.so.2")))
    }

    fn mock_abi() -> std::io::Result<PathBuf> {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("init-mock-abi");
        fs::create_dir_all(&folder)?;
        let library = env::current_exe()?.with_file_name("libcollectives_mock_abi.so");
        for name in ["libcuda.so.1", "libnccl.so.2"] {
            match symlink(&library, folder.join(name)) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(error);
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(folder)
    }

    fn free_port() -> std::io::Result<u16> {
        Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
    }

    fn eight_sums(output: &Output) -> Outcome {
        check(output.status.success() && text(&output.stdout) == "mock [36.0]\n".repeat(8), output)
    }

    fn all_say(outputs: &[Output], expected: &str) -> Outcome {
        outputs.iter().try_for_each(|output| {
            check(output.status.success() && text(&output.stdout) == expected, output)
        })
    }

    fn all_fail(outputs: &[Output], expected: &str) -> Outcome {
        outputs.iter().try_for_each(|output| {
            check(!output.status.success() && text(&output.stderr).contains(expected), output)
        })
    }

    /// All have the same words for it, behind their rank.
    fn all_say_alike(outputs: &[Output], expected: &str) -> Outcome {
        all_fail(outputs, expected)?;
        let words = |output: &Output| {
            text(&output.stderr).split_once("): ").map(|(_, words)| words.to_owned())
        };
        outputs.iter().try_for_each(|output| check(words(output) == words(&outputs[0]), output))
    }

    /// One was killed, and the others say the same of it.
    fn survivors_say(outputs: &[Output], killed: usize, expected: &str) -> Outcome {
        for (rank, output) in outputs.iter().enumerate() {
            if rank == killed {
                check(output.status.code().is_none(), output)?;
            } else {
                all_fail(std::slice::from_ref(output), expected)?;
            }
        }
        Ok(())
    }

    fn check(holds: bool, output: &Output) -> Outcome {
        if holds {
            return Ok(());
        }
        let (status, out) = (output.status, text(&output.stdout));
        Err(format!("{status}\nstdout: {out}\nstderr: {}", text(&output.stderr)).into())
    }

    fn text(bytes: &[u8]) -> String {
        String::from_utf8_lossy(bytes).into_owned()
    }

    const ROLE: &str = "--role";
    /// For all tests together.
    const DEADLINE: Duration = Duration::from_secs(540);
}
