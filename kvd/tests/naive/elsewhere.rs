//! A group to which shards go, and from which they come back at once: whatever they have been through,
//! nothing else may be seen of it.

use std::collections::BTreeMap;

use kvd::{
    KvMachine, MachineLimits,
    custody::{MoveNumber, Phase},
    step::{Deed, Stepped},
};
use raft::StateMachine;

use crate::common::Driven;

/// The other group; its clock is behind at first, and then further and further ahead.
pub struct Elsewhere {
    group: Driven,
    /// The latest move of each shard.
    moves: BTreeMap<u32, u64>,
}

impl Elsewhere {
    pub fn new(shards: u32, limits: MachineLimits) -> Self {
        let group = Driven::around(KvMachine::with_limits(shards, limits), shards);
        Self { group: Driven { now: 0, ..group }, moves: BTreeMap::new() }
    }

    /// Lets a shard begin to go, or takes in a few pieces of it, or, once there are no more, lets it
    /// go and come back.
    pub fn go_on(&mut self, home: &mut Driven, shard: u32) {
        let latest = self.moves.entry(shard).or_default();
        match home.contents(shard).custody().phase {
            Phase::Serving { leaving: None } => {
                let number = MoveNumber(*latest + 1);
                *latest = number.0;
                // Nothing is served there now.
                self.group.now = self.group.now * 3 + 300_000;
                begin(&mut self.group, home, shard, number);
            }
            Phase::Serving { leaving: Some(number) } => {
                if self.group.pull(home, shard, number, 2) {
                    return;
                }
                finish(&mut self.group, home, shard, number);
                let back = MoveNumber(*latest + 1);
                *latest = back.0;
                begin(home, &mut self.group, shard, back);
                finish(home, &mut self.group, shard, back);
            }
            other => panic!("a shard at home is {other:?}"),
        }
        let machine = &self.group.machine;
        assert_eq!(machine.digest(), machine.recomputed_digest());
        assert_eq!(machine.stored_bytes(), machine.recomputed_stored_bytes());
    }
}

/// A destination begins to take in a shard.
fn begin(to: &mut Driven, from: &mut Driven, shard: u32, number: MoveNumber) {
    let held = from.step(shard, number, Deed::Hold);
    assert_eq!(from.step(shard, number, Deed::Hold), held);
    let Ok(Stepped::Held(base)) = held else { panic!("not held: {held:?}") };
    for _ in 0..2 {
        let begun = to.step(shard, number, Deed::Begin { base });
        assert!(matches!(begun, Ok(Stepped::Position(_))), "{begun:?}");
    }
}

/// It takes in what is missing and serves the shard; the source lets go of it.
fn finish(to: &mut Driven, from: &mut Driven, shard: u32, number: MoveNumber) {
    let frozen = from.step(shard, number, Deed::Freeze);
    // While it is frozen its time stands still, and nothing of it is forgotten.
    from.pass();
    assert_eq!(from.step(shard, number, Deed::Freeze), frozen);
    let Ok(Stepped::Frozen(frozen)) = frozen else { panic!("not frozen: {frozen:?}") };
    while to.pull(from, shard, number, 3) {}
    for _ in 0..2 {
        assert_eq!(to.step(shard, number, Deed::Install { frozen }), Ok(Stepped::Done));
    }
    let mut left = from.step(shard, number, Deed::Delete);
    while left == Ok(Stepped::Left(true)) {
        left = from.step(shard, number, Deed::Discard);
    }
    assert_eq!(left, Ok(Stepped::Left(false)));
    assert_eq!(from.contents(shard).custody().phase, Phase::Absent);
}
