//! Ranks as processes of this executable, each with a harness of its own.

use std::{
    process::exit,
    sync::{Arc, mpsc::channel},
    time::{Duration, Instant},
};

use collectives_crew::{Crew, Event, Member, this_program};
use serde::{Deserialize, Serialize};

use crate::{
    Harness,
    post::{Order, Post, Report, Watch},
    seat::Seat,
    world::Hands,
};

/// One process per rank.
pub(crate) struct Processes(Crew<FromRank>);

#[derive(Debug, Deserialize, Serialize)]
enum ToRank {
    Abort,
    Describe,
    Order(Order),
}

#[derive(Debug, Deserialize, Serialize)]
enum FromRank {
    LastCall(String),
    Report(Report),
}

impl Processes {
    /// Starts the ranks of a world of the harness of this name.
    pub(crate) fn start<H: Harness>(harness: &H, size: usize) -> Result<Self, String> {
        let crew = Crew::start(&crew(&harness.name()), size, |rank| {
            let mut program = this_program()?;
            program.envs(harness.environment(rank));
            // Where no harness of that name finds the process, it runs no trials of its own.
            program.args(["--exact", "the rank of another process's world"]);
            Ok(program)
        });
        crew.map(Self).map_err(|error| format!("cannot start a process: {error}"))
    }
}

impl Hands for Processes {
    fn order(&mut self, rank: usize, order: Order) {
        self.0.tell(rank, &ToRank::Order(order));
    }

    fn hear(&mut self, until: Instant) -> Option<(usize, Report)> {
        loop {
            match self.0.next(Some(until))? {
                (rank, Event::Said(FromRank::Report(report))) => return Some((rank, report)),
                // It comes too late.
                (_, Event::Said(FromRank::LastCall(_))) => {}
                (rank, Event::Ended(end)) => {
                    let hint = if end.success() { UNCLAIMED } else { "" };
                    return Some((rank, Report::Gone(format!("its {end}{hint}"))));
                }
            }
        }
    }

    fn abort_all(&mut self) {
        self.0.tell_all(&ToRank::Abort);
    }

    fn describe(&mut self, rank: usize) -> String {
        let pid = self.0.pid(rank);
        self.0.tell(rank, &ToRank::Describe);
        let until = Instant::now() + ANSWER;
        while let Some((who, event)) = self.0.next(Some(until)) {
            match event {
                Event::Said(FromRank::LastCall(call)) if who == rank => {
                    return format!("(process {pid}) {call}");
                }
                Event::Ended(end) if who == rank => return format!("has ended: {end}"),
                Event::Said(_) | Event::Ended(_) => {}
            }
        }
        format!("(process {pid}) does not answer")
    }

    fn end(&mut self, report: String) -> String {
        self.0.kill();
        report
    }
}

/// Serves as a rank and ends the process, if it was started for a world of this harness.
pub(crate) fn serve_if_rank<H: Harness>(harness: &H) {
    let member = match Member::here(&crew(&harness.name())) {
        Ok(Some(member)) => member,
        Ok(None) => return,
        Err(error) => {
            eprintln!("{error}");
            exit(1);
        }
    };
    let (order, orders) = channel();
    let watch = Arc::new(Watch::new());
    let watched = Arc::clone(&watch);
    let listening = member.listen(move |message| match message {
        ToRank::Abort => watched.abort(),
        ToRank::Describe => member.tell(&FromRank::LastCall(watched.calls.describe())),
        // The rank takes no more orders once it has taken leave.
        ToRank::Order(message) => drop(order.send(message)),
    });
    if let Err(error) = listening {
        eprintln!("{error}");
        exit(1);
    }
    let report = Box::new(|report| member.tell(&FromRank::Report(report)));
    let post = Post { rank: member.rank(), orders, report, watch };
    let devices = harness.devices(member.size());
    Seat { backend: harness.backend(), devices, post }.serve();
    exit(0)
}

fn crew(harness: &str) -> String {
    format!("conformance, {harness}")
}

const UNCLAIMED: &str = "; its `main` has to come by `trials` with a harness of the same name, and that without arguments";

/// How long a rank may take to say what it does; it has a thread for that alone.
const ANSWER: Duration = Duration::from_secs(1);
