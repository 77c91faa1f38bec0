//! The CUDA runtime, and with it what HIP has under other names.
//!
//! HIP's functions are the CUDA runtime's with another prefix, the same arguments and the same
//! codes. So most are written once and exported twice (`twins`); what only one of the two has is
//! in [`own`] and in [`crate::hip`]. Neither wants to be initialised: a thread without a context
//! gets the primary one of its device.

#![expect(non_snake_case, reason = "the functions have their C names")]

pub mod device;
pub mod memory;
pub mod own;
pub mod stream;

use std::{cell::Cell, sync::Arc};

use crate::gpu::{
    Code, Reply,
    context::{self, Context},
    device::Face,
    stream::Stream,
};

/// Defines functions that the CUDA runtime and HIP have in common: both names, in brackets what
/// tells which of them was called, and a body that is a [`Reply`].
macro_rules! twins {
    ($(
        $(#[$meta:meta])*
        fn $cuda:ident | $hip:ident [$face:ident] ($($arg:ident: $type:ty),* $(,)?) $body:block
    )*) => {
        $crate::cudart::face! {
            Cuda;
            $($(#[$meta])* fn $cuda [$face] ($($arg: $type),*) $body)*
        }
        $crate::cudart::face! {
            Hip;
            $($(#[$meta])* fn $hip [$face] ($($arg: $type),*) $body)*
        }
    };
}

/// Defines functions of one of the two, whose last error they keep.
macro_rules! face {
    (
        $which:ident;
        $(
            $(#[$meta:meta])*
            fn $name:ident [$face:ident] ($($arg:ident: $type:ty),* $(,)?) $body:block
        )*
    ) => {
        export! {
            plain, on_panic = $crate::gpu::Code::UNKNOWN;
            $(
                $(#[$meta])*
                fn $name($($arg: $type),*) -> $crate::gpu::Code {
                    $crate::cudart::kept($crate::gpu::Code::of(|| {
                        let $face = $crate::gpu::device::Face::$which;
                        let _not_all_ask = $face;
                        $body
                    }))
                }
            )*
        }
    };
}
pub(crate) use {face, twins};

thread_local! {
    static LAST_ERROR: Cell<Code> = const { Cell::new(Code::SUCCESS) };
}

/// Keeps a failure for `cudaGetLastError`.
pub(crate) fn kept(code: Code) -> Code {
    if code != Code::SUCCESS {
        LAST_ERROR.set(code);
    }
    code
}

/// The last failure of a call on this thread.
fn last_error(forget: bool) -> Code {
    if forget { LAST_ERROR.replace(Code::SUCCESS) } else { LAST_ERROR.get() }
}

/// The context of the thread, made if it has none.
fn context(face: Face) -> Reply<Context> {
    context::ensure(face)
}

/// The stream behind a handle.
pub(crate) fn find(face: Face, stream: usize) -> Reply<Arc<Stream>> {
    Stream::find(stream, || context(face))
}
