//! A shard as anybody would write it down: plain maps and lists, everything kept, nothing bounded.
//! What the machine does is compared with it.

#![allow(dead_code, missing_docs, unreachable_pub)]

pub mod elsewhere;
pub mod steps;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use kvd::{
    command::{
        Action, Compare, Condition, LeaseId, Operand, Operation, Relation, Tenure, Token, Txn,
    },
    outcome::{
        ActionReply, Executed, Holder, Outcome, Pair, Revision, ShardTime, Version, Waiter, Written,
    },
    view::Change,
};
use raft::RECOVERY_GAP;

pub const VALUE_BYTES_MAX: u64 = 100;

#[derive(Clone, Debug)]
pub struct Lease {
    pub ttl_ms: u64,
    pub renewal: u64,
    pub deadline: u64,
    pub own: Option<Vec<u8>>,
}

#[derive(Clone, Debug)]
pub struct Lock {
    pub lease: LeaseId,
    pub token: u64,
    pub owner: Vec<u8>,
    pub waiters: Vec<Waiter>,
}

#[derive(Clone, Debug, Default)]
pub struct Naive {
    pub number: u32,
    pub revision: u64,
    pub pairs: BTreeMap<Vec<u8>, Pair>,
    pub history: Vec<(u64, Change)>,
    pub compacted: u64,
    pub leases: BTreeMap<LeaseId, Lease>,
    pub locks: BTreeMap<Vec<u8>, Lock>,
}

impl Naive {
    /// What a command comes to, its guard given as (lock, token).
    pub fn execute(
        &mut self,
        operation: &Operation<'_>,
        guard: Option<(&[u8], u64)>,
        now: u64,
    ) -> Outcome {
        if let Some((name, token)) = guard {
            let lock = self.locks.get(name);
            let lives = |lock: &Lock| self.leases[&lock.lease].deadline > now;
            if !lock.is_some_and(|lock| lock.token == token && lives(lock)) {
                return Outcome::GuardRefused(lock.map(|lock| Token(lock.token)));
            }
        }
        match operation {
            Operation::Put { key, value, condition, lease } => {
                self.put(key, value, *condition, *lease)
            }
            Operation::Append { key, value } => {
                let old = self.pairs.get(*key).cloned();
                let bytes = old.as_ref().map_or(0, |pair| pair.value.len()) + value.len();
                if bytes as u64 > VALUE_BYTES_MAX {
                    return Outcome::TooLarge { bytes: bytes as u64, limit: VALUE_BYTES_MAX };
                }
                let (old, lease) = old.map_or((Bytes::new(), None), |it| (it.value, it.lease));
                let whole = [&old[..], value].concat();
                let written = self.write(self.revision + 1, key, whole, lease);
                self.revision += 1;
                Outcome::Appended { written, old }
            }
            Operation::Delete { key } => match self.remove(self.revision + 1, key, false) {
                None => Outcome::Absent,
                Some(pair) => {
                    self.revision += 1;
                    let revision = Revision(self.revision);
                    Outcome::Removed { written: Written { version: Version(0), revision }, pair }
                }
            },
            Operation::Txn(txn) => self.txn(txn),
            Operation::Compact { revision, .. } => {
                let upto = revision.map_or(self.revision, |revision| revision.0.min(self.revision));
                self.compacted = self.compacted.max(upto);
                Outcome::Compacted(Revision(self.compacted))
            }
            Operation::Grant { ttl_ms, .. } => {
                let lease = self.make_lease(*ttl_ms, now + ttl_ms, None);
                Outcome::Granted { lease, ttl_ms: *ttl_ms }
            }
            Operation::KeepAlive { leases } => Outcome::KeptAlive(
                leases.iter().map(|id| (*id, self.keep_alive(*id, now))).collect(),
            ),
            Operation::Revoke { lease } => self.revoke(*lease, now),
            Operation::Expire { lease, renewal } => match self.leases.get(lease) {
                None => Outcome::NoSuchLease(*lease),
                Some(it) if it.renewal == *renewal && now >= it.deadline => {
                    self.revoke(*lease, now)
                }
                Some(_) => Outcome::LivesOn,
            },
            Operation::Acquire { name, tenure, wait_ms, owner } => {
                self.acquire(name, *tenure, *wait_ms, owner, now)
            }
            Operation::Release { name, lease } => self.release(name, *lease, now),
        }
    }

