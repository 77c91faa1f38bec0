//! A rank at work does not save others that wait for each other. Alone in its process, since a busy
//! thread puts off the verdicts of others.

use std::time::{Duration, Instant};

use collectives_backend_mock::{VerdictKind, World};
use collectives_core::{
    Backend, Collectives, DType, Device, ErrorKind, Launch, Rank, RawStream, RecvBuf,
};

#[test]
fn a_rank_at_work_does_not_save_those_that_wait_for_each_other() {
    let outcome = World::new(3).run(|mock, comm| {
        let rank = comm.info().rank.get();
        let start = Instant::now();
        if rank == 2 {
            while mock.verdicts().is_empty() && start.elapsed() < Duration::from_secs(10) {
                std::hint::black_box((0..100_000_u64).sum::<u64>());
            }
            let verdict = &mock.verdicts()[0];
            assert_eq!(verdict.kind, VerdictKind::Cycle);
            println!("latency: {:?}", start.elapsed());
            assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
            return Ok(());
        }
        let device = mock.device(rank as usize)?;
        let recv = RecvBuf::new(device.alloc(4)?, 1, DType::F32);
        let launch = Launch::new(RawStream::DEFAULT);
        // SAFETY: the memory lives as long as the mock, and nothing else uses it.
        unsafe { comm.recv(recv, Rank::new(1 - rank), launch) }?;
        // SAFETY: the default stream always lives.
        unsafe { device.synchronize(RawStream::DEFAULT, None) }
    });
    let failure = outcome.unwrap_err();
    assert_eq!(failure.failures().len(), 2, "{failure}");
    for failed in failure.failures() {
        let collectives_backend_mock::Cause::Error(error) = &failed.cause else {
            panic!("{failure}");
        };
        assert_eq!(error.kind(), ErrorKind::Deadlock);
    }
}
