//! The change log of one shard: what each revision did to which keys.
//!
//! Decides what is kept of it. It serves watches and reads at old revisions, and shares the values
//! with the pairs, so that a value costs it only from when the pair holds another. Whole revisions
//! are forgotten, the oldest first: those that were compacted, and those beyond the budget; the
//! newest one may exceed the budget alone. Only a bounded number goes in one apply, so that what is
//! forgotten may still be there for a while; nobody is told it.

use std::cmp::Ordering;

use imbl::Vector;

use crate::{
    digest,
    limits::CHANGE_OVERHEAD_BYTES,
    outcome::{Key, Revision},
    view::Change,
};

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
    /// What came behind this revision is kept for now, forgotten or not: another group follows it.
    held: Option<Revision>,
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
        let (changes, compacted, held) = (Vector::new(), Revision(0), None);
        Self { bytes_max, changes, compacted, held, bytes: 0, digest: 0 }
    }

    /// Up to which revision all is forgotten.
    pub(crate) fn compacted(&self) -> Revision {
        self.compacted
    }

    /// What it counts in what is stored.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// From which revision on the changes are held.
    pub(crate) fn held(&self) -> Option<Revision> {
        self.held
    }

    /// Holds the changes behind a revision, or lets go of them.
    pub(crate) fn hold(&mut self, held: Option<Revision>) {
        self.held = held;
    }

    /// Behind which revision all changes are there.
    pub(crate) fn oldest(&self) -> Revision {
        self.held.map_or(self.compacted, |held| held.min(self.compacted))
    }

    /// The last change that is there.
    pub(crate) fn last(&self) -> Option<(Revision, &Key)> {
        self.changes.back().map(|last| (last.revision, &last.change.key))
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
        let held = self.held.is_some_and(|held| oldest > held);
        (!held && (full || oldest <= self.compacted)).then_some(oldest)
    }

    /// Takes out all that is forgotten and not held.
    pub(crate) fn forget_unheld(&mut self) {
        let upto = self.oldest();
        while self.changes.front().is_some_and(|oldest| oldest.revision <= upto) {
            self.pop();
        }
    }

    /// Takes out no more than so many changes; whether some are left.
    pub(crate) fn discard(&mut self, most: usize) -> bool {
        (0..most).for_each(|_| self.pop());
        !self.changes.is_empty()
    }

    fn pop(&mut self) {
        if let Some(logged) = self.changes.pop_front() {
            self.bytes -= cost(&logged.change);
            self.digest = self.digest.wrapping_sub(logged.digest);
        }
    }

    /// Takes out what is forgotten, no more than so many revisions.
    pub(crate) fn sweep(&mut self, revisions_max: usize) {
        for _ in 0..revisions_max {
            let Some(oldest) = self.due() else { return };
            self.compacted = self.compacted.max(oldest);
            while self.changes.front().is_some_and(|logged| logged.revision == oldest) {
                self.pop();
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
