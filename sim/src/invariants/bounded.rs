//! R22, bounded resources: what a leader has on its way to a follower fits the window, and it takes
//! nothing on beyond its budget of uncommitted bytes. The bound on the log is looked at when a run
//! comes to rest.

use raft::{Entry, Payload, Progress, RoleKind};

use super::{Ghost, Step, Violation};

pub(super) fn check(ghost: &Ghost, step: Step<'_>) -> Result<(), Violation> {
    let (before, after) = (step.before, step.after());
    if after.role != RoleKind::Leader {
        return Ok(());
    }
    let Some(replica) = step.member().replica() else { return Ok(()) };
    let config = &step.member().config;
    // A message is sent while there is room, and may be larger than what is left.
    let overshoot = config.append_bytes_max.max(ghost.largest_entry_bytes);
    for Progress { node, in_flight_messages, in_flight_bytes, .. } in replica.status().peers {
        let fits = in_flight_bytes < config.inflight_bytes_max + overshoot;
        if in_flight_messages > config.inflight_messages_max || !fits {
            let what = format!(
                "n{} has {in_flight_messages} messages of {in_flight_bytes} bytes on their way to \
                 n{node}",
                step.node
            );
            return Err(Violation::new("R22", what));
        }
    }
    let led_throughout = before.role == RoleKind::Leader && before.term == after.term;
    if !led_throughout || after.last.index <= before.last.index {
        return Ok(());
    }
    // The end of a change of the members is taken on whatever else waits.
    let last = replica.node().log(after.last.index).next();
    let ends_change = |entry: &Entry| matches!(&entry.payload, Payload::Membership(_));
    if before.membership.is_joint() && last.is_some_and(ends_change) {
        return Ok(());
    }
    // When it took on the last entry, this was not committed, and perhaps more was not.
    let uncommitted: u64 = replica
        .node()
        .log(after.commit.next())
        .take_while(|entry| entry.index < after.last.index)
        .map(Entry::size)
        .sum();
    if uncommitted >= config.uncommitted_bytes_max {
        let what = format!(
            "n{} takes on {} when {uncommitted} bytes are not committed",
            step.node, after.last
        );
        return Err(Violation::new("R22", what));
    }
    Ok(())
}
