//! A group enqueues when it closes, so its buffers live until then.

use collectives::{Communicator, ReduceOp, Result, Stream, group};

fn main() {}

fn dropped(comm: &Communicator, stream: &Stream) -> Result<()> {
    group(|g| {
        let mut buffer = stream.zeros::<f32>(1)?;
        g.on(comm, stream).all_reduce_in_place(&mut buffer, ReduceOp::Sum)
    })
}
