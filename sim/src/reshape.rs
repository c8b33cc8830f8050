//! Changes of the members: a leader is asked to add, promote, demote, remove and move some, all at
//! once, and new members are started for it to add.
//!
//! Who was removed goes on as long as nobody stops it, as a process may that was never told; what it
//! says still arrives. A real host would refuse it (raftd's `identity.rs`).

use bytes::Bytes;
use raft::{Change, Membership, NodeId, Standing};
use rand::RngExt;

use crate::{
    World,
    agenda::Input,
    client::{CHANGER, Request},
    group::{GroupId, MemberId},
    invariants::Violation,
    machine::Machine,
    member::Member,
    step::broken_disk,
};

/// How many members a world may have come to have, founders and removed ones too.
pub(crate) const MEMBERS_MAX: u64 = 9;

impl World {
    /// Every member that takes itself for a leader is asked for the same changes, drawn for its
    /// membership.
    pub(crate) fn reshape(&mut self, group: GroupId) -> Result<(), Violation> {
        for id in self.groups.members_of(group) {
            if !self.groups.leads(id) {
                continue;
            }
            let membership = self.groups.member(id).standing().membership.clone();
            let changes = self.draw_changes(group, &membership)?;
            self.ask_for(id, changes);
        }
        Ok(())
    }

    /// Asks a member to change the members. Nothing happens if it does not lead.
    pub(crate) fn ask_for(&mut self, id: MemberId, changes: Vec<Change>) {
        let number = self.groups.get_mut(id.group).next_operation();
        let request = Request::Change { changes };
        self.give(id, Input::Ask { client: CHANGER, number, request });
    }

    fn draw_changes(
        &mut self,
        group: GroupId,
        membership: &Membership,
    ) -> Result<Vec<Change>, Violation> {
        let mut changes = Vec::new();
        for (&id, member) in membership.members() {
            let drawn = self.rng.random_range(0..100);
            let contact = Bytes::from(vec![drawn]);
            match (member.standing, drawn) {
                (Standing::Learner, 0..60) => changes.push(Change::Promote(id)),
                (_, 60..70) => changes.push(Change::Remove(id)),
                (Standing::Voter, 0..15) => changes.push(Change::Remove(id)),
                (Standing::Voter, 15..20) => changes.push(Change::Demote(id)),
                (_, 90..95) => changes.push(Change::Update { id, contact }),
                (_, _) => {}
            }
        }
        if self.mix.lease_reads && self.rng.random_range(0..4) == 0 {
            changes.push(Change::LeaseReads(self.rng.random_range(0..4) != 0));
        }
        if self.rng.random_range(0..20) == 0 {
            // One that was used, most likely: it has to be refused.
            let id = NodeId(self.rng.random_range(1..=membership.last_id().0));
            changes.push(Change::AddLearner { id, contact: Bytes::new() });
        } else if self.rng.random_range(0..2) == 0
            && let Some(id) = self.newcomer(group, membership)?
        {
            changes.push(Change::AddLearner { id, contact: Bytes::new() });
        }
        Ok(changes)
    }

    /// A member that waits to be added, or a new one.
    pub(crate) fn newcomer(
        &mut self,
        group: GroupId,
        membership: &Membership,
    ) -> Result<Option<NodeId>, Violation> {
        let members = &self.groups.get(group).members;
        if let Some(&waiting) = members.keys().find(|id| **id > membership.last_id()) {
            return Ok(Some(waiting));
        }
        let id = NodeId(members.len() as u64 + 1);
        if id.0 > MEMBERS_MAX {
            return Ok(None);
        }
        self.add_member(group.member(id))?;
        Ok(Some(id))
    }

    /// A member starts that nobody has heard of yet.
    pub(crate) fn add_member(&mut self, id: MemberId) -> Result<(), Violation> {
        let blank = Machine::of(self.groups.get(id.group).service);
        let mut member = Member::new(id, self.plant, blank);
        member.clock_rate = self.draw_clock_rate();
        self.groups.get_mut(id.group).members.insert(id.node, member);
        self.make_disk(id).map_err(|why| broken_disk(id, &why))?;
        self.start(id)
    }
}
