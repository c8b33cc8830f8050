//! R14, no truncation below commit: what a member knows to be committed is cut neither from its
//! memory nor from its disk, and nothing is cut but for an entry of another term.

use raft::{Event, Index};

use super::{Ghost, Step, Violation};

pub(super) fn check(ghost: &Ghost, step: Step<'_>) -> Result<(), Violation> {
    let commit = step.before.commit;
    let cuts: Vec<Index> = step
        .output
        .events
        .iter()
        .filter_map(|event| match event {
            Event::Truncated { from } => Some(*from),
            Event::Following { .. }
            | Event::PreCampaigning { .. }
            | Event::Campaigning { .. }
            | Event::Leading { .. }
            | Event::LostQuorum { .. }
            | Event::Removed { .. }
            | Event::Reconfigured { .. }
            | Event::Transferring { .. }
            | Event::SlowDisk { .. }
            | Event::TransferFailed { .. }
            | Event::Voted { .. }
            | Event::Committed { .. }
            | Event::Installing { .. }
            | Event::Installed { .. }
            | Event::Compacted { .. }
            | Event::Dropped { .. } => None,
        })
        .collect();
    if let Some(from) = cuts.iter().find(|from| **from <= commit) {
        return Err(violation(step, &format!("cuts its log from {from}; {commit} is committed")));
    }
    if let &[from] = cuts.as_slice()
        && let Some((term, _)) = ghost.logs.get(&step.node).and_then(|log| log.get(from))
        && let Some(entry) = step.member().replica().and_then(|it| it.node().log(from).next())
        && (entry.index, entry.term) == (from, term)
    {
        return Err(violation(step, &format!("cuts its log from {from} and takes the same again")));
    }
    // On the disk every append cuts what stands behind it.
    let written = step.output.write.as_ref().and_then(|write| write.entries.first());
    match written {
        Some(entry) if entry.index <= commit => {
            let from = entry.position();
            Err(violation(step, &format!("writes from {from} on; {commit} is committed")))
        }
        Some(_) | None => Ok(()),
    }
}

fn violation(step: Step<'_>, why: &str) -> Violation {
    Violation::new("R14", format!("n{} {why}", step.node))
}
