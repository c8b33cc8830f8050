//! The disk of a member: what is durable, and what is on its way there.
//!
//! Writes become durable in order, one or several at a time, after a drawn latency. A crash keeps
//! any prefix of those that were on their way, and of the next one what a store leaves that is
//! stopped between two of its operations: the term and vote go first, then the entries, in as many
//! batches as they take, then the snapshot that says which of them count. A sync may fail, and does
//! when the disk is full: what is durable then is unknown, as after a crash.
//!
//! Records that are torn inside, lost syncs and flipped bits are the store's own affair and are
//! tested there.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use raft::{
    Digest, Entry, Fetch, HardState, Index, Install, Log, Position, Recovered, SnapshotRoot, Write,
    WriteId,
};
use rand::{RngExt, rngs::StdRng};

use crate::{fault::Mix, machine::History};

/// What recovery would find if the power failed now.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// Term and vote.
    pub hard_state: HardState,
    /// The last snapshot.
    pub snapshot: Option<SnapshotRoot>,
    base: Position,
    base_history: History,
    log: BTreeMap<Index, (Entry, History)>,
}

/// A snapshot with its chunks.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Its root.
    pub root: SnapshotRoot,
    /// Its chunks, in order.
    pub chunks: Vec<Bytes>,
    /// The log that it stands for.
    pub history: History,
}

/// A disk.
#[derive(Debug, Default)]
pub struct Disk {
    image: Image,
    pending: VecDeque<Write>,
    /// How many of the pending writes the running sync covers.
    syncing: usize,
    snapshots: BTreeMap<Digest, Stored>,
    /// The transfer that runs, or that ran when the member crashed.
    pub(crate) transfer: Option<Install>,
    /// Nothing that grows has room.
    pub(crate) full: bool,
}

/// What of the writes on their way survived a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Survival {
    /// How many whole ones.
    pub(crate) writes: usize,
    /// Whether there is a part of the next one.
    pub(crate) torn: bool,
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

    /// Takes in a write. `history` is that of its snapshot.
    ///
    /// # Errors
    /// The write breaks the contract of [`Write`].
    fn apply(&mut self, write: Write, history: Option<History>) -> Result<(), String> {
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
                self.log.clear();
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
            self.log.split_off(&first.index);
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

    fn remove_before(&mut self, first: Index) {
        while let Some((&index, (entry, history))) = self.log.first_key_value()
            && index < first
        {
            (self.base, self.base_history) = (entry.position(), *history);
            self.log.remove(&index);
        }
    }
}

impl Disk {
    /// What is durable.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// What a member finds when it starts, if its memory holds so much of the log.
    pub fn recovered(&self, window_bytes: u64) -> Recovered {
        let mut recovered = Recovered {
            hard_state: self.image.hard_state,
            snapshot: self.image.snapshot.clone(),
            log: Log::new(self.image.base),
            memberships: Vec::new(),
        };
        for entry in self.image.entries() {
            recovered.push(entry.clone(), window_bytes);
        }
        recovered
    }

    /// Reads entries of the log, as many as are wanted.
    pub(crate) fn read(&self, fetch: Fetch) -> Vec<Entry> {
        let mut bytes = 0;
        let log = self.image.entries_behind(fetch.from.previous());
        let wanted = log.take_while(|entry| entry.index <= fetch.to).take_while(|entry| {
            bytes += entry.size();
            bytes == entry.size() || bytes <= fetch.bytes_max
        });
        wanted.cloned().collect()
    }

    /// A write was handed out.
    pub(crate) fn submit(&mut self, write: Write) {
        self.pending.push_back(write);
    }

    /// Begins a sync of some of what is pending, unless one is running. How long it takes.
    pub(crate) fn begin_sync(&mut self, rng: &mut StdRng, mix: &Mix) -> Option<u64> {
        if self.syncing > 0 || self.pending.is_empty() {
            return None;
        }
        let merged = mix.chance(rng, mix.merge_per_mille);
        self.syncing = if merged { self.pending.len() } else { 1 };
        let stalls = mix.chance(rng, mix.stall_per_mille);
        let latency_us_max = if stalls { mix.stall_us_max } else { mix.sync_us_max };
        Some(rng.random_range(0..=latency_us_max))
    }

    /// Whether the running sync fails.
    pub(crate) fn sync_fails(&self, rng: &mut StdRng, mix: &Mix) -> bool {
        self.with_room() < self.syncing || mix.chance(rng, mix.disk_error_per_mille)
    }

    /// For how many of the pending writes there is room.
    fn with_room(&self) -> usize {
        let grows = |write: &Write| !write.entries.is_empty() || write.snapshot.is_some();
        let first = self.pending.iter().position(|write| self.full && grows(write));
        first.unwrap_or(self.pending.len())
    }

    /// The running sync has ended. The last write that it covers.
    ///
    /// # Errors
    /// A write breaks its contract.
    pub(crate) fn end_sync(&mut self) -> Result<Option<WriteId>, String> {
        let count = std::mem::take(&mut self.syncing);
        self.make_durable(count)
    }

    /// The power fails: some of what was on its way survives.
    ///
    /// # Errors
    /// A write breaks its contract.
    pub(crate) fn crash(&mut self, rng: &mut StdRng, mix: &Mix) -> Result<Survival, String> {
        let writes = rng.random_range(0..=self.with_room());
        self.make_durable(writes)?;
        let next = self.pending.pop_front().filter(|_| mix.chance(rng, mix.torn_per_mille));
        let torn = next.is_some();
        if let Some(part) = next.map(|write| self.tear(write, rng)) {
            self.image.apply(part, None)?;
        }
        self.pending.clear();
        self.syncing = 0;
        Ok(Survival { writes, torn })
    }

    /// What is left of a write that was not finished.
    fn tear(&self, mut write: Write, rng: &mut StdRng) -> Write {
        let kept = rng.random_range(0..=write.entries.len());
        let first = write.entries.first().map_or(Index(0), |entry| entry.index);
        // What does not follow the log counts only with the snapshot, which was to come last.
        let follows = first > self.image.base.index && first <= self.image.last().index.next();
        write.entries.truncate(if follows && !self.full { kept } else { 0 });
        Write { snapshot: None, ..write }
    }

    fn make_durable(&mut self, count: usize) -> Result<Option<WriteId>, String> {
        let mut last = None;
        for write in self.pending.drain(..count) {
            last = Some(write.id);
            let stored =
                write.snapshot.as_ref().and_then(|it| self.snapshots.get(&it.root.manifest));
            let history = stored.map(|stored| stored.history);
            self.image.apply(write, history)?;
        }
        let covered = self.image.snapshot.as_ref().map_or(Index(0), |root| root.position.index);
        self.snapshots.retain(|_, stored| stored.root.position.index >= covered);
        Ok(last)
    }

    /// The chunks of a snapshot were made durable.
    pub(crate) fn store(&mut self, stored: Stored) {
        self.snapshots.insert(stored.root.manifest, stored);
    }

    /// A snapshot that is here.
    pub fn stored(&self, root: &SnapshotRoot) -> Option<&Stored> {
        self.snapshots.get(&root.manifest)
    }

    /// A planted bug: the disk has lost the vote.
    pub(crate) fn lose_vote(&mut self) {
        self.image.hard_state.vote = None;
    }

    /// A planted bug: the disk has lost the last `count` entries that it called durable.
    pub(crate) fn lose_entries(&mut self, count: usize) {
        let covered = self.image.snapshot.as_ref().map_or(Index(0), |root| root.position.index);
        for _ in 0..count {
            if self.image.last().index > covered {
                self.image.log.pop_last();
            }
        }
    }
}
