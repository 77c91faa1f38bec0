//! Trains a small model on several ranks, each with its share of the examples. Gradients travel in
//! buckets, on a stream of their own, while those of the layers before are still being computed.
//!
//! ```console
//! $ cargo run --example data_parallel
//! ```

use std::thread;

use collectives::{
    AnyBackend, Backend, Buffer, Communicator, JoinAllConfig, ReduceOp, Result, Stream,
};

fn main() -> Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let backend = collectives::backend()?;
    let ranks = backend.device_count()?.min(4);
    let trained = train(&backend, ranks)?;
    for (step, loss) in trained[0].losses.iter().enumerate() {
        println!("step {step}: loss {loss:.6}");
    }
    println!("{ranks} ranks learned {:.3?}", trained[0].model);
    Ok(())
}

const LAYERS: usize = 5;
const WIDTH: usize = 4;
const LAYERS_PER_BUCKET: usize = 2;
/// As many for each rank, where there are up to four.
const EXAMPLES: usize = 12;
const STEPS: usize = 10;
const RATE: f32 = 0.1;

type Layer = [f32; WIDTH];

/// What a rank knows in the end.
#[derive(Debug)]
pub(crate) struct Trained {
    pub(crate) model: Vec<Layer>,
    /// The mean over all examples, before each step.
    pub(crate) losses: Vec<f32>,
}

/// Trains on so many devices, with a thread for each.
pub(crate) fn train(backend: &AnyBackend, ranks: usize) -> Result<Vec<Trained>> {
    let devices: Vec<_> = (0..ranks).collect();
    let comms = Communicator::join_all(backend, JoinAllConfig::new(devices))?;
    thread::scope(|scope| {
        let threads: Vec<_> =
            comms.into_iter().map(|comm| scope.spawn(move || run(comm))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a rank panicked")).collect()
    })
}

/// What each rank does.
fn run(comm: Communicator) -> Result<Trained> {
    let mut gradients = Gradients::new(&comm)?;
    let mut model = start(&comm)?;
    let mut losses = Vec::new();
    for _ in 0..STEPS {
        let loss = backward(&model, share(&comm), |layer, own| gradients.put(layer, own))?;
        losses.push(gradients.mean(loss)?);
        for (layer, weights) in model.iter_mut().enumerate() {
            for (weight, slope) in weights.iter_mut().zip(gradients.take(layer)?) {
                *weight -= RATE * slope;
            }
        }
    }
    drop(gradients);
    comm.finalize()?;
    Ok(Trained { model, losses })
}

/// Rank 0's weights, for all.
fn start(comm: &Communicator) -> Result<Vec<Layer>> {
    let stream = comm.new_stream()?;
    let mut weights = stream.zeros(LAYERS * WIDTH)?;
    if comm.rank() == 0 {
        let chosen: Vec<_> = (0..LAYERS * WIDTH).map(|i| 1.0 - i as f32 / 100.0).collect();
        weights.copy_from_slice(&chosen, &stream)?;
    }
    comm.on(&stream).broadcast_in_place(&mut weights, 0)?;
    Ok(weights.to_vec(&stream)?.as_chunks().0.to_vec())
}

/// The numbers of the examples that this rank learns from.
fn share(comm: &Communicator) -> impl ExactSizeIterator<Item = usize> + Clone {
    (comm.rank() as usize..EXAMPLES).step_by(comm.size())
}

/// The gradients of all layers, as means over all examples of all ranks.
struct Gradients<'a> {
    comm: &'a Communicator,
    /// Where gradients are written and read.
    compute: Stream,
    /// Where they are summed.
    exchange: Stream,
    buckets: Vec<Buffer<f32>>,
}

impl<'a> Gradients<'a> {
    fn new(comm: &'a Communicator) -> Result<Self> {
        let (compute, exchange) = (comm.new_stream()?, comm.new_stream()?);
        let bucket = |_| compute.zeros(LAYERS_PER_BUCKET * WIDTH);
        let buckets = (0..LAYERS.div_ceil(LAYERS_PER_BUCKET)).map(bucket).collect::<Result<_>>()?;
        Ok(Self { comm, compute, exchange, buckets })
    }

    /// Takes what this rank found for a layer. They come from the last to the first.
    fn put(&mut self, layer: usize, own: &Layer) -> Result<()> {
        let (bucket, at) = (layer / LAYERS_PER_BUCKET, layer % LAYERS_PER_BUCKET);
        let bucket = &mut self.buckets[bucket];
        bucket.slice_mut(at * WIDTH..(at + 1) * WIDTH).copy_from_slice(own, &self.compute)?;
        if at == 0 {
            // It is full. The exchange comes behind the copies, since a buffer knows the stream of its
            // last use, and nothing waits for it here.
            self.comm.on(&self.exchange).all_reduce_in_place(bucket, ReduceOp::Avg)?;
        }
        Ok(())
    }

    /// Waits for the bucket of a layer, and for no other.
    fn take(&self, layer: usize) -> Result<Vec<f32>> {
        let (bucket, at) = (layer / LAYERS_PER_BUCKET, layer % LAYERS_PER_BUCKET);
        self.buckets[bucket].slice(at * WIDTH..(at + 1) * WIDTH).to_vec(&self.compute)
    }

    /// The mean of a value over all ranks. On the stream of the exchanges: those of one communicator
    /// run one after the other, in the order in which all ranks call them.
    fn mean(&self, own: f32) -> Result<f32> {
        let mut value = self.exchange.upload(&[own])?;
        self.comm.on(&self.exchange).all_reduce_in_place(&mut value, ReduceOp::Avg)?;
        Ok(value.to_vec(&self.exchange)?[0])
    }
}

/// The mean loss over some examples; and its gradient, which is handed out layer by layer, the last
/// one first. Each layer multiplies its input by its weights, element by element.
fn backward(
    model: &[Layer],
    examples: impl ExactSizeIterator<Item = usize> + Clone,
    mut put: impl FnMut(usize, &Layer) -> Result<()>,
) -> Result<f32> {
    let count = examples.len() as f32;
    let mut loss = 0.0;
    // For each example what went into each layer, and the slope behind the layer at hand.
    let mut passes: Vec<(Vec<Layer>, Layer)> = Vec::new();
    for example in examples {
        let mut values: Layer = std::array::from_fn(|i| ((3 * example + i) % 5) as f32 / 5.0);
        let want = values.map(|value| value / 2.0);
        let mut inputs = Vec::new();
        for weights in model {
            inputs.push(values);
            values = std::array::from_fn(|i| values[i] * weights[i]);
        }
        let slope: Layer = std::array::from_fn(|i| values[i] - want[i]);
        loss += slope.iter().map(|slope| slope * slope / 2.0).sum::<f32>() / count;
        passes.push((inputs, slope));
    }
    for (layer, weights) in model.iter().enumerate().rev() {
        let mut gradient = [0.0; WIDTH];
        for (inputs, slope) in &mut passes {
            for i in 0..WIDTH {
                gradient[i] += slope[i] * inputs[layer][i] / count;
                slope[i] *= weights[i];
            }
        }
        put(layer, &gradient)?;
    }
    Ok(loss)
}
