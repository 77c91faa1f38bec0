//! Crews of this very program. What a process does is told by the name of its crew.

#[cfg(unix)]
fn main() -> std::process::ExitCode {
    unix::main()
}

/// Crews need Unix sockets.
#[cfg(not(unix))]
fn main() {}

#[cfg(unix)]
mod unix {
    use std::{
        io::{self, BufRead, BufReader, Read},
        path::Path,
        process::{Command, ExitCode, exit},
        thread,
        time::{Duration, Instant},
    };

    use collectives_crew::{Crew, End, Event, Job, Member, this_program};
    use libtest_mimic::{Arguments, Failed, Trial};
    use rustix::process::{Pid, Signal, kill_process, test_kill_process};

    type Outcome = Result<(), Failed>;
    type Test = fn() -> Outcome;
    type Role = fn(&'static Member);

    pub(super) fn main() -> ExitCode {
        if collectives_crew::keep().expect("its parent makes sense") {
            return ExitCode::SUCCESS;
        }
        for (crew, run) in ROLES {
            match Member::here(crew) {
                Ok(Some(member)) => {
                    run(member);
                    return ExitCode::SUCCESS;
                }
                Ok(None) => {}
                Err(error) => {
                    eprintln!("{error}");
                    return ExitCode::FAILURE;
                }
            }
        }
        let tests: [(&str, Test); 11] = [
            ("messages_go_both_ways_in_order", messages_go_both_ways_in_order),
            ("standard_input_reads_as_empty", standard_input_reads_as_empty),
            ("deaths_are_heard_of_behind_all_words", deaths_are_heard_of_behind_all_words),
            ("a_late_word_is_none", a_late_word_is_none),
            ("a_garbled_member_is_killed", a_garbled_member_is_killed),
            ("a_dropped_crew_is_gone", a_dropped_crew_is_gone),
            ("nobody_outlives_a_killed_parent", nobody_outlives_a_killed_parent),
            ("what_cannot_be_started_is_named", what_cannot_be_started_is_named),
            ("ends_of_a_job_are_told", ends_of_a_job_are_told),
            ("what_a_job_started_ends_with_it", what_a_job_started_ends_with_it),
            ("no_job_outlives_a_killed_parent", no_job_outlives_a_killed_parent),
        ];
        let trials = tests.map(|(name, test)| Trial::test(name, test));
        libtest_mimic::run(&Arguments::from_args(), trials.into()).exit_code()
    }

    /// What members do.
    const ROLES: [(&str, Role); 7] = [
        ("adder", |member| {
            let (done, until_done) = std::sync::mpsc::channel();
            let mut sum = 0;
            let listening = member.listen(move |number: Option<u64>| match number {
                Some(number) => {
                    sum += number;
                    member.tell(&(member.rank(), member.size(), sum));
                }
                None => done.send(()).expect("main waits"),
            });
            listening.expect("nobody listens yet");
            assert!(member.listen(|_: ()| {}).is_err(), "somebody listens");
            until_done.recv().expect("told to end");
        }),
        ("reader", |member| {
            let mut text = String::new();
            io::stdin().read_to_string(&mut text).expect("readable");
            // What a member starts has its environment, and is no member.
            let same = this_program().and_then(|mut program| program.arg("--list").output());
            let listed = String::from_utf8(same.expect("it starts").stdout).expect("text");
            member.tell(&(text, listed.contains("standard_input_reads_as_empty")));
        }),
        ("dying", |member| match member.rank() {
            0 => member.tell(&"good"),
            1 => {
                member.tell(&"bad");
                exit(3);
            }
            _ => {
                member.tell(&"killed");
                let own = rustix::process::getpid();
                kill_process(own, Signal::KILL).expect("it is this process");
            }
        }),
        ("garbled", |member| {
            member.tell(&"not a number");
            sleep();
        }),
        ("sleeper", |member| {
            member.listen(|(): ()| {}).expect("nobody listens yet");
            member.tell(&std::process::id());
            sleep();
        }),
        // Has a crew of its own, and is killed.
        ("parent", |member| {
            let mut crew = start::<u32>("sleeper", 2);
            for _ in 0..2 {
                match crew.next(None) {
                    Some((_, Event::Said(pid))) => member.tell(&pid),
                    other => panic!("{other:?}"),
                }
            }
            sleep();
        }),
        // Has a job, and is killed.
        ("employer", |member| {
            let (_job, pids) = families(2);
            pids.iter().for_each(|pid| member.tell(pid));
            sleep();
        }),
    ];

    fn messages_go_both_ways_in_order() -> Outcome {
        let mut crew = start::<(usize, usize, u64)>("adder", 3);
        for number in 1..=100_u64 {
            crew.tell_all(&Some(number));
            let mut said: Vec<_> = (0..3).map(|_| word(&mut crew)).collect();
            said.sort_by_key(|(rank, _)| *rank);
            let sum = number * (number + 1) / 2;
            assert_eq!(said, [0, 1, 2].map(|rank| (rank, (rank, 3, sum))));
        }
        crew.tell_all(&None::<u64>);
        let ends = ends(&mut crew);
        assert!(ends.iter().all(|(_, end)| end.success()), "{ends:?}");
        assert!(crew.next(None).is_none(), "all have ended");
        Ok(())
    }

    fn standard_input_reads_as_empty() -> Outcome {
        let mut crew = start::<(String, bool)>("reader", 1);
        assert_eq!(word(&mut crew), (0, (String::new(), true)));
        Ok(())
    }

    fn deaths_are_heard_of_behind_all_words() -> Outcome {
        let mut crew = start::<String>("dying", 3);
        let pids: Vec<_> = (0..3).map(|rank| crew.pid(rank)).collect();
        let (mut words, mut ends) = (vec![None; 3], vec![None; 3]);
        while let Some((rank, event)) = crew.next(None) {
            match event {
                Event::Said(text) => {
                    assert_eq!(ends[rank], None);
                    words[rank] = Some(text);
                }
                Event::Ended(end) => ends[rank] = Some(end.to_string()),
            }
        }
        assert_eq!(words, ["good", "bad", "killed"].map(|word| Some(word.to_owned())));
        let statuses = ["exit status: 0", "exit status: 3", "signal: 9 (SIGKILL)"];
        let want = pids.iter().zip(statuses);
        let want = want.map(|(pid, status)| Some(format!("process {pid} ended: {status}")));
        assert_eq!(ends, want.collect::<Vec<_>>());
        Ok(())
    }

    fn a_late_word_is_none() -> Outcome {
        let mut crew = start::<u32>("sleeper", 1);
        assert_eq!(word(&mut crew), (0, crew.pid(0)));
        assert!(crew.next(Some(Instant::now() + Duration::from_millis(20))).is_none());
        crew.kill();
        let ends = ends(&mut crew);
        assert!(ends[0].1.to_string().ends_with("signal: 9 (SIGKILL)"), "{ends:?}");
        Ok(())
    }

    fn a_garbled_member_is_killed() -> Outcome {
        let mut crew = start::<u32>("garbled", 1);
        let ends = ends(&mut crew);
        let text = ends[0].1.to_string();
        assert!(text.contains("killed, since it said what is no message"), "{text}");
        assert!(!ends[0].1.success());
        Ok(())
    }

    fn a_dropped_crew_is_gone() -> Outcome {
        let mut crew = start::<u32>("sleeper", 2);
        let pids = [word(&mut crew).1, word(&mut crew).1];
        assert!(pids.iter().all(|&pid| lives(pid)));
        drop(crew);
        assert!(pids.iter().all(|&pid| !lives(pid)));
        Ok(())
    }

    fn nobody_outlives_a_killed_parent() -> Outcome {
        let mut crew = start::<u32>("parent", 1);
        let pids = [word(&mut crew).1, word(&mut crew).1];
        assert!(pids.iter().all(|&pid| lives(pid)));
        crew.kill();
        until_gone(&pids);
        Ok(())
    }

    fn what_cannot_be_started_is_named() -> Outcome {
        let none = Crew::<()>::start("any", 2, |_| Ok(Command::new("/no/such/program")));
        let text = none.map(drop).unwrap_err().to_string();
        assert!(text.starts_with("rank 0: /no/such/program: No such file"), "{text}");
        Ok(())
    }

    fn ends_of_a_job_are_told() -> Outcome {
        let (sender, ends) = std::sync::mpsc::channel();
        let script = ["exit 0", "exit 3", "kill -TERM $$", "exec sleep 600"];
        let shell = |rank: usize| {
            let mut shell = Command::new("sh");
            shell.args(["-c", script[rank]]);
            Ok(shell)
        };
        let job = Job::start(4, shell, move |rank, end| drop(sender.send((rank, end))))?;
        let mut told: Vec<(usize, End)> = ends.iter().take(3).collect();
        // Until it is dropped, its dead are there.
        assert!((0..4).all(|rank| Path::new(&format!("/proc/{}", job.pid(rank))).exists()));
        let codes = [0, 1, 3].map(|rank| job.status(rank).map(|status| status.code()));
        assert_eq!(codes, [Some(Some(0)), Some(Some(3)), None]);
        job.signal(Signal::ALARM);
        told.extend(ends.iter());
        told.sort_by_key(|(rank, _)| *rank);
        let statuses =
            ["exit status: 0", "exit status: 3", "signal: 15 (SIGTERM)", "signal: 14 (SIGALRM)"];
        let want = statuses.iter().enumerate();
        let want =
            want.map(|(rank, status)| (rank, format!("process {} ended: {status}", job.pid(rank))));
        let told = told.iter().map(|(rank, end)| (*rank, end.to_string()));
        assert_eq!(told.collect::<Vec<_>>(), want.collect::<Vec<_>>());

        let nothing = |_| Ok(Command::new("/no/such/program"));
        let text = Job::start(2, nothing, |_, _| {}).map(drop).unwrap_err().to_string();
        assert!(text.starts_with("rank 0: /no/such/program: No such file"), "{text}");
        Ok(())
    }

    fn what_a_job_started_ends_with_it() -> Outcome {
        let (job, pids) = families(2);
        assert!(pids.iter().all(|&pid| lives(pid)));
        drop(job);
        until_gone(&pids);
        Ok(())
    }

    fn no_job_outlives_a_killed_parent() -> Outcome {
        let mut crew = start::<u32>("employer", 1);
        let pids: Vec<_> = (0..4).map(|_| word(&mut crew).1).collect();
        assert!(pids.iter().all(|&pid| lives(pid)));
        crew.kill();
        until_gone(&pids);
        Ok(())
    }

    /// Ranks that have started a process each, which nothing but SIGKILL ends; and the ids of all.
    fn families(size: usize) -> (Job, Vec<u32>) {
        let (reader, writer) = io::pipe().expect("a pipe");
        let job = Job::start(
            size,
            |_| {
                let mut shell = Command::new("sh");
                let script = "trap '' HUP TERM; sleep 600 & echo $! $$; wait";
                shell.args(["-c", script]).stdout(writer.try_clone()?);
                Ok(shell)
            },
            |_, _| {},
        );
        let lines = BufReader::new(reader).lines().take(size);
        let pids = lines.flat_map(|line| {
            let line = line.expect("text");
            line.split(' ').map(|pid| pid.parse().expect("a pid")).collect::<Vec<_>>()
        });
        (job.expect("a shell"), pids.collect())
    }

    fn until_gone(pids: &[u32]) {
        let until = Instant::now() + Duration::from_secs(10);
        while pids.iter().any(|&pid| lives(pid)) {
            assert!(Instant::now() < until, "processes {pids:?} live on");
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn start<M: serde::de::DeserializeOwned + Send + 'static>(crew: &str, size: usize) -> Crew<M> {
        Crew::start(crew, size, |_| this_program()).expect("this program starts")
    }

    fn word<M: serde::de::DeserializeOwned + Send + 'static>(crew: &mut Crew<M>) -> (usize, M) {
        match crew.next(None) {
            Some((rank, Event::Said(word))) => (rank, word),
            Some((rank, Event::Ended(end))) => panic!("rank {rank}: {end}"),
            None => panic!("all processes have ended"),
        }
    }

    /// What follows, of which nothing may be a word.
    fn ends<M: serde::de::DeserializeOwned + Send + 'static>(
        crew: &mut Crew<M>,
    ) -> Vec<(usize, End)> {
        let next = || crew.next(None);
        let ends = std::iter::from_fn(next).map(|(rank, event)| match event {
            Event::Ended(end) => (rank, end),
            Event::Said(_) => panic!("rank {rank} speaks"),
        });
        ends.collect()
    }

    /// Whether there is such a process; one that ended and was not waited for is none.
    fn lives(pid: u32) -> bool {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id");
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        test_kill_process(raw).is_ok() && !stat.is_ok_and(|stat| stat.contains(") Z "))
    }

    fn sleep() -> ! {
        loop {
            thread::sleep(Duration::from_secs(600));
        }
    }
}
