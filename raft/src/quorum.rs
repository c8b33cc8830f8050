//! Majorities, simple and joint (section 6): what needs a majority needs, while a change of voters
//! is under way, one of the voters before and one of the voters after.

use crate::{Membership, NodeId};

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

impl Membership {
    /// The highest value that a quorum has reached.
    pub(crate) fn reached<T: Ord + Copy + Default>(&self, value: impl Fn(NodeId) -> T) -> T {
        let before = reached(self.voters_before().map(&value));
        let after = reached(self.voters_after().map(&value));
        before.min(after)
    }

    /// How the votes stand: yes, no, or none yet.
    pub(crate) fn tally(&self, vote: impl Fn(NodeId) -> Option<bool>) -> Tally {
        match (tally(self.voters_before().map(&vote)), tally(self.voters_after().map(&vote))) {
            (Tally::Won, Tally::Won) => Tally::Won,
            (Tally::Lost, _) | (_, Tally::Lost) => Tally::Lost,
            (Tally::Open, _) | (_, Tally::Open) => Tally::Open,
        }
    }

    /// Whether those for whom this is true make a quorum.
    pub fn has_quorum(&self, is_there: impl Fn(NodeId) -> bool) -> bool {
        self.tally(|id| Some(is_there(id))) == Tally::Won
    }
}

/// How many of `voters` make a majority.
fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

/// The highest value that a majority has reached, given one value for each voter; the default for
/// no voters at all.
fn reached<T: Ord + Copy + Default>(values: impl Iterator<Item = T>) -> T {
    let mut values: Vec<T> = values.collect();
    values.sort_unstable();
    // With the values in ascending order, a majority stands at or behind this place.
    values.len().checked_sub(majority(values.len())).map_or(T::default(), |place| values[place])
}

/// How the votes of one majority stand.
fn tally(votes: impl Iterator<Item = Option<bool>>) -> Tally {
    let (mut voters, mut granted, mut refused) = (0, 0, 0);
    for vote in votes {
        voters += 1;
        granted += usize::from(vote == Some(true));
        refused += usize::from(vote == Some(false));
    }
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
    use std::collections::BTreeMap;

    use bytes::Bytes;

    use super::*;
    use crate::{Member, Standing};

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
        let (yes, no, none) = (Some(true), Some(false), None);
        for (votes, expected) in [
            (vec![yes], Tally::Won),
            (vec![yes, no, none], Tally::Open),
            (vec![yes, yes, none], Tally::Won),
            (vec![yes, no, no], Tally::Lost),
            (vec![yes, yes, no, none], Tally::Open),
            (vec![yes, yes, no, no], Tally::Lost),
        ] {
            assert_eq!(tally(votes.iter().copied()), expected, "{votes:?}");
        }
    }

    /// All memberships of up to four members in which somebody votes on both sides, with all values
    /// below `values` for each member.
    fn for_all(values: u64, mut check: impl FnMut(&Membership, &BTreeMap<NodeId, u64>)) {
        let standings = [
            Standing::Learner,
            Standing::Voter,
            Standing::Incoming,
            Standing::Outgoing,
            Standing::Demoted,
        ];
        let digits = |mut number: usize, base: usize, count: u64| -> Vec<usize> {
            (0..count).map(|_| (number % base, number /= base).0).collect()
        };
        for count in 1..=4 {
            for drawn in 0..standings.len().pow(count) {
                let drawn = digits(drawn, standings.len(), count.into());
                let member = |at: usize| Member { standing: standings[at], contact: Bytes::new() };
                let members = (1..).map(NodeId).zip(drawn.into_iter().map(member)).collect();
                let membership = Membership::from_parts(members, NodeId(4), false);
                if !membership.is_well_formed() {
                    continue;
                }
                let values = usize::try_from(values).expect("it is small");
                for drawn in 0..values.pow(count) {
                    let drawn = digits(drawn, values, count.into()).into_iter();
                    let drawn = drawn.map(|value| value as u64);
                    check(&membership, &(1..).map(NodeId).zip(drawn).collect());
                }
            }
        }
    }

    /// More than half of these.
    fn most(voters: &[NodeId], holds: impl Fn(NodeId) -> bool) -> bool {
        2 * voters.iter().filter(|&&voter| holds(voter)).count() > voters.len()
    }

    #[test]
    fn joint_commit() {
        let mut checked = 0;
        for_all(3, |membership, values| {
            let before: Vec<NodeId> = membership.voters_before().collect();
            let after: Vec<NodeId> = membership.voters_after().collect();
            let reached = |value| {
                let there = |voter| values[&voter] >= value;
                most(&before, there) && most(&after, there)
            };
            let expected = (0..3).filter(|&value| reached(value)).max();
            let found = membership.reached(|voter| values[&voter]);
            assert_eq!(Some(found), expected, "{membership:?} {values:?}");
            checked += 1;
        });
        assert!(checked > 20_000, "{checked}");
    }

    #[test]
    fn joint_vote() {
        for_all(3, |membership, values| {
            let vote = |voter| [None, Some(false), Some(true)][values[&voter] as usize];
            let sides: [Vec<NodeId>; 2] =
                [membership.voters_before().collect(), membership.voters_after().collect()];
            let won = sides.iter().all(|side| most(side, |voter| vote(voter) == Some(true)));
            let open = sides.iter().all(|side| most(side, |voter| vote(voter) != Some(false)));
            let expected = match (won, open) {
                (true, _) => Tally::Won,
                (false, true) => Tally::Open,
                (false, false) => Tally::Lost,
            };
            assert_eq!(membership.tally(vote), expected, "{membership:?} {values:?}");
        });
    }

    /// Two quorums of one membership, and of two that follow each other, have a voter in common.
    #[test]
    fn quorums_meet() {
        for_all(2, |membership, here| {
            let is_quorum = |membership: &Membership, side: u64| {
                membership.has_quorum(|voter| here[&voter] == side)
            };
            assert!(!(is_quorum(membership, 0) && is_quorum(membership, 1)), "{membership:?}");
            let settled = membership.settled();
            assert!(!(is_quorum(membership, 0) && is_quorum(&settled, 1)), "{membership:?}");
        });
    }
}
