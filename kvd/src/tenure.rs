//! What commands do to leases and locks.
//!
//! Decides who lives how long, who gets a lock, and what goes when a lease ends: its keys, its
//! locks, its places in queues, all under one revision. A lease that was made for a lock ends with
//! it; while it waits for the lock its deadline is the end of the wait, and from the grant on it
//! has its time to live, so that who went away while waiting leaves by an Expire like any other.
//!
//! A lock goes to the first who still waits. Who waited too long and was not ended yet is passed
//! over, and leaves the queue with that.

use bytes::Bytes;

use crate::{
    command::{LeaseId, Tenure, Token},
    lease::Lease,
    limits::{
        LEASE_NAMES_BYTES_MAX, LEASE_OVERHEAD_BYTES, LEASES_PER_SHARD_MAX, LOCKS_PER_LEASE_MAX,
        LOCKS_PER_SHARD_MAX, WAITERS_PER_LOCK_MAX, WAITERS_TOLD_MAX,
    },
    lock::{self, Lock},
    outcome::{
        Claim, Holder, Key, LeaseState, LockState, Outcome, Refusal, Revision, ShardTime, Waiter,
    },
    refusal::{
        LEASE_REVISION, LEASES_PER_SHARD, LOCKS_PER_LEASE, LOCKS_PER_SHARD, WAITERS_PER_LOCK,
    },
    shard::{Group, Shard},
    write::Verdict,
};

/// Who wants a lock.
pub(crate) struct Wish<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) tenure: Tenure,
    pub(crate) wait_ms: u64,
    pub(crate) owner: &'a [u8],
}

impl Shard {
    pub(crate) fn grant(&mut self, group: &Group, stored_bytes_max: u64, ttl_ms: u64) -> Verdict {
        let revision = self.next_revision();
        let lease = self.new_lease(revision)?;
        group.check_room(LEASE_OVERHEAD_BYTES, stored_bytes_max)?;
        self.revision = revision;
        let deadline = later(self.time(group.time_ms), ttl_ms);
        self.leases.insert(lease, Lease::new(ttl_ms, deadline, None));
        Ok(Outcome::Granted { lease, ttl_ms })
    }

    /// Lets leases begin anew, except those that wait for the lock that they were made for.
    pub(crate) fn keep_alive(&mut self, ids: &[LeaseId], now: ShardTime) -> Outcome {
        let mut kept = Vec::with_capacity(ids.len());
        for &id in ids {
            let lives_ms = self.leases.get(id).map(|lease| {
                let waits = lease.is_waiting();
                (waits, if waits { lease.remaining_ms(now) } else { lease.ttl_ms }, lease.deadline)
            });
            if let Some((false, ttl_ms, deadline)) = lives_ms {
                self.leases.renew(id, deadline.max(later(now, ttl_ms)));
            }
            kept.push((id, lives_ms.map(|(_, lives_ms, _)| lives_ms)));
        }
        Outcome::KeptAlive(kept)
    }

    pub(crate) fn revoke(&mut self, id: LeaseId, now: ShardTime) -> Outcome {
        if self.leases.get(id).is_none() {
            return Outcome::NoSuchLease(id);
        }
        let revision = self.take_revision();
        Outcome::Ended { keys_removed: self.end(id, revision, now) }
    }

    /// Ends a lease if it was not renewed since somebody looked, and is over by now.
    pub(crate) fn expire(&mut self, id: LeaseId, renewal: u64, now: ShardTime) -> Outcome {
        match self.leases.get(id) {
            None => Outcome::NoSuchLease(id),
            Some(lease) if lease.renewal != renewal || now < lease.deadline => Outcome::LivesOn,
            Some(_) => self.revoke(id, now),
        }
    }

