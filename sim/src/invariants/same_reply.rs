//! S3, a duplicate is told what the first was told, or that and that the body was dropped.

use kvd::outcome::Answered;

use super::{Seen, Violation, at_most_once::Executions};

pub(super) fn check(executions: &Executions, seen: Seen<'_>) -> Result<(), Violation> {
    let Ok(answered) = &seen.response().result else { return Ok(()) };
    if !answered.duplicate {
        return Ok(());
    }
    match executions.of(seen.name()) {
        None => Err(seen.broken("S3", "a kept reply to what was never executed")),
        Some(first) if is_of(answered, &first.answered) => Ok(()),
        Some(first) => {
            let what = format!("at {} it was {:?}", first.index, first.answered);
            Err(seen.broken("S3", &what))
        }
    }
}

/// Whether a reply says what the first one said.
pub(super) fn is_of(answered: &Answered, first: &Answered) -> bool {
    if answered.body_dropped {
        answered.outcome == first.outcome.without_body()
    } else {
        answered.outcome == first.outcome
    }
}
