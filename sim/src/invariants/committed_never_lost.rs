//! R6, the committed is never lost: at every moment a majority of the disks holds all that anybody
//! knows to be committed, so that a power cut of all members at once loses nothing.

use std::collections::BTreeMap;

use raft::NodeId;

use super::{Ghost, Violation};
use crate::member::Member;

pub(super) fn check(ghost: &Ghost, members: &BTreeMap<NodeId, Member>) -> Result<(), Violation> {
    let committed = ghost.committed();
    let Some(history) = ghost.history_at(committed) else { return Ok(()) };
    let holding =
        members.values().filter(|member| member.disk().image().covers(committed, history)).count();
    if holding > members.len() / 2 {
        return Ok(());
    }
    let what = format!("{committed} is committed and durable on {holding} of {}", members.len());
    Err(Violation::new("R6", what))
}
