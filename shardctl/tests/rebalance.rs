//! Assignments, beside the best that there are, found by trying all.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

use std::{cmp::Reverse, collections::BTreeMap};

use proptest::{collection, prelude::*};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use shardctl::{
    ids::{GroupId, ShardId},
    rebalance::assign,
};

type Owners = Vec<Option<GroupId>>;

fn group(number: u32) -> GroupId {
    GroupId::new(number).unwrap()
}

/// What is asked of an assignment.
#[derive(Clone, Debug)]
struct Case {
    current: Owners,
    weights: BTreeMap<GroupId, u32>,
    pins: BTreeMap<ShardId, GroupId>,
}

impl Case {
    fn assign(&self) -> Owners {
        assign(&self.current, &self.weights, &self.pins)
    }

    /// Each assignment to groups that take part that has shards where they are pinned.
    fn all(&self) -> impl Iterator<Item = Owners> {
        let groups: Vec<_> = self.weights.keys().copied().collect();
        let shards = self.current.len();
        (0..groups.len().pow(shards as u32)).filter_map(move |mut number| {
            let mut owners = Vec::with_capacity(shards);
            for shard in 0..shards {
                let owner = groups[number % groups.len()];
                number /= groups.len();
                let pin = self.pins.get(&ShardId(shard as u32));
                if pin.is_some_and(|pin| self.weights.contains_key(pin) && *pin != owner) {
                    return None;
                }
                owners.push(Some(owner));
            }
            Some(owners)
        })
    }

    fn moves(&self, next: &Owners) -> usize {
        self.current.iter().zip(next).filter(|(now, next)| now != next).count()
    }

    fn loads(&self, owners: &Owners) -> BTreeMap<GroupId, u64> {
        let mut loads: BTreeMap<_, _> = self.weights.keys().map(|group| (*group, 0)).collect();
        for owner in owners {
            *loads.get_mut(&owner.unwrap()).unwrap() += 1;
        }
        loads
    }

    /// Loads, the largest first: of two assignments that with the smaller is the fairer, if all
    /// weights are equal.
    fn profile(&self, owners: &Owners) -> Vec<Reverse<u64>> {
        let mut loads: Vec<_> = self.loads(owners).into_values().map(Reverse).collect();
        loads.sort_unstable();
        loads
    }

    /// Whether each load is its quota, rounded up or down.
    fn is_by_quota(&self, owners: &Owners) -> bool {
        let total: u64 = self.weights.values().map(|weight| u64::from(*weight)).sum();
        let shards = owners.len() as u64;
        self.loads(owners).into_iter().all(|(group, load)| {
            let exact = shards * u64::from(self.weights[&group]);
            (exact / total..=exact.div_ceil(total)).contains(&load)
        })
    }
}

/// Up to four groups of which not all need take part, and up to six shards.
fn case(
    weights: impl Strategy<Value = Vec<u32>>,
    pinned: std::ops::RangeInclusive<usize>,
) -> impl Strategy<Value = Case> {
    (weights, collection::vec(0..=5_u32, 1..=6)).prop_flat_map(move |(weights, current)| {
        let shards = current.len() as u32;
        let pins = collection::btree_map((0..shards).prop_map(ShardId), 1..=5_u32, pinned.clone());
        pins.prop_map(move |pins| Case {
            current: current.iter().map(|&number| GroupId::new(number)).collect(),
            weights: (1..).map(group).zip(weights.iter().copied()).collect(),
            pins: pins.into_iter().map(|(shard, number)| (shard, group(number))).collect(),
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn with_equal_weights_it_is_the_fairest_with_the_fewest_moves(
        case in case((1..=4_usize).prop_map(|groups| vec![1; groups]), 0..=4)
    ) {
        let next = case.assign();
        // Reversed loads: the largest of profiles is the fairest.
        let fairest = case.all().map(|owners| case.profile(&owners)).max().unwrap();
        prop_assert_eq!(case.profile(&next), fairest.clone());
        let fair = case.all().filter(|owners| case.profile(owners) == fairest);
        prop_assert_eq!(case.moves(&next), fair.map(|owners| case.moves(&owners)).min().unwrap());
        prop_assert!(case.all().any(|owners| owners == next), "a pin counts for nothing");
    }

    #[test]
    fn by_weight_it_is_by_quota_with_the_fewest_moves(
        case in case(collection::vec(0..=4_u32, 1..=4), 0..=0)
    ) {
        let next = case.assign();
        if case.weights.values().all(|weight| *weight == 0) {
            prop_assert_eq!(next, vec![None; case.current.len()]);
            return Ok(());
        }
        prop_assert!(case.is_by_quota(&next), "{:?}", next);
        let fair = case.all().filter(|owners| case.is_by_quota(owners));
        prop_assert_eq!(case.moves(&next), fair.map(|owners| case.moves(&owners)).min().unwrap());
    }

    #[test]
    fn with_pins_and_weights_every_shard_is_had_and_the_next_moves_none(
        case in case(collection::vec(0..=9_u32, 1..=4), 0..=6)
    ) {
        prop_assume!(case.weights.values().any(|weight| *weight > 0));
        let next = case.assign();
        for (group, load) in case.loads(&next) {
            let pinned = case.pins.values().filter(|pin| **pin == group).count() as u64;
            prop_assert!(case.weights[&group] > 0 || load == pinned, "{} has {}", group, load);
        }
        prop_assert!(case.all().any(|owners| owners == next), "{:?}", next);
        let again = Case { current: next.clone(), ..case };
        prop_assert_eq!(again.assign(), next);
    }
}

#[test]
fn nobody_who_takes_part_leaves_shards_without_owner() {
    let current = vec![Some(group(1)), None];
    assert_eq!(assign(&current, &BTreeMap::new(), &BTreeMap::new()), [None, None]);
}

#[test]
fn groups_come_and_go_and_no_more_moves_than_must() {
    let mut rng = StdRng::seed_from_u64(7);
    let mut case =
        Case { current: vec![None; 256], weights: BTreeMap::new(), pins: BTreeMap::new() };
    for _ in 0..2_000 {
        let one = group(rng.random_range(1..=40));
        let left = case.weights.remove(&one).is_some();
        let before = case.weights.len();
        if left && before == 0 {
            case.weights.insert(one, 1);
            continue;
        }
        if !left {
            case.weights.insert(one, 1);
        }
        let next = case.assign();
        let loads = case.loads(&next);
        let (least, most) = (*loads.values().min().unwrap(), *loads.values().max().unwrap());
        assert!(most - least <= 1, "{loads:?}");
        let moved = case.current.iter().zip(&next).filter(|(now, next)| now != next);
        for (now, next) in moved.clone() {
            let concerned = if left { *now } else { *next };
            assert_eq!(concerned, Some(one), "only the shards of who comes or goes move");
        }
        if !left {
            assert_eq!(moved.count() as u64, loads[&one]);
        }
        case.current = next;
    }
}
