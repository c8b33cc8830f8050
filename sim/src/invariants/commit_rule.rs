//! R7, the commit rule: a leader counts only entries of its own term (section 5.4.2).

use raft::{Event, RoleKind};

use super::{Step, Violation};

pub(super) fn check(step: Step<'_>) -> Result<(), Violation> {
    let (before, after) = (step.before, step.after());
    let led_throughout = before.role == RoleKind::Leader
        && after.role == RoleKind::Leader
        && before.term == after.term;
    let installed = step.output.events.iter().any(|event| matches!(event, Event::Installed { .. }));
    if !led_throughout || installed || after.commit == before.commit {
        return Ok(());
    }
    match step.member().replica().and_then(|it| it.node().term_at(after.commit)) {
        Some(term) if term != after.term => {
            let what = format!(
                "n{} leads t{} and commits up to {}@{term}",
                step.node, after.term, after.commit
            );
            Err(Violation::new("R7", what))
        }
        Some(_) | None => Ok(()),
    }
}
