//! The simplest key/value store that there can be: what each command must come to.
//!
//! Knows plain maps and no limits that a run could reach. It is fed with the committed commands, in
//! their order and with the shard's time at each, and shares nothing with the machine but the words
//! for questions and answers. Leases and locks are in `tenancy.rs`, transactions in
//! `transaction.rs`.

mod tenancy;
mod transaction;

use std::collections::BTreeMap;

use bytes::Bytes;
use kvd::{
    command::{Command, Condition, LeaseId, Operation},
    limits::VALUE_BYTES_MAX,
    outcome::{Outcome, Pair, Revision, ShardTime, Version, Written},
};

pub(super) use tenancy::Tenancy;

/// A shard as it must be.
#[derive(Debug, Default)]
pub(super) struct Shard {
    number: u32,
    pub(super) revision: Revision,
    pub(super) pairs: BTreeMap<Bytes, Pair>,
    pub(super) tenancy: Tenancy,
}

impl Shard {
    pub(super) fn new(number: u32) -> Self {
        Self { number, ..Self::default() }
    }

    /// How many pairs, leases and locks there are.
    pub(super) fn counts(&self) -> [u64; 3] {
        let Tenancy { leases, locks } = &self.tenancy;
        [self.pairs.len() as u64, leases.len() as u64, locks.len() as u64]
    }

    /// The keys that go with a lease.
    pub(super) fn keys_of(&self, lease: LeaseId) -> impl Iterator<Item = &Bytes> {
        let attached = self.pairs.iter().filter(move |(_, pair)| pair.lease == Some(lease));
        attached.map(|(key, _)| key)
    }

    /// Executes a command that comes at this time.
    pub(super) fn execute(&mut self, command: &Command<'_>, now: ShardTime) -> Outcome {
        if let Some(guard) = &command.guard
            && !self.tenancy.allows(guard, now)
        {
            return Outcome::GuardRefused(self.tenancy.token(guard.lock));
        }
        match &command.operation {
            Operation::Put { key, value, condition, lease } => {
                self.put(key, value, *condition, *lease)
            }
            Operation::Append { key, value } => {
                let limit = command.bounds.value_bytes_max;
                match self.appended(key, value, limit) {
                    Ok((whole, old, lease)) => {
                        let revision = self.count();
                        let written = self.write(key, whole, lease, revision);
                        Outcome::Appended { written, old }
                    }
                    Err(too_large) => too_large,
                }
            }
            Operation::Delete { key } => {
                let Some(pair) = self.pairs.remove(*key) else { return Outcome::Absent };
                let written = Written { version: Version(0), revision: self.count() };
                Outcome::Removed { written, pair }
            }
            Operation::Txn(txn) => self.transact(txn, command.bounds.value_bytes_max),
            Operation::Grant { key: _, ttl_ms } => self.grant(*ttl_ms, now),
            Operation::KeepAlive { leases } => self.tenancy.keep_alive(leases, now),
            Operation::Revoke { lease } => self.revoke(*lease, now),
            Operation::Expire { lease, renewal } => self.expire(*lease, *renewal, now),
            Operation::Acquire { name, tenure, wait_ms, owner } => {
                self.acquire((name, owner), *tenure, *wait_ms, now)
            }
            Operation::Release { name, lease } => self.release(name, *lease, now),
            Operation::Compact { .. } => unreachable!("clerks forget no changes"),
        }
    }

    fn count(&mut self) -> Revision {
        self.revision.0 += 1;
        self.revision
    }

    fn put(
        &mut self,
        key: &[u8],
        value: &[u8],
        condition: Condition,
        lease: Option<LeaseId>,
    ) -> Outcome {
        let pair = self.pairs.get(key);
        let holds = match condition {
            Condition::Always => true,
            Condition::Version(it) => pair.map_or(Version(0), |pair| pair.version) == it,
            Condition::ModRevision(it) => pair.map_or(Revision(0), |pair| pair.mod_revision) == it,
        };
        if !holds {
            return Outcome::Mismatch(pair.cloned());
        }
        if let Some(gone) = lease.filter(|lease| !self.tenancy.is_usable(*lease)) {
            return Outcome::NoSuchLease(gone);
        }
        let revision = self.count();
        Outcome::Written(self.write(key, value.to_vec(), lease, revision))
    }

    /// What an append makes of a key, what was there, and with which lease it goes.
    fn appended(
        &self,
        key: &[u8],
        value: &[u8],
        limit: u64,
    ) -> Result<(Vec<u8>, Bytes, Option<LeaseId>), Outcome> {
        let pair = self.pairs.get(key);
        let old = pair.map(|pair| pair.value.clone()).unwrap_or_default();
        let (bytes, limit) = ((old.len() + value.len()) as u64, limit.min(VALUE_BYTES_MAX as u64));
        if bytes > limit {
            return Err(Outcome::TooLarge { bytes, limit });
        }
        Ok(([&old[..], value].concat(), old, pair.and_then(|pair| pair.lease)))
    }

    fn write(
        &mut self,
        key: &[u8],
        value: Vec<u8>,
        lease: Option<LeaseId>,
        revision: Revision,
    ) -> Written {
        let before = self.pairs.get(key);
        let version = Version(before.map_or(0, |pair| pair.version.0) + 1);
        let create_revision = before.map_or(revision, |pair| pair.create_revision);
        let (value, mod_revision) = (value.into(), revision);
        let pair = Pair { value, version, create_revision, mod_revision, lease };
        self.pairs.insert(Bytes::copy_from_slice(key), pair);
        Written { version, revision }
    }
}
