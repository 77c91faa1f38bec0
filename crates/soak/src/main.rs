//! `just soak`: random programs on the mock until the number or the time is up, or one fails.

use std::{
    env, panic,
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

#[cfg(target_os = "linux")]
use collectives_soak::processes::{Troupe, serve};
use collectives_soak::{Death, Program, Setting, Trouble, check, shrink::shrink, survive};

fn main() -> ExitCode {
    #[cfg(target_os = "linux")]
    if let Err(error) = serve() {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    let (seed, programs, seconds) = match (
        number("COLLECTIVES_SOAK_SEED"),
        number("COLLECTIVES_SOAK_PROGRAMS"),
        number("COLLECTIVES_SOAK_SECONDS"),
    ) {
        (Ok(seed), Ok(programs), Ok(seconds)) => (seed, programs, seconds),
        (Err(text), ..) | (_, Err(text), _) | (.., Err(text)) => {
            eprintln!("{text}");
            return ExitCode::FAILURE;
        }
    };
    let single = seed.is_some() && programs.is_none() && seconds.is_none();
    let first = seed.unwrap_or_else(new_seed);
    let count = match (programs, seconds) {
        (Some(programs), _) => programs,
        (None, Some(_)) => u64::MAX - first,
        (None, None) if single => 1,
        (None, None) => 10_000,
    };
    if single {
        let program = Program::generate(first);
        println!("{program}{}\nand then {}", Setting::draw(first), Death::draw(first, &program));
    }
    let soak = Soak {
        next: AtomicU64::new(first),
        end: first.saturating_add(count),
        until: seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds)),
        done: AtomicU64::new(0),
        steps: AtomicU64::new(0),
        deaths: AtomicU64::new(0),
        #[cfg(target_os = "linux")]
        processes: env::var_os("COLLECTIVES_SOAK_PROCESSES").is_some(),
        single,
        failed: AtomicBool::new(false),
        report: Mutex::default(),
    };
    quiet_deaths();
    let start = Instant::now();
    println!("soak: programs from seed {first} on");
    let workers = thread::available_parallelism().map_or(2, |cores| cores.get().max(2));
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| soak.work());
        }
    });
    let (done, steps) = (soak.done.into_inner(), soak.steps.into_inner());
    let deaths = soak.deaths.into_inner();
    let last = soak.next.into_inner().min(soak.end).saturating_sub(1);
    let took = start.elapsed();
    if let Some(report) = soak.report.into_inner().unwrap_or_default() {
        eprintln!("{report}");
        return ExitCode::FAILURE;
    }
    println!(
        "soak: {done} programs (seeds {first} to {last}), {steps} steps: all as the oracle says; \
         {deaths} deaths, all survived; {took:.1?}"
    );
    ExitCode::SUCCESS
}

struct Soak {
    next: AtomicU64,
    end: u64,
    until: Option<Instant>,
    done: AtomicU64,
    steps: AtomicU64,
    deaths: AtomicU64,
    /// Whether ranks are processes.
    #[cfg(target_os = "linux")]
    processes: bool,
    /// One program is asked for, and all that is done with it.
    single: bool,
    failed: AtomicBool,
    report: Mutex<Option<String>>,
}

impl Soak {
    fn work(&self) {
        #[cfg(target_os = "linux")]
        let mut troupe = match self.processes.then(|| Troupe::start(6, Troupe::this_program)) {
            Some(Err(error)) => return self.fail(|| format!("soak: no processes: {error}")),
            troupe => troupe.and_then(Result::ok),
        };
        while !self.failed.load(Ordering::Relaxed)
            && self.until.is_none_or(|until| Instant::now() < until)
        {
            let seed = self.next.fetch_add(1, Ordering::Relaxed);
            if seed >= self.end {
                return;
            }
            let (program, setting) = (Program::generate(seed), Setting::draw(seed));
            #[cfg(target_os = "linux")]
            if let Some(troupe) = &mut troupe {
                self.steps.fetch_add(program.len() as u64, Ordering::Relaxed);
                match troupe.check(seed, DEADLINE) {
                    Ok(()) => _ = self.done.fetch_add(1, Ordering::Relaxed),
                    Err(trouble) => {
                        self.fail(|| format!("soak: seed {seed} fails, with {trouble}\n{program}"));
                        return;
                    }
                }
                continue;
            }
            self.steps.fetch_add(program.len() as u64, Ordering::Relaxed);
            if let Err(trouble) = check(&program, &setting, DEADLINE) {
                let again = |program: &Program, setting: &Setting| check(program, setting, SOON);
                self.fail(|| explain("", &program, &setting, &trouble, again));
                return;
            }
            self.done.fetch_add(1, Ordering::Relaxed);
            if program.ranks > 1 && (seed.is_multiple_of(10) || self.single) {
                self.kill(&program, &setting);
            }
        }
    }

    /// The same again, with a death.
    fn kill(&self, program: &Program, setting: &Setting) {
        let death = Death::draw(program.seed, program);
        match survive(program, setting, death, DEADLINE) {
            Ok(outcome) => _ = self.deaths.fetch_add(outcome.died.into(), Ordering::Relaxed),
            Err(trouble) => {
                let again = |program: &Program, setting: &Setting| {
                    survive(program, setting, death, SOON).map(|_| ())
                };
                let death = format!(", where {death},");
                self.fail(|| explain(&death, program, setting, &trouble, again));
            }
        }
    }

    /// The first failure is the one that is reported.
    fn fail(&self, report: impl FnOnce() -> String) {
        if !self.failed.swap(true, Ordering::Relaxed) {
            let report = report();
            *self.report.lock().unwrap_or_else(PoisonError::into_inner) = Some(report);
        }
    }
}

/// What failed, and the smallest part of it that still does.
fn explain(
    death: &str,
    program: &Program,
    setting: &Setting,
    trouble: &Trouble,
    again: impl Fn(&Program, &Setting) -> Result<(), Trouble>,
) -> String {
    let seed = program.seed;
    eprintln!(
        "soak: seed {seed}{death} fails, with {trouble}\n{setting}\n{program}soak: shrinking…"
    );
    let mut latest = trouble.to_string();
    let (small, plain) = shrink(program, setting, 1000, |program, setting| {
        // What depends on threads is tried again.
        (0..TRIES).any(|_| match again(program, setting) {
            Ok(()) => false,
            Err(trouble) => {
                latest = trouble.to_string();
                true
            }
        })
    });
    format!(
        "soak: seed {seed}{death} fails; what is left of it:\n{small}{plain}\n{latest}\nreplay with \
         COLLECTIVES_SOAK_SEED={seed}"
    )
}

/// Those who are killed by a fault rule panic, which is what was asked for.
fn quiet_deaths() {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let is_death = |text: &str| text.starts_with("killed by fault rule");
        if !info.payload_as_str().is_some_and(is_death) {
            hook(info);
        }
    }));
}

/// A seed that nobody had before.
fn new_seed() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, |since| since.as_millis() as u64 % 1_000_000_000_000)
}

fn number(name: &str) -> Result<Option<u64>, String> {
    match env::var(name) {
        Ok(text) => {
            text.parse().map(Some).map_err(|_| format!("{name} is '{text}', want a number"))
        }
        Err(_) => Ok(None),
    }
}

/// For one program, which takes milliseconds.
const DEADLINE: Duration = Duration::from_secs(60);
/// For a part of one that failed.
const SOON: Duration = Duration::from_secs(5);
/// How often a part of a program runs before it counts as right.
const TRIES: usize = 5;
