//! The part of the log that is in memory: all of it from the entry behind `base` on.
//!
//! Keeps: entries are contiguous, their terms and stamps never fall. Decides nothing about what
//! is durable; that is `durability.rs`.

use std::collections::VecDeque;

use crate::{Entry, Index, Position, Term};

#[derive(Debug)]
pub(crate) struct Log {
    /// The entry just before the first, compacted away or zero.
    base: Position,
    entries: VecDeque<Entry>,
    /// The sum of the entries' sizes.
    bytes: u64,
}

impl Log {
    pub(crate) fn new(base: Position, entries: Vec<Entry>) -> Self {
        let mut log = Self { base, entries: VecDeque::new(), bytes: 0 };
        for entry in entries {
            log.push(entry);
        }
        log
    }

    pub(crate) fn base(&self) -> Position {
        self.base
    }

    pub(crate) fn first(&self) -> Index {
        self.base.index.next()
    }

    pub(crate) fn last(&self) -> Position {
        self.entries.back().map_or(self.base, Entry::position)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn get(&self, index: Index) -> Option<&Entry> {
        let offset = index.0.checked_sub(self.first().0)?;
        self.entries.get(usize::try_from(offset).ok()?)
    }

    /// The term at `index`; none if it is before the base or behind the end.
    pub(crate) fn term_at(&self, index: Index) -> Option<Term> {
        if index == self.base.index {
            Some(self.base.term)
        } else {
            self.get(index).map(|entry| entry.term)
        }
    }

    /// The position at `index`, which must be in the log or its base.
    pub(crate) fn position_at(&self, index: Index) -> Option<Position> {
        Some(Position { term: self.term_at(index)?, index })
    }

    pub(crate) fn push(&mut self, entry: Entry) {
        let last = self.last();
        assert_eq!(entry.index, last.index.next(), "an entry follows the last one");
        assert!(entry.term >= last.term, "terms never fall: {} after {last}", entry.position());
        self.bytes += entry.size();
        self.entries.push_back(entry);
    }

    /// Removes all entries from `from` on.
    pub(crate) fn truncate(&mut self, from: Index) {
        assert!(
            from > self.base.index,
            "truncation at {from} reaches below the base {}",
            self.base
        );
        while self.last().index >= from {
            let removed = self.entries.pop_back().expect("the last index is above the base's");
            self.bytes -= removed.size();
        }
    }

    /// Removes all entries before `first`, which must not be behind the end of the log + 1.
    pub(crate) fn compact(&mut self, first: Index) {
        while self.first() < first {
            let removed =
                self.entries.pop_front().expect("the log reaches what it is compacted to");
            self.bytes -= removed.size();
            self.base = removed.position();
        }
    }

    /// Forgets everything: the log goes on behind `base`.
    pub(crate) fn reset(&mut self, base: Position) {
        *self = Self { base, entries: VecDeque::new(), bytes: 0 };
    }

    /// Entries from `from` on, at least one if there is one, at most `bytes_max`.
    pub(crate) fn slice(&self, from: Index, bytes_max: u64) -> Vec<Entry> {
        let mut bytes = 0;
        self.range(from, self.last().index)
            .take_while(|entry| {
                let first = bytes == 0;
                bytes += entry.size();
                first || bytes <= bytes_max
            })
            .cloned()
            .collect()
    }

    /// The entries `from..=to` that are in the log.
    pub(crate) fn range(&self, from: Index, to: Index) -> impl Iterator<Item = &Entry> {
        let skip = usize::try_from(from.0.saturating_sub(self.first().0)).unwrap_or(usize::MAX);
        let skip = skip.min(self.entries.len());
        self.entries.range(skip..).take_while(move |entry| entry.index <= to)
    }

    /// The last position at or before `at` whose term does not exceed `term`; the base if there is
    /// none. Both sides of fast conflict rollback use it: no entry behind it can be equal in a log
    /// that holds (`at`, `term`).
    pub(crate) fn last_not_after(&self, at: Index, term: Term) -> Position {
        let below = self.entries.partition_point(|entry| entry.term <= term && entry.index <= at);
        below.checked_sub(1).map_or(self.base, |offset| self.entries[offset].position())
    }

    /// The first index that must stay so that at least `bytes` of entries up to `upto` stay.
    pub(crate) fn first_of_tail(&self, upto: Index, bytes: u64) -> Index {
        let mut left = bytes;
        let mut first = upto.next();
        while let Some(entry) = self.get(first.previous()).filter(|entry| entry.size() <= left) {
            left -= entry.size();
            first = entry.index;
        }
        first
    }
}
