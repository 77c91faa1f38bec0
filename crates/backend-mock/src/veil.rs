//! The guard `protect`: which bytes the program may not touch now, and what it touched all the same.
//!
//! Each range that a pending operation reads or writes is a *veil* from the call on. It is lifted when
//! the host knows that the operation is done: not when it is done, since a program that reads its
//! results then, and has not waited, is right only on a machine that is as fast. What the host knows is what the
//! [clocks](crate::race) of streams, events, graphs and waits say. They are kept apart from those
//! that look for races, because one edge is left out: that operations of different ranks met. A peer
//! whose operation is done tells nothing about one's own stream.
//!
//! Pages can be closed to loads and stores, or to stores. So a page is closed as much as the strictest
//! veil on it demands; a touch of a byte that no veil covers opens the page until the next call, and is no
//! fault of the program.

use std::{ops::Range, sync::Arc};

use crate::{
    footprint::{Footprint, overlap},
    mirror::{Mirror, most_mappings},
    pending::stream_name,
    race::{Actor, Races},
    slab::Key,
};

/// What the program may do with memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Open {
    No,
    Read,
    ReadWrite,
}

/// All veils of an engine. Addresses are the engine's.
pub(crate) struct Veils {
    mirror: Arc<Mirror>,
    /// What the host knows.
    order: Races,
    veils: Vec<Veil>,
    /// Accesses that are still to be told.
    found: Vec<Trespass>,
    /// Veils that there may be.
    limit: usize,
    /// Whether it was said that not everything is covered.
    has_warned: bool,
}

struct Veil {
    range: Range<usize>,
    /// Whether the operation writes.
    writes: bool,
    /// The stream's number in clocks, and the place of the operation in it.
    spot: (u64, u64),
    /// How often memory had been taken from the program before.
    taken: u64,
    actor: Arc<Actor>,
}

/// An access of the program to memory that an operation has.
pub(crate) struct Trespass {
    pub(crate) actor: Arc<Actor>,
    pub(crate) message: String,
    pub(crate) hint: String,
}

impl Veils {
    pub(crate) fn new(mirror: Arc<Mirror>) -> Self {
        // Each splits a mapping in three at most.
        let limit = most_mappings() / 2;
        let (order, veils, found) = (Races::default(), Vec::new(), Vec::new());
        Self { mirror, order, veils, found, limit, has_warned: false }
    }

    /// The clocks, to be kept as those that look for races.
    pub(crate) fn order(&mut self) -> &mut Races {
        &mut self.order
    }

    /// Takes from the program what an entry of a stream reads and writes.
    pub(crate) fn cover(&mut self, (stream, at): (u32, u64), footprint: &Footprint, actor: Actor) {
        self.hear();
        let (actor, taken) = (Arc::new(actor), self.mirror.note_taking());
        let spot = (self.order.number(stream), at);
        let reads = footprint.reads.iter().map(|range| (range, false));
        let mut pages = Vec::new();
        for (range, writes) in reads.chain(footprint.writes.iter().map(|range| (range, true))) {
            let Some(under) = self.mirror.pages(range) else { continue };
            // Who knows that this one is done knows it of those before.
            self.veils.retain(|veil| {
                veil.spot.0 != spot.0
                    || (veil.writes && !writes)
                    || veil.range.start < range.start
                    || range.end < veil.range.end
            });
            if self.veils.len() >= self.limit {
                self.warn("there are too many");
                continue;
            }
            let (range, actor) = (range.clone(), Arc::clone(&actor));
            self.veils.push(Veil { range, writes, spot, taken, actor });
            pages.push(under);
        }
        self.apply(pages);
    }

    /// Gives back what operations have that the host knows to be done.
    pub(crate) fn lift_known(&mut self) {
        self.lift(|veil, order| order.is_known(veil.spot));
    }

    /// Gives back what a communicator's operations have, which is of no more use.
    pub(crate) fn lift_comm(&mut self, comm: Key) {
        self.lift(|veil, _| veil.actor.comm == Some(comm));
    }

    /// Gives back what a stream had that nobody can wait for any more.
    pub(crate) fn lift_stream(&mut self, stream: u32) {
        let number = self.order.number(stream);
        self.lift(|veil, _| veil.spot.0 == number);
    }

    /// Gives back memory that becomes other memory.
    pub(crate) fn lift_memory(&mut self, range: &Range<usize>) {
        self.lift(|veil, _| overlap(&veil.range, range));
    }

    fn lift(&mut self, is_over: impl Fn(&Veil, &Races) -> bool) {
        if self.veils.is_empty() {
            return;
        }
        self.hear();
        let Self { mirror, order, veils, .. } = self;
        let over = veils.extract_if(.., |veil| is_over(veil, order));
        let pages = over.filter_map(|veil| mirror.pages(&veil.range)).collect();
        self.apply(pages);
    }

    /// Whether there is anything to tell.
    pub(crate) fn has_news(&self) -> bool {
        self.mirror.has_news() || !self.found.is_empty()
    }

    /// What there is to tell.
    pub(crate) fn take_found(&mut self) -> Vec<Trespass> {
        self.hear();
        std::mem::take(&mut self.found)
    }

