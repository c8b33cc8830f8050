//! A command for the key/value store that was committed: what came of it, and what the simplest store
//! there can be makes of it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kvd::{
    command::{Action, Command, LeaseId, Operation},
    outcome::{Answered, Outcome, ShardTime},
};

use super::{
    Violation,
    ghost::Executed,
    model::{Shard, Tenancy},
};

/// The stores that are compared with, by shard.
#[derive(Debug, Default)]
pub(super) struct Model(BTreeMap<u32, Shard>);

/// What checkers of leases, locks and transactions see.
pub(super) struct Turn<'a> {
    pub(super) executed: &'a Executed,
    pub(super) command: &'a Command<'a>,
    pub(super) now: ShardTime,
    /// How leases and locks stood; as they do now, for a command that can't change them.
    before: Option<Tenancy>,
    pub(super) after: &'a Shard,
    /// What should have come of it; none: nothing, since it was refused or came again.
    pub(super) expected: Option<Outcome>,
    /// The keys that it may have changed.
    pub(super) keys: BTreeSet<Bytes>,
    /// How many pairs, leases and locks there should be in all shards that the group serves.
    pub(super) counts: [u64; 3],
    /// How many there are.
    pub(super) counted: [u64; 3],
}

impl Model {
    /// Executes a command, if the store did.
    pub(super) fn take<'a>(
        &'a mut self,
        executed: &'a Executed,
        command: &'a Command<'a>,
    ) -> Turn<'a> {
        let header = executed.response.header;
        let shard = self.0.entry(header.shard).or_insert_with(|| Shard::new(header.shard));
        let keys = keys(shard, &command.operation);
        let before = moves_tenancy(&command.operation).then(|| shard.tenancy.clone());
        let first = executed.response.result.as_ref().is_ok_and(|answered| !answered.duplicate);
        let expected = first.then(|| shard.execute(command, header.time));
        let unserved = executed.unserved();
        let (counts, counted) = (self.counts(&unserved), executed.counts_without(&unserved));
        let (now, after) = (header.time, &self.0[&header.shard]);
        Turn { executed, command, now, before, after, expected, keys, counts, counted }
    }

    /// A shard; none: nothing was ever asked of it.
    pub(super) fn shard(&self, number: u32) -> Option<&Shard> {
        self.0.get(&number)
    }

    /// How many pairs, leases and locks there are in all shards but these.
    fn counts(&self, unserved: &[u32]) -> [u64; 3] {
        let served = self.0.iter().filter(|(number, _)| !unserved.contains(number));
        served.fold([0; 3], |mut sum, (_, shard)| {
            sum.iter_mut().zip(shard.counts()).for_each(|(sum, of)| *sum += of);
            sum
        })
    }
}

impl Turn<'_> {
    pub(super) fn shard(&self) -> u32 {
        self.executed.response.header.shard
    }

    /// What it answered, if it was executed now.
    pub(super) fn first(&self) -> Option<&Answered> {
        let answered = self.executed.response.result.as_ref().ok();
        answered.filter(|answered| !answered.duplicate)
    }

    /// How leases and locks stood.
    pub(super) fn before(&self) -> &Tenancy {
        self.before.as_ref().unwrap_or(&self.after.tenancy)
    }

    /// Whether it may change leases and locks.
    pub(super) fn moves_tenancy(&self) -> bool {
        self.before.is_some()
    }

    /// All locks that were held or are.
    pub(super) fn locks(&self) -> BTreeSet<Bytes> {
        let held = self.before().locks.keys().chain(self.after.tenancy.locks.keys());
        let named = match &self.command.operation {
            Operation::Acquire { name, .. } | Operation::Release { name, .. } => Some(*name),
            _ => None,
        };
        held.cloned().chain(named.map(Bytes::copy_from_slice)).collect()
    }

    /// The lease that ends with it, if it does what it says.
    pub(super) fn ends(&self) -> Option<LeaseId> {
        ended_by(&self.command.operation)
    }

    /// A finding.
    pub(super) fn broken(&self, invariant: &'static str, what: &str) -> Result<(), Violation> {
        let Executed { index, response, .. } = self.executed;
        let (command, expected) = (self.command, &self.expected);
        let what = format!("{what}: {command:?} at {index}: {response:?}, expected {expected:?}");
        Err(Violation::new(invariant, what))
    }
}

fn moves_tenancy(operation: &Operation<'_>) -> bool {
    match operation {
        Operation::Grant { .. }
        | Operation::KeepAlive { .. }
        | Operation::Revoke { .. }
        | Operation::Expire { .. }
        | Operation::Acquire { .. }
        | Operation::Release { .. } => true,
        Operation::Put { .. }
        | Operation::Append { .. }
        | Operation::Delete { .. }
        | Operation::Txn(_)
        | Operation::Compact { .. } => false,
    }
}

fn ended_by(operation: &Operation<'_>) -> Option<LeaseId> {
    match operation {
        Operation::Revoke { lease }
        | Operation::Expire { lease, .. }
        | Operation::Release { lease, .. } => Some(*lease),
        Operation::Put { .. }
        | Operation::Append { .. }
        | Operation::Delete { .. }
        | Operation::Txn(_)
        | Operation::Compact { .. }
        | Operation::Grant { .. }
        | Operation::KeepAlive { .. }
        | Operation::Acquire { .. } => None,
    }
}

fn keys(shard: &Shard, operation: &Operation<'_>) -> BTreeSet<Bytes> {
    let named: Vec<&[u8]> = match operation {
        Operation::Put { key, .. } | Operation::Append { key, .. } | Operation::Delete { key } => {
            vec![key]
        }
        Operation::Txn(txn) => txn.actions().map(Action::key).collect(),
        Operation::Compact { .. }
        | Operation::Grant { .. }
        | Operation::KeepAlive { .. }
        | Operation::Revoke { .. }
        | Operation::Expire { .. }
        | Operation::Acquire { .. }
        | Operation::Release { .. } => Vec::new(),
    };
    let named = named.into_iter().map(Bytes::copy_from_slice);
    let attached = ended_by(operation).into_iter().flat_map(|lease| shard.keys_of(lease).cloned());
    named.chain(attached).collect()
}
