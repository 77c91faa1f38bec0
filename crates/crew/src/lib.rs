//! Ranks as processes of one program: started together, heard over one socket each, gone together.
//!
//! A program starts a [`Crew`] of processes of its own executable. Each finds its [`Member`] in
//! itself, and the two sides exchange messages, anything that serde knows, as lines of JSON. So the
//! parent knows what its ranks say and how they end; how they reach each other is not its concern.
//!
//! ```no_run
//! use collectives_crew::{Crew, Event, Member, this_program};
//!
//! # fn main() -> std::io::Result<()> {
//! if let Some(member) = Member::here("greeting")? {
//!     member.tell(&format!("rank {} of {}", member.rank(), member.size()));
//!     return Ok(());
//! }
//! let mut crew = Crew::<String>::start("greeting", 2, |_| this_program())?;
//! while let Some((rank, event)) = crew.next(None) {
//!     match event {
//!         Event::Said(text) => println!("rank {rank} says {text}"),
//!         Event::Ended(end) => println!("rank {rank}: {end}"),
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # How it is made
//! * **The socket is the child's standard input.** No descriptor has to survive `exec` by a number,
//!   the command line stays the program's own, and so do standard output and standard error.
//! * **Nobody stays behind.** When the parent ends, however it ends, the sockets close, and a member
//!   that [listens](Member::listen) ends its process at once. (`PR_SET_PDEATHSIG` would fire when the
//!   *thread* ends that started the child, as those of test runners do.) A crew that is dropped is
//!   killed.
//! * **Deaths are messages.** A process that ends is heard of once, behind all it said, with its
//!   process id and its status.
//!
//! A [`Job`] is the same for ranks that are processes of any other program, which say nothing and may
//! start processes themselves.
//!
//! On Unix only; elsewhere, to start a crew is [`Unsupported`](std::io::ErrorKind::Unsupported).

mod end;
#[cfg(unix)]
mod job;
mod member;
mod parent;
mod socket;

pub use end::End;
#[cfg(unix)]
pub use job::{Job, keep};
pub use member::Member;
pub use parent::{Crew, Event, this_program};

/// What makes a process a member: `RANK/SIZE CREW`.
const VARIABLE: &str = "COLLECTIVES_CREW";
