//! `collectives launch`: a program as N ranks, with torchrun's variables.
//!
//! Everything that happens comes to one thread as an [`Event`]: a rank has ended, a signal has come,
//! an output has been read to its end. Threads that wait, for processes, signals and pipes, do nothing
//! else. So what ends a job never waits for what is shown of it: a reader that has stopped reading does
//! not keep Ctrl-C from working.

mod args;
mod environment;
mod notice;
mod output;
mod signals;

use std::{
    collections::{BTreeSet, VecDeque},
    error::Error,
    fmt, io,
    io::IsTerminal,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    time::{Duration, Instant},
};

use collectives_crew::{End, Job};
use rustix::process::{Signal, getpid, kill_process};

use self::{
    notice::Notices,
    output::{Output, Screen, Stream},
};
use crate::{Failure, block};

pub(crate) use self::args::Args;

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    if let Some(rank) = args.show.largest().filter(|&rank| rank >= args.ranks) {
        let last = args.ranks - 1;
        return Err(Failure::Usage(format!("--show {rank}: the ranks are 0 to {last}")));
    }
    let screen = Arc::new(Screen::new()?);
    let say = |text: &str| screen.show(Stream::Err, text.as_bytes());
    let (sender, events) = channel();
    let signals = sender.clone();
    signals::listen(move |signal| drop(signals.send(Event::Signal(signal))))?;
    let common = environment::Common::new(args);
    let mut restart = 0;
    loop {
        let mut output = Output::new(args, &screen, restart)?;
        let ranks = match start(args, &common, &output, restart, &sender) {
            Ok(ranks) => ranks,
            Err(error) => return Err(not_started(args, error, &screen)),
        };
        let mut watch = Watch::new(args, ranks, &events);
        watch.until_all_have_ended();
        output.end();
        let outcome = watch.until_all_is_shown();
        let Some(failed) = outcome.failed() else { return Ok(()) };
        if !failed.is_cut_off(&screen) && !screen.is_stuck() {
            failed.show(args, &output, &screen);
        }
        if !failed.can_restart() || restart == args.max_restarts {
            return Err(Failure::Exit(failed.code()));
        }
        restart += 1;
        say(&format!("launch: restart {restart} of {}\n", args.max_restarts));
    }
}

/// What happens to a job.
enum Event {
    /// One of the outputs has been read to its end.
    Drained,
    Ended(u32, End),
    Signal(Signal),
}

fn start(
    args: &Args,
    common: &environment::Common<'_>,
    output: &Output<'_>,
    restart: u32,
    events: &Sender<Event>,
) -> io::Result<Job> {
    let port = common.port()?;
    let job = Notices::for_job(args.ranks as usize)?;
    let notices = Arc::new(Mutex::new(Vec::new()));
    let drained = || {
        let events = events.clone();
        move || drop(events.send(Event::Drained))
    };
    let command = |number| {
        let rank = u32::try_from(number).map_err(io::Error::other)?;
        let mut command = Command::new(&args.program[0]);
        command.args(&args.program[1..]);
        common.equip(&mut command, rank, port, restart);
        // A process in a session of its own cannot read from the terminal.
        let reads = rank == 0 && !io::stdin().is_terminal();
        command.stdin(if reads { Stdio::inherit() } else { Stdio::null() });
        command.stdout(output.of(rank, Stream::Out, drained())?);
        command.stderr(output.of(rank, Stream::Err, drained())?);
        let notice = Some(job.attach(number, &mut command)?);
        notices.lock().unwrap_or_else(PoisonError::into_inner).push(notice);
        Ok(command)
    };
    let (events, notices) = (events.clone(), Arc::clone(&notices));
    Job::start(args.ranks as usize, command, move |rank, end| {
        // At once, for peers that wait for it.
        let mut notices = notices.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(notice) = notices.get_mut(rank).and_then(Option::take) {
            notice.publish(&end);
        }
        drop(events.send(Event::Ended(rank as u32, end)));
    })
}

/// With the codes that shells have for it.
fn not_started(args: &Args, error: io::Error, screen: &Screen) -> Failure {
    let program = Path::new(&args.program[0]);
    let is_here = program.components().count() == 1 && Path::new(".").join(program).is_file();
    let code = match error.kind() {
        io::ErrorKind::NotFound => 127,
        io::ErrorKind::PermissionDenied => 126,
        _ => return error.into(),
    };
    let help = if is_here {
        format!("; './{0}' is in this directory", program.display())
    } else {
        String::new()
    };
    let text = block("launch", &io::Error::other(format!("{error}{help}")));
    screen.show(Stream::Err, text.as_bytes());
    Failure::Exit(code)
}

/// A job that runs.
struct Watch<'a> {
    args: &'a Args,
    job: Option<Job>,
    events: &'a Receiver<Event>,
    /// The ranks that have not ended.
    alive: BTreeSet<u32>,
    /// How many outputs have not been read to their end.
    open: usize,
    /// How the job is ended, once it is.
    steps: VecDeque<(Instant, Step)>,
    outcome: Outcome,
}

