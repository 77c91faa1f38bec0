//! The CPU backend: real data, NCCL's semantics, no GPU.
//!
//! [`Mock`] implements [`Backend`](collectives_core::Backend) on the memory and the cores of this
//! process. It is not a stub: operations are asynchronous; streams, events, groups and graphs behave
//! as on a GPU; what NCCL refuses is refused; and what would hang is an error, while what is only slow
//! is not ([verdicts](#verdicts)). [`World`] runs ranks for a test.
//! Ranks are threads, or communicators that one thread drives, or [processes](#ranks-as-processes).
//!
//! ```
//! use collectives_backend_mock::{Mock, MockConfig};
//! use collectives_core::{
//!     Backend, Collectives, Device, JoinAllConfig, Launch, RawStream, RecvBuf, ReduceOp, SendBuf,
//! };
//!
//! let mock = Mock::new(MockConfig::new().with_devices(2));
//! let ranks = mock.join_all(JoinAllConfig::new([0, 1]))?;
//! std::thread::scope(|scope| {
//!     for comm in ranks {
//!         let device = mock.device(comm.info().device);
//!         scope.spawn(move || {
//!             let device = device?;
//!             let mut values = [1.0_f32, 2.0];
//!             let send = SendBuf::typed(values.as_ptr(), 2);
//!             let recv = RecvBuf::typed(values.as_mut_ptr(), 2);
//!             let launch = Launch::new(RawStream::DEFAULT);
//!             // SAFETY: nobody else uses `values` until the stream has passed the operation.
//!             unsafe { comm.all_reduce(send, recv, ReduceOp::Sum, launch) }?;
//!             // SAFETY: the default stream always lives.
//!             unsafe { device.synchronize(RawStream::DEFAULT, None) }?;
//!             assert_eq!(values, [2.0, 4.0]);
//!             Ok::<_, collectives_core::Error>(())
//!         });
//!     }
//! });
//! # Ok::<_, collectives_core::Error>(())
//! ```
//!
//! # The engine
//! There is no thread per stream, and none that drives the engine. The engine is a state behind one
//! lock, and every call advances it.
//!
//! 1. **A stream is a queue.** A call checks its arguments, gives the operation its sequence number,
//!    leaves it in the stream's inbox and returns; it never waits. Whoever next holds the engine's
//!    lock takes over all inboxes.
//! 2. **Only heads act.** The head of a stream is started once. A copy moves its bytes, an event is
//!    reached, memory is freed, a wait stays until its event is reached.
//! 3. **An operation fires when all ranks' parts of it are at the head of their streams.** Collectives
//!    meet by communicator and sequence, whatever the stream; a send and its receive meet by source,
//!    destination and sequence. Nothing is buffered: a send completes when its receive is at a head.
//!    A mismatch in operation, count, dtype, reduce op or root is an error on all ranks that shows
//!    all calls side by side, and moves nothing. (NCCL hangs or corrupts; this is stricter.)
//! 4. **A group falls into units**: operations that share a stream or a rank's end. A unit arrives
//!    when it is the head of every stream it uses, and ends when all its operations have.
//! 5. **The last to arrive does the work.** A few kilobytes are moved at once, more without the lock,
//!    and large operations in slices by a pool of as many threads as cores; ranks that wait lend a
//!    hand. Waiting threads spin only where there are cores to spare, and only for microseconds.
//! 6. **A graph is work that is put into hidden streams**, with fresh sequence numbers, at each launch.
//!    Runs of one graph follow one another.
//! 7. **A communicator that fails lets streams go on.** Its pending operations are done without moving
//!    data; its ranks are told by every later call, by their abort handles, and (except for the rank
//!    that was aborted itself) by the next wait on a stream that held one of its operations.
//!
//! Every pending operation keeps its arguments, sequence and call site: [`Mock::pending`] lists them,
//! and a wait whose deadline passes has them in its error.
//!
//! # Ranks as processes
//! With [`Ranks::Processes`] (or `COLLECTIVES_MOCK_RANKS=processes`) ranks may be in several processes
//! of one machine and user, on Linux. Each process makes a [`Mock`] of its own; an id that one of them
//! made goes to the others in any way (an environment variable, a store), and its maker need not stay.
//! A process may have several ranks, in threads of their own, and several communicators.
//!
//! ```
//! use collectives_backend_mock::{Mock, MockConfig, Ranks};
//! use collectives_core::{Backend, JoinConfig, UniqueId};
//!
//! let mock = Mock::new(MockConfig::new().with_ranks(Ranks::Processes));
//! # if cfg!(not(target_os = "linux")) { return Ok(()) }
//! let id = mock.unique_id()?;
//! let text = id.to_base64(); // for the other processes
//! # let size = 1;
//! let comm = mock.join(&text.parse::<UniqueId>()?, JoinConfig::new(0, size))?;
//! # drop(comm);
//! # Ok::<_, collectives_core::Error>(())
//! ```
//!
//! Everything on this page holds there, too, and data has the same bits. The differences:
//!
//! * Device memory is shared memory, which peers reach directly: nothing is copied on the way. Other
//!   memory is copied through it, when an operation is at the head of its stream and when it is done.
//! * A process that ends while it has a rank fails the rank's communicators with
//!   [`Remote`](collectives_core::ErrorKind::Remote), within milliseconds; the error names rank and
//!   process, and how it ended where a launcher tells ([`ExitNotice`]). [`Action::Kill`] kills the
//!   process.
//! * Operations go on while the program does not call, within a millisecond or so.
//! * Verdicts take the processes' agreement, some 20 milliseconds. On a join there is one where a
//!   launcher says who all are ([`ExitNotices`]), as [`World::run_processes`] and `collectives launch` do.
//! * Devices have the same numbers in all processes: ranks of a communicator have different ones.
//! * There is one version of the library in all processes.
//!
//! # Verdicts
//! Ranks that can never go on get an error, without any timeout: all of them, with one report, within
//! about 10 milliseconds, or 200 if other threads of the process are busy. It says what is wrong,
//! what each rank has pending (arguments, number, stream, call site) or what its thread does instead,
//! and what waits for what. [`Mock::verdicts`] has the same as data. Other communicators stay usable.
//!
//! | what happens | kind | error |
//! |---|---|---|
//! | ranks disagree on operation, count, dtype, reduce op or root; one calls a collective, others messages | [`Mismatch`](VerdictKind::Mismatch) | [`InvalidUsage`](collectives_core::ErrorKind::InvalidUsage) |
//! | sends that cross, communicators in another order, a wrong peer | [`Cycle`](VerdictKind::Cycle) | [`Deadlock`](collectives_core::ErrorKind::Deadlock) |
//! | a rank that issues nothing more, and waits itself | [`MissingRank`](VerdictKind::MissingRank) | `Deadlock` |
//! | ranks that never come to a join, a split, a shrink or a grow | [`JoinIncomplete`](VerdictKind::JoinIncomplete), [`SplitIncomplete`](VerdictKind::SplitIncomplete), [`ShrinkIncomplete`](VerdictKind::ShrinkIncomplete), [`GrowIncomplete`](VerdictKind::GrowIncomplete) | `Deadlock` |
//! | a rank whose thread has ended, while its communicator lives on | [`RankEnded`](VerdictKind::RankEnded) | [`Remote`](collectives_core::ErrorKind::Remote) |
//! | a rank that dropped its communicator: it returned, or panicked | none, an error at once | `Remote` |
//!
//! A rank that is only slow is left alone. A rank is *blocked* when the thread that called on its
//! communicator last waits here for what can never come, or has ended; and no other thread of the
//! process that may hold the communicator can act: none of those that called on its device, and none
//! that has never called on a mock (on Linux: none but those that sleep until another thread wakes
//! them). So while such a thread computes or sleeps for a time there is no verdict, however long that
//! takes; that includes threads that have nothing to do with the ranks, such as other tests of the
//! process that have not called on a mock yet.
//!
//! * **Deadlines.** A wait with a deadline counts as one without, unless the deadline is nearer than
//!   50 ms: then the caller learns it soon enough, and may have other plans. So a program that polls with
//!   short waits gets no verdict, and one that waits for a minute gets it at once.
//! * **Waits that are not the mock's**, such as a barrier or a channel of the program: a rank that
//!   waits there is taken for one that may come back, except where no thread of the process can act at
//!   all and no wait of the mock has a deadline. For the rest there is the world's deadline
//!   ([`World::with_deadline`]).
//! * **Schedules and faults** ([below](#making-it-hard)). Work that a schedule puts off runs when a rank
//!   waits for it, so it is no reason for a verdict; checking for verdicts runs nothing. What a fault rule
//!   holds up counts as something that can still happen, even if it hangs: such faults are there to
//!   test deadlines and watchdogs, which a verdict would forestall.
//! * **Not seen**: a rank that polls for ever ([`query`](collectives_core::Device::query),
//!   [`poll_error`](collectives_core::Collectives::poll_error)) is never blocked. A communicator that
//!   is given to a thread that has called on another rank's devices, or only on another mock, is not
//!   known to be there before that thread calls on it. What is deeper than 256 entries in a stream
//!   is looked at when it has moved up.
//! * **Ranks that are processes** are judged together: those whose threads can't act say so, whatever
//!   they wait for. On a join there is a verdict where all processes were started as one job
//!   ([`ExitNotices`]) and each of them waits, too, or has ended; the error says how. A process that has
//!   not made a mock yet, has several, or has children may still join. If the program started its
//!   processes itself, an unknown one may always join, so joins wait for their deadline. There is no
//!   verdict on a hang across processes of which none shares communicators with all the others.
//! * **On other systems than Linux** threads that never called a mock are not seen, nor are threads that
//!   end and joins that no other rank comes to.
//!
//! # Loss and leaks
//! A [revoke](collectives_core::Collectives::revoke) stops the operations of all ranks, while NCCL's
//! stops only those of the caller; the other ranks get the error from their next call. A shrink whose list
//! keeps a lost rank, or on which the ranks disagree, is an error on all of them, while NCCL hangs. [`Mock::alive`] lists what was made and not given back, with the places in the program;
//! [`Mock::check_leaks`] fails if there is any. [`PendingJoin`] is NCCL's non-blocking join.
//!
//! # Numerics
//! Ranks are combined in the order 0, 1, 2, …, element by element, so results have the same bits on
//! all ranks, for any number of threads and on any instruction set.
//!
//! | type | rule |
//! |---|---|
//! | integers | sums and products wrap; an average is the wrapped sum, divided toward zero |
//! | f32, f64 | one IEEE rounding per step |
//! | f16, bf16 | each step correctly rounded to the type, as on NCCL's rings and trees |
//! | f8e4m3, f8e5m2 | each step in f16, then rounded to the type, saturating |
//! | min, max | a NaN loses against a number; −0 is below +0 |
//! | float avg | each input times 1/size rounded to the type, then the sum |
//! | PreMulSum | each input times its rank's scalar, rounded, then the sum |
//! | one rank | a copy, but PreMulSum still applies its scalar |
//!
//! With [`Accumulation::F32`] the small floats are combined in f32 and rounded once, and an average is
//! one multiplication of the sum, as in NCCL's symmetric kernels. NCCL's own order rotates with the
//! chunk, so results agree with a GPU's to the bit only where every order does.
//!
//! # Making it hard
//! [`MockConfig::strict`] and [`MockConfig::adversarial`] find programs that are right only by luck.
//! A [`Schedule`] delays work as long as is legal, or as a seed says. [`Guards`] poison receive buffers,
//! keep checksums of send buffers, compare the accesses of streams, and see the program's own loads and
//! stores. A [`FaultPlan`] has delays, hangs, deaths and errors, for programs that must survive them. All
//! are functions of seeds and of places in the program, never of time, and errors name the seed and the
//! rules, so that a run can be repeated. [`MockConfig::from_env`] reads them from the environment, and so
//! do [`Mock::shared`] and [`World`]. The guide `docs/faults.md` has recipes.
//!
//! # Where it is stricter than a GPU
//! Streams and handles of other devices or other mocks, memory of other devices and ranges past an
//! allocation's end are always refused. Two ranks of a communicator on one device are refused, as NCCL
//! does by default. If a rank leaves, those that wait for it fail
//! ([`Remote`](collectives_core::ErrorKind::Remote)) instead of hanging. Memory that the
//! engine does not know counts as host memory that devices can reach.

