//! The output of the ranks: shown line by line behind the number of its rank, and written to files.
//!
//! * A rank writes into two pipes, each read by a thread of its own, so no rank waits for another and
//!   nothing is lost.
//! * A thread shows whole lines, as many as it has read, in one go under a lock that all share. So lines
//!   are never torn, not even where standard output and standard error are one file.
//! * A line ends at a line feed, or at a carriage return with more behind it, as progress bars have
//!   them. All bytes pass as they are. A line of a mebibyte is shown in pieces, and the last line of an
//!   output gets a line feed if it has none. Files have none of this: they hold what was written.
//! * What a rank reads from its pipe's other end is what the caller's reader would have done: where
//!   nobody reads any more (`| head`), the pipe is closed and the rank gets `SIGPIPE`.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, IsTerminal, PipeReader, PipeWriter, Read, Write},
    mem,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anstream::{AutoStream, ColorChoice};
use anstyle::AnsiColor;
use memchr::memchr2_iter;
use rustix::event::{PollFd, PollFlags, poll};

use super::args::Args;

/// Where output is shown.
pub(super) struct Screen {
    sides: [Side; 2],
    /// Held while lines are written, to either side.
    turn: Mutex<()>,
}

/// What a rank writes to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stream {
    Out = 0,
    Err = 1,
}

struct Side {
    file: File,
    is_terminal: bool,
    has_colour: bool,
    /// Whether nobody reads it any more.
    is_closed: AtomicBool,
}

impl Screen {
    /// This process's own outputs.
    pub(super) fn new() -> io::Result<Self> {
        let (out, err) = (io::stdout(), io::stderr());
        let colours = [AutoStream::choice(&out), AutoStream::choice(&err)];
        let [out_colour, err_colour] = colours.map(|choice| choice != ColorChoice::Never);
        let sides = [
            Side::new(out.as_fd(), out.is_terminal(), out_colour)?,
            Side::new(err.as_fd(), err.is_terminal(), err_colour)?,
        ];
        Ok(Self { sides, turn: Mutex::new(()) })
    }

    /// Shows whole lines. Answers whether anybody reads them.
    pub(super) fn show(&self, stream: Stream, lines: &[u8]) -> bool {
        let _turn = lock(&self.turn);
        let side = &self.sides[stream as usize];
        if !self.is_closed(stream) && side.write_all(lines).is_err() {
            side.is_closed.store(true, Ordering::Relaxed);
        }
        !self.is_closed(stream)
    }

    /// Waits a moment for the others. Answers whether somebody waits for who reads there.
    pub(super) fn is_stuck(&self) -> bool {
        let until = Instant::now() + MOMENT;
        while matches!(self.turn.try_lock(), Err(TryLockError::WouldBlock)) {
            if Instant::now() >= until {
                return true;
            }
            thread::sleep(Duration::from_millis(1));
        }
        false
    }

    /// Whether nobody reads a side any more.
    pub(super) fn is_closed(&self, stream: Stream) -> bool {
        self.sides[stream as usize].is_closed.load(Ordering::Relaxed)
    }

    /// What stands before the lines of a rank.
    fn prefix(&self, stream: Stream, rank: u32, ranks: u32) -> Vec<u8> {
        let side = &self.sides[stream as usize];
        let width = (ranks - 1).to_string().len();
        let name = format!("rank {rank:<width$}|");
        let name = match side.has_colour {
            true => {
                let style = COLOURS[rank as usize % COLOURS.len()].on_default();
                format!("{style}{name}{style:#}")
            }
            false => name,
        };
        // What a carriage return has left of a longer line goes.
        let erase = if side.is_terminal && side.has_colour { "\x1b[K" } else { "" };
        format!("{name}{erase} ").into()
    }
}

impl Side {
    fn new(fd: BorrowedFd<'_>, is_terminal: bool, has_colour: bool) -> io::Result<Self> {
        let file = File::from(fd.try_clone_to_owned()?);
        Ok(Self { file, is_terminal, has_colour, is_closed: AtomicBool::new(false) })
    }

