//! Programs and deaths where ranks are processes, which are this very program.

use std::process::ExitCode;

#[cfg(target_os = "linux")]
fn main() -> ExitCode {
    linux::main()
}

/// Only there can the mock's ranks be processes.
#[cfg(not(target_os = "linux"))]
fn main() -> ExitCode {
    ExitCode::SUCCESS
}

#[cfg(target_os = "linux")]
mod linux {
    use std::{process::ExitCode, thread, time::Duration};

    use collectives_soak::{
        Death, Program,
        processes::{Troupe, serve},
    };
    use libtest_mimic::{Arguments, Failed, Trial};

    pub(super) fn main() -> ExitCode {
        if let Err(error) = serve() {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
        let trials = vec![
            Trial::test("programs_leave_in_memory_what_the_oracle_says", programs),
            Trial::test("survivors_of_a_death_anywhere_are_told_and_go_on", deaths),
        ];
        libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
    }

    fn troupe(size: usize) -> Result<Troupe, Failed> {
        Ok(Troupe::start(size, Troupe::this_program)?)
    }

    fn programs() -> Result<(), Failed> {
        let mut troupe = troupe(6)?;
        for seed in 0..100 {
            troupe.check(seed, DEADLINE).map_err(|trouble| {
                format!("seed {seed}: {trouble}\n{}", Program::generate(seed))
            })?;
        }
        Ok(())
    }

    /// A hundred points, by some threads, since most of the time is spent in starts of processes.
    fn deaths() -> Result<(), Failed> {
        let seeds: Vec<u64> =
            (1..).filter(|&seed| Program::generate(seed).ranks > 1).take(POINTS).collect();
        let die = |seed: u64| -> Result<(bool, usize), Failed> {
            let program = Program::generate(seed);
            let death = Death::draw_for_processes(seed, &program);
            let outcome = troupe(program.ranks)?.survive(seed, death, DEADLINE);
            let outcome =
                outcome.map_err(|trouble| format!("seed {seed}: {death}: {trouble}\n{program}"))?;
            Ok((outcome.died, outcome.told))
        };
        let (mut died, mut told) = (0, 0);
        thread::scope(|scope| {
            let threads: Vec<_> = seeds
                .chunks(POINTS.div_ceil(4))
                .map(|some| {
                    scope.spawn(move || some.iter().map(|&seed| die(seed)).collect::<Vec<_>>())
                })
                .collect();
            for thread in threads {
                for outcome in thread.join().map_err(|_| "a thread panicked")? {
                    let (has_died, survivors) = outcome?;
                    died += usize::from(has_died);
                    told += survivors;
                }
            }
            Ok::<_, Failed>(())
        })?;
        println!("{died} of {POINTS} died, {told} survivors were told");
        if died > POINTS / 2 && told > POINTS { Ok(()) } else { Err("too few died".into()) }
    }

    const POINTS: usize = 100;
    const DEADLINE: Duration = Duration::from_secs(60);
}
