//! L5, locks know nothing of each other: a command leaves those alone that it does not name, and
//! whose holders and waiters it does not end.

use kvd::command::Operation;

use super::{Violation, turn::Turn};

pub(super) fn check(turn: &Turn<'_>) -> Result<(), Violation> {
    if !turn.moves_tenancy() {
        return Ok(());
    }
    let before = turn.before();
    let named = match &turn.command.operation {
        Operation::Acquire { name, .. } | Operation::Release { name, .. } => Some(&name[..]),
        _ => None,
    };
    let ended = turn.ends().filter(|lease| !turn.after.tenancy.leases.contains_key(lease));
    let ends = |name: &[u8]| ended.is_some_and(|lease| before.concerns(name, lease));
    for name in turn.locks() {
        if named == Some(&name[..]) || ends(&name) {
            continue;
        }
        let found = turn.executed.lock(&name);
        let waiters = (found.waiters, found.waiting);
        let found = found.holder.map(|holder| (holder.lease, holder.token, waiters));
        let lock = before.locks.get(&name);
        if found != lock.map(|lock| (lock.lease, lock.token, lock.waiters())) {
            let name = name.escape_ascii();
            return turn.broken("L5", &format!("{name} was {lock:?}, and is {found:?}"));
        }
    }
    Ok(())
}
