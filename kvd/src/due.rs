//! When leases are over: what a leader goes by until the log decides.
//!
//! Decides at which group time to look, and what to propose for what is due by then. Pure, with the
//! time of whoever looks as a number, so that daemons and simulated hosts do the same. The entry's own
//! stamp and the lease's renewal decide, when an Expire is applied, whether the lease is over.

use std::time::Duration;

use bytes::Bytes;
use raft::{GroupTime, Index};

use crate::{
    command::{Command, Operation},
    limits::DUE_LEASES_TOLD_MAX,
    outcome::{DueLease, Query},
};

/// How often a leader looks at its leases.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// How long an Expire may take until it is proposed again.
pub const EXPIRE_LIMIT: Duration = Duration::from_secs(2);

/// What the group's time is at least: what the last stamp said, and how long ago it was heard.
#[derive(Clone, Copy, Debug)]
pub struct Estimate {
    applied: Index,
    stamp: GroupTime,
    heard_at: Duration,
}

impl Estimate {
    /// What follows from a stamp that is heard now, by any clock that only goes forward.
    pub fn new(applied: Index, stamp: GroupTime, now: Duration) -> Self {
        Self { applied, stamp, heard_at: now }
    }

    /// Takes note of how far the machine has come.
    pub fn hear(&mut self, applied: Index, stamp: GroupTime, now: Duration) {
        if applied != self.applied {
            *self = Self::new(applied, stamp, now);
        }
    }

    /// The group's time, by the same clock.
    pub fn group_time(&self, now: Duration) -> GroupTime {
        let since = now.saturating_sub(self.heard_at).as_millis();
        let since = u64::try_from(since).unwrap_or(u64::MAX);
        GroupTime(self.stamp.0.saturating_add(since))
    }
}

/// Asks which leases are over by this time.
pub fn question(until: GroupTime) -> Query {
    Query::DueLeases { until, most: DUE_LEASES_TOLD_MAX }
}

/// The command that ends a lease, if it is over.
pub fn expire(shards: u32, due: &DueLease) -> Bytes {
    let &DueLease { lease, renewal, deadline: _ } = due;
    Command::new(shards, Operation::Expire { lease, renewal }).encode()
}
