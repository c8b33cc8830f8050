//! One shard: the unit of everything. Its pairs, its exactly-once table, its leases and locks, its
//! change log, its revision counter and its clock move together and are cloned in constant time.
//!
//! Decides the order in which a command meets them: the table first, then the guard, then what it
//! does, which is in `write.rs`, `txn.rs` and `tenure.rs`. Which shard a command belongs to, and
//! the order of commands, is the machine's business.

use crate::{
    changes::ChangeLog,
    command::{Command, Operation},
    custody::{Custody, MoveNumber},
    digest,
    lease::Leases,
    limits::{REVISIONS_FORGOTTEN_PER_APPLY, SWEEP_ROWS_PER_APPLY},
    lock::Locks,
    outcome::{Answered, Header, Outcome, Refusal, Response, Revision, ShardTime, Standing},
    pairs::Pairs,
    session::{Admission, SessionLimits, Sessions},
    tenure::Wish,
    write::Verdict,
};

/// What a shard must know of its group while it executes a command.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    pub(crate) shards: u32,
    pub(crate) time_ms: u64,
    /// What all shards store together.
    pub(crate) stored_bytes: u64,
}

impl Group {
    /// Whether the group may store so much more. What does not grow is never refused.
    pub(crate) fn check_room(&self, more: u64, limit: u64) -> Result<(), Refusal> {
        let bytes = self.stored_bytes.saturating_add(more);
        if more > 0 && bytes > limit { Err(Refusal::Quota { bytes, limit }) } else { Ok(()) }
    }
}

/// How much of some things a shard may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ShardLimits {
    pub(crate) sessions: SessionLimits,
    pub(crate) changes_bytes: u64,
    pub(crate) held_changes_bytes: u64,
    pub(crate) discarded_per_step: usize,
}

/// A shard. Cloning shares everything.
#[derive(Clone, Debug)]
pub(crate) struct Shard {
    pub(crate) number: u32,
    pub(crate) pairs: Pairs,
    pub(crate) changes: ChangeLog,
    pub(crate) leases: Leases,
    pub(crate) locks: Locks,
    pub(crate) sessions: Sessions,
    pub(crate) revision: Revision,
    /// Shard time is group time plus this, so that it goes on when the shard moves to a group
    /// with another clock.
    pub(crate) time_offset_ms: i64,
    pub(crate) custody: Custody,
    limits: ShardLimits,
}

impl Shard {
    pub(crate) fn new(number: u32, limits: ShardLimits) -> Self {
        Self {
            number,
            pairs: Pairs::new(number),
            changes: ChangeLog::new(limits.changes_bytes),
            leases: Leases::default(),
            locks: Locks::default(),
            sessions: Sessions::new(limits.sessions),
            revision: Revision(0),
            time_offset_ms: 0,
            custody: Custody::serving(MoveNumber(0)),
            limits,
        }
    }

    /// The same number and limits, with nothing in it.
    pub(crate) fn emptied(&self) -> Self {
        Self { custody: self.custody, ..Self::new(self.number, self.limits) }
    }

    /// The digest of everything in it.
    pub(crate) fn digest(&self) -> u128 {
        self.contents_digest().wrapping_add(self.stays())
    }

    /// What of that does not move with it.
    pub(crate) fn stays(&self) -> u128 {
        let held = self.changes.held().map_or(0, |held| held.0 + 1);
        digest::custody(self.number, self.time_offset_ms, held, self.custody.numbers())
    }

    /// The digest of what moves with it.
    pub(crate) fn contents_digest(&self) -> u128 {
        let (compacted, order) = (self.changes.compacted(), self.sessions.next_order());
        digest::shard(self.number, self.revision, compacted, order)
            .wrapping_add(self.pairs.digest())
            .wrapping_add(self.changes.digest())
            .wrapping_add(self.leases.digest())
            .wrapping_add(self.locks.digest())
            .wrapping_add(self.sessions.digest())
    }

