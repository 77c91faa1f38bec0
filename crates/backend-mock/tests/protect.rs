//! The guard `protect`: loads and stores of the program in memory that operations have.
#![cfg(all(target_os = "linux", not(miri)))] // elsewhere there is no such guard, and Miri has no signals

mod kit;

use std::{
    env,
    ffi::c_void,
    io::Write,
    os::unix::process::ExitStatusExt,
    process::{Command, Output, Stdio},
    ptr,
    sync::mpsc,
    thread,
    time::Duration,
};

use collectives_backend_mock::{Guards, Mock, MockConfig, Ranks, Schedule};
use collectives_core::{
    Backend, BackendExt, Collectives, Device, Error, ErrorKind, JoinAllConfig, JoinConfig,
    RawStream, UniqueId,
};
use kit::{Buf, End, PATIENCE, end, ends, here};

const PROTECT: Guards = Guards::NONE.with_protect(true);

fn config(devices: usize) -> MockConfig {
    MockConfig::new().with_devices(devices).with_guards(PROTECT)
}

fn mock(devices: usize) -> Mock {
    Mock::new(config(devices))
}

/// One element, by one load of the program.
fn load(buf: Buf, index: usize) -> i32 {
    assert!(index < buf.count);
    // SAFETY: within the buffer; volatile, so that it is one load, and made.
    unsafe { buf.ptr.cast::<i32>().wrapping_add(index).read_volatile() }
}

/// The same, stored.
fn store(buf: Buf, index: usize, value: i32) {
    assert!(index < buf.count);
    // SAFETY: as in `load`.
    unsafe { buf.ptr.cast::<i32>().wrapping_add(index).write_volatile(value) }
}

/// Fails unless the error is one of this guard and says all of this.
#[track_caller]
fn says(error: &Error, parts: &[&str]) {
    let text = error.to_string();
    assert_eq!(error.kind(), ErrorKind::InvalidUsage, "{text}");
    for part in parts {
        assert!(text.contains(part), "'{part}' is not in: {text}");
    }
}

#[test]
fn a_read_before_the_wait_is_an_error_and_after_it_is_none() {
    let schedules = [Schedule::Eager, Schedule::Late, Schedule::Random(1), Schedule::Random(2)];
    for (schedule, guards) in
        schedules.into_iter().flat_map(|it| [(it, PROTECT), (it, Guards::ALL)])
    {
        let config = MockConfig::new().with_devices(1).with_guards(guards);
        let mock = Mock::new(config.with_schedule(schedule));
        let end = &ends(&mock, 1)[0];
        let (send, recv) = (end.buf(&[3, 4, 5]), end.buf(&[0, 0, 0]));
        end.all_reduce(send, recv).unwrap();
        end.wait().unwrap();
        assert_eq!(recv.now(), [3, 4, 5], "{schedule}");
        let site = here();
        end.all_reduce(send, recv).unwrap();
        // Under an eager schedule it is done by now; that the program cannot know.
        load(recv, 1);
        let error = end.wait().unwrap_err();
        let at =
            format!("of the 12 bytes at {:p} that all_reduce #1 of rank 0 in 'test'", recv.ptr);
        let file = site.split(':').next().unwrap();
        let stream = format!("stream {:#x} of device 0 writes", end.stream.bits());
        says(&error, &["the program reads byte 4", &at, file, &stream, "synchronize"]);
        let error = end.comm.poll_error().unwrap_err();
        says(&error, &["the program reads byte 4"]);
        assert!(error.poisons_communicator());
    }
}

