//! The example of that name, on the mock: it computes what one rank computes, and would not without
//! its all-reduces.

#[path = "../examples/tensor_parallel_mlp.rs"]
#[expect(dead_code, reason = "its `main`, and what that alone prints")]
mod example;

use example::{Options, run};

fn errors(ranks: usize, skip_all_reduce: bool) -> [f32; 2] {
    let options = Options {
        backend: "mock".into(),
        ranks: Some(ranks),
        model: 32,
        hidden: 50, // so that three ranks have different shares
        layers: 3,
        steps: 3,
        skip_all_reduce,
    };
    let report = run(&options).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(report.is_right(), ranks == 1 || !skip_all_reduce, "{report}");
    report.errors
}

#[test]
fn ranks_compute_together_what_one_computes() {
    for ranks in 1..=4 {
        let errors = errors(ranks, false);
        assert!(errors.iter().all(|&error| error < 1e-5), "{ranks} ranks: {errors:?}");
    }
}

#[test]
fn without_all_reduces_the_check_fails() {
    for ranks in 2..=3 {
        let errors = errors(ranks, true);
        assert!(errors.iter().all(|&error| error > 0.1), "{ranks} ranks: {errors:?}");
    }
}
