//! Reading and writing one buffer needs the in-place form.

use collectives::{Buffer, Communicator, ReduceOp, Result, Stream};

fn main() {}

fn alias(comm: &Communicator, stream: &Stream, buffer: &mut Buffer<f32>) -> Result<()> {
    comm.on(stream).all_reduce(&*buffer, &mut *buffer, ReduceOp::Sum)
}