    fn put(
        &mut self,
        key: &[u8],
        value: &[u8],
        when: Condition,
        lease: Option<LeaseId>,
    ) -> Outcome {
        let current = self.pairs.get(key);
        let holds = match when {
            Condition::Always => true,
            Condition::Version(it) => current.map_or(0, |pair| pair.version.0) == it.0,
            Condition::ModRevision(it) => current.map_or(0, |pair| pair.mod_revision.0) == it.0,
        };
        if !holds {
            return Outcome::Mismatch(current.cloned());
        }
        if let Some(gone) = lease.filter(|lease| !self.usable(*lease)) {
            return Outcome::NoSuchLease(gone);
        }
        let written = self.write(self.revision + 1, key, value.to_vec(), lease);
        self.revision += 1;
        Outcome::Written(written)
    }

    fn txn(&mut self, txn: &Txn<'_>) -> Outcome {
        let succeeded = txn.compares.iter().all(|it| holds(it, self.pairs.get(it.key)));
        let before = self.clone();
        let mut replies = Vec::new();
        let revision = self.revision + 1;
        for action in if succeeded { &txn.then } else { &txn.otherwise } {
            let current = self.pairs.get(action.key()).cloned();
            replies.push(match *action {
                Action::Get { .. } => ActionReply::Got(current),
                Action::Put { key, value, lease } => {
                    if let Some(gone) = lease.filter(|lease| !self.usable(*lease)) {
                        *self = before;
                        return self.first_failure(txn, succeeded, gone);
                    }
                    ActionReply::Written(self.write(revision, key, value.to_vec(), lease))
                }
                Action::Append { key, value } => {
                    let (old, lease) =
                        current.map_or((Bytes::new(), None), |it| (it.value, it.lease));
                    let whole = [&old[..], value].concat();
                    if whole.len() as u64 > VALUE_BYTES_MAX {
                        let bytes = whole.len() as u64;
                        *self = before;
                        return Outcome::TooLarge { bytes, limit: VALUE_BYTES_MAX };
                    }
                    ActionReply::Appended { written: self.write(revision, key, whole, lease), old }
                }
                Action::Delete { key } => ActionReply::Removed(self.remove(revision, key, false)),
            });
        }
        let changed = self.history.len() > before.history.len();
        if changed {
            self.revision = revision;
            let first = before.history.len();
            self.history[first..].sort_by(|one, other| one.1.key.cmp(&other.1.key));
        }
        let revision = changed.then_some(Revision(revision));
        Outcome::Txn(Executed { succeeded, replies: replies.into(), revision })
    }

    /// Sizes are asked about before leases: a list that fails by both fails by its size.
    fn first_failure(&self, txn: &Txn<'_>, succeeded: bool, gone: LeaseId) -> Outcome {
        let mut lengths: BTreeMap<&[u8], usize> = BTreeMap::new();
        for action in if succeeded { &txn.then } else { &txn.otherwise } {
            let held = self.pairs.get(action.key()).map_or(0, |pair| pair.value.len());
            let held = lengths.get(action.key()).copied().unwrap_or(held);
            match *action {
                Action::Get { .. } => {}
                Action::Put { key, value, .. } => drop(lengths.insert(key, value.len())),
                Action::Append { key, value } => {
                    let bytes = (held + value.len()) as u64;
                    if bytes > VALUE_BYTES_MAX {
                        return Outcome::TooLarge { bytes, limit: VALUE_BYTES_MAX };
                    }
                    lengths.insert(key, held + value.len());
                }
                Action::Delete { key } => drop(lengths.insert(key, 0)),
            }
        }
        // Of several leases that are gone, the one of the first key is named.
        let list = if succeeded { &txn.then } else { &txn.otherwise };
        let mut leases: Vec<(&[u8], LeaseId)> = list
            .iter()
            .filter_map(|action| match *action {
                Action::Put { key, lease: Some(lease), .. } => Some((key, lease)),
                _ => None,
            })
            .filter(|(_, lease)| !self.usable(*lease))
            .collect();
        leases.sort_unstable();
        Outcome::NoSuchLease(leases.first().map_or(gone, |(_, lease)| *lease))
    }

