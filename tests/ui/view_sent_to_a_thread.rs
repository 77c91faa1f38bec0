//! Two views of one buffer on two threads could enqueue uses that nobody orders.

use collectives::{Buffer, Stream};

fn main() {}

fn both(buffer: &mut Buffer<f32>, stream: &Stream) {
    let (mut left, mut right) = buffer.split_at_mut(1);
    std::thread::scope(|scope| {
        scope.spawn(move || left.copy_from_slice(&[1.0], stream));
    });
    right.copy_from_slice(&[2.0], stream).unwrap();
}