    pub(crate) fn acquire(
        &mut self,
        group: &Group,
        stored_bytes_max: u64,
        wish: &Wish<'_>,
    ) -> Verdict {
        let now = self.time(group.time_ms);
        let asked = match wish.tenure {
            Tenure::Own { .. } => None,
            Tenure::Lease(id) if self.leases.is_usable(id) => Some(id),
            Tenure::Lease(id) => return Ok(Outcome::NoSuchLease(id)),
        };
        let Some(lock) = self.locks.get(wish.name) else {
            return self.take(group, stored_bytes_max, wish, asked);
        };
        if asked == Some(lock.lease) {
            let ttl_ms = self.leases.get(lock.lease).map_or(0, |lease| lease.ttl_ms);
            return Ok(Outcome::Held { lease: lock.lease, ttl_ms, token: lock.token });
        }
        if wish.wait_ms == 0 {
            return Ok(Outcome::Busy(self.holder(lock, now)));
        }
        if let Some(lease) = asked.filter(|id| self.place(*id, wish.name).is_some()) {
            self.wait_on(lease, wish.name, later(now, wish.wait_ms));
            return Ok(Outcome::Queued { lease });
        }
        self.enqueue(group, stored_bytes_max, wish, asked)
    }

    /// Gives a lock or a place in its queue back.
    pub(crate) fn release(&mut self, name: &[u8], id: LeaseId, now: ShardTime) -> Outcome {
        let Some(place) = self.place(id, name) else { return Outcome::Released(false) };
        let revision = self.take_revision();
        if self.leases.get(id).and_then(|lease| lease.own.as_deref()) == Some(name) {
            self.end(id, revision, now);
        } else {
            self.leases.remove_lock(id, name);
            self.leave(&Key::from(name), place, revision, now);
        }
        Outcome::Released(true)
    }

    /// Takes a lock that nobody holds.
    fn take(
        &mut self,
        group: &Group,
        stored_bytes_max: u64,
        wish: &Wish<'_>,
        asked: Option<LeaseId>,
    ) -> Verdict {
        if self.locks.len() >= LOCKS_PER_SHARD_MAX {
            return Err(limit(LOCKS_PER_SHARD, LOCKS_PER_SHARD_MAX));
        }
        let (name, now) = (Key::from(wish.name), self.time(group.time_ms));
        let cost = lock::cost(wish.name, wish.owner);
        group.check_room(cost + new_lease_cost(asked), stored_bytes_max)?;
        let (lease, revision) = self.tenant(&name, wish, asked, |ttl_ms| later(now, ttl_ms))?;
        let token = Token(revision.0);
        self.locks.insert(&name, lease, token, Bytes::copy_from_slice(wish.owner));
        self.leases.set_lock(lease, &name, None);
        let ttl_ms = self.leases.get(lease).map_or(0, |lease| lease.ttl_ms);
        Ok(Outcome::Held { lease, ttl_ms, token })
    }

    /// Waits for a lock that somebody else holds.
    fn enqueue(
        &mut self,
        group: &Group,
        stored_bytes_max: u64,
        wish: &Wish<'_>,
        asked: Option<LeaseId>,
    ) -> Verdict {
        let (name, now) = (Key::from(wish.name), self.time(group.time_ms));
        let waiting = |shard: &Self| shard.locks.get(&name).map_or(0, |lock| lock.waiters.len());
        if waiting(self) >= WAITERS_PER_LOCK_MAX {
            self.drop_overdue(&name, now);
        }
        if waiting(self) >= WAITERS_PER_LOCK_MAX {
            return Err(limit(WAITERS_PER_LOCK, WAITERS_PER_LOCK_MAX));
        }
        let until = later(now, wish.wait_ms);
        let cost = lock::cost(&[], wish.owner);
        group.check_room(cost + new_lease_cost(asked), stored_bytes_max)?;
        let (lease, revision) = self.tenant(&name, wish, asked, |_| until)?;
        let waiter = Waiter { lease, owner: Bytes::copy_from_slice(wish.owner), until };
        let queued = self.locks.enqueue(&name, revision, waiter);
        assert!(queued, "somebody came later than {revision:?}");
        self.leases.set_lock(lease, &name, Some(revision));
        Ok(Outcome::Queued { lease })
    }

