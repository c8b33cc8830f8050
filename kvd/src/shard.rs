//! One shard: the unit of everything. Its pairs, its exactly-once table, its revision counter and
//! its clock move together and are cloned in constant time.
//!
//! Decides what a command does to the pairs. Which shard a key belongs to, and the order of
//! commands, is the machine's business.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use imbl::OrdMap;
use raft::RECOVERY_GAP;

use crate::{
    command::{Condition, Operation, RequestId},
    digest,
    limits::{PairLimits, SWEEP_ROWS_PER_APPLY, VALUE_BYTES_MAX},
    outcome::{
        Answered, Header, Outcome, Pair, Refusal, Response, Revision, ShardTime, Version, Written,
    },
    session::{Admission, SessionLimits, Sessions},
};

/// A key in its own allocation.
pub(crate) type Key = Arc<[u8]>;

/// A shard. Cloning shares everything.
#[derive(Clone, Debug)]
pub(crate) struct Shard {
    pub(crate) number: u32,
    pub(crate) pairs: OrdMap<Key, Pair>,
    pub(crate) sessions: Sessions,
    pub(crate) revision: Revision,
    /// Shard time is group time plus this, so that it goes on when the shard moves to a group
    /// with another clock.
    pub(crate) time_offset_ms: u64,
    /// Sum over the pairs.
    pairs_digest: u128,
}

impl Shard {
    pub(crate) fn new(number: u32, limits: SessionLimits) -> Self {
        Self {
            number,
            pairs: OrdMap::new(),
            sessions: Sessions::new(limits),
            revision: Revision(0),
            time_offset_ms: 0,
            pairs_digest: 0,
        }
    }

    /// The digest of everything in it.
    pub(crate) fn digest(&self) -> u128 {
        let (revision, order) = (self.revision.0, self.sessions.next_order());
        digest::shard(self.number, revision, self.time_offset_ms, order)
            .wrapping_add(self.pairs_digest)
            .wrapping_add(self.sessions.digest())
    }

    /// Its time when the group's is this.
    pub(crate) fn time(&self, group_time_ms: u64) -> ShardTime {
        ShardTime(group_time_ms.saturating_add(self.time_offset_ms))
    }

    pub(crate) fn header(&self, shards: u32, group_time_ms: u64) -> Header {
        let time = self.time(group_time_ms);
        Header { shard: self.number, shards, revision: self.revision, time }
    }

    /// Whether `sweep` has something to forget.
    pub(crate) fn is_due(&self, group_time_ms: u64) -> bool {
        self.sessions.is_due(self.time(group_time_ms))
    }

    /// Forgets some of what has expired.
    pub(crate) fn sweep(&mut self, group_time_ms: u64) {
        let now = self.time(group_time_ms);
        self.sessions.sweep(now, SWEEP_ROWS_PER_APPLY);
    }

    /// Executes a command of this shard, once.
    pub(crate) fn apply(
        &mut self,
        shards: u32,
        group_time_ms: u64,
        id: Option<&RequestId>,
        operation: &Operation<'_>,
    ) -> Response {
        let now = self.time(group_time_ms);
        self.sessions.sweep(now, SWEEP_ROWS_PER_APPLY);
        let result = match id.map(|id| (id, self.sessions.admit(id, now))) {
            Some((_, Admission::Kept(answered))) => Ok(answered),
            Some((_, Admission::Refused(refusal))) => Err(refusal),
            Some((id, Admission::Execute)) => {
                let outcome = self.execute(operation);
                self.sessions.record(id, &outcome);
                Ok(first(outcome))
            }
            None => Ok(first(self.execute(operation))),
        };
        Response { header: self.header(shards, group_time_ms), result }
    }

    fn execute(&mut self, operation: &Operation<'_>) -> Outcome {
        match operation {
            Operation::Put { key, value, condition } => self.put(key, value, *condition),
            Operation::Append { key, value, value_bytes_max } => {
                self.append(key, value, *value_bytes_max)
            }
            Operation::Delete { key } => self.delete(key),
        }
    }

    fn put(&mut self, key: &[u8], value: &[u8], condition: Condition) -> Outcome {
        let current = self.pairs.get(key);
        if !holds(condition, current) {
            return Outcome::Mismatch(current.cloned());
        }
        Outcome::Written(self.write(key, Bytes::copy_from_slice(value)))
    }

    fn append(&mut self, key: &[u8], value: &[u8], value_bytes_max: u64) -> Outcome {
        let old = self.pairs.get(key).map_or_else(Bytes::new, |pair| pair.value.clone());
        let bytes = old.len() as u64 + value.len() as u64;
        let limit = value_bytes_max.min(VALUE_BYTES_MAX as u64);
        if bytes > limit {
            return Outcome::TooLarge { bytes, limit };
        }
        let mut whole = BytesMut::with_capacity(old.len() + value.len());
        whole.extend_from_slice(&old);
        whole.extend_from_slice(value);
        Outcome::Appended { written: self.write(key, whole.freeze()), old }
    }

    fn delete(&mut self, key: &[u8]) -> Outcome {
        let Some(pair) = self.pairs.remove(key) else { return Outcome::Absent };
        self.revision = Revision(self.revision.0 + 1);
        let removed = digest::pair(self.number, key, &pair);
        self.pairs_digest = self.pairs_digest.wrapping_sub(removed);
        let written = Written { version: Version(0), revision: self.revision };
        Outcome::Removed { written, pair }
    }

    /// Writes a value that owns its allocation, under the next revision.
    fn write(&mut self, key: &[u8], value: Bytes) -> Written {
        let revision = Revision(self.revision.0 + 1);
        self.revision = revision;
        let version = if let Some(pair) = self.pairs.get_mut(key) {
            let before = digest::pair(self.number, key, pair);
            pair.value = value;
            let passed = recoveries(revision).saturating_sub(recoveries(pair.mod_revision));
            pair.version = Version(pair.version.0 + 1 + passed * RECOVERY_GAP);
            pair.mod_revision = revision;
            let after = digest::pair(self.number, key, pair);
            self.pairs_digest = self.pairs_digest.wrapping_sub(before).wrapping_add(after);
            pair.version
        } else {
            let version = Version(1 + recoveries(revision) * RECOVERY_GAP);
            let pair = Pair { value, version, create_revision: revision, mod_revision: revision };
            self.insert(Key::from(key), pair);
            version
        };
        Written { version, revision }
    }

    /// Adds a pair whose key is absent.
    pub(crate) fn insert(&mut self, key: Key, pair: Pair) {
        let digest = digest::pair(self.number, &key, &pair);
        self.pairs_digest = self.pairs_digest.wrapping_add(digest);
        let before = self.pairs.insert(key, pair);
        assert!(before.is_none(), "the key was there already");
    }
}

/// How often the group was recovered before a revision. A shard that counts beyond the gap moves its
/// versions on as well, which does no harm.
fn recoveries(revision: Revision) -> u64 {
    revision.0 / RECOVERY_GAP
}

/// Checks what no state can make acceptable.
pub(crate) fn check(operation: &Operation<'_>) -> Result<(), Refusal> {
    let limits = PairLimits::default();
    limits.check_key(operation.key())?;
    match operation {
        Operation::Put { value, .. } | Operation::Append { value, .. } => {
            Ok(limits.check_value(value)?)
        }
        Operation::Delete { .. } => Ok(()),
    }
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

fn first(outcome: Outcome) -> Answered {
    Answered { outcome, duplicate: false, body_dropped: false }
}
