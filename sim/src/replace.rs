//! Members whose disk is lost for good: to whom that may happen, and who takes their place.
//!
//! What breaks is drawn only while a majority of the voters is left without the member. A store that
//! refuses to open never opens again; the operator, who knows who that is, has the member removed
//! and a new one added under another id, as docs/operations.md asks of a person.

use bytes::Bytes;
use raft::{Change, NodeId, Standing};
use rand::RngExt;

use crate::{
    World,
    agenda::{Happening, Mend},
    disk::Broken,
    fault::Damage,
    group::{Group, GroupId, MemberId},
    invariants::Violation,
    reshape::MEMBERS_MAX,
};

/// How often the operator looks.
const LOOKS_EVERY_US: u64 = 300_000;

impl World {
    /// Gives a member that was just made its disk.
    pub(crate) fn make_disk(&mut self, id: MemberId) -> Result<(), Broken> {
        let seed = self.rng.random();
        let Group { founders, members, .. } = self.groups.get_mut(id.group);
        let member = members.get_mut(&id.node).expect("every id is a member's");
        if self.mix.store { member.disk.use_store(seed, id.node, founders) } else { Ok(()) }
    }

    /// What breaks in a crash of this member.
    pub(crate) fn draw_damage(&mut self, id: MemberId) -> Option<Damage> {
        if self.mix.damages.is_empty() || !self.groups.get(id.group).can_do_without(id.node) {
            return None;
        }
        let mut broken = None;
        for &(damage, per_mille) in &self.mix.damages {
            if self.mix.chance(&mut self.rng, per_mille) {
                broken = Some(damage);
            }
        }
        broken
    }

    /// Whether a member of a group that is lost still belongs to it, or has no successor yet.
    pub(crate) fn is_bereft(&self, group: GroupId) -> bool {
        self.groups.get(group).is_bereft()
    }

    /// Somebody of this group is lost. One operator at a time looks after it.
    pub(crate) fn call_operator(&mut self, group: GroupId) -> Result<(), Violation> {
        if std::mem::replace(&mut self.groups.get_mut(group).operator_called, true) {
            return Ok(());
        }
        self.replace_lost(group)
    }

    /// The operator has those removed who are lost, and others added, step by step; every member
    /// that takes itself for a leader is asked.
    pub(crate) fn replace_lost(&mut self, group: GroupId) -> Result<(), Violation> {
        if !self.is_bereft(group) {
            self.groups.get_mut(group).operator_called = false;
            return Ok(());
        }
        let changes = self.next_step(group)?;
        if !changes.is_empty() {
            let members = self.groups.members_of(group).into_iter();
            let leaders: Vec<_> = members.filter(|&id| self.groups.leads(id)).collect();
            for id in leaders {
                self.ask_for(id, changes.clone());
            }
        }
        self.agenda.after(LOOKS_EVERY_US, Happening::Mend(Mend::ReplaceLost(group)));
        Ok(())
    }

    fn next_step(&mut self, id: GroupId) -> Result<Vec<Change>, Violation> {
        let group = self.groups.get(id);
        let membership = group.ghost().membership().clone();
        let wanted = group.founders.voters().count();
        let is_lost = |id: &NodeId| group.is_lost(*id);
        let (lost, sound): (Vec<_>, Vec<_>) =
            membership.members().iter().partition(|(id, _)| is_lost(id));
        let mut changes: Vec<Change> = lost.iter().map(|(id, _)| Change::Remove(**id)).collect();
        if sound.len() < wanted
            && let Some(id) = self.newcomer(id, &membership)?
        {
            changes.push(Change::AddLearner { id, contact: Bytes::new() });
        }
        if changes.is_empty() {
            let learners = sound.iter().filter(|(_, it)| it.standing == Standing::Learner);
            changes.extend(learners.map(|(id, _)| Change::Promote(**id)));
        }
        Ok(changes)
    }
}

impl Group {
    /// Whether the group goes on if this member is lost: majorities are left, and somebody who may
    /// take its place.
    fn can_do_without(&self, id: NodeId) -> bool {
        let membership = self.ghost().membership();
        let members: Vec<NodeId> = membership.members().keys().copied().collect();
        let lost = members.iter().filter(|&&it| it == id || self.is_lost(it)).count();
        let halves = [membership.voters_before().count(), membership.voters_after().count()];
        // Also of those who were lost before some may not be replaced yet.
        let missing = (self.founders.voters().count() + lost).saturating_sub(members.len());
        let unborn = MEMBERS_MAX.saturating_sub(membership.last_id().0);
        members.contains(&id)
            && halves.iter().all(|voters| 2 * lost < *voters)
            && missing as u64 <= unborn
    }

    fn is_lost(&self, id: NodeId) -> bool {
        self.members.get(&id).is_some_and(|member| member.disk().lost().is_some())
    }

    fn is_bereft(&self) -> bool {
        let membership = self.ghost().membership();
        let lost = self.members.keys().any(|&id| self.is_lost(id));
        let belongs = membership.members().keys().any(|&id| self.is_lost(id));
        let is_short = membership.voters().count() < self.founders.voters().count();
        lost && (belongs || is_short)
    }
}
