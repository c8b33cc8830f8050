//! A configuration: which group shall have which shard, as it was published.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    ids::{GroupId, Number, ShardId},
    limits::{GROUPS_MAX, WEIGHT_MAX},
    rebalance::assign,
};

/// A configuration, which never changes. Copies share their parts.
///
/// Invariants: every shard has an owner that takes part, or none if nobody does; pins are to groups
/// that take part; somebody who takes part has a weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its number; each is one more than the one before, but after a recovery of the controller.
    pub number: Number,
    /// The owner of each shard, by number.
    pub owners: Arc<[Option<GroupId>]>,
    /// The weight of each group that takes part.
    pub weights: Arc<BTreeMap<GroupId, u32>>,
    /// Which shards stay with a group until they are unpinned.
    pub pins: Arc<BTreeMap<ShardId, GroupId>>,
}

/// What a request makes of a configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Who takes part from now on, and with how much; a group that does already has this weight then.
    pub weights: BTreeMap<GroupId, u32>,
    /// Who takes part no more; what was pinned to it is not.
    pub leaving: Vec<GroupId>,
    /// What is pinned, or no more.
    pub pins: BTreeMap<ShardId, Option<GroupId>>,
}

impl Target {
    /// The configuration without groups.
    pub fn empty(shards: u32) -> Self {
        let owners = vec![None; shards as usize].into();
        Self { number: Number(0), owners, weights: Arc::default(), pins: Arc::default() }
    }

    /// The configuration that comes of a change, under this number; none: it is the same.
    pub fn changed(&self, change: &Change, number: Number) -> Option<Self> {
        let (mut weights, mut pins) = ((*self.weights).clone(), (*self.pins).clone());
        weights.extend(&change.weights);
        weights.retain(|group, _| !change.leaving.contains(group));
        for (&shard, pin) in &change.pins {
            match pin {
                Some(group) => pins.insert(shard, *group),
                None => pins.remove(&shard),
            };
        }
        pins.retain(|_, group| weights.contains_key(group));
        let owners = assign(&self.owners, &weights, &pins);
        if *owners == *self.owners && weights == *self.weights && pins == *self.pins {
            return None;
        }
        let (weights, pins) = (shared(&self.weights, weights), shared(&self.pins, pins));
        Some(Self { number, owners: owners.into(), weights, pins })
    }

    /// What always holds.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        let owners_take_part = self.owners.iter().all(|owner| match owner {
            Some(group) => self.weights.contains_key(group),
            None => self.weights.is_empty(),
        });
        let pins_hold = self.pins.iter().all(|(&shard, &group)| self.owner(shard) == Some(group));
        let somebody_weighs =
            self.weights.is_empty() || self.weights.values().any(|&weight| weight > 0);
        let bearable = self.weights.len() <= GROUPS_MAX
            && self.weights.values().all(|&weight| weight <= WEIGHT_MAX);
        for (holds, what) in [
            (owners_take_part, "a shard's owner does not take part"),
            (pins_hold, "a shard is not where it is pinned"),
            (somebody_weighs, "nobody who takes part has a weight"),
            (bearable, "there are too many groups, or too heavy ones"),
        ] {
            if !holds {
                return Err(what);
            }
        }
        Ok(())
    }

    /// How many shards there are.
    pub fn shards(&self) -> u32 {
        u32::try_from(self.owners.len()).expect("at most SHARDS_MAX")
    }

    /// Who shall have a shard.
    pub fn owner(&self, shard: ShardId) -> Option<GroupId> {
        self.owners.get(shard.0 as usize).copied().flatten()
    }
}

/// What there is already, if it is the same.
fn shared<T: PartialEq>(before: &Arc<T>, now: T) -> Arc<T> {
    if **before == now { before.clone() } else { Arc::new(now) }
}
