//! A meeting, for who was there first.

use std::{
    collections::VecDeque,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::Instant,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{
    guest::CLOSING,
    peer::{self, Card},
    rendezvous::{Attempt, BOARD, GRACE, Met, Missed, system},
    shared::Shared,
    wire::{self, Heard, Link, Member, Message},
};

/// Waits for all guests and lets them meet. Whatever comes of it, they are told.
pub(super) fn host(attempt: &mut Attempt<'_>, listener: OwnedFd) -> Result<Met, Missed> {
    let seats = attempt.call.seats as usize;
    let mut host = Host {
        listener: Some(listener),
        guests: Vec::new(),
        seats: (0..seats).map(|_| None).collect(),
        handing: None,
        giving_up: None,
    };
    let result = host.host(attempt);
    host.dismiss(attempt, &result);
    result
}

struct Host {
    /// Until the meeting is over.
    listener: Option<OwnedFd>,
    guests: Vec<Guest>,
    seats: Vec<Option<Occupant>>,
    /// Once all have come: what they are to get.
    handing: Option<Handing>,
    /// Why, and when for good: what all have been handed should not come to nothing for a moment.
    giving_up: Option<(Missed, Instant)>,
}

/// One who has a seat.
struct Occupant {
    member: Member,
    /// As on its [`Card`].
    fds: Vec<OwnedFd>,
    /// Whether it can go on.
    ready: bool,
}

struct Handing {
    board: Shared,
    fd: OwnedFd,
}

/// One who is connected.
struct Guest {
    link: Link,
    /// What it is yet to be told.
    queue: VecDeque<Letter>,
    seat: Option<u32>,
    /// Whether to let go of it once it has been told all.
    is_leaving: bool,
    /// Since when its end is closed, though it didn't say that it leaves.
    closed: Option<Instant>,
}

/// Something to be told; what is the same for all is looked up as it is sent.
enum Letter {
    Board,
    Plain(Message),
    Seat(usize),
}

impl Host {
    fn host(&mut self, attempt: &mut Attempt<'_>) -> Result<Met, Missed> {
        let Card { fds, .. } =
            attempt.process.card().map_err(system("descriptors for the others"))?;
        let occupant = Occupant { member: attempt.member(), fds, ready: false };
        self.seats[attempt.call.seat as usize] = Some(occupant);
        loop {
            self.admit(attempt)?;
            self.hear(attempt)?;
            self.look_for_ends()?;
            if self.handing.is_none() && self.seats.iter().all(Option::is_some) {
                self.hand_out(attempt)?;
            }
            if let Some(met) = self.conclude(attempt)? {
                return Ok(met);
            }
            self.flush();
            self.consider_giving_up(attempt)?;
            self.wait(attempt);
        }
    }

    /// Lets in who connects.
    fn admit(&mut self, attempt: &Attempt<'_>) -> Result<(), Missed> {
        let Some(listener) = &self.listener else { return Ok(()) };
        while let Some(link) = wire::accept(listener).map_err(system("accept"))? {
            let (seat, pid) = (attempt.call.seat, attempt.process.own().pid());
            let queue = VecDeque::from([Letter::Plain(Message::Welcome { seat, pid })]);
            let guest = Guest { link, queue, seat: None, is_leaving: false, closed: None };
            self.guests.push(guest);
        }
        Ok(())
    }

    /// Takes what the guests say.
    fn hear(&mut self, attempt: &mut Attempt<'_>) -> Result<(), Missed> {
        for index in 0..self.guests.len() {
            while self.guests[index].closed.is_none() && !self.guests[index].is_leaving {
                match self.guests[index].link.receive() {
                    Ok(Heard::Message(message, fds)) => self.take(attempt, index, message, fds)?,
                    Ok(Heard::Nothing) => break,
                    Ok(Heard::End) => self.guests[index].closed = Some(Instant::now()),
                    // What can't be understood may be of another version, or a stranger's. What
                    // can't be received, for want of descriptors, is no fault of the guest's.
                    Err(error) if self.guests[index].seat.is_some() => {
                        return Err(system("a guest's message")(error));
                    }
                    Err(error) => {
                        tracing::debug!(%error, "a stranger at a meeting of ranks, turned away");
                        self.guests[index].dismiss(Message::Disagree(format!(
                            "the host (pid {}) can't take the hello: {error}",
                            attempt.process.own().pid()
                        )));
                    }
                }
            }
        }
        let is_over = |guest: &Guest| {
            let is_told = guest.is_leaving && guest.queue.is_empty();
            is_told || (guest.seat.is_none() && guest.closed.is_some())
        };
        self.guests.retain(|guest| !is_over(guest));
        Ok(())
    }

    fn take(
        &mut self,
        attempt: &mut Attempt<'_>,
        index: usize,
        message: Message,
        fds: Vec<OwnedFd>,
    ) -> Result<(), Missed> {
        let seat = self.guests[index].seat;
        match (message, seat) {
            (Message::Hello { member, seats, board_bytes }, None) => self.seat(
                attempt,
                index,
                Occupant { member, fds, ready: false },
                (seats, board_bytes),
            ),
            (Message::Leave, Some(seat)) => {
                // Once all have been told of each other it is too late; what comes is the outcome.
                if self.handing.is_none() {
                    self.seats[seat as usize] = None;
                    self.guests[index].seat = None;
                    self.guests[index].dismiss(Message::Left { came: attempt.came.clone() });
                }
                Ok(())
            }
            (Message::Ready, Some(seat)) if self.handing.is_some() => {
                if let Some(occupant) = &mut self.seats[seat as usize] {
                    occupant.ready = true;
                }
                Ok(())
            }
            (Message::Sorry(text), Some(seat)) => {
                let pid = self.seats[seat as usize].as_ref().map_or(0, |seat| seat.member.pid);
                Err(Missed::Disagree(format!("seat {seat} (pid {pid}) can't take part: {text}")))
            }
            (_, Some(seat)) => {
                Err(Missed::Disagree(format!("seat {seat} doesn't keep to what was agreed")))
            }
            (_, None) => {
                self.guests[index].dismiss(Message::Disagree("a hello was expected".into()));
                Ok(())
            }
        }
    }

    /// Gives a guest its seat, if it can have it.
    fn seat(
        &mut self,
        attempt: &mut Attempt<'_>,
        index: usize,
        occupant: Occupant,
        (seats, board_bytes): (u32, u64),
    ) -> Result<(), Missed> {
        let (call, host) = (&attempt.call, attempt.process.own().pid());
        let Member { seat, pid, .. } = occupant.member;
        if seats != call.seats {
            return Err(Missed::Disagree(format!(
                "seat {} (pid {host}) wants {} seats, seat {seat} (pid {pid}) wants {seats}",
                call.seat, call.seats
            )));
        }
        if board_bytes != call.board_bytes as u64 {
            return Err(Missed::Disagree(format!(
                "seat {} (pid {host}) wants a board of {} bytes, seat {seat} (pid {pid}) of \
                 {board_bytes}",
                call.seat, call.board_bytes
            )));
        }
        let guest = &mut self.guests[index];
        let Some(place) = self.seats.get_mut(seat as usize) else {
            guest.dismiss(Message::Disagree(format!("there is no seat {seat} of {seats}")));
            return Ok(());
        };
        match place {
            Some(Occupant { member, .. }) => {
                let text = format!("seat {seat} is taken, by pid {}", member.pid);
                guest.dismiss(Message::Disagree(text));
            }
            None => {
                *place = Some(occupant);
                guest.seat = Some(seat);
                attempt.came[seat as usize] = true;
            }
        }
        Ok(())
    }

    /// Sees who has ended, or has left without a word.
    fn look_for_ends(&mut self) -> Result<(), Missed> {
        for guest in &mut self.guests {
            let Some(seat) = guest.seat else { continue };
            let Some(occupant) = &self.seats[seat as usize] else { continue };
            if occupant.fds.get(PIDFD).is_some_and(peer::has_ended) {
                return Err(Missed::Died { seat: Some(seat), pid: occupant.member.pid });
            }
            if guest.closed.is_some_and(|closed| closed.elapsed() > CLOSING) {
                let pid = occupant.member.pid;
                if self.handing.is_some() {
                    let text = format!("seat {seat} (pid {pid}) left as the meeting was made");
                    return Err(Missed::Disagree(text));
                }
                self.seats[seat as usize] = None;
                guest.seat = None;
            }
        }
        Ok(())
    }

    /// All have come: tells everybody of everybody.
    fn hand_out(&mut self, attempt: &Attempt<'_>) -> Result<(), Missed> {
        let (board, fd) =
            Shared::create(BOARD, attempt.call.board_bytes).map_err(system("board"))?;
        (attempt.call.complete)();
        for guest in self.guests.iter_mut().filter(|guest| guest.seat.is_some()) {
            guest.queue.extend((0..self.seats.len()).map(Letter::Seat));
            guest.queue.push_back(Letter::Board);
        }
        self.handing = Some(Handing { board, fd });
        if let Some(own) = &mut self.seats[attempt.call.seat as usize] {
            own.ready = true;
        }
        Ok(())
    }

    /// Where all others are ready: gets ready, too, and the meeting is made.
    fn conclude(&mut self, attempt: &Attempt<'_>) -> Result<Option<Met>, Missed> {
        let is_ready = |seat: &Option<Occupant>| seat.as_ref().is_some_and(|seat| seat.ready);
        let Some(handing) = self.handing.take_if(|_| self.seats.iter().all(is_ready)) else {
            return Ok(None);
        };
        let (mut payloads, mut peers) = (Vec::new(), Vec::new());
        for Occupant { member, fds, .. } in self.seats.drain(..).flatten() {
            let peer = attempt.process.adopt(member.card(fds));
            peers.push(peer.map_err(system("memory of another process"))?);
            payloads.push(member.payload);
        }
        Ok(Some(Met { board: Arc::new(handing.board), payloads, peers }))
    }

    fn consider_giving_up(&mut self, attempt: &Attempt<'_>) -> Result<(), Missed> {
        if self.giving_up.is_none() {
            let grace = if self.handing.is_some() { GRACE } else { Default::default() };
            self.giving_up = attempt.given_up().map(|missed| (missed, Instant::now() + grace));
        }
        match self.giving_up.take_if(|(_, until)| *until <= Instant::now()) {
            Some((missed, _)) => Err(missed),
            None => Ok(()),
        }
    }

    /// Sends what there is room for.
    fn flush(&mut self) {
        for guest in &mut self.guests {
            while let Some(letter) = guest.queue.front() {
                let sent = match letter {
                    Letter::Plain(message) => guest.link.send(message, &[]),
                    Letter::Board => {
                        let fd = self.handing.as_ref().map(|handing| handing.fd.as_fd());
                        guest.link.send(&Message::Board, fd.as_slice())
                    }
                    Letter::Seat(seat) => match self.seats.get(*seat) {
                        Some(Some(Occupant { member, fds, .. })) => {
                            let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
                            guest.link.send(&Message::Seat(member.clone()), &fds)
                        }
                        _ => Ok(true),
                    },
                };
                match sent {
                    Ok(true) => drop(guest.queue.pop_front()),
                    Ok(false) => break,
                    // Its end is closed; what that means is found where it is heard.
                    Err(_) => guest.queue.clear(),
                }
            }
        }
    }

    /// Tells all how it ended, and lets go of the name, so that others can have it.
    fn dismiss(&mut self, attempt: &Attempt<'_>, result: &Result<Met, Missed>) {
        let own = attempt.process.own().pid();
        let message = match result {
            Ok(_) => Message::Go,
            Err(Missed::Cancelled | Missed::Late { .. }) => {
                Message::Adieu { came: attempt.came.clone() }
            }
            Err(Missed::Died { seat: Some(seat), pid }) => Message::Died { seat: *seat, pid: *pid },
            Err(Missed::Disagree(text)) => Message::Disagree(text.clone()),
            Err(missed) => {
                let seat = attempt.call.seat;
                Message::Disagree(format!("seat {seat} (pid {own}) can't take part: {missed}"))
            }
        };
        // Who is still in the queue would take a closed socket for the end of this process, if that
        // comes soon.
        let _ = self.admit(attempt);
        self.listener = None;
        for guest in self.guests.iter_mut().filter(|guest| !guest.is_leaving) {
            let is_member = guest.seat.is_some();
            match &message {
                // It came too late for this one.
                Message::Go if !is_member => {
                    guest.dismiss(Message::Adieu { came: attempt.came.clone() });
                }
                message => guest.dismiss(message.clone()),
            }
        }
        let until = Instant::now() + GRACE;
        loop {
            self.flush();
            self.guests.retain(|guest| !guest.queue.is_empty());
            if self.guests.is_empty() || Instant::now() >= until {
                return;
            }
            self.wait(attempt);
        }
    }

    fn wait(&self, attempt: &Attempt<'_>) {
        let mut fds: Vec<_> =
            self.listener.iter().map(|listener| PollFd::new(listener, PollFlags::IN)).collect();
        for guest in self.guests.iter().filter(|guest| guest.closed.is_none()) {
            let write = if guest.queue.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
            // Who is leaving is not listened to.
            let read = if guest.is_leaving { PollFlags::empty() } else { PollFlags::IN };
            fds.push(PollFd::new(&guest.link, read | write));
        }
        let pause = Timespec::try_from(attempt.pause()).unwrap_or_default();
        // Whatever comes of it, what follows looks for itself.
        let _ = poll(&mut fds, Some(&pause));
    }
}

impl Guest {
    /// Says a last thing.
    fn dismiss(&mut self, message: Message) {
        self.queue.push_back(Letter::Plain(message));
        self.is_leaving = true;
    }
}

/// Where a card has its pidfd.
const PIDFD: usize = 2;
