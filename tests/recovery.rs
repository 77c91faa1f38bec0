//! The recipes of `docs/recovery.md` at work: losses in the midst of a job on the mock, and what is
//! left when it is over.

use std::{
    collections::BTreeSet,
    sync::{Barrier, Condvar, Mutex, MutexGuard},
    thread,
    time::Duration,
};

use collectives::{
    AnyBackend, Backend, Communicator, ErrorKind, GrowConfig, JoinConfig, Rank, ReduceOp, Result,
    ShrinkConfig, UniqueId,
    mock::{Mock, MockConfig},
};

/// What a job has besides its communicators: somebody who knows who was lost, and brings ids.
#[derive(Default)]
struct Launcher {
    known: Mutex<Known>,
    changed: Condvar,
}

#[derive(Default)]
struct Known {
    /// Workers that were lost, by the number that they keep for life.
    lost: BTreeSet<u32>,
    ids: Vec<UniqueId>,
}

impl Launcher {
    fn report_loss(&self, worker: u32) {
        self.known.lock().unwrap().lost.insert(worker);
        self.changed.notify_all();
    }

    /// Waits until so many were lost, and names them.
    fn lost(&self, count: usize) -> BTreeSet<u32> {
        self.known_when(|known| known.lost.len() >= count).lost.clone()
    }

    fn publish(&self, id: UniqueId) {
        self.known.lock().unwrap().ids.push(id);
        self.changed.notify_all();
    }

    fn id(&self, index: usize) -> UniqueId {
        self.known_when(|known| known.ids.len() > index).ids[index].clone()
    }

    fn known_when(&self, is_so: impl Fn(&Known) -> bool) -> MutexGuard<'_, Known> {
        let known = self.known.lock().unwrap();
        let (known, waited) =
            self.changed.wait_timeout_while(known, PATIENCE, |known| !is_so(known)).unwrap();
        assert!(!waited.timed_out(), "another worker failed, and reports nothing");
        known
    }
}

/// Everybody's `value`, summed. A lost rank is an error, at the latest after the deadline.
fn step(comm: &Communicator, value: f32) -> Result<f32> {
    let stream = comm.new_stream()?;
    let mut values = stream.upload(&[value])?;
    comm.on(&stream).all_reduce_in_place(&mut values, ReduceOp::Sum)?;
    stream.synchronize_for(PATIENCE)?;
    Ok(values.to_vec(&stream)?[0])
}

/// How many steps everybody has done. A step that ended in an error on one rank may have been good
/// on another, which then does it again.
fn agree(comm: &Communicator, done: u32) -> Result<u32> {
    let stream = comm.new_stream()?;
    let mut least = stream.upload(&[done])?;
    comm.on(&stream).all_reduce_in_place(&mut least, ReduceOp::Min)?;
    Ok(least.to_vec(&stream)?[0])
}

const PATIENCE: Duration = Duration::from_secs(30);

/// Runs one thread per worker, and then sees whether anything was left behind.
fn job(workers: u32, work: impl Fn(&AnyBackend, &Launcher, u32) -> Result<()> + Sync) {
    let mock = Mock::new(MockConfig::new());
    let (backend, launcher) = (AnyBackend::Mock(mock.clone()), Launcher::default());
    launcher.publish(backend.unique_id().unwrap());
    thread::scope(|scope| {
        let threads: Vec<_> = (0..workers)
            .map(|worker| {
                let (backend, launcher, work) = (&backend, &launcher, &work);
                scope.spawn(move || work(backend, launcher, worker))
            })
            .collect();
        for (worker, thread) in threads.into_iter().enumerate() {
            let outcome = thread.join().unwrap_or_else(|_| panic!("worker {worker} panicked"));
            outcome.unwrap_or_else(|error| panic!("worker {worker}: {error}"));
        }
    });
    mock.check_leaks().unwrap();
}

/// Five workers add up their numbers; workers 1 and 4 die one after the other, and the rest goes on
/// each time.
fn survive(recover: impl Fn(Communicator, Vec<Rank>) -> Result<Communicator> + Sync) {
    job(5, |backend, launcher, worker| {
        let config = JoinConfig::new(worker, 5).with_name("job");
        let mut comm = Communicator::join(backend, &launcher.id(0), config)?;
        // By rank, whose rank it is.
        let mut members: Vec<u32> = (0..5).collect();
        let (mut losses, mut done) = (0, 0);
        while done < 6 {
            if (worker, done) == (1, 2) || (worker, done) == (4, 4) {
                drop(comm);
                launcher.report_loss(worker);
                return Ok(());
            }
            match step(&comm, worker as f32) {
                Ok(sum) => {
                    assert_eq!(sum, members.iter().sum::<u32>() as f32, "step {done}");
                    done += 1;
                }
                Err(error) => {
                    assert!(error.poisons_communicator(), "{error}");
                    losses += 1;
                    let lost = launcher.lost(losses);
                    let ranks = 0..members.len() as u32;
                    let gone = ranks.filter(|&rank| lost.contains(&members[rank as usize]));
                    comm = recover(comm, gone.map(Rank::new).collect())?;
                    members.retain(|member| !lost.contains(member));
                    assert_eq!(members[comm.rank() as usize], worker);
                    done = agree(&comm, done)?;
                }
            }
        }
        assert_eq!((losses, comm.size()), (2, 3));
        comm.finalize()
    });
}

