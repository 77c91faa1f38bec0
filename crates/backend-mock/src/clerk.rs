//! Verdicts where ranks are processes: what an engine does of what is agreed in
//! [`crate::process::verdicts`].

use std::{
    collections::HashMap,
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
        verdicts::{Answer, Answers, Desk, Part, Ruling, ask_all, confirmed, is_ours_to_ask, rule},
    },
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

impl Clerk {
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
        let mut peers = self.others();
        peers.retain(|peer| !peer.has_ended());
        let others = || peers.iter().map(|peer| &**peer);
        if !is_ours_to_ask(process.own(), others()) {
            return Found::Slow;
        }
        let ask = || -> Answers {
            let mut answers = ask_all(others());
            answers.insert(process.own().token(), self.testify());
            answers
        };
        let first = ask();
        if rule(&first).is_empty() {
            return Found::Slow;
        }
        let rulings = rule(&confirmed(&first, ask()));
        let Some(desk) = Desk::of(process.own()).filter(|_| !rulings.is_empty()) else {
            return Found::Slow;
        };
        desk.publish(&rulings);
        for peer in others() {
            if let Some(desk) = Desk::of(peer) {
                desk.bell().ring();
            }
        }
        let own = rulings.into_iter().find(|ruling| ruling.process == process.own().token());
        own.into_iter().for_each(|ruling| self.obey(ruling));
        Found::Progress
    }

    /// Answers what this process is asked, and does what others have found that it has to do. `read`
    /// says which of their rulings are known.
    fn attend(&self, process: &Process, desk: &Desk<'_>, read: &mut HashMap<Token, u32>) {
        desk.serve(|| self.testify());
        for peer in self.others() {
            let Some(desk) = Desk::of(&peer) else { continue };
            let edition = desk.edition();
            if read.get(&peer.token()).copied().unwrap_or(0) == edition {
                continue;
            }
            // Where it is just being written, the bell is rung afterwards.
            let ruling = desk.ruling(&process.own().token());
            if desk.edition() == edition {
                read.insert(peer.token(), edition);
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
                    if is_done && let Some(verdict) = &part.verdict {
                        state.take_note(verdict, &part.actions);
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
        if is_ours && !self.verdicts.iter().any(|known| known.to_string() == text) {
            self.pronounce(verdict.clone());
        }
    }

    /// Whether this text is why a communicator has failed.
    fn has_failed_with(&self, comm: Key, text: &str) -> bool {
        let ends = self.comms.get(comm).into_iter().flat_map(|comm| &comm.ends);
        let mut failures = ends.filter_map(|end| end.shared.remote_failure());
        failures.any(|failure| failure.plain().message().starts_with(text))
    }

    /// Whether all communicators that are to fail have failed.
    fn is_done(&self, actions: &[Action]) -> bool {
        let mut comms = actions.iter().filter_map(|action| match action {
            Action::FailComm { comm } => Some(*comm),
            _ => None,
        });
        let has_failed = |comm| self.comms.get(comm).is_some_and(|comm| comm.broken);
        comms.clone().next().is_some() && comms.all(has_failed)
    }
}

/// Looks whether a ruling can be obeyed, and the time between them.
const TRIES: usize = 10;
const PAUSE: Duration = Duration::from_millis(1);
