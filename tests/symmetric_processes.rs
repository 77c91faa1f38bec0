//! Symmetric memory where each rank is a process of its own.
#![cfg(target_os = "linux")]

use collectives::{
    Communicator, ErrorKind, MemoryKind, ReduceOp, Result, SignalWait, SymmetricPlan, mock,
};

fn sum(comm: &Communicator, len: usize) -> Result<()> {
    let stream = comm.new_stream()?;
    let mut buffer = comm.alloc_symmetric::<f32>(len)?;
    assert_eq!(buffer.memory_kind(), MemoryKind::Symmetric);
    buffer.copy_from_slice(&vec![comm.rank() as f32; len], &stream)?;
    comm.on(&stream).all_reduce_in_place(&mut buffer, ReduceOp::Sum)?;
    let want = (0..comm.size()).sum::<usize>() as f32;
    assert_eq!(buffer.to_vec(&stream)?, vec![want; len]);
    Ok(())
}

#[test]
fn buffers_hold_what_collectives_move() {
    mock::run_processes(3, |comm| {
        for len in [1, 1000, 1 << 20, 7] {
            sum(&comm, len)?;
        }
        assert_eq!(comm.symmetric_heap().expect("there is one").segments, 2);
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_plan_is_made_at_once() {
    mock::run_processes(2, |comm| {
        let mut plan = SymmetricPlan::new();
        let slots = [plan.add::<f32>(100), plan.add::<f32>(200)];
        let mut set = comm.alloc_symmetric_set(plan)?;
        let lens = slots.map(|slot| set.take(slot).map(|buffer| buffer.len()));
        let lens = lens.into_iter().collect::<Result<Vec<_>>>()?;
        assert_eq!(lens, [100, 200]);
        drop(set);
        comm.finalize()
    })
    .unwrap();
}

#[test]
fn ranks_that_differ_are_told_on_all() {
    let texts = mock::run_processes(3, |comm| {
        let len = if comm.rank() == 1 { 10 } else { 20 };
        let error = comm.alloc_symmetric::<f64>(len).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        sum(&comm, 5)?;
        Ok(error.message().to_owned())
    })
    .unwrap();
    for text in texts {
        assert!(
            text.contains("10 × f64 (call 1) on rank 1; 20 × f64 (call 1) on ranks 0, 2"),
            "{text}"
        );
    }
}

#[test]
fn a_rank_that_does_not_come_is_told() {
    let text = mock::run_processes(2, |comm| {
        if comm.rank() == 1 {
            return Ok(());
        }
        comm.alloc_symmetric::<f64>(5).map(drop)
    })
    .unwrap_err()
    .to_string();
    assert!(text.contains("rank 1"), "{text}");
    assert!(text.contains("all_gather"), "{text}");
}

#[test]
fn what_is_put_arrives_in_another_process() {
    let got = mock::run_processes(2, |comm| {
        let stream = comm.new_stream()?;
        let (mut send, mut target) = (comm.alloc_symmetric(1000)?, comm.alloc_symmetric(1000)?);
        let peer = 1 - comm.rank();
        send.copy_from_slice(&[comm.rank() + 7; 1000], &stream)?;
        // SAFETY: the peer looks at its copy after its wait.
        unsafe { comm.on(&stream).put(&send, &target, 0, peer) }?;
        comm.on(&stream).wait_put(&mut target, &[SignalWait::new(peer)])?;
        target.to_vec(&stream)
    })
    .unwrap();
    assert_eq!(got, [vec![8_u32; 1000], vec![7; 1000]]);
}