#[test]
fn revoke_shrink_and_go_on() {
    survive(|comm, lost| {
        comm.revoke()?;
        let rest = comm.shrink(ShrinkConfig::new(lost))?;
        comm.finalize()?;
        Ok(rest)
    });
}

#[test]
fn shrink_with_abort_and_go_on() {
    survive(|comm, lost| {
        let rest = comm.shrink(ShrinkConfig::new(lost).with_abort())?;
        comm.abort()?;
        Ok(rest)
    });
}

#[test]
fn abort_and_rejoin_with_a_new_id() {
    let healthy = Barrier::new(3);
    job(3, |backend, launcher, worker| {
        let comm = Communicator::join(backend, &launcher.id(0), JoinConfig::new(worker, 3))?;
        assert_eq!(step(&comm, 1.0)?, 3.0);
        healthy.wait();
        if worker == 2 {
            launcher.report_loss(worker);
            // It hangs, and is ended with the others: nobody sees it leave.
            launcher.id(1);
            return comm.abort();
        }
        let handle = comm.abort_handle();
        let watchdog = thread::scope(|scope| {
            let watchdog = scope.spawn(|| {
                launcher.lost(1);
                handle.abort()
            });
            let error = step(&comm, 1.0).expect_err("worker 2 does not come");
            assert!(error.poisons_communicator(), "{error}");
            watchdog.join().unwrap()
        });
        watchdog?;
        drop(comm);
        if worker == 0 {
            launcher.publish(backend.unique_id()?);
        }
        let config = JoinConfig::new(worker, 2).with_deadline(PATIENCE);
        let comm = Communicator::join(backend, &launcher.id(1), config)?;
        assert_eq!(step(&comm, 1.0)?, 2.0);
        comm.finalize()
    });
}

#[test]
fn a_deadline_finds_out_who_does_not_join() {
    job(3, |backend, launcher, worker| {
        if worker == 1 {
            // Comes late, and finds the place it would have taken given to nobody.
            launcher.lost(2);
            let late = JoinConfig::new(1, 3).with_deadline(Duration::from_millis(50));
            let error = Communicator::join(backend, &launcher.id(0), late).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Timeout);
            assert!(error.to_string().contains("missing 0, 2"), "{error}");
            return Ok(());
        }
        let config = JoinConfig::new(worker, 3).with_deadline(Duration::from_millis(50));
        let error = Communicator::join(backend, &launcher.id(0), config).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert!(error.to_string().contains("missing"), "{error}");
        launcher.report_loss(worker);
        // The two that are there go on without it.
        if worker == 0 {
            launcher.publish(backend.unique_id()?);
        }
        let config = JoinConfig::new(worker / 2, 2).with_device(worker as usize);
        let comm = Communicator::join(backend, &launcher.id(1), config)?;
        assert_eq!(step(&comm, 1.0)?, 2.0);
        comm.finalize()
    });
}

#[test]
fn a_lost_rank_is_replaced() {
    let healthy = Barrier::new(3);
    job(4, |backend, launcher, worker| {
        let comm = if worker == 3 {
            // The replacement takes the place behind those that are left.
            launcher.lost(1);
            Communicator::join_grown(
                backend,
                &launcher.id(1),
                JoinConfig::new(2, 3).with_device(3),
            )?
        } else {
            let comm = Communicator::join(backend, &launcher.id(0), JoinConfig::new(worker, 3))?;
            assert_eq!(step(&comm, 1.0)?, 3.0);
            healthy.wait();
            if worker == 0 {
                drop(comm);
                launcher.report_loss(worker);
                return Ok(());
            }
            step(&comm, 1.0).expect_err("worker 0 does not come");
            launcher.lost(1);
            comm.revoke()?;
            let rest = comm.shrink(ShrinkConfig::new([Rank::new(0)]))?;
            comm.finalize()?;
            if rest.rank() == 0 {
                launcher.publish(rest.grow_id()?);
            }
            let whole = rest.grow(GrowConfig::new(3))?;
            rest.finalize()?;
            whole
        };
        assert_eq!(step(&comm, worker as f32)?, 6.0);
        comm.finalize()
    });
}