#[test]
fn a_poll_tells_at_once_while_the_operation_still_waits_for_its_peer() {
    let mock = mock(2);
    let ends = ends(&mock, 2);
    let (send, recv) = (ends[0].buf(&[1; 100]), ends[0].buf(&[0; 100]));
    ends[0].all_reduce(send, recv).unwrap();
    ends[0].comm.poll_error().unwrap();
    assert_eq!(load(send, 99), 1, "what is sent may be read");
    ends[0].comm.poll_error().unwrap();
    store(send, 40, 7);
    let error = ends[0].comm.poll_error().unwrap_err();
    let at = format!("byte 160 of the 400 bytes at {:p}", send.ptr);
    says(&error, &["the program writes", &at, "of device 0 reads", "writes to that memory"]);
    // The others are told as of any failure, and nothing was moved.
    assert!(ends[1].comm.poll_error().is_err());
    assert_eq!((load(send, 40), load(recv, 0)), (7, 0));
}

#[test]
fn it_does_not_matter_which_thread_it_is() {
    let mock = mock(1);
    let end = &ends(&mock, 1)[0];
    let buf = end.buf(&[1, 2]);
    end.all_reduce(buf, buf).unwrap();
    let address = buf.ptr.expose_provenance();
    thread::scope(|scope| {
        scope.spawn(move || {
            let ptr = ptr::with_exposed_provenance_mut::<c_void>(address);
            store(Buf { ptr, count: 2 }, 1, 5);
        });
    });
    says(&end.wait().unwrap_err(), &["the program writes byte 4 of the 8 bytes", "all_reduce #0"]);
}

#[test]
fn what_lies_beside_it_is_the_programs() {
    let mock = mock(2);
    let ends = ends(&mock, 2);
    let bufs: Vec<_> = ends.iter().map(|end| end.buf(&(0..100).collect::<Vec<_>>())).collect();
    for (end, buf) in ends.iter().zip(&bufs) {
        end.all_reduce(buf.part(10, 5), buf.part(20, 5)).unwrap();
        for index in (0..10).chain(15..20).chain(25..100) {
            assert_eq!(load(*buf, index), index as i32);
            store(*buf, index, 0);
        }
        // The sent ones may be read.
        assert_eq!(buf.part(10, 5).now(), [10, 11, 12, 13, 14]);
    }
    ends.iter().for_each(|end| end.wait().unwrap());
    assert_eq!(bufs[1].part(20, 5).now(), [20, 22, 24, 26, 28]);
    // That opened the page; the next call closes it.
    let part = bufs[0].part(20, 5);
    ends[0].all_reduce(bufs[0].part(10, 5), part).unwrap();
    store(bufs[0], 99, 1);
    ends[0].comm.poll_error().unwrap();
    load(part, 2);
    says(&ends[0].comm.poll_error().unwrap_err(), &["byte 8 of the 20 bytes", "all_reduce #1"]);
}

#[test]
fn one_page_can_have_what_is_read_and_what_is_written() {
    let mock = mock(2);
    let ends = ends(&mock, 2);
    let buf = ends[0].buf(&[1; 8]);
    ends[0].send(buf.part(0, 4), 1).unwrap();
    ends[0].recv(buf.part(4, 4), 1).unwrap();
    // The page is closed to loads, too, for the sake of the other half.
    assert_eq!(load(buf, 3), 1);
    ends[0].comm.poll_error().unwrap();
    ends[0].recv(buf.part(4, 4), 1).unwrap();
    store(buf, 2, 1);
    says(&ends[0].comm.poll_error().unwrap_err(), &["writes byte 8 of the 16 bytes", "send #0"]);
}