    /// As the file's own, also where others have made it non-blocking, as they can with terminals.
    fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match (&self.file).write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    poll(&mut [PollFd::new(&self.file, PollFlags::OUT)], None)?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The output of all ranks of a job, from its start to its end.
pub(super) struct Output<'a> {
    args: &'a Args,
    screen: Arc<Screen>,
    restart: u32,
    /// Open until nothing more is to come.
    over: Option<PipeWriter>,
    is_over: Arc<PipeReader>,
    tails: Vec<Arc<Mutex<Tail>>>,
}

impl<'a> Output<'a> {
    pub(super) fn new(args: &'a Args, screen: &Arc<Screen>, restart: u32) -> io::Result<Self> {
        if let Some(dir) = &args.log_dir {
            fs::create_dir_all(dir).map_err(|error| named("--log-dir", dir, error))?;
        }
        let (is_over, over) = io::pipe()?;
        let tails = (0..args.ranks).map(|_| Arc::default()).collect();
        let (screen, is_over) = (Arc::clone(screen), Arc::new(is_over));
        Ok(Self { args, screen, restart, over: Some(over), is_over, tails })
    }

    /// What a rank is to write to. `drained` is called when it has been read to its end, by a thread.
    pub(super) fn of(
        &self,
        rank: u32,
        stream: Stream,
        drained: impl FnOnce() + Send + 'static,
    ) -> io::Result<PipeWriter> {
        let (pipe, theirs) = io::pipe()?;
        let args = self.args;
        let prefix = match args.no_prefix {
            true => Vec::new(),
            false => self.screen.prefix(stream, rank, args.ranks),
        };
        let mut reader = Reader {
            pipe,
            is_over: Arc::clone(&self.is_over),
            log: args.log_dir.as_ref().map(|dir| self.log(dir, rank, stream)).transpose()?,
            lines: Lines::default(),
            prefix,
            screen: Arc::clone(&self.screen),
            stream,
            rank,
            is_shown: args.show.has(rank),
            tail: Arc::clone(&self.tails[rank as usize]),
        };
        let named = thread::Builder::new().name(format!("output of rank {rank}"));
        named.spawn(move || {
            reader.run();
            drop(reader);
            drained();
        })?;
        Ok(theirs)
    }

    fn log(&self, dir: &Path, rank: u32, stream: Stream) -> io::Result<File> {
        let restart = match self.restart {
            0 => String::new(),
            number => format!(".restart-{number}"),
        };
        let end = match stream {
            Stream::Out => "stdout",
            Stream::Err => "stderr",
        };
        let path = dir.join(format!("rank-{rank}{restart}.{end}"));
        File::create(&path).map_err(|error| named("--log-dir", &path, error))
    }

    /// Says that all ranks have ended: who still holds a pipe's other end is waited for no longer.
    pub(super) fn end(&mut self) {
        self.over = None;
    }

    /// What a rank wrote last.
    pub(super) fn last_words(&self, rank: u32) -> LastWords {
        let prefix = self.screen.prefix(Stream::Err, rank, self.args.ranks);
        let mut tail = lock(&self.tails[rank as usize]);
        let all = tail.lines;
        let lines = tail.last_lines();
        let mut text = lines.iter().flat_map(|line| [&prefix, *line]).collect::<Vec<_>>().concat();
        if !text.is_empty() && !text.ends_with(b"\n") {
            text.push(b'\n');
        }
        LastWords { text, lines: lines.len(), all }
    }
}

/// The last lines of a rank.
pub(super) struct LastWords {
    /// Each behind the number of the rank.
    pub(super) text: Vec<u8>,
    /// How many these are.
    pub(super) lines: usize,
    /// How many the rank wrote.
    pub(super) all: usize,
}

/// Reads one output of one rank.
struct Reader {
    pipe: PipeReader,
    is_over: Arc<PipeReader>,
    log: Option<File>,
    lines: Lines,
    prefix: Vec<u8>,
    screen: Arc<Screen>,
    stream: Stream,
    rank: u32,
    is_shown: bool,
    tail: Arc<Mutex<Tail>>,
}

