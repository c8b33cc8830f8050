//! R17, a restart changes nothing: a member that starts is what its disk says, in every field, and
//! reading the disk a second time finds the same.

use raft::{Index, Status};

use super::Violation;
use crate::member::Member;

pub(super) fn started(member: &Member) -> Result<(), Violation> {
    let Some(replica) = member.replica() else { return Ok(()) };
    let image = member.disk().image();
    let again = member.disk().recovered(member.config.log_window_bytes);
    let Status { term, vote, first, last, durable, commit, snapshot, .. } = replica.status();
    let covered = image.snapshot.as_ref().map_or(Index(0), |root| root.position.index);
    let checks = [
        ((term, vote) == (image.hard_state.term, image.hard_state.vote), "term or vote"),
        (again.hard_state == image.hard_state, "term or vote, read again"),
        (snapshot == image.snapshot && again.snapshot == snapshot, "the snapshot"),
        (first.previous() == image.base().0.index, "the beginning of the log"),
        (last == image.last() && durable == last.index, "the end of the log"),
        (member.log(first).eq(image.entries()), "the log"),
        (
            image.entries().all(|entry| replica.node().term_at(entry.index) == Some(entry.term)),
            "terms",
        ),
        (again.log.entries().eq(replica.node().log(first)), "the log, read again"),
        (commit == covered && replica.applied().index == covered, "where it goes on"),
    ];
    match checks.into_iter().find(|(holds, _)| !holds) {
        Some((_, what)) => {
            let what = format!("n{} starts with another state than its disk's: {what}", member.id);
            Err(Violation::new("R17", what))
        }
        None => Ok(()),
    }
}
