//! R4, leader completeness: a leader holds everything that was committed in earlier terms
//! (figure 3).

use raft::Event;

use super::{Ghost, Step, Violation};

pub(super) fn check(ghost: &Ghost, step: Step<'_>) -> Result<(), Violation> {
    for event in &step.output.events {
        let Event::Leading { term, last } = *event else { continue };
        let log = &ghost.logs[&step.node];
        // A leader may have been deposed, and have lost its log's end, within this very step.
        let mut index = ghost.committed();
        while ghost.at(index).is_some_and(|entry| entry.in_term >= term) {
            index = index.previous();
        }
        let holds = index <= log.base || log.history_at(index) == ghost.history_at(index);
        if last.index < index || (step.after().term == term && !holds) {
            let what = format!("n{} leads t{term} from {last} without {index}", step.node);
            return Err(Violation::new("R4", what));
        }
    }
    Ok(())
}
