//! L4, who keeps a lease alive has it for its time again, and a lock that becomes free is at once that
//! of the first who still waits, in the order in which they came.

use super::{Violation, turn::Turn};

pub(super) fn check(turn: &Turn<'_>) -> Result<(), Violation> {
    if !turn.moves_tenancy() {
        return Ok(());
    }
    for (id, lease) in &turn.after.tenancy.leases {
        let (found, due) = (turn.executed.lease(*id), lease.remaining_ms(turn.now));
        if found.is_some_and(|found| found.remaining_ms != due) {
            return turn.broken("L4", &format!("lease {id} does not live {due} ms"));
        }
    }
    for name in turn.locks() {
        let found = turn.executed.lock(&name);
        let due = turn.after.tenancy.locks.get(&name);
        let holder = found.holder.map(|holder| (holder.lease, holder.token));
        if holder != due.map(|lock| (lock.lease, lock.token)) {
            let name = name.escape_ascii();
            return turn.broken("L4", &format!("{name} is held by {holder:?}, due is {due:?}"));
        }
        let waiters = (found.waiters, found.waiting);
        if due.is_some_and(|lock| lock.waiters() != waiters) {
            let name = name.escape_ascii();
            return turn.broken("L4", &format!("{waiters:?} wait for {name}, due is {due:?}"));
        }
    }
    Ok(())
}
