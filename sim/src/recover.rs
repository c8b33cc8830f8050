//! The loss of a majority: most members are gone for good, and the operator makes a survivor the only
//! voter of a group that goes on with its log, with the code of `flotilla members recover`.
//!
//! What was committed and is not in that log is lost, and so is every promise about it; the
//! invariants go on from what is left. The survivor with the end of log that is furthest is taken,
//! as docs/operations.md says. The others are of the former group and are listened to no more.

use raft::NodeId;
use rand::{RngExt, seq::IndexedRandom};

use crate::{World, agenda::Happening, invariants::Violation, step::broken_disk};

impl World {
    /// Most members are lost; a survivor is recovered, and the group grows again.
    pub(crate) fn lose_majority(&mut self) -> Result<(), Violation> {
        let voters: Vec<NodeId> = self.ghost().membership().voters().collect();
        let survivors = self.rng.random_range(1..=(voters.len() - 1) / 2);
        let survivors: Vec<NodeId> = voters.sample(&mut self.rng, survivors).copied().collect();
        for id in self.ids.clone() {
            self.crash(id)?;
        }
        let last = |id: &NodeId| self.members[id].disk().image().last();
        let survivor = survivors.into_iter().max_by_key(last).expect("there is one");
        self.trace.line(self.now_us(), format_args!("nobody is left but n{survivor}"));
        self.agenda.forget_if(|it| matches!(it, Happening::Deliver { .. }));
        for (&id, member) in &mut self.members {
            if id != survivor {
                member.disk.destroy();
            }
        }
        let member = self.members.get_mut(&survivor).expect("every id is a member's");
        let recovered = member.disk.recover(survivor);
        let entry = recovered.map_err(|why| broken_disk(survivor, &why))?;
        let before = self.ghost().committed();
        self.invariants.recovered(&self.members[&survivor], &entry)?;
        let left = self.ghost().committed();
        self.tally.recoveries += 1;
        self.tally.entries_lost += before.0 - left.0;
        let line = format_args!("n{survivor} is recovered: {left} of {before} are left");
        self.trace.line(self.agenda.now_us(), line);
        self.start(survivor)?;
        self.replace_lost()
    }
}
