//! What a member's disk has promised, as a model: the term and vote, the last snapshot, and the log
//! with the hash of all before each entry.

use std::collections::BTreeMap;

use raft::{Entry, HardState, Index, Payload, Position, Recovered, SnapshotRoot, Write};

use crate::machine::History;

/// What recovery would find if the power failed now.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// Term and vote.
    pub hard_state: HardState,
    /// The last snapshot.
    pub snapshot: Option<SnapshotRoot>,
    pub(super) base: Position,
    base_history: History,
    pub(super) log: BTreeMap<Index, (Entry, History)>,
    /// How many bytes others have that were in the places of what is in the log, or will be: they
    /// are there until a snapshot covers them.
    pub(super) overwritten: BTreeMap<Index, u64>,
}

impl Image {
    /// The end of the log.
    pub fn last(&self) -> Position {
        self.log.last_key_value().map_or(self.base, |(_, (entry, _))| entry.position())
    }

    /// The entry just before the log.
    pub fn base(&self) -> (Position, History) {
        (self.base, self.base_history)
    }

    /// The entries of the log.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.log.values().map(|(entry, _)| entry)
    }

    /// The term of each entry, and the log up to it.
    pub fn hashed_entries(&self) -> impl Iterator<Item = (raft::Term, History)> {
        self.log.values().map(|(entry, history)| (entry.term, *history))
    }

    /// The entries behind `index`.
    pub fn entries_behind(&self, index: Index) -> impl Iterator<Item = &Entry> {
        self.log.range(index.next()..).map(|(_, (entry, _))| entry)
    }

    /// The log up to `index`; none if it does not reach there or begins behind it.
    pub fn history_at(&self, index: Index) -> Option<History> {
        if index == self.base.index {
            Some(self.base_history)
        } else {
            self.log.get(&index).map(|&(_, history)| history)
        }
    }

    /// Whether `index` is covered by the snapshot or by a log that ends, up to there, in `history`.
    pub fn covers(&self, index: Index, history: History) -> bool {
        self.snapshot.as_ref().is_some_and(|root| root.position.index >= index)
            || self.history_at(index) == Some(history)
    }

    /// Whether this is what was found, of whose log memory holds the end.
    pub(super) fn is(&self, found: &Recovered) -> bool {
        let held = found.log.entries();
        let forgotten = self.log.len().saturating_sub(held.len());
        let memberships = self.entries().filter_map(|entry| match &entry.payload {
            Payload::Membership(membership) => Some((entry.index, membership)),
            Payload::Noop | Payload::Tick | Payload::Command(_) => None,
        });
        self.hard_state == found.hard_state
            && self.snapshot == found.snapshot
            && self.base == found.log.base()
            && self.last() == found.log.last()
            && self.entries().skip(forgotten).eq(held)
            && memberships.eq(found.memberships.iter().map(|(index, it)| (*index, it)))
    }

    /// Takes in a write. `history` is that of its snapshot.
    ///
    /// # Errors
    /// The write breaks the contract of [`Write`].
    pub(super) fn apply(&mut self, write: Write, history: Option<History>) -> Result<(), String> {
        if let Some(snapshot) = write.snapshot {
            let covered = snapshot.root.position;
            let history = history.ok_or("a snapshot whose chunks are not durable")?;
            if snapshot.first > covered.index.next() {
                return Err(format!("the log would begin at {} behind {covered}", snapshot.first));
            }
            if snapshot.reset || self.last().index < snapshot.first.previous() {
                if snapshot.first != covered.index.next() {
                    return Err(format!("a reset to {covered} that begins at {}", snapshot.first));
                }
                self.overwrite_from(Index(0));
                (self.base, self.base_history) = (covered, history);
            }
            self.remove_before(snapshot.first);
            self.snapshot = Some(snapshot.root);
        }
        if let Some(first) = write.entries.first() {
            if first.index <= self.base.index || first.index > self.last().index.next() {
                let (base, last) = (self.base, self.last());
                return Err(format!("entries from {} for a log {base}..{last}", first.position()));
            }
            self.overwrite_from(first.index);
        }
        for entry in write.entries {
            if entry.index != self.last().index.next() {
                return Err(format!("a gap between {} and {}", self.last(), entry.position()));
            }
            let before = self.log.last_key_value().map_or(self.base_history, |(_, last)| last.1);
            let history = before.then_entry(&entry);
            self.log.insert(entry.index, (entry, history));
        }
        self.hard_state = write.hard_state.unwrap_or(self.hard_state);
        Ok(())
    }

    /// Removes the end of the log, which is still on the disk.
    fn overwrite_from(&mut self, first: Index) {
        for (index, (entry, _)) in self.log.split_off(&first) {
            *self.overwritten.entry(index).or_default() += entry.size();
        }
    }

    fn remove_before(&mut self, first: Index) {
        self.overwritten = self.overwritten.split_off(&first);
        while let Some((&index, (entry, history))) = self.log.first_key_value()
            && index < first
        {
            (self.base, self.base_history) = (entry.position(), *history);
            self.log.remove(&index);
        }
    }
}
