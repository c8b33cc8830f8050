//! R19, reads are fresh: a read is answered from a state at least as new as everything that
//! anybody knew to be committed when it was asked. Every write that had been acknowledged by then
//! is among that.

use raft::{Index, NodeId};

use super::{Step, Violation};
use crate::member::Asked;

pub(super) fn check(step: Step<'_>) -> Result<(), Violation> {
    for (read, answer) in &step.output.answers {
        let Some(asked) = step.member().read(*read) else {
            let what = format!("n{} ends read {read} twice", step.node);
            return Err(Violation::new("R19", what));
        };
        if let Ok(answer) = answer {
            check_answer(step.node, asked, answer.index())?;
        }
    }
    Ok(())
}

/// A read was answered from a state that had seen `index`.
pub(super) fn check_answer(node: NodeId, asked: Asked, index: Index) -> Result<(), Violation> {
    let Asked { client, number, floor } = asked;
    if index < floor {
        let what = format!(
            "n{node} answers c{client}.{number} as of {index}; {floor} was committed when it was \
             asked"
        );
        return Err(Violation::new("R19", what));
    }
    Ok(())
}
