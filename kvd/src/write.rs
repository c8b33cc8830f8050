//! What commands do to pairs: one write after its checks, and what all writes have in common.
//!
//! Everything is checked before anything is changed: a refusal changes nothing. The order of the
//! questions is part of the contract: the guard, the condition, the lease, then the limits.

use std::{collections::BTreeMap, sync::Arc};

use bytes::{Bytes, BytesMut};

use crate::{
    command::{Command, Condition, Guard, LeaseId},
    limits::{KEYS_PER_LEASE_MAX, VALUE_BYTES_MAX},
    outcome::{Outcome, Pair, Refusal, Revision, ShardTime, Version, Written},
    pairs::{cost, written},
    refusal::KEYS_PER_LEASE,
    shard::{Group, Shard},
};

/// What a command comes to.
pub(crate) type Verdict = Result<Outcome, Refusal>;

/// What a key is to hold.
pub(crate) type Write<'a> = (&'a [u8], Option<Pair>);

impl Shard {
    pub(crate) fn put(
        &mut self,
        group: &Group,
        command: &Command<'_>,
        (key, value): (&[u8], &[u8]),
        condition: Condition,
        lease: Option<LeaseId>,
    ) -> Verdict {
        let current = self.pairs.get(key);
        if !holds(condition, current) {
            return Ok(Outcome::Mismatch(current.cloned()));
        }
        let pair = written(current, self.next_revision(), Bytes::copy_from_slice(value), lease);
        let written = Written { version: pair.version, revision: pair.mod_revision };
        self.write(group, command, [(key, Some(pair))], || Outcome::Written(written))
    }

    pub(crate) fn append(
        &mut self,
        group: &Group,
        command: &Command<'_>,
        key: &[u8],
        value: &[u8],
    ) -> Verdict {
        let current = self.pairs.get(key);
        let old = current.map_or_else(Bytes::new, |pair| pair.value.clone());
        let whole = match appended(&old, value, command.bounds.value_bytes_max) {
            Ok(whole) => whole,
            Err(too_large) => return Ok(too_large),
        };
        let lease = current.and_then(|pair| pair.lease);
        let pair = written(current, self.next_revision(), whole, lease);
        let written = Written { version: pair.version, revision: pair.mod_revision };
        self.write(group, command, [(key, Some(pair))], || Outcome::Appended { written, old })
    }

    pub(crate) fn delete(&mut self, group: &Group, command: &Command<'_>, key: &[u8]) -> Verdict {
        let Some(pair) = self.pairs.get(key).cloned() else { return Ok(Outcome::Absent) };
        let written = Written { version: Version(0), revision: self.next_revision() };
        self.write(group, command, [(key, None)], || Outcome::Removed { written, pair })
    }

