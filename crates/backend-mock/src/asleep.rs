//! What the threads of the process do that are not in the engine: whether any of them may act.
//!
//! A thread may act unless it sleeps with nobody to wake it: in a futex without a time limit, as a
//! thread that waits for a lock, a channel, a barrier or another thread's end. A limit of many
//! seconds is a watchdog's, such as the test harness's, and counts as none.
//!
//! Threads are looked at one after the other, and one that was seen asleep may be awake by the time
//! the last one is seen. So a look is worth something only together with a second one: where no
//! sleeper was switched in between, all of them slept the whole time ([`Look::still_holds`]).
//!
//! One that sleeps may be about to be woken all the same, by a thread that has a lock which it wants:
//! the allocator's, or one that two tests share. So where some thread of the process is awake, even
//! one that has nothing to do with the matter, sleepers count only after some time.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

/// What was seen of some threads, by the system's number.
#[derive(Clone, Hash)]
pub(crate) struct Look(BTreeMap<i32, Seen>);

#[derive(Clone, Copy, Eq, Hash, PartialEq)]
struct Seen {
    rest: Rest,
    /// Times it was taken off a core.
    switches: u64,
}

/// How a thread rests.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub(crate) enum Rest {
    /// Not at all, or not for long, or in a way that is not known.
    Awake,
    /// Until another thread of the process wakes it.
    Asleep,
    /// Until then, or for a while.
    Dozing,
    /// Until something comes from outside the process, or another thread sends it.
    Listening,
}

impl Look {
    /// Looks at all threads but those to `skip`. `None` where the system doesn't show them.
    pub(crate) fn take(skip: impl Fn(i32) -> bool) -> Option<Self> {
        system::threads(skip).map(Self)
    }

    /// Leaves those out that do not even doze.
    pub(crate) fn retain_sleepers(&mut self) {
        self.0.retain(|_, seen| seen.rest != Rest::Awake);
    }

    /// Whether some thread does not even doze.
    pub(crate) fn anybody_is_awake(&self) -> bool {
        self.all().any(|(_, rest)| rest == Rest::Awake)
    }

    /// Keeps what was seen of these threads.
    pub(crate) fn retain(&mut self, keep: impl Fn(i32) -> bool) {
        self.0.retain(|&tid, _| keep(tid));
    }

    /// Whether all that slept have slept until `later`, and no thread has come.
    pub(crate) fn still_holds(&self, later: &Self) -> bool {
        let slept =
            |(tid, seen): (&i32, &Seen)| seen.rest == Rest::Awake || later.0.get(tid) == Some(seen);
        self.0.iter().all(slept) && later.0.keys().all(|tid| self.0.contains_key(tid))
    }

    /// How a thread rested. One that was not seen has ended, or was not looked for.
    pub(crate) fn of(&self, tid: i32) -> Option<Rest> {
        self.0.get(&tid).map(|seen| seen.rest)
    }

    /// All of them.
    pub(crate) fn all(&self) -> impl Iterator<Item = (i32, Rest)> {
        self.0.iter().map(|(&tid, seen)| (tid, seen.rest))
    }
}

/// Threads that sleep, since when they have kept still.
#[derive(Default)]
pub(crate) struct Sleepers(BTreeMap<i32, (Seen, Instant)>);

impl Sleepers {
    /// Takes note of a look. The answer is how long all who sleep have done so.
    pub(crate) fn note(&mut self, look: &Look) -> Duration {
        let now = Instant::now();
        let known = std::mem::take(&mut self.0);
        for (&tid, &seen) in look.0.iter().filter(|(_, seen)| seen.rest != Rest::Awake) {
            let since = match known.get(&tid) {
                Some(&(earlier, since)) if earlier == seen => since,
                _ => now,
            };
            self.0.insert(tid, (seen, since));
        }
        let last = self.0.values().map(|&(_, since)| since).max();
        last.map_or(Duration::MAX, |since| now - since)
    }
}

#[cfg(target_os = "linux")]
mod system {
    use std::{
        collections::BTreeMap,
        fs::{self, File},
        os::unix::fs::FileExt,
        time::Duration,
    };

    use super::{Rest, Seen};

    pub(super) fn threads(skip: impl Fn(i32) -> bool) -> Option<BTreeMap<i32, Seen>> {
        let mut threads = BTreeMap::new();
        for entry in fs::read_dir("/proc/self/task").ok()? {
            let Some(tid) = entry.ok()?.file_name().to_str().and_then(|name| name.parse().ok())
            else {
                continue;
            };
            if skip(tid) {
                continue;
            }
            match look_at(tid) {
                Ok(seen) => threads.extend(seen.map(|seen| (tid, seen))),
                // It has ended meanwhile.
                Err(error) if is_gone(&error) => {}
                Err(_) => return None,
            }
        }
        Some(threads)
    }

