//! Joins of ranks that are processes, to which somebody never comes: who is told what, how soon, and
//! when nobody is told, since somebody may come.
//!
//! Each test starts its own binary again, once for each process, as a launcher does that knows all
//! processes of its job. All of them begin at one moment, so that what a case prints is the time from
//! the last call to the error. Only some seconds are asserted: machines are busy.
#![cfg(target_os = "linux")]

use std::{
    env,
    process::{self, Child, Command, ExitStatus, Stdio},
    str::FromStr,
    sync::mpsc,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use collectives_backend_mock::{
    Action, ExitNotice, ExitNotices, FaultPlan, JoinState, Mock, MockComm, MockConfig, Ranks, Rule,
    Verdict, VerdictKind,
};
use collectives_core::{
    Backend, Collectives, DType, Device, Error, ErrorKind, GrowConfig, JoinConfig, Launch,
    RawStream, RecvBuf, ReduceOp, Result, SendBuf, Split, SplitConfig, UniqueId,
};

/// One process of a test.
struct Process {
    number: u32,
    count: usize,
    id: UniqueId,
    start: SystemTime,
}

impl Process {
    /// Waits for the moment at which all processes begin.
    fn begin(&self) {
        thread::sleep(self.start.duration_since(SystemTime::now()).unwrap_or_default());
    }

    /// The rank of this process, in a communicator of all.
    fn config(&self) -> JoinConfig {
        let (rank, device) = (self.number, self.number as usize);
        JoinConfig::new(rank, self.count).with_device(device).with_name("world")
    }

    /// Joins that communicator, for which others will be missing, and must be told so.
    #[track_caller]
    fn never_joins(&self, mock: &Mock, case: &str) -> Error {
        told(case, || mock.join(&self.id, self.config()).map(drop))
    }

    /// The join of another communicator, of the first so many processes.
    fn join_first(&self, mock: &Mock, ranks: usize, name: &str) -> Result<MockComm> {
        let config = JoinConfig::new(self.number, ranks).with_device(self.number as usize);
        let id = mock.unique_id_named(&format!("{name} {}", self.id.to_base64()))?;
        mock.join(&id, config.with_name(name))
    }
}

/// An error that comes soon.
#[track_caller]
fn told(case: &str, act: impl FnOnce() -> Result<()>) -> Error {
    let start = Instant::now();
    let error = act().unwrap_err();
    let latency = start.elapsed();
    println!("latency of {case}: {:.1} ms", latency.as_secs_f64() * 1e3);
    assert!(latency < SOON, "{case} took {latency:?}");
    error
}

/// The one verdict.
#[track_caller]
fn verdict(mock: &Mock) -> Verdict {
    // The error may come from another process before this one has noted the verdict.
    let until = Instant::now() + SOON;
    while mock.verdicts().is_empty() && Instant::now() < until {
        thread::sleep(Duration::from_millis(1));
    }
    let verdicts = mock.verdicts();
    assert_eq!(verdicts.len(), 1, "{verdicts:#?}");
    verdicts[0].clone()
}

/// What all who wait in a join are told.
#[track_caller]
fn incomplete(mock: &Mock, error: &Error, parts: &[&str]) {
    assert_eq!((error.kind(), error.operation()), (ErrorKind::Deadlock, Some("join")), "{error}");
    let verdict = verdict(mock);
    assert_eq!(verdict.kind, VerdictKind::JoinIncomplete);
    assert!(error.message().starts_with(&verdict.to_string()), "{error}");
    contains(error.message(), &["ranks wait in the join of 'world' for ranks that never come"]);
    contains(error.message(), parts);
}

#[track_caller]
fn contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "'{part}' is not in: {text}");
    }
}

fn mock() -> Mock {
    Mock::new(config())
}

fn config() -> MockConfig {
    MockConfig::from_env().unwrap().with_devices(8).with_ranks(Ranks::Processes)
}

fn all_reduce(mock: &Mock, comm: &MockComm) -> Result<()> {
    let device = mock.device(comm.info().device)?;
    let memory = device.alloc(64)?;
    let (send, recv) = (SendBuf::new(memory, 4, DType::F32), RecvBuf::new(memory, 4, DType::F32));
    // SAFETY: the memory is as large, lives as long as the mock, and is used for nothing else.
    unsafe { comm.all_reduce(send, recv, ReduceOp::Sum, Launch::new(RawStream::DEFAULT)) }?;
    // SAFETY: the default stream always lives.
    unsafe { device.synchronize(RawStream::DEFAULT, None) }
}

