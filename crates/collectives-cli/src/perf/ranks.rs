//! The ranks of a run, whatever carries them.

use super::run::{Figures, Times};
use crate::Failure;

/// Ranks at work.
pub(super) trait Ranks {
    /// Waits for what comes next of all ranks, in the order of the plan.
    fn next(&mut self) -> Result<Figures, Failure>;

    /// Waits until all ranks have taken leave of their communicator.
    fn ended(&mut self) -> Result<(), Failure>;
}

/// The figures of the ranks that have told theirs.
#[derive(Default)]
pub(super) struct Sum {
    ranks: u32,
    times: Times,
    wrong: Option<u64>,
}

impl Sum {
    pub(super) fn add(&mut self, Figures { times, wrong }: Figures) {
        self.ranks += 1;
        self.times.done += times.done;
        self.times.issue += times.issue;
        self.wrong = wrong.map(|wrong| wrong + self.wrong.unwrap_or(0));
    }

    /// How many ranks have told theirs.
    pub(super) const fn ranks(&self) -> usize {
        self.ranks as usize
    }

    /// The mean of the ranks' times, and the wrong elements of all.
    pub(super) fn mean(&self) -> Figures {
        let mean = |seconds| seconds / f64::from(self.ranks);
        let Times { done, issue } = self.times;
        Figures { times: Times { done: mean(done), issue: mean(issue) }, wrong: self.wrong }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_means_and_errors_sums() {
        let mut sum = Sum::default();
        for (done, issue, wrong) in [(1.0, 0.5, 3), (3.0, 1.5, 4)] {
            sum.add(Figures { times: Times { done, issue }, wrong: Some(wrong) });
        }
        assert_eq!(sum.ranks(), 2);
        let times = Times { done: 2.0, issue: 1.0 };
        assert_eq!(sum.mean(), Figures { times, wrong: Some(7) });
        let mut unchecked = Sum::default();
        unchecked.add(Figures { times, wrong: None });
        assert_eq!(unchecked.mean(), Figures { times, wrong: None });
    }
}
