//! One operation with everything that can vary about it, run and compared with the oracle.

use std::fmt;

use collectives_core::{Backend, DType, ReduceOp, Result, Scalar};

use crate::{
    check::{Failure, Outcome, check_eq},
    ctx::{Ctx, rank},
    inputs::{PERIOD, Reduction, inputs, repeat, scalar, tolerance},
    lane::Lane,
    number::{Number, distance, with_element},
    oracle,
    workspace::Memory,
};

/// The operations in which all ranks take part.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Collective {
    AllGather,
    AllReduce,
    AllToAll,
    Broadcast,
    Gather,
    Reduce,
    ReduceScatter,
    Scatter,
}

impl Collective {
    pub(crate) const ALL: [Self; 8] = [
        Self::AllGather,
        Self::AllReduce,
        Self::AllToAll,
        Self::Broadcast,
        Self::Gather,
        Self::Reduce,
        Self::ReduceScatter,
        Self::Scatter,
    ];

    pub(crate) const fn reduces(self) -> bool {
        matches!(self, Self::AllReduce | Self::Reduce | Self::ReduceScatter)
    }

    pub(crate) const fn has_root(self) -> bool {
        matches!(self, Self::Broadcast | Self::Gather | Self::Reduce | Self::Scatter)
    }

    const fn has_in_place_form(self) -> bool {
        !matches!(self, Self::AllToAll)
    }

    /// Elements in the send and in the receive buffer, for `count` per rank.
    const fn lengths(self, count: usize, size: usize) -> (usize, usize) {
        match self {
            Self::AllReduce | Self::Broadcast | Self::Reduce => (count, count),
            Self::AllGather | Self::Gather => (count, count * size),
            Self::ReduceScatter | Self::Scatter => (count * size, count),
            Self::AllToAll => (count * size, count * size),
        }
    }
}

/// One operation with one choice of everything that can vary.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) collective: Collective,
    pub(crate) dtype: DType,
    /// `None` where the operation does not reduce.
    pub(crate) reduction: Option<Reduction>,
    pub(crate) root: usize,
    /// Elements per rank.
    pub(crate) count: usize,
    pub(crate) in_place: bool,
    /// Elements between the start of an allocation and the buffers.
    pub(crate) offset: usize,
}

impl Plan {
    /// `collective` of `count` elements per rank; a sum where it reduces, rooted at rank 0.
    pub(crate) fn new(collective: Collective, dtype: DType, count: usize) -> Self {
        let reduction = collective.reduces().then_some(Reduction::Sum);
        Self { collective, dtype, reduction, root: 0, count, in_place: false, offset: 0 }
    }

    pub(crate) fn with_reduction(self, reduction: Reduction) -> Self {
        Self { reduction: Some(reduction), ..self }
    }

    pub(crate) fn with_root(self, root: usize) -> Self {
        Self { root, ..self }
    }

    /// In place, where the operation has such a form.
    pub(crate) fn in_place(self, in_place: bool) -> Self {
        Self { in_place: in_place && self.collective.has_in_place_form(), ..self }
    }

    pub(crate) fn with_offset(self, offset: usize) -> Self {
        Self { offset, ..self }
    }

    /// Runs the operation on the communicator of all ranks, and compares.
    #[track_caller]
    pub(crate) fn run<B: Backend>(self, ctx: &Ctx<'_, B>) -> Outcome {
        self.run_on(ctx, ctx.lane())
    }

    /// Runs the operation on `lane`, whose stream is this rank's or ordered with it, and compares.
    #[track_caller]
    pub(crate) fn run_on<B: Backend>(self, ctx: &Ctx<'_, B>, lane: Lane<'_>) -> Outcome {
        with_element!(self.dtype, T => {
            let call = self.prepare::<B, T>(ctx, lane, ctx.seed)?;
            call.issue(lane)
                .map_err(Failure::from)
                .and_then(|()| call.verify(ctx))
                .map_err(|failure| failure.during(self))
        })
    }

