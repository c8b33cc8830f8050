//! The loss of a majority: most members are gone for good, and the operator makes a survivor the only
//! voter of a group that goes on with its log, with the code of `flotilla members recover`.
//!
//! What was committed and is not in that log is lost, and with it what clients were told; the
//! invariants go on from what is left. If nothing is lost every promise has to be kept. The survivor
//! with the end of log that is furthest is taken, as docs/operations.md says. The others are of the
//! former group and are listened to no more.
//!
//! Only groups of registers lose their majority: what clerks of a key/value store were told of
//! entries that are lost, neither S1 to S5 nor K1 and K3 know to forget.

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
        let lost = invariants.recovered(&members[&survivor.node], &entry)?;
        // Where nothing is lost, every promise holds on.
        if lost > 0 {
            history.begin_anew().map_err(|violation| violation.of(group))?;
        }
        self.tally.recoveries += 1;
        self.tally.entries_lost += lost;
        let left = invariants.ghost().committed();
        let line = format_args!("{survivor} is recovered: {left} are left, {lost} are lost");
        self.trace.line(self.agenda.now_us(), line);
        self.start(survivor)?;
        self.call_operator(group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Mix, Options,
        client::{OPERATOR, Reply},
        history::Wish,
        machine::{Answer, CommandId},
    };
    use raft::Index;

    #[test]
    fn promises_hold_on_if_nothing_is_lost() {
        let mix = Mix { store: true, ..Mix::calm() };
        let mut world = World::new(Options::new(0, 3), mix, None);
        world.expect_leader().unwrap();
        world.one(3).unwrap();
        // What is committed has been on all disks for long.
        world.run_for(5_000_000).unwrap();
        world.lose_majority(GroupId::FIRST).unwrap();
        assert_eq!((world.tally().recoveries, world.tally().entries_lost), (1, 0));
        let now_us = world.now_us();
        let history = &mut world.groups.get_mut(GroupId::FIRST).history;
        let name = CommandId { client: OPERATOR, number: 1_000 };
        history.ask(now_us, name, 0, Wish::Read);
        history.hear(now_us, name, &Reply::Read(Answer { index: Index(1_000), value: None }));
        assert!(history.judge(u64::MAX).is_err(), "the write was acknowledged");
    }
}
