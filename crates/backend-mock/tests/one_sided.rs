//! One-sided operations of the mock: what never comes is told, and what cannot be is refused.

use std::{ffi::c_void, thread, time::Duration};

use collectives_backend_mock::{Mock, MockComm, World};
use collectives_core::{
    Backend, Collectives, DType, Device, ErrorKind, Launch, Rank, RawStream, RawWindow, Result,
    SendBuf, SignalWait, WindowFlags,
};

const BYTES: usize = 8192;

fn ranks<T: Send + 'static>(
    size: usize,
    body: impl Fn(&Mock, MockComm) -> Result<T> + Send + Sync + 'static,
) -> Vec<T> {
    World::new(size).run(body).unwrap()
}

/// A window, whose memory lives as long as the mock.
fn window(comm: &MockComm) -> Result<(*mut c_void, RawWindow)> {
    let memory = comm.mem_alloc(BYTES)?;
    // SAFETY: the memory is as long, and lives as long as the mock.
    let window = unsafe { comm.window_register(memory, BYTES, WindowFlags::SYMMETRIC) }?;
    Ok((memory, window))
}

#[track_caller]
fn wait_signal(comm: &MockComm, peer: u32, stream: RawStream) -> Result<()> {
    // SAFETY: the stream is alive.
    unsafe { comm.wait_signal(&[SignalWait::new(peer)], Launch::new(stream)) }
}

#[track_caller]
fn signal(comm: &MockComm, peer: u32) -> Result<()> {
    // SAFETY: the default stream is always alive.
    unsafe { comm.signal(Rank::new(peer), Launch::new(RawStream::DEFAULT)) }
}

fn synchronize(mock: &Mock, comm: &MockComm) -> Result<()> {
    // SAFETY: the default stream is always alive.
    unsafe { mock.device(comm.info().device)?.synchronize(RawStream::DEFAULT, None) }
}

#[test]
fn a_signal_that_never_comes_is_a_verdict() {
    let errors = ranks(2, |mock, comm| {
        window(&comm)?;
        let peer = 1 - comm.info().rank.get();
        wait_signal(&comm, peer, RawStream::DEFAULT)?;
        Ok(synchronize(mock, &comm).unwrap_err())
    });
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::Deadlock, "{error}");
        let text = error.to_string();
        assert!(text.contains("signals'") && text.contains("one_sided.rs"), "{text}");
    }
}

#[test]
fn a_rank_that_leaves_without_its_signal_is_named() {
    let errors = ranks(2, |mock, comm| {
        window(&comm)?;
        if comm.info().rank.get() == 1 {
            return Ok(None);
        }
        wait_signal(&comm, 1, RawStream::DEFAULT)?;
        Ok(synchronize(mock, &comm).err())
    });
    let error = errors[0].as_ref().expect("rank 0 waits in vain");
    assert!(error.to_string().contains("rank 1"), "{error}");
}

#[test]
fn a_signal_outlives_the_call_and_its_rank_may_leave() {
    ranks(2, |mock, comm| {
        window(&comm)?;
        if comm.info().rank.get() == 1 {
            return signal(&comm, 0);
        }
        thread::sleep(Duration::from_millis(20));
        wait_signal(&comm, 1, RawStream::DEFAULT)?;
        synchronize(mock, &comm)
    });
}

#[test]
fn an_abort_frees_a_stream_that_waits() {
    let kinds = ranks(2, |mock, comm| {
        window(&comm)?;
        if comm.info().rank.get() == 1 {
            thread::sleep(Duration::from_millis(20));
            comm.abort_handle().abort()?;
            return Ok(None);
        }
        wait_signal(&comm, 1, RawStream::DEFAULT)?;
        Ok(Some(synchronize(mock, &comm).unwrap_err().kind()))
    });
    assert_eq!(kinds[0], Some(ErrorKind::Remote));
}

#[test]
fn signals_need_a_window() {
    ranks(2, |_, comm| {
        let error = signal(&comm, 1 - comm.info().rank.get()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidUsage);
        assert!(error.to_string().contains("register one first"), "{error}");
        Ok(())
    });
}

#[test]
fn puts_stay_in_windows() {
    ranks(2, |_, comm| {
        let (memory, window) = window(&comm)?;
        let outside = comm.mem_alloc(64)?;
        let peer = Rank::new(1 - comm.info().rank.get());
        let refused = |send: *mut c_void, bytes: usize, offset: usize| {
            let send = SendBuf::new(send, bytes, DType::U8);
            let launch = Launch::new(RawStream::DEFAULT);
            // SAFETY: refused.
            let error = unsafe { comm.put_signal(send, peer, window, offset, launch) }.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
            error.to_string()
        };
        let text = refused(memory, 64, BYTES - 63);
        assert!(
            text.contains("64 bytes at offset 8129 do not lie in the window of 8192"),
            "{text}"
        );
        let text = refused(memory, 64, usize::MAX);
        assert!(text.contains("do not lie in the window"), "{text}");
        let text = refused(outside, 64, 0);
        assert!(text.contains("lies in no window of this communicator"), "{text}");
        // SAFETY: this communicator's window, and nothing is pending.
        unsafe { comm.window_deregister(window) }?;
        let text = refused(memory, 64, 0);
        assert!(text.contains("is not one of this communicator's"), "{text}");
        Ok(())
    });
}

#[test]
fn captures_refuse_them() {
    ranks(2, |mock, comm| {
        window(&comm)?;
        let device = mock.device(comm.info().device)?;
        let stream = device.stream_create()?;
        // SAFETY: the stream is alive.
        unsafe { device.begin_capture(stream) }?;
        let error = wait_signal(&comm, 1 - comm.info().rank.get(), stream).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidUsage);
        assert!(error.to_string().contains("cannot be captured"), "{error}");
        // SAFETY: as above.
        let graph = unsafe { device.end_capture(stream) }?;
        // SAFETY: made here.
        unsafe { device.graph_destroy(graph) }?;
        // SAFETY: made here.
        unsafe { device.stream_destroy(stream) }
    });
}

#[test]
fn nothing_is_left() {
    ranks(2, |mock, comm| {
        let (memory, window) = window(&comm)?;
        let peer = 1 - comm.info().rank.get();
        signal(&comm, peer)?;
        wait_signal(&comm, peer, RawStream::DEFAULT)?;
        synchronize(mock, &comm)?;
        let own = comm.info().device;
        // SAFETY: this communicator's window, and nothing is pending.
        unsafe { comm.window_deregister(window) }?;
        // SAFETY: registered no more, and nothing is pending.
        unsafe { comm.mem_free(memory) }?;
        drop(comm);
        let alive = mock.alive();
        assert!(alive.things().iter().all(|thing| thing.device != own), "{alive}");
        Ok(())
    });
}
