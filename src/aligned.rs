//! Graphs whose launches make sure that all ranks launch the same.

use std::{cell::RefCell, fmt, ops::Deref};

use collectives_core::{CommInfo, Error, ErrorKind, Result};

use crate::{Buffer, Communicator, Graph, Scope, Stream};

/// A [`Graph`] whose launches make sure first that every rank is about to launch the same graph for
/// the same step.
///
/// Ranks that replay different graphs, or the same for different steps, hang at best. At worst the
/// shapes fit, and every result is wrong from then on. It happens where each rank decides by itself
/// what to replay: by a batch size of its own count, by a queue that was one entry shorter.
///
/// [`launch_step`](Self::launch_step) exchanges the graph's number and the step before it launches; where
/// they differ, every rank gets an error that names them all, and nothing is launched. That costs one
/// small replay and one wait of the host. So a program that cannot afford it per step checks one step
/// in so many, and launches the others as any graph: `AlignedGraph` derefs to it.
///
/// ```
/// use collectives::{ErrorKind, ReduceOp, mock};
///
/// mock::run(2, |comm| {
///     let stream = comm.new_stream()?;
///     comm.on(&stream).warm_up()?;
///     let mut values = stream.upload(&[1.0_f32])?;
///     let graph = comm.capture_aligned(|scope| {
///         scope.on(&comm).all_reduce_in_place(&mut values, ReduceOp::Sum)
///     })?;
///     graph.launch_step(0, &stream)?;
///
///     // Rank 1 has skipped a step: all ranks get an error, and may go on once they agree.
///     let error = graph.launch_step(1 + u64::from(comm.rank()), &stream).unwrap_err();
///     assert_eq!(error.kind(), ErrorKind::InvalidUsage);
///     assert!(error.message().contains("rank 0 at step 1 of graph 0, rank 1 at step 2 of graph 0"));
///
///     graph.launch_step(1, &stream)?;
///     assert_eq!(values.to_vec(&stream)?, [4.0]);
///     Ok(())
/// })
/// .unwrap();
/// ```
pub struct AlignedGraph {
    graph: Graph,
    /// Gathers what every rank is about to launch.
    check: Graph,
    number: u64,
    info: CommInfo,
    words: RefCell<Words>,
}

/// Graph and step of this rank, and of all.
struct Words {
    own: Buffer<u64>,
    all: Buffer<u64>,
}

impl AlignedGraph {
    #[track_caller]
    pub(crate) fn capture(
        comm: &Communicator,
        body: impl FnOnce(&Scope) -> Result<()>,
    ) -> Result<Self> {
        let stream = comm.new_stream()?;
        let own = stream.zeros(WORDS)?;
        let mut all = stream.zeros(WORDS * comm.size())?;
        let check = comm.capture(|scope| scope.on(comm).all_gather(&own, &mut all))?;
        let graph = comm.capture(body)?;
        let number = comm.inner().next_aligned();
        let words = RefCell::new(Words { own, all });
        Ok(Self { graph, check, number, info: comm.info().clone(), words })
    }

    /// Enqueues one run on `stream`, once all ranks are known to be about to do the same. `step` is
    /// whatever counts the program's steps, the same on all ranks.
    ///
    /// Collective, and waits for all ranks: where one does not come, as long as any wait.
    ///
    /// # Errors
    /// [`InvalidUsage`](ErrorKind::InvalidUsage) on every rank, where they differ: nothing is
    /// launched then. As [`Graph::launch`] and [`Stream::synchronize`].
    #[track_caller]
    pub fn launch_step(&self, step: u64, stream: &Stream) -> Result<()> {
        let mut words = self.words.borrow_mut();
        words.own.copy_from_slice(&[self.number, step], stream)?;
        self.check.launch(stream)?;
        let all = words.all.to_vec(stream)?;
        if all.chunks_exact(WORDS).all(|theirs| theirs == [self.number, step]) {
            return self.graph.launch(stream);
        }
        Err(self.misaligned(&all))
    }

    /// Its number among the aligned graphs of its communicator.
    pub fn number(&self) -> u64 {
        self.number
    }

    #[cold]
    fn misaligned(&self, all: &[u64]) -> Error {
        // Ranks at the same place are told together.
        let mut places: Vec<(&[u64], Vec<String>)> = Vec::new();
        for (rank, place) in all.chunks_exact(WORDS).enumerate() {
            match places.iter_mut().find(|(known, _)| *known == place) {
                Some((_, ranks)) => ranks.push(rank.to_string()),
                None => places.push((place, vec![rank.to_string()])),
            }
        }
        let tell = |(place, ranks): &(&[u64], Vec<String>)| {
            let noun = if ranks.len() == 1 { "rank" } else { "ranks" };
            format!("{noun} {} at step {} of graph {}", ranks.join(", "), place[1], place[0])
        };
        let text: Vec<_> = places.iter().map(tell).collect();
        let text = format!("ranks are about to launch different things: {}", text.join(", "));
        Error::new(ErrorKind::InvalidUsage, text)
            .with_comm(&self.info)
            .with_operation("launch_step")
            .with_hint("nothing was launched: agree on graph and step, and launch again")
    }
}

impl Deref for AlignedGraph {
    type Target = Graph;

    fn deref(&self) -> &Graph {
        &self.graph
    }
}

impl fmt::Debug for AlignedGraph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlignedGraph")
            .field("number", &self.number)
            .field("graph", &self.graph)
            .finish_non_exhaustive()
    }
}

/// What each rank tells: its graph, and its step.
const WORDS: usize = 2;
