//! NCCL allows one thread at a time to call on a communicator.

fn needs_sync<T: Sync>() {}

fn main() {
    needs_sync::<collectives::Communicator>();
}
