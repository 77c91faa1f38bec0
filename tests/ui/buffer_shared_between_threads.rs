//! Two threads could enqueue uses of one buffer that nobody orders.

use collectives::Buffer;

fn needs_sync<T: Sync>() {}

fn main() {
    needs_sync::<Buffer<f32>>();
}
