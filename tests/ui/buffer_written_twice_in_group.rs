//! Two operations of one group run together, so they cannot write one buffer.

use collectives::{Buffer, Communicator, ReduceOp, Result, Stream, group};

fn main() {}

fn twice(comm: &Communicator, stream: &Stream, buffer: &mut Buffer<f32>) -> Result<()> {
    group(|g| {
        g.on(comm, stream).all_reduce_in_place(&mut *buffer, ReduceOp::Sum)?;
        g.on(comm, stream).all_reduce_in_place(&mut *buffer, ReduceOp::Sum)
    })
}
