//! A finalized communicator is gone.

use collectives::{Communicator, Result};

fn main() {}

fn after(comm: Communicator) -> Result<()> {
    comm.finalize()?;
    comm.poll_error()
}