    /// What it counts against the limit on what is stored.
    pub(crate) fn stored_bytes(&self) -> u64 {
        self.pairs.bytes() + self.changes.bytes() + self.leases.bytes() + self.locks.bytes()
    }

    /// How many bytes its log of changes may have while it leaves.
    fn held_bytes_max(&self) -> u64 {
        self.pairs.bytes().max(self.limits.held_changes_bytes)
    }

    /// How it stands here, and how much of it is there.
    pub(crate) fn standing(&self) -> Standing {
        let (keys, bytes) = (self.pairs.map().len() as u64, self.stored_bytes());
        let held = self.changes.held().map(|_| (self.changes.bytes(), self.held_bytes_max()));
        Standing { custody: self.custody, keys, bytes, revision: self.revision, held }
    }

    /// Its time when the group's is this.
    pub(crate) fn time(&self, group_time_ms: u64) -> ShardTime {
        ShardTime(group_time_ms.saturating_add_signed(self.time_offset_ms))
    }

    /// Lets its time be this when the group's is that.
    pub(crate) fn set_time(&mut self, time: ShardTime, group_time_ms: u64) {
        self.time_offset_ms = time.0.wrapping_sub(group_time_ms).cast_signed();
    }

    /// The group's time when its own is this.
    pub(crate) fn group_time_ms(&self, time: ShardTime) -> u64 {
        time.0.saturating_add_signed(self.time_offset_ms.saturating_neg())
    }

    /// When its first lease is over, by group time, if it is served here.
    pub(crate) fn earliest_deadline_ms(&self) -> Option<u64> {
        let earliest = self.leases.earliest().filter(|_| self.custody.serves());
        earliest.map(|deadline| self.group_time_ms(deadline))
    }

    pub(crate) fn header(&self, shards: u32, group_time_ms: u64) -> Header {
        let time = self.time(group_time_ms);
        Header { shard: self.number, shards, revision: self.revision, time }
    }

    pub(crate) fn next_revision(&self) -> Revision {
        Revision(self.revision.0 + 1)
    }

    pub(crate) fn take_revision(&mut self) -> Revision {
        self.revision = self.next_revision();
        self.revision
    }

    /// Whether `sweep` has something to forget.
    pub(crate) fn is_due(&self, group_time_ms: u64) -> bool {
        let due = || self.sessions.is_due(self.time(group_time_ms)) || self.changes.is_due();
        self.custody.serves() && due()
    }

    /// Forgets some of what has expired.
    pub(crate) fn sweep(&mut self, group_time_ms: u64) {
        let now = self.time(group_time_ms);
        self.sessions.sweep(now, SWEEP_ROWS_PER_APPLY);
        self.changes.sweep(REVISIONS_FORGOTTEN_PER_APPLY);
    }

    /// Removes some of what is in it; whether something is left. Once nothing is, it is as a new one,
    /// but that its revisions go on. What is left may be told in a snapshot: no change is there
    /// without what it led to, and no lock without its lease.
    pub(crate) fn discard(&mut self) -> bool {
        let most = self.limits.discarded_per_step;
        let left = self.changes.discard(most)
            || self.pairs.discard(most)
            || self.sessions.discard(most)
            || self.locks.discard(most)
            || self.leases.discard(most);
        if left {
            return true;
        }
        *self = Self { revision: self.revision, ..self.emptied() };
        false
    }

    /// Whether requests to it are executed here.
    pub(crate) fn check_served(&self) -> Result<(), Refusal> {
        if self.custody.serves() { Ok(()) } else { Err(Refusal::NotServed { shard: self.number }) }
    }