    /// The lease under which a lock is held or waited for, made if need be, and the revision of it,
    /// taken. The last that can fail.
    fn tenant(
        &mut self,
        name: &Key,
        wish: &Wish<'_>,
        asked: Option<LeaseId>,
        deadline: impl FnOnce(u64) -> ShardTime,
    ) -> Result<(LeaseId, Revision), Refusal> {
        let revision = self.next_revision();
        let locks = asked.and_then(|id| self.leases.get(id)).map_or(0, |lease| lease.locks.len());
        if locks >= LOCKS_PER_LEASE_MAX {
            return Err(limit(LOCKS_PER_LEASE, LOCKS_PER_LEASE_MAX));
        }
        let lease = match wish.tenure {
            Tenure::Lease(lease) => lease,
            Tenure::Own { ttl_ms } => {
                let lease = self.new_lease(revision)?;
                let own = Lease::new(ttl_ms, deadline(ttl_ms), Some(name.clone()));
                self.leases.insert(lease, own);
                lease
            }
        };
        self.revision = revision;
        Ok((lease, revision))
    }

    /// The name of a lease that is granted at a revision, if there is room for one.
    fn new_lease(&self, revision: Revision) -> Result<LeaseId, Refusal> {
        if self.leases.len() >= LEASES_PER_SHARD_MAX {
            return Err(limit(LEASES_PER_SHARD, LEASES_PER_SHARD_MAX));
        }
        let largest = u64::MAX >> LeaseId::SHARD_BITS;
        LeaseId::of(revision, self.number)
            .ok_or(Refusal::Limit { name: LEASE_REVISION, limit: largest })
    }

    /// Ends a lease that is there, at a revision; answers how many keys went with it.
    fn end(&mut self, id: LeaseId, revision: Revision, now: ShardTime) -> u32 {
        let Some(lease) = self.leases.remove(id) else { return 0 };
        self.change(revision, lease.keys.iter().map(|key| (&key[..], None)), true);
        for (name, place) in &lease.locks {
            self.leave(name, *place, revision, now);
        }
        lease.keys.len() as u32
    }

    /// What becomes of a lock, or of its queue, when one who holds it or waits for it goes.
    fn leave(&mut self, name: &Key, place: Option<Revision>, revision: Revision, now: ShardTime) {
        match place {
            None => self.pass_on(name, revision, now),
            Some(arrival) => drop(self.locks.dequeue(name, arrival)),
        }
    }

    /// Gives a lock to the first who still waits, or takes it away.
    fn pass_on(&mut self, name: &Key, revision: Revision, now: ShardTime) {
        while let Some(arrival) = self.locks.first(name) {
            let Some(Waiter { lease, owner, until }) = self.locks.dequeue(name, arrival) else {
                break;
            };
            if until <= now {
                self.give_up(lease, name);
                continue;
            }
            self.locks.pass(name, lease, Token(revision.0), owner);
            let ttl_ms = self
                .leases
                .get(lease)
                .filter(|lease| lease.is_waiting() && lease.own.as_ref() == Some(name))
                .map(|lease| lease.ttl_ms);
            if let Some(ttl_ms) = ttl_ms {
                self.leases.renew(lease, later(now, ttl_ms));
            }
            self.leases.set_lock(lease, name, None);
            return;
        }
        self.locks.remove(name);
    }

    /// Takes those out of a queue who waited too long.
    fn drop_overdue(&mut self, name: &Key, now: ShardTime) {
        let Some(lock) = self.locks.get(name) else { return };
        let overdue = lock.waiters.iter().filter(|(_, waiter)| waiter.until <= now);
        let overdue: Vec<Revision> = overdue.map(|(arrival, _)| *arrival).collect();
        for arrival in overdue {
            if let Some(waiter) = self.locks.dequeue(name, arrival) {
                self.give_up(waiter.lease, name);
            }
        }
    }

