//! The leases of one shard.
//!
//! Decides how long each lives, in shard time, and knows what is attached to it; what becomes of
//! that when it ends is decided in `tenure.rs`. Nothing here ends by itself: a deadline that has
//! passed only makes a lease due.

use imbl::{OrdMap, OrdSet};

use crate::{
    command::LeaseId,
    digest,
    limits::LEASE_OVERHEAD_BYTES,
    outcome::{Key, Revision, ShardTime},
};

/// A lease.
///
/// What is attached to it is derived: the pairs name it, and so do the locks.
#[derive(Clone, Debug)]
pub(crate) struct Lease {
    pub(crate) ttl_ms: u64,
    /// How often it began anew.
    pub(crate) renewal: u64,
    pub(crate) deadline: ShardTime,
    /// The lock that it was made for, and ends with.
    pub(crate) own: Option<Key>,
    /// The keys that go with it.
    pub(crate) keys: OrdSet<Key>,
    /// The locks that it holds (none) or waits for (since when).
    pub(crate) locks: OrdMap<Key, Option<Revision>>,
}

impl Lease {
    pub(crate) fn new(ttl_ms: u64, deadline: ShardTime, own: Option<Key>) -> Self {
        Self { ttl_ms, renewal: 0, deadline, own, keys: OrdSet::new(), locks: OrdMap::new() }
    }

    /// Whether it was made for a lock that it does not hold yet: its deadline is the end of the
    /// wait then, and nobody else can use it.
    pub(crate) fn is_waiting(&self) -> bool {
        let own = self.own.as_ref().and_then(|own| self.locks.get(own));
        own.is_some_and(Option::is_some)
    }

    /// How long it lives on at least.
    pub(crate) fn remaining_ms(&self, now: ShardTime) -> u64 {
        self.deadline.0.saturating_sub(now.0)
    }

    fn digest(&self, id: LeaseId) -> u128 {
        digest::lease(id, self.ttl_ms, self.renewal, self.deadline.0, self.own.as_deref())
    }
}

/// The leases. Cloning shares everything.
///
/// Invariants: `due` holds `(deadline, id)` for exactly these leases; `digest` is the sum; `expected`
/// names no lease that is there, and none without keys.
#[derive(Clone, Debug, Default)]
pub(crate) struct Leases {
    leases: OrdMap<LeaseId, Lease>,
    due: OrdSet<(ShardTime, LeaseId)>,
    /// The keys of leases that are still to come, while the shard comes from another group.
    expected: OrdMap<LeaseId, OrdSet<Key>>,
    digest: u128,
}

impl Leases {
    pub(crate) fn len(&self) -> usize {
        self.leases.len()
    }

    pub(crate) fn map(&self) -> &OrdMap<LeaseId, Lease> {
        &self.leases
    }

    pub(crate) fn get(&self, id: LeaseId) -> Option<&Lease> {
        self.leases.get(&id)
    }

    pub(crate) fn digest(&self) -> u128 {
        self.digest
    }

    /// What they count in what is stored.
    pub(crate) fn bytes(&self) -> u64 {
        self.leases.len() as u64 * LEASE_OVERHEAD_BYTES
    }

    /// Whether keys can be attached to it and locks acquired under it.
    pub(crate) fn is_usable(&self, id: LeaseId) -> bool {
        self.leases.get(&id).is_some_and(|lease| !lease.is_waiting())
    }

    /// When the first one is over.
    pub(crate) fn earliest(&self) -> Option<ShardTime> {
        self.due.get_min().map(|(deadline, _)| *deadline)
    }

    /// Those that are over by a time, the first one first.
    pub(crate) fn due(&self) -> impl Iterator<Item = (ShardTime, LeaseId)> {
        self.due.iter().copied()
    }

    /// Adds a lease that is not there, with the keys that came before it.
    pub(crate) fn insert(&mut self, id: LeaseId, mut lease: Lease) {
        lease.keys = self.expected.remove(&id).unwrap_or_default();
        self.digest = self.digest.wrapping_add(lease.digest(id));
        self.due.insert((lease.deadline, id));
        let before = self.leases.insert(id, lease);
        assert!(before.is_none(), "lease {id} is there already");
    }

    /// Takes a lease out, with what was attached to it.
    pub(crate) fn remove(&mut self, id: LeaseId) -> Option<Lease> {
        let lease = self.leases.remove(&id)?;
        self.digest = self.digest.wrapping_sub(lease.digest(id));
        self.due.remove(&(lease.deadline, id));
        Some(lease)
    }

    /// Lets a lease live until then, which counts as a renewal.
    pub(crate) fn renew(&mut self, id: LeaseId, deadline: ShardTime) {
        let Some(lease) = self.leases.get_mut(&id) else { return };
        self.digest = self.digest.wrapping_sub(lease.digest(id));
        self.due.remove(&(lease.deadline, id));
        lease.deadline = deadline;
        lease.renewal = lease.renewal.saturating_add(1);
        self.due.insert((deadline, id));
        self.digest = self.digest.wrapping_add(lease.digest(id));
    }

    pub(crate) fn attach(&mut self, id: LeaseId, key: &Key) {
        let lease =
            self.leases.get_mut(&id).expect("a pair is attached only to a lease that lives");
        lease.keys.insert(key.clone());
    }

    /// Notes a key whose lease is still to come.
    pub(crate) fn expect(&mut self, id: LeaseId, key: &Key) {
        self.expected.entry(id).or_default().insert(key.clone());
    }

    /// Takes out no more than so many leases; whether some are left.
    pub(crate) fn discard(&mut self, most: usize) -> bool {
        for _ in 0..most {
            let Some(id) = self.leases.get_min().map(|(id, _)| *id) else { return false };
            self.remove(id);
        }
        !self.leases.is_empty()
    }

    /// Whether all leases that keys name are there.
    pub(crate) fn is_whole(&self) -> bool {
        self.expected.is_empty()
    }

    /// Lets a key go; that of a lease which is being ended has gone already.
    pub(crate) fn detach(&mut self, id: LeaseId, key: &Key) {
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.keys.remove(key);
        } else if let Some(keys) = self.expected.get_mut(&id) {
            keys.remove(key);
            if keys.is_empty() {
                self.expected.remove(&id);
            }
        }
    }

    /// Notes that it holds a lock, or waits for it since a revision.
    pub(crate) fn set_lock(&mut self, id: LeaseId, name: &Key, waits: Option<Revision>) {
        let lease = self.leases.get_mut(&id).expect("a lock is held only under a lease that lives");
        lease.locks.insert(name.clone(), waits);
    }

    /// Notes that it neither holds a lock nor waits for it.
    pub(crate) fn remove_lock(&mut self, id: LeaseId, name: &[u8]) {
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.locks.remove(name);
        }
    }
}