    /// Executes a command of this shard, which is served, once.
    pub(crate) fn apply(&mut self, group: &Group, command: &Command<'_>) -> Response {
        let now = self.time(group.time_ms);
        self.sessions.sweep(now, SWEEP_ROWS_PER_APPLY);
        let id = command.id.as_ref().filter(|_| command.operation.takes_id());
        let result = match id.map(|id| (id, self.sessions.admit(id, now))) {
            Some((_, Admission::Kept(answered))) => match answered.outcome {
                Outcome::NoRoom(refusal) => Err(refusal),
                outcome => Ok(Answered { outcome, ..answered }),
            },
            Some((_, Admission::Refused(refusal))) => Err(refusal),
            Some((id, Admission::Execute)) => match self.execute(group, command) {
                Ok(outcome) => {
                    self.sessions.record(id, &outcome);
                    Ok(first(outcome))
                }
                Err(refusal) => {
                    if refusal.numbers().is_some() {
                        self.sessions.record(id, &Outcome::NoRoom(refusal.clone()));
                    }
                    Err(refusal)
                }
            },
            None => self.execute(group, command).map(first),
        };
        if self.changes.bytes() > self.held_bytes_max() {
            self.changes.hold(None);
        }
        self.changes.sweep(REVISIONS_FORGOTTEN_PER_APPLY);
        Response { header: self.header(group.shards, group.time_ms), result }
    }

    /// What a Txn that only reads answers.
    pub(crate) fn answer(&self, group: &Group, command: &Command<'_>) -> Response {
        let result = match &command.operation {
            Operation::Txn(txn) => {
                self.guarded(group, command).unwrap_or_else(|| self.ask(command, txn))
            }
            Operation::Put { .. }
            | Operation::Append { .. }
            | Operation::Delete { .. }
            | Operation::Compact { .. }
            | Operation::Grant { .. }
            | Operation::KeepAlive { .. }
            | Operation::Revoke { .. }
            | Operation::Expire { .. }
            | Operation::Acquire { .. }
            | Operation::Release { .. } => Err(Refusal::NotReadOnly),
        };
        Response { header: self.header(group.shards, group.time_ms), result: result.map(first) }
    }

    fn execute(&mut self, group: &Group, command: &Command<'_>) -> Verdict {
        if let Some(refused) = self.guarded(group, command) {
            return refused;
        }
        let (now, stored_bytes_max) = (self.time(group.time_ms), command.bounds.stored_bytes_max);
        match &command.operation {
            Operation::Put { key, value, condition, lease } => {
                self.put(group, command, (key, value), *condition, *lease)
            }
            Operation::Append { key, value } => self.append(group, command, key, value),
            Operation::Delete { key } => self.delete(group, command, key),
            Operation::Txn(txn) => self.txn(group, command, txn),
            Operation::Compact { shard: _, revision } => Ok(self.compact(*revision)),
            Operation::Grant { key: _, ttl_ms } => self.grant(group, stored_bytes_max, *ttl_ms),
            Operation::KeepAlive { leases } => Ok(self.keep_alive(leases, now)),
            Operation::Revoke { lease } => Ok(self.revoke(*lease, now)),
            Operation::Expire { lease, renewal } => Ok(self.expire(*lease, *renewal, now)),
            Operation::Acquire { name, tenure, wait_ms, owner } => {
                let wish = Wish { name, tenure: *tenure, wait_ms: *wait_ms, owner };
                self.acquire(group, stored_bytes_max, &wish)
            }
            Operation::Release { name, lease } => Ok(self.release(name, *lease, now)),
        }
    }

    /// What a command comes to whose guard does not hold.
    fn guarded(&self, group: &Group, command: &Command<'_>) -> Option<Verdict> {
        let guard = command.guard.as_ref()?;
        self.check_guard(guard, self.time(group.time_ms)).err().map(Ok)
    }

    /// Forgets changes, as far as there are any.
    fn compact(&mut self, upto: Option<Revision>) -> Outcome {
        self.changes.compact(upto.unwrap_or(self.revision).min(self.revision));
        Outcome::Compacted(self.changes.compacted())
    }
}

pub(crate) fn first(outcome: Outcome) -> Answered {
    Answered { outcome, duplicate: false, body_dropped: false }
}