impl Reader {
    fn run(&mut self) {
        let mut block = vec![0; BLOCK];
        while self.has_more() {
            let read = match self.pipe.read(&mut block) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    self.warn(&format!("its output cannot be read: {error}"));
                    break;
                }
            };
            self.log(&block[..read]);
            self.lines.add(&block[..read]);
            if !self.show(false) && self.log.is_none() {
                return;
            }
        }
        self.show(true);
    }

    /// Waits for something to read, or for its end.
    fn has_more(&self) -> bool {
        loop {
            let mut fds = [&self.pipe, &*self.is_over].map(|pipe| PollFd::new(pipe, PollFlags::IN));
            match poll(&mut fds, None) {
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return true,
                Ok(_) => return !fds[0].revents().is_empty(),
            }
        }
    }

    fn log(&mut self, block: &[u8]) {
        if let Some(log) = &mut self.log
            && let Err(error) = log.write_all(block)
        {
            self.log = None;
            self.warn(&format!("--log-dir: the rest of its output is not written: {error}"));
        }
    }

    /// Shows the lines that are whole, or all. Answers whether anybody reads them, or is not to.
    fn show(&mut self, all: bool) -> bool {
        let lines = if all { self.lines.take_all() } else { self.lines.take() };
        if lines.is_empty() {
            return true;
        }
        lock(&self.tail).add(&lines);
        match (self.is_shown, self.prefix.is_empty()) {
            (false, _) => true,
            (true, true) => self.screen.show(self.stream, &lines),
            (true, false) => self.screen.show(self.stream, &prefixed(&self.prefix, &lines)),
        }
    }

    fn warn(&self, text: &str) {
        let line = format!("launch: rank {}: {text}\n", self.rank);
        self.screen.show(Stream::Err, line.as_bytes());
    }
}

/// Makes lines of what comes in blocks.
#[derive(Default)]
struct Lines {
    bytes: Vec<u8>,
    /// Behind the last end of a line.
    whole: usize,
    /// How far ends were looked for.
    seen: usize,
}

impl Lines {
    fn add(&mut self, block: &[u8]) {
        self.bytes.extend_from_slice(block);
        if let Some(end) = ends(&self.bytes[self.seen..]).last() {
            self.whole = self.seen + end;
        }
        // Of a carriage return it is told by what follows.
        self.seen = self.bytes.len() - usize::from(self.bytes.last() == Some(&b'\r'));
    }

    /// The lines that have ended.
    fn take(&mut self) -> Vec<u8> {
        if self.whole == 0 && self.bytes.len() >= LONGEST {
            return self.take_all();
        }
        let rest = self.bytes.split_off(self.whole);
        self.seen -= self.whole;
        self.whole = 0;
        mem::replace(&mut self.bytes, rest)
    }

    /// All that there is, as whole lines.
    fn take_all(&mut self) -> Vec<u8> {
        let mut lines = mem::take(self).bytes;
        if lines.last().is_some_and(|&last| last != b'\n') {
            lines.push(b'\n');
        }
        lines
    }
}

/// The last lines of a rank, of both its outputs in the order in which they were read.
#[derive(Default)]
struct Tail {
    bytes: VecDeque<u8>,
    /// Whether there were more.
    is_cut: bool,
    /// Of all that there were.
    lines: usize,
}

impl Tail {
    fn add(&mut self, bytes: &[u8]) {
        self.lines += lines(bytes).count();
        let excess = (self.bytes.len() + bytes.len()).saturating_sub(TAIL);
        let (old, new) = (excess.min(self.bytes.len()), excess.saturating_sub(self.bytes.len()));
        self.bytes.drain(..old);
        self.bytes.extend(&bytes[new..]);
        self.is_cut |= excess > 0;
    }

    fn last_lines(&mut self) -> Vec<&[u8]> {
        let kept: Vec<_> = lines(self.bytes.make_contiguous()).collect();
        // The first of them may have lost its beginning.
        let cut = usize::from(self.is_cut && kept.len() > 1);
        kept[cut.max(kept.len().saturating_sub(TAIL_LINES))..].to_vec()
    }
}

