//! Meetings of threads, of processes, and of what becomes of those that end.
//!
//! A test that needs other processes starts its own executable with its own name and a part to play;
//! see [`Part`].

use std::{
    collections::BTreeSet,
    env, fs,
    io::{BufRead, BufReader, Write},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use rustix::{
    net::{SendFlags, send},
    process::{Resource, Rlimit, setrlimit},
};

use super::{
    launch::ExitNotice,
    peer::{self, Peer, Process, Token},
    rendezvous::{Call, Met, Missed, meet},
    segment::Segment,
    watch::Watch,
    wire,
};

#[test]
fn threads_meet_each_with_a_process_of_its_own() {
    let token = peer::random().unwrap();
    let seats = 8;
    thread::scope(|scope| {
        for seat in 0..seats {
            scope.spawn(move || {
                let process = process();
                let offset = process.segment().alloc(8, 8).unwrap();
                word(process.own(), offset).store(100 + u64::from(seat), Ordering::Relaxed);
                let payload = offset.to_le_bytes();
                let met = meet(&process, Call { payload: &payload, ..call(token, seat, seats) });
                let met = met.unwrap();
                assert_eq!((met.peers.len(), met.payloads.len()), (8, 8));
                for (other, peer) in met.peers.iter().enumerate() {
                    assert_eq!(peer.is_own(), other == seat as usize);
                    assert_eq!(told(&met, other).load(Ordering::Relaxed), 100 + other as u64);
                }
                let tokens: BTreeSet<_> = met.peers.iter().map(|peer| peer.token()).collect();
                assert_eq!(tokens.len(), 8);
                // Nobody takes its memory away before all have looked.
                all_are_here(&met);
            });
        }
    });
}

#[test]
fn threads_of_one_process_take_several_seats() {
    let (token, one, other) = (peer::random().unwrap(), process(), process());
    thread::scope(|scope| {
        let seats = [&one, &one, &other, &one].into_iter().zip(0..);
        let threads: Vec<_> = seats
            .map(|(process, seat)| {
                scope.spawn(move || meet(process, call(token, seat, 4)).unwrap())
            })
            .collect();
        let mets: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        let is_own = |met: &Met| met.peers.iter().map(|peer| peer.is_own()).collect::<Vec<_>>();
        assert_eq!(is_own(&mets[0]), [true, true, false, true]);
        assert_eq!(is_own(&mets[2]), [false, false, true, false]);
        assert!(Arc::ptr_eq(&mets[0].peers[2], &mets[3].peers[2]), "mapped once");
        assert!(Arc::ptr_eq(&mets[2].peers[0], &mets[2].peers[3]));
        mets[1].board.at::<AtomicU64>(0).unwrap().store(5, Ordering::Relaxed);
        assert_eq!(mets[2].board.at::<AtomicU64>(0).unwrap().load(Ordering::Relaxed), 5);
    });
}

#[test]
fn one_seat_needs_nobody() {
    let process = process();
    let met = meet(&process, Call { payload: b"me", ..call(peer::random().unwrap(), 0, 1) });
    let met = met.unwrap();
    assert_eq!(met.payloads, [b"me"]);
    assert!(met.peers[0].is_own());
    assert_eq!(met.board.bytes(), BOARD_BYTES);
}

#[test]
fn who_is_late_knows_who_came() {
    let token = peer::random().unwrap();
    let until = Some(Instant::now() + Duration::from_millis(200));
    thread::scope(|scope| {
        let threads = [0, 1, 3].map(|seat| {
            scope.spawn(move || meet(&process(), Call { until, ..call(token, seat, 5) }))
        });
        for thread in threads {
            let missed = thread.join().unwrap().err();
            let Some(Missed::Late { came }) = missed else { panic!("{missed:?}") };
            assert_eq!(came, [true, true, false, true, false]);
        }
    });
    let late = Missed::Late { came: vec![true, true, false, true, false] };
    assert_eq!(late.to_string(), "late: came 0, 1, 3; missing 2, 4");
}

#[test]
fn seats_that_were_given_up_can_be_taken_again() {
    // Seat 0 is the host, then seat 1; each gives up once, and comes back as another process.
    let token = peer::random().unwrap();
    thread::scope(|scope| {
        let steady = scope.spawn(move || meet(&process(), call(token, 2, 3)));
        for seat in [0, 1, 0] {
            let until = Some(Instant::now() + Duration::from_millis(50));
            let missed = meet(&process(), Call { until, ..call(token, seat, 3) }).err();
            let Some(Missed::Late { came }) = missed else { panic!("{missed:?}") };
            assert!(came[seat as usize]);
        }
        let again = scope.spawn(move || meet(&process(), call(token, 0, 3)));
        let host = meet(&process(), call(token, 1, 3)).unwrap();
        assert_eq!(host.peers.len(), 3);
        again.join().unwrap().unwrap();
        steady.join().unwrap().unwrap();
    });
}

#[test]
fn a_host_that_gives_up_leaves_the_meeting_to_its_guests() {
    let (token, stop) = (peer::random().unwrap(), AtomicBool::new(false));
    let stop = &stop;
    thread::scope(|scope| {
        let (waits, waiting) = mpsc::channel();
        // The first is the host, and the others are its guests by the time that it gives up.
        let [host, first, second] = [0, 1, 2].map(|seat| {
            let waits = waits.clone();
            let thread = scope.spawn(move || {
                let cancelled = || {
                    let _ = waits.send(seat);
                    seat == 0 && stop.load(Ordering::Relaxed)
                };
                let met = meet(&process(), Call { cancelled: &cancelled, ..call(token, seat, 4) });
                met.map(|met| met.peers.len())
            });
            while waiting.recv().unwrap() != seat {}
            thread
        });
        stop.store(true, Ordering::Relaxed);
        let missed = host.join().unwrap();
        assert!(matches!(missed, Err(Missed::Cancelled)), "{missed:?}");
        let last = scope.spawn(move || meet(&process(), call(token, 3, 4)).map(|_| ()));
        meet(&process(), call(token, 0, 4)).unwrap();
        last.join().unwrap().unwrap();
        for guest in [first, second] {
            assert_eq!(guest.join().unwrap().unwrap(), 4);
        }
    });
}

#[test]
fn who_gives_up_at_the_last_moment_strands_nobody() {
    // All come and give up at all times, until they meet: who thinks to have met while another has
    // given up would be missed for ever.
    for round in 0..200 {
        let (token, end) = (peer::random().unwrap(), far());
        thread::scope(|scope| {
            let try_until_met = |seat: u32| {
                let process = process();
                for attempt in 0_u64.. {
                    // Anything that differs between seats, attempts and rounds.
                    let mixed = (round * 31 + u64::from(seat) * 17 + attempt * 7) % 23;
                    let until = Some(Instant::now() + Duration::from_micros(30 * mixed));
                    match meet(&process, Call { until, ..call(token, seat, 4) }) {
                        Ok(met) => return all_are_here(&met),
                        Err(Missed::Late { .. }) => assert!(Instant::now() < end, "stranded"),
                        Err(missed) => panic!("{missed}"),
                    }
                }
            };
            for seat in 0..4 {
                scope.spawn(move || try_until_met(seat));
            }
        });
    }
}

#[test]
fn disagreement_is_told_to_those_concerned() {
    let told = |changes: [fn(&mut Call<'_>); 2]| {
        let token = peer::random().unwrap();
        thread::scope(|scope| {
            let threads = changes.map(|change| {
                scope.spawn(move || {
                    let mut call = call(token, 0, 3);
                    change(&mut call);
                    meet(&process(), call).err()
                })
            });
            threads.map(|thread| match thread.join().unwrap() {
                Some(Missed::Disagree(text)) => text,
                missed => panic!("{missed:?}"),
            })
        })
    };
    for text in told([|_| (), |call| (call.seat, call.seats) = (1, 4)]) {
        assert!(text.contains("wants 3") && text.contains("wants 4"), "{text}");
    }
    for text in told([|_| (), |call| (call.seat, call.board_bytes) = (1, 1)]) {
        assert!(text.contains(" of 1 bytes") || text.ends_with(" of 1"), "{text}");
    }
    for text in told([|call| call.seat = 3, |call| call.seats = u32::MAX]) {
        assert!(text.contains("seat"), "{text}");
    }
}

#[test]
fn a_taken_seat_is_refused_to_the_newcomer_alone() {
    let token = peer::random().unwrap();
    thread::scope(|scope| {
        let (here, is_here) = mpsc::channel();
        let first = scope.spawn(move || {
            let cancelled = || here.send(()).is_err();
            meet(&process(), Call { cancelled: &cancelled, ..call(token, 0, 2) }).map(|_| ())
        });
        is_here.recv().unwrap();
        let missed = meet(&process(), call(token, 0, 2)).err();
        let Some(Missed::Disagree(text)) = missed else { panic!("{missed:?}") };
        let pid = std::process::id();
        assert_eq!(text, format!("seat 0 is taken, by pid {pid}"));
        let second = meet(&process(), call(token, 1, 2));
        assert!(second.is_ok(), "{:?}", second.err());
        first.join().unwrap().unwrap();
    });
}

#[test]
fn strangers_are_turned_away_and_do_no_harm() {
    let token = peer::random().unwrap();
    let name = format!("collectives-mock-{:032x}", u128::from_be_bytes(token)).into_bytes();
    thread::scope(|scope| {
        let (here, is_here) = mpsc::channel();
        let host = scope.spawn(move || {
            let cancelled = || here.send(()).is_err();
            meet(&process(), Call { cancelled: &cancelled, ..call(token, 0, 2) }).map(|_| ())
        });
        is_here.recv().unwrap();
        let silent = wire::connect(&name).unwrap().unwrap();
        let rude = wire::connect(&name).unwrap().unwrap();
        let garbage = send(&rude, b"GET /", SendFlags::NOSIGNAL);
        assert_eq!(garbage, Ok(5));
        let confused = wire::connect(&name).unwrap().unwrap();
        assert!(confused.send(&wire::Message::Go, &[]).unwrap());
        drop(silent);
        assert!(meet(&process(), call(token, 1, 2)).is_ok());
        host.join().unwrap().unwrap();
    });
}

#[test]
fn four_processes_meet_and_share_memory() {
    const TEST: &str = "four_processes_meet_and_share_memory";
    if let Some(part) = Part::mine() {
        let (process, seat) = (process(), part.seat);
        let offset = process.segment().alloc(4 << 20, 1).unwrap();
        let own = word(process.own(), offset);
        own.store(u64::from(seat), Ordering::Relaxed);
        let payload = offset.to_le_bytes();
        let met = meet(&process, Call { payload: &payload, ..call(part.token, seat, 4) }).unwrap();
        for other in 0..4 {
            assert_eq!(told(&met, other).load(Ordering::Relaxed), other as u64);
        }
        let pids: BTreeSet<_> = met.peers.iter().map(|peer| peer.pid()).collect();
        assert_eq!(pids.len(), 4);
        all_are_here(&met);
        // Everybody writes to the next one's memory.
        told(&met, (seat as usize + 1) % 4).store(1000 + u64::from(seat), Ordering::Relaxed);
        all_are_here(&met);
        assert_eq!(own.load(Ordering::Relaxed), 1000 + u64::from((seat + 3) % 4));
        part.say("good");
        return;
    }
    let token = peer::random().unwrap();
    let mut others: Vec<_> = (0..4).map(|seat| Part { token, seat }.start(TEST)).collect();
    for other in &mut others {
        assert_eq!(other.hear(), "good");
        assert_eq!(other.end().code(), Some(0));
    }
}

#[test]
fn a_guest_that_is_killed_ends_the_meeting_for_all() {
    const TEST: &str = "a_guest_that_is_killed_ends_the_meeting_for_all";
    if let Some(part) = Part::mine() {
        return part.wait_to_meet(4);
    }
    let token = peer::random().unwrap();
    thread::scope(|scope| {
        let (here, is_here) = mpsc::channel();
        let host = scope.spawn(move || {
            let cancelled = || {
                let _ = here.send(());
                false
            };
            meet(&process(), Call { cancelled: &cancelled, ..call(token, 0, 4) }).err()
        });
        is_here.recv().unwrap();
        let [mut stays, mut dies] = [1, 2].map(|seat| Part { token, seat }.start(TEST));
        assert_eq!((stays.hear(), dies.hear()), ("waits".into(), "waits".into()));
        let pid = dies.kill();
        let missed = host.join().unwrap();
        let is_it =
            |missed| matches!(missed, Some(Missed::Died { seat: Some(2), pid: it }) if it == pid);
        assert!(is_it(missed));
        assert_eq!(stays.hear(), format!("seat 2 (pid {pid}) ended before all had come"));
    });
}

#[test]
fn a_host_that_is_killed_ends_the_meeting_for_all() {
    const TEST: &str = "a_host_that_is_killed_ends_the_meeting_for_all";
    if let Some(part) = Part::mine() {
        return part.wait_to_meet(4);
    }
    // A guest may know its host's pid only, where that one ends before it has let it in.
    let knows_seat = || {
        let token = peer::random().unwrap();
        let mut host = Part { token, seat: 3 }.start(TEST);
        assert_eq!(host.hear(), "waits");
        let mut guests = [0, 1].map(|seat| Part { token, seat }.start(TEST));
        for guest in &mut guests {
            assert_eq!(guest.hear(), "waits");
        }
        let pid = host.kill();
        guests.map(|mut guest| {
            let died = guest.hear();
            let knows = died == format!("seat 3 (pid {pid}) ended before all had come");
            assert!(knows || died == format!("pid {pid} ended before all had come"), "{died}");
            knows
        })
    };
    assert!((0..10).any(|_| knows_seat() == [true; 2]));
}

#[test]
fn a_death_is_seen_at_once_with_what_the_launcher_says_of_it() {
    const TEST: &str = "a_death_is_seen_at_once_with_what_the_launcher_says_of_it";
    if let Some(part) = Part::mine() {
        let process = process();
        let met = meet(&process, call(part.token, part.seat, 3)).unwrap();
        part.say("met");
        return all_are_here(&met);
    }
    let (token, process) = (peer::random().unwrap(), process());
    let (ended, ends) = mpsc::channel();
    let tell = move |peer: &Arc<Peer>| {
        let at = Instant::now();
        let _ = ended.send((peer.pid(), at, peer.end()));
    };
    let _watch = Watch::start(&process, Box::new(tell)).unwrap();
    let mut command = Part { token, seat: 1 }.command(TEST);
    let notice = ExitNotice::attach(&mut command).unwrap();
    let mut noticed = Other::start(command);
    let mut plain = Part { token, seat: 2 }.start(TEST);
    let met = meet(&process, call(token, 0, 3)).unwrap();
    assert_eq!((noticed.hear(), plain.hear()), ("met".into(), "met".into()));
    assert!(met.peers.iter().all(|peer| peer.end().is_none()));

    // What the launcher says counts, even where the system knows better.
    notice.publish(ExitStatus::from_raw(3 << 8));
    let expected: [&[&str]; 2] = [&["ended with exit code 3"], &["ended", "ended by signal 9"]];
    for (other, expected) in [&mut noticed, &mut plain].into_iter().zip(expected) {
        let killed = Instant::now();
        let pid = other.kill();
        // The system tells others once the parent has looked.
        assert_eq!(other.end().signal(), Some(9));
        let (seen, at, end) = ends.recv_timeout(Duration::from_secs(5)).unwrap();
        let end = end.unwrap().to_string();
        assert_eq!(seen, pid);
        assert!(expected.contains(&end.as_str()), "{end}");
        println!("{end}; seen after {:?}", at - killed);
    }
    assert!(ends.try_recv().is_err(), "each end is told once");
    assert!(met.peers[1].has_ended() && !met.peers[0].has_ended());
    // Its memory is still there.
    assert!(met.peers[1].translate(0, 8).is_some());
}

#[test]
fn bells_of_processes_lose_no_ring() {
    const TEST: &str = "bells_of_processes_lose_no_ring";
    const ROUNDS: u32 = 10_000;
    let play = |seat: u32, token| {
        let process = process();
        let met = meet(&process, call(token, seat, 2)).unwrap();
        let [own, other] = [seat, 1 - seat].map(|seat| met.peers[seat as usize].bell());
        let until = Some(far());
        for round in 0..ROUNDS {
            if seat == 0 {
                other.ring();
            }
            assert!(own.sleep(round, until), "lost in round {round}");
            if seat == 1 {
                other.ring();
            }
        }
        all_are_here(&met);
    };
    if let Some(part) = Part::mine() {
        return play(part.seat, part.token);
    }
    let token = peer::random().unwrap();
    let mut other = Part { token, seat: 1 }.start(TEST);
    play(0, token);
    assert_eq!(other.end().code(), Some(0));
}

#[test]
fn nothing_stays_behind() {
    const TEST: &str = "nothing_stays_behind";
    if let Some(part) = Part::mine() {
        // Descriptors are counted in a process where no other test opens any.
        let meet_often = |times: u8, look: &dyn Fn()| {
            let process = process();
            let watch = Watch::start(&process, Box::new(|_| ())).unwrap();
            for time in 0..times {
                let token = part.token.map(|byte| byte ^ time);
                let met = meet(&process, call(token, part.seat, 2)).unwrap();
                assert_eq!(process.peers().living().len(), 1);
                look();
                all_are_here(&met);
                let missed =
                    meet(&process, Call { cancelled: &|| true, ..call(token, part.seat, 2) });
                assert!(missed.is_err());
            }
            drop((watch, process));
        };
        let fds = || {
            let names = fs::read_dir("/proc/self/fd").unwrap().flatten();
            names.map(|entry| entry.file_name()).collect::<BTreeSet<_>>()
        };
        let count = || fds().len();
        // The thread that watches ends soon, but nobody waits for it.
        let settled = |wanted: usize| {
            let until = far();
            while count() > wanted && Instant::now() < until {
                thread::sleep(Duration::from_millis(1));
            }
            count()
        };
        let (before, inherited) = (count(), fds());
        meet_often(10, &|| {
            for fd in fds().difference(&inherited) {
                // Gone by now where it was that of the directory.
                let info = fs::read_to_string(Path::new("/proc/self/fdinfo").join(fd));
                let flags = info.ok().and_then(|info| {
                    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
                    u32::from_str_radix(flags.trim(), 8).ok()
                });
                let closes = |flags: u32| flags & O_CLOEXEC != 0;
                assert!(flags.is_none_or(closes), "{fd:?}: {flags:?}");
            }
        });
        assert_eq!(settled(before), before);
        let mapped = fs::read_to_string("/proc/self/maps").unwrap();
        assert!(!mapped.contains("memfd:collectives"), "{mapped}");
        part.say("good");
        return;
    }
    let token = peer::random().unwrap();
    let mut others = [0, 1].map(|seat| Part { token, seat }.start(TEST));
    for other in &mut others {
        assert_eq!(other.hear(), "good");
    }
    let mut killed =
        Part { token, seat: 0 }.start("a_host_that_is_killed_ends_the_meeting_for_all");
    assert_eq!(killed.hear(), "waits");
    let name = format!("collectives-mock-{:032x}", u128::from_be_bytes(token));
    let is_bound = || fs::read_to_string("/proc/net/unix").unwrap().contains(&name);
    assert!(is_bound());
    killed.kill();
    killed.end();
    assert!(!is_bound());
    if Path::new("/dev/shm").exists() {
        let ours =
            |entry: fs::DirEntry| entry.file_name().to_string_lossy().contains("collectives");
        assert!(!fs::read_dir("/dev/shm").unwrap().flatten().any(ours));
    }
}

#[test]
fn a_segment_that_the_system_limits_says_so() {
    const TEST: &str = "a_segment_that_the_system_limits_says_so";
    if let Some(part) = Part::mine() {
        let limit = |resource, bytes| {
            setrlimit(resource, Rlimit { current: Some(bytes), maximum: None }).unwrap();
        };
        limit(Resource::As, 16 << 30);
        let segment = Segment::new(128 << 30).unwrap();
        assert_eq!(segment.bytes(), 8 << 30);
        let shortage = segment.shortage().unwrap();
        assert!(shortage.contains("8192 MiB of the 131072 MiB"), "{shortage}");
        limit(Resource::Fsize, 64 << 20);
        assert_eq!(Segment::new(128 << 30).unwrap().bytes(), 64 << 20);
        limit(Resource::Fsize, 4096);
        assert!(Segment::new(128 << 30).is_err());
        part.say("good");
        return;
    }
    let mut other = Part { token: Token::default(), seat: 0 }.start(TEST);
    assert_eq!(other.hear(), "good");
    assert_eq!(other.end().code(), Some(0));
}

/// What a process that a test starts is to do. It runs the same test, which asks for its part.
struct Part {
    token: Token,
    seat: u32,
}

impl Part {
    /// This process's, if it was started for one.
    fn mine() -> Option<Self> {
        let part = env::var(PART).ok()?;
        let (token, seat) = part.split_once('/').unwrap();
        let token = u128::from_str_radix(token, 16).unwrap().to_be_bytes();
        Some(Self { token, seat: seat.parse().unwrap() })
    }

    fn command(&self, test: &str) -> Command {
        let mut command = Command::new(env::current_exe().unwrap());
        let name = format!("process::tests::{test}");
        command.args([&name, "--exact", "--nocapture", "--test-threads=1"]);
        let token = u128::from_be_bytes(self.token);
        command.env(PART, format!("{token:x}/{}", self.seat));
        command
    }

    fn start(&self, test: &str) -> Other {
        Other::start(self.command(test))
    }

    /// Tells the process that started this one.
    fn say(&self, text: &str) {
        let mut out = std::io::stdout();
        writeln!(out, "{MARK}{text}").unwrap();
        out.flush().unwrap();
    }

    /// Comes to a meeting, says when it has waited there for a moment, and what becomes of it.
    fn wait_to_meet(&self, seats: u32) {
        let looks = AtomicU64::new(0);
        let cancelled = || {
            if looks.fetch_add(1, Ordering::Relaxed) == 3 {
                self.say("waits");
            }
            false
        };
        let call = Call { cancelled: &cancelled, ..call(self.token, self.seat, seats) };
        match meet(&process(), call) {
            Ok(_) => self.say("met"),
            Err(missed) => self.say(&missed.to_string()),
        }
    }
}

/// A process that a test has started; killed where the test ends before it.
struct Other {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Other {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// The next thing that it says.
    fn hear(&mut self) -> String {
        let said = self.lines.by_ref().map_while(Result::ok).find_map(|line| {
            // The test harness has begun the line.
            line.split_once(MARK).map(|(_, text)| text.to_owned())
        });
        said.expect("the process should have said more; see its own output")
    }

    fn kill(&mut self) -> u32 {
        self.child.kill().unwrap();
        self.child.id()
    }

    fn end(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn process() -> Process {
    Process::new(64 << 20).unwrap()
}

/// A call that waits long enough for a slow machine, but not for ever.
fn call(token: Token, seat: u32, seats: u32) -> Call<'static> {
    let (payload, board_bytes) = (&[], BOARD_BYTES);
    Call {
        token,
        seat,
        seats,
        payload,
        board_bytes,
        until: Some(far()),
        cancelled: &|| false,
        complete: &|| (),
    }
}

fn far() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// Waits until all have called it as often: a barrier on the board, with the bells.
fn all_are_here(met: &Met) {
    let count = met.board.at::<AtomicU64>(64).unwrap();
    let seats = met.peers.len() as u64;
    let round = count.fetch_add(1, Ordering::SeqCst) / seats;
    for peer in &met.peers {
        peer.bell().ring();
    }
    let own = met.peers.iter().find(|peer| peer.is_own()).unwrap();
    loop {
        let seen = own.bell().state();
        if count.load(Ordering::SeqCst) >= (round + 1) * seats {
            return;
        }
        assert!(own.bell().sleep(seen, Some(far())), "the others don't come");
    }
}

/// Eight bytes of a process's memory.
fn word(peer: &Peer, offset: u64) -> &AtomicU64 {
    let word = peer.translate(offset, 8).unwrap().cast::<u64>();
    // SAFETY: aligned, as all that is allocated, mapped as long as the peer, and used as this alone.
    unsafe { AtomicU64::from_ptr(word) }
}

/// What a process says in its payload of where its word is.
fn told(met: &Met, seat: usize) -> &AtomicU64 {
    let offset = u64::from_le_bytes(met.payloads[seat].as_slice().try_into().unwrap());
    word(&met.peers[seat], offset)
}

const BOARD_BYTES: usize = 1 << 16;

/// As Linux writes it in `/proc`.
const O_CLOEXEC: u32 = 0o200_0000;

/// Says which part a process is to play.
const PART: &str = "COLLECTIVES_TEST_PART";

/// Begins what a process says to the one that started it.
const MARK: &str = "says: ";
