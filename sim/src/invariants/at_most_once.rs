//! S1, each request takes effect at most once, whatever happens to members in between.

use std::collections::BTreeMap;

use kvd::outcome::Answered;
use raft::Index;

use super::{RequestName, Seen, Violation};
use crate::group::GroupId;

/// What was executed so far. No crash, no snapshot and no expiry makes it forget.
#[derive(Debug, Default)]
pub(super) struct Executions(BTreeMap<RequestName, Execution>);

/// How a request was executed.
#[derive(Debug)]
pub(super) struct Execution {
    pub(super) group: GroupId,
    pub(super) index: Index,
    pub(super) answered: Answered,
}

impl Executions {
    /// How a request was executed, if it was.
    pub(super) fn of(&self, name: RequestName) -> Option<&Execution> {
        self.0.get(&name)
    }

    pub(super) fn check(&mut self, seen: Seen<'_>) -> Result<(), Violation> {
        let Some(answered) = seen.first() else { return Ok(()) };
        if let Some(first) = self.of(seen.name()) {
            let before = format!("group {} executed it at {} before", first.group.0, first.index);
            return Err(seen.broken("S1", &before));
        }
        let (group, index) = (seen.group, seen.executed.index);
        let execution = Execution { group, index, answered: answered.clone() };
        self.0.insert(seen.name(), execution);
        Ok(())
    }
}
