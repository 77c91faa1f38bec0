//! What must not compile: each file in `tests/ui` is one mistake that the types rule out.

use collectives::{AnyComm, Buffer, Communicator, Graph, Group, Slice, SliceMut, Stream};
use static_assertions::{assert_impl_all, assert_not_impl_any};

#[test]
fn mistakes_do_not_compile() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}

// NCCL allows one thread at a time to call on a communicator.
assert_impl_all!(AnyComm: Send);
assert_impl_all!(Communicator: Send);
assert_not_impl_any!(Communicator: Sync);
// Two threads could enqueue uses of one buffer that nobody orders.
assert_impl_all!(Buffer<f32>: Send);
assert_not_impl_any!(Buffer<f32>: Sync);
assert_not_impl_any!(Slice<'static, f32>: Send, Sync);
assert_not_impl_any!(SliceMut<'static, f32>: Send, Sync);
// A group belongs to the thread that opened it, which a reference to it cannot leave.
assert_not_impl_any!(Group<'static>: Sync);
// A graph moves like its communicators.
assert_impl_all!(Graph: Send);
assert_not_impl_any!(Graph: Sync);
assert_impl_all!(Stream: Send, Sync);