#[test]
fn copies_and_fills_have_their_memory_too() {
    let mock = mock(1);
    let device = mock.device(0).unwrap();
    let end = &ends(&mock, 1)[0];
    let one = |act: &dyn Fn(RawStream, Buf, Buf), touch: &dyn Fn(Buf, Buf), says_: &[&str]| {
        let stream = device.stream_create().unwrap();
        let (from, to) = (end.buf(&[1, 2, 3, 4]), end.buf(&[0; 4]));
        act(stream, from, to);
        touch(from, to);
        match end.wait_on(stream) {
            Ok(()) => assert!(says_.is_empty(), "no error: {says_:?}"),
            Err(error) => {
                assert!(!says_.is_empty(), "{error}");
                says(&error, says_);
            }
        }
        // It was told, and the stream goes on.
        end.wait_on(stream).unwrap();
        (from.now(), to.now())
    };
    let copy = |stream, from, to| end.copy(from, to, stream);
    one(&copy, &|_, to| _ = load(to, 3), &["reads byte 12 of the 16 bytes", "copy (crates"]);
    one(&copy, &|from, _| store(from, 3, 9), &["writes byte 12 of the 16 bytes", "copy (crates"]);
    let (_, to) = one(&copy, &|from, _| _ = load(from, 3), &[]);
    assert_eq!(to, [1, 2, 3, 4]);
    let fill = |stream, _, to| end.fill(to, 7, stream);
    one(&fill, &|_, to| store(to, 0, 1), &["writes byte 0 of the 16 bytes", "memset (crates"]);
    // One side is the program's own memory, which cannot be protected.
    let host = [8; 4];
    let up = |stream, _, to: Buf| {
        // SAFETY: both sides live until the stream has passed.
        unsafe { device.copy_to(to.ptr, host.as_ptr().cast(), 16, stream) }.unwrap();
    };
    one(&up, &|_, to| _ = load(to, 1), &["reads byte 4 of the 16 bytes", "copy (crates"]);
    let mut host = [0; 4];
    let at = host.as_mut_ptr();
    let down = |stream, from: Buf, _| {
        // SAFETY: both sides live until the stream has passed.
        unsafe { device.copy_from(at.cast(), from.ptr, 16, stream) }.unwrap();
    };
    one(&down, &|from, _| store(from, 2, 5), &["writes byte 8 of the 16 bytes", "copy (crates"]);
    assert_eq!(host, [1, 2, 3, 4]);
}

#[test]
fn whatever_tells_the_program_gives_it_the_memory_back() {
    let mock = mock(2);
    let ends = ends(&mock, 2);
    let both = |bufs: &[Buf]| {
        ends.iter().zip(bufs).for_each(|(end, &buf)| end.all_reduce(buf, buf).unwrap());
    };
    let bufs: Vec<_> = ends.iter().map(|end| end.buf(&[1])).collect();
    // A query that says yes.
    both(&bufs);
    let events: Vec<_> = ends.iter().map(|end| end.record(end.stream)).collect();
    for (end, event) in ends.iter().zip(events) {
        assert!(end.query(event));
    }
    assert_eq!((load(bufs[0], 0), load(bufs[1], 0)), (2, 2));
    // A wait for a stream that waits for an event behind it.
    both(&bufs);
    for (end, buf) in ends.iter().zip(&bufs) {
        let side = end.device.stream_create().unwrap();
        end.order(end.stream, side);
        end.wait_on(side).unwrap();
        assert_eq!(load(*buf, 0), 4);
    }
    // A wait for the device, and a question whether the stream is idle.
    both(&bufs);
    ends[0].device.synchronize_all().unwrap();
    // SAFETY: the stream is alive.
    assert!(unsafe { ends[1].device.is_idle(ends[1].stream) }.unwrap());
    assert_eq!((load(bufs[0], 0), load(bufs[1], 0)), (8, 8));
    // Not the peer's wait, though here it means that both are done.
    both(&bufs);
    ends[1].wait().unwrap();
    assert_eq!(load(bufs[1], 0), 16);
    load(bufs[0], 0);
    says(&ends[0].wait().unwrap_err(), &["the program reads byte 0 of the 4 bytes", "rank 0"]);
}

