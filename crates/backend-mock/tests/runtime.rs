//! What a vendor's runtime has beyond `Device`.

#![expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "series of calls on handles that live to the end of the test"
)]

use std::{
    error::Error as _,
    ffi::c_void,
    sync::mpsc::{self, Receiver, Sender},
};

use collectives_backend_mock::{CaptureFault, Mock, MockConfig, MockDevice};
use collectives_core::{Backend, Device, Error, ErrorKind, Result};

fn device() -> Result<MockDevice> {
    Mock::new(MockConfig::new().with_devices(2)).device(0)
}

fn fault(error: &Error) -> Option<CaptureFault> {
    error.source()?.downcast_ref().copied()
}

/// Says that it was called, and waits until it may return.
struct Gate {
    called: Sender<()>,
    may_return: Receiver<()>,
}

unsafe extern "C" fn pass_gate(gate: *mut c_void) {
    // SAFETY: each caller below passes a gate that lives until the stream has passed.
    let gate = unsafe { &*gate.cast::<Gate>() };
    gate.called.send(()).unwrap();
    gate.may_return.recv().unwrap();
}

#[test]
fn a_host_function_holds_up_its_stream_and_no_thread() {
    let device = device().unwrap();
    let stream = device.stream_create().unwrap();
    let (called, was_called) = mpsc::channel();
    let (let_go, may_return) = mpsc::channel();
    let mut gate = Gate { called, may_return };
    let (mut before, mut after) = ([0_u8; 4], [0_u8; 4]);
    // SAFETY: all of it lives until the stream is synchronised.
    unsafe {
        device.memset(before.as_mut_ptr().cast(), 1, 4, stream).unwrap();
        device.call(stream, pass_gate, (&raw mut gate).cast()).unwrap();
        device.memset(after.as_mut_ptr().cast(), 2, 4, stream).unwrap();
    }
    was_called.recv().unwrap();
    // SAFETY: a live stream.
    assert!(!unsafe { device.is_idle(stream) }.unwrap());
    assert_eq!(before, [1; 4], "it comes after what was enqueued before");
    let_go.send(()).unwrap();
    // SAFETY: a live stream.
    unsafe { device.synchronize(stream, None) }.unwrap();
    assert_eq!(after, [2; 4]);
    // SAFETY: a live stream.
    assert!(unsafe { device.is_idle(stream) }.unwrap());
}

#[test]
fn events_know_when_they_were_reached_and_waits_end_with_them() {
    let device = device().unwrap();
    let stream = device.stream_create().unwrap();
    let [start, end] = [(); 2].map(|()| device.timed_event_create().unwrap());
    let (called, was_called) = mpsc::channel();
    let (let_go, may_return) = mpsc::channel();
    let mut gate = Gate { called, may_return };
    // SAFETY: the events and the stream live, and the gate until the stream is synchronised.
    unsafe {
        assert_eq!(device.reached_at(start).unwrap_err().kind(), ErrorKind::InvalidArgument);
        device.record(start, stream).unwrap();
        device.call(stream, pass_gate, (&raw mut gate).cast()).unwrap();
        device.record(end, stream).unwrap();
    }
    was_called.recv().unwrap();
    // SAFETY: a live event.
    unsafe { device.synchronize_event(start) }.unwrap();
    // SAFETY: a live event.
    let first = unsafe { device.reached_at(start) }.unwrap().unwrap();
    // SAFETY: a live event.
    assert_eq!(unsafe { device.reached_at(end) }.unwrap(), None);
    let_go.send(()).unwrap();
    device.synchronize_all().unwrap();
    // SAFETY: a live event.
    assert!(unsafe { device.reached_at(end) }.unwrap().unwrap() > first);
}

#[test]
fn a_graph_can_be_made_twice_from_one_capture() {
    let device = device().unwrap();
    let stream = device.stream_create().unwrap();
    let mut bytes = [0_u8; 4];
    // SAFETY: the bytes, the stream and the graphs live until the stream is synchronised.
    unsafe {
        device.begin_capture(stream).unwrap();
        let capture = device.capture_of(stream).unwrap().unwrap();
        assert_eq!(capture.origin, stream);
        assert_eq!(fault(&device.is_idle(stream).unwrap_err()), Some(CaptureFault::Unsupported));
        device.memset(bytes.as_mut_ptr().cast(), 7, 4, stream).unwrap();
        let template = device.end_capture(stream).unwrap();
        assert_eq!(device.capture_of(stream).unwrap(), None);
        assert_eq!(device.graph_size(template).unwrap(), 1);
        let graph = device.graph_copy(template).unwrap();
        device.graph_destroy(template).unwrap();
        assert_eq!(bytes, [0; 4]);
        device.launch(graph, stream).unwrap();
        device.synchronize(stream, None).unwrap();
        device.graph_destroy(graph).unwrap();
    }
    assert_eq!(bytes, [7; 4]);
}

#[test]
fn what_is_wrong_with_a_capture_is_told_apart() {
    let device = device().unwrap();
    let [origin, fork] = [(); 2].map(|()| device.stream_create().unwrap());
    let [inside, outside] = [(); 2].map(|()| device.event_create().unwrap());
    // SAFETY: all of them live.
    unsafe {
        device.record(outside, origin).unwrap();
        device.begin_capture(origin).unwrap();
        let error = device.wait(origin, outside).unwrap_err();
        assert_eq!(fault(&error), Some(CaptureFault::Isolation));
        device.record(inside, origin).unwrap();
        let id = device.capture_of(origin).unwrap().unwrap().id;
        assert_eq!(device.capture_of_event(inside).unwrap(), Some(id));
        let error = device.synchronize_event(inside).unwrap_err();
        assert_eq!(fault(&error), Some(CaptureFault::CapturedEvent));
        device.wait(fork, inside).unwrap();
        device.memset([0_u8; 1].as_mut_ptr().cast(), 1, 1, fork).unwrap();
        let error = device.end_capture(origin).unwrap_err();
        assert_eq!(fault(&error), Some(CaptureFault::Unjoined));
    }
}

#[test]
fn memory_is_known_by_any_address_in_it() {
    let mock = Mock::new(MockConfig::new().with_devices(2));
    let device = mock.device(1).unwrap();
    let (free, total) = device.memory_info();
    let ptr = device.alloc(1000).unwrap();
    assert_eq!(device.memory_info(), (free - 1000, total));
    let found = mock.allocation(ptr.wrapping_byte_add(999)).unwrap();
    assert_eq!((found.device, found.start, found.bytes), (1, ptr, 1000));
    // SAFETY: nothing uses it.
    unsafe { device.free_now(ptr) }.unwrap();
    assert!(mock.allocation(ptr).is_none());
    // SAFETY: refused.
    assert!(unsafe { device.free_now(ptr) }.is_err());
}
