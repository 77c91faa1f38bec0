//! Random programs against a sequential oracle, and ranks that die at random points.
//!
//! A [`Program`] is one list of steps for all ranks, made from a seed: collectives and messages alone
//! and in groups, on several streams and communicators; splits, joins and shrinks; captures that are
//! launched again and again; copies, fills, frees behind a stream, and what the thread does itself.
//! An oracle runs it on plain memory, one step after another. On a backend each rank does its part
//! of each step in the order of the list, with no more events and waits than memory asks for. In the
//! end all memory of all ranks must be the same, bit for bit, under any schedule, with guards, delays
//! and stragglers.
//!
//! What is found is [shrunk](shrink::shrink) to a few steps.
//!
//! ```console
//! $ just soak                                  # 10,000 programs
//! $ COLLECTIVES_SOAK_SEED=4711 just soak       # that one again
//! ```
//!
//! | variable | meaning |
//! |---|---|
//! | `COLLECTIVES_SOAK_SEED` | the first seed; alone, this one program runs, and is listed |
//! | `COLLECTIVES_SOAK_PROGRAMS` | number of programs |
//! | `COLLECTIVES_SOAK_SECONDS` | end after so long, whatever the number |
//! | `COLLECTIVES_SOAK_PROCESSES` | set: each rank is a process (Linux); without deaths, and not shrunk |

mod deaths;
mod element;
mod generate;
mod lower;
mod mock;
mod oracle;
#[cfg(target_os = "linux")]
pub mod processes;
mod program;
mod random;
mod rank;
pub mod shrink;

pub use deaths::{Death, Outcome, Point, survive};
pub use mock::{Setting, Trouble, check};
pub use program::Program;