    /// Looks what the program has touched since the last time. Comes before any veil changes, since
    /// those are meant that there are now.
    fn hear(&mut self) {
        if !self.mirror.has_news() {
            return;
        }
        let (touches, lost) = self.mirror.take_touches();
        let mut pages = Vec::new();
        for touch in touches {
            let is_hit = |veil: &Veil| {
                veil.range.contains(&touch.address)
                    && veil.taken < touch.taken
                    && (veil.writes || touch.stores == Some(true))
            };
            let hits = (0..self.veils.len()).filter(|&index| is_hit(&self.veils[index]));
            // What is written is not to be touched at all, which says more.
            let Some(hit) = hits.min_by_key(|&index| !self.veils[index].writes) else {
                // It opened a page that may be somebody's.
                pages.extend(self.mirror.pages(&(touch.address..touch.address + 1)));
                continue;
            };
            let veil = self.veils.remove(hit);
            self.found.push(self.trespass(&veil, touch.address, touch.stores));
            // Once is enough.
            pages.extend(self.mirror.pages(&veil.range));
        }
        if lost {
            pages = self.veils.iter().filter_map(|veil| self.mirror.pages(&veil.range)).collect();
        }
        self.apply(pages);
    }

    fn trespass(&self, veil: &Veil, address: usize, stores: Option<bool>) -> Trespass {
        let Veil { range, writes, actor, .. } = veil;
        let verb = match stores {
            Some(true) => "writes",
            Some(false) => "reads",
            None => "touches",
        };
        let start = std::ptr::with_exposed_provenance_mut(range.start);
        let message = format!(
            "the program {verb} byte {} of the {} bytes at {:p} that {} ({}) on {} of device {} {}, and \
             does not know yet that it is done",
            address - range.start,
            range.len(),
            self.mirror.outer(start),
            actor.what,
            actor.site,
            stream_name(actor.raw, actor.in_graph),
            actor.device,
            if *writes { "writes" } else { "reads" },
        );
        let what = if *writes { "reads or writes that memory" } else { "writes to that memory" };
        let wait = stream_name(actor.raw, false);
        let hint = format!(
            "wait for {wait} (synchronize it, or an event behind the operation) before the program {what}"
        );
        Trespass { actor: Arc::clone(actor), message, hint }
    }

    /// Opens and closes pages as the veils on them demand.
    fn apply(&mut self, mut pages: Vec<Range<usize>>) {
        pages.sort_unstable_by_key(|range| range.start);
        let mut pages = pages.into_iter().peekable();
        while let Some(mut range) = pages.next() {
            while let Some(next) = pages.next_if(|next| next.start <= range.end) {
                range.end = range.end.max(next.end);
            }
            let on_it = self.veils.iter().filter_map(|veil| {
                let under =
                    self.mirror.pages(&veil.range).filter(|under| overlap(under, &range))?;
                Some((under.start.max(range.start)..under.end.min(range.end), veil.writes))
            });
            for (part, open) in parts(&range, on_it) {
                let Err(error) = self.mirror.set(&part, open) else { continue };
                if open == Open::ReadWrite && self.mirror.open_all().is_err() {
                    tracing::error!(%error, "device memory stays closed to the program");
                }
                self.warn(&error.to_string());
            }
        }
    }

    fn warn(&mut self, why: &str) {
        if !std::mem::replace(&mut self.has_warned, true) {
            tracing::warn!(
                why,
                "not all buffers of pending operations can be protected, so accesses may go unseen; \
                 vm.max_map_count limits how many"
            );
        }
    }
}

impl Drop for Veils {
    fn drop(&mut self) {
        if crate::fork::in_forked_child() {
            return;
        }
        for Trespass { message, .. } in self.take_found() {
            // The program has not waited since, so this is the only place left to say it.
            tracing::error!("{message}");
            let _ = std::io::Write::write_fmt(
                &mut std::io::stderr(),
                format_args!("collectives mock: {message}\n"),
            );
        }
    }
}

/// Cuts pages where what the program may do with them changes. `veils` are within, each with whether
/// its operation writes.
fn parts(
    pages: &Range<usize>,
    veils: impl Iterator<Item = (Range<usize>, bool)>,
) -> Vec<(Range<usize>, Open)> {
    // Where something begins or ends, and by how much the numbers of readers and writers change.
    let mut steps = vec![(pages.end, 0, 0)];
    for (range, writes) in veils {
        let (reader, writer) = (i32::from(!writes), i32::from(writes));
        steps.push((range.start, reader, writer));
        steps.push((range.end, -reader, -writer));
    }
    steps.sort_unstable_by_key(|step| step.0);
    let mut parts: Vec<(Range<usize>, Open)> = Vec::new();
    let (mut at, mut readers, mut writers) = (pages.start, 0, 0);
    for (place, reader, writer) in steps {
        if place > at {
            let open = match (readers, writers) {
                (0, 0) => Open::ReadWrite,
                (_, 0) => Open::Read,
                _ => Open::No,
            };
            match parts.last_mut() {
                Some((range, last)) if *last == open => range.end = place,
                _ => parts.push((at..place, open)),
            }
            at = place;
        }
        readers += reader;
        writers += writer;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_as_closed_as_the_strictest_veil_demands() {
        let veils = [(10..40, false), (20..30, true), (30..50, false), (60..70, true)];
        let parts = parts(&(0..100), veils.into_iter());
        let want = [
            (0..10, Open::ReadWrite),
            (10..20, Open::Read),
            (20..30, Open::No),
            (30..50, Open::Read),
            (50..60, Open::ReadWrite),
            (60..70, Open::No),
            (70..100, Open::ReadWrite),
        ];
        assert_eq!(parts, want);
    }

    #[test]
    fn what_nobody_has_is_open() {
        assert_eq!(parts(&(3..9), [].into_iter()), [(3..9, Open::ReadWrite)]);
        let all = [(3..9, true), (3..9, false)].into_iter();
        assert_eq!(parts(&(3..9), all), [(3..9, Open::No)]);
    }
}