mod across;
mod adversary;
mod aide;
mod alive;
mod asleep;
mod backend;
mod calls;
#[cfg_attr(not(target_os = "linux"), path = "clerk_elsewhere.rs")]
mod clerk;
mod comm;
mod comm_state;
mod device;
mod engine;
mod error;
mod failure;
mod fault;
mod fault_toml;
mod footprint;
mod fork;
mod gate;
mod gather;
mod graph;
mod group;
mod guard;
mod joint;
mod judge;
mod lifecycle;
mod meeting;
mod memory;
#[cfg_attr(not(target_os = "linux"), path = "mirror_elsewhere.rs")]
mod mirror;
mod numerics;
mod op;
mod pending;
mod pool;
#[cfg_attr(not(target_os = "linux"), path = "process_elsewhere.rs")]
mod process;
mod race;
mod reduce;
mod relaunch;
mod runtime;
mod scene;
mod schedule;
mod signal;
mod site;
mod slab;
mod snapshot;
mod state;
mod stream;
mod sync;
mod threads;
mod timer;
mod transfer;
#[cfg(target_os = "linux")]
mod trap;
mod veil;
mod verdict;
mod watch;
mod window;
mod world;

pub use alive::{Alive, AliveKind, AliveThing};
pub use backend::{Accumulation, Mock, MockConfig, Ranks};
pub use comm::MockComm;
pub use device::MockDevice;
pub use failure::{Cause, RankFailure, RunFailure};
pub use fault::{Action, FaultPlan, Rule, Sequence};
pub use guard::Guards;
pub use lifecycle::{JoinState, PendingJoin};
pub use pending::{PendingOp, PendingStatus};
#[cfg(target_os = "linux")]
pub use process::launch::{ExitNotice, ExitNotices};
pub use runtime::{Allocation, CaptureFault, CaptureInfo};
pub use schedule::Schedule;
pub use site::Site;
#[doc(hidden)]
pub use threads::only_watch;
pub use verdict::{RankState, Verdict, VerdictKind};
pub use world::World;