    /// What becomes of the lease of one who waited too long: one that was made for it ends. It has
    /// nothing else, since nobody can use it before it holds its lock.
    fn give_up(&mut self, id: LeaseId, name: &Key) {
        if self.leases.get(id).is_some_and(Lease::is_waiting) {
            let lease = self.leases.remove(id);
            let bare = lease.is_none_or(|it| it.keys.is_empty() && it.locks.len() == 1);
            assert!(bare, "lease {id} was used while it waited");
        } else {
            self.leases.remove_lock(id, name);
        }
    }

    /// Lets one who waits already wait until then, if that is later.
    fn wait_on(&mut self, id: LeaseId, name: &[u8], until: ShardTime) {
        let Some(Some(arrival)) = self.place(id, name) else { return };
        self.locks.extend(name, arrival, until);
    }

    /// How a lease stands with a lock: it holds it, or waits since a revision, or neither.
    fn place(&self, id: LeaseId, name: &[u8]) -> Option<Option<Revision>> {
        self.leases.get(id)?.locks.get(name).copied()
    }

    fn holder(&self, lock: &Lock, now: ShardTime) -> Holder {
        let Lock { lease, token, owner, waiters: _ } = lock;
        let remaining_ms = self.leases.get(*lease).map_or(0, |lease| lease.remaining_ms(now));
        Holder { token: *token, lease: *lease, remaining_ms, owner: owner.clone() }
    }

    pub(crate) fn lease_state(
        &self,
        id: LeaseId,
        attached: bool,
        now: ShardTime,
    ) -> Option<LeaseState> {
        let lease = self.leases.get(id)?;
        let (mut keys, mut locks) = (Vec::new(), Vec::new());
        if attached {
            let mut bytes = 0;
            let mut fits = |name: &&Key| {
                bytes += name.len();
                bytes <= LEASE_NAMES_BYTES_MAX
            };
            keys.extend(lease.keys.iter().take_while(&mut fits).cloned());
            locks.extend(lease.locks.keys().take_while(&mut fits).cloned());
        }
        Some(LeaseState {
            remaining_ms: lease.remaining_ms(now),
            ttl_ms: lease.ttl_ms,
            keys,
            locks,
        })
    }

    pub(crate) fn lock_state(&self, name: &[u8], now: ShardTime) -> LockState {
        let Some(lock) = self.locks.get(name) else { return LockState::default() };
        LockState {
            holder: Some(self.holder(lock, now)),
            waiters: lock.waiters.values().take(WAITERS_TOLD_MAX).cloned().collect(),
            waiting: lock.waiters.len() as u32,
        }
    }

    pub(crate) fn claim(&self, name: &[u8], id: LeaseId, now: ShardTime) -> Claim {
        let Some(lock) = self.locks.get(name) else { return Claim::Gone(None) };
        let waits = |arrival| lock.waiters.get(&arrival).is_some_and(|waiter| now < waiter.until);
        match self.place(id, name) {
            Some(None) => {
                let ttl_ms = self.leases.get(id).map_or(0, |lease| lease.ttl_ms);
                Claim::Held { ttl_ms, token: lock.token }
            }
            Some(Some(arrival)) if waits(arrival) => Claim::Waiting,
            Some(Some(_)) | None => Claim::Gone(Some(self.holder(lock, now))),
        }
    }
}

fn limit(name: &'static str, limit: usize) -> Refusal {
    Refusal::Limit { name, limit: limit as u64 }
}

fn new_lease_cost(asked: Option<LeaseId>) -> u64 {
    if asked.is_some() { 0 } else { LEASE_OVERHEAD_BYTES }
}

fn later(now: ShardTime, by_ms: u64) -> ShardTime {
    ShardTime(now.0.saturating_add(by_ms))
}
