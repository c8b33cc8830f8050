//! K1, a key holds what was written to it: versions count the writes since it was last absent,
//! revisions count the changes of its shard, a condition decides as it says, an append adds to what
//! is there, what is attached to a lease goes with it; what is refused or repeated changes nothing.
//!
//! The store is compared with the simplest one that there can be, after every command: in what it
//! says, in the keys that may have changed, and in how much it holds.

use super::{Violation, turn::Turn};

pub(super) fn check(turn: &Turn<'_>) -> Result<(), Violation> {
    if let Some(answered) = turn.first()
        && (turn.expected.as_ref() != Some(&answered.outcome) || answered.body_dropped)
    {
        return turn.broken("K1", "that is another answer");
    }
    for key in &turn.keys {
        let (found, expected) = (turn.executed.pair(key), turn.after.pairs.get(key));
        if found.as_ref() != expected {
            let key = key.escape_ascii();
            return turn.broken("K1", &format!("{key} holds {found:?}, expected {expected:?}"));
        }
    }
    let revision = turn.after.revision;
    if revision != turn.executed.response.header.revision {
        return turn.broken("K1", &format!("the shard has come to {revision:?}"));
    }
    let found = turn.counted;
    if found != turn.counts {
        let what = format!("{found:?} pairs, leases and locks, expected {:?}", turn.counts);
        return turn.broken("K1", &what);
    }
    Ok(())
}
