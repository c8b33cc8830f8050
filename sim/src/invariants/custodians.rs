//! Where each shard stands, by what the groups' logs say, and which moves the controller has begun:
//! what the checkers of moves (H1 to H5, H8) compare with.

use std::collections::BTreeMap;

use kvd::{
    custody::{Custody, MoveNumber, Phase},
    outcome::{Outcome, Refusal},
    step::{Deed, Frozen, Step, Stepped},
};
use shardctl::ShardMachine;

use super::{Violation, ghost::Executed};
use crate::group::GroupId;

/// The facts.
#[derive(Debug, Default)]
pub(super) struct Custodians {
    /// The moves of each shard.
    begun: BTreeMap<(u32, MoveNumber), Begun>,
    /// The controller's when it was looked at last.
    revision: Option<u64>,
    standings: BTreeMap<(u32, GroupId), Standing>,
    /// What was frozen for a move, and its digest.
    handed: BTreeMap<(u32, MoveNumber), (Frozen, u128)>,
    /// Who has installed a shard, or made it.
    arrived: BTreeMap<(u32, MoveNumber), GroupId>,
}

/// A move that the controller has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Begun {
    /// None: nobody has made the shard.
    pub(super) from: Option<GroupId>,
    pub(super) to: GroupId,
}

/// How a shard stands in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) custody: Custody,
    /// The digest of what moves, while nothing but steps can change it.
    pub(super) digest: Option<u128>,
}

impl Default for Standing {
    fn default() -> Self {
        Self { custody: Custody { settled: MoveNumber(0), phase: Phase::Absent }, digest: None }
    }
}

/// A step that was committed.
pub(super) struct Stride<'a> {
    pub(super) group: GroupId,
    pub(super) step: &'a Step<'a>,
    pub(super) executed: &'a Executed,
    pub(super) before: Standing,
    pub(super) after: Standing,
}

impl Custodians {
    pub(super) fn arrivals(&self) -> u64 {
        self.arrived.len() as u64
    }

    /// Notes which moves there are.
    pub(super) fn hear(&mut self, controller: &ShardMachine) {
        if self.revision.replace(controller.revision()) == Some(controller.revision()) {
            return;
        }
        for (shard, placement) in (0..).zip(controller.placements()) {
            let Some(moving) = placement.moving else { continue };
            let group = |group: shardctl::ids::GroupId| GroupId(group.0.get().into());
            let begun = Begun { from: placement.owner.map(group), to: group(moving.to) };
            self.begun.entry((shard, MoveNumber(placement.last.0))).or_insert(begun);
        }
    }

    /// Takes a step in; none: there is no such shard.
    pub(super) fn take<'a>(
        &mut self,
        group: GroupId,
        executed: &'a Executed,
        step: &'a Step<'a>,
    ) -> Option<Stride<'a>> {
        let contents = executed.contents(step.shard)?;
        let (custody, digest) = (contents.custody(), contents.digest());
        let after = Standing { custody, digest: (!serves(custody)).then_some(digest) };
        let before = self.standings.insert((step.shard, group), after).unwrap_or_default();
        let name = (step.shard, step.number);
        match stepped(executed) {
            Some(Stepped::Frozen(frozen)) => {
                self.handed.entry(name).or_insert((frozen, digest));
            }
            Some(Stepped::Done)
                if matches!(step.deed, Deed::Install { .. } | Deed::Create)
                    && !serves(before.custody) =>
            {
                self.arrived.entry(name).or_insert(group);
            }
            _ => {}
        }
        Some(Stride { group, step, executed, before, after })
    }

    pub(super) fn standing(&self, shard: u32, group: GroupId) -> Standing {
        self.standings.get(&(shard, group)).copied().unwrap_or_default()
    }

    /// How a shard stands in each group that has to do with it.
    pub(super) fn of(&self, shard: u32) -> impl Iterator<Item = (GroupId, Custody)> {
        let all = (shard, GroupId(0))..=(shard, GroupId(u64::MAX));
        self.standings.range(all).map(|(&(_, group), standing)| (group, standing.custody))
    }

    pub(super) fn begun(&self, shard: u32, number: MoveNumber) -> Option<Begun> {
        self.begun.get(&(shard, number)).copied()
    }

    pub(super) fn handed(&self, shard: u32, number: MoveNumber) -> Option<(Frozen, u128)> {
        self.handed.get(&(shard, number)).copied()
    }

    pub(super) fn arrived(&self, shard: u32, number: MoveNumber) -> Option<GroupId> {
        self.arrived.get(&(shard, number)).copied()
    }
}

/// Whether requests are executed.
pub(super) fn serves(custody: Custody) -> bool {
    matches!(custody.phase, Phase::Serving { .. })
}

/// What came of a step that was done.
pub(super) fn stepped(executed: &Executed) -> Option<Stepped> {
    match executed.response.result.as_ref().ok()?.outcome {
        Outcome::Stepped(stepped) => Some(stepped),
        _ => None,
    }
}

impl Stride<'_> {
    /// Whether it made a difference to how the shard stands.
    pub(super) fn moved(&self) -> bool {
        self.before.custody != self.after.custody
    }

    /// Whether the shard is served since this step.
    pub(super) fn begins_to_serve(&self) -> bool {
        !serves(self.before.custody) && serves(self.after.custody)
    }

    /// Why it was refused.
    pub(super) fn refusal(&self) -> Option<&Refusal> {
        self.executed.response.result.as_ref().err()
    }

    /// A finding.
    pub(super) fn broken(&self, invariant: &'static str, what: &str) -> Result<(), Violation> {
        let Self { group: _, step, executed, before, after } = self;
        let Step { shard, number, deed, .. } = step;
        // What came may be long.
        let deed = match deed {
            Deed::Import { at, records } => format!("Import of {} bytes at {at:?}", records.len()),
            deed => format!("{deed:?}"),
        };
        let (index, result) = (executed.index, &executed.response.result);
        let (before, after) = (before.custody, after.custody);
        let what = format!(
            "at {index}: {what}: shard {shard}, move {}, {deed}: {result:?}, {before:?} to {after:?}",
            number.0
        );
        Err(Violation::new(invariant, what))
    }
}
