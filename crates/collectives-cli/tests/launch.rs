//! `collectives launch`, as users see it. The ranks are shells, or this very program in a role.

#[cfg(unix)]
fn main() -> std::process::ExitCode {
    unix::main()
}

/// There is no such command.
#[cfg(not(unix))]
fn main() {}

#[cfg(unix)]
mod unix {
    use std::{
        collections::BTreeSet,
        env, fs,
        io::{self, BufRead, BufReader, Read, Write},
        net::{TcpListener, TcpStream},
        path::Path,
        process::{Child, Command, ExitCode, Output, Stdio, exit},
        sync::{Arc, atomic::AtomicBool},
        thread,
        time::{Duration, Instant},
    };

    use collectives::{Backend, Communicator, JoinConfig, ReduceOp, ShrinkConfig, UniqueId};
    use libtest_mimic::{Arguments, Failed, Trial};
    use rustix::process::{Pid, Signal, kill_process, test_kill_process};
    use signal_hook::{
        consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM},
        flag,
    };

    type Outcome = Result<(), Failed>;
    type Test = fn() -> Outcome;
    type Role = fn() -> collectives::Result<()>;

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
        // What this program was started to ignore, as in the background of a script, the command would
        // ignore, too. Of a signal with a handler, what is executed has the default again.
        for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM] {
            let always = Arc::new(AtomicBool::new(true));
            flag::register_conditional_default(signal, always).expect("a signal that can be had");
        }
        let tests: [(&str, Test); 25] = [
            ("eight_ranks_sum_on_the_mock", eight_ranks_sum_on_the_mock),
            ("more_ranks_than_the_mock_has_devices", more_ranks_than_the_mock_has_devices),
            ("survivors_are_told_which_signal", survivors_are_told_which_signal),
            ("a_join_is_not_waited_for_in_vain", a_join_is_not_waited_for_in_vain),
            (
                "a_rank_may_be_a_child_of_what_was_started",
                a_rank_may_be_a_child_of_what_was_started,
            ),
            ("ranks_find_the_variables_of_torchrun", ranks_find_the_variables_of_torchrun),
            ("what_is_set_stays_where_it_may", what_is_set_stays_where_it_may),
            ("the_first_failure_ends_all", the_first_failure_ends_all),
            ("the_others_go_on_where_they_may", the_others_go_on_where_they_may),
            ("who_ignores_sigterm_is_killed", who_ignores_sigterm_is_killed),
            ("a_killed_rank_is_137", a_killed_rank_is_137),
            ("sigterm_is_passed_on", sigterm_is_passed_on),
            ("a_second_interrupt_kills", a_second_interrupt_kills),
            ("an_ignored_hangup_stays_ignored", an_ignored_hangup_stays_ignored),
            ("what_ranks_started_ends_with_the_job", what_ranks_started_ends_with_the_job),
            ("nobody_outlives_a_killed_launcher", nobody_outlives_a_killed_launcher),
            ("restarts_start_everything_again", restarts_start_everything_again),
            ("logs_hold_what_was_written", logs_hold_what_was_written),
            ("only_some_ranks_are_shown", only_some_ranks_are_shown),
            ("nothing_is_lost_or_torn", nothing_is_lost_or_torn),
            ("bytes_pass_as_they_are", bytes_pass_as_they_are),
            ("closed_outputs_are_no_failure", closed_outputs_are_no_failure),
            ("a_reader_that_has_enough_ends_the_job", a_reader_that_has_enough_ends_the_job),
            ("rank_0_has_the_input", rank_0_has_the_input),
            ("what_cannot_be_started_is_named", what_cannot_be_started_is_named),
        ];
        thread::spawn(|| {
            thread::sleep(DEADLINE);
            eprintln!("late: the tests above that have no result hang");
            exit(1);
        });
        let trials = tests.map(|(name, test)| Trial::test(name, test));
        libtest_mimic::run(&Arguments::from_args(), trials.into()).exit_code()
    }

    /// What this program does as a rank.
    const ROLES: [(&str, Role); 5] = [
        ("sum", sum),
        ("killed", killed),
        ("survivor", survivor),
        ("absent", absent),
        ("writer", writer),
    ];

    /// Joins, and sums the ranks' numbers.
    fn sum() -> collectives::Result<()> {
        let comm = collectives::init()?;
        let stream = comm.new_stream()?;
        let send = stream.upload(&[comm.rank() as f32 + 1.0; 3])?;
        let mut recv = stream.zeros(3)?;
        comm.on(&stream).all_reduce(&send, &mut recv, ReduceOp::Sum)?;
        println!("sum {:?}", recv.to_vec(&stream)?);
        comm.finalize()
    }

    /// Rank 2 is killed; what do the others say?
    fn killed() -> collectives::Result<()> {
        let comm = collectives::init()?;
        let stream = comm.new_stream()?;
        let mut buffer = stream.upload(&[1.0_f32])?;
        if comm.rank() == 2 {
            println!("about to end");
            kill_process(rustix::process::getpid(), Signal::KILL).expect("it is this process");
        }
        comm.on(&stream).all_reduce_in_place(&mut buffer, ReduceOp::Sum)?;
        stream.synchronize()
    }

    /// Rank 2 is killed, and the others do without.
    fn survivor() -> collectives::Result<()> {
        let comm = collectives::init()?;
        let sum = |comm: &Communicator| {
            let stream = comm.new_stream()?;
            let mut buffer = stream.upload(&[1.0_f32])?;
            comm.on(&stream).all_reduce_in_place(&mut buffer, ReduceOp::Sum)?;
            buffer.to_vec(&stream)
        };
        if comm.rank() == 2 {
            kill_process(rustix::process::getpid(), Signal::KILL).expect("it is this process");
        }
        sum(&comm).expect_err("one is gone");
        comm.revoke()?;
        let rest = comm.shrink(ShrinkConfig::new([2]))?;
        // Longer than ranks have for their last words.
        thread::sleep(Duration::from_millis(1500));
        println!("sum {:?}", sum(&rest)?);
        rest.finalize()
    }

    /// Rank 2 ends before it joins, by a code or, for 0, as if it were done.
    fn absent() -> collectives::Result<()> {
        join_unless(|rank| {
            if rank == 2 {
                exit(env::var("CODE").map_or(0, |code| code.parse().expect("a number")));
            }
        })?;
        Ok(())
    }

    /// Joins from torchrun's variables; rank 0 hands out the id at the master's address. What stands
    /// in between may end the rank.
    fn join_unless(ends: fn(usize)) -> collectives::Result<Communicator> {
        let number =
            |name: &str| -> usize { env::var(name).expect(name).parse().expect("a number") };
        let (rank, size) = (number("RANK"), number("WORLD_SIZE"));
        let backend = collectives::backend()?;
        let address = (env::var("MASTER_ADDR").expect("set"), number("MASTER_PORT") as u16);
        let id = if rank == 0 {
            let id = backend.unique_id()?;
            let listener = TcpListener::bind(address).expect("the port is free");
            for _ in 1..size {
                let (mut stream, _) = listener.accept().expect("another rank");
                stream.write_all(id.as_bytes()).expect("it reads");
            }
            id
        } else {
            let mut bytes = Vec::new();
            loop {
                match TcpStream::connect(&address) {
                    Ok(mut stream) => {
                        stream.read_to_end(&mut bytes).expect("rank 0 writes");
                        break UniqueId::from_bytes(bytes);
                    }
                    Err(_) => thread::sleep(Duration::from_millis(5)),
                }
            }
        };
        ends(rank);
        let mut config = JoinConfig::new(rank as u32, size).with_device(number("LOCAL_RANK"));
        config.deadline = env::var("JOIN_DEADLINE_MS")
            .map(|ms| Duration::from_millis(ms.parse().expect("a number")))
            .ok();
        Communicator::join(&backend, &id, config)
    }

    /// Writes lines of many lengths, in pieces that are not lines.
    fn writer() -> collectives::Result<()> {
        let mut text = Vec::new();
        for line in 0..LINES {
            writeln!(text, "{line} {}", "x".repeat(line % 101)).expect("memory");
        }
        let mut output = io::stdout().lock();
        for piece in text.chunks(777) {
            output.write_all(piece).expect("it is read");
        }
        output.flush().expect("it is read");
        Ok(())
    }

    const LINES: usize = 100_000;

    fn eight_ranks_sum_on_the_mock() -> Outcome {
        let ran = launch(&["-n", "8", "--backend", "mock"], &role("sum"));
        let want: BTreeSet<_> =
            (0..8).map(|rank| format!("rank {rank}| sum [36.0, 36.0, 36.0]")).collect();
        assert_eq!((lines(&ran.stdout), text(&ran.stderr)), (want, String::new()));
        assert_eq!(ran.status.code(), Some(0));
        Ok(())
    }

    fn more_ranks_than_the_mock_has_devices() -> Outcome {
        let ran = launch(&["-n", "10", "--backend", "mock", "--no-prefix"], &role("sum"));
        assert_eq!(
            text(&ran.stdout),
            "sum [55.0, 55.0, 55.0]\n".repeat(10),
            "{}",
            text(&ran.stderr)
        );
        Ok(())
    }

    fn survivors_are_told_which_signal() -> Outcome {
        // Who needs long to say it gets no SIGTERM meanwhile.
        let mut program = shell("trap '' TERM; exec \"$@\"");
        program.push("sh".into());
        program.extend(role("killed"));
        let ran = launch(&["-n", "4", "--backend", "mock", "--grace", "60"], &program);
        let errors = text(&ran.stderr);
        assert_eq!(ran.status.code(), Some(137), "{errors}");
        for rank in [0, 1, 3] {
            let line = errors.lines().find(|line| line.starts_with(&format!("rank {rank}| ")));
            let line = line.expect("the rank says something");
            assert!(
                line.contains("rank 2 (pid ") && line.contains(") ended by signal 9"),
                "{line}"
            );
        }
        // Behind that of all others, whole.
        let (_, block) = errors.split_once("rank 2 failed; what it wrote:\n").expect("a block");
        assert!(block.starts_with("rank 2| about to end\nerror: launch: rank 2 (pid "), "{block}");
        assert!(block.ends_with(") was killed by SIGKILL\n"), "{block}");
        Ok(())
    }

    fn a_join_is_not_waited_for_in_vain() -> Outcome {
        for code in [0, 3] {
            let mut program = vec!["env".into(), format!("CODE={code}")];
            program.extend(role("absent"));
            let ran = launch(&["-n", "4", "--backend", "mock", "--grace", "60"], &program);
            let errors = text(&ran.stderr);
            // The first that failed is rank 2, or one that was told of its end.
            assert_eq!(ran.status.code(), Some(if code == 0 { 1 } else { code }), "{errors}");
            for rank in [0, 1, 3] {
                for (what, how) in [
                    ("ranks wait in the join of ", " for ranks that never come"),
                    (
                        "rank 2: has not joined, and process 2 (pid ",
                        &*format!(") ended with exit code {code}"),
                    ),
                ] {
                    let is_it = |line: &&str| {
                        line.starts_with(&format!("rank {rank}| ")) && line.contains(what)
                    };
                    let line = errors.lines().find(is_it);
                    assert!(line.is_some_and(|line| line.contains(how)), "{errors}");
                }
            }
        }
        Ok(())
    }

    fn a_rank_may_be_a_child_of_what_was_started() -> Outcome {
        // The shells live as long as their children, which nobody knows of: all wait for each other.
        let behind = |role_of: &str| {
            let mut program = shell("\"$@\"; exit $?");
            program.push("sh".into());
            program.extend(role(role_of));
            program
        };
        let ran = launch(&["-n", "3", "--backend", "mock"], &behind("sum"));
        assert_eq!(text(&ran.stdout).matches("sum [6.0, 6.0, 6.0]").count(), 3);
        // Also for one that has ended, while its shell lives.
        let mut program = vec!["env".into(), "JOIN_DEADLINE_MS=500".into()];
        program.extend(behind("absent"));
        let ran = launch(&["-n", "3", "--backend", "mock", "--grace", "60"], &program);
        let errors = text(&ran.stderr);
        assert_eq!(ran.status.code(), Some(1), "{errors}");
        assert!(errors.contains("2 of 3 ranks joined in 500ms: came 0, 1; missing 2"), "{errors}");
        assert!(!errors.contains("never come"), "{errors}");
        Ok(())
    }

    fn ranks_find_the_variables_of_torchrun() -> Outcome {
        let names = [
            "RANK",
            "LOCAL_RANK",
            "ROLE_RANK",
            "WORLD_SIZE",
            "LOCAL_WORLD_SIZE",
            "ROLE_WORLD_SIZE",
            "GROUP_RANK",
            "GROUP_WORLD_SIZE",
            "ROLE_NAME",
            "MASTER_ADDR",
            "TORCHELASTIC_RESTART_COUNT",
            "TORCHELASTIC_MAX_RESTARTS",
            "TORCHELASTIC_USE_AGENT_STORE",
            "OMP_NUM_THREADS",
            "COLLECTIVES_BACKEND",
            "COLLECTIVES_MOCK_RANKS",
            "MASTER_PORT",
            "TORCHELASTIC_RUN_ID",
        ];
        let script = names.map(|name| format!("\"${name}\"")).join(" ");
        let program = shell(&format!("echo {script}"));
        let ran = launch(&["-n", "2", "--backend", "mock"], &program);
        let output = text(&ran.stdout);
        let mut shared = BTreeSet::new();
        for rank in 0..2 {
            let start = format!(
                "rank {rank}| {rank} {rank} {rank} 2 2 2 0 1 default 127.0.0.1 0 0 False 1 mock processes "
            );
            let rest = output.lines().find_map(|line| line.strip_prefix(&start));
            shared.insert(rest.ok_or_else(|| format!("no '{start}': {output}"))?);
        }
        let [shared] = Vec::from_iter(shared)[..] else { panic!("ranks differ: {output}") };
        let (port, id) = shared.split_once(' ').expect("two words");
        assert!(port.parse::<u16>().is_ok_and(|port| port > 0), "{port}");
        assert_eq!(id.len(), 32, "{id}");
        Ok(())
    }

    fn what_is_set_stays_where_it_may() -> Outcome {
        let script =
            "echo $RANK $OMP_NUM_THREADS $COLLECTIVES_MOCK_RANKS $COLLECTIVES_BACKEND $MASTER_PORT";
        let mut command = collectives(&["-n", "1", "--master-port", "29500"], &shell(script));
        command.env("RANK", "7").env("OMP_NUM_THREADS", "3");
        command.env("COLLECTIVES_MOCK_RANKS", "threads").env("COLLECTIVES_BACKEND", "nccl");
        let ran = command.output()?;
        assert_eq!(text(&ran.stdout), "rank 0| 0 3 threads nccl 29500\n");
        Ok(())
    }

    fn the_first_failure_ends_all() -> Outcome {
        let script = "test $RANK = 1 || exec sleep 600; echo to be seen; echo and this >&2; exit 7";
        let ran = launch(&["-n", "3", "--grace", "60"], &shell(script));
        let errors = text(&ran.stderr);
        assert_eq!(ran.status.code(), Some(7), "{errors}");
        let (_, block) = errors.split_once("rank 1 failed; what it wrote:\n").expect("a block");
        assert!(block.contains("rank 1| to be seen\n") && block.contains("rank 1| and this\n"));
        let last = block.lines().last().expect("it has lines");
        assert!(last.starts_with("error: launch: rank 1 (pid "), "{block}");
        assert!(last.ends_with(") ended with exit code 7"), "{block}");
        Ok(())
    }

    fn the_others_go_on_where_they_may() -> Outcome {
        let options = ["-n", "4", "--backend", "mock", "--keep-going"];
        let ran = launch(&options, &role("survivor"));
        let errors = text(&ran.stderr);
        let want = [0, 1, 3].map(|rank| format!("rank {rank}| sum [3.0]"));
        assert_eq!(lines(&ran.stdout), want.into(), "{errors}");
        assert_eq!(ran.status.code(), Some(137), "{errors}");
        assert!(errors.starts_with("rank 2 failed; it wrote nothing\n"), "{errors}");
        Ok(())
    }

    fn who_ignores_sigterm_is_killed() -> Outcome {
        let script = "test $RANK = 0 && exit 3; trap '' TERM; echo here; sleep 600; sleep 600";
        let ran = launch(&["-n", "3", "--grace", "0.1"], &shell(script));
        let errors = words(&ran.stderr);
        assert_eq!(ran.status.code(), Some(3), "{errors}");
        assert!(
            errors.ends_with("ranks 1, 2 did not end in time, and had to be killed"),
            "{errors}"
        );
        Ok(())
    }

    fn a_killed_rank_is_137() -> Outcome {
        let ran = launch(&["-n", "2"], &shell("test $RANK = 1 && kill -KILL $$; exec sleep 600"));
        assert_eq!(ran.status.code(), Some(137));
        assert!(text(&ran.stderr).starts_with("rank 1 failed; it wrote nothing\n"));
        Ok(())
    }

    fn sigterm_is_passed_on() -> Outcome {
        let script = "trap 'echo saved; exit 0' TERM; echo here; while :; do sleep 0.05; done";
        let mut job = Running::start(&["-n", "2"], &shell(script));
        job.wait_for("here", 2);
        job.signal(Signal::TERM);
        let (code, output, errors) = job.end();
        assert_eq!(lines(output.as_bytes()), lines(b"rank 0| saved\nrank 1| saved"), "{output}");
        assert_eq!(code, Some(0), "both ended well");
        assert!(!errors.contains("error:"), "{errors}");

        let mut job = Running::start(&["-n", "2"], &shell("echo here; exec sleep 600"));
        job.wait_for("here", 2);
        job.signal(Signal::TERM);
        let (code, _, errors) = job.end();
        assert_eq!(code, Some(143), "{errors}");
        assert!(errors.starts_with("error: launch: SIGTERM was passed on: rank "), "{errors}");
        Ok(())
    }

    fn a_second_interrupt_kills() -> Outcome {
        let script = "trap 'echo no' INT; echo here; while :; do sleep 0.05; done";
        let mut job = Running::start(&["-n", "2"], &shell(script));
        job.wait_for("here", 2);
        job.signal(Signal::INT);
        job.wait_for("no", 2);
        job.signal(Signal::INT);
        let (code, _, errors) = job.end();
        assert_eq!(code, Some(130), "{errors}");
        assert!(
            errors.contains("ranks 0, 1 did not end in time, and had to be killed"),
            "{errors}"
        );
        Ok(())
    }

    fn an_ignored_hangup_stays_ignored() -> Outcome {
        let script = "echo here; read line; echo $line";
        let program = [collectives_path(), "launch -n 1 -- sh -c \"$1\"".into()].join(" ");
        let mut command = Command::new("sh");
        command.args(["-c", &format!("trap '' HUP; exec {program}"), "sh", script]);
        let mut job = Running::of(command);
        job.wait_for("here", 1);
        job.signal(Signal::HUP);
        job.input().write_all(b"still here\n")?;
        assert_eq!(job.end(), (Some(0), "rank 0| still here\n".into(), String::new()));
        Ok(())
    }

    fn what_ranks_started_ends_with_the_job() -> Outcome {
        // One outlives its rank, which ends well, and holds its output; and one is a failing rank's.
        for end in ["exit 0", "exit 5"] {
            let script = format!("(trap '' TERM HUP; sleep 600) & echo $!; {end}");
            let ran = launch(&["-n", "2", "--no-prefix"], &shell(&script));
            let output = text(&ran.stdout);
            let pids: Vec<u32> = output.lines().map(|line| line.parse().expect("a pid")).collect();
            assert!(!pids.is_empty(), "{}", text(&ran.stderr));
            until(|| !pids.iter().any(|&pid| lives(pid)), "what a rank started lives on");
        }
        Ok(())
    }

    fn nobody_outlives_a_killed_launcher() -> Outcome {
        let script = "trap '' HUP; sleep 600 & echo pid $!; echo pid $$; wait";
        let mut job = Running::start(&["-n", "2", "--no-prefix"], &shell(script));
        let said = job.wait_for("pid", 4);
        let pids = said.iter().filter_map(|line| line.strip_prefix("pid "));
        let pids: Vec<u32> = pids.map(|pid| pid.parse().expect("a pid")).collect();
        assert!(pids.len() == 4 && pids.iter().all(|&pid| lives(pid)), "{pids:?}");
        job.signal(Signal::KILL);
        until(|| !pids.iter().any(|&pid| lives(pid)), "somebody outlives the launcher");
        Ok(())
    }

    fn restarts_start_everything_again() -> Outcome {
        let script = "echo $RANK: $TORCHELASTIC_RESTART_COUNT of $TORCHELASTIC_MAX_RESTARTS; \
                      test $TORCHELASTIC_RESTART_COUNT = 2 || exit 4";
        let dir = tempfile::tempdir()?;
        let logs = dir.path().to_str().expect("text");
        let ran = launch(&["-n", "1", "--max-restarts", "3", "--log-dir", logs], &shell(script));
        let want = "rank 0| 0: 0 of 3\nrank 0| 0: 1 of 3\nrank 0| 0: 2 of 3\n";
        assert_eq!((text(&ran.stdout).as_str(), ran.status.code()), (want, Some(0)));
        let errors = text(&ran.stderr);
        assert!(errors.contains("\nlaunch: restart 1 of 3\n"), "{errors}");
        assert!(errors.ends_with("\nlaunch: restart 2 of 3\n"), "{errors}");
        assert_eq!(fs::read_to_string(dir.path().join("rank-0.stdout"))?, "0: 0 of 3\n");
        assert_eq!(fs::read_to_string(dir.path().join("rank-0.restart-2.stdout"))?, "0: 2 of 3\n");

        // At last it fails.
        let ran = launch(&["-n", "1", "--max-restarts", "1"], &shell(script));
        assert_eq!(ran.status.code(), Some(4));
        Ok(())
    }

    fn logs_hold_what_was_written() -> Outcome {
        let dir = tempfile::tempdir()?;
        let logs = dir.path().join("new/logs");
        let script = "printf 'out\\r%s' $RANK; printf 'err %s\\n' $RANK >&2";
        let arguments = ["-n", "2", "--show", "none", "--log-dir", logs.to_str().expect("text")];
        let ran = launch(&arguments, &shell(script));
        assert_eq!((text(&ran.stdout), text(&ran.stderr)), (String::new(), String::new()));
        for rank in 0..2 {
            let file = |name: &str| fs::read_to_string(logs.join(format!("rank-{rank}.{name}")));
            assert_eq!(
                (file("stdout")?, file("stderr")?),
                (format!("out\r{rank}"), format!("err {rank}\n"))
            );
        }
        assert_eq!(fs::read_dir(&logs)?.count(), 4);

        let ran = launch(&["-n", "1", "--log-dir", "/dev/null/x"], &shell("exit 0"));
        let errors = text(&ran.stderr);
        assert!(errors.starts_with("error: launch: --log-dir /dev/null/x: "), "{errors}");
        assert_eq!(ran.status.code(), Some(1));
        Ok(())
    }

    fn only_some_ranks_are_shown() -> Outcome {
        let ran = launch(&["-n", "5", "--show", "1,3-4"], &shell("echo hi"));
        let want = ["rank 1| hi", "rank 3| hi", "rank 4| hi"].map(String::from);
        assert_eq!(lines(&ran.stdout), BTreeSet::from(want));

        // What fails is shown all the same.
        let ran = launch(&["-n", "2", "--show", "0"], &shell("echo hi; exit $RANK"));
        let errors = text(&ran.stderr);
        assert!(errors.starts_with("rank 1 failed; what it wrote:\nrank 1| hi\n"), "{errors}");

        let ran = launch(&["-n", "2", "--show", "2"], &shell("echo hi"));
        let errors = text(&ran.stderr);
        assert!(errors.contains("--show 2: the ranks are 0 to 1"), "{errors}");
        assert_eq!(ran.status.code(), Some(2));
        Ok(())
    }

    fn nothing_is_lost_or_torn() -> Outcome {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("all");
        // Both outputs into one file: not even those are torn.
        let both = fs::File::create(&file)?;
        let mut program = shell("case $RANK in [1357]) exec \"$@\" >&2;; *) exec \"$@\";; esac");
        program.push("sh".into());
        program.extend(role("writer"));
        let mut command = collectives(&["-n", "8"], &program);
        let status = command.stdout(both.try_clone()?).stderr(both).status()?;
        assert!(status.success(), "{status}");
        let mut next = [0; 8];
        for line in BufReader::new(fs::File::open(&file)?).lines() {
            let line = line?;
            let (rank, rest) = line
                .strip_prefix("rank ")
                .and_then(|line| line.split_once("| "))
                .ok_or_else(|| line.clone())?;
            let next = &mut next[rank.parse::<usize>()?];
            assert_eq!(rest, format!("{next} {}", "x".repeat(*next % 101)));
            *next += 1;
        }
        assert_eq!(next, [LINES; 8]);
        Ok(())
    }

    fn bytes_pass_as_they_are() -> Outcome {
        let script = r"printf 'a\000b\377\200\r\n\033[1mc\rd'; printf '\n\nlast'";
        let ran = launch(&["-n", "1"], &shell(script));
        let want = b"rank 0| a\0b\xff\x80\r\nrank 0| \x1b[1mc\rrank 0| d\nrank 0| \nrank 0| last\n";
        assert_eq!(ran.stdout, want, "{:?}", text(&ran.stdout));
        let ran = launch(&["-n", "1", "--no-prefix"], &shell(script));
        assert_eq!(ran.stdout, b"a\0b\xff\x80\r\n\x1b[1mc\rd\n\nlast\n", "{:?}", text(&ran.stdout));
        Ok(())
    }

    fn closed_outputs_are_no_failure() -> Outcome {
        let script = "echo one; exec >&-; echo two >&2; exec 2>&-; sleep 0.1";
        let ran = launch(&["-n", "2"], &shell(script));
        assert_eq!(lines(&ran.stdout), lines(b"rank 0| one\nrank 1| one"));
        assert_eq!(lines(&ran.stderr), lines(b"rank 0| two\nrank 1| two"));
        assert_eq!(ran.status.code(), Some(0));
        Ok(())
    }

    fn a_reader_that_has_enough_ends_the_job() -> Outcome {
        let mut job = Running::start(&["-n", "2"], &shell("exec yes"));
        job.wait_for("y", 1);
        job.close_output();
        let (code, _, errors) = job.end();
        assert_eq!((code, errors.as_str()), (Some(141), ""));
        Ok(())
    }

    fn rank_0_has_the_input() -> Outcome {
        let mut job = Running::start(&["-n", "2"], &shell("cat; echo end of $RANK"));
        job.input().write_all(b"for rank 0\n")?;
        let (code, output, _) = job.end();
        let want = lines(b"rank 0| for rank 0\nrank 0| end of 0\nrank 1| end of 1");
        assert_eq!((lines(output.as_bytes()), code), (want, Some(0)));
        Ok(())
    }

    fn what_cannot_be_started_is_named() -> Outcome {
        let dir = tempfile::tempdir()?;
        fs::write(dir.path().join("a-text"), "")?;
        for (program, code, said) in [
            ("./nowhere", 127, "./nowhere: No such file"),
            ("./a-text", 126, "./a-text: Permission denied"),
            ("a-text", 127, "'./a-text' is in this directory"),
        ] {
            let mut command = collectives(&["-n", "2"], &[program.into()]);
            let ran = command.current_dir(dir.path()).output()?;
            let errors = words(&ran.stderr);
            assert!(errors.starts_with("error: launch: ") && errors.contains(said), "{errors}");
            assert_eq!(ran.status.code(), Some(code), "{errors}");
        }
        let ran = launch(&["-n", "0"], &shell("exit 0"));
        assert_eq!(ran.status.code(), Some(2), "{}", text(&ran.stderr));
        Ok(())
    }

    /// A job that goes on while the test does.
    struct Running {
        child: Child,
        output: Option<BufReader<std::process::ChildStdout>>,
    }

    impl Running {
        fn start(options: &[&str], program: &[String]) -> Self {
            Self::of(collectives(options, program))
        }

        fn of(mut command: Command) -> Self {
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn().expect("the command starts");
            let output = child.stdout.take().map(BufReader::new);
            Self { child, output }
        }

        /// Reads lines until so many of them have a word, and answers them.
        fn wait_for(&mut self, word: &str, times: usize) -> Vec<String> {
            let output = self.output.as_mut().expect("open");
            let (mut lines, mut seen) = (Vec::new(), 0);
            while seen < times {
                let mut line = String::new();
                assert!(output.read_line(&mut line).expect("text") > 0, "{lines:?}");
                seen += usize::from(line.contains(word));
                lines.push(line.trim_end().to_owned());
            }
            lines
        }

        fn signal(&self, signal: Signal) {
            let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
            kill_process(pid.expect("a process id"), signal).expect("it lives");
        }

        fn input(&mut self) -> impl Write {
            self.child.stdin.take().expect("open")
        }

        fn close_output(&mut self) {
            self.output = None;
        }

        /// Its code, and the rest of what it says.
        fn end(mut self) -> (Option<i32>, String, String) {
            drop(self.child.stdin.take());
            let (mut output, mut errors) = (String::new(), String::new());
            if let Some(mut rest) = self.output.take() {
                rest.read_to_string(&mut output).expect("text");
            }
            let stderr = self.child.stderr.as_mut().expect("piped");
            stderr.read_to_string(&mut errors).expect("text");
            (self.child.wait().expect("a child").code(), output, errors)
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            // Has ended, unless the test fails.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    /// `collectives launch`, in an environment without what would matter.
    fn collectives(options: &[&str], program: &[String]) -> Command {
        let mut command = Command::new(collectives_path());
        for (name, _) in env::vars_os() {
            let text = name.to_string_lossy();
            let matters =
                ["COLLECTIVES_", "NCCL_", "OMP_", "TORCH"].iter().any(|p| text.starts_with(p));
            if matters || text.ends_with("_VISIBLE_DEVICES") {
                command.env_remove(name);
            }
        }
        command.arg("launch").args(options).arg("--").args(program).stdin(Stdio::null());
        command
    }

    fn launch(options: &[&str], program: &[String]) -> Output {
        collectives(options, program).output().expect("the command starts")
    }

    fn collectives_path() -> String {
        env!("CARGO_BIN_EXE_collectives").into()
    }

    fn role(name: &str) -> Vec<String> {
        let this = env::current_exe().expect("it runs");
        vec![this.to_str().expect("text").into(), ROLE.into(), name.into()]
    }

    fn shell(script: &str) -> Vec<String> {
        ["sh", "-c", script].map(String::from).into()
    }

    fn text(bytes: &[u8]) -> String {
        String::from_utf8_lossy(bytes).into_owned()
    }

    /// Without line breaks, which depend on lengths.
    fn words(bytes: &[u8]) -> String {
        text(bytes).split_whitespace().collect::<Vec<_>>().join(" ")
    }

    fn lines(bytes: &[u8]) -> BTreeSet<String> {
        text(bytes).lines().map(String::from).collect()
    }

    /// Whether there is such a process; one that ended and was not waited for is none.
    fn lives(pid: u32) -> bool {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id");
        let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
        test_kill_process(raw).is_ok() && !stat.is_ok_and(|stat| stat.contains(") Z "))
    }

    fn until(mut is_so: impl FnMut() -> bool, otherwise: &str) {
        let end = Instant::now() + Duration::from_secs(60);
        while !is_so() {
            assert!(Instant::now() < end, "{otherwise}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    const ROLE: &str = "--role";

    /// Far more than all of them take.
    const DEADLINE: Duration = Duration::from_secs(600);
}
