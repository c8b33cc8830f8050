//! The change log of one shard: what each revision did to which keys.
//!
//! Decides what is kept of it. It serves watches and reads at old revisions, and shares the values
//! with the pairs, so that a value costs it only from when the pair holds another. Whole revisions
//! are forgotten, the oldest first: those that were compacted, and those beyond the budget; the
//! newest one may exceed the budget alone. Only a bounded number goes in one apply, so that what is
//! forgotten may still be there for a while; nobody is told it.

use std::cmp::Ordering;

use imbl::Vector;

use crate::{digest, limits::CHANGE_OVERHEAD_BYTES, outcome::Revision, view::Change};

/// The changes of one shard. Cloning shares everything.
///
/// Invariants: `bytes` and `digest` are the sums over `changes`; for each key the changes follow
/// on one another, and the last one ends in what the key holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ChangeLog {
    bytes_max: u64,
    /// By revision, and those of one revision by key.
    changes: Vector<Logged>,
    /// Up to this revision all is forgotten.
    compacted: Revision,
    bytes: u64,
    digest: u128,
}

/// A change in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Logged {
    revision: Revision,
    change: Change,
    digest: u128,
}

impl ChangeLog {
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self { bytes_max, changes: Vector::new(), compacted: Revision(0), bytes: 0, digest: 0 }
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

    /// Adds a change behind all others, with the digests of its pairs.
    pub(crate) fn push(&mut self, revision: Revision, change: Change, digests: [u128; 2]) {
        if let Some(last) = self.changes.back() {
            let (last, next) = ((last.revision, &last.change.key), (revision, &change.key));
            assert!(last < next, "the change {next:?} is logged after {last:?}");
        }
        let digest = digest::change(revision, digests, change.expired);
        self.bytes += cost(&change);
        self.digest = self.digest.wrapping_add(digest);
        self.changes.push_back(Logged { revision, change, digest });
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
        let oldest = self.changes.front()?.revision;
        let newest = self.changes.back()?.revision;
        let full = self.bytes > self.bytes_max && oldest < newest;
        (full || oldest <= self.compacted).then_some(oldest)
    }

    /// Takes out what is forgotten, no more than so many revisions.
    pub(crate) fn sweep(&mut self, revisions_max: usize) {
        for _ in 0..revisions_max {
            let Some(oldest) = self.due() else { return };
            self.compacted = self.compacted.max(oldest);
            while self.changes.front().is_some_and(|logged| logged.revision == oldest) {
                let Some(logged) = self.changes.pop_front() else { return };
                self.bytes -= cost(&logged.change);
                self.digest = self.digest.wrapping_sub(logged.digest);
            }
        }
    }

    /// All that is there, forgotten or not, behind a revision; in order.
    pub(crate) fn after(&self, revision: Revision) -> impl Iterator<Item = (Revision, &Change)> {
        let behind = |logged: &Logged| logged.revision.cmp(&revision).then(Ordering::Less);
        let start = self.changes.binary_search_by(behind).unwrap_or_else(|start| start);
        let behind = self.changes.focus().narrow(start..);
        behind.into_iter().map(|logged| (logged.revision, &logged.change))
    }
}

/// What a change counts: what the pairs do not hold any more.
fn cost(change: &Change) -> u64 {
    let previous = change.previous.as_ref().map_or(0, |pair| pair.value.len() as u64);
    change.key.len() as u64 + previous + CHANGE_OVERHEAD_BYTES
}
