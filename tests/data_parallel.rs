//! The example of that name, on the mock: several ranks learn what one learns, however streams run.

#[path = "../examples/data_parallel.rs"]
#[expect(dead_code, reason = "its `main`")]
mod example;

use collectives::mock::{Mock, MockConfig};
use example::{Trained, train};

fn trained(ranks: usize, config: MockConfig) -> Vec<Trained> {
    let mock = Mock::new(config.with_devices(ranks));
    let trained = train(&mock.clone().into(), ranks).unwrap_or_else(|error| panic!("{error}"));
    mock.check_leaks().unwrap_or_else(|leaks| panic!("{leaks}"));
    trained
}

#[test]
fn ranks_learn_together_what_one_learns() {
    let alone = trained(1, MockConfig::new()).remove(0);
    let (first, last) = (alone.losses[0], alone.losses[alone.losses.len() - 1]);
    assert!(last < first / 2.0, "{alone:?}");
    for ranks in 2..=4 {
        for seed in 0..3 {
            let all = trained(ranks, MockConfig::adversarial(seed));
            assert!(all.iter().all(|rank| rank.model == all[0].model), "{all:?}");
            let near = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-5;
            let (models, losses) = (all[0].model.iter().zip(&alone.model), &all[0].losses);
            assert!(models.into_iter().all(|(a, b)| a.iter().zip(b).all(near)), "{all:?}");
            assert!(losses.iter().zip(&alone.losses).all(near), "{all:?}\n{alone:?}");
        }
    }
}
