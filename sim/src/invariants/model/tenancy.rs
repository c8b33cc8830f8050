//! Leases and locks as they must be: who lives until when, who holds which lock, who waits for it.

use std::collections::BTreeMap;

use bytes::Bytes;
use kvd::{
    command::{Guard, LeaseId, Tenure, Token},
    limits::WAITERS_TOLD_MAX,
    outcome::{Holder, Outcome, Revision, ShardTime, Waiter},
};

use super::Shard;

/// The leases and locks of a shard.
#[derive(Clone, Debug, Default)]
pub(in crate::invariants) struct Tenancy {
    pub(in crate::invariants) leases: BTreeMap<LeaseId, Lease>,
    pub(in crate::invariants) locks: BTreeMap<Bytes, Lock>,
}

/// A lease.
#[derive(Clone, Debug)]
pub(in crate::invariants) struct Lease {
    ttl_ms: u64,
    renewals: u64,
    deadline: ShardTime,
    /// The lock that it was made for.
    own: Option<Bytes>,
}

/// A lock that is held.
#[derive(Clone, Debug)]
pub(in crate::invariants) struct Lock {
    pub(in crate::invariants) lease: LeaseId,
    pub(in crate::invariants) token: Token,
    owner: Bytes,
    /// In the order of their arrival.
    queue: Vec<Waiter>,
}

impl Lock {
    /// The first who wait, as many as a lock's state tells, and how many wait.
    pub(in crate::invariants) fn waiters(&self) -> (Vec<Waiter>, u32) {
        let first = self.queue.iter().take(WAITERS_TOLD_MAX).cloned();
        (first.collect(), self.queue.len() as u32)
    }
}

impl Lease {
    pub(in crate::invariants) fn remaining_ms(&self, now: ShardTime) -> u64 {
        self.deadline.0.saturating_sub(now.0)
    }
}

impl Tenancy {
    pub(in crate::invariants) fn token(&self, name: &[u8]) -> Option<Token> {
        self.locks.get(name).map(|lock| lock.token)
    }

    /// Whether a lease holds a lock or waits for it.
    pub(in crate::invariants) fn concerns(&self, name: &[u8], lease: LeaseId) -> bool {
        self.locks.get(name).is_some_and(|lock| lock.lease == lease) || self.waits(name, lease)
    }

    fn waits(&self, name: &[u8], lease: LeaseId) -> bool {
        let lock = self.locks.get(name);
        lock.is_some_and(|lock| lock.queue.iter().any(|waiter| waiter.lease == lease))
    }

    /// Whether a lease was made for a lock that it does not hold yet.
    fn is_waiting(&self, id: LeaseId) -> bool {
        let own = self.leases.get(&id).and_then(|lease| lease.own.as_ref());
        own.is_some_and(|own| self.waits(own, id))
    }

    pub(super) fn is_usable(&self, id: LeaseId) -> bool {
        self.leases.contains_key(&id) && !self.is_waiting(id)
    }

    /// Whether a guard holds: the lock is held under its token, and the lease is not over.
    pub(in crate::invariants) fn allows(&self, guard: &Guard<'_>, now: ShardTime) -> bool {
        let Some(lock) = self.locks.get(guard.lock) else { return false };
        let lives = self.leases.get(&lock.lease).is_some_and(|lease| now < lease.deadline);
        lock.token == guard.token && lives
    }

    pub(super) fn keep_alive(&mut self, ids: &[LeaseId], now: ShardTime) -> Outcome {
        let keep = |id: &LeaseId| {
            let waits = self.is_waiting(*id);
            let lives_ms = self.leases.get_mut(id).map(|lease| {
                if waits {
                    return lease.remaining_ms(now);
                }
                lease.deadline = lease.deadline.max(ShardTime(now.0 + lease.ttl_ms));
                lease.renewals += 1;
                lease.ttl_ms
            });
            (*id, lives_ms)
        };
        Outcome::KeptAlive(ids.iter().map(keep).collect())
    }

    fn holder(&self, lock: &Lock, now: ShardTime) -> Holder {
        let Lock { lease, token, owner, queue: _ } = lock;
        let remaining_ms = self.leases.get(lease).map_or(0, |lease| lease.remaining_ms(now));
        Holder { token: *token, lease: *lease, remaining_ms, owner: owner.clone() }
    }

    /// A holder has gone: the lock is that of the first who still waits.
    fn pass_on(&mut self, name: &[u8], revision: Revision, now: ShardTime) {
        let Some(lock) = self.locks.remove(name) else { return };
        let mut queue = lock.queue.into_iter();
        let mut gone = Vec::new();
        let next = queue.by_ref().find(|waiter| {
            let waits = now < waiter.until;
            gone.extend((!waits).then_some(waiter.lease));
            waits
        });
        // Nobody can have used what was made for a wait alone.
        let made_for_it = |lease: &Lease| lease.own.as_deref() == Some(name);
        for id in gone {
            if self.leases.get(&id).is_some_and(made_for_it) {
                self.leases.remove(&id);
            }
        }
        let Some(Waiter { lease, owner, until: _ }) = next else { return };
        if let Some(own) = self.leases.get_mut(&lease).filter(|lease| made_for_it(lease)) {
            own.deadline = ShardTime(now.0 + own.ttl_ms);
            own.renewals += 1;
        }
        let (token, queue) = (Token(revision.0), queue.collect());
        self.locks.insert(Bytes::copy_from_slice(name), Lock { lease, token, owner, queue });
    }

