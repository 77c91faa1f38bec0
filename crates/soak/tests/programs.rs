//! A few of the programs of which `just soak` runs thousands.

use std::time::Duration;

use collectives_soak::{Program, Setting, check};

#[test]
fn programs_leave_in_memory_what_the_oracle_says() {
    for seed in 0..300 {
        let (program, setting) = (Program::generate(seed), Setting::draw(seed));
        check(&program, &setting, Duration::from_secs(60)).unwrap_or_else(|trouble| {
            panic!("seed {seed}: {trouble}\n{setting}\n{program}");
        });
    }
}
