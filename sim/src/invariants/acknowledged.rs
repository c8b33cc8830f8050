//! R12, an answer is true: a write that was answered is committed where the answer says, and one
//! that was refused or rejected never is.

use std::collections::BTreeSet;

use raft::Outcome;

use super::{Ghost, Step, Violation};
use crate::{
    client::{CHANGER, HOST},
    machine::CommandId,
    member::command_of,
};

/// The commands of which it was said that they will never be executed.
#[derive(Debug, Default)]
pub(super) struct Acknowledged {
    /// Those that were never appended.
    refused: BTreeSet<CommandId>,
    /// Those that were, and in whose place something else is committed.
    rejected: BTreeSet<CommandId>,
}

impl Acknowledged {
    pub(super) fn refused(&mut self, client: u64, number: u64) {
        self.refused.insert(CommandId { client, number });
    }

    /// What was committed is lost in part, so that what was rejected for it may be there again.
    pub(super) fn forget_rejected(&mut self) {
        self.rejected.clear();
    }

    pub(super) fn check(&mut self, ghost: &Ghost, step: Step<'_>) -> Result<(), Violation> {
        for (ticket, outcome) in &step.output.outcomes {
            let Some(asked) = step.member().ticket(*ticket) else {
                let what = format!("n{} ends ticket {ticket} twice", step.node);
                return Err(Violation::new("R12", what));
            };
            let command = command_of(&asked);
            let committed = ghost.index_of(command);
            let holds = match outcome {
                Outcome::Done(None) if asked.client == CHANGER => {
                    !ghost.is_joint_since(asked.floor)
                }
                // An entry that only tells the time has no name.
                Outcome::Done(None) if asked.client == HOST => true,
                Outcome::Done(response) => {
                    let index = response.as_ref().map(|response| response.index);
                    committed.is_some() && committed == index
                }
                Outcome::Rejected => {
                    self.rejected.insert(command);
                    committed.is_none()
                }
                Outcome::Unknown => true,
            };
            if !holds {
                let what = format!(
                    "n{} answers {outcome:?} to {command}, which is committed at {committed:?}",
                    step.node
                );
                return Err(Violation::new("R12", what));
            }
        }
        Ok(())
    }

    pub(super) fn finish(&self, ghost: &Ghost) -> Result<(), Violation> {
        let mut never = self.refused.iter().chain(&self.rejected);
        match never.find(|command| ghost.index_of(**command).is_some()) {
            Some(command) => {
                let what = format!("{command} was refused or rejected and is committed");
                Err(Violation::new("R12", what))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use raft::{Entry, GroupTime, Index, Payload, Term};

    use super::*;
    use crate::machine::Machine;

    /// What was rejected is in the log of a member that did not hear of it; what was refused is in
    /// nobody's.
    #[test]
    fn only_what_was_rejected_may_come_back_after_a_loss() {
        let came_back = CommandId { client: 1, number: 1 };
        let mut ghost = Ghost::of(std::sync::Arc::default(), &Machine::default());
        let payload = Payload::Command(came_back.write_to(0, 0));
        let entry = Entry { index: Index(1), term: Term(1), stamp: GroupTime::default(), payload };
        ghost.commit(&entry, Term(1));
        let mut rejected = Acknowledged { rejected: [came_back].into(), ..Acknowledged::default() };
        assert!(rejected.finish(&ghost).is_err());
        rejected.forget_rejected();
        assert_eq!(rejected.finish(&ghost), Ok(()));
        let mut refused = Acknowledged::default();
        refused.refused(came_back.client, came_back.number);
        refused.forget_rejected();
        assert!(refused.finish(&ghost).is_err());
    }
}