    fn write(&mut self, at: u64, key: &[u8], value: Vec<u8>, lease: Option<LeaseId>) -> Written {
        let previous = self.pairs.get(key).cloned();
        let passed = |since: u64| (at / RECOVERY_GAP - since / RECOVERY_GAP) * RECOVERY_GAP;
        let version = Version(match &previous {
            None => 1 + passed(0),
            Some(pair) => pair.version.0 + 1 + passed(pair.mod_revision.0),
        });
        let mod_revision = Revision(at);
        let create_revision = previous.as_ref().map_or(mod_revision, |pair| pair.create_revision);
        let pair = Pair { value: value.into(), version, create_revision, mod_revision, lease };
        self.pairs.insert(key.to_vec(), pair.clone());
        let (previous, current) = (previous.map(Arc::new), Some(Arc::new(pair)));
        let change = Change { key: key.into(), previous, current, expired: false };
        self.history.push((at, change));
        Written { version, revision: mod_revision }
    }

    fn remove(&mut self, at: u64, key: &[u8], expired: bool) -> Option<Pair> {
        let previous = self.pairs.remove(key);
        if previous.is_some() {
            let change = Change {
                key: key.into(),
                previous: previous.clone().map(Arc::new),
                current: None,
                expired,
            };
            self.history.push((at, change));
        }
        previous
    }

    fn make_lease(&mut self, ttl_ms: u64, deadline: u64, own: Option<Vec<u8>>) -> LeaseId {
        self.revision += 1;
        let id = LeaseId::new(self.revision << 14 | u64::from(self.number)).expect("not 0");
        self.leases.insert(id, Lease { ttl_ms, renewal: 0, deadline, own });
        id
    }

    pub fn waits(&self, id: LeaseId, name: &[u8]) -> bool {
        let lock = self.locks.get(name);
        lock.is_some_and(|lock| lock.waiters.iter().any(|waiter| waiter.lease == id))
    }

    pub fn waits_still(&self, id: LeaseId, name: &[u8], now: u64) -> bool {
        let lock = self.locks.get(name);
        let waits = |waiter: &Waiter| waiter.lease == id && waiter.until.0 > now;
        lock.is_some_and(|lock| lock.waiters.iter().any(waits))
    }

    fn usable(&self, id: LeaseId) -> bool {
        let Some(lease) = self.leases.get(&id) else { return false };
        !lease.own.as_ref().is_some_and(|own| self.waits(id, own))
    }

    fn keep_alive(&mut self, id: LeaseId, now: u64) -> Option<u64> {
        let usable = self.usable(id);
        let lease = self.leases.get_mut(&id)?;
        if !usable {
            return Some(lease.deadline.saturating_sub(now));
        }
        lease.renewal += 1;
        lease.deadline = lease.deadline.max(now + lease.ttl_ms);
        Some(lease.ttl_ms)
    }

    fn revoke(&mut self, id: LeaseId, now: u64) -> Outcome {
        if !self.leases.contains_key(&id) {
            return Outcome::NoSuchLease(id);
        }
        self.revision += 1;
        Outcome::Ended { keys_removed: self.end(id, now) }
    }

    fn end(&mut self, id: LeaseId, now: u64) -> u32 {
        let attached = |(_, pair): &(&Vec<u8>, &Pair)| pair.lease == Some(id);
        let keys: Vec<Vec<u8>> =
            self.pairs.iter().filter(attached).map(|it| it.0.clone()).collect();
        for key in &keys {
            self.remove(self.revision, key, true);
        }
        self.leases.remove(&id);
        for lock in self.locks.values_mut() {
            lock.waiters.retain(|waiter| waiter.lease != id);
        }
        let held = |(_, lock): &(&Vec<u8>, &Lock)| lock.lease == id;
        let held: Vec<Vec<u8>> = self.locks.iter().filter(held).map(|it| it.0.clone()).collect();
        held.iter().for_each(|name| self.pass_on(name, now));
        keys.len() as u32
    }

    fn pass_on(&mut self, name: &[u8], now: u64) {
        let mut lock = self.locks.remove(name).expect("it is held");
        while !lock.waiters.is_empty() {
            let next = lock.waiters.remove(0);
            let own = self.leases[&next.lease].own.as_deref() == Some(name);
            if next.until.0 <= now {
                if own {
                    self.leases.remove(&next.lease);
                }
                continue;
            }
            if own {
                let lease = self.leases.get_mut(&next.lease).expect("it waits");
                lease.renewal += 1;
                lease.deadline = now + lease.ttl_ms;
            }
            let (lease, owner) = (next.lease, next.owner.to_vec());
            let lock = Lock { lease, token: self.revision, owner, waiters: lock.waiters };
            self.locks.insert(name.to_vec(), lock);
            return;
        }
    }