    /// Allocates and fills the buffers of this rank.
    #[track_caller]
    pub(crate) fn prepare<B: Backend, T: Number>(
        self,
        ctx: &Ctx<'_, B>,
        lane: Lane<'_>,
        seed: u64,
    ) -> Outcome<Prepared<T>> {
        let (rank, size) = (lane.rank(), lane.size());
        let (sent, received) = self.collective.lengths(self.count, size);
        let space = |count: usize| -> Outcome<Memory> {
            Ok(ctx.here.alloc(self.dtype, count + self.offset)?.part(self.offset, count))
        };
        let apart = || Ok::<_, Failure>((space(sent)?, space(received)?));
        let on_root = rank == self.root;
        let (send, recv) = match self.collective {
            _ if !self.in_place => apart()?,
            Collective::AllReduce | Collective::Broadcast | Collective::Reduce => {
                let both = space(sent)?;
                (both, both)
            }
            Collective::Gather | Collective::Scatter if !on_root => apart()?,
            Collective::AllGather | Collective::Gather => {
                let whole = space(received)?;
                (whole.part(rank * self.count, self.count), whole)
            }
            Collective::ReduceScatter | Collective::Scatter => {
                let whole = space(sent)?;
                (whole, whole.part(rank * self.count, self.count))
            }
            Collective::AllToAll => apart()?,
        };
        let mut prepared = Prepared {
            plan: self,
            rank,
            size,
            send,
            recv,
            scalar: None,
            own: Vec::new(),
            want: None,
        };
        if self.reduction == Some(Reduction::PreMulDevice) {
            prepared.scalar = Some(ctx.here.upload(&[scalar::<T>(rank)])?);
        }
        prepared.refill(ctx, seed)?;
        Ok(prepared)
    }

    fn result<T: Number>(self, inputs: &[Vec<T>], rank: usize) -> Option<Vec<T>> {
        let size = inputs.len();
        let on_root = rank == self.root;
        let reduction = self.reduction.unwrap_or(Reduction::Sum);
        match self.collective {
            Collective::AllGather => Some(oracle::gather(inputs)),
            Collective::AllReduce => Some(reduced(inputs, reduction)),
            Collective::AllToAll => Some(oracle::all_to_all(inputs, rank)),
            Collective::Broadcast => Some(inputs[self.root].clone()),
            Collective::Gather => on_root.then(|| oracle::gather(inputs)),
            Collective::Reduce => on_root.then(|| reduced(inputs, reduction)),
            Collective::ReduceScatter => {
                Some(oracle::part(&reduced(inputs, reduction), rank, size))
            }
            Collective::Scatter => Some(oracle::part(&inputs[self.root], rank, size)),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of {} × {}", self.collective, self.count, self.dtype)?;
        if let Some(reduction) = self.reduction {
            write!(f, ", {reduction:?}")?;
        }
        if self.collective.has_root() {
            write!(f, ", root {}", self.root)?;
        }
        if self.in_place {
            f.write_str(", in place")?;
        }
        if self.offset > 0 {
            write!(f, ", at element {}", self.offset)?;
        }
        Ok(())
    }
}

/// A plan with its buffers, which can be issued any number of times.
pub(crate) struct Prepared<T> {
    plan: Plan,
    rank: usize,
    size: usize,
    pub(crate) send: Memory,
    pub(crate) recv: Memory,
    scalar: Option<Memory>,
    own: Vec<T>,
    /// `None` where this rank receives nothing.
    want: Option<Vec<T>>,
}

impl<T: Number> Prepared<T> {
    /// Writes the inputs of another seed.
    pub(crate) fn refill<B: Backend>(&mut self, ctx: &Ctx<'_, B>, seed: u64) -> Outcome {
        let (sent, _) = self.plan.collective.lengths(self.plan.count, self.size);
        let of = |rank| inputs::<T>(self.plan.reduction, seed, rank, self.size, sent);
        let all: Vec<Vec<T>> = (0..self.size).map(of).collect();
        self.want = self.plan.result(&all, self.rank);
        self.own.clone_from(&all[self.rank]);
        // What is broadcast in place is in the buffer on root only.
        if !(self.plan.in_place && self.takes_no_send()) {
            ctx.here.write(self.send, &self.own)?;
        }
        Ok(())
    }

