//! What a program must compute: its steps one after another, on plain memory.

use crate::{
    element::{self, Value},
    program::{Call, HOST, LASTING, Operation, Place, Program, Reduction, Step, What},
    random::hash,
};

/// What a rank has in the end.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Memory {
    /// By number; `None` where an area was freed, or never made.
    pub(crate) areas: Vec<Option<Vec<u8>>>,
    /// What its thread saw of the host's area, in order.
    pub(crate) observed: Vec<Vec<u8>>,
}

/// What all ranks have in the end.
pub(crate) fn expected(program: &Program) -> Vec<Memory> {
    let mut world = World {
        program,
        ranks: (0..program.ranks).map(|rank| initial(program, rank)).collect(),
        graphs: Vec::new(),
    };
    for step in &program.steps {
        world.step(step);
    }
    world.ranks
}

/// What a rank has in the beginning.
pub(crate) fn initial(program: &Program, rank: usize) -> Memory {
    let areas = (0..LASTING).map(|area| {
        let mut bytes = vec![0; program.area_bytes];
        element::fill(hash([program.seed, rank as u64, area as u64]), &mut bytes);
        Some(bytes)
    });
    Memory { areas: areas.collect(), observed: Vec::new() }
}

/// What a seat's scalar is, where it is the host's.
pub(crate) fn host_scalar(op: &Operation, rank: usize) -> Value {
    element::scalar(op.dtype, op.fresh.unwrap_or(op.count as u64), rank)
}

/// What is written before an operation, on one rank.
pub(crate) fn loads(op: &Operation, own: usize, seat: usize) -> Vec<(Place, Vec<u8>)> {
    let Some(seed) = op.fresh else { return Vec::new() };
    let of = |place: Place| {
        element::fresh(op.dtype, op.reduction(), hash([seed, own as u64]), place.bytes)
    };
    let send = op.seats[seat].send.map(|place| (place, of(place)));
    let scalar = op.seats[seat].scalar.map(|place| {
        let scalar = element::bytes_of(op.dtype, element::scalar(op.dtype, seed, own));
        (place, scalar[..place.bytes].to_vec())
    });
    send.into_iter().chain(scalar).collect()
}

struct World<'a> {
    program: &'a Program,
    ranks: Vec<Memory>,
    graphs: Vec<(usize, &'a [Step])>,
}

impl<'a> World<'a> {
    fn step(&mut self, step: &'a Step) {
        match &step.what {
            What::Alloc { rank, area, value, .. } => {
                let areas = &mut self.ranks[*rank].areas;
                areas.resize_with(areas.len().max(area + 1), || None);
                areas[*area] = Some(vec![*value; self.program.area_bytes]);
            }
            What::Copy { rank, from, to, .. } => {
                let bytes = self.get(*rank, *from);
                self.put(*rank, *to, &bytes);
            }
            What::Define { graph, body, .. } => self.graphs.push((*graph, body)),
            What::Fill { rank, to, value, .. } => self.put(*rank, *to, &vec![*value; to.bytes]),
            What::Free { rank, area, .. } => self.ranks[*rank].areas[*area] = None,
            What::Load { rank, to, seed, .. } | What::Write { rank, to, seed } => {
                let mut bytes = vec![0; to.bytes];
                element::fill(*seed, &mut bytes);
                self.put(*rank, *to, &bytes);
            }
            What::Meet { ops, .. } => {
                for op in ops {
                    for (index, (rank, _, own)) in op.parts(&self.program.comms).enumerate() {
                        for (place, bytes) in loads(op, own, index) {
                            self.put(rank, place, &bytes);
                        }
                    }
                }
                for op in ops {
                    self.operation(op);
                }
            }
            What::Observe { rank, from } => {
                debug_assert_eq!(from.area, HOST);
                let bytes = self.get(*rank, *from);
                self.ranks[*rank].observed.push(bytes);
            }
            What::Run { graph, .. } => {
                let found = self.graphs.iter().find(|(known, _)| known == graph);
                let body = found.map_or(&[][..], |&(_, body)| body);
                body.iter().for_each(|step| self.step(step));
            }
            What::Finalize { .. }
            | What::Join { .. }
            | What::Nap { .. }
            | What::Renew { .. }
            | What::Shrink { .. }
            | What::Split { .. }
            | What::Wait { .. } => {}
        }
    }

    fn operation(&mut self, op: &Operation) {
        let parts: Vec<_> = op.parts(&self.program.comms).collect();
        let sent: Vec<Vec<u8>> = parts
            .iter()
            .map(|&(rank, seat, _)| seat.send.map_or_else(Vec::new, |place| self.get(rank, place)))
            .collect();
        let unit = op.count * op.dtype.size();
        let part = |bytes: &[u8], index: usize| bytes[index * unit..(index + 1) * unit].to_vec();
        let reduced = || self.reduced(op, &sent);
        let results: Vec<Vec<u8>> = match op.call {
            Call::AllGather | Call::Gather { .. } => vec![sent.concat(); parts.len()],
            Call::AllReduce(_) | Call::Reduce { .. } => vec![reduced(); parts.len()],
            Call::AllToAll => (0..parts.len())
                .map(|own| sent.iter().flat_map(|bytes| part(bytes, own)).collect())
                .collect(),
            Call::Broadcast { root } => vec![sent[root].clone(); parts.len()],
            Call::Message { .. } => vec![Vec::new(), sent[0].clone()],
            Call::ReduceScatter(_) => {
                let whole = reduced();
                (0..parts.len()).map(|own| part(&whole, own)).collect()
            }
            Call::Scatter { root } => (0..parts.len()).map(|own| part(&sent[root], own)).collect(),
        };
        for ((rank, seat, _), result) in parts.iter().zip(results) {
            if let Some(place) = seat.recv {
                self.put(*rank, place, &result);
            }
        }
    }

    fn reduced(&self, op: &Operation, sent: &[Vec<u8>]) -> Vec<u8> {
        let (dtype, reduction) = (op.dtype, op.reduction().unwrap_or(Reduction::Sum));
        let scalars: Vec<Value> = match reduction {
            Reduction::PreMulHost => (0..sent.len()).map(|own| host_scalar(op, own)).collect(),
            Reduction::PreMulDevice => {
                let parts = op.parts(&self.program.comms);
                let scalars = parts.filter_map(|(rank, seat, _)| {
                    seat.scalar.map(|place| element::read(dtype, &self.get(rank, place), 0))
                });
                scalars.collect()
            }
            _ => Vec::new(),
        };
        let mut result = vec![0; sent[0].len()];
        for index in 0..result.len() / dtype.size() {
            let values: Vec<_> =
                sent.iter().map(|bytes| element::read(dtype, bytes, index)).collect();
            let value = element::reduce(dtype, reduction, &values, &scalars);
            element::write(dtype, &mut result, index, value);
        }
        result
    }

    fn get(&self, rank: usize, place: Place) -> Vec<u8> {
        let area = self.ranks[rank].areas[place.area].as_ref();
        area.expect("the program uses areas that are there")[place.range()].to_vec()
    }

    fn put(&mut self, rank: usize, place: Place, bytes: &[u8]) {
        let area = self.ranks[rank].areas[place.area].as_mut();
        area.expect("the program uses areas that are there")[place.range()].copy_from_slice(bytes);
    }
}
