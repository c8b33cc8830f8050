//! R18, memberships are safe: those that may rule at once have quorums that meet, one change follows
//! the other, and no leader changes anything before it has committed an entry of its own term
//! (section 6; thesis, chapter 4). That learners and removed members do not count is R6 and R20, and
//! R1 would tell.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use raft::{Event, Index, Membership, NodeId, Payload, RoleKind, Term};

use super::{Step, Violation};

/// The memberships that were ever in a log.
#[derive(Debug, Default)]
pub(super) struct ConfigSafety {
    seen: BTreeMap<(Index, Term), Arc<Membership>>,
}

impl ConfigSafety {
    pub(super) fn check(&mut self, step: Step<'_>) -> Result<(), Violation> {
        let mut ruled = Some((step.before.membership_index, &step.before.membership));
        for event in &step.output.events {
            let &Event::Reconfigured { index, ref membership } = event else { continue };
            let before = ruled.replace((index, membership));
            // It may have been undone in the same step, or be undone by this event.
            let Some(entry) = step.member().entry(index) else { continue };
            if !matches!(&entry.payload, Payload::Membership(stored) if stored == membership) {
                continue;
            }
            let same = self.seen.entry((index, entry.term)).or_insert_with(|| membership.clone());
            if same != membership {
                return Err(violation(step, &format!("has another membership at {index}")));
            }
            let led = step.before.role == RoleKind::Leader && step.after().term == step.before.term;
            if let Some(before) = before.filter(|_| led && entry.term == step.after().term) {
                follows(step, before, membership)?;
            }
        }
        Ok(())
    }
}

/// What a leader appends follows from what ruled before.
fn follows(
    step: Step<'_>,
    (index, before): (Index, &Arc<Membership>),
    next: &Membership,
) -> Result<(), Violation> {
    let commit = step.after().commit;
    if index > commit {
        return Err(violation(step, "changes the members before the last change is committed"));
    }
    let after: BTreeSet<NodeId> = before.voters_after().collect();
    let linked = if before.is_joint() {
        !next.is_joint() && next.voters_after().collect::<BTreeSet<_>>() == after
    } else {
        next.voters_before().collect::<BTreeSet<_>>() == after
    };
    if !linked {
        return Err(violation(step, &format!("goes from {before:?} to {next:?}")));
    }
    let mut new = next.members().keys().filter(|id| !before.members().contains_key(id));
    if let Some(id) = new.find(|id| **id <= before.last_id()) {
        return Err(violation(step, &format!("uses the id {id} again")));
    }
    let at_commit = step.member().replica().and_then(|replica| replica.node().term_at(commit));
    // What was committed may be compacted away by now; then it can't be told.
    if at_commit.is_some_and(|term| term != step.after().term) {
        return Err(violation(step, "changes the members before it committed in its own term"));
    }
    Ok(())
}

fn violation(step: Step<'_>, what: &str) -> Violation {
    Violation::new("R18", format!("n{} {what}", step.node))
}
