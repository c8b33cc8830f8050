//! R8, what never goes back: the term and the vote in it on the disk, across crashes; commit and
//! applied index in the life of a replica; and their order among each other.

use std::collections::BTreeMap;

use raft::{HardState, NodeId};

use super::{Step, Violation};
use crate::member::Member;

#[derive(Debug, Default)]
pub(super) struct Monotonic {
    hard_states: BTreeMap<NodeId, HardState>,
}

impl Monotonic {
    pub(super) fn started(&mut self, member: &Member) -> Result<(), Violation> {
        self.check_disk(member)
    }

    pub(super) fn check(&mut self, step: Step<'_>) -> Result<(), Violation> {
        let (before, after) = (step.before, step.after());
        let ordered = after.snapshot <= after.applied
            && after.applied <= after.commit
            && after.commit <= after.last.index
            && after.first <= after.snapshot.next();
        let grows = before.term <= after.term
            && before.commit <= after.commit
            && before.applied <= after.applied
            && before.snapshot <= after.snapshot;
        let votes_once =
            before.term < after.term || before.vote.is_none() || before.vote == after.vote;
        if !(ordered && grows && votes_once) {
            let what = format!("n{} went from {before:?} to {after:?}", step.node);
            return Err(Violation::new("R8", what));
        }
        self.check_disk(step.member())
    }

    fn check_disk(&mut self, member: &Member) -> Result<(), Violation> {
        let now = member.disk().image().hard_state;
        let before = self.hard_states.insert(member.id, now).unwrap_or_default();
        let fell = now.term < before.term
            || (now.term == before.term && before.vote.is_some() && now.vote != before.vote);
        if fell {
            let what = format!("the disk of n{} went from {before:?} to {now:?}", member.id);
            return Err(Violation::new("R8", what));
        }
        Ok(())
    }
}
