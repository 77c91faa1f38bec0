//! The thread that sees peers end.

use std::{
    io, iter,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};

use super::peer::{Peer, Peers, Process};
use crate::{fork, threads};

/// Watches over all peers of a process, also those that it meets later, until dropped.
pub(crate) struct Watch {
    peers: Arc<Peers>,
    stopped: Arc<AtomicBool>,
}

/// What to do about a peer that has ended.
pub(crate) type OnEnd = Box<dyn Fn(&Arc<Peer>) + Send>;

impl Watch {
    /// Starts the thread, which calls `on_end` once for each peer, as soon as it has ended. One for
    /// each process. A call may come shortly after the drop, too; so what it holds should be weak.
    pub(crate) fn start(process: &Process, on_end: OnEnd) -> io::Result<Self> {
        let (peers, stopped) = (Arc::clone(process.peers()), Arc::new(AtomicBool::new(false)));
        let watch = Self { peers: Arc::clone(&peers), stopped: Arc::clone(&stopped) };
        let thread = thread::Builder::new().name("collectives-peers".into());
        thread.spawn(move || run(&peers, &stopped, &on_end))?;
        Ok(watch)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // The thread is not waited for: it may be in a call that waits for who drops this. And a
        // forked child has no such thread, but its parent's descriptor to wake it.
        if !fork::in_forked_child() {
            self.stopped.store(true, Ordering::Release);
            self.peers.note_change();
        }
    }
}

fn run(peers: &Peers, stopped: &AtomicBool, on_end: &OnEnd) {
    // So that no engine takes this thread for one that may act.
    threads::enlist();
    while !stopped.load(Ordering::Acquire) {
        let living = peers.living();
        let pidfds = living.iter().map(|living| PollFd::new(&living.pidfd, PollFlags::IN));
        let changed = PollFd::from_borrowed_fd(peers.changed(), PollFlags::IN);
        let mut fds: Vec<_> = iter::once(changed).chain(pidfds).collect();
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => {
                tracing::warn!(%error, "poll: ends of other processes are seen late");
                thread::sleep(Duration::from_millis(50));
                continue;
            }
        }
        if !fds[0].revents().is_empty() {
            peers.take_change();
        }
        let ready = fds[1..].iter().map(|fd| !fd.revents().is_empty());
        for (living, _) in living.iter().zip(ready).filter(|&(_, ready)| ready) {
            peers.mark_told(&living.token);
            if let Some(peer) = living.peer.upgrade() {
                on_end(&peer);
            }
        }
    }
}
