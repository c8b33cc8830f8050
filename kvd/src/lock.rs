//! The locks of one shard: who holds each, and who waits for it.
//!
//! Decides nothing but the order of arrival; who gets a lock, and when, is decided in `tenure.rs`.
//! A lock that nobody holds is not there.

use bytes::Bytes;
use imbl::OrdMap;

use crate::{
    command::{LeaseId, Token},
    digest,
    limits::LOCK_OVERHEAD_BYTES,
    outcome::{Key, Revision, ShardTime, Waiter},
};

/// A lock that is held.
#[derive(Clone, Debug)]
pub(crate) struct Lock {
    /// Who holds it.
    pub(crate) lease: LeaseId,
    /// The shard's revision when it was granted.
    pub(crate) token: Token,
    /// What the holder said of itself.
    pub(crate) owner: Bytes,
    /// Who waits, by the revision at which they came.
    pub(crate) waiters: OrdMap<Revision, Waiter>,
}

/// The locks. Cloning shares everything.
///
/// Invariants: `bytes` and `digest` are the sums over locks and waiters; every lease that is named
/// lives, and names the lock too.
#[derive(Clone, Debug, Default)]
pub(crate) struct Locks {
    locks: OrdMap<Key, Lock>,
    bytes: u64,
    digest: u128,
}

impl Locks {
    pub(crate) fn len(&self) -> usize {
        self.locks.len()
    }

    pub(crate) fn map(&self) -> &OrdMap<Key, Lock> {
        &self.locks
    }

    pub(crate) fn get(&self, name: &[u8]) -> Option<&Lock> {
        self.locks.get(name)
    }

    /// What they count in what is stored.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn digest(&self) -> u128 {
        self.digest
    }

    /// Adds a lock that is not there, without waiters.
    pub(crate) fn insert(&mut self, name: &Key, lease: LeaseId, token: Token, owner: Bytes) {
        self.bytes += cost(name, &owner);
        self.digest = self.digest.wrapping_add(digest::lock(name, lease, token, &owner));
        let lock = Lock { lease, token, owner, waiters: OrdMap::new() };
        let before = self.locks.insert(name.clone(), lock);
        assert!(before.is_none(), "the lock is held already");
    }

    /// Lets another hold a lock.
    pub(crate) fn pass(&mut self, name: &Key, lease: LeaseId, token: Token, owner: Bytes) {
        let Some(lock) = self.locks.get_mut(name) else { return };
        assert!(lock.token < token, "{:?} is passed on as {token:?}", lock.token);
        let before = digest::lock(name, lock.lease, lock.token, &lock.owner);
        let after = digest::lock(name, lease, token, &owner);
        self.bytes = self.bytes - cost(name, &lock.owner) + cost(name, &owner);
        self.digest = self.digest.wrapping_sub(before).wrapping_add(after);
        (lock.lease, lock.token, lock.owner) = (lease, token, owner);
    }

    /// Takes a lock out that nobody waits for.
    pub(crate) fn remove(&mut self, name: &[u8]) {
        let Some(lock) = self.locks.remove(name) else { return };
        assert!(lock.waiters.is_empty(), "somebody waits for a lock that is given up");
        self.bytes -= cost(name, &lock.owner);
        let digest = digest::lock(name, lock.lease, lock.token, &lock.owner);
        self.digest = self.digest.wrapping_sub(digest);
    }

    /// Puts somebody behind all others; false when the lock is not held, or a later one is there.
    pub(crate) fn enqueue(&mut self, name: &[u8], arrival: Revision, waiter: Waiter) -> bool {
        let Some(lock) = self.locks.get_mut(name) else { return false };
        if lock.waiters.get_max().is_some_and(|(latest, _)| *latest >= arrival) {
            return false;
        }
        self.bytes += cost(&[], &waiter.owner);
        self.digest = self.digest.wrapping_add(digest::waiter(name, arrival, &waiter));
        lock.waiters.insert(arrival, waiter);
        true
    }

    /// Takes somebody out of the queue.
    pub(crate) fn dequeue(&mut self, name: &[u8], arrival: Revision) -> Option<Waiter> {
        let waiter = self.locks.get_mut(name)?.waiters.remove(&arrival)?;
        self.bytes -= cost(&[], &waiter.owner);
        self.digest = self.digest.wrapping_sub(digest::waiter(name, arrival, &waiter));
        Some(waiter)
    }

    /// Lets somebody wait until then, if that is later.
    pub(crate) fn extend(&mut self, name: &[u8], arrival: Revision, until: ShardTime) {
        let waiters = self.locks.get_mut(name).map(|lock| &mut lock.waiters);
        let Some(waiter) = waiters.and_then(|waiters| waiters.get_mut(&arrival)) else { return };
        self.digest = self.digest.wrapping_sub(digest::waiter(name, arrival, waiter));
        waiter.until = waiter.until.max(until);
        self.digest = self.digest.wrapping_add(digest::waiter(name, arrival, waiter));
    }

    /// Takes out no more than so many locks, each with its queue; whether some are left.
    pub(crate) fn discard(&mut self, most: usize) -> bool {
        for _ in 0..most {
            let Some((name, lock)) = self.locks.get_min() else { return false };
            let (name, waiters) = (name.clone(), lock.waiters.clone());
            for arrival in waiters.keys() {
                self.dequeue(&name, *arrival);
            }
            self.remove(&name);
        }
        !self.locks.is_empty()
    }

    /// The first of the queue.
    pub(crate) fn first(&self, name: &[u8]) -> Option<Revision> {
        self.locks.get(name)?.waiters.get_min().map(|(arrival, _)| *arrival)
    }
}

/// What a lock or a place in its queue counts in what is stored.
pub(crate) fn cost(name: &[u8], owner: &[u8]) -> u64 {
    (name.len() + owner.len()) as u64 + LOCK_OVERHEAD_BYTES
}
