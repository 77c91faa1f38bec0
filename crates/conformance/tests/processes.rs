//! Worlds of processes, in good and in bad health: this program runs itself, which starts itself
//! again for each rank.

use std::{
    env,
    process::{Command, ExitCode, abort, exit, id},
    thread,
    time::Duration,
};

use collectives_backend_mock::{Mock, MockConfig};
use collectives_conformance::{Harness, trials};
use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    if let Ok(health) = env::var(HEALTH) {
        return libtest_mimic::run(&arguments, trials(OnMock(health))).exit_code();
    }
    let tests: [(&str, &str, &[&str]); 5] = [
        ("a_case_runs_in_a_process", "good", &["1 passed"]),
        (
            "a_death_names_process_and_status",
            "dying",
            &[
                "1 failed",
                "the world was not set up\n  rank 0: its process ",
                " ended: exit status: 3",
            ],
        ),
        ("a_signal_is_told", "aborting", &[" ended: signal: 6 (SIGABRT)"]),
        (
            "a_late_rank_is_killed",
            "late",
            &[
                "[late/1 rank] joining did not end within 300ms:\n  rank 0 is stuck; it (process ",
                ") made no call",
            ],
        ),
        (
            "a_process_that_no_harness_knows_says_so",
            "unknown",
            &[
                " ended: exit status: 0; its `main` has to come by `trials` with a harness of the same ",
            ],
        ),
    ];
    let tests = tests.map(|(name, health, parts)| {
        let test = Trial::test(name, move || says(&inside(health), parts));
        test.with_ignored_flag(cfg!(not(unix)))
    });
    libtest_mimic::run(&arguments, tests.into()).exit_code()
}

/// What this program prints when it runs a case on a world of this health.
fn inside(health: &str) -> String {
    let program = env::current_exe().expect("this program is somewhere");
    let case = "rank] all_reduce::sum_matches_oracle";
    let output = Command::new(program).arg(case).env(HEALTH, health).output();
    let output = output.expect("this program starts");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn says(text: &str, parts: &[&str]) -> Result<(), Failed> {
    match parts.iter().find(|part| !text.contains(**part)) {
        None => Ok(()),
        Some(part) => Err(format!("'{part}' is not in: {text}").into()),
    }
}

/// One rank on the mock, and what is wrong with its process.
struct OnMock(String);

impl Harness for OnMock {
    type Backend = Mock;

    fn name(&self) -> String {
        match self.0.as_str() {
            // Another name in each process.
            "unknown" => format!("unknown {}", id()),
            health => health.into(),
        }
    }

    fn backend(&self) -> Mock {
        // The program that runs the suite makes one, too.
        let is_rank = env::var_os("COLLECTIVES_CREW").is_some();
        match self.0.as_str() {
            "dying" if is_rank => exit(3),
            "aborting" if is_rank => abort(),
            "late" if is_rank => thread::sleep(Duration::from_secs(600)),
            _ => {}
        }
        Mock::new(MockConfig::new())
    }

    fn worlds(&self) -> Vec<usize> {
        vec![1]
    }

    fn processes(&self) -> bool {
        true
    }

    fn deadline(&self) -> Duration {
        if self.0 == "late" { Duration::from_millis(300) } else { Duration::from_secs(60) }
    }
}

/// The health of the world to run.
const HEALTH: &str = "CONFORMANCE_PROCESSES_HEALTH";