#[test]
fn the_end_of_a_communicator_gives_memory_back() {
    let mock = mock(1);
    for by in ["finalize", "abort", "drop"] {
        let End { comm, device, stream } = ends(&mock, 1).remove(0);
        let end = End { comm, device: device.clone(), stream };
        let buf = end.buf(&[4]);
        end.all_reduce(buf, buf).unwrap();
        match by {
            "finalize" => Box::new(end.comm).finalize().unwrap(),
            "abort" => Box::new(end.comm).abort().unwrap(),
            _ => drop(end.comm),
        }
        store(buf, 0, 5);
        // SAFETY: the stream is alive.
        let outcome = unsafe { device.synchronize(stream, Some(PATIENCE)) };
        assert!(outcome.is_ok(), "{by}: {outcome:?}");
    }
}

#[test]
fn a_replay_has_its_memory_from_the_launch_on() {
    for schedule in [Schedule::Eager, Schedule::Late] {
        let mock = Mock::new(config(1).with_schedule(schedule));
        let end = &ends(&mock, 1)[0];
        let buf = end.buf(&[1, 1]);
        // SAFETY: streams, graphs and buffers live as long as the mock, here and below.
        unsafe { end.device.begin_capture(end.stream) }.unwrap();
        end.all_reduce(buf, buf).unwrap();
        // SAFETY: as above.
        let graph = unsafe { end.device.end_capture(end.stream) }.unwrap();
        store(buf, 0, 3);
        // SAFETY: as above.
        let launch = || unsafe { end.device.launch(graph, end.stream) }.unwrap();
        for _ in 0..3 {
            launch();
            launch();
            end.wait().unwrap();
            store(buf, 0, load(buf, 0) + 1);
        }
        launch();
        load(buf, 1);
        let error = end.wait().unwrap_err();
        let stream = format!("wait for stream {:#x}", end.stream.bits());
        says(
            &error,
            &["reads byte 4 of the 8 bytes", "all_reduce #6", "a graph's stream", &stream],
        );
    }
}

#[test]
fn groups_over_streams_are_one() {
    let mock = mock(2);
    let ends = ends(&mock, 2);
    let bufs: Vec<_> = ends.iter().map(|end| (end.buf(&[1, 2]), end.buf(&[0, 0]))).collect();
    let exchange = || {
        mock.group(|_| {
            for (rank, (end, (send, recv))) in (0..).zip(ends.iter().zip(&bufs)) {
                end.send(*send, 1 - rank)?;
                end.recv(*recv, 1 - rank)?;
            }
            Ok(())
        })
        .unwrap();
    };
    exchange();
    ends.iter().for_each(|end| end.wait().unwrap());
    assert_eq!(bufs[0].1.now(), [1, 2]);
    exchange();
    load(bufs[1].1, 1);
    let error = ends[1].wait().unwrap_err();
    says(&error, &["reads byte 4 of the 8 bytes", "recv #1 of rank 1"]);
}

#[test]
fn freed_memory_is_not_the_programs() {
    let mock = Mock::new(config(1).with_schedule(Schedule::Late));
    let end = &ends(&mock, 1)[0];
    let buf = end.buf(&[1]);
    // SAFETY: the test uses it all the same, which is what is tried; it is there until the stream is
    // waited for.
    unsafe { end.device.free(buf.ptr, end.stream) }.unwrap();
    assert_eq!(load(buf, 0), 1);
    let error = end.wait().unwrap_err();
    says(&error, &["the program reads byte 0 of the 4 bytes", "free (crates"]);
    // What comes to lie there is other memory.
    let next = end.buf(&[2]);
    assert_eq!(next.ptr, buf.ptr);
    end.fill(next, 3, end.stream);
    end.wait().unwrap();
    assert_eq!(load(next, 0), 0x0303_0303);
}

#[test]
fn functions_that_a_stream_calls_are_in_its_order() {
    unsafe extern "C" fn double(data: *mut c_void) {
        let buf = Buf { ptr: data, count: 1 };
        store(buf, 0, 2 * load(buf, 0));
    }
    let mock = mock(1);
    let end = &ends(&mock, 1)[0];
    let buf = end.buf(&[1]);
    for _ in 0..3 {
        end.all_reduce(buf, buf).unwrap();
        // SAFETY: the buffer lives, and the function wants one element.
        unsafe { end.device.call(end.stream, double, buf.ptr) }.unwrap();
        end.all_reduce(buf, buf).unwrap();
    }
    end.wait().unwrap();
    assert_eq!(load(buf, 0), 8);
}

