//! What a clerk knows of leases and locks, and what it does with them, and with several keys at once,
//! by itself.
//!
//! Decides what is asked for, of a few locks and keys that all clerks share, in the shards of their
//! other keys. It believes what it was told last and never looks at a clock, so that it writes under
//! locks that it has lost; it gives back what it does not have, too, and says that leases are over
//! which are not: of all that the store must make nothing.

use std::collections::BTreeMap;

use bytes::Bytes;
use kvd::{
    command::{
        Action, Compare, Condition, Guard, LeaseId, Operand, Operation as Mutation, Relation,
        Tenure, Token, Txn,
    },
    limits::LEASE_TTL_MS_MIN,
    outcome::{ActionReply, Claim, Outcome, Version},
};
use rand::{RngExt, rngs::StdRng, seq::IndexedRandom};

use crate::{
    operation::{Done, Encoded, Kind, Operation, OperationName},
    workload::{Keys, Workload},
};

/// How many locks there are in a place.
const LOCKS: u64 = 2;
/// How many keys.
const KEYS: u64 = 3;

/// What a clerk knows of leases and locks.
#[derive(Debug, Default)]
pub(crate) struct Tenant {
    /// The lease that it was granted in each place.
    leases: BTreeMap<Bytes, LeaseId>,
    /// The locks that it holds or waits for.
    stakes: BTreeMap<Bytes, Stake>,
    /// What it read of keys.
    read: BTreeMap<Bytes, (Version, Bytes)>,
}

/// A lease and a lock: that holds it under a token, or waits for it.
#[derive(Clone, Copy, Debug)]
struct Stake {
    lease: LeaseId,
    token: Option<Token>,
}

impl Tenant {
    /// What it wants next.
    pub(crate) fn draw(
        &self,
        rng: &mut StdRng,
        name: OperationName,
        workload: &Workload,
    ) -> Operation {
        let place = match workload.keys {
            Keys::Own => format!("own{}", name.client),
            Keys::Shared(keys) => format!("k{}", rng.random_range(0..keys.max(1))),
        };
        let lock: Bytes = format!("{{{place}}}/lock{}", rng.random_range(0..LOCKS)).into();
        let place = Bytes::from(place);
        match self.stakes.get(&lock) {
            Some(stake) if rng.random_range(0..4) > 0 => {
                self.draw_stake(rng, name, (&place, lock), *stake)
            }
            None if rng.random_range(0..2) > 0 => {
                let lease = self.leases.get(&place).filter(|_| rng.random_range(0..2) == 0);
                let tenure = match lease {
                    Some(lease) => Tenure::Lease(*lease),
                    None => Tenure::Own { ttl_ms: draw_ttl_ms(rng, workload) },
                };
                acquire(rng, name, &lock, tenure, workload)
            }
            Some(_) | None => match self.leases.get(&place).copied() {
                Some(lease) if rng.random_range(0..2) > 0 => draw_lease(rng, name, &place, lease),
                None if rng.random_range(0..2) > 0 => {
                    let ttl_ms = draw_ttl_ms(rng, workload);
                    command(place.clone(), Mutation::Grant { key: &place, ttl_ms }, None)
                }
                Some(_) | None => self.draw_txn(rng, name, &place, None),
            },
        }
    }

    /// Something of a lock that it has or waits for.
    fn draw_stake(
        &self,
        rng: &mut StdRng,
        name: OperationName,
        (place, lock): (&Bytes, Bytes),
        stake: Stake,
    ) -> Operation {
        let Stake { lease, token } = stake;
        let Some(token) = token else {
            return match rng.random_range(0..8) {
                0 => command(lock.clone(), Mutation::Release { name: &lock, lease }, None),
                1 => keep_alive(lock, lease),
                _ => Operation { key: lock, kind: Kind::Claim(lease) },
            };
        };
        let guard = Guard { lock: &lock, token };
        match rng.random_range(0..10) {
            0..3 => {
                let (key, value) = (draw_key(rng, place), name.token(0));
                let attached = Some(lease).filter(|_| rng.random_range(0..3) == 0);
                let put = put(&key, &value, attached);
                command(key.clone(), put, Some(guard))
            }
            3..5 => self.draw_txn(rng, name, place, Some(guard)),
            5..8 => command(lock.clone(), Mutation::Release { name: &lock, lease }, None),
            _ => keep_alive(lock, lease),
        }
    }

    /// Compares a key with what it held when it was read last, and changes two or looks at them.
    fn draw_txn(
        &self,
        rng: &mut StdRng,
        name: OperationName,
        place: &Bytes,
        guard: Option<Guard<'_>>,
    ) -> Operation {
        let (one, other) = (key(place, 0), key(place, rng.random_range(1..KEYS)));
        let absent = (Version(0), Bytes::new());
        let (version, held) = self.read.get(&one).unwrap_or(&absent);
        let operand = match rng.random_range(0..3) {
            0 => Operand::Value(held),
            _ => Operand::Version(*version),
        };
        let relations = [Relation::Equal, Relation::Equal, Relation::NotEqual, Relation::Less];
        let relation = *relations.choose(rng).expect("there are some");
        let value = name.token(0);
        let (write, append) = (
            Action::Put { key: &one, value: &value, lease: None },
            Action::Append { key: &other, value: &value },
        );
        let (get, delete) = (Action::Get { key: &other }, Action::Delete { key: &other });
        let then = match rng.random_range(0..3) {
            0 => vec![write, delete, get],
            // What has become long begins anew now and then.
            1 => vec![Action::Put { key: &other, value: &value, lease: None }, write],
            _ => vec![get, append, write],
        };
        let otherwise = vec![Action::Get { key: &one }, get];
        let txn = Txn { compares: vec![Compare { key: &one, relation, operand }], then, otherwise };
        command(one.clone(), Mutation::Txn(txn), guard)
    }

