//! R6, the committed is never lost: at every moment a majority of the disks holds all that anybody
//! knows to be committed, so that a power cut of all members at once loses nothing.

use std::collections::BTreeMap;

use raft::NodeId;

use super::{Ghost, Violation};
use crate::member::Member;

pub(super) fn check(ghost: &Ghost, members: &BTreeMap<NodeId, Member>) -> Result<(), Violation> {
    let committed = ghost.committed();
    let Some(history) = ghost.history_at(committed) else { return Ok(()) };
    // Of a membership that is joint the voters after the change decide for certain: the leader may
    // have appended the end of it already.
    let voters: Vec<NodeId> = ghost.membership().voters_after().collect();
    let holds = |voter: &&NodeId| {
        members.get(voter).is_some_and(|it| it.disk().image().covers(committed, history))
    };
    let holding = voters.iter().filter(holds).count();
    if holding > voters.len() / 2 {
        return Ok(());
    }
    let what = format!("{committed} is committed and durable on {holding} of {}", voters.len());
    Err(Violation::new("R6", what))
}
