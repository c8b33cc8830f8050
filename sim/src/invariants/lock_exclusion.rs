//! L1, at most one holds a lock: nobody gets it while somebody else has it, each grant has a larger
//! token than all before it, and who is told that it holds a lock does.

use std::collections::BTreeMap;

use bytes::Bytes;
use kvd::{command::Token, outcome::Outcome};

use super::{Violation, turn::Turn};

/// The largest token that was ever given out for each lock.
#[derive(Debug, Default)]
pub(super) struct Tokens(BTreeMap<(u32, Bytes), Token>);

impl Tokens {
    pub(super) fn check(&mut self, turn: &Turn<'_>) -> Result<(), Violation> {
        if !turn.moves_tenancy() {
            return Ok(());
        }
        for name in turn.locks() {
            let Some(holder) = turn.executed.lock(&name).holder else { continue };
            let (before, after) = (&turn.before().locks, &turn.after.tenancy.locks);
            let held = before.get(&name).map(|lock| (lock.lease, lock.token));
            if held == Some((holder.lease, holder.token)) {
                continue;
            }
            let stays = held
                .is_some_and(|(lease, _)| after.get(&name).is_some_and(|lock| lock.lease == lease));
            let name = name.escape_ascii();
            if stays {
                return turn.broken("L1", &format!("{holder:?} has {name}, which {held:?} holds"));
            }
        }
        self.rise(turn)?;
        match turn.first().map(|answered| &answered.outcome) {
            Some(Outcome::Held { lease, token, .. }) => {
                let holds = turn.locks().iter().any(|name| {
                    let holder = turn.executed.lock(name).holder;
                    holder.is_some_and(|it| (it.lease, it.token) == (*lease, *token))
                });
                if holds { Ok(()) } else { turn.broken("L1", "who is told so does not hold it") }
            }
            Some(_) | None => Ok(()),
        }
    }

    fn rise(&mut self, turn: &Turn<'_>) -> Result<(), Violation> {
        for name in turn.locks() {
            let Some(holder) = turn.executed.lock(&name).holder else { continue };
            let before = turn.before().locks.get(&name).map(|lock| (lock.lease, lock.token));
            let anew = before != Some((holder.lease, holder.token));
            let latest = self.0.insert((turn.shard(), name), holder.token);
            if anew && latest.is_some_and(|latest| latest >= holder.token) {
                return turn.broken("L1", &format!("{holder:?} comes behind {latest:?}"));
            }
        }
        Ok(())
    }
}
