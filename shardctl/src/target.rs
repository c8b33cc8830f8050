//! A configuration: which group shall have which shard, as it was published.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    ids::{GroupId, Number, ShardId},
    rebalance::assign,
};

/// A configuration, which never changes. Copies share their parts.
///
/// Invariants: every shard has an owner that takes part, or none if nobody does; pins are to groups
/// that take part; somebody who takes part has a weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its number; each is one more than the one before.
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
        let next =
            Self { number, owners: owners.into(), weights: weights.into(), pins: pins.into() };
        let same = Self { number: self.number, ..next.clone() } == *self;
        (!same).then_some(next)
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
