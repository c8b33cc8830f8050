//! Which group shall have which shard.
//!
//! Decides shares, how many shards each group shall have, and then moves as few shards as come to
//! them. With equal weights shares are within one of each other; a share is otherwise its quota, by
//! weight, rounded up or down; and a group to which more shards are pinned than that has those and no
//! other. Where groups differ in nothing else, the lower number has more. A function of its
//! arguments, so that every member decides alike.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    iter::repeat_n,
};

use crate::ids::{GroupId, ShardId};

/// The owner of each shard, by number: none, if there is no group with a weight.
///
/// `current` is the owner of each shard now, `weights` who takes part and with how much,
/// `pins` who shall have a shard whatever that does to shares; a pin to a group that does not take
/// part counts for nothing. The fewest shards move that can.
pub fn assign(
    current: &[Option<GroupId>],
    weights: &BTreeMap<GroupId, u32>,
    pins: &BTreeMap<ShardId, GroupId>,
) -> Vec<Option<GroupId>> {
    let takes_part = |group: &GroupId| weights.contains_key(group);
    let pinned_to = |shard: usize| {
        let shard = ShardId(u32::try_from(shard).ok()?);
        pins.get(&shard).copied().filter(takes_part)
    };
    let mut next: Vec<_> = (0..)
        .zip(current)
        .map(|(shard, owner)| pinned_to(shard).or(owner.filter(takes_part)))
        .collect();
    let mut groups: BTreeMap<GroupId, Group> = weights
        .iter()
        .map(|(&group, &weight)| (group, Group { weight: weight.into(), pinned: 0, held: 0 }))
        .collect();
    for (shard, owner) in next.iter().enumerate() {
        let Some(group) = owner.and_then(|owner| groups.get_mut(&owner)) else { continue };
        group.held += 1;
        group.pinned += u64::from(pinned_to(shard).is_some());
    }
    let mut left = shares(next.len() as u64, &groups);
    for (group, left) in &mut left {
        *left -= groups[group].pinned;
    }
    // What a group has beyond its share it gives up, the last shards first.
    for (shard, owner) in next.iter_mut().enumerate() {
        if pinned_to(shard).is_none()
            && let Some(left) = owner.and_then(|owner| left.get_mut(&owner))
        {
            match left.checked_sub(1) {
                Some(rest) => *left = rest,
                None => *owner = None,
            }
        }
    }
    let mut takers = left.into_iter().flat_map(|(group, left)| repeat_n(group, left as usize));
    for owner in next.iter_mut().filter(|owner| owner.is_none()) {
        *owner = takers.next();
    }
    next
}

/// What a share depends on.
#[derive(Clone, Copy, Debug)]
struct Group {
    weight: u64,
    /// How many shards are pinned to it.
    pinned: u64,
    /// How many it has, with those.
    held: u64,
}

/// How many shards each group shall have: at least those that are pinned to it. Together all, if any
/// group has a weight.
fn shares(shards: u64, groups: &BTreeMap<GroupId, Group>) -> BTreeMap<GroupId, u64> {
    let mut shares = BTreeMap::new();
    let mut open = groups.clone();
    let mut rest = shards;
    loop {
        let total: u64 = open.values().map(|group| group.weight).sum();
        if total == 0 {
            shares.extend(open.iter().map(|(&id, group)| (id, group.pinned)));
            return shares;
        }
        let quota = |group: &Group| (rest * group.weight / total, rest * group.weight % total);
        let extras = rest - open.values().map(|group| quota(group).0).sum::<u64>();
        // Who has more pinned than a quota rounded down has the quota rounded up, if there are
        // enough of those; and who has more than that is a matter of its pins alone.
        let over = |group: &Group| group.pinned > quota(group).0 + u64::from(quota(group).1 > 0);
        let forced = |group: &Group| group.pinned > quota(group).0;
        let mut closed: BTreeSet<GroupId> = ids(&open, over);
        if closed.is_empty() && ids(&open, forced).len() as u64 > extras {
            closed = ids(&open, forced);
        }
        if closed.is_empty() {
            let mut rounded: Vec<_> = open.iter().filter(|(_, group)| quota(group).1 > 0).collect();
            rounded.sort_by_key(|(id, group)| {
                let (down, remainder) = quota(group);
                let (pinned, held) = (group.pinned > down, group.held > down);
                (Reverse(pinned), Reverse(held), Reverse(remainder), **id)
            });
            let up = rounded.into_iter().take(extras as usize);
            let up: BTreeSet<_> = up.map(|(id, _)| *id).collect();
            for (id, group) in &open {
                shares.insert(*id, quota(group).0 + u64::from(up.contains(id)));
            }
            return shares;
        }
        for id in &closed {
            let group = open.remove(id).expect("it is one of those");
            rest -= group.pinned;
            shares.insert(*id, group.pinned);
        }
    }
}

fn ids(groups: &BTreeMap<GroupId, Group>, is_one: impl Fn(&Group) -> bool) -> BTreeSet<GroupId> {
    groups.iter().filter(|(_, group)| is_one(group)).map(|(id, _)| *id).collect()
}
