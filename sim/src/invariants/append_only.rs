//! R2, leader append-only: a leader never removes what is in its log (figure 3).

use raft::{Event, RoleKind};

use super::{Step, Violation};

pub(super) fn check(step: Step<'_>) -> Result<(), Violation> {
    let (before, after) = (step.before, step.after());
    let led_throughout = before.role == RoleKind::Leader
        && after.role == RoleKind::Leader
        && before.term == after.term;
    let truncated =
        step.output.events.iter().find(|event| matches!(event, Event::Truncated { .. }));
    match truncated {
        Some(event) if led_throughout => {
            let what = format!("n{} leads t{}: {event:?}", step.node, after.term);
            Err(Violation::new("R2", what))
        }
        Some(_) | None => Ok(()),
    }
}
