//! Everything that is kept up as a sum, counted anew from what it is the sum of.
//!
//! For tests: what is kept up on every write must be what this finds, whatever came before.

use crate::{
    digest,
    limits::{CHANGE_OVERHEAD_BYTES, LEASE_OVERHEAD_BYTES, LOCK_OVERHEAD_BYTES},
    outcome::Revision,
    pairs,
    shard::Shard,
};

impl Shard {
    /// The digest of everything in it.
    pub(crate) fn recomputed_digest(&self) -> u128 {
        let (compacted, order) = (self.changes.compacted(), self.sessions.next_order());
        let mut sum =
            digest::shard(self.number, self.revision, compacted, order).wrapping_add(self.stays());
        let mut add = |part: u128| sum = sum.wrapping_add(part);
        for (key, pair) in self.pairs.map() {
            add(digest::pair(self.number, key, pair));
        }
        for (revision, change) in self.changes.after(Revision(0)) {
            add(digest::change(revision, self.pairs.digests(change), change.expired));
        }
        for (id, lease) in self.leases.map() {
            let (ttl_ms, renewal, deadline) = (lease.ttl_ms, lease.renewal, lease.deadline.0);
            add(digest::lease(*id, ttl_ms, renewal, deadline, lease.own.as_deref()));
        }
        for (name, lock) in self.locks.map() {
            add(digest::lock(name, lock.lease, lock.token, &lock.owner));
            for (arrival, waiter) in &lock.waiters {
                add(digest::waiter(name, *arrival, waiter));
            }
        }
        for (client, row) in self.sessions.rows() {
            add(row.digest(client));
            for reply in row.replies.as_slice() {
                add(reply.digest(client));
            }
        }
        sum
    }

    /// What it counts against the limit on what is stored.
    pub(crate) fn recomputed_stored_bytes(&self) -> u64 {
        let pairs = self.pairs.map().iter();
        let pairs: u64 = pairs.map(|(key, pair)| pairs::cost(key, &pair.value)).sum();
        let mut bytes = pairs + self.leases.map().len() as u64 * LEASE_OVERHEAD_BYTES;
        for (_, change) in self.changes.after(Revision(0)) {
            let previous = change.previous.as_ref().map_or(0, |pair| pair.value.len());
            bytes += (change.key.len() + previous) as u64 + CHANGE_OVERHEAD_BYTES;
        }
        for (name, lock) in self.locks.map() {
            bytes += (name.len() + lock.owner.len()) as u64 + LOCK_OVERHEAD_BYTES;
            for waiter in lock.waiters.values() {
                bytes += waiter.owner.len() as u64 + LOCK_OVERHEAD_BYTES;
            }
        }
        bytes
    }
}
