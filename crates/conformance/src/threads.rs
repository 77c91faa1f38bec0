//! Ranks as threads. They cannot be ended, so when one is stuck, the process ends.

use std::{
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Instant,
};

use collectives_core::Backend;

use crate::{
    post::{Order, Post, Report, Watch},
    seat::Seat,
    world::Hands,
};

/// One thread per rank.
pub(crate) struct Threads {
    seats: Vec<(Sender<Order>, Arc<Watch>)>,
    reports: Receiver<(usize, Report)>,
}

impl Threads {
    /// Starts the ranks, each on its device of `devices`.
    pub(crate) fn start<B: Backend>(
        world: &str,
        backend: &B,
        devices: &[usize],
    ) -> Result<Self, String> {
        let (sender, reports) = channel();
        let mut seats = Vec::new();
        for rank in 0..devices.len() {
            let (order, orders) = channel();
            let (sender, watch) = (sender.clone(), Arc::new(Watch::new()));
            // Nobody listens only when the process is about to end.
            let report = Box::new(move |report| drop(sender.send((rank, report))));
            let post = Post { rank, orders, report, watch: Arc::clone(&watch) };
            let seat = Seat { backend: backend.clone(), devices: devices.to_vec(), post };
            thread::Builder::new()
                .name(format!("{world} rank {rank}"))
                .spawn(move || seat.serve())
                .map_err(|error| format!("cannot start a thread: {error}"))?;
            seats.push((order, watch));
        }
        Ok(Self { seats, reports })
    }
}

impl Hands for Threads {
    fn order(&mut self, rank: usize, order: Order) {
        // A thread that is gone has reported why.
        let _ = self.seats[rank].0.send(order);
    }

    fn hear(&mut self, until: Instant) -> Option<(usize, Report)> {
        self.reports.recv_timeout(until.saturating_duration_since(Instant::now())).ok()
    }

    fn abort_all(&mut self) {
        self.seats.iter().for_each(|(_, watch)| watch.abort());
    }

    fn describe(&mut self, rank: usize) -> String {
        self.seats[rank].1.calls.describe()
    }

    fn end(&mut self, report: String) -> String {
        eprintln!("\n{report}");
        // Not `exit`: a vendor's exit handlers may wait for the very work that is stuck.
        std::process::abort()
    }
}
