//! Many ranks, streams, sizes and habits of waiting at once: nothing is lost and nothing hangs.

use std::{thread, time::Duration};

use collectives_backend_mock::{Mock, MockComm, MockConfig};
use collectives_core::{
    Backend, BackendExt, Collectives, Device, JoinAllConfig, Launch, Rank, RecvBuf, ReduceOp,
    SendBuf,
};

/// A random stream that all ranks share: what they do must agree.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }
}

#[test]
fn nothing_is_lost_under_load() {
    for (ranks, seed) in [(2, 1), (3, 2), (8, 3), (2, 4)] {
        let mock = Mock::new(MockConfig::new().with_devices(ranks));
        let comms = mock.join_all(JoinAllConfig::new((0..ranks).collect::<Vec<_>>())).unwrap();
        thread::scope(|scope| {
            for comm in comms {
                let mock = &mock;
                scope.spawn(move || run(mock, comm, seed));
            }
        });
        assert!(mock.pending().is_empty());
    }
}

fn run(mock: &Mock, comm: MockComm, seed: u64) {
    let (rank, size) = (comm.info().rank.index(), comm.info().size);
    let device = mock.device(comm.info().device).unwrap();
    let streams: Vec<_> = (0..2).map(|_| device.stream_create().unwrap()).collect();
    // Each rank waits in its own rhythm, and agrees with the others on all else.
    let (mut own, mut common) = (Random(seed ^ (rank as u64) << 32), Random(seed));
    let event = device.event_create().unwrap();
    let sizes = [1, 2, 700, 5000, 70_000];
    for _ in 0..150 {
        let count = sizes[common.below(sizes.len())];
        let stream = streams[common.below(2)];
        let values = vec![rank as i64 + 1; count];
        let mut sums = vec![0_i64; count];
        let mut passed = [-1_i64];
        let launch = Launch::new(stream);
        let (send, recv) =
            (SendBuf::typed(values.as_ptr(), count), RecvBuf::typed(sums.as_mut_ptr(), count));
        let (next, last) = ((rank + 1) % size, (rank + size - 1) % size);
        let repeats = 1 + common.below(20);
        for _ in 0..repeats {
            // SAFETY: the buffers live until the stream has passed, below.
            unsafe { comm.all_reduce(send, recv, ReduceOp::Sum, launch) }.unwrap();
        }
        if common.below(3) == 0 {
            mock.group(|_| {
                let one = SendBuf::typed(values.as_ptr(), 1);
                // SAFETY: as above.
                unsafe { comm.send(one, Rank::new(next as u32), launch) }?;
                let into = RecvBuf::typed(passed.as_mut_ptr(), 1);
                // SAFETY: as above.
                unsafe { comm.recv(into, Rank::new(last as u32), launch) }
            })
            .unwrap();
        } else {
            passed[0] = last as i64 + 1;
        }
        let mut waited = stream;
        if own.below(4) == 0 {
            // Through an event on the other stream.
            waited = streams[usize::from(stream == streams[0])];
            // SAFETY: event and streams are alive.
            unsafe { device.record(event, stream) }.unwrap();
            // SAFETY: as above.
            unsafe { device.wait(waited, event) }.unwrap();
        }
        if own.below(3) == 0 {
            // SAFETY: as above.
            unsafe { device.record(event, waited) }.unwrap();
            // SAFETY: as above.
            while !unsafe { device.query(event) }.unwrap() {
                thread::yield_now();
            }
        } else {
            let deadline = Some(Duration::from_secs(60));
            // SAFETY: as above.
            unsafe { device.synchronize(waited, deadline) }.unwrap();
        }
        let want = (size * (size + 1) / 2) as i64;
        assert!(sums.iter().all(|&sum| sum == want));
        assert_eq!(passed[0], last as i64 + 1);
    }
    Box::new(comm).finalize().unwrap();
}
