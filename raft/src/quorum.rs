//! Majorities.

/// How many of `voters` make a majority.
pub(crate) fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

/// The highest value that a majority has reached, given one value for each voter; the default for
/// no voters at all.
pub(crate) fn reached<T: Ord + Copy + Default>(values: impl Iterator<Item = T>) -> T {
    let mut values: Vec<T> = values.collect();
    values.sort_unstable();
    // With the values in ascending order, a majority stands at or behind this place.
    values.len().checked_sub(majority(values.len())).map_or(T::default(), |place| values[place])
}

/// How an election stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tally {
    /// A majority granted its vote.
    Won,
    /// A majority refused it.
    Lost,
    /// Neither yet.
    Open,
}

/// Counts the votes of an election among `voters`.
pub(crate) fn tally(voters: usize, granted: usize, refused: usize) -> Tally {
    if granted >= majority(voters) {
        Tally::Won
    } else if voters - refused < majority(voters) {
        Tally::Lost
    } else {
        Tally::Open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn majority_commit() {
        for (values, expected) in [
            (vec![], 0),
            (vec![7], 7),
            (vec![3, 9], 3),
            (vec![1, 5, 9], 5),
            (vec![0, 0, 9], 0),
            (vec![1, 2, 3, 4], 2),
            (vec![5, 4, 3, 2, 1], 3),
        ] {
            assert_eq!(reached(values.iter().copied()), expected, "{values:?}");
        }
    }

    #[test]
    fn majority_vote() {
        assert_eq!(tally(1, 1, 0), Tally::Won);
        assert_eq!(tally(3, 1, 1), Tally::Open);
        assert_eq!(tally(3, 2, 0), Tally::Won);
        assert_eq!(tally(3, 1, 2), Tally::Lost);
        assert_eq!(tally(4, 2, 1), Tally::Open);
        assert_eq!(tally(4, 2, 2), Tally::Lost);
    }
}
