//! A group belongs to the thread that opened it.

use collectives::{Communicator, Group};

fn needs_send<T: Send>() {}

fn main() {
    needs_send::<&Group<'_>>();
    needs_send::<&Communicator>();
}
