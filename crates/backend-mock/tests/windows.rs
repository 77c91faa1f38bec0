//! Windows: what the mock checks that a library only trusts in.

use std::ffi::c_void;

use collectives_backend_mock::{AliveKind, Mock, MockComm, VerdictKind, World};
use collectives_core::{
    Collectives, DType, Error, ErrorKind, Launch, RawStream, RawWindow, RecvBuf, ReduceOp, Result,
    SendBuf, WindowFlags,
};

/// Registers the memory, which the tests keep as long as the mock.
#[track_caller]
fn register(comm: &MockComm, ptr: *mut c_void, bytes: usize) -> Result<RawWindow> {
    // SAFETY: memory that is refused is not used, and the rest lives as long as the mock.
    unsafe { comm.window_register(ptr, bytes, WindowFlags::SYMMETRIC) }
}

fn ranks<T: Send + 'static>(
    size: usize,
    body: impl Fn(&Mock, MockComm) -> Result<T> + Send + Sync + 'static,
) -> Vec<T> {
    World::new(size).run(body).unwrap()
}

#[test]
fn ranks_that_differ_in_size_are_told() {
    let errors = ranks(3, |_, comm| {
        let bytes = if comm.info().rank.get() == 2 { 8192 } else { 4096 };
        let memory = comm.mem_alloc(8192)?;
        Ok(register(&comm, memory, bytes).unwrap_err())
    });
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::InvalidUsage);
        let text = error.to_string();
        assert!(text.contains("window_register"), "{text}");
        assert!(text.contains("rank 2 is the odd one out"), "{text}");
        assert!(text.contains("windows.rs"), "{text}");
    }
}

#[test]
fn a_rank_that_never_comes_is_named() {
    let errors = ranks(2, |_, comm| -> Result<Option<Error>> {
        if comm.info().rank.get() == 1 {
            return Ok(None);
        }
        let memory = comm.mem_alloc(4096)?;
        Ok(register(&comm, memory, 4096).err())
    });
    let error = errors[0].as_ref().expect("rank 0 waits in vain");
    assert!(matches!(error.kind(), ErrorKind::Remote | ErrorKind::Deadlock), "{error}");
    assert!(error.to_string().contains("rank 1"), "{error}");
}

#[test]
fn a_rank_that_does_something_else_is_told() {
    let errors = ranks(2, |mock, comm| {
        let memory = comm.mem_alloc(4096)?;
        let error = if comm.info().rank.get() == 0 {
            register(&comm, memory, 4096).unwrap_err()
        } else {
            let (send, recv) =
                (SendBuf::new(memory, 4, DType::F32), RecvBuf::new(memory, 4, DType::F32));
            let launch = Launch::new(RawStream::DEFAULT);
            // SAFETY: the memory is larger, and lives as long as the mock.
            unsafe { comm.all_reduce(send, recv, ReduceOp::Sum, launch) }?;
            Box::new(comm).finalize().unwrap_err()
        };
        Ok((error, mock.verdicts()[0].kind))
    });
    for (error, verdict) in errors {
        assert!(error.to_string().contains("window_register"), "{error}");
        assert!(error.to_string().contains("all_reduce"), "{error}");
        assert_eq!(verdict, VerdictKind::Mismatch);
    }
}

#[test]
fn an_abort_frees_a_rank_that_waits() {
    let kinds = ranks(2, |_, comm| {
        let memory = comm.mem_alloc(4096)?;
        if comm.info().rank.get() == 1 {
            std::thread::sleep(std::time::Duration::from_millis(20));
            return Ok(None);
        }
        let handle = comm.abort_handle();
        let abort = std::thread::spawn(move || handle.abort());
        let kind = register(&comm, memory, 4096).unwrap_err().kind();
        abort.join().expect("no panic")?;
        Ok(Some(kind))
    });
    assert!(matches!(kinds[0], Some(ErrorKind::Aborted | ErrorKind::Remote)), "{kinds:?}");
}

#[test]
fn memory_is_checked_before_anybody_waits() {
    ranks(1, |_, comm| {
        let memory = comm.mem_alloc(8192)?;
        let refused = |ptr: *mut c_void, bytes| {
            let error = register(&comm, ptr, bytes).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
            assert!(!error.poisons_communicator(), "{error}");
            error.to_string()
        };
        let text = refused(memory.wrapping_byte_add(256), 4096);
        assert!(text.contains("256 bytes into its allocation, want a multiple of 4096"), "{text}");
        let text = refused(memory, 8193);
        assert!(text.contains("only 8192 are allocated"), "{text}");
        register(&comm, memory.wrapping_byte_add(4096), 4096).map(drop)
    });
}

#[test]
fn memory_in_a_window_is_not_freed() {
    ranks(2, |_, comm| {
        let memory = comm.mem_alloc(4096)?;
        let window = register(&comm, memory, 4096)?;
        // SAFETY: refused, as the window is alive.
        let error = unsafe { comm.mem_free(memory) }.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidUsage);
        assert!(error.to_string().contains("still registered"), "{error}");
        // SAFETY: this communicator's window, and nothing is pending.
        unsafe { comm.window_deregister(window) }?;
        // SAFETY: gone, which is what is asked.
        let error = unsafe { comm.window_deregister(window) }.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        // SAFETY: registered no more, and nothing is pending.
        unsafe { comm.mem_free(memory) }
    });
}

#[test]
fn what_is_not_given_back_is_listed() {
    ranks(1, |mock, comm| {
        let memory = comm.mem_alloc(4096)?;
        register(&comm, memory, 4096)?;
        let text = mock.alive().to_string();
        assert!(text.contains("window of 4096 bytes"), "{text}");
        drop(comm);
        assert_eq!(mock.alive().count(AliveKind::Window), 0, "gone with its communicator");
        Ok(())
    });
}
