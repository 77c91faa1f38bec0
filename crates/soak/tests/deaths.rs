//! A rank that dies at any of a hundred points.

use std::time::Duration;

use collectives_soak::{Death, Program, Setting, survive};

#[test]
fn survivors_of_a_death_anywhere_are_told_and_go_on() {
    let (mut died, mut told, mut points, mut seed) = (0, 0, 0, 0);
    while points < 100 {
        seed += 1;
        let program = Program::generate(seed);
        if program.ranks == 1 {
            continue;
        }
        let (setting, death) = (Setting::draw(seed), Death::draw(seed, &program));
        let outcome = survive(&program, &setting, death, Duration::from_secs(60));
        let outcome = outcome.unwrap_or_else(|trouble| {
            panic!("seed {seed}: {death}: {trouble}\n{setting}\n{program}")
        });
        points += 1;
        died += usize::from(outcome.died);
        told += outcome.told;
    }
    println!("{died} of {points} died, {told} survivors were told");
    assert!(died > points / 2 && told > points, "{died} of {points} died, {told} were told");
}