#[test]
fn a_large_buffer_is_told_once_and_all_of_it_is_read() {
    let mock = mock(1);
    let end = &ends(&mock, 1)[0];
    let buf = end.buf(&vec![1; 4 << 20]);
    let other = end.buf(&[5; 10]);
    end.fill(other, 1, end.device.stream_create().unwrap());
    end.all_reduce(buf, buf).unwrap();
    assert_eq!((0..buf.count).map(|index| load(buf, index)).sum::<i32>(), 4 << 20);
    says(&end.wait().unwrap_err(), &["reads byte 0 of the 16777216 bytes"]);
    let fresh = end.device.stream_create().unwrap();
    end.fill(buf, 0, fresh);
    store(buf, 5000, 1);
    says(&end.wait_on(fresh).unwrap_err(), &["writes byte 20000 of", "memset"]);
}

#[test]
fn more_ranges_than_there_can_be_mappings_are_no_harm() {
    let mock = mock(1);
    let end = &ends(&mock, 1)[0];
    // Every other one, so that no two are one mapping.
    let bufs: Vec<_> = (0..80_000).map(|value| (end.buf(&[value]), value)).collect();
    for (buf, value) in bufs.iter().step_by(2) {
        end.fill(*buf, *value as u8, end.stream);
    }
    let room = vec![1_u8; 64 << 20];
    thread::spawn(|| ()).join().unwrap();
    assert!(room.iter().all(|&byte| byte == 1));
    end.wait().unwrap();
    for (buf, value) in bufs {
        let filled = i32::from_ne_bytes([value as u8; 4]);
        assert_eq!(load(buf, 0), if value % 2 == 0 { filled } else { value });
    }
}

#[test]
fn a_system_call_is_refused_closed_memory() {
    let mock = mock(1);
    let end = &ends(&mock, 1)[0];
    let buf = end.buf(&[1; 16]);
    let (_reader, mut writer) = std::io::pipe().unwrap();
    // SAFETY: the buffer lives, and holds as much.
    let bytes = unsafe { std::slice::from_raw_parts(buf.ptr.cast::<u8>(), 64) };
    writer.write_all(bytes).unwrap();
    end.fill(buf, 2, end.stream);
    let error = writer.write_all(bytes).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EFAULT), "{error}");
    end.wait().unwrap();
    writer.write_all(bytes).unwrap();
}

#[test]
fn mocks_do_not_mind_each_other() {
    let (sender, receiver) = mpsc::channel();
    let threads: Vec<_> = (0..4)
        .map(|number| {
            let sender = sender.clone();
            thread::spawn(move || {
                for round in 0..30 {
                    let mock = mock(1);
                    let end = &ends(&mock, 1)[0];
                    let buf = end.buf(&[round; 3000]);
                    end.all_reduce(buf, buf).unwrap();
                    if (number + round) % 3 == 0 {
                        load(buf, 2000);
                        sender.send(end.wait().unwrap_err().to_string()).unwrap();
                    } else {
                        end.wait().unwrap();
                        assert_eq!(load(buf, 2999), round);
                    }
                }
            })
        })
        .collect();
    drop(sender);
    let told: Vec<_> = receiver.into_iter().collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(told.len(), 40);
    assert!(told.iter().all(|text| text.contains("byte 8000 of the 12000 bytes")), "{told:?}");
}