    fn is_gone(error: &std::io::Error) -> bool {
        matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
    }

    /// `None` where it has ended and is only not forgotten.
    fn look_at(tid: i32) -> std::io::Result<Option<Seen>> {
        let status = fs::read_to_string(format!("/proc/self/task/{tid}/status"))?;
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name))?;
            line[name.len()..].split_whitespace().next()
        };
        let count = |name| field(name).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        let switches = count("voluntary_ctxt_switches:") + count("nonvoluntary_ctxt_switches:");
        let rest = match field("State:") {
            Some("Z" | "X") => return Ok(None),
            Some("S") => rest_in(&fs::read_to_string(format!("/proc/self/task/{tid}/syscall"))?),
            // Also a debugger's stop, which must not trip anything.
            _ => Rest::Awake,
        };
        Ok(Some(Seen { rest, switches }))
    }

    /// Reads the line that says in which system call a thread is: number and arguments.
    fn rest_in(line: &str) -> Rest {
        let mut words = line.split_whitespace();
        let Some(call) = words.next().and_then(|word| word.parse().ok()) else {
            // "running", or blocked outside a call.
            return Rest::Awake;
        };
        let mut arguments = [0; 6];
        for argument in &mut arguments {
            let hex = words.next().and_then(|word| word.strip_prefix("0x"));
            let Some(value) = hex.and_then(|hex| u64::from_str_radix(hex, 16).ok()) else {
                return Rest::Awake;
            };
            *argument = value;
        }
        match call {
            libc::SYS_futex => in_futex(&arguments),
            libc::SYS_read
            | libc::SYS_recvfrom
            | libc::SYS_recvmsg
            | libc::SYS_accept
            | libc::SYS_accept4 => Rest::Listening,
            #[cfg(target_arch = "x86_64")]
            libc::SYS_poll => unless_timed(arguments[2] as i32 >= 0),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_epoll_wait => unless_timed(arguments[3] as i32 >= 0),
            libc::SYS_epoll_pwait => unless_timed(arguments[3] as i32 >= 0),
            libc::SYS_ppoll => unless_timed(arguments[2] != 0),
            libc::SYS_rt_sigtimedwait => unless_timed(arguments[2] != 0),
            _ => Rest::Awake,
        }
    }

    const fn unless_timed(is_timed: bool) -> Rest {
        if is_timed { Rest::Awake } else { Rest::Listening }
    }

    fn in_futex(arguments: &[u64; 6]) -> Rest {
        let operation = arguments[1] as i32;
        let timeout = arguments[3];
        let plain = operation & !libc::FUTEX_PRIVATE_FLAG;
        if plain == operation && is_shared(arguments[0]) {
            return if timeout == 0 { Rest::Listening } else { Rest::Dozing };
        }
        if timeout == 0 {
            return Rest::Asleep;
        }
        // With this operation the limit is a time on the monotonic clock.
        if plain == libc::FUTEX_WAIT_BITSET && left_until(timeout).is_some_and(|left| left > WATCH)
        {
            return Rest::Asleep;
        }
        Rest::Dozing
    }

    /// Whether other processes may reach an address of this one, and wake who sleeps there. In doubt
    /// they may.
    fn is_shared(address: u64) -> bool {
        let Ok(maps) = fs::read_to_string("/proc/self/maps") else { return true };
        let covers = |line: &str| {
            let (range, rest) = line.split_once(' ')?;
            let (start, end) = range.split_once('-')?;
            let bound = |text| u64::from_str_radix(text, 16).ok();
            let is_it = (bound(start)?..bound(end)?).contains(&address);
            // Permissions: rwx, and whether it is private or shared.
            is_it.then(|| rest.as_bytes().get(3) != Some(&b'p'))
        };
        maps.lines().find_map(covers).unwrap_or(true)
    }

    /// How long it is to the time that stands at an address of this process. The kernel reads it,
    /// so that it may well be gone.
    fn left_until(address: u64) -> Option<Duration> {
        let mut bytes = [0; 16];
        File::open("/proc/self/mem").ok()?.read_exact_at(&mut bytes, address).ok()?;
        let (seconds, nanos) = bytes.split_at(8);
        let seconds = u64::from_ne_bytes(seconds.try_into().ok()?);
        let nanos = u64::from_ne_bytes(nanos.try_into().ok()?);
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `now` outlives the call.
        if unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) } != 0 {
            return None;
        }
        let now = Duration::new(now.tv_sec.try_into().ok()?, now.tv_nsec.try_into().ok()?);
        Duration::from_secs(seconds).checked_add(Duration::from_nanos(nanos))?.checked_sub(now)
    }

    /// Who sleeps longer than this only watches over others.
    const WATCH: Duration = Duration::from_secs(10);
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::collections::BTreeMap;

    use super::Seen;

    pub(super) fn threads(_: impl Fn(i32) -> bool) -> Option<BTreeMap<i32, Seen>> {
        None
    }
}