    /// Enqueues the operation once.
    #[track_caller]
    pub(crate) fn issue(&self, lane: Lane<'_>) -> Result<()> {
        let pre_mul = match self.plan.reduction {
            Some(Reduction::PreMulHost) => {
                Some(lane.pre_mul_sum(Scalar::host(scalar::<T>(self.rank)))?)
            }
            Some(Reduction::PreMulDevice) => match self.scalar {
                Some(scalar) => {
                    Some(lane.pre_mul_sum(Scalar::Device { dtype: T::DTYPE, ptr: scalar.ptr() })?)
                }
                None => None,
            },
            _ => None,
        };
        let op = match (self.plan.reduction, pre_mul) {
            (_, Some(op)) => ReduceOp::PreMulSum(op),
            (Some(Reduction::Prod), _) => ReduceOp::Prod,
            (Some(Reduction::Max), _) => ReduceOp::Max,
            (Some(Reduction::Min), _) => ReduceOp::Min,
            (Some(Reduction::Avg), _) => ReduceOp::Avg,
            _ => ReduceOp::Sum,
        };
        let issued = self.issue_with(lane, op);
        // Allowed at once: the call has returned.
        let destroyed = pre_mul.map_or(Ok(()), |op| lane.comm.destroy_pre_mul_sum(op));
        issued.and(destroyed)
    }

    #[track_caller]
    fn issue_with(&self, lane: Lane<'_>, op: ReduceOp) -> Result<()> {
        let (send, recv) = (self.send.send(), self.recv.recv());
        let root = rank(self.plan.root);
        let on_root = self.rank == self.plan.root;
        match self.plan.collective {
            Collective::AllGather => lane.all_gather(send, recv),
            Collective::AllReduce => lane.all_reduce(send, recv, op),
            Collective::AllToAll => lane.all_to_all(send, recv),
            Collective::Broadcast => lane.broadcast(on_root.then_some(send), recv, root),
            Collective::Gather => lane.gather(send, on_root.then_some(recv), root),
            Collective::Reduce => lane.reduce(send, on_root.then_some(recv), op, root),
            Collective::ReduceScatter => lane.reduce_scatter(send, recv, op),
            Collective::Scatter => lane.scatter(on_root.then_some(send), recv, root),
        }
    }

    /// Waits for this rank's stream; compares what was received with the oracle's, and what was
    /// sent with what it was.
    #[track_caller]
    pub(crate) fn verify<B: Backend>(&self, ctx: &Ctx<'_, B>) -> Outcome {
        if let Some(want) = &self.want {
            let got = ctx.here.read::<T>(self.recv)?;
            compare("received", &got, want, tolerance::<T>(self.plan.reduction, self.size))?;
        } else if !self.plan.in_place {
            ctx.here.check_untouched(self.recv)?;
        }
        if !self.plan.in_place {
            compare("sent, afterwards,", &ctx.here.read::<T>(self.send)?, &self.own, 0)?;
        }
        Ok(())
    }

    /// Fails unless nothing was received since the buffers were made.
    #[track_caller]
    pub(crate) fn check_not_run<B: Backend>(&self, ctx: &Ctx<'_, B>) -> Outcome {
        ctx.here.check_untouched(self.recv)
    }

    fn takes_no_send(&self) -> bool {
        let root_only = matches!(self.plan.collective, Collective::Broadcast | Collective::Scatter);
        root_only && self.rank != self.plan.root
    }
}

/// The combination of inputs that repeat: the oracle is asked about what repeats.
fn reduced<T: Number>(inputs: &[Vec<T>], reduction: Reduction) -> Vec<T> {
    let count = inputs[0].len();
    let heads: Vec<Vec<T>> =
        inputs.iter().map(|input| input[..count.min(PERIOD)].to_vec()).collect();
    repeat(&oracle::reduce(&heads, reduction), count)
}

/// Compares elements by their bits, or by their distance where one is allowed.
#[track_caller]
pub(crate) fn compare<T: Number>(what: &str, got: &[T], want: &[T], allowed: u64) -> Outcome {
    check_eq(format!("number of elements {what}"), got.len(), want.len())?;
    let wrong: Vec<usize> =
        (0..got.len()).filter(|&at| distance(got[at], want[at]) > allowed).collect();
    let Some(&at) = wrong.first() else { return Ok(()) };
    Err(Failure::new(format!(
        "element {at} {what} is {:?} (bits {:#x}), want {:?} (bits {:#x}); {} of {} differ by more \
         than {allowed}",
        got[at],
        got[at].to_bits(),
        want[at],
        want[at].to_bits(),
        wrong.len(),
        got.len()
    )))
}
