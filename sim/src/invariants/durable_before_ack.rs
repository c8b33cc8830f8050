//! R10, durable before acknowledged: a member that says its log matches up to an index has exactly
//! the leader's entries up to there on its disk.

use raft::{AppendResult, Index, MessageKind, NodeId, Term};

use super::{Ghost, Step, Violation};

pub(super) fn check(ghost: &Ghost, step: Step<'_>) -> Result<(), Violation> {
    for envelope in &step.output.messages {
        if let MessageKind::AppendReply { result: AppendResult::Matched(index), .. } =
            envelope.message.kind
            && index > Index(0)
        {
            check_acknowledgement(ghost, step, envelope.to, envelope.message.term, index).map_err(
                |why| {
                    let what = format!(
                        "n{} tells n{} in t{} that it matches up to {index}: {why}",
                        step.node, envelope.to, envelope.message.term
                    );
                    Violation::new("R10", what)
                },
            )?;
        }
    }
    Ok(())
}

fn check_acknowledgement(
    ghost: &Ghost,
    step: Step<'_>,
    leader: NodeId,
    term: Term,
    index: Index,
) -> Result<(), String> {
    let image = step.member().disk().image();
    let leadership = ghost.leaderships.get(&term).ok_or("nobody leads")?;
    if leadership.node != leader {
        return Err(format!("n{} leads", leadership.node));
    }
    if image.hard_state.term < term {
        return Err(format!("its disk is in t{}", image.hard_state.term));
    }
    let covered = image.snapshot.as_ref().map_or(Index(0), |root| root.position.index);
    let leaders_term = leadership.term_at(ghost, term, index).ok_or("the leader has none")?;
    if index <= covered {
        let committed = ghost.at(index).map(|entry| entry.term);
        return if committed == Some(leaders_term) {
            Ok(())
        } else {
            Err(format!("its snapshot at {covered} is of another log"))
        };
    }
    let leaders = ghost.prefixes.get(&(index, leaders_term)).copied();
    let here = image.history_at(index);
    if here.is_some() && here == leaders {
        Ok(())
    } else {
        Err(format!("its disk ends at {}, or differs", image.last()))
    }
}