#[test]
fn ranks_in_processes_see_their_own_accesses() {
    const NAME: &str = "ranks_in_processes_see_their_own_accesses";
    const RANK: &str = "COLLECTIVES_TEST_PROTECT_RANK";
    const ID: &str = "COLLECTIVES_TEST_PROTECT_ID";
    let mock = Mock::new(config(2).with_ranks(Ranks::Processes));
    let Ok(rank) = env::var(RANK) else {
        let id = mock.unique_id().unwrap().to_base64();
        let start = |rank: u32| {
            let mut command = Command::new(env::current_exe().unwrap());
            command.args(["--exact", NAME, "--nocapture", "--test-threads=1"]);
            command.env(RANK, rank.to_string()).env(ID, &id);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        };
        for child in [start(0), start(1)] {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", text(&output));
        }
        return;
    };
    let rank: u32 = rank.parse().unwrap();
    let id: UniqueId = env::var(ID).unwrap().parse().unwrap();
    let join = JoinConfig::new(rank, 2).with_device(rank as usize).with_deadline(PATIENCE);
    let end = end(&mock, mock.join(&id, join.with_name("world")).unwrap());
    let (send, recv) = (end.buf(&[1, 2]), end.buf(&[0, 0]));
    for _ in 0..3 {
        end.all_reduce(send, recv).unwrap();
        end.wait().unwrap();
        assert_eq!(recv.now(), [2, 4]);
        store(send, 0, 1);
    }
    // Of this rank, whose part is published; the other has no part in it yet.
    if rank == 0 {
        end.all_reduce(send, recv).unwrap();
        store(send, 1, 2);
        let error = end.wait().unwrap_err();
        says(&error, &["the program writes byte 4 of the 8 bytes", "all_reduce #3 of rank 0"]);
    } else {
        let told = (0..2000).find_map(|_| {
            thread::sleep(Duration::from_millis(10));
            end.comm.poll_error().err()
        });
        says(&told.unwrap(), &["the program writes byte 4 of the 8 bytes"]);
    }
}

/// Runs a test of this file again, as a child that does something.
fn child(name: &str) -> Output {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(CHILD, "1");
    command.output().unwrap()
}

fn is_child() -> bool {
    env::var_os(CHILD).is_some()
}

fn text(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!("{}\n{}", String::from_utf8_lossy(out), String::from_utf8_lossy(err))
}

const CHILD: &str = "COLLECTIVES_TEST_PROTECT_CHILD";

/// Sees to it that the handler is there, and was used.
fn trap_something() -> Mock {
    let mock = mock(1);
    let end = &ends(&mock, 1)[0];
    let buf = end.buf(&[1]);
    end.all_reduce(buf, buf).unwrap();
    load(buf, 0);
    end.wait().unwrap_err();
    mock
}

/// Loads from where nothing is.
fn crash() -> i32 {
    let nowhere = ptr::without_provenance::<i32>(std::hint::black_box(4096));
    // SAFETY: none; that it ends the process is what is tried.
    unsafe { nowhere.read_volatile() }
}

#[test]
fn any_other_fault_still_ends_the_program() {
    if is_child() {
        let _mock = trap_something();
        println!("{}", crash());
    }
    let output = child("any_other_fault_still_ends_the_program");
    assert_eq!(output.status.signal(), Some(libc::SIGSEGV), "{}", text(&output));
}

#[test]
fn a_stack_overflow_is_told_as_ever() {
    #[expect(unconditional_recursion, reason = "that is what is tried")]
    fn deeper(depth: u64) -> u64 {
        let room = std::hint::black_box([depth; 512]);
        deeper(depth + 1) + room[7]
    }
    if is_child() {
        let _mock = trap_something();
        println!("{}", deeper(0));
    }
    let output = child("a_stack_overflow_is_told_as_ever");
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{}", text(&output));
    assert!(text(&output).contains("has overflowed its stack"), "{}", text(&output));
}

