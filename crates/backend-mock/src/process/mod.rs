//! What processes share: memory, bells, and how they find each other.
//!
//! Nothing here knows of engines, and nothing has a name in a file
//! system: memory is in memfds, which live as long as somebody holds or maps them, and sockets are
//! in the abstract namespace, which live as long as somebody holds them. So whatever way processes
//! end, the kernel cleans up.
//!
//! * [`shared`]: memory that several processes map, read as atomics.
//! * [`bell`]: wakes a process that sleeps.
//! * [`segment`]: a process's device memory.
//! * [`peer`]: a process as others see it: its memory, its bell, whether it has ended.
//! * [`board`]: where the operations of one communicator meet.
//! * [`launch`]: what a launcher does so that peers learn how a process ended; [`roster`] is where it
//!   does it.
//! * [`verdicts`]: how they find out together that nothing can happen any more.
//! * [`rendezvous`]: how processes become peers; [`host`] and [`guest`] are its two sides, [`wire`] is
//!   what they say.
//! * [`watch`]: the thread that sees peers end.

pub(crate) mod bell;
pub(crate) mod board;
mod guest;
mod host;
pub(crate) mod launch;
pub(crate) mod peer;
pub(crate) mod rendezvous;
pub(crate) mod roster;
pub(crate) mod segment;
pub(crate) mod shared;
pub(crate) mod verdicts;
pub(crate) mod watch;
mod wire;

#[cfg(all(test, not(any(loom, miri))))] // Miri has no processes
mod tests;
