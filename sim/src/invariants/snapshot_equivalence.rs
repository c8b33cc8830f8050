//! R15, a snapshot is what the log up to it amounts to: whoever restores it is in the state of one
//! that has applied every entry.

use raft::{NodeId, StateMachine};

use super::{Ghost, Violation};
use crate::{disk::Stored, machine::manifest};

pub(super) fn check(ghost: &Ghost, node: NodeId, stored: &Stored) -> Result<(), Violation> {
    let root = &stored.root;
    differs(ghost, stored).map_or(Ok(()), |what| {
        let what = format!("n{node} stores a snapshot at {}: {what}", root.position);
        Err(Violation::new("R15", what))
    })
}

/// In what a snapshot is not what it says.
fn differs(ghost: &Ghost, stored: &Stored) -> Option<&'static str> {
    let root = &stored.root;
    let Some(committed) = ghost.at(root.position.index) else {
        return Some("that is not committed");
    };
    let mut machine = ghost.blank();
    if machine.restore(&mut stored.chunks.iter().cloned()).is_err() {
        return Some("it does not decode");
    }
    let bytes: usize = stored.chunks.iter().map(bytes::Bytes::len).sum();
    let applied = machine.last_applied();
    let checks = [
        (root.position.term == committed.term, "its term is another"),
        (machine.digest() == committed.digest, "its state is another"),
        (machine.history() == committed.history, "its history is another"),
        (machine.answers() == committed.answers, "it remembers other answers"),
        (applied.index == root.position.index, "its state is as of another index"),
        (applied.time == root.stamp, "its stamp is another"),
        (root.manifest == manifest(&stored.chunks), "its chunks are others"),
        (&root.membership == ghost.membership_at(root.position.index), "its members are others"),
        (root.bytes == bytes as u64, "its size is another"),
        (root.chunks == stored.chunks.len() as u64, "the number of its chunks is another"),
    ];
    checks.into_iter().find(|(holds, _)| !holds).map(|(_, what)| what)
}
