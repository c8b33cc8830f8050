//! L3, a lease lives as long as it may: no lock is granted to another, and no key goes, before its time
//! has passed by the shard's clock since it was last kept alive, unless it was given back or revoked.
//! What has ended stays so.

use std::collections::BTreeSet;

use kvd::command::LeaseId;

use super::{Violation, turn::Turn};

pub(super) fn check(turn: &Turn<'_>) -> Result<(), Violation> {
    if !turn.moves_tenancy() {
        return Ok(());
    }
    let (before, after) = (&turn.before().leases, &turn.after.tenancy.leases);
    let leases: BTreeSet<LeaseId> = before.keys().chain(after.keys()).copied().collect();
    for id in leases {
        let lives = turn.executed.lease(id).is_some();
        match after.get(&id) {
            Some(lease) if !lives => {
                let left = lease.remaining_ms(turn.now);
                let what = format!("lease {id} has ended, which had {left} ms left");
                return turn.broken("L3", &what);
            }
            None if lives => return turn.broken("L3", &format!("lease {id} has not ended")),
            Some(_) | None => {}
        }
    }
    Ok(())
}
