//! R11, a term is durable before it is used: whoever speaks in a term has it on the disk. A dry run
//! speaks of a term that nobody has entered, and promises nothing.

use raft::{Ballot, MessageKind};

use super::{Step, Violation};

pub(super) fn check(step: Step<'_>) -> Result<(), Violation> {
    let durable = step.member().disk().image().hard_state.term;
    for envelope in &step.output.messages {
        let dry_run = match envelope.message.kind {
            MessageKind::VoteRequest { ballot, .. } => ballot == Ballot::PreVote,
            MessageKind::VoteReply { pre_vote, granted } => pre_vote && granted,
            MessageKind::AppendRequest { .. }
            | MessageKind::AppendReply { .. }
            | MessageKind::SnapshotOffer(_)
            | MessageKind::TimeoutNow
            | MessageKind::ReadRequest { .. }
            | MessageKind::ReadReply { .. } => false,
        };
        let term = envelope.message.term;
        if term > durable && !dry_run {
            let what = format!("n{} speaks in t{term}; its disk is in t{durable}", step.node);
            return Err(Violation::new("R11", what));
        }
    }
    Ok(())
}
