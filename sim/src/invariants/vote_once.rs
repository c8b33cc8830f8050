//! R9, vote once and durable first: a vote that is sent is on the disk, and in one term a member
//! never votes for two, not even with a crash in between (section 5.2).
//!
//! A candidate's request speaks for its own vote, which it counts.

use std::collections::BTreeMap;

use raft::{Ballot, HardState, MessageKind, NodeId, Term};

use super::{Step, Violation};

/// Whom each member voted for in each term, as others were told.
#[derive(Debug, Default)]
pub(super) struct Votes {
    given: BTreeMap<(NodeId, Term), NodeId>,
}

impl Votes {
    pub(super) fn check(&mut self, step: Step<'_>) -> Result<(), Violation> {
        for envelope in &step.output.messages {
            let candidate = match envelope.message.kind {
                MessageKind::VoteRequest { ballot: Ballot::Vote | Ballot::Transfer, .. } => {
                    step.node
                }
                MessageKind::VoteReply { pre_vote: false, granted: true } => envelope.to,
                MessageKind::VoteRequest { .. }
                | MessageKind::VoteReply { .. }
                | MessageKind::AppendRequest { .. }
                | MessageKind::AppendReply { .. }
                | MessageKind::SnapshotOffer(_)
                | MessageKind::TimeoutNow
                | MessageKind::ReadRequest { .. }
                | MessageKind::ReadReply { .. } => continue,
            };
            let term = envelope.message.term;
            let durable = step.member().disk().image().hard_state;
            if durable != (HardState { term, vote: Some(candidate) }) {
                let what = format!(
                    "n{} votes for n{candidate} in t{term}; its disk says {durable:?}",
                    step.node
                );
                return Err(Violation::new("R9", what));
            }
            let earlier = *self.given.entry((step.node, term)).or_insert(candidate);
            if earlier != candidate {
                let what = format!(
                    "n{} votes in t{term} for n{candidate}, and did for n{earlier}",
                    step.node
                );
                return Err(Violation::new("R9", what));
            }
        }
        Ok(())
    }
}
