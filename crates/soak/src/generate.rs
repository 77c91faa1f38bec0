//! Makes a random program that is correct: every buffer lies in its area, the parts of an operation fit
//! together, and what is issued in one group touches no memory twice.

use collectives_core::DType;

use crate::{
    program::{Call, HOST, LASTING, Operation, Place, Program, Reduction, Seat, Step, What},
    random::Random,
};

impl Program {
    /// The program of a seed.
    pub fn generate(seed: u64) -> Self {
        let mut random = Random::new(seed, 1);
        let ranks = 1 + random.below(6);
        let area_bytes = match random.below(60) {
            0 => 1 << 20,
            1..10 => 1 << 14,
            10..40 => 1 << 11,
            _ => 1 << 8,
        };
        let program = Self {
            seed,
            ranks,
            streams: 2 + random.below(3),
            area_bytes,
            comms: vec![(0..ranks).collect()],
            steps: Vec::new(),
        };
        let steps = 4 + random.below(40);
        let mut generator = Generator {
            areas: vec![vec![true; LASTING]; ranks],
            alive: vec![0],
            graphs: Vec::new(),
            next_graph: 0,
            program,
            random,
        };
        while generator.program.steps.len() < steps {
            let what = generator.what();
            let salt = generator.random.next();
            generator.program.steps.extend(what.map(|what| Step { salt, what }));
        }
        generator.program
    }
}

struct Generator {
    program: Program,
    random: Random,
    /// Communicators that are alive.
    alive: Vec<usize>,
    /// By rank: areas that were ever made, and whether they are there.
    areas: Vec<Vec<bool>>,
    /// Graphs that can run, and the communicators in them.
    graphs: Vec<(usize, Vec<usize>)>,
    next_graph: usize,
}

/// Memory that a group uses, by rank: what is read, and what is written.
struct Used(Vec<(Vec<Place>, Vec<Place>)>);

impl Generator {
    fn what(&mut self) -> Option<What> {
        let ranks = self.program.ranks;
        let rank = self.random.below(ranks);
        let stream = self.random.below(self.program.streams);
        match self.random.below(100) {
            0..45 => self.meet(false),
            45..60 => self.local(rank, false),
            60..64 => self.define(),
            64..74 => {
                let graph = self.random.below(self.graphs.len().max(1));
                let &(graph, _) = self.graphs.get(graph)?;
                let streams = (0..ranks).map(|_| self.random.below(self.program.streams)).collect();
                Some(What::Run { graph, streams })
            }
            74..78 => self.alloc_or_free(rank, stream),
            78..82 => self.split(),
            82..83 => self.join(),
            83..84 => self.shrink(),
            84..86 => self.finalize(),
            86..89 => Some(What::Renew { rank, stream: stream.max(1) }),
            89..92 => Some(What::Wait { rank, stream }),
            92..94 => {
                let to = self.place(rank, HOST, 1, 0)?;
                Some(What::Write { rank, to, seed: self.random.next() })
            }
            94..98 => Some(What::Observe { rank, from: self.place(rank, HOST, 1, 0)? }),
            _ => Some(What::Nap { rank, micros: self.random.next() % 200 }),
        }
    }

    /// Work of one rank alone.
    fn local(&mut self, rank: usize, captured: bool) -> Option<What> {
        let stream = self.stream(captured);
        let area = self.device_area(rank, captured);
        let to = self.place(rank, area, 1, 0)?;
        Some(match self.random.below(4) {
            0 => What::Fill { rank, to, value: self.random.next() as u8, stream },
            1 => What::Load { rank, to, seed: self.random.next(), stream },
            way => {
                let (from, to) = match way {
                    2 => (HOST, area),
                    _ if self.random.one_in(2) => (area, HOST),
                    _ => (self.device_area(rank, captured), area),
                };
                let from = self.place(rank, from, 1, 0)?;
                let to = self.place(rank, to, 1, from.bytes)?;
                let bytes = from.bytes.min(to.bytes);
                let (from, to) = (Place { bytes, ..from }, Place { bytes, ..to });
                if from.overlaps(to) {
                    return None;
                }
                What::Copy { rank, from, to, stream }
            }
        })
    }

    /// One to four operations together.
    fn meet(&mut self, captured: bool) -> Option<What> {
        let together = [1, 1, 1, 2, 3, 4][self.random.below(6)];
        let mut used = Used(vec![Default::default(); self.program.ranks]);
        let ops: Vec<_> =
            (0..together).filter_map(|_| self.operation(&mut used, captured)).collect();
        let often = self.random.of(&[1, 2, 8]);
        let grouped = (0..self.program.ranks).map(|_| !self.random.one_in(often)).collect();
        (!ops.is_empty()).then_some(What::Meet { ops, grouped })
    }

