//! Members whose disk is lost for good: to whom that may happen, and who takes their place.
//!
//! What breaks is drawn only while a majority of the voters is left without the member. A store that
//! refuses to open never opens again; the operator, who knows who that is, has the member removed
//! and a new one added under another id, as docs/operations.md asks of a person.

use bytes::Bytes;
use raft::{Change, Membership, NodeId, RoleKind, Standing};
use rand::RngExt;

use crate::{
    World,
    agenda::{Happening, Mend},
    disk::Broken,
    fault::Damage,
    invariants::Violation,
    member::Member,
    reshape::MEMBERS_MAX,
};

/// How often the operator looks.
const LOOKS_EVERY_US: u64 = 300_000;

impl World {
    /// Gives a member that was just made its disk.
    pub(crate) fn make_disk(&mut self, id: NodeId) -> Result<(), Broken> {
        let seed = self.rng.random();
        let member = self.members.get_mut(&id).expect("every id is a member's");
        if self.mix.store { member.disk.use_store(seed, id, &self.founders) } else { Ok(()) }
    }

    /// What breaks in a crash of this member.
    pub(crate) fn draw_damage(&mut self, id: NodeId) -> Option<Damage> {
        if self.mix.damages.is_empty() || !self.can_do_without(id) {
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

    /// Whether the group goes on if this member is lost: majorities are left, and somebody who may
    /// take its place.
    fn can_do_without(&self, id: NodeId) -> bool {
        let membership = self.ghost().membership();
        let members: Vec<NodeId> = membership.members().keys().copied().collect();
        let lost = members.iter().filter(|&&it| it == id || self.is_lost(it)).count();
        let halves = [membership.voters_before().count(), membership.voters_after().count()];
        let unborn = MEMBERS_MAX - self.ids.len() as u64;
        members.contains(&id)
            && halves.iter().all(|voters| 2 * lost < *voters)
            && lost as u64 <= unborn
    }

    fn is_lost(&self, id: NodeId) -> bool {
        self.members.get(&id).is_some_and(|member| member.disk().lost().is_some())
    }

    /// Whether a member that is lost still belongs to the group, or has no successor yet.
    pub(crate) fn is_bereft(&self) -> bool {
        let membership = self.ghost().membership();
        let lost = self.ids.iter().any(|&id| self.is_lost(id));
        let belongs = membership.members().keys().any(|&id| self.is_lost(id));
        lost && (belongs || self.is_short_of_voters(membership))
    }

    fn is_short_of_voters(&self, membership: &Membership) -> bool {
        membership.voters().count() < self.founders.voters().count()
    }

    /// The operator has those removed who are lost, and others added, step by step; every member
    /// that takes itself for a leader is asked.
    pub(crate) fn replace_lost(&mut self) -> Result<(), Violation> {
        if !self.is_bereft() {
            return Ok(());
        }
        let changes = self.next_step()?;
        if !changes.is_empty() {
            let leads =
                |member: &&Member| member.is_up() && member.standing().role == RoleKind::Leader;
            let leaders: Vec<_> = self.members.values().filter(leads).map(|it| it.id).collect();
            for id in leaders {
                self.change(id, changes.clone());
            }
        }
        self.agenda.after(LOOKS_EVERY_US, Happening::Mend(Mend::ReplaceLost));
        Ok(())
    }

    fn next_step(&mut self) -> Result<Vec<Change>, Violation> {
        let membership = self.ghost().membership().clone();
        let members = membership.members();
        let lost = members.keys().filter(|&&id| self.is_lost(id));
        let mut changes: Vec<Change> = lost.map(|&id| Change::Remove(id)).collect();
        let sound: Vec<_> = members.iter().filter(|(id, _)| !self.is_lost(**id)).collect();
        if sound.len() < self.founders.voters().count()
            && let Some(id) = self.newcomer(&membership)?
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
