//! How processes find one another, with nothing but a token that all of them know.
//!
//! The token makes a name of a socket in the abstract namespace, which the kernel forgets with its
//! last holder. Whoever binds it first is the *host*, and stays in [`meet`] like all the others, who
//! connect to it as *guests*.
//!
//! 1. A guest says which seat it takes, and hands over what makes it a [`Peer`], and its payload.
//! 2. When all seats are taken, the host makes the board, and sends everybody's to everybody.
//! 3. Each maps what it has got, and says that it is ready, or why it can't be. From here on no seat
//!    is missing, which everybody notes before it says so.
//! 4. When all are ready the host says so, and the meeting is made.
//!
//! Up to 2 a guest can give up: it asks the host, who frees its seat; the answer tells whether it was
//! in time. A host that gives up says so and closes the socket; its guests then race to bind the name
//! anew, so one of them is the next host. Deadlines are everybody's own. Who dies in between is seen
//! by the host, who tells all; that a host has died its guests see for themselves.
//!
//! Processes in different network namespaces don't find one another; each then waits until it is
//! late. Those of other users are turned away.

use std::{
    fmt::{self, Write as _},
    io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use super::{
    guest::{self, Attended},
    host,
    peer::{Peer, Process, Token},
    shared::Shared,
    wire::{self, MOST_PAYLOAD, Member},
};

/// What a process wants to meet for. Several threads of it may call at once, each for a seat of its
/// own.
pub(crate) struct Call<'a> {
    /// Whose calls belong together.
    pub(crate) token: Token,
    /// Below `seats`.
    pub(crate) seat: u32,
    pub(crate) seats: u32,
    /// What the others are to know; at most 32 KiB.
    pub(crate) payload: &'a [u8],
    /// Size of the memory that all get; all say the same.
    pub(crate) board_bytes: usize,
    pub(crate) until: Option<Instant>,
    /// Looked at every few milliseconds.
    pub(crate) cancelled: &'a dyn Fn() -> bool,
    /// Called once all have come: in each process before any of them goes on.
    pub(crate) complete: &'a dyn Fn(),
}

/// A meeting that was made.
pub(crate) struct Met {
    /// Fresh memory, all zero, that all have mapped.
    pub(crate) board: Arc<Shared>,
    /// By seat, like the peers. Seats of one process have the same peer.
    pub(crate) payloads: Vec<Vec<u8>>,
    pub(crate) peers: Vec<Arc<Peer>>,
}

/// Why a meeting was not made.
#[derive(Debug)]
pub(crate) enum Missed {
    /// The caller said so.
    Cancelled,
    /// Sizes differ, a seat is taken, or a member can't take part. The text says which, and by whom.
    Disagree(String),
    /// A process ended before all were there. Its seat is unknown where it ended before it could say.
    Died { seat: Option<u32>, pid: u32 },
    /// The deadline passed. By seat, whether somebody has been there in the meantime, even if that
    /// one gave up, too.
    Late { came: Vec<bool> },
    /// What the system refused to this process.
    System { what: &'static str, error: io::Error },
}

/// Waits until all seats are taken, and answers with what all of them brought.
pub(crate) fn meet(process: &Process, call: Call<'_>) -> Result<Met, Missed> {
    let Call { token, seat, seats, payload, board_bytes, .. } = call;
    if seat >= seats || seats as usize > MOST_PAYLOAD {
        return Err(Missed::Disagree(format!("seat {seat} of {seats}, at most {MOST_PAYLOAD}")));
    }
    if payload.len() > MOST_PAYLOAD {
        let bytes = payload.len();
        return Err(Missed::Disagree(format!("{bytes} bytes of payload, at most {MOST_PAYLOAD}")));
    }
    if seats == 1 {
        let (board, _) = Shared::create(BOARD, board_bytes).map_err(system("board"))?;
        let (payloads, peers) = (vec![payload.to_vec()], vec![Arc::clone(process.own())]);
        return Ok(Met { board: Arc::new(board), payloads, peers });
    }
    let mut came = vec![false; seats as usize];
    came[seat as usize] = true;
    let name = name(&token);
    let mut attempt = Attempt { process, call, came };
    loop {
        if let Some(listener) = wire::listen(&name).map_err(system("listen"))? {
            return host::host(&mut attempt, listener);
        }
        if let Some(link) = wire::connect(&name).map_err(system("connect"))? {
            match guest::attend(&mut attempt, &link)? {
                Attended::Met(met) => return Ok(met),
                Attended::HostLeft => {}
            }
        }
        if let Some(missed) = attempt.given_up() {
            return Err(missed);
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// One call, through all hosts that it meets.
pub(super) struct Attempt<'a> {
    pub(super) process: &'a Process,
    pub(super) call: Call<'a>,
    /// By seat, whether somebody was seen there.
    pub(super) came: Vec<bool>,
}

impl Attempt<'_> {
    /// Why not to wait any longer, if so.
    pub(super) fn given_up(&self) -> Option<Missed> {
        if (self.call.cancelled)() {
            return Some(Missed::Cancelled);
        }
        let late = self.call.until.is_some_and(|until| until <= Instant::now());
        late.then(|| Missed::Late { came: self.came.clone() })
    }

    /// How long to sleep at most.
    pub(super) fn pause(&self) -> Duration {
        let left = self.call.until.map(|until| until.saturating_duration_since(Instant::now()));
        // A whole millisecond, so that a deadline that is near is not polled for.
        left.map_or(TICK, |left| left.clamp(Duration::from_millis(1), TICK))
    }

    /// Notes who was seen.
    pub(super) fn note(&mut self, came: &[bool]) {
        self.came.iter_mut().zip(came).for_each(|(known, &came)| *known |= came);
    }

    /// This process, as a member.
    pub(super) fn member(&self) -> Member {
        let own = self.process.own();
        Member {
            seat: self.call.seat,
            pid: own.pid(),
            token: own.token(),
            segment_bytes: self.process.segment().bytes() as u64,
            payload: self.call.payload.to_vec(),
        }
    }
}

impl fmt::Display for Missed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cancelled => f.write_str("cancelled"),
            Self::Disagree(text) => f.write_str(text),
            Self::Died { seat: Some(seat), pid } => {
                write!(f, "seat {seat} (pid {pid}) ended before all had come")
            }
            Self::Died { seat: None, pid } => {
                write!(f, "pid {pid} ended before all had come")
            }
            Self::Late { came } => {
                let (mut here, mut missing) = (String::new(), String::new());
                for (seat, &came) in came.iter().enumerate() {
                    let list = if came { &mut here } else { &mut missing };
                    let comma = if list.is_empty() { "" } else { ", " };
                    write!(list, "{comma}{seat}")?;
                }
                let missing = if missing.is_empty() { "none" } else { &missing };
                write!(f, "late: came {here}; missing {missing}")
            }
            Self::System { what, error } => write!(f, "{what}: {error}"),
        }
    }
}

/// Makes an error of the system the reason.
pub(super) fn system<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Missed {
    move |error| Missed::System { what, error: error.into() }
}

/// The name under which those with a token meet.
fn name(token: &Token) -> Vec<u8> {
    format!("collectives-mock-{:032x}", u128::from_be_bytes(*token)).into_bytes()
}

/// How often a wait looks whether it is cancelled.
const TICK: Duration = Duration::from_millis(5);

/// How much longer than its deadline one waits for an answer that should come at once: the other side
/// may be stopped.
pub(super) const GRACE: Duration = Duration::from_secs(1);

/// What the board is called in `/proc`.
pub(super) const BOARD: &str = "collectives-board";
