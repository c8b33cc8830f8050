//! H6 and H7, the history of targets: numbers follow each other, one configuration under each, which
//! never changes; each shard belongs to a group that takes part; shards are spread fairly, and none
//! moves that need not.

use std::{collections::BTreeMap, sync::Arc};

use shardctl::{
    ShardMachine,
    ids::{GroupId, Number},
    target::Target,
};

use super::Violation;

/// The configurations that were published.
#[derive(Debug, Default)]
pub(super) struct TargetHistory(BTreeMap<Number, Arc<Target>>);

impl TargetHistory {
    /// Something was executed.
    pub(super) fn check(&mut self, machine: &ShardMachine) -> Result<(), Violation> {
        for target in machine.history() {
            match self.0.get(&target.number) {
                Some(known) if Arc::ptr_eq(known, target) || known == target => {}
                Some(_) => return broken("H7", target, "is another than it was"),
                None => {
                    if let Some((_, before)) = self.0.last_key_value() {
                        succeeds(before, target)?;
                    } else if target.number != Number(0) {
                        return broken("H6", target, "is the first");
                    }
                    self.0.insert(target.number, target.clone());
                }
            }
        }
        Ok(())
    }
}

fn broken(invariant: &'static str, target: &Target, what: &str) -> Result<(), Violation> {
    let Target { number, owners, weights, pins } = target;
    let what = format!("configuration {number} {what}: {owners:?}, {weights:?}, {pins:?}");
    Err(Violation::new(invariant, what))
}

fn succeeds(before: &Target, target: &Target) -> Result<(), Violation> {
    if target.number.0 != before.number.0 + 1 {
        return broken("H6", target, "does not follow the one before");
    }
    let takes_part = |owner: &Option<GroupId>| match owner {
        Some(group) => target.weights.contains_key(group),
        None => target.weights.is_empty(),
    };
    if !target.owners.iter().all(takes_part) {
        return broken("H6", target, "gives a shard to nobody");
    }
    let load = |of: &Target, group: &GroupId| {
        of.owners.iter().filter(|owner| **owner == Some(*group)).count()
    };
    let loads: Vec<_> = target.weights.keys().map(|group| load(target, group)).collect();
    let spread = loads.iter().max().unwrap_or(&0) - loads.iter().min().unwrap_or(&0);
    let plain = target.pins.is_empty() && target.weights.values().all(|weight| *weight == 1);
    if plain && spread > 1 {
        return broken("H6", target, "is out of balance");
    }
    if plain && before.pins.is_empty() && !target.weights.is_empty() {
        // Those whose owner has gone, and what others have too many of, if those may have one more
        // than the rest who have most already.
        let stays =
            |owner: &&Option<GroupId>| owner.is_some_and(|it| target.weights.contains_key(&it));
        let gone = before.owners.len() - before.owners.iter().filter(stays).count();
        let (shards, groups) = (target.owners.len(), target.weights.len());
        let mut held: Vec<_> = target.weights.keys().map(|group| load(before, group)).collect();
        held.sort_unstable_by(|one, other| other.cmp(one));
        let share = |place: usize| shards / groups + usize::from(place < shards % groups);
        let surplus: usize =
            held.iter().enumerate().map(|(place, held)| held.saturating_sub(share(place))).sum();
        let moved = before.owners.iter().zip(&*target.owners).filter(|(was, is)| was != is).count();
        if moved != gone + surplus {
            return broken("H6", target, "does not move as many shards as it must");
        }
    }
    Ok(())
}
