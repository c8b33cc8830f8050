//! R16, a snapshot takes the place of the log before it: it only moves a state forward, and what
//! stands behind it in the log stays if the log has its last entry and goes if it has not
//! (figure 13, steps 6 and 7). On the disk both change at once: at no moment does a disk hold a
//! snapshot and a log of two histories.

use raft::Event;

use super::{Ghost, Step, Violation};
use crate::member::Member;

pub(super) fn check(ghost: &Ghost, step: Step<'_>) -> Result<(), Violation> {
    let (before, after) = (step.before, step.after());
    let cuts =
        step.output.events.iter().filter(|event| matches!(event, Event::Truncated { .. })).count();
    for event in &step.output.events {
        let &Event::Installed { ref root, suffix_kept } = event else { continue };
        let covered = root.position;
        if covered.index <= before.applied || after.applied < covered.index {
            let (from, to) = (before.applied, after.applied);
            return Err(violation(step, &format!("installs {covered}: from {from} to {to}")));
        }
        let had = ghost.logs.get(&step.node).and_then(|log| log.get(covered.index));
        let had = had.map(|(term, _)| term);
        let holds = match had {
            // The install itself cuts once; if there was another cut, the entry may have gone by it.
            Some(term) if term == covered.term => suffix_kept || cuts > 1,
            Some(_) => !suffix_kept || cuts > 0,
            // It was not there before the step, but may have come with it.
            None => true,
        };
        if !holds {
            let why = format!("installs {covered}, suffix kept: {suffix_kept}, over {had:?}");
            return Err(violation(step, &why));
        }
    }
    Ok(())
}

/// What a disk holds is of one history.
pub(super) fn check_disk(ghost: &Ghost, member: &Member) -> Result<(), Violation> {
    let image = member.disk().image();
    let Some(root) = &image.snapshot else { return Ok(()) };
    let here = image.history_at(root.position.index);
    if here.is_some() && here == ghost.history_at(root.position.index) {
        return Ok(());
    }
    let (base, last) = (image.base().0, image.last());
    let what = format!(
        "the disk of n{} has a snapshot at {} and another log, {base}..{last}",
        member.id, root.position
    );
    Err(Violation::new("R16", what))
}

fn violation(step: Step<'_>, why: &str) -> Violation {
    Violation::new("R16", format!("n{} {why}", step.node))
}
