//! The change log of one shard: what each revision did to which keys.
//!
//! Decides what is kept of it. It serves watches and reads at old revisions, and shares the values
//! with the pairs, so that a value costs it only from when the pair holds another. Whole revisions
//! are forgotten, the oldest first: those that were compacted, and those beyond the budget; the
//! newest one may exceed the budget alone. Only a bounded number goes in one apply, so that what is
//! forgotten may still be there for a while; nobody is told it.

use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;

use imbl::OrdMap;

use crate::{limits::CHANGE_OVERHEAD_BYTES, outcome::Revision, view::Change};

/// The changes of one shard. Cloning shares everything.
///
/// Invariants: `bytes` and `digest` are the sums over `revisions`; for each key the changes follow
/// on one another, and the last one ends in what the key holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ChangeLog {
    bytes_max: u64,
    revisions: OrdMap<Revision, Arc<Logged>>,
    /// Up to this revision all is forgotten.
    compacted: Revision,
    bytes: u64,
    digest: u128,
}

/// The changes of one revision, by key.
#[derive(Debug, PartialEq, Eq)]
struct Logged {
    changes: Vec<Change>,
    digest: u128,
}

impl Logged {
    fn bytes(&self) -> u64 {
        self.changes.iter().map(cost).sum()
    }
}

impl ChangeLog {
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self { bytes_max, revisions: OrdMap::new(), compacted: Revision(0), bytes: 0, digest: 0 }
    }

    /// Up to which revision all is forgotten.
    pub(crate) fn compacted(&self) -> Revision {
        self.compacted
    }

    /// What it counts in what is stored.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The sum over the changes.
    pub(crate) fn digest(&self) -> u128 {
        self.digest
    }

    /// Adds the changes of a revision, by key, behind all others. `digest` is their sum.
    pub(crate) fn push(&mut self, revision: Revision, changes: Vec<Change>, digest: u128) {
        let newest = self.revisions.get_max().map_or(Revision(0), |(newest, _)| *newest);
        assert!(revision > newest, "revision {revision:?} is logged after {newest:?}");
        if changes.is_empty() {
            return;
        }
        let logged = Logged { changes, digest };
        self.bytes += logged.bytes();
        self.digest = self.digest.wrapping_add(digest);
        self.revisions.insert(revision, Arc::new(logged));
    }

    /// Forgets all up to a revision.
    pub(crate) fn compact(&mut self, upto: Revision) {
        self.compacted = self.compacted.max(upto);
    }

    /// Whether `sweep` has something to do.
    pub(crate) fn is_due(&self) -> bool {
        self.due().is_some()
    }

    /// The oldest revision, if it is forgotten or to be forgotten.
    fn due(&self) -> Option<Revision> {
        let (oldest, _) = self.revisions.get_min()?;
        let full = self.bytes > self.bytes_max && self.revisions.len() > 1;
        (full || *oldest <= self.compacted).then_some(*oldest)
    }

    /// Takes out what is forgotten, no more than so many revisions.
    pub(crate) fn sweep(&mut self, revisions_max: usize) {
        for _ in 0..revisions_max {
            let Some(oldest) = self.due() else { return };
            let Some(logged) = self.revisions.remove(&oldest) else { return };
            self.compacted = self.compacted.max(oldest);
            self.bytes -= logged.bytes();
            self.digest = self.digest.wrapping_sub(logged.digest);
        }
    }

    /// All that is there, forgotten or not, behind a revision; in order.
    pub(crate) fn after(&self, revision: Revision) -> impl Iterator<Item = (Revision, &[Change])> {
        let behind = (Excluded(revision), Unbounded);
        self.revisions.range(behind).map(|(revision, logged)| (*revision, &logged.changes[..]))
    }
}

/// What a change counts: what the pairs do not hold any more.
fn cost(change: &Change) -> u64 {
    let previous = change.previous.as_ref().map_or(0, |pair| pair.value.len() as u64);
    change.key.len() as u64 + previous + CHANGE_OVERHEAD_BYTES
}
