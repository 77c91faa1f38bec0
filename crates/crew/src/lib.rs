//! Processes as ranks of one program: started together, connected by one socket each, ended together.
//!
//! A program starts a [`Crew`] of processes of its own executable. Each of them finds its [`Member`],
//! and the two sides exchange messages, of any type that serde knows, as lines of JSON. So the
//! parent knows what its ranks say and how they end. How they reach each other is not its concern.
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
//! * **No process stays behind.** When the parent ends, however it ends, the sockets close, and a member
//!   that [listens](Member::listen) ends its process at once. (`PR_SET_PDEATHSIG` would fire when the
//!   *thread* ends that started the child, as those of test runners do.) A crew that is dropped is
//!   killed.
//! * **Deaths are messages.** The end of a process is one message, after all others of it, with its
//!   process id and its status.
//!
//! A [`Job`] is the same for processes of any other program, which send no messages and may start
//! processes themselves.
//!
//! On Unix only; elsewhere, starting a crew fails with [`Unsupported`](std::io::ErrorKind::Unsupported).

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