    fn operation(&mut self, used: &mut Used, captured: bool) -> Option<Operation> {
        let comm = self.random.of(&self.alive);
        let members = self.program.comms[comm].clone();
        let size = members.len();
        let dtype = self.random.of(&DType::ALL);
        let root = self.random.below(size);
        let call = match self.random.below(11) {
            0 => Call::AllGather,
            1 | 2 => Call::AllReduce(self.reduction(dtype, size)),
            3 => Call::AllToAll,
            4 => Call::Broadcast { root },
            5 => Call::Gather { root },
            6 => Call::Reduce { reduction: self.reduction(dtype, size), root },
            7 => Call::ReduceScatter(self.reduction(dtype, size)),
            8 => Call::Scatter { root },
            _ => Call::Message { from: self.random.below(size), to: root },
        };
        let (sent, received) = match call {
            Call::AllGather | Call::Gather { .. } => (1, size),
            Call::ReduceScatter(_) | Call::Scatter { .. } => (size, 1),
            Call::AllToAll => (size, size),
            _ => (1, 1),
        };
        let most = self.program.area_bytes / (dtype.size() * sent.max(received));
        let count = match self.random.below(12) {
            0 => 0,
            1..4 => 1,
            4..11 => 1 + self.random.below(most / 3),
            _ => most,
        };
        let mut op = Operation { comm, call, dtype, count, fresh: None, seats: Vec::new() };
        let reduction = op.reduction();
        let fresh = reduction.is_some() && dtype.is_float() || self.random.one_in(3);
        op.fresh = fresh.then(|| self.random.next());
        let seats: Vec<usize> = match call {
            Call::Message { from, to } => vec![from, to],
            _ => (0..size).collect(),
        };
        for (index, &own) in seats.iter().enumerate() {
            let rank = members[own];
            let bytes = |factor: usize| count * factor * dtype.size();
            let in_place = self.random.one_in(3);
            let (sends, receives) = match call {
                Call::Broadcast { root } | Call::Scatter { root } => (own == root, true),
                Call::Gather { root } | Call::Reduce { root, .. } => (true, own == root),
                Call::Message { .. } => (index == 0, index == 1),
                _ => (true, true),
            };
            let mut seat = Seat {
                stream: self.stream(captured),
                send: None,
                recv: None,
                scalar: None,
                decoy: None,
            };
            if sends && receives && in_place && call != Call::AllToAll {
                let whole =
                    self.free_place(used, rank, captured, dtype, bytes(sent.max(received)), true)?;
                let own_part =
                    Place { start: whole.start + own * bytes(1), bytes: bytes(1), ..whole };
                seat.send = Some(if received > sent { own_part } else { whole });
                seat.recv = Some(if sent > received { own_part } else { whole });
            } else {
                if sends {
                    let size = bytes(sent);
                    seat.send = Some(self.free_place(used, rank, captured, dtype, size, fresh)?);
                }
                if receives {
                    let size = bytes(received);
                    seat.recv = Some(self.free_place(used, rank, captured, dtype, size, true)?);
                }
            }
            if reduction == Some(Reduction::PreMulDevice) {
                let size = dtype.size();
                seat.scalar = Some(self.free_place(used, rank, captured, dtype, size, fresh)?);
            }
            let is_message = matches!(call, Call::Message { .. });
            if !is_message && (!sends || !receives) && self.random.one_in(4) {
                let area = self.device_area(rank, captured);
                seat.decoy = self.place(rank, area, dtype.size(), dtype.size());
            }
            op.seats.push(seat);
        }
        Some(op)
    }

    fn reduction(&mut self, dtype: DType, size: usize) -> Reduction {
        let reduction = self.random.of(&[
            Reduction::Avg,
            Reduction::Max,
            Reduction::Min,
            Reduction::PreMulDevice,
            Reduction::PreMulHost,
            Reduction::Prod,
            Reduction::Sum,
            Reduction::Sum,
        ]);
        // 1/size has to be exact.
        let inexact = dtype.is_float() && !size.is_power_of_two();
        if reduction == Reduction::Avg && inexact { Reduction::Sum } else { reduction }
    }

    /// Memory of a rank that nothing else in the group uses.
    fn free_place(
        &mut self,
        used: &mut Used,
        rank: usize,
        captured: bool,
        dtype: DType,
        bytes: usize,
        writes: bool,
    ) -> Option<Place> {
        for _ in 0..8 {
            let area = self.device_area(rank, captured);
            let Some(place) = self.place(rank, area, dtype.size(), bytes) else { continue };
            let place = Place { bytes, ..place };
            let (reads, written) = &mut used.0[rank];
            let apart = |others: &[Place]| !others.iter().any(|other| other.overlaps(place));
            if apart(written) && (!writes || apart(reads)) {
                if writes { written } else { reads }.push(place);
                return Some(place);
            }
        }
        None
    }

