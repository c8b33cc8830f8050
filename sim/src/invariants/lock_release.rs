//! L2, only who has a lock, or a place in its queue, gives it back: by its own lease, or with that.

use kvd::{command::Operation, outcome::Outcome};

use super::{Violation, turn::Turn};

pub(super) fn check(turn: &Turn<'_>) -> Result<(), Violation> {
    if !turn.moves_tenancy() {
        return Ok(());
    }
    if let (Operation::Release { name, lease }, Some(answered)) =
        (&turn.command.operation, turn.first())
    {
        let released = Outcome::Released(turn.before().concerns(name, *lease));
        if answered.outcome != released {
            return turn.broken("L2", "somebody else gives it back");
        }
    }
    for (name, lock) in &turn.before().locks {
        let holder = turn.executed.lock(name).holder.map(|holder| holder.lease);
        if holder != Some(lock.lease) && turn.ends() != Some(lock.lease) {
            let name = name.escape_ascii();
            return turn.broken("L2", &format!("{} loses {name} to {holder:?}", lock.lease));
        }
    }
    Ok(())
}
