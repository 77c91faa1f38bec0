//! What every operation must give: a few obvious lines each, over one `Vec` per rank.

use crate::{
    inputs::{Reduction, scalar},
    number::Number,
};

/// Combines the inputs of all ranks, element by element, in rank order.
pub(crate) fn reduce<T: Number>(inputs: &[Vec<T>], reduction: Reduction) -> Vec<T> {
    (0..inputs[0].len())
        .map(|index| {
            let column = inputs.iter().map(|input| input[index]);
            let combined = match reduction {
                Reduction::Sum | Reduction::Avg => column.reduce(T::plus),
                Reduction::Prod => column.reduce(T::times),
                Reduction::Max => column.reduce(T::larger),
                Reduction::Min => column.reduce(T::smaller),
                Reduction::PreMulHost | Reduction::PreMulDevice => column
                    .enumerate()
                    .map(|(rank, element)| element.times(scalar(rank)))
                    .reduce(T::plus),
            };
            let combined = combined.unwrap_or(T::ZERO);
            if reduction == Reduction::Avg { combined.over(inputs.len()) } else { combined }
        })
        .collect()
}

/// One buffer after another, in rank order.
pub(crate) fn gather<T: Number>(inputs: &[Vec<T>]) -> Vec<T> {
    inputs.concat()
}

/// The `rank`-th of `size` equal parts.
pub(crate) fn part<T: Number>(whole: &[T], rank: usize, size: usize) -> Vec<T> {
    let count = whole.len() / size;
    whole[rank * count..(rank + 1) * count].to_vec()
}

/// Every rank's part for `rank`, in rank order.
pub(crate) fn all_to_all<T: Number>(inputs: &[Vec<T>], rank: usize) -> Vec<T> {
    inputs.iter().flat_map(|input| part(input, rank, inputs.len())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_ranks_worked_by_hand() {
        let inputs = [vec![1_i32, -7], vec![2, 4]];
        assert_eq!(reduce(&inputs, Reduction::Sum), [3, -3]);
        assert_eq!(reduce(&inputs, Reduction::Prod), [2, -28]);
        assert_eq!(reduce(&inputs, Reduction::Max), [2, 4]);
        assert_eq!(reduce(&inputs, Reduction::Min), [1, -7]);
        assert_eq!(reduce(&inputs, Reduction::Avg), [1, -1], "toward zero");
        // Rank 0 multiplies by 2, rank 1 by 4.
        assert_eq!(reduce(&inputs, Reduction::PreMulHost), [10, 2]);
        assert_eq!(gather(&inputs), [1, -7, 2, 4]);
        assert_eq!(all_to_all(&inputs, 1), [-7, 4]);
        assert_eq!(part(&inputs[0], 1, 2), [-7]);
    }
}
