//! R1, election safety: in each term at most one member ever leads (Raft, figure 3).

use raft::Event;

use super::{Ghost, Step, Violation, ghost::Leadership};

pub(super) fn check(ghost: &mut Ghost, step: Step<'_>) -> Result<(), Violation> {
    for event in &step.output.events {
        let Event::Leading { term, last } = *event else { continue };
        if let Some(other) = ghost.leaderships.get(&term) {
            let what = format!("n{} leads t{term}, and so did n{}", step.node, other.node);
            return Err(Violation::new("R1", what));
        }
        let leadership = Leadership::new(step.node, last, &ghost.logs[&step.node]);
        ghost.leaderships.insert(term, leadership);
    }
    Ok(())
}
