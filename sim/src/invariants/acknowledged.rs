//! R12, an answer is true: a write that was answered is committed where the answer says, and one
//! that was refused or rejected never is.

use std::collections::BTreeSet;

use raft::Outcome;

use super::{Ghost, Step, Violation};
use crate::{client::CHANGER, machine::CommandId, member::command_of};

/// The commands of which it was said that they will never be executed.
#[derive(Debug, Default)]
pub(super) struct Acknowledged {
    never: BTreeSet<CommandId>,
}

impl Acknowledged {
    pub(super) fn refused(&mut self, client: u64, number: u64) {
        self.never.insert(CommandId { client, number });
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
                Outcome::Done(response) => {
                    committed.is_some() && committed == response.map(|response| response.index)
                }
                Outcome::Rejected => {
                    self.never.insert(command);
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
        match self.never.iter().find(|command| ghost.index_of(**command).is_some()) {
            Some(command) => {
                let what = format!("{command} was rejected and is committed");
                Err(Violation::new("R12", what))
            }
            None => Ok(()),
        }
    }
}
