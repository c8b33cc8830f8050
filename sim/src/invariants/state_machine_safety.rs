//! R5, state machine safety: what one member applies at an index, every member does (figure 3).
//!
//! The first to know an entry committed settles what stands there; the history of a machine tells
//! whether it has applied exactly those entries, in order, from the start or from a snapshot. That
//! the same entries give the same state is K2.

use raft::Entry;

use super::{Ghost, Step, Violation};
use crate::member::Member;

/// A member has restored its machine from its snapshot.
pub(super) fn started(ghost: &Ghost, member: &Member) -> Result<(), Violation> {
    compare_state(ghost, member)
}

pub(super) fn check(ghost: &mut Ghost, step: Step<'_>) -> Result<(), Violation> {
    let (before, after) = (step.before, step.after());
    if after.commit > before.commit {
        settle(ghost, step)?;
    }
    if after.applied != before.applied {
        compare_state(ghost, step.member())?;
    }
    Ok(())
}

fn settle(ghost: &mut Ghost, step: Step<'_>) -> Result<(), Violation> {
    let (member, after) = (step.member(), step.after());
    if after.commit > ghost.committed() {
        let news: Vec<Entry> = member
            .log(ghost.committed().next())
            .take_while(|entry| entry.index <= after.commit)
            .cloned()
            .collect();
        for entry in &news {
            if entry.index != ghost.committed().next() {
                let what = format!("n{} knows {} committed, unseen", step.node, entry.index);
                return Err(Violation::new("R5", what));
            }
            ghost.commit(entry, after.term);
        }
    }
    let log = &ghost.logs[&step.node];
    let committed = ghost.history_at(after.commit);
    if log.history_at(after.commit).is_some_and(|history| Some(history) != committed) {
        let what = format!("n{} takes another log up to {} for committed", step.node, after.commit);
        return Err(Violation::new("R5", what));
    }
    Ok(())
}

fn compare_state(ghost: &Ghost, member: &Member) -> Result<(), Violation> {
    let Some(replica) = member.replica() else { return Ok(()) };
    let (machine, applied) = (replica.machine(), replica.applied());
    let expected = ghost.history_at(applied.index);
    let equal = expected == Some(machine.history()) && machine.last_applied() == applied;
    if equal {
        Ok(())
    } else {
        let what = format!("the state of n{} at {} is another", member.id, applied.index);
        Err(Violation::new("R5", what))
    }
}
