//! The CPU backend: real data, NCCL's semantics, no GPU.
//!
//! [`Mock`] implements [`Backend`](collectives_core::Backend) on the memory and the cores of this
//! process. It is not a stub: operations are asynchronous, streams, events, groups and graphs behave
//! as on a GPU, and what would hang or be refused there hangs or is refused here, with a message.
//! Ranks are threads, or communicators that one thread drives.
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
//! There is no thread per stream, and none that drives the whole. The engine is a state behind one
//! lock, and every call that comes by moves it on.
//!
//! 1. **A stream is a queue.** A call checks its arguments, gives the operation its sequence number,
//!    leaves it in the stream's inbox and returns; it never waits. Whoever next holds the engine's
//!    lock takes over all inboxes.
//! 2. **Only heads act.** The head of a stream is started once. A copy moves its bytes, an event is
//!    reached, memory is freed, a wait stays until its event is reached.
//! 3. **An operation fires when all ranks' parts of it are at the head of their streams.** Collectives
//!    meet by communicator and sequence, whatever the stream; a send and its receive meet by source,
//!    destination and sequence. Nothing is buffered: a send completes when its receive is at a head.
//!    A mismatch in operation, count, dtype, reduce op or root is an error on all ranks that names
//!    both call sites, and moves nothing. (NCCL hangs or corrupts; this is stricter.)
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
//! A [`Schedule`] puts work off as long as is legal, or as a seed says; [`Guards`] poison what is to
//! be received, sum what is sent, and compare what streams access. A [`FaultPlan`] has delays, hangs,
//! deaths and errors where a program shall survive them. All are functions of seeds and of places in
//! the program, never of time, and errors name the seed and the rules, so that a run can be had again.
//! [`MockConfig::from_env`] has them from outside. The guide `docs/faults.md` has recipes.
//!
//! # Where it is stricter than a GPU
//! Streams and handles of other devices or other mocks, memory of other devices and ranges past an
//! allocation's end are always refused. Two ranks of a communicator on one device are refused, as NCCL
//! does by default. A rank that leaves fails those who wait for it
//! ([`Remote`](collectives_core::ErrorKind::Remote)) instead of leaving them to hang. Memory that the
//! engine does not know is taken for host memory that devices can reach.

mod adversary;
mod backend;
mod comm;
mod comm_state;
mod device;
mod engine;
mod error;
mod fault;
mod fault_toml;
mod footprint;
mod fork;
mod graph;
mod group;
mod guard;
mod meeting;
mod memory;
mod numerics;
mod op;
mod pending;
mod pool;
mod race;
mod reduce;
mod schedule;
mod slab;
mod state;
mod stream;
mod sync;
mod timer;
mod transfer;

pub use backend::{Accumulation, Mock, MockConfig};
pub use comm::MockComm;
pub use device::MockDevice;
pub use fault::{Action, FaultPlan, Rule, Sequence};
pub use guard::Guards;
pub use pending::{PendingOp, PendingStatus};
pub use schedule::Schedule;