    /// A place of an area with room for so many bytes, as long as chance has it where that is 0.
    fn place(&mut self, rank: usize, area: usize, align: usize, bytes: usize) -> Option<Place> {
        let whole = self.program.area_bytes;
        if bytes > whole || !self.areas[rank][area] {
            return None;
        }
        let random = &mut self.random;
        let start = match random.below(4) {
            0 => 0,
            1 => whole - bytes,
            _ => random.below(whole - bytes + 1),
        };
        let start = start / align * align;
        let length = if bytes > 0 { bytes } else { random.below(whole - start + 1) };
        Some(Place { area, start, bytes: length })
    }

    fn stream(&mut self, captured: bool) -> usize {
        match captured {
            true => 1 + self.random.below(self.program.streams - 1),
            false => self.random.below(self.program.streams),
        }
    }

    fn device_area(&mut self, rank: usize, lasting: bool) -> usize {
        let areas = if lasting { LASTING } else { self.areas[rank].len() };
        let area = 1 + self.random.below(areas - 1);
        if self.areas[rank][area] { area } else { 1 }
    }

    fn define(&mut self) -> Option<What> {
        let ranks = self.program.ranks;
        let graph = self.next_graph;
        self.next_graph += 1;
        let steps = 1 + self.random.below(6);
        let mut body = Vec::new();
        for _ in 0..steps {
            let rank = self.random.below(ranks);
            let local = self.random.one_in(3);
            let what = if local { self.local(rank, true) } else { self.meet(true) };
            let salt = self.random.next();
            body.extend(what.map(|what| Step { salt, what }));
        }
        let origins = (0..ranks).map(|_| (!self.random.one_in(4)).then(|| self.stream(true)));
        let origins = origins.collect();
        if body.is_empty() {
            return None;
        }
        let comms = body.iter().flat_map(|step| match &step.what {
            What::Meet { ops, .. } => ops.iter().map(|op| op.comm).collect(),
            _ => Vec::new(),
        });
        self.graphs.push((graph, comms.collect()));
        Some(What::Define { graph, origins, body })
    }

    fn alloc_or_free(&mut self, rank: usize, stream: usize) -> Option<What> {
        let there = |area: &usize| self.areas[rank][*area];
        let passing: Vec<_> = (LASTING..self.areas[rank].len()).filter(there).collect();
        if passing.is_empty() || self.random.one_in(2) {
            let area = self.areas[rank].len();
            self.areas[rank].push(true);
            let value = self.random.next() as u8;
            return Some(What::Alloc { rank, area, value, stream });
        }
        let area = self.random.of(&passing);
        self.areas[rank][area] = false;
        Some(What::Free { rank, area, stream })
    }

    fn split(&mut self) -> Option<What> {
        if self.program.comms.len() > 8 {
            return None;
        }
        let parent = self.random.of(&self.alive);
        let members = self.program.comms[parent].clone();
        let colors = 1 + self.random.below(3) as u32;
        let parts: Vec<_> = members
            .iter()
            .map(|_| {
                let takes_part = !self.random.one_in(6);
                let color = self.random.below(colors as usize) as u32;
                takes_part.then(|| (color, self.random.below(4) as i32 - 2))
            })
            .collect();
        let mut children = Vec::new();
        for color in 0..colors {
            let mut chosen: Vec<_> = (0..members.len())
                .filter_map(|own| {
                    parts[own].filter(|part| part.0 == color).map(|part| (part.1, own))
                })
                .collect();
            chosen.sort_unstable();
            if !chosen.is_empty() {
                let child = chosen.into_iter().map(|(_, own)| members[own]).collect();
                children.push((color, self.new_comm(child)));
            }
        }
        Some(What::Split { parent, parts, children })
    }

    fn join(&mut self) -> Option<What> {
        let mut ranks: Vec<_> = (0..self.program.ranks).collect();
        for last in (1..ranks.len()).rev() {
            ranks.swap(last, self.random.below(last + 1));
        }
        ranks.truncate(1 + self.random.below(ranks.len()));
        Some(What::Join { comm: self.new_comm(ranks) })
    }

    fn shrink(&mut self) -> Option<What> {
        let parent = self.random.of(&self.alive);
        let mut members = self.program.comms[parent].clone();
        if members.len() < 2 {
            return None;
        }
        members.remove(self.random.below(members.len()));
        Some(What::Shrink { parent, child: self.new_comm(members) })
    }

    fn finalize(&mut self) -> Option<What> {
        if self.alive.len() < 2 {
            return None;
        }
        let comm = self.alive.remove(1 + self.random.below(self.alive.len() - 1));
        self.graphs.retain(|(_, comms)| !comms.contains(&comm));
        Some(What::Finalize { comm })
    }

    fn new_comm(&mut self, members: Vec<usize>) -> usize {
        self.program.comms.push(members);
        let comm = self.program.comms.len() - 1;
        self.alive.push(comm);
        comm
    }
}
