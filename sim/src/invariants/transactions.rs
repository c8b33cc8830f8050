//! K4, a transaction is done whole: the compares decide which list, every operation of it is answered,
//! all that it changes has its one revision, and nothing else has.

use kvd::{
    command::{Action, Operation},
    outcome::{ActionReply, Outcome},
};

use super::{Violation, turn::Turn};

pub(super) fn check(turn: &Turn<'_>) -> Result<(), Violation> {
    let (Operation::Txn(txn), Some(answered)) = (&turn.command.operation, turn.first()) else {
        return Ok(());
    };
    let Outcome::Txn(executed) = &answered.outcome else { return Ok(()) };
    if let Some(Outcome::Txn(expected)) = &turn.expected
        && expected.succeeded != executed.succeeded
    {
        return turn.broken("K4", "the compares come to something else");
    }
    let actions = if executed.succeeded { &txn.then } else { &txn.otherwise };
    if actions.len() != executed.replies.len() {
        return turn.broken("K4", "not every operation is answered");
    }
    let told = executed.replies.iter().filter_map(|reply| match reply {
        ActionReply::Written(written) | ActionReply::Appended { written, .. } => {
            Some(written.revision)
        }
        ActionReply::Got(_) | ActionReply::Removed(_) => None,
    });
    if told.into_iter().any(|revision| Some(revision) != executed.revision) {
        return turn.broken("K4", "its operations have other revisions");
    }
    for action in actions.iter().filter(|action| action.mutates()) {
        let found = turn.executed.pair(action.key());
        let done = match (action, &found) {
            (Action::Delete { .. }, found) => found.is_none(),
            (Action::Put { .. } | Action::Append { .. }, Some(pair)) => {
                Some(pair.mod_revision) == executed.revision
            }
            (Action::Get { .. }, _) => true,
            (Action::Put { .. } | Action::Append { .. }, None) => false,
        };
        if !done {
            return turn.broken("K4", &format!("{action:?} is not done: {found:?}"));
        }
    }
    Ok(())
}
