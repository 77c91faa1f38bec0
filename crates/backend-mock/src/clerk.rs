//! Verdicts where ranks are processes: what an engine does of what is agreed in
//! [`crate::process::verdicts`].

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use crate::{
    engine::Engine,
    process::{
        peer::{Peer, Process, Token},
        verdicts::{
            Answer, Answers, Desk, Part, Roll, Ruling, ask_all, confirmed, is_ours_to_ask, rule,
        },
    },
    scene::Job,
    slab::Key,
    state::State,
    threads,
    verdict::{Action, Verdict},
    watch::Found,
};

/// The thread that answers for its process, whatever the other threads do.
pub(crate) struct Clerk {
    pub(crate) engine: Weak<Engine>,
    pub(crate) process: Arc<Process>,
    pub(crate) stopped: Arc<AtomicBool>,
}

/// Whose rulings are read.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
enum Source {
    /// A process that was met.
    Met(Token),
    /// A process of the same job, by its seat.
    Seat(usize),
}

impl Clerk {
    /// Has the clerk of a process look whether it is stopped.
    pub(crate) fn wake(process: &Process) {
        if let Some(desk) = Desk::of(process.own()) {
            desk.bell().ring();
        }
    }

    /// Serves until it is stopped, or the engine ends.
    pub(crate) fn run(&self) {
        threads::enlist_watcher();
        let Some(desk) = Desk::of(self.process.own()) else { return };
        let mut read = HashMap::new();
        while !self.stopped.load(Ordering::Acquire) {
            let seen = desk.bell().state();
            match self.engine.upgrade() {
                Some(engine) => engine.attend(&self.process, &desk, &mut read),
                None => return,
            }
            desk.bell().sleep(seen, None);
        }
    }
}

impl Engine {
    /// Says whether somebody here seems to wait in vain.
    pub(crate) fn suspect(&self, suspicious: bool) {
        if let Some(desk) = self.process.as_ref().and_then(|process| Desk::of(process.own())) {
            desk.suspect(suspicious);
        }
    }

    /// Somebody waits in vain, unless ranks of other processes act: asks those.
    pub(crate) fn inquire(&self) -> Found {
        let Some(process) = &self.process else { return Found::Slow };
        self.suspect(true);
        let (peers, roll) = (self.others(), self.call_the_roll());
        let others = self.desks(&peers, roll.as_ref());
        if !is_ours_to_ask(process.own(), &others) {
            return Found::Slow;
        }
        let has_ended = |token: &Token| {
            let is_told = |roll: &Roll| process.roster().is_some_and(|on| roll.has_left(token, on));
            roll.as_ref().is_some_and(is_told)
                || peers.iter().any(|peer| peer.token() == *token && peer.has_ended())
        };
        // One that ends while it is asked is what others may have waited for: the next roll has it.
        let nothing = || match others.keys().any(has_ended) {
            true => Found::Progress,
            false => Found::Slow,
        };
        let ask = || -> Answers {
            let mut answers = ask_all(&others, has_ended);
            answers.insert(process.own().token(), self.testify());
            answers
        };
        let first = ask();
        if rule(&first, roll.as_ref()).is_empty() {
            return nothing();
        }
        let rulings = rule(&confirmed(&first, ask()), roll.as_ref());
        let Some(desk) = Desk::of(process.own()).filter(|_| !rulings.is_empty()) else {
            return nothing();
        };
        desk.publish(&rulings);
        others.values().for_each(|desk| desk.bell().ring());
        let own = rulings.into_iter().find(|ruling| ruling.process == process.own().token());
        own.into_iter().for_each(|ruling| self.obey(ruling));
        Found::Progress
    }

    /// The job that this process belongs to, if all who could come to a join of its ranks have ended
    /// or can be asked.
    pub(crate) fn job_if_all_can_be_asked(&self) -> Option<Job> {
        self.call_the_roll()?.answered(|_| true)
    }

    /// Who has ended of the processes of its job, and who can be asked.
    fn call_the_roll(&self) -> Option<Roll> {
        Roll::call(self.process.as_ref()?.roster()?)
    }

