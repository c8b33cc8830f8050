//! The loss of a majority: most members are gone for good, and the operator makes a survivor the only
//! voter of a group that goes on with its log, with the code of `flotilla members recover`.
//!
//! What was committed and is not in that log is lost, and so is every promise about it; the
//! invariants go on from what is left. The survivor with the end of log that is furthest is taken,
//! as docs/operations.md says. The others are of the former group and are listened to no more.

use raft::NodeId;
use rand::{RngExt, seq::IndexedRandom};

use crate::{
    World,
    agenda::Happening,
    group::{Group, GroupId},
    invariants::Violation,
    step::broken_disk,
};

impl World {
    /// Most members of a group are lost; a survivor is recovered, and the group grows again.
    pub(crate) fn lose_majority(&mut self, group: GroupId) -> Result<(), Violation> {
        let voters: Vec<NodeId> = self.groups.get(group).ghost().membership().voters().collect();
        let survivors = self.rng.random_range(1..=(voters.len() - 1) / 2);
        let survivors: Vec<NodeId> = voters.sample(&mut self.rng, survivors).copied().collect();
        for id in self.groups.members_of(group) {
            self.crash(id)?;
        }
        let Group { members, .. } = self.groups.get_mut(group);
        let last = |id: &NodeId| members[id].disk().image().last();
        let survivor = survivors.into_iter().max_by_key(last).expect("there is one");
        for (&id, member) in members {
            if id != survivor {
                member.disk.destroy();
            }
        }
        let survivor = group.member(survivor);
        self.trace.line(self.now_us(), format_args!("nobody is left but {survivor}"));
        self.agenda
            .forget_if(|it| matches!(it, Happening::Deliver { to, .. } if to.group == group));
        let recovered = self.groups.member_mut(survivor).disk.recover(survivor.node);
        let entry = recovered.map_err(|why| broken_disk(survivor, &why))?;
        let Group { members, invariants, history, .. } = self.groups.get_mut(group);
        let before = invariants.ghost().committed();
        invariants.recovered(&members[&survivor.node], &entry)?;
        let left = invariants.ghost().committed();
        history.begin_anew().map_err(|violation| violation.of(group))?;
        self.tally.recoveries += 1;
        self.tally.entries_lost += before.0 - left.0;
        let line = format_args!("{survivor} is recovered: {left} of {before} are left");
        self.trace.line(self.agenda.now_us(), line);
        self.start(survivor)?;
        self.replace_lost(group)
    }
}
