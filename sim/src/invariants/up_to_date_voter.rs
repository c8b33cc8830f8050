//! R13, the election restriction: whoever votes for a candidate has no log that is more up to date
//! than the candidate's (section 5.4.1).
//!
//! The candidate's log is the one that it sent, not the one that arrived.

use std::collections::BTreeMap;

use raft::{Ballot, Event, MessageKind, NodeId, Position, Term};

use super::{Step, Violation};

/// With which log each candidate stood in each term.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    stood: BTreeMap<(NodeId, Term), Position>,
}

impl Candidates {
    pub(super) fn check(&mut self, step: Step<'_>) -> Result<(), Violation> {
        for envelope in &step.output.messages {
            if let MessageKind::VoteRequest { ballot: Ballot::Vote | Ballot::Transfer, last } =
                envelope.message.kind
            {
                self.stood.insert((step.node, envelope.message.term), last);
            }
        }
        // How the log stood at the vote is not known when it was cut in the same step.
        if step.output.events.iter().any(|event| matches!(event, Event::Truncated { .. })) {
            return Ok(());
        }
        let voters = step.before.last;
        for event in &step.output.events {
            let Event::Voted { term, candidate } = *event else { continue };
            let stood = self.stood.get(&(candidate, term)).copied();
            if stood.is_none_or(|last| last < voters) {
                let what = format!(
                    "n{} at {voters} votes in t{term} for n{candidate}, which is at {stood:?}",
                    step.node
                );
                return Err(Violation::new("R13", what));
            }
        }
        Ok(())
    }
}