    /// Where others are asked that live: those that this process has met, and those of its job.
    fn desks<'a>(&self, peers: &'a [Arc<Peer>], roll: Option<&Roll>) -> BTreeMap<Token, Desk<'a>> {
        let (ended, living): (Vec<_>, Vec<_>) = peers.iter().partition(|peer| peer.has_ended());
        let met = living.into_iter().filter_map(|peer| Some((peer.token(), Desk::of(peer)?)));
        let mut desks: BTreeMap<_, _> = met.collect();
        let Some((process, roll)) = self.process.as_ref().zip(roll) else { return desks };
        let Some(roster) = process.roster() else { return desks };
        // The launcher may not have told yet of one that has ended.
        let is_over = |token| ended.iter().any(|peer| peer.token() == token);
        let is_other = |token| token != process.own().token() && !is_over(token);
        let others = roll.here().filter(|&(_, token)| is_other(token));
        desks.extend(others.filter_map(|(seat, token)| Some((token, roster.desk(seat)?))));
        desks
    }

    /// Answers what this process is asked, and does what others have found that it has to do. `read`
    /// says which of their rulings are known.
    fn attend(&self, process: &Process, desk: &Desk<'_>, read: &mut HashMap<Source, u32>) {
        desk.serve(|| self.testify());
        let (peers, roster) = (self.others(), process.roster());
        let met = peers.iter().filter(|peer| {
            let is_on = |roster| peer.exit().is_some_and(|exit| exit.has_desk_on(roster));
            !roster.is_some_and(is_on)
        });
        let met = met.filter_map(|peer| Some((Source::Met(peer.token()), Desk::of(peer)?)));
        // Also of those that have ended: what they found is true.
        let seats = roster.into_iter().flat_map(|roster| {
            let desk = |seat| Some((Source::Seat(seat), roster.desk(seat)?));
            (0..roster.seats().len()).filter_map(desk)
        });
        for (source, desk) in met.chain(seats) {
            let edition = desk.edition();
            if read.get(&source).copied().unwrap_or(0) == edition {
                continue;
            }
            // Where it is just being written, the bell is rung afterwards.
            let ruling = desk.ruling(&process.own().token());
            if desk.edition() == edition {
                read.insert(source, edition);
                ruling.into_iter().for_each(|ruling| self.obey(ruling));
            }
        }
    }

    /// The processes that have ranks in communicators of this one, some of which may have ended.
    fn others(&self) -> Vec<Arc<Peer>> {
        self.watch(|state| state.others())
    }

    fn testify(&self) -> Answer {
        self.witness(|_, statement| {
            let is_sure = (statement.is_sure)();
            Answer::new(statement.snapshot, statement.quiet.as_ref(), is_sure)
        })
    }

    /// Does this process's part, if it has not moved; or notes it, where others were quicker, and what
    /// they did has come here.
    fn obey(&self, ruling: Ruling) {
        let Ruling { mark, mut parts, .. } = ruling;
        for _ in 0..TRIES {
            self.witness(|state, statement| {
                let is_sure = (statement.is_sure)();
                let answer = Answer::new(statement.snapshot, statement.quiet.as_ref(), is_sure);
                if is_sure && answer.mark == mark {
                    for Part { verdict, actions } in parts.drain(..) {
                        self.carry_out(state, verdict, actions.into_iter());
                    }
                }
                parts.retain(|part| {
                    let is_done = state.is_done(&part.actions);
                    if is_done {
                        self.catch_up(state, part);
                    }
                    !is_done
                });
            });
            // Those who were told wake up.
            self.with(|_| ());
            if parts.is_empty() {
                return;
            }
            // Void, or others are just doing it.
            thread::sleep(PAUSE);
        }
        self.witness(|state, _| parts.iter().for_each(|part| self.end_joins(state, part)));
    }

    /// Others were quicker.
    fn catch_up(&self, state: &mut State, part: &Part) {
        self.end_joins(state, part);
        if let Some(verdict) = &part.verdict {
            state.take_note(verdict, &part.actions);
        }
    }

    /// Ends the joins of a verdict, whatever has moved since: it was true when they had begun, and the
    /// others have been told by now and won't come.
    fn end_joins(&self, state: &mut State, part: &Part) {
        let open = part.actions.iter().filter_map(|action| match *action {
            Action::CallOffJoin { id, visits } => Some((id, visits)),
            _ => None,
        });
        let mut open =
            open.filter(|&(id, visits)| self.meetings.across.is_open(id, visits)).peekable();
        if let Some(verdict) = part.verdict.as_ref().filter(|_| open.peek().is_some()) {
            state.note_once(verdict);
            let failure = verdict.failure();
            open.for_each(|(id, visits)| self.meetings.call_off(id, visits, &failure));
        }
    }
}

impl State {
    /// Keeps a verdict that was carried out by others, unless it is known here, or another one was
    /// carried out. Only shrinks end in each process for itself.
    fn take_note(&mut self, verdict: &Verdict, actions: &[Action]) {
        let (text, mut is_ours) = (verdict.to_string(), false);
        for action in actions {
            match *action {
                Action::CallOffShrink { comm, number } => {
                    self.call_off_shrink(comm, number, &verdict.failure());
                    is_ours = true;
                }
                Action::FailComm { comm } => is_ours |= self.has_failed_with(comm, &text),
                _ => {}
            }
        }
        if is_ours {
            self.note_once(verdict);
        }
    }

    /// Whether this text is why a communicator has failed.
    fn has_failed_with(&self, comm: Key, text: &str) -> bool {
        let ends = self.comms.get(comm).into_iter().flat_map(|comm| &comm.ends);
        let mut failures = ends.filter_map(|end| end.shared.remote_failure());
        failures.any(|failure| failure.plain().message().starts_with(text))
    }

    /// Whether all communicators that are to fail have failed, if there are any. A join ends in each
    /// process for itself.
    fn is_done(&self, actions: &[Action]) -> bool {
        let has_failed = |comm| self.comms.get(comm).is_some_and(|comm| comm.broken);
        let mut outcomes = actions.iter().filter_map(|action| match *action {
            Action::FailComm { comm } => Some(has_failed(comm)),
            Action::CallOffJoin { .. } => Some(true),
            _ => None,
        });
        outcomes.clone().next().is_some() && outcomes.all(|is_done| is_done)
    }
}

/// Looks whether a ruling can be obeyed, and the time between them.
const TRIES: usize = 10;
const PAUSE: Duration = Duration::from_millis(1);
