//! What scripted scenarios do with locks and leases, and the last look at all locks when a run is over:
//! each can be had (L6), whatever became of those who wanted it.

use std::collections::BTreeMap;

use bytes::Bytes;
use kvd::{
    command::{Guard, LeaseId, Operation as Mutation, Tenure, Token},
    outcome::{Claim, Outcome},
};

use crate::{
    World,
    group::GroupId,
    invariants::Violation,
    kv_script::AUDITOR,
    operation::{Done, Encoded, Kind, Operation, OperationName, Verdict},
};

/// Within this time every lock is free that nobody keeps: those who still wait get it one after the
/// other, and let it go. Leases and waits are shorter by far in all runs.
const LOCK_WITHIN_MS: u64 = 20_000;
/// How long the auditor keeps it at most.
const AUDIT_TTL_MS: u64 = 1_000;
/// How often a clerk that waits asks how it stands.
const CLAIM_EVERY_US: u64 = 20_000;

/// A lock that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Under which lease.
    pub lease: LeaseId,
    /// What guards writes.
    pub token: Token,
}

/// What became of a wish for a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grip {
    /// It is held.
    Held(Hold),
    /// It is waited for, under this lease.
    Waits(LeaseId),
    /// Neither: it is somebody else's, or nobody knows.
    Gone,
}

impl Grip {
    /// What a clerk was told.
    pub fn of(operation: &Operation, verdict: &Verdict) -> Self {
        match (&operation.kind, verdict) {
            (Kind::Claim(lease), Verdict::Done(Done::Claim(_, claim))) => match claim {
                Claim::Held { token, .. } => Self::Held(Hold { lease: *lease, token: *token }),
                Claim::Waiting => Self::Waits(*lease),
                Claim::Gone(_) => Self::Gone,
            },
            (Kind::Command(_), Verdict::Done(Done::Executed(_, answered))) => {
                match answered.outcome {
                    Outcome::Held { lease, token, .. } => Self::Held(Hold { lease, token }),
                    Outcome::Queued { lease } => Self::Waits(lease),
                    _ => Self::Gone,
                }
            }
            _ => Self::Gone,
        }
    }
}

impl Operation {
    /// Anything that the store can be asked to do, about a key or a lock of this name.
    pub fn of(key: impl Into<Bytes>, operation: Mutation<'_>, guard: Option<Guard<'_>>) -> Self {
        Self { key: key.into(), kind: Kind::Command(Encoded::new(operation, guard)) }
    }

    /// Takes a lock under a lease of its own, or waits for it.
    pub fn acquire(lock: &str, ttl_ms: u64, wait_ms: u64) -> Self {
        Self::of(lock.to_owned(), acquire(lock, ttl_ms, wait_ms), None)
    }

    /// Asks how a lease stands with a lock.
    pub fn claim(lock: &str, lease: LeaseId) -> Self {
        Self { key: lock.to_owned().into(), kind: Kind::Claim(lease) }
    }

    /// Gives a lock back.
    pub fn release(lock: &str, lease: LeaseId) -> Self {
        Self::of(lock.to_owned(), Mutation::Release { name: lock.as_bytes(), lease }, None)
    }
}

fn acquire(lock: &str, ttl_ms: u64, wait_ms: u64) -> Mutation<'_> {
    let (name, tenure) = (lock.as_bytes(), Tenure::Own { ttl_ms });
    Mutation::Acquire { name, tenure, wait_ms, owner: b"" }
}

impl World {
    /// A clerk that does nothing by itself wants this from now on; [`World::verdict`] tells what
    /// became of it.
    pub fn want(&mut self, client: u64, operation: Operation) -> OperationName {
        assert!(client > self.mix.clients, "clerk {client} has things of its own to do");
        self.begin_operation(self.home(self.spoken_of), client, operation)
    }

    /// Has a clerk want something and waits until it knows what became of it.
    ///
    /// # Errors
    /// A violation.
    pub fn carry_out(&mut self, client: u64, operation: Operation) -> Result<Verdict, Violation> {
        let name = self.want(client, operation);
        self.verdict_of(name)
    }

    /// What the store made of something that a clerk wanted, which it must have done.
    ///
    /// # Errors
    /// A violation.
    pub fn outcome_of(&mut self, client: u64, operation: Operation) -> Result<Outcome, Violation> {
        match self.carry_out(client, operation)? {
            Verdict::Done(Done::Executed(_, answered)) => Ok(answered.outcome),
            verdict @ (Verdict::Done(Done::Read(..) | Done::Claim(..))
            | Verdict::Never
            | Verdict::Unknown) => Err(Violation::new("scenario", format!("{verdict:?}"))),
        }
    }

    /// Has a clerk take a lock, waiting for it for so long; none: it is somebody else's.
    ///
    /// # Errors
    /// A violation.
    pub fn acquire(
        &mut self,
        client: u64,
        lock: &str,
        ttl_ms: u64,
        wait_ms: u64,
    ) -> Result<Option<Hold>, Violation> {
        let mut wanted = Operation::acquire(lock, ttl_ms, wait_ms);
        loop {
            let verdict = self.carry_out(client, wanted.clone())?;
            match Grip::of(&wanted, &verdict) {
                Grip::Held(hold) => return Ok(Some(hold)),
                Grip::Gone => return Ok(None),
                Grip::Waits(lease) => {
                    wanted = Operation::claim(lock, lease);
                    self.run_for(CLAIM_EVERY_US)?;
                }
            }
        }
    }

    /// Takes every lock that a clerk ever wanted, and gives it back.
    pub(crate) fn audit_locks(&mut self, group: GroupId) -> Result<(), Violation> {
        let until_us = self.now_us() + 2 * LOCK_WITHIN_MS * 1_000;
        let names = self.groups.get(group).locks.clone();
        let mut open: BTreeMap<String, Operation> = BTreeMap::new();
        for name in &names {
            let lock = String::from_utf8_lossy(name).into_owned();
            let acquire = Encoded::anonymous(acquire(&lock, AUDIT_TTL_MS, LOCK_WITHIN_MS));
            let (key, kind) = (name.clone(), Kind::Command(acquire));
            open.insert(lock, Operation { key, kind });
        }
        while !open.is_empty() {
            let asked: Vec<(String, Operation, OperationName)> = std::mem::take(&mut open)
                .into_iter()
                .map(|(lock, it)| (lock, it.clone(), self.begin_operation(group, AUDITOR, it)))
                .collect();
            let told = |world: &Self| {
                let verdicts = &world.groups.get(group).verdicts;
                asked.iter().all(|(_, _, name)| verdicts.contains_key(name))
            };
            self.run_until(2 * self.mix.kv_or_calm().deadline_us, told)?;
            let late = self.now_us() > until_us;
            for (lock, operation, name) in asked {
                let verdict = self.groups.get(group).verdicts.get(&name).cloned();
                let grip = verdict.as_ref().map_or(Grip::Gone, |it| Grip::of(&operation, it));
                match grip {
                    Grip::Held(Hold { lease, .. }) => {
                        self.begin_operation(group, AUDITOR, Operation::release(&lock, lease));
                    }
                    Grip::Waits(lease) if !late => {
                        open.insert(lock.clone(), Operation::claim(&lock, lease));
                    }
                    Grip::Waits(_) | Grip::Gone => {
                        let what = format!("nobody can have {lock}: {verdict:?}");
                        return Err(Violation::new("L6", what).of(group));
                    }
                }
            }
            self.run_for(CLAIM_EVERY_US)?;
        }
        Ok(())
    }
}