    /// Checks writes, which are by key, and does them under the next revision.
    pub(crate) fn write<'a, W>(
        &mut self,
        group: &Group,
        command: &Command<'_>,
        writes: W,
        outcome: impl FnOnce() -> Outcome,
    ) -> Verdict
    where
        W: AsRef<[Write<'a>]> + IntoIterator<Item = Write<'a>>,
    {
        let each = writes.as_ref();
        if let Some(gone) = self.missing_lease(each) {
            return Ok(Outcome::NoSuchLease(gone));
        }
        self.check_attached(each)?;
        self.check_room(group, each, command.bounds.stored_bytes_max)?;
        let revision = self.next_revision();
        self.revision = revision;
        self.change(revision, writes, false);
        Ok(outcome())
    }

    /// Changes pairs at a revision, and what is known of them elsewhere. The writes are by key.
    pub(crate) fn change<'a>(
        &mut self,
        revision: Revision,
        writes: impl IntoIterator<Item = Write<'a>>,
        expired: bool,
    ) {
        for (key, pair) in writes {
            let (change, digests) = self.pairs.set(key, pair, expired);
            let lease = |pair: &Option<Arc<Pair>>| pair.as_ref().and_then(|pair| pair.lease);
            let (before, after) = (lease(&change.previous), lease(&change.current));
            if before != after {
                before.into_iter().for_each(|lease| self.leases.detach(lease, &change.key));
                after.into_iter().for_each(|lease| self.leases.attach(lease, &change.key));
            }
            self.changes.push(revision, change, digests);
        }
    }

    /// Whether the guard's lock is held under its token, and its lease is not past its deadline,
    /// Expire or not.
    pub(crate) fn check_guard(&self, guard: &Guard<'_>, now: ShardTime) -> Result<(), Outcome> {
        let Some(lock) = self.locks.get(guard.lock) else {
            return Err(Outcome::GuardRefused(None));
        };
        let lives = self.leases.get(lock.lease).is_some_and(|lease| now < lease.deadline);
        if lock.token == guard.token && lives {
            Ok(())
        } else {
            Err(Outcome::GuardRefused(Some(lock.token)))
        }
    }

    /// Checks that the group may store what grows.
    fn check_room(&self, group: &Group, writes: &[Write<'_>], limit: u64) -> Result<(), Refusal> {
        let cost_of = |key: &[u8], pair: Option<&Pair>| pair.map_or(0, |it| cost(key, &it.value));
        let more: u64 = writes.iter().map(|(key, pair)| cost_of(key, pair.as_ref())).sum();
        if group.check_room(more, limit).is_ok() {
            return Ok(());
        }
        let less: u64 = writes.iter().map(|(key, _)| cost_of(key, self.pairs.get(key))).sum();
        group.check_room(more.saturating_sub(less), limit)
    }

    /// A lease that a write attaches to and that can't be attached to.
    fn missing_lease(&self, writes: &[Write<'_>]) -> Option<LeaseId> {
        let wanted = writes.iter().filter_map(|(_, pair)| pair.as_ref()?.lease);
        wanted.into_iter().find(|lease| !self.leases.is_usable(*lease))
    }

    /// Checks that no lease gets more keys than it may have. A key that leaves it in the same
    /// command counts still.
    fn check_attached(&self, writes: &[Write<'_>]) -> Result<(), Refusal> {
        let mut added: BTreeMap<LeaseId, usize> = BTreeMap::new();
        for (key, pair) in writes {
            let Some(lease) = pair.as_ref().and_then(|pair| pair.lease) else { continue };
            if self.pairs.get(key).and_then(|pair| pair.lease) != Some(lease) {
                *added.entry(lease).or_default() += 1;
            }
        }
        let full = |(lease, added): (&LeaseId, &usize)| {
            let keys = self.leases.get(*lease).map_or(0, |lease| lease.keys.len());
            keys + added > KEYS_PER_LEASE_MAX
        };
        if added.iter().any(full) {
            let limit = KEYS_PER_LEASE_MAX as u64;
            return Err(Refusal::Limit { name: KEYS_PER_LEASE, limit });
        }
        Ok(())
    }
}

/// A value with another behind it, in an allocation of its own.
pub(crate) fn appended(old: &[u8], value: &[u8], value_bytes_max: u64) -> Result<Bytes, Outcome> {
    let bytes = old.len() as u64 + value.len() as u64;
    let limit = value_bytes_max.min(VALUE_BYTES_MAX as u64);
    if bytes > limit {
        return Err(Outcome::TooLarge { bytes, limit });
    }
    let mut whole = BytesMut::with_capacity(old.len() + value.len());
    whole.extend_from_slice(old);
    whole.extend_from_slice(value);
    Ok(whole.freeze())
}

fn holds(condition: Condition, current: Option<&Pair>) -> bool {
    match condition {
        Condition::Always => true,
        Condition::Version(version) => current.map_or(Version(0), |pair| pair.version) == version,
        Condition::ModRevision(revision) => {
            current.map_or(Revision(0), |pair| pair.mod_revision) == revision
        }
    }
}
