//! K2, the same entries make the same state: members that have applied the same log are in the same
//! state, and have given the same answers on their way there, whether they have applied every entry
//! or begun with a snapshot.

use raft::StateMachine;

use super::{Ghost, Step, Violation};
use crate::member::Member;

pub(super) fn check(ghost: &Ghost, step: Step<'_>) -> Result<(), Violation> {
    if step.after().applied == step.before.applied {
        return Ok(());
    }
    compare(ghost, step.member())
}

/// Compares a member with the ghost, whose machine never restarts.
pub(super) fn compare(ghost: &Ghost, member: &Member) -> Result<(), Violation> {
    let Some(replica) = member.replica() else { return Ok(()) };
    let (machine, index) = (replica.machine(), replica.applied().index);
    let broken = |what: &str| {
        let id = member.id;
        Err(Violation::new("K2", format!("n{id} at {index} {what} than others")))
    };
    if ghost.at(index).is_some_and(|entry| entry.digest != machine.digest()) {
        return broken("is in another state");
    }
    if ghost.answers_at(index).is_some_and(|answers| answers != machine.answers()) {
        return broken("has given other answers");
    }
    Ok(())
}
