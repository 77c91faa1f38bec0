//! Ranks that are only slow are never condemned: random programs whose ranks sleep wherever one can,
//! in the calling thread, in helpers, in threads that were handed a communicator.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use collectives_backend_mock::{Mock, MockComm, MockConfig};
use collectives_core::{
    Backend, Collectives, Device, JoinConfig, Launch, Rank, RawStream, RecvBuf, ReduceOp, SendBuf,
    Split, SplitConfig, UniqueId,
};

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    /// Mostly a moment, now and then much longer than a verdict takes.
    fn nap(&mut self) {
        let micros = match self.below(40) {
            0 => 60_000 + self.below(30_000),
            1..=4 => 5_000 + self.below(20_000),
            5..=15 => self.below(3_000),
            _ => return,
        };
        thread::sleep(Duration::from_micros(micros));
    }
}

#[test]
fn slow_ranks_get_no_verdict() {
    let (start, steps) = (Instant::now(), AtomicUsize::new(0));
    let worlds = &|first: u64| {
        let mut seed = first;
        while start.elapsed() < Duration::from_secs(12) {
            world(seed, &steps);
            seed += WORLDS_AT_ONCE;
        }
    };
    thread::scope(|scope| {
        for first in 0..WORLDS_AT_ONCE {
            scope.spawn(move || worlds(first));
        }
    });
    println!("{} steps", steps.into_inner());
}

const WORLDS_AT_ONCE: u64 = 3;
const STEPS: usize = 12;

fn world(seed: u64, steps: &AtomicUsize) {
    let ranks = 2 + Random(seed).below(4) as usize;
    let mock = Mock::new(MockConfig::from_env().unwrap().with_devices(ranks));
    let ids: Vec<_> = (0..=STEPS).map(|_| mock.unique_id().unwrap()).collect();
    thread::scope(|scope| {
        for rank in 0..ranks {
            let (mock, ids) = (&mock, &ids);
            scope.spawn(move || {
                let own = Random(seed ^ (rank as u64 + 1) << 40);
                let seat = Seat { mock, ids, rank, ranks, seed };
                seat.run(Random(seed), own);
                steps.fetch_add(STEPS, Ordering::Relaxed);
            });
        }
    });
    assert!(mock.verdicts().is_empty(), "seed {seed}: {:#?}", mock.verdicts());
}

struct Seat<'a> {
    mock: &'a Mock,
    ids: &'a [UniqueId],
    rank: usize,
    ranks: usize,
    seed: u64,
}

impl Seat<'_> {
    fn join(&self, id: usize) -> MockComm {
        let config = JoinConfig::new(Rank::new(self.rank as u32), self.ranks);
        self.mock.join(&self.ids[id], config.with_device(self.rank)).unwrap()
    }

    /// One all-reduce, checked, on a stream of its own.
    fn reduce(&self, comm: &mut MockComm, own: &mut Random) {
        let device = self.mock.device(self.rank).unwrap();
        let stream = device.stream_create().unwrap();
        own.nap();
        let send = [comm.info().rank.get() + 1];
        let mut recv = [0_u32];
        let (from, to) = (SendBuf::typed(send.as_ptr(), 1), RecvBuf::typed(recv.as_mut_ptr(), 1));
        // SAFETY: the buffers live until the stream has passed, below.
        unsafe { comm.all_reduce(from, to, ReduceOp::Sum, Launch::new(stream)) }.unwrap();
        own.nap();
        self.wait(&device, stream, own);
        let size = comm.info().size as u32;
        assert_eq!(recv, [size * (size + 1) / 2], "seed {}", self.seed);
        // SAFETY: nothing uses it any more.
        unsafe { device.stream_destroy(stream) }.unwrap();
    }

    fn wait(&self, device: &impl Device, stream: RawStream, own: &mut Random) {
        let deadline = [None, Some(Duration::from_secs(60))][own.below(2) as usize];
        // SAFETY: the stream is alive.
        let outcome = unsafe { device.synchronize(stream, deadline) };
        outcome.unwrap_or_else(|error| panic!("seed {}: {error}", self.seed));
    }

    /// All ranks do the same steps, each in a way of its own.
    fn run(&self, mut common: Random, mut own: Random) {
        own.nap();
        let mut comm = self.join(0);
        let mut second = comm.split(SplitConfig::new(0)).unwrap().unwrap();
        for step in 1..=STEPS {
            let other = Random(own.below(u64::MAX));
            match [0, 1, 2, 3, 3, 3, 4, 5][common.below(8) as usize] {
                // A communicator that is joined in one thread and used in another, started later.
                0 => {
                    let join = |mut random: Random| {
                        random.nap();
                        self.join(step)
                    };
                    let mut new = if own.below(2) == 0 {
                        thread::scope(|scope| scope.spawn(|| join(other)).join().unwrap())
                    } else {
                        join(other)
                    };
                    own.nap();
                    thread::scope(|scope| {
                        let own = &mut own;
                        scope.spawn(move || {
                            own.nap();
                            self.reduce(&mut new, own);
                        });
                    });
                }
                // A helper holds the second communicator, while this thread uses the first; the
                // order differs from rank to rank.
                1 | 2 => thread::scope(|scope| {
                    let (second, mut other) = (&mut second, other);
                    scope.spawn(move || {
                        other.nap();
                        self.reduce(second, &mut other);
                    });
                    self.reduce(&mut comm, &mut own);
                    own.nap();
                }),
                // Or it waits on the first for what others do after the second, on one thread: all
                // that speaks against a verdict is a helper that has not called yet.
                3 if own.below(2) == 0 => {
                    self.reduce(&mut second, &mut own);
                    self.reduce(&mut comm, &mut own);
                }
                3 => thread::scope(|scope| {
                    let (second, mut other) = (&mut second, other);
                    scope.spawn(move || {
                        other.nap();
                        self.reduce(second, &mut other);
                    });
                    self.reduce(&mut comm, &mut own);
                }),
                // Two phases of threads that borrow it.
                4 => {
                    for _ in 0..2 {
                        thread::scope(|scope| {
                            let (comm, own) = (&mut comm, &mut own);
                            scope.spawn(move || self.reduce(comm, own));
                        });
                        own.nap();
                    }
                }
                // One that two threads share behind a lock.
                _ => {
                    let shared = Mutex::new(&mut comm);
                    thread::scope(|scope| {
                        let (shared, mut other) = (&shared, other);
                        scope.spawn(move || {
                            other.nap();
                            self.reduce(&mut shared.lock().unwrap(), &mut other);
                        });
                        own.nap();
                        self.reduce(&mut shared.lock().unwrap(), &mut own);
                    });
                }
            }
        }
        own.nap();
        Box::new(second).finalize().unwrap();
        own.nap();
    }
}
