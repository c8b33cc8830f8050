//! The log from the entry behind `base` on: its tail as entries, the part before that as spans.
//!
//! The tail is what memory holds; older entries are on the disk only, and a span remembers no more
//! of them than the protocol asks without reading them: where they stand, their term and about how
//! large they are. Keeps: entries are contiguous, their terms and stamps never fall; the last entry
//! is in memory, unless the log is empty. Decides nothing about what is durable; that is
//! `durability.rs`.

use std::collections::VecDeque;

use crate::{Entry, GroupTime, Index, Position, Term};

/// How many bytes of entries one span stands for.
const SPAN_BYTES: u64 = 256 << 10;

/// The log of a member, as much of it as its memory holds.
#[derive(Clone, Debug, Default)]
pub struct Log {
    /// The entry just before the first, compacted away or zero.
    base: Position,
    /// What stands between the base and the entries in memory.
    spans: VecDeque<Span>,
    /// The sum of the spans' sizes.
    span_bytes: u64,
    entries: VecDeque<Entry>,
    /// The sum of the entries' sizes.
    bytes: u64,
}

/// Entries of one term that are not in memory, contiguous behind the span before.
#[derive(Clone, Debug)]
struct Span {
    first: Index,
    last: Position,
    /// The stamp of the last entry, or an earlier one if the span was cut.
    stamp: GroupTime,
    /// Exact, unless the span was cut.
    bytes: u64,
}

impl Span {
    /// The size of the part that ends at `upto`, as if all entries of the span were of one size.
    fn bytes_upto(&self, upto: Index) -> u64 {
        let count = self.last.index.0 - self.first.0 + 1;
        let kept = (upto.0 + 1).saturating_sub(self.first.0).min(count);
        self.bytes / count * kept + self.bytes % count * kept / count
    }
}

impl Log {
    /// An empty log that goes on behind `base`.
    pub fn new(base: Position) -> Self {
        Self { base, ..Self::default() }
    }

    /// Appends an entry, which follows the last one.
    pub fn push(&mut self, entry: Entry) {
        let last = self.last();
        assert_eq!(entry.index, last.index.next(), "an entry follows the last one");
        assert!(entry.term >= last.term, "terms never fall: {} after {last}", entry.position());
        self.bytes += entry.size();
        self.entries.push_back(entry);
    }

    /// Forgets the oldest entries up to `upto`, as many as exceed `window_bytes`, but never the last
    /// one. They have to be durable.
    pub fn forget(&mut self, upto: Index, window_bytes: u64) {
        while self.bytes > window_bytes && self.entries.len() > 1 && self.held_first() <= upto {
            let entry = self.entries.pop_front().expect("there are two entries");
            let (size, position, stamp) = (entry.size(), entry.position(), entry.stamp);
            self.bytes -= size;
            self.span_bytes += size;
            match self.spans.back_mut() {
                Some(span) if span.last.term == entry.term && span.bytes < SPAN_BYTES => {
                    span.last = position;
                    span.stamp = stamp;
                    span.bytes += size;
                }
                Some(_) | None => {
                    let span = Span { first: entry.index, last: position, stamp, bytes: size };
                    self.spans.push_back(span);
                }
            }
        }
    }

    /// The position just before the first entry.
    pub fn base(&self) -> Position {
        self.base
    }

    /// The position of the last entry, or the base.
    pub fn last(&self) -> Position {
        self.entries.back().map_or_else(|| self.held_base(), Entry::position)
    }

