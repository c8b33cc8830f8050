//! S2, what a clerk is told is true: what was done was done once, what was refused for good never
//! is, not even later. Of the rest S1 says that it is done at most once.

use std::collections::BTreeSet;

use super::{RequestName, Seen, Violation, at_most_once::Executions, same_reply};
use crate::operation::{Done, OperationName, Verdict};

/// The requests of which it was said that they are never executed.
#[derive(Debug, Default)]
pub(super) struct Promises(BTreeSet<RequestName>);

impl Promises {
    pub(super) fn check(&self, seen: Seen<'_>) -> Result<(), Violation> {
        if seen.first().is_some() && self.0.contains(&seen.name()) {
            return Err(seen.broken("S2", "it was refused for good, and is executed"));
        }
        Ok(())
    }

    /// A clerk knows what became of a request.
    pub(super) fn conclude(
        &mut self,
        executions: &Executions,
        name: OperationName,
        request: RequestName,
        verdict: &Verdict,
    ) -> Result<(), Violation> {
        let execution = executions.of(request);
        let holds = match verdict {
            Verdict::Done(Done::Executed(_, answered)) => {
                execution.is_some_and(|first| same_reply::is_of(answered, &first.answered))
            }
            Verdict::Never => {
                self.0.insert(request);
                execution.is_none()
            }
            // A read has no identity.
            Verdict::Done(Done::Read(..) | Done::Claim(..)) => false,
            Verdict::Unknown => true,
        };
        if holds {
            return Ok(());
        }
        let what = format!("{name}, {request}: it ended with {verdict:?}, and was {execution:?}");
        Err(Violation::new("S2", what))
    }
}