/// Sleeps until the process is killed: outside the library, with nobody to wake it.
fn sleep_for_ever() -> ! {
    let (_sender, receiver) = mpsc::channel::<()>();
    let _ = receiver.recv();
    unreachable!("the sender lives");
}

/// How a test starts its processes.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Launcher {
    /// One that knows all of them.
    OfAJob,
    /// One that tells of each, and nothing of all.
    OfEach,
}

/// Runs `body` in so many processes of a job, and expects them to end well, but for those of `left`,
/// which end as they like, or are killed when the others have ended.
fn job(test: &str, count: usize, left: &[u32], body: impl FnOnce(&Process)) {
    launch(Launcher::OfAJob, test, count, left, body);
}

fn launch(launcher: Launcher, test: &str, count: usize, left: &[u32], body: impl FnOnce(&Process)) {
    if let Ok(number) = env::var(NUMBER) {
        let id = UniqueId::from_str(&env::var(ID).unwrap()).unwrap();
        let start = Duration::from_millis(env::var(START).unwrap().parse().unwrap());
        let (number, start) = (number.parse().unwrap(), UNIX_EPOCH + start);
        return body(&Process { number, count, id, start });
    }
    let id = mock().unique_id().unwrap().to_base64();
    let start = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + HEAD_START;
    let notices = ExitNotices::for_job(count).unwrap();
    let spawn = |number: u32| {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", test, "--nocapture", "--test-threads=1"]).stdin(Stdio::null());
        command.env(NUMBER, number.to_string()).env(ID, &id);
        command.env(START, start.as_millis().to_string());
        let notice = match launcher {
            Launcher::OfAJob => notices.attach(number as usize, &mut command),
            Launcher::OfEach => ExitNotice::attach(&mut command),
        };
        Some((number, command.spawn().unwrap(), notice.unwrap()))
    };
    let mut children: Vec<_> = (0..count as u32).map(spawn).collect();
    let until = Instant::now() + PATIENCE;
    let mut wrong = Vec::new();
    let is_awaited = |place: &Option<(u32, Child, ExitNotice)>| {
        place.as_ref().is_some_and(|(number, ..)| !left.contains(number))
    };
    while children.iter().any(is_awaited) {
        for place in &mut children {
            let Some((number, child, _)) = place else { continue };
            let Some(status) = ended(child, until) else { continue };
            if !status.success() && !left.contains(number) {
                wrong.push(format!("process {number}: {status}"));
            }
            place.take().into_iter().for_each(|(.., notice)| notice.publish(status));
        }
        thread::sleep(Duration::from_millis(1));
    }
    for (_, mut child, _) in children.into_iter().flatten() {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(wrong.is_empty(), "{}", wrong.join(", "));
}

/// How a child has ended, if it has. Past the time it is killed.
fn ended(child: &mut Child, until: Instant) -> Option<ExitStatus> {
    if Instant::now() > until {
        child.kill().unwrap();
    }
    child.try_wait().unwrap()
}

const NUMBER: &str = "COLLECTIVES_TEST_NUMBER";
const ID: &str = "COLLECTIVES_TEST_ID";
const START: &str = "COLLECTIVES_TEST_START";
const PATIENCE: Duration = Duration::from_secs(20);
/// In which all processes come to their bodies, and those that end do.
const HEAD_START: Duration = Duration::from_millis(700);
/// Before any deadline, whatever else the machine does.
const SOON: Duration = Duration::from_secs(5);

#[test]
fn a_rank_that_has_returned() {
    job("a_rank_that_has_returned", 3, &[], |process| {
        let mock = mock();
        if process.number == 2 {
            return;
        }
        process.begin();
        let error = process.never_joins(&mock, "returned");
        incomplete(
            &mock,
            &error,
            &["ranks 0, 1: waits in join (", "rank 2: has not joined, and process 2 (pid "],
        );
        contains(error.message(), &[") ended with exit code 0"]);
    });
}

#[test]
fn a_rank_that_has_exited_without_a_mock() {
    job("a_rank_that_has_exited_without_a_mock", 3, &[0], |process| {
        if process.number == 0 {
            process::exit(3);
        }
        let mock = mock();
        process.begin();
        let error = process.never_joins(&mock, "exited");
        incomplete(&mock, &error, &["rank 0: has not joined, and process 0 (pid "]);
        contains(error.message(), &[") ended with exit code 3"]);
    });
}

#[test]
fn a_rank_that_is_killed_while_others_wait() {
    job("a_rank_that_is_killed_while_others_wait", 3, &[1], |process| {
        let mock = mock();
        process.begin();
        if process.number == 1 {
            thread::sleep(Duration::from_millis(200));
            process::abort();
        }
        let error = process.never_joins(&mock, "killed after 200 ms");
        incomplete(&mock, &error, &["rank 1: has not joined, and process 1 (pid "]);
        contains(error.message(), &[") ended by signal 6"]);
    });
}

#[test]
fn a_rank_that_dies_in_the_join() {
    job("a_rank_that_dies_in_the_join", 4, &[2, 3], |process| {
        if process.number == 3 {
            // Somebody who may come, so that the death is all that there is to tell.
            sleep_for_ever();
        }
        let mock = mock();
        process.begin();
        if process.number == 2 {
            thread::spawn(|| {
                thread::sleep(Duration::from_millis(200));
                process::abort();
            });
        }
        let error = process.never_joins(&mock, "dead in the join after 200 ms");
        assert_eq!(error.kind(), ErrorKind::Remote, "{error}");
        contains(
            error.message(),
            &["rank 2 (pid ", ") ended by signal 6 before all ranks had come"],
        );
        assert!(mock.verdicts().is_empty());
    });
}

#[test]
fn ranks_whose_numbers_are_not_their_processes() {
    job("ranks_whose_numbers_are_not_their_processes", 3, &[0], |process| {
        if process.number == 0 {
            process::exit(4);
        }
        let mock = mock();
        process.begin();
        let config = JoinConfig::new(process.number - 1, 3).with_device(process.number as usize);
        let config = config.with_name("world");
        let error = told("renumbered", || mock.join(&process.id, config).map(drop));
        let text = "rank 2: has not joined; of the job, process 0 (pid ";
        incomplete(&mock, &error, &[text, ") ended with exit code 4"]);
    });
}

#[test]
fn a_join_and_an_all_reduce_that_wait_for_each_other() {
    job("a_join_and_an_all_reduce_that_wait_for_each_other", 3, &[2], |process| {
        let mock = mock();
        if process.number == 2 {
            process::exit(0);
        }
        let pair = process.join_first(&mock, 2, "pair").unwrap();
        process.begin();
        let case = "join and all_reduce";
        let error = match process.number {
            0 => process.never_joins(&mock, case),
            _ => told(case, || all_reduce(&mock, &pair)),
        };
        assert_eq!(error.kind(), ErrorKind::Deadlock, "{error}");
        contains(
            error.message(),
            &[
                "ranks wait in the join of 'pair' and 'world' for ranks that never come",
                "rank 1: all_reduce #0 of 4 × f32, sum (crates/backend-mock/tests/process_joins.rs:",
                "rank 2: has not joined, and process 2 (pid ",
                "rank 0 of 'pair' issues nothing: its thread",
            ],
        );
        assert_eq!(verdict(&mock).kind, VerdictKind::JoinIncomplete);
    });
}

#[test]
fn a_rank_that_sleeps_for_ever() {
    job("a_rank_that_sleeps_for_ever", 3, &[2], |process| {
        let mock = mock();
        process.begin();
        if process.number == 2 {
            sleep_for_ever();
        }
        let error = process.never_joins(&mock, "asleep");
        incomplete(&mock, &error, &["rank 2: has not joined, and no thread is left that could"]);
    });
}

#[test]
fn two_ranks_of_a_process_and_one_that_never_comes() {
    job("two_ranks_of_a_process_and_one_that_never_comes", 2, &[], |process| {
        let mock = mock();
        if process.number == 1 {
            return;
        }
        process.begin();
        let join = |rank: u32| {
            let config = JoinConfig::new(rank, 3).with_device(rank as usize).with_name("world");
            told("two threads", || mock.join(&process.id, config).map(drop))
        };
        thread::scope(|scope| {
            let other = scope.spawn(|| join(1));
            let errors = [join(0), other.join().unwrap()];
            for error in errors {
                incomplete(&mock, &error, &["rank 1: waits in join (", "rank 2: has not joined"]);
            }
        });
    });
}

#[test]
fn a_grow_whose_new_rank_never_comes() {
    job("a_grow_whose_new_rank_never_comes", 3, &[2], |process| {
        let mock = mock();
        if process.number == 2 {
            process::exit(0);
        }
        let pair = process.join_first(&mock, 2, "pair").unwrap();
        if process.number == 0 {
            pair.grow_id().unwrap();
        }
        process.begin();
        let config = GrowConfig::new(3).with_name("world");
        let error = told("grow", || pair.grow(config).map(drop));
        assert_eq!((error.kind(), error.operation()), (ErrorKind::Deadlock, Some("grow")));
        contains(
            error.message(),
            &["ranks 0, 1: waits in grow (", "rank 2: has not joined, and process"],
        );
        assert_eq!(verdict(&mock).kind, VerdictKind::JoinIncomplete);
        // What could not grow is as it was.
        all_reduce(&mock, &pair).unwrap();
    });
}

#[test]
fn an_id_is_of_use_again_to_those_that_were_told() {
    job("an_id_is_of_use_again_to_those_that_were_told", 3, &[2], |process| {
        let mock = mock();
        if process.number == 2 {
            process::exit(0);
        }
        process.begin();
        process.never_joins(&mock, "before another");
        let pair = process.join_first(&mock, 2, "pair").unwrap();
        all_reduce(&mock, &pair).unwrap();
        let config = process.config().with_name("another");
        let error = told("a second time", || mock.join(&process.id, config).map(drop));
        contains(error.message(), &["ranks wait in the join of 'another'"]);
        assert_eq!(mock.verdicts().len(), 2);
    });
}

#[test]
fn a_rank_that_is_only_late() {
    // It has no mock yet, computes, sleeps, waits for another thread, or for input.
    job("a_rank_that_is_only_late", 6, &[], |process| {
        let late = Duration::from_millis(600);
        let early = (process.number != 1).then(mock);
        process.begin();
        match process.number {
            0 => {}
            1 | 2 => thread::sleep(late),
            3 => {
                let start = Instant::now();
                while start.elapsed() < late {}
            }
            4 => thread::scope(|scope| {
                scope.spawn(|| thread::sleep(late));
            }),
            _ => {
                let (reader, writer) = std::io::pipe().unwrap();
                let child = Command::new("sleep").arg("0.6").stdout(writer).spawn();
                std::io::read_to_string(reader).unwrap();
                child.unwrap().wait().unwrap();
            }
        }
        let mock = early.unwrap_or_else(mock);
        let comm = mock.join(&process.id, process.config().with_deadline(PATIENCE)).unwrap();
        all_reduce(&mock, &comm).unwrap();
        assert!(mock.verdicts().is_empty(), "{:#?}", mock.verdicts());
    });
}

/// Nobody is told before the deadline.
#[track_caller]
fn waits_in_vain(process: &Process, mock: &Mock) {
    let config = process.config().with_deadline(Duration::from_millis(700));
    let error = mock.join(&process.id, config).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(mock.verdicts().is_empty(), "{:#?}", mock.verdicts());
}

#[test]
fn nobody_is_known_to_be_missing_without_a_launcher_that_says_who_all_are() {
    const TEST: &str = "nobody_is_known_to_be_missing_without_a_launcher_that_says_who_all_are";
    launch(Launcher::OfEach, TEST, 3, &[2], |process| {
        if process.number == 2 {
            process::exit(0);
        }
        let mock = mock();
        process.begin();
        waits_in_vain(process, &mock);
    });
}

#[test]
fn a_child_may_have_been_given_a_rank() {
    job("a_child_may_have_been_given_a_rank", 3, &[2], |process| {
        if process.number == 2 {
            process::exit(0);
        }
        let mock = mock();
        let child = (process.number == 1).then(|| Command::new("sleep").arg("2").spawn().unwrap());
        process.begin();
        waits_in_vain(process, &mock);
        if let Some(mut child) = child {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    });
}

#[test]
fn another_mock_of_a_process_may_come() {
    job("another_mock_of_a_process_may_come", 3, &[2], |process| {
        if process.number == 2 {
            process::exit(0);
        }
        let mocks = if process.number == 1 { vec![mock(), mock()] } else { vec![mock()] };
        process.begin();
        waits_in_vain(process, &mocks[0]);
    });
}

#[test]
fn a_rank_that_polls_its_join_is_there() {
    job("a_rank_that_polls_its_join_is_there", 3, &[], |process| {
        let mock = mock();
        process.begin();
        let config = process.config().with_deadline(PATIENCE);
        let comm = match process.number {
            0 => {
                // It does not wait in the join, but in an operation with one that does.
                let mut join = mock.join_start(&process.id, config).unwrap();
                let pair = process.join_first(&mock, 2, "pair").unwrap();
                all_reduce(&mock, &pair).unwrap();
                while join.poll() == JoinState::InProgress {
                    thread::sleep(Duration::from_millis(1));
                }
                join.finish()
            }
            1 => {
                let other = mock.join(&process.id, config);
                let pair = process.join_first(&mock, 2, "pair").unwrap();
                all_reduce(&mock, &pair).unwrap();
                other
            }
            _ => {
                thread::sleep(Duration::from_millis(300));
                mock.join(&process.id, config)
            }
        };
        all_reduce(&mock, &comm.unwrap()).unwrap();
        assert!(mock.verdicts().is_empty(), "{:#?}", mock.verdicts());
    });
}

#[test]
fn a_join_that_a_fault_holds_up_gets_no_verdict() {
    job("a_join_that_a_fault_holds_up_gets_no_verdict", 3, &[], |process| {
        let plan = FaultPlan::new().with_rule(Rule::new(Action::JoinHangs).on_rank(1).at_most(1));
        let mock = Mock::new(config().with_faults(plan));
        process.begin();
        waits_in_vain(process, &mock);
    });
}

#[test]
fn a_join_that_fails_and_is_not_tried_again() {
    job("a_join_that_fails_and_is_not_tried_again", 3, &[], |process| {
        let plan = FaultPlan::new().with_rule(Rule::new(Action::JoinFails).on_rank(1));
        let mock = Mock::new(config().with_faults(plan));
        process.begin();
        if process.number == 1 {
            let error = mock.join(&process.id, process.config()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::System, "{error}");
            return;
        }
        let error = process.never_joins(&mock, "failed");
        incomplete(&mock, &error, &["rank 1: has not joined, and process 1 (pid "]);
    });
}

#[test]
fn many_joins_with_pauses_at_random() {
    job("many_joins_with_pauses_at_random", 4, &[], |process| {
        let mock = mock();
        // Another sequence for each process, the same each time.
        let mut random = u64::from(process.number) + 1;
        let mut pause = || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            thread::sleep(Duration::from_millis(random >> 32 & 15));
        };
        for round in 0..40 {
            pause();
            let comm = process.join_first(&mock, 4, &format!("round {round}")).unwrap();
            pause();
            all_reduce(&mock, &comm).unwrap();
            let part = SplitConfig::new(process.number % 2);
            let part = comm.split(part).unwrap().unwrap();
            // Some are still on the way home from one join as others wait for them in the next.
            all_reduce(&mock, &part).unwrap();
        }
        assert!(mock.verdicts().is_empty(), "{:#?}", mock.verdicts());
    });
}

#[test]
fn a_split_of_which_a_rank_has_ended() {
    job("a_split_of_which_a_rank_has_ended", 3, &[2], |process| {
        let mock = mock();
        let comm = mock.join(&process.id, process.config()).unwrap();
        all_reduce(&mock, &comm).unwrap();
        process.begin();
        if process.number == 2 {
            process::exit(3);
        }
        let error = told("split", || comm.split(SplitConfig::new(0)).map(drop));
        assert_eq!(error.kind(), ErrorKind::Remote, "{error}");
        contains(error.message(), &["rank 2 (pid ", ") ended with exit code 3"]);
    });
}

#[test]
fn a_split_whose_missing_rank_waits_in_a_join() {
    job("a_split_whose_missing_rank_waits_in_a_join", 3, &[2], |process| {
        let mock = mock();
        if process.number == 2 {
            process::exit(0);
        }
        let pair = process.join_first(&mock, 2, "pair").unwrap();
        process.begin();
        let error = match process.number {
            0 => process.never_joins(&mock, "join and split"),
            _ => told("join and split", || pair.split(SplitConfig::new(0)).map(drop)),
        };
        assert_eq!(error.kind(), ErrorKind::Deadlock, "{error}");
        contains(
            error.message(),
            &["'pair'", "waits in split of 'pair'", "rank 2: has not joined"],
        );
    });
}
