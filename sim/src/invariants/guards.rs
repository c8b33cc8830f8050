//! L7, a guarded write is done only while its lock is held under its token, and its lease is not over;
//! and then it is not refused for want of that.

use kvd::outcome::Outcome;

use super::{Violation, turn::Turn};

pub(super) fn check(turn: &Turn<'_>) -> Result<(), Violation> {
    let (Some(guard), Some(answered)) = (&turn.command.guard, turn.first()) else {
        return Ok(());
    };
    let refused = matches!(answered.outcome, Outcome::GuardRefused(_));
    match (turn.before().allows(guard, turn.now), refused) {
        (true, false) | (false, true) => Ok(()),
        (true, true) => turn.broken("L7", "its lock is held, and it is refused"),
        (false, false) => turn.broken("L7", "its lock is not held, and it is done"),
    }
}
