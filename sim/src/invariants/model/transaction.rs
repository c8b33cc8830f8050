//! A transaction as it must be: one list or the other, whole, under one revision.

use std::cmp::Ordering;

use kvd::{
    command::{Action, Compare, Operand, Relation, Txn},
    outcome::{ActionReply, Executed, Outcome, Pair, Revision, Version},
};

use super::Shard;

impl Shard {
    pub(super) fn transact(&mut self, txn: &Txn<'_>, value_bytes_max: u64) -> Outcome {
        let succeeded = txn.compares.iter().all(|it| holds(it, self.pairs.get(it.key)));
        let actions = if succeeded { &txn.then } else { &txn.otherwise };
        // What is done is undone when something in it can't be.
        let (before, revision) = (self.pairs.clone(), Revision(self.revision.0 + 1));
        let mut replies = Vec::new();
        for action in actions {
            match self.act(action, revision, value_bytes_max) {
                Ok(reply) => replies.push(reply),
                Err(refused) => {
                    self.pairs = before;
                    return refused;
                }
            }
        }
        let attached = |action: &Action<'_>| match action {
            Action::Put { key, lease, .. } => lease.map(|lease| (key.to_vec(), lease)),
            Action::Get { .. } | Action::Append { .. } | Action::Delete { .. } => None,
        };
        let unusable = actions.iter().filter_map(attached);
        let unusable = unusable.filter(|(_, lease)| !self.tenancy.is_usable(*lease)).min();
        if let Some((_, gone)) = unusable {
            self.pairs = before;
            return Outcome::NoSuchLease(gone);
        }
        let revision = (self.pairs != before).then(|| self.count());
        Outcome::Txn(Executed { succeeded, replies: replies.into(), revision })
    }

    fn act(
        &mut self,
        action: &Action<'_>,
        revision: Revision,
        value_bytes_max: u64,
    ) -> Result<ActionReply, Outcome> {
        Ok(match *action {
            Action::Get { key } => ActionReply::Got(self.pairs.get(key).cloned()),
            Action::Put { key, value, lease } => {
                ActionReply::Written(self.write(key, value.to_vec(), lease, revision))
            }
            Action::Append { key, value } => {
                let (whole, old, lease) = self.appended(key, value, value_bytes_max)?;
                ActionReply::Appended { written: self.write(key, whole, lease, revision), old }
            }
            Action::Delete { key } => ActionReply::Removed(self.pairs.remove(key)),
        })
    }
}

/// Whether a compare holds.
pub(in crate::invariants) fn holds(compare: &Compare<'_>, pair: Option<&Pair>) -> bool {
    let order = match compare.operand {
        Operand::Version(it) => pair.map_or(Version(0), |pair| pair.version).cmp(&it),
        Operand::CreateRevision(it) => pair.map_or(Revision(0), |it| it.create_revision).cmp(&it),
        Operand::ModRevision(it) => pair.map_or(Revision(0), |it| it.mod_revision).cmp(&it),
        Operand::Lease(it) => pair.and_then(|pair| pair.lease).cmp(&it),
        Operand::Value(it) => match pair {
            Some(pair) => pair.value[..].cmp(it),
            // A value that is not there is only unlike another.
            None => return compare.relation == Relation::NotEqual,
        },
    };
    match compare.relation {
        Relation::Equal => order == Ordering::Equal,
        Relation::NotEqual => order != Ordering::Equal,
        Relation::Less => order == Ordering::Less,
        Relation::Greater => order == Ordering::Greater,
    }
}