/// The positions behind the ends of lines.
fn ends(bytes: &[u8]) -> impl Iterator<Item = usize> {
    let is_end = |&at: &usize| match bytes[at] {
        b'\n' => true,
        // The line is to be written over; before a line feed it is part of the end.
        _ => bytes.get(at + 1).is_some_and(|&next| next != b'\n'),
    };
    memchr2_iter(b'\n', b'\r', bytes).filter(is_end).map(|at| at + 1)
}

/// Lines with their ends.
fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut start = 0;
    // A carriage return at the very end has had more behind it.
    let ends = ends(bytes).chain([bytes.len()]);
    ends.map(move |end| &bytes[mem::replace(&mut start, end)..end]).filter(|line| !line.is_empty())
}

/// Lines with something before each.
fn prefixed(prefix: &[u8], bytes: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(bytes.len() + bytes.len() / 4 + prefix.len());
    for line in lines(bytes) {
        text.extend_from_slice(prefix);
        text.extend_from_slice(line);
    }
    text
}

fn named(what: &str, path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what} {}: {error}", path.display()))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Without red, which is for errors.
const COLOURS: [AnsiColor; 6] = [
    AnsiColor::Cyan,
    AnsiColor::Green,
    AnsiColor::Yellow,
    AnsiColor::Magenta,
    AnsiColor::Blue,
    AnsiColor::BrightBlack,
];

/// How long it takes at most to write something down, if it is taken.
const MOMENT: Duration = Duration::from_millis(500);

/// What is read in one go.
const BLOCK: usize = 64 << 10;

/// What is no longer waited for the end of.
const LONGEST: usize = 1 << 20;

/// How much of a rank's output is kept.
const TAIL: usize = 16 << 10;
/// How much of it is shown when the rank fails.
const TAIL_LINES: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;

    /// What is shown of blocks, one text for each that shows anything.
    fn shown(blocks: &[&[u8]]) -> Vec<String> {
        let mut lines = Lines::default();
        let mut shown = Vec::new();
        for block in blocks {
            lines.add(block);
            shown.push(lines.take());
        }
        shown.push(lines.take_all());
        let shown = shown.iter().filter(|lines| !lines.is_empty());
        shown.map(|lines| String::from_utf8_lossy(&prefixed(b">", lines)).into_owned()).collect()
    }

    #[test]
    fn lines_are_shown_when_they_are_whole() {
        assert_eq!(
            shown(&[b"one\ntwo", b" three", b"\nfour"]),
            [">one\n", ">two three\n", ">four\n"]
        );
        assert_eq!(shown(&[b"\n\n", b"\n"]), [">\n>\n", ">\n"]);
        assert!(shown(&[b"", b""]).is_empty());
    }

    #[test]
    fn what_is_written_over_is_shown_when_it_is() {
        assert_eq!(shown(&[b"\r10%", b"\r20%", b"\r30%\n"]), [">\r", ">10%\r", ">20%\r>30%\n"]);
        assert_eq!(shown(&[b"a\r\n", b"b\r", b"\nc\r"]), [">a\r\n", ">b\r\n", ">c\r\n"]);
    }

    #[test]
    fn lines_without_end_are_shown_in_pieces() {
        let block = vec![b'x'; LONGEST / 2];
        let pieces = shown(&[&block, &block, &block]);
        let lengths: Vec<_> = pieces.iter().map(String::len).collect();
        assert_eq!(lengths, [LONGEST + 2, LONGEST / 2 + 2]);
    }

    #[test]
    fn the_tail_has_whole_lines() {
        let mut tail = Tail::default();
        assert!(tail.last_lines().is_empty());
        for line in 0..1000 {
            tail.add(format!("{line:0>100}\n").as_bytes());
        }
        let last: Vec<_> = tail.last_lines().iter().map(|line| line.to_vec()).collect();
        let want = (1000 - TAIL_LINES..1000).map(|line| format!("{line:0>100}\n").into_bytes());
        assert_eq!(last, want.collect::<Vec<_>>());

        // More than is kept, in few lines.
        let mut tail = Tail::default();
        tail.add(&[&b"x".repeat(TAIL)[..], b"\n", &b"y".repeat(TAIL / 2), b"\n"].concat());
        let last = tail.last_lines();
        assert!(last.len() == 1 && last[0].starts_with(b"y") && last[0].len() == TAIL / 2 + 1);
    }
}