    /// Keeps in mind what it was told.
    pub(crate) fn note(&mut self, operation: &Operation, done: &Done) {
        match (&operation.kind, done) {
            (Kind::Claim(lease), Done::Claim(_, claim)) => {
                self.note_claim(&operation.key, *lease, claim);
            }
            (Kind::Command(encoded), Done::Executed(_, answered)) => {
                let command = encoded.decode();
                if let (Some(guard), Outcome::GuardRefused(_)) = (command.guard, &answered.outcome)
                {
                    self.stakes.remove(guard.lock);
                }
                self.note_command(&operation.key, &command.operation, &answered.outcome);
            }
            // Nothing else is asked for and answered together.
            _ => {}
        }
    }

    fn note_claim(&mut self, lock: &Bytes, lease: LeaseId, claim: &Claim) {
        match claim {
            Claim::Held { token, ttl_ms: _ } => {
                self.stakes.insert(lock.clone(), Stake { lease, token: Some(*token) });
            }
            Claim::Waiting => {}
            Claim::Gone(_) => drop(self.stakes.remove(lock)),
        }
    }

    fn note_command(&mut self, key: &Bytes, operation: &Mutation<'_>, outcome: &Outcome) {
        match (operation, outcome) {
            (Mutation::Acquire { .. }, Outcome::Held { lease, token, .. }) => {
                let stake = Stake { lease: *lease, token: Some(*token) };
                self.stakes.insert(key.clone(), stake);
            }
            (Mutation::Acquire { .. }, Outcome::Queued { lease }) => {
                self.stakes.insert(key.clone(), Stake { lease: *lease, token: None });
            }
            (Mutation::Release { .. }, _) => drop(self.stakes.remove(key)),
            (Mutation::Grant { .. }, Outcome::Granted { lease, .. }) => {
                self.leases.insert(key.clone(), *lease);
            }
            (Mutation::Revoke { lease }, _) | (_, Outcome::NoSuchLease(lease)) => {
                self.forget(*lease);
            }
            (Mutation::KeepAlive { .. }, Outcome::KeptAlive(kept)) => {
                let gone = kept.iter().filter(|(_, lives_ms)| lives_ms.is_none());
                gone.for_each(|(lease, _)| self.forget(*lease));
            }
            (Mutation::Txn(txn), Outcome::Txn(executed)) => {
                let actions = if executed.succeeded { &txn.then } else { &txn.otherwise };
                for (action, reply) in actions.iter().zip(executed.replies.iter()) {
                    if let ActionReply::Got(Some(pair)) = reply {
                        let found = (pair.version, pair.value.clone());
                        self.read.insert(Bytes::copy_from_slice(action.key()), found);
                    }
                }
            }
            _ => {}
        }
    }

    /// A lease has ended.
    fn forget(&mut self, lease: LeaseId) {
        self.leases.retain(|_, it| *it != lease);
        self.stakes.retain(|_, stake| stake.lease != lease);
    }
}

/// Something of a lease that it was granted.
fn draw_lease(rng: &mut StdRng, name: OperationName, place: &Bytes, lease: LeaseId) -> Operation {
    match rng.random_range(0..10) {
        0..4 => {
            let (key, value) = (draw_key(rng, place), name.token(0));
            command(key.clone(), put(&key, &value, Some(lease)), None)
        }
        4..7 => keep_alive(place.clone(), lease),
        7 => command(place.clone(), Mutation::Revoke { lease }, None),
        8 => {
            let lock: Bytes = format!("{{{}}}/lock0", place.escape_ascii()).into();
            command(lock.clone(), Mutation::Release { name: &lock, lease }, None)
        }
        // As a leader of before does that does not know of the last KeepAlive.
        _ => command(place.clone(), Mutation::Expire { lease, renewal: 0 }, None),
    }
}

fn acquire(
    rng: &mut StdRng,
    name: OperationName,
    lock: &Bytes,
    tenure: Tenure,
    workload: &Workload,
) -> Operation {
    let waits = rng.random_range(0..3) > 0;
    let wait_ms = if waits { rng.random_range(1..=workload.wait_ms_max) } else { 0 };
    let owner = name.to_string();
    let acquire = Mutation::Acquire { name: lock, tenure, wait_ms, owner: owner.as_bytes() };
    command(lock.clone(), acquire, None)
}

fn keep_alive(key: Bytes, lease: LeaseId) -> Operation {
    command(key, Mutation::KeepAlive { leases: vec![lease] }, None)
}

fn put<'a>(key: &'a [u8], value: &'a [u8], lease: Option<LeaseId>) -> Mutation<'a> {
    Mutation::Put { key, value, condition: Condition::Always, lease }
}

fn command(key: Bytes, operation: Mutation<'_>, guard: Option<Guard<'_>>) -> Operation {
    Operation { key, kind: Kind::Command(Encoded::new(operation, guard)) }
}

fn key(place: &Bytes, number: u64) -> Bytes {
    format!("{{{}}}/key{number}", place.escape_ascii()).into()
}

fn draw_key(rng: &mut StdRng, place: &Bytes) -> Bytes {
    key(place, rng.random_range(0..KEYS))
}

fn draw_ttl_ms(rng: &mut StdRng, workload: &Workload) -> u64 {
    rng.random_range(LEASE_TTL_MS_MIN..=workload.ttl_ms_max.max(LEASE_TTL_MS_MIN))
}