    fn acquire(
        &mut self,
        name: &[u8],
        tenure: Tenure,
        wait_ms: u64,
        owner: &[u8],
        now: u64,
    ) -> Outcome {
        if let Tenure::Lease(id) = tenure
            && !self.usable(id)
        {
            return Outcome::NoSuchLease(id);
        }
        let given = match tenure {
            Tenure::Lease(id) => Some(id),
            Tenure::Own { .. } => None,
        };
        let lock = self.locks.get(name).cloned();
        let deadline = |ttl_ms| now + if lock.is_some() { wait_ms } else { ttl_ms };
        match &lock {
            Some(lock) if given == Some(lock.lease) => {
                let ttl_ms = self.leases[&lock.lease].ttl_ms;
                return Outcome::Held { lease: lock.lease, ttl_ms, token: Token(lock.token) };
            }
            Some(lock) if wait_ms == 0 => return Outcome::Busy(self.holder(lock, now)),
            Some(_) if given.is_some_and(|id| self.waits(id, name)) => {
                let (lease, lock) = (given.expect("it waits"), self.locks.get_mut(name));
                for waiter in &mut lock.expect("it is held").waiters {
                    if waiter.lease == lease {
                        waiter.until = waiter.until.max(ShardTime(now + wait_ms));
                    }
                }
                return Outcome::Queued { lease };
            }
            Some(_) | None => {}
        }
        let lease = match tenure {
            Tenure::Own { ttl_ms } => {
                self.make_lease(ttl_ms, deadline(ttl_ms), Some(name.to_vec()))
            }
            Tenure::Lease(id) => {
                self.revision += 1;
                id
            }
        };
        if let Some(lock) = self.locks.get_mut(name) {
            let (owner, until) = (Bytes::copy_from_slice(owner), ShardTime(now + wait_ms));
            lock.waiters.push(Waiter { lease, owner, until });
            return Outcome::Queued { lease };
        }
        let (token, owner) = (self.revision, owner.to_vec());
        self.locks.insert(name.to_vec(), Lock { lease, token, owner, waiters: Vec::new() });
        let ttl_ms = self.leases[&lease].ttl_ms;
        Outcome::Held { lease, ttl_ms, token: Token(token) }
    }

    fn release(&mut self, name: &[u8], id: LeaseId, now: u64) -> Outcome {
        let held = self.locks.get(name).is_some_and(|lock| lock.lease == id);
        if !held && !self.waits(id, name) {
            return Outcome::Released(false);
        }
        self.revision += 1;
        if self.leases[&id].own.as_deref() == Some(name) {
            self.end(id, now);
        } else if held {
            self.pass_on(name, now);
        } else if let Some(lock) = self.locks.get_mut(name) {
            lock.waiters.retain(|waiter| waiter.lease != id);
        }
        Outcome::Released(true)
    }

    pub fn holder(&self, lock: &Lock, now: u64) -> Holder {
        Holder {
            token: Token(lock.token),
            lease: lock.lease,
            remaining_ms: self.leases[&lock.lease].deadline.saturating_sub(now),
            owner: lock.owner.clone().into(),
        }
    }

    /// What a key held after a revision.
    pub fn at(&self, key: &[u8], revision: u64) -> Option<Pair> {
        let of_key = |(at, change): &&(u64, Change)| *at <= revision && change.key[..] == *key;
        self.history
            .iter()
            .rev()
            .find(of_key)
            .and_then(|(_, change)| change.current.as_deref().cloned())
    }
}

fn holds(compare: &Compare<'_>, pair: Option<&Pair>) -> bool {
    use std::cmp::Ordering::{Equal, Greater, Less};
    let order = match compare.operand {
        Operand::Version(it) => Some(pair.map_or(0, |pair| pair.version.0).cmp(&it.0)),
        Operand::CreateRevision(it) => {
            Some(pair.map_or(0, |pair| pair.create_revision.0).cmp(&it.0))
        }
        Operand::ModRevision(it) => Some(pair.map_or(0, |pair| pair.mod_revision.0).cmp(&it.0)),
        Operand::Value(it) => pair.map(|pair| pair.value[..].cmp(it)),
        Operand::Lease(it) => {
            let number = |lease: Option<LeaseId>| lease.map_or(0, LeaseId::get);
            Some(number(pair.and_then(|pair| pair.lease)).cmp(&number(it)))
        }
    };
    match compare.relation {
        Relation::Equal => order == Some(Equal),
        Relation::NotEqual => order != Some(Equal),
        Relation::Less => order == Some(Less),
        Relation::Greater => order == Some(Greater),
    }
}
