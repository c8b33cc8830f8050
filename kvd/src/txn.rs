//! Transactions: compare, then execute one list of operations or the other, all of it or nothing.
//!
//! Decides what a list comes to before anything is changed: each operation sees those before it, a
//! key is changed at most once, and all changes share one revision. A transaction that changes
//! nothing takes no revision, and can be asked as a question.

use std::{cmp::Ordering, collections::BTreeMap};

use bytes::Bytes;

use crate::{
    command::{Action, Command, Compare, Operand, Relation, Txn},
    limits::TXN_REPLY_BYTES_MAX,
    outcome::{
        ActionReply, Executed, Outcome, Pair, Refusal, Revision, Version, Written, reply_cost,
    },
    pairs::written,
    refusal::TXN_REPLY_BYTES,
    shard::{Group, Shard},
    write::{Verdict, Write, appended},
};

/// What a transaction comes to.
struct Plan<'a> {
    succeeded: bool,
    replies: Vec<ActionReply>,
    writes: Vec<Write<'a>>,
}

impl Plan<'_> {
    fn outcome(self, revision: Option<Revision>) -> Outcome {
        let Self { succeeded, replies, writes: _ } = self;
        Outcome::Txn(Executed { succeeded, replies: replies.into(), revision })
    }
}

impl Shard {
    pub(crate) fn txn(&mut self, group: &Group, command: &Command<'_>, txn: &Txn<'_>) -> Verdict {
        let mut plan = match self.plan(command, txn) {
            Ok(plan) => plan,
            Err(verdict) => return verdict,
        };
        if plan.writes.is_empty() {
            return Ok(plan.outcome(None));
        }
        let writes = std::mem::take(&mut plan.writes);
        let revision = self.next_revision();
        self.write(group, command, writes, || plan.outcome(Some(revision)))
    }

    /// What a transaction answers that only reads.
    pub(crate) fn ask(&self, command: &Command<'_>, txn: &Txn<'_>) -> Verdict {
        match self.plan(command, txn) {
            Ok(plan) if plan.writes.is_empty() => Ok(plan.outcome(None)),
            Ok(_) => Err(Refusal::NotReadOnly),
            Err(verdict) => verdict,
        }
    }

    /// What would be done, or why nothing is.
    fn plan<'a>(&self, command: &Command<'_>, txn: &Txn<'a>) -> Result<Plan<'a>, Verdict> {
        let succeeded = txn.compares.iter().all(|it| compare(it, self.pairs.get(it.key)));
        let actions = if succeeded { &txn.then } else { &txn.otherwise };
        let revision = self.next_revision();
        let mut planned: BTreeMap<&[u8], Option<Pair>> = BTreeMap::new();
        let mut replies = Vec::with_capacity(actions.len());
        let mut replies_bytes = 0;
        for action in actions {
            let key = action.key();
            let current = match planned.get(key) {
                Some(planned) => planned.as_ref(),
                None => self.pairs.get(key),
            };
            let (reply, pair) = match *action {
                Action::Get { .. } => (ActionReply::Got(current.cloned()), None),
                Action::Put { value, lease, .. } => {
                    let value = Bytes::copy_from_slice(value);
                    let pair = written(current, revision, value, lease);
                    (ActionReply::Written(numbers(&pair)), Some(Some(pair)))
                }
                Action::Append { value, .. } => {
                    let old = current.map_or_else(Bytes::new, |pair| pair.value.clone());
                    let whole =
                        appended(&old, value, command.bounds.value_bytes_max).map_err(Ok)?;
                    let pair = written(current, revision, whole, current.and_then(|it| it.lease));
                    (ActionReply::Appended { written: numbers(&pair), old }, Some(Some(pair)))
                }
                Action::Delete { .. } => match current {
                    None => (ActionReply::Removed(None), None),
                    Some(pair) => (ActionReply::Removed(Some(pair.clone())), Some(None)),
                },
            };
            replies_bytes += reply_cost(&reply);
            if replies_bytes > TXN_REPLY_BYTES_MAX {
                let limit = TXN_REPLY_BYTES_MAX;
                return Err(Err(Refusal::Limit { name: TXN_REPLY_BYTES, limit }));
            }
            replies.push(reply);
            if let Some(pair) = pair {
                planned.insert(key, pair);
            }
        }
        Ok(Plan { succeeded, replies, writes: planned.into_iter().collect() })
    }
}

fn numbers(pair: &Pair) -> Written {
    Written { version: pair.version, revision: pair.mod_revision }
}

fn compare(compare: &Compare<'_>, current: Option<&Pair>) -> bool {
    let order = match compare.operand {
        Operand::Version(version) => {
            Some(current.map_or(Version(0), |pair| pair.version).cmp(&version))
        }
        Operand::CreateRevision(revision) => {
            Some(current.map_or(Revision(0), |pair| pair.create_revision).cmp(&revision))
        }
        Operand::ModRevision(revision) => {
            Some(current.map_or(Revision(0), |pair| pair.mod_revision).cmp(&revision))
        }
        Operand::Value(value) => current.map(|pair| pair.value[..].cmp(value)),
        Operand::Lease(lease) => Some(current.and_then(|pair| pair.lease).cmp(&lease)),
    };
    match compare.relation {
        Relation::Equal => order == Some(Ordering::Equal),
        Relation::NotEqual => order != Some(Ordering::Equal),
        Relation::Less => order == Some(Ordering::Less),
        Relation::Greater => order == Some(Ordering::Greater),
    }
}