#[cfg(all(test, target_os = "linux", not(any(loom, miri))))] // Miri has no /proc
mod tests {
    use std::{
        io::Read,
        os::unix::net::UnixStream,
        sync::{Arc, mpsc},
        thread,
        time::{Duration, Instant},
    };

    use super::*;
    use crate::{
        process::{bell::Bell, shared::Shared},
        threads::Thread,
    };

    /// How a thread rests, once it does so as expected, or after a while.
    fn rest_of(act: impl FnOnce() + Send + 'static, want: Rest) -> Option<Rest> {
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            tell.send(Thread::current().tid()).unwrap();
            act();
        });
        let tid = told.recv().unwrap().unwrap();
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            let seen = Look::take(|other| other != tid).unwrap().of(tid);
            if seen == Some(want) || Instant::now() > end {
                return seen;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn who_may_act_is_told_from_who_may_not() {
        let (sender, receiver) = mpsc::channel::<()>();
        let asleep = move || assert!(receiver.recv().is_err());
        assert_eq!(rest_of(asleep, Rest::Asleep), Some(Rest::Asleep));
        drop(sender);
        let (sender, receiver) = mpsc::channel::<()>();
        let watching = move || assert!(receiver.recv_timeout(Duration::from_secs(60)).is_err());
        assert_eq!(rest_of(watching, Rest::Asleep), Some(Rest::Asleep));
        drop(sender);
        let (socket, mut other) = UnixStream::pair().unwrap();
        let listening = move || assert!(other.read(&mut [0]).is_ok());
        assert_eq!(rest_of(listening, Rest::Listening), Some(Rest::Listening));
        drop(socket);
        let sleeper = thread::spawn(thread::park);
        let parked = sleeper.thread().clone();
        // The system's futex for that is not private, but its place is.
        let joining = move || sleeper.join().unwrap();
        assert_eq!(rest_of(joining, Rest::Asleep), Some(Rest::Asleep));
        parked.unpark();
        let (shared, _fd) = Shared::create("collectives-test", 128).unwrap();
        let shared = Arc::new(shared);
        let there = Arc::clone(&shared);
        // A place that other processes may map, too.
        let at_bell = move || assert!(there.at::<Bell>(0).unwrap().sleep(0, None));
        assert_eq!(rest_of(at_bell, Rest::Listening), Some(Rest::Listening));
        shared.at::<Bell>(0).unwrap().ring();
        // These must never be taken for asleep, however often one looks.
        for act in [
            (|| thread::sleep(Duration::from_millis(200))) as fn(),
            || thread::park_timeout(Duration::from_millis(200)),
            || {
                let start = Instant::now();
                while start.elapsed() < Duration::from_millis(200) {}
            },
        ] {
            let (tell, told) = mpsc::channel();
            let thread = thread::spawn(move || {
                tell.send(Thread::current().tid()).unwrap();
                act();
            });
            let tid = told.recv().unwrap().unwrap();
            let end = Instant::now() + Duration::from_millis(100);
            while Instant::now() < end {
                let seen = Look::take(|other| other != tid).unwrap().of(tid);
                assert!(!matches!(seen, Some(Rest::Asleep | Rest::Listening)), "{seen:?}");
            }
            thread.join().unwrap();
        }
    }

    #[test]
    fn a_thread_that_was_woken_in_between_is_noticed() {
        let (sender, receiver) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        let thread = thread::spawn(move || {
            tell.send(Thread::current().tid()).unwrap();
            while receiver.recv().is_ok() {}
        });
        let tid = told.recv().unwrap().unwrap();
        let look = || Look::take(|other| other != tid).unwrap();
        while look().of(tid) != Some(Rest::Asleep) {
            thread::yield_now();
        }
        let first = look();
        assert!(first.still_holds(&look()));
        sender.send(()).unwrap();
        let changed = || !first.still_holds(&look());
        let end = Instant::now() + Duration::from_secs(5);
        while !changed() && Instant::now() < end {
            thread::yield_now();
        }
        while look().of(tid) != Some(Rest::Asleep) && Instant::now() < end {
            thread::yield_now();
        }
        assert!(changed(), "asleep again, but not all the time");
        drop(sender);
        thread.join().unwrap();
    }
}