    /// The entries in memory.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = &Entry> {
        self.entries.iter()
    }

    pub(crate) fn first(&self) -> Index {
        self.base.index.next()
    }

    /// The position just before the first entry in memory.
    fn held_base(&self) -> Position {
        self.spans.back().map_or(self.base, |span| span.last)
    }

    /// The first entry in memory, or the next one to come.
    pub(crate) fn held_first(&self) -> Index {
        self.held_base().index.next()
    }

    /// The size of all entries, in memory or not.
    pub(crate) fn bytes(&self) -> u64 {
        self.span_bytes + self.bytes
    }

    /// The entry at `index`, if it is in memory.
    pub(crate) fn get(&self, index: Index) -> Option<&Entry> {
        let offset = index.0.checked_sub(self.held_first().0)?;
        self.entries.get(usize::try_from(offset).ok()?)
    }

    /// The term at `index`; none if it is before the base or behind the end.
    pub(crate) fn term_at(&self, index: Index) -> Option<Term> {
        if index >= self.held_first() {
            self.get(index).map(|entry| entry.term)
        } else if index == self.base.index {
            Some(self.base.term)
        } else {
            self.span_of(index).map(|at| self.spans[at].last.term)
        }
    }

    /// A stamp that is not above that of any entry from `index` on.
    pub(crate) fn stamp_not_after(&self, index: Index) -> GroupTime {
        let ended = self.spans.partition_point(|span| span.last.index <= index);
        ended.checked_sub(1).map_or(GroupTime(0), |at| self.spans[at].stamp)
    }

    fn span_of(&self, index: Index) -> Option<usize> {
        let at = self.spans.partition_point(|span| span.last.index < index);
        self.spans.get(at).filter(|span| span.first <= index).map(|_| at)
    }

    /// The position at `index`, which must be in the log or its base.
    pub(crate) fn position_at(&self, index: Index) -> Option<Position> {
        Some(Position { term: self.term_at(index)?, index })
    }

    /// Removes all entries from `from` on. The next one follows at once, so that the last one is in
    /// memory again.
    pub(crate) fn truncate(&mut self, from: Index) {
        assert!(
            from > self.base.index,
            "truncation at {from} reaches below the base {}",
            self.base
        );
        while let Some(removed) = self.entries.pop_back_if(|entry| entry.index >= from) {
            self.bytes -= removed.size();
        }
        while let Some(removed) = self.spans.pop_back_if(|span| span.first >= from) {
            self.span_bytes -= removed.bytes;
        }
        if let Some(span) = self.spans.back_mut().filter(|span| span.last.index >= from) {
            let kept = span.bytes_upto(from.previous());
            self.span_bytes -= span.bytes - kept;
            span.bytes = kept;
            span.last.index = from.previous();
            span.stamp = GroupTime(0);
        }
    }

    /// Removes all entries before `first`, which must not be behind the end of the log + 1.
    pub(crate) fn compact(&mut self, first: Index) {
        if first <= self.first() {
            return;
        }
        let base = self.position_at(first.previous());
        self.base = base.expect("the log reaches what it is compacted to");
        while let Some(removed) = self.spans.pop_front_if(|span| span.last.index < first) {
            self.span_bytes -= removed.bytes;
        }
        if let Some(span) = self.spans.front_mut().filter(|span| span.first < first) {
            let gone = span.bytes_upto(first.previous());
            self.span_bytes -= gone;
            span.bytes -= gone;
            span.first = first;
        }
        while let Some(removed) = self.entries.pop_front_if(|entry| entry.index < first) {
            self.bytes -= removed.size();
        }
    }

    /// Forgets everything: the log goes on behind `base`.
    pub(crate) fn reset(&mut self, base: Position) {
        *self = Self::new(base);
    }

    /// Entries from `from` on, which is in memory: at least one if there is one, at most `bytes_max`.
    pub(crate) fn slice(&self, from: Index, bytes_max: u64) -> Vec<Entry> {
        self.slice_to(from, self.last().index, bytes_max)
    }

    /// The same of entries up to `to`.
    pub(crate) fn slice_to(&self, from: Index, to: Index, bytes_max: u64) -> Vec<Entry> {
        let mut bytes = 0;
        let fits = |entry: &&Entry| {
            let first = bytes == 0;
            bytes += entry.size();
            first || bytes <= bytes_max
        };
        let count = self.range(from, to).take_while(fits).count();
        // It is known how many there are, so they are cloned to where they stay.
        self.range(from, to).take(count).cloned().collect()
    }

    /// Those of the entries `from..=to` that are in memory.
    pub(crate) fn range(&self, from: Index, to: Index) -> impl ExactSizeIterator<Item = &Entry> {
        let held_first = self.held_first();
        let place = |index: Index| {
            let place = usize::try_from(index.0.saturating_sub(held_first.0));
            place.unwrap_or(usize::MAX).min(self.entries.len())
        };
        let behind = place(to.next());
        self.entries.range(place(from).min(behind)..behind)
    }

    /// The last position at or before `at` whose term does not exceed `term`; the base if there is
    /// none. Both sides of fast conflict rollback use it: no entry behind it can be equal in a log
    /// that holds (`at`, `term`).
    pub(crate) fn last_not_after(&self, at: Index, term: Term) -> Position {
        let below = self.entries.partition_point(|entry| entry.term <= term && entry.index <= at);
        if let Some(offset) = below.checked_sub(1) {
            return self.entries[offset].position();
        }
        let below = self.spans.partition_point(|span| span.last.term <= term && span.first <= at);
        let last = below.checked_sub(1).map(|offset| self.spans[offset].last);
        last.map_or(self.base, |last| Position { index: last.index.min(at), ..last })
    }

    /// The first index that has to stay so that as many of the entries up to `upto` stay as fit into
    /// `bytes`; of those that are not in memory whole spans.
    pub(crate) fn first_of_tail(&self, upto: Index, bytes: u64) -> Index {
        let mut left = bytes;
        let mut first = upto.next();
        while let Some(entry) = self.get(first.previous()).filter(|entry| entry.size() <= left) {
            left -= entry.size();
            first = entry.index;
        }
        if first > self.held_first() && upto >= self.held_first() {
            return first;
        }
        for span in self.spans.iter().rev().filter(|span| span.first <= upto) {
            match left.checked_sub(span.bytes_upto(upto)) {
                Some(rest) => (left, first) = (rest, span.first),
                None => break,
            }
        }
        first
    }
}
