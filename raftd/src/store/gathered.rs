//! Writes that wait for the disk, merged into one.
//!
//! The queue of the store is one such merged write: what a later write truncates or resets is
//! never written at all, and the queue holds no more than the core's own log does.

use raft::{Entry, HardState, Index, Position, SnapshotRoot, Write, WriteId};

/// What all writes since the last batch amount to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gathered {
    /// The last of them.
    pub id: WriteId,
    /// The latest term and vote, if they changed.
    pub hard_state: Option<HardState>,
    /// The latest snapshot, if there is a new one. It applies before the entries.
    pub snapshot: Option<GatheredSnapshot>,
    /// Entries, contiguous; the log is first cut so that it ends just before the first of them.
    pub entries: Vec<Entry>,
}

/// A snapshot that takes the place of the beginning of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatheredSnapshot {
    /// The snapshot.
    pub root: SnapshotRoot,
    /// The first index that the log keeps.
    pub first: Index,
    /// Some: the whole log is replaced and goes on behind this position.
    pub reset: Option<Position>,
}

impl Gathered {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.hard_state.is_none() && !self.changes_log()
    }

    /// Whether the log changes.
    pub fn changes_log(&self) -> bool {
        self.snapshot.is_some() || !self.entries.is_empty()
    }

    /// Adds the next write.
    pub fn add(&mut self, write: Write) {
        self.id = write.id;
        self.hard_state = write.hard_state.or(self.hard_state);
        if let Some(snapshot) = write.snapshot {
            let reset = if snapshot.reset {
                self.entries.clear();
                Some(snapshot.root.position)
            } else {
                self.snapshot.as_ref().and_then(|earlier| earlier.reset)
            };
            let (root, first) = (snapshot.root, snapshot.first);
            self.snapshot = Some(GatheredSnapshot { root, first, reset });
        }
        let (Some(first), Some(begin)) = (write.entries.first(), self.entries.first()) else {
            self.entries.extend(write.entries);
            return;
        };
        let kept = first.index.0.saturating_sub(begin.index.0);
        assert!(
            kept <= self.entries.len() as u64,
            "entries from {} on leave a gap behind {} others from {} on",
            first.index,
            self.entries.len(),
            begin.index
        );
        self.entries.truncate(kept as usize);
        self.entries.extend(write.entries);
    }
}

#[cfg(test)]
mod tests {
    use raft::{Digest, GroupTime, Payload, SnapshotWrite, Term};

    use super::*;

    fn write(id: u64, term: u64, indexes: std::ops::Range<u64>) -> Write {
        let entries = indexes.map(|index| Entry {
            index: Index(index),
            term: Term(term),
            stamp: GroupTime(0),
            payload: Payload::Noop,
        });
        Write { id: WriteId(id), hard_state: None, entries: entries.collect(), snapshot: None }
    }

    fn snapshot(index: u64, first: u64, reset: bool) -> SnapshotWrite {
        let position = Position { term: Term(1), index: Index(index) };
        let root = SnapshotRoot {
            position,
            stamp: GroupTime(0),
            manifest: Digest([index as u8; 32]),
            chunks: 0,
            bytes: 0,
            membership: std::sync::Arc::default(),
        };
        SnapshotWrite { root, first: Index(first), reset }
    }

    fn gather(writes: impl IntoIterator<Item = Write>) -> Gathered {
        let mut gathered = Gathered::default();
        writes.into_iter().for_each(|write| gathered.add(write));
        gathered
    }

    fn shape(gathered: &Gathered) -> Vec<(u64, u64)> {
        gathered.entries.iter().map(|entry| (entry.index.0, entry.term.0)).collect()
    }

    #[test]
    fn what_a_later_write_truncates_is_not_written() {
        let gathered = gather([write(1, 1, 5..9), write(2, 2, 7..8), write(3, 2, 8..9)]);
        assert_eq!(shape(&gathered), [(5, 1), (6, 1), (7, 2), (8, 2)]);
        assert_eq!(gathered.id, WriteId(3));
        assert_eq!(shape(&gather([write(1, 1, 5..9), write(2, 2, 3..4)])), [(3, 2)]);
    }

    #[test]
    fn a_reset_forgets_the_entries_before_it_and_stays_one() {
        let reset = Write { snapshot: Some(snapshot(20, 21, true)), ..write(2, 1, 0..0) };
        let later = Write { snapshot: Some(snapshot(22, 22, false)), ..write(4, 1, 0..0) };
        let gathered = gather([write(1, 1, 5..9), reset, write(3, 1, 21..25), later]);
        assert_eq!(gathered.entries.len(), 4);
        let found = gathered.snapshot.unwrap();
        assert_eq!(found.reset.unwrap().index, Index(20));
        assert_eq!((found.first, found.root.position.index), (Index(22), Index(22)));
    }

    #[test]
    fn the_latest_hard_state_counts() {
        let vote = |id, term| Write {
            hard_state: Some(HardState { term: Term(term), vote: None }),
            ..write(id, 1, 0..0)
        };
        let gathered = gather([vote(1, 3), vote(2, 4), write(3, 4, 1..2)]);
        assert_eq!(gathered.hard_state.unwrap().term, Term(4));
    }
}