/// What makes ranks end.
#[derive(Clone, Copy, Debug)]
enum Step {
    Terminate,
    Kill,
    /// They do not even end when they are killed.
    GiveUp,
}

/// How a job ended.
#[derive(Debug, Default)]
struct Outcome {
    /// The rank that failed first.
    first: Option<(u32, End)>,
    /// Whether a signal had asked for the end before that.
    is_consequence: bool,
    /// The first signal that asked for the end.
    asked: Option<Signal>,
    /// How often Ctrl-C was pressed.
    interrupts: u32,
    /// Who was killed, since it did not end otherwise.
    killed: Vec<u32>,
    /// Who was not even ended by that.
    stuck: Vec<u32>,
    /// Whether some output was not waited for.
    is_cut_short: bool,
}

impl<'a> Watch<'a> {
    fn new(args: &'a Args, job: Job, events: &'a Receiver<Event>) -> Self {
        Self {
            args,
            job: Some(job),
            events,
            alive: (0..args.ranks).collect(),
            open: 2 * args.ranks as usize,
            steps: VecDeque::new(),
            outcome: Outcome::default(),
        }
    }

    /// Waits for the ranks, and ends them all where one fails.
    fn until_all_have_ended(&mut self) {
        while !self.alive.is_empty() {
            match self.next() {
                Some(Event::Drained) => self.open -= 1,
                Some(Event::Ended(rank, end)) => self.end(rank, end),
                Some(Event::Signal(signal)) => self.hear(signal),
                None => match self.steps.pop_front() {
                    Some((_, Step::Terminate)) => self.signal(Signal::TERM),
                    Some((_, Step::Kill)) => self.kill(),
                    Some((_, Step::GiveUp)) | None => {
                        self.outcome.stuck = self.alive.iter().copied().collect();
                        break;
                    }
                },
            }
        }
        // Ends what the ranks have started.
        self.job = None;
    }

    /// Waits for the output of ranks that have all ended, which takes as long as its reader does.
    fn until_all_is_shown(mut self) -> Outcome {
        self.steps.clear();
        if self.outcome.interrupts > 1 {
            self.plan(&[(HURRY, Step::GiveUp)]);
        }
        while self.open > 0 && self.outcome.stuck.is_empty() {
            match self.next() {
                Some(Event::Drained) => self.open -= 1,
                Some(Event::Signal(Signal::TSTP)) => self.stop(),
                Some(Event::Signal(signal)) if signals::ends(signal) => {
                    self.outcome.asked.get_or_insert(signal);
                    self.outcome.is_cut_short = true;
                    break;
                }
                Some(Event::Ended(..) | Event::Signal(_)) => {}
                None => {
                    self.outcome.is_cut_short = true;
                    break;
                }
            }
        }
        self.outcome
    }

    /// What happens next; `None` when the next step is due.
    fn next(&self) -> Option<Event> {
        let event = match self.steps.front() {
            Some(&(at, _)) => {
                self.events.recv_timeout(at.saturating_duration_since(Instant::now()))
            }
            None => self.events.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        event.ok()
    }

    fn end(&mut self, rank: u32, end: End) {
        self.alive.remove(&rank);
        if end.success() || self.outcome.killed.contains(&rank) {
            return;
        }
        if self.steps.is_empty() && !self.args.keep_going {
            let grace = self.args.grace.unwrap_or(GRACE_OF_FAILURE);
            self.plan(&[(grace.min(LAST_WORDS), Step::Terminate), (grace, Step::Kill)]);
        }
        if self.outcome.first.is_none() {
            let cause = self.cause(&end);
            self.outcome.first = Some(cause.unwrap_or((rank, end)));
            self.outcome.is_consequence = self.outcome.asked.is_some();
        }
    }

    /// A rank that a signal has killed by now: where ends come too close to be told apart, that is
    /// sooner the cause of an exit code than its consequence.
    fn cause(&self, end: &End) -> Option<(u32, End)> {
        let has_code = end.status.is_some_and(|status| status.code().is_some());
        let job = self.job.as_ref().filter(|_| has_code && self.outcome.asked.is_none())?;
        self.alive.iter().find_map(|&rank| {
            let status = job.status(rank as usize).filter(|status| status.signal().is_some())?;
            Some((rank, End { pid: job.pid(rank as usize), status: Some(status), killed: None }))
        })
    }

    fn hear(&mut self, signal: Signal) {
        if signal == Signal::TSTP {
            return self.stop();
        }
        self.outcome.interrupts += u32::from(signal == Signal::INT);
        if self.outcome.interrupts > 1 && signal == Signal::INT {
            return self.kill();
        }
        self.signal(signal);
        if signals::ends(signal) {
            self.outcome.asked.get_or_insert(signal);
            if self.steps.is_empty() {
                let grace = self.args.grace.unwrap_or(GRACE_OF_SIGNAL);
                self.plan(&[(grace, Step::Kill)]);
            }
        }
    }

    /// Stops with all ranks, until this process is to go on.
    fn stop(&self) {
        // SIGTSTP does nothing in sessions without a terminal.
        self.signal(Signal::STOP);
        // It cannot fail for this process itself.
        let _ = kill_process(getpid(), Signal::STOP);
        self.signal(Signal::CONT);
    }

    fn kill(&mut self) {
        if self.outcome.killed.is_empty() {
            self.outcome.killed = self.alive.iter().copied().collect();
        }
        self.signal(Signal::KILL);
        self.steps.clear();
        self.plan(&[(PATIENCE, Step::GiveUp)]);
    }

    fn plan(&mut self, steps: &[(Duration, Step)]) {
        let now = Instant::now();
        self.steps = steps.iter().map(|&(after, step)| (now + after, step)).collect();
    }

    fn signal(&self, signal: Signal) {
        if let Some(job) = &self.job {
            job.signal(signal);
        }
    }
}

impl Outcome {
    /// What went wrong, if anything did.
    fn failed(self) -> Option<Failed> {
        let all_ended = self.killed.is_empty() && self.stuck.is_empty();
        let is_bad = self.first.is_some() || !all_ended || self.is_cut_short;
        is_bad.then_some(Failed(self))
    }
}

/// Why a job failed.
#[derive(Debug)]
struct Failed(Outcome);

impl Failed {
    fn code(&self) -> u8 {
        let status = |status: ExitStatus| status.code().or_else(|| status.signal().map(of_signal));
        let code = match (&self.0.first, self.0.asked) {
            (Some((_, end)), _) => end.status.and_then(status),
            (None, Some(signal)) => Some(of_signal(signal.as_raw())),
            (None, None) => None,
        };
        code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
    }