#[test]
fn a_handler_that_was_there_before_gets_what_is_its_own() {
    extern "C" fn leave(_: libc::c_int) {
        // SAFETY: ends the process at once.
        unsafe { libc::_exit(42) }
    }
    if is_child() {
        let handler = leave as extern "C" fn(libc::c_int);
        // SAFETY: the handler does nothing that a handler may not.
        unsafe { libc::signal(libc::SIGSEGV, handler as *const () as libc::sighandler_t) };
        let _mock = trap_something();
        println!("{}", crash());
    }
    let output = child("a_handler_that_was_there_before_gets_what_is_its_own");
    assert_eq!(output.status.code(), Some(42), "{}", text(&output));
}

#[test]
fn what_nobody_waits_for_is_told_at_the_end() {
    if is_child() {
        let device = mock(1).device(0).unwrap();
        let buf = Buf { ptr: device.alloc(4).unwrap(), count: 1 };
        // SAFETY: the buffer lives as long as the device.
        unsafe { device.memset(buf.ptr, 1, 4, RawStream::DEFAULT) }.unwrap();
        // No call comes after the load.
        load(buf, 0);
        return;
    }
    let output = child("what_nobody_waits_for_is_told_at_the_end");
    assert!(output.status.success(), "{}", text(&output));
    let said = text(&output);
    assert!(said.contains("collectives mock: the program reads byte 0 of the 4 bytes"), "{said}");
}

#[test]
fn where_memory_cannot_be_mapped_twice_the_guard_is_refused_by_name() {
    if is_child() {
        let limit = libc::rlimit { rlim_cur: 1 << 20, rlim_max: 1 << 20 };
        // SAFETY: the limit is there; files end at a megabyte, and memory that is mapped twice is one.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &limit) }, 0);
        let mock = mock(1);
        let errors = [
            mock.device(0).map(drop).unwrap_err(),
            mock.join_all(JoinAllConfig::new([0])).map(drop).unwrap_err(),
            mock.join(&mock.unique_id().unwrap(), JoinConfig::new(0, 1)).map(drop).unwrap_err(),
        ];
        for error in errors {
            let text = error.to_string();
            assert_eq!(error.kind(), ErrorKind::System, "{text}");
            assert!(text.contains("the guard 'protect' cannot be had here"), "{text}");
            assert!(text.contains("leave it out"), "{text}");
        }
        Mock::new(MockConfig::new().with_guards(Guards::ALL.with_protect(false)))
            .device(0)
            .unwrap();
        return;
    }
    let output = child("where_memory_cannot_be_mapped_twice_the_guard_is_refused_by_name");
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn a_forked_child_can_read_what_was_closed() {
    let mock = mock(1);
    let end = &ends(&mock, 1)[0];
    let buf = end.buf(&[1]);
    end.fill(buf, 0, end.stream);
    // SAFETY: the child loads, and ends.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "fork: {}", std::io::Error::last_os_error());
    if child == 0 {
        let value = load(buf, 0);
        // SAFETY: ends the child at once, running no destructor of the parent's.
        unsafe { libc::_exit(value) };
    }
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    let waited = unsafe { libc::waitpid(child, &mut status, 0) };
    assert_eq!((waited, status), (child, 0));
    end.wait().unwrap();
}

#[test]
fn rank_threads_that_wait_for_themselves_are_left_alone() {
    for schedule in [Schedule::Eager, Schedule::Late, Schedule::Random(7)] {
        let mock = Mock::new(MockConfig::strict().with_devices(3).with_schedule(schedule));
        let ends = ends(&mock, 3);
        thread::scope(|scope| {
            for (rank, end) in (0..).zip(ends) {
                scope.spawn(move || {
                    let buf = end.buf(&[rank; 2000]);
                    for round in 0..100 {
                        (0..2000).for_each(|index| store(buf, index, rank + round));
                        end.all_reduce(buf, buf).unwrap();
                        end.wait().unwrap();
                        assert_eq!(load(buf, 1999), 3 + 3 * round);
                    }
                });
            }
        });
    }
}
