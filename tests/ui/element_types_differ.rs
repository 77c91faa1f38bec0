//! Both buffers of an operation hold one type.

use collectives::{Buffer, Communicator, ReduceOp, Result, Stream};

fn main() {}

fn mixed(
    comm: &Communicator,
    stream: &Stream,
    send: &Buffer<f32>,
    recv: &mut Buffer<f64>,
) -> Result<()> {
    comm.on(stream).all_reduce(send, recv, ReduceOp::Sum)
}