    /// A lease gives a lock back, or its place in the queue.
    fn leave(&mut self, name: &[u8], id: LeaseId, revision: Revision, now: ShardTime) {
        let Some(lock) = self.locks.get_mut(name) else { return };
        if lock.lease == id {
            self.pass_on(name, revision, now);
        } else {
            lock.queue.retain(|waiter| waiter.lease != id);
        }
    }
}

impl Shard {
    /// The name of a lease that is made at this revision.
    fn lease_at(&self, revision: Revision) -> LeaseId {
        let number = revision.0 << LeaseId::SHARD_BITS | u64::from(self.number);
        LeaseId::new(number).expect("revisions count from 1")
    }

    pub(super) fn grant(&mut self, ttl_ms: u64, now: ShardTime) -> Outcome {
        let revision = self.count();
        let lease = self.lease_at(revision);
        let deadline = ShardTime(now.0 + ttl_ms);
        let made = Lease { ttl_ms, renewals: 0, deadline, own: None };
        self.tenancy.leases.insert(lease, made);
        Outcome::Granted { lease, ttl_ms }
    }

    pub(super) fn revoke(&mut self, id: LeaseId, now: ShardTime) -> Outcome {
        if !self.tenancy.leases.contains_key(&id) {
            return Outcome::NoSuchLease(id);
        }
        let revision = self.count();
        Outcome::Ended { keys_removed: self.end(id, revision, now) }
    }

    pub(super) fn expire(&mut self, id: LeaseId, renewal: u64, now: ShardTime) -> Outcome {
        let lives = |lease: &Lease| lease.renewals != renewal || now < lease.deadline;
        if self.tenancy.leases.get(&id).is_some_and(lives) {
            return Outcome::LivesOn;
        }
        self.revoke(id, now)
    }

    /// Ends a lease; how many keys go with it.
    fn end(&mut self, id: LeaseId, revision: Revision, now: ShardTime) -> u32 {
        self.tenancy.leases.remove(&id);
        let names: Vec<Bytes> = self.tenancy.locks.keys().cloned().collect();
        for name in names {
            self.tenancy.leave(&name, id, revision, now);
        }
        let keys: Vec<Bytes> = self.keys_of(id).cloned().collect();
        for key in &keys {
            self.pairs.remove(key);
        }
        keys.len() as u32
    }

    pub(super) fn acquire(
        &mut self,
        (name, owner): (&[u8], &[u8]),
        tenure: Tenure,
        wait_ms: u64,
        now: ShardTime,
    ) -> Outcome {
        let asked = match tenure {
            Tenure::Own { .. } => None,
            Tenure::Lease(id) if self.tenancy.is_usable(id) => Some(id),
            Tenure::Lease(id) => return Outcome::NoSuchLease(id),
        };
        let until = ShardTime(now.0 + wait_ms);
        let owner = Bytes::copy_from_slice(owner);
        let Some(lock) = self.tenancy.locks.get(name) else {
            let revision = self.count();
            let lease = self.tenant(name, tenure, revision, |ttl_ms| ShardTime(now.0 + ttl_ms));
            let (token, queue) = (Token(revision.0), Vec::new());
            let lock = Lock { lease, token, owner, queue };
            self.tenancy.locks.insert(Bytes::copy_from_slice(name), lock);
            return self.held(lease, token);
        };
        if asked == Some(lock.lease) {
            return self.held(lock.lease, lock.token);
        }
        if wait_ms == 0 {
            return Outcome::Busy(self.tenancy.holder(lock, now));
        }
        if let Some(lease) = asked.filter(|id| self.tenancy.waits(name, *id)) {
            let queue = self.tenancy.locks.get_mut(name).into_iter().flat_map(|it| &mut it.queue);
            for waiter in queue.filter(|waiter| waiter.lease == lease) {
                waiter.until = waiter.until.max(until);
            }
            return Outcome::Queued { lease };
        }
        let revision = self.count();
        let lease = self.tenant(name, tenure, revision, |_| until);
        if let Some(lock) = self.tenancy.locks.get_mut(name) {
            lock.queue.push(Waiter { lease, owner, until });
        }
        Outcome::Queued { lease }
    }

    fn held(&self, lease: LeaseId, token: Token) -> Outcome {
        let ttl_ms = self.tenancy.leases.get(&lease).map_or(0, |lease| lease.ttl_ms);
        Outcome::Held { lease, ttl_ms, token }
    }

    /// The lease under which a lock is held or waited for.
    fn tenant(
        &mut self,
        name: &[u8],
        tenure: Tenure,
        revision: Revision,
        deadline: impl FnOnce(u64) -> ShardTime,
    ) -> LeaseId {
        match tenure {
            Tenure::Lease(lease) => lease,
            Tenure::Own { ttl_ms } => {
                let lease = self.lease_at(revision);
                let own = Some(Bytes::copy_from_slice(name));
                let made = Lease { ttl_ms, renewals: 0, deadline: deadline(ttl_ms), own };
                self.tenancy.leases.insert(lease, made);
                lease
            }
        }
    }

    pub(super) fn release(&mut self, name: &[u8], id: LeaseId, now: ShardTime) -> Outcome {
        if !self.tenancy.concerns(name, id) {
            return Outcome::Released(false);
        }
        let revision = self.count();
        let own = self.tenancy.leases.get(&id).and_then(|lease| lease.own.as_deref());
        if own == Some(name) {
            self.end(id, revision, now);
        } else {
            self.tenancy.leave(name, id, revision, now);
        }
        Outcome::Released(true)
    }
}
