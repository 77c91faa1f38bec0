//! Stands for [`process`](crate) where ranks cannot be processes: nothing of it can be made.

pub(crate) mod shared {
    use std::{
        convert::Infallible,
        io,
        sync::atomic::{AtomicU32, AtomicU64},
    };

    pub(crate) struct Shared(Infallible);

    /// As on Linux.
    ///
    /// # Safety
    /// As on Linux.
    pub(crate) unsafe trait Plain: Sync {}

    // SAFETY: an atomic integer.
    unsafe impl Plain for AtomicU32 {}
    // SAFETY: an atomic integer.
    unsafe impl Plain for AtomicU64 {}

    impl Shared {
        pub(crate) fn create(_: &str, _: usize) -> io::Result<(Self, Infallible)> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub(crate) fn slice<T>(&self, _: usize, _: usize) -> Option<&[T]> {
            match self.0 {}
        }

        pub(crate) fn range(&self, _: usize, _: usize) -> Option<*mut u8> {
            match self.0 {}
        }
    }
}

pub(crate) mod bell {
    use std::{convert::Infallible, time::Instant};

    pub(crate) struct Bell(Infallible);

    impl Bell {
        pub(crate) fn state(&self) -> u32 {
            match self.0 {}
        }

        pub(crate) fn sleep(&self, _: u32, _: Option<Instant>) -> bool {
            match self.0 {}
        }

        pub(crate) fn ring(&self) {
            match self.0 {}
        }
    }
}

pub(crate) mod segment {
    use std::{convert::Infallible, io};

    pub(crate) struct Segment(Infallible);

    impl Segment {
        pub(crate) fn new(_: usize) -> io::Result<Self> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub(crate) fn alloc(&self, _: usize, _: usize) -> Option<u64> {
            match self.0 {}
        }

        pub(crate) fn free(&self, _: u64, _: usize) {
            match self.0 {}
        }

        pub(crate) fn base(&self) -> *mut u8 {
            match self.0 {}
        }

        pub(crate) fn bytes(&self) -> usize {
            match self.0 {}
        }

        pub(crate) fn shortage(&self) -> Option<String> {
            match self.0 {}
        }
    }
}

pub(crate) mod peer {
    use std::{convert::Infallible, fmt, io, sync::Arc};

    use super::{bell::Bell, segment::Segment};

    pub(crate) type Token = [u8; 16];

    pub(crate) struct Process(Infallible);

    pub(crate) struct Peer(Infallible);

    pub(crate) struct End(Infallible);

    impl Process {
        pub(crate) fn new(_: usize) -> io::Result<Self> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub(crate) fn own(&self) -> &Arc<Peer> {
            match self.0 {}
        }

        pub(crate) fn segment(&self) -> &Arc<Segment> {
            match self.0 {}
        }

        pub(crate) fn roster(&self) -> Option<&Infallible> {
            match self.0 {}
        }

        pub(crate) fn job(&self) -> Option<u128> {
            match self.0 {}
        }
    }

    impl Peer {
        pub(crate) fn token(&self) -> Token {
            match self.0 {}
        }

        pub(crate) fn pid(&self) -> u32 {
            match self.0 {}
        }

        pub(crate) fn is_own(&self) -> bool {
            match self.0 {}
        }

        pub(crate) fn translate(&self, _: u64, _: usize) -> Option<*mut u8> {
            match self.0 {}
        }

        pub(crate) fn bell(&self) -> &Bell {
            match self.0 {}
        }

        pub(crate) fn has_ended(&self) -> bool {
            match self.0 {}
        }

        pub(crate) fn end(&self) -> Option<End> {
            match self.0 {}
        }
    }

    impl fmt::Display for End {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
            match self.0 {}
        }
    }

    pub(crate) fn random() -> io::Result<Token> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

pub(crate) mod launch {
    use super::peer::End;

    pub(crate) fn end_of(_: u32) -> Option<End> {
        None
    }
}

pub(crate) mod rendezvous {
    use std::{convert::Infallible, io, sync::Arc, time::Instant};

    use super::{
        peer::{Peer, Process, Token},
        shared::Shared,
    };

    #[expect(dead_code, reason = "only Linux reads it")]
    pub(crate) struct Call<'a> {
        pub(crate) token: Token,
        pub(crate) seat: u32,
        pub(crate) seats: u32,
        pub(crate) payload: &'a [u8],
        pub(crate) board_bytes: usize,
        pub(crate) until: Option<Instant>,
        pub(crate) cancelled: &'a dyn Fn() -> bool,
        pub(crate) complete: &'a dyn Fn(),
    }

    pub(crate) struct Met {
        pub(crate) board: Arc<Shared>,
        pub(crate) payloads: Vec<Vec<u8>>,
        pub(crate) peers: Vec<Arc<Peer>>,
    }

    #[expect(dead_code, reason = "only Linux makes them")]
    pub(crate) enum Missed {
        Cancelled,
        Disagree(String),
        Died { seat: Option<u32>, pid: u32 },
        Late { came: Vec<bool> },
        System { what: &'static str, error: io::Error },
    }

    pub(crate) fn meet(process: &Process, _: Call<'_>) -> Result<Met, Missed> {
        let impossible: Result<Infallible, Missed> =
            Err(Missed::Disagree(process.own().pid().to_string()));
        impossible.map(|never| match never {})
    }
}

pub(crate) mod watch {
    use std::{convert::Infallible, io, sync::Arc};

    use super::peer::{Peer, Process};

    pub(crate) struct Watch(Infallible);

    pub(crate) type OnEnd = Box<dyn Fn(&Arc<Peer>) + Send>;

    impl Watch {
        pub(crate) fn start(_: &Process, _: OnEnd) -> io::Result<Self> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }
}

#[path = "process/board.rs"]
pub(crate) mod board;