    /// Whether the reader of the output wanted no more, and a rank ended of that.
    fn is_cut_off(&self, screen: &Screen) -> bool {
        let status = self.0.first.as_ref().and_then(|(_, end)| end.status);
        let signal = status.and_then(|status| status.signal());
        signal == Some(Signal::PIPE.as_raw()) && screen.is_closed(Stream::Out)
    }

    fn can_restart(&self) -> bool {
        self.0.asked.is_none() && self.0.stuck.is_empty()
    }

    /// Shows what the rank that failed wrote last, and how it ended.
    fn show(&self, args: &Args, output: &Output<'_>, screen: &Screen) {
        let mut text = Vec::new();
        if let (Some((rank, _)), false) = (&self.0.first, self.0.is_consequence)
            && (args.ranks > 1 || !args.show.has(*rank))
        {
            let words = output.last_words(*rank);
            let what = match (words.lines, words.all) {
                (_, 0) => "it wrote nothing".into(),
                (lines, all) if lines < all => format!("the last {lines} of its {all} lines:"),
                (..) => "what it wrote:".to_owned(),
            };
            text = format!("rank {rank} failed; {what}\n").into();
            text.extend(words.text);
        }
        text.extend(block("launch", self).into_bytes());
        screen.show(Stream::Err, &text);
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Outcome { first, is_consequence, asked, killed, stuck, is_cut_short, .. } = &self.0;
        let mut colon = "";
        if let Some(signal) = asked.filter(|_| first.is_none() || *is_consequence) {
            write!(f, "{} was passed on", signals::name(signal.as_raw()))?;
            colon = ": ";
        }
        if let Some((rank, end)) = first {
            write!(f, "{colon}rank {rank} (pid {}) ", end.pid)?;
            match end.status.map(|status| (status.code(), status.signal())) {
                Some((Some(code), _)) => write!(f, "ended with exit code {code}")?,
                Some((_, Some(signal))) => write!(f, "was killed by {}", signals::name(signal))?,
                Some((None, None)) | None => f.write_str("ended, with an unknown status")?,
            }
            colon = "; ";
        }
        if !killed.is_empty() {
            write!(f, "{colon}{} did not end in time, and had to be killed", Ranks(killed))?;
        }
        if !stuck.is_empty() {
            write!(f, "; {} did not end even so; see the kernel log", Ranks(stuck))?;
        }
        if *is_cut_short {
            f.write_str("; not all output is shown")?;
        }
        Ok(())
    }
}

impl Error for Failed {}

/// `ranks 0, 2, 3`.
struct Ranks<'a>(&'a [u32]);

impl fmt::Display for Ranks<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.len() == 1 { "rank " } else { "ranks " })?;
        for (index, rank) in self.0.iter().enumerate() {
            write!(f, "{}{rank}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// As shells have it.
const fn of_signal(signal: i32) -> i32 {
    128 + signal
}

/// How long ranks may take to end after one failed, with SIGTERM in between.
const GRACE_OF_FAILURE: Duration = Duration::from_secs(5);

/// How long they are left alone then: they may be about to say what they see of it.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How long ranks may take to end after a signal was passed on: they may have much to write.
const GRACE_OF_SIGNAL: Duration = Duration::from_secs(30);

/// How long the rest of the output may take once Ctrl-C was pressed twice.
const HURRY: Duration = Duration::from_millis(500);

/// How long the system may take to end what was killed.
const PATIENCE: Duration = Duration::from_secs(5);
